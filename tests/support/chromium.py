"""A headless Chromium for the tests of web pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

# None means the Chromium that playwright installed.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def opened(address: str, width: int = 1280) -> Iterator:
    """Open a page in a window of that width; fail if it writes to the console, raises an error or requests a file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url == address or said.append(f"asks for {request.url}"))
        page.goto(address)
        yield page
        browser.close()
    assert said == []
