"""The command line: what it prints, and that wrong use and bad input end in one line and leave nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import LITE0, inside, refused, uad, weave, write, write_category, write_classes

from uad_core import cost, datasets, experiment, methods, training

FAST = ["--profile", "smoke", "--backbone", LITE0, "--image-size", 64, "--device", "cpu"]
HFR = ["hfr", *FAST, "--set", "epochs=1", "--set", "widths=16,16,8,8"]
KNN = ["knn", *FAST, "--set", "bank=50"]


@pytest.fixture(autouse=True)
def hurried(monkeypatch) -> None:
    """Times are measured once: what they are is tested elsewhere."""
    monkeypatch.setattr(cost, "ROUNDS", 1)


@pytest.fixture
def things(tmp_path) -> Path:
    """A folder with one category, alpha, which the test may damage."""
    write_category(tmp_path / "things/alpha", train=16)
    return tmp_path / "things"


def run(dataset: Path | str, out: Path, *more: object, method: list = KNN, category: str = "alpha") -> list:
    return ["run", *method, "--dataset", dataset, "--category", category, "--out", out, *more]


# --- what it prints ------------------------------------------------------------------------------------------------


def test_the_console_script_is_this_program() -> None:
    (script,) = entry_points(group="console_scripts", name="uad")
    assert script.value == "uad_core.cli:main"


def test_help_is_instant_because_nothing_heavy_is_imported() -> None:
    code = "import sys, uad_core.cli; sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'numpy', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_command_has_help() -> None:
    for command in ([], ["list"], ["data"], ["run"], ["predict"], ["export"], ["table"], ["book"]):
        ran = uad(*command, "--help")
        assert ran.status == 0 and ran.err == "" and " ".join(["uad", *command, "[OPTIONS]"]) in ran.out
    assert all(option in uad("run", "--help").out for option in ("--set", "--json", "--seed", "--joint", "--no-joint"))


def test_a_run_prints_its_metrics_in_percent(things, tmp_path) -> None:
    ran = uad(*run(things, tmp_path / "out"))
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert ran.status == 0 and ran.err == ""
    names, row, cost, promised, *seen = ran.out.splitlines()
    assert promised.startswith(("Threshold", "No verdict"))
    assert names.split() == list(result["metrics"])
    assert row.split() == ["alpha", *(f"{100 * value:.2f}" for value in result["metrics"].values())]
    assert f"kept in {tmp_path / 'out'}" in cost


def test_good_parts_alone_are_enough_and_what_is_missing_is_said(tmp_path) -> None:
    write(tmp_path / "tree/mine/train/good", weave(20))
    ran = uad(*run(tmp_path / "tree", tmp_path / "out", category="mine"))
    cost, said = ran.out.splitlines()
    assert ran.status == 0 and cost.startswith("fit ") and f"kept in {tmp_path / 'out'}" in cost
    assert said.startswith("No image_auroc, image_ap, ") and "they take normal and defective test images" in said
    assert "; promised instead: Threshold" in said and "from 4 held-out normal images: 2.0% false alarms" in said
    assert len(ran.err.splitlines()) == 1 and "no normal and no defective test images" in ran.err


def test_json_is_the_result_and_nothing_else(things, tmp_path) -> None:
    ran = uad(*run(things, tmp_path / "out", "--json"))
    assert json.loads(ran.out) == json.loads((tmp_path / "out/result.json").read_text()) and ran.err == ""


def test_several_categories_are_printed_with_their_mean(tmp_path) -> None:
    ran = uad(*run(write_classes(tmp_path / "tree"), tmp_path / "out", category="all"))
    assert ran.status == 0
    rows = [line.split() for line in ran.out.splitlines()]
    assert [row[0] for row in rows[1:4]] == ["dark", "fine", "mean"] and rows[3][-4:] == ["-"] * 4
    values = [float(row[1]) for row in rows[1:4]]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=0.011)


def test_one_model_for_several_categories_is_fitted_printed_and_used(things, tmp_path) -> None:
    write_category(things / "beta", seed=1, train=16)
    out = tmp_path / "out"
    ran = uad(*run(things, out, "--joint", category="alpha,beta"))
    assert ran.status == 0 and ran.err == ""
    assert [line.split()[0] for line in ran.out.splitlines()[1:4]] == ["alpha", "beta", "mean"]
    ran = uad("predict", out, things / "beta/test/patch", "--out", tmp_path / "new")
    assert ran.status in (0, 1) and len(ran.out.splitlines()) == 3
    with np.load(tmp_path / "new/maps.npz") as new, np.load(out / "maps.npz") as kept:
        mine = (kept["category"] == "beta") & kept["label"]
        assert new["score"] == pytest.approx(kept["score"][mine], rel=1e-4)


def test_a_warning_is_one_line_on_stderr(things, tmp_path) -> None:
    shutil.copy(things / "alpha/test/good/000.png", things / "alpha/train/good/000.png")
    ran = uad(*run(things, tmp_path / "out"))
    assert ran.status == 0 and ran.err.startswith("warning: things/alpha: 1 test images are also train images: ")
    assert len(ran.err.splitlines()) == 1


# --- wrong use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["runn"], "No such command 'runn'"),
        (["run"], "Missing argument 'method'"),
        (["run", "hfr"], "Missing option '--out'"),
        (["run", "hfr", "--out"], "Option '--out' requires an argument"),
        (["run", "hfr", "--out", "x", "--sed", "1"], "No such option"),
        (["run", "hfr", "--out", "x", "--seed", "one"], "Invalid value for '--seed'"),
        (["run", "hfr", "--out", "x", "--seed", "-1"], "Invalid value for '--seed'"),
        (
            ["run", "hfr", "--out", "x", "--image-size", "16"],
            "--image-size '16': give a side from 32 to 4096 pixels, HEIGHTxWIDTH",
        ),
        (["run", "hfr", "--out", "x", "--image-size", "64x"], "--image-size '64x': give a side from 32 to 4096"),
        (["run", "hfr", "--out", "x", "--image-size", "1x2x3"], "--image-size '1x2x3': give a side from 32 to 4096"),
        (["run", "hfr", "--out", "x", "--set", "epochs"], "--set 'epochs' is not of the form key=value"),
        (["run", "hfr", "--out", "x", "--set", "=3"], "--set '=3' is not of the form key=value"),
        (["predict", "x"], "Missing argument 'images"),
        (["table"], "Missing argument 'name'"),
        (["data"], "Missing argument 'name'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(monkeypatch, tmp_path, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert message.lower() in refused(*arguments).lower()
    assert inside(tmp_path) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "epoch=3"], "no setting 'epoch' in HFRConfig: did you mean epochs?"),
        (["--set", "epochs=three"], "setting epochs='three' is not of type int: write for instance epochs=20"),
        (["--set", "epochs=0"], "epochs cannot be '0': give a number from 1 up"),
        (["--set", "mode=l1"], "mode cannot be 'l1': choose among normal, mse, cos, mse+cos"),
        (["--set", "widths=8,8"], "widths (8, 8) do not fit 3 levels: give 4 numbers"),
        (["--set", "strides=4,5,16"], f"{LITE0} has no level of stride 5: choose among [2, 4, 8, 16, 32]"),
        (["--set", "seed=3"], "seed is no setting that --set changes"),
        (["--set", "image_size=3"], "image_size is no setting that --set changes"),
        (["--set", "name=3"], "no setting 'name' in HFRConfig"),
        (["--profile", "gpu"], "hfr has no profile 'gpu': choose among smoke, cpu, colab, paper"),
        (["--backbone", "resnet5"], "no network 'resnet5'"),
        (["--device", "tpu"], "no device 'tpu' here"),
        (["--category", "alpa"], "is called alpa: did you mean alpha? Known: alpha"),
        (["--category", "alpha,../beta"], "is called '../beta': choose among alpha"),
        (["--category", ","], "--category ',' names no category or one twice"),
        (["--dataset", "mvtec"], "no data set or folder is called mvtec: did you mean mvtec_ad?"),
        (["--dataset", "visa", "--category", "candle", "--root", "."], "visa/candle is not in .: run `uad data visa`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_names_and_values_are_answered_and_leave_nothing(things, tmp_path, monkeypatch, more, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(*run(things, tmp_path / "out", *more, method=HFR))
    assert not (tmp_path / "out").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["things"]


def test_unknown_methods_are_answered(things, tmp_path) -> None:
    found = refused(*run(things, tmp_path / "out", method=["hrf"]))
    assert found == f"error: no method 'hrf': choose among {', '.join(methods.METHODS)}"
    assert not (tmp_path / "out").exists()


def test_an_interruption_says_how_to_go_on(monkeypatch, things, tmp_path) -> None:
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "_run_one", interrupted)
    ran = uad(*run(things, tmp_path / "out"))
    assert (ran.status, ran.err) == (
        130,
        "error: interrupted; a run, repeated with the same command, goes on from its last checkpoint\n",
    )


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch, things, tmp_path) -> None:
    monkeypatch.setattr(experiment, "_run_one", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        uad(*run(things, tmp_path / "out"))


# --- bad data ------------------------------------------------------------------------------------------------------


def emptied(category: Path) -> str:
    shutil.rmtree(category / "train/good")
    (category / "train/good").mkdir()
    return f"{category / 'train'}: no image in train/good: put normal PNG, JPEG, BMP or TIFF images there"


def text_for_image(category: Path) -> str:
    (category / "train/good/001.png").write_text("I am no picture")
    return str(category / "train/good/001.png")


def cut_image(split: str):
    def harm(category: Path) -> str:
        path = category / split / "good/001.png"
        path.write_bytes(path.read_bytes()[:-2000])
        return str(path)

    return harm


def other_mask(category: Path) -> str:
    mask = category / "ground_truth/patch/002_mask.png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
    return str(mask)


def missing_mask(category: Path) -> str:
    (category / "ground_truth/patch/001_mask.png").unlink()
    return f"{category / 'test/patch/001.png'} has no mask: add ground_truth/patch/001_mask.png"


@pytest.mark.parametrize(
    "harm",
    [emptied, text_for_image, cut_image("train"), cut_image("test"), other_mask, missing_mask],
    ids=[
        "empty train",
        "text as image",
        "cut train image",
        "cut test image",
        "mask of another size",
        "missing mask",
    ],
)
def test_bad_data_are_named_and_leave_nothing(things, tmp_path, harm) -> None:
    message = harm(things / "alpha")
    assert message in refused(*run(things, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_second_category_leaves_the_finished_first(things, tmp_path) -> None:
    write_category(things / "beta", seed=1, train=16)
    cut_image("test")(things / "beta")
    assert "001.png" in refused(*run(things, tmp_path / "out", category="all"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["alpha"]


# --- bad disks -----------------------------------------------------------------------------------------------------


def disk(folder: Path, options: str):
    """Mount a small file system in memory on `folder`, or skip the test where that is not allowed."""
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no `mount` here")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    yield disk(tmp_path / "disk", "size=1m")
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.fixture
def readonly_disk(tmp_path):
    yield disk(tmp_path / "disk", "ro,size=1m")
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_read_only_disk_is_refused_before_anything_is_computed(things, readonly_disk, monkeypatch) -> None:
    monkeypatch.setattr(methods.Detector, "fit", None)
    out = readonly_disk / "out"
    expected = f"error: cannot write to {out} (Read-only file system): choose another --out"
    assert refused(*run(things, out)) == expected


def test_an_out_folder_that_cannot_be_written_is_refused(things, tmp_path, monkeypatch) -> None:
    def readonly(self, *arguments, **options):
        raise OSError(30, os.strerror(30), str(self))

    for name in ("mkdir", "touch"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, readonly)
            assert "(Read-only file system): choose another --out" in refused(*run(things, tmp_path / "out"))
    (tmp_path / "file").write_text("mine")
    assert "cannot write to" in refused(*run(things, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_too_small_a_disk_is_refused_before_anything_is_computed(things, small_disk, monkeypatch) -> None:
    monkeypatch.setattr(methods.Detector, "fit", None)
    found = refused(*run(things, small_disk / "out"))
    assert "disk/out has " in found and found.endswith("MB: free space or choose another --out")
    assert inside(small_disk) == []


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (HFR, []),
        (["knn", *FAST, "--set", "bank=500"], []),
        (["knn", *FAST, "--set", "bank=5"], ["model", "model/model.json", "model/model.safetensors"]),
    ],
    ids=["checkpoint", "model", "maps"],
)
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing_half_written(
    things, small_disk, monkeypatch, method: list, left: list[str]
) -> None:
    (small_disk / "filler").write_bytes(bytes(960_000))
    monkeypatch.setattr(experiment, "_require_space", lambda *arguments: None)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    out = small_disk / "out"
    expected = f"error: cannot write to {out} (No space left on device): free space there and repeat the command"
    assert refused(*run(things, out, method=method)) == expected
    assert (inside(out) if out.exists() else []) == left


# --- the other commands --------------------------------------------------------------------------------------------


def test_data_says_what_there_is_to_do(tmp_path) -> None:
    assert refused("data", "mvtec", "--root", tmp_path).startswith(
        "error: no data set is called mvtec: did you mean mvtec_ad?"
    )
    assert "did you mean bottle?" in refused("data", "mvtec_ad", "--category", "botle", "--root", tmp_path)
    assert "--out goes with `uad data procedural` only" in refused("data", "mtd", "--out", tmp_path / "x")
    assert inside(tmp_path) == []
    assert "only a person can download it" in refused("data", "mpdd", "--root", tmp_path)
    ran = uad("data", "procedural")
    assert ran.status == 0 and ran.out.startswith("procedural is drawn when it is used: nothing to download")


def test_data_procedural_is_written_as_files(tmp_path) -> None:
    name = datasets.categories("procedural")[0]
    ran = uad("data", "procedural", "--category", name, "--out", tmp_path / "drawn", "--image-size", 32)
    assert ran.status == 0 and ran.out == f"{tmp_path / 'drawn'}: drawn\n"
    assert datasets.categories(str(tmp_path / "drawn")) == [name]
    assert "nothing" in refused("data", "procedural", "--category", "nothing", "--out", tmp_path / "other")


def test_a_run_becomes_a_row_of_a_table(things, tmp_path) -> None:
    assert uad(*run(things, tmp_path / "runs/one")).status == 0
    options = ["--ledger", tmp_path / "ledger", "--add", tmp_path / "runs"]
    ran = uad("table", "knn", *options)
    assert ran.status == 0 and "things" in ran.out and ran.err == ""
    ran = uad("table", "knn", "--ledger", tmp_path / "ledger", "--format", "csv")
    assert "image_auroc" in ran.out.splitlines()[0] and len(ran.out.strip().splitlines()) == 2


def test_tables_that_cannot_be_made_are_refused(tmp_path) -> None:
    (tmp_path / "ledger").mkdir()
    where = ["--ledger", tmp_path / "ledger"]
    assert "no table format 'pdf': choose one of text" in refused("table", "hfr", "--format", "pdf", *where)
    refused("table", "nothing", *where)
    refused("table", "cost", *where)
    refused("table", "cost", *where, "--add", tmp_path / "nowhere")
    (tmp_path / "ledger/bad.json").write_text("{")
    assert "bad.json" in refused("table", "cost", *where)


def test_predict_refuses_a_folder_without_a_model(tmp_path) -> None:
    found = refused("predict", tmp_path, tmp_path, "--out", tmp_path / "out")
    assert found.startswith(f"error: no saved model in {tmp_path} (model.json is missing)")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("UAD_DATA" not in os.environ, reason="UAD_DATA does not name a folder of real data")
def test_real_data_run_through_the_command(tmp_path) -> None:
    if "bottle" not in {name for info in datasets.catalogue() if info.name == "mvtec_ad" for name in info.present}:
        pytest.skip("mvtec_ad/bottle is not in UAD_DATA")
    ran = uad(
        "run",
        *KNN[:-2],
        "--set",
        "bank=500",
        "--dataset",
        "mvtec_ad",
        "--category",
        "bottle",
        "--out",
        tmp_path / "out",
    )
    assert ran.status == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["n_train"], result["n_test"]) == (209, 83) and result["metrics"]["image_auroc"] > 0.8
