"""Keep a fitted detector as safetensors and JSON, and read it again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from uad_core.errors import UserError
from uad_core.files import new_folder
from uad_core.methods.base import Detector
from uad_core.methods.build import build
from uad_core.methods.registry import method_class
from uad_core.training import pick_device

__all__ = ["describe", "load", "save"]


def save(detector: Detector, folder: Path | str) -> Path:
    """Write a fitted detector as safetensors and JSON, without the weights of its frozen modules.

    The folder appears whole or not at all. Raises UserError where it holds something else than a model.
    """
    from safetensors.torch import save as serialise

    folder = Path(folder)
    if folder.exists() and not (folder / "model.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something else than a model: choose a new folder")
    with new_folder(folder) as work:
        (work / "model.safetensors").write_bytes(serialise(detector.own_tensors()))
        (work / "model.json").write_text(json.dumps(describe(detector), indent=2) + "\n")
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
        detector = build(method_class(about["method"]), chosen, about["seed"], torch.device("cpu"))
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
