"""Makes the pictures of the page in `docs/images`: `python -m scripts.page_pictures`. Needs Chromium and Playwright.

It runs `+grid=padding_vs_packing` on a tiny checkpoint first, or takes the folder of a sweep that is there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeper.records.sweep import Sweep
from sweeper.reports.figures import browser, browser_flags
from sweeper.reports.page.page import page

IMAGES = Path(__file__).parent.parent / "docs" / "images"
GRID = ("+grid=padding_vs_packing", "checkpoint=tiny_qwen3", "wandb.mode=disabled", "latency_repeats=0")
DESK = {"viewport": {"width": 1280, "height": 860}}
WINDOWS: dict[str, dict[str, Any]] = {
    "page": DESK,
    "page_dark": DESK | {"color_scheme": "dark"},
    "page_phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
SECTIONS = {"page_grid": "grid", "page_inside": "inside", "page_layers": "layers"}


def main() -> None:
    """Makes them, and prints where they are."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sweep", metavar="SWEEP_FOLDER", type=Path, nargs="?", help="a sweep that is there")
    parser.add_argument("--to", metavar="DIR", type=Path, default=IMAGES, help="where the pictures go")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.html"
        path.write_text(page(Sweep.read(asked.sweep or swept(Path(folder)))), encoding="utf-8")
        asked.to.mkdir(parents=True, exist_ok=True)
        for picture in pictures(path, asked.to):
            print(picture)


def swept(folder: Path) -> Path:
    """The folder of a sweep that is run now."""
    command = [sys.executable, "-m", "sweeper", *GRID, f"output_dir={folder}"]
    subprocess.run(command, check=False, stdout=sys.stderr)  # what it finds makes it exit with 1
    (found,) = folder.glob("padding_vs_packing/*/sweep.json")
    return found.parent


def pictures(path: Path, folder: Path) -> Iterator[Path]:
    """Pictures of the first screen in each window, and of some sections."""
    from playwright.sync_api import sync_playwright

    flags = [flag for flag in browser_flags() if flag != "--headless"]
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser(), args=flags)
        for name, options in WINDOWS.items():
            window = started.new_page(**options)
            window.goto(path.as_uri())
            window.wait_for_selector("html[data-ready] #tokens svg", state="attached")
            window.screenshot(path=folder / f"{name}.png")
            yield folder / f"{name}.png"
            for picture, section in SECTIONS.items() if name == "page" else ():
                window.locator(f"section[aria-labelledby={section}-heading]").screenshot(path=folder / f"{picture}.png")
                yield folder / f"{picture}.png"
            window.close()
        started.close()


if __name__ == "__main__":
    main()
