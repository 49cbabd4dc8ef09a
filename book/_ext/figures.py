"""The figures of pages without code, drawn from the package whenever the book is built."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from uad_core import metrics
from uad_core.plots import COLOURS, figure
from uad_core.plots.base import STYLE

__all__ = ["FIGURES", "draw_all"]

SCORES, LABELS = [1, 2, 4, 7, 4, 8, 9], [0, 0, 0, 0, 1, 1, 1]
MAP = np.array([[9, 9, 1, 6, 6], [9, 9, 1, 1, 6], [1, 1, 1, 1, 1], [1, 1, 1, 1, 5]])
MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])


@matplotlib.rc_context(STYLE)
def roc_and_precision() -> Figure:
    """The running example of the page on measures: its ROC curve and its precision over recall."""
    sheet = figure(3.0)
    left, right = sheet.subplots(1, 2)
    fpr, tpr = metrics.roc_curve(SCORES, LABELS)
    left.plot(fpr, tpr, color=COLOURS["normal"])
    left.fill_between(fpr, tpr, color=COLOURS["normal"], alpha=0.15)
    left.plot([0, 1], [0, 1], "--", color=COLOURS["quiet"], linewidth=1)
    left.text(0.62, 0.52, "chance", rotation=43, color=COLOURS["quiet"])
    left.annotate("the tie at score 4", (0.375, 0.83), (0.42, 0.2), arrowprops={"arrowstyle": "->"})
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    left.set_title(f"AUROC {metrics.auroc(SCORES, LABELS):.3f}")
    recall, precision = metrics.precision_recall_curve(SCORES, LABELS)
    right.plot(recall, precision, drawstyle="steps-pre", color=COLOURS["anomalous"])
    right.fill_between(recall, precision, step="pre", color=COLOURS["anomalous"], alpha=0.15)
    right.plot(recall[1:], precision[1:], "o", color=COLOURS["anomalous"])
    for score, at, height in zip((9, 8, 4), recall[1:], precision[1:], strict=True):
        right.annotate(f"t = {score}", (at, height), (-8, -16), textcoords="offset points", ha="right")
    right.set(title=f"AP {metrics.average_precision(SCORES, LABELS):.3f}", xlabel="recall", ylabel="precision")
    for ax in (left, right):
        ax.set(xlim=(-0.02, 1.02), ylim=(0, 1.05))
    return sheet


@matplotlib.rc_context(STYLE)
def per_region_overlap() -> Figure:
    """The small image of the page on measures: its scores, its regions, and its curve of per-region overlap."""
    sheet = figure(2.9)
    left, right = sheet.subplots(1, 2)
    left.imshow(MAP, cmap="Greys", vmin=0, vmax=14)
    for (row, column), score in np.ndenumerate(MAP):
        inside = bool(MASK[row, column])
        left.text(column, row, score, ha="center", va="center", weight="bold" if inside else "normal")
    for corner, side in (((-0.5, -0.5), 2), ((3.5, 2.5), 1)):
        box = {"edgecolor": COLOURS["anomalous"], "facecolor": "none", "linewidth": 2.5, "clip_on": False}
        left.add_patch(matplotlib.patches.Rectangle(corner, side, side, **box))
    left.set(title="scores; regions of the mask outlined", xticks=[], yticks=[])
    left.grid(False)
    fpr, pro = metrics.pro_curve(MAP[None], MASK[None])
    right.plot(fpr, pro, color=COLOURS["normal"])
    counted = np.linspace(0, 0.3, 301)
    right.fill_between(counted, np.where(counted < 0.2, 0.5, 1.0), color=COLOURS["normal"], alpha=0.15)
    right.axvline(0.3, linestyle="--", color=COLOURS["quiet"], linewidth=1)
    right.text(0.32, 0.1, "not counted", color=COLOURS["quiet"])
    right.set(title=f"AUPRO {metrics.aupro(MAP[None], MASK[None]):.3f}", xlim=(-0.02, 1.02), ylim=(0, 1.05))
    right.set(xlabel="false positive rate of pixels", ylabel="PRO, mean overlap of regions")
    return sheet


FIGURES: dict[str, Callable[[], Figure]] = {
    "roc_and_precision": roc_and_precision,
    "per_region_overlap": per_region_overlap,
}


def draw_all(folder: Path) -> None:
    """Write every figure as SVG into `folder`; a file with the same content is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "uad", "svg.fonttype": "path"}):
        for name, draw in FIGURES.items():
            part, final = folder / f".{name}.{os.getpid()}", folder / f"{name}.svg"
            draw().savefig(part, format="svg", metadata={"Date": None})
            if final.exists() and final.read_bytes() == part.read_bytes():
                part.unlink()  # a newer file would make Sphinx read its page again
            else:
                os.replace(part, final)
