from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sweeper.comparator.corners import MOST_TOKENS, Sampler
from sweeper.comparator.hooks import kept_outputs
from sweeper.comparator.side import Call
from sweeper.config import Layout, Positions
from sweeper.inputs.layout import lay_out, to_tokens

TEXTS = [[11, 12, 13, 14, 15, 16, 17, 18], [21, 22]]


def calls(layout: Layout, texts: list[list[int]] = TEXTS) -> list[Call]:
    choices = {"layout": layout, "positions": Positions.EXPLICIT, "pad_id": 0, "device": "cpu"}
    return [Call({**forward.inputs}, forward) for forward in lay_out(texts, range(len(texts)), **choices)]


def sampled(layout: Layout, outputs: list[torch.Tensor]) -> Sampler:
    batch = calls(layout)
    tokens = [to_tokens(output, call.forward) for output, call in zip(outputs, batch, strict=True)]
    return Sampler(batch, outputs, torch.cat([one for one in tokens if one is not None]))


def test_a_padded_batch_is_recorded_as_it_was_called_and_as_it_came_out() -> None:
    output_BTF = torch.randn(2, 8, 9, dtype=torch.bfloat16)
    sample = sampled(Layout.PADDED_LEFT, [output_BTF]).sample()
    (call,) = sample.calls
    assert call.input_ids == ("11 12 13 14 15 16 17 18", "0 0 0 0 0 0 21 22")
    assert call.attention_mask == ("1 1 1 1 1 1 1 1", "0 0 0 0 0 0 1 1")
    assert call.position_ids == ("0 1 2 3 4 5 6 7", "0 0 0 0 0 0 0 1")
    assert [text.shape for text in sample.texts] == [(8, 9), (2, 9)]
    assert sample.texts[1].at(-1, -1) == output_BTF[1, -1, -1].item()  # a real token
    assert sample.padded_rows[1].at(0, 2) == output_BTF[1, 0, 2].item()  # a pad
    assert sample.texts[0].at(3, 0) is None  # in the middle
    assert sample.texts[1].at(2, 0) is None  # the text has two tokens
    assert sample.texts[1].at(-3, 0) is None


def test_each_text_alone_is_a_call_each_without_pads() -> None:
    sample = sampled(Layout.SINGLE, [torch.zeros(1, 8, 4), torch.ones(1, 2, 4)]).sample()
    assert [call.input_ids for call in sample.calls] == [("11 12 13 14 15 16 17 18",), ("21 22",)]
    assert all(call.attention_mask is None for call in sample.calls)
    assert sample.texts[1].at(0, 0) == 1.0
    assert sample.padded_rows == ()


def test_calls_of_a_large_batch_are_left_out() -> None:
    batch = calls(Layout.SINGLE, [[1] * (MOST_TOKENS + 1)])
    sample = Sampler(batch, [torch.zeros(1, MOST_TOKENS + 1, 2)], torch.zeros(MOST_TOKENS + 1, 2)).sample()
    assert sample.calls == ()
    assert sample.texts[0].shape == (MOST_TOKENS + 1, 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_kept_elements_are_exact_and_the_others_are_none(rows: int, columns: int, dtype: torch.dtype) -> None:
    output = torch.randn(1, rows, columns, dtype=dtype)
    batch = calls(Layout.SINGLE, [[1] * rows])
    (corner,) = Sampler(batch, [output], output[0]).sample().texts
    for row in range(rows):
        for column in range(columns):
            kept = (row < 3 or row >= rows - 3) and (column < 3 or column >= columns - 3)
            found = corner.at(row, column)
            assert found == (output[0, row, column].item() if kept else None)
            assert found == corner.at(row - rows, column - columns)


def test_outputs_are_kept_as_they_are_until_the_block_ends() -> None:
    module = nn.Linear(2, 2)
    with kept_outputs(module) as outputs:
        expected = module(torch.ones(1, 2))
    module(torch.ones(1, 2))
    assert len(outputs) == 1
    assert outputs[0] is expected
