"""Batch renormalisation: Ioffe (2017), arXiv 1702.03275, and networks with it. Parameters and statistics stand apart.

A layer normalises each of its n inputs. In training, by the moments μ_B, σ_B of the batch; they follow the running ones
(μ, σ) by a correction without gradient, which is limited (Algorithm 1):

    x̂ = (x − μ_B) / σ_B · r + d,   r = clip(σ_B / σ, 1/3, 3),   d = clip((μ_B − μ) / σ, −5, 5),   y = γ x̂ + β
    μ ← μ + 0.01 (μ_B − μ),   σ ← σ + 0.01 (σ_B − σ),   σ_B² = mean (x − μ_B)² + 0.001

In evaluation, x̂ = (x − μ) / σ: what training computes too, while the limits aren't met. As long as a warm-up lasts,
r = 1 and d = 0, which is plain batch normalisation. Limits, ε and the rate are those of CrossQ's authors (arXiv
1902.05605); the limits hold from the end of the warm-up on, where Ioffe widens them slowly.

γ and β are parameters: they stand in the network, a pytree that is differentiated. μ and σ are statistics: a pytree of
their own, which a network takes as an argument and gives back renewed.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak import nets
from polyak.core import hyper
from polyak.nets import ACTIVATIONS, MLP, Dense, feature_width
from polyak.spaces import Box, Space

R_MAX, D_MAX = 3.0, 5.0  # limits of r and d
RATE = 0.01  # share of a batch's moments that enters the running ones
EPSILON = 1e-3  # added to the variance of a batch


class Running(NamedTuple):
    """Running moments of a layer's inputs."""

    mean: Array  # μ [n]
    std: Array  # σ [n]

    @staticmethod
    def start(n: int) -> "Running":
        return Running(jnp.zeros(n), jnp.ones(n))


@hyper
class Renorm:
    """One layer of batch renormalisation on [..., n]."""

    scale: Any  # γ [n]
    shift: Any  # β [n]

    @staticmethod
    def init(n: int) -> "Renorm":
        return Renorm(jnp.ones(n), jnp.zeros(n))

    def __call__(self, x: Array, running: Running) -> Array:
        """Evaluation, [..., n]: by the running moments, whatever else is in the batch."""
        return self._scaled((x - _wide(running.mean, x)) / _wide(running.std, x))

    def train(self, x: Array, running: Running, warm: Array) -> tuple[Array, Running]:
        """Training on a batch [B, n]: (y, the running moments after it).

        Args:
            warm: whether the warm-up is over, a boolean scalar.
        """
        mean = x.mean(0)
        std = jnp.sqrt(((x - mean[None]) ** 2).mean(0) + EPSILON)
        seen, running = lax.stop_gradient((Running(mean, std), running))
        r = jnp.where(warm, jnp.clip(seen.std / running.std, 1.0 / R_MAX, R_MAX), 1.0)
        d = jnp.where(warm, jnp.clip((seen.mean - running.mean) / running.std, -D_MAX, D_MAX), 0.0)
        after = jax.tree.map(lambda old, new: old + RATE * (new - old), running, seen)
        return self._scaled((x - mean[None]) / std[None] * r[None] + d[None]), after

    def _scaled(self, x: Array) -> Array:
        return x * _wide(self.scale, x) + _wide(self.shift, x)


@hyper
class Net:
    """(observation, action or nothing) ↦ features [..., m]: a renorm, then layers of dense, activation and renorm."""

    front: Any  # observation ↦ vector; images pass their convolutions here, without renorm
    layers: tuple[Dense, ...]
    norms: tuple[Renorm, ...]  # one before the first layer, and one behind each
    activation: str

    def __call__(self, running: tuple[Running, ...], obs: Any, *action: Array) -> Array:
        """Evaluation, over any leading axes."""
        x = self.norms[0](self._inputs(obs, *action), running[0])
        for layer, norm, moments in zip(self.layers, self.norms[1:], running[1:], strict=True):
            x = norm(ACTIVATIONS[self.activation](layer(x)), moments)
        return x

    def train(
        self, running: tuple[Running, ...], warm: Array, obs: Any, *action: Array
    ) -> tuple[Array, tuple[Running, ...]]:
        """Training on a batch: (features [B, m], the running moments after it); see `Renorm.train`."""
        x, first = self.norms[0].train(self._inputs(obs, *action), running[0], warm)
        after = [first]
        for layer, norm, moments in zip(self.layers, self.norms[1:], running[1:], strict=True):
            x, moments = norm.train(ACTIVATIONS[self.activation](layer(x)), moments, warm)
            after.append(moments)
        return x, tuple(after)

    def _inputs(self, obs: Any, *action: Array) -> Array:
        return jnp.concatenate([self.front(obs), *action], axis=-1)


@hyper
class Critic:
    """(observation, action [..., n]) ↦ a value [...]."""

    net: Net
    head: Dense

    def __call__(self, running: Any, obs: Any, action: Array) -> Array:
        return self.head(self.net(running, obs, action))[..., 0]

    def train(self, running: Any, warm: Array, obs: Any, action: Array) -> tuple[Array, Any]:
        """(values [B], the running moments after the batch)."""
        x, running = self.net.train(running, warm, obs, action)
        return self.head(x)[..., 0], running


def build(network: Any, default: MLP, key: Array, space: Space, n_actions: int = 0) -> tuple[Net, tuple[Running, ...]]:
    """A network with renorms and its statistics at the start.

    Args:
        network: as in `nets.build`. A custom network becomes the front; the default's layers join the actions to it.
        n_actions: width of the action that the network takes beside the observation, 0 for none.
    """
    k_front, k_layers = jax.random.split(key)
    plan = nets.blueprint(network, default)
    if isinstance(plan, MLP):
        front: Any = replace(plan, sizes=()).build(k_front, space)
        bare = n_actions == 0 and isinstance(space, Box) and space.image  # as everywhere, the CNN's features are enough
    else:
        front, bare, plan = nets.build(network, default, k_front, space), n_actions == 0, default
    width = feature_width(front, space) + n_actions
    layers = () if bare else plan.stack(k_layers, width).layers
    widths = (width, *(layer.W.shape[-1] for layer in layers))
    net = Net(front, layers, tuple(Renorm.init(n) for n in widths), plan.activation)
    return net, tuple(Running.start(n) for n in widths)


def build_critic(network: Any, default: MLP, key: Array, space: Space, n_actions: int) -> tuple[Critic, Any]:
    """A critic with renorms and its statistics at the start; see `build`."""
    k_net, k_head = jax.random.split(key)
    net, running = build(network, default, k_net, space, n_actions)
    return Critic(net, Dense.init(k_head, running[-1].mean.shape[0], 1, default.init)), running


def _wide(v: Array, x: Array) -> Array:
    """v [n] with as many axes as x [..., n]."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)
