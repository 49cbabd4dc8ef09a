"""`uad book`: the chapters executed on a reader's own data, and the static book built from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tqdm.auto import tqdm

from uad_core import datasets
from uad_core.errors import UserError
from uad_core.files import new_folder
from uad_core.methods import PROFILES
from uad_core.notebooks import run_notebook, write_notebook

__all__ = ["build"]

PARTS = ("_config.yml", "_toc.yml", "book", "notebooks", "uad_core", "results", "README.md", "CITATION.cff")
# Jupyter Book is no module that `python -m` runs, and its script need not be on the path.
BUILD = ("-c", "from jupyter_book.cli.main import main; main()", "build")


def build(dataset: str | None, root: Path | None, category: str | None, profile: str | None, out: Path) -> Path:
    """Execute all notebooks and build the book; return the page to open.

    The notebooks of the source tree are not touched: they are copied to OUT/source and executed there.

    Raises UserError outside a source tree, without the book's tool chain, for unknown data, or when a notebook fails.
    """
    home = _source_tree()
    if find_spec("jupyter_book") is None:
        raise UserError(
            "the book's tool chain is not installed: pip install -e '.[book]' in the source tree, or `make book`"
        )
    import nbformat

    environment = {**os.environ, **_chosen(dataset, root, category, profile)}
    source = _copy(home, out / "source")
    for path in tqdm(sorted((source / "notebooks").glob("*.ipynb")), desc="notebooks"):
        notebook = nbformat.read(path, as_version=4)
        run_notebook(notebook, path.name, path.parent, environment)
        write_notebook(notebook, path)
    _python([*BUILD, str(source)], environment, "the book could not be built")
    return source / "_build" / "html" / "index.html"


def _chosen(dataset: str | None, root: Path | None, category: str | None, profile: str | None) -> dict[str, str]:
    """Return the variables that the notebooks read; refuse unknown data and profiles now, not after minutes."""
    variables = {}
    if profile is not None:
        if profile not in PROFILES:
            raise UserError(f"no profile {profile!r}: choose among {', '.join(PROFILES)}")
        variables["UAD_PROFILE"] = profile
    if dataset is not None or category is not None:
        dataset = dataset or "procedural"
        category = category or datasets.categories(dataset, root)[0]
        datasets.load(dataset, category, root=root)
        # The notebooks run in a folder of their own, where a relative path would lead elsewhere.
        named = dataset in {info.name for info in datasets.catalogue(root)}
        variables["UAD_DATASET"] = dataset if named else str(Path(dataset).expanduser().resolve())
        variables |= {"UAD_CATEGORY": category, "UAD_DATA": str(datasets.data_root(root).resolve())}
    return variables


def _source_tree() -> Path:
    """Find the source tree: where the package runs from, else the working folder."""
    for folder in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise UserError(
        "`uad book` needs the book's source tree (the folder with _toc.yml and notebooks/): clone it and run from there"
    )


def _copy(home: Path, source: Path) -> Path:
    if source.exists() and not (source / "_toc.yml").is_file():
        raise UserError(f"{source} holds something else than a book: choose another --out")
    with new_folder(source) as work:
        for name in PARTS:
            path = home / name
            if path.is_dir():
                shutil.copytree(path, work / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.is_file():
                shutil.copy2(path, work / name)
    return source


def _python(arguments: list[str], environment: dict[str, str], failure: str) -> None:
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.strip().splitlines()) if line.strip()), "no message")
        raise UserError(f"{failure}: {last}")
