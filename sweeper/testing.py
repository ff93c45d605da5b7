"""A guard for users' test suites."""

from __future__ import annotations

from torch import nn

from sweeper.comparator.side import Inputs
from sweeper.verdict.comparison import compare_models
from sweeper.verdict.rules import Kind


def assert_same_function(
    reference: nn.Module, candidate: nn.Module, inputs: Inputs, candidate_inputs: Inputs | None = None
) -> None:
    """Fails where the candidate computes another function, however small the difference; rounding passes.

    Args:
        reference, candidate, inputs, candidate_inputs: as in `sweeper.compare_models`.

    Raises:
        AssertionError: the verdict is `policy` or `semantic`; the message holds the cause and the evidence.
    """
    comparison = compare_models(reference, candidate, inputs, candidate_inputs)
    if comparison.verdict.kind in (Kind.POLICY, Kind.SEMANTIC):
        cause = comparison.explain().cause
        raise AssertionError(f"not the same function: {cause}\n{comparison!r}")
