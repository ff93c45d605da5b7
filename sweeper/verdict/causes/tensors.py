"""Parameters and buffers put back to the reference's values."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor, nn

from sweeper.models.quantised import dequantised
from sweeper.models.state import pieces, state_of
from sweeper.models.swapping import Given, Swap, swapped
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.state_changes import Change, Provenance, dense
from sweeper.verdict.wording import some_of


@contextlib.contextmanager
def put_back(model: nn.Module, changes: Iterable[Change]) -> Iterator[None]:
    """Gives the named state the reference's values; afterwards the model has its own tensors again.

    A rounded tensor gets the reference's dtype too; any other keeps the candidate's dtype, so that it still runs. What
    is quantised is not while that lasts.
    """
    changes = tuple(changes)
    with (
        dequantised(model, {change.name for change in changes}),
        swapped(
            model, (Given(change.name, functools.partial(_value, change), _dtype_of(change)) for change in changes)
        ),
    ):
        yield


@contextlib.contextmanager
def asked_undone(model: nn.Module, found: Provenance, *, reference: bool) -> Iterator[None]:
    """Takes back the rounding that the dtype asked for, around a replay: what is left was not asked for.

    The candidate gets the reference's values; of what it has quantised, the reference gets the candidate's. State that
    has no counterpart by name (fused projections) is rounded to the coarser of the two dtypes on both sides instead.
    """
    put = (
        quantised_alike(found)
        if reference
        else put_back(model, [*found.asked.values(), *of_quantised_reference(found)])
    )
    with put, _rounded(model, *_rounded_too(model, found)):
        yield


def undone_in_reference(model: nn.Module, found: Provenance) -> Hashable | None:
    """What `asked_undone` does to the reference, as a key; None where that depends on the candidate's values."""
    if any(change.reference_entry.quantised is None for change in found.quantised.values()):
        return None
    return _rounded_too(model, found)


def _rounded_too(model: nn.Module, found: Provenance) -> tuple[tuple[str, ...], torch.dtype | None]:
    """State of the model that has no counterpart, of which a file holds floating-point values; and what it is rounded
    to."""
    if found.coarser is None or not found.missing:
        return (), None
    own = state_of(model)
    return tuple(name for name in found.missing if name in own and own[name].stored), found.coarser


def of_quantised_reference(found: Provenance) -> list[Change]:
    """What the reference alone has quantised."""
    return [change for change in found.quantised.values() if change.reference_entry.quantised is not None]


@contextlib.contextmanager
def quantised_alike(found: Provenance) -> Iterator[None]:
    """Gives the reference the numbers that the candidate's quantised weights stand for."""
    swap = Swap()
    try:
        for change in found.quantised.values():
            entry = change.reference_entry
            if entry.quantised is None:
                swap.give(getattr(entry.owner, entry.leaf), functools.partial(_other_value, change))
        yield
    finally:
        swap.put_back()


def _rounded(model: nn.Module, names: Iterable[str], dtype: torch.dtype | None) -> AbstractContextManager[None]:
    return swapped(model, (Given(name, lambda held: held.to(dtype).to(held.dtype)) for name in names))


def _dtype_of(change: Change) -> torch.dtype:
    entry = change.reference_entry if change.rounded_to is not None else change.candidate_entry
    return entry.held.dtype


def _value(change: Change, held: Tensor) -> Tensor:
    value = change.reference.to(held.device)
    return value if change.rounded_to is not None else value.to(change.candidate.dtype)


def _other_value(change: Change, held: Tensor) -> Tensor:
    return change.candidate.to(held)


def quantised_counterfactuals(found: Provenance) -> list[Counterfactual]:
    """The reference's weights for all that one side has quantised."""
    changes = tuple(found.quantised.values())
    if not changes:
        return []
    in_reference = changes[0].reference_entry.quantised is not None

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        reference = pair.reference
        with contextlib.ExitStack() as stack:
            if in_reference:
                stack.enter_context(dequantised(reference.model))
                reference = replace(reference)  # it runs again
            stack.enter_context(put_back(pair.candidate.model, changes))
            yield Pair(reference, pair.candidate)

    some = some_of([change.name for change in changes], 1)
    side = "reference" if in_reference else "candidate"
    name = f"the weights were quantised to {found.schemes}: {some}, in the {side}"
    return [Counterfactual(name, f"load the {side} without quantisation", "state", apply)]


def state_counterfactuals(found: Provenance) -> list[Counterfactual]:
    """Tables rounded without being asked first, then other buffers, then parameters: each kind of name together."""
    ordered = sorted([*found.rounded.values(), *found.other.values()], key=_order)
    result = []
    for _, group in groupby(ordered, key=_order):
        result += _grouped(list(group))
    return result


def _order(change: Change) -> tuple[bool, bool, bool]:
    return change.rounded_to is None, change.kind == "parameter", change.kind == "buffer"


def _grouped(changes: Sequence[Change]) -> list[Counterfactual]:
    """All of them together, to be halved until one is left; one alone is its own."""
    if len(changes) == 1:
        return [_counterfactual(changes)]
    half = len(changes) // 2
    parts = (*_grouped(changes[:half]), *_grouped(changes[half:]))
    whole = _counterfactual(changes)
    return [replace(whole, parts=parts)]


def _counterfactual(changes: Sequence[Change]) -> Counterfactual:
    return Counterfactual(_name(changes), _fix(changes), "state", _apply(tuple(changes)))


def _apply(changes: tuple[Change, ...]) -> Callable[[Pair], AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with put_back(pair.candidate.model, changes):
            yield pair

    return apply


def _name(changes: Sequence[Change]) -> str:
    first = changes[0]
    kind = "parameter" if first.kind == "parameter" else "buffer"
    if len(changes) > 1:
        return f"{len(changes)} {kind}s, {first.name} to {changes[-1].name}: {_what(first)}"
    return f"{kind} {first.name}: {_what(first)}"


def _what(change: Change) -> str:
    """What became of the values, in words."""
    left = dense(change.reference)
    right = dense(change.candidate).to(left.device)
    if change.rounded_to is not None:
        dtypes = f"{_dtype(left.dtype)} -> {_dtype(right.dtype)}"
        return dtypes if left.dtype != right.dtype else f"rounded to {_dtype(change.rounded_to)}"
    if left.shape != right.shape:
        return f"shape {tuple(left.shape)} -> {tuple(right.shape)}"
    if left.dim() == 2 and left.shape[0] == left.shape[1] and _equal(left.T, right):
        return "transposed"
    if left.dim() > 0 and torch.equal(_sorted_rows(left), _sorted_rows(right)):
        return "the same rows in another order"
    differing = sum(int((mine.double() != other.double()).sum()) for mine, other in pieces(left, right))
    largest = max(
        (float((mine.double() - other.double()).abs().max()) for mine, other in pieces(left, right)), default=0
    )
    return f"{differing} of {left.numel()} values differ, by at most {largest:.2g}"


def _equal(left: Tensor, right: Tensor) -> bool:
    return all(torch.equal(mine.double(), other.double()) for mine, other in pieces(left, right))


def _sorted_rows(tensor: Tensor) -> Tensor:
    """A number a row that depends on the order of its values, sorted."""
    rows = tensor.reshape(len(tensor), -1)
    weights = torch.arange(rows.shape[1], device=rows.device, dtype=torch.float64).cos()
    some = max(1, 2**22 // max(1, rows.shape[1]))  # rows that are in float64 at once
    return torch.cat([(piece.double() * weights).sum(1) for piece in rows.split(some)]).sort()[0]


def _fix(changes: Sequence[Change]) -> str:
    first = changes[0]
    if first.rounded_to is None:
        return f"copy the reference's {first.name.rpartition('.')[2]} over it"
    if first.kind == "non_persistent_buffer":
        dtype = _dtype(first.rounded_to)
        kept = f"or set {first.name} to its {_dtype(first.reference.dtype)} values after the cast"
        return f"load with from_pretrained(dtype={dtype}) in place of .to({dtype}), {kept}"
    return f"keep {first.name} in {_dtype(first.reference.dtype)}"


def _dtype(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
