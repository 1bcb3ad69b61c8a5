"""How much memory a run will hold, known before it begins: the shapes of its state say so to the byte.

Most of it is the replay, and one that does not fit is found out by the kernel, which kills the process an hour later
without a word. So a plan is weighed against what the machine has free, and refused with what to make smaller.
"""

import math
from typing import Any, NamedTuple

import jax

from polyak.core import Spec
from polyak.errors import PolyakError
from polyak.memory import available, readable
from polyak.nets import sample_obs

WORTH_SAYING = 500_000_000  # bytes from which a run says at its start what it will take
_USED = 0.9  # of the free memory, at most, by the buffer that is recommended


class Need(NamedTuple):
    """Bytes that a run's seeds hold together while it trains, beside the process itself (some 0.5 GB)."""

    replay: int
    transitions: int  # that the replay of one seed keeps
    rollout: int  # what the worlds send between two updates
    rest: int  # networks, the optimiser's moments, statistics

    @property
    def total(self) -> int:
        return self.replay + self.rollout + self.rest


def need(agent: Any, spec: Spec, seeds: int, *, staged: bool) -> Need:
    """What `agent` takes on worlds of `spec`.

    Args:
        staged: the worlds are outside the program, so that a rollout exists twice: as it came, and on the device.
    """
    state = jax.eval_shape(lambda key: agent.init(key, spec), jax.eval_shape(lambda: jax.random.key(0)))
    leaves = {jax.tree_util.keystr(path, simple=True): x for path, x in jax.tree_util.tree_leaves_with_path(state)}
    replay = {name: x for name, x in leaves.items() if "replay" in name}
    kept = sum(math.prod(x.shape) for name, x in replay.items() if name.endswith("terminated"))
    one = jax.eval_shape(lambda: (sample_obs(spec.obs), sample_obs(spec.obs), sample_obs(spec.action)))
    steps = agent.rollout_length * spec.n_envs * (2 if staged else 1)
    held = _bytes(replay)
    return Need(seeds * held, kept, seeds * steps * _bytes(one), seeds * (_bytes(leaves) - held))


def said(found: Need) -> str:
    """One line for the start of a run; "" where it takes little."""
    if found.total < WORTH_SAYING:
        return ""
    part = f", of which {readable(found.replay)} for {found.transitions:,} transitions" if found.replay else ""
    return f"memory: about {readable(found.total)}{part}"


def require_room(found: Need, seeds: int) -> None:
    """Refuse a run that can't fit into the memory that is free now.

    Raises:
        PolyakError: the sentence names the largest part, and what makes it smaller.
    """
    free = _free()
    if found.total <= free:
        return
    fits = int(found.transitions * (free - found.rollout - found.rest) / max(found.replay, 1) * _USED)
    advice = {
        found.rest: "the networks and their optimiser: give a smaller network",
        found.rollout: "the rollout: give a smaller rollout_length or fewer environments (n_envs)",
        found.replay: f"the replay of {found.transitions:,} transitions: give a smaller buffer_size"
        + (f", such as {_rounded(fits):,}" if fits > 0 else ""),
    }  # fmt: skip
    largest = max(advice)
    raise PolyakError(
        f"this run would take {readable(found.total)} of memory, and {readable(free)} are free; {readable(largest)} "
        f"are {advice[largest]}{', or fewer seeds at once' if seeds > 1 else ''}"
    )


def _free() -> int:
    """Bytes left on the device that holds the state: this machine's memory, or a GPU's own."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else available()


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _rounded(n: int) -> int:
    """Two digits of a number, the rest 0: nobody wants a buffer of 243,817."""
    unit = 10 ** max(0, len(str(n)) - 2)
    return n // unit * unit
