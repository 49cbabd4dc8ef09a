"""Build a detector: a method's class, the settings of its profile, its backbone, on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from uad_core import datasets
from uad_core.backbones import load_backbone
from uad_core.errors import UserError
from uad_core.methods.base import Detector, FeatureDetector
from uad_core.methods.registry import method_class
from uad_core.methods.settings import configure
from uad_core.randomness import seeded
from uad_core.training import pick_device

__all__ = ["PROFILES", "build", "chosen_settings", "create"]

PROFILES = {
    "smoke": "seconds; for checks only, its figures mean nothing",
    "cpu": "minutes per category on two processor cores",
    "colab": "at most twenty minutes per category on a free GPU with 16 GB",
    "paper": "the paper's protocol, on a large GPU",
}
DEFAULTS: dict[str, Any] = dict(image_size=256, backbone="tf_efficientnet_lite2")


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
    root: Path | None = None,
    **settings: Any,
) -> Detector:
    """Build an unfitted detector.

    name: see `METHODS`. profile: see `PROFILES`. backbone: see `uad_core.backbones.BACKBONES`; None takes the
    profile's. image_size: pixels, or (H, W); None takes the protocol's. protocol: "inspection" (defects in images) or
    "one_class" (small images, one class is normal). root: the folder of all data, for methods that take something from
    other data sets. settings: fields of the method's configuration.

    Raises UserError for an unknown name, profile or setting, or a value of the wrong kind.
    """
    chosen = chosen_settings(name, profile, protocol) | settings
    if "epochs" in settings and hasattr(method_class(name).config_class, "steps"):
        chosen["steps"] = settings.get("steps", 0)  # who asks for so many passes does not want more of them
    chosen["backbone"] = backbone or chosen["backbone"]
    chosen["image_size"] = image_size or chosen["image_size"]
    detector = build(method_class(name), chosen, seed, pick_device(device))
    detector.others = {other: datasets.textures(root, detector.image_size) for other in detector.takes
                       if datasets.is_present(other, root)}  # fmt: skip
    return detector


def chosen_settings(name: str, profile: str, protocol: str) -> dict[str, Any]:
    """Return what a profile, and over it a protocol, set for a method. Raises UserError for an unknown profile."""
    kind = method_class(name)
    if profile not in kind.profiles:
        raise UserError(f"{name} has no profile {profile!r}: choose among {', '.join(kind.profiles)}")
    return DEFAULTS | kind.profiles[profile] | (kind.one_class if protocol == "one_class" else {})


def build(
    kind: type[Detector], chosen: dict[str, Any], seed: int, device: torch.device, weights: str = "auto"
) -> Detector:
    """Build a detector from all its settings, `image_size` and `backbone` among them; weights: see `load_backbone`."""
    size = chosen.pop("image_size")
    size = (size, size) if isinstance(size, int) else tuple(size)
    if min(size) < 32:
        raise UserError(
            f"image size {size} is too small: features need at least 32 pixels; use --image-size 64 or more"
        )
    backbone = chosen.pop("backbone")
    config = configure(kind.config_class, chosen)
    parts: list[Any] = [config]
    # Each with the seed anew, so that the detector does not depend on what its backbone drew.
    with seeded(seed):
        if issubclass(kind, FeatureDetector):
            parts.append(load_backbone(backbone, config.strides, weights))
    with seeded(seed):
        return kind(*parts, image_size=size, seed=seed).to(device).eval()
