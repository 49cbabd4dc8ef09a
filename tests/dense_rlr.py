"""RLR's network as its equations read, with nothing saved: the oracle of its tests and the rival of its benchmark.

Every attention is a matrix of all tokens against all tokens, masked with -inf; the reference is copied for every image
and projected anew for each. Only the weights are those of a `LevelNetwork`: none of its functions is called.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def additive_masks(grid: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
    """Return what is added to the scores (L, L) to see the window only, and to see all but the window."""
    position = torch.arange(grid[0] * grid[1])
    row, column = position // grid[1], position % grid[1]
    k = window // 2
    keep = ((row[:, None] - row[None]).abs() <= k) & ((column[:, None] - column[None]).abs() <= k)
    nothing = torch.zeros(keep.shape)
    return nothing.masked_fill(~keep, -math.inf), nothing.masked_fill(keep, -math.inf)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √c + mask) v for q, k, v (..., L, c)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (..., L, L)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


class DenseLevel(nn.Module):
    """What `LevelNetwork` computes, computed densely with the same weights: tokens (N, L, C) -> (N, L, C)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        inside, outside = additive_masks(net.grid, net.window)
        self.register_buffer("inside", inside.to(net.reference.dtype))
        self.register_buffer("outside", outside.to(net.reference.dtype))

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        z = embed(net.embed, x)
        references = [embed(net.embed_reference, r.repeat(len(x), 1, 1)) for r in net.reference]  # r of (N, L, d)
        for layer in net.layers:
            weights = gate(layer, z)
            blocks = (self.block(block, z, references) for block in layer.blocks)
            u = sum(w[:, None, None] * block for w, block in zip(weights, blocks, strict=True))
            z_1 = norm(layer.norm_1, z + u if layer.residual else u)
            hidden = F.gelu(linear(layer.ffn[0], z_1))
            z = norm(layer.norm_2, z_1 + linear(layer.ffn[2], hidden))
        return linear(net.head[1], norm(net.head[0], z))

    def block(self, block: nn.Module, z: Tensor, references: list[Tensor]) -> Tensor:
        """One of the five attentions: its query is Z, its keys, values and mask are those of its name."""
        if block.kind == "lca":
            return sum(self.heads(block, z, r, r, self.inside) for r in references)
        if block.kind == "mlka":
            return sum(self.heads(block, z, r, z, self.outside) for r in references)
        if block.kind == "ca":
            return sum(self.heads(block, z, r, r, None) for r in references)
        return self.heads(block, z, z, z, {"msa": self.outside, "sa": None}[block.kind])

    def heads(self, block: nn.Module, z: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = linear(block.q, z), linear(block.k, keys), linear(block.v, values)  # (N, L, d)
        parts = (x.reshape(*x.shape[:2], block.heads, -1).transpose(1, 2) for x in (q, k, v))  # (N, H, L, d/H)
        return linear(block.out, attention(*parts, mask).transpose(1, 2).reshape(z.shape))


def gate(layer: nn.Module, z: Tensor) -> list[Tensor]:
    """The weight of each block, (N,) or (1,)."""
    module = layer.gate
    if module.kind == "none":
        return [z.new_tensor([2.0 if block.kind in ("lca", "ca") else 1.0]) for block in layer.blocks]
    if module.kind == "gate":
        return [module.scalars[i : i + 1] for i in range(len(layer.blocks))]
    seen = torch.cat([z.mean(dim=1), z.max(dim=1).values], dim=1)  # (N, 2d)
    return list(linear(module.net[2], F.gelu(linear(module.net[0], seen))).softmax(1).T)


def embed(module: nn.Module, x: Tensor) -> Tensor:
    return linear(module.linear, x) + module.positions


def linear(module: nn.Module, x: Tensor) -> Tensor:
    return x @ module.weight.T + module.bias


def norm(module: nn.Module, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-5)
