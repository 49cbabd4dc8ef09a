"""The built-in benchmark: same pixels everywhere, exact masks, the counts and the folder that are promised."""

from __future__ import annotations

import ast
import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uad_core import datasets
from uad_core.datasets import procedural
from uad_core.datasets.procedural import CATEGORIES, DEFECTS, circuit, draw, exact, grille, load, sets, write
from uad_core.datasets.procedural.canvas import (
    Canvas,
    blur,
    box_distance,
    cover,
    lettering_distance,
    segment_distance,
)
from uad_core.errors import UserError

SIZE = 96
KINDS = [(category, defect) for category in CATEGORIES for defect in DEFECTS[category]]

# First 16 digits of the SHA-256 of image and mask, each 96 x 96, seed 0, test scene 3, severity 0.7.
# They hold under every numpy and on every processor; a change of them changes every number measured on this benchmark.
PIXELS: dict[str, dict[str, str]] = {
    "weave": {
        "thread_pull": "1e50c8805d621c27",
        "hole": "c578238470a933ad",
        "stain": "2f00dd0ff58874d9",
        "contamination": "9d2428c1d733e81d",
        "colour_cast": "3a3dd023f6696536",
        "good": "35c47c887826015d",
    },
    "plank": {
        "scratch": "f5849f690c39b1b2",
        "crack": "ff21c7474117de82",
        "hole": "7d8c05af71e5714e",
        "stain": "643f4a54129e8d38",
        "contamination": "fee4121c61b6c813",
        "good": "ce5a1ecb3bba9e84",
    },
    "grille": {
        "blocked_hole": "27c4a558e4e5ff9e",
        "torn_bridge": "6fc72ff0413e2519",
        "scratch": "09e0e85ad31c6887",
        "rust": "11dcf42b56dfb72d",
        "contamination": "c37699c6153b1278",
        "good": "eed18a8c61d24df0",
    },
    "jar": {
        "broken_rim": "22e6dd0a4b277a9b",
        "chip": "a27ceae9eb2567d1",
        "crack": "768652f5a5510192",
        "contamination": "3dd08535ace36ac5",
        "residue": "097dbc8b48862665",
        "good": "e0345f041a5fb5ea",
    },
    "tablet": {
        "broken_edge": "3045b23c61cda2bf",
        "misprint": "98178c7e9e36b742",
        "crack": "a1fbb79c614e360a",
        "stain": "7fe49c044384f6f6",
        "colour_cast": "8d11010ae2faca71",
        "good": "1ced2f1ef544fdbc",
    },
    "circuit": {
        "missing_part": "fdf4a092b67adc68",
        "bent_leg": "9e8a0b60ba76c326",
        "misplaced": "f71856f4cc5e7ef0",
        "solder_bridge": "3e1c60367d5668dc",
        "scratch": "acc3cd48a825fdf2",
        "good": "b1e2f745688a6bc6",
    },
}


def digest(image: np.ndarray, mask: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes() + np.packbits(mask).tobytes()).hexdigest()[:16]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the largest change over the colours, (H, W)."""
    return np.abs(a.astype(int) - b.astype(int)).max(axis=-1)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_pixels_are_the_same_on_every_machine(category):
    drawn = {kind: digest(*draw(category, "test", 3, image_size=SIZE, defect=kind, severity=0.7))
             for kind in DEFECTS[category]}  # fmt: skip
    drawn["good"] = digest(*draw(category, "train", 0, image_size=SIZE))
    assert drawn == PIXELS[category]


def test_only_exactly_rounded_operations_draw():
    allowed = {
        "abs", "arange", "empty", "empty_like", "flatnonzero", "float32", "floor", "full", "int32", "intp", "maximum",
        "minimum", "moveaxis", "ndarray", "nonzero", "sqrt", "stack", "uint32", "uint8", "where", "zeros", "zeros_like",
        "broadcast_shapes",
    }  # fmt: skip
    folder = Path(procedural.__file__).parent
    for path in set(folder.glob("*.py")) - {folder / "sets.py"}:
        tree = ast.parse(path.read_text())
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "np"}
        assert used <= allowed, (path.name, used - allowed)
        assert not any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow | ast.MatMult)
                       and not isinstance(n.left, ast.Constant) for n in ast.walk(tree)), path.name  # fmt: skip
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "math"}
        assert used <= {"ceil", "floor", "sqrt"}, (path.name, used)
        methods = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not methods & {"sum", "mean", "dot", "prod", "cumsum", "var", "std"}, path.name


def test_order_and_repetition_do_not_matter_but_every_argument_does():
    first = draw("tablet", "test", 1, image_size=SIZE)[0]
    others = [
        draw("tablet", "test", 2, image_size=SIZE)[0],
        draw("tablet", "train", 1, image_size=SIZE)[0],
        draw("tablet", "test", 1, image_size=SIZE, seed=1)[0],
        draw("tablet", "test", 1, image_size=SIZE, defect="crack")[0],
    ]
    assert np.array_equal(first, draw("tablet", "test", 1, image_size=SIZE)[0])
    assert all(not np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_a_defect_changes_its_mask_and_nothing_else(category, defect):
    for index in (0, 5):
        clean, empty = draw(category, "test", index, image_size=SIZE)
        image, mask = draw(category, "test", index, image_size=SIZE, defect=defect)
        assert image.dtype == np.uint8 and image.shape == (SIZE, SIZE, 3) and mask.dtype == bool
        assert not empty.any() and mask.any() and mask.mean() < 0.25
        changed = difference(image, clean)
        assert not changed[~mask].any()
        assert (changed[mask] > 0).mean() > 0.93
        assert changed[mask].mean() > 6


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_severity_grows_from_nothing(category, defect):
    for index in (1, 4):
        scene = {"category": category, "split": "test", "index": index, "image_size": SIZE}
        clean, _ = draw(**scene)
        image, mask = draw(**scene, defect=defect, severity=0.0)
        assert np.array_equal(image, clean) and not mask.any()
        drawn = [draw(**scene, defect=defect, severity=s) for s in (0.1, 0.4, 0.7, 1.0)]
        change = [difference(image, clean).sum() for image, _ in drawn]
        areas = [mask.sum() for _, mask in drawn]
        assert 0 < change[0] < 0.6 * change[-1] and change[0] < 0.85 * change[1]
        # A part that is moved twice as far does not change twice as many pixels, hence the tolerance.
        assert change[1] < change[2] < 1.2 * change[3]
        assert areas[0] > 0 and all(a <= 1.05 * b for a, b in zip(areas, areas[1:], strict=False))


def test_a_missing_resistor_looks_on_the_spot_like_the_other_variant():
    canvas, dice = Canvas.of(SIZE, SIZE), exact.Dice(7)
    capacitor, pair = circuit._CAPACITOR, circuit._PAIR
    bare = circuit.circuit(canvas, dice, chips=(capacitor,))
    for gone, left in (pair, pair[::-1]):
        lacking = circuit.circuit(canvas, dice, chips=(capacitor, left))
        here, there = (bare.box(chip.x, chip.y, 0.1, 0.2) for chip in (gone, left))
        assert np.array_equal(lacking.albedo[:, here[0], here[1]], bare.albedo[:, here[0], here[1]])
        assert np.array_equal(lacking.light[here], bare.light[here])
        assert not np.array_equal(lacking.albedo[:, there[0], there[1]], bare.albedo[:, there[0], there[1]])
    variants = {len(circuit._fitted(exact.Dice(k))) for k in range(20)}
    assert variants == {1, 3}  # both resistors, or neither


def test_a_scratch_on_the_grille_is_on_metal_only():
    canvas = Canvas.of(SIZE, SIZE)
    for index in range(12):
        scene = exact.Dice(0).child(0, "grille", "test", index, "scene")
        edge = grille._holes(*grille._coordinates(canvas, scene))
        mask = draw("grille", "test", index, image_size=SIZE, defect="scratch")[1]
        assert mask.sum() >= 4 and edge[mask].min() > -canvas.pixel  # the lens carries it a pixel over the edge


def test_sizes_range_from_tiny_to_large():
    areas = []
    for category in CATEGORIES:
        masks = load(category, image_size=64).test
        areas += [masks.mask(i).float().mean().item() for i in np.flatnonzero(masks.labels)]
    assert min(areas) < 0.002 and max(areas) > 0.10
    assert 0.003 < np.median(areas) < 0.05


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_scene_is_the_same_at_every_resolution(category):
    defect = DEFECTS[category][0]
    small, small_mask = draw(category, "test", 7, image_size=128, defect=defect)
    large, large_mask = draw(category, "test", 7, image_size=384, defect=defect)
    reduced = large.reshape(128, 3, 128, 3, 3).mean(axis=(1, 3))
    moved = np.roll(reduced, 2, axis=1)
    assert np.abs(reduced - small).mean() < min(7, 0.7 * np.abs(moved - small).mean())
    touched = large_mask.reshape(128, 3, 128, 3).any(axis=(1, 3))
    assert (touched & small_mask).sum() > 0.6 * (touched | small_mask).sum()


def test_any_size_from_16_pixels_and_any_shape():
    for size in (16, (40, 100)):
        expected = size if isinstance(size, tuple) else (size, size)
        for category in CATEGORIES:
            image, mask = draw(category, "test", 0, image_size=size, defect=DEFECTS[category][0])
            assert image.shape == (*expected, 3) and mask.shape == expected
    with pytest.raises(UserError, match="at least 16"):
        draw("weave", "test", 0, image_size=15)
    with pytest.raises(UserError, match="at least 16"):
        load("weave", image_size=8)


def test_pictures_look_lit_and_grainy_not_flat():
    for category in CATEGORIES:
        image = draw(category, "train", 0, image_size=SIZE)[0].astype(float)
        assert 40 < image.mean() < 215 and image.std() > 15
        again = draw(category, "train", 1, image_size=SIZE)[0].astype(float)
        assert np.abs(image - again).mean() > 2  # pose, light and grain differ


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_has_the_promised_pictures(category):
    found = load(category, image_size=32)
    assert (found.dataset, found.category, found.protocol) == ("procedural", category, "inspection")
    assert len(found.train) == 60 and not found.train.labels.any() and set(found.train.defects) == {"good"}
    assert Counter(found.test.defects) == {"good": 15, **dict.fromkeys(DEFECTS[category], 5)}
    assert [name != "good" for name in found.test.defects] == found.test.labels.tolist()
    assert found.test.paths[0] == "test/good/000.png"
    assert found.test.paths[-1] == f"test/{DEFECTS[category][-1]}/004.png"
    assert not any(found.train.source.mask(i).any() for i in range(3))
    assert all(found.test.mask(i).any() for i in np.flatnonzero(found.test.labels))


def test_six_categories_with_at_least_four_defects_each():
    assert len(CATEGORIES) == 6 and all(len(kinds) >= 4 for kinds in DEFECTS.values())
    assert not set(CATEGORIES) & set(datasets.categories("mvtec_ad"))
    assert datasets.categories("procedural") == list(CATEGORIES)


def test_other_numbers_of_pictures():
    found = load("jar", image_size=32, n_train=2, n_test=9)
    assert len(found.train) == 2 and len(found.test) == 9
    assert set(found.test.defects) == {"good", *DEFECTS["jar"]}
    for wrong in ({"n_train": 0}, {"n_test": 5}):
        with pytest.raises(UserError, match="n_t"):
            load("jar", image_size=32, **wrong)


def test_pictures_are_drawn_when_asked_for_and_only_once(monkeypatch):
    asked = []
    monkeypatch.setattr(sets, "draw", lambda *args, **kw: asked.append(args) or draw(*args, **kw))
    found = load("grille", image_size=32, seed=5)
    assert not asked
    assert np.array_equal(found.train[1], found.train[1]) and asked == [("grille", "train", 1)]
    found.test.mask(20), found.test[20], found.test.images([20])
    assert len(asked) == 2
    assert found.test.sha256 == load("grille", image_size=32, seed=5).test.sha256
    assert found.test.sha256 != load("grille", image_size=32, seed=6).test.sha256


def test_the_written_folder_is_a_data_set_that_other_tools_read(tmp_path):
    out = tmp_path / "new" / "drawn"
    assert write(out, image_size=32, seed=2, categories=["jar", "weave"]) == out
    assert sorted(p.name for p in out.iterdir()) == ["jar", "weave"]
    assert [p.name for p in out.parent.iterdir()] == ["drawn"]
    assert len(list(out.glob("jar/train/good/*.png"))) == 60 and len(list(out.glob("jar/test/*/*.png"))) == 40
    masks = sorted(out.glob("jar/ground_truth/*/*.png"))
    assert len(masks) == 25 and masks[0].name == "000_mask.png"
    mask = np.asarray(Image.open(out / "jar/ground_truth/chip/001_mask.png"))
    assert mask.shape == (32, 32) and set(np.unique(mask)) == {0, 255}
    image = Image.open(out / "jar/test/good/004.png")
    assert image.mode == "RGB" and np.array_equal(image, draw("jar", "test", 4, image_size=32, seed=2)[0])
    read, drawn = datasets.load(str(out), "jar", image_size=32), load("jar", image_size=32, seed=2)
    rows = [read.test.paths.index(path) for path in drawn.test.paths]
    assert np.array_equal(read.test.masks()[rows], drawn.test.masks())
    assert np.array_equal(read.test.images(rows), drawn.test.images())


def test_writing_never_touches_what_is_there_and_never_leaves_half(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name in ("full", "full/mine.txt", "file"):
        with pytest.raises(UserError, match="there already"):
            write(tmp_path / name, image_size=16)
    with pytest.raises(UserError, match="can be made there"):
        write(tmp_path / "file" / "below", image_size=16)
    write(tmp_path / "empty", image_size=16, categories=["weave"])
    before = sorted(tmp_path.rglob("*"))

    def fail(*args, **kw):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "half", image_size=16, categories=["weave"])
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_names_and_numbers_are_told_in_one_line(tmp_path):
    for call in (
        lambda: draw("bottle", "test", 0),
        lambda: load("bottle"),
        lambda: write(tmp_path / "out", categories=["bottle"]),
        lambda: draw("jar", "test", 0, defect="good"),
        lambda: draw("jar", "test", 0, defect="chip", severity=1.5),
        lambda: draw("jar", "test", 0, defect="chip", severity=-0.1),
        lambda: draw("jar", "test", 0, defect="chip", severity=math.nan),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "procedural" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_cosine_and_noise_against_the_library():
    turns = np.linspace(-3, 3, 1001, dtype=np.float32)
    assert np.abs(exact.cos_turns(turns) - np.cos(2 * np.pi * turns.astype(float))).max() < 1e-6
    assert all(abs(exact.cos_turns(t) - math.cos(2 * math.pi * t)) < 1e-7 for t in (-1.3, 0.0, 0.1, 0.25, 7.6))
    x = np.linspace(-5, 5, 400, dtype=np.float32)[None, :]
    y = np.linspace(-3, 3, 300, dtype=np.float32)[:, None]
    field = exact.noise(x, y, 7)
    assert np.abs(field).max() <= 1 and abs(field.mean()) < 0.15 and field.std() > 0.2
    assert np.abs(np.diff(field, axis=1)).max() < 0.1  # continuous over cell borders
    # The value at a lattice point is the hash of that point, whatever else is drawn.
    corner = exact.noise(np.float32([[2.0]]), np.float32([[-1.0]]), 7)
    assert np.abs(corner - field[np.argmin(np.abs(y + 1)), np.argmin(np.abs(x - 2))]) < 0.05


def test_dice_are_addressed_by_name():
    dice = exact.Dice(1)
    assert dice.unit("a") == exact.Dice(1).unit("a") != dice.unit("b")
    assert dice.child("a", 1).key != dice.child("a", "1").key != dice.child(1, "a").key
    many = np.array([dice.child(k).unit("u") for k in range(4000)])
    assert 0 <= many.min() and many.max() < 1 and abs(many.mean() - 0.5) < 0.02 and abs(many.var() - 1 / 12) < 0.005
    whole = Counter(dice.integer(f"{k}", 2, 4) for k in range(600))
    assert set(whole) == {2, 3, 4} and min(whole.values()) > 150


def test_distances_against_brute_force():
    canvas = Canvas.of(40, 40)
    x, y = canvas.posed(0.1, 1.2, 0.1, -0.2)
    t = np.linspace(0, 1, 2001)
    brute = np.hypot(x[..., None] - (-0.4 + 0.9 * t), y[..., None] - (0.3 - 0.5 * t)).min(-1)
    assert np.abs(segment_distance(x, y, -0.4, 0.3, 0.5, -0.2) - brute).max() < 1e-3
    box = box_distance(x, y, 0.1, 0.0, 0.5, 0.3)
    inside = (np.abs(x - 0.1) < 0.5) & (np.abs(y) < 0.3)
    assert np.array_equal(box < 0, inside)
    ex, ey = np.maximum(np.abs(x - 0.1) - 0.5, 0), np.maximum(np.abs(y) - 0.3, 0)
    assert np.abs(np.where(inside, 0, np.hypot(ex, ey)) - np.maximum(box, 0)).max() < 1e-6
    assert cover(np.float32([-1, 0, 1]), 0.5).tolist() == [1.0, 0.5, 0.0]
    seven = lettering_distance(x, y, "7", 0.0, 0.0, 0.6)
    near = seven < 0.9
    stroke = np.minimum(segment_distance(x, y, -0.2, -0.3, 0.2, -0.3), segment_distance(x, y, 0.2, -0.3, -0.04, 0.3))
    assert near.any() and np.abs(seven - stroke)[near].max() < 1e-5


def test_blur_keeps_the_mean_and_has_the_width_it_is_asked_for():
    image = np.zeros((41, 41), dtype=np.float32)
    image[20, 20] = 1
    for sigma in (0.4, 1.0, 2.3):
        out = blur(image, sigma).astype(float)
        offset = np.arange(41) - 20
        assert abs(out.sum() - 1) < 1e-4 and abs((out.sum(0) * offset**2).sum() - sigma**2) < 1e-3
    assert np.abs(blur(np.ones((2, 5, 7), dtype=np.float32), 1.5) - 1).max() < 1e-5
