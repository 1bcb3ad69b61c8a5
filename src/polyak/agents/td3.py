"""TD3: twin delayed deep deterministic policy gradient. Fujimoto, van Hoof & Meger (2018), arXiv 1802.09477.

A deterministic policy climbs the first of two critics. Three means against values that are too high: the smaller of the
two is believed, targets are smoothed over nearby actions, and policy and targets move less often than the critics:

    a′ = clip(μ_φ′(s′) + ε, −1, 1),   ε ~ clip(N(0, σ̃²), −c, c)                                  (1)
    y = r + γ (1 − terminated) min_i Q_θ′i(s′, a′)                                               (2)
    θ_i ← θ_i − lr ∇ E[ (Q_θi(s, a) − y)² ]                                                      (3)
    φ ← φ + lr E[ ∇_a Q_θ1(s, a) ∇_φ μ_φ(s) ],   a = μ_φ(s),   at every `policy_delay`-th step      (4)
    θ′_i ← τ θ_i + (1 − τ) θ′_i,   φ′ ← τ φ + (1 − τ) φ′         at the same steps                (5)
    a = clip(μ_φ(s) + x, −1, 1),   x ~ N(0, σ²),   or x ← (1 − θ_ou) x + σ ξ where `noise` is "ou"    (6)

Gradient steps count from 1: with a delay of 2, the second is the first that moves the policy.

Differs from the paper: batches of 256; the noise may be an Ornstein-Uhlenbeck process. What (4) climbs may be lowered
by `action_l2` times the mean squared action, so that actions stay small (Plappert et al. 2018, arXiv 1802.09464,
appendix).

Takes: any observations; actions Box with finite bounds.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak import nets
from polyak.core import Counter, Metrics, Rhythm, Rollout, Spec, Transition, hyper, in_range, one_of, refuse_actions
from polyak.dists import normal, parameters
from polyak.explore import disturbed, random_at_first
from polyak.heads import Deterministic
from polyak.optim import Schedule, adam, descend, now, polyak
from polyak.replay import check_replay, check_rhythm, replay_update, ring
from polyak.returns import td_target
from polyak.spaces import Box

_NETWORK = nets.MLP((400, 300), "relu", "uniform")


class State(NamedTuple):
    actor: Deterministic  # φ: observation ↦ action
    critics: tuple[Any, Any]  # θ_1, θ_2: (observation, action) ↦ value
    actor_target: Deterministic  # φ′
    critic_targets: tuple[Any, Any]  # θ′_1, θ′_2
    opts: tuple[Any, Any]  # Adam's moments for actor and critics
    replay: Any  # transitions, for the whole run
    updates: Counter  # gradient steps so far
    steps: Counter  # environment steps so far


@hyper
class TD3:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    target_noise: float | Schedule = 0.2  # σ̃, deviation of the noise on the targets' actions; range of actions: [-1, 1]
    target_noise_clip: float | Schedule = 0.5  # c: that noise is cut at ±c
    action_l2: float | Schedule = 0.0  # weight of the mean squared action in the actor's loss
    # exploration
    noise: Literal["gaussian", "ou"] = "gaussian"  # anew at each step, or Ornstein-Uhlenbeck: from 0 in each episode
    noise_std: float | Schedule = 0.1  # σ per step, in units of the action, whose range is [-1, 1]
    ou_theta: float | Schedule = 0.15  # with ou: share of the noise that a step takes away again
    # rhythm
    rollout_length: int = 1  # environment steps per environment between updates
    updates_per_step: Rhythm = 1.0  # gradient steps per environment step
    policy_delay: int = 2  # gradient steps of the critics for each one of the policy and of all targets
    batch_size: int = 256  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept
    hindsight: int = 0  # transitions with a goal reached later, per one as it was (k of hindsight replay); 0: none
    learning_starts: int = 100  # environment steps before the first gradient step; actions are random until then
    tau: float | Schedule = 0.005  # τ, share of the online networks that enters the targets when these move
    lr: float | Schedule = 1e-3  # step size of Adam
    critic_lr: float | Schedule | None = None  # the same for the critics; none: lr
    max_grad_norm: float | Schedule | None = None  # gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 400,300 ReLU, and a CNN for images

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), tau=(0, 1), lr=(0, jnp.inf), critic_lr=(0, jnp.inf), action_l2=(0, jnp.inf))
        in_range(self, noise_std=(0, jnp.inf), ou_theta=(0, 1), max_grad_norm=(1e-8, jnp.inf))
        in_range(self, target_noise=(0, jnp.inf), target_noise_clip=(0, jnp.inf), policy_delay=(1, 1 << 24))
        check_replay(self)
        one_of(self, noise=("gaussian", "ou"))

    def init(self, key: Array, spec: Spec) -> State:
        if not (isinstance(spec.action, Box) and spec.action.bounded):  # tanh reaches no further than ±1
            refuse_actions("TD3", spec.action)
        check_rhythm("TD3", self, spec.n_envs)
        k_torso, k_head, k_1, k_2 = jax.random.split(key, 4)
        n = parameters(spec.action)
        torso = nets.build(self.network, _NETWORK, k_torso, spec.obs)
        actor = Deterministic.init(k_head, torso, spec.obs, spec.action)
        critics: Any = tuple(nets.build_critic(self.network, _NETWORK, k, spec.obs, n) for k in (k_1, k_2))
        opts = (self._rule().init(actor), self._rule().init(critics))
        replay = ring(spec, self.buffer_size, self.rollout_length, goals=self.hindsight)
        return State(actor, critics, actor, critics, opts, replay, Counter.of(0), Counter.of(0))

    def memory(self, spec: Spec) -> Any:
        """The noise x [N, n] of the present episodes; () where it is drawn anew at each step."""
        return jnp.zeros((spec.n_envs, parameters(spec.action))) if self.noise == "ou" else ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        action = state.actor(obs)
        if not explore:
            return action, memory
        self = now(self, state.steps)
        k_uniform, k_noise = jax.random.split(key)
        noisy, memory = disturbed(k_noise, action, self.noise_std, self.ou_theta, memory)  # (6)
        ready = state.steps.at_least(self.learning_starts)
        return random_at_first(k_uniform, ready, noisy, state.actor.space), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        return replay_update(now(self, state.steps), state, rollout, key)

    def learn(self, state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        """One gradient step for the critics on a batch of transitions; where it is due, one for the actor as well."""
        a_next = state.actor_target(batch.next_obs)
        epsilon = self.target_noise * normal(key, a_next.shape)
        epsilon = jnp.clip(epsilon, -self.target_noise_clip, self.target_noise_clip)
        a_next = jnp.clip(a_next + epsilon, -1.0, 1.0)  # (1)
        V_next = jnp.minimum(*(Q(batch.next_obs, a_next) for Q in state.critic_targets))
        y = td_target(self.gamma, batch.reward, batch.terminated, V_next)  # (2)

        def loss(critics: Any) -> Array:
            return sum((((Q(batch.obs, batch.action) - y) ** 2).mean() for Q in critics), start=jnp.float32(0))

        value, grads = jax.value_and_grad(loss)(state.critics)
        critic_lr = self.lr if self.critic_lr is None else self.critic_lr
        critics, critic_opt = descend(self._rule(), critic_lr, grads, state.opts[1], state.critics)  # (3)
        state = state._replace(critics=critics, opts=(state.opts[0], critic_opt), updates=state.updates.add(1))
        due = state.updates.modulo(self.policy_delay) == 0
        state, actor_value = lax.cond(due, self._follow, lambda s, _: (s, jnp.float32(jnp.nan)), state, batch)
        return state, {"train/actor_loss": actor_value, "train/critic_loss": value}

    def _follow(self, state: State, batch: Transition) -> tuple[State, Array]:
        """One gradient step for the actor, after which all targets move; and the actor's loss."""

        def loss(actor: Deterministic) -> Array:
            a = actor(batch.obs)
            return (self.action_l2 * (a**2).mean(-1) - state.critics[0](batch.obs, a)).mean()

        value, grads = jax.value_and_grad(loss)(state.actor)
        actor, opt = descend(self._rule(), self.lr, grads, state.opts[0], state.actor)  # (4)
        online, targets = (actor, state.critics), (state.actor_target, state.critic_targets)
        actor_target, critic_targets = polyak(targets, online, self.tau)  # (5)
        state = state._replace(actor=actor, actor_target=actor_target, critic_targets=critic_targets)
        return state._replace(opts=(opt, state.opts[1])), value

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)
