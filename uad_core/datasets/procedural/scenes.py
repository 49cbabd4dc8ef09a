"""The six categories of the built-in benchmark, and one picture of any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from uad_core.datasets.procedural import circuit, grille, jar, plank, tablet, weave
from uad_core.datasets.procedural.camera import Studio, develop, dust, expose
from uad_core.datasets.procedural.canvas import Canvas, Surface, blur
from uad_core.datasets.procedural.defects import Fault
from uad_core.datasets.procedural.exact import Dice, Field
from uad_core.errors import UserError

__all__ = ["CATEGORIES", "DEFECTS", "check_category", "check_size", "draw"]

SMALLEST = 16


@dataclass(frozen=True)
class Recipe:
    """How one category is drawn, photographed and damaged."""

    scene: Callable[[Canvas, Dice], Surface]
    studio: Studio
    defects: dict[str, Callable[[Surface, Fault], Field]]
    rebuilt: dict[str, Callable[[Canvas, Dice, Fault], tuple[Surface, Field | None]]] = field(default_factory=dict)


_RECIPES = {
    "weave": Recipe(weave.weave, weave.STUDIO, weave.DEFECTS),
    "plank": Recipe(plank.plank, plank.STUDIO, plank.DEFECTS),
    "grille": Recipe(grille.grille, grille.STUDIO, grille.DEFECTS, grille.REBUILT),
    "jar": Recipe(jar.jar, jar.STUDIO, jar.DEFECTS),
    "tablet": Recipe(tablet.tablet, tablet.STUDIO, tablet.DEFECTS, tablet.REBUILT),
    "circuit": Recipe(circuit.circuit, circuit.STUDIO, circuit.DEFECTS, circuit.REBUILT),
}
CATEGORIES: tuple[str, ...] = tuple(_RECIPES)
DEFECTS: dict[str, tuple[str, ...]] = {name: (*recipe.rebuilt, *recipe.defects) for name, recipe in _RECIPES.items()}

_EDGE = 0.12  # share of a pixel, after the lens, from which a defect counts as covering it
_VISIBLE = 4.0 / 255.0  # change from which a pixel of a rebuilt scene counts as changed
_CLOSING = 0.008  # scene units
_GOLDEN = 0.6180339887498949  # successive multiples are spread evenly over [0, 1)


def check_category(category: str) -> None:
    """Raise `UserError` unless there is such a category."""
    if category not in _RECIPES:
        raise UserError(f"procedural: no category {category!r}; there are {', '.join(CATEGORIES)}")


def check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) in pixels, or raise `UserError` where it is too small to draw."""
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if min(size) < SMALLEST:
        raise UserError(f"procedural: --image-size {image_size}: drawn pictures need at least {SMALLEST} pixels a side")
    return size


def draw(
    category: str, split: str, index: int, *, image_size: int | tuple[int, int] = 256, seed: int = 0,
    defect: str | None = None, severity: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Draw one picture; without a defect, and with the same other arguments, its clean twin.

    Args:
        category: one of `CATEGORIES`.
        split: "train" or "test"; only makes the scenes of the two differ.
        index: number of the scene, from 0.
        image_size: side, or (H, W), in pixels. The scene is the same at every size.
        seed: of everything random.
        defect: one of `DEFECTS[category]`, or None.
        severity: in [0, 1], how plainly the defect shows; 0 leaves the clean twin.

    Returns:
        The image, uint8 (H, W, 3), and the mask, bool (H, W). Outside the mask an image equals its clean twin.

    Raises `UserError` for an unknown category or defect, or a severity or size out of range.
    """
    check_category(category)
    if defect is not None and defect not in DEFECTS[category]:
        raise UserError(f"procedural/{category}: no defect {defect!r}; there are {', '.join(DEFECTS[category])}")
    if not 0.0 <= severity <= 1.0:
        raise UserError(f"procedural/{category}: severity {severity}: give a number from 0 to 1")
    _keep_memory()
    recipe, dice = _RECIPES[category], Dice(0).child(seed, category, split, index)
    canvas = Canvas.of(*check_size(image_size))
    surface = recipe.scene(canvas, dice.child("scene"))
    dust(surface, canvas, dice.child("dust"), recipe.studio)
    photo = expose(surface, canvas, dice.child("camera"), recipe.studio)
    mask = np.zeros((canvas.height, canvas.width), dtype=bool)
    if defect is not None and severity > 0:
        spread = Dice(0).child(seed, category, defect).unit("rank") + index * _GOLDEN
        fault = Fault(defect, float(severity), dice.child("defect", defect), spread - int(spread))
        damaged, mask = _damaged(recipe, surface, photo, canvas, dice, fault)
        photo = np.where(mask, damaged, photo)
    return develop(photo, dice.child("sensor"), recipe.studio), mask


def _keep_memory() -> None:
    """Free one large block, so that glibc keeps the pages of smaller ones: drawing is then up to four times faster.

    Its threshold for returning memory follows the largest block that was freed; below it, each of the hundreds of
    fields of a scene would fault its pages in again. Elsewhere this does nothing.
    """
    np.empty(24 << 20, dtype=np.uint8)


def _damaged(
    recipe: Recipe, surface: Surface, photo: Field, canvas: Canvas, dice: Dice, fault: Fault
) -> tuple[Field, np.ndarray]:
    """Return the noise-free photograph (3, H, W) with the defect, and the mask (H, W).

    A defect that lies on the surface knows its own outline. One for which the scene was built differently is masked
    where it changed the photograph, and over the whole of a part that is missing or misplaced.
    """
    camera, studio = dice.child("camera"), recipe.studio
    if fault.kind in recipe.defects:
        support = recipe.defects[fault.kind](surface, fault)
        damaged = expose(surface, canvas, camera, studio)
        # Faint defects are plain ones seen through: each pixel's change grows in proportion to the severity.
        return photo + (damaged - photo) * fault.severity, blur(support, studio.focus / canvas.pixel) > _EDGE
    rebuilt, part = recipe.rebuilt[fault.kind](canvas, dice.child("scene"), fault)
    dust(rebuilt, canvas, dice.child("dust"), studio)
    damaged = expose(rebuilt, canvas, camera, studio)
    change = np.abs(damaged - photo)
    changed = np.maximum(np.maximum(change[0], change[1]), change[2]) > _VISIBLE
    if part is not None:
        changed |= part > 0.5
    # The small blur closes pinholes, where old and new happen to look alike, and drops single pixels.
    return damaged, blur(changed.astype(np.float32), _CLOSING / canvas.pixel) > 0.4
