"""γ = 1: which problems have a value, what it is, and policies that end."""

import itertools

import numpy as np
import pytest
from cases import EXACT, SWEEPING, best_of_all, chain, matrices, reaches_the_end, solved, value_of

from polyak import mdp
from polyak.errors import PolyakError
from polyak.mdp.graph import end_components, escape, graph_of, surely_attracted
from polyak.mdp.problem import problem_of

ALL = [*SWEEPING, *EXACT]


def _random_path(seed: int) -> mdp.Model:
    """A stochastic shortest path problem: at most 6 states, 3 actions; every state has some way to an end, by action
    0, and costs between 0.1 and 2 a step with prizes at ends."""
    draw = np.random.default_rng(1000 + seed)
    n, a, k = int(draw.integers(2, 6)), int(draw.integers(1, 4)), int(draw.integers(1, 3)) + 1
    successor = draw.integers(0, n, (n, a, k))
    successor[:, 0, 0] = np.minimum(np.arange(n) + 1, n - 1)
    probability = draw.dirichlet(np.ones(k), (n, a))
    probability[:, 0, 0] = np.maximum(probability[:, 0, 0], 0.2)
    probability /= probability.sum(2, keepdims=True)
    terminated = draw.random((n, a, k)) < 0.1
    terminated[n - 1, 0, 0] = True
    reward = -draw.uniform(0.1, 2.0, (n, a, k)) + np.where(terminated, draw.normal(size=(n, a, k)) * 5, 0.0)
    return mdp.from_sparse(successor, probability, reward, terminated=terminated)


@pytest.mark.parametrize("block", range(8))
def test_random_paths_by_brute_force(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        model = _random_path(seed)
        best = best_of_all(model, 1.0)
        scale = max(1.0, np.abs(best).max())
        for name in ALL:
            found = solved(name, model, 1.0, tol=1e-9 * scale)
            assert np.abs(found.V - best).max() <= found.bound + 1e-12 * scale, (seed, name)
            assert found.bound <= 1e-9 * scale
            assert reaches_the_end(model, found.policy).all()
            np.testing.assert_allclose(value_of(model, found.policy, 1.0), best, atol=1e-7 * scale)


def _free_loops(seed: int) -> mdp.Model:
    """As above, but rewards are 0 except at ends: an agent may wander for nothing. Without slipping if seed is even."""
    draw = np.random.default_rng(2000 + seed)
    n, a, k = int(draw.integers(2, 7)), int(draw.integers(1, 4)), 1 if seed % 2 == 0 else 2
    successor = draw.integers(0, n, (n, a, k))
    probability = draw.dirichlet(np.ones(k), (n, a))
    terminated = draw.random((n, a, k)) < 0.15
    reward = np.where(terminated, draw.choice([-3.0, 1.0, 2.0], (n, a, k)), 0.0)
    if seed % 3 == 0:
        reward -= np.where(draw.random((n, a, 1)) < 0.3, 0.5, 0.0)
    return mdp.from_sparse(successor, probability, reward, terminated=terminated)


def _with_staying(model: mdp.Model) -> np.ndarray:
    """V*: the limit of the best that n steps bring, since staying in a free loop is allowed and worth 0."""
    P, r = matrices(model)
    V = np.zeros(model.n_states)
    for _ in range(100_000):
        V, before = (r + P @ V).max(1), V
        if np.abs(V - before).max() < 1e-15:
            break
    return V


def _escaping(model: mdp.Model) -> np.ndarray:
    """Level of each state, −1 where there is neither a way to an end nor a free loop to stay in."""
    P, r = matrices(model)
    for states in itertools.chain.from_iterable(
        itertools.combinations(range(model.n_states), size) for size in range(1, model.n_states + 1)
    ):
        inside = P[:, :, list(states)].sum(2) > 1 - 1e-12
        if all((inside[s] & (r[s] == 0)).any() for s in states):  # a set that can be stayed in for nothing
            P = np.where(np.isin(np.arange(model.n_states), states)[:, None, None], 0.0, P)
    problem = problem_of(model, 1.0)
    ends = P.sum(2) < 1 - 1e-12
    stays = problem._replace(weight=P, successor=None, ends=ends)
    return escape(graph_of(stays), stays)[0]


@pytest.mark.parametrize("block", range(8))
def test_free_loops_are_worth_nothing_and_left_when_that_pays(block: int) -> None:
    """Against value iteration from 0, which finds V* here: no reward but those of ends is positive, so that what n
    steps can bring, with staying, decreases or is reached by leaving."""
    solvable = 0
    for model in (_free_loops(seed) for seed in range(20 * block, 20 * block + 20)):
        if (_escaping(model) < 0).any():
            with pytest.raises(PolyakError, match="ends the episode from here with certainty"):
                mdp.policy_iteration(model, 1.0)
            continue
        solvable += 1
        best = _with_staying(model)
        for name in ALL:
            found = solved(name, model, 1.0)
            assert np.abs(found.V - best).max() <= found.bound + 1e-9, name
            ends = reaches_the_end(model, found.policy)
            np.testing.assert_allclose(_total(model, found.policy), best, atol=1e-7)
            assert ends[found.V > 1e-6].all()
    assert solvable > 5


def _total(model: mdp.Model, policy: np.ndarray) -> np.ndarray:
    """What a policy brings in a million steps."""
    P, r = matrices(model)
    s = np.arange(model.n_states)
    power, total = P[s, policy], r[s, policy]
    for _ in range(20):
        total, power = total + power @ total, power @ power
    return total


def test_the_lake_without_slipping_is_crossed() -> None:
    """A naive argmax among its ties would walk in circles."""
    model = mdp.from_gymnasium("FrozenLake-v1", is_slippery=False)
    for name in ALL:
        found = solved(name, model, 1.0)
        np.testing.assert_allclose(found.V, np.where(model.terminal, 0.0, 1.0), atol=1e-9)
        assert reaches_the_end(model, found.policy).all()
        assert found.Q.max(1) == pytest.approx(found.V)


@pytest.mark.parametrize("name", ["gauss-seidel", "policy", "linear"])
def test_a_large_free_lake_is_crossed(name: str) -> None:
    """400 cells, most of them one component with many ways out into holes and one into the goal: a tree of them."""
    n, draw = 20, np.random.default_rng(0)
    holes = draw.random((n, n)) < 0.15
    holes[0], holes[:, -1] = False, False
    desc = ["".join("H" if hole else "F" for hole in row) for row in holes]
    desc[0], desc[-1] = "S" + desc[0][1:], desc[-1][:-1] + "G"
    model = mdp.from_gymnasium("FrozenLake-v1", desc=desc, is_slippery=False)
    found = solved(name, model, 1.0)
    assert found.start_value == 1.0
    assert reaches_the_end(model, found.policy)[found.V > 0].all()


@pytest.mark.parametrize("name", ALL)
def test_staying_beats_a_costly_end(name: str) -> None:
    """Two states that lead to each other for nothing; leaving costs 5: V* = 0. If leaving pays 0, it is left."""
    for price, ends in ((-5.0, False), (0.0, True), (3.0, True)):
        successor = np.array([[1, 0], [0, 1]])
        reward, over = np.array([[0.0, price], [0.0, price]]), np.array([[False, True], [False, True]])
        model = mdp.from_sparse(successor, np.ones((2, 2)), reward, terminated=over)
        found = solved(name, model, 1.0)
        np.testing.assert_allclose(found.V, max(price, 0.0), atol=1e-9)
        assert reaches_the_end(model, found.policy).all() == ends


def test_an_absorbing_state_without_reward_is_as_good_as_terminal() -> None:
    model = mdp.from_arrays(np.array([[[0.5, 0.5]], [[0.0, 1.0]]]), np.array([-1.0, 0.0]))
    for name in ALL:
        np.testing.assert_allclose(solved(name, model, 1.0).V, [-2.0, 0.0], atol=1e-9)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ALL)
def test_a_state_without_an_end_is_refused(name: str) -> None:
    model = mdp.from_arrays(np.array([[[0.0, 1.0]], [[1.0, 0.0]]]), np.array([-1.0, -1.0]))
    with pytest.raises(PolyakError, match="state 0: no policy ends the episode from here with certainty"):
        solved(name, model, 1.0)
    np.testing.assert_allclose(solved(name, model, 0.9).V, -10.0, atol=1e-8)


def test_an_end_that_is_only_probable_is_refused() -> None:
    """State 0 may fall into state 2, which never ends."""
    P = np.zeros((3, 1, 3))
    P[0, 0, [1, 2]], P[1, 0, 1], P[2, 0, 2] = 0.5, 1.0, 1.0
    model = mdp.from_arrays(P, np.array([-1.0, 0.0, -1.0]), terminal=[1])
    with pytest.raises(PolyakError, match="state 0"):
        mdp.value_iteration(model, 1.0)


@pytest.mark.parametrize("name", ALL)
def test_a_reward_for_ever_is_refused(name: str) -> None:
    successor = np.array([[0, 1], [1, 1]])
    model = mdp.from_sparse(successor, np.ones((2, 2)), [[0.5, 1.0], [0.0, 0.0]], terminal=[1])
    with pytest.raises(
        PolyakError, match=r"state 0, action 0: the reward 0.5 can be collected for ever, so the value is"
    ):
        solved(name, model, 1.0)


def test_a_loop_that_pays_more_than_it_costs_is_refused_and_others_are_not() -> None:
    """0 → 1 pays 3, 1 → 0 costs c; both may leave for nothing."""
    for cost, refused in ((1.0, "can be collected for ever"), (3.0, "whose rewards cancel"), (4.0, ""), (300.0, "")):
        successor, over = np.array([[1, 0], [0, 0]]), np.array([[False, True], [False, True]])
        model = mdp.from_sparse(successor, np.ones((2, 2)), [[3.0, 0.0], [-cost, 0.0]], terminated=over)
        for name in ALL:
            if refused:
                with pytest.raises(PolyakError, match="state 0, action 0: the reward 3 .*" + refused):
                    solved(name, model, 1.0)
            else:
                found = solved(name, model, 1.0)
                np.testing.assert_allclose(found.V, [3.0, 0.0], atol=1e-9)
                assert found.policy.tolist() == [0, 1]


def test_a_loop_inside_a_merged_component_is_named_as_the_user_knows_it() -> None:
    """States 1 and 2 wander for nothing; 2 has a row that pays and stays."""
    successor = np.array([[1, 1, 0], [2, 1, 1], [1, 2, 2]])
    over = np.zeros((3, 3), bool)
    over[0, 2] = True
    reward = np.array([[-1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.25, 0.0]])
    model = mdp.from_sparse(successor, np.ones((3, 3)), reward, terminated=over)
    with pytest.raises(PolyakError, match=r"state 2, action 1: the reward 0\.25 can be collected for ever"):
        mdp.policy_iteration(model, 1.0)


def test_a_loop_that_costs_less_than_rounding_is_no_loop_without_an_end() -> None:
    """A cost of 10⁻⁶ beside a prize of 1 is found; one of 10⁻¹⁷ is refused, and in no case is there an endless loop."""
    for cost in (1e-6, 1e-9):
        model = _costly_loop(cost)
        for name in ALL:
            found = solved(name, model, 1.0)
            assert abs(found.V[0] - 1.0) <= found.bound <= 1e-9
            assert found.policy[0] == 1
    for name in (*SWEEPING, "policy"):
        with pytest.raises(PolyakError, match="costs less than float64 can tell"):
            solved(name, _costly_loop(1e-17), 1.0)


def _costly_loop(cost: float) -> mdp.Model:
    over = np.array([[False, True]])
    return mdp.from_sparse(np.array([[0, 0]]), np.ones((1, 2)), [[-cost, 1.0]], terminated=over)


# ---------------------------------------------------------------------------------------------------- graphs


def test_end_components_by_definition() -> None:
    """Random graphs: the union of all (set, rows) that are closed and strongly connected."""
    for seed in range(60):
        draw = np.random.default_rng(seed)
        n, a, k = int(draw.integers(1, 5)), int(draw.integers(1, 3)), int(draw.integers(1, 3))
        weight = draw.dirichlet(np.ones(k), (n, a)) * (draw.random((n, a, k)) < 0.8)
        weight[weight.sum(2) == 0, 0] = 1.0
        weight /= weight.sum(2, keepdims=True)
        model = mdp.from_sparse(draw.integers(0, n, (n, a, k)), weight, np.zeros((n, a)))
        allowed = draw.random((n, a)) < 0.8
        label, inside = end_components(graph_of(problem_of(model, 1.0)), allowed.ravel())
        expected = _components(matrices(model)[0], allowed)
        assert {s for s in range(n) if label[s] >= 0} == set().union(*expected, set())
        for s, t in itertools.combinations(range(n), 2):
            together = any({s, t} <= component for component in expected)
            assert together == (label[s] == label[t] != -1)
        for s, action in itertools.product(range(n), range(a)):
            home = next((c for c in expected if s in c), set())
            stays = set(np.flatnonzero(matrices(model)[0][s, action])) <= home
            assert inside.reshape(n, a)[s, action] == (stays and bool(allowed[s, action]))


def _components(P: np.ndarray, allowed: np.ndarray) -> list[set[int]]:
    """The maximal sets of states that allowed rows can stay in for ever while visiting all of it."""
    n, found = len(P), []
    for size in range(n, 0, -1):
        for states in itertools.combinations(range(n), size):
            members = set(states)
            rows = {
                s: [a for a in range(P.shape[1]) if allowed[s, a] and set(np.flatnonzero(P[s, a])) <= members]
                for s in states
            }
            step = np.zeros((n, n), bool)
            for s in states:
                for a in rows[s]:
                    step[s] |= P[s, a] > 0
            reach = np.linalg.matrix_power(step.astype(float) + np.eye(n), n) > 0
            connected = reach[np.ix_(states, states)].all()
            if all(rows.values()) and connected and not any(members < other for other in found):
                found.append(members)
    return found


def test_sure_attraction_and_escape() -> None:
    problem = problem_of(chain(4), 1.0)
    graph = graph_of(problem)
    level, action = escape(graph, problem)
    assert level.tolist() == [3, 2, 1, 0] and action[:3].tolist() == [1, 1, 1]
    ends, right = problem.ends.ravel(), np.tile([False, True], 4)
    assert surely_attracted(graph, ends, right).tolist() == [2, 1, 0, 0]
    assert (surely_attracted(graph, ends, np.ones(8, bool))[:3] == -1).all()
