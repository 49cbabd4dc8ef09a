"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_folder", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write the file that is yielded: at the end it takes the place of `path`; after an error it is gone."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill the folder that is yielded: at the end it takes the place of `path`; after an error it is gone.

    A folder that is replaced is moved aside first and removed last: until the new one is in place, it is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}-"))
    old = work.with_name(f"{work.name}.old")
    try:
        yield work
        work.chmod(0o755)
        if os.path.lexists(path):
            os.replace(path, old)
        try:
            os.replace(work, path)
        except OSError:
            if os.path.lexists(old):
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)
