"""Orthogonal matching pursuit beside scikit-learn's, on drawn features: ``python benchmarks/pursuit.py``.

As many points as four images have patches, a bank, and the same combinations asked of both. The programs take turns in
one process, so that their ratio holds when the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import orthogonal_mp, orthogonal_mp_gram
from torch import Tensor

from uad_core.methods.self_expression import matching_pursuit


def draw(points: int, atoms: int, dimensions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit points (n, d) and unit atoms (m, d), all positive in part, as features after a rectifier are."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(points + atoms, dimensions, generator=generator).relu() + 0.05
    unit = torch.nn.functional.normalize(drawn, dim=1)
    return unit[:points], unit[points:]


def ours(y: Tensor, atoms: Tensor, k: int) -> np.ndarray:
    """The package's residuals (n, d)."""
    return matching_pursuit(y[None], atoms[None], k).residual[0].numpy()


def scikit_learn(y: Tensor, atoms: Tensor, k: int) -> np.ndarray:
    """scikit-learn's residuals (n, d)."""
    weights = orthogonal_mp(atoms.numpy().T, y.numpy().T, n_nonzero_coefs=k, precompute=False)  # (m, n)
    return y.numpy() - weights.T @ atoms.numpy()


def scikit_learn_gram(y: Tensor, atoms: Tensor, k: int) -> np.ndarray:
    """scikit-learn's residuals (n, d), from inner products computed once."""
    dictionary, targets = atoms.numpy().T, y.numpy().T
    weights = orthogonal_mp_gram(dictionary.T @ dictionary, dictionary.T @ targets, n_nonzero_coefs=k)  # (m, n)
    return y.numpy() - weights.T @ atoms.numpy()


PROGRAMS: dict[str, Callable[[Tensor, Tensor, int], np.ndarray]] = {
    "uad_core": ours, "scikit-learn": scikit_learn, "scikit-learn, Gram": scikit_learn_gram}  # fmt: skip


def main() -> None:
    """Print the table, or with ``--json`` the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--atoms", type=int, default=512)
    parser.add_argument("--dimensions", type=int, default=120)
    parser.add_argument("-k", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    y, atoms = draw(options.points, options.atoms, options.dimensions)
    wanted = ours(y, atoms, options.k)
    figures = {name: {"seconds": []} for name in PROGRAMS}
    for run in range(options.runs + 1):
        for name, program in PROGRAMS.items():
            start = time.perf_counter()
            residual = program(y, atoms, options.k)
            if run:  # the first only warms up
                figures[name]["seconds"].append(time.perf_counter() - start)
            figures[name]["largest_difference"] = float(np.abs(residual - wanted).max())
    for row in figures.values():
        row["seconds"] = statistics.median(row["seconds"])
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{options.points} points, {options.atoms} atoms of {options.dimensions} dimensions, k = {options.k}")
    for name, row in figures.items():
        ratio = row["seconds"] / figures["uad_core"]["seconds"]
        print(f"{name:20s} {row['seconds']:8.3f} s {ratio:7.1f}x  differs by {row['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
