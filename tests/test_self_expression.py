"""Self-expression: both solvers against scikit-learn, on random and on degenerate points, and what must always hold."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tiny  # noqa: F401  (one thread)
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, orthogonal_mp
from torch import Tensor

from uad_core.methods import self_expression
from uad_core.methods.self_expression import Expression, elastic_net, largest, matching_pursuit, orthogonalise

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0, dtype=DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def unit(*shape: int, seed: int = 0, dtype=DOUBLE) -> Tensor:
    return F.normalize(draw(*shape, seed=seed), dim=-1).to(dtype)


def dense(found: Expression, m: int) -> Tensor:
    """Weights over all atoms (n, m) of the first problem."""
    weights = found.weights.new_zeros(found.index.shape[1], m)
    return weights.scatter_add(1, found.index[0], found.weights[0])


def reference(points: Tensor, atoms: Tensor, k: int) -> np.ndarray:
    """scikit-learn's weights (n, m)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it warns where it stops early
        rows = [orthogonal_mp(atoms.T.numpy(), y.numpy(), n_nonzero_coefs=min(k, len(atoms))) for y in points]
    return np.stack(rows)


# --- orthogonal matching pursuit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "d", "k"), [(40, 16, 1), (40, 16, 5), (200, 32, 10), (7, 16, 5)])
def test_pursuit_is_scikit_learn_s(m: int, d: int, k: int) -> None:
    points, atoms = draw(40, d), unit(m, d, seed=1)
    found = matching_pursuit(points[None], atoms[None], k)
    expected = reference(points, atoms, k)
    np.testing.assert_allclose(dense(found, m).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found.residual[0].numpy(), points.numpy() - expected @ atoms.numpy(), atol=1e-5)


def doubled() -> tuple[Tensor, Tensor]:
    return draw(40, 16), unit(10, 16, seed=1).repeat(3, 1)


def zeros() -> tuple[Tensor, Tensor]:
    points, atoms = draw(40, 16), unit(12, 16, seed=1)
    points[3], atoms[5] = 0, 0
    return points, atoms


def few() -> tuple[Tensor, Tensor]:
    return draw(40, 16), unit(3, 16, seed=1)


def flat() -> tuple[Tensor, Tensor]:
    return draw(40, 4), unit(30, 4, seed=1)


def nearly_doubled() -> tuple[Tensor, Tensor]:
    atoms = unit(10, 16, seed=1)
    return draw(40, 16), F.normalize(torch.cat([atoms, atoms + 1e-6 * draw(10, 16, seed=2)]), dim=1)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("k", [1, 5, 12])
@pytest.mark.parametrize("case", [doubled, zeros, few, flat])
def test_degenerate_points_are_rebuilt_as_by_scikit_learn(case, k: int, dtype) -> None:
    points, atoms = case()
    found = matching_pursuit(points[None].to(dtype), atoms[None].to(dtype), k)
    expected = points - torch.from_numpy(reference(points, atoms, k)) @ atoms
    assert (found.residual[0] - expected).abs().max() < 1e-5
    rebuilt = dense(found, len(atoms)).to(DOUBLE) @ atoms
    assert (points - rebuilt - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_nearly_doubled_atoms_do_not_make_it_unstable(dtype) -> None:
    points, atoms = nearly_doubled()
    found = matching_pursuit(points[None].to(dtype), atoms[None].to(dtype), 16)
    assert found.residual.isfinite().all() and found.weights.isfinite().all()
    assert (found.energy[0] <= points.square().sum(1) * (1 + 1e-6)).all()


def test_weights_are_least_squares_on_the_atoms_taken() -> None:
    points, atoms = draw(6, 16), unit(50, 16, seed=1)
    found = matching_pursuit(points[None], atoms[None], 4)
    for y, j, c in zip(points, found.index[0], found.weights[0], strict=True):
        best = torch.linalg.lstsq(atoms[j].T, y[:, None]).solution[:, 0]
        assert torch.allclose(c, best, atol=1e-10) and len(j.unique()) == 4


def test_residual_falls_with_k_and_is_orthogonal_to_the_atoms_taken() -> None:
    points, atoms = draw(1, 30, 16), unit(1, 60, 16, seed=1)
    found = [matching_pursuit(points, atoms, k) for k in range(1, 9)]
    energies = torch.stack([f.energy for f in found])
    assert (energies.diff(dim=0) < 0).all()
    taken = atoms[0][found[-1].index]  # (1, n, k, d)
    assert (taken @ found[-1].residual[..., None]).abs().max() < 1e-12


def test_an_atom_is_rebuilt_from_itself_alone() -> None:
    atoms = unit(1, 50, 16, dtype=torch.float32)
    found = matching_pursuit(atoms, atoms, 5)
    assert found.energy.max() < 1e-12
    assert torch.equal(found.index[0, :, 0], torch.arange(50))
    assert found.weights[..., 1:].abs().max() == 0


def test_excluded_atoms_are_not_used() -> None:
    atoms = unit(1, 50, 16)
    itself = torch.eye(50, dtype=torch.bool)
    for found in (matching_pursuit(atoms, atoms, 5, itself), elastic_net(atoms, atoms, excluded=itself)):
        assert dense(found, 50).diagonal().abs().max() == 0
        assert found.energy.min() > 1e-4


def test_with_all_atoms_excluded_nothing_is_rebuilt() -> None:
    points = draw(1, 4, 8)
    none = torch.ones(4, 6, dtype=torch.bool)
    for found in (matching_pursuit(points, unit(1, 6, 8), 3, none), elastic_net(points, unit(1, 6, 8), excluded=none)):
        assert torch.equal(found.residual, points) and not found.weights.any()


@pytest.mark.parametrize("solve", [lambda y, a: matching_pursuit(y, a, 3), lambda y, a: elastic_net(y, a, gamma=5.0)])
def test_independent_problems_do_not_mix(solve) -> None:
    points, atoms = draw(5, 7, 12), unit(5, 20, 12, seed=1)
    together = solve(points, atoms)
    for g in range(5):
        alone = solve(points[g : g + 1], atoms[g : g + 1])
        assert torch.allclose(together.residual[g], alone.residual[0], atol=1e-5)


@pytest.mark.parametrize(
    "solve", [lambda y, a, e: matching_pursuit(y, a, 3, e), lambda y, a, e: elastic_net(y, a, gamma=5.0, excluded=e)]
)
def test_little_memory_changes_nothing(solve, monkeypatch) -> None:
    points, atoms = draw(1, 33, 12), unit(1, 20, 12, seed=1)
    excluded = draw(33, 20, seed=3) > 1
    whole = solve(points, atoms, excluded)
    monkeypatch.setattr(self_expression, "scratch_floats", lambda device: 1000)
    parts = solve(points, atoms, excluded)
    assert torch.allclose(whole.residual, parts.residual, atol=1e-5)


def test_memory_stays_within_its_bound(monkeypatch) -> None:
    seen = []
    pursue = self_expression._pursue
    monkeypatch.setattr(self_expression, "_pursue", lambda y, *rest: seen.append(y.shape[1]) or pursue(y, *rest))
    matching_pursuit(draw(1, 5000, 8, dtype=torch.float32), unit(1, 2000, 8, dtype=torch.float32), 2)
    assert sum(seen) == 5000 and max(seen) * 2000 <= self_expression.scratch_floats(torch.device("cpu"))


@pytest.mark.parametrize("m", [1, 16, 37, 96])
def test_largest_is_the_maximum(m: int) -> None:
    x = draw(2, 50, m)
    value, place = largest(x)
    assert torch.equal(value, x.amax(-1)) and torch.equal(x.gather(-1, place[..., None])[..., 0], value)


def test_orthogonalise_gives_the_columns_of_a_qr_decomposition() -> None:
    a = draw(9, 3, 6)
    basis, upper = [], torch.zeros(9, 3, 3, dtype=DOUBLE)
    for t in range(3):
        q, upper[:, : t + 1, t] = orthogonalise(a[:, t], basis, torch.ones(9, dtype=torch.bool))
        basis.append(q)
    q = torch.stack(basis, 2)  # (9, 6, 3)
    assert torch.allclose(q.mT @ q, torch.eye(3, dtype=DOUBLE).expand(9, 3, 3), atol=1e-12)
    assert torch.allclose(q @ upper, a.mT, atol=1e-12)


# --- elastic net ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [60, 24])
@pytest.mark.parametrize(("l1_ratio", "gamma"), [(0.9, 50.0), (0.9, 5.0), (0.5, 5.0), (1.0, 20.0)])
def test_elastic_net_is_scikit_learn_s(l1_ratio: float, gamma: float, active: int) -> None:
    points, atoms = unit(12, 16), unit(60, 16, seed=1)
    found = dense(elastic_net(points[None], atoms[None], l1_ratio, gamma, active), 60)
    for y, c in zip(points, found, strict=True):
        l1 = float((atoms @ y).abs().max()) / gamma
        l2 = l1 * (1 - l1_ratio) / l1_ratio
        share = l1 / (l1 + l2)
        model = ElasticNet((l1 + l2) / 16, l1_ratio=share, fit_intercept=False, tol=1e-10, max_iter=10**5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            expected = model.fit(atoms.T.numpy(), y.numpy()).coef_
        np.testing.assert_allclose(c.numpy(), expected, atol=2e-4)


def test_elastic_net_leaves_no_atom_at_gamma_one_and_fits_closer_above() -> None:
    points, atoms = unit(1, 20, 16), unit(1, 60, 16, seed=1)
    energies = [elastic_net(points, atoms, gamma=gamma).energy for gamma in (1.0, 3.0, 10.0, 50.0)]
    assert torch.allclose(energies[0], torch.ones_like(energies[0]))
    assert (torch.stack(energies).diff(dim=0) < 0).all()


# --- the claim -----------------------------------------------------------------------------------------------------


def test_a_dense_solution_is_blind_where_the_bank_spans_the_space() -> None:
    points, atoms = draw(1, 20, 16), unit(1, 40, 16, seed=1)
    least_squares = points - points @ torch.linalg.pinv(atoms) @ atoms
    assert least_squares.abs().max() < 1e-10
    assert (matching_pursuit(points, atoms, 4).energy / points.square().sum(2)).min() > 1e-3
