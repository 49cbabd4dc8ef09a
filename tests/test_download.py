"""Benchmarks brought to the data root from their publisher: whole or not at all, once, by two at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from uad_core.datasets import archives, download
from uad_core.datasets.download import fetch

sys.path.append(str(Path(__file__).parent))

from flaky_server import Answer
from hostile_archives import build
from toy_publisher import by_hand, content, data_files, expected, publishing, refused


@pytest.fixture
def server(monkeypatch, tmp_path):
    with publishing(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


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
