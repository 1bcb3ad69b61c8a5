"""Metric sinks: JSON lines, SB3's CSV, monitor and evaluation files, TensorBoard (conventions.md §1.4, §1.5).

A sink never stops training: where the disk refuses, rows are dropped, counted, and one warning per cause is given.
`position()` is stored in each checkpoint, and `truncate` cuts every file back to it: a resumed run has each row once.
"""

import csv
import errno
import importlib.util
import io
import json
import math
import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from polyak.errors import PolyakError, RunError
from polyak.runs import disk

ROWS, PROGRESS, MONITOR, EVALUATIONS = "metrics.jsonl", "progress.csv", "monitor.csv", "evaluations.npz"
LONGEST = 10_000  # characters of a foreign text that are shown
INTERVAL = 2.0  # seconds between writes to TensorBoard's file

# SB3's tags in CleanRL's words; `losses/entropy` has the opposite sign, `losses/td_loss` is a value loss alone.
CLEANRL = {
    "rollout/ep_rew_mean": "charts/episodic_return",
    "rollout/ep_len_mean": "charts/episodic_length",
    "time/fps": "charts/SPS",
    "train/learning_rate": "charts/learning_rate",
    "train/value_loss": "losses/value_loss",
    "train/policy_gradient_loss": "losses/policy_loss",
    "train/policy_loss": "losses/policy_loss",
    "train/entropy_loss": "losses/entropy",
    "train/old_approx_kl": "losses/old_approx_kl",
    "train/approx_kl": "losses/approx_kl",
    "train/clip_fraction": "losses/clipfrac",
    "train/explained_variance": "losses/explained_variance",
    "train/q_values": "losses/q_values",
    "train/critic_loss": "losses/qf1_loss",
    "train/actor_loss": "losses/actor_loss",
    "train/ent_coef": "losses/alpha",
}
STYLES = ("sb3", "cleanrl")


# ---------------------------------------------------------------------------------------------------- foreign text


def escape(text: str) -> str:
    r"""A foreign string as one harmless line for terminals and logs.

    C0, C1, DEL, newlines, bidirectional and other invisible characters, and lone surrogates become \xNN or \uNNNN;
    what is longer than 10,000 characters is cut. Rich markup is not touched: print with markup off.
    """
    shown = "".join(_escaped(char) if _unsafe(char) else char for char in text[:LONGEST])
    return shown if len(text) <= LONGEST else f"{shown}... ({len(text) - LONGEST:,} more characters)"


def csv_text(text: str) -> str:
    """A foreign string for a CSV cell: escaped, and with a quote before what a spreadsheet would calculate."""
    shown = escape(text)
    return f"'{shown}" if shown.lstrip()[:1] in ("=", "+", "-", "@") else shown


def _unsafe(char: str) -> bool:
    # Cc: C0, C1, DEL; Cf: bidi and zero-width; Cs: lone surrogates; Zl, Zp: line and paragraph separators.
    return not char.isprintable() and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# ---------------------------------------------------------------------------------------------------- one file


class Faults:
    """What the sinks could not write: counts by file, and one warning per (file, cause).

    Attributes:
        dropped: rows that are missing, by file.
    """

    def __init__(self, notify: Callable[[str], None]):
        self._notify = notify
        self._known: set[tuple[str, int]] = set()
        self.dropped: dict[str, int] = {}

    def add(self, name: str, error: OSError, rows: int = 1) -> None:
        """Counts `rows` lost rows of file `name`, and warns where this cause is new for it."""
        self.dropped[name] = self.dropped.get(name, 0) + rows
        cause = (name, error.errno or 0)
        if cause not in self._known:
            self._known.add(cause)
            self._notify(
                f"{name} cannot be written ({disk.reason(error)}); training goes on, and what is lost is counted."
            )


class Appender:
    """A file that only grows, by one system call per piece; a piece that did not fit leaves no part of itself.

    Args:
        path: the file; its folder exists or can be made.
        name: how warnings call it.
        faults: where failures are counted.
        head: what a new file starts with.
    """

    def __init__(self, path: Path, name: str, faults: Faults, head: bytes = b""):
        self.path, self.name, self._faults, self._head = path, name, faults, head
        self._fd = -1

    def append(self, data: bytes, rows: int = 1) -> bool:
        """Adds `data`; False where it had to be dropped."""
        try:
            self._open()
            self._write(data)
        except OSError as error:
            self._faults.add(self.name, error, rows)
            return False
        return True

    def size(self) -> int:
        """Bytes of the file, after making them durable."""
        if self._fd < 0:
            with suppress(OSError):  # no file yet: it is empty
                return self.path.stat().st_size
            return 0
        try:
            disk.fs.fsync(self._fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # what cannot be synced (a device) is no fault
                self._faults.add(self.name, error, 0)
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._fd < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = disk.fs.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if self._head and os.fstat(self._fd).st_size == 0:
            self._write(self._head)

    def _write(self, data: bytes) -> None:
        before = os.fstat(self._fd).st_size
        try:
            disk.write_all(self._fd, data)
        except OSError:
            with suppress(OSError):  # a device cannot be cut; the write's error is the one to report
                disk.fs.truncate(self._fd, before)
            raise


class Table:
    """A CSV file whose header grows: a row with a new column rewrites the file, atomically."""

    def __init__(self, path: Path, name: str, faults: Faults):
        self._file = Appender(path, name, faults)
        self._faults = faults
        self.columns = _read_table(path)[0]

    def append(self, row: Mapping[str, object]) -> None:
        new = [column for column in row if column not in self.columns]
        if new and not self._widen(self.columns + new):
            return
        self._file.append(_csv_line([row.get(column, "") for column in self.columns]))

    def close(self) -> None:
        self._file.close()

    def _widen(self, columns: list[str]) -> bool:
        self._file.close()
        rows = _read_table(self._file.path)[1]
        try:
            self._file.path.parent.mkdir(parents=True, exist_ok=True)
            _write_table(self._file.path, columns, rows)
        except OSError as error:
            self._faults.add(self._file.name, error)
            return False
        self.columns = columns
        return True


class Events:
    """TensorBoard's event file of one seed: one record per row of metrics, without tensorboardX's thread.

    The file is named events.out.tfevents.<time>.polyak.<n> (tensorboardX would put the host's name there).

    Args:
        folder: seed_<k>.
        purge_step: a resumed run's first step; TensorBoard forgets what older files hold from it on.
    """

    def __init__(self, folder: Path, name: str, faults: Faults, purge_step: int | None):
        now = int(time.time())
        old = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self._file = Appender(folder / f"events.out.tfevents.{now:010d}.polyak.{old}", name, faults)
        self._waiting: list[bytes] = []
        self._last = time.monotonic()
        self._start = purge_step

    def append(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
        self._waiting.append(cast("bytes", event.SerializeToString()))
        if time.monotonic() - self._last > INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting, in one call."""
        self._last = time.monotonic()
        if self._waiting:
            if self._file.size() == 0:
                self._waiting[:0] = self._opening()
            self._file.append(b"".join(_record(data) for data in self._waiting), rows=len(self._waiting))
            self._waiting = []

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _opening(self) -> list[bytes]:
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if self._start is not None:
            log = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=time.time(), step=self._start, session_log=log))
        return [cast("bytes", event.SerializeToString()) for event in events]


def tensorboard_ready() -> bool:
    """Whether tensorboardX can be imported."""
    return importlib.util.find_spec("tensorboardX") is not None


# ---------------------------------------------------------------------------------------------------- all of a run


class Metrics:
    """All sinks of one run. Nothing here raises for a disk that refuses; see `Faults`.

    Args:
        run: the run folder.
        seeds: the seeds' numbers, for the folders seed_<k>.
        env_id: for monitor.csv's first line.
        notify: takes warnings for people.
        tensorboard: write event files; a missing tensorboardX is said once through `notify`.
        log_style: "sb3", or "cleanrl" for CleanRL's tags in TensorBoard and progress.csv. metrics.jsonl, which
            `report` and `compare` read, keeps SB3's tags always.
        resumed: the position that `truncate` cut the files to, where this continues a run.
    """

    def __init__(
        self,
        run: Path,
        seeds: Sequence[int],
        env_id: str,
        *,
        notify: Callable[[str], None],
        tensorboard: bool = True,
        log_style: str = "sb3",
        resumed: Mapping[str, Any] | None = None,
    ):
        if log_style not in STYLES:
            raise PolyakError(f"There is no log_style {log_style!r}; there are: {', '.join(STYLES)}.")
        self._run, self._style = run, log_style
        self._notify = notify
        self._faults = Faults(notify)
        self._step = int(resumed["step"]) if resumed else 0
        self._t_start = float(resumed["t_start"]) if resumed else time.time()
        head = f"#{json.dumps({'t_start': self._t_start, 'env_id': escape(env_id)})}\nr,l,t,env\n".encode()
        self._rows = Appender(run / ROWS, ROWS, self._faults)
        self._tables = {k: Table(run / f"seed_{k}" / PROGRESS, f"seed_{k}/{PROGRESS}", self._faults) for k in seeds}
        self._monitors = {
            k: Appender(run / f"seed_{k}" / MONITOR, f"seed_{k}/{MONITOR}", self._faults, head) for k in seeds
        }
        self._evaluations = {k: _read_evaluations(run / f"seed_{k}" / EVALUATIONS) for k in seeds}
        self._events: dict[int, Events] = {}
        if tensorboard and not tensorboard_ready():
            notify("TensorBoard files are not written: tensorboardX is not installed; `pip install tensorboardX`.")
        elif tensorboard:
            purge = self._step + 1 if resumed else None
            self._events = {k: Events(run / f"seed_{k}", f"seed_{k}/events", self._faults, purge) for k in seeds}

    @property
    def dropped(self) -> dict[str, int]:
        """Rows that could not be written, by file."""
        return dict(self._faults.dropped)

    def log(self, seed: int, step: int, seconds: float, values: Mapping[str, float | str]) -> None:
        """One row of metrics.

        Args:
            seed: the seed's number.
            step: environment steps of this seed so far.
            seconds: since the run started, over all its processes.
            values: by SB3's tags; NaN means "did not happen" and is left out, as are infinities, which JSON lacks.
        """
        self._step = max(self._step, step)
        row = {tag: plain for tag, value in values.items() if (plain := _plain(value)) is not None}
        self._rows.append(disk.dump_json({"seed": seed, "step": step, "time": round(seconds, 3), **row}) + b"\n")
        shown = _cleanrl(row) if self._style == "cleanrl" else row
        self._tables[seed].append({"time/total_timesteps": step, "time/time_elapsed": round(seconds, 3), **shown})
        numbers = {tag: float(value) for tag, value in shown.items() if not isinstance(value, str)}
        if seed in self._events and numbers:
            self._events[seed].append(step, numbers)

    def episodes(self, seed: int, finished: Iterable[tuple[float, int, float, int]]) -> None:
        """Finished episodes for monitor.csv: (raw return, length in steps, seconds since the run started, environment).

        The lengths of one environment's episodes add up to the step at which each ended.
        """
        lines = [f"{float(r):.6f},{int(n)},{float(t):.6f},{int(env)}\n" for r, n, t, env in finished]
        if lines:
            self._monitors[seed].append("".join(lines).encode(), rows=len(lines))

    def evaluation(
        self,
        seed: int,
        step: int,
        returns: Sequence[float],
        lengths: Sequence[int],
        successes: Sequence[float] | None = None,
    ) -> None:
        """One evaluation for evaluations.npz, which keeps SB3's keys; the file is replaced atomically.

        Args:
            returns: raw return of each episode, [episodes].
            lengths: steps of each episode, [episodes].
            successes: whether each succeeded, [episodes]; None where the environment does not say.
        """
        data = self._evaluations[seed]
        data["timesteps"].append(step)
        data["results"].append([float(value) for value in returns])
        data["ep_lengths"].append([int(value) for value in lengths])
        if successes is not None:
            data["successes"].append([float(value) for value in successes])
        self._step = max(self._step, step)
        try:
            (self._run / f"seed_{seed}").mkdir(parents=True, exist_ok=True)
            disk.write_atomic(self._run / f"seed_{seed}" / EVALUATIONS, _npz(data))
        except OSError as error:
            self._faults.add(f"seed_{seed}/{EVALUATIONS}", error)

    def position(self) -> dict[str, Any]:
        """Where the files stand, durably; JSON for the checkpoint. `truncate` goes back to it."""
        for events in self._events.values():
            events.flush()
        return {
            "step": self._step,
            "t_start": self._t_start,
            "rows": self._rows.size(),
            "style": self._style,
            "seeds": {
                str(k): {
                    "monitor": self._monitors[k].size(),
                    "evaluations": len(self._evaluations[k]["timesteps"]),
                    "events": _event_sizes(self._run / f"seed_{k}"),
                }
                for k in self._tables
            },
        }

    def close(self) -> None:
        """Writes what waits, closes the files, and says how many rows were lost, if any."""
        for sink in [self._rows, *self._tables.values(), *self._monitors.values(), *self._events.values()]:
            sink.close()
        lost = {name: count for name, count in self._faults.dropped.items() if count}
        if lost:
            text = ", ".join(f"{count:,} of {name}" for name, count in sorted(lost.items()))
            self._notify(f"The disk refused some rows of the metrics; lost: {text}.")


def truncate(run: Path, position: Mapping[str, Any]) -> None:
    """Cuts all files of `Metrics` back to a checkpoint's `position()`; progress.csv is rebuilt from metrics.jsonl.

    Raises:
        RunError: the disk refuses.
    """
    try:
        _cut(run / ROWS, position["rows"])
        rows = _read_rows(run / ROWS)
        for seed, kept in position["seeds"].items():
            folder = run / f"seed_{seed}"
            _cut(folder / MONITOR, kept["monitor"])
            _cut_evaluations(folder / EVALUATIONS, kept["evaluations"])
            for path in folder.glob("events.out.tfevents.*"):
                _cut(path, kept["events"].get(path.name, 0))
            _rebuild_table(folder / PROGRESS, [row for row in rows if row.get("seed") == int(seed)], position["style"])
    except OSError as error:
        raise RunError(f"The metrics of {run} cannot be cut back: {disk.reason(error)}.") from error


# ---------------------------------------------------------------------------------------------------- formats


def _plain(value: float | str) -> float | str | None:
    """A value as the files hold it: integers stay integers; None for what is left out."""
    if isinstance(value, str):
        return csv_text(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _cleanrl(row: Mapping[str, float | str]) -> dict[str, float | str]:
    shown: dict[str, float | str] = {}
    actor_critic = any(tag in row for tag in ("train/policy_gradient_loss", "train/policy_loss", "train/actor_loss"))
    for tag, value in row.items():
        if tag == "train/loss" and not actor_critic:
            shown["losses/td_loss"] = value
        elif tag == "train/entropy_loss" and not isinstance(value, str):
            shown[CLEANRL[tag]] = -value
        else:
            shown[CLEANRL.get(tag, tag)] = value
    return shown


def _record(data: bytes) -> bytes:
    """TensorFlow's record: length, its checksum, the data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = len(data).to_bytes(8, "little")
    sums = [int(masked_crc32c(part)).to_bytes(4, "little") for part in (length, data)]
    return length + sums[0] + data + sums[1]


def _event_sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.glob("events.out.tfevents.*"))}


def _cut(path: Path, size: int) -> None:
    """Cuts a file to `size` bytes, to 0 by deleting it; a file that is shorter or missing stays as it is."""
    with suppress(FileNotFoundError):
        if size == 0:
            disk.fs.unlink(path)
            return
        with disk.opened(path, os.O_RDWR) as fd:
            if disk.regular_size(fd) > size:
                disk.fs.truncate(fd, size)
                disk.fs.fsync(fd)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError):  # a line that a power failure tore
                row = disk.parse_json(line)
                if isinstance(row, dict):
                    rows.append(cast("dict[str, Any]", row))
    return rows


def _rebuild_table(path: Path, rows: list[dict[str, Any]], style: str) -> None:
    shown: list[dict[str, Any]] = []
    for row in rows:
        values = {tag: value for tag, value in row.items() if tag not in ("seed", "step", "time")}
        values = _cleanrl(values) if style == "cleanrl" else values
        shown.append({"time/total_timesteps": row.get("step"), "time/time_elapsed": row.get("time"), **values})
    columns = list(dict.fromkeys(column for row in shown for column in row))
    if shown:
        _write_table(path, columns, shown)
    else:
        _cut(path, 0)


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            return list(reader.fieldnames or []), [{k: v for k, v in row.items() if k} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error):
        return [], []


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    lines = [_csv_line(columns), *(_csv_line([row.get(column, "") for column in columns]) for row in rows)]
    disk.write_atomic(path, b"".join(lines))


def _csv_line(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read_evaluations(path: Path) -> dict[str, list[Any]]:
    data: dict[str, list[Any]] = {"timesteps": [], "results": [], "ep_lengths": [], "successes": []}
    with suppress(FileNotFoundError, ValueError, OSError), np.load(path, allow_pickle=False) as file:
        for key in data:
            data[key] = np.asarray(file[key]).tolist() if key in file.files else []
    return data


def _npz(data: Mapping[str, list[Any]]) -> bytes:
    width = max((len(row) for row in data["results"]), default=0)
    arrays: dict[str, np.ndarray] = {"timesteps": np.asarray(data["timesteps"], np.int64)}
    for key, empty in (("results", math.nan), ("ep_lengths", 0), ("successes", math.nan)):
        if data[key]:  # evaluations with fewer episodes than the largest one are filled up
            arrays[key] = np.asarray([[*row, *[empty] * (width - len(row))] for row in data[key]])
    file = io.BytesIO()
    np.savez(file, **cast("dict[str, Any]", arrays))
    return file.getvalue()


def _cut_evaluations(path: Path, count: int) -> None:
    data = _read_evaluations(path)
    if count == 0:
        _cut(path, 0)
    elif len(data["timesteps"]) > count:
        disk.write_atomic(path, _npz({key: rows[:count] for key, rows in data.items()}))
