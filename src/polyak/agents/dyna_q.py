"""DynaQ: Q-learning that also learns a model and plans with it. Sutton (1990), ICML 7; Sutton & Barto (2018), §8.2.

After each real step, the same update is made for n remembered ones: what was seen last after (s, a) is the model of it.

    Q(s, a) ← Q(s, a) + α [ r + γ (1 − terminated) max_a′ Q(s′, a′) − Q(s, a) ]                       (1)
    Model(s, a) ← r, s′, terminated                                                                 (2)
    n times: s drawn among the states seen, a among the actions taken there;
             r, s′ ← Model(s, a);   r ← r + κ √τ(s, a);   then (1)                                   (3)
    a = argmax_a Q(s, a), ties at random, or any action with probability ε                          (4)

τ is the number of steps since (s, a) was last really taken: with κ > 0 (Dyna-Q+, §8.3) what was not tried for long
looks better than it was, so that the agent finds out when the world changes. Then a may also be an action never yet
taken in s, of which the model is that it leads back to s for nothing.

Differs from the paper: the model keeps the last outcome, so in a stochastic world it plans with a sample.

Takes: Discrete, MultiDiscrete, MultiBinary observations and tuples of them; actions Discrete.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, hyper, in_range
from polyak.dists import mask_of
from polyak.explore import epsilon_at, nth_of
from polyak.mdp.features import Weights
from polyak.mdp.online import chosen, discrete_actions, in_turn
from polyak.optim import Schedule, now
from polyak.returns import td_target


class Outcomes(NamedTuple):
    """The model: what was last seen after each state and action, [S, A] each."""

    reward: Array
    successor: Array  # int32
    terminated: Array
    mask: Array  # [S, A] which actions are allowed in a state, as far as was seen
    when: Array  # int32, the number of the step at which it was last taken, from 1; 0: never
    states: Array  # [S] int32: the states that were acted in, in the order of their first time
    n_states: Array  # how many they are


class State(NamedTuple):
    Q: Weights  # the table [S, A]
    model: Outcomes
    steps: Counter  # environment steps so far


@hyper
class DynaQ:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    kappa: float | Schedule = 0.0  # κ: bonus per root of a step since the pair was last taken; 0: plain Dyna-Q
    # exploration
    eps_start: float = 0.1  # ε at the first step
    eps_end: float = 0.1  # ε after eps_steps
    eps_steps: int = 1  # environment steps over which ε falls, in a straight line
    # rhythm
    planning_steps: int = 10  # n: updates from the model per environment step
    lr: float | Schedule = 0.1  # step size α
    q_init: float = 0.0  # all values at the start; too high ones make it explore

    on_policy: ClassVar[bool] = False
    rollout_length: ClassVar[int] = 1  # one step, one update, n of planning

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), eps_start=(0, 1), eps_end=(0, 1), eps_steps=(1, 1 << 40), lr=(0, jnp.inf))
        in_range(self, kappa=(0, jnp.inf), planning_steps=(0, 1 << 20))

    def init(self, key: Array, spec: Spec) -> State:
        Q = Weights.init(None, spec.obs, discrete_actions("Dyna-Q", spec), self.q_init)
        zeros, states = jnp.zeros(Q.W.shape), jnp.zeros(len(Q.W), jnp.int32)
        stay = jnp.broadcast_to(jnp.arange(len(Q.W))[:, None], zeros.shape)
        never = zeros.astype(jnp.int32)
        model = Outcomes(zeros, stay, zeros.astype(bool), zeros == 0, never, states, jnp.int32(0))
        return State(Q, model, Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        return chosen(state.Q(obs), obs, key, epsilon_at(self, state.steps), explore), memory  # (4)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self = now(self, state.steps)
        state, metrics = in_turn(self.learn, state, rollout, key)
        return state, metrics | {"rollout/exploration_rate": epsilon_at(self, state.steps)}

    def learn(self, state: State, step: Transition, key: Array) -> tuple[State, Metrics]:
        """One update from one transition, [...] without leading axes, and the planning after it."""
        Q, old = state.Q, state.model
        s, after, a = Q.on(step.obs).place[0], Q.on(step.next_obs).place[0], step.action
        here, there = mask_of(step.obs), mask_of(step.next_obs)
        mask = old.mask
        if here is not None and there is not None:
            mask = mask.at[s].set(here > 0).at[after].set(there > 0)
        time = (state.steps.high * (1 << 24) + state.steps.low).astype(jnp.int32)
        new = (old.when[s] == 0).all()
        states = old.states.at[jnp.where(new, old.n_states, len(Q.W))].set(s, mode="drop")
        model = Outcomes(
            old.reward.at[s, a].set(step.reward), old.successor.at[s, a].set(after),
            old.terminated.at[s, a].set(step.terminated), mask, old.when.at[s, a].set(time + 1), states,
            old.n_states + new.astype(jnp.int32),
        )  # (2)  # fmt: skip

        def improved(W: Array, s: Array, a: Array, reward: Array) -> tuple[Array, Array]:
            after = model.successor[s, a]
            V_next = jnp.where(model.mask[after], W[after], -jnp.inf).max()
            delta = td_target(self.gamma, reward, model.terminated[s, a], V_next) - W[s, a]
            return W.at[s, a].add(self.lr * delta), delta  # (1)

        def plan(W: Array, u: Array) -> tuple[Array, Array]:
            s = model.states[jnp.floor(u[0] * model.n_states).astype(jnp.int32)]
            a = nth_of((model.mask[s] & ((model.when[s] > 0) | (self.kappa > 0)))[None], u[1:])[0]
            idle = (time + 1 - model.when[s, a]).astype(jnp.float32)
            return improved(W, s, a, model.reward[s, a] + self.kappa * jnp.sqrt(idle))  # (3)

        W, delta = improved(Q.W, s, a, step.reward)
        W, _ = lax.scan(plan, W, jax.random.uniform(key, (2 * self.planning_steps,)).reshape(-1, 2))
        metrics = {"train/loss": 0.5 * delta**2, "train/td_error": abs(delta)}
        return state._replace(Q=Weights(W, Q.features, Q.space), model=model), metrics
