"""The one training loop of the book: device, mixed precision, progress, checkpoint and resume.

A method hands over a module, something to take batches from, and a function from a batch to a loss.
Randomness is a function of (seed, epoch) alone. A run that was killed therefore continues from its last
checkpoint exactly as if nothing had happened: on a CPU, to the bit.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from uad_core.errors import UserError
from uad_core.files import replacing
from uad_core.randomness import epoch_seed, reseed, seeded

__all__ = ["Batches", "Schedule", "pick_device", "train"]

CHECKPOINT_SECONDS = 15.0
HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Batches(Protocol):
    """What a training set must offer: a length, and batches by index on a device."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor, device: torch.device) -> Any:
        """Return what is learned from the images of `index`, on `device`."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a method learns.

    epochs: passes over the data. steps: updates of the weights at the least, so that a small set is not learned from
    less than a large one; more passes are made for it. batch_size: images of a batch; accumulate: batches of an
    update. lr: peak learning rate of Adam; betas, weight_decay: its other constants, the decay decoupled (AdamW).
    decay: "constant", or "onecycle" (a short warm-up, then a cosine to zero). clip: largest gradient norm, 0 for
    none. ema: what an update keeps of the running average of the weights, which are the result then; 0 for none.
    precision: "auto" (half precision on CUDA, single elsewhere), "32-true", "16-mixed" or "bf16-mixed".
    """

    epochs: int
    batch_size: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay: str = "constant"
    clip: float = 0.0
    steps: int = 0
    accumulate: int = 1
    ema: float = 0.0
    precision: str = "auto"

    def per_epoch(self, images: int) -> int:
        """How many updates one pass over so many images makes."""
        return -(-len(split(torch.arange(images), self.batch_size)) // self.accumulate)

    def updates(self, images: int) -> int:
        """How many updates the whole training makes."""
        return max(self.steps, self.epochs * self.per_epoch(images))


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Choose CUDA, else MPS, else the CPU for "auto"; take any other name at its word.

    Raises UserError for a device that this machine or this build of torch lacks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {str(device)!r} here ({reason}): use --device auto or --device cpu") from None
    return chosen


def train(
    model: nn.Module,
    data: Batches,
    loss: Callable[[Any], Tensor],
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    key: str = "",
    progress: bool = True,
) -> list[float]:
    """Minimise `loss` over `data` with Adam and return the mean loss of each epoch.

    loss: maps one batch of `data` to a scalar, using `model`. checkpoint: a file that is written every few seconds and
    taken up again when it stands for the same `key` (whatever determines the run). The last epoch counts.

    A last batch of one image joins the batch before it: batch normalisation cannot learn from a single value.

    Raises UserError when the loss is no longer finite.
    """
    updates = schedule.updates(len(data))
    epochs = math.ceil(updates / schedule.per_epoch(len(data)))
    learner = Learner(model, schedule, device, updates)
    history = _resume(learner, checkpoint, key, device)
    saved = time.monotonic()
    with seeded(seed):
        bar = tqdm(range(len(history), epochs), desc="training", disable=not progress, leave=False)
        for epoch in bar:
            left = updates - epoch * schedule.per_epoch(len(data))
            history.append(_epoch(learner, data, loss, epoch_seed(seed, epoch), left))
            bar.set_postfix(loss=f"{history[-1]:.4f}")
            if checkpoint and (time.monotonic() - saved > CHECKPOINT_SECONDS or epoch + 1 == epochs):
                _save(learner, history, checkpoint, key)
                saved = time.monotonic()
    learner.finish()
    return history


def split(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an order of images (N,) into batches, the last of them no single image if that can be helped."""
    batches = list(order.split(batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class Learner:
    """A model and everything beside it that an update changes: what a checkpoint holds."""

    def __init__(self, model: nn.Module, schedule: Schedule, device: torch.device, updates: int):
        self.model, self.schedule, self.device = model, schedule, device
        self.weights = [p for p in model.parameters() if p.requires_grad]
        options = dict(lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay)
        self.optimiser = torch.optim.AdamW(self.weights, fused=device.type != "mps", **options)
        self.decay = _decay(self.optimiser, schedule, updates)
        precision = schedule.precision
        if precision == "auto":
            precision = "16-mixed" if device.type == "cuda" else "32-true"
        self.half = HALF.get(precision)
        # Gradients of half precision underflow unless the loss is scaled up; bfloat16 has the range of single.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema)) if schedule.ema else None

    def learn(self, batches: list[tuple[Any, float]], loss: Callable[[Any], Tensor]) -> Tensor:
        """Update the weights once from batches and their shares of the loss; return the loss, on the device."""
        self.optimiser.zero_grad()
        total = torch.zeros((), device=self.device)
        for batch, share in batches:
            with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
                value = loss(batch)
            self.scaler.scale(value * share).backward()
            total += value.detach() * share
        if self.schedule.clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.weights, self.schedule.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.decay.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total

    def finish(self) -> None:
        """Leave the model as it is to be used: averaged, if the schedule says so, and in evaluation mode."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()

    def parts(self) -> dict[str, Any]:
        """Return the parts whose states make a checkpoint."""
        names = ("model", "optimiser", "decay", "scaler", "average")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _decay(optimiser, schedule: Schedule, updates: int):
    if schedule.decay == "onecycle":
        # torch divides by the warm-up's steps less one: with ten in all, a tenth of them would be a division by zero.
        warm_up = 0.1 if updates != 10 else 0.2
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, schedule.lr, total_steps=updates, pct_start=warm_up, cycle_momentum=False
        )
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


def _epoch(learner: Learner, data: Batches, loss, seed: int, most: int) -> float:
    """Go through the data once in a random order, with `most` updates at the most; return the mean loss.

    The loss is summed on the device, so that an update never waits for it.
    """
    reseed(seed)
    learner.model.train()
    batches = split(torch.randperm(len(data)), learner.schedule.batch_size)
    total, images = torch.zeros((), device=learner.device), 0
    for first in range(0, len(batches), learner.schedule.accumulate)[:most]:
        group = batches[first : first + learner.schedule.accumulate]
        count = sum(map(len, group))
        drawn = ((data.batch(index, learner.device), len(index) / count) for index in group)
        total += learner.learn(drawn, loss) * count
        images += count
    mean = total.item() / images
    if not math.isfinite(mean):
        raise UserError("training diverged: the loss is no longer finite; lower the learning rate with --set lr=...")
    return mean


def _save(learner: Learner, history: list[float], checkpoint: Path, key: str) -> None:
    """Write the checkpoint behind its SHA-256: a killed process leaves the previous one whole."""
    # Serialised in memory first: torch reports a full disk as an error of its own, a plain write as OSError.
    buffer = io.BytesIO()
    states = {name: part.state_dict() for name, part in learner.parts().items()}
    torch.save({"key": key, "history": history, **states}, buffer)
    content = buffer.getvalue()
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with replacing(checkpoint) as part:
        part.write_bytes(hashlib.sha256(content).digest() + content)


def _resume(learner: Learner, checkpoint: Path | None, key: str, device: torch.device) -> list[float]:
    """Load a checkpoint of the same run; start afresh where there is none, or only a damaged one."""
    if checkpoint is None or not checkpoint.is_file():
        return []
    content = checkpoint.read_bytes()
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        return []
    saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    if saved["key"] != key:
        return []
    for name, part in learner.parts().items():
        part.load_state_dict(saved[name])
    return saved["history"]
