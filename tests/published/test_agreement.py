"""Published figures as data, and the rule that says whether a measured number reproduces one."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.config import Dtype
from sweeper.errors import ConfigError
from sweeper.published.agreement import Agreement, agreement
from sweeper.published.publication import Figure, Number, Quantity, load, round_to
from tests.published.quotations import check_numbers_exist_in_their_dtype, check_quotations, quoted_blocks

ROOT = Path(__file__).parents[2]
PUBLIC_ISSUES = ROOT / "conf" / "reported" / "public_issues.yaml"


def test_the_figures_of_public_threads_are_what_the_threads_print() -> None:
    operators = PUBLIC_ISSUES.with_name("operators.yaml")  # numbers out of papers and notes: only their form is checked
    assert sorted(PUBLIC_ISSUES.parent.glob("*.yaml")) == [operators, PUBLIC_ISSUES]  # others need their quotations too
    check_numbers_exist_in_their_dtype(load(operators))
    publication = load(PUBLIC_ISSUES)
    check_quotations(publication, quoted_blocks(ROOT / "tests" / "data" / "published" / "public_issues.txt"))
    check_numbers_exist_in_their_dtype(publication)


@settings(deadline=None, max_examples=300)
@given(st.floats(-60000, 60000), st.sampled_from([Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32]))
def test_rounding_is_torchs(value: float, dtype: Dtype) -> None:
    value = torch.tensor(value, dtype=torch.float32).item()  # torch goes through float32, which would round twice
    assert round_to(value, dtype) == torch.tensor(value).to(getattr(torch, dtype)).item()


@settings(deadline=None, max_examples=300)
@given(st.floats(-1000, 1000))
def test_what_torch_prints_of_a_bfloat16_is_reproduced_by_it(value: float) -> None:
    tensor = torch.tensor(value, dtype=torch.bfloat16)
    printed = re.search(r"\((-?[\d.]+(?:e[+-]\d+)?)", repr(tensor))
    assert printed is not None
    text = printed[1] + "0000" if printed[1].endswith(".") else printed[1]
    found = agreement(number(text, computed_in=Dtype.BFLOAT16), tensor.item(), same_checkpoint=True)[0]
    assert found in (Agreement.BITWISE, Agreement.PRINTED_DIGITS)
    assert (found is Agreement.BITWISE) == (number(text, computed_in=Dtype.BFLOAT16).identified == tensor.item())


def number(
    printed: str,
    quantity: Quantity = Quantity.OUTPUT_MEAN_ABS,
    computed_in: Dtype = Dtype.FLOAT64,
    exact: bool = False,
) -> Number:
    figure = Figure(
        id="one", section="", snippet="", quantity=quantity, computed_in=computed_in, exact=exact, values=printed
    )
    return figure.numbers()[0]


BITWISE, DIGITS, ORDER, NOT = list(Agreement)[:4]
BF16 = Dtype.BFLOAT16
VALUE, SHARE, IDS = Quantity.OUTPUT_VALUE, Quantity.OUTPUT_EQUAL_FRACTION, Quantity.TOKEN_IDS
TRUTH = Quantity.OUTPUT_ALLCLOSE


@pytest.mark.parametrize(
    ("published", "measured", "expected"),
    [
        (number("-0.4180", VALUE, BF16), -0.41796875, BITWISE),  # the only bfloat16 that prints so
        (number("-0.4180", VALUE, BF16), -0.418, DIGITS),
        (number("-0.4180", VALUE, BF16), -0.2715, ORDER),
        (number("-0.4180", VALUE, BF16), 0.418, NOT),  # the other sign
        (number("-0.0121", VALUE, BF16), -198 / 2**14, DIGITS),  # two bfloat16 print so
        (number("1.3504e-03", VALUE, BF16), 177 / 2**17, BITWISE),
        (number("0.0762", computed_in=BF16), 0.07618, DIGITS),
        (number("0.0762", computed_in=BF16), 0.0761, DIGITS),  # prints 0.0761, and rounds to the bfloat16 0.0762
        (number("0.0762"), 0.0761, ORDER),
        (number("0.0762", computed_in=BF16), 0.2287, NOT),  # more than three times
        (number("0.0762", computed_in=BF16), math.nan, NOT),
        (number("0.0762", computed_in=BF16), math.inf, NOT),
        (number("0.1484375", computed_in=BF16, exact=True), 0.1484375, BITWISE),
        (number("0.1484375", computed_in=BF16, exact=True), 0.1486, DIGITS),
        (number("6.0", computed_in=BF16, exact=True), 5.97, ORDER),  # Python printed all digits: it was 6
        (number("0.0", computed_in=BF16, exact=True), 0.0, BITWISE),
        (number("0.0", computed_in=BF16, exact=True), 3.8e-5, NOT),
        (number("2.1457672119140625e-05", computed_in=BF16, exact=True), 0.0, NOT),
        (number("0.3457", SHARE, Dtype.FLOAT32), 50975 / 147456, DIGITS),
        (number("0.3457", SHARE, Dtype.FLOAT32), 0.3742, ORDER),
        (number("0.3457", SHARE, Dtype.FLOAT32), 1.0, NOT),  # a ratio of 2.9, but nothing differs any more
        (number("1.0", Quantity.STATE_DICT_EQUAL_FRACTION, exact=True), 0.99, NOT),
        (number("273", Quantity.STATE_DICT_EQUAL, exact=True), 273, BITWISE),
        (number("273", Quantity.STATE_DICT_EQUAL, exact=True), 272, ORDER),
        (number("6023", IDS, exact=True), 6024, NOT),  # an id has no order
        (number("False", TRUTH, exact=True), False, BITWISE),
        (number("False", TRUTH, exact=True), True, NOT),
    ],
)
def test_rule_on_the_published_checkpoint(published: Number, measured: float, expected: Agreement) -> None:
    assert agreement(published, measured, same_checkpoint=True)[0] is expected


@pytest.mark.parametrize(
    ("published", "measured", "expected"),
    [
        (number("-0.4180", VALUE, BF16), -0.41796875, Agreement.NOT_COMPARABLE),
        (number("-4.3438", Quantity.PAD_VALUE, BF16), -4.34375, Agreement.NOT_COMPARABLE),
        (number("0.0762", computed_in=BF16), 0.0762, ORDER),
        (number("0.0762", computed_in=BF16), 0.3, NOT),
        (number("0.0", computed_in=BF16, exact=True), 0.0, ORDER),
        (number("0.0", computed_in=BF16, exact=True), 1e-6, NOT),
        (number("False", TRUTH, exact=True), False, ORDER),
        (number("False", TRUTH, exact=True), True, NOT),
        (number("6023", IDS, exact=True), 6023, BITWISE),
        (number("6023", IDS, exact=True), 6024, NOT),
    ],
)
def test_rule_on_another_checkpoint(published: Number, measured: float, expected: Agreement) -> None:
    assert agreement(published, measured, same_checkpoint=False)[0] is expected


@pytest.mark.parametrize("same_checkpoint", [True, False])
def test_a_missing_figure_is_not_comparable(same_checkpoint: bool) -> None:
    assert agreement(number("0.5"), None, same_checkpoint=same_checkpoint) == (Agreement.NOT_COMPARABLE, None)


def test_a_table_names_its_numbers() -> None:
    figure = Figure(
        id="t", section="", snippet="", quantity=VALUE, over={"token": 2, "feature": (0, -1)}, values="1.50 2 3\n4e-1"
    )
    numbers = figure.numbers()
    assert [one.index for one in numbers][1:3] == [{"token": 0, "feature": -1}, {"token": 1, "feature": 0}]
    assert [one.decimals for one in numbers] == [2, 0, 0, 0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('values: "1.0490e-05"', "values: 1.0490e-05", "valid string"),  # a YAML number would lose trailing zeros
        ('values: "1.0490e-05"', 'values: "1.0490e-05 0.1"', "2 values for 1 places"),
        (
            "id: transformers_25420_bfloat16",
            "id: transformers_25420_float16",
            "the same id twice: transformers_25",
        ),
        ("source: transformers_25420\n", "source: elsewhere\n", "no such source: elsewhere"),
        ("runs_here: false", "runs_here: true", "why_not"),
    ],
)
def test_a_wrong_file_is_one_clear_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = PUBLIC_ISSUES.read_text()
    assert old in text
    (tmp_path / "wrong.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message) as raised:
        load(tmp_path / "wrong.yaml")
    assert "\n" not in str(raised.value)
