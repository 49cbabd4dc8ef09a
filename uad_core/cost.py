"""What a run costs, and on what it was measured: seconds, milliseconds per image, memory, size, environment."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
import time
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch

from uad_core.datasets import ImageSet
from uad_core.methods.base import Detector

__all__ = ["Stopwatch", "environment", "measure_cost", "sources_digest"]

TIMED_IMAGES = 32
ROUNDS = 5


class Stopwatch:
    """Measure the wall time of a `with` block in `seconds`; on a GPU, waits until the work is really done."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> Stopwatch:
        self._wait()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._wait()
        self.seconds = time.perf_counter() - self._start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_cost(detector: Detector, images: ImageSet, model: Path) -> dict[str, Any]:
    """Return the cost of predicting and keeping: the fields of "cost" in `result.json` but the time of fitting.

    Prediction and the backbone alone are timed in turn, on the same decoded images, and the medians are reported, so
    that their ratio holds when the machine's speed drifts.
    """
    device = detector.device
    step = max(1, len(images) // TIMED_IMAGES)
    batches = images.images(range(0, len(images), step)[:TIMED_IMAGES]).to(device).split(4)
    backbone = getattr(detector, "backbone", None)
    whole, alone = [], []
    for batch in (batches[0], *batches):  # the first pass over a batch only warms up
        whole.append(_milliseconds(detector.score, batch, device))
        alone.append(_milliseconds(backbone, batch, device) if backbone else 0.0)
    return {
        "predict_ms_per_image": median(whole[1:]),
        "backbone_ms_per_image": median(alone[1:]) if backbone else None,
        "peak_rss_mb": _peak_rss_mb(),
        "peak_gpu_mb": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
        "parameters": sum(p.numel() for p in detector.parameters()),
        "model_bytes": sum(file.stat().st_size for file in model.iterdir()),
    }


def _milliseconds(function, batch: torch.Tensor, device: torch.device) -> float:
    times = []
    for _ in range(ROUNDS):
        with torch.no_grad(), Stopwatch(device) as watch:
            function(batch)
        times.append(watch.seconds)
    return 1000 * median(times) / len(batch)


def _peak_rss_mb() -> float:
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a number may depend on: versions, processor, threads, GPU. Nothing that names a person or a host."""
    import numpy
    import timm

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def sources_digest() -> str:
    """Return the package's version and a hash of its sources, so that a result tells which code made it."""
    from uad_core import __version__

    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).replace(os.sep, "/").encode() + b"\0" + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"
