"""A run from start to summary: observing changes nothing (CT29), cuts leave no trace (CT19), numbers are raw (CT31)."""

import json
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces as gs

import polyak
from polyak import (
    A2C,
    C51,
    DDPG,
    DQN,
    PPO,
    REINFORCE,
    SAC,
    SARSA,
    TD,
    TD3,
    TQC,
    TRPO,
    ActorCritic,
    CrossQ,
    DynaQ,
    MonteCarlo,
    Normalised,
    QLearning,
)
from polyak.envs.host import HostVector, episode_seed
from polyak.errors import PolyakError, RunError
from polyak.runs import callbacks as cb
from polyak.runs import checkpoint, session
from polyak.runs.session import Interrupted

pytestmark = pytest.mark.reuses_keys  # one run is trained several times, with its own keys each time

SMALL = (16,)
ON_POLICY = PPO(rollout_length=32, batch_size=32, epochs=2, network=SMALL)
CLOCK = {"time", "time/fps", "time/time_elapsed"}  # what a clock decides
# Sums over chunks of iterations, whose lengths follow the clock: float32 sums differ in their last bits.
SUMS = ("train/",)


@dataclass(frozen=True)
class Case:
    """What is trained, and where it is cut: after so many environment steps of a seed's vector, or of the run."""

    agent: Any
    env: Any
    cuts: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "ppo": Case(ON_POLICY, "CartPole-v1", (37, 32), {"n_envs": 2, "seeds": 2, "steps": 256}),
    "ppo-lstm": Case(
        PPO(rollout_length=16, batch_size=16, epochs=2, network=SMALL, recurrent="lstm", memory_size=8, kl_coef=1.0,
            d_targ=0.01),
        "CartPole-v1", (37, 24), {"n_envs": 2, "steps": 256},
    ),
    "a2c": Case(A2C(rollout_length=8, network=SMALL), "CartPole-v1", (37, 32), {"n_envs": 2, "seeds": 2, "steps": 256}),
    "trpo": Case(
        TRPO(rollout_length=32, batch_size=32, critic_epochs=2, network=SMALL),
        "CartPole-v1", (37, 32), {"n_envs": 2, "seeds": 2, "steps": 256},
    ),
    "reinforce": Case(
        REINFORCE(rollout_length=16, horizon=10, discounted=True, baseline="value", network=SMALL), "CartPole-v1",
        (37, 32), {"n_envs": 2, "steps": 256},
    ),
    "actor-critic": Case(
        ActorCritic(rollout_length=8, network=SMALL), "Pendulum-v1", (50, 40), {"n_envs": 2, "steps": 256},
    ),
    "dqn": Case(
        DQN(rollout_length=4, batch_size=16, buffer_size=128, learning_starts=32, network=SMALL, eps_steps=150,
            target_update_interval=40),
        "CartPole-v1", (90, 51), {"steps": 240},
    ),
    "dqn-prioritised": Case(
        DQN(rollout_length=4, batch_size=16, buffer_size=128, learning_starts=32, network=SMALL, eps_steps=150,
            target_update_interval=40, prioritised=0.6, n_step=3, dueling=True),
        "CartPole-v1", (90, 51), {"steps": 240},
    ),
    "dqn-gru": Case(
        DQN(rollout_length=4, batch_size=16, buffer_size=128, learning_starts=32, network=SMALL, eps_steps=150,
            recurrent="gru", memory_size=8),
        "CartPole-v1", (90, 51), {"steps": 240},
    ),
    "sac-discrete": Case(
        SAC(rollout_length=2, updates_per_step=0.5, batch_size=16, buffer_size=64, learning_starts=32, network=SMALL),
        "CartPole-v1", (101, 60), {"steps": 240},
    ),
    "c51": Case(
        C51(rollout_length=4, batch_size=16, buffer_size=128, learning_starts=32, network=SMALL, eps_steps=150,
            target_update_interval=40),
        "CartPole-v1", (90, 51), {"steps": 240},
    ),
    "sac": Case(
        SAC(rollout_length=2, updates_per_step=0.5, batch_size=16, buffer_size=64, learning_starts=32, network=SMALL),
        "Pendulum-v1", (101, 60), {"steps": 240},
    ),
    "ddpg": Case(
        DDPG(batch_size=16, buffer_size=64, learning_starts=32, network=SMALL, noise="ou"),
        "Pendulum-v1", (101, 60), {"steps": 240},
    ),
    "td3": Case(
        TD3(rollout_length=3, batch_size=16, buffer_size=64, learning_starts=32, network=SMALL),
        "Pendulum-v1", (101, 60), {"steps": 240},
    ),
    "tqc": Case(
        TQC(n_quantiles=5, batch_size=16, buffer_size=64, learning_starts=32, network=SMALL),
        "Pendulum-v1", (101, 60), {"steps": 240},
    ),
    "crossq": Case(
        CrossQ(batch_size=16, buffer_size=64, learning_starts=32, network=SMALL, critic_network=SMALL,
               renorm_warmup=50),
        "Pendulum-v1", (101, 60), {"steps": 240},
    ),
    "q-learning": Case(QLearning(lr=0.5), "CliffWalking-v1", (151, 60), {"seeds": 2, "steps": 300}),
    "sarsa": Case(SARSA(n_step=3), "FrozenLake-v1", (60, 40), {"n_envs": 2, "steps": 240}),
    "td": Case(TD(lam=0.8), "FrozenLake-v1", (90, 51), {"steps": 240}),
    "monte-carlo": Case(MonteCarlo(), "FrozenLake-v1", (90, 51), {"steps": 240}),
    "dyna-q": Case(DynaQ(planning_steps=3), "CliffWalking-v1", (90, 51), {"steps": 240}),
    "normalised": Case(Normalised(ON_POLICY), "Pendulum-v1", (50, 40), {"n_envs": 2, "steps": 256}),
    "compiled": Case(ON_POLICY, "jax:CartPole-v1", (64, 64), {"n_envs": 2, "seeds": 2, "steps": 320}),
    "host crank": Case(ON_POLICY, "jax:CartPole-v1", (64, 64), {"n_envs": 2, "steps": 320, "crank": "host"}),
}  # fmt: skip


def trained(case: Case, out: Path, **changes: Any) -> polyak.Run:
    quiet = {"progress": False, "quiet": True, "capture_video": False, "tensorboard": False}
    steps = case.options["steps"]
    rhythm = {"log_freq": steps // 4, "eval_freq": steps // 2, "eval_episodes": 2, "save_freq": steps // 3}
    return polyak.train(case.agent, case.env, out=out, **{**quiet, **rhythm, **case.options, **changes})


def resumed(path: Path, **changes: Any) -> polyak.Run:
    quiet = {"progress": False, "quiet": True, "capture_video": False, "tensorboard": False}
    return polyak.resume(path, **{**quiet, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name ↦ that case's run without any interruption, trained once."""
    root, runs = tmp_path_factory.mktemp("whole"), {}

    def run(name: str) -> polyak.Run:
        if name not in runs:
            runs[name] = trained(CASES[name], root / name)
        return runs[name]

    return run


class Cut:
    """Sends this process SIGINT before the n-th step of training from now on, or crashes it there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.crash, step = -1, False, HostVector.step

        def cut(vector: HostVector, action: Any) -> Any:
            if vector.stream == "train":
                self.left -= 1
                if self.left == 0 and self.crash:
                    raise MemoryError
                if self.left == 0:
                    signal.raise_signal(signal.SIGINT)
            return step(vector, action)

        monkeypatch.setattr(HostVector, "step", cut)


def stops_after(steps: int) -> Any:
    """A callback that stops the run that many steps after its first chunk began."""
    seen: list[int] = []

    def stop(callback: Any) -> bool:
        seen.append(callback.num_timesteps)
        return callback.num_timesteps - seen[0] < steps

    return stop


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def assert_same_records(one: Path, two: Path, seeds: tuple[int, ...]) -> None:
    """Metrics, evaluations and training episodes are the same, but for the clock."""
    a, b = rows(one), rows(two)
    assert [(r["seed"], r["step"], sorted(r)) for r in a] == [(r["seed"], r["step"], sorted(r)) for r in b]
    for left, right in zip(a, b, strict=True):
        for tag in left:
            tolerance = 1e-5 if tag.startswith(SUMS) else 0
            assert left[tag] == pytest.approx(right[tag], rel=tolerance, abs=tolerance), tag
    for seed in seeds:
        left, right = (np.load(run / f"seed_{seed}" / "evaluations.npz") for run in (one, two))
        assert set(left) == set(right)
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])
        monitors = [(run / f"seed_{seed}" / "monitor.csv") for run in (one, two)]
        assert monitors[0].exists() == monitors[1].exists()
        if monitors[0].exists():
            texts = [[line.split(",")[:2] for line in m.read_text().splitlines()[1:]] for m in monitors]
            assert texts[0] == texts[1]


def best_step(run: Path) -> int:
    """The environment steps of the generation that is pinned as the best."""
    return checkpoint.load(run, number=checkpoint.best(run), notify=print).step


# ---------------------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_a_complete_folder(whole: Any) -> None:
    run = whole("ppo")
    assert {p.name for p in run.path.iterdir()} >= {
        "config.json", "command.txt", "system.json", "metrics.jsonl", "checkpoints", "summary.json", "report.html",
        "seed_0", "seed_1",
    }  # fmt: skip
    for seed in run.seeds:
        assert {p.name for p in (run.path / f"seed_{seed}").iterdir()} >= {"progress.csv", "monitor.csv"}
        found = np.load(run.path / f"seed_{seed}" / "evaluations.npz")
        assert found["timesteps"].tolist() == [128, 256]
        assert found["results"].shape == found["ep_lengths"].shape == (2, 2)
    assert not list(run.path.rglob("*.pkl"))
    assert all(intact for _, intact, _ in checkpoint.verify(run.path))


def test_the_summary_says_what_was_asked(whole: Any) -> None:
    summary = whole("ppo").summary
    assert (summary["algorithm"], summary["env"], summary["seeds"]) == ("PPO", "CartPole-v1", [0, 1])
    assert (summary["steps"], summary["exact"], summary["tier"]) == (256, True, 2)
    assert set(summary["eval"]) == {"iqm", "ci_low", "ci_high", "mean", "per_seed", "episodes"}
    assert summary["eval"]["mean"] == pytest.approx(np.mean(summary["eval"]["per_seed"]))
    assert summary["eval"]["episodes"] == 2 and len(summary["eval"]["per_seed"]) == 2
    assert summary["eval"]["ci_low"] <= summary["eval"]["iqm"] <= summary["eval"]["ci_high"]
    assert set(summary["time"]) >= {"fps", "compile_s", "total_s"}
    assert 0 < summary["time"]["compile_s"] < summary["time"]["total_s"]
    assert len(bytes.fromhex(summary["state_hash"])) == 32


def test_configuration_and_rows(whole: Any) -> None:
    run = whole("ppo")
    config = json.loads((run.path / "config.json").read_text())
    assert config["agent"]["fields"]["rollout_length"] == 32 and config["agent"]["defaults"]["rollout_length"] == 2048
    assert config["run"]["seeds"] == [0, 1] and config["run"]["log_freq"] == 64
    logged = [r for r in rows(run.path) if "rollout/ep_rew_mean" in r]
    assert [(r["seed"], r["step"]) for r in logged] == [(s, n) for n in (64, 128, 192, 256) for s in (0, 1)]
    assert {"train/loss", "time/episodes", "rollout/ep_len_mean"} <= logged[-1].keys()
    evaluated = [(r["seed"], r["step"]) for r in rows(run.path) if "eval/mean_reward" in r]
    assert evaluated == [(0, 128), (1, 128), (0, 256), (1, 256)]


def test_the_last_line_is_the_result(whole: Any) -> None:
    line = whole("ppo").last_line()
    assert line.startswith(f"IQM {whole('ppo').summary['eval']['iqm']:.2f} [") and "2 seeds × 2 episodes" in line
    assert line.endswith(str(whole("ppo").path))


OBSERVERS = [
    {"log_freq": 32, "eval_freq": 0, "save_freq": None, "tensorboard": True},
    {"log_freq": 1_000, "eval_freq": 64, "eval_episodes": 3, "n_eval_envs": 2, "save_freq": 64, "callbacks": [print]},
    {"log_freq": 100, "eval_freq": 1_000, "eval_episodes": 0, "save_freq": 1, "capture_video": True},
]


@pytest.mark.parametrize("changes", OBSERVERS, ids=["tensorboard", "callback", "video"])
def test_observing_changes_nothing(whole: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = trained(CASES["ppo"], tmp_path / "observed", **changes)
    assert run.summary["state_hash"] == whole("ppo").summary["state_hash"]
    films = list(run.path.glob("seed_0/videos/*"))
    assert bool(films) == bool(changes.get("capture_video"))
    assert bool(list(run.path.glob("seed_1/events.*"))) == bool(changes.get("tensorboard"))


def test_observing_changes_nothing_on_the_compiled_crank(whole: Any, tmp_path: Path) -> None:
    changes = {"log_freq": 64, "eval_freq": 0, "save_freq": 64, "callbacks": [lambda callback: None]}
    run = trained(CASES["compiled"], tmp_path / "observed", **changes)
    assert run.summary["state_hash"] == whole("compiled").summary["state_hash"]


def test_another_seed_is_another_run(whole: Any, tmp_path: Path) -> None:
    run = trained(CASES["ppo"], tmp_path / "other", seeds=[1, 2])
    assert run.seeds == (1, 2)
    assert run.summary["state_hash"] != whole("ppo").summary["state_hash"]
    # Seed 1 is itself, in whatever company.
    alone, among = (r.state(1) for r in (run, whole("ppo")))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), alone.params, among.params))


# ---------------------------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_cut_twice_equals_the_whole_one(
    name: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, path, expected = CASES[name], tmp_path / "cut", whole(name)
    by_signal = not case.env.startswith("jax:")
    cut = Cut(monkeypatch)
    cut.left = case.cuts[0] if by_signal else -1
    with pytest.raises(Interrupted, match=f"polyak resume {path}") as stopped:
        trained(case, path, callbacks=[] if by_signal else [stops_after(case.cuts[0])])
    assert stopped.value.exit_code == (130 if by_signal else 0)
    assert not (path / "summary.json").exists()
    cut.left = case.cuts[1] if by_signal else -1
    with pytest.raises(Interrupted):
        resumed(path, callbacks=[] if by_signal else [stops_after(case.cuts[1])])
    found = resumed(path)
    assert found.summary["state_hash"] == expected.summary["state_hash"]
    assert found.summary["exact"] is True
    assert found.summary["eval"] == expected.summary["eval"]
    assert_same_records(found.path, expected.path, found.seeds)
    assert best_step(found.path) == best_step(expected.path)


def test_a_style_of_tags_lasts_and_changes_nothing_else(whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    with pytest.raises(Interrupted):
        trained(CASES["ppo"], path, log_style="cleanrl", callbacks=[stops_after(100)])
    found = resumed(path)
    header, *lines = (path / "seed_0" / "progress.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines} == {"64", "128", "192", "256"}
    assert "charts/episodic_return" in header and "rollout/" not in header
    assert any("rollout/ep_rew_mean" in row for row in rows(path))  # metrics.jsonl keeps its own
    assert found.summary["state_hash"] == whole("ppo").summary["state_hash"]


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_run_that_crashed_goes_back_to_its_last_checkpoint_and_writes_nothing_twice(
    name: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = Cut(monkeypatch)
    cut.left, cut.crash = {"ppo": 110, "sac": 150}[name], True
    with pytest.raises(MemoryError):
        trained(CASES[name], tmp_path / "cut")
    found, expected = resumed(tmp_path / "cut"), whole(name)
    assert found.summary["state_hash"] == expected.summary["state_hash"]
    assert_same_records(found.path, expected.path, found.seeds)


@pytest.mark.parametrize("when", ["row", "evaluation"])
def test_a_signal_just_before_what_is_due_loses_neither_row_nor_evaluation(
    when: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = {"row": session.Session._observe, "evaluation": session.Session.evaluate}[when]
    name = {"row": "_observe", "evaluation": "evaluate"}[when]

    def late(self: session.Session, *args: Any) -> Any:
        if self.crank.iterations() == 2:  # 128 steps: both are due
            self.stop.set()
            if when == "row":
                self._interrupt()
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, name, late)
        with pytest.raises(Interrupted):
            trained(CASES["ppo"], tmp_path / "cut")
    found = resumed(tmp_path / "cut")
    assert found.summary["state_hash"] == whole("ppo").summary["state_hash"]
    assert_same_records(found.path, whole("ppo").path, found.seeds)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: session.Session) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "begin", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(CASES["ppo"], tmp_path / "cut")
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {"config.json", "command.txt", "system.json", "lock"}
    assert resumed(tmp_path / "cut").summary["state_hash"] == whole("ppo").summary["state_hash"]


def test_a_run_killed_just_before_its_summary_is_not_evaluated_twice(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(arrays: Any, worlds: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "state_hash", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(CASES["ppo"], tmp_path / "cut")
    found, expected = resumed(tmp_path / "cut"), whole("ppo")
    assert found.summary["eval"] == expected.summary["eval"]
    assert_same_records(found.path, expected.path, found.seeds)


def test_a_finished_run_is_returned_as_it_is(whole: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole("ppo").path.rglob("*") if p.name != "lock"}
    again = resumed(whole("ppo").path)
    assert again.summary == whole("ppo").summary
    assert before == {p: p.stat().st_mtime_ns for p in whole("ppo").path.rglob("*") if p.name != "lock"}


def test_an_existing_folder_is_refused_with_what_to_do(whole: Any) -> None:
    path = whole("ppo").path
    with pytest.raises(RunError, match=f"polyak resume {path}.*--out {path}_2"):
        trained(CASES["ppo"], path)


def test_interrupted_runs_leave_no_descriptor_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(name: str) -> None:
        cut.left = 40
        with pytest.raises(Interrupted):
            trained(CASES["ppo"], tmp_path / name, tensorboard=True)

    cut = Cut(monkeypatch)
    once("first")  # imports and compilation open files of their own
    before = len(os.listdir("/proc/self/fd"))
    once("second")
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------------- callbacks


class Notes(cb.Callback):
    """Writes down when it was called."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps: list[int] = []

    def on_training_start(self) -> None:
        self.names.append("start")

    def on_rollout_start(self) -> None:
        self.names.append("rollout start")

    def on_rollout_end(self) -> None:
        self.names.append("rollout end")

    def on_step(self) -> bool:
        self.names.append("step")
        self.steps.append(self.num_timesteps)
        for _, scores in self.evaluations:
            scores.clear()  # a copy: the run's own evaluations stay as they are
        return True

    def on_training_end(self) -> None:
        self.names.append("end")


def test_callbacks_are_called_in_order_and_can_change_nothing(whole: Any, tmp_path: Path) -> None:
    notes, every = Notes(), Notes()
    run = trained(CASES["ppo"], tmp_path / "run", callbacks=[notes, cb.EveryNTimesteps(128, every)])
    chunk = ["rollout start", "rollout end", "step"]
    assert notes.names == ["start", *chunk * 4, "end"]
    assert notes.steps == [64, 128, 192, 256] and notes.n_calls == 4
    assert every.steps == [128, 256]
    assert notes.run == run.path and notes.logger["train/loss"] == pytest.approx(every.logger["train/loss"])
    assert run.summary["state_hash"] == whole("ppo").summary["state_hash"]
    assert checkpoint.load(run.path, notify=print).meta["evaluations"][0][1] != []


def test_ready_made_callbacks_stop_runs(tmp_path: Path) -> None:
    stops = {
        "reward": (cb.StopOnRewardThreshold(1.0), 128),
        "episodes": (cb.StopOnMaxEpisodes(1), 64),
        "improvement": (cb.StopOnNoModelImprovement(1, 2), None),
    }
    for name, (callback, steps) in stops.items():
        with pytest.raises(Interrupted, match="a callback stopped the run") as stopped:
            trained(CASES["ppo"], tmp_path / name, steps=640, eval_freq=64 if steps is None else 128,
                    callbacks=[callback])  # fmt: skip
        assert stopped.value.exit_code == 0
        assert steps is None or checkpoint.load(tmp_path / name, notify=print).step == steps


def test_a_callback_that_stops_at_the_last_step_is_no_interruption(whole: Any, tmp_path: Path) -> None:
    run = trained(CASES["ppo"], tmp_path / "run", callbacks=[lambda c: c.num_timesteps < 256])
    assert run.summary["state_hash"] == whole("ppo").summary["state_hash"]


# ---------------------------------------------------------------------------------------------------- using a run


def test_predict_takes_one_observation_or_many(whole: Any) -> None:
    run = whole("ppo")
    batch = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    actions, state = run.predict(batch)
    assert state is None
    assert actions.shape == (5,) and set(actions.tolist()) <= {0, 1}
    singles = [run.predict(obs)[0] for obs in batch]
    assert np.ndim(singles[0]) == 0
    assert singles == actions.tolist()
    assert run.predict(batch.tolist())[0].tolist() == actions.tolist()
    assert run.predict(batch[0].tolist())[0] == actions[0]
    assert run.predict(batch.astype(np.float64), episode_start=np.ones(5, bool))[0].tolist() == actions.tolist()


@pytest.mark.parametrize("obs", [[0.0, 0.0], np.zeros((2, 3)), np.zeros((1, 2, 4)), "left", [[0.0] * 4, [0.0] * 3]])
def test_predict_refuses_what_is_no_observation(whole: Any, obs: Any) -> None:
    with pytest.raises(PolyakError, match=r"Box\(4,\)"):
        whole("ppo").predict(obs)


def test_predict_is_greedy_or_drawn_and_knows_the_seeds(whole: Any) -> None:
    run = whole("ppo")
    batch = np.zeros((200, 4), np.float32)
    assert len(set(run.predict(batch)[0].tolist())) == 1
    drawn = [run.predict(batch, deterministic=False)[0].tolist() for _ in range(2)]
    assert set(drawn[0]) == {0, 1} and drawn[0] != drawn[1]
    many = np.random.default_rng(1).normal(size=(500, 4)).astype(np.float32)
    assert run.predict(many)[0].tolist() == run.predict(many, seed=0)[0].tolist()
    assert run.predict(many)[0].tolist() != run.predict(many, seed=1)[0].tolist()
    with pytest.raises(PolyakError, match=r"seed 7 was not trained; there are \[0, 1\]"):
        run.predict(many, seed=7)


def test_actions_come_in_the_environments_own_units(whole: Any) -> None:
    run = whole("sac")
    actions = run.predict(np.random.default_rng(0).normal(size=(300, 3)), deterministic=False)[0]
    assert actions.shape == (300, 1) and actions.dtype == np.float32
    assert 1.0 < np.abs(actions).max() <= 2.0  # Pendulum takes ± 2


def test_a_saved_run_is_the_run(whole: Any, tmp_path: Path) -> None:
    for name in ("ppo", "normalised", "compiled"):
        run = whole(name)
        saved = polyak.load(run.save(tmp_path / name))
        fresh = polyak.load(run.path)
        obs = np.random.default_rng(2).normal(size=(50, *run.plan.spec.obs.shape))
        for deterministic in (True, False):
            np.testing.assert_array_equal(
                saved.predict(obs, deterministic=deterministic)[0], fresh.predict(obs, deterministic=deterministic)[0]
            )
        assert saved.summary == run.summary
    with pytest.raises(RunError, match="already holds a run"):
        whole("ppo").save(tmp_path / "ppo")


def test_an_unfinished_run_can_be_saved_loaded_and_gone_on_with(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(CASES["compiled"], tmp_path / "cut", callbacks=[stops_after(128)])
    loaded = polyak.load(tmp_path / "cut")
    with pytest.raises(RunError, match="is not finished; go on with: polyak resume"):
        _ = loaded.summary
    copy = loaded.save(tmp_path / "copy")
    assert resumed(copy).summary["state_hash"] == whole("compiled").summary["state_hash"]


def test_evaluate_equals_what_training_reported_and_what_is_played_by_hand(whole: Any) -> None:
    run = whole("ppo")
    found = run.evaluate(2)
    assert found == run.summary["eval"] == polyak.evaluate(run.path, episodes=2)
    env = gym.make("CartPole-v1")
    by_hand = []
    for index in range(2):
        obs, _ = env.reset(seed=episode_seed(0, index, 0, "eval"))
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(run.predict(obs)[0])
            total, ended = total + float(reward), terminated or truncated
        by_hand.append(total)
    assert run.episodes(0, 2).returns.tolist() == by_hand
    assert run.episodes(0, 5).returns[:2].tolist() == by_hand
    with pytest.raises(PolyakError, match="episodes is 0"):
        run.evaluate(0)


def test_the_best_generation_is_pinned(tmp_path: Path) -> None:
    run = trained(CASES["ppo"], tmp_path / "run", steps=640, eval_freq=64, save_freq=64)
    results = [np.load(run.path / f"seed_{k}" / "evaluations.npz") for k in run.seeds]
    scores = np.mean([r["results"].mean(axis=1) for r in results], axis=0)
    steps = results[0]["timesteps"]
    assert best_step(run.path) == steps[np.argmax(scores)]
    assert len(checkpoint.generations(run.path)) <= 5


def test_sweep_varies_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = polyak.sweep(ON_POLICY, "jax:CartPole-v1", steps=320, n_envs=2, seeds=2, lr=[1e-3, 0.0])
    assert [member.lr for member in found.members] == [1e-3, 0.0]
    assert found.returns.shape == (2, 2) and np.isfinite(found.returns).all()
    assert not (found.returns[0] == found.returns[1]).all()
    assert not list(tmp_path.iterdir())
    with pytest.raises(PolyakError, match="can't vary batch_size"):
        polyak.sweep(ON_POLICY, "jax:CartPole-v1", steps=320, batch_size=[32])
    with pytest.raises(PolyakError, match="not compiled"):
        polyak.sweep(ON_POLICY, "CartPole-v1", steps=320, lr=[1e-3])


# ---------------------------------------------------------------------------------------------------- what is yours


class Both(gym.Env):
    """A world with a dict of observations; the reward is the sum of what it shows."""

    observation_space = gs.Dict({"place": gs.Box(-1, 1, (2,), np.float32), "mode": gs.Discrete(3)})
    action_space = gs.Discrete(2)
    returns: list[float]

    def __init__(self, length: int = 7) -> None:
        self.length, self.t, self.total, self.returns = length, 0, 0.0, []

    def _obs(self) -> dict[str, Any]:
        place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"place": place, "mode": np.int64(self.t % 3)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.total = 0, 0.0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        obs = self._obs()
        reward = float(obs["place"].sum()) + int(action)
        self.total += reward
        ended = self.t >= self.length + int(action)
        if ended:
            self.returns.append(self.total)
        return obs, reward, ended, False, {}


def test_a_factory_and_a_dict_of_observations(tmp_path: Path) -> None:
    case = Case(ON_POLICY, Both, (), {"n_envs": 2, "steps": 256, "eval_freq": 0})
    expected = trained(case, tmp_path / "whole")
    obs = {"place": [0.5, -0.5], "mode": 2}
    one = expected.predict(obs)[0]
    many = expected.predict({"place": np.tile([0.5, -0.5], (3, 1)), "mode": np.array([2, 2, 2])})[0]
    assert np.ndim(one) == 0 and many.tolist() == [one] * 3
    with pytest.raises(PolyakError, match="has no 'place'"):
        expected.predict({"mode": 2})
    with pytest.raises(Interrupted):
        trained(case, tmp_path / "cut", callbacks=[stops_after(64)])
    for again in (lambda: resumed(tmp_path / "cut"), lambda: polyak.load(tmp_path / "cut")):
        with pytest.raises(PolyakError, match=r"given as an object.*polyak\.resume\(path, env=\.\.\.\)"):
            again()
    found = resumed(tmp_path / "cut", env=Both)
    assert found.summary["state_hash"] == expected.summary["state_hash"]
    assert found.summary["exact"] is True


def test_an_instance_trains_and_goes_on(tmp_path: Path) -> None:
    case = Case(ON_POLICY, Both(), (), {"steps": 160, "eval_freq": None})
    expected = trained(case, tmp_path / "whole")
    assert expected.summary["eval"]["iqm"] is None  # it exists once: evaluating it would disturb its training
    assert "not evaluated" in expected.last_line()
    with pytest.raises(PolyakError, match=r"exists once.*eval_freq=0"):
        trained(case, tmp_path / "refused", eval_freq=32)
    assert not (tmp_path / "refused").exists()
    with pytest.raises(Interrupted):
        trained(replace(case, env=Both()), tmp_path / "cut", callbacks=[stops_after(32)])
    assert resumed(tmp_path / "cut", env=Both()).summary["state_hash"] == expected.summary["state_hash"]


def test_a_network_of_your_own(tmp_path: Path) -> None:
    net = eqx.nn.MLP(4, 8, 8, 1, activation=jax.nn.tanh, key=jax.random.key(3))
    case = Case(replace(ON_POLICY, network=net), "CartPole-v1", (), {"n_envs": 2, "steps": 256, "eval_freq": 0})
    expected = trained(case, tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(case, tmp_path / "cut", callbacks=[stops_after(64)])
    with pytest.raises(RunError, match=r"network is a MLP of your own.*resume\(path, agent=\.\.\.\)"):
        resumed(tmp_path / "cut")
    found = resumed(tmp_path / "cut", agent=case.agent)
    assert found.summary["state_hash"] == expected.summary["state_hash"]
    assert found.summary["exact"] is True


def test_reported_returns_are_the_environments_own(tmp_path: Path) -> None:
    """Normalised scales what the agent sees of rewards; what people see stays raw, from the first episode on."""
    made: list[Both] = []

    def factory() -> Both:
        made.append(Both())
        return made[-1]

    case = Case(Normalised(ON_POLICY), factory, (), {"n_envs": 2, "steps": 256, "eval_freq": 0, "log_freq": 64})
    run = trained(case, tmp_path / "run")
    lines = (run.path / "seed_0" / "monitor.csv").read_text().splitlines()[2:]
    reported = [float(line.split(",")[0]) for line in lines]
    # Two of them trained: those whose returns are in the file, each once.
    trainers = [env for env in made if env.returns and round(env.returns[0], 6) in reported]
    brute = [round(r, 6) for env in trainers for r in env.returns]
    assert len(trainers) == 2 and len(reported) > 20
    assert sorted(reported) == sorted(brute)
    last = [r for r in rows(run.path) if "rollout/ep_rew_mean" in r][-1]
    assert last["rollout/ep_rew_mean"] == pytest.approx(np.mean(reported[-100:]), abs=1e-5)
    assert last["time/episodes"] == len(reported)
