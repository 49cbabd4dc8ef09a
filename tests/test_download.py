"""Benchmarks brought to the data root: from a server, from a mirror, from what a person put there, by two at once."""

from __future__ import annotations

import errno
import gzip
import hashlib
import multiprocessing
import os
import sys
import tarfile
from pathlib import Path

import pytest

from uad_core.datasets import archives, download
from uad_core.datasets.download import fetch
from uad_core.datasets.sources import BENCHMARKS, Archive, Benchmark, RawFile, Tree
from uad_core.errors import UserError

sys.path.append(str(Path(__file__).parent))

from flaky_server import Answer, files, serving
from hostile_archives import build, member, tar

PLAIN = bytes(range(256)) * 4
COUNTS = {"train/good/*": 2, "test/*/*": 3}


def content(name: str, top: str = "") -> dict[str, bytes]:
    images = ("train/good/0.png", "train/good/1.JPG", "test/good/0.png", "test/bad/0.bmp", "test/bad/1.tif")
    extra = ("license.txt", "ground_truth/bad/0_mask.png", "train/good/.DS_Store", "train/good/Thumbs.db")
    return {f"{top}{name}/{path}": f"{name} {path}".encode() for path in images + extra}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server with `toy` (categories one, two), `whole` (one tree), `raw` (one file); `hand` has no address."""
    with serving(monkeypatch) as server:

        def published(archive: Path, digest: bool = True, **facts) -> Archive:
            data = server.files[f"/{archive.name}"] = archive.read_bytes()
            sha256 = "sha256:" + hashlib.sha256(data).hexdigest()
            return Archive(archive.name, (f"{server.address}/{archive.name}",), sha256 if digest else None, **facts)

        source = tmp_path / "publisher"
        source.mkdir()
        read_only = [member(name, data, mode=0o444) for name, data in content("one").items()]
        one = published(tar(source / "one.tar.xz", member("one", b"", type=tarfile.DIRTYPE, mode=0o555), *read_only))
        two = published(build(source, "zip", content("two")).rename(source / "two.zip"), about=2000)
        all_ = published(build(source, "tar.gz", content("one", "set/") | content("two", "set/")))
        tree = published(build(source, "tar", content("set")), digest=False)
        packed = source / "values.gz"
        packed.write_bytes(gzip.compress(PLAIN))

        def add(name: str, *pieces: Tree | RawFile, **facts) -> None:
            benchmark = Benchmark(name, name, "https://page.example", "free", pieces, **facts)
            monkeypatch.setitem(BENCHMARKS, name, benchmark)

        trees = [Tree(f"toy/{a.file.split('.')[0]}", "train/good", COUNTS, a) for a in (one, two)]
        add("toy", *trees, categories=("one", "two"), whole=all_)
        add("whole", Tree("whole", "train", COUNTS, tree))
        add("raw", RawFile("raw/deep", published(packed), len(PLAIN)))
        add("hand", *(Tree(f"hand/{c}", "train/good", COUNTS) for c in ("one", "two")), categories=("one", "two"),
            by_hand="ask the authors")  # fmt: skip
        yield server


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def expected(name: str, *categories: str) -> set[str]:
    return {f"{name}/{path}" for category in categories for path in content(category)}


def data_files(root: Path) -> set[str]:
    return {path for path in files(root) if not path.endswith(".lock")}


def refused(name: str, category: str | None, root: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        fetch(name, category, root, progress=False)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def by_hand(root: Path, name: str, archive: Path, as_name: str | None = None) -> Path:
    folder = root / "downloads" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (as_name or archive.name)
    path.write_bytes(archive.read_bytes())
    return path


def test_a_category_is_downloaded_once(server, root):
    assert fetch("toy", "one", root, progress=False) == root / "toy" / "one"
    assert data_files(root) == expected("toy", "one")
    assert (root / "toy/one/license.txt").read_bytes() == b"one license.txt"
    assert os.access(root / "toy/one/train/good/0.png", os.W_OK) and (root / "toy/one").stat().st_mode & 0o700 == 0o700
    server.log.clear()
    assert fetch("toy", "one", str(root), progress=False) == root / "toy" / "one"
    assert server.log == []


def test_all_categories_bring_what_is_missing(server, root):
    fetch("toy", "two", root, progress=False)
    assert fetch("toy", None, root, progress=False) == root / "toy"
    assert data_files(root) == expected("toy", "one", "two")
    assert [path for path, _ in server.log] == ["/two.zip", "/one.tar.xz"]


def test_a_set_without_categories_and_without_a_hash(server, root):
    assert fetch("whole", "any", root, progress=False) == root / "whole"
    assert data_files(root) == {path.replace("set/", "whole/", 1) for path in content("set")}


def test_an_interrupted_download_goes_on(server, root):
    server.script = [Answer(cut=100)] + [Answer(status=503)] * 2
    refused("toy", "one", root, "HTTP 503", "100 bytes are kept")
    assert data_files(root) == {"downloads/toy/incoming/one.tar.xz.part"}
    fetch("toy", "one", root, progress=False)
    assert server.log[-1] == ("/one.tar.xz", "bytes=100-") and data_files(root) == expected("toy", "one")


def test_a_dead_address_names_page_and_place(server, root):
    server.files.clear()
    place = root / "downloads" / "toy"
    refused("toy", "one", root, "HTTP 404", "UAD_MIRROR", "https://page.example", f"put it into {place}", "one.tar.xz")


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
    for path, data in content("one").items():
        (root / "hand" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "hand" / path).write_bytes(data)
    before = files(root)
    assert fetch("hand", "one", root, progress=False) == root / "hand" / "one"
    assert files(root) == before
    (root / "hand/one/test/bad/0.bmp").unlink()
    refused("hand", "one", root, str(root / "hand/one"), "has 2 files in test/*/*, 3 were published", "delete it")


def test_counts_other_than_the_published_ones(server, root, tmp_path):
    archive = build(tmp_path, "zip", {p: data for p, data in content("one").items() if "train/good/0" not in p})
    server.files["/a.tar"] = archive.read_bytes()
    refused("whole", None, root, "has 1 files in train/good/*, 2 were published", "nothing was unpacked")
    assert data_files(root) == set() and not (root / "whole").exists()
    by_hand(root, "hand", archive, "one.zip")
    refused("hand", "one", root, "has 1 files")
    assert not (root / "hand" / "one").exists()


def test_an_archive_without_the_data_is_not_kept(server, root, tmp_path):
    server.files["/a.tar"] = build(tmp_path, "tar", {"readme": b"moved elsewhere"}).read_bytes()
    refused("whole", None, root, "no train in it", "put it into")
    assert data_files(root) == set()


def test_a_hostile_archive_is_not_kept(server, root, tmp_path):
    server.files["/a.tar"] = build(tmp_path, "tar", content("set") | {"../../evil": b"x"}).read_bytes()
    refused("whole", None, root, "'../../evil'", "'..'")
    assert data_files(root) == set() and not list(tmp_path.rglob("evil"))


def test_a_folder_that_is_in_the_way_is_never_touched(server, root):
    (root / "toy/one").mkdir(parents=True)
    (root / "toy/one/mine.txt").write_text("mine")
    refused("toy", "one", root, str(root / "toy/one"), "move the folder elsewhere or delete it")
    assert data_files(root) == {"toy/one/mine.txt"} and server.log == []
    (root / "toy/one/mine.txt").unlink()
    fetch("toy", "one", root, progress=False)
    assert data_files(root) == expected("toy", "one")


def test_what_a_killed_process_left_is_cleared(server, root):
    stale = root / "toy" / ".one.abc.unpacking" / "content"
    stale.mkdir(parents=True)
    (stale / "half.png").write_bytes(b"x")
    fetch("toy", "one", root, progress=False)
    assert data_files(root) == expected("toy", "one") and not stale.exists()


def test_a_disk_that_fills_up_while_unpacking_keeps_the_archive(server, root, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_copy", full)
        refused("toy", "one", root, "disk is full", "--root")
    assert data_files(root) == {"downloads/toy/one.tar.xz"}
    server.log.clear()
    fetch("toy", "one", root, progress=False)
    assert server.log == [] and expected("toy", "one") < data_files(root)


def test_a_root_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    refused("toy", "one", tmp_path / "file", str(tmp_path / "file"), "--root or UAD_DATA")


def test_names_nobody_knows(server, root):
    refused("tyo", None, root, "tyo", "toy")
    refused("toy", "three", root, "--category three", "one, two")
    assert not root.exists()


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


def test_two_processes_download_once(server, root):
    server.script = [Answer(stall=0.3)]
    server.rest = Answer(status=500)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=fetch, args=("toy", "one", root, False)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(server.log) == 1 and data_files(root) == expected("toy", "one")


def test_a_waiting_process_says_so(server, root, caplog):
    store = root / "downloads" / "toy"
    store.mkdir(parents=True)
    ready, go = multiprocessing.Pipe()

    def hold():
        with download._alone(store):
            ready.send(1)
            ready.poll(0.3)

    child = multiprocessing.get_context("fork").Process(target=hold)
    child.start()
    go.recv()
    fetch("toy", "one", root, progress=False)
    child.join()
    assert "another process" in caplog.text and data_files(root) == expected("toy", "one")
