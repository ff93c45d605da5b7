"""Pairs of nets with several outputs: dictionaries, nested tuples, dataclasses, [B], [B, C, T, T] and integers.

Shapes: B batch rows, T columns, C channels, D hidden.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.models import set_class
from tests.zoo.others.convolutional import built
from tests.zoo.others.sequential import WIDTH, frames
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


class Times(nn.Module):
    """Multiplies by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input: Tensor) -> Tensor:
        return input * self.factor


class Trunk(nn.Module):
    """Hidden states [B, T, D], and a module that scales the second output."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.shrink = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 6)
        self.second: nn.Module = Times()

    def hidden(self, frames: Tensor) -> Tensor:
        return frames + self.shrink(torch.tanh(self.expand(frames)))


class Scored(Trunk):
    """An embedding [B, 6] and a score [B], as a reward model or a critic has."""

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(frames)
        return {"embedding": self.head(hidden.mean(dim=1)), "score": self.second(hidden.square().mean(dim=(1, 2)))}


class Paired(Trunk):
    """An embedding and a map of pairs [B, C, T, T], as a protein model's contacts or a table of distances."""

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(frames)
        pairs = torch.einsum("bid,bjd,cd->bcij", hidden, hidden, self.head.weight)
        return {"embedding": self.head(hidden.mean(dim=1)), "pairs": self.second(pairs)}


class Nested(Trunk):
    """A tensor, and a tuple of a list of tensors and a tensor, as a model with a cache or feature maps has."""

    def forward(self, frames: Tensor) -> tuple[Tensor, tuple[list[Tensor], Tensor]]:
        hidden = self.hidden(frames)
        return self.head(hidden), ([hidden, self.second(hidden)], hidden.mean(dim=(0, 1)))


class Labelled(Trunk):
    """Logits and the integer [B, T] that they are largest for."""

    def label(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.hidden(frames))
        return {"logits": logits, "labels": self.label(logits)}


class LabelledByLeast(Labelled):
    """Takes the smallest logit for the largest."""

    def label(self, logits: Tensor) -> Tensor:
        return logits.argmin(dim=-1)


@dataclass
class Prediction:
    """A mean and its spread, both [B, T, 6], and how many tokens there were."""

    mean: Tensor
    spread: Tensor
    count: int


class Predicting(Trunk):
    """A regressor whose output is a dataclass."""

    def forward(self, frames: Tensor) -> Prediction:
        hidden = self.hidden(frames)
        spread = torch.nn.functional.softplus(self.second(self.head(hidden.flip(-1))))
        return Prediction(mean=self.head(hidden), spread=spread, count=frames.shape[0] * frames.shape[1])


class Latent(Trunk):
    """The mean of a latent distribution, decoded, as an autoencoder is evaluated."""

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.sample(self.hidden(frames)))

    def sample(self, hidden: Tensor) -> Tensor:
        return hidden


class Sampling(Latent):
    """Draws from the latent distribution, in evaluation as in training."""

    def sample(self, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.randn_like(hidden)


class Together(Trunk):
    """A list of frames and a dictionary of options as arguments, and a number."""

    def forward(self, parts: list[Tensor], options: dict[str, Any], scale: float) -> dict[str, Tensor]:
        hidden = self.hidden(torch.stack(parts)) * options["weights"][:, None]
        return {"values": self.head(hidden) * scale, "mean": self.second(hidden.mean(dim=(1, 2)))}


def together(dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of `Together`: two tensors [T, D] in a list, weights [T] in a dictionary, and a float."""
    weights = torch.rand(10, generator=torch.Generator().manual_seed(41)).to(dtype)
    return {"parts": list(frames(dtype)["frames"]), "options": {"weights": weights}, "scale": 0.5}


def tripled(model_class: type[Trunk], dtype: torch.dtype) -> PairModels:
    """A pair whose candidate has its second output three times as large."""
    return edited(built(model_class, dtype), frames(dtype), lambda model: setattr(model.second, "factor", 3.0))


@harmless("copied/scored_float32", allowed=IDENTICAL)
def copied_scored() -> PairModels:
    """A copy with an output of [B]."""
    return edited(built(Scored), frames(), lambda model: None)


@harmless("copied/nested_bfloat16", allowed=IDENTICAL)
def copied_nested() -> PairModels:
    """A copy with a nested output."""
    return edited(built(Nested, torch.bfloat16), frames(torch.bfloat16), lambda model: None)


@harmless("copied/predicting_float16", allowed=IDENTICAL)
def copied_predicting() -> PairModels:
    """A copy with a dataclass for its output."""
    return edited(built(Predicting, torch.float16), frames(torch.float16), lambda model: None)


@harmless("several_outputs/paired_bfloat16")
def several_outputs_paired() -> PairModels:
    """float32 against bfloat16 of a model with a map of pairs."""
    return PairModels(
        reference=built(Paired),
        candidate=built(Paired, torch.bfloat16),
        inputs=frames(),
        candidate_inputs=frames(torch.bfloat16),
    )


@harmless("several_outputs/together_float16")
def several_outputs_together() -> PairModels:
    """float32 against float16 of a model with a list, a dictionary and a number for arguments, all cast along."""
    return PairModels(
        reference=built(Together),
        candidate=built(Together, torch.float16),
        inputs=together(torch.float32),
        candidate_inputs=together(torch.float16),
    )


@harmful("second_output/scored_float32", allowed=SEMANTIC, cause=("second", "factor", "score"))
def second_output_scored() -> PairModels:
    """The score [B] is three times as large; the embedding agrees."""
    return tripled(Scored, torch.float32)


@harmful("second_output/paired_float32", allowed=SEMANTIC, cause=("second", "factor", "pairs"))
def second_output_paired() -> PairModels:
    """The map of pairs [B, C, T, T] is three times as large; the embedding agrees."""
    return tripled(Paired, torch.float32)


@harmful("second_output/nested_bfloat16", allowed=SEMANTIC, cause=("second", "factor"))
def second_output_nested() -> PairModels:
    """One tensor of a list in a tuple in a tuple is three times as large."""
    return tripled(Nested, torch.bfloat16)


@harmful("second_output/labelled_float16", allowed=SEMANTIC, cause=("label",))
def second_output_labelled() -> PairModels:
    """The integer output is that of the smallest logit; the logits agree."""
    return edited(
        built(Labelled, torch.float16), frames(torch.float16), lambda model: set_class(model, LabelledByLeast)
    )


@harmful("second_output/predicting_float32", allowed=SEMANTIC, cause=("second", "factor", "spread"))
def second_output_predicting() -> PairModels:
    """The spread of a dataclass is another; the mean agrees."""
    return tripled(Predicting, torch.float32)


@harmful("randomness/latent_float32", allowed=STATE, cause=("random", "sampl"))
def randomness_latent() -> PairModels:
    """The latent is sampled where its mean is asked for, as an autoencoder's posterior in evaluation."""
    return edited(built(Latent), frames(), lambda model: set_class(model, Sampling))


@harmful("argument/together_float32", allowed=SEMANTIC, cause=("scale",))
def argument_number_together() -> PairModels:
    """A number among the arguments is another."""
    model, inputs = built(Together), together(torch.float32)
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=inputs | {"scale": 0.55}
    )


@harmful("argument/together_bfloat16", allowed=SEMANTIC, cause=("parts",))
def argument_list_together() -> PairModels:
    """The members of a list among the arguments come in another order."""
    model, inputs = built(Together, torch.bfloat16), together(torch.bfloat16)
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=inputs,
        candidate_inputs=inputs | {"parts": inputs["parts"][::-1]},
    )


@harmful("weight_edited/together_bfloat16", allowed=STATE, cause=("shrink",))
def weight_edited_together() -> PairModels:
    """One column of one weight is zero: a pruning that was not asked for."""
    return edited(
        built(Together, torch.bfloat16), together(torch.bfloat16), lambda model: model.shrink.weight[:, 7].zero_()
    )


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
