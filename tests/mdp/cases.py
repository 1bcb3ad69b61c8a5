"""Models that several tests share, and what they are compared with: answers from definitions, by brute force."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from polyak.mdp import Model, Solution, from_arrays, from_sparse, policy_iteration, value_iteration
from polyak.mdp.planning import linear_program, modified_policy_iteration, q_value_iteration

SWEEPING: dict[str, Callable[..., Solution]] = {
    "value-iteration": value_iteration,
    "gauss-seidel": lambda *a, **k: value_iteration(*a, sweep="gauss-seidel", **k),
    "prioritised": lambda *a, **k: value_iteration(*a, sweep="prioritised", **k),
    "modified": modified_policy_iteration,
    "modified-0": lambda *a, **k: modified_policy_iteration(*a, evaluations=0, **k),
    "q": q_value_iteration,
}
EXACT: dict[str, Callable[..., Solution]] = {"policy": policy_iteration, "linear": linear_program}


def solved(name: str, model: Model, gamma: float, tol: float = 1e-9, **more: Any) -> Solution:
    """By any method."""
    return EXACT[name](model, gamma) if name in EXACT else SWEEPING[name](model, gamma, tol=tol, **more)


def random_walk(reward: float = 1.0) -> Model:
    """Five states in a row between two ends (Sutton & Barto, example 6.2); one action; the right end pays."""
    P, R = np.zeros((7, 1, 7)), np.zeros((7, 1, 7))
    for s in range(1, 6):
        P[s, 0, [s - 1, s + 1]] = 0.5
    R[5, 0, 6] = reward
    return from_arrays(P, R, terminal=[0, 6], start=3)


def two_by_two() -> Model:
    P = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]])
    return from_arrays(P, np.array([[1.0, 0.0], [0.0, 2.0]]))


def chain(n: int = 6, cost: float = -1.0) -> Model:
    """Left and right in a corridor, the right end terminal."""
    successor = np.stack([np.maximum(np.arange(n) - 1, 0), np.minimum(np.arange(n) + 1, n - 1)], 1)
    reward = np.full((n, 2), cost)
    reward[-1] = 0.0
    return from_sparse(successor, np.ones((n, 2)), reward, terminal=[n - 1], start=0)


def random_model(seed: int) -> Model:
    """At most 6 states and 3 actions; some with ends, some sparse, some deterministic, some with terminal states."""
    draw = np.random.default_rng(seed)
    n, a = int(draw.integers(1, 7)), int(draw.integers(1, 4))
    k = int(draw.integers(1, 4))
    successor = draw.integers(0, n, (n, a, k))
    probability = draw.dirichlet(np.full(k, 0.7), (n, a))
    probability /= probability.sum(2, keepdims=True)
    reward = draw.normal(size=(n, a, k)) * 10.0 ** draw.integers(-2, 4) + draw.normal()
    terminated = draw.random((n, a, k)) < draw.choice([0.0, 0.2])
    terminal = (draw.random(n) < 0.2) & (seed % 3 == 0)
    reward = np.where(terminal[:, None, None], 0.0, reward)
    sparse = from_sparse(successor, probability, reward, terminated=terminated, terminal=terminal)
    return densified(sparse) if seed % 2 and not terminated.any() else sparse


def densified(model: Model) -> Model:
    """The dense model of a sparse one without ends but those of terminal states."""
    assert model.successor is not None
    n, a, _ = model.probability.shape
    P = np.zeros((n, a, n))
    place = np.arange(n)[:, None, None], np.arange(a)[:, None], model.successor
    np.add.at(P, place, model.probability)
    return from_arrays(P, model.expected_reward, terminal=model.terminal, start=model.start)


def matrices(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """(P without what ends the episode [S, A, S], r [S, A]), by loops from the definition."""
    n, a, k = model.probability.shape
    P, r = np.zeros((n, a, n)), np.zeros((n, a))
    for s, action, i in itertools.product(range(n), range(a), range(k)):
        p = model.probability[s, action, i]
        to = i if model.successor is None else model.successor[s, action, i]
        r[s, action] += p * model.reward[s, action, i]
        if not model.terminated[s, action, i] and not model.terminal[to] and not model.terminal[s]:
            P[s, action, to] += p
    return P, np.where(model.terminal[:, None], 0.0, r)


def value_of(model: Model, policy: Any, gamma: float) -> np.ndarray:
    """V^π [S] from (I − γ P_π) V = r_π."""
    P, r = matrices(model)
    s = np.arange(model.n_states)
    return np.linalg.solve(np.eye(len(s)) - gamma * P[s, policy], r[s, policy])


def best_of_all(model: Model, gamma: float) -> np.ndarray:
    """V* [S]: the best of all deterministic policies, one state at a time; improper ones at γ = 1 don't count."""
    P, _ = matrices(model)
    best, s = np.full(model.n_states, -np.inf), np.arange(model.n_states)
    for policy in itertools.product(range(model.n_actions), repeat=model.n_states):
        chain = P[s, list(policy)]
        if gamma < 1 or np.abs(np.linalg.matrix_power(chain, 4096)).max() < 1e-9:
            best = np.maximum(best, value_of(model, list(policy), gamma))
    return best


def reaches_the_end(model: Model, policy: np.ndarray) -> np.ndarray:
    """From which states the policy ends the episode with probability 1, [S]."""
    P, _ = matrices(model)
    inside = np.linalg.matrix_power(P[np.arange(model.n_states), policy], 1 << 16)
    return inside.sum(1) < 1e-6
