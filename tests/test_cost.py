"""What a run costs: times that were really measured, sizes that are exact, and nothing that names a person."""

from __future__ import annotations

import getpass
import json
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import detector, image_set, network, tensor, weave

from uad_core import cost, methods
from uad_core.cost import Peaks, Stopwatch, environment, measure_cost

CPU = torch.device("cpu")


def test_the_stopwatch_measures_seconds() -> None:
    with Stopwatch(CPU) as watch:
        time.sleep(0.05)
    assert 0.05 <= watch.seconds < 0.5


def test_the_stopwatch_waits_for_the_gpu(monkeypatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    with Stopwatch(torch.device("cuda", 0)):
        assert len(waited) == 1
    assert waited == [torch.device("cuda", 0)] * 2


def measured(
    monkeypatch, tmp_path, method: str = "knn", count: int = 9, seconds: float = 0.0
) -> tuple[dict, list, list]:
    """The cost of a small detector, and the batches that it and its description were shown, each for `seconds`."""
    model = (
        detector(method, network("test_resnet", (8, 16))) if method == "knn" else detector(method, width=4, stages=4)
    )
    model.fit(tensor(weave(3)), progress=False)
    folder = methods.save(model, tmp_path / "model")
    shown: dict[str, list[int]] = {"score": [], "describe": []}
    clock = [0.0]

    def milliseconds(function, batch, device) -> float:
        shown[function.__name__].append(len(batch))
        function(batch)
        clock[0] += seconds
        return 1000.0 * len(shown["score"])  # the n-th measurement reads n seconds

    monkeypatch.setattr(cost, "_milliseconds", milliseconds)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    return measure_cost(model, image_set(weave(count)), folder), shown["score"], shown["describe"]


def test_prediction_and_description_are_timed_in_turn_and_the_first_pass_is_left_out(monkeypatch, tmp_path) -> None:
    found, score, describe = measured(monkeypatch, tmp_path)
    assert score == describe == [4, *(5 * [4, 4, 1])]
    assert found["predict_ms_per_image"] == found["backbone_ms_per_image"] == 9000.0  # the median of 2, ..., 16
    assert found["timed_images"] == 9


def test_measuring_ends_when_its_time_is_spent_but_never_without_a_figure(monkeypatch, tmp_path) -> None:
    found, score, _ = measured(monkeypatch, tmp_path / "slow", seconds=100)
    assert score == [4, 4] and found["timed_images"] == 4 and found["predict_ms_per_image"] == 2000.0
    found, score, _ = measured(monkeypatch, tmp_path / "medium", seconds=1)
    assert 2 * len(score) <= cost.BUDGET_SECONDS + 2 and found["timed_images"] == 9


def test_sizes_are_exact(monkeypatch, tmp_path) -> None:
    found, *_ = measured(monkeypatch, tmp_path)
    assert found["model_bytes"] == sum(file.stat().st_size for file in (tmp_path / "model").iterdir())
    assert found["parameters"] == sum(p.numel() for p in network("test_resnet", (8, 16)).parameters())


def test_a_method_without_a_backbone_has_no_time_for_one(monkeypatch, tmp_path) -> None:
    found, score, _ = measured(monkeypatch, tmp_path, "pixel_ae")
    assert found["backbone_ms_per_image"] is None and len(score) == 16
    assert found["predict_ms_per_image"] > 0 and found["parameters"] > 0


def test_of_a_large_set_images_from_all_of_it_are_timed(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cost, "TIMED_IMAGES", 5)
    monkeypatch.setattr(cost, "ROUNDS", 1)
    found, score, _ = measured(monkeypatch, tmp_path, count=20)
    assert score == [4, 4, 1] and found["timed_images"] == 5


def test_milliseconds_are_per_image(monkeypatch) -> None:
    readings = iter([3.0, 5.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    assert cost._milliseconds(lambda batch: batch, torch.zeros(4, 3, 2, 2), CPU) == 1000 * 2.0 / 4


def test_timing_computes_no_gradients() -> None:
    seen = []
    cost._milliseconds(lambda batch: seen.append(torch.is_grad_enabled()), torch.zeros(1), CPU)
    assert seen == [False]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak of a process")
def test_a_peak_is_that_of_its_phase() -> None:
    with Peaks(CPU) as large:
        block = np.ones(2**25)  # 256 MB, touched
        del block
    with Peaks(CPU) as small:
        np.ones(2**10)
    if large.rss_mb == small.rss_mb:
        pytest.skip("this system does not let a process reset its peak")
    assert large.rss_mb > small.rss_mb + 200 and small.rss_mb > 50 and small.gpu_mb is None


def test_a_gpu_s_peak_begins_anew_with_each_phase(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    with Peaks(torch.device("cuda", 0)) as found:
        assert calls == [torch.device("cuda", 0)]
    assert found.gpu_mb == 3.0


def test_the_environment_says_what_numbers_depend_on_and_nobody_s_name() -> None:
    found = environment(CPU)
    assert set(found) == {"python", "torch", "timm", "numpy", "system", "cpu", "threads", "device", "gpu"}
    assert (found["torch"], found["threads"], found["device"], found["gpu"]) == (torch.__version__, 1, "cpu", None)
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["cpu"]
    text = json.dumps(found)
    assert str(Path.home()) not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert name not in text or len(name) < 5
