"""Grille: a perforated sheet of brushed steel."""

from __future__ import annotations

import math

import numpy as np

from uad_core.datasets.procedural.camera import Studio
from uad_core.datasets.procedural.canvas import Canvas, Surface, circle_distance, cover, segment_distance
from uad_core.datasets.procedural.defects import Fault, blob, curl, scratch
from uad_core.datasets.procedural.exact import Dice, Field, clip, fractal, noise, smooth

__all__ = ["DEFECTS", "REBUILT", "STUDIO", "grille"]

STUDIO = Studio(azimuth=0.63, tilt=0.55, ambient=0.40, sheen=3, specks=0.015, fibres=1, dust_opacity=0.4,
                focus=0.004, depth=0.006)  # fmt: skip

_PITCH, _RADIUS = 0.30, 0.105
_ROW = _PITCH * math.sqrt(3.0)  # the holes are staggered: two square lattices of this height
_STEEL = (0.36, 0.37, 0.385)


def _coordinates(canvas: Canvas, dice: Dice) -> tuple[Field, Field]:
    """Return the sheet's coordinates (H, W): it lies almost straight, at any phase."""
    return canvas.posed(dice.uniform("turn", -0.008, 0.008), dice.uniform("scale", 0.98, 1.02),
                        dice.uniform("dx", -0.15, 0.15), dice.uniform("dy", -0.25, 0.25))  # fmt: skip


def _holes(x: Field, y: Field) -> Field:
    """Return the signed distance to the nearest hole, negative inside."""
    best = None
    for offset in (0.0, 0.5):
        u, v = x * (1.0 / _PITCH) + offset, y * (1.0 / _ROW) + offset
        du, dv = (u - np.floor(u + 0.5)) * _PITCH, (v - np.floor(v + 0.5)) * _ROW
        square = du * du + dv * dv
        best = square if best is None else np.minimum(best, square)
    return np.sqrt(best) - _RADIUS


def grille(canvas: Canvas, dice: Dice, change: Field | None = None, plug: bool = False) -> Surface:
    """The sheet; ``change`` (signed distance) is filled with metal if ``plug``, else cut out.

    Sharp edges that a coarse view already foretells: what is left over in the fine view is a defect.
    """
    x, y = _coordinates(canvas, dice)
    hole = _holes(x, y)
    if change is not None:
        hole = np.maximum(hole, -change) if plug else np.minimum(hole, change)
    surface = Surface.blank(x, y, canvas.pixel, _STEEL, 0.30)
    brush = noise(x * 2.3, y * 110.0, dice.seed("brush")) + 0.6 * noise(x * 9.0, y * 61.0, dice.seed("strokes"))
    cloud = fractal(x * 0.8, y * 0.8, dice.seed("cloud"), 2)
    band = (y + 0.25 * x - dice.uniform("band", -0.8, 0.8)) * 1.1
    glow = np.maximum(1.0 - band * band, 0.0)
    surface.albedo *= (1.0 + 0.07 * brush + 0.10 * cloud) * (0.82 + 0.38 * glow * glow)
    rolled = clip(1.0 - hole * (1.0 / 0.022), 0.0, 1.0)  # the punch rounds the edge
    surface.height += 0.0012 * brush - 0.012 * rolled * rolled
    surface.tint(cover(hole - 0.006, 0.012), (0.8, 0.8, 0.8))
    _depths(surface, dice, hole)
    return surface


def _depths(surface: Surface, dice: Dice, hole: Field) -> None:
    """Draw what is seen through the holes: a dark, blurred space, and the lit side of the wall."""
    inside = cover(hole, surface.pixel * 1.3)
    haze = fractal(surface.x * 1.5, surface.y * 1.5, dice.seed("behind"), 2)
    surface.paint(inside, [c * (1.0 + 0.3 * haze) for c in (0.022, 0.024, 0.028)], 0.0)
    surface.height += inside * (-0.012 - surface.height)
    wall = inside * smooth(-0.050, -0.008, hole)
    towards = clip(_slope(hole), 0.0, 1.0)  # the wall that faces the lamp
    surface.paint(wall * towards, (0.30, 0.305, 0.315), 0.0)


def _slope(hole: Field) -> Field:
    """Return the change of the distance away from the lamp, about -1 to 1, from neighbouring pixels."""
    out = np.zeros_like(hole)
    down, right = hole[2:, 1:-1] - hole[:-2, 1:-1], hole[1:-1, 2:] - hole[1:-1, :-2]
    length = np.sqrt(down * down + right * right) + 1e-6
    out[1:-1, 1:-1] = (0.75 * down + 0.66 * right) / length
    return out


def _nearest(x: float, y: float) -> tuple[float, float]:
    """Return the centre of the hole nearest to a place."""
    best = None
    for offset in (0.0, 0.5):
        u = (math.floor(x / _PITCH + offset + 0.5) - offset) * _PITCH
        v = (math.floor(y / _ROW + offset + 0.5) - offset) * _ROW
        far = (u - x) * (u - x) + (v - y) * (v - y)
        best = (far, u, v) if best is None or far < best[0] else best
    return best[1], best[2]


def _blocked(canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, None]:
    """Holes that were not punched through, wholly or in part."""
    x, y = _coordinates(canvas, dice)
    cx, cy = _nearest(*fault.spot(0.4, 0.45))
    metal, size = None, _RADIUS * 1.12
    # At low severity the slug covers the hole only from one side, but never the hole beside it.
    away = (1.0 - fault.severity) * 2.0 * _RADIUS
    for k in range(1 + int(fault.size(0.0, 2.99))):
        slug = circle_distance(x, y, cx + k * _PITCH + away, cy + 0.4 * away, size)
        slug = np.maximum(slug, circle_distance(x, y, cx + k * _PITCH, cy, size))
        metal = slug if metal is None else np.minimum(metal, slug)
    wobble = 0.012 * noise(x * 24.0, y * 24.0, fault.dice.seed("edge"))
    return grille(canvas, dice, metal + wobble, plug=True), None


def _torn(canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, None]:
    """The metal between neighbouring holes is torn: from a nick in one edge to a slot over several holes."""
    x, y = _coordinates(canvas, dice)
    cx, cy = _nearest(*fault.spot(0.4, 0.45))
    width = 0.055 * (0.5 + 0.5 * fault.severity)
    inside = _RADIUS - 0.02  # so far the tear is within the hole, where nothing shows
    length = inside + (fault.size(0.15, 0.85) - inside) * fault.severity
    towards = fault.dice.sign("towards")
    gap = segment_distance(x, y, cx, cy, cx + towards * length, cy) - width
    ragged = 0.03 * fault.severity * fractal(x * 9.0, y * 9.0, fault.dice.seed("ragged"), 3)
    return grille(canvas, dice, gap + ragged), None


def _scratched(surface: Surface, fault: Fault) -> Field:
    """A scratch on the metal; it jumps over the holes."""
    x, y = fault.spot(0.4, 0.4)
    cx, cy = _nearest(x, y)
    far = math.sqrt((x - cx) * (x - cx) + (y - cy) * (y - cy))
    if far < _PITCH / 2.0:
        # Half way between two holes, or a short scratch would fall into one of them.
        x, y = cx + (x - cx) * (_PITCH / 2.0 / far), cy + (y - cy) * (_PITCH / 2.0 / far)
    metal = 1.0 - cover(_holes(surface.x, surface.y), surface.pixel * 1.3)
    return scratch(surface, fault, (x, y), (0.62, 0.63, 0.64), (0.06, 0.6), 0.008, 0.006, 0.5, solid=metal)


def _rust(surface: Surface, fault: Fault) -> Field:
    """Corrosion that starts at an edge: orange, grainy and matt."""
    size = fault.size(0.05, 0.34)
    distance = blob(surface, fault, *fault.spot(0.45, 0.45), size, 0.45)
    grain = fractal(surface.x * 18.0, surface.y * 18.0, fault.dice.seed("grain"), 4, 0.65)
    shape = cover(np.maximum(distance, -0.004 - _holes(surface.x, surface.y)) + 0.01 * grain, 0.012)
    where = shape * clip(0.72 + 0.45 * grain, 0.25, 0.95)
    surface.paint(where, (0.20, 0.085, 0.030), 0.0)
    surface.height += shape * 0.006 * grain
    return shape


REBUILT = {"blocked_hole": _blocked, "torn_bridge": _torn}
DEFECTS = {
    "scratch": _scratched,
    "rust": _rust,
    "contamination": lambda s, f: curl(s, f, f.spot(0.45, 0.45), (0.50, 0.42, 0.24), (0.05, 0.30), 0.013, 0.5),
}
