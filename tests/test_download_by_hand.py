"""Benchmarks that a person put there, whole or as archives: checked, used, and never deleted."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from uad_core.datasets.download import fetch

sys.path.append(str(Path(__file__).parent))

from flaky_server import files
from hostile_archives import build
from toy_publisher import PLAIN, as_published, by_hand, content, data_files, expected, publishing, put, refused


@pytest.fixture
def server(monkeypatch, tmp_path):
    with publishing(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def test_an_archive_put_there_by_hand_needs_no_network(server, root, tmp_path):
    placed = by_hand(root, "toy", tmp_path / "publisher/one.tar.xz")
    fetch("toy", "one", root, progress=False)
    assert server.log == [] and expected("toy", "one") < data_files(root)
    assert placed.exists()  # it belongs to the person


def test_a_wrong_archive_put_there_by_hand_is_not_used(server, root, tmp_path):
    placed = by_hand(root, "toy", tmp_path / "publisher/two.zip", "one.tar.xz")
    refused("toy", "one", root, str(placed), "sha256", "expected", "https://page.example")
    assert placed.exists() and not (root / "toy").exists() and server.log == []


def test_the_archive_of_all_categories_serves_each(server, root, tmp_path):
    by_hand(root, "toy", tmp_path / "publisher/a.tar.gz")
    fetch("toy", "two", root, progress=False)
    assert server.log == [] and expected("toy", "one", "two") < data_files(root)


def test_what_is_there_already_stays_as_it_is(server, root, tmp_path):
    fetch("toy", "one", root, progress=False)
    (root / "toy/one/mine.txt").write_text("mine")
    by_hand(root, "toy", tmp_path / "publisher/a.tar.gz")
    fetch("toy", "two", root, progress=False)
    assert (root / "toy/one/mine.txt").exists() and expected("toy", "two") < data_files(root)


def test_only_the_archive_named_like_the_category_is_opened(server, root, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        by_hand(root, "hand", build(tmp_path / name, "zip", content(name)), f"MPDD_{name}.zip")
    fetch("hand", "two", root, progress=False)
    assert not (root / "hand" / "one").exists()


@pytest.mark.parametrize("top", ["", "MPDD/", "a/b/"])
@pytest.mark.parametrize("suffix", ["zip", "tar.xz"])
def test_what_only_a_person_can_download(server, root, tmp_path, top, suffix):
    words = ("only a person", "https://page.example, ask the authors")
    refused("hand", "two", root, *words, str(root / "downloads" / "hand"), str(root / "hand"))
    made = build(tmp_path, suffix, content("one", top) | content("two", top))
    by_hand(root, "hand", made, f"My Download (1).{suffix}")
    assert fetch("hand", "two", root, progress=False) == root / "hand" / "two"
    assert expected("hand", "one", "two") < data_files(root)


def test_a_category_archive_by_hand_may_lack_the_top_folder(server, root, tmp_path):
    bare = {path.removeprefix("one/"): data for path, data in content("one").items()}
    by_hand(root, "hand", build(tmp_path, "zip", bare), "one.zip")
    fetch("hand", "one", root, progress=False)
    assert expected("hand", "one") < data_files(root)
    refused("hand", "two", root, "no two with train/good in one.zip", "ask the authors")


def test_unpacked_by_hand_is_accepted_as_it_is(server, root):
    put(root / "hand", content("one"))
    before = files(root)
    assert fetch("hand", "one", root, progress=False) == root / "hand" / "one"
    assert files(root) == before
    (root / "hand/one/test/bad/0.bmp").unlink()
    refused("hand", "one", root, str(root / "hand/one"), "has 2 files in test/*/*, 3 were published", "delete it")


TABLE = {"table.csv": b"object,split,label,image,mask"}
OBJECTS = {
    "as published": TABLE | as_published("one") | as_published("two"),
    "all rearranged": content("one") | content("two"),
    "one of them rearranged": TABLE | content("one") | as_published("two"),
}


@pytest.mark.parametrize("layout", OBJECTS)
def test_objects_in_mvtec_layout_serve_as_well(server, root, layout):
    put(root / "objects", OBJECTS[layout])
    assert fetch("objects", None, root, progress=False) == root / "objects"
    assert fetch("objects", "one", root, progress=False) == root / "objects" / "one"
    assert data_files(root) == {f"objects/{path}" for path in OBJECTS[layout]}


@pytest.mark.parametrize("files", [content("one"), TABLE | as_published("one")], ids=["rearranged", "as published"])
def test_one_object_is_enough_for_who_asks_for_it(server, root, files):
    put(root / "objects", files)
    assert fetch("objects", "one", root, progress=False) == root / "objects" / "one"
    words = ("has 0 files in", "add what is missing, or move the folder elsewhere")
    refused("objects", "two", root, str(root / "objects"), *words)
    refused("objects", None, root, str(root / "objects"), *words)


MISSING = {
    "train/good/1.JPG": "has 1 files in one/train/good/*, 2 were published",
    "test/good/0.png": "has 0 files in one/test/good/*, 1 were published",
    "test/bad/1.tif": "has 2 files in one/test/*/*, 3 were published",
}


@pytest.mark.parametrize("path", MISSING)
def test_rearranged_objects_are_counted(server, root, path):
    put(root / "objects", content("one"))
    (root / "objects/one" / path).unlink()
    refused("objects", "one", root, f"{root / 'objects'}: {MISSING[path]}; add what is missing")


@pytest.mark.parametrize("layout", OBJECTS)
def test_an_archive_of_objects_may_have_either_layout(server, root, tmp_path, layout):
    instruction = f"categories in MVTec layout serve as well, so that {root / 'objects/one/train/good'} exists"
    refused("objects", None, root, "ask the authors", f"{root / 'objects/one/Data/Images'} exists; {instruction}")
    made = build(tmp_path, "zip", {f"Objects-1cls/1cls/{path}": data for path, data in OBJECTS[layout].items()})
    by_hand(root, "objects", made, "any name.zip")
    fetch("objects", None, root, progress=False)
    assert {f"objects/{path}" for path in OBJECTS[layout]} < data_files(root)


def test_a_folder_that_is_in_the_way_is_never_touched(server, root):
    (root / "toy/one").mkdir(parents=True)
    (root / "toy/one/mine.txt").write_text("mine")
    refused("toy", "one", root, str(root / "toy/one"), "move the folder elsewhere or delete it")
    assert data_files(root) == {"toy/one/mine.txt"} and server.log == []
    (root / "toy/one/mine.txt").unlink()
    fetch("toy", "one", root, progress=False)
    assert data_files(root) == expected("toy", "one")


def test_a_raw_file(server, root):
    assert fetch("raw", "3", root, progress=False) == root / "raw"
    packed = root / "raw/deep/values.gz"
    assert data_files(root) == {"raw/deep/values.gz"} and gzip.decompress(packed.read_bytes()) == PLAIN
    server.log.clear()
    for same in (gzip.compress(PLAIN, 1), gzip.compress(PLAIN, mtime=0)):
        packed.write_bytes(same)
        fetch("raw", None, root, progress=False)
    packed.unlink()
    packed.with_suffix("").write_bytes(PLAIN)
    fetch("raw", None, root, progress=False)
    assert server.log == []


@pytest.mark.parametrize("data", [b"", b"\x1f", gzip.compress(PLAIN)[:-1], gzip.compress(PLAIN + b"x"), b"text" * 9])
def test_a_damaged_raw_file_is_named(server, root, data):
    packed = root / "raw/deep/values.gz"
    packed.parent.mkdir(parents=True)
    packed.write_bytes(data)
    refused("raw", None, root, str(packed), "is cut or no gzip file of 1,024 bytes", "delete it")
    assert packed.read_bytes() == data and server.log == []
