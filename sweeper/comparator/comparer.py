"""Reference against candidate, batch by batch: what was compared becomes figures in the order of the texts.

Nothing here knows a model, a file or a config: only named tensors in token order (text by text, position by position).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor

from sweeper.comparator.module_pairs import ModulePair, ModulePairs
from sweeper.comparator.places import Places
from sweeper.comparator.text_figures import TextAccumulator
from sweeper.comparator.token_figures import TokenAccumulator
from sweeper.devices import to_device
from sweeper.metrics.figures import neighbours_changed
from sweeper.metrics.language import LanguageAccumulator
from sweeper.metrics.pair import finished
from sweeper.records.cell import LanguageFigures, ModuleRecord, PairMeasures, TextFigures

_MODULES = TypeAdapter(tuple[ModuleRecord, ...])


class BatchOutputs(NamedTuple):
    """What one batch of texts gave beside its modules' outputs, in token order.

    Attributes:
        output_NF: logits or last hidden state.
        embedding_SD: pooled hidden state a text, not normalised.
    """

    output_NF: Tensor
    embedding_SD: Tensor


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that comparing outputs gives. Field names as in `sweeper.records.cell`."""

    modules: tuple[ModuleRecord, ...]
    first_divergence: str | None
    output: PairMeasures
    language: LanguageFigures | None
    neighbours_changed: float | None
    texts: tuple[TextFigures, ...]


class Comparer:
    """Compares a candidate with its reference while they run; no device synchronisation until `finish`.

    A batch: `begin_batch`, the modules' outputs of both sides into `modules`, then `end_batch`.

    Args:
        token_ids: of every text; both sides run these.
        is_logits: the output is logits, so the figures of language are taken too.
        predicts_own: logits tell the token in their own place (behind a shifted decoder), not the next one.
        normalize: embeddings are scaled to length 1 before they are compared.
        steady: see `ModulePairs`.
        launch_bytes: see `ModulePairs`.

    Attributes:
        modules: where the modules' outputs of both sides meet.
    """

    def __init__(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        is_logits: bool,
        predicts_own: bool = False,
        normalize: bool = True,
        steady: Container[str] = frozenset(),
        launch_bytes: int = 0,
    ) -> None:
        self._tokens = TokenAccumulator([len(ids) for ids in token_ids])
        # no method of its own: a comparer in a circle would be on the device until Python's collector comes by
        self.modules = ModulePairs(steady=steady, launch_bytes=launch_bytes, watch=self._tokens.take, watched=_is_layer)
        self._token_ids = token_ids
        self._texts: TextAccumulator | None = None
        self._is_logits = is_logits
        self._predicts_own = predicts_own
        self._normalize = normalize
        self._language: LanguageAccumulator | None = None
        self._neighbours: list[Tensor] = []  # of the batches of several texts, how many have another one
        self._among_others = 0  # texts of these
        self._order: list[int] = []

    def begin_batch(self, texts: Sequence[int]) -> None:
        """Says which texts come next; without it there are no figures by token of them."""
        self._tokens.begin_batch(texts)

    def end_batch(self, texts: Sequence[int], reference: BatchOutputs, candidate: BatchOutputs) -> None:
        """Compares what is left of a batch of these texts.

        Raises:
            AlignmentError: a module's output that only one side has; both sets are named.
        """
        self.modules.end_batch()
        device = candidate.output_NF.device
        reference_NF = reference.output_NF.to(device)
        embeddings = reference.embedding_SD.to(device), candidate.embedding_SD
        if self._texts is None:  # a classifier gives a row a text, other models a row a token
            tokens = sum(len(self._token_ids[text]) for text in texts)
            a_row_a_text = len(reference_NF) == len(texts) != tokens
            lengths = [1 if a_row_a_text else len(ids) for ids in self._token_ids]
            self._texts = TextAccumulator(lengths, normalize=self._normalize)
        self._texts.update(texts, (reference_NF, candidate.output_NF), embeddings)
        self._tokens.end_batch(self._texts.moved(len(texts)))
        if self._is_logits:
            self._language = self._language or LanguageAccumulator(device)
            self._language.update(reference_NF, candidate.output_NF, to_device(self._next_tokens(texts), device))
        elif len(texts) > 2:  # of two, each is the other's nearest whatever they are
            self._neighbours.append(neighbours_changed(*embeddings))
            self._among_others += len(texts)
        self._order += texts

    def _neighbours_share(self) -> float | None:
        if not self._neighbours:
            return None
        return int(torch.stack(self._neighbours).sum()) / self._among_others

    def _next_tokens(self, texts: Sequence[int]) -> list[int]:
        """The token that each row's logits tell, N of them: the one that follows, -1 behind the last one of a text."""
        if self._predicts_own:
            return list(itertools.chain.from_iterable(self._token_ids[text] for text in texts))
        following = ([*self._token_ids[text][1:], -1] for text in texts)
        return list(itertools.chain.from_iterable(following))

    def finish(self) -> Figures:
        """Takes the figures off the device, in the order of the texts."""
        assert self._texts is not None, "at least one batch"
        output, texts = self._texts.finish()
        pairs = self.modules.modules
        measures = finished([pair.accumulator for pair in pairs.values()])
        places = Places([len(ids) for ids in self._token_ids], self._order)
        tokens = self._tokens.finish()
        rows = [
            _module_row(order, name, pair, places, figures) | {"tokens": tokens.get(name)}
            for order, ((name, pair), figures) in enumerate(zip(pairs.items(), measures, strict=True))
        ]
        modules = _MODULES.validate_python(rows)
        return Figures(
            modules=modules,
            first_divergence=next((m.name for m in modules if m.measures.equal_fraction < 1), None),
            output=output,
            language=self._language.finish() if self._language else None,
            neighbours_changed=self._neighbours_share(),
            texts=texts,
        )


def _is_layer(name: str) -> bool:
    return layer_and_kind(name)[1] == "layer"


def _module_row(order: int, name: str, pair: ModulePair, places: Places, measures: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ModuleRecord`."""
    layer, kind = layer_and_kind(name)
    text = position = None
    if measures["worst_token"] is not None:
        text, position, measures["worst_token"] = places.of(measures["worst_token"])
    return {
        "order": order,
        "name": name,
        "module_type": pair.module_type,
        "layer": layer,
        "kind": kind,
        "reference_dtype": pair.reference_dtype,
        "candidate_dtype": pair.candidate_dtype,
        "worst_text": text,
        "worst_position": position,
        "measures": measures,
    }


_LAYER = re.compile(r"^(?:.*?\.)?(\d+)(?:\.(.+))?$")


@functools.lru_cache(maxsize=2**14)
def layer_and_kind(name: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.up_proj` -> (3, "mlp.up_proj"); `model.layers.3` -> (3, "layer"); else (None, name)."""
    path, mark, suffix = name.partition("#") if "#" in name else name.partition("[")
    match = _LAYER.match(path)
    if match is None:
        return None, name
    return int(match[1]), (match[2] or "layer") + mark + suffix
