"""Sweeps over large sparse models as compiled programs, in float64 whatever jax's own setting is.

The arrays lie as [A, K, S], so that every one of the A · K terms of a sweep is one gather along the states. Nothing is
a constant of a program: models of one size share one compilation. Sequential sweeps take the states in the order in
which values spread, level by level: a block is a window of at most `lanes` consecutive states, and no block spans two
levels, so that one sweep carries a value through all of them. What a window holds beyond its block is computed and
dropped.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polyak.mdp.certificate import Limits
from polyak.mdp.model import Floats, Indices
from polyak.mdp.problem import Problem
from polyak.mdp.sweeps import Change, Sweeper, estimate, stalled

_ROWS = 256  # the most sweeps of one call
_LANES = (128, 256, 512, 1024, 2048, 4096, 8192)
_STEP = 300  # what a block costs beside its lanes, in lanes


class _Arrays(NamedTuple):
    """A problem on the device; N = S, or S + lanes where sweeps are sequential."""

    weight: Array  # [A, K, N]
    successor: Array  # [A, K, N]
    reward: Array  # [A, N]
    free: Array  # [N]


class _Blocks(NamedTuple):
    """The order of a sequential sweep."""

    order: Indices  # [S]: which state stands at each place
    place: Indices  # [S]: where each state stands
    offsets: Array  # [blocks]
    lengths: Array  # [blocks]
    lanes: int


def _q(arrays: _Arrays, V: Array) -> list[Array]:
    """A action values, each for all places of the arrays."""
    A, K = arrays.weight.shape[:2]
    found: list[Array] = []
    for a in range(A):
        q = arrays.reward[a]
        for k in range(K):
            q = q + arrays.weight[a, k] * V.at[arrays.successor[a, k]].get(mode="promise_in_bounds")
        found.append(q)
    return found


def _largest(values: list[Array]) -> Array:
    best = values[0]
    for q in values[1:]:
        best = jnp.maximum(best, q)
    return best


def _record(rows: Array, k: Array, new: Array, old: Array, live: Array) -> Array:
    """The sweep's row, written; what is not live counts as unchanged."""
    change = new - old
    low, high = jnp.where(live, change, jnp.inf).min(), jnp.where(live, change, -jnp.inf).max()
    row = jnp.stack([low, high, jnp.where(live, jnp.abs(new), 0.0).max()])
    return rows.at[k].set(row)


def _goes_on(kind: Change, limits: Limits, k: Array, rows: Array, n: Array, target: Array) -> Array:
    row = rows[jnp.maximum(k - 1, 0)]
    low, high, largest = row[0], row[1], row[2]
    met = (estimate(kind, limits, low, high, largest, jnp) <= target) | stalled(limits, low, high, largest, jnp)
    return (k < n) & ((k == 0) | ~met)


@partial(jax.jit, static_argnames="on_q")
def _synchronous(
    X: Array, arrays: _Arrays, limits: Limits, n: Array, target: Array, *, on_q: bool
) -> tuple[Array, Array, Array]:
    """At most n sweeps of V [S], or of Q [A, S]: (X, rows, how many)."""
    live = jnp.isfinite(arrays.reward) & arrays.free[None] if on_q else arrays.free

    def sweep(carry: Any) -> Any:
        X, rows, k = carry
        q = _q(arrays, X.max(0) if on_q else X)
        new = jnp.stack(q) if on_q else _largest(q)
        return new, _record(rows, k, new, X, live), k + 1

    start = X, jnp.zeros((_ROWS, 3)), jnp.int32(0)
    return jax.lax.while_loop(lambda c: _goes_on("synchronous", limits, c[2], c[1], n, target), sweep, start)


def _block(V: Array, arrays: _Arrays, offset: Array, length: Array, lanes: int) -> Array:
    """V after one block: only its own values change."""

    def window(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, offset, lanes, x.ndim - 1)

    here: _Arrays = jax.tree.map(window, arrays)
    new = jnp.where(jnp.arange(lanes) < length, _largest(_q(here, V)), window(V))
    return jax.lax.dynamic_update_slice(V, new, (offset,))


@partial(jax.jit, static_argnames="lanes")
def _sequential(
    V: Array, arrays: _Arrays, offsets: Array, lengths: Array, limits: Limits, n: Array, target: Array, *, lanes: int
) -> tuple[Array, Array, Array]:
    """At most n sweeps, block after block: (V, rows, how many)."""

    def sweep(carry: Any) -> Any:
        V, rows, k = carry
        new = jax.lax.fori_loop(0, offsets.shape[0], lambda i, V: _block(V, arrays, offsets[i], lengths[i], lanes), V)
        return new, _record(rows, k, new, V, arrays.free), k + 1

    start = V, jnp.zeros((_ROWS, 3)), jnp.int32(0)
    return jax.lax.while_loop(lambda c: _goes_on("sequential", limits, c[2], c[1], n, target), sweep, start)


@jax.jit
def _greedy(arrays: _Arrays, V: Array) -> _Arrays:
    """The arrays of the greedy actions alone, A = 1; V is as long as they are."""
    policy = jnp.argmax(jnp.stack(_q(arrays, V)), 0)
    pick = policy[None, None]
    weight, successor = (
        jnp.take_along_axis(x, jnp.broadcast_to(pick, (1, *x.shape[1:])), 0) for x in (arrays.weight, arrays.successor)
    )
    return _Arrays(weight, successor, jnp.take_along_axis(arrays.reward, policy[None], 0), arrays.free)


class Synchronous(NamedTuple):
    """All states at once; X is V [S], or Q [A, S] where `on_q`."""

    arrays: _Arrays
    limits: Limits
    on_q: bool
    change: Change = "synchronous"

    def load(self, V: Floats) -> Array:
        with jax.enable_x64(True):
            values = jnp.asarray(V)
            if not self.on_q:
                return values
            reward = self.arrays.reward
            return jnp.where(jnp.isfinite(reward), jnp.broadcast_to(values[None], reward.shape), -jnp.inf)

    def values(self, X: Array) -> Floats:
        with jax.enable_x64(True):
            return np.asarray(X.max(0) if self.on_q else X)

    def advance(self, X: Array, n: int, target: float) -> tuple[Array, Floats]:
        with jax.enable_x64(True):
            sweeps = np.int32(min(n, _ROWS))
            X, rows, k = _synchronous(X, self.arrays, self.limits, sweeps, target, on_q=self.on_q)
            return X, np.asarray(rows)[: int(k)]

    def rewarded(self, reward: Floats, scale: float) -> "Synchronous":
        with jax.enable_x64(True):
            arrays = self.arrays._replace(reward=_placed(reward, None, 0))
            return self._replace(arrays=arrays, limits=self.limits._replace(scale=scale))

    def greedy(self, X: Array) -> "Synchronous":
        with jax.enable_x64(True):
            return self._replace(arrays=_greedy(self.arrays, X.max(0) if self.on_q else X), on_q=False)


class Sequential(NamedTuple):
    """Block after block, each from the newest values; X is V in the order of the sweep, padded by the lanes."""

    arrays: _Arrays
    limits: Limits
    blocks: _Blocks
    change: Change = "sequential"

    def load(self, V: Floats) -> Array:
        with jax.enable_x64(True):
            return jnp.asarray(np.concatenate([V[self.blocks.order], np.zeros(self.blocks.lanes)]))

    def values(self, X: Array) -> Floats:
        return np.asarray(X)[self.blocks.place]

    def advance(self, X: Array, n: int, target: float) -> tuple[Array, Floats]:
        blocks = self.blocks
        with jax.enable_x64(True):
            about = blocks.offsets, blocks.lengths, self.limits, np.int32(min(n, _ROWS)), target
            X, rows, k = _sequential(X, self.arrays, *about, lanes=blocks.lanes)
            return X, np.asarray(rows)[: int(k)]

    def rewarded(self, reward: Floats, scale: float) -> "Sequential":
        with jax.enable_x64(True):
            arrays = self.arrays._replace(reward=_placed(reward, self.blocks.order, self.blocks.lanes))
            return self._replace(arrays=arrays, limits=self.limits._replace(scale=scale))

    def greedy(self, X: Array) -> "Sequential":
        with jax.enable_x64(True):
            return self._replace(arrays=_greedy(self.arrays, X))


def compiled(problem: Problem, limits: Limits, level: Indices | None, *, on_q: bool) -> Sweeper:
    """The sweeper of a sparse problem: sequential where there are levels, else synchronous."""
    with jax.enable_x64(True):
        if level is None:
            return Synchronous(_arrays(problem, None, 0), limits, on_q)
        blocks = _blocks(level)
        return Sequential(_arrays(problem, blocks, blocks.lanes), limits, blocks)


def _placed(array: Any, order: Indices | None, lanes: int) -> Array:
    """[S, ...] as [..., S + lanes], in the order of the sweep, padded with zeros."""
    out = np.zeros((*array.shape[1:], len(array) + lanes), array.dtype)
    for place in np.ndindex(*array.shape[1:]):
        column = array[(slice(None), *place)]
        out[(*place, slice(len(array)))] = column if order is None else column[order]
    return jnp.asarray(out)


def _arrays(problem: Problem, blocks: _Blocks | None, lanes: int) -> _Arrays:
    """The problem on the device."""
    assert problem.successor is not None
    order = None if blocks is None else blocks.order
    successor = problem.successor if blocks is None else blocks.place[problem.successor]
    return _Arrays(
        _placed(problem.weight, order, lanes),
        _placed(successor, order, lanes),
        _placed(problem.reward, order, lanes),
        _placed(problem.free, order, lanes),
    )


def _blocks(level: Indices) -> _Blocks:
    """Blocks that span one level each, or several where levels are tiny; as many lanes as cost least."""
    n = len(level)
    coarse = level // max(1, -(-int(level.max() + 1) * 64 // n))
    order = np.argsort(coarse, kind="stable").astype(np.int32)
    counts = np.bincount(coarse)
    lanes = min(_LANES, key=lambda width: int((-(-counts // width)).sum()) * (width + _STEP))
    offsets, lengths, first = [], [], 0
    for count in counts.tolist():
        starts = np.arange(0, count, lanes)
        offsets.append(first + starts)
        lengths.append(np.minimum(lanes, count - starts))
        first += count
    place = np.empty(n, np.int32)
    place[order] = np.arange(n, dtype=np.int32)
    windows = [jnp.asarray(np.concatenate(x).astype(np.int32)) for x in (offsets, lengths)]
    return _Blocks(order, place, windows[0], windows[1], lanes)
