"""Diffusion models behind one small interface: latents, noise schedule, and a network that predicts noise.

A method that reconstructs images from noise needs four things of a model: `encode` images into latents z, `decode`
them, `predict_noise` at a noise level t, and the schedule `alphas_cumprod`. Two models have them: `LinearLatent`, whose
latents are principal components of image patches and whose network is small enough to be trained from scratch on a
processor, and `StableDiffusion`.

With ᾱ_t for `alphas_cumprod[t]`, a latent of noise level t is z_t = √ᾱ_t z + √(1 - ᾱ_t) ε.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uad_core.backbones import Frozen
from uad_core.errors import UserError

__all__ = ["Diffusion", "LinearLatent", "LowRank", "StableDiffusion", "add_low_rank", "clean", "ladder", "noised",
           "schedule"]  # fmt: skip

T = 1000  # noise levels
PROMPT = "a photo of sks"
SD_NAME = "CompVis/stable-diffusion-v1-4"
SD_UNET = dict(
    sample_size=64, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, attention_head_dim=8, cross_attention_dim=768,
)  # fmt: skip
"""Shape of Stable Diffusion's U-Net, by which it can be counted without its weights."""


def schedule(low: float = 0.00085, high: float = 0.012) -> Tensor:
    """Return ᾱ_t (T,) of Stable Diffusion's schedule: √β grows linearly, ᾱ is the product of 1 - β.

    Source: GLAD chapter, equation (glad-schedule) [fact: GLAD runs on Stable Diffusion].
    """
    beta = torch.linspace(math.sqrt(low), math.sqrt(high), T, dtype=torch.float64).square()
    return (1 - beta).cumprod(0).float()


def noised(z: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Bring latents z (N, C, h, w) to a noise level: equation (glad-forward). abar: ᾱ, a number or (N, 1, 1, 1)."""
    return abar.sqrt() * z + (1 - abar).sqrt() * noise


def clean(zt: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Estimate the latent without noise, f(z_t, ε): equation (glad-clean). Undoes `noised`."""
    return (zt - (1 - abar).sqrt() * noise) / abar.sqrt()


def ladder(t0: int, steps: int) -> list[int]:
    """Return the noise levels that DDIM visits below t0: r (steps - 1) + 1, ..., r + 1, 1 with r = ⌊t0/steps⌋.

    Source: GLAD chapter, equation (glad-ladder) [fact]. Raises UserError where there are more steps than levels.
    """
    r = t0 // steps
    if not r or t0 > T:
        raise UserError(f"no ladder of {steps} steps below noise level {t0}: choose steps <= t0 <= {T}")
    return [r * (steps - 1 - i) + 1 for i in range(steps)]


class Diffusion(nn.Module, ABC):
    """What a method needs of a diffusion model. alphas_cumprod: ᾱ_t (T,). network: the part that is trained."""

    network: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alphas_cumprod", schedule(), persistent=False)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (N, C, h, w) of images (N, 3, H, W) in [0, 1]; of about unit variance."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the images (N, 3, H, W) of latents; about in [0, 1], not clipped."""

    @abstractmethod
    def predict_noise(self, z: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        """Predict the noise in latents z (N, C, h, w) of levels t (N,)."""

    def guided_noise(self, z: Tensor, t: Tensor) -> Tensor:
        """Predict noise as sampling does; a model with a condition may push the prediction towards it."""
        return self.predict_noise(z, t)

    def fit_latents(self, batches: Iterable[Tensor]) -> None:
        """Fit encoder and decoder to normal images, where they are fitted at all."""


class LinearLatent(Diffusion):
    """Principal components of patches as latents, and a small U-Net.

    An image is cut into patches of `patch` x `patch` pixels; the latent of a patch is its `components` coordinates
    along the directions in which patches of normal images vary most. Component c is divided by its deviation to the
    power `whiten` (0: all components keep their size, 1: all have the same), and all by one number, so that the latent
    has unit variance; no number is let beyond those of normal patches. Decoding is the transpose.

    Were component c of z Gaussian with deviation σ_c, the best guess of it from y = z_t/√ᾱ = z + s ε, s² = (1 - ᾱ)/ᾱ,
    would be σ_c²/(σ_c² + s²) y, and its error would have deviation σ_c s/√(σ_c² + s²). The network gives how far that
    guess is to be believed, g in (0, 1), and its error in units of the deviation.
    Source: GLAD chapter, equations (glad-pca) and (glad-precondition) [reconstruction].
    """

    def __init__(self, patch: int, components: int, widths: tuple[int, ...], whiten: float = 0.5):
        super().__init__()
        self.patch, self.whiten = patch, whiten
        self.register_buffer("mean", torch.zeros(3 * patch**2))
        self.register_buffer("basis", torch.eye(3 * patch**2, components))
        self.register_buffer("scale", torch.ones(components))
        self.register_buffer("deviation", torch.ones(components))  # σ_c, in units of the scale
        self.register_buffer("low", torch.full((components,), -float("inf")))
        self.register_buffer("high", torch.full((components,), float("inf")))
        self.network = small_unet(components, 2 * components, widths)

    @torch.no_grad()
    def fit_latents(self, batches: Iterable[Tensor]) -> None:
        """Find the components of images [(B, 3, H, W)]: equation (glad-pca). Goes through them once."""
        rows = torch.cat([self.patches(images).movedim(1, -1).flatten(0, 2) for images in batches])  # (n, 3 patch²)
        mean, products = rows.double().mean(0), 0.0
        for part in rows.split(2**14):
            part = part.double() - mean
            products = products + part.T @ part
        values, vectors = torch.linalg.eigh(products / len(rows))  # ascending
        components = len(self.deviation)
        basis, variance = vectors[:, -components:].flip(1), values[-components:].flip(0)
        variance = variance.clamp_min(1e-6 * variance[0].clamp_min(1e-6))
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # eigenvectors come with any sign
        deviation = variance.sqrt() ** (1 - self.whiten)
        size = deviation.square().mean().sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.scale.copy_(variance.sqrt() ** self.whiten * size)
        self.deviation.copy_(deviation / size)
        z = (rows - self.mean) @ self.basis / self.scale
        self.low.copy_(z.amin(0))
        self.high.copy_(z.amax(0))

    def patches(self, images: Tensor) -> Tensor:
        """Cut images (N, 3, H, W) into patches (N, 3 patch², h, w)."""
        return F.pixel_unshuffle(images, self.patch)

    def encode(self, images: Tensor) -> Tensor:
        x = self.patches(images) - _wide(self.mean)
        z = torch.einsum("nkhw,kc->nchw", x, self.basis) / _wide(self.scale)
        return z.clamp(_wide(self.low), _wide(self.high))

    def decode(self, z: Tensor) -> Tensor:
        x = torch.einsum("nchw,kc->nkhw", z * _wide(self.scale), self.basis)
        return F.pixel_shuffle(x + _wide(self.mean), self.patch)

    def predict_noise(self, z: Tensor, t: Tensor, condition: None = None) -> Tensor:
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        s = ((1 - abar) / abar).sqrt()
        sigma = _wide(self.deviation)
        y, total = z / abar.sqrt(), (sigma.square() + s.square()).sqrt()
        error, doubt = self.network(y / total, t).sample.float().chunk(2, 1)
        guess = (sigma / total).square() * torch.sigmoid(6 - doubt) * y + sigma * s / total * error
        return (y - guess) / s


def _wide(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def small_unet(inputs: int, outputs: int, widths: tuple[int, ...]) -> nn.Module:
    """Build a U-Net of one block per level, `widths` its channels, with attention at the deepest one."""
    diffusers = _require("diffusers")
    down, up = ["DownBlock2D"] * len(widths), ["UpBlock2D"] * len(widths)
    down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
    groups = math.gcd(*widths, 8)
    net = diffusers.UNet2DModel(
        in_channels=inputs, out_channels=outputs, block_out_channels=widths, layers_per_block=1,
        down_block_types=down, up_block_types=up, norm_num_groups=groups, attention_head_dim=math.gcd(widths[-1], 32),
    )  # fmt: skip
    nn.init.zeros_(net.conv_out.weight)  # it starts as the best linear guess
    nn.init.zeros_(net.conv_out.bias)
    return net


class StableDiffusion(Diffusion):
    """Stable Diffusion v1: the frozen autoencoder, a frozen prompt, and the U-Net, which is trained.

    vae: an `AutoencoderKL`. network: a `UNet2DConditionModel`. prompts: embeddings (2, L, d) of the prompt and of the
    empty one. guidance: how far sampling pushes the prediction from the empty prompt's towards the prompt's. rank: of
    the corrections that attention layers learn in place of all weights (LoRA), which a GPU of 16 GB holds; 0 trains
    all weights.
    Source: authors' code of GLAD [fact]; the mean of the encoder's distribution in place of a drawn value, so that
    defects change latents only where they are, and LoRA, are reconstructions.
    """

    def __init__(self, vae: nn.Module, network: nn.Module, prompts: Tensor, guidance: float = 9.0, rank: int = 0):
        super().__init__()
        self.vae, self.network, self.guidance = _Held(vae), network, guidance
        self.register_buffer("prompts", prompts, persistent=False)
        network.enable_gradient_checkpointing()
        if rank:
            add_low_rank(network, rank)

    @classmethod
    def pretrained(cls, name: str = SD_NAME, **options: Any) -> StableDiffusion:
        """Load the published weights, which must have been fetched once. Raises UserError where they are not to be had.

        options: of the class.
        """
        diffusers = _require("diffusers", "transformers")
        import transformers

        def part(kind: Any, folder: str) -> Any:
            return kind.from_pretrained(name, subfolder=folder)

        try:
            tokenizer = part(transformers.CLIPTokenizer, "tokenizer")
            reader = part(transformers.CLIPTextModel, "text_encoder")
            vae, network = part(diffusers.AutoencoderKL, "vae"), part(diffusers.UNet2DConditionModel, "unet")
        except OSError as error:
            raise UserError(
                f"no weights of {name} ({type(error).__name__}): go online once, or use --set model=linear"
            ) from None
        tokens = tokenizer([PROMPT, ""], padding="max_length", return_tensors="pt")
        with torch.no_grad():
            prompts = reader(tokens.input_ids)[0]  # (2, 77, 768)
        return cls(vae, network, prompts, **options)

    def encode(self, images: Tensor) -> Tensor:
        vae = self.vae.module
        return vae.encode(2 * images - 1).latent_dist.mean * vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        vae = self.vae.module
        return (vae.decode(z / vae.config.scaling_factor).sample + 1) / 2

    def predict_noise(self, z: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """As `Diffusion.predict_noise`; condition: an embedding (L, d), None for the prompt's."""
        words = self.prompts[0] if condition is None else condition
        half = z.device.type == "cuda"
        with torch.autocast(z.device.type, dtype=torch.float16, enabled=half):
            found = self.network(z, t, encoder_hidden_states=words.expand(len(z), -1, -1)).sample
        return found.float()

    def guided_noise(self, z: Tensor, t: Tensor) -> Tensor:
        """Predict noise with and without the prompt, and go on from the one to the other: equation (glad-guidance)."""
        free = self.predict_noise(z, t, self.prompts[1])
        return free + self.guidance * (self.predict_noise(z, t) - free)


class _Held(Frozen):
    """A frozen module, such as the autoencoder: no saved model holds its weights."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.eval().requires_grad_(False)


class LowRank(nn.Module):
    """A frozen linear layer with a learned correction of low rank, W x + B A x; B starts as zero.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022 [norm of the field].
    """

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.a.T @ self.b.T


def add_low_rank(network: nn.Module, rank: int) -> None:
    """Freeze a network, and let the linear layers of its attention learn corrections of low rank."""
    network.requires_grad_(False)
    places = [name for name, m in network.named_modules() if isinstance(m, nn.Linear) and ".attn" in name]
    for name in places:
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, LowRank(network.get_submodule(name), rank))


def _require(*packages: str):
    """Import packages of the extra `glad`; return the first."""
    from importlib import import_module

    try:
        return [import_module(name) for name in packages][0]
    except ImportError as error:
        raise UserError(f"glad needs {error.name}: install it with `pip install 'uad-core[glad]'`") from None
