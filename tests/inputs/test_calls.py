"""Where the tokens of any model's call are: a map belongs to an argument."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from sweeper.errors import AlignmentError, ConfigError
from sweeper.inputs.calls import Call, call_of, calls_of, check_same_tokens, mapped, shared_masks, tensors_in


class Model(nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)


def mask(*lengths: int, T: int) -> Tensor:
    return (torch.arange(T)[None] < torch.tensor(lengths)[:, None]).long()


def call(kwargs: dict[str, Any], model: nn.Module | None = None) -> Call:
    masks, _ = shared_masks([kwargs], [kwargs])
    return call_of(kwargs, model or Model(), masks[0])


IDS = torch.arange(24).reshape(2, 12)


def test_an_encoder_and_a_decoder_have_a_map_each() -> None:
    made = call(
        {
            "input_ids": IDS,
            "attention_mask": mask(12, 5, T=12),
            "decoder_input_ids": IDS[:, :7],
            "decoder_attention_mask": mask(7, 3, T=7),
        }
    )
    assert (made.forward.shape, made.forward.lengths) == ((2, 7), (7, 3))
    assert made.forward.encoder is not None
    assert (made.forward.encoder.shape, made.forward.encoder.lengths) == ((2, 12), (12, 5))
    assert made.token_N is not None
    assert made.token_N.tolist() == [*range(17)]
    (last,) = (made.of_rows([1]),)
    assert (last.forward.lengths, last.forward.encoder and last.forward.encoder.lengths) == ((3,), (5,))


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_labels_are_a_decoders_where_there_is_one(is_encoder_decoder: bool) -> None:
    labels = torch.where(mask(9, 4, T=9) > 0, IDS[:, :9], -100)
    made = call({"input_ids": IDS, "labels": labels}, Model(is_encoder_decoder=is_encoder_decoder))
    assert made.forward.lengths == ((9, 4) if is_encoder_decoder else (12, 12))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda kwargs: kwargs,
        lambda kwargs: {"features": kwargs},
        lambda kwargs: {"batch": [BatchEncoding(kwargs)]},
    ],
)
def test_arguments_are_found_by_name_however_deep(wrap: Any) -> None:
    made = call(wrap({"scale": torch.tensor(2.0), "input_ids": IDS, "attention_mask": mask(12, 5, T=12)}))
    assert (made.forward.shape, made.forward.lengths, made.forward.one_kind) == ((2, 12), (12, 5), True)


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({"inputs_embeds": torch.ones(2, 5, 8)}, (2, 5)),
        ({"x": torch.ones(4, 8)}, (4, 1)),
        ({"number": torch.tensor(3), "x": torch.ones(2, 5, 8)}, (2, 5)),
        ({"number": torch.tensor(3)}, (1, 1)),
        ({"images": [torch.ones(5, 8), torch.ones(5, 8)]}, (2, 5)),
        ({"tokens": IDS}, (2, 12)),
        ({"input_values": torch.ones(2, 80), "attention_mask": mask(80, 50, T=80)}, (2, 80)),
    ],
)
def test_the_shape_is_that_of_what_is_read(kwargs: dict[str, Any], shape: tuple[int, int]) -> None:
    assert call(kwargs).forward.shape == shape


def test_pictures_beside_a_text_have_no_tokens_of_its() -> None:
    made = call({"input_ids": IDS, "pixel_values": torch.ones(2, 3, 4, 4)})
    assert not made.forward.one_kind
    assert call({"pixel_values": torch.ones(2, 3, 4, 4)}).forward.one_kind


class Listener(nn.Module):
    """Makes a frame of four samples."""

    def _get_feat_extract_output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths // 4


def test_frames_are_those_that_the_model_says() -> None:
    made = call({"input_values": torch.ones(2, 80), "attention_mask": mask(80, 50, T=80)}, nn.Sequential(Listener()))
    assert made.forward.frames is not None
    frames = made.forward.frames(20)
    assert frames is not None
    assert frames.lengths == (20, 12)
    one = made.of_rows([1]).forward.frames
    assert one is not None
    row = one(20)
    assert row is not None
    assert row.lengths == (12,)
    silent = call({"input_values": torch.ones(2, 80), "attention_mask": mask(80, 50, T=80)}).forward.frames
    assert silent is not None
    assert silent(20) is None


def test_mappings_and_sequences_are_made_again_as_what_they_were() -> None:
    given = {"a": [IDS, (IDS, 3)], "b": BatchEncoding({"input_ids": IDS})}
    doubled = mapped(given, lambda tensor: tensor * 2)
    assert type(doubled["b"]) is BatchEncoding
    assert all(torch.equal(tensor, 2 * IDS) for _, tensor in tensors_in(doubled))
    assert doubled["a"][1][1] == 3
    assert torch.equal(given["b"]["input_ids"], IDS)


def test_ids_are_checked_against_ids_and_embeddings_only_counted() -> None:
    embeds = call({"inputs_embeds": torch.ones(2, 12, 4)})
    check_same_tokens([call({"input_ids": IDS})], [embeds])
    with pytest.raises(AlignmentError, match="24 real tokens in the reference, 10"):
        check_same_tokens([call({"input_ids": IDS})], [call({"inputs_embeds": torch.ones(2, 5, 4)})])
    with pytest.raises(AlignmentError, match="real token 0 is 0 in the reference and 1"):
        check_same_tokens([call({"input_ids": IDS})], [call({"input_ids": IDS + 1})])


def test_calls_without_a_tensor_are_refused() -> None:
    with pytest.raises(ConfigError, match="no tensor"):
        calls_of({"use_cache": False, "more": {"list": [1, 2]}})
