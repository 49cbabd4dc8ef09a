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
# (chapter-frozen)=
# # What a frozen network sees
#
# ```{admonition} At a glance
# :class: tip
#
# **What it is about.** All methods of this book but one look at an image through a network that was trained on other photographs and never changes again. What does it say about a place of an image? How far does it look? Why is it of use for products that it has never met, and what does it say where there is nothing to see?
#
# **One picture.** {numref}`fig-frozen-pyramid`: an image becomes three maps of features.
#
# **Cost.** Less than a minute on two processor cores. Nothing is downloaded.
#
# **Afterwards you can** compute the receptive field of any chain of convolutions and say how much of it is used, look at features as colours, measure against which changes a network is deaf, and predict from two numbers how well the direction of a feature can be trusted.
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
import torch
import torch.nn.functional as F
from IPython.display import HTML
from matplotlib.patches import Rectangle

from uad_core import metrics, plots, scoring
from uad_core.backbones import load_backbone
from uad_core.datasets import procedural
from uad_core.datasets.procedural import camera, tablet
from uad_core.datasets.procedural.canvas import Canvas
from uad_core.datasets.procedural.exact import Dice
from uad_core.features import extract
from uad_core.methods.channels import ChannelScale, measure_channels
from uad_core.methods.spread import soft_norm
from uad_core.plots.pictures import clear
from uad_core.probing import footprint, paint, principal_axes, receptive_field
from uad_core.randomness import seeded

plots.style()
SEED = 0

# %%
def pictures(category, numbers, kind=None, size=256, split="test"):
    """Drawn images (N, 3, size, size) in [0, 1] and their masks (N, size, size); without a kind of defect, good ones."""
    drawn = [procedural.draw(category, split, i, image_size=size, defect=kind) for i in numbers]
    images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(np.stack([mask for _, mask in drawn]))


# %% [markdown]
# ## What goes in and what comes out
#
# The {term}`backbone` of this page is the book's default, EfficientNet-Lite2 {cite:p}`tan2019efficientnet`, trained to name the thing on a photograph among the thousand classes of ImageNet {cite:p}`russakovsky2015imagenet`. The names are of no use here. We cut its last layers off and keep what it computes on the way:
# from three of its stages one map each,
#
# $$
# \begin{aligned}
# f^k(p) &\in \mathbb R^{c_k}, \\
# p &\in \{1, \dots, h_k\} \times \{1, \dots, w_k\}, \quad h_k = H / s_k .
# \end{aligned}
# $$ (frozen-pyramid)
#
# At each place $p$ of *level* $k$ there is a list of $c_k$ numbers, a {term}`feature`. A step on level $k$ is a step of $s_k$ pixels in the image, its {term}`stride`.
# {term}`Frozen <frozen>` means that weights and normalisation statistics never change again, so that an image is always described in the same way.
#
# ```{literalinclude} ../uad_core/backbones.py
# :pyobject: Backbone.forward
# :lineno-match:
# :caption: Equation {eq}`frozen-pyramid` in {py:class}`uad_core.backbones.Backbone`
# ```

# %% tags=["nbval-check-output"]
backbone = load_backbone()
picture, _ = pictures("jar", [0])
for k, f in enumerate(backbone.pyramid(picture), 1):
    print(f"level {k}: stride {backbone.strides[k - 1]:2d}, {f.shape[1]:3d} channels on {f.shape[2]} x {f.shape[3]} places")

# %% tags=["hide-input"]
INK = 'fill="none" stroke="currentColor" stroke-width="1.4"'


def sheet_of(x, y, size, cells, fill, text):
    """A square map with its grid, and two lines of text below it."""
    step = size / cells
    lines = "".join(f'<path d="M{x + i * step},{y} v{size} M{x},{y + i * step} h{size}" stroke="currentColor" stroke-width="0.5" opacity="0.5"/>' for i in range(1, cells))
    words = "".join(f'<text x="{x + size / 2}" y="{y + size + 17 + 15 * i}" text-anchor="middle" fill="currentColor">{line}</text>' for i, line in enumerate(text))
    return f'<rect x="{x}" y="{y}" width="{size}" height="{size}" {INK} style="fill:{fill}"/>{lines}{words}'


def column(x, y, step, colour="#D55E00"):
    """One place of a map."""
    return f'<rect x="{x}" y="{y}" width="{step}" height="{step}" style="fill:{colour}" stroke="currentColor"/>'


# %% mystnb={"figure": {"caption": "The pyramid. Each stage halves the resolution and describes a place by more numbers. The orange cells are one place on three levels; the orange frames in the image are what their features are computed from. Frames and grids are schematic.", "name": "fig-frozen-pyramid"}} tags=["hide-input"]
blue = "rgba(0,114,178,.20)"
frames = "".join(f'<rect x="{70 - r}" y="{75 - r}" width="{2 * r}" height="{2 * r}" fill="none" stroke="#D55E00" stroke-width="2" stroke-dasharray="{dash}"/>' for r, dash in ((8, "none"), (24, "5 3"), (52, "2 3")))
arrows = "".join(f'<path d="M{x},75 h24" {INK} marker-end="url(#frozen-tip)"/>' for x in (136, 286, 414))
levels = [[f"level {k}", f"{c} x H/{s} x W/{s}"] for k, (c, s) in enumerate(zip(backbone.channels, backbone.strides), 1)]
maps = [
    sheet_of(10, 15, 120, 1, "none", ["image x", "3 x H x W"]), sheet_of(165, 20, 112, 12, blue, levels[0]),
    sheet_of(315, 30, 90, 6, blue, levels[1]), sheet_of(443, 45, 66, 3, blue, levels[2]),
    column(165 + 5 * 112 / 12, 20 + 6 * 112 / 12, 112 / 12), column(315 + 2 * 15, 30 + 3 * 15, 15), column(443 + 22, 45 + 22, 22),
]
WORDS = "Diagram. An image passes through three stages of a frozen network. Each gives a map of features, coarser than the one before and with more channels. One place is marked on all three maps, and the part of the image that it depends on is the larger the deeper the level."
tip = '<defs><marker id="frozen-tip" markerWidth="8" markerHeight="8" refX="6" refY="3.5" orient="auto"><path d="M0,0 L7,3.5 L0,7 Z" fill="currentColor"/></marker></defs>'
HTML(f'<svg viewBox="0 0 560 175" style="width:100%;max-width:620px;color:inherit" font-family="sans-serif" font-size="13" role="img" aria-label="{WORDS}">{tip}{"".join(maps)}{frames}{arrows}</svg>')

# %% [markdown]
# Channels differ in how much they vary. Wherever features are compared on this page, each channel is brought to mean 0 and deviation 1 over places of good images of the product, as {eq}`hfr-standardise` in the next part of the book says in full.

# %%
def standardiser(net, good):
    """A function from images to the standardised pyramid of a network, with channels measured on good images."""
    scales = [ChannelScale(channels) for channels in net.channels]
    measure_channels(scales, extract(net, good, progress=False), floor=0.1)
    return lambda images: [scale(f) for scale, f in zip(scales, net.pyramid(images))]


# %% [markdown]
# ```{admonition} Take-away
# :class: note
# A frozen network turns an image into a few maps of features, the same way every time.
# Fine levels have many places and few channels, coarse ones few places and many channels.
# ```

# %% [markdown]
# ## How far a feature sees
#
# ### What it could depend on
#
# A feature depends on the pixels that some chain of convolutions leads to it: its {term}`receptive field`. Let layer $l$ have a kernel of side $k_l$ and step $t_l$, let $r_l$ be the side of the field behind layer $l$, and $s_l$ the step between two neighbouring outputs of layer $l$, both in pixels of the image. Before the first layer a number depends on one pixel,
# and neighbours are one pixel apart: $r_0 = s_0 = 1$. Layer $l$ takes $k_l$ neighbouring numbers of the layer before. The outermost two are $(k_l - 1)\, s_{l-1}$ pixels apart, and each brings half of its own field on its outer side. So
#
# $$
# r_l = r_{l-1} + (k_l - 1)\, s_{l-1}, \qquad s_l = t_l\, s_{l-1} .
# $$ (frozen-field)
#
# ```{literalinclude} ../uad_core/probing.py
# :pyobject: receptive_field
# :lineno-match:
# :caption: Equation {eq}`frozen-field` in {py:func}`uad_core.probing.receptive_field`
# ```
#
# Only kernels wider than one place matter. This network has one after another, without branches that go further (the shortcuts around blocks only add what is there already), so that its list can be read off.

# %% tags=["nbval-check-output"]
layers = [(m.kernel_size[0], m.stride[0]) for m in backbone.net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1]
print("kernel and step:", *(f"{kernel}/{step}" for kernel, step in layers))
halved = [n for n in range(1, len(layers) + 1) if n == len(layers) or layers[n][1] == 2]  # layers before the next step of 2
ends = [n for n in halved if receptive_field(layers[:n])[1] in backbone.strides]  # after so many layers a level is taken
for k, n in enumerate(ends, 1):
    side, step = receptive_field(layers[:n])
    print(f"level {k}: after {n:2d} such layers, stride {step:2d}, receptive field {side} pixels")

# %% [markdown]
# *Before you read on:* the field of level 3 is wider than an image of 256 pixels. Does a feature of level 3 then describe the whole image? How much of its field will it really use?
#
# ### What it does depend on
#
# Ask how strongly the feature in the middle of the map answers to each pixel. For a small change $\mathrm dx$ of the image, $\mathrm df = J\, \mathrm dx$ with the Jacobian $J$. Sum its squares over channels $c$ and colours $b$:
#
# $$
# E^k(p) = \sum_{c, b} \Bigl( \frac{\partial f^k_c(\text{middle})}{\partial x_b(p)} \Bigr)^2 .
# $$ (frozen-jacobian)
#
# One backward pass per channel would give it. A few random ones do as well: let $v_c = \pm 1$ be independent fair signs. Then $\mathbb E\, v_c v_{c'}$ is 1 for $c = c'$ and 0 otherwise, and
#
# $$
# \begin{aligned}
# \mathbb E_v \Bigl( \frac{\partial \langle v, f^k \rangle}{\partial x_b(p)} \Bigr)^2
# &= \sum_{c, c'} \mathbb E[v_c v_{c'}]\, \frac{\partial f^k_c}{\partial x_b(p)} \frac{\partial f^k_{c'}}{\partial x_b(p)} \\
# &= \sum_c \Bigl( \frac{\partial f^k_c}{\partial x_b(p)} \Bigr)^2 .
# \end{aligned}
# $$ (frozen-footprint)
#
# ```{literalinclude} ../uad_core/probing.py
# :pyobject: footprint
# :lineno-match:
# :caption: Equation {eq}`frozen-footprint` in {py:func}`uad_core.probing.footprint`
# ```

# %%
looked_at = torch.cat([pictures(category, [0])[0] for category in procedural.CATEGORIES])
energy = footprint(backbone, looked_at)


def side_holding(e, share):
    """Side, in pixels, of the square around the middle that holds a share of a map (H, W)."""
    centre = e.shape[0] // 2
    return next(2 * r for r in range(1, centre + 1) if e[centre - r : centre + r, centre - r : centre + r].sum() >= share * e.sum())


used = pd.DataFrame({
    f"level {k}": {"receptive field": receptive_field(layers[:n])[0]} | {f"square with {share:.0%} of the answer": side_holding(e, share) for share in (0.5, 0.9)}
    for k, (n, e) in enumerate(zip(ends, energy), 1)
})
used

# %% mystnb={"figure": {"caption": "How strongly each pixel of an image of 256 pixels acts on the feature in its middle, mean over the six built-in products; logarithmic, over five powers of ten. White squares hold half and nine tenths of the total. The spot lies half a stride below and to the right of their centre, since an even number of cells has none in the middle.", "name": "fig-frozen-footprint"}, "image": {"alt": "Three square maps for levels 1 to 3: a small bright spot in the middle that grows from level to level; beyond the outer white square the map falls off over several powers of ten."}} tags=["hide-input"]
sheet = plots.figure(2.5)
for ax, e, (name, row) in zip(sheet.subplots(1, 3), energy, used.items()):
    clear(ax)
    ax.imshow((e / e.max()).clamp_min(1e-5).log10(), cmap=plots.MAP_COLOURS, vmin=-5, vmax=0)
    for side in row.iloc[1:]:
        ax.add_patch(Rectangle((128 - side / 2, 128 - side / 2), side, side, fill=False, edgecolor="white"))
    ax.set_title(name)
sheet

# %% tags=["hide-input"]
nine = used.loc["square with 90% of the answer"]
assert (nine < used.loc["receptive field"] / 3)[1:].all() and (nine.to_numpy() <= 5 * np.array(backbone.strides)).all()

# %% [markdown]
# ```{admonition} What came out
# :class: dropdown
# Compare the rows of the table with the white squares in {numref}`fig-frozen-footprint`. The field grows much faster than what is used of it: on levels 2 and 3 nine tenths of the answer come from less than a third of its side, and on every level from a square of no more than five strides. Many paths through the layers lead from a pixel near the middle to the feature, few from one near the rim: the weight of a path falls off as with a sum of many small steps. {cite:t}`luo2016receptive` call what is used the *effective* receptive field.
# ```
#
# Two consequences for every residual map of this book. A defect spreads over about as many places as the square with half of the answer covers, so maps of level 3 are wide because its features *look* wide, not only because its grid is coarse. And level 3 does not know the whole product: a missing part at the other end of a board is out of its sight.
#
# ```{admonition} Take-away
# :class: note
# The receptive field says what a feature could depend on; what it uses is a small spot in the middle.
# Level 1 sees pieces of edges about ten pixels wide, level 3 parts some tens of pixels wide.
# ```

# %% [markdown]
# ## Features as colours
#
# A feature has too many numbers to look at. Three of them can be seen at once, as red, green and blue. Which three? Those along which the features of good images vary most. Along a direction $a$ of length 1 the variance of the standardised features $f$ is $a^{\mathsf T} \Sigma\, a$, with their covariance $\Sigma$. To maximise it under $\lVert a \rVert_2 = 1$, set the gradient of the Lagrange function to zero:
#
# $$
# \begin{aligned}
# \nabla_a \bigl( a^{\mathsf T} \Sigma\, a - \ell\, (a^{\mathsf T} a - 1) \bigr) &= 2\, (\Sigma a - \ell a) = 0 \\
# \Longrightarrow\quad \Sigma a &= \ell a, \quad a^{\mathsf T} \Sigma\, a = \ell .
# \end{aligned}
# $$ (frozen-axes)
#
# The best direction is the eigenvector of the largest eigenvalue, and the eigenvalue is the variance; the next ones, orthogonal to it, follow. This is *principal component analysis*, PCA. A place gets the colour $\tfrac12 + \langle a_j, f - \bar f \rangle / (5 \sqrt{\ell_j})$ in each of the three channels $j$: grey is the mean, full colour 2.5 deviations.
#
# ```{literalinclude} ../uad_core/probing.py
# :pyobject: principal_axes
# :lineno-match:
# :caption: Equation {eq}`frozen-axes` in {py:func}`uad_core.probing.principal_axes`
# ```

# %%
SHOWN = (("weave", "thread_pull", 3), ("jar", "chip", 3), ("tablet", "crack", 3), ("circuit", "bent_leg", 4))
images, masks = (torch.cat(part) for part in zip(*(pictures(category, [i], kind) for category, kind, i in SHOWN)))
painted, shares = {1: [], 2: [], 3: []}, {}
for (category, _, _), image in zip(SHOWN, images):
    good, _ = pictures(category, range(4), split="train")
    features = standardiser(backbone, good)
    for k, (normal, f) in enumerate(zip(features(good), features(image[None])), 1):
        mean, axes, variances = principal_axes(normal.movedim(1, -1).flatten(0, 2))
        painted[k].append(paint(f, mean, axes, variances)[0])
        shares[category, f"level {k}"] = (variances[:3].sum() / variances.sum()).item()
rows = {"image": images} | {f"level {k}": torch.stack(pictures_of_level) for k, pictures_of_level in painted.items()}

# %% mystnb={"figure": {"caption": "A defect on each of four products, and the features of three levels as colours. Each product and level has axes of its own, so colours can be compared within a picture only.", "name": "fig-frozen-colours"}, "image": {"alt": "Four columns: weave with a pulled thread, jar with a chip, tablet with a crack, circuit with a bent leg. Below each image its features as colours on grids of 64, 32 and 16 places: level 1 shows edges by their direction; on level 3 the rings of the jar are gone and the pulled thread of the weave is a blot of its own colour."}} tags=["hide-input"]
plots.picture_grid(rows, [f"{category}\n{kind.replace('_', ' ')}" for category, kind, _ in SHOWN], masks)

# %%
pd.Series(shares).unstack().loc[[category for category, _, _ in SHOWN]].style.format("{:.0%}")

# %% [markdown]
# Follow the rings of the jar in {numref}`fig-frozen-colours` from level to level. On levels 1 and 2 the colour changes around a ring: an edge is described by its direction and by which side is brighter. On level 3 the rings are gone, and inside, wall and table have colours of their own. Belt and tablet are told apart on every level, and the belt shows little but grain. The pulled thread of the weave is hardly to be seen on level 1, and a blot of its own colour on level 3.
# Mind the border of the weave on levels 2 and 3: there the network looks beyond the picture, at the zeros by which it is continued (*padding*). These colours say nothing of the cloth. They are the same in every image, so a method can learn them like anything else that is normal.
#
# The table says how much of all variance the three axes hold. What they leave out is not noise, and a small defect may lie entirely in it: colours are for looking, no method of this book drops the rest.
#
# ```{admonition} Take-away
# :class: note
# PCA shows the directions in which normal features vary most: edges on level 1, parts on level 3.
# Three colours hold a part of the variance only. A defect that cannot be seen in them may still be there.
# ```

# %% [markdown]
# ## Why ImageNet features know about bottles
#
# ImageNet has photographs of bottles, but hardly one of the mouth of a jar from above, and none of our drawings. Two observations say that its network is nevertheless of use, and a third says where not.
#
# ### The same part, another picture
#
# Take the feature of one place in one good picture and ask where in *another* good picture the features point the same way: the cosine of the standardised features, level by level, with negative ones set to 0.

# %%
ASKED = (("jar", 60, 128), ("grille", 120, 120), ("circuit", 200, 96))  # product, row and column of the place, in pixels
first, second, at, alike = [], [], [], {f"cosine, level {k}": [] for k in (1, 2, 3)}
for category, row, col in ASKED:
    pair, _ = pictures(category, [0, 2])
    features = standardiser(backbone, pictures(category, range(4), split="train")[0])(pair)
    for k, (f, step) in enumerate(zip(features, backbone.strides), 1):
        query = f[0, :, row // step, col // step]
        alike[f"cosine, level {k}"].append(F.cosine_similarity(f[1], query[:, None, None], dim=0).clamp_min(0))
    mark = torch.zeros(256, 256, dtype=torch.bool)
    mark[row - 8 : row + 8, col - 8 : col + 8] = True
    first, second, at = [*first, pair[0]], [*second, pair[1]], [*at, mark]

# %% mystnb={"figure": {"caption": "Above: one place asked about, framed. Below it: another good picture of the product, and where its features point the same way, at three levels, each row on one scale from 0 to its largest value. The frame in the second picture marks the same coordinates.", "name": "fig-frozen-alike"}, "image": {"alt": "Three columns: jar, grille and circuit. On level 1 many places with an edge of the same direction are bright, on the circuit many flat places; on level 3 the inner ring of the jar, brightest at the top, rows of holes on the grille, and the feet of the legs of the circuit."}} tags=["hide-input"]
plots.picture_grid({"asked": torch.stack(first), "searched": torch.stack(second)} | {name: torch.stack(maps) for name, maps in alike.items()}, [name for name, _, _ in ASKED], torch.stack(at))

# %% [markdown]
# In {numref}`fig-frozen-alike` level 1 answers to every edge that runs the same way, on the jar above and below. Level 3 answers to the *part*: on the jar to the inner ring, most at the side that was asked about, on the circuit to the feet of the legs, where level 1 had answered to flat places all over the board. On the grille, where every hole has such an edge, it finds the pattern. Nobody told the network what a rim or a leg is: to tell a thousand classes apart under all lights and from all sides it had to learn descriptions of parts, and these serve for parts of other things as well.
#
# ### What it was taught to overlook
#
# The label of a photograph does not change when a cloud passes. So training rewarded features that stay when the light changes. We measure it. A defect should move a feature far from that of the clean twin, and a harmless change should move it little. With means over the cells that the mask touches, let
#
# $$
# g = \frac{\text{mean of } \lVert f(x') - f(x) \rVert_2}{\text{mean of } \lVert f(h(x)) - f(x) \rVert_2},
# $$ (frozen-gain)
#
# with a defective image $x'$, its clean twin $x$ and a harmless change $h$: all pixels a tenth darker; the image one pixel aside; grain of five grey levels added. Next to the trained network stand the pixels themselves and the same network with *random* weights, all standardised alike.
#
# *Before you read on:* which of the three harmless changes has the trained network learned to overlook best, and does depth help against all of them?

# %%
grain = torch.Generator().manual_seed(SEED)
HARMLESS = {
    "a tenth darker": lambda x: 0.9 * x,
    "one pixel aside": lambda x: x.roll(1, -1),
    "grain": lambda x: x + 0.02 * torch.randn(x.shape, generator=grain),
}
with seeded(SEED):
    networks = {"random": load_backbone(weights="random"), "ImageNet": backbone}


def moved(features, x, other, cells):
    """How far features move, mean over cells of the masks (N, H, W), level by level."""
    pairs = zip(features(x), features(other))
    return [(f - g).square().mean(1).sqrt()[F.adaptive_max_pool2d(cells[:, None].float(), f.shape[-2:])[:, 0] > 0].mean() for f, g in pairs]


def pixel_standardiser(good):
    """As `standardiser`, for the pixels as a pyramid of one level."""
    mean, std = good.mean((0, 2, 3), keepdim=True), good.std((0, 2, 3), keepdim=True)
    return lambda images: [(images - mean) / std]


# %%
rows = {}
for category in procedural.CATEGORIES:
    defects = procedural.DEFECTS[category]
    bad, marked = (torch.cat(part) for part in zip(*(pictures(category, [j], kind, 128) for j, kind in enumerate(defects))))
    clean, good = pictures(category, range(len(defects)), size=128)[0], pictures(category, range(8), size=128, split="train")[0]
    views = {"pixels": pixel_standardiser(good)} | {name: standardiser(net, good) for name, net in networks.items()}
    for name, features in views.items():
        far = moved(features, clean, bad, marked)
        for change, harmless in HARMLESS.items():
            near = moved(features, clean, harmless(clean), marked)
            for k, (a, b) in enumerate(zip(far, near), 1):
                rows[category, name if name == "pixels" else f"{name}, level {k}", change] = (a / b).item()
gains = pd.Series(rows, name="g").rename_axis(["category", "features", "change"]).reset_index()
mean_gain = gains.groupby(["features", "change"])["g"].agg(lambda g: np.exp(np.log(g).mean())).unstack()
order = ["pixels"] + [f"{name}, level {k}" for name in networks for k in (1, 2, 3)]
mean_gain.loc[order, list(HARMLESS)].style.format("{:.1f}").set_caption("g: geometric mean over the six products")

# %% tags=["hide-input"]
wide = gains.pivot(index=["category", "change"], columns="features", values="g")
trained = wide[[f"ImageNet, level {k}" for k in (1, 2, 3)]]
ahead, behind = trained.min(axis=1) > wide["pixels"], trained.max(axis=1) < wide["pixels"]
assert ahead.xs("a tenth darker", level="change").all() and not ahead.xs("one pixel aside", level="change").any()
assert behind.xs("grain", level="change").all()
means = np.log(wide).groupby("change").mean()
better = means["ImageNet, level 2"] > means["random, level 2"]
assert better["a tenth darker"] and better["one pixel aside"]

# %% [markdown]
# ```{admonition} What came out
# :class: dropdown
# To light the trained features are nearly deaf, at every level and on every product, and the same network without training is not: this was learned. Against a displacement by one pixel they are no better than the pixels, though better than the random network, and this is the one change against which depth helps. And on grain they are *worse* than the pixels. The first layers have learned to sharpen fine detail, since on photographs detail is information; on level 1 even the random network, which mostly averages, forgives grain better.
# (One random network, five defective pictures of each product, each change at one strength; another strength moves the numbers.)
# ```
#
# So the features know about bottles because they know about light, edges and parts, which bottles share with everything else, and because {eq}`judging-change` is now in our favour: what varies harmlessly moves them little. They do *not* know what is harmless on *this* product. Which threads may vary, how coarse the grain is, that the pads R4 of the circuit are always bare: this must come from its good images, and is what the methods learn.
#
# ### Does it help to find anything?
#
# The simplest detector that can be built on features: keep features of good images, and let the anomaly of a place be the distance to the nearest of them, here at level 2. It has nothing to learn, so it shows the description and not the method.

# %%
def nearest(features, good, images, kept=1500):
    """Distance maps (N, h, w) of images to the nearest of some features of good images, level 2."""
    bank = features(good)[1].movedim(1, -1).flatten(0, 2)
    bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(SEED))[:kept]]
    f = features(images)[1]
    return torch.cdist(f.movedim(1, -1).flatten(0, 2), bank).amin(1).view(-1, *f.shape[-2:])


rows = {}
for category in procedural.CATEGORIES:
    good = pictures(category, range(8), size=128, split="train")[0]
    bad, marked = (torch.cat(part) for part in zip(*(pictures(category, [20 + j, 30 + j], kind, 128) for j, kind in enumerate(procedural.DEFECTS[category]))))
    for name, net in networks.items():
        maps = scoring.upsample(nearest(standardiser(net, good), good, bad), bad.shape[-2:])
        rows[category, name] = metrics.auroc(maps, marked)
helped = pd.Series(rows).unstack()[list(networks)]
helped.style.format("{:.2f}").set_caption("pixel AUROC on ten defective pictures of each product")

# %% tags=["nbval-check-output"]
print("training on ImageNet helps on", int((helped["ImageNet"] > helped["random"]).sum()), "of 6 products")

# %% [markdown]
# Even a random network finds something, since it passes brightness and edges on. The trained one is ahead nearly everywhere, and most where a pattern has to be recognised: on weave, grille and circuit. This is one random network, and another draw moves its column: read the columns, not single rows.
#
# ```{admonition} Take-away
# :class: note
# ImageNet taught the network to overlook light and to describe parts; that carries over to products that it has never met.
# It did not teach it to overlook grain. What is harmless on one product, only good images of that product can say.
# ```

# %% [markdown]
# (frozen-empty)=
# ## What it says about an empty background
#
# A tablet lies on a belt, and most of the picture is belt. What should a network say of a place where nothing is? It says *something*: a list of numbers as long as everywhere else. We look at its length and at its direction.
#
# The drawing lets us photograph one scene twice: same product, same light, same dust, and only the grain of the sensor drawn anew.

# %%
def twice(number, size=256):
    """Two photographs (2, 3, size, size) of one scene with a tablet, which differ in the grain of the sensor alone."""
    canvas, dice = Canvas.of(size, size), Dice(0).child(0, "tablet", "test", number)
    surface = tablet.tablet(canvas, dice.child("scene"))
    camera.dust(surface, canvas, dice.child("dust"), tablet.STUDIO)
    photo = camera.expose(surface, canvas, dice.child("camera"), tablet.STUDIO)
    shots = [camera.develop(photo, dice.child(*name), tablet.STUDIO) for name in (("sensor",), ("sensor", "again"))]
    return torch.from_numpy(np.stack(shots).transpose(0, 3, 1, 2)).float() / 255


pairs = torch.stack([twice(i) for i in range(4)])  # (4, 2, 3, 256, 256)
one, other = pairs[:, 0], pairs[:, 1]
features = standardiser(backbone, pictures("tablet", range(6), split="train")[0])
f_one, f_other = features(one), features(other)
print(f"the two differ by a standard deviation of {255 * (one - other).std():.1f} grey levels")

# %% [markdown]
# Write $a$ for what both photographs say of a place, and $n, n'$ for what the grain adds, independent, with mean 0 and variance $\nu^2$ in each of the $c$ channels. Let $\alpha^2 = \lVert a \rVert_2^2 / c$ be the mean square of $a$. With $f = a + n$ and $f' = a + n'$,
#
# $$
# \begin{aligned}
# \tfrac1c\, \mathbb E\, \lVert f - f' \rVert_2^2 &= \tfrac1c\, \mathbb E\, \lVert n - n' \rVert_2^2 = 2 \nu^2, \\
# \tfrac1c\, \mathbb E\, \lVert f \rVert_2^2 &= \alpha^2 + \nu^2, \\
# \tfrac1c\, \mathbb E\, \langle f, f' \rangle &= \alpha^2 .
# \end{aligned}
# $$ (frozen-moments)
#
# The cross terms vanish because $n$ and $n'$ have mean 0 and are independent. With many channels, lengths and products lie close to their means, so
#
# $$
# \begin{aligned}
# 1 - \cos\angle(f, f') &\approx 1 - \frac{\alpha^2}{\alpha^2 + \nu^2} = \frac{\nu^2}{\rho^2}, \\
# \rho^2 &= \alpha^2 + \nu^2 .
# \end{aligned}
# $$ (frozen-cosine)
#
# The *distance* of two photographs of the same thing depends on the noise alone. Their difference in *direction* is the noise divided by the squared length $\rho^2$ of the feature: **where features are short, direction is noise.** In the limit $\alpha \to 0$ nothing is left of the direction: two independent random vectors of $c$ numbers have a cosine near 0, give or take $1/\sqrt c$.
#
# *Before you read on:* standardised features have a mean square of 1 over the whole product. Are those of the belt longer or shorter? Which difference between two photographs is larger there than on the tablet, the distance or the direction?

# %%
inside = scoring.gaussian_blur((one.mean(1) > 0.35).float(), 4.0)
regions = {"belt": inside < 0.02, "tablet": inside > 0.98}  # (4, 256, 256)


def on(region, values):
    """Mean of values (N, h, w) over the cells that lie wholly in a region (N, H, W)."""
    return values[F.adaptive_avg_pool2d(region[:, None].float(), values.shape[-2:])[:, 0] > 0.99].mean().item()


rows = {}
for k, (f, g) in enumerate(zip(f_one, f_other), 1):
    soft = soft_norm(f, 1.0) - soft_norm(g, 1.0)
    for name, region in regions.items():
        rho2, nu2 = on(region, f.square().mean(1)), on(region, (f - g).square().mean(1) / 2)
        rows[f"level {k}", name] = {
            "length ρ": rho2**0.5, "noise ν": nu2**0.5, "1 - cos, predicted": nu2 / rho2,
            "1 - cos, measured": on(region, 1 - F.cosine_similarity(f, g, dim=1)),
            "soft direction": on(region, soft.square().mean(1) / 2),
        }
empty = pd.DataFrame(rows).T
empty.style.format("{:.3f}")

# %% tags=["nbval-check-output"]
belt, product = (empty.xs(name, level=1) for name in ("belt", "tablet"))
ratio = belt / product
print(f"length, belt over tablet: {ratio['length ρ'].min():.1f} to {ratio['length ρ'].max():.1f}")
assert ratio["noise ν"].between(2 / 3, 3 / 2).all() and (ratio["1 - cos, measured"] > 3).all()
assert ((belt.iloc[:, 2] / belt.iloc[:, 3] - 1).abs() < 1 / 5).all()

# %% mystnb={"figure": {"caption": "Two tablets, each photographed twice; the first photograph is shown. Below it the length of the features of level 1, and the difference between the two photographs by distance and by direction. Each row has a colour scale of its own, whose top colour stands for its largest 1 %.", "name": "fig-frozen-empty"}, "image": {"alt": "Two tablets on a dark belt. Row length: outline and print of the tablet are bright, the belt is dark. Row distance: fairly even, a little brighter on the belt. Row direction: the belt is bright all over and the tablet dark."}} tags=["hide-input"]
f, g = f_one[0][:2], f_other[0][:2]
views = {"length": f.square().mean(1).sqrt(), "distance": (f - g).square().mean(1), "direction": 1 - F.cosine_similarity(f, g, dim=1)}
plots.picture_grid({"image": one[:2]} | {name: v.clamp(max=v.quantile(0.99).item()) for name, v in views.items()})

# %% [markdown]
# ```{admonition} What came out
# :class: dropdown
# The belt's features are about half as long as the tablet's. The noise is nearly the same in both, so the distance is too. The direction is several times noisier on the belt, as {eq}`frozen-cosine` predicts from length and noise alone (on the tablet, where lengths differ from place to place, less exactly: the mean of a quotient is not the quotient of the means). In {numref}`fig-frozen-empty` the rows for distance and for direction compare the same photographs: by distance belt and tablet differ little, by direction the belt is bright all over and the tablet dark.
# ```
#
# Here the noise was the sensor's. For a method more is noise: all that it cannot foresee, such as the grain of the rubber. And a residual by direction, one minus the cosine, is popular for good reasons: rich and plain parts of a product weigh alike in it. On an empty background it is large everywhere, although nothing is there. The remedy that several methods of this book share is to let direction fade with length. With $\rho(f) = \lVert f \rVert_2 / \sqrt c$,
#
# $$
# \operatorname{soft}(f) = \frac{f}{\rho(f) + \tau}, \qquad \tau = 1,
# $$ (frozen-soft)
#
# keeps the direction of long features ($\rho \gg \tau$) and leaves short ones short. The last column of the table is half the mean squared difference of soft features, which for $\tau = 0$ is one minus the cosine. {ref}`HFR's derivation <chapter-hfr>` makes it {eq}`hfr-soft`, and measures it in units of what is normal.
#
# ```{literalinclude} ../uad_core/methods/spread.py
# :pyobject: soft_norm
# :lineno-match:
# :caption: Equation {eq}`frozen-soft` in {py:func}`uad_core.methods.spread.soft_norm`
# ```
#
# ```{admonition} Take-away
# :class: note
# On an empty background features are short, and the direction of a short feature is noise: {eq}`frozen-cosine`.
# Distance forgives it, but favours rich parts; a soft norm keeps direction where there is one.
# ```

# %% [markdown]
# ## Exercises
#
# ```{exercise} Three small kernels
# :label: frozen-small
# What is the receptive field of three layers with kernels of side 3 and steps 1? Of one layer with a kernel of side 7? How many weights has each, for $c$ channels in and out? And what does the field become if the *first* of the three layers has step 2, what if the *last*?
# ```
#
# ```{solution} frozen-small
# :class: dropdown
# By {eq}`frozen-field` $1 + 2 + 2 + 2 = 7$ in both cases, with $3 \cdot 9\, c^2 = 27 c^2$ weights against $49 c^2$. With step 2 in the first layer $1 + 2 + 4 + 4 = 11$; with step 2 in the last one still 7: a step counts for the layers after it.
# ```
#
# ```{exercise} How long must it be?
# :label: frozen-long
# The grain adds $\nu = 0.2$ to each channel. How large must the length $\rho$ of a feature be for the direction of two photographs to differ by less than $1 - \cos = 0.01$? By what factor is the direction noisier on a place where $\rho$ is half as large?
# ```
#
# ```{solution} frozen-long
# :class: dropdown
# By {eq}`frozen-cosine` $0.2^2 / \rho^2 < 0.01$ means $\rho > 2$. Half the length makes it four times as noisy.
# ```
#
# ```{exercise} Fields from a list
# :label: frozen-fields
# Write `fields(layers)`: from a list of (kernel, step) the list of the receptive fields after each layer, without the function of the package. Test it with `check_fields`.
# ```

# %%
def check_fields(candidate):
    """Compare an answer with the package on this page's network and on small chains."""
    for chain in ([(3, 1)] * 3, [(7, 2), (3, 2), (3, 1)], layers):
        wanted = [receptive_field(chain[: n + 1])[0] for n in range(len(chain))]
        got = list(candidate(chain))
        if got != wanted:
            return f"not yet: for {chain[:3]} ... it gives {got[:3]} ..., and should give {wanted[:3]} ..."
    return "correct"


# %% [markdown]
# ```{solution} frozen-fields
# :class: dropdown
# ~~~python
# def fields(layers):
#     sides, side, step = [], 1, 1
#     for kernel, stride in layers:
#         side, step = side + (kernel - 1) * step, step * stride
#         sides.append(side)
#     return sides
#
#
# check_fields(fields)
# ~~~
# ```
#
# ```{exercise} The first axis without an eigenvalue
# :label: frozen-power
# Write `first_axis(rows, steps)` for features `(n, C)`: start from a vector of ones, apply the covariance and scale to length 1, `steps` times. Test it with `check_axis`. Why does this find the direction of {eq}`frozen-axes`, and when is it slow?
# ```

# %%
def check_axis(candidate):
    """Compare an answer with the package, on features that are stretched along one direction."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 8, generator=random) * torch.tensor([4.0, 2, 1, 1, 1, 1, 1, 1]) + 3
    rows = rows @ torch.linalg.qr(torch.randn(8, 8, generator=random))[0]
    got, wanted = candidate(rows, 50), principal_axes(rows)[1][:, 0]
    if got.shape != wanted.shape:
        return f"not yet: the shape is {tuple(got.shape)} and should be {tuple(wanted.shape)}"
    return "correct" if abs((got * wanted).sum().abs() - 1) < 1e-3 else "not yet: was the mean taken off, and is the length 1?"


# %% [markdown]
# ```{solution} frozen-power
# :class: dropdown
# ~~~python
# def first_axis(rows, steps):
#     covariance = torch.cov(rows.T, correction=0)
#     a = torch.ones(rows.shape[1])
#     for _ in range(steps):
#         a = covariance @ a
#         a = a / a.square().sum().sqrt()
#     return a
#
#
# check_axis(first_axis)
# ~~~
# In the basis of the eigenvectors each step multiplies component $j$ by $\ell_j$; after many steps the largest is left. It is slow where $\ell_2 / \ell_1$ is close to 1, and fails if the start has no component along the first axis.
# ```
#
# ```{exercise} Another backbone
# :label: frozen-teacher
# *Open.* {eq}`frozen-gain` compares one network with one random twin of it. Choose another backbone that you can get (`uad list` names some), say beforehand for which of the three changes it should be better and why, and measure. Then find a fourth harmless change that occurs in factories and to which all of them are sensitive.
# ```

# %% [markdown]
# ## Further reading
#
# * {cite:t}`luo2016receptive` show by theory and measurement how small the used part of a receptive field is.
# * {cite:t}`russakovsky2015imagenet` describe the photographs and labels that taught the network all that it knows.
# * {cite:t}`tan2019efficientnet` build the family of networks from which this page's backbone comes.
# * {cite:t}`roth2022patchcore` turn the nearest-feature detector of this page into a strong method, by choosing well what is stored.
