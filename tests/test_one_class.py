"""One class is normal: MNIST, Fashion-MNIST, CIFAR-10 and trees of images, in miniature."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from uad_core import datasets
from uad_core.datasets.base import resize_image

sys.path.append(str(Path(__file__).parent))

from miniatures import draw, message, miniature, noise  # noqa: E402


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
