"""The page's figures as files: SVG and PNG, drawn by the page itself in a browser without a window."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sweeper.errors import ConfigError
from sweeper.records.sweep import Sweep
from sweeper.reports.page.page import page

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
VARIABLE = "SWEEPER_BROWSER"
FLAGS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1200,900"),
)
_TIMEOUT_S = 120


def browser() -> str | None:
    """The Chromium or Chrome that is there: what the variable names, else the first on the path."""
    named = os.environ.get(VARIABLE)
    return next((found for name in ([named] if named else BROWSERS) if (found := shutil.which(name))), None)


def browser_flags() -> list[str]:
    """The flags that it is started with; the sandbox of the browser does not work for root."""
    return [*FLAGS, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]


def write_figures(sweep: Sweep, folder: Path, cell_id: str = "") -> Iterator[Path]:
    """Writes `NAME.svg` and `NAME.png` of each figure of the page.

    Args:
        sweep: whose.
        folder: where to.
        cell_id: the cell whose maps are drawn; the worst one where it is empty.

    Raises:
        ConfigError: no browser is there, or it did not draw; the folder cannot be written to.
    """
    program = browser()
    if program is None:
        raise ConfigError(
            f"figures are drawn by Chromium or Chrome, and none was found: install it, or name it in {VARIABLE}; "
            "the page has a button for each figure too"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for made in _drawn(program, page(sweep, full=cell_id), cell_id):
            for kind, content in (("svg", made["svg"].encode()), ("png", base64.b64decode(made["png"].split(",")[1]))):
                path = folder / f"{made['name']}.{kind}"
                path.write_bytes(content)
                yield path
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None


def _drawn(program: str, text: str, cell_id: str) -> list[dict[str, str]]:
    """The figures as the page leaves them in its document."""
    with tempfile.TemporaryDirectory(prefix="sweeper-figures-", ignore_cleanup_errors=True) as name:
        path = Path(name) / "index.html"
        path.write_text(text, encoding="utf-8")
        command = [program, *browser_flags(), f"--user-data-dir={name}/profile", "--virtual-time-budget=20000"]
        command += ["--dump-dom", f"{path.as_uri()}#figures={cell_id}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{program} did not draw the figures within {_TIMEOUT_S} s") from None
    exported = re.search(r'<pre id="exported"[^>]*>(.*?)</pre>', done.stdout, re.DOTALL)
    if exported is None:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"{program} did not draw the figures{': ' * bool(last)}{last}")
    found: list[dict[str, str]] = json.loads(html.unescape(exported[1]))
    return found
