"""Recordings: read back with the decoder, frame by frame."""

import importlib.util
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from polyak.errors import PolyakError
from polyak.report import record, video


def frames(count, height=64, width=96):
    for k in range(count):
        yield np.full((height, width, 3), (10 * k, 100, 200 - 10 * k), np.uint8)


def decoded(path):
    """What ffmpeg says about a file, and its frames."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    about = next(line for line in done.stderr.decode().splitlines() if "Video:" in line)
    width, height = map(int, re.search(r" (\d+)x(\d+)[, ]", about).groups())
    return about, np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def test_mp4_holds_the_frames(tmp_path):
    path = record(frames(12), tmp_path / "deep" / "film.mp4", 12)
    assert path == tmp_path / "deep" / "film.mp4"
    about, shown = decoded(path)
    assert "h264" in about
    assert "yuv420p" in about
    assert " 12 fps" in about
    assert len(shown) == 12
    for ours, theirs in zip(frames(12), shown, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 6  # H.264 and 4:2:0 lose a little
    assert path.read_bytes().find(b"moov") < path.read_bytes().find(b"mdat"), "playable from the first byte"


def test_odd_sizes_are_padded_and_slow_films_keep_their_rate(tmp_path):
    about, shown = decoded(record(frames(3, 63, 95), tmp_path / "film.mp4", 2.5))
    assert " 2.50 fps" in about
    assert shown.shape == (3, 64, 96, 3)


def test_gif_where_there_is_no_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_encoder", lambda: False)
    path = record(frames(4), tmp_path / "film.mp4", 10)
    assert path == tmp_path / "film.gif"
    with Image.open(path) as image:
        assert image.n_frames == 4
        assert image.info["duration"] == 100
        assert image.info["loop"] == 0
        assert image.size == (96, 64)


def test_without_either_the_install_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PolyakError, match=r'pip install "polyak\[video\]"'):
        record(frames(2), tmp_path / "film.mp4", 10)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ([], "no frame to record"),
        ([np.zeros((4, 4, 3))], "frame 0 is float64"),
        ([np.zeros((4, 4), np.uint8)], "of shape"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], "frame 1 has the shape"),
    ],
)
def test_bad_frames_are_refused_and_leave_no_file(tmp_path, bad, sentence):
    with pytest.raises(PolyakError, match=sentence):
        record(bad, tmp_path / "film.mp4", 10)
    assert list(tmp_path.iterdir()) == []


def test_bad_rates_are_refused(tmp_path):
    with pytest.raises(PolyakError, match="fps is 0"):
        record(frames(1), tmp_path / "film.mp4", 0)
