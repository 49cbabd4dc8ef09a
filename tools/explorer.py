"""Make the data of the book's explorer: residual levels of every method on built-in images, as small script files.

For each method that has a chapter and each built-in category a detector is fitted as `uad run` does it (a finished run
is taken as it is), and looks at a few test images. What the page needs goes to `book/_static/live/levels`, as scripts:
a page that is opened from disk may load scripts and nothing else.

    CATEGORY.js          the images (WebP) and their masks at 64 x 64
    CATEGORY-METHOD.js   the residual levels, how the method fuses them, thresholds
    index.js             which files there are

A level is brought to 64 x 64 at most, by averaging, and its logarithm is kept in 8 bits between the smallest and the
largest value of the level in the file: value = low * (high / low) ** (byte / 255).

    python tools/explorer.py list                               which files are missing, or made by other code
    python tools/explorer.py make [METHOD ...] [--category C]   make those (or these)
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from uad_core import metrics, scoring
from uad_core.datasets import procedural
from uad_core.datasets.base import ImageSet
from uad_core.experiment import Experiment
from uad_core.experiment import run as run_experiment
from uad_core.files import replacing
from uad_core.methods import METHODS, load
from uad_core.methods.base import Detector
from uad_core.sources import code_version

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "book" / "_static" / "live" / "levels"
RUNS = ROOT / "build" / "explorer"

__all__ = ["Formula", "dequantise", "formula_of", "fused", "main", "packed", "quantise", "read", "unpacked"]

SIDE = 64  # pixels of the page's maps
TESTED, TRAINED, NORMAL = 24, 60, 24  # test images shown; images learned from; further normal ones, for thresholds
PROFILE, SEED = "cpu", 0
QUALITY = 80  # of WebP pictures
SCRIPT = "uadData({name}, {content});\n"

Formula = dict[str, Any]
"""How levels become a map: how, size, sigma, weights, align; see `fused`."""


# --- how a method fuses --------------------------------------------------------------------------------------------


def formula_of(detector: Detector, residuals: dict[str, Tensor]) -> Formula | None:
    """Watch a detector fuse residuals {name: (N, h, w)}, and return its formula; None where it is of no known form.

    What a method does is what it asks `scoring` for: one call of `fuse`, or the mean of maps that it enlarges itself.
    A formula counts as known if it gives the detector's own map.
    """
    with watched("fuse") as fuses, watched("upsample") as enlargements:
        wanted = detector.fuse(residuals)
    if fuses:
        formula = _of_call(*fuses[0], levels=len(residuals))
    elif enlargements:
        args, options = enlargements[0]
        formula = dict(how="mean", size=list(args[1]), sigma=0.0, align=bool(options.get("align_corners")))
        formula["weights"] = [1.0] * len(residuals)
    else:
        return None
    found = fused(list(residuals.values()), formula, tuple(wanted.shape[-2:]))
    return formula if torch.allclose(found, wanted, rtol=1e-4, atol=1e-6) else None


@contextmanager
def watched(name: str) -> Iterator[list[tuple[tuple, dict[str, Any]]]]:
    """Collect the arguments with which a function of `scoring` is called."""
    calls: list[tuple[tuple, dict[str, Any]]] = []
    function: Callable = getattr(scoring, name)

    def watch(*args, **options):
        calls.append((args, options))
        return function(*args, **options)

    with mock.patch.object(scoring, name, watch):
        yield calls


def _of_call(args: tuple, options: dict[str, Any], levels: int) -> Formula:
    """The formula of one call of `scoring.fuse`, with its defaults."""
    named = dict(zip(("residuals", "size", "sigma", "how", "weights"), args)) | options
    return dict(
        how=named.get("how", "sum"), size=list(named["size"]), sigma=float(named.get("sigma", 4.0)), align=False,
        weights=[float(w) for w in named.get("weights") or [1.0] * levels],
    )  # fmt: skip


def fused(levels: Sequence[Tensor], formula: Formula, size: tuple[int, int], chosen: Sequence[int] = ()) -> Tensor:
    """Fuse levels (N, h_k, w_k), or those that are chosen, by a formula, and enlarge to maps (N, H, W)."""
    rows = list(chosen) or range(len(levels))
    levels, grid = [levels[k] for k in rows], tuple(formula["size"])
    if formula["how"] == "mean":
        maps = torch.stack([scoring.upsample(level, grid, formula["align"]) for level in levels]).mean(0)
        maps = scoring.gaussian_blur(maps, formula["sigma"])
    else:
        weights = [formula["weights"][k] for k in rows]
        maps = scoring.fuse(levels, grid, formula["sigma"], formula["how"], weights)
    return maps if grid == tuple(size) else scoring.upsample(maps, size)


def shrunk(formula: Formula) -> Formula:
    """The same formula for maps of `SIDE` pixels: sizes and smoothing shrink with the map."""
    scale = min(1.0, SIDE / max(formula["size"]))
    return formula | {"size": [round(scale * n) for n in formula["size"]], "sigma": scale * formula["sigma"]}


def scoring_of(detector: Detector, maps: Tensor) -> dict[str, Any]:
    """Watch a detector score maps (N, H, W): how, and the smoothing before it in pixels of the page's maps."""
    with watched("image_score") as scores, watched("gaussian_blur") as blurs:
        detector.score_maps(maps)
    args, options = scores[0]
    how = dict(zip(("maps", "how"), args)) | options
    sigma = float(blurs[0][0][1]) if blurs else 0.0
    return {"how": how.get("how", "max"), "sigma": sigma * SIDE / max(maps.shape[-2:])}


def scored(maps: Tensor, score: dict[str, Any]) -> Tensor:
    """Score maps (N, H, W) as the page does: (N,)."""
    return scoring.image_score(scoring.gaussian_blur(maps, score["sigma"]), score["how"])


# --- 8 bits --------------------------------------------------------------------------------------------------------


def reduced(level: Tensor) -> Tensor:
    """Average a level (N, h, w) to `SIDE` pixels at most."""
    size = [min(SIDE, n) for n in level.shape[-2:]]
    return level if size == list(level.shape[-2:]) else F.adaptive_avg_pool2d(level[:, None], size)[:, 0]


def bounds(level: Tensor) -> tuple[float, float]:
    """The range of a level (N, h, w): no value below `scoring.FAINTEST`, where logarithms end."""
    low = max(level.min().item(), scoring.FAINTEST)
    return low, max(level.max().item(), 1.001 * low)


def quantise(level: Tensor, low: float, high: float) -> np.ndarray:
    """Keep the logarithm of a level in 8 bits: (N, h, w) uint8."""
    share = (level.clamp(low, high) / low).log() / math.log(high / low)
    return (255 * share).round().to(torch.uint8).cpu().numpy()


def dequantise(bytes_: np.ndarray, low: float, high: float) -> Tensor:
    """Return what bytes (N, h, w) stand for, float64."""
    return torch.from_numpy(low * np.exp(bytes_.astype(np.float64) / 255 * math.log(high / low)))


def packed(bytes_: np.ndarray) -> str:
    """Pack bytes: differences along the last axis, which are small, then zlib, then base64."""
    differences = np.diff(bytes_, axis=-1, prepend=np.uint8(0))
    return base64.b64encode(zlib.compress(differences.tobytes(), 9)).decode()


def unpacked(text: str, shape: Sequence[int]) -> np.ndarray:
    """Undo `packed`: uint8 of a shape."""
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)
    return np.cumsum(differences, axis=-1, dtype=np.uint8)


# --- files ---------------------------------------------------------------------------------------------------------


def write(name: str, content: Any, folder: Path) -> Path:
    """Write a script that hands its content to the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.js") as part:
        part.write_text(SCRIPT.format(name=json.dumps(name), content=json.dumps(content)), "utf-8")
    return folder / f"{name}.js"


def read(name: str, folder: Path = DATA) -> Any:
    """Read what `write` wrote."""
    text = (folder / f"{name}.js").read_text("utf-8")
    before, after = SCRIPT.format(name=json.dumps(name), content="\0").split("\0")
    return json.loads(text.removeprefix(before).removesuffix(after))


def index(folder: Path) -> dict[str, Any]:
    """Say which files are in a folder: categories, and for each method those that it has."""
    names = {path.stem for path in folder.glob("*.js")}
    order = [name for name in procedural.CATEGORIES if name in names]
    has = {method: [c for c in order if f"{c}-{method}" in names] for method in book_methods()}
    return {
        "categories": order,
        "methods": [
            {"name": name, "title": METHODS[name].paper.title, "chapter": METHODS[name].paper.chapter, "categories": of}
            for name, of in has.items() if of
        ],
    }  # fmt: skip


def book_methods() -> list[str]:
    """The methods that have a chapter."""
    return [name for name, kind in METHODS.items() if kind.paper]


def shown(category: str) -> ImageSet:
    """The test images that the page shows."""
    return procedural.load(category, n_test=TESTED, seed=SEED).test


def category_file(category: str) -> dict[str, Any]:
    """The images of a category, their masks and what they are called."""
    images = shown(category)
    masks = images.masks((SIDE, SIDE))  # (N, SIDE, SIDE)
    return {
        "side": SIDE,
        "defects": images.defects,
        "labels": [int(label) for label in images.labels],
        "masks": base64.b64encode(np.packbits(masks)).decode(),
        "images": [_picture(pixels) for pixels in images.pixels()],
    }


def _picture(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "WEBP", quality=QUALITY, method=6)
    return base64.b64encode(buffer.getvalue()).decode()


def method_file(detector: Detector, category: str) -> dict[str, Any]:
    """The levels of a method on the images of a category, its formula, and its threshold for each choice of levels."""
    part = procedural.load(category, image_size=detector.image_size, n_train=TRAINED + NORMAL, n_test=TESTED, seed=SEED)
    tested, maps = levels_of(detector, part.test)
    normal, normal_maps = levels_of(detector, part.train.subset(np.arange(TRAINED, TRAINED + NORMAL)))
    formula = formula_of(detector, {name: level[:1] for name, level in tested.items()})
    if formula is None:  # the page shows the map alone
        tested, normal = {"map": maps}, {"map": normal_maps}
        formula = dict(how="sum", size=list(detector.map_size), sigma=0.0, align=False, weights=[1.0])
    formula, score = shrunk(formula), scoring_of(detector, maps[:1])
    small = {name: reduced(level) for name, level in tested.items()}
    ranges = [bounds(level) for level in small.values()]
    coarse = [reduced(level) for level in normal.values()]
    kept = [dequantise(quantise(level, *limits), *limits) for level, limits in zip(coarse, ranges)]
    return {
        "method": detector.name,
        "made_by": code_version(type(detector).__module__),
        "profile": PROFILE,
        "formula": formula,
        "score": score,
        "false_alarms": detector.config.false_alarms,
        "thresholds": thresholds(kept, formula, score, detector.config.false_alarms),
        "full": full_metrics(detector, part.test, maps),
        "levels": [
            {"name": name, "size": list(level.shape[-2:]), "low": low, "high": high,
             "bytes": packed(quantise(level, low, high))}
            for (name, level), (low, high) in zip(small.items(), ranges)
        ],
    }  # fmt: skip


def levels_of(detector: Detector, images: ImageSet) -> tuple[dict[str, Tensor], Tensor]:
    """Return the residual maps {name: (N, h, w)} and the anomaly maps (N, H, W) of a set."""
    parts, maps = [], []
    with torch.no_grad():
        for description in detector.described(images, keep_it=False).in_order(detector.device, False):
            parts.append(detector.map_residuals(description))
            maps.append(detector.fuse(parts[-1]))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, torch.cat(maps)


def thresholds(levels: list[Tensor], formula: Formula, score: dict[str, Any], rate: float) -> dict[str, float]:
    """Place a threshold by normal images for every choice of levels; keys such as "0,2"."""
    places = {}
    for count in range(1, len(levels) + 1):
        for chosen in combinations(range(len(levels)), count):
            scores = scored(fused(levels, formula, (SIDE, SIDE), chosen).float(), score)
            places[",".join(map(str, chosen))] = scoring.normal_threshold(scores, rate).item()
    return places


def full_metrics(detector: Detector, images: ImageSet, maps: Tensor) -> dict[str, float | None]:
    """What the package measures on the same images, unquantised and at the full size of its maps."""
    scores = detector.score_maps(maps)
    return metrics.evaluate(scores, images.labels, maps, images.masks(detector.map_size))


# --- the command ---------------------------------------------------------------------------------------------------


def fitted(method: str, category: str, runs: Path) -> Detector:
    """Return the method's detector of a category, fitted now unless a finished run is there; joint methods have one."""
    chosen = "all" if METHODS[method].joint else category
    out = runs / method / chosen
    run_experiment(Experiment(method, "procedural", chosen, profile=PROFILE, seed=SEED, device="cpu"), out)
    return load(out / "model", "cpu")


def waiting(folder: Path = DATA) -> list[str]:
    """The files that are missing or were made by other code."""
    found = []
    for category in procedural.CATEGORIES:
        if not (folder / f"{category}.js").is_file():
            found.append(category)
        for method in book_methods():
            name = f"{category}-{method}"
            present = code_version(METHODS[method].__module__)
            if not (folder / f"{name}.js").is_file() or read(name, folder)["made_by"] != present:
                found.append(name)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("list", "make"))
    parser.add_argument("methods", nargs="*", help="make the files of these methods; else those that `list` names")
    parser.add_argument("--category", action="append", help="of these categories alone")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where fitted detectors are kept")
    parser.add_argument("--out", type=Path, default=DATA, help="where the scripts go")
    options = parser.parse_args(arguments)
    if options.command == "list":
        names = waiting(options.out)
        print(*names, sep="\n")
        return 1 if names else 0
    if unknown := set(options.methods) - set(book_methods()):
        parser.error(f"no such method: {', '.join(sorted(unknown))}; choose among {', '.join(book_methods())}")
    names = waiting(options.out)
    for category in options.category or procedural.CATEGORIES:
        if category in names or not (options.out / f"{category}.js").is_file():
            write(category, category_file(category), options.out)
        for method in options.methods or [m for m in book_methods() if f"{category}-{m}" in names]:
            content = method_file(fitted(method, category, options.runs), category)
            path = write(f"{category}-{method}", content, options.out)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
        write("index", index(options.out), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
