"""The comparison of several runs: one page with their curves, scores, odds and differences."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyak.errors import RunError
from polyak.report import plots
from polyak.report.files import RunFiles, block, number, read
from polyak.report.page import evaluation_curves, exactness, save, series
from polyak.report.settings import same, settings, surroundings
from polyak.report.style import document
from polyak.report.text import bracket, brief, clean, data, decimals, plain, span
from polyak.statistics import ONE_SEED, probability_of_improvement

UNSET: Any = object()
NOT_SETTINGS = {"run.seed", "run.seeds"}  # seeds are meant to differ, or not; they are in the overview


def compare(runs: Sequence[Path], out: Path) -> Path:
    """Writes a page that compares runs, and returns its path.

    Args:
        runs: the folders of one or more runs, in the order in which they are shown.
        out: the page itself where the name ends in .html, otherwise a folder in which it becomes `compare.html`.

    Raises:
        RunError: for no runs, a folder that is no run, or a page that cannot be written.
    """
    if not runs:
        raise RunError("there is nothing to compare: name the folders of the runs.")
    files = [read(Path(run)) for run in runs]
    names = labels(files)
    parts = [
        _head(files, names),
        _overview(files, names),
        _curves(files, names),
        _scores(files, names),
        _odds(files, names),
        _differences(files, names),
    ]
    page = document(
        "Comparison of " + ", ".join(names), "\n".join(parts), "Written by polyak. This page needs no network."
    )
    out = Path(out)
    return save(out if out.suffix.lower() == ".html" else out / "compare.html", page)


def labels(files: Sequence[RunFiles]) -> list[str]:
    """A short name for every run: its folder, with the parent folder or a count where that is not unique."""
    names = [f.name for f in files]
    longer = [f"{f.path.resolve().parent.name}/{f.name}" if names.count(f.name) > 1 else f.name for f in files]
    return [f"{n} ({longer[: k + 1].count(n)})" if longer.count(n) > 1 else n for k, n in enumerate(longer)]


def _head(files: Sequence[RunFiles], names: Sequence[str]) -> str:
    envs, algorithms = sorted({f.env for f in files}), sorted({f.algorithm for f in files})
    title = f'{clean(", ".join(algorithms))} <span class="on">on</span> {clean(", ".join(envs))}'
    warnings = [f"{n}: {note}" for f, n in zip(files, names, strict=True) for note in f.notes]
    warnings += [f"{n} has not finished." for f, n in zip(files, names, strict=True) if not f.finished]
    if len(envs) > 1:
        warnings.insert(0, "These runs are on different environments, so their scores are not comparable.")
    budgets = {number(f.summary.get("steps", block(f.config, "run").get("steps"))) for f in files}
    if len(budgets) > 1:
        warnings.append("These runs had different numbers of steps.")
    notes = "".join(f'<p class="warn">{clean(note)}</p>' for note in warnings)
    count = f"{len(files)} run{'s' * (len(files) > 1)}"
    return f'<header><h1>{title}</h1><p class="lead">Comparison of {count}</p></header>{notes}'


def _swatch(name: str, colour: int) -> str:
    return f'<span class="s{colour % plots.COLOURS} name"><span class="swatch"></span>{clean(name)}</span>'


def _overview(files: Sequence[RunFiles], names: Sequence[str]) -> str:
    several = len({f.env for f in files}) > 1
    words = ["run", "algorithm", *(["environment"] if several else [])]
    numbers = ["seeds", "steps", "IQM", "95 % interval", "mean", "steps/s", "time"]
    head = "".join(f"<th>{w}</th>" for w in words) + "".join(f'<th class="number">{n}</th>' for n in numbers)
    rows: list[str] = []
    for k, (f, name) in enumerate(zip(files, names, strict=True)):
        env = f"<td>{clean(f.env)}</td>" if several else ""
        cells = "".join(f'<td class="number">{cell}</td>' for cell in _cells(f))
        short = clean(exactness(f).split(":")[0])
        first = f"<th>{_swatch(name, k)}</th><td>{clean(f.algorithm)}</td>{env}"
        rows.append(f'<tr>{first}{cells}<td class="name">{short}</td></tr>')
    text = "IQM over seeds of the final evaluation's mean return, with a 95 % bootstrap interval."
    if {f.score.source for f in files} != {"summary"}:
        text += " Where a run has no final evaluation, its latest evaluation or its training return stands in."
    return (
        f'<h2>Results</h2><p class="note">{text}</p><div class="scroll"><table><thead><tr>{head}<th>exactness</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(f: RunFiles) -> list[str]:
    """The numbers of one run, as they stand in the overview."""
    score, times = f.score, block(f.summary, "time")
    steps = number(f.summary.get("steps", block(f.config, "run").get("steps")))
    places = decimals(score.iqm, score.low, score.high)
    around = bracket(score.low, score.high, places) or (ONE_SEED if len(score.per_seed) == 1 else "–")
    cells = [str(len(score.per_seed) or len(f.seeds)), data(steps, 0), data(score.iqm, places), around]
    return [*cells, data(score.mean, places), data(number(times.get("fps")), 0), span(number(times.get("total_s")))]


def _curves(files: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Evaluation curves and training curves of all runs, each in one figure."""
    parts = ["<h2>Learning curves</h2>"]
    evaluated = [evaluation_curves(f) for f in files]
    training = [f.metrics.get("rollout/ep_rew_mean", {}) for f in files]
    thin = len(files) <= 4  # more runs than that make a thicket of single seeds
    for title, sources in (("Evaluation", evaluated), ("Training, last 100 episodes", training)):
        shown = [
            series(n, k, c, dots=thin and sources is evaluated, thin=thin)
            for k, (n, c) in enumerate(zip(names, sources, strict=True))
            if c
        ]
        if not shown:
            parts.append(f"<p>{title}: none of the runs has a curve yet.</p>")
            continue
        parts.append(_figure(title, shown))
    text = "Thick: IQM over seeds. Band: its 95 % bootstrap interval." + (" Thin: single seeds." if thin else "")
    parts.insert(1, f'<p class="note">{text}</p>')
    return "".join(parts)


def _figure(title: str, shown: Sequence[plots.Series]) -> str:
    drawn = plots.both(
        lambda size: plots.curves(shown, size, "environment steps", "return", f"{title}: return over steps")
    )
    keys = plots.legend([(s.name, s.colour) for s in shown])
    return f'<figure class="card"><figcaption><h3>{clean(title)}</h3></figcaption>{keys}{drawn}</figure>'


def _scores(files: Sequence[RunFiles], names: Sequence[str]) -> str:
    rows: list[plots.Row] = []
    for k, (f, name) in enumerate(zip(files, names, strict=True)):
        score = f.score
        if math.isnan(score.iqm):
            continue
        tips = [f"{name}, seed {seed}: {plain(value)}" for seed, value in score.per_seed.items()]
        values = np.asarray(list(score.per_seed.values()), np.float64)
        note = plain(score.iqm, decimals(score.iqm))
        rows.append(plots.Row(name, values, tips, k, note, (score.iqm, score.low, score.high)))
    if not rows:
        return "<h2>Scores</h2><p>None of the runs has a score yet.</p>"
    figure = plots.both(
        lambda size: plots.strips(rows, size, "mean return of a seed", "Scores of the seeds of every run")
    )
    text = "A dot is a seed; the dark line is the IQM, and the bar its 95 % interval."
    return f'<h2>Scores</h2><p class="note">{text}</p><figure class="card">{figure}</figure>'


def _odds(files: Sequence[RunFiles], names: Sequence[str]) -> str:
    """The matrix of P(row beats column), each with its interval."""
    title = "<h2>Probability of improvement</h2>"
    if len(files) < 2:
        return f"{title}<p>There is a single run, so there is nothing to compare it with.</p>"
    scores = [list(f.score.per_seed.values()) for f in files]
    head = "<th></th>" + "".join(f"<th>{_swatch(name, k)}</th>" for k, name in enumerate(names))
    rows: list[str] = []
    for i, name in enumerate(names):
        cells = "".join("<td>·</td>" if i == j else _cell(scores[i], scores[j]) for j in range(len(names)))
        rows.append(f"<tr><th>{_swatch(name, i)}</th>{cells}</tr>")
    text = (
        "The probability that a seed of the row scores higher than a seed of the column; ties count half. "
        "Below it the 95 % bootstrap interval: where that holds 0.5, the seeds do not tell the two apart."
    )
    return (
        f'{title}<p class="note">{text}</p><div class="scroll"><table class="matrix"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(a: Sequence[float], b: Sequence[float]) -> str:
    if not a or not b:
        return "<td>–</td>"
    p, low, high = probability_of_improvement(a, b)
    if math.isnan(p):
        return "<td>–</td>"
    kind = "more" if p > 0.5 else "less"
    around = bracket(low, high, 2) or ONE_SEED
    return f'<td class="{kind}" style="--strength: {0.5 * abs(p - 0.5):.3f}">{data(p, 2)}<small>{around}</small></td>'


def _differences(files: Sequence[RunFiles], names: Sequence[str]) -> str:
    """The settings in which the runs differ, a column for every run."""
    title = "<h2>What differs in the configurations</h2>"
    if len(files) < 2:
        return ""
    every = [{"agent": f.algorithm} | {s.name: s.value for s in settings(f)} | surroundings(f) for f in files]
    keys = [key for key in dict.fromkeys(key for one in every for key in one) if key not in NOT_SETTINGS]
    rows: list[str] = []
    for key in keys:
        values = [one.get(key, UNSET) for one in every]
        if all(v is not UNSET and same(v, values[0]) for v in values):
            continue
        cells = "".join(f'<td class="text mono">{"–" if v is UNSET else clean(brief(v))}</td>' for v in values)
        rows.append(f'<tr><th class="mono">{clean(key)}</th>{cells}</tr>')
    if not rows:
        return f"{title}<p>Nothing: all settings are equal.</p>"
    head = "<th>setting</th>" + "".join(f"<th>{_swatch(name, k)}</th>" for k, name in enumerate(names))
    return (
        f'{title}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
