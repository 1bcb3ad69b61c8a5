"""Distributions against quadrature, enumeration and float64 formulae (CT11): densities, entropies, samples, masks."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from polyak import explore
from polyak.dists import Bernoulli, Categorical, MultiCategorical, Normal, TanhNormal, mask_of, parameters, policy
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

N = 20_000  # samples of a Monte Carlo test
SIGNIFICANCE = 1e-6  # of χ² and Kolmogorov-Smirnov tests: fixed seeds, so a pass stays a pass


def float64(x: Any) -> Any:
    return np.asarray(x, np.float64)


def softmax(x: Any) -> Any:
    x = float64(x)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def follows(samples: Any, p: Any) -> None:
    """χ²: integers 0 … n−1 come with probabilities p; what has none never comes."""
    counts = np.bincount(np.ravel(samples), minlength=len(p))
    assert (counts[p == 0] == 0).all()
    assert stats.chisquare(counts[p > 0], p[p > 0] * counts.sum()).pvalue > SIGNIFICANCE


# ---------------------------------------------------------------------------------------------------- integers, bits


def test_categorical_against_enumeration() -> None:
    logits = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 3.0]])
    pi, p = Categorical(jnp.asarray(logits, jnp.float32)), softmax(logits)
    log_p = np.stack([pi.log_prob(jnp.full(2, a)) for a in range(3)], axis=-1)
    assert_allclose(np.exp(log_p), p, rtol=1e-5)
    assert_allclose(np.exp(float64(log_p)).sum(-1), 1.0, rtol=1e-6)
    assert_allclose(pi.entropy(), -(p * np.log(p)).sum(-1), rtol=1e-5)
    assert_array_equal(pi.mode(), p.argmax(-1))
    assert pi.mode().dtype == pi.sample(jax.random.key(0)).dtype == np.int32


def test_categorical_samples() -> None:
    logits = jnp.array([1.0, -2.0, 0.5, -1e9])
    samples = Categorical(jnp.broadcast_to(logits[None], (N, 4))).sample(jax.random.key(0))
    follows(samples, softmax(logits))


def test_multi_categorical_against_enumeration() -> None:
    nvec, B = (2, 3, 4), 5
    logits = np.random.default_rng(0).normal(size=(B, sum(nvec)))
    pi = MultiCategorical(jnp.asarray(logits, jnp.float32), nvec)
    parts = [softmax(x) for x in np.split(logits, np.cumsum(nvec)[:-1], axis=-1)]
    total, entropy = np.zeros(B), np.zeros(B)
    best = [np.argmax(x, axis=-1) for x in parts]
    for action in itertools.product(*map(range, nvec)):
        p = np.prod([x[:, a] for x, a in zip(parts, action, strict=True)], axis=0)
        got = pi.log_prob(jnp.broadcast_to(jnp.array(action)[None], (B, 3)))
        assert_allclose(got, np.log(p), rtol=1e-5, atol=1e-6)
        total, entropy = total + np.exp(float64(got)), entropy - p * np.log(p)
    assert_allclose(total, 1.0, rtol=1e-5)
    assert_allclose(pi.entropy(), entropy, rtol=1e-5)
    assert_array_equal(pi.mode(), np.stack(best, axis=-1))


def test_multi_categorical_samples_jointly() -> None:
    nvec = (2, 3)
    logits = jnp.array([0.3, -0.5, 1.0, 0.0, -1.0])
    samples = np.asarray(MultiCategorical(jnp.broadcast_to(logits[None], (N, 5)), nvec).sample(jax.random.key(1)))
    assert samples.shape == (N, 2) and samples.dtype == np.int32
    joint = np.outer(softmax(logits[:2]), softmax(logits[2:])).ravel()
    follows(samples[:, 0] * 3 + samples[:, 1], joint)


def test_bernoulli_against_enumeration() -> None:
    logits = np.array([[0.5, -1.0, 3.0], [0.0, 8.0, -8.0]])
    pi, p = Bernoulli(jnp.asarray(logits, jnp.float32)), 1 / (1 + np.exp(-logits))
    total, entropy = np.zeros(2), np.zeros(2)
    for bits in itertools.product((0, 1), repeat=3):
        q = np.where(np.array(bits) > 0, p, 1 - p).prod(-1)
        got = pi.log_prob(jnp.broadcast_to(jnp.array(bits)[None], (2, 3)))
        assert_allclose(got, np.log(q), rtol=1e-4)
        total, entropy = total + np.exp(float64(got)), entropy - q * np.log(q)
    assert_allclose(total, 1.0, rtol=1e-5)
    assert_allclose(pi.entropy(), entropy, rtol=1e-4)
    assert_array_equal(pi.mode(), p > 0.5)


def test_bernoulli_samples() -> None:
    logits = jnp.array([0.5, -1.0])
    bits = np.asarray(Bernoulli(jnp.broadcast_to(logits[None], (N, 2))).sample(jax.random.key(2)))
    p, q = 1 / (1 + np.exp(-float64(logits)))
    follows(bits[:, 0] * 2 + bits[:, 1], np.array([(1 - p) * (1 - q), (1 - p) * q, p * (1 - q), p * q]))


@pytest.mark.parametrize("size", [50.0, 1e4, 1e9])
def test_discrete_distributions_are_finite_at_extreme_logits(size: float) -> None:
    """Values and gradients of log-probabilities and entropies, wherever the logits saturate."""
    logits = jnp.array([[size, 0.0, -size, 1.0]])
    actions = {
        Categorical: jnp.array([2]),
        lambda x: MultiCategorical(x, (2, 2)): jnp.array([[1, 0]]),
        Bernoulli: jnp.array([[0, 1, 1, 1]]),
    }
    for kind, action in actions.items():
        for f in (lambda x, k=kind, a=action: k(x).log_prob(a)[0], lambda x, k=kind: k(x).entropy()[0]):
            value, gradient = jax.value_and_grad(f)(logits)
            assert np.isfinite(value) and np.isfinite(gradient).all()


# -------------------------------------------------------------------------------------------------------------- masks

MASKED = {
    "Discrete": (Discrete(4), np.array([1, 0, 1, 0])),
    "MultiDiscrete": (MultiDiscrete((2, 2)), np.array([0, 1, 1, 1])),
    "MultiBinary": (MultiBinary(4), np.array([1, 0, 1, 1])),
}


def allowed(space: Any, action: Any, mask: Any) -> bool:
    """Whether an action uses only what the mask allows; a masked bit must be 0."""
    if isinstance(space, Discrete):
        return bool(mask[int(action)])
    if isinstance(space, MultiDiscrete):
        return bool(mask[int(action[0])] and mask[space.nvec[0] + int(action[1])])
    return all(m or not a for a, m in zip(action, mask, strict=True))


def every_action(space: Any) -> list[Any]:
    if isinstance(space, Discrete):
        return list(range(space.n))
    sizes = space.nvec if isinstance(space, MultiDiscrete) else (2,) * space.n
    return [np.array(a) for a in itertools.product(*map(range, sizes))]


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("dtype", [np.int8, np.int32, bool, np.float32])
def test_what_is_masked_has_no_probability(name: str, dtype: Any) -> None:
    space, mask = MASKED[name]
    logits = jnp.array([[0.3, 9.0, -1.0, 2.0]])  # the masked ones are the likeliest
    pi = policy(space, logits, mask=jnp.asarray(mask[None], dtype))
    p = np.array([np.exp(float64(pi.log_prob(jnp.asarray(a)[None])[0])) for a in every_action(space)])
    ok = np.array([allowed(space, a, mask) for a in every_action(space)])
    assert (p[~ok] == 0).all() and (p[ok] > 0).all()
    assert_allclose(p.sum(), 1.0, rtol=1e-5)
    assert_allclose(pi.entropy()[0], -(p[ok] * np.log(p[ok])).sum(), rtol=1e-4)
    assert allowed(space, np.asarray(pi.mode())[0], mask)


@pytest.mark.parametrize("name", MASKED)
def test_what_is_masked_is_never_drawn_and_has_no_gradient(name: str) -> None:
    space, mask = MASKED[name]
    logits, row = jnp.array([0.3, 9.0, -1.0, 2.0]), jnp.asarray(mask)[None]
    many = policy(space, jnp.broadcast_to(logits[None], (2000, 4)), mask=jnp.broadcast_to(row, (2000, 4)))
    assert all(allowed(space, a, mask) for a in np.asarray(many.sample(jax.random.key(3))))
    drawn = np.asarray(explore.uniform(jax.random.key(4), space, 2000, jnp.broadcast_to(row, (2000, 4))))
    if not isinstance(space, MultiBinary):
        assert all(allowed(space, a, mask) for a in drawn)
    legal = next(a for a in every_action(space) if allowed(space, a, mask))

    def objective(x: Any) -> Any:
        pi = policy(space, x[None], mask=row)
        return pi.log_prob(jnp.asarray(legal)[None])[0] + pi.entropy()[0]

    gradient = np.asarray(jax.grad(objective)(logits))
    assert (gradient[mask == 0] == 0).all() and np.isfinite(gradient).all() and np.abs(gradient).sum() > 0


def test_one_mask_per_state() -> None:
    """Every row has a mask of its own, over any leading axes."""
    mask = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 0]]])
    pi = policy(Discrete(3), jnp.zeros((2, 2, 3)), mask=jnp.asarray(mask))
    p = np.stack([np.exp(pi.log_prob(jnp.full((2, 2), a))) for a in range(3)], axis=-1)
    assert_allclose(p, mask / mask.sum(-1, keepdims=True), rtol=1e-6)


def test_the_mask_of_an_observation() -> None:
    mask = jnp.ones(3)
    assert mask_of({"x": jnp.zeros(2), "action_mask": mask}) is mask
    assert mask_of({"x": jnp.zeros(2)}) is None
    assert mask_of(jnp.zeros(2)) is None
    assert mask_of((jnp.zeros(2),)) is None


# ----------------------------------------------------------------------------------------------------------- Gaussians

GRID = np.linspace(-1 + 1e-6, 1 - 1e-6, 200_001)  # of a tanh-Normal's actions
SETTINGS = [(0.0, 0.0), (1.5, math.log(0.3)), (-0.7, -1.0), (0.2, -2.5)]  # mean, log σ; wider ones pile up at ±1


def one(kind: Any, mean: float, log_std: float, n: int = 1) -> Any:
    return kind(jnp.full((n, 1), mean), jnp.full((n, 1), log_std))


def test_normal_against_scipy() -> None:
    rng = np.random.default_rng(0)
    mean, log_std, a = rng.normal(size=(3, 5, 7, 2))
    pi = Normal(*(jnp.asarray(x, jnp.float32) for x in (mean, log_std)))
    want = stats.norm(mean, np.exp(log_std))
    assert_allclose(pi.log_prob(jnp.asarray(a, jnp.float32)), want.logpdf(a).sum(-1), rtol=1e-4, atol=1e-4)
    assert_allclose(pi.entropy(), want.entropy().sum(-1), rtol=1e-4, atol=1e-5)
    assert_array_equal(pi.mode(), pi.mean)


@pytest.mark.parametrize(("mean", "log_std"), SETTINGS)
def test_densities_integrate_to_one(mean: float, log_std: float) -> None:
    x = np.linspace(mean - 10 * math.exp(log_std), mean + 10 * math.exp(log_std), 20_001)
    p = np.exp(float64(one(Normal, mean, log_std).log_prob(jnp.asarray(x[:, None], jnp.float32))))
    assert_allclose(np.trapezoid(p, x), 1.0, rtol=1e-4)  # float32 density
    p = np.exp(float64(one(TanhNormal, mean, log_std).log_prob(jnp.asarray(GRID[:, None], jnp.float32))))
    assert_allclose(np.trapezoid(p, GRID), 1.0, rtol=5e-4)  # the cut ends hold less than 1e-5


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (-0.4, 0.4), (-1.0, 3.0), (10.0, 11.0)])
def test_a_density_over_the_bounds_of_the_world_integrates_to_one(low: float, high: float) -> None:
    """The world maps [-1, 1] affinely to its bounds, which shifts log π by log(half the range)."""
    half = (high - low) / 2
    y = low + (GRID + 1) * half
    log_p = float64(one(TanhNormal, 0.5, -0.5).log_prob(jnp.asarray(GRID[:, None], jnp.float32))) - math.log(half)
    assert_allclose(np.trapezoid(np.exp(log_p), y), 1.0, rtol=5e-4)


@pytest.mark.parametrize(("mean", "log_std"), SETTINGS)
def test_tanh_normal_is_the_change_of_variables(mean: float, log_std: float) -> None:
    """log N(artanh a) − log(1 − a²), in float64, away from the ends where float32 actions lose u."""
    a = np.linspace(-0.999, 0.999, 401)
    want = stats.norm(mean, math.exp(log_std)).logpdf(np.arctanh(a)) - np.log1p(-(a**2))
    got = one(TanhNormal, mean, log_std).log_prob(jnp.asarray(a[:, None], jnp.float32))
    # d log π / du ≤ |u − μ|/σ² + 2; float32 a moves u by 6e-8/(1 − a²) ≤ 3e-5
    assert_allclose(got, want, rtol=1e-4, atol=3e-5 * (5.5 / math.exp(log_std) ** 2 + 2))


def test_samples_carry_the_log_probability_that_the_action_has() -> None:
    mean, log_std = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.linspace(-2, -0.5, 12).reshape(4, 3)
    for kind in (Normal, TanhNormal):
        pi = kind(mean, log_std)
        a = pi.sample(jax.random.key(5))
        assert a.shape == (4, 3) and pi.log_prob(a).shape == (4,)
    a, log_p = TanhNormal(mean, log_std).sample_and_log_prob(jax.random.key(6))
    assert (np.abs(a) < 1).all()
    assert_allclose(log_p, TanhNormal(mean, log_std).log_prob(a), rtol=1e-3, atol=1e-3)
    by_hand = stats.norm(float64(mean), np.exp(float64(log_std))).logpdf(np.arctanh(float64(a))) - np.log1p(
        -(float64(a) ** 2)
    )
    assert_allclose(log_p, by_hand.sum(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.reuses_keys
def test_sampling_with_and_without_the_log_probability_is_the_same() -> None:
    pi = one(TanhNormal, 0.3, -0.2, 9)
    assert_array_equal(pi.sample(jax.random.key(7)), pi.sample_and_log_prob(jax.random.key(7))[0])
    assert_allclose(pi.mode(), np.full((9, 1), math.tanh(0.3)), rtol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), SETTINGS)
def test_gaussian_samples_follow_the_distribution(mean: float, log_std: float) -> None:
    """Kolmogorov-Smirnov, the squashed one through its own cumulative distribution Φ((artanh a − μ)/σ)."""
    want = stats.norm(mean, math.exp(log_std))
    x = float64(one(Normal, mean, log_std, N).sample(jax.random.key(8)))[:, 0]
    assert stats.kstest(x, want.cdf).pvalue > SIGNIFICANCE
    a = float64(one(TanhNormal, mean, log_std, N).sample(jax.random.key(9)))[:, 0]
    assert stats.kstest(a, lambda a: want.cdf(np.arctanh(np.clip(a, -1 + 1e-9, 1 - 1e-9)))).pvalue > SIGNIFICANCE
    assert stats.kstest(a, want.cdf).pvalue < SIGNIFICANCE  # the test can tell them apart


@pytest.mark.parametrize(("mean", "std", "entropy"), [(0.0, 1.0, 0.6698041182), (1.5, 0.3, -1.5132290137)])
def test_the_entropy_of_a_squashed_gaussian(mean: float, std: float, entropy: float) -> None:
    """§8.1: −E[log π] by Monte Carlo over 400,000 samples, within 5 standard errors."""
    n = 400_000
    _, log_p = one(TanhNormal, mean, math.log(std), n).sample_and_log_prob(jax.random.key(10))
    error = float64(log_p).std() / math.sqrt(n)
    assert error < 0.003
    assert abs(-float64(log_p).mean() - entropy) < 5 * error


@pytest.mark.parametrize("u", [0.0, 1e-4, 1.0, 7.0, 9.0, 20.0, 50.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_density_before_squashing_is_exact_out_to_50(u: float, sign: int) -> None:
    """log π = log N(u) − log(1 − tanh²u), and log(1 − tanh²u) = −2 log cosh u = log 4 − 2|u| − 2 log(1 + e^(−2|u|))."""
    jacobian = math.log(4) - 2 * abs(u) - 2 * math.log1p(math.exp(-2 * abs(u)))
    want = stats.norm(0.5, 2.0).logpdf(sign * u) - jacobian
    pi = one(TanhNormal, 0.5, math.log(2.0))
    f = lambda x: pi.log_prob_of(x)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(f)(jnp.array([[sign * u]]))
    assert_allclose(value, want, rtol=1e-5, atol=2e-6)
    slope = -(sign * u - 0.5) / 4 + 2 * math.tanh(sign * u)
    assert_allclose(gradient[0, 0], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("a", [1.0, 1 - 1e-7, 1 - 6e-8, 1 - 1e-6, 1 - 1e-5, 1.0 + 1e-6])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("log_std", [-5.0, 0.0, 2.0])
def test_values_and_gradients_are_finite_at_the_bounds(a: float, sign: int, log_std: float) -> None:
    def f(mean: Any, log_std: Any, action: Any) -> Any:
        return TanhNormal(mean, log_std).log_prob(action)[0]

    at = (jnp.array([[0.3]]), jnp.array([[log_std]]), jnp.array([[sign * a]]))
    value, gradients = jax.value_and_grad(f, argnums=(0, 1, 2))(*at)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    assert gradients[0][0, 0] * sign > 0  # the mean is still pulled towards the action


def test_the_reparameterised_gradient() -> None:
    """∂ tanh(μ + σξ): d/dμ = 1 − a², d/d log σ = (1 − a²) σ ξ, with ξ = (u − μ)/σ."""
    key = jax.random.key(11)
    clone = jax.random.clone(key)
    mean, log_std = jnp.array([[0.4]]), jnp.array([[-0.3]])
    a = float(TanhNormal(mean, log_std).sample(key)[0, 0])
    d_mean, d_log = jax.grad(lambda m, s: TanhNormal(m, s).sample(clone)[0, 0], argnums=(0, 1))(mean, log_std)
    assert_allclose(d_mean[0, 0], 1 - a**2, rtol=1e-4)
    assert_allclose(d_log[0, 0], (1 - a**2) * (math.atanh(a) - 0.4), rtol=1e-3)


# -------------------------------------------------------------------------------------------------------- divergences


def divergence(p: Any, q: Any) -> float:
    """Σ p (log p − log q) of two tables of probabilities, in float64; 0 log 0 = 0."""
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-float64(x)))


def test_divergences_of_discrete_distributions_against_enumeration() -> None:
    rng, B, nvec = np.random.default_rng(0), 7, (2, 3)
    x, y = (rng.normal(size=(B, 5), scale=2.0) for _ in range(2))
    a, b = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    want = [divergence(p, q) for p, q in zip(softmax(x), softmax(y), strict=True)]
    assert_allclose(Categorical(a).kl(Categorical(b)), want, rtol=1e-5, atol=1e-6)
    joint = lambda z: np.einsum("bi,bj->bij", softmax(z[:, :2]), softmax(z[:, 2:]))  # noqa: E731
    want = [divergence(p, q) for p, q in zip(joint(x), joint(y), strict=True)]
    assert_allclose(MultiCategorical(a, nvec).kl(MultiCategorical(b, nvec)), want, rtol=1e-5, atol=1e-6)
    bits = np.array(list(itertools.product((0, 1), repeat=5)))
    table = lambda z: np.where(bits, sigmoid(z), sigmoid(-z)).prod(-1)  # noqa: E731
    want = [divergence(table(p), table(q)) for p, q in zip(x, y, strict=True)]
    assert_allclose(Bernoulli(a).kl(Bernoulli(b)), want, rtol=1e-5, atol=1e-6)
    for pi, other in ((Categorical(a), Categorical(b)), (Bernoulli(a), Bernoulli(b))):
        assert_array_equal(pi.kl(pi), 0)
        assert np.abs(pi.kl(other) - other.kl(pi)).max() > 0.1  # the order matters


@pytest.mark.parametrize(
    ("p", "q"),
    [((0.5, 0.2), (-1.0, 0.7)), ((0.0, -1.0), (0.3, -2.0)), ((2.0, 1.0), (2.0, -0.5)), ((1.0, 0.3), (1.001, 0.3))],
)
def test_divergences_of_gaussians_against_quadrature(p: Any, q: Any) -> None:
    """P9: asymmetric, and summed over the dimensions; that of squashed ones is the same."""
    (m, s), (n, r) = p, q
    grid = np.linspace(m - 12 * math.exp(s), m + 12 * math.exp(s), 400_001)
    log_p, log_q = stats.norm(m, math.exp(s)).logpdf(grid), stats.norm(n, math.exp(r)).logpdf(grid)
    want = np.trapezoid(np.exp(log_p) * (log_p - log_q), grid)
    for kind in (Normal, TanhNormal):
        both = kind(jnp.array([[m, n]]), jnp.array([[s, r]])).kl(kind(jnp.array([[n, n]]), jnp.array([[r, r]])))
        assert both.shape == (1,)
        assert_allclose(both, want, rtol=1e-4, atol=1e-9)
        pair = kind(jnp.array([[m, m]]), jnp.array([[s, s]])).kl(kind(jnp.array([[n, n]]), jnp.array([[r, r]])))
        assert_allclose(pair, 2 * want, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", [Categorical, lambda x: MultiCategorical(x, (2, 3)), Bernoulli, Normal, TanhNormal])
def test_the_divergence_is_the_mean_of_the_log_ratio_of_samples(kind: Any) -> None:
    """Monte Carlo: E_p[log p − log q], with samples of p."""
    at = (jnp.array([0.3, -0.7, 0.5, 0.1, -0.2]), jnp.array([-0.2, 0.1, -0.3, 0.4, 0.0]))
    p, q = (kind(x, 0.5 * x) if kind in (Normal, TanhNormal) else kind(x) for x in (at[0][None], at[1][None]))
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (N, *x.shape[1:])), p)
    others = jax.tree.map(lambda x: jnp.broadcast_to(x, (N, *x.shape[1:])), q)
    a = many.sample(jax.random.key(21))
    ratio = float64(many.log_prob(a)) - float64(others.log_prob(a))
    assert abs(ratio.mean() - float(p.kl(q)[0])) < 5 * ratio.std() / math.sqrt(N)


@pytest.mark.parametrize("name", MASKED)
def test_what_is_masked_adds_no_divergence_and_no_gradient(name: str) -> None:
    space, mask = MASKED[name]
    row = jnp.asarray(mask)[None]
    x, y = jnp.array([0.3, 9.0, -1.0, 2.0]), jnp.array([-0.5, -7.0, 0.4, 1.0])
    f = lambda x, y: policy(space, x[None], mask=row).kl(policy(space, y[None], mask=row))[0]  # noqa: E731
    pi = [policy(space, z[None], mask=row) for z in (x, y)]
    legal = [a for a in every_action(space) if allowed(space, a, mask)]
    p, q = (np.array([np.exp(float64(d.log_prob(jnp.asarray(a)[None])[0])) for a in legal]) for d in pi)
    assert_allclose(f(x, y), divergence(p, q), rtol=1e-4)
    gradients = jax.grad(f, argnums=(0, 1))(x, y)
    curvature = jax.hessian(f, argnums=1)(x, y)
    for g in (*map(np.asarray, gradients), np.asarray(curvature)):
        assert np.isfinite(g).all() and (g[mask == 0] == 0).all()
    assert (np.asarray(curvature)[:, mask == 0] == 0).all()


@pytest.mark.parametrize("size", [50.0, 1e4, 1e9])
def test_divergences_are_finite_at_extreme_logits(size: float) -> None:
    x, y = jnp.array([[size, 0.0, -size, 1.0]]), jnp.array([[0.0, 1.0, 2.0, 3.0]])
    for kind in (Categorical, lambda z: MultiCategorical(z, (2, 2)), Bernoulli):
        for p, q in ((x, y), (y, x), (x, x)):
            value, gradients = jax.value_and_grad(lambda p, q, k=kind: k(p).kl(k(q))[0], argnums=(0, 1))(p, q)
            assert np.isfinite(value) and value >= 0
            assert all(np.isfinite(g).all() for g in gradients)


# ---------------------------------------------------------------------------------------------------- which for which


@pytest.mark.parametrize(
    ("space", "n", "kind"),
    [
        (Discrete(5), 5, Categorical),
        (MultiDiscrete((2, 3)), 5, MultiCategorical),
        (MultiBinary(3), 3, Bernoulli),
        (Box(-1, 1, (3,)), 3, Normal),
        (Box(-np.inf, np.inf, (2,)), 2, Normal),
    ],
    ids=str,
)
def test_each_space_has_its_distribution_over_any_leading_axes(space: Any, n: int, kind: Any) -> None:
    assert parameters(space) == n
    for lead in ((), (5, 3)):
        log_std = jnp.full(n, -1.0) if kind is Normal else None
        pi = policy(space, jnp.zeros((*lead, n)), log_std)
        assert isinstance(pi, kind)
        a = pi.sample(jax.random.key(12))
        assert a.shape == (*lead, *space.shape)
        assert pi.log_prob(a).shape == pi.entropy().shape == lead
        assert pi.mode().shape == a.shape
        assert a.dtype == (np.float32 if kind is Normal else np.int32)


def test_the_deviation_of_a_policy_is_the_one_given() -> None:
    log_std = np.array([-1.0, 0.5, 0.2])
    pi = policy(Box(-1, 1, (3,)), jnp.zeros((4, 3)), jnp.asarray(log_std, jnp.float32))
    a = np.array([0.1, -0.2, 0.3])
    want = stats.norm(0, np.exp(log_std)).logpdf(a).sum()
    assert_allclose(
        pi.log_prob(jnp.broadcast_to(jnp.asarray(a, jnp.float32)[None], (4, 3))), np.full(4, want), rtol=1e-5
    )


def test_there_is_none_over_nested_actions() -> None:
    with pytest.raises(TypeError, match="no distribution"):
        parameters(Dict({"a": Discrete(2)}))


# --------------------------------------------------------------------------------------------------------- exploration


@pytest.mark.parametrize(
    "space", [Discrete(5), MultiDiscrete((2, 3)), MultiBinary(2), Box(-1, 1, (2,))], ids=lambda s: type(s).__name__
)
def test_uniform_exploration(space: Any) -> None:
    a = np.asarray(explore.uniform(jax.random.key(13), space, N))
    assert a.shape == (N, *space.shape)
    if isinstance(space, Box):
        assert stats.kstest(a[:, 0], stats.uniform(-1, 2).cdf).pvalue > SIGNIFICANCE
        assert abs(np.corrcoef(a.T)[0, 1]) < 5 / math.sqrt(N)
        return
    sizes = (space.n,) if isinstance(space, Discrete) else getattr(space, "nvec", (2, 2))
    n = math.prod(sizes)
    follows(np.ravel_multi_index(tuple(a.reshape(N, -1).T), sizes), np.full(n, 1 / n))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_shares_among_the_best_and_among_all(epsilon: float) -> None:
    """Two of four actions are best, one is forbidden; as often as `epsilon_greedy_probabilities` says."""
    Q, mask = jnp.tile(jnp.array([1.0, 0.0, 1.0, 9.0]), (N, 1)), jnp.tile(jnp.array([1, 1, 1, 0]), (N, 1))
    a = np.asarray(explore.epsilon_greedy_choice(jax.random.key(14), Q, epsilon, mask))
    wanted = (1 - epsilon) * np.array([0.5, 0, 0.5, 0]) + epsilon * np.array([1, 1, 1, 0]) / 3
    assert_allclose(explore.epsilon_greedy_probabilities(Q, epsilon, mask)[0], wanted, atol=1e-6)
    shares = np.bincount(a, minlength=4) / N
    assert (abs(shares - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / N)).all()
