"""The book to take along: a zip that opens from disk, and a PDF whose links and outline lead somewhere."""

from __future__ import annotations

import runpy
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.book
pypdf = pytest.importorskip("pypdf", reason="the tool chain of the book is not installed: pip install .[book]")
ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "offline.py"))


def page(folder: Path, name: str, title: str, body: str) -> Path:
    path = folder / f"{name}.html"
    path.write_text(f"<html><head><title>{title} — Book</title></head><body>{body}</body></html>", "utf-8")
    return path


def print_or_skip(*pages: Path) -> dict[Path, Path]:
    if not any(map(shutil.which, TOOL["PROGRAMS"])):
        pytest.skip("no browser: install chromium (Debian: apt-get install chromium)")
    return {path: TOOL["printed"](path, path.with_suffix(".pdf")) for path in pages}


def targets(book) -> list[tuple[int, object]]:
    """Of each link the page that it is on, and the page or the address that it leads to."""
    numbers = {sheet.indirect_reference.idnum: i for i, sheet in enumerate(book.pages)}
    links = [(i, link.get_object()) for i, sheet in enumerate(book.pages) for link in sheet["/Annots"]]
    return [(i, link["/A"]["/URI"] if "/A" in link else numbers[link["/Dest"][0].idnum]) for i, link in links]


def test_every_page_of_the_contents_is_printed_in_its_order(built):
    names = list(TOOL["pages"](yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))))
    assert names[0] == "book/preface" and len(names) == len(set(names))
    assert {path.stem for path in (ROOT / "notebooks").glob("*.py")} <= {Path(name).name for name in names}
    assert all((built / f"{name}.html").is_file() for name in names)


def test_links_lead_to_their_place_in_the_whole(tmp_path):
    far = '<p style="margin-top:1500px" id="same">there</p>'
    first = page(tmp_path, "a", "First", f'<a href="b.html">b</a> <a href="https://example.org/">web</a> <a href="c.html">c</a> <a href="#same">down</a>{far}')  # noqa: E501
    second = page(tmp_path, "b", "Second", f'<a href="a.html">a</a> <a href="#same">down</a>{far}')
    book = pypdf.PdfReader(TOOL["joined"](print_or_skip(first, second), tmp_path / "book.pdf"))
    assert [entry.title for entry in book.outline] == ["First", "Second"] and len(book.pages) == 4
    assert targets(book) == [(0, 2), (0, "https://example.org/"), (0, 1), (2, 0), (2, 3)]


def test_a_built_page_is_printed_with_its_formulas(built, tmp_path):
    name = built / "notebooks" / "f3_decisions.html"
    parts = print_or_skip(shutil.copy(name, name.with_name("copy_to_print.html")))
    text = "\n".join(sheet.extract_text() for sheet in pypdf.PdfReader(*parts.values()).pages)
    for path in (*parts, *parts.values()):
        path.unlink()
    assert "Exercises" in text and "\\frac" not in text and "\\mathbb" not in text


def test_the_zip_holds_every_file_below_one_folder(built, tmp_path):
    with zipfile.ZipFile(TOOL["packed"](built, tmp_path / "uad-book.zip")) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"uad-book"}
    files = [path for path in built.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert len(names) == len(files) and "uad-book/index.html" in names
