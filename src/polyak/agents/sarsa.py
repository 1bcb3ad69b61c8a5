"""SARSA: on-policy control with a table or linear features. Rummery & Niranjan (1994), CUED/F-INFENG/TR 166.
Sutton & Barto (2018), §6.4, n-step §7.2, linear §10.1-10.2. Expected SARSA: van Seijen et al. (2009), ADPRL; §6.6.

The value of a state and action moves towards n rewards and the value of what the policy really does next:

    G = Σ_{k<n} γ^k r_{t+k} + γ^n Q(s_{t+n}, a_{t+n})                                               (1)
    G = Σ_{k<n} γ^k r_{t+k} + γ^n Σ_a π(a | s_{t+n}) Q(s_{t+n}, a)     where `expected`              (2)
    w ← w + α [G − Q(s_t, a_t)] x(s_t)     for the weights of action a_t;   Q(s, a) = w_a · x(s)     (3)
    a = argmax_a Q(s, a), ties at random, or any action with probability ε                          (4)

An episode that ends sooner cuts the sum, and nothing follows a terminated one. A step is learned from once a_{t+n} is
known, which is when it has been taken: that is the order of the book, where the action is chosen first, and the table
changes before the next choice.

Differs from the paper: a truncated episode goes on in the value of an action drawn for its last observation.

Takes: Discrete, MultiDiscrete, MultiBinary observations and tuples of them, a Box with `features`; actions Discrete.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, hyper, in_range
from polyak.dists import mask_of
from polyak.explore import epsilon_at, epsilon_greedy_choice, epsilon_greedy_probabilities
from polyak.mdp.features import Features, Weights
from polyak.mdp.online import (
    Window,
    allowed,
    chosen,
    discrete_actions,
    due,
    each,
    forgotten,
    pushed,
    window,
)
from polyak.optim import Schedule, now
from polyak.returns import n_step_return


class State(NamedTuple):
    Q: Weights  # w: one column per action
    window: Window  # the steps of each environment that wait for their return
    steps: Counter  # environment steps so far


@hyper
class SARSA:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    expected: bool = False  # the policy's mean over next actions instead of the one that it took
    n_step: int = 1  # n: rewards in the target before a value follows
    # exploration
    eps_start: float = 0.1  # ε at the first step
    eps_end: float = 0.1  # ε after eps_steps
    eps_steps: int = 1  # environment steps over which ε falls, in a straight line
    # rhythm
    lr: float | Schedule = 0.1  # step size α; with n tilings, that of one tile: divide by n
    q_init: float = 0.0  # all values at the start; too high ones make it explore
    # features
    features: Features | None = None  # tiles:8,8, fourier:3, polynomial:2, radial:5; none: one-hot, a table

    on_policy: ClassVar[bool] = True
    rollout_length: ClassVar[int] = 1  # one step, one update

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), eps_start=(0, 1), eps_end=(0, 1), eps_steps=(1, 1 << 40), lr=(0, jnp.inf))
        in_range(self, n_step=(1, 1000))

    def init(self, key: Array, spec: Spec) -> State:
        n = discrete_actions("SARSA", spec)
        waiting = window(spec, self.n_step if self.expected else self.n_step + 1)
        return State(Weights.init(self.features, spec.obs, n, self.q_init), waiting, Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        return chosen(state.Q(obs), obs, key, epsilon_at(self, state.steps), explore), memory  # (4)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self, waiting = now(self, state.steps), pushed(state.window, rollout)
        N = waiting.held.shape[0]
        state, metrics = each(self.learn, state, waiting, key, N)
        epsilon = epsilon_at(self, state.steps)
        state = state._replace(window=forgotten(waiting, rollout), steps=state.steps.add(N))
        return state, metrics | {"rollout/exploration_rate": epsilon}

    def learn(self, state: State, waiting: Window, key: Array) -> tuple[State, Metrics]:
        """Update those of one environment's waiting steps [L, ...] whose return is known: the oldest, all at an end."""
        steps, L = waiting.steps, waiting.steps.reward.shape[0]
        V_last = self._value_after(state, jax.tree.map(lambda x: x[-1], steps), key)
        V_next = jnp.zeros(L).at[-1].set(V_last)
        if not self.expected:  # what follows the step before last is known: the last one's own observation and action
            V_next = V_next.at[-2].set(state.Q(jax.tree.map(lambda x: x[-1], steps.obs))[steps.action[-1]])
        G = n_step_return(self.gamma, self.n_step, steps.reward, V_next, steps.terminated, steps.truncated)  # (1) (2)
        known = due(waiting)

        def one(Q: Weights, row: tuple[Any, Array, Array, Array]) -> tuple[Weights, Array]:
            obs, action, target, is_due = row
            x = Q.on(obs)
            delta = jnp.where(is_due, target - Q.of(x)[action], 0.0)
            return Q.moved(x, action, self.lr * delta), delta  # (3)

        Q, delta = lax.scan(one, state.Q, (steps.obs, steps.action, G, known), unroll=L <= 4)
        n = jnp.where(known.any(), known.sum(), jnp.nan)
        return state._replace(Q=Q), {"train/loss": 0.5 * (delta**2).sum() / n, "train/td_error": abs(delta).sum() / n}

    def _value_after(self, state: State, last: Transition, key: Array) -> Array:
        """What follows the newest step: the mean over the policy, or the value of an action drawn from it."""
        Q, mask, epsilon = state.Q(last.next_obs), mask_of(last.next_obs), epsilon_at(self, state.steps)
        if self.expected:
            return (epsilon_greedy_probabilities(Q, epsilon, mask) * allowed(Q, mask, 0.0)).sum()
        return Q[epsilon_greedy_choice(key, Q[None], epsilon, None if mask is None else mask[None])[0]]
