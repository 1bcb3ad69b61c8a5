"""Ends of processes: SIGKILL at random instants (CT20), Ctrl-C and SIGTERM (PR6), two on one folder (K10, PR16)."""

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polyak.runs import checkpoint

SMALL = ("--no-preset", "--network", "16")
PPO = ("ppo", "CartPole-v1", (*SMALL, "--rollout-length", "64", "--epochs", "2"))
DQN = ("dqn", "CartPole-v1", (*SMALL, "--buffer-size", "512", "--learning-starts", "64", "--eps-steps", "500"))
SAC = ("sac", "Pendulum-v1", (*SMALL, "--buffer-size", "512", "--learning-starts", "64", "--batch-size", "16"))
ENDLESS = ("train", *PPO[:2], *PPO[2], "--steps", "100_000_000", "--save-freq", "10_000", "--eval-freq", "0")
JOBS = {
    "ppo": (*PPO[:2], (*PPO[2], "--steps", "20_480", "--save-freq", "1_024")),
    "dqn": (*DQN[:2], (*DQN[2], "--steps", "6_000", "--save-freq", "400")),
    "sac": (*SAC[:2], (*SAC[2], "--steps", "2_400", "--save-freq", "200")),
}


@pytest.fixture(scope="module")
def torture() -> ModuleType:
    """bench/torture.py, which `make torture` runs."""
    path = Path(__file__).parents[2] / "bench" / "torture.py"
    spec = importlib.util.spec_from_file_location("polyak_torture", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["polyak_torture"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", JOBS)
def test_a_killed_run_ends_as_if_nobody_had_killed_it(name: str, torture: ModuleType, tmp_path: Path) -> None:
    outcome = torture.torture(torture.Job(*JOBS[name]), 1, tmp_path, random.Random(0))
    assert outcome.faults == []
    assert outcome.kills == 1 and outcome.starting == 0 and outcome.runs >= 1


@pytest.mark.full
@pytest.mark.parametrize("name", JOBS)
def test_a_run_killed_often_and_while_starting(name: str, torture: ModuleType, tmp_path: Path) -> None:
    outcome = torture.torture(torture.Job(*JOBS[name]), 3, tmp_path, random.Random(5))
    assert outcome.faults == []
    assert outcome.kills == 3


def test_torture_sees_a_difference(torture: ModuleType, tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.log").write_text("")
        text = f'{{"state_hash": "{value}", "steps": 1, "eval": {{}}, "exact": true}}'
        (tmp_path / name / "summary.json").write_text(text)
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"seed": 0, "time": {value}}}\n')
    outcome = torture.Outcome("x")
    torture.compare(tmp_path / "b", torture.ended(tmp_path / "a"), outcome)
    assert outcome.faults == ["b: state_hash differs"] and not outcome.equal
    torture.table([outcome])
    torture.write([outcome], 0, tmp_path / "torture.json")
    assert '"equal": false' in (tmp_path / "torture.json").read_text()


# ---------------------------------------------------------------------------------------------------- signals


class Process:
    """A run without end in a process group of its own."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "polyak.cli", *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, start_new_session=True, **pipes)

    def until(self, condition: Any, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.02)

    def ended(self) -> tuple[int, str, float]:
        """(exit code, stderr, seconds that it took from now)."""
        began = time.monotonic()
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err, time.monotonic() - began

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def endless(tmp_path: Path) -> Any:
    """A run that goes on and on, in the middle of its training."""
    run = Process(*ENDLESS, "--out", str(tmp_path / "run"), "--no-capture-video")
    try:
        run.until(lambda: len(list((tmp_path / "run" / "checkpoints").glob("ck.[1-9]*"))) > 0)
        yield run
    finally:
        run.close()


def group(pid: int) -> list[int]:
    """The living processes of a process group."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(endless: Process, tmp_path: Path) -> None:
    run = tmp_path / "run"
    second = subprocess.run(
        [sys.executable, "-m", "polyak.cli", "resume", str(run)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 4 and second.stderr.count("\n") == 1
    assert f"{run} is in use by process {endless.process.pid}" in second.stderr
    before = max(checkpoint.generations(run))
    endless.process.send_signal(signal.SIGINT)
    code, err, seconds = endless.ended()
    assert code == 130 and seconds < 10
    assert f"go on with: polyak resume {run}" in err.splitlines()[-1]
    assert "Traceback" not in err
    generation = checkpoint.load(run, notify=print)
    assert generation.number > before
    stopped = re.search(r"stopped at ([\d,]+) of", err)
    assert stopped is not None and generation.step == int(stopped[1].replace(",", ""))
    assert group(endless.process.pid) == []


def test_sigterm_saves_and_exits_with_0(endless: Process, tmp_path: Path) -> None:
    before = max(checkpoint.generations(tmp_path / "run"))
    endless.process.send_signal(signal.SIGTERM)
    code, err, seconds = endless.ended()
    assert code == 0 and seconds < 10
    assert f"go on with: polyak resume {tmp_path / 'run'}" in err.splitlines()[-1]
    assert checkpoint.load(tmp_path / "run", notify=print).number > before
    assert group(endless.process.pid) == []


@pytest.mark.full
def test_a_second_signal_ends_at_once(endless: Process, tmp_path: Path) -> None:
    endless.process.send_signal(signal.SIGINT)
    time.sleep(0.002)
    endless.process.send_signal(signal.SIGINT)
    code, err, seconds = endless.ended()
    assert code in (130, -signal.SIGINT) and seconds < 10
    assert "Traceback" not in err
    checkpoint.load(tmp_path / "run", notify=print)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_compiles(number: signal.Signals, tmp_path: Path) -> None:
    run = Process(*ENDLESS, "--out", str(tmp_path / "run"))
    try:
        run.until((tmp_path / "run" / "checkpoints" / "ck.0").exists)
        run.process.send_signal(number)
        code, err, _ = run.ended()
    finally:
        run.close()
    assert code == (130 if number == signal.SIGINT else 0)
    assert "polyak resume" in err and "Traceback" not in err


@pytest.mark.full
def test_two_that_start_at_once_have_one_winner(tmp_path: Path) -> None:
    words = ("train", *PPO[:2], *PPO[2], "--steps", "640", "--eval-episodes", "1", "--out", str(tmp_path / "run"))
    runs = [Process(*words, "--no-capture-video") for _ in range(2)]
    found = sorted((run.ended()[:2] for run in runs), key=lambda pair: pair[0])
    assert [code for code, _ in found] == [0, 4]
    assert re.search(r"is in use by process \d+|already holds a run", found[1][1].splitlines()[-1])
    assert (tmp_path / "run" / "summary.json").exists()
