"""What the book adds to Sphinx: tables made from the package, and no page loads from other servers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from engine import bring_engine
from light import lighten
from pages import rewrite
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from uad_core.datasets.catalogue import CATALOGUE, DatasetInfo
from uad_core.methods import METHODS
from uad_core.methods.base import Paper

__all__ = ["DataSets", "Methods", "RunTimes", "Table", "setup"]

MATHJAX_KEPT = ("tex-chtml.js", "output")
UNFOLD = "Show the pages of this part"
PICTURE = r'(<img [^>]*src="([^"]*_images/[^"]+\.png)"[^>]*>)(?!\s*</a>)'


class Table(SphinxDirective):
    """A table whose rows are asked for when the book is built; a subclass writes `columns` and `rows`."""

    option_spec = {"empty": directives.unchanged}
    columns: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, ...]]:
        """The cells, as Markdown."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Build the table; the sentence in the option `empty` where there is no row."""
        rows = self.rows()
        table = [f"| {' | '.join(row)} |" for row in [self.columns, ("---",) * len(self.columns), *rows]]
        holder = nodes.container()
        self.state.nested_parse(table if rows else [self.options.get("empty", "")], self.content_offset, holder)
        return holder.children


class RunTimes(Table):
    """Run time, machine and versions, as stored in every notebook of the book."""

    columns = ("Chapter", "Run time", "Device", "Machine", "Python", "torch")

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each notebook."""
        return [self._row(path) for path in sorted(Path(self.env.srcdir, "notebooks").glob("*.ipynb"))]

    def _row(self, path: Path) -> tuple[str, ...]:
        self.env.note_dependency(str(path))
        stored = json.loads(path.read_text("utf-8"))["metadata"].get("uad", {})
        seconds = f"{stored['seconds']:.0f} s" if "seconds" in stored else "not run"
        details = (stored.get(key, "") for key in ("device", "machine", "python", "torch"))
        return (f"{{doc}}`/notebooks/{path.stem}`", seconds, *details)


class DataSets(Table):
    """What the package's catalogue says of each data set: content, size, terms, and how to get it."""

    columns = ("Name", "What it shows", "Size", "Licence, as stated by its authors", "How to get it")

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each data set."""
        return [self._row(info) for info in CATALOGUE]

    def _row(self, info: DatasetInfo) -> tuple[str, ...]:
        name = f"`{info.name}`" + (f" {{cite}}`{info.citation}`" if info.citation else "")
        how = info.instruction().removeprefix("run ")
        page = f"; [its page]({info.homepage})" if info.homepage else ""
        return (name, info.summary, _size(info), info.licence, how + page)


class Methods(Table):
    """What each method of the book reconstructs, from what and with what, as its class says."""

    columns = ("Method", "It reconstructs", "from", "with", "Chapter")

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each method that has a paper."""
        return [self._row(kind.name, kind.paper) for kind in METHODS.values() if kind.paper]

    def _row(self, name: str, paper: Paper) -> tuple[str, ...]:
        title = f"{name.upper()} {{cite}}`{paper.key}`"
        return (title, paper.reconstructs, paper.source, paper.means, f"{{doc}}`/notebooks/{paper.chapter}`")


def _size(info: DatasetInfo) -> str:
    counts = info.counts.values()
    if info.protocol == "one_class":
        return f"{len(info.categories)} classes"
    if not counts:
        return "any number" if info.name == "procedural" else ""
    train, test = sum(count.train for count in counts), sum(count.test for count in counts)
    of = f"{len(counts)} categories: " if len(counts) > 1 else ""
    return f"{of}{train:,} for training, {test:,} for testing{'' if info.has_masks else '; no masks'}"


def prune_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Remove the parts of MathJax that no page loads: of 24 MB, 4 are used."""
    folder = Path(app.outdir, "_static", "mathjax")
    if error is None and folder.is_dir():
        for path in folder.iterdir():
            if path.name not in MATHJAX_KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def name_unnamed(app: Sphinx, error: Exception | None) -> None:
    """Mend two things of the theme that a screen reader stumbles over.

    The arrow that unfolds a part of the contents has no name; and lists of references are said to be lists, whose
    entries are not said to be entries.
    """
    if error is None:
        arrow, references = '<summary><span class="toctree-toggle"', '<div role="list" class="citation-list">'
        named = arrow.replace("<summary>", f'<summary aria-label="{UNFOLD}">')
        plain = references.replace('role="list" ', "")
        rewrite(app.outdir, lambda text: text.replace(arrow, named).replace(references, plain))


def link_pictures(app: Sphinx, error: Exception | None) -> None:
    """Let every picture that a cell has drawn lead to its file: labels are small on a narrow screen."""
    if error is None:
        rewrite(app.outdir, lambda text: re.sub(PICTURE, r'<a class="full-size" href="\2">\1</a>', text))


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


def list_methods(app: Sphinx, name: str, source: list[str]) -> None:
    """Write a section for every module that holds a method into the page of methods: a new one needs no other place."""
    if name == "book/api/methods":
        modules = dict.fromkeys(kind.__module__ for kind in METHODS.values())
        titles = {module: [kind.name for kind in METHODS.values() if kind.__module__ == module] for module in modules}
        sections = [
            f"## {', '.join(names)}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```"
            for module, names in titles.items()
        ]
        source[0] = source[0].replace("<!-- methods -->", "\n\n".join(sections))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("run-times", RunTimes)
    app.add_directive("data-sets", DataSets)
    app.add_directive("methods", Methods)
    app.connect("builder-inited", bring_engine)
    app.connect("source-read", list_methods)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("build-finished", prune_mathjax, priority=900)
    app.connect("build-finished", name_unnamed)
    app.connect("build-finished", lighten, priority=950)
    app.connect("build-finished", link_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
