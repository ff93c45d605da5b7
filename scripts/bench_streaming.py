"""A model larger than the GPU: `weights=streamed` under a cap on memory, against the ordinary way without one.

A reference in float32 and a candidate of every load strategy in bfloat16, on random token ids. In one process:

- resident: all cells, no cap; twice, and the second time is measured
- resident under the cap: every cell has to end in out-of-memory
- streamed under the cap: every figure of every record has to be what it was, bit for bit

Prints one JSON line. On the CPU nothing is capped, and no peak is known. Exit code 1 where a record differs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import yaml  # type: ignore[import-untyped]

from sweeper.checkpoints import prepare
from sweeper.config import (
    Attention,
    Cell,
    Dtype,
    Inputs,
    Layout,
    LoadStrategy,
    Numerics,
    Positions,
    SeededCheckpoint,
    Weights,
)
from sweeper.environment import environment
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.sweep.runner import Runner

CHECKPOINTS = Path(__file__).parent.parent / "conf" / "checkpoint"
Result = tuple[CellRecord, tuple[ModuleRecord, ...]]


def planned_cells(checkpoint: SeededCheckpoint, inputs: Inputs, device: Literal["cpu", "cuda"]) -> list[PlannedCell]:
    reference = Cell(
        checkpoint=checkpoint,
        load_strategy=LoadStrategy.DTYPE_AT_LOAD,
        dtype=Dtype.FLOAT32,
        attention=Attention.EAGER,
        layout=Layout.PADDED_LEFT,
        positions=Positions.EXPLICIT,
        use_cache=False,
        numerics=Numerics(name="default"),
        inputs=inputs,
        device=device,
    )
    changes = [{"dtype": Dtype.BFLOAT16, "load_strategy": strategy} for strategy in LoadStrategy]
    return [
        PlannedCell(
            cell=reference.model_copy(update=change),
            cell_id=str(index),
            reference=reference,
            reference_id="reference",
            unsupported=None,
        )
        for index, change in enumerate(changes)
    ]


def run(cells: list[PlannedCell], weights: Weights) -> tuple[list[Result], dict[str, Any]]:
    """All cells with a runner of their own, and what they took."""
    device = cells[0].cell.device
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    runner = Runner(environment(device), latency_repeats=3, verdict=False, weights=weights, say=_to_stderr)
    results = [runner.run(planned) for planned in cells]
    costs = [record.cost for record, _ in results if record.cost is not None]
    figures: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 2)}
    if device == "cuda":
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        figures["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
    if costs:
        figures["forward_ms"] = round(statistics.median(cost.latency_ms for cost in costs), 1)
    del runner
    gc.collect()
    return results, figures


def comparable(result: Result) -> dict[str, Any]:
    """All that must not depend on where the weights are."""
    record, modules = result
    repeatable = record.cost is not None and record.cost.repeatable
    kept = record.model_dump(mode="json", exclude={"cost", "attempt", "started_at"})
    return {**kept, "repeatable": repeatable, "modules": [module.model_dump_json() for module in modules]}


def differing(first: list[Result], second: list[Result]) -> list[str]:
    """Names of the fields that differ, a cell each."""
    pairs = [(comparable(one), comparable(other)) for one, other in zip(first, second, strict=True)]
    return [f"{one['cell_id']}.{field}" for one, other in pairs for field in one if one[field] != other[field]]


def reasons(results: list[Result]) -> list[str]:
    """Why each cell did not end well, where it did not."""
    return [f"{record.status}: {record.reason[:70]}" for record, _ in results if record.reason]


def bench(cells: list[PlannedCell], cap_gib: float) -> dict[str, Any]:
    on_gpu = cells[0].cell.device == "cuda"
    run(cells, "resident")  # warms up
    expected, resident = run(cells, "resident")
    figures: dict[str, Any] = {"resident": resident}
    if on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(cap_gib * 2**30 / total)
        capped, _ = run(cells, "resident")
        figures["cap_gib"] = cap_gib
        figures["resident_under_the_cap"] = reasons(capped)
    given, figures["streamed"] = run(cells, "streamed")
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(1.0)
    figures["modules_compared"] = [len(modules) for _, modules in expected]
    figures["all_ok"] = all(record.status is Status.OK for record, _ in [*expected, *given])
    figures["reasons"] = reasons([*expected, *given])
    figures["differing"] = differing(expected, given)
    return figures


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="qwen3_0_6b_geometry", help="a seeded one of conf/checkpoint")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--shape", default="4x16", help="texts x tokens a text, in batches of two texts")
    parser.add_argument("--cap-gib", type=float, default=1.05, help="less than the file has")
    arguments = parser.parse_args()
    texts, length = (int(number) for number in arguments.shape.split("x"))
    checkpoint = SeededCheckpoint(**yaml.safe_load((CHECKPOINTS / f"{arguments.checkpoint}.yaml").read_text()))
    token_ids_ST = torch.randint(1, 256, (texts, length), generator=torch.Generator().manual_seed(0)).tolist()
    inputs = Inputs(name="random", token_ids=token_ids_ST, batch_size=2)
    folder = prepare(checkpoint, device=arguments.device, say=_to_stderr).folder
    gc.collect()
    figures = {
        "checkpoint": checkpoint.name,
        "shape": arguments.shape,
        "file_gib": round(sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**30, 3),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **bench(planned_cells(checkpoint, inputs, arguments.device), arguments.cap_gib),
    }
    print(json.dumps(figures), flush=True)
    return 0 if figures["all_ok"] and not figures["differing"] else 1


if __name__ == "__main__":
    sys.exit(main())
