"""What a whole sweep costs over the loads and forwards that it cannot do without, and the naive script over it.

Runs `+grid=bf16_vs_fp32` in this process through the code of the command line: a fresh folder, no verdicts, no W&B.
Two cells are run before, elsewhere, in both dtypes, so that imports, the device's start and compiled kernels are not
counted anywhere.
Prints one JSON line for each kind of inputs, the default sentences, and long texts (`--texts` x `--tokens`): the round
whose ratio is the median of `--rounds`, and the `ratios` of all, in order. They come behind a `first` one, which alone
pays for what a process does once: a GPU loads each kernel as it is first launched.

- sweep_s: wall time of `sweeper.cli.run.carry_out`, from the plan to the page.
- phases_s: where it went: models (reading, casting, switching), compare (forwards with hooks, with the comparison),
  cost (bare forwards; `timed` is part of it), state (parameters and buffers), figures, tokens, steady (which outputs
  are overwritten); `machinery` is all that is left: planning, ids, layout, records, store, sinks, terminal, page. Its
  `cpu` time tells the same on a machine that others use too.
- unique_s: behind the sweep, in the same process: each load that the cells name, once, by its own `from_pretrained` and
  casts, and each cell's and reference's bare forwards over all batches, once (the faster of two). `reads` counts
  loads that differ in the last cast alone as one.
- naive_s: report 1's script, once a cell: tokenizer and both models loaded, hooks that keep every output of a batch,
  then `torch.allclose`, max and mean of |d| for every module. With `--naive-cells N` on N cells spread over the sweep,
  times their number.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from torch import Tensor, nn

from sweeper.checkpoints import prepare
from sweeper.cli.compose import arrange
from sweeper.cli.run import carry_out, config_folder
from sweeper.comparator.comparer import Comparer
from sweeper.comparator.forwards import read_texts, run_forwards, side_of
from sweeper.comparator.hooks import tensors_of
from sweeper.comparator.side import Side
from sweeper.config import Cell
from sweeper.devices import synchronize
from sweeper.inputs.texts import batches
from sweeper.models import loading
from sweeper.models.backends import implementation
from sweeper.models.loading import load
from sweeper.models.weights import WeightsKey
from sweeper.planning.grid import SweepRequest, expand
from sweeper.planning.unsupported import unsupported_reason
from sweeper.sweep import code_paths, cost, held, reference_runs, runner

PHASES: dict[str, list[tuple[Any, str]]] = {
    "models": [(loading.ModelPool, "get")],
    "compare": [
        (reference_runs, "keep_reference"),
        (reference_runs, "compare_kept"),
        (reference_runs, "compare_in_step"),
    ],
    "cost": [(runner, "run_bare")],
    "timed": [(cost, "_timed_ms")],
    "steady": [(code_paths, "steady_outputs")],
    "state": [(held, "compare_state")],
    "figures": [(Comparer, "finish")],
    "tokens": [(held, "read_texts")],
}
WORDS = ("the", "kettle", "is", "boiling", "and", "a", "ferry", "waits", "in", "rain", "for", "grey", "moon", "dust")


def request(*overrides: str) -> SweepRequest:
    """What the command line makes of the overrides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        words = [word for word in arrange(overrides) if word != "--multirun"]
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", words, run_mode=RunMode.MULTIRUN)
        return expand(loader, master, list(master.hydra.overrides.task))


@contextlib.contextmanager
def phases(device: str) -> Iterator[Counter[str]]:
    """Times the functions of `PHASES`; each ends in a synchronisation, so that it pays for what it started."""
    seconds: Counter[str] = Counter()
    with contextlib.ExitStack() as undo:
        for phase, functions in PHASES.items():
            for owner, name in functions:
                original = getattr(owner, name)
                undo.callback(setattr, owner, name, original)
                setattr(owner, name, timed(original, phase, seconds, device))
        yield seconds


def timed(original: Callable[..., Any], phase: str, seconds: Counter[str], device: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            synchronize(device)
            seconds[phase] += time.perf_counter() - start
            if phase != "timed":
                seconds["cpu"] += time.process_time() - cpu

    return call


def quietly(asked: SweepRequest) -> int:
    """Standard output is for the figures."""
    with contextlib.redirect_stdout(sys.stderr):
        return carry_out(asked)


def runnable(asked: SweepRequest) -> list[tuple[Cell, Cell]]:
    """Each candidate with its reference."""
    pairs = [(cell, cell.model_copy(update=asked.reference)) for cell in asked.cells]
    return [pair for pair in pairs if not any(map(unsupported_reason, pair))]


def unique_seconds(pairs: list[tuple[Cell, Cell]], folder: Path, token_ids: list[list[int]]) -> dict[str, float]:
    """Each load and each cell's forwards by themselves."""
    cells = list(dict.fromkeys(cell for pair in pairs for cell in pair))
    loads: dict[WeightsKey, float] = {}
    forwards = 0.0
    for key in dict.fromkeys(map(WeightsKey.of, cells)):
        sharing = [cell for cell in cells if WeightsKey.of(cell) == key]
        start = time.perf_counter()
        model: Any = load(folder, key, implementation(sharing[0].attention))
        synchronize(sharing[0].device)
        loads[key] = time.perf_counter() - start
        for cell in sharing:
            model.set_attn_implementation(implementation(cell.attention))
            forwards += min(forward_seconds(cell, model, token_ids) for _ in range(2))
        free(model, cells[0].device)
        del model
    reads = {key.read: seconds for key, seconds in sorted(loads.items(), key=lambda item: -item[1])}
    return {"loads": sum(loads.values()), "reads": sum(reads.values()), "forwards": forwards}


def forward_seconds(cell: Cell, model: nn.Module, token_ids: list[list[int]]) -> float:
    grouped = batches(token_ids, cell.inputs.batch_size)
    side = side_of(cell, model, token_ids, grouped)
    laid_out = list(side.in_batches(grouped))
    with side.conditions(), torch.inference_mode():
        synchronize(cell.device)
        start = time.perf_counter()
        for batch in laid_out:
            run_forwards(model, batch)
        synchronize(cell.device)
    return time.perf_counter() - start


def naive(candidate: Cell, reference: Cell, folder: Path, local: Any) -> int:
    """Report 1's script for one cell; returns how many tensors it compared."""
    models = [load(folder, WeightsKey.of(cell), implementation(cell.attention)) for cell in (reference, candidate)]
    token_ids = read_texts(candidate, local, models[0]).token_ids
    figures = []
    for texts in batches(token_ids, candidate.inputs.batch_size):
        cells = zip((reference, candidate), models, strict=True)
        kept = [outputs(side_of(cell, model, token_ids, [texts])) for cell, model in cells]
        for name, expected in kept[0].items():
            got = kept[1][name].to(expected.dtype)
            difference = (expected - got).abs()
            figures.append((torch.allclose(expected, got), difference.max().item(), difference.mean().item()))
    return len(figures)


def outputs(side: Side) -> dict[str, Tensor]:
    """Every module's output."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kept[name] = tensors_of(output)[0]

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in side.model.named_modules() if name]
    with side.conditions(), torch.inference_mode():
        for call in side.calls:
            side.model(**call.kwargs)
    for handle in handles:
        handle.remove()
    return kept


def naive_seconds(pairs: list[tuple[Cell, Cell]], folder: Path, local: Any, cells: int) -> dict[str, float]:
    chosen = pairs[:: max(1, len(pairs) // cells)]
    start = time.perf_counter()
    for candidate, reference in chosen:
        naive(candidate, reference, folder, local)
        free(None, candidate.device)
    seconds = time.perf_counter() - start
    return {"naive": seconds * len(pairs) / len(chosen), "naive_cells_run": len(chosen)}


def free(model: nn.Module | None, device: str) -> None:
    """What a process that ends gives back; the allocator's memory is kept, as a process that goes on keeps it."""
    del model
    gc.collect()
    synchronize(device)


def bench(overrides: list[str], naive_cells: int, rounds: int, folder: Path) -> dict[str, Any]:
    """The round whose ratio is the median, the ratios of all, and that of the first, which is none of them."""
    first, *found = (one_round([*overrides, f"output_dir={folder / str(number)}"]) for number in range(1 + rounds))
    median = sorted(found, key=ratio)[len(found) // 2]
    result = {**median, "ratios": [ratio(one) for one in found], "first": ratio(first)}
    if naive_cells:
        asked = request(*overrides, f"output_dir={folder}")
        pairs = runnable(asked)
        local = prepare(pairs[0][0].checkpoint, device=pairs[0][0].device, say=print)
        result |= naive_seconds(pairs, local.folder, local, naive_cells)
        result["naive_over_sweep"] = result["naive"] / result["sweep_s"]
    return result


def ratio(found: dict[str, Any]) -> float:
    value: float = found["over_unique_loads_and_forwards"]
    return value


def one_round(overrides: list[str]) -> dict[str, Any]:
    """The sweep, then each of its loads and forwards by itself."""
    asked = request(*overrides)
    pairs = runnable(asked)
    device = pairs[0][0].device
    local = prepare(pairs[0][0].checkpoint, device=device, say=print)
    with phases(device) as seconds:
        start, cpu = time.perf_counter(), time.process_time()
        exit_code = quietly(asked)
        sweep, cpu = time.perf_counter() - start, time.process_time() - cpu
    if exit_code:
        raise SystemExit("a cell or a sink failed: see above")
    gc.collect()
    machinery_cpu = cpu - seconds.pop("cpu")
    seconds["machinery"] = sweep - sum(seconds.values()) + seconds["timed"]
    token_ids = read_texts(pairs[0][0], local, load(local.folder, WeightsKey.of(pairs[0][1]), "eager")).token_ids
    unique = unique_seconds(pairs, local.folder, token_ids)
    return {
        "cells": len(asked.cells),
        "ran": len(pairs),
        "texts": len(token_ids),
        "tokens": sum(map(len, token_ids)),
        "sweep_s": sweep,
        "phases_s": dict(seconds),
        "unique_s": unique,
        "over_unique_loads_and_forwards": sweep / (unique["loads"] + unique["forwards"]),
        "over_unique_reads_and_forwards": sweep / (unique["reads"] + unique["forwards"]),
        "machinery_ms_a_cell": 1e3 * seconds["machinery"] / len(asked.cells),
        "machinery_cpu_ms_a_cell": 1e3 * machinery_cpu / len(asked.cells),
    }


def long_texts(folder: Path, texts: int) -> Path:
    """Words without a pattern, more than any `--tokens` of them."""
    draw = random.Random(0)
    path = folder / "long.txt"
    path.write_text("\n".join(" ".join(draw.choices(WORDS, k=4096)) for _ in range(texts)) + "\n")
    return path


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny_llama", help="a name of conf/checkpoint")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--inputs", nargs="+", default=["sentences", "long"], choices=["sentences", "long"])
    parser.add_argument("--texts", type=int, default=32, help="of the long inputs; in batches of 8")
    parser.add_argument("--tokens", type=int, default=512, help="of each of the long texts")
    parser.add_argument("--naive-cells", type=int, default=1000, help="at most so many; 0: none")
    parser.add_argument("--rounds", type=int, default=3, help="of the sweep and of what it is over, in turns")
    parser.add_argument("--override", nargs="*", default=[], help="of the sweep's configuration: latency_repeats=0")
    asked = parser.parse_args()
    common = [f"checkpoint={asked.checkpoint}", f"device={asked.device}", "verdict=false", "wandb.mode=disabled"]
    common += asked.override
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as name:
        folder = Path(name)
        path = long_texts(folder, asked.texts)
        of = {"sentences": [], "long": ["inputs=file", f"inputs.file={path}", f"inputs.max_tokens={asked.tokens}"]}
        first = request(*common, "dtype=float32,bfloat16", f"output_dir={folder / 'first'}")
        quietly(first)
        device = first.cells[0].device
        gpu = torch.cuda.get_device_name() if device == "cuda" else None
        print(json.dumps({"device": gpu or device, "threads": torch.get_num_threads(), "torch": torch.__version__}))
        for inputs in asked.inputs:
            overrides = ["+grid=bf16_vs_fp32", *common, *of[inputs]]
            result = bench(overrides, asked.naive_cells, asked.rounds, folder / inputs)
            print(json.dumps(rounded({"checkpoint": asked.checkpoint, "inputs": inputs, **result})), flush=True)


if __name__ == "__main__":
    main()
