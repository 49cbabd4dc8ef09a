"""Weave: plain linen cloth."""

from __future__ import annotations

import math

import numpy as np

from uad_core.datasets.procedural.camera import Studio
from uad_core.datasets.procedural.canvas import Canvas, Surface, cover
from uad_core.datasets.procedural.defects import Fault, blob, curl, patch, stain
from uad_core.datasets.procedural.exact import (
    Dice,
    Field,
    clip,
    cos_turns,
    noise,
    per_index,
    smooth,
)

__all__ = ["DEFECTS", "STUDIO", "weave"]

STUDIO = Studio(azimuth=0.61, tilt=0.62, ambient=0.30, specks=0.10, fibres=1, focus=0.004, depth=0.008)

_THREADS = 13.0  # threads per scene unit, 26 across the picture


def _yarn(across: Field, along: Field, other: Field, dice: Dice, name: str) -> tuple[Field, Field, Field]:
    """Return (height, inside, tone) of one set of threads, in thread units.

    ``across`` and ``along`` are the coordinates in threads; ``other`` is the sign of the undulation.
    """
    index = np.floor(across)
    slub = noise(along * 0.31, index * 7.31, dice.seed(f"{name} slub"))
    width = 0.43 + 0.06 * slub
    f = (across - index - 0.5 - 0.05 * noise(along * 0.9, index * 3.7, dice.seed(f"{name} sway"))) / width
    inside = np.sqrt(np.maximum(1.0 - f * f, 0.0))
    ply = cos_turns(f * 0.55 + along * 1.3)
    fuzz = noise(across * 7.0, along * 4.0, dice.seed(f"{name} fuzz"))
    height = 0.45 * inside + 0.34 * other + 0.05 * ply * inside + 0.05 * fuzz
    tone = 0.10 * per_index(index, dice.seed(f"{name} tone")) + 0.10 * slub + 0.06 * ply + 0.12 * fuzz
    return height, inside, tone


def weave(canvas: Canvas, dice: Dice) -> Surface:
    """Plain linen: two sets of spun threads over and under each other, in oblique light.

    Every patch recurs many times, so a few stored patches span it; threads hide fine faults.
    """
    x, y = canvas.posed(
        dice.uniform("turn", -0.012, 0.012),
        dice.uniform("scale", 0.97, 1.03),
        dice.uniform("dx", -0.08, 0.08),
        dice.uniform("dy", -0.08, 0.08),
    )
    x = x + 0.016 * noise(x * 1.3, y * 1.3, dice.seed("warp x"))
    y = y + 0.016 * noise(x * 1.3, y * 1.3, dice.seed("warp y"))
    surface = Surface.blank(x, y, canvas.pixel, (0.03, 0.028, 0.025))
    u, v = x * _THREADS, y * _THREADS
    parity_u, parity_v = np.floor(u) * 0.5, np.floor(v) * 0.5
    warp, warp_in, warp_tone = _yarn(u, v, cos_turns((v - 0.5) * 0.5 + parity_u), dice, "warp")
    weft, weft_in, weft_tone = _yarn(v, u, -cos_turns((u - 0.5) * 0.5 + parity_v), dice, "weft")
    warp_on, weft_on = clip(warp_in * 4.0, 0.0, 1.0), clip(weft_in * 4.0, 0.0, 1.0)
    warp_top = smooth(-0.12, 0.12, warp * warp_on - weft * weft_on + (warp_on - weft_on) * 0.6)
    surface.paint(weft_on, [c * (1.0 + weft_tone) for c in (0.50, 0.44, 0.34)], 0.03)
    surface.paint(warp_on * warp_top, [c * (1.0 + warp_tone) for c in (0.47, 0.43, 0.36)], 0.03)
    top = np.maximum(np.maximum(warp * warp_on, weft * weft_on), -0.1)
    surface.height[:] = top * (0.42 / _THREADS)
    surface.shade(1.0 - smooth(-0.1, 0.75, top), 0.7)
    return surface


def _torn(surface: Surface, fault: Fault) -> Field:
    """A hole into which the ends of the torn threads still reach, each to its own length."""
    own, u, v = fault.dice, surface.x * _THREADS, surface.y * _THREADS
    size = fault.size(0.06, 0.24)
    cx, cy = fault.spot(0.6, 0.6)
    distance = blob(surface, fault, cx, cy, size, 0.12)
    shape = cover(distance, surface.pixel * 2.0)
    open_ = shape
    fray = 0.02 * noise(u * 5.0, v * 5.0, own.seed("fray"))
    for across, at, away, name in ((u, cx, surface.y - cy, "warp"), (v, cy, surface.x - cx, "weft")):
        thread = np.floor(across)
        off = (thread + 0.5) * (1.0 / _THREADS) - at  # both ends of a thread stop near the rim, each where it tore
        rim = np.sqrt(np.maximum(size * size - off * off, 0.0))
        cut = rim * (0.72 + 0.36 * per_index(thread * 2.0 + (away > 0.0), own.seed(f"{name} cut"))) + fray
        core = 1.0 - smooth(0.20, 0.38, np.abs(across - thread - 0.5))
        open_ = open_ * (1.0 - core * smooth(-0.012, 0.012, np.abs(away) - cut))
    surface.shade(shape, 0.22)
    surface.paint(open_, (0.012, 0.012, 0.014), 0.0)
    surface.height += open_ * (-0.02 - surface.height)
    return shape


def _pulled(surface: Surface, fault: Fault) -> Field:
    """A thread drawn out of the cloth: a loop on top, a slit where it was, a shadow."""
    own = fault.dice
    upright = own.sign("upright") > 0
    cx, cy = fault.spot(0.45, 0.45)
    x, y = (surface.x, surface.y) if upright else (surface.y, surface.x)
    cx = (math.floor(cx * _THREADS) + 0.5) / _THREADS  # the middle of a thread
    half = fault.size(0.10, 0.42)
    radius = 0.40 / _THREADS
    bow = own.sign("side") * min(own.uniform("bow", 0.6, 1.6) / _THREADS, 0.4 * half)
    along = clip((y - cy) * (1.0 / half), -1.0, 1.0)
    arch = (1.0 - along * along) * (1.0 - along * along)
    slit = cover(np.abs(x - cx) - 0.40 / _THREADS * arch, surface.pixel * 2.0) * smooth(0.0, 0.1, arch)
    surface.shade(slit, 0.75)
    surface.tint(slit, (0.6, 0.6, 0.6))
    reach = np.maximum(np.abs(y - cy) - half, 0.0)
    off = np.abs(x - cx - bow * arch)
    distance = np.sqrt(off * off + reach * reach)
    off_below = np.abs(x - cx - (bow + 0.45 / _THREADS) * arch - 0.15 / _THREADS)
    shadow = cover(np.sqrt(off_below * off_below + reach * reach) - radius, radius) * smooth(0.0, 0.2, arch)
    surface.shade(shadow, 0.55)
    loop = cover(distance - radius, surface.pixel) * smooth(0.0, 0.06, arch)
    twist = cos_turns(off * (0.6 / radius) + y * _THREADS * 1.3)
    tone = 1.0 + 0.08 * twist
    surface.paint(loop, [c * tone for c in (0.60, 0.55, 0.45)], 0.04)
    surface.light += (1.0 - surface.light) * loop
    lift = np.sqrt(np.maximum(radius * radius - distance * distance, 0.0)) * 0.8 + 0.02 + 0.002 * twist
    surface.height += loop * (lift - surface.height)
    return np.maximum(np.maximum(slit, shadow), loop)


def _mispick(surface: Surface, fault: Fault) -> Field:
    """A cast of colour on a few neighbouring threads, as from a wrong batch of dye."""
    own = fault.dice
    upright = own.sign("upright") > 0
    cx, cy = fault.spot(0.5, 0.5)
    x, y = (surface.x, surface.y) if upright else (surface.y, surface.x)
    count = float(int(fault.size(2.0, 8.0)))
    left = math.floor(cx * _THREADS) / _THREADS
    half = fault.size(0.15, 0.5)
    ends = 0.10 * per_index(np.floor(x * _THREADS), own.seed("ends"))
    inside = np.maximum(np.maximum(left - x, x - left - count / _THREADS), np.abs(y - cy) - half + ends)
    # The dyed threads show fully where they lie on top; where they dip, the crossing ones hide part of them.
    over = cos_turns((y * _THREADS - 0.5) * 0.5 + np.floor(x * _THREADS) * 0.5)
    on_top = 0.5 + 0.5 * (over if upright else -over)
    return patch(surface, fault, inside, surface.pixel * 2.5, 0.35 + 0.65 * on_top, (0.66, 0.82, 1.0))


DEFECTS = {
    "thread_pull": _pulled,
    "hole": _torn,
    "stain": lambda s, f: stain(s, f, f.spot(0.6, 0.6), factors=(0.50, 0.40, 0.28)),
    "contamination": lambda s, f: curl(s, f, f.spot(0.6, 0.6), (0.04, 0.08, 0.24), (0.08, 0.42), 0.012),
    "colour_cast": _mispick,
}
