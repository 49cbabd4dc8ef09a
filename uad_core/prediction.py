"""`uad predict`: a fitted model applied to a person's own images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from uad_core import methods, plots, scoring
from uad_core.datasets.base import ImageSet
from uad_core.datasets.images import SUFFIXES, FileSource
from uad_core.errors import UserError
from uad_core.files import new_folder
from uad_core.methods.base import Detector

__all__ = ["Verdict", "predict_files"]


@dataclass(frozen=True)
class Verdict:
    """What is said of one image: its file, its score, and "anomalous", "normal" or "no verdict"."""

    image: str
    score: float
    verdict: str


def predict_files(
    model: Path, images: list[Path], out: Path, device: str = "auto", *, progress: bool = True
) -> list[Verdict]:
    """Map and score image files; write overlays, scores.csv and maps.npz into the new folder `out`.

    model: the folder of a run, or of a saved model. images: files, or folders, searched below too, whose images are
    taken. An overlay bears the name of its image, in the folders that the image lies in below the folder that was
    named. All overlays share one colour scale, so that two of them can be compared.

    Raises UserError for a missing model, a file that is no image, or an `out` that is not empty; nothing is written
    then.
    """
    detector = methods.load(model / "model" if (model / "model").is_dir() else model, device)
    files = _image_files(images)
    pictures = _as_set(list(files), detector.image_size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another --out")
    maps, scores = detector.predict(pictures, progress=progress)
    rows = [Verdict(*row) for row in zip(pictures.paths, scores.tolist(), detector.verdicts(scores))]
    try:
        with new_folder(out) as work:
            _write(work, rows, _unique_names(list(files.values())), pictures, maps, detector)
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({error.strerror or error}): free space there or choose another --out"
        ) from None
    return rows


def _image_files(paths: list[Path]) -> dict[Path, Path]:
    """Return every image file once, and its name below the folder that was named."""
    files: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"{path} holds no images ({', '.join(sorted(SUFFIXES))}): name a folder that does, or files"
            )
        files |= {file: file.relative_to(path) if path.is_dir() else Path(file.name) for file in inside}
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"no image {missing[0]}: check the path")
    return files


def _as_set(files: list[Path], image_size: tuple[int, int]) -> ImageSet:
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


def _write(
    work: Path, rows: list[Verdict], names: list[str], pictures: ImageSet, maps: np.ndarray, detector: Detector
) -> None:
    """Write overlays, one at a time, scores and maps into a folder."""
    vmin, vmax = plots.limits(maps)
    for i, (row, name) in enumerate(zip(rows, names)):
        title = name.replace("$", r"\$")  # or the plot reads it as mathematics
        large = scoring.upsample(torch.from_numpy(maps[i : i + 1]), detector.image_size)[0]
        scale = dict(vmin=vmin, vmax=vmax, score=row.score, threshold=detector.threshold.item())
        sheet = plots.overlay(pictures[i], large, title=title, **scale)
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        sheet.savefig(work / f"{name}.png")
    pd.DataFrame([vars(row) for row in rows]).to_csv(work / "scores.csv", index=False)
    scores = np.array([row.score for row in rows], np.float32)
    np.savez(work / "maps.npz", anomaly_map=maps, score=scores, path=np.array(pictures.paths))
