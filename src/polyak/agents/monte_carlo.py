"""MonteCarlo: prediction and control from whole episodes, with a table or linear features.
Sutton & Barto (2018): §5.1 prediction, §5.4 on-policy control, §9.3 gradient Monte Carlo.

What followed a state, to the end of the episode, is a sample of its value. Nothing is bootstrapped:

    G_t = Σ_k γ^k r_{t+k}                                                                           (1)
    w ← w + α [G_t − Q(s_t, a_t)] x(s_t)     for t = 0, 1, …, at the end of each episode             (2)
    α = 1 / N(s, a)     where `lr` is none: the mean of all returns                                  (3)
    a = argmax_a Q(s, a), ties at random, or any action with probability ε; a ~ π where it is given  (4)

With a `policy` it learns V of that policy, else Q of its own ε-greedy one. `first_visit` counts a state and action only
the first time in each episode.

Episodes need not be stored, so they may be of any length. (2) is linear in w and in the rewards: visit by visit,
w becomes F w + α G x with F = I − α x xᵀ, so a dutch trace z ← F γz + α x says what the next reward adds to, and F is
applied to what has been gathered so far (§12.6). At the end, w is the product of all F with w, plus what was gathered.

Differs from the paper: a truncated episode goes on in the value of its last observation. With `features`, one
environment at a time: what others learn meanwhile could not be told from the episode's own.

Takes: Discrete, MultiDiscrete, MultiBinary observations and tuples of them, a Box with `features`; actions Discrete.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, hyper, in_range, require
from polyak.dists import mask_of
from polyak.explore import epsilon_at, epsilon_greedy_probabilities
from polyak.mdp.features import Features, OneHot, Weights
from polyak.mdp.online import Policy, allowed, chosen, discrete_actions, each, followed, policy_of
from polyak.optim import Schedule, now


class Episode(NamedTuple):
    """What the present episode of each environment adds up to, [N, features, columns] each."""

    trace: Array  # z: what the next reward adds to
    gathered: Array  # what the rewards so far have added up to
    kept: Array  # the product of all F: of a table its diagonal, with features times w, and w taken off
    visits: Array  # how often each state and action was visited, or how strongly each feature


class State(NamedTuple):
    Q: Weights  # w: one column per action, or one alone for V of a given policy
    policy: Array  # π(a | s) [observations, A]; [1, 0] where it is ε-greedy
    episode: Episode  # of each environment
    counts: Array  # N(s, a) [features, columns]
    steps: Counter  # environment steps so far


@hyper
class MonteCarlo:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    first_visit: bool = True  # only the first visit of an episode counts; with `features`, all do
    policy: Policy | None = None  # π to be judged: probabilities [observations, actions], or "uniform"; none: control
    # exploration
    eps_start: float = 0.1  # ε at the first step
    eps_end: float = 0.1  # ε after eps_steps
    eps_steps: int = 1  # environment steps over which ε falls, in a straight line
    # rhythm
    lr: float | Schedule | None = None  # step size α; none: 1 / N, the mean of all returns (tables only)
    q_init: float = 0.0  # all values at the start
    # features
    features: Features | None = None  # tiles:8,8, fourier:3, polynomial:2, radial:5; none: one-hot, a table

    on_policy: ClassVar[bool] = True
    rollout_length: ClassVar[int] = 1  # the trace grows with every step; the table changes at the end of an episode

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), eps_start=(0, 1), eps_end=(0, 1), eps_steps=(1, 1 << 40), lr=(0, jnp.inf))
        word = not isinstance(self.policy, str) or self.policy == "uniform"
        require(word, f"MonteCarlo: policy is {self.policy!r}, and must be a table of probabilities or 'uniform'")
        table = self.features is None or isinstance(self.features, OneHot)
        require(table or self.lr is not None, "MonteCarlo: lr is none, which goes with a table; give a number")
        require(table or not self.first_visit, "MonteCarlo: first visits are of a table; set first_visit=False")

    def init(self, key: Array, spec: Spec) -> State:
        n = discrete_actions("MonteCarlo", spec)
        Q = Weights.init(self.features, spec.obs, n if self.policy is None else 1, self.q_init)
        given = None if isinstance(self.policy, str) else self.policy
        policy = jnp.zeros((1, 0)) if self.policy is None else policy_of("MonteCarlo", given, Q, spec)
        require(Q.tabular or spec.n_envs == 1, f"MonteCarlo with features takes one environment, not {spec.n_envs}")
        episode = Episode(*(jnp.repeat(part[None], spec.n_envs, 0) for part in _begun(Q)))
        return State(Q, policy, episode, jnp.zeros(Q.W.shape), Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        if self.policy is not None:
            return followed(state.policy, state.Q, obs, key), memory
        return chosen(state.Q(obs), obs, key, epsilon_at(self, state.steps), explore), memory  # (4)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self, N = now(self, state.steps), rollout.steps.reward.shape[1]
        steps = jax.tree.map(lambda x: x[0], rollout.steps)
        state, metrics = each(self.learn, state, (steps, jnp.arange(N)), key, N)
        state = state._replace(steps=state.steps.add(N))
        return state, metrics | {"rollout/exploration_rate": epsilon_at(self, state.steps)}

    def learn(self, state: State, row: tuple[Transition, Array], key: Array) -> tuple[State, Metrics]:
        """Add one environment's step to its episode, and learn from the episode where it ends with it."""
        (step, i), Q = row, state.Q
        x, column = Q.on(step.obs), step.action if self.policy is None else jnp.int32(0)
        old = Episode(*(part[i] for part in state.episode))
        counts = (old.visits[x.place, column] == 0) if self.first_visit else jnp.ones(x.place.shape, bool)
        at, on = (x.place, column), jnp.where(counts, x.value, 0.0)
        alpha = 0.0 if self.lr is None else self.lr * Q.rate(x)

        def faded(part: Array) -> Array:
            """F times what there is: the part that (2) takes away."""
            return part.at[at].add(-alpha * on * (on * part[at]).sum())

        trace = faded(self.gamma * old.trace).at[at].add(on if self.lr is None else alpha * on)
        V_last = jnp.where(step.truncated, self._value_after(state, step), 0.0)
        gathered = faded(old.gathered) + (step.reward + self.gamma * V_last) * trace  # (1)
        kept = faded(old.kept) if Q.tabular else faded(Q.W + old.kept) - Q.W
        gone = Episode(trace, gathered, kept, old.visits.at[at].add(on))
        end = step.terminated | step.truncated
        W, counted = self._learned(Q, gone, state.counts)
        Q, before = Weights(jnp.where(end, W, Q.W), Q.features, Q.space), Q.W
        after = Episode(*(jnp.where(end, new, part) for new, part in zip(_begun(Q), gone, strict=True)))
        episode = Episode(*(rows.at[i].set(new) for rows, new in zip(state.episode, after, strict=True)))
        moved = jnp.where(end, abs(Q.W - before).max(), jnp.nan)
        state = state._replace(Q=Q, episode=episode, counts=jnp.where(end, counted, state.counts))
        return state, {"train/largest_change": moved}

    def _learned(self, Q: Weights, episode: Episode, counts: Array) -> tuple[Array, Array]:
        """(w, N) after an episode that ends now."""
        counts = counts + episode.visits
        if self.lr is None:
            mean = Q.W + (episode.gathered - episode.visits * Q.W) / jnp.maximum(counts, 1.0)  # (3)
            return mean, counts
        return (episode.kept * Q.W if Q.tabular else Q.W + episode.kept) + episode.gathered, counts  # (2)

    def _value_after(self, state: State, step: Transition) -> Array:
        """The value of an observation at which the clock ran out."""
        Q, mask = state.Q(step.next_obs), mask_of(step.next_obs)
        if self.policy is not None:
            return Q[0]
        return (epsilon_greedy_probabilities(Q, epsilon_at(self, state.steps), mask) * allowed(Q, mask, 0.0)).sum()


def _begun(Q: Weights) -> Episode:
    """An episode that has no steps yet, [features, columns]."""
    nothing = jnp.zeros(Q.W.shape)
    return Episode(nothing, nothing, nothing + float(Q.tabular), nothing)
