"""A sixth method costs one module, one chapter with its pair, one test, one bibliography entry, one line of _toc.yml.

A toy is added in a copy of the project with nothing else touched, and everything that lists methods takes it up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the tool chain of the book is not installed: pip install .[book]")
pytest.importorskip("sphinx")
pytestmark = pytest.mark.book  # half a minute of processes that each load torch

PARTS = ("uad_core", "tests", "tools", "book", "notebooks", "results", "README.md", "_toc.yml", "_config.yml",
         "pyproject.toml", "CITATION.cff")  # fmt: skip
ENTRY = "\n@misc{nobody2000toy,\n  title = {Nothing},\n  author = {Nobody},\n  year = {2000}\n}\n"
LINE = "      - file: notebooks/04_toy\n"


def copied(repository: Path, folder: Path) -> Path:
    left_out = shutil.ignore_patterns("__pycache__", "*.ipynb", "drawn")
    for name in PARTS:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=left_out)
        else:
            shutil.copy(source, folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_toy(project: Path) -> None:
    """The five things."""
    parts = project / "tests" / "sixth"
    shutil.copy(parts / "toy.py", project / "uad_core" / "methods")
    shutil.copy(parts / "04_toy.py", project / "notebooks")
    jupytext.write(jupytext.read(parts / "04_toy.py"), project / "notebooks" / "04_toy.ipynb")
    shutil.copy(parts / "check_toy.py", project / "tests" / "test_toy.py")
    with (project / "book" / "references.bib").open("a") as bibliography:
        bibliography.write(ENTRY)
    toc = (project / "_toc.yml").read_text("utf-8")
    before = "      - file: notebooks/03_rlr\n"
    assert before in toc
    (project / "_toc.yml").write_text(toc.replace(before, before + LINE), "utf-8")


def python(project: Path, *arguments: object) -> str:
    """Run this interpreter in the copy, on the copy's package."""
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(repository, tmp_path_factory) -> Path:
    """A copy of the project with the toy in it."""
    folder = copied(repository, tmp_path_factory.mktemp("project"))
    before = contents(folder)
    add_toy(folder)
    after = contents(folder)
    assert {name for name in after if before.get(name) != after[name]} == {
        "uad_core/methods/toy.py", "notebooks/04_toy.py", "notebooks/04_toy.ipynb", "tests/test_toy.py",
        "book/references.bib", "_toc.yml",
    }  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def found(project, tmp_path_factory) -> dict:
    """What the copy says of its methods."""
    out = tmp_path_factory.mktemp("out")
    python(project, "tests/sixth/look.py", out / "run", out / "found.json")
    return json.loads((out / "found.json").read_text("utf-8"))


def test_registry_list_and_papers_take_up_a_new_method(found) -> None:
    assert found["methods"] == ["hfr", "sgfr", "rlr", "hlgfa", "toy", "glad", "knn", "pixel_ae"]
    assert "  toy       The distance of every feature to the mean normal one.\n" in found["list"]
    assert found["papers"]["toy"] == "arXiv 0000.00000" and list(found["papers"])[4] == "toy"


def test_the_tables_and_pages_take_it_up(found) -> None:
    row = "| TOY | [arXiv:0000.00000](https://arxiv.org/abs/0000.00000) | every feature | nothing | the mean | "
    assert row + "[chapter](notebooks/04_toy.ipynb) |" in found["readme"]
    named = "TOY {cite}`nobody2000toy`"
    assert [named, "every feature", "nothing", "the mean", "{doc}`/notebooks/04_toy`"] in found["preface"]
    assert "## toy\n\n```{eval-rst}\n.. automodule:: uad_core.methods.toy\n```" in found["page"]


def test_its_chapter_depends_on_it_and_on_no_other_method(found) -> None:
    assert "toy.py" in found["chapter"] and "base.py" in found["chapter"]
    assert not {"hfr.py", "sgfr.py", "rlr.py"} & set(found["chapter"])


def test_it_runs_from_the_command_line(found) -> None:
    assert found["result"]["method"] == "toy" and 0.5 < found["result"]["metrics"]["pixel_auroc"] <= 1


def test_the_tests_of_all_methods_and_pages_take_it_up(project, found) -> None:
    pages = ("table_of_contents", "place_on_a_page", "bibliography", "five_papers", "readme_shows")
    said = python(
        project, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", " or ".join(["toy", *pages]),
        "tests/test_methods.py", "tests/test_toy.py", "tests/test_papers.py", "tests/book/test_pages.py",
        "tests/book/test_repository.py",
    )  # fmt: skip
    for name in ("test_every_method_has_every_profile[toy]", "test_what_is_loaded_is_what_was_saved[toy]",
                 "test_the_mean_itself_has_no_residual", *pages):  # fmt: skip
        assert any(name in line and "PASSED" in line for line in said.splitlines()), said
