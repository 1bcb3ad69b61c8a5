"""DDPG: deep deterministic policy gradient. Lillicrap, Hunt, Pritzel et al. (2016), arXiv 1509.02971.

A deterministic policy climbs its critic by the chain rule (Silver, Lever, Heess et al. 2014, "Deterministic policy
gradient algorithms"); the critic learns from replayed transitions, with slowly moving copies of both as targets:

    y = r + γ (1 − terminated) Q_θ′(s′, μ_φ′(s′))                                               (1)
    θ ← θ − lr ∇ E[ (Q_θ(s, a) − y)² ]                                                          (2)
    φ ← φ + lr E[ ∇_a Q_θ(s, a) ∇_φ μ_φ(s) ],   a = μ_φ(s)                                      (3)
    θ′ ← τ θ + (1 − τ) θ′,   φ′ ← τ φ + (1 − τ) φ′                                              (4)
    a = clip(μ_φ(s) + x, −1, 1),   x ~ N(0, σ²),   or x ← (1 − θ_ou) x + σ ξ where `noise` is "ou"    (5)

Differs from the paper: the noise is Gaussian unless `noise` is "ou"; the first actions are uniformly random; actions
enter the critic at its first layer; no batch normalisation, weight decay or small last layers; one step size for both
networks unless `critic_lr` is given. What (3) climbs may be lowered by `action_l2` times the mean squared action, so
that actions stay small (Plappert et al. 2018, arXiv 1802.09464, appendix).

Takes: any observations; actions Box with finite bounds.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polyak import nets
from polyak.core import Counter, Metrics, Rhythm, Rollout, Spec, Transition, hyper, in_range, one_of, refuse_actions
from polyak.dists import parameters
from polyak.explore import disturbed, random_at_first
from polyak.heads import Deterministic
from polyak.optim import Schedule, adam, descend, now, polyak
from polyak.replay import check_replay, check_rhythm, replay_update, ring
from polyak.returns import td_target
from polyak.spaces import Box

_NETWORK = nets.MLP((400, 300), "relu", "uniform")


class State(NamedTuple):
    actor: Deterministic  # φ: observation ↦ action
    critic: Any  # θ: (observation, action) ↦ value
    actor_target: Deterministic  # φ′
    critic_target: Any  # θ′
    opts: tuple[Any, Any]  # Adam's moments for actor and critic
    replay: Any  # transitions, for the whole run
    steps: Counter  # environment steps so far


@hyper
class DDPG:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    action_l2: float | Schedule = 0.0  # weight of the mean squared action in the actor's loss
    # exploration
    noise: Literal["gaussian", "ou"] = "gaussian"  # anew at each step, or Ornstein-Uhlenbeck: from 0 in each episode
    noise_std: float | Schedule = 0.1  # σ per step, in units of the action, whose range is [-1, 1]
    ou_theta: float | Schedule = 0.15  # with ou: share of the noise that a step takes away again
    # rhythm
    rollout_length: int = 1  # environment steps per environment between updates
    updates_per_step: Rhythm = 1.0  # gradient steps per environment step
    batch_size: int = 256  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept
    hindsight: int = 0  # transitions with a goal reached later, per one as it was (k of hindsight replay); 0: none
    learning_starts: int = 100  # environment steps before the first gradient step; actions are random until then
    tau: float | Schedule = 0.005  # τ, share of the online networks that enters the targets at each gradient step
    lr: float | Schedule = 1e-3  # step size of Adam
    critic_lr: float | Schedule | None = None  # the same for the critic; none: lr
    max_grad_norm: float | Schedule | None = None  # gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 400,300 ReLU, and a CNN for images

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), tau=(0, 1), lr=(0, jnp.inf), critic_lr=(0, jnp.inf), action_l2=(0, jnp.inf))
        in_range(self, noise_std=(0, jnp.inf), ou_theta=(0, 1), max_grad_norm=(1e-8, jnp.inf))
        check_replay(self)
        one_of(self, noise=("gaussian", "ou"))

    def init(self, key: Array, spec: Spec) -> State:
        if not (isinstance(spec.action, Box) and spec.action.bounded):  # tanh reaches no further than ±1
            refuse_actions("DDPG", spec.action)
        check_rhythm("DDPG", self, spec.n_envs)
        k_torso, k_head, k_critic = jax.random.split(key, 3)
        torso = nets.build(self.network, _NETWORK, k_torso, spec.obs)
        actor = Deterministic.init(k_head, torso, spec.obs, spec.action)
        critic = nets.build_critic(self.network, _NETWORK, k_critic, spec.obs, parameters(spec.action))
        opts = (self._rule().init(actor), self._rule().init(critic))
        replay = ring(spec, self.buffer_size, self.rollout_length, goals=self.hindsight)
        return State(actor, critic, actor, critic, opts, replay, Counter.of(0))

    def memory(self, spec: Spec) -> Any:
        """The noise x [N, n] of the present episodes; () where it is drawn anew at each step."""
        return jnp.zeros((spec.n_envs, parameters(spec.action))) if self.noise == "ou" else ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        action = state.actor(obs)
        if not explore:
            return action, memory
        self = now(self, state.steps)
        k_uniform, k_noise = jax.random.split(key)
        noisy, memory = disturbed(k_noise, action, self.noise_std, self.ou_theta, memory)  # (5)
        ready = state.steps.at_least(self.learning_starts)
        return random_at_first(k_uniform, ready, noisy, state.actor.space), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        return replay_update(now(self, state.steps), state, rollout, key)

    def learn(self, state: State, batch: Transition, key: Array | None = None) -> tuple[State, Metrics]:
        """One gradient step for critic and actor on a batch of transitions."""
        V_next = state.critic_target(batch.next_obs, state.actor_target(batch.next_obs))
        y = td_target(self.gamma, batch.reward, batch.terminated, V_next)  # (1)

        def critic_loss(Q: Any) -> Array:
            return ((Q(batch.obs, batch.action) - y) ** 2).mean()

        def actor_loss(actor: Deterministic) -> Array:
            a = actor(batch.obs)
            return (self.action_l2 * (a**2).mean(-1) - critic(batch.obs, a)).mean()

        critic_value, grads = jax.value_and_grad(critic_loss)(state.critic)
        critic_lr = self.lr if self.critic_lr is None else self.critic_lr
        critic, critic_opt = descend(self._rule(), critic_lr, grads, state.opts[1], state.critic)  # (2)
        actor_value, grads = jax.value_and_grad(actor_loss)(state.actor)
        actor, actor_opt = descend(self._rule(), self.lr, grads, state.opts[0], state.actor)  # (3)
        targets = (state.actor_target, state.critic_target)
        actor_target, critic_target = polyak(targets, (actor, critic), self.tau)  # (4)
        opts = (actor_opt, critic_opt)
        learned = State(actor, critic, actor_target, critic_target, opts, state.replay, state.steps)
        return learned, {"train/actor_loss": actor_value, "train/critic_loss": critic_value}

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)
