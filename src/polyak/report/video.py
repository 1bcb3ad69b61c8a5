"""Video files from rendered frames: H.264 through imageio-ffmpeg, else an animated GIF through Pillow."""

import importlib.util
import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from polyak.errors import PolyakError

Frame: TypeAlias = NDArray[np.uint8]  # [height, width, 3], RGB


def record(frames: Iterable[Frame], path: Path, fps: float) -> Path:
    """Writes frames to a video file and returns its path.

    Args:
        frames: uint8 arrays [height, width, 3], all of one size, consumed one at a time.
        path: where to; the suffix becomes .mp4 where imageio-ffmpeg is installed, else .gif.
        fps: frames a second.

    Raises:
        PolyakError: without frames, for a frame of the wrong type or size, and where neither package is installed.
    """
    if not 0 < fps <= 1000:
        raise PolyakError(f"a video needs between 0 and 1000 frames a second, but fps is {fps}.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("imageio_ffmpeg") is not None and _encoder():
        path, encode = path.with_suffix(".mp4"), _mp4
    elif importlib.util.find_spec("PIL") is not None:
        path, encode = path.with_suffix(".gif"), _gif
    else:
        raise PolyakError('recording a video needs imageio-ffmpeg or Pillow: pip install "polyak[video]".')
    try:
        encode(_checked(frames), path, fps)
    except BaseException:  # a half-written video, whatever the reason, is worth nothing
        path.unlink(missing_ok=True)
        raise
    return path


def _encoder() -> bool:
    """Whether imageio-ffmpeg has a working ffmpeg: some platforms get the package without the program."""
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return False
    return True


def _checked(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames, contiguous and padded to even sizes (yuv420p halves both); the edge is repeated."""
    shape: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        image: NDArray[Any] = np.asarray(frame)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise PolyakError(
                f"frame {index} is {image.dtype} of shape {list(image.shape)}: a video takes uint8 [height, width, 3]."
            )
        if shape is not None and image.shape != shape:
            raise PolyakError(f"frame {index} has the shape {list(image.shape)}, but the first had {list(shape)}.")
        shape = image.shape
        even = ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0))
        yield np.ascontiguousarray(np.pad(image, even, mode="edge"))
    if shape is None:
        raise PolyakError("there is no frame to record: does the environment render with render_mode='rgb_array'?")


def _mp4(frames: Iterator[Frame], path: Path, fps: float) -> None:
    """Frames through a pipe to ffmpeg; imageio's own writer forks with a hook, which is unsafe beside jax's threads."""
    import imageio_ffmpeg

    first = next(frames)
    size = f"{first.shape[1]}x{first.shape[0]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}", "-i", "-"]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "23", "-movflags", "+faststart", "-r", f"{fps:g}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as encoder:
        pipe, errors = cast("IO[bytes]", encoder.stdin), cast("IO[bytes]", encoder.stderr)
        try:
            for frame in itertools.chain([first], frames):
                pipe.write(frame.data)
            pipe.close()
        except BrokenPipeError:
            encoder.kill()
        said = errors.read().decode(errors="replace").strip()
        if encoder.wait() != 0:
            raise PolyakError(f"the video {path} could not be encoded: {said or 'ffmpeg stopped'}")


def _gif(frames: Iterator[Frame], path: Path, fps: float) -> None:
    from PIL import Image

    first = Image.fromarray(next(frames))
    rest = (Image.fromarray(frame) for frame in frames)
    duration = max(20, round(1000 / fps))  # viewers slow down anything shorter than 20 ms
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0, optimize=False)
