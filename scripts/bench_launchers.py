"""`python -m scripts.bench_launchers`: what a launcher costs beside one process, with the smallest cells.

Each launcher runs the same grid of tiny_llama as a command of its own, start included, into an empty folder, on the
same cores (`taskset -c 0,1 python -m scripts.bench_launchers`). Prints a JSON line a launcher: seconds by the clock, a
cell's share of them, and the ratio to the first launcher. Every cell's output has to be the same in all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRID = (
    *("checkpoint=tiny_llama", "device=cpu", "wandb.mode=disabled", "verdict=false", "sweep=s"),
    *(
        "dtype=float32,bfloat16,float16,float64",
        "attention=eager,sdpa",
        "layout=padded_left,padded_right,packed,single",
    ),
    "reference={dtype:float32,attention:eager}",
)
A_LENGTH = 32  # cells for each value of inputs.max_tokens
COMMANDS = {
    "inline": [],
    "process": ["isolation=process"],
    "gpus": ["launcher=gpus", "launcher.workers=2"],
    "ray": ["launcher=ray"],
    "slurm": ["launcher=slurm", "launcher.cluster=local", "launcher.jobs=2"],
}


def swept(launcher: str, cells: int, folder: Path) -> float:
    """Seconds by the clock."""
    lengths = f"inputs.max_tokens=range(4,{4 + -(-cells // A_LENGTH)})"
    words = [*GRID, lengths, f"output_dir={folder}", *COMMANDS[launcher]]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweeper", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def outputs(folder: Path) -> dict[str, str]:
    """Cell id -> status and figures of the output."""
    found = {}
    for path in (folder / "single" / "s" / "cells").glob("*/cell.json"):
        record = json.loads(path.read_text())
        found[path.parent.name] = json.dumps([record["status"], record["output"], record["texts"]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2016, help=f"a multiple of {A_LENGTH}")
    parser.add_argument("--launchers", nargs="+", default=["inline", "ray"], choices=COMMANDS)
    asked = parser.parse_args()
    first: tuple[float, dict[str, str]] | None = None
    with tempfile.TemporaryDirectory(prefix="bench-launchers-") as name:
        subprocess.run(  # prepares the checkpoint and compiles what measures
            [sys.executable, "-m", "sweeper", *GRID[:5], f"output_dir={name}/first"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for launcher in asked.launchers:
            folder = Path(name) / launcher
            seconds = swept(launcher, asked.cells, folder)
            made = outputs(folder)
            first = first or (seconds, made)
            if made != first[1]:
                raise SystemExit(f"{launcher}: other outputs than {asked.launchers[0]}")
            took = {"seconds": seconds, "ms_a_cell": 1e3 * seconds / len(made), "ratio": seconds / first[0]}
            rounded = {key: float(f"{value:.4g}") for key, value in took.items()}
            cores = len(os.sched_getaffinity(0))
            print(json.dumps({"launcher": launcher, "cells": len(made), "cores": cores, **rounded}), flush=True)


if __name__ == "__main__":
    main()
