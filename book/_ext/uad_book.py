"""What the book adds to Sphinx: the table of run times, figures, and pages that load nothing from other servers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from figures import draw_all
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["RunTimes", "setup"]

COLUMNS = ("Chapter", "Run time", "Device", "Machine", "Python", "torch")
MATHJAX_KEPT = ("tex-chtml.js", "output")


class RunTimes(SphinxDirective):
    """A table of the run time, the machine and the versions stored in every notebook of the book."""

    option_spec = {"empty": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Build the table; a sentence instead of it when the book holds no notebook."""
        rows = [self._row(path) for path in sorted(Path(self.env.srcdir, "notebooks").glob("*.ipynb"))]
        if not rows:
            return [nodes.paragraph(text=self.options.get("empty", ""))]
        lines = [f"| {' | '.join(row)} |" for row in [COLUMNS, ("---",) * len(COLUMNS), *rows]]
        return self.parse_text_to_nodes("\n".join(lines))

    def parse_text_to_nodes(self, text: str) -> list[nodes.Node]:
        """The nodes of a piece of Markdown."""
        holder = nodes.container()
        self.state.nested_parse(text.splitlines(), self.content_offset, holder)
        return holder.children

    def _row(self, path: Path) -> tuple[str, ...]:
        self.env.note_dependency(str(path))
        stored = json.loads(path.read_text("utf-8"))["metadata"].get("uad", {})
        link = f"{{doc}}`/notebooks/{path.stem}`"
        seconds = f"{stored['seconds']:.0f} s" if "seconds" in stored else "not run"
        return (link, seconds, *(stored.get(key, "") for key in ("device", "machine", "python", "torch")))


def prune_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Remove the parts of MathJax that no page loads: of 24 MB, 4 are used."""
    folder = Path(app.outdir, "_static", "mathjax")
    if error is None and folder.is_dir():
        for path in folder.iterdir():
            if path.name not in MATHJAX_KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def draw_figures(app: Sphinx) -> None:
    """Draw the figures of pages without code, so that they always show what the package computes."""
    draw_all(Path(app.srcdir, "book", "_static", "drawn"))


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Remove the scripts of live code: the book does not use it, and they name a server."""
    for key in ("script_files", "css_files"):
        context[key] = [file for file in context.get(key, ()) if not _of_thebe(file)]


def _of_thebe(file: Any) -> bool:
    text = f"{getattr(file, 'filename', '')} {getattr(file, 'attributes', {}).get('body', '')}"
    return "thebe" in text.lower()


def keep_bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Let docstrings write sizes and absolute values as |x|, which reStructuredText would take for substitutions."""
    lines[:] = [re.sub(r"\|([^\s|`][^|`]*)\|", r"\\|\1\\|", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("run-times", RunTimes)
    app.connect("builder-inited", draw_figures)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("build-finished", prune_mathjax, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
