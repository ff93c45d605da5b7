"""The published figures are what the texts print, and the rule that compares them says what it should.

`tests/data/reports` quotes the printed outputs only. Set SWEEPER_REPORTS to a folder with the two whole texts
(`logit_divergence_bf16*.txt`, `packing_flash_attention_bf16*.txt`) to check the quotations against them as well.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeper.config import Dtype, parse
from sweeper.errors import ConfigError
from sweeper.published.report import Agreement, Figure, Number, Quantity, Report, agreement, load, round_to

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
EXCERPTS = Path(__file__).parents[1] / "data" / "reports"
NAMES = sorted(path.stem for path in (CONF / "reported").glob("*.yaml"))
WHOLE_TEXTS = os.environ.get("SWEEPER_REPORTS")

LABELS = re.compile(r"cuda:\d+|^Layer \d+:|bf16|Phase \d|30th", re.MULTILINE)
PRINTED = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])|\b(?:True|False)\b")

needs_whole_texts = pytest.mark.skipif(WHOLE_TEXTS is None, reason="SWEEPER_REPORTS names no folder with the texts")


def excerpts(name: str) -> dict[tuple[str, ...], str]:
    """The quoted blocks of one report; the key lists the figures whose numbers the block prints, in order."""
    blocks = (EXCERPTS / f"{name}.txt").read_text(encoding="utf-8").split("=== ")[1:]
    heads_and_bodies = (block.split("\n", 1) for block in blocks)
    return {tuple(head.split()): body for head, body in heads_and_bodies}


def whole_text(name: str) -> str:
    (path,) = Path(str(WHOLE_TEXTS)).glob(f"{name}*.txt")
    return path.read_text(encoding="utf-8")


def report(name: str) -> Report:
    return load(CONF / "reported" / f"{name}.yaml")


def printed_in(text: str) -> list[str]:
    """Every number, True and False that a block prints, without its labels."""
    return PRINTED.findall(LABELS.sub("", text))


@pytest.mark.parametrize("name", NAMES)
def test_the_quoted_blocks_print_these_numbers_and_no_others(name: str) -> None:
    figures = {figure.id: figure for figure in report(name).figures}
    blocks = excerpts(name)
    assert [one for ids in blocks for one in ids] == list(figures), (
        "blocks and figures are not the same, or not in order"
    )
    for ids, text in blocks.items():
        assert printed_in(text) == [number.printed for one in ids for number in figures[one].numbers()], ids


@pytest.mark.parametrize("name", NAMES)
def test_a_snippet_stands_in_the_block_of_its_figure_and_in_no_other(name: str) -> None:
    figures = {figure.id: figure for figure in report(name).figures}
    for ids, text in excerpts(name).items():
        for one in ids:
            assert figures[one].snippet in text
            assert sum(body.count(figures[one].snippet) for body in excerpts(name).values()) == 1


def test_labels_of_the_tables_stand_in_the_printed_order() -> None:
    figures = {figure.id: figure for figure in report("logit_divergence_bf16").figures}
    blocks = excerpts("logit_divergence_bf16")
    for one in ("layer_mean_abs", "layer_max_abs"):
        layers = [int(layer) for layer in re.findall(r"^Layer (\d+):", blocks[(one,)], re.MULTILINE)]
        assert layers == [number.index["layer"] for number in figures[one].numbers()]
    kinds = re.findall(r"^([\w.]+):", blocks[("layer_0_mean_abs",)], re.MULTILINE)
    assert kinds == [number.index["kind"] for number in figures["layer_0_mean_abs"].numbers()]


def test_the_packed_inputs_are_the_padded_ones_without_pads() -> None:
    printed = {
        one.id: [number.printed for number in one.numbers()] for one in report("packing_flash_attention_bf16").figures
    }
    kept = [
        token
        for token, mask in zip(printed["padded_token_ids"], printed["padded_attention_mask"], strict=True)
        if mask == "1"
    ]
    assert kept == printed["packed_token_ids"]


@needs_whole_texts
@pytest.mark.parametrize("name", [name for name in NAMES if name != "public_issues"])
def test_quotations_and_snippets_stand_in_the_whole_text(name: str) -> None:
    text = whole_text(name)
    for ids, block in excerpts(name).items():
        assert block.rstrip("\n") in text, ids
    for figure in report(name).figures:
        assert text.count(figure.snippet) == 1, figure.id
    for fixup in report(name).fixups:
        assert (text.count(fixup.snippet) == 1) == bool(fixup.section), fixup.id


@needs_whole_texts
@pytest.mark.parametrize("name", [name for name in NAMES if name != "public_issues"])
def test_no_number_with_decimals_stands_outside_the_quotations(name: str) -> None:
    rest = whole_text(name)
    for block in excerpts(name).values():
        rest = rest.replace(block.rstrip("\n"), "")
    lines = [line for line in rest.splitlines() if re.search(r"(?<![\w.])-?\d+\.\d+(?![\w.])|tensor\(\[", line)]
    code_or_advice = ("torch.tensor([", "cosine is very close to 1.0")
    assert [line for line in lines if not any(known in line for known in code_or_advice)] == []


@pytest.mark.parametrize("name", NAMES)
def test_hydra_composes_the_group_over_its_default_of_null(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [_self_, {reported: null}]\nreported: null\n")
    (tmp_path / "reported").symlink_to(CONF / "reported")
    with initialize_config_dir(str(tmp_path), version_base=None):
        assert compose("config").reported is None
        composed = OmegaConf.to_container(compose("config", [f"reported={name}"]).reported)
    assert parse(Report, composed) == report(name)


@pytest.mark.parametrize("name", NAMES)
def test_printed_numbers_exist_in_the_dtype_that_they_are_said_to_be_computed_in(name: str) -> None:
    for figure in report(name).figures:
        for number in figure.numbers():
            assert number.shows(round_to(number.value, figure.computed_in)), number.label


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
    found = agreement(number(text, computed_in=Dtype.BFLOAT16), tensor.item(), same_checkpoint=True)
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
    assert agreement(published, measured, same_checkpoint=True) is expected


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
    assert agreement(published, measured, same_checkpoint=False) is expected


@pytest.mark.parametrize("same_checkpoint", [True, False])
def test_a_missing_figure_is_not_comparable(same_checkpoint: bool) -> None:
    assert agreement(number("0.5"), None, same_checkpoint=same_checkpoint) is Agreement.NOT_COMPARABLE


def test_a_table_names_its_numbers() -> None:
    figure = Figure(
        id="t", section="", snippet="", quantity=VALUE, over={"token": 2, "feature": (0, -1)}, values="1.50 2 3\n4e-1"
    )
    numbers = figure.numbers()
    assert [one.label for one in numbers][1:3] == ["t[token=0, feature=-1]", "t[token=1, feature=0]"]
    assert [one.decimals for one in numbers] == [2, 0, 0, 0]


def test_cells_of_a_figure() -> None:
    one = report("logit_divergence_bf16")
    figures = {figure.id: figure for figure in one.figures}
    shared = {"dtype": "bfloat16", "use_cache": True}
    assert one.cell_of(figures["layer_mean_abs"]) == {**shared, "load_strategy": "cast_after_load"}
    assert one.reference_of(figures["layer_mean_abs"]) == {**shared, "load_strategy": "dtype_at_load"}
    assert one.reference_of(figures["logits_dtype_at_load"]) is None
    assert one.source_of(figures["layer_mean_abs"]).author == "Vishal Bakshi"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('values: "0.3457"', "values: 0.3457", "valid string"),  # a YAML number would lose trailing zeros
        ('values: "0.3457"', 'values: "0.3457 0.1"', "2 values for 1 places"),
        ("id: logits_mean_abs", "id: logits_equal_fraction", "the same id twice: logits_equal_fraction"),
        ("id: logits_mean_abs", "id: logits_mean_abs\n    source: elsewhere", "no such source: elsewhere"),
        ("libraries: not stated", "libraries: not stated\n    runs_here: false", "why_not"),
    ],
)
def test_a_wrong_file_is_one_clear_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (CONF / "reported" / "logit_divergence_bf16.yaml").read_text()
    assert old in text
    (tmp_path / "wrong.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message) as raised:
        load(tmp_path / "wrong.yaml")
    assert "\n" not in str(raised.value)
