"""The replay against a list of dictionaries (CT5, CT8): what is sampled was stored, is whole, and is held.

Observations carry (environment, episode, t) and actions a serial number, so that a transition that was mixed from two
others can't hide. A machine of Hypothesis adds rollouts, wraps, samples, saves and loads in any order.
"""

import functools
import itertools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from numpy.testing import assert_array_equal
from scipy import stats

from polyak import nets, replay
from polyak.core import Counter, Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

DRAWS = 2048  # from at most 120 transitions: one is missed with probability 120 · e⁻¹⁷


class Plan(NamedTuple):
    """Worlds side by side, rollout length, transitions to keep, and frames per stack (0: plain observations)."""

    n_envs: int
    T: int
    capacity: int
    k: int

    @property
    def spec(self) -> Spec:
        obs = Box(0, 255, (2, 2, self.k), np.uint8) if self.k else Box(-np.inf, np.inf, (3,))
        return Spec(obs, Discrete(1 << 30), self.n_envs, 1 << 40, self.k)

    @property
    def rows(self) -> int:
        """The capacity in rows, a multiple of T that holds at least the transitions asked for."""
        return math.ceil(self.capacity / (self.n_envs * self.T)) * self.T


class Worlds:
    """N worlds whose observations say where they come from; they end when they are told to."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.serial = plan, 0
        self.episode, self.t = [0] * plan.n_envs, [0] * plan.n_envs

    def obs(self, env: int, episode: int, t: int) -> Any:
        if not self.plan.k:
            return np.array([env, episode, t], np.float32)
        frames = [[[env, episode % 256], [max(t - i, 0) % 256, 7]] for i in reversed(range(self.plan.k))]
        return np.moveaxis(np.array(frames, np.uint8), 0, -1)

    def row(self, ends: Any) -> list[dict[str, Any]]:
        """One step of every world; ends[env] is 0, 1 (terminated), 2 (truncated) or 3 (both)."""
        row: list[dict[str, Any]] = []
        for env, end in enumerate(ends):
            episode, t = self.episode[env], self.t[env]
            obs, successor = self.obs(env, episode, t), self.obs(env, episode, t + 1)
            step = {"obs": obs, "action": self.serial, "reward": self.serial + 0.5, "next_obs": successor}
            row.append({**step, "terminated": bool(end & 1), "truncated": bool(end & 2)})
            self.serial += 1
            self.episode[env], self.t[env] = (episode + 1, 0) if end else (episode, t + 1)
        return row


def rollout_of(rows: list[list[dict[str, Any]]]) -> Transition:
    """Transition [T, N] of numpy arrays."""
    kinds = {"action": np.int32, "reward": np.float32, "terminated": bool, "truncated": bool}
    columns = {n: np.array([[s[n] for s in row] for row in rows], kinds.get(n)) for n in Transition._fields}
    return Transition(**columns)


@functools.cache
def programs(plan: Plan) -> tuple[Any, Any, Any]:
    """(empty ring, add, sample), compiled once per plan; `add` donates its ring, as a run does."""
    empty = jax.jit(lambda: replay.ring(plan.spec, plan.capacity, plan.T))
    draw = jax.jit(lambda ring, key: replay.sample(ring, key, DRAWS, plan.k))
    return empty, jax.jit(replay.add, donate_argnums=0), draw


def same(got: dict[str, Any], want: dict[str, Any]) -> bool:
    return all(np.array_equal(got[name], want[name]) for name in Transition._fields)


def sampled(ring: Any, plan: Plan, seed: int) -> dict[int, dict[str, Any]]:
    """What `DRAWS` draws bring, by serial number; equal serials must be equal transitions."""
    batch = jax.device_get(programs(plan)[2](ring, jax.random.key(seed)))
    serials, first, inverse = np.unique(batch.action, return_index=True, return_inverse=True)
    for value in batch:
        assert_array_equal(value, value[first][inverse])
    named = zip(Transition._fields, batch, strict=True)
    columns = {name: value[first] for name, value in named}
    return {int(n): {name: value[i] for name, value in columns.items()} for i, n in enumerate(serials)}


class RingMachine(RuleBasedStateMachine):
    """Rings of plain observations: exactly the newest `rows` rows are held."""

    plans: ClassVar[list[Plan]] = [Plan(1, 1, 5, 0), Plan(2, 3, 17, 0), Plan(3, 4, 24, 0), Plan(1, 7, 7, 0)]
    starts: ClassVar[list[int]] = [0]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.plan = data.draw(st.sampled_from(self.plans))
        self.ring, self.worlds = programs(self.plan)[0](), Worlds(self.plan)
        self.history: list[list[dict[str, Any]]] = []
        start = data.draw(st.sampled_from(self.starts))
        self.ring = self.ring._replace(rows=Counter.of(start // self.plan.rows * self.plan.rows))

    @rule(times=st.integers(1, 4), often=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=st.integers(0, 999))
    def add(self, times: int, often: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(times):
            ends = rng.integers(1, 4, (self.plan.T, self.plan.n_envs)) * (
                rng.random((self.plan.T, self.plan.n_envs)) < often
            )
            rows = [self.worlds.row(row) for row in ends]
            self.history += rows
            self.ring = programs(self.plan)[1](self.ring, rollout_of(rows))
        self.sample(seed)

    @precondition(lambda self: self.history)
    @rule(seed=st.integers(0, 999))
    def sample(self, seed: int) -> None:
        found = sampled(self.ring, self.plan, seed)
        held = {s["action"]: s for row in self.history[-self.plan.rows :] for s in row}
        assert found.keys() <= held.keys()
        for serial, step in found.items():
            assert same(step, held[serial]), (step, held[serial])
        expected = {s["action"] for row in self.history[len(self.history) - self.window() :] for s in row}
        assert expected <= found.keys()

    def window(self) -> int:
        """How many of the newest rows must be there to sample."""
        return min(len(self.history), self.plan.rows)

    @rule()
    def save_and_load(self) -> None:
        self.ring = jax.tree.map(lambda x: jax.device_put(np.array(x)), self.ring)

    @precondition(lambda self: not self.plan.k and len(self.history) >= self.plan.rows)
    @rule(edge=st.sampled_from([2**24, 2**31, 2**32]))
    def jump(self, edge: int) -> None:
        """Long ago the ring was full already: whole turns more bring the counter before one of its edges (CT30)."""
        rows = int(self.ring.rows.high) * 2**24 + int(self.ring.rows.low)
        turns = max(0, edge - rows - 1) // self.plan.rows
        self.ring = self.ring._replace(rows=Counter.of(rows + turns * self.plan.rows))


class FramesMachine(RingMachine):
    """Rings of stacked frames: the stacks must be the true ones, also at the starts and ends of episodes."""

    plans: ClassVar[list[Plan]] = [Plan(1, 1, 9, 4), Plan(2, 3, 60, 2), Plan(3, 4, 48, 3), Plan(1, 2, 60, 4)]
    starts: ClassVar[list[int]] = [0, 2**24, 2**30, 2**31, 2**32]

    def window(self) -> int:
        """Stacks need k rows more than they are; and a row is gone once the final frame of its end was overwritten."""
        window, total = min(len(self.history), self.plan.rows - self.plan.k), len(self.history)
        kept = self.ring.finals.shape[0]
        for env in range(self.plan.n_envs):
            ends = [r for r, row in enumerate(self.history) if row[env]["terminated"] or row[env]["truncated"]]
            if len(ends) > kept:
                window = min(window, total - ends[-kept - 1] - 1)
        return window


RingMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=8, deadline=None)
FramesMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=8, deadline=None)
TestRing = RingMachine.TestCase
TestFrames = FramesMachine.TestCase


def filled(plan: Plan, rows: int, end: Any) -> tuple[Any, list[list[dict[str, Any]]]]:
    """A ring after `rows` rows (a multiple of T), where world n ends at row r as end(r, n) says."""
    empty, add, _ = programs(plan)
    ring, worlds = empty(), Worlds(plan)
    history = [worlds.row([end(r, n) for n in range(plan.n_envs)]) for r in range(rows)]
    for r in range(0, rows, plan.T):
        ring = add(ring, rollout_of(history[r : r + plan.T]))
    return ring, history


# -------------------------------------------------------------------------------------------------- stacks of frames

STACKS = Plan(2, 4, 64, 4)


@pytest.mark.parametrize("turns", [0, 1, 4])
@pytest.mark.parametrize("length", [1, 3, 7, 1000])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_every_stack_is_the_true_one(turns: int, length: int, kind: int) -> None:
    """After any number of wraps, for episodes shorter and longer than a stack, ended by world, clock or both (CT8)."""
    rows = turns * STACKS.rows + 12
    ring, history = filled(STACKS, rows, lambda r, n: kind * ((r + n) % length == length - 1))
    found = sampled(ring, STACKS, 0)
    truth = {s["action"]: s for row in history for s in row}
    assert len(found) >= 2 * min(rows, 6)
    for serial, step in found.items():
        assert same(step, truth[serial])


def test_the_stack_repeats_the_first_frame_of_an_episode() -> None:
    ring, _ = filled(STACKS, 8, lambda r, n: 2 * (r == 4))
    found = sampled(ring, STACKS, 0)
    first = found[10]  # row 5 of world 0: the first step of its second episode
    assert_array_equal(first["obs"][1, 0], [0, 0, 0, 0])
    assert_array_equal(first["next_obs"][1, 0], [0, 0, 0, 1])
    last = found[8]  # row 4: the last step of its first episode, whose successor no row holds
    assert_array_equal(last["obs"][1, 0], [1, 2, 3, 4])
    assert_array_equal(last["next_obs"][1, 0], [2, 3, 4, 5])
    assert_array_equal(last["next_obs"][0, 1], [0, 0, 0, 0])  # not of the next episode


def test_many_short_episodes_shrink_what_is_sampled_and_spoil_nothing() -> None:
    """Final frames are kept for every 16th row; if every step ends an episode, older rows go out of use."""
    plan = Plan(1, 2, 200, 4)
    ring, history = filled(plan, 400, lambda r, n: 1)
    found = sampled(ring, plan, 0)
    kept = ring.finals.shape[0]
    assert kept < plan.rows
    assert sorted(found) == list(range(400 - kept, 400))
    truth = {s["action"]: s for row in history for s in row}
    assert all(same(step, truth[serial]) for serial, step in found.items())
    # Long episodes again: the window grows back to all rows but k.
    _, add, _ = programs(plan)
    worlds = Worlds(plan)
    worlds.serial, worlds.episode = 400, [400]
    later = [worlds.row([0]) for _ in range(200)]
    for r in range(0, 200, 2):
        ring = add(ring, rollout_of(later[r : r + 2]))
    assert sorted(sampled(ring, plan, 1)) == list(range(600 - (plan.rows - plan.k), 600))


def test_frames_take_a_fraction_of_the_memory() -> None:
    """1/2k of plain storage for k frames: 1/8 for four, and 1/16 of final frames beside (Atari's shapes)."""

    def size(frames: int) -> int:
        spec = Spec(Box(0, 255, (84, 84, 4), np.uint8), Discrete(6), 8, 10_000_000, frames)
        shapes = jax.eval_shape(lambda: replay.ring(spec, 100_000, 4))
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))

    assert size(0) >= 100_000 * 2 * 4 * 84 * 84
    assert size(4) < size(0) / 7
    assert size(4) >= 100_000 * 84 * 84


def test_a_ring_too_small_for_its_stacks_is_refused() -> None:
    with pytest.raises(PolyakError, match="buffer_size is 16: too small for stacks of 4 frames"):
        replay.ring(STACKS.spec, 16, 4)


# -------------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("plan", [Plan(3, 2, 30, 0), Plan(3, 2, 60, 4)], ids=["ring", "frames"])
@pytest.mark.parametrize("rows", [4, 20, 46])
def test_draws_are_uniform_and_independent(plan: Plan, rows: int) -> None:
    """χ² over all that is held, p > 1e-6; and over pairs of neighbouring draws."""
    ring, _ = filled(plan, rows, lambda r, n: 0)
    held = min(rows, plan.rows - plan.k if plan.k else plan.rows) * 3
    batch = jax.jit(lambda key: replay.sample(ring, key, 60_000, plan.k))(jax.random.key(7))
    serial = np.asarray(batch.action) - (rows * 3 - held)
    counts = np.bincount(serial, minlength=held)
    assert len(counts) == held
    assert stats.chisquare(counts).pvalue > 1e-6
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (serial[:-1] * 3 // held, serial[1:] * 3 // held), 1)
    assert stats.chi2_contingency(pairs).pvalue > 1e-6


def test_the_first_transition_alone_can_be_drawn() -> None:
    ring, _ = filled(Plan(1, 1, 5, 0), 1, lambda r, n: 0)
    assert sampled(ring, Plan(1, 1, 5, 0), 0).keys() == {0}


@pytest.mark.parametrize(("steps", "rows"), [(10, 6), (1, 3), (1000, 18)])
def test_the_ring_is_no_longer_than_the_run(steps: int, rows: int) -> None:
    """Rows come in multiples of the rollout length, so that a rollout is one slice."""
    spec = Spec(Box(-1, 1, (3,)), Discrete(2), 2, steps)
    assert replay.ring(spec, 36, 3).data.reward.shape == (rows, 2)


# ----------------------------------------------------------------------------------------------------- dtypes, aliasing

SPACES = {
    "uint8": Box(0, 255, (5,), np.uint8),
    "float32": Box(-1, 1, (5,)),
    "float16": Box(-1, 1, (5,), np.float16),
    "int32": Box(-9, 9, (5,), np.int32),
    "bool": Box(0, 1, (5,), bool),
    "Discrete": Discrete(7),
    "MultiDiscrete": MultiDiscrete((3, 4)),
    "MultiBinary": MultiBinary(4),
    "Dict": Dict({"a": Box(0, 255, (2, 3), np.uint8), "b": Tuple([Discrete(3), Box(-1, 1, ())])}),
}


def random_obs(space: Any, rng: Any, lead: tuple[int, ...]) -> Any:
    match space:
        case Dict():
            return {name: random_obs(inner, rng, lead) for name, inner in space.items}
        case Tuple():
            return tuple(random_obs(inner, rng, lead) for inner in space.items)
        case Box():
            low, high = space.bounds
            x = rng.uniform(low, high + (space.dtype.kind in "iub"), (*lead, *space.shape))
            return (x >= 1 if space.dtype == bool else np.clip(x, low, high)).astype(space.dtype)
        case MultiBinary():
            return rng.integers(0, 2, (*lead, space.n)).astype(np.int32)
        case _:
            return rng.integers(0, getattr(space, "nvec", None) or space.n, (*lead, *space.shape)).astype(np.int32)


def random_steps(space: Any, action: Any, lead: tuple[int, int], seed: int = 0) -> Transition:
    rng = np.random.default_rng(seed)
    obs, successor, act = (random_obs(s, rng, lead) for s in (space, space, action))
    reward = rng.normal(size=lead).astype(np.float32)
    return Transition(obs, act, reward, successor, rng.random(lead) < 0.3, rng.random(lead) < 0.3)


@pytest.mark.parametrize("name", SPACES)
def test_every_dtype_comes_back_as_it_went_in_and_enters_a_network(name: str) -> None:
    """CT34: store → load → network."""
    space, action = SPACES[name], Box(-1, 1, (2,))
    T, N = 5, 3
    steps = random_steps(space, action, (T, N))
    spec = Spec(space, action, N, 1000)
    batch = jax.jit(lambda s, key: replay.sample(replay.add(replay.ring(spec, T * N, T), s), key, 64))(
        steps, jax.random.key(0)
    )
    rewards = np.ravel(steps.reward)
    index = [int(np.flatnonzero(rewards == r)[0]) for r in np.asarray(batch.reward)]
    for got, put in zip(jax.tree.leaves(batch), jax.tree.leaves(steps), strict=True):
        assert got.dtype == put.dtype
        assert_array_equal(got, put.reshape((T * N, *put.shape[2:]))[np.array(index)])
    features = jax.jit(lambda key, obs: nets.MLP((4,), init="uniform").build(key, space)(obs))(
        jax.random.key(1), batch.obs
    )
    assert features.shape == (64, 4) and features.dtype == np.float32 and np.isfinite(features).all()


@pytest.mark.parametrize("plan", [Plan(3, 2, 30, 0), Plan(3, 2, 60, 4)], ids=["ring", "frames"])
def test_what_the_world_changes_later_is_not_changed_in_the_ring(plan: Plan) -> None:
    """CT37: an environment that reuses its arrays."""
    empty, add, _ = programs(plan)
    ring, worlds = empty(), Worlds(plan)
    history = [worlds.row([0, 2 * (r == 2), 0]) for r in range(6)]
    arrays = rollout_of(history[:2])
    for r in range(0, 6, 2):
        for mine, new in zip(arrays, rollout_of(history[r : r + 2]), strict=True):
            mine[...] = new
        ring = add(ring, arrays)
    for mine in arrays:
        mine[...] = 0
    truth = {s["action"]: s for row in history for s in row}
    found = sampled(ring, plan, 0)
    assert found.keys() == truth.keys()
    assert all(same(step, truth[serial]) for serial, step in found.items())
    assert not any(np.shares_memory(np.asarray(x), mine) for x in jax.tree.leaves(ring) for mine in arrays)


# ---------------------------------------------------------------------------------------------------------- the rhythm


class Counting(NamedTuple):
    """An agent that learns nothing, and notes every call of `learn`."""

    rollout_length: int
    updates_per_step: float
    learning_starts: int
    batch_size: int = 5

    def learn(self, state: Any, batch: Transition, key: Any) -> tuple[Any, dict[str, Any]]:
        assert state.replay == ()  # the ring is no business of a gradient step
        seen = state.seen.at[state.calls].set(batch.action, mode="drop")
        keys = state.keys.at[state.calls].set(jax.random.key_data(key), mode="drop")
        state = state._replace(calls=state.calls + 1, seen=seen, keys=keys)
        return state, {"train/calls": state.calls.astype(jnp.float32)}


class Notes(NamedTuple):
    replay: Any
    steps: Counter
    calls: Any
    seen: Any  # [calls, batch]
    keys: Any  # [calls, 2]


def notes(agent: Counting, plan: Plan, start: int = 0) -> Notes:
    ring = programs(plan)[0]()
    seen, keys = jnp.full((400, agent.batch_size), -1), jnp.zeros((400, 2), jnp.uint32)
    return Notes(ring, Counter.of(start), jnp.int32(0), seen, keys)


RHYTHMS = [(1, 1, 1.0, 0), (1, 4, 0.25, 10), (3, 4, 0.25, 25), (2, 3, 2.0, 12), (3, 1, 1 / 3, 7), (5, 2, 0.3, 0)]


@pytest.mark.parametrize(("k", "n_envs", "T", "ratio", "starts"), [(0, *r) for r in RHYTHMS] + [(2, *RHYTHMS[2])])
def test_gradient_steps_come_in_the_rhythm_that_was_asked_for(
    k: int, n_envs: int, T: int, ratio: float, starts: int
) -> None:
    """CT17, by brute force: none before learning_starts, then ratio per environment step, a sample each."""
    agent, plan = Counting(T, ratio, starts), Plan(n_envs, T, 40, k)
    update = jax.jit(lambda state, steps, key: replay.replay_update(agent, state, Rollout(steps, ()), key))
    state, worlds, total, calls = notes(agent, plan), Worlds(plan), 0, 0
    for i in range(9):
        rows = [worlds.row([0] * n_envs) for _ in range(T)]
        state, metrics = update(state, rollout_of(rows), jax.random.key(i))
        total += T * n_envs
        new = round(T * n_envs * ratio) if total >= starts else 0
        held = range(max(0, total - plan.rows * n_envs), total)
        assert set(np.ravel(state.seen[calls : calls + new]).tolist()) <= set(held)
        calls += new
        assert int(state.calls) == calls
        assert int(state.steps.low) == total
        if new:  # the mean over this update's gradient steps
            assert float(metrics["train/calls"]) == pytest.approx(calls - (new - 1) / 2)
        else:
            assert np.isnan(metrics["train/calls"])
    assert calls > 0
    assert len(np.unique(np.asarray(state.keys[:calls]), axis=0)) == calls  # a key of its own for every step
    batches = np.asarray(state.seen[3:calls])
    assert len(np.unique(batches, axis=0)) >= len(batches) - 1


def test_learning_starts_beyond_what_a_word_holds() -> None:
    """CT30: a warm-up that ends at 2³², approached from below."""
    plan, agent = Plan(1, 1, 5, 0), Counting(1, 1.0, 2**32)
    update = jax.jit(lambda state, steps, key: replay.replay_update(agent, state, Rollout(steps, ()), key))
    state, worlds = notes(agent, plan, 2**32 - 3), Worlds(plan)
    calls: list[int] = []
    for i in range(5):
        state, _ = update(state, rollout_of([worlds.row([0])]), jax.random.key(i))
        calls.append(int(state.calls))
    assert calls == [0, 0, 1, 2, 3]


class Many(NamedTuple):
    rollout_length: int
    n_envs: int
    updates_per_step: float
    whole: bool


@pytest.mark.parametrize(
    "case", [Many(4, 1, 0.25, True), Many(4, 8, 0.25, True), Many(1, 3, 1 / 3, True), Many(1, 1, 0.5, False)], ids=str
)
def test_a_rhythm_must_come_out_whole(case: Many) -> None:
    if case.whole:
        replay.check_rhythm("DQN", case, case.n_envs)
        return
    with pytest.raises(PolyakError, match=r"gives 0\.5 gradient steps per update"):
        replay.check_rhythm("DQN", case, case.n_envs)


@pytest.mark.parametrize("k", [0, 4], ids=["ring", "frames"])
@pytest.mark.parametrize("loop", [False, True], ids=["one update", "a chunk"])
def test_the_ring_is_written_in_place(k: int, loop: bool) -> None:
    """The program takes the ring over as it stands, and makes no second one: no time that grows with the capacity."""
    agent, n_envs = Counting(2, 1.0, 10), 3
    spec = Spec(Box(0, 255, (8, 8, 4), np.uint8), Discrete(3), n_envs, 1 << 40, k)
    ring = jax.eval_shape(lambda: replay.ring(spec, 60_000, 2))
    state = jax.eval_shape(lambda: notes(agent, Plan(3, 2, 30, 0)))._replace(replay=ring)
    steps = jax.eval_shape(lambda: random_steps(spec.obs, spec.action, (2, n_envs)))

    def update(state: Any, steps: Any, keys: Any) -> Any:
        if not loop:
            return replay.replay_update(agent, state, Rollout(steps, ()), keys[0])
        return jax.lax.scan(lambda s, key: replay.replay_update(agent, s, Rollout(steps, ()), key), state, keys)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 9))
    memory = jax.jit(update, donate_argnums=0).lower(state, steps, keys).compile().memory_analysis()
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(ring))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 50


# ------------------------------------------------------------------------------------------------------ n-step returns


@functools.cache
def n_step_program(plan: Plan, n: int) -> Any:
    def run(ring: Any, key: Any, gamma: Any) -> Any:
        places = replay.draw(ring, key, (DRAWS,))
        return replay.batch(ring, places, plan.k), replay.n_step_batch(ring, places, plan.k, n, gamma)

    return jax.jit(run)


def summed(history: list[list[dict[str, Any]]], serial: int, n: int, gamma: float) -> tuple[float, dict[str, Any], int]:
    """(Σ γⁱ r_i, the last step used, how many) by a walk through the history; serial = row · N + world."""
    row, world = divmod(serial, len(history[0]))
    total, k, last = 0.0, 0, history[row][world]
    for later in history[row : row + n]:
        last = later[world]
        total, k = total + gamma**k * last["reward"], k + 1
        if last["terminated"] or last["truncated"]:
            break
    return total, last, k


N_STEP = [Plan(1, 1, 5, 0), Plan(2, 3, 17, 0), Plan(3, 4, 24, 0), Plan(2, 3, 60, 2), Plan(1, 2, 60, 4)]


@pytest.mark.parametrize("plan", N_STEP, ids=str)
@pytest.mark.parametrize(("n", "often"), [(2, 0.3), (5, 0.1), (9, 0.0)])
def test_n_step_rewards_are_those_of_a_walk_through_the_history(plan: Plan, n: int, often: float) -> None:
    """CT6, B1-B4: γᵏ of the steps taken; stops at both ends; the true successor; never across the ring's head."""
    rng = np.random.default_rng(n)
    ring, worlds = programs(plan)[0](), Worlds(plan)
    history: list[list[dict[str, Any]]] = []
    shortened = 0
    for i in range(3 * plan.rows // plan.T + 2):
        shape = (plan.T, plan.n_envs)
        rows = [worlds.row(row) for row in rng.integers(1, 4, shape) * (rng.random(shape) < often)]
        history += rows
        ring = programs(plan)[1](ring, rollout_of(rows))
        if i % 3 == 0:
            continue
        first, (steps, k) = jax.device_get(n_step_program(plan, n)(ring, jax.random.key(i), 0.5))
        assert_array_equal(steps.action, first.action)
        assert_array_equal(steps.obs, first.obs)
        for j in range(0, DRAWS, 16):
            total, last, taken = summed(history, int(first.action[j]), n, 0.5)
            assert k[j] == taken
            assert steps.reward[j] == pytest.approx(total, rel=1e-6)
            assert all(np.array_equal(np.asarray(getattr(steps, f)[j]), last[f]) for f in Transition._fields[3:])
            shortened += taken < n
    assert shortened > 0


def test_a_window_of_one_step_is_the_step() -> None:
    ring, _ = filled(Plan(2, 3, 17, 0), 12, lambda r, n: (r + n) % 4)
    first, (steps, k) = jax.device_get(n_step_program(Plan(2, 3, 17, 0), 1)(ring, jax.random.key(0), 0.9))
    for a, b in zip(first, steps, strict=True):
        assert_array_equal(a, b)
    assert (k == 1).all()


# --------------------------------------------------------------------------------------------------- priorities (CT7)

CAPACITIES = [1, 2, 3, 5, 7, 1000, 1023, 1024, 5000]
EMPTY = Spec(Box(-1, 1, (1,)), Discrete(2), 1, 1 << 40)
sums_of = jax.jit(lambda p: replay._added_up(jnp.pad(p, (0, -p.size % 16))))
drawn_by = jax.jit(replay.draw_prioritised)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_draws_are_proportional_to_priorities(capacity: int) -> None:
    """χ² of 10⁵ draws, p > 1e-6, with some priorities of 0, 1e-38 and far apart."""
    rng = np.random.default_rng(capacity)
    p = rng.gamma(0.5, size=capacity).astype(np.float32) + np.float32(1e-3)
    p[rng.random(capacity) < 0.2] = 0.0
    p[1::7] = 1e-38
    p[capacity // 2] = 1.0
    sums = sums_of(p)
    u = jax.random.uniform(jax.random.key(capacity), (len(sums), 100_000))
    counts = np.bincount(np.asarray(drawn_by(sums, u)), minlength=capacity)
    assert len(counts) == capacity
    assert (counts[p < 1e-30] == 0).all()
    expected = p.astype(np.float64) / p.sum(dtype=np.float64) * 100_000
    rare = expected < 5  # pooled, as χ² wants it
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    keep = pooled[1] > 0
    if keep.sum() > 1:
        assert stats.chisquare(pooled[0][keep], pooled[1][keep] * 100_000 / pooled[1][keep].sum()).pvalue > 1e-6


def test_a_million_equal_priorities_are_drawn_equally_often() -> None:
    """One uniform number of 23 bits for all levels would reach some of a million places twice as often as others."""
    p = jnp.ones(1_000_000)
    sums = sums_of(p)
    draws = 40 * [0]
    for i in range(40):
        draws[i] = np.asarray(drawn_by(sums, jax.random.uniform(jax.random.key(i), (len(sums), 100_000))))
    low = np.bincount(np.concatenate(draws) % 1000, minlength=1000)
    assert stats.chisquare(low).pvalue > 1e-6
    top = np.bincount(np.concatenate(draws) // 1000, minlength=1000)
    assert stats.chisquare(top).pvalue > 1e-6


@pytest.mark.parametrize("u", [0.0, 1 - 2**-23])
def test_the_ends_of_the_unit_interval_lead_to_no_empty_place(u: float) -> None:
    p = np.zeros(5000, np.float32)
    p[1234:4321] = np.random.default_rng(0).random(3087) + 1e-3
    sums = sums_of(p)
    place = int(drawn_by(sums, jnp.full((len(sums), 1), u))[0])
    assert place == (1234 if u == 0 else 4320)


class PriorityMachine(RuleBasedStateMachine):
    """Priorities against a list: rollouts come with the greatest so far, errors change them, the sums always add up."""

    plans: ClassVar[list[Plan]] = [Plan(1, 1, 5, 0), Plan(3, 4, 60, 0), Plan(7, 5, 900, 0), Plan(2, 3, 60, 2)]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.plan = data.draw(st.sampled_from(self.plans))
        self.replay = jax.jit(lambda: replay.ring(self.plan.spec, self.plan.capacity, self.plan.T, prioritised=True))()
        self.worlds, self.rows, self.greatest = Worlds(self.plan), 0, 1.0
        self.wanted = np.zeros((self.plan.rows, self.plan.n_envs))

    @rule(times=st.integers(1, 7), seed=st.integers(0, 99))
    def add(self, times: int, seed: int) -> None:
        rng, plan = np.random.default_rng(seed), self.plan
        for _ in range(times):
            ends = rng.random((plan.T, plan.n_envs)) < 0.4
            steps = rollout_of([self.worlds.row(row) for row in ends.astype(int)])
            self.replay = programs(plan)[1](self.replay, steps)
            for r in range(self.rows, self.rows + plan.T):
                self.wanted[r % plan.rows] = self.greatest
            self.rows += plan.T
        if plan.k:  # rows that have gone out of use can't be drawn any more
            usable = int(self.replay.ring.usable)
            since = (self.rows - 1 - np.arange(plan.rows)) % plan.rows
            self.wanted[since >= usable] = 0
        self.check()

    @precondition(lambda self: self.rows > 0)
    @rule(seed=st.integers(0, 99), alpha=st.sampled_from([0.0, 0.6, 1.0]))
    def learn(self, seed: int, alpha: float) -> None:
        u = jax.random.uniform(jax.random.key(seed), (len(self.replay.sums), 16))
        places = np.asarray(drawn_by(self.replay.sums, u))
        flat = self.wanted.reshape(-1)
        assert (flat[places] > 0).all()
        error = np.random.default_rng(seed).normal(0, 3, self.wanted.size)[places]  # of a place, whoever drew it
        self.replay = changed(self.replay, places, error.astype(np.float32), alpha)
        flat[places] = (abs(error) + 1e-4) ** alpha
        self.greatest = max(self.greatest, flat[places].max())
        self.check()

    def check(self) -> None:
        sums = [np.asarray(s, np.float64) for s in self.replay.sums]
        np.testing.assert_allclose(sums[-1][: self.wanted.size], self.wanted.reshape(-1), rtol=1e-4)
        assert (sums[-1][self.wanted.size :] == 0).all()
        assert float(self.replay.greatest) == pytest.approx(self.greatest, rel=1e-4)
        for above, below in itertools.pairwise(sums):
            added = below.reshape(-1, 16).sum(-1)
            np.testing.assert_allclose(above[: len(added)], added, rtol=1e-5)
            assert (above[len(added) :] == 0).all()


changed = jax.jit(replay.reprioritised, donate_argnums=0)
PriorityMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=10, deadline=None)
TestPriorities = PriorityMachine.TestCase


def test_importance_weights_by_the_formula() -> None:
    """§3.4: w_i = (M P(i))^−β / max_j w_j, with M and the sum of all priorities written out; none where β is 0."""
    p = np.array([0.3, 0.3, 2.0, 0.05])
    M, total = 50, 17.0
    for beta in (0.4, 1.0):
        w = (M * p / total) ** -beta
        np.testing.assert_allclose(replay.importance_weights(jnp.float32(p), beta), w / w.max(), rtol=1e-5)
    assert_array_equal(replay.importance_weights(jnp.float32(p), 0.0), np.ones(4))


def test_an_error_beyond_all_bounds_leaves_finite_sums() -> None:
    full = jax.jit(lambda: replay.add(replay.ring(EMPTY, 40, 40, prioritised=True), blank(40)))()
    full = changed(full, jnp.arange(40), jnp.full(40, 3e38), 1.0)
    assert np.isfinite(np.asarray(full.sums[0])).all()


def blank(T: int, N: int = 1) -> Transition:
    zeros, flags = jnp.zeros((T, N)), jnp.zeros((T, N), bool)
    return Transition(zeros[..., None], zeros.astype(jnp.int32), zeros, zeros[..., None], flags, flags)


class Erring(NamedTuple):
    """An agent whose error is the action (the serial number) modulo 7, and which notes what it was given."""

    rollout_length: int = 3
    updates_per_step: float = 1.0
    learning_starts: int = 0
    batch_size: int = 8
    gamma: float = 0.5

    def learn(self, state: Any, batch: Transition, key: Any, drawn: Any = replay.UNIFORM) -> tuple[Any, dict[str, Any]]:
        error = (batch.action % 7).astype(jnp.float32)
        seen = state.seen.at[state.calls].set(batch.action, mode="drop")
        keys = state.keys.at[state.calls].set(jnp.broadcast_to(drawn.weight, error.shape), mode="drop")
        return state._replace(calls=state.calls + 1, seen=seen, keys=keys), {"train/td_error": -error}


def test_priorities_follow_every_gradient_step() -> None:
    """What a step has set, the next one draws by and weighs by; before learning starts nothing is touched."""
    plan, agent = Plan(2, 3, 30, 0), Erring(learning_starts=12)
    view = replay.Sampling(1, 0.5, 0.7)
    state = Notes(
        jax.jit(lambda: replay.ring(plan.spec, plan.capacity, plan.T, prioritised=True))(), Counter.of(0), jnp.int32(0),
        jnp.full((100, 8), -1), jnp.zeros((100, 8)),
    )  # fmt: skip
    update = jax.jit(lambda state, steps, key: replay.replay_update(agent, state, Rollout(steps, ()), key, view))
    worlds, priority, calls, greatest = Worlds(plan), {}, 0, 1.0
    for i in range(9):
        rows = [worlds.row([0, 0]) for _ in range(3)]
        state, metrics = update(state, rollout_of(rows), jax.random.key(i))
        priority |= dict.fromkeys(range(6 * i, 6 * i + 6), greatest)
        priority = {serial: p for serial, p in priority.items() if serial >= 6 * (i + 1) - plan.rows * 2}
        if i == 0:
            assert np.isnan(metrics["train/td_error"]) and int(state.calls) == 0
            continue
        assert int(state.calls) == calls + 6
        for seen, weight in zip(state.seen[calls : calls + 6], state.keys[calls : calls + 6], strict=True):
            p = np.array([priority[int(serial)] for serial in seen])
            np.testing.assert_allclose(weight, (p.min() / p) ** 0.7, rtol=1e-4)
            priority |= {int(serial): (int(serial) % 7 + 1e-4) ** 0.5 for serial in seen}
            greatest = max(greatest, *(priority[int(serial)] for serial in seen))
        calls += 6
        assert float(metrics["train/td_error"]) == pytest.approx(
            -float(np.mean(np.asarray(state.seen[calls - 6 : calls]) % 7)), rel=1e-5
        )
    leaves = np.asarray(state.replay.sums[-1])
    for serial, p in priority.items():
        assert leaves[serial % 30] == pytest.approx(p, rel=1e-4)
    often = np.bincount(np.ravel(state.seen[calls - 6 : calls]) % 7, minlength=7)
    assert often[0] < often[1:].sum() / 10  # δ = 0: hardly ever drawn again


@pytest.mark.parametrize("k", [0, 4], ids=["ring", "frames"])
def test_priorities_are_written_in_place(k: int) -> None:
    """Neither the loop over gradient steps nor the one over iterations copies a level of the sums."""
    agent, n_envs = Erring(2, 1.0, 10), 3
    spec = Spec(Box(0, 255, (8, 8, 4), np.uint8), Discrete(3), n_envs, 1 << 40, k)
    ring = jax.eval_shape(lambda: replay.ring(spec, 120_000, 2, prioritised=True))
    seen = jax.eval_shape(lambda: (jnp.full((400, 8), -1), jnp.zeros((400, 8))))
    state = jax.eval_shape(lambda: Notes(None, Counter.of(0), jnp.int32(0), None, None))
    state = state._replace(replay=ring, seen=seen[0], keys=seen[1])
    steps = jax.eval_shape(lambda: random_steps(spec.obs, spec.action, (2, n_envs)))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 9))
    view = replay.Sampling(3, 0.6, 0.4)

    def chunk(state: Any, steps: Any, keys: Any) -> Any:
        rollout = Rollout(steps, ())
        return jax.lax.scan(lambda s, key: replay.replay_update(agent, s, rollout, key, view), state, keys)

    memory = jax.jit(chunk, donate_argnums=0).lower(state, steps, keys).compile().memory_analysis()
    leaves = 4 * 120_000
    assert memory.alias_size_in_bytes >= sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(ring))
    assert memory.temp_size_in_bytes < (3 * leaves if k else leaves / 2)  # frames: all sums anew at each rollout


# -------------------------------------------------------------------------------------------------------- sequences


class Listening(NamedTuple):
    """An agent that keeps the first batch of the last update, and how it was drawn."""

    rollout_length: int
    batch_size: int
    updates_per_step: float = 1.0
    learning_starts: int = 0

    def learn(self, state: Any, batch: Transition, key: Any, drawn: Any) -> tuple[Any, dict[str, Any]]:
        return state._replace(seen=(batch, drawn.memory)), {"train/reward": batch.reward.mean()}


@pytest.mark.parametrize("plan", [Plan(2, 3, 30, 0), Plan(1, 4, 40, 0), Plan(2, 4, 100, 3)], ids=str)
def test_sequences_are_whole_rollouts_with_the_memory_they_began_with(plan: Plan) -> None:
    """CT33: steps of one world in order of time, all held, and the memory (c, h) stored beside them."""
    agent = Listening(plan.T, 64 * plan.T)
    memory = (jnp.zeros((plan.n_envs, 5)), jnp.zeros((plan.n_envs, 2), jnp.int32))
    begin = jax.jit(lambda: replay.ring(plan.spec, plan.capacity, plan.T, memory=memory))
    update = jax.jit(lambda state, rollout, key: replay.replay_update(agent, state, rollout, key))
    ring, worlds = begin(), Worlds(plan)
    first = jax.eval_shape(lambda: rollout_of([worlds.row([0] * plan.n_envs)] * plan.T))
    seen = jax.tree.map(lambda x: jnp.zeros((plan.T, 64, *x.shape[2:]), x.dtype), first)
    seen = seen, jax.tree.map(lambda m: jnp.zeros((64, *m.shape[1:]), m.dtype), memory)
    state = Notes(ring, Counter.of(0), jnp.int32(0), seen, ())
    truth: dict[int, dict[str, Any]] = {}
    worlds = Worlds(plan)
    found: set[int] = set()
    for i in range(2 * plan.rows // plan.T + 3):
        rows = [worlds.row([int((r + n + i) % 5 == 4) for n in range(plan.n_envs)]) for r in range(plan.T)]
        truth |= {s["action"]: s for row in rows for s in row}
        begun = np.array([row["action"] for row in rows[0]])
        told = (jnp.float32(begun)[:, None] * jnp.ones((1, 5)), jnp.int32(begun)[:, None] + jnp.arange(2)[None])
        state, _ = update(state, Rollout(rollout_of(rows), told), jax.random.key(i))
        batch, (c, h) = jax.device_get(state.seen)
        serial = batch.action
        assert_array_equal(serial, serial[:1] + plan.n_envs * np.arange(plan.T)[:, None])
        assert (serial[0] // plan.n_envs % plan.T == 0).all()
        assert_array_equal(c, np.repeat(serial[0][:, None], 5, 1))
        assert_array_equal(h, serial[0][:, None] + np.arange(2)[None])
        for t, b in itertools.product(range(plan.T), range(0, 64, 9)):
            assert same({f: np.asarray(getattr(batch, f)[t, b]) for f in Transition._fields}, truth[int(serial[t, b])])
        newest = (i + 1) * plan.T * plan.n_envs
        held = min((i + 1) * plan.T, (plan.rows - plan.k if plan.k else plan.rows) // plan.T * plan.T) * plan.n_envs
        assert serial.min() >= newest - held
        found |= set(serial[0].tolist())
    assert len(found) > 0.8 * (2 * plan.rows // plan.T) * plan.n_envs


def test_what_does_not_go_together_with_sequences_is_refused() -> None:
    replay.check_sequences("DQN", 32, 8)
    with pytest.raises(PolyakError, match="batch_size 32 must be a multiple of rollout_length 5"):
        replay.check_sequences("DQN", 32, 5)
    with pytest.raises(PolyakError, match="n_step is 3, and must be 1 with memory"):
        replay.check_sequences("DQN", 32, 8, n_step=3)
    with pytest.raises(PolyakError, match="rollouts have no priorities"):
        replay.check_sequences("DQN", 32, 8, prioritised=0.6)
    with pytest.raises(PolyakError, match="priorit"):
        replay.ring(EMPTY, 10, 2, prioritised=True, memory=jnp.zeros((1, 4)))
