"""Goals of Gymnasium environments: rewards restated for jit are proved against compute_reward, or not used at all."""

import importlib.util
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from numpy.testing import assert_array_equal

import polyak
from polyak.agents.ddpg import DDPG
from polyak.core import Spec
from polyak.envs import resolve
from polyak.envs.classic import Reach
from polyak.envs.goals import DistanceReward
from polyak.errors import PolyakError

jax.config.update("jax_numpy_rank_promotion", "raise")


class Point(gymnasium.Env[Any, Any]):
    """A point on a line that must come to a goal, in Gymnasium-Robotics' manner: float64, cut after 10 steps."""

    line = Box(-2.0, 2.0, (1,), np.float64)
    observation_space = Dict({"observation": line, "achieved_goal": line, "desired_goal": line})
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    distance_threshold = 0.1
    reward_type = "sparse"

    def _seen(self) -> dict[str, Any]:
        return {"observation": self.x.copy(), "achieved_goal": self.x.copy(), "desired_goal": self.goal.copy()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.goal, self.t = np.zeros(1), self.np_random.uniform(-1, 1, 1), 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.x = np.clip(self.x + 0.2 * np.asarray(action, np.float64), -2, 2)
        self.t += 1
        reward = float(self.compute_reward(self.x, self.goal, {}))
        return self._seen(), reward, False, self.t == 10, {"is_success": abs(self.x - self.goal)[0] <= 0.1}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        distance = np.linalg.norm(achieved - desired, axis=-1)
        sparse = -(distance > self.distance_threshold).astype(np.float32)
        return sparse if self.reward_type == "sparse" else -distance


class DensePoint(Point):
    reward_type = "dense"


class PositivePoint(Point):
    """0 and 1, as in PointMaze."""

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return 1.0 + super().compute_reward(achieved, desired, info)


class WiderPoint(Point):
    """It says a threshold that is not the one it uses: 1 % farther."""

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -(np.linalg.norm(achieved - desired, axis=-1) > 1.01 * self.distance_threshold).astype(np.float32)


class InformedPoint(Point):
    """Its reward needs what only `info` knows."""

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return super().compute_reward(achieved, desired, info) - info["energy"]


class FrankPoint(PositivePoint):
    """It says its reward itself."""

    def goal_reward(self, achieved: Any, desired: Any) -> Any:
        return jnp.where(jnp.abs(achieved - desired)[0] > self.distance_threshold, 0.0, 1.0)


class LyingPoint(Point):
    """It says another reward than it gives."""

    def goal_reward(self, achieved: Any, desired: Any) -> Any:
        return -jnp.abs(achieved - desired)[0]


class NumpyPoint(Point):
    """Its goal_reward can't be traced."""

    def goal_reward(self, achieved: Any, desired: Any) -> Any:
        return np.float32(np.asarray(achieved)[0] > 0)


class Doubled(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> Any:
        return 2.0 * float(reward)


class Told(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that says the reward of what it wraps."""

    def goal_reward(self, achieved: Any, desired: Any) -> Any:
        return jnp.where(jnp.abs(achieved - desired)[0] > 0.1, 0.0, 1.0)


@pytest.mark.parametrize(("env", "dense"), [(Point, False), (DensePoint, True)])
def test_distances_are_read_and_proved(env: Any, dense: bool) -> None:
    found = resolve(env).goal_reward
    assert found == DistanceReward(0.1, dense)
    assert hash(found) == hash(DistanceReward(0.1, dense)), "a Spec holds it, and is static"


@pytest.mark.parametrize("env", [PositivePoint, WiderPoint, InformedPoint, lambda: Doubled(Point())])
def test_what_does_not_agree_is_not_used_and_hindsight_says_so(env: Any) -> None:
    source = resolve(env)
    assert source.goal_reward is None
    with pytest.raises(PolyakError, match=r"goal_reward\(achieved, desired\)") as error:
        polyak.train(DDPG(hindsight=4), env, steps=20, out=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("env", [FrankPoint, lambda: Told(PositivePoint())], ids=["own", "wrapper"])
def test_an_environment_may_say_its_reward(env: Any) -> None:
    reward = resolve(env).goal_reward
    assert reward is not None
    found = jax.jit(jax.vmap(reward))(jnp.array([[0.0], [0.5], [0.95]]), jnp.array([[0.2], [0.55], [0.9]]))
    assert_array_equal(found, [0.0, 1.0, 1.0])


@pytest.mark.parametrize(("env", "words"), [(LyingPoint, "instead of"), (NumpyPoint, "Tracer")])
def test_a_reward_that_is_said_wrongly_is_refused_with_the_difference(env: Any, words: str) -> None:
    with pytest.raises(PolyakError, match=f"goal_reward is not its compute_reward.*{words}") as error:
        resolve(env)
    assert "\n" not in str(error.value)


def test_worlds_say_their_reward_and_others_have_none() -> None:
    source = resolve("jax:Reach-v0")
    assert source.goal_reward == source.world.goal_reward
    assert resolve("CartPole-v1").goal_reward is None
    assert resolve("jax:CartPole-v1").goal_reward is None
    assert hash(Spec(source.obs_space, source.action_space, 1, 1, 0, source.goal_reward))


@pytest.mark.full
def test_a_run_on_the_host_with_hindsight_reports_success_and_resumes(tmp_path: Any) -> None:
    """Tier 2 by replay: a run in two parts has the same bits as one in one go."""
    agent = DDPG(hindsight=4, network=(16,), batch_size=32, learning_starts=20, gamma=0.9, buffer_size=300)
    options: dict[str, Any] = {"steps": 400, "eval_episodes": 10, "n_envs": 2}
    whole = polyak.train(agent, Point, out=tmp_path / "whole", **options)
    assert "eval/success_rate" in (tmp_path / "whole" / "seed_0" / "progress.csv").read_text(encoding="utf-8")
    again = polyak.train(agent, Point, out=tmp_path / "again", **options)
    for a, b in zip(jax.tree.leaves(whole.state(0)), jax.tree.leaves(again.state(0)), strict=True):
        assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------- jax:Reach-v0


def test_reach_moves_as_it_says() -> None:
    """Against the rules in float64 NumPy: clipped actions, walls, the reward after the step, and success."""
    world, rng = Reach(), np.random.default_rng(0)
    s, obs = world.reset(jax.random.key(0))
    assert set(obs) == {"observation", "achieved_goal", "desired_goal"}
    assert_array_equal(obs["achieved_goal"], [0.0, 0.0])
    position, goal = np.zeros(2), np.asarray(obs["desired_goal"], np.float64)
    step, rewards = jax.jit(world.step), set()
    for t in range(200):
        towards = np.clip((goal - position) / 0.1, -1.5, 1.5)
        action = towards if t >= 150 else rng.uniform(-1.5, 1.5, 2) + (0.9 if t < 60 else 0.0)
        s, obs, reward, terminated = step(s, jnp.asarray(action, jnp.float32), jax.random.key(1))
        position = np.clip(position + 0.1 * np.clip(action, -1, 1), -1, 1)
        np.testing.assert_allclose(obs["achieved_goal"], position, atol=2e-5, err_msg="200 float32 additions")
        assert_array_equal(obs["observation"], obs["achieved_goal"])
        assert_array_equal(obs["desired_goal"], np.float32(goal))
        near = np.linalg.norm(position - goal) <= 0.05
        assert float(reward) == (0.0 if near else -1.0)
        assert bool(world.success(obs)) == near
        assert not terminated
        rewards.add(float(reward))
    assert rewards == {0.0, -1.0}


def test_the_goals_of_reach_are_uniform_in_the_square() -> None:
    s, _ = jax.vmap(Reach().reset)(jax.random.split(jax.random.key(0), 4000))
    for values in np.asarray(s.goal, np.float64).T:
        uniform = -1 + 2 * (np.arange(4000) + 0.5) / 4000
        assert np.abs(np.sort(values) - uniform).max() / 2 < 1.95 / 4000**0.5, "Kolmogorov-Smirnov, once in 1000"


# ---------------------------------------------------------------------------------------------- Gymnasium-Robotics


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gymnasium_robotics" else present(name, *a)
    )
    monkeypatch.setattr(gymnasium, "registry", {k: v for k, v in gymnasium.registry.items() if "Fetch" not in k})
    with pytest.raises(PolyakError, match=r'FetchReach-v4 needs gymnasium_robotics.*pip install "polyak\[robotics\]"'):
        resolve("FetchReach-v4")


@pytest.mark.parametrize("name", ["FetchReach-v4", "FetchReachDense-v4"])
def test_fetch_resolves_with_its_reward(name: str) -> None:
    pytest.importorskip("gymnasium_robotics")
    source = resolve(name)
    assert source.goal_reward == DistanceReward(0.05, "Dense" in name)


def test_an_older_fetch_is_refused_with_the_nearest_name() -> None:
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(PolyakError, match=r"FetchReach-v[14]"):
        resolve("FetchReach-v3")


def test_the_reward_of_poses_is_not_taken_for_a_distance() -> None:
    pytest.importorskip("gymnasium_robotics")
    assert resolve("HandManipulateBlock-v1").goal_reward is None
