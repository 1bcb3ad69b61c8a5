"""Deep agents against dynamic programming: on small MDPs, DQN and PPO come within 2 % of the exact optimum.

The policy that was learned is judged exactly, by solving for its value: no luck of episodes enters. "Within 2 %" is of
what there is to win: from the worst policy's value to the best one's, at the start.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyak import DQN, PPO, Linear, mdp
from polyak.core import Spec
from polyak.cranks import Compiled
from polyak.envs.classic import GridWorld
from polyak.envs.finite import FiniteWorld
from polyak.envs.vector import Vector

pytestmark = [pytest.mark.full, pytest.mark.reuses_keys]

GAMMA = 0.95


def chain(n=6, slip=0.1):
    """Left pays a little at once, right leads to the prize at the end; moves fail now and then."""
    P, R = np.zeros((n, 2, n)), np.zeros((n, 2))
    for s in range(n):
        left, right = max(s - 1, 0), min(s + 1, n - 1)
        P[s, 0, left] += 1 - slip
        P[s, 0, right] += slip
        P[s, 1, right] += 1 - slip
        P[s, 1, left] += slip
    R[0, 0], R[n - 1, 1] = 0.1, 1.0
    return mdp.from_arrays(P, R, start=np.eye(n)[0])


def loop():
    """Two states: to stay where one is pays nothing, to go round pays 1 on one side and costs a little on the other."""
    P, R = np.zeros((2, 2, 2)), np.array([[0.0, -0.2], [0.0, 1.0]])
    P[:, 0] = np.eye(2)
    P[:, 1] = np.eye(2)[::-1]
    return mdp.from_arrays(P, R, start=[0.5, 0.5])


def windy():
    """A windy grid as in Sutton & Barto, Example 6.5, 4 × 5: in the two columns before the goal, wind lifts by one."""
    rows, columns, wind, goal = 4, 5, (0, 0, 1, 1, 0), 1 * 5 + 4
    P, R = np.zeros((20, 4, 20)), np.full((20, 4), -0.1)
    for s in range(20):
        for a, (down, right) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
            row, column = divmod(s, columns)
            row = min(max(row + down - wind[column], 0), rows - 1)
            P[s, a, row * columns + min(max(column + right, 0), columns - 1)] = 1.0
    P[goal] = np.eye(20)[goal]
    R[goal] = 0.0
    return mdp.from_arrays(P, R, start=np.eye(20)[2 * 5], terminal=np.eye(20)[goal] > 0, shape=(rows, columns))


MAZE = ("S..", ".#O", "..G")
WORLDS = {
    "chain": (chain, 40),
    "grid": (lambda: mdp.from_world(GridWorld(layout=MAZE)), 40),
    "stochastic grid": (lambda: mdp.from_world(GridWorld(layout=MAZE, slip=0.3)), 40),
    "windy grid": (windy, 40),
    "two-state loop": (loop, 20),
}
AGENTS = {
    "dqn": (
        DQN(
            gamma=GAMMA, network=(32,), lr=Linear(2e-3, 0.0, steps=32_000.0), batch_size=64, rollout_length=8,
            updates_per_step=0.25, tau=0.1, target_update_interval=1, eps_steps=16_000, eps_end=0.2,
            learning_starts=500, buffer_size=20_000,
        ),
        2, 32_000,
    ),
    "ppo": (
        PPO(
            gamma=GAMMA, network=(32,), lr=Linear(5e-3, 0.0, steps=48_000.0), rollout_length=32, batch_size=128,
            epochs=6, ent_coef=0.005, gae_lambda=0.9,
        ),
        8, 48_000,
    ),
}  # fmt: skip


@functools.cache
def solved(name):
    """(model, value of the best policy at the start, of the worst one)."""
    model = WORLDS[name][0]()
    successor = model.successor
    if successor is None:
        successor = np.broadcast_to(np.arange(model.n_states), model.probability.shape)
    about = {"terminated": model.terminated, "terminal": model.terminal, "start": model.start}
    worst = mdp.from_sparse(successor, model.probability, -np.asarray(model.reward), **about)
    return model, mdp.policy_iteration(model, GAMMA).start_value, -mdp.policy_iteration(worst, GAMMA).start_value


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", AGENTS)
def test_deep_agents_come_within_two_percent_of_the_optimum(name, world):
    agent, n_envs, steps = AGENTS[name]
    model, best, worst = solved(world)
    finite = FiniteWorld.of(model, WORLDS[world][1])
    vector = Vector(finite, n_envs)
    crank = Compiled(agent, finite, Spec(vector.obs_space, vector.action_space, n_envs, steps), (0,))
    crank.advance(steps // (agent.rollout_length * n_envs))
    states = jnp.arange(model.n_states)
    policy, _ = agent.act(crank.agent_state(0), states, jax.random.key(0), (), explore=False)
    value = mdp.policy_evaluation(model, np.asarray(policy), GAMMA).start_value
    assert best - value <= 0.02 * (best - worst), f"{value:.4f}, and the best policy has {best:.4f}"
    assert best - worst > 0.3, "there is something to win"
