"""Figures as inline SVG: curves over seeds, strips of returns, small multiples.

The colours are CSS variables of the page (`style.py`), so that one drawing serves light and dark. A figure that has
to be readable on a phone is drawn twice, wide and narrow, and CSS shows the one that fits; text is never scaled down
to nothing. Tooltips are SVG <title> elements: no script is needed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak.report.text import clean, decimals, plain, tick
from polyak.statistics import Bands, interval, iqm

Floats: TypeAlias = NDArray[np.float64]
Curve: TypeAlias = tuple[Floats, Floats]

COLOURS = 8  # series colours s0 … s7 in the style sheet; further series reuse them with another dash
DASHES = ("", "7 4", "2 3", "10 3 2 3")


@dataclass(frozen=True)
class Size:
    """A canvas, in SVG units; `font` is the size of the labels."""

    width: int
    height: int
    left: int = 52
    right: int = 16
    top: int = 26
    bottom: int = 38
    font: int = 13


WIDE = Size(900, 360)
NARROW = Size(400, 320, left=48, right=10, font=14)
SMALL = Size(320, 190, left=50, right=10, top=10, bottom=26, font=12)


@dataclass(frozen=True)
class Series:
    """One quantity over steps: a thin line per seed, and the IQM with its interval over them."""

    name: str
    colour: int
    seeds: dict[str, Curve]
    bands: Bands
    dots: bool = False  # mark the measured points (evaluations are few, training returns are many)


@dataclass(frozen=True)
class Row:
    """One line of a strip figure: all its values, and what a dot's tooltip says."""

    label: str
    values: Floats
    tips: Sequence[str]
    colour: int
    note: str = ""  # text at the right end
    centre: tuple[float, float, float] | None = None  # (IQM, low, high): drawn instead of a box


@dataclass(frozen=True)
class Axes:
    """Maps data to the canvas."""

    size: Size
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def px(self, value: float) -> float:
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return self.size.left + share * (self.size.width - self.size.left - self.size.right)

    def py(self, value: float) -> float:
        low, high = self.y
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / (high - low)
        return self.size.height - self.size.bottom - share * (self.size.height - self.size.top - self.size.bottom)


def ticks(low: float, high: float, wanted: int, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high], about `wanted` of them."""
    raw = (high - low) / max(wanted, 1)
    raw = max(raw, 1.0) if whole else raw
    if not math.isfinite(raw) or raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    rounds = (1, 2, 5, 10) if whole and power < 10 else (1, 2, 2.5, 5, 10)
    spacing = next(m * power for m in rounds if m * power >= raw * 0.8)
    first = math.ceil(low / spacing - 1e-9)
    count = math.floor(high / spacing + 1e-9) - first
    return [(first + k) * spacing for k in range(count + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], at most five of them."""
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    stride = max(1, math.ceil(len(exponents) / 5))
    return [10.0**e for e in exponents[::stride]]


def extent(values: Sequence[Floats], margin: float = 0.04) -> tuple[float, float]:
    """The range of finite values, a little widened; of width 2 or a tenth of the value where all are equal."""
    joined = np.concatenate([np.ravel(v) for v in values]) if values else np.zeros(0)
    joined = joined[np.isfinite(joined)]
    if not joined.size:
        return 0.0, 1.0
    low, high = float(joined.min()), float(joined.max())
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        around = 0.05 * abs(low) if low else 1.0
        return low - around, high + around
    pad = margin * (high - low)
    return low - pad, high + pad


def thin(curve: Curve, most: int = 240) -> Curve:
    """A curve with at most about `most` points: the lowest and highest of every stretch stay, so no spike is lost."""
    x, y = curve
    if len(x) <= most:
        return x, y
    kept: list[int] = [0, len(x) - 1]
    for part in np.array_split(np.arange(len(x)), most // 2):
        kept += [int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])]
    index = np.unique(kept)
    return x[index], y[index]


def _trace(axes: Axes, x: Floats, y: Floats) -> str:
    points = [f"{axes.px(float(a)):.1f},{axes.py(float(b)):.1f}" for a, b in zip(x, y, strict=True)]
    return " ".join(points)


def _line(axes: Axes, curve: Curve, kind: str, title: str = "", dash: str = "") -> str:
    """A polyline; one single point becomes a dot, so that it is seen."""
    x, y = curve
    tip = f"<title>{clean(title)}</title>" if title else ""
    if len(x) == 1:
        place = f'cx="{axes.px(float(x[0])):.1f}" cy="{axes.py(float(y[0])):.1f}"'
        return f'<circle class="{kind} lone" {place} r="3">{tip}</circle>'
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline class="{kind}" points="{_trace(axes, x, y)}"{dashed}>{tip}</polyline>'


def _area(axes: Axes, bands: Bands) -> str:
    sound = np.isfinite(bands.low) & np.isfinite(bands.high)
    if sound.sum() < 2:
        return ""
    x, low, high = bands.steps[sound], bands.low[sound], bands.high[sound]
    there, back = _trace(axes, x, high), _trace(axes, x[::-1], low[::-1])
    return f'<polygon class="band" points="{there} {back}"/>'


def _grid(axes: Axes, x_label: str, y_label: str, whole: bool = False) -> str:
    """Horizontal grid lines with their labels, ticks on the x axis, and the names of both axes."""
    size = axes.size
    rows = int((size.height - size.top - size.bottom) / (3.1 * size.font))
    columns = (size.width - size.left - size.right) // 95
    levels = decades(*axes.y) if axes.log else ticks(*axes.y, rows)
    stops = ticks(*axes.x, columns, whole)
    right, floor = size.width - size.right, size.height - size.bottom
    parts: list[str] = []
    for level in levels:
        y = axes.py(level)
        spacing = level if axes.log or len(levels) < 2 else levels[1] - levels[0]
        parts.append(f'<line class="grid" x1="{size.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{size.left - 7}" y="{y + size.font * 0.35:.1f}" class="end">{tick(level, spacing)}</text>'
        )
    parts.append(f'<line class="axis" x1="{size.left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    for stop in stops:
        x, spacing = axes.px(stop), stops[1] - stops[0] if len(stops) > 1 else stop
        kind = "end" if x > right - 14 else "mid"
        at = right if kind == "end" else x
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 6 + size.font}" class="{kind}">{tick(stop, spacing)}</text>')
    if y_label:
        parts.append(f'<text x="2" y="{size.font}" class="name">{clean(y_label)}</text>')
    if x_label:
        parts.append(f'<text x="{right}" y="{size.height - 2}" class="end name">{clean(x_label)}</text>')
    return "".join(parts)


def _svg(size: Size, inside: str, label: str, kind: str = "") -> str:
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {size.width} {size.height}" role="img" aria-label="{clean(label)}" '
        f'font-size="{size.font}">{inside}</svg>'
    )


def spreads(values: Sequence[Floats]) -> bool:
    """Whether a quantity needs a logarithmic axis: positive, and its largest value dwarfs the typical one."""
    joined = np.concatenate([np.ravel(v) for v in values]) if values else np.zeros(0)
    joined = joined[np.isfinite(joined)]
    if joined.size < 3 or joined.min() <= 0:
        return False
    return bool(joined.max() > 50 * np.median(joined) or np.median(joined) > 1e3 * joined.min() > 0)


def curves(
    series: Sequence[Series],
    size: Size,
    x_label: str,
    y_label: str,
    label: str,
    kind: str = "",
    log: bool | None = None,
    unit: str = "step",
) -> str:
    """Several quantities over steps (or another unit) in one figure; `log` None: as the values ask for it."""
    lines = [curve for s in series for curve in s.seeds.values()]
    heights = [y for _, y in lines] + [v for s in series for v in (s.bands.low, s.bands.high, s.bands.iqm)]
    widths = [x for x, _ in lines]
    log = kind == "small" and spreads(heights) if log is None else log
    y = extent(heights)
    if log:
        positive = np.concatenate([np.ravel(h) for h in heights])
        positive = positive[np.isfinite(positive) & (positive > 0)]
        y = (float(positive.min()) / 1.3, float(positive.max()) * 1.3)
    x = extent(widths, margin=0.0)
    axes = Axes(size, (min(0.0, x[0]) if x[0] < 0.2 * x[1] else x[0], x[1]), y, log)
    parts = [_grid(axes, x_label, y_label + (", logarithmic" if log and y_label else ""), unit == "sweep")]
    for s in series:
        parts.append(f'<g class="s{s.colour % COLOURS}">{_area(axes, s.bands)}')
        parts += [_line(axes, thin(curve), "seed", f"{s.name}, {name}") for name, curve in s.seeds.items()]
        parts.append("</g>")
    for s in series:  # the IQMs lie above every band
        dash = DASHES[s.colour // COLOURS % len(DASHES)]
        parts.append(f'<g class="s{s.colour % COLOURS}">')
        if len(s.bands.steps):
            parts.append(_line(axes, (s.bands.steps, s.bands.iqm), "iqm", "", dash))
            parts.append(_marks(axes, s, unit))
        parts.append("</g>")
    return _svg(size, "".join(parts), label, kind)


def _marks(axes: Axes, s: Series, unit: str) -> str:
    """Points that show step, IQM and interval in a tooltip: visible for evaluations, else on hover."""
    count = len(s.bands.steps)
    index = np.unique(np.linspace(0, count - 1, min(count, 40)).round().astype(int))
    kind, radius = ("dot", 3.2) if s.dots and count <= 40 else ("hit", 6.0)
    parts: list[str] = []
    for k in index:
        step, centre, low, high = (float(a[k]) for a in (s.bands.steps, s.bands.iqm, s.bands.low, s.bands.high))
        places = decimals(centre, low, high)
        around = "" if math.isnan(low) else f" [{plain(low, places)}, {plain(high, places)}]"
        title = f"{s.name}, {unit} {plain(round(step), 0)}: {plain(centre, places)}{around}"
        x, y = axes.px(step), axes.py(centre)
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{clean(title)}</title></circle>'
        )
    return "".join(parts)


def scatter(
    x: Floats, y: Floats, tips: Sequence[str], size: Size, x_label: str, y_label: str, label: str, colour: int = 0
) -> str:
    """Dots in a plane with its diagonal, on which both quantities are equal."""
    low, high = extent([x, y])
    axes = Axes(size, (low, high), (low, high))
    parts = [_grid(axes, x_label, y_label)]
    ends = [(axes.px(v), axes.py(v)) for v in (low, high)]
    parts.append(f'<line class="diagonal" x1="{ends[0][0]:.1f}" y1="{ends[0][1]:.1f}" ')
    parts.append(f'x2="{ends[1][0]:.1f}" y2="{ends[1][1]:.1f}"/><g class="s{colour % COLOURS}">')
    radius = 3.4 if len(x) <= 300 else 2.4
    for a, b, tip in zip(x, y, tips, strict=True):
        place = f'cx="{axes.px(float(a)):.1f}" cy="{axes.py(float(b)):.1f}"'
        parts.append(f'<circle class="value" {place} r="{radius}"><title>{clean(tip)}</title></circle>')
    return _svg(size, "".join(parts) + "</g>", label)


def both(draw: Callable[[Size], str], wide: Size = WIDE, narrow: Size = NARROW) -> str:
    """A figure in its wide and its narrow drawing; the style sheet shows one of them."""
    return f'<div class="for-wide">{draw(wide)}</div><div class="for-narrow">{draw(narrow)}</div>'


ROW = 46  # height of one row of a strip, in SVG units


def strips(rows: Sequence[Row], size: Size, x_label: str, label: str) -> str:
    """Rows of dots, one per value, with a box (quartiles and median) or an IQM with its interval."""
    note = max((len(row.note) for row in rows), default=0)
    longest = max((len(row.label) for row in rows), default=0)
    unit = size.font * 0.56
    left = round(min(0.34 * size.width, longest * unit + 16))
    right = round(note * unit + 16) if note else 14
    canvas = Size(size.width, 10 + ROW * len(rows) + size.bottom, left, right, 10, size.bottom, size.font)
    bounds = [row.values for row in rows] + [np.asarray(row.centre) for row in rows if row.centre]
    axes = Axes(canvas, extent(bounds), (0.0, 1.0))
    stops = ticks(*axes.x, (canvas.width - left - right) // 85)
    floor = canvas.height - canvas.bottom
    parts: list[str] = []
    for stop in stops:
        x, spacing = axes.px(stop), stops[1] - stops[0] if len(stops) > 1 else stop
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{floor}"/>')
        parts.append(f'<text class="mid" x="{x:.1f}" y="{floor + 6 + size.font}">{tick(stop, spacing)}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{canvas.width - right}" y1="{floor}" y2="{floor}"/>')
    for k, row in enumerate(rows):
        parts.append(_strip(axes, row, 10 + ROW * (k + 0.5), int(left / unit) - 1))
    parts.append(f'<text class="end name" x="{canvas.width - right}" y="{canvas.height - 2}">{clean(x_label)}</text>')
    return _svg(canvas, "".join(parts), label)


def _strip(axes: Axes, row: Row, y: float, letters: int) -> str:
    """One row: its label (shortened to `letters`), its dots, its box or IQM, its note."""
    size = axes.size
    label = row.label if len(row.label) <= letters else row.label[: max(letters - 1, 1)] + "…"
    base = f"{y + size.font * 0.35:.1f}"
    parts = [
        f'<text class="end row" x="{size.left - 10}" y="{base}">{clean(label)}<title>{clean(row.label)}</title></text>'
    ]
    parts.append(f'<g class="s{row.colour % COLOURS}">')
    values = row.values[np.isfinite(row.values)]
    if row.centre is None and len(values):
        low, middle, high = (axes.px(float(q)) for q in np.quantile(values, [0.25, 0.5, 0.75]))
        parts.append(
            f'<rect class="box" x="{low - 2:.1f}" y="{y - 15}" width="{high - low + 4:.1f}" height="30" rx="4"/>'
        )
        parts.append(f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 15}" y2="{y + 15}"/>')
    if row.centre is not None:
        parts.append(_centre(axes, row.centre, y))
    parts += _swarm(axes, row, y)
    parts.append("</g>")
    if row.note:
        parts.append(f'<text class="end strong" x="{size.width - 4}" y="{base}">{clean(row.note)}</text>')
    return "".join(parts)


def _swarm(axes: Axes, row: Row, y: float) -> list[str]:
    """A dot per value; dots that would cover each other are stacked up and down inside the row."""
    radius = 4.5 if row.centre else 3.4 if len(row.values) <= 60 else 2.4
    columns: dict[int, list[int]] = {}
    for k, value in enumerate(row.values):
        if math.isfinite(value):
            columns.setdefault(round(axes.px(float(value)) / (2 * radius)), []).append(k)
    parts: list[str] = []
    for members in columns.values():
        gap = min(2 * radius, 30.0 / max(len(members) - 1, 1))
        for place, k in enumerate(members):
            at = y + gap * ((place + 1) // 2) * (1 if place % 2 else -1)
            x = axes.px(float(row.values[k]))
            title = f"<title>{clean(row.tips[k])}</title>" if k < len(row.tips) else ""
            parts.append(f'<circle class="value" cx="{x:.1f}" cy="{at:.1f}" r="{radius}">{title}</circle>')
    return parts


def _centre(axes: Axes, centre: tuple[float, float, float], y: float) -> str:
    """The IQM as a dark line on a bar that spans its interval."""
    at, low, high = centre
    if math.isnan(at):
        return ""
    x, places = axes.px(at), decimals(at, low, high)
    title, bar = f"IQM {plain(at, places)}", ""
    if math.isfinite(low) and math.isfinite(high):
        title += f" [{plain(low, places)}, {plain(high, places)}]"
        width = max(axes.px(high) - axes.px(low), 2.0)
        bar = f'<rect class="range" x="{axes.px(low):.1f}" y="{y - 13}" width="{width:.1f}" height="26" rx="4"/>'
    line = f'<line class="middle" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 16}" y2="{y + 16}"/>'
    return f"<g><title>{clean(title)}</title>{bar}{line}</g>"


def summary_row(label: str, values: Floats, tips: Sequence[str], colour: int) -> Row:
    """A row of per-seed scores with their IQM and its interval."""
    low, high = interval(values)
    centre = iqm(values)
    return Row(label, values, tips, colour, plain(centre, decimals(centre)), (centre, low, high))


def legend(entries: Sequence[tuple[str, int]], mark: str = "line") -> str:
    """A row of names with their colours; it wraps on a phone. The dash of a series is repeated in its key."""
    keys: list[str] = []
    for name, colour in entries:
        dash = DASHES[colour // COLOURS % len(DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        swatch = f'<svg class="key s{colour % COLOURS}" viewBox="0 0 26 10" aria-hidden="true">'
        swatch += '<rect class="band" width="26" height="10" rx="2"/>'
        swatch += f'<line class="iqm" x1="0" x2="26" y1="5" y2="5"{dashed}/></svg>'
        keys.append(f"<li>{swatch}{clean(name)}</li>")
    return f'<ul class="legend">{"".join(keys)}</ul>'
