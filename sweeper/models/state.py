"""Parameters and buffers of two models, side by side. Non-persistent buffers count: `state_dict()` hides them.

Of a streamed model (`streaming.py`) one parameter at a time is read from its file.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from sweeper.errors import AlignmentError
from sweeper.models.quantised import Quantised, quantised_state
from sweeper.models.swapping import Source
from sweeper.records.cell import StateDifference, StateFigures

Kind = Literal["parameter", "buffer", "non_persistent_buffer"]


# Elements whose difference in float64 is held at once: on a GPU few launches; on a CPU what its caches hold, and torch
# shares no more than 2^15 among threads, whose waiting takes longer. Three such tensors of an embedding can be more
# than a model.
_CHUNK = {"cuda": 2**22, "cpu": 2**15}


@dataclass(frozen=True)
class StateEntry:
    """A parameter or buffer.

    Attributes:
        held: the model's own tensor, as it is stored; without values where the model is streamed.
        owner, leaf: the module it belongs to, and its name there.
        quantised: the weight as it is stored; None where it is stored as the numbers that it is.
    """

    kind: Kind
    held: Tensor
    owner: nn.Module
    leaf: str
    quantised: Quantised | None = None

    @property
    def tensor(self) -> Tensor:
        """Shared with the model. Of a streamed one read now, to the host: the device may lack the room.

        Of a quantised one the numbers that it stands for.
        """
        if self.quantised is not None:
            return self.quantised.values()
        source = self._source
        if source is not None:
            return source.read(torch.device("cpu"))
        if not self.held.is_meta:
            return self.held
        with align_module_device(self.owner, execution_device=torch.device("cpu")):  # accelerate has it elsewhere
            return self.owner.get_parameter(self.leaf).detach()

    @property
    def _source(self) -> Source | None:
        return Source.of(getattr(self.owner, self.leaf, None))

    @property
    def key(self) -> Hashable:
        """What tells the values of a streamed one from others, without reading them; None of others."""
        return None if self._source is None else self._source.key

    def is_same(self, other: StateEntry) -> bool:
        """Whether both are streamed from one place in the same way: the same values, which need not be read."""
        return self.key is not None and self.key == other.key

    @property
    def stored(self) -> bool:
        """Whether a file holds it, in a floating-point dtype, as it is."""
        return self.kind != "non_persistent_buffer" and self.held.is_floating_point() and self.quantised is None

    @property
    def dtype(self) -> str:
        """The dtype by name, or what a quantised tensor is stored as."""
        return str(self.held.dtype).removeprefix("torch.") if self.quantised is None else self.quantised.scheme


def state_of(model: nn.Module) -> dict[str, StateEntry]:
    """Every parameter and buffer by qualified name, tied ones under each; shared with the model, not copied.

    A quantised weight is a parameter, even where its module has packed it away.
    """
    entries = {}
    modules = dict(model.named_modules(remove_duplicate=False))  # a scripted model looks none up by name
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        entries[name] = StateEntry("parameter", parameter.detach(), modules[owner], leaf)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            kind: Kind = "non_persistent_buffer" if name in module._non_persistent_buffers_set else "buffer"
            entries[f"{prefix}.{name}" if prefix else name] = StateEntry(kind, buffer.detach(), module, name)
        for weight in quantised_state(module):
            name = f"{prefix}.{weight.leaf}" if prefix else weight.leaf
            entries[name] = StateEntry("parameter", weight.stored.detach(), module, weight.leaf, weight)
    return entries


def compare_state(reference: Mapping[str, StateEntry], candidate: Mapping[str, StateEntry]) -> StateFigures:
    """Compares values and dtypes name by name, with two transfers from the device in all.

    Raises:
        AlignmentError: a name that only one side has, or two shapes.
    """
    _check_names_and_shapes(reference, candidate)
    same_dtype = [name for name, entry in reference.items() if entry.held.dtype == candidate[name].held.dtype]
    shared = {name for name in same_dtype if _shares(reference[name], candidate[name])}
    read = [name for name in same_dtype if name not in shared]
    equal = _gathered({name: _equal(reference[name].tensor, candidate[name].tensor) for name in read})
    unequal = [name for name in reference if name not in shared and not equal.get(name)]
    max_abs = _gathered({name: _max_abs(reference[name].tensor, candidate[name].tensor) for name in unequal})
    pairs = [_difference(name, entry, candidate[name], max_abs.get(name, 0.0)) for name, entry in reference.items()]
    parameters = [pair for pair in pairs if pair.kind == "parameter"]
    buffers = [pair for pair in pairs if pair.kind != "parameter"]
    return StateFigures(
        parameters=len(parameters),
        parameters_equal=sum(pair.values_equal for pair in parameters),
        buffers=len(buffers),
        buffers_equal=sum(pair.values_equal for pair in buffers),
        same_dtype=len(same_dtype),
        differing=tuple(
            pair for pair in pairs if not pair.values_equal or pair.reference_dtype != pair.candidate_dtype
        ),
    )


def _check_names_and_shapes(reference: Mapping[str, StateEntry], candidate: Mapping[str, StateEntry]) -> None:
    only_reference = [name for name in reference if name not in candidate]
    only_candidate = [name for name in candidate if name not in reference]
    if only_reference or only_candidate:
        raise AlignmentError(f"state only in the reference: {only_reference}; only in the candidate: {only_candidate}")
    for name, entry in reference.items():
        left, right = tuple(entry.held.shape), tuple(candidate[name].held.shape)
        if left != right:
            raise AlignmentError(f"{name}: shape {left} in the reference, {right} in the candidate")


def _gathered(values: dict[str, Tensor]) -> dict[str, float]:
    """Numbers on the host, brought there in one transfer."""
    if not values:
        return {}
    device = next(iter(values.values())).device
    return dict(zip(values, torch.stack([value.to(device) for value in values.values()]).tolist(), strict=True))


def _shares(reference: StateEntry, candidate: StateEntry) -> bool:
    """Whether two tensors of one dtype are the same in memory, or in a file."""
    if reference.is_same(candidate):
        return True
    in_memory = all(entry.quantised is None and not entry.held.is_meta for entry in (reference, candidate))
    streamed = reference.key is not None or candidate.key is not None
    return in_memory and not streamed and reference.held.data_ptr() == candidate.held.data_ptr()


def _equal(left: Tensor, right: Tensor) -> Tensor:
    """Whether two tensors of one dtype are sure to hold the same values."""
    return left.eq(right.to(left.device)).all()


def pieces(left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors of one shape side by side, so many elements at once that copies of them in float64 are small."""
    chunk = _CHUNK["cpu" if left.device.type == "cpu" else "cuda"]
    left, right = left.flatten(), right.to(left.device).flatten()
    if len(left) <= chunk:
        return iter([(left, right)])
    return zip(left.split(chunk), right.split(chunk), strict=True)


def _max_abs(left: Tensor, right: Tensor) -> Tensor:
    if not left.numel():
        return left.new_zeros((), dtype=torch.float64)
    most = [(mine.double() - other.double()).abs_().max() for mine, other in pieces(left, right)]
    return torch.stack(most).max() if len(most) > 1 else most[0]


def _difference(name: str, reference: StateEntry, candidate: StateEntry, max_abs: float) -> StateDifference:
    return StateDifference(
        name=name,
        kind=reference.kind,
        reference_dtype=reference.dtype,
        candidate_dtype=candidate.dtype,
        values_equal=max_abs == 0.0,
        max_abs=max_abs,
    )
