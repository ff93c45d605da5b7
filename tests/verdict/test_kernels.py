"""A fault of an attention kernel alone: the float64 replay runs without the kernel, and does not see it.

The kernels here stand for flash attention: transformers calls them by a name of their own, and the replay puts eager
attention in their place.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
)
from transformers.masking_utils import sdpa_mask

from sweeper.comparator.side import sides
from sweeper.models.axis import Switch
from sweeper.verdict.comparison import Comparison, compare_models, compare_sides
from tests.small_models import llama, padded_left

BF16 = torch.bfloat16
IDS = {"input_ids": torch.randint(5, 99, (2, 24), generator=torch.Generator().manual_seed(0))}


def fused(change: Callable[[dict[str, Any]], object], *, heed_module: bool = False) -> Callable[..., Any]:
    """An attention function of its own that is right but for `change` of what sdpa is called with."""

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        arguments = {"attn_mask": mask, "scale": options.get("scaling"), "is_causal": False}
        if query.dtype != torch.float64:  # native only
            change(arguments)
            if heed_module and not module.is_causal:
                arguments["attn_mask"] = None
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        return functional.scaled_dot_product_attention(query, key, value, **arguments).transpose(1, 2), None

    return forward


KERNELS = {
    "fused_right": fused(lambda _: None),
    "fused_without_mask": fused(lambda arguments: arguments.update(attn_mask=None)),
    "fused_without_scale": fused(lambda arguments: arguments.update(scale=0.5)),
    "fused_made_causal": fused(lambda arguments: arguments.update(attn_mask=None, is_causal=True)),
    "fused_that_heeds": fused(lambda _: None, heed_module=True),
}


@pytest.fixture(autouse=True, scope="module")
def kernels() -> Iterator[None]:
    functions, masks = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    before = dict(functions), dict(masks)
    for name, kernel in KERNELS.items():
        AttentionInterface.register(name, kernel)
        AttentionMaskInterface.register(name, always_masked)
    yield
    for mapping, entries in zip((functions, masks), before, strict=True):
        mapping.clear()
        mapping.update(entries)


def always_masked(*args: Any, **options: Any) -> Any:
    return sdpa_mask(*args, **{**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def bert(kernel: str) -> Any:
    torch.manual_seed(0)
    geometry = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**geometry, intermediate_size=48, initializer_range=0.2)
    model = BertModel(config, add_pooling_layer=False).eval().half()
    model.set_attn_implementation(kernel)
    return model


def qwen(kernel: str) -> Any:
    torch.manual_seed(0)
    geometry = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    config = Qwen3Config(**geometry, num_key_value_heads=2, intermediate_size=48, initializer_range=0.2)
    model = Qwen3Model(config).eval().to(BF16)
    model.set_attn_implementation(kernel)
    return model


CASES = [
    (lambda kernel: llama(BF16, kernel), padded_left, "model.layers.0.self_attn", "fused_without_mask"),
    (lambda kernel: llama(torch.float16, kernel), padded_left, "model.layers.0.self_attn", "fused_without_scale"),
    (qwen, lambda: {**IDS, "use_cache": False}, "layers.0.self_attn", "fused_without_mask"),
    (bert, lambda: IDS, "encoder.layer.0.attention.self", "fused_made_causal"),
]


def check(comparison: Comparison, module: str) -> str:
    assert comparison.verdict.kind == "semantic", comparison
    assert comparison.measured.replay is not None
    assert comparison.measured.replay.asked <= comparison.measured.replay.bound
    assert comparison.measured.beyond[0].name == module
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.origin == "introduced"
    return comparison.explain().cause


@pytest.mark.parametrize(("make", "inputs", "module", "kernel"), CASES)
@pytest.mark.parametrize("other", ["eager", "sdpa", "fused_right"])
def test_a_wrong_kernel_is_semantic_and_named(make: Any, inputs: Any, module: str, kernel: str, other: str) -> None:
    comparison = compare_models(make(other), make(kernel), inputs())
    cause = check(comparison, module)
    assert f"attention backend: {other} -> {kernel}" in cause
    assert comparison.measured.beyond[0].kernel is not None
    assert comparison.measured.beyond[0].kernel > 2
    assert comparison.verdict.reason.startswith(f"the attention kernel in {module} is ")


@pytest.mark.parametrize(("make", "inputs", "module", "kernel"), CASES)
@pytest.mark.parametrize("other", ["eager", "sdpa"])
def test_a_right_kernel_stays_rounding(make: Any, inputs: Any, module: str, kernel: str, other: str) -> None:
    comparison = compare_models(make(other), make("fused_right"), inputs())
    assert comparison.verdict.kind in ("rounding", "identical"), comparison
    assert comparison.measured.beyond == ()


def test_a_wrong_kernel_in_the_reference() -> None:
    comparison = compare_models(llama(BF16, "fused_without_mask"), llama(BF16, "eager"), padded_left())
    assert "attention backend: fused_without_mask -> eager" in check(comparison, "model.layers.0.self_attn")


def test_a_wrong_kernel_behind_a_dtype_asked_for() -> None:
    comparison = compare_models(llama(), llama(BF16, "fused_without_mask"), padded_left())
    assert "attention backend: eager -> fused_without_mask" in check(comparison, "model.layers.0.self_attn")


def test_a_flag_that_only_the_kernel_reads_is_named() -> None:
    reference = llama(BF16, "fused_that_heeds")
    candidate = copy.deepcopy(reference)
    candidate.model.layers[1].self_attn.is_causal = False
    cause = check(compare_models(reference, candidate, padded_left()), "model.layers.1.self_attn")
    assert cause.startswith("LlamaAttention.is_causal: True -> False of model.layers.1.self_attn")


def test_a_right_kernel_does_not_excuse_a_wrong_norm_beside_it() -> None:
    candidate = llama(BF16, "fused_right")
    norm = candidate.model.layers[1].input_layernorm
    right = type(norm).forward
    norm.forward = lambda x: right(norm, x) * (1.25 if x.dtype == BF16 else 1.0)
    cause = check(compare_models(llama(BF16), candidate, padded_left()), "model.layers.1.input_layernorm")
    assert "LlamaRMSNorm.forward" in cause


needs_flash = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None, reason="needs a GPU and flash-attn"
)


def cuda_llama(backend: str) -> Any:
    """A model with heads of 64, which builds of flash-attn for few sizes take as well."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, attn_implementation=backend, dtype=BF16).eval().cuda()


@needs_flash
@pytest.mark.parametrize("other", ["eager", "sdpa", "flash_attention_2"])
def test_flash_attention_with_its_causal_flag_off_is_semantic_and_named(other: str) -> None:
    candidate = cuda_llama("flash_attention_2")
    for layer in candidate.model.layers:
        layer.self_attn.is_causal = False
    ids = {"input_ids": padded_left()["input_ids"][1:].cuda(), "use_cache": False}
    cause = check(compare_models(cuda_llama(other), candidate, ids), "model.layers.0.self_attn")
    assert "LlamaAttention.is_causal: True -> False" in cause or f"attention backend: {other}" in cause


@needs_flash
@pytest.mark.parametrize("other", ["eager", "sdpa"])
def test_right_flash_attention_stays_rounding(other: str) -> None:
    inputs = {name: value.cuda() for name, value in padded_left().items()}
    comparison = compare_models(cuda_llama(other), cuda_llama("flash_attention_2"), inputs)
    # sdpa may run the same kernel, and then gives the same bits
    assert comparison.verdict.kind in ({"rounding"} if other == "eager" else {"rounding", "identical"}), comparison


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@needs_gpu
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_tf32_is_rounding_and_named(backend: str) -> None:
    inputs = {name: value.cuda() for name, value in padded_left().items()}
    models = [llama(attention=backend).cuda() for _ in range(2)]
    reference, candidate = sides(*models, inputs)
    off = {"matmul": Switch("off", "matmul=off", contextlib.nullcontext)}
    comparison = compare_sides(
        replace(reference, switches=off), replace(candidate, switches={"matmul": Switch("tf32", "matmul=tf32", tf32)})
    )
    assert comparison.verdict.kind == "rounding", comparison
    assert comparison.explain().cause.startswith("matmul: off -> tf32")
