"""Figures that show numbers: losses, scores, rates against rates, and ablations with their spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from uad_core.errors import UserError

from .base import COLOURS, STYLE, as_array, figure, symbol

__all__ = ["grouped_bars", "line_with_band", "loss_curve", "rate_curve", "score_histogram"]

_LINES = ["-", "--", ":", "-."]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
_HATCHES = ["", "//", "..", "xx", "\\\\", "oo"]
_AXES = {
    "roc": ("false positive rate (fraction)", "true positive rate (fraction)"),
    "pr": ("recall (fraction)", "precision (fraction)"),
    "pro": ("false positive rate of pixels (fraction)", "mean overlap of regions (fraction)"),
}


@matplotlib.rc_context(STYLE)
def loss_curve(history: Sequence[float] | Mapping[str, Sequence[float]], *, unit: str = "epoch") -> Figure:
    """Draw the training loss on a logarithmic scale, one line for each named part.

    Args:
        history: one loss for each epoch, or name -> losses.
        unit: what one entry stands for.
    """
    parts = history if isinstance(history, Mapping) else {"loss": history}
    sheet = figure(2.8)
    ax = sheet.subplots()
    for (name, values), line in zip(parts.items(), _LINES * len(parts), strict=False):
        losses = as_array(values)
        ax.plot(np.arange(1, len(losses) + 1), losses, line, label=symbol(name), marker="o" if len(losses) == 1 else "")
    ax.set(xlabel=unit, ylabel="loss (no unit, log scale)", yscale="log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    if len(parts) > 1:
        ax.legend()
    return sheet


@matplotlib.rc_context(STYLE)
def score_histogram(
    scores: np.ndarray, labels: np.ndarray, threshold: float | None = None, *, xlabel: str = "image score (no unit)"
) -> Figure:
    """Draw how the scores of normal and anomalous images are distributed, and where the threshold cuts.

    Args:
        scores: (N,), any range.
        labels: (N,) bool, True = anomalous.
    """
    values, truth = as_array(scores), as_array(labels).astype(bool)
    kinds = np.where(truth, "anomalous", "normal")
    names = {kind: f"{kind} (n = {(kinds == kind).sum()})" for kind in ("normal", "anomalous")}
    frame = pd.DataFrame({"score": values, "images": [names[kind] for kind in kinds]})
    palette = {names[kind]: COLOURS[kind] for kind in names}
    sheet = figure(2.8)
    ax = sheet.subplots()
    order = [name for name in palette if (frame["images"] == name).any()]
    colours = {"hue": "images", "hue_order": order, "palette": palette, "alpha": 0.35}
    sns.histplot(frame, x="score", bins=30, element="step", ax=ax, **colours)
    # A second mark beside colour: normal solid, anomalous hatched (seaborn draws the last hue first).
    for patch, name in zip(ax.collections, reversed(order), strict=True):
        patch.set_hatch("" if name == names["normal"] else "///")
    if threshold is not None and np.isfinite(threshold):
        ax.axvline(threshold, color="black", linestyle="--")
        place = {"xy": (threshold, 1), "xycoords": ("data", "axes fraction")}
        ax.annotate(f" threshold {threshold:#.3g}", va="top", fontsize=9, **place)
    ax.set(xlabel=xlabel, ylabel="images (count)")
    return sheet


@matplotlib.rc_context(STYLE)
def rate_curve(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], kind: str = "roc", *, limit: float | None = None
) -> Figure:
    """Draw ROC, precision-recall or PRO curves, each with its name in the legend.

    Args:
        curves: name -> (x, y), as `metrics.roc_curve`, `precision_recall_curve` and `pro_curve` return them; the
            name may carry the area, such as "phi_1 (.943)".
        kind: "roc", "pr" or "pro".
        limit: false positive rate up to which the area is taken; the rest is shaded.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in _AXES:
        raise UserError(f"no curve of kind {kind!r}: choose one of {', '.join(_AXES)}")
    sheet = figure(3.6)
    ax = sheet.subplots()
    # Between two recalls the precision is that of the later one: average precision is the area under these steps.
    steps = "steps-pre" if kind == "pr" else "default"
    for (name, (x, y)), line in zip(curves.items(), _LINES * len(curves), strict=False):
        ax.plot(as_array(x), as_array(y), line, label=symbol(name), drawstyle=steps)
    if kind == "roc":
        ax.plot([0, 1], [0, 1], color=COLOURS["quiet"], linewidth=0.8, label="chance")
    if limit is not None:
        ax.axvspan(limit, 1, color="#EEEEEE", zorder=0, label=f"not counted (rate > {limit:g})")
    xlabel, ylabel = _AXES[kind]
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    # Good curves leave this corner empty.
    ax.legend(loc="lower left" if kind == "pr" else "lower right", frameon=True)
    return sheet


def _percent(ax: Axes) -> None:
    """Show the fractions of the vertical axis as percent."""
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))


@matplotlib.rc_context(STYLE)
def grouped_bars(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "AUROC (%)",
    ylim: tuple[float, float] = (0.5, 1.0),
) -> Figure:
    """Draw an ablation: means as bars, sd over the rows of each bar as whiskers, the mean as a number above.

    Args:
        frame: one row for each run; `x`, `hue` its settings, `y` a fraction.
        ylim: bars start at its lower end; .5 is chance for an AUROC.
    """
    sheet = figure(3.2)
    ax = sheet.subplots()
    places = {value: i for i, value in enumerate(frame[x].unique())}
    groups = list(frame.groupby(hue, sort=False)) if hue else [(None, frame)]
    width = 0.8 / len(groups)
    for i, (name, group) in enumerate(groups):
        spread = group.groupby(x, sort=False)[y].agg(["mean", "std"])  # one run has no sd: no whisker is drawn
        at = [places[value] + (i - (len(groups) - 1) / 2) * width for value in spread.index]
        bars = ax.bar(at, spread["mean"], width, yerr=spread["std"], capsize=3, label=name,
                      hatch=_HATCHES[i % len(_HATCHES)], edgecolor="white")
        ax.bar_label(bars, fmt=lambda v: f"{100 * v:.1f}", padding=2, fontsize=8)
    ax.set_xticks(list(places.values()), [str(value) for value in places])
    ax.set(xlabel=xlabel or x, ylabel=ylabel, ylim=ylim)
    ax.grid(False, axis="x")
    _percent(ax)
    if hue:
        ax.legend(title=hue, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=2.4, handleheight=1.4)
    return sheet


@matplotlib.rc_context(STYLE)
def line_with_band(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "AUROC (%)",
    logx: bool = False,
    percent: bool = True,
) -> Figure:
    """Draw a measure against a setting: the mean as a line with markers, mean ± sd over the rows as a band.

    Args:
        frame: one row for each run; `x` a number, `y` a fraction (or any number with `percent=False`).
    """
    sheet = figure(3.2)
    ax = sheet.subplots()
    look = {"marker": "o"}
    if hue:
        kinds = frame[hue].nunique()
        look = {"hue": hue, "style": hue, "markers": _MARKERS[:kinds], "palette": sns.color_palette()[:kinds]}
    sns.lineplot(frame, x=x, y=y, errorbar="sd", ax=ax, **look)
    ax.set(xlabel=xlabel or x, ylabel=ylabel, xscale="log" if logx else "linear")
    measured = np.unique(frame[x])
    if len(measured) <= 8:
        ax.set_xticks(measured, [f"{value:g}" for value in measured], minor=False)
        ax.minorticks_off()
    if percent:
        _percent(ax)
    if hue:
        ax.legend(title=hue)
    return sheet
