"""What a run is about: the categories that the texts of `--dataset` and `--category` name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from uad_core import datasets
from uad_core.errors import UserError

__all__ = ["Member", "select"]


@dataclass(frozen=True)
class Member:
    """One category of a run.

    Attributes:
        source: the data set as it was given, a name or the path of a folder.
        dataset: its name; a folder's own, without the path.
        category: its name.
        name: what the run's results call it: "bottle", or "mvtec_ad/bottle" in a run over several data sets.
    """

    source: str
    dataset: str
    category: str
    name: str

    @property
    def qualified(self) -> str:
        """DATASET/CATEGORY."""
        return f"{self.dataset}/{self.category}"


def select(dataset: str, category: str, root: Path | None = None) -> list[Member]:
    """Return the categories that a run takes, in order.

    Args:
        dataset: a name or a folder, or several with commas between them.
        category: one, several as "a,b,c", or "all"; of names that have commas themselves the longest that fits is
            taken. With several data sets a category is written DATASET/CATEGORY wherever two have one of that name,
            and "all" are those that are present under `root`.
        root: where named data lie.

    Raises:
        UserError: an unknown, ambiguous or repeated name. The name of a single category of a single data set is left
            to `datasets.load`, which can say what is wrong with its folder.
    """
    sources = _sources(dataset)
    only = category.strip()
    if len(sources) == 1 and "," not in category and only not in ("", "all"):
        return [_member(sources[0], only)]
    offered = [_member(source, known) for source in sources for known in datasets.categories(source, root)]
    wanted = _split(category, {name for member in offered for name in (member.category, member.qualified)})
    if wanted == ["all"]:
        chosen = offered if len(sources) == 1 else _present(sources, offered, root)
    else:
        chosen = [_find(name, offered, dataset) for name in wanted]
    if len(set(chosen)) != len(chosen) or not chosen:
        example = ",".join(member.name for member in offered[:2])
        raise UserError(f"--category {category!r} names no category or one twice: write such as {example}")
    several = len({member.dataset for member in chosen}) > 1
    return [replace(member, name=member.qualified) for member in chosen] if several else chosen


def _sources(dataset: str) -> list[str]:
    """Return the data sets of a text such as "a,b"; a folder whose path has a comma is one."""
    if "," not in dataset or _is_folder(dataset):
        return [dataset]
    sources = [source.strip() for source in dataset.split(",") if source.strip()]
    names = [_name(source) for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not sources:
        what = "no data set" if twice is None else f"two data sets called {twice}"
        raise UserError(f"--dataset {dataset!r} names {what}: write such as procedural,mvtec_ad, or rename a folder")
    return sources


def _split(category: str, known: set[str]) -> list[str]:
    """Return the names in a text such as "a,b": of several that begin alike the longest of `known`, else one piece."""
    pieces = category.split(",")
    longest = 1 + max((name.count(",") for name in known), default=0)
    names, start = [], 0
    while start < len(pieces):
        for end in range(min(start + longest, len(pieces)), start, -1):
            name = ",".join(pieces[start:end]).strip()
            if name in known:
                break
        names += [name] if name else []
        start = end
    return names


def _is_folder(dataset: str) -> bool:
    try:
        return Path(dataset).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # a name that no file system can hold
        return False


def _name(source: str) -> str:
    """Return what results call a data set: never a path of this machine."""
    return source if source in datasets.INFOS or not _is_folder(source) else Path(source).expanduser().resolve().name


def _member(source: str, category: str) -> Member:
    return Member(source, _name(source), category, category)


def _present(sources: list[str], offered: list[Member], root: Path | None) -> list[Member]:
    """Return what is there of each data set. Raises UserError for one of which nothing is there."""
    here = {info.name: info.present for info in datasets.catalogue(root)}
    for source in sources:
        if here.get(source) == ():
            get = f"run `uad data {source}`, or leave it out of --dataset"
            raise UserError(f"no category of {source} is in {datasets.data_root(root)}: {get}")
    return [member for member in offered if member.category in here.get(member.source, [member.category])]


def _find(name: str, offered: list[Member], dataset: str) -> Member:
    """Return the category that a text stands for, with its data set before it or not."""
    found = [member for member in offered if name in (member.category, member.qualified)]
    if len(found) > 1:
        owners = " and ".join(member.dataset for member in found)
        raise UserError(f"--category {name!r} is in {owners}: write such as {found[0].qualified}")
    if not found:
        several = len({member.source for member in offered}) > 1
        known = ", ".join(member.qualified if several else member.category for member in offered)
        raise UserError(f"no category of {dataset} is called {name!r}: choose among {known}")
    return found[0]
