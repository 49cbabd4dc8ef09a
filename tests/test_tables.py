from __future__ import annotations

import io
import re
from statistics import mean, stdev
from xml.etree import ElementTree

import pandas as pd
import pytest

from uad_core import ledger, papers, render, tables
from uad_core.errors import UserError


def add(folder, method, category, seed, auroc, dataset="mvtec_ad", masks=True, **more):
    """Keep one invented run; its other metrics follow from its image AUROC."""
    pixels = {"pixel_auroc": auroc - 0.01, "pixel_ap": auroc / 2, "aupro": auroc - 0.1}
    cost = {"fit_s": 100.0 + seed, "predict_ms_per_image": 40.0, "parameters": 2_500_000, "model_bytes": 10_000_000}
    ledger.add({
        "method": method, "dataset": dataset, "category": category, "profile": "cpu", "seed": seed,
        "backbone": "tf_efficientnet_lite2", "image_size": [256, 256], "config": {}, "overrides": {},
        "n_train": 5, "n_test": 5, "metrics": {"image_auroc": auroc} | (pixels if masks else {}), "cost": cost,
        "fingerprint": {}, "environment": {"cpu": "some processor", "threads": 2},
    } | more, folder)  # fmt: skip


@pytest.fixture
def book(tmp_path):
    """A ledger: hfr on two categories and three seeds, glad and knn on one of them, and ten classes of clothing."""
    for seed, (bottle, cable) in enumerate([(0.99, 0.95), (0.98, 0.93), (0.97, 0.94)]):
        add(tmp_path, "hfr", "bottle", seed, bottle)
        add(tmp_path, "hfr", "cable", seed, cable)
    add(tmp_path, "hfr", "bottle", 0, 0.5, overrides={"mode": "cos"})
    add(tmp_path, "glad", "bottle", 0, 0.9)
    add(tmp_path, "knn", "bottle", 0, 0.8)
    classes = {str(i): {"image_auroc": 0.9 + i / 100} for i in range(10)}
    add(tmp_path, "hfr", "all", 0, 0.945, "fashion_mnist", masks=False, per_category=classes)
    return tmp_path


def line(frame, **where):
    """The only line of a table with these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_mean_and_sd_over_seeds_are_those_computed_by_hand(book):
    frame = tables.frame("hfr", book)
    row = line(frame, category="bottle", settings="", source="measured")
    assert row["image_auroc"] == pytest.approx(0.98) and row["image_auroc_sd"] == pytest.approx(0.01)
    assert row["pixel_ap"] == pytest.approx(0.49) and row["fit_s"] == 101
    assert (row["n_seeds"], row["seeds"]) == (3, "0, 1, 2")
    assert (row["backbone"], row["image_size"]) == ("tf_efficientnet_lite2", "256")


def test_the_mean_over_categories_is_taken_seed_by_seed(book):
    per_seed = [(0.99 + 0.95) / 2, (0.98 + 0.93) / 2, (0.97 + 0.94) / 2]
    row = line(tables.frame("hfr", book), category="mean of 2")
    assert row["image_auroc"] == pytest.approx(mean(per_seed))
    assert row["image_auroc_sd"] == pytest.approx(stdev(per_seed))


def test_a_seed_that_lacks_a_category_does_not_enter_the_mean(book):
    before = line(tables.frame("hfr", book), category="mean of 2")["image_auroc"]
    add(book, "hfr", "bottle", 3, 0.1)
    row = line(tables.frame("hfr", book), category="mean of 2")
    assert (row["image_auroc"], row["seeds"]) == (before, "0, 1, 2")


def test_other_settings_have_a_line_of_their_own(book):
    row = line(tables.frame("hfr", book), settings="mode=cos")
    assert row["image_auroc"] == 0.5 and row["n_seeds"] == 1 and pd.isna(row["image_auroc_sd"])


def test_the_paper_stands_beside_the_measurement(book):
    glad = tables.frame("glad", book)
    own = glad[glad["source"].str.startswith("paper [F2]")]
    assert sorted(own["image_auroc"]) == [0.975, 0.993] and set(own["category"]) == {"mean"}
    hfr = tables.frame("hfr", book)
    assert set(hfr.loc[hfr["category"] == "mean", "source"]) == {f"paper: {papers.NOT_PUBLISHED}"}
    assert not tables.frame("knn", book)["source"].str.contains("paper").any()


def test_one_class_table_has_every_class_and_their_mean(book):
    frame = tables.frame("one-class", book)
    measured = frame[frame["source"] == "measured"].set_index("category")["image_auroc"]
    assert measured.to_dict() == pytest.approx({str(i): 0.9 + i / 100 for i in range(10)} | {"mean of 10": 0.945})
    assert line(frame, method="RD4AD")["image_auroc"] == 0.95


def test_methods_are_compared_on_the_categories_that_all_were_run_on(book):
    frame = tables.frame("compare", book)
    measured = frame[(frame["source"] == "measured") & (frame["dataset"] == "mvtec_ad")]
    found = dict(zip(measured["method"], measured["image_auroc"], strict=True))
    assert found == pytest.approx({"glad": 0.9, "hfr": 0.98, "knn": 0.8})
    assert set(measured["category"]) == {"bottle"} and set(measured["settings"]) == {""}
    for method in ("glad", "knn"):
        add(book, method, "cable", 0, 0.7)
    measured = tables.frame("compare", book).query("source == 'measured' and dataset == 'mvtec_ad'")
    assert set(measured["category"]) == {"mean of 2"} and len(measured) == 3


def test_products_of_both_sets_stand_side_by_side(book):
    add(book, "hfr", "all", 0, 0.7, "piped", per_category={"paper_bdp01": {"image_auroc": 0.6}, "paper_fvn01": {}})
    frame = tables.frame("products", book)
    assert set(frame["category"]) == {"bottle", "paper_bdp01", "paper_fvn01"}  # cable is in neither set
    assert dict(zip(frame["category"], frame["set"], strict=True))["paper_fvn01"] == "check"
    bottle = frame[frame["category"] == "bottle"].set_index("method")["image_auroc"]
    assert bottle.to_dict() == pytest.approx({"glad": 0.9, "hfr": 0.98, "knn": 0.8})  # not the ablation's 0.5
    assert len(tables.SETS) == 17 and "paper_fvn01" in tables.table("products", book)


def test_methods_stand_side_by_side_where_all_were_run(book):
    for method, auroc in (("hfr", 0.6), ("knn", 0.7)):
        add(book, method, "paper_fvn01", 0, auroc, "piped")
    add(book, "hfr", "paper_bdp01", 0, 0.9, "piped")  # knn was not run on it
    side = tables.side_by_side("hfr", "knn", folder=book)
    assert list(side.index) == [("development", "mvtec_ad", "bottle"), ("check", "piped", "paper_fvn01")]
    assert side[("image_auroc", "hfr")].tolist() == pytest.approx([0.98, 0.6])
    assert side[("image_auroc", "knn")].tolist() == pytest.approx([0.8, 0.7])
    lines = tables.where_behind(side, "hfr", "knn").splitlines()
    assert lines[0] == "knn ahead by more than 0.01 in image or pixel AUROC on 1 of 2 products" and len(lines) == 3
    assert lines[1].startswith("  piped/paper_fvn01: image AUROC +0.100, pixel AUROC ")
    assert lines[2] == "lowest image AUROC: piped/paper_fvn01, mvtec_ad/bottle"
    assert len(tables.where_behind(side, "hfr", "knn", margin=0.2).splitlines()) == 2


def test_cost_table_keeps_runs_whole(book):
    frame = tables.frame("cost", book)
    assert line(frame, category="10 categories")["fit_s"] == 100
    assert line(frame, category="bottle", method="hfr", settings="")["fit_s"] == 101
    assert "2.5" in tables.table("cost", book) and "some processor" in tables.table("cost", book)


def test_fitting_several_models_is_shown_as_their_mean(book):
    frame = tables.frame("one-class", book)
    assert line(frame, category="mean of 10")["fit_s"] == 10 and pd.isna(line(frame, category="3")["fit_s"])


def test_text_shows_percent_and_tells_what_was_run(book):
    text = tables.table("hfr", book)
    shown = next(row for row in text.splitlines() if "bottle" in row and "mode=cos" not in row)
    assert re.split(r"\s{2,}", shown) == [
        "mvtec_ad", "bottle", "hfr", "98.0 ± 1.0", "97.0 ± 1.0", "49.0 ± 0.5", "88.0 ± 1.0", "0, 1, 2",
        "tf_efficientnet_lite2", "cpu", "256", "–", "101", "40", "measured",
    ]  # fmt: skip
    assert papers.NOT_PUBLISHED in text and "one model" not in text


def test_a_joint_model_is_called_one(tmp_path):
    parts = {"a": {"image_auroc": 0.9}, "b": {"image_auroc": 0.8}}
    add(tmp_path, "rlr", "a,b", 0, 0.85, per_category=parts, joint=True)
    text = tables.table("rlr", tmp_path)
    assert text.count("one model for 2") == 4 and text.endswith("\none model for 2: a, b.")


def test_models_of_different_sets_of_categories_are_never_averaged(tmp_path):
    for k, names in enumerate(("ab", "ac", "abc")):
        parts = {name: {"image_auroc": 0.7 + k / 10} for name in names}
        add(tmp_path, "rlr", ",".join(names), 0, 0.7 + k / 10, per_category=parts, joint=True)
    add(tmp_path, "rlr", "a", 0, 0.5)
    measured = tables.frame("rlr", tmp_path).query("source == 'measured'")
    assert measured.loc[measured["category"] == "a", "image_auroc"].tolist() == pytest.approx([0.5, 0.7, 0.9, 0.8])
    means = measured[measured["category"].str.startswith("mean")].set_index("members")["image_auroc"]
    assert means.to_dict() == pytest.approx({"a; b": 0.7, "a; c": 0.8, "a; b; c": 0.9})
    text = tables.table("rlr", tmp_path)
    assert "one model for 2 (a): a, b." in text and "one model for 2 (b): a, c." in text
    assert "one model for 3: a, b, c." in text


def test_a_joint_model_of_several_data_sets_has_a_mean_for_each_and_one_over_all(tmp_path):
    parts = {"procedural/a": 0.6, "mvtec_ad/bottle": 0.7, "procedural/b": 0.8, "mvtec_ad/cable": 0.9}
    per_category = {name: {"image_auroc": value} for name, value in parts.items()}
    add(tmp_path, "rlr", "all", 1, 0.75, "procedural,mvtec_ad", per_category=per_category, joint=True)
    frame = tables.frame("rlr", tmp_path)
    for dataset, expected in (("procedural", 0.7), ("mvtec_ad", 0.8)):
        row = line(frame, dataset=dataset, category="mean of 2")
        assert row["image_auroc"] == pytest.approx(expected) and row["fit_s"] == 101
    whole = frame[frame["dataset"].str.contains(",")]  # no line for a paper: none trained on this mixture
    assert whole["category"].tolist() == ["mean of 4"] and whole["image_auroc"].tolist() == pytest.approx([0.75])
    assert not tables.frame("compare", tmp_path)["dataset"].str.contains(",").any()
    row = line(tables.frame("cost", tmp_path), category="4 categories")
    assert row["fit_s"] == 101 and set(row["dataset"].split(",")) == {"procedural", "mvtec_ad"}
    assert "one model for 4" in tables.table("cost", tmp_path)


def test_categories_of_one_name_in_two_data_sets_are_two_in_the_mean_over_all(tmp_path):
    per_category = {"procedural/a": {"image_auroc": 0.6}, "mvtec_ad/a": {"image_auroc": 0.9}}
    add(tmp_path, "rlr", "all", 0, 0.75, "procedural,mvtec_ad", per_category=per_category, joint=True)
    row = line(tables.frame("rlr", tmp_path), category="mean of 2")
    assert row["image_auroc"] == pytest.approx(0.75)


def test_the_table_of_banks_holds_the_runs_whose_bank_was_changed(tmp_path):
    add(tmp_path, "sgfr", "bottle", 0, 0.9)
    add(tmp_path, "sgfr", "bottle", 0, 0.8, overrides={"reading": "map"})
    add(tmp_path, "sgfr", "bottle", 0, 0.7, overrides={"atoms": "64", "k": "1"})
    add(tmp_path, "knn", "bottle", 0, 0.6, overrides={"bank": "64"})
    measured = tables.frame("bank", tmp_path).dropna(subset="image_auroc")
    assert measured["settings"].tolist() == ["bank=64", "atoms=64 k=1"]
    assert "model (MB)" in tables.table("bank", tmp_path)


def test_csv_holds_the_same_numbers(book):
    back = pd.read_csv(io.StringIO(tables.table("hfr", book, "csv")), dtype={"image_size": str, "seeds": str})
    frame = tables.frame("hfr", book)
    numeric = [*ledger.METRICS, "image_auroc_sd", "fit_s"]
    pd.testing.assert_frame_equal(back[numeric].astype(float), frame[numeric].astype(float))
    assert back["seeds"].fillna("").tolist() == frame["seeds"].fillna("").tolist()


def cells_of_html(text):
    root = ElementTree.fromstring(f"<div>{text.replace('<br>', '<br/>')}</div>")
    return [[cell.text for cell in row] for row in root.iter("tr")]


def cells_of_markdown(text):
    rows = [[c.strip() for c in r.strip("|").split(" | ")] for r in text.splitlines() if r.startswith("|")]
    return [rows[0], *rows[2:]]


def cells_of_latex(text):
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")].replace("\\_", "_").replace(r"$\pm$", "±")
    rows = [r.removesuffix(r"\\").split("&") for r in body.replace("--", "–").splitlines() if "&" in r]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.mark.parametrize("name", ["hfr", "glad", "one-class", "compare", "products"])
@pytest.mark.parametrize("format", ["html", "md", "latex"])
def test_every_format_has_the_same_cells(book, name, format):
    cells = {"html": cells_of_html, "md": cells_of_markdown, "latex": cells_of_latex}[format]
    numbers = tables.frame(name, book)
    shown = ["image_auroc"] if name == "one-class" else ["image_auroc", "pixel_auroc", "pixel_ap", "aupro"]
    expected = render.metrics(numbers, shown, ["fit_s", "predict_ms_per_image"])
    text = tables.table(name, book, format).replace(r"\%", "%")
    if format == "html":  # the source stands before the numbers, where a narrow window shows it
        assert cells(text)[0].index("source") == 3 and len(cells(text)[0]) == len(expected.columns)
        expected = expected[cells(text)[0]]
    assert cells(text) == [list(expected.columns), *expected.to_numpy().tolist()]


def test_unknown_names_and_an_empty_ledger_are_one_line(tmp_path):
    for call, words in (
        (lambda: tables.table("nosuch", tmp_path), ["nosuch", "hfr", "compare", "cost"]),
        (lambda: tables.table("hfr", tmp_path, "pdf"), ["pdf", "latex"]),
        (lambda: tables.table("hfr", tmp_path), ["uad run hfr", "--add"]),
        (lambda: tables.table("cost", tmp_path), ["uad run METHOD", "--add"]),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)


def test_runs_of_different_code_are_not_averaged_and_the_table_says_so(tmp_path):
    for seed, version in ((0, "old111222"), (1, "new333444"), (2, "new333444")):
        add(tmp_path, "hfr", "bottle", seed, 0.9 + seed / 100, fingerprint={"code_version": f"0.1.0+{version}"})
    add(tmp_path, "hfr", "cable", 0, 0.5, fingerprint={"code_version": "0.1.0+new333444"})
    frame = tables.frame("hfr", tmp_path)
    bottles = frame[(frame["category"] == "bottle") & (frame["source"] == "measured")].set_index("code")
    assert bottles["image_auroc"].to_dict() == pytest.approx({"old111": 0.9, "new333": 0.915})
    assert bottles["seeds"].to_dict() == {"old111": "0", "new333": "1, 2"}
    assert line(frame, category="cable")["code"] == ""
    text = tables.table("hfr", tmp_path)
    assert "old111" in text and "what other code or another configuration made" in text


@pytest.mark.parametrize("change", [{"config": {"epochs": 3}}, {"fingerprint": {"weights_sha256": "other"}}])
def test_runs_of_other_settings_or_weights_are_not_averaged(tmp_path, change):
    add(tmp_path, "hfr", "bottle", 0, 0.9)
    add(tmp_path, "hfr", "bottle", 1, 0.8, **change)
    measured = tables.frame("hfr", tmp_path).query("source == 'measured'")
    assert sorted(measured["image_auroc"]) == pytest.approx([0.8, 0.9])


def test_a_folder_with_a_comma_in_its_name_has_its_line_for_the_paper(tmp_path):
    add(tmp_path, "hfr", "bottle", 0, 0.9, dataset="mine, yours")
    assert "paper" in line(tables.frame("hfr", tmp_path), category="mean")["source"]
