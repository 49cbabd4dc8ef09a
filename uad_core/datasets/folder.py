"""Any folder in MVTec layout, and the steps that all data sets made of files share.

```
CATEGORY/train/good/*.png                          normal images to learn from
CATEGORY/test/good/*.png                           normal images to judge
CATEGORY/test/DEFECT/NAME.png                      defective images to judge
CATEGORY/ground_truth/DEFECT/NAME_mask.png         their masks, or DEFECT/NAME with any suffix
```

"good" may be called "ok" or "normal". Without a folder test, or without an image in it, there is
nothing to judge, and the test set is empty. Hidden files and files that are no images are passed
over; a folder where an image should be, an image of a kind that is not read, a mask
without an image or an image without a mask is an error. Without any mask in
`ground_truth`, or without `ground_truth`, pixel metrics are undefined and `has_masks` is False.
Masks of normal images are not needed and not read. The folder decides what an image is: one in
test/DEFECT with a black mask is anomalous all the same. Symbolic links are followed wherever
they lead, because nothing is ever written below a data folder.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from uad_core.datasets.base import Category, DataWarning, ImageSet
from uad_core.datasets.images import SUFFIXES, FileSource, shown
from uad_core.errors import UserError

__all__ = [
    "GOOD", "Item", "as_category", "categories", "image_files", "image_set", "is_category", "load", "no_category",
    "subfolders",
]  # fmt: skip

GOOD = ("good", "ok", "normal")
HOMES = {"train": ("train/good",), "test": ("test/good", "test/DEFECT"), "ground_truth": ("ground_truth/DEFECT",)}
PROBE_BYTES = 1 << 16
LISTED = 10


@dataclass(frozen=True)
class Item:
    """One image of a set: its path below the category folder, what is wrong with it, and its mask."""

    path: str
    defect: str = "good"
    mask: str | None = None


def load(
    folder: Path, dataset: str, category: str, image_size: int | tuple[int, int], label_map: bool = False
) -> Category:
    """Return the category in `folder`, which has MVTec layout; in a `label_map` mask whatever is not 0 is a defect.

    Raises `UserError` that names the file or folder at fault, and warns (`DataWarning`) of images that are in both
    splits or filed both as good and as a defect, and of a test set that has only one kind of images.
    """
    train = _train_items(folder)
    test = _test_items(folder)
    has_masks = any(item.mask for item in test)
    about = {"dataset": dataset, "category": category, "image_size": image_size}
    return as_category(
        image_set(folder, train, split="train", has_masks=has_masks, **about),
        image_set(folder, test, split="test", has_masks=has_masks, label_map=label_map, **about),
    )


def is_category(folder: Path) -> bool:
    """Whether `folder` looks like a category in MVTec layout: it has train/good."""
    return any((folder / "train" / good).is_dir() for good in GOOD)


def categories(folder: Path) -> list[str]:
    """Return the names of the categories in `folder`, sorted."""
    return [name for name in subfolders(folder) if is_category(folder / name)]


def image_set(
    folder: Path, items: Sequence[Item], *, dataset: str, category: str, split: str,
    image_size: int | tuple[int, int], has_masks: bool, label_map: bool = False,
) -> ImageSet:  # fmt: skip
    """Return the files that `items` names as an `ImageSet`; whatever is not "good" is anomalous."""
    paths = [item.path for item in items]
    return ImageSet(
        dataset=dataset, category=category, split=split, image_size=image_size, paths=paths,
        labels=[item.defect != "good" for item in items], defects=[item.defect for item in items],
        source=FileSource(folder, paths, [item.mask for item in items], label_map), has_masks=has_masks,
    )  # fmt: skip


def as_category(train: ImageSet, test: ImageSet, protocol: str = "inspection") -> Category:
    """Return both splits of files as a `Category`, after a look at what would spoil its numbers."""
    where = f"{test.dataset}/{test.category}"
    missing = [kind for kind, there in (("normal", ~test.labels), ("defective", test.labels)) if not there.any()]
    if missing:
        what = f"no {' and no '.join(missing)} test images, so no metric is defined"
        warnings.warn(f"{where}: {what}; the threshold comes from training images", DataWarning, stacklevel=3)
    twins = _twins(train, test)
    copies = [(path, learned[0]) for learned, _, _ in twins for path in learned[1:]]
    if copies:
        what = f"{len(copies)} training images are copies of others, {len(train) - len(copies)} are distinct"
        remedy = "remove the copies, or calibration is too sure of itself"
        warnings.warn(f"{where}: {what}: {remedy}: {_listed(copies)}", DataWarning, stacklevel=3)
    for pairs, what in (
        ([(path, a[0]) for a, b, c in twins if a for path in b + c], "test images are also train images"),
        ([(path, b[0]) for _, b, c in twins if b for path in c], "anomalous test images are also good ones"),
    ):
        if pairs:
            warnings.warn(f"{where}: {len(pairs)} {what}: {_listed(pairs)}", DataWarning, stacklevel=3)
    return Category(test.dataset, test.category, train, test, protocol)


def _listed(pairs: list[tuple[str, str]]) -> str:
    """Name pairs of equal files, the first of them where there are many."""
    return "; ".join([f"{shown(a)} = {shown(b)}" for a, b in sorted(pairs)[:LISTED]] + ["..."] * (len(pairs) > LISTED))


def no_category(folder: Path) -> UserError:
    """Return what to say of a folder in which no category was found: where normal images belong."""
    loose = _loose(folder)
    if loose:
        name = shown(folder.resolve().name)
        return UserError(f"{shown(loose[0])} lies directly in {name}: put normal images into {_home(folder, 'train')}")
    remedy = "put normal images into NAME/train/good, or see `uad list` for named data sets"
    return UserError(f"{shown(folder)}: no folder in it has train/good: {remedy}")


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted, hidden ones left out."""
    return [path.name for path in _entries(folder) if path.is_dir()]


def image_files(folder: Path) -> list[str]:
    """Return the names of the image files in `folder`, sorted by code point.

    Raises `UserError` for a folder among them and for images of a kind that is not read.
    """
    names = []
    for path in _entries(folder):
        suffix = path.suffix.lower()
        if path.is_dir():
            raise UserError(f"{shown(path)} is a folder where images are expected: move its images up or remove it")
        if suffix in SUFFIXES:
            names.append(path.name)
        elif suffix in Image.registered_extensions():
            raise UserError(f"{shown(path)}: {suffix} images are not read: convert them to PNG")
    return names


def _entries(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be listed ({error.strerror}): check the path") from None
    for path in found:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{shown(path)}: the name is not valid UTF-8: rename the file") from None
    return found


def _kinds(folder: Path) -> list[str]:
    """Return the sub-folders of train, test or ground_truth, one per kind of image."""
    loose = _loose(folder)
    if loose:
        remedy = f"put it into {_home(folder.parent, folder.name)}"
        raise UserError(f"{shown(loose[0])} lies directly in {folder.name}: {remedy}")
    return subfolders(folder)


def _loose(folder: Path) -> list[Path]:
    """Return the image files that lie directly in `folder`."""
    return [path for path in _entries(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir()]


def _home(category: Path, part: str) -> str:
    """Return where images belong: NAME/train/good, with the name of the category's folder."""
    return " or ".join(f"{shown(category.resolve().name)}/{home}" for home in HOMES[part])


def _train_items(folder: Path) -> list[Item]:
    train = folder / "train"
    if not train.is_dir():
        if _loose(folder):
            raise no_category(folder)
        raise UserError(f"{shown(folder)} has no folder train: put normal images into {_home(folder, 'train')}")
    found = _kinds(train)
    others = [name for name in found if name not in GOOD]
    if others:
        remedy = f"move its images into train/good if they are normal, else into test/{shown(others[0])}"
        raise UserError(f"{shown(train / others[0])}: all training images are normal: {remedy}")
    items = [Item(f"train/{good}/{name}") for good in found for name in image_files(train / good)]
    if not items:
        raise UserError(f"{shown(train)}: no image in train/good: put normal PNG, JPEG, BMP or TIFF images there")
    return items


def _test_items(folder: Path) -> list[Item]:
    test = folder / "test"
    if not test.exists():
        return []
    found = {defect: image_files(test / defect) for defect in _kinds(test)}
    masks = _mask_files(folder / "ground_truth", found)
    items = []
    for defect, names in found.items():
        if defect in GOOD:
            items += [Item(f"test/{defect}/{name}") for name in names]
        else:
            pairs = _paired(folder, defect, names, masks[defect]) if any(masks.values()) else dict.fromkeys(names)
            items += [Item(f"test/{defect}/{name}", defect, mask) for name, mask in pairs.items()]
    return items


def _mask_files(truth: Path, found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the mask names of each defect of the test set."""
    masks: dict[str, list[str]] = {defect: [] for defect in found}
    for defect in _kinds(truth) if truth.is_dir() else []:
        if defect in GOOD:
            continue
        masks[defect] = image_files(truth / defect)
        if masks[defect] and not found.get(defect):
            raise UserError(f"{shown(truth / defect)} holds masks without images: remove it or fill test/{defect}")
    return masks


def _paired(folder: Path, defect: str, images: list[str], masks: list[str]) -> dict[str, str]:
    """Return image name -> path of its mask, each mask used exactly once."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        by_stem[_stem(mask)].append(mask)
    pairs, used = {}, set()
    for image in images:
        stem = _stem(image)
        fitting = by_stem.get(f"{stem}_mask", []) + by_stem.get(stem, [])
        here = folder / "test" / defect / image
        if not fitting:
            name = f"ground_truth/{defect}/{Path(image).stem}_mask.png"
            remedy = (
                f"add {shown(name)} (black if nothing is marked), move the image to test/good if it is good, "
                "or remove ground_truth to skip pixel metrics"
            )
            raise UserError(f"{shown(here)} has no mask: {remedy}")
        if len(fitting) > 1 or fitting[0] in used:
            listed = ", ".join(map(shown, fitting))
            raise UserError(f"{shown(here)}: images and masks ({listed}) do not pair up: keep one mask for each image")
        used.add(fitting[0])
        pairs[image] = f"ground_truth/{defect}/{fitting[0]}"
    unused = [mask for mask in masks if mask not in used]
    if unused:
        mask = folder / "ground_truth" / defect / unused[0]
        raise UserError(f"{shown(mask)} masks no image: remove it or add its image to test/{defect}")
    return pairs


def _stem(name: str) -> str:
    # Accents may be stored as one character or as two, depending on the system that wrote the name.
    return unicodedata.normalize("NFC", Path(name).stem)


def _twins(train: ImageSet, test: ImageSet) -> list[tuple[list[str], list[str], list[str]]]:
    """Return the paths of files with equal bytes, group by group: training, normal test and anomalous test images."""
    groups = [[(images, i) for images in (train, test) for i in range(len(images))]]
    # Sizes first, then a piece from the middle, and whole files only where both agree.
    for key in (_bytes, _probe, lambda images, i: images.source.digests(images.rows[i])[0]):
        groups = [alike for group in groups for alike in _alike(group, key)]
    twins = []
    for group in groups:
        kinds: tuple[list[str], list[str], list[str]] = [], [], []
        for images, i in group:
            kinds[0 if images is train else 1 + int(images.labels[i])].append(images.paths[i])
        twins.append(kinds)
    return twins


def _alike(
    files: list[tuple[ImageSet, int]], key: Callable[[ImageSet, int], Hashable]
) -> list[list[tuple[ImageSet, int]]]:
    """Return the files whose keys agree, group by group, without those that are alone."""
    found = defaultdict(list)
    for file in files:
        found[key(*file)].append(file)
    return [group for group in found.values() if len(group) > 1]


def _bytes(images: ImageSet, i: int) -> int:
    return (images.source.folder / images.paths[i]).stat().st_size


def _probe(images: ImageSet, i: int) -> int:
    with (images.source.folder / images.paths[i]).open("rb") as file:
        file.seek(max(0, _bytes(images, i) // 2 - PROBE_BYTES // 2))
        return hash(file.read(PROBE_BYTES))
