"""Batch, clock, auto-reset, statistics and action bounds: what `Vector` adds to one world."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.core import hyper
from polyak.envs.classic import WORLDS, CartPole, GridWorld, Pendulum
from polyak.envs.probes import PROBES, Counting, Forever, Target
from polyak.envs.vector import Vector, world_action
from polyak.errors import PolyakError
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, agent_action_space, leaves

jax.config.update("jax_numpy_rank_promotion", "raise")

EVERY_WORLD = {**WORLDS, **PROBES}


class Record(NamedTuple):
    """What a driver would store, [T, N, ...] NumPy arrays."""

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    episode_return: Any
    episode_length: Any
    after: Any  # the observation acted on next


def sampled(space: Space, key: Any, n: int) -> Any:
    """Random actions [n, ...] of the agent's view of a space."""
    if isinstance(space, Discrete):
        return jax.random.randint(key, (n,), 0, space.n)
    assert isinstance(space, Box)
    return jax.random.uniform(key, (n, *space.shape), minval=-1.0, maxval=1.0)


def played(vector: Vector, key: Any, steps: int, actions: Any = None) -> Record:
    """`steps` steps in one scan, with the given actions [T, N, ...] or random ones."""
    k_reset, k_act, k_step = jax.random.split(key, 3)
    if actions is None:
        actions = jax.vmap(lambda k: sampled(vector.action_space, k, vector.n_envs))(jax.random.split(k_act, steps))

    def step(carry: Any, given: Any) -> Any:
        vstate, obs = carry
        action, k = given
        vstate, after, out = vector.step(vstate, action, k)
        row = Record(
            obs,
            action,
            out.reward,
            out.next_obs,
            out.terminated,
            out.truncated,
            out.episode_return,
            out.episode_length,
            after,
        )
        return (vstate, after), row

    return jax.lax.scan(step, vector.reset(k_reset), (actions, jax.random.split(k_step, steps)))[1]


def recorded(vector: Vector, seed: int, steps: int, actions: Any = None) -> Record:
    made = jax.jit(lambda key: played(vector, key, steps, actions))(jax.random.key(seed))
    return jax.tree.map(np.asarray, made)


# The counting world


@pytest.fixture(scope="module")
def counted() -> Record:
    return recorded(Vector(Counting(longest=9, max_steps=6), 7), seed=1, steps=60)


def test_stored_transitions_are_exactly_the_real_ones(counted: Record) -> None:
    """CT4: next = t + 1 in the same episode, at an end too; what follows an end is the start of another episode."""
    T, N = counted.reward.shape
    for n in range(N):
        t = 0
        for k in range(T):
            (episode, shown), (same, following) = counted.obs[k, n], counted.next_obs[k, n]
            assert (shown, same, following) == (t, episode, t + 1)
            ends = counted.terminated[k, n] or counted.truncated[k, n]
            assert ends == (t + 1 >= min(6, 1 + episode % 9))
            assert counted.terminated[k, n] == (t + 1 >= 1 + episode % 9)
            if ends:
                assert counted.after[k, n, 0] != episode
                assert counted.after[k, n, 1] == 0
            else:
                assert_array_equal(counted.after[k, n], counted.next_obs[k, n])
            if k + 1 < T:
                assert_array_equal(counted.obs[k + 1, n], counted.after[k, n])
            t = 0 if ends else t + 1


def test_returns_and_lengths_equal_brute_force_in_every_episode(counted: Record) -> None:
    """CT31: summed outside, and by the world's own formula; NaN and 0 where no episode ended."""
    T, N = counted.reward.shape
    steps = 0
    for n in range(N):
        rewards: list[float] = []
        episodes = 0
        for k in range(T):
            rewards.append(float(counted.reward[k, n]))
            if counted.terminated[k, n] or counted.truncated[k, n]:
                length = len(rewards)
                assert counted.episode_length[k, n] == length
                assert counted.episode_return[k, n] == sum(rewards)  # small integers: exact
                assert sum(rewards) == length * (counted.obs[k, n, 0] % 7) + length * (length + 1) / 2
                steps, rewards, episodes = steps + length, [], episodes + 1
            else:
                assert counted.episode_length[k, n] == 0
                assert math.isnan(counted.episode_return[k, n])
        assert episodes >= 5, "later episodes must be among those compared"
        steps += len(rewards)
    assert steps == T * N


def test_terminated_wins_over_truncated(counted: Record) -> None:
    both = (counted.obs[..., 0] % 9 == 5) & (counted.obs[..., 1] == 5)  # the sixth of six steps ends both ways
    assert both.any()
    assert counted.terminated[both].all()
    assert not counted.truncated[both].any()
    late = (counted.obs[..., 0] % 9 > 5) & (counted.obs[..., 1] == 5)
    assert late.any()
    assert counted.truncated[late].all()
    assert not counted.terminated[late].any()


def test_episodes_start_differently_in_every_environment(counted: Record) -> None:
    starts = counted.obs[..., 0][counted.obs[..., 1] == 0]
    assert len(np.unique(starts)) == len(starts)


def test_no_time_limit_never_truncates() -> None:
    long = recorded(Vector(Forever(max_steps=0), 2), seed=0, steps=40)
    assert not long.truncated.any()
    assert not long.terminated.any()
    short = recorded(Vector(Forever(max_steps=8), 2), seed=0, steps=40)
    assert_array_equal(np.flatnonzero(short.truncated[:, 1]), [7, 15, 23, 31, 39])
    one = recorded(Vector(Forever(max_steps=1), 2), seed=0, steps=5)
    assert one.truncated.all()
    assert (one.episode_length == 1).all()
    assert (one.episode_return == 1.0).all()


# Streams


@pytest.mark.parametrize("world", [CartPole(), GridWorld(slip=0.5)], ids=["CartPole", "GridWorld"])
def test_an_environment_does_not_depend_on_its_neighbours(world: Any) -> None:
    """Environment 0 plays the same actions while the others play different ones, and so end elsewhere."""
    vector, steps = Vector(world, 4), 150
    rng = np.random.default_rng(0)
    actions = rng.integers(0, vector.action_space.n, (steps, 4))
    others = actions.copy()
    others[:, 1:] = rng.integers(0, vector.action_space.n, (steps, 3))
    first, second = (recorded(vector, 3, steps, jnp.asarray(a, jnp.int32)) for a in (actions, others))
    assert (first.terminated[:, 1:] != second.terminated[:, 1:]).any()
    for a, b in zip(first, second, strict=True):
        assert_array_equal(a[:, 0], b[:, 0])
    assert (first.episode_length[:, 0] > 0).sum() >= 2, "the stream must cross resets"


@pytest.mark.parametrize(
    "world", [Counting(), GridWorld(slip=0.3), CartPole()], ids=["Counting", "GridWorld", "CartPole"]
)
def test_seeds_are_an_axis(world: Any) -> None:
    """Under lax.map a seed equals itself alone bitwise; under vmap to the rounding of 40 steps of one chain."""
    vector, keys = Vector(world, 3), jax.random.split(jax.random.key(5), 4)
    together = jax.jit(jax.vmap(lambda k: played(vector, k, 40)))(keys)
    mapped = jax.jit(lambda ks: jax.lax.map(lambda k: played(vector, k, 40), ks))(keys)
    alone = jax.jit(lambda k: played(vector, k, 40))
    for i in range(4):
        for one, many, each in zip(alone(keys[i]), together, mapped, strict=True):
            assert_array_equal(one, each[i])
            assert_allclose(one, many[i], rtol=1e-4, atol=1e-5)
    assert not np.array_equal(together.obs[0], together.obs[1])


def test_the_same_key_gives_the_same_stream() -> None:
    vector = Vector(GridWorld(slip=0.3), 3)
    first, second, other = (recorded(vector, seed, 30) for seed in (0, 0, 1))
    for a, b in zip(first, second, strict=True):
        assert_array_equal(a, b)
    assert (first.next_obs != other.next_obs).any()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", sorted(WORLDS))
def test_stepping_one_call_at_a_time_equals_a_scan(name: str, n: int) -> None:
    """The host crank steps a world by single jitted calls: bit for bit the compiled scan, resets included.

    MountainCarContinuous fails it with n = 3 where products are not rounded separately (`rounding`).
    """
    steps, plain = 60, Vector(WORLDS[name](max_steps=25), n)
    vector = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), plain)
    k_reset, k_act, k_step = jax.random.split(jax.random.key(2), 3)
    actions = jax.vmap(lambda k: sampled(plain.action_space, k, n))(jax.random.split(k_act, steps))
    scanned = jax.jit(lambda v: played(v, jax.random.key(2), steps, actions))(vector)
    reset, step = jax.jit(lambda v, k: v.reset(k)), jax.jit(lambda v, s, a, k: v.step(s, a, k))
    vstate, obs = reset(vector, k_reset)
    rows = []
    for action, key in zip(actions, jax.random.split(k_step, steps), strict=True):
        before = obs
        vstate, obs, out = step(vector, vstate, action, key)
        rows.append(Record(before, action, *out[:1], out.next_obs, *out[2:], obs))
    for name_, each in zip(Record._fields, zip(*rows, strict=True), strict=True):
        together = jax.tree.map(lambda *x: np.stack(x), *each)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(getattr(scanned, name_)), strict=True):
            assert_array_equal(a, b, err_msg=name_)


@pytest.mark.parametrize("name", sorted(EVERY_WORLD))
def test_shapes_and_types_are_those_of_the_spaces_and_do_not_drift(name: str) -> None:
    """A step's state has exactly the types of a reset's, so that a scan carries it; rewards are float32, flags bool."""
    plain = Vector(EVERY_WORLD[name](), 3)
    for vector in (plain, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), plain)):
        (vstate, obs) = jax.eval_shape(lambda v, k: v.reset(k), vector, jax.random.key(0))
        action = jax.eval_shape(lambda k: sampled(plain.action_space, k, 3), jax.random.key(0))
        after, follow, out = jax.eval_shape(
            lambda v, s, a, k: v.step(s, a, k), vector, vstate, action, jax.random.key(0)
        )

        def kinds(tree: Any) -> Any:
            return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

        assert kinds(vstate) == kinds(after)
        assert kinds(obs) == kinds(follow) == kinds(out.next_obs)
        for (_, space), leaf in zip(leaves(plain.obs_space), jax.tree.leaves(obs), strict=True):
            assert leaf.shape == (3, *space.shape)
            assert leaf.dtype == space.dtype
        assert out.reward.shape == out.episode_return.shape == (3,)
        assert out.reward.dtype == jnp.float32
        assert out.terminated.dtype == out.truncated.dtype == bool
        assert out.episode_length.dtype == jnp.int32


@pytest.mark.parametrize("name", sorted(EVERY_WORLD))
def test_observations_stay_in_their_space(name: str) -> None:
    vector = Vector(EVERY_WORLD[name](), 3)
    record = recorded(vector, 0, 120)
    for i, (_, space) in enumerate(leaves(vector.obs_space)):
        low, high = space.bounds if isinstance(space, Box) else (np.zeros(()), np.full((), space.n - 1))
        for seen in (jax.tree.leaves(record.obs)[i], jax.tree.leaves(record.next_obs)[i]):
            assert (seen >= low[None, None]).all()
            assert (seen <= high[None, None]).all()
            assert np.isfinite(seen).all()


# Actions


LOW, HIGH = np.float32([-0.3, 0.1, -7.0, -1e-3]), np.float32([0.7, 0.13, 1e5, 5e-3])


@hyper
class Echo:
    """Observes the action it was given, in the world's own units."""

    max_steps: int = 1

    @property
    def obs_space(self) -> Box:
        return Box(-np.inf, np.inf, (4,))

    @property
    def action_space(self) -> Box:
        return Box(LOW, HIGH)

    def reset(self, key: Any) -> Any:
        del key
        return (), jnp.zeros(4)

    def step(self, s: Any, action: Any, key: Any) -> Any:
        del key
        return s, action, jnp.float32(0.0), jnp.array(False)


@pytest.mark.parametrize("agents", [-1.0, -1.5, 1.0, 40.0])
def test_asymmetric_bounds_are_reached_to_the_last_bit(agents: float) -> None:
    record = recorded(Vector(Echo(), 2), 0, 1, jnp.full((1, 2, 4), agents))
    for row in record.next_obs[0]:
        assert_array_equal(row, LOW if agents < 0 else HIGH)


def test_actions_between_are_affine() -> None:
    a = np.linspace(-1, 1, 41, dtype=np.float32)
    found = np.asarray(world_action(Box(np.array(-0.3), np.array(0.7)), jnp.asarray(a)))
    assert_allclose(found, np.float64(a) * 0.5 + 0.2, rtol=0, atol=1e-7, err_msg="float32 values below 1")
    assert (np.diff(found) > 0).all()


def test_bounds_may_be_leaves() -> None:
    """A sweep over a world's own action bound acts on the physics in full, inside vmap."""

    def reward(high: Any) -> Any:
        vector = Vector(replace(Target(), high=high), 1)
        return vector.step(vector.reset(jax.random.key(0))[0], jnp.ones((1, 1)), jax.random.key(1))[2].reward[0]

    highs = jnp.array([1.0, 3.0, 8.0])
    assert_allclose(jax.jit(jax.vmap(reward))(highs), -((highs - 0.3) ** 2), rtol=1e-6, err_msg="one float32 square")


NESTED = Dict(
    {"arm": Box(-2.0, 4.0, (2,)), "grip": Discrete(2), "legs": Tuple([Box(-np.inf, 1.0, (1,)), MultiBinary(3)])}
)


def test_the_agents_view_of_action_spaces() -> None:
    unit = Box(-1.0, 1.0, (2,))
    assert agent_action_space(Box(-2.0, 4.0, (2,))) == unit
    assert agent_action_space(Box(0, 255, (2,), np.uint8)) == unit
    for same in (
        Discrete(3),
        MultiDiscrete((2, 3)),
        MultiBinary(4),
        Box(-np.inf, np.inf, (2,)),
        Box(-np.inf, 1.0, (1,)),
    ):
        assert agent_action_space(same) == same
    view = agent_action_space(NESTED)
    assert isinstance(view, Dict)
    assert view["arm"] == unit
    assert view["grip"] == Discrete(2)
    assert view["legs"] == NESTED["legs"]
    assert Vector(Pendulum(), 2).action_space == Box(-1.0, 1.0, (1,))
    assert Vector(CartPole(), 2).action_space == Discrete(2)


def test_actions_inside_dicts_and_tuples() -> None:
    given = {"arm": jnp.array([-1.0, 0.5]), "grip": jnp.int32(1), "legs": (jnp.array([-9.0]), jnp.array([1, 0, 1]))}
    found = world_action(NESTED, given)
    assert_allclose(found["arm"], [-2.0, 2.5], rtol=0, atol=0)
    assert int(found["grip"]) == 1
    assert float(found["legs"][0][0]) == -9.0
    assert_array_equal(found["legs"][1], [1, 0, 1])
    whole = world_action(Box(0, 255, (2,), np.uint8), jnp.array([1.0, -1.0]))
    assert whole.dtype == jnp.uint8
    assert whole.tolist() == [255, 0]
    with pytest.raises(PolyakError, match="arm"):
        world_action(NESTED, {"arm": given["arm"]})


def test_a_vector_needs_an_environment() -> None:
    with pytest.raises(PolyakError, match="n_envs is 0"):
        Vector(CartPole(), 0)
