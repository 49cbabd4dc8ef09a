"""Jar: the mouth of an amber glass jar seen from above."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uad_core.datasets.procedural.camera import Studio
from uad_core.datasets.procedural.canvas import Canvas, Surface, arc_distance, cover
from uad_core.datasets.procedural.defects import Fault, blob
from uad_core.datasets.procedural.exact import Dice, Field, clip, cos_turns, direction, fractal, noise, smooth

__all__ = ["DEFECTS", "STUDIO", "jar"]

STUDIO = Studio(
    azimuth=0.64,
    tilt=0.55,
    ambient=0.45,
    sheen=5,
    specks=0.012,
    fibres=0,
    dust_opacity=0.4,
    focus=0.0045,
    depth=0.004,
    vignette=0.10,
)

_OUTER, _RIM, _LIP, _MOUTH, _FLOOR = 0.84, 0.66, 0.585, 0.51, 0.40  # radii
_TABLE = (0.66, 0.67, 0.68)
_SHADOW = (0.78, 1.04)  # from where to where the shadow on the table fades


@dataclass(frozen=True)
class _Rim:
    """Polar coordinates, each (H, W): radius, direction in the jar's axes (``nx``, ``ny``) and in the room's (``fx``,
    ``fy``), and ``side``, how far it points away from the lamp, -1 to 1."""

    r: Field
    nx: Field
    ny: Field
    fx: Field
    fy: Field
    side: Field


def _ring(r: Field, at: float, width: float) -> Field:
    """Return a soft ring: 1 at radius ``at``, 0 beyond ``width``."""
    d = (r - at) * (1.0 / width)
    bump = np.maximum(1.0 - d * d, 0.0)
    return bump * bump


def _table(canvas: Canvas, dice: Dice) -> Surface:
    """Return the pale table under the jar, out of focus."""
    x, y = canvas.posed(
        dice.unit("turn"),
        dice.uniform("scale", 0.985, 1.015),
        dice.uniform("dx", -0.025, 0.025),
        dice.uniform("dy", -0.025, 0.025),
    )
    surface = Surface.blank(x, y, canvas.pixel, _TABLE)
    surface.albedo *= 1.0 + 0.025 * fractal(canvas.x * 2.0, canvas.y * 2.0, dice.seed("table"), 3)
    return surface


def jar(canvas: Canvas, dice: Dice) -> Surface:
    """Concentric rings of glass in a fixed place; only seams and ripples turn with the jar.

    Each ring is told by its surroundings, so a deep code predicts it well; a broken rim takes away
    more than a few denoising steps can put back.
    """
    surface = _table(canvas, dice)
    x, y = surface.x, surface.y
    r = np.sqrt(x * x + y * y)
    nx, ny = x / np.maximum(r, 1e-3), y / np.maximum(r, 1e-3)
    cos_a, sin_a = direction(dice.unit("turn"))
    # The direction from the centre as the room sees it: what hangs on the lamps does not turn with the jar.
    fx, fy = nx * cos_a - ny * sin_a, nx * sin_a + ny * cos_a
    rim = _Rim(r, nx, ny, fx, fy, fx * 0.6 + fy * 0.8)
    surface.shade(1.0 - smooth(*_SHADOW, r), 0.5)
    _shoulder(surface, dice, rim)
    _inside(surface, dice, rim)
    _lip(surface, dice, rim)
    return surface


def _shoulder(surface: Surface, dice: Dice, at: _Rim) -> None:
    """Draw the outer wall: dark glass that glows where the table shines through."""
    where = cover(at.r - _OUTER, surface.pixel * 1.5)
    ripple = fractal(at.nx * 9.0 + 3.0, at.ny * 9.0 + at.r * 3.0, dice.seed("ripple"), 3)
    t = clip((at.r - _RIM) * (1.0 / (_OUTER - _RIM)), 0.0, 1.0)
    glow = (0.10 + 0.9 * _ring(t, 0.45, 0.5) * (0.7 + 0.3 * ripple)) * (1.0 - 0.45 * at.side)
    surface.paint(where, (0.42 * glow, 0.135 * glow * glow + 0.02 * glow, 0.016 * glow), 0.25)
    surface.light += (1.0 - surface.light) * where
    streak = _ring(at.fx * 0.74 - at.fy * 0.67, 0.0, 0.42) * _ring(t, 0.62, 0.22)
    surface.paint(streak * 0.55, (0.85, 0.82, 0.78))
    surface.paint(_ring(t, 0.98, 0.10) * where * 0.8, (0.03, 0.012, 0.006))


def _inside(surface: Surface, dice: Dice, at: _Rim) -> None:
    """Draw the neck and the floor, deep below and softer."""
    neck = cover(at.r - _MOUTH, 0.02)
    depth = smooth(_FLOOR - 0.02, _MOUTH, at.r)
    wave = fractal(at.nx * 5.0 + 7.0, at.ny * 5.0, dice.seed("neck"), 3)
    glow = 0.05 + 0.30 * _ring(at.r, 0.43, 0.07) * (0.75 + 0.35 * wave) * (1.0 + 0.5 * at.side) * (1.0 - 0.3 * depth)
    surface.paint(neck, (0.55 * glow, 0.17 * glow, 0.025 * glow), 0.05)
    floor = cover(at.r - _FLOOR, 0.035)
    caustic = fractal(surface.x * 3.2, surface.y * 3.2, dice.seed("caustic"), 4)
    lit = 0.46 - 0.20 * at.r * at.r * 6.0 + 0.05 * caustic + 0.06 * at.side * at.r * 2.0
    surface.paint(floor, (0.62 * lit, 0.215 * lit, 0.032 * lit), 0.03)
    ring = _ring(at.r, 0.345, 0.03)
    surface.paint(ring * 0.35, (0.08, 0.025, 0.006))
    surface.paint(_ring(at.r, 0.365, 0.012) * (0.35 + 0.3 * at.side), (0.55, 0.25, 0.08))


def _lip(surface: Surface, dice: Dice, at: _Rim) -> None:
    """Draw the rounded sealing lip with the mirror images of a ring lamp."""
    where = cover(np.abs(at.r - _LIP) - (_RIM - _MOUTH) / 2.0, surface.pixel * 1.5)
    f = clip((at.r - _LIP) * (2.0 / (_RIM - _MOUTH)), -1.0, 1.0)
    ripple = fractal(at.nx * 6.0, at.ny * 6.0 + 5.0, dice.seed("lip"), 3)
    glow = (0.16 + 0.10 * ripple + 0.30 * _ring(f, 0.75, 0.3)) * (1.0 + 0.3 * at.side)
    surface.paint(where, (0.46 * glow, 0.16 * glow, 0.03 * glow), 0.9)
    surface.light += (1.0 - surface.light) * where
    surface.height += where * (np.sqrt(1.0 - f * f) * 0.06 - surface.height)
    lamp = _ring(f + 0.05 * ripple, 0.18, 0.16) * (0.55 + 0.25 * ripple + 0.2 * cos_turns(at.fx * 0.9 + 0.1))
    surface.paint(lamp * 0.9, (0.95, 0.93, 0.88))
    second = _ring(f, -0.42, 0.10) * (0.30 + 0.3 * (at.fx * 0.5 - at.fy * 0.5))
    surface.paint(clip(second, 0.0, 1.0), (0.9, 0.75, 0.5))
    edge = _ring(np.abs(f), 1.0, 0.16)
    surface.paint(edge * where * 0.7, (0.02, 0.008, 0.004))


def _around(fault: Fault, radius: float) -> tuple[float, float]:
    """Return a random point at this distance from the centre."""
    c, s = direction(fault.dice.unit("around"))
    return radius * c, radius * s


def _shells(surface: Surface, fault: Fault, distance: Field, pitch: float) -> Field:
    """Return the brightness of broken glass: shells run beside the break and flash where they face a lamp."""
    own = fault.dice
    bend = fractal(surface.x * 9.0, surface.y * 9.0, own.seed("bend"), 3)
    facing = noise(surface.x * 5.0 + bend, surface.y * 5.0, own.seed("facing"))
    shells = cos_turns(distance * (1.0 / pitch) + 1.1 * bend)
    return clip(0.35 + 0.45 * facing + 0.35 * shells * (0.4 + bend), 0.0, 1.0)


def _chip(surface: Surface, fault: Fault) -> Field:
    """A flake off the sealing lip: a dull shell with a bright edge."""
    size = fault.size(0.03, 0.13)
    distance = blob(surface, fault, *_around(fault, _LIP + 0.03), size, 0.22)
    shape = cover(distance, surface.pixel * 1.5)
    flash = _shells(surface, fault, distance, 0.4 * size + 0.015)
    tone = 0.05 + 0.42 * flash * flash
    surface.paint(shape, (tone, 0.66 * tone, 0.36 * tone), 0.35)
    edge = noise(surface.x * 8.0, surface.y * 8.0, fault.dice.seed("edge"))
    surface.paint(shape * _ring(distance, -0.007, 0.010) * clip(0.5 + edge, 0.0, 1.0), (0.85, 0.78, 0.66))
    surface.height += shape * (0.02 + 0.12 * clip(distance, -0.06, 0.0) - surface.height)
    return shape


def _broken(surface: Surface, fault: Fault) -> Field:
    """A large piece of wall and lip gone: the table shows through a jagged gap."""
    size = fault.size(0.16, 0.55)
    edge = blob(surface, fault, *_around(fault, 0.80), size, 0.16)
    r = np.sqrt(surface.x * surface.x + surface.y * surface.y)
    gap = np.maximum(edge, np.maximum(_FLOOR + 0.03 - r, r - _OUTER - surface.pixel))
    shape = cover(gap, surface.pixel * 1.5)
    # The table continues in the shadow of the jar, darkest beside the break.
    light = 0.5 + 0.5 * smooth(*_SHADOW, r) - 0.24 * (1.0 - smooth(0.0, 0.14, -edge - 0.03)) * cover(r - _OUTER, 0.06)
    surface.paint(shape, _TABLE, 0.0)
    surface.light += shape * (light - surface.light)
    surface.height -= shape * surface.height
    thick = 0.05 + 0.02 * noise(surface.x * 6.0, surface.y * 6.0, fault.dice.seed("thick"))
    face = shape * cover(-edge - thick, 0.012) * smooth(_FLOOR, _MOUTH, r) * cover(r - _OUTER, surface.pixel * 1.5)
    surface.light += face * (1.0 - surface.light)
    flash = _shells(surface, fault, edge, 0.06)
    tone = 0.03 + 0.55 * flash * flash
    surface.paint(face, (tone, 0.60 * tone, 0.26 * tone), 0.2)
    surface.paint(face * _ring(edge, -0.006, 0.009) * flash, (0.9, 0.8, 0.62))
    return shape


def _cracked(surface: Surface, fault: Fault) -> Field:
    """A crack through lip and wall: glass mirrors the light at it, beside a dark line."""
    at, turn = _around(fault, fault.dice.uniform("radius", _RIM - 0.02, _OUTER - 0.1)), fault.dice.unit("around")
    half = fault.size(0.07, 0.34)
    wander = fractal(surface.x * 6.0, surface.y * 6.0, fault.dice.seed("wander"), 4) * 0.06
    turn += fault.dice.uniform("skew", -0.2, 0.2)
    bend = fault.dice.uniform("bend", -1.0, 1.0)
    distance, along = arc_distance(surface.x + wander, surface.y - wander, *at, turn, half, bend)
    r = np.sqrt(surface.x * surface.x + surface.y * surface.y)
    limit = np.maximum(_MOUTH - r, r - _OUTER)
    width = 0.012 * (1.1 - along * along)
    shape = cover(np.maximum(distance - width, limit), surface.pixel * 1.2)
    surface.paint(shape, (0.02, 0.01, 0.006), 0.1)
    glint = 0.6 + 0.4 * noise(along * 7.0, along * 0.0, fault.dice.seed("glint"))
    surface.paint(shape * cover(distance - width * 0.45, surface.pixel) * glint, (0.92, 0.84, 0.70))
    return shape


def _debris(surface: Surface, fault: Fault) -> Field:
    """A crumb of foreign material on the floor or on the lip."""
    size = fault.size(0.025, 0.16)
    radius = fault.dice.uniform("radius", 0.0, 0.22) if fault.dice.chance("floor") else _LIP
    distance = blob(surface, fault, *_around(fault, radius), size, 0.45)
    shade = cover(blob(surface, fault, *_around(fault, radius), size * 1.25, 0.3), 0.04)
    surface.shade(shade, 0.4)
    shape = cover(distance, surface.pixel * 1.5)
    grain = fractal(surface.x * 22.0, surface.y * 22.0, fault.dice.seed("grain"), 3)
    tone = 1.0 + 0.35 * grain
    surface.paint(shape, [c * tone for c in (0.30, 0.31, 0.27)], 0.1)
    lump = np.sqrt(clip(distance * (-1.0 / size), 0.0, 1.0)) * size * 0.5
    surface.height += shape * (lump + 0.008 * grain - surface.height)
    return np.maximum(shape, shade)


def _residue(surface: Surface, fault: Fault) -> Field:
    """A milky film dried on the floor, brighter at its rim."""
    size = fault.size(0.05, 0.26)
    cx, cy = _around(fault, 0.36 - size * 0.9)
    r = np.sqrt(surface.x * surface.x + surface.y * surface.y)
    distance = np.maximum(blob(surface, fault, cx, cy, size, 0.2), r - _FLOOR)
    shape = cover(distance, 0.02)
    film = 0.22 + 0.10 * fractal(surface.x * 12.0, surface.y * 12.0, fault.dice.seed("film"), 3)
    rim = _ring(distance, -0.02, 0.03)
    surface.paint(shape * (film + 0.35 * rim), (0.72, 0.68, 0.60))
    return shape


DEFECTS = {
    "broken_rim": _broken,
    "chip": _chip,
    "crack": _cracked,
    "contamination": _debris,
    "residue": _residue,
}
