"""What became of each parameter and buffer: asked for, rounded without being asked, or something else altogether."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sweeper.comparator.outputs import same_raw_bits
from sweeper.models.names import align
from sweeper.models.state import StateEntry, pieces, state_of

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_ROUNDING = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Change:
    """One tensor that differs between the sides.

    Attributes:
        name, kind: as in `sweeper.models.state`.
        reference_entry, candidate_entry: where each side has it.
        rounded_to: the dtype whose rounding explains the difference; None where none does.
        scheme: what the one that is quantised is stored as, where that explains the difference.
    """

    name: str
    reference_entry: StateEntry
    candidate_entry: StateEntry
    rounded_to: torch.dtype | None
    scheme: str | None = None

    @property
    def kind(self) -> str:
        return self.reference_entry.kind

    @property
    def reference(self) -> Tensor:
        """The values; shared with the model where it holds them as they are, else made anew."""
        return self.reference_entry.tensor

    @property
    def candidate(self) -> Tensor:
        """The same of the candidate."""
        return self.candidate_entry.tensor


@dataclass
class Provenance:
    """The differing state of two models.

    Attributes:
        asked: persistent state that is the other side's rounded, where the models' own dtypes differ.
        rounded: rounded without being asked: tables that no file holds, or single tensors.
        quantised: one side's type declares that it stores it in fewer bits, and those explain how far it is off.
        other: holds other values.
        missing: names that only one side has.
        exact: all other state has the same shapes and, in float64, the same bits; -0 and 0 are the same values alone.
        reference_dtype, candidate_dtype: of most of the parameters' elements; None without parameters.
    """

    asked: dict[str, Change] = field(default_factory=dict)
    rounded: dict[str, Change] = field(default_factory=dict)
    quantised: dict[str, Change] = field(default_factory=dict)
    other: dict[str, Change] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    exact: bool = True
    reference_dtype: torch.dtype | None = None
    candidate_dtype: torch.dtype | None = None

    @property
    def schemes(self) -> str | None:
        """What is quantised is stored as; None where nothing is."""
        return " and ".join(sorted({str(change.scheme) for change in self.quantised.values()})) or None

    @property
    def coarser(self) -> torch.dtype | None:
        """The coarser of the two dtypes, which the rounding asked for leads to; None where they are the same."""
        if self.reference_dtype is None or self.candidate_dtype is None or self.reference_dtype == self.candidate_dtype:
            return None
        return max(self.reference_dtype, self.candidate_dtype, key=_eps)


def provenance(reference: nn.Module, candidate: nn.Module) -> Provenance:
    """Compares every parameter and buffer, non-persistent ones too.

    A dtype asked for rounds what a file holds: parameters and persistent buffers. A table that the model computes for
    itself (`persistent=False`, such as `inv_freq`) is not covered by it: loading in that dtype leaves it alone.
    """
    left, right = aligned_states(reference, candidate)
    found = Provenance(
        missing=tuple(sorted(left.keys() ^ right.keys())),
        reference_dtype=_main_dtype(left),
        candidate_dtype=_main_dtype(right),
    )
    asks = found.reference_dtype != found.candidate_dtype
    for name in [name for name in left if name in right]:
        change = _change(name, left[name], right[name])
        if isinstance(change, bool):
            found.exact &= change
            continue
        if change.scheme is not None:
            found.quantised[name] = change
        elif change.rounded_to is None:
            found.other[name] = change
        elif asks and change.kind != "non_persistent_buffer" and _of_main_dtypes(change, found):
            found.asked[name] = change
        else:
            found.rounded[name] = change
    return found


def aligned_states(reference: nn.Module, candidate: nn.Module) -> tuple[dict[str, StateEntry], dict[str, StateEntry]]:
    """Parameters and buffers of both, by the candidate's names, whatever wraps either."""
    left, right = state_of(reference), state_of(candidate)
    if left.keys() == right.keys():
        return left, right
    names = align(reference, candidate).state(left, right)
    own = {name: f"{name} (the reference's)" if name in right else name for name in left}
    return {names.get(name, own[name]): entry for name, entry in left.items()}, right


def _of_main_dtypes(change: Change, found: Provenance) -> bool:
    """Whether the rounding is no coarser than the coarser of the two models' dtypes."""
    dtypes = [dtype for dtype in (found.reference_dtype, found.candidate_dtype) if dtype is not None]
    return change.rounded_to is not None and _eps(change.rounded_to) <= max(map(_eps, dtypes))


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _main_dtype(state: Mapping[str, StateEntry]) -> torch.dtype | None:
    sizes: dict[torch.dtype, int] = {}
    for entry in state.values():
        if entry.kind == "parameter" and entry.held.is_floating_point():
            sizes[entry.held.dtype] = sizes.get(entry.held.dtype, 0) + entry.held.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _change(name: str, left: StateEntry, right: StateEntry) -> Change | bool:
    """What differs; where no value does, whether the bits and the shape are the same too."""
    if left.is_same(right):
        return True
    reference = dense(left.tensor)
    candidate = dense(right.tensor).to(reference.device)
    if _same_memory(reference, candidate):
        return True
    shared = _shared_rows(reference, candidate)
    if shared is not None and _same_values(*shared):
        return shared[0] is reference and _same_bits(*shared)
    scheme = _explaining_scheme(left, right, reference, candidate)
    return Change(name, left, right, None if shared is None else _rounded_to(*shared), scheme)


def dense(tensor: Tensor) -> Tensor:
    """A sparse one with all its zeros: its numbers are compared in their places."""
    return tensor.to_dense() if tensor.layout in _SPARSE else tensor


def _explaining_scheme(left: StateEntry, right: StateEntry, reference: Tensor, candidate: Tensor) -> str | None:
    """What one side alone is quantised to, if its other numbers are the nearest, or the next, that can be stored so."""
    stored = left.quantised or right.quantised
    if stored is None or (left.quantised and right.quantised) or reference.shape != candidate.shape:
        return None
    step = stored.step()
    eps = 2 * max(_eps(reference.dtype), _eps(candidate.dtype), stored.eps)
    rows = max(1, 2**20 // max(1, reference[0].numel())) if reference.dim() else 1  # that are in float64 at once
    for start in range(0, len(reference) if reference.dim() else 0, rows):
        part = slice(start, start + rows)
        own_step = None if step is None else step[part] if step.dim() and len(step) > 1 else step
        if not _within_a_step(reference[part].double(), candidate[part].double(), own_step, eps):
            return None
    return stored.scheme


def _within_a_step(left: Tensor, right: Tensor, step: Tensor | None, eps: float) -> bool:
    """Half a step is what rounding leaves, a whole one what clipping the largest number does.

    The numbers themselves are rounded, to `eps`. A step that is not told is guessed by rows: what rounding leaves is at
    most 1.7 times its own root mean square.
    """
    off = (left - right).abs()
    allowed = 4 * off.square().mean(-1, keepdim=True).sqrt() if step is None else step.to(off.device)
    return bool((off <= allowed + eps * left.abs()).all())


def _shared_rows(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor] | None:
    """What both have: all, or the first rows where one has some more (a padded vocabulary); None: another shape."""
    if left.shape == right.shape:
        return left, right
    if (
        left.dim() == 0
        or left.shape[1:] != right.shape[1:]
        or 2 * min(len(left), len(right)) < max(len(left), len(right))
    ):
        return None
    rows = min(len(left), len(right))
    return left[:rows], right[:rows]


def _same_memory(left: Tensor, right: Tensor) -> bool:
    """Whether both are views of the same numbers."""
    places = [(one.data_ptr(), one.dtype, one.shape, one.stride()) for one in (left, right)]
    return places[0] == places[1] and places[0][0] != 0


def _same_values(left: Tensor, right: Tensor) -> bool:
    if left.dtype == right.dtype:
        return torch.equal(left, right) or all(
            bool(((mine == other) | (mine.isnan() & other.isnan())).all()) for mine, other in pieces(left, right)
        )
    return left.is_floating_point() == right.is_floating_point() and all(
        torch.equal(mine.double(), other.double()) for mine, other in pieces(left, right)
    )


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of the same values have the same bits, where of two dtypes: in float64."""
    if left.dtype != right.dtype:
        return all(
            torch.equal(mine.double().signbit(), other.double().signbit()) for mine, other in pieces(left, right)
        )
    return same_raw_bits(left, right)


def _rounded_to(reference: Tensor, candidate: Tensor) -> torch.dtype | None:
    """The dtype that rounds one side's values to the other's, bit for bit; or of which both can be roundings."""
    if reference.shape != candidate.shape or not (reference.is_floating_point() and candidate.is_floating_point()):
        return None
    possible: list[tuple[torch.dtype, Callable[[Tensor, Tensor, torch.dtype], bool]]]
    possible = [(dtype, rounds) for dtype in _ROUNDING for rounds in (_rounds, _is_rounded)]
    if reference.dtype != candidate.dtype:
        possible.append((max(reference.dtype, candidate.dtype, key=_eps), _near))
    explaining = (
        dtype
        for dtype, explains in possible
        if all(explains(left, right, dtype) for left, right in pieces(reference, candidate))
    )
    return next(explaining, None)


def _rounds(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    if dtype is right.dtype:
        return torch.equal(left.to(dtype), right)
    return torch.equal(left.to(dtype).double(), right.double())


def _is_rounded(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    return _rounds(right, left, dtype)


def _near(left: Tensor, right: Tensor, _: torch.dtype) -> bool:
    """bfloat16 against float16: half a unit of each, and float16 has nothing below its smallest number."""
    size = torch.maximum(left.double().abs(), right.double().abs())
    halves = (_eps(left.dtype) + _eps(right.dtype)) / 2
    tiny = max(torch.finfo(dtype).smallest_normal * _eps(dtype) for dtype in (left.dtype, right.dtype))
    return bool(((left.double() - right.double()).abs() <= halves * size + tiny).all())
