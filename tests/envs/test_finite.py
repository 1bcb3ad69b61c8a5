"""Finite MDPs as compiled worlds: they draw what the model says, and Gymnasium's toy texts are Gymnasium's."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from polyak import mdp
from polyak.envs import resolve
from polyak.envs.finite import FINITE, FiniteWorld, random_walk
from polyak.errors import PolyakError
from polyak.spaces import Discrete

TOYS = [name for name in FINITE if name in gym.registry]


def drawn(world, s, a, n, seed=0):
    """n outcomes of one state and action: (successors, rewards, terminated)."""
    keys = jax.random.split(jax.random.key(seed), n)
    after, _, reward, terminated = jax.jit(jax.vmap(lambda k: world.step(jnp.int32(s), jnp.int32(a), k)))(keys)
    return np.asarray(after), np.asarray(reward), np.asarray(terminated)


@pytest.mark.parametrize("name", TOYS)
def test_deterministic_outcomes_are_those_of_gymnasiums_table(name):
    world, P = resolve(f"jax:{name}").world, gym.make(name).unwrapped.P
    live = ~world.model.terminal & ~world.model.unreachable()
    step = jax.jit(jax.vmap(world.step, in_axes=(0, 0, None)))
    pairs = [(s, a) for s in P for a in P[s] if live[s] and len({o[1:] for o in P[s][a]}) == 1]
    s, a = (jnp.array(column, jnp.int32) for column in zip(*pairs, strict=True)) if pairs else ((), ())
    if not pairs:
        pytest.skip("every move on this ice is a matter of chance; see the next test")
    after, obs, reward, terminated = step(s, a, jax.random.key(0))
    expected = [P[s][a][0] for s, a in pairs]
    assert_array_equal(after, [int(o[1]) for o in expected])
    assert_array_equal(obs, after)
    assert_allclose(reward, [o[2] for o in expected])
    assert_array_equal(terminated, [bool(o[3]) for o in expected])


@pytest.mark.parametrize(("s", "a"), [(0, 2), (14, 2), (9, 1)])
def test_outcomes_come_as_often_as_the_table_says(s, a):
    world, P = resolve("jax:FrozenLake-v1").world, gym.make("FrozenLake-v1").unwrapped.P
    after, reward, terminated = drawn(world, s, a, 30_000)
    wanted: dict[int, float] = {}
    for p, to, r, ends in P[s][a]:
        wanted[to] = wanted.get(to, 0.0) + p
        assert (reward[after == to] == r).all()
        assert (terminated[after == to] == ends).all()
    counts = [(after == to).sum() for to in wanted]
    assert sum(counts) == len(after)
    assert stats.chisquare(counts, np.array(list(wanted.values())) * len(after)).pvalue > 1e-4


def test_impossible_outcomes_are_never_drawn_wherever_they_stand():
    P = np.zeros((3, 1, 3))
    P[0, 0] = [0.0, 1e-3, 1 - 1e-3]
    P[1, 0], P[2, 0] = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    world = FiniteWorld.of(mdp.from_arrays(P, np.zeros((3, 1)), start=[0.3, 0.0, 0.7]))
    after, _, _ = drawn(world, 0, 0, 20_000)
    assert set(after) == {1, 2}
    assert 3 < (after == 1).sum() < 50
    first = np.asarray(jax.vmap(world.reset)(jax.random.split(jax.random.key(1), 20_000))[0])
    assert set(first) == {0, 2}
    assert_allclose((first == 0).mean(), 0.3, atol=0.02)


@pytest.mark.parametrize("name", TOYS)
def test_time_limits_and_starts_are_gymnasiums(name):
    world, env = resolve(f"jax:{name}").world, gym.make(name)
    assert world.max_steps == (env.spec.max_episode_steps or 0)
    assert world.obs_space == Discrete(int(env.observation_space.n))
    assert world.action_space == Discrete(int(env.action_space.n))
    assert_allclose(world.model.start, env.unwrapped.initial_state_distrib)


def test_arguments_reach_the_environment():
    world = resolve("jax:FrozenLake-v1", env_kwargs={"is_slippery": False, "max_steps": 7}).world
    assert world.max_steps == 7
    assert world.up_to.shape[-1] == 1


def test_the_walk_is_the_books():
    world = random_walk()
    model = world.model
    assert_array_equal(np.flatnonzero(model.start), [3])
    assert_array_equal(np.flatnonzero(model.terminal), [0, 6])
    after, reward, terminated = drawn(world, 5, 0, 4000)
    assert set(after) == {4, 6}
    assert_array_equal(reward, (after == 6).astype(np.float32))
    assert_array_equal(terminated, after == 6)
    assert_allclose((after == 6).mean(), 0.5, atol=0.04)


def test_a_model_without_a_start_is_no_world():
    P = np.ones((1, 1, 1))
    model = mdp.from_arrays(P, np.zeros((1, 1)))
    if model.start.any():
        pytest.skip("models have a start by default")
    with pytest.raises(PolyakError, match="start"):
        FiniteWorld.of(model)


def test_an_unknown_world_is_answered_with_the_nearest():
    with pytest.raises(PolyakError, match="FrozenLake-v1"):
        resolve("jax:FrozenLak-v1")
