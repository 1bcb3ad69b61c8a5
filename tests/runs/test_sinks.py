"""Sinks: every row once, also after a resume; a disk that refuses never stops training (CT25, K6); the live line."""

import csv
import errno
import io
import json
import os
import random
import shutil
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from polyak.errors import PolyakError
from polyak.runs import disk, sinks
from polyak.runs.progress import Progress, duration, sparkline

# -- foreign strings


def test_escape_makes_one_harmless_line():
    assert sinks.escape("plain ü → 界 'quoted' [bold]") == "plain ü → 界 'quoted' [bold]"
    assert sinks.escape("a\x1b[31m\r\n\x00\x7f\x9b\u202e\u2028\ud800") == (
        r"a\x1b[31m\x0d\x0a\x00\x7f\x9b\u202e\u2028\ud800"
    )
    assert len(sinks.escape("x" * 10**7)) < 11_000


def test_no_random_string_gets_through():
    rng = random.Random(0)
    pool = [*range(0x120), *range(0x2000, 0x2070), *range(0xD7F0, 0xE010), 0xFEFF, 0x1F600, 0xE0001, 0x10FFFF]
    for _ in range(1000):
        text = sinks.escape("".join(chr(rng.choice(pool)) for _ in range(50)))
        assert len(text.splitlines()) <= 1
        assert not {unicodedata.category(c) for c in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        text.encode()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\n-1"])
def test_spreadsheets_calculate_nothing(text):
    shown = sinks.csv_text(text)
    assert shown.lstrip()[0] not in "=+-@"
    assert shown[0] == "'" or shown[0] == "\\"
    assert sinks.csv_text("CartPole-v1") == "CartPole-v1"


# -- files


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def play(metrics, first, last):
    """Rows `first` to `last` of a made-up training of two seeds; the same for every way of getting there."""
    for i in range(first, last):
        for seed in (0, 1):
            values = {"rollout/ep_rew_mean": i + 0.5 * seed, "time/iterations": i, "train/loss": float("nan")}
            if i >= 3:
                values["train/loss"] = np.float32(1 / i)
            if i % 4 == 3:
                values["eval/mean_reward"] = -float(i)
                metrics.evaluation(seed, 100 * i, [i, i + 1.0], [5, 6], [0.0, 1.0])
            metrics.log(seed, 100 * i, 0.25 * i, values)
            metrics.episodes(seed, [(i + 0.5, 7, 0.25 * i, i % 2)])


def opened(run, told=None, **options):
    return sinks.Metrics(run, [0, 1], "CartPole-v1", notify=(told if told is not None else []).append, **options)


def events(folder):
    """Scalars by (tag, step), as TensorBoard reads them: later files purge from their start step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c

    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: int(p.name.rsplit(".", 1)[1])):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            body = data[at + 12 : at + 12 + length]
            assert int.from_bytes(data[at + 8 : at + 12], "little") == masked_crc32c(data[at : at + 8])
            assert int.from_bytes(data[at + 12 + length : at + 16 + length], "little") == masked_crc32c(body)
            event = Event.FromString(body)
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                found = {key: value for key, value in found.items() if key[1] < event.step}
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            at += 16 + length
    return found


def test_all_files_hold_the_rows(tmp_path):
    told = []
    metrics = opened(tmp_path, told)
    play(metrics, 0, 8)
    metrics.close()
    assert told == []
    found = rows(tmp_path / "metrics.jsonl")
    assert len(found) == 16
    assert found[0] == {"seed": 0, "step": 0, "time": 0.0, "rollout/ep_rew_mean": 0.0, "time/iterations": 0}
    assert found[9]["train/loss"] == pytest.approx(0.25)
    progress = table(tmp_path / "seed_1" / "progress.csv")
    assert len(progress) == 8
    assert progress[0]["train/loss"] == ""
    assert progress[7]["eval/mean_reward"] == "-7.0"
    assert progress[7]["time/total_timesteps"] == "700"
    monitor = (tmp_path / "seed_0" / "monitor.csv").read_text().splitlines()
    assert json.loads(monitor[0][1:])["env_id"] == "CartPole-v1"
    assert monitor[1:3] == ["r,l,t,env", "0.500000,7,0.000000,0"]
    assert len(monitor) == 10
    with np.load(tmp_path / "seed_0" / "evaluations.npz", allow_pickle=False) as data:
        assert data["timesteps"].tolist() == [300, 700]
        assert data["results"].shape == data["ep_lengths"].shape == data["successes"].shape == (2, 2)
    scalars = events(tmp_path / "seed_1")
    assert scalars[("rollout/ep_rew_mean", 700)] == 7.5
    assert len([key for key in scalars if key[0] == "train/loss"]) == 5
    names = os.listdir(tmp_path / "seed_1")
    assert not [name for name in names if os.uname().nodename in name]


@pytest.mark.parametrize("style", ["sb3", "cleanrl"])
@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_a_resumed_run_has_each_row_once(tmp_path, cut, style):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run in (whole, parts):
        run.mkdir()
    metrics = opened(whole, log_style=style)
    play(metrics, 0, 10)
    metrics.close()

    metrics = opened(parts, log_style=style)
    play(metrics, 0, cut)
    position = json.loads(json.dumps(metrics.position()))
    play(metrics, cut, 8)  # lost: the process was killed after these
    metrics.close()
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"seed": 0, "torn')
    sinks.truncate(parts, position)
    metrics = opened(parts, log_style=style, resumed=position)
    play(metrics, cut, 10)
    metrics.close()

    assert rows(parts / "metrics.jsonl") == rows(whole / "metrics.jsonl")
    for seed in ("seed_0", "seed_1"):
        assert table(parts / seed / "progress.csv") == table(whole / seed / "progress.csv")
        lines = [(run / seed / "monitor.csv").read_text().splitlines()[1:] for run in (whole, parts)]
        assert lines[0] == lines[1]
        data = [np.load(run / seed / "evaluations.npz", allow_pickle=False) for run in (whole, parts)]
        assert all(np.array_equal(data[0][key], data[1][key]) for key in data[0].files)
        for file in data:
            file.close()
        assert events(parts / seed) == events(whole / seed)


def test_tags_in_cleanrls_words(tmp_path):
    metrics = opened(tmp_path, log_style="cleanrl")
    values = {
        "rollout/ep_rew_mean": 3.0,
        "time/fps": 9,
        "train/entropy_loss": -0.5,
        "train/policy_gradient_loss": 0.1,
        "train/loss": 7.0,
        "train/clip_fraction": 0.2,
    }
    metrics.log(0, 10, 1.0, values)
    metrics.log(1, 10, 1.0, {"train/loss": 0.3})
    metrics.close()
    (first,) = table(tmp_path / "seed_0" / "progress.csv")
    assert first["charts/episodic_return"] == "3.0"
    assert first["charts/SPS"] == "9"
    assert first["losses/entropy"] == "0.5"
    assert first["losses/policy_loss"] == "0.1"
    assert first["losses/clipfrac"] == "0.2"
    assert first["train/loss"] == "7.0"
    assert table(tmp_path / "seed_1" / "progress.csv")[0]["losses/td_loss"] == "0.3"
    assert rows(tmp_path / "metrics.jsonl")[0]["train/entropy_loss"] == -0.5
    with pytest.raises(PolyakError, match="sb3, cleanrl"):
        opened(tmp_path, log_style="clean")


def test_hostile_values_stay_inside_their_cells(tmp_path):
    metrics = sinks.Metrics(tmp_path, [0], "x\n\x1b[2J", notify=print)
    metrics.log(0, 1, 1.0, {"note": '=cmd|"\n', "x": float("inf"), "n": np.int64(2**40)})
    metrics.episodes(0, [(1.0, 2, 3.0, 0)])
    metrics.close()
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert "x" not in row
    assert row["n"] == 2**40
    assert table(tmp_path / "seed_0" / "progress.csv")[0]["note"].startswith("'=cmd")
    assert "\x1b" not in (tmp_path / "seed_0" / "monitor.csv").read_text()


def test_a_missing_tensorboardx_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "tensorboard_ready", lambda: False)
    told = []
    metrics = opened(tmp_path, told)
    play(metrics, 0, 2)
    metrics.close()
    assert len(told) == 1
    assert "pip install tensorboardX" in told[0]


# -- a disk that refuses


class FullDevice(disk.Disk):
    """Opens the kernel's always-full device in place of some files."""

    def __init__(self, names):
        self.names = names

    def open(self, path: str | Path, flags: int, dir_fd: int | None = None) -> int:
        full = flags & os.O_CREAT and any(name in str(path) for name in self.names)
        return os.open("/dev/full", os.O_WRONLY) if full else super().open(path, flags, dir_fd)


ALL = ["metrics.jsonl", "progress.csv", "monitor.csv", "evaluations.npz", "tfevents"]


@pytest.mark.parametrize("names", [*[[name] for name in ALL], ALL])
def test_a_full_disk_costs_rows_and_one_warning_a_file(tmp_path, monkeypatch, names):
    monkeypatch.setattr(sinks, "INTERVAL", 0.0)
    told = []
    metrics = opened(tmp_path, told)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "fs", FullDevice(names))
        play(metrics, 0, 6)
        assert json.loads(json.dumps(metrics.position()))["step"] == 500
    assert len(told) == len(set(told)) == (2 * len(names) - ("metrics.jsonl" in names))
    assert all("No space left on device" in sentence and "training goes on" in sentence for sentence in told)
    assert all(count > 0 for count in metrics.dropped.values())
    assert sum("metrics.jsonl" in name for name in metrics.dropped) == ("metrics.jsonl" in names)
    if "metrics.jsonl" in names:
        assert metrics.dropped["metrics.jsonl"] == 12
    metrics.close()
    assert "lost: " in told[-1]


def test_a_disk_with_room_again_is_used_again(tmp_path, monkeypatch):
    """The write fails half-way now and then: no half row stays."""

    class Short(disk.Disk):
        calls = 0

        def write(self, fd: int, data: disk.Buffer) -> int:
            self.calls += 1
            if self.calls % 5 == 1:
                return super().write(fd, memoryview(data)[: len(data) // 2])
            if self.calls % 5 == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(fd, data)

    monkeypatch.setattr(disk, "fs", Short())
    told = []
    metrics = opened(tmp_path, told)
    play(metrics, 0, 20)
    metrics.close()
    lines = rows(tmp_path / "metrics.jsonl")  # every line is valid JSON
    assert 0 < metrics.dropped["metrics.jsonl"] == 40 - len(lines)
    for path in tmp_path.glob("seed_*/monitor.csv"):
        assert all(line.count(",") == 3 for line in path.read_text().splitlines()[1:])
    assert len([t for t in told if t.startswith("metrics.jsonl cannot")]) == 1


def test_a_deleted_folder_or_read_only_one_stops_nothing(tmp_path):
    told = []
    metrics = opened(tmp_path / "run", told)
    (tmp_path / "run").write_text("a file where the folder should be")
    play(metrics, 0, 4)
    assert metrics.position()["rows"] == 0
    metrics.close()
    assert told


def test_links_are_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "precious")
    told = []
    metrics = opened(tmp_path / "run", told)
    play(metrics, 0, 2)
    metrics.close()
    assert (tmp_path / "precious").read_text() == "kept"
    assert "metrics.jsonl cannot be written" in told[0]


def test_truncating_what_is_shorter_or_missing_is_harmless(tmp_path):
    metrics = opened(tmp_path)
    play(metrics, 0, 5)
    position = metrics.position()
    metrics.close()
    os.truncate(tmp_path / "metrics.jsonl", 100)
    shutil.rmtree(tmp_path / "seed_1")
    sinks.truncate(tmp_path, position)
    assert len(table(tmp_path / "seed_0" / "progress.csv")) == 1


# -- the live line


def display(width, monkeypatch, **options):
    monkeypatch.setattr("polyak.runs.progress.REDRAW", 0.0)
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    return Console(width=width, file=file, record=True, **options)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_the_live_line_fits_and_says_the_numbers(monkeypatch, width):
    console = display(width, monkeypatch)
    progress = Progress(1_000_000, 5, "PPO on CartPole-v1", console=console)
    progress.update(0, 0.0, note="compiling")
    for i in range(1, 6):
        progress.update(100_000 * i, 25_000.0, (90.0 * i, 80.0 * i, 95.0 * i))
    progress.close()
    progress.close()
    lines = console.export_text().splitlines()
    assert lines[0] == "PPO on CartPole-v1, 5 seeds"
    assert all(len(line) <= width for line in lines)
    assert "return 450.0" in lines[1]
    if width >= 80:
        assert "[400.0, 475.0]" in lines[1]
        assert "500,000/1,000,000" in lines[1]
    if width >= 140:
        assert "25.0k steps/s" in lines[1]
        assert "▁" in lines[1]


def test_without_a_terminal_there_are_few_plain_lines(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(1000, 2, "DQN on \x1b[31mPong")
    for step in range(0, 1001, 5):
        now[0] += 0.4
        progress.update(step, 25.0, (1.0, float("nan"), float("nan")))
    progress.message("a\nb")
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == r"DQN on \x1b[31mPong, 2 seeds"
    assert 10 <= len(lines) <= 20
    assert "  500/1,000 steps (50 %), 25 steps/s, return 1.00, 40 s left" in lines
    assert r"a\x0ab" in lines


def test_quiet_shows_messages_only(capsys):
    progress = Progress(10, 1, "t", quiet=True)
    progress.update(5, 1.0)
    progress.message("the disk is full")
    progress.close()
    assert capsys.readouterr().err == "the disk is full\n"


def test_a_closed_terminal_stops_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "gone")

    monkeypatch.setattr("sys.stderr", Gone())
    progress = Progress(10, 1, "t")
    for step in range(11):
        progress.update(step, 1.0)
    progress.message("x")
    progress.close()


def test_durations_and_sparklines():
    assert [duration(s) for s in (0.4, 59, 60, 3599, 3600, 90000)] == [
        "0 s", "59 s", "1:00 min", "59:59 min", "1:00 h", "25:00 h",
    ]  # fmt: skip
    assert sparkline([]) == sparkline([1.0]) == ""
    assert sparkline([0.0, 7.0]) == "▁█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert len(sparkline([float(i) for i in range(1000)])) == 16
