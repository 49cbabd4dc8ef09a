"""The explorer and the drawing page, used by a reader in a browser."""

from __future__ import annotations

import numpy as np
import pytest
from test_explorer import INDEX, TOOL, by_the_package

pytestmark = pytest.mark.book

CATEGORY = max(INDEX["categories"], key=lambda name: sum(name in of["categories"] for of in INDEX["methods"]))
METHODS = [entry["name"] for entry in INDEX["methods"] if CATEGORY in entry["categories"]]
MOST = 12_000_000  # bytes that the drawing page loads: engine and detectors
WIDTHS = (1400, 820, 390)  # pixels: a screen, a tablet, a telephone
TEXT = "return document.querySelector(`[data-measure='${arguments[0]}']`).textContent"


@pytest.fixture
def explorer(browser, built):
    """The explorer, opened from disk."""
    browser.open(built / "book" / "explorer.html")
    browser.wait("document.getElementById('explorer').dataset.ready")
    yield browser
    # Chromium refuses a page from disk the theme's fonts of symbols, on every page of the book; and the theme says that
    # a new reader has chosen neither light nor dark.
    harmless = (".woff2", "invalid theme mode")
    assert [words for words in browser.complaints() if not any(known in words for known in harmless)] == []


def choose(browser, label: str, value: str) -> None:
    """Choose an entry of a list by its label, as a reader does."""
    from selenium.webdriver.support.ui import Select

    path = f"//label[starts-with(normalize-space(.), '{label}')]/select"
    Select(browser.driver.find_element("xpath", path)).select_by_value(value)


def shows(browser, method: str, levels: list[int]) -> None:
    """The table has the package's numbers."""
    wanted = by_the_package(CATEGORY, method, levels)
    for name, key in (("Image AUROC", "image_auroc"), ("Pixel AUROC", "pixel_auroc"), ("Pixel AP", "pixel_ap")):
        assert browser.js(TEXT, name) == f"{wanted[key]:.3f}", name
    assert browser.js(TEXT, "False alarms").startswith(f"{wanted['false_alarms']} of")
    assert browser.js(TEXT, "Missed defects").startswith(f"{wanted['missed']} of")


@pytest.mark.parametrize("method", METHODS)
def test_levels_are_switched_and_the_numbers_follow(explorer, method):
    choose(explorer, "Method", method)
    count = len(TOOL["read"](f"{CATEGORY}-{method}")["levels"])
    explorer.wait(f"document.querySelector('.live-table caption').textContent.startsWith('{method.upper()},')")
    shows(explorer, method, list(range(count)))
    for level in range(1, count):
        explorer.find(f".live-switches input[value='{level}']").click()
    shows(explorer, method, [0])
    explorer.find(".live-switches input[value='0']").click()  # the last one stays on
    shows(explorer, method, [0])


def test_the_threshold_is_moved_with_the_keyboard(explorer):
    from selenium.webdriver import Keys

    slider = explorer.find("#live-threshold")
    before = explorer.js("return document.querySelector('.live-threshold[d]').getAttribute('d')")
    slider.send_keys(Keys.END)
    assert explorer.js(TEXT, "False alarms").startswith("0 of")
    everything = explorer.js(TEXT, "Missed defects").split()
    assert everything[0] == everything[2]
    slider.send_keys(Keys.HOME)
    assert explorer.js(TEXT, "Missed defects").startswith("0 of")
    assert explorer.js("return document.querySelector('.live-threshold[d]').getAttribute('d')") != before
    explorer.find(".live-slider button").click()
    assert explorer.js("return document.querySelector('.live-threshold[d]').getAttribute('d')") == before


def test_an_image_is_chosen_and_its_overlay_drawn(explorer):
    from selenium.webdriver import Keys

    pixels = "return document.querySelector('.live-stage canvas').toDataURL()"
    before, verdict = explorer.js(pixels), explorer.find(".live-verdict").text
    explorer.find(".live-strip input:checked").send_keys(Keys.ARROW_RIGHT)
    assert explorer.js(pixels) != before and explorer.find(".live-verdict").text != verdict


@pytest.fixture
def drawing(browser, site):
    """The drawing page, from a server, with its detectors loaded."""
    browser.open(f"{site}/book/draw.html")
    state = browser.wait("(({ready, failed}) => ready || failed)(document.getElementById('draw').dataset)")
    if browser.js("return document.getElementById('draw').dataset.failed"):
        words = browser.find("#draw [role=status]").text
        if "without network" in words:
            pytest.skip("the book was built without onnxruntime-web")
        pytest.fail(words)
    assert state
    yield browser


def looked(browser) -> dict:
    """What the detectors found last: {method: (score, map)}."""
    last = browser.js("return Object.fromEntries(Object.entries(uadDraw.last()).map("
                      "([k, v]) => [k, [v.score, Array.from(v.map), v.size]]))")  # fmt: skip
    return {name: (score, np.reshape(values, size)) for name, (score, values, size) in last.items()}


def paint(browser, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Paint a stroke between two places, in shares of the sheet's width and height from its centre, and wait."""
    from selenium.webdriver import ActionChains

    sheet = browser.find(".live-sheet")
    side, count = sheet.size["width"], browser.js("return Number(document.getElementById('draw').dataset.looked)")
    (x, y), (u, v) = ((round(a * side), round(b * side)) for a, b in (start, end))
    ActionChains(browser.driver).move_to_element_with_offset(sheet, x, y).click_and_hold().move_by_offset(
        u - x, v - y).release().perform()  # fmt: skip
    browser.wait(f"Number(document.getElementById('draw').dataset.looked) > {count}")


def test_a_scratch_raises_the_map_where_it_was_painted(drawing):
    before = looked(drawing)
    paint(drawing, (-0.15, 0.1), (0.1, 0.15))
    for method, (score, map_) in looked(drawing).items():
        normal_score, normal = before[method]
        rise = map_ - normal
        h, w = rise.shape
        near = np.zeros((h, w), bool)
        near[int(0.52 * h) : int(0.73 * h), int(0.27 * w) : int(0.68 * w)] = True
        assert near.flat[rise.argmax()], method
        assert rise[near].mean() > 5 * abs(rise[~near].mean()), method
        assert score > normal_score
        verdict = drawing.find(f"[data-method='{method}'] [class^=live-called]").text
        assert verdict == "anomalous", method
    drawing.find(".live-buttons button").click()  # undo
    drawing.wait("Number(document.getElementById('draw').dataset.looked) > 2")
    for method, (score, _) in looked(drawing).items():
        assert score == pytest.approx(before[method][0], rel=1e-5)


def test_the_browser_has_the_scores_of_onnxruntime(drawing):
    """The same file and the same image give the same score in Python."""
    import base64
    import gzip
    import io
    from pathlib import Path

    from PIL import Image

    onnxruntime = pytest.importorskip("onnxruntime")
    folder = Path(TOOL["DATA"]).parent / "models"
    about = TOOL["read"]("models", folder)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(about["images"][0]))))
    images = np.divide(image.transpose(2, 0, 1)[None], np.float32(255))
    for method, (score, map_) in looked(drawing).items():
        session = onnxruntime.InferenceSession(gzip.decompress((folder / f"{method}.onnx.gz").read_bytes()))
        maps, scores = session.run(["maps", "scores"], {"images": images})
        assert score == pytest.approx(scores[0], rel=1e-2), method
        assert np.median(np.abs(maps[0] - map_)) < 1e-2 * maps.max(), method


def test_from_disk_the_drawing_page_says_how_to_serve_it(browser, built):
    browser.open(built / "book" / "draw.html")
    browser.wait("document.getElementById('draw').dataset.failed")
    words = browser.find("#draw [role=status]").text
    assert f'python3 -m http.server --directory "{built}" 8000' in words and "http://localhost:8000" in words
    browser.complaints()  # the refusal itself


def test_engine_and_detectors_are_small(built):
    folder = built / "_static" / "live"
    assert sum(path.stat().st_size for part in ("engine", "models") for path in folder.glob(f"{part}/*")) < MOST


@pytest.mark.parametrize("page", ["explorer", "draw"])
def test_a_live_page_fits_every_screen(browser, site, page):
    for width in WIDTHS:
        browser.open(f"{site}/book/{page}.html", width)
        browser.wait("document.querySelector('.live canvas')")
        assert browser.js("return document.documentElement.scrollWidth") <= width, (page, width)
    browser.complaints()
