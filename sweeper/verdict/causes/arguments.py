"""Arguments of the call put back: the cache, positions, the mask, single arguments, the whole layout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sweeper.comparator.side import Call, Side, text_lengths
from sweeper.models.configs import takes
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair

Change = Callable[[Side], Side]


def call_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """Yields changes from the narrowest to the widest: the whole call of the reference comes last."""
    found = []
    if takes(pair.candidate.model, "use_cache") and any(map(_packed_with_cache, pair.candidate.calls)):
        name = "use_cache: the cache hides from transformers that the row is packed, so that no mask parts its texts"
        fix = "pass use_cache=False"
        found.append(Counterfactual(name, fix, "inputs", _on_candidate(_with(use_cache=False))))
    if pair.reference.calls is pair.candidate.calls:
        return found
    arguments = _differing_arguments(pair)
    if not arguments and _aligned(pair):
        return found
    found += [_argument(name) for name in arguments]
    if "position_ids" not in arguments and takes(pair.candidate.model, "position_ids") and not _same_positions(pair):
        found.append(
            Counterfactual(
                "position_ids: the two sides count positions differently",
                "pass position_ids that count 0, 1, 2, ... within each text, on both sides",
                "inputs",
                _explicit_positions,
            )
        )
    if any("attention_mask" in call.kwargs for call in pair.candidate.calls) and _shapes(pair.reference) != _shapes(
        pair.candidate
    ):
        found.append(
            Counterfactual(
                "attention_mask: the packed row carries one",
                "pass none",
                "inputs",
                _on_candidate(_without("attention_mask")),
            )
        )
    found.append(
        Counterfactual(
            f"the call: {_shapes(pair.reference)} -> {_shapes(pair.candidate)}, another layout or other arguments",
            "call the candidate as the reference is called",
            "inputs",
            _reference_calls,
            wide=True,
        )
    )
    return found


def _packed_with_cache(call: Call) -> bool:
    packed = len(call.forward.lengths) > call.forward.shape[0]
    return packed and call.kwargs.get("use_cache") is not False


def _shapes(side: Side) -> str:
    return ", ".join(str(list(call.forward.shape)) for call in side.calls[:3])


def _with(**arguments: Any) -> Change:
    def change(side: Side) -> Side:
        return replace(side, calls=tuple(Call({**call.kwargs, **arguments}, call.forward) for call in side.calls))

    return change


def _without(argument: str) -> Change:
    def change(side: Side) -> Side:
        kwargs = [{name: value for name, value in call.kwargs.items() if name != argument} for call in side.calls]
        return replace(side, calls=tuple(Call(own, call.forward) for own, call in zip(kwargs, side.calls, strict=True)))

    return change


def _on_candidate(change: Change) -> Callable[[Pair], AbstractContextManager[Pair]]:
    def apply(pair: Pair) -> AbstractContextManager[Pair]:
        return contextlib.nullcontext(Pair(pair.reference, change(pair.candidate)))

    return apply


def _aligned(pair: Pair) -> bool:
    """Whether both sides make the same number of calls, in the same shapes."""
    left, right = ([call.forward.shape for call in side.calls] for side in pair)
    return left == right


def _differing_arguments(pair: Pair) -> list[str]:
    """Names of arguments that differ between calls of the same layout."""
    if not _aligned(pair):
        return []
    names: dict[str, None] = {}
    for left, right in zip(pair.reference.calls, pair.candidate.calls, strict=True):
        for name in [*left.kwargs, *right.kwargs]:
            if not _equal(left.kwargs.get(name), right.kwargs.get(name)):
                names[name] = None
    return list(names)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and torch.equal(left, right)
    return left is right or (not isinstance(left, Tensor) and not isinstance(right, Tensor) and left == right)


def _argument(name: str) -> Counterfactual:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        calls = []
        for left, right in zip(pair.reference.calls, pair.candidate.calls, strict=True):
            kwargs = {key: value for key, value in right.kwargs.items() if key != name}
            calls.append(Call({**kwargs, **({name: left.kwargs[name]} if name in left.kwargs else {})}, right.forward))
        yield Pair(pair.reference, replace(pair.candidate, calls=tuple(calls)))

    return Counterfactual(
        f"argument {name}: other than the reference's", f"pass {name} as the reference does", "inputs", apply
    )


def _same_positions(pair: Pair) -> bool:
    """Whether both sides pass positions, and the same for every token."""
    left, right = (_positions(side) for side in pair)
    return left is not None and right is not None and torch.equal(left, right)


def _positions(side: Side) -> Tensor | None:
    given = [positions for call in side.calls if isinstance(positions := call.kwargs.get("position_ids"), Tensor)]
    if len(given) < len(side.calls) or any(positions.dim() != 2 for positions in given):
        return None
    expanded = [
        positions.expand(call.forward.shape).flatten()[call.forward.flat_N]
        for positions, call in zip(given, side.calls, strict=True)
    ]
    return torch.cat(expanded).cpu()


@contextlib.contextmanager
def _explicit_positions(pair: Pair) -> Iterator[Pair]:
    lengths = text_lengths(*pair)
    yield Pair(_with_positions(pair.reference, lengths), _with_positions(pair.candidate, lengths))


def _with_positions(side: Side, lengths: list[int]) -> Side:
    position_N = torch.cat([torch.arange(length) for length in lengths])
    tokens = [len(call.forward.flat_N) for call in side.calls]
    calls = []
    for call, own_N in zip(side.calls, position_N.split(tokens), strict=True):
        flat_N = call.forward.flat_N
        position_BT = torch.zeros(call.forward.shape, dtype=torch.int64, device=flat_N.device)
        position_BT.view(-1)[flat_N] = own_N.to(flat_N.device)
        calls.append(Call({**call.kwargs, "position_ids": position_BT}, call.forward))
    return replace(side, calls=tuple(calls))


def _reference_calls(pair: Pair) -> AbstractContextManager[Pair]:
    return contextlib.nullcontext(Pair(pair.reference, replace(pair.candidate, calls=pair.reference.calls)))
