"""PPO: proximal policy optimisation. Schulman, Wolski, Dhariwal, Radford & Klimov (2017), arXiv 1707.06347.

The policy π_θ climbs a surrogate whose gradient vanishes once an action's probability has moved far enough:

    ρ_t   = π_θ(a_t | s_t) / π_old(a_t | s_t)                                                    (1)
    A_t   = Σ_l (γλ)^l δ_{t+l},   δ_t = r_t + γ V(s_{t+1}) − V(s_t)     (GAE, arXiv 1506.02438)   (2)
    L^CLIP = E[ min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t) ]                                      (3)
    L^VF   = E[ (V(s_t) − G_t)² ],   G_t = A_t + V_old(s_t)                                       (4)
    θ ← θ + lr ∇ ( L^CLIP − c_v L^VF + c_e E[ H(π_θ(· | s_t)) ] )                                (5)

Differs from the paper: actor and critic are separate networks unless `shared`; advantages are standardised per
minibatch; gradients are clipped by their norm; the value loss may be clipped (`clip_range_vf`), and an update may stop
where the policy has moved beyond `target_kl`. The old policy and its values are recomputed from the parameters that
acted, which `update` still holds when it starts.

Takes: any observations; actions Discrete, MultiDiscrete, MultiBinary (masked or not) and Box.
"""

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak import nets
from polyak.core import Counter, Metrics, Rollout, Spec, flat, hyper, in_range, leading, refuse_actions, require
from polyak.heads import Policy, Value
from polyak.optim import Schedule, adam, descend, now
from polyak.returns import explained_variance, gae, standardised
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete

_NETWORK = nets.MLP((64, 64), "tanh", "orthogonal")


class Params(NamedTuple):
    actor: Policy  # observation ↦ distribution over actions
    critic: Value  # observation ↦ V


class State(NamedTuple):
    params: Params  # θ, the policy that acts
    opt: Any  # Adam's moments
    steps: Counter  # environment steps so far


class Batch(NamedTuple):
    """What a minibatch holds, each [T, N, ...] and then [batch_size, ...]."""

    obs: Any
    action: Any
    log_prob: Array  # log π_old(a | s)
    value: Array  # V_old(s)
    advantage: Array


@hyper
class PPO:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    gae_lambda: float | Schedule = 0.95  # λ of the advantage estimates: 0 one-step, 1 whole episodes
    clip_range: float | Schedule = 0.2  # ε: how far the probability ratio may move with a gradient
    clip_range_vf: float | Schedule | None = None  # the same for V, in units of return; none: no clipping
    ent_coef: float | Schedule = 0.0  # c_e, weight of the entropy bonus
    vf_coef: float | Schedule = 0.5  # c_v, weight of the value loss
    normalize_advantage: bool = True  # standardise advantages in each minibatch
    # rhythm
    rollout_length: int = 2048  # environment steps per environment between updates
    epochs: int = 10  # passes over one rollout
    batch_size: int = 64  # minibatch, in steps
    target_kl: float | Schedule | None = None  # stop an update once the mean KL exceeds 1.5 times this; none: never
    lr: float | Schedule = 3e-4  # step size of Adam
    max_grad_norm: float | Schedule | None = 0.5  # gradients are scaled down to this norm
    adam_eps: float = 1e-5  # ε in Adam's denominator
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 64,64 tanh, and a CNN for images
    shared: bool = False  # actor and critic share their torso
    log_std_init: float = 0.0  # log σ of a Box policy at the start

    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), gae_lambda=(0, 1), clip_range=(0, jnp.inf), lr=(0, jnp.inf), ent_coef=(0, jnp.inf))
        in_range(self, rollout_length=(1, 1 << 24), epochs=(1, 1 << 16), batch_size=(1, 1 << 24), vf_coef=(0, jnp.inf))
        in_range(self, clip_range_vf=(0, jnp.inf), target_kl=(0, jnp.inf), max_grad_norm=(1e-8, jnp.inf))
        in_range(self, adam_eps=(1e-20, 1))  # 0 would make a parameter without gradients NaN

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete | MultiDiscrete | MultiBinary | Box):
            refuse_actions("PPO", spec.action)
        total = self.rollout_length * spec.n_envs
        product = f"rollout_length {self.rollout_length} × n_envs {spec.n_envs} = {total}"
        require(total % self.batch_size == 0, f"PPO: batch_size {self.batch_size} must divide {product}")
        k_actor, k_critic, k_head, k_value = jax.random.split(key, 4)
        torso = nets.build(self.network, _NETWORK, k_actor, spec.obs)
        actor = Policy.init(k_head, torso, spec.obs, spec.action, self.log_std_init)
        own = torso if self.shared else nets.build(self.network, _NETWORK, k_critic, spec.obs)
        critic = Value.init(k_value, own, spec.obs)
        params = Params(actor, replace(critic, torso=None) if self.shared else critic)
        return State(params, self._rule().init(params), Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi = state.params.actor(obs)
        return pi.sample(key) if explore else pi.mode(), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self, steps = now(self, state.steps), rollout.steps
        T, N = leading(steps, 2)
        pi, V = _policy_and_value(state.params, steps.obs)
        _, V_next = _policy_and_value(state.params, steps.next_obs)
        A = gae(self.gamma, self.gae_lambda, steps.reward, V, V_next, steps.terminated, steps.truncated)  # (2)
        data = flat(Batch(steps.obs, steps.action, pi.log_prob(steps.action), V, A))
        minibatches = T * N // self.batch_size

        def epoch(carry: Any, key: Array) -> tuple[Any, Metrics]:
            if minibatches == 1:  # the order within one batch doesn't matter
                return self._unless_too_far(carry, data)
            order = jnp.argsort(jax.random.bits(key, (T * N,))).reshape(minibatches, -1)
            return lax.scan(lambda c, i: self._unless_too_far(c, jax.tree.map(lambda x: x[i], data)), carry, order)

        (state, _), metrics = lax.scan(epoch, (state, jnp.bool_(True)), jax.random.split(key, self.epochs))
        metrics = jax.tree.map(jnp.nanmean, metrics)
        metrics["train/explained_variance"] = explained_variance(A + V, V)
        metrics["train/clip_range"], metrics["train/learning_rate"] = jnp.asarray(self.clip_range), jnp.asarray(self.lr)
        return state._replace(steps=state.steps.add(T * N)), metrics

    def learn(self, state: State, batch: Batch, key: Array | None = None) -> tuple[State, Metrics]:
        """One gradient step on a minibatch."""

        def loss(params: Params) -> tuple[Array, Metrics]:
            pi, V = _policy_and_value(params, batch.obs)
            A = standardised(batch.advantage) if self.normalize_advantage else batch.advantage
            log_rho = pi.log_prob(batch.action) - batch.log_prob
            rho = jnp.exp(log_rho)  # (1)
            clipped = jnp.clip(rho, 1 - self.clip_range, 1 + self.clip_range)
            L_clip = jnp.minimum(rho * A, clipped * A).mean()  # (3)
            G = batch.advantage + batch.value
            error = (V - G) ** 2
            if self.clip_range_vf is not None:
                V_near = batch.value + jnp.clip(V - batch.value, -self.clip_range_vf, self.clip_range_vf)
                error = jnp.maximum(error, (V_near - G) ** 2)
            L_value = error.mean()  # (4)
            H = pi.entropy().mean()
            total = -(L_clip - self.vf_coef * L_value + self.ent_coef * H)  # (5)
            return total, {
                "train/loss": total,
                "train/policy_gradient_loss": -L_clip,
                "train/value_loss": L_value,
                "train/entropy_loss": -H,
                "train/approx_kl": (rho - 1 - log_rho).mean(),  # Schulman's estimator k3: unbiased, never negative
                "train/clip_fraction": (abs(rho - 1) > self.clip_range).mean(),
            }

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        params, opt = descend(self._rule(), self.lr, grads, state.opt, state.params)
        return state._replace(params=params, opt=opt), metrics

    def _unless_too_far(self, carry: tuple[State, Array], batch: Batch) -> tuple[tuple[State, Array], Metrics]:
        """Learn from a minibatch, unless the policy has already moved beyond `target_kl` in this update."""
        state, near = carry
        learned, metrics = self.learn(state, batch)
        if self.target_kl is None:
            return (learned, near), metrics
        near &= metrics["train/approx_kl"] <= 1.5 * self.target_kl
        metrics = jax.tree.map(lambda m: jnp.where(near, m, jnp.nan), metrics)
        params, opt = jax.tree.map(lambda new, old: jnp.where(near, new, old), learned[:2], state[:2])
        return (state._replace(params=params, opt=opt), near), metrics

    def _rule(self) -> Any:
        return adam(self.max_grad_norm, self.adam_eps)


def _policy_and_value(params: Params, obs: Any) -> tuple[Any, Array]:
    """(π(· | s), V(s)) for observations with any leading axes; a shared torso is run once."""
    features = params.actor.torso(obs)
    shared = params.critic.torso is None
    return params.actor.given(features, obs), params.critic.given(features) if shared else params.critic(obs)
