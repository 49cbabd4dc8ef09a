"""Archives as tests need them, and what has to happen to those that nobody should unpack."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from uad_core.datasets.archives import BadArchive, Limits, move_into_place, unpacked

GOOD = {"cat/train/good/000.png": b"a" * 1000, "cat/test/good/000.png": b"", "cat/license.txt": b"CC"}
SUFFIXES = ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"]


def member(name: str, data: bytes = b"x", **facts) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as file:
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def build(folder: Path, suffix: str, content: dict[str, bytes]) -> Path:
    path = folder / f"a.{suffix}"
    if suffix == "zip":
        return zipped(path, *content.items())
    return tar(path, *(member(name, data) for name, data in content.items()))


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unpack(archive: Path, limits: Limits | None = None) -> Path:
    target = archive.parent / "out" / "set"
    with unpacked(archive, target, limits) as inside:
        move_into_place(inside, target)
    return target


def refused(archive: Path, *words: str, limits: Limits | None = None) -> None:
    """Nothing is unpacked, nothing is left, and the one-line message has these words."""
    before = set(archive.parent.rglob("*"))
    with pytest.raises(BadArchive) as caught:
        unpack(archive, limits)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    for word in (str(archive), "nothing was unpacked", *words):
        assert word in message
    assert set(archive.parent.rglob("*")) - before <= {archive.parent / "out"}
    assert list((archive.parent / "out").iterdir()) == []
