"""Random numbers that depend on a seed alone, whatever the caller drew before and on whichever device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["epoch_seed", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` within the context, on the CPU and on every GPU; afterwards all generators are as before."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(gpus)):
        reseed(seed)
        yield


def reseed(seed: int) -> None:
    """Seed the CPU's generator and those of the GPUs that are in use; a GPU that is not in use is left alone."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def epoch_seed(seed: int, epoch: int) -> int:
    """Give every epoch of every seed its own random stream."""
    return seed * 1_000_003 + epoch
