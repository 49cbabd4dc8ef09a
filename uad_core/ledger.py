"""The ledger: one small JSON file for each run, from which every table and every number of the book is computed.

A file holds what `result.json` holds and nothing of the machine but what a number depends on (processor, threads,
versions): no path, no host, no person. Its name follows from what was run, so that the same run made again replaces
its file, and another one stands beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uad_core.errors import UserError
from uad_core.files import replacing
from uad_core.methods import METHODS
from uad_core.metrics import METRICS
from uad_core.sources import code_version

__all__ = ["COSTS", "METRICS", "Result", "add", "collect", "default_folder", "file_name", "load", "outdated", "read"]

COSTS = (
    "fit_s",
    "features_s",
    "predict_ms_per_image",
    "backbone_ms_per_image",
    "peak_rss_mb",
    "peak_gpu_mb",
    "timed_images",
    "parameters",
    "model_bytes",
)

_PLAIN = ("method", "dataset", "category", "profile", "seed", "backbone", "n_train", "n_test")
_MACHINE = ("cpu", "gpu", "threads", "torch")
_SETTING = ("image_size", "settings", "joint", "members", "protocol", "n_categories")
_ORIGIN = ("config", "weights_sha256", "code_version", "data_sha256")
_COLUMNS = ["file", *_PLAIN, *_SETTING, *_ORIGIN, *METRICS, *COSTS, *_MACHINE]

Side = Annotated[int, Field(ge=1)]
Metric = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)] | None


class Fingerprint(BaseModel):
    """What a result was made of; an older one may lack any of it."""

    model_config = ConfigDict(strict=True)

    data_sha256: str | None = None
    data: dict[str, str] = {}
    weights_sha256: str | None = None
    code_version: str | None = None


class Result(BaseModel):
    """What a `result.json` must hold to be kept, beside other fields. Metrics are fractions, or null."""

    model_config = ConfigDict(strict=True)

    method: str
    dataset: str
    category: str
    profile: str
    seed: int
    backbone: str | None
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
    config: dict[str, Any]
    n_train: int
    n_test: int
    metrics: dict[str, Metric]
    per_category: dict[str, dict[str, Metric]] | None = None
    cost: dict[str, float | None]
    fingerprint: Fingerprint
    environment: dict[str, Any]
    overrides: dict[str, Any] = {}
    joint: bool = False
    protocol: str = ""


_SOURCE_TREE = Path(__file__).resolve().parents[1] / "results"
_PACKAGED = Path(__file__).resolve().parent / "results"
_PERSONAL = {"hostname", "host", "node", "user", "username", "home", "cwd"}
# A path of one machine at the start of a text or of a word in it; not the slashes of https:// or 1/2.
_MACHINE_PATH = re.compile(r"""(^|[\s='"(,])(/\w|~[/\\]|\.\.[/\\]|[A-Za-z]:[\\/]|\\\\\w|file:)""")


def default_folder() -> Path:
    """The ledger that is written to: the book's own in its source tree, else `results` in the working folder."""
    return _SOURCE_TREE if _SOURCE_TREE.is_dir() else Path("results")


def _readable_folder() -> Path:
    """The ledger that is read: `default_folder`, or the copy of the book's that an installed package carries."""
    own = default_folder()
    return own if own.is_dir() or not _PACKAGED.is_dir() else _PACKAGED


def file_name(result: Mapping[str, Any]) -> str:
    """METHOD-DATASET-CATEGORY-PROFILE-BACKBONE-SIZE-sSEED[-joint][-SETTINGS].json, the same for the same run.

    DATASET names several with commas between them; since "all" of several data sets are those that were there,
    CATEGORY then ends in a hash of their names. "joint" marks one model for several categories. SETTINGS is a hash of
    `overrides`, the settings that the user changed from their profile; a run that changed none has none. A result
    without `overrides` is told apart by the hash of its whole `config`.
    """
    words = [result[key] or "none" for key in ("method", "dataset", "category", "profile", "backbone")]
    words = [_word(word) for word in words]
    members = sorted(result.get("per_category") or {})
    if result["category"] == "all" and any(_owner(result, name) for name in members):
        words[2] = f"all+{_hash(members)}"
    name = "-".join([*words, size_text(result["image_size"]), f"s{result['seed']}"])
    name += "-joint" if result.get("joint") else ""
    settings = result.get("overrides", result["config"])
    return f"{name}-{_hash(settings)}.json" if settings else f"{name}.json"


def add(result: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Keep a run in the ledger and return its file; the same run made again replaces it.

    Args:
        result: the content of a `result.json`.
        folder: the ledger, made if it is not there.

    Raises:
        UserError: a field is missing or of the wrong kind, a text holds a path of this machine, or the folder
            cannot be written.
    """
    folder = default_folder() if folder is None else Path(folder)
    _validate(result, "the result")
    _refuse_machine(result)
    target = folder / file_name(result)
    try:
        text = json.dumps(result, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to the ledger {folder} ({error.strerror}): choose another folder") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"the result cannot be kept as JSON ({error}): use numbers, texts, lists and null") from error
    return target


def collect(runs: Path, folder: Path | None = None) -> list[Path]:
    """Add every `result.json` at or below `runs` (the `--out` of earlier runs) to the ledger.

    A run of several categories is one entry: the results of its categories, which lie below its own, are in it, and
    their verdicts under `verdicts`.

    Raises:
        UserError: there is none, or one is damaged; the sound ones before it have been added.
    """
    found = {path.parent: path for path in sorted(Path(runs).rglob("result.json"))}
    if not found:
        raise UserError(f"no result.json in {runs}: give the folder that `uad run` wrote with --out")
    whole = [path for place, path in found.items() if found.keys().isdisjoint(place.parents)]
    return [add(_with_verdicts(_load(path), path.parent), folder) for path in whole]


def _with_verdicts(result: dict[str, Any], place: Path) -> dict[str, Any]:
    """Add to a run of several models, each with a threshold of its own, what each promised and what was seen."""
    parts = {name: place / name / "result.json" for name in result.get("per_category", {})}
    if not parts or result.get("joint") or not all(path.is_file() for path in parts.values()):
        return result
    return result | {"verdicts": {name: _load(path).get("verdict") for name, path in parts.items()}}


def read(folder: Path | None = None) -> pd.DataFrame:
    """All runs as a table with one row for each run and category; empty, with all columns, where nothing was run.

    A run over several data sets, whose categories are called DATASET/CATEGORY, has rows of each data set.

    Columns: `file`, the fields of the result but the nested ones, `settings` (the overrides as text), `joint` (one
    model for several categories), `members` (the categories that share it, as text; empty for one each),
    `n_categories` of the run, what it was made with (`config` as a hash, `weights_sha256`, `code_version`, and
    `data_sha256` of the category; empty where an older result does not say), the seven metrics (NaN for null),
    the costs of the run, and `cpu`, `gpu`, `threads` and `torch` where the environment names them.

    Raises:
        UserError: a file is damaged or no result; the message names it.
    """
    folder = _readable_folder() if folder is None else Path(folder)
    rows = [row for path in sorted(folder.glob("*.json")) for row in _rows(path.name, _load(path))]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    return frame.astype({name: float for name in (*METRICS, *COSTS)})


def load(file: str, folder: Path | None = None) -> dict[str, Any]:
    """Return a run as it is kept, by the name of its file in the ledger."""
    return _load((_readable_folder() if folder is None else Path(folder)) / file)


def outdated(folder: Path | None = None) -> pd.DataFrame:
    """Return the runs that other code made than the present: columns `file`, `method`, `code_version` and `present`.

    Code counts if the method or a run depends on it, see `sources.code_version`. Raises UserError as `read`.
    """
    runs = read(folder).drop_duplicates("file")
    present = {name: code_version(METHODS[name].__module__) for name in set(runs["method"]) & set(METHODS)}
    runs = runs.assign(present=runs["method"].map(present))
    return runs.loc[runs["code_version"] != runs["present"], ["file", "method", "code_version", "present"]]


def size_text(size: int | list[int]) -> str:
    """An image size as text: 256, or 256x320 for height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return str(height) if height == width else f"{height}x{width}"


def _rows(file: str, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each category of a run."""
    parts = result.get("per_category") or {result["category"]: result["metrics"]}
    overrides = result.get("overrides", {"config": _hash(result["config"])})
    common = {name: result[name] for name in _PLAIN} | {
        "file": file,
        "backbone": result["backbone"] or "none",
        "image_size": size_text(result["image_size"]),
        "settings": " ".join(f"{key}={overrides[key]}" for key in sorted(overrides)),
        "joint": bool(result.get("joint", False)),
        "members": "; ".join(sorted(parts)) if result.get("joint") else "",
        "protocol": result.get("protocol", ""),
        "n_categories": len(parts),
    }
    made_of = result["fingerprint"]
    common |= {name: made_of.get(name) or "" for name in ("weights_sha256", "code_version")}
    common |= {"config": _hash(result["config"])}
    hashes = made_of.get("data", {} if result.get("per_category") else {result["category"]: made_of.get("data_sha256")})
    common |= {name: result["cost"].get(name) for name in COSTS}
    common |= {name: result["environment"].get(name) for name in _MACHINE}
    for name, metrics in parts.items():
        owner = _owner(result, name)
        place = {"dataset": owner or result["dataset"], "category": name.removeprefix(f"{owner}/") if owner else name}
        yield common | place | {"data_sha256": hashes.get(name) or ""} | {m: metrics.get(m) for m in METRICS}


def _owner(result: Mapping[str, Any], name: str) -> str:
    """The data set before the name of a category in a run over several; empty in a run over one."""
    owner, slash, _ = name.partition("/")
    return owner if slash and f",{owner}," in f",{result['dataset']}," and owner != result["dataset"] else ""


def _load(path: Path) -> dict[str, Any]:
    """The result that a file holds."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a readable result ({error}): run it again, or remove the file") from error
    _validate(result, str(path))
    return result


def _validate(result: Any, where: str) -> None:
    """Check that fields and metrics are there and of their kind."""
    try:
        Result.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        found = "missing" if first["type"] == "missing" else f"{first['input']!r:.40}: {first['msg']}"
        remedy = "remove it or run it again; a metric is a fraction from 0 to 1, or null"
        raise UserError(f"{where} is not the result of a run (field {field}: {found}): {remedy}") from None


def _refuse_machine(value: Any, where: str = "result") -> None:
    """Refuse texts and names that say where, or by whom, a run was made."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if str(key).lower() in _PERSONAL:
                raise UserError(f"{where}.{key} names a machine or a person: leave it out of the result")
            _refuse_machine(str(key), f"{where}.{key}")
            _refuse_machine(part, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            _refuse_machine(part, f"{where}[{i}]")
    elif isinstance(value, str) and _MACHINE_PATH.search(value):
        raise UserError(f"{where} = {value!r:.80} holds a path of this machine: give a name or a relative path")


def _word(text: str) -> str:
    """A text as one word of a file name; what had to be changed or cut ends in a hash, so that names stay different."""
    word = re.sub(r"[^A-Za-z0-9_.,]+", "+", text).strip("+.")
    return word if word == text and len(word) <= 40 else f"{word[:30]}+{_hash(text)}"


def _hash(value: Any) -> str:
    """Eight hexadecimal digits of anything that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
