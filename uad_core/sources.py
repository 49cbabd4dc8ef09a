"""Which code something depends on: the modules of the package that a module reaches by its imports."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

__all__ = ["closure", "code_only", "code_version", "digest"]

PACKAGE = Path(__file__).resolve().parent
# What brings data to the disk changes no result: data have a hash of their own in a result's fingerprint.
FETCHING = {f"datasets/{name}.py" for name in ("archives", "download", "sources", "transfer")}


def code_only(source: str) -> str:
    """Return `source` without docstrings, comment lines, blank lines and trailing blanks: what can change a result."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                for number in range(docstring.lineno - 1, docstring.end_lineno):
                    lines[number] = ""
    kept = (line.rstrip() for line in lines)
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))


def closure(modules: Iterable[str], package: Path | None = None) -> list[Path]:
    """Return the files of `modules` ("uad_core.metrics") and of all that they import within the package, sorted.

    A name that the package itself offers, such as "uad_core.create", stands for the module that it comes from.
    """
    package = package or PACKAGE
    home = _home(package)
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = _file(home.get(name, name), package)
        if file is not None and file not in found:
            found.add(file)
            waiting += imported(file.read_text("utf-8"), _name(file, package))
    return sorted(found)


def imported(source: str, module: str = "") -> set[str]:
    """Return every dotted name of the package that `source` imports; of "from a import b" both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] == PACKAGE.name}


@lru_cache
def digest(*modules: str) -> str:
    """Return 12 hexadecimal digits over names and code of `closure(modules)`, but for what only fetches data."""
    total = hashlib.sha256()
    for file in closure(modules):
        name = file.relative_to(PACKAGE).as_posix()
        if name in FETCHING:
            continue
        total.update(name.encode() + b"\0")
        total.update(code_only(file.read_text("utf-8")).encode() + b"\0")
    return total.hexdigest()[:12]


def code_version(method: str) -> str:
    """Return the package's version and a digest of the code that makes a result: the method's module and a run's."""
    from uad_core import __version__

    return f"{__version__}+{digest(method, 'uad_core.experiment')}"


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if node.level == 0:
        return node.module or ""
    parents = module.split(".")[: -node.level]
    return ".".join([*parents, node.module or ""]).rstrip(".")


def _home(package: Path) -> dict[str, str]:
    """Return where the names come from that the package looks up on demand: "uad_core.create" -> "uad_core.methods"."""
    for node in ast.parse((package / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "HOME":
            return {f"uad_core.{name}": f"uad_core.{module}" for name, module in ast.literal_eval(node.value).items()}
    return {}


def _file(name: str, package: Path) -> Path | None:
    """Return the file of a module or package; None for what is neither, such as a function."""
    place = package.joinpath(*name.split(".")[1:])
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if place != package and file.is_file():
            return file
    return None


def _name(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts)
