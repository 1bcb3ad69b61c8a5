"""Misbehaving environments (CT21, CT24; correctness.md §11.2): a table of what each does and what the user is told.

Each behaviour shows at reset, at the first step, or at a later one; each must end as an `EnvFault` (exit code 3)
whose message names environment, episode, seed and step, and whose `repro` runs it again.
"""

import json
import subprocess
import sys
import textwrap

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

from polyak.envs.host import EnvFault, HostVector, Tier, episode_seed

LATER = 5


class Behaving(gym.Env):
    """Obedient until call `at` (0 is reset, k the k-th step), where `misbehave(env, result)` answers instead."""

    misbehave = None
    at = -1

    def __init__(self):
        self.observation_space = gs.Box(-1, 1, (2,), np.float32)
        self.action_space = gs.Box(-1, 1, (1,), np.float32)
        self.t = 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        result = (np.zeros(2, np.float32), {})
        return self.answer(result)

    def step(self, action):
        self.t += 1
        return self.answer((np.full(2, 0.1, np.float32), 1.0, False, False, {}))

    def answer(self, result):
        return self.misbehave(result) if self.t == self.at else result


def misbehaving(behaviour, at):
    class Misbehaving(Behaving):
        misbehave = behaviour

    Misbehaving.at = at
    return Misbehaving


def raises(error):
    def behaviour(env, result):
        raise error

    return behaviour


def observes(value):
    return lambda env, result: (value, *result[1:])


def pays(value):
    return lambda env, result: (result[0], value, *result[2:])


def flags(terminated, truncated):
    return lambda env, result: (*result[:2], terminated, truncated, result[4])


def new_space(env, result):
    env.observation_space = gs.Box(-2, 2, (2,), np.float32)
    return result


ANYWHERE = {
    "raises": (raises(ValueError("the door is stuck")), "raised ValueError: the door is stuck"),
    "raises with no text": (raises(RuntimeError()), "raised RuntimeError"),
    "calls sys.exit": (raises(SystemExit(0)), "raised SystemExit: 0"),
    "NaN observation": (observes(np.array([0, np.nan], np.float32)), "observation[1] is nan"),
    "infinite observation": (observes(np.array([np.inf, 0], np.float32)), "observation[0] is inf"),
    "wrong shape": (observes(np.zeros(3, np.float32)), "shape (3,), but its space says (2,)"),
    "wrong dtype": (observes(np.zeros(2)), "dtype float64, but its space says float32"),
    "complex": (observes(np.zeros(2, np.complex64)), "dtype complex64"),
    "out of bounds": (
        observes(np.array([0, 21.5], np.float32)),
        "observation[1] is 21.5, outside its space's bounds [-1",
    ),
    "object array": (observes(np.array([0, None])), "dtype object"),
    "None": (observes(None), "observation is NoneType"),
    "list": (observes([0.0, 0.0]), "observation is list"),
    "answers None": (lambda env, result: None, "returned NoneType"),
    "answers a 3-tuple": (lambda env, result: (*result, 1, 2)[:3], "returned a 3-tuple"),
}
AT_STEPS = {
    "answers a 4-tuple": (lambda env, result: result[:4], "returned a 4-tuple"),
    "reward NaN": (pays(float("nan")), "reward is float (nan)"),
    "reward infinite": (pays(np.float32(np.inf)), "reward is float32"),
    "reward array": (pays(np.array([1.0])), "reward is ndarray"),
    "reward string": (pays("1.0"), "reward is str ('1.0')"),
    "reward bool": (pays(True), "reward is bool (True)"),
    "reward None": (pays(None), "reward is NoneType"),
    "terminated an int": (flags(1, False), "terminated is int (1), not a bool"),
    "truncated a string": (flags(False, "no"), "truncated is str"),
    "terminated an array": (flags(np.array([True]), False), "terminated is ndarray"),
    "terminated None": (flags(None, False), "terminated is NoneType"),
    "info None": (lambda env, result: (*result[:4], None), "info is NoneType"),
}
AT_RESET = {
    "answers the observation only": (lambda env, result: result[0], "reset returned ndarray"),
    "changes its space": (new_space, "observation_space changed from"),
}
TABLE = [
    pytest.param(behaviour, words, at, id=f"{name}-{'reset' if at == 0 else f'step {at}'}")
    for group, ats in ((ANYWHERE, (0, 1, LATER)), (AT_STEPS, (1, LATER)), (AT_RESET, (0,)))
    for name, (behaviour, words) in group.items()
    for at in ats
]


def play(vector, actions):
    vector.reset()
    for action in actions:
        vector.step(action)


@pytest.mark.parametrize(("behaviour", "words", "at"), TABLE)
def test_a_fault_is_one_sentence_that_says_where(behaviour, words, at):
    wrong = misbehaving(behaviour, at)
    made = iter([Behaving, Behaving, wrong])
    vector = HostVector(lambda: next(made)(), 3, 11, name="Odd-v0", kwargs={"a": 1}, tier=Tier(2))
    actions = [np.full((3, 1), k / 10, np.float32) for k in range(LATER)]
    with pytest.raises(EnvFault) as caught:
        play(vector, actions)
    message, repro = str(caught.value), caught.value.repro
    seed = episode_seed(11, 2, 0)
    assert message.startswith(f"Odd-v0: environment 2, episode 0, seed {seed}, step {at}: ")
    assert words in message
    assert "\n" not in message
    assert caught.value.exit_code == 3
    assert (repro["env"], repro["kwargs"], repro["seed"], repro["step"]) == ("Odd-v0", {"a": 1}, seed, at)
    assert len(repro["actions"]) == at
    np.testing.assert_allclose(np.array(repro["actions"]).reshape(-1), [k / 10 for k in range(at)], rtol=1e-6)
    assert json.loads(json.dumps(repro)) == repro
    assert vector.pulse()[0] is False  # or the watchdog would end the process while it writes its checkpoint


def test_the_original_exception_is_chained():
    error = ValueError("inner")
    vector = HostVector(misbehaving(raises(error), 1), 1, 0, tier=Tier(2))
    vector.reset()
    with pytest.raises(EnvFault) as caught:
        vector.step(np.zeros((1, 1), np.float32))
    assert caught.value.__cause__ is error


def test_a_repro_runs_the_same_fault_again():
    wrong = misbehaving(observes(None), 3)
    vector = HostVector(wrong, 1, 0, tier=Tier(2))
    with pytest.raises(EnvFault) as caught:
        play(vector, [np.full((1, 1), k / 10, np.float32) for k in range(9)])
    env = wrong()
    env.reset(seed=caught.value.repro["seed"])
    results = [env.step(np.asarray(action, np.float32)) for action in caught.value.repro["actions"]]
    assert results[-1][0] is None
    assert results[-2][0] is not None


def test_after_a_fault_the_vector_takes_no_more_steps():
    vector = HostVector(misbehaving(observes(None), 1), 1, 0, tier=Tier(2))
    vector.reset()
    with pytest.raises(EnvFault):
        vector.step(np.zeros((1, 1), np.float32))
    with pytest.raises(Exception, match="call reset"):
        vector.step(np.zeros((1, 1), np.float32))


def test_a_keyboard_interrupt_is_not_an_environments_fault():
    vector = HostVector(misbehaving(raises(KeyboardInterrupt()), 1), 1, 0, tier=Tier(2))
    vector.reset()
    with pytest.raises(KeyboardInterrupt):
        vector.step(np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("slack", [1e-6, 5e-5])
def test_a_float_that_overshoots_its_bound_by_rounding_is_accepted(slack):
    vector = HostVector(misbehaving(observes(np.array([1 + slack, 0], np.float32)), 1), 1, 0, tier=Tier(2))
    vector.reset()
    assert vector.step(np.zeros((1, 1), np.float32)).obs[0, 0] > 1


def test_a_float_a_little_outside_its_space_is_taken_with_one_notice():
    """As LunarLander's angle beyond 2π. Ten widths outside is far, wherever the first one lay."""
    shown = iter([1.0, 1.5, -20.0, 20.5, 21.5])

    def behaviour(env, result):
        return (np.array([next(shown), 0], np.float32), *result[1:])

    Wide = misbehaving(behaviour, 0)
    Wide.answer = lambda env, result: behaviour(env, result)
    vector = HostVector(Wide, 1, 0, name="Odd-v0", tier=Tier(2))
    vector.reset()
    assert not vector.notices
    seen = [float(vector.step(np.zeros((1, 1), np.float32)).obs[0, 0]) for _ in range(3)]
    assert seen == [1.5, -20.0, 20.5]
    (notice,) = vector.notices
    assert notice.startswith("Odd-v0: observation[0] is 1.5, outside its space's bounds [-1")
    with pytest.raises(EnvFault, match=r"observation\[0\] is 21.5, outside"):
        vector.step(np.zeros((1, 1), np.float32))


@pytest.mark.parametrize(
    ("reward", "value"),
    [(2, 2.0), (np.float32(0.5), 0.5), (np.int64(3), 3.0), (np.array(4.0), 4.0), (np.float64(5), 5.0)],
)
def test_every_real_scalar_is_a_reward(reward, value):
    vector = HostVector(misbehaving(pays(reward), 1), 1, 0, tier=Tier(2))
    vector.reset()
    assert vector.step(np.zeros((1, 1), np.float32)).reward.tolist() == [value]


def test_numpy_bools_are_flags():
    vector = HostVector(misbehaving(flags(np.bool_(True), np.False_), 1), 1, 0, tier=Tier(2))
    vector.reset()
    assert vector.step(np.zeros((1, 1), np.float32)).terminated.tolist() == [True]


def test_a_fault_in_the_proof_is_left_to_training_to_meet():
    vector = HostVector(misbehaving(observes(None), LATER), 1, 0, name="Odd-v0")
    assert vector.tier == 3
    assert "NoneType" in vector.exactness.reason
    assert vector.reset().shape == (1, 2)


HANGING = """
    import ctypes, os, signal, subprocess, sys, time
    import gymnasium as gym, numpy as np
    from polyak.envs.host import HostVector, Tier

    class Hanging(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)
        t = 0
        def reset(self, *, seed=None, options=None):
            return self.answer(np.zeros(1, np.float32), {{}})
        def step(self, action):
            self.t += 1
            return self.answer(np.zeros(1, np.float32), 0.0, False, False, {{}})
        def answer(self, *result):
            if self.t == {at}:
                {hang}
            return result

    vector = HostVector(Hanging, 1, 4, name="Hang-v0", tier=Tier(2), deadline={deadline})
    vector.reset()
    for _ in range(3):
        vector.step(np.array([1]))
    print("done")
"""


def hang(at, how, deadline=0.5):
    code = textwrap.dedent(HANGING.format(at=at, hang=how, deadline=deadline))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("at", [0, 2])
def test_a_hang_ends_the_process_with_a_sentence(at):
    result = hang(at, "time.sleep(30)")
    assert result.returncode == 3
    where = f"Hang-v0: environment 0, episode 0, seed {episode_seed(4, 0, 0)}, step {at}"
    assert result.stderr.startswith(where)
    assert "no answer for 0.5 s" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_hang_that_holds_the_interpreters_lock_ends_the_process_too():
    result = hang(2, "ctypes.PyDLL(None).sleep(30)")
    assert result.returncode == 1
    assert "Timeout" in result.stderr
    assert "answer" in result.stderr  # the stack says where


def test_a_slow_call_within_the_deadline_is_no_hang_and_zero_switches_the_watchdog_off():
    assert hang(1, "time.sleep(0.3)").stdout == "done\n"
    assert hang(1, "time.sleep(1.5)", deadline=0).stdout == "done\n"


def test_a_process_that_was_stopped_for_longer_than_the_deadline_goes_on():
    """Ctrl-Z, and `fg` 5 s later: neither the thread nor the alarm, which was due after 3.5 s, takes it for a hang."""
    wake = "subprocess.Popen(['sh', '-c', f'sleep 5; kill -CONT {os.getpid()}'])"
    stopped = hang(2, f"{wake}; time.sleep(0.1); os.kill(os.getpid(), signal.SIGTSTP)")
    assert stopped.stdout == "done\n", stopped.stderr
