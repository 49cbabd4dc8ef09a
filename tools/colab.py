"""Run notebooks as Colab does: where little more than torch is installed and nothing of this repository lies beside.

    python tools/colab.py [NAME ...]     these notebooks, such as f3_decisions; without a name all

A new environment shows torch, torchvision, numpy, matplotlib and what the kernel of a notebook needs, as links to this
one, and a stand-in for `google.colab`. `UAD_REPO` leads to a copy of this working tree, which the first cell
installs with pip, so that a package index is needed. The rest runs on the built-in data with the profile `smoke`, in an
empty folder, on whatever device is here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from packaging.requirements import Requirement

from uad_core.errors import UserError
from uad_core.notebooks import run_notebook

ROOT = Path(__file__).resolve().parents[1]
THERE = ("torch", "torchvision", "numpy", "matplotlib", "ipykernel")  # a kernel is how Colab, too, runs cells
CHOSEN = {"UAD_DATASET": "procedural", "UAD_PROFILE": "smoke"}

__all__ = ["Colab", "closure", "main"]


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """The installed distributions of these names and of all that they require here."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # for another system, or an alternative that is not installed
        needed = map(Requirement, found[name].requires or ())
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


class Colab:
    """An environment like Colab's, in a folder: `run` executes a notebook there."""

    def __init__(self, folder: Path):
        self.folder, self.work, self.pins = folder, folder / "content", folder / "there.txt"
        self.work.mkdir()
        venv.create(folder / "venv", with_pip=True)
        bin_folder = "Scripts" if os.name == "nt" else "bin"
        self.python = folder / "venv" / bin_folder / "python"
        ask = [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        self.site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
        self._show(closure(THERE))
        self._stand_in()
        self._kernel()
        self.repository = self._copy()

    def run(self, notebook: Path) -> float:
        """Execute a notebook from its first cell to its last; returns the seconds. UserError where a cell fails."""
        own = {name: value for name, value in os.environ.items()
               if not name.startswith("UAD_") and name not in ("PYTHONPATH", "PYTHONHOME")}  # fmt: skip
        address = self.repository.as_uri().replace("file://", "file://localhost", 1)  # pip wants a host
        found = {"UAD_REPO": address, "UAD_DATA": str(self.folder / "data"), "PIP_CONSTRAINT": str(self.pins)}
        book = nbformat.read(notebook, as_version=4)
        return run_notebook(book, notebook.name, self.work, own | CHOSEN | found)

    def _show(self, there: dict[str, Distribution]) -> None:
        """Link the packages into the environment; pip may not exchange them, since the links lead out of it."""
        for package in there.values():
            tops = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
            for top in tops:
                link, target = self.site / top, Path(package.locate_file(top))
                if not link.exists() and target.exists() and not top.endswith(".pth"):
                    link.symlink_to(target, target_is_directory=target.is_dir())
        pins = (f"{package.metadata['Name']}=={package.version.split('+')[0]}" for package in there.values())
        self.pins.write_text("\n".join(pins), "utf-8")

    def _stand_in(self) -> None:
        """Colab's kernel has imported `google.colab` before the first cell runs."""
        (self.site / "google" / "colab").mkdir(parents=True)
        (self.site / "google" / "colab" / "__init__.py").write_text("", "utf-8")
        (self.site / "stand_in.pth").write_text("import google.colab\n", "utf-8")

    def _kernel(self) -> None:
        """Let the name that notebooks ask for mean the new environment's interpreter."""
        place = self.folder / "jupyter" / "kernels" / "python3"
        place.mkdir(parents=True)
        line = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (place / "kernel.json").write_text(json.dumps({"argv": line, "display_name": "Colab", "language": "python"}))
        os.environ["JUPYTER_PATH"] = str(self.folder / "jupyter")

    def _copy(self) -> Path:
        """A repository with one commit: the working tree as it is."""
        copy = self.folder / "repository"
        listed = _git("ls-files", "--cached", "--others", "--exclude-standard", "-z", at=ROOT).split("\0")
        for name in filter(None, listed):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes((ROOT / name).read_bytes())
        _git("init", "-q", at=copy)
        _git("add", "-A", "-f", at=copy)
        _git("-c", "user.name=colab", "-c", "user.email=colab@localhost", "commit", "-qm", "working tree", at=copy)
        return copy


def _git(*arguments: str, at: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=True).stdout


def _chosen(names: list[str]) -> Iterator[Path]:
    there = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    for name in names or there:
        if name not in there:
            raise SystemExit(f"no notebook {name}: choose among {', '.join(there)}")
        yield there[name]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks, such as f3_decisions; all if none is given")
    chosen, failed = list(_chosen(parser.parse_args(arguments).names)), 0
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        colab = Colab(Path(folder))
        for notebook in chosen:
            try:
                print(f"{notebook.stem}: {colab.run(notebook):.0f} s", flush=True)
            except UserError as error:
                failed = 1
                print(error, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
