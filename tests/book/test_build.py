"""The built pages: no warning, no dead link, nothing from another server, every picture described."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

pytest.importorskip("jupyter_book", reason="the tool chain of the book is not installed: pip install .[book]")
pytestmark = pytest.mark.book

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))


def test_the_first_page_leads_to_the_preface(built, pages):
    assert "book/preface.html" in pages and "preface.html" in pages["index.html"].text


def test_every_link_inside_the_book_arrives(built, pages):
    dead = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("#top"):
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                dead.append((name, link))
            elif parts.fragment and target.suffix == ".html":
                there = pages[target.relative_to(built.resolve()).as_posix()].ids
                if unquote(parts.fragment) not in there | {""}:
                    dead.append((name, link))
    assert not dead


def test_pages_load_nothing_from_another_server(built, pages):
    for name, page in pages.items():
        for load in page.loads:
            parts = urlsplit(load)
            assert not parts.scheme or parts.scheme == "data", (name, load)
            assert not parts.netloc, (name, load)
            if not parts.scheme:
                assert (page.path.parent / unquote(parts.path)).exists(), (name, load)
        assert not re.search(r"https?://", "".join(page.inline_scripts)), name
    for sheet in (built / "_static").rglob("*.css"):
        text = sheet.read_text("utf-8", errors="replace")
        assert not re.search(r"(url\(\s*['\"]?|@import\s+['\"])(https?:)?//", text), sheet


def test_formulas_have_their_program_and_fonts(built, pages):
    assert any("mathjax/tex-chtml.js" in load for load in pages["book/metrics.html"].loads)
    fonts = list((built / "_static" / "mathjax" / "output" / "chtml" / "fonts").rglob("*.woff"))
    assert len(fonts) > 15


def test_every_picture_is_described(pages):
    name_of_file = r"[\w./-]+\.(png|svg|webp|jpe?g)"
    bare = [(name, picture.get("src")) for name, page in pages.items() for picture in page.pictures
            if not (picture.get("alt") or "").strip() or re.fullmatch(name_of_file, picture["alt"])]
    assert not bare


def test_no_page_takes_more_than_two_megabytes_with_its_pictures(built, pages):
    def weight(name: str) -> int:
        page = pages[name]
        files = {(page.path.parent / picture["src"].split("?")[0]).resolve() for picture in page.pictures
                 if not re.match(r"data:|https?:", picture["src"])}  # fmt: skip
        return page.path.stat().st_size + sum(file.stat().st_size for file in files)

    weights = {name: weight(name) for name in pages}
    assert not {name: bytes_ for name, bytes_ in weights.items() if bytes_ > 2_000_000}


def test_a_picture_that_a_cell_has_drawn_leads_to_its_file(pages):
    drawn = [(page, picture["src"]) for page in pages.values() for picture in page.pictures
             if re.search(r"_images/[^/]+\.webp$", picture.get("src") or "")]  # fmt: skip
    assert len(drawn) > 50
    assert not [(page.path.name, source) for page, source in drawn if source not in page.links]


def test_there_is_one_search_box_and_a_switch_for_dark_mode(pages):
    text = pages["book/preface.html"].text
    assert len(re.findall(r"<button[^>]*class=\"[^\"]*search-button-field", text)) == 1
    assert "theme-switch" in text


CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_colab_link_of_a_chapter_points_at_its_notebook(pages, chapter):
    repository = CONFIG["repository"]
    slug = "/".join(repository["url"].rstrip("/").split("/")[-2:])
    expected = f"https://colab.research.google.com/github/{slug}/blob/{repository['branch']}/notebooks/{chapter}.ipynb"
    colab = {link for link in pages[f"notebooks/{chapter}.html"].links if "colab.research" in link}
    assert colab == {expected}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_status_page_gives_the_run_time_of_a_chapter(pages, chapter):
    status = pages["book/status.html"].text
    row = re.search(rf"<tr[^>]*>(?:(?!</tr>).)*{chapter}\.html(?:(?!</tr>).)*</tr>", status, re.S)
    assert row and re.search(r"\d+ s", row.group(0))
