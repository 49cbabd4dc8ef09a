"""Tables from the ledger, beside what the papers report: as text, Markdown, LaTeX, HTML or CSV.

Every row tells on which data, with which backbone, profile, resolution and seeds its numbers were measured, or
whose they are. Shown are percent with one decimal, mean ± sd over seeds; CSV holds all seven metrics as fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from uad_core import alarms, ledger, papers, render
from uad_core.datasets.catalogue import CATALOGUE
from uad_core.errors import UserError
from uad_core.methods import METHODS

__all__ = ["KINDS", "SETS", "frame", "names", "side_by_side", "table", "where_behind"]

KINDS = {
    "one-class": "one class normal, all others anomalous: image AUROC of each class and the mean",
    "compare": "all methods side by side, for each data set over the categories that all of them were run on",
    "products": "all methods side by side on every product of the development set and of the check set",
    "bank": "SGFR and nearest neighbours: accuracy and cost against the number of stored patches",
    "cost": "time, memory and size of every run",
    "alarms": "false alarms on good test images, observed beside promised",
}
"""The tables besides the one of each method."""

SETS = {
    **{("procedural", name): "development" for name in ("weave", "plank", "grille", "jar", "tablet", "circuit")},
    ("mvtec_ad", "bottle"): "development",
    ("mvtec_resplit", "toothbrush"): "development",
    ("mtd", "mtd"): "development",
    **{("piped", f"paper_{name}"): "development" for name in ("bdp01", "bft01", "brg01", "flr01")},
    **{("piped", f"paper_{name}"): "check" for name in ("brg02", "btn01", "flr02", "fvn01")},
}
"""The products that settings were chosen on, one setting of each method for all, and those looked at afterwards."""

_LINE = ["dataset", "category", "method", "backbone", "profile", "image_size", "settings", "joint", "members"]
# Only runs of the same code, configuration, weights and kind of machine are averaged: a mean is one over seeds. Data
# may differ with the seed, which divides some data sets and draws the built-in one.
_GROUP = [*_LINE, "code_version", "config", "weights_sha256", "gpu"]
_METRICS, _COSTS = list(ledger.METRICS), list(ledger.COSTS)
_SPREAD = [f"{name}_sd" for name in _METRICS]
_ONE_CLASS = {info.name for info in CATALOGUE if info.protocol == "one_class"}


def names(folder: Path | None = None) -> list[str]:
    """The tables that can be asked for: one for each paper and each other method, and `KINDS`."""
    others = sorted({*METHODS, *ledger.read(folder)["method"]} - set(papers.PAPERS))
    return [*papers.PAPERS, *others, *KINDS]


def table(name: str, folder: Path | None = None, format: str = "text") -> str:
    """A table as text to print or to paste, without a newline at its end.

    Args:
        name: see `names`.
        folder: the ledger; by default the book's.
        format: "text", "md", "latex", "html" or "csv".

    Raises:
        UserError: an unknown name or format, a ledger without a run for this table, or a damaged file in it.
    """
    if format not in render.FORMATS:
        raise UserError(f"no table format {format!r}: choose one of {', '.join(render.FORMATS)}")
    numbers = frame(name, folder)
    if format == "csv":
        return numbers.to_csv(index=False).rstrip("\n")
    if name in ("cost", "alarms"):
        cells = render.costs(numbers) if name == "cost" else alarms.cells(numbers)
    else:
        cells = render.metrics(numbers, _shown_metrics(name), _shown_costs(name))
    return render.FORMATS[format](cells, _title(name), render.notes(numbers))


def frame(name: str, folder: Path | None = None) -> pd.DataFrame:
    """The numbers of a table: fractions, one row for each line, `NAME` and `NAME_sd` for each metric.

    `source` is "measured", or "paper" and the like with the mark of `papers.MARKS`, or says that nothing was found;
    `n_seeds` and `seeds` tell over which runs `NAME` is the mean (sd is NaN for one).

    Raises:
        UserError: as `table`.
    """
    known = names(folder)
    if name not in known:
        raise UserError(f"no table {name!r}: choose one of {', '.join(known)}")
    runs = _runs_for(name, ledger.read(folder)).fillna({"gpu": ""})
    if runs.empty:
        place = ledger.default_folder() if folder is None else folder
        method = "METHOD" if name in KINDS else name
        raise UserError(
            f"the ledger {place} holds no run for the table {name}: make one with `uad run {method} --dataset NAME "
            f"--category C --out DIR`, then add it with `uad table {name} --add DIR`"
        )
    if name == "cost":
        return _cost(runs)
    if name == "alarms":
        return alarms.frame(folder)
    one_model = (runs["n_categories"] == 1) | runs["joint"]
    # The time to fit several models is that of none of them; their mean is.
    times = ["fit_s", "features_s"]
    single = runs.assign(**runs[times].where(one_model))
    per_model = runs.assign(**runs[times].div(runs["n_categories"].where(~one_model, 1), axis=0))
    means = [] if name == "products" else _means(per_model.assign(mixture=False))
    lines = pd.concat([single.assign(mixture=False), *means], ignore_index=True)
    measured = _over_seeds(lines)
    if name == "compare":
        measured = measured[measured["dataset"].isin(runs["dataset"]) & measured["category"].isin(_scopes(runs))]
    measured = measured.assign(code=_versions_told_apart(measured))
    if name == "products":
        return measured.assign(set=[SETS[product] for product in zip(measured["dataset"], measured["category"])])
    reported = _reported(measured, peers=name in ("compare", "one-class"))
    rows = pd.DataFrame(measured.to_dict("records") + reported, columns=measured.columns)
    # Stable: within a data set, measured rows keep their order and reported ones follow.
    return rows.astype({"n_seeds": "Int64"}).sort_values("dataset", kind="stable", ignore_index=True)


def side_by_side(*methods: str, folder: Path | None = None) -> pd.DataFrame:
    """Methods on the products of `SETS` that all of them were run on: means over seeds, as fractions.

    Rows are (set, dataset, category), the development set first; columns are (metric, method), the four metrics that
    tables show.

    Raises:
        UserError: as `table`.
    """
    measured = frame("products", folder)
    wanted = measured[measured["method"].isin(methods)]
    keys = ["set", "dataset", "category"]
    columns = [(metric, method) for metric in _shown_metrics("products") for method in methods]
    wide = wanted.pivot_table(index=keys, columns="method", values=_shown_metrics("products"))[columns].dropna()
    return wide.sort_index(level="set", ascending=False, sort_remaining=False)


def where_behind(side: pd.DataFrame, method: str, other: str, margin: float = 0.01) -> str:
    """Say in lines on which products `other` is ahead, and on which two `method` tells images apart worst.

    side: what `side_by_side` returned for both. margin: lead in image or pixel AUROC that counts, as a fraction.
    """
    lead = (side.xs(other, axis=1, level=1) - side.xs(method, axis=1, level=1))[["image_auroc", "pixel_auroc"]]
    behind = lead[(lead > margin).any(axis=1)]
    lines = [f"{other} ahead by more than {margin} in image or pixel AUROC on {len(behind)} of {len(lead)} products"]
    for (_, dataset, category), gap in behind.iterrows():
        lines.append(f"  {dataset}/{category}: image AUROC {gap.iloc[0]:+.3f}, pixel AUROC {gap.iloc[1]:+.3f}")
    hardest = side[("image_auroc", method)].nsmallest(2).index
    return "\n".join([*lines, "lowest image AUROC: " + ", ".join("/".join(row[1:]) for row in hardest)])


def _title(name: str) -> str:
    return KINDS.get(name, f"{name}: every data set and category it was run on, beside the paper's numbers")


def _shown_metrics(name: str) -> list[str]:
    return ["image_auroc"] if name == "one-class" else ["image_auroc", "pixel_auroc", "pixel_ap", "aupro"]


def _shown_costs(name: str) -> list[str]:
    more = ["features_s", "model_bytes"] if name == "bank" else []
    return ["fit_s", *more, "predict_ms_per_image"]


def _runs_for(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of the ledger that a table is about, methods and unchanged settings first."""
    runs = runs.sort_values(["method", "settings", *_GROUP[3:], "dataset", "category"], kind="stable")
    if name == "one-class":
        return runs[(runs["protocol"] == "one_class") | runs["dataset"].isin(_ONE_CLASS)]
    if name == "products":
        named = pd.Series(list(zip(runs["dataset"], runs["category"])), index=runs.index).isin(list(SETS))
        return runs[named & ~runs["joint"] & (runs["settings"] == "")]
    if name == "compare":
        # Ablations are no part of it: only a profile as it is, or a run that does not say what was changed.
        return _common(runs[runs["settings"].str.fullmatch(r"(config=.*)?")])
    if name == "bank":
        return runs[runs["settings"].str.contains(r"\b(?:atoms|bank)=")]
    return runs if name in ("cost", "alarms") else runs[runs["method"] == name]


def _common(runs: pd.DataFrame) -> pd.DataFrame:
    """For each data set the categories on which all methods were run; all rows where there is no such category."""
    kept = []
    for _, group in runs.groupby("dataset"):
        shared = set.intersection(*(set(part) for _, part in group.groupby("method")["category"]))
        kept.append(group[group["category"].isin(shared)] if shared else group)
    return pd.concat(kept) if kept else runs


def _scopes(runs: pd.DataFrame) -> set[str]:
    """The categories that a comparison shows: the mean where there are several, else the only one."""
    counts = runs.groupby("dataset")["category"].nunique()
    single = set(runs.loc[runs["dataset"].isin(counts.index[counts == 1]), "category"])
    return single | {f"mean of {k}" for k in range(2, counts.max() + 1)}


def _means(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """For each method and setting one row a seed with the mean over categories, as if it were a category.

    One model for several data sets has a mean for each of them and one over all.
    """
    for _, group in runs.groupby([g for g in _GROUP if g != "category"], sort=False):
        yield from _mean_of(group)
    for _, group in runs[runs["joint"]].groupby([g for g in _GROUP if g not in ("dataset", "category")], sort=False):
        names = group["dataset"].unique()
        if len(names) > 1:
            yield from (row.assign(dataset=",".join(names), mixture=True) for row in _mean_of(group))


def _mean_of(group: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """One row a seed with the mean over the categories of the seed that was run on most.

    Only seeds with all of these categories count, so that seeds are never averaged over different ones. A metric that
    one category lacks is lacking in the mean.
    """
    group = group.assign(place=group["dataset"] + "/" + group["category"])
    per_seed = group.groupby("seed")["place"].agg(set)
    wanted = max(per_seed, key=len)
    if len(wanted) < 2:
        return
    for seed in per_seed.index[per_seed.map(wanted.issubset)]:
        rows = group[(group["seed"] == seed) & group["place"].isin(wanted)]
        values = rows.groupby("place")[[*_METRICS, *_COSTS]].mean().mean(skipna=False)
        yield rows.iloc[:1].drop(columns="place").assign(category=f"mean of {len(wanted)}", **values)


def _over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample sd over seeds for each line of a table; the order of first appearance is kept."""
    keys = [*_GROUP, "mixture"]
    per_seed = runs.groupby([*keys, "seed"], sort=False)[[*_METRICS, *_COSTS]].mean().reset_index("seed")
    groups = per_seed.groupby(level=keys, sort=False)
    table = groups[[*_METRICS, *_COSTS]].mean()
    table[_SPREAD] = groups[_METRICS].std(ddof=1).to_numpy()
    table["n_seeds"] = groups["seed"].nunique()
    table["seeds"] = groups["seed"].agg(_listed)
    return table.reset_index().assign(source="measured")


def _versions_told_apart(measured: pd.DataFrame) -> pd.Series:
    """What tells lines apart that a table would show alike: digits of the code's version, and of the configuration."""
    versions = measured.groupby(_LINE, sort=False)["code_version"].transform("nunique")
    others = measured.groupby([*_LINE, "code_version"], sort=False)["config"].transform("size")
    code = measured["code_version"].str.split("+").str[-1].str[:6].where(versions > 1, "")
    return code + (" " + measured["config"].str[:4]).where(others > 1, "")


def _listed(seeds: pd.Series) -> str:
    """Seeds in order, each once."""
    return ", ".join(str(seed) for seed in sorted(set(seeds)))


def _reported(measured: pd.DataFrame, peers: bool) -> list[dict[str, object]]:
    """For each data set and paper what it claims, or that nothing was found; then, if asked for, other methods."""
    rows = []
    for (dataset, method), group in measured.groupby(["dataset", "method"], sort=False):
        if method in papers.PAPERS and not group["mixture"].any():  # no paper trained one model on our mixture
            own = [_reported_row(p, "paper") for p in papers.published(method, dataset)]
            nothing = {"dataset": dataset, "category": "mean", "method": method, "source": _nothing(dataset)}
            rows += own or [nothing]
        if peers and method == measured.loc[measured["dataset"] == dataset, "method"].iloc[-1]:
            rows += [_reported_row(p, "reported") for p in _peers(dataset, group["category"])]
    return rows


def _nothing(dataset: str) -> str:
    """Why a paper's row is empty."""
    return f"paper: {'not on these images, they are drawn' if dataset == 'procedural' else papers.NOT_PUBLISHED}"


def _peers(dataset: str, categories: Iterable[str]) -> list[papers.Published]:
    """What others report for the categories of a table, the mean of a few counting as the mean of all."""
    wanted = dict.fromkeys("mean" if str(c).startswith("mean of") else c for c in categories)
    return [p for category in wanted for p in papers.peers(dataset, category)]


def _reported_row(entry: papers.Published, kind: str) -> dict[str, object]:
    """A published number as a line of a table."""
    row = {"dataset": entry.dataset, "category": entry.category, "method": entry.method, "settings": entry.setting}
    return row | dict(entry.metrics) | {"source": f"{kind} [{entry.mark}]: {entry.source}"}


def _cost(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for each run's setting and machine: the mean over its seeds."""
    datasets = runs.groupby("file")["dataset"].agg(lambda names: ",".join(dict.fromkeys(names)))
    whole = runs.drop_duplicates("file").assign(
        dataset=lambda r: r["file"].map(datasets),
        category=lambda r: r["category"].where(r["n_categories"] == 1, r["n_categories"].astype(str) + " categories"),
    )
    machine = ["cpu", "threads"]
    whole[machine] = whole[machine].fillna("")
    groups = whole.groupby([*_GROUP, *machine], sort=False)
    table = groups[_COSTS].mean()
    table["n_seeds"] = groups["seed"].nunique()
    table["seeds"] = groups["seed"].agg(_listed)
    return table.reset_index().sort_values("dataset", kind="stable", ignore_index=True)
