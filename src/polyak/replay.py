"""One replay for all: a time-major ring of transitions that is part of an agent's state, and the rhythm around it.

The ring lives on the device and is written in place (one slice per rollout, the buffer a donated carry). Plain
observations are kept as they came, with their successors. Of observations that stack the last k frames only the
newest frame is kept, and stacks are put together when sampled: 1/2k of the memory.

A transition's *place* is row · N + world, the row modulo the capacity. What `learn` sees is a `Transition` in every
case; how its batch was drawn, where that matters, stands in `Drawn` beside it: n-step returns, priorities, rollouts.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, flat, in_range, leading, require
from polyak.hindsight import Hindsight, chances, followed, hindsight, relabelled
from polyak.nets import sample_obs
from polyak.returns import ended

_WRAP = 1 << 30  # row numbers are kept modulo this; it only has to exceed every capacity
_FAN = 16  # numbers that one sum of the next level adds up: with 4 to 6 levels, draws and changes take some 10 µs
_PRIORITY_EPS = 1e-4  # ε of (|δ| + ε)^α, in units of δ, as in SLM-Lab: no transition is never drawn
_PRIORITY_MAX = 1e30  # so that no sum becomes infinite


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


class Prioritised(NamedTuple):
    """A ring whose transitions are drawn in proportion to their priorities: Schaul et al. (2016), arXiv 1511.05952."""

    ring: Any
    sums: tuple[Array, ...]  # from the top: each level's numbers add up 16 of the next; the last are the priorities
    greatest: Array  # priority so far: that of a new transition


class Sequences(NamedTuple):
    """A ring that is read by whole rollouts, with the memory that each of them began with."""

    ring: Any
    memory: Any  # [capacity / T, N, ...]


class Shown(NamedTuple):
    """A replay whose batches are shown to `learn` in another way, for one update: normalised, say."""

    replay: Any
    view: Callable[[Transition], Transition]  # a pytree


class Drawn(NamedTuple):
    """What a batch's transitions don't say: the fourth argument of `learn` where n_step, priorities or memory are used.

    An agent writes td_target(self.gamma**drawn.k, ...) and (drawn.weight * error).mean(): right in every case, and
    without cost where the defaults stand.
    """

    k: Any = 1  # [B] steps whose rewards the batch's reward sums; the successor is worth γᵏ of its value
    weight: Any = 1.0  # [B] importance weights, at most 1
    memory: Any = ()  # [B, ...] with which the first step of each sequence was acted


class Sampling(NamedTuple):
    """How an agent wants its batches drawn, beyond the kind of its replay."""

    n_step: int = 1  # rewards summed, at most: `n_step_batch`
    alpha: Any = None  # α of priorities (|δ| + ε)^α, where the replay has them
    beta: Any = 0.0  # β of importance weights


UNIFORM = Drawn()  # single steps, all drawn equally often, without memory
PLAIN = Sampling()


def ring(
    spec: Spec, capacity: int, rollout_length: int, *, prioritised: bool = False, memory: Any = (), goals: int = 0
) -> Any:
    """An empty replay of `capacity` transitions, or of the whole run where that is less.

    The number of rows is a multiple of `rollout_length`, so that a rollout is always one slice.

    Args:
        prioritised: transitions have priorities, and are drawn in proportion to them.
        memory: the agent's memory at the start of episodes [N, ...] where it learns from whole rollouts
            (`replay_update` says how); () where it learns from single transitions.
        goals: how many transitions are told with another goal for each one that is not (`hindsight` says how).
    """
    require(not (prioritised and jax.tree.leaves(memory)), "sequences have no priorities: leave prioritised unset")
    alone = not (goals and (prioritised or jax.tree.leaves(memory)))
    require(alone, "hindsight has neither priorities nor memory: leave these unset")
    plain = _ring(spec, capacity, rollout_length)
    if goals:
        return hindsight(goals, spec, plain)
    rows, N = leading(plain.data, 2)
    if prioritised:
        return Prioritised(plain, _added_up(jnp.zeros(math.ceil(rows * N / _FAN) * _FAN)), jnp.float32(1.0))
    if jax.tree.leaves(memory):
        return Sequences(plain, jax.tree.map(lambda m: jnp.zeros((rows // rollout_length, *m.shape), m.dtype), memory))
    return plain


def _ring(spec: Spec, capacity: int, rollout_length: int) -> Any:
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


def add(replay: Any, steps: Transition, memory: Any = ()) -> Any:
    """The replay with a rollout's steps [T, N] added, T the rollout length that it was made for.

    `memory` is the rollout's, [N, ...]: that with which its first step was acted. Only `Sequences` keep it.
    """
    if isinstance(replay, Frames):
        return _add_frames(replay, steps)
    if isinstance(replay, Ring):
        at = replay.rows.modulo(leading(replay.data, 1)[0])
        return Ring(_write(replay.data, steps, at), replay.rows.add(leading(steps, 1)[0]))
    T, N = leading(steps, 2)
    at = replay.ring.rows.modulo(leading(replay.ring.data, 1)[0])
    ring = add(replay.ring, steps)
    if isinstance(replay, Hindsight):
        return followed(replay, ring, steps, at)
    if isinstance(replay, Sequences):
        return Sequences(ring, _write(replay.memory, jax.tree.map(lambda m: m[None], memory), at // T))
    return replay._replace(ring=ring, sums=_with_rows(replay, ring, at * N, T * N))


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


def draw(ring: Any, key: Array, shape: tuple[int, ...], length: int = 1) -> Array:
    """Places of transitions, drawn uniformly with replacement from those that the ring holds; `batch` reads them.

    With `length` the places of rollouts' first transitions, `length` rows each, all of which the ring holds.
    """
    capacity, N = leading(ring.data, 2)
    if isinstance(ring, Frames):
        held = ring.usable // length
        oldest = ring.rows.modulo(capacity) - held * length
    else:
        held, oldest = jnp.where(ring.rows.at_least(capacity), capacity, ring.rows.modulo(capacity)) // length, 0
    # The same numbers in one row: on CPU, a shape of several axes takes longer to draw.
    nth = jax.random.randint(key, (math.prod(shape),), 0, held * N).reshape(shape)
    return (oldest + nth // N * length) % capacity * N + nth % N


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
    at, world = places // n_envs, places % n_envs
    step = jax.tree.map(lambda x: x[at, world], ring.data)
    age = ring.age[at, world]
    stack = [ring.newest[(at - jnp.minimum(i, age)) % capacity, world] for i in reversed(range(k))]
    end = step.terminated | step.truncated
    inside = ring.newest[(at + 1) % capacity, world]
    successor = jnp.where(end[:, None, None], ring.finals[ring.final[at, world], world], inside)
    return step._replace(obs=jnp.stack(stack, axis=-1), next_obs=jnp.stack([*stack[1:], successor], axis=-1))


# ----------------------------------------------------------------------------------------------------- n-step returns


def n_step_batch(ring: Any, places: Array, frames: int, n: int, gamma: Any) -> tuple[Transition, Array]:
    """(transitions over up to n rows each [B, ...], how many rows k [B]): Sutton & Barto (2018), eq. 7.1.

    The reward is Σ_{i<k} γⁱ r_i; next_obs and the flags are those of the last of the k rows. It is the n-th, or the end
    of the episode by world or clock, or the newest row that the ring holds: a window ends there early, and never
    crosses the ring's head. So every row that is held may be drawn.
    """
    capacity, N = leading(ring.data, 2)
    newer = (ring.rows.modulo(capacity) - 1 - places // N) % capacity
    reward, end = flat(ring.data.reward), flat(ended(ring.data))
    total, last, k = jnp.zeros(places.shape), places, jnp.zeros(places.shape, jnp.int32)
    going = jnp.ones(places.shape, bool)
    for i in range(n):
        at = (places + i * N) % (capacity * N)
        going &= i <= newer
        total += jnp.where(going, gamma**i * reward[at], 0.0)
        last, k = jnp.where(going, at, last), k + going
        going &= ~end[at]
    final = batch(ring, last, frames)
    steps = batch(ring, places, frames)._replace(reward=total, next_obs=final.next_obs)
    return steps._replace(terminated=final.terminated, truncated=final.truncated), k


# --------------------------------------------------------------------------------------------------------- priorities


def _added_up(leaves: Array) -> tuple[Array, ...]:
    """All levels of sums over the leaves, from the top one, which has at most `_FAN` numbers."""
    levels = [leaves]
    while levels[0].size > _FAN:
        sums = levels[0].reshape(-1, _FAN).sum(-1)
        levels.insert(0, jnp.pad(sums, (0, -sums.size % _FAN)))
    return tuple(levels)


def _with_rows(replay: Prioritised, ring: Any, start: Array, count: int) -> tuple[Array, ...]:
    """The sums after `count` new transitions from place `start` on: each has the greatest priority so far."""
    leaves = lax.dynamic_update_slice_in_dim(replay.sums[-1], jnp.full(count, replay.greatest), start, axis=0)
    if isinstance(ring, Frames):  # rows whose stacks have gone; they may be many at once
        capacity, N = ring.age.shape
        rows_since = (ring.rows.modulo(capacity) - 1 - jnp.arange(leaves.size) // N) % capacity
        return _added_up(jnp.where(rows_since < ring.usable, leaves, 0.0))
    levels = [leaves]
    for above in reversed(replay.sums[:-1]):
        rows = levels[0].reshape(-1, _FAN)
        count = min((count - 1) // _FAN + 2, len(rows))
        start = jnp.minimum(start // _FAN, len(rows) - count)
        sums = lax.dynamic_slice_in_dim(rows, start, count).sum(-1)
        levels.insert(0, lax.dynamic_update_slice_in_dim(above, sums, start, axis=0))
    return tuple(levels)


def draw_prioritised(sums: tuple[Array, ...], u: Array) -> Array:
    """Places [B], each drawn in proportion to its priority, with replacement, by uniform numbers u [levels, B].

    From the top down, every level chooses one of `_FAN` sums by a number of its own: one number for all levels would
    have too few bits to reach every one of a million transitions equally often.
    """
    places = jnp.zeros(u.shape[1], jnp.int32)
    for level, chance in zip(sums, u, strict=True):
        p = level.reshape(-1, min(_FAN, level.size))[places]
        below = jnp.where(p > 0, jnp.cumsum(p, axis=-1), -1.0)  # rounding leads to no empty place
        nth = jnp.argmax(below > (chance * below.max(-1))[:, None], axis=-1)
        places = places * _FAN + nth.astype(jnp.int32)
    return places


def importance_weights(priority: Array, beta: Any) -> Array:
    """(M P(i))^−β over their greatest in the batch, [B]: Schaul et al. (2016), §3.4; M and the sum cancel."""
    return (priority.min() / priority) ** beta


def reprioritised(replay: Prioritised, places: Array, error: Array, alpha: Any) -> Prioritised:
    """The replay with the priorities (|δ| + ε)^α at places [B], from errors δ [B]."""
    priority = jnp.minimum((abs(error) + _PRIORITY_EPS) ** alpha, _PRIORITY_MAX)
    levels = [replay.sums[-1].at[places].set(priority)]  # of a place that was drawn twice, one of its errors
    for above in reversed(replay.sums[:-1]):
        places = places // _FAN
        levels.insert(0, above.at[places].set(levels[0].reshape(-1, _FAN)[places].sum(-1)))
    return replay._replace(sums=tuple(levels), greatest=jnp.maximum(replay.greatest, priority.max()))


# --------------------------------------------------------------------------------------------------------- the rhythm


def replay_update(agent: Any, state: Any, rollout: Rollout, key: Array, view: Sampling = PLAIN) -> tuple[Any, Metrics]:
    """The rhythm of every off-policy agent: store the rollout, then take updates_per_step gradient steps per step.

    The agent gives `batch_size`, `learning_starts`, `updates_per_step` and `learn(state, batch, key)`; its state has
    `replay` and `steps`. Before `learning_starts` environment steps nothing is learned, and the metrics are NaN.

    More is asked for by `view.n_step` > 1, or by the kind of replay that `ring` made: then
    `learn(state, batch, key, drawn)` is given a `Drawn` as well.

    n_step: rewards of up to n steps are summed (`n_step_batch`), with the agent's `gamma`.
    Prioritised: transitions are drawn one by one in proportion to (|δ| + ε)^α, and weighed with the exponent β.
        `learn` gives their errors |δ| [B] as the metric `train/td_error`, which becomes their mean. The priorities
        follow after each gradient step; new transitions have the greatest one so far.
    Sequences: the batch is batch_size / T whole rollouts, [T, B, ...], all of them held, in order of time. Episodes may
        end inside one. `drawn.memory` [B, ...] is the memory with which the first of their steps was acted.
    """
    (T, N), (held, shown) = leading(rollout.steps, 2), _opened(state.replay)
    replay, steps = add(held, rollout.steps, rollout.memory), state.steps.add(T * N)
    ring = replay if isinstance(replay, Ring | Frames) else replay.ring
    frames = rollout.steps.obs.shape[-1] if isinstance(ring, Frames) else 0
    count, ready = round(T * N * agent.updates_per_step), steps.at_least(max(agent.learning_starts, 1))

    def read(places: Array) -> tuple[Transition, Drawn]:
        steps, drawn = _read(replay, places, frames, view.n_step, agent, T)
        return shown(steps), drawn

    def gradient_step(learner: Any, chosen: tuple[Array, Array]) -> tuple[Any, Metrics]:
        (steps, drawn), key = read(chosen[0]), chosen[1]
        return agent.learn(learner, steps, key, *(() if drawn is UNIFORM else (drawn,)))

    def train(learner: Any) -> tuple[Any, Metrics]:
        k_places, k_learn = jax.random.split(key)
        # All places at once: to draw them one batch at a time takes as long as a small network's gradient.
        places = _choices(replay, k_places, count, agent.batch_size, T)
        if count == 1:
            return gradient_step(learner, (places[0], k_learn))
        learner, metrics = lax.scan(gradient_step, learner, (places, jax.random.split(k_learn, count)))
        return learner, jax.tree.map(jnp.nanmean, metrics)  # NaN: it did not happen

    # The replay stays outside of what the branches return, so that neither of them copies it.
    learner = state._replace(replay=(), steps=steps)
    if isinstance(replay, Prioritised):
        times = jnp.where(ready, count, 0)
        learner, replay, metrics = _by_priority(agent, learner, replay, read, view, count, times, key)
        return learner._replace(replay=replay), metrics
    nothing = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(train, learner)[1])
    learner, metrics = lax.cond(ready, train, lambda learner: (learner, nothing), learner)
    return learner._replace(replay=replay), metrics


def _by_priority(
    agent: Any, learner: Any, replay: Prioritised, read: Any, view: Sampling, count: int, times: Array, key: Array
) -> tuple[Any, Prioritised, Metrics]:
    """The first `times` of `count` gradient steps, whose priorities follow one another.

    A loop, whose carry is written in place: both branches of `lax.cond` would copy the priorities.
    """
    k_places, k_learn = jax.random.split(key)
    shape = (count, len(replay.sums), agent.batch_size)
    u, keys = jax.random.uniform(k_places, (math.prod(shape),)).reshape(shape), jax.random.split(k_learn, count)

    def gradient_step(learner: Any, priorities: Prioritised, u: Array, key: Array) -> tuple[Any, Prioritised, Metrics]:
        places = draw_prioritised(priorities.sums, u)
        # All is read before anything is written: else the compiler copies what is read later.
        places, priority = lax.optimization_barrier((places, priorities.sums[-1][places]))
        steps, drawn = read(places)
        drawn = drawn._replace(weight=importance_weights(priority, view.beta))
        learner, metrics = agent.learn(learner, steps, key, drawn)
        error = metrics["train/td_error"]
        metrics = metrics | {"train/td_error": error.mean()}
        return learner, reprioritised(priorities, places, error, view.alpha), metrics

    def one_more(i: Array, carry: Any) -> Any:
        learner, priorities, metrics = gradient_step(carry[0], carry[1], u[i], keys[i])
        return learner, priorities, jax.tree.map(lambda all, one: all.at[i].set(one), carry[2], metrics)

    priorities = replay._replace(ring=())
    metrics = jax.eval_shape(gradient_step, learner, priorities, u[0], keys[0])[2]
    metrics = jax.tree.map(lambda x: jnp.full((count, *x.shape), jnp.nan, x.dtype), metrics)
    learner, priorities, metrics = lax.fori_loop(0, times, one_more, (learner, priorities, metrics))
    return learner, priorities._replace(ring=replay.ring), jax.tree.map(jnp.nanmean, metrics)


def _opened(replay: Any) -> Shown:
    """A replay, and how its batches are shown: as they are, where nothing else was asked for."""
    return replay if isinstance(replay, Shown) else Shown(replay, lambda steps: steps)


def _choices(replay: Any, key: Array, count: int, batch_size: int, T: int) -> Array:
    """The places of the batches of `count` gradient steps, and what else of them is left to chance."""
    if isinstance(replay, Sequences):
        return draw(replay.ring, key, (count, batch_size // T), T)
    if isinstance(replay, Hindsight):
        k_places, k_goals = jax.random.split(key)
        return chances(k_goals, draw(replay.ring, k_places, (count, batch_size)))
    return draw(replay, key, (count, batch_size))


def _read(replay: Any, places: Array, frames: int, n_step: int, agent: Any, T: int) -> tuple[Transition, Drawn]:
    """The batch at places, and how it was drawn: the only line of code that reads one for a gradient step."""
    ring = replay if isinstance(replay, Ring | Frames) else replay.ring
    if isinstance(replay, Hindsight):
        require(n_step == 1, f"n_step is {n_step}, and must be 1 with hindsight, which relabels single steps")
        return relabelled(replay, places[0], places[1]), UNIFORM
    if isinstance(replay, Sequences):
        N = leading(ring.data, 2)[1]
        rows = places[None] + jnp.arange(T)[:, None] * N
        steps = jax.tree.map(lambda x: x.reshape((T, -1, *x.shape[1:])), batch(ring, rows.reshape(-1), frames))
        nth = places // (N * T) * N + places % N
        return steps, Drawn(memory=jax.tree.map(lambda m: m[nth], flat(replay.memory)))
    if n_step == 1:
        return batch(ring, places, frames), UNIFORM
    steps, k = n_step_batch(ring, places, frames, n_step, agent.gamma)
    return steps, Drawn(k)


def check_sequences(name: str, batch_size: int, rollout_length: int, n_step: int = 1, prioritised: Any = None) -> None:
    """Refuse what doesn't go together with learning from whole rollouts."""
    require(
        batch_size % rollout_length == 0,
        f"{name}: with memory, a batch is whole rollouts: batch_size {batch_size} must be a multiple of "
        f"rollout_length {rollout_length}",
    )
    require(n_step == 1, f"{name}: n_step is {n_step}, and must be 1 with memory, which is learned from whole rollouts")
    require(prioritised is None, f"{name}: with memory, rollouts have no priorities; leave prioritised unset")


def check_replay(agent: Any) -> None:
    """Refuse what the fields of an agent with a replay can't be."""
    in_range(agent, batch_size=(1, 1 << 24), buffer_size=(1, 1 << 30), learning_starts=(0, 1 << 40))
    in_range(agent, rollout_length=(1, 1 << 20))


def check_rhythm(name: str, agent: Any, n_envs: int) -> None:
    """Refuse a rhythm that doesn't come out whole: rollout_length · n_envs · updates_per_step gradient steps."""
    count = agent.rollout_length * n_envs * agent.updates_per_step
    require(
        count >= 1 and abs(count - round(count)) < 1e-6,
        f"{name}: rollout_length {agent.rollout_length} × n_envs {n_envs} × updates_per_step "
        f"{agent.updates_per_step:g} gives {count:g} gradient steps per update; that must be a whole number ≥ 1",
    )
