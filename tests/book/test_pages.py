"""The pages without code: what they compute is right, what they promise is there, and all of them are in the book."""

from __future__ import annotations

import ast
import doctest
import re
import textwrap
from pathlib import Path

import pytest
import yaml

from uad_core.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "book").rglob("*.md"))
CHAPTERS = sorted((ROOT / "notebooks").glob("*.py"))
# Documented by `uad --help`; and a package that only passes on names of its modules.
NOT_ON_A_PAGE = {"uad_core.cli", "uad_core.bookbuild", "uad_core.listing", "uad_core.methods"}


def entries(node):
    """Every `root` and `file` of the table of contents."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key in ("root", "file") else entries(value)
    elif isinstance(node, list):
        for value in node:
            yield from entries(value)


def test_the_table_of_contents_lists_every_page_and_chapter():
    listed = list(entries(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))))
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in [*PAGES, *CHAPTERS]}
    assert set(listed) == there
    assert len(listed) == len(there)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_on_a_page_give_what_the_page_says(page):
    blocks = re.findall(r"^```python\n(>>> .*?)^```", page.read_text("utf-8"), re.M | re.S)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_the_page_on_measures_holds_examples():
    """Guard of the test above: a changed fence must not empty it."""
    assert (ROOT / "book" / "metrics.md").read_text("utf-8").count("\n>>> ") > 10


@pytest.mark.parametrize("page", [*PAGES, *CHAPTERS, ROOT / "README.md"], ids=lambda page: page.stem)
def test_no_page_waves_its_hands(page):
    waved = r"\b(obviously|clearly|trivially|it can be shown|it is easy to see)\b"
    assert not re.findall(waved, page.read_text("utf-8"), re.I)


# A thing of the book that is named by a number somebody typed; "the paper's Table 2" is none of the book's.
TYPED = re.compile(r"(?<!paper's )\b(exercises?|figures?|fig\.|tables?|equations?|eqs?\.|listings?)\s+\(?\d", re.I)


def prose(path: Path) -> str:
    """What a file says in words: its text and its docstrings, without its code."""
    source = path.read_text("utf-8")
    if path.suffix == ".md":
        return re.sub(r"^(```|~~~)\w*\n.*?^\1", "", source, flags=re.M | re.S)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source))
                  if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]  # fmt: skip
    words = re.findall(r"^# (.*)$", source, re.M) if path in CHAPTERS else []
    return "\n".join([*docstrings, *words])


@pytest.mark.parametrize("path", [*PAGES, *CHAPTERS, *(ROOT / "uad_core").rglob("*.py")], ids=lambda path: path.stem)
def test_exercises_figures_tables_and_equations_are_named_by_label(path):
    assert not [match.group() for match in TYPED.finditer(prose(path))]


def test_typed_numbers_would_be_noticed(tmp_path):
    (tmp_path / "page.md").write_text("See Figure 3 and the paper's Table 2.\n```python\nfigure(2)\n```\n{eq}`a` (4)\n")
    (tmp_path / "code.py").write_text('def check(x):\n    """An answer to exercise 3."""\n    return figure(2)\n')
    for name, found in (("page.md", ["Figure 3"]), ("code.py", ["exercise 3"])):
        assert [match.group() for match in TYPED.finditer(prose(tmp_path / name))] == found


def test_every_module_has_its_place_on_a_page_of_the_package():
    documented = set(re.findall(r"^.. auto(?:module|exception):: (uad_core[\w.]*?)(?:\.UserError)?$", "\n".join(
        page.read_text("utf-8") for page in PAGES), re.M))
    package = ROOT / "uad_core"
    modules = {f"uad_core.{path.stem}" for path in package.glob("[!_]*.py")}
    modules |= {f"uad_core.{path.parent.name}" for path in package.glob("*/__init__.py")}
    modules |= {f"uad_core.methods.{path.stem}" for path in package.glob("methods/[!_]*.py")}
    modules -= {kind.__module__ for kind in METHODS.values()}  # which the page of methods lists by itself
    assert not modules - NOT_ON_A_PAGE - documented, "add an automodule to a page in book/api"


def test_every_command_in_the_text_can_be_given():
    """Each `uad ...` line names a command, and only options that this command has."""
    from typer.main import get_command

    from uad_core.cli import app

    known = {name: {option for parameter in command.params for option in parameter.opts}
             for name, command in get_command(app).commands.items()}
    texts = [path.read_text("utf-8") for path in [*PAGES, *CHAPTERS, ROOT / "README.md"]]
    lines = [line for text in texts for line in re.findall(r"(?:^|`)(?:# )?uad ([a-z]+[^\n`]*)", text, re.M)]
    assert len(lines) > 5
    for line in lines:
        command, *rest = line.split()
        assert command in known, line
        assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known[command], line


def test_keys_of_the_bibliography_are_used_once_and_exist():
    text = (ROOT / "book" / "references.bib").read_text("utf-8")
    keys = re.findall(r"^@\w+\{([\w-]+),", text, re.M)
    assert len(keys) == len(set(keys))
    sources = "\n".join(path.read_text("utf-8") for path in [*PAGES, *CHAPTERS])
    cited = {key.strip() for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", sources) for key in group.split(",")}
    assert cited <= set(keys)


def test_both_programs_that_run_an_exported_file_are_one() -> None:
    """The chapter runs its own; the reader of the other page must get the same."""
    page = (ROOT / "book/how_to_run.md").read_text("utf-8")
    chapter = (ROOT / "notebooks/06_own_images.py").read_text("utf-8")
    shown = next(part for part in re.findall(r"```python\n(.*?)```", page, re.S) if "InferenceSession" in part)
    run = re.search(r'JUDGE = textwrap\.dedent\("""\n(.*?)"""\)', chapter, re.S).group(1)
    assert textwrap.dedent(run).strip() == shown.strip()
