"""The acceptance benchmarks: trains the rows of bench/rows.json, measures them and applies the pass rule.

    python bench/run.py                     # every row that can be run and has no result yet
    python bench/run.py P10 P24             # these rows (P24: all its parts); a finished one is only measured again
    python bench/run.py P10 --stage2        # five more seeds as well where the first five missed
    python bench/run.py P10 --anew          # trained again, although its result is kept in bench/results
    python bench/run.py --jobs 2 P25 P26    # up to two rows at once, each on a core of its own; logs in bench/runs
    python bench/run.py --floors            # the random policy's returns in all environments
    python bench/run.py --leaderboard       # only write bench/leaderboard.md anew

A row trains five fixed seeds (0-4; 5-9 in stage 2) with its preset into bench/runs/<row>, which is not committed. It
may be interrupted at any time: the same command goes on where it stopped, exactly. The result goes to
bench/results/<row>.json, the table of all rows to bench/leaderboard.md. How each metric is computed: bench/measures.py.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import leaderboard
import measures
import numpy as np

from polyak.envs import resolve
from polyak.envs.gymspaces import random_actions
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.runs.session import Interrupted, load, resume, train
from polyak.statistics import interval, iqm, pass_rule

BENCH = Path(__file__).resolve().parent
RESULTS, RUNS = BENCH / "results", BENCH / "runs"
STAGES = {1: [0, 1, 2, 3, 4], 2: [5, 6, 7, 8, 9]}  # fixed before anything was run
FLOOR_EPISODES = 300
PACKAGES = ("polyak", "jax", "jaxlib", "numpy", "optax", "gymnasium", "mujoco", "box2d", "gymnasium-robotics")
# A floor depends on these, and on the package that brings the environment.
FLOOR_PACKAGES = ("polyak", "gymnasium", "mujoco", "numpy", "jax")
BROUGHT_BY = {"LunarLander": "box2d", "Fetch": "gymnasium-robotics"}
INTERRUPTED = 130


def rows() -> dict[str, dict[str, Any]]:
    """The rows of bench/rows.json by id."""
    return {row["id"]: row for row in json.loads((BENCH / "rows.json").read_text())}


def runnable(row: dict[str, Any]) -> bool:
    """Whether this script can train the row: others say what is missing, or have a script of their own."""
    return "preset" in row or "variants" in row


def chosen(names: Sequence[str]) -> list[str]:
    """The rows that are meant: a name stands for itself, or for all parts of a row that has some.

    Raises:
        SystemExit: there is no such row, or it can't be run.
    """
    known, found = rows(), []
    for name in names:
        parts = [row for row in known if row == name or leaderboard.parent(row) == name]
        if not parts:
            raise SystemExit(f"run.py: there is no row {name!r}: there are {', '.join(known)}")
        able = [part for part in parts if runnable(known[part])]
        if not able:
            row = known[parts[0]]
            raise SystemExit(f"run.py: {name} can't be run here: {row.get('missing') or 'see ' + row['script']}")
        found += able
    return list(dict.fromkeys(found))


def versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The packages that the figures depend on."""
    found: dict[str, str] = {}
    for package in names:
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


# ------------------------------------------------------------------------------------------------------- training


def settings(row: dict[str, Any], preset: str) -> dict[str, Any]:
    """What a row trains. It evaluates as often as its metric needs it, and at the end."""
    what = {"agent": row["agent"].lower(), "env": row["env"], "steps": row["steps"], "preset": preset}
    what |= {"fields": row.get("fields"), "eval_freq": row.get("eval_freq", 0)}
    return what | ({"eval_episodes": row["episodes"]} if row["metric"] in ("E-det", "success") else {})


def trained(row: dict[str, Any], preset: str, folder: Path, seeds: list[int]) -> None:
    """Bring a run to its end: started, continued, or found finished."""
    if (folder / "summary.json").exists():
        return
    quick = {"tensorboard": False, "capture_video": False}
    if (folder / "config.json").exists():
        resume(folder, **quick)
        return
    missing = leaderboard.lacking(row)
    if missing:
        raise PolyakError(f"{row['id']} needs {missing}, which isn't there")
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = f"python bench/run.py {row['id']}"
    train(**settings(row, preset), seeds=seeds, out=folder, command=command, **quick)


def measured(row: dict[str, Any], folder: Path, seeds: list[int]) -> list[float]:
    """The scores of a finished run's seeds by the row's metric."""
    steps = read(folder / "summary.json")["steps"]
    n_envs = read(folder / "config.json")["run"]["n_envs"]
    match row["metric"]:
        case "T100":
            return [measures.last_episodes(measures.training(folder, k), row["episodes"]) for k in seeds]
        case "T-MA":
            logs = [measures.training(folder, k) for k in seeds]
            return [measures.moving_mean(log, n_envs, steps, row["every"], row["rows"]) for log in logs]
        case "last steps":
            return [measures.last_steps(measures.training(folder, k), steps, row["window"]) for k in seeds]
        case "success":
            found = [measures.succeeded(measures.evaluations(folder, k), steps, row["episodes"]) for k in seeds]
        case "E-det":
            wanted = (steps, row["episodes"], row.get("last", 1))
            found = [measures.evaluated(measures.evaluations(folder, k), *wanted) for k in seeds]
            if None in found and "last" not in row:  # trained with fewer episodes: the model plays them now
                found = load(folder).evaluate(row["episodes"])["per_seed"]
        case metric:
            raise SystemExit(f"run.py: {row['id']} has the unknown metric {metric!r}")
    if None in found:
        raise SystemExit(f"run.py: {folder} holds no such evaluations as {row['metric']} of {row['id']} needs.")
    return [float(score) for score in found if score is not None]


def kept_stage(row: dict[str, Any], stage: int, variant: str = "") -> dict[str, Any] | None:
    """A finished stage of the row as it stands in the table, so that stage 2 can follow on another machine."""
    result = read(RESULTS / f"{row['id']}.json", {})
    stages = result.get("variants", {}).get(variant, []) if variant else result.get("stages", [])
    if result.get("row") != row or len(stages) < stage:
        return None
    of_all = {"versions": result["versions"]} if "versions" in result else {}  # older stages didn't say theirs
    return of_all | stages[stage - 1]


def begun(row: dict[str, Any], variant: str = "") -> bool:
    """Whether stage 2 of the row was asked for before: it was begun here, or is kept."""
    here = (RUNS / row["id"] / variant / "stage2" / "config.json").exists()
    return here or kept_stage(row, 2, variant) is not None


def scores(row: dict[str, Any], stage: int, preset: str, variant: str = "") -> dict[str, Any]:
    """Train a stage and measure its five seeds; without its run folder, a result that is kept stands."""
    folder = RUNS / row["id"] / variant / f"stage{stage}"
    if not folder.exists() and (kept := kept_stage(row, stage, variant)):
        return kept
    trained(row, preset, folder, STAGES[stage])
    summary = read(folder / "summary.json")
    middle = time.perf_counter()
    return {
        "seeds": STAGES[stage],
        "scores": measured(row, folder, STAGES[stage]),
        "steps_done": summary["steps"],
        "state_hash": summary["state_hash"],
        "command": (folder / "command.txt").read_text().strip(),
        "train_s": round(summary["time"]["total_s"], 1),
        "measure_s": round(time.perf_counter() - middle, 1),
        "commit": read(folder / "system.json").get("git", ""),
        "versions": versions(),
    }


# --------------------------------------------------------------------------------------------------------- floors


def floor(env: str) -> dict[str, Any]:
    """The random policy's return and success in an environment: measured once for each set of package versions."""
    path = RESULTS / "floors.json"
    known = read(path, {})
    now = versions([*FLOOR_PACKAGES, *(package for name, package in BROUGHT_BY.items() if env.startswith(name))])
    if known.get(env, {}).get("versions") == now:
        return known[env]
    played = random_episodes(env, FLOOR_EPISODES)
    returns, successes = (np.array(column) for column in zip(*played, strict=True))
    found = {"mean": float(returns.mean()), "sd": float(returns.std(ddof=1)), "episodes": len(played), "versions": now}
    if not np.isnan(successes).any():
        found["success"] = float(successes.mean())
    known = read(path, {})  # again: another row may have written its own meanwhile
    write(path, json.dumps(known | {env: found}, indent=1) + "\n")
    return found


def base(row: dict[str, Any]) -> dict[str, Any]:
    """The floor of a row, in its own metric."""
    found = floor(row["env"])
    return found | {"mean": found["success"]} if row["metric"] == "success" else found


def random_episodes(env: str, episodes: int) -> list[tuple[float, float]]:
    """(raw return, success or NaN) of `episodes` episodes under uniformly random actions, as the agents see them.

    Equally many of each parallel environment are counted: the earliest to finish would be the shortest ones.
    """
    source, n = resolve(env), 10
    seen: list[list[tuple[float, float]]] = [[] for _ in range(n)]
    rng = np.random.default_rng(0)
    for ended in played(source, n, rng):
        for i, *episode in ended:
            seen[i].append((episode[0], episode[1]))
        if min(map(len, seen)) >= episodes // n:
            break
    return [episode for mine in seen for episode in mine[: episodes // n]]


def played(source: Any, n: int, rng: np.random.Generator) -> Iterator[list[tuple[int, float, float]]]:
    """Random steps without end: of each, the (environment, return, success) of the episodes that it finished."""
    if source.kind == "host":
        vector = source.vector(n, 0, "eval")
        vector.reset()
        while True:
            vector.step(random_actions(source.action_space, n, rng))
            yield [(episode.env, episode.ret, episode.success) for episode in vector.episodes()]
    vector = Vector(source.world, n)
    state, _ = jax.jit(vector.reset)(jax.random.key(0))
    step = jax.jit(vector.step)
    for t in itertools.count():
        state, _, out = step(state, random_actions(source.action_space, n, rng), jax.random.key(t))
        ends = np.flatnonzero(np.asarray(out.terminated | out.truncated))
        yield [(int(i), float(out.episode_return[i]), float("nan")) for i in ends]


def floors() -> None:
    """The floors of every environment in the table, as far as its package is installed."""
    for env in dict.fromkeys(row["env"] for row in rows().values() if runnable(row)):
        try:
            found = floor(env)
            print(f"{env}: {found['mean']:.4g} ± {found['sd']:.3g}", flush=True)
        except PolyakError as error:
            print(f"{env}: not measured: {error}", flush=True)


# -------------------------------------------------------------------------------------------------------- verdicts


def decided(row: dict[str, Any], stages: list[dict[str, Any]], floor: dict[str, Any]) -> dict[str, Any]:
    """The row's result: scores, interval, verdict and all that is needed to run it again."""
    all_scores = [s for stage in stages for s in stage["scores"]]
    low, high = interval(all_scores)
    centre = iqm(all_scores)
    found = {
        "row": row,
        "iqm": centre,
        "ci_low": low,
        "ci_high": high,
        "mean": float(np.mean(all_scores)),
        "random": floor,
        "stages": stages,
    } | origin(row, len(stages))
    if row["bar"] is None:  # a part that is only compared with others
        return found | {"stage": len(stages), "verdict": f"IQM {centre:.6g}, which has no bar of its own."}
    more = stages[1]["scores"] if len(stages) == 2 else None
    verdict = pass_rule(stages[0]["scores"], row["bar"], row["direction"], more, row["published_sd"])
    return found | {
        "passed": verdict.passed,
        "decided": verdict.decided,
        "stage": len(stages),
        "verdict": verdict.sentence,
        "normalised": float((centre - floor["mean"]) / (row["bar"] - floor["mean"])),
    }


def origin(row: dict[str, Any], stages: int) -> dict[str, Any]:
    """What is needed to run a row again."""
    return {
        "command": f"python bench/run.py {row['id']}" + (" --stage2" if stages == 2 else ""),
        "versions": {"python": platform.python_version(), **versions()},
        "cores": os.cpu_count(),
    }


def measure(row: dict[str, Any], stage2: bool) -> dict[str, Any]:
    """Run a row to its verdict, or to the end of stage 1 where stage 2 isn't asked for."""
    if "variants" in row:
        return measure_variants(row, stage2)
    ground = base(row)
    second = begun(row)
    stages = [scores(row, 1, row["preset"])]
    result = decided(row, stages, ground)
    if not second:  # else what is kept of stage 2 would go
        save(row, result)
    if result.get("passed") is False and (stage2 or second):
        result = decided(row, [*stages, scores(row, 2, row["preset"])], ground)
    save(row, result)
    return result


def measure_variants(row: dict[str, Any], stage2: bool) -> dict[str, Any]:
    """A part that trains several presets on one environment, to be compared with each other over all parts."""
    ground = base(row)
    stages = [1, 2] if stage2 or any(begun(row, name) for name in row["variants"]) else [1]
    found = {name: [scores(row, k, preset, name) for k in stages] for name, preset in row["variants"].items()}
    middle = {name: iqm([s for stage in runs for s in stage["scores"]]) for name, runs in found.items()}
    text = ", ".join(f"{name} {value:.6g}" for name, value in middle.items())
    result = {
        "row": row,
        "variants": found,
        "iqm": middle,
        "random": ground,
        "stage": len(stages),
        "verdict": f"IQM {text}.",
    } | origin(row, len(stages))
    save(row, result)
    return result


def save(row: dict[str, Any], result: dict[str, Any]) -> None:
    """Keep a row's result, and write the table of all of them."""
    write(RESULTS / f"{row['id']}.json", json.dumps(result, indent=1) + "\n")
    show()


def forget(names: Sequence[str]) -> None:
    """Remove what is kept of rows, so that they are trained from the beginning."""
    for name in names:
        (RESULTS / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(RUNS / name, ignore_errors=True)


def show() -> None:
    """Write bench/leaderboard.md, and what is known of rows that are under way."""
    known = rows()
    unfinished = read(RESULTS / "unfinished.json", {})
    for name, row in known.items():
        if runnable(row):
            progress = leaderboard.progress(row, RUNS)
            unfinished |= {name: progress} if progress else {}
            if (RESULTS / f"{name}.json").exists():
                unfinished.pop(name, None)
    if unfinished or (RESULTS / "unfinished.json").exists():
        write(RESULTS / "unfinished.json", json.dumps(unfinished, indent=1, sort_keys=True) + "\n")
    write(BENCH / "leaderboard.md", leaderboard.page(known, RESULTS))


# ------------------------------------------------------------------------------------------------------- processes


def one_by_one(names: Sequence[str], stage2: bool) -> int:
    """Rows one after the other in this process; the exit status."""
    known, failed = rows(), False
    for name in names:
        try:
            result = measure(known[name], stage2)
        except Interrupted as stopped:
            print(f"{name}: {stopped}", flush=True)
            return INTERRUPTED
        except PolyakError as error:
            print(f"{name}: {error}", flush=True)
            failed = True
            continue
        print(f"{name}: {result['verdict']}", flush=True)
        failed |= result.get("passed") is False
    return int(failed)


def side_by_side(names: Sequence[str], jobs: int, stage2: bool) -> int:
    """Rows as processes of their own, `jobs` at a time, each on one core; the exit status.

    An interruption reaches every one of them once, so that each saves what it has; a second one ends them at once.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    waiting, running, failed = list(names), {}, False
    try:
        while waiting or running:
            for slot in range(jobs):
                if waiting and slot not in running:
                    running[slot] = started(waiting.pop(0), cores[slot % len(cores)] if cores else None, stage2)
            for slot, (name, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    failed |= process.returncode != 0
                    print(f"{name}: {last_line(RUNS / f'{name}.log')}", flush=True)
            time.sleep(0.5)
    except KeyboardInterrupt:
        for _, process in running.values():
            process.send_signal(signal.SIGINT)
        print("run.py: stopping; the same command goes on", flush=True)
        try:
            for _, process in running.values():
                process.wait()
        except KeyboardInterrupt:
            for _, process in running.values():
                process.kill()
        return INTERRUPTED
    return int(failed)


def started(name: str, core: int | None, stage2: bool) -> tuple[str, subprocess.Popen[bytes]]:
    """A row as a process of its own; a session of its own too, so that the terminal's Ctrl-C reaches us alone."""
    RUNS.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "bench/run.py", name, *(["--stage2"] if stage2 else [])]
    with (RUNS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=BENCH.parent, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, "NPROC": "1"}, start_new_session=True,
        )  # fmt: skip
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    print(f"{name}: process {process.pid}" + ("" if core is None else f" on core {core}"), flush=True)
    return name, process


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: those that can be run and have no result")
    parser.add_argument("--stage2", action="store_true", help="after a miss, train the five seeds of stage 2 too")
    parser.add_argument("--anew", action="store_true", help="forget the rows' results and runs, and train them again")
    parser.add_argument("--jobs", type=int, metavar="N", help="up to N rows at once, each on a core of its own")
    parser.add_argument("--floors", action="store_true", help="measure the random policy everywhere")
    parser.add_argument("--leaderboard", action="store_true", help="only write bench/leaderboard.md anew")
    given = parser.parse_args(arguments)
    if given.floors:
        floors()
    if given.floors or given.leaderboard:
        show()
        return 0
    names = chosen(given.rows) if given.rows else leaderboard.open_rows(rows(), RESULTS)
    if given.anew:
        if not given.rows:
            parser.error("--anew takes the names of the rows that are to be forgotten")
        forget(names)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in the background deaf to Ctrl-C
        signal.signal(number, _terminated)
    try:
        status = side_by_side(names, given.jobs, given.stage2) if given.jobs else one_by_one(names, given.stage2)
    except KeyboardInterrupt:
        status = INTERRUPTED
    show()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
