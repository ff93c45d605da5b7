from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sweeper.config import Layout, Positions
from sweeper.inputs.layout import (
    Forward,
    behind_decoder_start,
    decoder_start_id,
    is_attention_map,
    lay_out,
    pad_id,
    same_text,
    to_tokens,
)

PAD = 0
TOKEN_IDS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6)
LAYOUTS = st.sampled_from(Layout)
POSITIONS = st.sampled_from(Positions)
by_property = settings(deadline=None, max_examples=60)


def _lay_out(
    token_ids: list[list[int]], layout: Layout, positions: Positions = Positions.EXPLICIT, texts: Any = None
) -> list[Forward]:
    indices = range(len(token_ids)) if texts is None else texts
    return lay_out(token_ids, indices, layout=layout, positions=positions, pad_id=PAD, device="cpu")


def _tokens(tensor: Tensor, forward: Forward) -> Tensor:
    token_NF = to_tokens(tensor, forward)
    assert token_NF is not None
    return token_NF


def _all_tokens(forwards: list[Forward], tensors: list[Tensor]) -> Tensor:
    return torch.cat([_tokens(tensor, forward) for tensor, forward in zip(tensors, forwards, strict=True)])


@by_property
@given(token_ids=TOKEN_IDS, layout=LAYOUTS, positions=POSITIONS)
def test_each_real_token_comes_back_once_in_its_place(
    token_ids: list[list[int]], layout: Layout, positions: Positions
) -> None:
    forwards = _lay_out(token_ids, layout, positions)
    came_back = _all_tokens(forwards, [forward.inputs["input_ids"].unsqueeze(-1) for forward in forwards])
    assert came_back.squeeze(-1).tolist() == [token for ids in token_ids for token in ids]

    assert [length for forward in forwards for length in forward.lengths] == [len(ids) for ids in token_ids]
    assert [text for forward in forwards for text in forward.texts] == list(range(len(token_ids)))
    for forward in forwards:
        ids_BT = forward.inputs["input_ids"]
        assert torch.equal(ids_BT[forward.row_N, forward.column_N], ids_BT.flatten()[forward.flat_N])


@by_property
@given(token_ids=TOKEN_IDS, layout=LAYOUTS, heads=st.integers(1, 3), features=st.integers(1, 4))
def test_features_travel_with_their_token(
    token_ids: list[list[int]], layout: Layout, heads: int, features: int
) -> None:
    forwards = _lay_out(token_ids, layout)
    outputs = []
    for forward in forwards:
        B, T = forward.inputs["input_ids"].shape
        outputs.append(torch.arange(B * T * heads * features).reshape(B, T, heads, features))
    for forward, output in zip(forwards, outputs, strict=True):
        if is_attention_map(output, forward):  # heads and features happen to be T both
            assert to_tokens(output, forward) is None
            continue
        expected_NF = output[forward.row_N, forward.column_N].reshape(len(forward.row_N), heads * features)
        assert torch.equal(_tokens(output, forward), expected_NF)
        assert torch.equal(_tokens(output.flatten(2), forward), expected_NF)
        assert torch.equal(_tokens(output.flatten(2).flatten(0, 1), forward), expected_NF)  # a mixture-of-experts block
        assert torch.equal(_tokens(output.mT.contiguous().mT.flatten(2), forward), expected_NF)  # not contiguous


@by_property
@given(token_ids=TOKEN_IDS, layout=LAYOUTS, features=st.integers(1, 4))
def test_a_table_that_rows_share_is_read_at_each_tokens_column(
    token_ids: list[list[int]], layout: Layout, features: int
) -> None:
    for forward in _lay_out(token_ids, layout):
        B, T = forward.inputs["input_ids"].shape
        table_1TF = torch.randn(1, T, features)
        assert torch.equal(_tokens(table_1TF, forward), _tokens(table_1TF.expand(B, T, features), forward))
        assert torch.equal(_tokens(table_1TF, forward), table_1TF[0, forward.column_N])


@by_property
@given(token_ids=TOKEN_IDS, layout=LAYOUTS)
def test_explicit_positions_restart_in_each_text(token_ids: list[list[int]], layout: Layout) -> None:
    forwards = _lay_out(token_ids, layout, Positions.EXPLICIT)
    position_ids = [forward.inputs["position_ids"].unsqueeze(-1) for forward in forwards]
    assert _all_tokens(forwards, position_ids).squeeze(-1).tolist() == [p for ids in token_ids for p in range(len(ids))]
    for forward in forwards:
        pads_BT = forward.inputs["input_ids"] == PAD
        assert (forward.inputs["position_ids"][pads_BT] == 0).all()


@by_property
@given(token_ids=TOKEN_IDS, layout=LAYOUTS, positions=POSITIONS)
def test_the_call_holds_what_the_layout_needs_and_no_more(
    token_ids: list[list[int]], layout: Layout, positions: Positions
) -> None:
    padded = layout in (Layout.PADDED_LEFT, Layout.PADDED_RIGHT)
    names = {"input_ids"} | ({"attention_mask"} if padded else set())
    names |= {"position_ids"} if positions is Positions.EXPLICIT else set()
    for forward in _lay_out(token_ids, layout, positions):
        assert set(forward.inputs) == names
        if padded:
            assert torch.equal(forward.inputs["attention_mask"], (forward.inputs["input_ids"] != PAD).long())


@pytest.mark.parametrize(
    ("layout", "input_ids"),
    [
        (Layout.PADDED_LEFT, [[[5, 6, 7], [0, 8, 9]]]),
        (Layout.PADDED_RIGHT, [[[5, 6, 7], [8, 9, 0]]]),
        (Layout.PACKED, [[[5, 6, 7, 8, 9]]]),
        (Layout.SINGLE, [[[5, 6, 7]], [[8, 9]]]),
    ],
)
def test_layouts_look_as_their_names_say(layout: Layout, input_ids: list[list[list[int]]]) -> None:
    forwards = _lay_out([[5, 6, 7], [8, 9]], layout)
    assert [forward.inputs["input_ids"].tolist() for forward in forwards] == input_ids


def test_texts_of_a_later_batch_keep_their_index() -> None:
    (forward,) = _lay_out([[1], [2, 3], [4]], Layout.PADDED_LEFT, texts=range(1, 3))
    assert forward.texts == (1, 2)
    assert forward.lengths == (2, 1)


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.SINGLE])
def test_without_pads_tokens_are_a_view(layout: Layout) -> None:
    for forward in _lay_out([[1, 2, 3], [4, 5]], layout):
        output = torch.randn(*forward.inputs["input_ids"].shape, 2, 3)
        assert _tokens(output, forward).data_ptr() == output.data_ptr()


@pytest.mark.parametrize(
    "shape",
    [
        (2, 8),  # pooled [B, D]
        (2, 5),  # pooled [B, D] with D == T
        (5, 8),  # a table without the leading dimension
        (2, 4, 5, 5),  # attention weights
        (2, 5, 5, 5),  # attention weights with as many heads as columns
        (2, 1, 5, 5),  # a mask
        (),
    ],
)
def test_what_has_no_tokens_is_refused(shape: tuple[int, ...]) -> None:
    (forward,) = _lay_out([[1, 2, 3, 4, 5], [6, 7]], Layout.PADDED_LEFT)
    assert to_tokens(torch.zeros(shape), forward) is None


def test_attention_maps_of_texts_of_one_token_are_no_tokens() -> None:
    (forward,) = _lay_out([[1], [2]], Layout.PADDED_RIGHT)
    assert is_attention_map(torch.zeros(2, 4, 1, 1), forward)
    assert to_tokens(torch.zeros(2, 4, 1, 1), forward) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pad_token_id": 7, "eos_token_id": 2}, 7),
        ({"pad_token_id": 0, "eos_token_id": 2}, 0),
        ({"pad_token_id": None, "eos_token_id": 2}, 2),
        ({"pad_token_id": -1, "eos_token_id": [5, 6]}, 5),
        ({"pad_token_id": None, "eos_token_id": None}, 0),
        ({}, 0),
    ],
)
def test_pad_id_falls_back_to_the_end_token_then_to_0(config: dict[str, Any], expected: int) -> None:
    assert pad_id(SimpleNamespace(**config)) == expected


def test_pad_id_of_a_real_config() -> None:
    assert pad_id(LlamaConfig(eos_token_id=[3, 4])) == 3


# A real model: layouts that mean the same function give the same hidden states, and the known leaks are leaks.

MODEL_TOKEN_IDS = [[11, 7, 23, 5, 40, 2, 9], [31, 8, 3], [17, 29, 6, 13, 4]]
FIRST_TEXT = len(MODEL_TOKEN_IDS[0])
FLOAT64_ROUNDING, FLOAT32_ROUNDING = 1e-10, 1e-4
ALL_LAYOUTS = [Layout.PADDED_LEFT, Layout.PADDED_RIGHT, Layout.PACKED, Layout.SINGLE]


def _model(attention: str, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # large enough that attention is not uniform, so a leak shows
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def _hidden_ND(model: LlamaForCausalLM, layout: Layout, positions: Positions, use_cache: bool) -> Tensor:
    forwards = _lay_out(MODEL_TOKEN_IDS, layout, positions)
    with torch.inference_mode():
        outputs = [model.model(**forward.inputs, use_cache=use_cache).last_hidden_state for forward in forwards]
    return _all_tokens(forwards, outputs)


def _max_abs_N(
    model: LlamaForCausalLM, layout: Layout, *, positions: Positions = Positions.EXPLICIT, use_cache: bool = False
) -> Tensor:
    """Largest difference of each token from the same token in its text alone."""
    reference_ND = _hidden_ND(model, Layout.SINGLE, Positions.EXPLICIT, use_cache=False)
    return (_hidden_ND(model, layout, positions, use_cache) - reference_ND).abs().amax(dim=1)


@pytest.mark.parametrize(
    ("attention", "layout"),
    # Not eager with left pads: its mask is float64's least number, which its float32 softmax reads as -inf, so rows of
    # pads become NaN and the next layer multiplies them by 0 into the real tokens.
    [("sdpa", layout) for layout in ALL_LAYOUTS] + [("eager", layout) for layout in ALL_LAYOUTS[1:]],
)
def test_float64_hidden_states_do_not_depend_on_the_layout(attention: str, layout: Layout) -> None:
    assert _max_abs_N(_model(attention, torch.float64), layout).max() < FLOAT64_ROUNDING


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_float32_eager_hidden_states_do_not_depend_on_the_layout(layout: Layout) -> None:
    assert _max_abs_N(_model("eager", torch.float32), layout).max() < FLOAT32_ROUNDING


@pytest.mark.parametrize("layout", [Layout.PADDED_LEFT, Layout.PADDED_RIGHT, Layout.SINGLE])
def test_the_cache_changes_no_layout_but_packed(layout: Layout) -> None:
    assert _max_abs_N(_model("sdpa", torch.float64), layout, use_cache=True).max() < FLOAT64_ROUNDING


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("positions", "use_cache"), [(Positions.EXPLICIT, True), (Positions.IMPLICIT, False), (Positions.IMPLICIT, True)]
)
def test_packed_leaks_into_every_text_but_the_first(attention: str, positions: Positions, use_cache: bool) -> None:
    max_abs_N = _max_abs_N(_model(attention, torch.float64), Layout.PACKED, positions=positions, use_cache=use_cache)
    assert max_abs_N[:FIRST_TEXT].max() < FLOAT64_ROUNDING
    assert max_abs_N[FIRST_TEXT:].min() > 1e-2


@pytest.mark.parametrize(
    ("layout", "decoder_ids"),
    [
        (Layout.PADDED_LEFT, [[9, 5, 6], [0, 9, 7]]),
        (Layout.PADDED_RIGHT, [[9, 5, 6], [9, 7, 0]]),
        (Layout.PACKED, [[9, 5, 6, 9, 7]]),
    ],
)
def test_a_decoder_reads_each_text_one_token_later(layout: Layout, decoder_ids: list[list[int]]) -> None:
    choices: Any = {"layout": layout, "positions": Positions.IMPLICIT, "pad_id": 0, "device": "cpu"}
    (forward,) = lay_out([[5, 6, 1], [7, 8]], range(2), **choices)
    assert behind_decoder_start(forward, 9).tolist() == decoder_ids


def test_positions_start_where_the_model_starts() -> None:
    choices: Any = {"layout": Layout.PADDED_LEFT, "positions": Positions.EXPLICIT, "pad_id": 0, "device": "cpu"}
    (forward,) = lay_out([[5, 6, 1], [7, 8]], range(2), first_position=2, **choices)
    assert forward.inputs["position_ids"].tolist() == [[2, 3, 4], [0, 2, 3]]


def test_tokens_of_a_packed_row_know_their_own_text() -> None:
    choices: Any = {"layout": Layout.PACKED, "positions": Positions.EXPLICIT, "pad_id": 0, "device": "cpu"}
    (forward,) = lay_out([[5, 6], [7]], range(2), **choices)
    assert same_text(forward).int().tolist() == [[[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]]


@pytest.mark.parametrize(
    ("config", "start"),
    [
        ({"decoder_start_token_id": 4, "bos_token_id": 1}, 4),
        ({"decoder_start_token_id": None, "bos_token_id": 1}, 1),
        ({"pad_token_id": 3}, 3),
        ({}, 0),
    ],
)
def test_a_decoder_starts_as_its_config_says(config: dict[str, Any], start: int) -> None:
    assert decoder_start_id(SimpleNamespace(**config)) == start
