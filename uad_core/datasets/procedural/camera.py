"""From a painted surface to a photograph: dust, lamp, lens, exposure and sensor.

Everything random here is harmless and happens in training and test images alike. It depends on
the image's dice only, never on a defect, so that an image and its clean twin differ by the defect alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from uad_core.datasets.procedural.canvas import Canvas, Surface, arc_distance, blur, cover
from uad_core.datasets.procedural.exact import Dice, Field, clip, direction, hash_cells, smooth

__all__ = ["Studio", "develop", "dust", "expose"]


@dataclass(frozen=True)
class Studio:
    """How a category is photographed.

    ``azimuth`` (turns) and ``tilt`` (sine of the angle from the vertical) place the lamp; ``ambient`` is the share
    of light from everywhere; ``sheen`` doublings of the highlight's exponent; ``specks`` and ``fibres`` set the
    dust; ``focus`` is the blur of the lens and ``depth`` what is added away from the plane of focus, in scene units.
    """

    azimuth: float = 0.62
    tilt: float = 0.6
    ambient: float = 0.35
    sheen: int = 4
    specks: float = 0.1
    fibres: int = 1
    dust_opacity: float = 0.6
    dust_colour: tuple[float, float, float] = (0.75, 0.74, 0.70)
    focus: float = 0.0035
    depth: float = 0.009
    grain: float = 1.6
    vignette: float = 0.16
    exposure: float = 0.08


def dust(surface: Surface, canvas: Canvas, dice: Dice, studio: Studio) -> None:
    """Scatter specks and short fibres over the surface, in place."""
    for layer, (cells, radius) in enumerate(((14.0, 0.09), (34.0, 0.15))):
        x, y = canvas.x * cells, canvas.y * cells
        i, j = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
        bits = hash_cells(i, j, dice.seed(f"specks {layer}"))
        share = [((bits >> np.uint32(8 * k)) & np.uint32(255)).astype(np.float32) * (1.0 / 255.0) for k in range(4)]
        dx = x - np.floor(x) - (0.25 + 0.5 * share[0])
        dy = y - np.floor(y) - (0.25 + 0.5 * share[1])
        size = radius * (0.4 + 1.2 * share[2] * share[2])
        speck = cover(np.sqrt(dx * dx + dy * dy) - size, canvas.pixel * cells * 1.5)
        # The threshold on the fourth byte decides whether a cell holds a speck at all.
        speck = speck * (share[3] < studio.specks) * studio.dust_opacity * (0.3 + 0.7 * share[0])
        surface.paint(speck, studio.dust_colour, 0.0)
    for k in range(dice.integer("fibres", 0, 2 * studio.fibres)):
        own = dice.child("fibre", k)
        distance, _ = arc_distance(
            canvas.x,
            canvas.y,
            own.uniform("x", -1, 1),
            own.uniform("y", -1, 1),
            own.unit("turn"),
            own.uniform("half", 0.03, 0.10),
            own.uniform("bend", -6, 6),
        )
        thread = cover(distance - 0.003, canvas.pixel)
        surface.paint(thread * (studio.dust_opacity * own.uniform("opacity", 0.4, 1.0)), studio.dust_colour, 0.0)


def _lit(surface: Surface, canvas: Canvas, dice: Dice, studio: Studio) -> Field:
    """Return the light (3, H, W) that leaves the surface: diffuse, ambient and highlights."""
    cos_a, sin_a = direction(studio.azimuth + dice.uniform("azimuth", -0.02, 0.02))
    tilt = studio.tilt * dice.uniform("tilt", 0.94, 1.06)
    lx, ly, lz = tilt * cos_a, tilt * sin_a, math.sqrt(1.0 - tilt * tilt)
    half_z = math.sqrt(2.0 + 2.0 * lz) / 2.0  # half way between lamp and camera, camera along z
    hx, hy = lx / (2.0 * half_z), ly / (2.0 * half_z)
    gx, gy = _gradient(surface.height, canvas)
    norm = 1.0 / np.sqrt(1.0 + gx * gx + gy * gy)
    facing = np.maximum((lz - lx * gx - ly * gy) * norm, 0.0) * (1.0 / lz)
    shine = np.maximum((half_z - hx * gx - hy * gy) * norm, 0.0)
    for _ in range(studio.sheen):
        shine = shine * shine
    diffuse = (studio.ambient + (1.0 - studio.ambient) * facing) * surface.light
    return surface.albedo * diffuse + shine * surface.gloss * surface.light


def _gradient(height: Field, canvas: Canvas) -> tuple[Field, Field]:
    """Return the central differences of the relief along x and y, per scene unit."""
    gx, gy = np.zeros_like(height), np.zeros_like(height)
    gx[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * (canvas.width / 4.0)
    gy[1:-1, :] = (height[2:, :] - height[:-2, :]) * (canvas.height / 4.0)
    gx[:, 0], gx[:, -1], gy[0], gy[-1] = gx[:, 1], gx[:, -2], gy[1], gy[-2]
    return gx, gy


def _optics(image: Field, canvas: Canvas, dice: Dice, studio: Studio) -> Field:
    """Blur by the lens, more so away from a slanted plane of focus."""
    sharp = blur(image, studio.focus / canvas.pixel)
    cos_a, sin_a = direction(dice.unit("focus turn"))
    away = np.abs(canvas.x * cos_a + canvas.y * sin_a - dice.uniform("focus", -0.3, 0.3))
    soft = blur(sharp, studio.depth / canvas.pixel)
    return sharp + (soft - sharp) * smooth(0.25, 1.5, away)


def expose(surface: Surface, canvas: Canvas, dice: Dice, studio: Studio) -> Field:
    """Return the noise-free photograph (3, H, W), 0 to 1, encoded as the square root of light."""
    light = _optics(_lit(surface, canvas, dice, studio), canvas, dice, studio)
    cos_a, sin_a = direction(dice.unit("gradient turn"))
    slope = dice.uniform("gradient", 0.02, 0.12)
    field = 1.0 + slope * (canvas.x * cos_a + canvas.y * sin_a)
    r2 = canvas.x * canvas.x + canvas.y * canvas.y
    exposure = dice.uniform("exposure", 1.0 - studio.exposure, 1.0 + studio.exposure)
    field = field * (1.0 - studio.vignette * 0.5 * r2) * exposure
    # A veil of glare: broad, weak and somewhere near the border.
    gx, gy = dice.uniform("glare x", -1.4, 1.4), dice.uniform("glare y", -1.4, 1.4)
    d2 = (canvas.x - gx) * (canvas.x - gx) + (canvas.y - gy) * (canvas.y - gy)
    veil = np.maximum(1.0 - d2 * 0.4, 0.0)
    veil = veil * veil * dice.uniform("glare", 0.0, 0.03)
    out = np.empty_like(light)
    for c, name in enumerate("rgb"):
        balance = dice.uniform(f"balance {name}", 0.975, 1.025)
        out[c] = np.sqrt(clip(light[c] * (field * balance) + veil, 0.0, 1.0))
    return out * out * (3.0 - 2.0 * out) * 0.25 + out * 0.75  # a soft shoulder and toe, as film and cameras have


def develop(photo: Field, dice: Dice, studio: Studio) -> np.ndarray:
    """Add the sensor's grain and round to uint8 (H, W, 3)."""
    _, h, w = photo.shape
    rows, columns = np.arange(h, dtype=np.int32)[:, None], np.arange(w, dtype=np.int32)[None, :]
    out = np.empty((h, w, 3), dtype=np.uint8)
    shared = _bell(hash_cells(columns, rows, dice.seed("grain")))
    for c, name in enumerate("rgb"):
        own = _bell(hash_cells(columns, rows, dice.seed(f"grain {name}")))
        level = photo[c] * 255.0 + (shared + own * 0.6) * (studio.grain * (1.2 - 0.6 * photo[c]))
        out[..., c] = clip(np.floor(level + 0.5), 0.0, 255.0).astype(np.uint8)
    return out


def _bell(bits: np.ndarray) -> Field:
    """Turn 32 random bits into a number of mean 0 and deviation 1: the sum of its four bytes."""
    total = np.zeros(bits.shape, dtype=np.int32)
    for k in range(4):
        total += ((bits >> np.uint32(8 * k)) & np.uint32(255)).astype(np.int32)
    return (total.astype(np.float32) - 510.0) * (1.0 / 147.8)
