"""Pairs of encoders: BERT, ALBERT, RoBERTa, DistilBERT, ModernBERT."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.language import parts, wrappers
from tests.zoo.language.edits import typed
from tests.zoo.language.models import HIDDEN, load
from tests.zoo.models import padded, set_class
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


@harmless("dtype/modernbert_float16")
def dtype_modernbert() -> PairModels:
    """float16 asked for; windows, rotary positions, a head of its own."""
    reference, candidate = (load("modernbert", dtype) for dtype in (torch.float32, torch.float16))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmless("wrapped/roberta_float32", allowed=IDENTICAL)
def wrapped_roberta() -> PairModels:
    """The same model two wrappers down."""
    model = load("roberta")
    candidate = wrappers.Wrapped(wrappers.Wrapped(deepcopy(model)))
    return PairModels(reference=model, candidate=candidate, inputs=padded("right", positions=False))


@harmless("rewritten_part/bert_float16")
def rewritten_part_bert() -> PairModels:
    """The exact gelu written out with the error function."""

    def edit(model: Any) -> None:
        for layer in model.encoder.layer:
            layer.intermediate.intermediate_act_fn = parts.WrittenGelu()

    return edited(load("bert", torch.float16), padded(), edit)


@harmless("compiled/distilbert_bfloat16")
def compiled_distilbert() -> PairModels:
    """One feed-forward part under torch.compile, traced and run as it is."""

    def edit(model: Any) -> None:
        block = model.transformer.layer[1]
        block.ffn = torch.compile(block.ffn, backend="eager")

    return edited(load("distilbert", torch.bfloat16), padded("right", positions=False), edit)


@harmless("idle_argument/bert_bfloat16")
def idle_argument_bert() -> PairModels:
    """Token types of zero, and hidden states that nobody reads, against neither."""
    model, inputs = load("bert", torch.bfloat16), padded()
    spoken = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"]), "output_hidden_states": True}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=spoken)


@harmless("unused_part/bert_float32", allowed=IDENTICAL)
def unused_part_bert() -> PairModels:
    """A classifier that is loaded and not called."""
    torch.manual_seed(0)
    return edited(load("bert"), padded(), lambda model: setattr(model, "classifier", nn.Linear(HIDDEN, 3)))


@harmful("pads_attended/modernbert_bfloat16", allowed=SEMANTIC, cause=("mask",))
def pads_attended_modernbert() -> PairModels:
    """Right padding whose mask is dropped."""
    return edited(
        load("modernbert", torch.bfloat16),
        padded("right", positions=False),
        lambda model: set_class(model, parts.ModernBertMaskIgnored),
    )


@harmful("window/modernbert_float16", allowed=SEMANTIC, cause=("window", "local_attention", "mask", "layer_types"))
def window_dropped_modernbert() -> PairModels:
    """Every token attends to every other in a layer that was trained with a window."""
    reference, candidate = load("modernbert", torch.float16), load("modernbert", torch.float16, local_attention=64)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmful("token_types/bert_float32", allowed=SEMANTIC, cause=("token_type", "tokentypes"))
def token_types_bert() -> PairModels:
    """A model that drops the token types, as runtimes whose export has two inputs."""
    return edited(load("bert"), typed(), lambda model: set_class(model, parts.TokenTypesIgnored))


@harmful("row_edited/albert_bfloat16", allowed=STATE, cause=("word_embeddings",))
def row_edited_albert() -> PairModels:
    """One token's row has another scale."""
    inputs = padded("right", positions=False)
    token = inputs["input_ids"][2, 1]
    return edited(
        load("albert", torch.bfloat16),
        inputs,
        lambda model: model.embeddings.word_embeddings.weight[token].mul_(1.5),
    )


@harmful("layers_swapped/bert_float32", allowed=STATE, cause=("output.dense",))
def layers_swapped_bert() -> PairModels:
    """The attention's output projections of both layers swapped."""

    def edit(model: Any) -> None:
        first, second = (layer.attention.output.dense for layer in model.encoder.layer)
        kept = first.weight.clone()
        first.weight.copy_(second.weight)
        second.weight.copy_(kept)

    return edited(load("bert"), padded(), edit)


@harmful("layer_dropped/modernbert_float32", allowed=SEMANTIC, cause=("layer",))
def layer_dropped_modernbert() -> PairModels:
    """The second of two layers is not there."""
    inputs = padded("right", positions=False)
    return edited(load("modernbert"), inputs, lambda model: model.model.layers.pop(1))


@harmful("second_output/bert_float32", allowed=STATE, cause=("pooler",))
def second_output_bert() -> PairModels:
    """The hidden states are right; the pooler was never loaded."""
    return edited(
        load("bert"), padded(), lambda model: model.pooler.dense.weight.copy_(model.pooler.dense.weight.flip(0))
    )


@harmful("random_in_eval/bert_float32", allowed=STATE, cause=("dropout", "random", "repeat"))
def random_in_eval_bert() -> PairModels:
    """Dropout through `functional.dropout`, which eval() does not switch off."""
    return edited(load("bert"), padded(), lambda model: set_class(model.encoder.layer[1].output, parts.DropoutAlwaysOn))


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
