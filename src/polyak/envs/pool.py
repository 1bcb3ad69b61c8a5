"""Environments in processes of their own: for those that are slow, and for those that crash or hang.

A `Pool` is a `HostVector` cut into blocks, each in a worker process that runs a `HostVector` on its part of the
environments. Seeds, logs, digests and checks are therefore those of `HostVector`, and so are the bits: a snapshot taken
with workers is restored without them, and the other way round.

A worker that dies (a crash in C, `os._exit`, the system's memory killer, a call that outlasts the deadline) is replaced
by one that replays: the last snapshot, then the actions since. Nothing is lost, and the digests prove it. One that dies
three times at the same step ends the run with a sentence, and so does every mistake that Python can report, since it
would only happen again.

What crosses the socket is JSON and numbers, never a pickle: the trainer runs nothing that a worker sends.
"""

import collections
import contextlib
import itertools
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import numpy as np

from polyak.envs.gymspaces import ActionLeaf, Array, gym_leaves, nested, part
from polyak.envs.host import DEADLINE_S, EnvFault, Episode, Step, Tier, episode_of
from polyak.errors import EnvError, PolyakError
from polyak.spaces import Space, leaves

LIVES = 3  # deaths at one and the same step, after which a worker is not started again
SYNC = 1_000  # steps between snapshots of the workers, which bounds what a new one must replay
_START_S = 120.0  # for a new process to import its packages
_CLOSE_S = 5.0
_HEAD = struct.Struct("<IQ")  # bytes of the JSON, bytes of the arrays
_MOST_JSON = 1 << 26
_NUMBERS = "biuf"
# On Linux a worker dies with the thread that started it, so one that lives as long as the process starts them all.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="polyak-workers")

Header = dict[str, Any]


class Died(Exception):
    """A worker's end of the socket is closed, or silent for too long; the text says how it ended."""


# ---------------------------------------------------------------------------------------------------- messages


def send(link: socket.socket, header: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """A message: a JSON object and arrays of numbers."""
    listed = [np.ascontiguousarray(a) for a in arrays]
    layout = [[a.dtype.str, list(np.shape(x))] for a, x in zip(listed, arrays, strict=True)]
    text = json.dumps({**header, "arrays": layout}).encode()
    link.sendall(_HEAD.pack(len(text), sum(a.nbytes for a in listed)) + text)
    for array in listed:
        if array.nbytes:
            link.sendall(array.reshape(-1).view(np.uint8))


def receive(link: socket.socket) -> tuple[Header, list[Array]]:
    """The next message; the arrays are fresh.

    Errors:
        EOFError: the other side is gone. TimeoutError: it is silent. ValueError: not a message.
    """
    n_text, n_bytes = _HEAD.unpack(_exactly(link, _HEAD.size))
    if n_text > _MOST_JSON:
        raise ValueError(f"a message of {n_text} bytes of JSON")
    header: Header = json.loads(_exactly(link, n_text))
    layout = [(np.dtype(kind), tuple(int(n) for n in shape)) for kind, shape in header.pop("arrays")]
    if any(d.kind not in _NUMBERS for d, _ in layout) or sum(d.itemsize * math.prod(s) for d, s in layout) != n_bytes:
        raise ValueError(f"arrays {layout} in {n_bytes} bytes")
    return header, [np.frombuffer(_exactly(link, d.itemsize * math.prod(s)), d).reshape(s) for d, s in layout]


def _exactly(link: socket.socket, n: int) -> bytearray:
    whole = bytearray(n)
    view, got = memoryview(whole), 0
    while got < n:
        more = link.recv_into(view[got:])
        if not more:
            raise EOFError
        got += more
    return whole


# ---------------------------------------------------------------------------------------------------- one worker


class Block(NamedTuple):
    """The environments of one worker."""

    first: int
    n: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.n)

    def __str__(self) -> str:
        last = self.first + self.n - 1
        return f"environment {self.first}" if self.n == 1 else f"environments {self.first}–{last}"


class Worker:
    """A process with a block of environments, and what a successor would need to stand where it stands.

    Args:
        about: what `envs.worker` makes its vector from, as JSON.
        limit: seconds to wait for an answer; None: for ever.
    """

    def __init__(self, about: Header, block: Block, limit: float | None) -> None:
        self.about, self.block, self.limit = about, block, limit
        self.snapshot: tuple[Header, list[Array]] | None = None  # None: it began with `reset`
        self.since: list[list[Array]] = []  # actions after the snapshot, answered
        self.digests: list[str] = []
        self.order: tuple[Header, list[Array]] = ({}, [])  # under way
        self.deaths = 0  # in the order under way
        self.start()

    def start(self) -> None:
        """A new process, which makes its environments while nobody waits: `answer` does."""
        _STARTER.submit(self._launch).result()
        # One that is dead already is found so by `answer`.
        with contextlib.suppress(OSError):
            send(self.link, self.about | {"first": self.block.first, "n": self.block.n})

    def _launch(self) -> None:
        self.link, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "polyak.envs.worker", str(theirs.fileno()), str(os.getpid())]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # A session of its own: Ctrl-C on the terminal is the trainer's affair.
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[theirs.fileno()],
            start_new_session=True, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        theirs.close()
        self.ready = False
        self.words: collections.deque[str] = collections.deque(maxlen=20)
        about = (self.process.stderr, self.words)
        self._listener = threading.Thread(target=_listen, args=about, daemon=True, name="polyak-worker-stderr")
        self._listener.start()

    def _await(self) -> None:
        """Returns once the process has made its environments."""
        if self.ready:
            return
        self.link.settimeout(None if self.limit is None else max(_START_S, self.limit))
        self._refuse(self._received())
        self.link.settimeout(self.limit)
        self.ready = True

    def give(self, header: Header, arrays: Sequence[Array] = ()) -> None:
        """Sends an order; `answer` waits for what comes back."""
        self.order, self.deaths = (header, list(arrays)), 0
        self._send()

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # as in `start`
            send(self.link, *self.order)

    def answer(self, died: Callable[["Worker", Died], None]) -> tuple[Header, list[Array]]:
        """The answer to the order under way. A process that dies over it is replaced, after `died` had its say.

        Errors:
            EnvFault, EnvError, PolyakError: what the worker reports, or what `died` raises.
        """
        while True:
            try:
                self._await()
                header, arrays = self._received()
                break
            except Died as death:
                self.deaths += 1
                died(self, death)
                self._revive()
        self._refuse((header, arrays))
        if self.order[0]["do"] == "step":
            self.since.append(self.order[1])
        elif self.order[0]["do"] == "snapshot":
            self.snapshot, self.since = (header, arrays), []
        else:
            self.snapshot = (self.order[0], self.order[1]) if self.order[0]["do"] == "restore" else None
            self.since = []
        self.digests = header["digests"]
        return header, arrays

    def _received(self) -> tuple[Header, list[Array]]:
        try:
            header, arrays = receive(self.link)
        except (OSError, EOFError, ValueError) as error:
            raise self._death(error) from error
        if "hangs" in header:
            self.kill()
            raise Died(header["hangs"])
        return header, arrays

    def _refuse(self, answer: tuple[Header, list[Array]]) -> None:
        """Raise here what was raised there."""
        header, _ = answer
        if "fault" in header:
            raise EnvFault(header["fault"], header["repro"])
        if "error" in header:
            raise (EnvError if header["exit_code"] == EnvError.exit_code else PolyakError)(header["error"])

    def _revive(self) -> None:
        """A new process that stands where the last one answered, with the order under way given to it."""
        self.start()
        with contextlib.suppress(Died):  # which is found by `answer`
            if self.digests and self.order[0]["do"] in ("step", "snapshot"):
                self._await()
                self._stand()
        self._send()

    def _stand(self) -> None:
        self.link.settimeout(None)  # a replay takes as long as its episodes; the worker's own watchdog looks after it
        header, arrays = ({}, []) if self.snapshot is None else self.snapshot
        answer = self._asked(header | {"do": "reset" if self.snapshot is None else "restore"}, arrays)
        if self.since:
            answer = self._asked({"do": "replay"}, [np.stack(parts) for parts in zip(*self.since, strict=True)])
        self.link.settimeout(self.limit)
        if answer["digests"] != self.digests:
            raise EnvError(
                f"{self.about['name']}: a new process for {self.block} played the same actions and came to something "
                "else, so it does not replay exactly"
            )

    def _asked(self, header: Header, arrays: list[Array]) -> Header:
        with contextlib.suppress(OSError):  # as in `start`
            send(self.link, header, arrays)
        answer = self._received()
        self._refuse(answer)
        return answer[0]

    def _death(self, error: BaseException) -> Died:
        silent = isinstance(error, TimeoutError)
        how = f"no answer for {self.link.gettimeout():g} s" if silent else ""
        self.kill(wait=0.0 if silent else 2.0)
        code = self.process.returncode
        if not how:
            how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        words = " | ".join(word for word in list(self.words)[-3:] if word)
        return Died(f"{how}; its last words: {words}" if words else how)

    def kill(self, wait: float = 0.0) -> None:
        """Ends the process: by itself within `wait` seconds, or by force."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        # With what it has started: they are a session of their own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._listener.join(1.0)  # longer only where something that left the session still holds stderr
        self.link.close()

    def close(self) -> str:
        """Ends the process in order; what the environments' own close() had to complain about."""
        if self.process.returncode is not None:
            return ""
        header: Header = {}
        with contextlib.suppress(OSError, EOFError, ValueError):  # a dead one has nothing to say
            self.link.settimeout(_CLOSE_S)
            send(self.link, {"do": "close"})
            header, _ = receive(self.link)
        self.kill(wait=_CLOSE_S if header else 0.0)
        return header.get("error", "")


def _listen(stream: IO[bytes], words: collections.deque[str]) -> None:
    """What a process writes on stderr goes to ours, and its last lines are kept for the obituary."""
    with stream:
        for line in stream:
            text = line.decode(errors="replace")
            words.append(text.strip()[:200])
            with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed or absent
                sys.stderr.write(text)


# ---------------------------------------------------------------------------------------------------- the vector


class Pool:
    """N environments in worker processes, behind the interface of `HostVector`.

    Args:
        recipe: how to make one environment, as JSON (`Source.recipe`).
        gym_spaces: (observation, action) of the environments; spaces: the same as the agent sees them.
        workers: the number of processes, 1 … n_envs.
        tier: how exactly the environments resume; those of tier 3 are not replayed, so a dead worker ends the run.
        others: as in `HostVector`.

    Errors:
        PolyakError: a worker could not make its environments; the first order finds out. EnvFault: as in `HostVector`,
        and a worker that died three times at one step. EnvError: an action that can't be sent.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        gym_spaces: tuple[Any, Any],
        spaces: tuple[Space, Space],
        n_envs: int,
        seed: int,
        stream: str = "train",
        *,
        workers: int,
        tier: Tier,
        name: str = "environment",
        kwargs: Mapping[str, Any] | None = None,
        frames: int = 0,
        deadline: float = DEADLINE_S,
    ) -> None:
        self.name, self.n_envs, self.seed, self.stream = name, n_envs, seed, stream
        self.obs_space, self.action_space = spaces
        self.kwargs, self.frames, self.deadline, self.exactness = dict(kwargs or {}), frames, deadline, tier
        self.notices: list[str] = []
        self._actions = [ActionLeaf(path, space) for path, space in gym_leaves(gym_spaces[1], name)]
        self._n_obs = len(list(leaves(self.obs_space)))
        self._done: list[Episode] = []
        self._ready = False
        about: Header = {
            "recipe": dict(recipe), "seed": seed, "stream": stream, "name": name, "kwargs": self.kwargs,
            "frames": frames, "tier": list(tier), "deadline": deadline,
        }  # fmt: skip
        # An environment may step and reset in one call, and has the deadline for each.
        self._workers = [
            Worker(about, block, 2 * block.n * deadline + _CLOSE_S if deadline else None)
            for block in blocks(n_envs, workers)
        ]

    @property
    def tier(self) -> int:
        """As in `HostVector`."""
        return self.exactness.number

    # ---- the verbs

    def reset(self) -> Any:
        """As `HostVector.reset`."""
        self._done = []
        answers = self._ask([({"do": "reset"}, []) for _ in self._workers])
        self._ready = True
        return self._nested([arrays for _, arrays in answers], 0)

    def step(self, action: Any) -> Step:
        """As `HostVector.step`; the workers step side by side."""
        parts = self._parts(action)
        if len(self._workers[0].since) >= SYNC:
            self.snapshot()
        answers = self._ask([({"do": "step"}, [p[w.block.rows] for p in parts]) for w in self._workers])
        columns = [arrays for _, arrays in answers]
        reward, terminated, truncated = (_joined(columns, k) for k in range(3))
        obs = self._nested(columns, 3)
        return Step(obs, reward, self._nested(columns, 3 + self._n_obs), terminated, truncated)

    def episodes(self) -> list[Episode]:
        """As `HostVector.episodes`."""
        done, self._done = self._done, []
        return done

    def digest(self) -> list[str]:
        """As `HostVector.digest`."""
        return [digest for worker in self._workers for digest in worker.digests]

    def close(self) -> None:
        """Ends the processes; the first complaint of an environment's close() is raised after all have ended."""
        self._ready = False
        complaints = [worker.close() for worker in self._workers]
        for complaint in filter(None, complaints):
            raise EnvError(complaint)

    def _ask(self, orders: list[tuple[Header, list[Array]]]) -> list[tuple[Header, list[Array]]]:
        """Every worker's answer to its order; all have answered before the first complaint is raised."""
        for worker, order in zip(self._workers, orders, strict=True):
            worker.give(*order)
        answers: list[tuple[Header, list[Array]]] = []
        complaints: list[PolyakError] = []
        for worker in self._workers:
            try:
                answers.append(worker.answer(self._mourn))
            except PolyakError as error:
                complaints.append(error)
        for error in complaints:
            self._ready = False
            raise error
        for header, _ in answers:
            self.notices += header["notices"]
            self._done += [episode_of(np.asarray(row, np.float64)) for row in header["episodes"]]
        return answers

    def _mourn(self, worker: Worker, death: Died) -> None:
        """A notice of a death, or the end of the run where a new process would be no better."""
        who = f"{self.name}: the process of {worker.block} (seed {self.seed}) died"
        if not worker.digests:
            if worker.deaths >= LIVES:
                raise PolyakError(f"{who} {LIVES} times before its first step ({death})")
            self.notices.append(f"{who} before its first step ({death}), and another was started")
            return
        if self.tier == 3:
            why = self.exactness.reason or "tier 3"
            raise self._fault(worker, f"{who} ({death}), and its episodes can't be replayed ({why})")
        if worker.deaths >= LIVES:
            raise self._fault(worker, f"{who} {LIVES} times at the same step ({death})")
        self.notices.append(f"{who} ({death}); a new one has replayed its episodes, and nothing is lost")

    def _fault(self, worker: Worker, sentence: str) -> EnvFault:
        actions = [[part.tolist() for part in parts] for parts in [*worker.since, worker.order[1]]]
        about = {"env": self.name, "kwargs": self.kwargs, "seed": self.seed, "index": worker.block.first}
        return EnvFault(sentence, about | {"workers": str(worker.block), "actions": actions, "error": sentence})

    def _parts(self, action: Any) -> list[Array]:
        """The actions, leaf by leaf, copied, for they may have to be replayed; nothing is sent where one can't be."""
        if not self._ready:
            raise PolyakError(f"{self.name}: call reset() before step()")
        try:
            parts = [np.array(part(action, leaf.path)) for leaf in self._actions]
            for leaf, array in zip(self._actions, parts, strict=True):
                leaf.sent(array, self.n_envs)
        except (LookupError, TypeError, ValueError) as error:
            raise EnvError(f"{self.name}: {error}; nothing was sent (seed {self.seed})") from error
        return parts

    def _nested(self, columns: list[list[Array]], first: int) -> Any:
        return nested(self.obs_space, iter([_joined(columns, first + k) for k in range(self._n_obs)]))

    # ---- snapshots

    def snapshot(self) -> dict[str, Any]:
        """As `HostVector.snapshot`, and equal to it."""
        parts = [named(*answer) for answer in self._ask([({"do": "snapshot"}, []) for _ in self._workers])]
        whole = {key: np.concatenate([p[key] for p in parts]) if _is_array(parts[0][key]) else parts[0][key]
                 for key in parts[0]}  # fmt: skip
        rows = np.asarray(self._done, np.float64).reshape(-1, len(Episode._fields))
        return whole | {"n_envs": self.n_envs, "finished": rows}

    def restore(self, snapshot: Mapping[str, Any]) -> Any:
        """As `HostVector.restore`; the workers replay side by side."""
        if snapshot.get("n_envs") != self.n_envs:
            raise PolyakError(
                f"the snapshot of {self.name} has n_envs {snapshot.get('n_envs')!r}, this vector {self.n_envs!r}"
            )
        ends = np.concatenate([[0], np.cumsum(snapshot["length"])])
        pieces = [listed(_cut(snapshot, worker.block, ends)) for worker in self._workers]
        answers = self._ask([(header | {"do": "restore"}, arrays) for header, arrays in pieces])
        self._done = [episode_of(row) for row in snapshot["finished"]]
        self._ready = True
        return self._nested([arrays for _, arrays in answers], 0)


def blocks(n_envs: int, workers: int) -> Iterator[Block]:
    """n_envs in `workers` blocks of neighbours, as equal as can be."""
    ends = [n_envs * k // workers for k in range(workers + 1)]
    for first, end in itertools.pairwise(ends):
        yield Block(first, end - first)


def _joined(columns: list[list[Array]], k: int) -> Array:
    return np.concatenate([arrays[k] for arrays in columns])


def _cut(snapshot: Mapping[str, Any], block: Block, ends: Array) -> dict[str, Any]:
    """The part of a snapshot that is one worker's: rows per environment, and of actions those of its episodes."""
    steps = slice(int(ends[block.first]), int(ends[block.first + block.n]))

    def of(key: str, value: Any) -> Any:
        if not _is_array(value):
            return value
        return value[:0] if key == "finished" else value[steps] if key.startswith("actions/") else value[block.rows]

    return {key: of(key, value) for key, value in snapshot.items()} | {"n_envs": block.n}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def listed(snapshot: Mapping[str, Any]) -> tuple[Header, list[Array]]:
    """A snapshot as a message: its arrays' names go into the header."""
    names = [key for key, value in snapshot.items() if _is_array(value)]
    plain = {key: value for key, value in snapshot.items() if not _is_array(value)}
    return {"plain": plain, "names": names}, [snapshot[name] for name in names]


def named(header: Header, arrays: list[Array]) -> dict[str, Any]:
    """The snapshot in a message."""
    return header["plain"] | dict(zip(header["names"], arrays, strict=True))
