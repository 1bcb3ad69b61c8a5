"""TQC: truncated quantile critics. Kuznetsov, Shvechikov, Grishin & Vetrov (2020), arXiv 2005.04269.

Soft actor-critic with distributional critics: each gives M quantiles of the return. Against overestimation, the
quantiles of all N critics are pooled and the largest ones left out of the target:

    a′ ~ π_φ(· | s′),   z₍₁₎ ≤ z₍₂₎ ≤ … ≤ z₍NM₎   the values θ^m_ψ′n(s′, a′) of all critics, sorted             (1)
    y_i = r + γ (1 − terminated) [ z₍i₎ − α log π_φ(a′ | s′) ],   i = 1 … K = N (M − dropped)                  (2)
    ψ_n ← ψ_n − lr ∇ E[ 1/(K M) Σ_m Σ_i ρ_τm(y_i − θ^m_ψn(s, a)) ],   τ_m = (2 m − 1) / 2 M                    (3)
    ρ_τ(u) = |τ − 1(u < 0)| ℓ(u),   ℓ(u) = ½ u² for |u| ≤ 1, else |u| − ½   (Huber)
    φ ← φ − lr ∇ E[ α log π_φ(ã | s) − 1/(N M) Σ_n Σ_m θ^m_ψn(s, ã) ],   ã = tanh(μ_φ(s) + σ_φ(s) ξ)           (4)
    log α ← log α − lr ∇ E[ −log α (log π_φ(ã | s) + H̄) ],   H̄ = −dim(A)                                      (5)
    ψ′ ← τ ψ + (1 − τ) ψ′                                                                                     (6)

Differs from the paper: two critics of 256,256 unless told otherwise (the paper: `n_critics` 5, `critic_network`
512,512,512). The temperature's loss is linear in log α, as in the authors' code.

Takes: any observations; actions Box with finite bounds.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak import nets
from polyak.core import Counter, Metrics, Rhythm, Rollout, Spec, Transition, hyper, in_range, refuse_actions
from polyak.dists import check_temperature, parameters, usual_entropy
from polyak.explore import random_at_first
from polyak.heads import Squashed
from polyak.optim import Schedule, adam, descend, now, polyak
from polyak.replay import check_replay, check_rhythm, replay_update, ring
from polyak.returns import quantile_huber_loss, td_target
from polyak.spaces import Box

_NETWORK = nets.MLP((256, 256), "relu", "uniform")


class State(NamedTuple):
    actor: Squashed  # φ
    critics: tuple[Any, ...]  # ψ_1 … ψ_N: (observation, action) ↦ M quantiles of the return
    targets: tuple[Any, ...]  # ψ′_1 … ψ′_N
    log_alpha: Array  # log of the temperature α
    opts: tuple[Any, Any, Any]  # Adam's moments for actor, critics, log α
    replay: Any  # transitions, for the whole run
    steps: Counter  # environment steps so far


@hyper
class TQC:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    n_critics: int = 2  # N, critics whose quantiles are pooled
    n_quantiles: int = 25  # M, quantiles of each critic
    drop_per_critic: int = 2  # quantiles per critic that the target leaves out, N times as many of the pool's largest
    ent_coef: float | Schedule | str = "auto"  # temperature α; "auto" learns it by (5)
    ent_coef_init: float = 1.0  # α at the start where it is learned
    target_entropy: float | None = None  # H̄ in nats; none: minus the number of action dimensions
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
    critic_network: Any = None  # the same for the critics alone; none: as `network`

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), tau=(0, 1), lr=(0, jnp.inf))
        check_replay(self)
        in_range(self, max_grad_norm=(1e-8, jnp.inf), n_critics=(1, 1 << 10))
        in_range(self, n_quantiles=(1, 1 << 16), drop_per_critic=(0, self.n_quantiles - 1))
        check_temperature(self)

    def init(self, key: Array, spec: Spec) -> State:
        if not (isinstance(spec.action, Box) and spec.action.bounded):  # tanh reaches no further than ±1
            refuse_actions("TQC", spec.action)
        check_rhythm("TQC", self, spec.n_envs)
        k_torso, k_heads, *k_critics = jax.random.split(key, 2 + self.n_critics)
        n, M = parameters(spec.action), self.n_quantiles
        actor = Squashed.init(k_heads, nets.build(self.network, _NETWORK, k_torso, spec.obs), spec.obs, spec.action)
        network = self.network if self.critic_network is None else self.critic_network
        critics = tuple(nets.build_critic(network, _NETWORK, k, spec.obs, n, M) for k in k_critics)
        log_alpha = jnp.log(jnp.float32(self.ent_coef_init))
        actor_opt, critic_opt, alpha_opt = (self._rule().init(p) for p in (actor, critics, log_alpha))
        replay = ring(spec, self.buffer_size, self.rollout_length, goals=self.hindsight)
        return State(actor, critics, critics, log_alpha, (actor_opt, critic_opt, alpha_opt), replay, Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi = state.actor(obs)
        if not explore:
            return pi.mode(), memory
        k_uniform, k_pi = jax.random.split(key)
        action = pi.sample(k_pi)
        ready = state.steps.at_least(self.learning_starts)
        return random_at_first(k_uniform, ready, action, state.actor.space), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        return replay_update(now(self, state.steps), state, rollout, key)

    def learn(self, state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        """One gradient step for critics, actor and temperature on a batch of transitions."""
        k_next, k_pi = jax.random.split(key)
        alpha = jnp.exp(state.log_alpha) if self.ent_coef == "auto" else jnp.asarray(self.ent_coef)
        y = self._target_atoms(state, batch, alpha, k_next)

        def critic_loss(critics: Any) -> Array:
            losses = (quantile_huber_loss(theta(batch.obs, batch.action), y).mean() for theta in critics)
            return sum(losses, start=jnp.float32(0))

        def actor_loss(actor: Squashed) -> tuple[Array, Array]:
            a, log_pi = actor(batch.obs).sample_and_log_prob(k_pi)
            return (alpha * log_pi - _pooled(critics, batch.obs, a).mean(-1)).mean(), log_pi.mean()

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

    def _target_atoms(self, state: State, batch: Transition, alpha: Array, key: Array) -> Array:
        """y [B, K]: the pooled quantiles of the successor without the largest ones, one step back in time."""
        a_next, log_pi = state.actor(batch.next_obs).sample_and_log_prob(key)
        z = jnp.sort(_pooled(state.targets, batch.next_obs, a_next), axis=-1)  # (1)
        kept = self.n_critics * (self.n_quantiles - self.drop_per_critic)
        V_next = z[:, :kept] - (alpha * log_pi)[:, None]
        return td_target(self.gamma, batch.reward[:, None], batch.terminated[:, None], V_next)  # (2)

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)


def _pooled(critics: Any, obs: Any, action: Array) -> Array:
    """The quantiles of all critics side by side, [B, N·M]."""
    return jnp.concatenate([theta(obs, action) for theta in critics], axis=-1)
