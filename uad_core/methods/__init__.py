"""The methods of the book, by name: create one, save it, load it again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
import typing
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from uad_core.backbones import load_backbone
from uad_core.errors import UserError
from uad_core.methods.base import Config, Detector, FeatureDetector
from uad_core.training import pick_device

__all__ = ["METHODS", "PROFILES", "create", "load", "method_class", "save"]

METHODS = {
    "hfr": "uad_core.methods.hfr:HFR",
    "sgfr": "uad_core.methods.sgfr:SGFR",
    "rlr": "uad_core.methods.rlr:RLR",
    "pixel_ae": "uad_core.methods.baselines:PixelAutoencoder",
    "knn": "uad_core.methods.baselines:NearestNeighbour",
}
PROFILES = {
    "smoke": "seconds; for checks only, its figures mean nothing",
    "cpu": "minutes per category on two processor cores",
    "colab": "at most twenty minutes per category on a free GPU with 16 GB",
    "paper": "the paper's protocol, on a large GPU",
}
DEFAULT_BACKBONE = "tf_efficientnet_lite2"


def method_class(name: str) -> type[Detector]:
    """Return a method's class; raise UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"no method {name!r}: choose among {', '.join(METHODS)}")
    module, attribute = METHODS[name].split(":")
    return getattr(import_module(module), attribute)


def create(
    name: str,
    /,
    *,
    profile: str = "cpu",
    backbone: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    protocol: str = "inspection",
    **settings: Any,
) -> Detector:
    """Build an unfitted detector.

    name: see `METHODS`. profile: see `PROFILES`. backbone: see `uad_core.backbones.BACKBONES`; None takes the
    profile's. image_size: pixels, or (H, W); None takes the protocol's. protocol: "inspection" (defects in images) or
    "one_class" (small images, one class is normal). settings: fields of the method's configuration.

    Raises UserError for an unknown name, profile or setting, or a value of the wrong kind.
    """
    kind = method_class(name)
    if profile not in kind.profiles:
        raise UserError(f"{name} has no profile {profile!r}: choose among {', '.join(kind.profiles)}")
    chosen = dict(image_size=256, backbone=DEFAULT_BACKBONE) | kind.profiles[profile]
    if protocol == "one_class":
        chosen |= kind.one_class
    chosen |= settings
    chosen["backbone"] = backbone or chosen["backbone"]
    chosen["image_size"] = image_size or chosen["image_size"]
    return _build(kind, chosen, seed, pick_device(device))


def _build(
    kind: type[Detector], chosen: dict[str, Any], seed: int, device: torch.device, weights: str = "auto"
) -> Detector:
    size = chosen.pop("image_size")
    size = (size, size) if isinstance(size, int) else tuple(size)
    if min(size) < 32:
        raise UserError(
            f"image size {size} is too small: features need at least 32 pixels; use --image-size 64 or more"
        )
    backbone = chosen.pop("backbone")
    config = configure(kind.config_class, chosen)
    # On a forked generator: building a detector draws no number of the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[Any] = [config]
        if issubclass(kind, FeatureDetector):
            parts.append(load_backbone(backbone, config.strides, weights))
        torch.manual_seed(seed)
        return kind(*parts, image_size=size, seed=seed).to(device).eval()


def configure(config_class: type[Config], settings: dict[str, Any]) -> Config:
    """Build a configuration from settings whose values may be text, as the command line gives them."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    types = typing.get_type_hints(config_class)
    for key in settings:
        if key not in fields:
            near = get_close_matches(key, fields, 1) or ["one of " + ", ".join(sorted(fields))]
            raise UserError(f"no setting {key!r} in {config_class.__name__}: did you mean {near[0]}?")
    values = {key: _convert(key, value, types[key]) for key, value in settings.items()}
    for key, choices in config_class.CHOICES.items():
        if values.get(key, choices[0]) not in choices:
            raise UserError(f"{key} cannot be {values[key]!r}: choose among {', '.join(map(str, choices))}")
    for key, value in values.items():
        _require_range(config_class, key, value)
    return config_class(**values)


def _convert(key: str, value: Any, wanted: Any) -> Any:
    """Turn a setting's text or JSON value into the type that its field declares."""
    try:
        if typing.get_origin(wanted) is tuple:
            parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
            kinds = typing.get_args(wanted)
            kinds = kinds[:1] * len(parts) if kinds[-1] is Ellipsis else kinds
            return tuple(kind(part) for kind, part in zip(kinds, parts, strict=True))
        if wanted is bool and isinstance(value, str):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return wanted(value)
    except (ValueError, KeyError, TypeError):
        kind = getattr(wanted, "__name__", str(wanted))
        raise UserError(
            f"setting {key}={value!r} is not of type {kind}: write for instance {key}={_example(wanted)}"
        ) from None


def _require_range(config_class: type[Config], key: str, value: Any) -> None:
    """Refuse numbers outside the range of their field, infinite ones and empty tuples."""
    low, high = config_class.RANGES.get(key, (0, math.inf))
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers:
        raise UserError(f"{key} cannot be empty: give at least one value, several with commas between them")
    if any(not low <= n <= high or n == math.inf for n in numbers if not isinstance(n, str)):
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"from {low:g} up"
        raise UserError(
            f"{key} cannot be {value!r}: give {'numbers' if isinstance(value, tuple) else 'a number'} {limits}"
        )


def _example(wanted: Any) -> str:
    return {bool: "true", int: "8", float: "0.5"}.get(wanted, "128,64")


def save(detector: Detector, folder: Path | str) -> Path:
    """Write a fitted detector as safetensors and JSON, without the backbone's weights.

    The folder appears whole or not at all. Raises UserError where it holds something else than a model.
    """
    from safetensors.torch import save as serialise

    folder = Path(folder)
    if folder.exists() and not (folder / "model.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something else than a model: choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".model-"))
    try:
        (work / "model.safetensors").write_bytes(serialise(detector.own_tensors()))
        (work / "model.json").write_text(json.dumps(describe(detector), indent=2) + "\n")
        os.chmod(work, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def describe(detector: Detector) -> dict[str, Any]:
    """Return what is needed, beside the tensors, to build the detector again."""
    backbone = getattr(detector, "backbone", None)
    return {
        "method": detector.name,
        "config": dataclasses.asdict(detector.config),
        "image_size": list(detector.image_size),
        "seed": detector.seed,
        "backbone": backbone.name if backbone else None,
        "weights_sha256": backbone.weights_sha256 if backbone else None,
        "history": detector.history,
    }


def load(folder: Path | str, device: str | torch.device = "auto") -> Detector:
    """Read a detector that `save` wrote.

    Raises UserError when it is missing or damaged, or when its backbone's weights are others now.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    missing = [name for name in ("model.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"no saved model in {folder} ({missing[0]} is missing): `uad run ... --out DIR` writes DIR/model"
        )
    try:
        about = json.loads((folder / "model.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        chosen = dict(about["config"], image_size=about["image_size"], backbone=about["backbone"])
        detector = _build(method_class(about["method"]), chosen, about["seed"], torch.device("cpu"))
        detector.restore(tensors)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the model in {folder} is damaged ({type(error).__name__}): fit it again with `uad run`"
        ) from None
    backbone = getattr(detector, "backbone", None)
    if backbone is not None and backbone.weights_sha256 != about["weights_sha256"]:
        raise UserError(
            f"the model in {folder} was fitted with other weights of {backbone.name}: fit it again with `uad run`"
        )
    detector.history = about["history"]
    return detector.to(pick_device(device)).eval()
