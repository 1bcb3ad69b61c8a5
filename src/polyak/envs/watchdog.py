"""The watchdog: ends a process whose environment hangs, with one sentence, so that `resume` can go on.

An environment runs in the process that learns, where nothing can interrupt it, so the only cure is to end the
process; the newest checkpoint stands. One daemon thread serves all vectors of the process. It looks, a few times
per deadline, at a counter that the vector increments before each call: no clock is read on the hot path.
C code that holds the interpreter's lock stops this thread as well; for that case the thread keeps re-arming
`faulthandler`, whose own thread needs no lock, writes the Python stack to stderr and exits with code 1.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol
from weakref import WeakSet

EXIT_CODE = 3
_TICK_S = 1.0


class Watched(Protocol):
    """What the watchdog needs of a vector."""

    deadline: float

    def pulse(self) -> tuple[bool, int]:
        """(whether a call into an environment is under way, a number that is new for each call)."""
        ...

    def where(self) -> str:
        """Env index, episode, seed and step of the call under way."""
        ...


def end_process(sentence: str) -> None:
    """Says on stderr who hangs, and ends the process at once with exit code 3."""
    # The main thread is stuck: no cleanup can run, and sys.exit would only end this thread.
    try:
        stream = sys.__stderr__
        if stream is not None:
            stream.write(
                f"{sentence}, so the process ends here; the last checkpoint stands (`polyak resume` goes on from it, "
                "`deadline` sets the limit, 0 for none)\n"
            )
            stream.flush()
    finally:
        os._exit(EXIT_CODE)


class Watchdog:
    """One daemon thread that ends the process when a call into an environment outlasts its deadline.

    A process that was itself stopped (Ctrl-Z, a suspended machine) starts its deadlines anew when it goes on.
    """

    def __init__(self, on_hang: Callable[[str], None] = end_process) -> None:
        self.on_hang = on_hang
        self._lock = threading.Lock()
        self._vectors: WeakSet[Watched] = WeakSet()
        self._seen: dict[int, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def watch(self, vector: Watched) -> None:
        """Watches `vector` for as long as it lives; a deadline of 0 watches nothing."""
        if vector.deadline <= 0:
            return
        with self._lock:
            self._vectors.add(vector)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="polyak-watchdog", daemon=True)
                self._thread.start()
        _sleep_with_the_process()
        _arm(vector.deadline)
        self._wake.set()

    def forget(self, vector: Watched) -> None:
        """Stops watching `vector`."""
        with self._lock:
            self._vectors.discard(vector)

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            with self._lock:
                vectors = [v for v in self._vectors if v.deadline > 0]
            tick = min([_TICK_S, *(v.deadline / 4 for v in vectors)])
            # With nothing to watch, sleep until `watch` is called again.
            if not vectors:
                faulthandler.cancel_dump_traceback_later()
                self._wake.wait()
                self._wake.clear()
                last = time.monotonic()
                continue
            del vectors
            time.sleep(tick)
            now = time.monotonic()
            if now - last > tick + 2 * _TICK_S:
                self._seen.clear()
            self._look(now)
            last = now

    def _look(self, now: float) -> None:
        """One look at every vector: who has been in the same call for too long, and is anybody at work."""
        with self._lock:
            vectors = list(self._vectors)
        working = 0.0
        seen: dict[int, tuple[int, float]] = {}
        for vector in vectors:
            busy, count = vector.pulse()
            before, since = self._seen.get(id(vector), (-1, now))
            if busy or count != before:
                working = max(working, vector.deadline)
            seen[id(vector)] = (count, since if count == before and busy else now)
            if busy and count == before and now - since > vector.deadline > 0:
                self.on_hang(f"{vector.where()}: no answer for {vector.deadline:g} s")
        self._seen = seen
        if working:
            _arm(working)
        else:
            faulthandler.cancel_dump_traceback_later()


def _arm(deadline: float) -> None:
    """(Re-)arms the lock-free alarm: a little later than the deadline, so that the sentence comes first if it can."""
    # Without a real stderr (a captured or closed one) there is nothing to write to, and no alarm.
    with contextlib.suppress(ValueError, OSError, AttributeError, RuntimeError):
        stream = sys.__stderr__
        if stream is not None:
            faulthandler.dump_traceback_later(deadline + 3 * _TICK_S, exit=True, file=stream)


def _sleep_with_the_process() -> None:
    """Ctrl-Z stops the alarm too, which knows the time only, and would end the process as soon as it goes on."""
    stop = getattr(signal, "SIGTSTP", None)  # there is none on Windows
    if stop is None or threading.current_thread() is not threading.main_thread():
        return

    def pause(number: int, frame: FrameType | None) -> None:
        faulthandler.cancel_dump_traceback_later()  # the thread arms it again
        os.kill(os.getpid(), signal.SIGSTOP)

    if signal.getsignal(stop) is signal.SIG_DFL:
        signal.signal(stop, pause)


WATCHDOG = Watchdog()
