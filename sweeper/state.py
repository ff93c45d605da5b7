"""Parameters and buffers of two models, side by side. Non-persistent buffers count: `state_dict()` hides them.

Of a streamed model (`streaming.py`) one parameter at a time is read from its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from sweeper.errors import AlignmentError
from sweeper.results import StateDifference, StateFigures

Kind = Literal["parameter", "buffer", "non_persistent_buffer"]


# Elements whose difference in float64 is held at once: three such tensors of an embedding can be more than a model.
_CHUNK = 2**22


@dataclass(frozen=True)
class StateEntry:
    """A parameter or buffer.

    Attributes:
        held: the model's own tensor; without values where the model is streamed.
        owner, leaf: the module it belongs to, and its name there.
    """

    kind: Kind
    held: Tensor
    owner: nn.Module
    leaf: str

    @property
    def tensor(self) -> Tensor:
        """Shared with the model; of a streamed one, read from its file now."""
        if not self.held.is_meta:
            return self.held
        with align_module_device(self.owner):
            return self.owner.get_parameter(self.leaf).detach()


def state_of(model: nn.Module) -> dict[str, StateEntry]:
    """Every parameter and buffer by qualified name, tied ones under each; shared with the model, not copied."""
    entries = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        entries[name] = StateEntry("parameter", parameter.detach(), model.get_submodule(owner), leaf)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            kind: Kind = "non_persistent_buffer" if name in module._non_persistent_buffers_set else "buffer"
            entries[f"{prefix}.{name}" if prefix else name] = StateEntry(kind, buffer.detach(), module, name)
    return entries


def compare_state(reference: Mapping[str, StateEntry], candidate: Mapping[str, StateEntry]) -> StateFigures:
    """Compares values and dtypes name by name.

    Raises:
        AlignmentError: a name that only one side has, or two shapes.
    """
    _check_names(reference, candidate)
    pairs = {name: _difference(name, entry, candidate[name]) for name, entry in reference.items()}
    parameters = [pair for name, pair in pairs.items() if reference[name].kind == "parameter"]
    buffers = [pair for name, pair in pairs.items() if reference[name].kind != "parameter"]
    return StateFigures(
        parameters=len(parameters),
        parameters_equal=sum(pair.values_equal for pair in parameters),
        buffers=len(buffers),
        buffers_equal=sum(pair.values_equal for pair in buffers),
        same_dtype=sum(pair.reference_dtype == pair.candidate_dtype for pair in pairs.values()),
        differing=tuple(
            pair for pair in pairs.values() if not pair.values_equal or pair.reference_dtype != pair.candidate_dtype
        ),
    )


def _check_names(reference: Mapping[str, StateEntry], candidate: Mapping[str, StateEntry]) -> None:
    only_reference = [name for name in reference if name not in candidate]
    only_candidate = [name for name in candidate if name not in reference]
    if only_reference or only_candidate:
        raise AlignmentError(f"state only in the reference: {only_reference}; only in the candidate: {only_candidate}")


def _difference(name: str, reference: StateEntry, candidate: StateEntry) -> StateDifference:
    left, right = reference.tensor, candidate.tensor
    if left.shape != right.shape:
        shapes = f"{tuple(left.shape)} in the reference, {tuple(right.shape)} in the candidate"
        raise AlignmentError(f"{name}: shape {shapes}")
    max_abs = _max_abs(left, right.to(left.device))
    return StateDifference(
        name=name,
        kind=reference.kind,
        reference_dtype=_dtype_name(left),
        candidate_dtype=_dtype_name(right),
        values_equal=max_abs == 0.0,
        max_abs=max_abs,
    )


def _max_abs(left: Tensor, right: Tensor) -> float:
    if left.numel() == 0 or (left.data_ptr() == right.data_ptr() and left.dtype == right.dtype):
        return 0.0
    if left.dtype == right.dtype and torch.equal(left, right):
        return 0.0
    chunks = zip(left.flatten().split(_CHUNK), right.flatten().split(_CHUNK), strict=True)
    return float(torch.stack([(mine.double() - other.double()).abs().max() for mine, other in chunks]).max())


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
