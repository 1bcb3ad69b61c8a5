"""How the speed of `polyak` grows with environments, seeds and width, and how long a start takes.

    python bench/scaling.py [environments] [seeds] [width] [workers] [start] [--part 1.0]

*environments*, *seeds*, *width*: compiled PPO on jax:CartPole-v1, environment steps per second of training, summed over
seeds, without compilation. *workers*: one step of a vector of environments in the trainer's process, and in worker
processes, with random actions: of a cheap environment, and of one made slow (HalfCheetah, 100 frames a step). *start*:
from the shell's call of `polyak train` to the first row of metrics, which follows the first update; with an empty
compilation cache, and with a warm one. What is measured again replaces its part.
Writes bench/results/scaling.json, scaling.md and scaling.svg. On an otherwise idle machine.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from credit_assignment import pyplot, saved
from speed import machine

import polyak
from polyak.envs import resolve
from polyak.envs.gymspaces import random_actions
from polyak.nets import MLP

BENCH = Path(__file__).resolve().parent
OUT, FIGURE = (BENCH / "results" / f"scaling.{kind}" for kind in ("json", "svg"))
ENVIRONMENTS = (1, 4, 16, 64, 256, 1024)
SEEDS = (1, 2, 4, 8, 10, 16, 32, 64)
WIDTHS = (64, 128, 256, 512, 1024)
N_ENVS, ROLLOUT, HIDDEN = 8, 64, 64  # where they are not varied
SECONDS = 4.0  # of training for each point, about
REPEATS = 3
WORKERS = {
    "CartPole-v1": ({}, 1, (0, 1)),
    "HalfCheetah-v5": ({"frame_skip": 100}, 8, (0, 1, 2)),
}
STARTS = {
    "ppo CartPole-v1": ["ppo", "CartPole-v1"],
    "dqn CartPole-v1": ["dqn", "CartPole-v1"],
    "sac Pendulum-v1": ["sac", "Pendulum-v1"],
    "ppo jax:CartPole-v1": ["ppo", "jax:CartPole-v1"],
}


def rate(n_envs: int, seeds: int, width: int, part: float) -> float:
    """Environment steps per second, all seeds together: the best of a few short runs."""
    agent = polyak.PPO(
        rollout_length=ROLLOUT,
        batch_size=ROLLOUT * n_envs // 4,
        epochs=4,
        network=MLP((width, width), "tanh", "orthogonal"),
    )
    iteration = ROLLOUT * n_envs

    def run(iterations: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            done = polyak.train(
                agent, "jax:CartPole-v1", steps=iterations * iteration, seeds=seeds, n_envs=n_envs,
                out=Path(folder) / "run", eval_episodes=0, save_freq=1 << 40, log_freq=1 << 40, quiet=True,
                progress=False, tensorboard=False, capture_video=False,
            )  # fmt: skip
            return done.summary["time"]["fps"]

    fps = run(4)
    iterations = max(4, round(part * SECONDS * fps / (iteration * seeds)))
    return max(run(iterations) for _ in range(REPEATS))


def start(words: list[str], cache: Path, folder: Path) -> float:
    """Seconds from the call to the first row of metrics."""
    line = [str(Path(sys.executable).with_name("polyak")), "train", *words, "--steps", "20_000", "--log-freq", "1"]
    line += ["--eval-episodes", "0", "--no-capture-video", "--quiet", "--out", str(folder)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        rows = folder / "metrics.jsonl"
        while not (rows.exists() and "train/" in rows.read_text()):
            if process.poll() is not None:
                assert process.stderr is not None
                raise SystemExit(f"scaling.py: {' '.join(line)} ended early\n{process.stderr.read().decode()[-1000:]}")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


def starts(part: float) -> dict[str, dict[str, float]]:
    """Cold and warm, for each of a few commands: the median of several starts."""
    found: dict[str, dict[str, float]] = {}
    for name, words in STARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            cold = start(words, cache, Path(folder) / "cold")
            warm = [start(words, cache, Path(folder) / f"warm_{k}") for k in range(max(1, round(REPEATS * part)))]
        found[name] = {"cold_s": round(cold, 2), "warm_s": round(statistics.median(warm), 2)}
        print(f"  {name:22} cold {cold:5.1f} s, warm {found[name]['warm_s']:5.1f} s", flush=True)
    return found


def vector_steps(part: float) -> list[dict[str, Any]]:
    """Microseconds of one step of all environments, without and with workers."""
    found: list[dict[str, Any]] = []
    for name, (kwargs, n_envs, choices) in WORKERS.items():
        source = resolve(name, env_kwargs=kwargs)
        action = random_actions(source.action_space, n_envs, np.random.default_rng(0))
        for workers in choices:
            vector = source.vector(n_envs, 0, workers=workers)
            vector.reset()
            steps, began = 0, time.perf_counter()
            while (spent := time.perf_counter() - began) < SECONDS * part or not steps:
                vector.step(action)
                steps += 1
            vector.close()
            row = {"env": name, "kwargs": kwargs, "n_envs": n_envs, "workers": workers}
            found.append(row | {"step_us": round(1e6 * spent / steps, 1)})
            print(f"  {name:16} {n_envs} environments, {workers} workers {found[-1]['step_us']:10,.0f} µs", flush=True)
    return found


def points(kind: str, part: float) -> list[dict[str, float]]:
    """The curve of one kind: x, steps per second."""
    choose = {
        "environments": [(n, 1, HIDDEN, n) for n in ENVIRONMENTS],
        "seeds": [(N_ENVS, n, HIDDEN, n) for n in SEEDS],
        "width": [(N_ENVS, 1, n, n) for n in WIDTHS],
    }[kind]
    found: list[dict[str, float]] = []
    for n_envs, seeds, width, x in choose:
        found.append({"x": x, "fps": round(rate(n_envs, seeds, width, part), 1)})
        print(f"  {kind:12} {x:6,} {found[-1]['fps']:14,.0f} steps/s", flush=True)
    return found


def draw(results: dict[str, Any]) -> None:
    """The three curves; the width's, which spans two decades, on a logarithmic axis."""
    kinds = [kind for kind in ("environments", "seeds", "width") if kind in results]
    if not kinds:
        return
    figure, axes = pyplot().subplots(
        1, len(kinds), figsize=(3.6 * len(kinds), 3.2), squeeze=False, layout="constrained"
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows = results[kind]["points"]
        axis.plot([row["x"] for row in rows], [row["fps"] / 1000 for row in rows], "o-", color="#1f6feb", markersize=4)
        axis.set_xscale("log", base=2)
        if kind == "width":
            axis.set_yscale("log")
        else:
            axis.set_ylim(0)
        axis.set_xlabel(
            {"environments": "environments", "seeds": "seeds in one process", "width": "width of two layers"}[kind]
        )
        axis.set_xticks([row["x"] for row in rows], [f"{row['x']:,}" for row in rows], fontsize=8)
        axis.grid(color="#eeeeee")
    axes[0][0].set_ylabel("thousand steps per second")
    saved(figure, FIGURE)


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""
    at = results["machine"]
    lines = [
        "# Scaling and starts",
        "",
        f"{at['cores']} cores, {at['cpu']} {at['vector']}, no GPU; `python bench/scaling.py`.",
        "",
    ]
    curves = [kind for kind in ("environments", "seeds", "width") if kind in results]
    if curves:
        lines += [
            "![steps per second against environments, seeds and width](scaling.svg)", "",
            f"Compiled PPO, jax:CartPole-v1, rollouts of {ROLLOUT} steps, 4 epochs of 4 minibatches. Where they are",
            f"not varied: {N_ENVS} environments, one seed, two layers of {HIDDEN}. Environment steps per second, all",
            f"seeds together; the best of {REPEATS} runs of about {SECONDS:.0f} s.", "",
        ]  # fmt: skip
    for kind in curves:
        rows = results[kind]["points"]
        lines += [
            "| " + kind + " | " + " | ".join(f"{row['x']:,}" for row in rows) + " |",
            "|---" * (len(rows) + 1) + "|",
        ]
        lines += ["| steps/s | " + " | ".join(f"{row['fps']:,.0f}" for row in rows) + " |"]
        if kind == "seeds":
            one = rows[0]["fps"]
            lines += [
                "| time of one seed × | " + " | ".join(f"{row['x'] * one / row['fps']:.1f}" for row in rows) + " |"
            ]
        lines.append("")
    if "workers" in results:
        lines += [
            "One step of a vector of environments, with random actions:",
            "",
            "| environments | workers | µs |",
            "|---|---|---|",
        ]
        for row in results["workers"]["rows"]:
            slow = "".join(f", {k} {v}" for k, v in row["kwargs"].items())
            lines.append(
                f"| {row['n_envs']} × {row['env']}{slow} | {row['workers'] or 'none'} | {row['step_us']:,.0f} |"
            )
        lines.append("")
    if "start" in results:
        lines += [
            "From the shell's call of `polyak train` to the first row of metrics, after the first update, in seconds:",
            "",
            "| command | empty cache | warm cache |", "|---|---|---|",
        ]  # fmt: skip
        found = results["start"]["commands"]
        lines += [
            f"| `polyak train {name}` | {row['cold_s']:.1f} | {row['warm_s']:.1f} |" for name, row in found.items()
        ]
        lines.append("")
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    return "\n".join([*lines, f"{versions}. Measured {results['date']}.", ""])


def main(arguments: Sequence[str]) -> None:
    known = ("environments", "seeds", "width", "workers", "start")
    parser = argparse.ArgumentParser(prog="bench/scaling.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all ({', '.join(known)})")
    parser.add_argument("--part", type=float, default=1.0, help="share of the time to spend; below 1 is a rough look")
    chosen = parser.parse_args(arguments)
    for name in chosen.parts:
        if name not in known:
            parser.error(f"there is no part {name!r}: there are {', '.join(known)}")
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    results = results if results.get("machine") == machine() else {"machine": machine()}
    for name in chosen.parts or known:
        match name:
            case "start":
                found: dict[str, Any] = {"commands": starts(chosen.part)}
            case "workers":
                found = {"rows": vector_steps(chosen.part)}
            case _:
                found = {"points": points(name, chosen.part)}
        results[name] = found | {"load_before": round(os.getloadavg()[0], 2)}
        results |= {
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python bench/scaling.py", *arguments]),
        }
        results["versions"] = {p: version(p) for p in ("polyak", "jax", "numpy", "gymnasium")}
        OUT.write_text(json.dumps(results, indent=1) + "\n")
        draw(results)
        OUT.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
