"""What the command line costs before anything runs: medians of whole processes, and what they import.

`--help`; the plan of `grid=everything` as it is, and with its rules left out, so that every combination is a cell.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLAN = ["+grid=everything", "dry_run=true"]
COMMANDS = (["--help"], PLAN, [*PLAN, "hydra.sweeper.exclude=[]"])


def seconds(arguments: list[str], repeats: int) -> tuple[float, str]:
    """Median wall time of the process, and the line that a plan counts its cells in."""
    command = [sys.executable, "-m", "sweeper", *arguments]
    times = []
    output = ""
    for _ in range(repeats + 1):  # the first one fills the page cache
        start = time.perf_counter()
        output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), next((line for line in output.splitlines() if "cells to run" in line), "")


def imports_torch() -> bool:
    """Whether `--help` imports torch, as Python's own list of imports says."""
    command = [sys.executable, "-X", "importtime", "-m", "sweeper", "--help"]
    log = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr
    return any(line.rsplit("|", 1)[-1].strip() == "torch" for line in log.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps({"python": platform.python_version(), "cores": os.cpu_count()}))
    for command in COMMANDS:
        wall_s, plan = seconds(command, arguments.repeats)
        print(json.dumps({"command": " ".join(command), "wall_s": round(wall_s, 3), "plan": plan}))
    print(json.dumps({"help_imports_torch": imports_torch()}))


if __name__ == "__main__":
    main()
