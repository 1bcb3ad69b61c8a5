"""Returns and advantages against double sums in float64, written from the definitions and without recursion (CT1, CT6).

The oracles see an episode as a stretch of steps: h is the number of steps from t to the end of the episode or of the
arrays, whichever comes first, the ending step counted. Everything else is a sum over these h steps.
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from polyak import returns
from polyak.core import Transition

# float32 sums of at most 24 terms of size ≤ 10²: 24 roundings of 6e-8, and room for cancellation.
RTOL, ATOL = 2e-5, 2e-4
SHAPES = [(1, 1), (2, 3), (5, 2), (9, 5), (24, 3)]  # few, because each is compiled


class Data(NamedTuple):
    """A stretch of T steps of N worlds, float64 numpy."""

    reward: Any
    value: Any
    next_value: Any
    terminated: Any
    truncated: Any


def horizon(d: Data, t: int, i: int) -> int:
    """How many steps can be summed from t on: up to and with the first end, else to the end of the arrays."""
    ends = [s for s in range(t, len(d.reward)) if d.terminated[s, i] or d.truncated[s, i]]
    return (ends[0] if ends else len(d.reward) - 1) - t + 1


def naive_n_step(gamma: float, n: int, d: Data, t: int, i: int) -> float:
    """Σ_{j<k} γʲ r_{t+j} + γᵏ V(s_{t+k}), k = min(n, h), the last value 0 where the world ended."""
    k = min(n, horizon(d, t, i))
    total = sum(gamma**j * d.reward[t + j, i] for j in range(k))
    last = t + k - 1
    return total + (0.0 if d.terminated[last, i] else gamma**k * d.next_value[last, i])


def naive_lambda(gamma: float, lam: float, d: Data, t: int, i: int) -> float:
    """(1 − λ) Σ_{n<h} λⁿ⁻¹ G⁽ⁿ⁾ + λʰ⁻¹ G⁽ʰ⁾: Sutton & Barto, eq. 12.3."""
    h = horizon(d, t, i)
    mixed = (1 - lam) * sum(lam ** (n - 1) * naive_n_step(gamma, n, d, t, i) for n in range(1, h))
    return mixed + lam ** (h - 1) * naive_n_step(gamma, h, d, t, i)


def naive_gae(gamma: float, lam: float, d: Data, t: int, i: int) -> float:
    """Σ_{l<h} (γλ)ˡ δ_{t+l} with δ = r + γ V(s′) − V(s), and V(s′) = 0 where the world ended."""
    total = 0.0
    for j in range(horizon(d, t, i)):
        s = t + j
        bootstrap = 0.0 if d.terminated[s, i] else gamma * d.next_value[s, i]
        total += (gamma * lam) ** j * (d.reward[s, i] + bootstrap - d.value[s, i])
    return total


def over(oracle: Any, d: Data, *args: Any) -> Any:
    """The oracle at every (t, i)."""
    T, N = d.reward.shape
    return np.array([[oracle(*args, d, t, i) for i in range(N)] for t in range(T)])


def device(d: Data) -> Any:
    return Data(*(jnp.asarray(x if x.dtype == bool else x.astype(np.float32)) for x in d))


@st.composite
def stretches(draw: st.DrawFn) -> Data:
    """Rewards and values of size ≤ 10, ends of both kinds (also both at once) with a drawn frequency."""
    T, N = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    often = [draw(st.sampled_from([0.0, 0.1, 0.4, 1.0])) for _ in range(2)]
    ends = [rng.random((T, N)) < p for p in often]
    r, v, w = (rng.uniform(-10, 10, (T, N)).astype(np.float32).astype(np.float64) for _ in range(3))
    return Data(r, v, w, *ends)


@functools.cache
def jitted(name: str) -> Any:
    return jax.jit(getattr(returns, name), static_argnames=("n",) if name == "n_step_return" else ())


@settings(max_examples=60, deadline=None)
@given(d=stretches(), lam=st.sampled_from([0.0, 0.5, 1.0]), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_advantages_are_the_double_sum(d: Data, lam: float, gamma: float) -> None:
    x = device(d)
    A = jitted("gae")(gamma, lam, x.reward, x.value, x.next_value, x.terminated, x.truncated)
    assert_allclose(A, over(naive_gae, d, gamma, lam), rtol=RTOL, atol=ATOL)


@settings(max_examples=60, deadline=None)
@given(d=stretches(), lam=st.sampled_from([0.0, 0.5, 1.0]), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_lambda_returns_mix_the_n_step_returns(d: Data, lam: float, gamma: float) -> None:
    x = device(d)
    G = jitted("lambda_return")(gamma, lam, x.reward, x.next_value, x.terminated, x.truncated)
    assert_allclose(G, over(naive_lambda, d, gamma, lam), rtol=RTOL, atol=ATOL)


@settings(max_examples=60, deadline=None)
@given(d=stretches(), n=st.sampled_from([1, 3, 7]), gamma=st.sampled_from([0.5, 0.99, 1.0]))
def test_n_step_returns_stop_at_ends_and_at_the_last_step(d: Data, n: int, gamma: float) -> None:
    x = device(d)
    G = jitted("n_step_return")(gamma, n, x.reward, x.next_value, x.terminated, x.truncated)
    assert_allclose(G, over(naive_n_step, d, gamma, n), rtol=RTOL, atol=ATOL)


@settings(max_examples=30, deadline=None)
@given(d=stretches(), lam=st.sampled_from([0.0, 0.5, 1.0]))
def test_poisoned_values_behind_a_terminated_step_are_never_read(d: Data, lam: float) -> None:
    """CT2: V of what follows a terminated step is 1e6; the results must not change by one bit."""
    poisoned = device(d._replace(next_value=np.where(d.terminated, 1e6, d.next_value)))
    clean = device(d)
    for x, y in [(poisoned, clean)]:
        a = jitted("gae")(0.9, lam, x.reward, x.value, x.next_value, x.terminated, x.truncated)
        b = jitted("gae")(0.9, lam, y.reward, y.value, y.next_value, y.terminated, y.truncated)
        assert_array_equal(a, b)
        a = jitted("lambda_return")(0.9, lam, x.reward, x.next_value, x.terminated, x.truncated)
        b = jitted("lambda_return")(0.9, lam, y.reward, y.next_value, y.terminated, y.truncated)
        assert_array_equal(a, b)
        a = jitted("n_step_return")(0.9, 3, x.reward, x.next_value, x.terminated, x.truncated)
        b = jitted("n_step_return")(0.9, 3, y.reward, y.next_value, y.terminated, y.truncated)
        assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------- literal fixtures

GAE_FIXTURES = {
    (0.8, "none"): (5.53149248, 6.238184, 5.9072, 4.01),
    (0.8, "terminated"): (2.048, 1.4, 5.9072, 4.01),
    (0.8, "truncated"): (2.4692, 1.985, 5.9072, 4.01),
    (0.0, "none"): (1.04, 1.985, 3.02, 4.01),
    (0.0, "terminated"): (1.04, 1.4, 3.02, 4.01),
    (0.0, "truncated"): (1.04, 1.985, 3.02, 4.01),
    (1.0, "none"): (8.19599, 7.9511, 6.629, 4.01),
    (1.0, "terminated"): (2.3, 1.4, 6.629, 4.01),
    (1.0, "truncated"): (2.8265, 1.985, 6.629, 4.01),
}


@pytest.mark.parametrize(("lam", "end"), GAE_FIXTURES)
def test_the_advantages_of_correctness_8_1(lam: float, end: str) -> None:
    with jax.enable_x64(True):
        r, v = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0.5, 0.6, 0.7, 0.8])
        w = jnp.array([0.6, 0.65, 0.8, 0.9])
        at_1 = jnp.arange(4) == 1
        A = returns.gae(0.9, lam, r, v, w, at_1 & (end == "terminated"), at_1 & (end == "truncated"))
    assert A.dtype == np.float64
    assert_allclose(A, GAE_FIXTURES[lam, end], rtol=1e-12)  # float64, and the decimals given are exact


@pytest.mark.parametrize("both", [False, True])
def test_terminated_wins_over_truncated(both: bool) -> None:
    one, yes = jnp.ones(1), jnp.ones(1, bool)
    args = (one, 100 * one, yes, yes & both)
    assert returns.lambda_return(0.9, 0.7, *args)[0] == 1.0
    assert returns.n_step_return(0.9, 4, *args)[0] == 1.0
    assert returns.gae(0.9, 0.7, one, 5 * one, 100 * one, yes, yes & both)[0] == -4.0
    assert returns.td_target(0.9, one, yes, 100 * one)[0] == 1.0


def test_the_three_step_return_of_correctness_8_1() -> None:
    with jax.enable_x64(True):
        r, never = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3, bool)
        w = jnp.array([-7.0, -7.0, 10.0])
        assert_allclose(returns.n_step_return(0.9, 3, r, w, never, never)[0], 12.52, rtol=1e-12)
        second = jnp.arange(3) == 1
        assert_allclose(returns.n_step_return(0.9, 3, r, w, second, never)[0], 2.8, rtol=1e-12)


@pytest.mark.parametrize(("gamma", "T", "value"), [(0.98, 8, 50.0), (0.99, 50, 100.0), (0.9, 5, 10.0)])
@pytest.mark.parametrize("kind", ["lambda", "n_step", "gae"])
def test_a_time_limit_does_not_shorten_the_horizon(gamma: float, T: int, value: float, kind: str) -> None:
    """CT3: with reward 1 and a clock of T steps, iterating V ← G settles at 1/(1 − γ), not at (1 − γᵀ)/(1 − γ)."""
    r, never, clock = jnp.ones(T), jnp.zeros(T, bool), jnp.arange(T) == T - 1
    V = jnp.zeros(T)

    def improved(V: jax.Array) -> jax.Array:
        w = jnp.full(T, V.mean())  # one state: its successor, at the clock too, is itself
        if kind == "lambda":
            return returns.lambda_return(gamma, 0.9, r, w, never, clock)
        if kind == "n_step":
            return returns.n_step_return(gamma, 3, r, w, never, clock)
        return w + returns.gae(gamma, 0.9, r, w, w, never, clock)

    V = jax.jit(lambda V: jax.lax.fori_loop(0, 3000, lambda _, V: improved(V), V))(V)
    assert_allclose(V.mean(), value, rtol=1e-4)  # float32 fixed point: rounding is amplified by 1/(1 − γ) = 100
    wrong = (1 - gamma**T) / (1 - gamma)
    assert abs(float(V.mean()) - wrong) > 5


# ------------------------------------------------------------------------------------------------------- identities


def random_data(T: int, N: int, p: float = 0.2, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    draws = (rng.normal(size=(T, N)).astype(np.float32).astype(np.float64) for _ in range(3))
    return Data(*draws, rng.random((T, N)) < p, rng.random((T, N)) < p)


def test_lambda_zero_is_the_one_step_target_and_lambda_one_the_longest_return() -> None:
    d = random_data(11, 3)
    x = device(d)
    tail = (x.reward, x.next_value, x.terminated, x.truncated)
    one_step = returns.td_target(0.9, x.reward, x.terminated, x.next_value)
    assert_allclose(returns.lambda_return(0.9, 0.0, *tail), one_step, rtol=RTOL, atol=1e-6)
    assert_array_equal(returns.n_step_return(0.9, 1, *tail), one_step)
    assert_allclose(returns.lambda_return(0.9, 1.0, *tail), returns.n_step_return(0.9, 11, *tail), rtol=RTOL, atol=1e-5)


def test_advantages_are_lambda_returns_minus_values_where_values_are_consistent() -> None:
    """A = G^λ − V holds where V(s′) of a step is V(s) of the next one inside an episode."""
    d = random_data(11, 3)
    end = d.terminated | d.truncated
    following = np.concatenate([d.value[1:], d.next_value[-1:]])
    d = d._replace(next_value=np.where(end, d.next_value, following))
    x = device(d)
    A = returns.gae(0.9, 0.7, x.reward, x.value, x.next_value, x.terminated, x.truncated)
    G = returns.lambda_return(0.9, 0.7, x.reward, x.next_value, x.terminated, x.truncated)
    assert_allclose(A, G - x.value, rtol=RTOL, atol=1e-5)


@pytest.fixture(scope="module")
def rlax() -> Any:
    """A second oracle, by other authors; importing it warns of names that jax has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import rlax
    return rlax


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rlax_agrees_inside_episodes(rlax: Any) -> None:
    """rlax knows no truncation: `discount` is γ (1 − terminated), and values are those of the successors."""
    d = random_data(17, 1)
    x = device(d._replace(truncated=np.zeros_like(d.truncated)))
    gammas = returns.discount(0.93, x.terminated)
    tail = (x.reward, x.next_value, x.terminated, x.truncated)
    theirs = rlax.lambda_returns(x.reward[:, 0], gammas[:, 0], x.next_value[:, 0], 0.7)
    assert_allclose(returns.lambda_return(0.93, 0.7, *tail)[:, 0], theirs, rtol=RTOL, atol=1e-5)
    theirs = rlax.n_step_bootstrapped_returns(x.reward[:, 0], gammas[:, 0], x.next_value[:, 0], 4)
    assert_allclose(returns.n_step_return(0.93, 4, *tail)[:, 0], theirs, rtol=RTOL, atol=1e-5)
    values = jnp.concatenate([x.value[:, 0], x.next_value[-1:, 0]])
    consistent = jnp.concatenate([x.value[1:], x.next_value[-1:]])
    theirs = rlax.truncated_generalized_advantage_estimation(x.reward[:, 0], gammas[:, 0], 0.7, values)
    A = returns.gae(0.93, 0.7, x.reward, x.value, consistent, x.terminated, x.truncated)
    assert_allclose(A[:, 0], theirs, rtol=RTOL, atol=1e-5)


def test_worlds_do_not_mix() -> None:
    """CT14: each world alone gives the same column, bit for bit, and permuting the worlds permutes the columns."""
    x = device(random_data(7, 5))
    together = returns.gae(0.9, 0.7, *x)
    order = jnp.array([3, 0, 4, 1, 2])
    assert_array_equal(returns.gae(0.9, 0.7, *(a[:, order] for a in x)), together[:, order])
    for i in range(5):
        assert_array_equal(returns.gae(0.9, 0.7, *(a[:, i] for a in x)), together[:, i])


def test_gamma_and_lambda_may_be_traced_and_have_gradients() -> None:
    """A meta-gradient: ∂ Σ A / ∂(γ, λ) equals central differences of the float64 oracle."""
    d = random_data(6, 2)
    x = device(d)
    got = jax.grad(lambda p: returns.gae(p[0], p[1], *x).sum())(jnp.array([0.9, 0.6]))
    h = 1e-5
    for k, (g, lam) in enumerate([(h, 0.0), (0.0, h)]):
        up, down = (over(naive_gae, d, 0.9 + s * g, 0.6 + s * lam).sum() for s in (1, -1))
        assert_allclose(got[k], (up - down) / (2 * h), rtol=1e-4)  # float32 gradient


# ------------------------------------------------------------------------------------------------------- the others


@pytest.mark.parametrize("shape", [(7,), (5, 3)])
def test_the_one_step_target(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    r, w = rng.normal(size=shape), rng.normal(size=shape)
    terminated = rng.random(shape) < 0.5
    want = [a if t else a + 0.9 * b for a, b, t in zip(r.flat, w.flat, terminated.flat, strict=True)]
    got = returns.td_target(0.9, jnp.asarray(r, jnp.float32), jnp.asarray(terminated), jnp.asarray(w, jnp.float32))
    assert_allclose(np.ravel(got), want, rtol=1e-5, atol=1e-6)


def test_an_episode_ends_by_the_world_or_by_the_clock() -> None:
    a, b = jnp.array([False, True, False, True]), jnp.array([False, False, True, True])
    steps = Transition((), (), jnp.zeros(4), (), a, b)
    assert_array_equal(returns.ended(steps), [False, True, True, True])


def test_the_quantile_huber_loss_by_hand() -> None:
    """Two quantiles (τ = 1/4, 3/4), three samples, inside and outside of Huber's ±1."""
    quantiles, targets = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 3.0, -2.0]])
    first = (0.25 * 0.125 + 0.25 * 2.5 + 0.75 * 1.5) / 3  # u = 0.5, 3, -2
    second = (0.25 * 0.125 + 0.75 * 1.5 + 0.25 * 2.5) / 3  # u = -0.5, 2, -3
    assert_allclose(returns.quantile_huber_loss(quantiles, targets), [[first, second]], rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("M", "K"), [(1, 1), (5, 3), (4, 9)])
def test_the_quantile_huber_loss_of_rlax(rlax: Any, M: int, K: int) -> None:
    """rlax sums over quantiles and averages over samples; it is told the midpoints."""
    rng = np.random.default_rng(M)
    quantiles, targets = (jnp.float32(2 * rng.normal(size=(7, n))) for n in (M, K))
    tau = (jnp.arange(M) + 0.5) / M
    theirs = jax.vmap(rlax.quantile_regression_loss, (0, None, 0, None))(quantiles, tau, targets, 1.0)
    assert_allclose(returns.quantile_huber_loss(quantiles, targets).sum(-1), theirs, rtol=1e-5)


def test_quantiles_settle_where_their_loss_says() -> None:
    """Of samples far apart in comparison with κ, the minimiser of quantile τ is a τ-quantile of them."""
    targets = 100.0 * jnp.arange(10.0)[None]
    z = jnp.full((1, 5), 300.0)
    step = jax.jit(lambda z, lr: z - lr * jax.grad(lambda z: returns.quantile_huber_loss(z, targets).sum())(z))
    for i in range(4000):
        z = step(z, 200.0 / (1 + 0.05 * i))
    assert_allclose(z[0], [100, 300, 450, 600, 800], atol=50.5)
    assert (jnp.diff(z[0]) > 50).all()


def test_explained_variance() -> None:
    rng = np.random.default_rng(2)
    target, value = rng.normal(size=50), rng.normal(size=50)
    want = 1 - np.var(target - value) / np.var(target)
    as_f32 = functools.partial(jnp.asarray, dtype=jnp.float32)
    assert_allclose(returns.explained_variance(as_f32(target), as_f32(value)), want, rtol=1e-4)
    assert returns.explained_variance(as_f32(target), as_f32(target)) == 1.0
    assert_allclose(returns.explained_variance(as_f32(target), jnp.full(50, 3.0)), 0.0, atol=1e-5)
    assert np.isnan(returns.explained_variance(jnp.full(50, 2.0), as_f32(value)))


def test_standardised_advantages() -> None:
    A = np.random.default_rng(3).normal(5.0, 4.0, 77)
    got = returns.standardised(jnp.asarray(A, jnp.float32))
    assert_allclose(got, (A - A.mean()) / A.std(), rtol=1e-4, atol=1e-5)
    assert returns.standardised(jnp.array([4.0]))[0] == 0.0
    assert_array_equal(returns.standardised(jnp.full(3, 4.0)), np.zeros(3))
