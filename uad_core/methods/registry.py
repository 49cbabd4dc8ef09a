"""Which methods there are: every detector in a module of this package, found by its class."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from inspect import isabstract, isclass

from uad_core.errors import UserError
from uad_core.methods.base import Detector

__all__ = ["METHODS", "method_class"]


class _Methods(Mapping[str, type[Detector]]):
    """Name -> class: the book's methods in the order of their chapters, then the baselines by name.

    The modules are imported when the first name is asked for.
    """

    @cached_property
    def found(self) -> dict[str, type[Detector]]:
        import uad_core.methods as package

        modules = [import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)]
        kinds = {kind for module in modules for kind in vars(module).values() if _is_method(kind)}
        chapter = {kind: (kind.paper is None, kind.paper.chapter if kind.paper else "", kind.name) for kind in kinds}
        return {kind.name: kind for kind in sorted(kinds, key=chapter.__getitem__)}

    def __getitem__(self, name: str) -> type[Detector]:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


def _is_method(kind: object) -> bool:
    return isclass(kind) and issubclass(kind, Detector) and not isabstract(kind)


METHODS = _Methods()


def method_class(name: str) -> type[Detector]:
    """Return a method's class; raise UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"no method {name!r}: choose among {', '.join(METHODS)}")
    return METHODS[name]
