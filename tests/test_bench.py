"""The acceptance benchmarks: what they measure, how rows and parts pass, and how rows run side by side."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

import leaderboard  # noqa: E402
import measures  # noqa: E402
import parts  # noqa: E402
import scaling  # noqa: E402
import speed  # noqa: E402

ROWS: dict[str, dict[str, Any]] = {row["id"]: row for row in json.loads((BENCH / "rows.json").read_text())}
MATRIX = [f"P{n:02}" for n in (*range(1, 6), *range(10, 32), 40, 41, 50, 51, 60, 61, 62, 63)]


def run_folder(tmp_path: Path, episodes: list[tuple[float, int, int]], n_envs: int, columns: str = "r,l,t,env") -> Path:
    """A run of one seed with these training episodes (return, length, environment)."""
    (tmp_path / "seed_0").mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"run": {"n_envs": n_envs}}))
    n = columns.count(",") + 1
    lines = [",".join([f"{r:.6f}", str(length), "0.5", str(env)][:n]) for r, length, env in episodes]
    (tmp_path / "seed_0" / "monitor.csv").write_text("\n".join(["#{}", columns, *lines]) + "\n")
    return tmp_path


def log_of(returns: list[float], ends: list[int], envs: list[int]) -> measures.Log:
    return measures.Log(np.array(returns), np.array(ends), np.array(envs))


# --------------------------------------------------------------------------------------------------------- metrics


def test_lengths_add_up_to_ends(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [(1, 3, 1), (2, 4, 0), (3, 2, 1), (4, 6, 0)], 2)
    log = measures.training(folder, 0)
    assert log.returns.tolist() == [1, 2, 3, 4]
    assert log.envs.tolist() == [1, 0, 1, 0]
    assert log.ends.tolist() == [6, 8, 10, 20]  # 3, 4, 5 and 10 steps of two environments


def test_a_file_that_names_no_environment_serves_where_there_is_one(tmp_path: Path) -> None:
    old = "r,l,t"
    one = measures.training(run_folder(tmp_path, [(1, 3, 0), (2, 4, 0)], 1, old), 0)
    assert one.ends.tolist() == [3, 7]
    two = measures.training(run_folder(tmp_path, [(1, 3, 0), (2, 4, 0)], 2, old), 0)
    assert measures.last_episodes(two, 2) == 1.5
    with pytest.raises(SystemExit, match="which environment"):
        measures.moving_mean(two, 2, 100, 1, 1)


def test_t100_is_the_mean_of_the_last_episodes() -> None:
    log = log_of(list(range(150)), list(range(1, 151)), [0] * 150)
    assert measures.last_episodes(log) == np.mean(range(50, 150))
    with pytest.raises(SystemExit, match="150 training episodes, and 151"):
        measures.last_episodes(log, 151)


def test_the_last_steps_count_episodes_by_their_end() -> None:
    log = log_of([1, 2, 3, 4], [100, 150, 151, 200], [0] * 4)
    assert measures.last_steps(log, 200, 50) == 3.5  # the one that ended at 150 lies outside
    assert measures.last_steps(log, 199, 50) == 2.5
    with pytest.raises(SystemExit, match="no training episode"):
        measures.last_steps(log, 1000, 50)


def test_a_row_of_t_ma_is_the_mean_of_the_latest_episodes() -> None:
    log = log_of([10, 20, 30, 50], [4, 6, 10, 16], [0, 1, 0, 1])
    # Rows at 4, 8, 12, 16: environment 0 shows 10, 10, 30, 30; environment 1 nothing, 20, 20, 50.
    assert measures.moving_mean(log, 2, 16, 4, 4) == np.mean([10, 15, 25, 40])
    assert measures.moving_mean(log, 2, 19, 4, 2) == np.mean([25, 40])  # 19 steps hold no fifth row
    with pytest.raises(SystemExit, match="before the first"):
        measures.moving_mean(log, 2, 16, 2, 8)
    with pytest.raises(SystemExit, match="needs 5 rows"):
        measures.moving_mean(log, 2, 16, 4, 5)


@pytest.mark.parametrize("seed", range(5))
def test_t_ma_is_what_a_loop_over_steps_finds(seed: int) -> None:
    """SLM-Lab's definition, taken literally: step by step, a row whenever the clock says so."""
    draw = np.random.default_rng(seed)
    n, steps, every, rows = 3, 600, 15, 20
    left = draw.integers(1, 40, n)
    latest, table = np.full(n, np.nan), []
    returns, ends, envs = [], [], []
    for frame in range(n, steps + 1, n):
        left -= 1
        for i in np.flatnonzero(left == 0):
            latest[i], left[i] = draw.normal(), draw.integers(1, 40)
            returns.append(latest[i])
            ends.append(frame)
            envs.append(int(i))
        if frame % every == 0:
            table.append(latest.copy())
    expected = np.mean([np.nanmean(row) for row in table[-rows:]])
    assert measures.moving_mean(log_of(returns, ends, envs), n, steps, every, rows) == pytest.approx(expected)


def test_evaluations_are_read_where_the_run_made_them(tmp_path: Path) -> None:
    assert measures.evaluated(measures.evaluations(tmp_path, 0), 300, 2) is None
    (tmp_path / "seed_0").mkdir()
    arrays = {"timesteps": [100, 200, 300], "results": [[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]]}
    arrays["successes"] = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    np.savez(tmp_path / "seed_0" / "evaluations.npz", **{k: np.array(v) for k, v in arrays.items()})
    found = measures.evaluations(tmp_path, 0)
    assert measures.evaluated(found, 300, 2) == 9
    assert measures.evaluated(found, 300, 2, last=2) == 7
    assert measures.succeeded(found, 300, 2) == 0.5
    for other in ((400, 2, 1), (300, 3, 1), (300, 2, 4)):  # other steps, other episodes, too few evaluations
        assert measures.evaluated(found, *other) is None


def test_the_metric_of_a_trained_run_needs_no_model(tmp_path: Path) -> None:
    """Three environments side by side on a real run: the ends that lengths give are those of the log of the run."""
    import polyak

    fields: dict[str, Any] = {"rollout_length": 32, "batch_size": 32, "epochs": 1}
    run = polyak.train(
        "ppo", "CartPole-v1", steps=2000, n_envs=3, fields=fields, preset=None, out=tmp_path / "run", quiet=True,
        tensorboard=False, capture_video=False, eval_freq=0, eval_episodes=2, log_freq=96,
    )  # fmt: skip
    log = measures.training(run.path, 0)
    assert set(log.envs) == {0, 1, 2}
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    counted = [(row["step"], row["time/episodes"]) for row in rows if "time/episodes" in row]
    assert counted[-1][1] == len(log.ends) > 20
    assert [(step, int((log.ends <= step).sum())) for step, _ in counted] == counted
    assert measures.evaluated(measures.evaluations(run.path, 0), run.summary["steps"], 2) is not None


def test_ratios_put_random_at_0_and_the_better_variant_at_1() -> None:
    part = {"random": 10.0, "kl": [20.0, 40.0], "clip": [50.0, 70.0]}  # best 60
    assert measures.ratios([part], "kl", "clip") == pytest.approx([0.2, 0.6])
    other = {"random": 0.0, "kl": [1.0, 1.0], "clip": [0.5, 0.5]}  # best 1
    assert measures.ratios([part, other], "kl", "clip") == pytest.approx([0.6 / 0.75, 0.8 / 0.75])


# ------------------------------------------------------------------------------------------------------ rows and parts


def result(passed: bool, normalised: float = 1.0, stage: int = 1, centre: float = 0.0) -> dict[str, Any]:
    return {"passed": passed, "stage": stage, "decided": passed or stage == 2, "normalised": normalised, "iqm": centre}


def test_the_matrix_is_complete() -> None:
    assert {leaderboard.parent(name) for name in ROWS} == {*MATRIX, "J1", "J2"}
    for name, row in ROWS.items():
        assert row["direction"] in ("higher", "lower", "abs")
        assert row["tier"].split("/")[0] in leaderboard.TIERS, name
        assert ("preset" in row) + ("variants" in row) + ("missing" in row) + ("script" in row) + ("parts" in row) == 1


def test_every_preset_of_a_row_fits_its_agent() -> None:
    """A row whose agent is there, with presets for its environment, finds the one it names, of fields that exist."""
    from polyak.presets import presets
    from polyak.runs.config import AGENTS

    for name, row in ROWS.items():
        if ("preset" in row or "variants" in row) and row["agent"].lower() in AGENTS:
            assert leaderboard.lacking(row) == "" or not presets(row["agent"], row["env"]), name


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "preset" in row or "variants" in row])
def test_a_row_that_lacks_nothing_makes_a_plan(name: str) -> None:
    import run

    from polyak.runs.plan import plan

    row = ROWS[name]
    if row["env"].startswith("LunarLander"):
        pytest.importorskip("Box2D")
    for preset in row.get("variants", {"": row.get("preset")}).values():
        if leaderboard.lacking(row) == "":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # v4 of MuJoCo's environments
                made = plan(**run.settings(row, preset), seeds=5)
            assert made.preset == preset and made.preset_source
            assert made.steps - made.iterations * made.iteration_steps < made.steps / 50
            if "last" in row:
                assert made.eval_freq * row["last"] < made.steps


def test_a_row_passes_where_every_part_does() -> None:
    found: dict[str, Any] = {"P24-HalfCheetah": result(True, 1.3)}
    assert leaderboard.whole("P24", ROWS, found) is None
    found["P24-Hopper"] = result(False, 0.75)
    whole = leaderboard.whole("P24", ROWS, found)
    assert whole is not None
    assert (whole.passed, whole.first, whole.entry) == (False, False, 1.0)  # (1.25 + 0.75) / 2
    found["P24-Hopper"] = result(True, 0.95, stage=2)
    whole = leaderboard.whole("P24", ROWS, found)
    assert whole is not None and whole.passed and not whole.first


def test_the_agent_without_hindsight_must_score_lower() -> None:
    found = {"P60-success": result(True), "P60-return": result(True, centre=-1.6), "P60-without": {"iqm": -40.0}}
    whole = leaderboard.whole("P60", ROWS, found)
    assert whole is not None and whole.passed and whole.entry == 1.0
    whole = leaderboard.whole("P60", ROWS, found | {"P60-without": {"iqm": -1.5}})
    assert whole is not None and not whole.passed


def compared(kl: list[float], clip: list[float]) -> dict[str, Any]:
    variants = {"kl": [{"scores": kl}], "clip": [{"scores": clip}]}
    return {"variants": variants, "random": {"mean": 0.0}}


def test_variants_are_compared_from_three_environments_on() -> None:
    good, bad = compared([9.0] * 5, [10.0] * 5), compared([4.0] * 5, [10.0] * 5)
    names = leaderboard.parts(ROWS, "P29")
    assert len(names) == 7
    assert leaderboard.whole("P29", ROWS, dict.fromkeys(names[:2], good)) is None
    whole = leaderboard.whole("P29", ROWS, dict.fromkeys(names[:3], good))
    assert whole is not None and whole.passed and whole.first and "0.900" in whole.text and "3 of 7" in whole.text
    whole = leaderboard.whole("P29", ROWS, {name: bad if i else good for i, name in enumerate(names)})
    assert whole is not None and not whole.passed and whole.entry == 0.0


def test_a_gate_needs_the_mean_and_half_of_the_rows() -> None:
    rows = {f"P{i}": {"id": f"P{i}", "tier": "S/M", "direction": "higher"} for i in range(4)}
    rows["J1"] = {"id": "J1", "tier": "own", "direction": "higher"}
    scores = [result(True, 1.2), result(True, 1.1, 2), result(False, 0.8)]
    found = {name: scores[i] for i, name in enumerate(list(rows)[:3])}
    gate = leaderboard.gates(rows, found)["S"]
    assert (gate.run, gate.of, gate.passed, gate.first) == (3, 4, 2, 1)
    assert gate.entry == pytest.approx(3.1 / 3) and not gate.holds  # only one of three at stage 1
    found["P1"] = result(True, 1.1)
    assert leaderboard.gates(rows, found)["S"].holds
    assert not leaderboard.gates(rows, {})["S"].holds


def test_progress_is_read_from_the_rows_of_a_run(tmp_path: Path) -> None:
    row = {"id": "P9", "steps": 1000}
    assert leaderboard.progress(row, tmp_path) is None
    folder = tmp_path / "P9" / "stage1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    lines = [{"seed": s, "step": step, "time/fps": 50.0} for step in (100, 200) for s in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"seed": 0, "st')
    found = leaderboard.progress(row, tmp_path)
    assert found == {"done": 1000, "of": 5000, "steps_per_s": 50.0, "hours_left": pytest.approx(4000 / 50 / 3600)}


def test_the_page_has_every_row_once(tmp_path: Path) -> None:
    text = leaderboard.page(ROWS, tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for name in {*MATRIX, *ROWS}:
        assert sum(line.startswith(f"| {name} |") for line in lines) == 1, name
    assert len({line.count("|") for line in lines if line.startswith("| P")}) == 1
    (tmp_path / "P18.json").write_text((BENCH / "results" / "P18.json").read_text())
    (tmp_path / "unfinished.json").write_text(
        json.dumps({"P19": {"done": 10, "of": 40, "steps_per_s": 2.0, "hours_left": 2.5}})
    )
    text = leaderboard.page(ROWS, tmp_path)
    assert "[P18](results/P18.json)" in text and "**passed** at stage 1" in text
    assert "unfinished: 10 of 40 steps of all seeds; about 2.5 h left at 2 steps/s" in text


def test_the_committed_page_is_the_one_of_the_results() -> None:
    """Rows that are under way or lack an agent change by themselves; those with a result don't."""
    written = (BENCH / "leaderboard.md").read_text().splitlines()
    found = leaderboard.gathered(ROWS, BENCH / "results")
    for name in (name for name, row in ROWS.items() if name in found and "parts" not in row):
        assert leaderboard.row_line(name, ROWS, found, {}) in written, f"{name}: python bench/run.py --leaderboard"


# ----------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of its own with two small rows, which share the scripts."""
    bench = tmp_path / "repo" / "bench"
    (bench / "results").mkdir(parents=True)
    for name in ("run.py", "measures.py", "leaderboard.py"):
        (bench / name).write_text((BENCH / name).read_text())
    small = {"agent": "PPO", "env": "jax:CartPole-v1", "preset": "default", "metric": "E-det", "episodes": 4}
    small |= {"bar": 1, "direction": "higher", "published": "", "published_sd": None, "grade": "own", "tier": "own"}
    rows = [small | {"id": "A", "steps": 1000}, small | {"id": "B", "steps": 1000, "env": "CartPole-v1"}]
    (bench / "rows.json").write_text(json.dumps(rows))
    return bench.parent


def command(copy: Path, *words: str) -> list[str]:
    return [sys.executable, "-W", "ignore", str(copy / "bench" / "run.py"), *words]


@pytest.mark.full
def test_rows_side_by_side(copy: Path) -> None:
    done = subprocess.run(command(copy, "--jobs", "2"), cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("A", "B"):
        assert "reaches the bar" in done.stdout
        found = json.loads((copy / "bench" / "results" / f"{name}.json").read_text())
        assert found["passed"] and len(found["stages"][0]["scores"]) == 5
        assert found["stages"][0]["command"] == f"python bench/run.py {name}"
        assert (copy / "bench" / "runs" / f"{name}.log").exists()
    page = (copy / "bench" / "leaderboard.md").read_text()
    assert page.count("**passed** at stage 1") == 2
    # A second time: nothing is left; by name: measured again, from the files alone.
    assert subprocess.run(command(copy), cwd=copy, check=False).returncode == 0
    for path in (copy / "bench" / "runs" / "A" / "stage1" / "checkpoints").rglob("*.safetensors"):
        path.unlink()
    done = subprocess.run(command(copy, "A"), cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "A: IQM" in done.stdout, done.stderr
    # Elsewhere, where the run folders are not: what is kept stands, until the row is another one, or `--anew`.
    shutil.rmtree(copy / "bench" / "runs")
    kept = (copy / "bench" / "results" / "A.json").read_text()
    done = subprocess.run(command(copy, "A"), cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not (copy / "bench" / "runs" / "A").exists(), done.stderr
    assert json.loads((copy / "bench" / "results" / "A.json").read_text())["stages"] == json.loads(kept)["stages"]
    done = subprocess.run(command(copy, "--anew", "A"), cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (copy / "bench" / "runs" / "A").exists(), done.stderr
    again = json.loads((copy / "bench" / "results" / "A.json").read_text())["stages"]
    assert [stage["state_hash"] for stage in again] == [json.loads(kept)["stages"][0]["state_hash"]]


def test_a_kept_stage_is_that_of_the_same_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    row, stages = {"id": "A", "steps": 10}, [{"scores": [1.0]}, {"scores": [2.0]}]
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    assert run.kept_stage(row, 1) is None
    (tmp_path / "A.json").write_text(json.dumps({"row": row, "stages": stages}))
    assert [run.kept_stage(row, k) for k in (1, 2, 3)] == [*stages, None]
    assert run.kept_stage(row | {"steps": 20}, 1) is None
    (tmp_path / "A.json").write_text(json.dumps({"row": row, "variants": {"kl": stages[:1]}}))
    assert [run.kept_stage(row, 1, name) for name in ("kl", "clip")] == [stages[0], None]


@pytest.mark.full
def test_an_interruption_stops_all_rows_and_loses_nothing(copy: Path) -> None:
    rows = json.loads((copy / "bench" / "rows.json").read_text())
    long = [row | {"steps": 400_000, "env": "CartPole-v1", "preset": "cleanrl"} for row in rows]
    (copy / "bench" / "rows.json").write_text(json.dumps(long))
    parent = subprocess.Popen(command(copy, "--jobs", "2", "A", "B"), cwd=copy, stdout=subprocess.PIPE, text=True)
    runs = [copy / "bench" / "runs" / name / "stage1" for name in ("A", "B")]
    until = time.monotonic() + 120
    while time.monotonic() < until and not all((run / "metrics.jsonl").exists() for run in runs):
        time.sleep(0.2)
    os.kill(parent.pid, signal.SIGINT)
    text, _ = parent.communicate(timeout=120)
    assert parent.returncode == 130 and "the same command goes on" in text
    for name in ("A", "B"):
        assert "stopped at" in (copy / "bench" / "runs" / f"{name}.log").read_text()
    under_way = json.loads((copy / "bench" / "results" / "unfinished.json").read_text())
    assert all(0 < under_way[name]["done"] < 2_000_000 for name in ("A", "B"))
    assert "unfinished:" in (copy / "bench" / "leaderboard.md").read_text()


@pytest.mark.full
def test_bad_words_are_answered(copy: Path) -> None:
    done = subprocess.run(command(copy, "P99"), cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "there is no row 'P99': there are A, B" in done.stderr
    rows = json.loads((copy / "bench" / "rows.json").read_text())
    rows = [rows[0] | {"preset": "absent"}, {**rows[1], "missing": "a GPU"}]
    rows[1].pop("preset")
    (copy / "bench" / "rows.json").write_text(json.dumps(rows))
    done = subprocess.run(command(copy, "A"), cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the preset 'absent' of PPO for jax:CartPole-v1" in done.stdout
    done = subprocess.run(command(copy, "B"), cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "B can't be run here: a GPU" in done.stderr


# ----------------------------------------------------------------------------------------------------------- speed


def operations(function: Any, *shapes: tuple[int, ...]) -> float:
    return parts.flops(jax.make_jaxpr(function)(*[jnp.zeros(shape) for shape in shapes]).jaxpr)


def test_products_are_counted_through_loops_branches_and_calls() -> None:
    product = 2 * 3 * 4 * 5
    assert operations(jnp.matmul, (3, 4), (4, 5)) == product
    assert operations(jax.jit(jnp.matmul), (3, 4), (4, 5)) == product
    assert operations(jnp.matmul, (7, 3, 4), (7, 4, 5)) == 7 * product

    def looped(x: Any, y: Any) -> Any:
        return jax.lax.fori_loop(0, 6, lambda i, total: total + x @ y, jnp.zeros((3, 5)))

    assert operations(looped, (3, 4), (4, 5)) == 6 * product

    def branched(x: Any, y: Any) -> Any:
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: (x @ y) @ (x @ y).T @ (x @ y))

    assert operations(branched, (3, 4), (4, 5)) == 3 * product + 2 * 3 * 3 * 5 + 2 * 3 * 3 * 5

    def convolved(image: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert operations(convolved, (2, 6, 6, 3), (3, 3, 3, 8)) == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 3)


def test_every_job_is_described_and_runs_against_somebody() -> None:
    jobs = speed.jobs()
    assert set(jobs) == set(speed.HOW)
    for name, job in jobs.items():
        sides = speed.sides(job)
        assert sides[0] == "polyak" and job["against"] in sides[1:] and len(set(sides)) == len(sides), name


def test_our_side_of_every_job_can_be_planned() -> None:
    for name, job in speed.jobs().items():
        if "HalfCheetah" not in job["env"]:
            assert parts.planned(job).iterations > 0, name


def test_the_pages_say_what_was_measured() -> None:
    machine = {"cores": 2, "cpu": "a CPU", "vector": "AVX2", "system": "Linux"}
    row = {"parts_s": {"environments": 1e-4, "act": 5e-5, "update": 2e-3}, "iteration_steps": 1, "floor_s": 1e-3}
    limits = {"sac-halfcheetah": row | {"matmul_flop_per_s": 4e11, "update_flop": 4e8}}
    jobs = {"sac-halfcheetah": {"medians": {"polyak": 400.0}}}
    text = "\n".join(speed.limits_table({"limits": limits, "jobs": jobs}))
    assert "| 100 | 50 | 2,000 | 1,000 | 465 | 86% | 1,000 | 40% |" in text
    assert speed.limits_table({"jobs": jobs}) == []

    points = [{"x": 1, "fps": 1000.0}, {"x": 10, "fps": 5000.0}]
    found = {"machine": machine, "date": "today", "versions": {"jax": "1"}, "seeds": {"points": points}}
    assert "| time of one seed × | 1.0 | 2.0 |" in scaling.page(found)
    found["start"] = {"commands": {"ppo CartPole-v1": {"cold_s": 9.0, "warm_s": 3.0}}}
    assert "| `polyak train ppo CartPole-v1` | 9.0 | 3.0 |" in scaling.page(found)


def test_a_second_stage_of_variants_is_kept_where_it_was_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import run

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(run, "show", lambda: None)
    monkeypatch.setattr(run, "base", lambda row: {"mean": 0.0})
    row = {"id": "A", "variants": {"kl": "paper-kl", "clip": "paper-clip"}, "steps": 10}
    both = [{"seeds": [0], "scores": [1.0], "versions": {}}, {"seeds": [5], "scores": [3.0], "versions": {}}]
    kept = {"row": row, "variants": {"kl": both, "clip": both}}
    (tmp_path / "A.json").write_text(json.dumps(kept))
    again = run.measure(row, stage2=False)
    assert again["variants"] == kept["variants"] and again["stage"] == 2
    (tmp_path / "A.json").write_text(json.dumps(kept | {"variants": {"kl": both[:1], "clip": both[:1]}}))
    assert run.measure(row, stage2=False)["stage"] == 1
