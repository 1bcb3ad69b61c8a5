"""Hindsight experience replay: goals that were missed are replaced by goals that were reached, when sampled.

Andrychowicz, Wolski, Ray et al. (2017), arXiv 1707.01495, algorithm 1 with the strategy "future" of §4.5. Of k + 1
replayed transitions of an episode, k on average are told with a goal that this episode achieved later:

    g′ = achieved(s_{j+1}),   j uniform among the present step and the later ones of its episode that the ring holds
    r′ = R(achieved(s_{t+1}), g′);   observation and successor both get g′ as their desired goal

`terminated` stays as it was: an environment whose episodes end at the goal is not told to end at g′. (Those of
Gymnasium-Robotics run on until the clock ends them.) The paper stores relabelled copies; drawn when sampled, as in the
code of its authors (openai/baselines), they are new every time and take no memory.

Observations are a Dict with the keys "observation", "achieved_goal" and "desired_goal" (Gymnasium-Robotics), and
networks see all three, as in Stable-Baselines3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polyak.core import Spec, Transition, hyper, leading, require, where
from polyak.nets import sample_obs
from polyak.spaces import Box, Dict, describe

KEYS = ("observation", "achieved_goal", "desired_goal")
_PARTS = 1 << 24  # a uniform number is one of so many, as float32 tells them apart


@hyper
class Hindsight:
    """A ring, which of its rows [capacity, N] are of one episode, and the reward that other goals would bring."""

    ring: Any
    episode: Any  # [capacity, N] int32: the number of the row's episode, modulo capacity
    last: Any  # [capacity, N] int32: by the number of an episode, the row of its newest step
    present: Any  # [N] int32: the number of the episode that the next step belongs to
    before: Any  # the newest step's successor [N, ...], and whether its episode goes on [N]
    k: int  # relabelled transitions per one that is replayed as it was
    reward: Any  # (achieved, desired), one goal each ↦ reward


def hindsight(k: int, spec: Spec, ring: Any) -> Hindsight:
    """The view of an empty ring.

    Errors:
        PolyakError: observations have no goals, or the reward is not known as a function of goals.
    """
    require(k > 0, f"hindsight is {k}, and must be 0 or more: relabelled transitions per one as it was")
    inside = dict(spec.obs.items) if isinstance(spec.obs, Dict) else {}
    lacking = [key for key in KEYS if key not in inside]
    require(
        not lacking,
        f"hindsight is {k}, and the observation {describe(spec.obs)} has no {', '.join(lacking)}: give an environment "
        "with goals, or hindsight=0",
    )
    achieved, desired = (inside[key] for key in KEYS[1:])
    require(
        isinstance(achieved, Box) and isinstance(desired, Box) and achieved.shape == desired.shape,
        f"hindsight puts what was achieved in the place of what was desired, and they are {describe(achieved)} and "
        f"{describe(desired)}: both must be a Box of one shape",
    )
    require(
        spec.goal_reward is not None,
        f"hindsight is {k}, and the reward of other goals is not known here: give the environment, or a wrapper around "
        "it, a method goal_reward(achieved, desired) for one goal each, written with jax.numpy",
    )
    goals = [sample_obs(goal, ()) for goal in (achieved, desired)]
    reward: Any = jax.eval_shape(spec.goal_reward, *goals)  # pyright: ignore
    require(
        reward.shape == (),
        f"goal_reward gives an array of shape {reward.shape} for one pair of goals, and must give one number",
    )
    rows = jnp.zeros(leading(ring.data, 2), jnp.int32)
    before = sample_obs(spec.obs, (spec.n_envs,)), jnp.zeros(spec.n_envs, bool)
    return Hindsight(ring, rows, rows.copy(), jnp.zeros(spec.n_envs, jnp.int32), before, k, spec.goal_reward)


def followed(view: Hindsight, ring: Any, steps: Transition, at: Array) -> Hindsight:
    """The view of `ring`, which is the view's own with a rollout's steps [T, N] added from row `at` on.

    An episode ends with its last step, or where an observation is not the successor of the one before: after a resume
    that could not restore the environments, new episodes begin without an end of the old ones.
    """
    (T, N), capacity, end = leading(steps, 2), view.episode.shape[0], steps.terminated | steps.truncated
    successor, unfinished = view.before
    torn = [
        (x != obs[0]).reshape(N, -1).any(1)
        for x, obs in zip(jax.tree.leaves(successor), jax.tree.leaves(steps.obs), strict=True)
    ]
    present = view.present + (unfinished & jnp.stack(torn).any(0))
    number = (present[None] + jnp.cumsum(end, axis=0, dtype=jnp.int32) - end) % capacity
    newest = end.at[-1].set(True)  # of its episode so far; the rows before it write nothing
    row = jnp.broadcast_to((at + jnp.arange(T))[:, None], (T, N))
    worlds = jnp.broadcast_to(jnp.arange(N)[None], (T, N))
    return Hindsight(
        ring,
        jax.lax.dynamic_update_slice_in_dim(view.episode, number, at, axis=0),
        view.last.at[jnp.where(newest, number, capacity), worlds].set(row, mode="drop"),
        (present + end.sum(0, dtype=jnp.int32)) % capacity,
        (jax.tree.map(lambda old, x: x[-1].astype(old.dtype), successor, steps.next_obs), ~end[-1]),
        view.k,
        view.reward,
    )


def chances(key: Array, places: Array) -> Array:
    """Places [count, B] with the chances by which `relabelled` reads them, [count, 2, B] int32."""
    chance = jax.random.randint(key, (places.size,), 0, _PARTS)
    return jnp.stack([places, chance.reshape(places.shape)], axis=1)


def relabelled(view: Hindsight, places: Array, chance: Array) -> Transition:
    """The transitions [B] at places [B], k of k + 1 told with a goal that their episodes achieved later.

    Args:
        places: row · N + environment.
        chance: whole numbers in 0 … 2²⁴ − 1 [B], which decide which are relabelled, and with what.
    """
    held, (capacity, N) = view.ring.data, view.episode.shape
    at, world = places // N, places % N
    step: Transition = jax.tree.map(lambda x: x[at, world], held)
    left = (view.last[view.episode[at, world], world] - at) % capacity + 1  # steps of the episode, this one too
    share, u = view.k / (view.k + 1), chance / _PARTS
    chosen = u < share  # and u / share is uniform again where it is
    later = jnp.minimum((u / share * left).astype(jnp.int32), left - 1)
    goal = held.next_obs["achieved_goal"][(at + later) % capacity, world]
    reward = jax.vmap(view.reward)(step.next_obs["achieved_goal"], goal)
    return step._replace(
        obs=_desiring(step.obs, chosen, goal),
        next_obs=_desiring(step.next_obs, chosen, goal),
        reward=jnp.where(chosen, reward, step.reward),
    )


def _desiring(obs: Any, chosen: Array, goal: Array) -> Any:
    desired = obs["desired_goal"]
    return obs | {"desired_goal": where(chosen, goal.astype(desired.dtype), desired)}
