"""Chromium for tests: opened without a window, driven by selenium, and a small server for what it opens."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --hide-scrollbars")  # fmt: skip
PATIENCE = 60  # seconds


class Browser:
    """A browser as context: `open`, `js`, `wait`, `size`; `driver` is selenium's."""

    def __enter__(self) -> Browser:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install .[test]")
        from selenium.webdriver.chrome.service import Service

        program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
        if program is None or driver is None:
            pytest.skip("no browser: install chromium and chromedriver (Debian: apt-get install chromium-driver)")
        self.profile = TemporaryDirectory(ignore_cleanup_errors=True)
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS.split(), f"--user-data-dir={self.profile.name}"):
            options.add_argument(flag)
        options.binary_location = program
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_script_timeout(10 * PATIENCE)  # axe looks at ten thousand elements
        return self

    def __exit__(self, *_) -> None:
        self.driver.quit()
        self.profile.cleanup()

    def open(self, address: str | Path, width: int = 1400, height: int = 1000) -> None:
        """Open a page, from the net or from disk, at a size in pixels; below 500 as a telephone does."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.complaints()  # those of the page before: axe asks for style sheets that are nowhere
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)

    def js(self, code: str, *arguments):
        """Run the body of a function; returns what it returns, or what its promise becomes."""
        return self.driver.execute_script(code, *arguments)

    def wait(self, code: str):
        """Wait until an expression is true, and return it."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.1).until(lambda _: self.js(f"return {code}"))

    def find(self, selector: str):
        """The first element that a CSS selector names."""
        return self.driver.find_element("css selector", selector)

    def complaints(self) -> list[str]:
        """What the page wrote to its console as errors since it was opened or since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@contextmanager
def served(folder: Path, name: str) -> Iterator[str]:
    """Serve a folder as http://127.0.0.1:PORT/NAME on a free port; yields that address."""
    with TemporaryDirectory() as root:
        (Path(root) / name).symlink_to(folder, target_is_directory=True)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=root))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{name}"
        finally:
            server.shutdown()
            server.server_close()
