"""The look that all figures share, and the conversions from tensors that all of them need."""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import BytesIO

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.figure import Figure

from uad_core.errors import UserError

__all__ = ["COLOURS", "MAP_COLOURS", "STYLE", "WIDTH", "Picture", "as_array", "as_picture", "figure", "limits", "style",
           "symbol"]

WIDTH = 6.4
"""Width of every figure in inches: 10 pt type is then 17 px high on a page of 800 px and still 8 px on a phone."""

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in grey by lightness.
COLOURS = {
    "normal": "#0072B2",
    "anomalous": "#D55E00",
    "correct": "#0072B2",
    "wrong": "#B34700",
    "outline": "#56D0F5",
    "quiet": "#595959",
}
_CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]

MAP_COLOURS = "inferno"
"""Colour map of residuals and anomaly maps: lightness grows with the value; no blue, which outlines are drawn in."""

STYLE = {
    # White, not transparent: a page in dark mode then shows the figure as it was drawn.
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "figure.figsize": (WIDTH, 3.4),
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "axes.prop_cycle": cycler(color=_CYCLE),
    "image.cmap": MAP_COLOURS,
    "image.interpolation": "nearest",
}


def style() -> None:
    """Make the book's look the default of matplotlib, for figures that a chapter draws by itself.

    The functions of this package do not need it: each draws in this look whatever the defaults are.
    """
    matplotlib.rcParams.update(STYLE)


class Picture(Figure):
    """A figure that a notebook shows without pyplot having been imported."""

    def _repr_png_(self) -> bytes:
        """The PNG file, at the resolution of the book."""
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=STYLE["savefig.dpi"])
        return buffer.getvalue()


def figure(height: float, layout: str = "constrained") -> Picture:
    """An empty figure of the book's width, `height` in inches, white behind everything."""
    return Picture(figsize=(WIDTH, height), layout=layout, facecolor="white")


def as_array(values: torch.Tensor | np.ndarray | Iterable) -> np.ndarray:
    """A numpy array of any tensor: off its device, without gradient, half precision widened; bool stays bool."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return values.numpy()
    return np.asarray(values)


def as_picture(image: torch.Tensor | np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] of an image (3, H, W) in [0, 1], as matplotlib wants it.

    Raises:
        UserError: for any other shape.
    """
    array = as_array(image)
    if array.ndim != 3 or array.shape[0] != 3:
        raise UserError(f"an image to draw has shape {tuple(array.shape)}: give (3, H, W) with values in [0, 1]")
    return np.clip(array.transpose(1, 2, 0), 0, 1).astype(np.float32)  # (H, W, 3)


def symbol(name: str) -> str:
    """A name with every `phi_1`, `s_1` or other letter with a number written as the formula that it stands for."""
    name = re.sub(r"\bphi_([A-Za-z0-9]+)", r"$\\phi_{\1}$", name)
    return re.sub(r"\b([A-Za-z])_([0-9]+)", r"$\1_{\2}$", name)


def limits(maps: Iterable, quantile: float = 0.998) -> tuple[float, float]:
    """The one colour scale (lowest, `quantile` of all values) for a whole set of maps of any shapes.

    The quantile keeps one hot pixel from darkening all others; what lies above it is drawn in the top colour, and the
    colour bar shows by a pointed end that there is such.
    """
    values = np.concatenate([as_array(m).ravel() for m in maps])
    low, high = float(values.min()), float(np.quantile(values, quantile))
    return low, high if high > low else low + 1.0
