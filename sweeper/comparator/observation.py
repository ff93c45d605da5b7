"""An observed run of a side: kept whole where it is small, else a part at a time, by as many runs as it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sweeper.comparator.hooks import capturing
from sweeper.comparator.observer import ModuleRows, Observer
from sweeper.comparator.outputs import ModelOutputs
from sweeper.comparator.side import POOLING, Side, run, uncompiled_side
from sweeper.devices import free_bytes

# Of the rows of one side's modules, at once: two sides have a part each, and the first parts of their runs are kept.
WINDOW_BYTES = 2**29
_BEGINNING = 8  # that part of it where the first difference is looked for, which mostly lies in the first layer
# A part that takes more than this share of the free memory waits on the host: beside two models of 8B it has to.
_MOST_ON_DEVICE = 1 / 128

Within = Callable[[], AbstractContextManager[Side]]
"""Makes the context in which a side runs as it is observed."""


@dataclass(frozen=True)
class Observation:
    """A run: every module's rows in order of execution, pooling (code behind the model) last, and the outputs.

    Attributes:
        modules: the first of them, as many as may be kept; on the host where those are not all and take much memory.
        outputs: what the model gave.
        seen: the bytes of all of them, by name.
        within: what the side runs in when it runs again for the others; None: it does not.
    """

    modules: dict[str, ModuleRows]
    outputs: ModelOutputs
    seen: dict[str, int] = field(default_factory=dict)
    within: Within | None = None

    def inputs(self) -> dict[str, Tensor]:
        """What each leaf module was given, of those that are kept."""
        return _inputs(self.modules)

    def part(self, names: Collection[str], given: Mapping[str, Tensor] | None = None) -> dict[str, ModuleRows]:
        """The modules of these names, by another run.

        Args:
            given: as in `observe`.
        """
        assert self.within is not None, "only what was kept is asked of an observation that cannot run again"
        with self.within() as side:
            return _observed(side, given, only=names)[0]


class RowsPair(NamedTuple):
    """One output of a module on both sides; None: that side has none."""

    name: str
    reference: ModuleRows | None
    candidate: ModuleRows | None


def in_pairs(reference: Observation, candidate: Observation, *, own: bool = False) -> Iterator[RowsPair]:
    """The modules of both, in order of the candidate's execution; never more than a part of either in memory.

    Args:
        own: where the candidate runs again, its leaf modules run on the reference's inputs, too.
    """
    left, right = reference.modules, candidate.modules
    device = next((tensor.device for tensor in candidate.outputs.values()), torch.device("cpu"))
    names = list(candidate.seen)
    for place, name in enumerate(names):
        if name in reference.seen and not (name in left and name in right):
            left, right = {}, {}  # let go of before the next ones come
            part = _part(names[place:], window_bytes(device.type), reference.seen, candidate.seen)
            part += [name.partition("[")[0] for name in part]  # whose input its further outputs are made of
            left = reference.part(part)
            right = candidate.part(part, _inputs(left) if own else None)
        yield RowsPair(name, *(_moved(side.get(name), device) for side in (left, right)))


def _part(names: Sequence[str], room: int, *sizes: Mapping[str, int]) -> list[str]:
    """The first of the names, as many as there is room for; at least one."""
    part: list[str] = []
    for name in names:
        room -= max(size.get(name, 0) for size in sizes)
        if part and room < 0:
            break
        part.append(name)
    return part


def window_bytes(device: str) -> int:
    """How much of one side's run is kept at once: less where little memory is free."""
    return min(WINDOW_BYTES, free_bytes(device) // 8)


def wide_window_bytes(device: str, *, lasting: bool) -> int:
    """The same for what takes a run of both sides a part: more where much memory is free.

    Args:
        lasting: it is kept for all that is judged, beside the parts that follow.
    """
    most, share = (4, 32) if lasting else (8, 8)
    return max(window_bytes(device), min(most * WINDOW_BYTES, free_bytes(device) // share))


def _moved(rows: ModuleRows | None, device: torch.device) -> ModuleRows | None:
    """The rows on a device; a run that is kept on the device with others leaves too little room there."""
    if rows is None or all(tensor.device == device for tensor in rows.outputs):
        return rows
    kept = ([tensor.to(device) for tensor in tensors] for tensors in (rows.outputs, rows.inputs, rows.owns))
    return ModuleRows(rows.module_type, *kept)


def _inputs(modules: Mapping[str, ModuleRows]) -> dict[str, Tensor]:
    return {name: torch.cat(module.inputs) for name, module in modules.items() if module.inputs}


def observe(side: Side, given: Mapping[str, Tensor] | None = None, *, beginning: bool = False) -> Observation:
    """Runs a side and keeps what may be kept. Of a compiled model the modules are those of its code as it is written.

    Args:
        given: inputs of another side's leaf modules, on which these are run too.
        beginning: keep less: only the first difference is asked for.
    """
    return observe_within(lambda: nullcontext(side), given, beginning=beginning)


def observe_within(
    within: Within, given: Mapping[str, Tensor] | None = None, *, beginning: bool = False
) -> Observation:
    """Observes a side in a context, which is entered anew whenever it runs again for more of its modules.

    Args:
        given, beginning: as in `observe`.
    """
    with within() as side:
        device = side.calls[0].forward.flat_N.device.type
        most_bytes = window_bytes(device) // (_BEGINNING if beginning else 1)
        modules, seen, outputs = _observed(side, given, most_bytes=most_bytes)
    if len(modules) < len(seen) and _is_much(modules, device):
        modules = {name: _on_host(rows) for name, rows in modules.items()}
    return Observation(modules, outputs, seen, within)


def _is_much(modules: Mapping[str, ModuleRows], device: str) -> bool:
    """Whether it takes a part of the free memory that the runs to come may need: several are kept side by side."""
    tensors = (tensor for rows in modules.values() for tensor in (*rows.outputs, *rows.inputs, *rows.owns))
    return sum(tensor.nbytes for tensor in tensors) > free_bytes(device) * _MOST_ON_DEVICE


def _on_host(rows: ModuleRows) -> ModuleRows:
    moved = _moved(rows, torch.device("cpu"))
    assert moved is not None
    return moved


def without_runs(observation: Observation) -> Observation:
    """The observation that cannot run again: it holds no model."""
    return replace(observation, within=None)


def _observed(
    side: Side,
    given: Mapping[str, Tensor] | None,
    *,
    only: Collection[str] | None = None,
    most_bytes: float = math.inf,
) -> tuple[dict[str, ModuleRows], dict[str, int], ModelOutputs]:
    """What is kept of a run, the bytes of all that was seen, and the outputs. Arguments as those of `Observer`."""
    observer = Observer(
        given or {},
        several=any(not call.forward.one_kind for call in side.calls),
        only=None if only is None else frozenset(only),
        most_bytes=most_bytes,
        tokens=sum(len(call.forward.flat_N) for call in side.calls),
    )
    written = uncompiled_side(side)
    with capturing(side.model, observer, side.names):
        outputs = run(written, observer)
    if written is not side and only is None:
        outputs = run(side)
    modules, observer.modules = observer.modules, {}  # an observer lives until garbage is collected, rows must not
    if POOLING in outputs:
        modules[POOLING] = ModuleRows("pooling", [outputs[POOLING]])
        observer.seen[POOLING] = outputs[POOLING].nbytes
    return modules, observer.seen, outputs
