"""What has to be settled before jax starts: a compiler flag, dispatch, and where compiled programs are kept.

`prepare` runs when polyak is imported, takes milliseconds, and imports no jax.
"""

import ctypes
import hashlib
import os
import platform
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
"""XLA's name for the fusion that computes wrong numbers; the empty value switches it off (jax#39103)."""

AFFECTED = ((0, 9, 1), (0, 10, 2))
"""First and last jaxlib that miscompile on CPU: without the flag, errors up to 101 % in a vmapped small product."""


def prepare() -> None:
    """Sets what polyak needs of jax, and leaves alone whatever the user has set.

    Where jax is already running on an affected version without the flag, the canary decides.

    Errors:
        PolyakError: jax was started before polyak was imported, and computes wrong numbers.
    """
    flags, jaxlib = os.environ.get("XLA_FLAGS", ""), numbers(jaxlib_version())
    late = _needs_flag(jaxlib, flags) and _backend_started()
    if _needs_flag(jaxlib, flags):
        os.environ["XLA_FLAGS"] = with_flag(flags, jaxlib)
    for name, value in _settings().items():
        _set(name, value)
    if late:
        from polyak.doctor import require_canary

        require_canary("jax was started before polyak was imported, so XLA no longer takes the flag that prevents it")


def with_flag(flags: str, jaxlib: tuple[int, ...]) -> str:
    """XLA_FLAGS with ours appended where this jaxlib needs it: XLA ends the process on a flag that it doesn't know."""
    return f"{flags} {FUSION_FLAG}=".strip() if _needs_flag(jaxlib, flags) else flags


def _needs_flag(jaxlib: tuple[int, ...], flags: str) -> bool:
    return AFFECTED[0] <= jaxlib <= AFFECTED[1] and FUSION_FLAG not in flags


@cache
def jaxlib_version() -> str:
    """The installed jaxlib from its package metadata, "" where there is none."""
    try:
        return metadata.version("jaxlib")
    except metadata.PackageNotFoundError:
        return ""


# mallopt's own numbers: no mmap below 1 GB, no trimming below 2 GB, grow by 64 MB, one arena.
_MALLOC = {-3: 1 << 30, -1: (1 << 31) - 1, -2: 64 << 20, -8: 1}


def numbers(version: str) -> tuple[int, ...]:
    """A version's first three numbers: "0.10.2.dev3" is (0, 10, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


@cache
def cpu() -> str:
    """Sixteen hex digits that tell CPUs apart whose machine code may differ: architecture and instruction sets."""
    features = platform.machine() + platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        features += platform.platform()
    return hashlib.blake2b(features.encode(), digest_size=8).hexdigest()


def cache_folder() -> Path | None:
    """Where this user's compiled programs and canary results are kept, made if need be with rights for nobody else.

    None in strict mode (`POLYAK_STRICT=1`), and where the folder can't be made or is not this user's own: what lies in
    it is executed.
    """
    if os.environ.get("POLYAK_STRICT", "0") not in ("", "0"):
        return None
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    folder = root / "polyak" / f"jaxlib-{jaxlib_version()}-{cpu()}"
    try:
        for place in (folder.parent, folder):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = place.lstat()
            if place.is_symlink() or (hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022)):
                return None
        return folder if os.access(folder, os.W_OK) else None
    except OSError:
        return None


def settle() -> None:
    """What only jax itself can be told, once it is imported: to dispatch at once (an act() of 11 µs instead of 26).

    It has no effect after the first computation, so `polyak`'s own names call it when they are first used.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _keep_memory()


def _keep_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system and faulting it in again, page by page.

    XLA allocates a program's temporary buffer at every call. For DQN on pixels (39 MB) that was 2,400 page faults per
    environment step and 40 % of the time; with these settings there are none. Elsewhere than on glibc nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        for option, value in _MALLOC.items():
            ctypes.CDLL(None).mallopt(option, value)


def give_memory_back() -> None:
    """Give freed memory back after all: where another large array would not fit into its holes."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _settings() -> dict[str, str | float | int]:
    """jax's configuration of the compilation cache, by its own names; {} where there is none."""
    folder = cache_folder()
    if folder is None:
        return {}
    return {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.1,  # first calls take 0.7 s instead of 4.0
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def _set(name: str, value: str | float | int) -> None:
    """Into the environment, where jax reads it once imported; into jax itself where it already is."""
    variable = name.upper()
    if variable in os.environ:
        return
    if "jax" not in sys.modules:
        os.environ[variable] = str(value)
        return
    import jax

    if name != "jax_compilation_cache_dir" or jax.config.jax_compilation_cache_dir is None:
        jax.config.update(name, value)


def _backend_started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()
