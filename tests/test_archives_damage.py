"""Archives that are too large, damaged or none, and a disk that is full: a clear error, no trace left."""

from __future__ import annotations

import errno
import gzip
import lzma
import random
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections import namedtuple
from pathlib import Path

import pytest

from uad_core.datasets import archives
from uad_core.datasets.archives import BadArchive, Limits
from uad_core.errors import UserError

sys.path.append(str(Path(__file__).parent))

from hostile_archives import GOOD, SUFFIXES, build, member, refused, tar, tree, unpack, zipped

NOISE = random.Random(0).randbytes(20_000)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_too_many_members(tmp_path, suffix):
    archive = build(tmp_path, suffix, {f"cat/{i}.png": b"" for i in range(6)})
    refused(archive, "'cat/5.png'", "more than 5 members", limits=Limits(members=5))
    assert len(tree(unpack(archive, Limits(members=6)))) == 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_too_many_bytes(tmp_path, suffix):
    archive = build(tmp_path, suffix, {"a": NOISE, "b": NOISE})
    refused(archive, limits=Limits(total=30_000))
    assert len(tree(unpack(archive, Limits(total=100_000)))) == 2


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_a_bomb(tmp_path, suffix):
    archive = build(tmp_path, suffix, {"bomb": bytes(3 << 20)})
    assert archive.stat().st_size < 10_000
    refused(archive, limits=Limits(ratio=40))  # of 64 kB at least: 2.6 MB
    assert len(tree(unpack(archive, Limits(ratio=60)))) == 1


def test_a_bomb_in_a_header(tmp_path):
    header = member("x", bytes(3 << 20), type=tarfile.XHDTYPE)
    refused(tar(tmp_path / "a.tar.xz", header, member("a")), "decompresses to more", limits=Limits(ratio=40))


def test_a_zip_member_that_declares_less_than_it_holds(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("a", b"x" * 5000), compression=zipfile.ZIP_STORED)
    data = archive.read_bytes()
    archive.write_bytes(data.replace((5000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    refused(archive)


def test_a_zip_member_that_declares_more_than_it_holds(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("a", b"x" * 5000))
    data = archive.read_bytes()
    archive.write_bytes(data.replace((5000).to_bytes(4, "little"), (6000).to_bytes(4, "little")))
    refused(archive, "ends 1,000 bytes early")


def test_a_member_that_declares_more_than_there_is(tmp_path):
    info, data = member("a", b"x" * 600)
    info.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + data)
    refused(tmp_path / "a.tar", "'a'", "makes more than")
    info.size = 100_000
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + data)
    refused(tmp_path / "a.tar", "sound")


def test_a_length_below_zero_neither_hangs_nor_unpacks(tmp_path):
    info, data = member("a", b"")
    info.size = -512
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    start = time.monotonic()
    refused(tmp_path / "a.tar")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_at_any_place(tmp_path, suffix):
    data = build(tmp_path, suffix, {"a": NOISE[:3000], "b": b"y" * 2000, "c": b"z"}).read_bytes()
    archive = tmp_path / f"cut.{suffix}"
    # A plain tar is padded with zeros that nobody misses: its members and the block that ends them count.
    end = len(data) if suffix != "tar" else 3 * 512 + 3072 + 2048 + 512 + 512
    for cut in [0, 1, 5, 100, 511, 512, 513, 512 + 3072, end // 2, end - 1, end - 600]:
        archive.write_bytes(data[: max(0, min(cut, end - 1))])
        refused(archive, "no sound tar or zip archive")


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_a_flipped_bit_anywhere_changes_nothing_or_is_noticed(tmp_path, suffix):
    content = {"a": NOISE[:700], "b": b"y" * 500}
    archive = build(tmp_path, suffix, content)
    data = archive.read_bytes()
    for place in range(0, len(data), 37):
        archive.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            target = unpack(archive)
        except BadArchive:
            continue
        # What no checksum covers are names in a zip and dates.
        assert sorted(tree(target).values()) == sorted(content.values())
        shutil.rmtree(target)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    archive = tar(tmp_path / "a.tar", member("a"), member("b"), member("c"))
    data = bytearray(archive.read_bytes())
    data[1024 + 3] ^= 1
    archive.write_bytes(data)
    refused(archive, "header is damaged")


NO_ARCHIVES = {
    "empty": b"",
    "text": b"<!doctype html><p>not found</p>" * 50,
    "zeros": bytes(2048),
    "a compressed text": gzip.compress(b"hello" * 500),
    "an xz that is no tar": lzma.compress(NOISE[:2000]),
    "PK only": b"PK\3\4",
    "raw deflate": zlib.compress(b"x" * 1000),
}


@pytest.mark.parametrize("data", NO_ARCHIVES.values(), ids=NO_ARCHIVES)
def test_no_archive_at_all(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    refused(tmp_path / "a.tar", "fetch it again")


def test_an_archive_without_members(tmp_path):
    refused(zipped(tmp_path / "a.zip"), "holds no members")
    refused(tar(tmp_path / "a.tar"), "holds no members")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(source, out, size):
        out.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = build(tmp_path, "tar", GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_copy", full)
        with pytest.raises(UserError, match="disk is full: about 10,240 bytes are needed, [0-9,]+ bytes are free"):
            unpack(archive)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(10))
    with pytest.raises(UserError, match="10 bytes are free"):
        unpack(archive)


def test_what_the_machine_refuses_is_not_blamed_on_the_archive(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(archives, "_copy", denied)
    with pytest.raises(PermissionError):
        unpack(build(tmp_path, "tar", GOOD))
    assert list((tmp_path / "out").iterdir()) == []
