"""Weave: plain linen cloth."""

from __future__ import annotations

import numpy as np

from uad_core.datasets.procedural.camera import Studio
from uad_core.datasets.procedural.canvas import Canvas, Surface, arc_distance, cover
from uad_core.datasets.procedural.defects import Fault, blob, curl, patch, stain
from uad_core.datasets.procedural.exact import Dice, Field, clip, cos_turns, fractal, hash_cells, noise, smooth

__all__ = ["DEFECTS", "STUDIO", "weave"]

STUDIO = Studio(azimuth=0.61, tilt=0.62, ambient=0.30, specks=0.10, fibres=1, focus=0.004, depth=0.008)

_THREADS = 13.0  # threads per scene unit, 26 across the picture


def _per_thread(index: Field, seed: int) -> Field:
    """Return a random number in [-1, 1) for each thread."""
    whole = index.astype(np.int32)
    return (hash_cells(whole, np.zeros_like(whole), seed) >> np.uint32(8)).astype(np.float32) * 2.0**-23 - 1.0


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
    tone = 0.10 * _per_thread(index, dice.seed(f"{name} tone")) + 0.10 * slub + 0.06 * ply + 0.12 * fuzz
    return height, inside, tone


def weave(canvas: Canvas, dice: Dice) -> Surface:
    """Plain linen: two sets of spun threads over and under each other, in oblique light.

    Every patch recurs many times, so a few stored patches span it; threads hide fine faults.
    """
    x, y = canvas.posed(dice.uniform("turn", -0.012, 0.012), dice.uniform("scale", 0.97, 1.03),
                        dice.uniform("dx", -0.2, 0.2), dice.uniform("dy", -0.2, 0.2))
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
    """A hole whose edge follows the threads, with ends hanging in."""
    x, y = surface.x, surface.y
    own = fault.dice
    u, v = x * _THREADS, y * _THREADS
    size = fault.size(0.06, 0.26)
    cx, cy = fault.spot(0.6, 0.6)
    fray_u = _per_thread(np.floor(u), own.seed("fray u")) * 0.25
    fray_v = _per_thread(np.floor(v), own.seed("fray v")) * 0.25
    # Thread ends stick out by different lengths: along v for warp threads, along u for weft threads.
    dx = (np.abs(x - cx) + fray_v * size * 0.8) / size
    dy = (np.abs(y - cy) + fray_u * size * 0.8) / size
    distance = (np.sqrt(np.maximum(dx, 0.0) * np.maximum(dx, 0.0) + np.maximum(dy, 0.0) * np.maximum(dy, 0.0)) - 1.0) * size
    shape = cover(distance, surface.pixel * 2.0)
    where = shape * fault.severity
    surface.paint(where, (0.012, 0.012, 0.014), 0.0)
    surface.height += where * (-0.03 - surface.height)
    surface.shade(cover(distance - 0.02, 0.05) * fault.severity, 0.25)
    return np.maximum(shape, cover(distance - 0.02, 0.05))


def _pulled(surface: Surface, fault: Fault) -> Field:
    """A thread drawn out of the cloth: a loop on top, a slit where it was, a shadow."""
    own = fault.dice
    severity = fault.severity
    upright = own.sign("upright") > 0
    cx, cy = fault.spot(0.55, 0.55)
    x, y = (surface.x, surface.y) if upright else (surface.y, surface.x)
    cx = (np.floor(cx * _THREADS) + 0.5) / _THREADS
    cx = float(cx)
    half = fault.size(0.10, 0.5)
    radius = 0.40 / _THREADS
    bow = own.sign("side") * own.uniform("bow", 0.6, 1.6) / _THREADS
    along = clip((y - cy) * (1.0 / half), -1.0, 1.0)
    arch = (1.0 - along * along) * (1.0 - along * along)
    slit = cover(np.abs(x - cx) - 0.40 / _THREADS * arch, surface.pixel * 2.0) * smooth(0.0, 0.1, arch)
    surface.shade(slit * severity, 0.75)
    surface.tint(slit * severity, (0.6, 0.6, 0.6))
    reach = np.maximum(np.abs(y - cy) - half, 0.0)
    off = np.abs(x - cx - bow * arch)
    distance = np.sqrt(off * off + reach * reach)
    off_below = np.abs(x - cx - (bow + 0.45 / _THREADS) * arch - 0.15 / _THREADS)
    shadow = cover(np.sqrt(off_below * off_below + reach * reach) - radius, radius) * smooth(0.0, 0.2, arch)
    surface.shade(shadow * severity, 0.55)
    loop = cover(distance - radius, surface.pixel) * smooth(0.0, 0.06, arch)
    twist = cos_turns(off * (0.6 / radius) + y * _THREADS * 1.3)
    tone = 1.0 + 0.08 * twist
    where = loop * severity
    surface.paint(where, [c * tone for c in (0.60, 0.55, 0.45)], 0.04)
    surface.light += (1.0 - surface.light) * where
    lift = np.sqrt(np.maximum(radius * radius - distance * distance, 0.0)) * 0.8 + 0.02 + 0.002 * twist
    surface.height += where * (lift - surface.height)
    return np.maximum(np.maximum(slit, shadow), loop)


def _mispick(surface: Surface, fault: Fault) -> Field:
    """A cast of colour on a few neighbouring threads, as from a wrong batch of dye."""
    own = fault.dice
    upright = own.sign("upright") > 0
    cx, cy = fault.spot(0.5, 0.5)
    x, y = (surface.x, surface.y) if upright else (surface.y, surface.x)
    count = max(2.0, float(round(fault.size(2.0, 7.0))))
    left = float(np.floor(cx * _THREADS)) / _THREADS
    half = fault.size(0.2, 0.7)
    inside = np.maximum(np.maximum(left - x, x - left - count / _THREADS), np.abs(y - cy) - half)
    ends = 0.06 * _per_thread(np.floor(x * _THREADS), own.seed("ends"))
    inside = np.maximum(inside, np.abs(y - cy) - half + ends)
    return patch(surface, fault, inside, surface.pixel * 2.0, (0.72, 0.86, 1.06))


DEFECTS = {
    "thread_pull": _pulled,
    "hole": _torn,
    "stain": lambda s, f: stain(s, f, factors=(0.50, 0.40, 0.28)),
    "contamination": lambda s, f: curl(s, f, colour=(0.05, 0.10, 0.30), strands=3),
    "colour_cast": _mispick,
}
