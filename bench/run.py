"""The acceptance benchmarks: trains the rows of bench/rows.json, measures them and applies the pass rule.

    python bench/run.py                 # every row that has no result yet
    python bench/run.py P10 P18         # these rows; a finished one is measured again from its models
    python bench/run.py P10 --stage2    # five more seeds as well where the first five missed

A row trains five fixed seeds (0-4; 5-9 in stage 2) with its preset into bench/runs/<row>, which is not committed. It
may be interrupted at any time: the same command goes on where it stopped, exactly. The result goes to
bench/results/<row>.json, the table of all rows to bench/results/README.md.

Metrics: T100 is the mean of the last 100 training episodes of a seed, exploration on, raw returns. E-det is the mean
return of evaluation episodes of the final model with the deterministic policy, on environments of their own.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polyak.envs import resolve
from polyak.envs.gymspaces import random_actions
from polyak.envs.vector import Vector
from polyak.runs.session import load, resume, train
from polyak.statistics import interval, iqm, pass_rule

BENCH = Path(__file__).resolve().parent
RESULTS, RUNS = BENCH / "results", BENCH / "runs"
STAGES = {1: [0, 1, 2, 3, 4], 2: [5, 6, 7, 8, 9]}  # fixed before anything was run
FLOOR_EPISODES = 300
PACKAGES = ("polyak", "jax", "jaxlib", "numpy", "optax", "gymnasium", "mujoco")


def rows() -> dict[str, dict[str, Any]]:
    """The rows of bench/rows.json by id."""
    return {row["id"]: row for row in json.loads((BENCH / "rows.json").read_text())}


def versions() -> dict[str, str]:
    """The packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read(path: Path, default: Any = None) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def write(path: Path, text: str) -> None:
    """Replace a file at once: an interruption leaves the old one."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def trained(row: dict[str, Any], stage: int) -> Any:
    """The finished run of a row's stage: started, continued or found."""
    folder = RUNS / row["id"] / f"stage{stage}"
    if (folder / "summary.json").exists():
        return load(folder)
    if (folder / "config.json").exists():
        return resume(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"steps": row["steps"], "seeds": STAGES[stage], "preset": row["preset"], "out": folder}
    settings |= {"tensorboard": False, "capture_video": False}
    return train(row["agent"].lower(), row["env"], **settings)


def training_returns(folder: Path, seed: int, last: int) -> float:
    """T100: the mean raw return of the last training episodes of a seed, from its monitor file."""
    lines = (folder / f"seed_{seed}" / "monitor.csv").read_text().splitlines()
    column = lines[1].split(",").index("r")
    returns = [float(line.split(",")[column]) for line in lines[2:]]
    if len(returns) < last:
        raise SystemExit(f"run.py: {folder} seed {seed} has {len(returns)} training episodes, and T100 needs {last}.")
    return float(np.mean(returns[-last:]))


def scores(row: dict[str, Any], stage: int) -> dict[str, Any]:
    """Train a stage and measure its five seeds by the row's metric."""
    run = trained(row, stage)
    folder = RUNS / row["id"] / f"stage{stage}"
    summary = read(folder / "summary.json")
    middle = time.perf_counter()
    if row["metric"] == "T100":
        found = [training_returns(folder, seed, row["episodes"]) for seed in STAGES[stage]]
    else:
        found = run.evaluate(episodes=row["episodes"])["per_seed"]
    return {
        "seeds": STAGES[stage],
        "scores": found,
        "steps_done": summary["steps"],
        "state_hash": summary["state_hash"],
        "command": (folder / "command.txt").read_text().strip(),
        "train_s": round(summary["time"]["total_s"], 1),
        "measure_s": round(time.perf_counter() - middle, 1),
    }


def floor(env: str) -> dict[str, Any]:
    """The random policy's return in an environment: measured once for each set of package versions."""
    path = RESULTS / "floors.json"
    known = read(path, {})
    now = {k: v for k, v in versions().items() if k in ("polyak", "gymnasium", "mujoco", "numpy", "jax")}
    if known.get(env, {}).get("versions") == now:
        return known[env]
    returns = random_returns(env, FLOOR_EPISODES)
    known[env] = {
        "mean": float(np.mean(returns)),
        "sd": float(np.std(returns, ddof=1)),
        "episodes": len(returns),
        "versions": now,
    }
    write(path, json.dumps(known, indent=1) + "\n")
    return known[env]


def random_returns(env: str, episodes: int) -> list[float]:
    """Raw returns of `episodes` episodes under uniformly random actions, in the environment as the agents see it.

    Equally many of each parallel environment are counted: the earliest to finish would be the shortest ones.
    """
    source, n = resolve(env), 10
    seen: list[list[float]] = [[] for _ in range(n)]
    rng = np.random.default_rng(0)
    for ended in played(source, n, rng):
        for i, value in ended:
            seen[i].append(value)
        if min(map(len, seen)) >= episodes // n:
            break
    return [value for returns in seen for value in returns[: episodes // n]]


def played(source: Any, n: int, rng: np.random.Generator) -> Iterator[list[tuple[int, float]]]:
    """Random steps without end: of each, the (environment, return) of the episodes that it finished."""
    if source.kind == "host":
        vector = source.vector(n, 0, "eval")
        vector.reset()
        while True:
            vector.step(random_actions(source.action_space, n, rng))
            yield [(episode.env, episode.ret) for episode in vector.episodes()]
    vector = Vector(source.world, n)
    state, _ = jax.jit(vector.reset)(jax.random.key(0))
    step = jax.jit(vector.step)
    for t in itertools.count():
        state, _, out = step(state, random_actions(source.action_space, n, rng), jax.random.key(t))
        ends = np.flatnonzero(np.asarray(out.terminated | out.truncated))
        yield [(int(i), float(out.episode_return[i])) for i in ends]


def decided(row: dict[str, Any], stages: list[dict[str, Any]], base: dict[str, Any]) -> dict[str, Any]:
    """The row's result: scores, interval, verdict and all that is needed to run it again."""
    all_scores = [s for stage in stages for s in stage["scores"]]
    more = stages[1]["scores"] if len(stages) == 2 else None
    verdict = pass_rule(stages[0]["scores"], row["bar"], row["direction"], more, row["published_sd"])
    low, high = interval(all_scores)
    centre = iqm(all_scores)
    return {
        "row": row,
        "passed": verdict.passed,
        "decided": verdict.decided,
        "stage": len(stages),
        "verdict": verdict.sentence,
        "iqm": centre,
        "ci_low": low,
        "ci_high": high,
        "mean": float(np.mean(all_scores)),
        "random": base,
        "normalised": float((centre - base["mean"]) / (row["bar"] - base["mean"])),
        "stages": stages,
        "command": f"python bench/run.py {row['id']}" + (" --stage2" if len(stages) == 2 else ""),
        "versions": versions(),
        "cores": os.cpu_count(),
    }


def measure(row: dict[str, Any], stage2: bool) -> dict[str, Any]:
    """Run a row to its verdict, or to the end of stage 1 where stage 2 isn't asked for."""
    base = floor(row["env"])
    stages = [scores(row, 1)]
    result = decided(row, stages, base)
    write(RESULTS / f"{row['id']}.json", json.dumps(result, indent=1) + "\n")
    has_second = (RUNS / row["id"] / "stage2" / "config.json").exists()
    if not result["passed"] and (stage2 or has_second):
        result = decided(row, [*stages, scores(row, 2)], base)
        write(RESULTS / f"{row['id']}.json", json.dumps(result, indent=1) + "\n")
    return result


def status(name: str, result: dict[str, Any] | None) -> str:
    """A row's last column."""
    if result is None:
        return "unfinished" if (RUNS / name).exists() else "not run"
    if result["passed"]:
        return f"**passed** at stage {result['stage']}"
    return "**failed** at both stages" if result["decided"] else "missed stage 1; stage 2 not run"


def table() -> str:
    """bench/results/README.md: every row, whatever became of it."""
    lines = [
        "# Results of the acceptance benchmarks", "",
        "Written by `python bench/run.py`; scores per seed, versions and hashes are in the JSON file of each row.",
        "IQM over seeds with its 95 % bootstrap interval. Stage 1 passes where the IQM of 5 fixed seeds reaches the",
        "bar; after a miss, stage 2 adds 5 more seeds (the interval of the 10-seed IQM must reach the bar, and the",
        "mean come within one published standard deviation). Random: the uniformly random policy, measured. Score: 0",
        "is random, 1 is the bar. Training: seconds of all seeds. Speed beside other libraries: [speed.md](speed.md).",
        "",
        "| row | agent | environment | steps | metric | bar | IQM [95 %] | seeds | random | score | time | result |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in rows().items():
        result = read(RESULTS / f"{name}.json")
        what = f"| [{name}]({name}.json) " if result else f"| {name} "
        metric = row["metric"] if row["metric"] == "T100" else f"{row['metric']}, {row['episodes']} episodes"
        what += f"| {row['agent']} | {row['env']} | {row['steps']:,} | {metric} | {row['bar']:g} "
        lines.append(what + figures(result) + f"| {status(name, result)} |")
    return "\n".join(lines) + "\n"


def figures(result: dict[str, Any] | None) -> str:
    """The measured columns of a row, empty where there is nothing yet."""
    if result is None:
        return "| | | | | "
    seeds = sum(len(stage["seeds"]) for stage in result["stages"])
    seconds = sum(stage["train_s"] for stage in result["stages"])
    return (
        f"| {result['iqm']:.2f} [{result['ci_low']:.2f}, {result['ci_high']:.2f}] | {seeds} "
        f"| {result['random']['mean']:.1f} | {result['normalised']:.2f} | {seconds:.0f} s "
    )


def main(arguments: Sequence[str]) -> int:
    known = rows()
    parser = argparse.ArgumentParser(prog="bench/run.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: those without a result ({', '.join(known)})")
    parser.add_argument("--stage2", action="store_true", help="after a miss, train the five seeds of stage 2 too")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.rows if name not in known]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}: there are {', '.join(known)}")
    failed = False
    for name in chosen.rows or [n for n in known if not (RESULTS / f"{n}.json").exists()]:
        result = measure(known[name], chosen.stage2)
        print(f"{name}: {result['verdict']}", flush=True)
        failed |= not result["passed"]
        write(RESULTS / "README.md", table())
    write(RESULTS / "README.md", table())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
