"""Bring one archive over HTTP: resumable, checked, and under its final name only when it is right.

Pooch checks the hash and names the file; `Resume` is the downloader it calls. The bytes collect in a `.part` file that
survives any interruption. It only ever holds a beginning of the archive, and the hash decides whether it is the right
one: where it is not, and the file was put together from several answers, one fresh start follows.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pooch
import requests
import urllib3
from tqdm.auto import tqdm

from uad_core.datasets.archives import disk_room
from uad_core.datasets.sources import Archive
from uad_core.errors import UserError

__all__ = ["MIRROR", "addresses", "retrieve", "wrong"]

MIRROR = "UAD_MIRROR"

CHUNK = 1 << 16
STEP = 1 << 20
# No answer of unknown length may be larger than this.
LARGEST = 20 << 30


class Patience(NamedTuple):
    """How often and how long to wait; `tries` counts requests in a row that bring less than `STEP` new bytes."""

    tries: int = 3
    wait: float = 1.0
    connect: float = 10.0
    read: float = 60.0


PATIENCE = Patience()


class Unavailable(Exception):
    """Why an address does not deliver; asking it again would not help."""


class _Again(Exception):
    """Why one request did not do; the next may."""


def retrieve(archive: Archive, store: Path, by_hand: str, progress: bool = True) -> Path:
    """Download `archive` to `store`, going on where an earlier attempt broke off; return its path.

    Args:
        archive: what to bring.
        store: folder that this process alone may use now; partial downloads live in `store/incoming`.
        by_hand: what a person can do instead, for the error.

    Raises:
        UserError: if no address delivers the right bytes, or the disk is full. Then nothing has the final name.
    """
    incoming = store / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    part = incoming / f"{archive.file}.part"
    for stray in incoming.iterdir():
        if stray.suffix != ".part":
            stray.unlink()
    reasons = []
    try:
        for url in addresses(archive, store.name):
            try:
                path = _from(url, archive, part, progress)
            except Unavailable as reason:
                reasons.append(f"{url}: {reason}")
                continue
            # Pooch has written this file beside and checked it: `replacing` would only do the same rename.
            os.replace(path, store / archive.file)
            part.unlink()
            return store / archive.file  # verified: nothing else ever gets this name
    finally:
        if archive.digest is None:
            part.unlink(missing_ok=True)
        with suppress(OSError):
            incoming.rmdir()  # it stays if a part is in it
    kept = f" {_length(part):,} bytes are kept and the next attempt goes on from there." if _length(part) else ""
    raise UserError(
        f"{archive.file} could not be downloaded ({'; '.join(reasons)}).{kept} Try again later, "
        f"set {MIRROR} to the base address of a mirror that has {archive.file}, or {by_hand}"
    )


def addresses(archive: Archive, dataset: str) -> tuple[str, ...]:
    """Return the addresses to try in order: the publisher's, or the mirror's if `UAD_MIRROR` is set.

    Raises:
        UserError: if the variable holds no http(s) address.
    """
    mirror = os.environ.get(MIRROR, "").strip().rstrip("/")
    if not mirror:
        return archive.urls
    if not re.match(r"https?://", mirror):
        raise UserError(f"{MIRROR}={mirror}: no web address; give one such as https://example.org/data")
    # Two benchmarks may use the same file name; the folder tells them apart.
    return f"{mirror}/{archive.file}", f"{mirror}/{dataset}/{archive.file}"


def wrong(path: Path, archive: Archive) -> str | None:
    """Say what distinguishes the file from the published archive, None if nothing does."""
    size = path.stat().st_size
    if archive.size not in (None, size):
        return f"has {size:,} bytes, {archive.size:,} were published"
    if archive.digest is None:
        return None
    algorithm, expected = archive.digest.split(":")
    got = pooch.file_hash(str(path), alg=algorithm)
    return None if got == expected else f"has {algorithm} {got}, expected {expected}"


def _from(url: str, archive: Archive, part: Path, progress: bool) -> Path:
    """Download from one address and return the checked file, still in the folder of the part; or `Unavailable`."""
    # Twice its size: to download, and to unpack beside it what hardly ever shrinks further.
    needed = max(0, 2 * (archive.size or archive.about or 0) - _length(part))
    for last in (False, True):
        resume = Resume(archive, part, progress)
        try:
            with disk_room(part.parent, needed), _quiet():
                return Path(pooch.retrieve(url, archive.digest, archive.file, part.parent, downloader=resume))
        except ValueError:
            # Pooch raises it for a wrong hash, and has removed its own name of the file; the part is another.
            reason = wrong(part, archive)
            part.unlink()
            if last or not resume.patched:
                break
    raise Unavailable(f"the file {reason}; it was deleted")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pooch from reporting what the progress bar shows, or advising about hashes."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)


class Resume:
    """A downloader for pooch that goes on with a `.part` file by HTTP ranges.

    Pooch's `HTTPDownloader` asks once for the whole file and writes every body that is no HTTP error from byte 0 on,
    without a look at Content-Range, Content-Type or the published size; it decodes what is labelled as compressed, and
    the file it writes to is deleted after an error. `retry_if_failed`, which `pooch.retrieve` lacks, begins again at
    the first byte. Retries of urllib3 end where a body begins, so a cut would still need the loop below.

    An archive without a published hash starts anew each time: nothing could tell whether old and new bytes belong
    together.

    Attributes:
        patched: whether the part was put together from more than one answer.
    """

    def __init__(self, archive: Archive, part: Path, progress: bool):
        self.archive, self.part, self.progress = archive, part, progress
        self.ranges = True
        self.patched = False

    def __call__(self, url: str, output_file: str, _pooch: object = None) -> None:
        """Complete the part and give it to pooch as `output_file`. Raises `Unavailable`."""
        with requests.Session() as session:
            session.max_redirects = 5
            self._complete(session, url)
        # A second name, so that an interruption while the hash is computed costs nothing.
        os.unlink(output_file)
        try:
            os.link(self.part, output_file)
        except OSError:
            shutil.copyfile(self.part, output_file)

    def _complete(self, session: requests.Session, url: str) -> None:
        tries, reached = PATIENCE.tries, _length(self.part)
        while True:
            try:
                if self._ask(session, url):
                    return
                reason = f"the connection was cut after {_length(self.part):,} bytes"
            except (_Again, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = _reason(error)
            tries -= 1
            # Only ground never reached before earns new tries, so the number of requests is bounded.
            if _length(self.part) >= reached + STEP:
                tries, reached = PATIENCE.tries, _length(self.part)
            if tries <= 0:
                raise Unavailable(reason)
            time.sleep(PATIENCE.wait * 2 ** (PATIENCE.tries - tries - 1))

    def _ask(self, session: requests.Session, url: str) -> bool:
        """Make one request, write what comes, and tell whether the part is complete."""
        if self.archive.digest is None:
            self.part.unlink(missing_ok=True)
        have = _length(self.part)
        if have and have == self.archive.size:
            self.patched = True
            return True
        headers = {"Accept-Encoding": "identity"}
        if have and self.ranges:
            headers["Range"] = f"bytes={have}-"
        timeout = (PATIENCE.connect, PATIENCE.read)
        with session.get(url, headers=headers, stream=True, timeout=timeout) as answer:
            if answer.status_code == 416 and have:
                # Nothing behind what is here: it is complete, or something else. The hash knows.
                self.patched = True
                return True
            start, total = self._announced(answer, have)
            return self._write(answer, start, total)

    def _announced(self, answer: requests.Response, have: int) -> tuple[int, int | None]:
        """Return at which byte the answer starts and how long the whole file is, as far as it says so."""
        status = answer.status_code
        if status == 429 or status >= 500:
            raise _Again(f"HTTP {status} {answer.reason}")
        if status not in (200, 206):
            raise Unavailable(f"HTTP {status} {answer.reason}")
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise Unavailable("it answers with a web page, not with the archive")
        length = answer.headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdecimal() else None
        if status == 206:
            start, whole = _content_range(answer)
            if start != have:
                self.ranges = False
                raise _Again("it answers with another range than the one asked for")
            total = whole if whole is not None or total is None else have + total
        if total is not None and total != (self.archive.size or total):
            raise Unavailable(f"it offers {total:,} bytes, {self.archive.size:,} were published")
        self.patched = start > 0
        return start, total

    def _write(self, answer: requests.Response, start: int, total: int | None) -> bool:
        """Write the body from byte `start` on, over what is there, and tell whether the file is complete."""
        total = self.archive.size or total
        most = LARGEST if total is None else total
        # urllib3 would raise at a cut and drop what it holds; the length is checked below.
        answer.raw.enforce_content_length = False
        bar = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=self.archive.file, disable=not self.progress
        )
        # Not cut to `start`: if this answer breaks off early, the bytes behind it are still good.
        with open(self.part, "r+b" if self.part.exists() else "wb") as file, bar:
            file.seek(start)
            # Undecoded: a server that labels a .tar.gz as compressed transfer must not get it unpacked.
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                if file.tell() + len(chunk) > most:
                    raise Unavailable(f"it sends more than {most:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
            end = file.tell()
            complete = total in (None, end)
            if complete:
                file.truncate()
        return complete


def _content_range(answer: requests.Response) -> tuple[int | None, int | None]:
    """Return first byte and whole length of "bytes 5-9/10", each None where it is missing."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    first, total = match.groups() if match else (None, None)
    return (int(first) if first else None), (int(total) if total and total != "*" else None)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """Say in a few words what went wrong on the way."""
    text = " ".join(str(error).split())
    if isinstance(error, _Again):
        return text
    known = {
        "getaddrinfo|[Nn]ame or service|[Nn]ame resolution|nodename nor": "its host name is unknown",
        "[Cc]onnection refused|actively refused": "the connection was refused",
        "connect timeout=": f"no answer within {PATIENCE.connect:g} s",
        "[Rr]ead timed out": f"nothing came for {PATIENCE.read:g} s",
        "redirects": "it redirects without end",
        "certificate": "its certificate cannot be verified",
        "reset by peer|IncompleteRead|Connection broken|without response": "the connection was cut",
    }
    return next((short for pattern, short in known.items() if re.search(pattern, text)), text[:120])
