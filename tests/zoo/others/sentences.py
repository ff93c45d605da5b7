"""Pairs of sentence encoders: plain modules around a BERT that hand on one dictionary, as sentence-transformers' do.

Shapes: B batch rows, T columns, D hidden.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.models import load, padded
from tests.zoo.pairs import SEMANTIC, STATE, Inputs, Pair, PairModels, edited, harmful, harmless


class Encoder(nn.Module):
    """Writes the hidden states of a BERT into the dictionary that it is given."""

    def __init__(self, auto_model: nn.Module) -> None:
        super().__init__()
        self.auto_model = auto_model

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "position_ids")
        output = self.auto_model(**{name: features[name] for name in names if name in features})
        features.update({"token_embeddings": output.last_hidden_state})
        return features


class Pooling(nn.Module):
    """Writes one embedding [B, D] into the dictionary: the mean of the real tokens, of all, or the first."""

    mode: Literal["mean", "mean_of_all", "cls", "max"] = "mean"

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = features["token_embeddings"]
        mask = features["attention_mask"][..., None].to(hidden.dtype)
        if self.mode == "cls":
            pooled = hidden[:, 0]
        elif self.mode == "max":
            pooled = hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)
        elif self.mode == "mean":
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        else:
            pooled = hidden.mean(dim=1)
        features["sentence_embedding"] = pooled
        return features


class Normalize(nn.Module):
    """Brings embeddings to length 1."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        features["sentence_embedding"] = functional.normalize(features["sentence_embedding"], dim=-1)
        return features


class SentenceEncoder(nn.Sequential):
    """Hands a copy of the dictionary through its modules and gives the embedding [B, D]."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        features = dict(features)
        for module in self:
            features = module(features)
        return {"sentence_embedding": features["sentence_embedding"]}


def sentences(dtype: torch.dtype = torch.float32, *, mode: str = "mean") -> Any:
    """An encoder of three modules."""
    model = SentenceEncoder(Encoder(load("bert", dtype)), Pooling(), Normalize())
    model[1].mode = mode
    return model.eval()


def features(columns: int = 11) -> Inputs:
    """Right-padded texts as one argument."""
    return {"features": padded(columns=columns, positions=False)}


@harmless("features/sentences_bfloat16")
def features_sentences() -> PairModels:
    """float32 against bfloat16."""
    return PairModels(reference=sentences(), candidate=sentences(torch.bfloat16), inputs=features())


@harmless("features/sentences_float32")
def features_padding_sentences() -> PairModels:
    """Eleven columns against sixteen: more pads, which neither attention nor the mean takes in."""
    model = sentences()
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=features(), candidate_inputs=features(columns=16)
    )


@harmful("sentence_pooling/sentences_float32", allowed=SEMANTIC, cause=("pool",))
def pooling_pads_sentences() -> PairModels:
    """The mean over pads too."""
    return edited(sentences(), features(), lambda model: setattr(model[1], "mode", "mean_of_all"))


@harmful("sentence_pooling/sentences_bfloat16", allowed=SEMANTIC, cause=("pool",))
def pooling_first_sentences() -> PairModels:
    """The mean for the first token that the model was trained with (bge by the defaults of sentence-transformers)."""
    return edited(sentences(torch.bfloat16, mode="cls"), features(), lambda model: setattr(model[1], "mode", "mean"))


@harmful("normalise/sentences_float16", allowed=SEMANTIC, cause=("normal",))
def normalise_sentences() -> PairModels:
    """The last module, Normalize, is missing, as where modules.json was not read."""
    return edited(sentences(torch.float16), features(), lambda model: model.pop(2))


@harmful("feature_mask/sentences_float32", allowed=SEMANTIC, cause=("mask",))
def mask_of_ones_sentences() -> PairModels:
    """The mask in the dictionary is all ones: pads are texts."""
    model, inputs = sentences(mode="cls"), features()
    ones = {"features": inputs["features"] | {"attention_mask": torch.ones(3, 11, dtype=torch.long)}}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=ones)


@harmful("decoder_positions/sentences_float32", allowed=SEMANTIC, cause=("position",))
def positions_offset_sentences() -> PairModels:
    """Positions in the dictionary start at two, as RoBERTa's do, for a BERT."""
    model, inputs = sentences(), {"features": padded(columns=11)}
    moved = inputs["features"] | {"position_ids": inputs["features"]["position_ids"] + 2}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs={"features": moved})


@harmful("weight_edited/sentences_float16", allowed=STATE, cause=("word_embeddings",))
def weight_edited_sentences() -> PairModels:
    """The embedding of one token that occurs in the texts is another token's."""

    def edit(model: Any) -> None:
        weight = model[0].auto_model.embeddings.word_embeddings.weight
        token = features()["features"]["input_ids"][1, 2]
        weight[token] = weight[token - 1].clone()

    return edited(sentences(torch.float16), features(), edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
