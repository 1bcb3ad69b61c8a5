"""Kill runs at random instants, resume them until they finish, and compare what they end with to runs never killed.

    python bench/torture.py                          25 kills over all jobs, about ten minutes on two cores
    python bench/torture.py --kills 200 --algo sac   as many as you like

A job's run is started, killed (SIGKILL, no warning) and resumed until its share of the kills is used up, then left to
finish. Every fifth kill comes while the process starts, imports and compiles; the others a moment after a checkpoint of
its own, so that the run gets ahead. Equal means: `state_hash`, the hash over all that the run is made of, the final
evaluation, and the rows of its metrics but for the clock's. Exit code 1 on any difference, or any traceback.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "torture.json"
QUIET = ("--quiet", "--no-progress", "--no-capture-video", "--no-tensorboard-log")
CLOCK = ("time", "time/fps", "time/time_elapsed")
PATIENCE = 300.0  # seconds for any one process; a run of these sizes takes ten


@dataclass(frozen=True)
class Job:
    """A run to torture: `polyak train ALGO ENV WORDS`."""

    algo: str
    env: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.algo} {self.env}"


JOBS = (
    Job("ppo", "CartPole-v1", ("--steps", "80_000", "--no-preset", "--save-freq", "2_048")),
    Job(
        "dqn", "CartPole-v1",
        ("--steps", "40_000", "--no-preset", "--buffer-size", "20_000", "--learning-starts", "500", "--save-freq",
         "1_000"),
    ),
    Job(
        "ppo", "HalfCheetah-v5",
        ("--steps", "30_720", "--no-preset", "--normalise", "--rollout-length", "512", "--save-freq", "512"),
    ),
    Job(
        "sac", "HalfCheetah-v5",
        ("--steps", "12_000", "--no-preset", "--network", "32,32", "--batch-size", "64", "--buffer-size", "10_000",
         "--learning-starts", "500", "--save-freq", "250"),
    ),
)  # fmt: skip


@dataclass
class Outcome:
    """What became of a job."""

    name: str
    kills: int = 0
    starting: int = 0  # of these, while the process was still starting
    runs: int = 0  # that were killed and finished; a run that ends before its kills are used up is followed by another
    expected: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        return not self.faults


class Life:
    """One process of a run, from its start to its end."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.folder, self.before = folder, newest(folder)
        self.log = folder.with_suffix(".log")
        self.resumes = words[0] == "resume"
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "polyak.cli", *words, *QUIET]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait_for_progress(self) -> bool:
        """Until it has written a checkpoint after its start; False where it ended before."""
        least = max(self.before, 0)  # ck.0 is the state before the first step
        end = time.monotonic() + PATIENCE
        while newest(self.folder) <= least and time.monotonic() < end:
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return self.process.poll() is None

    def kill(self) -> bool:
        """SIGKILL to it and all its children; False where it had ended already."""
        living = self.process.poll() is None
        if living:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return living

    def finish(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.kill()


def newest(folder: Path) -> int:
    """The number of the newest checkpoint, -1 where there is none."""
    matches = [re.fullmatch(r"ck\.(\d+)", path.name) for path in folder.glob("checkpoints/ck.*")]
    return max((int(match[1]) for match in matches if match), default=-1)


def words_of(job: Job, folder: Path) -> tuple[str, ...]:
    """The command that starts the run, or goes on with it once its configuration is on disk."""
    if (folder / "config.json").exists():
        return ("resume", str(folder))
    freq = ("--eval-freq", "0", "--eval-episodes", "5")
    return ("train", job.algo, job.env, *job.words, *freq, "--out", str(folder))


def ended(folder: Path) -> dict[str, Any]:
    """What a finished run is compared by."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # The means of losses are sums over chunks, whose lengths follow the clock.
    kept = [{k: v for k, v in row.items() if k not in CLOCK and not k.startswith("train/")} for row in rows]
    return {key: summary[key] for key in ("state_hash", "steps", "eval", "exact")} | {"metrics": kept}


def torture(job: Job, kills: int, root: Path, rng: random.Random) -> Outcome:
    """Kill the runs of one job so often, and compare each with the one that was never killed."""
    outcome, began = Outcome(job.name), time.monotonic()
    whole = root / f"{job.algo}-{job.env}-whole"
    code = Life(words_of(job, whole), whole).finish()
    if code != 0:
        outcome.faults.append(f"the run that nobody killed ended with {code}: {tail(whole)}")
        return outcome
    expected = ended(whole)
    outcome.expected = expected["state_hash"]
    while outcome.kills < kills and outcome.equal:
        outcome.runs += 1
        run = root / f"{job.algo}-{job.env}-{outcome.runs}"
        punish(job, run, kills, outcome, rng)
        compare(run, expected, outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def punish(job: Job, run: Path, kills: int, outcome: Outcome, rng: random.Random) -> None:
    """Start and kill one run again and again, until the kills are used up or it was faster; then let it finish."""
    while outcome.kills < kills and not (run / "summary.json").exists():
        life = Life(words_of(job, run), run)
        starting = outcome.kills % 5 == 2
        if starting:
            time.sleep(rng.uniform(0.2, 4.0))
        elif life.wait_for_progress():
            time.sleep(rng.uniform(0.0, 0.7))
        if life.kill():
            outcome.kills += 1
            outcome.starting += starting
        elif life.process.returncode != 0:
            outcome.faults.append(f"exit code {life.process.returncode}: {tail(run)}")
            return
    if not (run / "summary.json").exists() and (code := Life(words_of(job, run), run).finish()) != 0:
        outcome.faults.append(f"exit code {code}: {tail(run)}")


def compare(run: Path, expected: dict[str, Any], outcome: Outcome) -> None:
    """Note what differs between a run and the one that was never killed."""
    if "Traceback" in run.with_suffix(".log").read_text():
        outcome.faults.append(f"{run.name}: a traceback: {tail(run)}")
    if outcome.faults:
        return
    found = ended(run)
    outcome.faults += [f"{run.name}: {key} differs" for key in expected if found[key] != expected[key]]


def tail(run: Path) -> str:
    """The last lines that a run printed."""
    return " | ".join(run.with_suffix(".log").read_text(errors="replace").splitlines()[-3:])


def table(outcomes: Sequence[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="Killed, resumed, compared")
    for column in ("run", "kills", "while starting", "runs", "final state", "seconds"):
        shown.add_column(column, justify="left" if column in ("run", "final state") else "right")
    for o in outcomes:
        verdict = f"equal  {o.expected[:12]}" if o.equal else "; ".join(o.faults)
        row = (o.name, str(o.kills), str(o.starting), str(o.runs), verdict, f"{o.seconds:.0f}")
        shown.add_row(*row, style=None if o.equal else "red")
    Console().print(shown)


def write(outcomes: Sequence[Outcome], seed: int, path: Path) -> None:
    """bench/results/torture.json."""
    from importlib import metadata

    versions = {name: metadata.version(name) for name in ("polyak", "jaxlib", "gymnasium", "mujoco")}
    jobs = [asdict(outcome) | {"equal": outcome.equal} for outcome in outcomes]
    whole = {"seed": seed, "kills": sum(o.kills for o in outcomes), "equal": all(o.equal for o in outcomes)}
    path.write_text(json.dumps(whole | {"versions": versions, "jobs": jobs}, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="how many in all (25)")
    parser.add_argument("--algo", action="append", choices=sorted({job.algo for job in JOBS}), help="only these")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (0)")
    arguments = parser.parse_args(argv)
    jobs = [job for job in JOBS if arguments.algo is None or job.algo in arguments.algo]
    rng, outcomes, left = random.Random(arguments.seed), list[Outcome](), arguments.kills
    with tempfile.TemporaryDirectory(prefix="polyak-torture-") as root:
        for i, job in enumerate(jobs):
            share = -(-left // (len(jobs) - i))
            left -= share
            if share:
                print(f"{job.name}: {share} kills", flush=True)
                outcomes.append(torture(job, share, Path(root), rng))
    table(outcomes)
    write(outcomes, arguments.seed, RESULTS)
    return 0 if all(outcome.equal for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
