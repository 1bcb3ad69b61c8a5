"""Small pictures without a graphics library: antialiased strokes and rectangles on a NumPy canvas.

Pixel coordinates are (x to the right, y downwards), in pixels, with the centre of the first pixel at (0.5, 0.5).
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Canvas = NDArray[np.float32]
Point = tuple[float, float]
Colour = tuple[int, int, int]

WHITE: Colour = (252, 252, 252)
INK: Colour = (45, 52, 64)
PALE: Colour = (205, 211, 220)
BLUE: Colour = (52, 101, 164)
ORANGE: Colour = (222, 135, 45)
GREEN: Colour = (76, 153, 86)
RED: Colour = (190, 60, 52)


def blank(height: int, width: int, colour: Colour = WHITE) -> Canvas:
    """A canvas [height, width, 3]; multiples of 16 suit every video codec."""
    return np.broadcast_to(np.asarray(colour, np.float32), (height, width, 3)).copy()


def stroke(canvas: Canvas, start: Point, end: Point, width: float, colour: Colour) -> None:
    """Draw a line with round ends, `width` pixels wide: every pixel within width/2 of the segment, soft at the rim."""
    height, breadth, _ = canvas.shape
    pad = width / 2 + 1
    left, right = (round(np.clip(v, 0, breadth)) for v in (min(start[0], end[0]) - pad, max(start[0], end[0]) + pad))
    top, bottom = (round(np.clip(v, 0, height)) for v in (min(start[1], end[1]) - pad, max(start[1], end[1]) + pad))
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
    along = np.clip(along, 0.0, 1.0)
    distance = np.hypot(x - start[0] - along * dx, y - start[1] - along * dy)
    cover = np.clip(width / 2 + 0.5 - distance, 0.0, 1.0)[..., None].astype(np.float32)
    region = canvas[top:bottom, left:right]
    region += cover * (np.asarray(colour, np.float32) - region)


def path(canvas: Canvas, points: list[Point], width: float, colour: Colour) -> None:
    """Draw strokes from each point to the next."""
    for start, end in pairwise(points):
        stroke(canvas, start, end, width, colour)


def disc(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
    """Draw a filled circle."""
    stroke(canvas, centre, centre, 2 * radius, colour)


def rectangle(canvas: Canvas, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    """Fill an upright rectangle, rounded to whole pixels."""
    height, breadth, _ = canvas.shape
    x0, x1 = (round(np.clip(v, 0, breadth)) for v in (left, right))
    y0, y1 = (round(np.clip(v, 0, height)) for v in (top, bottom))
    canvas[y0:y1, x0:x1] = colour


def picture(canvas: Canvas) -> NDArray[np.uint8]:
    """The canvas as an image, uint8 [H, W, 3]."""
    return canvas.round().clip(0, 255).astype(np.uint8)
