"""Unpack tar and zip archives that nobody has to trust.

Members are written by this module, never by `tarfile` or `zipfile`: only ordinary files and folders, under relative
names, with the permissions of new files (publishers ship read-only ones), into a temporary folder beside the target.
The caller renames what it wants out of there; whatever happens, the temporary folder is removed.

Neither tarfile's `data` filter nor pooch's `Untar` and `Unzip` replace this. The filter is for tar alone and sees one
header at a time, so it limits neither number nor size of the members, nor what the decompressor makes of headers. It
lets through what is refused here: links within the folder, sparse files, a second member of the same name (which
overwrites the first), `a/../b`; it makes a name with a leading slash relative, and drops setuid without a word. Pooch
extracts all that is there without limits, and below Python 3.12 without the filter.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from tqdm.auto import tqdm

from uad_core.errors import UserError

__all__ = ["ARCHIVE_SUFFIXES", "BadArchive", "Limits", "disk_room", "move_into_place", "unpacked"]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")

CHUNK = 1 << 18
LONGEST_PART, LONGEST_NAME, DEEPEST = 255, 1024, 32
# An archive this small may unpack to more than the ratio: headers and empty masks shrink to nothing.
SMALL = 1 << 16

_OPENERS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\xfd7zXZ\0": lzma.open,
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
}
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error,
    EOFError, RuntimeError, ValueError, OverflowError,
)  # fmt: skip


class BadArchive(UserError):
    """The archive itself is at fault: damaged, hostile, or not what was published."""


class _Refused(Exception):
    """Why a member is not written."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to: number of members, bytes, and bytes per byte of the archive."""

    members: int = 200_000
    total: int = 50 << 30
    ratio: int = 200

    def bytes_for(self, archive: Path) -> int:
        """Return how many bytes this archive may hold."""
        return min(self.total, self.ratio * max(SMALL, archive.stat().st_size))


@dataclass(frozen=True)
class _Member:
    name: str
    is_dir: bool
    size: int
    refusal: str | None
    open: Callable[[], IO[bytes]]


@contextmanager
def unpacked(archive: Path, target: Path, limits: Limits | None = None, progress: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that holds everything in `archive`; it is removed at the end.

    Args:
        archive: tar (plain, gz, xz, bz2) or zip, told apart by content.
        target: where the caller will rename a folder to; same file system as the temporary one.

    Raises:
        BadArchive: if it is damaged, exceeds `limits`, or has a member that is no ordinary file or folder inside it
            (absolute, `..`, any link, device, pipe, setuid or setgid file, duplicate, unusable name). Nothing is left.
        UserError: if the disk is full.
    """
    limits = limits or Limits()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not `new_folder`: what becomes of the content is several folders, or one deep in it, and a name that is known to
    # end in .unpacking lets the next process clear what a killed one left.
    name = {"prefix": f".{target.name}.", "suffix": ".unpacking", "dir": target.parent}
    with tempfile.TemporaryDirectory(**name, ignore_cleanup_errors=True) as outer:
        # A folder in the temporary one, because that one is closed to other users and the result need not be.
        inside = Path(outer) / "content"
        inside.mkdir()
        with disk_room(target.parent, archive.stat().st_size):
            _unpack(archive, inside, limits, progress)
        yield inside


def move_into_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`, which must not exist or be empty. Raises `UserError` otherwise."""
    # Not `new_folder`: that one replaces what is there, which here may be a person's own data.
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target}: the folder is in the way; move it elsewhere or delete it, then try again")
    if target.is_dir() and not target.is_symlink():
        target.rmdir()  # Windows renames nothing onto a folder
    os.replace(folder, target)


@contextmanager
def disk_room(folder: Path, needed: int) -> Iterator[None]:
    """Raise `UserError` if `folder` has no room for `needed` bytes, now or when the disk fills up inside the block."""
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder, needed)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(folder, needed) from error


def _full(folder: Path, needed: int) -> UserError:
    free = shutil.disk_usage(folder).free
    wanted = f"about {needed:,} bytes are needed" if needed else "more room is needed"
    return UserError(
        f"{folder}: the disk is full: {wanted}, {free:,} bytes are free; "
        "make room, or choose a folder on another disk with --root or UAD_DATA"
    )


def _unpack(archive: Path, inside: Path, limits: Limits, progress: bool) -> None:
    """Write every member of the archive below `inside`."""
    most = limits.bytes_for(archive)
    with archive.open("rb") as file:
        magic = file.read(6)
    members = _zip_members(archive) if magic[:2] == b"PK" else _tar_members(archive, magic, most)
    count = written = 0
    try:
        bar = tqdm(unit="B", unit_scale=True, desc=f"unpack {archive.name}", disable=not progress)
        with closing(members), bar:
            for count, member in enumerate(members, 1):
                if count > limits.members:
                    raise _Refused(f"is one of more than {limits.members:,} members")
                written += member.size
                if written > most:
                    raise _Refused(f"makes more than {most:,} bytes of an archive of {archive.stat().st_size:,}")
                _write(member, inside)
                bar.update(member.size)
    except _Refused as refusal:
        raise BadArchive(
            f"{archive}: member {member.name[:100]!r} {refusal}; nothing was unpacked. "
            "Do not use this archive: fetch it again from its publisher"
        ) from None
    except _DAMAGE + (OSError,) as error:
        # Python's readers of damaged files raise OSError without a number, or for seeking to nowhere; any other number
        # comes from the machine.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(archive, str(error) or type(error).__name__) from error
    if not count:
        raise _damaged(archive, "it holds no members")


def _damaged(archive: Path, detail: str) -> BadArchive:
    detail = " ".join(detail.split())[:120]
    return BadArchive(
        f"{archive}: no sound tar or zip archive ({detail}); nothing was unpacked. Delete it and fetch it again"
    )


def _write(member: _Member, inside: Path) -> None:
    """Write one member below `inside`, or raise `_Refused`."""
    parts = _parts(member.name)
    if member.refusal:
        raise _Refused(member.refusal)
    if not parts and not member.is_dir:
        raise _Refused("has no name")
    target = inside.joinpath(*parts)
    try:
        (target if member.is_dir else target.parent).mkdir(parents=True, exist_ok=True)
        if not member.is_dir:
            # "x" also refuses names that only this file system takes for the same.
            with target.open("xb") as out, member.open() as source:
                _copy(source, out, member.size)
    except (FileExistsError, NotADirectoryError):
        raise _Refused("has the name of another member") from None


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> None:
    """Copy `size` bytes: never more, and less is an error; `shutil.copyfileobj` takes whatever there is."""
    left = size
    while left and (chunk := source.read(min(CHUNK, left))):
        left -= len(chunk)
        out.write(chunk)
    if left:
        raise EOFError(f"a member ends {left:,} bytes early")


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a relative name, or raise `_Refused`: for tar and for zip, which has no filter."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _Refused("has an absolute path")
    if "\\" in name or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise _Refused("has a character in its name that no file should have")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _Refused("leads out of the folder with '..'")
    longest = max((len(part.encode()) for part in parts), default=0)
    if longest > LONGEST_PART or len(name.encode()) > LONGEST_NAME or len(parts) > DEEPEST:
        raise _Refused("has a name that is too long")
    return parts


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            # The name as stored: zipfile's own stops at a zero byte.
            name = info.orig_filename
            is_dir = name.endswith("/")
            yield _Member(name, is_dir, info.file_size, _zip_refusal(info, is_dir), partial(file.open, info))


def _zip_refusal(info: zipfile.ZipInfo, is_dir: bool) -> str | None:
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "is a link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFDIR if is_dir else stat.S_IFREG):
        return "is a device, a pipe or another special file"
    return _mode_refusal(mode, is_dir)


def _tar_members(archive: Path, magic: bytes, most: int) -> Iterator[_Member]:
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), partial(open, mode="rb"))
    # "r|" only ever reads on: headers with lengths below zero cannot send it back and forth for ever. Not "r|*", which
    # decompresses by itself: out of reach of `_Bounded`, and without a look at the sum at the end of a gzip file.
    with opener(archive) as plain, tarfile.open(fileobj=_Bounded(plain, most), mode="r|") as tar:
        for info in tar:
            yield _Member(info.name, info.isdir(), info.size, _tar_refusal(info), partial(tar.extractfile, info))
        # tarfile takes an archive that breaks off between members, or a damaged header, for the end. A true end is
        # followed by zeros; reading on to the last byte also lets the decompressor check its sum.
        rest = tar.fileobj.read(CHUNK)
        if not rest:
            raise EOFError("it breaks off")
        while rest:
            if rest.strip(b"\0"):
                raise EOFError("a header is damaged")
            rest = tar.fileobj.read(CHUNK)


def _tar_refusal(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return f"is a link to {info.linkname[:100]!r}"
    if info.isdir():
        return None
    # Of all that is refused here, tarfile's filter does the same only for this condition, and lets sparse files pass.
    if not info.isreg() or info.issparse():
        return "is a device, a pipe or another special file"
    return _mode_refusal(info.mode, is_dir=False)


def _mode_refusal(mode: int, is_dir: bool) -> str | None:
    # On folders the bit is an innocent habit of shared file systems, and no permission is taken over anyway.
    return "is setuid or setgid" if mode & (stat.S_ISUID | stat.S_ISGID) and not is_dir else None


class _Bounded:
    """A stream that refuses to deliver more than `most` bytes: not only bodies of members can be bombs."""

    def __init__(self, stream: IO[bytes], most: int):
        self.stream, self.left = stream, most

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise EOFError("it decompresses to more than an archive of its size should")
        return data
