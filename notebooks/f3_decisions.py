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
# (chapter-decisions)=
# # From distances to decisions
#
# ```{admonition} At a glance
# :class: tip
#
# **What it is about.** Every method of this book ends alike: distances at the places of some levels become one map, the map becomes one number, and a threshold makes a verdict of it. And every method is judged alike, by AUROC, AP, F1-max and AUPRO. Both are derived here, the measures by hand on sixteen pixels.
#
# **One picture.** {numref}`fig-decisions-curves`: three curves of one small example, whose areas are three of the measures.
#
# **Cost.** Half a minute on two processor cores. Nothing is downloaded.
#
# **Afterwards you can** choose a smoothing for defects of a given size, compute all four measures with pencil and paper, say what a threshold promises and what it does to a factory in which one part in a thousand is bad, and name the failure that each measure does not see.
# ```

# %% tags=["hide-input"]
import os
import subprocess
import sys

REPO = os.environ.get("UAD_REPO", "https://github.com/uad-book/uad-book")
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"uad-core @ git+{REPO}"], check=True)

# %%
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
from matplotlib.patches import Rectangle
from scipy import ndimage

from uad_core import metrics, plots, scoring
from uad_core.plots.pictures import clear

plots.style()
SEED = 0

# %% [markdown]
# No detector is fitted on this page. Its maps are made up, so that everything about them is known.
#
# ## From levels to one map
#
# ### Upsampling
#
# A residual map of stride $s$ has one number for each cell of $s \times s$ pixels. In one dimension, cell $i$ covers the pixels $is, \dots, (i+1)s - 1$. Their centre is $is + (s - 1)/2 = (i + \tfrac12)\, s - \tfrac12$. Turned round, pixel $j$ lies at the position
#
# $$
# u_j = \frac{j + \tfrac12}{s} - \tfrac12
# $$ (decisions-position)
#
# of the cells, and *bilinear* upsampling gives it the two nearest cells, weighted by how near they are. With $i = \lfloor u_j \rfloor$,
#
# $$
# A_j = (1 - (u_j - i))\, \phi_i + (u_j - i)\, \phi_{i+1} ,
# $$ (decisions-bilinear)
#
# at the ends the one cell there is. In two dimensions this is done for rows and then for columns. Some programs let the centres of the *corner pixels* meet instead, $u_j = j\, (n - 1)/(sn - 1)$ for $n$ cells: then maps are stretched, and what a cell found is shown beside it.
#
# ```{literalinclude} ../uad_core/scoring.py
# :pyobject: upsample
# :lineno-match:
# :caption: Equations {eq}`decisions-position` and {eq}`decisions-bilinear` in {py:func}`uad_core.scoring.upsample`
# ```

# %% tags=["nbval-check-output"]
cells, stride = 16, 16
for corners, name in ((False, "cells stay in place"), (True, "corner pixels meet")):
    off = []
    for i in range(1, cells - 1):
        phi = torch.zeros(1, 1, cells)
        phi[..., i] = 1.0  # one cell has found something
        row = scoring.upsample(phi, (1, cells * stride), align_corners=corners)[0, 0]
        middle = (row * torch.arange(len(row))).sum() / row.sum()
        off.append((middle - ((i + 0.5) * stride - 0.5)).item())
    print(f"{name:20s}: what a cell found is shown off by {min(off):+.1f} to {max(off):+.1f} pixels")

# %% [markdown]
# ### Smoothing
#
# Residuals of good places flicker. A Gaussian $G_\sigma$ of deviation $\sigma$, with weights that sum to 1, averages the flicker away, and a part of the defect with it. How wide should it be? Take a map that is white noise of variance $\nu^2$, independent from pixel to pixel, and on it a defect, a bump of height $b$ and width $\tau$: $b\, e^{-\lVert p \rVert^2 / 2\tau^2}$.
#
# *The noise.* A weighted mean of independent numbers has the variance $\nu^2 \sum_p G_\sigma(p)^2$. For $\sigma$ of a pixel or more the sum is close to the integral, and the square of a Gaussian is a Gaussian again:
#
# $$
# \begin{aligned}
# \sum_p G_\sigma(p)^2 &\approx \int \frac{1}{(2 \pi \sigma^2)^2}\, e^{-\lVert p \rVert^2 / \sigma^2}\, \mathrm dp \\
# &= \frac{\pi \sigma^2}{4 \pi^2 \sigma^4} = \frac{1}{4 \pi \sigma^2} .
# \end{aligned}
# $$ (decisions-noise)
#
# *The defect.* The bump is $2 \pi \tau^2 b$ times a Gaussian density of variance $\tau^2$. Smoothing adds the variances, so its new peak is $2 \pi \tau^2 b / (2 \pi (\tau^2 + \sigma^2))$.
#
# Peak over deviation of the noise is therefore
#
# $$
# \mathrm{SNR}(\sigma) = \frac{b\, \tau^2}{\tau^2 + \sigma^2} \cdot \frac{2 \sqrt\pi\, \sigma}{\nu} .
# $$ (decisions-snr)
#
# The derivative of $\sigma / (\tau^2 + \sigma^2)$ is $(\tau^2 - \sigma^2)/(\tau^2 + \sigma^2)^2$: positive below $\sigma = \tau$, negative above. **Smooth as wide as the defect is.** No width suits all defects, which is one reason why maps of several strides are combined.
#
# ```{literalinclude} ../uad_core/scoring.py
# :pyobject: gaussian_blur
# :lineno-match:
# :caption: The Gaussian of equation {eq}`decisions-noise` in {py:func}`uad_core.scoring.gaussian_blur`
# ```

# %%
random = torch.Generator().manual_seed(SEED)
side = 128
noise = torch.randn(12, side, side, generator=random)
where = torch.arange(side) - side // 2
distance2 = where[:, None] ** 2 + where**2  # (side, side), squared distance from the middle
SIGMAS, TAUS = np.array([1, 1.5, 2, 3, 4, 6, 8, 12]), (2, 4, 8)

sheet = plots.figure(3.0)
axes = sheet.subplots()
best = {}
for tau, mark in zip(TAUS, ("o", "s", "^")):
    bump = torch.exp(-distance2 / (2 * tau**2))[None]
    measured = [(scoring.gaussian_blur(bump, s).max() / scoring.gaussian_blur(noise, s).std()).item() for s in SIGMAS]
    fine = np.linspace(1, 12, 200)
    line = axes.plot(fine, tau**2 / (tau**2 + fine**2) * 2 * np.pi**0.5 * fine)[0]
    axes.plot(SIGMAS, measured, mark, color=line.get_color(), label=f"τ = {tau} pixels")
    best[tau] = SIGMAS[int(np.argmax(measured))]
axes.set(xlabel="width of the smoothing σ (pixels)", ylabel="peak / deviation of the noise", xscale="log", yscale="log")
axes.set_xticks([1, 2, 4, 8, 12], ["1", "2", "4", "8", "12"])
axes.legend();

# %% mystnb={"figure": {"caption": "Signal over noise for bumps of three widths; their height and the deviation of the noise are 1. Lines: the formula; marks: measured with the package's own smoothing on drawn noise.", "name": "fig-decisions-snr"}, "image": {"alt": "Three curves over the smoothing width, each with a maximum where the smoothing is as wide as the bump; the marks lie on the lines, and somewhat below them where the smoothing is wide."}} tags=["hide-input"]
sheet

# %% tags=["nbval-check-output"]
for tau, sigma in best.items():
    print(f"a bump of width {tau} stands out most at σ = {sigma:g}")

# %% [markdown]
# Each curve in {numref}`fig-decisions-snr` has its top at $\sigma = \tau$. At wide smoothings the marks fall below the lines: a map is reflected at its border, so there the same noise counts twice and averages out less. Look also how flat the tops are: half or twice the best width costs a fifth, $2 \cdot 2/(1 + 4) = 0.8$ by {eq}`decisions-snr`. Real residuals are less kind: neighbouring cells share most of their field of view ({numref}`fig-frozen-footprint`), so their noise is *not* independent, and smoothing removes less of it.
#
# ```{admonition} Take-away
# :class: note
# When a map grows, each cell must stay over its own pixels.
# Smoothing helps most at the width of the defect, and is forgiving within a factor of two.
# ```

# %% [markdown]
# ## From the map to one number
#
# An image is as anomalous as its worst place, so the natural score is the largest value of the map. But the largest of many random numbers is large by chance. Of $n$ independent standard normal ones, the expected number above $t$ is $n\, \Pr(z > t) \approx n\, e^{-t^2/2}$ up to factors that grow more slowly, and the maximum lies near the $t$ for which this is about one,
#
# $$
# n\, e^{-t^2 / 2} \approx 1 \quad\Longrightarrow\quad \max \approx \sqrt{2 \ln n} .
# $$ (decisions-max)
#
# A defect has to rise above *this*. The mean of the map is at the other extreme: the noise falls to $1/\sqrt n$, but a defect that covers the share $a$ of the pixels with height $b$ raises it by $ab$ only. Between them lies the mean of the largest values, here 0.2 % of all pixels, called `top`.
#
# ```{literalinclude} ../uad_core/scoring.py
# :pyobject: image_score
# :lineno-match:
# :caption: Three ways from a map to a number, {py:func}`uad_core.scoring.image_score`
# ```
#
# *Before you read on:* a faint defect grows from a few pixels to a third of the image, at the same height. Which of the three notices it first, which best at the end?

# %%
RADII = (1, 2, 4, 8, 16, 32)
HOWS = ("max", "top", "mean")


def separation(radius, height, count=150, size=96):
    """AUROC of three image scores, with a disc of a radius and height on half of some maps of white noise, smoothed with σ = 1."""
    maps = torch.randn(2 * count, size, size, generator=random)
    line = torch.arange(size) - size // 2
    maps[count:] += height * (line[:, None] ** 2 + line**2 <= radius**2)
    maps = scoring.gaussian_blur(maps, 1.0)
    labels = torch.arange(2 * count) >= count
    return {how: metrics.auroc(scoring.image_score(maps, how), labels) for how in HOWS}


reduced = pd.DataFrame({radius: separation(radius, 0.8) for radius in RADII}).T
faint = pd.DataFrame({radius: separation(radius, 0.1) for radius in RADII}).T

# %% mystnb={"figure": {"caption": "How well three image scores tell maps with a disc from maps of noise, by the radius of the disc, for two heights in units of the noise before smoothing (one half is chance).", "name": "fig-decisions-reduce"}, "image": {"alt": "Two panels of three lines over the radius. At height 0.8 the mean of the largest values and the largest value rise first and all reach one. At height 0.1 the mean rises steeply for large radii while the largest value stays near one half."}} tags=["hide-input"]
sheet = plots.figure(2.9)
for ax, frame, title in zip(sheet.subplots(1, 2, sharey=True), (reduced, faint), ("height 0.8", "height 0.1")):
    for how, mark in zip(HOWS, ("o-", "s--", "^:")):
        ax.plot(RADII, frame[how], mark, label=how)
    ax.set(xlabel="radius of the defect (pixels of 96)", title=title, xscale="log", ylim=(0.35, 1.03))
    ax.set_xticks(RADII, [str(r) for r in RADII])
    ax.minorticks_off()
    ax.axhline(0.5, color=plots.COLOURS["quiet"], linewidth=0.8)
sheet.axes[0].set_ylabel("image AUROC")
sheet.axes[0].legend(loc="upper left")
sheet

# %% [markdown]
# ```{admonition} What came out
# :class: dropdown
# In {numref}`fig-decisions-reduce`, left, a defect that stands out of the noise is noticed by `top` first, by the maximum a little later, by the mean last. Right, one that is a tenth of the noise is hidden from all three while it is small, and when it is large the mean is the best, since it averages over most pixels, with `top` second and well behind. None is the best everywhere.
# ```
#
# ```{admonition} Take-away
# :class: note
# The maximum of a map grows with the number of pixels even where nothing is wrong.
# Small strong defects need the largest values, large faint ones the mean; `top` is a compromise.
# ```

# %% [markdown]
# (decisions-hand)=
# ## Sixteen pixels
#
# Is it a good map? The question is answered at two levels, image by image and pixel by pixel. The measures are the same, only the *samples* differ: images with their scores, or the pixels of *all* test images, pooled, with the values of the maps. We work them out for one image of $4 \times 4$ pixels.

# %%
MAP = np.array([[9, 8, 2, 1],
                [5, 6, 3, 2],
                [1, 4, 1, 3],
                [0, 2, 1, 4]])
MASK = np.array([[1, 1, 0, 0],
                 [1, 0, 0, 0],
                 [0, 0, 0, 0],
                 [0, 0, 0, 1]], dtype=bool)
normal, anomalous = sorted(MAP[~MASK].tolist(), reverse=True), sorted(MAP[MASK].tolist(), reverse=True)
N, P = len(normal), len(anomalous)

# %% mystnb={"figure": {"caption": "The example. Numbers are the anomaly map; frames are the two defects of the mask, one of three pixels and one of a single pixel.", "name": "fig-decisions-example"}, "image": {"alt": "A grid of four by four numbers. Framed in the upper left corner: 9, 8 and below them 5. Framed in the lower right corner: 4. The largest number outside is 6, in the second row; another 4 lies in the third row."}} tags=["hide-input"]
def draw_example(ax):
    """The numbers of the map, its mask framed."""
    clear(ax)
    ax.imshow(MAP, cmap="Greys", vmin=0, vmax=16)
    for (row, column), score in np.ndenumerate(MAP):
        ax.text(column, row, score, ha="center", va="center", weight="bold" if MASK[row, column] else "normal")
        if MASK[row, column]:
            ax.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=plots.COLOURS["anomalous"], linewidth=2.5))


sheet = plots.figure(2.2)
draw_example(sheet.subplots())
sheet

# %% tags=["nbval-check-output"]
print(f"N = {N} normal pixels:   ", *normal)
print(f"P = {P} anomalous pixels:", *anomalous)

# %% [markdown]
# ### Counting at a threshold
#
# At a threshold $t$ a sample with score $s$ is flagged if $s \ge t$. Four counts and three rates follow:
#
# $$
# \begin{aligned}
# \mathrm{TP}(t) &= \#\{\text{anomalous: } s \ge t\}, \\
# \mathrm{FP}(t) &= \#\{\text{normal: } s \ge t\}, \\
# \mathrm{FN}(t) &= P - \mathrm{TP}(t), \\
# \mathrm{TN}(t) &= N - \mathrm{FP}(t),
# \end{aligned}
# $$ (counts)
#
# $$
# \begin{aligned}
# \mathrm{TPR} = R &= \frac{\mathrm{TP}}{P}, \quad \mathrm{FPR} = \frac{\mathrm{FP}}{N}, \\
# \mathrm{Pr} &= \frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FP}}.
# \end{aligned}
# $$ (rates)
#
# The *recall* $R$ says how many of the defects are found, the *false positive rate* $\mathrm{FPR}$ how many of the good samples are flagged, the *precision* $\mathrm{Pr}$ how many of the alarms are right. *Accuracy*, the share of right decisions, is not among the measures: where one pixel in a hundred is defective, a map that flags nothing has an accuracy of 99 %.

# %%
def counts(t):
    """TP and FP at a threshold: equation (counts)."""
    return sum(s >= t for s in anomalous), sum(s >= t for s in normal)


rows = {}
for t in sorted({*normal, *anomalous}, reverse=True):
    tp, fp = counts(t)
    rows[t] = {"TP": tp, "FP": fp, "TPR": Fraction(tp, P), "FPR": Fraction(fp, N), "Pr": Fraction(tp, tp + fp)}
by_threshold = pd.DataFrame(rows).T.rename_axis("t")
by_threshold

# %% [markdown]
# ### AUROC
#
# Lower the threshold from above all scores to below all. Both rates rise from 0 to 1 and trace a curve, $\mathrm{TPR}$ over $\mathrm{FPR}$: the *receiver operating characteristic*, ROC. The area under it is the AUROC. A map that ranks every anomalous sample first climbs to 1 before it moves right, and has area 1.
#
# The area has a second meaning, easier to think with. Suppose first that no two scores are equal. The curve moves right by $1/N$ each time the threshold passes a normal sample $n$, and its height then is the share of anomalous samples above $s_n$. The area is a sum of $N$ strips:
#
# $$
# \begin{aligned}
# \mathrm{AUROC} &= \sum_{n} \frac1N \cdot \frac{\#\{a : s_a > s_n\}}{P} \\
# &= \frac{1}{NP} \sum_{n} \sum_{a} [\,s_a > s_n\,].
# \end{aligned}
# $$ (auroc-strips)
#
# With equal scores, let $b$ normal and $c$ anomalous samples share a score $v$, with $\mathrm{TP}_{>v}$ anomalous samples above it. At the threshold $v$ all are flagged at once, and the curve goes straight, right by $b/N$ and up by $c/P$. Below this slope lies a trapezoid,
#
# $$
# \frac{b}{N} \cdot \frac{\mathrm{TP}_{>v} + c/2}{P},
# $$ (auroc-trapezoid)
#
# so each of the $b$ normal samples counts the anomalous ones above it and *half* of those beside it. Together,
#
# $$
# \begin{aligned}
# \mathrm{AUROC} = \frac{1}{NP} \sum_{n} \sum_{a} \Bigl( & [\,s_a > s_n\,] \\
# &+ \tfrac12 [\,s_a = s_n\,] \Bigr).
# \end{aligned}
# $$ (auroc)
#
# **The AUROC is the probability that a random anomalous sample scores above a random normal one, a tie counting one half** {cite}`hanley1982`. In the example:

# %% tags=["nbval-check-output"]
beaten = {a: sum(a > n for n in normal) + Fraction(sum(a == n for n in normal), 2) for a in anomalous}
for a, number in beaten.items():
    print(f"the anomalous pixel with {a} beats {float(number):g} of {N} normal ones")
auroc = sum(beaten.values()) / (N * P)
print(f"AUROC = {float(sum(beaten.values())):g}/{N * P} = {float(auroc):.4f}; the package: {metrics.auroc(MAP, MASK):.4f}")

# %% [markdown]
# Four consequences of {eq}`auroc`:
#
# * **Only the order of scores matters.** A strictly increasing function may be applied to all of them. The package never squashes a map into $[0, 1]$: it could only lose, where rounding makes different scores equal.
# * **But one function for all images.** Scaled by its own minimum and maximum, the brightest pixel of a perfect bottle is as anomalous as a crack. The order *between* images is destroyed. The package has no scaling per image, not even for display.
# * **Chance is 1/2**, whatever the share of anomalous samples. A constant score ties all pairs and gets 1/2 as well.
# * **It moves in steps of $1/(2NP)$.** With 20 normal and 63 anomalous test images there are 1,260 pairs. A difference in the fourth digit is less than one pair.
#
# ### Average precision
#
# For pixels the AUROC is too kind. Let 1 % of the pixels be defective, and let a map find all of them but flag 1 % of the normal ones as well. Its ROC curve passes through $\mathrm{FPR} = .01$, $\mathrm{TPR} = 1$, so its AUROC is at least .99. Yet there are 99 normal pixels to each defective one, so only $1/(1 + .99)$, half of the alarms, are right.
# A person sees a defect and as much rubble around it. Precision tells. $\mathrm{FPR}$ does not, because it divides by the huge number of normal pixels.
#
# The *average precision*, AP, averages the precision over recall. Let $s_1 > s_2 > \dots > s_T$ be the distinct scores of the anomalous samples, $c_i$ the number of anomalous samples with score $s_i$, and let an index $i$ mean "at the threshold $s_i$", with $R_0 = 0$:
#
# $$
# \begin{aligned}
# \mathrm{AP} &= \sum_{i=1}^{T} (R_i - R_{i-1})\, \mathrm{Pr}_i \\
# &= \frac1P \sum_{i=1}^{T} c_i\, \frac{\mathrm{TP}_i}{\mathrm{TP}_i + \mathrm{FP}_i}.
# \end{aligned}
# $$ (ap)
#
# The two forms agree because recall rises only when an anomalous sample is passed, and at $s_i$ it rises by $c_i / P$. Read the second one aloud: *set the threshold at each anomalous sample in turn, and average the precision of the alarms.*

# %% tags=["nbval-check-output"]
precisions = [Fraction(counts(t)[0], sum(counts(t))) for t in anomalous]
ap = sum(precisions) / P
print("AP =", "(" + " + ".join(map(str, precisions)) + f")/{P} = {float(ap):.4f}; the package: {metrics.average_precision(MAP, MASK):.4f}")

# %% [markdown]
# {eq}`ap` is a sum of rectangles, where the AUROC used trapezoids, and on purpose. On a straight line between two points of the ROC curve lie detectors that one can build, by tossing a coin between two thresholds. Precision is not linear in recall along such mixtures, so a straight line there would promise detectors that do not exist {cite}`davis2006`.
#
# Chance depends on the data: a constant score has precision $P/(P+N)$ at its only threshold, and that is its AP. It can be compared between methods on one test set, not between test sets.
#
# ### F1-max
#
# Sooner or later somebody chooses a threshold. How good could the choice be? The harmonic mean of precision and recall stays close to the smaller of the two. With {eq}`rates`,
#
# $$
# \begin{aligned}
# F_1 &= \frac{2}{1/\mathrm{Pr} + 1/R}
#     = \frac{2}{\dfrac{\mathrm{TP} + \mathrm{FP}}{\mathrm{TP}} + \dfrac{P}{\mathrm{TP}}} \\
#     &= \frac{2\,\mathrm{TP}}{\mathrm{TP} + \mathrm{FP} + P}.
# \end{aligned}
# $$ (f1)
#
# F1-max is the largest value over all thresholds. Only the scores of anomalous samples need to be tried: between two of them a lower threshold can add false positives and nothing else.
#
# $$
# F_1^{\max} = \max_{i = 1, \dots, T}\ \frac{2\,\mathrm{TP}_i}{\mathrm{TP}_i + \mathrm{FP}_i + P}.
# $$ (f1max)

# %% tags=["nbval-check-output"]
f1 = {t: Fraction(2 * counts(t)[0], sum(counts(t)) + P) for t in anomalous}
print("F1:", ", ".join(f"{value} at t = {t}" for t, value in f1.items()))
print(f"F1-max = {float(max(f1.values())):.4f}; the package: {metrics.f1_max(MAP, MASK):.4f}")

# %% [markdown]
# Two warnings. The best threshold is found *on the test set, with its labels*: F1-max says what could be reached, not what will be. And flagging everything gives $2P/(2P + N)$ already, which for images is often above .8, because the usual test sets hold more defective than good ones.
#
# ### AUPRO
#
# A measure of pixels counts pixels, and a large defect has more of them. The *per-region overlap*, PRO, gives each defect one vote {cite}`bergmann2020students,bergmann2021mvtec`. Let $C_1, \dots, C_K$ be the connected regions of all masks; pixels that touch at a side or a corner belong together. The mean coverage at a threshold is
#
# $$
# \mathrm{PRO}(t) = \frac1K \sum_{r=1}^{K} \frac{\#\{p \in C_r : A_p \ge t\}}{\lvert C_r \rvert} .
# $$ (pro)
#
# Drawn over the false positive rate of the normal pixels it makes a curve like the ROC. Its far end is of no use: where three normal pixels in ten are flagged nobody knows where to look. So the area ends at a false positive rate $\lambda$, by custom 0.3, and is divided by $\lambda$ so that a perfect map gets 1:
#
# $$
# \mathrm{AUPRO} = \frac1\lambda \int_0^{\lambda} \mathrm{PRO}\; \mathrm d\,\mathrm{FPR}.
# $$ (aupro)
#
# Chance is $\lambda/2 = .15$: a random map covers each region as it covers the normal pixels, so on average $\mathrm{PRO} = \mathrm{FPR}$, and $\frac1\lambda \int_0^\lambda u\, \mathrm du = \lambda / 2$.
#
# By hand: the corners of the curve at the thresholds 9, 8, 5 and 4, then trapezoids up to $\lambda = 3/10$. The tie at 4 makes a slope again.

# %% tags=["nbval-check-output"]
regions, K = ndimage.label(MASK, structure=np.ones((3, 3)))
coverage = lambda t: sum(Fraction(int(((MAP >= t) & (regions == r)).sum()), int((regions == r).sum())) for r in range(1, K + 1)) / K
above = lambda t: Fraction(sum(n > t for n in normal), N)  # FPR just before t is reached
corners, reached = [], Fraction(0)
for t in anomalous:
    corners += [(above(t), reached), (Fraction(counts(t)[1], N), coverage(t))]
    reached = coverage(t)
limit = Fraction(3, 10)
corners = [(Fraction(0), Fraction(0)), *corners, (limit, reached)]
area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(corners, corners[1:]))
print("PRO:", ", ".join(f"{coverage(t)} at t = {t}" for t in anomalous))
print(f"AUPRO = ({area})/({limit}) = {float(area / limit):.4f}; the package: {metrics.aupro(MAP[None], MASK[None]):.4f}")

# %% mystnb={"figure": {"caption": "The curves of the example and the areas that are its measures. Left: ROC. Middle: precision over recall, as steps. Right: per-region overlap, up to a false positive rate of 0.3.", "name": "fig-decisions-curves"}, "image": {"alt": "Left, a ROC curve that rises to one half at once, to three quarters at a false positive rate of one twelfth, on a slope to one at two twelfths. Middle, precision steps 1, 1, three quarters, two thirds. Right, overlap that rises to one third, then one half, on a slope to one; shaded up to 0.3."}} tags=["hide-input"]
sheet = plots.figure(2.6)
left, middle, right = sheet.subplots(1, 3)
blue = plots.COLOURS["normal"]
fpr, tpr = metrics.roc_curve(MAP, MASK)
left.plot(fpr, tpr, color=blue)
left.fill_between(fpr, tpr, alpha=0.15, color=blue)
left.set(xlabel="FPR", ylabel="TPR", title=f"AUROC {float(auroc):.3f}")
recall, precision = metrics.precision_recall_curve(MAP, MASK)
middle.plot(recall, precision, drawstyle="steps-pre", color=blue)
middle.fill_between(recall, precision, step="pre", alpha=0.15, color=blue)
middle.set(xlabel="recall", ylabel="precision", title=f"AP {float(ap):.3f}")
fpr, pro = metrics.pro_curve(MAP[None], MASK[None])
right.plot(fpr, pro, color=blue)
x, y = np.array(corners, dtype=float).T
right.fill_between(x, y, alpha=0.15, color=blue)
right.axvline(0.3, linestyle="--", color=plots.COLOURS["quiet"], linewidth=1)
right.set(xlabel="FPR", ylabel="PRO", title=f"AUPRO {float(area / limit):.3f}")
for ax in sheet.axes:
    ax.set(xlim=(-0.02, 1.02), ylim=(0, 1.05))
sheet

# %% [markdown]
# In {numref}`fig-decisions-curves` compare left and right. Both curves rise at the same false positive rates, the left one by pixels and the right one by defects. The single pixel in the corner is a quarter of the first and half of the second: it is found late, and the third measure punishes this most. All measures follow from one sort of the scores; {doc}`../book/metrics` shows how, with the conventions that make two programs agree.
#
# ```{admonition} Take-away
# :class: note
# AUROC: is a random anomalous sample above a random normal one? AP: how pure are the alarms?
# F1-max: what could the best threshold do? AUPRO: is each *defect* found, whatever its size?
# ```

# %% [markdown]
# ## Thresholds and false alarms
#
# No measure asks for a threshold in advance. A factory does, and it has no defective images to choose one by. What it has is good images that were held out.
#
# ### What a threshold can promise
#
# Let $s_1, \dots, s_m$ be the scores of held-out good images, and $s$ that of a further good image. If all $m + 1$ images come about alike, no order of their scores is more likely than another: the rank of $s$ among them is uniform on $1, \dots, m + 1$ (ties apart). The new score exceeds $s_{(k)}$, the $k$-th largest of the $m$, if it is among the $k$ largest of all $m + 1$, hence
#
# $$
# \Pr\bigl( s > s_{(k)} \bigr) = \frac{k}{m + 1}, \qquad
# k = \lfloor \alpha\, (m + 1) \rfloor
# $$ (decisions-promise)
#
# With this $k$ the threshold $s_{(k)}$ keeps the false alarms at or below the rate $\alpha$, *whatever the distribution of the scores*. It needs $m \ge 1/\alpha - 1$ images for $k$ to be 1 or more: 49 for two in a hundred. With fewer, the package assumes a normal law for the logarithms of the scores, by {eq}`hfr-threshold`.
#
# ```{literalinclude} ../uad_core/scoring.py
# :pyobject: normal_threshold
# :lineno-match:
# :caption: Equation {eq}`decisions-promise` in {py:func}`uad_core.scoring.normal_threshold`
# ```
#
# The promise is kept *on average over the draw of the held-out images*. The one threshold that you have may lie above or below. We place a thousand thresholds, each by its own $m$ scores, and look up the false-alarm rate that each really has. The scores follow a log-normal law here, but the law does not matter.

# %%
ALPHA = 0.02
rates = {}
for m in (49, 199, 999):
    scores = torch.randn(1000, m, generator=random).exp()
    thresholds = torch.stack([scoring.normal_threshold(row, ALPHA) for row in scores])
    rates[m] = 1 - torch.distributions.LogNormal(0.0, 1.0).cdf(thresholds)

# %% mystnb={"figure": {"caption": "The false-alarm rate that a threshold really has, for a thousand thresholds, each placed for 2 % by its own held-out images. The dashed line is the promise.", "name": "fig-decisions-promise"}, "image": {"alt": "Three histograms of false-alarm rates. With 49 held-out images the rates spread from zero to about eight percent, with 999 they lie between one and three percent."}} tags=["hide-input"]
sheet = plots.figure(2.8)
ax = sheet.subplots()
for (m, rate), line, colour in zip(rates.items(), ("-", "--", ":"), ("#0072B2", "#D55E00", "#009E73")):
    ax.hist(100 * rate.numpy(), bins=np.linspace(0, 8, 49), histtype="step", linestyle=line, linewidth=1.8, color=colour, label=f"m = {m}")
ax.axvline(100 * ALPHA, color="black", linestyle="--", linewidth=1)
ax.set(xlabel="false alarms (% of good images)", ylabel="thresholds (count of 1000)")
ax.legend()
sheet

# %% tags=["nbval-check-output"]
for m, rate in rates.items():
    print(f"m = {m:3d}: mean {100 * rate.mean():.1f} %, and more than twice the promise in {100 * (rate > 2 * ALPHA).float().mean():.0f} % of the cases")

# %% [markdown]
# In {numref}`fig-decisions-promise` the means agree with the promise, and single thresholds do not. With 49 held-out images a rate of twice the promise is no rare accident. If that matters, hold out more. The distribution is known: the rate follows the beta law with parameters $k$ and $m + 1 - k$, from which `uad run` states an upper limit.
#
# What the promise rests on is "come about alike". Another lamp, another supplier, a worn lens, and it is void: then the threshold must be placed anew, by good images of the new kind.
#
# ### What a false alarm costs
#
# Let the share $\pi$ of all parts be bad ($\pi$ is no longer the number 3.14 here). Of $M$ parts, $\pi M\, \mathrm{TPR}$ are flagged rightly and $(1 - \pi) M\, \mathrm{FPR}$ wrongly, so of the alarms the share
#
# $$
# \mathrm{Pr} = \frac{\pi\, \mathrm{TPR}}{\pi\, \mathrm{TPR} + (1 - \pi)\, \mathrm{FPR}}
# $$ (decisions-rare)
#
# is right. *Before you read on:* a detector finds 95 % of the defects at 2 % false alarms, and one part in a thousand is bad. How many alarms are right: more or less than half?

# %% tags=["nbval-check-output"]
for pi in (0.5, 0.1, 0.01, 0.001):
    right = pi * 0.95 / (pi * 0.95 + (1 - pi) * ALPHA)
    print(f"bad parts {100 * pi:5.1f} %: right alarms {100 * right:4.1f} %")

# %% [markdown]
# ```{admonition} What came out
# :class: dropdown
# Far less. Where defects are rare nearly all alarms are false, however good the detector looks on a test set that is half defective. This is why a precision, an AP or an F1 of images says nothing of a factory with another share of defects, while TPR and FPR carry over.
# ```
#
# Let a missed defect cost $\kappa_m$ and a false alarm $\kappa_a$. A part then costs on average
#
# $$
# \kappa = \pi\, \kappa_m\, (1 - \mathrm{TPR}) + (1 - \pi)\, \kappa_a\, \mathrm{FPR} .
# $$ (decisions-cost)
#
# Move along the ROC curve. The cost stays equal where $\pi\, \kappa_m\, \mathrm d\mathrm{TPR} = (1 - \pi)\, \kappa_a\, \mathrm d\mathrm{FPR}$, so the best threshold is where the curve has the slope
#
# $$
# \frac{\mathrm d\mathrm{TPR}}{\mathrm d\mathrm{FPR}} = \frac{(1 - \pi)\, \kappa_a}{\pi\, \kappa_m} .
# $$ (decisions-slope)
#
# If bad parts are rare, the slope is steep: only the first rise of the curve counts, a corner that the AUROC, an area over everything, hardly weighs. {ref}`decisions-own` lets you compute it.
#
# ```{admonition} Take-away
# :class: note
# Held-out good images promise a rate of false alarms without any assumption on the scores, on average over their draw.
# Where defects are rare most alarms are false. The best threshold depends on that share and on costs, and on no measure of this page.
# ```

# %% [markdown]
# (decisions-hides)=
# ## What each measure hides
#
# Four detectors look at the same sixteen images. Eight are good; each of the other eight has a large defect and a small one. All maps have the same noise.
#
# * **sharp** marks both defects, to the pixel;
# * **halo** marks both, and what surrounds them;
# * **large only** marks the large one as `sharp` does and does not see the small one;
# * **per image** is `sharp`, but every map is scaled to $[0, 1]$ by its own minimum and maximum.
#
# *Before you read on:* which of the seven measures will suffer for each detector? Which detector will pixel AUROC find nearly as good as `sharp`, though you would not?

# %%
COUNT, SIZE = 16, 64
masks = torch.zeros(COUNT, SIZE, SIZE, dtype=torch.bool)
masks[8:, 8:30, 10:34] = True  # the large defect
small = torch.zeros_like(masks)
small[8:, 48:52, 46:50] = True
labels, truth = torch.arange(COUNT) >= 8, masks | small
noise = 0.25 * torch.randn(COUNT, SIZE, SIZE, generator=random)
made = {
    "sharp": truth.float() + noise,
    "halo": (3 * scoring.gaussian_blur(truth.float(), 5.0)).clamp(max=1) + noise,
    "large only": masks.float() + noise,
}
low, high = made["sharp"].amin((1, 2), keepdim=True), made["sharp"].amax((1, 2), keepdim=True)
made["per image"] = (made["sharp"] - low) / (high - low)
judged = pd.DataFrame({name: metrics.evaluate(maps.amax((1, 2)), labels, maps, truth.numpy()) for name, maps in made.items()}).T
judged.T.style.format("{:.2f}")

# %% mystnb={"figure": {"caption": "What the four detectors say of one defective and of one good image, each row on a colour scale of its own. The large defect is upper left, the small one lower right.", "name": "fig-decisions-four"}, "image": {"alt": "Two rows of four noisy maps. Defective: sharp shows a large and a small bright square; halo a blurred large one and hardly the small one; large only one square; per image both squares. Good: noise, darker in the first three than in the last."}} tags=["hide-input"]
plots.picture_grid({name: torch.stack([maps[i] for maps in made.values()]) for name, i in (("defective", 8), ("good", 0))}, list(made))

# %% tags=["nbval-check-output"]
drop = (judged.loc["sharp"] - judged).drop("sharp")
for name, row in drop.iterrows():
    print(f"{name:10s} loses more than .1 in:", ", ".join(row.index[row > 0.1]) or "nothing")

# %% [markdown]
# ```{admonition} What came out
# :class: dropdown
# The cell above names what each detector loses. The halo costs nothing in the ranking of images and hardly anything in pixel AUROC, although most of what it marks is sound: pixel AP and F1-max tell. AUPRO falls too, because a blur that wide lowers the small defect. Missing every small defect costs nothing at image level, where the large one suffices, and next to nothing in AUROC and AP of pixels, where sixteen pixels do not weigh against five hundred: only AUPRO notices.
# Scaling each map by itself ruins the ranking of images: in {numref}`fig-decisions-four` the noise of its good image is stretched until it is brighter than that of the other three. In the measures of pixels it shows as false alarms on good images.
# ```
#
# | Measure | It answers | It does not see |
# |---|---|---|
# | image AUROC | Are defective images ranked above good ones? | where the defect is; how far apart the scores are |
# | image AP | How pure are the alarms, from the top of the ranking on? | that chance is different in each data set |
# | image F1-max | What could the best threshold reach? | that nobody knows this threshold beforehand |
# | pixel AUROC | Are defective pixels ranked above normal ones? | halos around a defect; small defects beside large ones |
# | pixel AP | Does the map mark the defect and little else? | small defects beside large ones |
# | pixel F1-max | How well could one threshold mark the defects? | small defects beside large ones; that nobody knows this threshold |
# | AUPRO | Is each defect found, whatever its size? | what happens beyond a false positive rate of 0.3 |
#
# No single number is enough, so every table of the book shows several, with the resolution at which they were measured.
#
# ```{admonition} Take-away
# :class: note
# Each measure is blind to a failure that another one sees: halos hide from pixel AUROC, small defects from all but AUPRO.
# Look at several numbers, and at the maps.
# ```

# %% [markdown]
# ## Exercises
#
# ```{exercise} One pixel changes
# :label: decisions-change
# In the example of {numref}`fig-decisions-example` the small defect now scores 1 instead of 4. Compute AUROC, AP and AUPRO by hand. Which loses most, and why?
# ```
#
# ```{solution} decisions-change
# :class: dropdown
# Among the normal pixels there are one 0 and four 1s. The pixel beats $1 + 4/2 = 3$ instead of $10.5$, so the AUROC is $(45.5 - 7.5)/48 \approx .792$. Its precision is $4/(4 + 11)$, so AP is $(1 + 1 + \tfrac34 + \tfrac4{15})/4 \approx .754$. PRO stays at $\tfrac12$ from $\mathrm{FPR} = \tfrac1{12}$ on to $.3$ and beyond, so AUPRO is $(\tfrac1{12} \cdot \tfrac13 + (.3 - \tfrac1{12}) \cdot \tfrac12)/.3 \approx .454$. AUPRO loses most: one of two defects is not found within the rate that counts.
# ```
#
# ```{exercise} A promise with few images
# :label: decisions-few
# You can hold out 99 good images. Which rates of false alarms can be promised without an assumption? What is the rate if the threshold is the largest of the 99 scores, and what does {eq}`decisions-rare` then say for one bad part in a hundred and $\mathrm{TPR} = .9$?
# ```
#
# ```{solution} decisions-few
# :class: dropdown
# By {eq}`decisions-promise` the rates $k/100$, from 1 % on. The largest score has $k = 1$: 1 %. Then $\mathrm{Pr} = .01 \cdot .9 / (.01 \cdot .9 + .99 \cdot .01) \approx 48\,\%$.
# ```
#
# ```{exercise} AUROC from pairs
# :label: decisions-pairs
# Write `pairs(scores, labels)` for two arrays `(n,)`: the AUROC by {eq}`auroc`, without sorting. Test it with `check_pairs`. How does its memory grow with $n$?
# ```

# %%
def check_pairs(candidate):
    """Compare an answer with the package on random scores, with and without ties."""
    random_numbers = np.random.default_rng(0)
    for scores in (random_numbers.normal(size=60), random_numbers.integers(0, 5, 60)):
        truth = random_numbers.random(60) < 0.3
        got, wanted = float(candidate(scores, truth)), metrics.auroc(scores, truth)
        if abs(got - wanted) > 1e-9:
            ties = "with ties" if len(set(scores)) < 60 else "without ties"
            return f"not yet: {ties} it gives {got:.4f}, and should give {wanted:.4f}"
    return "correct"


# %% [markdown]
# ```{solution} decisions-pairs
# :class: dropdown
# ~~~python
# def pairs(scores, labels):
#     a, n = scores[labels], scores[~labels]
#     return ((a[:, None] > n).sum() + (a[:, None] == n).sum() / 2) / (len(a) * len(n))
#
#
# check_pairs(pairs)
# ~~~
# It holds all $NP$ pairs, so memory grows with the square: for the pixels of a test set that is hopeless, and {doc}`../book/metrics` does it with one sort.
# ```
#
# ```{exercise} Coverage region by region
# :label: decisions-coverage
# Write `overlap(map_, mask, t)` for one map and mask `(H, W)`: PRO at the threshold $t$ {eq}`pro`. Test it with `check_overlap`. (`scipy.ndimage.label` finds the regions; mind its default, which does not join corners.)
# ```

# %%
def check_overlap(candidate):
    """Compare an answer with values that were counted by hand, and with regions that touch at a corner."""
    for t, wanted in ((9, 1 / 6), (8, 1 / 3), (5, 1 / 2), (4, 1)):
        if abs(float(candidate(MAP, MASK, t)) - wanted) > 1e-9:
            return f"not yet: at t = {t} it gives {float(candidate(MAP, MASK, t)):.3f}, and should give {wanted:.3f}"
    corner = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)
    joined = abs(float(candidate(np.array([[5, 0, 0], [0, 1, 1], [0, 0, 0]]), corner, 3)) - 1 / 3) < 1e-9
    return "correct" if joined else "not yet: pixels that touch at a corner are one region"


# %% [markdown]
# ```{solution} decisions-coverage
# :class: dropdown
# ~~~python
# def overlap(map_, mask, t):
#     regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
#     return np.mean([(map_[regions == r] >= t).mean() for r in range(1, count + 1)])
#
#
# check_overlap(overlap)
# ~~~
# ```
#
# ```{exercise} Your own factory
# :label: decisions-own
# *Open.* Choose a share of bad parts and the two costs of {eq}`decisions-cost` for a product that you know. Draw scores of 500 good and 500 defective parts from two laws of your choice, compute the cost at every threshold from `metrics.roc_curve`, and compare the best threshold with the one of F1-max and with that of {eq}`decisions-promise` at 2 %. Then find two laws with the *same* AUROC whose best costs differ by a factor of two.
# ```

# %% [markdown]
# ## Further reading
#
# * {cite:t}`fawcett2006` introduces ROC curves slowly, with pictures, and says what changes when classes are unbalanced.
# * {cite:t}`hanley1982` prove that the area is a probability, and how uncertain it is.
# * {cite:t}`davis2006` explain why curves of precision and recall must not be joined by straight lines.
# * {cite:t}`bergmann2021mvtec` define the per-region overlap and its limit.
