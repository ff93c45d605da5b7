"""Figures are found where a script like report 1's, written out here, measures them; what is not there is said."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweeper.checkpoints import prepare
from sweeper.cli.run import carry_out
from sweeper.environment import environment
from sweeper.errors import ConfigError
from sweeper.inputs.layout import pad_id
from sweeper.planning.plan import make_plan
from sweeper.published.agreement import Agreement
from sweeper.published.lookup import REPORTED_FILE, Reproduction, Reproductions, compare_with_published
from sweeper.published.page import print_reproductions, write_page
from sweeper.published.publication import Publication
from sweeper.records.sweep import Sweep, short_ids
from tests.composing import request_of

BITWISE, DIGITS = Agreement.BITWISE, Agreement.PRINTED_DIGITS
NOT_COMPARABLE = Agreement.NOT_COMPARABLE
PAIR = {"cell": {"load_strategy": "cast_after_load"}, "reference": {"load_strategy": "dtype_at_load"}}
NOT_STATED = ("author", "published", "address", "model", "revision", "dtype", "attention", "hardware", "libraries")


def swept(folder: Path, *arguments: str, user_conf: Path | None = None) -> Sweep:
    shared = "checkpoint=tiny_llama", "wandb.mode=disabled", f"output_dir={folder}"
    request = request_of(*shared, *arguments, user_conf=user_conf)
    assert carry_out(request) == 0
    return Sweep.read(make_plan(request, environment("cpu")).folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def load_strategy(folder: Path) -> Sweep:
    arguments = "+grid=load_strategy", "load_strategy=dtype_at_load,cast_after_load", "layout=padded_left"
    return swept(folder, *arguments, "inputs=report_2", "reported=mine", user_conf=own_figures(folder))


def own_figures(folder: Path) -> Path:
    """A user's own conf/reported/mine.yaml (JSON is YAML): figures of another checkpoint, single and as a table."""
    layers = {"quantity": "module.max_abs", "over": {"kind": ["layer"], "layer": 3}, "values": "0.1 0.1 0.1"}
    figures = [{**PAIR, "quantity": "output.max_abs", "values": "0.5"}, {**PAIR, **layers}]
    path = folder / "conf" / "reported" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(report(*figures, checkpoint="another").model_dump(mode="json")))
    return folder / "conf"


def report(*figures: dict[str, Any], checkpoint: str | None = "tiny_llama", **options: Any) -> Publication:
    source = {**dict.fromkeys(NOT_STATED, "not stated"), "published_checkpoint": checkpoint}
    named = [{"id": str(i), "section": "here", "snippet": "", **figure} for i, figure in enumerate(figures)]
    return Publication.model_validate({"title": "A text", "sources": {"report": source}, "figures": named, **options})


def one(sweep: Sweep, figure: dict[str, Any], **options: Any) -> Reproduction:
    (number,) = compare_with_published(report(figure, **options), sweep).numbers
    return number


class Script:
    """Report 1's own way: two models, hooks that keep `output[0]`, differences and means in bfloat16."""

    def __init__(self) -> None:
        checkpoint = request_of("checkpoint=tiny_llama").cells[0].checkpoint
        local = prepare(checkpoint, device="cpu", say=print)
        tokenizer = AutoTokenizer.from_pretrained(local.folder, padding_side="left")
        texts = request_of("inputs=report_2").cells[0].inputs.texts
        self.inputs = tokenizer(list(texts or ()), padding=True, return_tensors="pt")
        self.first = AutoModelForCausalLM.from_pretrained(local.folder, dtype=torch.bfloat16)
        self.second = AutoModelForCausalLM.from_pretrained(local.folder, dtype=torch.float32).to(torch.bfloat16)
        self.kept = self.inputs["attention_mask"].bool()
        self.inputs["input_ids"][~self.kept] = pad_id(self.first.config)  # sweeper pads with what the model names

    @torch.no_grad()
    def run(self, model: Any, module: Any) -> tuple[Tensor, Tensor]:
        """The logits, and the module's output, over real tokens."""
        caught: list[Tensor] = []
        handle = module.register_forward_hook(lambda _m, _i, o: caught.append(o[0] if isinstance(o, tuple) else o))
        logits = model(**self.inputs).logits
        handle.remove()
        return logits, caught[0][self.kept]


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


def test_figures_of_a_pair_are_those_of_the_reports_script(load_strategy: Sweep, script: Script) -> None:
    logits_1, layer_1 = script.run(script.first, script.first.model.layers[2])
    logits_2, layer_2 = script.run(script.second, script.second.model.layers[2])
    difference = (logits_1 - logits_2).abs()[script.kept]
    tensors = str(len(script.first.state_dict()))
    equal = (logits_1 == logits_2)[script.kept].float().mean().item()
    layer = (layer_1.float() - layer_2.float()).abs()
    as_float32 = {**PAIR, "computed_in": "float32", "exact": True}
    figures = [
        ({**as_float32, "quantity": "output.equal_fraction", "values": repr(equal)}, DIGITS),
        ({**as_float32, "quantity": "output.max_abs", "values": repr(difference.double().max().item())}, BITWISE),
        (
            {
                **as_float32,
                "quantity": "module.max_abs",
                "over": {"kind": ["layer"], "layer": [-1]},
                "values": repr(layer.max().item()),
            },
            BITWISE,
        ),
        ({**PAIR, "quantity": "output.mean_abs", "values": f"{difference.double().mean():.4e}"}, DIGITS),
        ({**PAIR, "quantity": "output.allclose", "exact": True, "values": "False"}, BITWISE),
        (
            {**PAIR, "quantity": "state_dict.tensors", "exact": True, "values": tensors},
            BITWISE,
        ),
        ({**PAIR, "quantity": "state_dict.equal_fraction", "exact": True, "values": "1.0"}, BITWISE),
        (
            {
                **PAIR,
                "quantity": "state_dict.allclose",
                "exact": True,
                "over": {"tensor": ["model.layers.0.self_attn.q_proj.weight"]},
                "values": "True",
            },
            BITWISE,
        ),
    ]
    for figure, expected in figures:
        found = one(load_strategy, figure)
        assert found.status in (expected, BITWISE), (figure["quantity"], found)


@pytest.mark.parametrize("strategy", ["dtype_at_load", "cast_after_load"])
def test_elements_are_those_of_the_reports_script(load_strategy: Sweep, script: Script, strategy: str) -> None:
    model = script.first if strategy == "dtype_at_load" else script.second
    logits, _ = script.run(model, model.model.norm)
    shared = {"cell": {"load_strategy": strategy}, "computed_in": "bfloat16", "exact": True}
    places = [(token, feature) for token in (0, 1, 2, -3, -2, -1) for feature in (0, 1, 2, -3, -2, -1)]
    longest = {
        **shared,
        "quantity": "output.value",
        "over": {"text": [0], "token": [0, 1, 2, -3, -2, -1], "feature": [0, 1, 2, -3, -2, -1]},
        "values": " ".join(repr(logits[0, token, feature].item()) for token, feature in places),
    }
    pads = {
        **shared,
        "quantity": "output.pad_value",
        "over": {"row": [1], "column": [0, 1, 2], "feature": [0, -1]},
        "values": " ".join(repr(logits[1, column, feature].item()) for column in range(3) for feature in (0, -1)),
    }
    compared = compare_with_published(report(longest, pads), load_strategy)
    assert len(compared.numbers) == 42
    assert {number.status for number in compared.numbers} == {BITWISE}
    elsewhere = compare_with_published(report(longest, checkpoint="another"), load_strategy)
    assert {number.status for number in elsewhere.numbers} == {NOT_COMPARABLE}
    assert all(number.checkpoint == "tiny_llama" and number.measured is not None for number in elsewhere.numbers)


def test_inputs_are_what_the_tokenizer_gave_the_model(load_strategy: Sweep, script: Script) -> None:
    ids = script.inputs["input_ids"].tolist()
    rows, columns = len(ids), len(ids[0])
    second = [token for token, kept in zip(ids[1], script.kept[1].tolist(), strict=True) if kept]

    def table(name: str, values: list[list[int]]) -> dict[str, Any]:
        text = " ".join(str(value) for row in values for value in row)
        return {"quantity": name, "exact": True, "over": {"row": rows, "column": columns}, "values": text}

    figures = [
        table("input.token_ids", ids),
        table("input.attention_mask", script.inputs["attention_mask"].tolist()),
        {"quantity": "input.shape", "exact": True, "over": {"dimension": 2}, "values": f"{rows} {columns}"},
        {
            "quantity": "input.token_ids",
            "exact": True,
            "over": {"text": [1], "token": len(second)},
            "values": " ".join(map(str, second)),
        },
    ]
    compared = compare_with_published(report(*figures), load_strategy)
    assert {number.status for number in compared.numbers} == {BITWISE}
    positions = one(
        load_strategy, {"quantity": "input.position_ids", "over": {"row": [0], "column": [0]}, "values": "0"}
    )
    assert (positions.status, positions.why) == (
        NOT_COMPARABLE,
        "the cell has no input.position_ids at row 0, column 0",
    )


def test_ids_that_another_tokenizer_made_say_nothing_unless_they_are_the_same(load_strategy: Sweep) -> None:
    options: dict[str, Any] = {"checkpoint": "another", "inputs": ["report_2", "report_2_ids"]}
    figure = {"quantity": "input.token_ids", "exact": True, "over": {"text": [0], "token": [0]}}
    assert one(load_strategy, {**figure, "values": str(ord("h"))}, **options).status is BITWISE
    other = one(load_strategy, {**figure, "values": "6023"}, **options)
    assert other.status is NOT_COMPARABLE
    assert other.why == "the tokenizer of another checkpoint made other ids; give inputs=report_2_ids"
    assert one(load_strategy, {**figure, "values": "6023"}).status is Agreement.NOT_REPRODUCED


@pytest.mark.parametrize(
    ("figure", "options", "why"),
    [
        ({"cell": {"dtype": "float16"}}, {}, "no cell of this sweep has dtype=float16"),
        (
            {"cell": {"dtype": "bfloat16"}, "reference": {"layout": "single"}},
            {},
            "no cell of this sweep has dtype=bfloat16 against layout=single",
        ),
        ({}, {"inputs": ["report_1"]}, "the sweep read other inputs; give inputs=report_1"),
        ({"quantity": "output.probability_max_abs"}, {}, "the cell has no output.probability_max_abs"),
        (
            {"quantity": "module.mean_abs", "over": {"kind": ["layer"], "layer": [29]}},
            {},
            "the cell has no module.mean_abs at kind layer, layer 29",
        ),
        (
            {"quantity": "state_dict.allclose", "over": {"tensor": ["bert.pooler.weight"]}},
            {},
            "the cell has no state_dict.allclose at tensor bert.pooler.weight",
        ),
    ],
)
def test_a_number_that_is_not_there_says_why(
    load_strategy: Sweep, figure: dict[str, Any], options: dict[str, Any], why: str
) -> None:
    found = one(load_strategy, {"quantity": "output.mean_abs", "values": "1", **figure}, **options)
    assert (found.status, found.measured, found.why) == (NOT_COMPARABLE, None, why)


def test_a_cell_that_cannot_run_here_gives_its_reason(folder: Path) -> None:
    sweep = swept(folder, "attention=eager,flash_attention_2", "inputs=report_1")
    found = one(sweep, {"cell": {"attention": "flash_attention_2"}, "quantity": "output.mean_abs", "values": "1"})
    assert found.why is not None
    assert found.why.startswith("unsupported: flash_attention_2 needs ")


def test_the_sweep_writes_every_number_and_prints_the_checkpoint_on_every_row(
    load_strategy: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Reproductions.model_validate_json((load_strategy.folder / REPORTED_FILE).read_text())
    assert len(written.numbers) == sum(len(figure.numbers()) for figure in written.report.figures)
    assert written == compare_with_published(written.report, load_strategy)
    print_reproductions(written, Console(width=200))
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if any(line.strip().startswith(f.id) for f in written.report.figures)]
    assert len(rows) == len(written.report.figures)
    assert all("tiny_llama (another)" in row for row in rows)


def test_a_page_needs_a_sweep_that_was_run_with_published_figures(load_strategy: Sweep, tmp_path: Path) -> None:
    page, *data, picture = write_page(tmp_path / "page.md", [load_strategy.folder])
    assert f"]({picture.name})" in page.read_text()
    assert "--c0:" in picture.read_text(), "the curves have no colours"
    numbers, cells = ([*csv.DictReader(path.open(newline=""))] for path in data)
    compared = Reproductions.model_validate_json((load_strategy.folder / REPORTED_FILE).read_text())
    assert [(row["figure"], row["layer"], row["status"]) for row in numbers] == [
        (figure.id, str(one.index.get("layer", "")), one.status.value)
        for figure in compared.report.figures
        for one in compared.of(figure)
    ]
    assert [row["cell"] for row in cells] == list(short_ids([r.cell_id for r in load_strategy.records]).values())
    assert load_strategy.command in page.read_text()
    without = swept(tmp_path, "verdict=false")
    with pytest.raises(ConfigError, match="run it again with reported=NAME"):
        write_page(tmp_path / "none.md", [without.folder])
