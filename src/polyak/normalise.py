"""Normalised(agent): observations and rewards on a scale of one, by running statistics that live in the agent's state.

Because the statistics are state, they train, save, resume and vmap with it, and evaluation uses them frozen.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Counter, Metrics, Rollout, Spec, Transition, hyper, in_range, leading, require
from polyak.replay import Shown
from polyak.returns import ended
from polyak.spaces import Box, leaves


class Moments(NamedTuple):
    """Running mean and variance of everything seen so far."""

    mean: Array
    var: Array
    seen: Counter

    @staticmethod
    def none(shape: tuple[int, ...]) -> "Moments":
        return Moments(jnp.zeros(shape), jnp.ones(shape), Counter.of(0))

    def merged(self, x: Array) -> "Moments":
        """With a batch [B, ...] added: Chan, Golub & LeVeque (1983), eq. 2.1, in a form that no count overflows."""
        n = x.shape[0]
        seen = self.seen.add(n)
        w = n / seen.float()
        mean = x.mean(0)
        delta = mean - self.mean
        return Moments(self.mean + w * delta, (1 - w) * self.var + w * x.var(0) + w * (1 - w) * delta**2, seen)


class State(NamedTuple):
    agent: Any  # the state of the agent inside
    obs: Any  # Moments per normalised observation, in the order of the space's leaves; () for the others
    returns: Moments  # of the discounted return that rewards are scaled by
    G: Array  # [N] discounted return of the present episodes


@hyper
class Normalised:
    """An agent whose observations have zero mean and unit variance, and whose rewards are divided by the deviation of
    their discounted return; both are clipped. Images and integers pass unchanged.

    On policy, a rollout is normalised by the statistics with which it was acted (so that the first probability ratio is
    1), and enters them afterwards. A replay keeps transitions as they came, and each batch is normalised by the newest
    statistics when it is drawn. Engstrom et al. (2020), arXiv 2005.12729, describe both and measure what they do.
    """

    agent: Any  # the agent inside
    obs: bool = True  # normalise observations
    reward: bool = True  # scale rewards
    gamma: float = 0.99  # discount of the return whose deviation scales the rewards
    clip_obs: float = 10.0  # normalised observations are cut at ± this
    clip_reward: float = 10.0  # scaled rewards are cut at ± this
    epsilon: float = 1e-8  # added to variances

    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), clip_obs=(1e-6, jnp.inf), clip_reward=(1e-6, jnp.inf), epsilon=(0, 1))

    @property
    def rollout_length(self) -> int:
        return self.agent.rollout_length

    def init(self, key: Array, spec: Spec) -> State:
        moments = tuple(Moments.none(inner.shape) if _scales(inner) else () for _, inner in leaves(spec.obs))
        inner = self.agent.init(key, spec)
        name = type(self.agent).__name__
        sentence = f"Normalised takes agents with a network, on policy or with a replay, and {name} is neither"
        require(self.agent.on_policy or "replay" in inner._fields, sentence)
        return State(inner, moments, Moments.none(()), jnp.zeros(spec.n_envs))

    def memory(self, spec: Spec) -> Any:
        return self.agent.memory(spec)

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        return self.agent.act(state.agent, self._normal(state, obs), key, memory, explore=explore)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        steps = rollout.steps
        carry = self.gamma * (1.0 - ended(steps))

        def forward(G: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            G = G + step[0]
            return G * step[1], G

        G, returns = lax.scan(forward, state.G, (steps.reward, carry))
        moments = state.returns.merged(returns.reshape(-1))
        T, N = leading(steps, 2)
        values = [x.reshape((T * N, *x.shape[2:])).astype(jnp.float32) for x in jax.tree.leaves(steps.obs)]
        obs = tuple(m.merged(x) if m else m for m, x in zip(state.obs, values, strict=True))
        after = State(state.agent, obs, moments, G)
        if self.agent.on_policy:
            seen = self._shown(state._replace(returns=moments), steps)
            inner, metrics = self.agent.update(state.agent, Rollout(seen, rollout.memory), key)
        else:
            view = jax.tree_util.Partial(Normalised._shown, self, after._replace(agent=()))
            shown = Shown(state.agent.replay, view)
            inner, metrics = self.agent.update(state.agent._replace(replay=shown), rollout, key)
        return after._replace(agent=inner), metrics

    def _shown(self, state: State, steps: Transition) -> Transition:
        """Transitions as the agent inside sees them, by the statistics of `state`."""
        reward = steps.reward
        if self.reward:
            scale = jnp.sqrt(state.returns.var + self.epsilon)
            reward = jnp.clip(reward / scale, -self.clip_reward, self.clip_reward)
        obs, next_obs = self._normal(state, steps.obs), self._normal(state, steps.next_obs)
        return steps._replace(obs=obs, next_obs=next_obs, reward=reward)

    def _normal(self, state: State, obs: Any) -> Any:
        """Observations with any leading axes on a scale of one."""
        if not self.obs:
            return obs
        values, structure = jax.tree.flatten(obs)

        def normal(m: Any, x: Array) -> Array:
            if not m:
                return x
            lead = (None,) * (x.ndim - m.mean.ndim)
            return jnp.clip((x - m.mean[lead]) / jnp.sqrt(m.var[lead] + self.epsilon), -self.clip_obs, self.clip_obs)

        return structure.unflatten(normal(m, x) for m, x in zip(state.obs, values, strict=True))


def _scales(space: Any) -> bool:
    return isinstance(space, Box) and not space.image and space.dtype.kind == "f"
