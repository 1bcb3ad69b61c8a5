"""What the acceptance rows measure, from the files of a finished run alone: no model is loaded, nothing is played.

A run's monitor.csv holds each finished training episode of a seed, in the order in which they ended: raw return,
length, seconds, and the environment that played it. The environments step side by side and never pause, so the lengths
of one environment's episodes add up to the step at which each ended. evaluations.npz holds every evaluation.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Log(NamedTuple):
    """The training episodes of one seed, in the order in which they ended; [episodes] each."""

    returns: np.ndarray  # raw, undiscounted
    ends: np.ndarray  # steps at the end, summed over the environments side by side
    envs: np.ndarray  # which of them played it; UNKNOWN where the file doesn't say


UNKNOWN = -1


def training(folder: Path, seed: int) -> Log:
    """The training episodes of a seed, from its monitor file."""
    n = json.loads((folder / "config.json").read_text())["run"]["n_envs"]
    lines = (folder / f"seed_{seed}" / "monitor.csv").read_text().splitlines()
    columns = lines[1].split(",")
    rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines[2:]]
    returns = np.array([float(row["r"]) for row in rows])
    lengths = np.array([int(row["l"]) for row in rows], int)
    # Files of older versions don't say which environment it was.
    envs = np.array([int(row.get("env", 0 if n == 1 else UNKNOWN)) for row in rows], int)
    ends = np.zeros(len(rows), int)
    for i in range(n):
        ends[envs == i] = n * np.cumsum(lengths[envs == i])
    return Log(returns, ends, envs)


def _placed(log: Log, what: str) -> None:
    if (log.envs == UNKNOWN).any():
        raise SystemExit(f"run.py: {what} needs to know which environment played an episode: train this row again.")


def last_episodes(log: Log, episodes: int = 100) -> float:
    """T100: the mean return of the last training episodes."""
    if len(log.returns) < episodes:
        raise SystemExit(f"run.py: there are {len(log.returns)} training episodes, and {episodes} are needed.")
    return float(log.returns[-episodes:].mean())


def last_steps(log: Log, steps: int, window: int) -> float:
    """Dopamine's training return: the mean over the training episodes that end within the last `window` of `steps`."""
    _placed(log, "the return of the last steps")
    within = (log.ends > steps - window) & (log.ends <= steps)
    if not within.any():
        raise SystemExit(f"run.py: no training episode ended within the last {window:,} of {steps:,} steps.")
    return float(log.returns[within].mean())


def moving_mean(log: Log, n_envs: int, steps: int, every: int, rows: int = 100) -> float:
    """T-MA, SLM-Lab's `total_reward_ma`.

    A row stands at every multiple of `every` steps (summed over the environments): the mean, over the environments, of
    the latest training episode that each has finished. T-MA is the mean of the last `rows` rows within `steps`. An
    environment that has finished none yet is left out of a row.
    """
    _placed(log, "T-MA")
    last = steps // every
    if last < rows:
        raise SystemExit(f"run.py: T-MA needs {rows} rows of {every} steps, and the run has {steps:,} steps.")
    marks = every * np.arange(last - rows + 1, last + 1)
    latest = np.full((n_envs, rows), np.nan)
    for i in range(n_envs):
        mine = log.envs == i
        place = np.searchsorted(log.ends[mine], marks, side="right") - 1
        latest[i, place >= 0] = log.returns[mine][place[place >= 0]]
    if np.isnan(latest).all(axis=0).any():
        raise SystemExit("run.py: a row of T-MA lies before the first finished episode.")
    return float(np.nanmean(latest, axis=0).mean())


class Evaluations(NamedTuple):
    """The evaluations of one seed, in the order in which they were made."""

    steps: np.ndarray  # [m]
    returns: np.ndarray  # [m, episodes]
    successes: np.ndarray | None  # the same, where the environment says what a success is


def evaluations(folder: Path, seed: int) -> Evaluations:
    """The periodic and the final evaluations of a seed; none where the file is missing."""
    path = folder / f"seed_{seed}" / "evaluations.npz"
    if not path.exists():
        return Evaluations(np.zeros(0, int), np.zeros((0, 0)), None)
    with np.load(path, allow_pickle=False) as data:
        successes = data["successes"] if "successes" in data.files else None
        return Evaluations(data["timesteps"], data["results"], successes)


def evaluated(found: Evaluations, steps: int, episodes: int, last: int = 1) -> float | None:
    """The mean return of the last evaluations, the final one among them; None where the run made no such ones."""
    if not _holds(found, steps, episodes, last):
        return None
    return float(found.returns[-last:].mean())


def succeeded(found: Evaluations, steps: int, episodes: int) -> float | None:
    """The share of successful episodes in the final evaluation; None where the run made no such one."""
    if not _holds(found, steps, episodes, 1) or found.successes is None:
        return None
    return float(found.successes[-1].mean())


def _holds(found: Evaluations, steps: int, episodes: int, last: int) -> bool:
    return len(found.steps) >= last and found.steps[-1] == steps and found.returns.shape[1] == episodes


def ratios(parts: list[dict[str, Any]], of: str, to: str) -> list[float]:
    """A variant's normalised score by seed, divided by the other variant's mean score.

    In each environment the random policy is 0 and the better of the two variants' means 1. A seed's score is its mean
    over environments; the other variant's is the mean over environments and seeds.

    Args:
        parts: one an environment: "random" and, by variant, the scores of the seeds.
    """
    mine, other = [], []
    for part in parts:
        best = max(np.mean(part[of]), np.mean(part[to]))
        mine.append((np.array(part[of]) - part["random"]) / (best - part["random"]))
        other.append((np.array(part[to]) - part["random"]) / (best - part["random"]))
    return (np.mean(mine, axis=0) / np.mean(other)).tolist()
