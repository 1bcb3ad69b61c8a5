"""What a report reads from a run folder: each file once, size-capped, without following links, never trusted.

A missing or damaged file is not an error here: the reader returns what there is and notes the rest in a sentence,
because a report on half a run is worth more than none. Only a folder that is no run at all is refused.
"""

import io
import json
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from polyak.errors import RunError
from polyak.statistics import interval, iqm

Floats: TypeAlias = NDArray[np.float64]
Curve: TypeAlias = tuple[Floats, Floats]  # steps [n], values [n]

JSON_CAP = 16 * 2**20
DATA_CAP = 2**30
# what NumPy, zipfile and zlib raise for archives that are cut, changed or not archives at all
DAMAGED = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, MemoryError)
PRIVATE = frozenset({"host", "hostname", "node", "user", "username", "home", "cwd", "env", "environ"})


@dataclass(frozen=True)
class Evaluation:
    """One seed's `evaluations.npz`: steps [n] and episode returns [n, episodes]."""

    steps: Floats
    results: Floats

    def means(self) -> Floats:
        """The mean return of every evaluation, [n]; NaN where no episode is finite."""
        return np.asarray(
            [row[np.isfinite(row)].mean() if np.isfinite(row).any() else math.nan for row in self.results]
        )


@dataclass(frozen=True)
class Score:
    """The key result of a run, and where it comes from."""

    per_seed: dict[int, float]
    iqm: float
    low: float
    high: float
    mean: float
    episodes: int | None  # of every seed
    source: str  # "summary", "evaluations", "training" or "nothing"


@dataclass
class RunFiles:
    """Everything that a page shows about one run."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    system: dict[str, Any] = field(default_factory=dict[str, Any])
    command: str = ""
    metrics: dict[str, dict[int, Curve]] = field(default_factory=dict[str, dict[int, Curve]])
    evaluations: dict[int, Evaluation] = field(default_factory=dict[int, Evaluation])
    notes: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def algorithm(self) -> str:
        return str(self.summary.get("algorithm") or block(self.config, "agent").get("name") or "unknown algorithm")

    @property
    def env(self) -> str:
        of_summary = self.summary.get("env")
        named = cast("dict[str, Any]", of_summary).get("id") if isinstance(of_summary, dict) else of_summary
        return str(named or block(self.config, "env").get("id") or "unknown environment")

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the run, from the summary, the configuration or the data, in that order."""
        for listed in (self.summary.get("seeds"), block(self.config, "run").get("seeds")):
            if isinstance(listed, list):
                return [int(seed) for seed in cast("list[Any]", listed) if isinstance(seed, int | float)]
            if isinstance(listed, int):
                start = block(self.config, "run").get("seed", 0)
                return [int(start) + k for k in range(listed)]
        known = {seed for curves in self.metrics.values() for seed in curves} | set(self.evaluations)
        return sorted(known)

    @property
    def score(self) -> Score:
        """The final evaluation; where there is none yet, the last periodic one; else the training return."""
        of_summary = _summary_score(block(self.summary, "eval"), self.seeds)
        if of_summary is not None:
            return of_summary
        if self.evaluations:
            last = {seed: float(e.means()[-1]) for seed, e in self.evaluations.items()}
            return _score_of(last, max(e.results.shape[1] for e in self.evaluations.values()), "evaluations")
        curves = self.metrics.get("rollout/ep_rew_mean", {})
        if curves:
            return _score_of({seed: float(y[-1]) for seed, (_, y) in curves.items()}, None, "training")
        return Score({}, math.nan, math.nan, math.nan, math.nan, None, "nothing")


def block(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A nested JSON object, or an empty one where the file has none there."""
    inner = record.get(key)
    return cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}


def number(value: object) -> float:
    """A JSON number as a float; NaN for null and for everything that is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _score_of(per_seed: dict[int, float], episodes: int | None, source: str) -> Score:
    values = list(per_seed.values())
    low, high = interval(values)
    return Score(per_seed, iqm(values), low, high, float(np.mean(values)), episodes, source)


def _summary_score(result: Mapping[str, Any], seeds: list[int]) -> Score | None:
    """The numbers of `summary.json` as they stand there; None where it has no per-seed scores and no IQM."""
    raw: object = result.get("per_seed")
    per_seed: dict[int, float] = {}
    if isinstance(raw, dict):
        per_seed = {int(k): number(v) for k, v in cast("dict[str, Any]", raw).items() if str(k).lstrip("-").isdigit()}
    elif isinstance(raw, list):
        values = cast("list[Any]", raw)
        names = seeds if len(seeds) == len(values) else list(range(len(values)))
        per_seed = dict(zip(names, map(number, values), strict=True))
    centre = number(result.get("iqm"))
    if not per_seed and math.isnan(centre):
        return None
    episodes = number(result.get("episodes"))
    count = None if math.isnan(episodes) else int(episodes)
    bounds = (number(result.get("ci_low")), number(result.get("ci_high")))
    return Score(per_seed, centre, *bounds, number(result.get("mean")), count, "summary")


def read(run: Path) -> RunFiles:
    """Reads a run folder.

    Raises:
        RunError: when `run` is no folder, or holds neither a configuration nor a summary nor metrics of a run.
    """
    run = Path(run)
    if not run.is_dir():
        raise RunError(f"{run} is no run: there is no such folder; give the folder that 'polyak train' printed.")
    marks = ("config.json", "summary.json", "metrics.jsonl")
    if not any((run / mark).is_file() for mark in marks):
        raise RunError(f"{run} is no run: it has none of {', '.join(marks)}; give the folder of one run.")
    files = RunFiles(run)
    files.config, files.summary = _object(files, "config.json"), _object(files, "summary.json")
    system = _object(files, "system.json")
    files.system = {key: value for key, value in system.items() if key.lower() not in PRIVATE}
    raw = content(run / "command.txt", JSON_CAP)
    files.command = raw.decode("utf-8", "replace").strip() if raw else ""
    files.metrics = _metrics(files)
    for seed, folder in seed_folders(run):
        evaluation = _evaluation(files, folder / "evaluations.npz")
        if evaluation is not None:
            files.evaluations[seed] = evaluation
    return files


def content(path: Path, cap: int) -> bytes | None:
    """The bytes of a regular file of at most `cap` bytes; None for a missing file, a link or anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > cap:
            return None
        return file.read(cap)


def seed_folders(run: Path) -> Iterator[tuple[int, Path]]:
    """The folders `seed_<k>` of a run, in the order of k; links are left out."""
    found = [p for p in run.glob("seed_*") if p.name[5:].isdigit() and p.is_dir() and not p.is_symlink()]
    yield from sorted((int(p.name[5:]), p) for p in found)


def _object(files: RunFiles, name: str) -> dict[str, Any]:
    """A JSON object of the run, or {} with a note."""
    if not (files.path / name).exists():
        return {}
    raw = content(files.path / name, JSON_CAP)
    try:
        parsed: object = json.loads(raw) if raw is not None else None
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        return cast("dict[str, Any]", parsed)
    files.notes.append(f"{name} could not be read, so what it holds is missing here.")
    return {}


def _metrics(files: RunFiles) -> dict[str, dict[int, Curve]]:
    """`metrics.jsonl` as tag → seed → (steps, values), with values that are not finite left out."""
    raw = content(files.path / "metrics.jsonl", DATA_CAP) or b""
    points: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
    lost = 0
    for line in raw.splitlines():
        try:
            row: object = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            _collect(points, cast("dict[str, Any]", row))
        else:
            lost += 1
    if lost:
        files.notes.append(f"{lost} unreadable line{'s' * (lost > 1)} of metrics.jsonl left out.")
    return {
        tag: {seed: (np.asarray(x), np.asarray(y)) for seed, (x, y) in sorted(curves.items())}
        for tag, curves in points.items()
    }


def _collect(points: dict[str, dict[int, tuple[list[float], list[float]]]], row: dict[str, Any]) -> None:
    step, seed = number(row.get("step")), number(row.get("seed", 0))
    if not (math.isfinite(step) and math.isfinite(seed)):
        return
    for tag, value in row.items():
        measured = number(value)
        if "/" in tag and math.isfinite(measured):
            x, y = points.setdefault(tag, {}).setdefault(int(seed), ([], []))
            x.append(step)
            y.append(measured)


def _evaluation(files: RunFiles, path: Path) -> Evaluation | None:
    """One seed's evaluations; None where there are none (yet), or with a note where the file is damaged."""
    raw = content(path, DATA_CAP)
    if raw is None:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > DATA_CAP:
            raise ValueError("larger than any evaluation")
        with np.load(io.BytesIO(raw), allow_pickle=False) as data:
            steps = np.asarray(data["timesteps"], np.float64).ravel()
            results = np.asarray(data["results"], np.float64)
    except DAMAGED as error:
        files.notes.append(f"{path.parent.name}/evaluations.npz could not be read ({type(error).__name__}).")
        return None
    rows = min(len(steps), len(results)) if results.ndim == 2 else 0
    if rows == 0 or results.shape[1] == 0:
        return None
    return Evaluation(steps[:rows], results[:rows])
