"""Each counterfactual finds what was planted, and is not named where something else was."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sweeper.recordings.counterfactuals import Base, Tried, counterfactuals, exact_outputs, outputs_of
from sweeper.recordings.log_probabilities import log_probabilities
from sweeper.records.recording import LOG_PROBABILITIES
from sweeper.verdict.thresholds import FLOOR_MULTIPLE
from tests.tiny_folders import cell_of, folder_of, plain

IDS = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22, 23, 24]]


def base_of(name: str, quantity: str = LOG_PROBABILITIES, **choices: Any) -> Base:
    """A tiny model in bfloat16 with its own run, of which nothing was recorded yet."""
    settled = {"causal": True, "pooling": "last_token", "head": "causal_lm"}  # as planning reads it from the files
    cell = cell_of(folder_of(name), dtype="bfloat16", layout="padded_left", **settled, **choices)
    model = plain(name, dtype=torch.bfloat16)
    found = Base(
        cell=cell,
        model=model,
        folder=None,
        token_ids=IDS,
        quantity=quantity,
        recorded=torch.zeros(0),
        own=None,  # type: ignore[arg-type]
        exact=None,  # type: ignore[arg-type]
    )
    side = found.side()
    return dataclasses.replace(found, own=outputs_of(side), exact=exact_outputs(side))


@pytest.fixture(scope="module")
def llama() -> Base:
    return base_of("llama")


def with_recorded(base: Base, log_p_N: Tensor) -> Base:
    return dataclasses.replace(base, recorded=log_p_N.double()[:, None])


def closing(base: Base) -> list[Tried]:
    tried = [one for one in counterfactuals(base) if one.found is not None]
    return [one for one in tried if one.found is not None and one.found.ratio <= FLOOR_MULTIPLE]


def native(base: Base, ids: list[list[int]], **axes: Any) -> Tensor:
    """Log-probabilities of another run of the model, natively."""
    return log_probabilities(outputs_of(base.side(ids, **axes)).output_NF, ids)


def test_nothing_is_off_where_the_recording_is_our_own_run(llama: Base) -> None:
    own = with_recorded(llama, native(llama, IDS))
    assert own.found.ratio == 1
    assert own.found.same


def test_a_template_is_found_out(llama: Base) -> None:
    class Template:
        bos_token_id = None
        chat_template = "yes"

        def apply_chat_template(self, turn: list[dict[str, str]], tokenize: bool) -> str:
            return f"USER {turn[0]['content']} END"

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert text == "USER "
            return {"input_ids": [40, 41, 42]}

    inside = native(llama, [[40, 41, 42, *ids] for ids in IDS])
    lengths = [len(ids) + 3 for ids in IDS]
    recorded = with_recorded(llama, torch.cat([piece[3:] for piece in inside.split(lengths)]))
    recorded.__dict__["tokenizer"] = Template()
    assert [one.name for one in closing(recorded)] == ["template"]


def test_packed_texts_that_see_each_other_are_found_out(llama: Base) -> None:
    joined = [list(itertools.chain.from_iterable(IDS))]
    leaked = log_probabilities(outputs_of(llama.side(joined)).output_NF, IDS)
    assert [one.name for one in closing(with_recorded(llama, leaked))] == ["packed as one text"]


def test_processed_log_probabilities_are_found_out(llama: Base) -> None:
    logits_NV = llama.own.output_NF.double() / 0.8
    kept_NV = logits_NV >= logits_NV.topk(50, dim=1).values[:, -1:]
    processed = log_probabilities(logits_NV.masked_fill(~kept_NV, float("-inf")), IDS)
    found = closing(with_recorded(llama, processed))
    assert [one.name for one in found] == ["processed log-probabilities"]
    assert "temperature 0.8 and top_k=50" in found[0].what


def test_a_temperature_is_found_out_in_a_round_number(llama: Base) -> None:
    hot = log_probabilities(llama.own.output_NF.double() / 0.6, IDS)
    found = closing(with_recorded(llama, hot))
    assert found[0].name == "temperature"
    assert "a temperature of 0.6" in found[0].what


def test_positions_that_begin_at_1_are_found_out_where_a_model_has_a_table_of_them() -> None:
    gpt2 = base_of("gpt2", positions="explicit")
    shifted = gpt2.side()
    calls = [{**call.kwargs, "position_ids": call.kwargs["position_ids"] + 1} for call in shifted.calls]
    calls_of = [dataclasses.replace(call, kwargs=kwargs) for call, kwargs in zip(shifted.calls, calls, strict=True)]
    moved = outputs_of(dataclasses.replace(shifted, calls=tuple(calls_of)))
    found = closing(with_recorded(gpt2, log_probabilities(moved.output_NF, IDS)))
    assert [one.what for one in found] == ["positions begin at 1"]


def test_what_a_model_does_not_take_is_said_and_the_others_are_tried(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: object) -> None:
        raise ValueError("no chat today")

    broken = with_recorded(llama, torch.randn(len(native(llama, IDS))))
    monkeypatch.setattr("sweeper.recordings.counterfactuals._template", raises)
    raises.__name__ = "_template"
    tried = {one.name: one for one in counterfactuals(broken)}
    assert tried["template"].error == "ValueError: no chat today"
    assert "packed as one text" in tried
