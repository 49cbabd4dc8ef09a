"""Keep the notebooks' stored outputs true: say which are out of date, and run those.

A notebook is out of date when its own code, a table that it shows, or the code of `uad_core` is no longer what produced its
outputs. A fingerprint of all three is stored in the notebook's metadata, together with what the status page of the book shows: run
time, machine and versions. The `.py` file of a pair is the source, the `.ipynb` file is made from it.

    python tools/notebooks.py list         say which notebooks are out of date (exit status 1 if any is)
    python tools/notebooks.py run [--all]  run those (or all) and store their outputs
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 3600  # seconds for one cell

__all__ = ["cells", "code_only", "execute", "fingerprint", "main", "merged", "pairs", "stale"]


def pairs(root: Path = ROOT) -> list[tuple[Path, Path]]:
    """The pairs (`.py`, `.ipynb`) of the book; the second file need not exist yet."""
    return [(path, path.with_suffix(".ipynb")) for path in sorted((root / "notebooks").glob("*.py"))]


def cells(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """What the two files of a pair must agree on: type, source and tags of every cell."""
    return [
        (cell.cell_type, cell.source.strip(), tuple(cell.metadata.get("tags", ()))) for cell in jupytext.read(path).cells
    ]


def code_only(source: str) -> str:
    """`source` without docstrings, comment lines, blank lines and trailing blanks: what can change a result."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                for number in range(docstring.lineno - 1, docstring.end_lineno):
                    lines[number] = ""
    kept = (line.rstrip() for line in lines)
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))


def fingerprint(script: Path, root: Path = ROOT) -> str:
    """SHA-256 over the code cells of a notebook, the tables that they ask for, and the code of the package."""
    digest = hashlib.sha256()
    for kind, source, _ in cells(script):
        if kind == "code":
            digest.update(source.encode() + b"\0")
            for name in re.findall(r"""tables\.(?:table|frame)\(\s*["']([\w-]+)""", source):
                digest.update(_table(name, root / "results").encode() + b"\0")
    for module in sorted((root / "uad_core").rglob("*.py")):
        digest.update(module.relative_to(root).as_posix().encode() + b"\0")
        digest.update(code_only(module.read_text("utf-8")).encode() + b"\0")
    return digest.hexdigest()


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
    start = time.perf_counter()
    place = {"metadata": {"path": script.parent}}
    client = NotebookClient(book, timeout=TIMEOUT, kernel_name="python3", record_timing=False, resources=place)
    client.execute(env=environment)
    seconds = time.perf_counter() - start
    for cell in book.cells:
        if cell.cell_type == "code":  # progress bars are for the one who waits, not for the reader
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    book.metadata["uad"] = {"source_sha256": before, "seconds": round(seconds, 1), **_machine()}
    _write(book, notebook)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("list", "run"))
    parser.add_argument("--all", action="store_true", help="run every notebook, not only those out of date")
    options = parser.parse_args(arguments)
    waiting = [pair for pair in pairs() if options.all or stale(*pair)]
    if options.command == "list":
        for script, _ in waiting:
            print("out of date:", script.relative_to(ROOT))
        return 1 if waiting else 0
    for script, notebook in pairs():
        if (script, notebook) in waiting:
            print(f"running {script.relative_to(ROOT)} ...", flush=True)
            print(f"  {execute(script, notebook):.0f} s", flush=True)
        elif cells(script) != cells(notebook):  # only text changed: the outputs stay
            _write(merged(script, notebook), notebook)
    return 0


def _table(name: str, ledger: Path) -> str:
    from uad_core import tables
    from uad_core.errors import UserError

    try:
        return tables.table(name, ledger, "csv")
    except UserError as error:
        return str(error)


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


def _write(book: nbformat.NotebookNode, path: Path) -> None:
    """Write the notebook beside `path` and then put it in its place, so that no half file is ever seen."""
    part = path.with_name(path.name + ".part")
    nbformat.write(book, part)
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
