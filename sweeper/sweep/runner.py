"""Runs planned cells one after the other in this process and compares each with its reference.

What can be shared is: a checkpoint is prepared once, a model stays loaded for the cells that want the same weights, and
a reference that several cells name is run once, where its outputs can be kept, or with several of them in step.
"""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sweeper.comparator.comparer import Comparer, Figures
from sweeper.comparator.forwards import HookedSide, reading_notes, side_of
from sweeper.comparator.passes import KEPT_BYTES
from sweeper.config import Cell, Weights
from sweeper.devices import free_bytes, out_of_memory, usable
from sweeper.errors import AlignmentError, UnsupportedError
from sweeper.models.loading import LoadedModel, sharing_copy
from sweeper.models.swapping import Doubles
from sweeper.models.weights import WeightsKey
from sweeper.planning.plan import PlannedCell
from sweeper.recordings.taking import about_cell, record_cell
from sweeper.recordings.wanted import Recordings, Wanted
from sweeper.records.cell import CellRecord, ModuleRecord, RouterFigures, Status
from sweeper.records.recording import Recording
from sweeper.records.verdict import VerdictRecord
from sweeper.sweep import judging
from sweeper.sweep.bare import run_bare
from sweeper.sweep.code_paths import CodePaths
from sweeper.sweep.fallbacks import fallbacks_heard
from sweeper.sweep.held import Held
from sweeper.sweep.new_record import begun, checked, ended, reason_of
from sweeper.sweep.recorded import RecordedReference
from sweeper.sweep.reference_runs import ReferenceRun, ReferenceRuns, output_kind
from sweeper.sweep.routers import is_mixture, router_figures
from sweeper.verdict.comparison import Comparison, compare_sides
from sweeper.verdict.discrete_choices import run_with_selections
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.rules import Kind

TOO_LARGE = "memory ran out, with weights=streamed too; type fewer or shorter texts: inputs=..., inputs.batch_size=1"


class Runner:
    """Runs cells. Holds what consecutive cells share.

    Args:
        environment: goes into every record.
        latency_repeats: bare forwards that are timed a cell; None: see `measure_cost`.
        verdict: judge every cell that differs, by as many runs as decide; `full`: by all.
        weights: `streamed` keeps no parameter in memory (`streaming.py`), `spread` lays models on all GPUs.
        kept_bytes: of a reference's outputs.
        shared: ids of references that several cells name. The outputs of such a one may take a third of the memory that
            is free, so that it runs once, and not beside each of them.
        recordings: where a recording of each cell goes; None: nowhere.
        say: takes one line of progress (fetching, dequantising).
        progress: is told, after every batch, how many texts of how many have run: for a reference that is kept, as far
            as it fits, then for the cell.

    Attributes:
        usable: see `Worker`.
    """

    def __init__(
        self,
        environment: dict[str, Any],
        *,
        latency_repeats: int | None = None,
        verdict: bool | Literal["full"] = True,
        weights: Weights = "resident",
        kept_bytes: int = KEPT_BYTES,
        shared: Collection[str] = (),
        recordings: Recordings | None = None,
        say: Callable[[str], None],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.usable = True
        self._environment = environment
        self._latency_repeats = latency_repeats
        self._verdict = verdict
        self._recordings = recordings
        self._say = say
        self._progress = progress or (lambda _done, _texts: None)
        self._held = Held(weights, say)
        self._recorded: RecordedReference | None = None
        self._code_paths = CodePaths()
        self._reference_runs = ReferenceRuns(
            self._held.loaded,
            self._held.loaded_ahead,
            self._code_paths,
            judged=bool(verdict),
            kept_bytes=kept_bytes,
            shared=shared,
            progress=self._progress,
        )
        self._causes = judging.Causes()
        self._evidence: dict[tuple[str, tuple[int, ...]], ReferenceEvidence] = {}
        self._alike = judging.Alike()

    def run(
        self, planned: PlannedCell, following: Sequence[PlannedCell] = ()
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        """Runs one cell to its record; whatever goes wrong is in the record, not raised (Ctrl-C is raised).

        Args:
            following: cells that will be run next; those of the same reference may share a run of it.
        """
        record = begun(planned, self._environment)
        if planned.unsupported:
            return ended(record, Status.UNSUPPORTED, planned.unsupported), ()
        try:
            with fallbacks_heard() as said:
                measured, modules = self._run(planned, record, following)
            return measured.model_copy(update={"fallbacks": (*dict.fromkeys([*measured.fallbacks, *said]),)}), modules
        except UnsupportedError as error:
            self._code_paths.forget_cost(planned.cell_id)
            return ended(record, Status.UNSUPPORTED, str(error)), ()
        except Exception as error:
            # the text, not the exception: its frames would keep the failed model alive
            failed = ended(record, Status.FAILED, reason_of(error), traceback.format_exc())
            short_of_memory = out_of_memory(error)
            traceback.clear_frames(error.__traceback__)
        self._code_paths.forget_cost(planned.cell_id)
        self._forget(planned)
        if not short_of_memory:
            return failed, ()
        if self._held.streamed:
            return failed.model_copy(update={"reason": TOO_LARGE}), ()
        return self._run_streamed(planned, failed)

    def _run_streamed(self, planned: PlannedCell, failed: CellRecord) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        """Runs a cell once more, for which memory ran out, without keeping parameters in it."""
        self._say(f"{planned.cell_id}: memory ran out; once more with weights=streamed")
        with self._streaming(planned):
            record, modules = self.run(planned)
        if record.status is Status.OK:
            note = {"weights": "memory ran out with the models on the device: streamed, which the cost is of"}
            return record.model_copy(update={"without_effect": {**record.without_effect, **note}}), modules
        reason = record.reason if record.status is Status.FAILED else f"memory ran out, and {record.reason}"
        return failed.model_copy(update={"reason": reason}), ()

    @contextlib.contextmanager
    def _streaming(self, planned: PlannedCell) -> Iterator[None]:
        """No model is in memory for as long as the context lasts; its parameters are read as they are used."""
        with self._held.streaming():
            try:
                yield
            finally:
                self._forget(planned)

    def _forget(self, planned: PlannedCell) -> None:
        """Lets go of all that the failed cell may have filled the memory with."""
        self._held.forget()
        self._reference_runs.forget()
        self._evidence.clear()
        gc.collect()
        self.usable = usable(planned.cell.device)
        if planned.cell.device == "cuda" and self.usable:  # else it would raise the same error again
            torch.cuda.empty_cache()

    def _run(
        self, planned: PlannedCell, record: CellRecord, following: Sequence[PlannedCell]
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        if planned.recording is not None:
            return self._run_recorded(planned, planned.recording, record)
        measured, figures, bits = self._measure(planned, record, following)
        # here nothing holds the reference or a model: where judging needs their memory, letting go of them frees it
        verdict = self._alike.verdict(bits) or self._judge(planned, figures)
        if not isinstance(verdict, str):
            self._alike.keep(bits, planned.cell_id, verdict)
        return self._finished(planned, measured, figures, verdict)

    def _finished(
        self, planned: PlannedCell, measured: CellRecord, figures: Figures, verdict: VerdictRecord | str | None
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        """The record with its verdict, or with why there is none; the cell is recorded where that was asked for."""
        judged = measured.model_copy(update={"unjudged" if isinstance(verdict, str) else "verdict": verdict})
        self._keep_recording(planned)
        return checked(judged, figures.output), figures.modules

    def _keep_recording(self, planned: PlannedCell) -> None:
        """Records the cell where that was asked for. What goes wrong is said: the figures stand."""
        if self._recordings is None:
            return
        try:
            self._recordings.write(planned.cell_id, self.recording(planned, self._recordings.wanted))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            self._say(f"{planned.cell_id} could not be recorded: {reason_of(error)}")
            self._forget(planned)

    def recording(self, planned: PlannedCell, wanted: Wanted) -> Recording:
        """Runs the cell once more, and keeps what it gives."""
        cell = planned.cell
        model = self._held.loaded(cell).model
        about = about_cell(cell, self._held.local(cell).revision, self._environment)
        return record_cell(cell, model, self._held.token_ids(cell, model), wanted, about)

    def _measure(
        self, planned: PlannedCell, record: CellRecord, following: Sequence[PlannedCell]
    ) -> tuple[CellRecord, Figures, Hashable]:
        """The record without its verdict; and what cells have the same of that are the same, where one is judged."""
        cell = planned.cell
        reference = self._reference_run(planned)
        loaded, was_read = self._held.load(cell)
        token_ids = self._held.token_ids(cell, loaded.model)
        if token_ids != reference.token_ids:
            raise AlignmentError("the reference ran other token ids than the candidate: nothing can be aligned")
        run = self._reference_runs.compare(planned, reference, following)
        ran, loaded = run.side, self._held.loaded(cell)  # again: others may have switched its attention
        was_read |= self._held.was_read_ahead(loaded)
        bare = self._run_bare(planned, loaded, ran, token_ids, was_read=was_read)
        figures = run.comparer.finish()
        measured = record.model_copy(
            update={
                **bare,
                **self._measured(cell, loaded, ran, figures),
                "fallbacks": (*dict.fromkeys([*reference.fallbacks, *run.fallbacks]),),
                "unaligned": ran.unaligned,
                "hooks": ran.hooks,
                "routers": self._routers(planned, reference),
                "output_kind": output_kind(cell),
                "state": self._held.compare_state(reference.weights, reference.state, loaded),
                "reference_sample": run.reference_sample,
            }
        )
        bits = None
        if self._verdict and not judging.nothing_differs(figures):
            state = self._held.fingerprint(loaded)
            bits = judging.alike_key(planned, state, ran.first_batch, run.outputs, figures)
        return measured, figures, bits

    def _routers(self, planned: PlannedCell, reference: ReferenceRun) -> tuple[RouterFigures, ...]:
        """What the routers of a mixture do to the first batch; nothing for other models."""
        if not is_mixture(self._held.loaded(planned.cell).model):
            return ()
        sides = (
            side_of(cell, self._held.loaded(cell).model, reference.token_ids, reference.grouped[:1])
            for cell in (planned.reference, planned.cell)
        )
        return router_figures(*map(run_with_selections, sides))  # one after the other: they may share a model

    def _run_recorded(
        self, planned: PlannedCell, recording: Path, record: CellRecord
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        """One cell against a recording in place of a reference."""
        if self._recorded is None or self._recorded.path != recording:
            self._recorded = RecordedReference(recording)
        cell, recorded = planned.cell, self._recorded
        loaded, was_read = self._held.load(cell)
        token_ids, kind = self._held.token_ids(cell, loaded.model), output_kind(cell)

        def comparer(is_logits: bool) -> Comparer:
            return self._reference_runs.comparer(cell, loaded.model, token_ids, is_logits=is_logits)

        side, figures, ran, rows = recorded.compare(cell, loaded.model, kind, token_ids, comparer, self._progress)
        bare = self._run_bare(planned, loaded, side, token_ids, was_read=was_read)
        measured = record.model_copy(
            update={
                **bare,
                **self._measured(cell, loaded, side, figures),
                "first_divergence": recorded.first_divergence(figures),
                "unaligned": side.unaligned | ran.unaligned,
                "output_kind": rows.quantity,
            }
        )
        verdict: VerdictRecord | str | None = None
        if self._verdict:
            local = self._held.local(cell)
            folder = local.folder if local.has_tokenizer else None
            verdict = recorded.judge(cell, loaded.model, folder, rows, ran, figures, planned.cell_id)
        return self._finished(planned, measured, figures, verdict)

    def _measured(self, cell: Cell, loaded: LoadedModel, ran: HookedSide, figures: Figures) -> dict[str, object]:
        """What was measured, whatever it was compared with. Field names as in `CellRecord`."""
        local = self._held.local(cell)
        return {
            "checkpoint_revision": local.revision,
            "checkpoint_files_sha256": local.files_sha256,
            "reading": reading_notes(cell, loaded.model, self._held.reading(cell, loaded.model)),
            "first_divergence": figures.first_divergence,
            "output": figures.output,
            "language": figures.language,
            "neighbours_changed": figures.neighbours_changed,
            "texts": figures.texts,
            "sample": ran.sample(),
        }

    def _run_bare(
        self, planned: PlannedCell, loaded: LoadedModel, ran: HookedSide, token_ids: list[list[int]], *, was_read: bool
    ) -> dict[str, object]:
        load_time_s = loaded.load_time_s if was_read else None
        repeats = self._latency_repeats
        return run_bare(planned, loaded, ran, token_ids, self._code_paths, load_time_s=load_time_s, repeats=repeats)

    def _judge(self, planned: PlannedCell, figures: Figures) -> VerdictRecord | str | None:
        """The verdict; or, where memory ran out however little was asked of it, what to say. None: not asked for."""
        if not self._verdict:
            return None
        if judging.nothing_differs(figures):
            return judging.identical_record(figures)
        assert self._reference_runs.reference is not None, "what is judged was just compared with it"
        telling = judging.telling_texts(figures.texts, self._reference_runs.reference.grouped)
        short = [judging.shortest(figures.texts, telling[0])]
        # where memory runs out: once more without what is kept of the reference, then on the shortest text alone
        ways = [(telling, False), (telling, False), (short, False)]
        if not self._held.streamed:
            ways += [(telling, True), (short, True)]
        for place, (sets, streamed) in enumerate(ways, start=1):
            try:
                with self._streaming(planned) if streamed else contextlib.nullcontext():
                    return self._judge_on(planned, sets, last=place == len(ways))
            except Exception as error:  # the figures are measured: they are worth keeping without a verdict
                traceback.clear_frames(error.__traceback__)
                less_helps = out_of_memory(error) or (streamed and isinstance(error, UnsupportedError))
                failed = None if less_helps else judging.unjudged_record(error, sets[-1], planned.cell_id)
            self._forget(planned)
            if failed is not None:
                return failed
        return judging.short_of_memory(figures.texts, short[0])

    def _judge_on(self, planned: PlannedCell, sets: Sequence[tuple[int, ...]], *, last: bool) -> VerdictRecord:
        """The verdict on the first of the sets of texts on which the two sides differ."""
        for texts in sets:
            comparison = self.comparison(planned, texts)
            if comparison.verdict.kind is not Kind.IDENTICAL:
                break
        return judging.verdict_record(comparison, texts, self._causes.of(comparison, planned.cell_id, last=last))

    def comparison(self, planned: PlannedCell, texts: Sequence[int]) -> Comparison:
        """Reference and candidate side by side on some of the texts: verdict, first divergence and, if asked, cause."""
        reference_model = self._held.loaded(planned.reference).model
        token_ids = self._held.token_ids(planned.cell, reference_model)
        if WeightsKey.of(planned.reference) == WeightsKey.of(planned.cell):
            reference_model = sharing_copy(reference_model)
        model = self._held.loaded(planned.cell).model
        return compare_sides(
            side_of(planned.reference, reference_model, token_ids, [texts]),
            side_of(planned.cell, model, token_ids, [texts]),
            self._evidence_of(planned, texts),
            full=self._verdict == "full",
        )

    def _evidence_of(self, planned: PlannedCell, texts: Sequence[int]) -> ReferenceEvidence:
        """The runs of the reference on these texts, for all of its candidates; no value takes more than a quarter of
        the memory that is free."""
        key, device = (planned.reference_id, tuple(texts)), planned.reference.device
        if any(reference_id != planned.reference_id for reference_id, _ in self._evidence):
            self._evidence.clear()
        if key not in self._evidence:
            self._evidence[key] = ReferenceEvidence(lambda: free_bytes(device) // 4, doubles=Doubles())
        return self._evidence[key]

    def _reference_run(self, planned: PlannedCell) -> ReferenceRun:
        reference = self._reference_runs.reference
        if reference is not None and reference.serves(planned):
            # Its state shares the model's tensors: without this the pool would drop the model and free nothing.
            self._held.keep(planned.reference)
            return reference
        if reference is None or reference.cell_id != planned.reference_id:
            self._evidence.clear()
        self._reference_runs.forget()  # frees its outputs before the next ones are made
        model = self._held.loaded(planned.reference).model
        return self._reference_runs.run_reference(planned, self._held.token_ids(planned.reference, model))
