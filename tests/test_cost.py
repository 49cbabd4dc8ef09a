"""What a run costs: times that were really measured, sizes that are exact, and nothing that names a person."""

from __future__ import annotations

import getpass
import json
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import detector, image_set, network, tensor, weave

from uad_core import cost, methods
from uad_core.cost import Stopwatch, environment, measure_cost, sources_digest

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


def measured(monkeypatch, tmp_path, method: str = "knn", count: int = 9) -> tuple[dict, list[int], list[int]]:
    """The cost of a small detector, and the batches that it and its backbone were shown."""
    model = (
        detector(method, network("test_resnet", (8, 16))) if method == "knn" else detector(method, width=4, stages=4)
    )
    model.fit(tensor(weave(3)), progress=False)
    folder = methods.save(model, tmp_path / "model")
    shown: dict[str, list[int]] = {"score": [], "backbone": []}

    def milliseconds(function, batch, device) -> float:
        shown["backbone" if function is getattr(model, "backbone", None) else "score"].append(len(batch))
        function(batch)
        return 1000.0 * len(shown["score"])  # the n-th measurement reads n seconds

    monkeypatch.setattr(cost, "_milliseconds", milliseconds)
    return measure_cost(model, image_set(weave(count)), folder), shown["score"], shown["backbone"]


def test_prediction_and_backbone_are_timed_in_turn_and_the_first_pass_is_left_out(monkeypatch, tmp_path) -> None:
    found, score, backbone = measured(monkeypatch, tmp_path)
    assert score == backbone == [4, 4, 4, 1]
    assert found["predict_ms_per_image"] == found["backbone_ms_per_image"] == 3000.0  # the median of the last three


def test_sizes_are_exact(monkeypatch, tmp_path) -> None:
    found, *_ = measured(monkeypatch, tmp_path)
    assert found["model_bytes"] == sum(file.stat().st_size for file in (tmp_path / "model").iterdir())
    assert found["parameters"] == sum(p.numel() for p in network("test_resnet", (8, 16)).parameters())
    assert found["peak_gpu_mb"] is None and 50 < found["peak_rss_mb"] < 100_000


def test_a_method_without_a_backbone_has_no_time_for_one(monkeypatch, tmp_path) -> None:
    found, score, backbone = measured(monkeypatch, tmp_path, "pixel_ae")
    assert found["backbone_ms_per_image"] is None and backbone == [] and len(score) == 4
    assert found["predict_ms_per_image"] > 0 and found["parameters"] > 0


def test_of_a_large_set_images_from_all_of_it_are_timed(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cost, "TIMED_IMAGES", 5)
    _, score, _ = measured(monkeypatch, tmp_path, count=20)
    assert score == [4, 4, 1]  # the warm-up, and five images


def test_milliseconds_are_per_image_and_the_median_of_the_rounds(monkeypatch) -> None:
    readings = iter([0.0, 9.0, 10.0, 11.0, 20.0, 22.0, 30.0, 130.0, 140.0, 141.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    found = cost._milliseconds(lambda batch: batch, torch.zeros(4, 3, 2, 2), CPU)
    assert found == 1000 * 2.0 / 4  # rounds of 9, 1, 2, 100 and 1 seconds


def test_timing_computes_no_gradients() -> None:
    seen = []
    cost._milliseconds(lambda batch: seen.append(torch.is_grad_enabled()), torch.zeros(1), CPU)
    assert seen == [False] * cost.ROUNDS


def test_the_environment_says_what_numbers_depend_on_and_nobody_s_name() -> None:
    found = environment(CPU)
    assert set(found) == {"python", "torch", "timm", "numpy", "system", "cpu", "threads", "device", "gpu"}
    assert (found["torch"], found["threads"], found["device"], found["gpu"]) == (torch.__version__, 1, "cpu", None)
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["cpu"]
    text = json.dumps(found)
    assert str(Path.home()) not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert name not in text or len(name) < 5


@pytest.mark.parametrize("change", ["content", "name", "nothing"])
def test_the_digest_of_the_sources_changes_with_every_source(tmp_path, monkeypatch, change: str) -> None:
    def digest(folder: Path) -> str:
        monkeypatch.setattr(cost, "__file__", str(folder / "cost.py"))
        return sources_digest.__wrapped__()

    for name in ("one", "other"):
        (tmp_path / name / "methods").mkdir(parents=True)
        (tmp_path / name / "cost.py").write_text("a = 1\n")
        (tmp_path / name / "methods/hfr.py").write_text("b = 2\n")
    if change == "content":
        (tmp_path / "other/methods/hfr.py").write_text("b = 3\n")
    elif change == "name":
        (tmp_path / "other/methods/hfr.py").rename(tmp_path / "other/methods/hlgfa.py")
    else:
        (tmp_path / "other/notes.txt").write_text("not a source")
    assert (digest(tmp_path / "one") == digest(tmp_path / "other")) == (change == "nothing")
    assert digest(tmp_path / "one").startswith("0.1.0+")
