"""What a run costs, and on what it was measured: seconds, milliseconds per image, memory, size, environment."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch

from uad_core.datasets import ImageSet
from uad_core.features import images_at_a_time
from uad_core.methods.base import Detector

__all__ = ["Peaks", "Stopwatch", "environment", "measure_cost"]

TIMED_IMAGES = 32
ROUNDS = 5
BUDGET_SECONDS = 10.0
LINUX_STATUS, LINUX_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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


class Peaks:
    """Measure the largest memory of the process and of the GPU in a `with` block, in MB: `rss_mb`, `gpu_mb` or None.

    Where the system cannot reset the process's peak (it can on Linux), it is that since the process began.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.rss_mb, self.gpu_mb = 0.0, None

    def __enter__(self) -> Peaks:
        try:
            LINUX_RESET.write_text("5")
        except OSError:
            pass  # another system, or one that forbids it
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *exc: object) -> None:
        self.rss_mb = _peak_rss_mb()
        if self.device.type == "cuda":
            self.gpu_mb = torch.cuda.max_memory_allocated(self.device) / 2**20


def measure_cost(detector: Detector, images: ImageSet, model: Path) -> dict[str, Any]:
    """Return the cost of predicting and keeping: times per image, parameters, and bytes of the folder `model`.

    Prediction and the description of images (for most methods, the backbone) are timed in turn, in the same precision,
    on the same decoded images, and the medians are reported, so that their ratio holds when the machine's speed drifts.
    After `BUDGET_SECONDS` no further batch is timed; `timed_images` says how many images the figures come from.
    """
    whole, alone, timed = _timings(detector, images)
    backbone = getattr(detector, "backbone", None)
    return {
        "predict_ms_per_image": median(whole),
        "backbone_ms_per_image": median(alone) if backbone else None,
        "timed_images": timed,
        "parameters": sum(p.numel() for p in detector.parameters()),
        "model_bytes": sum(file.stat().st_size for file in model.iterdir()),
    }


def _timings(detector: Detector, images: ImageSet) -> tuple[list[float], list[float], int]:
    """Return milliseconds per image of scoring and of describing, batch by batch, and the number of images timed."""
    device = detector.device
    step = max(1, len(images) // TIMED_IMAGES)
    chosen = range(0, len(images), step)[:TIMED_IMAGES]
    at_a_time = min(4, images_at_a_time(images.image_size, device))
    starts = range(0, len(chosen), at_a_time)
    batches = [images.images(chosen[i : i + at_a_time]) for i in starts]
    whole, alone, seen = [], [], set()
    begun = time.perf_counter()
    # The first batch warms up and does not count.
    for k in chain([None], *repeat(range(len(batches)), ROUNDS)):
        batch = batches[k or 0].to(device)
        times = _milliseconds(detector.score, batch, device), _milliseconds(detector.describe, batch, device)
        if k is None:
            continue
        whole.append(times[0])
        alone.append(times[1])
        seen.add(k)
        if time.perf_counter() - begun > BUDGET_SECONDS:
            break
    return whole, alone, sum(len(batches[k]) for k in seen)


def _milliseconds(function: Callable, batch: torch.Tensor, device: torch.device) -> float:
    with torch.no_grad(), Stopwatch(device) as watch:
        function(batch)
    return 1000 * watch.seconds / len(batch)


def _peak_rss_mb() -> float:
    try:
        line = next(line for line in LINUX_STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
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
