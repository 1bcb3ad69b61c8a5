"""Callbacks: the user's code between chunks of training. It may look at everything, stop the run, and change nothing.

Python runs between chunks, not at every environment step: `on_step` is called once per chunk, with the true count in
`num_timesteps`. Frequencies are in environment steps.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any


class Callback:
    """What a callback may answer to; override what you need.

    Attributes:
        num_timesteps: environment steps so far, per seed.
        n_calls: how often `on_step` was called.
        logger: the latest value of every metric by tag, averaged over seeds.
        run: the folder of the run.
        episodes: training episodes that ended so far, in the seed with the fewest.
        evaluations: (step, mean return per seed) of every evaluation so far.
    """

    num_timesteps: int = 0
    n_calls: int = 0
    episodes: int = 0
    logger: Mapping[str, float] = MappingProxyType({})
    run: Path = Path()
    evaluations: Sequence[tuple[int, list[float]]] = ()

    def on_training_start(self) -> None:
        """Before the first chunk."""

    def on_rollout_start(self) -> None:
        """Before every chunk."""

    def on_step(self) -> bool:
        """After every chunk; False stops the run, with a checkpoint."""
        return True

    def on_rollout_end(self) -> None:
        """After every chunk, before `on_step`."""

    def on_training_end(self) -> None:
        """After the last chunk."""


class StopOnRewardThreshold(Callback):
    """Stop once the mean return of an evaluation, over all seeds, reaches a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def on_step(self) -> bool:
        return not self.evaluations or sum(self.evaluations[-1][1]) / len(self.evaluations[-1][1]) < self.threshold


class StopOnMaxEpisodes(Callback):
    """Stop once every seed has finished this many training episodes."""

    def __init__(self, episodes: int) -> None:
        self.limit = episodes

    def on_step(self) -> bool:
        return self.episodes < self.limit


class StopOnNoModelImprovement(Callback):
    """Stop after `patience` evaluations in a row without a new best mean return, counted after `min_evaluations`."""

    def __init__(self, patience: int, min_evaluations: int = 0) -> None:
        self.patience, self.min_evaluations = patience, min_evaluations

    def on_step(self) -> bool:
        scores = [sum(scores) / len(scores) for _, scores in self.evaluations]
        if len(scores) <= self.min_evaluations or len(scores) <= self.patience:
            return True
        return max(scores[-self.patience :]) > max(scores[: -self.patience])


class EveryNTimesteps(Callback):
    """Call another callback's `on_step` each time that this many more environment steps are done."""

    def __init__(self, n: int, callback: Any) -> None:
        self.n, self.callback, self._last = n, as_callback(callback), 0

    def on_step(self) -> bool:
        if self.num_timesteps // self.n == self._last // self.n:
            return True
        self._last = self.num_timesteps
        share(self, self.callback)
        return self.callback.on_step()


class _Function(Callback):
    def __init__(self, function: Callable[[Callback], Any]) -> None:
        self.function = function

    def on_step(self) -> bool:
        return self.function(self) is not False


def as_callback(given: Any) -> Callback:
    """A callback as it is, or a plain function of the callback's attributes; only an answer of False stops the run."""
    return given if isinstance(given, Callback) else _Function(given)


def share(source: Callback, target: Callback) -> None:
    """Hand on what a callback knows of the run."""
    target.num_timesteps, target.n_calls, target.episodes = source.num_timesteps, source.n_calls, source.episodes
    target.logger, target.run, target.evaluations = source.logger, source.run, source.evaluations


class Callbacks:
    """All callbacks of a run as one."""

    def __init__(self, given: Sequence[Any], run: Path) -> None:
        self.all = [as_callback(c) for c in given]
        self.evaluations: list[tuple[int, list[float]]] = []
        for callback in self.all:
            callback.run, callback.evaluations, callback.n_calls, callback.logger = run, self.evaluations, 0, {}

    def start(self) -> None:
        for callback in self.all:
            callback.on_training_start()

    def before(self) -> None:
        for callback in self.all:
            callback.on_rollout_start()

    def know(self, evaluations: Sequence[tuple[int, list[float]]]) -> None:
        """All evaluations so far, as copies: a callback may do with them what it likes."""
        self.evaluations[:] = [(step, list(scores)) for step, scores in evaluations]

    def after(self, steps: int, episodes: int, logger: dict[str, float]) -> bool:
        """Whether to go on."""
        going = True
        for callback in self.all:
            callback.num_timesteps, callback.episodes, callback.n_calls = steps, episodes, callback.n_calls + 1
            callback.logger = {**callback.logger, **logger}
            callback.on_rollout_end()
            going &= callback.on_step() is not False
        return going

    def end(self) -> None:
        for callback in self.all:
            callback.on_training_end()
