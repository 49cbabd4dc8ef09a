"""The foundation chapters and the last one: solutions pass their own checks, wrong answers do not, boxes stay short."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

jupytext = pytest.importorskip("jupytext", reason="the tool chain of the book is not installed: pip install .[book]")

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = {path.stem: jupytext.read(path).cells for name in ("f[0-9]_*.py", "06_*.py")
            for path in sorted((ROOT / "notebooks").glob(name))}  # fmt: skip
SETUP = ("MAP = np.array",)  # cells that a check needs besides the imports

each_chapter = pytest.mark.parametrize("name", CHAPTERS)


def text_of(name):
    return "\n\n".join(cell.source for cell in CHAPTERS[name] if cell.cell_type == "markdown")


def checks(name):
    """The names of a chapter that its checks use, and the functions of its folded solutions."""
    code = [cell.source for cell in CHAPTERS[name] if cell.cell_type == "code"]
    names = {"layers": [(3, 2), (3, 1), (5, 2), (3, 1)]}
    for source in code:
        if source is code[1] or "def check_" in source or source.startswith(SETUP):
            exec(source, names)
    solutions = {}
    for block in re.findall(r"~~~python\n(.*?)~~~", text_of(name), re.S):
        for node in ast.parse(block).body:
            if isinstance(node, ast.FunctionDef):
                solutions[node.name] = node
                exec(compile(ast.Module([node], []), name, "exec"), names)
    return names, solutions


SOLVED = {
    "f1_judging": {"check_shift": "shift_residual", "check_reported": "reported"},
    "f2_frozen_features": {"check_fields": "fields", "check_axis": "first_axis"},
    "f3_decisions": {"check_pairs": "pairs", "check_overlap": "overlap"},
    "06_own_images": {"check_needed": "needed", "check_cusum": "cusum"},
}
WRONG = {
    "check_shift": lambda x: (x[..., 1:] - x[..., :-1]).abs().mean(1),
    "check_reported": lambda validation, test: test.amax(1).mean(),
    "check_fields": lambda layers: [1 + sum(k - 1 for k, _ in layers[: n + 1]) for n in range(len(layers))],
    "check_axis": lambda rows, steps: torch.linalg.svd(rows, full_matrices=False).Vh[0],  # the mean is not taken off
    "check_pairs": lambda s, y: (s[y][:, None] > s[~y]).mean(),  # ties count nothing
    "check_overlap": lambda m, mask, t: (m[mask] >= t).mean(),  # pixels, not regions
    "check_needed": lambda bound, k: math.ceil(3 * k / bound),  # the rule of three, k times
    "check_cusum": lambda scores, held, kappa: ((scores[:, None] > held).mean(1) - 0.5 - kappa).cumsum(),  # never anew
}


@each_chapter
def test_solutions_pass_the_checks_and_wrong_answers_do_not(name):
    names, solutions = checks(name)
    assert set(SOLVED[name].values()) == set(solutions)
    for check, solution in SOLVED[name].items():
        assert names[check](names[solution]) == "correct", check
        assert names[check](WRONG[check]).startswith("not yet"), check


@each_chapter
def test_two_exercises_to_warm_up_two_to_code_one_open(name):
    text = text_of(name)
    exercises = set(re.findall(r"```\{exercise\} .*\n:label: ([\w-]+)", text))
    solved = set(re.findall(r"```\{solution\} ([\w-]+)\n:class: dropdown", text))
    assert len(exercises) == 5 and len(exercises - solved) == 1 and solved < exercises
    [unsolved] = exercises - solved
    assert "*Open.*" in text.split(f":label: {unsolved}\n")[1].split("```")[0]


@each_chapter
def test_every_section_ends_with_a_box_of_three_lines_at_most(name):
    sections = re.split(r"^## ", text_of(name), flags=re.M)[1:]
    for section in sections:
        title, *_ = section.splitlines()
        boxes = re.findall(r"```\{admonition\} Take-away\n:class: note\n(.*?)\n```", section, re.S)
        assert len(boxes) == (title not in ("Exercises", "Further reading")), title
        assert all(len(box.splitlines()) <= 3 for box in boxes), title
    assert len(re.findall(r"^\* \{cite:t\}", sections[-1], re.M)) <= 5


def test_the_numbers_by_hand_are_those_of_the_package():
    """The solution to the first exercise on measures: what the text says, computed."""
    from uad_core import metrics

    names, _ = checks("f3_decisions")
    changed = names["MAP"].copy()
    changed[3, 3] = 1
    got = (metrics.auroc(changed, names["MASK"]), metrics.average_precision(changed, names["MASK"]),
           metrics.aupro(changed[None], names["MASK"][None]))
    solution = text_of("f3_decisions").split("```{solution} decisions-change")[1].split("```")[0]
    said = [float(number) for number in re.findall(r"\\approx (\.\d+)", solution)]
    assert np.allclose(said, got, atol=5e-4)
