"""The pages of a book that is built, changed where Sphinx leaves no other way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["rewrite"]


def rewrite(folder: str | Path, change: Callable[[str], str]) -> None:
    """Pass the text of every page below a folder through `change`, and write those that it changes."""
    for path in Path(folder).rglob("*.html"):
        text = path.read_text("utf-8")
        changed = change(text)
        if changed != text:
            path.write_text(changed, "utf-8")
