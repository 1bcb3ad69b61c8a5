"""The disk: the system calls that touch a run, durable writing, and JSON that is read with suspicion.

Every call that changes a file goes through `fs`, so that a test can number the calls and end the process, lose
what was not synced, or return an error at any of them (correctness.md K3, K7).
"""

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from polyak.errors import RunError

JSON_BYTES = 16 << 20
JSON_DEPTH = 64
NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]{1,128}")

Buffer = bytes | bytearray | memoryview


class Disk:
    """The system calls, one method each; nothing else in `polyak.runs` changes a file."""

    def open(self, path: str | Path, flags: int, dir_fd: int | None = None) -> int:
        """A descriptor that children do not inherit; a symbolic link as the last part of the path is an error."""
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=dir_fd)

    def read(self, fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

    def write(self, fd: int, data: Buffer) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":  # there fsync leaves the data in the drive's own cache
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path, 0o700)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def free(self, path: Path) -> int:
        """Bytes that this user can still write on the file system of `path`."""
        room = os.statvfs(path)
        return room.f_bavail * room.f_frsize


fs = Disk()


@contextmanager
def opened(path: str | Path, flags: int, dir_fd: int | None = None) -> Generator[int]:
    """`fs.open` with the closing of the descriptor."""
    fd = fs.open(path, flags, dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: Buffer) -> None:
    """Writes all of `data`, in as many calls as the system needs."""
    view = memoryview(data)
    while len(view):
        written = fs.write(fd, view)
        if written <= 0:
            raise OSError(errno.EIO, "the system wrote nothing")
        view = view[written:]


def write_new(path: Path, parts: Iterable[Buffer]) -> None:
    """Writes a file that must not exist yet, and syncs it."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        for part in parts:
            write_all(fd, part)
        fs.fsync(fd)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        fs.fsync(fd)


def write_atomic(path: Path, data: Buffer) -> None:
    """Replaces `path` by `data`: after a crash it holds either the old content or all of the new one."""
    draft = path.with_name(f".{path.name}.tmp")  # one name, so that a killed process leaves at most one behind
    with suppress(FileNotFoundError):
        fs.unlink(draft)
    try:
        write_new(draft, [data])
        fs.rename(draft, path)
    except OSError:
        with suppress(OSError):  # the draft may never have come to exist; the first error is the one to report
            fs.unlink(draft)
        raise
    sync_folder(path.parent)


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fills `view` from `offset`; a file that ends before is an OSError."""
    while len(view):
        got = fs.read(fd, view, offset)
        if got <= 0:
            raise OSError(errno.EIO, "the file ends too early")
        view, offset = view[got:], offset + got


def regular_size(fd: int) -> int:
    """The size of an open regular file in bytes; anything else (a pipe, a device) is an OSError."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return status.st_size


def read_capped(path: str | Path, cap: int, dir_fd: int | None = None) -> bytes:
    """The whole of a regular file of at most `cap` bytes; ValueError where it is larger."""
    with opened(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd) as fd:
        size = regular_size(fd)
        if size > cap:
            raise ValueError(f"{size:,} bytes, more than the {cap:,} allowed")
        data = bytearray(size)
        read_into(fd, memoryview(data), 0)
    return bytes(data)


def parse_json(data: bytes) -> Any:
    """The value of a JSON text; ValueError for duplicate keys, NaN, infinities, or nesting deeper than 64."""
    if len(data) > JSON_BYTES:
        raise ValueError(f"{len(data):,} bytes of JSON, more than the {JSON_BYTES:,} allowed")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {JSON_DEPTH}") from None
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {JSON_DEPTH}")


def dump_json(value: Any, *, indent: int | None = None) -> bytes:
    """JSON text that `parse_json` accepts; ValueError or TypeError for what JSON cannot hold (NaN, arrays, ...)."""
    return json.dumps(value, allow_nan=False, indent=indent).encode()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that hashes are taken of: sorted keys, no blanks, ASCII."""
    return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def read_json(path: Path) -> Any:
    """A JSON file of at most 16 MiB, read strictly; RunError names the file and what is wrong with it."""
    try:
        return parse_json(read_capped(path, JSON_BYTES))
    except FileNotFoundError:
        raise RunError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON: {reason(error)}.") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically and durably; RunError where the disk refuses or the value is not JSON (NaN is not)."""
    try:
        write_atomic(path, dump_json(value, indent=2) + b"\n")
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be written: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """What an error says, without the path that it repeats."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def size_text(count: float) -> str:
    """Bytes for people: '1.4 GB'."""
    if count < 1000:
        return f"{count:.0f} bytes"
    power = 1 + (count >= 1e6) + (count >= 1e9)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice in one object")
    return found


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} does not fit into a float")
    return number


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return cast("dict[str, Any]", item).values()
    return cast("list[Any]", item) if isinstance(item, list) else ()
