"""What comparing costs over the bare forwards on the CPU: the default checkpoint, 8 x 128 tokens (`--shape`).

As `bench_compare.py`, for a pair in bfloat16 and for float32 against bfloat16; one JSON line each. Rounds of all modes
alternate; the medians of their ratios are printed, because a shared machine's speed drifts. Where others use its cores,
torch's threads wait for each other most of the time: take `--threads 1 --cpu-time` there. The command line sets
`GOMP_SPINCOUNT=5000` before it loads torch; this script does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml  # type: ignore[import-untyped]
from torch import nn

from scripts.bench_compare import InTurns, a_batch, forwards, naive
from sweeper.checkpoints import prepare
from sweeper.config import WheelCheckpoint

CHECKPOINT = Path(__file__).parent.parent / "conf" / "checkpoint" / "smollm2_135m_instruct.yaml"


def milliseconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return (clock() - start) * 1e3


def bench(
    models: tuple[nn.Module, nn.Module],
    rounds: int,
    clock: Callable[[], float],
    shape: tuple[int, int],
    with_naive: bool,
) -> dict[str, Any]:
    batch = a_batch(*shape, "cpu")
    together = InTurns(models, "cpu")
    times: dict[str, list[float]] = {"bare": [], **({"naive": []} if with_naive else {}), "ours": []}
    with torch.inference_mode():
        with together.hooked(batch) as run:  # compiles the measures
            run()
        for _ in range(rounds):
            times["bare"].append(milliseconds(lambda: forwards(models, batch), clock))
            if with_naive:
                times["naive"].append(milliseconds(lambda: naive(models, batch), clock))
            with together.hooked(batch) as run:
                times["ours"].append(milliseconds(run, clock))
    result: dict[str, Any] = {f"{name}_ms": round(statistics.median(values), 1) for name, values in times.items()}
    for name in list(times)[1:]:
        ratios = [mine / bare for mine, bare in zip(times[name], times["bare"], strict=True)]
        result[f"{name}_over_bare"] = round(statistics.median(ratios), 3)
    return {"outputs": len(together.accumulators), **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", type=int, nargs=2, default=[8, 128], metavar=("TEXTS", "TOKENS"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of all cores together instead of the clock's")
    parser.add_argument("--no-naive", action="store_true", help="it takes most of the time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    local = prepare(WheelCheckpoint(**yaml.safe_load(CHECKPOINT.read_text())), device="cpu", say=print)
    load = transformers.AutoModelForCausalLM.from_pretrained
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}))
    for first, second in (("bfloat16", "bfloat16"), ("float32", "bfloat16")):
        reference = load(local.folder, dtype=getattr(torch, first)).eval()
        candidate = load(local.folder, dtype=getattr(torch, second)).eval()
        if first == second:  # the cast of report 1: the rotary table is rounded
            candidate.to(getattr(torch, second))
        figures = bench((reference, candidate), arguments.rounds, clock, arguments.shape, not arguments.no_naive)
        print(json.dumps({"reference": first, "candidate": second, **figures}), flush=True)


if __name__ == "__main__":
    main()
