"""Figures that show images: masks as outlines, anomaly maps laid over the image, contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from uad_core.errors import UserError
from uad_core.scoring import verdict

from .base import COLOURS, MAP_COLOURS, STYLE, WIDTH, as_array, as_picture, figure

if TYPE_CHECKING:
    from uad_core.datasets.base import ImageSet

__all__ = ["blend", "clear", "contact_sheet", "draw_outline", "overlay", "picture_grid"]

Array = torch.Tensor | np.ndarray


def clear(axes: Axes) -> None:
    """Leave nothing of an axes but its picture, title and labels, and a hairline that parts white from the page."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.5)


def draw_outline(axes: Axes, mask: Array, width: float = 1.2, halo: float = 1.2) -> None:
    """Draw the outline of `mask` (H, W) bool into an axes in pixel coordinates; nothing for an empty mask.

    The line of `width` points has a black edge, `halo` points wider, that keeps it apart from a light image.
    """
    inside = as_array(mask).astype(bool)
    if not inside.any():
        return
    # One ring of background, so that regions at the border are closed too.
    height, width_px = inside.shape
    ring = np.pad(inside, 1).astype(float)
    x, y = np.arange(-1, width_px + 1), np.arange(-1, height + 1)
    for colour, stroke in (("black", width + halo), (COLOURS["outline"], width)):
        axes.contour(x, y, ring, levels=[0.5], colors=[colour], linewidths=stroke)
    axes.set(xlim=(-0.5, width_px - 0.5), ylim=(height - 0.5, -0.5))


def blend(image: Array, anomaly_map: Array, *, vmin: float, vmax: float, alpha: float = 0.8) -> np.ndarray:
    """Lay an anomaly map over its image, the more opaque the higher the value.

    With a = alpha * clip((A - vmin) / (vmax - vmin), 0, 1) the pixel is (1 - a) image + a colour(A): where the map
    is at most `vmin` the image is untouched.

    Args:
        image: (3, H, W) in [0, 1].
        anomaly_map: (H, W), any range.
        vmin, vmax: one colour scale for the whole set of images, never that of one image.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        UserError: image and map differ in size, or `vmax` is not above `vmin`.
    """
    picture, values = as_picture(image), as_array(anomaly_map)
    if picture.shape[:2] != values.shape:
        raise UserError(f"image {picture.shape[:2]} and map {values.shape} differ in size: resize the map first")
    if not vmax > vmin:
        raise UserError(f"the colour scale {vmin} to {vmax} is empty: vmax must be above vmin")
    level = np.clip((values - vmin) / (vmax - vmin), 0, 1)
    opacity = (alpha * level)[..., None]  # (H, W, 1)
    colour = matplotlib.colormaps[MAP_COLOURS](level)[..., :3]  # (H, W, 3)
    return ((1 - opacity) * picture + opacity * colour).astype(np.float32)


def _verdict(score: float, threshold: float | None) -> str:
    """One line about an image: its score and, if there is a threshold, on which side of it."""
    if threshold is None or not np.isfinite(threshold):
        return f"score {score:#.3g}" if threshold is None else f"no verdict: score {score:#.3g}"
    sign = ">" if score > threshold else "≤"
    return f"{verdict(score, threshold)}: score {score:#.3g} {sign} {threshold:#.3g}"


@matplotlib.rc_context(STYLE)
def overlay(
    image: Array,
    anomaly_map: Array,
    mask: Array | None = None,
    *,
    vmin: float,
    vmax: float,
    score: float | None = None,
    threshold: float | None = None,
    title: str = "",
) -> Figure:
    """Show an image beside the same image under its anomaly map, with a colour bar and the score.

    Args:
        image: (3, H, W) in [0, 1].
        anomaly_map: (H, W), any range.
        mask: (H, W) bool, drawn as an outline over both.
        vmin, vmax: one colour scale for all images that are compared (see `limits`).
        score, threshold: the image's score and the score above which an image counts as anomalous.

    Raises:
        UserError: as `blend`.
    """
    blended = blend(image, anomaly_map, vmin=vmin, vmax=vmax)
    height, width = blended.shape[:2]
    sheet = figure(min((WIDTH - 0.2) / 2 * height / width, 2 * WIDTH) + 1.3)
    axes = sheet.subplots(1, 2)
    for ax, picture, name in zip(axes, (as_picture(image), blended), ("image", "anomaly map"), strict=True):
        ax.imshow(picture)
        ax.set_title(name)
        clear(ax)
        if mask is not None:
            draw_outline(ax, mask)
    scale = ScalarMappable(Normalize(vmin, vmax), MAP_COLOURS)
    extend = _extension(anomaly_map, vmin, vmax)
    # Below, where there is room for its label however low or high the images are.
    bar = sheet.colorbar(scale, ax=axes, location="bottom", label="anomaly score (no unit)", extend=extend, aspect=40)
    bar.ax.grid(False)
    heading = [title] if title else []
    heading += [_verdict(score, threshold)] if score is not None else []
    sheet.suptitle(" — ".join(heading), fontsize=STYLE["font.size"])
    return sheet


def _extension(values: Array, vmin: float, vmax: float) -> str:
    """Which ends of a colour bar are pointed because values lie beyond them."""
    array = as_array(values)
    below, above = bool((array < vmin).any()), bool((array > vmax).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]


def _in_turn(defects: list[str], count: int) -> list[int]:
    """Up to `count` positions, taken from the kinds of defect in turn so that each kind is seen; sorted by kind."""
    queues = {kind: [i for i, d in enumerate(defects) if d == kind] for kind in dict.fromkeys(defects)}
    chosen: list[int] = []
    while len(chosen) < min(count, len(defects)):
        for queue in queues.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    order = list(queues)
    return sorted(chosen, key=lambda i: (order.index(defects[i]), i))


@matplotlib.rc_context(STYLE)
def contact_sheet(image_set: ImageSet, count: int = 12, columns: int = 6) -> Figure:
    """Show up to `count` images of a split, every kind of defect in turn, masks as outlines.

    Raises:
        UserError: the split holds no image, or fewer than one is asked for.
    """
    if len(image_set) == 0 or count < 1 or columns < 1:
        asked = f"{count} of {len(image_set)} images in {columns} columns"
        raise UserError(f"cannot draw a contact sheet of {asked}: each number must be at least 1")
    chosen = _in_turn(list(image_set.defects), count)
    rows = -(-len(chosen) // columns)
    height, width = image_set.image_size
    sheet = figure(rows * (WIDTH / columns * height / width + 0.25))
    axes = sheet.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    for ax, i in zip(axes, chosen, strict=False):
        clear(ax)
        ax.imshow(as_picture(image_set[i]))
        ax.set_title(image_set.defects[i].replace("_", " "), fontsize=9)
        if image_set.has_masks:
            draw_outline(ax, image_set.mask(i))
    return sheet


@matplotlib.rc_context(STYLE)
def picture_grid(
    rows: Mapping[str, Array], titles: Sequence[str] | None = None, masks: Array | None = None
) -> Figure:
    """Show pictures in rows that bear names, such as images and what several models make of them.

    Args:
        rows: name -> (N, 3, H, W) in [0, 1], or (N, h, w) values that share one colour scale within their row. All rows
            hold the same number N.
        titles: one for each of the N columns.
        masks: (N, H, W) bool, drawn as outlines on the rows of their size.

    Raises:
        UserError: rows of different lengths, or none.
    """
    counts = {len(pictures) for pictures in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise UserError(f"a grid of rows with {sorted(counts)} pictures: give each row the same number, at least one")
    columns = counts.pop()
    cell = min(1.3, (WIDTH - 1.1) / columns)
    heights = [cell * np.shape(pictures)[-2] / np.shape(pictures)[-1] for pictures in rows.values()]
    sheet = figure(sum(heights) + 0.35 * bool(titles) + 0.1)
    grid = sheet.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
        _draw_row(axes, name, pictures, masks)
    for ax, title in zip(grid[0], titles or [], strict=False):
        ax.set_title(title.replace("_", " "), fontsize=9)
    return sheet


def _draw_row(axes: np.ndarray, name: str, pictures: Array, masks: Array | None) -> None:
    values = as_array(pictures)
    scale = {} if values.ndim == 4 else {"cmap": MAP_COLOURS, "vmin": values.min(), "vmax": values.max()}
    for k, ax in enumerate(axes):
        clear(ax)
        ax.imshow(as_picture(values[k]) if values.ndim == 4 else values[k], **scale)
        if masks is not None and np.shape(masks)[1:] == values.shape[-2:]:
            draw_outline(ax, masks[k], width=0.8, halo=0.6)
    axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
