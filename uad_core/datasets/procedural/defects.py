"""Defects that can lie on any surface: each changes the surface in place and returns where, (H, W) in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uad_core.datasets.procedural.canvas import Colour, Surface, arc_distance, cover
from uad_core.datasets.procedural.exact import Dice, Field, clip, cos_turns, fractal, noise, smooth

__all__ = ["Fault", "blob", "crack", "curl", "patch", "pit", "scratch", "stain"]


@dataclass(frozen=True)
class Fault:
    """One defect to draw: its kind, its severity in [0, 1], its dice, and its place in the row of sizes."""

    kind: str
    severity: float
    dice: Dice
    rank: float

    def size(self, tiny: float, large: float) -> float:
        """Return a size between ``tiny`` and ``large``, small ones being more common."""
        return tiny + (large - tiny) * self.rank * self.rank

    def spot(self, half_w: float, half_h: float) -> tuple[float, float]:
        """Return a random place in the box of these half sides around the origin."""
        return self.dice.uniform("x", -half_w, half_w), self.dice.uniform("y", -half_h, half_h)


def blob(surface: Surface, fault: Fault, cx: float, cy: float, radius: float, ragged: float = 0.35) -> Field:
    """Return the signed distance to an irregular round shape."""
    dx, dy = surface.x - cx, surface.y - cy
    k = 1.1 / radius
    wobble = fractal(dx * k + 31.7, dy * k + 11.3, fault.dice.seed("blob"), 4, 0.55)
    return np.sqrt(dx * dx + dy * dy) - radius * (1.0 + ragged * 2.0 * wobble)


def _sink(surface: Surface, where: Field, depth: float) -> None:
    """Lower the relief by ``depth`` times ``where``."""
    surface.height -= where * depth


def scratch(
    surface: Surface,
    fault: Fault,
    at: tuple[float, float],
    colour: Colour = (0.7, 0.7, 0.7),
    long: tuple[float, float] = (0.08, 0.7),
    wide: float = 0.012,
    depth: float = 0.012,
    gloss: float | None = None,
    solid: Field | float = 1.0,
) -> Field:
    """A groove, gently bent, that thins out to its ends and skips where the tool bounced or nothing is ``solid``."""
    own = fault.dice
    half = fault.size(*long)
    bend = own.uniform("bend", -0.4, 0.4) / half
    distance, along = arc_distance(surface.x, surface.y, *at, own.unit("turn"), half, bend)
    width = wide * own.uniform("wide", 0.6, 1.2)
    taper = width * (1.0 - 0.75 * along * along) * (0.8 + 0.3 * noise(along * 9.0, along * 0.0, own.seed("skips")))
    shape = cover(distance - taper, surface.pixel * 1.3) * solid
    surface.paint(shape, colour, gloss)
    _sink(surface, shape * clip(1.0 - distance * (0.7 / width), 0.0, 1.0), depth)
    return shape


def crack(
    surface: Surface,
    fault: Fault,
    at: tuple[float, float],
    colour: Colour = (0.02, 0.018, 0.015),
    long: tuple[float, float] = (0.1, 0.7),
    wide: float = 0.016,
    turn: float | None = None,
) -> Field:
    """A dark jagged gap, widest in the middle, with a bright lip where light catches the edge."""
    own = fault.dice
    half = fault.size(*long)
    turn = own.unit("turn") if turn is None else turn + own.uniform("turn", -0.03, 0.03)
    jag = half * 0.22
    wander = fractal(surface.x * (3.0 / half), surface.y * (3.0 / half), own.seed("jag"), 5, 0.6) * jag
    c, s = cos_turns(turn), cos_turns(turn - 0.25)
    distance, along = arc_distance(surface.x - wander * s, surface.y + wander * c, *at, turn, half, 0.0)
    width = (0.004 + wide * min(1.0, half * 3.0)) * (1.0 - along * along)
    shape = cover(distance - width, surface.pixel * 1.2)
    lip = cover(distance - width - 0.006, 0.012)
    surface.tint(lip, (1.12, 1.12, 1.12))
    surface.paint(shape, colour, 0.0)
    _sink(surface, shape, 0.02)
    return np.maximum(shape, lip)


def stain(
    surface: Surface,
    fault: Fault,
    at: tuple[float, float],
    factors: Colour = (0.55, 0.45, 0.32),
    radius: tuple[float, float] = (0.04, 0.38),
    gloss: float = 0.0,
) -> Field:
    """A dried liquid: an even tint with a darker rim."""
    size = fault.size(*radius)
    distance = blob(surface, fault, *at, size, 0.3)
    shape = cover(distance, 0.02 + size * 0.06)
    rim = shape * (1.0 - smooth(0.0, 0.03 + size * 0.2, -distance))
    mottled = 0.75 + 0.25 * fractal(surface.x * (4.0 / size), surface.y * (4.0 / size), fault.dice.seed("mottle"), 3)
    surface.tint(shape * mottled * 0.75, factors)
    surface.tint(rim * 0.5, factors)
    surface.gloss += shape * gloss
    return shape


def pit(
    surface: Surface,
    fault: Fault,
    at: tuple[float, float],
    colour: Colour = (0.015, 0.013, 0.01),
    radius: tuple[float, float] = (0.025, 0.16),
    ragged: float = 0.12,
) -> Field:
    """A hole with a dark inside and a worn edge."""
    size = fault.size(*radius)
    distance = blob(surface, fault, *at, size, ragged)
    edge = cover(distance - 0.2 * size, 0.4 * size)
    shape = cover(distance, surface.pixel * 1.5)
    surface.tint(edge * 0.6, (0.62, 0.56, 0.5))
    # The wall on the far side stays lit; the floor is dark.
    floor = shape * (1.0 - 0.35 * smooth(-0.25 * size, 0.0, distance))
    surface.paint(floor, colour, 0.0)
    _sink(surface, shape * clip(-distance * (1.5 / size), 0.0, 1.0), 0.3 * size)
    return np.maximum(shape, edge)


def curl(
    surface: Surface,
    fault: Fault,
    at: tuple[float, float],
    colour: Colour = (0.5, 0.07, 0.05),
    long: tuple[float, float] = (0.06, 0.4),
    radius: float = 0.014,
    gloss: float = 0.1,
    strands: int = 2,
) -> Field:
    """Foreign threads or shavings that lie on the surface and cast a shadow."""
    own = fault.dice
    half = fault.size(*long)
    cx, cy = at
    support = None
    for k in range(strands):
        part = own.child("strand", k)
        wave = half * part.uniform("wave", 0.05, 0.2)
        phase = part.unit("phase")
        bump_x = cos_turns(surface.y * (0.7 / half) + phase) * wave
        shape = _tube(
            surface,
            (surface.x + bump_x, surface.y),
            part,
            cx,
            cy,
            half * part.uniform("length", 0.6, 1.0),
            radius * part.uniform("thick", 0.7, 1.1),
            colour,
            gloss,
        )
        support = shape if support is None else np.maximum(support, shape)
    return support


def _tube(
    surface: Surface,
    xy: tuple[Field, Field],
    own: Dice,
    cx: float,
    cy: float,
    half: float,
    radius: float,
    colour: Colour,
    gloss: float,
) -> Field:
    """Lay one round strand on the surface and return its support, shadow included."""
    turn, bend = own.unit("turn"), own.uniform("bend", -1.0, 1.0) / half
    px, py = cx + own.uniform("dx", -0.5, 0.5) * half, cy + own.uniform("dy", -0.5, 0.5) * half
    below, _ = arc_distance(xy[0] - 0.8 * radius, xy[1] - 1.1 * radius, px, py, turn, half, bend)
    distance, along = arc_distance(*xy, px, py, turn, half, bend)
    radius_here = radius * (1.0 - 0.4 * along * along)
    shadow = cover(below - radius * 0.9, radius * 1.2)
    shape = cover(distance - radius_here, surface.pixel)
    surface.shade(shadow, 0.5)
    surface.paint(shape, colour, gloss)
    surface.light += (1.0 - surface.light) * shape
    round_top = np.sqrt(np.maximum(radius * radius - distance * distance, 0.0))
    surface.height += shape * (round_top - surface.height * 0.7)
    return np.maximum(shape, shadow)


def patch(surface: Surface, fault: Fault, distance: Field, soft: float, strength: Field | float,
          factors: Colour) -> Field:  # fmt: skip
    """A cast of colour inside a shape given by its signed distance, in places weaker."""
    shape = cover(distance, soft)
    surface.tint(shape * strength, factors)
    return shape
