"""What two sides give is compared leaf by leaf, under the mask that belongs to it, in the part that both give."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from sweeper.errors import AlignmentError
from sweeper.verdict.comparison import Comparison, compare_models
from sweeper.verdict.first_divergence import nonfinite, rel_l2

HARMLESS = ("identical", "rounding")


class Gives(nn.Module):
    """Hidden states [B, T, 16] of `input_ids`, and what `give` makes of them and of a factor."""

    def __init__(self, give: Callable[[Tensor, float], Any], factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.out, self.give, self.factor = nn.Embedding(50, 16), nn.Linear(16, 16), give, factor

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.give(self.out(self.embed(input_ids)), self.factor)


@dataclass
class Nested:
    hidden: Tensor
    more: dict[str, Any]


class Opaque:
    """Holds no tensor."""


def ids(low: int = 3, high: int = 50, shape: tuple[int, int] = (2, 12)) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0))


def compared(give: Callable[[Tensor, float], Any], factor: float, dtype: torch.dtype = torch.float32) -> Comparison:
    return compare_models(Gives(give).eval(), Gives(give, factor).eval().to(dtype), {"input_ids": ids()})


def said(comparison: Comparison, title: str) -> dict[str, str]:
    """Output -> what the evidence of that title says of it."""
    return {str(one.value): one.meaning for one in comparison.verdict.evidence if one.name == title}


# ---- every leaf --------------------------------------------------------------------------------------------------

LEAVES: dict[str, Callable[[Tensor, float], Any]] = {
    "a score a row": lambda h, factor: {"mean": h.mean(1), "score": h.sum((1, 2)) * factor},
    "a map over pairs of tokens": lambda h, factor: (h.mean(1), torch.einsum("bif,bjf->bfij", h, h) * factor),
    "a tuple in a dictionary": lambda h, factor: {"mean": h.mean(1), "nested": (h, (h * factor,))},
    "a dataclass": lambda h, factor: Nested(h, {"deep": [h.mean((1, 2)) * factor]}),
    "ids": lambda h, factor: {"hidden": h, "ids": h.argmax(-1) + (factor != 1)},
    "ids that float64 does not hold": lambda h, factor: (h, torch.full((2,), 2**60) + (factor != 1)),
    "bools": lambda h, factor: (h > 0) ^ (factor != 1),
    "a number": lambda h, factor: {"hidden": h, "count": int(3 * factor)},
    "a word": lambda h, factor: {"hidden": h, "label": f"class {factor}"},
    "complex numbers": lambda h, factor: torch.fft.fft(h.float(), dim=1) * factor,
    "an array": lambda h, factor: {"hidden": h, "array": (h * factor).detach().float().numpy()},
    "layers before rows": lambda h, factor: (h, torch.stack([h, h * factor])),
}


@pytest.mark.parametrize("give", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_leaf_is_compared(give: Callable[[Tensor, float], Any], dtype: torch.dtype) -> None:
    assert compared(give, 2.0, dtype).verdict.kind == "semantic"
    copied = compare_models(Gives(give).to(dtype).eval(), Gives(give).to(dtype).eval(), {"input_ids": ids()})
    assert copied.verdict.kind == "identical"


@pytest.mark.parametrize("name", ["ids", "bools", "a dataclass", "layers before rows", "a number"])
def test_the_dtype_asked_for_may_flip_what_is_no_real_number(name: str) -> None:
    assert compared(LEAVES[name], 1.0, torch.bfloat16).verdict.kind == "rounding"


STRANGE = {"object": Opaque(), "function": lambda: 1, "meta": torch.empty(2, device="meta"), "iterator": iter([])}


@pytest.mark.parametrize("what", STRANGE.values(), ids=STRANGE)
def test_what_cannot_be_compared_is_named_and_is_not_identical(what: Any) -> None:
    comparison = compared(lambda h, _: {"hidden": h, "strange": what}, 1.0)
    assert comparison.verdict.kind == "inconclusive"
    assert "strange cannot be compared" in comparison.verdict.reason
    assert list(said(comparison, "not compared")) == ["strange"]
    assert compared(lambda h, factor: {"hidden": h * factor, "strange": what}, 2.0).verdict.kind == "semantic"


def test_a_cache_alone_makes_two_runs_differ() -> None:
    model = llama()
    wrong = hooked(model, "model.layers.0.self_attn.v_proj", lambda _, output: output)
    assert compare_models(model, wrong, {"input_ids": ids()}).verdict.kind == "identical"

    def spoil(_module: nn.Module, _inputs: Any, output: Any) -> None:
        output.past_key_values.layers[0].values = output.past_key_values.layers[0].values * 2

    wrong.register_forward_hook(spoil)
    assert compare_models(model, wrong, {"input_ids": ids()}).verdict.kind == "semantic"


# ---- a mask where it belongs -------------------------------------------------------------------------------------


def hooked(model: nn.Module, path: str, change: Callable[[nn.Module, Any], Any]) -> nn.Module:
    """A copy, one of whose modules gives something else."""
    model = copy.deepcopy(model)
    model.get_submodule(path).register_forward_hook(lambda module, _inputs, output: change(module, output))
    return model


def mask(*lengths: int, T: int = 12) -> Tensor:
    return (torch.arange(T)[None] < torch.tensor(lengths)[:, None]).long()


def llama(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    geometry = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=99, attn_implementation=attention, **geometry)).eval()


def bart() -> nn.Module:
    torch.manual_seed(0)
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=99, d_model=32, max_position_embeddings=32, **sides)
    ).eval()


SIZES = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}


def t5() -> nn.Module:
    torch.manual_seed(0)
    config = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


def two_texts(decoder: str = "decoder_input_ids", **masks: Tensor) -> dict[str, Any]:
    """Arguments with as many tokens for the decoder as for the encoder."""
    return {"input_ids": ids(), "attention_mask": mask(6, 6), decoder: ids(4, 60), **masks}


def from_token_6_on(_module: nn.Module, output: Tensor) -> Tensor:
    return torch.cat([output[:, :6], 2 * output[:, 6:]], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("family", "decoder"), [(t5, "decoder_input_ids"), (bart, "decoder_input_ids"), (t5, "labels")]
)
def test_an_encoders_mask_hides_nothing_of_the_decoder(
    family: Callable[[], nn.Module], decoder: str, dtype: torch.dtype
) -> None:
    model = family().to(dtype)
    wrong = hooked(model, "lm_head", from_token_6_on)
    assert compare_models(model, wrong, two_texts(decoder)).verdict.kind == "semantic"
    assert compare_models(model, copy.deepcopy(model), two_texts(decoder)).verdict.kind == "identical"


def test_each_mask_hides_the_pads_of_its_own_tokens() -> None:
    model, theirs, ours = bart(), mask(6, 6)[..., None] > 0, mask(12, 9)[..., None] > 0
    inputs = two_texts(decoder_attention_mask=mask(12, 9))
    decoder_pads = hooked(model, "lm_head", lambda _, output: torch.where(ours, output, 3 * output))
    assert compare_models(model, decoder_pads, inputs).verdict.kind == "identical"

    def spoil(real: Tensor) -> Callable[[nn.Module, Any], Any]:
        return lambda _, output: type(output)(
            {**output, "last_hidden_state": torch.where(real, output[0], output[0] + 1)}
        )

    assert compare_models(model, hooked(model, "model.encoder", spoil(theirs)), inputs).verdict.kind in HARMLESS
    assert compare_models(model, hooked(model, "model.encoder", spoil(~theirs)), inputs).verdict.kind == "semantic"


def test_modules_have_the_rows_of_the_tokens_that_they_read() -> None:
    model = t5()
    comparison = compare_models(model, copy.deepcopy(model), two_texts(decoder_attention_mask=mask(12, 9)))
    rows = {module.name: module.rows for module in comparison.native.modules}
    assert rows["encoder.block.0.layer.0.SelfAttention.q"] == 6 + 6
    assert rows["decoder.block.0.layer.0.SelfAttention.q"] == 12 + 9
    cross = "decoder.block.0.layer.1.EncDecAttention"
    assert [rows[f"{cross}.{name}"] for name in "qkvo"] == [12 + 9, 6 + 6, 6 + 6, 12 + 9]
    assert rows["lm_head"] == 12 + 9


def clip() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, **sizes}
    vision = {"image_size": 16, "patch_size": 8, **sizes}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def test_a_texts_mask_hides_nothing_of_a_picture_of_as_many_patches() -> None:
    model = clip()
    text = torch.cat([ids(high=97, shape=(2, 4)), torch.full((2, 1), 98)], 1)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": text, "attention_mask": mask(3, 3, T=5), "pixel_values": pixels}

    def spoil(_module: nn.Module, output: Any) -> Any:
        patches = output.last_hidden_state
        return type(output)({**output, "last_hidden_state": torch.cat([patches[:, :3], 2 * patches[:, 3:]], 1)})

    assert compare_models(model, hooked(model, "vision_model", spoil), inputs).verdict.kind == "semantic"
    assert compare_models(model, copy.deepcopy(model), inputs).verdict.kind == "identical"


def wav2vec2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    off = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    return Wav2Vec2Model(
        Wav2Vec2Config(vocab_size=20, feat_extract_norm="layer", **sizes, **convolutions, **positions, **off)
    ).eval()


@pytest.mark.parametrize("pads", [True, False])
def test_frames_of_a_sound_are_masked_as_the_model_says(pads: bool) -> None:
    model: Any = wav2vec2()
    samples_mask = mask(800, 500, T=800)
    inputs = {
        "input_values": torch.randn(2, 800, generator=torch.Generator().manual_seed(1)) * samples_mask,
        "attention_mask": samples_mask,
    }
    frames = model(**inputs).last_hidden_state.shape[1]
    real = model._get_feature_vector_attention_mask(frames, samples_mask).bool()[..., None]
    spoiled = ~real if pads else real

    def spoil(_module: nn.Module, output: Any) -> Any:
        return type(output)({**output, "last_hidden_state": torch.where(spoiled, 2 * output[0], output[0])})

    verdict = compare_models(model, hooked(model, "encoder", spoil), inputs).verdict
    assert verdict.kind == ("identical" if pads else "semantic")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_features_as_many_as_tokens_are_not_hidden_by_the_mask(dtype: torch.dtype) -> None:
    def pooled(hidden: Tensor, factor: float) -> Tensor:
        mean = hidden.mean(1)[:, :12]
        return torch.cat([mean[:, :8], mean[:, 8:] * factor], 1)

    inputs = {"input_ids": ids(), "attention_mask": mask(12, 8)}
    sides = [Gives(pooled, factor).to(dtype).eval() for factor in (1.0, 2.0, 1.0)]
    assert compare_models(sides[0], sides[1], inputs).verdict.kind not in HARMLESS
    assert compare_models(sides[0], sides[2], inputs).verdict.kind == "identical"


# ---- a part of an output -----------------------------------------------------------------------------------------


class Port(nn.Module):
    """Another's code around the same model: `give` makes its output of the logits."""

    def __init__(self, model: nn.Module, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.give = model, give

    def forward(self, **inputs: Any) -> Any:
        return self.give(self.model(**inputs).logits)


PORTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a tensor": (lambda logits: logits, "called output in the candidate"),
    "a tuple": (lambda logits: (logits,), "called output in the candidate"),
    "another name": (lambda logits: {"scores": logits}, "called scores in the candidate"),
    "last token, without its dimension": (lambda logits: logits[:, -1], "compared in the last 1 tokens of each row"),
    "last three tokens": (lambda logits: logits[:, -3:], "compared in the last 3 tokens of each row"),
    "some features more": (
        lambda logits: nn.functional.pad(logits, (0, 29), value=-1e9),
        "compared in the first 99 features",
    ),
    "last token and more features": (
        lambda logits: nn.functional.pad(logits[:, -1:], (0, 29)),
        "compared in the last 1 tokens of each row",
    ),
}


@pytest.mark.parametrize(("give", "says"), PORTS.values(), ids=PORTS)
@pytest.mark.parametrize("padded", [False, True])
def test_the_part_that_both_give_is_compared_and_the_rest_is_said(
    give: Callable[[Tensor], Any], says: str, padded: bool
) -> None:
    model = llama()
    inputs = {"input_ids": ids(), "use_cache": False, **({"attention_mask": mask(12, 9).flip(1)} if padded else {})}
    comparison = compare_models(model, Port(copy.deepcopy(model), give).eval(), inputs)
    assert comparison.verdict.kind in HARMLESS
    assert says in said(comparison, "compared in part")["logits"]
    wrong = Port(hooked(model, "lm_head", lambda _, output: output * 1.01), give).eval()
    assert compare_models(model, wrong, inputs).verdict.kind == "semantic"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_padded_vocabulary_is_rounding_or_less_and_hides_no_wrong_row(dtype: torch.dtype) -> None:
    model = llama()
    padded: Any = copy.deepcopy(model)
    padded.resize_token_embeddings(99, pad_to_multiple_of=64, mean_resizing=False)
    for name, buffer in dict(padded.named_buffers()).items():
        assert buffer.dtype is torch.float32, name
    for parameter in padded.parameters():
        parameter.data = parameter.data.to(dtype)
    inputs = {"input_ids": ids(), "use_cache": False}
    assert compare_models(model, padded, inputs).verdict.kind in HARMLESS
    padded.lm_head.weight.data[5] += 0.1
    assert compare_models(model, padded, inputs).verdict.kind == "semantic"


def test_an_output_that_one_side_lacks_is_said() -> None:
    def give(hidden: Tensor, factor: float) -> Any:
        return {"hidden": hidden, "score": hidden.sum(-1)} if factor == 1 else {"hidden": hidden}

    comparison = compared(give, 2.0)
    assert (comparison.verdict.kind, said(comparison, "compared in part")) == (
        "identical",
        {"score": "only the reference gives it"},
    )


def test_sides_without_a_common_output_are_refused_with_both_named() -> None:
    def give(hidden: Tensor, factor: float) -> Any:
        return {"a": hidden} if factor == 1 else {"b": hidden[:, :5, :3]}

    with pytest.raises(AlignmentError, match=r"a \(2, 12, 16\) in the reference, b \(2, 5, 3\) in the candidate"):
        compared(give, 2.0)


# ---- values that decide nothing ----------------------------------------------------------------------------------


def filled(value: float) -> Callable[[Tensor, float], Any]:
    def give(hidden: Tensor, factor: float) -> Tensor:
        return torch.cat([torch.full_like(hidden[..., :4], value), hidden[..., 4:] * factor], -1)

    return give


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e38, -1e30, -1e9, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fill_that_both_sides_hold_decides_nothing_and_hides_nothing(value: float, dtype: torch.dtype) -> None:
    give = filled(value)
    sides = [Gives(give, factor).to(dtype).eval() for factor in (1.0, 1.0, 1.05)]
    assert compare_models(sides[0], sides[1], {"input_ids": ids()}).verdict.kind == "identical"
    assert compare_models(sides[0], sides[2], {"input_ids": ids()}).verdict.kind == "semantic"
    assert compared(give, 1.0, torch.bfloat16).verdict.kind == "rounding"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_a_fill_of_one_side_is_not_harmless(value: float) -> None:
    def give(hidden: Tensor, factor: float) -> Tensor:
        return torch.cat([torch.full_like(hidden[..., :1], 0 if factor == 1 else value), hidden[..., 1:]], -1)

    assert compared(give, 2.0).verdict.kind not in HARMLESS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_counts_where_one_side_alone_has_it(value: float, dtype: torch.dtype) -> None:
    plain = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype)
    moved = torch.tensor([[3.0, 3.5], [0.0, 0.0]], dtype=dtype)
    assert (rel_l2(plain, moved), rel_l2(plain, plain), rel_l2(plain[1:], moved[:1])) == (0.1, 0.0, float("inf"))
    one, other = plain.clone(), moved.clone()
    one[1] = other[1] = value
    assert (rel_l2(one, other), rel_l2(one[1:], other[1:])) == (0.1, 0.0)
    assert math.isnan(rel_l2(one, moved))
    assert math.isnan(rel_l2(plain, other))
    assert nonfinite({"a": one, "b": one}, {"a": other, "b": moved, "c": moved}) == 2


def test_minus_zero_is_the_same_number_and_not_the_same_bits() -> None:
    comparison = compared(lambda h, factor: torch.cat([0 * h[..., :1].abs() * factor, h[..., 1:]], -1), -1.0)
    assert (comparison.verdict.kind, comparison.measured.native) == ("rounding", 0)


# ---- what models are called with ---------------------------------------------------------------------------------


class Called(nn.Module):
    """A model behind another signature."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, **inputs: Any) -> Any:
        return self.call(self.model, **inputs)


def embeddings(model: Any) -> Tensor:
    return model.model.embed_tokens(ids()).detach()


CALLS: dict[str, tuple[Callable[..., Any], Callable[[nn.Module], dict[str, Any]]]] = {
    "a dictionary": (lambda m, f: m(**f), lambda _: {"f": {"input_ids": ids(), "attention_mask": mask(12, 7)}}),
    "a dictionary in a list": (lambda m, f: m(**f[0]), lambda _: {"f": [{"input_ids": ids()}]}),
    "a list of rows": (lambda m, x: m(inputs_embeds=torch.stack(x)), lambda m: {"x": list(embeddings(m))}),
    "a number first": (
        lambda m, t, x: m(inputs_embeds=x * t),
        lambda m: {"t": torch.tensor(0.5), "x": embeddings(m)},
    ),
}


@pytest.mark.parametrize(("call", "inputs"), CALLS.values(), ids=CALLS)
def test_tensors_are_found_wherever_they_lie_among_the_arguments(
    call: Callable[..., Any], inputs: Callable[[nn.Module], dict[str, Any]]
) -> None:
    model = llama()
    given = inputs(model)
    assert compare_models(Called(model, call), Called(copy.deepcopy(model), call), given).verdict.kind == "identical"
    wrong = hooked(model, "lm_head", lambda _, output: output * 1.01)
    comparison = compare_models(Called(model, call), Called(wrong, call), given)
    assert comparison.verdict.kind == "semantic"
    comparison.explain()


@pytest.mark.parametrize("masked", [False, True])
def test_ids_and_their_embeddings_are_the_same_call(masked: bool) -> None:
    model = llama()
    options = {"attention_mask": mask(12, 7)} if masked else {}
    given = {"input_ids": ids(), **options}
    assert (
        compare_models(model, model, given, {"inputs_embeds": embeddings(model), **options}).verdict.kind == "identical"
    )
    wrong = {"inputs_embeds": embeddings(model) * 1.01, **options}
    comparison = compare_models(model, model, given, wrong)
    assert comparison.verdict.kind == "semantic"
    comparison.explain()
