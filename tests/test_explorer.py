"""The explorer computes what the package computes: its formulas, its numbers, and what it keeps in 8 bits."""

from __future__ import annotations

import base64
import json
import runpy
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import fitted, shared_networks, tensor, weave

from uad_core import metrics, scoring

ROOT = Path(__file__).resolve().parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "explorer.py"))
LEVELS = TOOL["DATA"]
INDEX = TOOL["read"]("index")
LARGEST = 2_000_000  # bytes of a file that a page loads

EVALUATE = """
const fs = require("fs"), core = require(process.argv[2]), files = {};
global.uadData = (name, content) => { files[name] = content; };
for (const path of process.argv.slice(3, 5)) eval(fs.readFileSync(path, "utf8"));
const [category, method] = Object.values(files);
(async () => {
  const levels = await core.levelsOf(method);
  const found = JSON.parse(process.argv[5]).map((chosen) => {
    const { maps, scores, image, pixel } = core.evaluate(method, levels, category, chosen);
    const threshold = method.thresholds[chosen.join(",")];
    return { scores, image, pixel, sum: maps.map((m) => m.reduce((a, b) => a + b, 0)),
      judged: core.judged(scores, category.labels, threshold) };
  });
  console.log(JSON.stringify(found));
})();
"""


def choices(count: int) -> list[list[int]]:
    """Every choice of some levels of so many."""
    return [list(chosen) for size in range(1, count + 1) for chosen in combinations(range(count), size)]


def by_the_page(category: str, method: str, tmp_path: Path) -> list[dict]:
    """What the page's own script computes, in node, for every choice of levels."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node, which runs the page's script, is not installed")
    (tmp_path / "evaluate.js").write_text(EVALUATE)
    files = [LEVELS / f"{category}.js", LEVELS / f"{category}-{method}.js"]
    count = len(TOOL["read"](f"{category}-{method}")["levels"])
    command = [node, tmp_path / "evaluate.js", LEVELS.parent / "core.js", *files, json.dumps(choices(count))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def by_the_package(category: str, method: str, chosen: list[int]) -> dict:
    """The same from the same bytes, by `uad_core.scoring` and `uad_core.metrics`."""
    images, file = TOOL["read"](category), TOOL["read"](f"{category}-{method}")
    labels, side = np.array(images["labels"], bool), images["side"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(images["masks"]), np.uint8))
    masks = bits.reshape(len(labels), side, side).astype(bool)
    levels = [
        TOOL["dequantise"](TOOL["unpacked"](level["bytes"], (len(labels), *level["size"])), level["low"], level["high"])
        for level in file["levels"]
    ]
    maps = TOOL["fused"](levels, file["formula"], (side, side), chosen).float()
    scores = TOOL["scored"](maps.double(), file["score"]).float().numpy()
    threshold = file["thresholds"][",".join(map(str, chosen))]
    called = scores > threshold
    return {
        **metrics.evaluate(scores, labels, maps, masks), "scores": scores, "sum": maps.double().sum((1, 2)).numpy(),
        "false_alarms": int((called & ~labels).sum()), "missed": int((~called & labels).sum()),
        "found": int((called & labels).sum()),
    }  # fmt: skip


@pytest.mark.parametrize("method", [entry["name"] for entry in INDEX["methods"]])
def test_the_page_has_the_numbers_of_the_package(method, tmp_path):
    category = next(entry["categories"][-1] for entry in INDEX["methods"] if entry["name"] == method)
    found = by_the_page(category, method, tmp_path)
    for page, chosen in zip(found, choices(len(TOOL["read"](f"{category}-{method}")["levels"])), strict=True):
        package = by_the_package(category, method, chosen)
        for kind, names in (("image", ("auroc", "ap", "f1max")), ("pixel", ("auroc", "ap", "f1max"))):
            for name in names:
                assert page[kind][name] == pytest.approx(package[f"{kind}_{name}"], abs=1e-6), (chosen, kind, name)
        np.testing.assert_allclose(page["scores"], package["scores"], rtol=1e-6)
        np.testing.assert_allclose(page["sum"], package["sum"], rtol=1e-6)
        judged = page["judged"]
        assert (judged["falseAlarms"], judged["missed"]) == (package["false_alarms"], package["missed"])
        errors = package["false_alarms"] + package["missed"]
        assert judged["f1"] == pytest.approx(2 * package["found"] / (2 * package["found"] + errors), abs=1e-6)


def test_ties_count_one_half_on_the_page_too():
    node = shutil.which("node") or pytest.skip("node, which runs the page's script, is not installed")
    scores, labels = [1, 2, 4, 7, 4, 8, 9], [0, 0, 0, 0, 1, 1, 1]
    code = f"console.log(JSON.stringify(require({json.dumps(str(LEVELS.parent / 'core.js'))})"
    code += f".measures({scores}, {labels})))"
    page = json.loads(subprocess.run([node, "-e", code], check=True, capture_output=True, text=True).stdout)
    assert page["auroc"] == pytest.approx(metrics.auroc(scores, labels))
    assert page["ap"] == pytest.approx(metrics.average_precision(scores, labels))
    assert page["f1max"] == pytest.approx(metrics.f1_max(scores, labels))


def test_eight_bits_keep_a_level():
    level = torch.rand(3, 5, 8).square() * 20
    low, high = TOOL["bounds"](level)
    bytes_ = TOOL["quantise"](level, low, high)
    assert (TOOL["unpacked"](TOOL["packed"](bytes_), bytes_.shape) == bytes_).all()
    kept, step = TOOL["dequantise"](bytes_, low, high), (high / low) ** (1 / 510)
    inside = level >= low
    assert ((kept / level)[inside] <= step * 1.001).all() and ((level / kept)[inside] <= step * 1.001).all()


def test_the_formula_is_read_off_the_detector():
    with shared_networks():
        detector = fitted()
        residuals = detector.residuals(tensor(weave(2)))
    formula = TOOL["formula_of"](detector, residuals)
    config = detector.config
    assert (formula["how"], formula["sigma"]) == (config.fusion, config.sigma)
    assert formula["weights"][-1] == config.deepest
    score = TOOL["scoring_of"](detector, detector.fuse(residuals))
    assert score == {"how": config.score, "sigma": 0.0}


class Other:
    """A detector that fuses in its own way."""

    def __init__(self, fuse):
        self.fuse = fuse


def test_a_mean_of_enlarged_maps_is_known_and_anything_else_is_not():
    residuals = {"a": torch.rand(1, 4, 4), "b": torch.rand(1, 8, 8)}

    def mean(levels):
        return torch.stack([scoring.upsample(r, (16, 16), align_corners=True) for r in levels.values()]).mean(0)

    formula = TOOL["formula_of"](Other(mean), residuals)
    assert formula["how"] == "mean" and formula["align"]
    assert TOOL["formula_of"](Other(lambda levels: mean(levels).square()), residuals) is None
    assert TOOL["formula_of"](Other(lambda levels: levels["b"]), residuals) is None


def test_the_files_are_those_of_the_index_and_small():
    assert TOOL["index"](LEVELS) == INDEX
    assert {path.stem for path in LEVELS.glob("*.js")} == {
        "index", *INDEX["categories"],
        *(f"{category}-{entry['name']}" for entry in INDEX["methods"] for category in entry["categories"]),
    }  # fmt: skip
    assert max(path.stat().st_size for path in LEVELS.glob("*.js")) < LARGEST
