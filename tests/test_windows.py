"""Windows against loops, and attention in tiles against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from dense_rlr import additive_masks, attention

from uad_core.methods import windows
from uad_core.methods.windows import local_attention, window_mask, window_size

GRIDS = [(7, 9), (5, 12), (2, 2), (4, 4), (9, 2), (32, 32)]


def drawn(grid: tuple[int, int], images: int = 2, heads: int = 2, width: int = 3) -> list[torch.Tensor]:
    """Queries (N, H, L, c) of images, keys and values (H, L, c) of a reference, in double precision."""
    generator = torch.Generator().manual_seed(0)
    shape = (heads, grid[0] * grid[1], width)
    shapes = ((images, *shape), shape, shape)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


# --- windows -------------------------------------------------------------------------------------------------------


def test_windows_of_the_released_grids() -> None:
    assert [window_size(side) for side in (16, 32, 64)] == [5, 7, 11]


def test_windows_are_odd_and_grow_with_the_grid() -> None:
    sizes = [window_size(side) for side in range(2, 200)]
    assert all(size % 2 == 1 for size in sizes) and sizes == sorted(sizes)
    assert all(size < side for side, size in enumerate(sizes, 2))


SQUARES = [(side, side) for side in [*range(2, 25), 32]]


@pytest.mark.parametrize("grid", [*SQUARES, (2, 9), (3, 40), (24, 14)], ids=str)
def test_every_token_has_something_outside_its_window(grid: tuple[int, int]) -> None:
    inside = window_mask(grid, window_size(min(grid)))
    assert inside.diagonal().all() and not inside.all(1).any()


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("grid", [(2, 2), (5, 5), (4, 7), (7, 3), (1, 6)], ids=str)
def test_the_mask_is_the_windows_definition(grid: tuple[int, int], window: int) -> None:
    inside = window_mask(grid, window)
    positions = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    assert inside.shape == (len(positions), len(positions)) and inside.dtype == torch.bool
    for p, (y, x) in enumerate(positions):
        for q, (v, u) in enumerate(positions):
            assert inside[p, q].item() == (abs(y - v) <= window // 2 and abs(x - u) <= window // 2)


@pytest.mark.parametrize(("side", "mean", "corner"), [(16, 21.4, 9), (32, 43.9, 16), (64, 110.9, 36)])
def test_windows_hold_as_many_tokens_as_the_specification_says(side: int, mean: float, corner: int) -> None:
    inside = window_mask((side, side), window_size(side))
    assert inside.sum().item() / side**2 == pytest.approx(mean, abs=0.05)
    corners = [0, side - 1, side**2 - side, side**2 - 1]
    assert inside[corners].sum(1).tolist() == [corner] * 4


# --- attention in tiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_give_what_the_masked_matrix_gives(grid: tuple[int, int], window: int | None) -> None:
    window = window or window_size(min(grid))
    inputs = drawn(grid)
    found = local_attention(*inputs, grid, window)
    expected = attention(*inputs, additive_masks(grid, window)[0].double())
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    ours, dense = (torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected))
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_are_as_good_in_single_precision(grid: tuple[int, int]) -> None:
    inputs = [x.detach().float().requires_grad_() for x in drawn(grid)]
    window = window_size(min(grid))
    found, expected = local_attention(*inputs, grid, window), attention(*inputs, additive_masks(grid, window)[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for a, b in zip(*(torch.autograd.grad(out.sum(), inputs) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(7, 9), (5, 12), (12, 12)], ids=str)
def test_what_lies_outside_a_window_has_no_influence_at_all(grid: tuple[int, int]) -> None:
    window = 3
    q, k, v = (x.detach() for x in drawn(grid))
    before = local_attention(q, k, v, grid, window)
    inside = window_mask(grid, window)
    for changed in (0, grid[1] + 2, grid[0] * grid[1] - 1):
        k_2, v_2 = k.clone(), v.clone()
        k_2[:, changed], v_2[:, changed] = 50.0, -1e6
        after = local_attention(q, k_2, v_2, grid, window)
        same = (after == before).all(-1)  # (N, H, L)
        assert same[..., ~inside[:, changed]].all() and not same[..., inside[:, changed]].any()


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (2, 2), (5, 5), (6, 3)], ids=str)
def test_padding_to_whole_tiles_leaves_no_nan(grid: tuple[int, int]) -> None:
    for window in (1, 3):
        # Whether a query without any key becomes NaN depends on torch's version: there must be none.
        assert windows._visible(grid, window, torch.device("cpu")).any(-1).all()
        inputs = drawn(grid)
        out = local_attention(*inputs, grid, window)
        assert out.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.square().sum(), inputs))


def test_images_do_not_see_each_other() -> None:
    q, k, v = (x.detach() for x in drawn((7, 9), images=3))
    together = local_attention(q, k, v, (7, 9), 3)
    for n in range(3):
        torch.testing.assert_close(local_attention(q[n : n + 1], k, v, (7, 9), 3)[0], together[n])


def test_a_mask_made_in_inference_mode_serves_training() -> None:
    """The masks are kept for the next call, which may be one that needs gradients."""
    q, k, v = drawn((3, 10), images=1)
    with torch.inference_mode():
        local_attention(q, k, v, (3, 10), 1)
    assert torch.autograd.grad(local_attention(q, k, v, (3, 10), 1).sum(), v)[0].isfinite().all()
