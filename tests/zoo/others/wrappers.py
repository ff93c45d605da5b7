"""Pairs whose candidate is compiled, traced, wrapped, averaged or offloaded: other objects around a model."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.zoo.others import convolutional, sequential
from tests.zoo.others.convolutional import built, noisy, photos
from tests.zoo.others.outputs import Scored
from tests.zoo.others.sequential import frames, tokens
from tests.zoo.others.transformer_models import pixels, tiny
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Inputs, Pair, PairModels, harmful, harmless


class DistributedLike(nn.Module):
    """Holds a model as `module` and hands arguments on, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.eval()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)


def compiled(model: nn.Module, backend: str, inputs: Inputs | None = None) -> Any:
    """A compiled copy; called once where inputs are given."""
    candidate: Any = torch.compile(deepcopy(model), backend=backend)
    if inputs is not None:
        with torch.no_grad():
            candidate(**inputs)
    return candidate


def traced(model: nn.Module, inputs: Inputs) -> Any:
    """A traced copy."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.trace(deepcopy(model), example_kwarg_inputs=deepcopy(inputs), check_trace=False)


def offloaded(model: nn.Module) -> nn.Module:
    """A copy whose weights accelerate keeps aside and puts in place for the time of each call."""
    from accelerate import cpu_offload

    return cpu_offload(deepcopy(model), execution_device=torch.device("cpu"))


def set_negated(weight: torch.Tensor) -> None:
    """Negate one row in place."""
    with torch.no_grad():
        weight[3].neg_()


@harmless("compiled/gpt_float32")
def compiled_gpt() -> PairModels:
    """torch.compile with the backend eager, not called yet."""
    model = built(sequential.Gpt)
    return PairModels(reference=model, candidate=compiled(model, "eager"), inputs=tokens())


@harmless("compiled/scored_bfloat16")
def compiled_scored() -> PairModels:
    """torch.compile with the backend aot_eager, called before."""
    model, inputs = built(Scored, torch.bfloat16), frames(torch.bfloat16)
    return PairModels(reference=model, candidate=compiled(model, "aot_eager", inputs), inputs=inputs)


@harmless("compiled/vit_float32")
def compiled_in_place_vit() -> PairModels:
    """model.compile(), which keeps the names, called before."""
    model = tiny("vit", attention="sdpa")
    candidate = deepcopy(model)
    candidate.compile(backend="aot_eager")
    with torch.no_grad():
        candidate(**pixels())
    return PairModels(reference=model, candidate=candidate, inputs=pixels())


@harmless("compiled/unet_bfloat16")
def compiled_part_unet() -> PairModels:
    """One block of a UNet is compiled with aot_eager, in bfloat16 against float32."""
    candidate = built(convolutional.UNet, torch.bfloat16)
    candidate.middle = compiled(candidate.middle, "aot_eager")
    return PairModels(
        reference=built(convolutional.UNet),
        candidate=candidate,
        inputs=noisy(),
        candidate_inputs=noisy(torch.bfloat16),
    )


@harmless("traced/convnet_float32")
def traced_convnet() -> PairModels:
    """torch.jit.trace of a convolutional net."""
    model = built(convolutional.ResidualNet)
    return PairModels(reference=model, candidate=traced(model, photos()), inputs=photos())


@harmless("traced/gpt_float16")
def traced_gpt() -> PairModels:
    """torch.jit.trace of a GPT in float16."""
    model = built(sequential.Gpt, torch.float16)
    return PairModels(reference=model, candidate=traced(model, tokens()), inputs=tokens())


@harmless("wrapped/gpt_float32", allowed=IDENTICAL)
def wrapped_gpt() -> PairModels:
    """nn.DataParallel without a GPU: names begin with `module`."""
    model = built(sequential.Gpt)
    parallel = nn.DataParallel(deepcopy(model)).eval().cpu()
    parallel.device_ids = []  # on the CPU, also where there are GPUs
    return PairModels(reference=model, candidate=parallel, inputs=tokens())


@harmless("wrapped/convnet_bfloat16", allowed=IDENTICAL)
def averaged_convnet() -> PairModels:
    """torch's AveragedModel before any update: names begin with `module`, and there is a counter."""
    model = built(convolutional.ResidualNet, torch.bfloat16)
    candidate = AveragedModel(model).eval()
    return PairModels(reference=model, candidate=candidate, inputs=photos(torch.bfloat16))


@harmless("wrapped/scored_float32")
def wrapped_both_scored() -> PairModels:
    """A wrapper around a compiled model on one side, another wrapper on the other."""
    model = built(Scored)
    return PairModels(
        reference=DistributedLike(deepcopy(model)),
        candidate=DistributedLike(compiled(model, "eager")),
        inputs=frames(),
    )


@harmless("wrapped/vit_bfloat16")
def wrapped_vit() -> PairModels:
    """A ViT against one in bfloat16 that is wrapped as DistributedDataParallel wraps it."""
    return PairModels(
        reference=tiny("vit"),
        candidate=DistributedLike(tiny("vit", torch.bfloat16)),
        inputs=pixels(),
        candidate_inputs=pixels(torch.bfloat16),
    )


@harmless("offloaded/vit_float32", allowed=IDENTICAL)
def offloaded_vit() -> PairModels:
    """accelerate's cpu_offload: between calls the parameters are on the meta device."""
    model = tiny("vit")
    return PairModels(reference=model, candidate=offloaded(model), inputs=pixels())


@harmless("offloaded/gpt_bfloat16", allowed=IDENTICAL)
def offloaded_gpt() -> PairModels:
    """The same for a GPT in bfloat16."""
    model = built(sequential.Gpt, torch.bfloat16)
    return PairModels(reference=model, candidate=offloaded(model), inputs=tokens())


@harmful("wrapped_change/gpt_float32", allowed=STATE, cause=("c_proj",))
def compiled_change_gpt() -> PairModels:
    """A compiled copy of which one row of one weight is negated."""
    model = built(sequential.Gpt)
    changed = deepcopy(model)
    set_negated(changed.blocks[1].c_proj.weight)
    return PairModels(reference=model, candidate=compiled(changed, "eager"), inputs=tokens())


@harmful("wrapped_change/convnet_bfloat16", allowed=STATE, cause=("conv",))
def averaged_change_convnet() -> PairModels:
    """A model averaged with one that differs in one row of a kernel: the row is near zero in the average."""
    model = built(convolutional.ResidualNet, torch.bfloat16)
    other = deepcopy(model)
    set_negated(other.conv.weight)
    candidate = AveragedModel(model).eval()
    candidate.update_parameters(model)
    candidate.update_parameters(other)
    return PairModels(reference=model, candidate=candidate, inputs=photos(torch.bfloat16))


@harmful("wrapped_change/vit_float32", allowed=STATE, cause=("fc1",))
def offloaded_change_vit() -> PairModels:
    """A model that accelerate offloads, one row of one weight negated."""
    model = tiny("vit")
    changed = deepcopy(model)
    set_negated(changed.layers[1].mlp.fc1.weight)
    return PairModels(reference=model, candidate=offloaded(changed), inputs=pixels())


@harmful("wrapped_change/traced_float32", allowed=SEMANTIC, cause=("eps", "norm", "traced"))
def traced_change_convnet() -> PairModels:
    """A traced copy whose BatchNorm has eps 0.1 for 1e-5: its code cannot be looked into."""
    model = built(convolutional.ResidualNet)
    changed = deepcopy(model)
    changed.conv_norm.eps = 0.1
    return PairModels(reference=model, candidate=traced(changed, photos()), inputs=photos())


@harmful("wrapped_change/traced_bfloat16", allowed=STATE, cause=("lm_head",))
def traced_weight_gpt() -> PairModels:
    """A traced copy of which one row of the head is negated."""
    model = built(sequential.Gpt, torch.bfloat16)
    changed = deepcopy(model)
    set_negated(changed.lm_head.weight)
    return PairModels(reference=model, candidate=traced(changed, tokens()), inputs=tokens())


@harmful("wrapped_change/scored_float16", allowed=SEMANTIC, cause=("second", "factor"))
def compiled_second_scored() -> PairModels:
    """A compiled copy whose score is three times as large."""
    model = built(Scored, torch.float16)
    changed = deepcopy(model)
    changed.second.factor = 3.0
    return PairModels(reference=model, candidate=compiled(changed, "aot_eager"), inputs=frames(torch.float16))


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
