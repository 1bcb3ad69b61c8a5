"""Evaluation: whole episodes with a fixed policy, on worlds of their own, from a fixed list of starts.

Every episode of the list is played to its end, so that short ones are not over-represented, and the seeds of the list
belong to a stream that training never uses.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from polyak.core import Agent, Spec, where
from polyak.cranks import arrays_of
from polyak.envs.source import ENDLESS
from polyak.envs.vector import Vector

STREAM = 0x65766131  # folded into a seed's key: evaluation shares no random number with training


class Episodes(NamedTuple):
    """What an evaluation brought, in the order of the list: raw, undiscounted returns."""

    returns: np.ndarray  # [episodes] float64
    lengths: np.ndarray  # [episodes] int
    successes: np.ndarray  # [episodes], NaN where the environment says nothing of success


class HostEvaluator:
    """Evaluates on ordinary environments; they stay open between evaluations, and every evaluation starts them anew.

    Args:
        vector: worlds of the stream "eval" (see `envs.host.HostVector`).
    """

    def __init__(self, agent: Agent, spec: Spec, vector: Any) -> None:
        self.agent, self.spec, self.vector = arrays_of(agent), spec, vector
        self._act: dict[bool, Any] = {}

    def _acting(self, agent_state: Any, explore: bool) -> Any:
        """Jitted act on the flat state: to flatten it at every step would cost more than a small network does."""
        leaves, tree = jax.tree.flatten(agent_state)
        if explore not in self._act:
            spec = _of_size(self.spec, self.vector.n_envs)
            act = functools.partial(_act, self.agent, tree, explore=explore, spec=spec)
            self._act[explore] = jax.jit(act)
        return functools.partial(self._act[explore], leaves)

    def __call__(self, agent_state: Any, episodes: int, *, deterministic: bool = True, seed: int = 0) -> Episodes:
        obs = self.vector.reset()
        self.vector.episodes()
        key = jax.random.fold_in(jax.random.key(np.uint32(seed % (1 << 32))), STREAM)
        started, memory = np.ones(self.vector.n_envs, bool), self.agent.memory(_of_size(self.spec, self.vector.n_envs))
        done: dict[tuple[int, int], Any] = {}
        wanted = {(i % self.vector.n_envs, i // self.vector.n_envs) for i in range(episodes)}
        act, t = self._acting(agent_state, not deterministic), 0
        while not wanted <= done.keys():
            action, memory = act(obs, key, np.int32(t), memory, started)
            out = self.vector.step(np.asarray(action))
            obs, started, t = out.obs, out.terminated | out.truncated, t + 1
            done |= {(e.env, e.episode): e for e in self.vector.episodes()}
        played = [done[(i % self.vector.n_envs, i // self.vector.n_envs)] for i in range(episodes)]
        return Episodes(
            np.array([e.ret for e in played], np.float64),
            np.array([e.length for e in played]),
            np.array([e.success for e in played], np.float64),
        )

    def close(self) -> None:
        self.vector.close()


def _of_size(spec: Spec, n: int) -> Spec:
    return dataclasses.replace(spec, n_envs=n)


def _act(
    agent: Any,
    tree: Any,
    leaves: list[Array],
    obs: Any,
    key: Array,
    t: Array,
    memory: Any,
    started: Array,
    *,
    explore: bool,
    spec: Spec,
) -> Any:
    fresh = agent.memory(spec)
    memory = where(started, fresh, memory) if jax.tree.leaves(fresh) else memory
    state = jax.tree.unflatten(tree, leaves)
    return agent.act(state, obs, jax.random.fold_in(key, t), memory, explore=explore)


class CompiledEvaluator:
    """Evaluates on a JAX world: all episodes side by side in one compiled loop, each until its own end."""

    def __init__(self, agent: Agent, spec: Spec, world: Any) -> None:
        # Where nothing ends an episode, a greedy policy may walk in a circle for ever.
        world = world if world.max_steps else dataclasses.replace(world, max_steps=ENDLESS)
        self.agent, self.spec, self.world = arrays_of(agent), spec, arrays_of(world)
        self._run = jax.jit(_play, static_argnames=("spec", "episodes", "explore"))

    def __call__(self, agent_state: Any, episodes: int, *, deterministic: bool = True, seed: int = 0) -> Episodes:
        key = jax.random.fold_in(jax.random.key(np.uint32(seed % (1 << 32))), STREAM)
        spec = _of_size(self.spec, episodes)
        run = functools.partial(self._run, self.agent, agent_state, self.world, key)
        returns, lengths, successes = run(spec=spec, episodes=episodes, explore=not deterministic)
        played = np.asarray(returns, np.float64), np.asarray(lengths).astype(int), np.asarray(successes, np.float64)
        return Episodes(*played)

    def close(self) -> None:
        """Nothing outside of this process is held."""


def _play(agent: Any, state: Any, world: Any, key: Array, *, spec: Spec, episodes: int, explore: bool) -> Any:
    """(returns, lengths, successes) of one episode in each of `episodes` worlds."""
    vector = Vector(world, episodes)
    k_reset, k_steps = jax.random.split(key)
    worlds, obs = vector.reset(k_reset)

    def unfinished(carry: Any) -> Array:
        return jnp.isnan(carry[0]).any()

    def step(carry: Any) -> Any:
        returns, lengths, successes, worlds, obs, memory, t = carry
        k_act, k_world = jax.random.split(jax.random.fold_in(k_steps, t))
        action, memory = agent.act(state, obs, k_act, memory, explore=explore)
        worlds, obs, out = vector.step(worlds, action, k_world)
        first = (out.terminated | out.truncated) & jnp.isnan(returns)
        returns = jnp.where(first, out.episode_return, returns)
        lengths = jnp.where(first, out.episode_length, lengths)
        successes = jnp.where(first, vector.success(out.next_obs), successes)
        return returns, lengths, successes, worlds, obs, memory, t + 1

    blank = jnp.full(episodes, jnp.nan)
    start = (blank, jnp.zeros(episodes, jnp.int32), blank, worlds, obs, agent.memory(spec), jnp.int32(0))
    return lax.while_loop(unfinished, step, start)[:3]
