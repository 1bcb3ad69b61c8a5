"""The reward of a Gymnasium environment with goals as a function of goals that jit takes: built here, and proved.

Hindsight needs the reward of goals that nobody pursued. `compute_reward(achieved, desired, info)` of such environments
(Gymnasium-Robotics' convention) is Python and can't run inside a compiled update, so its formula is stated anew and
compared with it, on pairs of goals that lie densely around the threshold. What doesn't agree is never used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.errors import PolyakError
from polyak.spaces import Box, Dict, Space

PAIRS = 400  # of goals, on which the two rewards are compared
GoalReward = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class DistanceReward:
    """Sparse: −1 where ‖achieved − desired‖ > threshold, else 0. Dense: −‖achieved − desired‖."""

    threshold: float
    dense: bool

    def __call__(self, achieved: Array, desired: Array) -> Array:
        distance = jnp.sqrt(((achieved - desired) ** 2).sum())
        return -distance if self.dense else jnp.where(distance > self.threshold, -1.0, 0.0)


def goal_reward(env: Any, name: str, space: Space) -> GoalReward | None:
    """(achieved, desired), one goal each ↦ reward; None where it isn't known, which only hindsight minds.

    An environment, or a wrapper around it, that has a method `goal_reward` written with jax.numpy says it itself.
    Else `distance_threshold` and `reward_type` are read, unless a wrapper changes rewards.

    Errors:
        PolyakError: the environment's own goal_reward is not what its compute_reward says.
    """
    goal = dict(space.items).get("achieved_goal") if isinstance(space, Dict) else None
    if not isinstance(goal, Box):
        return None
    layers = list(_layers(env))
    own = next((layer.goal_reward for layer in layers if hasattr(layer, "goal_reward")), None)
    world = getattr(layers[-1], "unwrapped", layers[-1])
    compute = getattr(world, "compute_reward", None)
    stated = getattr(world, "distance_threshold", None)
    threshold = float(stated) if isinstance(stated, int | float | np.floating) and stated > 0 else 1.0
    if own is not None:
        wrong = "" if compute is None else _difference(own, compute, goal.shape, threshold)
        if wrong:
            raise PolyakError(f"{name}: its goal_reward is not its compute_reward: {wrong}")
        return own
    if compute is None or any(_changes_rewards(layer) for layer in layers):
        return None
    made = DistanceReward(threshold, getattr(world, "reward_type", "sparse") == "dense")
    return None if _difference(made, compute, goal.shape, threshold) else made


def _layers(env: Any) -> Iterator[Any]:
    """The environment's wrappers from the outermost, then itself."""
    while True:
        yield env
        inner = getattr(env, "env", None)
        if inner is None:
            return
        env = inner


def _changes_rewards(layer: Any) -> bool:
    from gymnasium import RewardWrapper
    from gymnasium.wrappers import NormalizeReward

    return isinstance(layer, RewardWrapper | NormalizeReward)


def _difference(reward: GoalReward, compute: Any, size: tuple[int, ...], threshold: float) -> str:
    """Where the two rewards differ first, in words; "" where they nowhere do."""
    achieved, desired = _pairs(size, threshold)
    try:
        ours = np.asarray(jax.jit(jax.vmap(reward))(achieved, desired), np.float64)
        theirs = np.array([float(compute(a, d, {})) for a, d in zip(achieved, desired, strict=True)])
    except Exception as error:  # whatever a stranger's function raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    wrong = np.flatnonzero(~(np.abs(ours - theirs) <= 1e-5 * np.maximum(1, np.abs(theirs))))
    if not wrong.size:
        return ""
    i = int(wrong[0])
    pair = f"achieved {achieved[i].tolist()}, desired {desired[i].tolist()}"
    return f"{ours[i]:.6g} instead of {theirs[i]:.6g} for {pair}"


def _pairs(size: tuple[int, ...], threshold: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pairs of goals [PAIRS, ...]: equal ones, far ones, and many at distances 0.1 % to 100 % beside the threshold."""
    rng = np.random.default_rng(0)
    beside = 10 ** rng.uniform(-3, 0, PAIRS) * rng.choice([-1, 1], PAIRS)
    distance = threshold * np.where(rng.random(PAIRS) < 0.8, 1 + beside, 10 ** rng.uniform(-2, 2, PAIRS))
    distance[:8] = 0.0
    towards = rng.normal(size=(PAIRS, *size))
    axes = tuple(range(1, towards.ndim))
    towards /= np.sqrt((towards**2).sum(axes, keepdims=True))
    desired = rng.normal(size=(PAIRS, *size)).astype(np.float32)
    apart = desired + distance.reshape((-1,) + (1,) * len(size)) * towards
    return apart.astype(np.float32), desired
