"""The report of one run: a self-contained HTML page beside the run's other files."""

import base64
import contextlib
import math
import os
from pathlib import Path
from typing import cast

import numpy as np

from polyak.errors import RunError
from polyak.report import plots
from polyak.report.exact import learned_and_exact
from polyak.report.files import RunFiles, Score, block, content, number, read, seed_folders
from polyak.report.settings import configuration
from polyak.report.style import document
from polyak.report.text import bracket, brief, clean, data, decimals, plain, span
from polyak.statistics import ONE_SEED, bands, iqm

VIDEO_CAP = 24 * 2**20
VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif", ".png": "image/png"}
ROWS = 200  # the longest table of evaluations; longer ones are thinned evenly
STRIPS = 16  # the most seeds that get a row of their own

MEANING = {
    "train/loss": "the total loss that is minimised",
    "train/policy_gradient_loss": "the clipped surrogate objective, negated",
    "train/policy_loss": "the policy's loss: minus the mean of log-probability times credit",
    "train/steps_counted": "share of the steps that the gradient is taken from",
    "train/td_error": "size of the temporal-difference error",
    "train/largest_change": "largest change of a value by an episode",
    "train/value_loss": "squared error of the value estimates",
    "train/entropy_loss": "minus the mean entropy: rises to 0 as the policy becomes certain",
    "train/approx_kl": "how far an update moves the policy",
    "train/policy_objective": "mean of ratio times advantage after the update: the surrogate's gain",
    "train/kl_divergence": "mean divergence of the policy after an update from the one before, in nats",
    "train/line_search_success": "share of the updates whose line search found a step",
    "train/clip_fraction": "share of the samples whose ratio was clipped",
    "train/explained_variance": "1: the value function explains the returns; 0: no better than a constant",
    "train/actor_loss": "the policy's loss",
    "train/critic_loss": "squared error of the action values",
    "train/ent_coef": "the entropy temperature",
    "train/ent_coef_loss": "loss of the temperature's own update",
    "train/std": "standard deviation of the actions",
    "train/learning_rate": "step size of the optimiser",
    "train/max_error": "largest error of the learned values over the states that can be reached, against exact ones",
    "rollout/ep_len_mean": "steps per training episode, last 100 episodes",
    "rollout/success_rate": "share of successful training episodes, last 100",
    "rollout/exploration_rate": "probability of a random action",
}
TIERS = {
    1: "exact (tier 1): the environment's own state is saved and restored bit for bit",
    2: "exact (tier 2): episodes in flight are replayed from their seeds and actions",
    3: "exact between episodes only (tier 3): episodes in flight are dropped on resume",
}
SOURCES = {
    "evaluations": "of the latest evaluation, because the run has no final one yet",
    "training": "of the last 100 training episodes, because the run has no evaluation yet",
}


def write(run: Path, video: Path | None = None) -> Path:
    """Writes `report.html` into a run folder, replacing an older one, and returns its path.

    Args:
        run: the folder of one run (see `polyak.report.files`); files that are missing leave out their part.
        video: a recording to show (.mp4, .webm, .gif or .png); by default the last one under `seed_<k>/videos/`.

    Raises:
        RunError: when `run` is no run folder, or the page cannot be written.
    """
    files = read(run)
    comparison = learned_and_exact(files)  # first: a damaged file is told in the head
    parts = [
        _head(files),
        _learning(files),
        comparison,
        _evaluation(files),
        _film(files, video),
        _training(files),
        _reproduction(files),
        configuration(files),
        _machine(files),
    ]
    foot = f"Written by polyak {clean(files.config.get('polyak', ''))}. This page needs no network and runs no script."
    return save(Path(run) / "report.html", document(f"{files.algorithm} on {files.env}", "\n".join(parts), foot))


def save(path: Path, page: str) -> Path:
    """Writes a page in one piece: a reader sees the old page or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(page, "utf-8")
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where not even that works, the first error is the one to tell
            draft.unlink(missing_ok=True)
        raise RunError(
            f"{path} cannot be written ({error.strerror}): free some space or choose another place."
        ) from None
    return path


def _head(files: RunFiles) -> str:
    """Title, key result, and the facts that give it meaning."""
    summary, config = files.summary, block(files.config, "run")
    score, seeds = files.score, files.seeds
    times = block(summary, "time")
    steps = number(summary.get("steps", config.get("steps")))
    facts = [
        ("Seeds", str(len(seeds)) if seeds else "–"),
        ("Evaluation episodes per seed", data(float(score.episodes), 0) if score.episodes else "–"),
        ("Steps per seed", data(steps, 0)),
        ("Training return, IQM", _training_return(files)),
        ("Steps per second", data(number(times.get("fps")), 0)),
        ("Total time", span(number(times.get("total_s")))),
        ("Compile time", span(number(times.get("compile_s")))),
        ("Preset", clean(config.get("preset") or "none")),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    notes = "".join(f'<p class="warn">{clean(note)}</p>' for note in _warnings(files))
    return (
        f'<header><h1>{clean(files.algorithm)} <span class="on">on</span> {clean(files.env)}</h1>'
        f'<p class="lead">Run {clean(files.name)}</p></header>{notes}{result(score)}<dl class="facts">{cells}</dl>'
    )


def _warnings(files: RunFiles) -> list[str]:
    notes = [] if files.finished else ["This run has not finished: there is no summary.json yet."]
    return notes + files.notes


def _training_return(files: RunFiles) -> str:
    curves = files.metrics.get("rollout/ep_rew_mean", {})
    return data(iqm([y[-1] for _, y in curves.values()])) if curves else "–"


def result(score: Score) -> str:
    """The IQM with its interval, in large type, and the sentence that says what it is."""
    if score.source == "nothing" or math.isnan(score.iqm):
        return "<p>There is no result yet: the run has neither an evaluation nor a finished training episode.</p>"
    places = decimals(score.iqm, score.low, score.high)
    around = bracket(score.low, score.high, places)
    count = len(score.per_seed)
    seeds = f"over {count} seeds" if count > 1 else ONE_SEED if count == 1 else ""
    what = f"IQM of the mean returns {SOURCES.get(score.source, 'of the final evaluation')}"
    interval = "95 % bootstrap interval " if around else ""
    episodes = f", {score.episodes:,} episodes{' each' * (count > 1)}" if score.episodes else ""
    mean = "" if math.isnan(score.mean) else f" Mean {data(score.mean, places)}."
    tail = f"; {interval}{seeds}{episodes}.{mean}"
    return (
        f'<div class="result"><span class="figure-number">{data(score.iqm, places)}</span>'
        f'<span class="range">{around}</span></div><p class="note">{what}{tail}</p>'
    )


def series(
    name: str, colour: int, seeds: dict[int, plots.Curve], dots: bool = False, thin: bool = True
) -> plots.Series:
    """Curves of several seeds as one quantity of a figure; without `thin` only their IQM and interval are drawn."""
    steps, values = [x for x, _ in seeds.values()], [y for _, y in seeds.values()]
    lines = {f"seed {seed}": curve for seed, curve in seeds.items()} if thin else {}
    return plots.Series(name, colour, lines, bands(steps, values), dots)


def evaluation_curves(files: RunFiles) -> dict[int, plots.Curve]:
    """Mean return of every evaluation per seed, from the evaluation files, else from the metrics."""
    if not files.evaluations:
        return files.metrics.get("eval/mean_reward", {})
    found = {seed: (e.steps, e.means()) for seed, e in files.evaluations.items()}
    sound = {seed: np.isfinite(y) for seed, (_, y) in found.items()}
    return {seed: (x[sound[seed]], y[sound[seed]]) for seed, (x, y) in found.items() if sound[seed].any()}


def _learning(files: RunFiles) -> str:
    training, evaluated = files.metrics.get("rollout/ep_rew_mean", {}), evaluation_curves(files)
    shown = [series("training, last 100 episodes", 0, training)] if training else []
    shown += [series("evaluation", 1, evaluated, dots=True)] if evaluated else []
    if not shown:
        return (
            "<h2>Learning curve</h2><p>There is no curve yet: no training episode and no evaluation has finished.</p>"
        )
    several = max(len(training), len(evaluated)) > 1
    text = (
        "Thick: IQM over seeds. Band: its 95 % bootstrap interval. Thin: single seeds."
        if several
        else f"A single seed, so there is no band ({ONE_SEED})."
    )
    figure = plots.both(lambda size: plots.curves(shown, size, "environment steps", "return", "Return over steps"))
    return (
        f'<h2>Learning curve</h2><p class="note">{text}</p><figure class="card">'
        f"{plots.legend([(s.name, s.colour) for s in shown])}{figure}</figure>{_evaluation_table(evaluated)}"
    )


def _evaluation_table(curves: dict[int, plots.Curve]) -> str:
    """The numbers behind the evaluation curve: one row per step at which all seeds were evaluated."""
    if not curves:
        return ""
    b = bands([x for x, _ in curves.values()], [y for _, y in curves.values()], points=10**6, resamples=1000)
    at = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves.values()]
    index = np.unique(np.linspace(0, len(b.steps) - 1, min(len(b.steps), ROWS)).round().astype(int))
    seeds = list(curves) if len(curves) <= STRIPS else []
    places = decimals(*(float(v) for v in b.iqm))
    rows: list[str] = []
    for k in index:
        step = float(b.steps[k])
        own = "".join(f'<td class="number">{data(at[i].get(step, math.nan), places)}</td>' for i in range(len(seeds)))
        around = bracket(float(b.low[k]), float(b.high[k]), places) or "–"
        rows.append(
            f'<tr><td class="number">{data(step, 0)}</td><td class="number">{data(float(b.iqm[k]), places)}</td>'
            f'<td class="number">{around}</td>{own}</tr>'
        )
    heads = ["step", "IQM", "95 % interval", *(f"seed {seed}" for seed in seeds)]
    head = "".join(f'<th class="number">{name}</th>' for name in heads)
    note = f" ({len(index)} of {len(b.steps)} shown)" if len(index) < len(b.steps) else ""
    return (
        f"<details><summary>The evaluations as a table{note}</summary>"
        f'<div class="scroll tall"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "</details>"
    )


def _evaluation(files: RunFiles) -> str:
    """Every episode of each seed's last evaluation, and the seeds' means with their IQM below."""
    title = "<h2>Evaluation episodes</h2>"
    if not files.evaluations:
        return f"{title}<p>There are no evaluations in this run; 'polyak eval' makes one from its last checkpoint.</p>"
    steps = {float(e.steps[-1]) for e in files.evaluations.values()}
    at = f"step {plain(steps.pop(), 0)}" if len(steps) == 1 else "each seed's own last step"
    rows: list[plots.Row] = []
    means = {seed: float(e.means()[-1]) for seed, e in files.evaluations.items()}
    if len(means) <= STRIPS:
        for seed, e in files.evaluations.items():
            returns = e.results[-1]
            tips = [f"seed {seed}, episode {k}: {plain(float(v))}" for k, v in enumerate(returns)]
            rows.append(plots.Row(f"seed {seed}", returns, tips, 0, plain(means[seed], decimals(means[seed]))))
    finite = {seed: value for seed, value in means.items() if math.isfinite(value)}
    if finite and len(means) > 1:
        tips = [f"seed {seed}: mean {plain(value)}" for seed, value in finite.items()]
        rows.append(plots.summary_row("all seeds", np.asarray(list(finite.values())), tips, 1))
    lost = sum(int((~np.isfinite(e.results[-1])).sum()) for e in files.evaluations.values())
    count = sum(e.results.shape[1] for e in files.evaluations.values())
    text = f"The latest evaluation, at {at}: {count:,} episodes. A dot is the return of one episode; "
    text += "the box spans the quartiles, its line is the median, and the number is the mean."
    text += (
        " In the last row a dot is a seed's mean; the dark line is their IQM and the bar its 95 % interval."
        if len(means) > 1
        else ""
    )
    text += f" {lost} episodes with a return that is not finite are not drawn." if lost else ""
    figure = plots.both(lambda size: plots.strips(rows, size, "episode return", "Returns of the last evaluation"))
    return f'{title}<p class="note">{text}</p><figure class="card">{figure}</figure>'


def _film(files: RunFiles, video: Path | None) -> str:
    """The recording inside the page as a data URI; nothing where there is none."""
    path = Path(video) if video is not None else _recording(files.path)
    if path is None:
        return ""
    kind = VIDEO_TYPES.get(path.suffix.lower())
    title = "<h2>What it looks like</h2>"
    raw = content(path, VIDEO_CAP) if kind else None
    if kind is None or not raw:
        reason = "of a kind that no browser shows" if kind is None else f"missing, empty or over {VIDEO_CAP >> 20} MiB"
        return f"{title}<p>The recording {clean(path.name)} is not in this page: it is {reason}.</p>"
    source = f"data:{kind};base64,{base64.b64encode(raw).decode('ascii')}"
    caption = f'<p class="note">A rollout of the trained agent ({clean(path.name)}).</p>'
    if kind.startswith("video/"):
        return f'{title}<video src="{source}" controls loop muted playsinline preload="metadata"></video>{caption}'
    return f'{title}<img class="film" src="{source}" alt="A rollout of the trained agent">{caption}'


def _recording(run: Path) -> Path | None:
    """The last recording of the lowest seed that has one; an .mp4 before other kinds."""
    for _, folder in seed_folders(run):
        videos = folder / "videos"
        if videos.is_symlink():
            continue
        found = [p for p in sorted(videos.glob("*")) if p.suffix.lower() in (".mp4", ".gif")]
        if found:
            return max(found, key=lambda p: (p.suffix.lower() == ".mp4", p.name))
    return None


def _training(files: RunFiles) -> str:
    """Every other metric as a small figure; those that never change are named in one line."""
    title = "<h2>Inside the training</h2>"
    order = {tag: k for k, tag in enumerate(MEANING)}
    skipped = {"train/n_updates", "rollout/ep_rew_mean"}
    tags = [t for t in files.metrics if t.startswith(("train/", "rollout/")) and t not in skipped]
    if not tags:
        return f"{title}<p>There are no training metrics yet: no update has been logged.</p>"
    tags.sort(key=lambda tag: (tag.startswith("rollout/"), order.get(tag, len(order)), tag))
    figures: list[str] = []
    constant: list[str] = []
    for tag in tags:
        values = np.concatenate([y for _, y in files.metrics[tag].values()])
        if len(values) > 1 and values.min() == values.max():
            constant.append(f"{clean(tag)} = {data(float(values[0]))}")
            continue
        shown = series(tag, 0, files.metrics[tag])
        log = plots.spreads([y for _, y in files.metrics[tag].values()])
        meaning = "; ".join(filter(None, [MEANING.get(tag, ""), "logarithmic" if log else ""]))
        figures.append(
            f'<figure class="card"><figcaption><h3>{clean(tag)}</h3><span class="note">{clean(meaning)}</span>'
            "</figcaption>"
            f"{plots.curves([shown], plots.SMALL, '', '', f'{tag} over steps', 'small')}</figure>"
        )
    line = f'<p class="note">Constant in this run: {", ".join(constant)}.</p>' if constant else ""
    return (
        f'{title}<p class="note">Over environment steps; IQM and interval over seeds, thin lines are single seeds.</p>'
        f'<div class="grid-of-plots">{"".join(figures)}</div>{line}'
    )


def _reproduction(files: RunFiles) -> str:
    """The command, how exactly a resumed run continues, and the hash that proves it."""
    command = (
        f'<pre class="command">{clean(files.command)}</pre><p class="note">Click to select the whole command.</p>'
        if files.command
        else "<p>The folder holds no command.txt: the run was started from Python.</p>"
    )
    digest = files.summary.get("state_hash")
    rows = [("Exactness", clean(exactness(files)))]
    rows += [("State hash", f'<span class="mono hash">{clean(digest)}</span>')] if digest else []
    rows += [("Seeds", clean(", ".join(map(str, files.seeds)) or "–"))]
    body = "".join(f'<tr><th>{name}</th><td class="text">{value}</td></tr>' for name, value in rows)
    text = (
        "Equal runs end with an equal state hash, whether or not they were interrupted and resumed." if digest else ""
    )
    return f'<h2>Run it again</h2>{command}<div class="scroll"><table>{body}</table></div><p class="note">{text}</p>'


def exactness(files: RunFiles) -> str:
    """The tier of exactness in words, with what the run itself says about it."""
    tier, exact = files.summary.get("tier"), files.summary.get("exact")
    words = TIERS.get(int(tier), "") if isinstance(tier, int | float) else str(tier or "")
    if exact is False and tier != 3:
        return f"not exact: the run may differ from one that was not interrupted ({words or 'no tier recorded'})"
    said = "" if exact is None or isinstance(exact, bool) else str(exact)
    return "; ".join(filter(None, [words, said])) or ("exact" if exact is True else "not recorded yet")


def _machine(files: RunFiles) -> str:
    if not files.system:
        return "<h2>Versions and machine</h2><p>The folder holds no system.json.</p>"
    rows: list[str] = []
    for key, value in files.system.items():
        inner = block(files.system, key)
        text = ", ".join(f"{k} {brief(v)}" for k, v in inner.items()) if inner else brief(cast("object", value))
        rows.append(f'<tr><th>{clean(key)}</th><td class="text mono">{clean(text)}</td></tr>')
    return f'<h2>Versions and machine</h2><div class="scroll"><table>{"".join(rows)}</table></div>'
