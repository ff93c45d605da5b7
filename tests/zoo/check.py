"""What the zoo knows of its pairs by itself, without the verdict: plain differences, native and replayed in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.zoo.pairs import IDENTICAL, Inputs, Pair, PairModels
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
    """|reference - candidate| / |reference| in the L2 norm, in float64, over the columns of F that both have."""
    columns = min(reference.shape[-1], candidate.shape[-1])
    reference, candidate = (side[..., :columns].double() for side in (reference, candidate))
    return float((reference - candidate).norm() / reference.norm())


def real_tokens(output: Tensor, mask: Tensor | None) -> Tensor:
    """Outputs of the real tokens [N, F] in row-major order: all where there is no mask, a pooled [B, F] as it is."""
    if output.ndim == 2:
        return output
    return output[mask.bool()] if mask is not None else output.flatten(0, 1)


def output_mask(inputs: Inputs) -> Tensor | None:
    """The mask of the tokens that the outputs are of: the decoder's where a decoder has inputs of its own."""
    return inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")


def calls(inputs: Inputs | list[Inputs]) -> list[Inputs]:
    """Every call's inputs, as copies: a model may write into its arguments."""
    return deepcopy(inputs if isinstance(inputs, list) else [inputs])


def outputs(models: PairModels) -> tuple[Tensor, Tensor]:
    """The outputs of both sides over the tokens that both have, in the same order, call after call."""
    sides: tuple[list[Tensor], list[Tensor]] = [], []
    for inputs in zip(calls(models.inputs), calls(models.candidate_inputs or models.inputs), strict=True):
        masks = [output_mask(side) for side in inputs]
        with torch.no_grad():
            reference, candidate = (
                main_output(models.reference(**inputs[0])),
                main_output(models.candidate(**inputs[1])),
            )
        if masks[1] is None and reference.shape == candidate.shape:
            masks[1] = masks[0]
        for side, output, mask in zip(sides, (reference, candidate), masks, strict=True):
            side.append(real_tokens(output, mask))
    return torch.cat(sides[0]), torch.cat(sides[1])


def leaves(output: Any, name: str = "output") -> dict[str, Tensor]:
    """Every tensor of an output by its path; caches are left out."""
    if isinstance(output, Tensor):
        return {name: output}
    children: list[tuple[Any, Any]] = []
    if isinstance(output, Mapping):
        children = list(output.items())
    elif isinstance(output, tuple | list):
        children = list(enumerate(output))
    return {path: leaf for key, child in children for path, leaf in leaves(child, f"{name}.{key}").items()}


def leaf_difference(reference: Tensor, candidate: Tensor) -> float:
    """The relative difference of two leaves; infinite where they are not finite in the same places, or not alike."""
    if reference.shape != candidate.shape or not torch.equal(reference.isfinite(), candidate.isfinite()):
        return math.inf
    reference, candidate = (side[side.isfinite()].double() for side in (reference, candidate))
    difference = float((reference - candidate).norm())
    return difference / (float(reference.norm()) or 1.0) if difference else 0.0


def leaf_differences(models: PairModels) -> dict[str, float]:
    """The native difference of each leaf that both sides have, pads and all: what may be where the main output is not.

    A leaf of several calls has the largest.
    """
    worst: dict[str, float] = {}
    for inputs in zip(calls(models.inputs), calls(models.candidate_inputs or models.inputs), strict=True):
        with torch.no_grad():
            reference, candidate = leaves(models.reference(**inputs[0])), leaves(models.candidate(**inputs[1]))
        for name in reference.keys() & candidate.keys():
            worst[name] = max(worst.get(name, 0.0), leaf_difference(reference[name], candidate[name]))
    return worst


def widened(model: nn.Module, narrow: dict[str, torch.dtype]) -> nn.Module:
    """A float64 copy: buffers keep their values as loaded, parameters go through the narrower dtype of both sides."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.data = parameter.data.to(narrow.get(name, parameter.dtype)).double()
    for module in copy.modules():
        if hasattr(module, "set_experts_implementation"):
            module.set_experts_implementation("eager")  # the grouped kernel knows no float64
    return copy.double()


def doubled(inputs: Inputs, others: Inputs) -> Inputs:
    """Floating tensors in float64, through the narrower dtype of both sides; anything else as it is."""

    def widen(name: str, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        dtypes = (value.dtype, others[name].dtype if name in others else value.dtype)
        return value.to(min(dtypes, key=lambda dtype: dtype.itemsize)).double()

    return {name: widen(name, value) for name, value in inputs.items()}


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
    sides = calls(models.inputs), calls(models.candidate_inputs or models.inputs)
    pairs = [(doubled(*both), doubled(*both[::-1])) for both in zip(*sides, strict=True)]
    with Float64Islands():
        return outputs(
            PairModels(
                reference=widened(models.reference, narrow),
                candidate=widened(models.candidate, narrow),
                inputs=[reference for reference, _ in pairs],
                candidate_inputs=[candidate for _, candidate in pairs],
            )
        )


def differences(models: PairModels) -> tuple[float, float]:
    """The relative difference of the native outputs, and of the float64 replays."""
    return relative_difference(*outputs(models)), relative_difference(*replayed(models))


def disagreement(pair: Pair, *, stored: bool = False) -> str:
    """What plain differences say against a pair's answer; empty where they agree.

    A harmless pair is one function in float64, up to float32's rounding where its candidate's state was computed and
    `stored`. A harmful one differs somewhere natively: an error that follows the dtype is not there in float64, and one
    of a second output is not there in the main one.
    """
    models = pair.build()
    dtype = str(next(models.candidate.parameters()).dtype)
    if dtype != f"torch.{pair.dtype}":
        return f"the candidate computes in {dtype}"
    native = relative_difference(*outputs(models))
    if pair.answer == "harmful":
        leaves_differ = models.candidate_inputs is None and any(leaf_differences(models).values())
        return "" if native != 0 or leaves_differ else "the outputs are the same"
    replay = relative_difference(*replayed(models))
    if pair.allowed == IDENTICAL and native != 0:
        return f"the outputs differ by {native:.1e}"
    return "" if replay < (1e-6 if stored else 1e-9) else f"the replays differ by {replay:.1e}"
