"""The rhythm of the tabular and linear agents: one step, one update; and the window of the last n steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from polyak.core import Metrics, Rollout, Spec, Transition, leading, refuse_actions, require
from polyak.dists import mask_of
from polyak.errors import PolyakError
from polyak.explore import epsilon_greedy_choice
from polyak.mdp.features import Weights
from polyak.nets import sample_obs
from polyak.returns import ended
from polyak.spaces import Discrete

Policy = Any
"""Probabilities of actions, a table [observations, actions], or what a method's field says besides."""

Learn = Callable[[Any, Any, Array], tuple[Any, Metrics]]


def discrete_actions(name: str, spec: Spec) -> int:
    """How many actions there are; spaces other than Discrete are refused."""
    if not isinstance(spec.action, Discrete):
        refuse_actions(name, spec.action)
    return spec.action.n


def chosen(Q: Array, obs: Any, key: Array, epsilon: Any, explore: bool) -> Array:
    """Actions [N] from values [N, A]: ε-greedy in training, the first of the best otherwise; of the allowed ones."""
    mask = mask_of(obs)
    if explore:
        return epsilon_greedy_choice(key, Q, epsilon, mask)
    return jnp.argmax(allowed(Q, mask), axis=-1).astype(jnp.int32)


def allowed(Q: Array, mask: Array | None, other: float = -jnp.inf) -> Array:
    """The values with `other` where an action is not allowed."""
    return Q if mask is None else jnp.where(mask > 0, Q, other)


def policy_of(name: str, policy: Any, V: Weights, spec: Spec) -> Array:
    """The probabilities [observations, A] of a policy that is given as a table; [1, A], all alike, for none."""
    n = discrete_actions(name, spec)
    if policy is None:
        return jnp.full((1, n), 1.0 / n)
    require(V.tabular, f"{name}: a policy is a table [observations, actions], and goes with a table of values only")
    require(not isinstance(policy, str), f"{name}: policy is {policy!r}, and must be a table of probabilities")
    wanted, pi = (V.W.shape[0], n), jnp.asarray(policy, jnp.float32)
    require(pi.shape == wanted, f"{name}: the policy has the shape {list(pi.shape)}, and must be {list(wanted)}")
    if all(isinstance(x, float | int | np.ndarray | np.floating) for x in jax.tree.leaves(policy)):
        given = np.asarray(policy, np.float64)  # a traced one can't be checked, and was before it was traced
        for s in np.flatnonzero(~(abs(given.sum(-1) - 1) < 1e-5) | (given < 0).any(-1))[:1]:
            raise PolyakError(f"{name}: the policy in state {s} is {given[s].tolist()}, which is no distribution")
    return pi


def followed(policy: Array, V: Weights, obs: Any, key: Array) -> Array:
    """Actions [N] drawn from a policy of `policy_of`; of the allowed ones where the observation has a mask."""
    state = V.on(obs).place[..., 0] if policy.shape[0] > 1 else 0
    pi = policy[state] if policy.shape[0] > 1 else jnp.broadcast_to(policy, (leading(obs, 1)[0], policy.shape[1]))
    mask = mask_of(obs)
    total = jnp.cumsum(allowed(pi, mask, 0.0), axis=-1)
    u = jax.random.uniform(key, total.shape[:1]) * total[:, -1]
    return (total <= u[:, None]).sum(-1).astype(jnp.int32)


def in_turn(learn: Learn, state: Any, rollout: Rollout, key: Array) -> tuple[Any, Metrics]:
    """Learn from each environment's one step, one after the other: they share a table, as if they had come in turn.

    The state has `steps`, which is advanced; metrics are means over the environments.
    """
    _, N = leading(rollout.steps, 2)
    state, metrics = each(learn, state, jax.tree.map(lambda x: x[0], rollout.steps), key, N)
    return state._replace(steps=state.steps.add(N)), metrics


def each(learn: Learn, state: Any, rows: Any, key: Array, n: int) -> tuple[Any, Metrics]:
    """`learn(state, row, key)` for each of n rows in turn; the mean of their metrics."""
    if n == 1:
        return learn(state, jax.tree.map(lambda x: x[0], rows), key)
    state, metrics = lax.scan(lambda s, row: learn(s, *row), state, (rows, jax.random.split(key, n)))
    return state, jax.tree.map(jnp.nanmean, metrics)


class Window(NamedTuple):
    """The newest steps of each environment's present episode, oldest first; lives for the run."""

    steps: Transition  # [N, L, ...]
    held: Array  # [N] how many of the newest are of this episode, 0 … L


def window(spec: Spec, length: int) -> Window:
    """An empty window of `length` steps."""
    lead = (spec.n_envs, length)
    obs, flags = sample_obs(spec.obs, lead), jnp.zeros(lead, bool)
    next_obs = jax.tree.map(jnp.copy, obs)
    steps = Transition(obs, sample_obs(spec.action, lead), jnp.zeros(lead), next_obs, flags, ~flags)
    return Window(steps, jnp.zeros(spec.n_envs, jnp.int32))


def pushed(old: Window, rollout: Rollout) -> Window:
    """The window with one step of each environment added, and the oldest dropped."""

    def shifted(row: Array, new: Array) -> Array:
        return jnp.concatenate([row[:, 1:], new[0, :, None].astype(row.dtype)], axis=1)

    length = old.steps.reward.shape[1]
    return Window(jax.tree.map(shifted, old.steps, rollout.steps), jnp.minimum(old.held + 1, length))


def due(waiting: Window) -> Array:
    """Which of one environment's waiting steps [L] can be learned from: the oldest of a full window, all at an end."""
    L = waiting.steps.reward.shape[0]
    age = L - jnp.arange(L)  # of each step: the newest is 1 old
    return (age <= waiting.held) & ((age == L) | ended(waiting.steps)[-1])


def forgotten(full: Window, rollout: Rollout) -> Window:
    """The window after its steps were learned from: empty where the episode has ended."""
    return full._replace(held=jnp.where(ended(rollout.steps)[0], 0, full.held))
