"""Tablet: a coated, printed caplet on a conveyor belt, at any rotation."""

from __future__ import annotations

import math

import numpy as np

from uad_core.datasets.procedural.camera import Studio
from uad_core.datasets.procedural.canvas import (
    Canvas,
    Surface,
    box_distance,
    cover,
    lettering_distance,
)
from uad_core.datasets.procedural.defects import Fault, blob, crack, patch, stain
from uad_core.datasets.procedural.exact import Dice, Field, clip, cos_turns, fractal, noise, smooth

__all__ = ["DEFECTS", "REBUILT", "STUDIO", "tablet"]

STUDIO = Studio(
    azimuth=0.66, tilt=0.62, ambient=0.34, sheen=4, specks=0.03, fibres=1, dust_opacity=0.45, focus=0.004, depth=0.007
)

_LONG, _SHORT = 0.66, 0.28
_PRINT = (("UD", -0.33), ("350", 0.32))  # text and its place along the caplet
_BREAK = 0.08  # width of the broken face
_INK = (0.03, 0.055, 0.20)


def _belt(canvas: Canvas, dice: Dice) -> Surface:
    """Return the conveyor belt: dark matte rubber with a fine waffle relief."""
    dx, dy = dice.uniform("belt x", 0, 1), dice.uniform("belt y", 0, 1)
    x, y = canvas.posed(0.0, 1.0, dx, dy)
    surface = Surface.blank(x, y, canvas.pixel, (0.028, 0.062, 0.072), 0.05)
    relief = cos_turns(x * 15.0) * cos_turns(y * 15.0)
    worn = fractal(x * 3.0, y * 3.0, dice.seed("wear"), 4)
    fine = noise(x * 90.0, y * 90.0, dice.seed("rubber"))
    surface.albedo *= 1.0 + 0.22 * worn + 0.12 * fine
    surface.height += 0.0035 * relief + 0.0012 * fine
    return surface


def _ink(surface: Surface, texts: tuple[tuple[str, float], ...], dx: float = 0.0, dy: float = 0.0) -> Field:
    """Return where the print is, worn a little as print on a coating is."""
    ink = np.zeros_like(surface.x)
    for text, at in texts:
        distance = lettering_distance(surface.x, surface.y, text, at + dx, dy, 0.21)
        ink = np.maximum(ink, cover(distance - 0.017, surface.pixel * 1.4))
    return ink


def tablet(canvas: Canvas, dice: Dice, notch: Field | None = None, ink: Field | None = None) -> Surface:
    """The caplet, optionally with a part broken off (``notch`` = signed distance) or with another print.

    Its rotation is arbitrary, so what is normal at a place differs from image to image: hard for references tied
    to positions.
    """
    surface = _belt(canvas, dice.child("belt"))
    x, y = _pose(canvas, dice)
    surface.x, surface.y = x, y
    distance = box_distance(x, y, 0.0, 0.0, _LONG, _SHORT, _SHORT)
    _shadow(surface, canvas, dice, distance)
    # Measured from the whole caplet: a break does not change the curvature of what is left.
    depth = clip(distance * (-1.0 / _SHORT), 0.0, 1.0)
    rough = np.zeros_like(distance)
    if notch is not None:
        rough = 1.0 - smooth(_BREAK * 0.75, _BREAK, notch)
        surface.light += (0.75 - surface.light) * cover(notch, 0.05) * cover(distance - 0.03, 0.06)
        distance = np.maximum(distance, -notch)
    body = cover(distance, surface.pixel * 1.2)
    freckles = noise(x * 55.0, y * 55.0, dice.seed("freckles"))
    mottle = fractal(x * 5.0, y * 5.0, dice.seed("mottle"), 3)
    tone = 1.0 + 0.025 * mottle + 0.025 * freckles
    surface.paint(body, [c * tone for c in (0.78, 0.74, 0.62)], 0.16)
    surface.light += (1.0 - surface.light) * body
    dome = np.sqrt(1.0 - (1.0 - depth) * (1.0 - depth)) * 0.15
    groove = np.maximum(1.0 - np.abs(x) * (1.0 / 0.035), 0.0)
    dome = dome - 0.022 * groove * groove * depth + 0.0012 * mottle
    surface.height += body * (dome - surface.height)
    print_here = _ink(surface, _PRINT) if ink is None else ink
    worn = 0.88 + 0.10 * noise(x * 40.0, y * 40.0, dice.seed("worn"))
    surface.paint(print_here * worn * body * (1.0 - rough), _INK, 0.08)
    if notch is not None:
        _fracture(surface, dice, rough * body)
    return surface


def _pose(canvas: Canvas, dice: Dice) -> tuple[Field, Field]:
    """Return the caplet's own coordinates (H, W)."""
    return canvas.posed(
        dice.unit("turn"),
        dice.uniform("scale", 1.14, 1.24),
        dice.uniform("dx", -0.1, 0.1),
        dice.uniform("dy", -0.1, 0.1),
    )


def _shadow(surface: Surface, canvas: Canvas, dice: Dice, distance: Field) -> None:
    """Darken the belt beside the caplet, away from the lamp, and where they touch."""
    pose = dice.unit("turn"), dice.uniform("scale", 1.14, 1.24)
    x, y = canvas.posed(*pose, dice.uniform("dx", -0.1, 0.1) + 0.06, dice.uniform("dy", -0.1, 0.1) + 0.075)
    cast = box_distance(x, y, 0.0, 0.0, _LONG, _SHORT, _SHORT)
    surface.shade(1.0 - smooth(-0.08, 0.10, cast), 0.62)
    surface.shade(1.0 - smooth(0.0, 0.06, distance), 0.45)


def _fracture(surface: Surface, dice: Dice, where: Field) -> None:
    """Turn the border of a break into chalky, rough core material."""
    grit = fractal(surface.x * 14.0, surface.y * 14.0, dice.seed("grit"), 4, 0.6)
    surface.paint(where, [c * (1.0 + 0.12 * grit) for c in (0.70, 0.68, 0.62)], 0.0)
    surface.height += where * (0.025 * grit - 0.4 * surface.height)


def _chip(canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, None]:
    """A piece broken out of the rim."""
    probe = Surface.blank(*_pose(canvas, dice), canvas.pixel, (0.0, 0.0, 0.0))
    size = fault.size(0.05, 0.30) * fault.severity
    cx = fault.dice.uniform("x", -_LONG, _LONG)
    inset = max(abs(cx) - (_LONG - _SHORT), 0.0)
    cy = fault.dice.sign("side") * math.sqrt(_SHORT * _SHORT - inset * inset)
    return tablet(canvas, dice, notch=blob(probe, fault, cx, cy, size, 0.25)), None


def _misprint(canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, None]:
    """A print that is sharp and well formed but wrong: shifted, swapped, or in part missing."""
    probe = Surface.blank(*_pose(canvas, dice), canvas.pixel, (0.0, 0.0, 0.0))
    (left_text, left_at), (right_text, right_at) = _PRINT
    way = fault.dice.integer("way", 0, 2)
    if way == 0:
        wrong = _ink(probe, _PRINT, 0.05 * fault.dice.sign("dx"), fault.dice.sign("dy") * fault.size(0.05, 0.12))
    elif way == 1:
        wrong = _ink(probe, ((right_text, left_at), (left_text, right_at)))
    else:
        wrong = _ink(probe, _PRINT[:1] if fault.dice.chance("first") else _PRINT[1:])
    right = _ink(probe, _PRINT)
    return tablet(canvas, dice, ink=right + (wrong - right) * fault.severity), None


def _cast(surface: Surface, fault: Fault) -> Field:
    """A yellowed or pinkish region, as from moisture."""
    own = fault.dice
    distance = blob(surface, fault, *fault.spot(0.4, 0.1), fault.size(0.10, 0.45), 0.3)
    edge = box_distance(surface.x, surface.y, 0.0, 0.0, _LONG, _SHORT, _SHORT)
    factors = (0.98, 0.84, 0.55) if own.chance("yellow") else (0.98, 0.72, 0.72)
    return patch(surface, fault, np.maximum(distance, edge + 0.01), 0.05, 1.0, factors)


REBUILT = {"broken_edge": _chip, "misprint": _misprint}
DEFECTS = {
    "crack": lambda s, f: crack(s, f, f.spot(0.35, 0.08), (0.10, 0.08, 0.06), (0.06, 0.24), 0.012),
    "stain": lambda s, f: stain(s, f, f.spot(0.45, 0.12), (0.28, 0.22, 0.16), (0.018, 0.10)),
    "colour_cast": _cast,
}
