"""RLR: reconstruct features from a learnable reference, one model for all classes.

He, Jiang, Peng, Liu, Du, Hu, Zhu, Chi, Wang, Wang: Learning Unified Reference Representation for Unsupervised
Multi-class Anomaly Detection, ECCV 2024, arXiv 2403.11561.

A network that reconstructs features *from the features themselves* learns to copy, anomalies included. RLR takes the
content from elsewhere: from a reference, a feature map that is learned like a weight. The image only asks, position by
position, what belongs there. Every level of the frozen pyramid has a network of its own; all classes share it.

Architecture, loss and score are read from the authors' public code; what is not, is marked in `RLRConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from uad_core import scoring
from uad_core.backbones import Backbone
from uad_core.errors import UserError
from uad_core.features import Features
from uad_core.methods.base import FeatureDetector, Paper
from uad_core.methods.channels import ChannelScale, measure_channels
from uad_core.methods.settings import Count, Counts, Fraction, Several, Size, TrainedConfig, fact, reconstruction
from uad_core.methods.windows import local_attention, outside_window, window_size
from uad_core.training import train

__all__ = ["RLR", "Attention", "Embedding", "LevelNetwork", "RLRConfig", "feature_jitter", "sine_positions"]

Block = Literal["lca", "mlka", "ca", "msa", "sa"]
BLOCKS = get_args(Block)
CODE, README = "authors' public code", "training line of the authors' README"


@dataclass(frozen=True)
class RLRConfig(TrainedConfig):
    """Settings of RLR; the same for every level but for its width."""

    strides: Counts = fact((8, 16), f"two levels, timm's indices 2 and 3; {README}")
    pool: bool = fact(True, f"average every feature over 3 x 3 neighbours, zeros beyond the border counted; {CODE}")
    standardise: bool = reconstruction(False, "bring every channel to mean 0 and deviation 1 over the training images")
    floor: Size = reconstruction(0.1, "smallest deviation of a channel, as a fraction of its level's median one")
    width: Count = fact(32, f"d = 32 · stride tokens' width: 256 at stride 8, 512 at stride 16; {CODE}")
    layers: Count = fact(4, f"layers M of each level's network; {README}")
    heads: Count = fact(8, f"attention heads H; {CODE}")
    blocks: Annotated[tuple[Block, ...], Several, Field(min_length=1)] = fact(
        ("lca", "mlka"), f"attentions of a layer, in parallel; {README}"
    )
    gate: Literal["none", "gate", "net"] = fact(
        "none", f"weights of the blocks: 'none' for the constants 2 and 1, learned ones, or a network's; {README}"
    )
    residual: bool = fact(False, f"carry a layer's input around its attentions: the shortcut RLR avoids; {CODE}")
    ref_len: Count = fact(1, f"reference tokens r for each grid position; {CODE}")
    ref_loss: bool = fact(False, f"with r > 1, push the references apart; {CODE}")
    jitter: Size = fact(4.0, f"scale s of the noise on the input features; {README}")
    jitter_prob: Fraction = fact(1.0, f"fraction of the tokens that get noise; {CODE}")
    epochs: Count = fact(200, README)
    batch_size: Count = fact(4, README)
    lr: Size = fact(1e-4, f"of Adam; {CODE}")
    decay: Literal["constant", "onecycle"] = fact("constant", f"no schedule; {CODE}")
    sigma: Size = fact(4.0, f"pixels; smooths the map for the image score only; {CODE}")
    score: Literal["max", "top", "mean"] = fact("max", f"the largest value of the smoothed map; {CODE}")


def sine_positions(grid: tuple[int, int], d: int) -> Tensor:
    """Return the fixed position table P (L, d): channels 0 ... d/2-1 tell the column, the others the row.

    Source: RLR chapter, equation (rlr-position) [fact].
    """
    half = d // 2
    omega = 10000 ** (-torch.arange(0, half, 2) / half)  # (d/4,)

    def along(side: int) -> Tensor:
        angle = torch.arange(side)[:, None] * omega  # (side, d/4)
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # (side, d/2): sin, cos, sin, cos ...

    rows, columns = (along(side) for side in grid)
    table = torch.cat([columns.expand(grid[0], -1, -1), rows[:, None].expand(-1, grid[1], -1)], -1)  # (h, w, d)
    return table.flatten(0, 1)  # (L, d)


def feature_jitter(x: Tensor, scale: float, prob: float = 1.0) -> Tensor:
    """Add to each token noise in proportion to its length: x (N, L, C) -> (N, L, C).

    Source: RLR chapter, equation (rlr-jitter) [fact; the formula is UniAD's].
    """
    noise = torch.randn_like(x) * (scale * x.norm(dim=-1, keepdim=True) / x.shape[-1])
    return x + noise * (torch.rand_like(x[..., :1]) < prob)


class Embedding(nn.Module):
    """Bring tokens to the network's width and tell them where they are: (..., L, C) -> (..., L, d).

    Source: RLR chapter, equation (rlr-embedding) [fact].
    """

    def __init__(self, channels: int, d: int, grid: tuple[int, int]):
        super().__init__()
        self.linear = nn.Linear(channels, d)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="leaky_relu")
        self.register_buffer("positions", sine_positions(grid, d), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.positions


class Attention(nn.Module):
    """Multi-head attention of one of five kinds, told apart by where keys and values come from and who sees whom.

    ========  ==============  =================  ===================
    kind      keys from       values from        a token sees
    ========  ==============  =================  ===================
    lca       the reference   the reference      its window only
    mlka      the reference   the tokens         all but its window
    ca        the reference   the reference      everything
    msa       the tokens      the tokens         all but its window
    sa        the tokens      the tokens         everything
    ========  ==============  =================  ===================

    Source: RLR chapter, equations (rlr-lca) and (rlr-mlka) [fact; that the last three are the paper's ablations is a
    reconstruction].
    """

    def __init__(self, kind: str, d: int, heads: int, grid: tuple[int, int], window: int):
        super().__init__()
        self.kind, self.heads, self.grid, self.window = kind, heads, grid, window
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        for linear in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.q, self.k, self.v, self.out):
            nn.init.zeros_(linear.bias)

    @property
    def weight(self) -> float:
        """What the block's output counts in its layer: 2 where the values are the reference's, else 1."""
        return 2.0 if self.kind in ("lca", "ca") else 1.0

    def forward(self, z: Tensor, reference: Tensor) -> Tensor:
        """z: tokens (N, L, d). reference: embedded references (r, L, d). Returns (N, L, d)."""
        q = self.split(self.q(z))  # (N, H, L, d/H)
        if self.kind in ("msa", "sa"):
            return self.attend(q, self.split(self.k(z)), self.split(self.v(z)))
        # The reference knows nothing of the images: its keys and values are made once per step, not once per image.
        keys = self.split(self.k(reference))  # (r, H, L, d/H)
        if self.kind == "mlka":
            v = self.split(self.v(z))
            return sum(self.attend(q, k, v) for k in keys)
        return sum(self.attend(q, k, v) for k, v in zip(keys, self.split(self.v(reference))))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (N, H, L, d/H). k, v: the same, or (H, L, d/H) where all images share them. Returns (N, L, d)."""
        if self.kind == "lca":
            out = local_attention(q, k, v, self.grid, self.window)
        else:
            masked = self.kind in ("mlka", "msa")
            mask = outside_window(self.grid, self.window, q.device) if masked else None  # (L, L)
            out = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), attn_mask=mask)
        return self.out(out.transpose(1, 2).flatten(2))  # (N, L, d)

    def split(self, x: Tensor) -> Tensor:
        """Give every head its share of the width: (..., L, d) -> (..., H, L, d/H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class Gate(nn.Module):
    """Weigh the blocks of a layer by constants, by learned numbers, or by a small network that looks at the tokens.

    Source: RLR chapter, equation (rlr-gate) [fact].
    """

    def __init__(self, kind: str, constants: list[float], d: int):
        super().__init__()
        self.kind = kind
        self.register_buffer("constants", torch.tensor(constants), persistent=False)
        if kind == "gate":
            self.scalars = nn.Parameter(torch.ones(len(constants)))
        if kind == "net":
            self.net = nn.Sequential(nn.Linear(2 * d, d), nn.GELU(), nn.Linear(d, len(constants)))

    def forward(self, z: Tensor) -> Tensor:
        """z: tokens (N, L, d). Returns one weight for each block, (N, blocks) or (1, blocks)."""
        if self.kind == "net":
            return self.net(torch.cat([z.mean(1), z.amax(1)], -1)).softmax(-1)
        return (self.scalars if self.kind == "gate" else self.constants)[None]


class Layer(nn.Module):
    """Attend, then transform token by token: (N, L, d) -> (N, L, d).

    Source: RLR chapter, equation (rlr-layer) [fact].
    """

    def __init__(self, config: RLRConfig, d: int, grid: tuple[int, int], window: int):
        super().__init__()
        self.residual = config.residual
        self.blocks = nn.ModuleList(Attention(kind, d, config.heads, grid, window) for kind in config.blocks)
        self.gate = Gate(config.gate, [block.weight for block in self.blocks], d)
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.ffn = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, z: Tensor, reference: Tensor) -> Tensor:
        weights = self.gate(z).unbind(-1)  # one (N,) or (1,) for each block
        u = sum(w[:, None, None] * block(z, reference) for w, block in zip(weights, self.blocks))
        z_1 = self.norm_1(u + z if self.residual else u)
        return self.norm_2(z_1 + self.ffn(z_1))


class LevelNetwork(nn.Module):
    """Reconstruct the features of one level: tokens (N, L, C) -> (N, L, C).

    `reference` is R, one free feature for each position of the grid (r of them with `ref_len` = r).
    Source: RLR chapter, equations (rlr-reference) to (rlr-layer) [fact].
    """

    def __init__(self, config: RLRConfig, channels: int, d: int, grid: tuple[int, int]):
        super().__init__()
        self.grid, self.window = grid, window_size(min(grid))
        self.reference = nn.Parameter(torch.randn(config.ref_len, grid[0] * grid[1], channels))  # (r, L, C)
        self.embed, self.embed_reference = Embedding(channels, d, grid), Embedding(channels, d, grid)
        self.layers = nn.ModuleList(Layer(config, d, grid, self.window) for _ in range(config.layers))
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, channels))

    def forward(self, x: Tensor) -> Tensor:
        z, k_r = self.embed(x), self.embed_reference(self.reference)  # (N, L, d), (r, L, d)
        for layer in self.layers:
            z = layer(z, k_r)
        return self.head(z)  # (N, L, C)

    def reference_overlap(self) -> Tensor:
        """Return the mean cosine between the r references: Σ_{i<j} mean cos(R_i, R_j) / (r (r - 1)).

        Source: RLR chapter, equation (rlr-diversity) [fact].
        """
        unit = F.normalize(self.reference, dim=-1)  # (r, L, C)
        r = len(unit)
        pairs = [(unit[i] * unit[j]).sum(-1).mean() for i in range(r) for j in range(i + 1, r)]
        return sum(pairs, unit.new_zeros(())) / max(1, r * (r - 1))


class RLR(FeatureDetector):
    """Reconstruction from a learnable reference, all classes in one model."""

    name = "rlr"
    paper = Paper(
        "Learning Unified Reference Representation for Unsupervised Multi-class Anomaly Detection",
        "He, Jiang, Peng, Liu, Du, Hu, Zhu, Chi, Wang, Wang", "2403.11561", 2024,
        "a feature map, all categories in one model", "a learnable reference", "masked and local cross attention",
        "03_rlr", "he2024rlr",
    )  # fmt: skip
    joint = True
    config_class = RLRConfig
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(
            image_size=128, standardise=True, width=8, layers=2, heads=2, epochs=4, lr=4e-3, decay="onecycle"
        ),
        "cpu": dict(standardise=True, width=8, layers=2, heads=2, epochs=12, lr=3e-3, decay="onecycle"),
        "colab": dict(backbone="tf_efficientnet_b6", epochs=60, batch_size=16, lr=4e-4, decay="onecycle"),
        "paper": dict(backbone="tf_efficientnet_b6"),
    }
    one_class: ClassVar[dict[str, Any]] = dict(
        image_size=64, sigma=0.0, map_stride=4, standardise=True, width=8, layers=2, heads=2, epochs=4, batch_size=64,
        lr=3e-3, decay="onecycle",
    )  # fmt: skip

    def __init__(self, config: RLRConfig, backbone: Backbone, image_size: tuple[int, int], seed: int):
        super().__init__(config, backbone, image_size, seed)
        _check(config, backbone)
        self.scales = nn.ModuleList(ChannelScale(c) for c in backbone.channels)
        self.nets = nn.ModuleList(
            LevelNetwork(config, channels, config.width * stride, grid)
            for channels, stride, grid in zip(backbone.channels, backbone.strides, _grids(backbone, image_size))
        )

    def tokens(self, level: int, f: Tensor) -> Tensor:
        """Average a feature map over 3 x 3 neighbours and read it row by row: (N, C, h, w) -> X (N, L, C).

        Source: RLR chapter, equation (rlr-tokens) [fact; that channels are standardised first is a reconstruction].
        """
        f = self.scales[level](f)
        if self.config.pool:
            f = F.avg_pool2d(f, 3, stride=1, padding=1)  # zeros beyond the border are counted
        return f.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def reconstruct(self, pyramid: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return for each level the target X and its reconstruction, both as maps (N, C, h, w)."""
        targets = [self.tokens(k, f) for k, f in enumerate(pyramid)]
        return [(_maps(x, net.grid), _maps(net(x), net.grid)) for net, x in zip(self.nets, targets)]

    def map_residuals(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """Return s_1, s_2 ..., finest first: equation (rlr-score) [fact]."""
        pairs = self.reconstruct(pyramid)
        return {f"s_{k}": scoring.feature_distance(x, x_hat, 1.0, 1.0) for k, (x, x_hat) in enumerate(pairs, 1)}

    def loss(self, level: int, f: Tensor) -> Tensor:
        """Compare the reconstruction from noisy features with the clean ones: equation (rlr-loss) [fact]."""
        net, x = self.nets[level], self.tokens(level, f)  # (N, L, C)
        x_hat = net(feature_jitter(x, self.config.jitter, self.config.jitter_prob))
        value = scoring.feature_distance(_maps(x_hat, net.grid), _maps(x, net.grid), 1.0, 1.0).mean()
        return value + net.reference_overlap() if self.config.ref_loss else value

    def learn(self, data: Features, *, checkpoint: Path | None, progress: bool) -> None:
        """Train the levels one after another, each with an optimiser of its own [reconstruction: they are independent].

        The history is the sum of the levels' losses.
        """
        if self.config.standardise:
            measure_channels(self.scales, data, self.config.floor)
        histories = []
        for k, net in enumerate(self.nets):
            kept = checkpoint and checkpoint.with_name(f"{checkpoint.stem}-{k + 1}{checkpoint.suffix}")
            options = dict(seed=self.seed, device=self.device, checkpoint=kept, progress=progress)
            histories.append(
                train(net, data.only([k]), lambda batch, k=k: self.loss(k, batch[0]), self.config.schedule(),
                      key=f"{self.run_key(data)}-{k}", **options)
            )  # fmt: skip
        self.history = [sum(losses) for losses in zip(*histories)]

    def fuse(self, residuals: dict[str, Tensor]) -> Tensor:
        """Bring the maps of all levels to the image's size and average them, unsmoothed: equation (rlr-map) [fact]."""
        maps = [scoring.upsample(s, self.map_size, align_corners=True) for s in residuals.values()]
        return torch.stack(maps).mean(0)  # (N, H, W)

    def score_maps(self, maps: Tensor) -> Tensor:
        """Smooth the maps, then take the largest value: equation (rlr-image-score) [fact]."""
        return scoring.image_score(scoring.gaussian_blur(maps, self.config.sigma), self.config.score)


def _maps(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return x.transpose(1, 2).unflatten(2, grid)  # (N, L, C) -> (N, C, h, w)


def _grids(backbone: Backbone, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (h, w) of each level: the reference has a token for every position."""
    image = torch.zeros(1, 3, *image_size, device=backbone.mean.device)
    grids = [tuple(f.shape[-2:]) for f in backbone(image)]
    if min(grids[-1]) < 2:
        raise UserError(f"image size {image_size} leaves no window at stride {backbone.strides[-1]}: use a larger one")
    return grids


def _check(config: RLRConfig, backbone: Backbone) -> None:
    """Refuse blocks that are named twice and widths that heads or positions do not divide."""
    if len(set(config.blocks)) != len(config.blocks):
        raise UserError(f"blocks {','.join(config.blocks)!r}: name each once")
    for d in (config.width * stride for stride in backbone.strides):
        if d % config.heads or d % 4:
            remedy = f"choose one that 4 and heads={config.heads} divide"
            raise UserError(f"width {config.width} gives {d} channels: {remedy}")
