"""Statistics over seeds: interquartile means, bootstrap intervals, probability of improvement, the pass rule.

A score is one number per seed (or per seed and task). The interquartile mean (IQM) is the centre, and a stratified
percentile bootstrap gives its interval, after Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", 2021, arXiv:2108.13264. Everything is NumPy in float64, and deterministic: the resampling has
a fixed seed, so a report that is written twice shows the same interval.

A NaN is a seed that failed. It is never dropped in silence: it makes the statistic NaN, and a NaN passes no bar.
With one seed there is no spread to resample, so the interval is (nan, nan), and callers say `ONE_SEED`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak.errors import PolyakError

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | NDArray[Any]

ONE_SEED = "one seed: no interval"


def iqm(x: Numbers) -> float:
    """The interquartile mean of all values of `x` (any shape, at least one value).

    Sort, drop floor(n/4) values at each end, average the rest: `scipy.stats.trim_mean(x, 0.25, axis=None)`, except
    that a NaN anywhere gives NaN (SciPy would sort it to the end and may trim it away).
    """
    values = np.asarray(x, np.float64).ravel()
    if values.size == 0:
        raise PolyakError("the interquartile mean of no values is not defined: give at least one score.")
    return float(_trimmed(values[None])[0])


def _trimmed(rows: Floats) -> Floats:
    """IQM of every row of [R, n, ...] along axis 1."""
    n = rows.shape[1]
    cut = n // 4
    kept = np.sort(rows, axis=1)[:, cut : n - cut].mean(axis=1)
    return np.where(np.isnan(rows).any(axis=1), np.nan, kept)


def _tasks(scores: Numbers) -> Floats:
    """Scores [seeds] or [seeds, tasks] as [seeds, tasks]."""
    values = np.asarray(scores, np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise PolyakError(f"scores must have the shape [seeds] or [seeds, tasks], but have {list(values.shape)}.")
    return values.reshape(len(values), -1)


def _resample(values: Floats, resamples: int, draw: np.random.Generator) -> Floats:
    """Bootstrap samples [resamples, seeds, tasks]: seeds are drawn anew, with replacement, inside every task."""
    seeds, tasks = values.shape
    index = draw.integers(0, seeds, (resamples, seeds, tasks))
    return np.take_along_axis(values[None], index, axis=1)


def _percentiles(statistics: Floats, confidence: float) -> tuple[Floats, Floats]:
    """The central `confidence` share of [R, ...] along axis 0."""
    if not 0.0 < confidence < 1.0:
        raise PolyakError(f"confidence must lie between 0 and 1, but is {confidence}: 0.95 is the usual value.")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(statistics, [tail, 1.0 - tail], axis=0)
    return low, high


def interval(
    scores: Numbers,
    statistic: Callable[[Floats], float] = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """A stratified percentile-bootstrap interval (low, high) of a statistic over seeds.

    Args:
        scores: [seeds] or [seeds, tasks]; every task is a stratum, whose seeds are resampled on their own.
        statistic: from an array like `scores` to one number; the default is the IQM of all its values.
        confidence: coverage, between 0 and 1.
        resamples: number of bootstrap samples.
        seed: of the resampling; equal arguments give equal intervals.

    Returns:
        (low, high), or (nan, nan) where there is only one seed or a score is NaN.
    """
    values = _tasks(scores)
    if len(values) < 2 or bool(np.isnan(values).any()):
        return math.nan, math.nan
    samples = _resample(values, resamples, np.random.default_rng(seed))
    if statistic is iqm:
        results = _trimmed(samples.reshape(resamples, -1))
    else:
        shape = np.asarray(scores).shape
        results = np.asarray([statistic(sample.reshape(shape)) for sample in samples], np.float64)
    low, high = _percentiles(results, confidence)
    return float(low), float(high)


def probability_of_improvement(
    a: Numbers, b: Numbers, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The probability that a run of A scores higher than a run of B: P(A > B) + ½ P(A = B), with an interval.

    Args:
        a, b: [seeds] or [seeds, tasks] (equal tasks; the numbers of seeds may differ). With several tasks the
            probability is averaged over them.
        confidence, resamples, seed: as in `interval`; the seeds of A and of B are resampled independently.

    Returns:
        (p, low, high). The first is the Mann–Whitney U statistic divided by the number of pairs. The interval is
        (nan, nan) where one side has a single seed; all three are NaN where a score is NaN.
    """
    left, right = _tasks(a), _tasks(b)
    if left.shape[1] != right.shape[1]:
        raise PolyakError(f"A has {left.shape[1]} tasks and B has {right.shape[1]}: compare them on the same tasks.")
    if bool(np.isnan(left).any() or np.isnan(right).any()):
        return math.nan, math.nan, math.nan
    p = float(_wins(left[None], right[None])[0])
    if min(len(left), len(right)) < 2:
        return p, math.nan, math.nan
    draw = np.random.default_rng(seed)
    samples = _wins(_resample(left, resamples, draw), _resample(right, resamples, draw))
    low, high = _percentiles(samples, confidence)
    return p, float(low), float(high)


def _wins(a: Floats, b: Floats) -> Floats:
    """P(A > B) + ½ P(A = B) of every row, from [R, seeds A, tasks] and [R, seeds B, tasks]."""
    difference = np.sign(a[:, :, None] - b[:, None, :])
    return 0.5 + 0.5 * difference.mean(axis=(1, 2, 3))


class Verdict(NamedTuple):
    """What the pass rule decided, with the numbers of both stages (NaN where a stage was not reached)."""

    passed: bool
    decided: bool  # False: stage 1 was missed, and the five further seeds of stage 2 are not there yet
    stage: int  # 1 or 2: the stage that decided, or the last one that was tried
    bar: float
    iqm: float  # of the 5 seeds
    iqm10: float
    low: float  # the 95 % interval of the 10-seed IQM
    high: float
    mean10: float
    sd: float  # the slack of stage 2: the published standard deviation, else that of the 10 seeds
    sentence: str


def pass_rule(
    scores5: Numbers,
    bar: float,
    direction: str = "higher",
    more5: Numbers | None = None,
    published_sd: float | None = None,
) -> Verdict:
    """The two-stage pass rule of the acceptance benchmarks.

    Stage 1: the IQM of 5 seeds reaches the bar. Stage 2, only after a miss, with 5 further seeds: the better end of
    the 95 % interval of the 10-seed IQM reaches the bar, and the 10-seed mean is at most one standard deviation
    worse than it. Two stages, because an exact copy of an agent misses its own published mean half of the time.

    Args:
        scores5: [5] scores of the fixed seeds.
        bar: the number to reach.
        direction: "higher" (score ≥ bar) or "lower" (score ≤ bar).
        more5: [5] scores of the further seeds; None where they have not been run.
        published_sd: over seeds; where None or NaN, the standard deviation (n − 1) of the 10 seeds stands in.

    Raises:
        PolyakError: for another direction or another number of seeds.
    """
    if direction not in ("higher", "lower"):
        raise PolyakError(f"the pass rule knows the directions 'higher' and 'lower', not {direction!r}.")
    sign = 1.0 if direction == "higher" else -1.0
    first = _five(scores5, "the first stage")
    centre = iqm(first)
    nan = math.nan
    if sign * centre >= sign * bar or more5 is None:
        passed = bool(sign * centre >= sign * bar)
        text = f"IQM {centre:.6g} {'reaches' if passed else 'misses'} the bar {bar:.6g} over 5 seeds"
        text += "." if passed else ": run 5 more seeds for stage 2."
        return Verdict(passed, passed, 1, bar, centre, nan, nan, nan, nan, nan, text)
    return _second_stage(np.concatenate([first, _five(more5, "the second stage")]), bar, sign, published_sd)


def _second_stage(ten: Floats, bar: float, sign: float, published_sd: float | None) -> Verdict:
    """Stage 2 of the pass rule for scores [10]; `sign` is +1 for "higher" and −1 for "lower"."""
    low, high = interval(ten)
    mean = float(ten.mean())
    published = published_sd is not None and not math.isnan(published_sd)
    sd = float(published_sd) if published_sd is not None and published else float(ten.std(ddof=1))
    reaches = sign * (high if sign > 0 else low) >= sign * bar
    near = sign * mean >= sign * bar - sd
    text = (
        f"10 seeds: IQM {iqm(ten):.6g} [{low:.6g}, {high:.6g}] {'reaches' if reaches else 'misses'} the bar {bar:.6g}, "
        f"and the mean {mean:.6g} is {'within' if near else 'not within'} one "
        f"{'published' if published else 'candidate'} standard deviation ({sd:.6g}) of it."
    )
    passed = bool(reaches and near)
    return Verdict(passed, True, 2, bar, iqm(ten[:5]), iqm(ten), low, high, mean, sd, text)


def _five(scores: Numbers, stage: str) -> Floats:
    values = np.asarray(scores, np.float64).ravel()
    if values.size != 5:
        raise PolyakError(f"{stage} of the pass rule takes 5 seeds, but got {values.size}.")
    return values


class Bands(NamedTuple):
    """Curves of several seeds on one grid of steps [G]."""

    steps: Floats  # [G]
    iqm: Floats  # [G]
    low: Floats  # [G], NaN with one seed
    high: Floats  # [G], NaN with one seed


def bands(
    steps: Sequence[Numbers],
    values: Sequence[Numbers],
    points: int = 200,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Bands:
    """IQM and pointwise bootstrap interval of curves over seeds.

    Args:
        steps, values: one array [n_k] each for every seed k. Order does not matter; the last of equal steps counts,
            and points that are not finite are left out.
        points: the largest grid. Where all steps of all seeds fit, they are the grid; otherwise it is evenly spaced.
        confidence, resamples, seed: as in `interval`; whole curves are resampled.

    Returns:
        `Bands` on the range of steps that every seed covers, linearly interpolated between a seed's points; empty
        where the seeds share no step. Seeds without any finite point do not take part.
    """
    curves = [curve for curve in map(_clean, steps, values) if len(curve[0])]
    empty = np.zeros(0)
    if not curves:
        return Bands(empty, empty, empty, empty)
    start, stop = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    grid: Floats = np.unique(np.concatenate([c[0] for c in curves]))
    grid = grid[(grid >= start) & (grid <= stop)]
    if len(grid) > points:
        grid = np.linspace(start, stop, points, dtype=np.float64)
    if not len(grid):
        return Bands(empty, empty, empty, empty)
    table = np.stack([np.interp(grid, c[0], c[1]) for c in curves])
    centre = _trimmed(table[None])[0]
    if len(curves) < 2:
        return Bands(grid, centre, np.full(len(grid), np.nan), np.full(len(grid), np.nan))
    index = np.random.default_rng(seed).integers(0, len(table), (resamples, len(table)))
    low, high = _percentiles(_trimmed(table[index]), confidence)
    return Bands(grid, centre, low, high)


def _clean(steps: Numbers, values: Numbers) -> tuple[Floats, Floats]:
    """One seed's curve: finite, sorted by step, the last value of equal steps."""
    x, y = np.asarray(steps, np.float64).ravel(), np.asarray(values, np.float64).ravel()
    if x.size != y.size:
        raise PolyakError(f"a curve has {x.size} steps but {y.size} values: they must be equally many.")
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite][::-1], y[finite][::-1]
    first = np.unique(x, return_index=True)[1]
    return x[first], y[first]
