"""What there is: algorithms with their hyper-parameters, and compiled worlds, read from the source, not imported.

`import jax` takes two seconds, and `polyak train ppo --help` must not. The dataclass stays the only configuration: its
fields, defaults and the comments behind them are parsed.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from polyak.errors import PolyakError, nearest

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Field:
    """One hyper-parameter."""

    name: str
    annotation: str  # source, for instance "float | Schedule"
    default: str  # source, for instance "1_000_000"; "" where it must be given
    help: str  # the comment behind it
    group: str  # the comment above it: objective, rhythm, networks

    @property
    def is_bool(self) -> bool:
        return self.annotation == "bool"


@dataclass(frozen=True)
class Algorithm:
    """One file of `polyak.agents`."""

    name: str  # as on the command line: "ppo", "q-learning"; with "_" for "-" the name of its file
    cls: str  # "PPO"
    title: str  # first line of its docstring
    takes: str  # its spaces
    fields: tuple[Field, ...]
    network_init: str  # how its default network is initialised, where the file says so

    def field(self, name: str) -> Field:
        return next(f for f in self.fields if f.name == name)


@cache
def algorithms() -> dict[str, Algorithm]:
    """Every algorithm by its name on the command line."""
    found = (_algorithm(path) for path in sorted((_HERE / "agents").glob("*.py")))
    return {algorithm.name: algorithm for algorithm in found if algorithm is not None}


def algorithm(name: str) -> Algorithm:
    """The algorithm of this name, in any case.

    Errors:
        PolyakError: there is none; the nearest is named.
    """
    known = algorithms()
    found = {_plain(key): value for key, value in known.items()}.get(_plain(name))
    if found is None:
        raise PolyakError(f"there is no algorithm {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return found


def is_algorithm(word: str) -> bool:
    """Whether a word names an algorithm, however it is spelled: q-learning, Q_learning, QLearning."""
    return _plain(word) in map(_plain, algorithms())


def takers(kind: str, *, endless: bool = False) -> list[str]:
    """Classes of the algorithms whose page says that they take actions of a kind, such as "MultiDiscrete".

    With `endless`, those that ask for finite bounds are left out.
    """
    said = {a.cls: a.takes.partition("actions ")[2] for a in algorithms().values()}
    return [
        name
        for name, takes in said.items()
        if re.search(rf"\b{kind}\b", takes) and not (endless and "finite bounds" in takes)
    ]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@cache
def worlds() -> tuple[str, ...]:
    """Ids of the compiled worlds, without their prefix `jax:`."""
    files = {"WORLDS": _HERE / "envs" / "classic" / "__init__.py", "FINITE": _HERE / "envs" / "finite.py"}
    rows = [(name, node) for name, file in files.items() for node in ast.parse(file.read_text(encoding="utf-8")).body]
    named = [n for name, n in rows if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == name]
    keys = [key for node in named if isinstance(node.value, ast.Dict) for key in node.value.keys]
    return tuple(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _algorithm(path: Path) -> Algorithm | None:
    """The algorithm of a file: the dataclass that bears the file's name, or None where there is none."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    named = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name.lower() == _plain(path.stem)]
    hyper = [n for n in named if any(ast.unparse(d).split(".")[-1] == "hyper" for d in n.decorator_list)]
    if not hyper:
        return None
    doc = ast.get_docstring(tree) or ""
    takes = next((line for line in doc.splitlines() if line.startswith("Takes:")), "").removeprefix("Takes:").strip()
    fields = tuple(_fields(hyper[0], source.splitlines()))
    name = path.stem.replace("_", "-")
    return Algorithm(name, hyper[0].name, doc.partition("\n")[0], takes, fields, _network_init(tree))


def _fields(cls: ast.ClassDef, lines: list[str]) -> list[Field]:
    fields: list[Field] = []
    group, seen = "", cls.lineno
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = [line.strip()[1:].strip() for line in lines[seen : node.lineno - 1] if line.strip().startswith("#")]
        group, seen = (above[0] if above else group), node.end_lineno or node.lineno
        annotation = ast.unparse(node.annotation)
        if annotation.startswith("ClassVar"):
            continue
        default = "" if node.value is None else _source(node.value, lines)
        fields.append(Field(node.target.id, annotation, default, _comment(lines[seen - 1]), group))
    return fields


def _source(node: ast.expr, lines: list[str]) -> str:
    """A default as it is written: 1_000_000 and 3e-4, where `ast.unparse` would give 1000000 and 0.0003."""
    row = lines[node.lineno - 1].encode()  # columns count bytes
    return row[node.col_offset : node.end_col_offset].decode() if node.end_lineno == node.lineno else ast.unparse(node)


def _comment(line: str) -> str:
    """The comment at the end of a line; a default never holds a '#'."""
    return line.partition("#")[2].strip()


def _network_init(tree: ast.Module) -> str:
    """The initialisation in `_NETWORK = nets.MLP(sizes, activation, "orthogonal")`, or "" where it isn't written so."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NETWORK":
            call = node.value
            if isinstance(call, ast.Call) and len(call.args) == 3 and isinstance(call.args[2], ast.Constant):
                return str(call.args[2].value)
    return ""
