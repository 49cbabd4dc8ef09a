"""Archives that want to write elsewhere or to bring more than files: each refused by name, no trace left."""

from __future__ import annotations

import stat
import sys
import tarfile
from pathlib import Path

import pytest

from uad_core.datasets.archives import move_into_place
from uad_core.errors import UserError

sys.path.append(str(Path(__file__).parent))

from hostile_archives import GOOD, SUFFIXES, build, entry, member, refused, tar, tree, unpack, zipped


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_good_archives_of_every_kind(tmp_path, suffix):
    archive = build(tmp_path, suffix, GOOD)
    archive = archive.rename(tmp_path / "misnamed.bin")
    assert tree(unpack(archive)) == GOOD
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["set"]


def test_folders_dots_and_repeated_folders(tmp_path):
    folder = {"type": tarfile.DIRTYPE, "mode": 0o2755}
    archive = tar(
        tmp_path / "a.tar", member("./", b"", **folder), member("./cat/", b"", **folder), member("cat", b"", **folder),
        member("./cat//empty", b"", **folder), member("./cat/./a.png"),
    )  # fmt: skip
    target = unpack(archive)
    assert tree(target) == {"cat/a.png": b"x"} and (target / "cat" / "empty").is_dir()


def test_read_only_archives_become_writable_and_unpack_twice(tmp_path):
    read_only = [member("cat", b"", type=tarfile.DIRTYPE, mode=0o555), member("cat/a.png", mode=0o444)]
    archive = tar(tmp_path / "a.tar.xz", *read_only)
    for _ in range(2):
        target = unpack(archive)
        file, folder = (target / name for name in ("cat/a.png", "cat"))
        assert stat.S_IMODE(file.stat().st_mode) & 0o711 == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) & 0o700 == 0o700
        # The set itself is as open to others as any new folder.
        (tmp_path / "new").mkdir(exist_ok=True)
        assert target.stat().st_mode == (tmp_path / "new").stat().st_mode
        file.unlink()
        folder.rmdir()


BAD_NAMES = {
    "absolute": ("/evil-member", "absolute path"),
    "drive": ("C:evil", "absolute path"),
    "up": ("../evil", "'..'"),
    "up inside": ("cat/../../evil", "'..'"),
    "up and back": ("cat/../evil", "'..'"),
    "backslash": ("..\\evil", "character"),
    "newline": ("cat/a\nb", "character"),
    "long part": ("n" * 256, "too long"),
    "long part in bytes": ("é" * 128, "too long"),
    "long name": ("/".join(["n" * 200] * 6), "too long"),
    "deep": ("/".join("d" * 33), "too long"),
}


@pytest.mark.parametrize("suffix", ["tar", "zip"])
@pytest.mark.parametrize(("name", "why"), BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_that_lead_elsewhere(tmp_path, name, why, suffix):
    refused(build(tmp_path, suffix, {"cat/a.png": b"good", name: b"evil"}), repr(name[:100]), why)
    assert not Path("/evil-member").exists() and not (tmp_path / "evil").exists()


def test_a_folder_that_leads_elsewhere(tmp_path):
    refused(tar(tmp_path / "a.tar", member("../evil", b"", type=tarfile.DIRTYPE)), "'..'")
    refused(zipped(tmp_path / "a.zip", ("../evil/", b"")), "'..'")
    assert not (tmp_path / "evil").exists()


def test_a_setgid_folder_is_an_innocent_habit(tmp_path):
    archive = zipped(tmp_path / "a.zip", (entry("cat/", stat.S_IFDIR | 0o2755), b""), ("cat/a.png", b"x"))
    assert tree(unpack(archive)) == {"cat/a.png": b"x"}


def test_a_zero_byte_in_a_name(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("cat/a.pngX.exe", b"x"))
    archive.write_bytes(archive.read_bytes().replace(b"pngX", b"png\0"))
    refused(archive, "character")


def test_a_file_without_a_name(tmp_path):
    refused(tar(tmp_path / "a.tar", member("./.")), "no name")


SPECIAL = {
    "symbolic link inside": ({"type": tarfile.SYMTYPE, "linkname": "a.png"}, "is a link to 'a.png'"),
    "symbolic link outside": ({"type": tarfile.SYMTYPE, "linkname": "../../etc"}, "is a link to '../../etc'"),
    "hard link": ({"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "is a link to '/etc/passwd'"),
    "character device": ({"type": tarfile.CHRTYPE}, "special file"),
    "block device": ({"type": tarfile.BLKTYPE}, "special file"),
    "pipe": ({"type": tarfile.FIFOTYPE}, "special file"),
    "unknown type": ({"type": b"Q"}, "special file"),
    "setuid": ({"mode": 0o4755}, "setuid"),
    "setgid": ({"mode": 0o2755}, "setgid"),
}


@pytest.mark.parametrize(("facts", "why"), SPECIAL.values(), ids=SPECIAL)
def test_tar_members_that_are_no_ordinary_files(tmp_path, facts, why):
    refused(tar(tmp_path / "a.tar", member("cat/a.png"), member("cat/evil", b"", **facts)), "'cat/evil'", why)


def test_a_link_cannot_be_written_through(tmp_path):
    (tmp_path / "outside").mkdir()
    link = member("cat", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))
    refused(tar(tmp_path / "a.tar", link, member("cat/a.png")), "is a link")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "why"),
    [(stat.S_IFLNK | 0o777, "is a link"), (stat.S_IFIFO, "special file"), (stat.S_IFCHR, "special file"),
     (stat.S_IFDIR, "special file"), (stat.S_IFREG | 0o4755, "setuid")],
)  # fmt: skip
def test_zip_members_that_are_no_ordinary_files(tmp_path, mode, why):
    refused(zipped(tmp_path / "a.zip", (entry("cat/evil", mode), b"/etc")), "'cat/evil'", why)


def test_an_encrypted_member(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("cat/a.png", b"x"))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "encrypted")


def test_a_sparse_member(tmp_path):
    # Old GNU format: one extent of 512 bytes at offset 0, of a file that claims a megabyte.
    info, data = member("cat/evil", b"x" * 512, type=tarfile.GNUTYPE_SPARSE)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"%011o\0" % (1 << 20)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + data + bytes(1024))
    refused(tmp_path / "a.tar", "special file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", ["tar", "zip"])
@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a")], ids=str)
def test_names_that_collide(tmp_path, suffix, names):
    pairs = [(name, b"x") for name in names]
    if suffix == "zip":
        refused(zipped(tmp_path / "a.zip", *pairs), "name of another member")
    else:
        refused(tar(tmp_path / "a.tar", *(member(*pair) for pair in pairs)), "name of another member")


def test_moving_into_place_replaces_nothing_but_an_empty_folder(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
    (new / "a").write_text("new")
    move_into_place(new, old)
    assert tree(old) == {"a": b"new"} and not new.exists()
    new.mkdir()
    with pytest.raises(UserError, match="in the way"):
        move_into_place(new, old)
    assert tree(old) == {"a": b"new"} and new.is_dir()
