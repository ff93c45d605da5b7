"""Merged adapters, folded norms, fused projections: rounding where they were computed, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sweeper.verdict.comparison import compare_models
from tests.small_models import FusedAttention, attention, hidden, llama

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
Pair = tuple[Any, Any, dict[str, Any]]


class LowRank(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base = linear
        self.down = nn.Linear(linear.in_features, 3, bias=False)
        self.up = nn.Linear(3, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        linear = copy.deepcopy(self.base)
        exact = self.base.weight.double() + self.up.weight.double() @ self.down.weight.double()
        linear.weight.data = exact.to(linear.weight.dtype)
        return linear


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc, self.act, self.proj = nn.LayerNorm(32), nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self.act(self.fc(self.norm(x))))


def _merged(dtype: torch.dtype) -> Pair:
    """A pair with adapters in every block of a net, merged on one side."""
    reference = nn.Sequential(*(Block() for _ in range(3)))
    for block in reference:
        block.fc = LowRank(block.fc)
    reference = reference.to(dtype).eval()
    candidate = copy.deepcopy(reference)
    for block in candidate:
        block.fc = block.fc.merged()
    return reference, candidate, {"input": torch.randn(2, 7, 32, dtype=dtype)}


def _unmerged(dtype: torch.dtype) -> Pair:
    candidate, reference, inputs = _merged(dtype)
    return reference, candidate, inputs


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def _fold(block: Any, dtype: torch.dtype) -> None:
    for index in ("1", "2"):
        conv, bn = getattr(block, f"conv{index}"), getattr(block, f"bn{index}")
        setattr(block, f"conv{index}", fuse_conv_bn_eval(conv.float(), bn.float()).to(dtype))
        setattr(block, f"bn{index}", nn.Identity())


def _batch_norm_folded(dtype: torch.dtype) -> Pair:
    reference: Any = nn.Sequential(nn.Conv2d(3, 8, 3), Residual(8), Residual(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    reference = reference.to(dtype).eval()
    candidate = copy.deepcopy(reference)
    _fold(candidate[1], dtype)
    _fold(candidate[2], dtype)
    return reference, candidate.eval(), {"input": torch.randn(2, 3, 8, 8, dtype=dtype)}


def _scale_folded(dtype: torch.dtype) -> Pair:
    """A norm's weight and bias in the linear layer behind it."""
    reference: Any = nn.Sequential(Block(), Block()).to(dtype).eval()
    for block in reference:
        block.norm.weight.data.uniform_(0.5, 1.5)
        block.norm.bias.data.uniform_(-0.5, 0.5)
    candidate = copy.deepcopy(reference)
    for block in candidate:
        weight, bias = block.norm.weight.double(), block.norm.bias.double()
        block.norm = nn.LayerNorm(32, elementwise_affine=False)
        block.fc.bias.data = (block.fc.bias.double() + block.fc.weight.double() @ bias).to(dtype)
        block.fc.weight.data = (block.fc.weight.double() * weight).to(dtype)
    return reference, candidate, {"input": torch.randn(2, 7, 32, dtype=dtype)}


def _scale_moved(dtype: torch.dtype) -> Pair:
    """The same, but the norm keeps its tensors, as ones and zeros: nothing is one-sided."""
    reference, candidate, inputs = _scale_folded(dtype)
    for block in candidate:
        block.norm = nn.LayerNorm(32).to(dtype)
    return reference, candidate, inputs


def _weight_norm_removed(dtype: torch.dtype) -> Pair:
    reference: Any = nn.Sequential(Block(), Block())
    for block in reference:
        parametrizations.weight_norm(block.fc)
    reference = reference.to(dtype).eval()
    candidate = nn.Sequential(Block(), Block()).to(dtype).eval()
    values = {name: value for name, value in reference.state_dict().items() if "parametrizations" not in name}
    candidate.load_state_dict(values, strict=False)
    for ours, theirs in zip(reference, candidate, strict=True):
        theirs.fc.weight.data = ours.fc.weight.detach().clone()
    return reference, candidate, {"input": torch.randn(2, 7, 32, dtype=dtype)}


def _fused(dtype: torch.dtype) -> Pair:
    reference = attention().to(dtype)
    return reference, FusedAttention(copy.deepcopy(reference)).to(dtype), hidden(dtype)


HARMLESS = [_merged, _unmerged, _batch_norm_folded, _scale_folded, _scale_moved, _weight_norm_removed, _fused]


def _made(make: Callable[[torch.dtype], Pair], dtype: torch.dtype) -> Pair:
    torch.manual_seed(0)
    return make(dtype)


@DTYPES
@pytest.mark.parametrize("make", HARMLESS)
def test_what_was_computed_and_stored_is_rounding(make: Callable[[torch.dtype], Pair], dtype: torch.dtype) -> None:
    comparison = compare_models(*_made(make, dtype))
    assert comparison.verdict.kind in ("rounding", "identical"), comparison
    assert isinstance(comparison.explain().cause, str)


def test_the_place_is_named_and_closes_it() -> None:
    comparison = compare_models(*_made(_merged, torch.float32))
    assert set(comparison.measured.computed) == {"0.fc", "1.fc", "2.fc"}
    assert "0.fc and 2 more" in comparison.explain().cause
    assert "closed bitwise" in comparison.explain().cause


def _a_tenth_more(candidate: Any) -> str:
    """The adapter with another scale."""
    candidate[1].fc.weight.data.mul_(1.02)
    return "1.fc"


def _one_element_inside(candidate: Any) -> str:
    candidate[1].fc.weight.data[3, 5] += 0.5
    return "1.fc"


def _one_element_outside(candidate: Any) -> str:
    candidate[2].proj.weight.data[3, 5] += 0.5
    return "2.proj"


def _another_activation(candidate: Any) -> str:
    candidate[0].act = nn.GELU("tanh")
    return "0.act"


def _rows_of_the_norm(candidate: Any) -> str:
    candidate[0].norm.weight.data[4] += 0.5
    return "0.norm"


EDITS = [_a_tenth_more, _one_element_inside, _one_element_outside, _another_activation, _rows_of_the_norm]


@DTYPES
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("make", [_merged, _unmerged])
def test_anything_else_is_not_excused(
    make: Callable[[torch.dtype], Pair], edit: Callable[[Any], str], dtype: torch.dtype
) -> None:
    reference, candidate, inputs = _made(make, dtype)
    edited = candidate if make is _merged else reference
    edit(edited)
    comparison = compare_models(reference, candidate, inputs)
    assert comparison.verdict.kind == "semantic", comparison


@DTYPES
def test_a_fold_that_forgets_epsilon_is_semantic(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    reference, _, inputs = _batch_norm_folded(dtype)
    for block in reference[1:3]:
        block.bn1.eps = 0.05
    wrong = copy.deepcopy(reference)
    for block in wrong[1:3]:
        block.bn1.eps = 1e-5
        _fold(block, dtype)
    assert compare_models(reference, wrong, inputs).verdict.kind == "semantic"


@DTYPES
@pytest.mark.parametrize("names", [("fc",), ("fc", "proj")])
def test_weights_that_merely_differ_are_semantic(names: tuple[str, ...], dtype: torch.dtype) -> None:
    """No tensor is one-sided, and none undoes another: a unit in the last place of every weight is another model."""
    torch.manual_seed(0)
    reference = nn.Sequential(Block(), Block()).to(dtype).eval()
    candidate = copy.deepcopy(reference)
    for name in names:
        weight = candidate[1].get_submodule(name).weight.data
        weight.copy_((weight.double() * (1 + torch.finfo(dtype).eps)).to(dtype))
    comparison = compare_models(reference, candidate, {"input": torch.randn(2, 7, 32, dtype=dtype)})
    assert comparison.verdict.kind == "semantic"


@DTYPES
def test_another_checkpoint_is_semantic(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    reference, candidate = (nn.Sequential(Block(), Block()).to(dtype).eval() for _ in range(2))
    comparison = compare_models(reference, candidate, {"input": torch.randn(2, 7, 32, dtype=dtype)})
    assert comparison.verdict.kind == "semantic"


@pytest.mark.filterwarnings("ignore")
@DTYPES
@pytest.mark.parametrize("wrong", [False, True])
def test_peft(dtype: torch.dtype, wrong: bool) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    reference = peft.get_peft_model(llama(dtype), config, autocast_adapter_dtype=False).eval()
    candidate = copy.deepcopy(reference).merge_and_unload().eval()
    if wrong:
        candidate.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    inputs = {"input_ids": torch.randint(3, 99, (2, 12)), "use_cache": False}
    comparison = compare_models(reference, candidate, inputs)
    assert comparison.verdict.kind == ("semantic" if wrong else "rounding"), comparison


def test_a_parametrization_alone_is_looked_through() -> None:
    reference, candidate = nn.Sequential(Block()), nn.Sequential(Block())
    candidate.load_state_dict(reference.state_dict())
    parametrize.register_parametrization(candidate[0].fc, "weight", nn.Identity())
    comparison = compare_models(reference.eval(), candidate.eval(), {"input": torch.randn(2, 7, 32)})
    assert comparison.verdict.kind == "identical"
