"""`OMP_NUM_THREADS=1 python -m scripts.bench_hooks`: CPU time that a hooked module costs, without what it computes.

The modules of a decoder of 28 layers give tensors that are ready and tiny, and nothing is measured of them: what is
left is the host's own work for every module and candidate, which is the limit on a GPU where forwards are short. In
microseconds, the least of `--rounds` passes over four batches, bare forwards subtracted:

- kept_us: a candidate against a reference that was kept, a pair; hooks are put on and removed in each pass.
- in_step_us: a reference and `--candidates` in step, a pair.
- steady_us: `steady_in_call`, a module.

`pads` says that rows are picked out of padded batches.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sweeper.comparator import module_pairs
from sweeper.comparator.comparer import Comparer
from sweeper.comparator.hooks import ModuleOutput, capture, steady_in_call
from sweeper.comparator.in_turns import InStep
from sweeper.config import Layout, Positions
from sweeper.inputs.layout import Forward, lay_out

BATCHES = 4
TEXTS = (0, 1)


class Ready(nn.Module):
    """Gives a tensor that is ready, when its parts have run; or what the last of them gave, as an MLP does."""

    def __init__(self, features: int, *parts: nn.Module, gives_on: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.gives_on = gives_on
        self.output_BTF = torch.randn(len(TEXTS), 8, features)

    def forward(self) -> Tensor:
        output_BTF = self.output_BTF
        for part in self.parts:
            given_BTF = part()
            output_BTF = given_BTF if self.gives_on else output_BTF
        return output_BTF


def decoder(layers: int = 28) -> Ready:
    """15 modules a layer."""

    def layer() -> Ready:
        attention = Ready(16, *(Ready(features) for features in (16, 16, 8, 8, 8, 16)), gives_on=True)
        mlp = Ready(16, *(Ready(features) for features in (32, 32, 32, 16)), gives_on=True)
        return Ready(16, Ready(16), attention, Ready(16), mlp)

    return Ready(16, Ready(16), *(layer() for _ in range(layers)), Ready(16))


def least_s(work: Callable[[], object], rounds: int) -> float:
    """CPU time of the fastest call."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def bench(lengths: tuple[int, int], candidates: int, rounds: int) -> dict[str, float]:
    """The figures for two texts of these lengths."""
    token_ids = [[1] * length for length in lengths]
    options = {"layout": Layout.PADDED_LEFT, "positions": Positions.IMPLICIT, "pad_id": 0, "device": "cpu"}
    batch: Forward = lay_out(token_ids, TEXTS, **options)[0]
    models = [decoder() for _ in range(1 + candidates)]
    with torch.inference_mode(False), torch.no_grad():
        steady = steady_in_call(models[0], batch, models[0])
        steady_s = least_s(lambda: steady_in_call(models[0], batch, models[0]), rounds)
    seen: list[ModuleOutput] = []
    with capture(models[0], seen.append, steady=steady) as running:
        running.begin(batch)
        models[0]()

    def comparers() -> list[Comparer]:
        return [Comparer(token_ids, is_logits=False, steady=steady, launch_bytes=2**16) for _ in range(candidates)]

    def kept() -> None:
        comparer = comparers()[0]
        with capture(models[1], comparer.modules.take, steady=steady) as running:
            for _ in range(BATCHES):
                comparer.begin_batch(TEXTS)
                for output in seen:
                    comparer.modules.give(output.name, output.tensor_NF)
                running.begin(batch)
                models[1]()
                comparer.modules.end_batch()

    def in_step() -> None:
        pairs = [comparer.modules for comparer in comparers()]
        together = InStep(pairs, steady=steady, turn_bytes=2**15)
        takes = [together.give, *(functools.partial(together.take, place) for place in range(candidates))]
        with contextlib.ExitStack() as stack:
            hooked = [
                stack.enter_context(capture(model, take, steady=steady))
                for model, take in zip(models, takes, strict=True)
            ]
            for _ in range(BATCHES):
                for running in hooked:
                    running.begin(batch)
                together.run(models[0], dict(enumerate(models[1:])))
                for one in pairs:
                    one.end_batch()

    bare_s = least_s(models[0], rounds)
    number = len(seen) * BATCHES
    return {
        "pairs": len(seen),
        "kept_us": round(1e6 * (least_s(kept, rounds) - BATCHES * bare_s) / number, 2),
        "in_step_us": round(
            1e6 * (least_s(in_step, rounds) - BATCHES * (1 + candidates) * bare_s) / number / candidates, 2
        ),
        "steady_us": round(1e6 * (steady_s - bare_s) / len(seen), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=8, help="that run in step (default: 8)")
    parser.add_argument("--rounds", type=int, default=15, help="of each figure (default: 15)")
    args = parser.parse_args()
    for name in ("update_all", "join_all"):
        setattr(module_pairs, name, lambda *_: None)
    gc.freeze()  # as a sweep does
    with torch.inference_mode():
        for lengths in ((8, 8), (5, 8)):
            figures = bench(lengths, args.candidates, args.rounds)
            print(json.dumps({"pads": lengths != (8, 8)} | figures))


if __name__ == "__main__":
    main()
