"""Samplers: the toy of the paper's third figure, the sampling rule against brute force, and the paper's claim."""

from __future__ import annotations

import pytest
import tiny  # noqa: F401  (one thread)
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from uad_core.methods import sampling
from uad_core.methods.sampling import greedy_coreset, random_sample, subspace_sample
from uad_core.methods.self_expression import matching_pursuit


def unit(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def union(count: int, seed: int = 0, spaces: int = 12, dim: int = 4, ambient: int = 64) -> Tensor:
    """Points (spaces·count, ambient) of a union of subspaces that is the same for every seed, with a little noise."""
    bases = torch.linalg.qr(torch.randn(spaces, ambient, dim, generator=torch.Generator().manual_seed(99)))[0]
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(spaces, count, dim, generator=generator) @ bases.mT
    points = F.normalize(inside.flatten(0, 1), dim=1)
    return F.normalize(points + 0.01 * torch.randn(points.shape, generator=generator), dim=1)


def test_two_atoms_span_the_plane_of_the_paper_s_figure_3() -> None:
    plane = torch.linalg.qr(torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    points = unit(500, 2) @ plane.T
    chosen = subspace_sample(points, 50, k=2)
    assert len(chosen) == 2
    assert matching_pursuit(points[None], points[None, chosen], 2).energy.max() < 1e-28


@pytest.mark.parametrize(("n", "d"), [(300, 12), (40, 200)])
def test_each_pick_is_what_is_worst_combined_so_far(n: int, d: int) -> None:
    points = unit(n, d)
    chosen = subspace_sample(points, 20, k=3, batch=1)
    assert len(chosen.unique()) == 20
    for size in range(1, 20):
        energy = matching_pursuit(points[None], points[None, chosen[:size]], 3).energy[0]
        assert energy[chosen[size]] > energy.max() - 1e-6


def test_paths_are_those_of_a_pursuit_from_nothing() -> None:
    points = unit(400, 12)
    paths = sampling._Paths(points, 3)
    for end in range(8, 65, 8):
        paths.extend(points[:end], 8)
        anew = matching_pursuit(points[None], points[None, :end], 3)
        assert torch.allclose(paths.residual[-1], anew.residual[0], atol=1e-9)


def test_a_round_takes_no_direction_twice() -> None:
    points = torch.eye(4, dtype=torch.float64).repeat_interleave(50, 0)
    chosen = subspace_sample(points, 20, k=2, batch=8)
    assert sorted((chosen // 50).tolist()) == [0, 1, 2, 3]


def test_coordinates_keep_all_inner_products() -> None:
    points = unit(30, 500)
    short = sampling._coordinates(points)
    assert short.shape == (30, 30)
    assert torch.allclose(short @ short.mT, points @ points.mT, atol=1e-10)


def test_coreset_is_farthest_first() -> None:
    points = unit(200, 6)
    chosen = greedy_coreset(points, 15)
    for size in range(1, 15):
        nearest = torch.cdist(points, points[chosen[:size]]).amin(1)
        assert nearest[chosen[size]] > nearest.max() - 1e-9


def test_random_draws_are_distinct_and_the_seed_s() -> None:
    points = unit(100, 3)
    first, same, other = (random_sample(points, 40, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other) and len(first.unique()) == 40


@pytest.mark.parametrize("sample", [subspace_sample, greedy_coreset])
def test_samplers_give_at_most_what_there_is(sample) -> None:
    assert len(sample(unit(5, 8), 50)) == 5
    assert len(sample(unit(1, 8), 50)) == 1


def test_identical_points_need_one_atom() -> None:
    assert len(subspace_sample(unit(1, 8).expand(100, 8), 50)) == 1


@pytest.mark.parametrize("sampler", ["subspace", "coreset", "random"])
def test_combinations_cover_what_the_same_bank_s_neighbours_miss(sampler: str) -> None:
    nominal, normal, shifted = union(200), union(20, seed=1), union(20, seed=2)
    shifted = F.normalize(shifted + 0.35 * unit(*shifted.shape, seed=3, dtype=torch.float32), dim=1)
    chosen = {
        "subspace": lambda: subspace_sample(nominal, 192, k=4),
        "coreset": lambda: greedy_coreset(nominal, 192),
        "random": lambda: random_sample(nominal, 192, torch.Generator().manual_seed(0)),
    }[sampler]()
    bank, test = nominal[chosen], torch.cat([normal, shifted])
    labels = torch.arange(len(test)) >= len(normal)
    combined = roc_auc_score(labels, matching_pursuit(test[None], bank[None], 4).energy[0])
    nearest = roc_auc_score(labels, torch.cdist(test, bank).amin(1))
    assert combined > 0.97 and nearest < 0.85
