"""The report: one file that needs nothing, says what was found, and trusts no name."""

from __future__ import annotations

import re
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tiny import LITE0, damage, fitted, image_set, shared_networks, uad, weave, write, write_category

from uad_core import cost, methods, report, webpage
from uad_core.methods.base import Detector
from uad_core.report import Seen, checks, page

LOADS = {"src", "href", "srcset", "action", "data", "poster"}


class Looked(HTMLParser):
    """What a browser would make of a page: its tags, its text, and whatever it would load or run."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.loaded = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in LOADS or name.startswith("on")]

    def handle_data(self, data) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@lru_cache
def judge() -> Detector:
    """The fitted detector with a threshold that parts normal from damaged images; not to be changed."""
    with TemporaryDirectory() as folder, shared_networks():
        model = methods.load(methods.save(fitted(), Path(folder) / "model"), "cpu")
    model.threshold.fill_(15.0)
    return model


def seen(normal: int = 12, bad: int = 4, **changes) -> Seen:
    """Normal and damaged images as the fitted detector judges them."""
    images = np.concatenate([weave(normal, 7), damage(weave(max(1, bad), 8))[0][:bad]])
    pictures = image_set(images)
    maps, scores = fitted().predict(pictures, progress=False)
    facts = {"names": [f"{i:03d}.png" for i in range(len(images))], "ms_per_image": 12.0}
    return Seen(pictures, maps, scores, **{**facts, **changes})


def without_threshold(tmp_path: Path) -> Detector:
    model = methods.load(methods.save(fitted(), tmp_path / "model"), "cpu")
    model.threshold.fill_(float("nan"))
    return model


@pytest.fixture(scope="module")
def found() -> Looked:
    return Looked(page(judge(), seen()))


def test_a_page_loads_and_runs_nothing(found) -> None:
    text = page(judge(), seen())
    assert all(value.startswith("data:image/") for value in found.loaded) and len(found.loaded) > 20
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert "@import" not in text and not re.search(r"url\(|https?://", text)
    assert len(text.encode()) < 5e6 and "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_a_page_says_what_was_found(found) -> None:
    assert "16 images: 4 anomalous, 12 normal." in found.text
    assert f"threshold {judge().threshold.item():.3g}" in found.text and "12 ms per image" in found.text
    for heading in ("Highest scores", "Lowest scores", "Scores", "Level by level", "What to check"):
        assert heading in found.words
    assert fitted().backbone.weights_sha256 in found.text and LITE0 in found.text
    order = re.findall(r"(\d{3}\.png) (?:anomalous|normal)", found.text)[: report.HIGHEST]
    assert set(order[:4]) == {"012.png", "013.png", "014.png", "015.png"}


def test_names_are_text_and_nothing_else() -> None:
    evil = '<script>alert("1")</script>&amp;\'"><img src=x onerror=alert(1)>.png'
    judged = seen(3, 1)
    judged = Seen(judged.pictures, judged.maps, judged.scores, [evil] * 4, unreadable={evil: f"{evil} is empty"},
                  facts={"fitted on": evil})  # fmt: skip
    looked = Looked(page(judge(), judged))
    assert "script" not in looked.tags and all(value.startswith("data:image/") for value in looked.loaded)
    assert looked.text.count(evil) >= 7
    assert "1 file could not be read" in looked.text and "5 images: 1 anomalous, 3 normal, 1 unreadable." in looked.text


def test_many_large_images_stay_below_five_megabytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 1500, 1500, 3), np.uint8)
    assert len(webpage.picture(noise[0] / 255, "")) < 5e6 / (2 * (report.HIGHEST + report.LOWEST) + 4)
    few, rows = seen(3, 1), np.zeros(10_000, int)
    pictures = image_set(np.broadcast_to(weave(1), (10_000, 64, 64, 3)), paths=[str(i) for i in range(10_000)])
    many = Seen(pictures, few.maps[rows], few.scores[rows], ["n" * 200 + ".png"] * 10_000)
    assert len(page(judge(), many).encode()) < 5e6


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_and_none(tmp_path, count: int) -> None:
    few = seen(2, 0)
    part = Seen(few.pictures.subset(range(count)), few.maps[:count], few.scores[:count], few.names[:count])
    for model in (judge(), without_threshold(tmp_path)):
        looked = Looked(page(model, part))
        assert ("No images were judged." in looked.text) == (count == 0)
        assert ("What to check" in looked.words) == bool(list(report.checks(model, part)))
        assert ("All images, by score" in looked.text) == (count > 0) and "nan" not in looked.text.lower().split()


def test_without_a_threshold_there_is_no_verdict(tmp_path) -> None:
    looked = Looked(page(without_threshold(tmp_path), seen(2, 1)))
    assert "3 images: 3 no verdict." in looked.text and "No verdict: 4 held-out normal images" in looked.text
    assert "3 images without a verdict (blue)" in looked.text and "called normal" not in looked.text


def test_where_the_truth_is_known_errors_are_counted() -> None:
    labels = np.array([False] * 11 + [True] + [True] * 4)
    text = Looked(page(judge(), seen(labels=labels))).text
    assert "False alarms: 0 of 11 normal test images. Missed: 1 of 5 anomalous ones." in text


def test_a_changed_line_is_noticed() -> None:
    plain, judged = " ".join(checks(judge(), seen(12, 0))), seen(12, 0)
    darker = Seen(judged.pictures, judged.maps, judged.scores * 2, judged.names)
    assert "100% score above" in " ".join(checks(judge(), darker)) and "100% score above" not in plain


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e-9, 1e9], [-3.0, 5.0], [0.1, 0.2, 0.9]])
def test_any_scores_have_a_histogram(values: list[float]) -> None:
    drawing = webpage.histogram({"normal": np.array(values)}, values[0], "score")
    assert "nan" not in drawing and "inf" not in drawing and drawing.count("<path") == 3


def test_predict_leaves_a_page_beside_the_table(tmp_path) -> None:
    methods.save(fitted(), tmp_path / "run/model")
    write(tmp_path / "photos/<b>", weave(2, 7))
    (tmp_path / "photos/broken.png").write_bytes(b"")
    ran = uad("predict", tmp_path / "run", tmp_path / "photos", "--out", tmp_path / "out", "--report")
    assert ran.status == 2
    looked = Looked((tmp_path / "out/report.html").read_text("utf-8"))
    assert "<b>/000.png" in looked.text and "broken.png is empty (0 bytes)" in looked.text
    assert "b" not in looked.tags and "model sha256" in looked.text


@pytest.mark.slow
@pytest.mark.parametrize("joint", [True, False])
def test_run_leaves_a_page_beside_each_model(tmp_path, monkeypatch, joint: bool) -> None:
    monkeypatch.setattr(cost, "ROUNDS", 1)
    for seed, name in enumerate(("alpha", "beta")):
        write_category(tmp_path / "things" / name, seed, train=16)
    options = ["--profile", "smoke", "--backbone", LITE0, "--image-size", 64, "--device", "cpu", "--set", "bank=50"]
    which = "--joint" if joint else "--no-joint"
    out = tmp_path / "out"
    ran = uad("run", "knn", *options, "--dataset", tmp_path / "things", "--out", out, which, "--report")
    assert ran.status == 0
    pages = sorted(file.relative_to(out).as_posix() for file in out.rglob("report.html"))
    assert pages == (["report.html"] if joint else ["alpha/report.html", "beta/report.html"])
    text = Looked((out / pages[0]).read_text("utf-8")).text
    assert f"{12 if joint else 6} images" in text and "labelled anomalous" in text
    assert ("alpha/test/good/000.png" in text) == joint
