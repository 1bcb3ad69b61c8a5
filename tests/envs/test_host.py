"""The host vector: seeds, copies, translation, statistics, snapshots and tiers (CT4, CT18, CT31, CT34, CT37)."""

import json
import subprocess
import sys
from hashlib import blake2b

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

from polyak import spaces
from polyak.envs import resolve
from polyak.envs.check import check_env
from polyak.envs.gymspaces import random_actions
from polyak.envs.host import EnvFault, HostVector, Tier, episode_seed, prove
from polyak.errors import EnvError, PolyakError

PROVED = Tier(2)


class Counting(gym.Env):
    """obs = (episode, t); episode e lasts 3 + e % 4 steps and ends truncated when e is odd; reward 10 e + t."""

    def __init__(self, obs_space=None, action_space=None):
        self.observation_space = gs.Box(-1, 1e6, (2,), np.float64) if obs_space is None else obs_space
        self.action_space = gs.Discrete(2) if action_space is None else action_space
        self.episode, self.t, self.received = -1, 0, []

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.episode, self.t], np.float64)

    def step(self, action):
        self.received.append(action)
        self.t += 1
        over = self.t >= 3 + self.episode % 4
        odd = self.episode % 2 == 1
        return self.observe(), 10.0 * self.episode + self.t, over and not odd, over and odd, {}


def cartpole():
    return gym.make("CartPole-v1", disable_env_checker=True)


def host(make, n=1, seed=0, **options):
    return HostVector(make, n, seed, **{"tier": PROVED, **options})


def drive(vector, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [vector.step(random_actions(vector.action_space, vector.n_envs, rng)) for _ in range(steps)]


# ---- seeds


def test_episode_seeds_are_the_documented_hash_and_streams_are_disjoint():
    expected = int.from_bytes(blake2b(b"7/2/5", digest_size=4).digest(), "little")
    assert episode_seed(7, 2, 5) == expected
    assert episode_seed(7, 2, 5, "eval") == int.from_bytes(blake2b(b"7/eval/2/5", digest_size=4).digest(), "little")
    every = [episode_seed(s, e, k, m) for s in range(3) for e in range(8) for k in range(20) for m in ("train", "eval")]
    assert len(set(every)) == len(every)


def test_environments_start_differently_and_the_same_seed_starts_equally():
    a, b, c = host(cartpole, 5).reset(), host(cartpole, 5).reset(), host(cartpole, 5, seed=1).reset()
    assert len(np.unique(a, axis=0)) == 5
    np.testing.assert_array_equal(a, b)
    assert not np.isclose(a, c).all(axis=1).any()


def test_each_episode_is_reset_with_its_own_seed():
    seen = []

    class Seeded(Counting):
        def reset(self, *, seed=None, options=None):
            seen.append(seed)
            return Counting.reset(self)

    vector = host(Seeded, 2, seed=3)
    vector.reset()
    drive(vector, 8)
    assert seen[:2] == [episode_seed(3, 0, 0), episode_seed(3, 1, 0)]
    assert seen[2:4] == [episode_seed(3, 0, 1), episode_seed(3, 1, 1)]


def test_reset_begins_again_at_episode_zero():
    vector = host(cartpole, 2, stream="eval")
    first = vector.reset()
    drive(vector, 60)
    np.testing.assert_array_equal(first, vector.reset())
    assert vector.episodes() == []


# ---- transitions and statistics


def test_transitions_are_exactly_the_real_ones():
    vector = host(Counting, 3)
    obs = vector.reset()
    lengths, ends = 0, 0
    for step in drive(vector, 60):
        np.testing.assert_array_equal(step.next_obs[:, 0], obs[:, 0])
        np.testing.assert_array_equal(step.next_obs[:, 1], obs[:, 1] + 1)
        np.testing.assert_array_equal(step.reward, 10 * obs[:, 0] + obs[:, 1] + 1)
        over = step.terminated | step.truncated
        np.testing.assert_array_equal(step.next_obs[over, 1], 3 + obs[over, 0] % 4)
        np.testing.assert_array_equal(step.truncated[over], obs[over, 0] % 2 == 1)
        np.testing.assert_array_equal(step.obs[over], np.stack([obs[over, 0] + 1, 0 * obs[over, 0]], 1))
        np.testing.assert_array_equal(step.obs[~over], step.next_obs[~over])
        obs, ends = step.obs, ends + int(over.sum())
    episodes = vector.episodes()
    lengths = sum(e.length for e in episodes)
    assert len(episodes) == ends > 20
    assert lengths == 3 * 60 - int(obs[:, 1].sum())


def test_returns_and_lengths_equal_those_of_the_bare_environment():
    vector = host(lambda: gym.make("Pendulum-v1", max_episode_steps=17), 2, seed=4)
    vector.reset()
    actions = [np.random.default_rng(k).uniform(-1, 1, (2, 1)).astype(np.float32) for k in range(60)]
    for action in actions:
        vector.step(action)
    found = {(e.env, e.episode): e for e in vector.episodes()}
    assert sorted(found) == [(i, k) for i in range(2) for k in range(3)]
    for (i, k), episode in found.items():
        env = gym.make("Pendulum-v1")
        env.reset(seed=episode_seed(4, i, k))
        ret = 0.0
        for action in actions[17 * k : 17 * (k + 1)]:
            ret += float(env.step(2 * action[i])[1])
        assert episode.length == 17
        assert episode.ret == ret
        assert episode.seed == episode_seed(4, i, k)
    assert vector.episodes() == []


def test_success_is_read_from_the_last_info():
    class Succeeding(Counting):
        def step(self, action):
            return (*Counting.step(self, action)[:4], {"is_success": self.episode % 2 == 0})

    vector = host(Succeeding)
    vector.reset()
    drive(vector, 12)
    assert [e.success for e in vector.episodes()][:2] == [1.0, 0.0]


def test_terminated_wins_over_truncated():
    class Both(Counting):
        def step(self, action):
            return np.zeros(2), 0.0, True, True, {}

    vector = host(Both)
    vector.reset()
    step = vector.step([0])
    assert step.terminated.tolist() == [True]
    assert step.truncated.tolist() == [False]


def test_an_environment_may_end_the_learners_episode_and_keep_its_own():
    class Lives(Counting):
        def step(self, action):
            obs, _, *rest = Counting.step(self, action)
            signal = {"polyak": {"reward": 1.0, "terminated": True, "obs": np.full(2, 9.0)}} if self.t == 2 else {}
            return obs, 5.0, rest[0], rest[1], signal

    vector = host(Lives, 1, seed=1)
    vector.reset()
    one, two, three = drive(vector, 3)
    assert [float(s.reward[0]) for s in (one, two, three)] == [5.0, 1.0, 5.0]
    assert two.terminated[0]
    np.testing.assert_array_equal(two.next_obs, [[0, 2]])
    np.testing.assert_array_equal(two.obs, [[9, 9]])
    (episode,) = vector.episodes()
    assert (episode.ret, episode.length) == (15.0, 3)


# ---- copies


class Careless(Counting):
    """Returns one array again and again, and writes into its action."""

    def __init__(self):
        Counting.__init__(self, action_space=gs.Box(-1, 1, (2,), np.float32))
        self.array = np.zeros(2)

    def observe(self):
        self.array[:] = self.episode, self.t
        return self.array

    def step(self, action):
        result = Counting.step(self, action.copy())
        action[:] = 99.0
        return result


def test_nothing_that_is_returned_shares_memory_with_the_environment():
    vector = host(Careless, 2)
    env = vector._envs[0]
    first = vector.reset()
    kept = first.copy()
    mine = np.zeros((2, 2), np.float32)
    one, two = vector.step(mine), vector.step(mine)
    for array in (first, *one, *two):
        assert not np.shares_memory(array, env.array)
        for leaf in vector._obs:
            assert not np.shares_memory(array, leaf.raw)
    assert not np.shares_memory(one.obs, one.next_obs)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(mine, 0)
    np.testing.assert_array_equal(one.obs[:, 1], 1)
    assert vector.snapshot()["actions/action"].max() == 0


# ---- spaces


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (gs.Box(-1, 1, (3,), np.float64), np.full(3, 0.25), np.full((1, 3), 0.25, np.float32)),
        (gs.Box(-1, 1, (), np.float16), np.float16(0.5), np.array([0.5], np.float32)),
        (gs.Box(0, 255, (4, 4, 3), np.uint8), np.full((4, 4, 3), 7, np.uint8), np.full((1, 4, 4, 3), 7, np.uint8)),
        (gs.Box(-128, 127, (2,), np.int8), np.array([-128, 127], np.int8), np.array([[-128, 127]], np.int32)),
        (gs.Box(-9, 9, (2,), np.int64), np.array([-9, 9]), np.array([[-9, 9]], np.float32)),
        (gs.Box(-np.inf, np.inf, (1,), np.float32), np.ones(1, np.float32), np.ones((1, 1), np.float32)),
        (gs.Discrete(5, start=3), np.int64(7), np.array([4], np.int32)),
        (gs.Discrete(5, start=3), 3, np.array([0], np.int32)),
        (gs.MultiDiscrete([3, 4], start=[1, 2]), np.array([3, 5]), np.array([[2, 3]], np.int32)),
        (gs.MultiDiscrete([[2, 3], [4, 5]]), np.array([[1, 2], [3, 4]]), np.array([[1, 2, 3, 4]], np.int32)),
        (gs.MultiBinary(3), np.array([1, 0, 1], np.int8), np.array([[1, 0, 1]], np.int32)),
    ],
)
def test_observations_keep_their_values_in_the_agents_dtype(space, value, expected):
    class Constant(Counting):
        def observe(self):
            return value

    vector = host(lambda: Constant(space))
    obs = vector.reset()
    step = vector.step([1])
    for array in (obs, step.obs, step.next_obs):
        np.testing.assert_array_equal(array, expected, strict=True)
    assert vector.obs_space.dtype == expected.dtype
    assert vector.obs_space.shape == expected.shape[1:]


def test_nested_observations_and_actions_keep_their_structure():
    obs_space = gs.Dict(
        {
            "sight": gs.Box(0, 255, (2, 2, 1), np.uint8),
            "body": gs.Tuple((gs.Discrete(3, start=1), gs.Box(-1, 1, (2,), np.float64))),
        }
    )
    action_space = gs.Dict({"push": gs.Box(2.0, 6.0, (1,), np.float64), "jump": gs.Tuple((gs.Discrete(2, start=5),))})

    class Nested(Counting):
        def observe(self):
            return {"sight": np.full((2, 2, 1), self.t, np.uint8), "body": (2, np.array([0.5, -0.5]))}

    vector = host(lambda: Nested(obs_space, action_space), 2)
    obs = vector.reset()
    assert sorted(obs) == ["body", "sight"]
    np.testing.assert_array_equal(obs["body"][0], np.array([1, 1], np.int32), strict=True)
    assert obs["body"][1].dtype == np.float32
    assert isinstance(vector.action_space, spaces.Dict)
    step = vector.step({"push": np.array([[-1.0], [1.0]]), "jump": (np.array([0, 1]),)})
    assert step.obs["sight"].max() == 1
    sent = [env.received[0] for env in vector._envs]
    assert [s["push"].item() for s in sent] == [2.0, 6.0]
    assert sent[0]["push"].dtype == np.float64
    assert [int(s["jump"][0]) for s in sent] == [5, 6]
    snapshot = vector.snapshot()
    again = host(lambda: Nested(obs_space, action_space), 2)
    np.testing.assert_array_equal(again.restore(snapshot)["sight"], step.obs["sight"])


@pytest.mark.parametrize(
    ("space", "agent", "given", "received"),
    [
        (gs.Box(2, 7, (1,), np.float32), spaces.Box(-1, 1, (1,)), [[-1.0]], [2.0]),
        (gs.Box(2, 7, (1,), np.float32), spaces.Box(-1, 1, (1,)), [[1.0]], [7.0]),
        (gs.Box(2, 7, (1,), np.float32), spaces.Box(-1, 1, (1,)), [[0.0]], [4.5]),
        (gs.Box(2, 7, (1,), np.float64), spaces.Box(-1, 1, (1,)), [[3.0]], [7.0]),
        (gs.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2,)), [[-5.0, 0.25]], [-1.0, 0.25]),
        (gs.Box(-np.inf, np.inf, (1,), np.float32), spaces.Box(-np.inf, np.inf, (1,)), [[30.0]], [30.0]),
        (gs.Box(0, np.inf, (1,), np.float32), spaces.Box(0, np.inf, (1,)), [[-3.0]], [0.0]),
        (gs.Discrete(3, start=-1), spaces.Discrete(3), [0], -1),
        (gs.MultiDiscrete([2, 3], start=[4, 5]), spaces.MultiDiscrete((2, 3)), [[1, 2]], [5, 7]),
        (gs.MultiDiscrete([[2, 3]]), spaces.MultiDiscrete((2, 3)), [[1, 2]], [[1, 2]]),
        (gs.MultiBinary(2), spaces.MultiBinary(2), [[1, 0]], [1, 0]),
    ],
)
def test_actions_arrive_in_the_environments_own_terms(space, agent, given, received):
    vector = host(lambda: Counting(action_space=space))
    vector.reset()
    given = np.asarray(given, np.float32 if isinstance(agent, spaces.Box) else np.int32)
    vector.step(given)
    (sent,) = vector._envs[0].received
    assert vector.action_space == agent
    np.testing.assert_array_equal(sent, received)
    assert np.asarray(sent).dtype == space.dtype
    assert space.contains(sent)


@pytest.mark.parametrize(
    ("space", "action", "words"),
    [
        (gs.Discrete(2), np.array([0, 2, 1]), "environment 1 is 2"),
        (gs.Discrete(2), np.array([0, -1, 1]), "environment 1 is -1"),
        (gs.Discrete(2), np.array([0, 1]), "shape (2,)"),
        (gs.Discrete(2), np.array([0.0, 1.0, 0.0]), "integers"),
        (gs.Box(-1, 1, (2,)), np.array([[0, 0], [0, np.nan], [0, 0]], np.float32), "environment 1 is nan"),
        (gs.Box(-1, 1, (2,)), np.full((3, 2), np.inf, np.float32), "environment 0 is inf"),
        (gs.Box(-1, 1, (2,)), np.zeros((3, 1), np.float32), "shape (3, 1)"),
        (gs.MultiDiscrete([2, 3]), np.array([[0, 0], [0, 0], [2, 0]]), "environment 2 is 2"),
        (gs.Dict({"a": gs.Discrete(2)}), np.zeros(3, np.int32), "nested as Dict(a: Discrete(2))"),
    ],
)
def test_bad_actions_are_refused_before_anything_is_sent(space, action, words):
    vector = host(lambda: Counting(action_space=space), 3, seed=8)
    vector.reset()
    with pytest.raises(EnvError) as caught:
        vector.step(action)
    assert words in str(caught.value)
    assert "seed 8" in str(caught.value)
    assert all(env.received == [] for env in vector._envs)


def test_unsupported_spaces_are_refused_with_what_is_supported():
    text = gs.Dict({"a": gs.Box(-1, 1, (1,)), "b": gs.Text(5)})
    with pytest.raises(PolyakError, match=r"Text space \(at b\).*Discrete, Box"):
        host(lambda: Counting(text))
    with pytest.raises(PolyakError, match="Sequence space"):
        host(lambda: Counting(gs.Sequence(gs.Discrete(2))))


# ---- snapshots


@pytest.mark.parametrize(
    ("id", "n"),
    [("CartPole-v1", 3), ("Pendulum-v1", 2), ("FrozenLake-v1", 3), ("Blackjack-v1", 2), ("HalfCheetah-v5", 1)],
)
@pytest.mark.parametrize("cut", [0, 1, 37, 211])
def test_a_restored_vector_continues_bit_for_bit(id, n, cut):
    def make():
        return gym.make(id, disable_env_checker=True)

    through = host(make, n, seed=5)
    through.reset()
    drive(through, cut)
    snapshot = through.snapshot()
    used = host(make, n, seed=5)
    used.reset()
    drive(used, 50, seed=9)
    fresh = host(make, n, seed=5)
    for vector in (fresh, used):
        vector.restore(snapshot)
        assert vector.digest() == [row.tobytes().hex() for row in snapshot["digest"]]
    following = drive(through, 90, seed=2)
    episodes = through.episodes()
    for vector in (fresh, used):
        for a, b in zip(following, drive(vector, 90, seed=2), strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
        assert vector.digest() == through.digest()
        np.testing.assert_equal(vector.episodes(), episodes)


def test_a_snapshot_holds_only_scalars_and_numeric_arrays():
    vector = host(cartpole, 2)
    vector.reset()
    drive(vector, 40)
    snapshot = vector.snapshot()
    json.dumps({key: value for key, value in snapshot.items() if not isinstance(value, np.ndarray)})
    assert all(a.dtype.kind in "iuf" for a in snapshot.values() if isinstance(a, np.ndarray))
    assert len(snapshot["actions/action"]) == snapshot["length"].sum()


def test_the_log_keeps_only_what_episodes_in_flight_need():
    vector = host(cartpole, 2)
    vector.reset()
    drive(vector, 3000)
    assert len(vector._logs[0]) <= 256


def test_a_replay_that_goes_differently_names_environment_and_step():
    vector = host(cartpole, 3)
    vector.reset()
    drive(vector, 7)
    snapshot = vector.snapshot()
    snapshot["digest"][1, 0] ^= 1
    with pytest.raises(EnvFault, match=r"environment 1.*digest.*replay") as caught:
        host(cartpole, 3).restore(snapshot)
    assert caught.value.repro["index"] == 1
    assert f"step {int(snapshot['length'][1])}:" in str(caught.value)


@pytest.mark.parametrize(("n", "seed", "stream"), [(2, 0, "train"), (3, 1, "train"), (3, 0, "eval")])
def test_a_snapshot_of_another_vector_is_refused(n, seed, stream):
    vector = host(cartpole, 3)
    vector.reset()
    with pytest.raises(PolyakError, match="the snapshot of"):
        host(cartpole, n, seed=seed, stream=stream).restore(vector.snapshot())


# ---- tiers


class KeepsItsEpisodeNumber(Counting):
    """Not pure: reset does not set everything back."""


class Pure(Counting):
    def reset(self, *, seed=None, options=None):
        self.episode, self.t = seed % 7, 0
        return self.observe(), {}


class Unseeded(Counting):
    def observe(self):
        return np.random.default_rng().random(2)


class Shared(Pure):
    total = 0

    def step(self, action):
        Shared.total += 1
        obs, reward, *rest = Pure.step(self, action)
        return (obs, reward + Shared.total, *rest)


def test_tiers_are_proved_and_tier_3_names_the_first_difference():
    assert prove(cartpole).tier == Tier(2)
    assert prove(Pure).tier == Tier(2)
    assert "env 0, first difference at step 0, field observation" in prove(Unseeded).tier.reason
    assert "env 0, first difference at step 1, field reward" in prove(Shared).tier.reason
    assert "after other episodes" in prove(KeepsItsEpisodeNumber).tier.reason
    assert prove(KeepsItsEpisodeNumber).tier.number == 3


def test_a_difference_between_fresh_environments_is_found():
    made = []

    class Numbered(Pure):
        def __init__(self):
            Pure.__init__(self)
            made.append(self)
            self.number = len(made)

        def step(self, action):
            obs, reward, *rest = Pure.step(self, action)
            return (obs, reward + self.number, *rest)

    assert "step 1, field reward (in a fresh environment)" in prove(Numbered).tier.reason


def test_tier_3_drops_the_episodes_in_flight_and_says_so():
    vector = HostVector(Unseeded, 2, 0, name="noise")
    assert vector.tier == 3
    vector.reset()
    drive(vector, 5)
    snapshot = vector.snapshot()
    finished = vector.episodes()
    again = HostVector(Unseeded, 2, 0, name="noise")
    assert again.restore(snapshot).shape == (2, 2)
    assert "2 episodes in flight" in again.notices[0]
    assert "tier 3" in again.notices[0]
    np.testing.assert_equal(again.episodes(), finished)
    assert again.snapshot()["episode"].tolist() == (snapshot["episode"] + 1).tolist()
    drive(again, 3)


def test_mujoco_resetting_itself_is_a_fault():
    vector = host(lambda: gym.make("HalfCheetah-v5", disable_env_checker=True), 2, name="cheetah")
    vector.reset()
    drive(vector, 3)
    vector._envs[1].unwrapped.data.qvel[0] = 1e12
    with pytest.raises(EnvFault, match=r"cheetah: environment 1, .*step 4: .*BADQVEL"):
        drive(vector, 1)


# ---- sources


def test_importing_the_package_imports_neither_jax_nor_gymnasium():
    code = "import sys, polyak.envs; sys.exit('jax' in sys.modules or 'gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_id_an_instance_and_a_factory_give_the_same_episodes():
    sources = [resolve("CartPole-v1"), resolve(cartpole()), resolve(cartpole), resolve(gym.make("CartPole-v1"))]
    starts = []
    for source in sources:
        assert source.kind == "host"
        assert source.obs_space == sources[0].obs_space
        vector = source.vector(1, 0)
        vector.reset()
        drive(vector, 30)
        starts.append(vector.digest())
        assert vector.tier == 2
        evaluation = source.vector(2, 0, "eval")
        assert evaluation.reset().shape == (2, 4)
        evaluation.close()
    assert all(digest == starts[0] for digest in starts)


def test_env_kwargs_reach_the_environment():
    assert resolve("CartPole-v1", env_kwargs={"max_episode_steps": 3}).vector(1, 0)._envs[0].spec.max_episode_steps == 3
    with pytest.raises(PolyakError, match=r"cannot be made with .*colour"):
        resolve("CartPole-v1", env_kwargs={"colour": 1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CartPol-v1", ["CartPole-v1", "--allow-import PKG"]),
        ("CartPole-v7", ["did you mean", "--allow-import PKG"]),
        ("os:CartPole-v1", ["--allow-import os", "never imports"]),
        ("jax:CartPoole-v1", ["did you mean 'CartPole-v1'"]),
        ("ale:Pongg", ["did you mean 'pong'"]),
        ("gymnax:Foo", ["not part of this version"]),
        (3, ["int is not an environment"]),
    ],
)
def test_what_cannot_be_resolved_is_one_sentence_with_a_way_on(name, words):
    with pytest.raises(PolyakError) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("name", "extra"), [("ale:Pong", "atari"), ("ALE/Pong-v5", "atari"), ("envpool:X", "envpool")])
def test_a_missing_extra_is_named(monkeypatch, name, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(PolyakError, match=rf'pip install "polyak\[{extra}\]"'):
        resolve(name)


@pytest.mark.parametrize(("text", "extra"), [("Box2D is not installed", "box2d"), ("no module named mujoco", "mujoco")])
def test_a_package_that_the_environment_misses_is_named(monkeypatch, text, extra):
    def missing(*args, **kwargs):
        raise gym.error.DependencyNotInstalled(text)

    monkeypatch.setattr(gym, "make", missing)
    with pytest.raises(PolyakError, match=rf'pip install "polyak\[{extra}\]"'):
        resolve("CartPole-v1")


def test_allow_import_registers_only_what_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "my_worlds.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('MyPole-v0', entry_point=CartPoleEnv, max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PolyakError, match="--allow-import PKG"):
        resolve("MyPole-v0")
    assert "my_worlds" not in sys.modules
    source = resolve("MyPole-v0", allow_import=["my_worlds"])
    assert source.vector(2, 0).reset().shape == (2, 4)
    with pytest.raises(PolyakError, match=r"--allow-import no_such_thing: .*installed"):
        resolve("CartPole-v1", allow_import=["no_such_thing"])
    with pytest.raises(PolyakError, match="name of a package"):
        resolve("CartPole-v1", allow_import=["../evil"])


def test_what_exists_once_is_refused_twice():
    env = Counting()
    for given in (env, lambda: env):
        source = resolve(given)
        assert not source.evaluates
        with pytest.raises(PolyakError, match=r"n_envs must be 1, not 2.*factory"):
            source.vector(2, 0)
        with pytest.raises(PolyakError, match="evaluating it would disturb"):
            source.vector(1, 0, "eval")
        assert source.vector(1, 0).reset().shape == (1, 2)
    with pytest.raises(PolyakError, match="returned the same environment twice"):
        host(lambda: env, 2)
    with pytest.raises(PolyakError, match="n_envs must be 1"):
        resolve(env, n_envs=4)


def test_a_users_instance_is_not_closed():
    class Closing(Counting):
        closed = False

        def close(self):
            self.closed = True

    env = Closing()
    resolve(env).vector(1, 0).close()
    assert not env.closed
    vector = resolve(Closing).vector(1, 0)
    vector.close()
    assert vector._envs[0].closed


def test_a_compiled_world_is_resolved_by_name_and_by_instance():
    source = resolve("jax:CartPole-v1")
    assert (source.kind, source.frames) == ("jax", 0)
    assert resolve(source.world).world == source.world
    assert resolve("jax:Pendulum-v1").action_space == spaces.Box(-1, 1, (1,))
    with pytest.raises(PolyakError, match="nonsense"):
        resolve("jax:CartPole-v1", env_kwargs={"nonsense": 1.0})


def test_a_rendering_environment_gives_frames():
    vector = resolve(lambda: Rendering()).video(0)
    vector.reset()
    assert vector.render().shape == (8, 8, 3)
    assert resolve(Counting).video(0) is None


class Rendering(Counting):
    render_mode = "rgb_array"

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


# ---- check_env


def test_check_env_reports_what_it_found():
    report = check_env("CartPole-v1", 200)
    assert report.ok
    assert report.tier == 2
    assert report.steps_per_s > 0
    assert all(word in str(report) for word in ("CartPole-v1", "Box(4,)", "Discrete(2)", "replay", "steps/s"))


def test_check_env_notes_habits_and_fails_on_faults():
    report = check_env(Careless, 50)
    assert report.ok
    assert "memory that it writes to again" in str(report)
    assert "writes into the action" in str(report)

    class LateNan(Counting):
        def observe(self):
            return np.array([0.0, np.nan if self.t == 3 else 0.0])

    report = check_env(LateNan, 50)
    assert not report.ok
    assert "FAIL" in str(report)
    assert "observation[1] is nan" in str(report)


def test_check_env_takes_compiled_worlds_and_vectors():
    assert check_env("jax:Pendulum-v1", 20).ok
    report = check_env(gym.vector.SyncVectorEnv([cartpole] * 2), 20)
    assert report.ok
    assert report.tier == 3
