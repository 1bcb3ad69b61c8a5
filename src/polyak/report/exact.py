"""What a tabular agent learned beside what a planner computed: the part of a run's report that `exact.npz` gives."""

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak.report import grids, plots
from polyak.report.files import DAMAGED, RunFiles, content
from polyak.report.grids import Board, Layer, Scale
from polyak.report.text import clean, data, plain

CAP = 2**29  # bytes of the arrays, unpacked
DOTS = 1500  # the most points of a scatter
ENDS = "GHO"  # letters of cells that end an episode
ABREAST = 8  # columns up to which three boards stand side by side
ROOMS = (286.0, 958.0, 330.0)  # widths of a board: one of three abreast, alone, on a phone

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The arrays of `exact.npz`: C is the number of actions for Q, and 1 for V."""

    exact: Floats  # [S, C]
    learned: Floats  # [seeds, S, C]
    reachable: NDArray[np.bool_]  # [S]
    shape: tuple[int, int]  # (0, 0) where the states lie on no grid
    cells: str
    actions: tuple[str, ...]
    kind: str  # "Q" or "V"
    gamma: float

    @property
    def mean(self) -> Floats:
        """The learned table, averaged over seeds, [S, C]."""
        return self.learned.mean(axis=0)

    def errors(self) -> Floats:
        """The largest error over the actions of each state, per seed, [seeds, S]."""
        return np.abs(self.learned - self.exact).max(axis=2)


def learned_and_exact(files: RunFiles) -> str:
    """The section; nothing where the run has no exact values, and a note where their file is damaged."""
    found = _read(files)
    if found is None or not found.reachable.any():
        return ""
    ends = np.isin(np.array(list(found.cells)), list(ENDS)) if len(found.cells) == len(found.exact) else None
    grid = found.shape if found.shape[0] * found.shape[1] == len(found.exact) else None
    figures = _scatter(found) if grid is None else _boards(
        found, grids.board(grid, len(found.exact), found.cells, ends, ~found.reachable)
    )  # fmt: skip
    return f"<h2>Learned and exact</h2>{_text(found, ends)}{figures}"


def _read(files: RunFiles) -> Comparison | None:
    """`exact.npz` of the run, checked; None where there is none."""
    path = files.path / "exact.npz"
    if not path.exists():
        return None
    raw = content(path, CAP)
    try:
        if raw is None:
            raise ValueError("not a regular file, or too large")
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if sum(member.file_size for member in archive.infolist()) > CAP:
                raise ValueError("larger than any table")
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            return _checked({name: arrays[name] for name in arrays.files})
    except (*DAMAGED, TypeError, OverflowError) as error:
        files.notes.append(f"exact.npz could not be read ({type(error).__name__}).")
        return None


def _checked(arrays: dict[str, NDArray[Any]]) -> Comparison:
    """The arrays with the shapes that they must have; ValueError or KeyError otherwise."""
    exact, learned = (np.asarray(arrays[name], np.float64) for name in ("exact", "learned"))
    reachable = np.asarray(arrays["reachable"], np.bool_)
    shape = [int(n) for n in np.asarray(arrays["shape"]).ravel()]
    actions = tuple(str(a) for a in np.asarray(arrays["actions"]).ravel())
    sound = exact.ndim == 2 and exact.size and learned.ndim == 3 and learned.shape[1:] == exact.shape and len(learned)
    if not sound or reachable.shape != exact.shape[:1] or len(shape) != 2 or not np.isfinite(exact).all():
        raise ValueError("arrays that don't belong together")
    if min(shape) < 0:
        raise ValueError("a grid of a negative size")
    cells, kind = str(arrays["cells"].item()), str(arrays["kind"].item())
    return Comparison(
        exact, learned, reachable, (shape[0], shape[1]), cells, actions, kind, float(arrays["gamma"].item())
    )


def _text(found: Comparison, ends: NDArray[np.bool_] | None) -> str:
    """How far off the values are, and how often the greedy action is right."""
    where = found.reachable if ends is None else found.reachable & ~ends
    where = where if where.any() else found.reachable
    largest = found.errors()[:, where].max(axis=1)
    several = len(largest) > 1
    parts = ["Largest error over the states that can be reached: "]
    parts.append(", ".join(data(float(error)) for error in largest[:16]) + (", …" if len(largest) > 16 else ""))
    parts.append(" (one number per seed)." if several else ".")
    low, high = float(found.exact[where].min()), float(found.exact[where].max())
    best = found.kind == "Q"
    exact = "action values, Q* of the best policy," if best else "values, V of the policy that is followed,"
    parts.append(f" The exact {exact} lie in [{plain(low)}, {plain(high)}], for γ = {plain(found.gamma)}.")
    if found.exact.shape[1] > 1:
        right = grids.best(found.exact)[np.arange(len(found.exact)), found.mean.argmax(axis=1)] & where
        parts.append(f" The greedy action is one of the best in {right.sum():,} of {where.sum():,} states.")
    if several:
        parts.append(f" The learned values are means over {len(largest)} seeds; an error is the mean of the seeds'.")
    return f'<p class="note">{"".join(parts)}</p>'


def _boards(found: Comparison, board: Board) -> str:
    """Three boards: learned and exact with one scale, and the error of each state."""
    learned, exact = _layer(found, found.mean, board), _layer(found, found.exact, board)
    scale = _scale(board, learned.values, exact.values)
    error = found.errors().mean(axis=0)
    off = Layer(error)
    abreast = board.shape[1] <= ABREAST
    what = "the best action's value" if found.exact.shape[1] > 1 else "the value"
    of_error = grids.scale_of(board, [np.append(error[None], np.zeros((1, len(error))), axis=0)], "error")
    parts = [
        _figure("Learned", what, board, scale, found.actions, learned, abreast),
        _figure("Exact", what, board, scale, found.actions, exact, abreast),
        _figure("Error", "the largest over actions" if found.kind == "Q" else "", board, of_error, (), off, abreast),
    ]
    return f'<div class="{"grid-of-plots" if abreast else "boards"}">{"".join(parts)}</div>'


def _layer(found: Comparison, table: Floats, board: Board) -> Layer:
    """The values of a table, with its greedy actions where it has several."""
    if table.shape[1] == 1 or not board.lettered:
        return Layer(table.max(axis=1))
    return Layer(table.max(axis=1), table.argmax(axis=1), grids.best(table))


def _scale(board: Board, learned: Floats, exact: Floats) -> Scale:
    """One scale for both; values that have run away may widen it by no more than its own width on either side."""
    own = grids.scale_of(board, [exact])
    width = max(own.high - own.low, abs(own.high), abs(own.low)) or 1.0
    both = grids.scale_of(board, [exact, np.clip(learned, own.low - width, own.high + width)])
    return both if math.isfinite(both.high - both.low) else own


def _figure(
    title: str, note: str, board: Board, scale: Scale, actions: Sequence[str], layer: Layer, abreast: bool
) -> str:
    """One board with its title and its scale, drawn for a wide and for a narrow page."""
    rooms = (ROOMS[0] if abreast else ROOMS[1], ROOMS[2])
    drawn = grids.both(board, scale, actions, [layer], f"{title} values", rooms)
    return (
        f'<figure class="card"><figcaption class="line"><h3>{title}</h3><span class="note">{clean(note)}</span>'
        f"</figcaption>{grids.bar(scale)}{drawn}</figure>"
    )


def _scatter(found: Comparison) -> str:
    """Learned over exact, a dot for each state (and action) that can be reached; the diagonal is no error."""
    x, y = found.exact[found.reachable].ravel(), found.mean[found.reachable].ravel()
    names = [
        f"state {s}" + (f", {found.actions[a]}" if found.exact.shape[1] > 1 and a < len(found.actions) else "")
        for s in np.flatnonzero(found.reachable).tolist()
        for a in range(found.exact.shape[1])
    ]
    sound = np.flatnonzero(np.isfinite(y))
    kept = sound[np.unique(np.linspace(0, len(sound) - 1, min(len(sound), DOTS)).round().astype(int))]
    if not len(kept):
        return "<p>None of the learned values is finite.</p>"
    tips = [f"{names[k]}: learned {plain(float(y[k]))}, exact {plain(float(x[k]))}" for k in kept]
    label = "Learned values over exact values"
    figure = plots.both(lambda size: plots.scatter(x[kept], y[kept], tips, size, "exact", "learned", label))
    note = f"{len(kept):,} of {len(x):,} values are drawn. " if len(kept) < len(x) else ""
    return f'<p class="note">{note}On the line there is no error.</p><figure class="card">{figure}</figure>'
