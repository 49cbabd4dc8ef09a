"""Bring a benchmark to the data root: from its publisher, from a mirror, or from what a person put there.

Layout under the root: `mvtec_ad/<category>`, `visa`, `btad`, `mpdd/<category>`, `mtd`, `pcb_bank`, `dtd`,
`mnist/MNIST/raw`, `fashion_mnist/FashionMNIST/raw`, `cifar10/cifar-10-batches-py`. Archives wait in
`downloads/<benchmark>`, where a person may put them too; a folder appears in the layout only when what was asked for is
whole in it. A person may also have categories of VisA and PCB-Bank in MVTec layout: `visa/<category>/train/good`, ...
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from uad_core.datasets.archives import ARCHIVE_SUFFIXES, BadArchive, move_into_place, unpacked
from uad_core.datasets.sources import Benchmark, RawFile, Tree, find
from uad_core.datasets.transfer import retrieve, wrong
from uad_core.errors import UserError

__all__ = ["fetch"]

log = logging.getLogger(__name__)

# What counts as a file of the data: images, tables, and CIFAR-10's batches without a suffix.
COUNTED = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".csv", ""}
# How many folders deep an archive may hide what it holds.
DEEPEST = 4


def fetch(name: str, category: str | None, root: Path, progress: bool = True) -> Path:
    """Make a benchmark, or one category of it, complete under `root` and return its folder.

    Returns at once, without network, where it is complete already. An archive in `root/downloads/<name>` is checked and
    unpacked instead of downloaded. Processes that fetch the same benchmark wait for each other.

    Raises:
        UserError: if there is no such benchmark or category; if it cannot be downloaded, or only by hand (with what
            to do); if an archive is wrong or unsafe; if a folder is there but incomplete; if the disk is full or
            read-only.
    """
    benchmark = find(name)
    root = Path(root).expanduser()
    pieces = benchmark.pieces_of(category)
    try:
        if any(_lacks(piece, root, category) for piece in pieces):
            store = root / "downloads" / name
            with _alone(store):
                for piece in pieces:
                    if _lacks(piece, root, category):
                        _bring(benchmark, piece, category, root, store, progress)
    except OSError as error:
        where = error.filename or root
        raise UserError(f"{where}: {error.strerror or error}; choose another folder with --root or UAD_DATA") from error
    folder = root / name / (category or "")
    return folder if folder.is_dir() else root / name


def _lacks(piece: Tree | RawFile, root: Path, category: str | None) -> str | None:
    """Say what a category, or everything, misses of a piece under the root; None if it is complete."""
    if isinstance(piece, Tree):
        return _lacks_files(piece, root / piece.folder, category)
    packed = root / piece.folder / piece.archive.file
    plain = packed.with_suffix("")
    if plain.is_file() and plain.stat().st_size == piece.plain_size:
        return None
    if not packed.is_file():
        return "is not there"
    # Not the hash: other distributors compress the same bytes anew. A gzip file ends with the length of its content.
    with packed.open("rb") as file:
        file.seek(-min(4, packed.stat().st_size), os.SEEK_END)
        length = int.from_bytes(file.read(), "little")
    return None if length == piece.plain_size else f"is cut or no gzip file of {piece.plain_size:,} bytes"


def _lacks_files(tree: Tree, folder: Path, category: str | None) -> str | None:
    """Compare the folder with the published counts."""
    if not folder.is_dir():
        return "is not there"
    for pattern, expected in _expected(tree, folder, category).items():
        found = sum(_counts(path) for path in folder.glob(pattern))
        if found != expected:
            return f"has {found} files in {pattern}, {expected} were published"
    return None


def _expected(tree: Tree, folder: Path, category: str | None) -> dict[str, int]:
    """Return the counts to compare with: where a person has rearranged a category, those of its new layout."""
    known = set(tree.rearranged)
    asked = known & {category} or known
    moved = {name for name in asked if (folder / name / "train").is_dir()}
    expected = {pattern: n for name in sorted(moved) for pattern, n in tree.rearranged[name].items()}
    if known and moved == asked:
        return expected  # the table that divides the others is not needed
    skipped = known - (asked - moved)
    return expected | {pattern: n for pattern, n in tree.counts.items() if pattern.split("/")[0] not in skipped}


def _counts(path: Path) -> bool:
    return path.suffix.lower() in COUNTED and not path.name.startswith(".") and path.is_file()


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Hold the lock of this store; wait for the process that has it."""
    store.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process fetches into %s: waiting for it", store)
        held = lock.acquire()
    with held:
        yield


def _bring(
    benchmark: Benchmark, piece: Tree | RawFile, category: str | None, root: Path, store: Path, progress: bool
) -> None:
    """Make one piece complete, or at least the category of it."""
    target = root / piece.folder
    hint = _by_hand(benchmark, piece, root, store)
    if isinstance(piece, RawFile):
        path = target / piece.archive.file
        if path.exists():
            raise UserError(f"{path}: the file {_lacks(piece, root, category)}; delete it, then fetch it again")
        archive = retrieve(piece.archive, store, hint, progress)
        target.mkdir(parents=True, exist_ok=True)
        os.replace(archive, path)
        return
    if target.is_dir() and any(target.iterdir()):
        lacks = _lacks(piece, root, category)
        remedy = "add what is missing, or move the folder elsewhere or delete it, then fetch it again"
        raise UserError(f"{target}: {lacks}; {remedy}")
    placed = list(_placed(benchmark, piece, store))
    if any(_unpack(archive, benchmark, piece, category, root, progress) for archive in placed):
        return
    if placed:
        names = ", ".join(archive.name for archive in placed)
        raise UserError(f"{store}: no {piece.name} with {piece.marker} in {names}; {hint}")
    if piece.archive is None:
        raise UserError(f"{target}: not there, and only a person can download it: {hint}")
    archive = retrieve(piece.archive, store, hint, progress)
    try:
        if not _unpack(archive, benchmark, piece, category, root, progress):
            raise BadArchive(f"{piece.archive.file}: no {piece.marker} in it; the file was deleted; {hint}")
    except BadArchive:
        archive.unlink()
        raise
    archive.unlink()


def _placed(benchmark: Benchmark, tree: Tree, store: Path) -> Iterator[Path]:
    """Yield the archives in the store that may hold the tree, checked against what was published, if anything was."""
    if tree.archive is None:
        files = [p for p in store.iterdir() if p.is_file() and p.name.lower().endswith(ARCHIVE_SUFFIXES)]
        # The one named like the category first: the others may be large.
        yield from sorted(files, key=lambda p: (tree.name not in p.name.lower(), p.name))
        return
    for archive in filter(None, (tree.archive, benchmark.whole)):
        path = store / archive.file
        if path.is_file():
            if reason := wrong(path, archive):
                raise UserError(f"{path}: the file {reason}; delete it, or put the right one there: {benchmark.page}")
            yield path


def _unpack(
    archive: Path, benchmark: Benchmark, wanted: Tree, category: str | None, root: Path, progress: bool
) -> bool:
    """Unpack the trees of the benchmark that the archive holds and the root lacks; tell whether `wanted` is among them.

    Raises:
        BadArchive: if the counts of a tree differ from the published ones. Then nothing is moved into place.
    """
    target = root / wanted.folder
    for stale in target.parent.glob(f".{target.name}.*.unpacking"):
        shutil.rmtree(stale, ignore_errors=True)
    single = len(benchmark.pieces) == 1 or archive.name.split(".")[0] == wanted.name
    others = () if single else (p for p in benchmark.pieces if p is not wanted and not (root / p.folder).exists())
    found = {}
    with unpacked(archive, target, progress=progress) as inside:
        for tree in (wanted, *others):
            folder = _locate(tree, inside, single)
            if folder and (lacks := _lacks_files(tree, folder, category)):
                raise BadArchive(f"{archive}: {tree.name} {lacks}; nothing was unpacked. Fetch the archive again")
            if folder:
                found[tree.folder] = folder
        for place, folder in found.items():
            move_into_place(folder, root / place)
    return wanted.folder in found


def _locate(tree: Tree, inside: Path, single: bool) -> Path | None:
    """Return the folder that is the tree: the one of its name, or any with its marker if it must be the only one."""
    places, level = [], [inside]
    for _ in range(DEEPEST):
        markers = (tree.marker, *(f"{name}/train/good" for name in tree.rearranged))
        places += [folder for folder in level if any((folder / marker).exists() for marker in markers)]
        level = [child for folder in level for child in sorted(folder.iterdir()) if child.is_dir()]
    named = [folder for folder in places if folder.name == tree.name]
    return next(iter(named or (places if single else ())), None)


def _by_hand(benchmark: Benchmark, piece: Tree | RawFile, root: Path, store: Path) -> str:
    """Say which file to get, from which page, and where to put it."""
    if isinstance(piece, RawFile):
        store = root / piece.folder
    also = ""
    if isinstance(piece, Tree) and piece.rearranged:
        example = root / piece.folder / next(iter(piece.rearranged))
        also = f"; categories in MVTec layout serve as well, so that {example / 'train/good'} exists"
    if piece.archive:
        return f"download {piece.archive.file} from {benchmark.page} with a browser and put it into {store}{also}"
    return (
        f"open {benchmark.page}, {benchmark.by_hand}, and put the archive (zip or tar, any name) into {store}, "
        f"or what it holds into {root / benchmark.name}, so that {root / piece.folder / piece.marker} exists{also}"
    )
