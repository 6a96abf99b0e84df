"""A server on loopback and a real Chromium for the whole session; every page is watched for what no page may do.

Nothing here is judged by the clock: server and browser wait as long as a busy machine needs. What pages cost is held to the
service's deadlines in processor time, in `tests/web/test_costs.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.web.service import running_service

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_SECONDS = 90
expect.set_options(timeout=1000 * _SECONDS)

NewPage = Callable[..., Page]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of the whole service."""
    with running_service(patient=True) as service:
        yield service.url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a network of its own."""
    if os.environ.get("MEMPLAN_NO_BROWSER") == "1":
        pytest.skip("MEMPLAN_NO_BROWSER=1")
    path = os.environ.get("MEMPLAN_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.fail(
            "no Chromium: install one (apt-get install chromium), name one by MEMPLAN_CHROMIUM=PATH, "
            "or leave these tests out by MEMPLAN_NO_BROWSER=1"
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser: Browser, server: str) -> Iterator[NewPage]:
    """Makes pages in contexts of their own; at the end none may have asked elsewhere or met an error."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def watch_console(message: ConsoleMessage) -> None:
        # A page that is refused with 422 is a part of the form; Chromium notes every status of 400 and above.
        if message.type in ("error", "warning") and "status of 422" not in message.text:
            faults.append(f"console {message.type}: {message.text}")

    def new(**options: object) -> Page:
        context = browser.new_context(base_url=server, **{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
        context.set_default_timeout(1000 * _SECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", watch_console)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("requestfailed", lambda request: _note_failure(request.url, str(request.failure), faults))
        page.on(
            "request",
            lambda request: (
                faults.append(f"asked {request.url}")
                if urlsplit(request.url).netloc != urlsplit(server).netloc
                else None
            ),
        )
        return page

    yield new
    for context in contexts:
        context.close()
    assert not faults


def _note_failure(url: str, failure: str, faults: list[str]) -> None:
    # A live answer that is overtaken by the next one is given up on purpose.
    if "ERR_ABORTED" not in failure:
        faults.append(f"failed {url}: {failure}")


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """One page, 1280 pixels wide, light."""
    return new_page()
