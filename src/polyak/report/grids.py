"""Values of states as a board: a square per state, coloured by its value, with numbers, arrows and marks.

A board is drawn in layers. What changes with the values (a small picture of one pixel per state, arrows, numbers) lies
below what does not (lines, walls, goals, pits, tooltips), so that a film repeats only the first. Large boards are
pictures alone. The colours are the same in light and dark: the brighter, the more.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak.report.text import clean, decimals, plain

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

LETTERED = 400  # the most states that get arrows, numbers and tooltips
PIXELS = 256  # the longest side of a picture; larger boards are averaged
ROW = 50  # states in a row where they lie on no grid
TIES = 30  # the smallest squares, in SVG units, that have room for several arrows
TOP = 24  # room for the caption, in SVG units

# dark blue to pale yellow, and black to pale yellow through red: both rise evenly in brightness
RAMPS = {
    "value": ("0b1f4b", "173b7d", "1c5b9f", "2079b0", "2f98b5", "55b4ad", "8acca1", "c3e3a1", "f4f6bf"),
    "error": ("1b1a2a", "42204d", "73285c", "a63a58", "d0553f", "ea7c36", "f6a84c", "fbd37d", "fdf3c0"),
}
LEVELS, NOTHING = 240, 255  # colours of a picture; the index of a pixel without a value

WAYS: dict[str, tuple[int, int]] = {  # (right, down)
    "←": (-1, 0), "↓": (0, 1), "→": (1, 0), "↑": (0, -1), "↖": (-1, -1), "↗": (1, -1), "↘": (1, 1), "↙": (-1, 1),
    "left": (-1, 0), "down": (0, 1), "right": (1, 0), "up": (0, -1),
    "west": (-1, 0), "south": (0, 1), "east": (1, 0), "north": (0, -1),
}  # fmt: skip
WALL, GOAL, PITS, FLOOR = "#", "G", "HOC", "SF. "


@dataclass(frozen=True, eq=False)
class Board:
    """Where states stand and what they are; `cells` has a letter for each state, or is empty."""

    shape: tuple[int, int]
    count: int
    cells: str = ""
    terminal: Bools | None = None
    apart: Bools | None = None  # states that no policy enters: drawn under a veil, and outside of the scale
    grid: bool = True  # False: the states lie on no grid, and are only listed row by row

    @property
    def lettered(self) -> bool:
        return self.count <= LETTERED

    def letter(self, state: int) -> str:
        """The letter of a state; terminal states without one are T."""
        known = self.cells[state] if self.cells else ""
        return known or ("T" if self.terminal is not None and self.terminal[state] else "")

    @cached_property
    def walls(self) -> Bools:
        return np.array(list(self.cells)) == WALL if self.cells else np.zeros(self.count, np.bool_)

    @cached_property
    def blank(self) -> Bools:
        """The states that have no colour: walls, and terminal states, which are worth nothing by definition."""
        return self.walls if self.terminal is None else self.walls | self.terminal

    @cached_property
    def quiet(self) -> Bools:
        """The states that have no number and no arrow, and don't count for the scale."""
        return self.blank if self.apart is None else self.blank | self.apart


@dataclass(frozen=True)
class Scale:
    """Values between `low` and `high` as colours of a ramp."""

    low: float
    high: float
    ramp: str = "value"

    def levels(self, values: Floats) -> NDArray[np.uint8]:
        """The colour of each value, NOTHING where it is not finite."""
        width = self.high - self.low
        share = np.clip((values - self.low) / width, 0, 1) if width > 0 else np.full_like(values, 0.5)
        sound = np.isfinite(values)
        return np.where(sound, np.round(np.where(sound, share, 0) * (LEVELS - 1)), NOTHING).astype(np.uint8)

    @property
    def places(self) -> int:
        """Decimals that tell the values apart and fit into a square."""
        return min(3, decimals(self.low, self.high))


@dataclass(frozen=True, eq=False)
class Layer:
    """What a board shows at one time; `greedy` marks the best actions of each state, `policy` the one that is taken."""

    values: Floats
    policy: NDArray[Any] | None = None
    greedy: Bools | None = None
    caption: str = ""


@dataclass(frozen=True)
class Canvas:
    """A board's place on the page: the width in SVG units, which are CSS pixels where there is room."""

    board: Board
    scale: Scale
    actions: tuple[str, ...]
    width: float  # of the whole drawing
    side: float  # of one square
    top: int = 0  # room above, for a caption

    @property
    def height(self) -> float:
        return self.side * self.board.shape[0] + self.top

    @property
    def font(self) -> float:
        return min(15.0, max(11.0, 0.21 * self.side))

    def corner(self, state: int) -> tuple[float, float]:
        row, column = divmod(state, self.board.shape[1])
        return column * self.side, row * self.side + self.top


def board(
    shape: tuple[int, int] | None,
    count: int,
    cells: str = "",
    terminal: Bools | None = None,
    apart: Bools | None = None,
) -> Board:
    """The board of a model with `count` states; without a shape they are listed in rows of ROW."""
    if shape is not None and shape[0] * shape[1] == count:
        return Board(shape, count, cells if len(cells) == count else "", terminal, apart)
    columns = min(ROW, max(count, 1))
    return Board((math.ceil(count / columns), columns), count, "", terminal, apart, grid=False)


def scale_of(board: Board, values: Sequence[Floats], ramp: str = "value") -> Scale:
    """The scale that holds the finite values of all states that are shown."""
    shown = np.concatenate([v[..., ~board.quiet].ravel() for v in values])
    shown = shown[np.isfinite(shown)]
    return Scale(float(shown.min()), float(shown.max()), ramp) if shown.size else Scale(0.0, 0.0, ramp)


def best(Q: Floats, slack: float = 0.0) -> Bools:
    """The actions [S, A] whose value can't be told from the state's best one."""
    top = np.max(Q, axis=1, keepdims=True)
    return np.greater_equal(Q, top - np.maximum(slack, 1e-9 * np.maximum(1.0, np.abs(top))))


# ------------------------------------------------------------------------------------------------------------ pictures


def _colours(ramp: str) -> NDArray[np.uint8]:
    """The LEVELS colours of a ramp, [LEVELS, 3]."""
    anchors = np.array([[int(code[k : k + 2], 16) for k in (0, 2, 4)] for code in RAMPS[ramp]], np.float64)
    at = np.linspace(0, len(anchors) - 1, LEVELS)
    mixed = [np.interp(at, np.arange(len(anchors)), anchors[:, k]) for k in range(3)]
    return np.stack(mixed, axis=1).round().astype(np.uint8)


def _dark(ramp: str) -> Bools:
    """The levels on which white is read better than black, [LEVELS + …]: the luminance is below 0.179 (WCAG 2.2)."""
    c = _colours(ramp) / 255
    linear = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722]) < 0.179


def png(levels: NDArray[np.uint8], ramp: str = "value") -> str:
    """The picture of an array of levels as a data URI; NOTHING is transparent."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    palette = np.zeros((256, 3), np.uint8)
    palette[:LEVELS] = _colours(ramp)
    rows, columns = levels.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), levels], axis=1)  # each line begins with its filter, none
    parts = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        chunk(b"PLTE", palette.tobytes()),
        chunk(b"tRNS", bytes([255] * NOTHING + [0])),
        chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
        chunk(b"IEND", b""),
    ]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode("ascii")


def averaged(values: Floats, most: int = PIXELS) -> Floats:
    """An array [rows, columns] with at most `most` of both: the means of the finite values of each block."""
    if max(values.shape) <= most:
        return values
    sound = np.isfinite(values)
    count, total = sound.astype(np.float64), np.where(sound, values, 0.0)
    for axis, size in enumerate(values.shape):
        starts = np.unique(np.linspace(0, size, min(size, most), endpoint=False).astype(int))
        count, total = (np.add.reduceat(x, starts, axis=axis) for x in (count, total))
    return np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0)


def _arranged(board: Board, values: Floats) -> Floats:
    """Values [S] as the board's [rows, columns], NaN where nothing is shown."""
    rows, columns = board.shape
    flat = np.full(rows * columns, math.nan)
    flat[: board.count] = np.where(board.blank, math.nan, values)
    return flat.reshape(rows, columns)


def bar(scale: Scale, low: str = "", high: str = "") -> str:
    """The key of the colours: a ramp between its lowest and its highest value."""
    picture = png(np.arange(LEVELS, dtype=np.uint8)[None], scale.ramp)
    ends = [plain(v, max(scale.places, 1)) if scale.places else plain(v) for v in (scale.low, scale.high)]
    return (
        f'<p class="ramp"><span>{low}{ends[0]}</span><img src="{picture}" alt="darker: less, brighter: more">'
        f"<span>{high}{ends[1]}</span></p>"
    )


# ------------------------------------------------------------------------------------------------------------ drawings


def canvas(
    board: Board, scale: Scale, actions: tuple[str, ...], room: float, most: float = 80.0, caption: bool = False
) -> Canvas:
    """The largest drawing of a board in `room` units of width, its squares no larger than `most`."""
    side = min(most, room / board.shape[1])
    if not board.lettered and board.grid:
        side = min(side, 520 / max(board.shape))
    if not board.lettered and not board.grid:
        side = room / board.shape[1]
    width = side * board.shape[1]
    return Canvas(board, scale, actions, max(width, 120.0) if caption else width, side, TOP if caption else 0)


def both(
    board: Board,
    scale: Scale,
    actions: Sequence[str],
    layers: Sequence[Layer],
    label: str,
    rooms: tuple[float, float],
    tips: bool = True,
) -> str:
    """The board with its last layer, drawn for a wide and for a narrow page; earlier layers make a film."""
    pictures = [png(scale.levels(averaged(_arranged(board, layer.values))), scale.ramp) for layer in layers]
    caption = bool(layers[-1].caption)
    wide, narrow = (
        _drawing(canvas(board, scale, tuple(actions), room, caption=caption), layers, pictures, label, tips)
        for room in rooms
    )
    return f'<div class="for-wide">{wide}</div><div class="for-narrow">{narrow}</div>'


def _drawing(place: Canvas, layers: Sequence[Layer], pictures: Sequence[str], label: str, tips: bool) -> str:
    """The last layer; earlier ones lie above it, hidden (`frame`, `f0`, `f1`, …)."""
    inside = f'<g class="base">{_surface(place, layers[-1], pictures[-1])}</g>'
    paper = f'<rect class="back" width="{place.width:.1f}" height="{place.height:.1f}"/>'
    for k, (layer, picture) in enumerate(zip(layers[:-1], pictures[:-1], strict=True)):
        inside += f'<g class="frame f{k}">{paper}{_surface(place, layer, picture)}</g>'
    inside += _marks(place) + (_tips(place, layers[-1]) if tips and place.board.lettered else "")
    return (
        f'<svg class="plot board" viewBox="0 0 {place.width:.1f} {place.height:.1f}" role="img" '
        f'aria-label="{clean(label)}" font-size="{place.font:.1f}" style="max-width:{place.width:.0f}px">{inside}</svg>'
    )


def _surface(place: Canvas, layer: Layer, picture: str) -> str:
    """What changes with the values: the picture, arrows, numbers, and the caption."""
    board, side = place.board, place.side
    size = f'width="{side * board.shape[1]:.1f}" height="{side * board.shape[0]:.1f}"'
    parts = [f'<image {size} y="{place.top}" preserveAspectRatio="none" href="{picture}"/>']
    if layer.caption:
        parts.insert(0, f'<text class="caption" x="0" y="{TOP - 9}" font-size="13">{clean(layer.caption)}</text>')
    if board.lettered:
        parts += _letters(place, layer)
    return "".join(parts)


def _letters(place: Canvas, layer: Layer) -> Iterable[str]:
    """Arrows and numbers, white on dark squares and black on bright ones."""
    board = place.board
    level = place.scale.levels(np.where(board.quiet, math.nan, layer.values))
    dark = np.append(_dark(place.scale.ramp), np.zeros(256 - LEVELS, np.bool_))[level]
    texts = [plain(float(v), place.scale.places) for v in layer.values]
    fits = _fits(place, max((texts[s] for s in np.flatnonzero(level != NOTHING)), key=len, default=""))
    fits = fits and place.side >= (34 if layer.policy is not None else 20)
    for tone, chosen in (("pale", dark), ("deep", ~dark)):
        states = np.flatnonzero(chosen & (level != NOTHING))
        inside = _numbers(place, states, texts, layer.policy is None) if fits else ""
        inside += _arrows(place, states, layer, fits) if layer.policy is not None else ""
        if inside:
            yield f'<g class="{tone}">{inside}</g>'


def _fits(place: Canvas, text: str) -> bool:
    return bool(text) and len(text) * 0.57 * place.font + 3 <= place.side


def _numbers(place: Canvas, states: NDArray[np.int64], texts: Sequence[str], alone: bool) -> str:
    down = 0.5 * place.side + 0.35 * place.font if alone else place.side - 0.5 * place.font
    corners = [(place.corner(int(s)), texts[int(s)]) for s in states]
    return "".join(
        f'<text class="mid" x="{x + place.side / 2:.1f}" y="{y + down:.1f}">{text}</text>' for (x, y), text in corners
    )


def _arrows(place: Canvas, states: NDArray[np.int64], layer: Layer, lifted: bool) -> str:
    """The action that is taken in each state; those that are as good are fainter, and a dot is all of them.

    Where the action is no direction, its name stands there.
    """
    assert layer.policy is not None
    taken: list[str] = []
    equal: list[str] = []
    alike: list[str] = []
    words: list[str] = []
    middle = place.side * (0.38 if lifted else 0.5)
    for s in (int(s) for s in states):
        x, y = place.corner(s)
        x, y, action = x + place.side / 2, y + middle, int(layer.policy[s])
        rivals = [] if layer.greedy is None else [int(a) for a in np.flatnonzero(layer.greedy[s]) if a != action]
        name = place.actions[action] if action < len(place.actions) else str(action)
        if layer.greedy is not None and 1 < layer.greedy.shape[1] == len(rivals) + 1:
            alike.append(f"M{x:.1f} {y:.1f}h0")  # round caps make a dot of it
        elif (way := WAYS.get(name.lower())) is not None:
            shared = bool(rivals) and place.side >= TIES
            taken.append(_arrow(x, y, way, place.side, shared))
            rivals = rivals if shared else []
            ways = [WAYS.get(place.actions[a].lower()) for a in rivals if a < len(place.actions)]
            equal += [_arrow(x, y, other, place.side, True) for other in ways if other is not None]
        elif _fits(place, name):
            words.append(f'<text class="mid" x="{x:.1f}" y="{y + 0.35 * place.font:.1f}">{clean(name)}</text>')
    width = min(2.2, max(1.4, 0.045 * place.side))
    drawn = (("arrow equal", equal, width), ("arrow", taken, width), ("arrow alike", alike, 2.2 * width))
    paths = [f'<path class="{k}" stroke-width="{w:.1f}" d="{"".join(d)}"/>' for k, d, w in drawn if d]
    return "".join(paths + words)


def _arrow(x: float, y: float, way: tuple[int, int], side: float, from_centre: bool) -> str:
    """A shaft with its head, as a path; through the middle, or out of it where several arrows share a square."""
    norm = math.hypot(*way)
    right, down = way[0] / norm, way[1] / norm
    reach, wing = (0.22 if from_centre else 0.17) * side, 0.085 * side
    tail = 0.05 * side if from_centre else -reach
    tip = (x + right * reach, y + down * reach)
    back = reach - wing
    ends = [(x + right * back + k * down * wing, y + down * back - k * right * wing) for k in (1, -1)]
    lines = [(x + right * tail, y + down * tail), tip, ends[0], tip, ends[1]]
    points = [f"{a:.1f} {b:.1f}" for a, b in lines]
    return f"M{points[0]}L{points[1]}M{points[2]}L{points[3]}L{points[4]}"


def _marks(place: Canvas) -> str:
    """What doesn't change: the lines between squares, walls, and the letters of starts, goals, pits and the rest."""
    board, side = place.board, place.side
    if not board.lettered:
        return ""
    rows, columns = board.shape
    width, height, top = columns * side, rows * side + place.top, place.top
    lines = "".join(f"M{k * side:.1f} {top}V{height:.1f}" for k in range(columns + 1))
    lines += "".join(f"M0 {k * side + top:.1f}H{width:.1f}" for k in range(rows + 1))
    parts = [f'<path class="seams" d="{lines}"/>']
    for s in range(board.count):
        letter = board.letter(s)
        x, y = place.corner(s)
        if letter == WALL:
            parts.append(_square(x, y, side, 0, "wall"))
        elif board.terminal is not None and board.terminal[s]:
            kind = "goal" if letter == GOAL else "pit" if letter in PITS else "end"
            parts.append(f'<g class="{kind}">{_square(x, y, side, 3, "tile")}{_letter(place, s, letter)}</g>')
        elif board.apart is not None and board.apart[s]:
            parts.append(_square(x, y, side, 0, "veil") + _letter(place, s, letter.strip("S.F ")))
        elif letter not in FLOOR or letter == "S":
            parts.append(_tag(place, s, letter))
    return "".join(parts)


def _square(x: float, y: float, side: float, inset: float, kind: str) -> str:
    inset = min(inset, 0.08 * side)
    size = side - 2 * inset
    place = f'x="{x + inset:.1f}" y="{y + inset:.1f}" width="{size:.1f}" height="{size:.1f}"'
    return f'<rect class="{kind}" {place} rx="{inset:.1f}"/>'


def _letter(place: Canvas, state: int, letter: str) -> str:
    """A letter in the middle of its square."""
    if not letter:
        return ""
    x, y = place.corner(state)
    font = max(11.0, 0.34 * place.side)
    at = f'x="{x + place.side / 2:.1f}" y="{y + place.side / 2 + 0.36 * font:.1f}"'
    return f'<text class="mid strong" {at} font-size="{font:.1f}">{clean(letter)}</text>'


def _tag(place: Canvas, state: int, letter: str) -> str:
    """A letter on a small plate in the corner of its square, where there is room for it."""
    x, y = place.corner(state)
    if not letter or place.side < 44:
        return ""
    at = f'x="{x + 9.5:.1f}" y="{y + 13:.1f}"'
    return (
        f'<rect class="plate" x="{x + 2.5:.1f}" y="{y + 2.5:.1f}" width="14" height="14" rx="3"/>'
        f'<text class="mid strong" {at} font-size="11">{clean(letter)}</text>'
    )


def _tips(place: Canvas, layer: Layer) -> str:
    """A tooltip on each square: the state, its place, its value in full, its action."""
    board = place.board
    parts: list[str] = []
    for s in range(board.count):
        x, y = place.corner(s)
        row, column = divmod(s, board.shape[1])
        where = f" (row {row}, column {column})" if board.grid else ""
        taken = -1 if layer.policy is None or board.quiet[s] else int(layer.policy[s])
        action = f", {place.actions[taken]}" if 0 <= taken < len(place.actions) else ""
        title = f"state {s}{where}: {plain(float(layer.values[s]), 9)}{action}"
        at = f'x="{x:.1f}" y="{y:.1f}" width="{place.side:.1f}" height="{place.side:.1f}"'
        parts.append(f'<rect class="tip" {at}><title>{clean(title)}</title></rect>')
    return "".join(parts)
