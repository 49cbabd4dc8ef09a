"""Which code a result depends on: the modules that are reached by imports, and what in them can change a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from uad_core import sources
from uad_core.sources import closure, code_only, code_version, imported

FILES = {
    "__init__.py": "HOME = {'offered': 'middle'}\n",
    "lazy.py": "from uad_core import offered\n",
    "left.py": "x = 1\n",
    "middle.py": "from uad_core.left import x\n",
    "right.py": "def f():\n    from uad_core import middle\n    return middle\n",
    "apart.py": "import numpy\n",
    "part/__init__.py": "from .inner import y\n",
    "part/inner.py": "from ..left import x as y\nfrom . import other\n",
    "part/other.py": "",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "uad_core"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(sources, "PACKAGE", folder)
    return folder


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("left", ["left.py"]),
        ("right", ["left.py", "middle.py", "right.py"]),
        ("apart", ["apart.py"]),
        ("part", ["left.py", "part/__init__.py", "part/inner.py", "part/other.py"]),
        ("missing", []),
        ("offered", ["left.py", "middle.py"]),
        ("lazy", ["lazy.py", "left.py", "middle.py"]),
    ],
)
def test_imports_are_followed_wherever_they_stand(package, module: str, expected: list[str]) -> None:
    found = closure([f"uad_core.{module}"])
    assert [file.relative_to(package).as_posix() for file in found] == expected


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("left.py", "x = 2\n", True),
        ("left.py", '"""A docstring."""\n\n# a comment\nx = 1\n', False),
        ("apart.py", "import scipy\n", False),
        ("middle.py", "from uad_core.left import x\nfrom uad_core import apart\n", True),
    ],
)
def test_a_digest_changes_with_the_code_that_is_reached_and_with_nothing_else(package, file, text, changes) -> None:
    before = sources.digest.__wrapped__("uad_core.right")
    (package / file).write_text(text)
    assert (sources.digest.__wrapped__("uad_core.right") != before) == changes


def test_docstrings_comments_and_blank_lines_are_no_code() -> None:
    text = 'def f(x):\n    """What it does."""\n\n    # why\n    return "# no comment" + x  \n'
    assert code_only(text) == 'def f(x):\n    return "# no comment" + x'


def test_names_of_other_packages_are_left_out() -> None:
    assert imported("import os\nfrom uad_core import metrics\nimport uad_core.cli\n") == {
        "uad_core", "uad_core.metrics", "uad_core.cli",
    }  # fmt: skip


def test_a_method_s_version_depends_on_its_module_and_not_on_another_method_s() -> None:
    ours = closure(["uad_core.methods.hfr", "uad_core.experiment"])
    names = {file.name for file in ours}
    assert {"hfr.py", "scoring.py", "training.py", "metrics.py", "experiment.py"} <= names
    assert not names & {"rlr.py", "sgfr.py", "cli.py", "tables.py", "ledger.py", "residuals.py"}
    versions = {code_version(f"uad_core.methods.{name}") for name in ("hfr", "rlr", "sgfr")}
    assert len(versions) == 3 and all(version.startswith("0.1.0+") for version in versions)


def test_what_only_fetches_data_is_no_part_of_a_version(package) -> None:
    (package / "datasets").mkdir()
    (package / "datasets/download.py").write_text("a = 1\n")
    (package / "left.py").write_text("from uad_core.datasets import download\n")
    before = sources.digest.__wrapped__("uad_core.left")
    (package / "datasets/download.py").write_text("a = 2\n")
    assert sources.digest.__wrapped__("uad_core.left") == before
    assert (package / "datasets/download.py") in closure(["uad_core.left"], package)
