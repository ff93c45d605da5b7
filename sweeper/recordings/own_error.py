"""How far a recording lies from our float64 run, over how far our own run does: token by token, and in all.

Another program's run cannot be repeated in float64 here, so nothing but its error can be had. What rounding does to an
error is known, though: our own run of the same function, in the same precision, has one too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sweeper.comparator.places import Places


@dataclass(frozen=True, kw_only=True)
class OverOwn:
    """Two errors to one float64 run.

    Attributes:
        recorded, own: root mean square over tokens, of the distance of a token's numbers.
        median, most: of the tokens, the recording's error over the root mean square of our own; NaN of none.
        worst: (text, position) of the token where it is the most; the position is None of an embedding.
        nonfinite: tokens that are NaN or infinite in the recording alone: they have no error, and count as infinite.
        same: every number that was recorded is ours, bit for bit.
        counted: rows that entered; where there is none, nothing is known.
    """

    recorded: float
    own: float
    median: float
    most: float
    worst: tuple[int | None, int | None]
    nonfinite: int
    same: bool
    counted: int

    @property
    def ratio(self) -> float:
        """The recording's error over our own; infinite where ours is 0 and its is not."""
        if self.nonfinite or math.isnan(self.recorded):
            return math.inf
        return self.recorded / self.own if self.own else math.inf if self.recorded else 0.0


def over_own(
    recorded_NF: Tensor, own_NF: Tensor, exact_NF: Tensor, lengths: Sequence[int], *, own_error: float | None = None
) -> OverOwn:
    """The errors of two runs.

    Args:
        recorded_NF, own_NF, exact_NF: a row a token, or a text; rows where our own two are NaN do not count.
        lengths: tokens of each text.
        own_error: our own error, where `own_NF` is not of the function that `exact_NF` is of; None: theirs.
    """
    exact_NF = exact_NF.double()
    counted_N = exact_NF.isfinite().all(1) & own_NF.isfinite().all(1)
    rows = counted_N.nonzero()[:, 0]
    recorded_NF, own_NF, exact_NF = (
        side.double()[rows] for side in (recorded_NF.to(exact_NF.device), own_NF, exact_NF)
    )
    finite_N = recorded_NF.isfinite().all(1)
    error_N = (recorded_NF - exact_NF)[finite_N].norm(dim=1)
    own = _rms((own_NF - exact_NF).norm(dim=1)) if own_error is None else own_error
    worst: tuple[int | None, int | None] = (None, None)
    if len(error_N):
        row = int(rows[finite_N][error_N.argmax()])
        worst = Places(lengths).locate(row, len(counted_N))
    return OverOwn(
        recorded=_rms(error_N),
        own=own,
        median=float(error_N.median()) / own if len(error_N) and own else math.nan,
        most=float(error_N.max()) / own if len(error_N) and own else math.nan,
        worst=worst,
        nonfinite=int((~finite_N).sum()),
        same=len(rows) > 0 and bool(torch.equal(recorded_NF, own_NF)),
        counted=len(rows),
    )


def _rms(error_N: Tensor) -> float:
    return float(error_N.square().mean().sqrt()) if len(error_N) else math.nan
