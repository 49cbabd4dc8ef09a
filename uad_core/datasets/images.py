"""Read image and mask files: every kind that inspection cameras write, and no trust in any of them.

What each kind becomes (8 bits; grey stays (h, w), colour is (h, w, 3)):

* 16-bit grey: scaled by the range of its type, round(v / 257), never by its content.
* 16-bit colour: the high byte of each channel, as Pillow decodes it.
* Palette: its colours. CMYK and YCbCr: converted by Pillow without colour profiles.
* Alpha, also that of a palette: composited on black, so that a hidden colour stays hidden.
* EXIF orientation: applied, to masks as well. Several pages or frames: the first.
* Floats and 32-bit integers have no agreed white: refused.

The content decides what a file is, not its suffix: a JPEG that is called .png is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from uad_core.datasets.base import Source
from uad_core.errors import UserError

__all__ = ["MAX_PIXELS", "SUFFIXES", "FileSource", "header_size", "read_image", "read_mask", "shown"]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
# 240 MB decoded; below the size at which Pillow itself begins to warn.
MAX_PIXELS = 80_000_000
MASK_THRESHOLD = 127
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
IMAGE_WIDTH = 0x0100
# Modes without an agreed white: what their values are, what white may be, and then what scales it to 1.
WIDE = {"F": ("floats", "1.0", "a"), "I": ("integers", "MAX, such as 4095 of 12 bits", "a / MAX")}


def read_image(path: Path) -> np.ndarray:
    """Return the image file as uint8, (h, w) for grey or (h, w, 3) for colour.

    Raises `UserError` for a file that is missing, damaged, too large or not an image.
    """
    with _opened(path) as image:
        return _eight_bit(_upright(image), path)


def read_mask(path: Path, label_map: bool = False) -> np.ndarray:
    """Return the mask file as bool (h, w), True where the image is anomalous.

    A pixel is anomalous where its brightest channel is above 127 of 255, or, in a
    `label_map` (one small number per defect type), where it is not 0. Raises `UserError`
    as `read_image` does, and for a mask whose brightest value is between 1 and 127.
    """
    with _opened(path) as image:
        image = _upright(image)
        if label_map and image.mode == "P":
            return np.array(image) > 0
        values = _eight_bit(image, path)
    values = values.max(axis=2) if values.ndim == 3 else values  # (h, w)
    if label_map:
        return values > 0
    if 0 < values.max() <= MASK_THRESHOLD:
        raise UserError(
            f"{shown(path)}: no value above {MASK_THRESHOLD} in this mask (largest {values.max()}), as in a map of "
            "class numbers: write 255 where the image is defective and 0 elsewhere"
        )
    return values > MASK_THRESHOLD


def header_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels from the file's header, orientation applied, nothing decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with _opened(path) as image:
            width, height = image.size
            return (width, height) if _turned(image) else (height, width)


def shown(path: Path | str) -> str:
    """Return a path as it may stand in a one-line message, whatever its name contains."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


class FileSource(Source):
    """Images and masks in files below one folder.

    Every header is read at once, so that what is not an image, or a mask that does not
    fit its image, is reported before any work begins.

    Args:
        folder: what `images` and `masks` are relative to.
        masks: a name per image, None where it has no mask.
        label_map: masks hold class numbers; everything that is not 0 is a defect.
    """

    def __init__(self, folder: Path, images: Sequence[str], masks: Sequence[str | None], label_map: bool = False):
        self.folder, self.label_map = Path(folder), label_map
        self.image_names, self.mask_names = list(images), list(masks)
        self.sizes = [header_size(self.folder / name) for name in self.image_names]
        for name, mask, size in zip(self.image_names, self.mask_names, self.sizes, strict=True):
            if mask is not None:
                _check_mask_size(self.folder / mask, self.folder / name, size)

    def __len__(self) -> int:
        return len(self.image_names)

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of image `i` from its header, orientation applied."""
        return self.sizes[i]

    def image(self, i: int) -> np.ndarray:
        """Return image `i`, uint8 (h, w) or (h, w, 3)."""
        return read_image(self.folder / self.image_names[i])

    def mask(self, i: int) -> np.ndarray | None:
        """Return the mask of image `i`, bool (h, w), or None."""
        name = self.mask_names[i]
        return None if name is None else read_mask(self.folder / name, self.label_map)

    def content(self, i: int) -> tuple[bytes, bytes]:
        """Return the bytes of both files."""
        mask = self.mask_names[i]
        return _read_bytes(self.folder / self.image_names[i]), b"" if mask is None else _read_bytes(self.folder / mask)


def _check_mask_size(mask: Path, image: Path, size: tuple[int, int]) -> None:
    found = header_size(mask)
    if found != size:
        raise UserError(
            f"{shown(mask)} has {found[1]}x{found[0]} pixels, its image {shown(image.name)} {size[1]}x{size[0]}: "
            "give the mask the size of its image"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong while it is open becomes a `UserError` that names it."""
    try:
        if not path.is_file():
            raise UserError(f"{shown(path)} is no file (missing, a broken link, a folder, a device): mend or remove it")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        what = "is empty (0 bytes)" if empty else f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
        raise UserError(f"{shown(path)} {what}: replace or remove the file") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{shown(path)} has more than {MAX_PIXELS // 10**6} million pixels: scale it down or cut it into tiles"
        ) from None
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, error) from None
        raise _unreadable(path, error) from None
    # A decoder that meets nonsense raises whatever its parsing stumbled over: ValueError,
    # SyntaxError, EOFError, struct.error, zlib.error and more.
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{shown(path)} cannot be decoded ({reason}): replace or remove the file")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{shown(path)} cannot be read ({error.strerror}): check that the file exists and its permissions")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _turned(image: Image.Image) -> bool:
    """Whether width and height of an image that is not yet decoded have to be exchanged."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole image to find an orientation behind the pixels
    turned = image.getexif().get(ORIENTATION) in TURNED
    if image.format == "TIFF":  # newer versions of Pillow exchange them when they open it
        return turned and image.width == image.tag_v2[IMAGE_WIDTH]
    return turned


def _upright(image: Image.Image) -> Image.Image:
    # Pillow turns a TIFF while it decodes it; not every version forgets the orientation then.
    wide = image.mode == "I" and image.format == "PNG"
    image = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
    return image.convert("I;16") if wide else image  # older versions open 16-bit grey PNG files as 32-bit ones


def _eight_bit(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return ((wide * 255 + 32767) // 65535).astype(np.uint8)
    if image.mode in WIDE:
        kind, white, values = WIDE[image.mode]
        raise UserError(
            f"{shown(path)} holds 32-bit {kind}, whose white is undefined: if white is {white}, save it with 8 bits "
            f"by `a = numpy.asarray(Image.open(OLD)); b = (numpy.clip({values}, 0, 1) * 255).round().astype('uint8'); "
            "Image.fromarray(b).save(NEW)`"
        )
    if image.mode in ("L", "1") and "transparency" not in image.info:
        return np.array(image.convert("L"))
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size)
        image.paste(layer, mask=layer)
    return np.array(image.convert("RGB"))
