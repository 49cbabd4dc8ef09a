"""`uad export`: one file that says what PyTorch says, and runs where there is no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LITE0, SIZE, damage, fitted, inside, refused, shared_networks, tensor, uad, weave, write

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from uad_core import export as export_  # noqa: E402
from uad_core import methods  # noqa: E402
from uad_core.errors import UserError  # noqa: E402
from uad_core.export import export, session  # noqa: E402

METHODS = {
    "sgfr": dict(atoms=32, candidates=500),
    "sgfr position": dict(reading="position", images=6, reference=4, image_size=72),  # maps of 18, 9 and 5 places
    "knn": dict(bank=50),
    "hlgfa": dict(steps=2),
    "hlgfa direction": dict(steps=2, mode="cos", image_size=72),  # levels of 18, 9 and 5 places
    "rlr": dict(width=8, layers=1, heads=2, epochs=1, standardise=True),
    "pixel_ae": dict(width=4, stages=4, epochs=1, sigma=1.0),
}


@pytest.fixture(autouse=True)
def networks():
    """One frozen network for all."""
    with shared_networks():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The --out folder of a run, as far as an export looks at it, with the exported file."""
    folder = tmp_path_factory.mktemp("run")
    methods.save(fitted(), folder / "model")
    about = {"dataset": "tiny", "category": "weave", "n_train": 32, "profile": "cpu", "seed": 0}
    (folder / "result.json").write_text(json.dumps(about))
    with shared_networks():
        export(folder)
    return folder


def agrees(file: Path, detector: methods.Detector, images: torch.Tensor) -> None:
    """All outputs are PyTorch's, whatever the number of images."""
    for size in (1, 3):
        batch = images[:size]
        maps, scores = session(file).run(["maps", "scores"], {"images": batch.numpy()})
        wanted, residuals = detector.anomaly_map(batch), detector.residuals(batch)
        for name, found in zip(residuals, session(file).run(list(residuals), {"images": batch.numpy()})):
            np.testing.assert_allclose(found, residuals[name].numpy(), atol=1e-4 * residuals[name].max().item())
        assert maps.shape == tuple(wanted.shape) and scores.shape == (size,)
        np.testing.assert_allclose(maps, wanted.numpy(), atol=1e-4 * wanted.abs().max().item())
        np.testing.assert_allclose(scores, detector.score(batch).numpy(), rtol=1e-4)


def test_hfr_says_the_same_as_one_file(run) -> None:
    assert inside(run) == ["model", "model.onnx", "model/model.json", "model/model.safetensors", "result.json"]
    agrees(run / "model.onnx", fitted(), tensor(damage(weave(3, seed=5))[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_other_methods_say_the_same(name: str, tmp_path) -> None:
    settings = {"image_size": SIZE, **METHODS[name]}
    backbone = {} if name == "pixel_ae" else {"backbone": LITE0}
    model = methods.create(name.split()[0], device="cpu", **backbone, **settings)
    images = tensor(weave(16, size=settings["image_size"]))
    model.fit(images, progress=False).save(tmp_path / "model")
    done = export(tmp_path)
    assert done.map_error < 1e-4 and done.size == (tmp_path / "model.onnx").stat().st_size
    agrees(done.file, model.eval(), tensor(damage(weave(3, seed=5, size=settings["image_size"]))[0]))


def test_metadata_say_how_to_use_the_file(run) -> None:
    texts = session(run / "model.onnx").get_modelmeta().custom_metadata_map
    assert texts["method"] == "hfr" and texts["precision"] == "single" and texts["backbone"] == LITE0
    assert json.loads(texts["threshold"]) == pytest.approx(fitted().threshold.item())
    assert json.loads(texts["image_size"]) == [SIZE, SIZE] and json.loads(texts["false_alarm_rate"]) == 0.02
    names = {"input": "images", "maps": "maps", "scores": "scores", "residuals": ["phi_1", "phi_2", "phi_3"]}
    assert json.loads(texts["names"]) == names
    assert json.loads(texts["fitted_on"])["category"] == "weave"
    assert "BILINEAR" in texts["preprocessing"] and texts["code_version"].startswith("0.")


ALONE = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image, ImageOps
session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
height, width = json.loads(about["image_size"])
images = [ImageOps.exif_transpose(Image.open(file)).convert("RGB") for file in sys.argv[2:]]
images = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images]
images = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255
scores = session.run(["scores"], {"images": images})[0]
assert not {"torch", "uad_core", "timm"} & set(sys.modules)
print(json.dumps(scores.tolist()))
"""


def test_the_file_runs_without_this_package(run, tmp_path) -> None:
    files = write(tmp_path, damage(weave(3, seed=5, size=90))[0])
    command = [sys.executable, "-c", ALONE, run / "model.onnx", *files]
    scores = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    images = export_.images_of(files, (SIZE, SIZE)).images()
    assert scores == pytest.approx(fitted().score(images).tolist(), rel=1e-4)


@pytest.mark.slow
def test_half_and_int8_are_smaller_and_close(run, tmp_path) -> None:
    normal = write(tmp_path / "normal", weave(8, seed=3))
    half = export(run, tmp_path / "half.onnx", "half")
    int8 = export(run, tmp_path / "int8.onnx", "int8", normal)
    single = (run / "model.onnx").stat().st_size
    assert half.size < 0.6 * single and int8.size < 0.5 * single
    assert half.map_error < 0.02 and half.verdict
    # So small a model is moved far by eight bits: its threshold would call good images anomalous.
    threshold = json.loads(session(int8.file).get_modelmeta().custom_metadata_map["threshold"])
    assert int8.score_error > 0.1 and not int8.verdict and threshold is None
    scores = session(int8.file).run(["scores"], {"images": tensor(damage(weave(3, seed=5))[0]).numpy()})[0]
    assert scores.min() > fitted().threshold.item()


@pytest.mark.slow
def test_the_command_says_what_it_wrote(run, tmp_path) -> None:
    out = tmp_path / "part.onnx"
    ran = uad("export", run, "--out", out, "--half")
    assert ran.status == 0 and ran.err == "" and inside(tmp_path) == ["part.onnx"]
    assert ran.out.startswith(f"{out}: {out.stat().st_size / 1e6:.1f} MB, half precision; differs from PyTorch by at")


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_file_that_differs_is_not_left(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export_, "_write", lambda detector, file, *rest: file.write_bytes(b"another model"))
    monkeypatch.setattr(export_, "_describe", lambda *arguments: None)
    for error in (2e-4, float("nan")):
        monkeypatch.setattr(export_, "_compared", lambda *arguments, error=error: (np.full(8, error),) * 2)
        found = refused("export", run, "--out", tmp_path / "new.onnx")
        assert f"maps differ from PyTorch's by {error:.1e} of their largest value, more than 0.0001" in found
        assert inside(tmp_path) == []


def test_a_method_without_a_fixed_graph_says_why(tmp_path) -> None:
    model = methods.create("sgfr", backbone=LITE0, image_size=SIZE, device="cpu", atoms=8, candidates=50,
                           solver="elastic_net")  # fmt: skip
    model.fit(tensor(weave(3)), progress=False).save(tmp_path / "model")
    before = inside(tmp_path)
    assert "sgfr cannot be exported: its elastic net repeats until it is done" in refused("export", tmp_path)
    assert inside(tmp_path) == before


def test_what_is_missing_is_named(run, tmp_path, monkeypatch) -> None:
    assert "add --images FOLDER" in refused("export", run, "--int8")
    assert "exclude each other" in refused("export", run, "--int8", "--half")
    assert "no saved model in" in refused("export", tmp_path)
    assert uad("export", run, "--out", tmp_path / "none/new.onnx").status == 0
    (tmp_path / "file").write_text("no folder")
    assert "choose another --out" in refused("export", run, "--out", tmp_path / "file/new.onnx")
    monkeypatch.setattr(export_, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxruntime: install with `pip install 'uad-core\[export\]'`"):
        export(run)


def test_only_a_method_that_chooses_may_differ_in_single_images() -> None:
    errors = np.array([1e-6] * 7 + [1e-2])
    chooser = methods.create("sgfr", backbone=LITE0, image_size=SIZE, device="cpu")
    export_._require_agreement(chooser, errors)
    with pytest.raises(UserError, match="differ from PyTorch's by 1.0e-02"):
        export_._require_agreement(fitted(), errors)
    with pytest.raises(UserError, match="differ"):
        export_._require_agreement(chooser, 200 * errors)
