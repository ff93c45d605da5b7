"""A guard for users' test suites."""

from __future__ import annotations

from torch import nn

from sweeper.comparator.side import Inputs
from sweeper.verdict.comparison import compare_models
from sweeper.verdict.rules import Kind


def assert_same_function(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Inputs,
    candidate_inputs: Inputs | None = None,
    *,
    allow_inconclusive: bool = False,
) -> None:
    """Fails where the candidate is not known to compute the same function, however small the difference.

    Args:
        reference, candidate, inputs, candidate_inputs: as in `sweeper.compare_models`.
        allow_inconclusive: also pass where there is not enough evidence; False: a guard that could not judge fails.

    Raises:
        AssertionError: the verdict is neither `identical` nor `rounding`; the message holds the cause and the evidence.
    """
    __tracebackhide__ = True  # pytest shows the line that called this, and the sentence
    comparison = compare_models(reference, candidate, inputs, candidate_inputs)
    verdict = comparison.verdict
    if verdict.kind in (Kind.IDENTICAL, Kind.ROUNDING) or (allow_inconclusive and verdict.kind is Kind.INCONCLUSIVE):
        return
    cause = comparison.explain().cause
    if verdict.kind is Kind.INCONCLUSIVE:
        said = f"not known to be the same function: {verdict.reason}. {cause} Would decide: {verdict.decides}."
        raise AssertionError(f"{said} allow_inconclusive=True lets this pass.\n{comparison!r}")
    raise AssertionError(f"not the same function: {cause}\n{comparison!r}")
