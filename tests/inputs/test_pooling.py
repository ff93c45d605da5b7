from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.config import Layout, Pooling, Positions
from sweeper.inputs.layout import Forward, lay_out, to_tokens
from sweeper.inputs.pooling import embeddings, pool, pool_by_count


def test_each_pooling_picks_its_tokens() -> None:
    hidden_ND = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0], [7.0, 70.0]])
    lengths = (3, 1)
    assert pool(hidden_ND, lengths, Pooling.LAST_TOKEN).tolist() == [[6.0, 60.0], [7.0, 70.0]]
    assert pool(hidden_ND, lengths, Pooling.CLS).tolist() == [[1.0, 10.0], [7.0, 70.0]]
    assert pool(hidden_ND, lengths, Pooling.MEAN).tolist() == [[3.0, 30.0], [7.0, 70.0]]


@pytest.mark.parametrize("pooling", [pooling for pooling in Pooling if pooling is not Pooling.AUTO])
def test_embeddings_are_float64_whatever_the_model(pooling: Pooling) -> None:
    assert pool(torch.ones(3, 2, dtype=torch.bfloat16), (3,), pooling).dtype is torch.float64


def test_the_mean_does_not_lose_small_terms_in_the_dtype_of_the_model() -> None:
    hidden_ND = torch.tensor([[256.0]] + [[1.0]] * 255, dtype=torch.bfloat16)  # in bfloat16 256 + 1 is 256
    assert pool(hidden_ND, (256,), Pooling.MEAN).item() == 511 / 256


def _sentence_transformers_mean(hidden_BTD: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
    """The formula of sentence_transformers.models.Pooling, mode "mean"."""
    mask_BTD = attention_mask_BT.unsqueeze(-1).expand(hidden_BTD.size()).to(hidden_BTD.dtype)
    return torch.sum(hidden_BTD * mask_BTD, 1) / torch.clamp(mask_BTD.sum(1), min=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    layout=st.sampled_from([Layout.PADDED_LEFT, Layout.PADDED_RIGHT]),
    seed=st.integers(0, 2**16),
)
def test_padded_outputs_pool_as_the_usual_formulas_do(lengths: list[int], layout: Layout, seed: int) -> None:
    (forward,) = lay_out(
        [[1] * length for length in lengths],
        range(len(lengths)),
        layout=layout,
        positions=Positions.IMPLICIT,
        pad_id=0,
        device="cpu",
    )
    mask_BT = forward.inputs["attention_mask"]
    hidden_BTD = torch.randn(*mask_BT.shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    hidden_ND = to_tokens(hidden_BTD, forward)
    assert hidden_ND is not None

    mean_SD = pool(hidden_ND, forward.lengths, Pooling.MEAN)
    torch.testing.assert_close(mean_SD, _sentence_transformers_mean(hidden_BTD, mask_BT), rtol=1e-12, atol=1e-12)

    # The last real token is at -1 with pads on the left, at length - 1 with pads on the right.
    last_B = [-1] * len(lengths) if layout is Layout.PADDED_LEFT else [length - 1 for length in lengths]
    last_SD = pool(hidden_ND, forward.lengths, Pooling.LAST_TOKEN)
    assert torch.equal(last_SD, hidden_BTD[range(len(lengths)), last_B])


LENGTHS = (2, 5, 3)


def _padded(layout: Layout) -> tuple[torch.Tensor, Forward]:
    """Hidden states [B, T, 2] that say where they are: the column, and -1 on a pad or the token's place in its text."""
    (forward,) = lay_out(
        [[1] * length for length in LENGTHS],
        range(len(LENGTHS)),
        layout=layout,
        positions=Positions.IMPLICIT,
        pad_id=0,
        device="cpu",
    )
    hidden_BTD = torch.full((len(LENGTHS), max(LENGTHS), 2), -1.0)
    hidden_BTD[:, :, 0] = torch.arange(max(LENGTHS))
    hidden_BTD[forward.row_N, forward.column_N, 1] = torch.cat([torch.arange(float(length)) for length in LENGTHS])
    return hidden_BTD, forward


def test_pooling_by_count_reads_another_token_or_a_pad_in_every_left_padded_row_but_the_longest() -> None:
    hidden_BTD, forward = _padded(Layout.PADDED_LEFT)
    found = pool_by_count(hidden_BTD, forward.inputs["attention_mask"])
    assert found[:, 0].tolist() == [length - 1 for length in LENGTHS]
    assert found[:, 1].tolist() == [-1, 4, 0]  # a pad; the last token of the longest; the first token of the third
    right = embeddings(hidden_BTD, forward, forward.inputs["attention_mask"], Pooling.LAST_TOKEN)
    assert right[:, 1].tolist() == [length - 1 for length in LENGTHS]


def test_pooling_by_count_is_the_last_token_under_right_padding() -> None:
    hidden_BTD, forward = _padded(Layout.PADDED_RIGHT)
    by_count, last = (
        embeddings(hidden_BTD, forward, forward.inputs["attention_mask"], pooling)
        for pooling in (Pooling.LAST_TOKEN_BY_COUNT, Pooling.LAST_TOKEN)
    )
    assert torch.equal(by_count, last)
    assert last[:, 1].tolist() == [length - 1 for length in LENGTHS]


def test_without_a_mask_there_is_nothing_to_count() -> None:
    (packed,) = lay_out(
        [[1] * 2, [1] * 3], range(2), layout=Layout.PACKED, positions=Positions.EXPLICIT, pad_id=0, device="cpu"
    )
    hidden_BTD = torch.arange(10.0).reshape(1, 5, 2)
    found = embeddings(hidden_BTD, packed, None, Pooling.LAST_TOKEN_BY_COUNT)
    assert found.tolist() == [[2.0, 3.0], [8.0, 9.0]]
