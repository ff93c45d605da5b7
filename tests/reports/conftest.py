"""A browser without a window for the tests of the page; they are skipped, and say why, where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sweeper.reports.figures import VARIABLE, browser, browser_flags


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Playwright's browser, started from the Chromium or Chrome that is installed."""
    program = browser()
    if program is None:
        pytest.skip(f"no Chromium or Chrome on this machine: install it, or name it in {VARIABLE}")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: it is in the extra test"
    )
    with playwright.sync_playwright() as driver:
        flags = [flag for flag in browser_flags() if flag != "--headless"]
        started = driver.chromium.launch(executable_path=program, args=flags)
        yield started
        started.close()
