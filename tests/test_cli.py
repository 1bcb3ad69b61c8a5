"""The command line: every verb's help, every kind of value, and a sentence for every mistake."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyak import catalogue, cli, values
from polyak.errors import PolyakError
from polyak.names import PEERS, unknown_field

ALGORITHMS = list(catalogue.algorithms())


def run(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()


def refused(*words: str) -> str:
    """The sentence of a command that is bad input: one line, exit code 2, nothing on stdout."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("polyak: ")
    assert err.count("\n") == 1
    return err.removeprefix("polyak: ").strip()


def parsed(*words: str) -> dict[str, Any]:
    return vars(cli._arguments("train", list(words)))


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_explains_itself(verb: str) -> None:
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: polyak {verb}")
    assert cli.VERBS[verb].help in out


def test_the_overview_shows_exactly_the_verbs_that_are_built() -> None:
    code, out, _ = run("--help")
    assert code == 0
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert shown == ["train", "eval", "watch", "resume", "report", "compare", "solve", "doctor", "verify", "list"]
    assert run()[0] == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_help_of_an_algorithm_has_every_field_its_default_and_its_comment(algorithm: str) -> None:
    out = " ".join(run("train", algorithm, "--help")[1].split())
    for field in catalogue.algorithm(algorithm).fields:
        assert f"--{field.name.replace('_', '-')}" in out
        assert f"{field.help} ({field.default})" in out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_catalogue_says_what_the_dataclass_says(algorithm: str) -> None:
    import dataclasses

    from polyak.runs.config import AGENTS

    described = catalogue.algorithm(algorithm)
    real = {f.name: f.default for f in dataclasses.fields(AGENTS[algorithm])}
    assert [f.name for f in described.fields] == list(real)
    for field in described.fields:
        default = field.default.strip("\"'")
        found = real[field.name] if field.is_bool else values.field_value("--x", field.annotation, default)
        assert found == real[field.name]
        assert default == str(real[field.name]) or not field.is_bool


def test_the_catalogue_knows_the_worlds() -> None:
    from polyak.envs.classic import WORLDS
    from polyak.envs.finite import FINITE

    assert sorted(catalogue.worlds()) == sorted(WORLDS | FINITE)


def test_list_names_algorithms_environments_and_presets() -> None:
    out = run("list")[1]
    for word in (*ALGORITHMS, "jax:ID", "CartPole-v1", "cleanrl"):
        assert word in out
    assert "jax:ID" not in run("list", "algorithms")[1]
    assert refused("list", "evns").endswith("did you mean 'envs'?")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list"], ["train", "ppo", "--help"], ["train", "ppo", "CartPole-v1", "--n-epochs", "4"], ["nope"]],
)
def test_these_answers_need_no_jax(words: list[str]) -> None:
    code = f"import sys; from polyak.cli import main; main({words!r}); print('jax' in sys.modules, file=sys.stderr)"
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{words}: {time.monotonic() - start:.2f} s")
    assert found.stderr.splitlines()[-1] == "False"


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_an_unknown_verb_gets_the_nearest() -> None:
    assert "did you mean 'train'?" in refused("trian")


def test_an_unknown_algorithm_gets_the_nearest() -> None:
    assert "no algorithm 'poo'; did you mean 'ppo'?" in refused("train", "poo", "CartPole-v1", "--lr", "1")


def test_an_unknown_flag_gets_the_nearest() -> None:
    sentence = refused("train", "dqn", "CartPole-v1", "--lerning-starts", "5")
    assert sentence == "train dqn has no --lerning-starts; did you mean --learning-starts?"


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--n-epochs", "--epochs"), ("--learning-rate", "--lr"), ("--total_timesteps", "--steps"),
        ("--num-envs=4", "--n-envs"), ("--n_steps", "--rollout-length"), ("--entropy-coef", "--ent-coef"),
        ("--clip-coef", "--clip-range"), ("--num-seeds", "--seeds"),
    ],
)  # fmt: skip
def test_a_peers_flag_gets_ours(flag: str, ours: str) -> None:
    assert refused("train", "ppo", "CartPole-v1", flag, "4").endswith(f"; here it is {ours}")


def test_the_sentences_for_fields() -> None:
    fields = [f.name for f in catalogue.algorithm("ppo").fields]
    assert unknown_field("PPO", "n_epochs", fields) == "PPO has no n_epochs; here it is epochs"
    assert unknown_field("PPO", "num_envs", fields) == "PPO has no num_envs; here it is n_envs, an argument of train"
    assert unknown_field("PPO", "steps", fields) == "PPO has no steps; it is an argument of train"
    assert unknown_field("PPO", "gama", fields) == "PPO has no gama; did you mean 'gamma'?"
    assert unknown_field("PPO", "zzzzzz", fields) == "PPO has no zzzzzz"
    assert unknown_field("SARSA", "n_steps", ["n_step"]).endswith("here it is n_step")


def test_every_name_that_a_peer_is_told_exists() -> None:
    flags = set(cli._arguments("train", ["ppo", "X"]).__dict__)
    fields = {f.name for name in ALGORITHMS for f in catalogue.algorithm(name).fields}
    for peer, candidates in PEERS.items():
        assert set(candidates) & (flags | fields), f"{peer}: none of {candidates} exists"
        assert peer not in fields, f"{peer} is one of our own names"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "ppo", "CartPole-v1", "--steps", "many"], "--steps is 'many', and must be a number"),
        (["train", "ppo", "CartPole-v1", "--steps", "1.5"], "must be a whole number"),
        (["train", "ppo", "CartPole-v1", "--lr", "fast"], "must be a number or a schedule"),
        (["train", "ppo", "CartPole-v1", "--lr", "liner:1:0"], "did you mean 'linear'?"),
        (["train", "ppo", "CartPole-v1", "--lr", "linear:1:2:3:4"], "takes 1 to 3 numbers"),
        (["train", "ppo", "CartPole-v1", "--network", "relu"], "must be sizes such as 256,256"),
        (["train", "ppo", "CartPole-v1", "--env-kwargs", "gravity=9"], "must be key:value"),
        (["train", "ppo", "CartPole-v1", "--crank", "turbo"], "must be one of auto, compiled, host"),
        (["train", "ppo", "CartPole-v1", "--epochs"], "--epochs: expected one argument"),
        (["train", "ppo", "CartPole-v1", "logs/"], "does not take 'logs/'"),
        (["train", "CartPole-v1", "ppo"], "the algorithm comes first: polyak train ppo CartPole-v1"),
        (["train", "ppo"], "train needs an algorithm and an environment"),
        (["train"], "train needs an algorithm and an environment"),
        (["train", "dqn", "CartPole-v1", "--loss", "hubber"], "did you mean 'huber'?"),
        (["eval"], "name a run"),
        (["watch", "somewhere", "--video", "--stochastic"], "records one greedy episode"),
        (["--frobnicate"], "there is no flag '--frobnicate'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(words: list[str], part: str) -> None:
    assert part in refused(*words)


def test_a_missing_run_is_an_error_of_files(tmp_path: Path) -> None:
    for verb in ("eval", "watch", "resume", "report", "verify"):
        code, out, err = run(verb, str(tmp_path / "none"))
        assert (code, out) == (4, "")
        assert "There is no run" in err


def test_foreign_text_is_escaped_on_the_terminal() -> None:
    assert "\x1b" not in run("train", "ppo", "CartPole-v1", "--steps", "\x1b[31m")[2]


def test_a_fault_of_ours_is_named_and_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError("boom")

    monkeypatch.setitem(cli.VERBS, "list", cli.VERBS["list"]._replace(run=broken))
    code, _, err = run("list")
    assert (code, err.count("\n")) == (70, 1)
    assert "unexpected ZeroDivisionError: boom" in err
    assert "Traceback" in run("list", "--verbose")[2]
    monkeypatch.setenv("POLYAK_TRACEBACK", "1")
    assert "Traceback" in run("list")[2]


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "list", cli.VERBS["list"]._replace(run=interrupted))
    assert run("list")[0] == 130


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m polyak.cli list | head -n 1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("Algorithms\n", "")


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"), [("100_000", 100_000), ("1e6", 1_000_000), ("2.5e3", 2500), ("-3", -3), ("07", 7)]
)
def test_whole_numbers(text: str, value: int) -> None:
    found = values.whole("--steps", text)
    assert found == value
    assert isinstance(found, int)


@pytest.mark.parametrize("text", ["1.5", "nan", "inf", "1__0", "", "0x10", "1e400", "ten", "9" * 30, "1_"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(PolyakError, match="--steps"):
        values.whole("--steps", text)


@given(st.floats(allow_nan=False))
def test_every_float_is_read_as_it_is_printed(value: float) -> None:
    assert values.number("--lr", repr(value)) == value


@given(st.integers(-(10**20), 10**20))
def test_every_integer_is_read_as_it_is_printed(value: int) -> None:
    assert values.whole("--steps", f"{value:_}") == value


def test_schedules() -> None:
    linear = {"schedule": "Linear", "start": 2.5e-4, "end": 0.0, "fraction": 1.0}
    assert values.schedule("--lr", "linear:2.5e-4:0:1.0") == linear
    assert values.schedule("--lr", "linear(2.5e-4, 0, 1.0)") == linear
    assert values.schedule("--lr", "lin_2.5e-4") == {"schedule": "Linear", "start": 2.5e-4}
    assert values.schedule("--lr", "cosine:1:0.1") == {"schedule": "Cosine", "start": 1.0, "end": 0.1}
    assert values.schedule("--lr", "constant:1") == {"schedule": "Constant", "value": 1.0}
    assert values.schedule("--lr", "1e-3") is None


def test_schedules_and_networks_become_the_real_ones() -> None:
    import polyak
    from polyak.runs.config import decoded

    read = parsed("ppo", "X", "--lr", "linear:3e-4:1e-5:.5", "--network", "64,32,relu", "--clip-range", "cosine:.2")
    assert decoded(read["field:lr"], "lr") == polyak.Linear(3e-4, 1e-5, 0.5)
    assert decoded(read["field:clip_range"], "clip_range") == polyak.Cosine(0.2)
    assert decoded(read["field:network"], "network") == polyak.MLP((64, 32), "relu", "orthogonal")
    assert decoded(parsed("sac", "X", "--network", "64,tanh")["field:network"], "n").init == "uniform"
    assert decoded(parsed("ppo", "X", "--network", "256,256")["field:network"], "n") == (256, 256)
    assert decoded(parsed("ppo", "X", "--network", "cnn")["field:network"], "n") == polyak.CNN()
    assert decoded(parsed("ppo", "X", "--network", "cnn2013")["field:network"], "n").dense == 256


def test_flags_of_fields() -> None:
    read = parsed(
        "sac", "X", "--target_entropy", "-1e-3", "--ent-coef=auto", "--sde", "--buffer-size", "1e5", "--lr", "1"
    )
    assert read["field:target_entropy"] == -1e-3
    assert read["field:ent_coef"] == "auto"
    assert read["field:sde"] is True
    assert read["field:buffer_size"] == 100_000
    assert "field:gamma" not in read, "a field that isn't named keeps its preset's value"
    assert parsed("sac", "X", "--max-grad-norm", "none")["field:max_grad_norm"] is None
    assert parsed("sac", "X", "--no-sde")["field:sde"] is False
    with pytest.raises(PolyakError, match="--gamma is 'none'"):
        parsed("sac", "X", "--gamma", "none")


def test_flags_of_the_run() -> None:
    read = parsed(
        "PPO", "ale:Pong", "--steps", "1e6", "--seeds", "3,5", "-f", "logs", "--no-preset", "--normalise",
        "--env-kwargs", "a:1", "b:[1,2]", "c:x:y", "--env-kwargs", "d:None", "--no-progress", "--no-capture-video",
    )  # fmt: skip
    assert (read["algo"], read["env"], read["steps"], read["seeds"]) == ("PPO", "ale:Pong", 1_000_000, [3, 5])
    assert dict(read["env_kwargs"]) == {"a": 1, "b": [1, 2], "c": "x:y", "d": None}
    assert read["log_folder"] == Path("logs")
    assert read["preset"] is None
    assert (read["normalise"], read["progress"], read["capture_video"], read["tensorboard_log"]) == (
        True,
        False,
        False,
        True,
    )
    assert parsed("ppo", "X")["normalise"] is None


def test_environment_arguments_are_never_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    text = f"__import__('pathlib').Path({str(target)!r}).touch()"
    assert values.pair("--env-kwargs", f"a:{text}") == ("a", text)
    assert not target.exists()


# ------------------------------------------------------------------------------------------------------------- fuzz

LIKELY = """train ppo sac CartPole-v1 --lr --steps 1e3 --seeds --network --n-epochs -f -tb --env-kwargs --loss --help
--load-best --video none -1 -- -P --preset list = --canary --out --deadline --no-preset --exp-id --verbose""".split()  # noqa: SIM905
WORDS = st.one_of(
    st.sampled_from(LIKELY),
    st.text(max_size=12),
    st.text(alphabet="abelrnpstuyz-_=:.0123456789", max_size=16).map(lambda text: "--" + text),
)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(list(cli.VERBS)), st.lists(WORDS, max_size=6))
def test_any_words_give_arguments_help_or_one_sentence(verb: str, words: list[str]) -> None:
    outcome: Any = None
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            cli._arguments(verb, words)
        except (PolyakError, SystemExit) as error:
            outcome = error
    if isinstance(outcome, SystemExit):
        assert outcome.code == 0, "only --help leaves this way"
    if isinstance(outcome, PolyakError):
        assert outcome.exit_code == 2
        assert str(outcome)


# ------------------------------------------------------------------------------------------------------------- for real


@pytest.mark.full
def test_a_run_through_every_verb(tmp_path: Path) -> None:
    """Each verb once, as a user types it, on a small run."""

    def polyak(*words: str) -> str:
        found = subprocess.run(
            [sys.executable, "-m", "polyak.cli", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")},
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        return found.stdout

    small = ["--rollout-length", "32", "--n-envs", "2", "--batch-size", "64", "--epochs", "2", "--eval-episodes", "2"]
    quiet = ["--no-capture-video", "--no-tensorboard-log", "--no-progress"]
    polyak("train", "ppo", "jax:CartPole-v1", "--steps", "1_000", "--seeds", "2", *small, *quiet)
    place = ["ppo", "jax:CartPole-v1"]
    summary = json.loads((tmp_path / "runs" / "ppo" / "jax-CartPole-v1_1" / "summary.json").read_text())
    assert (summary["steps"], summary["seeds"]) == (960, [0, 1])
    assert "IQM" in polyak("eval", *place, "--episodes", "2")
    assert "stochastic" in polyak("eval", *place, "--episodes", "2", "--stochastic", "--load-checkpoint", "0")
    assert (tmp_path / polyak("watch", *place, "--video", "film.mp4").strip()).stat().st_size > 0
    assert "is finished" in polyak("resume", *place)
    assert "report.html" in polyak("report", *place)
    assert "Every checkpoint is intact" in polyak("verify", *place)
    polyak("train", "ppo", "jax:CartPole-v1", "--steps", "500", "--out", "other", *small, *quiet)
    assert "compare.html" in polyak("compare", "other", "runs/ppo/jax-CartPole-v1_1")
    assert "runs/ppo/jax-CartPole-v1_1" in polyak("list", "runs")
    assert "CartPole-v1" in polyak("doctor", "--env", "CartPole-v1")
    found = subprocess.run(
        [sys.executable, "-m", "polyak.cli", "train", "ppo", "jax:CartPole-v1", "--out", "other"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 4
    assert "polyak resume other" in found.stderr
