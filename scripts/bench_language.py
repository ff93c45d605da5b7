"""What the figures of language cost: the fused code against its definition in plain torch, which works in float64.

Random logits of a bfloat16 candidate against a float32 reference, float32 and bfloat16 pairs; SmolLM2's vocabulary and
CPU time on the CPU (one thread), Qwen3's and the device's time on a GPU. Both alternate, because a shared machine's
speed drifts. Prints one JSON line a pair: minima in ms, their ratio, and by how much the two mean KLs differ.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sweeper.metrics import language
from sweeper.metrics.language import LanguageAccumulator

TOKENS_AND_VOCABULARY = {"cpu": (64, 49_152), "cuda": (4096, 151_936)}
DTYPES = (("float32", "bfloat16"), ("float32", "float32"), ("bfloat16", "bfloat16"))
Logits = tuple[Tensor, Tensor, Tensor]


def logits(reference: str, candidate: str, device: str) -> Logits:
    """The logits of both sides, and the next tokens."""
    N, V = TOKENS_AND_VOCABULARY[device]
    generator = torch.Generator(device).manual_seed(0)
    values_NV = 3 * torch.randn(N, V, device=device, generator=generator)
    noise_NV = 0.03 * torch.randn(N, V, device=device, generator=generator)
    next_N = torch.randint(-1, V, (N,), device=device, generator=generator)
    return values_NV.to(getattr(torch, reference)), (values_NV + noise_NV).to(getattr(torch, candidate)), next_N


def fused(batch: Logits) -> LanguageAccumulator:
    accumulator = LanguageAccumulator(batch[0].device)
    accumulator.update(*batch)
    return accumulator


def plain(batch: Logits) -> LanguageAccumulator:
    found, language.fast_module = language.fast_module, lambda *_: None  # type: ignore[assignment]
    try:
        return fused(batch)
    finally:
        language.fast_module = found


def milliseconds(work: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        work()
        return (time.process_time() - start) * 1e3
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda._sleep(2_000_000)  # so that the host's time is not counted
    events[0].record()
    work()
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1])


def bench(reference: str, candidate: str, device: str, rounds: int) -> dict[str, object]:
    batch = logits(reference, candidate, device)
    kl = [work(batch).finish().kl_mean for work in (fused, plain)]  # compiles
    times = [[milliseconds(lambda work=work: work(batch), device) for work in (fused, plain)] for _ in range(rounds)]
    best = [min(column) for column in zip(*times, strict=True)]
    return {
        "reference": reference,
        "candidate": candidate,
        "tokens": len(batch[0]),
        "vocabulary": batch[0].shape[1],
        "fused_ms": round(best[0], 3),
        "plain_ms": round(best[1], 3),
        "plain_over_fused": round(best[1] / best[0], 2),
        "kl_relative_difference": abs(kl[0] - kl[1]) / abs(kl[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"device": torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"}))
    for reference, candidate in DTYPES:
        print(json.dumps(bench(reference, candidate, asked.device, asked.rounds)), flush=True)


if __name__ == "__main__":
    main()
