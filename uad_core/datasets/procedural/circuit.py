"""Circuit: a small board with a three-legged regulator, photographed in a fixture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from uad_core.datasets.procedural.board import PITCH, TIN, board
from uad_core.datasets.procedural.camera import Studio
from uad_core.datasets.procedural.canvas import (
    Canvas,
    Surface,
    box_distance,
    circle_distance,
    cover,
    lettering_distance,
    segment_distance,
)  # fmt: skip
from uad_core.datasets.procedural.defects import Fault, scratch
from uad_core.datasets.procedural.exact import Dice, Field, clip, direction, fractal, noise, smooth

__all__ = ["DEFECTS", "REBUILT", "STUDIO", "circuit"]

STUDIO = Studio(azimuth=0.65, tilt=0.58, ambient=0.36, sheen=4, specks=0.02, fibres=1, dust_opacity=0.45,
                focus=0.0035, depth=0.004)  # fmt: skip

_LEG_TOP, _LEG_END, _LEG_HALF = 0.06, 0.50, 0.05
_BODY = (0.0, -0.16, 0.44, 0.27)  # centre and half sides


@dataclass(frozen=True)
class _Leg:
    """A leg of the regulator: where it leaves the body, how far it reaches and how far its foot is bent aside."""

    x: float
    reach: float = 1.0
    bend: float = 0.0


@dataclass(frozen=True)
class _Chip:
    """A small part with two metal ends on its pads; ``keep`` = the share of its length that is there."""

    x: float
    y: float
    turn: float = 0.0
    resistor: bool = True
    keep: float = 1.0


_LEGS = tuple(_Leg(k * PITCH) for k in (-1.0, 0.0, 1.0))
_CAPACITOR = _Chip(0.73, 0.09, resistor=False)
_PAIR = (_Chip(-0.73, 0.09), _Chip(0.73, -0.66))  # two resistors far apart
_BARE = -0.66  # y of the pads above the first resistor, which stay bare


def _fitted(dice: Dice) -> tuple[_Chip, ...]:
    """Return the small parts of a sound board: the two resistors are fitted together, or neither is."""
    return (_CAPACITOR, *_PAIR) if dice.chance("variant") else (_CAPACITOR,)


def circuit(
    canvas: Canvas, dice: Dice, legs: tuple[_Leg, ...] = _LEGS, chips: tuple[_Chip, ...] | None = None
) -> Surface:
    """The populated board.

    Every part has its place, so a reference tied to positions knows what belongs where. The product has two variants,
    so to a patch that sees no further a missing resistor looks like the other variant.
    """
    surface = board(canvas, dice)
    chips = _fitted(dice) if chips is None else chips
    for k, leg in enumerate(legs):
        if leg.reach > 0.0:
            _leg(surface, dice.child("leg", k), leg)
    for k, chip in enumerate(chips):
        if chip.keep > 0.0:
            _chip(surface, dice.child("chip", k), chip)
    _body(surface, dice)
    return surface


def _leg_shape(s: Surface, leg: _Leg) -> tuple[Field, Field]:
    """Return (signed distance, position 0 to 1 along the leg) of a leg."""
    length = _LEG_END - _LEG_TOP
    t = (s.y - _LEG_TOP) * (1.0 / length)
    slack = np.maximum(t - 0.25, 0.0)
    across = np.abs(s.x - leg.x - leg.bend * slack * slack) - _LEG_HALF
    return np.maximum(across, np.maximum(_LEG_TOP - 0.02 - s.y, s.y - _LEG_TOP - length * leg.reach)), t


def _leg(s: Surface, dice: Dice, leg: _Leg) -> None:
    """Draw a gull-wing leg: out of the body, down, and flat on its pad."""
    s = s.window(leg.x + leg.bend / 4.0, (_LEG_TOP + _LEG_END) / 2.0, 0.15 + abs(leg.bend) / 2.0, 0.30)
    distance, t = _leg_shape(s, leg)
    shadow, _ = _leg_shape(_shifted(s, -0.035, -0.03), leg)
    s.shade(cover(shadow, 0.05) * (1.0 - smooth(0.75, 1.0, t)), 0.55)
    where = cover(distance, s.pixel * 1.2)
    draw_marks = noise(s.x * 60.0, s.y * 4.0, dice.seed("marks"))
    s.paint(where, [c * (1.0 + 0.07 * draw_marks) for c in (0.50, 0.495, 0.475)], 0.5)
    s.light += (1.0 - s.light) * where
    drop = smooth(0.30, 0.62, t)
    edge = clip(distance * -40.0, 0.0, 1.0)
    top = 0.10 - 0.075 * drop + 0.012 * np.sqrt(edge) + 0.001 * draw_marks
    s.height += where * (top - s.height)


def _shifted(s: Surface, dx: float, dy: float) -> Surface:
    """Return a view of the surface whose coordinates are shifted, to place shadows."""
    return replace(s, x=s.x + dx, y=s.y + dy)


def _chip_axes(s: Surface, chip: _Chip, dx: float = 0.0, dy: float = 0.0) -> tuple[Field, Field]:
    """Return coordinates (across, along) the small part."""
    c, sin = direction(chip.turn)
    px, py = s.x - (chip.x + dx), s.y - (chip.y + dy)
    return px * c + py * sin, py * c - px * sin


def _chip(s: Surface, dice: Dice, chip: _Chip) -> None:
    """Draw a resistor (black, marked) or a capacitor (tan) with tinned ends."""
    s = s.window(chip.x, chip.y, 0.36, 0.36)
    ragged = 0.0 if chip.keep == 1.0 else 0.05 * fractal(s.x * 14.0, s.y * 14.0, dice.seed("break"), 3)
    end = (2.0 * chip.keep - 1.0) * 0.20 + (1.0 if chip.keep == 1.0 else 0.0) + ragged
    u, v = _chip_axes(s, chip, 0.035, 0.04)
    s.shade(cover(np.maximum(box_distance(u, v, 0.0, 0.0, 0.085, 0.20, 0.02), v - end), 0.07), 0.6)
    u, v = _chip_axes(s, chip)
    distance = np.maximum(box_distance(u, v, 0.0, 0.0, 0.082, 0.20, 0.012), v - end)
    where = cover(distance, s.pixel * 1.2)
    fine = noise(u * 70.0, v * 70.0, dice.seed("fine"))
    tone = 1.0 + 0.10 * fine
    s.paint(where, [c * tone for c in ((0.022, 0.022, 0.026) if chip.resistor else (0.36, 0.24, 0.13))], 0.22)
    s.light += (1.0 - s.light) * where
    edge = clip(distance * -28.0, 0.0, 1.0)
    s.height += where * (0.05 + 0.018 * np.sqrt(edge) - s.height)
    ends = where * cover(0.125 - np.abs(v), s.pixel * 1.5)
    s.paint(ends, [c * (1.0 + 0.06 * fine) for c in TIN], 0.6)
    s.height += ends * 0.006
    if chip.resistor:
        mark = lettering_distance(u, v, "10", 0.0, 0.0, 0.085)
        s.paint(cover(mark - 0.008, s.pixel * 1.3) * where * 0.8, (0.6, 0.6, 0.58))


def _body(s: Surface, dice: Dice) -> None:
    """Draw the regulator's heat tab and its moulded black body with a laser mark, in place."""
    s = s.window(0.0, -0.20, 0.62, 0.48)
    tab = box_distance(s.x, s.y, 0.0, -0.46, 0.29, 0.14, 0.03)
    where = cover(tab, s.pixel * 1.2)
    brushed = noise(s.x * 5.0, s.y * 70.0, dice.seed("tab"))
    s.paint(where, [c * (1.0 + 0.06 * brushed) for c in (0.48, 0.475, 0.46)], 0.45)
    s.height += where * (0.045 + 0.02 * np.sqrt(clip(tab * -30.0, 0.0, 1.0)) + 0.001 * brushed - s.height)
    cx, cy, hw, hh = _BODY
    shadow = box_distance(s.x, s.y, cx + 0.06, cy + 0.06, hw, hh, 0.03)
    s.shade(cover(shadow, 0.10), 0.6)
    distance = box_distance(s.x, s.y, cx, cy, hw, hh, 0.03)
    where = cover(distance, s.pixel * 1.2)
    fine = fractal(s.x * 60.0, s.y * 60.0, dice.seed("mould"), 2)
    s.paint(where, [c * (1.0 + 0.15 * fine) for c in (0.026, 0.026, 0.029)], 0.16)
    s.light += (1.0 - s.light) * where
    bevel = clip(distance * (-1.0 / 0.05), 0.0, 1.0)
    dimple = cover(circle_distance(s.x, s.y, -0.33, 0.0, 0.05), 0.02)
    s.height += where * (0.14 + 0.05 * bevel - 0.01 * dimple + 0.0007 * fine - s.height)
    s.paint(where * dimple, (0.018, 0.018, 0.02), 0.35)
    text = np.minimum(
        lettering_distance(s.x, s.y, "A73", 0.0, -0.245, 0.13), lettering_distance(s.x, s.y, "K05", 0.0, -0.03, 0.13)
    )
    s.paint(cover(text - 0.011, s.pixel * 1.4) * 0.55, (0.42, 0.42, 0.40))


def _missing(canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, Field]:
    """A leg or a small part that broke off; what lay under it is clean."""
    left, fitted = 1.0 - fault.severity, _fitted(dice)
    if len(fitted) > 1 and fault.dice.unit("resistor") < 0.7:
        which = fault.dice.integer("which", 1, 2)
    elif fault.dice.unit("capacitor") < 0.3:
        which = 0
    else:
        leg = fault.dice.integer("leg", 0, 2)
        return _with_leg(canvas, dice, leg, replace(_LEGS[leg], reach=left), left)
    return _with_chip(canvas, dice, which, replace(fitted[which], keep=left))


def _bent(canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, Field]:
    """A leg bent aside, a little or off its pad."""
    which = fault.dice.integer("which", 0, 2)
    bend = fault.dice.sign("side") * fault.size(0.10, 0.42) * fault.severity
    return _with_leg(canvas, dice, which, replace(_LEGS[which], bend=bend), 0.4)


def _misplaced(canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, Field]:
    """A sound small part in the wrong place: turned and shifted, or towards pads that should be bare."""
    fitted = _fitted(dice)
    which = fault.dice.integer("which", 0, len(fitted) - 1)
    chip, far = fitted[which], fault.severity
    if which == 1:
        moved = replace(chip, y=chip.y + (_BARE - chip.y) * far)
    else:
        turn = fault.dice.sign("turn") * fault.size(0.03, 0.25) * far
        moved = replace(chip, turn=turn, x=chip.x + fault.dice.uniform("dx", -0.08, 0.08) * far)
    return _with_chip(canvas, dice, which, moved)


def _with_leg(canvas: Canvas, dice: Dice, which: int, leg: _Leg, start: float) -> tuple[Surface, Field]:
    """Return the board with one leg changed, and the region of that leg from ``start`` on, as it is and as it was."""
    surface = circuit(canvas, dice, legs=(*_LEGS[:which], leg, *_LEGS[which + 1 :]))
    region = np.zeros_like(surface.light)
    for state in (leg, _LEGS[which]):
        distance, t = _leg_shape(surface, state)
        region = np.maximum(region, cover(distance, surface.pixel) * (t > max(start, 0.15)))
    return surface, region


def _with_chip(canvas: Canvas, dice: Dice, which: int, chip: _Chip) -> tuple[Surface, Field]:
    """Return the board with one small part changed, and the region of what moved, as it is and as it was."""
    fitted = _fitted(dice)
    surface = circuit(canvas, dice, chips=(*fitted[:which], chip, *fitted[which + 1 :]))
    region = np.zeros_like(surface.light)
    for state in (chip, fitted[which]):
        u, v = _chip_axes(surface, state)
        gone = np.maximum(box_distance(u, v, 0.0, 0.0, 0.082, 0.20), (2.0 * chip.keep - 1.0) * 0.20 - v)
        moved = gone if chip.keep < 1.0 else box_distance(u, v, 0.0, 0.0, 0.082, 0.20)
        region = np.maximum(region, cover(moved, surface.pixel))
    return surface, region


def _bridge(surface: Surface, fault: Fault) -> Field:
    """Solder where none should be: a bead, or a bridge between two legs."""
    own = fault.dice
    left = -1.0 if own.chance("left") else 0.0
    middle, y = (left + 0.5) * PITCH, own.uniform("y", 0.40, 0.60)
    half = fault.size(0.012, 0.5 * PITCH)
    thick = 0.022 + 0.25 * half
    wobble = 0.25 * thick * fractal(surface.x * 14.0, surface.y * 14.0, own.seed("wobble"), 3)
    tilt = own.uniform("tilt", -0.04, 0.04)
    distance = segment_distance(surface.x, surface.y, middle - half, y - tilt, middle + half, y + tilt) - thick + wobble
    shape = cover(distance, surface.pixel * 1.2)
    surface.paint(shape, TIN, 0.6)
    surface.light += (1.0 - surface.light) * shape
    dome = np.sqrt(clip(distance * (-1.0 / thick), 0.0, 1.0)) * thick * 0.7
    surface.height += shape * (0.02 + dome - surface.height)
    return shape


def _scratched(surface: Surface, fault: Fault) -> Field:
    """A scratch through the green mask down to bright copper."""
    x, y = ((-0.3, 0.78), (0.25, 0.76), (0.52, 0.62), (-0.38, -0.78))[fault.dice.integer("place", 0, 3)]
    dx, dy = fault.spot(0.10, 0.05)
    return scratch(surface, fault, (x + dx, y + dy), (0.62, 0.30, 0.15), (0.04, 0.22), 0.012, 0.006, 0.4)


REBUILT = {"missing_part": _missing, "bent_leg": _bent, "misplaced": _misplaced}
DEFECTS = {"solder_bridge": _bridge, "scratch": _scratched}
