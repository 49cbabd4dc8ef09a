"""`uad predict`: a fitted model applied to a person's own images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from uad_core import methods, plots, report, scoring
from uad_core.cost import Stopwatch
from uad_core.datasets.base import ImageSet
from uad_core.datasets.images import SUFFIXES, FileSource, read_image
from uad_core.errors import UserError
from uad_core.files import new_folder
from uad_core.methods.base import Detector

__all__ = ["Prediction", "Verdict", "image_files", "images_of", "model_folder", "predict_files", "readable"]

UNREADABLE = "unreadable"
# Kinds of images that are looked for beside those that are read, so that none is passed over in silence.
NOT_READ = frozenset({".webp", ".heic", ".heif", ".avif", ".gif"})


@dataclass(frozen=True)
class Verdict:
    """What is said of one image: its file, its score, and "anomalous", "normal" or "no verdict"."""

    image: str
    score: float
    verdict: str


@dataclass(frozen=True)
class Prediction:
    """What is said of images: a verdict on each that could be read, and why the others could not (file -> reason)."""

    rows: list[Verdict]
    unreadable: dict[str, str]

    @property
    def status(self) -> int:
        """The exit status of `uad predict`: 2 where an image is unreadable, else 1 where one is anomalous, else 0."""
        return 2 if self.unreadable else int(any(row.verdict == "anomalous" for row in self.rows))

    def json_lines(self) -> str:
        """Return one JSON object a line: "image", "score", "verdict", and "error", why an image is unreadable."""
        sound = [asdict(row) | {"error": None} for row in self.rows]
        lost = [_without_score(file) | {"error": reason} for file, reason in self.unreadable.items()]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*sound, *lost])

    def table(self) -> pd.DataFrame:
        """Return image, score and verdict of every image; those that are unreadable come last and have no score."""
        return pd.DataFrame([*map(asdict, self.rows), *map(_without_score, self.unreadable)])


def _without_score(file: str) -> dict[str, object]:
    return {"image": file, "score": None, "verdict": UNREADABLE}


def predict_files(
    model: Path,
    images: list[Path],
    out: Path,
    device: str = "auto",
    *,
    progress: bool = True,
    json_lines: bool = False,
    page: bool = False,
) -> Prediction:
    """Map and score image files; write overlays, scores.csv and maps.npz into the new folder `out`.

    model: the folder of a run, or of a saved model. images: files, or folders, searched below too, whose images are
    taken. An overlay bears the name of its image, in the folders that the image lies in below the folder that was
    named. All overlays share one colour scale, so that two of them can be compared. json_lines: write scores.jsonl too.
    page: write report.html too, see `uad_core.report`. An image that cannot be read is passed over and listed.

    Raises UserError for a missing model, a file that is not there, images of which none can be read, or an `out` that
    is not empty; nothing is written then.
    """
    detector = methods.load(model_folder(model), device)
    files = image_files(images)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another --out")
    prediction, seen = _judge(detector, files, _facts(model), progress)
    try:
        with new_folder(out) as work:
            _write(work, detector, prediction, seen)
            if json_lines:
                (work / "scores.jsonl").write_text(prediction.json_lines(), encoding="utf-8")
            if page:
                (work / "report.html").write_text(report.page(detector, seen), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({error.strerror or error}): free space there or choose another --out"
        ) from None
    return prediction


def _judge(
    detector: Detector, files: dict[Path, Path], facts: dict[str, str], progress: bool
) -> tuple[Prediction, report.Seen]:
    """Map and score the files that can be read, and time it."""
    sound, unreadable = readable(list(files))
    if not sound:
        first = next(iter(unreadable.values()))
        raise UserError(f"none of the {len(files)} images can be read; the first: {first}")
    pictures = images_of(sound, detector.image_size)
    with Stopwatch(detector.device) as watch:
        maps, scores = detector.predict(pictures, progress=progress)
    rows = [Verdict(*row) for row in zip(pictures.paths, scores.tolist(), detector.verdicts(scores))]
    names, time = [files[file].as_posix() for file in sound], 1000 * watch.seconds / len(rows)
    seen = report.Seen(pictures, maps, scores, names, unreadable=unreadable, ms_per_image=time, facts=facts)
    return Prediction(rows, unreadable), seen


def _facts(model: Path) -> dict[str, str]:
    """Say where a model comes from: the data of its run, where there is one, and a hash of what was fitted."""
    weights = sha256((model_folder(model) / "model.safetensors").read_bytes()).hexdigest()
    result = model / "result.json"
    facts = report.run_facts(json.loads(result.read_text(encoding="utf-8"))) if result.is_file() else {}
    return {**facts, "model sha256": weights}


def model_folder(folder: Path) -> Path:
    """Return the folder of the saved model: that of a run holds it as `model`."""
    return folder / "model" if (folder / "model").is_dir() else folder


def image_files(paths: list[Path]) -> dict[Path, Path]:
    """Return every image file once, and its name below the folder that was named.

    In a folder, what is hidden (a name that begins with a dot) is left out; images of a kind that is not read are not,
    so that they are listed as unreadable. Raises UserError for a file that is not there, a folder without images, and
    one that may not be read.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(_below(path)) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"{path} holds no images ({', '.join(sorted(SUFFIXES))}): name a folder that does, or files"
            )
        files |= {file: file.relative_to(path) if path.is_dir() else Path(file.name) for file in inside}
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UserError(f"no image {missing[0]}: check the path")
    return files


def _below(folder: Path) -> Iterator[Path]:
    """Find the images in a folder and the folders in it."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable, or name the folders beside it")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES | NOT_READ:
                yield Path(place, name)


def readable(files: list[Path]) -> tuple[list[Path], dict[str, str]]:
    """Decode every file once: return those that can be read, and why the others cannot (file -> reason)."""
    sound: list[Path] = []
    unreadable: dict[str, str] = {}
    for file in files:
        try:
            read_image(file)
            sound.append(file)
        except UserError as error:
            unreadable[str(file)] = str(error)
    return sound, unreadable


def images_of(files: list[Path], image_size: tuple[int, int]) -> ImageSet:
    """Return files as a set of images that nothing is known of, at a size (H, W)."""
    names = [str(file) for file in files]
    return ImageSet(
        dataset="images", category="images", split="test", image_size=image_size, paths=names,
        labels=[False] * len(names), defects=["unknown"] * len(names), has_masks=False,
        source=FileSource(Path(), names, [None] * len(names)),
    )  # fmt: skip


def _unique_names(files: list[Path]) -> list[str]:
    """Name each overlay after its image, with a number where that name is taken."""
    names: dict[str, str] = {}  # in lower case, since some file systems do not tell case apart
    for file in files:
        stem = file.with_suffix("").as_posix()
        candidates = (stem if i == 1 else f"{stem}-{i}" for i in count(1))
        name = next(name for name in candidates if name.lower() not in names)
        names[name.lower()] = name
    return list(names.values())


def _write(work: Path, detector: Detector, prediction: Prediction, seen: report.Seen) -> None:
    """Write overlays, one at a time, scores and maps into a folder."""
    rows, maps, pictures = prediction.rows, seen.maps, seen.pictures
    names = _unique_names([Path(name) for name in seen.names])
    vmin, vmax = plots.limits(maps)
    for i, (row, name) in enumerate(zip(rows, names)):
        title = name.replace("$", r"\$")  # or the plot reads it as mathematics
        large = scoring.upsample(torch.from_numpy(maps[i : i + 1]), detector.image_size)[0]
        scale = dict(vmin=vmin, vmax=vmax, score=row.score, threshold=detector.threshold.item())
        sheet = plots.overlay(pictures[i], large, title=title, **scale)
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        sheet.savefig(work / f"{name}.png")
    prediction.table().to_csv(work / "scores.csv", index=False)
    np.savez(work / "maps.npz", anomaly_map=maps, score=seen.scores, path=np.array(pictures.paths))
