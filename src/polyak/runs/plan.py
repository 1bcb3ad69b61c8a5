"""The plan of a run: everything that was decided before its first step, and nothing that changes after it.

A plan is made from what a user asked for, checked as a whole before any file is written, and kept as config.json.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

import jax
import numpy as np

from polyak.core import Spec
from polyak.cranks import Compiled, Host, HostSteps, JaxSteps
from polyak.envs import Source, resolve
from polyak.envs.host import DEADLINE_S
from polyak.errors import PolyakError
from polyak.evaluation import CompiledEvaluator, HostEvaluator
from polyak.normalise import Normalised
from polyak.optim import resolve_schedules
from polyak.presets import Preset
from polyak.runs.config import agent_from, agent_json, agent_of
from polyak.runs.need import Need, need, require_room
from polyak.runs.sinks import STYLES
from polyak.spaces import Box


@jax.tree_util.register_static
@dataclass(frozen=True)
class Fixed:
    """A function inside a network of the user's own (Equinox keeps activations so): a call, but nothing to trace."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


LOGS, EVALUATIONS = 100, 10  # rows and evaluations in a run, where the user names no frequency
EVAL_EPISODES = 20


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        agent: with its schedules resolved to steps.
        source: where the environments come from.
        steps: the budget per seed, environment steps summed over the n_envs.
        log_freq, eval_freq, save_freq: environment steps; eval_freq 0: at the end only; save_freq None: by the clock.
        crank: "compiled" or "host".   seeds_mode: "vmap" or "map", on the compiled crank.
        preset: its name, or None;  preset_source: where its numbers come from.
        given: the type of an environment that was an object, which config.json can't hold; "" for an id.
        deadline: seconds that one call into an environment may take.
        log_style: whose tags TensorBoard and progress.csv have, "sb3" or "cleanrl".
        workers: processes that share the environments of a seed; 0: none; None: as the time of a step suggests.
    """

    agent: Any
    source: Source
    spec: Spec
    steps: int
    seeds: tuple[int, ...]
    log_freq: int
    eval_freq: int
    eval_episodes: int
    n_eval_envs: int
    save_freq: int | None
    crank: str
    seeds_mode: str
    preset: str | None
    preset_source: str
    preset_fields: dict[str, Any]
    given: str = ""
    deadline: float = DEADLINE_S
    log_style: str = "sb3"
    workers: int | None = None

    @property
    def n_envs(self) -> int:
        return self.spec.n_envs

    @property
    def iteration_steps(self) -> int:
        """Environment steps of one iteration of one seed."""
        return self.agent.rollout_length * self.n_envs

    @property
    def iterations(self) -> int:
        return self.steps // self.iteration_steps

    @property
    def algorithm(self) -> str:
        inner = self.agent.agent if isinstance(self.agent, Normalised) else self.agent
        return type(inner).__name__

    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "polyak": metadata.version("polyak"),
            "agent": agent_json(self.agent),
            "env": {"id": self.source.id, "kwargs": self.source.kwargs, "kind": self.source.kind}
            | ({"given": self.given} if self.given else {})
            | ({"deadline": self.deadline} if self.deadline != DEADLINE_S else {}),
            "run": {
                "steps": self.steps, "seed": self.seeds[0], "seeds": list(self.seeds), "n_envs": self.n_envs,
                "log_freq": self.log_freq, "eval_freq": self.eval_freq, "eval_episodes": self.eval_episodes,
                "n_eval_envs": self.n_eval_envs, "save_freq": self.save_freq, "preset": self.preset,
                "crank": self.crank, "seeds_mode": self.seeds_mode,
            } | ({"log_style": self.log_style} if self.log_style != "sb3" else {})
              | ({"workers": self.workers} if self.workers is not None else {}),
            "presets": self.preset_fields,
            "preset_source": self.preset_source,
        }  # fmt: skip

    def first_line(self) -> str:
        """What the run will do, in one line: a budget is never exceeded."""
        done = self.iterations * self.iteration_steps
        part = "" if done == self.steps else f" of {self.steps:,}"
        text = f"{self.iterations:,} iterations of {self.iteration_steps:,} = {done:,}{part} steps"
        return f"{text}, {_counted(self.n_envs, 'environment')}, {_counted(len(self.seeds), 'seed')}"

    def workers_line(self) -> str:
        """Who steps the environments, where it is not this process."""
        if self.crank != "host" or self.source.kind != "host" or not self.processes:
            return ""
        each = f" for each of {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        asked = "" if self.workers is not None else "; they are slow, and --workers 0 keeps them in this process"
        return f"the environments step in {_counted(self.processes, 'worker process')}{each}{asked}"

    @cached_property
    def need(self) -> Need:
        """The memory that it will hold: the agent's state, of which only shapes are made, and a rollout."""
        return need(self.agent, self.spec, len(self.seeds), staged=self.crank == "host")

    def build(self) -> Compiled | Host:
        """The crank, with all seeds before their first step."""
        if self.crank == "compiled":
            return Compiled(self.agent, self.source.world, self.spec, self.seeds, self.seeds_mode)
        if self.source.kind == "jax":
            return Host(self.agent, lambda seed: JaxSteps(self.source.world, self.spec, seed), self.spec, self.seeds)
        workers = self.processes
        return Host(self.agent, lambda seed: HostSteps(self._vector(seed, workers), workers > 0), self.spec, self.seeds)

    def _vector(self, seed: int, workers: int) -> Any:
        return self.source.vector(self.n_envs, seed, workers=workers)

    @cached_property
    def processes(self) -> int:
        """Worker processes of each seed: as many as were asked for, or as pay where nobody asked."""
        if self.workers is not None:
            return min(self.workers, self.n_envs)
        return self.source.workers(self.n_envs, len(self.seeds), self.steps)

    def evaluator(self, seed: int, episodes: int, workers: int | None = None) -> CompiledEvaluator | HostEvaluator:
        """An evaluation of one seed's policy, on worlds of the evaluation stream; workers: those asked for, or none."""
        if self.source.kind == "jax":
            return CompiledEvaluator(self.agent, self.spec, self.source.world)
        processes = self.workers or 0 if workers is None else workers
        vector = self.source.vector(min(self.n_eval_envs, episodes), seed, "eval", processes)
        return HostEvaluator(self.agent, self.spec, vector)


def seeds_of(seed: int, seeds: int | Sequence[int]) -> tuple[int, ...]:
    """`seeds` consecutive seeds from `seed`, or the list itself."""
    if isinstance(seeds, Sequence):
        chosen = tuple(whole("a seed", s, 0) for s in seeds)
    else:
        seed = whole("seed", seed, 0)
        chosen = tuple(range(seed, seed + whole("seeds", seeds)))
    if not chosen:
        raise PolyakError(f"seeds is {seeds!r}, and must be at least 1")
    if len(set(chosen)) < len(chosen):
        raise PolyakError(f"seeds are {list(chosen)}, and must be different ones")
    return chosen


def plan(
    agent: Any,
    env: Any,
    *,
    steps: int | None = None,
    seed: int = 0,
    seeds: int | Sequence[int] = 1,
    n_envs: int | None = None,
    fields: Mapping[str, Any] | None = None,
    preset: str | None = "default",
    normalise: bool | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    allow_import: Sequence[str] = (),
    crank: str = "auto",
    seeds_mode: str = "vmap",
    log_freq: int | None = None,
    eval_freq: int | None = None,
    eval_episodes: int | None = None,
    n_eval_envs: int | None = None,
    save_freq: int | None = None,
    deadline: float = DEADLINE_S,
    log_style: str = "sb3",
    workers: int | None = None,
) -> Plan:
    """A checked plan from a user's wishes. An agent by name takes its environment's preset; an object is complete.

    Raises:
        PolyakError: something does not fit; the sentence says what, and what to do.
    """
    agent, chosen = _chosen(agent, fields, env if isinstance(env, str) else "", preset, normalise)
    steps, n_envs = _budget(chosen.steps if steps is None else steps), _optional("n_envs", n_envs)
    source = resolve(env, env_kwargs=env_kwargs, allow_import=allow_import, n_envs=n_envs, deadline=deadline)
    n: int = n_envs or source.n_envs or chosen.n_envs
    episodes = EVAL_EPISODES if eval_episodes is None else whole("eval_episodes", eval_episodes, 0)
    every = _eval_freq(source, _optional("eval_freq", eval_freq, 0), steps) if episodes else 0
    made = Plan(
        _ready(agent, steps), source, _spec(source, n, steps), steps, seeds_of(seed, seeds),
        _optional("log_freq", log_freq) or max(1, steps // LOGS), every, episodes,
        _optional("n_eval_envs", n_eval_envs) or 8, _optional("save_freq", save_freq),
        _crank(source, crank), seeds_mode, preset if chosen.source else None, chosen.source, dict(chosen.fields),
        "" if isinstance(env, str) else type(env).__name__, deadline, log_style, _optional("workers", workers, 0),
    )  # fmt: skip
    _check(made)
    return made


def whole(name: str, value: Any, least: int = 1) -> int:
    """A count as an int; 1e5 is one too.

    Raises:
        PolyakError: it is not a whole number of at least `least`.
    """
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or value != int(value) or value < least:
        raise PolyakError(f"{name} is {value!r}, and must be a whole number of at least {least}")
    return int(value)


def _budget(steps: Any) -> int:
    if steps is None:
        raise PolyakError("steps is missing: give the environment steps to train, such as steps=100_000")
    return whole("steps", steps)


def _optional(name: str, value: Any, least: int = 1) -> int | None:
    return None if value is None else whole(name, value, least)


_NO_PRESET = Preset(source="", steps=None)


def _chosen(
    agent: Any, fields: Mapping[str, Any] | None, env: str, preset: str | None, normalise: bool | None
) -> tuple[Any, Preset]:
    """The agent, and the preset that it takes: an empty one for an agent object."""
    if isinstance(agent, str):
        made, chosen = agent_from(agent, fields or {}, env, preset, normalise)
        return made, chosen or _NO_PRESET
    if fields:
        raise PolyakError(
            "fields go with an algorithm's name; an agent object carries its own: dataclasses.replace(agent, ...)"
        )
    return Normalised(agent) if normalise else agent, _NO_PRESET


def _counted(n: int, thing: str) -> str:
    return f"{n} {thing}{('es' if thing.endswith('s') else 's') if n > 1 else ''}"


def planned(config: Mapping[str, Any], env: Any = None, agent: Any = None, allow_import: Sequence[str] = ()) -> Plan:
    """The plan that config.json describes; `env` and `agent` stand in for what a file can't hold.

    Packages are imported only where `allow_import` names them now, never because a file says so.
    """
    run, world = config["run"], config["env"]
    deadline = world.get("deadline", DEADLINE_S)
    if env is None and "given" in world:
        raise PolyakError(
            f"the environment of this run was given as an object ({world['given']}), which a folder can't hold: give "
            "it again in Python, polyak.resume(path, env=...)"
        )
    source = resolve(
        world["id"] if env is None else env, env_kwargs=world["kwargs"] if env is None else None,
        allow_import=allow_import, n_envs=run["n_envs"], deadline=deadline,
    )  # fmt: skip
    agent = agent_of(config["agent"]) if agent is None else agent
    return Plan(
        _ready(agent, run["steps"]), source, _spec(source, run["n_envs"], run["steps"]), run["steps"],
        tuple(run["seeds"]), run["log_freq"], run["eval_freq"], run["eval_episodes"], run["n_eval_envs"],
        run["save_freq"], run["crank"], run["seeds_mode"], run["preset"], config["preset_source"], config["presets"],
        world.get("given", ""), deadline, run.get("log_style", "sb3"), run.get("workers"),
    )  # fmt: skip


def _ready(agent: Any, steps: int) -> Any:
    """The agent as it trains: schedules resolved to steps, and nothing in it that jit can't take."""
    return resolve_schedules(jax.tree.map(lambda x: Fixed(x) if callable(x) else x, agent), steps)


def _spec(source: Source, n_envs: int, steps: int) -> Spec:
    return Spec(source.obs_space, source.action_space, n_envs, steps, source.frames, source.goal_reward)


def _crank(source: Source, crank: str) -> str:
    if crank not in ("auto", "compiled", "host"):
        raise PolyakError(f"crank is {crank!r}, and must be 'auto', 'compiled' or 'host'")
    if crank == "compiled" and source.kind != "jax":
        raise PolyakError(
            f"{source.id} is not written in JAX and can't be compiled; use crank='host', or jax:CartPole-v1"
        )
    return crank if crank != "auto" else "compiled" if source.kind == "jax" else "host"


def _eval_freq(source: Source, eval_freq: int | None, steps: int) -> int:
    """In steps; 0: only at the end. Where nothing else is asked, ten times in a run."""
    return (max(1, steps // EVALUATIONS) if source.evaluates else 0) if eval_freq is None else eval_freq


def _check(plan: Plan) -> None:
    """Refuse now what would fail later: budgets below one iteration, spaces that the agent can't take, an odd mode."""
    if plan.iterations < 1:
        raise PolyakError(
            f"steps is {plan.steps:,}, less than one iteration: rollout_length {plan.agent.rollout_length} × n_envs "
            f"{plan.n_envs} = {plan.iteration_steps:,}; give more steps or a smaller rollout_length"
        )
    if plan.source.once and len(plan.seeds) > 1:
        raise PolyakError(
            f"{plan.source.id} exists once, and {len(plan.seeds)} seeds train side by side; pass a factory "
            "(`lambda: MyEnv()`) or a registered id"
        )
    if plan.eval_freq and not plan.source.evaluates:
        raise PolyakError(
            f"{plan.source.id} exists once, so evaluating it would disturb its training: set eval_freq=0, or pass a "
            "factory (`lambda: MyEnv()`) or a registered id"
        )
    if plan.workers:
        plan.source.refuse_workers()
    if plan.seeds_mode not in ("vmap", "map"):
        raise PolyakError(f"seeds_mode is {plan.seeds_mode!r}, and must be 'vmap' or 'map'")
    if plan.log_style not in STYLES:
        raise PolyakError(f"log_style is {plan.log_style!r}, and must be {' or '.join(map(repr, STYLES))}")
    if isinstance(plan.spec.action, Box) and len(plan.spec.action.shape) != 1:
        raise PolyakError(
            f"{plan.source.id}: actions have the shape {plan.spec.action.shape}; wrap the environment so that they are "
            "one vector"
        )
    require_room(plan.need, len(plan.seeds))
