"""Run folders: where a run lives, who may write it, and what the machine was (conventions.md §1.5)."""

import errno
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any, Self, cast

from polyak import catalogue
from polyak.errors import RunError, nearest
from polyak.runs import disk
from polyak.runs.checkpoint import alive
from polyak.runs.disk import read_json, write_json

__all__ = [
    "Lock", "begin", "config_hash", "create", "differences", "find", "fingerprint", "read_json", "runs", "system",
    "write_json",
]  # fmt: skip

CONFIG, COMMAND, SYSTEM, LOCK = "config.json", "command.txt", "system.json", "lock"
_RUN = re.compile(r"(.+)_([1-9][0-9]*)")
_PACKAGES = ("polyak", "jax", "jaxlib", "numpy", "optax", "gymnasium", "mujoco", "ale-py", "envpool", "safetensors")
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


# ---------------------------------------------------------------------------------------------------- places


def create(out: Path | None, log_folder: Path, algo: str, env_id: str) -> Path:
    """Makes the folder of a new run and returns it.

    Args:
        out: the exact folder, or None for the next free `log_folder/<algo>/<Env-v1>_<id>`.
        log_folder: the parent of all runs.
        algo: "ppo"; lower-cased in the path.
        env_id: "jax:CartPole-v1" becomes "jax-CartPole-v1" in the path.

    Raises:
        RunError: `out` holds a run already (the sentence gives the resume command and a free name), or the folder
            cannot be made.
    """
    try:
        if out is not None:
            return _create_exact(out)
        parent = log_folder / _family(algo)
        parent.mkdir(parents=True, exist_ok=True)
        return _create_next(parent, plain_name(env_id))
    except OSError as error:
        raise RunError(f"The folder {out or log_folder} cannot be created: {disk.reason(error)}.") from error


def begin(run: Path, config: Mapping[str, Any], command: str, system: Mapping[str, Any]) -> None:
    """Writes what `resume` needs, durably, before the first step; config.json last, for it makes a folder a run."""
    try:
        disk.write_atomic(run / COMMAND, command.rstrip("\n").encode() + b"\n")
    except OSError as error:
        raise RunError(f"{run / COMMAND} cannot be written: {disk.reason(error)}.") from error
    write_json(run / SYSTEM, dict(system))
    write_json(run / CONFIG, dict(config))


def find(path_or_algo: str | Path, env: str | None = None, exp_id: int = 0, log_folder: Path = Path("runs")) -> Path:
    """The folder of an existing run: by path, or by algorithm and environment.

    Args:
        path_or_algo: a run folder, or an algorithm where `env` is given.
        env: an environment id as given to `train`.
        exp_id: the id of the run; 0 is the latest.
        log_folder: the parent of all runs.

    Raises:
        RunError: there is no such run; the sentence says which there are.
    """
    if env is None:
        return _at(Path(path_or_algo), log_folder)
    parent = log_folder / _family(str(path_or_algo))
    ids = [number for number in _ids(parent, plain_name(env)) if _is_run(parent / f"{plain_name(env)}_{number}")]
    if exp_id in ids or (exp_id == 0 and ids):
        return parent / f"{plain_name(env)}_{exp_id or max(ids)}"
    have = ", ".join(str(number) for number in sorted(ids))
    if have:
        raise RunError(f"There is no run {exp_id} of {path_or_algo} on {env} in {log_folder}; there are: {have}.")
    hint = nearest(f"{path_or_algo} {env}", [f"{r.parent.name} {r.name.rpartition('_')[0]}" for r in runs(log_folder)])
    raise RunError(f"There is no run of {path_or_algo} on {env} in {log_folder}{hint}.")


def _family(algo: str) -> str:
    """The folder of an algorithm's runs: its name on the command line where it is one of ours."""
    return catalogue.algorithm(algo).name if catalogue.is_algorithm(algo) else plain_name(algo.lower())


def runs(log_folder: Path) -> list[Path]:
    """All run folders in `log_folder/<algo>/`, sorted by name and then by id."""
    found = [path.parent for path in log_folder.glob(f"*/*/{CONFIG}")]
    return sorted(found, key=lambda run: (run.parent.name, run.name.rpartition("_")[0], _number(run.name), run.name))


def plain_name(text: str) -> str:
    """A text as one part of a path: other characters than letters, digits, '_', '.' and '-' become '-'."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")[:96] or "run"


def _create_exact(out: Path) -> Path:
    if _is_run(out) or (out / "checkpoints").exists():
        free = next(name for n in range(2, 1_000_000) if not (name := out.with_name(f"{out.name}_{n}")).exists())
        text = f"continue it with `polyak resume {out}`, or choose a new name, for instance `--out {free}`"
        raise RunError(f"{out} already holds a run; {text}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.is_dir():  # a file in its place is an error of mkdir
        disk.fs.mkdir(out)
    disk.sync_folder(out.parent)
    return out


def _create_next(parent: Path, name: str) -> Path:
    number = max(_ids(parent, name), default=0) + 1
    while True:
        run = parent / f"{name}_{number}"
        try:
            disk.fs.mkdir(run)
        except FileExistsError:  # another process took this id just now
            number += 1
            continue
        disk.sync_folder(parent)
        return run


def _at(path: Path, log_folder: Path) -> Path:
    if _is_run(path):
        return path
    if path.is_dir():
        raise RunError(f"{path} is not a run: it has no {CONFIG}.")
    raise RunError(f"There is no run {path}{nearest(str(path), [str(run) for run in runs(log_folder)])}.")


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _ids(parent: Path, name: str) -> list[int]:
    try:
        entries = os.listdir(parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_number(entry) for entry in entries if entry.rpartition("_")[0] == name and _number(entry)]


def _number(name: str) -> int:
    match = _RUN.fullmatch(name)
    return int(match[2]) if match else 0


# ---------------------------------------------------------------------------------------------------- the lock


class Lock:
    """The right to write a run; one process has it at a time.

    `flock` decides, and the system gives it free when the process dies, however it dies. The file also says who has
    it (a hash of the host name, the boot, the pid), for the message and for file systems without `flock`.

        with Lock(run) as lock: ...

    Attributes:
        note: a sentence where the previous owner never gave the lock back (it was killed), else "".

    Raises:
        RunError: another process has it (named by its pid), or the file cannot be opened.
    """

    def __init__(self, run: Path):
        self.path = run / LOCK
        self.note = ""
        try:
            self._fd = disk.fs.open(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise RunError(f"{self.path} cannot be opened: {disk.reason(error)}.") from error
        try:
            self._take(_flock(self._fd))
        except BaseException:
            os.close(self._fd)
            raise

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._fd >= 0:
            with suppress(OSError):  # a disk that became read-only: the record stays, and is seen to be stale
                disk.fs.truncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _take(self, held: bool | None) -> None:
        owner = self._owner()
        pid = owner.get("pid", "unknown")
        here = owner.get("host") == _host() and owner.get("boot") == _boot()
        if held is False:
            where = "" if here or not owner else " on another machine or before a restart"
            raise RunError(f"{self.path.parent} is in use by process {pid}{where}; wait for it or end it.")
        living = here and type(pid) is int and alive(pid)
        if held is None and owner and (living or owner.get("host") != _host()):
            hint = f"if it has ended, delete {self.path}"
            raise RunError(f"{self.path.parent} is in use by process {pid}, as far as can be seen; {hint}.")
        if owner:
            self.note = f"Process {pid}, which wrote {self.path.parent} before, ended without closing it; taking over."
        record = disk.dump_json({"host": _host(), "boot": _boot(), "pid": os.getpid()})
        with suppress(OSError):  # a full disk: the lock itself is held, only the message for others is poorer
            disk.fs.truncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            disk.write_all(self._fd, record)

    def _owner(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            data = os.pread(self._fd, 4096, 0)
            owner = disk.parse_json(data) if data else {}
            return cast("dict[str, Any]", owner) if isinstance(owner, dict) else {}
        return {"pid": "unknown"}


def _flock(fd: int) -> bool | None:
    """True: ours. False: another's. None: this file system cannot say."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise RunError(f"The run cannot be locked: {disk.reason(error)}.") from error
    return True


def _host() -> str:
    return blake2b(platform.node().encode(), digest_size=8).hexdigest()


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


# ---------------------------------------------------------------------------------------------------- the machine


def system(device: str = "") -> dict[str, Any]:
    """What the run ran on, for system.json: versions and hardware, no user name, no host name, no path.

    Args:
        device: jax's name of the device; this module does not import jax.
    """
    versions = {name.replace("-", "_"): _version(name) for name in _PACKAGES}
    return {
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu()["model"],
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": device,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "nproc": os.environ.get("NPROC", ""),
        "git": _commit(),
    }


def fingerprint(
    config: Mapping[str, Any], *, platform: str = "cpu", device: str = "", x64: bool = False
) -> dict[str, Any]:
    """What the bits of a run depend on (correctness.md §2.4): equal fingerprints, equal bits.

    Args:
        config: the resolved config.json.
        platform: jax's backend, "cpu", "gpu" or "tpu".
        device: the model of the GPU; "" on a CPU.
        x64: whether jax computes in float64.
    """
    run = cast("Mapping[str, Any]", config.get("run", {}))
    return {
        "polyak": _version("polyak"),
        "jaxlib": _version("jaxlib"),
        "platform": platform,
        "device": device or _cpu()["model"],
        "cpu_features": _cpu()["features"],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "nproc": os.environ.get("NPROC", ""),
        "x64": x64,
        "config": config_hash(config),
        "layout": {key: run.get(key) for key in ("n_envs", "seeds", "crank")},
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """BLAKE2b-128 of a configuration; the order of its keys does not matter."""
    return blake2b(disk.canonical_json(dict(config)), digest_size=16).hexdigest()


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """What differs between two fingerprints, "" where nothing does: "jaxlib is 0.12.0.1, was 0.11.2; ..."."""
    keys = [key for key in [*now, *(key for key in then if key not in now)] if now.get(key) != then.get(key)]
    return "; ".join(f"{key} is {_shown(now.get(key))}, was {_shown(then.get(key))}" for key in keys)


def _shown(value: Any) -> str:
    return "not set" if value in (None, "") else ascii(value)[:200] if not isinstance(value, str) else value[:200]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@cache
def _cpu() -> dict[str, str]:
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    flags = sorted(found.get("flags", found.get("Features", "")).split())
    features = blake2b(" ".join(flags).encode(), digest_size=8).hexdigest()
    return {"model": found.get("model name", platform.processor() or platform.machine()), "features": features}


def _commit() -> str:
    """The git commit of the working directory, with "+" where tracked files differ from it; "" outside of git."""
    commit = _git(["rev-parse", "HEAD"])
    return commit + "+" * bool(commit and _git(["status", "--porcelain", "--untracked-files=no"]))


def _git(arguments: Sequence[str]) -> str:
    # A repository's own configuration could name a program for `status` to run (fsmonitor): it is turned off.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
