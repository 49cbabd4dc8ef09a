"""Odd input is accepted, and becomes exactly the pixels, masks, names and warnings that are stated here."""

from __future__ import annotations

import shutil
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uad_core import datasets
from uad_core.datasets import DataWarning, folder
from uad_core.datasets.images import FileSource
from uad_core.errors import UserError

sys.path.append(str(Path(__file__).parent))

from odd_files import (  # noqa: E402
    CRACK,
    HEIGHT,
    MASK,
    WIDTH,
    blob,
    load,
    picture,
    raw_png,
    read_all,
    remove,
    save,
    sound_category,
)  # fmt: skip


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return sound_category(tmp_path)


# --- pixels ----------------------------------------------------------------------------------------------


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


# --- masks -----------------------------------------------------------------------------------------------

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
    remove(sound, damage)
    if folder_too:
        remove(sound, "ground_truth/*")
        remove(sound, "ground_truth")
    test = load(sound).test
    assert not test.has_masks and test.labels.sum() == 2
    with pytest.raises(UserError, match="part has no masks: only image metrics are defined"):
        test.masks()


def test_masks_of_normal_images_are_not_read(sound: Path) -> None:
    (sound / "ground_truth/good").mkdir()
    (sound / "ground_truth/good/000_mask.png").write_bytes(b"nonsense")
    assert not load(sound).test.masks()[2:].any()


# --- names, links, folders -------------------------------------------------------------------------------


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


# --- warnings ---------------------------------------------------------------------------------------


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


def _file_as_crack(folder: Path, good: str, masked: bool) -> None:
    """Copy a good image into a folder of defects that has masks, or into one of a set without any."""
    (folder / "test/crack/7.png").write_bytes((folder / good).read_bytes())
    if masked:
        save(folder / "ground_truth/crack/7_mask.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    else:
        remove(folder, "ground_truth/*/*")


@pytest.mark.parametrize("masked", [True, False])
def test_a_good_image_moved_into_a_defect_folder_is_what_its_folder_says(sound: Path, masked: bool) -> None:
    _file_as_crack(sound, "test/good/000.png", masked)
    (sound / "test/good/000.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = load(sound).test
    i = test.paths.index("test/crack/7.png")
    assert (test.labels[i], test.defects[i], test.has_masks) == (True, "crack", masked)
    assert not masked or not test.mask(i).any()


GOOD_AS_DEFECT = {
    "test/good/000.png": "1 anomalous test images are also good ones: test/crack/7.png = test/good/000.png",
    "train/good/000.png": "1 test images are also train images: test/crack/7.png = train/good/000.png",
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("good", GOOD_AS_DEFECT)
def test_a_copy_of_a_good_image_in_a_defect_folder_is_named_with_its_twin(sound: Path, good: str, masked: bool) -> None:
    _file_as_crack(sound, good, masked)
    with pytest.warns(DataWarning) as caught:
        test = load(sound).test
    assert [str(w.message) for w in caught] == [f"data/part: {GOOD_AS_DEFECT[good]}"]
    assert test.labels[test.paths.index("test/crack/7.png")]


def test_a_good_image_that_is_everywhere_is_named_for_each_reason(sound: Path) -> None:
    _file_as_crack(sound, "train/good/000.png", masked=True)
    (sound / "test/good/7.png").write_bytes((sound / "train/good/000.png").read_bytes())
    with pytest.warns(DataWarning) as caught:
        load(sound)
    twin = "train/good/000.png"
    assert [str(w.message) for w in caught] == [
        f"data/part: 2 test images are also train images: test/crack/7.png = {twin}; test/good/7.png = {twin}",
        "data/part: 1 anomalous test images are also good ones: test/crack/7.png = test/good/7.png",
    ]


def test_two_defects_that_are_one_image_are_no_contradiction(sound: Path) -> None:
    (sound / CRACK).write_bytes((sound / "test/crack/001.png").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(sound)


def test_files_of_one_size_are_told_apart_by_content(sound: Path) -> None:
    for i, name in enumerate(("train/good/0.bmp", "test/good/0.bmp")):
        save(sound / name, np.random.default_rng(i).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    # Equal in size and in the middle, different only in the last pixel.
    (sound / "train/good/1.bmp").write_bytes((sound / "test/good/0.bmp").read_bytes()[:-1] + b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(sound)


@pytest.mark.parametrize(("gone", "kind"), [("good", "normal"), ("crack", "defective")])
def test_a_test_set_of_one_kind_is_told_before_the_training(sound: Path, gone: str, kind: str) -> None:
    remove(sound, f"test/{gone}/*")
    remove(sound, f"ground_truth/{gone}/*")
    message = f"^data/part: no {kind} test images, so no metric is defined; the threshold comes"
    with pytest.warns(DataWarning, match=message):
        load(sound)


def test_without_a_folder_test_there_is_an_empty_test_set(sound: Path) -> None:
    shutil.rmtree(sound / "test")
    message = "^data/part: no normal and no defective test images, so no metric is defined;"
    with pytest.warns(DataWarning, match=message):
        found = load(sound)
    assert len(found.test) == 0 and len(found.train) > 0 and not found.test.has_masks
    assert found.test.images().shape[0] == 0 and found.test.sha256 and found.test.labels.tolist() == []


@pytest.mark.parametrize("kept", ["test/good", "test", "test/crack"])
def test_empty_folders_of_test_images_are_an_empty_test_set(sound: Path, kept: str) -> None:
    shutil.rmtree(sound / "test")
    shutil.rmtree(sound / "ground_truth")
    (sound / kept).mkdir(parents=True)
    with pytest.warns(DataWarning, match="^data/part: no normal and no defective test images, so no metric"):
        found = load(sound)
    assert (len(found.train), len(found.test), found.test.has_masks) == (3, 0, False)
    assert found.test.masks().shape == (0, HEIGHT, WIDTH) and found.test.masks().dtype == bool


def test_files_are_hashed_only_where_size_and_middle_agree_and_once(sound: Path, monkeypatch) -> None:
    hashed = []
    content = FileSource.content
    monkeypatch.setattr(FileSource, "content", lambda s, i: hashed.append(s.image_names[i]) or content(s, i))
    looked = []
    probe = folder._probe
    monkeypatch.setattr(folder, "_probe", lambda s, i: looked.append(s.paths[i]) or probe(s, i))
    for i in range(3):  # equal in size alone
        save(sound / f"train/good/{i}.bmp", picture(30 + i))
    save(sound / "train/good/large.bmp", np.tile(picture(30), (2, 1, 1)))
    load(sound)
    assert hashed == [] and {f"train/good/{i}.bmp" for i in range(3)} <= set(looked)
    assert "train/good/large.bmp" not in looked
    shutil.copy(sound / "train/good/0.bmp", sound / "train/good/copy.bmp")
    with pytest.warns(DataWarning, match="1 training images are copies of others, 7 are distinct"):
        found = load(sound)
    assert sorted(hashed) == ["train/good/0.bmp", "train/good/copy.bmp"]
    assert found.train.sha256 and found.train.subset([1, 0]).sha256 and found.test.sha256
    assert sorted(hashed) == sorted(found.train.paths + found.test.paths)


def test_copies_among_training_images_are_named(sound: Path) -> None:
    names = sorted((sound / "train/good").iterdir())
    shutil.copy(names[0], names[0].with_name("copy.png"))
    said = f"^data/part: 1 training images are copies of others, {len(names)} are distinct: remove the copies, "
    said += rf".*: train/good/copy.png = train/good/{names[0].name}$"
    with pytest.warns(DataWarning, match=said):
        load(sound)


def test_a_sound_category_gives_no_warning(sound: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_all(sound)
