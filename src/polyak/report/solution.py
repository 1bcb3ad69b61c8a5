"""The page of a solved model: its values as a picture, how they came to be, and how far off they can be."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyak.report import grids, plots
from polyak.report.grids import Board, Layer, Scale
from polyak.report.page import save
from polyak.report.style import document
from polyak.report.text import clean, data, plain, span
from polyak.statistics import Bands

if TYPE_CHECKING:
    from polyak.mdp.model import Model
    from polyak.mdp.solution import Solution

ROWS = 200  # the longest table of values
FRAMES = 24  # the most pictures of the film
BEAT = 0.4  # seconds that each picture of the film stands, and
REST = 3.0  # the last one
ROOMS = (600.0, 330.0)  # widths of a board, wide and narrow, in CSS pixels
WIDE = 960.0  # where the squares would become too small for their numbers
NONE: NDArray[np.float64] = np.zeros(0)


class Method(NamedTuple):
    """What a page says about a method: its equation, in words, and whether a sweep shrinks the error by γ."""

    title: str
    equation: str  # HTML
    words: str
    contracts: bool = True


METHODS: dict[str, Method] = {
    "value-iteration": Method(
        "Value iteration",
        "Vᵏ⁺¹(s) = maxₐ Σ p(s′, r | s, a) [ r + γ Vᵏ(s′) ]   for all s at once",
        "Sutton & Barto (2018), §4.4. Each sweep shrinks the largest error at least by γ.",
    ),
    "gauss-seidel": Method(
        "Gauss-Seidel value iteration",
        "V(s) ← maxₐ Σ p(s′, r | s, a) [ r + γ V(s′) ]   in place, one s after another",
        "Sutton & Barto (2018), §4.5. A state uses what the sweep has found already.",
    ),
    "prioritised-sweeping": Method(
        "Prioritised sweeping",
        "V(s) ← maxₐ Σ p(s′, r | s, a) [ r + γ V(s′) ]   for the s with the largest Bellman error",
        "Moore & Atkeson (1993); Sutton & Barto (2018), §8.4. The work goes where the values still change.",
        False,
    ),
    "policy-iteration": Method(
        "Policy iteration",
        "Vᵏ = r<sub>π</sub> + γ P<sub>π</sub> Vᵏ,   π(s) ← argmaxₐ Σ p(s′, r | s, a) [ r + γ Vᵏ(s′) ]",
        "Howard (1960); Sutton & Barto (2018), §4.3. Evaluate the policy exactly, then be greedy.",
        False,
    ),
    "modified-policy-iteration": Method(
        "Modified policy iteration",
        "π ← greedy(V),   V ← (T<sub>π</sub>)ᵐ V   with (T<sub>π</sub> V)(s) = Σ p(s′, r | s, π(s)) [ r + γ V(s′) ]",
        "Puterman & Shin (1978). Evaluate the policy by a few sweeps only, then be greedy.",
        False,
    ),
    "linear-program": Method(
        "Linear program",
        "min Σ V(s)   so that   V(s) ≥ Σ p(s′, r | s, a) [ r + γ V(s′) ]   for all s, a",
        "d’Epenoux (1963); Puterman (1994), §6.9. V* is the smallest function that no action improves on.",
        False,
    ),
    "q-value-iteration": Method(
        "Q-value iteration",
        "Qᵏ⁺¹(s, a) = Σ p(s′, r | s, a) [ r + γ maxₐ′ Qᵏ(s′, a′) ]   for all s, a at once",
        "Sutton & Barto (2018), §4.4, for action values. Each sweep shrinks the largest error at least by γ.",
    ),
    "finite-horizon": Method(
        "Backward induction",
        "V<sub>t</sub>(s) = maxₐ Σ p(s′, r | s, a) [ r + γ V<sub>t+1</sub>(s′) ],   V<sub>H</sub> = 0",
        "Bellman (1957); Puterman (1994), §4.5. From the last step backwards; the values are those of the first step.",
        False,
    ),
}


class Facts(NamedTuple):
    """What the page says besides the solution itself."""

    command: str = ""
    seconds: float = math.nan
    tolerance: float = math.nan
    versions: Mapping[str, str] = {}


def write_solution(path: Path, model: "Model", solution: "Solution", facts: Facts | None = None) -> Path:
    """Writes the page of a solution, replacing an older one, and returns its path.

    Args:
        path: the page itself (`solution.html`).
        model: the model that was solved; one with a `shape` is drawn as a grid.
        solution: what a method of `polyak.mdp` found; a film is drawn of the frames that it kept.
        facts: the command, the seconds that it took, the tolerance and the versions, where they are known.

    Raises:
        RunError: when the page cannot be written.
    """
    facts = facts or Facts()
    unreachable = model.unreachable()
    board = grids.board(model.shape, model.n_states, model.cells, model.terminal, unreachable)
    scale = _scale(board, solution)
    name = model.name or "a model"
    method = METHODS.get(solution.method, Method(solution.method, "", ""))
    body = [
        _head(model, solution, facts, f'{method.title} <span class="on">on</span> {clean(name)}'),
        _values(model, solution, board, scale),
        _film(model, solution, board, scale),
        _errors(solution, method),
        _method(method, solution),
        _reproduction(facts),
    ]
    foot = "Written by polyak. This page needs no network and runs no script."
    return save(Path(path), document(f"{method.title} on {name}", "\n".join(body), foot, _rules(len(_kept(solution)))))


def _head(model: "Model", solution: "Solution", facts: Facts, title: str) -> str:
    """Title, the value of the start, and the facts that give it meaning."""
    known = [
        ("States", data(float(model.n_states), 0)),
        ("Actions", data(float(model.n_actions), 0)),
        ("Transitions", data(float(model.transitions), 0)),
        ("Discount γ", data(float(solution.gamma))),
        ("Sweeps", data(float(solution.sweeps), 0)),
        ("Tolerance", data(facts.tolerance)),
        ("Largest error, at most", data(float(solution.bound))),
        ("Time", f"{1000 * facts.seconds:.0f} ms" if facts.seconds < 1 else span(facts.seconds)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in known)
    around = f"± {plain(solution.bound)}" if math.isfinite(solution.bound) and solution.bound > 0 else ""
    states = int((model.start > 0).sum())
    first = f"state {int(model.start.argmax())}" if states == 1 else f"the mean over its {states:,} states"
    return (
        f"<header><h1>{title}</h1></header>"
        f'<div class="result"><span class="figure-number">{data(float(solution.start_value), 9)}</span>'
        f'<span class="range">{around}</span></div><p class="note">The best expected return from the start ({first}), '
        f'discounted by γ = {plain(solution.gamma)}.</p><dl class="facts">{cells}</dl>'
    )


# -------------------------------------------------------------------------------------------------------------- values


def lookahead(model: "Model", V: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Q[s, a] = Σ p (r + γ V(s')), one step ahead of any values, [S, A]."""
    after = V[None, None, :] if model.successor is None else V[model.successor]
    worth = model.reward + gamma * np.where(model.terminated, 0.0, after)
    return np.einsum("sak,sak->sa", model.probability, worth)


def _first(table: NDArray[Any]) -> NDArray[Any]:
    """Values or policy of the first step, [S]: with a finite horizon there is a row for each step."""
    return table[0] if table.ndim == 2 else table


def _slack(solution: "Solution") -> float:
    """How close two actions' values must be so that the bound leaves open which is better."""
    return 2 * solution.gamma * solution.bound if math.isfinite(solution.bound) else 0.0


def _scale(board: Board, solution: "Solution") -> Scale:
    """The scale of the answer, from 0 where its values are nearly equal. A film may begin far outside of it."""
    V = _first(solution.V)
    scale = grids.scale_of(board, [V])
    largest = max(abs(scale.low), abs(scale.high))
    return scale if scale.high - scale.low > 0.1 * largest else grids.scale_of(board, [V, 0 * V])


def _final(solution: "Solution", board: Board, caption: str = "") -> Layer:
    if not _chooses(solution, board):
        return Layer(_first(solution.V), caption=caption)
    greedy = grids.best(solution.Q, _slack(solution))
    return Layer(_first(solution.V), _first(solution.policy), greedy, caption)


def _chooses(solution: "Solution", board: Board) -> bool:
    """Whether the board shows actions: there is room for them, and there is a choice."""
    return board.lettered and solution.Q.shape[1] > 1


def _values(model: "Model", solution: "Solution", board: Board, scale: Scale) -> str:
    text = "The colour is the value of a state: the brighter, the more."
    if _chooses(solution, board):
        text += " An arrow is the greedy action" if board.grid else " A word is the greedy action"
        text += "; fainter ones can't be told from it." if board.grid else "."
    if solution.policy.ndim == 2:
        text += f" These are the values and actions of the first of {len(solution.policy):,} steps."
    if not board.grid:
        text += f" The states are listed row by row, {board.shape[1]} in a row."
    if board.shape[0] > grids.PIXELS or board.shape[1] > grids.PIXELS:
        text += f" Each pixel is the mean over the states that it covers, of {board.shape[0]:,} × {board.shape[1]:,}."
    if board.apart is not None and board.apart.any() and board.lettered:
        text += " Pale squares are never reached."
    title = "Values and greedy policy" if _chooses(solution, board) else "Values"
    figure = _drawn(board, scale, model.actions, [_final(solution, board)], "The values of all states")
    return (
        f'<h2>{title}</h2><p class="note">{text}</p><figure class="card">{grids.bar(scale)}{figure}</figure>'
        f"{_table(model, solution, board)}"
    )


def _drawn(
    board: Board, scale: Scale, actions: Sequence[str], layers: Sequence[Layer], label: str, tips: bool = True
) -> str:
    room = ROOMS[0] if board.lettered and board.shape[1] <= 10 else WIDE
    return grids.both(board, scale, actions, layers, label, (room, ROOMS[1]), tips)


def _table(model: "Model", solution: "Solution", board: Board) -> str:
    """The numbers: value, action and action values, state by state, the first ROWS of them."""
    count = min(model.n_states, ROWS)
    V, policy = _first(solution.V), _first(solution.policy)
    columns = range(model.n_actions if model.n_actions <= 8 else 0)
    words = [model.actions[a] if a < len(model.actions) else str(a) for a in range(model.n_actions)]
    place = ["row", "column"] if board.grid else []
    heads = ["state", *place, "value", "action", *(f"Q {words[a]}" for a in columns)]
    rows: list[str] = []
    for s in range(count):
        row, column = divmod(s, board.shape[1])
        cells = [str(s), *([str(row), str(column)] if board.grid else []), data(float(V[s]), 6)]
        cells.append("–" if model.terminal[s] else clean(words[int(policy[s])]))
        cells += [data(float(solution.Q[s, a]), 6) for a in columns]
        rows.append("<tr>" + "".join(f'<td class="number">{cell}</td>' for cell in cells) + "</tr>")
    head = "".join(f'<th class="number">{clean(name)}</th>' for name in heads)
    note = f" (the first {count} of {model.n_states:,} states; solution.npz has all)" if count < model.n_states else ""
    return (
        f"<details{'' if board.grid else ' open'}><summary>The values as a table{note}</summary>"
        f'<div class="scroll tall"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "</details>"
    )


# ---------------------------------------------------------------------------------------------------------------- film


def _frames(solution: "Solution") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(values, after how many sweeps); backward induction has them all, from the last step to the first."""
    if solution.V.ndim == 2:
        return solution.V[::-1], np.arange(len(solution.V))
    return solution.frames, solution.frame_sweeps


def _kept(solution: "Solution") -> list[int]:
    """The frames that the film shows, at most FRAMES of them, with the first and the last."""
    count = len(_frames(solution)[0])
    return np.unique(np.linspace(0, count - 1, min(count, FRAMES)).round().astype(int)).tolist() if count else []


def _film(model: "Model", solution: "Solution", board: Board, scale: Scale) -> str:
    """The values after some of the sweeps, one after another, without a script; each can be held still."""
    kept = _kept(solution)
    if len(kept) < 2:
        return ""
    sweeps = [int(_frames(solution)[1][k]) for k in kept]
    layers = [_layer(model, solution, board, k) for k in kept[:-1]]
    layers.append(_final(solution, board, _caption(solution, sweeps[-1])))
    chips = '<input type="radio" name="film" id="play" class="play" checked><label for="play">play</label>'
    for k, sweep in enumerate(sweeps):
        chips += f'<input type="radio" name="film" id="film{k}"><label for="film{k}">{sweep}</label>'
    text = "The values after some of the sweeps. Choose a sweep to hold the film there."
    title = "From V⁰ to V*"
    if solution.V.ndim == 2:
        title, text = (
            "From the last step to the first",
            "The values with so many steps left. Choose one to hold the film.",
        )
    shown = _frames(solution)[0][:, ~board.quiet]
    if ((shown < scale.low) | (shown > scale.high)).any():
        text += " Values outside of the scale have the colour of its end."
    return (
        f'<h2>{title}</h2><p class="note">{text}</p><figure class="card"><div class="film-reel">{chips}'
        f'<div class="stage">{_drawn(board, scale, model.actions, layers, "The values, sweep by sweep", False)}</div>'
        "</div></figure>"
    )


def _layer(model: "Model", solution: "Solution", board: Board, k: int) -> Layer:
    """One picture of the film, with the policy that is greedy for its values."""
    frames, sweeps = _frames(solution)
    V, caption = frames[k], _caption(solution, int(sweeps[k]))
    if not _chooses(solution, board):
        return Layer(V, caption=caption)
    Q = lookahead(model, V, solution.gamma)
    return Layer(V, Q.argmax(axis=1), grids.best(Q), caption)


def _caption(solution: "Solution", sweep: int) -> str:
    if solution.V.ndim == 2:
        return f"{sweep:,} step{'s' * (sweep != 1)} left"
    bound = float(solution.errors[sweep - 1]) if 0 < sweep <= len(solution.errors) else math.nan
    return f"sweep {sweep:,}" + (f", error ≤ {plain(bound)}" if math.isfinite(bound) else "")


def _rules(count: int) -> str:
    """The style rules of a film of `count` pictures: which is seen when, and which one is chosen.

    All pictures but the last lie above the last one, hidden. Each is seen for one beat of every round.
    """
    if count < 2:
        return ""
    total = (count - 1) * BEAT + REST
    share = f"{100 * BEAT / total:.4f}%"
    rules = [
        f"@keyframes beat {{ 0% {{ visibility: visible; }} {share}, 100% {{ visibility: hidden; }} }}",
        f".play:checked ~ .stage .frame {{ animation: beat {total:.2f}s step-end infinite; }}",
    ]
    for k in range(count - 1):
        rules.append(f".play:checked ~ .stage .f{k} {{ animation-delay: {k * BEAT:.2f}s; }}")
        rules.append(f"#film{k}:checked ~ .stage .f{k} {{ visibility: visible; }}")
    rules.append("@media (prefers-reduced-motion: reduce) { .play:checked ~ .stage .frame { animation: none; } }")
    rules.append("@media print { .play:checked ~ .stage .frame { animation: none; } }")
    return "\n".join(rules)


# -------------------------------------------------------------------------------------------------------------- errors


def _errors(solution: "Solution", method: Method) -> str:
    """The guaranteed bound, the true error of the kept frames and what γ promises, over sweeps."""
    if solution.V.ndim == 2:  # backward induction is exact at every step
        return ""
    shown: list[plots.Series] = []
    sweeps = np.arange(1, len(solution.errors) + 1, dtype=np.float64)
    sound = np.isfinite(solution.errors) & (solution.errors > 0)
    if sound.any():
        shown.append(_curve("guaranteed: ‖Vⁱ − V*‖ is at most this", 0, sweeps[sound], solution.errors[sound]))
    true = np.abs(solution.frames - solution.V).max(axis=1) if len(solution.frames) else NONE
    at = np.asarray(solution.frame_sweeps, np.float64)
    if (true > 0).any():
        name = "true: ‖Vⁱ − V‖ of the sweeps that were kept, against the last V"
        shown.append(_curve(name, 1, at[true > 0], true[true > 0], dots=True))
    if method.contracts and 0 < solution.gamma < 1 and len(true) and true[0] > 0 and at[0] == 0:
        line = true[0] * solution.gamma ** np.arange(solution.sweeps + 1)
        shown.append(_curve("contraction: γⁱ ‖V⁰ − V*‖", 10, np.arange(solution.sweeps + 1.0), line))
    shown = [s for s in shown if len(s.bands.steps) > 1]
    if not shown:
        return ""
    figure = plots.both(
        lambda size: plots.curves(shown, size, "sweeps", "largest error", "Error per sweep", log=True, unit="sweep")
    )
    keys = plots.legend([(s.name, s.colour) for s in shown])
    text = "The largest error over all states after each sweep."
    return f'<h2>Error per sweep</h2><p class="note">{text}</p><figure class="card">{keys}{figure}</figure>'


def _curve(name: str, colour: int, x: NDArray[np.float64], y: NDArray[np.float64], dots: bool = False) -> plots.Series:
    x, y = plots.thin((x, y))
    gap = np.full(len(x), math.nan)
    return plots.Series(name, colour, {"": (x, y)}, Bands(x, y, gap, gap), dots)


# ---------------------------------------------------------------------------------------------------------------- text


def _method(method: Method, solution: "Solution") -> str:
    equation = f'<p class="equation">{method.equation}</p>' if method.equation else ""
    return f'<h2>{clean(method.title)}</h2>{equation}<p class="note">{clean(method.words)}</p>'


def _reproduction(facts: Facts) -> str:
    parts = ["<h2>Run it again</h2>"]
    if facts.command:
        parts.append(f'<pre class="command">{clean(facts.command)}</pre>')
        parts.append(
            '<p class="note">Beside this page lie solution.npz (V, Q, policy and errors for numpy.load) and '
            "solution.json (the numbers above).</p>"
        )
    else:
        parts.append("<p>This page was written from Python.</p>")
    rows = "".join(f'<tr><th>{clean(k)}</th><td class="mono">{clean(v)}</td></tr>' for k, v in facts.versions.items())
    parts.append(f'<div class="scroll"><table>{rows}</table></div>' if rows else "")
    return "".join(parts)


def numbers(model: "Model", solution: "Solution") -> dict[str, Any]:
    """What solution.json says about a solution; numbers that are not finite become null."""
    floats = {"gamma": solution.gamma, "start_value": solution.start_value, "bound": solution.bound}
    return {
        "method": solution.method,
        "states": model.n_states,
        "actions": model.n_actions,
        "transitions": model.transitions,
        "sweeps": int(solution.sweeps),
        **{name: float(value) if math.isfinite(value) else None for name, value in floats.items()},
    }
