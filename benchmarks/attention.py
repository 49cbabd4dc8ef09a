"""RLR's level network beside the dense one it equals, in time and memory: ``python benchmarks/attention.py``.

A training step is forward, loss, backward and Adam. Below it stands LCA alone, forward and backward, whose cost grows
with the number of tokens where the dense one's grows with its square. Each measurement runs in a process of its own,
and the programs take turns; "peak" is the largest resident memory of a process above what it held just before the
network was made. Where the dense network would not fit into ``--memory`` with the wanted batch, both get a smaller one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from memory import peak_mb

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the oracle of the tests is the rival here

PROGRAMS = ("uad_core", "dense")


def network_step(program: str, side: int, batch: int, options: argparse.Namespace) -> Callable[[], None]:
    """A training step of a level's whole network."""
    import torch
    from dense_rlr import DenseLevel

    from uad_core.methods.rlr import LevelNetwork, RLRConfig

    config = RLRConfig(layers=options.layers, heads=options.heads)
    model = LevelNetwork(config, options.channels, options.width, (side, side))
    model = model if program == "uad_core" else DenseLevel(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    x = torch.randn(batch, side * side, options.channels)

    def step() -> None:
        optimiser.zero_grad()
        (model(x) - x).square().mean().backward()
        optimiser.step()

    return step


def lca_step(program: str, side: int, batch: int, options: argparse.Namespace) -> Callable[[], None]:
    """Attention within the windows, there and back."""
    import torch
    from dense_rlr import additive_masks, attention

    from uad_core.methods.windows import local_attention, window_size

    grid, window = (side, side), window_size(side)
    shape = (options.heads, side * side, options.width // options.heads)
    q = torch.randn(batch, *shape, requires_grad=True)
    k, v = (torch.randn(shape, requires_grad=True) for _ in range(2))
    inside = additive_masks(grid, window)[0] if program == "dense" else None

    def step() -> None:
        out = local_attention(q, k, v, grid, window) if program == "uad_core" else attention(q, k, v, inside)
        torch.autograd.grad(out.sum(), (q, k, v))

    return step


TASKS: dict[str, Callable[[str, int, int, argparse.Namespace], Callable[[], None]]] = {
    "training step": network_step, "LCA alone": lca_step}  # fmt: skip


def measure(task: str, program: str, side: int, batch: int, options: argparse.Namespace) -> tuple[list[float], float]:
    """Seconds of each step, and the peak in MB."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    TASKS[task](program, 2, 1, options)()  # imports
    before, seconds = peak_mb(), []
    step = TASKS[task](program, side, batch, options)
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:], peak_mb() - before  # the first step only warms up


def fitting_batch(task: str, side: int, options: argparse.Namespace) -> int:
    """The largest batch, up to the wanted one, with which the dense program stays below the memory; 0 if none does."""
    matrix = 4 * options.heads * side**4  # bytes of one image's attention in all heads
    # Backward needs the softmax of each of a layer's two attentions; four more matrices are in use at any time.
    kept = 2 * options.layers + 4 if task == "training step" else 5
    return min(options.batch, int(options.memory * 2**30 / (kept * matrix)))


def compare(task: str, side: int, options: argparse.Namespace) -> dict:
    """Median seconds and largest peak of both programs, over processes that take turns."""
    wanted = fitting_batch(task, side, options)
    batch = wanted or 1
    programs = PROGRAMS if wanted else PROGRAMS[:1]
    found: dict[str, list] = {program: [] for program in programs}
    for _ in range(options.rounds):
        for program in programs:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[program].append(pool.apply(measure, (task, program, side, batch, options)))
    rows = {
        program: {"seconds": statistics.median(s for steps, _ in runs for s in steps),
                  "peak_mb": max(peak for _, peak in runs)}
        for program, runs in found.items()
    }  # fmt: skip
    return {"task": task, "side": side, "batch": batch, **rows}


def show(row: dict, options: argparse.Namespace) -> None:
    """Print one line of the table."""
    ours, dense = row["uad_core"], row.get("dense")
    line = f"{row['task']:14s}{row['side']:4d} x {row['side']:<4d}{row['batch']:5d}"
    line += f"{ours['seconds']:10.4f} s{ours['peak_mb']:8.0f} MB"
    if dense is None:
        print(f"{line}   dense left out: even one image would need more than {options.memory:g} GB")
        return
    line += f"{dense['seconds']:10.4f} s{dense['peak_mb']:8.0f} MB"
    print(f"{line}{dense['seconds'] / ours['seconds']:8.1f}x{dense['peak_mb'] / max(ours['peak_mb'], 1):8.1f}x")


def main() -> None:
    """Print the table, or with ``--json`` the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64], help="tokens in a row")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each program")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--channels", type=int, default=72)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, default=12, help="GB that the dense program may use")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(f"width {options.width}, {options.heads} heads, {options.layers} layers, {options.threads} threads")
        print(f"{'':14s}{'tokens':11s}{'batch':>5s}{'uad_core':>23s}{'dense':>23s}{'time':>9s}{'peak':>9s}")
    rows = []
    for task in TASKS:
        for side in options.sides:
            rows.append(compare(task, side, options))
            if not options.json:
                show(rows[-1], options)
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
