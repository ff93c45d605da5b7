from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config, T5EncoderModel

from sweeper.models.configs import config_of, takes
from sweeper.models.names import align
from sweeper.verdict.comparison import compare_models
from sweeper.verdict.float64_replay import attention_implementation
from sweeper.verdict.state_changes import aligned_states
from tests.small_models import llama


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.1)
    return GPT2LMHeadModel(config).eval()


def bert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertModel(BertConfig(vocab_size=64, initializer_range=0.1, **sizes)).eval()


def t5() -> Any:
    torch.manual_seed(0)
    return T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)).eval()


def ids() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))}


class Holder(nn.Module):
    """A model inside a plain module with a tensor of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


class Checkpointed(nn.Module):
    """A wrapper around one layer, as activation checkpointing has it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._checkpoint_wrapped_module = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._checkpoint_wrapped_module(*args, **kwargs)


class LowRank(nn.Module):
    """A wrapper around one linear layer, as an adapter has it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base_layer = linear
        self.lora_A, self.lora_B = nn.Linear(linear.in_features, 2, False), nn.Linear(2, linear.out_features, False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def _held(model: Any) -> nn.Module:
    return Holder(model).eval()


def _parallel(model: Any) -> nn.Module:
    parallel = nn.DataParallel(model).eval().cpu()
    parallel.device_ids = []  # on the CPU, also where there are GPUs
    return parallel


def _compiled(model: Any) -> nn.Module:
    return torch.compile(model, backend="eager")


def _several(model: Any) -> nn.Module:
    return Holder(_parallel(Holder(_checkpointed(model)))).eval()


def _checkpointed(model: Any) -> nn.Module:
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for index, layer in enumerate(layers):
        layers[index] = Checkpointed(layer)
    return model.eval()


def _adapted(model: Any) -> nn.Module:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.in_features == 32:
                setattr(module, name, LowRank(child))
    return model.eval()


def _offloaded(model: Any) -> nn.Module:
    return cpu_offload(model, execution_device=torch.device("cpu"))


WRAPPERS = [_held, _parallel, _several, _checkpointed, _adapted, _offloaded]


def _edit(model: nn.Module) -> str:
    """Changes a weight in the last layer; gives its name."""
    name, weight = [(name, value) for name, value in model.named_parameters() if value.dim() == 2 and "1." in name][-1]
    weight.data[0, 0] += 1
    return name


@pytest.mark.parametrize("make", [gpt2, bert, t5])
@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("wrapped_side", ["candidate", "reference"])
def test_one_weight_is_named_through_every_wrapper(
    make: Callable[[], Any], wrap: Callable[[Any], nn.Module], wrapped_side: str
) -> None:
    plain, wrapped = make(), make()
    name = _edit(plain)
    wrapped = wrap(wrapped)
    reference, candidate = (plain, wrapped) if wrapped_side == "candidate" else (wrapped, plain)
    comparison = compare_models(reference, candidate, ids())
    assert comparison.verdict.kind == "semantic", comparison
    leaf = name.rpartition(".")[0].rpartition(".")[2]
    assert len(comparison.provenance.other) == 1
    assert leaf in comparison.explain().cause, comparison.explain()
    assert comparison.first_divergence is not None
    assert leaf in comparison.first_divergence.module
    assert "(closed" in comparison.explain().cause or "float64 replay" in comparison.explain().cause


def _in(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    return model if any(parameter.is_meta for parameter in model.parameters()) else model.to(dtype)


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrapper_alone_changes_nothing(wrap: Callable[[Any], nn.Module], dtype: torch.dtype) -> None:
    comparison = compare_models(gpt2().to(dtype), _in(dtype, wrap(_in(dtype, gpt2()))), ids())
    assert comparison.verdict.kind in ("identical", "rounding"), comparison
    assert len(comparison.native.modules) > 20


def test_what_only_one_side_has_is_named() -> None:
    candidate = _adapted(gpt2())
    comparison = compare_models(gpt2(), candidate, ids())
    assert comparison.provenance.missing
    assert all("lora" in name for name in comparison.provenance.missing)
    assert all("lora" in name for name in comparison.native.unaligned)


def test_names_that_do_not_fit_are_left_alone() -> None:
    """A layer that is no wrapper: nothing in it is the other's."""
    reference = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    candidate = nn.Sequential(nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)), nn.GELU())
    left, right = aligned_states(reference, candidate)
    assert not left.keys() & right.keys()
    assert align(reference, candidate).pairs == (("", ""), ("0", "0"), ("1", "1"))


def test_the_original_of_a_parametrized_weight_is_the_weight() -> None:
    plain, moved = nn.Linear(3, 3), nn.Linear(3, 3)
    parametrize.register_parametrization(moved, "weight", nn.Identity())
    for reference, candidate in ((plain, moved), (moved, plain)):
        left, right = aligned_states(reference, candidate)
        assert left.keys() == right.keys()


def test_two_prefixes_in_one_model() -> None:
    def towers(first: Callable[[Any], nn.Module], second: Callable[[Any], nn.Module]) -> nn.ModuleDict:
        return nn.ModuleDict({"text": first(bert()), "image": second(gpt2()), "head": nn.Linear(2, 2)})

    def same(model: Any) -> Any:
        return model

    left, right = aligned_states(towers(_held, same), towers(_parallel, _checkpointed))
    assert left.keys() ^ right.keys() == {"text.unused"}


@pytest.mark.parametrize("wrap", [_held, _parallel, _compiled, _several])
def test_the_config_and_the_backend_are_found_inside(wrap: Callable[[Any], nn.Module]) -> None:
    model = llama(attention="sdpa")
    wrapped = wrap(model)
    assert config_of(wrapped) is model.config
    assert attention_implementation(wrapped) == "sdpa"
    assert takes(wrapped, "use_cache") or wrap in (_parallel, _compiled)
    assert attention_implementation(nn.Linear(2, 2)) is None
    assert not takes(nn.Linear(2, 2), "use_cache")


def _net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.GELU(), nn.Linear(16, 8)), nn.LayerNorm(8)).to(dtype).eval()


def _compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [_compiled, _compiled_in_place])
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_are_neither_missed_by_compiled_code_nor_left_in_it(
    dtype: torch.dtype, called_before: bool, compiled: Callable[[Any], nn.Module]
) -> None:
    torch._dynamo.reset()
    model, x = _net(dtype), torch.randn(2, 5, 8, dtype=dtype)
    model[1][1].weight.data[0, 0] += 1
    candidate = compiled(copy.deepcopy(model))
    with torch.no_grad():
        want = model(x)
        if called_before:
            candidate(x)
    comparison = compare_models(_net(dtype), candidate, {"input": x})
    assert comparison.verdict.kind == "semantic"
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.module.endswith("1.1")
    assert "1.1.weight" in comparison.explain().cause
    with torch.no_grad():
        assert torch.equal(candidate(x), want)


def test_a_compiled_model_is_rounding_or_better() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 5, 8)
    comparison = compare_models(_net(torch.float32), torch.compile(_net(torch.float32), backend="eager"), {"input": x})
    assert comparison.verdict.kind in ("identical", "rounding")
    assert len(comparison.native.modules) == 5


@pytest.mark.filterwarnings("ignore")
def test_peft() -> None:
    peft = pytest.importorskip("peft")
    for make, target, edited in ((gpt2, "c_attn", "h.1.mlp.c_proj"), (llama, "q_proj", "layers.1.mlp.down_proj")):
        for dtype in (torch.float32, torch.bfloat16):
            reference, candidate = make().to(dtype), make().to(dtype)
            candidate.get_submodule(f"transformer.{edited}" if make is gpt2 else f"model.{edited}").weight.data[
                0, 0
            ] += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                candidate = peft.get_peft_model(candidate, peft.LoraConfig(r=2, target_modules=[target])).eval()
            comparison = compare_models(reference, candidate, {**ids(), "use_cache": False})
            assert comparison.verdict.kind == "semantic"
            assert f"{edited}.weight" in comparison.explain().cause
