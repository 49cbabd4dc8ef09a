from __future__ import annotations

import json
import re

import pytest
from tiny import uad

from uad_core import files, ledger, sources
from uad_core.errors import UserError
from uad_core.methods import METHODS


def result(**changes) -> dict:
    metrics = {"image_auroc": 0.99, "image_ap": 0.98, "image_f1max": 0.97}
    metrics |= {"pixel_auroc": 0.96, "pixel_ap": 0.8, "pixel_f1max": 0.7, "aupro": 0.9}
    return {
        "method": "hfr", "dataset": "mvtec_ad", "category": "bottle", "profile": "cpu", "seed": 0,
        "backbone": "tf_efficientnet_lite2", "image_size": 256, "config": {"epochs": 20}, "overrides": {},
        "n_train": 209, "n_test": 83, "metrics": metrics,
        "cost": {"fit_s": 300.0, "predict_ms_per_image": 50.0, "peak_gpu_mb": None},
        "fingerprint": {"data_sha256": "ab"}, "environment": {"cpu": "Intel(R) Xeon(R) @ 2.20GHz", "threads": 2},
    } | changes


def test_what_is_added_is_read_back(tmp_path):
    path = ledger.add(result(), tmp_path)
    assert path.name == "hfr-mvtec_ad-bottle-cpu-tf_efficientnet_lite2-256-s0.json"
    assert json.loads(path.read_text()) == result()
    frame = ledger.read(tmp_path)
    assert len(frame) == 1
    row = frame.iloc[0]
    assert {name: row[name] for name in ledger.METRICS} == result()["metrics"]
    assert (row["file"], row["fit_s"], row["threads"], row["image_size"]) == (path.name, 300.0, 2, "256")


def test_the_same_run_replaces_its_file_and_another_stands_beside_it(tmp_path):
    first = ledger.add(result(), tmp_path)
    again = ledger.add(result(cost={"fit_s": 1.0}), tmp_path)
    assert first == again and ledger.read(tmp_path)["fit_s"].tolist() == [1.0]
    others = [result(**change) for change in (
        {"seed": 1}, {"category": "cable"}, {"category": "a/b"}, {"category": "a b"}, {"image_size": [256, 320]},
        {"overrides": {"k": 5}}, {"overrides": {"k": 6}},
    )]
    names = {ledger.add(other, tmp_path).name for other in others} | {first.name}
    assert len(names) == len(others) + 1 == len(list(tmp_path.iterdir()))


def test_the_name_ignores_the_order_of_the_settings():
    one, two = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert ledger.file_name(result(overrides=one)) == ledger.file_name(result(overrides=two))
    without = {key: value for key, value in result().items() if key != "overrides"}
    assert ledger.file_name(without) != ledger.file_name(without | {"config": {"epochs": 21}})


def test_runs_of_other_settings_are_told_apart_whether_they_are_named_or_not(tmp_path):
    without = {key: value for key, value in result().items() if key != "overrides"}
    for run in (result(), result(overrides={"k": 5, "a": "x"}), without, without | {"config": {"epochs": 21}}):
        ledger.add(run, tmp_path)
    settings = ledger.read(tmp_path)["settings"]
    assert settings.nunique() == 4 and {"", "a=x k=5"} < set(settings)


def test_a_method_without_backbone(tmp_path):
    assert "-none-" in ledger.add(result(backbone=None), tmp_path).name
    assert ledger.read(tmp_path)["backbone"].tolist() == ["none"]


def test_one_row_for_each_category_of_a_joint_run(tmp_path):
    parts = {"a": {"image_auroc": 0.5}, "b": {"image_auroc": 1.0, "aupro": None}}
    ledger.add(result(category="a,b", per_category=parts, joint=True), tmp_path)
    frame = ledger.read(tmp_path)
    assert dict(zip(frame["category"], frame["image_auroc"], strict=True)) == {"a": 0.5, "b": 1.0}
    assert frame["aupro"].isna().all() and frame["joint"].all() and (frame["n_categories"] == 2).all()


def test_a_run_over_several_data_sets_is_filed_under_each_of_them(tmp_path):
    names = ("procedural/weave", "mvtec_ad/bottle")
    parts = {name: {"image_auroc": i / 2} for i, name in enumerate(names)}
    several = {"dataset": "procedural,mvtec_ad", "category": ",".join(names), "per_category": parts}
    ledger.add(result(**several, joint=True), tmp_path)
    ledger.add(result(), tmp_path)
    rows = ledger.read(tmp_path).set_index(["dataset", "category", "joint"])
    assert rows.loc[("mvtec_ad", "bottle", True), "image_auroc"] == 0.5
    assert rows.loc[("procedural", "weave", True), "members"] == "mvtec_ad/bottle; procedural/weave"
    assert rows.loc[("mvtec_ad", "bottle", False), "members"] == ""


def test_names_of_files_tell_which_categories_shared_a_model():
    parts = {"a": {}, "b": {}}
    several = {"dataset": "one,two", "category": "all", "joint": True}
    runs = [
        result(category="all", per_category=parts),
        result(category="all", per_category=parts, joint=True),
        result(**several, per_category={"one/a": {}, "two/a": {}}),
        result(**several, per_category={"one/a": {}, "two/b": {}}),
    ]
    names = [ledger.file_name(run) for run in runs]
    assert len(set(names)) == 4 and names[1] == names[0].removesuffix(".json") + "-joint.json"
    assert all(re.fullmatch(r"[\w.,+-]+\.json", name) for name in names)
    assert ledger.file_name(runs[2]) == ledger.file_name(runs[2] | {"per_category": {"two/a": {}, "one/a": {}}})


def test_an_empty_ledger_has_all_columns(tmp_path):
    (tmp_path / "README.md").write_text("not a run")
    for folder in (tmp_path, tmp_path / "absent"):
        frame = ledger.read(folder)
        assert frame.empty and {"method", "aupro", "fit_s"} <= set(frame.columns)


@pytest.mark.parametrize("text", [
    "", "{", "[1, 2]", '"text"', '{"method": "hfr"}', "\x00\xff",
    json.dumps(result(seed="zero")), json.dumps(result(seed=True)), json.dumps(result(metrics=None)),
    json.dumps(result(metrics={"aupro": 93.1})), json.dumps(result(metrics={"aupro": float("nan")})),
    json.dumps(result(metrics={"aupro": "0.9"})), json.dumps(result(per_category={"a": 1})),
    json.dumps(result(cost={"fit_s": "abc"})), json.dumps(result(cost=[1])), json.dumps(result(overrides=5)),
    json.dumps(result(fingerprint={"data": None})), json.dumps(result(fingerprint={"code_version": 5})),
    json.dumps(result(fingerprint=[1])), json.dumps(result(image_size=-3)), json.dumps(result(joint="no")),
    json.dumps(result(protocol=[1])),
])
def test_a_damaged_or_foreign_file_is_named(tmp_path, text):
    ledger.add(result(), tmp_path)
    (tmp_path / "foreign.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="foreign.json") as caught:
        ledger.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    {"config": {"cache": "/home/me/cache"}}, {"dataset": "~/data/mvtec"}, {"dataset": "../elsewhere/mvtec"},
    {"config": {"roots": ["ok", "C:\\data"]}}, {"environment": {"command": "uad run --root=/data/x"}},
    {"environment": {"hostname": "box"}}, {"config": {"/etc/passwd": 1}}, {"fingerprint": {"url": "file:///x"}},
])
def test_nothing_of_the_machine_is_kept(tmp_path, change):
    with pytest.raises(UserError, match=next(iter(change))):
        ledger.add(result(**change), tmp_path / "ledger")
    assert not (tmp_path / "ledger").exists()


def test_harmless_slashes_are_kept(tmp_path):
    ledger.add(result(environment={"cpu": "A/B 1/2 / 3", "source": "https://example.org/x"}), tmp_path)


def test_nothing_half_is_written(tmp_path, monkeypatch):
    before = ledger.add(result(), tmp_path).read_text()
    with pytest.raises(UserError, match="JSON"):
        ledger.add(result(cost={"fit_s": float("inf")}), tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        ledger.add(result(n_test=1), tmp_path)
    assert [p.read_text() for p in tmp_path.iterdir()] == [before]


def test_collect_takes_the_results_below_a_folder(tmp_path):
    for seed in (0, 1):
        run = tmp_path / "runs" / f"seed{seed}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(result(seed=seed)))
    (tmp_path / "runs" / "seed1" / "cable").mkdir()
    (tmp_path / "runs" / "seed1" / "cable" / "result.json").write_text(json.dumps(result(seed=2)))  # a part of seed1
    ledger.collect(tmp_path / "runs", tmp_path / "ledger")
    assert sorted(ledger.read(tmp_path / "ledger")["seed"]) == [0, 1]
    with pytest.raises(UserError, match="--out"):
        ledger.collect(tmp_path / "ledger", tmp_path / "other")


def test_each_row_says_what_it_was_made_with(tmp_path):
    made = {"weights_sha256": "w", "code_version": "0.1.0+abc"}
    ledger.add(result(fingerprint={"data_sha256": "one", **made}), tmp_path)
    parts = {"bottle": result()["metrics"], "cable": result()["metrics"]}
    together = {"data_sha256": "both", "data": {"bottle": "one", "cable": "two"}, **made}
    ledger.add(result(category="all", per_category=parts, fingerprint=together), tmp_path)
    rows = ledger.read(tmp_path)
    assert rows.groupby("category")["data_sha256"].unique().map(list).to_dict() == {"bottle": ["one"], "cable": ["two"]}
    assert set(rows["code_version"]) == {"0.1.0+abc"} and set(rows["weights_sha256"]) == {"w"}
    ledger.add(result(seed=9, fingerprint={}), tmp_path)
    assert ledger.read(tmp_path).set_index("seed").loc[9, ["code_version", "data_sha256"]].tolist() == ["", ""]


def test_results_of_other_code_are_listed(tmp_path, capsys):
    present = sources.code_version(METHODS["hfr"].__module__)
    ledger.add(result(fingerprint={"code_version": present}), tmp_path)
    assert ledger.outdated(tmp_path).empty and uad("ledger", "--ledger", tmp_path).status == 0
    old = ledger.add(result(seed=1, fingerprint={"code_version": "0.1.0+old"}), tmp_path)
    ledger.add(result(method="gone", fingerprint={}), tmp_path)
    found = ledger.outdated(tmp_path)
    assert found["method"].tolist() == ["gone", "hfr"]
    ran = uad("ledger", "--ledger", tmp_path)
    assert ran.status == 1 and f"{old.name}: made by 0.1.0+old, present {present}" in ran.out
    assert ran.out.splitlines()[-1].startswith("2 out of date")
