"""The drawing primitives: coordinates, signed distances, and a surface that can be painted.

Scenes live in continuous coordinates, x and y from -1 to 1 (y downwards), so that the same scene
can be drawn at any resolution. Edges are anti-aliased by signed distance: a pixel is covered by
1/2 - distance / pixel size, limited to [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from uad_core.datasets.procedural.exact import Field, clip, direction

__all__ = [
    "Canvas",
    "Surface",
    "arc_distance",
    "blur",
    "box_distance",
    "circle_distance",
    "cover",
    "lettering_distance",
    "segment_distance",
]

Colour = tuple[float, float, float]  # linear light, red green blue


@dataclass(frozen=True)
class Canvas:
    """The pixel grid: ``x`` (1, W) and ``y`` (H, 1) in [-1, 1], ``pixel`` = the size of a pixel."""

    height: int
    width: int
    x: Field
    y: Field
    pixel: float

    @classmethod
    def of(cls, height: int, width: int) -> Canvas:
        """Return the grid of so many pixels."""
        x, y = ((np.arange(count, dtype=np.float32) * 2.0 + 1.0) / float(count) - 1.0 for count in (width, height))
        return cls(height, width, x[None, :], y[:, None], 1.0 / width + 1.0 / height)

    def posed(self, turns: float, scale: float = 1.0, dx: float = 0.0, dy: float = 0.0) -> tuple[Field, Field]:
        """Return the coordinates (H, W) of an object that was scaled, rotated and then shifted."""
        c, s = direction(turns)
        x, y = (self.x - dx) * (1.0 / scale), (self.y - dy) * (1.0 / scale)
        return x * c + y * s, y * c - x * s


def cover(distance: Field, width: float) -> Field:
    """Return the share of each pixel inside a shape whose edge is ``width`` soft."""
    return clip(0.5 - distance * (1.0 / width), 0.0, 1.0)


def circle_distance(x: Field, y: Field, cx: float, cy: float, radius: float) -> Field:
    """Return the signed distance to a circle, negative inside."""
    dx, dy = x - cx, y - cy
    return np.sqrt(dx * dx + dy * dy) - radius


def box_distance(x: Field, y: Field, cx: float, cy: float, half_w: float, half_h: float, radius: float = 0.0) -> Field:
    """Return the signed distance to a box with rounded corners, negative inside."""
    qx, qy = np.abs(x - cx) - (half_w - radius), np.abs(y - cy) - (half_h - radius)
    ox, oy = np.maximum(qx, 0.0), np.maximum(qy, 0.0)
    return np.sqrt(ox * ox + oy * oy) + np.minimum(np.maximum(qx, qy), 0.0) - radius


def segment_distance(x: Field, y: Field, ax: float, ay: float, bx: float, by: float) -> Field:
    """Return the distance to the line from (ax, ay) to (bx, by)."""
    ux, uy = bx - ax, by - ay
    px, py = x - ax, y - ay
    t = clip((px * ux + py * uy) * (1.0 / (ux * ux + uy * uy)), 0.0, 1.0)
    dx, dy = px - t * ux, py - t * uy
    return np.sqrt(dx * dx + dy * dy)


def arc_distance(
    x: Field, y: Field, cx: float, cy: float, turns: float, half: float, bend: float
) -> tuple[Field, Field]:
    """Return (distance, position) of a gently bent line of length 2 ``half`` around (cx, cy).

    The line is the parabola v = bend (u^2 - half^2 / 3) in axes rotated by ``turns``; position runs from -1 to 1
    along it, and the distance is to first order, exact enough for thin lines.
    """
    c, s = direction(turns)
    u, v = (x - cx) * c + (y - cy) * s, (y - cy) * c - (x - cx) * s
    w = clip(u, -half, half)
    slope = w * (2.0 * bend)
    across = (v - bend * (w * w - half * half / 3.0)) / np.sqrt(1.0 + slope * slope)
    return np.sqrt(across * across + (u - w) * (u - w)), w * (1.0 / half)


def _bow(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, pieces: int = 7) -> tuple[float, ...]:
    """Return the corners of an elliptic arc between two angles in turns (0 = right, 1/4 = down)."""
    points = [direction(start + (stop - start) * k / pieces) for k in range(pieces + 1)]
    return tuple(value for c, s in points for value in (cx + rx * c, cy + ry * s))


_STROKES = {  # polylines in a cell 1 wide and 1.5 high, y downwards
    "A": [(0, 1.5, 0.5, 0, 1, 1.5), (0.2, 1, 0.8, 1)],
    "D": [(0.3, 1.5, 0, 1.5, 0, 0, 0.3, 0, *_bow(0.3, 0.75, 0.7, 0.75, -0.25, 0.25))],
    "K": [(0, 0, 0, 1.5), (1, 0, 0, 0.85), (0.3, 0.65, 1, 1.5)],
    "R": [(0, 1.5, 0, 0, *_bow(0.55, 0.4, 0.45, 0.4, -0.25, 0.25), 0, 0.8), (0.5, 0.8, 1, 1.5)],
    "U": [(0, 0, *_bow(0.5, 1, 0.5, 0.5, 0.5, 0), 1, 0)],
    "0": [_bow(0.5, 0.75, 0.5, 0.75, 0, 1, 12)],
    "1": [(0.2, 0.3, 0.55, 0, 0.55, 1.5)],
    "3": [(*_bow(0.45, 0.36, 0.45, 0.36, -0.42, 0.25, 5),), (*_bow(0.45, 1.11, 0.5, 0.39, -0.25, 0.42),)],
    "4": [(0.75, 1.5, 0.75, 0, 0, 1.05, 1, 1.05)],
    "5": [(0.95, 0, 0.15, 0, 0.08, 0.68, *_bow(0.45, 1, 0.52, 0.5, -0.35, 0.4))],
    "7": [(0, 0, 1, 0, 0.4, 1.5)],
}


def lettering_distance(x: Field, y: Field, text: str, cx: float, cy: float, height: float, far: float = 1.0) -> Field:
    """Return the distance to the strokes of ``text`` centred at (cx, cy); ``far`` beyond its box.

    Only pixels near the text are worked on, which is most of the cost of drawing it.
    """
    unit, advance = height / 1.5, 1.45
    left = cx - unit * (advance * (len(text) - 1) + 1.0) / 2.0
    near = np.nonzero(box_distance(x, y, cx, cy, cx - left + unit, height) < 0.0)
    px, py = (x[near] - left) * (1.0 / unit), (y[near] - (cy - height / 2.0)) * (1.0 / unit)
    best = np.full(px.shape, far / unit, dtype=np.float32)
    for position, letter in enumerate(text):
        qx = px - advance * position
        for stroke in _STROKES[letter]:
            for k in range(0, len(stroke) - 2, 2):
                best = np.minimum(best, segment_distance(qx, py, *map(float, stroke[k : k + 4])))
    distance = np.full(x.shape, far, dtype=np.float32)
    distance[near] = best * unit
    return distance


def blur(image: Field, sigma: float) -> Field:
    """Blur the last two axes by about a Gaussian of ``sigma`` pixels: repeated (a, 1 - 2a, a), edges repeated."""
    variance = sigma * sigma
    passes = max(1, math.ceil(variance / 0.5))
    a = variance / (2.0 * passes)
    for _ in range(passes):
        for axis in (-1, -2):
            image = _three_taps(image, a, axis)
    return image


def _three_taps(image: Field, a: float, axis: int) -> Field:
    """Apply (a, 1 - 2a, a) along one axis, with the border pixel repeated."""
    source, out = np.moveaxis(image, axis, 0), np.empty_like(image)
    target = np.moveaxis(out, axis, 0)
    target[1:-1] = source[2:] + source[:-2]
    target[0], target[-1] = source[0] + source[1], source[-1] + source[-2]
    out *= a
    out += image * (1.0 - 2.0 * a)
    return out


@dataclass
class Surface:
    """What the camera looks at: colour, relief, sheen and how much light arrives.

    ``albedo`` (3, H, W) linear in [0, 1]; ``height`` (H, W) in scene units; ``gloss`` (H, W), the
    strength of highlights; ``light`` (H, W), 1 = unshadowed; ``x`` and ``y`` (H, W), the pattern's or object's
    own coordinates; ``pixel``, the size of a pixel in them.
    """

    albedo: Field
    height: Field
    gloss: Field
    light: Field
    x: Field
    y: Field
    pixel: float

    @classmethod
    def blank(cls, x: Field, y: Field, pixel: float, colour: Colour, gloss: float = 0.0) -> Surface:
        """Return a flat surface of one colour."""
        shape = np.broadcast_shapes(x.shape, y.shape)
        red, green, blue, flat, sheen, light = (
            np.full(shape, value, dtype=np.float32) for value in (*colour, 0.0, gloss, 1.0)
        )
        return cls(np.stack([red, green, blue]), flat, sheen, light, x, y, pixel)

    def box(self, cx: float, cy: float, half_w: float, half_h: float) -> tuple[slice, slice]:
        """Return the rows and columns that hold a box given in the surface's own coordinates."""
        step = 8  # a look at every eighth pixel is enough, with as much margin
        edge = (1.5 * step + 2.0) * self.pixel
        x, y = self.x[::step, ::step], self.y[::step, ::step]
        inside = (np.abs(x - cx) < half_w + edge) & (np.abs(y - cy) < half_h + edge)
        spans = []
        for axis in (1, 0):
            hit = np.flatnonzero(inside.any(axis=axis))
            # Off the picture one pixel is left, which every shape in the box leaves alone.
            spans.append(slice(int(hit[0]) * step, (int(hit[-1]) + 1) * step) if hit.size else slice(0, 1))
        return spans[0], spans[1]

    def window(self, cx: float, cy: float, half_w: float, half_h: float) -> Surface:
        """Return the part around a box, to draw small things quickly: painting it paints this surface."""
        box = self.box(cx, cy, half_w, half_h)
        return Surface(self.albedo[:, box[0], box[1]], self.height[box], self.gloss[box], self.light[box], self.x[box],
                       self.y[box], self.pixel)  # fmt: skip

    def paint(self, where: Field, colour: Colour | Field, gloss: float | None = None) -> None:
        """Blend a colour (and a gloss) in, by ``where`` (H, W) in [0, 1]."""
        for c in range(3):
            self.albedo[c] += (colour[c] - self.albedo[c]) * where
        if gloss is not None:
            self.gloss += (gloss - self.gloss) * where

    def tint(self, where: Field, factors: Colour) -> None:
        """Multiply the colour by ``factors``, by ``where`` in [0, 1]."""
        for c in range(3):
            self.albedo[c] *= 1.0 + (factors[c] - 1.0) * where

    def shade(self, where: Field, amount: float) -> None:
        """Take away a share ``amount`` of the light, by ``where`` in [0, 1]."""
        self.light *= 1.0 - amount * where
