"""How much memory is left, and the refusal of arrays that would not fit into it."""

import os
from pathlib import Path

from polyak.errors import PolyakError

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def available() -> int:
    """Bytes that this process may still allocate: what the machine has free, or what its control group leaves."""
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return _free()
    cached = _row(group / "memory.stat", "inactive_file") or 0  # file pages, given back when they are needed
    return min(_free(), max(limit - used + cached, 0))


def _free() -> int:
    """MemAvailable of Linux; elsewhere half of the physical memory, or 4 GB where even that is unknown."""
    found = _row(Path("/proc/meminfo"), "MemAvailable:")
    if found is not None:
        return found * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 << 30


def _number(path: Path) -> int | None:
    """A file's one number; None where there is no such file, or no limit ("max")."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _row(path: Path, label: str) -> int | None:
    """The number behind a label in a file of such rows."""
    try:
        rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
        return next((int(row[1]) for row in rows if row[0] == label), None)
    except (OSError, ValueError, IndexError):
        return None


def require_memory(needed: int, what: str, instead: str) -> None:
    """Refuse arrays that won't fit.

    Args:
        needed: bytes that will be allocated at once.
        what, instead: the sentence's subject and its advice: "the dense model of 50,000 states", "use from_sparse".

    Errors:
        PolyakError: there is less memory than that.
    """
    left = available()
    if needed > left:
        raise PolyakError(f"{what} would take {readable(needed)} of memory, and {readable(left)} are free: {instead}")


def readable(count: int) -> str:
    """Bytes for people: 1536 is "1.5 kB"."""
    size, unit = float(count), 0
    while size >= 1000 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"
