"""Distributions over actions: log-probabilities, entropies and samples, for every space of actions.

A distribution is a frozen pytree with leading axes of its own; `log_prob` and `entropy` have these axes and are
summed over the dimensions of the action. So is `p.kl(q)`, the divergence KL(p ‖ q) = E_p[log p − log q] from another of
the same kind, in nats and in closed form. `policy` picks the distribution that a space takes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, softplus

from polyak.core import hyper, in_range, require
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@hyper
class Categorical:
    """Integers with probabilities softmax(logits), logits [..., n]; masked ones are −1e9."""

    logits: Any

    def sample(self, key: Array) -> Array:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Array:
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        log_p = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_p, action[..., None].astype(jnp.int32), axis=-1)[..., 0]

    def entropy(self) -> Array:
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.where(log_p > -1e8, jnp.exp(log_p) * log_p, 0.0), axis=-1)

    def kl(self, other: "Categorical") -> Array:
        """Σ_a p(a) (log p(a) − log q(a)); what p has masked contributes nothing."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.where(log_p > -1e8, jnp.exp(log_p) * (log_p - log_q), 0.0), axis=-1)


@hyper
class MultiCategorical:
    """Independent integers, the i-th with the logits [..., start_i : start_i + nvec_i]."""

    logits: Any
    nvec: tuple[int, ...]

    def _parts(self) -> list[Categorical]:
        ends = [sum(self.nvec[: i + 1]) for i in range(len(self.nvec))]
        return [Categorical(self.logits[..., e - n : e]) for n, e in zip(self.nvec, ends, strict=True)]

    def sample(self, key: Array) -> Array:
        keys = jax.random.split(key, len(self.nvec))
        return jnp.stack([part.sample(k) for part, k in zip(self._parts(), keys, strict=True)], axis=-1)

    def mode(self) -> Array:
        return jnp.stack([part.mode() for part in self._parts()], axis=-1)

    def log_prob(self, action: Array) -> Array:
        return sum((part.log_prob(action[..., i]) for i, part in enumerate(self._parts())), start=jnp.float32(0))

    def entropy(self) -> Array:
        return sum((part.entropy() for part in self._parts()), start=jnp.float32(0))

    def kl(self, other: "MultiCategorical") -> Array:
        parts = zip(self._parts(), other._parts(), strict=True)
        return sum((p.kl(q) for p, q in parts), start=jnp.float32(0))


@hyper
class Bernoulli:
    """Independent bits with probabilities sigmoid(logits), logits [..., n]."""

    logits: Any

    def sample(self, key: Array) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(jnp.int32)

    def mode(self) -> Array:
        return (self.logits > 0).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        return jnp.where(action > 0, log_sigmoid(self.logits), log_sigmoid(-self.logits)).sum(-1)

    def entropy(self) -> Array:
        p = jax.nn.sigmoid(self.logits)
        return -(p * log_sigmoid(self.logits) + (1 - p) * log_sigmoid(-self.logits)).sum(-1)

    def kl(self, other: "Bernoulli") -> Array:
        """Σ p (log p − log q) + (1 − p) (log(1 − p) − log(1 − q)) over the bits."""
        x, y = self.logits, other.logits
        ones = jax.nn.sigmoid(x) * (log_sigmoid(x) - log_sigmoid(y))
        zeros = jax.nn.sigmoid(-x) * (log_sigmoid(-x) - log_sigmoid(-y))
        return (ones + zeros).sum(-1)


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers: those of `jax.random.normal`, drawn in one row, which is faster on CPU."""
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


@hyper
class Normal:
    """A Gaussian with independent dimensions: mean and log σ, both [..., n]."""

    mean: Any
    log_std: Any

    def sample(self, key: Array) -> Array:
        return self.mean + jnp.exp(self.log_std) * normal(key, self.mean.shape)

    def mode(self) -> Array:
        return self.mean

    def log_prob(self, action: Array) -> Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - _HALF_LOG_2PI).sum(-1)

    def entropy(self) -> Array:
        return (self.log_std + 0.5 + _HALF_LOG_2PI).sum(-1)

    def kl(self, other: "Normal") -> Array:
        """Σ log(σ_q / σ_p) + (σ_p² + (μ_p − μ_q)²) / (2 σ_q²) − ½ over the dimensions."""
        log_ratio = self.log_std - other.log_std
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return (0.5 * (jnp.expm1(2.0 * log_ratio) + z**2) - log_ratio).sum(-1)


@hyper
class TanhNormal:
    """a = tanh(u), u ~ N(mean, σ²): the squashed Gaussian of SAC (Haarnoja et al. 2018, appendix C).

    log π(a) = log N(u) − Σ log(1 − tanh² u), the last term computed as 2 (log 2 − u − softplus(−2u)): finite for
    every u. So samples come with their log-probability; from an action alone, u = artanh(a) with |a| cut at 1 − 1e-6.
    """

    mean: Any
    log_std: Any

    def log_prob_of(self, u: Array) -> Array:
        """log π(tanh u) from the sample before squashing."""
        return Normal(self.mean, self.log_std).log_prob(u) - (2.0 * (math.log(2.0) - u - softplus(-2.0 * u))).sum(-1)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        u = Normal(self.mean, self.log_std).sample(key)
        return jnp.tanh(u), self.log_prob_of(u)

    def sample(self, key: Array) -> Array:
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def mode(self) -> Array:
        return jnp.tanh(self.mean)

    def log_prob(self, action: Array) -> Array:
        return self.log_prob_of(jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6)))

    def kl(self, other: "TanhNormal") -> Array:
        """That of the Gaussians before squashing: tanh is a bijection, and its Jacobian cancels."""
        return Normal(self.mean, self.log_std).kl(Normal(other.mean, other.log_std))


def parameters(space: Space) -> int:
    """How many numbers a network must give for a distribution over `space` (a Normal's log σ not counted)."""
    match space:
        case Discrete():
            return space.n
        case MultiDiscrete():
            return sum(space.nvec)
        case MultiBinary():
            return space.n
        case Box():
            return math.prod(space.shape)
        case _:
            raise TypeError(f"no distribution over {space}")


def usual_entropy(space: Space) -> float:
    """The entropy in nats that a soft policy is usually held to.

    Minus the dimensions of a Box (Haarnoja et al. 2018, arXiv 1812.05905, table 1); nearly all that there can be,
    0.98 log n, of Discrete (Christodoulou 2019, arXiv 1910.07207).
    """
    return 0.98 * math.log(space.n) if isinstance(space, Discrete) else -float(parameters(space))


def check_temperature(agent: Any) -> None:
    """Refuse what the fields ent_coef and ent_coef_init of a soft agent can't be."""
    in_range(agent, ent_coef=(0, jnp.inf), ent_coef_init=(1e-8, jnp.inf))
    known = not isinstance(agent.ent_coef, str) or agent.ent_coef == "auto"
    require(known, f"{type(agent).__name__}: ent_coef is {agent.ent_coef!r}, and must be a number or 'auto'")


def policy(space: Space, output: Array, log_std: Array | None = None, mask: Array | None = None) -> Any:
    """The distribution over `space` whose parameters a network gave, [..., parameters(space)].

    Args:
        log_std: [n] of a Box's Normal, the same in every state.
        mask: [..., parameters(space)], 1 where a discrete action is allowed; actions of a Box have none. At least one
            action must be allowed.
    """
    if mask is not None and not isinstance(space, Box):
        output = jnp.where(mask.reshape(output.shape) > 0, output, -1e9)
    match space:
        case Discrete():
            return Categorical(output)
        case MultiDiscrete():
            return MultiCategorical(output, space.nvec)
        case MultiBinary():
            return Bernoulli(output)
        case Dict() | Tuple():
            raise TypeError(f"no distribution over {space}")
        case Box():
            shape = (*output.shape[:-1], math.prod(space.shape))
            return Normal(
                output,
                jnp.broadcast_to(jnp.zeros(1) if log_std is None else log_std[(None,) * (output.ndim - 1)], shape),
            )


def masked(values: Array, obs: Any) -> Array:
    """Values of actions [..., n], −1e9 where the observation's mask forbids the action."""
    mask = mask_of(obs)
    return values if mask is None else jnp.where(mask > 0, values, -1e9)


def mask_of(obs: Any) -> Array | None:
    """The action mask that an observation carries, or None."""
    return obs.get("action_mask") if isinstance(obs, dict) else None
