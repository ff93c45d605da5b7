"""The reference's outputs are recorded; the candidate's are compared with them the moment they exist.

Nothing here knows a model, a file or a config: only named tensors in token order (text by text, position by position).
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sweeper.capture import ModuleOutput
from sweeper.errors import AlignmentError
from sweeper.metrics.embedding import EmbeddingFigures, embedding_figures
from sweeper.metrics.language import LanguageAccumulator
from sweeper.metrics.pair import PairAccumulator, finish
from sweeper.metrics.state import merge
from sweeper.results import LanguageFigures, ModuleRecord, PairMeasures, TextFigures


@dataclass
class BatchOutputs:
    """What one batch of texts gave, in token order.

    Attributes:
        modules: module outputs by name, in order of execution.
        output_NF: logits or last hidden state.
        embedding_SD: pooled hidden state a text, not normalised.
    """

    modules: dict[str, ModuleOutput] = field(default_factory=dict)
    output_NF: Tensor = field(default_factory=lambda: torch.empty(0))
    embedding_SD: Tensor = field(default_factory=lambda: torch.empty(0))


class Recorder:
    """Keeps the outputs of a reference, batch by batch; copies, so that nothing is changed in place later."""

    def __init__(self) -> None:
        self.batches: list[BatchOutputs] = []
        self._pieces: dict[str, list[ModuleOutput]] = {}

    def begin_batch(self) -> None:
        self._pieces = {}

    def take(self, output: ModuleOutput) -> None:
        self._pieces.setdefault(output.name, []).append(output._replace(tensor_NF=output.tensor_NF.clone()))

    def end_batch(self, output_NF: Tensor, embedding_SD: Tensor) -> None:
        modules = {name: _joined(pieces) for name, pieces in self._pieces.items()}
        self.batches.append(BatchOutputs(modules, output_NF.clone(), embedding_SD.clone()))


def _joined(pieces: Sequence[ModuleOutput]) -> ModuleOutput:
    if len(pieces) == 1:
        return pieces[0]
    return pieces[0]._replace(tensor_NF=torch.cat([piece.tensor_NF for piece in pieces]))


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that comparing outputs gives. Field names as in `sweeper.results`."""

    modules: tuple[ModuleRecord, ...]
    first_divergence: str | None
    output: PairMeasures
    language: LanguageFigures | None
    texts: tuple[TextFigures, ...]


class Comparer:
    """Compares a candidate with a recorded reference while it runs; no device synchronisation until `finish`.

    Args:
        reference: outputs of every batch.
        token_ids: of every text; both sides ran these.
        is_logits: the output is logits, so the figures of language are taken too.
    """

    def __init__(self, reference: Recorder, token_ids: Sequence[Sequence[int]], *, is_logits: bool) -> None:
        self._reference = reference.batches
        self._token_ids = token_ids
        self._modules: dict[str, _ModulePair] = {}
        self._only_candidate: set[str] = set()
        self._texts: list[PairAccumulator] = []
        self._output: PairAccumulator | None = None
        self._embeddings: list[tuple[Tensor, Tensor]] = []
        self._is_logits = is_logits
        self._language: LanguageAccumulator | None = None
        self._batch = -1
        self._rows_done: defaultdict[str, int] = defaultdict(int)

    def begin_batch(self) -> None:
        self._batch += 1
        self._rows_done.clear()

    def take(self, output: ModuleOutput) -> None:
        """Compares one module's output with the same rows of the reference's."""
        recorded = self._reference[self._batch].modules.get(output.name)
        if recorded is None:
            self._only_candidate.add(output.name)  # an error, once all names are known
            return
        pair = self._modules.get(output.name)
        if pair is None:
            pair = self._modules[output.name] = _ModulePair(len(self._modules), output, recorded)
        start = self._rows_done[output.name]
        self._rows_done[output.name] = stop = start + output.tensor_NF.shape[0]
        pair.update(recorded.tensor_NF[start:stop].to(output.tensor_NF.device), output)

    def end_batch(self, output_NF: Tensor, embedding_SD: Tensor) -> None:
        recorded = self._reference[self._batch]
        reference_NF = recorded.output_NF.to(output_NF.device)
        self._compare_texts(reference_NF, output_NF, embedding_SD.shape[0])
        self._embeddings.append((recorded.embedding_SD.to(embedding_SD.device), embedding_SD))

    def _compare_texts(self, reference_NF: Tensor, output_NF: Tensor, texts: int) -> None:
        first_text = len(self._texts)
        lengths = [len(ids) for ids in self._token_ids[first_text : first_text + texts]]
        dtypes_and_device = reference_NF.dtype, output_NF.dtype, output_NF.device
        if self._output is None:
            self._output = PairAccumulator(*dtypes_and_device)
        for reference, candidate in zip(reference_NF.split(lengths), output_NF.split(lengths), strict=True):
            accumulator = PairAccumulator(*dtypes_and_device)
            accumulator.update(reference, candidate)
            self._texts.append(accumulator)
            self._output.state = merge(self._output.state, accumulator.state)
        if self._is_logits:
            self._language = self._language or LanguageAccumulator(output_NF.device)
            self._language.update(reference_NF, output_NF, self._next_tokens(first_text, lengths, output_NF.device))

    def _next_tokens(self, first_text: int, lengths: Sequence[int], device: torch.device) -> Tensor:
        """The token that follows each token, -1 behind the last one of a text; shape [N]."""
        texts = self._token_ids[first_text : first_text + len(lengths)]
        following = [[*ids[1:], -1] for ids in texts]
        return torch.tensor(list(itertools.chain.from_iterable(following)), dtype=torch.int64).to(device)

    def finish(self) -> Figures:
        """Takes the figures off the device.

        Raises:
            AlignmentError: a module that only one side has; both sets are named.
        """
        self._check_names()
        assert self._output is not None, "at least one batch has run"
        pairs = list(self._modules.values())
        measures = finish([*(pair.accumulator for pair in pairs), self._output, *self._texts])
        modules = tuple(self._module_record(pair, measures[i]) for i, pair in enumerate(pairs))
        output, per_text = measures[len(pairs)], measures[len(pairs) + 1 :]
        references, candidates = zip(*self._embeddings, strict=True)
        embeddings = embedding_figures(torch.cat(references), torch.cat(candidates))
        return Figures(
            modules=modules,
            first_divergence=next((m.name for m in modules if m.measures.equal_fraction < 1), None),
            output=output,
            language=self._language.finish() if self._language else None,
            texts=tuple(self._text_figures(i, per_text[i], embedding) for i, embedding in enumerate(embeddings)),
        )

    def _check_names(self) -> None:
        recorded = set(itertools.chain.from_iterable(batch.modules for batch in self._reference))
        only_reference = recorded - set(self._modules)
        if only_reference or self._only_candidate:
            raise AlignmentError(
                f"modules that ran only in the reference: {_some(only_reference)}; "
                f"only in the candidate: {_some(self._only_candidate)}"
            )

    def _module_record(self, pair: _ModulePair, measures: PairMeasures) -> ModuleRecord:
        layer, kind = layer_and_kind(pair.name)
        text, position = self._locate(measures.worst_token)
        return ModuleRecord(
            order=pair.order,
            name=pair.name,
            module_type=pair.module_type,
            layer=layer,
            kind=kind,
            reference_dtype=pair.reference_dtype,
            candidate_dtype=pair.candidate_dtype,
            worst_text=text,
            worst_position=position,
            measures=measures,
        )

    def _locate(self, token: int | None) -> tuple[int | None, int | None]:
        if token is None:
            return None, None
        starts = list(itertools.accumulate((len(ids) for ids in self._token_ids), initial=0))
        text = bisect.bisect_right(starts, token) - 1
        return text, token - starts[text]

    def _text_figures(self, text: int, measures: PairMeasures, embedding: EmbeddingFigures) -> TextFigures:
        return TextFigures(
            text=text,
            tokens=len(self._token_ids[text]),
            output_max_abs=measures.max_abs,
            output_equal_fraction=measures.equal_fraction,
            output_cosine=measures.cosine,
            embedding_cosine=embedding.cosine,
            embedding_max_abs=embedding.max_abs,
            embedding_mean_abs=embedding.mean_abs,
        )


class _ModulePair:
    """One module on both sides."""

    def __init__(self, order: int, output: ModuleOutput, recorded: ModuleOutput) -> None:
        dtypes = recorded.tensor_NF.dtype, output.tensor_NF.dtype
        self.order = order
        self.name = output.name
        self.module_type = output.module_type
        self.reference_dtype, self.candidate_dtype = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        self.accumulator = PairAccumulator(*dtypes, output.tensor_NF.device)

    def update(self, reference_NF: Tensor, output: ModuleOutput) -> None:
        if reference_NF.shape != output.tensor_NF.shape:
            raise AlignmentError(
                f"{self.name}: {tuple(reference_NF.shape)} (tokens, features) in the reference, "
                f"{tuple(output.tensor_NF.shape)} in the candidate"
            )
        self.accumulator.update(reference_NF, output.tensor_NF)


_LAYER = re.compile(r"^(?:.*?\.)?(\d+)(?:\.(.+))?$")


def layer_and_kind(name: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.up_proj` -> (3, "mlp.up_proj"); `model.layers.3` -> (3, "layer"); else (None, name)."""
    path, mark, suffix = name.partition("#") if "#" in name else name.partition("[")
    match = _LAYER.match(path)
    if match is None:
        return None, name
    return int(match[1]), (match[2] or "layer") + mark + suffix


def _some(names: Iterable[str], limit: int = 10) -> str:
    names = sorted(names)
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
