"""`python -m scripts.bench_scaling`: what a cell costs the process that plans, claims and stores, without running any.

Records are those of a real cell, with its texts repeated. Prints one JSON line; docs/scaling.md multiplies.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench_sweep import quietly, request
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.records.cell import CellRecord
from sweeper.records.store import Store
from sweeper.sweep.claims import Claims

TINY = ("checkpoint=tiny_llama", "device=cpu", "verdict=false", "wandb.mode=disabled")
GRID = (*TINY, "dtype=float32,bfloat16,float16,float64", "attention=eager,sdpa", "reference={dtype:float32}")


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def planning(cells: int) -> dict[str, float]:
    """Microseconds a cell that planning takes, of a grid of at least so many cells."""
    asked: list[Any] = []
    lengths = f"inputs.max_tokens=range(1,{1 + -(-cells // 8)})"
    composed = seconds(lambda: asked.append(request(*GRID, lengths)))
    known = environment("cpu")
    planned = seconds(lambda: asked.append(make_plan(asked[0], known)))
    return {"plan_us_a_cell": 1e6 * (composed + planned) / len(asked[1].cells)}


def with_texts(record: CellRecord, texts: int) -> CellRecord:
    rows = [record.texts[number % len(record.texts)].model_copy(update={"text": number}) for number in range(texts)]
    return record.model_copy(update={"texts": tuple(rows)})


def storing(folder: Path, texts: int, repeats: int) -> dict[str, float]:
    """A cell of so many texts: its bytes, and how long it takes to write and to read."""
    quietly(request(*TINY, f"output_dir={folder}", "sweep=s"))
    store = Store(folder / "single" / "s")
    (small,) = store.records()
    modules = store.modules(small.cell_id)
    record = with_texts(small, texts)
    cells = [record.model_copy(update={"cell_id": f"{number:012x}"}) for number in range(repeats)]
    wrote = [seconds(partial(store.write, cell, modules)) for cell in cells]
    read = [seconds(partial(store.read, cell.cell_id)) for cell in cells]
    files = list((store.cells_folder / cells[0].cell_id).iterdir())
    gc.collect()
    tracemalloc.start()
    kept = store.read(cells[0].cell_id)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept is not None
    return {
        "write_ms": 1e3 * statistics.median(wrote),
        "read_ms": 1e3 * statistics.median(read),
        "disk_bytes": sum(path.stat().st_size for path in files),
        "files": len(files),
        "memory_bytes": held,
    }


def claiming(folder: Path, units: int) -> dict[str, float]:
    """The cost of claiming a unit, noting ten cells, and letting go of it."""

    def work() -> None:
        claims = Claims(folder)
        for number in range(units):
            claim = claims.claim(f"{number:012x}")
            assert claim is not None
            for cell in range(10):
                claim.running(str(cell))
                claim.ran(str(cell))
            claims.release(f"{number:012x}")
        claims.close(finished=True)

    return {"claim_ms_a_unit_of_10": 1e3 * seconds(work) / units}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=8000, help="of the plan")
    parser.add_argument("--texts", type=int, nargs="+", default=[8, 10_000], help="of a stored cell")
    parser.add_argument("--repeats", type=int, default=5, help="stored cells")
    asked = parser.parse_args()
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), **planning(asked.cells)}
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as name:
        for texts in asked.texts:
            result[f"{texts} texts"] = storing(Path(name) / str(texts), texts, asked.repeats)
        result |= claiming(Path(name), 50)
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
