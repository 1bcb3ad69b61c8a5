"""Exact planning at growing sizes, beside pymdptoolbox and mdptoolbox-hiive: the same grids, one process at a time.

    bench/peers/setup.sh mdptoolbox hiive     # once: the peers' own environments
    python bench/planning.py [SIDE ...] [--sizes 100 300 ...] [--seconds 120]     # sides: polyak, mdptoolbox, hiive

Every method solves grids with a slippery floor to 10⁻⁶, from 100 states to a million, until it takes longer than the
limit or more than 2 GB. Making the model and imports are outside of the clock. `polyak`'s first call holds the
compilation, from an empty cache; later calls don't. The error of every answer is measured against one within 10⁻⁹ of
V*. Writes bench/results/planning.json and planning.md; what is measured again replaces its rows.
"""

import argparse
import datetime
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from speed import machine

BENCH = Path(__file__).resolve().parent
OUT = BENCH / "results" / "planning.json"
GAMMA, TOLERANCE, MEMORY = 0.99, 1e-6, 2 * 10**9
SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000)
SCALING = (1_000, 10_000, 100_000, 1_000_000)
PATCHED = "value iteration, patched"
METHODS = {
    "polyak": ("value iteration", "Gauss-Seidel value iteration", "modified policy iteration", "policy iteration"),
    "mdptoolbox": (
        "value iteration", "Gauss-Seidel value iteration", "modified policy iteration", "policy iteration", PATCHED
    ),
}  # fmt: skip
METHODS["hiive"] = METHODS["mdptoolbox"]
NOTES = (
    "*time*: more than the limit; *memory*: more than 2 GB; in brackets: not tried, because a smaller grid was too",
    "much, or took so long that in proportion this one would; †: further from V* than was asked for.",
    "*Patched* is no setting of theirs: `ValueIteration` without `_boundIter`, which looks at every column of every",
    "matrix before the first iteration, and without pymdptoolbox's check of the model, which makes dense matrices. It",
    "shows what the iterations alone take.",
)
NAMES = {"polyak": "polyak", "mdptoolbox": "pymdptoolbox", "hiive": "mdptoolbox-hiive"}


# ----------------------------------------------------------------------------------------------------------- the model


def grid(states: int) -> dict[str, Any]:
    """A grid of so many cells: one goal in the corner (+1, the end), one cell in 20 a pit (−1, the end).

    A step goes where it is meant to with probability 0.8 and to either side with 0.1; whoever runs into the wall stays.
    Leaving a cell costs 0 to 0.02, drawn once per cell, so that no two ways are equally good: the peers' policy
    iteration does not end where some are.
    """
    rows = next(r for r in range(math.isqrt(states), 0, -1) if states % r == 0)
    columns, rng = states // rows, np.random.default_rng(states)
    pit, cost = rng.random(states) < 0.05, rng.uniform(0, 0.02, states)
    pit[[0, -1]] = False
    entry = np.where(pit, -1.0, 0.0)
    entry[-1] = 1.0
    terminal = entry != 0
    row, column = np.divmod(np.arange(states, dtype=np.int32), np.int32(columns))
    ways = [
        np.clip(row + down, 0, rows - 1) * columns + np.clip(column + right, 0, columns - 1)
        for down, right in ((0, -1), (1, 0), (0, 1), (-1, 0))
    ]
    successor = np.empty((states, 4, 3), np.int32)
    for a in range(4):
        for k, way in enumerate((a, (a + 1) % 4, (a + 3) % 4)):
            successor[:, a, k] = np.where(terminal, np.arange(states), ways[way])
    probability = np.broadcast_to(np.where(terminal[:, None, None], [1.0, 0.0, 0.0], [0.8, 0.1, 0.1]), successor.shape)
    reward = (probability * np.where(terminal[:, None, None], 0.0, entry[successor])).sum(2)
    reward -= np.where(terminal, 0.0, cost)[:, None]
    return {"successor": successor, "probability": probability, "reward": reward, "terminal": terminal}


# ------------------------------------------------------------------------------------- our side, a process of its own


def planner(method: str) -> Callable[..., Any]:
    """Our function for a method."""
    from polyak.mdp import planning

    return {
        "value iteration": planning.value_iteration,
        "Gauss-Seidel value iteration": planning.METHODS["gauss-seidel"],
        "modified policy iteration": planning.modified_policy_iteration,
        "policy iteration": planning.policy_iteration,
    }[method]


def solve(file: str, method: str, tolerance: str, seconds: str, values: str) -> None:
    """Solve the grid of a file twice or more, and print one line of JSON."""
    import scipy.sparse.linalg  # noqa: F401

    import polyak.mdp.compiled  # noqa: F401  both are imported by the first call that needs them
    from polyak import mdp

    with np.load(file, allow_pickle=False) as found:
        model = mdp.from_sparse(
            found["successor"], found["probability"], found["reward"], terminal=found["terminal"]
        )  # fmt: skip
    settings = {} if method == "policy iteration" else {"tol": float(tolerance)}
    times, marks, solution = list[float](), list[tuple[float, int]](), None
    while len(times) < 2 or sum(times) + min(times) < 1:
        marks.clear()
        signal.alarm(round(float(seconds)))
        began = time.perf_counter()
        solution = planner(method)(
            model, GAMMA, progress=lambda sweeps, _: marks.append((time.perf_counter(), sweeps)), **settings
        )
        times.append(time.perf_counter() - began)
        signal.alarm(0)
    assert solution is not None
    np.save(values, solution.V)
    row = {"seconds": times[0], "again": min(times[1:]), "runs": len(times), "sweeps": solution.sweeps}
    row |= {"bound": solution.bound, "sweep": per_sweep(marks), "transitions": model.transitions, "peak": peak()}
    packages = ("polyak", "jax", "numpy", "scipy")
    print(json.dumps(row | {"versions": {p: version(p) for p in packages}, "python": platform.python_version()}))


def per_sweep(marks: list[tuple[float, int]]) -> float | None:
    """Seconds per sweep between the first report of progress and the last before the certificate."""
    (began, first), (ended, last) = marks[0], marks[-2] if len(marks) > 2 else marks[0]
    return (ended - began) / (last - first) if last > first else None


def peak() -> int:
    """The most memory that this process has had, bytes; `ru_maxrss` holds the parent's too, from before exec."""
    status = Path("/proc/self/status")
    rows = status.read_text().splitlines() if status.exists() else []
    found = [int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM")]
    return found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ----------------------------------------------------------------------------------------------------------- measuring


def command(side: str, method: str, file: Path, tolerance: float, seconds: float, values: Path) -> list[str]:
    """The process that solves a model."""
    if side == "polyak":
        own = BENCH.parent / ".venv" / "bin" / "python"
        line = [str(own if own.exists() else sys.executable), str(BENCH / "planning.py"), "--solve", str(file), method]
        return [*line, str(tolerance), str(seconds), str(values)]
    line = [str(BENCH / "peers" / f".venv-{side}" / "bin" / "python"), str(BENCH / "peers" / "mdptoolbox_solve.py")]
    return [*line, str(file), method, str(GAMMA), str(tolerance), str(seconds), str(values)]


def run(line: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """The row that a process prints, or why it did not finish. It is ended when it has more than 2 GB."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    with (
        tempfile.TemporaryDirectory(dir=folder) as cache,
        open(folder / "stdout", "w+") as out,
        open(folder / "stderr", "w+") as err,
    ):
        environment["XDG_CACHE_HOME"] = cache  # an empty cache of compiled programs
        process = subprocess.Popen(line, stdout=out, stderr=err, env=environment, preexec_fn=limited)
        fat = False
        while (code := waited(process)) is None:
            fat = fat or resident(process.pid) > MEMORY
            if fat:
                process.kill()
        out.seek(0)
        err.seek(0)
        if code == 0:
            return json.loads(out.read().strip().splitlines()[-1])
        said = (err.read().strip().splitlines() or [""])[-1]
    if fat or "MemoryError" in said or "llocate" in said:
        return {"failed": "memory", "why": "more than 2 GB" if fat else said}
    if code == -signal.SIGALRM:
        return {"failed": "time", "why": f"more than {seconds:.0f} s"}
    return {"failed": "error", "why": said or f"exit status {code}"}


def limited() -> None:
    """A fence far outside of the limit on resident memory, for arrays that grow faster than they are watched."""
    resource.setrlimit(resource.RLIMIT_AS, (16 * 10**9, 16 * 10**9))


def waited(process: subprocess.Popen[Any]) -> int | None:
    """A process's exit status, or None after a twentieth of a second."""
    try:
        return process.wait(0.05)
    except subprocess.TimeoutExpired:
        return None


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 where that can't be known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def hopeless(rows: list[dict[str, Any]], states: int, seconds: float) -> dict[str, Any] | None:
    """Why a method need not be tried: a smaller grid was too much, or took so long that in proportion this one will."""
    if not rows:
        return None
    last = rows[-1]
    if "failed" in last:
        return last | {"tried": False}
    least = last["seconds"] * states / last["states"]
    if least <= seconds:
        return None
    why = f"at least {least:.0f} s, in proportion to the {last['seconds']:.0f} s of {last['states']:,} states"
    return {"failed": "time", "why": why, "tried": False}


def measure(sides: list[str], sizes: list[int], seconds: float) -> list[dict[str, Any]]:
    """All rows, the sides in turn at every size."""
    rows: list[dict[str, Any]] = []
    pairs = [(side, method) for side in sides for method in METHODS[side]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for states in sizes:
            file, values = folder / "model.npz", folder / "values.npy"
            np.savez(file, **grid(states))
            line = command("polyak", "modified policy iteration", file, 1e-9, 600, values)
            reference = run(line, 600, folder)
            if "failed" in reference:
                raise SystemExit(f"planning.py: no reference for {states} states: {reference['why']}")
            exact = np.load(values, allow_pickle=False)
            for side, method in pairs:
                before = [row for row in rows if (row["side"], row["method"]) == (side, method)]
                found = hopeless(before, states, seconds)
                if found is None:
                    found = run(command(side, method, file, TOLERANCE, seconds, values), seconds, folder)
                    if "failed" not in found:
                        found["error"] = float(np.abs(np.load(values, allow_pickle=False) - exact).max())
                rows.append(found | {"side": side, "method": method, "states": states})
                print(f"  {states:9,} {NAMES[side]:16} {method:44} {told(rows[-1])}", flush=True)
    return rows


def told(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    if "failed" in row:
        return f"did not finish: {row['why']}"
    found = f"{row['sweeps']} sweeps, error {row['error']:.1e}, {row['peak'] / 1e6:.0f} MB"
    again = f" (then {row['again']:.3g} s)" if "again" in row else ""
    return f"{row['seconds']:9.3g} s{again}, {found}"


# ------------------------------------------------------------------------------------------------------------ the page


def verdicts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each peer its largest grid, and there its fastest method beside our fastest; who finishes a million."""
    done = [row for row in rows if "failed" not in row and not wrong(row)]
    found: dict[str, Any] = {"million": {}, "bar": 10}
    for side in NAMES:
        largest = [row for row in done if row["side"] == side and row["states"] == SIZES[-1]]
        for row in largest:
            found["million"].setdefault(side, []).append([row["method"], row["seconds"], row["peak"]])
        for label, methods in (("", METHODS[side][:4]), (" " + PATCHED, (PATCHED,))):
            own = [row for row in done if row["side"] == side and row["method"] in methods]
            if side != "polyak" and own:
                found[side + label] = compared(own, done)
    return found


def compared(own: list[dict[str, Any]], done: list[dict[str, Any]]) -> dict[str, Any]:
    """A peer's fastest row at its largest grid, and ours."""
    states = max(row["states"] for row in own)
    theirs = min((row for row in own if row["states"] == states), key=lambda row: row["seconds"])
    ours = [row for row in done if row["side"] == "polyak" and row["states"] == states]
    if not ours:
        return {"states": states, "theirs": theirs["seconds"], "their_method": theirs["method"]}
    first = min(ours, key=lambda row: row["seconds"])
    again = min(ours, key=lambda row: row["again"])
    return {
        "states": states, "their_method": theirs["method"], "theirs": theirs["seconds"],
        "our_method": first["method"], "ours": first["seconds"], "ratio": theirs["seconds"] / first["seconds"],
        "our_method_again": again["method"], "ours_again": again["again"],
        "ratio_again": theirs["seconds"] / again["again"],
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""
    at, rows, found = results["machine"], results["rows"], results["verdicts"]
    lines = [
        "# Planning", "",
        f"Written by `{results['command']}` on {results['date']}; every figure is in [planning.json](planning.json).",
        f"{at['cores']} cores, {at['cpu']} {at['vector']}, no GPU.", "",
        "Grids with a slippery floor: 4 actions with 3 outcomes each, γ = 0.99, one goal, pits, a cost per cell. Made",
        "and imported outside of the clock; every method asked for 10⁻⁶, in a process of its own.", "",
        "## How `polyak` scales", "",
        "Seconds: first call with compilation from an empty cache / later call. The bound is the guaranteed one.", "",
        "| states | transitions | method | seconds | sweeps | µs per sweep | ns per transition | peak memory | bound |",
        "|---|---|---|---|---|---|---|---|---|",
        *[scaling(row) for row in rows if row["side"] == "polyak" and row["states"] in SCALING], "",
        "A sweep of modified policy iteration is mostly one under the present policy, a fourth of the transitions; one",
        "of policy iteration is one improvement. NumPy sweeps 1,000 states, compiled programs more.", "",
        "## Beside the peers", "",
        "Seconds; for `polyak` with compilation / without.", "", *side_by_side(rows), "",
        *NOTES, "",
        "## Where they end", "", *[ended(who, one) for who, one in found.items() if who.partition(" ")[0] in NAMES],
        *million(found["million"]), "",
        "## Largest errors", "", "‖V − V*‖∞ of the answers, against one within 10⁻⁹.", "", *errors(rows), "",
        "## Versions", "", *versions(rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def scaling(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['states']:,} | | {row['method']} | did not finish: {row['why']} | | | | | |"
    sweep = row["sweep"]
    micro = f"{sweep * 1e6:,.0f}" if sweep else ""
    whole = sweep and row["method"] in METHODS["polyak"][:2]
    nano = f"{sweep * 1e9 / row['transitions']:.2f}" if whole else ""
    return (
        f"| {row['states']:,} | {row['transitions']:,} | {row['method']} | {row['seconds']:.3g} / {row['again']:.3g} "
        f"| {row['sweeps']:,} | {micro} | {nano} | {row['peak'] / 1e6:,.0f} MB | {row['bound']:.1e} |"
    )


def side_by_side(rows: list[dict[str, Any]]) -> list[str]:
    """Seconds of every method at every size."""
    sizes = sorted({row["states"] for row in rows})
    lines = ["| | | " + " | ".join(f"{n:,}" for n in sizes) + " |", "|---" * (2 + len(sizes)) + "|"]
    for side, method in dict.fromkeys((row["side"], row["method"]) for row in rows):
        cells = {row["states"]: cell(row) for row in rows if (row["side"], row["method"]) == (side, method)}
        lines.append(f"| {NAMES[side]} | {method} | " + " | ".join(cells.get(n, "") for n in sizes) + " |")
    return lines


def cell(row: dict[str, Any]) -> str:
    if "failed" in row:
        return row["failed"] if row.get("tried", True) else f"({row['failed']})"
    return f"{row['seconds']:.3g}" + (f" / {row['again']:.3g}" if "again" in row else "") + "†" * wrong(row)


def wrong(row: dict[str, Any]) -> bool:
    """Whether an answer is further from V* than was asked for, and than the reference's own error explains."""
    return row["error"] > 1.1 * TOLERANCE


def ended(side: str, verdict: dict[str, Any]) -> str:
    """Where a peer ends, in a sentence."""
    peer, _, label = side.partition(" ")
    who = NAMES[peer] + (f", {label}" if label else "")
    if "ratio" not in verdict:
        return f"- {who}: up to {verdict['states']:,} states."
    bar = "" if label else f" (bar 10×: {'met' if verdict['ratio'] >= 10 else 'missed'})"
    return (
        f"- {who}: up to {verdict['states']:,} states, in {verdict['theirs']:.3g} s by {verdict['their_method']}. "
        f"There `polyak` takes {verdict['ours']:.3g} s with compilation ({verdict['our_method']}), "
        f"{verdict['ratio']:.1f}× faster{bar}, and {verdict['ours_again']:.3g} s without "
        f"({verdict['our_method_again']}), {verdict['ratio_again']:.1f}×."
    )


def million(found: dict[str, Any]) -> list[str]:
    """Who finishes a million states within the limits."""
    lines = ["", "A million states within 2 GB and the limit on time:"]
    for side, rows in found.items():
        done = "; ".join(f"{method} in {seconds:.3g} s and {size / 1e6:,.0f} MB" for method, seconds, size in rows)
        lines.append(f"- {NAMES[side]}: {done}.")
    return lines if found else []


def errors(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | | largest error | at |", "|---|---|---|---|"]
    for side, method in dict.fromkeys((row["side"], row["method"]) for row in rows):
        done = [r for r in rows if (r["side"], r["method"]) == (side, method) and "failed" not in r]
        if done:
            worst = max(done, key=lambda row: row["error"])
            lines.append(f"| {NAMES[side]} | {method} | {worst['error']:.1e} | {worst['states']:,} states |")
    return lines


def versions(rows: list[dict[str, Any]]) -> list[str]:
    newest = {row["side"]: row for row in rows if "versions" in row}
    return [
        f"- {NAMES[side]}: " + ", ".join(f"{k} {v}" for k, v in row["versions"].items()) + f", Python {row['python']}"
        for side, row in newest.items()
    ]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench/planning.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sides", nargs="*", metavar="SIDE", help=f"default: all ({', '.join(NAMES)})")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="numbers of states")
    parser.add_argument("--seconds", type=float, default=120, help="limit on one solution (default 120)")
    chosen = parser.parse_args(arguments)
    unknown = [side for side in chosen.sides if side not in NAMES]
    if unknown:
        parser.error(f"there is no side {unknown[0]!r}: there are {', '.join(NAMES)}")
    at, old = machine(), json.loads(OUT.read_text()) if OUT.exists() else {}
    sides = [side for side in NAMES if side in (chosen.sides or NAMES)]
    kept = old["rows"] if old.get("machine") == at else []
    new = measure(sides, sorted(chosen.sizes), chosen.seconds)
    taken = {(row["side"], row["states"]) for row in new}
    rows = [row for row in kept if (row["side"], row["states"]) not in taken] + new
    rows.sort(key=lambda row: (list(NAMES).index(row["side"]), row["states"]))
    results = {
        "command": " ".join(["python bench/planning.py", *arguments]), "date": datetime.date.today().isoformat(),
        "machine": at, "gamma": GAMMA, "tolerance": TOLERANCE, "seconds": chosen.seconds, "memory": MEMORY,
        "verdicts": verdicts(rows), "rows": rows,
    }  # fmt: skip
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    OUT.with_suffix(".md").write_text(page(results))
    print("\n" + page(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--solve"]:
        solve(*sys.argv[2:])
    else:
        main(sys.argv[1:])
