"""The parts of a web page in one file: text that is escaped, pictures and plots within it, a look for light and dark.

A page loads nothing from anywhere. Every function returns HTML; what it is given as text may hold any characters.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

__all__ = ["details", "document", "embedded", "figure", "gallery", "histogram", "items", "paragraph", "picture",
           "section", "table", "wide"]

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --page: #fff; --soft: #5a5a5a; --line: #d5d5d5; --panel: #f5f5f5;
  --normal: #0072b2; --anomalous: #b34700; --held: #767676; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --page: #16181b; --soft: #a8a8a8; --line: #3d4147;
  --panel: #212429; --normal: #6bb8e8; --anomalous: #ff9a52; --held: #9a9a9a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
.lead { font-size: 1.1rem; }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; }
.gallery figure { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem; }
img, svg { display: block; max-width: 100%; height: auto; }
.pair img, svg { width: 100%; }
svg { max-width: 40rem; }
.scroll img { max-width: none; width: 40rem; }
figcaption { font-size: .9rem; color: var(--soft); }
.anomalous { color: var(--anomalous); font-weight: 600; }
.normal { color: var(--normal); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
td:first-child { min-width: 6.5rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
summary { cursor: pointer; padding: .3rem 0; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
"""
QUALITY = 82  # of JPEG pictures
BINS = 30


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole page of a title and its parts."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>",
            *parts,
            "</body>\n</html>\n",
        ]
    )


def section(title: str, *parts: str) -> str:
    """Return parts below a heading."""
    return "\n".join([f"<section>\n<h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; kind: a class of the style."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def items(texts: Iterable[str]) -> str:
    """Return a list."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def details(summary: str, part: str) -> str:
    """Return a part that is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>\n{part}\n</details>"


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Return rows of cells as a table; numbers stand at the right."""
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return wide(f"<table>{top}\n{body}</table>")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    return f"<td>{escape(str(value))}</td>"


def picture(pixels: np.ndarray, text: str, longest: int = 360) -> str:
    """Return an image (H, W, 3) in [0, 1], its longer side at most `longest` pixels; text: what it shows."""
    image = Image.fromarray((255 * np.clip(pixels, 0, 1)).round().astype(np.uint8))
    image.thumbnail((longest, longest))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return embedded(buffer.getvalue(), "jpeg", text)


def embedded(file: bytes, kind: str, text: str) -> str:
    """Return the content of an image file within the page; kind: "png" or "jpeg"; text: what it shows."""
    data = base64.b64encode(file).decode()
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{data}">'


def wide(part: str) -> str:
    """Return a part that keeps its width on a small screen, where it is moved sideways."""
    return f'<div class="scroll">{part}</div>'


def gallery(figures: Iterable[str]) -> str:
    """Return figures side by side, as many as the page is wide for."""
    return f'<div class="gallery">{"".join(figures)}</div>'


def figure(pictures: Iterable[str], name: str, verdict: str, rest: str) -> str:
    """Return pictures side by side above a name, a verdict in its colour and the rest of what is said of them."""
    caption = f'{escape(name)}<br><span class="{verdict}">{escape(verdict)}</span>, {escape(rest)}'
    return f'<figure><div class="pair">{"".join(pictures)}</div><figcaption>{caption}</figcaption></figure>'


# --- a histogram that follows the colours of the page --------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 220, 36, 44, 26  # pixels of the drawing, and what its axes take


def histogram(groups: Mapping[str, np.ndarray], threshold: float | None, label: str) -> str:
    """Return a histogram of groups of numbers, as steps that a class of the style colours.

    groups: name -> (n,). The names "normal", "anomalous" and "held" are classes. threshold: drawn as a line if finite.
    label: of the axis. The axis is logarithmic where all numbers are positive and span more than a factor of ten.
    """
    values = np.concatenate([*groups.values(), [threshold] if threshold is not None else []])
    log = bool(values.min() > 0 and values.max() > 10 * values.min())
    scale = np.log10 if log else np.asarray
    low, high = scale(values.min()), scale(values.max())
    margin = 0.04 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    counts = {name: np.histogram(scale(group), edges)[0] for name, group in groups.items()}
    most = max(1, *(count.max() for count in counts.values()))

    def x(value: float) -> float:
        return LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (WIDTH - LEFT - 8)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - count / most * (HEIGHT - BOTTOM - TOP)

    parts = [_steps(name, count, edges, x, y) for name, count in counts.items()]
    if threshold is not None:
        parts.append(_threshold(x(scale(threshold)), threshold))
    ticks = "".join(_tick(x(scale(value)), f"{value:g}") for value in _round_values(edges, log))
    whole = f'<text x="{LEFT - 8}" y="{y(most) + 4:.1f}" text-anchor="end">{most}</text>'
    zero = f'<text x="{LEFT - 8}" y="{y(0) + 4:.1f}" text-anchor="end">0</text>'
    base = f'<path d="M{LEFT} {y(0):.1f}H{WIDTH - 8}" stroke="var(--soft)"/>'
    title = f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of {escape(label)}">'
        f"{base}{whole}{zero}{title}{ticks}{''.join(parts)}</svg>"
    )


def _steps(name: str, counts: np.ndarray, edges: np.ndarray, x, y) -> str:
    """One group as filled steps; held-out scores as an outline alone, so that they hide nothing."""
    path = f"M{x(edges[0]):.1f} {y(0):.1f}"
    path += "".join(f"V{y(count):.1f}H{x(edge):.1f}" for count, edge in zip(counts, edges[1:])) + f"V{y(0):.1f}"
    look = 'fill="none" stroke-dasharray="4 3"' if name == "held" else f'fill="var(--{name})" fill-opacity="0.35"'
    return f'<path d="{path}" stroke="var(--{name})" stroke-width="1.5" {look}/>'


def _threshold(x: float, value: float) -> str:
    anchor = "end" if x > WIDTH / 2 else "start"
    text = f'<text x="{x:.1f}" y="14" text-anchor="{anchor}">threshold {value:.3g}</text>'
    return f'<path d="M{x:.1f} {TOP - 6}V{HEIGHT - BOTTOM}" stroke="var(--ink)" stroke-width="2"/>{text}'


def _tick(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'


def _round_values(edges: np.ndarray, log: bool) -> list[float]:
    """Numbers of one digit within an axis, at most about eight."""
    low, high = edges[0], edges[-1]
    if log:
        decades = range(math.floor(low), math.ceil(high) + 1)
        steps = (1, 2, 5) if high - low < 2 else (1,)
        values = [digit * 10.0**decade for decade in decades for digit in steps]
        return [value for value in values if low <= math.log10(value) <= high]
    size = 10 ** math.floor(math.log10((high - low) / 4))
    size *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * size) <= 7)
    return [round(k * size, 12) for k in range(math.ceil(low / size), math.floor(high / size) + 1)]
