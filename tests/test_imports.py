"""Data flows one way: no module of the package imports one that stands behind it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import uad_core
from uad_core import sources

PACKAGE = Path(uad_core.__file__).parent
ORDER = [
    ["errors", "files", "sources", "randomness"],
    ["datasets"],
    ["augmentation", "backbones", "scoring", "synthesis", "training"],
    ["diffusion"],
    ["features"],
    ["methods"],
    ["metrics", "promise"],
    ["cost", "experiment", "visualisation", "probing", "plots"],
    ["ledger", "papers", "webpage", "graph"],
    ["report"],
    ["prediction"],
    ["export"],
    ["render", "alarms"],
    ["tables"],
    ["listing", "notebooks", "bookbuild"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_part_of_the_package_has_its_place() -> None:
    assert {part(file) for file in PACKAGE.rglob("*.py")} - {"__init__"} == set(RANK)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_no_import_goes_against_the_flow(file: Path) -> None:
    if part(file) == "__init__":
        return
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    reached = {module.split(".")[1] for module in sources.imported(file.read_text("utf-8"), name) if "." in module}
    against = {other for other in reached if other in RANK and RANK[other] > RANK[part(file)]}
    assert not against, f"{part(file)} imports {sorted(against)}"


def test_packages_only_gather_what_their_modules_hold() -> None:
    """No logic in `__init__`, but for the package's own, which looks names up when they are asked for."""
    for file in PACKAGE.rglob("__init__.py"):
        if file.parent != PACKAGE:
            kinds = {type(node) for node in ast.parse(file.read_text("utf-8")).body}
            assert kinds <= {ast.Expr, ast.ImportFrom, ast.Import, ast.Assign}, file
