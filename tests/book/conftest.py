"""The book as it is built, its pages, and a browser to open them in; each made once for all tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser, served

ROOT = Path(__file__).resolve().parents[2]
LOADING = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"),
           ("object", "data")}  # fmt: skip
LOADING_RELS = {"stylesheet", "preload", "icon", "shortcut", "manifest", "modulepreload", "prefetch", "preconnect"}


@dataclass
class Page(HTMLParser):
    """What a page loads, where it links to, what can be linked to in it, and its pictures."""

    path: Path
    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    pictures: list[dict[str, str | None]] = field(default_factory=list)
    inline_scripts: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self._in_script = False
        self.text = self.path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self._in_script = tag == "script" and "src" not in values
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        self.loads += [value for key, value in attrs if (tag, key) in LOADING]
        if tag == "link" and LOADING_RELS & set((values.get("rel") or "").split()):
            self.loads.append(values["href"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "img":
            self.pictures.append(values)

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.inline_scripts.append(data)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of pages, built by the command that the Makefile uses."""
    pytest.importorskip("jupyter_book", reason="the tool chain of the book is not installed: pip install .[book]")
    line = re.search(r"^\t\$\(BIN\)/(jupyter-book build .*)$", (ROOT / "Makefile").read_text("utf-8"), re.M).group(1)
    assert "-W" in line.split() and "-n" in line.split() and "--keep-going" in line.split()
    out = tmp_path_factory.mktemp("book")
    program, *rest = shlex.split(line)
    command = [str(Path(sys.executable).with_name(program)), *rest, "--path-output", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "WARNING" not in run.stdout + run.stderr
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def pages(built):
    """Every page, by its path below the folder."""
    return {path.relative_to(built).as_posix(): Page(path) for path in sorted(built.rglob("*.html"))
            if "_static" not in path.parts}


@pytest.fixture(scope="session")
def browser():
    """A Chromium without window; the test is skipped where there is none."""
    with Browser() as found:
        yield found


@pytest.fixture(scope="session")
def site(built):
    """The address of the built book, served below a path of its own as on GitHub Pages."""
    with served(built, "uad-book") as address:
        yield address
