"""What all tests share: the repository's folder, the modules beside this one, and a headless matplotlib."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parents[1]
# What several tests share lies in modules beside them.
sys.path.append(str(ROOT / "tests"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT
