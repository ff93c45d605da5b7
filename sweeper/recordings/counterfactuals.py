"""What a program may have done otherwise than was thought: each is tried on our own float64 run, and needs no other.

Shapes: N tokens of all texts one after another, V vocabulary, F features.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.comparator.comparer import BatchOutputs
from sweeper.comparator.forwards import side_of
from sweeper.comparator.side import POOLING, Side, run
from sweeper.config import Cell, Layout, Positions
from sweeper.devices import out_of_memory
from sweeper.inputs.calls import Call
from sweeper.models.family import has_cache
from sweeper.recordings.log_probabilities import log_probabilities
from sweeper.recordings.own_error import OverOwn, over_own
from sweeper.recordings.quantities import rows_of
from sweeper.records.recording import LOG_PROBABILITIES, LOGITS
from sweeper.verdict.float64_replay import replayed

_TEMPERATURES = (0.6, 0.7, 0.8, 1.0)
_FILTERS = (("top_p", 0.8), ("top_p", 0.9), ("top_p", 0.95), ("top_k", 20), ("top_k", 40), ("top_k", 50))
_FILTERED_ROWS = 256  # sorting a vocabulary a token takes long
_MARK = "\u241f"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One counterfactual.

    Attributes:
        name: what was tried: `temperature`, `beginning token`, ...
        what: what would have been done otherwise, in words.
        put_back: what to do about it.
        found: the errors with it; None where it could not be run, and `error` says why.
    """

    name: str
    what: str
    put_back: str
    found: OverOwn | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the counterfactuals start from.

    Attributes:
        cell, model: that ran; `folder` holds its tokenizer, None where it has none.
        token_ids: of the texts that are judged.
        quantity: what is compared.
        recorded: its rows in the recording.
        own, exact: what our own run gave, and the same in float64.
    """

    cell: Cell
    model: nn.Module
    folder: Path | None
    token_ids: list[list[int]]
    quantity: str
    recorded: Tensor
    own: BatchOutputs
    exact: BatchOutputs

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.token_ids]

    def side(self, token_ids: list[list[int]] | None = None, **axes: Any) -> Side:
        """The cell on these texts, with other axes."""
        ids = self.token_ids if token_ids is None else token_ids
        return side_of(self.cell.model_copy(update=axes), self.model, ids, [range(len(ids))])

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's; None where it has none."""
        if self.folder is None:
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True)

    @functools.cached_property
    def own_rows(self) -> Tensor:
        return rows_of(self.quantity, self.own, self.token_ids)

    @functools.cached_property
    def exact_rows(self) -> Tensor:
        return rows_of(self.quantity, self.exact, self.token_ids)

    @functools.cached_property
    def found(self) -> OverOwn:
        """The errors as they are."""
        return over_own(self.recorded, self.own_rows, self.exact_rows, self.lengths)

    def found_with(self, exact_NF: Tensor) -> OverOwn:
        """The errors to another function's float64 run, over our own error to our own."""
        return over_own(self.recorded, self.own_rows, exact_NF, self.lengths, own_error=self.found.own)


def outputs_of(side: Side) -> BatchOutputs:
    """What one run gives."""
    found = run(side)
    output_NF = next(tensor for name, tensor in found.items() if name != POOLING)
    return BatchOutputs(output_NF, found[POOLING])


def exact_outputs(side: Side) -> BatchOutputs:
    """What one run gives in float64."""
    with replayed(side) as (exact, _):
        return outputs_of(exact)


def counterfactuals(base: Base) -> Iterator[Tried]:
    """Tries one after another, what needs no run first."""
    tries: list[Callable[[Base], Iterator[Tried]]] = []
    if base.quantity in (LOGITS, LOG_PROBABILITIES):
        tries += [_temperature, _rows_shifted]
    if base.quantity == LOG_PROBABILITIES:
        tries += [_filtered]
    for attempt in (*tries, _beginning_token, _template, _positions, _one_text):
        try:
            yield from attempt(base)
        except Exception as error:  # one that a model does not take says nothing about the others
            if out_of_memory(error):
                raise
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Tried(
                name=attempt.__name__.strip("_").replace("_", " "), what="", put_back="", found=None, error=line
            )


# ---- of the same run ---------------------------------------------------------------------------------------------


def _temperature(base: Base) -> Iterator[Tried]:
    """The temperature that fits best."""
    temperature = _fitted(base)
    if abs(temperature - 1) < 1e-3:
        return
    yield Tried(
        name="temperature",
        what=f"logits were divided by a temperature of {temperature:g}",
        put_back=f"record raw log-probabilities (vLLM: logprobs_mode=raw_logprobs), or divide yours by {temperature:g}",
        found=over_own(base.recorded, *_at(base, temperature), base.lengths),
    )


def _at(base: Base, temperature: float) -> tuple[Tensor, Tensor]:
    """Our own rows and those in float64, of logits that are divided."""

    def rows(outputs: BatchOutputs) -> Tensor:
        logits_NV = outputs.output_NF.double() / temperature
        return (
            log_probabilities(logits_NV, base.token_ids)[:, None] if base.quantity == LOG_PROBABILITIES else logits_NV
        )

    return rows(base.own), rows(base.exact)


def _fitted(base: Base) -> float:
    """The temperature with the least error, as round a number as fits as well."""

    def error(temperature: float) -> float:
        if base.quantity == LOGITS:
            change_NF = base.recorded.to(base.exact_rows.device) - base.exact_rows / temperature
        else:
            exact_N = log_probabilities(base.exact.output_NF / temperature, base.token_ids)
            change_NF = base.recorded[:, 0].to(exact_N.device) - exact_N
        return float(change_NF[change_NF.isfinite()].abs().mean())

    grid = [10 ** (step / 20) for step in range(-20, 21)]
    best = min(grid, key=error)
    low, high = best / grid[1] * grid[0], best * grid[1] / grid[0]
    for _ in range(30):  # a mean of absolute values has one least place here, to a grid's step
        third = (high / low) ** (1 / 3)
        if error(low * third) < error(high / third):
            high /= third
        else:
            low *= third
    fitted = math.sqrt(low * high)
    rounder = (round(fitted * steps) / steps for steps in (10, 20, 100) if round(fitted * steps))
    return next((value for value in rounder if error(value) <= 1.05 * error(fitted)), float(f"{fitted:.3g}"))


def _rows_shifted(base: Base) -> Iterator[Tried]:
    """Each number stands one token before or behind its own."""
    for shift, where in ((1, "before"), (-1, "behind")):
        recorded = _shifted(base.recorded, base.lengths, shift)
        found = over_own(*_without_nan(recorded, base.own_rows, base.exact_rows), base.lengths)
        yield Tried(
            name=f"rows one {where}",
            what=f"each row stands at the token {where} its own",
            put_back="row i belongs to token i: logits as the model gave them there, log-probabilities of that token",
            found=found,
        )


def _shifted(rows_NF: Tensor, lengths: Sequence[int], shift: int) -> Tensor:
    """The rows moved within each text; NaN where none is left."""
    pieces = []
    for piece in rows_NF.double().split(list(lengths)):
        moved = piece.roll(shift, 0)
        moved[:shift] = math.nan if shift > 0 else moved[:shift]
        if shift < 0:
            moved[shift:] = math.nan
        pieces.append(moved)
    return torch.cat(pieces)


def _without_nan(recorded: Tensor, own: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that the shift left empty do not count."""
    empty_N = recorded.isnan().all(1)
    exact = exact.double().clone()
    exact[empty_N.to(exact.device)] = math.nan
    return recorded, own, exact


def _filtered(base: Base) -> Iterator[Tried]:
    """Processed log-probabilities: of what a filter of the sampler left over, at a usual temperature."""
    rows = slice(0, min(_FILTERED_ROWS, sum(base.lengths)))
    best: tuple[float, str, OverOwn] | None = None
    for temperature in _TEMPERATURES:
        sorted_sides = [_sorted(side, base, temperature, rows) for side in (base.own, base.exact)]
        for name, value in _FILTERS:
            own, exact = (_after_filter(*side, name, value) for side in sorted_sides)
            found = over_own(*_filtered_out(base.recorded[rows].double().to(exact.device), own, exact), base.lengths)
            label = f"temperature {temperature:g} and {name}={value:g}"
            if best is None or found.ratio < best[0]:
                best = found.ratio, label, found
    if best is not None:
        yield Tried(
            name="processed log-probabilities",
            what=f"log-probabilities are those that the sampler used, behind {best[1]}",
            put_back="record raw log-probabilities (vLLM: logprobs_mode=raw_logprobs)",
            found=best[2],
        )


def _filtered_out(recorded: Tensor, own: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that both filter out do not count; one that the recording alone keeps counts as infinitely far off."""
    out = exact.isinf()
    both, one = out & recorded.isinf(), out & recorded.isfinite()
    exact = exact.masked_fill(both, math.nan).masked_fill(one, 0.0)
    return recorded.masked_fill(one, math.inf), own.masked_fill(own.isinf() & ~both, 0.0), exact


def _sorted(outputs: BatchOutputs, base: Base, temperature: float, rows: slice) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the vocabulary at each token, the largest first, and each token's own place among them.

    Row i tells of token i, as in `log_probabilities`; those of a text's first token are NaN.
    """
    logits_NV = outputs.output_NF.double().roll(1, 0)[rows] / temperature
    own_N = log_probabilities(outputs.output_NF.double() / temperature, base.token_ids)[rows]
    sorted_NV = logits_NV.log_softmax(1).sort(1, descending=True).values
    place_N = (sorted_NV > own_N[:, None] + 1e-12).sum(1)
    sorted_NV[own_N.isnan()] = math.nan
    return sorted_NV, place_N


def _after_filter(sorted_NV: Tensor, place_N: Tensor, name: str, value: float) -> Tensor:
    """Log-probabilities of the tokens once the others are filtered out, [N, 1]; -inf of one that is itself."""
    if name == "top_k":
        kept_NV = (torch.arange(sorted_NV.shape[1], device=sorted_NV.device) < value).expand_as(sorted_NV)
    else:
        before_NV = sorted_NV.exp().cumsum(1) - sorted_NV.exp()
        kept_NV = before_NV < value
    total_N = sorted_NV.masked_fill(~kept_NV, -math.inf).logsumexp(1)
    place_N1 = place_N[:, None].clamp(max=sorted_NV.shape[1] - 1)
    found_N1 = sorted_NV.gather(1, place_N1) - total_N[:, None]
    found_N1 = found_N1.masked_fill(~kept_NV.gather(1, place_N1), -math.inf)
    return found_N1.masked_fill(sorted_NV[:, :1].isnan(), math.nan)


# ---- of another run ----------------------------------------------------------------------------------------------


def _beginning_token(base: Base) -> Iterator[Tried]:
    """Puts a beginning token in front, or leaves out the one that is there."""
    of_config = getattr(base.model.config, "bos_token_id", None)
    bos = of_config if base.tokenizer is None else base.tokenizer.bos_token_id
    if not isinstance(bos, int):
        return
    if all(ids[0] == bos for ids in base.token_ids):
        if all(len(ids) > 1 for ids in base.token_ids):
            yield _with_prefix(
                base, "beginning token", "the beginning token was left out", "keep the beginning token", -1
            )
        return
    what = f"a beginning token ({bos}) was put before each text"
    yield _with_prefix(base, "beginning token", what, "record its id too, or switch it off", [bos])


def _template(base: Base) -> Iterator[Tried]:
    """Puts the texts inside the chat template's user turn."""
    if base.tokenizer is None or not getattr(base.tokenizer, "chat_template", None):
        return
    turn = [{"role": "user", "content": _MARK}]
    before, _, _ = base.tokenizer.apply_chat_template(turn, tokenize=False).partition(_MARK)
    prefix = list(base.tokenizer(before, add_special_tokens=False)["input_ids"])
    what = f"the chat template's {len(prefix)} tokens were put before each text"
    yield _with_prefix(
        base, "template", what, "record the ids behind the template, or send ids instead of messages", prefix
    )


def _with_prefix(base: Base, name: str, what: str, put_back: str, prefix: list[int] | int) -> Tried:
    """The texts behind a prefix, whose rows are not looked at; -1: without their first token."""
    if isinstance(prefix, int):
        given = [ids[1:] for ids in base.token_ids]
        extra = -1
    else:
        given = [[*prefix, *ids] for ids in base.token_ids]
        extra = len(prefix)
    outputs = exact_outputs(base.side(given))
    rows = rows_of(base.quantity, outputs, given)
    exact = rows if len(rows) == len(given) != sum(map(len, given)) else _aligned(rows, base.lengths, extra)
    return Tried(name=name, what=what, put_back=put_back, found=base.found_with(exact))


def _aligned(rows_NF: Tensor, lengths: Sequence[int], extra: int) -> Tensor:
    """The rows of the texts' own tokens, of runs with so many more in front; NaN for one that did not run."""
    pieces = rows_NF.double().split([length + extra for length in lengths])
    if extra >= 0:
        return torch.cat([piece[extra:] for piece in pieces])
    return torch.cat([torch.cat([torch.full_like(piece[:1], math.nan), piece]) for piece in pieces])


def _positions(base: Base) -> Iterator[Tried]:
    """Positions that begin at 1, and those that count pads."""
    side = base.side(positions=Positions.EXPLICIT)
    calls = tuple(
        Call({**call.kwargs, "position_ids": call.kwargs["position_ids"] + 1}, call.forward)
        for call in side.calls
        if "position_ids" in call.kwargs
    )
    for what, other in (
        ("positions begin at 1", replace(side, calls=calls) if calls else None),
        ("positions count the pads on the left", base.side(positions=Positions.IMPLICIT, layout=Layout.PADDED_LEFT)),
    ):
        if other is not None:
            exact = rows_of(base.quantity, exact_outputs(other), base.token_ids)
            put_back = "pass position_ids that begin at 0 in each text"
            yield Tried(
                name="positions",
                what=what,
                put_back=put_back,
                found=base.found_with(exact),
            )


def _one_text(base: Base) -> Iterator[Tried]:
    """All texts as one: packed texts that see each other."""
    if len(base.token_ids) < 2 or base.quantity not in (LOGITS, LOG_PROBABILITIES):
        return
    if not has_cache(base.model, causal=bool(base.cell.checkpoint.causal)):
        return
    joined = [list(itertools.chain.from_iterable(base.token_ids))]
    outputs = exact_outputs(base.side(joined))
    exact = rows_of(base.quantity, outputs, joined if base.quantity == LOGITS else base.token_ids)
    yield Tried(
        name="packed as one text",
        what="each text sees those before it: packed into one row and not kept apart",
        put_back="pass position_ids that begin at 0 in each text, or a mask that keeps them apart; without a cache",
        found=base.found_with(exact),
    )
