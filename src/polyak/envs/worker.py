"""The other side of `envs.pool`: a process that makes a block of environments and does with them as it is told.

The pool starts it as `python -m polyak.envs.worker SOCKET PARENT`; it is of no use on its own.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
from typing import Any

from polyak.envs.gymspaces import Array, flat, nested
from polyak.envs.host import EnvFault, HostVector, Step, Tier
from polyak.envs.pool import Header, listed, named, receive, send
from polyak.envs.source import makers
from polyak.envs.watchdog import EXIT_CODE, WATCHDOG
from polyak.errors import PolyakError

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Makes the environments, then obeys until it is told to close, or the trainer is gone."""
    link, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    _die_with(parent)
    # The trainer hears signals, and ends its workers. Not SIG_IGN, which an environment's own processes would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    about, _ = receive(link)
    WATCHDOG.on_hang = lambda sentence: _last_words(link, sentence)
    try:
        vector = _vector(about)
    except PolyakError as error:
        send(link, {"error": str(error), "exit_code": error.exit_code})
        return
    send(link, {})
    going = True
    while going:
        going = _obey(link, vector)


def _die_with(parent: int) -> None:
    """The kernel kills this process when the trainer ends, however it does and whatever an environment is at."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew of the wish
        os._exit(EXIT_CODE)


def _vector(about: Header) -> HostVector:
    make = makers(about["recipe"])[about["stream"] == "eval"]
    return HostVector(
        make, about["n"], about["seed"], about["stream"], first=about["first"], name=about["name"],
        kwargs=about["kwargs"], frames=about["frames"], tier=Tier(*about["tier"]), deadline=about["deadline"],
    )  # fmt: skip


def _last_words(link: socket.socket, sentence: str) -> None:
    """The watchdog's: the main thread is stuck in an environment, so nobody else is sending."""
    with contextlib.suppress(OSError):  # nobody listens any more
        send(link, {"hangs": sentence})
    os._exit(EXIT_CODE)


def _obey(link: socket.socket, vector: HostVector) -> bool:
    """One order and its answer; whether there will be another."""
    try:
        order, arrays = receive(link)
    except (EOFError, OSError):
        order, arrays = {"do": "close"}, []
    header: Header = {}
    sent: list[Array] = []
    try:
        header, sent = _done(vector, order, arrays)
        header |= {"digests": vector.digest(), "episodes": vector.episodes(), "notices": vector.notices[:]}
        vector.notices.clear()
    except EnvFault as fault:
        header = {"fault": str(fault), "repro": fault.repro}
    except PolyakError as error:
        header = {"error": str(error), "exit_code": error.exit_code}
    with contextlib.suppress(OSError):  # the trainer is gone, and will not ask again
        send(link, header, sent)
    return order["do"] != "close"


def _done(vector: HostVector, order: Header, arrays: list[Array]) -> tuple[Header, list[Array]]:
    """What an order asks for: (header, arrays) of the answer."""
    match order["do"]:
        case "step":
            return {}, _listed_step(vector, vector.step(nested(vector.action_space, iter(arrays))))
        case "reset":
            return {}, flat(vector.obs_space, vector.reset())
        case "replay":
            for t in range(len(arrays[0])):
                vector.step(nested(vector.action_space, iter([parts[t] for parts in arrays])))
            vector.episodes()  # the trainer has them from the process before
            return {}, []
        case "snapshot":
            return listed(vector.snapshot())
        case "restore":
            return {}, flat(vector.obs_space, vector.restore(named(order, arrays)))
        case _:
            vector.close()
            return {}, []


def _listed_step(vector: HostVector, step: Step) -> list[Any]:
    obs, after = (flat(vector.obs_space, x) for x in (step.obs, step.next_obs))
    return [step.reward, step.terminated, step.truncated, *obs, *after]


if __name__ == "__main__":
    main()
