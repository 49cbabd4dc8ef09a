"""Diagrams of a method as SVG, drawn from one vocabulary of shapes, one for each kind of thing.

Boxes and arrows are texts that `figure` puts into one picture. Lines and letters have the colour of the page's text,
so the picture is readable on a light and on a dark ground, and `figure` adds a key of the shapes it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

__all__ = ["HEIGHT", "KINDS", "Shape", "arrow", "box", "figure"]

HEIGHT = 34
"""The height of a box with one line of text; each further line adds `LINE`."""

LINE = 17
INK = 'fill="none" stroke="currentColor" stroke-width="1.4"'
TIP = """<defs><marker id="uad-tip" markerWidth="8" markerHeight="8" refX="6" refY="3.5" orient="auto">
<path d="M0,0 L7,3.5 L0,7 Z" fill="currentColor"/></marker></defs>"""
KEY_COLUMNS, KEY_WIDTH, KEY_HEIGHT = 3, 172, 28


@dataclass(frozen=True)
class Shape:
    """How a kind of thing is drawn: its name in the key, its tint, round corners, dashes, a lid, a second frame."""

    name: str
    tint: str = "none"
    round: bool = True
    dashed: bool = False
    lid: bool = False
    double: bool = False


KINDS = {
    "image": Shape("image"),
    "frozen": Shape("frozen network", round=False, dashed=True),
    "trained": Shape("trained", "rgba(230,159,0,.28)", round=False),
    "step": Shape("fixed calculation", round=False),
    "stored": Shape("stored data", "rgba(0,158,115,.22)", lid=True),
    "features": Shape("features", "rgba(0,114,178,.22)"),
    "rebuilt": Shape("rebuilt", "rgba(0,158,115,.22)"),
    "residual": Shape("residual", "rgba(213,94,0,.20)"),
    "map": Shape("anomaly map, score", "rgba(213,94,0,.34)", double=True),
}
"""The vocabulary: data have round corners, what computes has square ones; what is learned is orange."""


def box(x: float, y: float, width: float, text: str, kind: str) -> str:
    """A shape of a kind with lines of text in it; `A_b` and `A_{bc}` set a subscript, `A^{b}` a superscript."""
    lines = text.split("\n")
    height = HEIGHT + LINE * (len(lines) - 1)
    words = (_words(x + width / 2, y + 22 + LINE * i, line) for i, line in enumerate(lines))
    return f'<g data-kind="{kind}">{_outline(x, y, width, height, KINDS[kind])}{"".join(words)}</g>'


def arrow(points: str, text: str = "", at: tuple[float, float] = (0, 0), anchor: str = "start") -> str:
    """A line through points "x,y x,y" with a head at its end, and words whose base line begins `at` a place."""
    line = f'<polyline points="{points}" {INK} marker-end="url(#uad-tip)"/>'
    return line + (_words(*at, text, anchor) if text else "")


def figure(parts: Iterable[str], width: int, height: int, label: str) -> str:
    """Put boxes and arrows into one SVG with a key of their shapes; `label` says in words what it shows."""
    drawn = "".join(parts)
    key = _key([kind for kind in KINDS if f'data-kind="{kind}"' in drawn], height)
    rows = key.count("<g")
    height += KEY_HEIGHT * -(-rows // KEY_COLUMNS)
    style = f'viewBox="0 0 {width} {height}" style="width:100%;max-width:{width + 60}px;color:inherit"'
    words = f'role="img" aria-label="{escape(label)}" font-family="sans-serif" font-size="14.5"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {style} {words}>{TIP}{drawn}{key}</svg>'


def _outline(x: float, y: float, width: float, height: float, shape: Shape) -> str:
    """The lines of a shape, without its text."""
    dashes = ' stroke-dasharray="5 3"' if shape.dashed else ""
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{min(12, height / 3) if shape.round else 0}"'
    lines = f'{rect} {INK} style="fill:{shape.tint}"{dashes}/>'
    if shape.lid:
        lines += f'<path d="M{x + 2},{y + 5} Q{x + width / 2},{y + 9} {x + width - 2},{y + 5}" {INK}/>'
    if shape.double:
        inner = f'x="{x + 3}" y="{y + 3}" width="{width - 6}" height="{height - 6}"'
        lines += f'<rect {inner} rx="{min(9, height / 4)}" {INK}/>'
    return lines


def _words(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """A line of text with its subscripts and superscripts."""
    pieces = re.split(r"([_^](?:\{[^}]*\}|\w))", text)
    shown = []
    for piece in pieces:
        if piece[:1] in ("_", "^") and len(piece) > 1:
            shift = 4 if piece[0] == "_" else -5
            shown.append(f'<tspan dy="{shift}" font-size="11">{escape(piece[1:].strip("{}"))}</tspan>')
            shown.append(f'<tspan dy="{-shift}">&#8203;</tspan>')
        else:
            shown.append(escape(piece))
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor" stroke="none">{"".join(shown)}</text>'


def _key(kinds: list[str], top: float) -> str:
    """A small sample of each kind with its name, in rows below the picture."""
    samples = []
    for i, kind in enumerate(kinds):
        x, y = 8 + KEY_WIDTH * (i % KEY_COLUMNS), top + 6 + KEY_HEIGHT * (i // KEY_COLUMNS)
        name = _words(x + 34, y + 13, KINDS[kind].name, "start")
        samples.append(f"<g>{_outline(x, y, 26, 16, KINDS[kind])}{name}</g>")
    return "".join(samples)
