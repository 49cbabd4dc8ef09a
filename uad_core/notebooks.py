"""The one runner of notebooks: of the chapters with their stored outputs, and of a book on somebody's own data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uad_core.errors import UserError
from uad_core.files import replacing

__all__ = ["run_notebook", "write_notebook"]

TIMEOUT = 3600  # seconds for one cell


def run_notebook(book: Any, name: str, folder: Path, environment: Mapping[str, str]) -> float:
    """Execute a notebook (an nbformat node) in place, in `folder`, and return the seconds it took.

    environment: the variables of its process. Progress bars, which are for the one who waits, are not kept.
    Raises UserError with the error's last line where a cell fails.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    start = time.perf_counter()
    place = {"metadata": {"path": str(folder)}}
    try:
        client = NotebookClient(book, timeout=TIMEOUT, kernel_name="python3", record_timing=False, resources=place)
        client.execute(env=dict(environment))
    except CellExecutionError as error:
        raise UserError(f"{name} failed: {error.ename}: {' '.join(error.evalue.split()) or 'no message'}") from None
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return time.perf_counter() - start


def write_notebook(book: Any, path: Path) -> None:
    """Write a notebook so that no half file is ever seen."""
    import nbformat

    with replacing(path) as part:
        nbformat.write(book, part)
