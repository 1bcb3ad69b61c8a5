"""TRPO: trust region policy optimisation. Schulman, Levine, Moritz, Jordan & Abbeel (2015), arXiv 1502.05477.

The policy follows the natural gradient (Kakade 2002), as far as its mean divergence from the policy that acted allows:

    ρ_t  = π_θ(a_t | s_t) / π_old(a_t | s_t)                                                    (1)
    A_t  = Σ_l (γλ)^l δ_{t+l},   δ_t = r_t + γ V(s_{t+1}) − V(s_t)     (GAE, arXiv 1506.02438)   (2)
    maximise  L(θ) = E[ ρ_t A_t ]                                                               (3)
    subject to  D(θ) = E[ KL(π_old(· | s_t) ‖ π_θ(· | s_t)) ] ≤ δ                               (4)
    F v  = ∂/∂θ ∇D(θ_old) · v + c v:  the Fisher matrix times a vector, damped                  (5)
    x    ≈ F⁻¹ ∇L(θ_old),  by conjugate gradients                                               (6)
    β    = sqrt(2 δ / xᵀ F x):  the length at which ½ (βx)ᵀ F (βx) = δ                           (7)
    θ    ← θ_old + αʲ β x,  the first j with L > L(θ_old) and D ≤ δ; if there is none, θ_old     (8)
    w    ← w − lr ∇ E[ (V_w(s_t) − G_t)² ],   G_t = A_t + V_old(s_t)                             (9)

Differs from the paper: advantages come from GAE and a learned V, and are standardised over the rollout; F is damped;
all steps of the rollout enter F; an accepted step must improve L as well. Actor and critic are separate networks, and
no gradient but (6) moves the actor. The divergence is in closed form for every space.

Takes: any observations; actions Discrete, MultiDiscrete, MultiBinary (masked or not) and Box.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from polyak import nets
from polyak.core import Counter, Metrics, Rollout, Spec, flat, hyper, in_range, leading, refuse_actions
from polyak.heads import Policy, Value
from polyak.minibatches import check_minibatches, passes
from polyak.optim import Schedule, adam, descend, now
from polyak.returns import explained_variance, gae, standardised
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete

_NETWORK = nets.MLP((64, 64), "tanh", "orthogonal")


class State(NamedTuple):
    actor: Policy  # θ, the policy that acts
    critic: Value  # w, observation ↦ V
    opt: Any  # Adam's moments of the critic
    steps: Counter  # environment steps so far


class Batch(NamedTuple):
    """The whole rollout, each [T·N, ...]."""

    obs: Any
    action: Any
    advantage: Array  # A, standardised


class Targets(NamedTuple):
    """What the critic learns from, each [T, N, ...] and then [batch_size, ...]."""

    obs: Any
    G: Array  # A + V_old(s)


@hyper
class TRPO:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    gae_lambda: float | Schedule = 0.95  # λ of the advantage estimates: 0 one-step, 1 whole episodes
    target_kl: float | Schedule = 0.01  # δ: the most that the mean divergence may be after an update, in nats
    # policy step
    cg_iterations: int = 15  # steps of conjugate gradients, unless the residual is gone before
    cg_damping: float | Schedule = 0.1  # c, added to the diagonal of the Fisher matrix
    line_search_steps: int = 10  # lengths that are tried before the policy is left as it is
    line_search_shrink: float | Schedule = 0.8  # α: each trial is this much shorter than the one before
    # rhythm
    rollout_length: int = 2048  # environment steps per environment between updates
    critic_epochs: int = 10  # passes of the critic over one rollout
    batch_size: int = 128  # minibatch of the critic, in steps; the policy takes the whole rollout
    lr: float | Schedule = 1e-3  # step size of Adam, for the critic
    max_grad_norm: float | Schedule | None = None  # the critic's gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 64,64 tanh, and a CNN for images
    log_std_init: float = 0.0  # log σ of a Box policy at the start

    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), gae_lambda=(0, 1), target_kl=(1e-12, jnp.inf), cg_damping=(0, jnp.inf))
        in_range(self, cg_iterations=(1, 1 << 16), line_search_steps=(1, 1 << 16), line_search_shrink=(1e-3, 1))
        in_range(self, rollout_length=(1, 1 << 24), critic_epochs=(1, 1 << 16), batch_size=(1, 1 << 24))
        in_range(self, lr=(0, jnp.inf), max_grad_norm=(1e-8, jnp.inf))

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete | MultiDiscrete | MultiBinary | Box):
            refuse_actions("TRPO", spec.action)
        check_minibatches("TRPO", self.rollout_length, spec.n_envs, self.batch_size)
        k_actor, k_critic, k_head, k_value = jax.random.split(key, 4)
        torso = nets.build(self.network, _NETWORK, k_actor, spec.obs)
        actor = Policy.init(k_head, torso, spec.obs, spec.action, self.log_std_init)
        critic = Value.init(k_value, nets.build(self.network, _NETWORK, k_critic, spec.obs), spec.obs)
        return State(actor, critic, self._rule().init(critic), Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi = state.actor(obs)
        return pi.sample(key) if explore else pi.mode(), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self, steps = now(self, state.steps), rollout.steps
        T, N = leading(steps, 2)
        V, V_next = state.critic(steps.obs), state.critic(steps.next_obs)
        A = gae(self.gamma, self.gae_lambda, steps.reward, V, V_next, steps.terminated, steps.truncated)  # (2)
        state, metrics = self.learn(state, flat(Batch(steps.obs, steps.action, standardised(A))))
        data = Targets(steps.obs, A + V)
        state, fitted = passes(self._evaluate, state, data, key, self.critic_epochs, self.batch_size)
        metrics |= fitted
        metrics["train/explained_variance"] = explained_variance(A + V, V)
        metrics["train/learning_rate"] = jnp.asarray(self.lr)
        return state._replace(steps=state.steps.add(T * N)), metrics

    def learn(self, state: State, batch: Batch, key: Array | None = None) -> tuple[State, Metrics]:
        """One step of the policy on a whole rollout; parameters are one vector θ."""
        old = state.actor(batch.obs)
        log_old = old.log_prob(batch.action)
        theta_old, tree = ravel_pytree(state.actor)

        def surrogate(theta: Array) -> Array:
            rho = jnp.exp(tree(theta)(batch.obs).log_prob(batch.action) - log_old)  # (1)
            return (rho * batch.advantage).mean()  # (3)

        def divergence(theta: Array) -> Array:
            return old.kl(tree(theta)(batch.obs)).mean()  # (4)

        _, curvature = jax.linearize(jax.grad(divergence), theta_old)

        def F(v: Array) -> Array:
            return curvature(v) + self.cg_damping * v  # (5)

        def trial(length: Array) -> tuple[Array, Array]:
            theta = theta_old + length * x
            return surrogate(theta), divergence(theta)

        L_old, gradient = jax.value_and_grad(surrogate)(theta_old)
        x, _ = cg(F, gradient, tol=1e-5, maxiter=self.cg_iterations)  # (6)
        beta = jnp.sqrt(2 * self.target_kl / jnp.maximum(x @ F(x), 1e-30))  # (7)
        lengths = beta * self.line_search_shrink ** jnp.arange(self.line_search_steps)
        objective, kl = lax.map(trial, lengths)
        accepted = (objective > L_old) & (kl <= self.target_kl)  # no trial where either is NaN
        found, first = accepted.any(), jnp.argmax(accepted)
        theta = jnp.where(found, theta_old + lengths[first] * x, theta_old)  # (8)
        return state._replace(actor=tree(theta)), {
            "train/policy_objective": jnp.where(found, objective[first], L_old),
            "train/kl_divergence": jnp.where(found, kl[first], 0.0),
            "train/line_search_success": found.astype(jnp.float32),
            "train/entropy_loss": -old.entropy().mean(),
        }

    def _evaluate(self, state: State, batch: Targets) -> tuple[State, Metrics]:
        """One step of the critic on a minibatch."""

        def loss(critic: Value) -> Array:
            return ((critic(batch.obs) - batch.G) ** 2).mean()

        error, grads = jax.value_and_grad(loss)(state.critic)
        critic, opt = descend(self._rule(), self.lr, grads, state.opt, state.critic)  # (9)
        return state._replace(critic=critic, opt=opt), {"train/value_loss": error}

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)
