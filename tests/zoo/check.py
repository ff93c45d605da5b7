"""What the zoo knows of its pairs by itself, without the verdict: plain differences, native and replayed in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.zoo.pairs import PairModels
from tests.zoo.parts import main_output


class Float64Islands(TorchFunctionMode):
    """Turns every upcast to float32 in a model's code into one to float64, so that a replay is float64 throughout."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def widen(argument: Any) -> Any:
            return torch.float64 if argument is torch.float32 else argument

        if func is Tensor.float:
            return args[0].double()
        return func(*map(widen, args), **{name: widen(value) for name, value in (kwargs or {}).items()})


def relative_difference(reference: Tensor, candidate: Tensor) -> float:
    """|reference - candidate| / |reference| in the L2 norm, in float64."""
    return float((reference.double() - candidate.double()).norm() / reference.double().norm())


def real_tokens(output: Tensor, mask: Tensor | None) -> Tensor:
    """Outputs of the real tokens [N, F] in row-major order: all where there is no mask, a pooled [B, F] as it is."""
    if output.ndim == 2:
        return output
    return output[mask.bool()] if mask is not None else output.flatten(0, 1)


def outputs(models: PairModels) -> tuple[Tensor, Tensor]:
    """The outputs of both sides over the tokens that both have, in the same order."""
    reference_inputs, candidate_inputs = models.inputs, models.candidate_inputs or models.inputs
    masks = [inputs.get("attention_mask") for inputs in (reference_inputs, candidate_inputs)]
    with torch.no_grad():
        reference = main_output(models.reference(**reference_inputs))
        candidate = main_output(models.candidate(**candidate_inputs))
    if masks[1] is None and reference.shape == candidate.shape:
        masks[1] = masks[0]
    return real_tokens(reference, masks[0]), real_tokens(candidate, masks[1])


def leaves(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The paths and tensors of an output of nested mappings, sequences and dataclasses; numbers become tensors."""
    if isinstance(output, (Tensor, bool, int, float)):
        yield path, torch.as_tensor(output)
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from leaves(value, f"{path}.{name}")
    elif isinstance(output, (tuple, list)):
        for index, value in enumerate(output):
            yield from leaves(value, f"{path}.{index}")
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from leaves(vars(output), path)


def leaf_difference(reference: Tensor, candidate: Tensor) -> float:
    """The relative difference over what both have; other elements that are not finite count as infinitely far off.

    Elements beyond 1e20 are masks: they are not measured, so that they do not hide the rest.
    """
    if reference.ndim != candidate.ndim:
        return torch.inf
    common = tuple(slice(min(sizes)) for sizes in zip(reference.shape, candidate.shape, strict=True))
    first, second = reference[common].double(), candidate[common].double()
    if not torch.equal(first.isfinite(), second.isfinite()):
        return torch.inf
    measured = first.isfinite() & (first.abs() < 1e20)
    first, second = first[measured], second[measured]
    return 0.0 if torch.equal(first, second) else float((first - second).norm() / first.norm().clamp(min=1e-30))


def leaf_differences(models: PairModels) -> dict[str, float]:
    """The relative difference of every leaf that both outputs have. Neither the models nor the inputs are spoiled."""
    with torch.no_grad():
        sides = [
            dict(leaves(deepcopy(model)(**deepcopy(inputs))))
            for model, inputs in (
                (models.reference, models.inputs),
                (models.candidate, models.candidate_inputs or models.inputs),
            )
        ]
    return {path: leaf_difference(value, sides[1][path]) for path, value in sides[0].items() if path in sides[1]}


def widened(model: nn.Module, narrow: dict[str, torch.dtype]) -> nn.Module:
    """A float64 copy: buffers keep their values as loaded, parameters go through the narrower dtype of both sides."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.data = parameter.data.to(narrow.get(name, parameter.dtype)).double()
    return copy.double()


def doubled(value: Any, other: Any) -> Any:
    """A float64 copy of the floating point tensors of an argument, through the narrower dtype of both sides."""
    if isinstance(value, Tensor) and value.is_floating_point():
        dtypes = [side.dtype for side in (value, other) if isinstance(side, Tensor) and side.is_floating_point()]
        return value.to(min(dtypes, key=lambda dtype: dtype.itemsize)).double()
    if isinstance(value, dict):
        others = other if isinstance(other, dict) else {}
        return {name: doubled(member, others.get(name)) for name, member in value.items()}
    if isinstance(value, list):
        others = other if isinstance(other, list) and len(other) == len(value) else [None] * len(value)
        return [doubled(member, partner) for member, partner in zip(value, others, strict=True)]
    return value


def as_float64(models: PairModels) -> PairModels:
    """The pair in float64; what the dtype that was asked for rounds in weights is rounded in both."""
    reference_dtypes, candidate_dtypes = (
        {name: parameter.dtype for name, parameter in side.named_parameters()}
        for side in (models.reference, models.candidate)
    )
    narrow = {
        name: min(dtype, candidate_dtypes.get(name, dtype), key=lambda dtype: dtype.itemsize)
        for name, dtype in reference_dtypes.items()
    }
    return PairModels(
        reference=widened(models.reference, narrow),
        candidate=widened(models.candidate, narrow),
        inputs=doubled(models.inputs, models.candidate_inputs),
        candidate_inputs=doubled(models.candidate_inputs or models.inputs, models.inputs),
    )


def replayed(models: PairModels) -> tuple[Tensor, Tensor]:
    """The outputs of both sides in float64."""
    with Float64Islands():
        return outputs(as_float64(models))


def replayed_leaves(models: PairModels) -> dict[str, float]:
    """The relative difference of every leaf in float64."""
    with Float64Islands():
        return leaf_differences(as_float64(models))


def differences(models: PairModels) -> tuple[float, float]:
    """The relative difference of the native outputs, and of the float64 replays."""
    return relative_difference(*outputs(models)), relative_difference(*replayed(models))
