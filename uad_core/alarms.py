"""False alarms that were seen on good test images, beside those that were promised, from the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import beta

from uad_core import ledger
from uad_core.promise import CONFIDENCE, at_most, expected

__all__ = ["cells", "frame", "interval", "verdicts"]

_RUN = ("method", "profile", "seed", "backbone", "code_version")
_GROUP = ["dataset", "category", "method", "profile", "backbone"]
_COUNTS = ("held_out", "false_alarms", "normal_test_images")


def verdicts(folder: Path | None = None) -> pd.DataFrame:
    """One row for each threshold of the ledger's runs with unchanged settings and a model for each category.

    Columns: dataset, category, method, profile, seed, backbone, code_version, false_alarm_rate, held_out, false_alarms,
    normal_test_images, and models, how many thresholds a row sums up: 1, but for a run of several categories whose
    file does not tell them apart; that row's category is "all k". Runs without a threshold are left out.

    Raises UserError as `ledger.read`.
    """
    runs = ledger.read(folder).drop_duplicates("file")
    runs = runs[(runs["settings"] == "") & ~runs["joint"]]
    found = [row for run in runs.to_dict("records") for row in _rows(run, ledger.load(run["file"], folder))]
    columns = ["dataset", "category", *_RUN, "false_alarm_rate", *_COUNTS, "models"]
    return pd.DataFrame(found, columns=columns).drop_duplicates(["dataset", "category", "method", "profile", "seed"])


def _rows(run: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each threshold of a run."""
    several = result.get("per_category", {})
    whole = {f"all {len(several)}" if several else result["category"]: result.get("verdict")}
    common = {name: run[name] for name in _RUN} | {"dataset": result["dataset"]}
    for category, verdict in result.get("verdicts", whole).items():
        if verdict and verdict["false_alarms"] is not None:
            counts = {name: verdict[name] for name in ("false_alarm_rate", *_COUNTS)}
            models = 1 if category in several or not several else len(several)
            yield common | counts | {"category": category, "models": models}


def frame(folder: Path | None = None) -> pd.DataFrame:
    """False alarms by data, category and method: sums over seeds, with the share and what was promised.

    Columns beside those of `verdicts`: seeds (as text), share (observed), low and high (an interval for it at 95 %
    confidence, as if all images were independent), promised (the share that was expected), at_most (the share promised
    at 95 % confidence; NaN where a row sums up several thresholds). Counts of held-out images are means over models.

    Raises UserError as `ledger.read`.
    """
    rows = verdicts(folder)
    if rows.empty:
        return rows.reindex(columns=[*rows.columns, "seeds", "share", "low", "high", "promised", "at_most"])
    rows = rows.assign(held_out=rows["held_out"] / rows["models"])
    groups = rows.groupby([*_GROUP, "false_alarm_rate", "models"], sort=False)
    table = groups[["false_alarms", "normal_test_images"]].sum()
    table["held_out"] = groups["held_out"].mean()
    table["seeds"] = groups["seed"].agg(lambda seeds: ", ".join(map(str, sorted(set(seeds)))))
    table = table.reset_index()
    pairs = [(rate, round(m)) for rate, m in zip(table["false_alarm_rate"], table["held_out"])]
    single = table["models"] == 1
    table["share"] = table["false_alarms"] / table["normal_test_images"].where(table["normal_test_images"] > 0)
    limits = zip(table["false_alarms"], table["normal_test_images"])
    table[["low", "high"]] = [interval(int(count), int(of)) for count, of in limits]
    table["promised"] = [expected(*pair) for pair in pairs]
    table["at_most"] = pd.Series([at_most(*pair) if pair[1] > 1 else float("nan") for pair in pairs]).where(single)
    return table


def interval(count: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a share of which `count` in `of` independent images were seen.

    Source: C. J. Clopper, E. S. Pearson, Biometrika 26, 1934; quantiles of the beta law.
    """
    rest = (1 - confidence) / 2
    low = beta.ppf(rest, count, of - count + 1) if count else 0.0
    high = beta.ppf(1 - rest, count + 1, of - count) if count < of else 1.0
    return float(low), float(high)


def cells(numbers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `frame` as texts: counts, and percent."""
    shown = numbers[["dataset", "category", "method"]].rename(columns={"dataset": "data"})
    shown["seeds"] = numbers["seeds"]
    shown["held out"] = [f"{m:.0f}" for m in numbers["held_out"]]
    shown["false alarms"] = [f"{a} of {n}" for a, n in zip(numbers["false_alarms"], numbers["normal_test_images"])]
    shown["observed (%)"] = [_percent(share) for share in numbers["share"]]
    limits = zip(numbers["low"], numbers["high"])
    shown["95 % interval"] = [f"{100 * low:.1f} to {100 * high:.1f}" for low, high in limits]
    shown["promised (%)"] = [_percent(share) for share in numbers["promised"]]
    shown["at 95 % at most"] = [_percent(share) for share in numbers["at_most"]]
    return shown


def _percent(share: float) -> str:
    return "–" if pd.isna(share) else f"{100 * share:.1f}"
