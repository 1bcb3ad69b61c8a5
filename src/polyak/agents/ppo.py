"""PPO: proximal policy optimisation. Schulman, Wolski, Dhariwal, Radford & Klimov (2017), arXiv 1707.06347.

The policy π_θ climbs a surrogate whose gradient vanishes once an action's probability has moved far enough, or one that
a penalty ties to the old policy: TRPO's trust region, with first derivatives alone.

    ρ_t   = π_θ(a_t | s_t) / π_old(a_t | s_t)                                                    (1)
    A_t   = Σ_l (γλ)^l δ_{t+l},   δ_t = r_t + γ V(s_{t+1}) − V(s_t)     (GAE, arXiv 1506.02438)   (2)
    L^π   = E[ min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t) ],   E[ ρ_t A_t ] without `clip_range`    (3)
    L^KL  = β E[ KL(π_old(· | s_t) ‖ π_θ(· | s_t)) ]                       where `kl_coef`         (4)
    L^VF  = E[ (V(s_t) − G_t)² ],   G_t = A_t + V_old(s_t)                                       (5)
    θ ← θ + lr ∇ ( L^π − L^KL − c_v L^VF + c_e E[ H(π_θ(· | s_t)) ] )                             (6)
    β ← β / 2 where KL < d_targ / 1.5,   2 β where KL > 1.5 d_targ         after each update       (7)

Differs from the paper: actor and critic are separate networks unless `shared`; advantages are standardised per
minibatch; gradients are clipped by their norm; the value loss may be clipped (`clip_range_vf`), and an update may stop
where the policy has moved beyond `target_kl`. The old policy and its values are recomputed from the parameters that
acted, which `update` still holds when it starts. With a memory, minibatches are of sequences (at most batch_size long)
that begin with the memory of those parameters.

Takes: any observations; actions Discrete, MultiDiscrete, MultiBinary (masked or not) and Box.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak import nets
from polyak.core import Counter, Metrics, Rollout, Spec, hyper, in_range, leading, refuse_actions, require
from polyak.heads import PolicyValue
from polyak.minibatches import check_minibatches, passes
from polyak.optim import Schedule, adam, descend, now
from polyak.recurrent import check_memory
from polyak.returns import ended, explained_variance, gae, standardised, value_error
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete

_NETWORK = nets.MLP((64, 64), "tanh", "orthogonal")


class State(NamedTuple):
    params: PolicyValue  # θ, the policy that acts, and its value
    opt: Any  # Adam's moments
    beta: Any  # β where it adapts to d_targ, else ()
    steps: Counter  # environment steps so far


class Batch(NamedTuple):
    """What a minibatch holds, each [batch_size, ...]; sequences [length, batch_size / length, ...] with a memory."""

    obs: Any
    action: Any
    log_prob: Array  # log π_old(a | s)
    value: Array  # V_old(s)
    advantage: Array
    pi: Any = ()  # π_old(· | s) where its KL is penalised
    end: Any = ()  # whether the episode ended with this step
    memory: Any = ()  # memory with which the step was seen


@hyper
class PPO:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    gae_lambda: float | Schedule = 0.95  # λ of the advantage estimates: 0 one-step, 1 whole episodes
    clip_range: float | Schedule | None = 0.2  # ε: how far the probability ratio may move with a gradient; none: any
    kl_coef: float | Schedule | None = None  # β, weight of the KL penalty, or its start; none: no penalty
    d_targ: float | Schedule | None = None  # KL of an update that β aims at, in nats; none: β stays kl_coef
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
    recurrent: Literal["gru", "lstm"] | None = None  # a memory of the episode behind the torso
    memory_size: int = 64  # width of that memory
    log_std_init: float = 0.0  # log σ of a Box policy at the start

    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), gae_lambda=(0, 1), clip_range=(0, jnp.inf), lr=(0, jnp.inf), ent_coef=(0, jnp.inf))
        in_range(self, rollout_length=(1, 1 << 24), epochs=(1, 1 << 16), batch_size=(1, 1 << 24), vf_coef=(0, jnp.inf))
        in_range(self, clip_range_vf=(0, jnp.inf), target_kl=(0, jnp.inf), max_grad_norm=(1e-8, jnp.inf))
        in_range(self, kl_coef=(0, jnp.inf), d_targ=(1e-12, jnp.inf), adam_eps=(1e-20, 1))  # ε = 0: NaN
        check_memory(self)
        require(self.d_targ is None or self.kl_coef is not None, "PPO: d_targ adapts β: give its start, kl_coef, too")

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete | MultiDiscrete | MultiBinary | Box):
            refuse_actions("PPO", spec.action)
        check_minibatches("PPO", self.rollout_length, spec.n_envs, self.batch_size, self.recurrent is not None)
        params = PolicyValue.init(key, self, _NETWORK, spec)
        beta = () if self.d_targ is None else jnp.asarray(now(self, Counter.of(0)).kl_coef, jnp.float32)
        return State(params, self._rule().init(params), beta, Counter.of(0))

    def memory(self, spec: Spec) -> Any:
        return PolicyValue.memory(self, spec.n_envs)

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi, memory = state.params.act(obs, memory)
        return pi.sample(key) if explore else pi.mode(), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self, steps = now(self, state.steps), rollout.steps
        T, N = leading(steps, 2)
        old, V_next = state.params.rollout(steps, rollout.memory)
        A = gae(self.gamma, self.gae_lambda, steps.reward, old.V, V_next, steps.terminated, steps.truncated)  # (2)
        pi = () if self.kl_coef is None else old.pi
        data = Batch(steps.obs, steps.action, old.pi.log_prob(steps.action), old.V, A, pi, ended(steps), old.before)
        carry, rhythm = (state, jnp.bool_(True)), (self.epochs, self.batch_size, self.recurrent is not None)
        (state, _), metrics = passes(self._unless_too_far, carry, data, key, *rhythm)
        metrics["train/explained_variance"] = explained_variance(A + old.V, old.V)
        metrics["train/learning_rate"] = jnp.asarray(self.lr)
        if self.clip_range is not None:
            metrics["train/clip_range"] = jnp.asarray(self.clip_range)
        if self.kl_coef is not None:
            kl = old.pi.kl(state.params.over(steps.obs, ended(steps), rollout.memory).pi).mean()
            metrics |= {"train/kl_divergence": kl, "train/kl_coef": self._beta(state)}
            state = state._replace(beta=self._adapted(state.beta, kl))
        return state._replace(steps=state.steps.add(T * N)), metrics

    def learn(self, state: State, batch: Batch, key: Array | None = None) -> tuple[State, Metrics]:
        """One gradient step on a minibatch."""

        def loss(params: PolicyValue) -> tuple[Array, Metrics]:
            pi, V, *_ = params.over(batch.obs, batch.end, jax.tree.map(lambda m: m[0], batch.memory))
            A = standardised(batch.advantage) if self.normalize_advantage else batch.advantage
            log_rho = pi.log_prob(batch.action) - batch.log_prob
            rho = jnp.exp(log_rho)  # (1)
            epsilon = jnp.inf if self.clip_range is None else self.clip_range
            L_pi = jnp.minimum(rho * A, jnp.clip(rho, 1 - epsilon, 1 + epsilon) * A).mean()  # (3)
            L_kl = 0.0 if self.kl_coef is None else self._beta(state) * batch.pi.kl(pi).mean()  # (4)
            G = batch.advantage + batch.value
            L_value = value_error(V, G, batch.value, self.clip_range_vf).mean()  # (5)
            H = pi.entropy().mean()
            total = -(L_pi - L_kl - self.vf_coef * L_value + self.ent_coef * H)  # (6)
            return total, {
                "train/loss": total,
                "train/policy_gradient_loss": -L_pi,
                "train/value_loss": L_value,
                "train/entropy_loss": -H,
                "train/approx_kl": (rho - 1 - log_rho).mean(),  # Schulman's estimator k3: unbiased, never negative
                "train/clip_fraction": (abs(rho - 1) > epsilon).mean(),
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

    def _beta(self, state: State) -> Any:
        return self.kl_coef if self.d_targ is None else state.beta

    def _adapted(self, beta: Any, kl: Array) -> Any:
        if self.d_targ is None:
            return beta
        return beta * jnp.where(kl > 1.5 * self.d_targ, 2.0, jnp.where(kl < self.d_targ / 1.5, 0.5, 1.0))  # (7)

    def _rule(self) -> Any:
        return adam(self.max_grad_norm, self.adam_eps)
