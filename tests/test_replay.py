"""The replay against a list of dictionaries (CT5, CT8): what is sampled was stored, is whole, and is held.

Observations carry (environment, episode, t) and actions a serial number, so that a transition that was mixed from two
others can't hide. A machine of Hypothesis adds rollouts, wraps, samples, saves and loads in any order.
"""

import functools
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
