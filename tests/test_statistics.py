"""Statistics against SciPy, against definitions written out by hand, and against distributions with known answers."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from polyak.errors import PolyakError
from polyak.statistics import bands, interval, iqm, pass_rule, probability_of_improvement


@pytest.mark.parametrize("n", range(1, 25))
def test_iqm_is_scipys_trimmed_mean(n):
    x = np.random.default_rng(n).normal(size=n) * 100
    assert iqm(x) == pytest.approx(scipy.stats.trim_mean(x, 0.25), rel=1e-13)


def test_iqm_by_hand():
    assert iqm([5, 1, 100, 3, 2]) == pytest.approx((2 + 3 + 5) / 3)
    assert iqm([1, 2, 3]) == 2.0
    assert iqm(list(range(10))) == pytest.approx(np.mean([2, 3, 4, 5, 6, 7]))
    assert iqm([[1, 2], [3, 100]]) == 2.5


def test_iqm_keeps_nan_and_refuses_nothing():
    assert math.isnan(iqm([1, 2, 3, 4, math.nan]))
    with pytest.raises(PolyakError, match="no values"):
        iqm([])


def exact_interval(x, confidence):
    """The bootstrap distribution in full: every one of the n**n samples."""
    samples = [iqm(s) for s in itertools.product(x, repeat=len(x))]
    tail = (1 - confidence) / 2
    return np.quantile(samples, [tail, 1 - tail])


def test_interval_is_the_exact_bootstraps():
    x = [480.0, 499.0, 500.0, 433.0, 491.0]
    low, high = exact_interval(x, 0.95)
    ours = interval(x, resamples=40_000)
    assert ours[0] == pytest.approx(low, abs=1.5)
    assert ours[1] == pytest.approx(high, abs=0.5)


def test_interval_agrees_with_scipys_for_the_mean():
    x = np.random.default_rng(0).normal(10, 3, 12)
    theirs = scipy.stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    low, high = interval(x, statistic=lambda a: float(a.mean()), resamples=20_000)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_interval_is_deterministic_and_the_fast_path_is_the_slow_one():
    x = np.random.default_rng(3).normal(size=(6, 4))
    assert interval(x) == interval(x)
    assert interval(x) != interval(x, seed=1)
    assert interval(x) == pytest.approx(interval(x, statistic=lambda a: iqm(a)), rel=1e-12)


def test_interval_is_stratified():
    """Tasks of very different scale: resampling across them would spread the mean; inside them nothing varies."""
    x = np.tile([0.0, 1000.0], (5, 1))
    assert interval(x, statistic=lambda a: float(a.mean())) == (500.0, 500.0)


def test_interval_covers_about_as_often_as_it_says():
    draw = np.random.default_rng(7)
    inside = 0
    for k in range(200):
        low, high = interval(draw.normal(size=20), statistic=lambda a: float(a.mean()), resamples=300, seed=k)
        inside += low <= 0 <= high
    assert 0.86 <= inside / 200 <= 0.98  # the percentile bootstrap of 20 values covers a little less than 0.95


@pytest.mark.parametrize("scores", [[3.0], [[1.0, 2.0]], [1.0, math.nan, 2.0]])
def test_no_interval_with_one_seed_or_a_failed_one(scores):
    assert all(math.isnan(v) for v in interval(scores))


def test_interval_refuses_nonsense():
    with pytest.raises(PolyakError, match="shape"):
        interval(np.zeros((2, 2, 2)))
    with pytest.raises(PolyakError, match="confidence"):
        interval([1, 2, 3], confidence=95)


def brute_wins(a, b):
    return np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b])


def test_probability_of_improvement_is_mann_whitneys_u():
    draw = np.random.default_rng(5)
    for sizes in ((5, 5), (3, 10)):
        a, b = draw.integers(0, 8, sizes[0]).astype(float), draw.integers(0, 8, sizes[1]).astype(float)
        p, low, high = probability_of_improvement(a, b)
        u = scipy.stats.mannwhitneyu(a, b).statistic
        assert p == pytest.approx(u / (len(a) * len(b)), abs=1e-12)
        assert p == pytest.approx(brute_wins(a, b), abs=1e-12)
        assert 0 <= low <= p <= high <= 1
        assert probability_of_improvement(b, a)[0] == pytest.approx(1 - p, abs=1e-12)


def test_probability_of_improvement_at_the_ends():
    assert probability_of_improvement([5, 6, 7], [1, 2]) == (1.0, 1.0, 1.0)
    assert probability_of_improvement([2, 2], [2, 2, 2]) == (0.5, 0.5, 0.5)
    p, low, high = probability_of_improvement([5], [1, 2])
    assert (p, math.isnan(low), math.isnan(high)) == (1.0, True, True)
    assert all(math.isnan(v) for v in probability_of_improvement([math.nan, 1], [1, 2]))


def test_probability_of_improvement_averages_tasks():
    a, b = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])
    assert probability_of_improvement(a, b)[0] == pytest.approx((1.0 + 0.25) / 2)
    with pytest.raises(PolyakError, match="tasks"):
        probability_of_improvement(a, [1.0, 2.0])


def test_pass_rule_stage_1():
    verdict = pass_rule([470, 500, 500, 100, 500], 490.0)
    assert (verdict.passed, verdict.decided, verdict.stage) == (True, True, 1)
    assert verdict.iqm == pytest.approx((470 + 500 + 500) / 3)
    missed = pass_rule([470, 480, 480, 100, 500], 490.0)
    assert (missed.passed, missed.decided, missed.stage) == (False, False, 1)
    assert "5 more seeds" in missed.sentence


def test_pass_rule_stage_1_is_inclusive_and_turns_round():
    assert pass_rule([500] * 5, 500.0).passed
    assert pass_rule([0.03, 0.035, 0.034, 0.5, 0.02], 0.036, "lower").passed
    assert not pass_rule([0.04] * 5, 0.036, "lower").passed


def test_pass_rule_stage_2_needs_both_halves():
    first, more = [480.0, 482, 484, 486, 488], [492.0, 494, 496, 498, 500]
    verdict = pass_rule(first, 489.5, more5=more, published_sd=6.12)
    ten = np.array(first + more)
    assert (verdict.passed, verdict.decided, verdict.stage) == (True, True, 2)
    assert verdict.iqm10 == pytest.approx(scipy.stats.trim_mean(ten, 0.25))
    assert (verdict.low, verdict.high) == interval(ten)
    assert verdict.mean10 == pytest.approx(ten.mean())
    below = pass_rule(first, 491.5, more5=more, published_sd=6.12)  # the mean is 490: less than the bar, but within sd
    assert below.high >= 491.5 > below.mean10
    assert below.passed
    assert not pass_rule(first, 491.5, more5=more, published_sd=1.4).passed
    far = [0.0, 0.0, 488, 489, 489]  # the IQM's interval still reaches the bar, but two seeds collapsed
    collapsed = pass_rule(far, 489.5, more5=more, published_sd=6.12)
    assert collapsed.high >= 489.5
    assert not collapsed.passed
    assert "not within one published" in collapsed.sentence
    low = pass_rule([400.0, 401, 402, 403, 404], 489.5, more5=[405.0, 406, 407, 408, 409], published_sd=1e6)
    assert not low.passed
    assert low.high < 489.5


def test_pass_rule_without_a_published_deviation_uses_the_candidates():
    first, more = [480.0, 482, 484, 486, 488], [470.0, 494, 496, 498, 500]
    for published in (None, math.nan):
        assert pass_rule(first, 489.5, more5=more, published_sd=published).sd == pytest.approx(
            np.std(first + more, ddof=1)
        )


def test_pass_rule_mirrors():
    """A `lower` row is a `higher` row of the negated scores."""
    draw = np.random.default_rng(11)
    seen = set()
    for _ in range(60):
        first, more = draw.normal(size=5), draw.normal(size=5)
        bar = draw.normal() * 0.7
        up = pass_rule(first, bar, more5=more, published_sd=0.3)
        down = pass_rule(-first, -bar, "lower", more5=-more, published_sd=0.3)
        seen.add((up.stage, up.passed))
        assert (up.stage, up.passed) == (down.stage, down.passed)
    assert seen == {(1, True), (2, True), (2, False)}


def test_pass_rule_never_passes_a_failed_seed():
    assert not pass_rule([500, 500, 500, 500, math.nan], 1.0).passed
    assert not pass_rule([500, 500, 500, 500, math.nan], 1.0, more5=[500] * 5, published_sd=1e9).passed


def test_pass_rule_refuses_other_numbers_of_seeds_and_directions():
    with pytest.raises(PolyakError, match="takes 5 seeds, but got 3"):
        pass_rule([1, 2, 3], 1.0)
    with pytest.raises(PolyakError, match="'abs'"):
        pass_rule([1] * 5, 1.0, "abs")


def test_bands_on_equal_steps_are_the_statistics_of_each_step():
    draw = np.random.default_rng(2)
    steps, table = np.arange(0, 1000, 100), draw.normal(size=(5, 10))
    b = bands([steps] * 5, list(table))
    np.testing.assert_array_equal(b.steps, steps)
    np.testing.assert_allclose(b.iqm, scipy.stats.trim_mean(table, 0.25, axis=0), rtol=1e-12)
    for k in range(10):
        low, high = exact_interval(table[:, k], 0.95) if k == 0 else interval(table[:, k])
        assert b.low[k] == pytest.approx(low, abs=0.15)
        assert b.high[k] == pytest.approx(high, abs=0.15)


def test_bands_interpolate_on_the_common_range():
    b = bands([[0, 10, 20], [5, 15, 40]], [[0.0, 10, 20], [5.0, 15, 40]])
    np.testing.assert_array_equal(b.steps, [5, 10, 15, 20])
    np.testing.assert_allclose(b.iqm, b.steps)  # both curves are the identity
    np.testing.assert_allclose(b.low, b.steps)


def test_bands_thin_a_long_grid():
    steps = np.arange(5000)
    b = bands([steps, steps + 0.5], [steps * 2.0, steps * 2.0 + 1], points=50)
    assert len(b.steps) == 50
    np.testing.assert_allclose(b.iqm, b.steps * 2, rtol=1e-12)


def test_bands_with_one_seed_have_no_interval_and_without_any_are_empty():
    b = bands([[1, 2, 2]], [[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(b.iqm, [1.0, 3.0])  # the last of equal steps counts
    assert np.isnan(b.low).all()
    assert np.isnan(b.high).all()
    assert len(bands([], []).steps) == 0
    assert len(bands([[1, 2]], [[math.nan, math.nan]]).steps) == 0
    assert len(bands([[1, 2], [5, 6]], [[1.0, 1], [1.0, 1]]).steps) == 0
    with pytest.raises(PolyakError, match="2 steps but 1 values"):
        bands([[1, 2]], [[1.0]])
