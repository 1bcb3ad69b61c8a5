"""Every probe world has the values that its docstring states; agents are tested against the same numbers."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.envs.probes import (
    PROBES,
    ActionChoice,
    Bandit,
    Catch,
    ConstantReward,
    Counting,
    DeepSea,
    DelayedReward,
    Forever,
    Memory,
    ObservedAction,
    ObservedReward,
    ObservedTarget,
    PoisonedReset,
    Target,
)
from polyak.envs.vector import Vector
from polyak.spaces import Box, Discrete

jax.config.update("jax_numpy_rank_promotion", "raise")

GAMMA = 0.9


class Record(NamedTuple):
    """[T, N, ...] NumPy arrays."""

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    after: Any


def played(world: Any, policy: Callable[..., Any], steps: int, n: int = 5, seed: int = 0) -> Record:
    """Play `policy(obs [N, ...], key) -> action [N, ...]` for `steps` steps in N copies of the world."""
    vector = Vector(world, n)

    def step(carry: Any, key: Any) -> Any:
        vstate, obs = carry
        k_act, k_step = jax.random.split(key)
        action = policy(obs, k_act)
        vstate, after, out = vector.step(vstate, action, k_step)
        return (vstate, after), Record(obs, action, out.reward, out.next_obs, out.terminated, out.truncated, after)

    @jax.jit
    def run(key: Any) -> Record:
        k_reset, k_run = jax.random.split(key)
        return jax.lax.scan(step, vector.reset(k_reset), jax.random.split(k_run, steps))[1]

    return jax.tree.map(np.asarray, run(jax.random.key(seed)))


def any_action(world: Any) -> Callable[..., Any]:
    space = Vector(world, 1).action_space
    if isinstance(space, Discrete):
        return lambda obs, key: jax.random.randint(key, (len(obs),), 0, space.n)
    return lambda obs, key: jax.random.uniform(key, (len(obs), *space.shape), minval=-1.0, maxval=1.0)


def episodes(record: Record, gamma: float) -> list[tuple[Any, float, int]]:
    """(first observation, discounted return, length) of each whole episode of environment 0 and its neighbours."""
    found = []
    for n in range(record.reward.shape[1]):
        first, total, length = record.obs[0, n], 0.0, 0
        for t in range(len(record.reward)):
            total, length = total + gamma**length * float(record.reward[t, n]), length + 1
            if record.terminated[t, n] or record.truncated[t, n]:
                found.append((first, total, length))
                first, total, length = record.after[t, n], 0.0, 0
    return found


def fitted(record: Record, successor: np.ndarray, gamma: float, sweeps: int) -> dict[tuple[float, ...], float]:
    """Tabular V by sweeps of V(o) <- mean of r + gamma (1 - terminated) V(successor)."""
    T, N = record.reward.shape
    table: dict[tuple[float, ...], float] = {}
    for _ in range(sweeps):
        targets: dict[tuple[float, ...], list[float]] = {}
        for t, n in itertools.product(range(T), range(N)):
            follow = 0.0 if record.terminated[t, n] else table.get(tuple(successor[t, n].tolist()), 0.0)
            targets.setdefault(tuple(record.obs[t, n].tolist()), []).append(float(record.reward[t, n]) + gamma * follow)
        table = {obs: float(np.mean(values)) for obs, values in targets.items()}
    return table


EITHER = pytest.mark.parametrize("continuous", [False, True])


@EITHER
def test_constant_reward(continuous: bool) -> None:
    world = ConstantReward(continuous=continuous)
    record = played(world, any_action(world), 6)
    assert (record.obs == 0).all()
    assert (record.reward == 1).all()
    assert record.terminated.all()


@EITHER
def test_observed_reward(continuous: bool) -> None:
    world = ObservedReward(continuous=continuous)
    record = played(world, any_action(world), 20)
    assert_array_equal(record.reward, record.obs[..., 0])
    assert record.terminated.all()
    assert set(record.reward.ravel()) == {-1.0, 1.0}


@EITHER
def test_delayed_reward(continuous: bool) -> None:
    world = DelayedReward(continuous=continuous)
    record = played(world, any_action(world), 12)
    assert all((total, length) == (GAMMA, 2) for _, total, length in episodes(record, GAMMA))
    assert_array_equal(record.obs[::2], 0.0)
    assert_array_equal(record.obs[1::2], 1.0)
    V = fitted(record, record.next_obs, GAMMA, 3)
    assert_allclose([V[(0.0,)], V[(1.0,)]], [GAMMA, 1.0], rtol=1e-12, err_msg="float64 means")


def test_action_choice() -> None:
    record = played(ActionChoice(), any_action(ActionChoice()), 20)
    assert_array_equal(record.reward, 2.0 * record.action - 1.0)
    assert record.terminated.all()
    assert len(set(record.action.ravel())) == 2


def test_observed_action() -> None:
    record = played(ObservedAction(), any_action(ObservedAction()), 40)
    assert_array_equal(record.reward, record.obs[..., 0] * (2.0 * record.action - 1.0))
    assert len(set(zip(record.obs.ravel(), record.action.ravel(), strict=True))) == 4
    assert record.terminated.all()


def test_target() -> None:
    at = played(Target(), lambda obs, key: jnp.full((5, 1), -0.35), 2)
    assert_allclose(at.reward, 0.0, rtol=0, atol=1e-12, err_msg="the square of one rounding of 0.3")
    record = played(Target(), any_action(Target()), 30)
    true = -((2.0 * record.action[..., 0].astype(np.float64) + 1.0 - 0.3) ** 2)
    assert_allclose(record.reward, true, rtol=0, atol=3e-6, err_msg="float32 squares below 7.3")
    moved = Target(target=-0.5, low=-1.0, high=0.0)
    assert moved.action_space == Box(-1.0, 0.0, (1,))
    assert (played(moved, lambda obs, key: jnp.zeros((5, 1)), 1).reward == 0).all()


def test_observed_target() -> None:
    best = played(ObservedTarget(), lambda obs, key: obs, 30)
    assert_allclose(best.reward, 0.0, rtol=0, atol=1e-12, err_msg="the square of the rounding of the affine map")
    assert best.obs.min() < -0.4
    assert best.obs.max() > 0.4
    off = played(ObservedTarget(), lambda obs, key: obs + 0.25, 3)
    assert_allclose(off.reward, -0.0625, rtol=0, atol=1e-7, err_msg="float32 squares below 1")


@EITHER
def test_forever(continuous: bool) -> None:
    world = Forever(continuous=continuous)
    record = played(world, any_action(world), 24)
    assert (record.reward == 1).all()
    assert not record.terminated.any()
    assert (record.obs == 0).all()
    assert (record.next_obs == 0).all()
    assert_array_equal(np.flatnonzero(record.truncated[:, 0]), [7, 15, 23])
    V = fitted(record, record.next_obs, 0.98, 1500)[(0.0,)]
    assert_allclose(V, 50.0, rtol=1e-9, err_msg="0.98^1500 is 7e-14")
    for _, total, _ in episodes(record, 0.98):
        assert_allclose(total, 7.4618, rtol=0, atol=5e-5, err_msg="the docstring gives four decimals")


@pytest.mark.parametrize("terminates", [False, True])
@EITHER
def test_poisoned_reset(terminates: bool, continuous: bool) -> None:
    """The right successor gives the stated values; the observation after the reset, used instead, explodes."""
    world = PoisonedReset(terminates=terminates, continuous=continuous, max_steps=0 if terminates else 3)
    record = played(world, any_action(world), 18)
    end = record.terminated | record.truncated
    assert end.sum() == 6 * 5
    assert (record.terminated.any(), record.truncated.any()) == (terminates, not terminates)
    assert (record.next_obs[..., 0] == 0).all()
    assert (record.after[end][:, 0] == 1).all()
    right = {(1.0, 0.0): 1e6, (0.0, 1.0): 0.0}
    assert fitted(record, record.next_obs, GAMMA, 4) == right
    wrong = fitted(record, record.after, GAMMA, 4)[(0.0, 1.0)]
    assert (wrong == 0.0) if terminates else (wrong > 1e5)


def test_counting_returns_follow_the_formula() -> None:
    record = played(Counting(), any_action(Counting()), 60)
    found = episodes(record, 1.0)
    assert len(found) > 40
    for first, total, n in found:
        episode = int(first[0])
        assert first[1] == 0
        assert n == min(6, 1 + episode % 9)
        assert total == n * (episode % 7) + n * (n + 1) / 2


def chase(obs: Any, key: Any) -> Any:
    """Move the paddle of a 10 x 5 board below the ball; obs [N, 50]."""
    del key
    board = obs.reshape(-1, 10, 5)
    ball, paddle = board[:, :-1].sum(1).argmax(1), board[:, -1].argmax(1)
    return jnp.sign(ball - paddle) + 1


def test_catch() -> None:
    record = played(Catch(), chase, 45)
    for _, total, length in episodes(record, GAMMA):
        assert length == 9
        assert_allclose(total, GAMMA**8, rtol=1e-12, err_msg="one float64 power")
    assert_array_equal(record.obs.sum(2), 2.0)
    assert set(record.obs.reshape(45, 5, 10, 5)[::9, :, 0].argmax(2).ravel()) == {0, 1, 2, 3, 4}, (
        "every column must have a ball"
    )
    still = played(Catch(), lambda obs, key: jnp.ones(len(obs), jnp.int32), 90)
    caught = [total for _, total, _ in episodes(still, 1.0)]
    middle = still.obs.reshape(10, 9, 5, 10, 5)[:, 0, :, 0].argmax(2).T.ravel() == 2
    assert_array_equal(caught, np.where(middle, 1.0, -1.0))


@pytest.mark.parametrize("world", [Catch(noise=0.5, scale=3.0), Bandit(noise=0.5, scale=3.0)], ids=["Catch", "Bandit"])
def test_noise_and_scale(world: Any) -> None:
    """Rewards are 3 (r + 0.5 z): mean and deviation within five sigma of 10,000 draws."""
    record = played(world, lambda obs, key: jnp.zeros(len(obs), jnp.int32), 400, n=25)
    clean = 0.0 if isinstance(world, Catch) else float(world.rewards()[0])
    noisy = record.reward[~record.terminated] if isinstance(world, Catch) else record.reward.ravel()
    n = len(noisy)
    assert abs(noisy.mean() - 3.0 * clean) < 5 * 1.5 / np.sqrt(n)
    assert abs(noisy.std() - 1.5) < 5 * 1.5 / np.sqrt(2 * n)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_memory(length: int) -> None:
    world = Memory(length=length)
    record = played(world, any_action(world), 8 * length, n=30)
    shaped = jax.tree.map(lambda x: x.reshape(8, length, *x.shape[1:]), record)  # [episode, t, N, ...]
    bit = shaped.obs[:, 0, :, 0]
    answer = shaped.action[:, -1]
    assert_array_equal(shaped.reward[:, -1], np.where((answer == 1) == (bit > 0), 1.0, -1.0))
    assert (shaped.reward[:, :-1] == 0).all()
    assert shaped.terminated[:, -1].all()
    assert not shaped.terminated[:, :-1].any()
    assert set(bit.ravel()) == {-1.0, 1.0}
    assert (shaped.obs[:, 1:, :, 0] == 0).all(), "the bit must not be seen again"
    assert_array_equal(
        shaped.obs[..., 1], np.broadcast_to(np.arange(length)[:, None] == length - 1, shaped.obs.shape[:-1])
    )


@pytest.mark.parametrize("mapping", [0, 3])
def test_deep_sea_by_enumeration_of_all_plans(mapping: int) -> None:
    """All 32 plans of five moves: one has the stated value, and it is to go right always."""
    world, key = DeepSea(mapping=mapping), jax.random.key(0)
    right = world.right()
    step, gamma = jax.jit(world.step), GAMMA
    totals = {}
    for plan in itertools.product((0, 1), repeat=5):  # 1: go right
        s, obs = world.reset(key)
        totals[plan] = 0.0
        for t, move in enumerate(plan):
            row, column = (int(v) for v in s)
            assert obs.argmax() == 5 * row + column
            assert obs.sum() == 1
            correct = right[row, column]
            s, obs, reward, terminated = step(s, jnp.int32(correct if move else 1 - correct), key)
            totals[plan] += gamma**t * float(reward)
            assert bool(terminated) == (t == 4)
        assert (obs == 0).all()
    best = gamma**4 - 0.01 / 5 * (1 - gamma**5) / (1 - gamma)
    assert_allclose(totals[(1,) * 5], best, rtol=1e-6, err_msg="float32 rewards")
    assert totals[(0,) * 5] == 0.0
    assert max(totals, key=lambda plan: totals[plan]) == (1,) * 5
    assert sum(total > 0 for total in totals.values()) == 1


def test_deep_sea_mapping_shuffles_actions() -> None:
    assert (DeepSea().right() == 1).all()
    assert set(DeepSea(mapping=3).right().ravel()) == {0, 1}


def test_bandit() -> None:
    world = Bandit()
    assert_allclose(np.sort(world.rewards()), np.arange(11) / 10, rtol=1e-6, err_msg="tenths in float32")
    record = played(world, any_action(world), 40)
    assert_array_equal(record.reward, world.rewards()[record.action])
    assert record.terminated.all()
    assert len(set(record.action.ravel())) == 11
    assert (Bandit(shuffle=1).rewards() != world.rewards()).any()


def test_probes_are_named_as_they_are_called() -> None:
    assert {name: world.__name__ for name, world in PROBES.items()} == {name: name for name in PROBES}
    assert all(world.__doc__ for world in PROBES.values())
