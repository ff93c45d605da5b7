"""What comparing costs over the bare forwards, on one GPU.

Qwen3-0.6B's geometry with random weights in bfloat16; the candidate has the rounded rotary table of `.to(bfloat16)`.
For every batch x length, medians over repeated batches, of wall time around work that ends in a synchronisation:

- bare: both forwards, no hooks
- naive: both forwards with hooks that keep every output, then `torch.allclose`, max and mean of |d| for each module
- eager: both in step with hooks, all measures
- graph: the same in one CUDA graph, and both forwards alone in one

Prints one JSON line a shape.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn

from sweeper.checkpoints.seeded import initialise, model_config
from sweeper.comparator.hooks import capture, steady_in_call, tensors_of
from sweeper.comparator.in_turns import InStep, bytes_a_turn
from sweeper.comparator.module_pairs import ModulePairs, launch_bytes
from sweeper.config import Layout, Positions, SeededCheckpoint
from sweeper.inputs.layout import Forward, lay_out
from sweeper.metrics.fast import Tables
from sweeper.metrics.pair import PairAccumulator, Update, join_all, update_all
from sweeper.metrics.sums import State, empty_state

GEOMETRY = Path(__file__).parent.parent / "conf" / "checkpoint" / "qwen3_0_6b_geometry.yaml"
_SLEEP_CYCLES = 6_000_000  # about 3 ms


def the_models() -> tuple[nn.Module, nn.Module]:
    checkpoint = SeededCheckpoint(**yaml.safe_load(GEOMETRY.read_text()))
    reference: Any = initialise(checkpoint, model_config(checkpoint), "cuda").eval()
    candidate = copy.deepcopy(reference)
    reference.rotary_emb = type(reference.rotary_emb)(reference.config).to("cuda")  # not rounded, unlike the other one
    return reference, candidate


def a_batch(texts: int, length: int, device: str) -> Forward:
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(1000, (texts, length), generator=generator).tolist()
    layout, positions = Layout.PADDED_RIGHT, Positions.IMPLICIT
    forward = lay_out(token_ids, range(texts), layout=layout, positions=positions, pad_id=0, device=device)[0]
    if device == "cuda":  # no pads, so no mask: transformers would build one in a CUDA graph and none outside of it
        no_mask: dict[str, Any] = {**forward.inputs, "attention_mask": {"full_attention": None}}
        forward = dataclasses.replace(forward, inputs=no_mask)
    return forward


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median; the first two calls warm up."""
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def peak_gib(work: Callable[[], object]) -> float:
    """Beyond what is allocated before, which is the models."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def naive(models: tuple[nn.Module, nn.Module], batch: Forward) -> list[tuple[bool, float, float]]:
    """Report 1's loop over every module."""
    captures: list[dict[str, Tensor]] = [{}, {}]
    handles = []
    for model, outputs in zip(models, captures, strict=True):
        for name, module in model.named_modules():

            def keep(
                _m: nn.Module, _i: Any, output: Any, name: str = name, outputs: dict[str, Tensor] = outputs
            ) -> None:
                outputs[name] = tensors_of(output)[0]

            handles.append(module.register_forward_hook(keep))
    forwards(models, batch)
    for handle in handles:
        handle.remove()
    figures = []
    for name, reference in captures[0].items():
        candidate = captures[1][name].to(reference.dtype)
        difference = (reference - candidate).abs()
        figures.append((torch.allclose(reference, candidate), difference.max().item(), difference.mean().item()))
    return figures


def forwards(models: tuple[nn.Module, nn.Module], batch: Forward) -> None:
    for model in models:
        model(**batch.inputs, use_cache=False)


class GraphTables(Tables):
    """Tables that a CUDA graph may capture: nothing is sent meanwhile; call `upload` before its first replay."""

    def __init__(self) -> None:
        super().__init__()
        self._late: list[tuple[Tensor, np.ndarray]] = []
        self._captured: list[tuple[Tensor, np.ndarray]] = []  # graphs read these as long as they live

    def send(self, slot: int, numbers: np.ndarray, device: torch.device) -> Tensor:
        if not torch.cuda.is_current_stream_capturing():
            return super().send(slot, numbers, device)
        # the slot's memory of the time before: the graph's own would be overwritten in every replay, by what used it
        # earlier in the capture
        if slot >= len(self.sent) or len(self.sent[slot][1]) != len(numbers):
            raise RuntimeError("a batch of the same shape has to run before it is captured in a CUDA graph")
        table = self.sent[slot][1]
        self._late.append((table, numbers))
        return table

    def upload(self) -> None:
        """Sends what a capture held back."""
        for table, numbers in self._late:
            table.copy_(torch.from_numpy(numbers))
        self._captured += self._late
        self._late = []


class InTurns:
    """Both models in step, with hooks, as a cell's pass runs them."""

    def __init__(self, models: tuple[nn.Module, nn.Module], device: str) -> None:
        small = a_batch(2, 8, device)
        steady = [steady_in_call(model, small, lambda m=model: m(**small.inputs, use_cache=False)) for model in models]
        self.tables = GraphTables()
        self._models = models
        self._pairs = ModulePairs(steady=steady[1], launch_bytes=launch_bytes(device), tables=self.tables)
        self._in_step = InStep([self._pairs], steady=steady[0], turn_bytes=bytes_a_turn(device))

    @property
    def accumulators(self) -> dict[str, PairAccumulator]:
        return {name: pair.accumulator for name, pair in self._pairs.modules.items()}

    @contextlib.contextmanager
    def hooked(self, batch: Forward) -> Iterator[Callable[[], None]]:
        """Yields what runs a batch."""
        left, right = self._models
        options = {**batch.inputs, "use_cache": False}
        take = functools.partial(self._in_step.take, 0)
        with capture(left, self._in_step.give) as one, capture(right, take) as other:

            def run() -> None:
                one.begin(batch)
                other.begin(batch)
                _, results = self._in_step.run(lambda: left(**options), {0: lambda: right(**options)})
                if isinstance(results[0], Exception):
                    raise results[0]
                self._pairs.end_batch()

            yield run


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def clear(together: InTurns) -> None:
    """The states of no rows, where the graph expects them."""
    fresh = empty_state("cuda")
    for accumulator in together.accumulators.values():
        accumulator.state.reals.copy_(fresh.reals)
        accumulator.state.counts.copy_(fresh.counts)


def states(together: InTurns) -> State:
    both = [accumulator.state for accumulator in together.accumulators.values()]
    return State(torch.stack([state.reals for state in both]), torch.stack([state.counts for state in both]))


def same_bits(first: State, second: State) -> bool:
    reals = torch.equal(first.reals.view(torch.int64), second.reals.view(torch.int64))
    return reals and torch.equal(first.counts, second.counts)


def bench(
    models: tuple[nn.Module, nn.Module], texts: int, length: int, repeats: int, with_graph: bool
) -> dict[str, Any]:
    batch = a_batch(texts, length, "cuda")
    result: dict[str, Any] = {
        "shape": f"{texts}x{length}",
        "bare_ms": milliseconds(lambda: forwards(models, batch), repeats),
    }
    result["bare_peak_gib"] = peak_gib(lambda: forwards(models, batch))
    together = InTurns(models, "cuda")
    with together.hooked(batch) as run:
        result["eager_ms"] = milliseconds(run, repeats)
        result["eager_peak_gib"] = peak_gib(run)
        clear(together)
        run()
        eager = states(together)
        clear(together)
        run()
        result["eager_repeats_bitwise"] = same_bits(eager, states(together))
        result["outputs"] = len(together.accumulators)
        if with_graph:
            graph = captured(run)
            together.tables.upload()
            clear(together)
            graph.replay()
            result["graph_equals_eager_bitwise"] = same_bits(eager, states(together))
            result["graph_ms"] = milliseconds(graph.replay, repeats)
            del graph
    if with_graph:
        graph = captured(lambda: forwards(models, batch))
        result["bare_graph_ms"] = milliseconds(graph.replay, repeats)
        del graph
    torch.cuda.empty_cache()
    result["naive_ms"] = milliseconds(lambda: naive(models, batch), max(2, repeats // 4))
    result["naive_peak_gib"] = peak_gib(lambda: naive(models, batch))
    result["bare_again_ms"] = milliseconds(lambda: forwards(models, batch), repeats)
    bare = statistics.mean((result["bare_ms"], result["bare_again_ms"]))
    for kind in ("naive", "eager", "graph"):
        if f"{kind}_ms" in result:
            result[f"{kind}_over_bare"] = round(result[f"{kind}_ms"] / bare, 3)
    return result


def ceilings() -> dict[str, float]:
    """TB/s of a device-to-device copy (read and written) and of the kernels alone (read), and what launches cost the
    host: with their tables on the device, as when batches repeat, and with tables to be sent."""
    pairs = [torch.randn(2, 16384, 3072, device="cuda", dtype=torch.bfloat16).unbind() for _ in range(8)]
    accumulators = [PairAccumulator(torch.bfloat16, torch.bfloat16, "cuda") for _ in pairs]
    updates = [Update(a, *pair) for a, pair in zip(accumulators, pairs, strict=True)]
    nbytes = sum(tensor.nbytes for pair in pairs for tensor in pair)
    tables = Tables()
    source = torch.empty(2**30, dtype=torch.int32, device="cuda").random_()
    target = torch.empty_like(source)
    small = [Update(a, r[:3], c[:3]) for a, (r, c) in zip(accumulators, pairs, strict=True)]
    return {
        "copy_tb_s": 2 * source.nbytes / _event_ms(lambda: target.copy_(source)) / 1e9,
        "kernels_tb_s": nbytes / _event_ms(lambda: _batch(updates, tables, join=True)) / 1e9,
        "measure_one_pair_host_us": _host_us(lambda: _batch(small[:1], tables)),
        "measure_eight_pairs_host_us": _host_us(lambda: _batch(small, tables)),
        "measure_and_join_one_pair_host_us": _host_us(lambda: _batch(small[:1], tables, join=True)),
        "measure_and_join_eight_pairs_host_us": _host_us(lambda: _batch(small, tables, join=True)),
        "all_of_one_pair_host_us": _host_us(lambda: update_all(small[:1])),
        "all_of_eight_pairs_host_us": _host_us(lambda: update_all(small)),
        "empty_kernel_host_us": _host_us(lambda: source[:1].zero_()),
    }


def _batch(updates: Sequence[Update], tables: Tables, *, join: bool = False) -> None:
    tables.rewind()
    update_all(updates, tables)
    if join:
        join_all(tables)


def _host_us(work: Callable[[], object]) -> float:
    """Host time of one call among many, none of which waits for the device."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(100):
            work()
        times.append((time.perf_counter() - start) * 1e4)
        torch.cuda.synchronize()
    return statistics.median(times)


def _event_ms(work: Callable[[], object]) -> float:
    """Time on the device, which sleeps until all is queued, so that the host's is not counted."""
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_SLEEP_CYCLES)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1x3", "8x512", "32x512"], help="texts x tokens a text")
    parser.add_argument(
        "--graph-up-to", type=int, default=4096, help="tokens a batch up to which a CUDA graph is tried"
    )
    parser.add_argument("--repeats", type=int, default=12)
    arguments = parser.parse_args()
    with torch.inference_mode():
        print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, **ceilings()}), flush=True)
        torch.cuda.empty_cache()
        models = the_models()
        for shape in arguments.shapes:
            texts, length = (int(number) for number in shape.split("x"))
            with_graph = texts * length <= arguments.graph_up_to
            print(json.dumps(bench(models, texts, length, arguments.repeats, with_graph)), flush=True)


if __name__ == "__main__":
    main()
