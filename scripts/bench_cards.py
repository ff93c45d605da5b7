"""`python -m scripts.bench_cards`: 64 cells on one card, on all, and 16 of them once more with a worker killed.

Each is a command of its own, start included; `python scripts/compare_sweeps.py` then compares the folders that are
named. The checkpoint is prepared before, kernels and Python's byte code are compiled, as pip leaves them. Prints one
JSON line. To try it on a CPU:
`--checkpoint tiny_llama --device cpu --texts 8 --batch 4 --tokens 32`.

- --cards: those that the second and third sweep take; the first takes card 0.
- --at-once: the first sweep runs while the others do, on a machine with a card more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

WORDS = ("gravity", "light", "water", "stone", "river", "energy", "time", "space", "field", "heat", "kettle", "ferry")
KILL_AFTER = 4  # cells


def words_of(asked: argparse.Namespace, folder: Path) -> list[str]:
    """The command without what it varies; texts are longer than they are cut to."""
    draw = random.Random(0)
    path = folder / "texts.txt"
    lines = (" ".join(draw.choices(WORDS, k=2 * asked.tokens)) for _ in range(asked.texts))
    path.write_text("\n".join(lines) + "\n")
    return [
        *(
            f"checkpoint={asked.checkpoint}",
            f"device={asked.device}",
            "verdict=false",
            "wandb.mode=disabled",
            "sweep=s",
        ),
        *("inputs=file", f"inputs.file={path}", f"inputs.batch_size={asked.batch}"),
        *("dtype=bfloat16,float16", f"attention=eager,sdpa,sdpa_math,{asked.fourth}"),
        *("layout=padded_left,padded_right", "reference={dtype:float32,attention:eager}"),
    ]


def started(words: list[str], folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sweeper", *words, f"output_dir={folder}"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(command, env={**environment, **variables}, stdout=subprocess.DEVNULL)


def seconds(words: list[str], folder: Path, **variables: str) -> float:
    start = time.perf_counter()
    if code := started(words, folder, **variables).wait():
        raise SystemExit(f"exit code {code}: {words}")
    return time.perf_counter() - start


def cells(folder: Path) -> list[Path]:
    return list((folder / "single" / "s" / "cells").glob("[!.]*"))


def with_a_kill(words: list[str], folder: Path, **variables: str) -> None:
    """Kills a worker once some cells are finished."""
    process = started(words, folder, **variables)
    while len(cells(folder)) < KILL_AFTER and process.poll() is None:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    next(child for child in children if "spawn_main" in " ".join(child.cmdline())).kill()
    if code := process.wait():
        raise SystemExit(f"exit code {code} after a worker was killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="qwen3_0_6b_geometry")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--fourth", default="flash_attention_2", help="attention backend beside eager, sdpa, sdpa_math")
    parser.add_argument("--texts", type=int, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--cards", help="comma-separated, as in CUDA_VISIBLE_DEVICES; default: all")
    parser.add_argument("--at-once", action="store_true", help="the sweep on card 0 runs beside the others")
    parser.add_argument("--output", type=Path, default=None, help="where the three sweeps go; else a temporary folder")
    asked = parser.parse_args()
    folder = asked.output or Path(tempfile.mkdtemp(prefix="bench-cards-"))
    folder.mkdir(parents=True, exist_ok=True)
    words = words_of(asked, folder)
    lengths = [str(asked.tokens - less) for less in range(4)]
    many = ["launcher=gpus", *(["launcher.workers=2"] if asked.device == "cpu" else [])]
    seconds([*words, f"inputs.max_tokens={asked.tokens // 2}"], folder / "warm", CUDA_VISIBLE_DEVICES="0")
    every = [*words, f"inputs.max_tokens={','.join(lengths)}"]
    visible = {} if asked.cards is None else {"CUDA_VISIBLE_DEVICES": asked.cards}
    with ThreadPoolExecutor(1) as beside:
        alone = beside.submit(seconds, every, folder / "one", CUDA_VISIBLE_DEVICES="0")
        if not asked.at_once:
            alone.result()
        all_cards = seconds([*every, *many], folder / "all", **visible)
        with_a_kill([*words, f"inputs.max_tokens={lengths[0]}", *many], folder / "killed", **visible)
        one = alone.result()
    found = {"one_s": one, "all_s": all_cards, "times_as_fast": one / all_cards}
    counts = {name: len(cells(folder / name)) for name in ("one", "all", "killed")}
    rounded = {key: float(f"{value:.4g}") for key, value in found.items()}
    print(json.dumps({"checkpoint": asked.checkpoint, **rounded, "cells": counts, "folder": str(folder)}))


if __name__ == "__main__":
    main()
