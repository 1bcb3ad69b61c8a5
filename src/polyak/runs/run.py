"""A run that exists: its folder, its policies, and what can be done with them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyak import statistics
from polyak.core import where
from polyak.cranks import agent_key, arrays_of, filled
from polyak.errors import PolyakError, RunError
from polyak.evaluation import Episodes
from polyak.runs import checkpoint, disk, folder
from polyak.runs.plan import Plan, whole
from polyak.spaces import Dict, Space, Tuple, describe, leaves


def batch(space: Space, obs: Any) -> tuple[Any, bool]:
    """(an observation as arrays [N, ...], whether it was a batch already); plain lists and numbers are welcome.

    Raises:
        PolyakError: it has not the shape of the space.
    """
    arrays = _arrays(space, obs)
    parts = [x for x, _ in arrays]
    singles = [x.shape == tuple(inner.shape) for x, inner in arrays]
    batches = [x.shape[1:] == tuple(inner.shape) and x.ndim > len(inner.shape) for x, inner in arrays]
    if not (all(singles) or (all(batches) and len({len(x) for x in parts}) == 1)):
        shapes = ", ".join(str(x.shape) for x in parts)
        raise PolyakError(f"predict takes an observation of {describe(space)} or a batch of them, not shape {shapes}")
    batched = not all(singles)
    return _nested(space, iter(parts if batched else [x[None] for x in parts])), batched


def _arrays(space: Space, obs: Any) -> list[tuple[np.ndarray[Any, Any], Any]]:
    """The simple parts of an observation in the order of `leaves`, each with its space."""
    found: list[tuple[np.ndarray[Any, Any], Any]] = []
    for path, inner in leaves(space):
        value = obs
        for name in path.split("/") if path else ():
            try:
                value = value[int(name) if isinstance(value, tuple | list) else name]
            except (LookupError, TypeError, ValueError) as error:
                raise PolyakError(f"this observation has no {path!r}, which {describe(space)} needs") from error
        try:
            found.append((np.asarray(value, inner.dtype), inner))
        except (TypeError, ValueError) as error:
            raise PolyakError(f"this observation of {describe(space)} is no array of numbers: {error}") from error
    return found


def _nested(space: Space, parts: Iterator[Any]) -> Any:
    match space:
        case Dict():
            return {name: _nested(inner, parts) for name, inner in space.items}
        case Tuple():
            return tuple(_nested(inner, parts) for inner in space.items)
        case _:
            return next(parts)


def agent_template(plan: Plan) -> Any:
    """The shapes of an agent's (state, memory), to be filled from a checkpoint."""
    k_init, _ = agent_key(plan.seeds[0])
    return jax.eval_shape(
        lambda agent, key: (agent.init(key, plan.spec), agent.memory(plan.spec)), arrays_of(plan.agent), k_init
    )


class Run:
    """A run folder and the agents that it trained; what `polyak.train`, `resume` and `load` return.

    Attributes:
        path: the folder.
        agent: the hyper-parameters.
        seeds: the seeds that it trained.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.agent, self.seeds = plan.agent, plan.seeds
        self._states: dict[int, Any] = {}
        self._act: Any = None
        self._drawn = 0  # calls of `predict`, each with a key of its own
        self._generation: checkpoint.Generation | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json; refused where the run is not finished."""
        if not (self.path / "summary.json").exists():
            raise RunError(f"{self.path} is not finished; go on with: polyak resume {self.path}")
        return disk.read_json(self.path / "summary.json")

    def last_line(self) -> str:
        """The result in one line: IQM with interval, seeds, episodes, folder."""
        found = self.summary["eval"]
        n = len(self.seeds)
        seeds = f"{n} seed{'s' if n > 1 else ''}"
        if found["iqm"] is None:
            return f"trained {seeds}, not evaluated; {self.path}"
        interval = (
            "(one seed: no interval)"
            if found["ci_low"] is None
            else f"[{found['ci_low']:.2f}, {found['ci_high']:.2f}] 95 %"
        )
        return f"IQM {found['iqm']:.2f} {interval}, {seeds} × {found['episodes']} episodes; {self.path}"

    def state(self, seed: int | None = None, number: int | None = None) -> Any:
        """The trained state of a seed (the first where none is named), of the newest or a numbered checkpoint."""
        seed = self.seeds[0] if seed is None else seed
        if seed not in self.seeds:
            raise PolyakError(f"seed {seed} was not trained; there are {list(self.seeds)}")
        if number is not None or self._generation is None:
            self._generation = checkpoint.load(self.path, number=number, notify=print, repair=False)
            self._states = {}
        if seed not in self._states:
            template = agent_template(self.plan)
            if self.plan.crank == "compiled":
                self._states[seed] = filled(template[0], self._generation.arrays, f"seed_{seed}/agent")
            else:
                self._states[seed] = filled(template, self._generation.arrays, f"seed_{seed}/agent")[0]
        return self._states[seed]

    def predict(
        self,
        obs: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        seed: int | None = None,
    ) -> tuple[Any, Any]:
        """Actions for one observation or a batch, in the environment's own units; numpy in and out.

        Args:
            obs: an observation of the environment's space, or a batch of them with one more leading axis.
            state: the recurrent state that the last call returned; None at the start.
            episode_start: [N] bool, where an episode begins and the recurrent state starts anew.
            seed: whose policy; the first seed's where none is named.

        Returns:
            (action, state), the action with the batch axis that obs had.
        """
        obs, batched = batch(self.plan.spec.obs, obs)
        n = jax.tree.leaves(obs)[0].shape[0]
        self._drawn += 1
        key = jax.random.fold_in(jax.random.key(np.uint32(self.seeds[0] % (1 << 32))), self._drawn)
        if self._act is None:
            self._act = jax.jit(lambda a, s, o, k, m, explore: a.act(s, o, k, m, explore=explore), static_argnums=5)
        fresh = self.agent.memory(replace(self.plan.spec, n_envs=n))
        memory = fresh if state is None else state
        if episode_start is not None and jax.tree.leaves(fresh):
            memory = where(jnp.broadcast_to(jnp.asarray(episode_start, bool), (n,)), fresh, memory)
        action, memory = self._act(arrays_of(self.agent), self.state(seed), obs, key, memory, not deterministic)
        action = self.plan.source.env_action(np.asarray(action))
        return (action if batched else jax.tree.map(lambda x: x[0], action)), (
            memory if jax.tree.leaves(memory) else None
        )

    def evaluate(self, episodes: int = 100, *, deterministic: bool = True) -> dict[str, Any]:
        """Evaluate every seed on fresh episodes: {iqm, ci_low, ci_high, mean, per_seed, episodes}."""
        episodes = whole("episodes", episodes)
        results = [self.episodes(seed, episodes, deterministic=deterministic) for seed in self.seeds]
        scores = np.array([r.returns.mean() for r in results])
        low, high = statistics.interval(scores)
        known = bool(np.isfinite(low))
        return {
            "iqm": float(statistics.iqm(scores)),
            "ci_low": float(low) if known else None,
            "ci_high": float(high) if known else None,
            "mean": float(scores.mean()),
            "per_seed": scores.tolist(),
            "episodes": episodes,
        }

    def episodes(self, seed: int, episodes: int, *, deterministic: bool = True) -> Episodes:
        """The episodes of one seed's evaluation."""
        evaluator = self.plan.evaluator(seed, episodes)
        try:
            return evaluator(self.state(seed), episodes, deterministic=deterministic, seed=seed)
        finally:
            evaluator.close()

    def save(self, path: Path | str) -> Path:
        """Copy what is needed to predict, evaluate and go on into a new folder: configuration, records and the newest
        checkpoint.

        Raises:
            RunError: the folder holds a run already, or the disk refuses.
        """
        target = folder.create(Path(path), self.path.parent, self.plan.algorithm, self.plan.source.id)
        generation = checkpoint.load(self.path, notify=print, repair=False, whole=False)
        shutil.copytree(generation.path, target / "checkpoints" / generation.path.name)
        for seed in self.path.glob("seed_*"):
            shutil.copytree(seed, target / seed.name)
        for name in ("command.txt", "system.json", "summary.json", "metrics.jsonl", "config.json"):
            if (self.path / name).exists():
                shutil.copy2(self.path / name, target / name)
        return target

    def record(self, *, seed: int | None = None, steps: int = 1000, path: Path | None = None) -> Path | None:
        """A video of one greedy episode of at most `steps` steps, or None where the environment does not render."""
        from polyak.runs.film import film

        return film(self, self.seeds[0] if seed is None else seed, steps, path)

    def watch(self, *, seed: int | None = None, episodes: int = 1, deterministic: bool = True) -> list[float]:
        """Play episodes in a window, and return their returns."""
        from polyak.runs.film import play

        return play(self, self.seeds[0] if seed is None else seed, episodes, deterministic)

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.plan.algorithm} on {self.plan.source.id}, {len(self.seeds)} seeds>"
