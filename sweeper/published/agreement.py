"""The rule that says whether a measured number reproduces a published one."""

from __future__ import annotations

import math
from enum import StrEnum

from sweeper.published.publication import INPUTS, RAW_VALUES, SHARES, TRUTHS, Number

SAME_ORDER_FACTOR = 3.0
"""About the square root of ten: nearer than half a power of ten."""


class Agreement(StrEnum):
    """How a measured number stands to the published one, best first; the text is what tables show."""

    BITWISE = "bitwise"
    PRINTED_DIGITS = "to the printed digits"
    SAME_ORDER = "same order"
    NOT_REPRODUCED = "not reproduced"
    NOT_COMPARABLE = "not comparable"


def agreement(number: Number, measured: float | None, *, same_checkpoint: bool) -> tuple[Agreement, str | None]:
    """Whether a measured number reproduces a published one, and why not. The first line that holds decides.

    1. *Not comparable*: nothing was measured, or an element of an output (`RAW_VALUES`) was, of other weights.
    2. *Not reproduced*: not finite.
    3. *Bitwise*: the printed digits belong to one number of the dtype that it was computed in, and it is `measured`.
    4. *To the printed digits*: `measured`, rounded to the digits printed, gives them; or first rounded to the dtype
       that the published number was computed in. Python prints all digits of a float, so there (`exact`) only the
       second counts: a difference printed as 0.0 is zero, and not anything below 0.05.
    5. *Same order*: the ratio lies in [1/3, 3] (`SAME_ORDER_FACTOR`), so the sign is the same; zero equals only zero.
       Of a share, what is left to 1 must agree as well: 0.35 of all elements equal is not the order of all of them.
       Inputs and truths have no order.
    6. *Not reproduced*: otherwise.

    With another checkpoint than the published one, inputs are compared as above. All else is at best *same order*:
    equal digits of other weights are chance, equal zeros the same finding.

    Args:
        number: the published number.
        measured: as the quantity says, in float64; True is 1, False is 0; None where the run has no such figure.
        same_checkpoint: whether it was measured on the published checkpoint.
    """
    quantity = number.figure.quantity
    if measured is None:
        return Agreement.NOT_COMPARABLE, None
    if quantity in RAW_VALUES and not same_checkpoint:
        return Agreement.NOT_COMPARABLE, "single elements of an output mean nothing with other weights"
    found, why = _closeness(number, measured)
    if same_checkpoint or (quantity in INPUTS and found is not Agreement.NOT_REPRODUCED):
        return found, why
    return (Agreement.SAME_ORDER, None) if why is None else (found, f"{why}, on another checkpoint")


def _closeness(number: Number, measured: float) -> tuple[Agreement, str | None]:
    quantity, published = number.figure.quantity, number.value
    if not math.isfinite(measured):
        return Agreement.NOT_REPRODUCED, "not finite"
    if measured == number.identified:
        return Agreement.BITWISE, None
    if number.shows(measured):
        return Agreement.PRINTED_DIGITS, None
    if quantity in INPUTS | TRUTHS:
        return Agreement.NOT_REPRODUCED, "another value"
    if 0 in (published, measured):
        return Agreement.NOT_REPRODUCED, "zero equals only zero"
    why = f"more than {SAME_ORDER_FACTOR:g} times apart"
    alike = _same_order(published, measured)
    if quantity in SHARES:
        why += ", or so in what is left to 1"
        alike = alike and _same_order(1 - published, 1 - measured)
    return (Agreement.SAME_ORDER, None) if alike else (Agreement.NOT_REPRODUCED, why)


def _same_order(published: float, measured: float) -> bool:
    if 0 in (published, measured):
        return published == measured
    return 1 / SAME_ORDER_FACTOR <= measured / published <= SAME_ORDER_FACTOR
