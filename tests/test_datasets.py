"""Image sets, resizing, splits, and every benchmark on a miniature tree that copies its layout."""

from __future__ import annotations

import ast
import gzip
import hashlib
import os
import pickle
import re
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from uad_core import datasets
from uad_core.datasets import ArraySource, DataWarning, ImageSet, sources
from uad_core.datasets.base import as_size, resize_image, resize_mask
from uad_core.datasets.splits import fixed_split
from uad_core.errors import UserError

REAL = Path(os.environ.get("UAD_DATA", "/nonexistent"))
ELPV = datasets.elpv.installed()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draw(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> None:
    """Write an image of (width, height) whose content depends on the seed and on its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(f"{seed}{path.name}{path.parent}".encode()).digest()[:4], "big")
    pixels = noise(seed, size[1], size[0], 3)
    Image.fromarray(pixels).convert(mode).save(path)


def draw_mask(path: Path, value: int = 255, size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[1:3, 2:5] = value
    Image.fromarray(mask).save(path)


def miniature(dataset: str, category: str, root: Path, **kwargs) -> datasets.Category:
    """Load a miniature; that its counts are not the published ones is the only warning it may give."""
    with pytest.warns(DataWarning) as caught:
        found = datasets.load(dataset, category, root=root, image_size=8, **kwargs)
    assert len(caught) == 1 and "are not comparable with published ones" in str(caught[0].message)
    return found


def array_set(labels=(0, 0, 1, 1), masks: bool = True, **changes) -> ImageSet:
    n = len(labels)
    images = noise(0, n, 20, 30, 3)
    source = ArraySource(images, [None if i < 2 else noise(i, 20, 30) > 127 for i in range(n)] if masks else None)
    facts = {
        "dataset": "d", "category": "c", "split": "test", "image_size": (8, 12), "source": source, "has_masks": masks,
        "paths": [f"test/{i}" for i in range(n)], "labels": labels, "defects": ["x" if i else "good" for i in labels],
    }  # fmt: skip
    return ImageSet(**{**facts, **changes})


# --- image sets ----------------------------------------------------------------------------------------------------


def test_a_data_loader_yields_batches_of_images() -> None:
    images = array_set()
    expected = torch.stack([images[i] for i in range(4)])
    assert expected.shape == (4, 3, 8, 12) and expected.dtype == torch.float32
    assert 0 <= expected.min() and expected.max() <= 1
    for workers in (0, 1):
        batches = list(torch.utils.data.DataLoader(images, batch_size=3, num_workers=workers))
        assert [len(batch) for batch in batches] == [3, 1]
        torch.testing.assert_close(torch.cat(batches), expected, rtol=0, atol=0)


@pytest.mark.parametrize("index", [None, [2, 0], np.array([3]), np.array([True, False, False, True]), [-1], []])
def test_images_and_subsets_take_the_same_index(index) -> None:
    images = array_set()
    chosen = np.arange(4) if index is None else np.arange(4)[np.asarray(index, dtype=None if len(index) else int)]
    expected = [images[i] for i in chosen]
    found = images.images(index)
    assert found.shape == (len(chosen), 3, 8, 12)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    part = images.subset(chosen)
    assert part.paths == [f"test/{i}" for i in chosen] and part.labels.tolist() == images.labels[chosen].tolist()
    assert torch.equal(part.images(), found) and np.array_equal(part.masks(), images.masks()[chosen])
    assert part.original_sizes == [(20, 30)] * len(chosen)


def test_a_subset_of_a_subset_counts_from_the_subset() -> None:
    images = array_set()
    assert torch.equal(images.subset([1, 2, 3]).subset([2])[0], images[3])


def test_normal_images_have_empty_masks_and_sets_without_masks_have_none() -> None:
    images = array_set()
    assert images.masks().dtype == bool and images.masks().shape == (4, 8, 12)
    assert images.masks().any(axis=(1, 2)).tolist() == [False, False, True, True]
    assert images.mask(0).dtype == torch.bool and not images.mask(0).any()
    bare = array_set(masks=False)
    for call in (bare.masks, lambda: bare.mask(0)):
        with pytest.raises(UserError, match="d/c has no masks"):
            call()


def test_the_hash_sees_names_images_and_masks_but_no_labels() -> None:
    reference = array_set().sha256
    assert array_set().sha256 == reference
    assert array_set(labels=(1, 1, 0, 0)).sha256 == reference
    assert array_set(category="other", image_size=5).sha256 == reference
    assert array_set(masks=False).sha256 != reference
    assert array_set(paths=["test/0", "test/1", "test/2", "other"]).sha256 != reference
    images = noise(0, 4, 20, 30, 3)
    images[3, 0, 0, 0] ^= 1
    assert array_set(source=ArraySource(images, array_set().source.mask_arrays)).sha256 != reference
    assert array_set().subset([0, 1]).sha256 != array_set().subset([1, 0]).sha256


def test_inconsistent_sets_are_not_built() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        array_set(labels=(0, 1), paths=["a"])
    with pytest.raises(ValueError, match="not unique"):
        array_set(paths=["a", "a", "b", "c"])
    with pytest.raises(ValueError, match="2 images but 1 masks"):
        ArraySource(noise(0, 2, 3, 3), [None])
    with pytest.raises(ValueError, match="read-only"):
        array_set().labels[0] = True


def test_a_set_can_be_sent_to_another_process() -> None:
    images = array_set()
    assert pickle.loads(pickle.dumps(images)).sha256 == images.sha256


@pytest.mark.parametrize("size", [(8, 12), (20, 30), (33, 64), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_bilinearly_with_antialiasing(size: tuple[int, int], channels: int) -> None:
    pixels = noise(1, 20, 30, channels).squeeze()
    planes = torch.from_numpy(pixels).view(20, 30, channels).permute(2, 0, 1)[None].float()
    oracle = F.interpolate(planes, size=size, mode="bilinear", antialias=True)[0].expand(3, -1, -1)
    found = resize_image(pixels, size) * 255
    # The oracle computes with floats; here each of the two passes rounds to 8 bits.
    assert found.shape == (3, *size) and (found - oracle).abs().max() <= 1.01
    torch.testing.assert_close(found, found.round(), atol=1e-4, rtol=0)


def test_resizing_averages_what_it_shrinks() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    assert torch.allclose(resize_image(board.astype(np.uint8), (8, 8)), torch.tensor(0.5), atol=0.01)


@pytest.mark.parametrize("size", [(8, 12), (20, 30), (40, 60), (7, 11)], ids=str)
def test_masks_take_the_nearest_pixel(size: tuple[int, int]) -> None:
    mask = noise(2, 20, 30) > 127
    oracle = F.interpolate(torch.from_numpy(mask)[None, None].byte(), size=size, mode="nearest-exact")[0, 0].bool()
    assert torch.equal(resize_mask(mask, size), oracle)


@pytest.mark.parametrize("size", [0, -1, 5000, 2.5, (1, 2, 3), (256, 0)])
def test_impossible_sizes_are_refused(size) -> None:
    with pytest.raises(UserError, match=re.escape(f"--image-size {size}: give a whole number from 1 to 4096")):
        as_size(size)
    assert as_size(np.int64(3)) == (3, 3) and as_size([4, 5]) == (4, 5)


# --- splits and counts ---------------------------------------------------------------------------------------------


def test_the_fixed_split_is_what_its_rule_says() -> None:
    names = [f"{i:03d}" for i in range(101)]
    train, rest = fixed_split(names, 0.8, 0)
    assert len(train) == 81 and sorted(train + rest) == names and train == sorted(train)
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"0:{name}".encode()).hexdigest())
    assert set(train) == set(ordered[:81])
    # Frozen: a division that changes would silently change every number measured with it.
    assert fixed_split(names[:8], 0.5, 0)[0] == ["000", "004", "005", "007"]
    assert fixed_split(names, 0.8, 1)[0] != train
    # The order in which a file system lists the names does not matter.
    assert set(fixed_split(names[::-1], 0.8, 0)[0]) == set(train)


def test_published_counts_add_up() -> None:
    def total(name: str) -> tuple[int, int, int]:
        counts = datasets.INFOS[name].counts.values()
        return sum(c.train for c in counts), sum(c.test for c in counts), sum(c.anomalous for c in counts)

    assert total("mvtec_ad") == (3629, 1725, 1258)
    assert total("visa") == (8659, 2162, 1200) and 8659 + 2162 - 1200 == 9621
    assert total("btad") == (1799, 741, 290)
    assert total("mpdd") == (888, 458, 282)
    assert total("mtd") == (762, 582, 392) and 762 == round(0.8 * 952)
    train, test, anomalous = total("pcb_bank")
    assert (train + test - anomalous, anomalous) == (5352, 1397)
    for name in ("mnist", "fashion_mnist"):
        assert total(name) == (60_000, 100_000, 90_000)
    assert total("cifar10") == (50_000, 100_000, 90_000)
    assert total("elpv") == (1206, 1418, 1116) and 1206 + 1418 == 2624


@pytest.mark.parametrize("info", datasets.CATALOGUE, ids=lambda info: info.name)
def test_every_entry_of_the_catalogue_is_complete(info: datasets.DatasetInfo) -> None:
    assert info.title and info.summary.endswith(".") and info.licence
    assert info.protocol in ("inspection", "one_class", "textures")
    if info.name == "procedural":
        return
    assert info.homepage.startswith("http") and info.citation and info.categories
    assert set(info.counts) == (set(info.categories) if info.protocol != "textures" else set())
    assert "\n" not in info.instruction() and "{" not in info.instruction("x")
    if info.name in sources.BENCHMARKS:
        filed = sources.find(info.name).categories
        assert not filed or set(filed) == set(info.categories)


# --- named data, folders, roots ------------------------------------------------------------------------------------


def message(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def make_mvtec(
    folder: Path, suffix: str = ".png", good: str = "good", bad: str = "hole", mask: str = "_mask.png"
) -> None:
    for i in range(3):
        draw(folder / f"train/{good}/{i:03d}{suffix}")
    for i in range(2):
        draw(folder / f"test/{good}/{i:03d}{suffix}")
        draw(folder / f"test/{bad}/{i:03d}{suffix}")
        draw_mask(folder / f"ground_truth/{bad}/{i:03d}{mask}")


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "set/alpha")
    make_mvtec(tmp_path / "set/beta")
    said = message(lambda: datasets.load("mvtec_da", "bottle"))
    assert said.startswith("no data set or folder is called mvtec_da: did you mean mvtec_ad? Known: procedural, mvtec")
    said = message(lambda: datasets.load("mvtec_ad", "Bottel", root=tmp_path))
    assert said.startswith("no category of mvtec_ad is called Bottel: did you mean bottle? Known: bottle, cable, ")
    said = message(lambda: datasets.load(str(tmp_path / "set"), "alpa"))
    assert said == f"no category of {tmp_path / 'set'} is called alpa: did you mean alpha? Known: alpha, beta"
    for odd in ("../alpha", "", ".", "alpha/train", "x" * 4000, "a\0b"):
        assert message(lambda odd=odd: datasets.load(str(tmp_path / "set"), odd)).endswith("Known: alpha, beta")
    for odd in ("", "x" * 4000, "a\0b", str(tmp_path / "set/nothing")):
        assert "Known: procedural, " in message(lambda odd=odd: datasets.load(odd, "alpha"))


def test_data_that_are_not_there_are_asked_for_with_the_way_to_get_them(tmp_path: Path) -> None:
    way = "or name another folder by --root or UAD_DATA"
    expected = f"mvtec_ad/cable is not in {tmp_path}: run `uad data mvtec_ad --category cable`, {way}"
    assert message(lambda: datasets.load("mvtec_ad", "cable", root=tmp_path)) == expected
    assert message(lambda: datasets.load("mtd", "all", root=tmp_path)).startswith(
        f"mtd/mtd is not in {tmp_path}: run `uad data mtd`"
    )
    assert "download it with a browser" in message(lambda: datasets.load("mpdd", "tubes", root=tmp_path))


def test_the_root_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UAD_DATA", "~/some")
    assert datasets.data_root(tmp_path) == tmp_path
    assert datasets.data_root() == Path.home() / "some"
    monkeypatch.delenv("UAD_DATA")
    assert datasets.data_root().name == "uad-core"


def test_a_folder_may_hold_categories_or_be_one(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "set/alpha")
    make_mvtec(tmp_path / "set/beta")
    (tmp_path / "set/notes").mkdir()
    assert datasets.categories(str(tmp_path / "set")) == ["alpha", "beta"]
    assert datasets.categories(str(tmp_path / "set/alpha")) == ["alpha"]
    assert datasets.protocol(str(tmp_path / "set")) == datasets.protocol(str(tmp_path / "set/alpha")) == "inspection"
    assert datasets.protocol("mnist") == "one_class" and datasets.protocol("dtd") == "textures"
    held = datasets.load(str(tmp_path / "set"), "alpha", image_size=8)
    for name in ("alpha", "all"):
        alone = datasets.load(str(tmp_path / "set/alpha"), name, image_size=8)
        assert (alone.test.sha256, alone.category) == (held.test.sha256, "alpha")
    assert (held.dataset, held.protocol, held.train.split, held.test.split) == ("set", "inspection", "train", "test")
    said = message(lambda: datasets.categories(str(tmp_path / "set/notes")))
    assert said.startswith(f"{tmp_path / 'set/notes'}: no folder in it has train/good and test: ")
    assert message(lambda: datasets.load(str(tmp_path / "set/notes"), "x")) == said


def test_the_order_is_that_of_the_names_whatever_the_file_system_says(tmp_path: Path, monkeypatch) -> None:
    make_mvtec(tmp_path / "part")
    expected = datasets.load(str(tmp_path), "part").test.paths
    assert expected == sorted(expected)
    entries = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(sorted(entries(path))))
    assert datasets.load(str(tmp_path), "part").test.paths == expected


def test_the_catalogue_lists_what_is_present(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "mvtec_ad/bottle")
    make_mvtec(tmp_path / "MPDD/tubes")
    (tmp_path / "mtd/MT_Free").mkdir(parents=True)
    present = {info.name: info.present for info in datasets.catalogue(tmp_path)}
    assert present["mvtec_ad"] == ("bottle",) and present["mpdd"] == ("tubes",) and present["mtd"] == ("mtd",)
    assert present["visa"] == () and present["fashion_mnist"] == () and present["dtd"] == ()
    assert len(present["procedural"]) == 6


def test_counts_that_differ_warn_on_loading_and_fail_on_verification(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "mvtec_ad/bottle")
    found = miniature("mvtec_ad", "bottle", tmp_path)
    assert found.train.paths == [f"train/good/{i:03d}.png" for i in range(3)]
    said = message(lambda: datasets.verify("mvtec_ad", "bottle", tmp_path))
    assert said == (
        "mvtec_ad/bottle has 3 train and 4 test images (2 anomalous) instead of 209 and 83 (63): "
        f"remove {tmp_path / 'mvtec_ad'}/bottle and get it again"
    )


def test_what_was_fetched_is_counted(tmp_path: Path, monkeypatch) -> None:
    from uad_core.datasets import download

    calls = []
    monkeypatch.setattr(download, "fetch", lambda *args: calls.append(args) or tmp_path)
    make_mvtec(tmp_path / "mpdd/tubes")
    assert "instead of 122 and 101" in message(lambda: datasets.fetch("mpdd", "tubes", tmp_path, progress=False))
    assert calls == [("mpdd", "tubes", tmp_path, False)]
    assert datasets.fetch("dtd", root=tmp_path) == tmp_path
    assert "did you mean mpdd?" in message(lambda: datasets.fetch("mpd"))
    assert "no category of mpdd" in message(lambda: datasets.fetch("mpdd", "tube"))


def test_importing_the_data_sets_imports_no_heavy_library() -> None:
    heavy = {"torchvision", "pandas", "matplotlib", "pooch", "scipy", "timm"}
    for name in ("__init__", "base", "catalogue", "folder", "images", "one_class", "splits", *datasets.READERS):
        path = Path(datasets.__file__).with_name(f"{name}.py")
        if path.exists():
            at_the_top = ast.parse(path.read_text()).body
            imports = [node for node in at_the_top if isinstance(node, ast.Import | ast.ImportFrom)]
            modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
            assert not heavy & {module.split(".")[0] for module in modules}, path


# --- each benchmark in miniature -----------------------------------------------------------------------------------


def test_mpdd_and_mvtec_masks_follow_the_layout(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "mpdd/connector", bad="parts_mismatch")
    found = miniature("mpdd", "connector", tmp_path)
    assert found.test.defects == ["good", "good", "parts_mismatch", "parts_mismatch"]
    assert found.test.masks()[2:].any(axis=(1, 2)).all() and not found.test.masks()[:2].any()


BTAD = [("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")]


@pytest.mark.parametrize(("category", "suffix", "mask"), BTAD)
def test_btad_is_ok_or_ko_in_mixed_formats(tmp_path: Path, category: str, suffix: str, mask: str) -> None:
    make_mvtec(tmp_path / f"btad/BTech_Dataset_transformed/{category}", suffix, "ok", "ko", mask)
    found = miniature("btad", category, tmp_path)
    assert found.test.labels.tolist() == [True, True, False, False] and found.test.has_masks
    assert found.test.defects == ["ko", "ko", "good", "good"] and len(found.train) == 3
    assert found.test.masks()[:2].any(axis=(1, 2)).all()


def make_visa(folder: Path, category: str, table: str) -> None:
    """Images in capitals, masks that number the defects, and a table for train and test."""
    rows = ["object,split,label,image,mask", "other,train,normal,other/Data/Images/Normal/0000.JPG,"]
    for i in range(5):
        name = f"{category}/Data/Images/Normal/{i:04d}.JPG"
        draw(folder / name)
        rows.append(f"{category},{'train' if i != 1 else 'test'},normal,{name},")
    for i in range(2):
        image, mask = f"{category}/Data/Images/Anomaly/{i:03d}.JPG", f"{category}/Data/Masks/Anomaly/{i:03d}.png"
        draw(folder / image)
        draw_mask(folder / mask, value=i + 1)
        rows.append(f"{category},test,anomaly,{image},{mask}")
    (folder / table).parent.mkdir(parents=True, exist_ok=True)
    (folder / table).write_text("\n".join(rows) + "\n")


CSV = [
    ("visa", "candle", "split_csv/1cls.csv"),
    ("pcb_bank", "pcb6", "1cls.csv"),
    ("pcb_bank", "pcb6", "1cls_clear.csv"),
]


@pytest.mark.parametrize(("dataset", "category", "table"), CSV)
def test_visa_and_pcb_bank_are_divided_by_their_table(tmp_path: Path, dataset: str, category: str, table: str) -> None:
    make_visa(tmp_path / dataset, category, table)
    found = miniature(dataset, category, tmp_path)
    assert found.train.paths == [f"Data/Images/Normal/{i:04d}.JPG" for i in (0, 2, 3, 4)]
    assert found.test.paths == [f"Data/Images/{n}.JPG" for n in ("Anomaly/000", "Anomaly/001", "Normal/0001")]
    assert found.test.labels.tolist() == [True, True, False]
    expected = resize_mask(np.pad(np.ones((2, 3), bool), ((1, 4), (2, 4))), (8, 8)).numpy()
    np.testing.assert_array_equal(found.test.masks(), [expected, expected, expected & False])


def test_label_maps_with_a_palette_count_by_number_not_by_colour(tmp_path: Path) -> None:
    make_visa(tmp_path / "visa", "candle", "split_csv/1cls.csv")
    path = tmp_path / "visa/candle/Data/Masks/Anomaly/000.png"
    mask = Image.open(path).convert("L")
    mask = Image.frombytes("P", mask.size, mask.tobytes())
    mask.putpalette([255, 255, 255, 0, 0, 0])  # 0 is white, 1 is black
    mask.save(path)
    masks = miniature("visa", "candle", tmp_path).test.masks()
    np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize(("dataset", "category"), [("visa", "pcb1"), ("pcb_bank", "pcb1")])
def test_a_converted_category_is_read_in_its_new_layout(tmp_path: Path, dataset: str, category: str) -> None:
    make_mvtec(tmp_path / dataset / category, ".JPG", bad="bad", mask=".png")
    assert miniature(dataset, category, tmp_path).test.defects == ["bad", "bad", "good", "good"]


TABLES = {
    "missing": (None, "cannot be read"),
    "binary": (b"\xff\xfe\x00", "cannot be read"),
    "columns": (b"a,b\n1,2\n", "needs the columns object, split, label, image, mask in every row"),
    "short row": (b"object,split,label,image,mask\ncandle,train\n", "needs the columns"),
    "empty": (b"object,split,label,image,mask\n", "has no train or no test images of candle"),
    "2-class": (
        b"object,split,label,image,mask\ncandle,train,anomaly,candle/a.png,candle/b.png\n", "anomaly for train"),
    "outside": (b"object,split,label,image,mask\ncandle,train,normal,candle/../../a.png,\n", "does not lie in candle"),
    "absolute": (b"object,split,label,image,mask\ncandle,train,normal,/etc/a.png,\n", "does not lie in candle"),
    "no file": (
        b"object,split,label,image,mask\ncandle,train,normal,candle/a.png,\ncandle,test,normal,candle/b.png,\n",
        "candle/a.png is no file"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_refused(tmp_path: Path, name: str) -> None:
    make_visa(tmp_path / "visa", "candle", "split_csv/1cls.csv")
    table = tmp_path / "visa/split_csv/1cls.csv"
    content, expected = TABLES[name]
    table.unlink()
    if content is not None:
        table.write_bytes(content)
    said = message(lambda: datasets.load("visa", "candle", root=tmp_path))
    assert expected in said and str(tmp_path / "visa") in said


def make_mtd(folder: Path) -> None:
    for kind, n in {"Free": 10, "Blowhole": 2, "Break": 1, "Crack": 1, "Fray": 1, "Uneven": 2}.items():
        for i in range(n):
            size = (9 + i, 7)
            draw(folder / f"MT_{kind}/Imgs/exp{i}_num_{kind}.jpg", mode="L", size=size)
            draw_mask(folder / f"MT_{kind}/Imgs/exp{i}_num_{kind}.png", 0 if kind == "Free" or i == 1 else 200, size)


def test_mtd_keeps_a_fifth_of_the_free_tiles_for_the_test(tmp_path: Path) -> None:
    make_mtd(tmp_path / "mtd")
    found = miniature("mtd", "all", tmp_path)
    assert found.category == "mtd" and len(found.train) == 8 and len(found.test) == 2 + 7
    assert sorted(set(found.test.defects)) == ["blowhole", "break", "crack", "fray", "good", "uneven"]
    assert not set(found.train.paths) & set(found.test.paths)
    empty = [p for p, m in zip(found.test.paths, found.test.masks(), strict=True) if not m.any()]
    assert [p for p in empty if "Free" not in p] == [f"MT_{k}/Imgs/exp1_num_{k}.jpg" for k in ("Blowhole", "Uneven")]
    assert found.test.labels.sum() == 7
    again, other = (miniature("mtd", "mtd", tmp_path, seed=seed).train.paths for seed in (0, 1))
    assert again == found.train.paths != other
    assert len({size for size in found.test.original_sizes}) > 1


def test_mtd_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    make_mtd(tmp_path / "mtd")
    (tmp_path / "mtd/MT_Crack/Imgs/exp0_num_Crack.png").unlink()
    said = message(lambda: datasets.load("mtd", "mtd", root=tmp_path))
    assert "MT_Crack/Imgs/exp0_num_Crack.jpg has no mask exp0_num_Crack.png beside it" in said
    (tmp_path / "mtd/MT_Crack/Imgs/exp0_num_Crack.jpg").unlink()
    assert "MT_Crack/Imgs holds no JPG image" in message(lambda: datasets.load("mtd", "mtd", root=tmp_path))


def write_idx(path: Path, values: np.ndarray, packed: bool) -> None:
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def make_idx(raw: Path, packed: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    made = {}
    for split, prefix, n in (("train", "train", 30), ("test", "t10k", 20)):
        images, numbers = noise(n, n, 28, 28), (np.arange(n) % 10).astype(np.uint8)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images, packed)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", numbers, packed)
        made[split] = images, numbers
    return made


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("dataset", "raw"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")])
def test_one_class_is_normal_and_the_whole_test_set_is_judged(
    tmp_path: Path, dataset: str, raw: str, packed: bool
) -> None:
    made = make_idx(tmp_path / dataset / raw, packed)
    found = miniature(dataset, "3", tmp_path)
    assert (found.protocol, len(found.train), len(found.test)) == ("one_class", 3, 20)
    images, numbers = made["train"]
    for i, image in enumerate(found.train):
        torch.testing.assert_close(image, resize_image(images[numbers == 3][i], (8, 8)))
    assert found.test.labels.tolist() == (made["test"][1] != 3).tolist() and not found.train.labels.any()
    assert not found.test.has_masks and found.test.original_sizes == [(28, 28)] * 20
    assert [d for d, bad in zip(found.test.defects, found.test.labels, strict=True) if not bad] == ["good"] * 2
    other = miniature(dataset, "7", tmp_path)
    assert other.test.sha256 == found.test.sha256 and other.test.paths == found.test.paths
    assert other.train.sha256 != found.train.sha256
    assert torch.equal(found.test[0][0], found.test[0][2]) and found.test[0].shape == (3, 8, 8)


DAMAGED_IDX = {
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "no header": lambda data: data[:3],
    "other magic": lambda data: b"\0\0\x0b" + data[3:],
    "huge": lambda data: data[:4] + b"\xff" * 12 + data[16:],
    "other number": lambda data: data[:4] + struct.pack(">I", 19) + data[8 : 16 + 19 * 784],
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", DAMAGED_IDX)
def test_damaged_idx_files_are_refused(tmp_path: Path, name: str, packed: bool) -> None:
    raw = tmp_path / "mnist/MNIST/raw"
    make_idx(raw, packed)
    path = raw / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    data = DAMAGED_IDX[name](gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    path.write_bytes(gzip.compress(data) if packed else data)
    said = message(lambda: datasets.load("mnist", "3", root=tmp_path))
    assert str(raw) in said and "fetch the data again" in said


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(bytes(10**5))[:-20]])
def test_damaged_gzip_files_are_refused(tmp_path: Path, content: bytes) -> None:
    make_idx(tmp_path / "mnist/MNIST/raw", packed=True)
    path = tmp_path / "mnist/MNIST/raw/train-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    assert message(lambda: datasets.load("mnist", "3", root=tmp_path)).startswith(str(path))


def make_cifar(folder: Path, monkeypatch) -> None:
    """The pickled batches of CIFAR-10, with their own hashes in place of the published ones."""
    from torchvision.datasets import CIFAR10

    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    listed = {}
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = {"data": noise(len(name), 20, 3072), "labels": [i % 10 for i in range(20)], "label_names": ["x"] * 10}
        (batches / name).write_bytes(pickle.dumps(content))
        listed[name] = [name, hashlib.md5((batches / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(CIFAR10, "train_list", [listed["data_batch_1"]])
    monkeypatch.setattr(CIFAR10, "test_list", [listed["test_batch"]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": listed["batches.meta"][1]})


def test_cifar10_is_read_in_colour_and_checked_before_it_is_unpickled(tmp_path: Path, monkeypatch) -> None:
    make_cifar(tmp_path / "cifar10", monkeypatch)
    found = miniature("cifar10", "9", tmp_path)
    assert (len(found.train), len(found.test), found.test.labels.sum()) == (2, 20, 18)
    pixels = noise(len("test_batch"), 20, 3072)[5].reshape(3, 32, 32).transpose(1, 2, 0)
    torch.testing.assert_close(found.test[5], resize_image(pixels, (8, 8)))
    assert found.test.paths[5] == "test/dog/00005" and found.test.defects[9] == "good"
    (tmp_path / "cifar10/cifar-10-batches-py/test_batch").write_bytes(b"changed")
    assert "files of CIFAR-10 are missing or changed" in message(lambda: datasets.load("cifar10", "9", root=tmp_path))


def test_a_tree_of_classes_is_a_one_class_set(tmp_path: Path) -> None:
    for split, classes in (("train", ("cat", "dog")), ("test", ("cat", "dog", "emu"))):
        for kind in classes:
            for i in range(2):
                draw(tmp_path / f"tree/{split}/{kind}/{i}.png")
    tree = str(tmp_path / "tree")
    assert datasets.categories(tree) == ["cat", "dog"] and datasets.protocol(tree) == "one_class"
    cat, dog = (datasets.load(tree, name, image_size=8) for name in ("cat", "dog"))
    assert cat.protocol == "one_class" and not cat.test.has_masks
    assert cat.train.paths == ["train/cat/0.png", "train/cat/1.png"]
    assert cat.test.labels.tolist() == [False, False, True, True, True, True]
    assert cat.test.defects == ["good", "good", "dog", "dog", "emu", "emu"]
    assert cat.test.sha256 == dog.test.sha256 and cat.train.sha256 != dog.train.sha256
    assert message(lambda: datasets.load(tree, "emu")) == f"no class of {tree} is called emu: Known: cat, dog"
    (tmp_path / "tree/train/owl").mkdir()
    assert "train/owl holds no image" in message(lambda: datasets.load(tree, "owl"))


@pytest.mark.parametrize("layout", ["dtd", "dtd/dtd"])
def test_dtd_is_a_set_of_textures_and_no_benchmark(tmp_path: Path, layout: str) -> None:
    for kind in ("woven", "banded"):
        for i in range(2):
            draw(tmp_path / layout / f"images/{kind}/{kind}_{i:04d}.jpg")
    found = datasets.textures(tmp_path, 8)
    assert found.paths == [f"images/{k}/{k}_{i:04d}.jpg" for k in ("banded", "woven") for i in (0, 1)]
    assert found.images().shape == (4, 3, 8, 8) and not found.labels.any()
    assert message(lambda: datasets.load("dtd", "all", root=tmp_path)).startswith("dtd has no defects to find")


def make_elpv(site: Path) -> None:
    rows, kinds = [], ["0.0"] * 5 + ["0.3333333333333333", "0.6666666666666666", "1.0"]
    for crystal in ("mono", "poly"):
        for i, probability in enumerate(kinds):
            name = f"images/{crystal}{i}.png"
            draw(site / "elpv_dataset/data" / name, mode="L")
            rows.append(f"{name}  {probability}  {crystal}")
    (site / "elpv_dataset/data/labels.csv").write_text("\n".join(rows) + "\n")
    (site / "elpv_dataset/__init__.py").write_text("raise RuntimeError('must not be imported')\n")


@pytest.fixture
def elpv_site(tmp_path: Path, monkeypatch) -> Path:
    make_elpv(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    return tmp_path / "site/elpv_dataset/data"


def test_elpv_comes_from_its_package_without_importing_it(tmp_path: Path, elpv_site: Path) -> None:
    found = miniature("elpv", "mono", tmp_path)
    assert len(found.train) == 4 and not found.test.has_masks
    assert sorted(found.test.defects) == ["defective", "good", "possibly_defective", "possibly_functional"]
    assert found.test.labels.sum() == 3 and all("mono" in path for path in found.test.paths)
    assert all("poly" in path for path in miniature("elpv", "poly", tmp_path).test.paths)
    assert datasets.fetch("elpv", root=tmp_path) == elpv_site
    (elpv_site / "labels.csv").write_text("images/mono0.png 0.5 mono\n")
    assert "labels.csv cannot be read ('0.50')" in message(lambda: datasets.load("elpv", "mono"))


def test_elpv_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.elpv, "PACKAGE", "no_such_package")
    assert "run `pip install elpv-dataset`" in message(lambda: datasets.load("elpv", "mono", root=tmp_path))


# --- the real thing ------------------------------------------------------------------------------------------------


def real(dataset: str, category: str, size: int = 64) -> datasets.Category:
    """Load real data; any warning, so also a count that differs, is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return datasets.load(dataset, category, root=REAL, image_size=size)


@pytest.mark.skipif(not (REAL / "mvtec_ad/bottle").is_dir(), reason="UAD_DATA has no mvtec_ad/bottle")
def test_real_bottle() -> None:
    bottle = real("mvtec_ad", "bottle")
    counts = {kind: bottle.test.defects.count(kind) for kind in set(bottle.test.defects)}
    assert counts == {"good": 20, "broken_large": 20, "broken_small": 22, "contamination": 21}
    masks = bottle.test.masks()
    assert masks.any(axis=(1, 2)).tolist() == bottle.test.labels.tolist() and 0.04 < masks.mean() < 0.07
    by_folder = datasets.load(str(REAL / "mvtec_ad"), "bottle", image_size=64)
    assert by_folder.test.sha256 == bottle.test.sha256 and by_folder.dataset == "mvtec_ad"


@pytest.mark.skipif(not (REAL / "mtd/MT_Free").is_dir(), reason="UAD_DATA has no mtd")
def test_real_mtd() -> None:
    tiles = real("mtd", "all", size=32)
    counts = {kind: tiles.test.defects.count(kind) for kind in set(tiles.test.defects)}
    assert counts == {"good": 190, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103}
    assert len(tiles.train) + counts["good"] == 952 and len(set(tiles.test.original_sizes)) > 100
    empty = [
        tiles.test.paths[i]
        for i in np.flatnonzero(tiles.test.labels)
        if not tiles.test.source.mask(i).any()
    ]  # fmt: skip
    assert len(empty) == 4 and all("MT_Uneven" in path for path in empty)


@pytest.mark.skipif(not (REAL / "fashion_mnist/FashionMNIST").is_dir(), reason="UAD_DATA has no fashion_mnist")
def test_real_fashion_mnist() -> None:
    dress = real("fashion_mnist", "3", size=32)
    assert (len(dress.train), len(dress.test), dress.test.labels.sum()) == (6000, 10000, 9000)
    assert dress.test.images(range(0, 10000, 500)).shape == (20, 3, 32, 32)
    assert {"t-shirt", "ankle_boot", "good"} <= set(dress.test.defects)


@pytest.mark.skipif(ELPV is None, reason="the package elpv-dataset is not installed")
def test_real_elpv() -> None:
    cells = real("elpv", "mono")
    assert (len(cells.train), len(cells.test), cells.test.labels.sum()) == (470, 604, 486)
    assert cells.test.images([0, 1]).shape == (2, 3, 64, 64)
