"""Sizes of images: as text, and as the shape of photographs."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import image_set

from uad_core.datasets import ArraySource, auto_size, parse_size
from uad_core.errors import UserError


@pytest.mark.parametrize(
    ("text", "size"),
    [("256", 256), ("512x768", (512, 768)), ("512X768", (512, 768)), ("AUTO", "auto"), (" 32 ", 32), ("4096", 4096),
     ("0256", 256)],
)  # fmt: skip
def test_sizes_are_read(text: str, size) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "x", "31", "4097", "256x", "256x31", "4097x256", "1x2x3", "-256", "2.5", "25６", "²", "large", "256 x 256"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_size(text)
    limits = "give a side from 32 to 4096 pixels, HEIGHTxWIDTH such as 512x768, or auto"
    assert str(error.value) == f"--image-size {text!r}: {limits}"


@pytest.mark.parametrize("text", ["9" * 5000, "256x" + "9" * 5000, "0" * 5000, "x" * 5000])
def test_a_text_without_end_is_refused_in_a_short_line(text: str) -> None:
    with pytest.raises(UserError, match=f"^--image-size '{text[:40]}...': give a side from 32") as error:
        parse_size(text)
    assert len(str(error.value)) < 150


class Header(ArraySource):
    """One image of a shape, and others that must not be looked at."""

    def __init__(self, height: int, width: int):
        super().__init__(np.zeros((3, 1, 1), np.uint8))
        self.shape = height, width

    def size(self, i: int) -> tuple[int, int]:
        assert i == 1
        return self.shape


def shape(height: int, width: int, area: int = 256 * 256, **options) -> tuple[int, int]:
    images = image_set(np.zeros((3, 1, 1), np.uint8), source=Header(height, width))
    return auto_size(images.subset([1, 0, 2]), area, **options)


def test_the_shape_and_the_area_are_kept() -> None:
    height, width = shape(2000, 3000)
    assert height % 32 == width % 32 == 0
    assert abs(height * width / 256**2 - 1) < 0.1
    assert abs(width / height / 1.5 - 1) < 0.1
    assert shape(3000, 2000) == (width, height)
    assert shape(900, 900) == (256, 256) and shape(10, 10, 512 * 512) == (512, 512)


def test_sides_are_multiples_within_limits() -> None:
    assert shape(100, 10_000) == (64, 2560) and shape(10_000, 100) == (2560, 64)
    assert shape(1, 100_000) == (64, 4096) and shape(50, 50, 16 * 16) == (64, 64)
    height, width = shape(2000, 3000, multiple=14)
    assert height % 14 == width % 14 == 0 and abs(height / width * 1.5 - 1) < 0.05
