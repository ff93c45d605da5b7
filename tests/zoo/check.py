"""What the zoo knows of its pairs by itself, without the verdict: plain differences, native and replayed in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """The native difference of each leaf that both sides have, pads and all: what may be where the main output is not.

    A leaf of several calls has the largest. Neither the models nor the inputs are spoiled.
    """
    worst: dict[str, float] = {}
    for inputs in zip(calls(models.inputs), calls(models.candidate_inputs or models.inputs), strict=True):
        with torch.no_grad():
            reference, candidate = (
                dict(leaves(deepcopy(model)(**arguments)))
                for model, arguments in zip((models.reference, models.candidate), inputs, strict=True)
            )
        for path in reference.keys() & candidate.keys():
            worst[path] = max(worst.get(path, 0.0), leaf_difference(reference[path], candidate[path]))
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
