"""A chapter runs where Colab would run it: from its first cell, with torch and little else, nothing else beside it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.book, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "colab.py"))


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The environment, as `make colab` makes it."""
    pytest.importorskip("nbclient", reason="the tool chain of the book is not installed: pip install .[book]")
    return TOOL["Colab"](tmp_path_factory.mktemp("colab"))


def test_only_what_colab_has_is_there_beforehand(colab):
    there = {path.name for path in colab.site.iterdir()}
    assert {"torch", "torchvision", "numpy", "matplotlib", "google"} <= there
    assert not {"uad_core", "timm", "sklearn", "seaborn", "pooch", "jupyter_book"} & there


def test_a_chapter_runs_from_its_first_cell_to_its_last(colab):
    colab.run(ROOT / "notebooks" / "f3_decisions.ipynb")
    assert any(colab.site.glob("uad_core-*")) and (colab.site / "sklearn").is_dir()  # the first cell brought them
    assert not (ROOT / "uad_core").samefile(colab.site / "uad_core")


def test_an_unknown_notebook_is_named():
    with pytest.raises(SystemExit, match="f3_decisions"):
        TOOL["main"](["f3_decision"])
