"""The configuration of a run as a table: what differs from the defaults, and where it comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from polyak.report.files import RunFiles, block, number
from polyak.report.text import brief, clean

_ABSENT: Any = object()


@dataclass(frozen=True)
class Setting:
    """One resolved value, its default (if it has one), and the preset's value (if that names it)."""

    name: str
    value: Any
    default: Any = _ABSENT
    preset: Any = _ABSENT

    @property
    def changed(self) -> bool:
        return self.default is not _ABSENT and not same(self.value, self.default)

    @property
    def origin(self) -> str:
        if self.preset is not _ABSENT:
            return "preset" if of_preset(self.value, self.preset) else f"set here; the preset has {brief(self.preset)}"
        return "set here" if self.changed else "default" if self.default is not _ABSENT else ""


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same setting: 1 equals 1.0, NaN equals NaN, True is not 1."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    x, y = number(a), number(b)
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and math.isnan(x) and math.isnan(y))


def of_preset(value: Any, preset: Any) -> bool:
    """Whether a value is the preset's: a schedule's length in steps is resolved at the start, so it does not count."""
    if isinstance(value, dict) and isinstance(preset, dict):
        ours, theirs = cast("dict[str, Any]", value), cast("dict[str, Any]", preset)
        if "schedule" in theirs and theirs.get("steps") is None:
            return {k: v for k, v in ours.items() if k != "steps"} == {k: v for k, v in theirs.items() if k != "steps"}
    return same(value, preset)


def settings(files: RunFiles) -> list[Setting]:
    """The agent's fields in their order, and whether a `Normalised` wraps it, with the wrapper's fields."""
    agent, presets = block(files.config, "agent"), block(files.config, "presets")
    defaults = block(agent, "defaults")
    rows = [
        Setting(name, value, defaults.get(name, _ABSENT), presets.get(name, _ABSENT))
        for name, value in block(agent, "fields").items()
    ]
    if "normalised" in agent:
        preset = bool(presets["normalised"]) if "normalised" in presets else _ABSENT
        rows.append(Setting("normalised", agent["normalised"] is not None, False, preset))
    return rows + [Setting(f"normalised.{name}", value) for name, value in block(agent, "normalised").items()]


def surroundings(files: RunFiles) -> dict[str, Any]:
    """What is not the agent's: the run's and the environment's settings, by name."""
    rows = {f"run.{key}": value for key, value in block(files.config, "run").items()}
    return rows | {f"env.{key}": value for key, value in block(files.config, "env").items()}


def configuration(files: RunFiles) -> str:
    """The section of a report with the configuration."""
    title = "<h2>Configuration</h2>"
    rows = settings(files)
    if not rows and not files.config:
        return f"{title}<p>The folder holds no readable config.json.</p>"
    changed = sum(row.changed for row in rows)
    preset = block(files.config, "run").get("preset")
    text = f"{changed} of {len(rows)} hyper-parameters differ from the defaults; they are marked."
    source = files.config.get("preset_source")
    text += (
        f" The preset is {clean(preset)}{f', after {clean(source)}' if source else ''}."
        if preset
        else " No preset was used."
    )
    names = "".join(f"<th>{name}</th>" for name in ("hyper-parameter", "value", "default", "from"))
    body = "".join(map(_row, rows))
    presets = block(files.config, "presets")
    rest = "".join(
        f'<tr><th class="mono">{clean(name)}</th><td class="text mono">{clean(brief(value))}</td>'
        f"<td>{'preset' if _by_preset(name, value, presets) else ''}</td></tr>"
        for name, value in surroundings(files).items()
    )
    return (
        f'{title}<p class="note">{text}</p><div class="scroll"><table class="settings"><thead><tr>{names}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><details><summary>Run and environment</summary><div class="scroll"><table>'
        "<thead><tr><th>setting</th><th>value</th><th>from</th></tr></thead>"
        f"<tbody>{rest}</tbody></table></div></details>"
    )


def _by_preset(name: str, value: Any, presets: Mapping[str, Any]) -> bool:
    key = name.split(".", 1)[-1]
    return key in presets and same(presets[key], value)


def _row(row: Setting) -> str:
    default = "" if row.default is _ABSENT else clean(brief(row.default))
    origin = (
        f'<span class="badge">{clean(row.origin)}</span>'
        if row.changed
        else f'<span class="soft">{clean(row.origin)}</span>'
    )
    return (
        f'<tr{" class=changed" if row.changed else ""}><th class="mono">{clean(row.name)}</th>'
        f'<td class="text mono own">{clean(brief(row.value))}</td>'
        f'<td class="text mono soft">{default}</td><td>{origin}</td></tr>'
    )
