"""The figures of `language.py` on the CPU: two passes over a token's logits, by all of torch's threads. Needs numba.

The first pass finds the largest logit of each side, by the order of their bits; one that is not finite has a bit
pattern beyond every finite one. The second takes the sums of `language_fused.py`, a *piece* of columns at a time: both
sides are widened to float64, which stays in the first-level cache, and read by one loop that vectorises. Where no
logit of a piece moved by 1 or more, Q = P + P u + P (expm1(u) - u) is taken from the Taylor series too, so that one
exponential is enough: more than 99% of the pieces, where SmolLM2 in float32 meets itself in bfloat16.

One thread takes a token, and the order of additions depends on V alone: its bits are the same in every batch, whatever
the number of threads, on one machine.

Shapes: N tokens, V vocabulary, E columns of a piece, K fields of `Tokens`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sweeper.metrics.cpu.compiled import DTYPES, as_bits, entry, inner, run
from sweeper.metrics.language import Tokens

__all__ = ["DTYPES", "compare"]

# Logits of a block, which one thread takes: enough that handing them over costs little, few enough to share evenly.
_BLOCK = 2**16
_PIECE = 1024  # columns: two pieces of float64 are 16 KiB

# How the bits of a logit are to be read, and the bits of infinity.
_FLOAT32, _BFLOAT16, _FLOAT16 = 0, 1, 2
_INFINITY = (0x7F800000, 0x7F80, 0x7C00)
_FORM = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16, torch.float16: _FLOAT16}


def _pairs(coefficients: Iterable[float]) -> tuple[tuple[float, float], ...]:
    """An even number of coefficients, the constant one first, as `_series` takes them."""
    each = tuple(coefficients)
    return tuple(zip(each[0::2], each[1::2], strict=True))[::-1]


_NEAR = 1.0
_EXCESS = _pairs(1 / math.factorial(power + 2) for power in range(16))  # (expm1(u) - u) / u**2 to 4e-16, |u| < _NEAR
_EXP = _pairs(1 / math.factorial(power) for power in range(14))  # to 4e-18, between -ln(2) / 2 and ln(2) / 2
_ARTANH = _pairs(1 / (2 * power + 3) for power in range(8))  # (artanh(s) - s) / s**3 of s**2, to 1e-20, |s| < 1/15

_LEAST = -700.0  # exp of less is taken as exp of this, 1e-304
_LOG2_E = 1 / math.log(2)
# ln(2) in two parts: of the first, which has 32 bits, a multiple up to 2**21 is exact.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_ROUND = 1.5 * 2.0**52  # what is added to this is rounded to a whole number, and is in its last bits


@inner(fastmath={"contract"})
def _series(x, pairs):
    """A polynomial, by Horner's rule for the even and for the odd powers: neither waits for the other."""
    even, odd = pairs[0]
    square = x * x
    for k in range(1, len(pairs)):
        even = even * square + pairs[k][0]
        odd = odd * square + pairs[k][1]
    return even + x * odd


@inner(fastmath={"contract"})
def _exp(x):
    """Exponential of at most 0, to 3e-16: 2**k exp(t), with k added to the exponent. libm's would not vectorise."""
    x = max(x, _LEAST)
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    t = (x - k * _LN2_HIGH) - k * _LN2_LOW
    exponent = np.int64(np.float64(shifted).view(np.int64) << 52)
    return np.int64(np.float64(_series(t, _EXP)).view(np.int64) + exponent).view(np.float64)


@inner()
def _from_float16(bits):
    """Finite ones."""
    magnitude = np.int32(bits & 0x7FFF)
    # Digits move to their place behind float32's exponent, whose bias is larger by 112.
    normal = np.int32(np.int32(magnitude << 13) + np.int32(0x38000000)).view(np.float32)
    number = normal if magnitude >= 0x400 else np.float32(np.float32(magnitude) * np.float32(2**-24))
    return -number if bits < 0 else number


@inner()
def _number(bits, form):
    if form == _FLOAT16:
        return _from_float16(bits)
    return np.int32(np.int32(bits) << 16 if form == _BFLOAT16 else np.int32(bits)).view(np.float32)


@inner()
def _ordinal(bits, least):
    """A whole number in the order of the numbers, and 0 for both zeros; `least` is the smallest integer."""
    return bits if bits >= 0 else least - bits


@inner()
def _extremes(bits_E):
    """The smallest and the largest ordinal."""
    integer, least = bits_E.dtype.type, np.iinfo(bits_E.dtype).min
    smallest, largest = integer(np.iinfo(bits_E.dtype).max), integer(least)
    for e in range(len(bits_E)):
        ordinal = integer(_ordinal(bits_E[e], least))
        smallest, largest = min(smallest, ordinal), max(largest, ordinal)
    return np.int64(smallest), np.int64(largest)


@inner()
def _top(bits_V, form):
    """The first column with the largest logit; -1 if a logit is not finite."""
    least = np.iinfo(bits_V.dtype).min
    largest, column = np.int64(least), 0
    for first in range(0, len(bits_V), _PIECE):
        smallest_here, largest_here = _extremes(bits_V[first : first + _PIECE])
        if max(largest_here, -smallest_here) >= _INFINITY[form]:
            return -1
        if largest_here > largest:
            largest, column = largest_here, first
    while _ordinal(bits_V[column], least) != largest:
        column += 1
    return column


@inner()
def _widen(bits_E, form, largest, logit_E):
    """Writes the logits less the largest one."""
    for e in range(len(bits_E)):
        logit_E[e] = np.float64(_number(bits_E[e], form)) - largest


@inner()
def _furthest(reference_E, candidate_E):
    """The largest |u|: numbers of at least 0 are in the order of their bits, whose maximum vectorises."""
    furthest = np.int64(0)
    for e in range(len(reference_E)):
        furthest = max(furthest, np.float64(abs(candidate_E[e] - reference_E[e])).view(np.int64))
    return np.int64(furthest + 0).view(np.float64)


@inner(fastmath={"contract"})
def _excess_near(P, u):
    """P (expm1(u) - u)."""
    return P * u * (u * _series(u, _EXCESS))


@inner(fastmath={"contract"})
def _excess(P, Q, u):
    """`_excess_near` of any u."""
    return _excess_near(P, u) if abs(u) < _NEAR else (Q - P) - P * u


@inner(fastmath={"reassoc", "contract", "nsz"})
def _sums_near(reference_E, candidate_E):
    """Sums of P, Q, P (expm1(u) - u) and P u, where all |u| are below `_NEAR`."""
    S = excess = change = 0.0
    for e in range(len(reference_E)):
        P, u = _exp(reference_E[e]), candidate_E[e] - reference_E[e]
        S += P
        excess += _excess_near(P, u)
        change += P * u
    return S, S + change + excess, excess, change


@inner(fastmath={"reassoc", "contract", "nsz"})
def _sums(reference_E, candidate_E):
    """`_sums_near` of any u."""
    S = S_candidate = excess = change = 0.0
    for e in range(len(reference_E)):
        P, Q, u = _exp(reference_E[e]), _exp(candidate_E[e]), candidate_E[e] - reference_E[e]
        S += P
        S_candidate += Q
        excess += _excess(P, Q, u)
        change += P * u
    return S, S_candidate, excess, change


@inner()
def _divergence(S, S_candidate, excess, change):
    """KL, and the logarithm of Σ Q / Σ P, from the sums of a token."""
    a, b = excess / S, change / S
    x = a + b
    if a + abs(b) >= 0.125:  # x is the difference of large numbers, or the series too short
        log_ratio = np.log(S_candidate / S)
        return max(log_ratio - b, 0.0), log_ratio
    # log1p(x) = 2 artanh(s) and x - 2 s = x s.
    s = x / (2.0 + x)
    psi = x * s - 2.0 * (s * s * s) * _series(s * s, _ARTANH)
    return max(a - psi, 0.0), x - psi


@inner()
def _add_sums(reference, candidate, tiles):
    """`_sums` of a token. A side is the bits of its logits, their form, and the largest logit."""
    S = S_candidate = excess = change = 0.0
    V = len(reference[0])
    for first in range(0, V, _PIECE):
        last = min(first + _PIECE, V)
        reference_E, candidate_E = tiles[0][: last - first], tiles[1][: last - first]
        _widen(reference[0][first:last], reference[1], reference[2], reference_E)
        _widen(candidate[0][first:last], candidate[1], candidate[2], candidate_E)
        if _furthest(reference_E, candidate_E) < _NEAR:
            part = _sums_near(reference_E, candidate_E)
        else:
            part = _sums(reference_E, candidate_E)
        S, S_candidate = S + part[0], S_candidate + part[1]
        excess, change = excess + part[2], change + part[3]
    return S, S_candidate, excess, change


@inner()
def _side(bits_V, form, top):
    return bits_V, form, np.float64(_number(bits_V[top], form))


@inner()
def _logit(side, column):
    return np.float64(_number(side[0][column], side[1])) - side[2]


@entry
def _compare(reference_NV, candidate_NV, forms, next_token_N, reals_KN, marks_KN, first, last):
    """Fills `Tokens` from token `first` to before `last`. Of logits that are the same bits all changes are 0."""
    tiles = np.empty(_PIECE), np.empty(_PIECE)
    for n in range(first, last):
        reference_V, candidate_V, following = reference_NV[n], candidate_NV[n], next_token_N[n]
        reference_top, candidate_top = _top(reference_V, forms[0]), _top(candidate_V, forms[1])
        finite = min(reference_top, candidate_top) >= 0
        divergence = change = 0.0
        if finite and not (forms[0] == forms[1] and np.array_equal(reference_V, candidate_V)):
            reference = _side(reference_V, forms[0], reference_top)
            candidate = _side(candidate_V, forms[1], candidate_top)
            divergence, log_ratio = _divergence(*_add_sums(reference, candidate, tiles))
            if following >= 0:
                change = _logit(candidate, following) - _logit(reference, following) - log_ratio
        reals_KN[0, n], reals_KN[1, n] = divergence, change
        marks_KN[0, n], marks_KN[1, n] = finite, not finite
        marks_KN[2, n], marks_KN[3, n] = finite and reference_top == candidate_top, finite and following >= 0


def compare(reference_NV: Tensor, candidate_NV: Tensor, next_token_N: Tensor) -> Tokens:
    """Does what `language.compare` does, for at least one token in `DTYPES`."""
    N, V = reference_NV.shape
    tokens = Tokens(torch.empty((2, N), dtype=torch.float64), torch.empty((4, N), dtype=torch.bool))
    forms = _FORM[reference_NV.dtype], _FORM[candidate_NV.dtype]
    parts = as_bits(reference_NV), as_bits(candidate_NV), forms, next_token_N.contiguous().numpy()
    outputs = tokens.reals_KN.numpy(), tokens.marks_KN.numpy()
    rows = max(1, _BLOCK // V)
    run(_compare, [(*parts, *outputs, first, min(first + rows, N)) for first in range(0, N, rows)])
    return tokens
