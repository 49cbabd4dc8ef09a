"""Windows on a grid of tokens: which position may look where, and attention that computes hardly more than that.

The tokens of a feature map (h, w) are numbered row by row. The window of a token holds the tokens that are at most
`window // 2` rows and columns away, cut off at the border.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["local_attention", "outside_window", "window_mask", "window_size"]

TILE = 4
SIDES, SIZES = (8, 16, 32, 64), (4, 5, 7, 11)


def window_size(side: int) -> int:
    """Return the odd window, in tokens, of a grid with `side` tokens in a row; always smaller than the grid.

    Source: RLR, authors' code, for 16, 32 and 64 tokens [fact]; the nearest odd number on the line between them is our
    reconstruction.
    """
    nearest_odd = 2 * int(np.interp(side, SIDES, SIZES) / 2) + 1
    # The window of a central token must leave something outside for MLKA to attend to.
    return max(1, min(nearest_odd, 2 * (side // 2) - 1))


def window_mask(grid: tuple[int, int], window: int) -> Tensor:
    """Return which tokens lie in the window of which: bool (L, L), L = h·w, true at [p, q] where q is in p's window.

    Source: RLR chapter, equation (rlr-window) [fact].
    """
    rows, columns = (torch.arange(side) for side in grid)
    near_rows, near_columns = ((x[:, None] - x).abs() <= window // 2 for x in (rows, columns))
    near = near_rows[:, None, :, None] & near_columns[None, :, None, :]  # (h, w, h, w)
    return near.flatten(2).flatten(0, 1)  # (L, L)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later calls, and training needs it for its gradient
def outside_window(grid: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """Return the opposite of `window_mask` on a device: one for all layers that share a grid."""
    return ~window_mask(grid, window).to(device)  # (L, L)


def local_attention(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Attend from each token of N images to its window of one reference, which all images share.

    q: (N, H, L, d/H), the queries of H heads. k, v: (H, L, d/H), of the reference. Returns (N, H, L, d/H).

    The grid is cut into tiles of 4 x 4 tokens. A tile with a margin of half a window around it holds every key that
    its queries may see: 100 for a window of 7, however large the grid. Since all images share the keys, the queries of
    all images that fall into a tile are one matrix.

    Source: RLR chapter, equation (rlr-lca) [the window is a fact, computing it in tiles is ours].
    """
    visible = _visible(grid, window, q.device)  # (T, 1, t², S²)
    k, v = _cut(k, grid, window), _cut(v, grid, window)  # (T, H, S², d/H)
    mask = visible.repeat(1, 1, len(q), 1)  # (T, 1, N·t², S²)
    return _join(F.scaled_dot_product_attention(_split(q, grid), k, v, attn_mask=mask), len(q), grid)


@lru_cache(maxsize=16)
def _visible(grid: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """Return which keys of a tile with its margin each query of the tile may see: bool (T, 1, t², S²)."""
    rows, columns = (_visible_along(side, window) for side in grid)
    both = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]  # (T_h, T_w, t, t, S, S)
    return both.flatten(4).flatten(2, 3).flatten(0, 1)[:, None].to(device)


def _visible_along(side: int, window: int) -> Tensor:
    """Return the same along one axis: bool (T, t, S)."""
    query = torch.arange(0, side, TILE)[:, None, None] + torch.arange(TILE)[None, :, None]  # (T, t, 1)
    key = _keys_along(side, window)  # (T, 1, S)
    visible = ((query - key).abs() <= window // 2) & (key >= 0) & (key < side)
    # A query beyond the border is thrown away, but without any key it would turn gradients into NaN.
    return visible | (query >= side)


def _keys_along(side: int, window: int) -> Tensor:
    """Return where the keys of a tile with its margin lie along one axis, also beyond the border: (T, 1, S)."""
    span = torch.arange(-(window // 2), TILE + window // 2)
    return torch.arange(0, side, TILE)[:, None, None] + span


def _cut(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Cut keys (H, L, c) into tiles with their margins: (T, H, S², c)."""
    tokens = _tokens_of_tiles(grid, window, x.device)  # (T, S²)
    # Gathered along the first axis, whole rows at a time: cut by `unfold`, the gradient takes three times as long.
    x = x.transpose(0, 1).index_select(0, tokens.flatten())  # (T·S², H, c)
    return x.unflatten(0, tokens.shape).transpose(1, 2)  # (T, H, S², c)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later calls, and training needs it for its gradient
def _tokens_of_tiles(grid: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """Return the number of the token that is each key of a tile with its margin: (T, S²).

    Beyond the border it is the nearest token: `_visible` hides it.
    """
    rows, columns = (_keys_along(side, window).clamp(0, side - 1)[:, 0] for side in grid)  # (T_h, S), (T_w, S)
    tokens = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]  # (T_h, T_w, S, S)
    return tokens.flatten(2).flatten(0, 1).to(device)


def _split(q: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sort the queries (N, H, L, c) of all images by tile: (T, H, N·t², c)."""
    bottom, right = (-side % TILE for side in grid)  # what the grid lacks to whole tiles
    q = F.pad(q.unflatten(2, grid), (0, 0, 0, right, 0, bottom))
    q = q.unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE))  # (N, H, T_h, t, T_w, t, c)
    return q.permute(2, 4, 1, 0, 3, 5, 6).flatten(3, 5).flatten(0, 1)  # (T, H, N·t², c)


def _join(out: Tensor, images: int, grid: tuple[int, int]) -> Tensor:
    """Undo `_split`: (T, H, N·t², c) -> (N, H, L, c)."""
    tiles = [-(-side // TILE) for side in grid]
    out = out.unflatten(2, (images, TILE, TILE)).unflatten(0, tiles)  # (T_h, T_w, H, N, t, t, c)
    out = out.permute(3, 2, 0, 4, 1, 5, 6).flatten(4, 5).flatten(2, 3)  # (N, H, h', w', c)
    return out[:, :, : grid[0], : grid[1]].flatten(2, 3)
