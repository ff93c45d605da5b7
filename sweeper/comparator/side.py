"""One side of a comparison: a model, its calls, and where the real tokens of each call are.

The token map is derived from the keyword arguments themselves, so that padded, packed and single layouts can be
compared row by row. Shapes as in `docs/architecture.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.comparator.calling import Listener, carry_out, of_calls
from sweeper.comparator.hooks import kept_outputs, tensors_of
from sweeper.comparator.leaves import leaves
from sweeper.comparator.outputs import ModelOutputs, Part
from sweeper.comparator.outputs import Outputs as Outputs
from sweeper.config import Pooling
from sweeper.errors import UnsupportedError
from sweeper.inputs.calls import Call, call_of, calls_of, check_same_tokens, shared_masks
from sweeper.inputs.pooling import embeddings
from sweeper.models.axis import Switch
from sweeper.models.compiled import OFF, base_outputs, compiles, is_compiled, uncompiled
from sweeper.models.conditions import begun
from sweeper.models.family import gives_hidden
from sweeper.models.snapshot import fresh, left_as_found

Inputs = Mapping[str, Any] | Sequence[Mapping[str, Any]]
POOLING = "(pooling)"  # the name of the pooled embeddings among the outputs: no module can have it


@dataclass(frozen=True)
class Side:
    """A model with its calls.

    Attributes:
        model: left as it was found, whatever is done with it.
        calls: one, or several whose tokens follow one another (each text alone).
        switches: the global settings under which the model runs, by name; the same names on both sides.
        pooling: also give the embedding of each text, made so from the last hidden states; None: the outputs alone.
        parts: what is taken of the outputs; None: all.
        names: what its modules are called where outputs are compared, if not as in the model; none: not looked at.
        seed: of the random state that every run begins with; runs of one seed draw the same.
        formed: of a cell, the axes that form its calls (`Axis.forms_calls`), with its values.
        recalled: of a cell, forms its calls under another value of such an axis.
        function: of a cell, all axes that decide what it computes of its state, rounding apart; None: not known.
        weights: of a cell, what decides its state; None: not known.
    """

    model: nn.Module
    calls: tuple[Call, ...]
    switches: Mapping[str, Switch] = field(default_factory=dict)
    pooling: Pooling | None = None
    parts: tuple[Part, ...] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    formed: Mapping[str, Any] = field(default_factory=dict)
    recalled: Callable[[str, Any], tuple[Call, ...]] | None = None
    function: Hashable | None = None
    weights: Hashable | None = None

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
    if compiles(side.switches):
        side = replace(side, switches={**side.switches, **OFF})
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
    reference_kwargs = calls_of(inputs)
    candidate_kwargs = reference_kwargs if candidate_inputs is None else calls_of(candidate_inputs)
    reference_masks, candidate_masks = shared_masks(reference_kwargs, candidate_kwargs)
    reference_calls = tuple(map(call_of, reference_kwargs, repeat(reference), reference_masks))
    candidate_calls = reference_calls
    if candidate_inputs is not None:
        candidate_calls = tuple(map(call_of, candidate_kwargs, repeat(candidate), candidate_masks))
    check_same_tokens(reference_calls, candidate_calls)
    return Side(reference, reference_calls), Side(candidate, candidate_calls)


def text_lengths(*sides: Side) -> list[int]:
    """Tokens of each text, of the side whose arguments tell the most texts apart."""
    lengths = [[length for call in side.calls for length in call.forward.lengths] for side in sides]
    return max(lengths, key=len)


@torch.no_grad()
def run(side: Side, listener: Listener | None = None) -> ModelOutputs:
    """The model's outputs over the rows of all calls, leaf by leaf; `POOLING` [S, D] last.

    The model runs under the side's conditions; model, arguments and random state are left as found.

    Args:
        listener: hooks modules of the model; its code then runs as it is written.
    """
    side = side if listener is None else uncompiled_side(side)
    outputs = ModelOutputs(side.parts)
    given = fresh(call.kwargs for call in side.calls)
    with left_as_found(side.model, seed=side.seed) as found, side.conditions(), hidden_for_pooling(side) as hidden:
        for call, kwargs in zip(side.calls, given, strict=True):
            for leaf in leaves(carry_out(side.model, call, kwargs, listener)):
                outputs.add(leaf, call.forward)
        outputs.end(found.lasting)
        if side.pooling is not None:
            outputs[POOLING] = pooled(side.pooling, side.calls, hidden)
    return outputs


@contextlib.contextmanager
def hidden_for_pooling(side: Side) -> Iterator[list[Tensor]]:
    """Keeps what pooling reads, the last hidden states of each call; nothing where the side has none."""
    if side.pooling is None:
        yield []
    elif compiles(side.switches):
        with base_outputs(side.model, lambda output: tensors_of(output)[0]) as hidden:
            yield hidden
    else:
        with kept_outputs(gives_hidden(side.model)) as hidden:
            yield hidden


def pooled(pooling: Pooling, calls: Sequence[Call], hidden: list[Tensor]) -> Tensor:
    """The embeddings of the calls' texts, [S, D] float64, by the masks that the model was called with.

    Raises:
        UnsupportedError: the model gave no hidden states.
    """
    if len(hidden) != sum(call.steps for call in calls):
        raise UnsupportedError("the model does not call its base model, whose hidden states give embeddings")
    pieces = [
        embeddings(hidden_BTD.to(call.forward.flat_N.device), call.forward, call.kwargs.get("attention_mask"), pooling)
        for hidden_BTD, call in zip(of_calls(hidden, calls), calls, strict=True)
    ]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
