"""One run: data, method and seed in, the row of a table out.

A run leaves a folder that anyone can check: `result.json` (what was run, on what, with which metrics and at which
cost), `maps.npz` (every anomaly map and mask, enough to recompute every metric) and `model/`. A run that was killed
goes on from its checkpoint, a finished one is never computed twice nor overwritten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uad_core import datasets, methods, metrics
from uad_core.cost import Peaks, Stopwatch, environment, measure_cost
from uad_core.datasets import Category, DataWarning, ImageSet
from uad_core.datasets.joined import joined
from uad_core.datasets.selection import Member, select
from uad_core.errors import UserError
from uad_core.features import Described
from uad_core.files import replacing
from uad_core.methods.base import Detector
from uad_core.methods.build import chosen_settings
from uad_core.sources import code_version

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
    image_size: int | tuple[int, int] | str | None = None
    seed: int = 0
    device: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    joint: bool | None = None

    def detector(self, protocol: str, members: list[Member]) -> Detector:
        """Build the unfitted detector of this run."""
        names = ("profile", "backbone", "seed", "device", "root")
        options = {**{name: getattr(self, name) for name in names}, "protocol": protocol}
        for key in (options.keys() | {"image_size"}) & self.settings.keys():
            raise UserError(f"{key} is no setting that --set changes: see the options of `uad run --help`")
        size = self.size(protocol, members[0])
        return methods.create(self.method, **options, image_size=size, **self.settings)

    def size(self, protocol: str, member: Member) -> int | tuple[int, int] | None:
        """Return the size of the images; "auto" has the shape of the first training image and the profile's area."""
        if self.image_size != "auto":
            return self.image_size
        side = chosen_settings(self.method, self.profile, protocol)["image_size"]
        return datasets.auto_size(self.data(member, side).train, side * side)

    def data(self, member: Member, image_size: int | tuple[int, int]) -> Category:
        """Load one category at the detector's size."""
        return datasets.load(
            member.source, member.category, root=self.root, image_size=image_size, seed=self.seed
        )

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
    detector = experiment.detector(protocol, members)
    data = {member.name: experiment.data(member, detector.image_size) for member in members}
    frame = _frame(experiment, detector, data)
    finished = _finished(out, frame)
    if finished is not None:
        return finished
    vanished = _look_ahead(out, detector, data)
    with Peaks(detector.device) as fitting:
        times = _fit(detector, joined([part.train for part in data.values()]), out / "checkpoint.pt", progress)
    with Peaks(detector.device) as judging:
        arrays, found = _evaluate(detector, data, cache, progress)
    model = methods.save(detector, out / "model")
    result = {
        **frame,
        "metrics": _average(list(found.values())),
        **({"per_category": found} if len(data) > 1 else {}),
        "map_size": list(detector.map_size),
        **({"vanished_masks": vanished} if vanished else {}),
        "verdict": _verdict(detector, arrays),
        "cost": {**times, **_peaks(fitting, judging), **measure_cost(detector, _to_time(data), model)},
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


def _look_ahead(out: Path, detector: Detector, data: dict[str, Category]) -> int:
    """Find before the fit what would spoil the run after it; return how many masks vanish at the size of the maps.

    Raises UserError for a test image that cannot be decoded and for a disk that cannot hold the results. Warns of
    masks that vanish.
    """
    _require_space(out, sum(len(part.test) for part in data.values()), detector)
    gone = 0
    for name, part in data.items():
        _decode_all(part.test)
        lost = datasets.vanished(part.test, detector.map_size) if part.test.has_masks else []
        if lost:
            size = "x".join(map(str, detector.map_size))
            what = f"{len(lost)} of {int(part.test.labels.sum())} masks vanish at {size} pixels"
            remedy = "pixel metrics are those of the others; a larger --image-size would keep them"
            warnings.warn(f"{name}: {what}: {remedy}", DataWarning, stacklevel=2)
        gone += len(lost)
    return gone


def _fit(detector: Detector, train: ImageSet, checkpoint: Path, progress: bool) -> dict[str, float]:
    """Fit the detector on normal images, and return how long it took, in seconds."""
    with Stopwatch(detector.device) as describe_time:
        data = detector.described(train, progress=progress)
    with Stopwatch(detector.device) as fit_time:
        detector.fit(data, checkpoint=checkpoint, progress=progress)
    return {"fit_s": describe_time.seconds + fit_time.seconds, "features_s": describe_time.seconds}


def _evaluate(
    detector: Detector, data: dict[str, Category], cache: Path | None, progress: bool
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float | None]]]:
    """Map and judge the test images category by category: the arrays of maps.npz, and each category's metrics.

    Pixels are judged at the size of the maps, to which the masks are brought.
    """
    arrays, found, start = _empty_arrays(detector, data), {}, 0
    for name, part in data.items():
        rows = slice(start, start := start + len(part.test))
        maps, scores = arrays["anomaly_map"][rows], arrays["score"][rows]
        images = _test_images(detector, part.test, cache, progress)
        scores[:] = detector.predict(images, progress=progress, out=maps)[1]
        masks = part.test.masks(detector.map_size) if part.test.has_masks else None
        if "mask" in arrays:
            arrays["mask"][rows] = masks
        found[name] = _judged(scores, part.test.labels, maps, masks)
    return arrays, found


def _judged(
    scores: np.ndarray, labels: np.ndarray, maps: np.ndarray, masks: np.ndarray | None
) -> dict[str, float | None]:
    """Return the seven metrics; those that the images cannot give are null."""
    if labels.all() or not labels.any():
        return dict.fromkeys(metrics.METRICS)
    marked = masks is not None and masks.any()
    return metrics.evaluate(scores, labels, maps if marked else None, masks if marked else None)


def _test_images(detector: Detector, test: ImageSet, cache: Path | None, progress: bool) -> ImageSet | Described:
    """Return the images to be judged; described, where runs over the same images share the folder `cache`."""
    if cache is None or not detector.keeps or len(test) == 0:
        return test
    return detector.described(test, cache=cache, progress=progress)


def _empty_arrays(detector: Detector, data: dict[str, Category]) -> dict[str, np.ndarray]:
    """Make the arrays of maps.npz at their full length, so that the maps are never there twice; masks if all have."""
    tests = [part.test for part in data.values()]
    lengths = [len(test) for test in tests]
    arrays = {
        "anomaly_map": np.empty((sum(lengths), *detector.map_size), np.float32),
        "label": np.concatenate([test.labels for test in tests]),
        "score": np.empty(sum(lengths), np.float32),
        "path": np.array([path for test in tests for path in test.paths], dtype=str),
    }
    if all(test.has_masks for test in tests):
        arrays["mask"] = np.empty((sum(lengths), *detector.map_size), bool)
    if len(data) > 1:
        arrays["category"] = np.repeat(list(data), lengths)
    return arrays


def _verdict(detector: Detector, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what the verdict rests on, and the false alarms that it raised among the normal test images."""
    normal = arrays["score"][~arrays["label"]]
    there = math.isfinite(detector.threshold.item())
    return {
        "threshold": detector.threshold.item() if there else None,
        "false_alarm_rate": detector.config.false_alarms if there else None,
        "held_out": len(detector.normal_scores),
        "false_alarms": int((normal > detector.threshold.item()).sum()) if there else None,
        "normal_test_images": len(normal),
    }


def _peaks(*phases: Peaks) -> dict[str, float | None]:
    """Return the largest memory of all phases."""
    return {
        "peak_rss_mb": max(phase.rss_mb for phase in phases),
        "peak_gpu_mb": _largest([phase.gpu_mb for phase in phases]),
    }


def _to_time(data: dict[str, Category]) -> ImageSet:
    """Return images on which prediction is timed: those of the tests, or of training where there are none."""
    tests = joined([part.test for part in data.values()])
    return tests if len(tests) else joined([part.train for part in data.values()])


def _decode_all(images: ImageSet) -> None:
    """Read every test image once, so that a damaged one is found before the fit and not after it."""
    for start in range(0, len(images), 16):
        images.pixels(range(start, min(start + 16, len(images))))


def _frame(experiment: Experiment, detector: Detector, data: dict[str, Category]) -> dict[str, Any]:
    """Everything that determines the metrics: the part of the result that is known before the run."""
    backbone = getattr(detector, "backbone", None)
    parts = list(data.values())
    hashes = {name: _hash(part.train.sha256 + part.test.sha256) for name, part in data.items()}
    others = {name: images.sha256 for name, images in detector.others.items()}
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
            **_data_fingerprint(hashes),
            "weights_sha256": backbone.weights_sha256 if backbone else None,
            **({"others": others} if others else {}),
            "code_version": code_version(type(detector).__module__),
        },
    }


def _data_fingerprint(hashes: dict[str, str]) -> dict[str, Any]:
    """Return the data's part of a fingerprint: the same for one model of several categories and for one model each."""
    if len(hashes) == 1:
        return {"data_sha256": next(iter(hashes.values()))}
    return {"data_sha256": _hash("".join(hashes.values())), "data": hashes}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _combine(experiment: Experiment, dataset: str, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join the results of several categories: their metrics, the mean, and the summed cost."""
    parts = list(results.values())
    per_category = {name: part["metrics"] for name, part in results.items()}
    costs = [part["cost"] for part in parts]
    # Times of fitting add up; what describes one model or one image is averaged, memory is the largest.
    cost = {key: _mean([c[key] for c in costs]) for key in costs[0]}
    cost |= {key: sum(c[key] for c in costs) for key in ("fit_s", "features_s")}
    cost |= {key: _largest([c[key] for c in costs]) for key in ("peak_rss_mb", "peak_gpu_mb")}
    cost["timed_images"] = sum(c["timed_images"] for c in costs)
    hashes = {name: part["fingerprint"]["data_sha256"] for name, part in results.items()}
    vanished = sum(part.get("vanished_masks", 0) for part in parts)
    return {
        **{key: value for key, value in parts[0].items() if key != "vanished_masks"},
        "dataset": dataset,
        "category": experiment.category,
        "n_train": sum(part["n_train"] for part in parts),
        "n_test": sum(part["n_test"] for part in parts),
        "metrics": _average(list(per_category.values())),
        "per_category": per_category,
        **({"vanished_masks": vanished} if vanished else {}),
        "verdict": _verdicts([part["verdict"] for part in parts]),
        "cost": cost,
        "fingerprint": {**parts[0]["fingerprint"], **_data_fingerprint(hashes)},
    }


def _verdicts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the verdicts of several models: counts add up, and each model has a threshold of its own."""
    judged = [part for part in parts if part["threshold"] is not None]
    return {
        "threshold": None,
        "false_alarm_rate": judged[0]["false_alarm_rate"] if judged else None,
        "held_out": sum(part["held_out"] for part in parts),
        "false_alarms": sum(part["false_alarms"] for part in judged) if judged else None,
        "normal_test_images": sum(part["normal_test_images"] for part in judged),
    }


def _average(parts: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Average each metric over the categories that have it."""
    return {key: _mean([part[key] for part in parts]) for key in parts[0]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


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
    """Join the categories' maps where they share a size, and say whose each row is; maps are never there twice."""
    parts = [np.load(out / name / "maps.npz") for name in names]
    lengths = [len(part["score"]) for part in parts]
    keys = set.intersection(*(set(part.files) for part in parts))
    arrays = {key: _stacked(parts, key, lengths) for key in sorted(keys)}
    arrays["category"] = np.repeat(names, lengths)
    _write_npz(out / "maps.npz", {key: array for key, array in arrays.items() if array is not None})


def _stacked(parts: list[np.lib.npyio.NpzFile], key: str, lengths: list[int]) -> np.ndarray | None:
    """Concatenate an array of all parts, reading one after another; None where maps differ in size."""
    first = parts[0][key]
    if first.ndim == 1:
        return np.concatenate([part[key] for part in parts])
    out, start = np.empty((sum(lengths), *first.shape[1:]), first.dtype), 0
    for part, length in zip(parts, lengths):
        values = part[key]
        if values.shape[1:] != out.shape[1:]:
            return None
        out[start : start + length] = values
        start += length
    return out


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(_jsonable(value), indent=2) + "\n")


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))
