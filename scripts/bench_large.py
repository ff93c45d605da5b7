"""What judging a large model takes: seconds a cell, and memory beyond the models and the largest module in float64.

Two texts of so many characters, load strategies against `dtype_at_load` in bfloat16 (report 1), or bfloat16 against
float32. Runs through the code of the command line, without W&B. A cell of tiny_llama is judged before, so that imports,
the device's start and kernels that are loaded are counted nowhere (`--cold`: they are). Prints one JSON line a cell:

- kind, cause, closed_bitwise: of its verdict; tokens: of the texts.
- judge_s: the seconds that judging took, by the clock; 0 where another cell's verdict was taken over.
- beyond_gib: most memory that torch had allocated on the GPU while it was judged, less what the sweep held before: both
  models and the outputs of the reference that are kept. beyond_module_gib: less the largest module in float64 as well.
- peak_gib: of the process so far.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from scripts.bench_sweep import quietly, request, rounded
from sweeper.records.store import Store
from sweeper.sweep.runner import Runner

WORDS = (
    "gravity",
    "light",
    "water",
    "stone",
    "river",
    "mountain",
    "energy",
    "time",
    "space",
    "matter",
    "field",
    "wave",
)
CASES = {
    "load_strategy": ["+grid=load_strategy", "load_strategy=dtype_at_load,cast_after_load,cast_before_move,device_map"],
    "report_1": ["dtype=bfloat16", "load_strategy=cast_after_load", "reference={load_strategy:dtype_at_load}"],
    "report_1_auto": ["dtype=bfloat16", "load_strategy=auto_then_cast", "reference={load_strategy:dtype_at_load}"],
    "dtype": ["dtype=bfloat16", "reference={dtype:float32}"],
}
GIB = 2**30


class Judged:
    """Seconds and memory of each `Runner._judge`, in their order."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, float]] = {}

    def watch(self) -> None:
        judge = Runner._judge

        def judged(runner: Runner, planned: Any, *arguments: Any) -> Any:
            on_gpu = torch.cuda.is_initialized()
            held = torch.cuda.memory_allocated() if on_gpu else 0
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            try:
                return judge(runner, planned, *arguments)
            finally:
                figures = {"judge_s": time.perf_counter() - start}
                if on_gpu:
                    models = [loaded.model for loaded in runner._held._pool._models.values()]
                    beyond = torch.cuda.max_memory_allocated() - held
                    largest = max((float64_bytes(module) for model in models for module in model.modules()), default=0)
                    figures |= {"beyond_gib": beyond / GIB, "beyond_module_gib": (beyond - largest) / GIB}
                self.cells[planned.cell_id] = figures

        Runner._judge = judged  # type: ignore[method-assign]


def float64_bytes(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False)) * 8


def write_texts(path: Path, characters: int) -> None:
    """Two texts of as many characters, and one a little shorter, so that there are pads."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=characters))[:characters] for _ in range(2)]
    path.write_text("\n".join([texts[0], texts[1][: characters - 3] + "end"]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny_llama", help="a name of conf/checkpoint")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--characters", type=int, default=512, help="of each of the two texts")
    parser.add_argument("--weights", default="resident", choices=["resident", "streamed", "spread"])
    parser.add_argument("--cold", action="store_true", help="judge no other cell before")
    parser.add_argument("--cap-gib", type=float, help="of the GPU's memory, that the process may take")
    asked = parser.parse_args()
    if asked.cap_gib is not None:
        share = asked.cap_gib * GIB / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
    judged = Judged()
    with tempfile.TemporaryDirectory(prefix="bench-large-") as name:
        folder = Path(name)
        write_texts(folder / "texts.txt", asked.characters)
        common = [f"device={asked.device}", "inputs=file", f"inputs.file={folder / 'texts.txt'}", "wandb.mode=disabled"]
        if not asked.cold:
            quietly(request(*CASES["dtype"], *common, "checkpoint=tiny_llama", f"output_dir={folder / 'first'}"))
        judged.watch()
        common += [f"checkpoint={asked.checkpoint}", f"weights={asked.weights}"]
        for case in asked.case:
            failed = quietly(request(*CASES[case], *common, f"output_dir={folder / case}", "sweep=bench"))
            (sweep_folder,) = (folder / case).glob("*/bench")
            for record in Store(sweep_folder).records():
                said = {"case": case, "axes": record.axes.get("load_strategy"), "status": record.status.value}
                said |= {"reason": record.reason} if record.reason else {}
                verdict = record.verdict
                if verdict is not None:
                    said |= {"kind": verdict.kind, "why": verdict.reason, "same_as": verdict.same_as}
                    cause = verdict.cause
                    said |= {"cause": cause and (cause.what or cause.error), "closed": cause and cause.closed_bitwise}
                said |= {"tokens": [text.tokens for text in record.texts]}
                print(json.dumps(said | rounded(judged.cells.get(record.cell_id, {}))), flush=True)
            peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_initialized() else None
            print(json.dumps({"case": case, "exit": failed, "peak_gib": peak}), flush=True)


if __name__ == "__main__":
    main()
