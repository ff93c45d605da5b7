"""What a reference's own runs tell, gathered once for all candidates that are compared with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sweeper.comparator.observation import Observation, observe, observe_within, without_runs
from sweeper.comparator.side import Outputs, Side, run
from sweeper.models.swapping import Doubles
from sweeper.verdict.causes.tensors import asked_undone, undone_in_reference
from sweeper.verdict.float64_replay import Precision, replayed
from sweeper.verdict.noise_floor import OUTPUT_SEEDS, output_floor_sample, rms
from sweeper.verdict.repeatability import training_modules
from sweeper.verdict.state_changes import Provenance

T = TypeVar("T")
KEPT_BYTES = 2**30


class ReferenceEvidence:
    """The runs of one reference on one set of texts: each is made when it is first asked for.

    Args:
        most_bytes: says how many bytes of tensors one run may leave to be kept; one that leaves more is made again.
        doubles: of the reference's replays and of the candidates that then hold its values; None: none are kept.
    """

    def __init__(self, most_bytes: Callable[[], int] = lambda: KEPT_BYTES, *, doubles: Doubles | None = None) -> None:
        self._most_bytes = most_bytes
        self.doubles = doubles
        self._found: dict[Hashable, Any] = {}
        self._many: dict[Hashable, int] = {}  # of those of any number, the bytes; the oldest first

    def once(self, reference: Side, what: Hashable, gather: Callable[[], T]) -> T:
        """What `gather` gives, or gave when the same was asked of the same reference before.

        Args:
            what: names it, with all that it depends on beside the reference.
        """
        key = self._key(reference, what)
        if key in self._found:
            found: T = self._found[key]
            return found
        found = gather()
        if nbytes(found) <= self._most_bytes():
            self._found[key] = found
        return found

    def once_of_many(self, reference: Side, what: Hashable, gather: Callable[[], T]) -> T:
        """`once` for what there may be any number of, one a cell: all of it together takes no more than one value may,
        and the oldest goes first."""
        found = self.once(reference, what, gather)
        if (key := self._key(reference, what)) in self._found:
            self._many[key] = nbytes(found)
        while self._many and sum(self._many.values()) > self._most_bytes():
            oldest = next(iter(self._many))
            del self._many[oldest], self._found[oldest]
        return found

    def known(self, reference: Side, what: Hashable) -> Any:
        """What `once` gave of it; None where it was not asked for, or not kept."""
        return self._found.get(self._key(reference, what))

    def _key(self, reference: Side, what: Hashable) -> Hashable:
        modes = len(training_modules(reference.model))
        return what, tuple(reference.names.items()), reference.parts, reference.seed, modes

    def observed(self, reference: Side, *, beginning: bool = False) -> Observation:
        """The reference as it runs; `beginning` as in `observe`."""
        what = ("observed", beginning)
        observed = self.once(reference, what, lambda: without_runs(observe(reference, beginning=beginning)))
        return replace(observed, within=lambda: contextlib.nullcontext(reference))

    def replay(self, reference: Side, found: Provenance) -> tuple[Observation, Precision]:
        """The reference in float64, without the rounding that was asked for, and how exact that was."""
        precisions: list[Precision] = []

        @contextlib.contextmanager
        def within() -> Iterator[Side]:
            with self._replayed(reference, found) as (side, precision):
                precisions.append(precision)
                yield side

        def gather() -> tuple[Observation, Precision]:
            observed = without_runs(observe_within(within))
            return observed, precisions[0]

        observed, precision = self._undone(reference, "replay", found, gather)
        self._undone(reference, "replay outputs", found, lambda: observed.outputs)  # kept where all is too much
        return replace(observed, within=within), precision

    def outputs(self, reference: Side) -> Outputs:
        """What it gave as it ran."""
        return self.once(reference, "outputs", lambda: run(reference))

    def replay_outputs(self, reference: Side, found: Provenance) -> Outputs:
        """What it gave in float64."""

        def gather() -> Outputs:
            with self._replayed(reference, found) as (side, _):
                return run(side)

        return self._undone(reference, "replay outputs", found, gather)

    def replay_noise(
        self, reference: Side, found: Provenance, base: Outputs, decides: Callable[[float], bool]
    ) -> tuple[float, bool]:
        """The noise of that replay under nudges of one float64 ULP, and whether all seeds were needed for it.

        Args:
            base: the outputs of that replay.
            decides: whether the noise by the first seeds is all that the verdict depends on.
        """
        samples: list[float] = self._undone(reference, "replay noise", found, list)
        for seeds in range(1, OUTPUT_SEEDS + 1):  # whatever other candidates needed
            if len(samples) < seeds:
                with self._replayed(reference, found) as (side, _):
                    samples.append(output_floor_sample(side, base, seed=seeds - 1))
            noise = rms(samples[:seeds])
            if seeds < OUTPUT_SEEDS and decides(noise):
                return noise, False
        return noise, True

    @contextlib.contextmanager
    def _replayed(self, reference: Side, found: Provenance) -> Iterator[tuple[Side, Precision]]:
        with asked_undone(reference.model, found, reference=True), replayed(reference, self.doubles) as exact:
            yield exact

    def _undone(self, reference: Side, what: str, found: Provenance, gather: Callable[[], T]) -> T:
        """What is the same for all candidates for which the same is undone in the reference."""
        undone = undone_in_reference(reference.model, found)
        return gather() if undone is None else self.once(reference, (what, undone), gather)


def nbytes(value: Any) -> int:
    """The memory of all tensors in containers and dataclasses, each once."""
    seen: dict[int, int] = {}
    for tensor in _tensors(value):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.layout is torch.strided and not value.is_meta:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
