"""Tiny data, networks and runs that several tests share; everything here takes milliseconds to a second."""

from __future__ import annotations

import hashlib
import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from uad_core import methods
from uad_core.backbones import Backbone, load_backbone
from uad_core.cli import main
from uad_core.datasets import ArraySource, ImageSet
from uad_core.methods import build

# So small that more threads only wait for each other; and sums come in the same order everywhere.
torch.set_num_threads(1)

SIZE = 64
LITE0 = "tf_efficientnet_lite0"


# --- images --------------------------------------------------------------------------------------------------------


def weave(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Normal images, uint8 (N, H, W, 3): two crossed waves whose phase and brightness vary a little."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    shift, light = random.uniform(-0.3, 0.3, (2, count, 1, 1)), random.normal(0, 4, (count, 1, 1))
    waves = np.sin(2 * np.pi * x / 16 + shift[0]) + np.sin(2 * np.pi * y / 16 + shift[1])
    grey = 128 + 40 * waves + light + random.normal(0, 2, (count, size, size))
    return np.clip(grey[..., None] * [1.0, 0.9, 0.7], 0, 255).astype(np.uint8)


def damage(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The images with a coloured patch each, and the masks, bool (N, H, W)."""
    random = np.random.default_rng(seed)
    images, masks = images.copy(), np.zeros(images.shape[:3], bool)
    for image, mask in zip(images, masks, strict=True):
        top, left = random.integers(8, images.shape[1] - 28, 2)
        mask[top : top + 20, left : left + 20] = True
        image[mask] = [200, 40, 40]
    return images, masks


def tensor(images: np.ndarray) -> Tensor:
    """Images as float32 (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous()


def image_set(images: np.ndarray, masks: np.ndarray | None = None, **changes) -> ImageSet:
    """A set of arrays; images with masks are anomalous."""
    labels = np.zeros(len(images), bool) if masks is None else masks.any((1, 2))
    facts = {
        "dataset": "tiny", "category": "weave", "split": "train", "image_size": images.shape[1:3], "labels": labels,
        "paths": [f"{i:03d}.png" for i in range(len(images))],
        "defects": ["patch" if bad else "good" for bad in labels],
        "source": ArraySource(images, None if masks is None else list(masks)), "has_masks": masks is not None,
    }  # fmt: skip
    return ImageSet(**{**facts, **changes})


def write(folder: Path, images: np.ndarray, suffix: str = ".png") -> list[Path]:
    """Write images as files 000.png, 001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}{suffix}" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def write_category(folder: Path, seed: int = 0, train: int = 6, masks: bool = True) -> Path:
    """A category in MVTec layout: 6 normal images, 3 normal and 3 defective ones to judge."""
    write(folder / "train/good", weave(train, seed))
    write(folder / "test/good", weave(3, seed + 100))
    bad, marked = damage(weave(3, seed + 200), seed)
    write(folder / "test/patch", bad)
    if masks:
        write(folder / "ground_truth/patch", marked.astype(np.uint8) * 255, "_mask.png")
    return folder


def write_classes(folder: Path) -> Path:
    """A tree train/CLASS, test/CLASS of two classes."""
    for k, kind in enumerate(("fine", "dark")):
        shade = 2 * k + 1
        write(folder / "train" / kind, weave(5, 10 + k) // shade)
        write(folder / "test" / kind, weave(3, 20 + k) // shade)
    return folder


# --- networks ------------------------------------------------------------------------------------------------------


@lru_cache
def network(name: str = "test_resnet", strides: tuple[int, ...] = (4, 8, 16)) -> Backbone:
    """A frozen network with random weights, always the same; not to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_backbone(name, strides, weights="random")


def shared_networks():
    """Within this context `create` and `load` share networks: a frozen one can serve many detectors."""
    return mock.patch.object(build, "load_backbone", _loaded)


_loaded = lru_cache(load_backbone)


def detector(method: str, backbone: Backbone | None = None, size: int = SIZE, seed: int = 0, **settings):
    """A method on a network of the test's own, which `uad_core.create` would not take."""
    kind = methods.method_class(method)
    parts = [methods.configure(kind.config_class, settings)] + [backbone] * (backbone is not None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*parts, image_size=(size, size), seed=seed).eval()


@lru_cache
def fitted() -> methods.Detector:
    """HFR on ImageNet features, fitted for ten epochs on 32 normal images; not to be changed."""
    with shared_networks():
        model = methods.create("hfr", backbone=LITE0, image_size=SIZE, device="cpu", epochs=10, widths="64,48,32,16")
    return model.fit(tensor(weave(32)), progress=False)


def digest(module: nn.Module) -> str:
    """SHA-256 of every weight and buffer, those that are not saved among them."""
    found = hashlib.sha256()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


# --- the command line ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str


def uad(*arguments: object) -> Ran:
    """Run `uad ARGUMENTS` in this process: a new one would first load torch for seconds."""
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["uad", *map(str, arguments)])
    with argv, redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(), shared_networks():
        try:
            main()
        except SystemExit as end:
            return Ran(int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("the command did not say how it ended")


def refused(*arguments: object) -> str:
    """Run a command that must fail as wrong use does, and return its one line."""
    ran = uad(*arguments)
    assert ran.status == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ") and ran.err.endswith("\n") and len(ran.err.splitlines()) == 1, ran.err
    return ran.err.strip()


def inside(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
