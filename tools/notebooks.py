"""Keep the notebooks' stored outputs true: say which are out of date, and run those.

A notebook is out of date when its own code, a table that it shows, or the code of `uad_core` that it reaches is no
longer what produced its outputs. A fingerprint of all three is stored in the notebook's metadata, together with what
the status page of the book shows: run time, machine and versions. The `.py` file of a pair is the source, the `.ipynb`
file is made from it.

    python tools/notebooks.py list                   say which notebooks are out of date (exit status 1 if any is)
    python tools/notebooks.py run [NAME ... | --all]  run those (or these, or all) and store their outputs
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs

from uad_core import sources
from uad_core.methods import METHODS
from uad_core.notebooks import run_notebook, write_notebook

ROOT = Path(__file__).resolve().parents[1]

__all__ = ["cells", "execute", "fingerprint", "main", "merged", "pairs", "reached", "stale"]


def pairs(root: Path = ROOT) -> list[tuple[Path, Path]]:
    """The pairs (`.py`, `.ipynb`) of the book; the second file need not exist yet."""
    return [(path, path.with_suffix(".ipynb")) for path in sorted((root / "notebooks").glob("*.py"))]


def cells(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """What the two files of a pair must agree on: type, source and tags of every cell."""
    read = jupytext.read(path).cells
    return [(cell.cell_type, cell.source.strip(), tuple(cell.metadata.get("tags", ()))) for cell in read]


def fingerprint(script: Path, root: Path = ROOT) -> str:
    """SHA-256 over the code cells of a notebook, the tables that they ask for, and the code that they reach."""
    digest = hashlib.sha256()
    code = [source for kind, source, _ in cells(script) if kind == "code"]
    for source in code:
        digest.update(source.encode() + b"\0")
        for name in re.findall(r"""tables\.(?:table|frame)\(\s*["']([\w-]+)""", source):
            digest.update(_table(name, root / "results").encode() + b"\0")
        if "tables.side_by_side(" in source:
            digest.update(_table("products", root / "results").encode() + b"\0")
    for module in sources.closure(reached("\n".join(code)), root / "uad_core"):
        digest.update(module.relative_to(root).as_posix().encode() + b"\0")
        digest.update(sources.code_only(module.read_text("utf-8")).encode() + b"\0")
    return digest.hexdigest()


def reached(code: str) -> set[str]:
    """The modules that code cells use: by import, by a name of the package such as `uad_core.create`, or as a method
    that they name in a text, such as "hfr", which the registry then imports."""
    code = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in code.splitlines())
    names = sources.imported(code) | set(re.findall(r"\buad_core\.\w+", code))
    # Only who builds or runs methods reaches the one that a text names; a table of results names it too.
    if names & {"uad_core.methods", "uad_core.experiment", "uad_core.create", "uad_core.run"}:
        texts = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
        names |= {kind.__module__ for name, kind in METHODS.items() if name in texts}
    return names


def stale(script: Path, notebook: Path, root: Path = ROOT) -> bool:
    """Whether the stored outputs of a pair are missing or were produced by other code."""
    if not notebook.exists():
        return True
    stored = nbformat.read(notebook, as_version=4).metadata.get("uad", {})
    return stored.get("source_sha256") != fingerprint(script, root)


def merged(script: Path, notebook: Path) -> nbformat.NotebookNode:
    """The cells of `script` with whatever outputs `notebook` holds for them."""
    source = jupytext.read(script)
    if notebook.exists():
        return combine_inputs_with_outputs(source, nbformat.read(notebook, as_version=4))
    return source


def execute(script: Path, notebook: Path, root: Path = ROOT) -> float:
    """Run `script` on the built-in data, store the result as `notebook`, and return the seconds it took."""
    # Stored outputs show the built-in data with the default settings, never somebody's own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UAD_")}
    before = fingerprint(script, root)
    book = merged(script, notebook)
    seconds = run_notebook(book, script.name, script.parent, environment)
    book.metadata["uad"] = {"source_sha256": before, "seconds": round(seconds, 1), **_machine()}
    write_notebook(book, notebook)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("list", "run"))
    parser.add_argument("names", nargs="*", help="run these notebooks, such as 01_hfr, and look at no others")
    parser.add_argument("--all", action="store_true", help="run every notebook, not only those out of date")
    options = parser.parse_args(arguments)
    chosen = [pair for pair in pairs() if not options.names or pair[0].stem in options.names]
    if len(chosen) < len(options.names):
        parser.error(f"no such notebook among {', '.join(script.stem for script, _ in pairs())}")
    waiting = [pair for pair in chosen if options.all or options.names or stale(*pair)]
    if options.command == "list":
        for script, _ in waiting:
            print("out of date:", script.relative_to(ROOT))
        return 1 if waiting else 0
    for script, notebook in chosen:
        if (script, notebook) in waiting:
            print(f"running {script.relative_to(ROOT)} ...", flush=True)
            print(f"  {execute(script, notebook):.0f} s", flush=True)
        elif cells(script) != cells(notebook):  # only text changed: the outputs stay
            write_notebook(merged(script, notebook), notebook)
    return 0


def _table(name: str, ledger: Path) -> str:
    from uad_core import tables
    from uad_core.errors import UserError

    try:
        return tables.table(name, ledger, "csv")
    except UserError:
        return ""  # no run yet; the message would name the folder


def _machine() -> dict[str, str]:
    """What the run time depends on: processor, cores, device, versions."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": device,
        "python": platform.python_version(),
        "torch": version("torch").split("+")[0],
    }


if __name__ == "__main__":
    sys.exit(main())
