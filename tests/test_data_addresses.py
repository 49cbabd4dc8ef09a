"""The weekly check of data addresses, against a server on this machine."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from flaky_server import Answer, serving

from uad_core.datasets.sources import BENCHMARKS, Archive, find

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "data_addresses.py"))


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as found:
        found.files["/a.zip"] = b"x" * 1000
        yield found


def wrong(server, size: int | None = 1000, path: str = "/a.zip") -> str | None:
    url = server.address + path
    return TOOL["fault"](url, Archive("a.zip", (url,), None, size=size))


def test_every_file_that_can_be_fetched_is_asked_for_once():
    asked = [archive.urls for _, archive in TOOL["archives"]()]
    wanted = {piece.archive.urls for name in BENCHMARKS for piece in find(name).pieces if piece.archive}
    assert wanted - {()} <= set(asked) and len(asked) == len(set(asked))


def test_one_byte_shows_that_an_address_lives(server):
    assert wrong(server) is None and wrong(server, size=None) is None
    assert server.log[0] == ("/a.zip", "bytes=0-0")


def test_a_server_that_sends_the_whole_file_is_left_after_its_headers(server):
    server.rest = Answer(ranges=False)
    assert wrong(server) is None


@pytest.mark.parametrize("answer, says", [
    (Answer(status=404), "404"), (Answer(status=503), "503"),
    (Answer(headers={"Content-Type": "text/html; charset=utf-8"}), "web page"),
])  # fmt: skip
def test_a_dead_address_is_told(server, answer, says):
    server.rest = answer
    assert says in wrong(server)


def test_a_file_of_another_size_is_told(server):
    assert "1,000 bytes, 2,000 were published" in wrong(server, 2000)


def test_the_exit_status_says_whether_any_is_dead(server, monkeypatch, capsys):
    good, bad = (Archive(name, (f"{server.address}/{name}",), None) for name in ("a.zip", "b.zip"))
    toy = find("mvtec_ad")
    main = TOOL["main"]
    for files, status in (([good], 0), ([good, bad], 1)):
        pieces = tuple(replace(piece, archive=file) for piece, file in zip(toy.pieces, files))
        main.__globals__["BENCHMARKS"] = {"toy": replace(toy, name="toy", pieces=pieces, whole=None)}
        assert main() == status
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("a.zip: answers") and "404" in shown[-1]
