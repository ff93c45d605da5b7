"""One side of a comparison: a model, its calls, and where the real tokens of each call are.

The token map is derived from the keyword arguments themselves, so that padded, packed and single layouts can be
compared row by row. Shapes as in `docs/architecture.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.comparator.hooks import kept_outputs, tensors_of
from sweeper.config import Pooling
from sweeper.errors import AlignmentError, ConfigError
from sweeper.inputs.layout import Tokens, to_rows
from sweeper.inputs.pooling import embeddings
from sweeper.models.axis import Switch
from sweeper.models.compiled import is_compiled, uncompiled
from sweeper.models.conditions import begun
from sweeper.models.snapshot import fresh, left_as_found

Inputs = Mapping[str, Any] | Sequence[Mapping[str, Any]]
POOLING = "(pooling)"  # the name of the pooled embeddings among the outputs: no module can have it


@dataclass(frozen=True)
class Call:
    """One call of a model.

    Attributes:
        kwargs: what the model is called with.
        forward: where its real tokens are; of a cell, also which texts they are of.
    """

    kwargs: dict[str, Any]
    forward: Tokens

    def of_rows(self, rows: Sequence[int]) -> Call:
        """The same call with these rows of its tensors only, in this order."""
        real_BT = torch.zeros(self.forward.shape, dtype=torch.bool)
        real_BT.view(-1)[self.forward.flat_N.cpu()] = True
        index = torch.tensor(rows, device=self.forward.flat_N.device)
        kwargs = {key: value[index] if isinstance(value, Tensor) else value for key, value in self.kwargs.items()}
        return _call(kwargs, real_BT[torch.tensor(rows)])

    @property
    def token_N(self) -> Tensor:
        """The real token ids, zeros where there are none; on the CPU."""
        return _ids(self.kwargs).flatten()[self.forward.flat_N].cpu()


@dataclass(frozen=True)
class Side:
    """A model with its calls.

    Attributes:
        model: left as it was found, whatever is done with it.
        calls: one, or several whose tokens follow one another (each text alone).
        switches: the global settings under which the model runs, by name; the same names on both sides.
        pooling: also give the embedding of each text, made so from the last hidden states; None: the outputs alone.
        names: what its modules are called where outputs are compared, if not as in the model; none: not looked at.
    """

    model: nn.Module
    calls: tuple[Call, ...]
    switches: Mapping[str, Switch] = field(default_factory=dict)
    pooling: Pooling | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def conditions(self) -> AbstractContextManager[None]:
        """All switches set."""
        return begun(self.switches)

    def in_batches(self, batches: Iterable[Sequence[int]]) -> Iterator[list[Call]]:
        """The calls of each batch of texts, which the calls follow in their order."""
        calls = iter(self.calls)
        for texts in batches:
            batch: list[Call] = []
            while sum(len(call.forward.lengths) for call in batch) < len(texts):
                batch.append(next(calls))
            yield batch


# Around a run with hooks, by its name among a side's switches.
UNCOMPILED = {"torch.compile": Switch("off", "call the model that is not compiled", uncompiled)}


def uncompiled_side(side: Side) -> Side:
    """The side whose code runs as it is written, for hooks; itself where that is so."""
    runs_as_written = side.switches.items() >= UNCOMPILED.items() or not is_compiled(side.model)
    return side if runs_as_written else replace(side, switches={**side.switches, **UNCOMPILED})


def sides(
    reference: nn.Module, candidate: nn.Module, inputs: Inputs, candidate_inputs: Inputs | None = None
) -> tuple[Side, Side]:
    """Both sides, aligned by token.

    Args:
        inputs, candidate_inputs: keyword arguments of the model, or a sequence of them (several calls, in text order).
            Real tokens are those that `attention_mask` [B, T] keeps; without one, all. Where the two sides have the
            same `input_ids`, one mask says for both which tokens are real.

    Raises:
        ConfigError: inputs without a tensor.
        AlignmentError: the real tokens are not the same on both sides.
    """
    reference_kwargs = _as_calls(inputs)
    candidate_kwargs = reference_kwargs if candidate_inputs is None else _as_calls(candidate_inputs)
    reference_masks, candidate_masks = _shared_masks(reference_kwargs, candidate_kwargs)
    reference_calls = tuple(map(_call, reference_kwargs, reference_masks))
    candidate_calls = (
        reference_calls if candidate_inputs is None else tuple(map(_call, candidate_kwargs, candidate_masks))
    )
    _check_same_tokens(reference_calls, candidate_calls)
    return Side(reference, reference_calls), Side(candidate, candidate_calls)


def _as_calls(inputs: Inputs) -> list[dict[str, Any]]:
    calls = [dict(inputs)] if isinstance(inputs, Mapping) else [dict(call) for call in inputs]
    if not calls or not all(any(isinstance(value, Tensor) for value in call.values()) for call in calls):
        raise ConfigError("inputs: give the model's keyword tensors, e.g. {'input_ids': ids} (given: no tensor)")
    return calls


def _mask(kwargs: Mapping[str, Any]) -> Tensor | None:
    mask = kwargs.get("attention_mask")
    return mask.bool().cpu() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _shared_masks(
    reference: Sequence[Mapping[str, Any]], candidate: Sequence[Mapping[str, Any]]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The mask of each call. A side that was called without one on the same ids reads the same pads: they stay pads."""
    left, right = [_mask(kwargs) for kwargs in reference], [_mask(kwargs) for kwargs in candidate]
    same_ids = len(reference) == len(candidate) and all(
        "input_ids" in one and "input_ids" in other and torch.equal(one["input_ids"].cpu(), other["input_ids"].cpu())
        for one, other in zip(reference, candidate, strict=True)
    )
    if not same_ids:
        return left, right
    shared = [one if one is not None else other for one, other in zip(left, right, strict=True)]
    return shared, shared


def _call(kwargs: dict[str, Any], mask_BT: Tensor | None) -> Call:
    ids_BT = _ids(kwargs)
    if mask_BT is None or mask_BT.shape != ids_BT.shape:
        mask_BT = torch.ones(ids_BT.shape, dtype=torch.bool)
    row_N, column_N = mask_BT.nonzero(as_tuple=True)
    starts_N = _text_starts(kwargs.get("position_ids"), row_N, column_N)
    lengths = tuple(torch.bincount(starts_N.cumsum(0) - 1).tolist())
    B, T = ids_BT.shape
    return Call(kwargs, Tokens(shape=(B, T), flat_N=(row_N * T + column_N).to(ids_BT.device), lengths=lengths))


def _ids(kwargs: Mapping[str, Any]) -> Tensor:
    """Token ids [B, T]; without any, zeros in the shape of the first input: of [B, T, D], or of [B, F] with T = 1."""
    if isinstance(kwargs.get("input_ids"), Tensor):
        return kwargs["input_ids"]
    tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])
    if not first.is_floating_point() and first.dim() == 2:
        return first
    shape = first.shape[:2] if first.dim() >= 3 else (first.shape[0], 1)
    return torch.zeros(shape, dtype=torch.int64, device=first.device)


def _text_starts(position_ids: Any, row_N: Tensor, column_N: Tensor) -> Tensor:
    """Whether a text starts at each real token: where a new row does, and inside a row where positions restart at 0."""
    starts_N = torch.ones_like(row_N)
    starts_N[1:] = (row_N[1:] != row_N[:-1]).long()
    if isinstance(position_ids, Tensor) and position_ids.dim() == 2 and position_ids.any():
        position_N = position_ids.cpu().expand(int(row_N.max()) + 1, -1)[row_N, column_N]
        starts_N[1:] |= (position_N[1:] == 0).long()
    return starts_N


def token_ids(calls: Sequence[Call]) -> Tensor:
    """The real token ids of all calls, [N], on the CPU."""
    return torch.cat([call.token_N for call in calls])


def text_lengths(*sides: Side) -> list[int]:
    """Tokens of each text, of the side whose arguments tell the most texts apart."""
    lengths = [[length for call in side.calls for length in call.forward.lengths] for side in sides]
    return max(lengths, key=len)


def _check_same_tokens(reference: Sequence[Call], candidate: Sequence[Call]) -> None:
    left, right = token_ids(reference), token_ids(candidate)
    if len(left) != len(right):
        raise AlignmentError(
            f"{len(left)} real tokens in the reference, {len(right)} in the candidate: "
            "mark pads with attention_mask [B, T]"
        )
    if not torch.equal(left, right):
        token = int((left != right).nonzero()[0])
        raise AlignmentError(
            f"real token {token} is {int(left[token])} in the reference and {int(right[token])} in the candidate: "
            "both sides must read the same texts in the same order"
        )


Outputs = dict[str, Tensor]


@torch.no_grad()
def run(side: Side, begin: Callable[[Tokens], object] | None = None, *, seed: int = 0) -> Outputs:
    """`call_model` for all calls of a side, under its conditions; model, arguments and random state are left as found.

    Args:
        seed: of the random state that the run draws from; runs of one seed draw the same.

    Raises:
        AlignmentError: the model gave no floating-point tensor with a token or batch dimension.
    """
    given = fresh(call.kwargs for call in side.calls)
    calls = [replace(call, kwargs=kwargs) for call, kwargs in zip(side.calls, given, strict=True)]
    with left_as_found(side.model, seed=seed) as found, side.conditions(), hidden_for_pooling(side) as hidden:
        outputs = {name: found.lasting(tensor) for name, tensor in call_model(side, calls, hidden, begin).items()}
    if not outputs:
        raise AlignmentError(
            f"{type(side.model).__name__} gave no floating-point tensor with a token or batch dimension"
        )
    return outputs


def call_model(
    side: Side, calls: Sequence[Call], hidden: list[Tensor], begin: Callable[[Tokens], object] | None = None
) -> Outputs:
    """The model's output tensors over the rows of some calls, [N, F] each, by name or index; `POOLING` [S, D] last.

    Args:
        hidden: where `hidden_for_pooling` keeps the last hidden states; empty afterwards.
        begin: told each call before it is made.
    """
    pieces: dict[str, list[Tensor]] = {}
    for call in calls:
        if begin is not None:
            begin(call.forward)
        for name, tensor in _named_tensors(side.model(**call.kwargs)):
            rows_NF = to_rows(tensor, call.forward) if tensor.is_floating_point() else None
            if rows_NF is not None:
                pieces.setdefault(name, []).append(rows_NF)
    if side.pooling is not None:
        pieces[POOLING] = [_pooled(*pair, side.pooling) for pair in zip(hidden, calls, strict=True)]
        hidden.clear()
    return {name: torch.cat(tensors) if len(tensors) > 1 else tensors[0] for name, tensors in pieces.items()}


def hidden_for_pooling(side: Side) -> AbstractContextManager[list[Tensor]]:
    """Keeps what pooling reads, the last hidden states of each call; nothing where the side has none."""
    base: Any = side.model.base_model if side.pooling is not None else None
    return contextlib.nullcontext([]) if base is None else kept_outputs(base)


def _pooled(hidden_BTD: Tensor, call: Call, pooling: Pooling) -> Tensor:
    """The embeddings of a call's texts, [S, D] float64, by the mask that the model was called with."""
    return embeddings(hidden_BTD, call.forward, call.kwargs.get("attention_mask"), pooling)


def _named_tensors(output: Any) -> list[tuple[str, Tensor]]:
    if isinstance(output, Mapping):
        return [(name, value) for name, value in output.items() if isinstance(value, Tensor)]
    return [(f"output[{index}]" if index else "output", tensor) for index, tensor in enumerate(tensors_of(output))]
