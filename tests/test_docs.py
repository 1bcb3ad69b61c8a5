"""The documentation, executed: every code block runs as it stands, every link leads somewhere, every page is current.

One substitution is made: `steps` above CAP become CAP, so that a block shows a useful length and runs in seconds. Lines
that call `make` are not run, since they would run this suite; their targets must exist.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from polyak import catalogue, cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CAP = 5_000
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks() -> list[tuple[str, str, str]]:
    """(where, language, code) of every block."""
    found: list[tuple[str, str, str]] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{_name(page)}:{line}", match[1], match[2]))
    return found


def capped(code: str) -> str:
    """The block with no more than CAP steps in any run."""
    return re.sub(r"(steps[ =])([\d_]+)", lambda m: f"{m[1]}{min(CAP, int(m[2].replace('_', '')))}", code)


def _shell(code: str) -> str:
    """A shell block without its `make` lines, whose targets must exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines: list[str] = []
    for line in code.splitlines():
        if line.startswith("make "):
            target = line.split()[1]
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"the Makefile has no {target}"
        else:
            lines.append(line)
    return "\n".join(lines)


def test_steps_are_capped() -> None:
    assert capped("train --steps 20_000 --seeds 2") == "train --steps 5000 --seeds 2"
    assert capped("train(steps=100_000)") == "train(steps=5000)"
    assert capped("learning_starts=500, steps=3_000") == "learning_starts=500, steps=3000"


@pytest.mark.full
@pytest.mark.parametrize(("language", "code"), [pytest.param(lang, code, id=where) for where, lang, code in _blocks()])
def test_a_block_runs(language: str, code: str, tmp_path: Path) -> None:
    code = capped(code)
    words = [sys.executable, "-W", "error", "-c", code] if language == "python" else ["bash", "-euc", _shell(code)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    found = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, f"{found.stdout[-2000:]}\n{found.stderr[-4000:]}"


def test_every_other_block_is_quoted_not_fenced() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(\w*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences) <= {"", "python", "sh"}, f"{_name(page)}: a fenced block is code that runs"
        assert "test: skip" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{_name(page)} links to {target}"


def test_the_pages_of_the_agents_are_current() -> None:
    found = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "agent_pages.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_every_verb_and_every_flag_of_train_is_described() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in cli.VERBS:
        assert f"`{verb}`" in readme, verb
        assert re.search(rf"polyak {verb}\b", page), verb
    fields = {f"--{f.name.replace('_', '-')}" for f in catalogue.algorithm("ppo").fields}
    shown = subprocess.run(
        [sys.executable, "-m", "polyak.cli", "train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", shown)) - fields - {"--help"}
    for flag in flags:
        if not flag.startswith("--no-") or flag == "--no-preset":
            assert flag in page or flag in ("--log-folder", "--tensorboard-log"), f"docs/cli.md does not mention {flag}"


def test_the_command_that_is_answered_is_answered_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The transcripts in docs/cli.md: `$ command`, then what it prints."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    transcripts = re.findall(r"^    \$ polyak (.*)\n((?:    (?!\$).*\n)+)", page, re.MULTILINE)
    assert transcripts
    for command, printed in transcripts:
        cli.main(command.split())
        shown = capsys.readouterr()
        assert (shown.out + shown.err).split() == printed.split()
