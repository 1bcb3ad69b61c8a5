"""CrossQ: batch normalisation instead of target networks. Bhatt, Palenicek, Belousov et al. (2024), arXiv 1902.05605.

Soft actor-critic whose networks normalise each layer by the moments of the batch. Each critic sees the present and the
next state-action pairs in one pass, so that both are normalised alike; then no target network is needed:

    a′ ~ π_φ(· | s′),   (q_i, q′_i) = the halves of Q_θi([s; s′], [a; a′]), one pass over a batch of 2 B          (1)
    y = r + γ (1 − terminated) [ min_i q′_i − α log π_φ(a′ | s′) ],   without gradient                           (2)
    θ_i ← θ_i − lr ∇ E[ ½ (q_i − y)² ]                                                                          (3)
    φ ← φ − lr ∇ E[ α log π_φ(ã | s) − min_i Q_θi(s, ã) ],   at every `policy_delay`-th gradient step            (4)
    log α ← log α − lr ∇ E[ −log α (log π_φ(ã | s) + H̄) ],   H̄ = −dim(A),   at the same steps                   (5)

In (1) the critics and in (4) the policy are in training: batch renormalisation (`renorm`), which moves their running
statistics. Everywhere else (a′, the critics in (4), acting) the running statistics normalise, and stay as they are.

Differs from the paper: critics of 1024,1024 (there 2048,2048); the dense layers start uniformly in ±1/√fan_in. As in
the authors' code, the renormalisation has a warm-up without correction, after which its limits hold at once; it is
counted in gradient steps, for the policy too. Running are means and deviations (Ioffe 2017), not variances. Adam's β1
is the same for the temperature, whose loss is linear in log α.

Takes: any observations; actions Box with finite bounds.
"""

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak import nets, renorm
from polyak.core import Counter, Metrics, Rhythm, Rollout, Spec, Transition, hyper, in_range, refuse_actions
from polyak.dists import TanhNormal, check_temperature, parameters, usual_entropy
from polyak.explore import random_at_first
from polyak.heads import Squashed
from polyak.optim import Schedule, adam, descend, now
from polyak.replay import check_replay, check_rhythm, replay_update, ring
from polyak.returns import td_target
from polyak.spaces import Box

_NETWORK = nets.MLP((256, 256), "relu", "uniform")
_CRITIC = nets.MLP((1024, 1024), "relu", "uniform")


class Actor(NamedTuple):
    net: renorm.Net  # observation ↦ features
    head: Squashed  # features ↦ distribution over actions


class State(NamedTuple):
    actor: Actor  # φ
    critics: tuple[renorm.Critic, renorm.Critic]  # θ_1, θ_2: (observation, action) ↦ value
    actor_seen: Any  # running statistics of the actor's layers, which no gradient moves
    critics_seen: tuple[Any, Any]  # those of the critics
    log_alpha: Array  # log of the temperature α
    opts: tuple[Any, Any, Any]  # Adam's moments for actor, critics, log α
    replay: Any  # transitions, for the whole run
    updates: Counter  # gradient steps so far
    steps: Counter  # environment steps so far


@hyper
class CrossQ:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    ent_coef: float | Schedule | str = "auto"  # temperature α; "auto" learns it by (5)
    ent_coef_init: float = 1.0  # α at the start where it is learned
    target_entropy: float | None = None  # H̄ in nats; none: minus the number of action dimensions
    # rhythm
    rollout_length: int = 1  # environment steps per environment between updates
    updates_per_step: Rhythm = 1.0  # gradient steps per environment step
    policy_delay: int = 3  # gradient steps of the critics for each one of policy and temperature
    batch_size: int = 256  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept
    learning_starts: int = 100  # environment steps before the first gradient step; actions are random until then
    renorm_warmup: int = 100_000  # gradient steps with plain batch normalisation; give less than a short run has
    lr: float | Schedule = 1e-3  # step size of Adam, for all three
    adam_b1: float = 0.5  # β1, decay of Adam's first moment per gradient step
    max_grad_norm: float | Schedule | None = None  # gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # the policy's: sizes such as 256,256, or a network; none: 256,256 ReLU, and a CNN for images
    critic_network: Any = None  # the critics': the same; none: 1024,1024 ReLU, and a CNN for images

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), lr=(0, jnp.inf))
        check_replay(self)
        in_range(self, policy_delay=(1, 1 << 24), renorm_warmup=(0, 1 << 40))
        in_range(self, adam_b1=(0, 1 - 1e-6), max_grad_norm=(1e-8, jnp.inf))
        check_temperature(self)

    def init(self, key: Array, spec: Spec) -> State:
        if not (isinstance(spec.action, Box) and spec.action.bounded):  # tanh reaches no further than ±1
            refuse_actions("CrossQ", spec.action)
        check_rhythm("CrossQ", self, spec.n_envs)
        k_net, k_head, k_1, k_2 = jax.random.split(key, 4)
        net, net_seen = renorm.build(self.network, _NETWORK, k_net, spec.obs)
        head = Squashed.init(k_head, lambda obs: net(net_seen, obs), spec.obs, spec.action)
        actor, n = Actor(net, replace(head, torso=None)), parameters(spec.action)
        twins = (renorm.build_critic(self.critic_network, _CRITIC, k, spec.obs, n) for k in (k_1, k_2))
        critics, seen = zip(*twins, strict=True)
        log_alpha = jnp.log(jnp.float32(self.ent_coef_init))
        opts: Any = tuple(self._rule().init(p) for p in (actor, critics, log_alpha))
        replay, zero = ring(spec, self.buffer_size, self.rollout_length), Counter.of(0)
        return State(actor, critics, net_seen, seen, log_alpha, opts, replay, zero, zero)

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi = _policy(state, obs)
        if not explore:
            return pi.mode(), memory
        k_uniform, k_pi = jax.random.split(key)
        action = pi.sample(k_pi)
        ready = state.steps.at_least(self.learning_starts)
        return random_at_first(k_uniform, ready, action, state.actor.head.space), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        return replay_update(now(self, state.steps), state, rollout, key)

    def learn(self, state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        """One gradient step for the critics on a batch of transitions; where it is due, for policy and temperature."""
        k_next, k_pi = jax.random.split(key)
        alpha = jnp.exp(state.log_alpha) if self.ent_coef == "auto" else jnp.asarray(self.ent_coef)
        a_next, log_pi_next = _policy(state, batch.next_obs).sample_and_log_prob(k_next)
        here, there = (batch.obs, batch.action), (batch.next_obs, a_next)
        obs, action = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), here, there)
        warm = state.updates.at_least(self.renorm_warmup)

        def critic_loss(critics: Any) -> tuple[Array, Any]:
            twins = zip(critics, state.critics_seen, strict=True)
            values, seen = zip(*(Q.train(moments, warm, obs, action) for Q, moments in twins), strict=True)
            (q_1, next_1), (q_2, next_2) = (jnp.split(q, 2) for q in values)  # (1)
            V_next = jnp.minimum(next_1, next_2) - alpha * log_pi_next
            y = lax.stop_gradient(td_target(self.gamma, batch.reward, batch.terminated, V_next))  # (2)
            return (0.5 * ((q_1 - y) ** 2 + (q_2 - y) ** 2)).mean(), seen

        (value, seen), grads = jax.value_and_grad(critic_loss, has_aux=True)(state.critics)
        critics, opt = descend(self._rule(), self.lr, grads, state.opts[1], state.critics)  # (3)
        opts = (state.opts[0], opt, state.opts[2])
        state = state._replace(critics=critics, critics_seen=seen, opts=opts, updates=state.updates.add(1))
        due = state.updates.modulo(self.policy_delay) == 0

        def follow(state: State) -> tuple[State, Metrics]:
            return self._follow(state, batch.obs, alpha, warm, k_pi)

        nothing = {"train/actor_loss": jnp.float32(jnp.nan), "train/ent_coef_loss": jnp.float32(jnp.nan)}
        state, metrics = lax.cond(due, follow, lambda state: (state, nothing), state)
        return state, metrics | {"train/critic_loss": value, "train/ent_coef": alpha}

    def _follow(self, state: State, obs: Any, alpha: Array, warm: Array, key: Array) -> tuple[State, Metrics]:
        """One gradient step for policy and temperature."""

        def loss(actor: Actor) -> tuple[Array, Any]:
            f, seen = actor.net.train(state.actor_seen, warm, obs)
            a, log_pi = actor.head.given(f).sample_and_log_prob(key)
            values = (Q(moments, obs, a) for Q, moments in zip(state.critics, state.critics_seen, strict=True))
            return (alpha * log_pi - jnp.minimum(*values)).mean(), (log_pi.mean(), seen)

        (value, (log_pi, seen)), grads = jax.value_and_grad(loss, has_aux=True)(state.actor)
        actor, actor_opt = descend(self._rule(), self.lr, grads, state.opts[0], state.actor)  # (4)
        least = usual_entropy(actor.head.space) if self.target_entropy is None else self.target_entropy  # H̄
        surplus = -(log_pi + least)  # of entropy: the gradient of (5)
        log_alpha, alpha_opt = state.log_alpha, state.opts[2]
        if self.ent_coef == "auto":
            log_alpha, alpha_opt = descend(self._rule(), self.lr, surplus, alpha_opt, log_alpha)  # (5)
        metrics = {"train/actor_loss": value, "train/ent_coef_loss": state.log_alpha * surplus}
        opts = (actor_opt, state.opts[1], alpha_opt)
        return state._replace(actor=actor, actor_seen=seen, log_alpha=log_alpha, opts=opts), metrics

    def _rule(self) -> Any:
        return adam(self.max_grad_norm, b1=self.adam_b1)


def _policy(state: State, obs: Any) -> TanhNormal:
    """π(· | s) in evaluation."""
    return state.actor.head.given(state.actor.net(state.actor_seen, obs))
