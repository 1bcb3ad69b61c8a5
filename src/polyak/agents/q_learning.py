"""QLearning: off-policy control with a table or linear features. Watkins & Dayan (1992), Machine Learning 8.
Sutton & Barto (2018), §6.5. Double Q-learning: van Hasselt (2010), NeurIPS 23; §6.7.

Every transition moves the value of its state and action towards Bellman's optimality equation, whatever the policy does
next:

    δ = r + γ (1 − terminated) max_a′ Q(s′, a′) − Q(s, a)                                           (1)
    δ = r + γ (1 − terminated) Q_2(s′, argmax_a′ Q_1(s′, a′)) − Q_1(s, a)     where `double`         (2)
    w ← w + α δ x(s)     for the weights of action a;   Q(s, a) = w_a · x(s)                         (3)
    a = argmax_a Q(s, a), ties at random, or any action with probability ε                          (4)

With one-hot features, w is the table Q itself. With others, (3) is the semi-gradient: s′ is not differentiated. In (2)
the two tables change roles with probability ½, and the policy follows their sum.

Differs from the paper: nothing. Several environments share one table, and their transitions are learned from in turn.

Takes: Discrete, MultiDiscrete, MultiBinary observations and tuples of them, a Box with `features`; actions Discrete.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, hyper, in_range
from polyak.dists import mask_of
from polyak.explore import epsilon_at
from polyak.mdp.features import Features, Weights
from polyak.mdp.online import allowed, chosen, discrete_actions, in_turn
from polyak.optim import Schedule, now
from polyak.returns import td_target


class State(NamedTuple):
    Q: Weights  # w: one column per action; with `double` those of Q_1, then those of Q_2
    steps: Counter  # environment steps so far


@hyper
class QLearning:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    double: bool = False  # two tables: one chooses the action that the other values
    # exploration
    eps_start: float = 0.1  # ε at the first step
    eps_end: float = 0.1  # ε after eps_steps
    eps_steps: int = 1  # environment steps over which ε falls, in a straight line
    # rhythm
    lr: float | Schedule = 0.1  # step size α; with n tilings, that of one tile: divide by n
    q_init: float = 0.0  # all values at the start; too high ones make it explore
    # features
    features: Features | None = None  # tiles:8,8, fourier:3, polynomial:2, radial:5; none: one-hot, a table

    on_policy: ClassVar[bool] = False
    rollout_length: ClassVar[int] = 1  # one step, one update

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), eps_start=(0, 1), eps_end=(0, 1), eps_steps=(1, 1 << 40), lr=(0, jnp.inf))

    def init(self, key: Array, spec: Spec) -> State:
        n = discrete_actions("Q-learning", spec)
        return State(Weights.init(self.features, spec.obs, 2 * n if self.double else n, self.q_init), Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        Q = state.Q(obs)
        if self.double:
            Q = Q[..., : Q.shape[-1] // 2] + Q[..., Q.shape[-1] // 2 :]
        return chosen(Q, obs, key, epsilon_at(self, state.steps), explore), memory  # (4)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self = now(self, state.steps)
        state, metrics = in_turn(self.learn, state, rollout, key)
        return state, metrics | {"rollout/exploration_rate": epsilon_at(self, state.steps)}

    def learn(self, state: State, step: Transition, key: Array) -> tuple[State, Metrics]:
        """One update from one transition, [...] without leading axes."""
        x, Q_next = state.Q.on(step.obs), state.Q(step.next_obs)
        mask, column = mask_of(step.next_obs), step.action
        Q_choice, Q_value = Q_next, Q_next
        if self.double:
            n = Q_next.shape[-1] // 2
            second = jax.random.bernoulli(key)  # which of the two is Q_1 now
            Q_choice, Q_value = (jnp.where(second == first, Q_next[:n], Q_next[n:]) for first in (False, True))
            column = step.action + second * n
        Q_allowed = allowed(Q_choice, mask)
        V_next = Q_value[jnp.argmax(Q_allowed)] if self.double else Q_allowed.max()
        delta = td_target(self.gamma, step.reward, step.terminated, V_next) - state.Q.of(x)[column]  # (1) (2)
        Q = state.Q.moved(x, column, self.lr * delta)  # (3)
        return state._replace(Q=Q), {"train/loss": 0.5 * delta**2, "train/td_error": abs(delta)}
