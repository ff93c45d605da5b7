"""What depends on the floating-point format: tolerances and the distance in units in the last place (ULP)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """|candidate - reference| <= atol + rtol |reference|."""

    rtol: float
    atol: float


# torch.testing.assert_close's defaults, from the table in its documentation (of two dtypes it takes the larger values,
# which are those of the coarser one).
_TOLERANCES = {
    torch.float16: Tolerance(rtol=1e-3, atol=1e-5),
    torch.bfloat16: Tolerance(rtol=1.6e-2, atol=1e-5),
    torch.float32: Tolerance(rtol=1.3e-6, atol=1e-5),
    torch.float64: Tolerance(rtol=1e-7, atol=1e-7),
}
_SIGNED_INTEGER = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
INT64_MIN = torch.iinfo(torch.int64).min


@functools.cache
def coarser_dtype(reference: torch.dtype, candidate: torch.dtype) -> torch.dtype:
    """The dtype with the larger machine epsilon.

    Raises:
        TypeError: a dtype is not float16, bfloat16, float32 or float64.
    """
    for dtype in (reference, candidate):
        if dtype not in _TOLERANCES:
            allowed = ", ".join(str(known).removeprefix("torch.") for known in _TOLERANCES)
            raise TypeError(f"cannot measure a tensor of {dtype}: the measures are defined for {allowed}")
    return max(reference, candidate, key=lambda dtype: torch.finfo(dtype).eps)


def default_tolerance(dtype: torch.dtype) -> Tolerance:
    """What `torch.testing.assert_close` allows for this dtype."""
    return _TOLERANCES[dtype]


def ordinal(values: Tensor) -> Tensor:
    """Numbers the representable values in order: neighbours are 1 apart, both zeros are 0, inf follows the largest.

    IEEE 754 formats are sign and magnitude, and magnitudes sort like their bits. NaN has no place in the order.

    Returns:
        Signed integers of the same width and shape.
    """
    integer = _SIGNED_INTEGER[values.dtype]
    bits = values.view(integer)
    magnitude = bits & torch.iinfo(integer).max
    return magnitude.mul_(bits.sign())


def max_ulp_distance(reference: Tensor, candidate: Tensor, coarser: torch.dtype) -> Tensor:
    """The largest ULP distance of two non-empty tensors without NaN, in the format `coarser`.

    Both are first rounded by torch's own cast, to the nearest, ties to even; from float64 to a 16-bit format torch
    goes by way of float32.

    Returns:
        int64 scalar on the same device: the distance minus 2**63, because distances in float64 need 64 unsigned bits.
    """
    reference, candidate = ordinal(reference.to(coarser)), ordinal(candidate.to(coarser))
    # The difference wraps around modulo 2**width, hence is right as an unsigned number. Flipping the sign bit lets the
    # signed maximum find the largest unsigned one.
    distance = torch.maximum(reference, candidate).sub_(torch.minimum(reference, candidate))
    smallest = torch.iinfo(distance.dtype).min
    largest = distance.bitwise_xor_(smallest).amax().to(torch.int64)
    return largest + (INT64_MIN - smallest)
