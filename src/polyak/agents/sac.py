"""SAC: soft actor-critic. Haarnoja, Zhou, Hartikainen et al. (2018), arXiv 1812.05905.

A stochastic policy maximises return plus entropy; two critics, of which the smaller one is believed:

    a′ ~ π_φ(· | s′),   y = r + γ (1 − terminated) [ min_i Q_θ′i(s′, a′) − α log π_φ(a′ | s′) ]     (1)
    θ_i ← θ_i − lr ∇ E[ ½ (Q_θi(s, a) − y)² ]                                                     (2)
    φ ← φ − lr ∇ E[ α log π_φ(ã | s) − min_i Q_θi(s, ã) ],   ã = tanh(μ_φ(s) + σ_φ(s) ξ)           (3)
    log α ← log α − lr ∇ E[ −log α (log π_φ(ã | s) + H̄) ],   H̄ = −dim(A)                           (4)
    θ′ ← τ θ + (1 − τ) θ′                                                                         (5)

Differs from the paper: the temperature's loss is linear in log α, as in the authors' code. With `sde` the noise is a
linear function of the policy's features, σ ξ = Wᵀ f(s) with W drawn once per rollout (gSDE: Raffin, Kober & Stulp 2021,
arXiv 2005.05719, eq. 4-6): exploration that is smooth in time; its variance passes no gradient to the features.

Takes: any observations; actions Box with finite bounds.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak import nets
from polyak.core import Counter, Metrics, Rhythm, Rollout, Spec, Transition, hyper, in_range, refuse_actions, require
from polyak.dists import parameters
from polyak.explore import uniform
from polyak.heads import Squashed
from polyak.optim import Schedule, adam, descend, now, polyak
from polyak.replay import check_rhythm, replay_update, ring
from polyak.returns import td_target
from polyak.spaces import Box

_NETWORK = nets.MLP((256, 256), "relu", "uniform")


class State(NamedTuple):
    actor: Squashed  # φ
    critics: tuple[Any, Any]  # θ_1, θ_2: (observation, action) ↦ value
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
    target_entropy: float | None = None  # H̄ in nats; none: minus the number of action dimensions
    reward_scale: float | Schedule = 1.0  # rewards are multiplied by this before anything is learned from them
    # exploration
    sde: bool = False  # state-dependent exploration: smooth noise, drawn once per rollout
    log_std_init: float = -3.0  # with sde: log deviation of W's elements at the start
    # rhythm
    rollout_length: int = 1  # environment steps per environment between updates
    updates_per_step: Rhythm = 1.0  # gradient steps per environment step
    batch_size: int = 256  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept
    learning_starts: int = 100  # environment steps before the first gradient step; actions are random until then
    tau: float | Schedule = 0.005  # τ, share of the online critics that enters the targets at each gradient step
    lr: float | Schedule = 3e-4  # step size of Adam, for all three
    max_grad_norm: float | Schedule | None = None  # gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 256,256 ReLU, and a CNN for images

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), tau=(0, 1), lr=(0, jnp.inf), ent_coef=(0, jnp.inf), ent_coef_init=(1e-8, jnp.inf))
        in_range(self, batch_size=(1, 1 << 24), buffer_size=(1, 1 << 30), learning_starts=(0, 1 << 40))
        in_range(self, rollout_length=(1, 1 << 20), max_grad_norm=(1e-8, jnp.inf))
        known = not isinstance(self.ent_coef, str) or self.ent_coef == "auto"
        require(known, f"SAC: ent_coef is {self.ent_coef!r}, and must be a number or 'auto'")

    def init(self, key: Array, spec: Spec) -> State:
        if not (isinstance(spec.action, Box) and spec.action.bounded):  # tanh reaches no further than ±1
            refuse_actions("SAC", spec.action)
        check_rhythm("SAC", self, spec.n_envs)
        k_torso, k_heads, k_1, k_2, k_noise = jax.random.split(key, 5)
        n = parameters(spec.action)
        torso = nets.build(self.network, _NETWORK, k_torso, spec.obs)
        actor = Squashed.init(k_heads, torso, spec.obs, spec.action, self.log_std_init if self.sde else None)
        critics = tuple(nets.build_critic(self.network, _NETWORK, k, spec.obs, n) for k in (k_1, k_2))
        log_alpha = jnp.log(jnp.float32(self.ent_coef_init))
        opts = tuple(self._rule().init(p) for p in (actor, critics, log_alpha))
        noise = actor.noise(k_noise, spec.n_envs) if self.sde else ()
        replay = ring(spec, self.buffer_size, self.rollout_length)
        return State(actor, critics, critics, log_alpha, opts, noise, replay, Counter.of(0))  # pyright: ignore

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        f = state.actor.torso(obs)
        pi = state.actor.given(f)
        if not explore:
            return pi.mode(), memory
        k_uniform, k_pi = jax.random.split(key)
        smooth = self.sde and state.noise.shape[0] == f.shape[0]
        action = jnp.tanh(pi.mean + jnp.einsum("nf,nfa->na", f, state.noise)) if smooth else pi.sample(k_pi)
        warm = state.steps.at_least(self.learning_starts)
        return jnp.where(warm, action, uniform(k_uniform, state.actor.space, f.shape[0])), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        k_learn, k_noise = jax.random.split(key)
        state, metrics = replay_update(now(self, state.steps), state, rollout, k_learn)
        if self.sde:
            state = state._replace(noise=state.actor.noise(k_noise, state.noise.shape[0]))
        return state, metrics

    def learn(self, state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        """One gradient step for critics, actor and temperature on a batch of transitions."""
        k_next, k_pi = jax.random.split(key)
        alpha = jnp.exp(state.log_alpha) if self.ent_coef == "auto" else jnp.asarray(self.ent_coef)
        a_next, log_pi_next = state.actor(batch.next_obs).sample_and_log_prob(k_next)
        V_next = _smaller(state.targets, batch.next_obs, a_next) - alpha * log_pi_next
        y = td_target(self.gamma, self.reward_scale * batch.reward, batch.terminated, V_next)  # (1)

        def critic_loss(critics: Any) -> Array:
            return sum((0.5 * ((Q(batch.obs, batch.action) - y) ** 2).mean() for Q in critics), start=jnp.float32(0))

        def actor_loss(actor: Squashed) -> tuple[Array, Array]:
            a, log_pi = actor(batch.obs).sample_and_log_prob(k_pi)
            return (alpha * log_pi - _smaller(critics, batch.obs, a)).mean(), log_pi.mean()

        critic_value, grads = jax.value_and_grad(critic_loss)(state.critics)
        critics, critic_opt = descend(self._rule(), self.lr, grads, state.opts[1], state.critics)  # (2)
        (actor_value, log_pi), grads = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
        actor, actor_opt = descend(self._rule(), self.lr, grads, state.opts[0], state.actor)  # (3)
        surplus = -(log_pi + self._target_entropy(state))  # of entropy over H̄: the gradient of (4)
        log_alpha, alpha_opt = state.log_alpha, state.opts[2]
        if self.ent_coef == "auto":
            log_alpha, alpha_opt = descend(self._rule(), self.lr, surplus, alpha_opt, log_alpha)  # (4)
        targets = polyak(state.targets, critics, self.tau)  # (5)
        learned = state._replace(
            actor=actor, critics=critics, targets=targets, log_alpha=log_alpha, opts=(actor_opt, critic_opt, alpha_opt)
        )
        metrics = {"train/actor_loss": actor_value, "train/critic_loss": critic_value, "train/ent_coef": alpha}
        return learned, metrics | {"train/ent_coef_loss": state.log_alpha * surplus}

    def _target_entropy(self, state: State) -> Any:
        return -float(parameters(state.actor.space)) if self.target_entropy is None else self.target_entropy

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)


def _smaller(critics: Any, obs: Any, action: Array) -> Array:
    """min_i Q_i(s, a): the more pessimistic of the twins."""
    return jnp.minimum(critics[0](obs, action), critics[1](obs, action))
