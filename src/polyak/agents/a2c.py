"""A2C: advantage actor-critic, all environments in step. Mnih et al. (2016), arXiv 1602.01783, algorithm S3, made
synchronous; Sutton & Barto (2018), §13.5; its λ-advantages from Schulman et al. (2016), arXiv 1506.02438.

A critic of actions (`ActorCritic`) has to be right about every action before it says which one is better. Here it only
values states, and what was seen after an action says how much better it was than expected:

    δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)                                             (1)
    A_t = Σ_l (γλ)^l δ_{t+l}      to the end of the rollout; λ = 1: the n-step return less V(s_t)    (2)
    θ ← θ + lr ∇ ( E[ log π_θ(a_t | s_t) A_t ] + c_e E[ H(π_θ(· | s_t)) ] )                          (3)
    w ← w − lr_V ∇ c_v E[ (V_w(s_t) − G_t)² ],    G_t = A_t + V(s_t)                                (4)

What remains: one step of θ uses up a rollout, and its length is in the parameters' units, not in the policy's. `TRPO`
and `PPO` answer that.

Differs from the paper: no asynchronous threads; actor and critic are separate networks unless `shared`, and the norms
of their gradients are bounded apart (as one, the critic's errors would decide how far the actor moves); advantages are
not standardised unless asked for.

Takes: any observations; actions Discrete, MultiDiscrete, MultiBinary (masked or not) and Box.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak import nets
from polyak.core import Counter, Metrics, Rollout, Spec, hyper, in_range, leading, one_of, refuse_actions
from polyak.heads import PolicyValue
from polyak.optim import Schedule, adam, descend, now, rmsprop
from polyak.recurrent import check_memory
from polyak.returns import explained_variance, gae, standardised
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete

_NETWORK = nets.MLP((64, 64), "tanh", "orthogonal")


class State(NamedTuple):
    params: PolicyValue  # θ and w: the policy that acts, and its value
    opts: tuple[Any, Any]  # the optimiser's moments for actor and critic
    steps: Counter  # environment steps so far


@hyper
class A2C:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    gae_lambda: float | Schedule = 1.0  # λ of the advantage estimates: 0 one-step, 1 as many steps as the rollout has
    ent_coef: float | Schedule = 0.0  # c_e, weight of the entropy bonus
    vf_coef: float | Schedule = 0.5  # c_v, weight of the value loss
    normalize_advantage: bool = False  # standardise the advantages of a rollout
    # rhythm
    rollout_length: int = 5  # environment steps per environment between updates
    lr: float | Schedule = 7e-4  # step size
    critic_lr: float | Schedule | None = None  # step size of what only the critic has; none: lr
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"  # which one divides by the gradients' size
    max_grad_norm: float | Schedule | None = 0.5  # the gradients of actor and of critic are scaled down to this norm
    opt_eps: float = 1e-5  # ε in the optimiser's denominator, beside the root
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 64,64 tanh, and a CNN for images
    shared: bool = False  # actor and critic share their torso
    recurrent: Literal["gru", "lstm"] | None = None  # a memory of the episode behind the torso
    memory_size: int = 64  # width of that memory
    log_std_init: float = 0.0  # log σ of a Box policy at the start

    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), gae_lambda=(0, 1), lr=(0, jnp.inf), critic_lr=(0, jnp.inf), ent_coef=(0, jnp.inf))
        in_range(self, vf_coef=(0, jnp.inf), rollout_length=(1, 1 << 24), max_grad_norm=(1e-8, jnp.inf))
        in_range(self, opt_eps=(1e-20, 1))
        one_of(self, optimizer=("rmsprop", "adam"))
        check_memory(self)

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete | MultiDiscrete | MultiBinary | Box):
            refuse_actions("A2C", spec.action)
        params = PolicyValue.init(key, self, _NETWORK, spec)
        return State(params, (self._rule().init(params.actor), self._rule().init(params.critic)), Counter.of(0))

    def memory(self, spec: Spec) -> Any:
        return PolicyValue.memory(self, spec.n_envs)

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi, memory = state.params.act(obs, memory)
        return pi.sample(key) if explore else pi.mode(), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        T, N = leading(rollout.steps, 2)
        learned, metrics = now(self, state.steps).learn(state, rollout, key)
        return learned._replace(steps=state.steps.add(T * N)), metrics

    def learn(self, state: State, batch: Rollout, key: Array | None = None) -> tuple[State, Metrics]:
        """One gradient step on a whole rollout [T, N]."""
        steps = batch.steps

        def loss(params: PolicyValue) -> tuple[Array, Metrics]:
            judged, V_next = params.rollout(steps, batch.memory)
            pi, V = judged.pi, judged.V
            seen = lax.stop_gradient((V, V_next))
            A = gae(self.gamma, self.gae_lambda, steps.reward, *seen, steps.terminated, steps.truncated)  # (1) (2)
            G = A + seen[0]
            weight = standardised(A) if self.normalize_advantage else A
            L_pi = (pi.log_prob(steps.action) * weight).mean()
            H = pi.entropy().mean()
            L_value = ((V - G) ** 2).mean()
            total = self.vf_coef * L_value - (L_pi + self.ent_coef * H)  # (3) (4)
            return total, {
                "train/loss": total,
                "train/policy_loss": -L_pi,
                "train/value_loss": L_value,
                "train/entropy_loss": -H,
                "train/explained_variance": explained_variance(G, V),
            }

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        critic_lr = self.lr if self.critic_lr is None else self.critic_lr
        actor, actor_opt = descend(self._rule(), self.lr, grads.actor, state.opts[0], state.params.actor)
        critic, critic_opt = descend(self._rule(), critic_lr, grads.critic, state.opts[1], state.params.critic)
        learned = state._replace(params=PolicyValue(actor, critic), opts=(actor_opt, critic_opt))
        return learned, metrics | {"train/learning_rate": jnp.asarray(self.lr)}

    def _rule(self) -> Any:
        return (adam if self.optimizer == "adam" else rmsprop)(self.max_grad_norm, self.opt_eps)
