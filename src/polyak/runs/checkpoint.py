"""Checkpoints: generations that are complete and intact, or not loaded (correctness.md §5).

    checkpoints/ck.<N>/  arrays.safetensors    the arrays of at most 8 MiB
                         seg.<hash>.safetensors   16 MiB of rows of a larger array (the replay)
                         state.json, config.json  the counters and the like; the run's own configuration
                         MANIFEST.json         written last: every file's size and BLAKE2b-256, names, shapes, dtypes

A generation is written under another name, synced, and renamed. A segment that did not change since the previous
generation is hard-linked, so a 7 GB replay costs only its new rows. Array files notice no flipped bit by themselves
(400 of 400 loaded silently); the hashes do. They detect accidents, not attackers. Nothing here can run code.
"""

import errno
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from polyak.errors import RunError
from polyak.memory import available
from polyak.runs import disk

SCHEMA = 1
KEEP = 3
SMALL = 8 << 20  # bytes: larger arrays are cut into segments
SEGMENT = 16 << 20  # bytes of one segment
ELEMENTS = 1 << 40
RECHECK = 8  # of the segments that could be linked, every 8th is read again first, so rot is healed within 8 saves
CHUNK = 4 << 20

MANIFEST, STATE, CONFIG, ARRAYS, BALLAST = "MANIFEST.json", "state.json", "config.json", "arrays.safetensors", "ballast"
KINDS = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64", "complex64": "C64",
}  # fmt: skip
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int, "generation": int, "step": int, "created": (int, float), "parent": (str, type(None)),
    "best": (int, type(None)), "fingerprint": dict, "files": dict, "arrays": dict, "self": str,
}  # fmt: skip
_GENERATION = re.compile(r"ck\.(0|[1-9][0-9]{0,11})")
_TAKEN = re.compile(r"ck\.(0|[1-9][0-9]{0,11})(\.bad\..*)?")
_DRAFT = re.compile(r"ck\.[0-9]+\.(?:tmp|old)\.([0-9]+)\.[0-9a-f]+")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Generation:
    """One checkpoint: all seeds at one instant.

    Attributes:
        number: N of ck.N; grows by one with each save, also after a resume.
        arrays: by tree path ("agent/params/w"), any shape; dtypes as saved. Large ones may be `Segmented`.
        meta: what was given as `meta` (JSON).
        path: the folder ck.N.
        step: environment steps per seed.
        fingerprint: of the process that wrote it.
        created: seconds since 1970.
        best: number of the generation pinned as the best one when this one was written, or None.
        digest: BLAKE2b-256 of the manifest, 64 hex digits.
    """

    number: int
    arrays: dict[str, Any]
    meta: dict[str, Any]
    path: Path
    step: int
    fingerprint: dict[str, Any]
    created: float
    best: int | None
    digest: str


class _Damaged(Exception):
    """A generation that must not be loaded; the text says why."""


class _Piece(NamedTuple):
    """A file to write: whole small arrays, or rows [start, stop) of one large array."""

    header: bytes
    arrays: tuple[np.ndarray, ...]
    rows: slice | None
    size: int

    def parts(self) -> Iterator[disk.Buffer]:
        yield self.header
        for array in self.arrays:
            yield _bytes_of(array if self.rows is None else array[self.rows])


class _Plan(NamedTuple):
    """The files of a new generation by name, and where each array is in them."""

    files: dict[str, _Piece | bytes]
    listed: dict[str, dict[str, Any]]
    arrays: dict[str, dict[str, Any]]


# ---------------------------------------------------------------------------------------------------- writing


def save(
    run: Path,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    step: int,
    fingerprint: Mapping[str, Any],
    pin: bool = False,
    emergency: bool = False,
) -> Generation:
    """Writes the next generation, reads it back, and only then deletes those that are no longer kept.

    Kept are the last 3, the first of each hour, and the pinned one. Only the process that holds the run's lock may
    call this.

    Args:
        run: the run folder; `checkpoints/` is created in it.
        arrays: host arrays by name; bool, integers, floats and complex64, any shape, also () and zero-size.
        meta: JSON, at most 16 MiB, no NaN or infinity.
        step: environment steps per seed.
        fingerprint: JSON, see `folder.fingerprint`.
        pin: marks this generation as the best one; the former best becomes an ordinary one (it stays pinned until
            no kept generation of the last 3 names it, so that falling back finds it).
        emergency: gives the ballast (`reserve`) free where the space does not suffice.

    Raises:
        RunError: the disk refused or is too small, or `meta` or an array cannot be stored. Older generations are
            intact. Where the disk was the cause, `error.__cause__` is the OSError; its `errno` tells causes apart.
    """
    try:
        manifest, fresh = _write_next(run, arrays, meta, step, fingerprint, pin, emergency)
    except OSError as error:
        text = f"Checkpoint at step {step:,} of {run} was not written: {disk.reason(error)}; older ones are intact."
        raise RunError(text) from error
    root = run / "checkpoints"
    _confirm(root, manifest["generation"], fresh)
    with suppress(OSError):  # what could not be deleted now is deleted after the next save
        _retain(root)
    return _generation(root, manifest, dict(arrays), dict(meta))


def reserve(run: Path, size: int) -> None:
    """Keeps `size` bytes back as `checkpoints/ballast`, for `save(emergency=True)`; nothing where they don't fit."""
    ballast = run / "checkpoints" / BALLAST
    with suppress(OSError, AttributeError):  # macOS has no posix_fallocate
        _create_root(ballast.parent)
        if disk.fs.free(ballast.parent) > 4 * size:
            with disk.opened(ballast, os.O_WRONLY | os.O_CREAT) as fd:
                os.posix_fallocate(fd, 0, max(size, 1))


def sweep(run: Path) -> None:
    """Deletes what killed processes left half-written or half-deleted; call it while holding the run's lock."""
    root = run / "checkpoints"
    with suppress(FileNotFoundError):
        for entry in os.listdir(root):
            match = _DRAFT.fullmatch(entry)
            if match and (int(match[1]) == os.getpid() or not alive(int(match[1]))):
                with suppress(OSError):  # harmless where it stays: no draft is ever loaded
                    _delete(root / entry)


def alive(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def tree_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """BLAKE2b-256 over names, dtypes, shapes and bytes in the order of the names; 64 hex digits."""
    digest = blake2b(digest_size=32)
    for name in sorted(arrays):
        array = _little_endian(np.asarray(arrays[name]))
        digest.update(disk.canonical_json([name, array.dtype.str, list(array.shape)]) + b"\0")
        digest.update(_bytes_of(array))
    return digest.hexdigest()


def _write_next(
    run: Path,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    step: int,
    fingerprint: Mapping[str, Any],
    pin: bool,
    emergency: bool,
) -> tuple[Manifest, list[str]]:
    """Writes the next generation; its manifest, and the files that are new and not links."""
    root = run / "checkpoints"
    _create_root(root)
    number = 1 + max(_numbers(root, _TAKEN), default=-1)
    previous = _newest_manifest(root)
    plan = _plan(run, arrays, meta)
    linked = _linkable(root, plan, previous, number)
    _require_space(root, plan, linked, emergency)
    manifest = _manifest(plan, previous, number, step, fingerprint, pin)
    _write(root, number, plan, linked, manifest)
    return manifest, [name for name in plan.files if name not in linked]


def _create_root(root: Path) -> None:
    try:
        disk.fs.mkdir(root)
    except FileExistsError:
        if root.is_symlink():
            raise OSError(errno.ELOOP, "checkpoints is a symbolic link") from None
        return
    disk.sync_folder(root.parent)


def _plan(run: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> _Plan:
    ready = {name: _storable(name, array) for name, array in sorted(arrays.items())}
    small = {name: array for name, array in ready.items() if array.nbytes <= SMALL}
    plan = _Plan({}, {}, {})
    # Widest items first, as safetensors itself lays them out: every array starts at a multiple of its item size.
    names = sorted(small, key=lambda name: (-small[name].dtype.itemsize, name))
    pieces = [_piece({name: small[name] for name in names})] if small else []
    owners = [""] if small else []
    for name, array in ready.items():
        plan.arrays[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "rows": 0, "files": []}
        if name in small:
            plan.arrays[name]["files"] = [ARRAYS]
            continue
        rows = max(1, SEGMENT // (array.nbytes // array.shape[0]))
        plan.arrays[name]["rows"] = rows
        for start in range(0, array.shape[0], rows):
            pieces.append(_piece({name: array}, slice(start, min(start + rows, array.shape[0]))))
            owners.append(name)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing gives the interpreter lock free
        digests = list(pool.map(lambda piece: _digest(piece.parts()), pieces))
    for owner, piece, digest in zip(owners, pieces, digests, strict=True):
        file = f"seg.{digest[:32]}.safetensors" if owner else ARRAYS
        _list(plan, file, piece, piece.size, digest)
        if owner:
            plan.arrays[owner]["files"].append(file)
    for file, data in _documents(run, meta).items():
        _list(plan, file, data, len(data), _digest([data]))
    return plan


def _list(plan: _Plan, file: str, content: _Piece | bytes, size: int, digest: str) -> None:
    plan.files[file] = content
    plan.listed[file] = {"size": size, "blake2b": digest}


def _documents(run: Path, meta: Mapping[str, Any]) -> dict[str, bytes]:
    try:
        state = disk.dump_json(dict(meta))
        disk.parse_json(state)  # what could not be read again must not be written
    except (ValueError, TypeError) as error:
        raise RunError(f"The checkpoint's meta data is not storable as JSON: {disk.reason(error)}.") from error
    documents = {STATE: state}
    with suppress(FileNotFoundError, ValueError):
        documents[CONFIG] = disk.read_capped(run / CONFIG, disk.JSON_BYTES)
    return documents


def _piece(arrays: Mapping[str, np.ndarray], rows: slice | None = None) -> _Piece:
    entries: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        shape = list(array.shape) if rows is None else [rows.stop - rows.start, *array.shape[1:]]
        begin, end = end, end + math.prod(shape) * array.dtype.itemsize
        entries[name] = {"dtype": KINDS[array.dtype.name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _Piece(len(text).to_bytes(8, "little") + text, tuple(arrays.values()), rows, 8 + len(text) + end)


def _linkable(root: Path, plan: _Plan, previous: Manifest | None, number: int) -> dict[str, Path]:
    """The segments (and the configuration) that the previous generation holds already, with their paths in it."""
    if previous is None:
        return {}
    folder = root / f"ck.{previous['generation']}"
    found: dict[str, Path] = {}
    for index, (name, entry) in enumerate(plan.listed.items()):
        if not (name.startswith("seg.") or name == CONFIG) or previous["files"].get(name) != entry:
            continue
        if index % RECHECK == number % RECHECK and not _intact(folder / name, entry):
            continue  # it has rotten on the disk: write it anew
        found[name] = folder / name
    return found


def _require_space(root: Path, plan: _Plan, linked: Mapping[str, Path], emergency: bool) -> None:
    dirty = [entry["size"] for name, entry in plan.listed.items() if name not in linked]
    needed = sum(dirty) + 4096 * (len(plan.listed) + 16) + 512 * len(plan.arrays)
    if emergency and disk.fs.free(root) < needed:
        with suppress(FileNotFoundError):
            disk.fs.unlink(root / BALLAST)
    free = disk.fs.free(root)
    if free < needed:
        text = f"it needs {disk.size_text(needed)}, and {disk.size_text(free)} are free on that disk"
        raise OSError(errno.ENOSPC, text)


def _manifest(
    plan: _Plan, previous: Manifest | None, number: int, step: int, fingerprint: Mapping[str, Any], pin: bool
) -> Manifest:
    manifest: Manifest = {
        "schema": SCHEMA, "generation": number, "step": step, "created": time.time(),
        "parent": previous["self"] if previous else None,
        "best": number if pin else previous["best"] if previous else None,
        "fingerprint": dict(fingerprint), "files": plan.listed, "arrays": plan.arrays,
    }  # fmt: skip
    try:
        manifest["self"] = _self_hash(manifest)
        disk.parse_json(disk.dump_json(manifest))
    except (ValueError, TypeError) as error:
        raise RunError(f"The checkpoint's manifest is not storable as JSON: {disk.reason(error)}.") from error
    return manifest


def _write(root: Path, number: int, plan: _Plan, linked: Mapping[str, Path], manifest: Manifest) -> None:
    draft = root / f"ck.{number}.tmp.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        disk.fs.mkdir(draft)
        for name, content in plan.files.items():
            if name in linked and _link(linked[name], draft / name):
                continue
            disk.write_new(draft / name, [content] if isinstance(content, bytes) else content.parts())
        disk.write_new(draft / MANIFEST, [disk.dump_json(manifest, indent=1)])
        disk.sync_folder(draft)
        disk.fs.rename(draft, root / f"ck.{number}")
    except OSError:
        with suppress(OSError):  # the first error is the one to report; `sweep` takes what stays
            _delete(draft)
        raise
    disk.sync_folder(root)


def _link(old: Path, new: Path) -> bool:
    try:
        disk.fs.link(old, new)
    except OSError:  # another file system, too many links, a file system without links: write it instead
        return False
    return True


def _confirm(root: Path, number: int, names: Iterable[str]) -> None:
    """Reads the new files of a generation again; sets it aside where they are not what was written."""
    try:
        manifest = _read_manifest(root, number)
        for name in names:
            if not _intact(root / f"ck.{number}" / name, manifest["files"][name]):
                raise _Damaged(f"{name} reads back differently")
    except (_Damaged, OSError) as fault:
        aside = _set_aside(root, number)
        text = f"Checkpoint ck.{number} in {root} was written but is not intact ({disk.reason(fault)}){aside}; "
        raise RunError(text + "older ones are kept. The disk may be failing.") from OSError(errno.EIO, str(fault))


def _retain(root: Path) -> None:
    manifests: list[Manifest] = []
    for number in _numbers(root):
        with suppress(_Damaged, RunError, OSError):  # what cannot be read is neither counted nor deleted
            manifests.append(_read_manifest(root, number))
    last = manifests[-KEEP:]
    keep = {manifest["generation"] for manifest in last} | {manifest["best"] for manifest in last}
    hours: set[int] = set()
    for manifest in manifests:
        hour = int(manifest["created"] // 3600)
        if hour not in hours:
            keep.add(manifest["generation"])
            hours.add(hour)
    retired: list[Path] = []
    for number in [m["generation"] for m in manifests if m["generation"] not in keep]:
        # Renamed, and that synced, first: a folder that is being deleted must never look like a generation.
        retired.append(root / f"ck.{number}.old.{os.getpid()}.{secrets.token_hex(4)}")
        disk.fs.rename(root / f"ck.{number}", retired[-1])
    if retired:
        disk.sync_folder(root)
    for folder in retired:
        _delete(folder)


def _delete(folder: Path) -> None:
    """Deletes a folder of files; links are unlinked, never followed, and folders inside are left alone."""
    if folder.is_symlink():
        disk.fs.unlink(folder)
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    for name in names:
        disk.fs.unlink(folder / name)
    disk.fs.rmdir(folder)


# ---------------------------------------------------------------------------------------------------- reading


def load(
    run: Path, *, number: int | None = None, notify: Callable[[str], None], repair: bool = True, whole: bool = True
) -> Generation:
    """The newest intact generation, or generation `number`.

    A damaged generation is renamed to ck.N.bad.<pid>, said so through `notify`, and the one before it is tried.

    Args:
        run: the run folder.
        number: load this one and no other.
        notify: takes a sentence for people.
        repair: False for readers that do not hold the run's lock: nothing is renamed.
        whole: False: large arrays are `Segmented`, and read when they are wanted. Only for who holds the lock.

    Raises:
        RunError: there is no intact generation; it was written by a newer polyak; or it does not fit into memory.
    """
    root = run / "checkpoints"
    numbers = _numbers(root)
    if number is not None and number not in numbers:
        have = ", ".join(str(n) for n in numbers) or "none"
        raise RunError(f"{run} has no checkpoint {number}; it has: {have}.")
    lost: float | None = None
    for candidate in [number] if number is not None else reversed(numbers):
        try:
            generation = _read(root, candidate, whole)
        except (_Damaged, OSError) as fault:
            if not os.path.lexists(root / f"ck.{candidate}"):
                continue  # a process that trains this run has just retired it
            lost = lost or _time_of(root, candidate)
            aside = _set_aside(root, candidate) if repair else ""
            notify(f"Checkpoint ck.{candidate} of {run} is damaged ({disk.reason(fault)}){aside}.")
            continue
        if lost is not None:
            seconds = max(0.0, lost - generation.created)
            notify(f"Going back to ck.{candidate} at step {generation.step:,}: {seconds:,.0f} s of training are lost.")
        return generation
    what = "no checkpoint" if not numbers else "no intact checkpoint" if number is None else f"no intact ck.{number}"
    raise RunError(f"{run} has {what} to load.")


def generations(run: Path) -> list[int]:
    """The numbers of the generations that are there, ascending; drafts and what was set aside do not count."""
    return _numbers(run / "checkpoints")


def verify(run: Path) -> list[tuple[str, bool, str]]:
    """Re-hashes every generation, oldest first: (name, intact, one sentence). Intact does not mean safe."""
    root = run / "checkpoints"
    results: list[tuple[str, bool, str]] = []
    parents: dict[int, str] = {}
    for number in _numbers(root):
        name = f"ck.{number}"
        try:
            manifest, _ = _check(root, number)
            if manifest["parent"] not in (None, parents.get(number - 1, manifest["parent"])):
                raise _Damaged("it does not continue the generation before it")
        except (_Damaged, OSError, RunError) as fault:
            results.append((name, False, f"Not intact: {disk.reason(fault)}."))
            continue
        parents[number] = manifest["self"]
        size = disk.size_text(sum(entry["size"] for entry in manifest["files"].values()))
        text = f"Intact: step {manifest['step']:,}, {len(manifest['files'])} files, {size}."
        results.append((name, True, text + (" It is the best one." if manifest["best"] == number else "")))
    return results


def best(run: Path) -> int | None:
    """The number of the generation that is pinned as the best, or None where none is, or it is gone."""
    root = run / "checkpoints"
    manifest = _newest_manifest(root)
    number = manifest["best"] if manifest else None
    return number if number in _numbers(root) else None


def _read(root: Path, number: int, whole: bool) -> Generation:
    manifest, meta = _check(root, number)
    total = sum(_byte_count(entry) for entry in manifest["arrays"].values())
    if total > (room := available()):
        text = f"needs {disk.size_text(total)} of memory, and {disk.size_text(room)} are free"
        raise RunError(f"Checkpoint ck.{number} in {root} {text}.")
    arrays: dict[str, Any] = {}
    with _folder(root, number) as folder:
        offsets = _offsets(folder, manifest)
    for name, entry in manifest["arrays"].items():
        spans = [(file, *offsets[file][name]) for file in entry["files"]]
        stored = Segmented(root, number, name, tuple(entry["shape"]), np.dtype(entry["dtype"]), spans)
        arrays[name] = np.asarray(stored) if whole or not entry["rows"] else stored
    return _generation(root, manifest, arrays, meta)


@dataclass(frozen=True)
class Segmented:
    """An array of a checkpoint that is read when it is wanted: whole by np.asarray, or in blocks.

    Only for who holds the run's lock, so that no other process retires the generation meanwhile.
    """

    root: Path
    number: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    spans: list[tuple[str, int, int]]  # file, first byte, last byte + 1

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows), a segment at a time.

        Raises:
            RunError: the disk refuses to give a file that it gave before.
        """
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        at = 0
        for file, begin, end in self.spans:
            block = np.empty(((end - begin) // row, *self.shape[1:]), self.dtype)
            try:
                self._read_into(memoryview(_bytes_of(block)), file, begin)
            except OSError as error:
                text = f"{self.name!r} of ck.{self.number} in {self.root} can't be read: {disk.reason(error)}"
                raise RunError(text) from error
            yield at, block
            at += len(block)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            whole = np.empty(self.shape, self.dtype)
        except (ValueError, MemoryError) as error:
            raise _Damaged(f"array {self.name!r} cannot be allocated: {error}") from error
        view, at = memoryview(_bytes_of(whole)), 0
        for file, begin, end in self.spans if view.nbytes else []:
            self._read_into(view[at : at + end - begin], file, begin)
            at += end - begin
        return whole if dtype is None else whole.astype(dtype)

    def _read_into(self, view: memoryview, file: str, begin: int) -> None:
        with (
            _folder(self.root, self.number) as folder,
            disk.opened(file, os.O_RDONLY | os.O_NONBLOCK, folder) as fd,
        ):
            disk.read_into(fd, view, begin)


def _generation(root: Path, manifest: Manifest, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Generation:
    return Generation(
        number=manifest["generation"],
        arrays=arrays,
        meta=meta,
        path=root / f"ck.{manifest['generation']}",
        step=manifest["step"],
        fingerprint=manifest["fingerprint"],
        created=manifest["created"],
        best=manifest["best"],
        digest=manifest["self"],
    )


def _check(root: Path, number: int) -> tuple[Manifest, dict[str, Any]]:
    """The manifest and meta of a generation all of whose files were read, hashed, and agree with it."""
    manifest = _read_manifest(root, number)
    with _folder(root, number) as folder:
        for name, entry in manifest["files"].items():
            _check_file(folder, name, entry)
        _check_arrays(manifest)
        _offsets(folder, manifest)
        try:
            meta = disk.parse_json(disk.read_capped(STATE, disk.JSON_BYTES, folder))
        except ValueError as error:
            raise _Damaged(f"{STATE}: {error}") from error
    if not isinstance(meta, dict):
        raise _Damaged(f"{STATE} is not an object")
    return manifest, cast("dict[str, Any]", meta)


def _read_manifest(root: Path, number: int) -> Manifest:
    """The manifest, its own hash and types checked; RunError where a newer polyak wrote it."""
    try:
        with _folder(root, number) as folder:
            manifest = disk.parse_json(disk.read_capped(MANIFEST, disk.JSON_BYTES, folder))
    except FileNotFoundError:
        raise _Damaged(f"it has no {MANIFEST}") from None
    except ValueError as error:
        raise _Damaged(f"{MANIFEST}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("self") != _self_hash(cast("Manifest", manifest)):
        raise _Damaged(f"{MANIFEST} does not agree with its own hash")
    schema = cast("Manifest", manifest).get("schema")
    if type(schema) is int and schema > SCHEMA:
        text = f"has format {schema}; this polyak reads up to {SCHEMA}. Install a newer polyak."
        raise RunError(f"Checkpoint ck.{number} in {root} {text}")
    _check_fields(cast("Manifest", manifest), number)
    return cast("Manifest", manifest)


def _check_fields(manifest: Manifest, number: int) -> None:
    if manifest.keys() != _FIELDS.keys():
        raise _Damaged(f"{MANIFEST} has fields {sorted(manifest.keys() ^ _FIELDS.keys())} too many or too few")
    for field, kind in _FIELDS.items():
        if not isinstance(manifest[field], kind) or isinstance(manifest[field], bool):
            raise _Damaged(f"{MANIFEST} has a {field} of the wrong type")
    if not (0 <= manifest["created"] < 1e11 and 0 <= manifest["step"] < 1 << 62):
        raise _Damaged(f"{MANIFEST} has an impossible time or step")
    if manifest["generation"] != number or manifest["schema"] != SCHEMA:
        raise _Damaged(f"{MANIFEST} belongs to another generation or format")
    for name, entry in manifest["files"].items():
        if not disk.NAME.fullmatch(name):
            raise _Damaged(f"the file name {name[:200]!r} is not allowed")
        if not isinstance(entry, dict) or entry.keys() != {"size", "blake2b"} or not _is_count(entry["size"]):
            raise _Damaged(f"{MANIFEST} describes {name} wrongly")
    if STATE not in manifest["files"]:
        raise _Damaged(f"it has no {STATE}")


def _check_arrays(manifest: Manifest) -> None:
    for name, entry in manifest["arrays"].items():
        if not _is_name(name):
            raise _Damaged(f"the array name {name[:100]!r} is not allowed")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "rows", "files"}:
            raise _Damaged(f"{MANIFEST} describes array {name!r} wrongly")
        shape, files = entry["shape"], entry["files"]
        if not isinstance(shape, list) or len(shape) > 32 or not all(_is_count(n) for n in shape):
            raise _Damaged(f"array {name!r} has an impossible shape")
        if math.prod(shape) > ELEMENTS or str(entry["dtype"]) not in KINDS or not _is_count(entry["rows"]):
            raise _Damaged(f"array {name!r} is too large or of an unknown dtype")
        if not isinstance(files, list) or not all(isinstance(f, str) and f in manifest["files"] for f in files):
            raise _Damaged(f"array {name!r} is in files that are not there")
        pieces = -(-shape[0] // entry["rows"]) if shape and entry["rows"] else 1
        if len(files) != pieces:
            raise _Damaged(f"array {name!r} is not complete")


def _check_file(folder: int, name: str, entry: Mapping[str, Any]) -> None:
    with disk.opened(name, os.O_RDONLY | os.O_NONBLOCK, folder) as fd:
        size = disk.regular_size(fd)
        if size != entry["size"]:
            raise _Damaged(f"{name} has {size:,} bytes instead of {entry['size']:,}")
        if _digest(_chunks(fd, size)) != entry["blake2b"]:
            raise _Damaged(f"the content of {name} does not agree with its hash")


def _offsets(folder: int, manifest: Manifest) -> dict[str, dict[str, tuple[int, int]]]:
    """Where the bytes of each array begin and end in each file; the headers must say what the manifest says."""
    expected: dict[str, dict[str, tuple[str, list[int]]]] = {}
    for name, entry in manifest["arrays"].items():
        for index, file in enumerate(entry["files"]):
            shape = list(entry["shape"])
            if entry["rows"] and shape:
                shape[0] = min(entry["rows"], shape[0] - index * entry["rows"])
            held = (KINDS[entry["dtype"]], shape)
            if expected.setdefault(file, {}).setdefault(name, held) != held:
                raise _Damaged(f"{file} holds {name!r} in two shapes")
    return {file: _header(folder, file, manifest["files"][file]["size"], arrays) for file, arrays in expected.items()}


def _header(
    folder: int, file: str, size: int, expected: Mapping[str, tuple[str, list[int]]]
) -> dict[str, tuple[int, int]]:
    with disk.opened(file, os.O_RDONLY | os.O_NONBLOCK, folder) as fd:
        start = bytearray(8)
        disk.read_into(fd, memoryview(start), 0)
        length = int.from_bytes(start, "little")
        if length > min(size - 8, disk.JSON_BYTES):
            raise _Damaged(f"{file} has an impossible header")
        text = bytearray(length)
        disk.read_into(fd, memoryview(text), 8)
    try:
        header = disk.parse_json(bytes(text))
    except ValueError as error:
        raise _Damaged(f"the header of {file}: {error}") from error
    if not isinstance(header, dict) or header.keys() != expected.keys():
        raise _Damaged(f"{file} does not hold the arrays that {MANIFEST} lists")
    spans: dict[str, tuple[int, int]] = {}
    at = 8 + length
    for name, entry in cast("dict[str, Any]", header).items():
        kind, shape = expected[name]
        end = at + math.prod(shape) * _item_size(kind)
        offsets = [at - 8 - length, end - 8 - length]
        if entry != {"dtype": kind, "shape": shape, "data_offsets": offsets}:
            raise _Damaged(f"{file} describes array {name!r} otherwise than {MANIFEST}")
        spans[name] = (at, end)
        at = end
    if at != size:
        raise _Damaged(f"{file} holds more or fewer bytes than its arrays have")
    return spans


def _set_aside(root: Path, number: int) -> str:
    """Renames a damaged generation; what to append to the sentence about it."""
    bad = f"ck.{number}.bad.{os.getpid()}"
    while os.path.lexists(root / bad):
        bad += "x"
    try:
        disk.fs.rename(root / f"ck.{number}", root / bad)
        disk.sync_folder(root)
    except OSError as error:
        return f", and could not be set aside: {disk.reason(error)}"
    return f" and was set aside as {bad}"


def _newest_manifest(root: Path) -> Manifest | None:
    for number in reversed(_numbers(root)):
        with suppress(_Damaged, OSError):
            return _read_manifest(root, number)
    return None


def _numbers(root: Path, pattern: re.Pattern[str] = _GENERATION) -> list[int]:
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted({int(match[1]) for match in map(pattern.fullmatch, names) if match})


def _folder(root: Path, number: int) -> AbstractContextManager[int]:
    return disk.opened(root / f"ck.{number}", os.O_RDONLY | os.O_DIRECTORY)


def _time_of(root: Path, number: int) -> float:
    with suppress(_Damaged, RunError, OSError):
        return float(_read_manifest(root, number)["created"])
    with suppress(OSError):
        return os.lstat(root / f"ck.{number}").st_mtime
    return 0.0


# ---------------------------------------------------------------------------------------------------- bytes


def _intact(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file holds what the manifest says, read from the disk itself as far as the system allows."""
    try:
        with disk.opened(path, os.O_RDONLY) as fd:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            size = disk.regular_size(fd)
            return size == entry["size"] and _digest(_chunks(fd, size)) == entry["blake2b"]
    except OSError:
        return False


def _chunks(fd: int, size: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(CHUNK, size)))
    for start in range(0, size, CHUNK):
        view = buffer[: min(CHUNK, size - start)]
        disk.read_into(fd, view, start)
        yield view


def _digest(parts: Iterable[disk.Buffer]) -> str:
    digest = blake2b(digest_size=32)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _self_hash(manifest: Manifest) -> str:
    return _digest([disk.canonical_json({key: value for key, value in manifest.items() if key != "self"})])


def _storable(name: str, array: np.ndarray) -> np.ndarray:
    ready = _little_endian(np.asarray(array))
    if ready.dtype.name not in KINDS:
        raise RunError(f"A checkpoint cannot hold {name!r} of dtype {ready.dtype}; it holds: {', '.join(KINDS)}.")
    if not _is_name(name):
        raise RunError(f"A checkpoint cannot hold an array named {name[:100]!r}.")
    return ready


def _little_endian(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<")) if array.dtype.str.startswith(">") else array


def _bytes_of(array: np.ndarray) -> disk.Buffer:
    """The bytes of an array in C order, without a copy where it is in that order already."""
    if array.size == 0:
        return bytearray()
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def _byte_count(entry: Mapping[str, Any]) -> int:
    return math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize


def _item_size(kind: str) -> int:
    return 1 if kind == "BOOL" else int(kind[1:]) // 8


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 1024 and name.isprintable() and name != "__metadata__"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= ELEMENTS
