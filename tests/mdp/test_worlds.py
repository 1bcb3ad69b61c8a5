"""Models of Gymnasium's toy environments and of worlds written in JAX."""

import dataclasses
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import matrices, solved

from polyak import mdp
from polyak.core import hyper
from polyak.envs.classic.cartpole import CartPole
from polyak.envs.classic.grid_world import GridWorld
from polyak.envs.classic.pendulum import Pendulum
from polyak.errors import PolyakError
from polyak.spaces import Box, Discrete

# ---------------------------------------------------------------------------------------------------- Gymnasium


def _table(env: Any) -> tuple[np.ndarray, np.ndarray]:
    """(P without what ends the episode [S, A, S], r [S, A]) from Gymnasium's table."""
    n, a = env.observation_space.n, env.action_space.n
    P, r = np.zeros((n, a, n)), np.zeros((n, a))
    for s in range(n):
        for action in range(a):
            for p, to, reward, terminated in env.P[s][action]:
                r[s, action] += p * reward
                if not terminated:
                    P[s, action, to] += p
    return P, r


@pytest.mark.parametrize(
    ("name", "kwargs", "terminal"),
    [
        ("FrozenLake-v1", {}, [5, 7, 11, 12, 15]),
        ("FrozenLake-v1", {"is_slippery": False}, [5, 7, 11, 12, 15]),
        ("FrozenLake-v1", {"desc": ["SF", "HG"], "success_rate": 0.8}, [2, 3]),
        ("FrozenLake8x8-v1", {}, [19, 29, 35, 41, 42, 46, 49, 52, 54, 59, 63]),
        ("CliffWalking-v1", {}, [47]),
        ("CliffWalking-v1", {"is_slippery": True}, [47]),
        ("Taxi-v4", {}, [0, 85, 410, 475]),
    ],
)
def test_tables_of_gymnasium(name: str, kwargs: dict[str, Any], terminal: list[int]) -> None:
    env = gymnasium.make(name, **kwargs).unwrapped
    for model in (mdp.from_gymnasium(name, **kwargs), mdp.from_gymnasium(gymnasium.make(name, **kwargs))):
        assert model.name == name
        assert np.flatnonzero(model.terminal).tolist() == terminal
        np.testing.assert_array_equal(model.start, env.initial_state_distrib)  # type: ignore[attr-defined]
        P, r = _table(env)
        ours, rewards = matrices(model)
        live = ~model.terminal & ~model.unreachable()
        np.testing.assert_allclose(ours[live], P[live], atol=1e-15)
        np.testing.assert_allclose(rewards[live], r[live], atol=1e-15)


def test_grids_are_drawn() -> None:
    lake, cliff, taxi = (mdp.from_gymnasium(name) for name in ("FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"))
    assert (lake.shape, lake.cells, lake.actions) == ((4, 4), "SFFFFHFHFFFHHFFG", ("←", "↓", "→", "↑"))
    assert (cliff.shape, cliff.cells) == ((4, 12), "." * 36 + "S" + "C" * 10 + "G")
    assert cliff.actions == ("↑", "→", "↓", "←")
    assert (taxi.shape, taxi.cells, taxi.actions[-1]) == (None, "", "drop off")


def test_outcomes_that_agree_are_added_up() -> None:
    model = mdp.from_gymnasium("FrozenLake-v1")
    assert model.successor is not None and model.probability.shape == (16, 4, 3)
    assert model.successor[0, 0, :2].tolist() == [0, 4]
    np.testing.assert_allclose(model.probability[0, 0], [2 / 3, 1 / 3, 0], atol=1e-15)


def test_a_final_state_that_episodes_also_pass_through_is_not_terminal() -> None:
    """Entering 1 from 0 by action 0 ends the episode; by action 1 it goes on, for 5 more."""
    P = {
        0: {0: [(1.0, 1, 1.0, True)], 1: [(1.0, 1, 0.0, False)]},
        1: {0: [(1.0, 2, 5.0, True)], 1: [(1.0, 2, 0.0, True)]},
        2: {0: [(1.0, 0, 9.0, False)], 1: [(1.0, 2, -9.0, False)]},
    }
    model = mdp.from_gymnasium(_Tabular(P, [1.0, 0.0, 0.0]))
    assert model.terminal.tolist() == [False, False, True]
    np.testing.assert_allclose(solved("value-iteration", model, 1.0).V, [5.0, 5.0, 0.0])


class _Tabular:
    def __init__(self, P: Any, start: Any = None) -> None:
        self.P, self.initial_state_distrib = P, start


@pytest.mark.parametrize(
    ("P", "sentence"),
    [
        ({0: {0: [(0.5, 0, 0.0, False)]}}, "state 0, action 0: the probabilities sum to 0.5"),
        ({0: {0: [(1.0, 3, 0.0, False)]}}, "state 0, action 0: outcome 0 leads to state 3"),
        ({0: {0: [(1.0, 0, float("nan"), False)]}}, r"R\[0, 0, 0\] is nan"),
        (
            {0: {0: [(1.0, 0, 0.0)]}},
            r"_Tabular: P\[0\]\[0\] is not a list of \(probability, next state, reward, terminated\)",
        ),
        ({1: {0: []}}, r"P\[0\] can't be read .* numbered from 0"),
        ({0: {0: [(1.0, 0, 0.0, False)]}, 1: {}}, r"its states have \[0, 1\] actions"),
        ({}, "_Tabular has no transition table P"),
        (None, "_Tabular has no transition table P"),
    ],
)
def test_bad_tables_are_refused(P: Any, sentence: str) -> None:
    with pytest.raises(PolyakError, match=sentence):
        mdp.from_gymnasium(_Tabular(P))


def test_environments_without_a_table_are_refused() -> None:
    for call, sentence in (
        (lambda: mdp.from_gymnasium("CartPole-v1"), "CartPole-v1 has no transition table P.*from_arrays.*from_world"),
        (
            lambda: mdp.from_gymnasium("FrozenLak-v1"),
            "there is no environment 'FrozenLak-v1'; did you mean 'FrozenLake",
        ),
        (lambda: mdp.from_gymnasium("FrozenLake-v1", colour=1), "FrozenLake-v1 could not be made with {'colour': 1}"),
        (lambda: mdp.from_gymnasium(gymnasium.make("Taxi-v4"), is_rainy=True), "is made already: .'is_rainy'."),
    ):
        with pytest.raises(PolyakError, match=sentence):
            call()


# ---------------------------------------------------------------------------------------------------- JAX worlds


@pytest.mark.parametrize("slip", [0.0, 0.3, 1.0])
def test_grid_world_is_its_transitions(slip: float) -> None:
    world = GridWorld(slip=slip)
    model = mdp.from_world(world)
    P, r = world.transitions()
    cells = np.array(list("".join(world.layout)))
    assert model.terminal.tolist() == np.isin(cells, list("GO#")).tolist()
    assert (model.shape, model.cells, model.name) == ((5, 7), "".join(world.layout), "GridWorld")
    assert model.actions == ("←", "↓", "→", "↑") and model.start.tolist() == (cells == "S").astype(float).tolist()
    ours, rewards = matrices(model)
    live = ~model.terminal
    np.testing.assert_allclose(ours[live], np.where(model.terminal, 0, P)[live], atol=1e-15)
    np.testing.assert_allclose(rewards[live], r[live], atol=1e-15)
    assert solved("policy", model, 1.0).bound < 1e-9  # walls are no states without an end


@hyper
class Maze:
    """GridWorld without its dice: position and flag as the state, the cell as the observation."""

    inner: Any = GridWorld()
    hides: bool = False
    max_steps: int = 100

    @property
    def obs_space(self) -> Any:
        return Box(0.0, 1.0, (2,)) if self.hides else self.inner.obs_space

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    @property
    def action_space(self) -> Any:
        return self.inner.action_space

    def _obs(self, cell: Any) -> Any:
        return jnp.stack([cell / 100.0, cell % 7 / 7.0]) if self.hides else cell

    def reset(self, key: Any) -> Any:
        return {"cell": jnp.int32(0), "flag": jnp.zeros(2, bool)}, self._obs(jnp.int32(0))

    def step(self, s: Any, action: Any, key: Any) -> Any:
        @jax.jit
        def inside(cell: Any, action: Any, key: Any) -> Any:
            after, _, reward, over = GridWorld(slip=0.0).step(cell, action, jax.random.key(3))
            return after, reward, over, jax.random.uniform(key)

        after, reward, over, _ = inside(s["cell"], action, key)
        return {**s, "cell": after}, self._obs(after), reward, over


@pytest.mark.reuses_keys
def test_a_deterministic_world_is_walked_through() -> None:
    world = Maze()
    model, told = mdp.from_world(world), mdp.from_world(GridWorld())
    assert model.probability.shape == (35, 4, 1) and model.shape == (5, 7) and model.name == "Maze"
    np.testing.assert_array_equal(model.start, told.start)
    live = ~told.unreachable() & ~told.terminal
    ours, rewards = matrices(model)
    expected, r = matrices(told)
    np.testing.assert_array_equal(ours[live], expected[live])
    np.testing.assert_allclose(rewards[live], r[live], atol=1e-8)  # the world's rewards are float32
    assert (model.terminal | live).all()
    assert abs(solved("policy", model, 0.9).start_value - solved("policy", told, 0.9).start_value) < 1e-6


@pytest.mark.reuses_keys
def test_states_without_discrete_observations_are_numbered_as_found() -> None:
    model, told = mdp.from_world(Maze(hides=True)), mdp.from_world(GridWorld())
    found = ~told.unreachable()
    assert model.n_states == found.sum() and model.start[0] == 1.0 and model.shape is None
    assert not model.unreachable().any()
    assert abs(solved("policy", model, 0.9).start_value - solved("policy", told, 0.9).start_value) < 1e-6


class Counting(NamedTuple):
    """A corridor of n cells, whose state counts steps too where `clock`; observations name the cell alone."""

    n: int = 10
    clock: bool = False
    random_start: bool = False
    max_steps: int = 0

    @property
    def obs_space(self) -> Any:
        return Discrete(self.n)

    @property
    def action_space(self) -> Any:
        return Discrete(2)

    def reset(self, key: Any) -> Any:
        cell = jax.random.randint(key, (), 0, self.n) if self.random_start else jnp.int32(0)
        return (cell, jnp.int32(0)), cell

    def step(self, s: Any, action: Any, key: Any) -> Any:
        cell = jnp.clip(s[0] + 2 * action - 1, 0, self.n - 1)
        return (cell, s[1] + self.clock), cell, jnp.float32(-1.0), cell == self.n - 1


def test_states_that_share_observations_are_numbered_as_found() -> None:
    model = mdp.from_world(Counting())
    assert model.n_states == 10 and solved("policy", model, 1.0).start_value == -9.0
    with pytest.raises(PolyakError, match=r"Counting has more than 500 states, too many .*int32.*count steps"):
        mdp.from_world(Counting(clock=True), limit=500)


def test_a_random_start_is_listed_by_hand() -> None:
    world = Counting(random_start=True)
    with pytest.raises(PolyakError, match="which reset draws at random: list the first states as starts"):
        mdp.from_world(world)
    starts = [((np.int32(cell), np.int32(0)), np.int32(cell)) for cell in (3, 5)]
    model = mdp.from_world(world, starts=starts, name="corridor")
    assert model.name == "corridor" and model.start.tolist() == [0, 0, 0, 0.5, 0, 0.5, 0, 0, 0, 0]
    assert solved("policy", model, 1.0).start_value == -5.0
    with pytest.raises(PolyakError, match="starts is empty"):
        mdp.from_world(world, starts=[])


class Sliding(Counting):
    """The corridor on ice."""

    def step(self, s: Any, action: Any, key: Any) -> Any:
        action = jnp.where(jax.random.uniform(key) < 0.1, 1 - action, action)
        return Counting.step(self, s, action, key)


class Told(Sliding):
    """The same, with its probabilities."""

    def outcomes(self) -> Any:
        cells = np.arange(self.n)[:, None, None]
        to = np.clip(cells + np.array([[-1, 1], [1, -1]]), 0, self.n - 1)
        to[-1] = self.n - 1
        probability = np.broadcast_to([0.9, 0.1], to.shape)
        return to, probability, np.where(cells == self.n - 1, 0.0, np.full(to.shape, -1.0)), to == self.n - 1


def test_worlds_that_draw_are_refused_unless_they_tell() -> None:
    with pytest.raises(PolyakError, match=r"its step draws at random and it has no transitions\(\)"):
        mdp.from_world(Sliding())
    model = mdp.from_world(Told())
    assert model.probability.shape == (10, 2, 2) and np.flatnonzero(model.terminal).tolist() == [9]
    assert model.start[0] == 1.0 and solved("policy", model, 1.0).start_value < -9.0


def test_worlds_that_cannot_be_enumerated_say_why() -> None:
    for world, sentence in (
        (Pendulum(), r"Pendulum can't be enumerated: its actions are Box\(1,\), and must be Discrete"),
        (CartPole(), "CartPole can't be enumerated from its start, which reset draws at random"),
        (object(), "object is no JAX world: it has no reset, step, obs_space, action_space"),
    ):
        with pytest.raises(PolyakError, match=sentence):
            mdp.from_world(world)
    first = CartPole().reset(jax.random.key(0))
    with pytest.raises(PolyakError, match=r"CartPole has more than 300 states.*float32; is it continuous"):
        mdp.from_world(CartPole(), starts=[first], limit=300)


def test_a_table_that_would_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge:
        obs_space, action_space = Discrete(2_000_000), Discrete(4)

        def reset(self, key: Any) -> Any:
            return jax.numpy.int32(0), jax.numpy.int32(0)

        def step(self, s: Any, action: Any, key: Any) -> Any:
            return s, s, 0.0, False

        def transitions(self) -> None:
            raise AssertionError("it was made")

    with pytest.raises(PolyakError, match=r"transitions\(\) of Huge with 2\d* states would take .* TB of memory"):
        mdp.from_world(Huge())


def test_a_large_maze_needs_no_table() -> None:
    layout = ("S" + "." * 299, *["." * 300] * 298, "." * 299 + "G")
    model = mdp.from_world(dataclasses.replace(GridWorld(), layout=layout, slip=0.1))
    assert model.probability.shape == (90_000, 4, 3) and model.terminal.sum() == 1
