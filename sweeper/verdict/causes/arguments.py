"""Arguments of the call put back: the cache, positions, the mask, single arguments, the whole layout.

A dtype that was asked for covers the floating-point arguments that were cast with the model, as it covers the state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sweeper.comparator.side import Call, Side, text_lengths
from sweeper.config import label
from sweeper.inputs.layout import to_rows
from sweeper.models import axes
from sweeper.models.configs import takes
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.state_changes import Provenance

Change = Callable[[Side], Side]


def cast_arguments(reference: Side, candidate: Side, found: Provenance) -> list[str]:
    """Names of the candidate's arguments that are the reference's in the dtype that was asked for."""
    undone = arguments_undone(reference, candidate, found)
    names: dict[str, None] = {}
    for before, after in zip(candidate.calls, undone.calls, strict=True):
        names |= dict.fromkeys(name for name, value in after.kwargs.items() if value is not before.kwargs[name])
    differing = _differing_arguments(Pair(reference, undone))
    return [name for name in names if name not in differing]  # a list of which some were cast is another argument


def arguments_undone(reference: Side, candidate: Side, found: Provenance) -> Side:
    """The candidate with the reference's values for those arguments that were cast with the model.

    Each is found by its name; inside a list or a dictionary, by its place. In another layout the real tokens get them.
    """
    if len(reference.calls) != len(candidate.calls) or not _may_cast(found):
        return candidate
    calls: list[Call] = []
    for left, right in zip(reference.calls, candidate.calls, strict=True):
        kwargs = {
            name: _undone(left.kwargs[name], value, left, right, found.coarser) if name in left.kwargs else value
            for name, value in right.kwargs.items()
        }
        same = all(value is right.kwargs[name] for name, value in kwargs.items())
        calls.append(right if same else replace(right, kwargs=kwargs))
    same = all(one is other for one, other in zip(calls, candidate.calls, strict=True))
    return candidate if same else replace(candidate, calls=tuple(calls))


def _may_cast(found: Provenance) -> bool:
    """Whether the models' dtypes differ; a model without parameters has the dtype of what it is given."""
    return found.coarser is not None or found.reference_dtype is None or found.candidate_dtype is None


def _undone(reference: Any, candidate: Any, left: Call, right: Call, coarser: torch.dtype | None) -> Any:
    ours, layout = tree_flatten(reference)
    theirs, spec = tree_flatten(candidate)
    if layout != spec:
        return candidate
    undone = [_undone_tensor(one, other, left, right, coarser) for one, other in zip(ours, theirs, strict=True)]
    same = all(one is other for one, other in zip(undone, theirs, strict=True))
    return candidate if same else tree_unflatten(undone, spec)


def _undone_tensor(reference: Any, candidate: Any, left: Call, right: Call, coarser: torch.dtype | None) -> Any:
    if not _floats(reference, candidate) or reference.dtype == candidate.dtype:
        return candidate
    if reference.shape == candidate.shape:
        return reference.to(candidate.device) if _is_cast(reference, candidate, coarser) else candidate
    left_NF, right_NF = to_rows(reference, left.forward), to_rows(candidate, right.forward)
    tokens = right.forward.shape
    if left_NF is None or right_NF is None or left_NF.shape != right_NF.shape or candidate.shape[:2] != tokens:
        return candidate
    if not _is_cast(left_NF, right_NF, coarser):
        return candidate
    placed = candidate.to(reference.dtype).flatten(0, 1)
    real = left_NF.to(candidate.device).reshape(-1, *placed.shape[1:])
    return placed.index_copy(0, right.forward.flat_N, real).reshape(candidate.shape)


def _is_cast(reference: Tensor, candidate: Tensor, coarser: torch.dtype | None) -> bool:
    """Whether one side holds the other's values rounded to its own dtype, no coarser than what was asked for."""
    either = max(reference.dtype, candidate.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    if coarser is not None and torch.finfo(either).eps > torch.finfo(coarser).eps:
        return False
    candidate = candidate.to(reference.device)
    pairs = ((reference.to(candidate.dtype), candidate), (candidate.to(reference.dtype), reference))
    return any(bool(((one == other) | (one.isnan() & other.isnan())).all()) for one, other in pairs)


def call_counterfactuals(pair: Pair, provenance: Provenance) -> list[Counterfactual]:
    """What may be put back in the call, the narrowest first; the call as the reference's comes last."""
    covered = cast_arguments(*pair, provenance)
    found = []
    if takes(pair.candidate.model, "use_cache") and any(map(_packed_with_cache, pair.candidate.calls)):
        name = "use_cache: the cache hides from transformers that texts are packed, so that no mask keeps them apart"
        fix = "pass use_cache=False"
        found.append(Counterfactual(name, fix, "inputs", _on_candidate(_with(use_cache=False))))
    if pair.reference.calls is pair.candidate.calls:
        return found
    found += formed_counterfactuals(pair)
    arguments = [name for name in _differing_arguments(pair) if name not in covered]
    if not arguments and _aligned(pair):
        return found
    found += [_argument(name, _differing_keys(pair, name)) for name in arguments]
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


def row_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """Each text alone, where the candidate's forwards hold several: one may change what another gives.

    It takes the place of code in which texts meet, so that it comes after all that puts code back.
    """
    if not all(call.has_rows for call in pair.candidate.calls):
        return []

    def change(side: Side) -> Side:
        calls = [call.of_rows([row]) for call in side.calls for row in range(call.forward.shape[0])]
        return replace(side, calls=tuple(calls))

    name = f"the batch: the rows of one forward ({_shapes(pair.candidate)}) change one another"
    return [Counterfactual(name, "call the candidate with each text alone", "inputs", _on_candidate(change), wide=True)]


def formed_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """Each axis that forms the calls of a cell alone, where the sides differ in it, one part less each time."""
    left, right = (side.formed for side in pair)
    found = []
    for name in (axis for axis in left if axis in right and left[axis] != right[axis]):
        passed = [value for value in axes.axis(name).halfway.get(right[name], ()) if value != left[name]]
        found += [_formed(name, value, right[name]) for value in (*passed, left[name])]
    return found


def _formed(axis: str, value: Any, candidate: Any) -> Counterfactual:
    def change(side: Side) -> Side:
        assert side.recalled is not None, "what has such axes is a cell"
        return replace(side, calls=side.recalled(axis, value), formed={**side.formed, axis: value})

    name = f"{axis}: {label(value)} -> {label(candidate)}"
    return Counterfactual(name, f"{axis}={label(value)}", "inputs", _on_candidate(change))


def _packed_with_cache(call: Call) -> bool:
    packed = len(call.forward.lengths) > call.forward.shape[0]
    return packed and call.kwargs.get("use_cache") is not False


def _shapes(side: Side) -> str:
    return ", ".join(str(list(call.forward.shape)) for call in side.calls[:3])


def _with(**arguments: Any) -> Change:
    def change(side: Side) -> Side:
        return replace(side, calls=tuple(replace(call, kwargs={**call.kwargs, **arguments}) for call in side.calls))

    return change


def _without(argument: str) -> Change:
    def change(side: Side) -> Side:
        kwargs = [{name: value for name, value in call.kwargs.items() if name != argument} for call in side.calls]
        return replace(
            side, calls=tuple(replace(call, kwargs=own) for own, call in zip(kwargs, side.calls, strict=True))
        )

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
    """The same values and dtypes, in lists and dictionaries too. Objects that know no equality differ unless one."""
    ours, layout = tree_flatten(left)
    theirs, spec = tree_flatten(right)
    return layout == spec and all(_same(one, other) for one, other in zip(ours, theirs, strict=True))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right.to(left.device))
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return False
    return left is right or bool(left == right)


def _differing_keys(pair: Pair, name: str) -> str:
    """Which entries of an argument that is a mapping on both sides differ."""
    keys: dict[str, None] = {}
    for left, right in zip(pair.reference.calls, pair.candidate.calls, strict=True):
        one, other = left.kwargs.get(name), right.kwargs.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            keys |= {str(key): None for key in [*one, *other] if not _equal(one.get(key), other.get(key))}
    return ", ".join(keys)


def _argument(name: str, keys: str) -> Counterfactual:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        calls = []
        for left, right in zip(pair.reference.calls, pair.candidate.calls, strict=True):
            kwargs = {key: value for key, value in right.kwargs.items() if key != name}
            if name in left.kwargs:
                kwargs[name] = _like(left.kwargs[name], right.kwargs.get(name))
            calls.append(replace(right, kwargs=kwargs))
        yield Pair(pair.reference, replace(pair.candidate, calls=tuple(calls)))

    return Counterfactual(
        f"argument {name}{f' ({keys})' if keys else ''}: other than the reference's",
        f"pass {name} as the reference does",
        "inputs",
        apply,
    )


def _like(reference: Any, candidate: Any) -> Any:
    """The reference's value in the dtypes that the candidate was called with."""
    ours, layout = tree_flatten(reference)
    theirs, spec = tree_flatten(candidate)
    if layout != spec:
        return reference
    cast = [one.to(other) if _floats(one, other) else one for one, other in zip(ours, theirs, strict=True)]
    return tree_unflatten(cast, layout)


def _floats(*values: Any) -> bool:
    return all(isinstance(value, Tensor) and value.is_floating_point() for value in values)


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
        calls.append(replace(call, kwargs={**call.kwargs, "position_ids": position_BT}))
    return replace(side, calls=tuple(calls))


def _reference_calls(pair: Pair) -> AbstractContextManager[Pair]:
    return contextlib.nullcontext(Pair(pair.reference, replace(pair.candidate, calls=pair.reference.calls)))
