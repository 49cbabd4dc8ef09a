"""The built book to take along: all pages as one zip, and as one PDF for reading on paper.

    python tools/offline.py        from _build/html; leaves uad-book.zip and uad-book.pdf there

The zip is what a web server would send, under one folder; `index.html` in it opens the book from disk. The PDF is
printed page by page by Chromium or Chrome, in the order of the table of contents, with an outline; links between pages
lead to their place in the PDF, links into the part that is not printed (code as highlighted pages) are left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import yaml
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NullObject, NumberObject

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --allow-file-access-from-files --no-pdf-header-footer "
         "--virtual-time-budget=60000")  # fmt: skip

__all__ = ["joined", "main", "packed", "pages", "printed"]


def pages(toc: dict) -> Iterator[str]:
    """The pages of a table of contents in their order, each by its path without suffix; `toc` as the file has it."""
    if "root" in toc or "file" in toc:
        yield toc.get("root") or toc["file"]
    for part in (*toc.get("parts", ()), *toc.get("chapters", ()), *toc.get("sections", ())):
        yield from pages(part)


def packed(html: Path, out: Path) -> Path:
    """Write all files of the built book into a zip, below one folder of its name."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(html.rglob("*")):
            if path.is_file() and not path.name.startswith(".") and path.stem != out.stem:
                archive.write(path, f"{out.stem}/{path.relative_to(html).as_posix()}")
    return out


def printed(page: Path, out: Path) -> Path:
    """Print one built page as PDF; SystemExit where there is no browser or it fails."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SystemExit("no browser to print with: install chromium (Debian: apt-get install chromium) or Chrome")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS.split(), f"--user-data-dir={profile}", f"--print-to-pdf={out}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode or not out.is_file():
        raise SystemExit(f"{page} could not be printed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return out


def joined(parts: dict[Path, Path], out: Path) -> Path:
    """Join printed pages, {built page: its PDF}, with an outline, and lead their links to the place in the whole."""
    book, places, owners = PdfWriter(), {}, []
    for page, part in parts.items():
        reader, first = PdfReader(part), len(book.pages)
        places |= {(page.resolve(), name): (first + reader.get_destination_page_number(found), found.top)
                   for name, found in reader.named_destinations.items()}  # fmt: skip
        places[page.resolve(), ""] = (first, None)
        title = (reader.metadata.title if reader.metadata else None) or page.stem
        book.append(reader, outline_item=title.split(" — ")[0], import_outline=False)
        owners += [page.resolve()] * len(reader.pages)
    for sheet, owner in zip(book.pages, owners):
        sheet[NameObject("/Annots")] = ArrayObject(_kept(sheet.get("/Annots") or (), owner, places, book))
    book.compress_identical_objects(remove_unreferenced=True)
    book.write(out)
    return out


def _kept(annotations, owner: Path, places: dict, book: PdfWriter) -> Iterator:
    """The annotations of a printed page; a link to another printed page leads there, one to a file beside it goes."""
    for reference in annotations:
        annotation = reference.get_object()
        address = urlsplit(str(annotation.get("/A", {}).get("/URI", "")))
        if "/Dest" in annotation:  # names are the page's own: two pages may have the same
            target, name = owner, str(annotation["/Dest"])
        elif address.scheme == "file":
            target, name = Path(unquote(address.path)).resolve(), f"/{unquote(address.fragment)}"
        else:
            yield reference
            continue
        number, top = places.get((target, name)) or places.get((target, ""), (None, None))
        if number is not None:
            yield book._add_object(_link(annotation["/Rect"], book.pages[number], top))


def _link(rect, sheet, top: float | None) -> DictionaryObject:
    """A link from a rectangle to a height on a sheet, its upper end if None."""
    nothing = NullObject()
    place = [sheet.indirect_reference, NameObject("/XYZ"), nothing, nothing if top is None else top, nothing]
    entries = {
        "/Type": NameObject("/Annot"), "/Subtype": NameObject("/Link"), "/Rect": rect,
        "/Border": ArrayObject([NumberObject(0)] * 3), "/Dest": ArrayObject(place),
    }  # fmt: skip
    return DictionaryObject({NameObject(name): value for name, value in entries.items()})


def main() -> int:
    """The command line; returns the exit status."""
    html, toc = ROOT / "_build" / "html", yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    built = [html / f"{name}.html" for name in pages(toc)]
    missing = [page for page in built if not page.is_file()]
    if missing:
        raise SystemExit(f"{missing[0].relative_to(ROOT)} is not there: run `make book` first")
    print(packed(html, html / "uad-book.zip"))
    with TemporaryDirectory() as folder:
        parts = {page: printed(page, Path(folder) / f"{i}.pdf") for i, page in enumerate(built)}
        print(joined(parts, html / "uad-book.pdf"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
