"""Writes docs/agents/<name>.md from the algorithms' docstrings, fields and presets. `--check` only compares."""

import ast
import sys
from pathlib import Path

from polyak import catalogue
from polyak.presets import PRESETS

ROOT = Path(__file__).parents[1]


def page(algorithm: catalogue.Algorithm) -> str:
    """The page of one algorithm, in Markdown."""
    stem = algorithm.name.replace("-", "_")
    source = (ROOT / "src" / "polyak" / "agents" / f"{stem}.py").read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source)) or ""
    lines = [f"# {algorithm.cls}", "", doc, "", "## Hyper-parameters", ""]
    group = None
    for field in algorithm.fields:
        if field.group != group:
            group = field.group
            lines += ["", f"### {group}", "", "| Field | Default | Meaning |", "|---|---|---|"]
        lines.append(f"| `{field.name}` | `{field.default}` | {field.help.replace('|', chr(92) + '|')} |")
    lines += ["", "## Presets", "", "| Environment | Name | Steps | Source |", "|---|---|---|---|"]
    for (name, env), named in PRESETS.items():
        if name == algorithm.name:
            lines += [f"| `{env}` | {key} | {preset.steps:,} | {preset.source} |" for key, preset in named.items()]
    code = f"The code: [agents/{stem}.py](../../src/polyak/agents/{stem}.py)."
    text = "\n".join([*lines, "", code, ""])
    return text.replace("\n\n\n", "\n\n")


def main() -> int:
    """Writes the pages, or with --check returns 1 where one differs from its file."""
    stale: list[str] = []
    for name, algorithm in catalogue.algorithms().items():
        path = ROOT / "docs" / "agents" / f"{name}.md"
        text = page(algorithm)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if "--check" in sys.argv and stale:
        print(f"out of date, run python tools/agent_pages.py: {', '.join(stale)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
