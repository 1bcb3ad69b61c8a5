"""SAC: soft actor-critic. Haarnoja, Zhou, Hartikainen et al. (2018), arXiv 1812.05905.

A stochastic policy maximises return plus entropy; two critics, of which the smaller one is believed:

    V(s) = E[ min_i Q_i(s, a) − α log π_φ(a | s) ]  over a ~ π_φ(· | s)                            (1)
    y = r + γ (1 − terminated) V′(s′),   V′ by the targets θ′                                     (2)
    θ_i ← θ_i − lr ∇ E[ ½ (Q_θi(s, a) − y)² ]                                                     (3)
    φ ← φ + lr ∇ E[ V(s) ]                                                                        (4)
    log α ← log α − lr ∇ E[ −log α (log π_φ(a | s) + H̄) ],   H̄ = −dim(A)                           (5)
    θ′ ← τ θ + (1 − τ) θ′                                                                         (6)

On a Box, a = tanh(u), u = μ_φ(s) + σ_φ(s) ξ, ξ ~ N(0, I): a Gaussian kept within the bounds, through which (4) passes
its gradient; log π(a | s) = log N(u; μ, σ²) − Σ log(1 − tanh² u), and one sample stands for the expectation. Of
Discrete actions it is the sum over all (Christodoulou 2019, arXiv 1910.07207), and H̄ = 0.98 log |A|.

Differs from the paper: the temperature's loss is linear in log α, as in the authors' code. With `sde` the noise is a
linear function of the policy's features, σ ξ = Wᵀ f(s) with W drawn once per rollout (gSDE: Raffin, Kober & Stulp 2021,
arXiv 2005.05719, eq. 4-6): exploration that is smooth in time; its variance passes no gradient to the features. With a
memory, batches are of whole rollouts, from the memories with which they were acted.

Takes: any observations; actions Box with finite bounds, and Discrete, masked or not.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak import nets
from polyak.core import Counter, Metrics, Rhythm, Rollout, Spec, Transition, hyper, in_range, refuse_actions, require
from polyak.dists import Categorical, check_temperature, mask_of, usual_entropy
from polyak.explore import random_at_first
from polyak.heads import Policy, Squashed, action_value, critic_of, torso_of
from polyak.optim import Schedule, adam, descend, now, polyak
from polyak.recurrent import check_memory, start, step_all, views
from polyak.replay import UNIFORM, Drawn, check_replay, check_rhythm, check_sequences, replay_update, ring
from polyak.returns import td_target
from polyak.spaces import Box, Discrete

_NETWORK = nets.MLP((256, 256), "relu", "uniform")


class State(NamedTuple):
    actor: Any  # φ: Squashed on a Box, Policy on Discrete
    critics: tuple[Any, Any]  # θ_1, θ_2: Critic on a Box, Value of every action on Discrete
    targets: tuple[Any, Any]  # θ′_1, θ′_2
    log_alpha: Array  # log of the temperature α
    opts: tuple[Any, Any, Any]  # Adam's moments for actor, critics, log α
    noise: Any  # W of the present rollout [N, features, actions]; () without sde
    replay: Any  # transitions, for the whole run
    steps: Counter  # environment steps so far


@hyper
class SAC:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    ent_coef: float | Schedule | str = "auto"  # temperature α; "auto" learns it by (4)
    ent_coef_init: float = 1.0  # α at the start where it is learned
    target_entropy: float | None = None  # H̄ in nats; none: as above
    reward_scale: float | Schedule = 1.0  # rewards are multiplied by this before anything is learned from them
    # exploration
    sde: bool = False  # state-dependent exploration: smooth noise, drawn once per rollout
    log_std_init: float = -3.0  # with sde: log deviation of W's elements at the start
    # rhythm
    rollout_length: int = 1  # environment steps per environment between updates
    updates_per_step: Rhythm = 1.0  # gradient steps per environment step
    batch_size: int = 256  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept
    hindsight: int = 0  # transitions with a goal reached later, per one as it was (k of hindsight replay); 0: none
    learning_starts: int = 100  # environment steps before the first gradient step; actions are random until then
    tau: float | Schedule = 0.005  # τ, share of the online critics that enters the targets at each gradient step
    lr: float | Schedule = 3e-4  # step size of Adam, for all three
    max_grad_norm: float | Schedule | None = None  # gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 256,256 ReLU, and a CNN for images
    recurrent: Literal["gru", "lstm"] | None = None  # a memory of the episode, learned through rollout_length steps
    memory_size: int = 64  # width of that memory

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), tau=(0, 1), lr=(0, jnp.inf))
        check_replay(self)
        in_range(self, max_grad_norm=(1e-8, jnp.inf))
        check_memory(self)
        check_temperature(self)

    def init(self, key: Array, spec: Spec) -> State:
        bounded = isinstance(spec.action, Box) and spec.action.bounded  # tanh reaches no further than ±1
        if not (bounded or isinstance(spec.action, Discrete)):
            refuse_actions("SAC", spec.action)
        require(bounded or not self.sde, "SAC: sde is noise on a Box of actions, and these are Discrete: leave it out")
        check_rhythm("SAC", self, spec.n_envs)
        if self.recurrent is not None:
            check_sequences("SAC", self.batch_size, self.rollout_length)
        k_torso, k_heads, k_1, k_2, k_noise = jax.random.split(key, 5)
        torso = torso_of(k_torso, self, _NETWORK, spec.obs)
        kind: Any = Squashed if bounded else Policy
        actor = kind.init(k_heads, torso, spec.obs, spec.action, self.log_std_init if self.sde else None)
        critics = tuple(critic_of(k, self, _NETWORK, spec.obs, spec.action) for k in (k_1, k_2))
        log_alpha = jnp.log(jnp.float32(self.ent_coef_init))
        opts = tuple(self._rule().init(p) for p in (actor, critics, log_alpha))
        noise = actor.noise(k_noise, spec.n_envs) if self.sde else ()
        replay = ring(spec, self.buffer_size, self.rollout_length, memory=self.memory(spec), goals=self.hindsight)
        return State(actor, critics, critics, log_alpha, opts, noise, replay, Counter.of(0))  # pyright: ignore

    def memory(self, spec: Spec) -> Any:
        return () if self.recurrent is None else (start(self.recurrent, self.memory_size, spec.n_envs),) * 3

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        f, memory = step_all([head.torso for head in (state.actor, *state.critics)], obs, memory)
        pi = state.actor.given(f, obs)
        if not explore:
            return pi.mode(), memory
        k_uniform, k_pi = jax.random.split(key)
        smooth = self.sde and state.noise.shape[0] == f.shape[0]
        action = jnp.tanh(pi.mean + jnp.einsum("nf,nfa->na", f, state.noise)) if smooth else pi.sample(k_pi)
        ready = state.steps.at_least(self.learning_starts)
        return random_at_first(k_uniform, ready, action, state.actor.space, mask_of(obs)), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        k_learn, k_noise = jax.random.split(key)
        state, metrics = replay_update(now(self, state.steps), state, rollout, k_learn)
        if self.sde:
            state = state._replace(noise=state.actor.noise(k_noise, state.noise.shape[0]))
        return state, metrics

    def learn(self, state: State, batch: Transition, key: Array, drawn: Drawn = UNIFORM) -> tuple[State, Metrics]:
        """One gradient step for critics, actor and temperature on a batch of transitions [B], or of rollouts [T, B]."""
        k_next, k_pi = jax.random.split(key)
        alpha = jnp.exp(state.log_alpha) if self.ent_coef == "auto" else jnp.asarray(self.ent_coef)
        m_actor, *m_critics = drawn.memory or ((), (), ())
        pi_next = state.actor.given(views(state.actor.torso, batch, m_actor)[1], batch.next_obs)

        def seen(critics: Any, successor: bool) -> list[Array]:
            return [views(Q.torso, batch, m)[successor] for Q, m in zip(critics, m_critics, strict=True)]

        V_next, _ = _soft_value(pi_next, state.targets, seen(state.targets, True), alpha, k_next)  # (1)
        y = td_target(self.gamma, self.reward_scale * batch.reward, batch.terminated, V_next)  # (2)

        def critic_loss(critics: Any) -> Array:
            values = [action_value(Q, f, batch.action) for Q, f in zip(critics, seen(critics, False), strict=True)]
            return 0.5 * sum((((Q - y) ** 2).mean() for Q in values), start=jnp.float32(0))

        def actor_loss(actor: Any) -> tuple[Array, Array]:
            pi = actor.given(views(actor.torso, batch, m_actor)[0], batch.obs)
            V, log_pi = _soft_value(pi, critics, seen(critics, False), alpha, k_pi)
            return -V.mean(), log_pi.mean()

        critic_value, grads = jax.value_and_grad(critic_loss)(state.critics)
        critics, critic_opt = descend(self._rule(), self.lr, grads, state.opts[1], state.critics)  # (3)
        (actor_value, log_pi), grads = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
        actor, actor_opt = descend(self._rule(), self.lr, grads, state.opts[0], state.actor)  # (4)
        least = usual_entropy(actor.space) if self.target_entropy is None else self.target_entropy  # H̄
        surplus = -(log_pi + least)  # of entropy: the gradient of (5)
        log_alpha, alpha_opt = state.log_alpha, state.opts[2]
        if self.ent_coef == "auto":
            log_alpha, alpha_opt = descend(self._rule(), self.lr, surplus, alpha_opt, log_alpha)  # (5)
        targets = polyak(state.targets, critics, self.tau)  # (6)
        learned = state._replace(
            actor=actor, critics=critics, targets=targets, log_alpha=log_alpha, opts=(actor_opt, critic_opt, alpha_opt)
        )
        metrics = {"train/actor_loss": actor_value, "train/critic_loss": critic_value, "train/ent_coef": alpha}
        return learned, metrics | {"train/ent_coef_loss": state.log_alpha * surplus}

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)


def _soft_value(pi: Any, critics: Any, features: Any, alpha: Any, key: Array) -> tuple[Array, Array]:
    """(V(s), E[log π(a | s)]): of all actions where there are finitely many, else of one that π draws."""
    if isinstance(pi, Categorical):
        log_pi = jax.nn.log_softmax(pi.logits)
        p, Q = jnp.exp(log_pi), jnp.minimum(*(Q.given(f) for Q, f in zip(critics, features, strict=True)))
        return (p * (Q - alpha * log_pi)).sum(-1), (p * log_pi).sum(-1)
    a, log_pi = pi.sample_and_log_prob(key)
    Q = jnp.minimum(*(action_value(Q, f, a) for Q, f in zip(critics, features, strict=True)))
    return Q - alpha * log_pi, log_pi
