"""The compiled classic worlds equal Gymnasium's: same states, same actions, same observations, rewards and flags.

Gymnasium computes in float64 (MountainCarContinuous keeps its state in float32), the compiled worlds in float32. Both
start each step from the same float32-representable state, so the difference is the rounding of one step: float32 has
a relative precision of 6e-8, and each case states how far its own arithmetic stretches that. Flags are compared
wherever the float64 state is farther from the threshold than that rounding.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.core import flat
from polyak.envs.classic import (
    WORLDS,
    Acrobot,
    CartPole,
    GridWorld,
    MountainCar,
    MountainCarContinuous,
    Pendulum,
)
from polyak.envs.classic.acrobot import AcrobotState
from polyak.envs.classic.cartpole import CartPoleState
from polyak.envs.classic.grid_world import successors
from polyak.envs.classic.mountain_car import MountainCarState
from polyak.envs.classic.pendulum import PendulumState
from polyak.envs.vector import Vector, VectorState
from polyak.errors import PolyakError
from polyak.spaces import Box, Discrete

jax.config.update("jax_numpy_rank_promotion", "raise")

N = 1500  # random states per world


@dataclass(frozen=True)
class Case:
    """One world, its Gymnasium twin, and the states to compare in."""

    id: str
    world: Any
    state: type[Any]
    low: tuple[float, ...]
    high: tuple[float, ...]
    boundary: tuple[tuple[float, ...], ...]
    atol: float  # of observations and rewards
    reason: str  # of atol
    angles: tuple[int, ...]  # which components count modulo 2 pi
    margin: Callable[[Any], float]  # distance of Gymnasium's state after the step from the nearest flip of `terminated`


def acrobot_margin(s: Any) -> float:
    return abs(-math.cos(s[0]) - math.cos(s[0] + s[1]) - 1.0)


THETA = 12 * 2 * math.pi / 360
CASES = [
    Case(
        "CartPole-v1", CartPole(), CartPoleState,
        (-2.6, -4.0, -0.25, -4.0), (2.6, 4.0, 0.25, 4.0),
        tuple(
            (sx * x, v, st * theta, w)
            for x in (0.0, 2.3995, 2.4005) for theta in (0.0, THETA - 5e-4, THETA + 5e-4)
            for sx in (-1, 1) for st in (-1, 1) for v in (-0.01, 0.0, 0.01) for w in (-0.01, 0.0, 0.01)
        ),
        3e-6, "values up to 5, and some ten roundings of 6e-8 relative", (),
        lambda s: min(abs(abs(s[0]) - 2.4), abs(abs(s[2]) - THETA)),
    ),
    Case(
        "Pendulum-v1", Pendulum(), PendulumState,
        (-12.0, -8.0), (12.0, 8.0),
        tuple((th * math.pi, w) for th in (-1.0, -0.5, 0.0, 1e-6, 0.5, 1.0, 3.0) for w in (-8.0, 0.0, 8.0)),
        2e-5, "the cost squares an angle up to pi, known to 1e-6 after turns are taken off an angle of 12", (0,),
        lambda s: math.inf,
    ),
    Case(
        "Acrobot-v1", Acrobot(), AcrobotState,
        (-math.pi, -math.pi, -4 * math.pi, -9 * math.pi), (math.pi, math.pi, 4 * math.pi, 9 * math.pi),
        tuple(
            (a, b, v, w)
            for a in (-math.pi, 0.0, 2 * math.pi / 3, math.pi) for b in (-math.pi, 0.0, math.pi)
            for v in (-4 * math.pi, 0.0, 4 * math.pi) for w in (-9 * math.pi, 0.0, 9 * math.pi)
        ),
        1e-2, "four stages with centrifugal terms up to 800 rad/s2 amplify the rounding at the highest speeds", (0, 1),
        acrobot_margin,
    ),
    Case(
        "MountainCar-v0", MountainCar(), MountainCarState,
        (-1.2, -0.07), (0.6, 0.07),
        tuple((x, v) for x in (-1.2, -1.19, 0.4995, 0.5005, 0.55, 0.6) for v in (-0.07, -0.01, 0.0, 1e-4, 0.01, 0.07)),
        3e-7, "values of order 1 and three roundings", (),
        lambda s: abs(s[0] - 0.5) if s[1] > -1e-6 else math.inf,
    ),
    Case(
        "MountainCarContinuous-v0", MountainCarContinuous(), MountainCarState,
        (-1.2, -0.07), (0.6, 0.07),
        tuple((x, v) for x in (-1.2, -1.19, 0.4495, 0.4505, 0.55, 0.6) for v in (-0.07, -0.01, 0.0, 1e-4, 0.01, 0.07)),
        2e-5, "the reward is near 100, where float32 has a spacing of 8e-6", (),
        lambda s: abs(s[0] - 0.45) if s[1] > -1e-6 else math.inf,
    ),
]  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def put(env: Any, state: np.ndarray) -> None:
    """Set the state of a Gymnasium environment that has been reset."""
    own = env.unwrapped
    own.state = state.astype(np.float64)
    own.steps_beyond_terminated = None


def actions_for(world: Any, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random actions of the world's own space; continuous ones exceed its bounds by half."""
    space = world.action_space
    if isinstance(space, Discrete):
        return rng.integers(0, space.n, n)
    low, high = space.bounds
    return rng.uniform(1.5 * low, 1.5 * high, (n, *space.shape)).astype(np.float32)


def test_every_named_world_is_compared() -> None:
    assert {case.id for case in CASES} | {"GridWorld-v0", "Reach-v0"} == set(WORLDS)  # these two are our own
    assert all(type(case.world) is WORLDS[case.id] for case in CASES)


def compared_states(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Random and boundary states [n, d], float32, and an action for each."""
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.uniform(case.low, case.high, (N, len(case.low))), np.array(case.boundary)])
    actions = actions_for(case.world, len(states), rng)
    return states.astype(np.float32), actions.astype(np.float64) if actions.ndim > 1 else actions


class Truth(NamedTuple):
    """Gymnasium's results for many states."""

    state: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    margin: np.ndarray


@functools.cache
def gymnasiums(id: str) -> Truth:
    """One step of the Gymnasium environment from each compared state, in float64."""
    case = next(case for case in CASES if case.id == id)
    states, actions = compared_states(case)
    twin = gymnasium.make(case.id).unwrapped
    twin.reset(seed=0)
    rows = []
    for state, action in zip(states, actions, strict=True):
        put(twin, state)
        obs, reward, terminated, truncated, _ = twin.step(action)
        assert not truncated
        rows.append((np.array(twin.state), obs, float(reward), terminated, case.margin(twin.state)))  # pyright: ignore[reportAttributeAccessIssue]
    return Truth(*(np.array(column) for column in zip(*rows, strict=True)))


@each_case
def test_the_equations_are_gymnasiums(case: Case) -> None:
    """In float64 one step agrees to 1e-10: rounding of 1e-16, amplified at most 1e5 times by Acrobot's high speeds."""
    states, actions = compared_states(case)
    true = gymnasiums(case.id)
    # Gymnasium keeps this car's state in float32, whatever it is given.
    atol = 1e-7 if case.id == "MountainCarContinuous-v0" else 1e-10
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), len(states))
        s = case.state(*states.T.astype(np.float64))
        after, obs, reward, terminated = jax.jit(jax.vmap(case.world.step))(s, actions, keys)
        difference = np.stack(after, 1) - true.state
    angles = list(case.angles)
    difference[:, angles] -= 2 * math.pi * np.round(difference[:, angles] / (2 * math.pi))
    assert_allclose(difference, 0.0, rtol=0, atol=atol)
    assert_allclose(obs, true.obs, rtol=1.2e-7, atol=6e-8, err_msg="Gymnasium's observations are float32")
    assert_allclose(reward, true.reward, rtol=0, atol=1e-6 if case.id == "MountainCarContinuous-v0" else 1e-10)
    assert_array_equal(np.asarray(terminated)[true.margin > atol], true.terminated[true.margin > atol])
    assert (true.margin <= atol).sum() <= 8, "only states exactly at a threshold may be left out"


@each_case
def test_one_step_equals_gymnasium_in_float32(case: Case) -> None:
    states, actions = compared_states(case)
    true = gymnasiums(case.id)
    keys = jax.random.split(jax.random.key(0), len(states))
    step = jax.jit(jax.vmap(case.world.step))
    after, obs, reward, terminated = step(
        case.state(*states.T), jnp.asarray(actions, jnp.float32 if actions.ndim > 1 else jnp.int32), keys
    )

    assert_allclose(obs, true.obs, rtol=0, atol=case.atol, err_msg=case.reason)
    clear = true.margin > case.atol
    assert_array_equal(np.asarray(terminated)[clear], true.terminated[clear])
    assert_allclose(np.asarray(reward)[clear], true.reward[clear], rtol=0, atol=case.atol, err_msg=case.reason)
    assert clear.mean() > 0.98, "too many states at the threshold to say that the flags agree"
    assert obs.dtype == reward.dtype == jnp.float32
    assert terminated.dtype == bool
    assert all(leaf.dtype == jnp.float32 for leaf in after)
    assert len(set(np.asarray(terminated))) == (1 if case.id == "Pendulum-v1" else 2), "the states must show both flags"


def balancing(state: Any) -> Any:
    return int(state[2] + 0.3 * state[3] + 0.02 * state[0] + 0.05 * state[1] > 0)


def pumping(state: Any) -> Any:
    return 2 if state[1] >= 0 else 0


LATE: dict[str, Callable[[Any], Any]] = {
    "CartPole-v1": balancing,
    "Pendulum-v1": lambda s: np.array([math.sin(7 * s[0])], np.float32),
    "Acrobot-v1": lambda s: 1,
    "MountainCar-v0": lambda s: 1,
    "MountainCarContinuous-v0": lambda s: np.array([0.01], np.float32),
}
DONE: dict[str, Callable[[Any], Any]] = {
    "CartPole-v1": lambda s: 1,
    "Acrobot-v1": lambda s: 0 if s[3] < 0 else 2,
    "MountainCar-v0": pumping,
    "MountainCarContinuous-v0": lambda s: np.array([1.0 if s[1] >= 0 else -1.0], np.float32),
}
EPISODES = [(name, "late", policy) for name, policy in LATE.items()] + [
    (name, "done", policy) for name, policy in DONE.items()
]


@pytest.mark.parametrize(("name", "how", "policy"), EPISODES, ids=[f"{name}-{how}" for name, how, _ in EPISODES])
def test_a_whole_episode_has_gymnasiums_flags(name: str, how: str, policy: Callable[[Any], Any]) -> None:
    """Up to the time limit, or to the goal: obs, reward, terminated and truncated of every step, and the totals.

    Our state is set to Gymnasium's before each step, so that a chaotic world (Acrobot) doesn't turn the rounding of
    one step into another trajectory; the clock and the running return are ours throughout.
    """
    case = next(case for case in CASES if case.id == name)
    vector = Vector(case.world, 1)
    step = jax.jit(vector.step)
    twin = gymnasium.make(name)
    twin.reset(seed=4)
    vstate, _ = jax.jit(vector.reset)(jax.random.key(0))
    total, steps, over = 0.0, 0, False
    while not over:
        state = np.asarray(twin.unwrapped.state, np.float32)  # pyright: ignore[reportAttributeAccessIssue]
        put(twin, state)
        vstate = vstate._replace(s=case.state(*state[:, None]))
        action = policy(state)
        obs, reward, terminated, truncated, _ = twin.step(action)
        units = case.world.action_space.bounds[1] if isinstance(case.world.action_space, Box) else 1
        agents = jnp.asarray(action / units, jnp.float32) if isinstance(action, np.ndarray) else jnp.asarray(action)
        vstate, _, outcome = step(vstate, agents[None], jax.random.key(steps))
        assert_allclose(outcome.next_obs[0], obs, rtol=0, atol=case.atol, err_msg=case.reason)
        assert_allclose(outcome.reward[0], float(reward), rtol=0, atol=case.atol, err_msg=case.reason)
        over = terminated or truncated
        assert (bool(outcome.terminated[0]), bool(outcome.truncated[0])) == (terminated, truncated and not terminated)
        total, steps = total + float(reward), steps + 1
    assert truncated == (how == "late")
    assert (steps == gymnasium.spec(name).max_episode_steps) == truncated
    assert int(outcome.episode_length[0]) == steps
    assert_allclose(outcome.episode_return[0], total, rtol=1e-5, err_msg="up to 999 float32 additions")


@each_case
def test_spaces_and_limits_equal_gymnasiums(case: Case) -> None:
    twin = gymnasium.make(case.id)
    assert case.world.max_steps == gymnasium.spec(case.id).max_episode_steps
    obs, action = twin.observation_space, twin.action_space
    assert isinstance(obs, gymnasium.spaces.Box)
    assert case.world.obs_space.shape == obs.shape
    assert case.world.obs_space.dtype == obs.dtype
    assert_array_equal(np.float32(case.world.obs_space.bounds), np.float32([obs.low, obs.high]))
    if isinstance(action, gymnasium.spaces.Box):
        assert_array_equal(np.float32(case.world.action_space.bounds), np.float32([action.low, action.high]))
    else:
        assert isinstance(action, gymnasium.spaces.Discrete)
        assert case.world.action_space == Discrete(int(action.n))


STARTS = {
    "CartPole-v1": [(-0.05, 0.05)] * 4,
    "Pendulum-v1": [(-math.pi, math.pi), (-1.0, 1.0)],
    "Acrobot-v1": [(-0.1, 0.1)] * 4,
    "MountainCar-v0": [(-0.6, -0.4), (0.0, 0.0)],
    "MountainCarContinuous-v0": [(-0.6, -0.4), (0.0, 0.0)],
}


@each_case
def test_resets_are_uniform_in_gymnasiums_ranges(case: Case) -> None:
    n = 4000
    s, obs = jax.jit(jax.vmap(case.world.reset))(jax.random.split(jax.random.key(1), n))
    low, high = case.world.obs_space.bounds
    assert ((np.asarray(obs) >= low[None]) & (np.asarray(obs) <= high[None])).all()
    for values, (first, last) in zip(s, STARTS[case.id], strict=True):
        ordered = np.sort(np.asarray(values, np.float64))
        if first == last:
            assert (ordered == first).all()
            continue
        uniform = first + (last - first) * (np.arange(n) + 0.5) / n
        # Kolmogorov-Smirnov distance; 1.95 / sqrt(n) is exceeded by chance once in 1000, and the seed is fixed.
        assert np.abs(ordered - uniform).max() / (last - first) < 1.95 / math.sqrt(n)
        assert np.float32(first) <= ordered[0]
        assert ordered[-1] <= np.float32(last)


@each_case
def test_constants_can_be_traced_swept_and_shown(case: Case) -> None:
    """The world is an argument of a jitted program; a sweep over a constant equals one world at a time."""
    world, key = case.world, jax.random.key(3)
    name = "gravity"
    swept = jnp.asarray([0.5, 1.0, 2.0]) * getattr(world, name)

    def played(gravity: Any) -> Any:
        vector = Vector(replace(world, **{name: gravity}), 2)
        assert vector.obs_space == Vector(world, 2).obs_space
        k_reset, k_act, k_step = jax.random.split(key, 3)
        vstate, _ = vector.reset(k_reset)
        shape = (2, *vector.action_space.shape)
        action = (
            jax.random.uniform(k_act, shape) if isinstance(vector.action_space, Box) else jnp.zeros(shape, jnp.int32)
        )
        return vector.step(vstate, action, k_step)[1]

    together = jax.jit(jax.vmap(played))(swept)
    for value, obs in zip(swept, together, strict=True):
        assert_allclose(jax.jit(played)(float(value)), obs, rtol=1e-5, atol=1e-6, err_msg="one step, batched or not")
    assert not np.allclose(together[0], together[2], atol=1e-5), "gravity must matter"


def test_a_traced_torque_limit_is_used_in_full() -> None:
    """The space inside a traced program shows the nominal 2 N·m; the action must reach the world's own 5."""

    def speed(vector: Vector) -> Any:
        still = VectorState(PendulumState(jnp.zeros(1), jnp.zeros(1)), jnp.zeros(1, jnp.int32), jnp.zeros(1))
        return vector.step(still, jnp.ones((1, 1)), jax.random.key(0))[2].next_obs[0, 2]

    strong = Vector(Pendulum(max_torque=5.0), 1)
    assert strong.world.action_space.bounds[1] == 5.0
    for found in (jax.jit(lambda: speed(strong))(), jax.jit(speed)(strong)):
        assert_allclose(found, 5.0 * 3 * 0.05, rtol=1e-6, err_msg="one float32 product")


def test_sutton_barto_reward() -> None:
    twin = gymnasium.make("CartPole-v1", sutton_barto_reward=True).unwrapped
    twin.reset(seed=0)
    world, key = CartPole(sutton_barto_reward=True), jax.random.key(0)
    for state in np.array([[0, 0, 0, 0], [0, 0, 0.2, 3.0]], np.float32):
        put(twin, state)
        assert float(world.step(CartPoleState(*map(jnp.asarray, state)), jnp.int32(1), key)[2]) == twin.step(1)[1]


# GridWorld


class WalkedGrid:
    """A gridworld without slip, written from the rules with (row, column) and if-clauses, in Gymnasium's manner."""

    def __init__(self, layout: tuple[str, ...]) -> None:
        self.layout, self.row, self.column = layout, 0, 0

    def step(self, action: int) -> tuple[int, float, bool]:
        row, column = self.row, self.column
        if action == 0:
            column -= 1
        elif action == 1:
            row += 1
        elif action == 2:
            column += 1
        else:
            row -= 1
        blocked = row < 0 or column < 0 or row >= len(self.layout) or column >= len(self.layout[0])
        if not blocked and self.layout[row][column] != "#":
            self.row, self.column = row, column
        cell = self.layout[self.row][self.column]
        reward = {"G": 1.0, "O": -1.0}.get(cell, -0.01)
        return self.row * len(self.layout[0]) + self.column, reward, cell in "GO"


def open_cells(world: GridWorld) -> list[int]:
    return [i for i, cell in enumerate("".join(world.layout)) if cell in "S."]


def stepped(world: GridWorld, s: Any, a: Any, keys: Any) -> Any:
    """All of step's results for states, actions and keys of equal length."""
    return jax.jit(jax.vmap(world.step))(jnp.asarray(s, jnp.int32), jnp.asarray(a, jnp.int32), keys)


def test_grid_without_slip_equals_the_reference_everywhere() -> None:
    world = GridWorld()
    pairs = [(s, a) for s in open_cells(world) for a in range(4)]
    s, a = map(np.array, zip(*pairs, strict=True))
    after, obs, reward, terminated = stepped(world, s, a, jax.random.split(jax.random.key(0), len(pairs)))
    assert_array_equal(after, obs)
    walked = WalkedGrid(world.layout)
    for i, (state, action) in enumerate(pairs):
        walked.row, walked.column = divmod(state, world.shape[1])
        cell, gain, over = walked.step(action)
        assert (int(after[i]), bool(terminated[i])) == (cell, over), (state, action)
        assert_allclose(reward[i], gain, rtol=1e-7, err_msg="the same number in float32")


def test_grid_transitions_equal_brute_force_enumeration() -> None:
    """P and r of `transitions` against steps taken with many keys, for every state, action and slip."""
    n = 2000
    for slip in (0.0, 0.4, 1.0):
        world = GridWorld(slip=slip)
        P, r = world.transitions()
        cells = world.obs_space.n
        assert_allclose(P.sum(2), 1.0, rtol=1e-12, err_msg="float64 sums of three")
        pairs = [(s, a) for s in open_cells(world) for a in range(4)]
        s, a = (np.repeat(values, n) for values in zip(*pairs, strict=True))
        after, _, reward, _ = stepped(world, s, a, jax.random.split(jax.random.key(2), len(s)))
        counts = np.zeros((cells, 4, cells))
        np.add.at(counts, (s, a, np.asarray(after)), 1.0)
        mean = np.zeros((cells, 4))
        np.add.at(mean, (s, a), np.asarray(reward, np.float64) / n)
        for pair in pairs:
            deviation = np.sqrt(P[pair] * (1 - P[pair]) / n)
            assert (np.abs(counts[pair] / n - P[pair]) <= 5 * deviation + 1e-12).all(), (slip, pair)  # five sigma
            # Rewards lie in [-1, 1], so their deviation is at most 1; without slip there is none.
            assert abs(mean[pair] - r[pair]) <= (5 / math.sqrt(n) if slip else 1e-6)


def test_grid_equals_frozen_lake() -> None:
    """Gymnasium's own table of probabilities, rewards and ends, state by state."""
    lake = gymnasium.make("FrozenLake-v1", map_name="8x8", is_slippery=True).unwrapped
    drawn = tuple("".join(c.decode() for c in row).replace("H", "O").replace("F", ".") for row in lake.desc)  # pyright: ignore[reportAttributeAccessIssue]
    world = GridWorld(layout=drawn, slip=2 / 3, step_reward=0.0, goal_reward=1.0, pit_reward=0.0)
    P, r = world.transitions()
    true_P, true_r = np.zeros_like(P), np.zeros_like(r)
    ends: dict[int, bool] = {}
    for s, row in lake.P.items():  # pyright: ignore[reportAttributeAccessIssue]
        for a, outcomes in row.items():
            for probability, to, reward, terminated in outcomes:
                true_P[s, a, to] += probability
                true_r[s, a] += probability * reward
                ends[to] = terminated
    assert_allclose(P, true_P, rtol=0, atol=1e-15, err_msg="sums of thirds in float64")
    assert_allclose(r, true_r, rtol=0, atol=1e-15, err_msg="sums of thirds in float64")
    s = np.repeat(np.arange(64), 400)
    after, _, reward, terminated = stepped(world, s, s % 4, jax.random.split(jax.random.key(5), len(s)))
    assert all(bool(over) == ends[int(to)] for to, over in zip(after, terminated, strict=True))
    assert_array_equal(np.asarray(reward) == 1.0, (np.asarray(after) == 63) & (s != 63))


def test_grid_starts_and_best_return() -> None:
    world = GridWorld()
    P, r = world.transitions()
    V = np.zeros(world.obs_space.n)
    for _ in range(60):
        V = (r + P @ V).max(1)
    assert_allclose(V[0], 1.0 - 9 * 0.01, rtol=1e-12, err_msg="ten steps to the goal, nine of them plain")
    many = GridWorld(layout=("S.S", "..G", "S#O"))
    s, obs = jax.vmap(many.reset)(jax.random.split(jax.random.key(0), 600))
    assert_array_equal(s, obs)
    found, counts = np.unique(np.asarray(s), return_counts=True)
    assert found.tolist() == [0, 2, 6]
    assert (counts > 150).all()
    assert successors(many.layout)[6].tolist() == [6, 6, 6, 3]  # rim, rim, wall, up


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layout": ("S.", "G")}, "equal"),
        ({"layout": ("SX", "G.")}, "X"),
        ({"layout": ("..", "G.")}, "start"),
        ({"layout": ()}, "equal"),
        ({"slip": 1.5}, "slip"),
    ],
)
def test_bad_grids_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(PolyakError, match=words):
        GridWorld(**fields)


# Pictures


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_frames_show_the_state(name: str) -> None:
    world = WORLDS[name]()
    space = world.obs_space
    s, _ = world.reset(jax.random.key(0))
    other = jnp.int32(space.n - 1) if isinstance(space, Discrete) else type(s)(*(v + 0.3 for v in s))
    first, second = world.frame(s), world.frame(other)
    assert first.dtype == np.uint8
    assert first.shape == second.shape
    assert first.shape[2] == 3
    assert first.shape[0] % 16 == first.shape[1] % 16 == 0, "video codecs want multiples of 16"
    assert_array_equal(first, world.frame(s))
    assert (first != second).any()
    assert len(np.unique(flat(first, 2), axis=0)) >= 3
    if not isinstance(space, Discrete):
        world.frame(type(s)(*(v * 0 + 50.0 for v in s)))  # a car far outside the picture must not break the video
