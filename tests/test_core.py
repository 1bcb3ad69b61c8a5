"""Counters against Python's integers (CT30), hyper-parameters as pytrees, and what a dataclass of them refuses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from polyak import DQN, PPO, SAC, Linear, Normalised
from polyak.core import Counter, Rhythm, Transition, flat, hyper, in_range, leading, seed_axes, where
from polyak.errors import PolyakError

EDGES = [0, 2**24, 2**25, 2**31, 2**32, 2**40]

# One compilation each, whatever the values: counts and operands are traced.
ADD = jax.jit(lambda c, n: c.add(n))
FLOAT = jax.jit(lambda c: c.float())


def value(c: Counter) -> int:
    return int(c.high) * 2**24 + int(c.low)


counts = st.one_of(
    st.integers(0, 2**41), st.builds(lambda edge, d: max(0, edge + d), st.sampled_from(EDGES), st.integers(-70, 70))
)


# ---------------------------------------------------------------------------------------------------------- counters


@settings(max_examples=200, deadline=None)
@given(count=counts, more=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**30 - 1)), max_size=4))
def test_a_counter_adds_as_an_integer_does(count: int, more: list[int]) -> None:
    c, total = Counter.of(count), count
    assert value(c) == count
    for n in more:
        c, total = ADD(c, n), total + n
        assert value(c) == total
        assert 0 <= int(c.low) < 2**24
    assert c.high.dtype == c.low.dtype == np.int32


@settings(max_examples=200, deadline=None)
@given(count=counts, n=counts)
def test_a_counter_compares_as_an_integer_does(count: int, n: int) -> None:
    assert bool(Counter.of(count).at_least(n)) == (count >= n)
    assert bool(Counter.of(count).at_least(count))
    assert not bool(Counter.of(count).at_least(count + 1))


@settings(max_examples=300, deadline=None)
@given(count=counts, n=st.one_of(st.integers(1, 60), st.integers(1, 2**20), st.integers(2**20 - 9, 2**25 - 1)))
def test_a_counter_divides_as_an_integer_does(count: int, n: int) -> None:
    assert int(Counter.of(count).modulo(n)) == count % n


@pytest.mark.parametrize("most", [24, 31, 33, 35, 41])
def test_a_counter_divides_exactly_at_every_size(most: int) -> None:
    """Log-uniform draws, which Hypothesis' small numbers miss. 2³⁵ steps are three hours at 3 million a second."""
    rng = np.random.default_rng(most)
    wrong: list[tuple[int, int]] = []
    for _ in range(150):
        count, n = int(2 ** rng.uniform(most - 3, most)), int(2 ** rng.uniform(0, 24.9))
        if int(Counter.of(count).modulo(n)) != count % n:
            wrong.append((count, n))
    assert not wrong


@pytest.mark.parametrize("count", [2**24 - 3, 2**31 - 3, 2**32 - 3, 2**32 + 3])
@pytest.mark.parametrize("n", [2**26, 2**30])
def test_powers_of_two_divide_beyond_the_words(count: int, n: int) -> None:
    assert int(Counter.of(count).modulo(n)) == count % n


@settings(max_examples=300, deadline=None)
@given(count=counts, n=st.integers(1, 5000), interval=st.integers(1, 100_000))
def test_crossing_is_passing_or_reaching_a_multiple(count: int, n: int, interval: int) -> None:
    crossed = (count + n) // interval > count // interval
    assert bool(Counter.of(count).crossed(n, interval)) == crossed


@settings(max_examples=200, deadline=None)
@given(count=counts)
def test_a_counter_as_a_float_is_the_nearest_one(count: int) -> None:
    got = FLOAT(Counter.of(count))
    assert got.dtype == np.float32
    assert abs(float(got) - count) <= np.spacing(np.float32(count))  # within one unit of the last place


@pytest.mark.parametrize("start", [2**24 - 3, 2**31 - 3, 2**32 - 3])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_counter_does_not_stall_or_wrap_inside_a_compiled_loop(start: int, stride: int) -> None:
    """CT30: ten steps across the edge; every count, and every multiple of 7 that is crossed, is Python's."""

    def step(c: Counter, _: None) -> tuple[Counter, Any]:
        return c.add(stride), (c, c.modulo(7), c.crossed(stride, 7), c.at_least(start + 5))

    _, (seen, rest, crossed, late) = jax.jit(lambda c: jax.lax.scan(step, c, None, length=10))(Counter.of(start))
    want = [start + stride * i for i in range(10)]
    assert [int(h) * 2**24 + int(low) for h, low in zip(seen.high, seen.low, strict=True)] == want
    assert_array_equal(rest, [w % 7 for w in want])
    assert_array_equal(crossed, [(w + stride) // 7 > w // 7 for w in want])
    assert_array_equal(late, [w >= start + 5 for w in want])


def test_counters_stay_unbatched_over_seeds() -> None:
    tree = {"steps": Counter.of(5), "w": jnp.ones((3, 2)), "inner": (jnp.zeros(3), Counter.of(7))}
    assert seed_axes(tree) == {"steps": None, "w": 0, "inner": (0, None)}
    axes = (seed_axes(tree),)
    branch = jax.vmap(
        lambda t: jax.lax.cond(t["steps"].at_least(5), lambda x: x + 1, lambda x: x, t["w"]), in_axes=axes
    )
    assert " select_n" not in str(jax.make_jaxpr(branch)(tree))
    assert_array_equal(branch(tree), np.full((3, 2), 2.0))


# --------------------------------------------------------------------------------------------------- hyper-parameters


@hyper
class Knobs:
    rate: float = 0.5
    schedule: float | Linear = 0.1
    count: int = 3
    flag: bool = False
    limit: float | None = None
    rhythm: Rhythm = 0.25
    name: str = "x"
    network: Any = None


@pytest.mark.parametrize("limit", [None, 2.0])
def test_floats_are_leaves_and_all_else_is_structure(limit: float | None) -> None:
    knobs = Knobs(limit=limit)
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(knobs)}
    assert paths == {".rate", ".schedule"} | ({".limit"} if limit else set())
    same = jax.tree.structure(knobs)
    assert jax.tree.structure(dataclasses.replace(knobs, rate=0.7)) == same
    for change in ({"count": 4}, {"flag": True}, {"rhythm": 0.5}, {"name": "y"}, {"network": (4,)}):
        assert jax.tree.structure(dataclasses.replace(knobs, **change)) != same, change


def test_a_changed_float_does_not_compile_again_and_a_changed_int_does() -> None:
    traces: list[Knobs] = []

    @jax.jit
    def product(k: Knobs) -> Any:
        traces.append(k)
        return k.rate * k.count

    assert product(Knobs()) == 1.5
    assert product(Knobs(rate=2.0)) == 6.0
    assert len(traces) == 1
    assert product(Knobs(count=4)) == 2.0
    assert len(traces) == 2


def test_the_tree_takes_any_leaves_and_comes_back() -> None:
    """jax puts objects, None and arrays of any rank in place of leaves; nothing may be checked or converted then."""
    knobs = Knobs(network={"w": np.ones(2)}, schedule=Linear(1.0))
    leaves, structure = jax.tree.flatten(knobs)
    again = structure.unflatten(leaves)
    assert jax.tree.structure(again) == structure
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))
    for odd in (object(), None, "text", True, float("nan"), jnp.zeros((2, 3))):
        filled = structure.unflatten([odd] * len(leaves))
        assert filled.rate is odd
        back = structure.flatten_up_to(filled)
        assert len(back) == len(leaves) and all(x is odd for x in back)
    assert structure.unflatten(range(len(leaves))).count == 3


@pytest.mark.parametrize(
    "agent", [PPO(), DQN(), SAC(), Normalised(PPO(lr=Linear(1e-3)))], ids=lambda a: type(a).__name__
)
def test_agents_round_trip_and_replace(agent: Any) -> None:
    leaves, structure = jax.tree.flatten(agent)
    assert structure.unflatten(leaves) == agent
    assert hash(structure) == hash(jax.tree.structure(dataclasses.replace(agent)))
    doubled = jax.tree.map(lambda x: 2 * x, agent)
    assert jax.tree.structure(doubled) == structure
    assert jax.tree.leaves(doubled) == [2 * x for x in leaves]


def test_one_float_field_is_vmapped() -> None:
    rates = jnp.array([0.1, 0.2, 0.4])
    axes = jax.tree.map(lambda _: None, Knobs(), is_leaf=lambda x: isinstance(x, float))
    axes = jax.tree.structure(Knobs()).unflatten([0, None])
    knobs = dataclasses.replace(Knobs(), rate=rates)
    got = jax.vmap(lambda k: k.rate * k.count + k.schedule, in_axes=(axes,))(knobs)
    np.testing.assert_allclose(got, np.array([0.4, 0.7, 1.3]), rtol=1e-6)


def test_a_float_field_has_a_gradient() -> None:
    assert jax.grad(lambda k: k.rate**2 * k.count)(Knobs(rate=2.0)).rate == 12.0


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Knobs().rate = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_values_are_brought_to_their_types() -> None:
    knobs = Knobs(rate=1, count=4.0, network=[3, 4])  # pyright: ignore[reportArgumentType]
    assert type(knobs.rate) is float and type(knobs.count) is int and knobs.network == (3, 4)
    assert type(Knobs(limit=2).limit) is float
    assert type(Knobs(rhythm=1).rhythm) in (int, float)
    assert Knobs(0.25).rate == 0.25


REFUSED = {
    "a fraction for a count": (lambda: Knobs(count=2.5), "count is 2.5"),
    "a bool for a count": (lambda: Knobs(count=True), "count is True"),
    "a bool for a number": (lambda: Knobs(rate=True), "rate is True"),
    "text for a count": (lambda: Knobs(count="3"), "count is '3'"),
    "text for a number": (lambda: Knobs(rate="fast"), "rate is 'fast'"),
    "nothing for a number": (lambda: Knobs(rate=None), "rate is None"),
    "NaN": (lambda: Knobs(rate=float("nan")), "rate is NaN"),
    "numpy's NaN": (lambda: Knobs(rate=np.float32("nan")), "rate is NaN"),
    "NaN for an optional number": (lambda: Knobs(limit=float("nan")), "limit is NaN"),
    "a NaN rhythm": (lambda: Knobs(rhythm=float("nan")), "rhythm is NaN"),
    "an unknown name": (lambda: Knobs(rat=1.0), "has no rat; did you mean 'rate'"),
    "too many": (lambda: Knobs(*range(20)), "8 fields"),
    "a peer's name": (lambda: PPO(n_epochs=3), "PPO has no n_epochs; here it is epochs"),
    "a peer's rate": (lambda: SAC(learning_rate=3.0), "SAC has no learning_rate; here it is lr"),
    "a peer's steps": (lambda: PPO(n_steps=3), "PPO has no n_steps; here it is rollout_length"),
    "a run's argument": (lambda: DQN(total_timesteps=9), "an argument of train"),
    "out of range": (lambda: PPO(gamma=1.5), "gamma is 1.5"),
    "a schedule that leaves its range": (lambda: PPO(lr=Linear(1e-3, -1e-3)), "lr is a Linear that reaches -0.001"),
    "a schedule that starts beyond it": (lambda: SAC(tau=Linear(2.0, 0.1)), "tau is a Linear that reaches 2.0"),
    "below range": (lambda: SAC(tau=-0.1), "tau is -0.1"),
    "an unknown choice": (lambda: DQN(loss="l1"), "'huber' or 'squared'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_with_a_sentence(case: str) -> None:
    build, sentence = REFUSED[case]
    with pytest.raises(PolyakError) as error:
        build()
    assert sentence in str(error.value)


def test_ranges_ask_numbers_and_ends_of_schedules() -> None:
    in_range(Knobs(rate=jnp.array([5.0, -5.0]), schedule=Linear(1.0)), rate=(0, 1), schedule=(0, 1))  # pyright: ignore
    in_range(Knobs(), rate=(0.5, 0.5))
    with pytest.raises(PolyakError, match="must lie in"):
        in_range(Knobs(), rate=(0.6, 1))
    with pytest.raises(PolyakError, match=r"schedule is a Linear that reaches 9\.0"):
        in_range(Knobs(schedule=Linear(9.0)), schedule=(0, 1))


# ------------------------------------------------------------------------------------------------------------- trees


def test_leading_axes_merge_in_order() -> None:
    x = np.arange(5 * 3 * 2).reshape(5, 3, 2)
    steps = Transition({"a": jnp.asarray(x)}, (), jnp.asarray(x[..., 0]), (), (), ())
    assert leading(steps, 2) == (5, 3)
    merged = flat(steps)
    want = [x[t, n] for t in range(5) for n in range(3)]
    assert_array_equal(merged.obs["a"], want)
    assert_array_equal(merged.reward, [w[0] for w in want])


def test_where_chooses_whole_rows() -> None:
    mask = np.array([True, False, True])
    new, old = np.arange(12).reshape(3, 2, 2), -np.arange(12).reshape(3, 2, 2)
    got = where(jnp.asarray(mask), (jnp.asarray(new), jnp.ones(3)), (jnp.asarray(old), jnp.zeros(3)))
    assert_array_equal(got[0], [n if m else o for m, n, o in zip(mask, new, old, strict=True)])
    assert_array_equal(got[1], mask)
