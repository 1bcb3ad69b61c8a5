"""bench/leaderboard.md: every row of the acceptance benchmarks, whatever became of it, and the suite gate.

Everything stands in bench/rows.json and bench/results; nothing is trained or played here. `run.py` writes the page.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import measures
import numpy as np

from polyak import catalogue
from polyak.presets import presets
from polyak.runs.config import AGENTS
from polyak.statistics import interval, iqm, pass_rule

Row = dict[str, Any]
TIERS = {
    "S": "under 2 minutes", "M": "under 20 minutes", "L": "under 3 hours", "N": "a night", "G": "a GPU",
    "own": "rows of our own",
}  # fmt: skip
LEAST = 3  # environments without which a row over several of them says nothing

HEAD = """# Acceptance benchmarks

Written by `python bench/run.py`; scores per seed, versions and hashes are in the JSON file of each row. Every bar is a
figure that another library, an author's own curves, a paper or an exact calculation reports; its source is in
[rows.json](rows.json). How each metric is computed: [measures.py](measures.py).

IQM over seeds with its 95 % bootstrap interval. Stage 1 passes where the IQM of 5 fixed seeds reaches the bar; after a
miss, stage 2 adds 5 more seeds (the interval of the 10-seed IQM must reach the bar, and the mean come within one
published standard deviation). Random: the uniformly random policy, measured. Score: 0 is random, 1 is the bar. Grade
of the reference: X exact, A raw curves of five seeds or more, B mean and spread over three seeds or more, C one run. A
row of several parts passes where every part does. Time: seconds of all seeds. Other measurements:
[results](results/README.md).

The suite gate holds for a tier where the mean score of its rows, each clipped to [0, 1.25], is at least 1, and at least
half of them pass at stage 1. It is taken over the rows that have been run. Rows without a meaningful floor (exact,
tabular and relative ones) enter with 1 if they pass, else 0.
"""
NOTES = """
Where a row leaves room, it is read so:

- T100 and T-MA count training episodes, with the exploration of training and raw returns. The steps of a run are the
  budget rounded down to whole iterations; the last row of T-MA is the last one within them.
- Evaluations play on environments of their own, from the same list of starts each time, another one for each seed. P23
  was published with a fixed list as well. An evaluation falls at the end of the iteration in which its step lies: for
  P23 up to 2,047 steps after it; the last one is that of the final policy.
- P29: in each environment the random policy is 0 and the better of the two variants' means 1. The score of a seed of
  the penalty is its mean over environments, divided by the mean of the clipped variant over environments and seeds; the
  pass rule is applied to these ratios. v4 has the rewards of v1, which the paper used; v5 changed four of the seven.
- P60 was published on FetchReach-v1, which needs mujoco-py; v4 is its successor. The same agent without hindsight must
  score below it.
"""
COLUMNS = ("row", "agent", "preset", "environment", "steps", "metric", "bar (published; grade)", "IQM [95 %]", "seeds",
           "random", "score", "time", "result", "command")  # fmt: skip


class Outcome(NamedTuple):
    """What became of a row, or of a part of one."""

    passed: bool
    first: bool  # whether stage 1 was enough
    entry: float | None  # what it brings to the suite gate; None: it only decides whether the row passes
    text: str


def parent(name: str) -> str:
    """The row that a part belongs to: P24 of P24-Hopper."""
    return name.partition("-")[0]


def parts(rows: Mapping[str, Row], name: str) -> list[str]:
    """The parts of a row: itself where it has none."""
    found = [part for part in rows if parent(part) == name and part != name]
    return found or [name]


# ---------------------------------------------------------------------------------------------------- what is there


def lacking(row: Row) -> str:
    """What a row can't be run without; "" where nothing is missing."""
    if "missing" in row:
        return row["missing"]
    if "script" in row or "parts" in row:
        return ""
    if row["agent"].lower() not in AGENTS:
        return f"the agent {row['agent']}"
    known = presets(row["agent"], row["env"])
    wanted = row.get("variants", {"": row.get("preset")}).values()
    absent = [preset for preset in wanted if preset not in known]
    if absent:
        return f"the preset {absent[0]!r} of {row['agent']} for {row['env']}"
    fields = {field.name for field in catalogue.algorithm(row["agent"]).fields}
    used = {name for preset in wanted for name in known[preset].fields} | set(row.get("fields", {}))
    unknown = sorted(used - fields)
    return f"{row['agent']}'s field {unknown[0]}" if unknown else ""


def open_rows(rows: Mapping[str, Row], results: Path) -> list[str]:
    """The rows that can be run and have no result yet."""
    able = [name for name, row in rows.items() if ("preset" in row or "variants" in row) and not lacking(row)]
    return [name for name in able if not (results / f"{name}.json").exists()]


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def gathered(rows: Mapping[str, Row], results: Path) -> dict[str, Any]:
    """The result of every row that has one, by id."""
    found = {name: read(results / f"{name}.json") for name in rows}
    exact = (read(results / "foundations.json") or {}).get("rows", {})
    found |= {name: exact.get(name) for name, row in rows.items() if row.get("script") == "bench/foundations.py"}
    return {name: result for name, result in found.items() if result is not None}


def progress(row: Row, runs: Path) -> dict[str, Any] | None:
    """How far a row's first stage has come, over all its seeds; None where it wasn't begun."""
    folders = [runs / row["id"] / variant / "stage1" for variant in row.get("variants", {"": None})]
    if not any((folder / "config.json").exists() for folder in folders):
        return None
    done, rates = 0, []
    for folder in filter(lambda folder: (folder / "metrics.jsonl").exists(), folders):
        with (folder / "metrics.jsonl").open() as lines:
            logged = [json.loads(line) for line in lines if line.endswith("\n")]
        seeds = {entry["seed"] for entry in logged}
        done += len(seeds) * max((entry["step"] for entry in logged), default=0)
        rates += [entry["time/fps"] for entry in logged if entry.get("time/fps")][-1:]
    total = 5 * row["steps"] * len(folders)
    rate = float(np.mean(rates)) if rates else None
    hours = (total - done) / rate / 3600 if rate else None
    return {"done": done, "of": total, "steps_per_s": rate, "hours_left": hours}


# ---------------------------------------------------------------------------------------------------------- verdicts


def outcome(name: str, rows: Mapping[str, Row], found: Mapping[str, Any]) -> Outcome | None:
    """What became of a row or a part; None where it has not been run to the end."""
    row, result = rows[name], found.get(name)
    if "parts" in row:
        return relative(row, [found[part] for part in parts(rows, name) if part in found], len(parts(rows, name)))
    if result is None or "variants" in row:
        return None
    if "below" in row:
        other = found.get(row["below"])
        if other is None:
            return None
        passed = result["iqm"] < other["iqm"]
        word = "**below**" if passed else "**not below**"
        return Outcome(passed, passed, None, f"{word} {row['below']}, as it must be")
    if "script" in row or row["direction"] == "abs":
        passed = result["passed"]
        return Outcome(passed, passed, float(passed), "**passed**" if passed else "**failed**")
    first = result["passed"] and result["stage"] == 1
    return Outcome(result["passed"], first, float(np.clip(result["normalised"], 0, 1.25)), status(result))


def status(result: Mapping[str, Any]) -> str:
    if result["passed"]:
        return f"**passed** at stage {result['stage']}"
    return "**failed** at both stages" if result["decided"] else "missed stage 1; stage 2 not run"


def relative(row: Row, results: list[Any], of: int) -> Outcome | None:
    """A row that compares two variants of an agent over several environments, as far as these have been run."""
    if len(results) < LEAST:
        return None
    stages = min(len(runs) for result in results for runs in result["variants"].values())
    both = row["parts"]["compare"], row["parts"]["with"]

    def scores(last: int) -> list[float]:
        tables = [
            {name: [s for stage in runs[:last] for s in stage["scores"]] for name, runs in result["variants"].items()}
            | {"random": result["random"]["mean"]}
            for result in results
        ]
        return measures.ratios(tables, *both)

    all_scores = scores(stages)
    more = all_scores[5:] if stages == 2 else None
    verdict = pass_rule(scores(1), row["bar"], row["direction"], more, row["published_sd"])
    low, high = interval(all_scores)
    passed = status({"passed": verdict.passed, "stage": verdict.stage, "decided": verdict.decided})
    text = f"{passed}: {iqm(all_scores):.3f} [{low:.3f}, {high:.3f}] over {len(results)} of {of} environments"
    return Outcome(verdict.passed, verdict.passed and verdict.stage == 1, float(verdict.passed), text)


def whole(name: str, rows: Mapping[str, Row], found: Mapping[str, Any]) -> Outcome | None:
    """What became of a row with all its parts; None where one of them has not been run."""
    if name in rows:
        return outcome(name, rows, found)
    all_parts = [outcome(part, rows, found) for part in parts(rows, name)]
    if any(part is None for part in all_parts):
        return None
    known = [part for part in all_parts if part is not None]
    entries = [part.entry for part in known if part.entry is not None]
    passed = all(part.passed for part in known)
    text = f"**{'passed' if passed else 'failed'}**, {sum(part.passed for part in known)} of {len(known)} parts"
    return Outcome(passed, all(part.first for part in known), float(np.mean(entries)), text)


class Gate(NamedTuple):
    """The suite gate of one tier, over the rows that have been run."""

    run: int
    of: int
    passed: int
    entry: float  # mean clipped score
    first: int  # rows that passed at stage 1

    @property
    def holds(self) -> bool:
        return self.run > 0 and self.entry >= 1.0 and 2 * self.first >= self.run


def gates(rows: Mapping[str, Row], found: Mapping[str, Any]) -> dict[str, Gate]:
    """The suite gate by tier; of a double tier such as S/M the first counts, and our own rows stay outside."""
    made: dict[str, Gate] = {}
    for tier in (t for t in TIERS if t != "own"):
        names = dict.fromkeys(parent(name) for name, row in rows.items() if row["tier"].split("/")[0] == tier)
        outcomes = [o for o in (whole(name, rows, found) for name in names) if o is not None]
        entries = [o.entry for o in outcomes if o.entry is not None]
        mean = float(np.mean(entries)) if entries else float("nan")
        passed, first = sum(o.passed for o in outcomes), sum(o.first for o in outcomes)
        made[tier] = Gate(len(outcomes), len(names), passed, mean, first)
    return made


# --------------------------------------------------------------------------------------------------------------- page


def page(rows: Mapping[str, Row], results: Path) -> str:
    """The whole page."""
    found, under_way = gathered(rows, results), read(results / "unfinished.json") or {}
    lines = [HEAD, *gate_lines(rows, found), "", line(COLUMNS), line(["---"] * len(COLUMNS))]
    for name in dict.fromkeys(parent(row) for row in rows):
        several = parts(rows, name) != [name]
        if several:
            lines.append(parent_line(name, rows, found))
        lines += [row_line(part, rows, found, under_way) for part in parts(rows, name)]
    return "\n".join(lines) + "\n" + NOTES


def line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def gate_lines(rows: Mapping[str, Row], found: Mapping[str, Any]) -> list[str]:
    """The suite gate: a table of tiers."""
    lines = [
        "| tier | time of 5 seeds on 2 cores | rows run | passed | at stage 1 | mean score | gate |",
        "|---|---|---|---|---|---|---|",
    ]
    for tier, gate in gates(rows, found).items():
        verdict = ("**holds**" if gate.holds else "does not hold") if gate.run else "not run"
        mean = f"{gate.entry:.2f}" if gate.run else ""
        done = f"{gate.run} of {gate.of}"
        lines.append(line([tier, TIERS[tier], done, str(gate.passed), str(gate.first), mean, verdict]))
    return lines


def parent_line(name: str, rows: Mapping[str, Row], found: Mapping[str, Any]) -> str:
    """The line of a row that has parts."""
    result = whole(name, rows, found)
    row = rows.get(name)
    done = sum(part in found for part in parts(rows, name))
    text = result.text if result else f"{done} of {len(parts(rows, name))} parts run"
    about = described(row) if row else [""] * 6
    return line([name, *about, *[""] * 5, text, f"`python bench/run.py {name}`"])


def row_line(name: str, rows: Mapping[str, Row], found: Mapping[str, Any], under_way: Mapping[str, Any]) -> str:
    """The line of a row, or of a part."""
    row, result = rows[name], found.get(name)
    file = "foundations" if "script" in row else name
    shown = f"[{name}](results/{file}.json)" if result else name
    command = f"`python {row.get('script', 'bench/run.py')} {name}`" if "missing" not in row else ""
    return line([shown, *described(row), *figures(row, result), told(name, rows, found, under_way), command])


def described(row: Row) -> list[str]:
    """Agent, preset, environment, steps, metric and bar."""
    preset = " / ".join(row["variants"].values()) if "variants" in row else row.get("preset", "")
    if "fields" in row:
        preset += ", " + ", ".join(f"{name} {value}" for name, value in row["fields"].items())
    steps = f"{row['steps']:,}" if isinstance(row["steps"], int) else str(row["steps"] or "")
    return [row["agent"], preset, row["env"], steps, metric(row), bar(row)]


def metric(row: Row) -> str:
    """The metric in words."""
    kind, runnable = row["metric"], "preset" in row or "variants" in row
    if not runnable or kind == "T100":
        return kind
    if kind == "T-MA":
        return f"T-MA, {row['rows']} rows of {row['every']:,} steps"
    if kind == "last steps":
        return f"training return, last {row['window']:,} steps"
    many = f"mean of the last {row['last']} evaluations" if "last" in row else ""
    name = "success rate" if kind == "success" else kind
    return ", ".join(filter(None, [name, f"{row['episodes']} episodes", many]))


def bar(row: Row) -> str:
    """The bar with where it comes from."""
    value = "none" if row["bar"] is None else f"{row['bar']:g}" if isinstance(row["bar"], int | float) else row["bar"]
    sign = "≤ " if row["direction"] == "lower" else "±" if row["direction"] == "abs" else ""
    return f"{sign if row['bar'] is not None else ''}{value} ({row['published']}; {row['grade']})"


def figures(row: Row, result: Mapping[str, Any] | None) -> list[str]:
    """IQM, seeds, random, score and time; empty where there is nothing yet."""
    if result is None:
        return [""] * 5
    if "script" in row:
        scores = result["score"] if isinstance(result["score"], list) else [result["score"]]
        runs = f"{result['runs']:,} runs" if "runs" in result else ""
        return [" / ".join(f"{score:.4g}" for score in scores), runs, "", "", f"{result['seconds']:.0f} s"]
    random = f"{result['random']['mean']:.4g}"
    if "variants" in result:
        all_stages = [stage for runs in result["variants"].values() for stage in runs]
        centre = " / ".join(f"{name} {value:.4g}" for name, value in result["iqm"].items())
        return [centre, f"2 × {5 * result['stage']}", random, "", seconds(all_stages)]
    seeds = str(sum(len(stage["seeds"]) for stage in result["stages"]))
    centre = f"{result['iqm']:.2f} [{result['ci_low']:.2f}, {result['ci_high']:.2f}]"
    score = f"{result['normalised']:.2f}" if "normalised" in result else ""
    return [centre, seeds, random, score, seconds(result["stages"])]


def seconds(stages: list[Mapping[str, Any]]) -> str:
    return f"{sum(stage['train_s'] for stage in stages):,.0f} s"


def told(name: str, rows: Mapping[str, Row], found: Mapping[str, Any], under_way: Mapping[str, Any]) -> str:
    """The last word on a row."""
    row, done = rows[name], under_way.get(name)
    ended = outcome(name, rows, found)
    if ended is not None:
        return ended.text
    if name in found:
        return f"part of {parent(name)}"
    if done is not None:
        rest = (
            f"; about {done['hours_left']:.1f} h left at {done['steps_per_s']:,.0f} steps/s"
            if done["hours_left"]
            else ""
        )
        return f"unfinished: {done['done']:,} of {done['of']:,} steps of all seeds{rest}"
    missing = lacking(row)
    return f"not run: it needs {missing}" if missing else f"not run; it takes {TIERS[row['tier'].split('/')[0]]}"
