"""A fitted detector as ONNX file in three precisions beside PyTorch: ``python benchmarks/exported.py DIR --root DATA``.

DIR is the ``--out`` folder of a run of one category; the data it was fitted on must still be there. Each file judges
the run's test images, one at a time: size, seconds of reading and running, the seven metrics, how far scores are from
PyTorch's, and how many verdicts at the detector's threshold change. Programs take turns, image by image, so that a
machine whose speed drifts treats them alike; the time is the median over all images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from uad_core import datasets, metrics
from uad_core import load as load_detector
from uad_core.export import PRECISIONS, export, session
from uad_core.files import new_folder

Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def torch_judge(detector) -> Judge:
    """The detector itself, as a function of images (1, 3, H, W)."""

    def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            maps = detector.anomaly_map(torch.from_numpy(images))
            return maps.numpy(), detector.score_maps(maps).numpy()

    return judge


def file_judge(file: Path, threads: int) -> Judge:
    """An exported file, as the same function."""
    run = session(file, threads).run
    return lambda images: tuple(run(["maps", "scores"], {"images": images}))


def written(model: Path, category: datasets.Category, folder: Path) -> dict[str, Path]:
    """Write the three files; int8 is calibrated by training images."""
    with new_folder(folder / "normal") as images:
        save_images(category.train, images)
    return {p: export(model, folder / f"{p}.onnx", p, [folder / "normal"]).file for p in PRECISIONS}


def save_images(images: datasets.ImageSet, folder: Path) -> None:
    """Write up to 64 images of a set as files, as `uad export --images` takes them."""
    from PIL import Image

    for i, pixels in enumerate(images.pixels(range(min(64, len(images))))):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i:03d}.png")


def judged(judges: dict[str, Judge], images: datasets.ImageSet) -> dict[str, dict]:
    """Maps, scores and milliseconds of every program on every image, in turn."""
    found = {name: {"maps": [], "scores": [], "ms": []} for name in judges}
    for i in range(len(images)):
        image = images.images([i]).numpy()
        for name, judge in judges.items():
            start = time.perf_counter()
            maps, scores = judge(image)
            found[name]["ms"].append(1000 * (time.perf_counter() - start))
            found[name]["maps"].append(maps[0])
            found[name]["scores"].append(scores[0])
    return found


def row(found: dict, reference: dict, threshold: float, labels: np.ndarray, masks: np.ndarray) -> dict:
    """The figures of one program."""
    scores, wanted = np.array(found["scores"]), np.array(reference["scores"])
    return {
        "ms": statistics.median(found["ms"][1:]),
        **metrics.evaluate(scores, labels, np.stack(found["maps"]), masks),
        "score_error": float((np.abs(scores - wanted) / wanted).max()),
        "changed": int(((scores > threshold) != (wanted > threshold)).sum()),
        "false_alarms": int((scores[~labels] > threshold).sum()),
    }


def show(rows: dict[str, dict]) -> None:
    """Print the figures as a table."""
    print(f"{'':10s}{'MB':>7s}{'ms/image':>10s}{'I-AUROC':>9s}{'P-AP':>7s}{'AUPRO':>7s}{'scores off':>12s}"
          f"{'verdicts changed':>18s}{'false alarms':>14s}")  # fmt: skip
    for name, r in rows.items():
        size = f"{r['bytes'] / 1e6:.1f}" if r["bytes"] else "-"
        percent = f"{100 * r['image_auroc']:9.2f}{100 * r['pixel_ap']:7.2f}{100 * r['aupro']:7.2f}"
        print(f"{name:10s}{size:>7s}{r['ms']:10.1f}{percent}{r['score_error']:12.1e}{r['changed']:18d}"
              f"{r['false_alarms']:14d}")  # fmt: skip


def main() -> None:
    """Print the table, or with ``--json`` the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the --out folder of a run of one category")
    parser.add_argument("--dataset", help="name or folder, where it is not the one that the result names")
    parser.add_argument("--root", type=Path, help="folder of all data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = json.loads((options.model / "result.json").read_text())
    detector = load_detector(options.model / "model", "cpu")
    source = options.dataset or result["dataset"]
    category = datasets.load(source, result["category"], root=options.root, image_size=detector.image_size)
    labels, masks = np.array(category.test.labels, bool), category.test.masks(detector.map_size)
    with tempfile.TemporaryDirectory() as folder:
        files = written(options.model, category, Path(folder))
        judges = {name: file_judge(file, options.threads) for name, file in files.items()}
        found = judged({"PyTorch": torch_judge(detector), **judges}, category.test)
        sizes = {"PyTorch": None, **{name: file.stat().st_size for name, file in files.items()}}
    truth = (detector.threshold.item(), labels, masks)
    rows = {name: {"bytes": sizes[name], **row(part, found["PyTorch"], *truth)} for name, part in found.items()}
    print(json.dumps(rows, indent=1)) if options.json else show(rows)


if __name__ == "__main__":
    main()
