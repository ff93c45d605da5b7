"""The reference's rows meet the same rows of the candidate, output by output, and many pairs share a launch.

Rows are matched by the output's name and by their order within a batch, so that the two sides may share a batch's texts
out among calls as they like. Shapes: N tokens, F features.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sweeper.comparator.hooks import ModuleOutput
from sweeper.errors import AlignmentError
from sweeper.metrics.fast import Tables
from sweeper.metrics.pair import PairAccumulator, join_all, update_all
from sweeper.metrics.sums import State, empty_block, rows_of

# Bytes of both sides that wait for a launch: the fewer launches, the less the host costs, the more seldom a GPU runs
# empty at the end of one, and what is the same memory twice is measured once. On a CPU no more than stays in the
# caches.
_LAUNCH_BYTES = {"cuda": 2**30, "cpu": 2**24}
_STATES_AT_ONCE = 64


def launch_bytes(device: str) -> int:
    """What may wait for a launch on this device."""
    return _LAUNCH_BYTES[device]


class ModulePair(NamedTuple):
    """One output on both sides."""

    module_type: str
    reference_dtype: str
    candidate_dtype: str
    accumulator: PairAccumulator


class _Meeting:
    """Where both sides' rows of one output meet. Its accumulator is there once the candidate has given some."""

    __slots__ = ("accumulator", "steady", "waiting", "watched")

    def __init__(self, *, steady: bool, watched: bool) -> None:
        self.waiting: deque[Tensor] = deque()
        self.accumulator: PairAccumulator | None = None
        self.steady = steady
        self.watched = watched


class ModulePairs:
    """Compares the outputs of modules while they come; no device synchronisation.

    Args:
        steady: outputs of the candidate that no later module overwrites; the others are copied. An attribute, too.
        launch_bytes: of both sides, that may wait for a launch.
        tables: the launches' addresses; None: tables of its own.
        watch: is given the name and both sides' rows of the pairs that are watched.
        watched: says of which outputs, by name; asked once each.

    Attributes:
        modules: what has been compared, by name, in the candidate's order of execution.
    """

    def __init__(
        self,
        *,
        steady: Container[str] = frozenset(),
        launch_bytes: int = 0,
        tables: Tables | None = None,
        watch: Callable[[str, Tensor, Tensor], None] = lambda _name, _reference_NF, _candidate_NF: None,
        watched: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        self.modules: dict[str, ModulePair] = {}
        self._tables = Tables() if tables is None else tables
        self.steady = steady
        self._watch = watch
        self._watched = watched
        self._launch_bytes = launch_bytes
        self._meetings: dict[str, _Meeting] = {}
        self._pending: list[tuple[PairAccumulator, Tensor, Tensor]] = []
        self._pending_bytes = 0
        self._only_candidate: set[str] = set()
        self._empty: list[State] = []  # for modules that are still to come

    def give(self, name: str, reference_NF: Tensor) -> None:
        """Takes the reference's next rows of an output, which nobody may overwrite."""
        (self._meetings.get(name) or self._new_meeting(name)).waiting.append(reference_NF)

    def take(self, output: ModuleOutput, *, more_may_come: bool = False) -> bool:
        """Compares the candidate's output with the reference's next rows; of a copy, where it has to wait.

        Args:
            more_may_come: then nothing is done, and False returned, until the reference has given all of these rows.

        Raises:
            AlignmentError: the reference's has other features, or not as many rows are left of it.
        """
        name, _, candidate_NF, _ = output
        meeting = self._meetings.get(name) or self._new_meeting(name)
        waiting = meeting.waiting
        if waiting and waiting[0].shape == candidate_NF.shape:
            self._compare(meeting, output, waiting.popleft())
            return True
        rows = candidate_NF.shape[0]
        if more_may_come and (not waiting or sum(piece.shape[0] for piece in waiting) < rows):
            return False
        if not waiting:
            self._only_candidate.add(name)  # an error, once all names of the batch are known
            return True
        reference_NF = _next_rows(waiting, rows)
        if reference_NF.shape != candidate_NF.shape:
            raise AlignmentError(
                f"{name}: {tuple(reference_NF.shape)} (tokens, features) in the reference, "
                f"{tuple(candidate_NF.shape)} in the candidate"
            )
        self._compare(meeting, output, reference_NF)
        return True

    def _new_meeting(self, name: str) -> _Meeting:
        meeting = self._meetings[name] = _Meeting(steady=name in self.steady, watched=self._watched(name))
        return meeting

    def _compare(self, meeting: _Meeting, output: ModuleOutput, reference_NF: Tensor) -> None:
        """Puts rows that meet among those that wait for a launch. Runs once an output and batch: see `Capture`."""
        accumulator = meeting.accumulator or self._started(meeting, output, reference_NF)
        candidate_NF = output.tensor_NF if meeting.steady else output.lasting(())
        if reference_NF.get_device() != candidate_NF.get_device():
            reference_NF = reference_NF.to(candidate_NF.device)
        if meeting.watched:
            self._watch(output.name, reference_NF, candidate_NF)
        self._pending.append((accumulator, reference_NF, candidate_NF))
        self._pending_bytes += reference_NF.nbytes + candidate_NF.nbytes
        if self._pending_bytes >= self._launch_bytes:
            self.flush()

    def _started(self, meeting: _Meeting, output: ModuleOutput, reference_NF: Tensor) -> PairAccumulator:
        reference, candidate = reference_NF.dtype, output.tensor_NF.dtype
        self._empty = self._empty or rows_of(empty_block(_STATES_AT_ONCE, output.tensor_NF.device))
        accumulator = meeting.accumulator = PairAccumulator(reference, candidate, self._empty.pop())
        self.modules[output.name] = ModulePair(
            output.module_type, _name_of(reference), _name_of(candidate), accumulator
        )
        return accumulator

    def flush(self) -> None:
        """Measures what waits for a launch; a GPU's figures are in the accumulators at the end of the batch."""
        update_all(self._pending, self._tables)
        self._pending.clear()
        self._pending_bytes = 0

    def drop(self) -> None:
        """Lets go of what waits, of a candidate that has failed."""
        for meeting in self._meetings.values():
            meeting.waiting.clear()
        self._pending.clear()
        self._pending_bytes = 0

    def end_batch(self) -> None:
        """Measures what is left of the batch.

        Raises:
            AlignmentError: an output that only one side has; both sets are named.
        """
        self.flush()
        join_all(self._tables)
        self._tables.rewind()
        only_reference = {name for name, meeting in self._meetings.items() if meeting.waiting}
        if only_reference or self._only_candidate:
            raise AlignmentError(
                f"modules that ran only in the reference: {_some(only_reference)}; "
                f"only in the candidate: {_some(self._only_candidate)}"
            )


@functools.cache
def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _next_rows(waiting: deque[Tensor], rows: int) -> Tensor:
    """So many rows, or what is left."""
    pieces = []
    while waiting and rows:
        piece = waiting.popleft()
        if piece.shape[0] > rows:
            waiting.appendleft(piece[rows:])
            piece = piece[:rows]
        rows -= piece.shape[0]
        pieces.append(piece)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _some(names: Iterable[str], limit: int = 10) -> str:
    names = sorted(names)
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
