"""The bare board under the parts of the circuit."""

from __future__ import annotations

import numpy as np

from uad_core.datasets.procedural.canvas import (
    Canvas,
    Surface,
    box_distance,
    circle_distance,
    cover,
    lettering_distance,
    segment_distance,
)  # fmt: skip
from uad_core.datasets.procedural.exact import Dice, Field, clip, cos_turns, fractal, noise

__all__ = ["PITCH", "TIN", "board"]

PITCH = 0.27  # from leg to leg
TIN = (0.44, 0.44, 0.43)  # tinned metal
_MASK = (0.012, 0.115, 0.050)
_SILK = (0.72, 0.74, 0.70)
_PADS = (  # rectangular pads: centre, half sides
    *((k * PITCH, 0.48, 0.085, 0.15) for k in (-1, 0, 1)), (0.0, -0.52, 0.36, 0.14),
    (-0.73, -0.08, 0.085, 0.07), (-0.73, 0.26, 0.085, 0.07), (0.73, -0.08, 0.085, 0.07), (0.73, 0.26, 0.085, 0.07),
    (-0.73, -0.83, 0.085, 0.07), (-0.73, -0.49, 0.085, 0.07),
    (0.73, -0.83, 0.085, 0.07), (0.73, -0.49, 0.085, 0.07), (0.55, 0.82, 0.07, 0.085), (0.84, 0.82, 0.07, 0.085),
)  # fmt: skip
_TRACES = (  # corners of copper paths under the green mask
    (-PITCH, 0.5, -PITCH, 0.72, -0.5, 0.92, -0.5, 1.2), (0, 0.5, 0, 1.2), (PITCH, 0.5, PITCH, 0.66, 0.55, 0.82),
    (-0.73, 0.26, -0.73, 0.6, -0.93, 0.8, -1.2, 0.8), (-0.73, -0.08, -0.73, -0.49), (0.73, 0.26, 0.73, 0.5, 0.84, 0.82),
    (0.73, -0.08, 0.73, -0.49), (0.73, -0.83, 0.73, -1.2), (0.4, -0.7, 0.4, -1.2), (-0.73, -0.83, -0.73, -1.2),
    (0.95, -1.2, 0.95, -0.35, 1.2, -0.1),
)  # fmt: skip
_OUTLINES = (  # centre, half sides
    (0.0, -0.16, 0.50, 0.33), (-0.73, 0.09, 0.13, 0.29), (0.73, 0.09, 0.13, 0.29), (-0.73, -0.66, 0.13, 0.29),
    (0.73, -0.66, 0.13, 0.29),
    (0.695, 0.82, 0.27, 0.13),
)  # fmt: skip
_NAMES = (("R1", -0.73, 0.47), ("R4", -0.73, -0.285), ("K3", 0.73, 0.47), ("R3", 0.73, -0.285), ("U1", 0.20, -0.74))
_VIAS = ((-0.5, 0.92), (0.4, -0.83), (0.95, -0.62), (-0.93, 0.8), (0.0, 0.86), (-0.46, 0.66))


def board_coordinates(canvas: Canvas, dice: Dice) -> tuple[Field, Field]:
    """Return the board's own coordinates (H, W): the fixture leaves it little play."""
    return canvas.posed(dice.uniform("turn", -0.005, 0.005), dice.uniform("scale", 0.985, 1.015),
                        dice.uniform("dx", -0.03, 0.03), dice.uniform("dy", -0.03, 0.03))  # fmt: skip


def board(canvas: Canvas, dice: Dice) -> Surface:
    """Draw the bare board: solder mask over copper and glass cloth, pads, vias, white print."""
    x, y = board_coordinates(canvas, dice)
    s = Surface.blank(x, y, canvas.pixel, _MASK, 0.10)
    cloth = cos_turns(x * 17.0) * cos_turns(y * 17.0)
    s.albedo *= 1.0 + 0.05 * cloth + 0.08 * fractal(x * 3.0, y * 3.0, dice.seed("mask"), 3)
    s.height += 0.0006 * cloth
    under = _copper(s)
    s.paint(under, (0.022, 0.20, 0.085))
    s.height += 0.010 * under
    for vx, vy in _VIAS:
        near = s.window(vx, vy, 0.07, 0.07)
        ring = circle_distance(near.x, near.y, vx, vy, 0.055)
        near.paint(cover(ring, s.pixel), TIN, 0.5)
        near.paint(cover(ring + 0.03, s.pixel), (0.01, 0.012, 0.01), 0.0)
    for pad in _PADS:
        near = s.window(*pad)
        _solder(near, dice, box_distance(near.x, near.y, *pad, 0.03))
    _silk(s, dice)
    return s


def _copper(s: Surface) -> Field:
    """Return where there is copper under the mask: traces, pads with a margin, and a plane that carries heat away."""
    out = cover(box_distance(s.x, s.y, 0.0, -0.30, 0.56, 0.46, 0.05), 0.02)
    for path in _TRACES:
        for k in range(0, len(path) - 2, 2):
            ax, ay, bx, by = map(float, path[k : k + 4])
            box = s.box((ax + bx) / 2.0, (ay + by) / 2.0, abs(bx - ax) / 2.0 + 0.05, abs(by - ay) / 2.0 + 0.05)
            out[box] = np.maximum(out[box], cover(segment_distance(s.x[box], s.y[box], ax, ay, bx, by) - 0.032, 0.02))
    for px, py, hw, hh in _PADS:
        box = s.box(px, py, hw + 0.04, hh + 0.04)
        pad = box_distance(s.x[box], s.y[box], px, py, hw + 0.02, hh + 0.02, 0.03)
        out[box] = np.maximum(out[box], cover(pad, 0.02))
    return out


def _solder(s: Surface, dice: Dice, distance: Field) -> None:
    """Draw a tinned pad: metal with a slightly domed, uneven film of solder."""
    where = cover(distance, s.pixel * 1.2)
    film = fractal(s.x * 9.0, s.y * 9.0, dice.seed("solder"), 3)
    s.paint(where, [c * (1.0 + 0.12 * film) for c in TIN], 0.45)
    dome = np.sqrt(clip(distance * -9.0, 0.0, 1.0)) * 0.016
    s.height += where * (dome + 0.006 * film)


def _silk(s: Surface, dice: Dice) -> None:
    """Draw the white print: outlines and designators."""
    white = np.zeros_like(s.height)
    for cx, cy, hw, hh in _OUTLINES:
        box = s.box(cx, cy, hw + 0.01, hh + 0.01)
        line = np.abs(box_distance(s.x[box], s.y[box], cx, cy, hw, hh)) - 0.008
        white[box] = np.maximum(white[box], cover(line, s.pixel * 1.2))
    for text, cx, cy in _NAMES:
        box = s.box(cx, cy, 0.14, 0.09)
        line = lettering_distance(s.x[box], s.y[box], text, cx, cy, 0.11) - 0.010
        white[box] = np.maximum(white[box], cover(line, s.pixel * 1.2))
    worn = 0.85 + 0.12 * noise(s.x * 45.0, s.y * 45.0, dice.seed("silk"))
    s.paint(white * worn * (1.0 - clip(s.gloss * 3.0 - 0.6, 0.0, 1.0)), _SILK, 0.02)
