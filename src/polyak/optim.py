"""Schedules, optimisers and target networks: how a number and a parameter change over a run."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from polyak.core import Counter, hyper, require

T = TypeVar("T")


@hyper
class Constant:
    """The same value throughout."""

    value: float

    def __call__(self, steps: Array) -> Array:
        return jnp.full(jnp.shape(steps), self.value)


@hyper
class Linear:
    """From `start` to `end`, in a straight line over a fraction of the run, then `end`."""

    start: float
    end: float = 0.0
    fraction: float = 1.0  # of the run's steps
    steps: float | None = None  # length in environment steps; filled in from the fraction when training starts

    def __call__(self, steps: Array) -> Array:
        return self.start + _progress(self, steps) * (self.end - self.start)


@hyper
class Exponential:
    """From `start` to `end`, by a constant factor per step, over a fraction of the run; both positive."""

    start: float
    end: float
    fraction: float = 1.0  # of the run's steps
    steps: float | None = None  # length in environment steps; filled in from the fraction when training starts

    def __post_init__(self) -> None:
        require(
            self.start > 0 and self.end > 0, f"Exponential goes from {self.start} to {self.end}: both must be positive"
        )

    def __call__(self, steps: Array) -> Array:
        return self.start * (self.end / self.start) ** _progress(self, steps)


@hyper
class Cosine:
    """From `start` to `end` along half a cosine over a fraction of the run, then `end`."""

    start: float
    end: float = 0.0
    fraction: float = 1.0  # of the run's steps
    steps: float | None = None  # length in environment steps; filled in from the fraction when training starts

    def __call__(self, steps: Array) -> Array:
        return self.end + (self.start - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(self, steps)))


if TYPE_CHECKING:
    Schedule: TypeAlias = Any  # where a number is calculated with, `now` has replaced the schedule by one
else:
    Schedule = Constant | Linear | Exponential | Cosine


def _progress(schedule: Any, steps: Array) -> Array:
    """The part of the schedule that is over, in [0, 1]."""
    name = type(schedule).__name__
    require(
        schedule.steps is not None, f"{name} has no length in steps yet: resolve_schedules(agent, steps) gives it one"
    )
    return jnp.clip(steps / schedule.steps, 0.0, 1.0)


def _is_schedule(x: Any) -> bool:
    return isinstance(x, Schedule)


def resolve_schedules(agent: Any, steps: int) -> Any:
    """The same agent with every schedule's fraction turned into environment steps of a run of `steps`."""

    def resolved(x: Any) -> Any:
        if not isinstance(x, Linear | Exponential | Cosine) or x.steps is not None:
            return x
        require(0 < x.fraction <= 1, f"{type(x).__name__}: fraction is {x.fraction}, and must lie in (0, 1]")
        return dataclasses.replace(x, steps=max(1.0, x.fraction * steps))

    return jax.tree.map(resolved, agent, is_leaf=_is_schedule)


def now(agent: T, steps: Counter) -> T:
    """The agent as it is at this point of the run: every schedule replaced by its present value."""
    count = steps.float()
    return jax.tree.map(lambda x: x(count) if _is_schedule(x) else x, agent, is_leaf=_is_schedule)


def adam(max_grad_norm: Any = None, eps: float = 1e-8, b1: Any = 0.9) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) after clipping by the global norm; `descend` applies the step size.

    Args:
        b1: β1, the decay of the first moment per step.
    """
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    return optax.flatten(optax.chain(clip, optax.scale_by_adam(b1=b1, eps=eps)))


def rmsprop(max_grad_norm: Any = None, eps: float = 1e-5) -> optax.GradientTransformation:
    """RMSProp (Tieleman & Hinton 2012) with decay 0.99 and ε beside the root, after clipping by the global norm."""
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    return optax.flatten(optax.chain(clip, optax.scale_by_rms(0.99, eps, eps_in_sqrt=False)))


def descend(rule: optax.GradientTransformation, lr: Any, grads: Any, opt: Any, params: Any) -> tuple[Any, Any]:
    """One step downhill: (parameters, optimiser state) after params ← params − lr · rule(grads)."""
    direction, opt = rule.update(grads, opt, params)
    return jax.tree.map(lambda p, d: p - lr * d, params, direction), opt


def polyak(target: Any, online: Any, tau: Any) -> Any:
    """Polyak averaging of a target network: θ′ ← τ θ + (1 − τ) θ′."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)
