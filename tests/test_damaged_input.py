"""What happens to damaged and odd input: each kind has one exact outcome, and none leaves a trace.

A sound miniature category is damaged in one way; then either loading or reading it is refused
with one exact line, or the pixels, masks and labels are exactly those that the case states.
"""

from __future__ import annotations

import builtins
import os
import re
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uad_core import datasets
from uad_core.datasets import DataWarning
from uad_core.errors import UserError

HEIGHT, WIDTH = 12, 10
CRACK = "test/crack/000.png"
MASK = "ground_truth/crack/000_mask.png"


def picture(seed: int, channels: int = 3) -> np.ndarray:
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def blob() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3:7, 2:5] = 255
    return mask


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A category that is in order: 3 normal images to learn from, 2 normal and 2 cracked ones to judge."""
    folder = tmp_path / "data" / "part"
    for i in range(3):
        save(folder / f"train/good/{i:03d}.png", picture(i))
    for i in range(2):
        save(folder / f"test/good/{i:03d}.png", picture(10 + i))
        save(folder / f"test/crack/{i:03d}.png", picture(20 + i))
        save(folder / f"ground_truth/crack/{i:03d}_mask.png", blob())
    return folder


def load(folder: Path) -> datasets.Category:
    return datasets.load(str(folder.parent), folder.name, image_size=(HEIGHT, WIDTH))


def read_all(folder: Path) -> None:
    part = load(folder)
    part.train.images()
    part.test.images()
    if part.test.has_masks:
        part.test.masks()


def tree(folder: Path) -> list[tuple[str, int, bool]]:
    return sorted((str(p), p.lstat().st_size, p.is_symlink()) for p in folder.rglob("*"))


def raw_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> None:
    """Write a PNG by hand: what the header says is independent of what the data hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(kind.encode(), data) for kind, data in chunks.items())
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def cut(path: Path, fraction: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


def rewrite(path: Path, suffix: str, **options) -> Path:
    """Replace an image by the same pixels in another format."""
    image = Image.open(path)
    image.load()
    path.unlink()
    save(path.with_suffix(suffix), image, **options)
    return path.with_suffix(suffix)


# --- refused -------------------------------------------------------------------------------------------------------


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


def _remove(folder: Path, pattern: str) -> None:
    for path in sorted(folder.glob(pattern), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _truncated(folder: Path, name: str, suffix: str = ".png") -> None:
    if suffix != ".png":
        save(folder / name, np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    cut(rewrite(folder / name, suffix), 0.8)


def _newline(folder: Path) -> None:
    (folder / "test/good/a\nb.png").write_bytes(b"")


def _empty(folder: Path) -> None:
    _remove(folder, "*/*/*")
    _remove(folder, "*/*")
    _remove(folder, "*")


BLOCKED = "is no file (missing, a broken link, a folder, a device): mend or remove it"
GONE = "replace or remove the file"
PUT = "put PNG, JPEG, BMP or TIFF images there"
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
        f"DIR/{CRACK} has no mask: add {MASK} (black if nothing is marked), or remove ground_truth to skip pixel "
        "metrics"),
    Refused(
        "defect without masks among others with", lambda d: save(d / "test/hole/7.bmp", picture(5)),
        "DIR/test/hole/7.bmp has no mask: add ground_truth/hole/7_mask.png (black if nothing is marked), or remove "
        "ground_truth to skip pixel metrics"),
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
        "DIR/ground_truth/000.png lies directly in ground_truth: move it into ground_truth/good or /DEFECT"),
    Refused(
        "image outside its folder", lambda d: save(d / "test/a.png", picture(1)),
        "DIR/test/a.png lies directly in test: move it into test/good or /DEFECT"),
    Refused("empty category", _empty, "DIR has no folder train: put normal images into train/good"),
    Refused(
        "empty train folder", lambda d: _remove(d, "train/good/*"),
        "DIR/train: no image in train/good: put normal PNG, JPEG, BMP or TIFF images there"),
    Refused(
        "defects to learn from", lambda d: save(d / "train/crack/0.png", picture(1)),
        "DIR/train/crack: all training images are normal: move this folder into test"),
    Refused("no test folder", lambda d: [_remove(d, "test/*/*"), _remove(d, "test/*"), _remove(d, "test")],
            "DIR has no folder test: put images to judge into test/good and test/DEFECT"),
    Refused("empty test folder", lambda d: _remove(d, "test/*/*"),
            f"DIR/test: no image in test/good or test/DEFECT: {PUT}"),
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
        "DIR/train/good/000.tif holds 32-bit values, whose white is undefined: save it with 8 or 16 bits", "read"),
    Refused(
        "32-bit integers", lambda d: save(rewrite(d / "train/good/000.png", ".tif"), picture(1, 1).astype(np.int32)),
        "DIR/train/good/000.tif holds 32-bit values, whose white is undefined: save it with 8 or 16 bits", "read"),
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


def test_a_file_that_vanishes_after_loading_is_named(sound: Path) -> None:
    part = load(sound)
    (sound / CRACK).unlink()
    with pytest.raises(UserError, match=re.escape(f"{sound / CRACK} is no file (missing")):
        part.test.images()


# --- accepted: pixels ----------------------------------------------------------------------------------------------


def _grey16(path: Path, big_endian: bool = False) -> None:
    values = picture(1, 1).astype(np.uint16) * 257
    image = Image.fromarray(values)
    if big_endian:
        image = Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes())
    image.save(path)


def _rgb16(path: Path) -> None:
    wide = (picture(1).astype(">u2") * 256 + 255).astype(">u2")
    raw_png(path, WIDTH, HEIGHT, 16, 2, b"".join(b"\0" + row.tobytes() for row in wide))


def _alpha(colour: int, alpha: int) -> int:
    return int(np.floor((colour * alpha) / 255 + 0.5))


def _palette(path: Path, **options) -> None:
    image = Image.fromarray(np.repeat([[0, 1]], HEIGHT, axis=0).repeat(WIDTH // 2, axis=1).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(path, **options)


def _halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    return np.repeat(np.array([[left, right]], dtype=np.uint8), HEIGHT, axis=0).repeat(WIDTH // 2, axis=1)


def _grey_as_colour(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def _pages(path: Path) -> None:
    first, second = Image.fromarray(picture(1)), Image.fromarray(picture(2))
    first.save(path, save_all=True, append_images=[second])


def _la(path: Path) -> None:
    save(path, Image.merge("LA", [Image.new("L", (WIDTH, HEIGHT), 200), Image.new("L", (WIDTH, HEIGHT), 102)]))


# File name, how it is written, the pixels (h, w, 3) it must become.
PIXELS = {
    "jpg named .png": ("x.png", lambda p: save(p, np.full((HEIGHT, WIDTH, 3), 77, np.uint8), format="JPEG"),
                       np.full((HEIGHT, WIDTH, 3), 77)),
    "grey": ("x.png", lambda p: save(p, picture(1, 1)), _grey_as_colour(picture(1, 1))),
    "16-bit grey png": ("x.png", _grey16, _grey_as_colour(picture(1, 1))),
    "16-bit grey tiff": ("x.tif", _grey16, _grey_as_colour(picture(1, 1))),
    "16-bit big-endian tiff": ("x.tiff", lambda p: _grey16(p, True), _grey_as_colour(picture(1, 1))),
    "16-bit colour png": ("x.png", _rgb16, picture(1)),
    "1 bit": ("x.png", lambda p: save(p, blob() > 0), _grey_as_colour(blob())),
    "palette": ("x.png", _palette, _halves((10, 20, 30), (200, 100, 50))),
    "palette bmp": ("x.bmp", _palette, _halves((10, 20, 30), (200, 100, 50))),
    "transparent palette entry": ("x.png", lambda p: _palette(p, transparency=1), _halves((10, 20, 30), (0, 0, 0))),
    "transparent colour": (
        "x.png", lambda p: save(p, _halves((9, 8, 7), (1, 2, 3)), transparency=(1, 2, 3)),
        _halves((9, 8, 7), (0, 0, 0))),
    "half transparent": (
        "x.png", lambda p: save(p, Image.new("RGBA", (WIDTH, HEIGHT), (200, 100, 50, 51))),
        np.broadcast_to([_alpha(c, 51) for c in (200, 100, 50)], (HEIGHT, WIDTH, 3))),
    "opaque alpha": (
        "x.png", lambda p: save(p, np.dstack([picture(1), np.full((HEIGHT, WIDTH), 255, np.uint8)])), picture(1)),
    "grey with alpha": ("x.png", _la, np.full((HEIGHT, WIDTH, 3), _alpha(200, 102))),
    "cmyk tiff": (
        "x.tif", lambda p: save(p, Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 0, 0))),
        np.broadcast_to([255, 0, 255], (HEIGHT, WIDTH, 3))),
    "cmyk jpg": (
        "x.jpg", lambda p: save(p, Image.new("CMYK", (WIDTH, HEIGHT), (0, 0, 0, 255)), quality=100),
        np.zeros((HEIGHT, WIDTH, 3))),
    "several pages": ("x.tif", _pages, picture(1)),
    "animated png": ("x.png", _pages, picture(1)),
    "bytes behind the end": ("x.png", lambda p: [save(p, picture(1)), p.open("ab").write(b"more")], picture(1)),
    "capital suffix": ("x.PNG", lambda p: save(p, picture(7)), picture(7)),
    "suffix .jpeg": (
        "x.JPEG", lambda p: save(p, np.zeros((HEIGHT, WIDTH, 3), np.uint8)), np.zeros((HEIGHT, WIDTH, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", PIXELS)
def test_every_kind_of_file_becomes_the_stated_pixels(sound: Path, name: str) -> None:
    file, write, expected = PIXELS[name]
    write(sound / "test/good" / file)
    test = load(sound).test
    image = test[test.paths.index(f"test/good/{file}")]
    np.testing.assert_array_equal((image * 255).round().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_applied_to_image_and_size(sound: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = sound / f"test/good/x{suffix}"
    save(path, picture(1), exif=exif)
    # The EXIF standard: where the first row and the first column of the stored pixels belong.
    upright = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation](picture(1))  # fmt: skip
    test = load(sound).test
    assert test.original_sizes[test.paths.index(f"test/good/x{suffix}")] == upright.shape[:2]
    np.testing.assert_array_equal(datasets.read_image(path), upright)


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (1, 500)], ids=str)
def test_extreme_sizes_are_resized_like_any_other(sound: Path, size: tuple[int, int]) -> None:
    save(sound / "train/good/x.png", Image.new("RGB", size, (51, 102, 153)))
    train = load(sound).train
    i = train.paths.index("train/good/x.png")
    assert train.original_sizes[i] == (size[1], size[0])
    assert train[i].flatten(1).unique(dim=1).squeeze().tolist() == pytest.approx([0.2, 0.4, 0.6])


# --- accepted: masks -----------------------------------------------------------------------------------------------

EDGES = np.where(blob() > 0, 128, 127).astype(np.uint8)
MASKS = {
    "all ones": ("000_mask.png", lambda p: save(p, np.full((HEIGHT, WIDTH), 255, np.uint8)), np.ones((HEIGHT, WIDTH))),
    "empty": ("000_mask.png", lambda p: save(p, np.zeros((HEIGHT, WIDTH), np.uint8)), np.zeros((HEIGHT, WIDTH))),
    "threshold": ("000_mask.png", lambda p: save(p, EDGES), blob() > 0),
    "1 bit": ("000_mask.png", lambda p: save(p, blob() > 0), blob() > 0),
    "16 bits": ("000_mask.png", lambda p: save(p, blob().astype(np.uint16) * 257), blob() > 0),
    "red on black": ("000_mask.png", lambda p: save(p, np.dstack([blob(), blob() * 0, blob() * 0])), blob() > 0),
    "white behind alpha": (
        "000_mask.png", lambda p: save(p, np.dstack([blob() * 0 + 255] * 3 + [blob()])), blob() > 0),
    "palette": ("000_mask.png", _palette, np.repeat([[False] * 5 + [True] * 5], HEIGHT, axis=0)),
    "jpg": ("000_mask.jpg", lambda p: save(p, blob() // 255 * 250, quality=100), blob() > 0),
    "same name": ("000.png", lambda p: save(p, blob()), blob() > 0),
    "same name, other suffix": ("000.bmp", lambda p: save(p, blob()), blob() > 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_becomes_the_stated_pixels_and_the_label_stays(sound: Path, name: str) -> None:
    file, write, expected = MASKS[name]
    (sound / MASK).unlink()
    write(sound / "ground_truth/crack" / file)
    test = load(sound).test
    assert test.labels.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(test.masks()[0], expected)


@pytest.mark.parametrize("damage", ["ground_truth/crack/*", "ground_truth/*/*"])
@pytest.mark.parametrize("folder_too", [True, False])
def test_without_any_mask_the_images_still_serve(sound: Path, damage: str, folder_too: bool) -> None:
    _remove(sound, damage)
    if folder_too:
        _remove(sound, "ground_truth/*")
        _remove(sound, "ground_truth")
    test = load(sound).test
    assert not test.has_masks and test.labels.sum() == 2
    with pytest.raises(UserError, match="part has no masks: only image metrics are defined"):
        test.masks()


def test_masks_of_normal_images_are_not_read(sound: Path) -> None:
    (sound / "ground_truth/good").mkdir()
    (sound / "ground_truth/good/000_mask.png").write_bytes(b"nonsense")
    assert not load(sound).test.masks()[2:].any()


# --- accepted: names, links, folders -------------------------------------------------------------------------------


UNUSUAL = ["größe 7%.png", "日本語.png", "x" * 246 + ".png", "a'b\"c.png", "-rf.png", "a.b.c.png"]


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_names_are_kept(sound: Path, name: str) -> None:
    save(sound / "test/crack" / name, picture(7))
    save(sound / "ground_truth/crack" / f"{Path(name).stem}_mask.png", blob())
    test = load(sound).test
    i = test.paths.index(f"test/crack/{name}")
    np.testing.assert_array_equal(test.mask(i).numpy(), blob() > 0)
    assert len(test.sha256) == 64


def test_an_accent_may_be_stored_in_either_form(sound: Path) -> None:
    name = unicodedata.normalize("NFC", "é")
    save(sound / f"test/crack/{name}.png", picture(7))
    save(sound / f"ground_truth/crack/{unicodedata.normalize('NFD', name)}_mask.png", blob())
    assert load(sound).test.masks()[:3].any(axis=(1, 2)).all()


@pytest.mark.parametrize("what", [CRACK, MASK, "train/good", "test/crack", ""])
@pytest.mark.parametrize("inside", [True, False])
def test_symbolic_links_are_followed_inside_and_outside_the_category(sound: Path, what: str, inside: bool) -> None:
    expected = load(sound).test.sha256
    target = sound / ".kept" if inside and what else sound.parent.parent / "elsewhere"
    target.mkdir()
    (sound / what).rename(target / "it.png")
    (sound / what).symlink_to(target / "it.png")
    part = load(sound)
    assert part.test.sha256 == expected and len(part.train) == 3


def test_hidden_files_and_files_that_are_no_images_are_passed_over(sound: Path) -> None:
    expected = load(sound)
    for name in (".DS_Store", "test/.DS_Store", "test/good/._000.png", "test/crack/Thumbs.db", "train/good/notes.txt"):
        (sound / name).write_bytes(b"\0")
    (sound / "license.txt").write_text("terms")
    (sound / "test/.ipynb_checkpoints").mkdir()
    (sound / "test/scratch").mkdir()  # a defect of which there is no image
    found = load(sound)
    assert (found.train.paths, found.test.paths) == (expected.train.paths, expected.test.paths)


@pytest.mark.parametrize("good", ["ok", "normal"])
def test_normal_may_be_called_otherwise(sound: Path, good: str) -> None:
    (sound / "train/good").rename(sound / f"train/{good}")
    (sound / "test/good").rename(sound / f"test/{good}")
    test = load(sound).test
    assert test.labels.tolist() == [True, True, False, False]
    assert test.defects == ["crack", "crack", "good", "good"]


def test_mixed_sizes_are_recorded_and_resized(sound: Path) -> None:
    save(sound / "train/good/big.png", Image.new("RGB", (64, 48)))
    train = load(sound).train
    assert train.original_sizes == [(12, 10)] * 3 + [(48, 64)]
    assert train.images().shape == (4, 3, HEIGHT, WIDTH)


# --- accepted with a warning ---------------------------------------------------------------------------------------


def test_an_image_in_both_splits_is_named(sound: Path) -> None:
    (sound / "test/good/001.png").write_bytes((sound / "train/good/002.png").read_bytes())
    with pytest.warns(DataWarning) as caught:
        load(sound)
    message = "data/part: 1 test images are also train images: test/good/001.png = train/good/002.png"
    assert [str(w.message) for w in caught] == [message]


def test_many_images_in_both_splits_are_counted_and_the_first_named(sound: Path) -> None:
    for i in range(12):
        (sound / f"test/good/1{i:02d}.png").write_bytes((sound / "train/good/000.png").read_bytes())
    with pytest.warns(DataWarning, match=r"12 test images .*test/good/100\.png = .*test/good/109\.png = \S+; \.\.\.$"):
        load(sound)


def test_files_of_one_size_are_told_apart_by_content(sound: Path) -> None:
    for i, name in enumerate(("train/good/0.bmp", "test/good/0.bmp")):
        save(sound / name, np.random.default_rng(i).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    # Equal in size and in the middle, different only in the last pixel.
    (sound / "train/good/1.bmp").write_bytes((sound / "test/good/0.bmp").read_bytes()[:-1] + b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(sound)


@pytest.mark.parametrize(("gone", "kind"), [("good", "anomalous"), ("crack", "normal")])
def test_a_test_set_of_one_kind_is_told_before_the_training(sound: Path, gone: str, kind: str) -> None:
    _remove(sound, f"test/{gone}/*")
    _remove(sound, f"ground_truth/{gone}/*")
    with pytest.warns(DataWarning, match=f"^data/part: all test images are {kind}, so no metric is defined$"):
        load(sound)


def test_a_sound_category_gives_no_warning(sound: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_all(sound)


def test_there_are_enough_kinds_of_damage() -> None:
    assert len({case.name for case in REFUSED}) == len(REFUSED) and len(REFUSED) + len(PIXELS) + len(MASKS) >= 60
