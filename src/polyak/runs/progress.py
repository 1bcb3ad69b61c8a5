"""The live line of a run: bar, steps, speed, return with its interval, time left.

On a terminal one line is redrawn in place, at most ten times a second, by the training thread itself (a drawing thread
would compete with it). Elsewhere (a log file, CI) a plain line is printed now and then.
"""

import math
import sys
import time
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

from polyak.runs.sinks import escape

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REDRAW = 0.1  # seconds
LINE = 10.0  # seconds between plain lines, unless a tenth of the steps was done before
SPARK = "▁▂▃▄▅▆▇█"
POINTS = 16

Return = tuple[float, float, float]


class Progress:
    """Shows how far a run is. Nothing here changes the training, and a closed terminal does not stop it.

    Args:
        total_steps: environment steps per seed.
        seeds: how many seeds train at once.
        title: "PPO on CartPole-v1"; printed once, above the line.
        quiet: show nothing; `message` still prints.
        console: a rich console to draw on, for tests; default: stderr.
    """

    def __init__(self, total_steps: int, seeds: int, title: str, quiet: bool = False, console: "Console | None" = None):
        self._total, self._seeds, self._title, self._quiet = max(total_steps, 1), seeds, escape(title), quiet
        self._console: Console | None = console
        self._live: Live | None = None
        self._step, self._fps, self._ret, self._note = 0, 0.0, None, ""
        self._history: list[float] = []
        self._begun = self._drawn = time.monotonic()
        self._opened = False
        self._tenth = 0
        self._closed = False

    def update(self, step: int, fps: float, ret: Return | None = None, note: str = "") -> None:
        """New numbers.

        Args:
            step: environment steps per seed so far.
            fps: environment steps per second, summed over seeds.
            ret: return over the seeds (mean or IQM, low, high), NaN bounds where there is no interval; None keeps
                the last one.
            note: a few words at the end of the line ("compiling", "evaluating").
        """
        self._step, self._fps, self._note = step, fps, escape(note)
        if ret is not None and not math.isnan(ret[0]):
            self._ret: Return | None = ret
            self._remember(ret[0])
        if not self._quiet and not self._closed:
            self._show()

    def message(self, sentence: str) -> None:
        """Prints a sentence above the line, also when quiet; foreign characters are made harmless."""
        text = escape(sentence)
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(text)

    def close(self) -> None:
        """Draws the last state and gives the terminal back; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            live = self._live
            self._draw()
            with suppress(OSError):  # a terminal that was closed
                live.stop()
            self._live = None
        elif not self._quiet and self._opened:
            self._print(self._plain())

    # -- drawing

    def _show(self) -> None:
        now = time.monotonic()
        if not self._opened:
            self._open()
        elif self._live is not None and now - self._drawn < REDRAW and self._step < self._total:
            return
        if self._live is not None:
            self._draw()
        elif now - self._drawn >= LINE or self._step * 10 // self._total > self._tenth:
            self._print(self._plain())
        else:
            return
        self._tenth = self._step * 10 // self._total
        self._drawn = now

    def _open(self) -> None:
        """The heading; and the live display, where there is a terminal."""
        self._opened = True
        heading = self._title + (f", {self._seeds} seeds" if self._seeds > 1 else "")
        if self._console is None and not sys.stderr.isatty():
            self._print(heading)
            return
        from rich.console import Console
        from rich.live import Live

        console = self._console or Console(stderr=True)
        console.print(heading, style="bold", markup=False, highlight=False)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=True, redirect_stderr=True)
        self._live.start()

    def _draw(self) -> None:
        try:
            if self._live is not None:
                self._live.update(self._line(self._live.console), refresh=True)
        except OSError:  # the terminal was closed: there is nobody to tell, and training goes on
            self._live, self._quiet = None, True

    def _line(self, console: "Console") -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        cells = self._cells(console.encoding.startswith("utf"), wide=console.width >= 100)
        bar = 32 if console.width >= 120 else 20 if console.width >= 90 else 12
        # The least important columns give way until the line fits, so it never wraps.
        while len(cells) > 2 and bar + sum(2 + len(text) for _, text, _ in cells) > console.width:
            cells.remove(max(cells, key=lambda cell: cell[0]))
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(len(cells) + 1):
            table.add_column(no_wrap=True)
        meter = ProgressBar(
            self._total,
            min(self._step, self._total),
            bar,
            style="grey30",
            complete_style="cyan",
            finished_style="green",
        )
        table.add_row(meter, *(Text(text, style=style, no_wrap=True) for _, text, style in cells))
        return table

    def _cells(self, unicode: bool, wide: bool) -> list[tuple[int, str, str]]:
        """The columns after the bar: (rank, the largest gives way first; text padded to a steady width; style)."""
        steps = f"{self._total:,}"
        ended = self._closed or self._step >= self._total
        spent = duration(time.monotonic() - self._begun)
        middle, low, high = self._ret or (math.nan, math.nan, math.nan)
        cells = [
            (6, f"{min(100, 100 * self._step // self._total):3d} %", "bold"),
            (3, f"{self._step:>{len(steps)},}/{steps}", ""),
            (4, f"{_short(self._fps)}{' steps/s' if wide else '/s'}" if self._fps > 0 else "", "dim"),
            (1, "" if math.isnan(middle) else f"return {_number(middle)}", "bold green"),
            (5, "" if math.isnan(low) or math.isnan(high) else f"[{_number(low)}, {_number(high)}]", "green"),
            (7, sparkline(self._history) if unicode else "", "dim green"),
            (2, f"in {spent}" if ended else self._left(), "cyan"),
            (8, self._note, "dim italic"),
        ]
        return [cell for cell in cells if cell[1]]

    def _plain(self) -> str:
        parts = [f"{self._step:,}/{self._total:,} steps ({100 * self._step // self._total} %)"]
        parts.append(f"{self._fps:,.0f} steps/s" if self._fps > 0 else "")
        if self._ret is not None:
            middle, low, high = self._ret
            interval = "" if math.isnan(low) or math.isnan(high) else f" [{_number(low)}, {_number(high)}]"
            parts.append(f"return {_number(middle)}{interval}")
        ended = self._closed or self._step >= self._total
        parts.append(f"took {duration(time.monotonic() - self._begun)}" if ended else self._left())
        return "  " + ", ".join(part for part in [*parts, self._note] if part)

    def _left(self) -> str:
        if self._fps <= 0:
            return ""
        return f"{duration(max(0, self._total - self._step) * max(self._seeds, 1) / self._fps)} left"

    def _print(self, text: str) -> None:
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # the terminal was closed: there is nobody to tell, and training goes on
            self._quiet = True

    def _remember(self, value: float) -> None:
        """Keeps at most twice as many points as are drawn, evenly over the run so far."""
        self._history.append(value)
        if len(self._history) > 8 * POINTS:
            self._history = self._history[::2]


def sparkline(values: list[float]) -> str:
    """Up to 16 little columns, from the lowest to the highest of `values`; each the mean of a stretch of them."""
    if len(values) < 2:
        return ""
    count = min(POINTS, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARK) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARK[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Seconds for people: "8 s", "2:05 min", "3:20 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 or value == 0 else f"{value:.2f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value < 1e4 else f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.1f}M"
