"""A web server on this machine that misbehaves as told and remembers what it was asked, and a client for it."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from uad_core.datasets import transfer
from uad_core.datasets.sources import Archive
from uad_core.errors import UserError


@dataclass
class Answer:
    """How one request is answered; the defaults are an honest server that knows ranges."""

    status: int | None = None  # instead of 200 or 206
    body: bytes | None = None  # instead of the file's bytes
    cut: int | None = None  # close the connection after so many bytes of the body
    reset: bool = False  # ... with a reset instead of a proper end
    length: int | None = -1  # Content-Length; -1 is the truth, None leaves it out
    ranges: bool = True  # obey the Range header
    content_range: str | None = None  # instead of the true one; "" leaves it out
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    stall: float = 0.0  # seconds of silence before the connection is closed


class FlakyServer(ThreadingHTTPServer):
    """Serves `files` by path; answers the first requests as `script` says and the others as `rest` says."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[Answer] = []
        self.rest = Answer()
        self.log: list[tuple[str, str | None]] = []  # path and Range header of each request
        self.sent = 0  # bytes of bodies
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.log]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.log.append((self.path, asked))
        answer = server.script.pop(0) if server.script else server.rest
        self.close_connection = True
        if self.path not in server.files:
            answer = Answer(status=404, body=b"")
        data = server.files.get(self.path, b"")
        status, headers, body = 200, {}, data
        start = int(re.match(r"bytes=(\d+)-", asked).group(1)) if asked and answer.ranges else None
        if start is not None and start >= len(data):
            status, headers, body = 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        elif start is not None:
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            status, body = 206, data[start:]
        body = body if answer.body is None else answer.body
        if answer.content_range is not None:
            headers["Content-Range"] = answer.content_range
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif answer.length is not None:
            headers["Content-Length"] = len(body) if answer.length == -1 else answer.length
        self._send(answer.status or status, headers | {"Connection": "close"} | answer.headers, body, answer)

    def _send(self, status: int, headers: dict, body: bytes, answer: Answer) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value != "":
                self.send_header(name, str(value))
        self.end_headers()
        part = body if answer.cut is None else body[: answer.cut]
        self.server.sent += len(part)
        try:
            if answer.chunked:
                for i in range(0, len(part), 1000):
                    piece = part[i : i + 1000]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"" if answer.cut is not None else b"0\r\n\r\n")
            else:
                self.wfile.write(part)
            self.wfile.flush()
            time.sleep(answer.stall)
            if answer.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        except OSError:
            pass  # the client has gone


DATA = random.Random(0).randbytes(200_001)
WRONG = bytes(reversed(DATA))
N = len(DATA)
SHA = "sha256:" + hashlib.sha256(DATA).hexdigest()


@contextmanager
def serving(monkeypatch) -> Iterator[FlakyServer]:
    """A server that has `DATA` at /set/a.tar, and a client without proxies, a mirror, or waiting."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "UAD_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    patience(monkeypatch)
    with FlakyServer() as server:
        server.files["/set/a.tar"] = DATA
        yield server
        server.shutdown()


def patience(monkeypatch, tries: int = 3, read: float = 5.0) -> None:
    """Set how often the client asks and how many seconds it waits for bytes."""
    monkeypatch.setattr(transfer, "PATIENCE", transfer.Patience(tries, 0.0, 5.0, read))


def get(server: FlakyServer, store: Path, progress: bool = False, **changes) -> Path:
    """Download a.tar to the store; `changes` to what is known about it."""
    facts = {"file": "a.tar", "urls": (f"{server.address}/set/a.tar",), "digest": SHA} | changes
    return transfer.retrieve(Archive(**facts), store, "fetch it by hand", progress)


def refused(server: FlakyServer, store: Path, *words: str, **changes) -> str:
    """The download fails with one line that has these words and both remedies; nothing has the final name."""
    with pytest.raises(UserError) as caught:
        get(server, store, **changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, "UAD_MIRROR", "fetch it by hand"):
        assert word in message
    assert files(store) <= {"incoming/a.tar.part"}
    return message


def whole(store: Path, path: Path) -> None:
    """The right file is there under its name, and nothing else."""
    assert path == store / "a.tar" and path.read_bytes() == DATA
    assert files(store) == {"a.tar"} and not (store / "incoming").exists()


def files(folder: Path) -> set[str]:
    """The names of all files below the folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def part(store: Path, content: bytes | None = None) -> Path:
    """The partial download, written beforehand if there is content for it."""
    path = store / "incoming" / "a.tar.part"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    return path
