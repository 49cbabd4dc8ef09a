"""Data by name: benchmarks, any folder in MVTec layout, and built-in drawn images."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import platformdirs

from uad_core.datasets import btad, dtd, elpv, folder, mpdd, mtd, mvtec_ad, one_class, pcb_bank, visa
from uad_core.datasets.base import Category, DataWarning, ImageSet, as_size
from uad_core.datasets.catalogue import CATALOGUE, Counts, DatasetInfo
from uad_core.datasets.images import shown
from uad_core.errors import UserError

__all__ = [
    "INFOS", "catalogue", "categories", "data_root", "fetch", "is_present", "load", "protocol", "textures", "verify",
]  # fmt: skip

READERS: dict[str, Callable[..., Category]] = {
    "mvtec_ad": mvtec_ad.load,
    "visa": visa.load,
    "btad": btad.load,
    "mpdd": mpdd.load,
    "mtd": mtd.load,
    "pcb_bank": pcb_bank.load,
    "mnist": one_class.load_mnist,
    "fashion_mnist": one_class.load_fashion_mnist,
    "cifar10": one_class.load_cifar10,
    "elpv": elpv.load,
}
INFOS = {info.name: info for info in CATALOGUE}


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what the operating system refuses, such as a look into a folder, into a `UserError` that names it."""
    try:
        yield
    except OSError as error:
        what = f"{shown(error.filename or 'the data')} cannot be read ({error.strerror or error})"
        raise UserError(f"{what}: check its permissions and those of the folder that it lies in") from None


def data_root(root: Path | None = None) -> Path:
    """Return the folder of all data: `root`, else $UAD_DATA, else the user's cache folder."""
    return Path(root or os.environ.get("UAD_DATA") or platformdirs.user_cache_dir("uad-core")).expanduser()


@_readable()
def load(
    dataset: str, category: str, *, root: Path | None = None, image_size: int | tuple[int, int] = 256, seed: int = 0
) -> Category:
    """Return one category of a benchmark, or of any folder in MVTec layout or of the form train/CLASS, test/CLASS.

    Args:
        dataset: a name of `catalogue()`, or the path of a folder that holds categories or is one.
        category: its name; "all" where there is only one; for one-class sets the normal class.
        root: where named data lie, see `data_root`; a folder needs none.
        image_size: side, or (H, W), that images and masks are resized to, in pixels.
        seed: what is drawn, and which normal images are for training where no split is published.

    Raises `UserError` for an unknown name, for data that are not there, and for a file that cannot
    be used, always before anything is computed; a damaged image body is reported when it is decoded.
    Warns (`DataWarning`) when counts differ from the published ones.
    """
    size = as_size(image_size)
    if dataset not in INFOS:
        return _load_folder(_folder(dataset), category, size)
    info = _info(dataset)
    category = _known(category, info.categories, f"category of {dataset}")
    if dataset == "procedural":
        from uad_core.datasets import procedural

        return procedural.load(category, image_size=size, seed=seed)
    found = _read(info, category, root, size, seed)
    difference = _difference(info, found)
    if difference:
        warnings.warn(f"{difference}, so numbers are not comparable with published ones", DataWarning, stacklevel=3)
    return found


@_readable()
def categories(dataset: str, root: Path | None = None) -> list[str]:
    """Return the categories of a benchmark, there or not, or of a folder. `root` is not needed for either."""
    if dataset in INFOS:
        return list(_info(dataset).categories)
    path = _folder(dataset)
    if one_class.is_tree(path):
        return folder.subfolders(path / "train")
    names = [path.resolve().name] if _is_single(path) else folder.categories(path)
    if not names:
        raise folder.no_category(path)
    return names


@_readable()
def protocol(dataset: str) -> str:
    """Return "inspection" (defects on one product) or "one_class" (one class is normal) for a benchmark or a folder."""
    if dataset in INFOS:
        return _info(dataset).protocol
    return "one_class" if one_class.is_tree(_folder(dataset)) else "inspection"


@_readable()
def catalogue(root: Path | None = None) -> list[DatasetInfo]:
    """Return every benchmark, with the categories that are present under `root` (see `data_root`)."""
    return [replace(info, present=_present(info, root)) for info in map(_info, INFOS)]


def fetch(dataset: str, category: str | None = None, root: Path | None = None, progress: bool = True) -> Path:
    """Bring a benchmark, or one category, to `root`, check its counts and return its folder.

    Raises `UserError` that says what to place where for data that have no address.
    """
    info = INFOS[_known(dataset, INFOS, "data set")]
    if category is not None:
        category = _known(category, _info(dataset).categories, f"category of {dataset}")
    if dataset == "procedural":
        raise UserError("procedural is drawn when it is used: write it as files with `uad data procedural --out DIR`")
    if dataset == "elpv":
        return _there(info, info.categories[0], root)
    # The classes of a one-class set share their files: to check one is to check all.
    names = [category] if category else info.categories[:1] if info.protocol == "one_class" else info.categories
    path = _locate(info, root)
    by_alias = path != data_root(root) / dataset and set(names) <= set(_present(info, root)) & set(info.counts)
    if not by_alias:  # where a person left the folder the name it came with, it is only checked
        from uad_core.datasets import download

        path = download.fetch(dataset, category, data_root(root), progress)
    for name in names:
        if name in info.counts:
            verify(dataset, name, root)
    return path


def verify(dataset: str, category: str, root: Path | None = None) -> Counts:
    """Return the counts of a category. Raises `UserError` if others were published or no mask is there."""
    info = INFOS[_known(dataset, INFOS, "data set")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        found = load(dataset, category, root=root, image_size=1)
    difference, where = _difference(info, found), f"{shown(_locate(info, root))}/{category}"
    if difference:
        raise UserError(f"{difference}: remove {where} and get it again")
    if info.has_masks and not found.test.has_masks:
        raise UserError(f"{dataset}/{category} has no masks, but they are published: add {where}/ground_truth")
    return _count(found)


def is_present(dataset: str, root: Path | None = None) -> bool:
    """Whether anything of a benchmark is under `root` (see `data_root`)."""
    return bool(_present(_info(dataset), root))


@_readable()
def textures(root: Path | None = None, image_size: int | tuple[int, int] = 256) -> ImageSet:
    """Return the textures of DTD, from which GLAD makes synthetic defects."""
    return dtd.load_textures(_there(INFOS["dtd"], "textures", root), as_size(image_size))


def _read(info: DatasetInfo, category: str, root: Path | None, size: tuple[int, int], seed: int) -> Category:
    if info.protocol == "textures":
        raise UserError(f"{info.name} has no defects to find, only textures: choose one of {_list(READERS)}")
    return READERS[info.name](_there(info, category, root), category, image_size=size, seed=seed)


def _load_folder(path: Path, category: str, size: tuple[int, int]) -> Category:
    name = path.resolve().name
    if one_class.is_tree(path):
        category = _known(category, folder.subfolders(path / "train"), f"class of {shown(path)}")
        return one_class.load_tree(path, name, category, size)
    if _is_single(path):
        return folder.load(path, name, _known(category, [name], f"category of {shown(path)}"), size)
    # A category folder that is damaged deserves to hear what is missing in it, not that it is unknown.
    if category not in folder.subfolders(path):
        category = _known(category, categories(str(path)), f"category of {shown(path)}")
    return folder.load(path / category, name, category, size)


def _is_single(path: Path) -> bool:
    return (path / "train").is_dir() or (path / "test").is_dir()


def _folder(dataset: str) -> Path:
    """Return the folder that `dataset` names, or say which data sets there are."""
    path = Path(dataset).expanduser()
    try:
        there = bool(dataset) and path.is_dir()
    except (OSError, ValueError):  # a name that no file system can hold
        there = False
    if not there:
        raise _unknown(dataset, INFOS, "data set or folder")
    return path


def _info(dataset: str) -> DatasetInfo:
    info = INFOS[dataset]
    if dataset != "procedural":
        return info
    from uad_core.datasets import procedural

    return replace(info, categories=tuple(procedural.CATEGORIES))


def _known(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `known` ("all" stands for the only one), else raise with a suggestion."""
    known = list(known)
    if name in known:
        return name
    if name == "all" and len(known) == 1:
        return known[0]
    raise _unknown(name, known, what)


def _unknown(name: str, known: Iterable[str], what: str) -> UserError:
    known = list(known)
    close = difflib.get_close_matches(name.lower(), known, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return UserError(f"no {what} is called {shown(name[:80])}: {meant}Known: {_list(known)}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _locate(info: DatasetInfo, root: Path | None) -> Path:
    """Return the folder of a benchmark: root/NAME, or what an archive of other people unpacks to."""
    base = data_root(root)
    own = base / info.name
    if info.name == "elpv":
        return elpv.installed() or own
    for candidate in [own, *(own / alias for alias in info.aliases), *(base / alias for alias in info.aliases)]:
        if any((candidate / entry).exists() for entry in info.marker or info.categories):
            return candidate
    return own


def _present(info: DatasetInfo, root: Path | None) -> tuple[str, ...]:
    if info.name == "procedural":
        return info.categories
    where = _locate(info, root)
    if info.marker:
        return info.categories if all((where / entry).exists() for entry in info.marker) else ()
    return tuple(name for name in info.categories if (where / name).is_dir())


def _there(info: DatasetInfo, category: str, root: Path | None) -> Path:
    if category not in _present(info, root):
        remedy = f"{info.instruction(category)}, or name another folder by --root or UAD_DATA"
        raise UserError(f"{info.name}/{category} is not in {shown(data_root(root))}: {remedy}")
    return _locate(info, root)


def _count(found: Category) -> Counts:
    return Counts(len(found.train), len(found.test), int(found.test.labels.sum()))


def _difference(info: DatasetInfo, found: Category) -> str:
    published, here = info.counts[found.category], _count(found)
    if here == published:
        return ""
    return (
        f"{info.name}/{found.category} has {here.train} train and {here.test} test images ({here.anomalous} anomalous) "
        f"instead of {published.train} and {published.test} ({published.anomalous})"
    )
