"""One replay for all: a time-major ring of transitions that is part of an agent's state, and the rhythm around it.

The ring lives on the device and is written in place (one slice per rollout, the buffer a donated carry). Plain
observations are kept as they came, with their successors. Of observations that stack the last k frames only the
newest frame is kept, and stacks are put together when sampled: 1/2k of the memory.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, flat, leading, require
from polyak.nets import sample_obs

_WRAP = 1 << 30  # row numbers are kept modulo this; it only has to exceed every capacity


class Ring(NamedTuple):
    """Rows of N transitions each, [capacity, N, ...]; the newest row overwrites the oldest."""

    data: Transition
    rows: Counter  # rows ever added: row r stands at r mod capacity


class Frames(NamedTuple):
    """The ring of stacked images. After the end of an episode, a stack must begin anew with its first frame."""

    data: Transition  # action, reward and flags [capacity, N]; obs and next_obs are ()
    newest: Array  # [capacity, N, ...] newest frame of each observation; the row after the last one holds its successor
    age: Array  # [capacity, N] steps since the episode began, at most k − 1: how many older frames the stack has
    final: Array  # [capacity, N] where in `finals` the successor of a row that ended its episode stands
    finals: Array  # [ends, N, ...] newest frame of last observations, which no row holds
    final_row: Array  # [ends, N] the row that each of `finals` belongs to, −1 where none
    ends: Array  # [N] place in `finals` of the next end
    began: Array  # [N] age of the next row
    usable: Array  # how many of the newest rows are complete: 0 … capacity − k
    rows: Counter


def ring(spec: Spec, capacity: int, rollout_length: int) -> Any:
    """An empty replay of `capacity` transitions, or of the whole run where that is less.

    The number of rows is a multiple of `rollout_length`, so that a rollout is always one slice.
    """
    most = min(capacity, max(spec.steps, 1))
    lead = (max(1, math.ceil(most / (spec.n_envs * rollout_length))) * rollout_length, spec.n_envs)
    flags, index = jnp.zeros(lead, bool), jnp.zeros(lead, jnp.int32)
    data = Transition(
        sample_obs(spec.obs, lead), sample_obs(spec.action, lead), jnp.zeros(lead), (), flags, ~index.astype(bool)
    )
    if not spec.frames:
        return Ring(data._replace(next_obs=sample_obs(spec.obs, lead), truncated=flags.copy()), Counter.of(0))
    require(
        lead[0] > 2 * spec.frames,
        f"buffer_size is {capacity}: too small for stacks of {spec.frames} frames; make it larger",
    )
    newest = jnp.zeros_like(sample_obs(spec.obs, lead)[..., 0])
    room = (lead[0] // 16 + rollout_length + 1, spec.n_envs)
    finals, final_row = jnp.zeros((*room, *newest.shape[2:]), newest.dtype), jnp.full(room, -1)
    ends, began = jnp.zeros((2, spec.n_envs), jnp.int32)
    data = data._replace(obs=())
    return Frames(data, newest, index, index.copy(), finals, final_row, ends, began, jnp.int32(0), Counter.of(0))


def _write(rows: Any, new: Any, at: Array) -> Any:
    return jax.tree.map(lambda r, x: lax.dynamic_update_slice_in_dim(r, x.astype(r.dtype), at, axis=0), rows, new)


def add(ring: Any, steps: Transition) -> Any:
    """The ring with a rollout's steps [T, N] added, T the rollout length that it was made for."""
    if isinstance(ring, Frames):
        return _add_frames(ring, steps)
    at = ring.rows.modulo(leading(ring.data, 1)[0])
    return Ring(_write(ring.data, steps, at), ring.rows.add(leading(steps, 1)[0]))


def _add_frames(ring: Frames, steps: Transition) -> Frames:
    """Store one new frame per step, and beside them the final frame of every episode that ended."""
    (T, N), capacity, k = leading(steps, 2), ring.age.shape[0], steps.obs.shape[-1]
    end = steps.terminated | steps.truncated

    def older(age: Array, end: Array) -> tuple[Array, Array]:
        return jnp.where(end, 0, jnp.minimum(age + 1, k - 1)), age

    began, age = lax.scan(older, ring.began, end)
    at, first = ring.rows.modulo(capacity), ring.rows.modulo(_WRAP)
    place = (ring.ends[None] + jnp.cumsum(end, axis=0) - end) % ring.finals.shape[0]
    worlds = jnp.broadcast_to(jnp.arange(N)[None], (T, N))
    row = jnp.broadcast_to(((first + jnp.arange(T)) % _WRAP)[:, None], (T, N))
    # A final frame that is overwritten takes its row, and all older ones, out of use.
    lost = ring.final_row[place, worlds]
    rows_since = jnp.where(end & (lost >= 0), (first + T - lost) % _WRAP, capacity)
    where_ended = jnp.where(end, place, ring.finals.shape[0])
    successor = steps.next_obs[..., -1]
    newest = _write(ring.newest, steps.obs[..., -1], at)
    return Frames(
        data=_write(ring.data, steps._replace(obs=(), next_obs=()), at),
        newest=_write(newest, successor[-1:], (at + T) % capacity),
        age=_write(ring.age, age, at),
        final=_write(ring.final, place, at),
        finals=ring.finals.at[where_ended, worlds].set(successor, mode="drop"),
        final_row=ring.final_row.at[where_ended, worlds].set(row, mode="drop"),
        ends=(ring.ends + end.sum(0)) % ring.finals.shape[0],
        began=began,
        usable=jnp.minimum(jnp.minimum(ring.usable + T, capacity - k), rows_since.min() - 1),
        rows=ring.rows.add(T),
    )


def draw(ring: Any, key: Array, shape: tuple[int, ...]) -> Array:
    """Places of transitions, drawn uniformly with replacement from those that the ring holds; `batch` reads them."""
    if isinstance(ring, Frames):
        most = ring.usable * ring.age.shape[1]
    else:
        capacity, n_envs = leading(ring.data, 2)
        most = jnp.where(ring.rows.at_least(capacity), capacity, ring.rows.modulo(capacity)) * n_envs
    # The same numbers in one row: on CPU, a shape of several axes takes longer to draw.
    return jax.random.randint(key, (math.prod(shape),), 0, most).reshape(shape)


def batch(ring: Any, places: Array, frames: int = 0) -> Transition:
    """The transitions [B, ...] at places [B]; `frames` is the number of frames that an observation stacks."""
    if isinstance(ring, Frames):
        return _stacked(ring, places, frames)
    return jax.tree.map(lambda x: x[places], flat(ring.data))


def sample(ring: Any, key: Array, batch_size: int, frames: int = 0) -> Transition:
    """`batch_size` transitions, drawn uniformly with replacement from those that the ring holds."""
    return batch(ring, draw(ring, key, (batch_size,)), frames)


def _stacked(ring: Frames, places: Array, k: int) -> Transition:
    """Rows with their stacks put together: frame i before the newest, or the episode's first one."""
    capacity, n_envs = ring.age.shape
    world = places % n_envs
    at = (ring.rows.modulo(capacity) - ring.usable + places // n_envs) % capacity
    step = jax.tree.map(lambda x: x[at, world], ring.data)
    age = ring.age[at, world]
    stack = [ring.newest[(at - jnp.minimum(i, age)) % capacity, world] for i in reversed(range(k))]
    end = step.terminated | step.truncated
    inside = ring.newest[(at + 1) % capacity, world]
    successor = jnp.where(end[:, None, None], ring.finals[ring.final[at, world], world], inside)
    return step._replace(obs=jnp.stack(stack, axis=-1), next_obs=jnp.stack([*stack[1:], successor], axis=-1))


def replay_update(agent: Any, state: Any, rollout: Rollout, key: Array) -> tuple[Any, Metrics]:
    """The rhythm of every off-policy agent: store the rollout, then take updates_per_step gradient steps per step.

    The agent gives `batch_size`, `learning_starts`, `updates_per_step` and `learn(state, batch, key)`; its state has
    `replay` and `steps`. Before `learning_starts` environment steps nothing is learned, and the metrics are NaN.
    """
    T, N = leading(rollout.steps, 2)
    replay, steps = add(state.replay, rollout.steps), state.steps.add(T * N)
    frames = rollout.steps.obs.shape[-1] if isinstance(replay, Frames) else 0

    def gradient_step(learner: Any, drawn: tuple[Array, Array]) -> tuple[Any, Metrics]:
        places, key = drawn
        return agent.learn(learner, batch(replay, places, frames), key)

    def train(learner: Any) -> tuple[Any, Metrics]:
        count = round(T * N * agent.updates_per_step)
        k_places, k_learn = jax.random.split(key)
        if count == 1:
            return gradient_step(learner, (draw(replay, k_places, (agent.batch_size,)), k_learn))
        # All places at once: to draw them one batch at a time takes as long as a small network's gradient.
        drawn = draw(replay, k_places, (count, agent.batch_size)), jax.random.split(k_learn, count)
        learner, metrics = lax.scan(gradient_step, learner, drawn)
        return learner, jax.tree.map(jnp.mean, metrics)

    # The replay stays outside of what the branches return, so that neither of them copies it.
    learner = state._replace(replay=(), steps=steps)
    nothing = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(train, learner)[1])
    ready = steps.at_least(max(agent.learning_starts, 1))
    learner, metrics = lax.cond(ready, train, lambda learner: (learner, nothing), learner)
    return learner._replace(replay=replay), metrics


def check_rhythm(name: str, agent: Any, n_envs: int) -> None:
    """Refuse a rhythm that doesn't come out whole: rollout_length · n_envs · updates_per_step gradient steps."""
    count = agent.rollout_length * n_envs * agent.updates_per_step
    require(
        count >= 1 and abs(count - round(count)) < 1e-6,
        f"{name}: rollout_length {agent.rollout_length} × n_envs {n_envs} × updates_per_step "
        f"{agent.updates_per_step:g} gives {count:g} gradient steps per update; that must be a whole number ≥ 1",
    )
