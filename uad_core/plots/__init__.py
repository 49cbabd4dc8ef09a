"""Every figure of the book: one look, one colour scale for a whole set, masks as outlines.

Functions take tensors or arrays and return a `matplotlib.figure.Figure` that pyplot does not know of, so
nothing has to be closed and nothing leaks from one cell into the next.
"""

from __future__ import annotations

from .base import COLOURS, MAP_COLOURS, WIDTH, Picture, figure, limits, style
from .curves import (
    grouped_bars,
    line_with_band,
    loss_curve,
    rate_curve,
    score_histogram,
)
from .pictures import blend, contact_sheet, draw_outline, overlay, picture_grid
from .residuals import residual_panel

__all__ = [
    "COLOURS",
    "MAP_COLOURS",
    "WIDTH",
    "Picture",
    "blend",
    "contact_sheet",
    "draw_outline",
    "figure",
    "grouped_bars",
    "limits",
    "line_with_band",
    "loss_curve",
    "overlay",
    "picture_grid",
    "rate_curve",
    "residual_panel",
    "score_histogram",
    "style",
]
