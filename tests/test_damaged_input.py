"""Damaged input is refused with one exact line that names the file, and leaves no trace."""

from __future__ import annotations

import builtins
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uad_core import datasets
from uad_core.errors import UserError

sys.path.append(str(Path(__file__).parent))

from odd_files import (  # noqa: E402
    CRACK,
    HEIGHT,
    MASK,
    WIDTH,
    blob,
    cut,
    load,
    picture,
    raw_png,
    read_all,
    remove,
    rewrite,
    save,
    sound_category,
    tree,
)  # fmt: skip


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return sound_category(tmp_path)


@dataclass(frozen=True)
class Refused:
    name: str
    damage: Callable[[Path], object]
    message: str  # with DIR for the category; "(*)" for the words of the decoder
    when: str = "load"


def _flat_mask(folder: Path) -> None:
    (folder / MASK).rename(folder / "ground_truth/000.png")


def _broken_link(folder: Path) -> None:
    (folder / CRACK).unlink()
    (folder / CRACK).symlink_to(folder / "nowhere.png")


def _pipe(folder: Path) -> None:
    (folder / CRACK).unlink()
    os.mkfifo(folder / CRACK)


def _flip(folder: Path) -> None:
    data = bytearray((folder / CRACK).read_bytes())
    start = data.index(b"IDAT") + 12
    data[start : start + 8] = bytes(8)
    (folder / CRACK).write_bytes(bytes(data))


def _truncated(folder: Path, name: str, suffix: str = ".png") -> None:
    if suffix != ".png":
        save(folder / name, np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    cut(rewrite(folder / name, suffix), 0.8)


def _newline(folder: Path) -> None:
    (folder / "test/good/a\nb.png").write_bytes(b"")


def _empty(folder: Path) -> None:
    remove(folder, "*/*/*")
    remove(folder, "*/*")
    remove(folder, "*")


BLOCKED = "is no file (missing, a broken link, a folder, a device): mend or remove it"
GONE = "replace or remove the file"
OR_ELSE = (
    "(black if nothing is marked), move the image to test/good if it is good, or remove ground_truth to skip pixel "
    "metrics"
)
REFUSED = [
    Refused("zero bytes", lambda d: (d / CRACK).write_bytes(b""), f"DIR/{CRACK} is empty (0 bytes): {GONE}"),
    Refused(
        "text named .png", lambda d: (d / CRACK).write_text("hello"),
        f"DIR/{CRACK} is not a PNG, JPEG, BMP or TIFF image: {GONE}"),
    Refused(
        "gif named .png", lambda d: save(d / CRACK, Image.fromarray(picture(1)), format="GIF"),
        f"DIR/{CRACK} is not a PNG, JPEG, BMP or TIFF image: {GONE}"),
    Refused(
        "postscript named .png", lambda d: (d / CRACK).write_bytes(b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\n"),
        f"DIR/{CRACK} is not a PNG, JPEG, BMP or TIFF image: {GONE}"),
    Refused(
        "signature only", lambda d: (d / CRACK).write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 9),
        f"DIR/{CRACK} cannot be decoded (*): {GONE}"),
    Refused(
        "webp", lambda d: (d / "test/good/a.webp").write_bytes(b"RIFF"),
        "DIR/test/good/a.webp: .webp images are not read: convert them to PNG"),
    Refused("mask of zero bytes", lambda d: (d / MASK).write_bytes(b""), f"DIR/{MASK} is empty (0 bytes): {GONE}"),
    Refused(
        "text as mask", lambda d: (d / MASK).write_text("x" * 99),
        f"DIR/{MASK} is not a PNG, JPEG, BMP or TIFF image: {GONE}"),
    Refused(
        "mask of another size", lambda d: save(d / MASK, blob()[:-1]),
        f"DIR/{MASK} has 10x11 pixels, its image 000.png 10x12: give the mask the size of its image"),
    Refused(
        "mask turned", lambda d: save(d / MASK, blob().T),
        f"DIR/{MASK} has 12x10 pixels, its image 000.png 10x12: give the mask the size of its image"),
    Refused(
        "missing mask", lambda d: (d / MASK).unlink(),
        f"DIR/{CRACK} has no mask: add {MASK} {OR_ELSE}"),
    Refused(
        "defect without masks among others with", lambda d: save(d / "test/hole/7.bmp", picture(5)),
        f"DIR/test/hole/7.bmp has no mask: add ground_truth/hole/7_mask.png {OR_ELSE}"),
    Refused(
        "good image in a defect folder", lambda d: (d / "test/good/000.png").rename(d / "test/crack/7.png"),
        f"DIR/test/crack/7.png has no mask: add ground_truth/crack/7_mask.png {OR_ELSE}"),
    Refused(
        "mask without image", lambda d: (d / CRACK).unlink(),
        f"DIR/{MASK} masks no image: remove it or add its image to test/crack"),
    Refused(
        "masks of an unknown defect", lambda d: save(d / "ground_truth/hole/7_mask.png", blob()),
        "DIR/ground_truth/hole holds masks without images: remove it or fill test/hole"),
    Refused(
        "two masks for an image", lambda d: save(d / "ground_truth/crack/000.png", blob()),
        f"DIR/{CRACK}: images and masks (000_mask.png, 000.png) do not pair up: keep one mask for each image"),
    Refused(
        "two images for a mask", lambda d: save(d / "test/crack/000.jpg", picture(3)),
        f"DIR/{CRACK}: images and masks (000_mask.png) do not pair up: keep one mask for each image"),
    Refused(
        "mask outside its folder", _flat_mask,
        "DIR/ground_truth/000.png lies directly in ground_truth: put it into part/ground_truth/DEFECT"),
    Refused(
        "image outside its folder", lambda d: save(d / "test/a.png", picture(1)),
        "DIR/test/a.png lies directly in test: put it into part/test/good or part/test/DEFECT"),
    Refused("empty category", _empty, "DIR has no folder train: put normal images into part/train/good"),
    Refused(
        "images flat in the category", lambda d: [_empty(d), save(d / "a.png", picture(1))],
        "DIR/a.png lies directly in part: put normal images into part/train/good"),
    Refused(
        "images flat in train", lambda d: [_empty(d), save(d / "train/a.png", picture(1))],
        "DIR/train/a.png lies directly in train: put it into part/train/good"),
    Refused(
        "empty train folder", lambda d: remove(d, "train/good/*"),
        "DIR/train: no image in train/good: put normal PNG, JPEG, BMP or TIFF images there"),
    Refused(
        "defects to learn from", lambda d: save(d / "train/crack/0.png", picture(1)),
        "DIR/train/crack: all training images are normal: move its images into train/good if they are normal, else "
        "into test/crack"),
    Refused(
        "masks beside an empty test folder", lambda d: remove(d, "test/*/*"),
        "DIR/ground_truth/crack holds masks without images: remove it or fill test/crack"),
    Refused(
        "folder named .png", lambda d: (d / "test/good/x.png").mkdir(),
        "DIR/test/good/x.png is a folder where images are expected: move its images up or remove it"),
    Refused(
        "folder in a folder of images", lambda d: save(d / "train/good/more/0.png", picture(1)),
        "DIR/train/good/more is a folder where images are expected: move its images up or remove it"),
    Refused(
        "link to the folder above", lambda d: (d / "test/loop").symlink_to(d / "test"),
        "DIR/test/loop/crack is a folder where images are expected: move its images up or remove it"),
    Refused("broken link", _broken_link, f"DIR/{CRACK} {BLOCKED}"),
    Refused("named pipe", _pipe, f"DIR/{CRACK} {BLOCKED}"),
    Refused(
        "20000x20000", lambda d: raw_png(d / CRACK, 20000, 20000, 8, 2, bytes(99)),
        f"DIR/{CRACK} has more than 80 million pixels: scale it down or cut it into tiles"),
    Refused(
        "9000x9000 mask", lambda d: raw_png(d / MASK, 9000, 9000, 8, 0, bytes(99)),
        f"DIR/{MASK} has more than 80 million pixels: scale it down or cut it into tiles"),
    Refused(
        "text bomb",
        lambda d: raw_png(d / CRACK, WIDTH, HEIGHT, 8, 2, b"", zTXt=b"k\0\0" + zlib.compress(bytes(10**7))),
        f"DIR/{CRACK} cannot be decoded (*): {GONE}"),
    Refused(
        "line break in a name", _newline, "'DIR/test/good/a\\nb.png' is empty (0 bytes): replace or remove the file"),
    Refused(
        "name that is no UTF-8", lambda d: Path(os.fsdecode(os.fsencode(d) + b"/test/good/\xff.png")).write_bytes(b""),
        "'DIR/test/good/\\udcff.png': the name is not valid UTF-8: rename the file"),
    Refused("truncated png", lambda d: _truncated(d, CRACK), f"DIR/{CRACK} cannot be decoded (*): {GONE}", "read"),
    Refused(
        "truncated jpg", lambda d: _truncated(d, "test/good/000.png", ".jpg"),
        f"DIR/test/good/000.jpg cannot be decoded (*): {GONE}", "read"),
    Refused(
        "truncated bmp", lambda d: _truncated(d, "train/good/002.png", ".bmp"),
        f"DIR/train/good/002.bmp cannot be decoded (*): {GONE}", "read"),
    Refused("truncated mask", lambda d: cut(d / MASK, 0.6), f"DIR/{MASK} cannot be decoded (*): {GONE}", "read"),
    Refused("flipped bytes in a png", _flip, f"DIR/{CRACK} cannot be decoded (*): {GONE}", "read"),
    Refused(
        "floats", lambda d: save(rewrite(d / "train/good/000.png", ".tif"), picture(1, 1).astype(np.float32)),
        "DIR/train/good/000.tif holds 32-bit floats, whose white is undefined: if white is 1.0, save it with 8 bits by "
        "`a = numpy.asarray(Image.open(OLD)); b = (numpy.clip(a, 0, 1) * 255).round().astype('uint8'); "
        "Image.fromarray(b).save(NEW)`", "read"),
    Refused(
        "32-bit integers", lambda d: save(rewrite(d / "train/good/000.png", ".tif"), picture(1, 1).astype(np.int32)),
        "DIR/train/good/000.tif holds 32-bit integers, whose white is undefined: if white is MAX, such as 4095 of 12 "
        "bits, save it with 8 bits by `a = numpy.asarray(Image.open(OLD)); b = (numpy.clip(a / MAX, 0, 1) * 255)"
        ".round().astype('uint8'); Image.fromarray(b).save(NEW)`", "read"),
    Refused(
        "mask of class numbers", lambda d: save(d / MASK, blob() // 85),
        f"DIR/{MASK}: no value above 127 in this mask (largest 3), as in a map of class numbers: write 255 where the "
        "image is defective and 0 elsewhere", "read"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused_with_one_line_that_names_the_file_and_without_a_trace(sound: Path, case: Refused) -> None:
    case.damage(sound)
    before = tree(sound)
    if case.when == "read":
        load(sound)
    with pytest.raises(UserError) as error, warnings.catch_warnings():
        warnings.simplefilter("error")
        read_all(sound)
    pattern = re.escape(case.message.replace("DIR", str(sound))).replace(r"\(\*\)", r"\([^\n]+\)")
    assert re.fullmatch(pattern, str(error.value))
    assert tree(sound) == before


@pytest.mark.parametrize(("values", "white"), [([-1, 0, 0.999, 1.2], 1), ([0, 5, 4091, 9999], 4095)])
def test_the_remedy_for_values_without_a_white_mends_the_file(tmp_path: Path, values: list, white: int) -> None:
    old, new = tmp_path / "old.tif", tmp_path / "new.png"
    save(old, np.array([values], np.float32 if white == 1 else np.int32))
    with pytest.raises(UserError) as error:
        datasets.read_image(old)
    (remedy,) = re.findall("`(.+)`", str(error.value))
    exec(remedy, {"numpy": np, "Image": Image, "OLD": old, "NEW": new, "MAX": white})
    assert datasets.read_image(new).tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("call", ["load", "read", "hash"])
def test_an_unreadable_file_is_named_with_the_reason(sound: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    part = load(sound)
    open_file = builtins.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith(CRACK):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, "rb").read())
    steps = {"load": lambda: load(sound), "read": part.test.images, "hash": lambda: part.test.sha256}
    with pytest.raises(UserError) as error:
        steps[call]()
    reason = "cannot be read (Permission denied): check that the file exists and its permissions"
    assert str(error.value) == f"{sound / CRACK} {reason}"


def test_an_unreadable_folder_is_named_with_the_reason(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = Path.iterdir

    def refuse(path):
        if path.name == "crack":
            raise PermissionError(13, "Permission denied", str(path))
        return entries(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError) as error:
        load(sound)
    assert str(error.value) == f"{sound / 'test/crack'} cannot be listed (Permission denied): check the path"


# What is locked, and what cannot be read then. A folder with mode 444 lists its names and nothing more.
LOCKED = [
    ("", 0o000, "DIR/train"), ("", 0o444, "DIR/train"),
    ("train", 0o000, "DIR/train"), ("train", 0o444, "DIR/train/good"),
    ("train/good", 0o000, "DIR/train/good"), ("train/good", 0o444, "DIR/train/good/000.png"),
    ("test/crack", 0o000, "DIR/test/crack"), ("test/crack", 0o444, f"DIR/{CRACK}"),
    ("ground_truth", 0o000, "DIR/ground_truth"), ("ground_truth/crack", 0o444, f"DIR/{MASK}"),
    (CRACK, 0o000, f"DIR/{CRACK}"), (MASK, 0o000, f"DIR/{MASK}"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "mode", "named"), LOCKED)
def test_what_the_system_really_refuses_is_named(sound: Path, what: str, mode: int, named: str) -> None:
    (sound / what).chmod(mode)
    try:
        if os.access(sound / what, os.X_OK if (sound / what).is_dir() else os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(UserError) as error:
            load(sound)
    finally:
        (sound / what).chmod(0o755)
    pattern = (
        re.escape(named.replace("DIR", str(sound))) + r" cannot be (read|listed) \(Permission denied\): check [^\n]+"
    )
    assert re.fullmatch(pattern, str(error.value))


def test_a_folder_that_may_not_be_looked_into_is_named(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Path.is_dir

    def refuse(path):
        if path.parent.name == "train":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UserError) as error:
        load(sound)
    reason = "cannot be read (Permission denied): check its permissions and those of the folder that it lies in"
    assert str(error.value) == f"{sound / 'train/good'} {reason}"


def test_a_file_that_vanishes_after_loading_is_named(sound: Path) -> None:
    part = load(sound)
    (sound / CRACK).unlink()
    with pytest.raises(UserError, match=re.escape(f"{sound / CRACK} is no file (missing")):
        part.test.images()
