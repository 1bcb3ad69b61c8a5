"""Networks: frozen pytrees of parameters, callable over any leading axes.

A *blueprint* (`MLP`, `CNN`) is a plain description; `build` turns it, a space and a key into a *network*, which maps
observations of that space to features. Any callable pytree is accepted as a network as well (see `Custom`).

No LAPACK runs here (QR inside jit and vmap hung on CPU): orthogonal matrices come from matrix products alone. And
convolutions are written as slices and one product, because XLA's CPU convolution gradients are 12-30 times slower
inside a loop (jax#12868).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polyak.core import hyper, require
from polyak.errors import PolyakError, nearest
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, describe, leaves

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "selu": jax.nn.selu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
}


INITS = ("orthogonal", "uniform")


def orthogonal(key: Array, shape: tuple[int, int], gain: float = 1.0) -> Array:
    """A random matrix with orthonormal rows or columns times `gain` (Saxe et al. 2014), by Newton-Schulz iteration.

    a ← 1.5 a − 0.5 a (aᵀ a) moves every singular value towards 1 (Björck & Bowie 1971).
    """
    n, m = max(shape), min(shape)
    a = jax.random.normal(key, (n, m))
    a = a / jnp.linalg.norm(a)
    a = jax.lax.fori_loop(0, 60 if n < 2 * m else 30, lambda _, a: 1.5 * a - 0.5 * a @ (a.T @ a), a)
    return gain * (a if shape == (n, m) else a.T)


def _weights(key: Array, init: str, fan_in: int, fan_out: int, gain: float) -> tuple[Array, Array]:
    """(weights [fan_in, fan_out], bias [fan_out]): "orthogonal" with zero bias, or "uniform" in ±1/√fan_in."""
    if init == "orthogonal":
        return orthogonal(key, (fan_in, fan_out), gain), jnp.zeros(fan_out)
    k_w, k_b = jax.random.split(key)
    bound = 1.0 / math.sqrt(fan_in)
    return (
        jax.random.uniform(k_w, (fan_in, fan_out), minval=-bound, maxval=bound),
        jax.random.uniform(k_b, (fan_out,), minval=-bound, maxval=bound),
    )


def add_bias(x: Array, b: Array) -> Array:
    """x [..., n] + b [n], with the broadcast written out."""
    return x + b.reshape((1,) * (x.ndim - 1) + b.shape)


@hyper
class Dense:
    """x [..., n] ↦ x W + b [..., m]."""

    W: Any
    b: Any

    @staticmethod
    def init(key: Array, fan_in: int, fan_out: int, init: str = "orthogonal", gain: float = 1.0) -> "Dense":
        return Dense(*_weights(key, init, fan_in, fan_out, gain))

    def __call__(self, x: Array) -> Array:
        return add_bias(x @ self.W, self.b)


@hyper
class Conv:
    """A convolution without padding, [..., h, w, c] ↦ [..., h', w', m]; W is [kernel·kernel·c, m]."""

    W: Any
    b: Any
    kernel: int
    stride: int

    @staticmethod
    def init(key: Array, channels: int, filters: int, kernel: int, stride: int, init: str) -> "Conv":
        W, b = _weights(key, init, kernel * kernel * channels, filters, math.sqrt(2.0))
        return Conv(W, b, kernel, stride)

    def __call__(self, x: Array) -> Array:
        s, k = self.stride, self.kernel
        W = self.W
        if s > 1 and k % s == 0 and x.shape[-3] % s == 0 and x.shape[-2] % s == 0:
            # A stride that divides all: fold s×s pixels into the channels, and fewer, larger slices remain.
            *lead, h, w, c = x.shape
            x = x.reshape((*lead, h // s, s, w // s, s, c))
            x = jnp.moveaxis(x, -4, -3).reshape((*lead, h // s, w // s, s * s * c))
            W = jnp.moveaxis(W.reshape((k // s, s, k // s, s, c, -1)), 1, 2).reshape(((k // s) ** 2 * s * s * c, -1))
            s, k = 1, k // s
        rows, cols = (x.shape[-3] - k) // s + 1, (x.shape[-2] - k) // s + 1
        patches = [
            x[..., i : i + (rows - 1) * s + 1 : s, j : j + (cols - 1) * s + 1 : s, :]
            for i in range(k)
            for j in range(k)
        ]
        return add_bias(jnp.concatenate(patches, axis=-1) @ W, self.b)


@hyper
class LayerNorm:
    """Ba, Kiros & Hinton (2016), arXiv 1607.06450, eq. 3-4: x [..., n] at mean 0, variance 1, then scaled and moved."""

    scale: Any  # [n]
    shift: Any  # [n]

    def __call__(self, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        lead = (1,) * (x.ndim - 1)
        return x * self.scale.reshape(lead + self.scale.shape) + self.shift.reshape(lead + self.shift.shape)


@hyper
class Stack:
    """Dense layers, each followed by a layer norm where asked for, then the activation; no layers are the identity."""

    layers: tuple[Dense, ...]
    activation: str
    norms: tuple[LayerNorm, ...] = ()

    def width(self, fan_in: int) -> int:
        """How many features come out where `fan_in` go in."""
        return self.layers[-1].W.shape[-1] if self.layers else fan_in

    def __call__(self, x: Array) -> Array:
        for i, layer in enumerate(self.layers):
            x = self.norms[i](layer(x)) if self.norms else layer(x)
            x = ACTIVATIONS[self.activation](x)
        return x


@hyper
class Convolutions:
    """Convolutions and a dense layer, each with ReLU: images uint8 [..., h, w, c] ↦ features [..., n]."""

    convs: tuple[Conv, ...]
    dense: Dense

    def __call__(self, image: Array) -> Array:
        x = image.astype(jnp.float32) / 255.0
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return jax.nn.relu(self.dense(x.reshape((*x.shape[:-3], -1))))


@hyper
class Torso:
    """Observations of any space ↦ features: images through convolutions, the rest flattened, then dense layers."""

    images: tuple[Convolutions, ...]
    body: Stack
    space: Space

    def __call__(self, obs: Any) -> Array:
        return self.body(jnp.concatenate(encoded(self.space, obs, self.images), axis=-1))


@hyper
class Critic:
    """(observation, action [..., m]) ↦ a value [...], or n of them [..., n] where `n` outputs were asked for.

    The action joins the torso's features before the body; the torso of an MLP only encodes the observation.
    """

    torso: Any
    body: Stack
    head: Dense
    scalar: bool = True

    @staticmethod
    def init(key: Array, torso: Any, features: int, n_actions: int, layers: "MLP", n: int | None = None) -> "Critic":
        """Layers on a torso that gives so many features."""
        k_body, k_head = jax.random.split(key)
        body = layers.stack(k_body, features + n_actions)
        head = Dense.init(k_head, body.width(features + n_actions), n or 1, layers.init)
        return Critic(torso, body, head, n is None)

    def __call__(self, obs: Any, action: Array) -> Array:
        return self.given(self.torso(obs), action)

    def given(self, features: Array, action: Array) -> Array:
        out = self.head(self.body(jnp.concatenate([features, action], axis=-1)))
        return out[..., 0] if self.scalar else out


@dataclasses.dataclass(frozen=True)
class CNN:
    """Blueprint of the convolutional front: (filters, kernel, stride) per layer, then a dense layer.

    The default is the network of Mnih et al. (2015); `CNN(((16, 8, 4), (32, 4, 2)), 256)` is the one of 2013.
    """

    filters: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    dense: int = 512

    def build(self, key: Array, space: Box, init: str) -> Convolutions:
        h, w, c = space.shape
        *k_convs, k_dense = jax.random.split(key, len(self.filters) + 1)
        convs: list[Conv] = []
        for k_conv, (filters, kernel, stride) in zip(k_convs, self.filters, strict=True):
            require(
                min(h, w) >= kernel,
                f"an image of {space.shape[:2]} pixels is too small for the CNN {self.filters}; give smaller kernels",
            )
            convs.append(Conv.init(k_conv, c, filters, kernel, stride, init))
            h, w, c = (h - kernel) // stride + 1, (w - kernel) // stride + 1, filters
        return Convolutions(tuple(convs), Dense.init(k_dense, h * w * c, self.dense, init, math.sqrt(2.0)))


@dataclasses.dataclass(frozen=True)
class MLP:
    """Blueprint of a network: dense layers of `sizes` on the flattened observation; images pass a CNN first.

    A space that is one image takes the CNN's features as they are, without dense layers (unless `on_images`).
    """

    sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    init: str = "orthogonal"  # or "uniform": ±1/√fan_in
    cnn: CNN = CNN()
    layer_norm: bool = False  # normalise each dense layer's outputs before the activation

    def __post_init__(self) -> None:
        require(
            all(type(n) is int and n > 0 for n in self.sizes),
            f"a network's sizes are {self.sizes}, and must be positive whole numbers",
        )
        if self.init not in INITS:
            raise PolyakError(f"there is no initialisation {self.init!r}{nearest(self.init, INITS)}")
        if self.activation not in ACTIVATIONS:
            raise PolyakError(f"there is no activation {self.activation!r}{nearest(self.activation, ACTIVATIONS)}")

    def _fronts(self, key: Array, space: Space) -> tuple[Convolutions, ...]:
        pictures = [inner for _, inner in observed(space) if isinstance(inner, Box) and inner.image]
        return tuple(
            self.cnn.build(k, p, self.init)
            for k, p in zip(jax.random.split(key, max(1, len(pictures))), pictures, strict=False)
        )

    def stack(self, key: Array, fan_in: int) -> Stack:
        """The dense layers alone, on vectors of `fan_in`."""
        widths = (fan_in, *self.sizes)
        keys = jax.random.split(key, max(1, len(self.sizes)))
        layers = [
            Dense.init(k, a, b, self.init, math.sqrt(2.0)) for k, a, b in zip(keys, widths, self.sizes, strict=False)
        ]
        norms = [LayerNorm(jnp.ones(n), jnp.zeros(n)) for n in self.sizes] if self.layer_norm else []
        return Stack(tuple(layers), self.activation, tuple(norms))

    def build(self, key: Array, space: Space) -> Torso:
        k_images, k_body = jax.random.split(key)
        images = self._fronts(k_images, space)
        body = (
            Stack((), self.activation)
            if isinstance(space, Box) and space.image
            else self.stack(k_body, width(space, self.cnn))
        )
        return Torso(images, body, space)

    def critic(self, key: Array, space: Space, n_actions: int, n: int | None = None) -> Critic:
        k_images, k_rest = jax.random.split(key)
        torso = Torso(self._fronts(k_images, space), Stack((), self.activation), space)
        return Critic.init(k_rest, torso, width(space, self.cnn), n_actions, self, n)


class Custom:
    """A user's callable pytree as a network: it sees one observation, and is vmapped over the leading axes.

    Its arrays are the parameters; all else in it (activation functions, say) is structure.
    """

    def __init__(self, network: Any, space: Space) -> None:
        values, self.treedef = jax.tree.flatten(network)
        self.arrays = [v if _is_array(v) else None for v in values]
        self.rest = tuple(None if _is_array(v) else v for v in values)
        self.space = space

    def __call__(self, obs: Any) -> Array:
        network = self.treedef.unflatten(a if r is None else r for a, r in zip(self.arrays, self.rest, strict=True))
        _, first = next(leaves(self.space))
        run: Callable[[Any], Array] = network
        for _ in range(jax.tree.leaves(obs)[0].ndim - len(first.shape)):
            run = jax.vmap(run)
        return run(obs)


def _is_array(x: Any) -> bool:
    """Whether a leaf of a custom network is a parameter: an array of floats."""
    return isinstance(x, Array | np.ndarray) and bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _flatten_custom(c: Custom) -> tuple[tuple[Any, ...], Any]:
    return (c.arrays,), (c.treedef, c.rest, c.space)


def _unflatten_custom(aux: Any, children: Any) -> Custom:
    c = object.__new__(Custom)
    (c.arrays,), (c.treedef, c.rest, c.space) = children, aux
    return c


jax.tree_util.register_pytree_node(Custom, _flatten_custom, _unflatten_custom)


def observed(space: Space) -> list[tuple[str, Any]]:
    """The simple spaces that a network sees: all but `action_mask`."""
    return [(path, inner) for path, inner in leaves(space) if path.split("/")[-1] != "action_mask"]


def _vector(space: Any, x: Array) -> Array:
    """One simple observation as float32 features [..., n]: integers one-hot, arrays flattened."""
    match space:
        case Discrete():
            return jax.nn.one_hot(x, space.n)
        case MultiDiscrete():
            return jnp.concatenate([jax.nn.one_hot(x[..., i], n) for i, n in enumerate(space.nvec)], axis=-1)
        case _:
            return x.astype(jnp.float32).reshape((*x.shape[: x.ndim - len(space.shape)], -1))


def encoded(space: Space, obs: Any, images: Sequence[Convolutions] = ()) -> list[Array]:
    """The observation's features, one array [..., n] per simple space inside `space`."""
    fronts = iter(images)
    values = [
        v
        for (path, _), v in zip(leaves(space), jax.tree.leaves(obs), strict=True)
        if path.split("/")[-1] != "action_mask"
    ]
    return [
        next(fronts)(x) if isinstance(inner, Box) and inner.image else _vector(inner, x)
        for (_, inner), x in zip(observed(space), values, strict=True)
    ]


def width(space: Space, cnn: CNN) -> int:
    """How many features `encoded` gives."""

    def one(inner: Any) -> int:
        match inner:
            case Discrete():
                return inner.n
            case MultiDiscrete():
                return sum(inner.nvec)
            case MultiBinary():
                return inner.n
            case _:
                return cnn.dense if inner.image else math.prod(inner.shape)

    return sum(one(inner) for _, inner in observed(space))


def blueprint(network: Any, default: MLP) -> Any:
    """What the field `network` means: None the default, sizes the default with these sizes, else itself."""
    if network is None:
        return default
    if isinstance(network, CNN):
        return dataclasses.replace(default, cnn=network)
    if isinstance(network, tuple) and all(isinstance(n, int) for n in network):
        return dataclasses.replace(default, sizes=network)
    return network


def build(network: Any, default: MLP, key: Array, space: Space) -> Any:
    """A network for observations of `space`: features = net(obs), over any leading axes.

    Args:
        network: None, sizes, an `MLP` or `CNN`, a callable pytree with arrays (used as it stands, the same start in
            every seed), or a function key ↦ callable pytree (its own start in every seed).
    """
    plan = blueprint(network, default)
    if isinstance(plan, MLP):
        return plan.build(key, space)
    require(callable(plan), f"network is {plan!r}: give sizes such as (256, 256), an MLP or CNN, or a callable pytree")
    if any(_is_array(leaf) for leaf in jax.tree.leaves(plan)):
        return Custom(plan, space)
    try:
        made = plan(key)
    except TypeError as error:
        raise PolyakError(f"the network is a function, and must map a key to a callable pytree: {error}") from error
    require(callable(made), f"the network is a function of a key that gives {made!r}, and must give a callable pytree")
    return Custom(made, space)


def build_critic(network: Any, default: MLP, key: Array, space: Space, n_actions: int, n: int | None = None) -> Any:
    """A network (obs, action) ↦ value; a custom network gives the features of obs, and dense layers join the action.

    With `n` it gives n numbers [..., n] instead of one [...].
    """
    plan = blueprint(network, default)
    if isinstance(plan, MLP):
        return plan.critic(key, space, n_actions, n)
    k_torso, k_rest = jax.random.split(key)
    torso = build(network, default, k_torso, space)
    return Critic.init(k_rest, torso, feature_width(torso, space), n_actions, default, n)


def sample_obs(space: Space, lead: tuple[int, ...] = (1,)) -> Any:
    """Zeros in the shape of a batch of observations, for tracing shapes."""
    match space:
        case Dict():
            return {name: sample_obs(inner, lead) for name, inner in space.items}
        case Discrete() | MultiDiscrete() | MultiBinary() | Box():
            return jnp.zeros((*lead, *space.shape), space.dtype)
        case _:
            return tuple(sample_obs(inner, lead) for inner in space.items)


def feature_width(net: Any, space: Space) -> int:
    """How many features a network gives for observations of `space`; refuses one whose output doesn't fit."""
    try:
        out = jax.eval_shape(net, sample_obs(space))
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise PolyakError(f"the network can't take observations of {describe(space)}: {reason}") from error
    fits = hasattr(out, "shape") and len(out.shape) == 2
    require(fits, f"the network must map one observation of {describe(space)} to a vector of features, and gives {out}")
    return int(out.shape[-1])


__all__ = [
    "CNN",
    "MLP",
    "Conv",
    "Custom",
    "Dense",
    "Stack",
    "Torso",
    "build",
    "build_critic",
    "feature_width",
    "orthogonal",
]
