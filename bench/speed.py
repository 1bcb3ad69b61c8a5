"""Speed of `polyak` beside its peers: the same jobs, in turn, one process at a time.

    bench/peers/setup.sh                      # once: the peers' own environments
    python bench/speed.py [JOB ...] [--rounds 3] [--part 1.0]
    python bench/speed.py [JOB ...] --limits  # where the time goes, and what the machine would allow (bench/parts.py)

Every round runs each side of a job once, in alternation (A B A B ...), so that a slow minute of the machine hits both.
The figure of a side is its median over the rounds, the ratio is the quotient of the medians. Writes
bench/results/speed.json and speed.md. Run it on an otherwise idle machine: load from elsewhere is noted, not removed.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
OUT = RESULTS / "speed.json"
HOW = {
    "sac-halfcheetah": "SAC, HalfCheetah-v5, 256×256, batch 256, one update a step",
    "ppo-cartpole": "PPO, CartPole-v1, 8 environments, zoo settings (32 steps, batch 256, 20 epochs)",
    "dqn-cartpole": "DQN, CartPole-v1, zoo settings (256×256, batch 64, 128 updates every 256 steps)",
    "td3-halfcheetah": "TD3, HalfCheetah-v5, 256×256, batch 256, one update a step",
    "a2c-cartpole": "A2C, CartPole-v1, 8 environments, 5 steps",
    "compiled-ppo-cartpole": "compiled PPO, CartPole, rejax's settings for CartPole with 64 environments",
    "compiled-ppo-cartpole-yaml": "compiled PPO, CartPole, rejax's settings for CartPole as they are (5 environments)",
    "compiled-ppo-cartpole-defaults": "compiled PPO, CartPole, defaults of rejax's PPO (64 environments)",
    "compiled-ppo-cartpole-purejaxrl": "compiled PPO, CartPole, PureJaxRL's settings (4 × 128, 4 epochs of 4)",
    "compiled-dqn-cartpole": "compiled DQN, CartPole, rejax's settings (10 environments, 5 updates of 100 every step)",
    "compiled-sac-pendulum": "compiled SAC, Pendulum, rejax's settings (64×64, batch 256, one update a step)",
}


def jobs() -> dict[str, dict[str, Any]]:
    """The jobs of bench/jobs.json by name."""
    return json.loads((BENCH / "jobs.json").read_text())


def sides(job: dict[str, Any]) -> list[str]:
    """Who runs a job: ours, the peer with the bar, and Stable-Baselines3 for orientation on the host jobs."""
    peers = [job["against"]] + ([] if job.get("compiled") else ["sb3"])
    return ["polyak", *dict.fromkeys(peers)]


def command(side: str, name: str, steps: int, seed: int) -> list[str]:
    """The process that runs a job on one side."""
    if side == "polyak":
        own = BENCH.parent / ".venv" / "bin" / "python"
        return [str(own if own.exists() else sys.executable), str(BENCH / "ours.py"), name, str(steps), str(seed)]
    python = str(BENCH / "peers" / f".venv-{side}" / "bin" / "python")
    if side == "rejax":
        return [python, str(BENCH / "peers" / "rejax_train.py"), name, str(steps), str(seed)]
    return [python, str(BENCH / "peers" / "stable_baselines.py"), side, name, str(steps), str(seed)]


def timed(side: str, name: str, steps: int, seed: int) -> dict[str, Any]:
    """Run a job on one side, alone, and return its row with the load of the machine before it."""
    load = os.getloadavg()[0]
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    line = command(side, name, steps, seed)
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"speed.py: {side} failed on {name}: {' '.join(line)}\n{done.stderr[-2000:]}")
    row = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"  {name:32} {side:7} {row['fps']:12,.1f} steps/s   ({row['steps']:,} in {row['seconds']:.1f} s)", flush=True
    )
    return row | {"load_before": round(load, 2), "seed": seed}


def measure(name: str, job: dict[str, Any], rounds: int, part: float) -> dict[str, Any]:
    """All rounds of a job: the rows, the medians and the ratios of ours to each peer."""
    steps = max(int(job["steps"] * part), 2 * job.get("warm", 0))
    rows = [timed(side, name, steps, seed) for seed in range(rounds) for side in sides(job)]
    medians = {s: statistics.median(r["fps"] for r in rows if r["peer"] == s) for s in sides(job)}
    ratios = {s: round(medians["polyak"] / medians[s], 3) for s in medians if s != "polyak"}
    met = ratios[job["against"]] >= job["bar"]
    return {
        "job": name,
        "settings": job,
        "steps": steps,
        "medians": medians,
        "ratios": ratios,
        "met": met,
        "rows": rows,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on, without names."""
    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        cpu = value.strip() if key.strip() == "model name" else cpu
        flags |= set(value.split()) if key.strip() == "flags" else set()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    vector = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return {"cores": cores, "cpu": cpu, "vector": vector, "system": f"{platform.system()} {platform.machine()}"}


def table(results: dict[str, Any]) -> str:
    """The Markdown page of the results."""
    at = results["machine"]
    lines = [
        "# Speed", "",
        "Environment steps per second, training included; compilation, evaluation and checkpoints excluded. Median",
        "over the rounds, which alternate between the sides, one process at a time.",
        f"{at['cores']} cores, {at['cpu']} {at['vector']}, no GPU. Settings: [jobs.json](../jobs.json).",
        "A job that is measured again replaces its row; the others stay.", "",
        "| job | rounds | polyak | peer | Stable-Baselines3 | ratio to the peer | bar | |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for found in results["jobs"].values():
        job, medians = found["settings"], found["medians"]
        peer, rounds = job["against"], sum(r["peer"] == "polyak" for r in found["rows"])
        sb3 = f"{medians['sb3']:,.0f} ({found['ratios']['sb3']:.1f}×)" if "sb3" in medians else ""
        lines.append(
            f"| {HOW[found['job']]} | {rounds} | {medians['polyak']:,.0f} | {peer} {medians[peer]:,.0f} | {sb3} "
            f"| {found['ratios'][peer]:.2f}× | {job['bar']}× | {'met' if found['met'] else 'missed'} |"
        )
    lines += limits_table(results)
    return (
        "\n".join([*lines, "", "## Versions", "", *versions(results), "", "## All rounds", "", *rounds_table(results)])
        + "\n"
    )


def limits_table(results: dict[str, Any]) -> list[str]:
    """The second table: the parts of an iteration alone, and the floor that the matrix products set."""
    known = {name: row for name, row in results.get("limits", {}).items() if name in HOW}
    if not known:
        return []
    lines = [
        "", "## What is possible", "",
        "The parts of an iteration, each timed alone (`python bench/speed.py --limits`), in microseconds; the steps/s",
        "that they add up to; and the floor: the update's matrix products, counted in its program, at the rate of a",
        "product of 2048×2048 matrices on this machine. *Reached*: the first table's steps/s as a share of both.",
        "Compiled, the parts act and step in one loop.", "",
        "| job | environments | act | update | of it products | parts' steps/s | reached | floor's steps/s | reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in known.items():
        parts, steps = row["parts_s"], row["iteration_steps"]
        both = parts.get("act and environments")
        cells = (
            [f"{1e6 * both:,.0f}", "with them"] if both else [f"{1e6 * parts[k]:,.0f}" for k in ("environments", "act")]
        )
        cells += [f"{1e6 * parts['update']:,.0f}", f"{1e6 * row['floor_s']:,.0f}"]
        fps = results["jobs"].get(name, {}).get("medians", {}).get("polyak")
        for seconds in (sum(parts.values()), row["floor_s"]):
            cells += [f"{steps / seconds:,.0f}", f"{fps * seconds / steps:.0%}" if fps else ""]
        lines.append(f"| {HOW[name]} | " + " | ".join(cells) + " |")
    rates = [row["matmul_flop_per_s"] / 1e9 for row in known.values()]
    return [*lines, "", f"The products' rate was {min(rates):,.0f} to {max(rates):,.0f} GFLOP/s."]


def limits(name: str) -> dict[str, Any]:
    """The parts of a job, measured in a process of their own."""
    line = [command("polyak", name, 0, 0)[0], str(BENCH / "parts.py"), name]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"speed.py: {' '.join(line)} failed\n{done.stderr[-2000:]}")
    row = json.loads(done.stdout.strip().splitlines()[-1])
    parts = ", ".join(f"{part} {1e6 * seconds:,.0f} µs" for part, seconds in row["parts_s"].items())
    print(f"  {name:32} {parts}", flush=True)
    return row


def versions(results: dict[str, Any]) -> list[str]:
    """One line per side: what it ran with."""
    newest = {row["peer"]: row for found in results["jobs"].values() for row in found["rows"]}
    return [
        f"- {peer}: " + ", ".join(f"{name} {v}" for name, v in row["versions"].items()) + f", Python {row['python']}"
        for peer, row in sorted(newest.items())
    ]


def rounds_table(results: dict[str, Any]) -> list[str]:
    """Every single measurement, in the order in which it was taken."""
    lines: list[str] = []
    for found in results["jobs"].values():
        lines += ["", f"`{found['command']}`, {found['date']}", ""]
        lines += ["| job | side | steps | seconds | steps/s | load before |", "|---|---|---|---|---|---|"]
        lines += [one_round(row) for row in found["rows"]]
    return lines


def one_round(r: dict[str, Any]) -> str:
    what = f"| {r['job']} | {r['peer']} | {r['steps']:,} | {r['seconds']:.1f} "
    return what + f"| {r['fps']:,.0f} | {r['load_before']} |"


def write(results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "speed.md").write_text(table(results))


def main(arguments: Sequence[str]) -> None:
    known = jobs()
    parser = argparse.ArgumentParser(prog="bench/speed.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"default: all ({', '.join(known)})")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs each job (default 3)")
    parser.add_argument(
        "--part", type=float, default=1.0, help="share of the jobs' steps to run; below 1 is a rough look"
    )
    parser.add_argument("--limits", action="store_true", help="measure the parts of our side alone, and no peer")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.jobs if name not in known]
    if unknown:
        parser.error(f"there is no job {unknown[0]!r}: there are {', '.join(known)}")
    if os.getloadavg()[0] > 0.7:
        print(
            f"speed.py: the machine is busy (load {os.getloadavg()[0]:.1f}); the figures will be rough.",
            file=sys.stderr,
        )
    at, old = machine(), json.loads(OUT.read_text()) if OUT.exists() else {}
    kept = old.get("jobs", {}) if old.get("machine") == at else {}
    when = {"date": datetime.date.today().isoformat(), "command": " ".join(["python bench/speed.py", *arguments])}
    parts: dict[str, Any] = old.get("limits", {}) if old.get("machine") == at else {}
    results: dict[str, Any] = {}
    for name in chosen.jobs or known:
        if chosen.limits:
            parts[name] = when | limits(name)
        else:
            kept[name] = when | measure(name, known[name], chosen.rounds, chosen.part)
        results = {"machine": at, "jobs": {n: kept[n] for n in known if n in kept}}
        results["limits"] = {n: parts[n] for n in known if n in parts}
        write(results)  # after every job: an interrupted measurement keeps what it has
    print("\n" + table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
