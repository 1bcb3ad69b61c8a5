"""Models: what is built from arrays, and the sentence for everything that can't be."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from cases import chain, random_walk

from polyak import mdp, memory
from polyak.errors import PolyakError

P = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]])
R = np.array([[1.0, 0.0], [0.0, 2.0]])


def test_a_dense_model() -> None:
    model = mdp.from_arrays(P, R, start=[0.25, 0.75], name="two", actions=["stay", "go"])
    assert (model.n_states, model.n_actions, model.transitions) == (2, 2, 8)
    assert model.successor is None and model.name == "two" and model.actions == ("stay", "go")
    np.testing.assert_array_equal(model.probability, P)
    np.testing.assert_array_equal(model.expected_reward, R)
    np.testing.assert_array_equal(model.start, [0.25, 0.75])
    assert not model.terminated.any() and not model.terminal.any() and not model.unreachable().any()
    assert all(x.dtype == np.float64 for x in (model.probability, model.reward, model.start, model.expected_reward))


def test_rewards_of_three_shapes() -> None:
    by_state, by_outcome = np.array([1.0, -1.0]), np.arange(8.0).reshape(2, 2, 2)
    assert mdp.from_arrays(P, by_state).expected_reward.tolist() == [[1.0, 1.0], [-1.0, -1.0]]
    expected = mdp.from_arrays(P, by_outcome).expected_reward
    np.testing.assert_allclose(expected, (P * by_outcome).sum(2))
    assert mdp.from_arrays(P, R).reward.strides[2] == 0  # a view


def test_a_terminal_state_leads_to_itself_for_nothing() -> None:
    model = random_walk()
    assert model.terminal.tolist() == [True, *[False] * 5, True]
    assert model.probability[0, 0, 0] == model.probability[6, 0, 6] == 1.0
    assert model.terminated[5, 0].tolist() == model.terminal.tolist()
    assert model.start.tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert mdp.from_arrays(P, R * [[1], [0]], terminal=[1]).start.tolist() == [1.0, 0.0]
    mask = mdp.from_arrays(P, R * [[1], [0]], terminal=np.array([False, True]))
    assert mask.terminal.tolist() == [False, True] and mask.probability[1, 0].tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(mask.probability[0], P[0])


def test_a_sparse_model() -> None:
    model = chain(4)
    assert model.probability.shape == (4, 2, 1) and model.transitions == 8
    assert model.successor is not None and model.successor.dtype == np.int32
    assert model.terminated[:, :, 0].tolist() == [[False, False], [False, False], [False, True], [True, True]]
    over = mdp.from_sparse(np.zeros((1, 1), int), np.ones((1, 1)), np.ones((1, 1)), terminated=np.ones((1, 1), bool))
    assert over.terminated.all() and not over.terminal.any()


def test_matrices_of_scipy_are_a_sparse_model() -> None:
    for form in (scipy.sparse.csr_matrix, scipy.sparse.coo_array, scipy.sparse.lil_matrix, np.asarray):
        each = [form(P[:, a]) for a in range(2)]
        for rewards in (R, [1.0, -1.0], [form(P[:, a] * 2) for a in range(2)], np.stack([P[:, 0] * 2, P[:, 1] * 2])):
            model = mdp.from_matrices(each, rewards, name="toolbox")
            dense = np.zeros((2, 2, 2))
            s, a, _ = np.indices(model.probability.shape)
            np.add.at(dense, (s, a, model.successor), model.probability)
            np.testing.assert_array_equal(dense, P)
            if np.ndim(rewards) == 3 or scipy.sparse.issparse(rewards[0]):
                np.testing.assert_allclose(model.expected_reward, (P * 2 * P).sum(2))
            elif np.ndim(rewards) == 1:
                assert model.expected_reward.tolist() == [[1.0, 1.0], [-1.0, -1.0]]
            else:
                np.testing.assert_array_equal(model.expected_reward, R)


def test_unreachable_states_are_named() -> None:
    successor = np.array([[1, 1], [2, 3], [2, 2], [0, 0], [0, 4]])
    over = np.zeros((5, 2), bool)
    over[1, 1] = True  # entering 3 ends the episode: what 3 would do next is never seen
    model = mdp.from_sparse(successor, np.ones((5, 2)), np.zeros((5, 2)), terminated=over, start=1)
    assert model.unreachable().tolist() == [True, False, False, False, True]
    assert mdp.from_sparse(successor, np.ones((5, 2)), np.zeros((5, 2)), start=1).unreachable().tolist()[4]
    dense = mdp.from_arrays(np.array([[[0.0, 1, 0]], [[1, 0, 0]], [[0, 0, 1]]]), np.zeros(3), start=0)
    assert dense.unreachable().tolist() == [False, False, True]


def test_arrays_are_copies_that_nobody_writes_to() -> None:
    given, rewards = P.copy(), R.copy()
    model = mdp.from_arrays(given, rewards)
    given[:], rewards[:] = 7.0, 7.0
    np.testing.assert_array_equal(model.probability, P)
    np.testing.assert_array_equal(model.expected_reward, R)
    for array in (model.probability, model.start, model.terminal, model.expected_reward):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert model != mdp.from_arrays(P, R)
    with pytest.raises(AttributeError):
        model.name = "other"  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------- refusals


def _row(values: list[float]) -> np.ndarray:
    changed = P.copy()
    changed[1, 0] = values
    return changed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            (_row([0.3, 0.6]), R),
            r"^state 1, action 0: the probabilities sum to 0\.9, and must sum to 1; complete the row",
        ),
        ((_row([0.3, 0.7 + 1e-6]), R), r"state 1, action 0: .* sum to 1\.000001, .*; divide the row by its sum"),
        ((_row([1.2, -0.2]), R), r"state 1, action 0: the probability of successor 1 is -0\.2, which is negative"),
        ((_row([0.3, np.nan]), R), r"P\[1, 0, 1\] is nan, and must be finite"),
        ((_row([0.3, np.inf]), R), r"P\[1, 0, 1\] is inf"),
        ((np.ones((2, 2)), R), r"P has the shape \[2, 2\], and must be \[states, actions, states\]$"),
        ((np.full((3, 2, 2), 0.5), R), r"P has the shape \[3, 2, 2\].*as \[A, S, S\] it goes through numpy.swapaxes"),
        ((np.zeros((0, 2, 0)), R), r"P has the shape \[0, 2, 0\]"),
        (("P", R), r"P is no array of numbers"),
        ((P, [[1.0, np.nan], [0, 0]]), r"R\[0, 1\] is nan, and must be finite"),
        ((P, [[1.0, -np.inf], [0, 0]]), r"R\[0, 1\] is -inf"),
        ((P, np.ones(3)), r"R has the shape \[3\], and must be \[2\], \[2, 2\] or \[2, 2, 2\]"),
        ((P, np.ones((2, 2, 3))), r"R has the shape \[2, 2, 3\]"),
    ],
)
def test_bad_arrays_are_refused(arguments: tuple[Any, Any], sentence: str) -> None:
    with pytest.raises(PolyakError, match=sentence):
        mdp.from_arrays(*arguments)


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"start": [0.5, 0.4]}, "start sums to 0.9, and must be a distribution over the 2 states"),
        ({"start": [1.5, -0.5]}, "start sums to 1, and must be a distribution"),
        ({"start": [1.0]}, r"start has the shape \[1\], and must be \[2\] or one state's number"),
        ({"start": 2}, "start names state 2, and there are states 0 to 1"),
        ({"terminal": [5]}, "terminal names state 5, and there are states 0 to 1"),
        ({"terminal": [-1]}, "terminal names state -1"),
        ({"terminal": [True]}, "terminal has the shape"),
        ({"terminal": [0.5]}, "terminal has the shape"),
        (
            {"terminal": [1]},
            r"state 1, action 1: the reward 2 would never be paid, since state 1 is terminal; set it to 0",
        ),
        ({"shape": (3, 1)}, r"shape is \(3, 1\), and must be \(rows, columns\) of 2 cells"),
        ({"actions": ("a",)}, "actions has 1 words, and there are 2 actions"),
        ({"cells": "SFG"}, "cells has 3 letters, and there are 2 states"),
    ],
)
def test_bad_descriptions_are_refused(about: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PolyakError, match=sentence):
        mdp.from_arrays(P, R, **about)


@pytest.mark.parametrize(
    ("successor", "probability", "more", "sentence"),
    [
        ([[0], [2]], [[1.0], [1.0]], {}, "state 1, action 0: outcome 0 leads to state 2, and there are states 0 to 1"),
        ([[0], [-1]], [[1.0], [1.0]], {}, "state 1, action 0: outcome 0 leads to state -1"),
        ([[0.0], [1.0]], [[1.0], [1.0]], {}, "successor holds float64, and must hold state numbers"),
        ([[0], [1]], [[1.0, 0.0], [1.0, 0.0]], {}, r"have the shapes \[2, 1, 1\] and \[2, 2, 1\]"),
        ([0, 1], [1.0, 1.0], {}, r"have the shapes \[2\] and \[2\]"),
        ([[0], [1]], [[1.0], [0.5]], {}, "state 1, action 0: the probabilities sum to 0.5"),
        ([[0], [1]], [[1.0], [-1.0]], {}, "state 1, action 0: the probability of outcome 0 is -1"),
        ([[0], [1]], [[1.0], [1.0]], {"terminated": [[0], [1]]}, "terminated is int64 of the shape"),
        (
            [[0], [1]],
            [[1.0], [1.0]],
            {"terminated": np.ones((2, 3), bool)},
            r"terminated is bool of the shape \[2, 3, 1\]",
        ),
    ],
)
def test_bad_outcomes_are_refused(successor: Any, probability: Any, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PolyakError, match=sentence):
        mdp.from_sparse(successor, probability, np.zeros((2, 1)), **more)


def test_bad_matrices_are_refused() -> None:
    eye = scipy.sparse.identity(2, format="csr")
    for matrices, rewards, sentence in (
        ([], R, "P holds matrices of the shapes"),
        ([eye, scipy.sparse.identity(3, format="csr")], R, r"P holds matrices of the shapes \[\[2, 2\], \[3, 3\]\]"),
        ([eye, eye], [eye], r"R holds 1 matrices, and must hold one \[2, 2\] for each of P's 2"),
        ([eye, eye * 0.5], R, "state 0, action 1: the probabilities sum to 0.5"),
        ([eye, eye], np.ones((3, 2)), r"R has the shape \[3, 2\]"),
    ):
        with pytest.raises(PolyakError, match=sentence):
            mdp.from_matrices(matrices, rewards)


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, sparse = mdp.from_arrays(P, R), chain(1000)
    monkeypatch.setattr(memory, "available", lambda: 63)
    with pytest.raises(
        PolyakError, match=r"a copy of P\[2, 2, 2\] would take 64 bytes of memory, and 63 bytes are free: "
    ):
        mdp.from_arrays(P, R)
    with pytest.raises(PolyakError, match=r"planning for 2 states .*: build the model with from_sparse"):
        mdp.value_iteration(dense, 0.9)
    with pytest.raises(PolyakError, match=r"planning for 1000 states would take 48 kB"):
        mdp.value_iteration(sparse, 0.9)
    with pytest.raises(PolyakError, match=r"up to 2 outcomes would take"):
        mdp.from_matrices([scipy.sparse.csr_matrix(P[:, 0])], [0.0, 0.0])


def test_available_memory_is_plausible() -> None:
    assert 1 << 20 < memory.available() < 1 << 50
    assert [memory.readable(n) for n in (999, 1500, 2_340_000, 5 * 10**9)] == ["999 bytes", "1.5 kB", "2.34 MB", "5 GB"]


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, polyak.mdp; print(sorted({'jax', 'scipy', 'gymnasium', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
