"""The published figures of both reports are what the texts print.

`data` quotes the printed outputs only. Set SWEEPER_REPORTS to a folder with the two whole texts
(`logit_divergence_bf16*.txt`, `packing_flash_attention_bf16*.txt`) to check the quotations against them as well.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from case_studies.fixups import load_fixups
from sweeper.config import parse
from sweeper.published.publication import Publication, load
from tests.published.quotations import check_numbers_exist_in_their_dtype, check_quotations, quoted_blocks

CONF = Path(__file__).parents[1] / "conf"
REPORT_1, REPORT_2 = NAMES = ("logit_divergence_bf16", "packing_flash_attention_bf16")
WHOLE_TEXTS = os.environ.get("SWEEPER_REPORTS")

needs_whole_texts = pytest.mark.skipif(WHOLE_TEXTS is None, reason="SWEEPER_REPORTS names no folder with the texts")


def report(name: str) -> Publication:
    return load(CONF / "reported" / f"{name}.yaml")


def excerpts(name: str) -> dict[tuple[str, ...], str]:
    return quoted_blocks(Path(__file__).parent / "data" / f"{name}.txt")


def whole_text(name: str) -> str:
    (path,) = Path(str(WHOLE_TEXTS)).glob(f"{name}*.txt")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_are_what_the_quoted_blocks_print(name: str) -> None:
    check_quotations(report(name), excerpts(name))
    check_numbers_exist_in_their_dtype(report(name))


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
@pytest.mark.parametrize("name", NAMES)
def test_quotations_and_snippets_stand_in_the_whole_text(name: str) -> None:
    text = whole_text(name)
    for ids, block in excerpts(name).items():
        assert block.rstrip("\n") in text, ids
    for figure in report(name).figures:
        assert text.count(figure.snippet) == 1, figure.id


@needs_whole_texts
@pytest.mark.parametrize("name", NAMES)
def test_no_number_with_decimals_stands_outside_the_quotations(name: str) -> None:
    rest = whole_text(name)
    for block in excerpts(name).values():
        rest = rest.replace(block.rstrip("\n"), "")
    lines = [line for line in rest.splitlines() if re.search(r"(?<![\w.])-?\d+\.\d+(?![\w.])|tensor\(\[", line)]
    code_or_advice = ("torch.tensor([", "cosine is very close to 1.0")
    assert [line for line in lines if not any(known in line for known in code_or_advice)] == []


@needs_whole_texts
def test_fixups_stand_in_the_text_where_they_say_so() -> None:
    text = whole_text(REPORT_2)
    for fixup in load_fixups().fixups:
        assert (text.count(fixup.snippet) == 1) == bool(fixup.section), fixup.id


@pytest.mark.parametrize("name", NAMES)
def test_hydra_composes_the_group_over_its_default_of_null(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [_self_, {reported: null}]\nreported: null\n")
    (tmp_path / "reported").symlink_to(CONF / "reported")
    with initialize_config_dir(str(tmp_path), version_base=None):
        assert compose("config").reported is None
        composed = OmegaConf.to_container(compose("config", [f"reported={name}"]).reported)
    assert parse(Publication, composed) == report(name)


def test_cells_of_a_figure() -> None:
    one = report("logit_divergence_bf16")
    figures = {figure.id: figure for figure in one.figures}
    shared = {"dtype": "bfloat16", "use_cache": True}
    assert one.cell_of(figures["layer_mean_abs"]) == {**shared, "load_strategy": "cast_after_load"}
    assert one.reference_of(figures["layer_mean_abs"]) == {**shared, "load_strategy": "dtype_at_load"}
    assert one.reference_of(figures["logits_dtype_at_load"]) is None
    assert one.sources[figures["layer_mean_abs"].source].author == "Vishal Bakshi"
