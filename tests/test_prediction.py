"""`uad predict`: a person's own images, each with its overlay and score, in a folder that appears whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import damage, detector, fitted, inside, refused, tensor, uad, weave, write

from uad_core import methods, plots
from uad_core.errors import UserError
from uad_core.prediction import image_files, predict_files


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The --out folder of a run, as far as prediction looks at it."""
    folder = tmp_path_factory.mktemp("run")
    methods.save(fitted(), folder / "model")
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two normal images and two defective ones."""
    write(tmp_path / "photos/good", weave(2, seed=7))
    write(tmp_path / "photos/bad", damage(weave(2, seed=7))[0])
    return tmp_path / "photos"


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Overlays that take no time to draw."""
    sheet = SimpleNamespace(savefig=lambda path: path.touch())
    monkeypatch.setattr(plots, "overlay", lambda *arguments, **options: sheet)


def predicted(model: Path, images: list[Path], out: Path) -> pd.DataFrame:
    predict_files(model, images, out, "cpu", progress=False)
    return pd.read_csv(out / "scores.csv")


def test_every_image_has_an_overlay_a_score_and_a_map(model, photos, tmp_path) -> None:
    out = tmp_path / "deep" / "out"
    ran = uad("predict", model, photos / "good", photos / "bad/001.png", "--out", out, "--device", "cpu")
    assert ran.status == 1 and ran.err == ""
    assert inside(out) == ["000.png", "001-2.png", "001.png", "maps.npz", "scores.csv"]
    files = [photos / "good/000.png", photos / "good/001.png", photos / "bad/001.png"]
    images = tensor(np.stack([np.asarray(Image.open(file)) for file in files]))
    scores, maps = fitted().score(images).numpy(), fitted().anomaly_map(images).numpy()
    table = pd.read_csv(out / "scores.csv")
    assert list(table) == ["image", "score", "verdict"] and table["image"].tolist() == list(map(str, files))
    np.testing.assert_allclose(table["score"], scores, rtol=1e-6)
    assert table["verdict"].tolist() == ["normal", "normal", "anomalous"]
    with np.load(out / "maps.npz") as kept:
        np.testing.assert_allclose(kept["anomaly_map"], maps, rtol=1e-6)
        np.testing.assert_allclose(kept["score"], scores, rtol=1e-6)
        assert kept["path"].tolist() == list(map(str, files))
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines] == ["normal", "normal", "anomalous"]
    assert [line.split()[2] for line in lines] == list(map(str, files))
    assert [float(line.split()[1]) for line in lines] == pytest.approx(scores.tolist(), abs=1e-4)
    for name in ("000.png", "001.png", "001-2.png"):
        with Image.open(out / name) as overlay:
            assert min(overlay.size) > 100


def test_the_verdict_is_the_model_s_threshold(model, photos, tmp_path, undrawn) -> None:
    table = predicted(model, [photos / "good", photos / "bad"], tmp_path / "out")
    expected = np.where(table["score"] > fitted().threshold.item(), "anomalous", "normal")
    assert table["verdict"].tolist() == expected.tolist() == ["normal"] * 2 + ["anomalous"] * 2


def test_all_overlays_share_one_colour_scale(model, photos, tmp_path, monkeypatch) -> None:
    scales, sheet = [], SimpleNamespace(savefig=lambda path: path.touch())

    def watched(image, anomaly_map, **options):
        scales.append((options["vmin"], options["vmax"]))
        return sheet

    monkeypatch.setattr(plots, "overlay", watched)
    predicted(model, [photos / "good", photos / "bad"], tmp_path / "out")
    maps = np.load(tmp_path / "out/maps.npz")["anomaly_map"]
    assert scales == [plots.limits(maps)] * 4


def test_images_of_one_name_do_not_overwrite_each_other(model, tmp_path, undrawn) -> None:
    names = ["a/x.png", "b/x.png", "c/x-2.png", "d/X.png", "e/x.bmp"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(weave(1, i)[0]).save(tmp_path / name)
    table = predicted(model, [tmp_path / name for name in names], tmp_path / "out")
    overlays = sorted(name for name in inside(tmp_path / "out") if name.endswith(".png"))
    assert len(table) == len(overlays) == len({name.lower() for name in overlays}) == 5
    assert table["score"].nunique() == 5


def test_images_of_any_kind_and_size_are_mapped_at_the_model_s_size(model, tmp_path, undrawn) -> None:
    image = Image.fromarray(weave(1, size=90)[0]).resize((120, 50))
    for name, mode in [
        ("grey.png", "L"),
        ("palette.png", "P"),
        ("alpha.png", "RGBA"),
        ("photo.jpg", "RGB"),
        ("scan.TIFF", "RGB"),
    ]:
        image.convert(mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("passed over")
    table = predicted(model, [tmp_path], tmp_path / "out")
    assert [Path(name).name for name in table["image"]] == [
        "alpha.png",
        "grey.png",
        "palette.png",
        "photo.jpg",
        "scan.TIFF",
    ]
    assert np.load(tmp_path / "out/maps.npz")["anomaly_map"].shape == (5, 64, 64)


@pytest.mark.parametrize("name", ["price $5_a$ {b}^_\\%.png", "Ünïcode ☃.png"])
def test_any_name_can_be_drawn(model, tmp_path, name: str) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(weave(1)[0]).save(tmp_path / "in" / name)
    predicted(model, [tmp_path / "in" / name], tmp_path / "out")
    assert inside(tmp_path / "out") == sorted([name, "maps.npz", "scores.csv"])


def test_folders_are_searched_below_and_overlays_keep_them_apart(model, photos, tmp_path, undrawn) -> None:
    table = predicted(model, [photos], tmp_path / "out")
    assert [Path(name).relative_to(photos).as_posix() for name in table["image"]] == [
        "bad/000.png", "bad/001.png", "good/000.png", "good/001.png",
    ]  # fmt: skip
    overlays = ["bad", "bad/000.png", "bad/001.png", "good", "good/000.png", "good/001.png"]
    assert inside(tmp_path / "out") == sorted([*overlays, "maps.npz", "scores.csv"])
    assert len(predicted(model, [photos, photos / "good"], tmp_path / "again")) == 4  # each file once


def test_what_is_hidden_is_left_out_and_kinds_that_are_not_read_are_named(model, photos, tmp_path, undrawn) -> None:
    for name in (".hidden.png", "good/._000.png", ".cache/000.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes((photos / "good/000.png").read_bytes())
    for name in ("good/a.webp", "b.HEIC"):
        (photos / name).write_bytes(b"something that a phone writes")
    found = predict_files(model, [photos], tmp_path / "out", "cpu", progress=False)
    assert len(found.rows) == 4 and found.status == 2
    assert sorted(Path(name).name for name in found.unreadable) == ["a.webp", "b.HEIC"]


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path, monkeypatch) -> None:
    def denied(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder / "locked")))
        return iter(())

    monkeypatch.setattr("uad_core.prediction.os.walk", denied)
    with pytest.raises(UserError, match="locked: Permission denied; make it readable"):
        image_files([tmp_path])


def test_without_a_threshold_there_is_no_verdict(photos, tmp_path, undrawn) -> None:
    unsure = methods.load(methods.save(fitted(), tmp_path / "sure"), "cpu")
    unsure.threshold.fill_(float("nan"))
    methods.save(unsure, tmp_path / "model")
    assert set(predicted(tmp_path / "model", [photos], tmp_path / "out")["verdict"]) == {"no verdict"}


def test_coarse_maps_are_laid_over_whole_images(photos, tmp_path) -> None:
    coarse = detector("pixel_ae", width=4, stages=4, map_stride=4)
    methods.save(coarse, tmp_path / "model")
    assert len(predicted(tmp_path / "model", [photos / "good"], tmp_path / "out")) == 2
    assert np.load(tmp_path / "out/maps.npz")["anomaly_map"].shape == (2, 16, 16)


# --- what other programs read --------------------------------------------------------------------------------------


def test_an_unreadable_image_is_listed_and_the_others_are_judged(model, photos, tmp_path, undrawn) -> None:
    cut, text = photos / "bad/001.png", photos / "good/001.png"
    cut.write_bytes(cut.read_bytes()[:-2000])
    text.write_text("I am no picture")
    ran = uad("predict", model, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert ran.status == 2 and [line.split()[0] for line in ran.out.splitlines()] == ["anomalous", "normal"]
    assert [line.split()[:2] for line in ran.err.splitlines()] == [["unreadable:", str(f)] for f in (cut, text)]
    table = pd.read_csv(tmp_path / "out/scores.csv")
    assert table["image"].tolist() == [str(photos / name) for name in ("bad/000.png", "good/000.png")] + [
        str(cut), str(text)]  # fmt: skip
    assert table["verdict"].tolist() == ["anomalous", "normal", "unreadable", "unreadable"]
    assert table["score"].isna().tolist() == [False, False, True, True]
    assert len(np.load(tmp_path / "out/maps.npz")["score"]) == 2


def test_json_lines_say_all_that_the_table_says(model, photos, tmp_path, undrawn) -> None:
    (photos / "good/Ünï ☃.png").write_text("I am no picture")
    ran = uad("predict", model, photos, "--out", tmp_path / "out", "--device", "cpu", "--json")
    assert ran.out == (tmp_path / "out/scores.jsonl").read_text("utf-8")
    rows, table = [json.loads(line) for line in ran.out.splitlines()], pd.read_csv(tmp_path / "out/scores.csv")
    assert [row["image"] for row in rows] == table["image"].tolist()
    assert [row["verdict"] for row in rows] == table["verdict"].tolist()
    assert [row["score"] for row in rows[:-1]] == pytest.approx(table["score"].tolist()[:-1])
    assert rows[-1]["score"] is None and "Ünï ☃.png is not a PNG" in rows[-1]["error"]
    assert not any(row["error"] for row in rows[:-1])


@pytest.mark.parametrize(("folders", "status"), [(["good"], 0), (["good", "bad"], 1)])
def test_the_exit_status_says_whether_anything_is_anomalous(model, photos, tmp_path, undrawn, folders, status) -> None:
    ran = uad("predict", model, *(photos / name for name in folders), "--out", tmp_path / "out", "--device", "cpu")
    assert ran.status == status


def test_without_a_verdict_the_exit_status_is_0(photos, tmp_path, undrawn) -> None:
    methods.save(detector("pixel_ae", width=4, stages=4), tmp_path / "model")
    assert uad("predict", tmp_path / "model", photos, "--out", tmp_path / "out", "--device", "cpu").status == 0


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_not_touched(model, photos, tmp_path, undrawn) -> None:
    for out in (photos, photos / "good/000.png"):
        before = inside(tmp_path)
        found = refused("predict", model, photos / "good", "--out", out, "--device", "cpu")
        assert found == f"error: {out} exists and is not an empty folder: choose another --out"
        assert inside(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert len(predicted(model, [photos / "good"], tmp_path / "empty")) == 2


def nothing(photos: Path) -> list[Path]:
    return [photos / "good", photos / "good/009.png"]


def empty(photos: Path) -> list[Path]:
    (photos / "empty").mkdir()
    return [photos / "empty"]


def text_only(photos: Path) -> list[Path]:
    (photos / "good/002.png").write_text("I am no picture")
    return [photos / "good/002.png"]


@pytest.mark.parametrize(
    ("images", "message"),
    [(nothing, "no image {}/good/009.png: check the path"),
     (empty, "{}/empty holds no images (.bmp, .jpeg, .jpg, .png, .tif, .tiff): name a folder that does, or files"),
     (text_only, "none of the 1 images can be read; the first: {}/good/002.png is not a PNG, JPEG, BMP or TIFF image")],
)  # fmt: skip
def test_where_there_is_nothing_to_judge_nothing_is_written(model, photos, tmp_path, images, message: str) -> None:
    chosen = images(photos)
    before = inside(tmp_path)
    found = refused("predict", model, *chosen, "--out", tmp_path / "out", "--device", "cpu")
    assert message.format(photos) in found and inside(tmp_path) == before


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(model, photos, tmp_path, monkeypatch) -> None:
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    before = inside(tmp_path)
    found = refused("predict", model, photos / "good", "--out", tmp_path / "out", "--device", "cpu")
    assert found.startswith(f"error: cannot write to {tmp_path / 'out'} (No space left on device): free space there or")
    assert inside(tmp_path) == before


def test_a_model_folder_can_be_named_directly(model, photos, tmp_path, undrawn) -> None:
    assert len(predicted(model / "model", [photos / "good"], tmp_path / "out")) == 2
    with pytest.raises(UserError, match="no saved model in"):
        predict_files(tmp_path / "photos", [photos / "good"], tmp_path / "other", "cpu")
