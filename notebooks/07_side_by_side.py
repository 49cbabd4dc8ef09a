# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     notebook_metadata_filter: kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (chapter-side)=
# # Side by side
#
# ```{admonition} At a glance
# :class: tip
#
# **What it is about.** The five methods and the nearest neighbour on the same products: accuracy, cost, and what became of the expectations that {ref}`the chapter on the data <data-expectations>` stated before anything was measured.
#
# **One picture.** {numref}`fig-side-scores`: every product, every method.
#
# **Cost.** Seconds. Nothing is trained: all numbers come from the {term}`ledger`, and what it lacks is said to be lacking.
#
# **Afterwards you can** read a comparison of methods without taking noise for a ranking, and say which method to try first on a product of yours, and why.
# ```

# %% tags=["hide-input"]
import os
import subprocess
import sys

REPO = os.environ.get("UAD_REPO", "https://github.com/uad-book/uad-book")
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"uad-core @ git+{REPO}"], check=True)

# %%
import numpy as np
import pandas as pd

from uad_core import plots, tables

plots.style()
METHODS = {"hfr": "HFR", "sgfr": "SGFR", "rlr": "RLR", "hlgfa": "HLGFA", "glad": "GLAD", "knn": "nearest neighbour"}
MEASURES = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP"}

# %% [markdown]
# ## Who was measured on what
#
# The products are the development set of thirteen, on which one setting for each method was chosen, and four papers that were looked at afterwards ({ref}`hfr-products` says more). A model is fitted for each product. All runs have the profile `cpu`, images of 256 pixels, and for the feature methods the same small network; where there are several seeds, they are averaged.

# %%
measured = tables.frame("products")
measured = measured[measured["source"] == "measured"]
PRODUCT = ["set", "dataset", "category"]
wide = measured.pivot_table(index=PRODUCT, columns="method", values=list(MEASURES))
wide = wide.reindex(columns=pd.MultiIndex.from_product([MEASURES, METHODS])).sort_index(level="set", ascending=False, sort_remaining=False)
scores = {measure: wide[measure].rename(columns=METHODS) for measure in MEASURES}
there = scores["image_auroc"].notna()
for name in METHODS.values():
    print(f"{name}: {there[name].sum()} of {len(there)} products" + ("" if there[name].all() else "; the other rows are missing in the ledger"))

# %%
seeds = measured.groupby(["method"])["n_seeds"].agg(["min", "max"]).rename(index=METHODS, columns={"min": "seeds, fewest", "max": "seeds, most"})
seeds

# %% [markdown]
# Rows rest on a few seeds at most, many on one. {ref}`The chapter on judging <chapter-judging>` measured how far the AUROC of one run lies from the truth by chance alone, with test sets of this size: several hundredths. A smaller difference in one row of what follows means nothing.
#
# ```{admonition} Take-away
# :class: note
# One setting for each method, one model for each product; what is missing is not filled in.
# A difference of a few hundredths on one product is within chance.
# ```

# %% [markdown]
# (data-measured)=
# ## Accuracy
#
# Image AUROC and pixel AP in percent, the best of each row in bold. Products differ in how hard they are, so compare within a row.

# %% tags=["hide-input"]
def shown(table):
    """A table of one measure in percent, its best value of each row in bold, empty columns left out."""
    table = (100 * table.dropna(axis=1, how="all")).droplevel("set")
    return table.style.format("{:.1f}", na_rep="–").highlight_max(axis=1, props="font-weight: bold")


shown(scores["image_auroc"]).set_caption("Image AUROC: are defective images told from good ones?")

# %% tags=["hide-input"]
shown(scores["pixel_ap"]).set_caption("Pixel AP: are the defective pixels marked?")

# %% mystnb={"figure": {"caption": "Image AUROC (left) and pixel AP (right) of every method on every product of the ledger. A product is a row; methods that have no run on it have no mark.", "name": "fig-side-scores"}, "image": {"alt": "Two panels with one row for each product and one mark for each method. Image AUROC lies near 100 percent on the papers, the bottle and the jar for most methods and spreads widely on tablet, plank and the magnetic tiles. Pixel AP spreads on every product, and the nearest neighbour is mostly the leftmost mark."}} tags=["hide-input"]
MARKS = dict(zip(METHODS.values(), "os^Dv|"))
sheet = plots.figure(0.24 * len(there) + 1.1)
panels = sheet.subplots(1, 2, sharey=True)
rows = np.arange(len(there))[::-1]
for axes, (measure, title) in zip(panels, MEASURES.items()):
    for name, values in scores[measure].dropna(axis=1, how="all").items():
        axes.plot(100 * values, rows, MARKS[name], markersize=9 if MARKS[name] == "|" else 5, alpha=0.85, label=name, linestyle="none")
    axes.set(xlabel=f"{title} (%)", yticks=rows, yticklabels=[c.replace("_", " ") for _, _, c in there.index])
sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
sheet

# %% [markdown]
# One number for each method is the mean over products, and it is fair only over products that all of them were run on.

# %%
def means_over_shared(names):
    """Mean of each measure over the products that all of these methods were run on."""
    shared = there[names].all(axis=1)
    means = pd.DataFrame({title: scores[measure].loc[shared, names].mean() for measure, title in MEASURES.items()})
    return (100 * means).style.format("{:.1f}").set_caption(f"mean over {shared.sum()} products")


everywhere = list(there.columns[there.all()])
most = list(there.columns[there.mean() > 0.5])
means_over_shared(everywhere)

# %%
means_over_shared(most)

# %% tags=["hide-input"]
best = scores["image_auroc"].dropna(axis=1, how="all").idxmax(axis=1)
assert best.nunique() > 1
apart = (scores["image_auroc"].max(axis=1) - scores["image_auroc"].min(axis=1)).nlargest(4)
print("methods lie furthest apart in image AUROC on", ", ".join(category for _, _, category in apart.index))

# %% [markdown]
# The first of the two tables has the methods with a run on every product, the second those with a run on more than half of them, over the products that they share. Where the two disagree about an order, the products decide, and not the methods.
#
# ```{admonition} Take-away
# :class: note
# No method is the best in every row, and a mean over other products may have another order.
# ```

# %% [markdown]
# ## Cost
#
# Seconds to fit one model, milliseconds for an image beyond those of the backbone, and the size of what is stored, each the median over the runs of the profile `cpu` in the ledger, at the size of that profile: 512 pixels for HLGFA, 256 for the others. They were measured on processors that other programs used as well, so factors of two mean little.

# %% tags=["hide-input"]
cost = tables.frame("cost")
cost = cost[(cost["profile"] == "cpu") & (cost["image_size"].astype(str) == cost["method"].map({"hlgfa": "512"}).fillna("256")) & (cost["settings"] == "") & ~cost["joint"].astype(bool)]
models = cost["category"].str.extract(r"^(\d+) categories$")[0].astype(float).fillna(1)
per_model = pd.DataFrame({
    "fit one model (s)": cost["fit_s"] / models,
    "beyond backbone (ms per image)": cost["predict_ms_per_image"] - cost["backbone_ms_per_image"],
    "stored (MB)": cost["model_bytes"] / 1e6,
}).groupby(cost["method"]).median()
per_model.rename(index=METHODS).reindex(METHODS.values()).style.format("{:.3g}", na_rep="no run yet")

# %%
for column in per_model:
    order = per_model[column].sort_values().rename(index=METHODS)
    print(f"{column}: least {order.index[0]}, most {order.index[-1]}")

# %% [markdown]
# The time to fit includes one pass of all training images through the backbone. The reasons behind the order: a bank is chosen and not trained; a search costs the more the more is stored, and the nearest neighbour searches thousands of patches; a trained network takes its time once and then answers in one pass.
#
# ```{admonition} Take-away
# :class: note
# A bank is quick to make, and small if its atoms combine; a trained network takes longer, once, and then answers in one pass.
# ```

# %% [markdown]
# (side-expectations)=
# ## What became of the expectations
#
# {ref}`The table of expectations <data-expectations>` names for each method a category on which it should do well, and one on which it should struggle. Some categories are harder than others for every method. So an expectation is settled by the *lead* of the method: its pixel AP less the mean of all the others that were run on that category. We read "should do well" as a lead above zero, and "should struggle" as a lead below. The reading was fixed before the cell was run, and it knows no margin: leads of a few hundredths are within chance.

# %%
EXPECTED = {"HFR": ("jar", "weave"), "SGFR": ("weave", "circuit"), "RLR": ("circuit", "tablet"), "HLGFA": ("grille", "plank"), "GLAD": ("jar", "plank")}
ap = scores["pixel_ap"].xs("procedural", level="dataset").droplevel("set")


def settled(name, category, sign):
    """The pixel AP of a method on a category, its lead over the others, and whether the lead has the expected sign."""
    value, others = ap.loc[category, name], ap.loc[category].drop(name).mean()
    if np.isnan(value):
        return {"category": category, "pixel AP": np.nan, "lead": np.nan, "came true": "no run yet"}
    return {"category": category, "pixel AP": 100 * value, "lead": 100 * (value - others), "came true": "yes" if sign * (value - others) > 0 else "no"}


outcome = pd.DataFrame({
    (name, expected): settled(name, category, sign)
    for name, pair in EXPECTED.items() for category, expected, sign in zip(pair, ("does well", "struggles"), (1, -1))
}).T
outcome.style.format({"pixel AP": "{:.1f}", "lead": "{:+.1f}"}, na_rep="–")

# %% tags=["nbval-check-output"]
for name, part in outcome.groupby(level=0, sort=False):
    print(f"{name}: " + ", ".join(f"{expected} on {row['category']}: {row['came true']}" for (_, expected), row in part.iterrows()))

# %% [markdown]
# Read the lines beside the reasons in the table of expectations. Where a line says "no", either the reason was wrong or something else outweighs it:
#
# * *HFR on `weave`.* The threads are missed, as the reason says, but in units of what is normally missed {eq}`hfr-spread` that counts little (our reading ◇).
# * *SGFR on `circuit`.* The reason concerns one kind of defect, the missing part, and the category has five. Before {numref}`fig-sgfr-circuit` a table shows that it is the kind which SGFR marks worst, as was expected of it; the other kinds make up for it.
# * *A category in which all methods are close* settles nothing: look at the size of the lead.
# * *GLAD* was expected to do well on one kind of defect, the broken rim of the jar. The ledger keeps a figure for each category and none for each kind, so it can settle this for the jar as a whole only; {numref}`fig-glad-steps` shows the rim.
#
# Three more guesses were stated there, about kinds of defects again, and what is known of them stands in the chapters. A misplaced part is hard for HFR: the deepest level alone can notice it, and {ref}`an exercise <hfr-circuit>` measures it. A missing resistor with clean pads is hard for whatever relates no two places: the first column of {numref}`fig-sgfr-circuit` shows it for SGFR. And whoever may combine more freely finds fewer faint defects: {numref}`fig-sgfr-blind` shows it for the atoms of SGFR, and {numref}`fig-hfr-copy` the beginning of it for the code of HFR.
#
# ```{admonition} Take-away
# :class: note
# An expectation about a kind of defect is not settled by the figure of a category.
# The lines above are computed; they change when the ledger gets new rows.
# ```

# %% [markdown]
# ## Which method, when
#
# What follows is our advice ◇: from how the methods work, from the tables above, and from the chapters' sections "What breaks it". Measure on your own images before you believe it; {doc}`/book/how_to_run` says how.
#
# | Your case | Try first | because |
# |---|---|---|
# | no time to train, little memory | SGFR | it is fitted in seconds, and stores least |
# | a product with an outline, always in the same place, or an object before an empty background | HFR | what belongs where follows from the surroundings; its residual is calibrated for short features |
# | one model for many products | RLR | it is made for that, and has no residual path by which a defect could pass |
# | defects that are fine edges on a surface that a coarse view foretells | HLGFA | it compares two resolutions of the same image |
# | you want to see the image as it should be | GLAD | it draws it; the price is time |
# | you have to know what a method is worth | the nearest neighbour beside it | a method that is not ahead of it on your product is not worth its trouble |
#
# ```{admonition} Take-away
# :class: note
# Choose by what is normal on your product: does it follow from its surroundings, recur, or stand in one place?
# Hold every choice against the nearest neighbour.
# ```

# %% [markdown]
# ## Exercises
#
# ```{exercise} A fair mean
# :label: side-mean
# Method A was run on five products with image AUROC 1.00, 0.98, 0.96, 0.70 and 0.66, method B only on the first three, with 0.99, 0.97 and 0.96. Whose mean is larger over all its rows, and whose over the shared ones? Which would you report?
# ```
#
# ```{solution} side-mean
# :class: dropdown
# Over all rows A has $0.86$ and B $0.973$; over the shared three A has $0.98$ and B $0.973$. Report the second comparison, with the number of products, and the two rows of A that B lacks.
# ```
#
# ```{exercise} How often by chance
# :label: side-chance
# Two methods of equal quality are compared on 17 products, and on each the lead is as likely positive as negative. How likely is it that one of them is ahead on at least 13? What does that say about counting victories?
# ```
#
# ```{solution} side-chance
# :class: dropdown
# $2 \sum_{k \ge 13} \binom{17}{k} / 2^{17} = 2\,(2380 + 680 + 136 + 17 + 1)/131\,072 \approx 0.049$. So twelve victories of seventeen are no evidence at the usual level of one in twenty, and thirteen just are, if the products are independent, which papers of one series are not.
# ```
#
# ```{exercise} A row of your own
# :label: side-row
# *Open.* Choose a method and a product on which {numref}`fig-side-scores` has no mark, or your own images. Say beforehand, from the chapters, where the mark should lie. Run it (`uad run`), add it to a copy of the ledger (`uad table --add`), and compare.
# ```

# %% [markdown]
# ## Further reading
#
# * {cite:t}`bergmann2021mvtec` compare methods on fifteen products and show every one of them, besides the mean.
# * {cite:t}`roth2022patchcore` set the mark for stored patches, against which the others of this book are held by the nearest neighbour.
# * {cite:t}`ruff2021review` say why no method can be the best for every kind of anomaly.
