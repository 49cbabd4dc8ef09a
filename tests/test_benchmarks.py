"""Every inspection benchmark on a miniature tree that copies its layout, and on real data where there are any."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uad_core import datasets
from uad_core.datasets import sources
from uad_core.datasets.base import resize_mask

sys.path.append(str(Path(__file__).parent))

from miniatures import draw, draw_mask, make_mvtec, message, miniature  # noqa: E402

REAL = Path(os.environ.get("UAD_DATA", "/nonexistent"))


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


# Published masks number the defects; who rearranges the images often, but not always, writes 255 instead.
VALUES = {"numbers": (1, 3), "white": (255, 255), "either": (2, 255)}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dataset", ["visa", "pcb_bank"])
def test_a_rearranged_category_is_read_whatever_its_masks_hold(tmp_path: Path, dataset: str, values: str) -> None:
    folder = tmp_path / dataset / "pcb1"
    make_mvtec(folder, ".JPG", bad="bad", mask=".png")
    for i, value in enumerate(VALUES[values]):
        draw_mask(folder / f"ground_truth/bad/{i:03d}.png", value)
    found = miniature(dataset, "pcb1", tmp_path)
    assert found.test.defects == ["bad", "bad", "good", "good"] and len(found.train) == 3
    expected = resize_mask(np.pad(np.ones((2, 3), bool), ((1, 4), (2, 4))), (8, 8)).numpy()
    np.testing.assert_array_equal(found.test.masks(), [expected, expected, expected & False, expected & False])


def shrink(monkeypatch: pytest.MonkeyPatch, dataset: str, *names: str) -> None:
    """Let a benchmark have only these categories, each with the counts of a miniature, and no address."""
    tree = sources._objects_tree(dataset, dict.fromkeys(names, (3, 2, 2)), {})
    small = replace(sources.find(dataset), pieces=(tree,), categories=names, by_hand="ask the authors")
    info = replace(datasets.INFOS[dataset], categories=names, counts=dict.fromkeys(names, datasets.Counts(3, 4, 2)))
    monkeypatch.setitem(sources.BENCHMARKS, dataset, small)
    monkeypatch.setitem(datasets.INFOS, dataset, info)


@pytest.mark.parametrize(
    ("dataset", "place"),
    [("visa", "visa"), ("visa", "VisA_pytorch/1cls"), ("pcb_bank", "pcb_bank"), ("pcb_bank", "PCB-Bank-1cls/1cls")],
)
def test_rearranged_categories_that_a_person_put_there_are_fetched_without_network(
    tmp_path: Path, monkeypatch, dataset: str, place: str
) -> None:
    shrink(monkeypatch, dataset, "pcb1", "pcb2")
    for name in ("pcb1", "pcb2"):
        make_mvtec(tmp_path / place / name, ".JPG", bad="bad", mask=".png")
    for category in ("pcb1", None):
        assert datasets.fetch(dataset, category, tmp_path).is_relative_to(tmp_path / place)
    assert datasets.verify(dataset, "pcb2", tmp_path) == datasets.Counts(3, 4, 2)
    (tmp_path / place / "pcb1/train/good/000.JPG").unlink()
    assert "pcb1" in message(lambda: datasets.fetch(dataset, None, tmp_path))
    shutil.rmtree(tmp_path / place / "pcb2/ground_truth")
    said = message(lambda: datasets.fetch(dataset, "pcb2", tmp_path))
    there = tmp_path / place / "pcb2/ground_truth"
    assert said == f"{dataset}/pcb2 has no masks, but they are published: add {there}"


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


@pytest.mark.skipif(datasets.elpv.installed() is None, reason="the package elpv-dataset is not installed")
def test_real_elpv() -> None:
    cells = real("elpv", "mono")
    assert (len(cells.train), len(cells.test), cells.test.labels.sum()) == (470, 604, 486)
    assert cells.test.images([0, 1]).shape == (2, 3, 64, 64)
