"""Downloads when the address, the disk or the process dies: what is kept, and what the reader is told."""

from __future__ import annotations

import builtins
import errno
import gzip
import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pooch
import pytest

from uad_core.datasets import archives, transfer
from uad_core.errors import UserError

sys.path.append(str(Path(__file__).parent))

from flaky_server import DATA, Answer, N, files, get, part, patience, refused, serving, whole


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
def test_a_dead_address_is_asked_once(server, store, status):
    server.rest = Answer(status=status)
    refused(server, store, f"HTTP {status}")
    assert len(server.log) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_tired_server_is_asked_a_few_times(server, store, status):
    server.rest = Answer(status=status)
    refused(server, store, f"HTTP {status}")
    assert len(server.log) == 3
    server.script, server.rest = [Answer(status=status)] * 2, Answer()
    whole(store, get(server, store))


def test_redirects(server, store):
    server.files["/b"] = b""
    there, back = (Answer(status=302, body=b"", headers={"Location": place}) for place in ("/b", "/set/a.tar"))
    part(store, DATA[:1000])
    server.script = [there, back]
    whole(store, get(server, store))
    assert server.log == [(place, "bytes=1000-") for place in ("/set/a.tar", "/b", "/set/a.tar")]
    server.log.clear()
    (store / "a.tar").unlink()
    server.rest = there
    refused(server, store, "redirects without end")
    assert len(server.log) == 3 * 6


def test_a_web_page_is_no_archive(server, store):
    server.rest = Answer(headers={"Content-Type": "text/html; charset=utf-8"})
    refused(server, store, "web page", digest=None)


def test_bytes_labelled_as_compressed_transfer_stay_as_they_are(server, store):
    data = gzip.compress(DATA)
    server.files["/set/a.tar"] = data
    server.rest = Answer(headers={"Content-Encoding": "gzip"})
    path = get(server, store, digest="sha256:" + hashlib.sha256(data).hexdigest())
    assert path.read_bytes() == data


def test_no_answer_at_all(server, store, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(server, store, "refused", urls=(f"http://127.0.0.1:{port}/a.tar",))
    patience(monkeypatch, read=0.1)
    server.rest = Answer(cut=0, stall=0.4)
    refused(server, store, "nothing came for 0.1 s")
    assert len(server.log) == 3

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    refused(server, store, "host name is unknown", urls=("http://nowhere.invalid/a.tar",))


def test_the_next_address_goes_on_with_the_same_part(server, store, monkeypatch):
    patience(monkeypatch, tries=1)
    server.files["/other/a.tar"] = DATA
    urls = tuple(f"{server.address}/{place}/a.tar" for place in ("none", "set", "other"))
    server.script = [Answer(), Answer(cut=5000)]
    whole(store, get(server, store, urls=urls))
    assert server.log == [("/none/a.tar", None), ("/set/a.tar", None), ("/other/a.tar", "bytes=5000-")]


@pytest.mark.parametrize("place", ["/mirror/deep/a.tar", "/mirror/deep/toy/a.tar"])
def test_a_mirror_takes_the_place_of_the_address(server, store, monkeypatch, place):
    server.files[place] = DATA
    monkeypatch.setenv("UAD_MIRROR", f"{server.address}/mirror/deep/")
    whole(store, get(server, store, urls=("http://nowhere.invalid/x/y/other-name.tar",)))
    assert server.log[-1] == (place, None)


def test_a_mirror_has_to_be_an_address(server, store, monkeypatch):
    monkeypatch.setenv("UAD_MIRROR", "/some/folder")
    with pytest.raises(UserError, match="UAD_MIRROR=/some/folder: no web address"):
        get(server, store)
    assert server.log == []


def test_requests_are_bounded_but_progress_earns_more(server, store, monkeypatch):
    server.rest = Answer(cut=20_000)
    refused(server, store, "cut after 60,000 bytes")
    assert len(server.log) == 3
    monkeypatch.setattr(transfer, "STEP", 20_000)
    whole(store, get(server, store))
    assert len(server.log) == 3 + 8
    # Bytes that were there before are no progress: a server that always cuts at the same place is left.
    server.log.clear()
    (store / "a.tar").unlink()
    server.rest = Answer(cut=50_000, ranges=False)
    refused(server, store, "cut after 50,000 bytes")
    assert len(server.log) <= 5


def test_a_disk_without_room_is_noticed_before_the_download(server, store, monkeypatch):
    usage = namedtuple("usage", "total used free")(100, 100, 1234)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError) as caught:
        get(server, store, size=N)
    for words in (str(store), f"{2 * N:,} bytes are needed", "1,234 bytes are free", "--root"):
        assert words in str(caught.value)
    assert server.log == [] and files(store) == set()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_what_it_has(server, store, monkeypatch, code):
    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if self.file.tell() + len(data) > 100_000:
                self.file.write(data[: 100_000 - self.file.tell()])
                raise OSError(code, os.strerror(code))
            return self.file.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "open", lambda *a: Full(builtins.open(*a)), raising=False)
        with pytest.raises(UserError, match="disk is full.*bytes are free"):
            get(server, store)
    assert files(store) == {"incoming/a.tar.part"}
    assert part(store).read_bytes() == DATA[:100_000]
    whole(store, get(server, store))
    assert server.ranges == [None, "bytes=100000-"]


@contextmanager
def small_disk(folder: Path, size: str):
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_really_full_disk(server, store):
    with small_disk(store, "128k"):
        with pytest.raises(UserError, match="disk is full"):
            get(server, store)
        assert files(store) == {"incoming/a.tar.part"}
        kept = part(store).read_bytes()
        assert kept == DATA[: len(kept)] and len(kept) > 50_000


def test_interrupted_while_the_hash_is_computed(server, store, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pooch.core, "hash_matches", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get(server, store)
    assert files(store) == {"incoming/a.tar.part"}
    whole(store, get(server, store))
    assert server.sent == N


def test_no_hard_links_here(server, store, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, "link", unsupported)
    whole(store, get(server, store))


def test_killed_in_the_middle_of_a_download(server, store):
    server.script = [Answer(cut=100_000, stall=30)]
    child = multiprocessing.get_context("fork").Process(target=get, args=(server, store))
    child.start()
    deadline = time.monotonic() + 10
    while not (part(store).exists() and part(store).stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (store / "a.tar").exists()
    assert len(files(store)) == 2  # the part, and the name that pooch had chosen for the result
    kept = part(store).stat().st_size
    whole(store, get(server, store))
    assert kept and server.ranges == [None, f"bytes={kept}-"]
