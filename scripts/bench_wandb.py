"""What a cell costs in W&B, offline: the run with its curves, summary and table, from the call to its return.

    python scripts/bench_wandb.py [--cells 400] [--layers 30]

Prints the wall time a cell (median and 90th percentile), this process's own CPU time, and its memory: after the first
hundred cells, and the most it had afterwards (what waits for the garbage collector makes it swing by some MB).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from sweeper.config import WandbSettings
from sweeper.sinks.wandb.writer import About, RunWriter
from tests.sinks.records import modules, record

PARTS = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj", "mlp"),
)
WARM_UP = 5
FIRST = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--layers", type=int, default=30)
    asked = parser.parse_args()
    rows = modules(asked.layers, PARTS)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            os.environ[name] = f"{scratch}/{name.lower()}"
        about = About(
            folder=Path(scratch), grid="bench", sweep="bench", cell_ids=(), varying=("dtype",), command="sweeper"
        )
        writer = RunWriter(WandbSettings(), about)
        wall_ms, cpu_ms, memory_mb = [], [], []
        for number in range(WARM_UP + asked.cells):
            one = record(f"c{number}")
            wall, cpu = time.perf_counter(), time.process_time()
            assert writer.cell(one, lambda: rows)
            wall_ms.append(1e3 * (time.perf_counter() - wall))
            cpu_ms.append(1e3 * (time.process_time() - cpu))
            memory_mb.append(psutil.Process().memory_info().rss / 1e6)
        writer.close()
    wall_ms, cpu_ms = wall_ms[WARM_UP:], cpu_ms[WARM_UP:]
    tenth = statistics.quantiles(wall_ms, n=10)
    print(f"{len(rows)} modules, {asked.cells} cells, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    middle = statistics.median(wall_ms)
    print(f"wall: median {middle:.1f} ms, 10% below {tenth[0]:.1f} ms, 10% above {tenth[-1]:.1f} ms")
    print(f"own CPU time: median {statistics.median(cpu_ms):.1f} ms")
    if asked.cells > FIRST:
        last = len(memory_mb) - 1
        print(
            f"memory: {memory_mb[FIRST]:.1f} MB after {FIRST} cells, at most {max(memory_mb[FIRST:]):.1f} up to {last}"
        )
    return int(writer.failed)


if __name__ == "__main__":
    sys.exit(main())
