"""ActorCritic: a policy that believes a learned Q. Sutton, McAllester, Singh & Mansour (2000), "Policy gradient methods
for reinforcement learning with function approximation"; Konda & Tsitsiklis (2000), "Actor-critic algorithms", NIPS 12.

The second of the policy gradients. REINFORCE waits for whole returns, each with the luck of a whole episode; here a
critic learns what to expect after one step, so that short stretches teach. Weaknesses of its own: what the critic has
wrong, the actor believes (bias instead of noise), its target looks one step ahead, and Q has no baseline: where all
actions are worth much, all are pushed up, the drawn one most. Advantages answer both.

    a′ ~ π_θ(· | s′),   y = r + γ (1 − terminated) Q_w(s′, a′)                                     (1)
    w ← w − lr_w ∇ E[ ½ (Q_w(s, a) − y)² ],   y held fixed                                         (2)
    θ ← θ + lr ∇ ( E[ Q_w(s, a) log π_θ(a | s) ] + c_e E[ H(π_θ(· | s)) ] ),   Q_w held fixed        (3)

Differs from the paper: the critic is any network, not linear in ∇ log π ("compatible"), so (3) inherits its errors; it
learns by Sarsa's one-step target of discounted returns; Adam; an entropy bonus. a′ is drawn anew in each update. The
action that was taken next has the same distribution, but there is none yet after the rollout's last step, and none at
all after one that the clock stopped. Both steps use the w with which the update began. The weight γ^t of the episode's
t-th step is left out, as almost everywhere.

Takes: any observations; actions Discrete, MultiDiscrete, MultiBinary (masked or not) and Box.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak import nets
from polyak.core import Counter, Metrics, Rollout, Spec, Transition, flat, hyper, in_range, leading, refuse_actions
from polyak.heads import ActionValue, Policy
from polyak.optim import Schedule, adam, descend, now
from polyak.returns import td_target
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete

_NETWORK = nets.MLP((64, 64), "tanh", "orthogonal")


class State(NamedTuple):
    actor: Policy  # θ, the policy that acts
    critic: ActionValue  # w: (observation, action) ↦ Q
    opts: tuple[Any, Any]  # Adam's moments for actor and critic
    steps: Counter  # environment steps so far


@hyper
class ActorCritic:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    ent_coef: float | Schedule = 0.0  # c_e, weight of the entropy bonus
    # rhythm
    rollout_length: int = 16  # environment steps per environment between updates
    lr: float | Schedule = 3e-4  # step size of Adam for the actor
    critic_lr: float | Schedule = 3e-3  # step size of Adam for the critic, which must keep up with the actor
    max_grad_norm: float | Schedule | None = 0.5  # gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 64,64 tanh, and a CNN for images
    log_std_init: float = 0.0  # log σ of a Box policy at the start

    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), ent_coef=(0, jnp.inf), lr=(0, jnp.inf), critic_lr=(0, jnp.inf))
        in_range(self, rollout_length=(1, 1 << 24), max_grad_norm=(1e-8, jnp.inf))

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete | MultiDiscrete | MultiBinary | Box):
            refuse_actions("ActorCritic", spec.action)
        k_actor, k_head, k_critic = jax.random.split(key, 3)
        torso = nets.build(self.network, _NETWORK, k_actor, spec.obs)
        actor = Policy.init(k_head, torso, spec.obs, spec.action, self.log_std_init)
        critic = ActionValue.init(k_critic, self.network, _NETWORK, spec.obs, spec.action)
        return State(actor, critic, (self._rule().init(actor), self._rule().init(critic)), Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi = state.actor(obs)
        return pi.sample(key) if explore else pi.mode(), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        T, N = leading(rollout.steps, 2)
        learned, metrics = now(self, state.steps).learn(state, flat(rollout.steps), key)
        return learned._replace(steps=state.steps.add(T * N)), metrics

    def learn(self, state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        """One gradient step of critic and actor on transitions [B] of the present policy."""
        a_next = state.actor(batch.next_obs).sample(key)
        y = td_target(self.gamma, batch.reward, batch.terminated, state.critic(batch.next_obs, a_next))  # (1)
        Q = state.critic(batch.obs, batch.action)

        def critic_loss(critic: ActionValue) -> Array:
            return (0.5 * (critic(batch.obs, batch.action) - y) ** 2).mean()

        def actor_loss(actor: Policy) -> tuple[Array, tuple[Array, Array]]:
            pi = actor(batch.obs)
            L, H = -(Q * pi.log_prob(batch.action)).mean(), pi.entropy().mean()
            return L - self.ent_coef * H, (L, H)

        error, grads = jax.value_and_grad(critic_loss)(state.critic)
        critic, critic_opt = descend(self._rule(), self.critic_lr, grads, state.opts[1], state.critic)  # (2)
        grads, (L, H) = jax.grad(actor_loss, has_aux=True)(state.actor)
        actor, actor_opt = descend(self._rule(), self.lr, grads, state.opts[0], state.actor)  # (3)
        metrics = {"train/policy_loss": L, "train/entropy_loss": -H, "train/critic_loss": error}
        metrics |= {"train/q_mean": Q.mean(), "train/learning_rate": jnp.asarray(self.lr)}
        return state._replace(actor=actor, critic=critic, opts=(actor_opt, critic_opt)), metrics

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)
