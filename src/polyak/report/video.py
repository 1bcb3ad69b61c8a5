"""Video files from rendered frames: H.264 through imageio-ffmpeg, else an animated GIF through Pillow."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

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
    import imageio_ffmpeg

    encode = cast("Callable[..., Any]", imageio_ffmpeg.write_frames)
    first = next(frames)
    size = (first.shape[1], first.shape[0])
    writer = encode(
        str(path),
        size,
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        quality=None,
        ffmpeg_log_level="error",
        output_params=["-crf", "23", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        writer.send(first)
        for frame in frames:
            writer.send(frame)
    finally:
        writer.close()


def _gif(frames: Iterator[Frame], path: Path, fps: float) -> None:
    from PIL import Image

    first = Image.fromarray(next(frames))
    rest = (Image.fromarray(frame) for frame in frames)
    duration = max(20, round(1000 / fps))  # viewers slow down anything shorter than 20 ms
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0, optimize=False)
