"""`uad book`: the notebooks see the chosen data, the source tree stays as it is, and failures are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import refused, uad, write_category

from uad_core import bookbuild, datasets
from uad_core.errors import UserError

nbformat = pytest.importorskip("nbformat", reason="the tool chain of the book is not installed: pip install .[book]")
pytest.importorskip("jupyter_book", reason="the tool chain of the book is not installed: pip install .[book]")


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A source tree with two notebooks, and nothing in the environment."""
    home = tmp_path / "home"
    (home / "notebooks").mkdir(parents=True)
    for name in (
        "_toc.yml",
        "_config.yml",
        "notebooks/02_b.ipynb",
        "notebooks/01_a.ipynb",
        "notebooks/01_a.py",
        "secret.txt",
    ):
        (home / name).write_text(name)
    for name in ("01_a", "02_b"):
        cells = [nbformat.v4.new_code_cell("1 + 1")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), home / f"notebooks/{name}.ipynb")
    monkeypatch.setattr(bookbuild, "_source_tree", lambda: home)
    for name in ("UAD_DATASET", "UAD_CATEGORY", "UAD_DATA", "UAD_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def commands(monkeypatch) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that would have been run, with their environments."""
    ran = []

    def own(env) -> dict[str, str]:
        return {key: value for key, value in env.items() if key.startswith("UAD_")}

    def record(command, env, **options):
        ran.append((command[1:], own(env)))
        return SimpleNamespace(returncode=0)

    def notebook(book, name, folder, environment):
        book.cells[0].outputs = [nbformat.v4.new_output("stream", text="run")]
        ran.append((["notebook", str(folder / name)], own(environment)))

    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.setattr(bookbuild, "run_notebook", notebook)
    return ran


def test_notebooks_are_run_in_a_copy_and_the_book_is_built_from_it(tree, commands, tmp_path) -> None:
    before = {path: path.read_text() for path in tree.rglob("*") if path.is_file()}
    page = bookbuild.build(None, None, None, None, tmp_path / "out")
    source = tmp_path / "out/source"
    assert page == source / "_build/html/index.html"
    assert [command[-1] for command, _ in commands] == [
        str(source / "notebooks/01_a.ipynb"), str(source / "notebooks/02_b.ipynb"), str(source),
    ]  # fmt: skip
    assert nbformat.read(source / "notebooks/01_a.ipynb", 4).cells[0].outputs[0].text == "run"
    assert commands[2][0][:3] == [*bookbuild.BUILD] and commands[0][1] == {}
    assert {path: path.read_text() for path in tree.rglob("*") if path.is_file()} == before
    assert not (source / "secret.txt").exists() and (source / "notebooks/01_a.py").exists()
    (source / "stale").touch()
    bookbuild.build(None, None, None, None, tmp_path / "out")
    assert not (source / "stale").exists()


def test_the_command_that_builds_is_one_that_this_interpreter_can_run() -> None:
    pytest.importorskip("jupyter_book", reason="the tool chain of the book is not installed: pip install .[book]")
    told = subprocess.run([sys.executable, *bookbuild.BUILD, "--help"], capture_output=True, text=True, check=True)
    assert "Usage" in told.stdout and "build" in told.stdout


def test_the_notebooks_see_the_chosen_data(tree, commands, tmp_path, monkeypatch) -> None:
    write_category(tmp_path / "mine/nut")
    monkeypatch.chdir(tmp_path)
    bookbuild.build("mine", Path("mine"), None, "smoke", tmp_path / "out")
    expected = {"UAD_DATASET": str(tmp_path / "mine"), "UAD_CATEGORY": "nut", "UAD_DATA": str(tmp_path / "mine")}
    assert [variables for _, variables in commands] == [{**expected, "UAD_PROFILE": "smoke"}] * 3


def test_a_category_alone_is_one_of_the_built_in_images(tree, commands, tmp_path) -> None:
    name = datasets.categories("procedural")[1]
    bookbuild.build(None, tmp_path, name, None, tmp_path / "out")
    assert commands[0][1] == {"UAD_DATASET": "procedural", "UAD_CATEGORY": name, "UAD_DATA": str(tmp_path.resolve())}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mvtec"], "no data set or folder is called mvtec: did you mean mvtec_ad?"),
        (["--dataset", "mvtec_ad", "--root", "."], "is not in .: run `uad data mvtec_ad"),
        (["--category", "nothing"], "is called nothing"),
        (["--profile", "gpu"], "no profile 'gpu': choose among smoke, cpu, colab, paper"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_run(
    tree, commands, tmp_path, monkeypatch, arguments, message
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("book", *arguments, "--out", tmp_path / "out")
    assert commands == [] and not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_not_removed(tree, commands, tmp_path) -> None:
    (tmp_path / "project/source").mkdir(parents=True)
    (tmp_path / "project/source/thesis.tex").touch()
    found = refused("book", "--out", tmp_path / "project")
    assert found == f"error: {tmp_path / 'project/source'} holds something else than a book: choose another --out"
    assert (tmp_path / "project/source/thesis.tex").exists() and commands == []


def test_without_the_tool_chain_or_the_source_tree_it_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bookbuild, "__file__", str(tmp_path / "site-packages/uad_core/bookbuild.py"))
    monkeypatch.chdir(tmp_path)
    assert "needs the book's source tree" in refused("book")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_toc.yml").touch()
    monkeypatch.setattr(bookbuild, "find_spec", lambda name: None)
    assert "the book's tool chain is not installed: pip install -e '.[book]'" in refused("book")


def test_a_failing_notebook_is_one_line(tree, tmp_path, monkeypatch) -> None:
    pytest.importorskip("ipykernel", reason="the tool chain of the book is not installed: pip install .[book]")
    cells = [nbformat.v4.new_code_cell("raise ValueError('no\\ngood')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tree / "notebooks/01_a.ipynb")
    with pytest.raises(UserError, match="^01_a.ipynb failed: ValueError: no good$"):
        bookbuild.build(None, None, None, None, tmp_path / "out")


def test_a_failing_build_is_one_line(tree, commands, tmp_path, monkeypatch) -> None:
    def failing(command, **options):
        return SimpleNamespace(returncode=1, stderr="Traceback\n  ...\nValueError: no good\n\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(UserError, match="^the book could not be built: ValueError: no good$"):
        bookbuild.build(None, None, None, None, tmp_path / "out")


def test_the_command_prints_the_page_to_open(tree, commands, tmp_path) -> None:
    ran = uad("book", "--out", tmp_path / "out")
    assert ran.status == 0 and ran.out == f"{tmp_path / 'out/source/_build/html/index.html'}: open it in a browser\n"
