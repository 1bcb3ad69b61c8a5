"""Hindsight against a naive replay in Python (CT5, B13): a goal that is told was reached later in the same episode.

Goals carry (environment, episode, t), so that a goal of another episode, or of another time, can't hide; the stated
reward of a pair of goals can't be had from any other pair.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import polyak
from polyak import replay
from polyak.agents.ddpg import DDPG
from polyak.agents.sac import SAC
from polyak.core import Rollout, Spec, Transition
from polyak.cranks import Compiled, filled, named
from polyak.envs.classic import Reach
from polyak.errors import PolyakError
from polyak.evaluation import CompiledEvaluator
from polyak.spaces import Box, Dict, Discrete

jax.config.update("jax_numpy_rank_promotion", "raise")

DRAWS = 1024
GOAL = Box(-np.inf, np.inf, (3,))
OBS = Dict({"observation": Box(-np.inf, np.inf, (2,)), "achieved_goal": GOAL, "desired_goal": GOAL})


def pair_reward(achieved: Any, desired: Any) -> Any:
    """Of (environment, episode, t) and (environment, episode, t): different for every pair in these tests."""
    return achieved[2] - 1000.0 * desired[2] + 0.25 * (achieved[0] - desired[0]) + 0.125 * (achieved[1] - desired[1])


class Plan(NamedTuple):
    """Worlds side by side, rollout length, transitions to keep, relabelled ones per one that is not."""

    n_envs: int
    T: int
    capacity: int
    k: int

    @property
    def spec(self) -> Spec:
        return Spec(OBS, Box(-1.0, 1.0, (1,)), self.n_envs, 1 << 40, 0, pair_reward)


class Worlds:
    """N worlds with goals, whose episodes end when they are told to. `rows` is the naive replay: all steps so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows: list[list[dict[str, Any]]] = []
        self.length: dict[tuple[int, int], int] = {}  # of each episode so far
        self.episode, self.t = [0] * plan.n_envs, [0] * plan.n_envs

    def obs(self, env: int, episode: int, t: int) -> dict[str, Any]:
        desired = [-1.0 - env, episode, -7.0]  # as t is never negative, nobody achieves it
        return {"observation": [env, t], "achieved_goal": [env, episode, t], "desired_goal": desired}

    def step(self, ends: Any) -> None:
        """One step of every world; ends[env] is 0, 1 (terminated), 2 (truncated) or 3 (torn: no end, a new episode)."""
        row: list[dict[str, Any]] = []
        for env, end in enumerate(ends):
            episode, t = self.episode[env], self.t[env]
            row.append(
                {
                    "obs": self.obs(env, episode, t), "next_obs": self.obs(env, episode, t + 1),
                    "reward": 0.5, "terminated": end == 1, "truncated": end == 2,
                }
            )  # fmt: skip
            self.length[env, episode] = t + 1
            self.episode[env], self.t[env] = (episode + 1, 0) if end else (episode, t + 1)
        self.rows.append(row)

    def rollout(self) -> Transition:
        """The newest T rows as Transition [T, N]; the action is the number of the row."""
        rows, first = self.rows[-self.plan.T :], len(self.rows) - self.plan.T

        def column(*path: str) -> Any:
            def at(step: Any) -> Any:
                return functools.reduce(lambda inner, key: inner[key], path, step)

            return np.array([[at(step) for step in row] for row in rows])

        def seen(name: str) -> Any:
            return {key: column(name, key).astype(np.float32) for key, _ in OBS.items}

        action = np.broadcast_to((first + np.arange(len(rows)))[:, None, None], (len(rows), self.plan.n_envs, 1))
        flags = column("terminated"), column("truncated")
        reward = column("reward").astype(np.float32)
        return Transition(seen("obs"), action.astype(np.float32), reward, seen("next_obs"), *flags)


@functools.cache
def programs(plan: Plan) -> tuple[Any, Any, Any]:
    """(empty replay, add, sample), compiled once per plan; `add` donates its replay, as a run does."""

    def sampled(ring: Any, key: Any) -> Transition:
        return replay._read(ring, replay._choices(ring, key, 1, DRAWS, plan.T)[0], 0, 1, None, plan.T)[0]

    empty = jax.jit(lambda: replay.ring(plan.spec, plan.capacity, plan.T, goals=plan.k))
    return empty, jax.jit(replay.add, donate_argnums=0), jax.jit(sampled)


def check(worlds: Worlds, batch: Transition) -> dict[tuple[int, int], set[int]]:
    """Every drawn transition against the naive replay; by (row, environment), how much later its goals were reached."""
    plan, batch = worlds.plan, jax.device_get(batch)
    held = min(len(worlds.rows), -(-plan.capacity // (plan.n_envs * plan.T)) * plan.T)
    found: dict[tuple[int, int], set[int]] = {}
    for i, number in enumerate(batch.action[:, 0].astype(int)):
        env = int(batch.obs["achieved_goal"][i, 0])
        assert 0 <= len(worlds.rows) - 1 - number < held
        told, true = jax.tree.map(lambda x, i=i: x[i], batch), worlds.rows[number][env]
        for name, got, want in (("obs", told.obs, true["obs"]), ("next_obs", told.next_obs, true["next_obs"])):
            for key in ("observation", "achieved_goal"):
                assert_array_equal(got[key], want[key], err_msg=name)
        assert (told.terminated, told.truncated) == (true["terminated"], true["truncated"])
        goal = told.obs["desired_goal"]
        assert_array_equal(goal, told.next_obs["desired_goal"])
        if goal[2] < 0:
            assert_array_equal(goal, true["obs"]["desired_goal"])
            assert told.reward == np.float32(0.5)
            continue
        (_, episode, t), (env_of_goal, episode_of_goal, later) = true["next_obs"]["achieved_goal"], goal
        assert (env_of_goal, episode_of_goal) == (env, episode)
        assert t <= later <= worlds.length[env, episode]
        assert told.reward == np.float32(pair_reward(np.float32([env, episode, t]), goal))
        found.setdefault((int(number), env), set()).add(int(later - t))
    return found


class HindsightMachine(RuleBasedStateMachine):
    """Rollouts with ends of both kinds, torn episodes, wraps, samples, saving and loading, in any order."""

    plans: ClassVar[list[Plan]] = [Plan(1, 1, 5, 4), Plan(2, 3, 17, 1), Plan(3, 4, 24, 4), Plan(2, 1, 40, 7)]

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        self.plan = data.draw(st.sampled_from(self.plans))
        self.worlds, self.ring = Worlds(self.plan), programs(self.plan)[0]()

    @rule(data=st.data())
    def roll(self, data: Any) -> None:
        for t in range(self.plan.T):
            # Where environments could not be restored, episodes are torn between rollouts, never inside one.
            kinds = st.sampled_from([0, 0, 0, 0, 1, 2] + [3] * (t == self.plan.T - 1))
            self.worlds.step(data.draw(st.lists(kinds, min_size=self.plan.n_envs, max_size=self.plan.n_envs)))
        self.ring = programs(self.plan)[1](self.ring, self.worlds.rollout())

    @rule(calm=st.integers(1, 12))
    def roll_on(self, calm: int) -> None:
        for _ in range(calm):
            for _ in range(self.plan.T):
                self.worlds.step([0] * self.plan.n_envs)
            self.ring = programs(self.plan)[1](self.ring, self.worlds.rollout())

    @precondition(lambda self: self.worlds.rows)
    @rule(seed=st.integers(0, 1000))
    def sample(self, seed: int) -> None:
        check(self.worlds, programs(self.plan)[2](self.ring, jax.random.key(seed)))

    @rule()
    def save_and_load(self) -> None:
        self.ring = filled(programs(self.plan)[0](), named(self.ring, "replay"), "replay")


TestHindsight = HindsightMachine.TestCase
TestHindsight.settings = settings(max_examples=20, stateful_step_count=10, deadline=None)


def rolled(plan: Plan, rollouts: int, ends: Any) -> tuple[Any, Worlds]:
    """The replay after so many rollouts; ends(row, env) is 0, 1, 2 or 3."""
    empty, add, _ = programs(plan)
    ring, worlds = empty(), Worlds(plan)
    for r in range(rollouts):
        for t in range(plan.T):
            worlds.step([ends(r * plan.T + t, env) for env in range(plan.n_envs)])
        ring = add(ring, worlds.rollout())
    return ring, worlds


@pytest.mark.parametrize("wraps", [0, 2])
def test_every_later_goal_of_the_episode_is_drawn_equally_often(wraps: int) -> None:
    """Episodes of 6 steps cut by the clock, of 4 by the world: from each step on to its episode's last held one."""
    plan = Plan(2, 2, 48, 4)
    rollouts = 12 * (wraps + 1) - (wraps == 0)
    ring, worlds = rolled(plan, rollouts, lambda row, env: (row % 6 == 5) * 2 if env else row % 4 == 3)
    tallies: dict[tuple[int, int], dict[int, int]] = {}
    for seed in range(16):
        batch = jax.device_get(programs(plan)[2](ring, jax.random.key(seed)))
        check(worlds, batch)
        for i in np.flatnonzero(batch.obs["desired_goal"][:, 2] >= 0):
            where = int(batch.action[i, 0]), int(batch.obs["achieved_goal"][i, 0])
            later = int(batch.obs["desired_goal"][i, 2] - batch.next_obs["achieved_goal"][i, 2])
            tallies.setdefault(where, {}).setdefault(later, 0)
            tallies[where][later] += 1
    newest = len(worlds.rows) - 1
    for (row, env), tally in tallies.items():
        length = 6 if env else 4
        left = min(length - row % length, newest - row + 1)
        assert set(tally) == set(range(left)), (row, env)
        if left > 1:
            assert stats.chisquare(list(tally.values())).pvalue > 1e-5, "40 tests, and the seeds are fixed"
    assert len(tallies) == min(len(worlds.rows), 24) * 2


@pytest.mark.parametrize("k", [1, 4, 8])
def test_k_of_k_plus_one_are_relabelled(k: int) -> None:
    ring, _ = rolled(Plan(1, 1, 64, k), 64, lambda row, env: row % 8 == 7)
    n = 32 * DRAWS
    keys = jax.random.split(jax.random.key(0), 32)
    share = np.mean([programs(Plan(1, 1, 64, k))[2](ring, key).obs["desired_goal"][:, 2] >= 0 for key in keys])
    p = k / (k + 1)
    assert abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5, "four standard errors; the seed is fixed"


def test_whether_and_with_what_are_independent_of_the_transition() -> None:
    """One number decides both: relabelled transitions are no other ones than those that are not."""
    plan = Plan(1, 1, 8, 1)
    ring, _ = rolled(plan, 8, lambda row, env: 0)
    batch = jax.device_get(programs(plan)[2](ring, jax.random.key(5)))
    table = np.zeros((2, 8))
    np.add.at(table, ((batch.obs["desired_goal"][:, 2] >= 0).astype(int), batch.action[:, 0].astype(int)), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_an_episode_longer_than_the_replay() -> None:
    plan = Plan(1, 1, 6, 4)
    ring, worlds = rolled(plan, 20, lambda row, env: 0)
    found = check(worlds, programs(plan)[2](ring, jax.random.key(0)))
    assert found == {(row, 0): set(range(20 - row)) for row in range(14, 20)}


def test_a_torn_episode_ends_where_it_was_torn() -> None:
    """After a resume of environments that can't be restored, a new episode begins where the old one had no end."""
    plan = Plan(1, 2, 24, 4)
    ring, worlds = rolled(plan, 6, lambda row, env: 3 * (row == 5))
    found = check(worlds, programs(plan)[2](ring, jax.random.key(0)))
    assert found[2, 0] == set(range(4)) and found[6, 0] == set(range(6))


def test_rollouts_are_added_in_place() -> None:
    """A row that is read before it may be overwritten would make XLA copy the whole replay at every step."""
    plan = Plan(2, 1, 100_000, 4)
    worlds = Worlds(plan)
    worlds.step([0, 0])
    ring = jax.eval_shape(programs(plan)[0])
    compiled = jax.jit(replay.add, donate_argnums=0).lower(ring, worlds.rollout()).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10_000, "its smallest array has 100,000 bytes"


# --------------------------------------------------------------------------------------------------------- bad input

BAD: dict[str, tuple[Any, Any, list[str]]] = {
    "no dict": (Box(-1, 1, (3,)), pair_reward, ["Box(3,)", "observation, achieved_goal, desired_goal"]),
    "a key": (Dict({"observation": GOAL, "achieved_goal": GOAL}), pair_reward, ["has no desired_goal"]),
    "shapes": (
        Dict({"observation": GOAL, "achieved_goal": GOAL, "desired_goal": Box(-1, 1, (2,))}), pair_reward,
        ["Box(3,) and Box(2,)"],
    ),
    "integers": (
        Dict({"observation": GOAL, "achieved_goal": Discrete(3), "desired_goal": Discrete(3)}), pair_reward,
        ["Discrete(3)", "must be a Box"],
    ),
    "no reward": (OBS, None, ["goal_reward(achieved, desired)", "jax.numpy"]),
    "a vector": (OBS, lambda achieved, desired: achieved - desired, ["shape (3,)", "must give one number"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("agent", [DDPG(hindsight=4), SAC(hindsight=4)], ids=lambda a: type(a).__name__)
def test_what_has_no_goals_is_refused_with_one_sentence(name: str, agent: Any) -> None:
    obs, reward, words = BAD[name]
    with pytest.raises(PolyakError) as error:
        agent.init(jax.random.key(0), Spec(obs, Box(-1.0, 1.0, (1,)), 1, 100, 0, reward))
    text = str(error.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


@pytest.mark.parametrize("cls", [DDPG, SAC])
def test_a_negative_number_of_goals_is_refused(cls: Any) -> None:
    with pytest.raises(PolyakError, match="hindsight is -1"):
        cls(hindsight=-1).init(jax.random.key(0), Plan(1, 1, 8, 4).spec)


def test_what_does_not_go_with_hindsight_is_refused() -> None:
    with pytest.raises(PolyakError, match="priorities"):
        replay.ring(Plan(1, 1, 8, 4).spec, 8, 1, prioritised=True, goals=4)


# ------------------------------------------------------------------------------------------------------------ agents


def trained(agent: Any, steps: int, seeds: Any) -> Any:
    """Success rates of the seeds' greedy policies on jax:Reach-v0, 50 episodes each."""
    world = Reach()
    spec = Spec(world.obs_space, world.action_space, 1, steps, 0, world.goal_reward)
    crank = Compiled(agent, world, spec, seeds)
    crank.advance(steps // agent.rollout_length)
    evaluate = CompiledEvaluator(agent, spec, world)
    return np.array([evaluate(crank.agent_state(i), 50).successes.mean() for i in range(len(seeds))])


REACHING: dict[str, Any] = {"batch_size": 128, "gamma": 0.95, "lr": 1e-3, "learning_starts": 200, "tau": 0.02}


@pytest.mark.full
@pytest.mark.reuses_keys
@pytest.mark.parametrize(
    "agent",
    [DDPG(network=(64, 64), noise_std=0.2, **REACHING), SAC(network=(64, 64), **REACHING)],
    ids=lambda a: type(a).__name__,
)
def test_goals_are_reached_with_hindsight_and_not_without(agent: Any) -> None:
    steps, seeds = 4000, (0, 1, 2)
    assert (trained(dataclasses.replace(agent, hindsight=4), steps, seeds) >= 0.9).all()
    assert trained(agent, steps, seeds).mean() <= 0.3


def test_an_update_learns_from_relabelled_transitions_alone_what_is_asked() -> None:
    """Through the agent's own update: critic losses differ with hindsight, and states keep their shapes."""
    plan = Plan(2, 4, 64, 4)
    worlds = Worlds(plan)
    for _ in range(4):
        worlds.step([0, 0])
    rollout = Rollout(jax.tree.map(jnp.asarray, worlds.rollout()), ())
    losses = []
    for k in (0, 4):
        agent = DDPG(hindsight=k, rollout_length=4, batch_size=32, learning_starts=0, network=(8,))
        state = agent.init(jax.random.key(0), plan.spec)
        after, metrics = jax.jit(agent.update)(state, rollout, jax.random.key(1))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in (state, after)]
        assert kinds[0] == kinds[1]
        losses.append(float(metrics["train/critic_loss"]))
    assert losses[1] > 100 * losses[0], "pair_reward is in the thousands, the world's own reward 0.5"


def test_a_run_on_the_compiled_world_reports_success(tmp_path: Any) -> None:
    agent = DDPG(hindsight=4, network=(8,), batch_size=16, learning_starts=10, buffer_size=200)
    for crank in ("compiled", "host"):
        polyak.train(agent, "jax:Reach-v0", steps=150, crank=crank, out=tmp_path / crank, eval_episodes=4)
        rows = (tmp_path / crank / "seed_0" / "progress.csv").read_text(encoding="utf-8")
        assert "eval/success_rate" in rows
    assert_allclose(*[np.asarray(polyak.load(tmp_path / c).summary["eval"]["iqm"]) for c in ("compiled", "host")])
