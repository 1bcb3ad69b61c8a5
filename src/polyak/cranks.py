"""One loop, two cranks: iteration = interact × T → update → metrics.

The *compiled* crank scans T steps and loops over iterations inside one jitted function, for worlds written in JAX; the
*host* crank is a Python loop with jitted `act` and `update`, for everything that has reset and step. They share the key
schedule and the learner, and agree bit for bit on a CPU. Neither writes files: `runs/` does, between chunks.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from polyak.compat import give_memory_back
from polyak.core import Agent, Counter, Metrics, Rollout, Spec, Transition, seed_axes, where
from polyak.envs.vector import Outcome, Vector
from polyak.errors import RunError
from polyak.keys import fold_in, parted
from polyak.nets import sample_obs

T = TypeVar("T")

MARKED = 16  # an iteration of at least so many steps can be given up in the middle; shorter ones are awaited
MANY = 64  # from so many vmapped seeds on, two threads share them
WINDOW = 100  # training episodes in rollout/ep_rew_mean


class Recent(NamedTuple):
    """Return and length of the last episodes of training, raw."""

    returns: Array  # [100]
    lengths: Array  # [100]
    episodes: Array  # how many there were in all (int32; wraps harmlessly, for only its place modulo 100 is used)

    @staticmethod
    def none() -> "Recent":
        return Recent(jnp.full(WINDOW, jnp.nan), jnp.full(WINDOW, jnp.nan), jnp.int32(0))


class TrainState(NamedTuple):
    """All that changes while one seed trains on the compiled crank."""

    agent: Any
    memory: Any  # of the present episodes [N]
    world: Any
    obs: Any  # what to act on next [N]
    started: Array  # [N] whether obs is the first of its episode
    iteration: Counter
    recent: Recent
    key: Array  # of the seed; never changes, iterations are folded in


def agent_key(seed: int) -> tuple[Array, Array]:
    """(key of init, key of the run) of a seed."""
    k_init, k_run = jax.random.split(jax.random.key(np.uint32(seed % (1 << 32))))
    return k_init, k_run


def iteration_keys(key: Array, iteration: Counter) -> tuple[Array, Array, Array]:
    """(acting, world, update) of one iteration: the key schedule of both cranks."""
    k_iteration = fold_in(fold_in(key, iteration.high), iteration.low)
    k_acting, k_world, k_update = parted(k_iteration, 3)
    return k_acting, k_world, k_update


def _fresh_memory(agent: Agent, spec: Spec, started: Array, memory: Any) -> Any:
    """The memory with which to act: that of an episode's start where one starts."""
    return where(started, agent.memory(spec), memory) if jax.tree.leaves(memory) else memory


# ---------------------------------------------------------------------------------------------- the compiled crank


def init(agent: Agent, vector: Vector, spec: Spec, k_init: Array, k_run: Array) -> TrainState:
    """The state of one seed before its first step."""
    k_agent, k_world = jax.random.split(k_init)
    world, obs = vector.reset(k_world)
    started = jnp.ones(spec.n_envs, bool)
    return TrainState(
        agent.init(k_agent, spec), agent.memory(spec), world, obs, started, Counter.of(0), Recent.none(), k_run
    )


def interact(agent: Agent, vector: Vector, spec: Spec, state: TrainState) -> tuple[TrainState, Rollout, Outcome]:
    """T steps of N worlds: the state after them (its iteration not yet counted), their record, their outcomes."""
    k_acting, k_world, _ = iteration_keys(state.key, state.iteration)
    first = _fresh_memory(agent, spec, state.started, state.memory)

    def step(carry: Any, t: Array) -> tuple[Any, tuple[Transition, Outcome]]:
        world, obs, started, memory = carry
        memory = _fresh_memory(agent, spec, started, memory)
        action, memory = agent.act(state.agent, obs, fold_in(k_acting, t), memory, explore=True)
        world, after, out = vector.step(world, action, fold_in(k_world, t))
        record = Transition(obs, action, out.reward, out.next_obs, out.terminated, out.truncated)
        return (world, after, out.terminated | out.truncated, memory), (record, out._replace(next_obs=()))

    carry = (state.world, state.obs, state.started, state.memory)
    (world, obs, started, memory), (steps, outcomes) = lax.scan(step, carry, jnp.arange(agent.rollout_length))
    state = state._replace(world=world, obs=obs, started=started, memory=memory)
    return state, Rollout(steps, first), outcomes


def _remember(recent: Recent, out: Outcome) -> Recent:
    """The last episodes with those added that ended in outcomes [T, N], in the order of time, then of environment."""
    ended = (out.terminated | out.truncated).ravel()
    nth = jnp.cumsum(ended)
    kept = ended & (nth > nth[-1] - WINDOW)
    place = jnp.where(kept, (recent.episodes + nth - 1) % WINDOW, WINDOW)
    return Recent(
        recent.returns.at[place].set(out.episode_return.ravel(), mode="drop"),
        recent.lengths.at[place].set(out.episode_length.ravel().astype(jnp.float32), mode="drop"),
        recent.episodes + nth[-1].astype(jnp.int32),
    )


def iterate(agent: Agent, vector: Vector, spec: Spec, state: TrainState) -> tuple[TrainState, Metrics]:
    """One iteration: interact, then update."""
    state, rollout, out = interact(agent, vector, spec, state)
    _, _, k_update = iteration_keys(state.key, state.iteration)
    learned, metrics = agent.update(state.agent, rollout, k_update)
    state = state._replace(agent=learned, recent=_remember(state.recent, out), iteration=state.iteration.add(1))
    return state, metrics


class Tally(NamedTuple):
    """The sum of a metric over iterations, and in how many it happened (was not NaN)."""

    total: Any
    count: Any

    def plus(self, value: Any) -> "Tally":
        happened = ~jnp.isnan(value)
        return Tally(self.total + jnp.where(happened, value, 0.0), self.count + happened)


def chunk(agent: Agent, vector: Vector, spec: Spec, state: TrainState, n: Array) -> tuple[TrainState, dict[str, Tally]]:
    """n iterations, and the tally of their metrics. n is traced: one compilation serves every length."""
    shapes = jax.eval_shape(functools.partial(iterate, agent, vector, spec), state)[1]
    tallies = {tag: Tally(jnp.float32(0), jnp.int32(0)) for tag in shapes}

    def body(_: Array, carry: Any) -> Any:
        state, tallies = carry
        state, metrics = iterate(agent, vector, spec, state)
        return state, {tag: tally.plus(metrics[tag]) for tag, tally in tallies.items()}

    return lax.fori_loop(0, n, body, (state, tallies))


class Report(NamedTuple):
    """What one seed did in a chunk: tallies of metrics, and its recent episodes after it."""

    metrics: dict[str, tuple[float, int]]
    ep_rew_mean: float
    ep_len_mean: float
    episodes: int  # that ended since the run began
    finished: tuple[Any, ...] = ()  # the episodes themselves (host crank only)


class Compiled:
    """The compiled crank over several seeds: vmapped ("vmap"), or one after the other in the same program ("map").

    XLA runs a program's loop on one core. So many vmapped seeds are two groups, each with a thread of its own; how they
    are grouped depends on their number alone, as bits must not depend on the machine's cores.
    """

    name = "compiled"

    def __init__(self, agent: Agent, world: Any, spec: Spec, seeds: Sequence[int], mode: str = "vmap") -> None:
        self.agent, self.spec, self.seeds = arrays_of(agent), spec, tuple(seeds)
        self.vmapped = mode == "vmap" and len(self.seeds) > 1
        self.vector = arrays_of(Vector(world, spec.n_envs))
        keys = [agent_key(seed) for seed in self.seeds]
        start = jax.jit(functools.partial(_call_init, spec=spec))
        states = [start(self.agent, self.vector, *k) for k in keys]
        self.axes, self.shapes = seed_axes(states[0]), _shapes(states[0])
        n = len(self.seeds)
        self.size = 1 if not self.vmapped else n if n < MANY else -(-n // 2)  # seeds in a group
        self.states = self._grouped(states)
        run = functools.partial(_call_chunk, spec=spec)
        if self.vmapped:
            run = jax.vmap(run, in_axes=(None, None, self.axes, None), out_axes=(self.axes, 0))
        self._chunk = jax.jit(run, donate_argnums=2)

    def advance(self, n: int, stop: threading.Event | None = None) -> list[Report]:
        """n iterations of every seed."""
        run = functools.partial(self._advance, np.int32(n))
        if self.vmapped and len(self.states) > 1:
            with ThreadPoolExecutor(len(self.states)) as threads:
                return list(itertools.chain(*threads.map(run, range(len(self.states)))))
        return list(itertools.chain(*map(run, range(len(self.states)))))

    def _advance(self, n: np.int32, i: int) -> list[Report]:
        self.states[i], tallies = self._chunk(self.agent, self.vector, self.states[i], n)
        return self._reports(self.states[i].recent, tallies)

    def _grouped(self, states: list[Any]) -> list[Any]:
        """The seeds' states as they are advanced: stacked in groups where they are vmapped."""
        if not self.vmapped:
            return states
        return [_stack(states[i : i + self.size]) for i in range(0, len(states), self.size)]

    def _reports(self, recent: Recent, tallies: dict[str, Tally]) -> list[Report]:
        """One report per seed of a chunk's outputs, with or without their axis of seeds."""
        recent, tallies = jax.tree.map(np.atleast_1d, (recent, tallies))
        returns, lengths = recent.returns.reshape(-1, WINDOW), recent.lengths.reshape(-1, WINDOW)

        def report(k: int) -> Report:
            metrics = {tag: (float(t.total[k]), int(t.count[k])) for tag, t in tallies.items()}
            means = _mean(np.asarray(returns[k])), _mean(np.asarray(lengths[k]))
            return Report(metrics, *means, int(recent.episodes[k]))

        return [report(k) for k in range(len(returns))]

    def seed_state(self, k: int) -> TrainState:
        """The state of the k-th seed."""
        if not self.vmapped:
            return self.states[k]
        return _unstack(self.states[k // self.size], self.axes, k % self.size)

    def agent_state(self, k: int) -> Any:
        return self.seed_state(k).agent

    def iterations(self) -> int:
        return _value(self.seed_state(0).iteration)

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays by name, JSON): everything that is needed to go on."""
        arrays: dict[str, np.ndarray] = {}
        held = [jax.tree.map(_words_of, state) for state in self.states]  # views: seeds are cut out without a copy
        for k, seed in enumerate(self.seeds):
            state = _unstack(held[k // self.size], self.axes, k % self.size) if self.vmapped else held[k]
            arrays |= named(state, f"seed_{seed}")
        return arrays, {}

    def restore(self, arrays: Mapping[str, Any], meta: dict[str, Any]) -> None:
        self.states = []  # not both at once: a replay may fill the memory
        give_memory_back()
        self.states = self._grouped([filled(self.shapes, arrays, f"seed_{seed}") for seed in self.seeds])

    def close(self) -> None:
        """Nothing outside of this process is held."""


def swept(members: Sequence[Agent], world: Any, spec: Spec, seed: int, iterations: int) -> np.ndarray:
    """Train several agents that differ in float fields alone, vmapped over them: the mean recent return of each."""
    agents = jax.tree.map(lambda *x: jnp.stack(x), *[arrays_of(member) for member in members])
    vector, keys = arrays_of(Vector(world, spec.n_envs)), agent_key(seed)
    start = jax.vmap(functools.partial(init, vector=vector, spec=spec, k_init=keys[0], k_run=keys[1]), out_axes=0)
    state = jax.jit(start)(agents)
    # Counters are equal in all members, and stay unbatched, as over seeds.
    state = jax.tree.map(lambda x: jax.tree.map(lambda y: y[0], x) if _is_counter(x) else x, state, is_leaf=_is_counter)
    axes = seed_axes(state)
    run = jax.vmap(functools.partial(_call_chunk, spec=spec), in_axes=(0, None, axes, None), out_axes=(axes, 0))
    state, _ = jax.jit(run, donate_argnums=2)(agents, vector, state, np.int32(iterations))
    return np.array([_mean(row) for row in np.asarray(state.recent.returns)])


def _call_init(agent: Any, vector: Any, k_init: Array, k_run: Array, *, spec: Spec) -> TrainState:
    return init(agent, vector, spec, k_init, k_run)


def _call_chunk(agent: Any, vector: Any, state: TrainState, n: Array, *, spec: Spec) -> Any:
    return chunk(agent, vector, spec, state, n)


def arrays_of(tree: Any) -> Any:
    """Floats as float32 arrays, converted once instead of at every call."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if isinstance(x, float) else x, tree)


def _is_counter(x: Any) -> bool:
    return isinstance(x, Counter)


def _stack(states: list[Any]) -> Any:
    """Seeds on a new first axis; counters, equal in all, stay as they are."""
    return jax.tree.map(lambda *x: x[0] if _is_counter(x[0]) else jnp.stack(x), *states, is_leaf=_is_counter)


def _unstack(state: Any, axes: Any, k: int) -> Any:
    return jax.tree.map(lambda x: x if _is_counter(x) else jax.tree.map(lambda y: y[k], x), state, is_leaf=_is_counter)


def _value(counter: Counter) -> int:
    return int(counter.high) * (1 << 24) + int(counter.low)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


# -------------------------------------------------------------------------------------------------- the host crank


class Keys(NamedTuple):
    """The keys of one iteration, and the seed's own that they come from."""

    run: Array
    acting: Array
    world: Array
    update: Array


class JaxSteps:
    """A JAX world with the host crank's interface: the same physics, stepped one jitted call at a time."""

    tier = 1
    apart = False

    def __init__(self, world: Any, spec: Spec, seed: int) -> None:
        self.vector = arrays_of(Vector(world, spec.n_envs))
        k_init, _ = agent_key(seed)
        self._k_world = jax.jit(lambda k: jax.random.split(k)[1])(k_init)
        self._reset, self._step, self._success = jax.jit(_world_reset), jax.jit(_world_step), jax.jit(_world_success)
        self.ended: list[Any] = []
        self.state: Any = None
        self.obs: Any = None

    def reset(self) -> Any:
        self.state, self.obs = self._reset(self.vector, self._k_world)
        return self.obs

    def step(self, action: Any, k_world: Any, t: Any) -> Any:
        self.state, self.obs, out = self._step(self.vector, self.state, action, k_world, t)
        ends = np.flatnonzero(np.asarray(out.terminated | out.truncated))
        success = np.asarray(self._success(self.vector, out.next_obs)) if len(ends) else np.zeros(0)
        self.ended += [
            JaxEpisode(int(i), float(out.episode_return[i]), int(out.episode_length[i]), float(success[i]))
            for i in ends
        ]
        return out._replace(episode_return=(), episode_length=()), self.obs

    def episodes(self) -> list[Any]:
        ended, self.ended = self.ended, []
        return ended

    def snapshot(self) -> dict[str, Any]:
        return named((self.state, self.obs), "jax")

    def restore(self, snapshot: dict[str, Any]) -> Any:
        self.reset()
        self.state, self.obs = filled((self.state, self.obs), snapshot, "jax")
        return self.obs

    def close(self) -> None:
        """Nothing outside of this process is held."""


class JaxEpisode(NamedTuple):
    env: int
    ret: float
    length: int
    success: float = float("nan")


def _world_reset(vector: Vector, key: Array) -> Any:
    return vector.reset(key)


def _world_step(vector: Vector, state: Any, action: Any, k_world: Array, t: Array) -> Any:
    return vector.step(state, action, jax.random.fold_in(k_world, t))


def _world_success(vector: Vector, obs: Any) -> Array:
    return vector.success(obs)


class HostSteps:
    """A vector of ordinary environments; keys mean nothing to it.

    apart: whether they step in processes of their own, so that several seeds can wait for theirs at once.
    """

    def __init__(self, vector: Any, apart: bool = False) -> None:
        self.vector, self.tier, self.apart = vector, vector.tier, apart
        self.reset, self.episodes = vector.reset, vector.episodes
        self.snapshot, self.restore, self.close = vector.snapshot, vector.restore, vector.close

    def step(self, action: Any, k_world: Any, t: Any) -> Any:
        out = self.vector.step(np.asarray(action))
        return out, out.obs


class Seed:
    """One seed on the host crank: its agent's state, its worlds, and where it stands."""

    def __init__(self, spec: Spec, world: Any, seed: int, leaves: list[Array], memory: Any, keys: "Keys") -> None:
        self.world, self.seed, self.leaves, self.memory, self.keys = world, seed, leaves, memory, keys
        self.obs: Any = world.reset()
        self.started = np.ones(spec.n_envs, bool)
        self.iteration = 0
        self.returns: list[float] = []
        self.lengths: list[float] = []
        self.ended = 0
        self.mark: dict[str, Any] | None = None  # the worlds at the start of a long iteration


class Host:
    """The host crank over several seeds, each with worlds and a state of its own.

    An agent's state stays flat here, a list of arrays: to flatten and rebuild the tree at every step costs as much as a
    small network does. `act` is handed only those leaves that it reads.

    Args:
        world: seed ↦ worlds with reset, step, episodes, snapshot, restore, close.
    """

    name = "host"
    vmapped = False

    def __init__(self, agent: Agent, world: Callable[[int], Any], spec: Spec, seeds: Sequence[int]) -> None:
        self.agent, self.spec, self.seeds = arrays_of(agent), spec, tuple(seeds)
        self._start = jax.jit(functools.partial(_call_start, spec=spec))
        self._keys = jax.jit(iteration_keys)
        shapes = jax.eval_shape(self._start, self.agent, jax.random.key(0))[0]
        self._tree = jax.tree.structure(shapes)
        self._act, self._read = _pruned_act(self.agent, spec, jax.tree.leaves(shapes), self._tree)
        self._update = jax.jit(functools.partial(_call_update, tree=self._tree), donate_argnums=1)
        worlds = [world(seed) for seed in self.seeds]  # all of them first: worker processes start side by side
        self.all = [self._seed(world, seed) for world, seed in zip(worlds, self.seeds, strict=True)]

    def _seed(self, world: Any, seed: int) -> Seed:
        k_init, k_run = agent_key(seed)
        state, memory = self._start(self.agent, k_init)
        keys = Keys(k_run, *self._keys(k_run, _words(0)))
        leaves = _apart(jax.tree.leaves(state), (self.agent, k_init, keys))
        return Seed(self.spec, world, seed, leaves, memory, keys)

    def advance(self, n: int, stop: threading.Event | None = None) -> list[Report]:
        """n iterations of every seed, or fewer where `stop` is set meanwhile; an iteration begun is left unfinished."""
        goal = min(seed.iteration for seed in self.all) + n
        if len(self.all) > 1 and self.all[0].world.apart:
            with ThreadPoolExecutor(len(self.all)) as threads:
                return list(threads.map(lambda seed: self._advance(seed, goal, stop), self.all))
        return [self._advance(seed, goal, stop) for seed in self.all]

    def _advance(self, seed: Seed, goal: int, stop: threading.Event | None) -> Report:
        tallies: list[Metrics] = []
        finished: list[Any] = []
        while seed.iteration < goal and not (stop is not None and stop.is_set()):
            metrics = self._iterate(seed, stop)
            if metrics is None:
                break
            tallies.append(metrics)
            finished += self._finished(seed)
        means = _mean(np.asarray(seed.returns)), _mean(np.asarray(seed.lengths))
        return Report(_tallied(tallies), *means, seed.ended, tuple(finished))

    def _finished(self, seed: Seed) -> list[Any]:
        """The training episodes that ended, entered among the recent ones."""
        episodes = seed.world.episodes()
        for episode in episodes:
            seed.returns, seed.lengths = (
                [*seed.returns, episode.ret][-WINDOW:],
                [*seed.lengths, episode.length][-WINDOW:],
            )
        seed.ended += len(episodes)
        return episodes

    def _iterate(self, seed: Seed, stop: threading.Event | None) -> Metrics | None:
        """One iteration of one seed; None where it was given up in the middle, and the mark says where it began."""
        T = self.agent.rollout_length
        seed.mark = seed.world.snapshot() if T >= MARKED else None
        read = [seed.leaves[i] for i in self._read]
        records: list[Transition] = []
        first: Any = ()
        memory, obs, started = seed.memory, seed.obs, seed.started
        for t in range(T):
            if seed.mark is not None and stop is not None and stop.is_set():
                return None
            action, memory, used = self._act(read, obs, seed.keys.acting, np.int32(t), memory, started)
            first = used if t == 0 else first
            out, after = seed.world.step(action, seed.keys.world, np.int32(t))
            records.append(Transition(obs, action, out.reward, out.next_obs, out.terminated, out.truncated))
            obs, started = after, out.terminated | out.truncated
        rollout = Rollout(_stacked(records), first)
        counter = _words(seed.iteration + 1)
        seed.leaves, seed.keys, metrics = self._update(self.agent, seed.leaves, rollout, seed.keys, counter)
        seed.memory, seed.obs, seed.started, seed.mark = memory, obs, np.asarray(started), None
        seed.iteration += 1
        return metrics

    def agent_state(self, k: int) -> Any:
        """The state of the k-th seed's agent."""
        return jax.tree.unflatten(self._tree, self.all[k].leaves)

    def iterations(self) -> int:
        return min(seed.iteration for seed in self.all)

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays by name, JSON): everything that is needed to go on."""
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {}
        for seed in self.all:
            name = f"seed_{seed.seed}"
            world = seed.mark if seed.mark is not None else seed.world.snapshot()
            arrays |= named((jax.tree.unflatten(self._tree, seed.leaves), seed.memory), f"{name}/agent")
            arrays |= {f"{name}/world/{key}": value for key, value in world.items() if isinstance(value, np.ndarray)}
            arrays[f"{name}/started"] = seed.started
            arrays[f"{name}/recent"] = np.asarray([seed.returns, seed.lengths], np.float64)
            plain = {key: value for key, value in world.items() if not isinstance(value, np.ndarray)}
            meta[name] = {"iteration": seed.iteration, "episodes": seed.ended, "world": plain}
        return arrays, meta

    def restore(self, arrays: Mapping[str, Any], meta: dict[str, Any]) -> None:
        for seed in self.all:
            name = f"seed_{seed.seed}"
            seed.leaves = jax.tree.leaves(_shapes(seed.leaves))  # not both at once: a replay may fill the memory
            give_memory_back()
            state = jax.tree.unflatten(self._tree, seed.leaves)
            state, seed.memory = filled((state, seed.memory), arrays, f"{name}/agent")
            seed.leaves = jax.tree.leaves(state)
            prefix = f"{name}/world/"
            world = {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
            seed.obs = seed.world.restore(world | meta[name]["world"])
            # Where worlds can't be restored (tier 3), new episodes began instead.
            seed.started = arrays[f"{name}/started"].astype(bool) | (seed.world.tier == 3)
            returns, lengths = arrays[f"{name}/recent"]
            seed.returns, seed.lengths = returns.tolist(), lengths.tolist()
            seed.iteration, seed.ended = meta[name]["iteration"], meta[name]["episodes"]
            seed.keys = Keys(seed.keys.run, *self._keys(seed.keys.run, _words(seed.iteration)))

    def close(self) -> None:
        for seed in self.all:
            seed.world.close()


def _words(value: int) -> Counter:
    return Counter(np.int32(value >> 24), np.int32(value & 0xFFFFFF))  # pyright: ignore[reportArgumentType]


def _call_start(agent: Any, k_init: Array, *, spec: Spec) -> Any:
    k_agent, _ = jax.random.split(k_init)
    return agent.init(k_agent, spec), agent.memory(spec)


def _pruned_act(agent: Any, spec: Spec, shapes: list[Any], tree: Any) -> tuple[Callable[..., Any], list[int]]:
    """(jitted act on a list of leaves, the places of these leaves in the agent's state): those that acting reads."""

    def act(leaves: list[Any], obs: Any, k_acting: Array, t: Array, memory: Any, started: Array) -> Any:
        """(action, the memory after it, the memory it was acted with)."""
        memory = _fresh_memory(agent, spec, started, memory)
        state = jax.tree.unflatten(tree, leaves)
        action, after = agent.act(state, obs, jax.random.fold_in(k_acting, t), memory, explore=True)
        return action, after, memory

    n = spec.n_envs
    example = (sample_obs(spec.obs, (n,)), jax.random.key(0), jnp.int32(0), agent.memory(spec), jnp.ones(n, bool))
    jaxpr = jax.make_jaxpr(act)(shapes, *example).jaxpr
    touched = {v for equation in jaxpr.eqns for v in equation.invars if isinstance(v, jax.extend.core.Var)}
    touched |= {v for v in jaxpr.outvars if isinstance(v, jax.extend.core.Var)}
    read = [i for i in range(len(shapes)) if jaxpr.invars[i] in touched]
    unread = [None] * len(shapes)

    def act_on(leaves: list[Any], *args: Any) -> Any:
        whole: list[Any] = list(unread)
        for i, leaf in zip(read, leaves, strict=True):
            whole[i] = leaf
        return _inline(functools.partial(act, whole), *args)

    return jax.jit(act_on), read


def _inline(act: Callable[..., Any], obs: Any, key: Array, t: Array, memory: Any, started: Array) -> Any:
    """act(...) inside a branch that is always taken, as t ≥ 0.

    XLA hands the operations of a program to other threads, and those of a branch it runs where it is: an act() on one
    observation takes 36 µs instead of 58 (two layers of 256 on two cores).
    """
    shapes = jax.eval_shape(act, obs, key, t, memory, started)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.cond(t >= 0, act, lambda *_: blank, obs, key, t, memory, started)


def _call_update(
    agent: Any, leaves: list[Array], rollout: Rollout, keys: Keys, after: Counter, *, tree: Any
) -> tuple[list[Array], Keys, Metrics]:
    """(the state's leaves after the update, the keys of the iteration `after` it, metrics)."""
    state, metrics = agent.update(jax.tree.unflatten(tree, leaves), rollout, keys.update)
    return jax.tree.leaves(state), Keys(keys.run, *iteration_keys(keys.run, after)), metrics


def _stacked(records: list[Transition]) -> Transition:
    """T records of N as one record [T, N], in fresh memory: jit may alias what it is given."""
    if len(records) == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], records[0])
    return jax.tree.map(lambda *x: np.stack(x), *records)


def _tallied(rows: list[Metrics]) -> dict[str, tuple[float, int]]:
    """Sum, and number of rows in which it happened, of each metric."""
    tallies: dict[str, tuple[float, int]] = {}
    for row in jax.device_get(rows):
        for tag, value in row.items():
            total, count = tallies.get(tag, (0.0, 0))
            tallies[tag] = (total, count) if np.isnan(value) else (total + float(value), count + 1)
    return tallies


# --------------------------------------------------------------------------------------------- states by name


class Stored(Protocol):
    """A large array on the disk, which need not be in memory as a whole to become a state's."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) from the first row to the last."""
        ...


def named(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """The leaves of a state by path, "prefix/agent/params/actor/head/W"; keys as their words."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}": _words_of(x) for path, x in leaves}


def filled(tree: T, arrays: Mapping[str, np.ndarray | Stored], prefix: str) -> T:
    """The state with every leaf taken from `arrays`; a leaf that is missing or of another shape is refused by name.

    Args:
        tree: a state, or the shapes of one.
    """

    def leaf(path: Any, old: Any) -> Any:
        name = f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
        like = jax.eval_shape(jax.random.key_data, old) if _is_key(old) else old
        new = arrays.get(name)
        if new is None or new.shape != like.shape or new.dtype != like.dtype:
            found = "nothing" if new is None else f"{new.dtype}{list(new.shape)}"
            raise RunError(
                f"the checkpoint holds {found} for {name}, and {like.dtype}{list(like.shape)} is needed: it is "
                "of another agent"
            )
        # A copy: jit may alias aligned memory of numpy, and this state will be donated.
        value = jnp.array(new, copy=True) if isinstance(new, np.ndarray) else _poured(new)
        return jax.random.wrap_key_data(value) if _is_key(old) else value

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _poured(stored: Stored) -> Array:
    """A stored array on the device, block by block, in the place where it will stay."""
    whole = jnp.zeros(stored.shape, stored.dtype)
    for start, rows in stored.blocks():
        whole = _pour(whole, rows, np.int32(start)).block_until_ready()  # before the next block is read
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def _pour(whole: Array, rows: np.ndarray, start: np.int32) -> Array:
    return lax.dynamic_update_slice_in_dim(whole, jnp.asarray(rows), start, axis=0)


def _apart(leaves: list[Array], others: Any) -> list[Array]:
    """The leaves, with a copy of each that shares its buffer with another or with `others`: what is donated is gone."""
    taken = {_address(x) for x in jax.tree.leaves(others) if isinstance(x, Array)}
    for i, x in enumerate(leaves):
        leaves[i] = jnp.array(x, copy=True) if _address(x) in taken else x
        taken.add(_address(leaves[i]))
    return leaves


def _address(x: Array) -> int:
    return (jax.random.key_data(x) if _is_key(x) else x).unsafe_buffer_pointer()


def _shapes(tree: T) -> T:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _words_of(x: Any) -> np.ndarray:
    """A leaf in the host's memory (on a CPU, the very memory), of a key its words."""
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _is_key(x: Any) -> bool:
    return isinstance(x, Array | jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
