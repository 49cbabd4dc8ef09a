"""Ask every address of a published data set whether it still answers with the file: the weekly check.

Of each file only the first byte is asked for. Exit status 1 if an address is dead or its file has another size than the
published one.

    python tools/data_addresses.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import requests

from uad_core.datasets.sources import BENCHMARKS, Archive

__all__ = ["archives", "fault", "main"]

PATIENCE = (10, 60)  # seconds to connect, to answer
ASK = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}  # one byte, and sizes as they are on the disk


def archives() -> Iterator[tuple[str, Archive]]:
    """Each file that `uad data` may fetch, with the name of its data set; a file that several pieces share once."""
    seen = set()
    for benchmark in BENCHMARKS.values():
        for archive in (*(piece.archive for piece in benchmark.pieces), benchmark.whole):
            if archive is not None and archive.urls and archive.urls not in seen:
                seen.add(archive.urls)
                yield benchmark.name, archive


def fault(url: str, archive: Archive) -> str | None:
    """Say what is wrong with an address, None if it answers with the file."""
    try:
        with requests.get(url, headers=ASK, stream=True, timeout=PATIENCE) as answer:
            answer.raise_for_status()
            kind, size = answer.headers.get("Content-Type", ""), _size(answer)
    except requests.RequestException as error:
        return str(error)
    if "html" in kind:
        return "answers with a web page"
    if archive.size is not None and size not in (None, archive.size):
        return f"has {size:,} bytes, {archive.size:,} were published"
    return None


def main() -> int:
    """Print one line for each address; return the exit status."""
    dead = 0
    for name, archive in archives():
        for url in archive.urls:
            problem = fault(url, archive)
            dead += problem is not None
            print(f"{name}: {url}: {problem or 'answers'}", flush=True)
    return int(dead > 0)


def _size(answer: requests.Response) -> int | None:
    """The size of the whole file, by the header of a part or of the whole."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
    return int(total) if total.isdigit() else None


if __name__ == "__main__":
    sys.exit(main())
