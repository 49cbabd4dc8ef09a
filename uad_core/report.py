"""What was found in a set of images, as one web page that needs nothing beside it.

The highest and the lowest scores with their maps, all scores beside those of held-out normal images, the residuals
level by level, what to check, and what the detector was made of. `uad predict` and `uad run` leave it with `--report`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from uad_core import methods, plots, scoring, webpage
from uad_core.cost import environment
from uad_core.datasets.base import DataWarning, ImageSet
from uad_core.datasets.joined import joined
from uad_core.datasets.selection import select
from uad_core.errors import UserError
from uad_core.experiment import Experiment
from uad_core.files import replacing
from uad_core.methods.base import Detector
from uad_core.promise import promise
from uad_core.sources import code_version

__all__ = ["Seen", "of_run", "page"]

HIGHEST, LOWEST, LEVELS = 9, 3, 4  # images that are shown with their map, and with their levels
LISTED = 2000  # images in the table of all
NEAR = 0.1  # of the threshold: scores this close to it are worth a look


@dataclass(frozen=True)
class Seen:
    """Images that a detector judged.

    maps: (N, h, w). scores: (N,). names: one for each image. labels: (N,) bool, True = anomalous, where it is known.
    unreadable: file -> why it could not be read. ms_per_image: how long one took. facts: name -> text, what else the
    page shall say of model and data.
    """

    pictures: ImageSet
    maps: np.ndarray
    scores: np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    ms_per_image: float | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def order(self) -> np.ndarray:
        """Positions from the highest score to the lowest."""
        return np.argsort(-self.scores, kind="stable")


def page(detector: Detector, seen: Seen) -> str:
    """Return the report as a web page in one text, below 5 MB however many images there are."""
    parts = [*_summary(detector, seen), *_scores(detector, seen)]
    if len(seen.scores):
        parts[1:1] = _galleries(detector, seen)
        parts += [_levels(detector, seen)]
    to_check = list(checks(detector, seen))
    parts += [webpage.section("What to check", webpage.items(to_check))] if to_check else []
    if seen.unreadable:
        parts.append(_unreadable(seen))
    parts += [_all_images(detector, seen)] if len(seen.scores) else []
    return webpage.document("Anomaly report", [*parts, _made_of(detector, seen)])


def of_run(experiment: Experiment, out: Path) -> list[Path]:
    """Write `report.html` beside each model of a finished run in the folder `out`, on its test images.

    Returns the files. Raises UserError where the run is not finished or its data are no longer there.
    """
    members = select(experiment.dataset, experiment.category, experiment.root)
    whole = (out / "model").is_dir()
    places = {out: members} if whole else {out / member.name: [member] for member in members}
    return [_write(experiment, place, chosen) for place, chosen in places.items()]


def _write(experiment: Experiment, place: Path, members: list) -> Path:
    detector = methods.load(place / "model", experiment.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the run has said them
        tests = joined([experiment.data(member, detector.image_size).test for member in members])
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    with np.load(place / "maps.npz") as kept:
        names = kept["path"].tolist()
        if "category" in kept:
            names = [f"{category}/{name}" for category, name in zip(kept["category"].tolist(), names)]
        seen = Seen(
            tests, kept["anomaly_map"], kept["score"], names, kept["label"],
            ms_per_image=result["cost"]["predict_ms_per_image"], facts=run_facts(result),
        )  # fmt: skip
    file = place / "report.html"
    try:
        with replacing(file) as part:
            part.write_text(page(detector, seen), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror or error}): free space there") from None
    return file


def run_facts(result: dict) -> dict[str, str]:
    """Return what a `result.json` says of data and metrics, as texts."""
    shown = [f"{name.replace('_', ' ')} {value:.1%}" for name, value in result["metrics"].items() if value is not None]
    return {
        "fitted on": f"{result['dataset']} / {result['category']}, {result['n_train']} training images",
        "profile": result["profile"],
        "metrics of that run": ", ".join(shown) or "none: no test images with defects",
        "data sha256": result["fingerprint"].get("data_sha256") or "of each category: see result.json",
    }


# --- what is said --------------------------------------------------------------------------------------------------


def checks(detector: Detector, seen: Seen) -> list[str]:
    """Say what a person should look at, in whole sentences."""
    return [*_check_reading(seen), *_check_threshold(detector, seen), *_check_view(detector, seen)]


def _check_reading(seen: Seen) -> Iterator[str]:
    if seen.unreadable:
        yield f"{_count(len(seen.unreadable), 'file')} could not be read and got no verdict: they are listed below."
    if len(seen.scores):
        yield (
            "Is the brightest place of the highest scores the defect? If it is background, an edge or dust, the score "
            "says something else than you want: crop or cover it, or fit on good images that show it too."
        )


def _check_threshold(detector: Detector, seen: Seen) -> Iterator[str]:
    threshold = detector.threshold.item()
    if not math.isfinite(threshold) or not len(seen.scores):
        return
    near = int((np.abs(seen.scores - threshold) < NEAR * threshold).sum())
    if near:
        yield f"{_count(near, 'score')} within {NEAR:.0%} of the threshold: look at these images first."
    normal = seen.scores[seen.scores <= threshold if seen.labels is None else ~seen.labels.astype(bool)]
    if len(normal):
        yield _drift(normal, detector.normal_scores.cpu().numpy(), "called" if seen.labels is None else "labelled")
    yield "A good part above the threshold is a false alarm: add it to the training images and fit again."


def _drift(normal: np.ndarray, held: np.ndarray, known: str) -> str:
    """Compare normal scores with those of the held-out images: how to notice that the line has changed."""
    above, middle = (normal > np.median(held)).mean(), np.median(held)
    return (
        f"Of the images {known} normal, {above:.0%} score above {middle:.3g}, the median of the held-out normal ones. "
        "About half is as it should be; far more means that light, focus, pose or the product has changed since the "
        "fit, or that few images were held out: fit again on good images of today."
    )


def _check_view(detector: Detector, seen: Seen) -> Iterator[str]:
    if not len(seen.scores):
        return
    (height, width), sizes = detector.image_size, seen.pictures.original_sizes
    coarsest = max(max(h / height, w / width) for h, w in sizes)
    if coarsest > 1.5:
        yield (
            f"The detector looks at {width} x {height} pixels; one of them is up to {coarsest:.1f} pixels wide in your "
            "images. A defect that is narrower may be invisible to it: fit at a larger --image-size, or cut tiles."
        )
    shapes = {round(w / h / (width / height), 1) for h, w in sizes}
    if len(shapes) > 1:
        yield "The images differ in shape and are all stretched to one: photograph all alike, as for the training."


def _summary(detector: Detector, seen: Seen) -> list[str]:
    verdicts = detector.verdicts(seen.scores)
    kinds = [kind for kind in ("anomalous", "normal", "no verdict") if kind in verdicts]
    counts = [f"{verdicts.count(kind)} {kind}" for kind in kinds]
    if seen.unreadable:
        counts.append(f"{len(seen.unreadable)} unreadable")
    total = _count(len(verdicts) + len(seen.unreadable), "image")
    lines = [f"{total}: {', '.join(counts)}." if counts else "No images were judged.", _promise(detector)]
    lines += _right_and_wrong(detector, seen)
    time = [f"{seen.ms_per_image:.0f} ms per image."] if seen.ms_per_image is not None else []
    return ["\n".join([webpage.paragraph(lines[0], "lead"), *map(webpage.paragraph, [*lines[1:], *time])])]


def _promise(detector: Detector) -> str:
    return promise(detector.threshold.item(), detector.config.false_alarms, len(detector.normal_scores))


def _right_and_wrong(detector: Detector, seen: Seen) -> list[str]:
    """Where the truth is known: how often the verdict is wrong."""
    if seen.labels is None or not len(seen.scores) or not detector.threshold.isfinite():
        return []
    called, bad = seen.scores > detector.threshold.item(), seen.labels.astype(bool)
    return [
        f"False alarms: {(called & ~bad).sum()} of {_count((~bad).sum(), 'normal test image')}. "
        f"Missed: {(~called & bad).sum()} of {_count(bad.sum(), 'anomalous one')}."
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


# --- what is shown -------------------------------------------------------------------------------------------------


def _galleries(detector: Detector, seen: Seen) -> list[str]:
    """The images with the highest scores, and those with the lowest, each beside its map."""
    vmin, vmax = plots.limits(seen.maps)
    highest, lowest = seen.order[:HIGHEST], seen.order[HIGHEST:][-LOWEST:]
    scale = f"All maps share one scale, from {vmin:.3g} (image untouched) to {vmax:.3g} and more (brightest)."
    parts = [webpage.section("Highest scores", webpage.paragraph(scale), _gallery(detector, seen, highest, vmin, vmax))]
    if len(lowest):
        parts.append(webpage.section("Lowest scores", _gallery(detector, seen, lowest[::-1], vmin, vmax)))
    return parts


def _gallery(detector: Detector, seen: Seen, chosen: np.ndarray, vmin: float, vmax: float) -> str:
    figures = [webpage.figure(*_pair(detector, seen, i, vmin, vmax)) for i in chosen.tolist()]
    return webpage.gallery(figures)


def _pair(detector: Detector, seen: Seen, i: int, vmin: float, vmax: float) -> tuple[list[str], str, str, str]:
    """An image and its overlay, name, verdict and score."""
    image, large = seen.pictures[i], _enlarged(detector, seen.maps[i : i + 1])[0]
    blended = plots.blend(image, large, vmin=vmin, vmax=vmax)
    name = seen.names[i]
    pictures = [
        webpage.picture(image.permute(1, 2, 0).numpy(), f"image {name}"),
        webpage.picture(blended, f"anomaly map over {name}"),
    ]
    [verdict] = detector.verdicts(seen.scores[i : i + 1])
    return pictures, name, verdict, f"score {seen.scores[i]:.4g}{_truth(seen, i)}"


def _truth(seen: Seen, i: int) -> str:
    return "" if seen.labels is None else f", labelled {'anomalous' if seen.labels[i] else 'normal'}"


def _enlarged(detector: Detector, maps: np.ndarray) -> torch.Tensor:
    return scoring.upsample(torch.from_numpy(maps), detector.image_size)


def _scores(detector: Detector, seen: Seen) -> list[str]:
    """The histogram of all scores beside those of the held-out normal images."""
    held, threshold = detector.normal_scores.cpu().numpy(), detector.threshold.item()
    called = seen.scores > threshold if seen.labels is None else seen.labels.astype(bool)
    groups = {"normal": seen.scores[~called], "anomalous": seen.scores[called], "held": held}
    groups = {name: group for name, group in groups.items() if len(group)}
    if not groups:
        return []
    known = "labelled" if seen.labels is not None else "called" if math.isfinite(threshold) else "not"
    words = {"normal": "without a verdict (blue)" if known == "not" else f"{known} normal (blue)",
             "anomalous": f"{known} anomalous (orange)", "held": "held out from the fit (dashed)"}  # fmt: skip
    legend = "; ".join(f"{_count(len(group), 'image')} {words[name]}" for name, group in groups.items())
    drawing = webpage.histogram(groups, threshold if math.isfinite(threshold) else None, "score (no unit)")
    return [webpage.section("Scores", drawing, webpage.paragraph(f"Number of images by score: {legend}."))]


def _levels(detector: Detector, seen: Seen) -> str:
    """Residuals level by level of the highest scores and of the lowest one."""
    highest = seen.order[: LEVELS - 1].tolist()
    chosen = [*highest, *seen.order[len(highest) :][-1:].tolist()]
    images = torch.stack([seen.pictures[i] for i in chosen])
    residuals = {name: maps.cpu() for name, maps in detector.residuals(images).items()}
    titles = ["highest", "second", "third"][: len(highest)] + ["lowest"] * (len(chosen) > len(highest))
    sheet = plots.residual_panel(
        images, None, residuals, _enlarged(detector, seen.maps[chosen]), seen.scores[chosen],
        detector.threshold.item(), titles,
    )  # fmt: skip
    buffer = BytesIO()
    sheet.savefig(buffer, format="png", dpi=120)
    names = ", ".join(f"{title}: {seen.names[i]}" for title, i in zip(titles, chosen))
    text = f"Where each level of the method sees an anomaly; bright is large, one scale for all. {names}."
    drawing = webpage.wide(webpage.embedded(buffer.getvalue(), "png", text))
    return webpage.section("Level by level", webpage.paragraph(text), drawing)


def _unreadable(seen: Seen) -> str:
    reasons = list(seen.unreadable.values())
    more = [f"and {len(reasons) - LISTED} more: see scores.csv"] if len(reasons) > LISTED else []
    return webpage.section("Unreadable files", webpage.items([*reasons[:LISTED], *more]))


def _all_images(detector: Detector, seen: Seen) -> str:
    """Every image with score and verdict, folded away."""
    order = seen.order[:LISTED].tolist()
    verdicts = detector.verdicts(seen.scores)
    rows = [(seen.names[i], float(seen.scores[i]), verdicts[i]) for i in order]
    which = "All images" if len(seen.scores) <= LISTED else f"The {LISTED} highest of {len(seen.scores)} images"
    return webpage.details(f"{which}, by score", webpage.table(rows, ("image", "score", "verdict")))


def _made_of(detector: Detector, seen: Seen) -> str:
    """Settings, fingerprints and machine."""
    backbone = getattr(detector, "backbone", None)
    height, width = detector.image_size
    rows = {
        "method": detector.name, "backbone": backbone.name if backbone else "none", "image size": f"{width} x {height}",
        "seed": detector.seed, **seen.facts,
        "threshold": f"{detector.threshold.item():.6g}" if detector.threshold.isfinite() else "none",
        "weights sha256": backbone.weights_sha256 if backbone else "none",
        "code version": code_version(type(detector).__module__),
    }  # fmt: skip
    settings = webpage.table(asdict(detector.config).items())
    machine = webpage.table(environment(detector.device).items())
    return webpage.section(
        "What the detector is", webpage.table(rows.items()), webpage.details("All settings", settings),
        webpage.details("Machine and versions", machine),
    )  # fmt: skip
