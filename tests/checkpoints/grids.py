"""Runs the two grids on a folder, every ok cell beside a model loaded for it alone by the plain call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts import architectures
from sweeper.sweep import bare

TEXTS = [[5, 6, 7, 8, 9], [10, 11, 12]]


@contextmanager
def spied() -> Iterator[None]:
    """The outputs of the cells that run are kept, to be compared."""
    measure = bare.measure_cost
    architectures.spy_on_outputs()
    try:
        yield
    finally:
        bare.measure_cost = measure


def records_of(place: Path, scratch: Path, grid: str, *more: str) -> list[dict[str, Any]]:
    """The records of a grid on a checkpoint and two texts, as the command line would run it."""
    ids = ["inputs=token_ids", "inputs.name=two_texts", f"inputs.token_ids={json.dumps(TEXTS)}"]
    return run_with(place, scratch, grid, ids, *more)


def run_with(place: Path, scratch: Path, grid: str, inputs: Sequence[str], *more: str) -> list[dict[str, Any]]:
    """The same on other inputs; what is typed more wins."""
    usual = ["device=cpu", "verdict=false", "latency_repeats=0", "wandb.mode=disabled", *inputs]
    typed = {word.partition("=")[0] for word in more}
    arguments = [f"checkpoint={place}", *(word for word in usual if word.partition("=")[0] not in typed)]
    return architectures.run_grid(grid, [*arguments, f"output_dir={scratch}/outputs", *more])[0]


def unlike_plain(records: list[dict[str, Any]], folder: Path) -> list[str]:
    """The ok cells whose output has not the bits of `AutoModelForCausalLM.from_pretrained(folder)`."""
    plain = architectures.Architecture("plain", "", "AutoModelForCausalLM", "causal", {})
    return architectures.unlike_plain(records, folder, plain)
