"""Hostile checkpoints: a typed error, quickly, with little memory, and nothing outside the run touched (CT26, CT27)."""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from polyak.errors import RunError
from polyak.runs import checkpoint, disk

CASES = 1000


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 200)
    monkeypatch.setattr(checkpoint, "SEGMENT", 512)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"agent": {"name": "PPO"}}')
    rng = np.random.default_rng(0)
    arrays = {"agent/w": rng.random((3, 2), np.float32), "n": np.uint32(3), "replay/obs": rng.random((20, 16))}
    checkpoint.save(run, arrays, {"value": 1}, step=3, fingerprint={"x": 1})
    return run


EVIL = [
    10**12, 2**63, 2**64, 10**400, -1, 0, 1.5, True, None, "", "x", [], {}, [10**12], [2**40, 2**40],
    [0, 2**62, 2**62], [-1], [1.0], [True], [[1]], ["3"], [1] * 100, "../../etc/passwd", "/etc/passwd", "..", ".",
    "a/b", "a\x00b", "\ud800", "\u202egnp.exe", "object", "O", "|V8", "datetime64[s]", "float128", "F4",
    "posix.system", {"__reduce__": "os.system"}, {"_target_": "os.system"},
    "module:Env", "MANIFEST.json", "arrays.safetensors", "state.json", "lock",
]  # fmt: skip


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, child in value.items():
            yield from places(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from places(child, (*path, index))


def mutate(document, rng):
    """One change of structure: a value replaced, an entry removed, copied, or renamed."""
    document = copy.deepcopy(document)
    path = rng.choice([place for place in places(document) if place])
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    what = rng.choice(["replace", "replace", "replace", "remove", "rename", "bump"])
    if what == "replace":
        holder[path[-1]] = rng.choice(EVIL)
    elif what == "remove":
        del holder[path[-1]]
    elif what == "bump" and isinstance(holder[path[-1]], int):
        holder[path[-1]] += rng.choice([-1, 1, 8, 1 << 20, 1 << 40])
    elif isinstance(holder, dict):
        holder[str(rng.choice(EVIL))] = holder.pop(path[-1])
    return document


def resealed(manifest, path):
    """Sizes and hashes made right again, so that the checks behind them are reached."""
    for name, entry in manifest["files"].items() if isinstance(manifest.get("files"), dict) else []:
        target = path / name if disk.NAME.fullmatch(name) else None
        if isinstance(entry, dict) and target is not None and target.is_file() and not target.is_symlink():
            data = target.read_bytes()
            entry.update(size=len(data), blake2b=checkpoint._digest([data]))
    manifest["self"] = checkpoint._self_hash(manifest)
    return manifest


def attempt(run, expected):
    """Loads; the arrays that were saved, or a RunError. Anything else fails the test."""
    try:
        generation = checkpoint.load(run, notify=check_sentence, repair=False)
    except RunError as error:
        check_sentence(str(error))
        return False
    assert checkpoint.tree_hash(generation.arrays) == expected
    return True


def check_sentence(sentence):
    assert len(sentence) < 3000
    assert sentence.isprintable(), ascii(sentence)


def test_mutated_manifests_are_refused(made):
    rng = random.Random(1)
    path = made / "checkpoints" / "ck.0"
    text = (path / "MANIFEST.json").read_text()
    accepted = 0
    tracemalloc.start()
    for case in range(CASES):
        manifest = mutate(json.loads(text), rng)
        if rng.random() < 0.8:
            manifest = resealed(manifest, path)
        (path / "MANIFEST.json").write_text(json.dumps(manifest))
        start = time.perf_counter()
        try:
            generation = checkpoint.load(made, notify=check_sentence, repair=False)
            accepted += 1
            assert isinstance(generation.meta, dict)
        except RunError as error:
            check_sentence(str(error))
        assert time.perf_counter() - start < 1, case
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20  # 10^12 elements were never allocated
    assert accepted < CASES // 2  # what is accepted changed a step, a fingerprint, or only what describes it
    assert accepted > 0


def test_mutated_headers_are_refused(made):
    rng = random.Random(2)
    path = made / "checkpoints" / "ck.0"
    expected = checkpoint.tree_hash(checkpoint.load(made, notify=check_sentence).arrays)
    original = (path / "arrays.safetensors").read_bytes()
    length = int.from_bytes(original[:8], "little")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    loaded = 0
    for _ in range(CASES // 2):
        text = json.dumps(mutate(json.loads(original[8 : 8 + length]), rng)).encode()
        size = rng.choice([len(text)] * 6 + [0, len(text) + 9, 2**63, 10**8])
        data = size.to_bytes(8, "little") + text + original[8 + length :]
        (path / "arrays.safetensors").write_bytes(data)
        (path / "MANIFEST.json").write_text(json.dumps(resealed(manifest, path)))
        loaded += attempt(made, expected)
    assert loaded < CASES // 20


DOCUMENTS = {
    "nan": '{"x": NaN}',
    "infinity": '{"x": -Infinity}',
    "overflow": '{"x": 1e999}',
    "duplicate": '{"x": 1, "x": 2}',
    "duplicate inside": '{"x": [{"y": 1, "y": 1}]}',
    "nested lists": "[" * 100_000,
    "nested, closed": "[" * 100_000 + "]" * 100_000,
    "nested objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "65 deep": "[" * 66 + "]" * 66,
    "half": '{"x": ',
    "empty": "",
    "latin": b'{"x": "\xe9"}',
    "nul": "\0" * 100,
    "huge number": '{"x": ' + "9" * 10_000 + "}",
    "pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "too large": '{"x": "' + "y" * (17 << 20) + '"}',
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_odd_json_is_refused_everywhere(made, tmp_path, name):
    document = DOCUMENTS[name]
    data = document if isinstance(document, bytes) else document.encode()
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(RunError, match=r"x\.json cannot be read as JSON"):
        disk.read_json(tmp_path / "x.json")
    path = made / "checkpoints" / "ck.0"
    (path / "state.json").write_bytes(data)
    manifest = resealed(json.loads((path / "MANIFEST.json").read_text()), path)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert not attempt(made, "")
    (path / "MANIFEST.json").write_bytes(data)
    assert not attempt(made, "")


def test_64_levels_are_allowed(tmp_path):
    (tmp_path / "x.json").write_text("[" * 64 + "]" * 64)
    assert isinstance(disk.read_json(tmp_path / "x.json"), list)


def test_names_never_lead_outside(made, tmp_path):
    secret = tmp_path / "secret.safetensors"
    path = made / "checkpoints" / "ck.0"
    shutil.copy(path / "arrays.safetensors", secret)
    before = secret.read_bytes()
    text = (path / "MANIFEST.json").read_text()
    for name in ("../../../secret.safetensors", str(secret), "link", "..", "a/../b", ".hidden/../x"):
        manifest = json.loads(text)
        manifest["files"][name] = manifest["files"].pop("arrays.safetensors")
        for entry in manifest["arrays"].values():
            entry["files"] = [name if f == "arrays.safetensors" else f for f in entry["files"]]
        manifest["self"] = checkpoint._self_hash(manifest)
        (path / "MANIFEST.json").write_text(json.dumps(manifest))
        if not (path / "link").is_symlink():
            (path / "link").symlink_to(secret)
        assert not attempt(made, ""), name
    assert secret.read_bytes() == before


def test_the_generation_itself_may_not_be_a_link(made, tmp_path):
    (made / "checkpoints" / "ck.0").rename(tmp_path / "elsewhere")
    (made / "checkpoints" / "ck.0").symlink_to(tmp_path / "elsewhere")
    told = []
    with pytest.raises(RunError, match="no intact"):
        checkpoint.load(made, notify=told.append)
    assert (tmp_path / "elsewhere" / "MANIFEST.json").exists()


AUDITED = """
import json, sys
import numpy as np
from pathlib import Path
from polyak.errors import RunError
from polyak.runs import checkpoint, folder, sinks
np.savez("warm.npz", timesteps=np.zeros(1))
sinks._read_evaluations(Path("warm.npz"))  # NumPy and zipfile import parts of themselves at their first use
events = set()
def record(event, args):
    events.add(f"compile {args[1]}" if event == "compile" else event)
position = {"step": 0, "rows": 10**9, "style": "sb3"}
position["seeds"] = {"0": {"monitor": 9, "evaluations": 9, "events": {}}}
seen = []
def part(call):
    events.clear()
    for run in map(Path, sys.argv[1:]):
        try:
            call(run)
        except RunError as error:
            str(error)
    seen.append(sorted(events))
sys.addaudithook(record)
part(lambda run: checkpoint.load(run, notify=str))
part(lambda run: folder.read_json(run / "config.json"))
part(lambda run: sinks.truncate(run, position))
print(json.dumps(seen))
"""

# Names only; of `compile` only NumPy's literal reader, which parses a file's header into a tree and runs nothing.
ALLOWED = {"open", "os.listdir", "os.rename", "os.remove", "os.truncate", "os.scandir", "glob.glob", "glob.glob/2",
           "pathlib.Path.glob", "object.__getattr__", "compile <unknown>"}  # fmt: skip


def test_loading_runs_no_code(made, tmp_path):
    """Every event that the interpreter audits while hostile and good runs are loaded is on a list of harmless ones."""
    evil = b"cposix\nsystem\n(S'touch CANARY'\ntR."
    runs = [made]
    for name in ("state.json", "MANIFEST.json", "arrays.safetensors", "config.json"):
        run = tmp_path / name.replace(".", "_")
        shutil.copytree(made, run)
        (run / "checkpoints" / "ck.0" / name).write_bytes(evil)
        runs.append(run)
    (made / "seed_0").mkdir()
    np.savez(made / "seed_0" / "evaluations.npz", timesteps=np.array([1]), results=np.array([{}], object))
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, *map(str, runs)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checkpoints, configs, metrics = map(set, json.loads(done.stdout))
    assert {"open", "os.listdir", "os.rename"} <= checkpoints  # the hook was on
    assert checkpoints | configs | metrics <= ALLOWED
    assert "compile <unknown>" not in checkpoints | configs
    assert not list(tmp_path.glob("**/CANARY"))
