"""A publisher of small benchmarks on this machine, and what their folders have to look like."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flaky_server import FlakyServer, files, serving
from hostile_archives import build, member, tar

from uad_core.datasets.download import fetch
from uad_core.datasets.sources import BENCHMARKS, Archive, Benchmark, RawFile, Tree, _objects_tree
from uad_core.errors import UserError

PLAIN = bytes(range(256)) * 4
COUNTS = {"train/good/*": 2, "test/*/*": 3}


def content(name: str, top: str = "") -> dict[str, bytes]:
    images = ("train/good/0.png", "train/good/1.JPG", "test/good/0.png", "test/bad/0.bmp", "test/bad/1.tif")
    extra = ("license.txt", "ground_truth/bad/0_mask.png", "train/good/.DS_Store", "train/good/Thumbs.db")
    return {f"{top}{name}/{path}": f"{name} {path}".encode() for path in images + extra}


@contextmanager
def publishing(monkeypatch, tmp_path: Path) -> Iterator[FlakyServer]:
    """A server with `toy` (categories one, two), `whole` (one tree), `raw` (one file).

    `hand` has no address, and neither has `objects`, which is laid out like VisA.
    """
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
        objects = _objects_tree("objects", {"one": (2, 1, 2), "two": (2, 1, 2)}, {"table.csv": 1})
        add("objects", objects, categories=("one", "two"), by_hand="ask the authors")
        yield server


def as_published(name: str) -> dict[str, bytes]:
    """The images of `content` as VisA files them."""
    images = [f"Normal/{i}.JPG" for i in range(3)] + [f"Anomaly/{i}.JPG" for i in range(2)]
    return {f"{name}/Data/Images/{image}": image.encode() for image in images}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


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
