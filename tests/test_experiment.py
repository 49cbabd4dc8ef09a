"""One run: what it leaves behind can be checked, is never computed twice, and survives a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from tiny import LITE0, inside, shared_networks, uad, weave, write, write_category, write_classes

from uad_core import cost, datasets, ledger, methods, metrics, training
from uad_core import experiment as module
from uad_core.errors import UserError
from uad_core.experiment import Experiment, run
from uad_core.methods import base

METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
KEYS = {
    "method": str, "dataset": str, "category": str, "profile": str, "seed": int, "backbone": str, "image_size": int,
    "overrides": dict, "config": dict, "protocol": str, "n_train": int, "n_test": int, "metrics": dict, "cost": dict,
    "fingerprint": dict, "environment": dict, "map_size": list, "verdict": dict,
}  # fmt: skip
COST = {
    "fit_s": float, "features_s": float, "predict_ms_per_image": float, "backbone_ms_per_image": float,
    "peak_rss_mb": float, "peak_gpu_mb": type(None), "parameters": int, "model_bytes": int,
    "timed_images": int,
}  # fmt: skip
SETTINGS = {"epochs": "2", "widths": "16,16,8,8"}


@pytest.fixture(scope="module", autouse=True)
def hurried():
    """Times are measured once: what they are is tested elsewhere; and networks are loaded once."""
    with mock.patch.object(cost, "ROUNDS", 1), shared_networks():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with two categories."""
    folder = tmp_path_factory.mktemp("data") / "things"
    for seed, name in enumerate(("alpha", "beta")):
        write_category(folder / name, seed)
    return folder


def experiment(dataset: Path, category: str = "alpha", **changes) -> Experiment:
    facts = dict(method="hfr", profile="smoke", backbone=LITE0, image_size=64, device="cpu", settings=SETTINGS)
    return Experiment(dataset=str(dataset), category=category, **{**facts, **changes})


def quiet(one: Experiment, out: Path) -> dict:
    return run(one, out, progress=False)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("runs") / "deep" / "alpha"
    return quiet(experiment(data), out), out


@pytest.fixture(scope="module")
def both(data, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("runs") / "both"
    return quiet(experiment(data, "all"), out), out


@pytest.fixture(scope="module")
def shared(data, tmp_path_factory) -> tuple[dict, Path]:
    """One model for both categories."""
    out = tmp_path_factory.mktemp("runs") / "shared"
    return quiet(experiment(data, "all", joint=True), out), out


@pytest.fixture
def never(monkeypatch) -> None:
    """Fail if anything is fitted."""
    monkeypatch.setattr(methods.Detector, "fit", None)
    monkeypatch.setattr(methods.FeatureDetector, "fit", None)


def said(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def recomputed(maps: Path, category: str | None = None) -> dict[str, float]:
    """Every metric, of one category or of all, from maps.npz alone: scikit-learn's where it has them."""
    with np.load(maps) as kept:
        mine = slice(None) if category is None else kept["category"] == category
        scores, labels = kept["score"][mine], kept["label"][mine]
        pixels, truth = kept["anomaly_map"][mine].ravel(), kept["mask"][mine].ravel()
        aupro = metrics.aupro(kept["anomaly_map"][mine], kept["mask"][mine])

    def three(values: np.ndarray, positive: np.ndarray) -> list[float]:
        precision, recall, _ = precision_recall_curve(positive, values)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return [roc_auc_score(positive, values), average_precision_score(positive, values), f1.max()]

    return dict(zip(METRICS, [*three(scores, labels), *three(pixels, truth), aupro], strict=True))


# --- what is left behind -------------------------------------------------------------------------------------------


def test_the_result_has_exactly_the_contract_s_fields(done, data) -> None:
    result, out = done
    assert json.loads((out / "result.json").read_text()) == result
    assert {key: type(value) for key, value in result.items()} == KEYS
    assert tuple(result["metrics"]) == METRICS
    assert all(type(value) is float and 0 <= value <= 1 for value in result["metrics"].values())
    assert {key: type(value) for key, value in result["cost"].items()} == COST
    assert set(result["fingerprint"]) == {"data_sha256", "weights_sha256", "code_version"}
    assert (result["method"], result["dataset"], result["category"]) == ("hfr", "things", "alpha")
    assert (result["n_train"], result["n_test"], result["image_size"], result["seed"]) == (6, 6, 64, 0)
    assert (result["protocol"], result["backbone"], result["overrides"]) == ("inspection", LITE0, SETTINGS)
    assert (result["config"]["epochs"], result["config"]["widths"]) == (2, [16, 16, 8, 8])
    assert str(data) not in json.dumps(result)


def test_a_run_leaves_result_maps_and_model_and_nothing_else(done) -> None:
    assert inside(done[1]) == ["maps.npz", "model", "model/model.json", "model/model.safetensors", "result.json"]


def test_every_metric_can_be_recomputed_from_the_maps(done) -> None:
    result, out = done
    assert recomputed(out / "maps.npz") == pytest.approx(result["metrics"], abs=1e-9)


def test_the_maps_are_the_model_s(done, data) -> None:
    result, out = done
    test = datasets.load(str(data), "alpha", image_size=64).test
    with np.load(out / "maps.npz") as kept:
        assert {key: kept[key].dtype.kind for key in kept.files} == {
            "anomaly_map": "f", "mask": "b", "label": "b", "score": "f", "path": "U",
        }  # fmt: skip
        assert (
            kept["anomaly_map"].shape == kept["mask"].shape == (6, 64, 64) and kept["anomaly_map"].dtype == np.float32
        )
        assert kept["path"].tolist() == test.paths and kept["label"].tolist() == test.labels.tolist()
        assert np.array_equal(kept["mask"], test.masks())
        model = methods.load(out / "model", "cpu")
        maps, scores = model.predict(test, progress=False)
        assert np.array_equal(maps, kept["anomaly_map"]) and np.array_equal(scores, kept["score"])
    assert result["cost"]["model_bytes"] == sum(file.stat().st_size for file in (out / "model").iterdir())
    assert result["cost"]["parameters"] == sum(p.numel() for p in model.parameters())


# --- again ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(done, data, tmp_path) -> None:
    torch.manual_seed(99)
    again = quiet(experiment(data), tmp_path / "again")
    assert again["metrics"] == done[0]["metrics"] and again["fingerprint"] == done[0]["fingerprint"]
    assert quiet(experiment(data, seed=1), tmp_path / "other")["metrics"] != done[0]["metrics"]


def test_a_finished_run_is_not_computed_again(done, both, shared, data, never) -> None:
    for (result, out), category, joint in ((done, "alpha", True), (both, "all", False), (shared, "all", True)):
        files = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
        assert quiet(experiment(data, category, joint=joint), out) == result
        assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("changes", "what"),
    [(dict(seed=1), "seed"), (dict(category="beta"), "category"), (dict(profile="cpu"), "profile"),
     (dict(settings={**SETTINGS, "epochs": "3"}), "overrides"), (dict(image_size=96), "image_size"),
     (dict(method="knn", settings={}), "method"), (dict(category="alpha,beta"), "category")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_folder_that_holds_another_run_is_left_alone(done, data, never, changes: dict, what: str) -> None:
    before = (done[1] / "result.json").read_bytes(), inside(done[1])
    other = dataclasses.replace(experiment(data), **changes)
    found = said(lambda: quiet(other, done[1]))
    assert found == f"{done[1]} holds another run (its {what} differs): choose another --out, or remove that folder"
    assert ((done[1] / "result.json").read_bytes(), inside(done[1])) == before


def test_changed_data_are_another_run(done, data, never, tmp_path) -> None:
    copy = shutil.copytree(data, tmp_path / "things")
    shutil.copy(copy / "alpha/test/good/000.png", copy / "alpha/train/good/000.png")
    with pytest.warns(datasets.DataWarning, match="also train images"):
        assert "(its fingerprint differs)" in said(lambda: quiet(experiment(copy), done[1]))


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_result_is_not_overwritten(data, tmp_path, never, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert "holds another run" in said(lambda: quiet(experiment(data), tmp_path))
    assert (tmp_path / "result.json").read_text() == content


SCRIPT = """
import os, signal, sys
from uad_core import cli, training
training.CHECKPOINT_SECONDS = -1.0
save = training._save
def killed(state, history, *rest):
    save(state, history, *rest)
    if len(history) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
training._save = killed
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.slow
@pytest.mark.parametrize("which", [["--category", "beta"], ["--category", "all", "--joint"]], ids=["one", "joint"])
def test_a_killed_command_repeated_gives_the_metrics_of_the_undisturbed_one(
    data, tmp_path, monkeypatch, which: list[str]
) -> None:
    def command(out: Path) -> list[str]:
        sets = ["--set", "epochs=5", "--set", "widths=16,16,8,8"]
        where = ["--dataset", str(data), *which, "--out", str(out)]
        return ["run", "hfr", *where, "--profile", "smoke", "--backbone", LITE0, "--image-size", "64", *sets]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command(tmp_path / "killed")], env=environment, capture_output=True
    )
    assert killed.returncode == -9, killed.stderr
    assert inside(tmp_path / "killed") == ["checkpoint.pt"]
    epochs, epoch = [], training._epoch
    monkeypatch.setattr(training, "_epoch", lambda *arguments: epochs.append(1) or epoch(*arguments))
    for name, count in (("killed", 2), ("whole", 5)):
        epochs.clear()
        assert uad(*command(tmp_path / name)).status == 0
        assert len(epochs) == count and "checkpoint.pt" not in inside(tmp_path / name)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]
    tensors = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert tensors[0] == tensors[1]


# --- several categories --------------------------------------------------------------------------------------------


def test_several_categories_are_kept_one_by_one_and_averaged(both, done) -> None:
    result, out = both
    assert {key: type(value) for key, value in result.items()} == {**KEYS, "per_category": dict}
    assert list(result["per_category"]) == ["alpha", "beta"] and result["category"] == "all"
    assert result["per_category"]["alpha"] == done[0]["metrics"]
    for name in METRICS:
        values = [part[name] for part in result["per_category"].values()]
        assert result["metrics"][name] == pytest.approx(sum(values) / 2, abs=1e-12)
    assert (result["n_train"], result["n_test"]) == (12, 12)
    parts = [json.loads((out / name / "result.json").read_text()) for name in ("alpha", "beta")]
    for key in ("fit_s", "features_s"):
        assert result["cost"][key] == pytest.approx(sum(part["cost"][key] for part in parts))
    assert 0 < result["cost"]["features_s"] < result["cost"]["fit_s"]
    assert set(result["cost"]) == set(COST)
    assert sorted(p.name for p in out.iterdir()) == ["alpha", "beta", "maps.npz", "result.json"]


def test_joined_maps_say_whose_each_row_is(both) -> None:
    result, out = both
    with np.load(out / "maps.npz") as kept:
        assert kept["category"].tolist() == ["alpha"] * 6 + ["beta"] * 6
        for name, part in result["per_category"].items():
            mine = kept["category"] == name
            assert roc_auc_score(kept["label"][mine], kept["score"][mine]) == pytest.approx(
                part["image_auroc"], abs=1e-9
            )
            found = metrics.aupro(kept["anomaly_map"][mine], kept["mask"][mine])
            assert found == pytest.approx(part["aupro"], abs=1e-9)


def test_what_was_finished_before_an_interruption_is_not_repeated(data, tmp_path, monkeypatch) -> None:
    fitted, fit = [], module._fit

    def interrupted(detector, images, *options):
        fitted.append(images.category)
        if images.category == "beta" and len(fitted) == 2:
            raise KeyboardInterrupt
        return fit(detector, images, *options)

    monkeypatch.setattr(module, "_fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(experiment(data, "alpha,beta"), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["alpha"]
    result = quiet(experiment(data, "alpha,beta"), tmp_path / "run")
    assert fitted == ["alpha", "beta", "beta"] and list(result["per_category"]) == ["alpha", "beta"]


# --- one model for several categories -------------------------------------------------------------------------------


def test_a_joint_result_has_the_fields_of_one_run_and_those_of_its_categories(shared, both) -> None:
    (result, out), (apart, _) = shared, both
    assert json.loads((out / "result.json").read_text()) == result
    assert {key: type(value) for key, value in result.items()} == {**KEYS, "per_category": dict, "joint": bool}
    assert (result["joint"], result["dataset"], result["category"]) == (True, "things", "all")
    assert (result["n_train"], result["n_test"]) == (12, 12)
    assert {key: type(value) for key, value in result["cost"].items()} == COST
    assert result["cost"]["parameters"] == apart["cost"]["parameters"]
    assert inside(out) == ["maps.npz", "model", "model/model.json", "model/model.safetensors", "result.json"]


def test_a_joint_model_is_judged_category_by_category(shared, data) -> None:
    result, out = shared
    assert list(result["per_category"]) == ["alpha", "beta"]
    for name, part in result["per_category"].items():
        assert recomputed(out / "maps.npz", name) == pytest.approx(part, abs=1e-9)
    for name in METRICS:
        assert result["metrics"][name] == pytest.approx(np.mean([p[name] for p in result["per_category"].values()]))
    model = methods.load(out / "model", "cpu")
    with np.load(out / "maps.npz") as kept:
        assert kept["category"].tolist() == ["alpha"] * 6 + ["beta"] * 6
        for name in ("alpha", "beta"):
            test, mine = datasets.load(str(data), name, image_size=64).test, kept["category"] == name
            maps, scores = model.predict(test, progress=False)
            assert np.array_equal(maps, kept["anomaly_map"][mine]) and np.array_equal(scores, kept["score"][mine])
            assert kept["path"][mine].tolist() == test.paths and np.array_equal(kept["mask"][mine], test.masks())


def cut(folder: Path, **counts: int) -> Path:
    """Ten normal images in order, cut into categories; all are judged on the same images."""
    images, start = weave(10), 0
    for name, count in counts.items():
        write_category(folder / name, train=1)
        write(folder / name / "train/good", images[start : start + count])
        start += count
    return folder


@pytest.mark.parametrize("method", ["hfr", "pixel_ae", "knn"])
def test_a_joint_model_cannot_know_which_category_an_image_is_of(tmp_path, method: str) -> None:
    settings = {"hfr": SETTINGS, "pixel_ae": {"epochs": "2", "width": "4"}, "knn": {"bank": "50"}}[method]
    weights = []
    for k, counts in enumerate((dict(apple=3, pear=7), dict(bolt=6, nut=2, screw=2))):
        out = tmp_path / f"out{k}"
        one = experiment(cut(tmp_path / f"data{k}", **counts), "all", method=method, settings=settings, joint=True)
        assert list(quiet(one, out)["per_category"]) == list(counts)
        weights.append(methods.load(out / "model", "cpu").own_tensors())
    assert weights[0].keys() == weights[1].keys()
    assert torch.isnan(weights[0].pop("threshold")) and torch.isnan(weights[1].pop("threshold"))  # one is held out
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_joint_and_separate_runs_do_not_share_a_folder(shared, both, data, never) -> None:
    assert "(its joint differs)" in said(lambda: quiet(experiment(data, "all"), shared[1]))
    assert "(its joint differs)" in said(lambda: quiet(experiment(data, "all", joint=True), both[1]))
    assert "(its category differs)" in said(lambda: quiet(experiment(data, "alpha,beta", joint=True), shared[1]))


def test_a_method_may_share_its_model_by_itself(data, tmp_path, monkeypatch) -> None:
    one = experiment(data, "all", method="knn", settings={"bank": "50"})
    monkeypatch.setattr(methods.method_class("knn"), "joint", True)
    assert quiet(one, tmp_path / "own")["joint"]
    assert "joint" not in quiet(dataclasses.replace(one, joint=False), tmp_path / "apart")
    assert "joint" not in quiet(dataclasses.replace(one, category="alpha"), tmp_path / "single")


def test_every_checkpoint_of_a_finished_run_is_removed(data, tmp_path, monkeypatch) -> None:
    kind = methods.method_class("hfr")
    fit = kind.fit

    def by_levels(self, images, *, checkpoint, progress):
        checkpoint.with_name("checkpoint-1.pt").touch()
        return fit(self, images, checkpoint=checkpoint, progress=progress)

    monkeypatch.setattr(kind, "fit", by_levels)
    quiet(experiment(data, "all", joint=True), tmp_path / "out")
    assert not [name for name in inside(tmp_path / "out") if "checkpoint" in name]


def test_one_class_is_never_joint(tmp_path, monkeypatch) -> None:
    tree = write_classes(tmp_path / "classes")
    one = experiment(tree, "all", method="knn", settings={"bank": "50"}, joint=True)
    found = said(lambda: quiet(one, tmp_path / "out"))
    expected = f"--joint: in {tree} only one class at a time is normal: leave --joint out, or name data with defects"
    assert found == expected and not (tmp_path / "out").exists()
    monkeypatch.setattr(methods.method_class("knn"), "joint", True)
    assert "joint" not in quiet(dataclasses.replace(one, joint=None), tmp_path / "out")


# --- several data sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
def test_categories_of_several_data_sets_keep_their_names(data, tmp_path, joint: bool) -> None:
    write_category(tmp_path / "others/alpha", seed=5)
    one = experiment(f"{data},{tmp_path / 'others'}", "all", method="knn", settings={"bank": "50"}, joint=joint)
    result = quiet(one, tmp_path / "out")
    names = ["things/alpha", "things/beta", "others/alpha"]
    assert list(result["per_category"]) == names and result["dataset"] == "things,others"
    assert str(tmp_path) not in json.dumps(result) and str(data) not in json.dumps(result)
    with np.load(tmp_path / "out/maps.npz") as kept:
        assert kept["category"].tolist() == np.repeat(names, 6).tolist()
    for name in names:
        found = recomputed(tmp_path / "out/maps.npz", name)
        assert found == pytest.approx(result["per_category"][name], abs=1e-9)
        assert (tmp_path / "out" / name / "model").is_dir() != joint
    ledger.collect(tmp_path / "out", tmp_path / "ledger")
    rows = ledger.read(tmp_path / "ledger")
    found = dict(zip(rows["dataset"] + "/" + rows["category"], rows["image_auroc"], strict=True))
    assert found == {name: result["per_category"][name]["image_auroc"] for name in names}


def test_one_category_of_several_data_sets_is_a_run_of_its_own(data, done, tmp_path) -> None:
    write_category(tmp_path / "others/gamma")
    sources = f"{data},{tmp_path / 'others'}"
    assert quiet(experiment(sources, "things/alpha"), done[1]) == done[0]


def test_data_sets_of_different_protocols_are_run_apart(data, tmp_path) -> None:
    sources = f"{data},{write_classes(tmp_path / 'classes')}"
    found = said(lambda: quiet(experiment(sources, "all"), tmp_path / "out"))
    assert found.endswith("things and classes are judged by different protocols: run them apart")


# --- one class -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "seen"), [("knn", 1), ("pixel_ae", None)])
def test_one_class_is_normal_and_the_others_are_not(tmp_path, monkeypatch, method: str, seen: int | None) -> None:
    tree = write_classes(tmp_path / "classes")
    computed, keep = [], base.keep
    monkeypatch.setattr(base, "keep", lambda *a: computed.append(a[4]) or keep(*a))
    settings = {"bank": "50"} if method == "knn" else {"epochs": "1", "width": "4"}
    one = Experiment(
        method, str(tree), "all", profile="smoke", backbone=LITE0, image_size=64, device="cpu", settings=settings
    )
    result = quiet(one, tmp_path / "out")
    assert (result["protocol"], result["dataset"], list(result["per_category"])) == (
        "one_class",
        "classes",
        ["dark", "fine"],
    )
    for part in (result["metrics"], *result["per_category"].values()):
        assert all((part[name] is None) == (name.startswith("pixel") or name == "aupro") for name in METRICS)
    assert (result["n_train"], result["n_test"]) == (10, 12)
    # Both classes are judged on the same images: their features are computed once, and removed at the end.
    assert len(set(computed) - {None}) == (seen or 0) and inside(tmp_path / "out").count("features") == 0
    with np.load(tmp_path / "out/maps.npz") as kept:
        assert "mask" not in kept.files and kept["anomaly_map"].shape[0] == 12
        dark = kept["category"] == "dark"
        assert kept["label"][dark].tolist() == [False] * 3 + [True] * 3
        assert kept["label"][~dark].tolist() == [True] * 3 + [False] * 3
        found = roc_auc_score(kept["label"][dark], kept["score"][dark])
        assert found == pytest.approx(result["per_category"]["dark"]["image_auroc"], abs=1e-9)


# --- what is found before the fit ----------------------------------------------------------------------------------


def test_maps_may_be_coarser_than_masks(data, tmp_path) -> None:
    one = experiment(data, method="knn", settings={"bank": "50", "map_stride": "2"})
    result = quiet(one, tmp_path / "out")
    assert result["map_size"] == [32, 32] and recomputed(tmp_path / "out/maps.npz") == pytest.approx(result["metrics"])
    with np.load(tmp_path / "out/maps.npz") as kept:
        assert kept["mask"].shape == kept["anomaly_map"].shape == (6, 32, 32)
        test = datasets.load(str(data), "alpha", image_size=64).test
        assert np.array_equal(kept["mask"], test.masks((32, 32))) and kept["mask"].any()


def shrink_masks(folder: Path, which: list[int], size: int = 512) -> None:
    """Make images and masks large, and the masks of some of them two pixels between those that are looked at."""
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            large = image.resize((size, size))
        if path.name.endswith("_mask.png") and int(path.name[:3]) in which:
            large = Image.new("L", (size, size))
            large.paste(255, (0, 0, 2, 2))
        large.save(path)


def test_masks_that_vanish_are_counted_before_the_fit(tmp_path, monkeypatch) -> None:
    write_category(tmp_path / "tiny")
    shrink_masks(tmp_path / "tiny", [0])
    order, fit = [], module._fit
    monkeypatch.setattr(module, "_fit", lambda *a: order.append("fit") or fit(*a))
    monkeypatch.setattr(module.warnings, "warn", lambda message, *a, **k: order.append(str(message)))
    result = quiet(experiment(tmp_path / "tiny", "all", method="knn", settings={"bank": "50"}), tmp_path / "out")
    assert order[0].startswith("tiny: 1 of 3 masks vanish at 64x64 pixels: pixel metrics are those of the others")
    assert order[1] == "fit" and result["vanished_masks"] == 1 and result["metrics"]["pixel_auroc"] is not None


def test_without_any_mask_left_pixel_metrics_are_null(tmp_path) -> None:
    write_category(tmp_path / "tiny")
    shrink_masks(tmp_path / "tiny", [0, 1, 2])
    with pytest.warns(datasets.DataWarning, match="3 of 3 masks vanish"):
        result = quiet(experiment(tmp_path / "tiny", "all", method="knn", settings={"bank": "50"}), tmp_path / "out")
    assert [name for name, value in result["metrics"].items() if value is None] == list(METRICS[3:])


@pytest.mark.parametrize("tests", ["none", "good"])
def test_good_images_alone_make_a_detector_with_a_threshold(tmp_path, tests: str) -> None:
    folder = write_category(tmp_path / "mine", train=20)
    shutil.rmtree(folder / "ground_truth")
    shutil.rmtree(folder / "test/patch" if tests == "good" else folder / "test")
    one = experiment(folder, "all", method="knn", settings={"bank": "200"})
    said = "no normal and no defective test" if tests == "none" else "no defect"
    with pytest.warns(datasets.DataWarning, match=said):
        result = quiet(one, tmp_path / "out")
    assert set(result["metrics"].values()) == {None} and result["n_test"] == (3 if tests == "good" else 0)
    verdict = result["verdict"]
    assert verdict["held_out"] == 4 and verdict["threshold"] > 0 and verdict["false_alarm_rate"] == 0.02
    assert verdict["normal_test_images"] == result["n_test"] and verdict["false_alarms"] <= result["n_test"]
    assert methods.load(tmp_path / "out/model", "cpu").threshold.item() == pytest.approx(verdict["threshold"])
    ledger.collect(tmp_path / "out", tmp_path / "ledger")
    assert ledger.read(tmp_path / "ledger")["image_auroc"].isna().all()


def test_oblong_images_keep_their_shape(data, tmp_path) -> None:
    shutil.copytree(data / "alpha", tmp_path / "wide")
    for path in (tmp_path / "wide").rglob("*.png"):
        with Image.open(path) as image:
            image.resize((192, 128)).save(path)
    for size, expected in ((("64x96"), (64, 96)), ("auto", (96, 160))):
        out = tmp_path / size
        where = ["--dataset", tmp_path / "wide", "--profile", "smoke", "--backbone", LITE0, "--set", "bank=50"]
        assert uad("run", "knn", *where, "--image-size", size, "--out", out, "--device", "cpu").status == 0
        result = json.loads((out / "result.json").read_text())
        assert tuple(result["image_size"]) == tuple(result["map_size"]) == expected
        with np.load(out / "maps.npz") as kept:
            assert kept["mask"].shape[1:] == kept["anomaly_map"].shape[1:] == expected


def test_equal_data_have_one_fingerprint_in_joint_and_separate_runs(shared, both, done) -> None:
    joint, apart, alone = (result["fingerprint"] for result in (shared[0], both[0], done[0]))
    assert joint["data"] == apart["data"] and joint["data_sha256"] == apart["data_sha256"]
    assert joint["data"]["alpha"] == alone["data_sha256"] != joint["data_sha256"]


def test_a_checkpoint_of_other_code_is_not_taken(monkeypatch) -> None:
    model = methods.create("hfr", profile="smoke", backbone=LITE0, device="cpu")
    data = model.described(torch.rand(2, 3, 64, 64), progress=False)
    before = model.run_key(data)
    assert model.run_key(data) == before
    monkeypatch.setattr(base, "code_version", lambda module: "0.1.0+other")
    assert model.run_key(data) != before


def test_other_data_that_a_method_takes_are_in_the_fingerprint(data, tmp_path, monkeypatch) -> None:
    kind = methods.method_class("knn")
    monkeypatch.setattr(kind, "takes", ("dtd",))
    one = experiment(data, method="knn", settings={"bank": "50"}, root=tmp_path / "root")
    assert "others" not in quiet(one, tmp_path / "without")["fingerprint"]
    write(tmp_path / "root/dtd/images/dotted", weave(2))
    seen, learn = [], kind.learn
    monkeypatch.setattr(kind, "learn", lambda self, *a, **k: seen.append(self.others["dtd"]) or learn(self, *a, **k))
    found = quiet(one, tmp_path / "with")["fingerprint"]["others"]
    assert len(seen[0]) == 2 and seen[0].image_size == (64, 64) and found == {"dtd": seen[0].sha256}


def test_a_folder_without_masks_has_no_pixel_metrics(tmp_path) -> None:
    write_category(tmp_path / "bare", masks=False)
    one = dataclasses.replace(experiment(tmp_path / "bare", "all"), method="knn", settings={"bank": "50"})
    result = quiet(one, tmp_path / "out")
    assert result["category"] == "bare" and result["metrics"]["image_auroc"] is not None
    assert [result["metrics"][name] for name in METRICS[3:]] == [None] * 4
