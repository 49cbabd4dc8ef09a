"""The six categories of the built-in benchmark, and one picture of any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from uad_core.errors import UserError
from uad_core.datasets.procedural import jar, tablet, weave
from uad_core.datasets.procedural.camera import Studio, develop, dust, expose
from uad_core.datasets.procedural.canvas import Canvas, Surface, blur
from uad_core.datasets.procedural.defects import Fault
from uad_core.datasets.procedural.exact import Dice, Field

__all__ = ["CATEGORIES", "DEFECTS", "check_category", "draw"]


@dataclass(frozen=True)
class Recipe:
    """How one category is drawn, photographed and damaged."""

    scene: Callable[[Canvas, Dice], Surface]
    studio: Studio
    defects: dict[str, Callable[[Surface, Fault], Field]]
    rebuilt: dict[str, Callable[[Canvas, Dice, Fault], tuple[Surface, Field]]] = field(default_factory=dict)


_RECIPES = {
    "weave": Recipe(weave.weave, weave.STUDIO, weave.DEFECTS),
    "jar": Recipe(jar.jar, jar.STUDIO, jar.DEFECTS),
    "tablet": Recipe(tablet.tablet, tablet.STUDIO, tablet.DEFECTS, tablet.REBUILT),
}
CATEGORIES: tuple[str, ...] = tuple(_RECIPES)
DEFECTS: dict[str, tuple[str, ...]] = {name: (*recipe.rebuilt, *recipe.defects) for name, recipe in _RECIPES.items()}

_GOLDEN = 0.6180339887498949  # successive multiples are spread evenly over [0, 1)


def check_category(category: str) -> None:
    """Raise `UserError` unless there is such a category."""
    if category not in _RECIPES:
        raise UserError(f"procedural: no category {category!r}; there are {', '.join(CATEGORIES)}")


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

    Raises `UserError` for an unknown category or defect, or a severity out of range.
    """
    check_category(category)
    if defect is not None and defect not in DEFECTS[category]:
        raise UserError(f"procedural/{category}: no defect {defect!r}; there are {', '.join(DEFECTS[category])}")
    if not 0.0 <= severity <= 1.0:
        raise UserError(f"procedural/{category}: severity {severity}: give a number from 0 to 1")
    recipe = _RECIPES[category]
    canvas = Canvas(*((image_size, image_size) if isinstance(image_size, int) else image_size))
    dice = Dice(0).child(seed, category, split, index)
    surface = recipe.scene(canvas, dice.child("scene"))
    dust(surface, canvas, dice.child("dust"), recipe.studio)
    photo = expose(surface, canvas, dice.child("camera"), recipe.studio)
    mask = np.zeros((canvas.height, canvas.width), dtype=bool)
    if defect is not None and severity > 0:
        spread = Dice(0).child(seed, category, defect).unit("rank") + index * _GOLDEN
        fault = Fault(defect, float(severity), dice.child("defect", defect), spread - int(spread))
        surface, support = _damage(recipe, surface, canvas, dice, fault)
        mask = blur(support, recipe.studio.focus / canvas.pixel) > 0.12
        photo = np.where(mask, expose(surface, canvas, dice.child("camera"), recipe.studio), photo)
    return develop(photo, dice.child("sensor"), recipe.studio), mask


def _damage(recipe: Recipe, surface: Surface, canvas: Canvas, dice: Dice, fault: Fault) -> tuple[Surface, Field]:
    """Return the surface with its defect, and the support of the defect."""
    if fault.kind in recipe.defects:
        return surface, recipe.defects[fault.kind](surface, fault)
    surface, support = recipe.rebuilt[fault.kind](canvas, dice.child("scene"), fault)
    dust(surface, canvas, dice.child("dust"), recipe.studio)
    return surface, support
