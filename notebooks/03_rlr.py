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
# (chapter-rlr)=
# # RLR: ask the image, answer from a reference
#
# ```{admonition} At a glance
# :class: tip
#
# **Paper.** {cite:t}`he2024rlr`, *Learning Unified Reference Representation for Unsupervised Multi-class Anomaly Detection*.
#
# **Idea.** One model for all products. Features are not rebuilt from themselves, which invites copying, but from a *learnable reference*: a feature map that is
# trained like a weight. The image only says, position by position, what it would like to see; the content comes from the reference.
#
# **Two pictures.** {numref}`fig-rlr-architecture`: who asks, who answers; {numref}`fig-rlr-shortcut`: a foreign patch in each product, as four networks reconstruct it.
#
# **What is reproduced.** The architecture as the authors published it in code; one model for the six built-in categories, and for those together with two real ones;
# the shortcut, measured; the ablations of attention, reference and noise. The paper's own tables were not in what we could read, so none of our numbers stands beside one of theirs.
#
# **Cost.** This page runs in under three minutes on two processor cores, on images that the book draws itself. `UAD_PROFILE=cpu` trains longer, on images of 256 pixels. Outside Colab nothing is downloaded unless
# you ask for real data. On a GPU the profile `colab` was not timed yet.
#
# **Afterwards you can** say why a reconstruction network learns to copy, measure how much of a foreign patch passes through it, draw who attends to whom, and tell which ways from input to output masks and a missing
# residual path close.
# ```
#
# The mark ◇ stands behind everything that is {ref}`our reconstruction <the-mark>` and not the paper's word. Here it is rare: what is not marked was read in the authors' public code.

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
import base64
import dataclasses
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from PIL import Image
from torch import nn

# %%
import uad_core
from uad_core import datasets, metrics, plots, scoring, tables
from uad_core.datasets import procedural
from uad_core.datasets.joined import joined
from uad_core.datasets.selection import select
from uad_core.features import Features
from uad_core.methods.channels import measure_channels
from uad_core.methods.rlr import feature_jitter, sine_positions
from uad_core.methods.windows import window_mask, window_size
from uad_core.plots import diagram
from uad_core.training import Schedule, train
from uad_core.visualisation import FeaturePainter

plots.style()

# %% [markdown]
# Three variables decide on what the page runs. Set the environment variables of the same names, or change the cell. `CATEGORY` may name several, separated by commas; a single one is joined by the built-in six, since one class alone would leave a joint model nothing to show.

# %% tags=["parameters"]
PROFILE = os.environ.get("UAD_PROFILE", "smoke")
DATASET = os.environ.get("UAD_DATASET", "procedural")
CATEGORY = os.environ.get("UAD_CATEGORY", "all")
SEED = 0

# %%
detector = uad_core.create("rlr", profile=PROFILE, seed=SEED)
members = select(DATASET, CATEGORY)
if len(members) == 1:
    members += [member for member in select("procedural", "all") if member not in members]
classes = {m.name: datasets.load(m.source, m.category, image_size=detector.image_size) for m in members}
train_set = joined([data.train for data in classes.values()])
features = uad_core.extract(detector.backbone, train_set, device=detector.device)
test_features = {
    name: uad_core.extract(detector.backbone, data.test, device=detector.device, progress=False) for name, data in classes.items()
}
print(f"{len(classes)} classes, {len(train_set)} normal images in one set:", ", ".join(classes))

# %% tags=["hide-input"]
usual = (PROFILE, DATASET, CATEGORY) == ("smoke", "procedural", "all")


def holds(*claims):
    """What the text says of this page's own data; there, a claim that fails stops the page."""
    assert all(claims) or not usual

# %% [markdown]
# From here on nobody tells the model which image is of which class: `train_set` holds images and nothing else, in one long row.
#
# ## The problem it solves
#
# The chapters before this one train a model, or fill a bank, for each product. A factory with fifteen products has fifteen models to keep. One network for all would be simpler,
# and there is a reason why it is harder: the more kinds of normal a reconstruction network must serve, the closer the task comes to *reconstruct anything*, and a network
# that reconstructs anything reconstructs defects. The authors call this the **learning shortcut**. It comes in two forms: the identity, and the mere removal of whatever noise was added to prevent the identity.
#
# Let us watch it. A small autoencoder works token by token on the features of stride 8: two linear maps with four times as many numbers between them as the feature has. Nothing is squeezed.

# %%
level = features.only([0])  # stride 8 only
channels, grid = level.levels[0].shape[1], detector.nets[0].grid
if detector.config.standardise:
    measure_channels(detector.scales[:1], level, detector.config.floor)


def tokens(f):
    """Feature maps of stride 8 (N, C, h, w) as the tokens X (N, L, C) that all networks of this page see."""
    return detector.tokens(0, f)

# %%
torch.manual_seed(SEED)
autoencoder = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
autoencoder.to(detector.device)


def autoencoder_loss(batch):
    x = tokens(batch[0])
    return (autoencoder(x) - x).square().mean()


quick = Schedule(epochs=15, batch_size=8, lr=3e-3, decay="onecycle")
history = train(autoencoder, level, autoencoder_loss, quick, seed=SEED, device=detector.device, progress=False)

# %% [markdown]
# To test a network for copying we need an anomaly *and the same image without it*. We make one ourselves: into a normal test image we paste a square that was cut out of an image of another class.

# %%
normal = torch.stack([data.test[int(np.flatnonzero(~data.test.labels)[0])] for data in classes.values()])  # (N, 3, H, W)
donors = normal.roll(1, 0)  # to each the image of the class before it
side = normal.shape[-1]
square = slice(side * 3 // 8, side * 5 // 8)
foreign = normal.clone()
foreign[..., square, square] = donors[..., square, square]
masks = torch.zeros(len(normal), side, side, dtype=torch.bool)
masks[:, square, square] = True

# %%
def stride_8(images):
    """Tokens of images at stride 8: (N, 3, H, W) -> X (N, L, C)."""
    with torch.no_grad():
        return tokens(detector.backbone(images.to(detector.device))[0])


clean, pasted = stride_8(normal), stride_8(foreign)
hit = masks[:, 4::8, 4::8].flatten(1).to(detector.device)  # (N, L): tokens whose centre lies in the square

# %% [markdown]
# Let $X$ be the tokens of the image with the foreign square $S$, $X^0$ those of the same image without it, and $\hat X(\cdot)$ what a network makes of either. How much of the change passes through? Project the change of the output on the change of the input:
#
# $$
# \kappa = \frac{\sum_{p \in S} \bigl\langle \hat X(X)_p - \hat X(X^0)_p,\; X_p - X^0_p \bigr\rangle}{\sum_{p\in S} \lVert X_p - X^0_p \rVert_2^2}.
# $$ (rlr-copy)
#
# A network that copies has $\hat X(X) = X$ and $\hat X(X^0) = X^0$, hence $\kappa = 1$. A network that answers with the same normal content whatever lies in the square has $\kappa = 0$. We call $\kappa$ the **copied share** ◇.

# %%
def copied_share(network):
    """Equation (rlr-copy): how much of the foreign square a network passes on, over all classes."""
    with torch.no_grad():
        change = (pasted - clean)[hit]
        answer = (network(pasted) - network(clean))[hit]
    return ((answer * change).sum() / change.square().sum()).item()


share = {"token autoencoder": copied_share(autoencoder)}

# %%
print(f"loss: {history[0]:.3f} in the first epoch, {history[-1]:.3f} in the last; copied share: {share['token autoencoder']:.2f}")

# %% tags=["hide-input"]
holds(history[-1] < 0.1 * history[0], share["token autoencoder"] > 0.9)

# %% [markdown]
# The loss fell below a tenth of its start, and more than nine tenths of a patch that does not belong there pass through: the network has learned to copy. (The square is normal content, only of another class; whether content that no class has would pass as well, this test does not show.) No normal image reveals this. A wide token-wise network is an easy victim; the rest of the chapter is about networks
# that are *not* allowed to be one.
#
# ```{admonition} Take-away
# :class: note
# A network that reconstructs features from themselves can copy, and normal images do not tell.
# The copied share $\kappa$ does: 1 for a copier, 0 for a network that answers with normal content whatever it is shown.
# ```

# %% [markdown]
# ## Derivation
#
# {numref}`fig-rlr-architecture` shows one level's network. It is derived from the top to the bottom.

# %% tags=["hide-input"]
box, arrow = diagram.box, diagram.arrow
boxes = [
    box(20, 8, 150, "image x", "image"), box(20, 72, 150, "backbone", "frozen"), box(20, 136, 150, "tokens X", "features"),
    box(20, 200, 150, "embed E: Z", "trained"), box(370, 136, 150, "reference R", "trained"), box(370, 200, 150, "embed E_R: K_R", "trained"),
    box(205, 264, 140, "LCA", "trained"), box(205, 344, 140, "2 LCA + MLKA,\nLN, FFN, LN", "trained"), box(205, 441, 140, "MLKA", "trained"),
    box(370, 520, 150, "head: X̂", "rebuilt"), box(205, 520, 110, "s_k", "residual"), box(185, 584, 150, "map A, score s", "map"),
]
arrows = [arrow(f"{x},{y} {x},{y + 28}") for x, y in ((95, 42), (95, 106), (445, 170), (260, 554))]
arrows += [
    arrow("95,170 95,198", "+ noise, in training", (103, 189)), arrow("95,234 95,281 203,281", "queries", (103, 274)),
    arrow("95,281 95,458 203,458", "queries, values", (100, 451)), arrow("445,234 445,281 347,281", "keys, values", (352, 274)),
    arrow("445,281 445,458 347,458", "keys", (352, 451)), arrow("275,298 275,342", "from the window", (283, 322)),
    arrow("275,441 275,397", "from outside it", (283, 424)), arrow("345,369 490,369 490,518", "M layers", (352, 362)),
    arrow("370,537 317,537"), arrow("20,153 8,153 8,537 203,537"),
]

# %% mystnb={"figure": {"caption": "RLR at one level. The image's tokens ask; local cross attention (LCA) takes its content from the learned reference, inside a window, masked learnable key attention (MLKA) from the image, outside of it. Nothing leads from a token around both attentions to the same place of the answer.", "name": "fig-rlr-architecture"}} tags=["hide-input"]
DESCRIPTION = (
    "Diagram. The image passes a frozen backbone and gives tokens, which are embedded. A learned reference is embedded beside them. Local cross attention gets queries "
    "from the image and keys and values from the reference, within a window. Masked learnable key attention gets queries and values from the image, from outside the "
    "window, and keys from the reference. Both are added and normalised, layer after layer. A head gives the rebuilt tokens, which are compared with those of the image."
)
HTML(diagram.figure(boxes + arrows, 532, 626, DESCRIPTION))

# %% [markdown]
# ### Tokens
#
# Each level of the frozen pyramid is treated by itself, with a network of its own. Every feature is first averaged with its eight neighbours; beyond the border count zeros. The grid of $h \times w$ locations is then read row by row into
# $L = hw$ *tokens* with $C$ channels:
#
# $$
# X_p = \frac19 \sum_{q \,:\, |r_p - r_q| \le 1,\ |k_p - k_q| \le 1} \tilde f(q), \qquad X \in \mathbb R^{L \times C},
# $$ (rlr-tokens)
#
# where $r_p$ and $k_p$ are row and column of location $p$ (the tilde means standardised here, noisy in $\tilde X$ below), and $\tilde f$ is the feature map, standardised by equation {eq}`hfr-standardise` in the small profiles ◇ and as it is in the profile `paper`.
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: RLR.tokens
# :lineno-match:
# :caption: Equation {eq}`rlr-tokens` in {py:meth}`uad_core.methods.rlr.RLR.tokens`
# ```
#
# ### Why reconstruction copies
#
# Take any network $g$ and the loss $\mathbb E\lVert g(X) - X\rVert_2^2$. Its smallest value is 0, and $g(X) = X$ reaches it. That is all training data say about $g$ *on normal features*; off them the loss is silent, and what a network does there is decided by its architecture. A network with a
# wide path from $X_p$ to $\hat X_p$ can come close to the identity, as the autoencoder above did. The identity serves every class at once, and it copies whatever else it is given.
#
# The usual medicine is noise. Give the network $\tilde X = X + n$ and ask for $X$. Now the identity costs $\mathbb E\lVert n\rVert_2^2$. By equation {eq}`hfr-mean` the best answer is the conditional mean $\mathbb E[X \mid \tilde X]$. To see what that does, let $X$ be Gaussian along some direction with mean $\mu$ and variance $\sigma^2$, and let the noise have variance $\nu^2$ in it. The joint density of $X$ and $\tilde X$ is proportional to
# $\exp\bigl(-\tfrac{(X-\mu)^2}{2\sigma^2} - \tfrac{(\tilde X - X)^2}{2\nu^2}\bigr)$. For given $\tilde X$ the exponent is quadratic in $X$; setting its derivative $-\tfrac{X-\mu}{\sigma^2} + \tfrac{\tilde X - X}{\nu^2}$ to zero gives its peak, which for a Gaussian is its mean:
#
# $$
# \mathbb E[X \mid \tilde X] = \mu + \frac{\sigma^2}{\sigma^2 + \nu^2}\,(\tilde X - \mu).
# $$ (rlr-shrink)
#
# Along directions in which normal features vary much ($\sigma \gg \nu$) the factor is nearly 1: *the deviation is copied*. Only along directions in which they hardly vary is it removed. If all classes are described by one Gaussian, more classes mean more directions that vary, and less is removed. (Features of several classes are a mixture; its conditional mean is not linear, and {eq}`rlr-shrink` is then the best *linear* answer.) To that extent noise alone teaches the removal of noise, and a defect is no noise.
#
# So RLR changes the path, not only the task.
#
# ### The reference
#
# $$
# R \in \mathbb R^{r \times L \times C}, \qquad R_{ipc} \sim \mathcal N(0, 1) \text{ at the start},
# $$ (rlr-reference)
#
# is a parameter. It lives in the same space as the features, with one token for each position of the grid ($r = 1$; more with `ref_len`), and it is the same for all images and all classes. What normal features look like at a position is learned, in $R$ and in the maps that read it ($E_R$, $W_v$ and the layers after them).
#
# ### Embedding and position
#
# Tokens of the image and of the reference are brought to width $d$ by two linear maps of the same form, and told where they are by a fixed table $P$:
#
# $$
# \begin{gathered}
# E(X)_p = X_p W + b + P_p, \\
# Z^{(0)} = E(\tilde X), \qquad K_R = E_R(R).
# \end{gathered}
# $$ (rlr-embedding)
#
# Half of $P_p$ describes the column $k_p$, half the row $r_p$, each by sines and cosines of falling frequency:
#
# $$
# \begin{aligned}
# P_{p,\,2i} &= \sin(k_p\, \omega_i), & P_{p,\,2i+1} &= \cos(k_p\, \omega_i), \\
# P_{p,\,d/2 + 2i} &= \sin(r_p\, \omega_i), & P_{p,\,d/2+2i+1} &= \cos(r_p\, \omega_i), \\
# \omega_i &= 10000^{-4i/d},
# \end{aligned}
# $$ (rlr-position)
#
# for $i = 0, \dots, d/4 - 1$. The inner product of two such vectors depends only on how many columns and rows lie between the positions, since $\sin a \sin b + \cos a \cos b = \cos(a - b)$:
#
# $$
# \langle P_p, P_q\rangle = \sum_i \cos\bigl((k_p - k_q)\,\omega_i\bigr) + \sum_i \cos\bigl((r_p - r_q)\,\omega_i\bigr).
# $$ (rlr-distance)
#
# It is largest for $p = q$ ({numref}`fig-rlr-positions`). Attention does not use it directly, because $W_q$ and $W_k$ stand in between and start at random; but where $W_q^\top W_k$ comes close to a multiple of the identity, attention prefers what is near, so "near" is easy to learn.
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: sine_positions
# :lineno-match:
# :caption: Equation {eq}`rlr-position` in {py:func}`uad_core.methods.rlr.sine_positions`
# ```

# %% mystnb={"figure": {"caption": "Four channels of the position table, and below the inner product of four tokens with all others, equation {eq}`rlr-distance`: brightest at the token itself (a corner, the upper edge, the middle, the last one), with bright arms along its row and its column. The headings belong to the upper row.", "name": "fig-rlr-positions"}, "image": {"alt": "Two rows of four small squares. Above, two change from left to right and two from top to bottom; below, each has one brightest place, with brighter bands along its row and its column."}} tags=["hide-input"]
table = sine_positions(grid, 64)
middle = (grid[0] // 2) * grid[1] + grid[1] // 2
channel = table.T.view(64, *grid)[[0, 8, 32, 40]]
here = [0, grid[1] // 2, middle, len(table) - 1]
near = (table[here] @ table.T).view(4, *grid)
plots.picture_grid({"channels": channel, "nearness": near}, ["column, fast", "column, slow", "row, fast", "row, slow"])

# %% [markdown]
# ### Windows
#
# Two attentions work side by side. (The code calls them `mca` and `nsa`; that these are the paper's LCA and MLKA is our reading ◇, with little room for another.) Both ask with the tokens of the image; they differ in where content comes from and in what they may see. The *window* of a position holds what is near ({numref}`fig-rlr-windows`):
#
# $$
# W(p) = \bigl\{ q : |r_p - r_q| \le \lfloor w/2 \rfloor \ \text{and}\ |k_p - k_q| \le \lfloor w/2\rfloor \bigr\},
# $$ (rlr-window)
#
# cut off at the border, with $w = 5, 7, 11$ for grids of $16, 32, 64$ tokens in a row; for other grids we interpolate and take the nearest odd number ◇, also below 16, as for the $8 \times 8$ tokens of stride 16 on this page (5). From here on $w$ is the side of a window.

# %% mystnb={"figure": {"caption": "Who may look where (light: visible). Local cross attention sees only the window of a position, masked learnable key attention only the rest.", "name": "fig-rlr-windows"}, "image": {"alt": "Two rows of three square pictures. In the first row a small light square sits in the corner, at the upper edge and in the middle; the second row is the negative of the first."}} tags=["hide-input"]
window = window_size(min(grid))
inside = window_mask(grid, window).float()
places = [0, grid[1] // 2, middle]
pictures = {"LCA sees": inside[places].view(3, *grid), "MLKA sees": 1 - inside[places].view(3, *grid)}
plots.picture_grid(pictures, ["corner", "edge", "middle"])

# %% tags=["nbval-check-output"]
print(f"window {window} on a grid of {grid[0]} x {grid[1]}: {inside.sum(1).mean():.1f} of {len(inside)} tokens on average")

# %% [markdown]
# Attention itself is the ordinary one. For a query $q$ and pairs $(k_j, v_j)$ of keys and values, $j \in J$,
#
# $$
# \begin{aligned}
# \operatorname{Att}(q; J) &= \sum_{j \in J} a_j v_j, \\
# a_j &= \frac{\exp(\langle q, k_j\rangle / \sqrt{d/H})}{\sum_{i\in J} \exp(\langle q, k_i\rangle / \sqrt{d/H})},
# \end{aligned}
# $$ (rlr-attention)
#
# computed for $H$ heads, each on its own share of $d/H$ channels after linear maps $W_q, W_k, W_v$; the heads' results are joined and mapped by $W_o$. All four have biases, left out of the formulas; their subscripts are names, not positions.
#
# **Local cross attention (LCA)** takes keys *and* values from the reference, inside the window:
#
# $$
# \begin{aligned}
# \operatorname{LCA}(Z)_p = W_o \operatorname{Att}\bigl(& W_q Z_p;\\ & \{(W_k K_{R,j},\ W_v K_{R,j}) : j \in W(p)\}\bigr).
# \end{aligned}
# $$ (rlr-lca)
#
# The image enters through the query alone. What comes out of a head is $\sum_j a_j v_j$ with $a_j \ge 0$ and $\sum_j a_j = 1$: a point in the convex hull of the window's values, whatever the query asks for. A foreign patch can *choose among* the contents of the reference; it cannot add to them. (In a model for many classes that is a wide choice: we come back to it under *What breaks it*.)
#
# **Masked learnable key attention (MLKA)** takes values from the image, but from *outside* the window, and the keys still from the reference:
#
# $$
# \begin{aligned}
# \operatorname{MLKA}(Z)_p = W_o \operatorname{Att}\bigl(& W_q Z_p;\\ & \{(W_k K_{R,j},\ W_v Z_j) : j \notin W(p)\}\bigr).
# \end{aligned}
# $$ (rlr-mlka)
#
# A token may borrow from elsewhere in the same image, as repeating textures allow, but never from its own neighbourhood. And the reference decides where to borrow: the key at $j$ says what *belongs* at $j$, not what happens to lie there. UniAD {cite:p}`you2022uniad` has the same mask with keys from the image itself. With $r > 1$ each reference is attended by itself and the results are added; for MLKA this is ours ◇, since the published code uses only the last reference there.
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: Attention.forward
# :lineno-match:
# :caption: Equations {eq}`rlr-lca` and {eq}`rlr-mlka` in {py:class}`uad_core.methods.rlr.Attention`
# ```
#
# ### No residual path
#
# A transformer's layer usually carries its input around the attention, $U = Z + \operatorname{Att}(Z)$. Here that would be an open door: $Z_p$, with everything the defect wrote into it, would reach the output untouched. RLR's layers leave it out:
#
# $$
# \begin{aligned}
# U &= 2\operatorname{LCA}(Z) + \operatorname{MLKA}(Z), \\
# Z_1 &= \operatorname{LN}(U), \\
# Z' &= \operatorname{LN}\bigl(Z_1 + \operatorname{FFN}(Z_1)\bigr).
# \end{aligned}
# $$ (rlr-layer)
#
# $\operatorname{LN}$ is layer normalisation, $\operatorname{FFN}$ a network of two linear maps ($d \to 4d \to d$, GELU between them) at each position. Count the ways from $Z_p$ to $U_p$: through the *query* of both attentions, and through nothing else, because MLKA's values exclude $p$. After $M$ such layers, one more LN and a linear map give $\hat X_p$.
#
# The door is narrow and still open. A query can still steer the weights $a_j$; a defect wider than half a window reaches beyond it, so that MLKA can take values from its other end; the features at $q \notin W(p)$ have themselves seen some of $p$ through the backbone's receptive field; and in two layers content can travel from $p$ to some $q$ outside the window and back. The exercise {ref}`rlr-hops` follows it.
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: Layer.forward
# :lineno-match:
# :caption: Equation {eq}`rlr-layer` in the class `Layer` of {py:mod}`uad_core.methods.rlr`
# ```
#
# The constants 2 and 1 can be replaced by gates $g_b$, learned numbers that start at 1 (`gate="gate"`), or a small network that sees the mean and the largest of all tokens (`gate="net"`):
#
# $$
# \begin{aligned}
# U &= \sum_b g_b\, \operatorname{Block}_b(Z), \\
# g &= \operatorname{softmax}\Bigl(\operatorname{MLP}\bigl[\tfrac1L\textstyle\sum_p Z_p;\ \max_p Z_p\bigr]\Bigr).
# \end{aligned}
# $$ (rlr-gate)
#
# The authors' training line uses none.
#
# ### Noise, all the same
#
# During training each token gets noise in proportion to its length:
#
# $$
# \tilde X_p = X_p + s\,\frac{\lVert X_p\rVert_2}{C}\,\eta_p, \qquad \eta_p \sim \mathcal N(0, I_C), \qquad s = 4.
# $$ (rlr-jitter)
#
# Since $\mathbb E\lVert\eta_p\rVert_2^2 = C$, the noise has the root-mean-square length $s\lVert X_p\rVert_2/\sqrt C$.
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: feature_jitter
# :lineno-match:
# :caption: Equation {eq}`rlr-jitter` in {py:func}`uad_core.methods.rlr.feature_jitter`
# ```

# %% tags=["nbval-check-output"]
torch.manual_seed(SEED)
noise = feature_jitter(clean, detector.config.jitter) - clean
ratio = (noise.norm(dim=-1) / clean.norm(dim=-1)).square().mean().sqrt().item()
print(f"length of the noise over length of the token, root mean square: {ratio:.2f}, from the formula {4 / channels**0.5:.2f}")

# %% [markdown]
# ### Loss, score, map
#
# The target is the clean token. Distance and direction are compared as in {eq}`hfr-residual`, with weights 1 and 1:
#
# $$
# \mathcal L = \frac{1}{NL}\sum_{n,p} \Bigl( \frac1C \lVert \hat X_{np} - X_{np}\rVert_2^2 + 1 - \cos\angle(\hat X_{np}, X_{np}) \Bigr).
# $$ (rlr-loss)
#
# With $r > 1$ references one may also ask that they differ (`ref_loss`), by adding the cosine of each pair, averaged over positions:
#
# $$
# \mathcal L_R = \frac{1}{r(r-1)} \sum_{i<j} \frac1L \sum_p \cos\angle(R_{ip}, R_{jp}).
# $$ (rlr-diversity)
#
# At test time there is no noise, and level $k$ has the score map
#
# $$
# s_k(p) = \frac1{C_k} \bigl\lVert X^k_p - \hat X^k_p\bigr\rVert_2^2 + 1 - \cos\angle\bigl(X^k_p, \hat X^k_p\bigr).
# $$ (rlr-score)
#
# The maps of all $K$ levels are brought to the size of the image and averaged; the anomaly map is *not* smoothed. Smoothing enters the image score only:
#
# $$
# A(x) = \frac1K \sum_{k=1}^K \mathcal U(s_k), \qquad
# $$ (rlr-map)
#
# $$
# s(x) = \max_p \bigl(G_\sigma * A(x)\bigr)_p, \qquad \sigma = 4.
# $$ (rlr-image-score)
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: RLR.fuse
# :lineno-match:
# :caption: Equation {eq}`rlr-map` in {py:meth}`uad_core.methods.rlr.RLR.fuse`
# ```
#
# ```{admonition} Take-away
# :class: note
# Both attentions ask with the image. LCA answers from the reference nearby, MLKA from the image far away; no residual path leads around them.
# The score is distance plus direction of token and answer, averaged over levels.
# ```
#
# ## Implementation
#
# First by hand: one local cross attention, written as equation {eq}`rlr-lca` reads, with every pair of positions computed and the wrong ones thrown away.

# %%
net = detector.nets[0]
block = net.layers[0].blocks[0]


def lca_weights(z, k_r):
    """Weights a of equation (rlr-attention) in the first LCA, for embedded tokens (N, L, d) and reference (L, d)."""
    q, k = block.split(block.q(z)), block.split(block.k(k_r))  # (N, H, L, d/H), (H, L, d/H)
    weights = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5  # (N, H, L, L)
    return weights.masked_fill(~window_mask(grid, window).to(weights.device), -torch.inf).softmax(-1)


with torch.no_grad():
    z, k_r = net.embed(clean), net.embed_reference(net.reference)[0]  # (N, L, d), (L, d)
    weights, v = lca_weights(z, k_r), block.split(block.v(k_r))  # (N, H, L, L), (H, L, d/H)
    by_hand = block.out((weights @ v).transpose(1, 2).flatten(2))  # (N, L, d)
    from_class = block(z, k_r[None])

# %% tags=["nbval-check-output"]
assert torch.allclose(from_class, by_hand, atol=1e-5)  # the class and the equation
print(f"of {weights.shape[-1]} weights of a query, at most {(weights[0, 0] > 0).sum(1).max()} are not zero")

# %% [markdown]
# Nine tenths of these products were computed for nothing, and at 64 by 64 tokens it is 97 in a hundred. {py:func}`uad_core.methods.windows.local_attention` cuts the grid into tiles of $4 \times 4$ tokens; a tile with a margin of half a window holds every key that its queries may
# see, 100 for a window of 7, on any grid. The keys are those of the reference, so all images share them, and the queries of the whole batch that fall into one tile form one matrix. MLKA, in contrast, sees nearly everything, and is computed whole.
#
# ```{literalinclude} ../uad_core/methods/windows.py
# :pyobject: local_attention
# :lineno-match:
# :caption: Equation {eq}`rlr-lca`, computed in tiles
# ```
#
# `python benchmarks/attention.py` measures what that saves, beside a dense version with masks that the tests use as their oracle.
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: LevelNetwork.forward
# :lineno-match:
# :caption: One level's network in {py:class}`uad_core.methods.rlr.LevelNetwork`
# ```
#
# ```{literalinclude} ../uad_core/methods/rlr.py
# :pyobject: RLR.loss
# :lineno-match:
# :caption: Equation {eq}`rlr-loss`
# ```
#
# Which settings are the authors' and which are ours is written beside each of them.

# %%
rows = [
    (f.name, str(getattr(detector.config, f.name)), str(f.default), f.metadata["mark"], f.metadata["note"])
    for f in dataclasses.fields(detector.config)
]
HTML(pd.DataFrame(rows, columns=["setting", "on this page", "default", "status of the default", "meaning"]).to_html(index=False))

# %% [markdown]
# Nearly everywhere the page differs from the default, its small profile traded the authors' value for time: narrower and fewer layers, fewer heads, a higher learning rate that falls, and far fewer epochs than their 200. That channels are standardised is ours ◇. Not in the table: images of 128 pixels instead of 256, and a smaller backbone. The profile `paper` keeps all of the authors' values in this table.
#
# ```{admonition} Take-away
# :class: note
# By hand every pair of positions is computed and most are thrown away; the package cuts the grid into tiles instead.
# ```
#
# ## Training
#
# The levels are independent, so each is trained by itself with an optimiser of its own ◇; the authors' code shares one Adam. It also evaluates on the test set after each epoch and keeps the best epoch; we keep the last. The loss below is the sum of both.

# %%
detector.fit(features)
trainable = sum(p.numel() for p in detector.nets.parameters())
print(f"{trainable / 1e6:.2f} million trainable weights, {len(detector.history)} epochs, one model for {len(classes)} classes")

# %% mystnb={"figure": {"caption": "Training loss, both levels together. It falls quickly in the first epochs, then more and more slowly; the learning rate goes to zero at the end.", "name": "fig-rlr-loss"}, "image": {"alt": "Training loss over epochs on a logarithmic axis, falling steeply at first, then levelling off."}} tags=["hide-input"]
plots.loss_curve(detector.history)

# %% [markdown]
# Four epochs are a beginning: the ledger's runs below have twelve, and the authors train for 200 at a constant rate. In {numref}`fig-rlr-loss` RLR has not come down to a tenth of its first loss; the autoencoder had in its fifteen, by copying. The lengths and the losses differ (two levels, noise, a term for the direction), so the two cannot be compared to the point. That RLR needs long training
# agrees with what a user of the authors' code reports: after 30 epochs image AUROC on `screw` of MVTec AD was .472, no better than chance.
#
# ### The shortcut, side by side
#
# Three networks in the same frame, trained alike on the tokens of stride 8, beside the autoencoder from above with its fifteen epochs: attention that sees *everything including its own neighbourhood*, with a residual path and without noise; the neighbour-masked attention of UniAD (keys from the image, no reference); and RLR. Levels are independent, so RLR's network of stride 8 is the one that was trained above; where a larger profile trained that one for longer, a short one is trained here, and the comparison stays even.

# %%
def variant(**settings):
    """A network of stride 8 on the same tokens, trained for the four epochs of the short profile; settings differ from it."""
    same = dict(backbone=detector.backbone.name, standardise=detector.config.standardise)
    model = uad_core.create("rlr", profile="smoke", seed=SEED, image_size=detector.image_size, strides=(8,), **same, **settings)
    model.to(detector.device)
    return model.fit(level, progress=False)


open_door = variant(blocks="sa", residual=True, jitter=0)
masked = variant(blocks="msa")
rlr = detector if PROFILE == "smoke" else variant()  # the short profile has trained the same network above

# %%
networks = {
    "token autoencoder": autoencoder, "own neighbourhood": open_door.nets[0], "neighbour mask": masked.nets[0], "RLR": rlr.nets[0],
}
share = {name: copied_share(network) for name, network in networks.items()}

# %% mystnb={"figure": {"caption": "How much of a foreign square passes through four networks: equation {eq}`rlr-copy`.", "name": "fig-rlr-share"}, "image": {"alt": "Bars of the copied share: token-wise autoencoder nearly 100 percent, attention with its own neighbourhood about 75, neighbour-masked attention and RLR below 15."}} tags=["hide-input"]
plots.grouped_bars(
    pd.DataFrame({"network": list(share), "copied share": list(share.values())}), "network", "copied share",
    ylabel="copied share κ (%)", ylim=(0, 1),
)

# %% tags=["hide-input"]
holds(min(share["token autoencoder"], share["own neighbourhood"]) > 0.5, share["RLR"] < 0.5 * share["own neighbourhood"])

# %% [markdown]
# In {numref}`fig-rlr-share` both networks with an open door copy more than half, and RLR less than half of what attention to its own neighbourhood copies. To *see* what a network holds for the content of the square, features must become colours: a small decoder is trained to paint images from the features of normal images; the authors' code has one for each class, ours is one for all ◇. It is for pictures only; no score is computed from them.

# %%
with torch.no_grad():
    targets = detector.tokens(0, level.batch(slice(None), detector.device)[0]).transpose(1, 2).unflatten(2, grid)
painter = FeaturePainter((channels,), (8,), seed=SEED).to(detector.device)
painter.fit(Features([targets.half()], level.key), train_set.images(), epochs=6, progress=False)


def paint(x):
    """Tokens (N, L, C) as images (N, 3, H, W)."""
    with torch.no_grad():
        return painter([x.transpose(1, 2).unflatten(2, grid)])

# %% mystnb={"figure": {"caption": "A square of another class in a normal image of each class, and what four networks reconstruct, painted from their features. The first two networks repaint the foreign square; the last two paint what they know.", "name": "fig-rlr-shortcut"}, "image": {"alt": "Six rows of pictures, one column for each class. In the rows image, features, token autoencoder and own neighbourhood the foreign square is visible, in plank and circuit only faintly; in the rows neighbour mask and RLR it has been painted over, but for a spot in the tablet, grey with the neighbour mask and dark with RLR. The neighbour mask's jar is no jar, only a pale brown."}} tags=["hide-input"]
with torch.no_grad():
    rows = {"image": foreign, "its features": paint(pasted)} | {name: paint(network(pasted)) for name, network in networks.items()}
plots.picture_grid(rows, list(classes), masks)

# %% mystnb={"figure": {"caption": "The score map of each network for the images of the figure above, on one scale within each row. The square stands out in every row, though in the neighbour mask's tablet the tablet's outline is brighter; how large its error is, and how much larger than elsewhere, is in the table below, since the scale differs from row to row.", "name": "fig-rlr-errors"}, "image": {"alt": "Score maps of four networks, one row each and one column for each class. In nearly every map the square is brighter than its surroundings, most sharply in RLR's row and least in the circuit's column; in the neighbour mask's tablet the outline of the tablet is brighter than the square."}} tags=["hide-input"]
errors = {
    name: scoring.feature_distance(network(pasted).transpose(1, 2), pasted.transpose(1, 2), 1.0, 1.0).view(-1, *grid).detach()
    for name, network in networks.items()
}
plots.picture_grid({"image": foreign} | errors, list(classes), masks)

# %% [markdown]
# In {numref}`fig-rlr-shortcut` follow one column downwards. The autoencoder paints the square as it came, and so does self-attention with a residual path and without noise (the row "own neighbourhood"). The two masked networks paint over it. RLR fills the middle of the jar with brown, while the neighbour mask paints no jar at all. In the tablet's column a brown square was pasted. RLR puts the tablet back at the square's rim, and in its middle a spot with the colour of the belt around the tablet: something normal, only not the right thing; the neighbour mask's spot is grey. RLR's error is there all the same, smaller than for weave, grille and jar.
#
# Look at the copier in {numref}`fig-rlr-errors`: on its own scale even the copier's square stands out, because what it fails to copy, little as it is, exceeds the next to nothing that it fails to copy elsewhere. So put numbers to it:

# %%
def error_in_and_out(name):
    """Copied share, mean error of the tokens inside the square and outside, and their ratio."""
    inside_square, outside = (errors[name].flatten(1)[part].mean().item() for part in (hit, ~hit))
    return {"copied share": share[name], "error inside": inside_square, "outside": outside, "ratio": inside_square / outside}


contrast = pd.DataFrame({name: error_in_and_out(name) for name in networks}).T
contrast.style.format("{:.3f}")

# %% tags=["hide-input"]
outside = contrast["outside"]
holds(
    contrast.loc["RLR", "ratio"] > contrast["ratio"].iloc[:2].max(), contrast.loc["RLR", "error inside"] > 5 * contrast["error inside"].iloc[0],
    outside["RLR"] > outside.iloc[:2].max(), outside["neighbour mask"] > 1.5 * outside["RLR"], share["neighbour mask"] < share["RLR"],
)

# %% [markdown]
# RLR's square stands out more than that of both copiers, and its error there is many times the first copier's. Note what RLR pays: outside the square, too, it reconstructs less well than the copiers do. A detector needs a *difference* between defect and normal, not a small error. The neighbour mask copies even less than RLR, but it also knows less ◇: trained as long, it errs nearly twice as much outside the square, and the ratio falls below that of the copiers. The ledger below compares the two after longer training.
#
# ### The reference, drawn
#
# What has been written into $R$? It is not one picture: the same $L$ tokens serve all classes, and the query picks. To see it unmixed we train a network *with LCA only*, so that each of its attention values comes from the reference, and let one normal image of each class ask.

# %%
lca_only = variant(blocks="lca")
itself = paint(lca_only.nets[0].reference.detach()[:1]).expand(len(classes), -1, -1, -1)

# %% mystnb={"figure": {"caption": "What the reference holds for each class: normal images, their features painted, RLR's reconstruction, and that of a network whose content comes from its reference alone. The last row paints such a reference as it is, without a query: it is the same for all.", "name": "fig-rlr-memory"}, "image": {"alt": "Five rows of pictures, one column for each class: the image, its features painted back to colours, the reconstruction by RLR, the one from the reference alone, in which jar and tablet are recognisable, of the circuit only a pale patch in the middle, weave and plank only by colour, and the holes of the grille are lost, and the reference itself, a pattern without meaning, the same in each column."}} tags=["hide-input"]
memory = {"image": normal, "its features": paint(clean)}
with torch.no_grad():
    memory |= {"RLR": paint(rlr.nets[0](clean)), "reference alone": paint(lca_only.nets[0](clean)), "R itself": itself}
plots.picture_grid(memory, list(classes))

# %% [markdown]
# In the row "reference alone" of {numref}`fig-rlr-memory` the values of all products come from one reference; jar and tablet are recognisable, the holes of the grille are not, and yet the reference itself shows none of them: it need not look like a feature map, since $E_R$, $W_v$ and the layers after them translate it. It started as random numbers, and the picture does not tell how far training has moved it. We read it as a set of codes, position by position, from which the query picks (our reading ◇).
#
# And here is *where* the classes look when they ask from the same position: the weights of LCA in the first layer, averaged over heads. Look along a row of {numref}`fig-rlr-attention`: from the middle, each class picks tokens of its own.

# %% mystnb={"figure": {"caption": "Attention weights of LCA's first layer for a query in the middle of the grid and one in its corner, for one image of each class. What LCA adds at that position comes from these few tokens of the reference; MLKA adds content from the rest of the image.", "name": "fig-rlr-attention"}, "image": {"alt": "Two rows of maps, one column for each class: dark but for a small window in the middle, or in the upper left corner, within which the weights differ from class to class."}} tags=["hide-input"]
with torch.no_grad():
    looks = lca_weights(net.embed(clean), net.embed_reference(net.reference)[0]).mean(1)  # (N, L, L)
plots.picture_grid({"middle": looks[:, middle].view(-1, *grid), "corner": looks[:, 0].view(-1, *grid)}, list(classes))

# %% [markdown]
#
# ```{admonition} Take-away
# :class: note
# After four epochs RLR paints over a foreign square that two other networks repaint, and errs more elsewhere than they do.
# The reference is no picture: it is read position by position, each class picks its own tokens.
# ```
#
# ## Residual maps
#
# Now the real test images, all classes with the one model. The panel shows of each class the first defective image.

# %%
predicted = {name: detector.predict(part, progress=False) for name, part in test_features.items()}
first = {name: int(np.flatnonzero(data.test.labels)[0]) for name, data in classes.items()}


def panel(chosen):
    """The residual panel of one test image of each class: name -> position in its test set."""
    images = torch.stack([classes[name].test[i] for name, i in chosen.items()])
    masks = torch.stack([classes[name].test.mask(i) for name, i in chosen.items()])
    with torch.no_grad():
        residuals = {key: value.cpu() for key, value in detector.residuals(images.to(detector.device)).items()}
    maps, scores = (np.stack([predicted[name][part][i] for name, i in chosen.items()]) for part in (0, 1))
    labels = [bool(classes[name].test.labels[i]) for name, i in chosen.items()]
    return plots.residual_panel(images, masks, residuals, maps, scores, None, list(chosen), labels=labels)

# %% mystnb={"figure": {"caption": "One model, one defective image of each class: image, mask, the score maps of both levels, the anomaly map, and the image score (there is no threshold). One colour scale for all score maps, and one for all anomaly maps.", "name": "fig-rlr-panel"}, "image": {"alt": "Residual panel with one column for each class. The defects of weave, grille and jar are bright in all maps; those of plank, tablet and circuit are not. The score maps of stride 8 are sharper and noisier, those of stride 16 calmer and coarser."}} tags=["hide-input"]
panel(dict(list(first.items())[:6]))

# %% [markdown]
# Weave, grille and jar are found in {numref}`fig-rlr-panel`; the scratch of the plank, the chip at the tablet's edge and the flaw of the circuit are not.

# %% [markdown]
# ### The same after longer training
#
# Four epochs are few. The maps of a joint model with the profile `cpu`, twelve epochs on images of 256 pixels, are kept in small files for {doc}`the explorer </book/explorer>`, eight bits a value, made by `python tools/explorer.py make rlr`. Its defective image of each class, with the score divided by the threshold that further normal images of the class place:

# %% tags=["hide-input"]
LIVE = Path("../book/_static/live/levels")


def kept(name):
    """What a file of the explorer holds."""
    text = (LIVE / f"{name}.js").read_text("utf-8")
    return json.loads(text[text.index(", ") + 2 : text.rindex(")")])


def unpacked(level):
    """A level (N, h, w): differences along the rows, packed, of a logarithmic scale in 8 bits."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(level["bytes"])), np.uint8).reshape(-1, *level["size"])
    share = steps.cumsum(-1, dtype=np.uint8) / 255
    return torch.from_numpy(level["low"] * (level["high"] / level["low"]) ** share).float()


def picture(text):
    """An image (3, H, W) from its WebP file."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(text))))).permute(2, 0, 1) / 255


# %% tags=["hide-input"]
def longer_run(category):
    """Image, mask, levels, map and score over threshold of the first defective image of a category, after longer training."""
    seen, found = kept(category), kept(f"{category}-rlr")
    i = seen["labels"].index(1)
    marked = np.unpackbits(np.frombuffer(base64.b64decode(seen["masks"]), np.uint8)).reshape(-1, 64, 64)[i]
    levels = {level["name"]: unpacked(level)[i : i + 1] for level in found["levels"]}
    fused = torch.stack([scoring.upsample(phi, (64, 64), True) for phi in levels.values()]).mean(0)
    score = scoring.gaussian_blur(fused, found["score"]["sigma"]).max() / found["thresholds"]["0,1"]
    mask = torch.from_numpy(marked).bool().repeat_interleave(4, 0).repeat_interleave(4, 1)
    return picture(seen["images"][i]), mask, levels, scoring.upsample(fused, (256, 256))[0], score


stored = [longer_run(name) for name in procedural.CATEGORIES] if LIVE.is_dir() else []

# %% mystnb={"figure": {"caption": "One model after twelve epochs, the first defective image of each class in the explorer. The score is in units of the class's threshold: above 1 means anomalous.", "name": "fig-rlr-longer"}, "image": {"alt": "Six products in columns: image, mask, two score maps, anomaly map and verdict. The defects of weave, grille and jar are bright, those of plank, tablet and circuit fainter; all six scores lie above their thresholds."}} tags=["hide-input"]
def stored_panel(rows):
    """The residual panel of what `longer_run` returned."""
    pictures, marks, levels, maps, scores = zip(*rows)
    residuals = {name: torch.cat([found[name] for found in levels]) for name in levels[0]}
    return plots.residual_panel(torch.stack(pictures), torch.stack(marks), residuals, torch.stack(maps), torch.stack(scores), 1.0, procedural.CATEGORIES)


stored_panel(stored) if stored else "the explorer's files are not beside this notebook: clone the repository to see the figure"

# %% tags=["hide-input"]
assert all(row[-1] > 1 for row in stored)

# %% [markdown]
# In {numref}`fig-rlr-longer` all six defects lie above the threshold of their class, those of plank, tablet and circuit by little. Thresholds of classes are what this comparison adds, besides the training. We go on with the short model, which you have seen trained.
#
# One scale for all classes shows a difficulty of joint models that is hidden in a table of AUROCs: the classes do not share a *level* of normal. In {numref}`fig-rlr-alarms`, where every piece is good, a tablet and a plank score higher than the defective circuit of {numref}`fig-rlr-panel`. What is hard to reconstruct glows with a value that would be an alarm elsewhere. AUROC is computed class by class and does not notice; a factory with one threshold would.
#
# These are, class by class, the defects with the *lowest* score ({numref}`fig-rlr-worst`), then the good pieces with the *highest*.

# %%
worst, alarms = {}, {}
for name, data in classes.items():
    scores, labels = predicted[name][1], data.test.labels
    worst[name] = int(np.flatnonzero(labels)[scores[labels].argmin()])
    alarms[name] = int(np.flatnonzero(~labels)[scores[~labels].argmax()])

# %% mystnb={"figure": {"caption": "The worst misses: of each class the defective image with the lowest score.", "name": "fig-rlr-worst"}, "image": {"alt": "Residual panel of the hardest defective image of each class; most of the masks have no bright counterpart in the anomaly map."}} tags=["hide-input"]
panel(dict(list(worst.items())[:6]))

# %% mystnb={"figure": {"caption": "The worst false alarms: of each class the normal image with the highest score.", "name": "fig-rlr-alarms"}, "image": {"alt": "Residual panel of the most suspicious normal image of each class: tablet and plank glow, the other four are dark."}} tags=["hide-input"]
panel(dict(list(alarms.items())[:6]))

# %% [markdown]
# ```{admonition} Take-away
# :class: note
# Four epochs find the defects of three classes of six in these examples, twelve those of all six, by little in three.
# Normal places glow at another level in each class, so one threshold for all is a poor one.
# ```

# %% [markdown]
# ## Results
#
# First the run that you have just seen.

# %%
def evaluate(predictions):
    """Metrics of one model on every class; predictions: name -> maps and scores of its test images."""
    rows = {}
    for name, (maps, scores) in predictions.items():
        test = classes[name].test
        rows[name] = metrics.evaluate(scores, test.labels, maps, test.masks())
    return pd.DataFrame(rows).T.loc[:, ["image_auroc", "pixel_auroc", "pixel_ap", "aupro"]]


measured = evaluate(predicted)
measured.loc["mean"] = measured.mean()
measured.style.format("{:.3f}")

# %% tags=["hide-input"]
holds(measured["pixel_auroc"].min() > 0.7)

# %% [markdown]
# The profile of this page is short, and image AUROC suffers first: it asks that the *largest* value of a defective image exceed the largest of a good one. The ledger has the longer runs. "One model for 8" was trained on the six built-in categories, on `bottle` of MVTec AD and on the magnetic tiles of MTD together, with the command
#
# ```bash
# uad run rlr --dataset procedural,mvtec_ad,mtd --category procedural/weave,procedural/plank,procedural/grille,procedural/jar,\
# procedural/tablet,procedural/circuit,mvtec_ad/bottle,mtd/mtd --profile cpu --out runs/joint
# ```
#
# "Neighbour mask" is the same with `--set blocks=msa`, UniAD's masked attention in place of both of RLR's; "one model each" is `--no-joint`, a model for each category, trained for the same number of epochs. RLR's joint model was trained with several seeds, and its figures are their means; the other two have one seed each. We know of one published anchor near RLR: UniAD's authors state, for one model of all fifteen categories of MVTec AD, image and pixel AUROC of .967 and .968 on eight GPUs, and .976 and .970 on one. We set beforehand: our version is sound if the joint
# model reaches an image AUROC of .98 and a pixel AUROC of .97 on `bottle`, an easy category.

# %%
runs = tables.frame("rlr")
runs = runs[(runs["source"] == "measured") & (runs["profile"] == "cpu")]
# Versions of the code stand in lines of their own: of each model we take the one with the most seeds.
line = ["dataset", "category", "settings", "joint", "members"]
runs = runs.sort_values("n_seeds", ascending=False, kind="stable").drop_duplicates(line).sort_index()
joint = runs["joint"].astype(bool)
models = {
    "RLR, one model for all": runs[joint & (runs["settings"] == "")], "RLR, one model each": runs[~joint & (runs["settings"] == "")],
    "neighbour mask, one model for all": runs[joint & (runs["settings"] == "blocks=msa")],
}
shown = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP"}

# %%
columns = {
    (title, model): rows[~rows["category"].str.startswith("mean")].set_index(["dataset", "category"])[name]
    for name, title in shown.items() for model, rows in models.items()
}
side_by_side = pd.DataFrame(columns)
side_by_side.loc[("mean", ""), :] = side_by_side.mean()
(100 * side_by_side).style.format("{:.1f}")

# %% [markdown]
# How much of this is chance? The standard deviation over the seeds of the joint model, in percentage points ("mean of 8" belongs to the last line above). The other two models were not repeated; a lead that is smaller than these deviations is none.

# %%
over_seeds = models["RLR, one model for all"].set_index(["dataset", "category"])
print("seeds:", over_seeds["seeds"].iloc[0])
deviation = over_seeds[[f"{name}_sd" for name in shown]].set_axis(list(shown.values()), axis=1)
(100 * deviation).style.format("{:.1f}", na_rep="–")

# %% tags=["hide-input"]
bottle = side_by_side.loc[("mvtec_ad", "bottle")]
assert bottle["image AUROC", "RLR, one model for all"] >= 0.98 and bottle["pixel AUROC", "RLR, one model for all"] >= 0.97

# %% [markdown]
# Both marks are reached. On average the joint model is as good as a model for each category, as far as one seed of the latter can tell, and ahead of the neighbour mask trained alike; where joint and separate RLR differ most, on `tablet`, the joint model has been shown over twenty times as many images in all. Tablet is hard for all three models, and its image AUROC is near chance for two of them. The paper's own figures were not in what we could read: `uad table rlr` prints every row of the ledger and says so beside each data set. On the magnetic tiles of MTD it is the pixels that stay hard; our explanation ◇ is that no two normal tiles look alike at the same position.
#
# ```{admonition} Take-away
# :class: note
# One model for eight products does as well as eight models, as far as one seed of the latter can tell.
# Both marks that were set beforehand are reached on an easy category.
# ```

# %% [markdown]
# ## What breaks it
#
# **Each part taken away.** First the same short training on stride 8, all classes in one model: RLR, RLR with one of its attentions alone, its pair replaced by another attention, and the *copier*, which is the network "own neighbourhood" of {numref}`fig-rlr-share` (self-attention with a residual path and without noise, three changes at once):

# %%
def ablation(model):
    """Mean metrics over classes, and the copied share, of a variant."""
    of_level = {name: part.only([0]) for name, part in test_features.items()}
    predictions = {name: model.predict(part, progress=False) for name, part in of_level.items()}
    return evaluate(predictions).mean().to_dict() | {"copied share": copied_share(model.nets[0])}


# %%
variants = {
    "RLR": rlr, "LCA only": lca_only, "MLKA only": variant(blocks="mlka"),
    "plain self-attention": variant(blocks="sa"), "neighbour mask": masked, "copier": open_door,
}
ablations = pd.DataFrame({name: ablation(model) for name, model in variants.items()}).T
ablations.style.format("{:.3f}")

# %% [markdown]
# Then the ledger's: images of 256 pixels, stride 16 alone, the profile `cpu`, mean over the six built-in categories, one seed. "Copier" is the same as above.

# %%
names = {
    "strides=16": "RLR", "blocks=lca strides=16": "LCA only", "blocks=mlka strides=16": "MLKA only",
    "blocks=ca,mlka strides=16": "LCA without window, MLKA", "blocks=sa strides=16": "plain self-attention",
    "blocks=sa jitter=0 residual=true strides=16": "copier", "jitter=0 strides=16": "no noise", "ref_len=2 strides=16": "two references",
}
longer = runs[(runs["category"] == "mean of 6") & runs["settings"].isin(names)].set_index("settings")
longer = longer.loc[[key for key in names if key in longer.index], list(shown)].rename(index=names, columns=shown)
(100 * longer).style.format("{:.1f}")

# %% tags=["hide-input"]
page = ablations.drop(columns="copied share")
gap = 100 * (longer.loc["copier"] - longer.loc["RLR"])
holds((page.loc["copier"] > page.loc["RLR"]).all(), (page.loc["plain self-attention"] < page.loc["RLR"]).all(), ablations.loc["LCA only", "copied share"] > 0.5)
assert gap["image AUROC"] > 0 and (gap[["pixel AUROC", "pixel AP"]] < 0).all() and gap.abs().max() < 2
assert (longer.loc["plain self-attention"] < longer.loc["RLR"]).all()

# %% [markdown]
# Read the tables with two questions in mind, how well defects are found and how much of a foreign square passes (the copied share); they have different answers.
#
# * *MLKA alone* learns little in this time. Its copied share is small, but that is no merit: a network that answers with a mean copies little as well.
# * *LCA alone* finds defects somewhat worse than RLR, and more than half of the foreign square passes, although every bit of content comes from the reference. Why? The square is a piece of *another class*, so the reference knows it. The convex hull of {eq}`rlr-lca` holds the normal contents of all classes, and a query from the square fetches those of its own. What
#   stops it in RLR is MLKA, whose values come from the rest of the image and say which class this is (our reading ◇).
# * *Plain self-attention* sees its own neighbourhood and has no reference, yet it copies far less than the copier. What opens the door of "own neighbourhood" in {numref}`fig-rlr-share` is therefore not the view alone: that network also has a residual path and no noise. Which of the two opens the door, neither table separates. Plain self-attention finds defects worse than RLR in both tables, so a small copied share does not by itself make a good detector.
# * *Noise* and a *second reference* change little in the ledger's runs, and taking away LCA's *window* even gains image AUROC there (one seed each).
# * The *copier* passes most of a foreign patch. In the page's short training it is ahead of RLR in every measure; in the ledger's it is ahead in image AUROC and behind in both measures of pixels, each by less than two points. With one seed each, none of these differences is settled. {numref}`fig-rlr-errors` showed how it can be as good: AUROC compares errors with errors, and a copier's are small everywhere. The shortcut is real, but at this size and length it does not decide the score. The authors' claim is about
#   networks with far more weights, trained for two hundred epochs, in which the remaining error may shrink further ◇; we did not train those, so this table neither confirms nor refutes them.
#
# **Turn the product.** The reference has one token for each *position*, and the position table tells the query where it is. Rotate every normal test image by one, two and three quarter turns: nothing is wrong with it, and the model has never seen it so.

# %%
turned = {}
for name, data in classes.items():
    good = data.test.images(np.flatnonzero(~data.test.labels))
    upright = predicted[name][1][~data.test.labels].mean()
    turned[name] = {f"{90 * turns}°": detector.score(good.rot90(turns, (2, 3))).mean().item() / upright for turns in (1, 2, 3)}
turned = pd.DataFrame(turned).T

# %% mystnb={"figure": {"caption": "Mean score of good pieces after a turn, divided by their mean score upright (the line at 1). The circuit, whose parts have fixed places, suffers at every angle; plank, grille and tablet chiefly at 90\u00b0 and 270\u00b0.", "name": "fig-rlr-rotation"}, "image": {"alt": "Grouped bars for each class and three angles; circuit is highest, about four at all angles; plank, grille and tablet are high at 90 and 270 degrees and near one at 180; jar and weave are little above one at every angle."}} tags=["hide-input"]
long = turned.reset_index(names="class").melt("class", var_name="turned by", value_name="score")
sheet = plots.figure(2.8)
axes = sheet.subplots()
for k, (angle, rows) in enumerate(long.groupby("turned by", sort=False)):
    axes.bar(np.arange(len(rows)) + 0.27 * (k - 1), rows["score"], 0.25, label=angle)
axes.axhline(1, color="black", lw=0.8)
axes.set(ylabel="mean score / upright", xticks=range(len(turned)), xticklabels=turned.index)
axes.legend(title="turned by")
sheet

# %% [markdown]
# In {numref}`fig-rlr-rotation` the circuit, whose parts have a place, suffers most, and the round jar and the weave, which looks alike in both directions, least. Plank, grille and tablet suffer from a quarter turn and hardly from a half one: a texture has a direction. How much is due to the reference, and how much to features that change with any turn, this test does not separate. On a conveyor where parts arrive at any angle RLR needs images at every angle, or a step that turns them upright first. We expect the same of shifts by more than a few tokens, and did not measure it ◇. It fits that `screw`, whose images show the screw at all angles, is the category for which that user reports chance level.
#
# ```{admonition} Take-away
# :class: note
# What is copied and what is found are two things: at this size and length a copier finds as much.
# The reference knows positions, so a turned product looks wrong.
# ```

# %% [markdown]
# (rlr-products)=
# ## One setting for all products
#
# RLR's score is the paper's, so there was less to choose. These are models of one product each, with the profile `cpu`, on those products of the development set that the chapter on HFR {ref}`describes <hfr-products>` for which the ledger has such a run; in percent:

# %%
beside = tables.side_by_side("rlr", "knn")
(100 * beside).style.format("{:.1f}")

# %% tags=["nbval-check-output"]
print(tables.where_behind(beside, "rlr", "knn"))

# %% [markdown]
# The lines below the table name every product on which the nearest neighbour is ahead by more than a hundredth, and the two whose images RLR tells apart worst. `tablet` is among both, and both limits of the method meet there (our reading ◇). RLR's reference has one token for each position, so it can stand for what is normally *there*; where a product lies at any angle, one token has to stand for belt, print and rim.
# Its score adds distance and direction {eq}`rlr-loss`, so an empty background counts in it as the chapter on HFR {ref}`shows <hfr-empty>` for that residual. The method as the paper has it sets both limits.
#
# ```{admonition} Take-away
# :class: note
# One token of the reference for each place: a limit where a product lies at any angle.
# A score by distance and direction: a limit before an empty background.
# ```

# %% [markdown]
# ## Exercises
#
# ```{exercise} Two hops
# :label: rlr-hops
# Let $M = 2$ and ignore LCA. Write down which tokens of the input can contribute *values* to $\hat X_p$ through two layers of MLKA on a grid of $16 \times 16$ with $w = 5$. Is $p$ among them?
# ```
#
# ```{solution} rlr-hops
# :class: dropdown
# In the second layer $p$ takes values from all $q \notin W(p)$; each such $q$ took, in the first layer, values from all $u \notin W(q)$. Is $p \notin W(q)$? Windows are symmetric: $q \notin W(p)$ holds exactly if $p \notin W(q)$. So yes: every $q$ outside $p$'s window may carry $p$'s content back, and $u = p$ is among the sources. So is every other token: $W(p)$ and $W(u)$ hold at most 25 tokens each, so some $q$ of the 256 lies outside both. What protects then? The content of one token arrives mixed with that of 230 others, with weights that the reference's keys decide.
# ```
#
# ```{exercise} Count the weights
# :label: rlr-count
# How many trainable numbers has the network of one level with $C$ channels, width $d$, $M$ layers, a grid of $L$ tokens and $r = 1$? Check your formula against the authors' 4.34 million for $C = 72, d = 256, M = 4, L = 1024$.
# ```
#
# ```{solution} rlr-count
# :class: dropdown
# Reference $LC$; two embeddings $2(Cd + d)$; each layer two attentions $2 \cdot 4(d^2 + d)$, a feed-forward network $8d^2 + 5d$ and two norms $4d$, together $16d^2 + 17d$; final norm and head $2d + dC + C$. With the numbers: $73\,728 + 37\,376 + 4 \cdot 1\,052\,928 + 19\,016 = 4\,341\,832$.
# ```
#
# ```{exercise} Attention in a window
# :label: rlr-window-exercise
# Write `near(grid, window)`, the mask of {eq}`rlr-window`, with two loops and no library function but `torch.zeros`. Test it with `check_window`.
# ```

# %%
def check_window(candidate):
    """Compare an answer to 'Attention in a window' with the book's function on three grids."""
    for size, w in (((4, 4), 3), ((5, 7), 5), ((8, 8), 5)):
        got, wanted = candidate(size, w), window_mask(size, w)
        if got.shape != wanted.shape:
            return f"not yet: the shape is {tuple(got.shape)} and should be {tuple(wanted.shape)}"
        if not torch.equal(got.bool(), wanted):
            return f"not yet: wrong on the grid {size}"
    return "correct"

# %% [markdown]
# ```{solution} rlr-window-exercise
# :class: dropdown
# ~~~python
# def near(grid, window):
#     h, w = grid
#     mask = torch.zeros(h * w, h * w)
#     for p in range(h * w):
#         for q in range(h * w):
#             rows, columns = abs(p // w - q // w), abs(p % w - q % w)
#             mask[p, q] = max(rows, columns) <= window // 2
#     return mask
#
#
# check_window(near)
# ~~~
# ```
#
# ```{exercise} How much can a denoiser restore?
# :label: rlr-denoiser
# By {eq}`rlr-shrink` the best linear denoiser shrinks each principal direction of the tokens by $\sigma_i^2 / (\sigma_i^2 + \nu^2)$. Write `shrink(x, nu)` for tokens `x` of shape `(n, C)`: subtract the mean, go to the principal axes of `x`, shrink, and go back. Test it with `check_shrink`. Then let it take mean and axes from the tokens of all training images and compute its copied share for the noise of {eq}`rlr-jitter`, $\nu = s \lVert X\rVert_2 / C$ with the mean length of a token; compare it with {numref}`fig-rlr-share`.
# ```

# %%
def check_shrink(candidate):
    """Compare an answer to 'How much can a denoiser restore?' with the solution of the normal equations on random tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]) + 1
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    wanted = mean + (x - mean) @ torch.linalg.solve(covariance + 0.5**2 * torch.eye(6), covariance)
    return "correct" if torch.allclose(candidate(x, 0.5), wanted, atol=1e-3) else "not yet"

# %% [markdown]
# ```{solution} rlr-denoiser
# :class: dropdown
# ~~~python
# def shrink(x, nu, fit=None):
#     fit = x if fit is None else fit
#     mean = fit.mean(0)
#     _, s, v = torch.linalg.svd(fit - mean, full_matrices=False)
#     variance = s**2 / len(fit)
#     return mean + (x - mean) @ (v.T * (variance / (variance + nu**2))) @ v
#
#
# x = targets.flatten(2).transpose(1, 2).flatten(0, 1)  # tokens of all training images
# nu = detector.config.jitter * x.norm(dim=-1).mean() / channels
# check_shrink(shrink), copied_share(lambda z: shrink(z.flatten(0, 1), nu, x).view_as(z))
# ~~~
# On the page's own data the share is near that of attention with an open door: directions in which *some* class varies are copied for *all* classes.
# ```
#
# ```{exercise} A reference that turns
# :label: rlr-turns
# *Open.* Let the model choose among references: with `ref_len=4`, could one train it on images at four angles so that each reference learns one angle? Say what the loss would have to add, try it on `tablet`, and report the copied share as well as the metrics.
# ```
#
# ## Further reading
#
# {doc}`08_gallery` shows what all five methods make of the same images, on your own copy of real data too.
#
# In {doc}`the explorer </book/explorer>` the levels of this method are switched off and on image by image.
#
# * {cite:t}`he2024rlr` is the paper of this chapter; its authors' code is public.
# * {cite:t}`you2022uniad` first asked for one model for all classes, and introduced the neighbour mask and the noise that RLR keeps.
# * {cite:t}`vaswani2017attention` is where queries, keys and values come from, and the sines of the position table.
# * {cite:t}`vincent2008denoising` train autoencoders on noisy input; {eq}`rlr-shrink` says what such a network keeps.
# * {cite:t}`deng2022reverse`: the decoder that answers from its own weights, the single-class relative of this idea.
