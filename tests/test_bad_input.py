"""Bad input as a user meets it: one sentence, a non-zero exit code, no traceback, and nothing saved is lost."""

import contextlib
import errno
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

import polyak
from polyak import DQN, PPO, SAC, cli
from polyak.envs.host import episode_seed
from polyak.errors import EnvError, PolyakError, RunError
from polyak.runs import checkpoint, disk, folder
from polyak.runs.config import agent_from
from polyak.runs.session import Interrupted

pytestmark = pytest.mark.reuses_keys  # one run is trained several times, with its own keys each time

QUIET = ("--no-progress", "--quiet", "--no-capture-video", "--no-tensorboard-log")
TINY = (
    "--no-preset", "--network", "16", "--rollout-length", "32", "--batch-size", "32", "--epochs", "2", "--steps", "192",
    "--save-freq", "32", "--eval-freq", "0", "--eval-episodes", "1",
)  # fmt: skip
ON_POLICY = PPO(rollout_length=32, batch_size=32, epochs=2, network=(16,))
SILENT = {"progress": False, "quiet": True, "capture_video": False, "tensorboard": False}
EPISODE, AT = 2, 5  # where the rogue goes wrong: in the third episode of training, at its fifth step


OBSERVED = {"nan": np.nan, "outside": 70.0, "a little outside": 7.0}


class Rogue(gym.Env):
    """Well-behaved but in one episode, known by its seed, at one step."""

    observation_space = gs.Box(-1, 1, (2,), np.float32)
    action_space = gs.Discrete(2)

    def __init__(self, wrong: str = "", seed: int = -1) -> None:
        self.wrong, self.seed, self.bad, self.t = wrong, seed, False, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.bad, self.t = seed == self.seed, 0
        return self._obs(), {}

    def _obs(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        obs, reward, now = self._obs(), 1.0, self.bad and self.t == AT
        if now and self.wrong == "raise":
            raise ValueError("the door is\nstuck")
        if now and self.wrong == "hang":
            time.sleep(60)
        if now and self.wrong in OBSERVED:
            obs[1] = OBSERVED[self.wrong]
        if now and self.wrong == "reward":
            reward = float("nan")
        return obs, reward, self.t >= 11, False, {}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, and Rogue-v0 in the registry."""
    monkeypatch.chdir(tmp_path)
    gym.register("Rogue-v0", entry_point=Rogue)
    yield tmp_path
    gym.registry.pop("Rogue-v0")


def run(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()


def refused(*words: str, code: int = 2) -> str:
    """The sentence of a command that fails: the last line, and no traceback above it."""
    found, _, err = run(*words)
    assert found == code, err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert lines[-1].startswith("polyak: ") and not any(line.startswith("polyak: ") for line in lines[:-1])
    return lines[-1].removeprefix("polyak: ")


def stop_after(steps: int) -> Any:
    return lambda callback: callback.num_timesteps < steps


# ---------------------------------------------------------------------------------------------------- before a run


REFUSED = {
    "unknown environment": (["ppo", "CartPol-v1", "--steps", "4096"], "'CartPol-v1'", "did you mean 'CartPole-v1'?"),
    "of another package": (["ppo", "Nowhere-v3", "--steps", "4096"], "there is no environment", "--allow-import PKG"),
    "unknown version": (["ppo", "CartPole-v9", "--steps", "4096"], "'CartPole-v9'", "CartPole-v"),
    "unknown world": (["ppo", "jax:CartPol-v1", "--steps", "4096"], "jax:CartPol-v1", "did you mean 'CartPole-v1'?"),
    "unknown source": (["ppo", "jaxx:CartPole-v1", "--steps", "4096"], "'jaxx:CartPole-v1'", "did you mean 'jax'?"),
    "unknown agent": (["poo", "CartPole-v1", "--steps", "4096"], "no algorithm 'poo'", "did you mean 'ppo'?"),
    "unknown field": (["ppo", "CartPole-v1", "--gama", "1"], "no --gama", "did you mean --gamma?"),
    "a peer's field": (["ppo", "CartPole-v1", "--n-epochs", "1"], "no --n-epochs", "here it is --epochs"),
    "unknown preset": (["ppo", "CartPole-v1", "--preset", "cleanr"], "cleanr", "cleanrl"),
    "unknown argument": (["ppo", "CartPole-v1", "--env-kwargs", "gravty:3"], "gravty", "CartPole-v1"),
    "DQN on a Box": (["dqn", "Pendulum-v1", "--steps", "4096"], "DQN can't take actions Box(1,)", "SAC"),
    "TD3 on Discrete": (["td3", "CartPole-v1", "--steps", "4096"], "TD3 can't take actions Discrete(2)", "DQN"),
    "too few steps": (["ppo", "CartPole-v1", "--no-preset", "--steps", "2047"], "less than one iteration", "2048"),
    "no steps": (["ppo", "Acrobot-v1", "--no-preset"], "steps is missing", "steps=100_000"),
    "steps 0": (["ppo", "CartPole-v1", "--steps", "0"], "steps is 0", "at least 1"),
    "negative steps": (["ppo", "CartPole-v1", "--steps", "-5"], "steps is -5", "at least 1"),
    "n_envs 0": (["ppo", "CartPole-v1", "--n-envs", "0"], "n_envs is 0", "at least 1"),
    "log_freq 0": (["ppo", "CartPole-v1", "--log-freq", "0"], "log_freq is 0", "at least 1"),
    "save_freq 0": (["ppo", "CartPole-v1", "--save-freq", "0"], "save_freq is 0", "at least 1"),
    "n_eval_envs 0": (["ppo", "CartPole-v1", "--n-eval-envs", "0"], "n_eval_envs is 0", "at least 1"),
    "negative eval_freq": (["ppo", "CartPole-v1", "--eval-freq", "-1"], "eval_freq is -1", "at least 0"),
    "the same seed twice": (["ppo", "CartPole-v1", "--seeds", "3,3"], "[3, 3]", "different"),
    "negative seed": (["ppo", "CartPole-v1", "--seed", "-1"], "seed is -1", "at least 0"),
    "gamma above 1": (["ppo", "CartPole-v1", "--gamma", "1.5"], "gamma is 1.5", "[0, 1]"),
    "batches that don't fit": (["ppo", "CartPole-v1", "--no-preset", "--steps", "4096", "--batch-size", "100"],
                               "batch_size 100", "must divide"),
    "a style that is not": (["ppo", "CartPole-v1", "--log-style", "clearnl"], "clearnl", "cleanrl"),
    "compiled, but it is not": (["ppo", "CartPole-v1", "--crank", "compiled"], "not written in JAX", "crank='host'"),
    "a normalised table": (["q-learning", "CliffWalking-v1", "--normalise", "--steps", "100"],
                           "QLearning is neither", "network"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_run_is_refused_before_anything_is_written(name: str, place: Path) -> None:
    words, *parts = REFUSED[name]
    sentence = refused("train", *words, *QUIET)
    for part in parts:
        assert part in sentence
    assert not list(place.iterdir())


@pytest.mark.parametrize("name", ["steps", "n_envs", "log_freq", "eval_episodes", "seed", "seeds"])
@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), float("inf"), True, "7"])
def test_counts_are_whole_numbers_in_python_too(name: str, value: Any, place: Path) -> None:
    if name == "seeds" and value == "7":
        value = ["7"]
    with pytest.raises(PolyakError, match=f"{name.rstrip('s')}.* is .*must be a whole number"):
        polyak.train(ON_POLICY, "CartPole-v1", **({"steps": 192} | {name: value}), **SILENT)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"lr": {"start": 1e-3}}, "lr is .*, and must be a number or a schedule"),
        ({"lr": [1e-3]}, "lr is .*, and must be a number or a schedule"),
        ({"lr": "fast"}, "lr is 'fast', and must be a number or a schedule"),
        ({"tau": (0.1, 0.2)}, "tau is .*, and must be a number"),
        ({"batch_size": "64"}, "batch_size is '64', and must be a whole number"),
        ({"double": "yes"}, "double is 'yes', and must be True or False"),
        ({"double": 1}, "double is 1, and must be True or False"),
    ],
)
def test_values_of_the_wrong_kind_in_python(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PolyakError, match=sentence):
        DQN(**fields)
    with pytest.raises(PolyakError, match=r"horizon is 2\.5, and must be a whole number"):
        polyak.REINFORCE(horizon=2.5)  # pyright: ignore[reportArgumentType]


def test_a_field_may_be_written_as_in_the_configuration() -> None:
    written = {"lr": {"schedule": "Linear", "start": 1e-3, "end": 0.0, "fraction": 1.0}}
    assert agent_from("dqn", written, "CartPole-v1", None, None)[0].lr == polyak.Linear(1e-3)
    with pytest.raises(PolyakError, match=r"lr is .*, which is no schedule"):
        agent_from("dqn", {"lr": {"schedule": "Linera", "start": 1e-3}}, "CartPole-v1", None, None)


def test_unknown_fields_in_python() -> None:
    with pytest.raises(PolyakError, match="PPO has no gama; did you mean 'gamma'"):
        PPO(gama=0.9)  # pyright: ignore[reportCallIssue]
    with pytest.raises(PolyakError, match="DQN has no learning_rate; here it is lr"):
        DQN(learning_rate=0.1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(PolyakError, match="fields go with an algorithm's name"):
        polyak.train(PPO(), "CartPole-v1", steps=4096, fields={"lr": 0.1})
    with pytest.raises(PolyakError, match="is not an environment"):
        polyak.train(PPO(), 7, steps=4096)


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in ("ale_py", "envpool") else find(name, *rest)
    )
    assert refused("train", "dqn", "ale:Pong", *QUIET).endswith('not installed: pip install "polyak[atari]"')
    words = ("train", "ppo", "envpool:Pong-v5", "--steps", "4096", *QUIET)
    assert refused(*words).endswith('not installed: pip install "polyak[envpool]"')

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise gym.error.DependencyNotInstalled('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`')

    monkeypatch.setattr(gym, "make", missing)
    words = ("train", "ppo", "HalfCheetah-v5", "--steps", "4096", *QUIET)
    assert refused(*words).endswith('pip install "polyak[mujoco]"')


# ---------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("raise", "step raised ValueError: the door is stuck"),
        ("nan", "observation[1] is nan"),
        ("outside", "observation[1] is 70"),
        ("reward", "reward is float (nan)"),
    ],
)
def test_a_fault_of_an_environment_is_named_kept_and_can_be_run_again(wrong: str, what: str, place: Path) -> None:
    seed = episode_seed(0, 0, EPISODE)
    kwargs = ("--env-kwargs", f"wrong:{wrong}", f"seed:{seed}")
    sentence = refused("train", "ppo", "Rogue-v0", *TINY, *kwargs, "--save-freq", "1", "--out", "run", *QUIET, code=3)
    assert f"Rogue-v0: environment 0, episode {EPISODE}, seed {seed}, step {AT}: " in sentence
    assert what in sentence and "run/repro.json" in sentence and "polyak resume run" in sentence
    repro = json.loads((place / "run" / "repro.json").read_text())
    assert (repro["env"], repro["seed"], repro["step"], len(repro["actions"])) == ("Rogue-v0", seed, AT, AT)
    env = Rogue(**repro["kwargs"])
    env.reset(seed=repro["seed"])
    for action in repro["actions"][:-1]:
        assert np.isfinite(env.step(action)[1])
    with contextlib.suppress(ValueError):
        obs, reward, *_ = env.step(repro["actions"][-1])
        assert not (env.observation_space.contains(obs) and np.isfinite(reward))
    assert all(intact for _, intact, _ in checkpoint.verify(place / "run"))
    # It goes wrong again, and says so again, instead of trying for ever.
    assert what in refused("resume", "run", *QUIET, code=3)
    assert all(intact for _, intact, _ in checkpoint.verify(place / "run"))


def test_a_space_that_is_a_little_too_narrow_is_said_once(place: Path) -> None:
    env = ("--env-kwargs", "wrong:a little outside", f"seed:{episode_seed(0, 0, EPISODE)}")
    code, _, err = run("train", "ppo", "Rogue-v0", *TINY, *env, "--seeds", "2", "--out", "run", *QUIET[2:])
    assert code == 0
    said = "Rogue-v0: observation[1] is 7.0, outside its space's bounds [-1.0001, 1.0001]; such observations are taken"
    assert err.count(said) == 1


def test_a_fault_at_the_very_start_and_in_evaluation(place: Path) -> None:
    def fails(at: str) -> Any:
        class Failing(Rogue):
            def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
                if seed == episode_seed(0, 0, 0, at):
                    raise RuntimeError("no such level")
                return super().reset(seed=seed)

        return Failing

    for at, rollouts in (("train", 0), ("eval", 6)):
        with pytest.raises(EnvError, match=r"reset raised RuntimeError: no such level.*repro\.json.*polyak resume"):
            polyak.train(ON_POLICY, fails(at), steps=192, eval_freq=0, eval_episodes=1, out=at, **SILENT)
        assert json.loads((place / at / "repro.json").read_text())["seed"] == episode_seed(0, 0, 0, at)
        steps = [checkpoint.load(place / at, notify=print).step for _ in checkpoint.generations(place / at)[:1]]
        assert steps == ([32 * rollouts] if rollouts else [])


@pytest.mark.parametrize("where", ["step", "reset"])
def test_a_hanging_environment_is_named_and_its_run_ended(where: str, place: Path) -> None:
    seed = episode_seed(0, 0, EPISODE)
    (place / "hanging.py").write_text(
        "import time\n"
        "import gymnasium as gym, numpy as np\n"
        "class Hanging(gym.Env):\n"
        "    observation_space, action_space = gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        f"        self.bad, self.t = seed == {seed}, 0\n"
        f"        time.sleep(60 if self.bad and {where == 'reset'} else 0)\n"
        "        return np.zeros(1, np.float32), {}\n"
        "    def step(self, action):\n"
        "        self.t += 1\n"
        f"        time.sleep(60 if self.bad and self.t == {AT} else 0)\n"
        "        return np.zeros(1, np.float32), 0.0, self.t >= 40, False, {}\n"
        "gym.register('Hang-v0', entry_point=Hanging)\n"
    )
    words = ["train", "ppo", "Hang-v0", *TINY, "--allow-import", "hanging", "--deadline", "1", "--out", "run", *QUIET]
    found = subprocess.run(
        [sys.executable, "-m", "polyak.cli", *words], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(place)},
    )  # fmt: skip
    assert found.returncode == 3
    step = AT if where == "step" else 0
    place_of = f"Hang-v0: environment 0, episode {EPISODE}, seed {seed}, step {step}, in {where}: no answer for 1 s"
    assert place_of in found.stderr.splitlines()[-1]
    assert "the last checkpoint stands" in found.stderr and "Traceback" not in found.stderr
    assert checkpoint.load(place / "run", notify=print).step == 64  # of 80 steps that went well


def test_parameters_that_became_nan_are_named_and_never_saved(place: Path) -> None:
    agents = {
        "CartPole-v1": replace(ON_POLICY, lr=1e30, max_grad_norm=None),
        "Pendulum-v1": SAC(rollout_length=2, updates_per_step=0.5, batch_size=16, buffer_size=64, learning_starts=32,
                           network=(16,), lr=1e30),
    }  # fmt: skip
    for env, agent in agents.items():
        seldom = {"log_freq": 10_000}
        for name, often in (("saving", {"save_freq": 1, **seldom}), ("logging", {"log_freq": 1}), ("neither", seldom)):
            out = place / f"{env}-{name}"
            with pytest.raises(PolyakError, match=r"diverged: .*/\w+ is not finite in seed 4, found at step \d"):
                polyak.train(agent, env, steps=1_920, seed=4, eval_freq=0, out=out, **often, **SILENT)
            saved = checkpoint.load(out, notify=print)
            for key, array in saved.arrays.items():
                finite = array.dtype.kind != "f" or "recent" in key or np.isfinite(array).all()
                assert finite, key


# ---------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `whole`, a finished run, and `cut` and `other`, which were stopped at checkpoint ck.4."""
    root = tmp_path_factory.mktemp("runs")
    options = {"steps": 192, "eval_freq": 0, "eval_episodes": 1, "save_freq": 32, **SILENT}
    polyak.train(ON_POLICY, "CartPole-v1", out=root / "whole", **options)
    other = replace(ON_POLICY, network=(8,))
    for name, agent in (("cut", ON_POLICY), ("other", other)):
        with pytest.raises(Interrupted):
            polyak.train(agent, "CartPole-v1", out=root / name, callbacks=[stop_after(96)], **options)
    return root


def newest(run: Path) -> Path:
    return run / "checkpoints" / f"ck.{max(checkpoint.generations(run))}"


def finished(run: Path) -> tuple[str, bool]:
    summary = json.loads((run / "summary.json").read_text())
    return summary["state_hash"], summary["exact"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign", "no manifest"])
def test_a_damaged_or_foreign_checkpoint_is_passed_over(damage: str, runs: Path, place: Path) -> None:
    shutil.copytree(runs / "cut", place / "run")
    ck = newest(place / "run")
    arrays = ck / "arrays.safetensors"
    if damage == "flip":
        data = bytearray(arrays.read_bytes())
        data[-5] ^= 1
        arrays.write_bytes(data)
    elif damage == "truncate":
        os.truncate(arrays, 100)
    elif damage == "no manifest":
        (ck / "MANIFEST.json").unlink()
    else:
        assert newest(runs / "other").name == ck.name
        shutil.rmtree(ck)
        shutil.copytree(newest(runs / "other"), ck)
    code, _, err = run("resume", "run", *QUIET)
    assert code == 0
    assert ck.name in err and "Traceback" not in err
    assert ("of another agent" if damage == "foreign" else "is damaged") in err
    assert finished(place / "run") == finished(runs / "whole")
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "rollout/ep_len_mean" in row]
    assert steps == sorted(set(steps))


def test_when_no_checkpoint_is_left_it_is_said_each_time(runs: Path, place: Path) -> None:
    shutil.copytree(runs / "cut", place / "run")
    metrics = (place / "run" / "metrics.jsonl").read_bytes()
    for ck in (place / "run" / "checkpoints").glob("ck.*"):
        os.truncate(ck / "arrays.safetensors", 10)
    for _ in range(2):  # they are set aside the first time, and it must not start from nothing the second time
        assert "no intact checkpoint" in refused("resume", "run", *QUIET, code=4)
    assert (place / "run" / "metrics.jsonl").read_bytes() == metrics
    assert len(list((place / "run" / "checkpoints").glob("ck.*.bad*"))) > 1


def test_a_folder_that_is_no_run_or_was_tampered_with(runs: Path, place: Path) -> None:
    (place / "empty").mkdir()
    assert "is not a run" in refused("resume", "empty", *QUIET, code=4)
    shutil.copytree(runs / "cut", place / "run")
    (place / "run" / "config.json").write_text('{"agent": ')
    assert "config.json cannot be read as JSON" in refused("resume", "run", *QUIET, code=4)
    assert checkpoint.generations(place / "run") == checkpoint.generations(runs / "cut")


def test_a_folder_in_use_is_refused(runs: Path, place: Path) -> None:
    shutil.copytree(runs / "cut", place / "run")
    before = sorted((place / "run").rglob("*"))
    with folder.Lock(place / "run"):
        for _ in range(2):
            assert f"run is in use by process {os.getpid()}" in refused("resume", "run", *QUIET, code=4)
    assert sorted((place / "run").rglob("*")) == before
    assert run("resume", "run", *QUIET)[0] == 0
    assert finished(place / "run") == finished(runs / "whole")
    words = ("train", "ppo", "CartPole-v1", *TINY, "--out", "run", *QUIET)
    assert re.search(r"already holds a run; .*`polyak resume run`.*`--out run_2`", refused(*words, code=4))


class Full(disk.Disk):
    """A disk on which nothing more fits, once it is `full`; small files, as metrics are, still do if `rows`."""

    full = True

    def __init__(self, rows: bool) -> None:
        self.rows = rows

    def free(self, path: Path) -> int:
        return 0 if self.full else 1 << 40

    def write(self, fd: int, data: disk.Buffer) -> int:
        if self.full and (not self.rows or len(data) > 1_000):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, data)


@pytest.mark.parametrize("rows", [True, False])
def test_a_disk_that_fills_up_costs_nothing_that_was_saved(
    rows: bool, runs: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "cut", place / "run")
    kept = checkpoint.generations(place / "run")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "fs", Full(rows))
        sentence = refused("resume", "run", *QUIET, code=4)
        _, _, err = run("resume", "run", *QUIET)
    assert "older ones are intact" in sentence or "cannot be" in sentence
    assert err.count("was not written") <= 2  # once in training, once at the end
    assert checkpoint.generations(place / "run") == kept
    assert all(intact for _, intact, _ in checkpoint.verify(place / "run"))
    assert not (place / "run" / "summary.json").exists()
    assert run("resume", "run", *QUIET)[0] == 0
    assert finished(place / "run") == finished(runs / "whole")


def test_a_disk_that_is_full_from_the_start(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train", "ppo", "CartPole-v1", *TINY, "--out", "run", *QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "fs", Full(rows=False))
        assert "No space left on device" in refused(*words, code=4)
    assert run(*words)[0] == 0


def test_a_disk_that_recovers_is_forgiven(
    runs: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Full(rows=True)
    full.full = False
    monkeypatch.setattr(disk, "fs", full)

    def fill(callback: Any) -> None:
        full.full = 64 <= callback.num_timesteps < 160

    options: dict[str, Any] = {"steps": 192, "eval_freq": 0, "eval_episodes": 1, "save_freq": 32, **SILENT}
    polyak.train(ON_POLICY, "CartPole-v1", out="run", callbacks=[fill], **options)
    assert finished(place / "run") == finished(runs / "whole")
    assert capsys.readouterr().err.count("was not written") == 1


def test_sentences_are_one_line_and_exit_codes_differ() -> None:
    assert (PolyakError("x").exit_code, EnvError("x").exit_code, RunError("x").exit_code) == (2, 3, 4)
