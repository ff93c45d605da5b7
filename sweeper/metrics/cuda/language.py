"""The figures of `language.py` on a GPU, in one launch that reads both logits twice. Needs Triton.

A program takes one token: first the largest logit of each side, then four sums in float64. With P = exp(r - max r),
Q = exp(c - max c) and u = (c - max c) - (r - max r), hence Q = P exp(u), these are

    S = Σ P,    Σ Q,    a = Σ P (expm1(u) - u) / S,    b = Σ P u / S

and then, with x = a + b = Σ Q / S - 1 and ψ(x) = x - log1p(x),

    KL = log1p(x) - b = a - ψ(x)

a and ψ(x) are of the second order in u, so that KL keeps its digits however alike the logits are; it loses at most a
factor of S, and S is 1 over the largest probability. The order of additions depends on V, strides and alignment
alone, and there are no atomics, so a token's bits are the same in every run, and in every batch whose logits lie in
memory like these. Nothing synchronises with the device.

Shapes: N tokens, V vocabulary, W columns in one turn of a loop.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sweeper.metrics.cuda.elements import FAR, as_float32
from sweeper.metrics.language import Tokens

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Columns in one turn: of the sums, which take many registers, and of the maxima, which only wait for memory.
_WIDTHS = {"SUMS": 1024, "MAXIMA": 4096}
_WARPS = 8
_TERMS = tl.constexpr(10)
# Of (expm1(u) - u) / u**2, the last one first: to 1e-17 where u is below 1/8.
_EXCESS = tl.constexpr(tuple(1 / math.factorial(power + 2) for power in reversed(range(_TERMS.value))))


class _Side(NamedTuple):
    """One side's logits of a token: the address of the first, and how far apart they are."""

    start: Any
    column: Any


class _Sums(NamedTuple):
    """What a lane's columns gave so far: float64, and int32."""

    reference: Any  # P
    candidate: Any  # Q
    excess: Any  # P (expm1(u) - u)
    change: Any  # P u
    reference_top: Any  # the first column with the largest logit
    candidate_top: Any


@triton.jit
def _load(side, column_W, V):
    """Loads a window in float32; -inf outside."""
    place_W = side.start + column_W.to(tl.int64) * side.column
    return as_float32(tl.load(place_W, column_W < V, other=-float("inf")))


@triton.jit
def _largest(reference, candidate, V, W: tl.constexpr):
    r_W = tl.full((W,), -float("inf"), tl.float32)
    c_W = r_W
    for first in range(0, V, W):
        column_W = first + tl.arange(0, W)
        r_W = tl.maximum(r_W, _load(reference, column_W, V))
        c_W = tl.maximum(c_W, _load(candidate, column_W, V))
    return tl.max(r_W, 0), tl.max(c_W, 0)


@triton.jit
def _excess(P, Q, u):
    """P (expm1(u) - u), by its Taylor series where u is small."""
    series = u * _EXCESS[0] + _EXCESS[1]
    for term in tl.static_range(2, _TERMS):
        series = series * u + _EXCESS[term]
    return tl.where(tl.abs(u) < 0.125, P * (u * u) * series, Q - P - P * u)


@triton.jit
def _add(sums, column_W, V, r32_W, c32_W, largest_r, largest_c):
    r_W = r32_W.to(tl.float64) - largest_r.to(tl.float64)
    c_W = c32_W.to(tl.float64) - largest_c.to(tl.float64)
    u_W = tl.where(column_W < V, c_W - r_W, 0.0)
    P_W, Q_W = tl.exp(r_W), tl.exp(c_W)
    return _Sums(
        sums.reference + P_W,
        sums.candidate + Q_W,
        sums.excess + _excess(P_W, Q_W, u_W),
        sums.change + P_W * u_W,
        tl.minimum(sums.reference_top, tl.where(r32_W == largest_r, column_W, FAR)),
        tl.minimum(sums.candidate_top, tl.where(c32_W == largest_c, column_W, FAR)),
    )


@triton.jit
def _sums(reference, candidate, V, largest_r, largest_c, W: tl.constexpr):
    """Loads of the next columns start before these are used."""
    zero_W, far_W = tl.zeros((W,), tl.float64), tl.full((W,), FAR, tl.int32)
    sums = _Sums(zero_W, zero_W, zero_W, zero_W, far_W, far_W)
    next_r, next_c = _load(reference, tl.arange(0, W), V), _load(candidate, tl.arange(0, W), V)
    for first in range(0, V, W):
        column_W = first + tl.arange(0, W)
        r_W, c_W = next_r, next_c
        next_r, next_c = _load(reference, column_W + W, V), _load(candidate, column_W + W, V)
        sums = _add(sums, column_W, V, r_W, c_W, largest_r, largest_c)
    return sums


@triton.jit
def _divergence(sums):
    """KL, and the logarithm of Σ Q / Σ P."""
    S, Q = tl.sum(sums.reference, 0), tl.sum(sums.candidate, 0)
    a, b = tl.sum(sums.excess, 0) / S, tl.sum(sums.change, 0) / S
    x = a + b
    # log1p(x) = 2 artanh(s) and x - 2 s = x s.
    s = x / (2.0 + x)
    series = tl.full((), 1.0 / 15, tl.float64)
    for k in tl.static_range(13, 1, -2):
        series = series * (s * s) + 1.0 / k
    psi = x * s - 2.0 * (s * s * s) * series
    log_ratio = tl.log(Q / S)
    near = a + tl.abs(b) < 0.125  # else x is the difference of large numbers, or the series is too short
    return tl.where(near, a - psi, log_ratio - b), tl.where(near, x - psi, log_ratio)


@triton.jit(do_not_specialize=["N"])
def _compare(
    reference, candidate, next_token, reals, marks, N, V,
    reference_row, reference_column, candidate_row, candidate_column,
    SUMS: tl.constexpr, MAXIMA: tl.constexpr,
):  # fmt: skip
    """Fills `Tokens`. A logit that is NaN or infinite needs no look: it makes a sum of P u so."""
    token = tl.program_id(0)
    reference = _Side(reference + token.to(tl.int64) * reference_row, reference_column)
    candidate = _Side(candidate + token.to(tl.int64) * candidate_row, candidate_column)
    largest_r, largest_c = _largest(reference, candidate, V, MAXIMA)
    sums = _sums(reference, candidate, V, largest_r, largest_c, SUMS)
    finite = tl.abs(tl.sum(sums.change, 0)) < float("inf")
    kl, log_ratio = _divergence(sums)

    following = tl.load(next_token + token)
    followed = finite & (following >= 0)
    place = tl.maximum(following, 0).to(tl.int32)
    r, c = _load(reference, place, V).to(tl.float64), _load(candidate, place, V).to(tl.float64)
    change = (c - largest_c.to(tl.float64)) - (r - largest_r.to(tl.float64)) - log_ratio
    tl.store(reals + token, tl.where(finite & (kl > 0), kl, 0.0))
    tl.store(reals + N + token, tl.where(followed, change, 0.0))
    tl.store(marks + token, finite)
    tl.store(marks + N + token, ~finite)
    tl.store(marks + 2 * N + token, finite & (tl.min(sums.reference_top, 0) == tl.min(sums.candidate_top, 0)))
    tl.store(marks + 3 * N + token, followed)


def compare(reference_NV: Tensor, candidate_NV: Tensor, next_token_N: Tensor) -> Tokens:
    """Does what `language.compare` does, for at least one token in `DTYPES`."""
    N, V = reference_NV.shape
    tokens = Tokens(
        torch.empty((2, N), dtype=torch.float64, device=reference_NV.device),
        torch.empty((4, N), dtype=torch.bool, device=reference_NV.device),
    )
    with torch.cuda.device_of(reference_NV):
        _compare[(N,)](
            *(reference_NV, candidate_NV, next_token_N.contiguous(), *tokens, N, V),
            *(*reference_NV.stride(), *candidate_NV.stride()),
            **_WIDTHS,
            num_warps=_WARPS,
        )
    return tokens
