"""Creating, configuring, keeping and loading detectors; what all methods share."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from tiny import LITE0, damage, detector, digest, fitted, image_set, inside, network, shared_networks, tensor, weave
from torch import nn

import uad_core
from uad_core import methods
from uad_core.backbones import Frozen
from uad_core.datasets import DataWarning, ImageSet
from uad_core.errors import UserError
from uad_core.features import extract
from uad_core.methods import configure, create, load, save, storage
from uad_core.methods.base import hold_out
from uad_core.methods.hfr import HFRConfig
from uad_core.methods.settings import Config, TrainedConfig

SMALL = dict(backbone=LITE0, image_size=64, device="cpu")
NAMES = list(methods.METHODS)


@pytest.fixture(scope="module", autouse=True)
def hurried():
    """Networks are loaded once."""
    with shared_networks():
        yield


def said(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- creating ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_every_profile(name: str) -> None:
    kind = methods.method_class(name)
    assert kind.name == name and list(kind.profiles) == list(methods.PROFILES)
    for chosen in [*kind.profiles.values(), kind.one_class]:
        configure(kind.config_class, {k: v for k, v in chosen.items() if k not in ("backbone", "image_size")})
    for field in dataclasses.fields(kind.config_class):
        assert field.metadata["mark"] in ("fact", "reconstruction") and len(field.metadata["note"]) > 10


def test_what_is_asked_for_overrides_the_protocol_and_that_the_profile(monkeypatch) -> None:
    kind = methods.method_class("pixel_ae")
    monkeypatch.setattr(kind, "profiles", {"smoke": dict(image_size=128, width=4, stages=3)})
    monkeypatch.setattr(kind, "one_class", dict(image_size=32, score="mean", stages=2, map_stride=4))

    def created(**options) -> tuple:
        model = create("pixel_ae", profile="smoke", device="cpu", **options)
        return model.image_size, model.map_size, model.config.score, model.config.width, model.config.stages

    assert created() == ((128, 128), (128, 128), "max", 4, 3)
    assert created(protocol="one_class") == ((32, 32), (8, 8), "mean", 4, 2)
    assert created(protocol="one_class", image_size=(64, 96), stages="4", score="max") == (
        (64, 96),
        (16, 24),
        "max",
        4,
        4,
    )


@pytest.mark.parametrize("name", NAMES)
def test_building_a_detector_is_a_function_of_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    built = [create(name, profile="smoke", seed=seed, **SMALL) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(built[0]) == digest(built[1])
    if any(weight.requires_grad for weight in built[0].parameters()):  # else randomness begins when it is fitted
        assert digest(built[0]) != digest(built[2])
    assert not any(module.training for module in built[0].modules())


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    assert said(lambda: create("hrf")) == f"no method 'hrf': choose among {', '.join(NAMES)}"
    assert (
        said(lambda: create("hfr", profile="gpu")) == "hfr has no profile 'gpu': choose among smoke, cpu, colab, paper"
    )
    assert "no device 'tpu' here" in said(lambda: create("hfr", device="tpu"))
    assert "no network 'resnet' " in said(lambda: create("hfr", backbone="resnet", device="cpu"))
    assert "image size (16, 16) is too small" in said(lambda: create("hfr", image_size=16, device="cpu"))


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_may_be_text() -> None:
    settings = {
        "epochs": "7",
        "lr": "1e-4",
        "widths": "8,8,4,4",
        "standardise": "False",
        "mode": "cos",
        "betas": ".5,.9",
    }
    config = configure(HFRConfig, settings)
    assert (config.epochs, config.lr, config.widths, config.standardise, config.mode, config.betas) == (
        7, 1e-4, (8, 8, 4, 4), False, "cos", (0.5, 0.9),
    )  # fmt: skip
    assert configure(HFRConfig, {"widths": [8, 8], "standardise": True, "epochs": 3}).widths == (8, 8)
    assert configure(HFRConfig, {}) == HFRConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "no setting 'epoch' in HFRConfig: did you mean epochs?"),
        ({"zzz": 3}, "no setting 'zzz' in HFRConfig: did you mean one of batch_size, betas, blocks"),
        ({"name": "x"}, "no setting 'name'"),
        ({"epochs": "many"}, "setting epochs='many' is not of type int: write for instance epochs=20"),
        ({"epochs": "2.5"}, "setting epochs='2.5' is not of type int"),
        ({"lr": "fast"}, "setting lr='fast' is not of type float: write for instance lr=0.003"),
        (
            {"standardise": "maybe"},
            "setting standardise='maybe' is not of type bool: write for instance standardise=true",
        ),
        ({"widths": "8,x"}, "setting widths='8,x' is not of type tuple: write for instance widths=128,96,64,32"),
        ({"widths": 8}, "setting widths=8 is not of type tuple"),
        ({"betas": "0.9"}, "setting betas='0.9' is not of type tuple"),
        ({"betas": ".9,.9,.9"}, "setting betas='.9,.9,.9' is not of type tuple: write for instance betas=0.9,0.999"),
        ({"widths": ",,"}, "widths cannot be empty: give at least one value"),
        ({"epochs": "9" * 5000}, f"setting epochs='{'9' * 39} is not of type int: write for instance epochs=20"),
        ({"mode": "l1"}, "mode cannot be 'l1': choose among normal, mse, cos, mse+cos"),
        ({"bottleneck": ""}, "bottleneck cannot be '': choose among stride2, 1x1, none"),
        ({"precision": "64-true"}, "precision cannot be '64-true': choose among auto, 32-true, 16-mixed, bf16-mixed"),
        ({"epochs": 0}, "epochs cannot be 0: give a number from 1 up"),
        ({"batch_size": "-4"}, "batch_size cannot be '-4': give a number from 1 up"),
        ({"lr": -1.0}, "lr cannot be -1.0: give a number from 0 up"),
        ({"lr": "nan"}, "lr cannot be 'nan': give a number from 0 up"),
        ({"sigma": "inf"}, "sigma cannot be 'inf': give a number from 0 up"),
        ({"map_stride": 0}, "map_stride cannot be 0: give a number from 1 to 32"),
        ({"strides": ""}, "strides cannot be empty: give at least one value, several with commas between them"),
        ({"widths": "8,0"}, "widths cannot be '8,0': give numbers from 1 up"),
        ({"betas": "0.9,1"}, "betas cannot be '0.9,1': give numbers from 0 to 0.9999"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_one_line_with_the_remedy(settings: dict, message: str) -> None:
    assert said(lambda: configure(HFRConfig, settings)).startswith(message)


def test_a_schedule_holds_the_settings_of_training() -> None:
    config = configure(HFRConfig, {"epochs": 3, "lr": 0.5, "clip": 2.0, "betas": "0.5,0.6", "decay": "constant"})
    schedule = config.schedule()
    assert (schedule.epochs, schedule.lr, schedule.clip, schedule.betas, schedule.decay) == (
        3,
        0.5,
        2.0,
        (0.5, 0.6),
        "constant",
    )
    assert TrainedConfig().schedule().betas == (0.9, 0.999)  # a method without the field takes Adam's own


def test_who_names_the_epochs_gets_no_further_ones() -> None:
    assert create("hlgfa", **SMALL).config.steps > 0 == create("hlgfa", epochs=3, **SMALL).config.steps
    assert create("hlgfa", epochs=3, steps=5, **SMALL).config.steps == 5


# --- keeping -------------------------------------------------------------------------------------------------------


class SmallModels(dict):
    """Method -> a model of its smoke profile, fitted when first asked for; for one epoch or step."""

    def __missing__(self, name: str) -> methods.Detector:
        fields = {field.name for field in dataclasses.fields(methods.method_class(name).config_class)}
        hurried = dict.fromkeys({"epochs", "steps"} & fields, 1)
        self[name] = create(name, profile="smoke", **hurried, **SMALL).fit(image_set(weave(16)), progress=False)
        return self[name]


@pytest.fixture(scope="module")
def small_models() -> SmallModels:
    return SmallModels()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_loaded_is_what_was_saved(tmp_path, small_models, name: str) -> None:
    model = small_models[name]
    assert model.save(tmp_path / "model") == tmp_path / "model"
    assert inside(tmp_path) == ["model", "model/model.json", "model/model.safetensors"]
    again = uad_core.load(tmp_path / "model", device="cpu")
    images = tensor(damage(weave(3))[0])
    assert torch.equal(again.anomaly_map(images), model.anomaly_map(images))
    assert torch.equal(again.threshold, model.threshold) and torch.isfinite(again.threshold)
    assert torch.equal(again.normal_scores, model.normal_scores) and len(again.normal_scores) == 4
    assert (again.config, again.seed, again.image_size) == (model.config, model.seed, model.image_size)
    assert again.history == model.history and not any(module.training for module in again.modules())
    if os.name == "posix":
        assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_the_backbone_s_weights_are_not_kept(tmp_path, small_models) -> None:
    names = small_models["hfr"].own_tensors()
    assert names and not any(name.startswith("backbone.") for name in names)
    about = json.loads((save(small_models["hfr"], tmp_path / "m") / "model.json").read_text())
    assert about["weights_sha256"] == small_models["hfr"].backbone.weights_sha256
    assert about["backbone"] == LITE0 and about["method"] == "hfr" and about["config"]["widths"] == [128, 96, 64, 32]


def test_a_saved_model_is_replaced_but_nothing_else_is(tmp_path, small_models) -> None:
    folder = save(small_models["hfr"], tmp_path / "model")
    save(small_models["knn"], folder)
    assert load(folder, "cpu").name == "knn"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.png").touch()
    (tmp_path / "file").touch()
    for other in ("photos", "file"):
        assert "holds something else than a model" in said(
            lambda other=other: save(small_models["hfr"], tmp_path / other)
        )
    assert (tmp_path / "photos/holiday.png").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "model", "photos"]


def test_a_failed_save_leaves_the_previous_model(tmp_path, small_models, monkeypatch) -> None:
    folder = save(small_models["hfr"], tmp_path / "model")
    monkeypatch.setattr(storage, "describe", lambda detector: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(small_models["knn"], folder)
    assert load(folder, "cpu").name == "hfr" and [p.name for p in tmp_path.iterdir()] == ["model"]


def harm(folder, what: str) -> None:
    tensors, about = folder / "model.safetensors", folder / "model.json"
    if what == "shortened":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif what == "no json":
        about.write_text("{")
    elif what == "a list":
        about.write_text("[]")
    elif what == "other widths":
        about.write_text(about.read_text().replace("[\n      128,", "[\n      120,"))
    elif what == "no tensors":
        tensors.unlink()
    elif what == "other weights":
        changed = json.loads(about.read_text()) | {"weights_sha256": "0" * 64}
        about.write_text(json.dumps(changed))
    elif what == "unknown setting":
        changed = json.loads(about.read_text())
        about.write_text(json.dumps(changed | {"config": changed["config"] | {"colour": 1}}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("shortened", "is damaged (SafetensorError): fit it again with `uad run`"),
        ("no json", "is damaged (JSONDecodeError): fit it again"),
        ("a list", "is damaged (TypeError): fit it again"),
        ("other widths", "is damaged (RuntimeError): fit it again"),
        ("no tensors", "(model.safetensors is missing): `uad run ... --out DIR` writes DIR/model"),
        ("other weights", f"was fitted with other weights of {LITE0}: fit it again"),
        ("unknown setting", "no setting 'colour' in HFRConfig"),
    ],
)
def test_a_damaged_model_is_named(tmp_path, small_models, what: str, message: str) -> None:
    folder = save(small_models["hfr"], tmp_path / "model")
    harm(folder, what)
    found = said(lambda: load(folder, "cpu"))
    assert message in found and (str(folder) in found or what == "unknown setting")


def test_a_missing_model_is_named(tmp_path) -> None:
    for where in (tmp_path, tmp_path / "nothing"):
        assert said(lambda where=where: load(where)).startswith(f"no saved model in {where} (model.json is missing)")


# --- fitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "held"), [(1, 0), (2, 1), (8, 1), (15, 2), (16, 4), (20, 4), (209, 26), (10_000, 512)]
)
def test_one_image_in_eight_is_held_out(count: int, held: int) -> None:
    learned, out = hold_out(count, seed=3)
    assert len(out) == held and sorted([*learned.tolist(), *out.tolist()]) == list(range(count))
    assert torch.equal(learned, learned.sort().values)
    assert count < 100 or not torch.equal(hold_out(count, seed=4)[1], out)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_out_is_not_learned_from_and_places_the_threshold(small_models, name: str) -> None:
    model, images = small_models[name], image_set(weave(16))
    learned, held = hold_out(16, model.seed)
    assert len(model.normal_scores) == len(held) == 4
    if type(model).calibrate is methods.Detector.calibrate:
        scores = model.predict(images.subset(held.numpy()), progress=False)[1]
        np.testing.assert_allclose(model.normal_scores.numpy(), np.sort(scores), rtol=2e-2)
    other = weave(16)
    # What is held out changes the calibration, never what is learned.
    other[held.numpy()] = damage(weave(4, seed=50))[0]
    again = unfitted(model).fit(image_set(other), progress=False)
    assert again.history == model.history and again.threshold != model.threshold


def unfitted(model: methods.Detector) -> methods.Detector:
    """The detector as it was before it was fitted."""
    settings = dataclasses.asdict(model.config)
    return create(model.name, backbone=LITE0, image_size=64, device="cpu", seed=model.seed, **settings)


def test_no_image_is_judged_by_its_own_calibration(monkeypatch) -> None:
    """What calibrates is never what is judged, but for the last calibration, by all that was held out."""
    model, calls = detector("knn", network("test_resnet", (8, 16))), []
    monkeypatch.setattr(type(model), "calibrate", lambda self, normal: calls.append(set(normal.rows.tolist())))
    batches = type(model).batches

    def judged(self, images, progress=False):
        calls.append(set(images.rows.tolist()))
        return batches(self, images, progress)

    monkeypatch.setattr(type(model), "batches", judged)
    model.fit(tensor(weave(32)), progress=False)
    held = set(hold_out(32, 0)[1].tolist())
    first, second, third, fourth, whole = calls
    assert first == fourth and second == third and first | second == whole == held and not first & second


def test_without_held_out_scores_there_is_no_verdict() -> None:
    model = detector("knn", network("test_resnet", (8, 16)))
    with pytest.warns(DataWarning, match="no verdict: 0 held-out scores place no threshold; for at most 2.0% false al"):
        model.fit(tensor(weave(1)), progress=False)
    assert model.verdicts(np.array([0.0, 1e9])) == ["no verdict"] * 2
    model.threshold.fill_(2.0)
    assert model.verdicts(np.array([2.0, 2.1])) == ["normal", "anomalous"]


class Odd(nn.Module):
    """A part of a method that holds something frozen under a name of its own."""

    def __init__(self):
        super().__init__()
        self.teacher, self.pupil = Frozen(), nn.Linear(2, 2)
        self.teacher.layer = nn.Linear(2, 2)


def test_frozen_modules_are_left_out_by_their_kind_and_stay_in_evaluation_mode() -> None:
    model = detector("pixel_ae", width=4, stages=4)
    model.part = Odd()
    assert {name for name in model.own_tensors() if name.startswith("part")} == {"part.pupil.weight", "part.pupil.bias"}
    assert not model.train().part.teacher.training and model.part.pupil.training


# --- predicting ----------------------------------------------------------------------------------------------------


def test_sets_tensors_and_single_images_are_scored_alike() -> None:
    images = damage(weave(7))[0]
    maps, scores = fitted().predict(image_set(images), progress=False)
    assert maps.shape == (7, 64, 64) and maps.dtype == np.float32 and scores.shape == (7,)
    np.testing.assert_allclose(maps, fitted().anomaly_map(tensor(images)).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, [fitted().score(image[None]).item() for image in tensor(images)], rtol=1e-4)
    np.testing.assert_allclose(scores, np.sort(maps.reshape(7, -1))[:, -8:].mean(1), rtol=1e-5)
    of_features = fitted().predict(extract(fitted().backbone, image_set(images), progress=False), progress=False)
    np.testing.assert_allclose(of_features[1], scores, rtol=1e-2)  # kept in half precision


def test_maps_are_neither_squashed_nor_scaled() -> None:
    """Where only distance counts, features ten times as far away give a map a hundred times as large."""
    model = detector("hfr", network(), mode="mse", fusion="sum", standardise=False, widths="8,8,8,8")
    model.reconstruct = lambda pyramid: [torch.zeros_like(level) for level in pyramid]
    f = extract(network(), tensor(weave(2)), progress=False).batch(slice(None))
    maps, larger = (model.fuse(model.map_residuals([scale * level for level in f])) for scale in (1, 10))
    torch.testing.assert_close(larger, 100 * maps)
    assert larger.max() > 1


def test_maps_may_be_coarser_than_images() -> None:
    model = detector("hfr", network(), map_stride=4, widths="8,8,8,8")
    assert model.anomaly_map(tensor(weave(2))).shape == (2, 16, 16)


def test_prediction_puts_the_model_into_evaluation_mode() -> None:
    model = detector("hfr", network(), widths="8,8,8,8")
    before = digest(model)
    model.train().predict(tensor(weave(3)), progress=False)
    assert not model.training and digest(model) == before


def test_the_base_class_promises_no_more_than_it_has() -> None:
    with pytest.raises(TypeError, match="abstract.*describe, learn, map_residuals"):
        methods.Detector(Config(), (8, 8), 0)
    assert isinstance(image_set(weave(1)), ImageSet)
