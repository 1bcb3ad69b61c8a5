"""Running statistics against NumPy in float64 (CT9), and what an agent inside `Normalised` is shown and when."""

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from polyak import DQN, PPO, SAC, Normalised, QLearning
from polyak.core import Counter, Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.normalise import Moments
from polyak.replay import batch, replay_update, ring
from polyak.spaces import Box, Dict, Discrete

# ---------------------------------------------------------------------------------------------------------- statistics

MERGED = jax.jit(lambda m, x: m.merged(x))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 5, 32]), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
    shift=st.sampled_from([0.0, 3.0, -200.0]),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_moments_are_those_of_all_data_however_it_was_split(
    sizes: list[int], seed: int, shift: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    batches = [(shift + scale * rng.normal(size=(n, 3))).astype(np.float32) for n in sizes]
    m = Moments.none((3,))
    for x in batches:
        m = MERGED(m, x)
    x = np.concatenate(batches).astype(np.float64)
    # Means are rounded in float32, 6e-8 of their size a merge; variances, by twice that times size over spread.
    slack = 2e-6 * (abs(shift) + scale)
    assert_allclose(m.mean, x.mean(0), rtol=1e-5, atol=slack)
    assert_allclose(m.var, x.var(0), rtol=1e-4, atol=slack * scale + slack**2)
    assert int(m.seen.low) == len(x)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    """Sum of squares minus square of sums would lose it: mean 10⁴ and deviation 1 in float32."""
    x = (1e4 + np.random.default_rng(0).normal(size=(40, 64, 1))).astype(np.float32)
    m = functools.reduce(MERGED, x, Moments.none((1,)))
    # Values are spaced by 1e-3 and the mean is off by as much: the variance by 2e-3 at most.
    assert_allclose(m.var, x.astype(np.float64).var(axis=(0, 1)), rtol=5e-3)


@pytest.mark.parametrize("count", [2**24 - 3, 2**31 - 3, 2**32 - 3])
def test_moments_go_on_moving_after_counts_that_a_float_cannot_hold(count: int) -> None:
    """CT30: weights stay n/(count + n): a batch of 2²⁰ with mean 1 moves the mean by its share."""
    m = Moments(jnp.zeros(1), jnp.ones(1), Counter.of(count))
    for _ in range(2):
        m = MERGED(m, jnp.ones((2**16, 1)))
    share = 2 * 2**16 / (count + 2 * 2**16)
    assert_allclose(m.mean, [share], rtol=1e-4)
    assert_allclose(m.var, [(1 - share) + share * (1 - share)], rtol=1e-6)
    assert int(m.seen.high) * 2**24 + int(m.seen.low) == count + 2 * 2**16


# ------------------------------------------------------------------------------------------------- what goes in and out


class Seen(NamedTuple):
    """State of an agent that learns nothing and keeps what it was shown."""

    obs: Any
    next_obs: Any
    reward: Any


@dataclass(frozen=True)
class Watcher:
    """An on-policy agent whose action is the observation it saw."""

    space: Any
    rollout_length: int = 4

    on_policy: ClassVar[bool] = True

    def init(self, key: Any, spec: Spec) -> Seen:
        lead = (self.rollout_length, spec.n_envs)
        obs = jax.tree.map(lambda s: jnp.zeros((*lead, *s.shape)), dict(self.space.items))
        return Seen(obs, obs, jnp.zeros(lead))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: Seen, obs: Any, key: Any, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        return obs, memory

    def update(self, state: Seen, rollout: Rollout, key: Any) -> tuple[Seen, dict[str, Any]]:
        steps = rollout.steps
        return Seen(steps.obs, steps.next_obs, steps.reward), {}


SPACE = Dict({"position": Box(-np.inf, np.inf, (3,)), "camera": Box(0, 255, (2, 2, 1), np.uint8), "level": Discrete(9)})
N, T = 5, 4
EPSILON = 1e-8


def observations(rng: Any, lead: tuple[int, ...]) -> Any:
    return {
        "camera": rng.integers(0, 256, (*lead, 2, 2, 1)).astype(np.uint8),
        "level": rng.integers(0, 9, lead).astype(np.int32),
        "position": (np.array([5.0, -300.0, 0.01]) * (1 + 0.3 * rng.normal(size=(*lead, 3)))).astype(np.float32),
    }


def rollout(seed: int) -> Rollout:
    rng = np.random.default_rng(seed)
    reward = (10 + 3 * rng.normal(size=(T, N))).astype(np.float32)
    flags = rng.random((2, T, N)) < 0.2
    steps = Transition(observations(rng, (T, N)), (), reward, observations(rng, (T, N)), *flags)
    return Rollout(jax.tree.map(jnp.asarray, steps), ())


@functools.cache
def watching(**fields: Any) -> tuple[Any, Any, Any]:
    agent = Normalised(Watcher(SPACE), **fields)
    state = jax.jit(lambda key: agent.init(key, Spec(SPACE, Discrete(2), N, 10**6)))(jax.random.key(0))
    act = jax.jit(lambda s, obs: agent.act(s, obs, jax.random.key(1), (), explore=False)[0])
    return state, act, jax.jit(lambda s, r: agent.update(s, r, jax.random.key(2))[0])


def positions(rollouts: list[Rollout]) -> Any:
    return np.concatenate([np.asarray(r.steps.obs["position"], np.float64).reshape(-1, 3) for r in rollouts])


def test_observations_are_normalised_by_what_was_seen_before_and_enter_the_statistics_afterwards() -> None:
    """So the old policy, recomputed in `update`, is the one that acted; `next_obs` goes through the same (B17)."""
    state, act, update = watching()
    rollouts = [rollout(i) for i in range(3)]
    for i, r in enumerate(rollouts):
        mean, var = (0.0, 1.0) if i == 0 else (positions(rollouts[:i]).mean(0), positions(rollouts[:i]).var(0))
        acted = jnp.stack([act(state, jax.tree.map(lambda x, t=t: x[t], r.steps.obs))["position"] for t in range(T)])
        state = update(state, r)
        for name, seen in (("obs", state.agent.obs), ("next_obs", state.agent.next_obs)):
            raw = np.asarray(getattr(r.steps, name)["position"], np.float64)
            want = np.clip((raw - mean) / np.sqrt(var + EPSILON), -10, 10)
            assert_allclose(seen["position"], want, rtol=2e-4, atol=2e-4)
        assert_allclose(acted, state.agent.obs["position"], rtol=1e-6, atol=1e-6)


def test_images_and_integers_pass_unchanged_and_have_no_statistics() -> None:
    state, act, update = watching()
    for i in range(2):
        r = rollout(i)
        state = update(state, r)
        for name in ("camera", "level"):
            assert state.agent.obs[name].dtype == r.steps.obs[name].dtype
            assert_array_equal(state.agent.obs[name], r.steps.obs[name])
            assert_array_equal(state.agent.next_obs[name], r.steps.next_obs[name])
    first = jax.tree.map(lambda x: x[0], rollout(5).steps.obs)
    assert_array_equal(act(state, first)["camera"], first["camera"])
    assert len(jax.tree.leaves(state.obs)) == 4  # mean, variance and two words of the count, of `position` alone


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return() -> None:
    """A naive reference: one return per world, discounted, forgotten at every end; its deviation so far divides."""
    state, _, update = watching(gamma=0.9, clip_reward=1.5)
    G, returns = np.zeros(N), []
    for i in range(4):
        r = rollout(i)
        end = np.asarray(r.steps.terminated | r.steps.truncated)
        raw = np.asarray(r.steps.reward, np.float64)
        for t in range(T):
            for n in range(N):
                G[n] = 0.9 * G[n] + raw[t, n]
                returns.append(G[n])
                if end[t, n]:
                    G[n] = 0.0
        state = update(state, r)
        want = np.clip(raw / np.sqrt(np.var(returns) + EPSILON), -1.5, 1.5)
        assert_allclose(state.agent.reward, want, rtol=1e-4)
    assert (np.abs(state.agent.reward) < 1.5).any()


def test_each_half_can_be_left_out_and_bounds_are_kept() -> None:
    r = rollout(0)
    state, act, update = watching(obs=False)
    after = update(update(state, r), r)
    assert_array_equal(after.agent.obs["position"], r.steps.obs["position"])
    assert_array_equal(act(after, jax.tree.map(lambda x: x[0], r.steps.obs))["position"], r.steps.obs["position"][0])
    assert not np.array_equal(after.agent.reward, r.steps.reward)
    state, _, update = watching(reward=False, clip_obs=0.5)
    after = update(update(state, r), r)
    assert_array_equal(after.agent.reward, r.steps.reward)
    assert np.abs(after.agent.obs["position"]).max() == 0.5


def test_acting_leaves_the_statistics_alone() -> None:
    """Evaluation uses them frozen: `act` returns no state, and the same observation gives the same bits for ever."""
    state, act, update = watching()
    state = update(state, rollout(0))
    before = jax.tree.map(np.array, state)
    first = observations(np.random.default_rng(9), (N,))
    one = act(state, first)
    for i in range(5):
        act(state, observations(np.random.default_rng(i), (N,)))
    assert_array_equal(act(state, first)["position"], one["position"])
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(state)))


def test_the_first_ratio_of_ppo_is_one() -> None:
    """CT10: before the first gradient step the policy is the old one, also when the statistics have just moved."""
    agent = Normalised(PPO(rollout_length=8, batch_size=24, epochs=1, network=(16,), lr=0.0))
    space = Box(-np.inf, np.inf, (4,))
    state = jax.jit(lambda key: agent.init(key, Spec(space, Discrete(3), 3, 1000)))(jax.random.key(0))
    update = jax.jit(agent.update)
    for i in range(3):
        rng = np.random.default_rng(i)
        obs, successor = 100 + 30 * i + 5 * rng.normal(size=(2, 8, 3, 4))
        steps = Transition(
            obs, rng.integers(0, 3, (8, 3)), rng.normal(size=(8, 3)), successor, *np.zeros((2, 8, 3), bool)
        )
        arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None), steps)
        state, metrics = update(state, Rollout(arrays, ()), jax.random.key(1 + i))
        assert abs(float(metrics["train/approx_kl"])) < 1e-8
        assert float(metrics["train/clip_fraction"]) == 0.0


class Replaying(NamedTuple):
    """State of an agent that keeps the last batch that it was shown."""

    shown: Transition
    replay: Any
    steps: Counter


@dataclass(frozen=True)
class Replayer:
    """An agent with a replay, whose action is the position that it saw."""

    rollout_length: int = T
    updates_per_step: float = 1 / (T * N)
    batch_size: int = 512
    learning_starts: int = 0

    on_policy: ClassVar[bool] = False

    def init(self, key: Any, spec: Spec) -> Replaying:
        replay = ring(spec, 10_000, T)
        return Replaying(batch(replay, jnp.zeros(self.batch_size, jnp.int32)), replay, Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: Replaying, obs: Any, key: Any, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        return obs["position"], memory

    def update(self, state: Replaying, rollout: Rollout, key: Any) -> tuple[Replaying, dict[str, Any]]:
        return replay_update(self, state, rollout, key)

    def learn(self, state: Replaying, batch: Transition, key: Any) -> tuple[Replaying, dict[str, Any]]:
        return state._replace(shown=batch), {"train/loss": jnp.float32(0)}


@pytest.mark.parametrize("scales_rewards", [True, False])
def test_a_replay_keeps_what_came_and_shows_it_by_the_newest_statistics(scales_rewards: bool) -> None:
    agent = Normalised(Replayer(), gamma=0.9, reward=scales_rewards, clip_obs=2.0)
    spec = Spec(SPACE, Box(-np.inf, np.inf, (3,)), N, 10**6)
    state = jax.jit(lambda key: agent.init(key, spec))(jax.random.key(0))
    update = jax.jit(agent.update)
    rollouts = []
    for i in range(3):
        r = rollout(i)
        rollouts.append(r)
        action = jnp.arange(i * T * N, (i + 1) * T * N, dtype=jnp.float32).reshape(T, N, 1) * jnp.ones((1, 1, 3))
        kinds = [x.dtype for x in jax.tree.leaves(state)]
        state, _ = update(state, Rollout(r.steps._replace(action=action), ()), jax.random.key(i))
        assert kinds == [x.dtype for x in jax.tree.leaves(state)]
    x, shown = positions(rollouts), jax.device_get(state.agent.shown)
    drawn = shown.action[:, 0].astype(int)  # the number of each transition
    assert len(set(drawn)) > 30
    for name in ("obs", "next_obs"):
        raw = np.concatenate([np.asarray(getattr(r.steps, name)["position"]).reshape(-1, 3) for r in rollouts])
        want = np.clip((raw.astype(np.float64) - x.mean(0)) / np.sqrt(x.var(0) + EPSILON), -2, 2)
        assert_allclose(getattr(shown, name)["position"], want[drawn], rtol=2e-4, atol=2e-4)
        assert_array_equal(getattr(state.agent.replay.data, name)["position"].reshape(-1, 3)[: len(raw)], raw)
    reward = np.concatenate([np.asarray(r.steps.reward).ravel() for r in rollouts])
    assert_array_equal(state.agent.replay.data.reward.ravel()[: len(reward)], reward)
    scale = np.sqrt(float(state.returns.var) + EPSILON) if scales_rewards else 1.0
    assert_allclose(
        shown.reward, np.clip(reward / scale, -10, 10)[drawn] if scales_rewards else reward[drawn], rtol=1e-5
    )
    acted = agent.act(state, rollouts[0].steps.obs, jax.random.key(0), (), explore=False)[0]
    first = np.asarray(rollouts[0].steps.obs["position"], np.float64)
    assert_allclose(acted, np.clip((first - x.mean(0)) / np.sqrt(x.var(0) + EPSILON), -2, 2), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("agent", [DQN(), SAC()], ids=lambda a: type(a).__name__)
def test_agents_with_a_replay_are_taken(agent: Any) -> None:
    action = Discrete(2) if isinstance(agent, DQN) else Box(-1, 1, (2,))
    small = replace(agent, network=(8,), batch_size=4, learning_starts=0, rollout_length=4, buffer_size=100)
    wrapped = Normalised(small)
    spec = Spec(Box(-np.inf, np.inf, (3,)), action, 1, 100)
    state = jax.jit(lambda key: wrapped.init(key, spec))(jax.random.key(0))
    acts = jnp.zeros((4, 1), jnp.int32) if isinstance(agent, DQN) else jnp.zeros((4, 1, 2))
    obs, flags = jax.random.normal(jax.random.key(1), (2, 4, 1, 3)), jnp.zeros((4, 1), bool)
    steps = Transition(obs[0], acts, jnp.ones((4, 1)), obs[1], flags, flags)
    after, metrics = jax.jit(wrapped.update)(state, Rollout(steps, ()), jax.random.key(2))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(np.isfinite(x) for x in metrics.values())


def test_tables_are_refused() -> None:
    with pytest.raises(PolyakError, match=r"Normalised takes agents with a network.*QLearning is neither"):
        Normalised(QLearning()).init(jax.random.key(0), Spec(Discrete(3), Discrete(2), 1, 100))


def test_the_rollout_length_is_the_one_inside() -> None:
    assert Normalised(PPO(rollout_length=77)).rollout_length == 77
