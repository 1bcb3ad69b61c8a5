"""Generations: what goes in comes out bit for bit, damage is never loaded (K5), old ones go when they may."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from polyak.cranks import filled
from polyak.errors import RunError
from polyak.runs import checkpoint, disk

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]


def variety():
    rng = np.random.default_rng(0)
    arrays = {f"tree/{d}/leaf": (100 * rng.random((3, 5))).astype(d) for d in DTYPES}
    return arrays | {
        "scalar": np.array(7, np.uint32),
        "truth": np.array(True),
        "nothing": np.zeros((0, 4), np.float32),
        "hollow": np.zeros((3, 0, 2), np.uint8),
        "nan": np.array([np.nan, -np.inf, -0.0], np.float32),
        "transposed": np.arange(12, dtype=np.float64).reshape(3, 4).T,
        "big endian": np.arange(5, dtype=">i4"),
        "replay/obs": rng.integers(0, 255, (1000, 7), np.uint8),
        "replay/fortran": np.asfortranarray(rng.random((77, 50))),
    }


def save(run, value=0, arrays=None, **options):
    arrays = {"w": np.full(3, value, np.float32)} if arrays is None else arrays
    return checkpoint.save(run, arrays, {"value": value}, step=value, fingerprint={}, **options)


def load(run, **options):
    told = []
    return checkpoint.load(run, notify=told.append, **options), told


def numbers(run):
    return sorted(int(name[3:]) for name in os.listdir(run / "checkpoints") if name[3:].isdigit())


@pytest.fixture
def _small_segments(monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 1000)
    monkeypatch.setattr(checkpoint, "SEGMENT", 2048)


@pytest.mark.usefixtures("_small_segments")
def test_every_dtype_and_shape_returns_bit_for_bit(tmp_path):
    arrays = variety()
    meta = {"best": 1.5, "rng": {"state": 2**127, "words": [1, 2]}, "name": "ü\x1b\u202e"}
    saved = checkpoint.save(tmp_path, arrays, meta, step=42, fingerprint={"x64": False}, pin=True)
    loaded, told = load(tmp_path)
    assert told == []
    assert (loaded.number, loaded.step, loaded.meta, loaded.fingerprint) == (0, 42, meta, {"x64": False})
    assert (loaded.best, loaded.digest) == (0, saved.digest)
    assert loaded.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        got = loaded.arrays[name]
        assert got.shape == array.shape, name
        assert got.dtype == array.dtype.newbyteorder("="), name
        assert got.tobytes() == array.astype(got.dtype).tobytes(), name
        assert got.flags.writeable
        assert got.flags.c_contiguous
    assert checkpoint.tree_hash(arrays) == checkpoint.tree_hash(loaded.arrays)
    assert [p for p in saved.path.iterdir() if p.name.startswith("seg.")]
    assert all(p.stat().st_mode & 0o077 == 0 for p in [saved.path, *saved.path.iterdir()])


@pytest.mark.usefixtures("_small_segments")
def test_files_are_ordinary_safetensors(tmp_path):
    arrays = variety()
    path = save(tmp_path, arrays=arrays).path
    small = load_file(path / "arrays.safetensors")
    assert np.array_equal(small["tree/f4/leaf"], arrays["tree/f4/leaf"])
    assert small["scalar"].shape == ()
    manifest = json.loads((path / "MANIFEST.json").read_text())
    pieces = [load_file(path / name)["replay/obs"] for name in manifest["arrays"]["replay/obs"]["files"]]
    assert np.array_equal(np.concatenate(pieces), arrays["replay/obs"])


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {"v": a["w"]},
        lambda a: {"v": a["w"]},
        lambda a: {"w": a["w"].reshape(3, 1)},
        lambda a: {"w": a["w"].view(np.int32)},
        lambda a: {"w": np.nextafter(a["w"], np.float32(9))},
        lambda a: {"w": a["w"][::-1]},
        lambda a: {},
    ],
)
def test_tree_hash_sees_names_shapes_dtypes_and_bits(change):
    arrays = {"w": np.arange(3, dtype=np.float32)}
    assert checkpoint.tree_hash(change(arrays)) != checkpoint.tree_hash(arrays)


def test_tree_hash_does_not_see_order_layout_or_byte_order():
    x, y = np.arange(12.0).reshape(3, 4), np.arange(4, dtype=np.int32)
    assert len(checkpoint.tree_hash({"x": x})) == 64
    assert checkpoint.tree_hash({"x": x, "y": y}) == checkpoint.tree_hash(
        {"y": y.astype(">i4"), "x": np.asfortranarray(x)}
    )


@pytest.mark.usefixtures("_small_segments")
def test_unchanged_segments_are_the_same_file(tmp_path):
    replay = np.arange(8 * 512, dtype=np.float32).reshape(32, 128)  # 4 rows a segment
    first = save(tmp_path, arrays={"replay": replay})
    replay = replay.copy()
    replay[5] = -1  # the second segment alone
    second = save(tmp_path, 1, arrays={"replay": replay})
    inodes = [{p.stat().st_ino for p in g.path.iterdir() if p.name.startswith("seg.")} for g in (first, second)]
    assert [len(found) for found in inodes] == [8, 8]
    assert len(inodes[0] & inodes[1]) == 7
    assert np.array_equal(load(tmp_path)[0].arrays["replay"], replay)
    assert (load(tmp_path, number=0)[0].arrays["replay"][5] >= 0).all()


@pytest.mark.usefixtures("_small_segments")
def test_equal_segments_are_stored_once(tmp_path):
    path = save(tmp_path, arrays={"replay": np.zeros((64, 128), np.float32)}).path
    assert len(list(path.glob("seg.*"))) == 1
    assert load(tmp_path)[0].arrays["replay"].shape == (64, 128)


@pytest.mark.usefixtures("_small_segments")
def test_without_links_segments_are_written(tmp_path, monkeypatch):
    class NoLinks(disk.Disk):
        def link(self, old: Path, new: Path) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(disk, "fs", NoLinks())
    replay = np.arange(4096.0).reshape(32, 128)
    save(tmp_path, arrays={"replay": replay})
    path = save(tmp_path, 1, arrays={"replay": replay}).path
    assert all(p.stat().st_nlink == 1 for p in path.iterdir())
    assert np.array_equal(load(tmp_path)[0].arrays["replay"], replay)


@pytest.mark.usefixtures("_small_segments")
def test_rot_in_a_linked_segment_is_healed_by_later_saves(tmp_path):
    replay = np.arange(8 * 512, dtype=np.float32).reshape(32, 128)
    path = save(tmp_path, arrays={"replay": replay}).path
    flip(sorted(path.glob("seg.*"))[3], 900, 4)
    for value in range(1, checkpoint.RECHECK + 1):
        save(tmp_path, value, arrays={"replay": replay})
    generation, told = load(tmp_path)
    assert told == []
    assert np.array_equal(generation.arrays["replay"], replay)


def test_large_arrays_are_quick_when_little_changed(tmp_path):
    replay = np.random.default_rng(0).integers(0, 255, (96 << 10, 1024), np.uint8)  # 96 MiB
    save(tmp_path, arrays={"replay": replay})
    replay[12345] = 0
    start = time.perf_counter()
    generation = save(tmp_path, 1, arrays={"replay": replay})
    assert time.perf_counter() - start < 4
    fresh = [p for p in generation.path.glob("seg.*") if p.stat().st_nlink == 1]
    assert len(fresh) == 1
    assert len(list(generation.path.glob("seg.*"))) == 6


# -- damage


def flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.chmod(0o600)
    path.write_bytes(data)


def damage(kind, newest, older, rng):
    """Harms the newest generation in one way."""
    files = sorted(newest.iterdir())
    path = rng.choice(files)
    if kind == "flip":
        flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
    elif kind == "truncate":
        os.truncate(path, rng.randrange(path.stat().st_size))
    elif kind == "grow":
        path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 50)))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        other = rng.choice([p for p in files if p != path])
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two)
        other.write_bytes(one)
    elif kind == "old file":
        path.write_bytes((older / path.name).read_bytes() if (older / path.name).exists() else b"?")
    elif kind == "old generation":
        shutil.rmtree(newest)
        shutil.copytree(older, newest)
    elif kind == "link":
        path.rename(newest.parent / "elsewhere")
        path.symlink_to(newest.parent / "elsewhere")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)


KINDS = ["flip", "truncate", "grow", "empty", "delete", "swap", "old file", "old generation", "link", "folder", "pipe"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_small_segments")
def test_damage_is_rejected_or_harmless(tmp_path, kind):
    rng = random.Random(kind)
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text("{}")
    trees = [{k: v + v.dtype.type(n) for k, v in variety().items() if v.dtype != bool} for n in range(2)]
    for value in range(2):
        save(made, value, arrays=trees[value])
    hashes = [checkpoint.tree_hash(tree) for tree in trees]
    rejected = 0
    for case in range(25):
        run = tmp_path / str(case)
        shutil.copytree(made, run)
        damage(kind, run / "checkpoints" / "ck.1", run / "checkpoints" / "ck.0", rng)
        generation, told = load(run)
        assert checkpoint.tree_hash(generation.arrays) == hashes[generation.meta["value"]]
        if generation.number == 0:
            rejected += 1
            assert [p for p in (run / "checkpoints").iterdir() if p.name.startswith("ck.1.bad.")]
            assert "ck.1" in told[0]
            assert "set aside" in told[0]
            assert "of training are lost" in told[1]
            assert save(run, 5).number == 2
        else:
            assert told == []
    assert rejected >= 12


def test_verify_names_the_damaged_generation(tmp_path):
    for value in range(3):
        save(tmp_path, value, pin=value == 1)
    flip(tmp_path / "checkpoints" / "ck.1" / "arrays.safetensors", 200, 3)
    results = checkpoint.verify(tmp_path)
    assert [(name, ok) for name, ok, _ in results] == [("ck.0", True), ("ck.1", False), ("ck.2", True)]
    assert "arrays.safetensors" in results[1][2]
    assert "hash" in results[1][2]
    assert numbers(tmp_path) == [0, 1, 2]  # verify changes nothing


def test_verify_sees_a_generation_of_another_history(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for value in range(2):
            save(tmp_path / name, value)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "ck.1")
    shutil.copytree(tmp_path / "b" / "checkpoints" / "ck.1", tmp_path / "a" / "checkpoints" / "ck.1")
    assert [ok for _, ok, _ in checkpoint.verify(tmp_path / "a")] == [True, False]


def test_drafts_are_no_generations(tmp_path):
    """A process that was killed during its first save left a draft and no checkpoint."""
    (tmp_path / "checkpoints" / "ck.0.tmp.1.ab").mkdir(parents=True)
    (tmp_path / "checkpoints" / "ck.1.bad.7").mkdir()
    assert checkpoint.generations(tmp_path) == []
    assert save(tmp_path).number == 2
    assert checkpoint.generations(tmp_path) == [2]


def test_nothing_intact_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="has no checkpoint to load"):
        load(tmp_path)
    save(tmp_path)
    flip(tmp_path / "checkpoints" / "ck.0" / "state.json", 3, 1)
    with pytest.raises(RunError, match="has no intact checkpoint to load"):
        load(tmp_path)
    with pytest.raises(RunError, match="has no checkpoint 7; it has: none"):
        load(tmp_path, number=7)


def test_readers_rename_nothing(tmp_path):
    save(tmp_path)
    save(tmp_path, 1)
    flip(tmp_path / "checkpoints" / "ck.1" / "state.json", 3, 1)
    generation, told = load(tmp_path, repair=False)
    assert generation.number == 0
    assert len(told) == 2
    assert numbers(tmp_path) == [0, 1]


def rewrite(path, change):
    """Changes a manifest and gives it the right hash again, as an author of a hostile file would."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    change(manifest)
    manifest["self"] = checkpoint._self_hash(manifest)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_newer_format_is_refused_and_left_alone(tmp_path):
    save(tmp_path)
    path = save(tmp_path, 1).path
    rewrite(path, lambda m: m.update(schema=2, something="new"))
    with pytest.raises(RunError, match="newer polyak"):
        load(tmp_path)
    with pytest.raises(RunError, match="newer polyak"):
        save(tmp_path, 2)
    assert numbers(tmp_path) == [0, 1]


def test_a_flipped_schema_is_damage_and_not_a_newer_format(tmp_path):
    save(tmp_path)
    path = save(tmp_path, 1).path / "MANIFEST.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    assert load(tmp_path)[0].number == 0


def test_too_little_memory_is_refused_and_nothing_renamed(tmp_path, monkeypatch):
    save(tmp_path)
    monkeypatch.setattr(checkpoint, "available", lambda: 4)
    with pytest.raises(RunError, match="of memory"):
        load(tmp_path)
    assert numbers(tmp_path) == [0]


# -- retention


def test_three_newest_hourly_and_best_are_kept(tmp_path, monkeypatch):
    now = 1_000_000 * 3600.0
    monkeypatch.setattr(checkpoint.time, "time", lambda: now)
    for value in range(12):
        now += 1200  # three an hour: 0, 1 | 2, 3, 4 | 5, 6, 7 | 8, 9, 10 | 11
        save(tmp_path, value, pin=value in (3, 6))
    assert numbers(tmp_path) == [0, 2, 5, 6, 8, 9, 10, 11]
    assert checkpoint.best(tmp_path) == 6


def test_a_former_best_becomes_ordinary(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.time, "time", lambda: 3600.0 * 5)
    for value in range(5):
        save(tmp_path, value, pin=value == 1)
    assert numbers(tmp_path) == [0, 1, 2, 3, 4]
    for value in range(5, 9):
        save(tmp_path, value, pin=value == 5)
    assert numbers(tmp_path) == [0, 5, 6, 7, 8]
    flip(tmp_path / "checkpoints" / "ck.8" / "state.json", 3, 1)
    assert load(tmp_path)[0].best == 5


def test_nothing_is_deleted_when_the_newest_reads_back_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.time, "time", lambda: 3600.0 * 5)
    for value in range(4):
        save(tmp_path, value)
    before = numbers(tmp_path)

    class Liar(disk.Disk):
        def write(self, fd: int, data: disk.Buffer) -> int:
            return super().write(fd, bytes(len(data)) if len(data) == 12 else data)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "fs", Liar())
        with pytest.raises(RunError, match="disk may be failing") as caught:
            save(tmp_path, 9)
    assert isinstance(caught.value.__cause__, OSError)
    assert numbers(tmp_path) == before
    generation, told = load(tmp_path)
    assert generation.meta["value"] == 3
    assert told == []


def test_sweep_takes_only_what_dead_processes_left(tmp_path):
    save(tmp_path)
    root = tmp_path / "checkpoints"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in (f"ck.1.tmp.{dead.pid}.ab", f"ck.0.old.{dead.pid}.cd", "ck.2.tmp.1.ef", "ck.x.tmp.3.ab", "notes"):
        (root / name).mkdir()
        (root / name / "seg").symlink_to(outside)
    checkpoint.sweep(tmp_path)
    assert sorted(os.listdir(root)) == ["ck.0", "ck.2.tmp.1.ef", "ck.x.tmp.3.ab", "notes"]
    assert outside.read_text() == "precious"
    checkpoint.sweep(tmp_path / "no such run")


# -- what cannot be saved


def test_a_full_disk_is_refused_before_writing(tmp_path, monkeypatch):
    save(tmp_path)

    class Full(disk.Disk):
        def free(self, path: Path) -> int:
            return 1000

    monkeypatch.setattr(disk, "fs", Full())
    with pytest.raises(RunError, match=r"needs .* MB, and 1\.0 kB are free") as caught:
        save(tmp_path, 1, arrays={"w": np.zeros(10**6, np.float32)})
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert load(tmp_path)[0].number == 0


def test_the_ballast_pays_for_the_last_save(tmp_path, monkeypatch):
    save(tmp_path)
    checkpoint.reserve(tmp_path, 5_000_000)
    ballast = tmp_path / "checkpoints" / "ballast"
    assert ballast.stat().st_blocks * 512 >= 5_000_000

    class Full(disk.Disk):
        def free(self, path: Path) -> int:
            return 0 if ballast.exists() else 5_000_000

    monkeypatch.setattr(disk, "fs", Full())
    arrays = {"w": np.zeros(10**6, np.float32)}
    with pytest.raises(RunError, match="are free on that disk"):
        save(tmp_path, 1, arrays=arrays)
    assert save(tmp_path, 1, arrays=arrays, emergency=True).number == 1
    assert not ballast.exists()


def test_a_size_limit_of_the_system_is_survived(tmp_path):
    """RLIMIT_FSIZE: the write itself fails, after the space check passed."""
    save(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match="older ones are intact") as caught:
            save(tmp_path, 1, arrays={"w": np.zeros(10**6, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.__cause__.errno == errno.EFBIG
    assert os.listdir(tmp_path / "checkpoints") == ["ck.0"]
    assert save(tmp_path, 2).number == 1


@pytest.mark.parametrize(
    ("arrays", "meta", "words"),
    [
        ({"w": np.array(["text"])}, {}, "dtype"),
        ({"w": np.array([{}], object)}, {}, "dtype object"),
        ({"": np.zeros(2)}, {}, "named"),
        ({"a\nb": np.zeros(2)}, {}, "named"),
        ({"__metadata__": np.zeros(2)}, {}, "named"),
        ({}, {"x": float("nan")}, "JSON"),
        ({}, {"x": np.zeros(2)}, "JSON"),
        ({}, {"x": "y" * (17 << 20)}, "more than"),
    ],
)
def test_what_could_not_be_read_again_is_refused(tmp_path, arrays, meta, words):
    with pytest.raises(RunError, match=words):
        checkpoint.save(tmp_path, arrays, meta, step=0, fingerprint={})
    assert numbers(tmp_path) == []


def test_checkpoints_may_not_be_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="symbolic link"):
        save(tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_large_array_is_read_in_blocks_when_it_is_wanted(tmp_path):
    replay = np.arange(3 * checkpoint.SEGMENT // 4 + 96, dtype=np.float32).reshape(-1, 8)
    save(tmp_path, arrays={"replay": replay, "w": np.ones(3)})
    loaded = checkpoint.load(tmp_path, notify=print, whole=False).arrays
    assert isinstance(loaded["w"], np.ndarray) and isinstance(loaded["replay"], checkpoint.Segmented)
    blocks = list(loaded["replay"].blocks())
    assert max(block.nbytes for _, block in blocks) <= checkpoint.SEGMENT and len(blocks) == 4
    assert all(np.array_equal(block, replay[at : at + len(block)]) for at, block in blocks)
    assert np.array_equal(np.asarray(loaded["replay"]), replay)
    state = filled({"replay": jax.ShapeDtypeStruct(replay.shape, replay.dtype)}, {"x/replay": loaded["replay"]}, "x")
    assert np.array_equal(state["replay"], replay)
    (tmp_path / "checkpoints" / "ck.0" / loaded["replay"].spans[2][0]).unlink()
    with pytest.raises(RunError, match=r"'replay' of ck.0 in .* can't be read"):
        list(loaded["replay"].blocks())
