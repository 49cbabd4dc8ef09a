"""How the numbers of a table are shown: percent and units in cells, and cells as text, Markdown, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from string import ascii_lowercase

import pandas as pd

from uad_core import ledger, papers

__all__ = ["FORMATS", "costs", "metrics", "notes"]

_NAMES = {
    "dataset": "data",
    "image_size": "px",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1-max",
    "aupro": "AUPRO",
    "fit_s": "fit (s)",
    "features_s": "of it features (s)",
    "predict_ms_per_image": "ms/image",
    "backbone_ms_per_image": "backbone ms/image",
    "peak_rss_mb": "RAM (MB)",
    "peak_gpu_mb": "GPU (MB)",
    "parameters": "parameters (M)",
    "model_bytes": "model (MB)",
}
_NONE = "–"


def metrics(numbers: pd.DataFrame, shown: list[str], shown_costs: list[str]) -> pd.DataFrame:
    """Cells of a table of metrics and some costs: percent with one decimal, ± sd where there are several seeds."""
    cells = numbers[["dataset", "category", "method"]].copy()
    for name in shown:
        pairs = zip(numbers[name], numbers[f"{name}_sd"], strict=True)
        cells[name] = [_percent(mean, sd) for mean, sd in pairs]
    _describe(cells, numbers)
    _add_costs(cells, numbers, shown_costs)
    cells["source"] = numbers["source"]
    return _named(cells)


def costs(numbers: pd.DataFrame) -> pd.DataFrame:
    """Cells of the table of costs, in the units of their headings."""
    cells = numbers[["dataset", "category", "method"]].copy()
    _add_costs(cells, numbers, [name for name in _NAMES if name in ledger.COSTS])
    _describe(cells, numbers)
    for name in ("cpu", "threads", "gpu"):
        cells[name] = [_text(value) for value in numbers[name]]
    return _named(cells)


def notes(numbers: pd.DataFrame) -> list[str]:
    """What a reader must know to read the cells of this table."""
    lines = []
    if "source" in numbers:
        lines.append("Percent, mean ± sd over the seeds; csv has fractions and all seven metrics.")
        marks = [m for m in papers.MARKS if numbers["source"].str.contains(f"[{m}]", regex=False).any()]
        lines += [f"[{mark}] {papers.MARKS[mark]}." for mark in marks]
    if (numbers["category"].astype(str).str.startswith("mean of")).any():
        lines.append("mean of k: over the k categories that were run, not over all that the data set has.")
    if "code" in numbers and numbers["code"].fillna("").any():
        lines.append("code: tells apart what other code or another configuration made; `uad ledger` lists old ones.")
    if "at_most" in numbers:
        lines.append("Sums over seeds; all k: over k models of a run. Intervals take all images for independent.")
    lines += [f"{label}: {members.replace('; ', ', ')}." for members, label in _shared(numbers).items()]
    return lines


def _add_costs(cells: pd.DataFrame, numbers: pd.DataFrame, shown: list[str]) -> None:
    """Add costs in the units of their headings."""
    for name in shown:
        scale = 1e-6 if name in ("parameters", "model_bytes") else 1
        cells[name] = [_number(value * scale) for value in numbers[name]]


def _describe(cells: pd.DataFrame, numbers: pd.DataFrame) -> None:
    """Add what was run, in words."""
    for name in ("seeds", "backbone", "profile", "image_size", "code"):
        if name in numbers:
            cells[name] = [_text(value) for value in numbers[name]]
    shared = _shared(numbers)
    one_model = [shared.get(members, "") for members in numbers["members"]]
    settings = zip(numbers["settings"].fillna(""), one_model, strict=True)
    cells["settings"] = [_text(", ".join(filter(None, parts))) for parts in settings]


def _shared(numbers: pd.DataFrame) -> dict[str, str]:
    """Each set of categories that one model serves -> what the cells call it; sets of the same size get letters."""
    members = numbers["members"] if "members" in numbers else pd.Series([], dtype=str)
    sets = [names for names in members.dropna().unique() if names]
    sizes = [names.count("; ") + 1 for names in sets]
    labels = {}
    for i, (names, size) in enumerate(zip(sets, sizes, strict=True)):
        letter = f" ({ascii_lowercase[sizes[:i].count(size) % 26]})" if sizes.count(size) > 1 else ""
        labels[names] = f"one model for {size}{letter}"
    return labels


def _percent(mean: float, sd: float) -> str:
    """A fraction as percent."""
    if pd.isna(mean):
        return _NONE
    return f"{100 * mean:.1f}" + ("" if pd.isna(sd) else f" ± {100 * sd:.1f}")


def _number(value: float) -> str:
    """A quantity with three digits or so."""
    if pd.isna(value):
        return _NONE
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(value: object) -> str:
    """A text, or a dash for none."""
    return _NONE if pd.isna(value) or value == "" else str(value)


def _named(cells: pd.DataFrame) -> pd.DataFrame:
    """Headings to read, without the columns that say nothing in any row."""
    empty = [name for name in cells if (cells[name] == _NONE).all()]
    return cells.drop(columns=empty).rename(columns=_NAMES)


def _as_text(cells: pd.DataFrame, title: str, notes: list[str]) -> str:
    """Columns of equal width, parted by two spaces."""
    rows = [list(cells.columns), *cells.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, "", *lines, "", *notes]).rstrip("\n")


def _as_markdown(cells: pd.DataFrame, title: str, notes: list[str]) -> str:
    """A pipe table between its title and its notes."""
    rows = [list(cells.columns), ["---"] * len(cells.columns), *cells.astype(str).to_numpy().tolist()]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([title, "", *lines, "", *(f"{note}  " for note in notes)]).rstrip()


def _as_latex(cells: pd.DataFrame, title: str, notes: list[str]) -> str:
    """A table with booktabs rules; needs \\usepackage{booktabs}."""
    text = cells.to_latex(index=False, escape=True, caption=" ".join([f"{title}.", *notes]).replace("%", r"\%"))
    return text.replace("±", r"$\pm$").replace("–", "--").rstrip("\n")


def _as_html(cells: pd.DataFrame, title: str, notes: list[str]) -> str:
    """A table with a caption, and its notes as a paragraph; whose numbers they are stands before them, in sight."""
    if "source" in cells:
        first = ["data", "category", "method", "source"]
        cells = cells[[*first, *cells.columns.difference(first, sort=False)]]
    text = cells.to_html(index=False, border=0, justify="left", classes="uad-table")
    start = text.index(">") + 1
    caption = f"\n  <caption>{escape(title)}</caption>"
    return f"{text[:start]}{caption}{text[start:]}\n<p>{'<br>'.join(escape(note) for note in notes)}</p>"


FORMATS: dict[str, Callable[[pd.DataFrame, str, list[str]], str] | None] = {
    "text": _as_text,
    "md": _as_markdown,
    "latex": _as_latex,
    "html": _as_html,
    "csv": None,
}
"""Format -> how it is written; csv holds the numbers themselves and is written from them."""
