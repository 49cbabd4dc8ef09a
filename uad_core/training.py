"""The one training loop of the book: device, mixed precision, progress, checkpoint and resume.

A method hands over a module, something to take batches from, and a function from a batch to a loss.
Randomness is a function of (seed, epoch) alone. A run that was killed therefore continues from its last
checkpoint exactly as if nothing had happened: on a CPU, to the bit.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from uad_core.errors import UserError

__all__ = ["Batches", "Schedule", "pick_device", "train"]

CHECKPOINT_SECONDS = 15.0


class Batches(Protocol):
    """What a training set must offer: a length, and batches by index on a device."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor, device: torch.device) -> Any: ...


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a method learns.

    epochs, batch_size: counts. lr: peak learning rate of Adam. decay: "constant", or "onecycle" (a short warm-up,
    then a cosine to zero). clip: largest gradient norm, 0 for none. precision: "auto" (half precision on CUDA,
    single elsewhere), or a name of Lightning Fabric's: "32-true", "16-mixed", "bf16-mixed".
    """

    epochs: int
    batch_size: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    decay: str = "constant"
    clip: float = 0.0
    precision: str = "auto"


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
    fabric, model, optimiser = _set_up(model, schedule, device)
    steps = schedule.epochs * len(split(torch.arange(len(data)), schedule.batch_size))
    decay = _decay(optimiser, schedule, steps)
    state = {"model": model, "optimiser": optimiser, "decay": decay}
    history = _resume(state, checkpoint, key, device)
    saved = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        bar = tqdm(range(len(history), schedule.epochs), desc="training", disable=not progress, leave=False)
        for epoch in bar:
            history.append(_epoch(fabric, state, data, loss, schedule, hash_seed(seed, epoch), device))
            bar.set_postfix(loss=f"{history[-1]:.4f}")
            due = time.monotonic() - saved > CHECKPOINT_SECONDS or epoch + 1 == schedule.epochs
            if checkpoint and due:
                _save(state, history, checkpoint, key)
                saved = time.monotonic()
    model.eval()
    return history


def hash_seed(seed: int, epoch: int) -> int:
    """Give every epoch of every seed its own random stream."""
    return seed * 1_000_003 + epoch


def split(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an order of images (N,) into batches, the last of them no single image if that can be helped."""
    batches = list(order.split(batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _set_up(model: nn.Module, schedule: Schedule, device: torch.device):
    # Imported here: prediction and `uad list` never need it.
    from lightning_fabric import Fabric

    precision = schedule.precision
    if precision == "auto":
        precision = "16-mixed" if device.type == "cuda" else "32-true"
    index = [device.index or 0] if device.type == "cuda" else 1
    fabric = Fabric(accelerator=device.type, devices=index, precision=precision)
    optimiser = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad],
        lr=schedule.lr,
        betas=schedule.betas,
        fused=device.type != "mps",
    )
    return fabric, *fabric.setup(model, optimiser)


def _decay(optimiser, schedule: Schedule, steps: int):
    if schedule.decay == "onecycle":
        # torch divides by the warm-up's steps less one: with ten in all, a tenth of them would be a division by zero.
        warm_up = 0.1 if steps != 10 else 0.2
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, schedule.lr, total_steps=steps, pct_start=warm_up, cycle_momentum=False
        )
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


def _epoch(fabric, state: dict, data: Batches, loss, schedule: Schedule, seed: int, device: torch.device) -> float:
    """Go through the data once in a random order; the loss is summed on the device, so a step never waits for it."""
    model, optimiser, decay = state["model"], state["optimiser"], state["decay"]
    torch.manual_seed(seed)
    model.train()
    total = torch.zeros((), device=device)
    for index in split(torch.randperm(len(data)), schedule.batch_size):
        optimiser.zero_grad()
        with fabric.autocast():
            value = loss(data.batch(index, device))
        fabric.backward(value)
        if schedule.clip:
            fabric.clip_gradients(model, optimiser, max_norm=schedule.clip)
        optimiser.step()
        decay.step()
        total += value.detach() * len(index)
    mean = total.item() / len(data)
    if mean != mean or mean in (float("inf"), float("-inf")):
        raise UserError("training diverged: the loss is no longer finite; lower the learning rate with --set lr=...")
    return mean


def _save(state: dict, history: list[float], checkpoint: Path, key: str) -> None:
    """Write the checkpoint behind its SHA-256, beside, then rename: a killed process leaves the previous one whole."""
    # Serialised in memory first: torch reports a full disk as an error of its own, a plain write as OSError.
    buffer = io.BytesIO()
    torch.save({"key": key, "history": history, **{k: v.state_dict() for k, v in state.items()}}, buffer)
    content = buffer.getvalue()
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_name(checkpoint.name + f".{os.getpid()}.part")
    try:
        part.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(part, checkpoint)
    finally:
        part.unlink(missing_ok=True)


def _resume(state: dict, checkpoint: Path | None, key: str, device: torch.device) -> list[float]:
    """Load a checkpoint of the same run into `state`; start afresh where there is none, or only a damaged one."""
    if checkpoint is None or not checkpoint.is_file():
        return []
    content = checkpoint.read_bytes()
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        return []
    saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    if saved["key"] != key:
        return []
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["history"]
