"""What is stated about the benchmarks: well formed, in agreement with the catalogue, true of data that are here."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from uad_core.datasets import transfer
from uad_core.datasets.catalogue import CATALOGUE
from uad_core.datasets.download import fetch
from uad_core.datasets.sources import BENCHMARKS, RawFile, Tree, find
from uad_core.errors import UserError

ARCHIVES = [
    archive
    for benchmark in BENCHMARKS.values()
    for archive in (*(piece.archive for piece in benchmark.pieces), benchmark.whole)
    if archive
]
PUBLISHED = {info.name: info.counts for info in CATALOGUE}
HERE = Path(os.environ.get("UAD_DATA", "no such folder"))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.file)
def test_archives_are_well_formed(archive):
    assert archive.digest is None or re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", archive.digest)
    assert re.fullmatch(r"[\w.-]+", archive.file) and archive.file.endswith((".zip", ".tar", ".gz", ".xz"))
    for url in archive.urls:
        assert url.startswith("https://") or archive.digest, "an unsafe address needs a hash"


def test_benchmarks_are_well_formed():
    digests = [archive.digest for archive in ARCHIVES if archive.digest]
    assert len(set(digests)) == len(digests)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.page.startswith("http") and benchmark.licence
        assert all(piece.folder.split("/")[0] == name for piece in benchmark.pieces)
        can_be_fetched = all(piece.archive and piece.archive.urls for piece in benchmark.pieces)
        assert can_be_fetched != bool(benchmark.by_hand)


def test_pieces_of_a_category():
    assert [piece.folder for piece in find("mvtec_ad").pieces_of("grid")] == ["mvtec_ad/grid"]
    assert len(find("mvtec_ad").pieces_of(None)) == 15 and len(find("mpdd").pieces) == 6
    assert find("visa").pieces_of("pcb1") == find("visa").pieces
    assert find("mnist").pieces_of("3") == find("mnist").pieces
    with pytest.raises(UserError, match="--category 04: btad has no such category; choose one of 01, 02, 03"):
        find("btad").pieces_of("04")
    with pytest.raises(UserError, match="mvtec: no benchmark"):
        find("mvtec")


def tree_counts(name: str) -> dict[str, int]:
    trees = [piece for piece in find(name).pieces if isinstance(piece, Tree)]
    return {f"{tree.name}/{pattern}": count for tree in trees for pattern, count in tree.counts.items()}


@pytest.mark.parametrize("name", ["mvtec_ad", "mpdd"])
def test_counts_agree_with_the_catalogue_by_split(name):
    counts = tree_counts(name)
    for category, published in PUBLISHED[name].items():
        assert counts[f"{category}/train/good/*"] == published.train
        assert counts[f"{category}/test/*/*"] == published.test
        if name == "mpdd":
            assert counts[f"{category}/test/good/*"] == published.test - published.anomalous


@pytest.mark.parametrize("name", ["visa", "pcb_bank"])
def test_counts_agree_with_the_catalogue_by_object(name):
    counts = tree_counts(name)
    for category, published in PUBLISHED[name].items():
        assert counts[f"{name}/{category}/Data/Images/Anomaly/*"] == published.anomalous
        normal = published.train + published.test - published.anomalous
        assert counts[f"{name}/{category}/Data/Images/Normal/*"] == normal
        (tree,) = find(name).pieces
        assert tree.rearranged[category] == {
            f"{category}/train/good/*": published.train,
            f"{category}/test/good/*": published.test - published.anomalous,
            f"{category}/test/*/*": published.test,
        }


def test_counts_agree_with_the_catalogue_in_sum():
    btad, counts = PUBLISHED["btad"].values(), tree_counts("btad")
    assert counts["btad/*/train/ok/*"] == sum(c.train for c in btad)
    assert counts["btad/*/test/*/*"] == sum(c.test for c in btad)
    (mtd,) = PUBLISHED["mtd"].values()
    free = tree_counts("mtd")["mtd/MT_Free/Imgs/*.jpg"]
    assert sum(tree_counts("mtd").values()) == mtd.train + mtd.test == 1344
    assert free == mtd.train + mtd.test - mtd.anomalous


def test_raw_files_have_the_length_of_their_format():
    sizes = {piece.archive.file: piece.plain_size for piece in find("mnist").pieces}
    assert sizes["train-images-idx3-ubyte.gz"] == 4 * 4 + 60_000 * 28 * 28
    assert sizes["t10k-labels-idx1-ubyte.gz"] == 2 * 4 + 10_000
    assert [p.plain_size for p in find("fashion_mnist").pieces] == list(sizes.values())
    assert all(isinstance(piece, RawFile) for piece in find("fashion_mnist").pieces)


def test_addresses_without_and_with_a_mirror(monkeypatch):
    monkeypatch.delenv("UAD_MIRROR", raising=False)
    (bottle,) = find("mvtec_ad").pieces_of("bottle")
    assert transfer.addresses(bottle.archive, "mvtec_ad") == bottle.archive.urls
    monkeypatch.setenv("UAD_MIRROR", "https://mirror.example/data/")
    assert transfer.addresses(bottle.archive, "mvtec_ad") == (
        "https://mirror.example/data/bottle.tar.xz", "https://mirror.example/data/mvtec_ad/bottle.tar.xz",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "category", "folder"),
    [("mvtec_ad", "bottle", "mvtec_ad/bottle"), ("mtd", None, "mtd"), ("fashion_mnist", "3", "fashion_mnist")],
)
def test_real_data_are_complete_without_network(monkeypatch, name, category, folder):
    if not (HERE / folder).is_dir():
        pytest.skip(f"no {folder} in $UAD_DATA")

    def no_network(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert fetch(name, category, HERE, progress=False) == HERE / folder
