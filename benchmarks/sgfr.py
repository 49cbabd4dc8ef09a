"""SGFR's accuracy and cost against the size of its bank, per sampler, beside a nearest neighbour in the same bank.

``python benchmarks/sgfr.py --dataset mvtec_ad --category bottle --root DATA``. Features are computed once; "fit" is
what comes after them, "ms" an image's way from its features to its map. The nearest neighbour is SGFR with k = 1 on the
same bank (the cosine distance), and, in the last row, `knn` on all patches of the training images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import uad_core
from uad_core import datasets, metrics
from uad_core.features import Features, extract
from uad_core.methods.base import FeatureDetector

SHARES = (0.001, 0.0025, 0.01, 0.03, 0.1)
SAMPLERS = ("subspace", "coreset", "random")


def measure(model: FeatureDetector, train: Features, test: Features, data: datasets.ImageSet) -> dict[str, float]:
    """Fit and predict from features; seconds, milliseconds per image, bytes of the bank, and the metrics."""
    start = time.perf_counter()
    model.fit(train, progress=False)
    fitted = time.perf_counter()
    maps, scores = model.predict(test, progress=False)
    milliseconds = 1000 * (time.perf_counter() - fitted) / len(scores)
    found = metrics.evaluate(scores, data.labels, maps, data.masks() if data.has_masks else None)
    stored = sum(value.numel() * value.element_size() for value in model.own_tensors().values())
    return {"fit_s": fitted - start, "ms": milliseconds, "model_bytes": stored, **found}


def main() -> None:
    """Print one row per bank, or with ``--json`` the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="procedural")
    parser.add_argument("--category", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of all patches")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    first = uad_core.create("sgfr", seed=options.seed)
    data = datasets.load(
        options.dataset, options.category, root=options.root, image_size=first.image_size, seed=options.seed
    )
    train, test = (extract(first.backbone, part, device=first.device) for part in (data.train, data.test))
    patches = len(train) * train.levels[0][0, 0].numel()
    settings = [
        ("sgfr", dict(sampler=sampler, atoms=atoms, k=k, candidates=max(20_000, atoms)))
        for atoms in (max(1, round(share * patches)) for share in options.shares)
        for sampler in options.samplers
        for k in (2, 1)
    ]
    rows = []
    for name, chosen in [*settings, ("knn", dict(bank=patches))]:
        model = uad_core.create(name, seed=options.seed, **chosen)
        rows.append({"method": name, **chosen, **measure(model, train, test, data.test)})
        if not options.json:
            print("  ".join(f"{key} {_text(value)}" for key, value in rows[-1].items()))
    if options.json:
        print(json.dumps({"patches": patches, "rows": rows}, indent=2))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
