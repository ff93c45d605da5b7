"""What verdicts cost: `+grid=bf16_vs_fp32` with them over the same without, in one process.

Both sweeps run through the code of the command line, each in a fresh folder, without W&B. One cell is judged before,
elsewhere, so that imports, the device's start and compiled kernels are counted nowhere. Prints one JSON line.

- without_s, with_s: the two sweeps, by the clock and in CPU time of this process, and judging_s the part that judging
  took; medians where there are several rounds.
- ratio: of the CPU times (of the clock with `--clock`, as for a GPU: there the host waits); the median of all rounds,
  which are in `ratios`.
- judged: cells that were judged by runs of their own; same_as: those that took another cell's verdict; identical: those
  in which nothing differs.
- forwards: calls of a model while cells were judged; float64: those of the replay.
- kinds: how many cells of each verdict.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from scripts.bench_sweep import quietly, request, rounded
from sweeper.records.store import Store
from sweeper.records.verdict import VerdictRecord
from sweeper.sweep.runner import Runner


class Judging:
    """Counts the time and the forwards of `Runner._judge`, since `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.seconds = {"clock": 0.0, "cpu": 0.0}
        self.forwards: Counter[str] = Counter()

    def watch(self) -> None:
        from sweeper.comparator import side

        judge, run = Runner._judge, side.ModelOutputs.end

        def judged(runner: Runner, *arguments: Any) -> Any:
            clock, cpu = time.perf_counter(), time.process_time()
            try:
                return judge(runner, *arguments)
            finally:
                self.seconds["clock"] += time.perf_counter() - clock
                self.seconds["cpu"] += time.process_time() - cpu

        def ended(outputs: Any, *arguments: Any) -> Any:
            self.forwards["float64" if torch.get_default_dtype() is torch.float64 else "native"] += 1
            return run(outputs, *arguments)

        Runner._judge = judged  # type: ignore[method-assign]
        side.ModelOutputs.end = ended  # type: ignore[method-assign]


def sweep(overrides: list[str], folder: Path) -> tuple[dict[str, float], list[VerdictRecord | None]]:
    """Seconds of one sweep, and its verdicts."""
    asked = request(*overrides, f"output_dir={folder}", "sweep=bench")
    clock, cpu = time.perf_counter(), time.process_time()
    if quietly(asked):
        raise SystemExit("a cell or a sink failed: see above")
    seconds = {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
    (sweep_folder,) = folder.glob("*/bench")
    return seconds, [record.verdict for record in Store(sweep_folder).records() if record.output is not None]


class Round(NamedTuple):
    """Seconds of the sweep without verdicts, of that with them and of its judging, by the clock and of CPU time."""

    without: dict[str, float]
    judged: dict[str, float]
    judging: dict[str, float]
    verdicts: list[VerdictRecord | None]


def in_turns(grid: list[str], verdict: str, folder: Path, judging: Judging) -> Round:
    without, _ = sweep([*grid, "verdict=false"], folder / "without")
    judging.begin()
    judged, verdicts = sweep([*grid, f"verdict={verdict}"], folder / "with")
    return Round(without, judged, judging.seconds, verdicts)


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {kind: median(one[kind] for one in rounds) for kind in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny_llama", help="a name of conf/checkpoint")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--grid", default="bf16_vs_fp32")
    parser.add_argument("--verdict", default="true", help="of the sweep with verdicts: true or full")
    parser.add_argument("--rounds", type=int, default=1, help="of both sweeps, in turns")
    parser.add_argument("--clock", action="store_true", help="take the ratio of the times by the clock")
    parser.add_argument("--override", nargs="*", default=[], help="of both sweeps' configuration: latency_repeats=0")
    asked = parser.parse_args()
    common = [f"checkpoint={asked.checkpoint}", f"device={asked.device}", "wandb.mode=disabled", *asked.override]
    grid = [f"+grid={asked.grid}", *common]
    with tempfile.TemporaryDirectory(prefix="bench-verdict-") as name:
        folder = Path(name)
        warm = ["dtype=bfloat16", "reference={dtype:float32}", f"verdict={asked.verdict}"]
        sweep([*common, *warm], folder / "first")
        judging = Judging()
        judging.watch()
        rounds = [in_turns(grid, asked.verdict, folder / str(number), judging) for number in range(asked.rounds)]
    of = "clock" if asked.clock else "cpu"
    ratios = [one.judged[of] / one.without[of] for one in rounds]
    verdicts = rounds[-1].verdicts
    kinds = Counter(str(verdict.kind) for verdict in verdicts if verdict is not None)
    same = sum(getattr(verdict, "same_as", None) is not None for verdict in verdicts)
    result = {
        "checkpoint": asked.checkpoint,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and asked.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "verdict": asked.verdict,
        "without_s": medians([one.without for one in rounds]),
        "with_s": medians([one.judged for one in rounds]),
        "ratio": median(ratios),
        "ratios": ratios,
        "judging_s": medians([one.judging for one in rounds]),
        "forwards": dict(judging.forwards),
        "judged": len(verdicts) - kinds["identical"] - same,
        "same_as": same,
        "identical": kinds["identical"],
        "kinds": dict(kinds),
    }
    print(json.dumps(rounded(result)), flush=True)


if __name__ == "__main__":
    main()
