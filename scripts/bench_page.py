"""What the page costs: its bytes, the time to make it, and how soon a browser shows it and is done with it.

`python -m scripts.bench_page`: sweeps of 50 and of 5,000 cells of 30 layers. Needs Chromium and the extra `test`.
"""

from __future__ import annotations

import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from sweeper.records.sweep import Sweep
from sweeper.reports.figures import browser, browser_flags
from sweeper.reports.page.page import page
from tests.sinks.sweeps import enlarged, large

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    """Prints a line a sweep."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[50, 5000])
    for cells in parser.parse_args().cells:
        with tempfile.TemporaryDirectory() as folder:
            few = large(Path(folder) / "sweep", min(cells, 70))
            measure(few if cells <= len(few.records) else enlarged(few, cells), Path(folder) / "index.html")


def measure(sweep: Sweep, path: Path) -> None:
    """Prints what the page of one sweep costs."""
    page(sweep)  # the template and the library are read once a process
    start = time.process_time()
    text = page(sweep)
    made_s = time.process_time() - start
    path.write_text(text, encoding="utf-8")
    painted_s, loaded_s, drawn_s = opened(path)
    print(
        f"{len(sweep.records)} cells: {path.stat().st_size / 1e6:.2f} MB, made in {made_s:.2f} s of CPU time; "
        f"in a browser seen after {painted_s:.2f} s, usable after {loaded_s:.2f} s, all figures after {drawn_s:.2f} s"
    )


def opened(path: Path) -> tuple[float, float, float]:
    """When something is seen, when the page is loaded, and when all is drawn, in seconds."""
    from playwright.sync_api import sync_playwright

    flags = [flag for flag in browser_flags() if flag != "--headless"]
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser(), args=flags)
        window = started.new_page(viewport={"width": 1280, "height": 900})
        window.goto(path.as_uri())
        window.wait_for_selector("#tokens svg", state="attached")
        drawn_ms = window.evaluate("performance.now()")
        painted_ms, loaded_ms = window.evaluate(PAINTED), window.evaluate(LOADED)
        started.close()
    return painted_ms / 1000, loaded_ms / 1000, drawn_ms / 1000


if __name__ == "__main__":
    main()
