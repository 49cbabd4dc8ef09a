"""The programs in benchmarks/ run, on sizes too small to say anything."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import SIZE, image_set, weave

PROGRAMS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = argparse.Namespace(steps=2, rounds=1, width=8, heads=2, layers=1, channels=5, batch=4, threads=1, memory=12)


def program(name: str):
    if str(PROGRAMS) not in sys.path:
        sys.path.append(str(PROGRAMS))  # where a program that is run finds its neighbours
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", PROGRAMS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_attention_as_a_command_leaves_out_and_says_so_what_does_not_fit() -> None:
    options = "--sides 4 --steps 1 --rounds 1 --width 8 --heads 2 --layers 1 --channels 5 --memory 1e-6".split()
    command = [sys.executable, str(PROGRAMS / "attention.py"), *options]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    header, _, *lines = ran.stdout.splitlines()
    assert header == "width 8, 2 heads, 1 layers, 1 threads"
    assert [line.split("  ")[0] for line in lines] == ["training step", "LCA alone"]
    assert all("dense left out: even one image would need more than 1e-06 GB" in line for line in lines)


@pytest.mark.parametrize("rival", ["uad_core", "dense"])
@pytest.mark.parametrize("task", ["training step", "LCA alone"])
def test_attention_measures_both_programs(task: str, rival: str) -> None:
    seconds, _ = program("attention").measure(task, rival, 4, 2, TINY)
    assert len(seconds) == 2 and min(seconds) > 0


HUNGRY = """
import argparse, attention
attention.TASKS["hungry"] = lambda program, side, batch, options: lambda: bytearray(b"x") * (side << 20)
print(attention.measure("hungry", "", 300, 1, argparse.Namespace(steps=1, threads=1))[1])
"""


@pytest.mark.slow
def test_the_peak_is_what_the_steps_need_beyond_what_was_there() -> None:
    """In a process of its own, as the program measures: steps that fill 300 MB."""
    ran = subprocess.run([sys.executable, "-c", HUNGRY], cwd=PROGRAMS, check=True, capture_output=True, text=True)
    assert 290 < float(ran.stdout) < 340


def test_the_batch_shrinks_until_the_dense_matrices_fit() -> None:
    attention = program("attention")
    one = 6 * 4 * 2 * 16**4  # six matrices of float32, two heads, 256 x 256 tokens
    for room, batch in [(0.5, 0), (1.5, 1), (3.5, 3), (99, 4)]:
        options = argparse.Namespace(**{**vars(TINY), "memory": room * one / 2**30})
        assert attention.fitting_batch("training step", 16, options) == batch


def test_the_table_shows_ratios(capsys) -> None:
    row = {"task": "LCA alone", "side": 4, "batch": 2, "uad_core": {"seconds": 0.1, "peak_mb": 10.0}}
    program("attention").show({**row, "dense": {"seconds": 0.5, "peak_mb": 70.0}}, TINY)
    assert capsys.readouterr().out.split()[-2:] == ["5.0x", "7.0x"]


def test_a_file_is_judged_beside_pytorch() -> None:
    exported, images = program("exported"), image_set(weave(4))
    factors = {"PyTorch": 1.0, "file": 1.1}
    judges = {name: lambda x, f=factor: (x.mean(1), f * x.mean((1, 2, 3))) for name, factor in factors.items()}
    found = exported.judged(judges, images)
    labels, masks = np.array([False, False, True, True]), np.zeros((4, SIZE, SIZE), bool)
    masks[2:, :9] = True
    threshold = 1.05 * max(found["PyTorch"]["scores"])
    row = exported.row(found["file"], found["PyTorch"], threshold, labels, masks)
    assert row["score_error"] == pytest.approx(0.1, rel=1e-5) and row["ms"] > 0 and 0 <= row["image_auroc"] <= 1
    moved = 1.1 * np.array(found["PyTorch"]["scores"]) > threshold
    assert row["changed"] == moved.sum() > 0 and row["false_alarms"] == moved[~labels].sum()
