"""Heads: what stands on a network's features. Policies, values, and what the agents' actors are made of."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import hyper
from polyak.dists import TanhNormal, mask_of, normal, parameters, policy
from polyak.nets import Dense, feature_width
from polyak.spaces import Box, Space

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
        head = Dense.init(key, feature_width(torso, obs), n, "orthogonal", 0.01)
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
        return Value(torso, Dense.init(key, feature_width(torso, obs), n or 1, init), n is None)

    def __call__(self, obs: Any) -> Array:
        return self.given(self.torso(obs))

    def given(self, features: Array) -> Array:
        out = self.head(features)
        return out[..., 0] if self.scalar else out


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
        width, n = feature_width(torso, obs), parameters(action)
        smooth = log_std_init is not None
        log_std = jnp.full((width, n), log_std_init) if smooth else Dense.init(k_std, width, n, "uniform")
        return Squashed(torso, Dense.init(k_mean, width, n, "uniform"), log_std, action)

    def __call__(self, obs: Any) -> TanhNormal:
        return self.given(self.torso(obs))

    def given(self, f: Array) -> TanhNormal:
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
        return Deterministic(torso, Dense.init(key, feature_width(torso, obs), parameters(action), "uniform"), action)

    def __call__(self, obs: Any) -> Array:
        return jnp.tanh(self.head(self.torso(obs)))
