"""Makes the pictures of the page in `docs/images`: `python -m scripts.page_pictures`.

Needs Chromium and the extra `test`.

It runs `+grid=padding_vs_packing` on a tiny checkpoint first, or takes the folder of a sweep that is there.
"""

from __future__ import annotations

import contextlib
import io
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
    to = asked.to.resolve()
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        text = page(Sweep.read(asked.sweep)) if asked.sweep else page_of_a_run(folder)
        path = Path(folder) / "index.html"
        path.write_text(text, encoding="utf-8")
        for picture in pictures(path, to):
            print(picture)


def page_of_a_run(folder: str) -> str:
    """The page of a sweep that is run now; its paths are those that a user sees."""
    with contextlib.chdir(folder):
        subprocess.run([sys.executable, "-m", "sweeper", *GRID], check=True, stdout=sys.stderr)
        (found,) = Path("outputs").glob("padding_vs_packing/*/sweep.json")
        return page(Sweep.read(found.parent))


def pictures(path: Path, folder: Path) -> Iterator[Path]:
    """Pictures of the first screen in each window, and of some sections."""
    from playwright.sync_api import sync_playwright

    flags = [flag for flag in browser_flags() if flag != "--headless"]
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser(), args=flags)
        for name, options in WINDOWS.items():
            window = started.new_page(**options)
            window.goto(path.as_uri())
            window.wait_for_selector("#tokens svg", state="attached")
            yield small(window.screenshot(), folder / f"{name}.png")
            for picture, section in SECTIONS.items() if name == "page" else ():
                place = window.locator(f"section[aria-labelledby={section}-heading]")
                yield small(place.screenshot(), folder / f"{picture}.png")
            window.close()
        started.close()


def small(png: bytes, path: Path) -> Path:
    """Writes a picture with a palette, a third of the bytes."""
    from PIL import Image

    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    main()
