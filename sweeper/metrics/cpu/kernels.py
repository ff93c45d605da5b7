"""The compiled loops of `cpu.py`: numba takes them to the processor's own vector instructions.

A block of rows is measured a *tile* at a time. A tile is widened to float32, which is exact and stays in the
first-level cache, and then read in passes that each vectorise: distances in integers, bounds in float32 (which tell
whether the tile can hold a new maximum), sums in float64. What is not finite on both sides is found by its bits while
it is widened, counted, and made 0.

`reassoc` lets a sum run in vector lanes; which ones is settled when a loop is compiled, and depends on the length of a
row alone. No flag lets the compiler take numbers for finite.

Shapes: E elements of consecutive rows, F features, K fields of a state.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import numpy as np

from sweeper.metrics.cpu.compiled import entry, inner
from sweeper.metrics.precision import INT64_MIN
from sweeper.metrics.sums import Count, Real

# How the bits of an element are to be read, and the format in which ULPs are counted.
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2

_TILE = 4096  # elements: two tiles of float32 are 32 KiB
_INFINITY = 0x7F800000
_FIELDS = 6  # of an unfinished row: the five sums, and how many elements are finite

# Written out, because numba keeps compiled code until this file changes: it does not see the enums change.
_ABS_SUM, _REFERENCES, _CANDIDATES, _DIFFERENCES, _PRODUCTS = 0, 1, 2, 3, 4
_MAX_ABS, _MAX_EXCESS, _MIN_COSINE, _WORST_REFERENCE, _WORST_CANDIDATE = 5, 6, 7, 8, 9
_ROWS, _NUMEL, _FINITE, _UNEQUAL, _MISMATCH, _REFERENCE_NAN = 0, 1, 2, 3, 4, 5
_CANDIDATE_NAN, _REFERENCE_INF, _CANDIDATE_INF, _MAX_ULP, _WORST_TOKEN, _WORST_FEATURE = 6, 7, 8, 9, 10, 11
assert [*Real] == [
    *(Real.ABS_SUM, Real.REFERENCE_SQUARES, Real.CANDIDATE_SQUARES, Real.DIFFERENCE_SQUARES, Real.PRODUCTS),
    *(Real.MAX_ABS, Real.MAX_EXCESS, Real.MIN_TOKEN_COSINE, Real.WORST_REFERENCE, Real.WORST_CANDIDATE),
]
assert [*Count] == [
    *(Count.ROWS, Count.NUMEL, Count.FINITE, Count.UNEQUAL, Count.NONFINITE_MISMATCH, Count.REFERENCE_NAN),
    *(Count.CANDIDATE_NAN, Count.REFERENCE_INF, Count.CANDIDATE_INF, Count.MAX_ULP),
    *(Count.WORST_TOKEN, Count.WORST_FEATURE),
]


@inner()
def _float32(bits):
    return np.int32(bits).view(np.float32)


@inner()
def _bits(number):
    return np.float32(number).view(np.int32)


@inner()
def _float16_bits(bits):
    """The bits of the same number in float32."""
    magnitude = np.int32(bits & 0x7FFF)
    sign = np.int32(np.int32(bits & 0x8000) << 16)
    # Digits move to their place behind float32's exponent, whose bias is larger by 112.
    normal = np.int32(np.int32(magnitude << 13) + np.int32(0x38000000))
    special = np.int32(np.int32(magnitude << 13) | np.int32(_INFINITY))
    # Subnormals: digits are read behind those of 2**-14, which is taken off again.
    subnormal = _bits(_float32(np.int32(np.int32(magnitude << 13) | np.int32(0x38800000))) - np.float32(2**-14))
    return sign | (special if magnitude >= 0x7C00 else normal if magnitude >= 0x400 else subnormal)


@inner()
def _widen(bits_E, form, wide_E):
    """Writes the same numbers as float32. Returns the bits of the largest magnitude, with infinity and NaN on top."""
    largest = np.int32(0)
    if form == FLOAT16:
        for e in range(len(bits_E)):
            bits = _float16_bits(bits_E[e])
            wide_E[e] = _float32(bits)
            largest = max(largest, np.int32(bits & 0x7FFFFFFF))
    elif form == BFLOAT16:
        for e in range(len(bits_E)):
            bits = np.int32(np.int32(bits_E[e]) << 16)
            wide_E[e] = _float32(bits)
            largest = max(largest, np.int32(bits & 0x7FFFFFFF))
    else:
        for e in range(len(bits_E)):
            bits = np.int32(bits_E[e])
            wide_E[e] = _float32(bits)
            largest = max(largest, np.int32(bits & 0x7FFFFFFF))
    return largest


@inner()
def _ordinal(number, coarser):
    """`precision.ordinal` of the number, rounded to `coarser`: to the nearest, ties to even."""
    bits = _bits(number)
    magnitude = np.int32(bits & 0x7FFFFFFF)
    if coarser == BFLOAT16:
        magnitude = np.int32(np.int32(magnitude + 0x7FFF + np.int32(np.int32(magnitude >> 16) & 1)) >> 16)
    elif coarser == FLOAT16:
        odd = np.int32(np.int32(magnitude >> 13) & 1)
        normal = min(np.int32(np.int32(magnitude - 0x38000000 + 0xFFF + odd) >> 13), np.int32(0x7C00))
        # The last digits of 0.5 are float16's subnormals: adding it rounds to them.
        subnormal = np.int32(_bits(_float32(magnitude) + np.float32(0.5)) - np.int32(0x3F000000))
        magnitude = subnormal if magnitude < 0x38800000 else normal
    sign = np.int32(bits >> 31)
    return np.int32(np.int32(magnitude ^ sign) - sign)


@inner()
def _distance(reference, candidate, coarser):
    """Wraps around modulo 2**32, hence is right as an unsigned number."""
    reference_ordinal, candidate_ordinal = _ordinal(reference, coarser), _ordinal(candidate, coarser)
    larger, smaller = max(reference_ordinal, candidate_ordinal), min(reference_ordinal, candidate_ordinal)
    return np.uint32(np.uint32(larger) - np.uint32(smaller))


@inner()
def _max_distance(reference_E, candidate_E, coarser):
    """The largest distance in ULPs."""
    largest = np.uint32(0)
    if coarser == BFLOAT16:
        for e in range(len(reference_E)):
            largest = max(largest, _distance(reference_E[e], candidate_E[e], BFLOAT16))
    elif coarser == FLOAT16:
        for e in range(len(reference_E)):
            largest = max(largest, _distance(reference_E[e], candidate_E[e], FLOAT16))
    else:
        for e in range(len(reference_E)):
            largest = max(largest, _distance(reference_E[e], candidate_E[e], FLOAT32))
    return np.int64(largest)


@inner()
def _max_distance_16(reference_E, candidate_E):
    """`_max_distance` of finite numbers in one format of 16 bits, by their bits: twice as many lanes, no rounding."""
    largest = np.uint16(0)
    for e in range(len(reference_E)):
        reference_sign, candidate_sign = np.int16(reference_E[e] >> 15), np.int16(candidate_E[e] >> 15)
        reference = np.int16(np.int16(np.int16(reference_E[e] & 0x7FFF) ^ reference_sign) - reference_sign)
        candidate = np.int16(np.int16(np.int16(candidate_E[e] & 0x7FFF) ^ candidate_sign) - candidate_sign)
        distance = np.uint16(np.uint16(max(reference, candidate)) - np.uint16(min(reference, candidate)))
        largest = max(largest, distance)
    return np.int64(largest)


@inner(fastmath={"contract"})
def _bounds(reference_E, candidate_E, rtol):
    """Counts what differs, rounds max_abs to float32, and bounds max_excess from above, all in float32.

    Rounding keeps order. Numbers above 0 are compared by their bits, which vectorises; those below have negative bits.
    """
    unequal, max_abs, max_excess = np.int32(0), np.int32(0), np.int32(0)
    more, less = np.float32(1 + 2**-20), np.float32(rtol * (1 - 2**-20))
    for e in range(len(reference_E)):
        difference = np.float32(abs(np.float32(candidate_E[e] - reference_E[e])))
        excess = np.float32(np.float32(difference * more) - np.float32(less * np.float32(abs(reference_E[e]))))
        unequal = np.int32(unequal + np.int32(reference_E[e] != candidate_E[e]))
        max_abs = max(max_abs, _bits(difference))
        max_excess = max(max_excess, _bits(excess))
    return unequal, _float32(max_abs), _float32(max_excess)


@inner()
def _maxima(reference_E, candidate_E, rtol):
    """max_abs and max_excess, in float64."""
    max_abs, max_excess = np.int64(0), np.int64(0)
    for e in range(len(reference_E)):
        reference = np.float64(reference_E[e])
        difference = abs(np.float64(candidate_E[e]) - reference)
        max_abs = max(max_abs, np.float64(difference).view(np.int64))
        max_excess = max(max_excess, np.float64(difference - rtol * abs(reference)).view(np.int64))
    return np.int64(max_abs + 0).view(np.float64), np.int64(max_excess + 0).view(np.float64)


@inner(fastmath={"reassoc", "contract", "nsz"})
def _add_sums(reference_F, candidate_F, row_K):
    """Adds |difference|, squares of the reference, the candidate and the difference, and products."""
    abs_sum = references = candidates = differences = products = 0.0
    for f in range(len(reference_F)):
        reference, candidate = np.float64(reference_F[f]), np.float64(candidate_F[f])
        difference = candidate - reference
        abs_sum += abs(difference)
        references += reference * reference
        candidates += candidate * candidate
        differences += difference * difference
        products += reference * candidate
    row_K[_ABS_SUM] += abs_sum
    row_K[_REFERENCES] += references
    row_K[_CANDIDATES] += candidates
    row_K[_DIFFERENCES] += differences
    row_K[_PRODUCTS] += products


@inner(fastmath={"reassoc", "contract", "nsz"})
def _add_squares(reference_F, row_K):
    """`_add_sums` of a row with itself."""
    squares = 0.0
    for f in range(len(reference_F)):
        reference = np.float64(reference_F[f])
        squares += reference * reference
    row_K[_REFERENCES] += squares
    row_K[_CANDIDATES] += squares
    row_K[_PRODUCTS] += squares


@inner()
def _cosine(row_K):
    """`pair.cosine`; nothing overflows, as squares of float32 are small for float64."""
    if row_K[_DIFFERENCES] == 0:
        return 1.0
    if row_K[_REFERENCES] == 0 or row_K[_CANDIDATES] == 0:
        return 0.0
    ratio = row_K[_PRODUCTS] / (np.sqrt(row_K[_REFERENCES]) * np.sqrt(row_K[_CANDIDATES]))
    return min(max(ratio, -1.0), 1.0)


@inner()
def _add_row(row_K, reals_K):
    """Adds a row that is finished, and begins the next."""
    if row_K[_FIELDS - 1]:
        reals_K[_MIN_COSINE] = min(reals_K[_MIN_COSINE], _cosine(row_K))
    for k in range(_MAX_ABS):
        reals_K[k] += row_K[k]
    for k in range(_FIELDS):
        row_K[k] = 0


@inner()
def _mask(reference_E, candidate_E, finite_E, counts_K):
    """Makes 0 on both sides what is not finite on both, and adds to the counts from NONFINITE_MISMATCH on."""
    for e in range(len(reference_E)):
        reference, candidate = reference_E[e], candidate_E[e]
        finite_E[e] = np.isfinite(reference) and np.isfinite(candidate)
        same = reference == candidate or (np.isnan(reference) and np.isnan(candidate))
        counts_K[_MISMATCH] += not (same or finite_E[e])
        counts_K[_REFERENCE_NAN] += np.isnan(reference)
        counts_K[_CANDIDATE_NAN] += np.isnan(candidate)
        counts_K[_REFERENCE_INF] += np.isinf(reference)
        counts_K[_CANDIDATE_INF] += np.isinf(candidate)
        if not finite_E[e]:
            reference_E[e] = candidate_E[e] = 0


@inner()
def _add_worst(reference_E, candidate_E, finite_E, start, F, max_abs, reals_K, counts_K):
    """Notes the first element whose |difference| is `max_abs`; elements are counted from `start`."""
    for e in range(len(reference_E)):
        if (not len(finite_E) or finite_E[e]) and abs(
            np.float64(candidate_E[e]) - np.float64(reference_E[e])
        ) == max_abs:
            reals_K[_MAX_ABS] = max_abs
            reals_K[_WORST_REFERENCE] = reference_E[e]
            reals_K[_WORST_CANDIDATE] = candidate_E[e]
            counts_K[_WORST_TOKEN] = (start + e) // F
            counts_K[_WORST_FEATURE] = (start + e) % F
            return


@inner()
def _count(flag_E):
    count = 0
    for e in range(len(flag_E)):
        count += flag_E[e]
    return count


@inner()
def _add_rows(reference_E, candidate_E, finite_E, start, F, differ, row_K, reals_K):
    """Adds the sums of some rows, or of a part of one. `finite_E` is empty where all elements are finite."""
    for row in range(0, len(reference_E), F):
        reference_F, candidate_F = reference_E[row : row + F], candidate_E[row : row + F]
        row_K[_FIELDS - 1] += _count(finite_E[row : row + F]) if len(finite_E) else len(reference_F)
        if differ:
            _add_sums(reference_F, candidate_F, row_K)
        else:
            _add_squares(reference_F, row_K)
        if (start + row + len(reference_F)) % F == 0:
            _add_row(row_K, reals_K)


@inner()
def _add_maxima(reference_E, candidate_E, finite_E, start, F, bounds, rtol, reals_K, counts_K):
    """Looks for new maxima in float64, if the bounds (unequal, max_abs, max_excess) allow any."""
    unequal, max_abs_bound, max_excess_bound = bounds
    max_abs = max_excess = 0.0
    if unequal and (max_abs_bound >= np.float32(reals_K[_MAX_ABS]) or max_excess_bound > reals_K[_MAX_EXCESS]):
        max_abs, max_excess = _maxima(reference_E, candidate_E, rtol)
    reals_K[_MAX_EXCESS] = max(reals_K[_MAX_EXCESS], max_excess)
    if max_abs > reals_K[_MAX_ABS]:
        _add_worst(reference_E, candidate_E, finite_E, start, F, max_abs, reals_K, counts_K)


@inner()
def _add_tile(reference_bits, candidate_bits, forms, tiles, start, F, rtol, row_K, reals_K, counts_K):
    """Adds some rows, or a part of one, whose elements are counted from `start`.

    `tiles` is memory for the numbers of both sides, and for which of them are finite on both.
    """
    E = len(reference_bits)
    reference_form, candidate_form, coarser = forms
    reference_E, candidate_E, finite_E = tiles[0][:E], tiles[1][:E], tiles[2][:0]
    reference_largest = _widen(reference_bits, reference_form, reference_E)
    candidate_largest = _widen(candidate_bits, candidate_form, candidate_E)
    if max(reference_largest, candidate_largest) >= _INFINITY:
        finite_E = tiles[2][:E]
        _mask(reference_E, candidate_E, finite_E, counts_K)
    bounds = _bounds(reference_E, candidate_E, rtol)
    if bounds[0]:
        if reference_form == candidate_form != FLOAT32 and not len(finite_E):
            distance = _max_distance_16(reference_bits, candidate_bits)
        else:
            distance = _max_distance(reference_E, candidate_E, coarser)
        counts_K[_MAX_ULP] = max(counts_K[_MAX_ULP], INT64_MIN + distance)
    _add_maxima(reference_E, candidate_E, finite_E, start, F, bounds, rtol, reals_K, counts_K)
    _add_rows(reference_E, candidate_E, finite_E, start, F, bounds[0], row_K, reals_K)
    counts_K[_FINITE] += _count(finite_E) if len(finite_E) else E
    counts_K[_UNEQUAL] += bounds[0]


@inner()
def _clear(reals_K, counts_K):
    """`state.empty_state`."""
    for k in range(len(reals_K)):
        reals_K[k] = 0
    for k in range(len(counts_K)):
        counts_K[k] = 0
    reals_K[_MAX_ABS] = -1
    reals_K[_MIN_COSINE] = np.inf
    reals_K[_WORST_REFERENCE] = reals_K[_WORST_CANDIDATE] = np.nan
    counts_K[_MAX_ULP] = INT64_MIN
    counts_K[_WORST_TOKEN] = counts_K[_WORST_FEATURE] = -1


@entry
def measure(reference_E, candidate_E, forms, F, rtol, reals_K, counts_K):
    """Writes the state of some rows.

    Args:
        reference_E, candidate_E: the bits of the elements, contiguous; int16 or int32.
        forms: the formats of both, and the one in which ULPs are counted.
        reals_K, counts_K: what is written.
    """
    _clear(reals_K, counts_K)
    rows = max(1, _TILE // F)
    size = min(F, _TILE) * rows
    tiles = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.bool_)
    row_K = np.zeros(_FIELDS)
    for first in range(0, len(reference_E), rows * F):
        last = min(first + rows * F, len(reference_E))
        for start in range(first, last, size):
            here = slice(start, min(start + size, last))
            _add_tile(reference_E[here], candidate_E[here], forms, tiles, start, F, rtol, row_K, reals_K, counts_K)
    counts_K[_ROWS] = len(reference_E) // F
    counts_K[_NUMEL] = len(reference_E)


@entry
def join(reals_BK, counts_BK, reals_K, counts_K):
    """`state.merge` of a state with others, in order and in place."""
    for b in range(len(reals_BK)):
        if reals_BK[b, _MAX_ABS] > reals_K[_MAX_ABS]:
            reals_K[_MAX_ABS] = reals_BK[b, _MAX_ABS]
            reals_K[_WORST_REFERENCE] = reals_BK[b, _WORST_REFERENCE]
            reals_K[_WORST_CANDIDATE] = reals_BK[b, _WORST_CANDIDATE]
            counts_K[_WORST_TOKEN] = counts_K[_ROWS] + counts_BK[b, _WORST_TOKEN]
            counts_K[_WORST_FEATURE] = counts_BK[b, _WORST_FEATURE]
        for k in range(_MAX_ABS):
            reals_K[k] += reals_BK[b, k]
        reals_K[_MAX_EXCESS] = max(reals_K[_MAX_EXCESS], reals_BK[b, _MAX_EXCESS])
        reals_K[_MIN_COSINE] = min(reals_K[_MIN_COSINE], reals_BK[b, _MIN_COSINE])
        for k in range(_MAX_ULP):
            counts_K[k] += counts_BK[b, k]
        counts_K[_MAX_ULP] = max(counts_K[_MAX_ULP], counts_BK[b, _MAX_ULP])
