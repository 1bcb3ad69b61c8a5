"""Foreign vector environments: exactly the real transitions in every autoreset mode (CT2, CT4, CT31, CT36)."""

import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from polyak.envs import resolve
from polyak.envs.foreign import ForeignVector
from polyak.envs.host import EnvFault, episode_seed
from polyak.errors import EnvError, PolyakError

MODES = list(AutoresetMode)


class Counting(gym.Env):
    """obs = (episode, t, k); environment k's episode e lasts 2 + (e + k) % 4 steps, truncated if odd; reward e + t."""

    def __init__(self, k=0):
        self.observation_space = gs.Box(-1, 1e6, (3,), np.float64)
        self.action_space = gs.Discrete(3, start=1)
        self.episode, self.t, self.k = -1, 0, k

    def observe(self):
        return np.array([self.episode, self.t, self.k], np.float64)

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        over = self.t >= 2 + (self.episode + self.k) % 4
        odd = self.episode % 2 == 1
        return self.observe(), float(self.episode + self.t), over and not odd, over and odd, {"success": over and odd}


class Nested(Counting):
    def __init__(self, k=0):
        Counting.__init__(self, k)
        self.observation_space = gs.Dict({"a": self.observation_space, "b": gs.Discrete(9, start=2)})

    def observe(self):
        return {"a": Counting.observe(self), "b": 2 + self.t}


def first():
    return Counting(0)


def second():
    return Counting(1)


def third():
    return Counting(2)


def sync(mode, **options):
    return SyncVectorEnv([first, second, third], autoreset_mode=mode, **options)


def spawned(mode):
    # Never fork: jax's threads hold locks that a forked child would wait for (CT36).
    return AsyncVectorEnv([first, second, third], autoreset_mode=mode, context="spawn")


def transitions(vector, steps):
    """Drives `steps` steps and checks every transition against the counting environment's rule."""
    obs = vector.reset()
    np.testing.assert_array_equal(obs, [[0, 0, 0], [0, 0, 1], [0, 0, 2]])
    ends = 0
    for _ in range(steps):
        step = vector.step(np.zeros(3, np.int32))
        episode, t, k = obs.T
        np.testing.assert_array_equal(step.next_obs, np.stack([episode, t + 1, k], 1))
        np.testing.assert_array_equal(step.reward, episode + t + 1)
        over = t + 1 == 2 + (episode + k) % 4
        np.testing.assert_array_equal(step.terminated, over & (episode % 2 == 0))
        np.testing.assert_array_equal(step.truncated, over & (episode % 2 == 1))
        np.testing.assert_array_equal(step.obs[over], np.stack([episode + 1, 0 * t, k], 1)[over])
        np.testing.assert_array_equal(step.obs[~over], step.next_obs[~over])
        obs, ends = step.obs, ends + int(over.sum())
    return obs, ends


def check_statistics(vector, obs, ends, steps):
    episodes = vector.episodes()
    assert len(episodes) == ends > 10
    assert sum(e.length for e in episodes) == 3 * steps - int(obs[:, 1].sum())
    for e in episodes:
        assert e.length == 2 + (e.episode + e.env) % 4
        assert e.ret == sum(e.episode + t for t in range(1, e.length + 1))
        assert e.success == e.episode % 2
    assert vector.episodes() == []


@pytest.mark.parametrize("mode", MODES)
def test_sync_vectors_give_exactly_the_real_transitions(mode):
    vector = ForeignVector(sync(mode), 0)
    obs, ends = transitions(vector, 50)
    check_statistics(vector, obs, ends, 50)


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_async_vectors_give_exactly_the_real_transitions(mode):
    vector = ForeignVector(spawned(mode), 0)
    try:
        obs, ends = transitions(vector, 30)
        check_statistics(vector, obs, ends, 30)
    finally:
        vector.close()


@pytest.mark.parametrize("mode", MODES)
def test_nested_observations_keep_their_final_values(mode):
    vector = ForeignVector(SyncVectorEnv([Nested, Nested], autoreset_mode=mode), 0)
    obs = vector.reset()
    for _ in range(12):
        step = vector.step(np.zeros(2, np.int32))
        np.testing.assert_array_equal(step.next_obs["a"][:, 1], obs["a"][:, 1] + 1)
        np.testing.assert_array_equal(step.next_obs["b"], obs["b"] + 1)
        obs = step.obs


@pytest.mark.parametrize("mode", MODES)
def test_nothing_shares_memory_with_a_vector_that_reuses_its_arrays(mode):
    env = sync(mode, copy=False)
    vector = ForeignVector(env, 0)
    obs = vector.reset()
    kept = obs.copy()
    arrays = [obs]
    for _ in range(4):
        arrays += list(vector.step(np.zeros(3, np.int32)))
    assert not any(np.shares_memory(array, env._observations) for array in arrays)
    np.testing.assert_array_equal(obs, kept)


def test_episodes_are_seeded_one_by_one_where_a_mask_is_taken():
    vector = ForeignVector(sync(AutoresetMode.NEXT_STEP), 3, "train")
    transitions(vector, 20)
    assert all(e.seed == episode_seed(3, e.env, e.episode) for e in vector.episodes())
    vector = ForeignVector(sync(AutoresetMode.SAME_STEP), 3, "train")
    transitions(vector, 20)
    assert {e.seed for e in vector.episodes() if e.episode} == {-1}


def test_both_flags_are_terminated_only():
    class Both(Counting):
        def step(self, action):
            return self.observe(), 0.0, True, True, {}

    vector = ForeignVector(SyncVectorEnv([Both], autoreset_mode=AutoresetMode.SAME_STEP), 0)
    vector.reset()
    step = vector.step([0])
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([True], [False])


def test_a_next_step_vector_without_a_mask_is_refused_with_a_way_on():
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    with pytest.raises(PolyakError, match=r"fake transition.*SAME_STEP"):
        ForeignVector(env, 0)


def test_a_vector_that_hides_its_mode_is_refused():
    env = sync(AutoresetMode.SAME_STEP)
    env.metadata = {}
    with pytest.raises(PolyakError, match="does not say how it resets"):
        ForeignVector(env, 0)


class Bad(Counting):
    what = "nan"

    def step(self, action):
        obs, reward, *rest = Counting.step(self, action)
        if self.k == 1 and self.t == 2:
            obs = obs * np.nan if self.what == "nan" else obs
            reward = np.inf if self.what == "reward" else reward
            if self.what == "raise":
                raise ValueError("stuck")
        return (obs, reward, *rest)


@pytest.mark.parametrize(
    ("what", "words"),
    [("nan", "environment 1, .*step 2: observation.* is nan"), ("reward", "environment 1.*inf"), ("raise", "stuck")],
)
def test_faults_are_found_and_named(what, words):
    class Wrong(Bad):
        pass

    Wrong.what = what
    vector = ForeignVector(SyncVectorEnv([lambda: Wrong(0), lambda: Wrong(1)]), 0, name="Odd")
    vector.reset()
    vector.step([0, 0])
    with pytest.raises(EnvFault, match=words):
        vector.step([0, 0])


def test_bad_actions_are_refused_before_they_are_sent():
    vector = ForeignVector(sync(AutoresetMode.NEXT_STEP), 0)
    vector.reset()
    for action in ([0, 3, 0], [0, 0], [0.0, 1.0, 0.0]):
        with pytest.raises(EnvError, match="nothing was sent"):
            vector.step(np.asarray(action))


def test_a_snapshot_begins_the_next_episodes_and_says_so():
    vector = ForeignVector(sync(AutoresetMode.NEXT_STEP), 0, name="three")
    transitions(vector, 7)
    snapshot = vector.snapshot()
    assert snapshot["tier"] == vector.tier == 3
    again = ForeignVector(sync(AutoresetMode.NEXT_STEP), 0, name="three")
    assert again.restore(snapshot).shape == (3, 3)
    assert "dropped" in again.notices[0]
    np.testing.assert_equal(again.episodes(), vector.episodes())
    with pytest.raises(PolyakError, match="seed"):
        ForeignVector(sync(AutoresetMode.NEXT_STEP), 1).restore(snapshot)


def test_resolve_takes_vectors_and_factories_of_them():
    source = resolve(sync(AutoresetMode.SAME_STEP), n_envs=3)
    assert source.n_envs == 3
    assert source.action_space.n == 3
    transitions(source.vector(3, 0), 5)
    assert source.vector(2, 0, "eval").reset().shape == (2, 3)
    with pytest.raises(PolyakError, match="n_envs must be 3, not 5"):
        source.vector(5, 0)
    source = resolve(lambda: sync(AutoresetMode.NEXT_STEP))
    one, two = source.vector(3, 0), source.vector(3, 0, "eval")
    assert one.env is not two.env
    transitions(one, 5)
    transitions(two, 5)


# ---- EnvPool, by a stand-in with its interface: single spaces, reset(ids), auto-reset at the next step


class Pool:
    def __init__(self, task, env_type, num_envs, seed):
        assert (task, env_type) == ("Count", "gymnasium")
        self.envs = [Counting(k) for k in range(num_envs)]
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.over = np.zeros(num_envs, bool)

    def reset(self, env_id=None):
        ids = range(len(self.envs)) if env_id is None else env_id
        self.over[list(ids)] = False
        return np.stack([self.envs[i].reset()[0] for i in ids]), {}

    def step(self, action):
        assert not self.over.any()
        results = [env.step(a) for env, a in zip(self.envs, action, strict=True)]
        obs, reward, terminated, truncated, _ = map(np.asarray, zip(*results, strict=True))
        self.over = terminated | truncated
        return obs, reward.astype(np.float32), terminated, truncated, {"env_id": np.arange(len(self.envs))}

    def close(self):
        pass


def test_envpool_gives_exactly_the_real_transitions(monkeypatch):
    module = types.ModuleType("envpool")
    module.make = Pool
    module.__spec__ = types.SimpleNamespace(name="envpool")
    monkeypatch.setitem(sys.modules, "envpool", module)
    source = resolve("envpool:Count")
    vector = source.vector(3, 0)
    _, ends = transitions(vector, 40)
    assert len(vector.episodes()) == ends > 10
    assert source.evaluates
    vector.close()
