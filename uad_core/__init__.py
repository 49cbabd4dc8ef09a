"""Unsupervised anomaly detection, told five ways: learn to reconstruct what is normal."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

HOME = {
    "create": "methods",
    "load": "methods",
    "save": "methods",
    "METHODS": "methods",
    "PROFILES": "methods",
    "extract": "features",
    "Features": "features",
    "load_backbone": "backbones",
    "evaluate": "metrics",
    "run": "experiment",
    "UserError": "errors",
}

__all__ = ["__version__", *HOME]


def __getattr__(name: str):
    # Looked up on demand: `import uad_core` stays instant, and so does `uad --help`.
    if name in HOME:
        return getattr(import_module(f"uad_core.{HOME[name]}"), name)
    raise AttributeError(f"module 'uad_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
