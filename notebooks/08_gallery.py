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
# (chapter-gallery)=
# # Gallery: five methods on the same images
#
# ```{admonition} At a glance
# :class: tip
#
# **What it shows.** The residual maps of all five methods on the same test images, each fitted on the same good ones. The published page shows a product that the book draws itself.
#
# **On your own copy of real data.** Most licences let nobody show their images in a book. They may be shown where they lie: `uad book --dataset mvtec_ad --category bottle --profile cpu --out my_book` runs
# the whole book on your copy and leaves this page, with your images on it, in `my_book`.
#
# **Cost.** With the built-in images and the profile `smoke` about two minutes on two processor cores; with `cpu` the sum of the times in {doc}`07_side_by_side`, of which GLAD takes most.
# ```

# %% tags=["hide-input"]
import os
import subprocess
import sys

REPO = os.environ.get("UAD_REPO", "https://github.com/uad-book/uad-book")
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"uad-core[glad] @ git+{REPO}"], check=True)
    os.environ.setdefault("UAD_PROFILE", "colab")
    fetch = ["uad", "data", "mvtec_ad", "--category", "bottle"]
    if "UAD_DATASET" not in os.environ and subprocess.run(fetch).returncode == 0:
        os.environ |= {"UAD_DATASET": "mvtec_ad", "UAD_CATEGORY": "bottle"}

# %%
import time

import numpy as np
import pandas as pd
import torch

import uad_core
from uad_core import datasets, metrics, plots

plots.style()

# %% [markdown]
# Three variables decide on what the page runs. Set the environment variables of the same names, or change the cell.

# %% tags=["parameters"]
PROFILE = os.environ.get("UAD_PROFILE", "smoke")
DATASET = os.environ.get("UAD_DATASET", "procedural")
CATEGORY = os.environ.get("UAD_CATEGORY", "jar")
SEED = 0

# %%
def load(name):
    """A new detector, and the data at the size that it looks at."""
    detector = uad_core.create(name, profile=PROFILE, seed=SEED)
    return detector, datasets.load(DATASET, CATEGORY, image_size=detector.image_size)


data = load("hfr")[1]
print(data.train, data.test, sep="\n")

# %% [markdown]
# The images are chosen before anything is fitted, so that no method has a say: of each kind of defect the image whose mask has the median area (the middle one where there are no masks), five kinds at most, and one good image.

# %%
kinds = np.array(data.test.defects)
areas = data.test.masks().mean((1, 2)) if data.test.has_masks else np.zeros(len(kinds))
shown = []
for kind in [*sorted(set(kinds) - {"good"})[:5], "good"]:
    of_kind = np.flatnonzero(kinds == kind)
    shown += [int(of_kind[np.argsort(areas[of_kind], kind="stable")[len(of_kind) // 2]])] if len(of_kind) else []
titles = [str(kinds[i]) for i in shown]

# %% tags=["nbval-check-output"]
print(*titles, sep=", ")

# %% [markdown]
# Each method is fitted, judges all test images, and is drawn on the chosen ones: image, mask, its residual maps from fine to coarse, the anomaly map, the verdict. Colours have one scale for each method: those of two methods cannot be compared, the places can. Follow one column, such as the crack, from {numref}`fig-gallery-hfr` down to {numref}`fig-gallery-glad`.

# %%
measured = {}


def panel(name):
    """Fit a method, keep what it measured, and draw it on the chosen images."""
    start = time.perf_counter()
    detector, own = load(name)
    detector.fit(own.train, progress=False)
    fitted = time.perf_counter() - start
    maps, scores = detector.predict(own.test, progress=False)
    masks = own.test.masks(detector.map_size) if own.test.has_masks else None
    figures = metrics.evaluate(scores, own.test.labels, maps, masks)
    measured[name] = figures | {"fit (s)": fitted, "pixels": detector.image_size[0]}
    images = own.test.images(shown)
    outlines = torch.from_numpy(own.test.masks()[shown]) if own.test.has_masks else None
    return plots.residual_panel(
        images, outlines, detector.residuals(images), maps[shown], scores[shown], detector.threshold.item(), titles,
        labels=own.test.labels[shown],
    )

# %% [markdown]
# ## HFR
#
# {doc}`01_hfr`: a decoder gives back all levels of a network's features from the deepest one.

# %% mystnb={"figure": {"caption": "HFR: what the decoder misses at three levels.", "name": "fig-gallery-hfr"}, "image": {"alt": "Residual panel of HFR: one column for each chosen image; rows image, mask, residuals of three levels, anomaly map, verdict."}} tags=["hide-input"]
panel("hfr")

# %% [markdown]
# ## SGFR
#
# {doc}`02_sgfr`: each patch is combined from a few stored ones.

# %% mystnb={"figure": {"caption": "SGFR: what three stored patches miss at three levels.", "name": "fig-gallery-sgfr"}, "image": {"alt": "Residual panel of SGFR: one column for each chosen image; rows image, mask, residuals of three levels, anomaly map, verdict."}} tags=["hide-input"]
panel("sgfr")

# %% [markdown]
# ## RLR
#
# {doc}`03_rlr`: a map of features is drawn from a reference that the method has learned. The paper's model learns all categories at once; here it learns the one that is shown.

# %% mystnb={"figure": {"caption": "RLR: what the reference does not explain at two levels.", "name": "fig-gallery-rlr"}, "image": {"alt": "Residual panel of RLR: one column for each chosen image; rows image, mask, residuals of two levels, anomaly map, verdict."}} tags=["hide-input"]
panel("rlr")

# %% [markdown]
# ## HLGFA
#
# {doc}`04_hlgfa`: the features of the sharp image are foretold from those of a smaller one.

# %% mystnb={"figure": {"caption": "HLGFA: where two resolutions cannot be aligned, at three levels.", "name": "fig-gallery-hlgfa"}, "image": {"alt": "Residual panel of HLGFA: one column for each chosen image; rows image, mask, misalignment of three levels, anomaly map, verdict."}} tags=["hide-input"]
panel("hlgfa")

# %% [markdown]
# ## GLAD
#
# {doc}`05_glad`: a diffusion model draws the image that should have been there. With the profile `smoke` its training is far too short for good pictures.

# %% mystnb={"figure": {"caption": "GLAD: how features of the image differ from those of its reconstruction, at three levels.", "name": "fig-gallery-glad"}, "image": {"alt": "Residual panel of GLAD: one column for each chosen image; rows image, mask, differences of three levels, anomaly map, verdict."}} tags=["hide-input"]
panel("glad")

# %% [markdown]
# ## What was measured
#
# On all test images of this run: one seed and one product. {doc}`07_side_by_side` compares on all products in the ledger.

# %%
names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "aupro": "AUPRO"}
table = pd.DataFrame(measured).T.rename(index=str.upper, columns=names)[[*names.values(), "fit (s)", "pixels"]].astype(float)
table[[*names.values()]] *= 100
table.style.format("{:.1f}", na_rep="–").format("{:.0f}", subset=["fit (s)", "pixels"])
