"""What of a difference is quantisation: of the weights, and in the kernels, which no replay runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from sweeper.comparator.side import Outputs, Side, run
from sweeper.models.quantised import dequantised
from sweeper.verdict.causes.tensors import of_quantised_reference, put_back, quantised_alike
from sweeper.verdict.first_divergence import outputs_rel_l2
from sweeper.verdict.state_changes import Provenance


@contextlib.contextmanager
def without_quantisation(reference: nn.Module, candidate: nn.Module, found: Provenance) -> Iterator[None]:
    """Neither side is quantised, and both have the numbers that the quantised weights stand for."""
    with (
        dequantised(reference),
        dequantised(candidate),
        quantised_alike(found),
        put_back(candidate, of_quantised_reference(found)),
    ):
        yield


def kernel_share(
    reference: Side, candidate: Side, base: Outputs, native: Outputs, found: Provenance, floor: float
) -> float | None:
    """How far the quantised side's kernels move its outputs, over how far its weights move the other side's.

    Args:
        base, native: the outputs of both as they are.
        floor: the least that anything moves them.
    """
    if not found.quantised:
        return None
    with without_quantisation(reference.model, candidate.model, found):
        plain = {"reference": run(reference), "candidate": run(candidate)}
    if of_quantised_reference(found):
        kernels, weights = outputs_rel_l2(base, plain["reference"]), outputs_rel_l2(native, plain["candidate"])
    else:
        kernels, weights = outputs_rel_l2(native, plain["candidate"]), outputs_rel_l2(base, plain["reference"])
    return kernels / max(weights, floor)
