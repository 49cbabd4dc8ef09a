"""One run: data, method and seed in, the row of a table out.

A run leaves a folder that anyone can check: `result.json` (what was run, on what, with which metrics and at which
cost), `maps.npz` (every anomaly map and mask, enough to recompute every metric) and `model/`. A run that was killed
goes on from its checkpoint, a finished one is never computed twice nor overwritten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uad_core import datasets, methods, metrics
from uad_core.cost import Stopwatch, environment, measure_cost, sources_digest
from uad_core.datasets import Category, ImageSet
from uad_core.datasets.joined import joined
from uad_core.datasets.selection import Member, select
from uad_core.errors import UserError
from uad_core.features import Features, extract
from uad_core.methods.base import Detector, FeatureDetector

__all__ = ["Experiment", "run"]


@dataclass(frozen=True)
class Experiment:
    """What determines a run; see `uad run --help` for the meaning of each field."""

    method: str
    dataset: str
    category: str
    root: Path | None = None
    profile: str = "cpu"
    backbone: str | None = None
    image_size: int | None = None
    seed: int = 0
    device: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    joint: bool | None = None

    def detector(self, protocol: str) -> Detector:
        """Build the unfitted detector of this run."""
        names = ("profile", "backbone", "image_size", "seed", "device")
        options = {**{name: getattr(self, name) for name in names}, "protocol": protocol}
        for key in options.keys() & self.settings.keys():
            raise UserError(f"{key} is no setting that --set changes: see the options of `uad run --help`")
        return methods.create(self.method, **options, **self.settings)

    def data(self, member: Member, image_size: tuple[int, int]) -> Category:
        """Load one category at the detector's size; refuse what cannot be fitted or judged."""
        source, category = member.source, member.category
        loaded = datasets.load(source, category, root=self.root, image_size=image_size, seed=self.seed)
        labels = loaded.test.labels
        if labels.all() or not labels.any():
            has = "no" if not labels.any() else "only"
            remedy = "metrics need normal and defective ones there"
            raise UserError(f"{source}/{category}: test has {has} defective images; {remedy}")
        return loaded

    def protocol(self, members: list[Member]) -> str:
        """Return the protocol that all categories follow; raise UserError where they follow different ones."""
        found = {datasets.protocol(member.source): member.dataset for member in members}
        if len(found) > 1:
            names = " and ".join(found.values())
            raise UserError(f"--dataset {self.dataset!r}: {names} are judged by different protocols: run them apart")
        return next(iter(found))

    def one_model(self, members: list[Member], protocol: str) -> bool:
        """Whether one model serves all: a single category's, or a shared one as the user, else the method, wants it.

        Raises UserError where the user asks for sharing and one class is normal.
        """
        if len(members) == 1:
            return True
        if protocol == "one_class":
            if self.joint:
                remedy = "leave --joint out, or name data with defects"
                raise UserError(f"--joint: in {self.dataset} only one class at a time is normal: {remedy}")
            return False
        return methods.method_class(self.method).joint if self.joint is None else self.joint


def run(experiment: Experiment, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Fit and evaluate one category, or several by one model or one after another, into `out`; return the result.

    Raises UserError for bad input, and for a folder that holds another run or cannot be written.
    """
    members = select(experiment.dataset, experiment.category, experiment.root)
    protocol = experiment.protocol(members)
    one_model = experiment.one_model(members, protocol)
    out = Path(out)
    with _disk_errors(out), _claimed(out):
        if one_model:
            return _run_one(experiment, members, protocol, out, None, progress)
        return _run_each(experiment, members, protocol, out, progress)


def _run_one(
    experiment: Experiment, members: list[Member], protocol: str, out: Path, cache: Path | None, progress: bool
) -> dict[str, Any]:
    """Fit one model and evaluate each of its categories; `cache` keeps test features that several runs share."""
    detector = experiment.detector(protocol)
    data = {member.name: experiment.data(member, detector.image_size) for member in members}
    frame = _frame(experiment, detector, data)
    finished = _finished(out, frame)
    if finished is not None:
        return finished
    tests = joined([part.test for part in data.values()])
    _require_space(out, len(tests), detector)
    _decode_all(tests)
    times = _fit(detector, joined([part.train for part in data.values()]), out / "checkpoint.pt", progress)
    arrays, found = _evaluate(detector, data, cache, progress)
    model = methods.save(detector, out / "model")
    result = {
        **frame,
        "metrics": _average(list(found.values())),
        **({"per_category": found} if len(data) > 1 else {}),
        "cost": {**times, **measure_cost(detector, tests, model)},
        "environment": environment(detector.device),
    }
    _write_npz(out / "maps.npz", arrays)
    _write_json(out / "result.json", result)
    for checkpoint in out.glob("checkpoint*.pt"):  # a method that trains in steps keeps one for each
        checkpoint.unlink()
    return result


def _run_each(
    experiment: Experiment, members: list[Member], protocol: str, out: Path, progress: bool
) -> dict[str, Any]:
    """One model per category, each in a folder of its own; finished ones are taken as they are."""
    head = {key: getattr(experiment, key) for key in ("method", "category", "profile", "seed")}
    _finished(out, {**head, "overrides": experiment.settings, "dataset": _datasets(members), "joint": None})
    results = {}
    cache = out / "features" if protocol == "one_class" else None
    for member in members:
        place = out / member.name
        with _claimed(place.parent), _claimed(place):
            results[member.name] = _run_one(experiment, [member], protocol, place, cache, progress)
    combined = _combine(experiment, _datasets(members), results)
    _join_maps(out, list(results))
    _write_json(out / "result.json", combined)
    if cache:
        shutil.rmtree(cache, ignore_errors=True)
    return combined


def _datasets(parts: Iterable[Member | Category]) -> str:
    """Name the data sets of a run, each once, with commas between them."""
    return ",".join(dict.fromkeys(part.dataset for part in parts))


def _fit(detector: Detector, train: ImageSet, checkpoint: Path, progress: bool) -> dict[str, float]:
    """Fit the detector on normal images, and return how long it took, in seconds."""
    with Stopwatch(detector.device) as feature_time:
        images = _features(detector, train, progress)
    with Stopwatch(detector.device) as fit_time:
        detector.fit(images, checkpoint=checkpoint, progress=progress)
    return {"fit_s": feature_time.seconds + fit_time.seconds, "features_s": feature_time.seconds}


def _evaluate(
    detector: Detector, data: dict[str, Category], cache: Path | None, progress: bool
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float | None]]]:
    """Map and judge the test images category by category: the arrays of maps.npz, and each category's metrics."""
    arrays, found, start = _empty_arrays(detector, data), {}, 0
    for name, part in data.items():
        images = part.test if cache is None else _features(detector, part.test, progress, cache)
        maps, scores = detector.predict(images, progress=progress)
        masks = part.test.masks() if part.test.has_masks else None
        found[name] = metrics.evaluate(scores, part.test.labels, maps if masks is not None else None, masks)
        rows = slice(start, start := start + len(scores))
        arrays["anomaly_map"][rows], arrays["score"][rows] = maps, scores
        if "mask" in arrays:
            arrays["mask"][rows] = masks
    return arrays, found


def _empty_arrays(detector: Detector, data: dict[str, Category]) -> dict[str, np.ndarray]:
    """Make the arrays of maps.npz at their full length, so that the maps are never there twice; masks if all have."""
    tests = [part.test for part in data.values()]
    lengths = [len(test) for test in tests]
    arrays = {
        "anomaly_map": np.empty((sum(lengths), *detector.map_size), np.float32),
        "label": np.concatenate([test.labels for test in tests]),
        "score": np.empty(sum(lengths), np.float32),
        "path": np.array([path for test in tests for path in test.paths]),
    }
    if all(test.has_masks for test in tests):
        arrays["mask"] = np.empty((sum(lengths), *detector.image_size), bool)
    if len(data) > 1:
        arrays["category"] = np.repeat(list(data), lengths)
    return arrays


def _decode_all(images: ImageSet) -> None:
    """Read every test image once, so that a damaged one is found before the fit and not after it."""
    for start in range(0, len(images), 64):
        images.images(range(start, min(start + 64, len(images))))


def _features(
    detector: Detector, images: ImageSet, progress: bool, cache: Path | None = None
) -> ImageSet | Features:
    """Run the backbone over a set; a detector that has none takes the images themselves."""
    if not isinstance(detector, FeatureDetector):
        return images
    return extract(detector.backbone, images, device=detector.device, cache=cache, progress=progress)


def _frame(experiment: Experiment, detector: Detector, data: dict[str, Category]) -> dict[str, Any]:
    """Everything that determines the metrics: the part of the result that is known before the run."""
    backbone = getattr(detector, "backbone", None)
    parts = list(data.values())
    digests = "".join(part.train.sha256 + part.test.sha256 for part in parts)
    joint = {"joint": True} if len(parts) > 1 else {}
    return {
        "method": experiment.method,
        "dataset": _datasets(parts),
        "category": experiment.category if joint else parts[0].category,
        "profile": experiment.profile,
        "seed": experiment.seed,
        "backbone": backbone.name if backbone else "none",
        "image_size": detector.image_size[0] if len(set(detector.image_size)) == 1 else list(detector.image_size),
        "overrides": experiment.settings,
        "config": _jsonable(dataclasses.asdict(detector.config)),
        "protocol": parts[0].protocol,
        **joint,
        "n_train": sum(len(part.train) for part in parts),
        "n_test": sum(len(part.test) for part in parts),
        "fingerprint": {
            "data_sha256": hashlib.sha256(digests.encode()).hexdigest(),
            "weights_sha256": backbone.weights_sha256 if backbone else None,
            "code_version": sources_digest(),
        },
    }


def _combine(experiment: Experiment, dataset: str, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join the results of several categories: their metrics, the mean, and the summed cost."""
    parts = list(results.values())
    per_category = {name: part["metrics"] for name, part in results.items()}
    costs = [part["cost"] for part in parts]
    # Times of fitting add up; what describes one model or one image is averaged, memory is the largest.
    cost = {key: _mean([c[key] for c in costs]) for key in costs[0]}
    cost |= {key: sum(c[key] for c in costs) for key in ("fit_s", "features_s")}
    cost["peak_rss_mb"] = max(c["peak_rss_mb"] for c in costs)
    digests = "".join(part["fingerprint"]["data_sha256"] for part in parts)
    return {
        **parts[0],
        "dataset": dataset,
        "category": experiment.category,
        "n_train": sum(part["n_train"] for part in parts),
        "n_test": sum(part["n_test"] for part in parts),
        "metrics": _average(list(per_category.values())),
        "per_category": per_category,
        "cost": cost,
        "fingerprint": {**parts[0]["fingerprint"], "data_sha256": hashlib.sha256(digests.encode()).hexdigest()},
    }


def _average(parts: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Average each metric over the categories that have it."""
    return {key: _mean([part[key] for part in parts]) for key in parts[0]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _finished(out: Path, frame: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result that `out` already holds for this very run; refuse a folder that holds another one."""
    path = out / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        result = None
    result = result if isinstance(result, dict) else {}  # a damaged file is no reason to overwrite it
    differing = [key for key, value in _jsonable(frame).items() if result.get(key) != value]
    if differing:
        raise UserError(
            f"{out} holds another run (its {differing[0]} differs): choose another --out, or remove that folder"
        )
    return result


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Make the folder and see that it can be written, before anything is computed; leave no empty one behind."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another --out") from None
    try:
        yield
    finally:
        with suppress(OSError):
            out.rmdir()  # goes only where nothing was written


def _require_space(out: Path, n_test: int, detector: Detector) -> None:
    """Refuse a run whose results would not fit on the disk."""
    height, width = detector.map_size
    weights = sum(p.numel() * p.element_size() for p in detector.own_tensors().values())
    # Maps (float32) and masks (bool), uncompressed; the model; a checkpoint with Adam's two moments, twice while it
    # is replaced.
    needed = n_test * height * width * 5 + weights * 7 + 2**20
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"{out} has {free >> 20} MB free but the run needs {needed >> 20} MB: free space or choose another --out"
        )


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turn a full or failing disk into one line; what was finished stays, and the same command goes on from there."""
    try:
        yield
    except OSError as error:
        if error.filename and not str(error.filename).startswith(str(out)):
            raise
        raise UserError(
            f"cannot write to {out} ({error.strerror or error}): free space there and repeat the command"
        ) from None


def _join_maps(out: Path, names: list[str]) -> None:
    """Concatenate the categories' maps where they share a size, and say whose each row is."""
    parts = {name: np.load(out / name / "maps.npz") for name in names}
    keys = set.intersection(*(set(part.files) for part in parts.values()))
    arrays = {key: np.concatenate([part[key] for part in parts.values()]) for key in sorted(keys)}
    arrays["category"] = np.repeat(list(parts), [len(part["score"]) for part in parts.values()])
    _write_npz(out / "maps.npz", arrays)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with _replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with _replacing(path) as part:
        part.write_text(json.dumps(_jsonable(value), indent=2) + "\n")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Write beside `path` and rename, so that no half-written file ever bears the name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))
