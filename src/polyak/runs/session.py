"""A run from its first step to its summary: chunks of training, and between them logs, evaluations and checkpoints.

Nothing between the chunks touches the training: evaluation has worlds and keys of its own, and the length of a chunk
follows the clock without changing a bit of the result.
"""

import json
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from polyak import doctor, statistics
from polyak.cranks import Report, swept
from polyak.errors import EnvError, PolyakError, RunError, nearest
from polyak.evaluation import Episodes
from polyak.runs import checkpoint, disk, folder, sinks, yardstick
from polyak.runs.callbacks import Callbacks
from polyak.runs.need import said
from polyak.runs.plan import Plan, plan, planned
from polyak.runs.progress import Progress
from polyak.runs.run import Run

SAVE_SECONDS = 60.0  # between checkpoints, where no save_freq is given
EXACT = "a resumed run equals an uninterrupted one bit for bit"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHUNK_SECONDS = 0.5  # a chunk's length: what a signal may have to wait for


class Interrupted(PolyakError):
    """A signal ended the run; its checkpoint is on disk."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        PolyakError.__init__(self, sentence)
        self.exit_code = exit_code


class Sweep(NamedTuple):
    """What a sweep found."""

    members: list[Any]  # the agents
    returns: np.ndarray  # [members, seeds] mean return of the last 100 training episodes
    seeds: tuple[int, ...]


class Session:
    """One process's part of a run."""

    def __init__(
        self, path: Path, plan: Plan, *, quiet: bool, progress: bool, tensorboard: bool, callbacks: Sequence[Any]
    ) -> None:
        self.path, self.plan, self.quiet = path, plan, quiet
        n = len(plan.seeds)
        title = f"{plan.algorithm} on {plan.source.id}"
        self.progress = Progress(plan.iterations * plan.iteration_steps, n, title, quiet=quiet or not progress)
        self.callbacks = Callbacks(callbacks, path)
        self.tensorboard = tensorboard
        self.stop = threading.Event()
        self.signal = 0
        self.crank: Any = None
        self.yardstick: yardstick.Yardstick | None = None
        self.sinks: Any = None
        self.evaluators: dict[int, Any] = {}
        self.tallies: list[dict[str, tuple[float, int]]] = [{} for _ in plan.seeds]
        self.evaluations: list[tuple[int, list[float]]] = []
        self.best = -np.inf
        self.spent = 0.0  # seconds of earlier processes
        self.trained = [0, 0.0]  # environment steps and seconds that count for fps
        self.compile_s = 0.0
        self.began = time.monotonic()
        self.saved_at = time.monotonic()
        self.cold = True  # until this process has compiled
        self.logged = self.evaluated = 0  # the iterations up to which rows and evaluations are written
        self.final: dict[str, Any] | None = None  # the last evaluation's summary, once there is one
        self.exact = True
        self.told: set[str] = set()  # kinds of notices that were said already
        self.disk_faults: set[int | None] = set()  # causes that were said already
        self.fingerprint = folder.fingerprint(plan.config(), platform=jax.default_backend(), device=_device())

    # ------------------------------------------------------------------------------------------- start

    def begin(self) -> None:
        """A new run: build everything, and make generation 0 durable before the first step."""
        self.say(self.plan.first_line())
        if memory := said(self.plan.need):
            self.say(memory)
        if self.plan.preset is not None:
            self.say(f"preset {self.plan.preset!r}, from {self.plan.preset_source}; --no-preset uses none")
        self._build()
        self.sinks = self._sinks()
        self.save()

    def resume(self, generation: checkpoint.Generation) -> None:
        """Continue from a generation, bit for bit."""
        self._build()
        generation = self._restore(generation)
        different = folder.differences(self.fingerprint, generation.fingerprint)
        if different:
            self.exact = False
            self.warn(f"the bits may differ from an uninterrupted run's: {different}; the run is marked exact=false")
        meta = generation.meta
        self.exact &= meta["exact"]
        sinks.truncate(self.path, meta["sinks"])
        self._tell_notices()
        # A sum may be infinite, which JSON writes as text.
        self.tallies = [{tag: (float(total), count) for tag, (total, count) in row.items()} for row in meta["tallies"]]
        self.evaluations[:] = [(step, scores) for step, scores in meta["evaluations"]]
        self.callbacks.know(self.evaluations)
        self.best = -np.inf if meta["best"] is None else meta["best"]
        done = self.crank.iterations()
        self.logged, self.evaluated = meta.get("logged", done), meta.get("evaluated", done)
        self.final = meta.get("final")
        self.spent, self.trained, self.compile_s = meta["spent"], list(meta["trained"]), meta["compile_s"]
        self.sinks = self._sinks(meta["sinks"])
        self.say(f"resuming at {self.steps():,} of {self.plan.steps:,} steps")

    def _restore(self, generation: checkpoint.Generation) -> checkpoint.Generation:
        """Put this generation in place, or the newest before it that is of this run."""
        older = [n for n in checkpoint.generations(self.path) if n < generation.number]
        while True:
            try:
                self.crank.restore(generation.arrays, generation.meta["worlds"])
                return generation
            except PolyakError as error:
                if isinstance(error, EnvError) or not older:
                    raise
                self.warn(f"ck.{generation.number} can't be used ({error}); trying ck.{older[-1]}")
            generation = checkpoint.load(self.path, number=older.pop(), notify=self.warn, whole=False)

    def _build(self) -> None:
        self.progress.update(0, 0.0, note="compiling")
        self.crank = self.plan.build()
        if self.plan.crank == "host":
            tiers = {seed.world.tier for seed in self.crank.all}
            self.tier = max(tiers)
        else:
            self.tier = 1
        self.say(self._tier_line())
        if self.plan.workers_line():
            self.say(self.plan.workers_line())
        self.exact &= self.tier < 3
        try:
            self.yardstick = yardstick.of(self.plan)
        except PolyakError as error:
            self.say(f"the table is not compared with exact values: {error}")

    def _tier_line(self) -> str:
        if self.tier == 1:
            return f"exactness: tier 1, the worlds' own state is saved; {EXACT}"
        if self.tier == 2:
            return f"exactness: tier 2, episodes are replayed from their seeds and actions; {EXACT}"
        vector = getattr(self.crank.all[0].world, "vector", None)
        why = getattr(getattr(vector, "exactness", None), "reason", "")
        return f"exactness: tier 3, episodes in flight can't be restored ({why}); the run is marked exact=false"

    def _sinks(self, resumed: Mapping[str, Any] | None = None) -> sinks.Metrics:
        return sinks.Metrics(
            self.path, self.plan.seeds, self.plan.source.id, notify=self.warn, tensorboard=self.tensorboard,
            log_style=self.plan.log_style, resumed=resumed,
        )  # fmt: skip

    def _tell_notices(self) -> None:
        """What environments have to say; of notices that differ in their numbers only, the first."""
        for seed in getattr(self.crank, "all", []):
            notices: list[str] = getattr(getattr(seed.world, "vector", None), "notices", [])
            while notices:
                notice = notices.pop(0)
                kind = re.sub(r"[-+.\d]+", "", notice)
                if kind not in self.told:
                    self.told.add(kind)
                    self.warn(notice)

    # ------------------------------------------------------------------------------------------- the loop

    def run(self) -> Run:
        """Train to the end of the plan, evaluate, summarise."""
        total = self.plan.iterations
        self.callbacks.start()
        self._catch_up()
        pace = 1
        while (at := self.crank.iterations()) < total:
            if self.stop.is_set():
                self._interrupt()
            self.callbacks.before()
            goal = min(total, at + pace, *(self._next(at, freq) for freq in self._frequencies()))
            started = time.monotonic()
            self._advance(goal - at)
            seconds = time.monotonic() - started
            self._count(at, seconds)
            if self.stop.is_set():
                self._interrupt()
            self._after_chunk(at)
            # Chunks follow the clock: half a second each, and never more than twice the last one.
            pace = (
                max(1, min(2 * pace, int(pace * CHUNK_SECONDS / max(seconds, 1e-3)))) if not self.callbacks.all else 1
            )
        self.callbacks.end()
        return self.finish()

    def _catch_up(self) -> None:
        """A signal may have come between a chunk and the row or the evaluation that were due after it."""
        if min(self.logged, self.evaluated) == self.crank.iterations():
            return
        self._advance(0)
        _, improved = self._observe()
        if improved:
            self.save(pin=True)

    def _frequencies(self) -> list[int]:
        plan = self.plan
        return [f for f in (plan.log_freq, plan.eval_freq, plan.save_freq) if f]

    def _next(self, iteration: int, freq: int) -> int:
        """The first iteration after this one at whose end a multiple of `freq` steps is reached or passed."""
        steps = (iteration * self.plan.iteration_steps // freq + 1) * freq
        return max(iteration + 1, -(-steps // self.plan.iteration_steps))

    def _due(self, before: int, after: int, freq: int | None) -> bool:
        """Whether a multiple of `freq` steps lies in (before, after], counted in iterations."""
        step = self.plan.iteration_steps
        return bool(freq) and before * step // freq < after * step // freq

    def _advance(self, n: int) -> None:
        reports = self.crank.advance(n, self.stop)
        for seed, tally, report in zip(self.plan.seeds, self.tallies, reports, strict=True):
            for tag, (total, count) in report.metrics.items():
                old = tally.get(tag, (0.0, 0))
                tally[tag] = (old[0] + total, old[1] + count)
            now = self.elapsed()
            self.sinks.episodes(seed, [(e.ret, e.length, now, e.env) for e in report.finished])
        self._tell_notices()
        self.reports: list[Report] = reports

    def _count(self, before: int, seconds: float) -> None:
        """Time for fps: the first chunk of a process compiles, and is counted as that."""
        if self.cold:
            self.cold = False
            self.compile_s += seconds
            return
        self.trained[0] += (self.crank.iterations() - before) * self.plan.iteration_steps * len(self.plan.seeds)
        self.trained[1] += seconds

    def _after_chunk(self, before: int) -> None:
        after = self.crank.iterations()
        logger, improved = self._observe()
        self._show()
        late = self.plan.save_freq is None and time.monotonic() - self.saved_at > SAVE_SECONDS
        if improved or late or self._due(before, after, self.plan.save_freq):
            self.save(pin=improved)
        going = self.callbacks.after(self.steps(), min(r.episodes for r in self.reports), logger)
        if not going and after < self.plan.iterations:
            self.save(emergency=True)
            raise Interrupted(f"a callback stopped the run at {self.steps():,} steps; {self._how_to_resume()}", 0)

    def _observe(self) -> tuple[dict[str, float], bool]:
        """Write the row of metrics and the evaluation that are due: (means over seeds, whether it is the best yet)."""
        at, last = self.crank.iterations(), self.plan.iterations
        logger: dict[str, float] = {}
        improved = False
        if self._due(self.logged, at, self.plan.log_freq) or (at == last and self.logged < at):
            logger = self._log()
        self.logged = at
        if self._due(self.evaluated, at, self.plan.eval_freq) and at < last:
            improved = self._evaluate_now()
        self.evaluated = at
        return logger, improved

    def _log(self) -> dict[str, float]:
        """One row per seed; what the seeds have in common is returned as means."""
        rows: list[dict[str, float]] = []
        fps = self.fps()
        for k, seed in enumerate(self.plan.seeds):
            report = self.reports[k]
            row = {"rollout/ep_rew_mean": report.ep_rew_mean, "rollout/ep_len_mean": report.ep_len_mean}
            row |= {tag: total / count for tag, (total, count) in self.tallies[k].items() if count}
            if self.yardstick is not None:
                row["train/max_error"] = self.yardstick.error(self.crank.agent_state(k))
            row |= {"time/fps": fps, "time/iterations": self.crank.iterations(), "time/time_elapsed": self.elapsed()}
            row |= {"time/total_timesteps": self.steps(), "time/episodes": report.episodes}
            self.sinks.log(seed, self.steps(), self.elapsed(), row)
            rows.append(row)
        self.tallies = [{} for _ in self.plan.seeds]
        check_finite(self.crank, self.plan.seeds, self.steps())
        tags = {tag for row in rows for tag in row}
        return {tag: float(np.mean([row[tag] for row in rows if tag in row])) for tag in tags}

    def _show(self) -> None:
        returns = np.array([r.ep_rew_mean for r in self.reports])
        low, high = (
            statistics.interval(returns) if np.isfinite(returns).all() and len(returns) > 1 else (np.nan, np.nan)
        )
        middle = float(statistics.iqm(returns)) if np.isfinite(returns).all() else float("nan")
        self.progress.update(self.steps(), self.fps(), (middle, low, high))

    # ------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, episodes: int) -> list[Episodes]:
        """The deterministic policy of every seed on the evaluation stream, from the same starts each time."""
        results: list[Episodes] = []
        for k, seed in enumerate(self.plan.seeds):
            if self.stop.is_set():
                self._interrupt()
            if seed not in self.evaluators:
                self.evaluators[seed] = self.plan.evaluator(seed, episodes, self.plan.processes)
            results.append(self.evaluators[seed](self.crank.agent_state(k), episodes, seed=seed))
        return results

    def _evaluate_now(self) -> bool:
        """Evaluate, log it, and say whether this is the best so far."""
        self.progress.update(self.steps(), self.fps(), note="evaluating")
        results = self.evaluate(self.plan.eval_episodes)
        scores = [float(r.returns.mean()) for r in results]
        for seed, r in zip(self.plan.seeds, results, strict=True):
            self._sink_evaluation(seed, r)
        self.evaluations.append((self.steps(), scores))
        self.callbacks.know(self.evaluations)
        improved = float(np.mean(scores)) > self.best
        self.best = max(self.best, float(np.mean(scores)))
        return improved

    def _sink_evaluation(self, seed: int, r: Episodes) -> None:
        successes = None if np.isnan(r.successes).any() else [float(s) for s in r.successes]
        self.sinks.evaluation(seed, self.steps(), r.returns.tolist(), r.lengths.tolist(), successes)
        row = {"eval/mean_reward": float(r.returns.mean()), "eval/mean_ep_length": float(r.lengths.mean())}
        row |= {"eval/success_rate": float(np.mean(successes))} if successes is not None else {}
        self.sinks.log(seed, self.steps(), self.elapsed(), row)

    # ------------------------------------------------------------------------------------------- checkpoints

    def save(self, *, pin: bool = False, emergency: bool = False) -> None:
        """A checkpoint of all seeds. A disk that refuses is said once per cause, and training goes on.

        An emergency is one after which the process ends: it raises, for nothing would be left of what was learned.
        """
        check_finite(self.crank, self.plan.seeds, self.steps())
        arrays, worlds = self.crank.snapshot()
        meta = {
            "worlds": worlds,
            "tallies": _plain(self.tallies),
            "evaluations": self.evaluations,
            "logged": self.logged,
            "evaluated": self.evaluated,
            "final": self.final,
            "best": None if np.isinf(self.best) else self.best,
            "spent": self.elapsed(),
            "trained": self.trained,
            "compile_s": self.compile_s,
            "exact": self.exact,
            "sinks": self.sinks.position(),
        }
        try:
            checkpoint.save(
                self.path, arrays, meta, step=self.steps(), fingerprint=self.fingerprint, pin=pin, emergency=emergency
            )
        except RunError as error:
            if emergency or self.crank.iterations() == 0:
                raise
            cause = getattr(error.__cause__, "errno", None)
            if cause not in self.disk_faults:
                self.warn(str(error))
            self.disk_faults.add(cause)
        self.saved_at = time.monotonic()

    def _interrupt(self) -> NoReturn:
        """A signal came: save what is there, and leave."""
        self.save(emergency=True)
        code = 130 if self.signal == signal.SIGINT else 0
        raise Interrupted(f"stopped at {self.steps():,} of {self.plan.steps:,} steps; {self._how_to_resume()}", code)

    def _how_to_resume(self) -> str:
        return f"go on with: polyak resume {shlex.quote(str(self.path))}"

    def record_fault(self, error: EnvError) -> None:
        """Write what led to an environment's fault, and say in the error where; a policy of NaN is told as that."""
        if self.crank is not None:
            check_finite(self.crank, self.plan.seeds, self.steps())
        repro, where = getattr(error, "repro", None), ""
        if repro is not None:
            try:
                disk.write_json(self.path / "repro.json", _plain(repro))
                where = f"; the actions that led there are in {self.path / 'repro.json'}"
            except RunError as full:
                where = f"; {full}"
        error.args = (f"{error.args[0]}{where}; {self._how_to_resume()}",)

    # ------------------------------------------------------------------------------------------- the end

    def finish(self) -> Run:
        """The last checkpoint and evaluation, summary.json, the report."""
        if self.final is None:
            self.save(emergency=True)
            wanted = self.plan.source.evaluates and self.plan.eval_episodes
            self.final = self._summarise_evaluation(self.evaluate(self.plan.eval_episodes) if wanted else None)
            self.save(pin=self.final["mean"] is not None and self.final["mean"] > self.best)
        arrays, worlds = self.crank.snapshot()
        summary = {
            "algorithm": self.plan.algorithm,
            "env": self.plan.source.id,
            "seeds": list(self.plan.seeds),
            "steps": self.steps(),
            "eval": self.final,
            "time": {
                "fps": self.fps(),
                "compile_s": self.compile_s,
                "total_s": self.elapsed(),
            },
            "state_hash": state_hash(arrays, worlds),
            "exact": self.exact,
            "tier": self.tier,
        }
        self._close_sinks()
        self._measure_tables()
        disk.write_json(self.path / "summary.json", summary)
        self.close()
        return Run(self.path, self.plan)

    def _measure_tables(self) -> None:
        """exact.npz, where there are exact values; a disk that refuses it doesn't spoil the run."""
        if self.yardstick is None:
            return
        try:
            self.yardstick.write(self.path, [self.crank.agent_state(k) for k in range(len(self.plan.seeds))])
        except OSError as error:
            self.warn(f"{yardstick.FILE} can't be written: {disk.reason(error)}")

    def _summarise_evaluation(self, results: list[Episodes] | None) -> dict[str, Any]:
        if results is None:
            return {"iqm": None, "ci_low": None, "ci_high": None, "mean": None, "per_seed": [], "episodes": 0}
        for seed, r in zip(self.plan.seeds, results, strict=True):
            self._sink_evaluation(seed, r)
        scores = np.array([r.returns.mean() for r in results])
        self.evaluations.append((self.steps(), scores.tolist()))
        low, high = statistics.interval(scores)
        found = {"iqm": float(statistics.iqm(scores)), "ci_low": _number(low), "ci_high": _number(high)}
        for seed in self.plan.seeds:
            self.sinks.log(
                seed, self.steps(), self.elapsed(), {f"eval/{k}": v for k, v in found.items() if v is not None}
            )
        return found | {"mean": float(scores.mean()), "per_seed": scores.tolist(), "episodes": self.plan.eval_episodes}

    def close(self) -> None:
        """Give back files, environments and the display; a second call does nothing."""
        self.progress.close()
        self._close_sinks()
        held = [*self.evaluators.values(), *([] if self.crank is None else [self.crank])]
        self.evaluators, self.crank = {}, None
        for thing in held:
            thing.close()

    def _close_sinks(self) -> None:
        if self.sinks is not None:
            self.sinks.close()
            self.sinks = None

    # ------------------------------------------------------------------------------------------- small facts

    def steps(self) -> int:
        return self.crank.iterations() * self.plan.iteration_steps

    def elapsed(self) -> float:
        """Seconds since the run began, over all its processes."""
        return self.spent + time.monotonic() - self.began

    def fps(self) -> float:
        """Environment steps per second of training, summed over seeds, without compilation and evaluation."""
        return self.trained[0] / self.trained[1] if self.trained[1] else 0.0

    def say(self, sentence: str) -> None:
        if not self.quiet:
            self.progress.message(sentence)

    def warn(self, sentence: str) -> None:
        self.progress.message(f"warning: {sentence}")


# ------------------------------------------------------------------------------------------------ functions


def train(
    agent: Any,
    env: Any,
    *,
    steps: int | None = None,
    out: Path | str | None = None,
    log_folder: Path | str = "runs",
    progress: bool = True,
    quiet: bool = False,
    tensorboard: bool = True,
    capture_video: bool = True,
    callbacks: Sequence[Any] = (),
    command: str | None = None,
    **wishes: Any,
) -> Run:
    """Train an agent and return its run.

    Args:
        agent: an agent such as `polyak.PPO()`, or its name, which takes the environment's preset.
        env: an id, an instance, a factory, a Gymnasium vector environment or a JAX world (docs/environments.md).
        steps: environment steps summed over parallel environments, per seed; a preset's where there is one.
        out: the exact folder of the run; log_folder: the parent where none is given.
        progress, quiet: whether to show the live line; whether to be silent.
        callbacks: see `polyak.runs.callbacks`.
        **wishes: seed, seeds, n_envs, fields, preset, normalise, env_kwargs, allow_import, crank, seeds_mode, log_freq,
            eval_freq, eval_episodes, n_eval_envs, save_freq, deadline, log_style, workers (see
            `polyak.runs.plan.plan`).

    Raises:
        PolyakError: something does not fit, before anything is written. EnvError: an environment failed.
        Interrupted: a signal or a callback ended the run; it can be resumed.
    """
    doctor.ensure()
    made = plan(agent, env, steps=steps, **wishes)
    path = folder.create(None if out is None else Path(out), Path(log_folder), made.algorithm, made.source.id)
    with folder.Lock(path):
        folder.begin(path, made.config(), command or _python_command(made), folder.system(_device()))
        session = Session(path, made, quiet=quiet, progress=progress, tensorboard=tensorboard, callbacks=callbacks)
        return _conduct(session, session.begin, capture_video)


def resume(
    path: Path | str,
    *,
    env: Any = None,
    agent: Any = None,
    allow_import: Sequence[str] = (),
    progress: bool = True,
    quiet: bool = False,
    tensorboard: bool = True,
    capture_video: bool = True,
    callbacks: Sequence[Any] = (),
) -> Run:
    """Continue a run exactly where its newest intact checkpoint stands; a finished run is returned as it is.

    Args:
        env: needed where the run was started with an instance or a factory.
        agent: needed where the run was started with a network of the user's own.
    """
    doctor.ensure()
    path = folder.find(path)
    with folder.Lock(path) as lock:
        made = planned(disk.read_json(path / "config.json"), env, agent, allow_import)
        if (path / "summary.json").exists():
            return Run(path, made)
        session = Session(path, made, quiet=quiet, progress=progress, tensorboard=tensorboard, callbacks=callbacks)
        if lock.note:
            session.say(lock.note)
        checkpoint.sweep(path)
        generation = _newest(path, session)
        start = session.begin if generation is None else lambda: session.resume(generation)
        return _conduct(session, start, capture_video)


def _newest(path: Path, session: Session) -> checkpoint.Generation | None:
    """The generation to go on from; None where the run was ended before it had written one."""
    if checkpoint.generations(path):
        return checkpoint.load(path, notify=session.warn, whole=False)
    if any((path / "checkpoints").glob("ck.*.bad*")):
        raise RunError(f"{path} has no intact checkpoint left to go on from; those in it were damaged and set aside")
    return None


def load(path: Path | str, *, env: Any = None, agent: Any = None, allow_import: Sequence[str] = ()) -> Run:
    """A run, finished or not, to predict with and to evaluate."""
    path = folder.find(path)
    return Run(path, planned(disk.read_json(path / "config.json"), env, agent, allow_import))


def evaluate(path: Path | str, *, episodes: int = 100, deterministic: bool = True, **options: Any) -> dict[str, Any]:
    """Evaluate every seed of a run: {iqm, ci_low, ci_high, mean, per_seed, episodes}."""
    return load(path, **options).evaluate(episodes, deterministic=deterministic)


def sweep(
    agent: Any,
    env: Any,
    *,
    steps: int,
    seeds: int | Sequence[int] = 1,
    seed: int = 0,
    n_envs: int | None = None,
    **values: Sequence[float],
) -> Sweep:
    """Train one agent with several values of its float fields at once, vmapped on the compiled crank.

        sweep(PPO(), "jax:CartPole-v1", steps=50_000, lr=[1e-4, 3e-4, 1e-3], seeds=3)

    Args:
        **values: float fields by name, each with as many values; the i-th member takes the i-th value of each.

    Returns:
        `Sweep`: members, and the mean return of the last 100 training episodes [members, seeds].

    Raises:
        PolyakError: the environment isn't compiled, a field isn't a float, or the lists differ in length.
    """
    made = plan(agent, env, steps=steps, seeds=seeds, seed=seed, n_envs=n_envs, eval_episodes=0)
    if made.crank != "compiled":
        raise PolyakError(
            f"sweep vmaps the compiled crank, and {made.source.id} is not compiled; use a world such as jax:CartPole-v1"
        )
    members = _members(made.agent, values)
    returns = [swept(members, made.source.world, made.spec, s, made.iterations) for s in made.seeds]
    return Sweep(members, np.stack(returns, axis=1), tuple(made.seeds))


def _members(agent: Any, values: Mapping[str, Sequence[float]]) -> list[Any]:
    """One agent per place in the lists of values."""
    lengths = {name: len(given) for name, given in values.items()}
    if not values or len(set(lengths.values())) != 1:
        raise PolyakError(
            f"sweep takes lists of equal length by field, such as lr=[1e-4, 1e-3], and was given {lengths}"
        )
    floats = [name for name in agent.__dict__ if isinstance(agent.__dict__[name], float)]
    for name in values:
        if name not in floats:
            raise PolyakError(
                f"sweep can't vary {name}{nearest(name, floats)}; of {type(agent).__name__} it can vary "
                f"{', '.join(floats)}"
            )
    return [replace(agent, **dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]


def _conduct(session: Session, start: Callable[[], None], capture_video: bool) -> Run:
    """Start and run a session under signal handlers; whatever happens, give back what it holds."""
    before = _catch_signals(session)
    try:
        start()
        run = session.run()
    except EnvError as error:
        session.record_fault(error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        session.close()
    _report(run, session, capture_video)
    session.say(run.last_line())
    return run


def _report(run: Run, session: Session, capture_video: bool) -> None:
    """The report and a video of the first seed; neither may spoil a finished run."""
    from polyak import report

    if capture_video:
        try:
            run.record()
        except PolyakError as error:
            session.say(f"no video: {error}")
    try:
        report.write(run.path)
    except (OSError, PolyakError) as error:
        session.warn(f"the report could not be written: {disk.reason(error)}")


def _catch_signals(session: Session) -> dict[int, Any]:
    """SIGINT and SIGTERM set a flag that the loop polls; a second one ends the process, even within compiled code."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def caught(number: int, frame: Any) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        session.signal = number
        session.stop.set()

    return {number: signal.signal(number, caught) for number in _SIGNALS}


def state_hash(arrays: Mapping[str, np.ndarray], worlds: Mapping[str, Any]) -> str:
    """BLAKE2b over the complete state of training, arrays and the worlds' own records."""
    text = json.dumps(worlds, sort_keys=True, default=str).encode()
    return checkpoint.tree_hash({**arrays, "worlds": np.frombuffer(text, np.uint8)})


def check_finite(crank: Any, seeds: Sequence[int], steps: int) -> None:
    """Stop where a parameter has become NaN or infinite: nothing that follows could be trusted.

    Raises:
        PolyakError: names the tensor, the seed and the step; the last checkpoint holds finite ones.
    """
    for k, seed in enumerate(seeds):
        bad = _finite(crank.agent_state(k))
        if bad:
            raise PolyakError(
                f"training diverged: {bad} is not finite in seed {seed}, found at step {steps:,}; the last checkpoint "
                "stands; try a smaller lr or max_grad_norm"
            )


def _finite(state: Any) -> str:
    """The path of the first tensor with a NaN or an infinity, "" where there is none."""
    leaves = [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(state) if np.dtype(x.dtype).kind == "f"]
    for path, x in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "replay" not in name and not bool(np.isfinite(np.asarray(x)).all()):
            return name
    return ""


def _device() -> str:
    device = jax.devices()[0]
    return "" if device.platform == "cpu" else device.device_kind


def _number(x: Any) -> float | None:
    return None if x is None or not np.isfinite(x) else float(x)


def _plain(value: Any) -> Any:
    """A record as JSON: arrays as lists."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and np.isfinite(value) else str(value)


def _python_command(plan: Plan) -> str:
    return f"polyak.train(..., {plan.source.id!r}, steps={plan.steps}, seeds={list(plan.seeds)})  # {sys.argv[0]!r}"


__all__ = ["Interrupted", "Run", "Session", "Sweep", "evaluate", "load", "resume", "state_hash", "sweep", "train"]
