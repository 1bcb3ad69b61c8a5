"""How far a computed V can be from V*: bounds that hold, rounding included.

Rounding. With u = 2⁻⁵³ and K terms, whatever the order in which they are added, a computed backup differs from the
exact one by at most (K + 3) u (max |r| + β max |V|) to first order (N. J. Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd edition, 2002, §3.1). `rounding` is three terms and one per cent more generous.

γ < 1. Let β⁻ ≤ Σₖ w(s, a, k) ≤ β⁺ < 1 for all pairs, and d = TV − V. T is monotone, and adding a constant c to V adds
between β⁻ c and β⁺ c to TV. So x ≥ max d, with x⁺ = x / (1 − β⁺) if x > 0 and x / (1 − β⁻) otherwise, gives
T(V + x⁺) ≤ V + x⁺, hence V* ≤ V + x⁺; the same from below; and one more T gives

    TV + β min d / (1 − β)  ≤  V*  ≤  TV + β max d / (1 − β)

with the β that is right for the sign (J. B. MacQueen, 1966; E. L. Porteus, 1971; M. L. Puterman, "Markov Decision
Processes", 1994, theorem 6.6.3, where β⁻ = β⁺ = γ). Where the bracket is narrow beside |d|, V moves to its middle.

γ = 1. Let every end component lose (see `proper`). If W ≥ TW, then W ≥ T_π W ≥ T_π²W ≥ … → V_π for every proper π, so
W ≥ V*. If L ≤ TL = T_πL, then π is proper, since on a set that it never leaves its average reward, which is the average
of T_πL − L, would not be negative; so L ≤ V_π ≤ V*. Such W and L are V + x D and V − y D, where D(s) is about the
largest expected number of steps to the end over policies of near-greedy actions: for these Q(s, a) + x P_aD ≤ V + δ +
x (D − 1) where δ bounds |TV − V|, which is at most V + x D if x ≥ δ; and for all others the gap V − Q(s, a) must cover
x (P_aD − D). Nothing depends on D being right: both inequalities are linear in x and y, whose smallest values are read
off pair by pair.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polyak.mdp.graph import Graph, surely_attracted
from polyak.mdp.model import Floats
from polyak.mdp.problem import Problem, backup

_U = 2.0**-53
_TINY = 2.0**-60  # no 1 − β of a contraction is smaller; where β = 1 nobody reads the bracket


class Limits(NamedTuple):
    """What a bound depends on beside V: plain numbers, or traced ones."""

    terms: float  # K + 6
    scale: float  # max |r|
    low: float  # β⁻
    high: float  # β⁺; 1 where γ = 1

    @property
    def proper(self) -> Any:
        """Whether T is no contraction, so that bounds come from D."""
        return self.high >= 1.0


def limits_of(problem: Problem, *, proper: bool) -> Limits:
    """The limits of a problem; proper: γ = 1."""
    k = problem.weight.shape[2]
    real = np.isfinite(problem.reward) & problem.free[:, None]
    sums = problem.weight.sum(2)[real] if real.any() else np.zeros(1)
    slack = (k + 2) * 2 * _U
    high = 1.0 if proper else float(sums.max()) * (1 + slack)
    return Limits(float(k + 6), problem.scale, float(sums.min()) * (1 - slack), high)


def rounding(limits: Limits, largest: Any) -> Any:
    """How far one computed backup, or its difference from V, is from the exact one; largest: max(|V|, |TV|)."""
    return 1.01 * limits.terms * _U * (limits.scale + (1 + limits.high) * largest) + 1e-300


def bracket(limits: Limits, low: Any, high: Any, largest: Any, xp: Any = np) -> tuple[Any, Any, Any]:
    """(bound, shift, plain): TV + shift is within the bound of V*, and TV itself within `plain`; for γ < 1.

    Args:
        low, high: the smallest and the largest TV − V over the states that are not terminal.
        largest: max(|V|, |TV|).
        xp: numpy, or jax.numpy inside a program.
    """
    error = rounding(limits, largest)
    above, below = high + error, low - error
    up = xp.where(above > 0, limits.high, limits.low)
    down = xp.where(below < 0, limits.high, limits.low)
    top = above * up / xp.maximum(1 - up, _TINY) + error
    bottom = below * down / xp.maximum(1 - down, _TINY) - error
    half, plain = (top - bottom) / 2, xp.maximum(xp.abs(top), xp.abs(bottom))
    # ‖V − V*‖ ≥ max |d| / (1 + β): so narrow, the step from V to TV + shift contracts as T does
    narrow = half <= 0.5 * limits.high * xp.maximum(xp.abs(high), xp.abs(low)) / (1 + limits.high)
    shift = xp.where(narrow, (top + bottom) / 2, 0.0)
    plain = plain * (1 + 1e-12)
    return xp.where(narrow, half * (1 + 1e-12) + 4 * _U * xp.abs(shift), plain), shift, plain


class Certificate(NamedTuple):
    """A value function and what is known of it."""

    V: Floats  # [S]
    bound: float  # ‖V − V*‖∞ is at most this; inf where nothing could be shown


Steps = Callable[[Any, Floats], Floats]
"""(near-greedy actions [S, A], a first guess [S]) to D: about the most expected steps that they permit."""


def certified(problem: Problem, limits: Limits, V: Floats, graph: Graph | None, steps: Steps) -> Certificate:
    """One backup of V, and the bound that it proves; for γ = 1 the bound of V itself."""
    Q = backup(problem, V)
    best = Q.max(1)
    change = np.where(problem.free, best - V, 0.0)
    largest = max(float(np.abs(V).max()), float(np.abs(best).max()))
    if graph is not None:
        return _proper(problem, limits, V, Q, graph, steps)
    moved = change[problem.free] if problem.free.any() else np.zeros(1)
    bound, shift, _ = bracket(limits, moved.min(), moved.max(), largest)
    return Certificate(np.where(problem.free, best + shift, 0.0), float(bound))


def _proper(problem: Problem, limits: Limits, V: Floats, Q: Floats, graph: Graph, steps: Steps) -> Certificate:
    """The bound for γ = 1, from the widest set of near-greedy actions that is proper and proves one."""
    if not problem.free.any():
        return Certificate(V, 0.0)
    best = np.where(problem.free, Q.max(1), 0.0)
    largest = max(float(np.abs(V).max()), float(np.abs(best).max()))
    error = rounding(limits, largest)
    width = np.sqrt(max(float(np.abs(best - V).max()), error) * max(limits.scale, largest, error))
    width = max(float(width), 2 * error)
    while width >= error:
        near = (best[:, None] - Q <= width) & np.isfinite(Q) & problem.free[:, None]
        level = surely_attracted(graph, problem.ends.ravel(), near.ravel())
        if (level >= 0).all():
            D = np.where(problem.free, steps(near, level.astype(np.float64)), 0.0)
            bound = _sandwich(problem, limits, V[:, None] - Q, D, error)
            if np.isfinite(bound):
                return Certificate(V, bound)
        width /= 32
    return Certificate(V, np.inf)


def _sandwich(problem: Problem, limits: Limits, gap: Floats, D: Floats, error: float) -> float:
    """max(x, y) · max D for the smallest x and y with V + x D ≥ T(V + x D) and V − y D ≤ T(V − y D); inf if none.

    Args:
        gap: V − Q(s, a), [S, A].
        D: [S], positive in the states that are not terminal.
        error: how far a gap may be from the exact one.
    """
    far = float(D.max())
    slack = D[:, None] - backup(problem._replace(reward=np.zeros_like(gap)), D)
    slack = (slack - rounding(Limits(limits.terms, 0.0, limits.low, limits.high), far))[problem.free]
    gap, falls = gap[problem.free], slack > 0
    x = max(0.0, float(((error - gap)[falls] / slack[falls]).max(initial=0.0)))
    covered = (gap - error)[~falls] >= -x * slack[~falls]
    greedy = np.arange(len(gap)), gap.argmin(1)
    if not covered.all() or not falls[greedy].all():
        return np.inf
    y = max(0.0, float(((error + gap)[greedy] / slack[greedy]).max()))
    return max(x, y) * far * (1 + 1e-12)
