"""`python -m scripts.bench_spread CHECKPOINT [WEIGHTS ...]`: report 1 on a model that lies on several GPUs.

`auto_then_cast` against `dtype_at_load` in bfloat16, judged and explained, once with each of WEIGHTS (`spread`,
`resident`, `streamed`). Prints one JSON line each: seconds with making the checkpoint, the verdict, its cause, what
`explain` says, the most memory that each GPU had allocated; and, of two or more, whether the records are the same but
for their cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from typing import Any

import torch

from scripts.bench_sweep import request
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.sweep.runner import Runner

REPORT_1 = (
    *("inputs=report_1", "layout=single", "positions=implicit", "use_cache=true", "attention=sdpa", "dtype=bfloat16"),
    *("load_strategy=auto_then_cast", "reference={load_strategy:dtype_at_load}", "wandb.mode=disabled"),
)


def ran(checkpoint: str, device: str, weights: Any, folder: str) -> tuple[dict[str, Any], str]:
    """What is printed, and the record without what no two runs have in common."""
    start = time.perf_counter()
    plan = make_plan(
        request(f"checkpoint={checkpoint}", f"device={device}", *REPORT_1, f"output_dir={folder}"), environment(device)
    )
    runner = Runner(plan.environment, weights=weights, latency_repeats=0, say=lambda line: print(line, file=sys.stderr))
    (planned,) = plan.cells
    record, modules = runner.run(planned)
    seconds = time.perf_counter() - start
    assert record.verdict is not None, record.reason or record.unjudged
    said = {"checkpoint": checkpoint, "weights": weights, "seconds": round(seconds, 1), "kind": record.verdict.kind}
    cause = record.verdict.cause
    said |= {"cause": cause and cause.what, "closed": cause and cause.closed_bitwise}
    start = time.perf_counter()
    said["explain"] = runner.comparison(planned, record.verdict.texts).explain().cause
    said["explain_seconds"] = round(time.perf_counter() - start, 1)
    gpus = range(torch.cuda.device_count()) if device == "cuda" else ()
    said["peak_gib"] = [round(torch.cuda.max_memory_allocated(gpu) / 2**30, 2) for gpu in gpus]
    bits = record.model_dump(exclude={"cost", "attempt", "started_at"}), modules
    return said, repr(bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a name of conf/checkpoint")
    parser.add_argument("weights", nargs="*", default=["spread"], metavar="WEIGHTS")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--cap-gib", type=float, help="of each GPU's memory, that the process may take")
    asked = parser.parse_args()
    if asked.cap_gib is not None:
        for gpu in range(torch.cuda.device_count()):
            total = torch.cuda.get_device_properties(gpu).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, asked.cap_gib * 2**30 / total), gpu)
    found = []
    for weights in asked.weights:
        with tempfile.TemporaryDirectory(prefix="bench-spread-") as folder:
            said, bits = ran(asked.checkpoint, asked.device, weights, folder)
        print(json.dumps(said), flush=True)
        found.append(bits)
    if found[1:]:
        print(json.dumps({"records": "the same" if len(set(found)) == 1 else "not the same"}))


if __name__ == "__main__":
    main()
