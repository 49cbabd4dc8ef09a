"""`uad predict`: a fitted model applied to a person's own images."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from uad_core import methods, plots
from uad_core.datasets.base import resize_image
from uad_core.datasets.images import read_image
from uad_core.errors import UserError

__all__ = ["Verdict", "predict_files"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Verdict:
    """What is said of one image: its file, its score, and "anomalous" or "normal"."""

    image: str
    score: float
    verdict: str


def predict_files(
    model: Path, images: list[Path], out: Path, device: str = "auto", *, progress: bool = True
) -> list[Verdict]:
    """Map and score image files; write overlays, scores.csv and maps.npz into the new folder `out`.

    model: the folder of a run, or of a saved model. images: files, or folders whose images are taken. All overlays
    share one colour scale, so that two of them can be compared.

    Raises UserError for a missing model, a file that is no image, or an `out` that is not empty; nothing is written
    then.
    """
    detector = methods.load(model / "model" if (model / "model").is_dir() else model, device)
    files = _image_files(images)
    pictures = torch.stack([resize_image(read_image(file), detector.image_size) for file in files])  # (N, 3, H, W)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another --out")
    maps, scores = detector.predict(pictures, progress=progress)
    threshold = detector.threshold.item()
    rows = [Verdict(str(f), float(s), "anomalous" if s > threshold else "normal") for f, s in zip(files, scores)]
    _write(out, rows, _unique_names(files), pictures, maps, threshold)
    return rows


def _image_files(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"{path} holds no images ({', '.join(sorted(SUFFIXES))}): name a folder that does, or files"
            )
        files += inside
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"no image {missing[0]}: check the path")
    return files


def _unique_names(files: list[Path]) -> list[str]:
    """Name each overlay after its image, with a number where that name is taken."""
    names: dict[str, str] = {}  # in lower case, since some file systems do not tell case apart
    for file in files:
        candidates = (file.stem if i == 1 else f"{file.stem}-{i}" for i in count(1))
        name = next(name for name in candidates if name.lower() not in names)
        names[name.lower()] = name
    return list(names.values())


def _write(
    out: Path, rows: list[Verdict], names: list[str], pictures: Tensor, maps: np.ndarray, threshold: float
) -> None:
    """Write all results into a temporary folder and rename it: it appears whole or not at all."""
    vmin, vmax = plots.limits(maps)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=".predict-"))
        try:
            for row, name, picture, anomaly_map in zip(rows, names, pictures, maps):
                title = name.replace("$", r"\$")  # or the plot reads it as mathematics
                sheet = plots.overlay(
                    picture, anomaly_map, vmin=vmin, vmax=vmax, score=row.score, threshold=threshold, title=title
                )
                sheet.savefig(work / f"{name}.png")
            pd.DataFrame([vars(row) for row in rows]).to_csv(work / "scores.csv", index=False)
            scores = np.array([row.score for row in rows], np.float32)
            np.savez(work / "maps.npz", anomaly_map=maps, score=scores, path=np.array([row.image for row in rows]))
            os.chmod(work, 0o755)
            if out.is_dir():
                out.rmdir()
            os.replace(work, out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({error.strerror or error}): free space there or choose another --out"
        ) from None
