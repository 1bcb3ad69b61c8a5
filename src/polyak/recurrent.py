"""Recurrent networks: a torso, then a cell whose memory the agent carries through the episode.

An agent sees a network with and without memory through the same four functions: `start`, `step` (one observation, as in
`act`), `unroll` (a stretch of steps, as in `update`) and `beyond` (their true successors). Without memory it is (), and
they only call the network.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Transition, hyper, in_range, one_of, where
from polyak.nets import Dense, feature_width
from polyak.returns import ended
from polyak.spaces import Space

Cell = Literal["gru", "lstm"]


@hyper
class GRU:
    """Cho et al. (2014), arXiv 1406.1078, eq. 5-8: features x [N, n], memory h [N, m] ↦ (h′, h′)."""

    enter: Dense  # x ↦ reset, update and candidate, [n, 3m]
    stay: Dense  # h ↦ the same

    @staticmethod
    def init(key: Array, fan_in: int, size: int) -> "GRU":
        k_enter, k_stay = jax.random.split(key)
        return GRU(Dense.init(k_enter, fan_in, 3 * size), Dense.init(k_stay, size, 3 * size))

    def __call__(self, x: Array, h: Array) -> tuple[Array, Array]:
        r, z, n = jnp.split(self.enter(x), 3, axis=-1)
        r_h, z_h, n_h = jnp.split(self.stay(h), 3, axis=-1)
        z = jax.nn.sigmoid(z + z_h)
        h = z * h + (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + r_h) * n_h)
        return h, h


@hyper
class LSTM:
    """Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000): memory (c, h), each [N, m]."""

    enter: Dense  # x ↦ input, forget, candidate and output, [n, 4m]
    stay: Dense  # h ↦ the same

    @staticmethod
    def init(key: Array, fan_in: int, size: int) -> "LSTM":
        k_enter, k_stay = jax.random.split(key)
        return LSTM(Dense.init(k_enter, fan_in, 4 * size), Dense.init(k_stay, size, 4 * size))

    def __call__(self, x: Array, memory: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        c, h = memory
        i, f, g, o = jnp.split(self.enter(x) + self.stay(h), 4, axis=-1)
        # A forget gate that starts open (+1) lets gradients pass through time: Jozefowicz et al. (2015).
        c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h, (c, h)


@hyper
class Recurrent:
    """A torso's features, through a cell: the features of an observation given the episode so far."""

    torso: Any
    cell: Any


def check_memory(agent: Any) -> None:
    """Refuse what an agent's fields recurrent and memory_size can't be."""
    one_of(agent, recurrent=("gru", "lstm", None))
    in_range(agent, memory_size=(1, 1 << 16))


class Unrolled(NamedTuple):
    """A network's way through steps [T, N]."""

    features: Array  # [T, N, f]
    before: Any  # memory with which each step was seen, [T, N, m]; () without memory
    after: Any  # memory after it, were its episode to go on


def remembering(key: Array, torso: Any, obs: Space, cell: Cell, size: int) -> Recurrent:
    """The torso with a cell of `size` on it."""
    return Recurrent(torso, {"gru": GRU, "lstm": LSTM}[cell].init(key, feature_width(torso, obs), size))


def start(cell: Cell | None, size: int, n: int) -> Any:
    """The memory at the start of n episodes: zeros [n, size], for an LSTM two of them; () without a cell."""
    h = jnp.zeros((n, size))
    return () if cell is None else h if cell == "gru" else (h, h)


def step(net: Any, obs: Any, memory: Any) -> tuple[Array, Any]:
    """(features [N, f], the memory after it) of one observation [N]."""
    return net.cell(net.torso(obs), memory) if isinstance(net, Recurrent) else (net(obs), memory)


def step_all(nets: Sequence[Any], obs: Any, memory: Any) -> tuple[Array, Any]:
    """(features of the first network, the memories after obs): the others only see what the first one acts on."""
    if not memory:
        return nets[0](obs), memory
    seen = [step(net, obs, m) for net, m in zip(nets, memory, strict=True)]
    return seen[0][0], tuple(m for _, m in seen)


def unroll(net: Any, obs: Any, end: Array, memory: Any) -> Unrolled:
    """Through observations [T, N] from the memory [N] before the first; after an end [T, N] memory starts anew."""
    if not isinstance(net, Recurrent):
        return Unrolled(net(obs), (), ())
    fresh = jax.tree.map(jnp.zeros_like, memory)

    def forward(memory: Any, seen: tuple[Array, Array]) -> tuple[Any, Unrolled]:
        features, after = net.cell(seen[0], memory)
        return where(seen[1], fresh, after), Unrolled(features, memory, after)

    return lax.scan(forward, memory, (net.torso(obs), end))[1]


def beyond(net: Any, next_obs: Any, after: Any) -> Array:
    """Features [T, N, f] of the true successors of unrolled steps."""
    return net.cell(net.torso(next_obs), after)[0] if isinstance(net, Recurrent) else net(next_obs)


def views(net: Any, steps: Transition, memory: Any) -> tuple[Array, Array]:
    """(features of the observations, features of their true successors) of steps [T, N], or [B] without memory."""
    seen = unroll(net, steps.obs, ended(steps), memory)
    return seen.features, beyond(net, steps.next_obs, seen.after)


def width(net: Any, space: Space) -> int:
    """How many features a network gives, with memory or without."""
    return net.cell.stay.W.shape[0] if isinstance(net, Recurrent) else feature_width(net, space)
