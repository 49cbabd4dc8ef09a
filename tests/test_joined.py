"""Several sets as one: the same images, masks and labels in order, and no trace of where they came from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from tiny import damage, image_set, weave

from uad_core.datasets import ArraySource
from uad_core.datasets.joined import joined


def pair() -> list:
    """A set of 64 pixels and a subset of one of 96 pixels, both handed out with 64."""
    large = image_set(*damage(weave(4, seed=1, size=96)), category="cloth", image_size=64).subset([3, 1])
    return [image_set(*damage(weave(3)), category="weave"), large]


def test_a_joined_set_hands_out_what_its_parts_do() -> None:
    parts = pair()
    whole = pickle.loads(pickle.dumps(joined(parts)))  # as a worker of a DataLoader gets it
    assert len(whole) == 5 and whole.has_masks
    assert torch.equal(whole.images(), torch.cat([part.images() for part in parts]))
    assert np.array_equal(whole.masks(), np.concatenate([part.masks() for part in parts]))
    assert whole.labels.tolist() == [True] * 5 and whole.defects == ["patch"] * 5
    assert whole.original_sizes == [(64, 64)] * 3 + [(96, 96)] * 2


def test_a_joined_set_depends_on_its_images_and_their_order_alone() -> None:
    images = weave(5)

    def cut(at: int, *names: str):
        parts = zip((images[:at], images[at:]), names, strict=True)
        return joined([image_set(part, category=name) for part, name in parts])

    one, other = cut(2, "weave", "cloth"), cut(4, "a", "b")
    assert one.sha256 == other.sha256 and one.paths == other.paths
    assert repr(one) == repr(other) and "weave" not in repr(one)
    assert joined(pair()).sha256 != joined(pair()[::-1]).sha256


class Counting(ArraySource):
    """Arrays that remember whose content was asked for."""

    def __init__(self, images) -> None:
        super().__init__(images)
        self.asked: list[int] = []

    def content(self, i: int) -> tuple[bytes, bytes]:
        self.asked.append(int(i))
        return super().content(i)


def test_joined_sets_and_subsets_hash_no_image_again() -> None:
    source = Counting(weave(4))
    images = image_set(weave(4), source=source)
    first = images.subset([2, 0])
    assert first.sha256 and source.asked == [2, 0]
    whole = joined([images.subset([0, 1]), first])
    assert whole.sha256 and joined([whole, images.subset([2])]).sha256 and source.asked == [2, 0, 1]
    assert images.sha256 == image_set(weave(4)).sha256 and source.asked == [2, 0, 1, 3]


def test_one_set_stays_itself_and_other_sizes_are_refused() -> None:
    parts = pair()
    assert joined(parts[:1]) is parts[0]
    with pytest.raises(ValueError, match="different image sizes"):
        joined([parts[0], image_set(weave(2, size=32))])
