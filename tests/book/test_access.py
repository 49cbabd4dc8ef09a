"""Every page can be read by everybody: axe finds nothing serious, and no formula hides its end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))

import npm  # noqa: E402

pytestmark = pytest.mark.book

AXE = "axe-core@4.10.2"
FILES = {"axe.min.js": "b511cd9dec01c76f4b2ad1723b66b6db37d4c2eb4ed199076e1829d9ee7b75e3"}
RULES = {"light": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "dark": ["color-contrast"]}  # the rest has no colour
DRESS = """
document.documentElement.dataset.theme = arguments[0];
const still = document.createElement("style");  // colours on their way from one theme to the other are neither's
still.textContent = "* { transition: none !important }";
document.head.append(still);
"""
RUN = """
const done = arguments[arguments.length - 1];
axe.run(document, {runOnly: arguments[0], resultTypes: ["violations"]}).then((found) =>
  done(found.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) =>
    `${v.id}: ${v.help}: ${v.nodes.length} times, such as ${v.nodes[0].target} ${v.nodes[0].html.slice(0, 150)}`)));
"""
WIDTHS = (1400, 820, 390)  # pixels: a screen, a tablet, a telephone
TYPESET = "!!(window.MathJax && MathJax.startup && MathJax.startup.promise)"
OVERFLOWING = """
const done = arguments[arguments.length - 1], page = document.documentElement;
MathJax.startup.promise.then(() => {
  const found = [];
  for (const formula of document.querySelectorAll('.bd-article mjx-container[display="true"]')) {
    const box = formula.closest("div.math"), name = box && box.id || formula.textContent.slice(0, 40);
    const hidden = formula.scrollWidth - formula.clientWidth;
    if (hidden > 1) found.push(`${name}: ${hidden} pixels lie outside`);
    const number = box && box.querySelector(".eqno"), inside = formula.querySelector("mjx-math");
    if (!number) continue;
    const [a, b] = [number.getBoundingClientRect(), inside.getBoundingClientRect()];
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4)
      found.push(`${name}: its number lies on it`);
  }
  if (page.scrollWidth > arguments[0]) found.push(`the page is ${page.scrollWidth} wide`);
  done(found);
});
"""


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core."""
    try:
        [path] = npm.fetch(AXE, FILES, ROOT / "build" / "npm")
    except npm.Missing as missing:
        pytest.skip(str(missing))
    return path.read_text("utf-8")


def addresses(built: Path) -> list[str]:
    """The pages that people read, by their path."""
    return [path.relative_to(built).as_posix() for path in sorted(built.rglob("*.html"))
            if path.parts[len(built.parts)] in ("book", "notebooks")]


@pytest.mark.parametrize("theme", RULES)
def test_axe_finds_nothing_serious(browser, site, built, axe, theme):
    found = {}
    for name in addresses(built):
        browser.open(f"{site}/{name}")
        browser.js(DRESS, theme)
        browser.js(axe)
        if complaints := browser.driver.execute_async_script(RUN, RULES[theme]):
            found[name] = complaints
    assert not found


@pytest.mark.parametrize("width", WIDTHS)
def test_formulas_and_pages_are_no_wider_than_the_screen(browser, site, built, width):
    found = {}
    for name in addresses(built):
        browser.open(f"{site}/{name}", width)
        if browser.js("return !document.querySelector('.math')"):
            if browser.js("return document.documentElement.scrollWidth") > width:
                found[name] = ["the page is wider"]
            continue
        browser.wait(TYPESET)
        if complaints := browser.driver.execute_async_script(OVERFLOWING, width):
            found[name] = complaints
    assert not found
