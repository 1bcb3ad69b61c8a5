"""Planning: known answers, agreement of all methods, and bounds that hold."""

import itertools
import os
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    EXACT,
    SWEEPING,
    best_of_all,
    chain,
    densified,
    matrices,
    random_model,
    random_walk,
    solved,
    two_by_two,
    value_of,
)

from polyak import mdp
from polyak.errors import PolyakError
from polyak.mdp import sweeps
from polyak.mdp.problem import problem_of

ALL = [*SWEEPING, *EXACT]


@pytest.fixture(scope="module")
def lake() -> mdp.Model:
    return mdp.from_gymnasium("FrozenLake-v1")


@pytest.fixture(scope="module")
def cliff() -> mdp.Model:
    return mdp.from_gymnasium("CliffWalking-v1")


# ---------------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    ("gamma", "start"), [(0.99, 0.542025932000), (0.95, 0.180471578397), (0.9, 0.068890904889), (1.0, 14 / 17)]
)
def test_frozen_lake(lake: mdp.Model, method: str, gamma: float, start: float) -> None:
    found = solved(method, lake, gamma)
    assert abs(found.start_value - start) < 2e-9
    assert found.bound <= 1e-9
    assert found.V[0] == found.start_value
    mean = {0.99: 0.396238721, 0.9: 0.136005766}.get(gamma)
    assert mean is None or abs(found.V.mean() - mean) < 2e-9


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(("gamma", "start"), [(1.0, -13.0), (0.99, -12.247897700), (0.9, -7.458134172)])
def test_cliff_walking(cliff: mdp.Model, method: str, gamma: float, start: float) -> None:
    found = solved(method, cliff, gamma)
    assert abs(found.start_value - start) < 2e-9
    assert found.V[47] == 0.0


@pytest.mark.parametrize("method", ALL)
def test_a_lake_that_is_not_slippery(method: str) -> None:
    model = mdp.from_gymnasium("FrozenLake-v1", is_slippery=False)
    assert abs(solved(method, model, 0.99).start_value - 0.990**5) < 2e-9
    assert abs(0.99**5 - 0.950990049900) < 1e-12


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("gamma", [1.0, 0.99])
def test_taxi_has_the_value_of_its_table(method: str, gamma: float) -> None:
    model = mdp.from_gymnasium("Taxi-v4")
    found = solved(method, model, gamma)
    V = np.zeros(500)
    for _ in range(2500):
        V = mdp.bellman(model, V, gamma).max(1)
    np.testing.assert_allclose(found.V, V, atol=1e-8)


def test_a_hundred_steps_of_frozen_lake(lake: mdp.Model) -> None:
    found = mdp.finite_horizon(lake, 100)
    assert abs(found.start_value - 0.744190) < 1e-6
    assert found.V.shape == (101, 16) and found.policy.shape == (100, 16) and found.policy.dtype == np.int32
    assert (found.V[100] == 0).all() and found.sweeps == 100 and found.bound < 1e-12
    np.testing.assert_array_equal(found.frames[-1], found.V[0])
    assert found.frame_sweeps[[0, -1]].tolist() == [0, 100] and found.errors.shape == (100,)


@pytest.mark.parametrize("method", ALL)
def test_the_random_walk(method: str) -> None:
    found = solved(method, random_walk(), 1.0, tol=1e-12)
    np.testing.assert_allclose(found.V, [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0], atol=1e-12)


@pytest.mark.parametrize("tol", [None, 1e-11])
def test_a_chain_of_two_states(tol: float | None) -> None:
    model = mdp.from_arrays(np.array([[[0.7, 0.3]], [[0.4, 0.6]]]), np.array([1.0, -1.0]))
    found = mdp.policy_evaluation(model, np.zeros(2, int), 0.9, tol=tol)
    np.testing.assert_allclose(found.V, [2.602739726, -0.1369863014], atol=1e-9)
    assert found.bound < 1e-11


@pytest.mark.parametrize("method", ALL)
def test_control_of_two_states(method: str) -> None:
    found = solved(method, two_by_two(), 0.9, tol=1e-11)
    exact = [[11.2328767123, 11.0958904110], [10.9726027397, 12.6027397260]]
    np.testing.assert_allclose(found.Q, exact, atol=2e-10)
    assert found.policy.tolist() == [0, 1]


def test_a_grid_of_the_book() -> None:
    """Sutton & Barto, example 4.1: the random policy on 4 × 4 cells, −1 a step, two corners terminal."""
    n = np.arange(16).reshape(4, 4)
    moves = [np.clip(n // 4 + d, 0, 3) * 4 + np.clip(n % 4 + r, 0, 3) for d, r in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    reward = np.full((16, 4), -1.0)
    reward[[0, 15]] = 0.0
    successor = np.stack([move.ravel() for move in moves], 1)
    model = mdp.from_sparse(successor, np.ones((16, 4)), reward, terminal=[0, 15])
    exact = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    for tol in (None, 1e-9):
        found = mdp.policy_evaluation(model, np.full((16, 4), 0.25), 1.0, tol=tol)
        np.testing.assert_allclose(found.V, exact, atol=1e-8)
        assert found.bound <= 1e-9


# ---------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("name", ["value-iteration", "gauss-seidel", "q"])
@pytest.mark.parametrize("seed", range(12))
def test_every_sweep_contracts(name: str, seed: int) -> None:
    model, gamma = random_model(seed), 0.9
    best = best_of_all(model, gamma)
    found = solved(name, model, gamma, tol=1e-9 * max(1.0, np.abs(best).max()), keep=10_000)
    assert found.frame_sweeps.tolist() == list(range(found.sweeps + 1))
    errors = np.abs(found.frames - best).max(1)
    assert (errors[1:] <= gamma * errors[:-1] + 1e-13 * np.abs(best).max() + 1e-14).all()
    assert (errors[1:] <= found.errors + 1e-13 * np.abs(best).max()).all()
    np.testing.assert_array_equal(found.frames[-1], found.V)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("block", range(10))
def test_all_methods_agree_on_random_models(block: int, gamma: float) -> None:
    for seed in range(20 * block, 20 * block + 20):
        model = random_model(seed)
        names = ALL if gamma == 0.9 else ["value-iteration", "gauss-seidel", "policy"]
        exact = solved("policy", model, gamma)
        best = value_of(model, exact.policy, gamma)
        scale = max(1.0, np.abs(best).max())
        if gamma == 0.9:
            np.testing.assert_allclose(best, best_of_all(model, gamma), atol=1e-10 * scale)
        for name in names:
            found = solved(name, model, gamma, tol=1e-9 * scale)
            assert np.abs(found.V - best).max() <= 1e-8 * scale, (seed, name)
            assert np.abs(found.V - best).max() <= found.bound + 1e-13 * scale, (seed, name)
            assert name == "linear" or found.bound <= 1e-9 * scale
            assert abs(found.start_value - model.start @ found.V) < 1e-12 * scale
            assert (found.V[model.terminal] == 0).all()


def _fractions(model: mdp.Model, policy: np.ndarray, gamma: float) -> list[Fraction]:
    """V^π without any rounding: the model's float64 numbers are taken at their word, and Gauss eliminates."""
    n, _, k = model.probability.shape
    rows = [[Fraction(int(s == t)) for t in range(n)] + [Fraction(0)] for s in range(n)]
    for s, i in itertools.product(range(n), range(k)):
        a = policy[s]
        p = Fraction(float(model.probability[s, a, i]))
        to = i if model.successor is None else int(model.successor[s, a, i])
        if not model.terminal[s]:
            rows[s][n] += p * Fraction(float(model.reward[s, a, i]))
            rows[s][to] -= Fraction(gamma) * p * int(not model.terminated[s, a, i])
    for s in range(n):
        rows[s] = [x / rows[s][s] for x in rows[s]]
        for t in range(n):
            if t != s and rows[t][s]:
                rows[t] = [x - rows[t][s] * y for x, y in zip(rows[t], rows[s], strict=True)]
    return [row[n] for row in rows]


@pytest.mark.parametrize("gamma", [0.5, 0.95])
def test_bounds_hold_in_exact_arithmetic(gamma: float) -> None:
    """Bounds of a few units in the last place, against fractions; the optimal policy is certain where gaps are wide."""
    compared = 0
    for seed in range(60):
        model = random_model(seed)
        for name in ("policy", "value-iteration", "gauss-seidel"):
            try:
                found = solved(name, model, gamma, tol=3e-12 * max(1.0, np.abs(model.reward).max()))
            except PolyakError as error:
                if "float64 can promise" not in str(error):
                    raise
                continue
            if model.n_actions > 1 and np.diff(np.sort(found.Q[~model.terminal], 1)[:, -2:]).min(initial=1) < 1e-6:
                continue
            compared += 1
            exact = _fractions(model, found.policy, gamma)
            far = max(abs(Fraction(float(v)) - x) for v, x in zip(found.V, exact, strict=True))
            assert far <= Fraction(found.bound)
    assert compared > 100


def test_a_bound_that_is_asked_for_early_holds(lake: mdp.Model) -> None:
    best = solved("policy", lake, 0.99).V
    for name, sweeps_done in itertools.product(SWEEPING, (1, 2, 3, 10, 50)):
        found = SWEEPING[name](lake, 0.99, tol=1e-12, max_sweeps=sweeps_done)
        assert found.sweeps <= sweeps_done and len(found.errors) == found.sweeps
        assert np.abs(found.V - best).max() <= found.bound
        assert found.bound > 1e-12


def test_bounds_hold_at_gamma_one_when_stopped_early(lake: mdp.Model) -> None:
    best = solved("policy", lake, 1.0).V
    for name, sweeps_done in itertools.product(SWEEPING, (1, 5, 20, 100, 300, 600)):
        found = SWEEPING[name](lake, 1.0, tol=1e-12, max_sweeps=sweeps_done)
        assert np.abs(found.V - best).max() <= found.bound


def test_bounds_shrink_faster_than_gamma_where_states_mix() -> None:
    """Without ends only differences between states matter, which fade with mixing: 17 sweeps instead of 2,000."""
    found = mdp.value_iteration(two_by_two(), 0.99, tol=1e-9)
    assert found.sweeps < 60
    assert np.abs(found.V - value_of(two_by_two(), found.policy, 0.99)).max() <= found.bound


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_a_tolerance_below_rounding_is_refused(gamma: float) -> None:
    model = mdp.from_gymnasium("CliffWalking-v1")
    for name in SWEEPING:
        with pytest.raises(PolyakError, match=r"tol is 1e-17, and float64 can promise [\d.e-]+ for this model"):
            solved(name, model, gamma, tol=1e-17)


def test_the_promised_tolerance_can_be_had(lake: mdp.Model) -> None:
    for gamma, name in itertools.product((0.9, 1.0), ("value-iteration", "gauss-seidel", "modified")):
        with pytest.raises(PolyakError) as error:
            solved(name, lake, gamma, tol=1e-17)
        promised = float(str(error.value).split("can promise ")[1].split()[0])
        assert solved(name, lake, gamma, tol=promised).bound <= promised


# ---------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("seed", range(30))
def test_policies_are_evaluated(seed: int) -> None:
    model, draw = random_model(seed), np.random.default_rng(seed)
    policy = draw.integers(0, model.n_actions, model.n_states)
    best = value_of(model, policy, 0.9)
    scale = max(1.0, np.abs(best).max())
    for given, tol in itertools.product((policy, np.eye(model.n_actions)[policy]), (None, 1e-9 * scale)):
        found = mdp.policy_evaluation(model, given, 0.9, tol=tol)
        assert np.abs(found.V - best).max() <= found.bound + 1e-13 * scale
        assert found.bound <= 1e-9 * scale
    mixed = draw.dirichlet(np.ones(model.n_actions), model.n_states)
    mixed /= mixed.sum(1, keepdims=True)
    P, r = matrices(model)
    chain_of = np.einsum("sa,sat->st", mixed, P)
    exact = np.linalg.solve(np.eye(model.n_states) - 0.9 * chain_of, (mixed * r).sum(1))
    found = mdp.policy_evaluation(model, mixed, 0.9)
    np.testing.assert_allclose(found.V, exact, atol=1e-10 * scale)
    np.testing.assert_allclose(found.Q, r + 0.9 * P @ exact, atol=1e-10 * scale)


def test_a_policy_that_never_ends_is_refused_at_gamma_one() -> None:
    with pytest.raises(PolyakError, match="state 0: this policy never ends the episode"):
        mdp.policy_evaluation(chain(), np.zeros(6, int), 1.0)
    assert mdp.policy_evaluation(chain(), np.ones(6, int), 1.0).start_value == -5.0
    assert abs(mdp.policy_evaluation(chain(), np.zeros(6, int), 0.5).start_value + 2.0) < 1e-12


# ---------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("gamma", [0.97, 1.0])
@pytest.mark.parametrize("slip", [0.0, 0.4])
def test_compiled_sweeps_are_those_of_numpy(gamma: float, slip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyak.envs.classic.grid_world import GridWorld

    model = mdp.from_world(GridWorld(slip=slip))
    for name in SWEEPING:
        small = solved(name, model, gamma, keep=50)
        monkeypatch.setattr(sweeps, "COMPILED", 1)
        large = solved(name, model, gamma, keep=50)
        monkeypatch.undo()
        np.testing.assert_allclose(large.V, small.V, atol=2e-9)
        if gamma < 1 and "gauss" not in name and "modified" not in name:  # whose blocks differ
            assert abs(large.sweeps - small.sweeps) <= 1
        assert large.bound <= 1e-9


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_sparse_is_dense(gamma: float) -> None:
    for env in ("CliffWalking-v1", "FrozenLake-v1"):
        sparse = mdp.from_gymnasium(env)
        successor = sparse.successor
        assert successor is not None
        R = np.zeros((sparse.n_states, sparse.n_actions, sparse.n_states))
        s, a, _ = np.indices(sparse.probability.shape)
        R[s, a, successor] = sparse.reward  # outcomes of one pair that share a successor share a reward here
        P = np.zeros_like(R)
        np.add.at(P, (s, a, successor), sparse.probability)
        dense = mdp.from_arrays(P, R, terminal=sparse.terminal, start=sparse.start)
        np.testing.assert_allclose(dense.expected_reward, sparse.expected_reward, atol=1e-14)
        for name in ALL:
            one, other = solved(name, sparse, gamma), solved(name, dense, gamma)
            np.testing.assert_allclose(one.V, other.V, atol=2e-9)


def _maze(n: int) -> mdp.Model:
    """n × n cells without walls, the last one the goal, −1 a step."""
    cell = np.arange(n * n, dtype=np.int32).reshape(n, n)
    rows, columns = cell // n, cell % n
    steps = ((0, -1), (1, 0), (0, 1), (-1, 0))
    to = [np.clip(rows + d, 0, n - 1) * n + np.clip(columns + r, 0, n - 1) for d, r in steps]
    reward = np.full((n * n, 4), -1.0)
    reward[-1] = 0.0
    successor = np.stack([x.ravel() for x in to], 1)
    return mdp.from_sparse(successor, np.ones((n * n, 4)), reward, terminal=[n * n - 1], start=0, shape=(n, n))


@pytest.mark.parametrize("name", ["gauss-seidel", "modified", "prioritised", "value-iteration"])
def test_a_grid_of_forty_thousand_cells(name: str) -> None:
    model = _maze(200)
    for gamma in (0.99, 1.0):
        found = solved(name, model, gamma, tol=1e-6)
        steps = 398 - np.arange(40_000) // 200 - np.arange(40_000) % 200
        exact = -steps if gamma == 1 else -(1 - 0.99**steps) / 0.01
        assert np.abs(found.V - exact).max() <= found.bound <= 1e-6
    if name == "gauss-seidel":
        assert found.sweeps <= 8


@pytest.mark.full
def test_a_million_states_in_two_gigabytes() -> None:
    code = (
        "import resource, sys; sys.path.insert(0, 'tests/mdp')\n"
        "from test_planning import _maze\n"
        "from polyak.mdp import value_iteration\n"
        "found = value_iteration(_maze(1000), 0.99, sweep='gauss-seidel')\n"
        "assert found.bound <= 1e-6 and abs(found.start_value + (1 - 0.99**1998) / 0.01) <= 1e-6\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 2_000_000


# ---------------------------------------------------------------------------------------------------- what else


def test_float64_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float32 learner is the same program with the same result before and after planning."""
    monkeypatch.setattr(sweeps, "COMPILED", 1)

    @jax.jit
    def learner(w: jax.Array) -> jax.Array:
        return w - 0.1 * jnp.tanh(w) * jnp.asarray(np.pi)

    before = learner(jnp.arange(5.0))
    model = mdp.from_gymnasium("CliffWalking-v1")
    for name, gamma in itertools.product(SWEEPING, (0.9, 1.0)):
        assert solved(name, model, gamma).V.dtype == np.float64
    assert not jax.config.jax_enable_x64
    after = learner(jnp.arange(5.0))
    assert before.dtype == after.dtype == jnp.zeros(1).dtype == jnp.float32
    np.testing.assert_array_equal(before, after)
    assert learner._cache_size() == 1  # pyright: ignore


def test_frames_are_spread_and_end_with_the_answer(lake: mdp.Model) -> None:
    for name in SWEEPING:
        for keep in (1, 5, 20):
            found = solved(name, lake, 0.99, keep=keep)
            n = len(found.frames)
            assert 2 <= n <= max(keep, 3) + 1 and found.frames.shape == (n, 16)
            assert found.frame_sweeps[0] == 0 and found.frame_sweeps[-1] == found.sweeps
            assert (np.diff(found.frame_sweeps) > 0).all()
            np.testing.assert_array_equal(found.frames[-1], found.V)
        assert solved(name, lake, 0.99).frames.shape == (0, 16)
    found = mdp.policy_iteration(lake, 0.99, keep=10)
    assert found.frames.shape == (found.sweeps + 1, 16)


def test_progress_is_called_and_may_interrupt(lake: mdp.Model) -> None:
    seen: list[tuple[int, float]] = []
    found = mdp.value_iteration(lake, 0.99, progress=lambda n, bound: seen.append((n, bound)))
    assert seen[-1] == (found.sweeps, found.bound)
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)

    def stop(n: int, bound: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mdp.value_iteration(lake, 0.99, progress=stop)


def test_gamma_zero_is_the_best_reward() -> None:
    for name in ALL:
        found = solved(name, two_by_two(), 0.0)
        np.testing.assert_allclose(found.V, [1.0, 2.0], atol=1e-12)
    assert mdp.policy_evaluation(two_by_two(), [0, 0], 0.0).V.tolist() == [1.0, 0.0]


def test_a_model_of_terminal_states_alone_is_worth_nothing() -> None:
    model = mdp.from_arrays(np.zeros((2, 1, 2)), np.zeros(2), terminal=[0, 1])
    for name, gamma in itertools.product(ALL, (0.9, 1.0)):
        assert solved(name, model, gamma).V.tolist() == [0.0, 0.0]


def test_finite_horizon_by_enumeration() -> None:
    """V[t] by recursion over the definition, and a horizon for which no infinite one exists."""
    for seed in range(20):
        model = random_model(seed)
        P, r = matrices(model)
        found = mdp.finite_horizon(model, 5, 0.8)
        V = np.zeros(model.n_states)
        for t in reversed(range(5)):
            Q = np.array([[r[s, a] + 0.8 * P[s, a] @ V for a in range(r.shape[1])] for s in range(len(r))])
            V = Q.max(1)
            assert np.abs(found.V[t] - V).max() <= found.bound + 1e-12 * max(1.0, np.abs(V).max())
        np.testing.assert_allclose(found.Q, Q, rtol=1e-12, atol=1e-12)
    assert mdp.finite_horizon(two_by_two(), 3).V[0].max() > 3.0


def test_bellman_is_one_backup(lake: mdp.Model) -> None:
    V = np.random.default_rng(0).normal(size=16)
    P, r = matrices(lake)
    np.testing.assert_allclose(mdp.bellman(lake, V, 0.9), r + 0.9 * P @ np.where(lake.terminal, 0, V), atol=1e-14)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"gamma": 1.5}, "gamma is 1.5, and must lie in"),
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gamma": True}, "gamma is True"),
        ({"gamma": "0.9"}, "gamma is 0.9"),
        ({"tol": 0.0}, "tol is 0.0, and must be a number above 0"),
        ({"tol": float("nan")}, "tol is nan"),
        ({"tol": -1.0}, "tol is -1.0"),
        ({"max_sweeps": 0}, "max_sweeps is 0"),
        ({"max_sweeps": 1.5}, "max_sweeps is 1.5"),
        ({"sweep": "jacobi"}, "sweep is 'jacobi', and must be one of synchronous, gauss-seidel, prioritised"),
    ],
)
def test_bad_arguments_are_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(PolyakError, match=sentence):
        mdp.value_iteration(two_by_two(), **{"gamma": 0.9, **wrong})  # type: ignore[arg-type]


def test_other_bad_arguments_are_refused() -> None:
    model = two_by_two()
    for call, sentence in (
        (lambda: mdp.finite_horizon(model, 0), "horizon is 0, and must be a whole number"),
        (lambda: mdp.finite_horizon(model, 10**13), "would take .* of memory"),
        (lambda: mdp.finite_horizon(model, 5, 2.0), "gamma is 2.0"),
        (lambda: mdp.bellman(model, np.zeros(3), 0.9), r"V has the shape \[3\], and must be \[2\]"),
        (lambda: mdp.policy_evaluation(model, [0, 2], 0.9), "state 1: the policy takes action 2, and there are 0 to 1"),
        (lambda: mdp.policy_evaluation(model, [0], 0.9), r"the policy is int64 of the shape \[1\]"),
        (lambda: mdp.policy_evaluation(model, [[0.5, 0.4], [0, 1]], 0.9), "state 0: the policy's probabilities"),
        (lambda: mdp.modified_policy_iteration(model, 0.9, evaluations=-1), "evaluations is -1"),
    ):
        with pytest.raises(PolyakError, match=sentence):
            call()


def test_gamma_next_to_one_is_solved_or_refused() -> None:
    found = mdp.policy_iteration(two_by_two(), 1 - 1e-9)
    best = value_of(two_by_two(), found.policy, 1 - 1e-9)
    assert np.abs(found.V - best).max() <= found.bound + 1e-6 * np.abs(best).max()
    with pytest.raises(PolyakError, match="so close to 1"):
        mdp.value_iteration(two_by_two(), np.nextafter(1, 0))


def test_rewards_that_would_overflow_are_refused() -> None:
    model = mdp.from_arrays(np.ones((1, 1, 1)), [1e200])
    with pytest.raises(PolyakError, match=r"a reward has the size 1e\+200, whose sums float64 can't hold"):
        mdp.value_iteration(model, 0.9)


def test_episodes_of_a_billion_steps_are_solved_by_equations() -> None:
    p = 1e-9
    P = np.array([[[1 - p, p]], [[0.0, 1.0]]])
    model = mdp.from_arrays(P, np.array([-1.0, 0.0]), terminal=[1])
    found = mdp.policy_iteration(model, 1.0)
    assert abs(found.V[0] + 1 / (1 - P[0, 0, 0])) <= found.bound < 1e4
    with pytest.raises(PolyakError, match="was not solved: The problem is unbounded"):
        mdp.linear_program(model, 1.0)  # HiGHS takes 10⁻⁹ for 0


def test_sparse_and_dense_problems_have_the_same_weights() -> None:
    for seed in range(1, 40, 2):
        model = random_model(seed)
        if model.successor is None:
            continue
        if not (model.terminated & ~model.terminal[model.successor]).any():
            weights = problem_of(densified(model), 0.9).weight
            np.testing.assert_allclose(weights, 0.9 * matrices(model)[0], atol=1e-14)
