"""Probe worlds: each isolates one thing that an agent must get right, and has an exact answer to compare with.

Values are discounted sums, V(s) under the optimal policy and Q(s, a) of a first action, with γ the agent's. The
first eight ask one question each, in the order in which a broken agent should be debugged: if a world fails, those
before it say what still works. `Catch`, `Memory`, `DeepSea` and `Bandit` are written after I. Osband et al.,
"Behaviour Suite for Reinforcement Learning" (2020, arXiv 1908.03568), with deterministic rewards where not said.

Worlds whose reward ignores the action have `continuous`: True gives them the action space Box(1,) within ±1
instead of Discrete(2), so that every agent can be asked the same question.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.core import hyper
from polyak.envs.classic.bounds import limit
from polyak.spaces import Box, Discrete

Stepped = tuple[Any, Array, Array, Array]
"""(state, observation, reward, terminated): what a world's `step` returns."""


def _two_actions(continuous: bool) -> Discrete | Box:
    return Box(-1.0, 1.0, (1,)) if continuous else Discrete(2)


def _flag(value: bool) -> Array:
    return jnp.full((), value, bool)


@hyper
class ConstantReward:
    """One step, always the same observation 0, reward 1: V = 1. Does the critic learn at all?"""

    continuous: bool = False
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (1,))

    @property
    def action_space(self) -> Discrete | Box:
        return _two_actions(self.continuous)

    def reset(self, key: Array) -> tuple[Array, Array]:
        del key
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del action, key
        return s, jnp.zeros(1), jnp.float32(1.0), _flag(True)


@hyper
class ObservedReward:
    """One step, observation o = ±1 at random, reward o: V(o) = o. Does the critic see its input?"""

    continuous: bool = False
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(-1.0, 1.0, (1,))

    @property
    def action_space(self) -> Discrete | Box:
        return _two_actions(self.continuous)

    def reset(self, key: Array) -> tuple[Array, Array]:
        o = jax.random.rademacher(key, (1,), jnp.float32)
        return o, o

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del action, key
        return s, s, s[0], _flag(True)


@hyper
class DelayedReward:
    """Two steps, observations 0 then 1, rewards 0 then 1: V(0) = γ, V(1) = 1. Are rewards discounted, passed back?"""

    continuous: bool = False
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 2.0, (1,))

    @property
    def action_space(self) -> Discrete | Box:
        return _two_actions(self.continuous)

    def reset(self, key: Array) -> tuple[Array, Array]:
        del key
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del action, key
        after = s + 1.0
        return after, after, s[0], after[0] > 1.5


@hyper
class ActionChoice:
    """One step, reward +1 for action 1 and −1 for action 0: V = 1, Q(1) = 1, Q(0) = −1. Does the policy learn?"""

    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (1,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[Array, Array]:
        del key
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del key
        return s, jnp.zeros(1), jnp.where(action == 1, 1.0, -1.0), _flag(True)


@hyper
class ObservedAction:
    """One step, observation o = ±1 at random; reward +1 for action 1 at o = 1 and for action 0 at o = −1, else −1.

    V(o) = 1, Q(o, a) = o (2a − 1). Does the policy look at its input?
    """

    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(-1.0, 1.0, (1,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[Array, Array]:
        o = jax.random.rademacher(key, (1,), jnp.float32)
        return o, o

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del key
        return s, s, jnp.where((action == 1) == (s[0] > 0), 1.0, -1.0), _flag(True)


@hyper
class Target:
    """One step, reward −(a − target)², action within [low, high]: Q(a) = −(a − target)², V = 0 at a = target.

    The bounds are asymmetric; an agent, which acts in [−1, 1], must find 2 (target − low) / (high − low) − 1, which
    is −0.35 for the numbers given here.
    """

    target: float = 0.3
    low: float = -1.0
    high: float = 3.0
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (1,))

    @property
    def action_space(self) -> Box:
        return Box(limit(self.low, -1.0), limit(self.high, 3.0), (1,))

    def action_bounds(self) -> tuple[Array, Array]:
        low, high = (jnp.reshape(jnp.asarray(v, jnp.float32), (1,)) for v in (self.low, self.high))
        return low, high

    def reset(self, key: Array) -> tuple[Array, Array]:
        del key
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del key
        return s, jnp.zeros(1), -((action[0] - self.target) ** 2), _flag(True)


@hyper
class ObservedTarget:
    """One step, observation o uniform in ±0.5, reward −(a − o)²: Q(o, a) = −(a − o)², V(o) = 0 at a = o."""

    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(-0.5, 0.5, (1,))

    @property
    def action_space(self) -> Box:
        return Box(-1.0, 1.0, (1,))

    def reset(self, key: Array) -> tuple[Array, Array]:
        o = jax.random.uniform(key, (1,), minval=-0.5, maxval=0.5)
        return o, o

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del key
        return s, s, -((action[0] - s[0]) ** 2), _flag(True)


@hyper
class Forever:
    """Reward 1 in every step and no end but the clock's; the observation, 0, does not show the clock (CT3).

    V = 1 / (1 − γ): 50 for γ = .98. An agent that takes the time limit of 8 steps for an end finds 7.4618 at the
    first step, (1 − γ⁸) / (1 − γ), and something between where it can't tell the steps apart.
    """

    continuous: bool = False
    max_steps: int = 8

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (1,))

    @property
    def action_space(self) -> Discrete | Box:
        return _two_actions(self.continuous)

    def reset(self, key: Array) -> tuple[Array, Array]:
        del key
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del action, key
        return s, jnp.zeros(1), jnp.float32(1.0), _flag(False)


@hyper
class PoisonedReset:
    """The first observation of an episode, and no other, is worth a fortune (CT2).

    Observation (1, 0) at the reset, (0, 1) ever after; reward `poison` for the first step, 0 for all others, until the
    clock stops it (or the world itself, with `terminates`). V(0, 1) = 0 and V(1, 0) = poison: an agent that bootstraps
    from the observation after an auto-reset, instead of the final one, finds a V(0, 1) of thousands.
    """

    poison: float = 1e6
    terminates: bool = False  # the third step ends the task, instead of the clock
    continuous: bool = False
    max_steps: int = 3

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (2,))

    @property
    def action_space(self) -> Discrete | Box:
        return _two_actions(self.continuous)

    def reset(self, key: Array) -> tuple[Array, Array]:
        del key
        return jnp.int32(0), jnp.array([1.0, 0.0])

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del action, key
        over = s >= 2 if self.terminates else _flag(False)
        return s + 1, jnp.array([0.0, 1.0]), jnp.where(s == 0, self.poison, 0.0), over


class CountingState(NamedTuple):
    """Scalars, int32."""

    episode: Array
    t: Array


@hyper
class Counting:
    """The observation is (episode, t): a transition shows where it came from (CT4, CT31).

    A pure world can't number its episodes, so each has a random name below 2²⁴, which float32 holds exactly. With e
    the name, the task ends by itself after 1 + e mod `longest` steps, unless the clock is faster; the reward of the
    step from t to t + 1 is (e mod 7) + t + 1, and so the return after n steps is n (e mod 7) + n (n + 1) / 2.
    """

    longest: int = 9
    continuous: bool = False
    max_steps: int = 6

    @property
    def obs_space(self) -> Box:
        return Box(0.0, float(1 << 24), (2,))

    @property
    def action_space(self) -> Discrete | Box:
        return _two_actions(self.continuous)

    def reset(self, key: Array) -> tuple[CountingState, Array]:
        s = CountingState(jax.random.randint(key, (), 0, 1 << 24), jnp.int32(0))
        return s, jnp.stack(s).astype(jnp.float32)

    def step(self, s: CountingState, action: Array, key: Array) -> Stepped:
        del action, key
        after = CountingState(s.episode, s.t + 1)
        reward = (s.episode % 7 + after.t).astype(jnp.float32)
        return after, jnp.stack(after).astype(jnp.float32), reward, after.t >= 1 + s.episode % self.longest


class CatchState(NamedTuple):
    """Scalars, int32."""

    row: Array  # of the ball, 0 at the top
    column: Array  # of the ball
    paddle: Array  # column of the paddle, in the last row


@hyper
class Catch:
    """A ball falls one row a step; actions 0, 1, 2 move the paddle left, not, right; at the end +1 caught, −1 missed.

    The paddle starts in the middle and can reach every column in time, so V at the reset is γ^(rows − 2), the return
    1. The observation is the board, flat, 1 where the ball and the paddle are: Box(rows · columns,). `noise` is the
    standard deviation of what is added to every reward, `scale` multiplies it.
    """

    rows: int = 10
    columns: int = 5
    noise: float = 0.0
    scale: float = 1.0
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (self.rows * self.columns,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(3)

    def reset(self, key: Array) -> tuple[CatchState, Array]:
        s = CatchState(jnp.int32(0), jax.random.randint(key, (), 0, self.columns), jnp.int32(self.columns // 2))
        return s, self._board(s)

    def step(self, s: CatchState, action: Array, key: Array) -> Stepped:
        paddle = jnp.clip(s.paddle + action.astype(jnp.int32) - 1, 0, self.columns - 1)
        after = CatchState(s.row + 1, s.column, paddle)
        landed = after.row == self.rows - 1
        reward = jnp.where(landed, jnp.where(s.column == paddle, 1.0, -1.0), 0.0)
        reward = self.scale * (reward + self.noise * jax.random.normal(key))
        return after, self._board(after), reward, landed

    def _board(self, s: CatchState) -> Array:
        cell = jnp.arange(self.rows * self.columns)
        ball, paddle = s.row * self.columns + s.column, (self.rows - 1) * self.columns + s.paddle
        return ((cell == ball) | (cell == paddle)).astype(jnp.float32)


class MemoryState(NamedTuple):
    """Scalars."""

    t: Array  # int32
    bit: Array  # float32, ±1


@hyper
class Memory:
    """A bit is shown once, and asked for `length` observations later: +1 for the answer (bit + 1) / 2, else −1.

    Observation (bit at the reset and 0 after, 1 where the answer is due and 0 before). With length = 2 the first action
    is ignored and the second is the answer. With memory V at the reset is γ^(length − 1), the return 1; without, no
    policy has a return above 0 for length ≥ 2. For length = 1 no memory is needed.
    """

    length: int = 2
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(-1.0, 1.0, (2,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[MemoryState, Array]:
        s = MemoryState(jnp.int32(0), jax.random.rademacher(key, (), jnp.float32))
        return s, self._seen(s)

    def step(self, s: MemoryState, action: Array, key: Array) -> Stepped:
        del key
        due = s.t == self.length - 1
        reward = jnp.where(due, jnp.where((action == 1) == (s.bit > 0), 1.0, -1.0), 0.0)
        after = MemoryState(s.t + 1, s.bit)
        return after, self._seen(after), reward, due

    def _seen(self, s: MemoryState) -> Array:
        return jnp.stack([jnp.where(s.t == 0, s.bit, 0.0), (s.t == self.length - 1).astype(jnp.float32)])


@hyper
class DeepSea:
    """Dive through a size × size grid one row a step, moving left or right; treasure lies at the bottom right.

    Only `size` rights in a row find the reward 1; each costs 0.01 / size, so that timid exploration learns to go left.
    The best return is 1 − 0.01 = 0.99, always left has 0, and a uniform policy finds the treasure in one episode of
    2^size. V* at the reset is γ^(size−1) − 0.01/size · (1 − γ^size) / (1 − γ). The observation is the cell, one-hot and
    flat: Box(size²,), all 0 at the end. `mapping` = 0: action 1 is right everywhere; else a seed that
    draws for each cell which action is right.
    """

    size: int = 5
    mapping: int = 0
    cost: float = 0.01
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (self.size**2,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def right(self) -> NDArray[np.int32]:
        """The action that moves right, for each (row, column): [size, size]."""
        if self.mapping == 0:
            return np.ones((self.size, self.size), np.int32)
        return np.random.default_rng(self.mapping).integers(0, 2, (self.size, self.size), np.int32)

    def reset(self, key: Array) -> tuple[Array, Array]:
        """The state is (row, column), int32 [2]."""
        del key
        s = jnp.zeros(2, jnp.int32)
        return s, self._seen(s)

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        del key
        row, column = s[0], s[1]
        right = action == jnp.asarray(self.right())[row, column]
        treasure = right & (row == self.size - 1) & (column == self.size - 1)
        reward = jnp.where(treasure, 1.0, 0.0) - jnp.where(right, self.cost / self.size, 0.0)
        moved = jnp.clip(column + jnp.where(right, 1, -1), 0, self.size - 1)
        after = jnp.stack([row + 1, moved])
        return after, self._seen(after), reward, after[0] == self.size

    def _seen(self, s: Array) -> Array:
        return (jnp.arange(self.size**2) == s[0] * self.size + s[1]).astype(jnp.float32)


@hyper
class Bandit:
    """One step, `arms` arms whose rewards are 0, 1/(arms−1), …, 1 in a shuffled order: V = 1, a uniform policy has ½.

    `shuffle` is the seed of the order, `noise` the standard deviation of what is added to every reward, and `scale`
    multiplies the reward: Q(a) = scale · rewards()[a].
    """

    arms: int = 11
    shuffle: int = 0
    noise: float = 0.0
    scale: float = 1.0
    max_steps: int = 0

    @property
    def obs_space(self) -> Box:
        return Box(0.0, 1.0, (1,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(self.arms)

    def rewards(self) -> NDArray[np.float32]:
        """The mean reward of each arm before scaling, [arms]."""
        means = np.linspace(0, 1, self.arms, dtype=np.float32)
        return np.random.default_rng(self.shuffle).permutation(means)

    def reset(self, key: Array) -> tuple[Array, Array]:
        del key
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, s: Array, action: Array, key: Array) -> Stepped:
        reward = jnp.asarray(self.rewards())[action] + self.noise * jax.random.normal(key)
        return s, jnp.zeros(1), self.scale * reward, _flag(True)


PROBES: dict[str, type[Any]] = {
    "ConstantReward": ConstantReward,
    "ObservedReward": ObservedReward,
    "DelayedReward": DelayedReward,
    "ActionChoice": ActionChoice,
    "ObservedAction": ObservedAction,
    "Target": Target,
    "ObservedTarget": ObservedTarget,
    "Forever": Forever,
    "PoisonedReset": PoisonedReset,
    "Counting": Counting,
    "Catch": Catch,
    "Memory": Memory,
    "DeepSea": DeepSea,
    "Bandit": Bandit,
}
