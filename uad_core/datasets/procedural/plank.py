"""Plank: sawn wood with the dust of the saw still on it."""

from __future__ import annotations

import numpy as np

from uad_core.datasets.procedural.camera import Studio
from uad_core.datasets.procedural.canvas import Canvas, Surface, cover
from uad_core.datasets.procedural.defects import Fault, blob, crack, pit, scratch, stain
from uad_core.datasets.procedural.exact import Dice, Field, clip, fractal, noise, per_index, smooth

__all__ = ["DEFECTS", "STUDIO", "plank"]

STUDIO = Studio(azimuth=0.60, tilt=0.60, ambient=0.42, specks=0.45, fibres=5, dust_opacity=0.95,
                dust_colour=(0.80, 0.68, 0.48), focus=0.0035, depth=0.007)  # fmt: skip

_EARLY, _LATE = (0.50, 0.315, 0.155), (0.265, 0.135, 0.055)  # spring and summer wood
_RINGS = 9.0  # per scene unit of distance from the pith


def _rings(x: Field, y: Field, dice: Dice) -> Field:
    """Return how dark the yearly rings make the wood, 0 to 1.

    The board cuts cones around the pith at a small angle, which gives the pointed arches of plain-sawn wood.
    """
    across = x - dice.uniform("pith", -0.7, 0.7) + 0.10 * fractal(x * 1.2, y * 0.5, dice.seed("sway"), 3)
    depth = dice.uniform("depth", 0.25, 0.7) + dice.sign("slope") * dice.uniform("cut", 0.10, 0.28) * y
    age = np.sqrt(across * across + depth * depth) * _RINGS + 0.16 * fractal(x * 5.0, y * 1.3, dice.seed("ripple"), 3)
    year = np.floor(age)
    phase = age - year
    late = smooth(0.15, 0.88, phase)
    return late * (1.0 - smooth(0.93, 1.0, phase)) * (0.72 + 0.28 * per_index(year, dice.seed("years")))


def plank(canvas: Canvas, dice: Dice) -> Surface:
    """A board whose grain differs from picture to picture, with sawdust on it.

    The dust is normal, sharp and unpredictable from a coarser view; the grain cannot be repeated faithfully by
    anything that redraws it from noise.
    """
    x, y = canvas.posed(dice.uniform("turn", -0.012, 0.012))
    surface = Surface.blank(x, y, canvas.pixel, _EARLY, 0.05)
    late = _rings(x, y, dice)
    fibre = noise(x * 95.0, y * 3.1, dice.seed("fibre"))
    streak = fractal(x * 22.0, y * 0.9, dice.seed("streak"), 3)
    pores = smooth(0.42, 0.75, noise(x * 75.0, y * 5.5, dice.seed("pores"))) * (0.35 + 0.65 * late)
    tone = fractal(x * 0.9, y * 0.5, dice.seed("tone"), 2)
    surface.paint(late * 0.85, _LATE)
    surface.paint(pores * 0.55, (0.10, 0.05, 0.02), 0.0)
    surface.albedo *= 1.0 + 0.12 * streak + 0.08 * fibre + 0.14 * tone
    surface.height += 0.0016 * fibre - 0.0022 * pores + 0.003 * late
    return surface


def _drop(surface: Surface, fault: Fault) -> Field:
    """A splash of glossy paint with a rounded edge."""
    size = fault.size(0.03, 0.20)
    cx, cy = fault.spot(0.65, 0.65)
    distance = blob(surface, fault, cx, cy, size, 0.18)
    shape = cover(distance, surface.pixel * 1.5)
    surface.paint(shape, (0.30, 0.34, 0.36), 0.45)
    dx, dy = (surface.x - cx) * (0.8 / size), (surface.y - cy) * (0.8 / size)
    thick = 0.12 * size * np.sqrt(np.maximum(1.0 - dx * dx - dy * dy, 0.0))
    edge = 0.012 * np.sqrt(clip(distance * (-1.0 / 0.03), 0.0, 1.0))
    smear = 0.002 * fractal(surface.x * 6.0, surface.y * 6.0, fault.dice.seed("smear"), 2)
    surface.height += shape * (0.01 + thick + edge + smear - surface.height)
    return shape


DEFECTS = {
    "scratch": lambda s, f: scratch(s, f, f.spot(0.5, 0.5), (0.64, 0.47, 0.28), (0.07, 0.55), 0.011, 0.012, 0.0),
    "crack": lambda s, f: crack(s, f, f.spot(0.6, 0.4), long=(0.10, 0.7), wide=0.014, turn=0.25),
    "hole": lambda s, f: pit(s, f, f.spot(0.65, 0.65), radius=(0.022, 0.11), ragged=0.08),
    "stain": lambda s, f: stain(s, f, f.spot(0.5, 0.5), (0.42, 0.34, 0.28), (0.05, 0.40), 0.04),
    "contamination": _drop,
}
