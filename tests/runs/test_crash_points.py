"""Every call that changes the disk, and a crash or an error at each: a valid generation is always there (K3, K7)."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from faults import FaultyDisk, PowerCut

from polyak.errors import RunError
from polyak.runs import checkpoint, disk, folder

ROWS = 24


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 256)
    monkeypatch.setattr(checkpoint, "SEGMENT", 512)


def arrays(value):
    replay = np.zeros((ROWS, 16), np.float32)
    replay[: 4 * value] = np.arange(4 * value, dtype=np.float32)[:, None]
    return {"agent/w": np.full((3, 2), value, np.float32), "replay/obs": replay, "step": np.uint32(value)}


def save(run, value, **options):
    return checkpoint.save(run, arrays(value), {"value": value}, step=10 * value, fingerprint={"a": 1}, **options)


def refusal(run):
    try:
        save(run, 4)
    except RunError as error:
        return error
    return None


def prepare(run):
    """A run with 4 generations; made once, then copied."""
    made = run.parent / "made"
    if not made.exists():
        made.mkdir()
        folder.write_json(made / "config.json", {"x": 1})
        for value in range(4):
            save(made, value)
    shutil.copytree(made, run)


def assert_valid(run, allowed):
    told = []
    generation = checkpoint.load(run, notify=told.append)
    value = generation.meta["value"]
    assert value in allowed
    assert checkpoint.tree_hash(generation.arrays) == checkpoint.tree_hash(arrays(value))
    return told


def count_calls(tmp_path, monkeypatch):
    prepare(tmp_path / "dry")
    counted = FaultyDisk()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "fs", counted)
        save(tmp_path / "dry", 4)
    kinds = {call.split()[0] for call in counted.calls}
    assert kinds == {"create", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir"}
    return len(counted.calls)


def cut(_: object = None):
    raise PowerCut


@pytest.mark.parametrize("loss", ["none", "content", "names"])
def test_every_crash_point_leaves_a_valid_generation(tmp_path, monkeypatch, loss):
    total = count_calls(tmp_path, monkeypatch)
    assert total >= 40
    for at in range(total):
        run = tmp_path / f"{loss}{at}"
        prepare(run)
        faulty = FaultyDisk(at, cut)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "fs", faulty)
            with pytest.raises(PowerCut):
                save(run, 4)
        if loss != "none":
            faulty.lose(names=loss == "names")
        told = assert_valid(run, {3, 4})
        assert not told, f"crash at {faulty.calls[-1]} made load complain: {told}"
        assert all(ok for _, ok, _ in checkpoint.verify(run)), f"crash at {faulty.calls[-1]} left half a generation"
        checkpoint.sweep(run)
        assert save(run, 5).number in (4, 5)
        assert_valid(run, {5})
        names = os.listdir(run / "checkpoints")
        assert not [name for name in names if ".tmp." in name or ".old." in name], names


@pytest.mark.parametrize("older", [1, 4])  # with one, nothing is retired, whose sync would cover a missing one
def test_a_save_that_returned_is_durable(tmp_path, monkeypatch, older):
    """A power cut right after `save`: nothing that it wrote may be lost."""
    prepare(tmp_path / "run")
    for number in range(3, older - 1, -1):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"ck.{number}")
    faulty = FaultyDisk()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "fs", faulty)
        save(tmp_path / "run", 4)
    faulty.lose(names=True)
    assert not assert_valid(tmp_path / "run", {4})


def test_first_save_can_crash_anywhere(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    counted = FaultyDisk()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "fs", counted)
        save(tmp_path / "run", 0)
    for at in range(len(counted.calls)):
        run = tmp_path / str(at)
        run.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(disk, "fs", FaultyDisk(at, cut))
            with pytest.raises(PowerCut):
                save(run, 0)
        checkpoint.sweep(run)
        save(run, 1)
        assert_valid(run, {1})


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_every_error_is_one_sentence_or_harmless(tmp_path, monkeypatch, code):
    def fail():
        raise OSError(code, os.strerror(code))

    total = count_calls(tmp_path, monkeypatch)
    refused = 0
    for at in range(total):
        run = tmp_path / str(at)
        prepare(run)
        faulty = FaultyDisk(at, fail)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "fs", faulty)
            error = refusal(run)
        if error is not None:
            refused += 1
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.errno == code
            assert os.strerror(code) in str(error)
        assert not assert_valid(run, {3, 4})
        assert not [name for name in os.listdir(run / "checkpoints") if ".tmp." in name]
        save(run, 5)
        assert_valid(run, {5})
    assert refused > total // 2  # the rest: a link that is written instead, an old generation that stays


def test_errors_that_last_leave_the_older_generation(tmp_path, monkeypatch):
    """A disk that refuses everything from call i on, also the tidying up."""

    class Broken(FaultyDisk):
        def _count(self, what: str) -> None:
            self.calls.append(what)
            if len(self.calls) > self.at:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for at in range(0, count_calls(tmp_path, monkeypatch), 3):
        run = tmp_path / str(at)
        prepare(run)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "fs", Broken(at))
            error = refusal(run)
        assert error is None or error.exit_code == 4
        assert not assert_valid(run, {3, 4})


def test_unreadable_newest_generation_falls_back(tmp_path, monkeypatch):
    prepare(tmp_path / "run")

    class Unreadable(disk.Disk):
        def read(self, fd: int, view: memoryview, offset: int) -> int:
            if "ck.3/" in os.readlink(f"/proc/self/fd/{fd}"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(fd, view, offset)

    monkeypatch.setattr(disk, "fs", Unreadable())
    told = assert_valid(tmp_path / "run", {2})
    assert "ck.3" in told[0]
    assert "Input/output error" in told[0]
    assert "lost" in told[1]


def test_atomic_json_is_old_or_new_at_every_crash_point(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    for at in range(12):
        folder.write_json(path, {"v": "old"})
        faulty = FaultyDisk(at, cut)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "fs", faulty)
            try:
                folder.write_json(path, {"v": "new"})
            except PowerCut:
                faulty.lose(names=True)
        assert folder.read_json(path)["v"] in ("old", "new")
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["config.json"]
