"""On a GPU: every method fits, predicts, is kept and goes on after a kill there, and agrees with the CPU.

Skipped where there is none. Kept features are half precision on both devices, so maps agree to about 2 %.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import LITE0, damage, digest, image_set, shared_networks, tensor, weave, write_category
from torch import nn

from uad_core import methods, training
from uad_core.experiment import Experiment, run
from uad_core.features import extract
from uad_core.randomness import seeded
from uad_core.training import Schedule, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

CUDA = torch.device("cuda")
TOLERANCE = 0.02
NAMES = list(methods.METHODS)


@pytest.fixture(autouse=True)
def own_networks():
    """Networks move between devices here: no other test may share them."""
    with torch.random.fork_rng():
        yield


def create(name: str, device: str = "cuda", **settings) -> methods.Detector:
    kind = methods.method_class(name).config_class
    settings |= dict.fromkeys({"epochs", "steps"} & {field.name for field in dataclasses.fields(kind)}, 2)
    return methods.create(name, profile="smoke", backbone=LITE0, image_size=64, device=device, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_fits_predicts_and_is_loaded_on_the_cpu(tmp_path, name: str) -> None:
    model = create(name).fit(image_set(weave(16)), progress=False)
    images = damage(weave(3, seed=9))[0]
    maps, scores = model.predict(image_set(images), progress=False)
    assert maps.shape == (3, *model.map_size) and np.isfinite(maps).all() and torch.isfinite(model.threshold)
    loaded = methods.load(model.save(tmp_path / "model"), "cpu")
    again = loaded.predict(image_set(images), progress=False)
    np.testing.assert_allclose(again[0], maps, rtol=TOLERANCE, atol=TOLERANCE * maps.max())
    np.testing.assert_allclose(again[1], scores, rtol=TOLERANCE)
    assert {p.device.type for p in model.parameters()} == {"cuda"}


@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_there_what_it_learns_on_the_cpu(name: str) -> None:
    single = {} if name in ("sgfr", "knn") else {"precision": "32-true"}
    both = [create(name, device, **single) for device in ("cpu", "cuda")]
    here, there = (model.fit(image_set(weave(16)), progress=False) for model in both)
    bad = image_set(damage(weave(3, seed=9))[0])
    maps = [model.predict(bad, progress=False)[0] for model in (here, there)]
    # Training multiplies rounding: the maps agree in what they say, not in their last digits.
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("name", [name for name in NAMES if methods.method_class(name).profiles["cpu"] is not None])
def test_a_killed_fit_goes_on(tmp_path, monkeypatch, name: str) -> None:
    if name in ("sgfr", "knn"):
        pytest.skip("it has nothing to go on from: it is fitted at once")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    data, epoch, done = image_set(weave(16)), training._epoch, []

    def dying(*arguments):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return epoch(*arguments)

    monkeypatch.setattr(training, "_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        create(name).fit(data, checkpoint=tmp_path / "c.pt", progress=False)
    monkeypatch.setattr(training, "_epoch", epoch)
    resumed = create(name).fit(data, checkpoint=tmp_path / "c.pt", progress=False)
    straight = create(name).fit(data, progress=False)
    assert resumed.history == pytest.approx(straight.history, rel=0.05)


class Points:
    def __init__(self):
        self.x = torch.randn(20, 8, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self.x[index].to(device)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_the_loop_trains_and_resumes_in_every_precision(tmp_path, monkeypatch, precision: str, clip: float) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)

    def fit(epochs: int, checkpoint=None) -> tuple[list[float], nn.Module]:
        with seeded(0):
            model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).cuda()
        schedule = Schedule(epochs, 4, 1e-2, clip=clip, precision=precision, ema=0.9)
        loss = lambda x: (model(x) - x).square().mean()  # noqa: E731
        return train(model, Points(), loss, schedule, seed=0, device=CUDA, checkpoint=checkpoint, progress=False), model

    straight, model = fit(6)
    fit(3, tmp_path / "c.pt")
    resumed, again = fit(6, tmp_path / "c.pt")
    assert straight[-1] < straight[0] and resumed == pytest.approx(straight, rel=1e-3)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_the_caller_s_generators_are_left_alone() -> None:
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    create("hfr").fit(image_set(weave(8)), progress=False)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_features_of_both_devices_agree_and_the_backbone_stays_where_it_is() -> None:
    model = create("hfr")
    there = extract(model.backbone, image_set(weave(4)), progress=False)
    assert model.backbone.mean.device.type == "cuda"
    here = extract(create("hfr", "cpu").backbone, image_set(weave(4)), progress=False)
    for a, b in zip(there.levels, here.levels, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE * b.abs().max().item())


def test_tensors_on_the_gpu_are_taken() -> None:
    model = create("knn").fit(tensor(weave(16)).cuda(), progress=False)
    images = tensor(damage(weave(2))[0])
    assert torch.equal(model.score(images.cuda()), model.score(images))


def test_a_run_measures_its_peaks_phase_by_phase(tmp_path) -> None:
    write_category(tmp_path / "part", train=16)
    facts = dict(profile="smoke", backbone=LITE0, image_size=64, device="cuda", settings={"bank": "50"})
    with shared_networks():
        result = run(Experiment("knn", str(tmp_path / "part"), "all", **facts), tmp_path / "out", progress=False)
    assert 0 < result["cost"]["peak_gpu_mb"] < 2000 and result["environment"]["device"] == "cuda"
    assert json.loads((tmp_path / "out/result.json").read_text()) == result


def test_building_and_learning_depend_on_the_seed_alone() -> None:
    torch.cuda.manual_seed(1)
    one = create("hfr")
    torch.cuda.manual_seed(2)
    assert digest(one) == digest(create("hfr"))
