"""A disk that numbers its calls and dies, loses what was not synced, or returns an error at one of them."""

import os
from collections.abc import Callable
from pathlib import Path

from polyak.runs.disk import Buffer, Disk


class PowerCut(BaseException):
    """The process ended here. Not an Exception: nothing may catch it."""


class FaultyDisk(Disk):
    """Counts the calls that change the disk; at call `at` runs `fault`, which raises.

    It remembers what a power cut may undo: files written but not synced, and names made but whose folder was not
    synced since. `fsync` itself only keeps these books, which makes hundreds of crash points quick.
    """

    def __init__(self, at: int = -1, fault: Callable[[], None] | None = None):
        self.at, self.fault = at, fault
        self.calls: list[str] = []
        self.unsynced_files: dict[str, int] = {}
        self.unsynced_names: list[tuple[str, str, str]] = []
        self.replaced: dict[str, bytes] = {}
        self.renames: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}

    def _count(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) - 1 == self.at and self.fault is not None:
            self.fault()

    def open(self, path: str | Path, flags: int, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            self._count(f"create {path}")
        fd = super().open(path, flags, dir_fd)
        self._paths[fd] = str(path)
        if flags & os.O_CREAT:
            self.unsynced_names.append(("create", str(path), ""))
        return fd

    def write(self, fd: int, data: Buffer) -> int:
        self._count(f"write {self._paths[fd]}")
        self.unsynced_files[self._paths[fd]] = 1
        half = max(1, len(data) // 2)  # short writes, so that a file can be half-written
        return super().write(fd, memoryview(data)[:half])

    def fsync(self, fd: int) -> None:
        path = self._paths[fd]
        self._count(f"fsync {path}")
        self.unsynced_files.pop(path, None)
        self.unsynced_names = [
            name for name in self.unsynced_names if path not in {str(Path(p).parent) for p in name[1:] if p}
        ]

    def mkdir(self, path: Path) -> None:
        self._count(f"mkdir {path}")
        super().mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        self._count(f"rename {old} {new}")
        if os.path.isfile(new):
            self.replaced[str(new)] = new.read_bytes()
        super().rename(old, new)
        self.unsynced_names.append(("rename", str(old), str(new)))
        self.renames.append((str(old), str(new)))

    def link(self, old: Path, new: Path) -> None:
        self._count(f"link {old} {new}")
        super().link(old, new)
        self.unsynced_names.append(("create", str(new), ""))

    def unlink(self, path: Path) -> None:
        self._count(f"unlink {path}")
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self._count(f"rmdir {path}")
        super().rmdir(path)

    def truncate(self, fd: int, size: int) -> None:
        self._count(f"truncate {self._paths[fd]}")
        super().truncate(fd, size)

    def lose(self, names: bool) -> None:
        """What a power cut may take: the content of unsynced files, and, if `names`, unsynced names."""
        for path in self.unsynced_files:
            moved = self._moved(path)
            if os.path.exists(moved):
                os.truncate(moved, os.path.getsize(moved) // 2)
        if not names:
            return
        for what, old, new in reversed(self.unsynced_names):
            if what == "rename" and os.path.exists(new) and not os.path.exists(old):
                os.rename(new, old)
                self.renames.remove((old, new))
                if new in self.replaced:
                    Path(new).write_bytes(self.replaced[new])
        for what, old, _ in self.unsynced_names:
            if what == "create" and os.path.exists(self._moved(old)):
                os.unlink(self._moved(old))

    def _moved(self, path: str) -> str:
        """Where a file is now: a synced folder that was renamed may hold names that were never synced."""
        for old, new in self.renames:
            if path == old or path.startswith(old + "/"):
                path = new + path[len(old) :]
        return path
