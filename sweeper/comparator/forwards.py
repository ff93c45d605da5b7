"""A cell becomes a side; texts are laid out, and batches run in its conditions with hooks and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.checkpoints import LocalCheckpoint
from sweeper.comparator.calling import carry_out, of_calls
from sweeper.comparator.comparer import BatchOutputs
from sweeper.comparator.corners import Sampler
from sweeper.comparator.hooks import Capture, ModuleOutput, capture, kept_outputs, steady_in_call, tensors_of
from sweeper.comparator.side import Call, Side, hidden_for_pooling, pooled
from sweeper.config import Cell, Decode, Layout, Pooling
from sweeper.errors import UnsupportedError
from sweeper.inputs import layout
from sweeper.inputs import texts as inputs
from sweeper.inputs.arrays import array_notes, read_arrays
from sweeper.inputs.batching import forwards_of
from sweeper.inputs.calls import Decoding
from sweeper.metrics.pair import PairAccumulator, finish
from sweeper.models import axes
from sweeper.models.backends import implementation
from sweeper.models.compiled import compiles, hooks_inside
from sweeper.models.conditions import switches
from sweeper.models.family import (
    accepts,
    cannot_pack,
    cannot_read,
    context,
    first_position,
    has_cache,
    main_input,
    takes_masks_by_layer,
    vocabulary,
    window,
)
from sweeper.models.weights import WeightsKey
from sweeper.records.cell import PairMeasures
from sweeper.records.sample import Sample

DECODING: dict[Decode, Decoding | None] = {
    Decode.WHOLE: None,
    Decode.TOKENS: Decoding(1, "dynamic"),
    Decode.TOKENS_STATIC: Decoding(1, "static"),
    Decode.TOKENS_QUANTISED: Decoding(1, "quantised"),
    Decode.CHUNKS_OF_16: Decoding(16, "dynamic"),
    Decode.CHUNKS_OF_16_STATIC: Decoding(16, "static"),
    Decode.CHUNKS_OF_16_QUANTISED: Decoding(16, "quantised"),
}


def read_texts(cell: Cell, local: LocalCheckpoint, model: nn.Module) -> inputs.Reading:
    """Token ids of the cell's texts; of an image or sound a zero, for it is one row.

    Raises:
        UnsupportedError: the model reads something else than what is given.
    """
    if reason := cannot_read(model, cell.inputs):
        raise UnsupportedError(reason)
    if cell.inputs.arrays is not None:
        path = Path(cell.inputs.arrays)
        return inputs.Reading([[0]] * len(read_arrays(path)), array_notes(path))
    return inputs.read_token_ids(
        cell.inputs,
        local.folder,
        vocab_size=vocabulary(model),
        has_tokenizer=local.has_tokenizer,
        prompt=cell.checkpoint.prompt or "",
        max_tokens=cell.checkpoint.max_tokens,
        context=context(model),
    )


def reading_notes(cell: Cell, model: nn.Module, reading: inputs.Reading) -> dict[str, str]:
    """What was done to the texts besides tokenising them, as the record has it."""
    pads = cell.layout in (Layout.PADDED_LEFT, Layout.PADDED_RIGHT) and cell.inputs.arrays is None
    note = layout.pad_note(model.config) if pads else None
    return reading.notes | ({} if note is None else {"pads": note})


def side_of(cell: Cell, model: nn.Module, token_ids: list[list[int]], batches: Sequence[Sequence[int]]) -> Side:
    """The cell as one side of a comparison.

    Args:
        token_ids: of all texts.
        batches: the texts of each, which may take several forwards; `Side.in_batches` gives their calls again.
    """
    calls = tuple(call for texts in batches for call in _calls(cell, model, token_ids, texts))
    formed = {axis.name: getattr(cell, axis.name) for axis in axes.table() if axis.forms_calls}

    def recalled(axis: str, value: Any) -> tuple[Call, ...]:
        return side_of(cell.model_copy(update={axis: value}), model, token_ids, batches).calls

    function = axes.parts("function", cell)
    pooling = _pooling(cell, calls)
    return Side(
        model,
        calls,
        switches(cell),
        pooling,
        formed=formed,
        recalled=recalled,
        function=function,
        weights=WeightsKey.of(cell),
    )


def _calls(cell: Cell, model: nn.Module, token_ids: list[list[int]], texts: Sequence[int]) -> list[Call]:
    """The calls of texts that are compared together, whose tokens follow one another in the order of the texts.

    Where the forwards have another order (batches that are sorted), each is made once for every text in it.
    """
    forwards = forwards_of(cell, token_ids, texts)
    laid_out = [forward for together in forwards for forward in _laid_out(cell, model, token_ids, together)]
    calls = [Call(_arguments(cell, model, forward), forward, DECODING[cell.decode]) for forward in laid_out]
    if [text for forward in laid_out for text in forward.texts] == list(texts):
        return calls
    alone = {
        text: call.of_text(place)
        for call, forward in zip(calls, laid_out, strict=True)
        for place, text in enumerate(forward.texts)
    }
    return [alone[text] for text in texts]


def _laid_out(cell: Cell, model: nn.Module, token_ids: list[list[int]], texts: Sequence[int]) -> list[layout.Forward]:
    """The model calls for texts that share a forward."""
    if cell.inputs.arrays is not None:
        array_S = read_arrays(Path(cell.inputs.arrays))
        if array_S.is_floating_point():  # given in the dtype of the weights, as a user of the model does
            array_S = array_S.to(next(p.dtype for p in model.parameters() if p.is_floating_point()))
        return layout.lay_out_arrays(array_S, texts, argument=main_input(model), layout=cell.layout, device=cell.device)
    return layout.lay_out(
        token_ids,
        texts,
        layout=cell.layout,
        positions=cell.positions,
        pad_id=layout.pad_id(model.config),
        device=cell.device,
        first_position=first_position(model),
    )


def _arguments(cell: Cell, model: nn.Module, forward: layout.Forward) -> dict[str, Any]:
    """What the model is called with. An encoder has no cache to speak of; a decoder behind one reads the same texts."""
    given: dict[str, Any] = dict(forward.inputs)
    if accepts(model, "decoder_input_ids"):
        start_id = layout.decoder_start_id(model.config)
        given["decoder_input_ids"] = layout.behind_decoder_start(forward, start_id)
        if "attention_mask" in given and accepts(model, "decoder_attention_mask"):
            given["decoder_attention_mask"] = given["attention_mask"]
    if cell.layout is Layout.PACKED and not cell.checkpoint.causal:
        given |= _kept_apart(cell, model, forward)
    if has_cache(model, causal=bool(cell.checkpoint.causal)):
        given["use_cache"] = cell.use_cache
    return given


def _kept_apart(cell: Cell, model: nn.Module, forward: layout.Forward) -> dict[str, Any]:
    """What tells an encoder where packed texts begin: a mask; flash attention takes the places themselves.

    Raises:
        UnsupportedError: the model would not understand it.
    """
    if reason := cannot_pack(model, cell.attention, causal=False):
        raise UnsupportedError(reason)
    longest, device = max(forward.lengths), forward.flat_N.device
    if implementation(cell.attention).startswith("flash"):  # which keeps to a layer's window by itself
        start_S = torch.tensor([0, *forward.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        starts = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), start_S)
        return {**starts, "max_length_q": longest, "max_length_k": longest}
    mask_11TT, sees = layout.same_text(forward), window(model)
    if sees is None or longest <= sees:
        return {"attention_mask": _as_taken(cell, model, mask_11TT)}
    if not takes_masks_by_layer(model):
        raise UnsupportedError(
            f"a packed text of {longest} tokens is longer than the {sees} that a layer of {type(model).__name__} sees; "
            f"type inputs.max_tokens={sees} or use another layout"
        )
    masks = {"full_attention": mask_11TT, "sliding_attention": mask_11TT & layout.within(forward, sees)}
    return {"attention_mask": {kind: _as_taken(cell, model, mask) for kind, mask in masks.items()}}


def _as_taken(cell: Cell, model: nn.Module, mask_11TT: Tensor) -> Tensor:
    """The mask as the backend takes it: eager attention adds it to the scores."""
    if implementation(cell.attention) != "eager":
        return mask_11TT
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.zeros_like(mask_11TT, dtype=dtype).masked_fill(~mask_11TT, torch.finfo(dtype).min)


def _pooling(cell: Cell, calls: Sequence[Call]) -> Pooling:
    """What the cell's pooling comes to: without a mask there is nothing to count, and the last token is taken."""
    counts = cell.layout in (Layout.PADDED_LEFT, Layout.PADDED_RIGHT) and "attention_mask" in calls[0].kwargs
    by_count = cell.checkpoint.pooling is Pooling.LAST_TOKEN_BY_COUNT
    return Pooling.LAST_TOKEN if by_count and not counts else cell.checkpoint.pooling


def steady_outputs(cell: Cell, model: nn.Module, token_ids: list[list[int]]) -> frozenset[str]:
    """`steady_in_call` of the cell's own call, on the beginnings of two texts."""
    side, call = _small_side(cell, model, token_ids)
    with side.conditions():
        return steady_in_call(model, call.forward, lambda: model(**call.kwargs))


def small_call(cell: Cell, model: nn.Module, token_ids: list[list[int]]) -> dict[str, Any]:
    """What the model is called with for the beginnings of two texts."""
    return _small_side(cell, model, token_ids)[1].kwargs


def _small_side(cell: Cell, model: nn.Module, token_ids: list[list[int]]) -> tuple[Side, Call]:
    beginnings = [ids[:8] for ids in token_ids[:2]]
    side = side_of(cell, model, beginnings, [range(len(beginnings))])
    return side, side.calls[0]


class HookedSide:
    """A side with hooks on every module of its model. It is run batch by batch.

    Attributes:
        first_batch: the calls of the first batch.
        first_output_NF: its output over its real tokens.
    """

    first_batch: Sequence[Call] = ()
    first_output_NF: Tensor

    def __init__(self, side: Side, running: Capture, hidden: list[Tensor], unhooked: list[BatchOutputs] | None) -> None:
        self._side = side
        self._running = running
        self._hidden = hidden
        self._unhooked = unhooked
        self._agreement: PairAccumulator | None = None

    def run(self, batch: Sequence[Call]) -> BatchOutputs:
        """Runs one batch."""
        if self.first_batch:
            return self._run(batch)
        with kept_outputs(self._side.model, copied=self._unhooked is not None) as padded:
            outputs = self._run(batch)
        self.first_batch, self.first_output_NF = batch, outputs.output_NF
        self._sampler = Sampler(batch, of_calls(padded, batch), outputs.output_NF)
        return outputs

    def _run(self, batch: Sequence[Call]) -> BatchOutputs:
        assert self._side.pooling is not None, "a cell pools"
        output_NF = run_forwards(self._side.model, batch, self._running)
        embedding_SD = pooled(self._side.pooling, batch, self._hidden)
        self._hidden.clear()
        if self._unhooked is None:
            return BatchOutputs(output_NF, embedding_SD)
        calls = [self._unhooked.pop(0) for _ in batch]
        device = output_NF.device
        outputs = BatchOutputs(*(torch.cat([one.to(device) for one in pieces]) for pieces in zip(*calls, strict=True)))
        if self._agreement is None:
            self._agreement = PairAccumulator(output_NF.dtype, output_NF.dtype, output_NF.device)
        self._agreement.update(outputs.output_NF, output_NF)
        return outputs

    @property
    def hooks(self) -> PairMeasures | None:
        """How outputs with hooks compare with those without, which count, where code is compiled; else None."""
        return None if self._agreement is None else finish([self._agreement])[0]

    @property
    def steps(self) -> int:
        """The most steps that one of its calls is made in."""
        return max(call.steps for call in self._side.calls)

    @property
    def unaligned(self) -> dict[str, str]:
        """What could not be aligned, and why."""
        return self._running.unaligned

    def sample(self) -> Sample:
        """Inputs and a corner of the output of the first batch."""
        return self._sampler.sample()


@contextlib.contextmanager
def hooked(
    side: Side, take: Callable[[ModuleOutput], object], steady: Container[str] = frozenset()
) -> Iterator[HookedSide]:
    """Hooks a side; `take` gets every module's output the moment it exists. `steady` as in `Capture`."""
    compiled = compiles(side.switches)
    unhooked = _unhooked(side) if compiled else None
    with (
        hooks_inside(side.switches),
        capture(side.model, take, steady=steady, compiled=compiled) as running,
        hidden_for_pooling(side) as hidden,
    ):
        yield HookedSide(side, running, hidden, unhooked)


def _unhooked(side: Side) -> list[BatchOutputs]:
    """The outputs of each call of a side without hooks, on the host: what compiled code gives without them.

    Of all calls, before the first with hooks: code is made anew for these.
    """
    assert side.pooling is not None, "a cell pools"
    outputs = []
    with side.conditions(), hidden_for_pooling(side) as hidden:
        for call in side.calls:
            output_NF = run_forwards(side.model, [call])
            embedding_SD = pooled(side.pooling, [call], hidden)
            outputs.append(BatchOutputs(output_NF.cpu(), embedding_SD.cpu()))
            hidden.clear()
    return outputs


def run_forwards(model: nn.Module, batch: Sequence[Call], running: Capture | None = None) -> Tensor:
    """The model's output (logits, or last hidden state) over the real tokens of one batch, [N, F]."""
    outputs = []
    for call in batch:
        output = tensors_of(carry_out(model, call, call.kwargs, running))[0]
        output_NF = layout.to_tokens(output, call.forward)
        if output_NF is None and len(output) == len(call.forward.lengths):  # a classifier's: a row a text
            output_NF = output.flatten(1)
        if output_NF is None:
            raise UnsupportedError(
                f"{type(model).__name__} gives an output of shape {tuple(output.shape)} for texts of "
                f"{', '.join(map(str, call.forward.lengths))} tokens: nothing says which row is whose"
            )
        outputs.append(output_NF)
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
