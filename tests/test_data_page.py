"""The page on the data: cards repeat the catalogue, expectations name what exists, no real data is stored."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from uad_core import datasets
from uad_core.datasets import procedural

jupytext = pytest.importorskip("jupytext", reason="the tool chain of the book is not installed: pip install .[book]")
sys.path.append(str(Path(__file__).parent))

from miniatures import make_mvtec  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAGE = jupytext.read(ROOT / "notebooks" / "00_data.py")
METHODS = {"HFR", "SGFR", "RLR", "HLGFA", "GLAD"}


def run(monkeypatch: pytest.MonkeyPatch, *parts: str, **variables: str) -> tuple[dict, list]:
    """Run the set-up of the page and the cells that contain `parts`; return its names and what was displayed."""
    for name in ("UAD_DATA", "UAD_DATASET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = [cell.source for cell in PAGE.cells if cell.cell_type == "code"]
    shown: list = []
    names: dict = {}
    for source in [*code[:3], *(source for source in code[3:] if any(part in source for part in parts))]:
        exec(source, names)
        names["display"] = shown.append
    return names, shown


def test_every_card_says_what_the_catalogue_says(monkeypatch, tmp_path):
    names, _ = run(monkeypatch, "def sizes_of", "def card")
    keys = re.findall(r"^@\w+\{([\w-]+),", (ROOT / "book" / "references.bib").read_text("utf-8"), re.M)
    for info in datasets.catalogue():
        card = names["card"](info)
        assert card.startswith(f"**{info.title}**, `{info.name}`. {info.summary}\n")
        assert f"* Licence: {info.licence}\n" in card and f"* Get it: {info.instruction()}" in card
        assert info.citation is None or (info.citation in keys and f"{{cite:t}}`{info.citation}`" in card)
        assert ("no masks" in card) is not info.has_masks
    assert "3,629 + 1,725 (1,258): `bottle` 209 + 83 (63), " in names["card"](datasets.INFOS["mvtec_ad"])
    assert "* Images: 6,000 + 10,000 (9,000) in each of 10 classes\n" in names["card"](datasets.INFOS["fashion_mnist"])
    assert "* Images: `mtd` 762 + 582 (392)\n" in names["card"](datasets.INFOS["mtd"])


def test_without_a_root_the_cards_do_not_depend_on_what_is_here(monkeypatch, tmp_path):
    make_mvtec(tmp_path / "mvtec_ad/bottle")
    parts = ("def sizes_of", "def card", "for name, category in here")
    silent, shown = run(monkeypatch, *parts)
    cards = [[silent["card"](info) for info in datasets.catalogue(root)] for root in (tmp_path, tmp_path / "none")]
    assert cards[0] == cards[1] and "Here" not in "".join(cards[0])
    assert silent["here"] == {} and shown == []


@pytest.mark.filterwarnings("ignore::uad_core.datasets.DataWarning")
def test_a_reader_sees_contact_sheets_of_what_is_there(monkeypatch, tmp_path, capsys):
    make_mvtec(tmp_path / "mvtec_ad/bottle")
    make_mvtec(tmp_path / "mpdd/tubes")
    (tmp_path / "mpdd/tubes/test/good/000.png").write_bytes(b"")
    make_mvtec(tmp_path / "own/part")
    variables = {"UAD_DATA": str(tmp_path), "UAD_DATASET": str(tmp_path / "own")}
    names, shown = run(monkeypatch, "def sizes_of", "def card", "for name, category in here", **variables)
    cards = {info.name: names["card"](info) for info in datasets.catalogue(tmp_path)}
    assert cards["mvtec_ad"].endswith("* Here: bottle") and cards["visa"].endswith("* Here: no")
    expected = {"mvtec_ad": "bottle", "mpdd": "tubes", str(tmp_path / "own"): "part"}
    assert expected.items() <= names["here"].items() and set(names["here"]) - set(expected) <= {"elpv"}
    said = capsys.readouterr().out
    assert len(shown) == len(names["here"]) - 1 and "mpdd/tubes/test/good/000.png is empty" in said


def test_every_method_has_a_category_to_win_and_one_to_fail():
    text = "\n".join(cell.source for cell in PAGE.cells if cell.cell_type == "markdown")
    rows = re.findall(r"^\| (\w+) \{cite\}`\w+` \| `(\w+)`(?:, \*([\w ]+)\*)? \|.*\| `(\w+)` \|", text, re.M)
    assert {method for method, *_ in rows} == METHODS
    for _, wins, kind, fails in rows:
        assert wins != fails and {wins, fails} <= set(procedural.CATEGORIES)
        assert not kind or kind.replace(" ", "_") in procedural.DEFECTS[wins]
    assert {category for _, wins, _, fails in rows for category in (wins, fails)} == set(procedural.CATEGORIES)
