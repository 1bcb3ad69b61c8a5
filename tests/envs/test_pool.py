"""Worker processes (`envs.pool`): the bits of `HostVector`, whatever happens to the processes (PR4, CT21, W7)."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

import polyak
from polyak.envs import resolve
from polyak.envs.gymspaces import random_actions
from polyak.envs.host import EnvFault, HostVector, Proof, Tier
from polyak.envs.pool import LIVES, Block, Pool, blocks, receive, send
from polyak.errors import EnvError, PolyakError

STEPS = 60


class Nested(gym.Env):
    """Dict and Tuple everywhere, every kind of leaf, episodes of 3 to 12 steps, a success at the end."""

    def __init__(self):
        self.observation_space = gs.Dict(
            {"where": gs.Tuple([gs.Box(-5, 5, (2,), np.float64), gs.Discrete(4, start=2)]), "flags": gs.MultiBinary(3)}
        )
        self.action_space = gs.Dict({"push": gs.Box(-2, 2, (2,)), "mode": gs.MultiDiscrete([2, 3])})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.x = int(self.np_random.integers(3, 13)), np.zeros(2)
        return self.seen(), {}

    def seen(self):
        which = self.np_random.integers(2, 6)
        return {"where": (self.x.copy(), which), "flags": (self.np_random.random(3) < 0.5).astype(np.int8)}

    def step(self, action):
        self.x = np.clip(self.x + action["push"] + action["mode"], -5, 5)
        self.left -= 1
        over = self.left == 0
        return self.seen(), float(self.x.sum()), over, False, {"is_success": bool(self.x[0] > 0)} if over else {}


class Odd(gym.Env):
    """CartPole-like bookkeeping; at step `at` of every episode it does `what`, once where `once` names a new file."""

    def __init__(self, what="", at=4, once=""):
        self.observation_space, self.action_space = gs.Box(0, 100, (1,), np.float32), gs.Discrete(2)
        self.what, self.at, self.once = what, at, once

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t == self.at and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            self.act(self.what)
        return np.array([self.t], np.float32), float(action), self.t == 10, False, {}

    def act(self, what):
        match what:
            case "exit":
                os._exit(7)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                time.sleep(1000)
            case "raise":
                raise ValueError("the door is stuck")
            case "print":
                print("x" * 100_000)
                sys.stderr.write("y" * 100_000 + "\n")
            case "child":
                subprocess.Popen(["sleep", "1000"])

    def close(self):
        if self.what == "complain":
            raise RuntimeError("still busy")


def source(factory, **kwargs):
    deadline = kwargs.pop("deadline", 60.0)
    return resolve(factory, env_kwargs=kwargs, deadline=deadline)


def pool_of(env, n, seed, workers, tier=2, **kwargs):
    """A pool whose environments were not proved, because they misbehave when they are."""
    deadline = kwargs.pop("deadline", 60.0)
    made = source(env, deadline=deadline, **kwargs)
    probe = env(**kwargs)
    spaces = (probe.observation_space, probe.action_space), (made.obs_space, made.action_space)
    options = {"name": env.__name__, "kwargs": kwargs, "deadline": deadline}
    return Pool(made.recipe, *spaces, n, seed, workers=workers, tier=Tier(tier, "tier 3: said so"), **options)


def actions(vector, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [random_actions(vector.action_space, vector.n_envs, rng) for _ in range(steps)]


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and np.array_equal(a, b)


def told(episodes):
    """Episodes as text: a success that is unknown is NaN, which equals nothing."""
    return list(map(repr, episodes))


def compare(one, other, steps):
    """Steps both with equal actions: everything that comes out is equal."""
    for action in actions(one, steps):
        left, right = one.step(action), other.step(action)
        assert all(equal(x, y) for x, y in zip(left, right, strict=True))
        assert told(one.episodes()) == told(other.episodes())
    assert one.digest() == other.digest()


def gone(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize(("n", "workers"), [(1, 1), (5, 2), (3, 3)])
@pytest.mark.parametrize("env", ["CartPole-v1", Nested], ids=["cartpole", "nested"])
def test_the_bits_are_those_of_one_process(env, n, workers):
    made = source(env)
    one, many = made.vector(n, 11), made.vector(n, 11, workers=workers)
    assert type(many) is Pool and type(one) is HostVector
    assert equal(one.reset(), many.reset())
    compare(one, many, STEPS)
    ours, theirs = one.snapshot(), many.snapshot()
    assert list(ours) == list(theirs)
    assert all(equal(np.asarray(ours[k]), np.asarray(theirs[k])) for k in ours)
    many.close()


@pytest.mark.parametrize("env", ["CartPole-v1", Nested], ids=["cartpole", "nested"])
def test_a_snapshot_is_restored_with_any_number_of_workers(env):
    made = source(env)
    one = made.vector(5, 3)
    one.reset()
    for action in actions(one, 25):
        one.step(action)
    snapshot = one.snapshot()  # with episodes that nobody has asked for yet
    assert len(snapshot["finished"])
    for workers in (1, 2, 4):
        many = made.vector(5, 3, workers=workers)
        fresh = made.vector(5, 3)
        assert equal(many.restore(snapshot), fresh.restore(snapshot))
        compare(fresh, many, 20)
        many.close()


def test_an_action_that_the_caller_overwrites_is_replayed_as_it_was():
    made = source("CartPole-v1")
    one, many = made.vector(2, 5), made.vector(2, 5, workers=1)
    one.reset(), many.reset()
    action = np.zeros(2, np.int32)
    for k in range(6):
        action[:] = [k % 2, 1 - k % 2]
        one.step(action), many.step(action)
    action[:] = 1
    many._workers[0].process.kill()
    left, right = one.step(action), many.step(action)
    assert all(equal(x, y) for x, y in zip(left, right, strict=True)) and len(many.notices) == 1
    many.close()


def test_the_evaluation_stream_has_its_own_episodes():
    made = source("CartPole-v1")
    one, many = made.vector(2, 3, "eval"), made.vector(2, 3, "eval", workers=2)
    assert equal(one.reset(), many.reset())
    compare(one, many, 30)
    many.close()


def test_blocks_cover_every_environment_once():
    for n in range(1, 20):
        for k in range(1, n + 1):
            parts = list(blocks(n, k))
            assert [i for b in parts for i in range(n)[b.rows]] == list(range(n))
            assert max(b.n for b in parts) - min(b.n for b in parts) <= 1
    assert (str(Block(2, 1)), str(Block(2, 3))) == ("environment 2", "environments 2–4")


# ------------------------------------------------------------------------------------------------ deaths


def test_killed_at_random_and_nothing_is_lost():
    """The oracle is the vector in one process, which nobody kills."""
    made = source(Nested)
    one, many = made.vector(4, 5), made.vector(4, 5, workers=2)
    one.reset(), many.reset()
    rng = np.random.default_rng(1)
    for k, action in enumerate(actions(one, 80)):
        if k % 8 == 7:
            many._workers[rng.integers(2)].process.kill()
        if k in (30, 55):  # a snapshot shortens what is replayed
            many.snapshot()
        left, right = one.step(action), many.step(action)
        assert all(equal(x, y) for x, y in zip(left, right, strict=True))
        assert told(one.episodes()) == told(many.episodes())
    assert one.digest() == many.digest()
    assert len(many.notices) == 10
    assert "died (killed by SIGKILL); a new one has replayed its episodes" in many.notices[0]
    many.close()


@pytest.mark.parametrize("moment", ["before reset", "before snapshot", "before restore", "after restore", "long after"])
def test_killed_between_orders(moment, monkeypatch):
    monkeypatch.setattr("polyak.envs.pool.SYNC", 20)
    made = source("CartPole-v1")
    one, many = made.vector(2, 5), made.vector(2, 5, workers=1)
    worker = many._workers[0]

    def kill(now):
        if now == moment:
            worker.process.kill()
            worker.process.wait()

    kill("before reset")
    assert equal(one.reset(), many.reset())
    compare(one, many, 15)
    kill("before snapshot")
    ours, theirs = one.snapshot(), many.snapshot()
    assert all(equal(np.asarray(ours[k]), np.asarray(theirs[k])) for k in ours)
    kill("before restore")
    assert equal(one.restore(ours), many.restore(theirs))
    kill("after restore")
    compare(one, many, 50)
    assert len(worker.since) < 50
    kill("long after")
    compare(one, many, 5)
    assert len(many.notices) == 1
    many.close()


@pytest.mark.parametrize(("what", "how"), [("exit", "exit code 7"), ("crash", "killed by SIGSEGV")])
def test_a_crash_is_survived_once_and_named_where_it_comes_again(what, how, tmp_path):
    once = pool_of(Odd, 2, 0, 2, what=what, once=str(tmp_path / "done"))
    once.reset()
    for action in actions(once, 12):
        once.step(action)
    # Both processes may have reached the step before the file was there.
    assert 1 <= len(once.notices) <= 2 and how in once.notices[0]
    once.close()

    again = pool_of(Odd, 3, 0, 2, what=what)
    again.reset()
    for action in actions(again, 3):
        again.step(action)
    with pytest.raises(
        EnvFault, match=rf"Odd: the process of environment 0 \(seed 0\) died {LIVES} times .*{how}"
    ) as e:
        again.step(np.zeros(3, np.int32))
    assert e.value.exit_code == 3 and len(e.value.repro["actions"]) == 4
    json.dumps(e.value.repro)
    again.close()
    assert all(worker.process.returncode is not None for worker in again._workers)


def test_a_hang_is_ended_by_the_deadline_and_survived_once(tmp_path):
    vector = pool_of(Odd, 1, 0, 1, what="hang", once=str(tmp_path / "done"), deadline=0.5)
    vector.reset()
    for action in actions(vector, 12):
        vector.step(action)
    assert len(vector.notices) == 1
    assert "environment 0, episode 0" in vector.notices[0] and "in step: no answer for 0.5 s" in vector.notices[0]
    vector.close()


def test_a_stopped_process_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("polyak.envs.pool._CLOSE_S", 0.5)
    vector = pool_of(Odd, 1, 0, 1, what="stop", once=str(tmp_path / "done"), deadline=0.5)
    vector.reset()
    for action in actions(vector, 12):
        vector.step(action)
    assert "no answer for 1.5 s" in vector.notices[0]
    vector.close()


def test_what_python_can_report_is_no_death():
    one, many = HostVector(lambda: Odd("raise"), 3, 0, name="Odd", tier=Tier(2)), pool_of(Odd, 3, 0, 2, what="raise")
    sentences = []
    for vector in (one, many):
        vector.reset()
        first, second, third, fourth, fifth = actions(vector, 5)
        for action in (first, second, third):
            vector.step(action)
        with pytest.raises(
            EnvFault, match=r"environment 0, episode 0, .* step 4: step raised ValueError: the door"
        ) as e:
            vector.step(fourth)
        sentences.append(str(e.value))
        with pytest.raises(PolyakError, match="call reset"):
            vector.step(fifth)
    assert sentences[0] == sentences[1] and not many.notices
    many.close()


def test_episodes_that_do_not_replay_are_not_made_up():
    vector = pool_of(Odd, 2, 0, 1, tier=3)
    vector.reset()
    vector._workers[0].process.kill()
    with pytest.raises(
        EnvFault, match=r"environments 0–1 .*SIGKILL\), and its episodes can't be replayed \(tier 3: said"
    ):
        vector.step(np.zeros(2, np.int32))
    vector.close()


class Drifts(Odd):
    """Another process, another reward: proved exact by nobody."""

    def step(self, action):
        obs, _, *rest = Odd.step(self, action)
        return obs, float(os.getpid()), *rest


def test_a_replay_that_goes_differently_is_found_out():
    vector = pool_of(Drifts, 1, 0, 1)
    vector.reset()
    vector.step(np.zeros(1, np.int32))
    vector._workers[0].process.kill()
    with pytest.raises(EnvError, match="came to something else, so it does not replay exactly"):
        vector.step(np.zeros(1, np.int32))
    vector.close()


# ------------------------------------------------------------------------------------------------ manners


def test_prints_pass_and_children_die(capfd):
    vector = pool_of(Odd, 1, 0, 1, what="print")
    vector.reset()
    for action in actions(vector, 12):
        vector.step(action)
    vector.close()
    out, err = capfd.readouterr()
    assert "x" * 1000 in out and "y" * 1000 in err
    vector = pool_of(Odd, 1, 0, 1, what="child")
    vector.reset()
    for action in actions(vector, 6):
        vector.step(action)
    pid = vector._workers[0].process.pid
    child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    vector.close()
    assert gone(child)


def test_a_complaint_of_close_is_heard():
    vector = pool_of(Odd, 2, 0, 1, what="complain")
    vector.reset()
    with pytest.raises(EnvError, match=r"raised in close\(\): RuntimeError: still busy"):
        vector.close()
    assert vector._workers[0].process.returncode is not None


@pytest.mark.parametrize("what", ["", "hang"])
def test_no_worker_survives_the_trainer(what, tmp_path):
    program = tmp_path / "trainer.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys, threading
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_pool import Odd, actions, pool_of
        if __name__ == "__main__":
            vector = pool_of(Odd, 2, 0, 2, what={what!r}, at=1)
            vector.reset()
            print(*[worker.process.pid for worker in vector._workers], flush=True)
            threading.Thread(target=vector.step, args=actions(vector, 1), daemon=True).start()
            threading.Event().wait()
        """)
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as trainer:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        time.sleep(0.3)
        trainer.kill()
    assert len(workers) == 2
    assert all(gone(pid) for pid in workers)


def test_an_action_that_cannot_be_sent_reaches_nobody():
    vector = pool_of(Odd, 2, 0, 2)
    vector.reset()
    with pytest.raises(EnvError, match="action of environment 1 is 2, out of 0 … 1; nothing was sent"):
        vector.step(np.array([0, 2], np.int32))
    vector.step(np.array([0, 1], np.int32))
    vector.close()


def test_a_worker_that_cannot_start_says_why(monkeypatch):
    made = source("CartPole-v1")
    made.vector(1, 0)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    vector = made.vector(1, 0, workers=1)
    with pytest.raises(
        PolyakError, match=r"environment 0 \(seed 0\) died 3 times before its first step \(exit code 1\)"
    ):
        vector.reset()
    vector.close()


# ------------------------------------------------------------------------------------------------ who may have workers


def test_what_another_process_cannot_make_is_refused():
    class Inner(Odd):
        """Not at the top of a module."""

    def several():
        return gym.vector.SyncVectorEnv([Odd], autoreset_mode="Disabled")

    for env, why in [
        (lambda: Odd(), "top of a module"), (Inner, "top of a module"), (Odd(), "given as an instance"),
        ("jax:CartPole-v1", "inside the compiled step"), (several, "not made of single"),
    ]:  # fmt: skip
        with pytest.raises(PolyakError, match=f"can't be shared among worker processes: .*{why}"):
            polyak.train("dqn", env, steps=100, preset=None, workers=2, eval_episodes=0)
    with pytest.raises(PolyakError, match="more than JSON can hold"):
        source(Odd, once=Path("x")).refuse_workers()
    with pytest.raises(PolyakError, match="workers is -1"):
        polyak.train("dqn", "CartPole-v1", steps=100, workers=-1)


def test_an_id_that_only_this_process_knows_stays_in_it(tmp_path, monkeypatch):
    (tmp_path / "strange_worlds.py").write_text(
        "import gymnasium\nfrom test_pool import Odd\n"
        "gymnasium.register('Strange-v0', 'test_pool:Odd', max_episode_steps=20)\n"
        "gymnasium.register('Stranger-v0', 'strange_worlds:Odd', max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for name in ("Strange-v0", "Stranger-v0"):
            named = resolve(name, allow_import=["strange_worlds"])
            one, many = named.vector(2, 0), named.vector(2, 0, workers=2)
            assert equal(one.reset(), many.reset())
            compare(one, many, 12)
            many.close()
        # Known here by now, to a fresh process only if the package is named; and no other run pays for that import.
        for name in ("Strange-v0", "Stranger-v0"):
            unnamed = resolve(name)
            assert unnamed.workers(8, 1, 10**12) == 0
            with pytest.raises(
                PolyakError, match=r"was registered here, by .*; name the package .* with --allow-import"
            ):
                unnamed.refuse_workers()
        assert resolve("CartPole-v1").recipe["packages"] == []
    finally:
        del gym.registry["Strange-v0"], gym.registry["Stranger-v0"], sys.modules["strange_worlds"]


@pytest.mark.parametrize(
    ("step_s", "n_envs", "seeds", "steps", "each"),
    [
        (1e-5, 8, 1, 10_000_000, 0),  # cheap: an order would cost more than it saves
        (1e-3, 8, 1, 1_000_000, 4),
        (1e-3, 8, 1, 1_000, 0),  # a short run is over before processes have started
        (1e-3, 2, 1, 1_000_000, 2),
        (1e-3, 1, 1, 1_000_000, 0),  # nobody to wait for
        (1e-3, 1, 8, 1_000_000, 1),  # a process for each seed
        (1e-3, 8, 2, 1_000_000, 2),
    ],
)
def test_workers_are_chosen_by_the_time_of_a_step(step_s, n_envs, seeds, steps, each, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    made = source(Odd)
    made._proof = lambda: Proof(Tier(2), step_s)
    assert made.workers(n_envs, seeds, steps) == each
    assert source(lambda: Odd()).workers(n_envs, seeds, steps) == 0


class Sleepy(Odd):
    """A step of three milliseconds."""

    def step(self, action):
        time.sleep(0.003)
        return Odd.step(self, action)


def test_a_slow_environment_gets_workers_unasked(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    monkeypatch.setattr("polyak.envs.source.WORTH_S", 0.01)
    about = {"steps": 40, "n_envs": 2, "preset": None, "eval_episodes": 2, "capture_video": False, "progress": False}
    fields = {"learning_starts": 10, "network": polyak.MLP((4,))}
    chosen = polyak.train("dqn", Sleepy, out=tmp_path / "chosen", fields=fields, **about)
    assert "2 worker processes; they are slow, and --workers 0 keeps" in capfd.readouterr().err
    assert "workers" not in json.loads((tmp_path / "chosen" / "config.json").read_text())["run"]
    alone = polyak.train("dqn", Sleepy, out=tmp_path / "alone", fields=fields, workers=0, **about)
    assert "worker" not in capfd.readouterr().err
    assert alone.summary["state_hash"] == chosen.summary["state_hash"]


# ------------------------------------------------------------------------------------------------ messages


def test_messages_hold_numbers_only():
    ours, theirs = socket.socketpair()
    arrays = [np.arange(6, dtype=np.int8).reshape(2, 3), np.zeros((0, 4)), np.array([True, False]), np.float32([1.5])]
    send(ours, {"do": "x"}, arrays)
    header, found = receive(theirs)
    assert header == {"do": "x"} and all(equal(a, b) for a, b in zip(arrays, found, strict=True))
    for layout, n in [([["|O", [1]]], 8), ([["<f8", [2]]], 8), ([["<U4", [1]]], 16), ([["<f8", [1 << 60]]], 8)]:
        text = json.dumps({"arrays": layout}).encode()
        ours.sendall(struct.pack("<IQ", len(text), n) + text)
        with pytest.raises(ValueError, match="arrays"):
            receive(theirs)
    ours.sendall(struct.pack("<IQ", 1 << 31, 0))
    with pytest.raises(ValueError, match="bytes of JSON"):
        receive(theirs)
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)
    theirs.close()


# ------------------------------------------------------------------------------------------------ whole runs


class Mortal(gym.Wrapper):
    """`Nested` with an action that DQN can take; in a worker, every twelfth episode kills its process once."""

    def __init__(self, graves):
        super().__init__(Nested())
        self.action_space = gs.Discrete(3)
        # Under pytest-xdist the main module has no spec.
        started_as = getattr(sys.modules["__main__"].__spec__, "name", "")
        self.graves = graves if started_as == "polyak.envs.worker" else ""

    def reset(self, *, seed=None, options=None):
        self.grave = Path(self.graves) / str(seed) if self.graves and seed % 12 == 0 else None
        return self.env.reset(seed=seed)

    def step(self, action):
        if self.grave is not None and not self.grave.exists() and self.env.left == 1:
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step({"push": np.full(2, action - 1.0, np.float32), "mode": np.array([0, 1])})


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_a_run_ends_with_the_same_state_whoever_dies(name, tmp_path, capfd):
    # Made here: the workers import this module for `Mortal`, and should not have to import jax.
    network = polyak.MLP((8,))
    agent = {
        "dqn": polyak.DQN(learning_starts=50, network=network),
        "ppo": polyak.PPO(rollout_length=16, batch_size=32, epochs=1, network=network),
    }[name]
    graves = tmp_path / "graves"
    graves.mkdir()
    about = {"steps": 160, "seeds": 2, "n_envs": 2, "quiet": True, "eval_episodes": 2, "n_eval_envs": 2,
             "eval_freq": 0, "capture_video": False, "env_kwargs": {"graves": str(graves)}}  # fmt: skip
    alone = polyak.train(agent, Mortal, out=tmp_path / "alone", workers=0, **about)
    assert not list(graves.iterdir())
    apart = polyak.train(agent, Mortal, out=tmp_path / "apart", workers=2, **about)
    assert apart.summary["state_hash"] == alone.summary["state_hash"]
    assert apart.summary["eval"] == alone.summary["eval"]
    assert apart.summary["exact"] and len(list(graves.iterdir())) > 1
    assert "nothing is lost" in capfd.readouterr().err
    assert json.loads((tmp_path / "apart" / "config.json").read_text())["run"]["workers"] == 2


def test_a_run_goes_on_with_other_workers(tmp_path):
    about = {"n_envs": 3, "preset": None, "quiet": True, "eval_episodes": 0, "capture_video": False}
    agent = polyak.DQN(learning_starts=50, network=polyak.MLP((8,)))

    whole = polyak.train(agent, "CartPole-v1", steps=900, out=tmp_path / "whole", workers=0, **about)

    def early(callback):
        return callback.num_timesteps < 300

    with pytest.raises(PolyakError, match="a callback stopped the run"):
        polyak.train(
            agent,
            "CartPole-v1",
            steps=900,
            out=tmp_path / "cut",
            workers=2,
            callbacks=[lambda c: c.num_timesteps < 300],
            **about,
        )
    config = tmp_path / "cut" / "config.json"
    wanted = json.loads(config.read_text())
    assert wanted["run"].pop("workers") == 2
    config.write_text(json.dumps(wanted))
    assert polyak.resume(tmp_path / "cut", quiet=True).summary["state_hash"] == whole.summary["state_hash"]
