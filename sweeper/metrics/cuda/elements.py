"""What the Triton kernels of `kernels.py` do with a tile: load it, look at its numbers, reduce it.

Shapes of a tile: R rows, L lanes a row, E elements a lane, C = L E columns; R L are a warp's lanes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: RET505, SIM300 (Triton compiles what stands behind a `return` in an `if`; capitals are its parameters)
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LANES = tl.constexpr(32)
FAR = tl.constexpr(2**31 - 1)  # beyond every row and column


class Side(NamedTuple):
    """One tensor of a pair: the address of its first element, and how far apart rows and columns are."""

    start: Any
    row: Any
    column: Any


@triton.jit
def load(start_R, step, first, F, here_R, PACKED: tl.constexpr, ALIGNED: tl.constexpr, C: tl.constexpr):
    """Columns from `first` on of the rows that start there, 0 outside: [R, C]. PACKED: two 16-bit numbers in an int32,
    [R, C / 2]. ALIGNED: columns are side by side, whatever the step."""
    if PACKED:
        column = first // 2 + tl.arange(0, C // 2)
        place = start_R.to(tl.pointer_type(tl.int32))[:, None] + column[None, :]
        return tl.load(place, (column < F // 2)[None, :] & here_R[:, None], other=0)
    else:
        column = first + tl.arange(0, C)
        place = start_R[:, None] + column[None, :] * (1 if ALIGNED else step)
        return tl.load(place, (column < F)[None, :] & here_R[:, None], other=0.0)


@triton.jit
def unpack(loaded, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, R: tl.constexpr, E: tl.constexpr):
    """What `load` gave as float32, [R, L, E]: the elements of a lane are those that it loaded, no lane sends any."""
    if loaded.dtype == tl.int32:
        if DTYPE == tl.bfloat16:
            low = (loaded << 16).to(tl.float32, bitcast=True)
            high = (loaded & -0x10000).to(tl.float32, bitcast=True)
        else:
            low = loaded.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
            high = (loaded >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
        return tl.reshape(tl.join(low, high), (R, LANES // R, E))
    elif ALIGNED:
        return tl.reshape(as_float32(loaded), (R, LANES // R, E))
    else:
        return tl.permute(tl.reshape(as_float32(loaded), (R, E, LANES // R)), (0, 2, 1))


@triton.jit
def as_float32(value):
    """Exact; of bfloat16 by its bits, as converting it may take subnormals for 0."""
    if value.dtype == tl.bfloat16:
        return (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return value.to(tl.float32)


@triton.jit
def _float32_ordinal(value):
    """`precision.ordinal` of float32."""
    bits = value.to(tl.int32, bitcast=True)
    sign = bits >> 31
    return ((bits & 0x7FFFFFFF) ^ sign) - sign


@triton.jit
def _half_ordinal(value, COARSER: tl.constexpr, ROUNDED: tl.constexpr):
    """`precision.ordinal` of float32 rounded to a 16-bit format, in units of 2**-149: it is sign and magnitude, and so
    is a subnormal float32 whose significand it becomes."""
    if COARSER == tl.float16:
        half = value.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    else:
        bits = value.to(tl.int32, bitcast=True)
        if not ROUNDED:
            bits += 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
        half = bits >> 16
    return (half & -0x7FFF8001).to(tl.float32, bitcast=True)


@triton.jit
def ulp_distance(reference, candidate, REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr):
    """Distance, in units of the third format, of float32 values that came from the first two: uint32 bits."""
    if COARSER == tl.float32:
        reference, candidate = _float32_ordinal(reference), _float32_ordinal(candidate)
        # The difference wraps around modulo 2**32, hence is right as an unsigned number.
        return (tl.maximum(reference, candidate) - tl.minimum(reference, candidate)).to(tl.uint32, bitcast=True)
    else:
        reference = _half_ordinal(reference, COARSER, REFERENCE == COARSER)
        candidate = _half_ordinal(candidate, COARSER, CANDIDATE == COARSER)
        return tl.abs(candidate - reference)  # a count in units of 2**-149 is that count in its bits


@triton.jit
def is_finite(value_f32):
    return (value_f32.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000


@triton.jit
def is_inf(value_f32):
    return (value_f32.to(tl.int32, bitcast=True) & 0x7FFFFFFF) == 0x7F800000


@triton.jit
def larger(a, b):
    return tl.where(b > a, b, a)


@triton.jit
def larger_magnitude(a, b):
    return tl.where(tl.abs(b) > tl.abs(a), b, a)


@triton.jit
def largest(value_RL):
    """The largest of all."""
    return tl.reduce(tl.reduce(value_RL, 1, larger), 0, larger)


@triton.jit
def total(value_RL):
    return tl.sum(tl.sum(value_RL, 1), 0)


@triton.jit
def cosine(references, candidates, differences, products):
    """`pair.cosine`; nothing overflows, as squares of float32 are small for float64."""
    ratio = products / (tl.sqrt(references) * tl.sqrt(candidates))
    ratio = tl.where(ratio > 1, 1.0, tl.where(ratio < -1, -1.0, ratio))
    ratio = tl.where((references == 0) | (candidates == 0), 0.0, ratio)
    return tl.where(differences == 0, 1.0, ratio)
