"""TD: prediction by temporal differences, with a table or linear features. Sutton (1988), Machine Learning 3.
Sutton & Barto (2018): TD(0) §6.1, n-step §7.1, TD(λ) §12.2, linear §9.4.

How good is a given policy π? The estimate of a state moves towards the next rewards and the estimate that follows:

    δ = r + γ (1 − terminated) V(s′) − V(s)                                                         (1)
    z ← γ λ z + x(s),   w ← w + α δ z;   V(s) = w · x(s)        with `lam`: traces                   (2)
    G = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n})                    without: n steps, 1 is TD(0)         (3)
    w ← w + α [G − V(s_t)] x(s_t)                                                                   (4)
    a ~ π(· | s)                                                                                    (5)

A trace z remembers what led here; it starts anew with each episode. An episode that ends sooner cuts the sum in (3).

Differs from the paper: a truncated episode goes on in V of its last observation.

Takes: Discrete, MultiDiscrete, MultiBinary observations and tuples of them, a Box with `features`; actions Discrete.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, hyper, in_range, require
from polyak.mdp.features import Features, Weights
from polyak.mdp.online import Policy, Window, due, each, followed, forgotten, policy_of, pushed, window
from polyak.optim import Schedule, now
from polyak.returns import ended, n_step_return, td_target


class State(NamedTuple):
    V: Weights  # w: one column
    policy: Array  # π(a | s) [observations, A]; [1, A] where it is the same in all
    window: Window  # the steps of each environment that wait for their return
    trace: Array  # z of each environment [N, features]; [N, 0] without `lam`
    steps: Counter  # environment steps so far


@hyper
class TD:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    lam: float | Schedule | None = None  # λ: how long a trace lasts, 1 for Monte Carlo's target; none: no traces
    n_step: int = 1  # n: rewards in the target before a value follows
    policy: Policy | None = None  # π to be judged: probabilities [observations, actions]; none: all actions alike
    # rhythm
    lr: float | Schedule = 0.1  # step size α; with n tilings, that of one tile: divide by n
    v_init: float = 0.0  # all values at the start
    # features
    features: Features | None = None  # tiles:8,8, fourier:3, polynomial:2, radial:5; none: one-hot, a table

    on_policy: ClassVar[bool] = True
    rollout_length: ClassVar[int] = 1  # one step, one update

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), lam=(0, 1), n_step=(1, 1000), lr=(0, jnp.inf))
        require(self.lam is None or self.n_step == 1, f"TD: lam and n_step={self.n_step} exclude each other; give one")

    def init(self, key: Array, spec: Spec) -> State:
        V = Weights.init(self.features, spec.obs, 1, self.v_init)
        n = 0 if self.lam is None else V.W.shape[0]
        policy = policy_of("TD", self.policy, V, spec)
        return State(V, policy, window(spec, self.n_step), jnp.zeros((spec.n_envs, n)), Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        return followed(state.policy, state.V, obs, key), memory  # (5)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self, waiting = now(self, state.steps), pushed(state.window, rollout)
        N = waiting.held.shape[0]
        (V, trace), metrics = each(self.learn, (state.V, state.trace), (waiting, jnp.arange(N)), key, N)
        trace = jnp.where(ended(rollout.steps)[0][:, None], 0.0, trace)
        waiting = forgotten(waiting, rollout)
        return state._replace(V=V, trace=trace, window=waiting, steps=state.steps.add(N)), metrics

    def learn(self, learner: Any, row: tuple[Window, Array], key: Array) -> tuple[Any, Metrics]:
        """Update (V, traces) from one environment's waiting steps [L, ...] and its number."""
        (V, trace), (waiting, i) = learner, row
        if self.lam is None:
            V, delta, n = self._n_steps(V, waiting)
        else:
            last: Transition = jax.tree.map(lambda x: x[-1], waiting.steps)
            x, V_next = V.on(last.obs), V(last.next_obs)[0]
            delta = td_target(self.gamma, last.reward, last.terminated, V_next) - V.of(x)[0]  # (1)
            z = (self.gamma * self.lam * trace[i]).at[x.place].add(x.value)
            V, trace, n = V.added(self.lr * delta * z[:, None]), trace.at[i].set(z), 1.0  # (2)
        return (V, trace), {"train/loss": 0.5 * (delta**2).sum() / n, "train/td_error": abs(delta).sum() / n}

    def _n_steps(self, V: Weights, waiting: Window) -> tuple[Weights, Array, Array]:
        """(V, errors [L], how many were learned from): the oldest step, or all at an end."""
        steps, L = waiting.steps, waiting.steps.reward.shape[0]
        V_next = jnp.zeros(L).at[-1].set(V(jax.tree.map(lambda x: x[-1], steps.next_obs))[0])
        G = n_step_return(self.gamma, self.n_step, steps.reward, V_next, steps.terminated, steps.truncated)  # (3)
        known = due(waiting)

        def one(V: Weights, row: tuple[Any, Array, Array]) -> tuple[Weights, Array]:
            obs, target, is_due = row
            x = V.on(obs)
            delta = jnp.where(is_due, target - V.of(x)[0], 0.0)
            return V.moved(x, jnp.int32(0), self.lr * delta), delta  # (4)

        V, delta = lax.scan(one, V, (steps.obs, G, known), unroll=L <= 4)
        return V, delta, jnp.where(known.any(), known.sum(), jnp.nan)
