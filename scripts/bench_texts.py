"""Memory and time of a cell against the number of its texts: tiny_llama on a CPU, a whole fresh process a point.

A file of N short texts goes through `python -m sweeper` as any user's does: packed against padded, in batches of 32.
Prints one JSON line a point: the process's peak of resident memory, its times, and what it wrote. In float32, because
in bfloat16 the bare forwards of a CPU grow: oneDNN keeps code for the shapes that it has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SENTENCE = "the rain fell on an old harbour while seven quiet people counted ships and waited for morning"
CELL = [
    *("checkpoint=tiny_llama", "device=cpu", "dtype=float32", "inputs=file", "inputs.batch_size=32"),
    *("layout=packed", "positions=explicit", "reference={layout:padded_left}", "verdict=false", "wandb.mode=disabled"),
]


def write_texts(path: Path, texts: int) -> None:
    """1 to 12 words a text; the byte tokenizer makes a token of each byte."""
    draw, words = random.Random(0), SENTENCE.split()
    path.write_text("".join(" ".join(draw.choices(words, k=draw.randint(1, 12))) + "\n" for _ in range(texts)))


def point(texts: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_texts(path := Path(folder) / "texts.txt", texts)
        command = [sys.executable, "-m", "sweeper", *CELL, f"inputs.file={path}", f"output_dir={folder}"]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        (cell,) = Path(folder).rglob("cell.json")
        (page,) = Path(folder).rglob("index.html")
        record = json.loads(cell.read_text())
        return {
            "texts": texts,
            "tokens": sum(text["tokens"] for text in record["texts"]),
            "peak_rss_mib": usage.ru_maxrss // 1024,
            "wall_s": round(wall_s, 1),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
            "cell_json_mib": round(cell.stat().st_size / 2**20, 2),
            "page_mib": round(page.stat().st_size / 2**20, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 100, 1_000, 10_000])
    arguments = parser.parse_args()
    print(json.dumps({"python": platform.python_version(), "cores": os.cpu_count()}))
    point(1)  # prepares the checkpoint
    for texts in arguments.texts:
        print(json.dumps(point(texts)), flush=True)


if __name__ == "__main__":
    main()
