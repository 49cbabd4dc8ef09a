"""What a project says of its methods; runs in the project's folder, with a folder for a run and a file for the JSON."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from uad_core import cli, datasets, papers
from uad_core.listing import listing
from uad_core.methods import METHODS

ROOT = Path.cwd()
sys.path.append(str(ROOT / "book" / "_ext"))


def page_of_methods() -> str:
    """The source of the page as Sphinx reads it."""
    from uad_book import list_methods

    text = [(ROOT / "book/api/methods.md").read_text("utf-8")]
    list_methods(None, "book/api/methods", text)
    return text[0]


def table_of_methods() -> list[tuple[str, ...]]:
    """The rows of the table in the preface."""
    from uad_book import Methods

    return Methods.rows(Methods.__new__(Methods))


def readme() -> str:
    """README.md as `make results` renews it."""
    tool = runpy.run_path(str(ROOT / "tools" / "results.py"))
    tool["main"](ROOT / "README.md")
    return (ROOT / "README.md").read_text("utf-8")


def modules_of(chapter: str) -> list[str]:
    """The modules of the package whose change makes a chapter stale."""
    tool = runpy.run_path(str(ROOT / "tools" / "notebooks.py"))
    script = ROOT / "notebooks" / f"{chapter}.py"
    code = "\n".join(source for kind, source, _ in tool["cells"](script) if kind == "code")
    return [path.name for path in tool["sources"].closure(tool["reached"](code))]


def run(out: str) -> dict:
    """The result of `uad run toy`."""
    sys.argv = ["uad", "run", "toy", "--profile", "smoke", "--category", datasets.categories("procedural")[0],
                "--image-size", "64", "--device", "cpu", "--out", out]  # fmt: skip
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end
    return json.loads((Path(out) / "result.json").read_text())


out, said = sys.argv[1:]
found = {
    "methods": list(METHODS), "papers": papers.PAPERS, "list": listing(), "page": page_of_methods(),
    "preface": table_of_methods(), "readme": readme(),
    "chapter": modules_of("04_toy"), "result": run(out),
}  # fmt: skip
Path(said).write_text(json.dumps(found))
