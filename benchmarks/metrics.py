"""Time and memory of the pixel metrics beside scikit-learn's, on drawn maps: ``python benchmarks/metrics.py``.

The anomaly maps are noise, raised inside round defects in half of the images. scikit-learn has no AUPRO, so its
column holds AUROC, average precision and F1-max alone. Each program runs in a process of its own; "peak" is the
largest resident memory of that process above what it held just before the first call.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable

import numpy as np
from memory import peak_mb


def draw(images: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, S, S) float32 and masks (N, S, S) bool; odd images have one to three defects."""
    rng = np.random.default_rng(seed)
    maps, masks = np.empty((images, size, size), np.float32), np.zeros((images, size, size), bool)
    y, x = np.mgrid[:size, :size]
    for n in range(images):
        for _ in range(rng.integers(1, 4) * (n % 2)):
            radius, (cy, cx) = rng.uniform(0.03, 0.15) * size, rng.uniform(0.15, 0.85, 2) * size
            masks[n] |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        maps[n] = rng.normal(size=(size, size)) + 2 * masks[n]
    return maps, masks


def ours(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """The exact metrics of the package, AUPRO included."""
    from uad_core import metrics

    labels = masks.any(axis=(1, 2))
    result = metrics.evaluate(maps.max(axis=(1, 2)), labels, maps, masks)
    return {name: value for name, value in result.items() if not name.startswith("image")}


def streaming(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """The histogram of the package, in batches of eight images."""
    from uad_core.metrics import StreamingPixelMetrics

    histogram = StreamingPixelMetrics()
    for start in range(0, len(maps), 8):
        histogram.update(maps[start:start + 8], masks[start:start + 8])
    return histogram.compute()


def scikit_learn(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """AUROC, average precision and F1-max by scikit-learn."""
    from sklearn import metrics

    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    return {"pixel_auroc": metrics.roc_auc_score(labels, scores),
            "pixel_ap": metrics.average_precision_score(labels, scores),
            "pixel_f1max": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))}


PROGRAMS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "exact": ours, "streaming": streaming, "scikit-learn": scikit_learn}


def measure(name: str, images: int, size: int, runs: int) -> dict:
    """Median seconds over the runs, peak memory above the inputs in MB, and the values of the metrics."""
    program = PROGRAMS[name]
    program(*draw(2, 16))  # imports
    maps, masks = draw(images, size)
    before, seconds = peak_mb(), []
    for _ in range(runs):
        start = time.perf_counter()
        values = program(maps, masks)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "runs": runs, "peak_mb": peak_mb() - before, "values": values}


def main() -> None:
    """Print the table, or with ``--json`` the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=110)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5, help="runs of the package's metrics")
    parser.add_argument("--sklearn-runs", type=int, default=1, help="runs of scikit-learn's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {}
    for name in PROGRAMS:
        runs = options.sklearn_runs if name == "scikit-learn" else options.runs
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures[name] = pool.apply(measure, (name, options.images, options.size, runs))
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{options.images} maps of {options.size}x{options.size}")
    for name, row in figures.items():
        ratio = figures["scikit-learn"]["seconds"] / row["seconds"]
        values = " ".join(f"{key}={value:.9f}" for key, value in row["values"].items())
        print(f"{name:12s} {row['seconds']:8.2f} s (median of {row['runs']}) {ratio:6.1f}x {row['peak_mb']:7.0f} MB")
        print(f"{'':12s} {values}")


if __name__ == "__main__":
    main()
