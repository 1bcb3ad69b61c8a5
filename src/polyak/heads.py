"""Heads: what stands on a network's features. Policies, values, and what the agents' actors are made of."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Spec, Transition, hyper
from polyak.dists import TanhNormal, mask_of, normal, parameters, policy
from polyak.nets import MLP, Critic, Dense, build, build_critic, encoded
from polyak.recurrent import beyond, remembering, start, step, step_all, unroll, width
from polyak.returns import ended
from polyak.spaces import Box, Discrete, Space

LOG_STD = (-20.0, 2.0)  # bounds of log σ of a squashed Gaussian, as in the code of SAC's authors


@hyper
class Policy:
    """Observations ↦ a distribution over actions: torso, linear head, and for a Box a log σ that no state changes."""

    torso: Any
    head: Dense
    log_std: Any  # [n] for a Box, else None
    space: Space

    @staticmethod
    def init(key: Array, torso: Any, obs: Space, action: Space, log_std: Any = 0.0) -> "Policy":
        """A head of gain 0.01 on the torso: at first, all actions are almost equally likely."""
        n = parameters(action)
        head = Dense.init(key, width(torso, obs), n, "orthogonal", 0.01)
        return Policy(torso, head, jnp.full(n, log_std) if isinstance(action, Box) else None, action)

    def __call__(self, obs: Any) -> Any:
        return self.given(self.torso(obs), obs)

    def given(self, features: Array, obs: Any) -> Any:
        """The distribution from the torso's features; the observation is asked only for its action mask."""
        return policy(self.space, self.head(features), self.log_std, mask_of(obs))


@hyper
class Value:
    """Observations ↦ one number each [...], or n numbers [..., n] where `n` outputs were asked for."""

    torso: Any
    head: Dense
    scalar: bool

    @staticmethod
    def init(key: Array, torso: Any, obs: Space, n: int | None = None, init: str = "orthogonal") -> "Value":
        return Value(torso, Dense.init(key, width(torso, obs), n or 1, init), n is None)

    def __call__(self, obs: Any) -> Array:
        return self.given(self.torso(obs))

    def given(self, features: Array, obs: Any = None) -> Array:
        """The value from the torso's features; `obs` is for heads that know masks, and is not asked here."""
        out = self.head(features)
        return out[..., 0] if self.scalar else out


@hyper
class Dueling:
    """Observations ↦ Q [..., n] = V + A − mean A, the mean over the allowed actions.

    Wang et al. (2016), arXiv 1511.06581, eq. 9. V and A stand as linear heads on one torso.
    """

    torso: Any
    value: Dense
    advantage: Dense

    @staticmethod
    def init(key: Array, torso: Any, obs: Space, n: int, init: str = "orthogonal") -> "Dueling":
        k_value, k_advantage = jax.random.split(key)
        f = width(torso, obs)
        return Dueling(torso, Dense.init(k_value, f, 1, init), Dense.init(k_advantage, f, n, init))

    def __call__(self, obs: Any) -> Array:
        return self.given(self.torso(obs), obs)

    def given(self, features: Array, obs: Any = None) -> Array:
        """The values from the torso's features; the observation is asked only for its action mask."""
        A, mask = self.advantage(features), mask_of(obs)
        share = jnp.ones_like(A) if mask is None else (mask > 0).astype(A.dtype)
        mean = (share * A).sum(-1, keepdims=True) / jnp.maximum(share.sum(-1, keepdims=True), 1.0)
        return self.value(features) + A - mean


class Judged(NamedTuple):
    """What a policy and a value say of steps [T, N]."""

    pi: Any  # π(· | s)
    V: Array  # V(s) [T, N]
    before: Any  # memory with which each step was seen; () without memory
    after: Any  # the critic's memory after it, were the episode to go on


@hyper
class PolicyValue:
    """A policy π and a value V, on one torso or on two, with a memory of the episode or without."""

    actor: Policy
    critic: Value  # its torso is None where it stands on the actor's

    @staticmethod
    def init(key: Array, agent: Any, default: MLP, spec: Spec) -> "PolicyValue":
        """From an agent's fields network, shared, log_std_init, recurrent and memory_size."""
        k_actor, k_critic, k_head, k_value = jax.random.split(key, 4)
        torso = torso_of(k_actor, agent, default, spec.obs)
        actor = Policy.init(k_head, torso, spec.obs, spec.action, agent.log_std_init)
        critic = Value.init(k_value, torso if agent.shared else torso_of(k_critic, agent, default, spec.obs), spec.obs)
        return PolicyValue(actor, replace(critic, torso=None) if agent.shared else critic)

    @staticmethod
    def memory(agent: Any, n: int) -> Any:
        """The memory at the start of n episodes: that of the torso, or those of (actor, critic)."""
        fresh = start(agent.recurrent, agent.memory_size, n)
        return fresh if agent.shared or agent.recurrent is None else (fresh, fresh)

    def act(self, obs: Any, memory: Any) -> tuple[Any, Any]:
        """(π(· | s), the memory after s) for observations [N]."""
        if self.critic.torso is None:
            features, memory = step(self.actor.torso, obs, memory)
        else:
            features, memory = step_all((self.actor.torso, self.critic.torso), obs, memory)
        return self.actor.given(features, obs), memory

    def over(self, obs: Any, end: Any, memory: Any) -> Judged:
        """Through observations [T, N] from the memory [N] before the first; without memory, any leading axes."""
        m_actor, m_critic = self._memories(memory)
        actor = unroll(self.actor.torso, obs, end, m_actor)
        critic = actor if self.critic.torso is None else unroll(self.critic.torso, obs, end, m_critic)
        pi, V = self.actor.given(actor.features, obs), self.critic.given(critic.features)
        return Judged(pi, V, self._together(actor.before, critic.before), critic.after)

    def rollout(self, steps: Transition, memory: Any) -> tuple[Judged, Array]:
        """What is said of a rollout's steps, and V of their true successors [T, N]."""
        judged = self.over(steps.obs, ended(steps), memory)
        torso = self.actor.torso if self.critic.torso is None else self.critic.torso
        return judged, self.critic.given(beyond(torso, steps.next_obs, judged.after))

    def _memories(self, memory: Any) -> tuple[Any, Any]:
        return (memory, memory) if self.critic.torso is None or not jax.tree.leaves(memory) else memory

    def _together(self, actor: Any, critic: Any) -> Any:
        return actor if self.critic.torso is None or not jax.tree.leaves(actor) else (actor, critic)


@hyper
class Squashed:
    """Observations ↦ a squashed Gaussian over a bounded Box, [-1, 1]: torso, and linear heads for mean and log σ."""

    torso: Any
    mean: Dense
    log_std: Any  # a Dense layer on the features; with sde [features, actions], the log deviations of W's elements
    space: Space

    @staticmethod
    def init(key: Array, torso: Any, obs: Space, action: Space, log_std_init: float | None = None) -> "Squashed":
        """Heads on the torso; with `log_std_init` the noise is state-dependent (gSDE), and this its log deviation."""
        k_mean, k_std = jax.random.split(key)
        f, n = width(torso, obs), parameters(action)
        smooth = log_std_init is not None
        log_std = jnp.full((f, n), log_std_init) if smooth else Dense.init(k_std, f, n, "uniform")
        return Squashed(torso, Dense.init(k_mean, f, n, "uniform"), log_std, action)

    def __call__(self, obs: Any) -> TanhNormal:
        return self.given(self.torso(obs))

    def given(self, f: Array, obs: Any = None) -> TanhNormal:
        if isinstance(self.log_std, Dense):
            return TanhNormal(self.mean(f), jnp.clip(self.log_std(f), *LOG_STD))
        variance = lax.stop_gradient(f) ** 2 @ jnp.exp(2 * self.log_std)  # of Wᵀ f
        return TanhNormal(jnp.clip(self.mean(f), -2.0, 2.0), 0.5 * jnp.log(variance + 1e-6))

    def noise(self, key: Array, n: int) -> Array:
        """n matrices W [n, features, actions], one per environment."""
        return normal(key, (n, *self.log_std.shape)) * jnp.exp(self.log_std)[None]


@hyper
class Deterministic:
    """Observations ↦ one action of a bounded Box each, [..., n] in [-1, 1]: torso, linear head, tanh."""

    torso: Any
    head: Dense
    space: Space

    @staticmethod
    def init(key: Array, torso: Any, obs: Space, action: Space) -> "Deterministic":
        return Deterministic(torso, Dense.init(key, width(torso, obs), parameters(action), "uniform"), action)

    def __call__(self, obs: Any) -> Array:
        return jnp.tanh(self.head(self.torso(obs)))


@hyper
class ActionValue:
    """(observation, action) ↦ Q [...], over any leading axes, for every space of actions.

    The network gives one output per action of a Discrete space; else the action joins the observation, integers as
    one-hot vectors.
    """

    net: Any  # a `Value` of n outputs, or a critic of `nets`
    space: Space

    @staticmethod
    def init(key: Array, network: Any, default: MLP, obs: Space, action: Space) -> "ActionValue":
        if not isinstance(action, Discrete):
            return ActionValue(build_critic(network, default, key, obs, parameters(action)), action)
        k_torso, k_head = jax.random.split(key)
        torso = build(network, default, k_torso, obs)
        return ActionValue(Value.init(k_head, torso, obs, action.n, default.init), action)

    def __call__(self, obs: Any, action: Array) -> Array:
        a = action if isinstance(self.space, Discrete) else encoded(self.space, action)[0]
        return action_value(self.net, self.net.torso(obs), a)


def torso_of(key: Array, agent: Any, default: MLP, obs: Space) -> Any:
    """A torso by an agent's fields network, recurrent and memory_size."""
    if agent.recurrent is None:
        return build(agent.network, default, key, obs)
    k_net, k_cell = jax.random.split(key)
    return remembering(k_cell, build(agent.network, default, k_net, obs), obs, agent.recurrent, agent.memory_size)


def critic_of(key: Array, agent: Any, default: MLP, obs: Space, action: Space) -> Any:
    """Q by the same fields: a `Value` of every Discrete action, or a `Critic` of (observation, action of a Box)."""
    if isinstance(action, Box) and agent.recurrent is None:
        return build_critic(agent.network, default, key, obs, parameters(action))
    k_torso, k_rest = jax.random.split(key)
    torso = torso_of(k_torso, agent, default, obs)
    if isinstance(action, Box):  # the action joins what the memory gives
        return Critic.init(k_rest, torso, agent.memory_size, parameters(action), default)
    return Value.init(k_rest, torso, obs, parameters(action), default.init)


def action_value(Q: Any, features: Array, action: Array, obs: Any = None) -> Array:
    """Q(s, a) [...] by what `critic_of` made, from its torso's features of s; `obs` where it may carry a mask."""
    if isinstance(Q, Value | Dueling):
        return jnp.take_along_axis(Q.given(features, obs), action[..., None], axis=-1)[..., 0]
    return Q.given(features, action)
