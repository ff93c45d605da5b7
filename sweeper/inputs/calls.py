"""A call of any model: which of its arguments hold tokens, and where the real ones are.

A token map belongs to an argument. `attention_mask` speaks of `input_ids` (or of the embeddings or samples in its
place), `decoder_attention_mask` of `decoder_input_ids`. Arguments are found however deep they lie in mappings and
sequences, by their own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sweeper.errors import AlignmentError, ConfigError
from sweeper.inputs.layout import Tokens, step_bounds

# Arguments of a decoder beside an encoder, and arguments that lie beside a text.
_DECODER = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
_BESIDE = ("pixel", "image", "video", "audio", "input_features", "input_values")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_MASKS = ("attention_mask", "decoder_attention_mask", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class Decoding:
    """How a call is made in steps.

    Attributes:
        columns: of each step.
        cache: what the steps before lie in.
        bounds: `step_bounds` of the whole call, where the tokens of one of its texts are looked at; None: of these.
    """

    columns: int
    cache: Literal["dynamic", "static", "quantised"]
    bounds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Call:
    """One call of a model.

    Attributes:
        kwargs: what the model is called with.
        forward: where its real tokens are; of a cell, also which texts they are of.
        decoding: the model is called in steps, each with some of the columns, behind a cache; None: once.
    """

    kwargs: dict[str, Any]
    forward: Tokens
    decoding: Decoding | None = None

    @property
    def steps(self) -> int:
        """How often the model is called."""
        return 1 if self.decoding is None else len(self.step_bounds) - 1

    @property
    def step_bounds(self) -> tuple[int, ...]:
        """The columns where its steps begin, and the end; of a call that is made in steps."""
        assert self.decoding is not None, "it is made at once"
        return self.decoding.bounds or step_bounds(self.forward, self.decoding.columns)

    @property
    def has_rows(self) -> bool:
        """Whether every tensor has a row for each of several texts, so that rows can be called in another order; not
        where it lies in a sequence, or in what may hold some (a cache)."""
        B = self.forward.shape[0]
        values = list(_values(self.kwargs))
        tensors = [value for value in values if isinstance(value, Tensor)]
        known = all(isinstance(value, (Tensor, *_PLAIN)) for value in values)
        return B > 1 and known and all(tensor.dim() > 0 and len(tensor) == B for tensor in tensors)

    def of_rows(self, rows: Sequence[int]) -> Call:
        """The same call with these rows of its tensors only, in this order."""
        kwargs = mapped(self.kwargs, lambda tensor: tensor[torch.tensor(rows, device=tensor.device)])
        positions = dict(tensors_in(kwargs)).get("position_ids")
        decoding = self.decoding and replace(self.decoding, bounds=None)
        return replace(self, kwargs=kwargs, forward=_of_rows(self.forward, rows, positions), decoding=decoding)

    def of_text(self, place: int) -> Call:
        """The same call, in the same steps, of which the tokens of one text are looked at."""
        lengths = self.forward.lengths
        flat_N = self.forward.flat_N.split(list(lengths))[place]
        decoding = self.decoding and replace(self.decoding, bounds=self.step_bounds)
        return replace(self, forward=replace(self.forward, flat_N=flat_N, lengths=(lengths[place],)), decoding=decoding)

    @property
    def token_N(self) -> Tensor | None:
        """The real token ids that the model reads, an encoder's where there is one, on the CPU; None where it is called
        with something else."""
        given, tokens = _given(self.kwargs), self.forward.encoder or self.forward
        ids_BT = given[_sources(given)[0]]
        if ids_BT.is_floating_point() or ids_BT.shape != tokens.shape:
            return None
        return ids_BT.flatten()[tokens.flat_N].cpu()


def _of_rows(tokens: Tokens, rows: Sequence[int], positions: Tensor | None) -> Tokens:
    real_BT = torch.zeros(tokens.shape, dtype=torch.bool)
    real_BT.view(-1)[tokens.flat_N.cpu()] = True
    few, frames_of = token_map(real_BT[torch.tensor(rows)], positions, tokens.flat_N.device), tokens.frames

    def frames(number: int) -> Tokens | None:
        all_frames = frames_of(number) if frames_of is not None else None
        return None if all_frames is None else _of_rows(all_frames, rows, None)

    encoder = None if tokens.encoder is None else _of_rows(tokens.encoder, rows, None)
    return replace(few, encoder=encoder, beside=tokens.beside, frames=frames_of and frames)


def is_decoders(name: str) -> bool:
    """Whether an argument is a decoder's, where there is an encoder too."""
    return name.startswith("decoder_") or name == "labels"


def is_beside(name: str) -> bool:
    """Whether an argument holds pictures or sounds: no tokens, where it lies beside a text."""
    return name.startswith(_BESIDE)


def _values(kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """What the arguments are, those in mappings too."""
    for value in kwargs.values():
        if isinstance(value, Mapping):
            yield from _values(value)
        else:
            yield value


def _given(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors by name; a sequence of tensors of one shape is a batch of them."""
    if isinstance(value, Mapping):
        return {name: tensor for key, item in value.items() for name, tensor in _given(item, str(key)).items()}
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, Tensor) for item in value) and len({(t.shape, t.dtype) for t in value}) == 1:
            return {name: torch.stack(value)}
        return {key: tensor for item in value for key, tensor in _given(item, name).items()}
    return {name: value} if isinstance(value, Tensor) else {}


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in mappings and sequences, with the nearest name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item, name)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with every tensor changed; mappings become dictionaries, but for those that can be copied."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: mapped(item, change) for key, item in value.items()}
        if type(value) is dict or not hasattr(value, "copy"):
            return items
        same_kind = value.copy()
        same_kind.update(items)
        return same_kind
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, change) for item in value)
    return value


def calls_of(inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The keyword arguments of each call.

    Raises:
        ConfigError: a call without a tensor.
    """
    calls = [dict(inputs)] if isinstance(inputs, Mapping) else [dict(call) for call in inputs]
    if not calls or not all(any(True for _ in tensors_in(call)) for call in calls):
        raise ConfigError("inputs: give the model's keyword tensors, e.g. {'input_ids': ids} (given: no tensor)")
    return calls


def call_of(kwargs: dict[str, Any], model: nn.Module, mask_BT: Tensor | None) -> Call:
    """A call with its token map.

    Args:
        mask_BT: the mask of what it reads, of one side or the other; None where neither has one.
    """
    given = _given(kwargs)
    read = _sources(given)[0]
    tokens = replace(
        _argument_map(given[read], mask_BT, given.get("position_ids")), frames=_frames(model, given[read], mask_BT)
    )
    names = _DECODER if _is_encoder_decoder(model) else _DECODER[:-1]
    decoder = next((name for name in names if name in given), None)
    if decoder is None:
        beside = any(name != read and is_beside(name) for name in given)
        return Call(kwargs, replace(tokens, beside=beside))
    mask = given.get("decoder_attention_mask", given[decoder] != -100 if decoder == "labels" else None)
    own = _argument_map(given[decoder], mask, given.get("decoder_position_ids"))
    return Call(kwargs, replace(own, encoder=tokens))


def _is_encoder_decoder(model: nn.Module) -> bool:
    configs = (getattr(module, "config", None) for module in model.modules())
    return any(getattr(config, "is_encoder_decoder", False) is True for config in configs)


def shared_masks(
    reference: Sequence[Mapping[str, Any]], candidate: Sequence[Mapping[str, Any]]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The `attention_mask` of each call. A side that was called without one on the same ids reads the same pads: they
    stay pads."""
    left, right = ([_given(kwargs) for kwargs in calls] for calls in (reference, candidate))
    masks, others = ([_mask(given) for given in calls] for calls in (left, right))
    if len(left) != len(right) or not all(map(_same_read, left, right)):
        return masks, others
    shared = [one if one is not None else other for one, other in zip(masks, others, strict=True)]
    return shared, shared


def _mask(given: Mapping[str, Tensor]) -> Tensor | None:
    mask = given.get("attention_mask")
    return mask.bool().cpu() if mask is not None and mask.dim() == 2 else None


def _same_read(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether both sides read the same; or one ids and the other embeddings of as many."""
    one, other = left[_sources(left)[0]], right[_sources(right)[0]]
    if one.is_floating_point() != other.is_floating_point():
        return one.shape[:2] == other.shape[:2]
    return one.shape == other.shape and torch.equal(one.cpu(), other.cpu().to(one.dtype))


def _sources(given: Mapping[str, Tensor]) -> list[str]:
    """What a model reads, the likeliest first: ids, embeddings in their place, else what holds real numbers."""
    names = [name for name in given if name not in _DECODER and name not in _MASKS] or list(given)
    dims = {name: given[name].dim() for name in names}
    real = [name for name in names if given[name].is_floating_point() and dims[name] > 0]
    whole = [name for name in names if dims[name] > 0]
    return [*(name for name in ("input_ids", "inputs_embeds") if name in names), *real, *whole, *names]


def _argument_map(source: Tensor, mask_BT: Tensor | None, positions: Tensor | None) -> Tokens:
    mask_BT = None if mask_BT is None else mask_BT.bool().cpu()
    masked = mask_BT is not None and mask_BT.shape == source.shape
    if source.dim() == 2 and (masked or not source.is_floating_point()):
        B, T = source.shape  # ids, or samples of sound under a mask
    elif source.dim() >= 3:
        B, T = source.shape[:2]
    else:
        B, T = len(source) if source.dim() else 1, 1
    if mask_BT is None or mask_BT.shape != (B, T):
        mask_BT = torch.ones((B, T), dtype=torch.bool)
    return token_map(mask_BT, positions, source.device)


def token_map(mask_BT: Tensor, positions: Tensor | None, device: torch.device) -> Tokens:
    """The tokens that a mask keeps."""
    B, T = mask_BT.shape
    row_N, column_N = mask_BT.nonzero(as_tuple=True)
    starts_N = _text_starts(positions, mask_BT.shape, row_N, column_N)
    lengths = tuple(torch.bincount(starts_N.cumsum(0) - 1).tolist())
    return Tokens(shape=(B, T), flat_N=(row_N * T + column_N).to(device), lengths=lengths)


def _text_starts(positions: Tensor | None, shape: tuple[int, ...], row_N: Tensor, column_N: Tensor) -> Tensor:
    """Whether a text starts at each real token: where a new row does, and inside a row where positions restart at 0."""
    starts_N = torch.ones_like(row_N)
    starts_N[1:] = (row_N[1:] != row_N[:-1]).long()
    if positions is not None and positions.dim() == 2 and positions.shape[1] == shape[1] and positions.any():
        position_N = positions.cpu().expand(shape)[row_N, column_N]
        starts_N[1:] |= (position_N[1:] == 0).long()
    return starts_N


def _frames(model: nn.Module, source: Tensor, mask_BT: Tensor | None) -> Callable[[int], Tokens | None] | None:
    """What the model says of the frames that it makes of samples of sound; None where they have no mask."""
    if mask_BT is None or not source.is_floating_point() or mask_BT.shape[0] != len(source):
        return None
    says = "_get_feature_vector_attention_mask", "_get_feat_extract_output_lengths"
    speaker = next((module for module in model.modules() if any(hasattr(module, name) for name in says)), None)

    def frames(number: int) -> Tokens | None:
        kept_BT = _frame_mask(speaker, number, mask_BT)
        return None if kept_BT is None or kept_BT.shape[1] != number else token_map(kept_BT, None, source.device)

    return frames


def _frame_mask(speaker: Any, number: int, mask_BT: Tensor) -> Tensor | None:
    try:
        if hasattr(speaker, "_get_feature_vector_attention_mask"):
            kept_BT = speaker._get_feature_vector_attention_mask(number, mask_BT.long())
            return kept_BT.bool().cpu()
        if hasattr(speaker, "_get_feat_extract_output_lengths"):
            lengths_B = torch.as_tensor(speaker._get_feat_extract_output_lengths(mask_BT.sum(-1)))
            return torch.arange(number)[None] < lengths_B.cpu()[:, None]
    except (RuntimeError, TypeError, ValueError, IndexError):  # it says nothing of this number of frames
        return None
    return None


def check_same_tokens(reference: Sequence[Call], candidate: Sequence[Call]) -> None:
    """Raises AlignmentError where the two sides do not read the same texts, as far as both have ids."""
    numbers = [sum(len(call.forward.flat_N) for call in calls) for calls in (reference, candidate)]
    if numbers[0] != numbers[1]:
        raise AlignmentError(
            f"{numbers[0]} real tokens in the reference, {numbers[1]} in the candidate: "
            "mark pads with attention_mask [B, T]"
        )
    left, right = token_ids(reference), token_ids(candidate)
    if left is not None and right is not None and not torch.equal(left, right):
        token = int((left != right).nonzero()[0])
        raise AlignmentError(
            f"real token {token} is {int(left[token])} in the reference and {int(right[token])} in the candidate: "
            "both sides must read the same texts in the same order"
        )


def token_ids(calls: Sequence[Call]) -> Tensor | None:
    """The real token ids of all calls, [N], on the CPU; None where a call has none."""
    ids = [call.token_N for call in calls]
    return (
        torch.cat([token_N for token_N in ids if token_N is not None]) if all(one is not None for one in ids) else None
    )
