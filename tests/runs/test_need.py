"""The memory of a run is known before it begins, and a run that can't fit is refused."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import polyak
from polyak.core import Spec
from polyak.errors import PolyakError
from polyak.nets import MLP
from polyak.runs import need
from polyak.runs.plan import plan
from polyak.spaces import Box, Discrete

ATARI = Spec(Box(0, 255, (84, 84, 4), np.uint8), Discrete(6), 1, 10_000_000, frames=4)
SMALL = MLP((8,))
MANY = 10**7  # transitions; of CartPole, 460 MB


def _held(agent: object, made: object) -> int:
    """Bytes of the real state."""
    key = jax.random.key(0)
    state = agent.init(key, made.spec)  # pyright: ignore
    return sum(np.asarray(x).nbytes for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "agent",
    [
        polyak.DQN(buffer_size=500, network=SMALL), polyak.DQN(buffer_size=500, network=SMALL, prioritised=0.6),
        polyak.DQN(buffer_size=512, network=SMALL, recurrent="gru", rollout_length=8), polyak.PPO(network=SMALL),
        polyak.Normalised(polyak.DQN(buffer_size=500, network=SMALL)),
    ],
    ids=["dqn", "prioritised", "recurrent", "ppo", "normalised"],
)  # fmt: skip
def test_the_estimate_is_the_state_to_the_byte(agent: object) -> None:
    made = plan(agent, "jax:CartPole-v1", steps=5_000, seeds=3)
    assert made.need.total - made.need.rollout == 3 * _held(made.agent, made)


def test_what_is_the_replay_and_what_the_rollout() -> None:
    found = plan(polyak.DQN(buffer_size=500, network=SMALL), "jax:CartPole-v1", steps=5_000).need
    assert found.transitions == 500
    assert 500 * (4 + 4) * 4 < found.replay < 500 * 64
    host = plan(polyak.PPO(network=SMALL), "CartPole-v1", steps=20_000, n_envs=4).need
    assert (host.replay, host.transitions) == (0, 0)
    assert host.rollout == 2 * 2048 * 4 * (4 + 4 + 1) * 4  # observation, successor, action; staged and on the device


def test_a_million_frames_of_atari_take_less_than_8_gb() -> None:
    found = need.need(polyak.DQN(buffer_size=1_000_000), ATARI, 1, staged=True)
    assert found.transitions == 1_000_000
    assert 7.0e9 < found.total < 8e9


def test_a_replay_that_does_not_fit_is_refused_with_one_that_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(need, "available", lambda: 100_000_000)
    agent = polyak.DQN(buffer_size=MANY, network=SMALL)
    with pytest.raises(PolyakError) as refused:
        polyak.train(agent, "jax:CartPole-v1", steps=MANY, out=tmp_path / "run")
    text = str(refused.value)
    assert re.match(
        r"this run would take \d+ MB of memory, and 100 MB are free; \d+ MB are the replay of 10,000,000 transitions: "
        r"give a smaller buffer_size, such as [\d,]+$",
        text,
    )
    assert not (tmp_path / "run").exists()
    fitting = int(text.split()[-1].replace(",", ""))
    assert MANY / 20 < fitting < MANY / 2
    plan(polyak.DQN(buffer_size=fitting, network=SMALL), "jax:CartPole-v1", steps=MANY)


def test_the_largest_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(need, "available", lambda: 1_000_000)
    with pytest.raises(PolyakError, match=r"are the rollout: give a smaller rollout_length or fewer environments"):
        plan(polyak.PPO(network=SMALL), "jax:CartPole-v1", steps=10**6, n_envs=32)
    with pytest.raises(PolyakError, match=r"optimiser: give a smaller network, or fewer seeds at once$"):
        plan(polyak.PPO(network=MLP((400, 400))), "jax:CartPole-v1", steps=10**6, seeds=2)


def test_a_large_run_says_what_it_takes() -> None:
    atari = need.need(polyak.DQN(buffer_size=1_000_000), ATARI, 1, staged=True)
    assert re.fullmatch(r"memory: about 7\.\d+ GB, of which 7\.\d+ GB for 1,000,000 transitions", need.said(atari))
    assert need.said(plan(polyak.PPO(network=SMALL), "jax:CartPole-v1", steps=5_000).need) == ""


STARTED = """
import re, sys
import polyak
from polyak.nets import MLP
from polyak.runs.callbacks import Callback
from polyak.runs.session import Interrupted

class Stop(Callback):
    def on_step(self):
        return False

agent = polyak.DQN(buffer_size=24_000_000, network=MLP((8,)), learning_starts=1_000)
what = {"train": lambda **k: polyak.train(agent, "CartPole-v1", steps=24_000_000, out=sys.argv[2], **k),
        "resume": lambda **k: polyak.resume(sys.argv[2], **k)}[sys.argv[1]]
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss is the parent's too
before = peak()
try:
    what(callbacks=[Stop()], progress=False, quiet=True, tensorboard=False, capture_video=False)
except Interrupted:
    print("stopped")
print(peak() - before)
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_replay_is_held_once_at_the_start_and_after_a_resume(tmp_path: Path) -> None:
    """A second copy, if only for a moment, would halve the replay that a machine can hold."""
    agent = polyak.DQN(buffer_size=24_000_000, network=SMALL)
    estimate = plan(agent, "CartPole-v1", steps=24_000_000).need.total
    for verb in ("train", "resume"):
        done = subprocess.run(
            [sys.executable, "-c", STARTED, verb, str(tmp_path / "run")], capture_output=True, text=True, check=True
        )
        grown = 1024 * int(done.stdout.split()[-1])
        assert 0.8 * estimate < grown < 1.5 * estimate, verb  # zeros are not there until written; programs come on top
