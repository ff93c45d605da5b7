"""The measures once more, an element at a time in plain Python: exact sums, no torch arithmetic, no chunks."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import torch

NAN, INF = math.nan, math.inf


def same(reference: float, candidate: float) -> bool:
    return reference == candidate or (math.isnan(reference) and math.isnan(candidate))


def cosine(references: list[float], candidates: list[float]) -> float:
    """1 when both are 0, 0 when one is."""
    reference_squares = sum(Fraction(value) ** 2 for value in references)
    candidate_squares = sum(Fraction(value) ** 2 for value in candidates)
    if not reference_squares or not candidate_squares:
        return float(reference_squares == candidate_squares)
    products = sum(Fraction(r) * Fraction(c) for r, c in zip(references, candidates, strict=True))
    squared = products**2 / (reference_squares * candidate_squares)
    return math.copysign(math.sqrt(squared), products)


def round_to(value: float, dtype: torch.dtype) -> float:
    """A finite float64 to `dtype`, to the nearest, ties to even; to 16 bits by way of float32."""
    if dtype == torch.float64:
        return value
    with np.errstate(over="ignore", under="ignore"):
        single = np.float32(value)
        if dtype == torch.float32:
            return float(single)
        if dtype == torch.float16:
            return float(np.float16(single))
    if math.isinf(single):
        return float(single)
    bits = struct.unpack("<I", struct.pack("<f", single))[0]
    quotient, remainder = divmod(bits, 1 << 16)  # bfloat16 is the upper half of float32
    quotient += remainder > 0x8000 or (remainder == 0x8000 and quotient % 2 == 1)
    return struct.unpack("<f", struct.pack("<I", quotient << 16))[0]


def rank(value: float, dtype: torch.dtype) -> int:
    """How many steps of `dtype` a value of that dtype lies above 0, from exponent and significand."""
    info = torch.finfo(dtype)
    if math.isinf(value):
        largest = rank(info.max, dtype)
        return largest + 1 if value > 0 else -largest - 1
    digits = round(-math.log2(info.eps))
    lowest = round(math.log2(info.smallest_normal))
    if value == 0:
        return 0
    exponent = max(math.frexp(abs(value))[1] - 1, lowest)
    steps = Fraction(abs(value)) / Fraction(2) ** (exponent - digits) + (exponent - lowest) * 2**digits
    assert steps.denominator == 1
    return int(math.copysign(1, value)) * int(steps)


def measures(
    reference: list[list[float]], candidate: list[list[float]], coarser: torch.dtype, rtol: float, atol: float
) -> dict[str, object]:
    """`PairMeasures` as a dict. Values are Python floats, rows are tokens."""
    elements = [
        (row, column, r, c)
        for row, (references, candidates) in enumerate(zip(reference, candidate, strict=True))
        for column, (r, c) in enumerate(zip(references, candidates, strict=True))
    ]
    finite = [element for element in elements if math.isfinite(element[2]) and math.isfinite(element[3])]
    mismatch = sum(not same(r, c) for _, _, r, c in elements if not (math.isfinite(r) and math.isfinite(c)))
    close = all(abs(c - r) <= atol + rtol * abs(r) for _, _, r, c in finite)
    result: dict[str, object] = {
        "numel": len(elements),
        "finite": len(finite),
        "equal_fraction": sum(same(r, c) for _, _, r, c in elements) / len(elements) if elements else NAN,
        "allclose": close and mismatch == 0,
        "rtol": rtol,
        "atol": atol,
        "reference_nan": sum(math.isnan(r) for _, _, r, _ in elements),
        "candidate_nan": sum(math.isnan(c) for _, _, _, c in elements),
        "reference_inf": sum(math.isinf(r) for _, _, r, _ in elements),
        "candidate_inf": sum(math.isinf(c) for _, _, _, c in elements),
        "nonfinite_mismatch": mismatch,
    }
    return result | _finite_measures(finite, coarser)


def _finite_measures(finite: list[tuple[int, int, float, float]], coarser: torch.dtype) -> dict[str, object]:
    real = ("max_abs", "mean_abs", "rms", "rel_l2", "sqnr_db", "cosine", "min_token_cosine", "max_ulp")
    where = ("worst_token", "worst_feature", "worst_reference", "worst_candidate")
    if not finite:
        return dict.fromkeys(real, NAN) | dict.fromkeys(where)
    differences = [c - r for _, _, r, c in finite]
    max_abs = max(map(abs, differences))
    worst = finite[[abs(d) for d in differences].index(max_abs)]
    difference_squares = math.fsum(d * d for d in differences)
    reference_squares = math.fsum(r * r for _, _, r, _ in finite)
    ratio = math.sqrt(difference_squares / reference_squares) if reference_squares else INF
    rel_l2 = ratio if difference_squares else 0.0
    tokens: dict[int, list[tuple[float, float]]] = {}
    for row, _, r, c in finite:
        tokens.setdefault(row, []).append((r, c))
    return {
        "max_abs": max_abs,
        "mean_abs": math.fsum(map(abs, differences)) / len(finite),
        "rms": math.sqrt(difference_squares / len(finite)),
        "rel_l2": rel_l2,
        "sqnr_db": -20 * math.log10(rel_l2) if 0 < rel_l2 < INF else (INF if rel_l2 == 0 else -INF),
        "cosine": cosine([r for _, _, r, _ in finite], [c for _, _, _, c in finite]),
        "min_token_cosine": min(cosine([r for r, _ in pairs], [c for _, c in pairs]) for pairs in tokens.values()),
        "max_ulp": float(
            max(abs(rank(round_to(r, coarser), coarser) - rank(round_to(c, coarser), coarser)) for _, _, r, c in finite)
        ),
        "worst_token": worst[0],
        "worst_feature": worst[1],
        "worst_reference": worst[2],
        "worst_candidate": worst[3],
    }
