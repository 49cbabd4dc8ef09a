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
# (chapter-sgfr)=
# # SGFR: combine a few normal features
#
# ```{admonition} At a glance
# :class: tip
#
# **Paper.** {cite:t}`hotta2025sgfr`, *Subspace-Guided Feature Reconstruction for Unsupervised Anomaly Localization*.
#
# **Idea.** Store a few features of normal images. Rebuild every feature of a new image as a *sparse linear combination* of them. What no combination
# of a few normal features can reach is the anomaly.
#
# **Two pictures.** {numref}`fig-sgfr-architecture`: what is stored and what is computed; {numref}`fig-sgfr-atoms`: two patches, and the stored patches that each was rebuilt from.
#
# **What is reproduced.** The self-expressive model, the sampling of a small bank, residual maps at several levels, the comparison of samplers, and the one
# figure for the paper that we could find, second hand: pixel AP on the magnetic tiles of MTD.
#
# **Cost.** This page runs in under two minutes on two processor cores, on images that the book draws itself. There is no training; fitting takes seconds.
# Nothing is downloaded unless you ask for real data (one category of MVTec AD: 150 to 700 MB). On a GPU the profile `colab` was not timed yet.
#
# **Afterwards you can** prove when a point is a combination of few others, carry out orthogonal matching pursuit by hand, say why a dense combination is blind,
# and judge a method for choosing what to store.
# ```
#
# The mark ◇ stands behind everything that is {ref}`our reconstruction <the-mark>` and not the paper's word.

# %% tags=["hide-input"]
import os
import subprocess
import sys

REPO = os.environ.get("UAD_REPO", "https://github.com/uad-book/uad-book")
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"uad-core @ git+{REPO}"], check=True)
    os.environ.setdefault("UAD_PROFILE", "colab")
    fetch = ["uad", "data", "mvtec_ad", "--category", "bottle"]
    if "UAD_DATASET" not in os.environ and subprocess.run(fetch).returncode == 0:
        os.environ |= {"UAD_DATASET": "mvtec_ad", "UAD_CATEGORY": "bottle"}

# %%
import dataclasses
import time

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from sklearn.linear_model import orthogonal_mp

import uad_core
from uad_core import datasets, metrics, plots, scoring, tables
from uad_core.methods.sampling import greedy_coreset, random_sample, subspace_sample
from uad_core.methods.self_expression import matching_pursuit
from uad_core.methods.sgfr import to_points
from uad_core.plots import diagram

plots.style()

# %% [markdown]
# Three variables decide on what the page runs. Set the environment variables of the same names, or change the cell.

# %% tags=["parameters"]
PROFILE = os.environ.get("UAD_PROFILE", "smoke")
DATASET = os.environ.get("UAD_DATASET", "procedural")
CATEGORY = os.environ.get("UAD_CATEGORY", "weave")
SEED = 0

# %%
detector = uad_core.create("sgfr", profile=PROFILE, seed=SEED)
ref = detector.reference  # which of the levels is the reference
data = datasets.load(DATASET, CATEGORY, image_size=detector.image_size)
features = uad_core.extract(detector.backbone, data.train, device=detector.device)
test_features = uad_core.extract(detector.backbone, data.test, device=detector.device)
print(data.train, data.test, sep="\n")

# %% tags=["hide-input"]
usual = (PROFILE, DATASET, CATEGORY) == ("smoke", "procedural", "weave")


def holds(*claims):
    """What the text says of this page's own data; there, a claim that fails stops the page."""
    assert all(claims) or not usual

# %% [markdown]
# ## The problem it solves
#
# The decoder of the {ref}`previous chapter <chapter-hfr>` answers with the feature that is *expected*, given a coarse code. On a texture that is little help:
# which thread crosses which at a given place cannot be known from a code whose cells are thirty-two pixels wide, so the expected feature is a blur of all threads, and
# much is left over everywhere. Here is HFR with its short profile (images of half this chapter's size), on linen, the built-in category `weave`.

# %%
decoder = uad_core.create("hfr", profile="smoke", seed=SEED)
small = datasets.load(DATASET, CATEGORY, image_size=decoder.image_size)
decoder.fit(small.train, progress=False)
decoder_maps, decoder_scores = decoder.predict(small.test, progress=False)

# %% [markdown]
# We look at the one of each kind that HFR finds *least*, and at a good piece.

# %%
kinds = np.array(data.test.defects)
defects = sorted(set(kinds) - {"good"})[:5]
faint = [np.flatnonzero(kinds == kind)[decoder_scores[kinds == kind].argmin()] for kind in defects]
shown = [int(i) for i in (*faint, np.flatnonzero(kinds == "good")[0])]
images, masks = data.test.images(shown), data.test.masks()[shown]
titles = [data.test.defects[i] for i in shown]
with torch.no_grad():
    phi = decoder.residuals(small.test.images(shown))

# %% mystnb={"figure": {"caption": "HFR on linen: of each kind of defect the one that it finds least. The fine residual is speckled all over, and faint defects drown in it.", "name": "fig-sgfr-hfr"}, "image": {"alt": "Residual panel of HFR for five defects of linen and one good piece. The fine residual map is speckled all over, in the good piece too, and most of the faint defects do not stand out of the sum."}} tags=["hide-input"]
plots.residual_panel(
    small.test.images(shown), small.test.masks()[shown], phi, decoder_maps[shown], decoder_scores[shown],
    decoder.threshold.item(), titles,
)

# %% [markdown]
# In {numref}`fig-sgfr-hfr` $\phi_1$ is speckled all over, in the good piece too. Yet nothing about linen is hard: the same few patches of it come again and again. So forget about *predicting* a
# feature, and *remember*: keep normal features in a bank, and compare each new feature with the most similar one kept. That is the memory bank of PatchCore {cite:p}`roth2022patchcore`.
# It needs no training. SGFR's authors name its weakness: such methods rely on the finite resources stored. A normal feature that is not among them, *out-of-bank*, looks as strange as a defect, and storing
# more costs memory and time.
#
# SGFR's answer is to let the stored features *combine*. The rest of this chapter says when that works, how to do it fast, and what it must not be allowed to do.
#
# ```{admonition} Take-away
# :class: note
# A texture cannot be foretold from a coarse code, but its patches recur: store some, and rebuild the others from them.
# ```

# %% [markdown]
# ## Derivation
#
# {numref}`fig-sgfr-architecture` shows what is stored when the method is fitted, and what is done with a new image.

# %% tags=["hide-input"]
box, arrow = diagram.box, diagram.arrow
boxes = [
    box(20, 8, 170, "good images", "image"), box(350, 8, 160, "image x", "image"), box(20, 72, 490, "backbone, one for both", "frozen"),
    box(20, 136, 170, "normal features x_j", "features"), box(350, 136, 160, "data point y", "features"),
    box(20, 200, 170, "add what is rebuilt\nworst, again and again", "step"), box(20, 281, 170, "bank M, m atoms", "stored"),
    box(350, 281, 160, "pursuit: k atoms\nand their weights c", "step"), box(350, 362, 160, "M^{⊤}c", "rebuilt"), box(350, 426, 160, "e = y − M^{⊤}c", "residual"),
    box(20, 426, 170, "ē_l, P_l: mean and\nspread of normal e", "stored"), box(350, 490, 160, "s_l, in normal units", "residual"), box(350, 554, 160, "map A, score s", "map"),
]
arrows = [arrow(f"{x},{y} {x},{y + 28}") for x, y in ((105, 42), (430, 42), (105, 106), (430, 106), (105, 170), (430, 396), (430, 460), (430, 332))]
arrows += [
    arrow("105,251 105,279"), arrow("190,298 348,298", "M", (262, 291)), arrow("430,170 430,279"), arrow("510,153 524,153 524,443 512,443"),
    arrow("190,451 260,451 260,507 348,507"), arrow("430,524 430,552", "mean of the logarithms of all levels", (422, 544), "end"),
]

# %% mystnb={"figure": {"caption": "SGFR at one level. Left: fitting chooses a bank of atoms among normal features, and measures on held-out good images what the bank leaves of them. Right: a data point of a new image is rebuilt by a few atoms, and what is left is measured in units of what is normally left.", "name": "fig-sgfr-architecture"}} tags=["hide-input"]
DESCRIPTION = (
    "Diagram. Good images and a new image pass the same frozen backbone. From normal features a fixed rule adds, again and again, the one that is rebuilt worst: the stored "
    "bank. A data point of the new image is rebuilt by a pursuit from a few atoms of the bank. The data point less the rebuilt one is the residual, which is measured by "
    "the stored mean and spread of normal residuals, and joined over levels to the map and the score."
)
HTML(diagram.figure(boxes + arrows, 532, 596, DESCRIPTION))

# %% [markdown]
# ### Data points
#
# The frozen backbone gives feature maps $f^{\,l}$ at three levels $l$ ◇, of strides 4, 8 and 16; the finest is averaged to the grid of the *reference level*, that of stride 8 ◇. A *data point* is what is rebuilt as a whole. What the paper takes for one could not be read; three readings
# are consistent with its words ◇:
#
# $$
# \begin{gathered}
# y = \frac{v}{\lVert v\rVert_2 + \tau_l}, \\
# v = \begin{cases}
# f^{\,l}(p) \in \mathbb R^{c_l} & \textit{patch}\text{: one location } p,\\
# \operatorname{vec} f^{\,l} \in \mathbb R^{c_l h_l w_l} & \textit{map}\text{: the whole map,}\\
# f^{\,l}(p) \in \mathbb R^{c_l} & \textit{position}\text{: } p\text{, with its own bank.}
# \end{cases}
# \end{gathered}
# $$ (sgfr-readings)
#
# Under *position* the bank at $p$ holds the features that normal images have at the same $p$. We take *patch* unless something else is said; the results below say what speaks for it. Dividing by the length cancels a common factor of all channels, such as much of a change of contrast, and with $\tau_l = 0$ it leaves unit vectors, whose residuals
# lie between 0 and 1. But where there is next to nothing to see, on an empty background, the direction of a feature is noise, and a unit vector makes that noise as long as anything else: so we add a length $\tau_l$ ◇, three tenths of the median length of the level's normal features, and short features stay short. The chapter on HFR shows what that is about ({eq}`hfr-soft`). For the derivations that follow think of $\tau_l = 0$, as it is in the next cell, before anything is fitted.
# At the reference and finer levels each feature is first averaged with its eight neighbours ◇ ({py:meth}`~uad_core.methods.sgfr.SGFR.levels`).

# %% tags=["nbval-check-output"]
levels = detector.levels(features.batch(slice(0, 2), detector.device))
points = to_points(levels[ref], "patch")
print("two images, reference level:", tuple(levels[ref].shape), "->", tuple(points.shape), "data points (G, n, d)")
print(f"their lengths: {points.norm(dim=2).min():.3f} to {points.norm(dim=2).max():.3f}")

# %% [markdown]
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: to_points
# :lineno-match:
# :caption: Equation {eq}`sgfr-readings` in `uad_core.methods.sgfr`
# ```
#
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: arrange
# :lineno-match:
# :caption: The three readings of equation {eq}`sgfr-readings`
# ```
#
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: soften
# :lineno-match:
# :caption: The soft norm of equation {eq}`sgfr-readings`
# ```
#
# ### Why a point is a combination of a few others
#
# A network that describes patches by, say, 48 numbers does not use them freely. Turn a thread, shift it, let the lamp fade: the feature moves along a few directions. Suppose that normal features lie in a *union of subspaces*
# $S_1 \cup \dots \cup S_P$ of $\mathbb R^d$, with dimensions $d_i = \dim S_i$ much smaller than $d$. A bank is a matrix $M \in \mathbb R^{m\times d}$ whose rows $m_1, \dots, m_m$, the *atoms*, are normal features of length 1.
#
# ```{prf:theorem} Self-expression
# :label: sgfr-self-expression
# Let $y \in S_i$, and let the bank contain $d_i$ linearly independent atoms of $S_i$. Then there is a $c \in \mathbb R^m$ with $y = M^\top c$ and at most $d_i$ nonzero entries.
# If moreover the subspaces are independent, that is $\dim(S_1 + \dots + S_P) = d_1 + \dots + d_P$, then *every* sparsest such $c$ uses atoms of $S_i$ only.
# ```
#
# ```{prf:proof}
# *Existence.* $d_i$ linearly independent vectors of a $d_i$-dimensional space are a basis of it. So $y \in S_i$ is a combination of them; give all other atoms the weight 0.
#
# *Own subspace only.* Two independent subspaces meet only in 0, because $\dim(S_j \cap S_k) = d_j + d_k - \dim(S_j + S_k) = 0$. Atoms have length 1, so each lies in exactly one $S_j$. Let $y = M^\top c$, and let $u_j = \sum_{a\,:\,m_a \in S_j} c_a m_a \in S_j$ be what the atoms of $S_j$ contribute. Then $\sum_j u_j = y$, hence
#
# $$
# (u_i - y) + \sum_{j \ne i} u_j = 0, \qquad u_i - y \in S_i,\quad u_j \in S_j .
# $$
#
# Independence means that a sum of vectors, one out of each $S_j$, is zero only if each of them is zero: joining bases of all $S_j$ gives $d_1 + \dots + d_P$ vectors that span a space of that dimension, so they are linearly independent. Hence $u_i = y$ and $u_j = 0$
# for $j \ne i$. If $c$ had a nonzero weight on an atom of some $S_j$, $j \ne i$, we could set all weights on $S_j$ to zero, still have $y = M^\top c$, and have fewer nonzero entries. So a sparsest $c$ has none.
# ```
#
# The first half says that few atoms suffice. The second says why *sparse* is the right thing to ask for: the sparsest combination explains a feature by features of its own kind. Points that are expressed by each other are called *self-expressive*; that SGFR rebuilds features from the bank by such a model is the paper's. Independence asks much: $d_1 + \dots + d_P \le d$. Real features need not be so kind; the first half of the theorem holds in any case.
#
# The paper illustrates it with points on one plane in space. Here is that picture, computed.

# %%
generator = torch.Generator().manual_seed(SEED)
plane = torch.linalg.qr(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.5]]))[0]  # (3, 2), orthonormal columns
cloud = torch.nn.functional.normalize(torch.randn(500, 2, generator=generator), dim=1) @ plane.T  # (500, 3)
chosen = subspace_sample(cloud, 20, k=2)
normal = torch.linalg.cross(plane[:, 0], plane[:, 1])
odd = torch.nn.functional.normalize(0.8 * cloud[7] + 0.6 * normal, dim=0)  # a point off the plane
rebuilt = matching_pursuit(torch.cat([cloud, odd[None]])[None], cloud[chosen][None], k=2)

# %% tags=["nbval-check-output"]
print(f"of 500 points on the plane the sampler keeps {len(chosen)}")
assert rebuilt.energy[0, :500].max().item() < 1e-6  # on the plane nothing is left but rounding
print(f"residual of the point off the plane: {rebuilt.energy[0, 500].sqrt().item():.2f}")

# %% mystnb={"figure": {"caption": "Points on a plane in space. Two atoms, combined, reach all of them; a point off the plane keeps the part that sticks out.", "name": "fig-sgfr-plane"}, "image": {"alt": "A grey plane in three dimensions with a ring of blue points on it, two green arrows from the origin to two of them, and an orange point above the plane joined to its projection by a line."}} tags=["hide-input"]
scene = plots.figure(3.6)
space = scene.add_subplot(projection="3d")
corners = torch.tensor([[-1.2, -1.2], [1.2, -1.2], [1.2, 1.2], [-1.2, 1.2]]) @ plane.T
space.plot_trisurf(*corners.numpy().T, triangles=[[0, 1, 2], [0, 2, 3]], color="#999999", alpha=0.25)
space.scatter(*cloud[:120].numpy().T, s=8, color=plots.COLOURS["normal"], label="normal, not stored")
for atom in cloud[chosen].numpy():
    space.quiver(0, 0, 0, *atom, color="#009E73", linewidth=2.5, arrow_length_ratio=0.12)
foot = odd - rebuilt.residual[0, 500]
space.plot(*torch.stack([odd, foot]).numpy().T, color=plots.COLOURS["anomalous"], linestyle="--")
space.scatter(*odd.numpy()[:, None], s=40, color=plots.COLOURS["anomalous"], marker="^", label="off the plane")
space.plot([], [], color="#009E73", linewidth=2.5, label="the two atoms")
space.set(xlabel="x", ylabel="y", zlabel="z", xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[-1, 0, 1])
space.view_init(24, -60)
space.legend(loc="upper left", bbox_to_anchor=(-0.45, 1))
scene

# %% [markdown]
# The dashed line in {numref}`fig-sgfr-plane` is the residual: what is left of a point when the best combination is taken away. It has the length 0.6 that we gave it.
#
# ### What the nearest neighbour cannot do
#
# Take away the combination and allow a single atom with a free weight, $\min_{j, c}\lVert y - c\,m_j\rVert_2^2$. For unit vectors the best weight is $c = \langle y, m_j\rangle$, because
#
# $$
# \begin{aligned}
# \lVert y - c\,m_j\rVert_2^2 &= 1 - 2c\langle y, m_j\rangle + c^2 \\
# &= 1 - \langle y, m_j\rangle^2 + (c - \langle y, m_j\rangle)^2 ,
# \end{aligned}
# $$ (sgfr-one-atom)
#
# and what remains is $1 - \langle y, m_j\rangle^2$, the squared sine of the angle to the atom's line. The squared distance to the atom itself is $\lVert y - m_j\rVert_2^2 = 2 - 2\langle y, m_j\rangle$. Both fall as $\langle y, m_j\rangle$ grows from 0 to 1. So as long as every feature has some atom at less than a right angle and none more nearly opposite, both name the same nearest atom and put all features into the same order:
# **the nearest neighbour is SGFR with one atom per feature.** For features of one product, which share a large mean, that is so (the next cell asserts it for two images of this page).

# %% tags=["hide-input"]
products = points[0, : points.shape[1] // 2] @ points[0, points.shape[1] // 2 :].T  # of one image with the other
holds((products.amax(1) > -products.amin(1)).all(), products.amax(1).min() > 0)

# %% [markdown]
# How many atoms does the nearest neighbour need? Let normal features fill the unit circle of a plane. One atom leaves a residual of length at most $\sin\varepsilon$ on points up to an angle $\varepsilon$ away from its line: on an arc of length $2\varepsilon$ around the atom, and on the opposite one. Up to the sign, half a circle of length $\pi$ is to be covered, which takes
#
# $$
# m \;\ge\; \frac{\pi}{2\varepsilon}
# $$ (sgfr-cover)
#
# atoms: sixteen for a residual of length 0.1. Combinations of two atoms need *two*, and leave nothing. On the unit sphere of a $D$-dimensional subspace, what lies within $\varepsilon$ of a line is a share of order $\varepsilon^{D-1}$. So every further dimension multiplies the first number by about $1/\varepsilon$, while the second grows by one.
#
# Real features lie in no subspace exactly. So we test the claim where we know the truth: twelve subspaces of four dimensions in $\mathbb R^{64}$, some noise, and anomalies that are normal points pushed off their subspace. Three samplers choose the bank; {ref}`sgfr-what-to-store` has more on them. *Random* explains itself. The *greedy coreset* adds, again and again, the point
# farthest from its nearest chosen one, and *subspace* the point that the present bank rebuilds worst. With 48 atoms the theorem would be content if every subspace had exactly four of them; no sampler hits that.

# %%
def union_of_subspaces(count, generator, bases, shift=0.0):
    """Unit points (count, 64) near a union of subspaces, each pushed off it by `shift`."""
    which = torch.randint(len(bases), (count,), generator=generator)
    inside = torch.einsum("nk,nkd->nd", torch.randn(count, 4, generator=generator), bases[which]) / 2  # length about 1
    noise = 0.01 * torch.randn(count, 64, generator=generator)
    push = torch.nn.functional.normalize(torch.randn(count, 64, generator=generator), dim=1)
    return torch.nn.functional.normalize(inside + noise + shift * push, dim=1)


generator = torch.Generator().manual_seed(SEED)
bases = torch.linalg.qr(torch.randn(12, 64, 4, generator=generator))[0].mT  # (12, 4, 64)
stock = union_of_subspaces(4000, generator, bases)
trial = torch.cat([union_of_subspaces(1000, generator, bases, shift) for shift in (0.0, 0.35)])
truth = np.repeat([False, True], 1000)

# %%
def separation(chosen, k):
    """AUROC of the residual of k combined atoms on the trial points."""
    energy = matching_pursuit(trial[None], stock[chosen][None], k).energy[0]
    return metrics.auroc(energy.numpy(), truth)


samplers = {
    "subspace": lambda m: subspace_sample(stock, m, k=4),
    "coreset": lambda m: greedy_coreset(stock, m),
    "random": lambda m: random_sample(stock, m, torch.Generator().manual_seed(SEED)),
}
rows = []
for name, sample in samplers.items():
    for m in (48, 96, 192, 480):
        bank = sample(m)
        rows += [{"atoms": m, "sampler": name, "k": k, "AUROC": separation(bank, k)} for k in (1, 4)]
toy = pd.DataFrame(rows)

# %% mystnb={"figure": {"caption": "Twelve subspaces in 64 dimensions. Four atoms, combined, tell points on them from points beside them with a bank in which the nearest atom is of little help.", "name": "fig-sgfr-toy"}, "image": {"alt": "AUROC against the number of atoms. Three lines for combinations of four atoms rise to nearly 100 percent at 192 atoms; three lines for the nearest atom rise slowly from 57 to 85 percent."}} tags=["hide-input"]
toy["bank"] = [f"{s}, {'nearest' if k == 1 else 'four combined'}" for s, k in zip(toy["sampler"], toy["k"])]
rising = plots.line_with_band(toy.sort_values("k"), "atoms", "AUROC", "bank", logx=True, xlabel="atoms in the bank")
rising.axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
rising

# %% tags=["hide-input"]
at_96 = toy[toy["atoms"] == 96].pivot(index="sampler", columns="k", values="AUROC")
assert (at_96[4] > 0.85).all() and (at_96[1] < 0.7).all()

# %% [markdown]
# That is the paper's central claim, and in {numref}`fig-sgfr-toy`, where the points do lie near subspaces, it holds: *despite the limited resources in the memory bank*, features that are not in it are reached. With 96 atoms the AUROC of four combined is above .85 for every sampler, that of the nearest one below .70. Note a second thing, to which we return: among the samplers the greedy coreset is not worse than the one that follows subspaces.
#
# ```{admonition} Take-away
# :class: note
# Near subspaces a few atoms, combined, reach all normal points; the nearest neighbour needs exponentially many.
# The nearest neighbour is the case of one atom.
# ```

# %% [markdown]
# ### Orthogonal matching pursuit ◇
#
# We want the best combination of at most $k$ atoms,
#
# $$
# \hat c = \arg\min_{c} \lVert y - M^\top c\rVert_2^2 \quad\text{subject to}\quad \lVert c\rVert_0 \le k ,
# $$ (sgfr-omp)
#
# where $\lVert c\rVert_0$ counts nonzero entries. Trying all $\binom{m}{k}$ sets of atoms is out of the question: with $m = 512$ and $k = 3$ there are 22 million. *Orthogonal matching pursuit* {cite:p}`pati1993omp` goes step by step. Start with the residual $r_0 = y$. In step $t$ take the atom that points most along what is left,
#
# $$
# j_t = \arg\max_j \bigl|\langle r_{t-1}, m_j\rangle\bigr| ,
# $$ (sgfr-greedy)
#
# and then choose *all* weights anew, so that the combination of the atoms taken so far is the best there is. That is a projection. Let $q_t$ be the part of $m_{j_t}$ that is orthogonal to the atoms taken before, scaled to length 1. Since $q_1, \dots, q_t$ are an orthonormal basis of the span of the atoms, the projection of $y$ on it is $\sum_{s\le t}\langle y, q_s\rangle q_s$, and
#
# $$
# \begin{aligned}
# r_t &= y - \sum_{s \le t}\langle y, q_s\rangle\, q_s = r_{t-1} - \langle r_{t-1}, q_t\rangle\, q_t , \\
# \lVert r_t\rVert_2^2 &= \lVert r_{t-1}\rVert_2^2 - \langle r_{t-1}, q_t\rangle^2 .
# \end{aligned}
# $$ (sgfr-project)
#
# In the second form $\langle y, q_t\rangle = \langle r_{t-1}, q_t\rangle$, as $y$ and $r_{t-1}$ differ by vectors orthogonal to $q_t$; the last equation is Pythagoras. Three properties can be read off:
#
# 1. *The residual is orthogonal to every atom taken.* If some atom still correlates with $r_{t-1} \ne 0$, the one taken is new and not in the span of those before, since everything there is orthogonal to $r_{t-1}$; so $q_t$ exists. If none does, the pursuit stops: nothing can be gained.
# 2. *The residual never grows*, whatever the bank.
# 3. *If the bank spans $\mathbb R^d$, the residual is zero after at most $d$ steps.* A nonzero vector cannot be orthogonal to all of $\mathbb R^d$, so the pursuit does not stop before, and by 1 each step adds a dimension. The section on dense combinations comes back to it.
#
# The weights come last. If $Q = (q_1 \cdots q_k)$ and the atoms taken are the columns of $B = QR$ with an upper triangular $R$, then $B c = QQ^\top y$ means $R c = Q^\top y$, which is solved from the last line upwards.
#
# Greedy steps need not lead to the best set of atoms, as {ref}`an exercise <sgfr-by-hand>` shows; for $k = 1$ they do. From here on, $\hat c$ and every minimum over $\lVert c\rVert_0 \le k$ mean what the pursuit finds.

# %% tags=["hide-input"]
def step_picture(axes, y, atoms, title, foot=None):
    """Draw y, two atoms, and what is left of y from the foot of a perpendicular."""
    for vector, colour, name in ((atoms[0], "#009E73", "$m_{j_1}$"), (atoms[1], "#56B4E9", "$m_{j_2}$"), (y, "black", "$y$")):
        axes.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
        axes.text(*(1.06 * vector), name, color=colour, ha="center")
    if foot is not None:
        axes.annotate("", y, foot, arrowprops={"arrowstyle": "->", "color": plots.COLOURS["anomalous"], "lw": 2})
        axes.text(*(0.5 * (y + foot) + [0.06, 0]), "$r_1$", color=plots.COLOURS["anomalous"])
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.75, 1.25), ylim=(-0.1, 1.2), aspect="equal", title=title, xticks=[], yticks=[])
    axes.grid(False)


y, first, second = (np.array([np.cos(a), np.sin(a)]) for a in np.radians([52, 18, 118]))

# %% mystnb={"figure": {"caption": "Two steps of the pursuit in the plane. Left: the atom most along y is taken, and the residual stands at a right angle to it. Right: the second atom is taken, both weights are solved for anew, and nothing is left.", "name": "fig-sgfr-omp"}, "image": {"alt": "Two panels. Left: three arrows from the origin and the residual as an arrow from the foot of the perpendicular on the first atom to y. Right: the parallelogram in which y is the sum of one weight times the first atom and another times the second."}} tags=["hide-input"]
geometry = plots.figure(2.9)
left, right = geometry.subplots(1, 2)
step_picture(left, y, (first, second), "step 1: take the atom most along $y$", (y @ first) * first)
step_picture(right, y, (first, second), "step 2: both weights anew")
weights = np.linalg.solve(np.stack([first, second], 1), y)
ends = weights[0] * first, weights[1] * second
for start, stop in ((np.zeros(2), ends[0]), (ends[0], y), (np.zeros(2), ends[1]), (ends[1], y)):
    right.plot(*np.stack([start, stop]).T, "--", color=plots.COLOURS["quiet"], linewidth=1.2)
right.text(*(ends[0] + [-0.05, -0.16]), f"{weights[0]:.2f} $m_{{j_1}}$", color="#007D5C")
right.text(*(ends[1] + [-0.42, -0.02]), f"{weights[1]:.2f} $m_{{j_2}}$", color="#2C7FB0")
geometry

# %% [markdown]
# In {numref}`fig-sgfr-omp` look at the first weight: the projection on $m_{j_1}$ alone, the foot of $r_1$, ends earlier. With the second atom present the weight is another one, because the two atoms are not orthogonal. *Orthogonal* matching pursuit corrects it; plain matching pursuit would not.
#
# These are the lines that do this for thousands of features at once. Only a product with the bank is needed in each step; no feature waits for another.
#
# ```{literalinclude} ../uad_core/methods/self_expression.py
# :pyobject: _pursue
# :lineno-match:
# :caption: Equations {eq}`sgfr-omp`, {eq}`sgfr-greedy` and {eq}`sgfr-project`, called by {py:func}`uad_core.methods.self_expression.matching_pursuit`
# ```
#
# ### Why a dense combination is blind
#
# Property 3 is a warning. A level of stride 8 has a few dozen channels, and a bank of more atoms than that will span them all (the next cell but one checks it). Then *every* vector, normal or not, is some combination of the bank, and the residual of the best one is zero. An unpenalised least-squares fit to the bank detects nothing at all.
#
# How fast does it go blind? Let $u$ be a feature without any relation to the atoms, a random direction in $\mathbb R^d$. Let $q_1, \dots, q_k$ be the basis of $k$ atoms that do not depend on $u$, completed to an orthonormal basis of $\mathbb R^d$. By symmetry all $\mathbb E\langle u, q_i\rangle^2$ are equal; they sum to $\lVert u\rVert_2^2 = 1$, so each is $1/d$. By {eq}`sgfr-project`, $\lVert r_k\rVert_2^2 = 1 - \sum_{i \le k}\langle u, q_i\rangle^2$, and
#
# $$
# \mathbb E\,\lVert r_k\rVert_2^2 = 1 - \frac{k}{d}.
# $$ (sgfr-blind)
#
# Every atom takes its share of any defect, whether it has to do with it or not, and *choosing* it by {eq}`sgfr-greedy` makes the share larger: the largest of the $\langle u, m_j\rangle^2$ is at least any one of them. Against that stands what an atom takes off a normal feature. As long as the normal residual falls faster, an atom pays; after that it only makes the detector blinder. We look at both on the page's own data, with $k$ from one to the number of channels.

# %%
detector.fit(features, progress=False)  # explained under "Fitting"
reference_test = detector.levels(test_features.batch(slice(None), detector.device))[ref]  # (N, C, h, w)
# A place counts as defective where more than half of the mask, brought to the grid, does.
inside = scoring.upsample(torch.from_numpy(data.test.masks()).float(), reference_test.shape[-2:]).flatten() > 0.5
every = to_points(reference_test, "patch")[0]
generator = torch.Generator().manual_seed(SEED)
normal_patches, defect_patches = (
    every[which][torch.randperm(int(which.sum()), generator=generator)[:600]] for which in (~inside, inside)
)

# %%
d = every.shape[1]
print(f"{d} channels; the bank spans {torch.linalg.matrix_rank(detector.banks[ref][0].cpu())} dimensions")
counts = sorted({1, 2, 3, 5, 8, 12, 16, 24, 32, d})
curve = []
for k in counts:
    both = [matching_pursuit(part[None], detector.banks[ref], k).energy[0].cpu() for part in (normal_patches, defect_patches)]
    labels = np.repeat([False, True], [len(part) for part in both])
    curve.append([k, *(part.mean().item() for part in both), metrics.auroc(torch.cat(both).numpy(), labels)])
curve = pd.DataFrame(curve, columns=["k", "normal", "defective", "AUROC"])

# %% mystnb={"figure": {"caption": "What more atoms in a combination do. Left: the squared residuals of normal and of defective patches both fall to zero. Right: the first atoms help to tell them apart, the last ones take it all away.", "name": "fig-sgfr-blind"}, "image": {"alt": "Two curves of mean squared residual on a logarithmic axis, defective above normal, both falling to rounding noise as k reaches the number of channels; beside them the AUROC, which rises, is highest for about ten atoms, and collapses at the end."}} tags=["hide-input"]
sheet = plots.figure(2.9)
left, right = sheet.subplots(1, 2)
for kind, mark in (("normal", "o-"), ("defective", "s--")):
    left.plot(curve["k"], curve[kind].clip(lower=1e-11), mark, markersize=4, label=kind)
left.set(xlabel="atoms in a combination, k", ylabel="mean squared residual", yscale="log", xscale="log", ylim=(1e-11, 1))
left.legend(loc="lower left")
right.plot(curve["k"], 100 * curve["AUROC"], "o-", markersize=4, color="#009E73")
right.axhline(50, color=plots.COLOURS["quiet"], linewidth=1)
right.set(xlabel="atoms in a combination, k", ylabel="AUROC of patches (%)", xscale="log", ylim=(30, 102))
for axes in (left, right):
    axes.set_xticks([1, 3, 8, 16, d], ["1", "3", "8", "16", str(d)])
    axes.minorticks_off()
sheet

# %% tags=["hide-input"]
few, all_of_them = curve.set_index("k")["AUROC"].loc[[3, d]]
holds(curve["defective"].iloc[-1] < 1e-6, few > all_of_them + 0.1)

# %% [markdown]
# Read {numref}`fig-sgfr-blind` from left to right. The first atoms take more, in proportion, from normal patches than from defective ones, and the AUROC rises; around ten it turns. At the right end both residuals are rounding noise: a combination that is not sparse sees nothing. That we stop earlier, at three, is for
# cost; {numref}`fig-sgfr-k` will show what the maps would gain.
#
# There is another way to be sparse: instead of counting atoms, make them cost. The *elastic net* does that. {ref}`The appendix <sgfr-elastic-net-section>` derives it and compares both on the patches of this page: the elastic net tells them apart better, and takes many times as long. For that time alone we use the pursuit ◇; `solver="elastic_net"` is the other choice.
#
# ```{admonition} Take-away
# :class: note
# Every further atom explains more of a defect too, $k/d$ of it at least; with as many atoms as channels nothing is left of anything.
# ```

# %% [markdown]
# (sgfr-what-to-store)=
# ### What to store
#
# The paper samples the bank so that it recovers the subspaces of the normal data, at a *reference level* of the network, and then uses nothing but this bank, at all levels. Taken at its word, the atoms of the other levels lie where those of the reference level do, and nobody asked whether they cover *their* level. We let each level choose its own atoms ◇; `banks="reference"` is the other reading. The rule is ours too ◇. It adds, again and again, the feature that the present bank rebuilds worst:
#
# $$
# j^* = \arg\max_{j}\ \min_{\lVert c\rVert_0 \le k} \bigl\lVert x_j - X_S^\top c \bigr\rVert_2^2, \qquad S \leftarrow S \cup \{j^*\} ,
# $$ (sgfr-sampling)
#
# where $x_j$ are the normal features of the level, $S$ is the set of those taken so far, and $X_S$ the matrix with the rows $x_j$, $j \in S$. A *greedy coreset* is the same rule with $k = 1$ and the plain distance: it adds the feature farthest from its nearest neighbour. The difference is what counts as *far*: from the nearest point, or from everything that can be combined.
#
# Computed as written, {eq}`sgfr-sampling` is hopeless: every new atom asks for a pursuit of every feature. But a new atom changes the path of a feature only if it beats, in some step, the atom that was taken there. So the sampler keeps all residuals $r_0, \dots, r_k$ of all features, compares them with the new atoms only, and searches again just where one of those wins. It begins with the feature nearest to the mean direction, takes up to eight of different residual directions at a time, and stops when no squared residual exceeds 0.01; on the plane of
# {numref}`fig-sgfr-plane` that was after two.
#
# ```{literalinclude} ../uad_core/methods/sampling.py
# :pyobject: subspace_sample
# :lineno-match:
# :caption: Equation {eq}`sgfr-sampling` in {py:func}`uad_core.methods.sampling.subspace_sample`
# ```
#
# ```{literalinclude} ../uad_core/methods/sampling.py
# :pyobject: _Paths.extend
# :lineno-match:
# :caption: New atoms are compared with what is kept, and paths searched again only where one of them wins
# ```
#
# ### From residuals to a map ◇
#
# What the pursuit leaves of a data point, $e^l_p = y^l_p - M_l^\top \hat c\,(y^l_p)$ (for the reading *map*, the part of it that belongs to the location), is measured by what it leaves of *normal* images that are not in the bank: with the mean $\bar e_l$ of what is left of these and a precision $P_l$, the inverse of their covariance, as {eq}`hfr-spread` defines and derives it,
#
# $$
# s_l(p) = (e^l_p - \bar e_l)^\top P_l\,(e^l_p - \bar e_l) .
# $$ (sgfr-residual)
#
# A direction in which normal features are always missed a little counts little, one in which they never are counts much. $P_l$ is scaled so that $s_l = 1$ means *as badly rebuilt as a normal feature on average*, at every level, and the levels can be joined. The mean of their logarithms keeps one level's huge value from drowning the others, and a level that rebuilds a place unusually well speaks for it:
#
# $$
# A(x) = \mathcal U \exp\Bigl(G_\sigma * \frac1L \sum_{l=1}^{L} \log \mathcal U_1 s_l\Bigr) .
# $$ (sgfr-map)
#
# Here $L = 3$ is the number of levels, $\mathcal U_1$ brings a map to the reference grid and $\mathcal U$ to the size of the image, both bilinearly, and $G_\sigma$ smooths with a Gaussian of $\sigma = 4$ pixels. So $A(x)$ is a geometric mean, over the levels and over the neighbourhood of $x$. The image score is the mean of the largest 0.2 % of $A(x)$ ◇. As in the {ref}`previous chapter <chapter-hfr>` one normal image in eight is held out: $\bar e_l$, $P_l$ and the threshold of the verdict come from images that gave no atoms. That there are scores at several levels is the paper's.
#
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: SGFR.missed
# :lineno-match:
# :caption: What the pursuit leaves, as maps
# ```
#
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: SGFR.map_residuals
# :lineno-match:
# :caption: Equation {eq}`sgfr-residual` in {py:meth}`uad_core.methods.sgfr.SGFR.map_residuals`
# ```
#
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: SGFR.fuse
# :lineno-match:
# :caption: Equation {eq}`sgfr-map` in {py:meth}`uad_core.methods.sgfr.SGFR.fuse`
# ```
#
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: SGFR.calibrate
# :lineno-match:
# :caption: The normal misses of equation {eq}`sgfr-residual`
# ```
#
# ```{admonition} Take-away
# :class: note
# The bank takes, again and again, the feature that it rebuilds worst.
# A residual is measured by what is left of held-out good images; levels are joined by the mean of their logarithms.
# ```

# %% [markdown]
# ## Implementation
#
# The pursuit for *one* feature fits into ten lines. We write it down once, and compare it with the package, and with scikit-learn, on features of this page's data.

# %%
def pursue(y, atoms, k):
    """Orthogonal matching pursuit of y (d,) in atoms (m, d), by equations (sgfr-greedy) and (sgfr-project)."""
    r, basis = y, []
    for _ in range(k):
        j = (atoms @ r).abs().argmax()
        q = atoms[j]
        for b in basis:
            q = q - (q @ b) * b
        q = q / q.norm()
        r = r - (r @ q) * q
        basis.append(q)
    return r


# %% tags=["nbval-check-output"]
atoms = detector.banks[ref][0].cpu().double()
some = defect_patches[:20].cpu().double()
ours = torch.stack([pursue(y, atoms, 3) for y in some])
package = matching_pursuit(some[None], atoms[None], 3)
theirs = orthogonal_mp(atoms.T.numpy(), some.T.numpy(), n_nonzero_coefs=3)  # (m, n)
left_over = some.T.numpy() - atoms.T.numpy() @ theirs  # (d, n)
print("points", tuple(some.shape), "index", tuple(package.index[0].shape), "weights", tuple(package.weights[0].shape))
assert torch.allclose(ours, package.residual[0], atol=1e-8)  # one by one and all at once
assert np.allclose(left_over, package.residual[0].T.numpy(), atol=1e-8)  # scikit-learn

# %% [markdown]
# The class {py:class}`uad_core.methods.sgfr.SGFR` adds the bank to that. These lines fit it.
#
# ```{literalinclude} ../uad_core/methods/sgfr.py
# :pyobject: SGFR.learn
# :lineno-match:
# :caption: Candidates, and the choice among them at every level
# ```
#
# Which settings are ours is written beside each of them; with this method, that is all of them, since none of its numbers could be read.

# %%
settings = [
    (field.name, str(getattr(detector.config, field.name)), field.metadata["mark"], field.metadata["note"])
    for field in dataclasses.fields(detector.config)
]
HTML(pd.DataFrame(settings, columns=["setting", "value", "status", "meaning"]).to_html(index=False))

# %% [markdown]
# ```{admonition} Take-away
# :class: note
# One step of the pursuit is a product with the bank and a projection; all features take it at once.
# ```

# %% [markdown]
# ## Fitting
#
# Nothing is trained. Fitting means: hold out one normal image in eight, draw candidates from the others, choose a bank among them at each level, and measure on the held-out images what is missed of normal ones.

# %%
start = time.perf_counter()
detector.fit(features, progress=False)
patches = features.levels[ref][:, 0].numel()
print(f"fitted in {time.perf_counter() - start:.1f} s, the features aside")
print(f"bank: {len(detector.origins[ref])} of {patches} patches at each level, {detector.bank_bytes / 1000:.0f} kB")

# %% [markdown]
# Where a trained method shows a loss that falls with the epochs, this one shows how badly normal features are rebuilt while the bank grows. The features that are rebuilt are those of the *test* images that are normal, so the bank has not seen them.

# %%
normal_test = to_points(reference_test[torch.from_numpy(~data.test.labels)], "patch")[0]
pool = torch.cat([to_points(detector.levels(features.batch(part, detector.device))[ref], "patch")[0]
                  for part in torch.arange(len(features)).split(16)])
pool = pool[torch.randperm(len(pool), generator=generator)[:10_000]]
largest = {
    "subspace": subspace_sample(pool, 512, 3), "coreset": greedy_coreset(pool, 512),
    "random": random_sample(pool, 512, torch.Generator().manual_seed(SEED)),
}

# %%
growth = [
    {"atoms": m, "bank": f"{name}, {'nearest' if k == 1 else 'three combined'}",
     "residual": matching_pursuit(normal_test[None], pool[order[:m]][None], k).energy.mean().item()}
    for name, order in largest.items() for m in (8, 32, 128, 512) for k in ((1, 3) if name == "random" else (3,))
]

# %% mystnb={"figure": {"caption": "Mean squared residual of normal features that the bank has not seen, as the bank grows.", "name": "fig-sgfr-growth"}, "image": {"alt": "Four falling lines against the number of atoms. The nearest of random atoms stays highest; three combined atoms leave less with a bank many times smaller, and least with the random bank."}} tags=["hide-input"]
falling = plots.line_with_band(
    pd.DataFrame(growth), "atoms", "residual", "bank", logx=True, percent=False, xlabel="atoms in the bank",
    ylabel="mean squared residual",
)
falling.axes[0].set_ylim(bottom=0)
falling

# %% [markdown]
# Compare in {numref}`fig-sgfr-growth` the two lines of the random bank. *Before you read on:* how many atoms does the nearest neighbour need to rebuild normal features as well as three combined ones of a bank of 32 do?

# %% tags=["hide-input"]
grown = pd.DataFrame(growth).pivot(index="bank", columns="atoms", values="residual")
holds(grown.loc["random, three combined", 32] < grown.loc["random, nearest", 512], grown[512].idxmin() == "random, three combined")
grown.style.format("{:.3f}")

# %% [markdown]
# ```{admonition} What came out
# :class: dropdown
# More than 512: the nearest of so many random atoms leaves more than three combined ones out of 32.
# ```
#
# Notice too which sampler leaves the least *on average* at the end: the random one. A rule that always takes the worst-rebuilt feature spends its atoms on rare ones; the
# average is made of frequent ones. Which of the two a map needs will show in the results.

# %% [markdown]
# ### A patch, rebuilt
#
# What do the atoms look like? Every atom remembers from which image and place it came. Here are a normal and a defective patch with the five atoms that rebuild each, and the weights (a detector with $k = 5$, which chooses its own bank).

# %% tags=["hide-input"]
five = uad_core.create("sgfr", profile=PROFILE, seed=SEED, k=5).fit(features, progress=False)


def window(image, place, grid, size=48):
    """The pixels (size, size, 3) around a place of the reference grid, moved inwards at the border."""
    stride, edge = image.shape[-1] // grid, image.shape[-1] - size
    top, left = (min(max(stride * c + (stride - size) // 2, 0), edge) for c in divmod(int(place), grid))
    return image[:, top : top + size, left : left + size].permute(1, 2, 0).numpy()


def atoms_of(image, place):
    """The windows of a test patch and of its five atoms, and their titles."""
    f = five.levels(test_features.batch(slice(image, image + 1), five.device))
    grid, found = f[ref].shape[-1], five.express(f)[ref]
    index, weights = found.index[0, place].tolist(), found.weights[0, place].tolist()
    origins = five.origins[ref][index].tolist()
    pictures = [window(data.train[i], p, grid) for i, p in origins]
    length = found.energy[0, place].sqrt().item()
    return [window(data.test[image], place, grid), *pictures], [f"residual {length:.2f}", *(f"{w:+.2f}".replace("-", "−") for w in weights)]


# %% tags=["hide-input"]
s_ref = five.map_residuals(test_features.batch(slice(None), five.device))[f"s_{ref + 1}"].cpu()  # (N, h, w)
outlined = scoring.upsample(torch.from_numpy(data.test.masks()).float(), s_ref.shape[-2:]) > 0.5
worst = int((s_ref * outlined).flatten().argmax())
cells = s_ref[0].numel()
good = int(np.flatnonzero(~data.test.labels)[0])
typical = int((s_ref[good].flatten() - s_ref[good].median()).abs().argmin())
strips = [atoms_of(good, typical), atoms_of(worst // cells, worst % cells)]

# %% mystnb={"figure": {"caption": "Two patches of test images (left) and the five atoms that rebuild each, with their weights. Above a normal patch, below the defective one that is rebuilt worst.", "name": "fig-sgfr-atoms"}, "image": {"alt": "Two rows of six small pictures. Above, a normal patch and five normal patches that resemble it, the first with the largest weight. Below, a patch with a defect and five normal patches, none of which shows the defect; the residual is larger."}} tags=["hide-input"]
strip = plots.figure(2.7)
for row, (pictures, names) in zip(strip.subplots(2, 6), strips):
    for column, (axes, picture, name) in enumerate(zip(row, pictures, names)):
        axes.imshow(picture)
        axes.set_title(name, fontsize=9, weight="bold" if column == 0 else "normal")
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
strip

# %% [markdown]
# In the upper row of {numref}`fig-sgfr-atoms` the first atom does most of the work, and the others correct it: a little more of this, a little less of that, which is what a nearest neighbour cannot do. In the lower row the pursuit finds little: large weights of both signs that nearly cancel, and a residual several times as long. It combines what it has, and the defect is not in it.
#
# The same, for whole feature maps. Their channels are more than an eye can take, so we show the three directions of largest variance among normal features as red, green and blue. The border is left out: there the network sees the zeros that it pads images with, which are unlike anything inside.

# %% tags=["hide-input"]
pairs = detector.reconstruct(test_features.batch(torch.tensor(shown), detector.device))
target, rebuilt_maps = (f[..., 2:-2, 2:-2].cpu() for f in pairs[ref])  # (N, C, h, w)
everyday = torch.nn.functional.normalize(reference_test[torch.from_numpy(~data.test.labels)][..., 2:-2, 2:-2], dim=1).cpu()
flat = everyday.permute(0, 2, 3, 1).flatten(0, 2)  # (n, C)
centre, axes3 = flat.mean(0), torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:3]  # (C,), (3, C)
low, high = ((flat - centre) @ axes3.T).quantile(torch.tensor([0.02, 0.98]), dim=0)


def colours(f):
    """Project features (N, C, h, w) on three directions and bring them to [0, 1], all on one scale."""
    three = (f.permute(0, 2, 3, 1) - centre) @ axes3.T
    return ((three - low) / (high - low)).clamp(0, 1).numpy()


# %% mystnb={"figure": {"caption": "Features of the reference level as colours: what the network sees, what a few atoms make of it, and the length of the difference, which the three colours show only a part of.", "name": "fig-sgfr-colours"}, "image": {"alt": "Four rows for five defects and one good image: the image, its features as colours, their reconstruction in similar but flatter colours, and the length of the difference, which is largest on the defects, except for the stain, where it does not stand out."}} tags=["hide-input"]
rows = {
    "image": images.permute(0, 2, 3, 1).numpy(), "features": colours(target), "rebuilt": colours(rebuilt_maps),
    "difference": (target - rebuilt_maps).norm(dim=1).numpy(),
}
colour_sheet = plots.figure(4.6)
for row, (name, pictures) in zip(colour_sheet.subplots(4, len(shown)), rows.items()):
    for axes, picture, title in zip(row, pictures, titles):
        axes.imshow(picture, vmin=0, vmax=rows["difference"].max(), cmap=plots.MAP_COLOURS)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        if name == "image":
            axes.set_title(title.replace("_", "\n"), fontsize=8)
    row[0].set_ylabel(name)
colour_sheet

# %% [markdown]
# The rebuilt colours of {numref}`fig-sgfr-colours` follow those of the features on sound cloth. On a defect they follow too, as far as they can: combining normal features is no guarantee of a normal-looking result in three of so many dimensions. What gives the defect away is the part that is missing in *all* dimensions, the last row.
#
# ```{admonition} Take-away
# :class: note
# Fitting takes seconds: candidates, a choice among them, and what is left of held-out good images.
# Three combined atoms rebuild sound cloth from a bank many times smaller than the nearest atom needs.
# ```

# %% [markdown]
# ## Residual maps

# %%
maps, scores = detector.predict(test_features, progress=False)
with torch.no_grad():
    residuals = detector.map_residuals(test_features.batch(torch.tensor(shown), detector.device))

# %% mystnb={"figure": {"caption": "The residual panel: image, mask, the residual maps of three levels, the anomaly map and the verdict. A residual of 1 is that of an average normal feature.", "name": "fig-sgfr-panel"}, "image": {"alt": "For five defects and one good piece of linen: the image, its mask, the residual maps of the three levels from fine to coarse, the anomaly map with the outline of the mask, and the verdict."}} tags=["hide-input"]
plots.residual_panel(images, masks, residuals, maps[shown], scores[shown], detector.threshold.item(), titles)

# %% [markdown]
# Compare {numref}`fig-sgfr-panel` with {numref}`fig-sgfr-hfr`. Beside the defects the weave is fainter on the fine level, since its patches recur and the bank holds them. $s_1$ and $s_2$ outline, $s_3$ is coarse but sees more of the surroundings, and their geometric mean keeps what each finds. The comparison of the two figures is not fair, since the images were picked where HFR does worst; {ref}`Side by side <data-measured>` compares both on all images.
#
# The worst cases of SGFR itself: the defective images with the lowest scores, and the normal ones with the highest.

# %%
order = np.argsort(scores)
worst = [i for i in order if data.test.labels[i]][:3] + [i for i in order[::-1] if not data.test.labels[i]][:2]
with torch.no_grad():
    worst_residuals = detector.map_residuals(test_features.batch(torch.tensor(worst), detector.device))

# %% mystnb={"figure": {"caption": "The worst cases: three defects with the lowest scores and two normal images with the highest.", "name": "fig-sgfr-worst"}, "image": {"alt": "Residual panel of the three hardest defective images and the two most suspicious normal images."}} tags=["hide-input"]
plots.residual_panel(
    data.test.images(worst), data.test.masks()[worst], worst_residuals, maps[worst], scores[worst],
    detector.threshold.item(), [data.test.defects[i] for i in worst],
)

# %% mystnb={"figure": {"caption": "Scores of all test images. The dashed line is the threshold from held-out normal images.", "name": "fig-sgfr-scores"}, "image": {"alt": "Histogram of image scores of normal and defective test images with the threshold as a dashed line."}} tags=["hide-input"]
plots.score_histogram(scores, data.test.labels, detector.threshold.item())

# %% [markdown]
# Mind the scale of {numref}`fig-sgfr-worst`, which is not that of {numref}`fig-sgfr-panel`: these maps are what normal variation looks like, and {numref}`fig-sgfr-scores` shows the same defects to the left of the threshold. One good piece lies above it: its border, where the network sees padding, is brighter than the stains. Ask of each of them what the network could have seen: a defect that only darkens a texture leaves its features in the span of the normal ones.
#
# ```{admonition} Take-away
# :class: note
# The weave is faint beside the defects, since its patches recur.
# What is missed darkens a texture without changing its threads.
# ```
#
# ## Results
#
# First the run that you have just seen, beside banks of the same size whose atoms were drawn at random, with combinations ($k = 3$) and with the nearest atom alone ($k = 1$), and beside a bank whose atoms lie, at every level, where those of the reference level do. {doc}`../book/metrics` defines the measures.

# %%
def evaluated(**settings):
    """The metrics of SGFR with some settings changed, on the page's data."""
    model = uad_core.create("sgfr", profile=PROFILE, seed=SEED, **settings).fit(features, progress=False)
    found_maps, found_scores = model.predict(test_features, progress=False)
    return metrics.evaluate(found_scores, data.test.labels, found_maps, data.test.masks())


measured = {
    "subspace bank, combined": metrics.evaluate(scores, data.test.labels, maps, data.test.masks()),
    "random bank, combined": evaluated(sampler="random"), "random bank, nearest": evaluated(sampler="random", k=1),
    "subspace bank, the reference's places": evaluated(banks="reference"),
}
pd.DataFrame(measured).T.style.format("{:.3f}")

# %% tags=["hide-input"]
aupro = {name: values["aupro"] for name, values in measured.items()}
holds(aupro["random bank, combined"] > aupro["random bank, nearest"], aupro["subspace bank, combined"] > aupro["random bank, combined"])

# %% [markdown]
# By AUPRO, on this product and with this seed, combined atoms are ahead of the nearest one of the same bank. The random bank had the smallest mean residual in {numref}`fig-sgfr-growth`, and by AUPRO its map is poorer than that of the subspace bank. A map is judged by its worst normal places, not by its average: rare normal features, such as those at the border, are what a random bank lacks and what a sampler of the worst-rebuilt stores. The last row is close to the first: that each level chooses its own atoms gains nothing on this product.
#
# Nowhere are they rarer than on a small object before a large empty background. The built-in category `tablet` is such a case: most patches show nothing but belt, and so do most of the atoms that are drawn at random. The same three samplers there:

# %%
tablets = datasets.load("procedural", "tablet", image_size=detector.image_size)
tablet_train, tablet_test = (
    uad_core.extract(detector.backbone, part, device=detector.device, progress=False) for part in (tablets.train, tablets.test)
)
on_tablets = {}
for sampler in ("subspace", "coreset", "random"):
    model = uad_core.create("sgfr", profile=PROFILE, seed=SEED, sampler=sampler).fit(tablet_train, progress=False)
    tablet_maps, tablet_scores = model.predict(tablet_test, progress=False)
    on_tablets[sampler] = metrics.evaluate(tablet_scores, tablets.test.labels, tablet_maps, tablets.test.masks())
pd.DataFrame(on_tablets).T.style.format("{:.3f}")

# %% tags=["hide-input"]
ap = {name: values["pixel_ap"] for name, values in on_tablets.items()}
holds(ap["random"] < min(ap["subspace"], ap["coreset"]))

# %% [markdown]
# Here both samplers that look for what is missing are ahead of the random one in pixel AP (one seed).
#
# ### How many atoms in a combination?
#
# The same random bank, so that nothing changes but $k$:

# %%
rows = []
for k in (1, 2, 3, 5, 10):
    found = evaluated(k=k, sampler="random")
    rows += [{"k": k, "measure": name, "value": found[key]} for name, key in
             (("image AUROC", "image_auroc"), ("pixel AP", "pixel_ap"), ("AUPRO", "aupro"))]

# %% mystnb={"figure": {"caption": "Accuracy against the number of combined atoms, with one and the same random bank.", "name": "fig-sgfr-k"}, "image": {"alt": "Three lines, image AUROC, AUPRO and pixel AP, against k from 1 to 10."}} tags=["hide-input"]
plots.line_with_band(pd.DataFrame(rows), "k", "value", "measure", xlabel="atoms in a combination, k", ylabel="measure (%)", logx=True)

# %% [markdown]
# In {numref}`fig-sgfr-k` no measure has stopped rising at ten atoms (on this product, with this one bank), but after the second atom the map gains little. The profiles `smoke` and `cpu` use three ◇, the larger ones five, since each further atom costs another pass over the bank, and by {eq}`sgfr-blind` a share of every defect.
#
# ### The ledger
#
# Longer runs, on real products. One figure for the paper could be found, on a leaderboard page: pixel AP on the magnetic tiles of MTD, its third benchmark. MTD has no published split, so a figure for it depends on which tiles were learnt from, and we repeat every run with several splits. Before we look: **we call our version in agreement if the mean over the splits lies within
# .05 of that figure.** The line is arbitrary, about what a change of network costs, but it is drawn beforehand.

# %%
ledger = tables.frame("sgfr")
runs = ledger[~ledger["settings"].fillna("").str.contains("atoms=")]
columns = {"dataset": "data", "category": "category", "settings": "settings", "source": "source", "image_auroc": "image AUROC",
           "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pixel_ap_sd": "± sd of AP", "aupro": "AUPRO",
           "aupro_sd": "± sd of AUPRO", "seeds": "seeds", "model_bytes": "model (bytes)",
           "features_s": "features (s)", "fit_s": "with fit (s)", "predict_ms_per_image": "ms/image"}
shown_runs = runs[list(columns)].rename(columns=columns)
HTML(shown_runs.to_html(index=False, na_rep="–", float_format=lambda v: f"{v:.3g}", border=0))

# %%
mtd = runs[runs["dataset"] == "mtd"]
paper = mtd.loc[mtd["source"].str.startswith("paper"), "pixel_ap"].iloc[0]
measured = mtd[mtd["source"] == "measured"].sort_values("n_seeds", ascending=False).drop_duplicates("settings")
for _, row in measured.iterrows():
    reading = row["settings"].removeprefix("reading=") or "patch"
    spread = f" ± {row['pixel_ap_sd']:.3f} over {row['n_seeds']} splits" if row["n_seeds"] > 1 else ", one split"
    gap = row["pixel_ap"] - paper
    verdict = "in agreement" if abs(gap) <= 0.05 else "not in agreement"
    print(f"{reading:8s} pixel AP {row['pixel_ap']:.3f}{spread}, {gap:+.3f} from {paper:.3f}: {verdict}")

# %% [markdown]
# By the line that was drawn, none is in agreement. The rows of *map* and *position* are of older code, with two levels and without the soft norm, so they cannot be held against *patch* to the point; on these tiles, where every piece has a texture of its own, the finest level adds more of what sound pieces are missed by than of defects. Both readings store whole maps, and *position* asks for aligned images, which screws and caplets are
# not. That decides it for a default: *patch* ◇. Which reading is the *paper's*, one figure cannot decide.
#
# Our network is a small one, where the field's habit is a WideResNet-50, whose weights must be downloaded; and tiles of very different shapes are squeezed to a square of 256 pixels. Settings were chosen on the book's development set as a whole, one for all products: a setting picked on the test images of MTD alone would agree better and prove nothing. Rows of older code, which the column of settings does
# not tell apart, stand in the table until they are run again; `uad ledger` lists them.
#
# ### The size of the bank
#
# The paper compares ways of sampling by accuracy and by inference time. {ref}`The appendix <sgfr-bank-size>` repeats that on the category bottle of MVTec AD, for five sizes from a tenth of a percent to ten percent of all normal patches, by AUPRO and by pixel AP. At the smallest size three combined atoms are ahead of the nearest one in AUPRO, with every sampler. At
# all larger sizes the nearest atom of a random bank is ahead of every combination, and in pixel AP it is behind at no size by more than a thousandth. So the paper's claim, that combining pays where memory is short, is supported at one size by one measure, on one product and by single runs of older code.
#
# {ref}`A second lesson <sgfr-preparation>` is there too: how images are prepared for the network moves the measures, although nothing in the method changes.
#
# ```{admonition} Take-away
# :class: note
# On drawn subspaces combining is far ahead of the nearest atom; on real features it pays for small banks.
# Agreement with the one figure known of the paper was defined before it was looked at, and not reached.
# ```

# %% [markdown]
# ## What breaks it
#
# **A place without a memory.** A patch does not know where it is. On a board that comes in two variants, with and without a pair of resistors, bare pads are normal *somewhere*. So when one resistor of a fitted pair is missing, its bare pads are rebuilt from those of the other variant, and the reading *patch* is silent. Would a memory that knows places
# do better? We fit the three readings on the built-in category `circuit`.

# %%
board = datasets.load("procedural", "circuit", image_size=detector.image_size)
board_train, board_test = (
    uad_core.extract(detector.backbone, part, device=detector.device, progress=False) for part in (board.train, board.test)
)
readings = {
    name: uad_core.create("sgfr", profile="smoke", seed=SEED, reading=name).fit(board_train, progress=False)
    for name in ("patch", "map", "position")
}

# %%
kinds = sorted(set(board.test.defects) - {"good"})
by_kind = {}
for name, model in readings.items():
    board_maps, board_scores = model.predict(board_test, progress=False)
    parts = {kind: np.isin(board.test.defects, (kind, "good")) for kind in kinds}
    by_kind[name] = {
        kind: metrics.average_precision(board_maps[part].ravel(), board.test.masks()[part].ravel()) for kind, part in parts.items()
    }
pd.DataFrame(by_kind).style.format("{:.3f}")

# %%
missing = [i for i, kind in enumerate(board.test.defects) if kind == "missing_part"][:5]
with torch.no_grad():
    pyramid = board_test.batch(torch.tensor(missing), detector.device)
    compared = {name: scoring.upsample(model.fuse(model.map_residuals(pyramid)), (64, 64)) for name, model in readings.items()}
patch_maps, patch_scores = readings["patch"].predict(board_test, progress=False)
holds(patch_scores[missing[0]] <= readings["patch"].threshold.item(), min(by_kind["patch"], key=by_kind["patch"].get) == "missing_part")

# %% mystnb={"figure": {"caption": "Missing parts of the built-in circuit: the maps of the three readings on one scale; below, map and verdict of the reading patch on a scale of their own.", "name": "fig-sgfr-circuit"}, "image": {"alt": "Five boards from which a part is missing, their masks, and three rows of anomaly maps. The row of the reading patch is nearly dark. On its own scale it marks the stumps in columns two to five, and nothing in the first, whose verdict is wrong."}} tags=["hide-input"]
plots.residual_panel(
    board.test.images(missing), board.test.masks()[missing], compared, patch_maps[missing], patch_scores[missing],
    readings["patch"].threshold.item(), [f"missing {i}" for i in range(1, len(missing) + 1)],
)

# %% [markdown]
# In {numref}`fig-sgfr-circuit` the row of *patch* is nearly dark beside the others. On a scale of its own, in the last row of maps, it marks what is left of parts that are not quite gone; the clean pads of the first column leave nothing, and that board passes for good. Of all kinds the missing part is the one that *patch* marks worst. *Position* sees a missing leg and a missing capacitor, because at their place there is always one. But look at a column with one resistor of a pair: bare pads are normal at *this very place* on half of the boards, so what shows there, if anything, is the stump of a part that is not quite gone. What is wrong is the
# *combination* of one resistor here and none there, and no reading that looks at one location at a time can see that. Only *map* can, since it combines whole boards, and it does not know which of the two resistors to blame. Such a defect is called logical.
#
# **Too much freedom.** {numref}`fig-sgfr-blind` showed the end of that road; with each atom a faint defect is imitated a little better.
#
# **Linearity.** A published summary of the paper names it as the limitation, and suggests a network in place of the linear model. The exercise {ref}`sgfr-open` has the caplet that turns.
#
# ```{admonition} Take-away
# :class: note
# No reading that looks at one location at a time sees a combination of parts that is wrong.
# Too many atoms make the method blind, and a linear model cannot turn a part.
# ```

# %% [markdown]
# (sgfr-products)=
# ## One setting for all products
#
# The settings of this chapter are one choice for the development set of thirteen products that the chapter on HFR {ref}`describes <hfr-products>`; four papers were looked at afterwards. Beside it stands the nearest of 4,096 patches of the same network, drawn at random. In percent, from the ledger:

# %%
side = tables.side_by_side("sgfr", "knn")
(100 * side).style.format("{:.1f}")

# %% tags=["nbval-check-output"]
print(tables.where_behind(side, "sgfr", "knn"))

# %% [markdown]
# Three combined atoms out of 256 at each level stand here against the nearest of 4,096 whole patches. The lines below the table name every product on which the nearest neighbour is ahead by more than a hundredth, and the two products whose images SGFR tells apart worst. A limit of the idea shows in these: where the texture of a sound piece
# is its own, as the grain of a board is, no combination of other pieces' patches rebuilds it, and a faint defect has to rise above what is missed of every sound piece.
#
# ```{admonition} Take-away
# :class: note
# Three atoms out of 256 keep up with the nearest of 4,096 stored patches on nearly all products; where every piece has a texture of its own, both fail.
# ```

# %% [markdown]
# ## Exercises
#
# ```{exercise} Two steps by hand
# :label: sgfr-by-hand
# Let $y = (0.6,\ 0.8,\ 0)$, and let the bank hold $m_1 = (1, 0, 0)$, $m_2 = (0, 1, 0)$ and $m_3 = (2, 2, 1)/3$. Carry out two steps of the pursuit. Which atoms does it take, with which weights, and what are $\lVert r_1\rVert_2^2$ and $\lVert r_2\rVert_2^2$? Is there a better pair?
# ```
#
# ```{solution} sgfr-by-hand
# :class: dropdown
# The correlations are $0.6$, $0.8$ and $2.8/3 = 0.93$, so $m_3$ is taken, and $\lVert r_1\rVert_2^2 = 1 - (14/15)^2 = 29/225 = 0.129$, as {eq}`sgfr-one-atom` says. Now $r_1 = (-0.022,\ 0.178,\ -0.311)$, which $m_1$ meets with $-0.022$ and $m_2$ with $0.178$, so $m_2$ is taken. The best weights of $m_3$ and $m_2$ are $0.72$ and $0.32$, and
# $r_2 = (0.12,\ 0,\ -0.24)$ is left, $\lVert r_2\rVert_2^2 = 0.072$. Yet $y = 0.6\,m_1 + 0.8\,m_2$ leaves nothing. The first atom stood in the way: the pursuit finds *a* good combination, not always the best.
# ```
#
# ```{exercise} What a bank costs
# :label: sgfr-bytes
# Two levels have 48 and 120 channels, stored as 4-byte numbers for every place of the finest grid. How large is a bank of 512 atoms? How large are all patches of 209 images of $32\times32$ places? A pursuit of $k$ atoms takes about $k\,m\,d$ multiplications per feature and level: for how many atoms $m$ does $k = 3$ cost as much as one search among all patches?
# ```
#
# ```{solution} sgfr-bytes
# :class: dropdown
# $512 \cdot (48 + 120) \cdot 4 = 344\,064$ bytes. All patches: $209 \cdot 1024 = 214\,016$ of them, $143.8$ million bytes, 418 times as many. The cost is equal at $3m = 214\,016$, so $m = 71\,339$: a third of all patches, since each of the three steps passes over the bank once.
# ```
#
# ```{exercise} One atom
# :label: sgfr-nearest
# Write `nearest(points, atoms)` for unit points `(n, d)` and unit atoms `(m, d)`: the squared residual `(n,)` with one atom, by {eq}`sgfr-one-atom`, without a loop. Test it with `check_nearest`.
# ```

# %%
def check_nearest(candidate):
    """Compare an answer to 'One atom' with the pursuit of one atom."""
    generator = torch.Generator().manual_seed(0)
    points, atoms = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (50, 20))
    wanted = matching_pursuit(points[None], atoms[None], 1).energy[0]
    got = candidate(points, atoms)
    if got.shape != wanted.shape:
        return f"not yet: the shape is {tuple(got.shape)} and should be {tuple(wanted.shape)}"
    return "correct" if torch.allclose(got, wanted, atol=1e-5) else "not yet: mind the atoms that point the other way"


# %% [markdown]
# ```{solution} sgfr-nearest
# :class: dropdown
# ~~~python
# def nearest(points, atoms):
#     return 1 - (points @ atoms.T).square().amax(1)
#
#
# check_nearest(nearest)
# ~~~
# The square matters: with a free weight an atom that points away from $y$ is as good as one that points along it.
# ```
#
# ```{exercise} Deflation
# :label: sgfr-deflation
# If all points lie in *one* subspace, there is a cheaper way than {eq}`sgfr-sampling`. Write `deflate(points, tolerance)`: take the point with the largest residual, subtract from *all* residuals their part along it, and go on until the largest squared residual is at most `tolerance`; return the list of indices. Test it with `check_deflate`. How many points can it take at
# most, and why does it fail on a union of many subspaces?
# ```


# %%
def check_deflate(candidate):
    """Try an answer to 'Deflation' on points of a plane and of a space of three dimensions."""
    generator = torch.Generator().manual_seed(0)
    for dimension in (2, 3):
        points = torch.randn(200, dimension, generator=generator) @ torch.randn(dimension, 9, generator=generator)
        points = torch.nn.functional.normalize(points, dim=1)
        found = [int(j) for j in candidate(points, 1e-8)]
        if len(found) != dimension:
            return f"not yet: {len(found)} points for a subspace of dimension {dimension}"
        if matching_pursuit(points[None], points[found][None], dimension).energy.max() > 1e-6:
            return "not yet: the points taken do not span the others"
    return "correct"


# %% [markdown]
# ```{solution} sgfr-deflation
# :class: dropdown
# ~~~python
# def deflate(points, tolerance):
#     residual, found = points.clone(), []
#     while residual.square().sum(1).max() > tolerance:
#         found.append(residual.square().sum(1).argmax().item())
#         q = residual[found[-1]] / residual[found[-1]].norm()
#         residual = residual - (residual @ q)[:, None] * q
#     return found
#
#
# check_deflate(deflate)
# ~~~
# Every step removes one dimension of the span of all points, so it takes at most as many points as the span has dimensions, hence at most $d$. On a union of subspaces it goes on until the points taken span the *sum* of the subspaces, and what it calls rebuilt is rebuilt by a dense combination of all of them: the blind one.
# ```
#
# ```{exercise} A memory that knows more
# :label: sgfr-open
# *Open.* Run this page with `UAD_CATEGORY=circuit` and with `UAD_CATEGORY=tablet`. Find a data point, other than the three readings, for which a missing resistor of a pair is *not* a combination of normal data points, and say what the same choice costs on the tablet, which turns. Try it with two levels joined, or with two places joined.
# ```

# %% [markdown]
# ## Further reading
#
# {doc}`08_gallery` shows what all five methods make of the same images, on your own copy of real data too.
#
# In {doc}`the explorer </book/explorer>` the levels of this method are switched off and on image by image; on the page {doc}`/book/draw` it looks at defects that you paint.
#
# * {cite:t}`hotta2025sgfr` is the paper of this chapter.
# * {cite:t}`elhamifar2013ssc` show when the sparsest self-expression finds the subspaces themselves; the theorem above is the easy part of theirs.
# * {cite:t}`pati1993omp` is where the pursuit comes from, in five pages.
# * {cite:t}`you2016ensc` explain what the elastic net adds, and how to solve it with few atoms at a time, as our solver does.
# * {cite:t}`roth2022patchcore` store patches, thin them out by a greedy coreset and search for the nearest: the method that this one argues with.
