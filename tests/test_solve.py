"""`polyak solve`: what it prints and writes is what the planner found; every mistake is one sentence."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from polyak import solving
from polyak.errors import PolyakError, RunError
from polyak.mdp import METHODS, from_gymnasium
from test_cli import refused, run

LAKE = ["value-iteration", "FrozenLake-v1"]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_methods_are_those_of_the_planner() -> None:
    assert tuple(METHODS) == solving.METHODS


@pytest.mark.parametrize(
    ("words", "without"),
    [(["solve", "--help"], ["jax", "numpy"]), (["solve", "value-iterration", "FrozenLake-v1"], ["jax"])],
)
def test_help_and_mistakes_answer_at_once(words: list[str], without: list[str]) -> None:
    code = f"import sys; from polyak.cli import main; main({words!r}); print({{*{without!r}}} & set(sys.modules))"
    begun = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{time.monotonic() - begun:.2f} s")
    assert found.stdout.splitlines()[-1] == "set()"


def test_help_names_every_method() -> None:
    out = " ".join(run("solve", "--help")[1].split()).replace("- ", "-")  # words are broken at their hyphens
    for method in METHODS:
        assert method in out


def test_a_solution_is_printed_and_written(tmp_path: Path) -> None:
    code, out, err = run("solve", *LAKE, "--gamma", "0.99")
    assert (code, err) == (0, "")
    model = from_gymnasium("FrozenLake-v1")
    found = METHODS["value-iteration"](model, 0.99, tol=1e-6)
    first, value, sweeps, page = out.splitlines()
    assert first == f"FrozenLake-v1: 16 states, 4 actions, {model.transitions} transitions"
    assert value == f"start value {found.start_value:.9f}"
    assert re.fullmatch(rf"{found.sweeps:,} sweeps in [\d.]+ s, error at most {found.bound:.3g}", sweeps)
    assert page == "runs/solve/value-iteration_FrozenLake-v1_1/solution.html"
    place = tmp_path / "runs" / "solve" / "value-iteration_FrozenLake-v1_1"
    assert sorted(p.name for p in place.iterdir()) == ["solution.html", "solution.json", "solution.npz"]
    with np.load(place / "solution.npz", allow_pickle=False) as arrays:
        for name in ("V", "Q", "policy", "errors"):
            assert np.array_equal(arrays[name], getattr(found, name), equal_nan=True), name
    said = json.loads((place / "solution.json").read_text())
    wanted = {"method": LAKE[0], "env": LAKE[1], "gamma": 0.99, "tol": 1e-6, "states": 16, "sweeps": found.sweeps}
    assert wanted.items() <= said.items()
    assert (said["start_value"], said["bound"]) == (found.start_value, found.bound)
    assert said["versions"].keys() >= {"polyak", "numpy", "python", "gymnasium"}
    assert said["command"].startswith("polyak")


def test_the_next_solution_gets_the_next_folder() -> None:
    for n in (1, 2):
        assert f"policy-iteration_FrozenLake-v1_{n}/" in run("solve", "Policy_Iteration", "FrozenLake-v1")[1]


@pytest.mark.parametrize("method", [m for m in METHODS if m != "finite-horizon"])
def test_every_method_finds_the_same_value(method: str, tmp_path: Path) -> None:
    tol = [] if method in solving.EXACT else ["--tol", "1e-9"]
    code, out, err = run("solve", method, "FrozenLake-v1", *tol, "--out", "here")
    assert (code, err) == (0, "")
    exact = METHODS["policy-iteration"](from_gymnasium("FrozenLake-v1"), 0.99).start_value
    said = json.loads((tmp_path / "here" / "solution.json").read_text())
    assert said["start_value"] == pytest.approx(exact, abs=1e-7)
    assert out.splitlines()[-1] == "here/solution.html"


def test_a_finite_horizon(tmp_path: Path) -> None:
    assert run("solve", "finite-horizon", "FrozenLake-v1", "--horizon", "20", "--gamma", "1", "--out", "here")[0] == 0
    said = json.loads((tmp_path / "here" / "solution.json").read_text())
    found = METHODS["finite-horizon"](from_gymnasium("FrozenLake-v1"), 20)
    assert (said["horizon"], said["tol"], said["start_value"]) == (20, None, found.start_value)
    with np.load(tmp_path / "here" / "solution.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["policy"], found.policy)


def test_environment_arguments_arrive(tmp_path: Path) -> None:
    assert run("solve", *LAKE, "--env-kwargs", "is_slippery:False", "--out", "dry")[0] == 0
    assert json.loads((tmp_path / "dry" / "solution.json").read_text())["start_value"] == pytest.approx(0.99**5)
    assert json.loads((tmp_path / "dry" / "solution.json").read_text())["env_kwargs"] == {"is_slippery": False}


def test_a_compiled_world(tmp_path: Path) -> None:
    code, out, err = run("solve", "value-iteration", "jax:GridWorld-v0", "--env-kwargs", "slip:0.2", "--out", "maze")
    assert (code, err) == (0, "")
    assert "35 states, 4 actions" in out
    assert "jax:GridWorld-v0" in (tmp_path / "maze" / "solution.html").read_text("utf-8")


def test_a_world_that_was_made_of_a_model(tmp_path: Path) -> None:
    assert run("solve", *LAKE, "--out", "a")[0] == run("solve", LAKE[0], "jax:FrozenLake-v1", "--out", "b")[0] == 0
    a, b = (json.loads((tmp_path / name / "solution.json").read_text()) for name in "ab")
    assert a["start_value"] == b["start_value"]


def test_a_full_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    code, out, err = run("solve", *LAKE, "--out", "full")
    assert (code, out) == (4, "")
    assert err == "polyak: full is not empty; choose a new name, for instance --out full_2\n"
    (tmp_path / "full_2").mkdir()
    assert "--out full_3" in run("solve", *LAKE, "--out", "full")[2]
    assert run("solve", *LAKE, "--out", "full_2")[0] == 0, "an empty folder will do"
    assert "is a file" in run("solve", *LAKE, "--out", "full/thesis.tex")[2]
    assert run("solve", *LAKE, "--out", "full/thesis.tex/x")[0] == 4


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "solve needs a method and an environment"),
        (["value-iteration"], "polyak solve value-iteration FrozenLake-v1"),
        (["value-iterration", "FrozenLake-v1"], "did you mean 'value-iteration'?"),
        (["prioritized-sweeping", "FrozenLake-v1"], "did you mean 'prioritised-sweeping'?"),
        (["FrozenLake-v1", "value-iteration"], "the method comes first: polyak solve value-iteration FrozenLake-v1"),
        (["value-iteration", "FrozenLak-v1"], "did you mean 'FrozenLake-v1'?"),
        (["value-iteration", "jax:GridWorld-v1"], "did you mean 'GridWorld-v0'?"),
        (["value-iteration", "CartPole-v1"], "no transition table"),
        (["value-iteration", "jax:CartPole-v1"], "can't be enumerated"),
        ([*LAKE, "--gamma", "1.5"], "--gamma is 1.5, and must lie between 0 and 1"),
        ([*LAKE, "--gamma", "-0.1"], "--gamma is -0.1, and must lie between 0 and 1"),
        ([*LAKE, "--gamma", "high"], "must be a number"),
        ([*LAKE, "--tol", "0"], "--tol is 0, and must be larger than 0"),
        ([*LAKE, "--tol", "inf"], "must be larger than 0"),
        (["policy-iteration", "FrozenLake-v1", "--tol", "1e-3"], "policy-iteration takes no --tol"),
        ([*LAKE, "--gama", "0.9"], "did you mean --gamma?"),
        ([*LAKE, "--horizon", "9"], "--horizon is for finite-horizon"),
        (["finite-horizon", "FrozenLake-v1"], "--horizon 100"),
        (["finite-horizon", "FrozenLake-v1", "--horizon", "0"], "must be at least 1"),
        ([*LAKE, "--env-kwargs", "slippery:1"], "could not be made with"),
        ([*LAKE, "--allow-import", "nowhere_to_be_found"], "is it installed here?"),
        ([*LAKE, "more"], "does not take 'more'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(words: list[str], part: str, tmp_path: Path) -> None:
    assert part in refused("solve", *words)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_from_python_mistakes_are_errors_too() -> None:
    with pytest.raises(PolyakError, match="there is no method"):
        solving.solve("simplex", "FrozenLake-v1")
    Path("x").mkdir()
    Path("x/y").touch()
    with pytest.raises(RunError, match="is not empty"):
        solving.solve(*LAKE, out=Path("x"))


# ------------------------------------------------------------------------------------------------------------ progress


def test_the_share_of_the_way_is_measured_in_orders_of_magnitude() -> None:
    meter = solving.Meter("x", 1e-6, shown=False)
    meter(1, 1.0)
    assert [meter.share(b) for b in (1.0, 1e-3, 1e-6, 1e-9)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert meter.share(float("nan")) == meter.share(float("inf")) == meter.share(0.0) == 0.0


SLOW = """
import time
from polyak import cli, solving
solving.PATIENCE = 0.0
from polyak import mdp as planning
quick = planning.METHODS['value-iteration']
def slow(model, gamma, *, progress=None, **options):
    if progress is not None:
        for sweep in range(1, {sweeps}):
            progress(sweep, 0.5 ** sweep)
            time.sleep(0.02)
    return quick(model, gamma, **options)
planning.METHODS['value-iteration'] = slow
raise SystemExit(cli.main(['solve', 'value-iteration', 'FrozenLake-v1']))
"""


def spoken(process: "subprocess.Popen[bytes]", terminal: int, until: str = "\0") -> str:
    """What a process writes on a terminal, up to a word or its end."""
    seen = b""
    while until.encode() not in seen:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux's word for the end of a pseudo-terminal
            break
        if not part:
            break
        seen += part
    return seen.decode("utf-8", "replace")


def started(sweeps: int) -> "tuple[subprocess.Popen[bytes], int]":
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(sweeps=sweeps)], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def test_a_terminal_sees_how_far_it_is() -> None:
    process, terminal = started(20)
    seen = spoken(process, terminal)
    assert process.wait(timeout=60) == 0
    assert re.search(r"\d+ sweeps", seen) and "error ≤" in seen
    assert "solution.html" in seen
    os.close(terminal)


def test_ctrl_c_ends_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    process, terminal = started(10_000)
    spoken(process, terminal, "error ≤")
    process.send_signal(signal.SIGINT)
    rest = spoken(process, terminal)
    assert process.wait(timeout=60) == 130
    assert rest.rstrip().endswith("polyak: interrupted")
    assert "Traceback" not in rest
    assert not (tmp_path / "runs").exists()
    os.close(terminal)
