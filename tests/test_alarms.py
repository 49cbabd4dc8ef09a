"""The table of false alarms: counts add up over seeds, models stay apart, and nothing is promised that was not."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from test_tables import add

from uad_core import alarms, ledger, tables
from uad_core.promise import at_most


def verdict(false_alarms: int | None, of: int, held_out: int = 99) -> dict:
    rate = None if false_alarms is None else 0.02
    return {"threshold": None, "false_alarm_rate": rate, "held_out": held_out, "false_alarms": false_alarms,
            "normal_test_images": of}  # fmt: skip


def line(frame: pd.DataFrame, category: str) -> pd.Series:
    [row] = frame[frame["category"] == category].to_dict("records")
    return row


def test_counts_add_up_over_seeds_and_settings_of_ones_own_stay_out(tmp_path) -> None:
    for seed, count in enumerate((1, 2)):
        add(tmp_path, "hfr", "bottle", seed, 0.9, verdict=verdict(count, 20))
    add(tmp_path, "hfr", "bottle", 0, 0.9, verdict=verdict(20, 20), overrides={"mode": "cos"})
    add(tmp_path, "hfr", "cable", 0, 0.9, verdict=verdict(None, 0, 1))
    add(tmp_path, "hfr", "capsule", 0, 0.9)  # an older run, without a verdict
    [row] = alarms.frame(tmp_path).to_dict("records")
    assert (row["false_alarms"], row["normal_test_images"], row["seeds"]) == (3, 40, "0, 1")
    assert row["share"] == 3 / 40 and row["promised"] == 0.02 and row["at_most"] == at_most(0.02, 99)


def test_models_of_one_run_are_told_apart_where_their_results_are_there(tmp_path) -> None:
    parts = {name: {"image_auroc": 0.9} for name in ("alpha", "beta")}
    add(tmp_path / "old", "hfr", "all", 0, 0.9, per_category=parts, verdict=verdict(3, 40, 198))
    old = line(alarms.frame(tmp_path / "old"), "all 2")
    assert old["models"] == 2 and old["held_out"] == 99 and pd.isna(old["at_most"])
    [file] = (tmp_path / "old").glob("*.json")
    whole, runs = json.loads(file.read_text()), tmp_path / "runs"
    for name, count in {".": 3, "alpha": 0, "beta": 3}.items():
        (runs / name).mkdir(parents=True, exist_ok=True)
        one = whole if name == "." else {k: v for k, v in whole.items() if k != "per_category"}
        about = one | {"category": "all" if name == "." else name, "verdict": verdict(count, 40 if name == "." else 20)}
        (runs / name / "result.json").write_text(json.dumps(about))
    ledger.collect(runs, tmp_path / "new")
    found = alarms.frame(tmp_path / "new")
    assert found["category"].tolist() == ["alpha", "beta"] and found["models"].tolist() == [1, 1]
    assert line(found, "beta")["share"] == 3 / 20


def test_the_interval_is_clopper_and_pearsons() -> None:
    # Published values for 0 and 1 of 20.
    assert alarms.interval(0, 20) == pytest.approx((0, 0.1684), abs=1e-4)
    assert alarms.interval(1, 20) == pytest.approx((0.0013, 0.2487), abs=1e-4)
    assert alarms.interval(20, 20) == pytest.approx((0.8316, 1), abs=1e-4) and alarms.interval(0, 0) == (0, 1)


@pytest.mark.parametrize("format", ["text", "md", "latex", "html", "csv"])
def test_the_table_can_be_had_in_every_format(tmp_path, format: str) -> None:
    add(tmp_path, "hfr", "bottle", 0, 0.9, verdict=verdict(1, 20))
    text = tables.table("alarms", tmp_path, format)
    assert "bottle" in text and ("0.05" if format == "csv" else "1 of 20") in text


def test_a_ledger_without_verdicts_gives_an_empty_table(tmp_path) -> None:
    add(tmp_path, "hfr", "bottle", 0, 0.9)
    assert alarms.frame(tmp_path).empty and tables.table("alarms", tmp_path).startswith("false alarms")
