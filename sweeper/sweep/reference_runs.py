"""Candidates meet their reference: one that was kept, or one that runs in step with as many as there is room for."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from sweeper.comparator.comparer import Comparer
from sweeper.comparator.forwards import HookedSide, side_of
from sweeper.comparator.in_turns import twin
from sweeper.comparator.module_pairs import launch_bytes
from sweeper.comparator.passes import Candidate, KeptReference, compare_in_step, compare_kept, keep_reference
from sweeper.config import Cell, Head
from sweeper.devices import free_bytes, out_of_memory
from sweeper.inputs.batching import compared_together, forwards_of
from sweeper.models.conditions import same_conditions
from sweeper.models.family import vocabulary
from sweeper.models.loading import LoadedModel
from sweeper.models.state import StateEntry, state_of
from sweeper.models.weights import WeightsKey
from sweeper.planning.plan import PlannedCell
from sweeper.records.sample import Sample
from sweeper.sweep import judging
from sweeper.sweep.code_paths import CodePaths, is_compiled
from sweeper.sweep.fallbacks import fallbacks_heard


@dataclass
class ReferenceRun:
    """A reference, for all candidates that name it.

    Attributes:
        kept: its outputs and their sample; None where they are too large for that, and it runs in step with candidates.
        grouped: the texts that are compared together.
        fallbacks: what `fallbacks_heard` heard while it ran; of one that runs in step, nothing.
        alone: one candidate at a time is to run in step with it: memory ran out with several.
    """

    cell_id: str
    kept: tuple[KeptReference, Sample] | None
    state: dict[str, StateEntry]
    weights: WeightsKey
    token_ids: list[list[int]]
    grouped: list[tuple[int, ...]]
    fallbacks: list[str]
    alone: bool = False

    def serves(self, planned: PlannedCell) -> bool:
        """Whether the run is that of the cell's reference, with its texts in the groups that the cell needs."""
        return self.cell_id == planned.reference_id and self.grouped == _grouped(planned, self.token_ids)


@dataclass(frozen=True)
class CandidateRun:
    """What running a candidate against its reference left behind.

    Attributes:
        side: the candidate, as it ran.
        comparer: has compared all of it.
        outputs: fingerprint of its first output, where cells are judged.
        reference_sample: the reference's.
        fallbacks: what `fallbacks_heard` heard while it ran, and all that ran in step with it.
    """

    side: HookedSide
    comparer: Comparer
    outputs: list[str]
    reference_sample: Sample
    fallbacks: list[str]


class ReferenceRuns:
    """Runs references and candidates. Holds the reference of the last cell, and what ran ahead of its turn.

    Args:
        load: gives a cell's model, with the cell's attention backend.
        load_ahead: the same for a cell whose turn has not come; None where another model would have to go.
        code_paths: what is known of code that ran.
        judged: whether cells are judged.
        kept_bytes: of a reference's outputs.
        shared: ids of references that several cells name: such a one may take a third of the memory that is free.
        progress: is told how many texts of how many have run.

    Attributes:
        reference: of the last cell.
    """

    def __init__(
        self,
        load: Callable[[Cell], LoadedModel],
        load_ahead: Callable[[Cell], LoadedModel | None],
        code_paths: CodePaths,
        *,
        judged: bool,
        kept_bytes: int,
        shared: Collection[str],
        progress: Callable[[int, int], None],
    ) -> None:
        self.reference: ReferenceRun | None = None
        self._ahead: dict[str, CandidateRun | Exception] = {}  # of cells that ran with one before them
        self._load = load
        self._load_ahead = load_ahead
        self._code_paths = code_paths
        self._judged = judged
        self._kept_bytes = kept_bytes
        self._shared = shared
        self._progress = progress

    def forget(self) -> None:
        """Lets go of all that takes memory."""
        self.reference = None
        self._ahead.clear()

    def run_reference(self, planned: PlannedCell, token_ids: list[list[int]]) -> ReferenceRun:
        """Runs the cell's reference, and keeps what it gives where that fits."""
        self.forget()
        cell = planned.reference
        loaded = self._load(cell)
        kept_bytes = self._kept_bytes
        if planned.reference_id in self._shared:
            kept_bytes = max(kept_bytes, free_bytes(cell.device) // 3)
        grouped = _grouped(planned, token_ids)
        side = side_of(cell, loaded.model, token_ids, grouped)
        with fallbacks_heard() as said:
            kept = keep_reference(side, grouped, self._progress, kept_bytes=kept_bytes)
        self.reference = ReferenceRun(
            planned.reference_id,
            (kept[0], kept[1].sample()) if kept else None,
            state_of(loaded.model),
            loaded.key,
            token_ids,
            grouped,
            said if kept else [],
        )
        return self.reference

    def compare(self, planned: PlannedCell, reference: ReferenceRun, following: Sequence[PlannedCell]) -> CandidateRun:
        """The candidate against its reference, which runs with it where it was not kept, or has run with it before.

        Args:
            following: cells that come next, and may run in step with this one.
        """
        if reference.kept is not None:
            return self._compare_kept(planned.cell, reference, *reference.kept)
        if planned.cell_id not in self._ahead:
            beside = [] if reference.alone else self._room_for(reference, planned, following)
            self._ahead = self._run_in_step([planned, *beside], reference)
        run = self._ahead.pop(planned.cell_id)
        if not isinstance(run, Exception):
            return run
        if reference.alone or not out_of_memory(run):
            raise run
        reference.alone = True
        self._ahead.clear()
        return self.compare(planned, reference, ())

    def _run_in_step(
        self, cells: Sequence[PlannedCell], reference: ReferenceRun
    ) -> dict[str, CandidateRun | Exception]:
        """`_compare_in_step`; where several ran and memory ran out for whichever side, that is the error of each."""
        try:
            return self._compare_in_step(cells, reference)
        except Exception as error:
            if len(cells) == 1 or not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # which hold what the models had made
            return {planned.cell_id: error for planned in cells}

    def comparer(self, cell: Cell, model: nn.Module, token_ids: list[list[int]], *, is_logits: bool = True) -> Comparer:
        """What compares the cell with its reference."""
        return Comparer(
            token_ids,
            is_logits=is_logits and output_kind(cell) == "logits" and cell.inputs.arrays is None,
            normalize=cell.checkpoint.normalize is not False,
            predicts_own=cell.checkpoint.head in (Head.MASKED_LM, Head.SEQ2SEQ_LM),
            steady=self._code_paths.steady(cell, model, token_ids),
            launch_bytes=launch_bytes(cell.device),
        )

    def _compare_kept(self, cell: Cell, reference: ReferenceRun, kept: KeptReference, sample: Sample) -> CandidateRun:
        loaded = self._load(cell)
        side = side_of(cell, loaded.model, reference.token_ids, reference.grouped)
        comparer = self.comparer(cell, loaded.model, reference.token_ids)
        with judging.first_outputs(loaded.model, wanted=self._judged) as outputs, fallbacks_heard() as said:
            ran = compare_kept(kept, side, reference.grouped, comparer, self._progress)
        return CandidateRun(ran, comparer, outputs, sample, said)

    def _compare_in_step(
        self, cells: Sequence[PlannedCell], reference: ReferenceRun
    ) -> dict[str, CandidateRun | Exception]:
        """One run of the reference with all of these candidates; what each left behind, by its id."""
        first, *others = together = [cells[0].reference, *(planned.cell for planned in cells)]
        models = self._models_of_their_own(together)
        pairs = list(zip(together, models, strict=True))
        beside, *sides = [side_of(*pair, reference.token_ids, reference.grouped) for pair in pairs]
        comparers = [self.comparer(*pair, reference.token_ids) for pair in pairs[1:]]
        with ExitStack() as stack, fallbacks_heard() as said:
            outputs = [stack.enter_context(judging.first_outputs(one, wanted=self._judged)) for one in models[1:]]
            left, ended = compare_in_step(
                beside,
                [Candidate(*one) for one in zip(sides, comparers, strict=True)],
                reference.grouped,
                self._progress,
                same_conditions=all(same_conditions(first, cell) for cell in others),
                steady=self._code_paths.steady(first, models[0], reference.token_ids),
            )
        return {
            planned.cell_id: one
            if isinstance(one, Exception)
            else CandidateRun(one, comparer, taken, left.sample(), said)
            for planned, one, comparer, taken in zip(cells, ended, comparers, outputs, strict=True)
        }

    def _room_for(
        self, reference: ReferenceRun, planned: PlannedCell, following: Sequence[PlannedCell]
    ) -> list[PlannedCell]:
        """The cells that can run in step with this one: of the same texts, with models that fit beside the others."""
        # what torch compiles depends on the shapes that it has seen, of whichever side: such a cell runs by itself
        if is_compiled(planned.cell):
            return []
        cell, found = planned.cell, []
        left = free_bytes(cell.device) // 2 - _bytes_in_step(cell, reference, self._load(cell).model)
        for other in following:
            alike = (other.cell.inputs, other.cell.checkpoint) == (cell.inputs, cell.checkpoint)
            runs = not (other.unsupported or other.recording or is_compiled(other.cell))
            if not (alike and runs and reference.serves(other)):
                continue
            try:
                loaded = self._load_ahead(other.cell)
            except Exception:  # it says so itself when its turn comes
                continue
            if loaded is None or (left := left - _bytes_in_step(other.cell, reference, loaded.model)) < 0:
                break
            found.append(other)
        return found

    def _models_of_their_own(self, cells: Sequence[Cell]) -> list[nn.Module]:
        """Each cell's model, with its own attention backend whatever the others of its weights make of theirs: the last
        of these has the model itself."""
        left, models = Counter(map(WeightsKey.of, cells)), []
        for cell in cells:
            left[WeightsKey.of(cell)] -= 1
            model = self._load(cell).model
            models.append(twin(model) if left[WeightsKey.of(cell)] else model)
        return models


def output_kind(cell: Cell) -> str:
    """What the model gives, as the record has it."""
    head = cell.checkpoint.head
    if head in (Head.CAUSAL_LM, Head.MASKED_LM, Head.SEQ2SEQ_LM):
        return "logits"
    return "last_hidden_state" if head is Head.BASE else "output"


def _grouped(planned: PlannedCell, token_ids: list[list[int]]) -> list[tuple[int, ...]]:
    """The texts that are compared together."""
    return compared_together(forwards_of(planned.reference, token_ids), forwards_of(planned.cell, token_ids))


def _bytes_in_step(cell: Cell, reference: ReferenceRun, model: nn.Module) -> int:
    """Estimates what a candidate that runs in step holds beside its model: outputs that wait, and as much again of the
    forward that is suspended, logits of a batch. At least a third of what waits is the reference's, for all of them."""
    tokens = max(sum(len(reference.token_ids[text]) for text in texts) for texts in reference.grouped)
    logits = tokens * vocabulary(model) * 4 if output_kind(cell) == "logits" else 0
    return 3 * launch_bytes(cell.device) // 2 + 2 * logits
