"""A real browser, Debian's Chromium, for tests of the pages that people open."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
MISSING = [
    name
    for name in ("playwright", "axe_playwright_python")
    if importlib.util.find_spec(name) is None
]
MISSING += [] if CHROMIUM.exists() else [str(CHROMIUM)]

if "playwright" not in MISSING:
    from playwright.sync_api import sync_playwright


@contextmanager
def opened_browser() -> Iterator[Any]:
    """Chromium without a window; where it is missing, the test is skipped, or fails in CI."""
    if MISSING:
        reason = (
            f"no browser: {', '.join(MISSING)} missing; install Debian chromium and the extra dev"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A file in a new window of the browser, with what happened while it was open."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, **options: Any) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(path.as_uri())

    def open_all(self) -> None:
        """Open every part that is folded."""
        self.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")

    def tags(self) -> set[str]:
        """The names of all elements of the page."""
        found = "[...document.querySelectorAll('*')].map(one => one.tagName.toLowerCase())"
        return set(self.page.evaluate(found))

    def text(self) -> str:
        """What a reader sees with every part open."""
        self.open_all()
        return str(self.page.inner_text("body"))
