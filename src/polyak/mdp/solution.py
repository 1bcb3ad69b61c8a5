"""What planners return, and how they keep count."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak.mdp.model import Floats, Indices

Progress: TypeAlias = Callable[[int, float], None]
"""Called between stretches of sweeps with (sweeps so far, guaranteed bound or NaN)."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The answer of a planner, with a bound that holds."""

    V: Floats  # [S]; finite horizon: [H + 1, S], V[t] with H − t steps to go
    Q: Floats  # [S, A], one backup of V; finite horizon: at the first step
    policy: Indices  # [S], greedy, and proper where γ = 1; finite horizon: [H, S]
    sweeps: int  # full sweeps over the states; asynchronous methods: backups / S, rounded up
    bound: float  # ‖V − V*‖∞ is at most this, rounding errors included; policy evaluation: ‖V − V^π‖∞
    gamma: float
    method: str
    errors: Floats  # [sweeps]: the bound guaranteed after each sweep, NaN where it was not computed
    frames: Floats  # [n, S]: V after some of the sweeps, the first before all of them, the last the answer;
    # finite horizon: after every one, a view of V
    frame_sweeps: NDArray[np.int64]  # [n]: after how many
    start_value: float  # Σₛ start(s) V(s)


class Record:
    """Sweeps as they happen: their bounds, and up to `keep` frames, evenly spread.

    When the frames are full, every second one is dropped and from then on half as many are taken.
    """

    def __init__(self, keep: int, progress: Progress | None) -> None:
        self.keep = 0 if keep <= 0 else max(keep, 3)
        self.progress = progress
        self.stride = 1
        self.sweeps = 0
        self.bound = math.nan
        self.errors: list[float] = []
        self.frames: list[tuple[int, Floats]] = []

    def room(self, n: int) -> int:
        """At most n sweeps, and none beyond the next frame that is due."""
        return min(n, self.stride - self.sweeps % self.stride) if self.keep else n

    def counted(self, errors: Floats) -> None:
        """Some more sweeps were done."""
        self.sweeps += len(errors)
        self.errors += errors.tolist()
        self.bound = next((error for error in reversed(errors.tolist()) if not math.isnan(error)), self.bound)
        if self.progress is not None:
            self.progress(self.sweeps, self.bound)

    def frame(self, V: Callable[[], Floats], *, last: bool = False) -> None:
        """Keeps V if it is due. The last one is the answer, and replaces a frame of the same sweep."""
        if not self.keep or (not last and self.sweeps % self.stride):
            return
        if self.frames and self.frames[-1][0] == self.sweeps:
            self.frames.pop()
        self.frames.append((self.sweeps, V().copy()))
        if len(self.frames) >= self.keep and not last:
            self.frames = self.frames[::2]
            self.stride *= 2
