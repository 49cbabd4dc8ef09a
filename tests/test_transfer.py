"""Downloads from a server that cuts the connection and lies: nothing lost, nothing wrong accepted."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from uad_core.datasets import transfer

sys.path.append(str(Path(__file__).parent))

from flaky_server import DATA, WRONG, Answer, N, files, get, part, patience, refused, serving, whole

CUTS = [0, 1, 4096, 65_535, 65_536, 65_537, N // 2, N - 1]


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("size", [None, N])
@pytest.mark.parametrize("length", [-1, None])
def test_an_honest_server_is_asked_once(server, store, size, length):
    server.rest = Answer(length=length)
    whole(store, get(server, store, size=size))
    assert server.ranges == [None]


def test_progress_goes_to_stderr_and_pooch_is_silent(server, store, capfd):
    get(server, store, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "a.tar: 100%" in err and "Downloading" not in err
    (store / "a.tar").unlink()
    get(server, store, digest=None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [None, N])
@pytest.mark.parametrize("cut", CUTS)
def test_interrupted_at_any_byte_only_the_missing_bytes_are_asked_for(server, store, monkeypatch, cut, size):
    patience(monkeypatch, tries=1)
    server.script = [Answer(cut=cut)]
    message = refused(server, store, f"cut after {cut:,} bytes", size=size)
    assert ("bytes are kept" in message) == (cut > 0)
    assert (part(store).read_bytes() if cut else b"") == DATA[:cut]
    whole(store, get(server, store, size=size))
    assert server.ranges == [None, f"bytes={cut}-" if cut else None]
    assert server.sent == N


def test_one_call_survives_several_cuts(server, store):
    server.script = [Answer(cut=100_000), Answer(cut=50_000)]
    whole(store, get(server, store))
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert server.sent == N


@pytest.mark.parametrize("cut", [1, 70_000, N - 1])
def test_a_reset_connection_loses_at_most_one_chunk(server, store, cut):
    server.script = [Answer(cut=cut, reset=True, stall=0.05)]
    whole(store, get(server, store))
    assert server.sent <= N + transfer.CHUNK


def test_a_stalled_connection_is_left_and_resumed(server, store, monkeypatch):
    patience(monkeypatch, read=0.1)
    server.script = [Answer(cut=100_000, stall=0.5)]
    whole(store, get(server, store))
    assert len(server.log) == 2 and server.sent <= N + transfer.CHUNK


def test_chunked_answers(server, store):
    server.script = [Answer(chunked=True, cut=120_000)]
    server.rest = Answer(chunked=True)
    whole(store, get(server, store))
    assert len(server.log) == 2 and server.sent <= N + transfer.CHUNK


def test_a_server_without_ranges_is_read_from_the_start(server, store):
    part(store, DATA[:1000])
    server.rest = Answer(ranges=False)
    whole(store, get(server, store))
    assert server.ranges == ["bytes=1000-"] and server.sent == N


def test_an_early_cut_of_a_fresh_start_does_not_lose_later_bytes(server, store, monkeypatch):
    patience(monkeypatch, tries=1)
    part(store, DATA[:150_000])
    server.rest = Answer(ranges=False, cut=10)
    refused(server, store, "cut")
    assert part(store).read_bytes() == DATA[:150_000]


def test_a_part_longer_than_the_file_is_cut(server, store):
    part(store, DATA + b"x")
    server.rest = Answer(ranges=False)
    whole(store, get(server, store))
    assert len(server.log) == 1


def test_a_range_of_unknown_total_is_not_taken_for_complete(server, store):
    part(store, DATA[:1000])
    server.script = [Answer(content_range=f"bytes 1000-{N - 1}/*", cut=5000)]
    whole(store, get(server, store))
    assert server.ranges == ["bytes=1000-", "bytes=6000-"] and server.sent == N - 1000


LIES = {
    "another range": Answer(content_range=f"bytes 0-{N - 1}/{N}"),
    "no range": Answer(content_range=""),
    "nonsense": Answer(content_range="bytes all of them"),
    "right range, wrong bytes": Answer(body=WRONG[1000:]),
    "cannot go on": Answer(status=416, content_range=f"bytes */{N - 1}", body=b""),
    "cannot go on, does not say why": Answer(status=416, content_range="", body=b""),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_after_a_lie_about_the_range_one_fresh_start(server, store, lie):
    part(store, DATA[:1000])
    server.script = [lie]
    whole(store, get(server, store))
    assert server.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("old", [WRONG[:1000], WRONG, DATA + b"x"], ids=["start", "whole", "longer"])
@pytest.mark.parametrize("size", [None, N])
def test_a_part_of_something_else_is_given_up(server, store, old, size):
    part(store, old)
    whole(store, get(server, store, size=size))
    assert len(server.log) <= 2 and server.ranges[-1] is None


@pytest.mark.parametrize(("size", "requests"), [(None, ["bytes=200001-"]), (N, [])])
def test_a_complete_part_needs_no_bytes(server, store, size, requests):
    part(store, DATA)
    whole(store, get(server, store, size=size))
    assert server.ranges == requests and server.sent == 0


@pytest.mark.parametrize("size", [None, N])
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_wrong_bytes_are_discarded_and_named(server, store, size, algorithm):
    server.files["/set/a.tar"] = WRONG
    expected, got = (hashlib.new(algorithm, data).hexdigest() for data in (DATA, WRONG))
    url = f"{server.address}/set/a.tar"
    refused(server, store, url, expected, got, "deleted", digest=f"{algorithm}:{expected}", size=size)
    assert files(store) == set() and len(server.log) == 1


def test_wrong_bytes_pieced_together_end_after_one_fresh_start(server, store):
    part(store, DATA[:1000])
    server.files["/set/a.tar"] = WRONG
    server.rest = Answer(cut=150_000)
    refused(server, store, "expected")
    assert files(store) == set() and len(server.log) == 4


def test_a_length_that_is_too_short(server, store):
    server.rest = Answer(length=1000)
    refused(server, store, "expected")
    assert files(store) == set()


def test_a_length_other_than_the_published_one_is_not_even_read(server, store):
    part(store, DATA[:500])
    server.rest = Answer(length=1000, ranges=False)
    refused(server, store, "offers 1,000 bytes", f"{N:,} were published", size=N)
    assert part(store).read_bytes() == DATA[:500]


def test_a_length_that_is_too_long(server, store):
    server.script = [Answer(length=N + 1000)]
    whole(store, get(server, store))
    assert server.ranges == [None, f"bytes={N}-"]


def test_an_endless_answer_is_stopped(server, store):
    server.rest = Answer(body=DATA + b"x" * 500_000, length=None)
    refused(server, store, f"more than {N:,} bytes", size=N)


def test_a_complete_file_cut_short_by_the_server_itself(server, store):
    server.files["/set/a.tar"] = DATA[:-1]
    refused(server, store, "offers 200,000 bytes", size=N)
    refused(server, store, "expected")


def test_without_a_published_hash_nothing_is_pieced_together(server, store):
    part(store, WRONG[:1000])
    server.script = [Answer(cut=5000)]
    whole(store, get(server, store, digest=None))
    assert server.ranges == [None, None]


def test_without_a_published_hash_a_cut_download_is_not_kept(server, store):
    server.rest = Answer(cut=5000)
    assert "kept" not in refused(server, store, "cut", digest=None)
    assert files(store) == set()
