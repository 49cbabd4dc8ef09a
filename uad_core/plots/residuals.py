"""The signature figure of the book: image, mask, each residual level, anomaly map and verdict, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uad_core.errors import UserError
from uad_core.scoring import verdict

from .base import COLOURS, MAP_COLOURS, STYLE, WIDTH, as_array, as_picture, figure, limits, symbol
from .pictures import Array, clear, draw_outline

__all__ = ["residual_panel"]

# Inches. Places are computed, not left to a layout engine, so that all rows line up whatever their resolution.
_LABELS, _BARS = 0.8, 0.95  # what row labels and colour bars take of the width
_CELL, _GAP, _TITLE, _VERDICT = 1.3, 0.05, 0.45, 0.5  # largest width of a picture; between them; above; below


@matplotlib.rc_context(STYLE)
def residual_panel(
    images: Array,
    masks: Array | None,
    residuals: Mapping[str, torch.Tensor],
    maps: Array,
    scores: Array,
    threshold: float | None = None,
    titles: Sequence[str] | None = None,
    vmax: float | None = None,
    *,
    residual_vmax: float | None = None,
    labels: Sequence[bool] | None = None,
) -> Figure:
    """Draw one column for each sample: image, mask, every residual, anomaly map, verdict.

    All residuals of all samples share one colour scale, all anomaly maps another: a level that is dark is small.
    Nothing is scaled image by image. Up to six samples stay legible on a phone.

    Args:
        images: (N, 3, H, W) in [0, 1].
        masks: (N, H, W) bool, drawn as outlines; None where the data has none.
        residuals: name -> (N, h, w), each at its own resolution, as `Detector.residuals` returns them.
        maps: (N, H, W), any range.
        scores: (N,), the image scores.
        threshold: scores above it mean "anomalous"; None leaves the verdict out, and NaN makes it "no verdict".
        titles: one for each sample, such as the kind of defect.
        vmax, residual_vmax: top of the colour scale of the maps and of the residuals, to share a scale among
            figures; by default the 0.998 quantile over all that is shown.
        labels: (N,) bool, True = anomalous; by default whether the mask is not empty. Without both, a verdict is
            neither correct nor wrong.

    Raises:
        UserError: the arguments do not hold the same number of samples.
    """
    _check(images, masks=masks, maps=maps, scores=scores, titles=titles, labels=labels, **residuals)
    if labels is None and masks is not None:
        labels = as_array(masks).any(axis=(1, 2))
    names = ["image", *(["mask"] if masks is not None else []), *residuals, "anomaly map", "verdict"]
    grid = _Grid(names, len(images), as_array(images).shape[-2:], _TITLE if titles else _GAP)
    for column, image in enumerate(images):
        picture = as_picture(image)
        grid.axes["image", column].imshow(picture)
        if masks is not None:
            _draw_mask(grid.axes["mask", column], picture, masks[column])
        label = None if labels is None else bool(labels[column])
        _draw_verdict(grid.axes["verdict", column], float(scores[column]), threshold, label)
    _draw_scaled(grid, residuals, residual_vmax, "residual\n(no unit)")
    _draw_scaled(grid, {"anomaly map": maps}, vmax, "score\n(no unit)")
    if masks is not None:
        for column, mask in enumerate(masks):
            draw_outline(grid.axes["anomaly map", column], mask, width=0.6, halo=0.4)
    _write_titles(grid, titles or [])
    _label_rows(grid, residuals, threshold)
    return grid.sheet


def _check(images: Array, **others: Sequence | None) -> None:
    """Every argument that is there holds one entry for each image."""
    for name, values in others.items():
        if values is not None and len(values) != len(images):
            raise UserError(f"{name} has {len(values)} entries for {len(images)} images: give one for each sample")
    if len(images) == 0:
        raise UserError("a residual panel of no image: choose at least one sample")


class _Grid:
    """A figure with a row of `count` axes for each name, and room at its right for colour bars."""

    def __init__(self, names: list[str], count: int, size: tuple[int, int], head: float) -> None:
        self.names, self.count, self.size = names, count, size
        self.width = min(_CELL, (WIDTH - _LABELS - _BARS) / count - _GAP)
        heights = {name: self.width * size[0] / size[1] for name in names} | {"verdict": _VERDICT}
        self.left = (WIDTH - _LABELS - _BARS - count * (self.width + _GAP)) / 2 + _LABELS
        self.total = head + sum(heights.values()) + _GAP * len(names)
        self.sheet = figure(self.total, layout="none")
        self.rows: dict[str, tuple[float, float]] = {}  # name -> (top, bottom), inches from the top
        top = head
        for name in names:
            self.rows[name] = (top, top + heights[name])
            top += heights[name] + _GAP
        self.axes = {(name, column): self._cell(name, column) for name in names for column in range(count)}

    def _place(self, left: float, top: float, width: float, bottom: float) -> Axes:
        """New axes at a place given in inches from the upper left corner."""
        height = (bottom - top) / self.total
        return self.sheet.add_axes((left / WIDTH, 1 - bottom / self.total, width / WIDTH, height))

    def _cell(self, name: str, column: int) -> Axes:
        ax = self._place(self.left + column * (self.width + _GAP), self.rows[name][0], self.width, self.rows[name][1])
        clear(ax)
        return ax

    def bar(self, first: str, last: str) -> Axes:
        """Axes for a colour bar beside the rows from `first` to `last`."""
        left = self.left + self.count * (self.width + _GAP) + 0.03
        return self._place(left, self.rows[first][0], 0.1, self.rows[last][1])


def _draw_mask(axes: Axes, picture: np.ndarray, mask: Array) -> None:
    """The image in pale grey under the outline of its mask."""
    grey = picture.mean(axis=2)
    axes.imshow(0.5 + 0.5 * grey, cmap="gray", vmin=0, vmax=1)
    draw_outline(axes, mask)


def _draw_scaled(grid: _Grid, rows: Mapping[str, Array], top: float | None, label: str) -> None:
    """Draw the maps of several rows on one colour scale and put one colour bar beside them."""
    arrays = {name: as_array(values) for name, values in rows.items()}
    low, high = limits(arrays.values())
    high = high if top is None else top
    # Every level covers the whole image, so all cells share the image's pixel coordinates.
    height, width = grid.size
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for name, array in arrays.items():
        for column, values in enumerate(array):
            last = grid.axes[name, column].imshow(values, cmap=MAP_COLOURS, vmin=low, vmax=high, extent=extent)
    clipped = max(array.max() for array in arrays.values()) > high
    bar = grid.sheet.colorbar(last, cax=grid.bar(next(iter(rows)), name), extend="max" if clipped else "neither")
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.ax.grid(False)


def _draw_verdict(axes: Axes, score: float, threshold: float | None, label: bool | None) -> None:
    """Score, decision, and whether it is right: by a symbol and a colour, so that neither is needed alone."""
    lines, colour, ground = [f"{score:#.3g}"], "black", "white"
    if threshold is not None:
        lines.append(verdict(score, threshold))
        if label is not None and np.isfinite(threshold):
            right = (score > threshold) == label
            lines.append("✓ correct" if right else "✗ wrong")
            colour, ground = "white", COLOURS["correct" if right else "wrong"]
    axes.set_facecolor(ground)
    size = 8 if axes.get_position().width * WIDTH > 0.65 else 6.5
    place = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.47, "\n".join(lines), fontsize=size, color=colour, **place)


def _write_titles(grid: _Grid, titles: Sequence[str]) -> None:
    """One title above each column; slanted where a word is wider than the column."""
    texts = [_broken(title) for title in titles]
    widest = max((len(line) for text in texts for line in text.split("\n")), default=0)
    slanted = widest * 0.08 > grid.width  # a letter of 9 pt is about 0.08 in wide
    for column, text in enumerate(texts):
        text = text.replace("\n", " ") if slanted else text
        grid.axes["image", column].set_title(
            text, fontsize=8 if slanted else 9, rotation=20 if slanted else 0, ha="left" if slanted else "center",
            x=0.1 if slanted else 0.5, pad=3,
        )


def _label_rows(grid: _Grid, residuals: Mapping[str, Array], threshold: float | None) -> None:
    """Name each row at its left; a residual with its symbol and its resolution, the verdict with the threshold."""
    for name in grid.names:
        text = _broken(name)
        if name in residuals:
            height, width = as_array(residuals[name]).shape[-2:]
            text = f"{_broken(symbol(name))}\n{height}×{width}"
        if name == "verdict" and threshold is None:
            text = "score"
        elif name == "verdict" and np.isfinite(threshold):
            text = f"verdict\nat {threshold:#.3g}"
        grid.axes[name, 0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)


def _broken(name: str) -> str:
    """A name in words, one to a line; a formula stays whole."""
    return name if "$" in name else name.replace("_", " ").replace(" ", "\n")
