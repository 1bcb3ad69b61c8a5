"""The arithmetic of bench/credit_assignment.py: moments without their own noise, whole episodes, rings of returns."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import credit_assignment as ca

from polyak.core import Transition


def test_what_came_before_in_an_episode() -> None:
    reward = jnp.array([[1.0, 5.0], [2.0, 1.0], [3.0, 2.0], [4.0, 3.0]])
    end = jnp.array([[False, True], [True, False], [False, False], [True, True]])
    assert ca.so_far(reward, end).T.tolist() == [[0, 1, 0, 3], [0, 0, 1, 3]]
    assert ca.ended_before(end).T.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]


def test_a_squared_length_is_the_mean_over_pairs() -> None:
    x = np.random.default_rng(0).normal(0.3, 1.0, (7, 3))
    pairs = [x[i] @ x[j] for i in range(7) for j in range(7) if i != j]
    assert ca.squared_length(x.sum(0), (x**2).sum(), 7) == pytest.approx(np.mean(pairs))
    assert ca.variance(x.sum(0), (x**2).sum(), 7) == pytest.approx(np.trace(np.cov(x.T)))


def test_noise_is_taken_off_and_the_interval_holds_what_it_says() -> None:
    """500 samples of 240 vectors: the squared length of their mean is met on average, and by 95 % of the intervals."""
    rng, mean = np.random.default_rng(1), np.array([0.1, -0.2, 0.0, 0.05])
    found: list[tuple[float, float]] = []
    for _ in range(500):
        x = mean + rng.normal(0.0, [1.0, 0.5, 2.0, 1.0], (240, 4))
        blocks = x.reshape(24, 10, 4)
        found.append(ca.jackknifed(ca.squared_length, blocks.sum(1), (blocks**2).sum((1, 2)), 10))
    value, se = np.array(found).T
    true = float(mean @ mean)
    assert abs(value.mean() - true) < 3 * value.std() / np.sqrt(500)
    assert 0.90 < np.mean(abs(value - true) < 1.96 * se) < 0.99


def test_no_bias_is_within_the_interval_around_none() -> None:
    """1000 samples around 0: at most some 5 % of the intervals leave it out, also where one direction has the noise."""
    rng = np.random.default_rng(2)
    found: list[tuple[float, float]] = []
    for _ in range(1000):
        blocks = rng.normal(0.0, [3.0, 0.5, 0.1, 0.1], (240, 4)).reshape(24, 10, 4)
        sums, squares = blocks.sum(1), (blocks**2).sum((1, 2))
        value, se = ca.jackknifed(ca.squared_length, sums, squares, 10)
        found.append((value, max(se, ca.noise_at_zero(sums, 10))))
    value, se = np.array(found).T
    assert np.mean(value + 1.96 * se < 0) < 0.001
    assert np.mean(value - 1.96 * se > 0) < 0.07
    assert abs(np.mean(value)) < 3 * value.std() / np.sqrt(1000)


def test_the_estimates_are_what_their_names_say() -> None:
    """With a V and a Q known by hand, on one episode of four steps and the start of another."""
    reward = jnp.ones((6, 1))
    terminated = jnp.array([0, 0, 0, 1, 0, 0], bool)[:, None]
    obs = jnp.arange(6.0)[:, None, None]
    steps = Transition(obs, jnp.zeros((6, 1), jnp.int32), reward, obs + 1, terminated, jnp.zeros((6, 1), bool))
    critic = ca.Critics(lambda obs: 10 - 2 * obs[..., 0], lambda obs, action: 7 - obs[..., 0])
    psi = np.asarray(ca.weights(steps, [critic] * len(ca.CRITICS)))[:, :4, 0]
    assert len(psi) == len(ca.NAMES)
    found = {kind: psi[ca.NAMES.index((kind, "half 2" if kind not in ca.PLAIN else ""))] for kind, _ in ca.NAMES}
    V, G = np.array([10.0, 8, 6, 4]), np.array([4.0, 3, 2, 1])
    delta = np.array([-1.0, -1, -1, -3])  # 1 + V(s′) − V(s); at the end 1 − V(s)
    assert found["whole return"].tolist() == [4, 4, 4, 4]
    assert found["G"].tolist() == G.tolist()
    assert found["G − V"].tolist() == found["λ = 1"].tolist() == found["n = 16"].tolist() == (G - V).tolist()
    assert found["Q"].tolist() == [7, 6, 5, 4]
    assert found["Q − V"].tolist() == [-3, -2, -1, 0]
    assert found["n = 1"].tolist() == found["λ = 0"].tolist() == delta.tolist()
    assert found["λ = 0.5"][2] == pytest.approx(delta[2] + 0.5 * delta[3])


def test_the_newest_of_a_ring() -> None:
    ring = np.arange(100.0)
    assert ca.newest(ring, 3, 6).tolist() == [3, 4, 5]
    assert ca.newest(ring, 98, 102).tolist() == [98, 99, 0, 1]
    assert sorted(ca.newest(ring, 0, 250)) == ring.tolist()
    assert not len(ca.newest(ring, 5, 5))


def test_several_critics_are_shown_by_their_mean_and_range() -> None:
    rows = [
        {"kind": "Q", "critic": c, "variance": v, "bias": b, "squared_bias": b * b, "low": 0.9 * b, "high": 1.1 * b}
        for c, v, b in (("well", 1.0, 0.5), ("half 1", 2.0, 3.0), ("half 2", 4.0, 4.0))
    ]
    assert ca.spread(rows, "Q", "well") == ((1, 1, 1), (0.5, 0.45, 0.55))
    assert ca.spread(rows, "Q", "half") == ((3, 2, 4), (pytest.approx(12.5**0.5), 3, 4))
    assert ca.spread(rows, "Q", "") is None
