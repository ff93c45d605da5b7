"""What the zoo knows of its pairs by itself, without the verdict: plain differences, native and replayed in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def widened(model: nn.Module, narrow: dict[str, torch.dtype]) -> nn.Module:
    """A float64 copy: buffers keep their values as loaded, parameters go through the narrower dtype of both sides."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.data = parameter.data.to(narrow.get(name, parameter.dtype)).double()
    return copy.double()


def replayed(models: PairModels) -> tuple[Tensor, Tensor]:
    """The outputs of both sides in float64; what the dtype that was asked for rounds in weights is rounded in both."""
    reference_dtypes, candidate_dtypes = (
        {name: parameter.dtype for name, parameter in side.named_parameters()}
        for side in (models.reference, models.candidate)
    )
    narrow = {
        name: min(dtype, candidate_dtypes.get(name, dtype), key=lambda dtype: dtype.itemsize)
        for name, dtype in reference_dtypes.items()
    }
    inputs = [
        {name: value.double() if value.is_floating_point() else value for name, value in side.items()}
        for side in (models.inputs, models.candidate_inputs or models.inputs)
    ]
    with Float64Islands():
        return outputs(
            PairModels(
                reference=widened(models.reference, narrow),
                candidate=widened(models.candidate, narrow),
                inputs=inputs[0],
                candidate_inputs=inputs[1],
            )
        )


def differences(models: PairModels) -> tuple[float, float]:
    """The relative difference of the native outputs, and of the float64 replays."""
    return relative_difference(*outputs(models)), relative_difference(*replayed(models))
