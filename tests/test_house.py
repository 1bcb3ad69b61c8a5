"""The rules of docs/architecture.md, executed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "polyak"
SOURCES = sorted(PACKAGE.rglob("*.py"))
AGENTS = [path for path in sorted((PACKAGE / "agents").glob("*.py")) if path.name != "__init__.py"]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# The arrows: a room imports rooms of lower rank. Those that hold one idea each (0, 2, 4) may share within their rank.
RANKS = {
    "errors": 0, "names": 0, "memory": 0, "spaces": 0, "values": 0, "catalogue": 0, "compat": 0, "statistics": 0,
    "core": 1, "keys": 1,
    "returns": 2, "replay": 2, "hindsight": 2, "minibatches": 2, "nets": 2, "renorm": 2, "recurrent": 2, "heads": 2,
    "dists": 2, "optim": 2, "explore": 2, "normalise": 2, "mdp": 2,
    "agents": 3, "envs": 3, "presets": 3,
    "cranks": 4, "evaluation": 4, "doctor": 4,
    "report": 5, "runs": 5,
    "solving": 6,
    "cli": 7, "__init__": 7,
}  # fmt: skip

UPWARD = {("compat", "doctor")}  # the canary, only where jax was started too early
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
# A module's name that a file can't influence: where each importing call stands, and why it is safe.
IMPORTING = {"__init__.py": "names of our own table", "envs/source.py": "names of --allow-import, typed by the user"}


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(_tree(path)) if isinstance(node, FUNCTIONS)]


def _doc_rows(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's docstring: they are prose, and long ones are welcome."""
    first = node.body[0]
    has_doc = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return (first.end_lineno or 0) - first.lineno + 1 if has_doc else 0


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imports(path: Path) -> list[tuple[str, str, int]]:
    """(room, whole name, line) of every import of ours in a file, inside functions too, but not for type checking."""
    tree = _tree(path)
    typing_only = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }  # fmt: skip
    found: list[tuple[str, str, int]] = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(_room(a.name), a.name, node.lineno) for a in node.names if a.name.startswith("polyak")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "polyak":
            names = [f"polyak.{a.name}" for a in node.names] if node.module == "polyak" else [str(node.module)]
            found += [(_room(name), name, node.lineno) for name in names]
    return found


# ---------------------------------------------------------------------------------------------------------- agents


@pytest.mark.parametrize("path", AGENTS, ids=_name)
def test_equations_stand_in_the_docstring_and_at_their_lines(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    doc = ast.get_docstring(_tree(path), clean=False) or ""
    code = source.replace(doc, "", 1)
    stated = {int(n) for line in doc.splitlines() for n in re.findall(r"\s{2,}\((\d+)\)\s*$", line)}
    realised = {int(n) for line in code.splitlines() for n in re.findall(r"\((\d+)\)", line.partition("  # ")[2])}
    assert stated, "the docstring numbers its equations: (1), (2), ... at the ends of their lines"
    assert stated == set(range(1, len(stated) + 1))
    assert stated == realised


@pytest.mark.parametrize("path", AGENTS, ids=_name)
def test_an_agent_fits_on_its_page(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("path", AGENTS, ids=_name)
def test_an_agent_is_in_the_order_of_the_book(path: Path) -> None:
    tree = _tree(path)
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    name = path.stem.replace("_", "")
    agent = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.lower() == name)
    assert classes.index("State") < classes.index(agent.name)
    verbs = ["init", "memory", "act", "update", "learn"]
    defined = [node.name for node in agent.body if isinstance(node, FUNCTIONS)]
    defined += [
        t.id for node in agent.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    ]
    assert {"init", "memory", "act", "update"} <= set(defined)
    public = [node.name for node in agent.body if isinstance(node, FUNCTIONS) and node.name in verbs]
    assert public == [verb for verb in verbs if verb in public]
    doc = ast.get_docstring(tree) or ""
    assert "Differs from the paper" in doc
    assert "Takes:" in doc


@pytest.mark.parametrize("path", AGENTS, ids=_name)
def test_every_hyper_parameter_says_what_it_means(path: Path) -> None:
    from polyak.catalogue import algorithm

    for field in algorithm(path.stem).fields:
        assert field.help, f"{field.name} has no comment, which is its flag's help"
        assert field.default, f"{field.name} has no default"
        assert field.group, f"{field.name} stands in no group"


def test_agents_import_no_agent_and_no_world() -> None:
    for path in AGENTS:
        wrong = [name for room, name, _ in _imports(path) if room in ("agents", "envs", "runs", "report", "cranks")]
        assert not wrong, f"{_name(path)} imports {wrong}"


# ---------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_functions_are_short(path: Path) -> None:
    rows = {f.name: (f.end_lineno or 0) - f.lineno + 1 - _doc_rows(f) for f in _functions(path)}
    assert {name: n for name, n in rows.items() if n > 40} == {}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_def_is_nested_at_most_twice(path: Path) -> None:
    deep: list[str] = []

    def visit(node: ast.AST, depth: int) -> None:
        for child in ast.iter_child_nodes(node):
            inner = depth + isinstance(child, FUNCTIONS)
            if inner > 2 and isinstance(child, FUNCTIONS):
                deep.append(f"{child.name}:{child.lineno}")
            visit(child, inner)

    visit(_tree(path), 0)
    assert deep == []


def test_the_public_surface_is_one_screen() -> None:
    assert len((PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()) <= 60


# ---------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_names_say_what_they_hold(path: Path) -> None:
    defined = [n.name for n in ast.walk(_tree(path)) if isinstance(n, (*FUNCTIONS, ast.ClassDef))]
    bad = [n for n in defined if re.match(r"_?(get|make|do)_", n) or re.search(r"(?i)util|helper|manager", n)]
    assert bad == []
    assert not re.search(r"(?i)util|helper|manager|common|^base_", path.stem)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_is_inherited_by_stealth(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Name):
            assert node.id not in ("super", "ABC", "ABCMeta", "abstractmethod"), f"line {node.lineno}"
        if isinstance(node, ast.ClassDef):
            assert not re.search(r"(?i)mixin", node.name), node.name


@pytest.mark.parametrize("path", [*AGENTS, PACKAGE / "cranks.py", PACKAGE / "evaluation.py"], ids=_name)
def test_agents_are_never_asked_what_they_are(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            probing = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
            assert not probing, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_debts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", text)
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ExceptHandler):
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not silent, f"line {node.lineno}: an error is swallowed; use contextlib.suppress and say why"


# ---------------------------------------------------------------------------------------------------------- arrows


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for target, name, line in _imports(path):
        if target == room or (room, target) in UPWARD or target == "__init__":
            continue
        assert RANKS[target] < RANKS[room] or {room, target} == {"report", "runs"} or (
            RANKS[target] == RANKS[room] and RANKS[room] in (0, 2, 4)
        ), f"{_name(path)}:{line} imports {name}"  # fmt: skip


def test_every_room_has_its_rank() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert rooms == set(RANKS)


# ---------------------------------------------------------------------------------------------------------- safety


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_code_comes_from_data(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES, f"line {node.lineno}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in FORBIDDEN_CALLS, f"line {node.lineno}: {called}"
        if called.endswith("import_module"):
            assert _name(path) in IMPORTING, f"line {node.lineno}: {called}"
        if called in ("np.load", "numpy.load"):
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert options.get("allow_pickle") == "False", f"line {node.lineno}: allow_pickle=False is written out"


def _tracked() -> list[Path]:
    found = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = [name for name in found.stdout.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_no_machine_path_and_no_private_registry() -> None:
    machine = re.compile(r"(?<![\w.])/(work|root|home|tmp|opt|farm)/[A-Za-z]|index-url|file://")
    for path in _tracked() or SOURCES:
        if path.suffix not in (".py", ".toml", ".lock", ".md", ".json", ".sh", ".yml", "") or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            assert not machine.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"


def test_the_lock_names_only_the_public_registry() -> None:
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text(encoding="utf-8")))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


# ---------------------------------------------------------------------------------------------------------- weight


@pytest.mark.parametrize("module", ["polyak", "polyak.cli", "polyak.presets", "polyak.runs.folder", "polyak.report"])
def test_imports_no_jax(module: str) -> None:
    heavy = "{'jax', 'gymnasium', 'matplotlib', 'mujoco', 'ale_py', 'tensorboardX', 'imageio'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["polyak.cranks", "polyak.agents.ppo", "polyak.envs.vector", "polyak.evaluation"])
def test_the_compiled_crank_needs_no_environment_package(module: str) -> None:
    heavy = "{'gymnasium', 'matplotlib', 'mujoco', 'ale_py', 'tensorboardX', 'imageio', 'rich'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
