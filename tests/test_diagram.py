"""Diagrams: valid SVG that a screen reader can name, in the colour of the page, with a key of what was drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from uad_core.plots import diagram

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*parts, label="A box."):
    return ElementTree.fromstring(diagram.figure(parts, 540, 100, label))


@pytest.mark.parametrize("kind", diagram.KINDS)
def test_every_kind_is_drawn_with_its_text_and_has_a_place_in_the_key(kind):
    picture = drawn(diagram.box(10, 10, 120, "f & g", kind))
    said = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert said == ["f & g", diagram.KINDS[kind].name]


def test_kinds_differ_in_more_than_their_colour():
    shapes = {(s.round, s.dashed, s.lid, s.double, s.tint != "none", s.tint) for s in diagram.KINDS.values()}
    assert len(shapes) == len(diagram.KINDS)
    assert not diagram.KINDS["frozen"].round and diagram.KINDS["frozen"].dashed


def test_a_picture_has_a_name_and_no_colour_of_its_own_for_lines_and_letters():
    arrow = diagram.arrow("70,44 70,80", "then", (76, 60))
    picture = drawn(diagram.box(10, 10, 120, "a", "image"), arrow, label='Two "things"')
    assert picture.get("role") == "img" and picture.get("aria-label") == 'Two "things"'
    for thing in picture.iter():
        assert thing.get("stroke", "none") in ("none", "currentColor")
    assert {text.get("fill") for text in picture.iter(f"{SVG}text")} == {"currentColor"}


def test_an_arrow_has_a_head_that_is_defined():
    picture = drawn(diagram.arrow("0,0 10,10"))
    marker = next(picture.iter(f"{SVG}marker")).get("id")
    assert next(picture.iter(f"{SVG}polyline")).get("marker-end") == f"url(#{marker})"


def test_subscripts_and_superscripts_are_lowered_and_raised_and_the_line_returns():
    picture = drawn(diagram.box(0, 0, 90, "f_{enc}^k + m_l", "features"))
    text = next(picture.iter(f"{SVG}text"))
    assert "".join(text.itertext()).replace("\u200b", "") == "fenck + ml"
    assert sum(float(part.get("dy")) for part in text) == 0


def test_lines_of_text_make_a_box_higher_and_the_key_a_picture():
    one, two = (next(drawn(diagram.box(0, 0, 90, text, "step")).iter(f"{SVG}rect")) for text in ("a", "a\nb"))
    assert float(two.get("height")) - float(one.get("height")) == diagram.LINE
    assert drawn(diagram.box(0, 0, 9, "a", "step")).get("viewBox") == f"0 0 540 {100 + diagram.KEY_HEIGHT}"
