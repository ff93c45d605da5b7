"""`python -m scripts.bench_explain`: what `explain` takes where the models are loaded, for both reports' causes.

Prints a JSON line a case: the verdict, the cause, the seconds of the verdict (loading and a first run included) and of
`explain` behind it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time

from scripts.bench_sweep import request
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.sweep.runner import Runner

CASES = {
    "report_1": (
        *("inputs=report_1", "layout=single", "positions=implicit", "use_cache=true", "attention=sdpa"),
        *("dtype=bfloat16", "load_strategy=cast_after_load", "reference={load_strategy:dtype_at_load}"),
    ),
    "packing": (
        *("inputs=report_2", "layout=packed", "use_cache=true", "attention=sdpa", "dtype=bfloat16"),
        "reference={layout:padded_left,use_cache:false}",
    ),
}


def explained(checkpoint: str, device: str, case: str, folder: str) -> dict[str, object]:
    common = [f"checkpoint={checkpoint}", f"device={device}", "wandb.mode=disabled", f"output_dir={folder}"]
    plan = make_plan(request(*common, *CASES[case]), environment(device))
    runner = Runner(plan.environment, say=lambda line: print(line, file=sys.stderr))
    texts = (0,) if case == "report_1" else (0, 1)
    start = time.perf_counter()
    comparison = runner.comparison(plan.cells[0], texts)
    kind = comparison.verdict.kind
    judged = time.perf_counter()
    cause = comparison.explain().cause
    ended = time.perf_counter()
    seconds = {"verdict_s": round(judged - start, 2), "explain_s": round(ended - judged, 2)}
    return {"checkpoint": checkpoint, "case": case, "kind": kind, "cause": cause, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="qwen3_0_6b_geometry", help="a name of conf/checkpoint")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    asked = parser.parse_args()
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="bench-explain-") as folder:
            print(json.dumps(explained(asked.checkpoint, asked.device, case, folder)), flush=True)


if __name__ == "__main__":
    main()
