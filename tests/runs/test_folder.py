"""Run folders: names, what is durable before the first step, one writer (K10), fingerprints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polyak.errors import RunError
from polyak.runs import folder

SOURCE = str(Path(folder.__file__).parents[2])


def begun(path, **config):
    folder.begin(path, {"agent": {"name": "PPO"}, **config}, "polyak train ppo X", {"python": "3"})
    return path


def test_folders_take_the_next_free_id(tmp_path):
    names = [folder.create(None, tmp_path / "runs", "PPO", "CartPole-v1").relative_to(tmp_path) for _ in range(3)]
    assert [str(name) for name in names] == [f"runs/ppo/CartPole-v1_{n}" for n in (1, 2, 3)]
    (tmp_path / "runs/ppo/CartPole-v1_2").rmdir()
    assert folder.create(None, tmp_path / "runs", "ppo", "CartPole-v1").name == "CartPole-v1_4"
    assert folder.create(None, tmp_path / "runs", "ppo", "CartPole-v0").name == "CartPole-v0_1"


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("jax:CartPole-v1", "jax-CartPole-v1_1"),
        ("ALE/Pong-v5", "ALE-Pong-v5_1"),
        ("../../etc", "etc_1"),
        ("/", "run_1"),
        ("..", "run_1"),
        ("a\nb\x1b[31m\u202e", "a-b-31m_1"),
        ("x" * 500, "x" * 96 + "_1"),
        ("A_1", "A_1_1"),
    ],
)
def test_environment_ids_become_plain_names(tmp_path, env, name):
    run = folder.create(None, tmp_path, "ppo", env)
    assert run == tmp_path / "ppo" / name
    assert run.is_dir()
    begun(run)
    assert folder.find("ppo", env, log_folder=tmp_path) == run


def test_a_second_train_into_a_run_is_refused_with_both_ways_out(tmp_path):
    run = begun(folder.create(tmp_path / "mine", tmp_path, "ppo", "X"))
    (tmp_path / "mine_2").mkdir()
    with pytest.raises(RunError) as caught:
        folder.create(run, tmp_path, "ppo", "X")
    assert f"polyak resume {run}" in str(caught.value)
    assert str(tmp_path / "mine_3") in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_folder_without_a_run_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    assert folder.create(tmp_path / "empty", tmp_path, "ppo", "X") == tmp_path / "empty"
    assert folder.create(tmp_path / "a" / "b", tmp_path, "ppo", "X").is_dir()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "x", tmp_path / "file"):
        with pytest.raises(RunError, match="cannot be created"):
            folder.create(out, tmp_path, "ppo", "X")


def test_begin_leaves_the_three_files(tmp_path):
    begun(tmp_path, run={"steps": 3})
    assert folder.read_json(tmp_path / "config.json")["run"] == {"steps": 3}
    assert (tmp_path / "command.txt").read_text() == "polyak train ppo X\n"
    assert folder.read_json(tmp_path / "system.json") == {"python": "3"}
    assert sorted(os.listdir(tmp_path)) == ["command.txt", "config.json", "system.json"]
    with pytest.raises(RunError, match=r"config\.json cannot be written"):
        folder.begin(tmp_path, {"x": float("nan")}, "", {})
    assert folder.read_json(tmp_path / "config.json")["run"] == {"steps": 3}


def test_find_gives_the_latest_or_the_named_run(tmp_path):
    made = [begun(folder.create(None, tmp_path, "ppo", "CartPole-v1")) for _ in range(11)]
    folder.create(None, tmp_path, "ppo", "CartPole-v1")  # nothing was begun in it
    assert folder.find("ppo", "CartPole-v1", log_folder=tmp_path) == made[-1]
    assert folder.find("PPO", "CartPole-v1", 2, tmp_path) == made[1]
    assert folder.find(made[4]) == made[4]
    assert folder.runs(tmp_path) == made


def test_what_is_not_found_is_named(tmp_path):
    begun(folder.create(None, tmp_path, "ppo", "CartPole-v1"))
    with pytest.raises(RunError, match=r"no run 7 of ppo on CartPole-v1 .* there are: 1"):
        folder.find("ppo", "CartPole-v1", 7, tmp_path)
    with pytest.raises(RunError, match="did you mean 'ppo CartPole-v1'"):
        folder.find("ppo", "CartPol-v1", log_folder=tmp_path)
    with pytest.raises(RunError, match=r"not a run: it has no config\.json"):
        folder.find(tmp_path)
    with pytest.raises(RunError, match=r"There is no run .*nowhere"):
        folder.find(tmp_path / "nowhere", log_folder=tmp_path)


# -- the lock

HOLD = """
import sys, time
from pathlib import Path
from polyak.errors import RunError
from polyak.runs.folder import Lock
run, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, start - time.time()))
try:
    with Lock(run):
        print("won", flush=True)
        sys.stdin.read()
except RunError as error:
    print("lost", error, flush=True)
"""


def holder(run, start=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run), str(start)],
        env={**os.environ, "PYTHONPATH": SOURCE}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_of_racing_processes_exactly_one_wins(tmp_path):
    for race in range(2):
        start = time.time() + 1.0
        processes = [holder(tmp_path, start) for _ in range(8)]
        answers = [process.stdout.readline() for process in processes]
        winners = [process for process, answer in zip(processes, answers, strict=True) if answer == "won\n"]
        assert len(winners) == 1, (race, answers)
        assert all("in use by process" in answer for answer in answers if answer != "won\n")
        with pytest.raises(RunError, match=f"in use by process {winners[0].pid};"):
            folder.Lock(tmp_path)
        for process in processes:
            process.communicate("")
    with folder.Lock(tmp_path) as lock:
        assert lock.note == ""


def test_a_killed_owner_leaves_a_stale_lock(tmp_path):
    process = holder(tmp_path)
    assert process.stdout.readline() == "won\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with folder.Lock(tmp_path) as lock:
        assert f"Process {process.pid}" in lock.note
        assert "taking over" in lock.note
        record = json.loads((tmp_path / "lock").read_text())
        assert record["pid"] == os.getpid()
        assert os.uname().nodename not in json.dumps(record)
    assert (tmp_path / "lock").read_text() == ""


def test_the_same_process_cannot_lock_twice(tmp_path):
    with folder.Lock(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()}"):
        folder.Lock(tmp_path)
    lock = folder.Lock(tmp_path)
    lock.release()
    lock.release()


@pytest.mark.parametrize("text", ["", "garbage", '{"pid": "x"}', "[1]", "\0" * 100])
def test_an_odd_lock_file_stops_nobody(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    with folder.Lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_without_flock_the_record_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_flock", lambda fd: None)
    with folder.Lock(tmp_path):
        with pytest.raises(RunError, match="as far as can be seen"):
            folder.Lock(tmp_path)
        record = json.loads((tmp_path / "lock").read_text())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for change, allowed in (({"pid": dead.pid}, True), ({"boot": "another"}, True), ({"host": "another"}, False)):
        (tmp_path / "lock").write_text(json.dumps(record | change))
        if allowed:
            folder.Lock(tmp_path).release()
        else:
            with pytest.raises(RunError, match="delete"):
                folder.Lock(tmp_path)


def test_a_lock_may_not_be_a_link(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="cannot be opened"):
        folder.Lock(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept"


# -- the machine


def test_system_says_what_ran_and_nobody_who(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cr3t")
    monkeypatch.setenv("NPROC", "2")
    system = folder.system("cpu:0")
    text = json.dumps(system)
    assert system["jax"]
    assert system["nproc"] == "2"
    assert system["device"] == "cpu:0"
    assert system["cores"] >= 1
    for private in ("s3cr3t", os.uname().nodename, os.path.expanduser("~"), os.getcwd()):
        assert private not in text


def test_fingerprints_differ_in_a_sentence(monkeypatch):
    config = {"agent": {"name": "PPO"}, "run": {"n_envs": 8, "seeds": [0, 1], "crank": "host"}}
    monkeypatch.delenv("NPROC", raising=False)
    one = folder.fingerprint(config)
    assert folder.differences(one, folder.fingerprint(dict(reversed(config.items())))) == ""
    monkeypatch.setenv("NPROC", "2")
    two = folder.fingerprint(config, x64=True)
    assert folder.differences(two, one) == "nproc is 2, was not set; x64 is True, was False"
    three = folder.fingerprint({**config, "run": {**config["run"], "n_envs": 4}}, x64=True)
    assert folder.differences(three, two).startswith("config is ")
    assert "layout" in folder.differences(three, two)
    assert json.loads(json.dumps(one)) == one


def test_no_jax_is_imported():
    names = "checkpoint, folder, sinks, progress"
    code = f"import sys; from polyak.runs import {names}; print('jax' in sys.modules, 'rich' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
