from __future__ import annotations

import gc
import os
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.profiler import profile
from transformers import LlamaConfig, LlamaForCausalLM

from sweeper.config import Attention
from sweeper.errors import UnsupportedError
from sweeper.models import attention
from sweeper.models.attention import (
    PINNED,
    forget_compiled,
    pinned,
    record_kernels,
    refusal_reasons,
    refusals_as_unsupported,
    short_kernel_name,
)
from sweeper.models.backends import has_cpp_compiler, implementation

pytestmark = pytest.mark.usefixtures("one_thread")

FLASH_ON_CPU = "aten::_scaled_dot_product_flash_attention_for_cpu"
MATH = "aten::_scaled_dot_product_attention_math"

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """The head geometry of SmolLM2-135M: 9 query heads, 3 key-value heads of 64."""
    torch.manual_seed(0)
    geometry = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, intermediate_size=64, num_hidden_layers=1, **geometry)  # type: ignore[arg-type]
    ).eval()


def call(model: LlamaForCausalLM, attention: Attention, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits [B, T, V] of two texts, the first behind pads, so that there is a 4-D mask."""
    mask_BT = torch.ones(2, 8, dtype=torch.int64)
    mask_BT[0, :3] = 0
    model.set_attn_implementation(implementation(attention))
    with torch.inference_mode():
        return model.to(dtype)(input_ids=torch.arange(16).view(2, 8), attention_mask=mask_BT).logits  # type: ignore


def forward(model: LlamaForCausalLM, attention: Attention, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with pinned(attention), refusals_as_unsupported(attention):
        return call(model, attention, dtype)


def test_implementation_is_the_name_that_transformers_knows() -> None:
    assert {
        attention: implementation(attention) for attention in Attention if implementation(attention) != attention
    } == {
        Attention.SDPA_MATH: "sdpa",
        Attention.SDPA_FLASH: "sdpa",
        Attention.SDPA_EFFICIENT: "sdpa",
        Attention.SDPA_CUDNN: "sdpa",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (Attention.EAGER, "eager: matmul + softmax"),
        (Attention.SDPA, FLASH_ON_CPU),
        (Attention.SDPA_MATH, MATH),
        (Attention.SDPA_FLASH, FLASH_ON_CPU),
    ],
)
def test_the_kernel_that_ran_is_recorded(
    model: LlamaForCausalLM, attention: Attention, expected: str, dtype: torch.dtype
) -> None:
    with record_kernels("cpu") as kernels:
        forward(model, attention, dtype)
    assert kernels == [expected]


def test_what_was_profiled_is_freed_without_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    profiled: list[weakref.ref[object]] = []
    original = attention.kernels_that_ran

    def kernels_that_ran(one: profile) -> tuple[str, ...]:
        profiled.append(weakref.ref(one.profiler))  # holds the events
        return original(one)

    monkeypatch.setattr(attention, "kernels_that_ran", kernels_that_ran)
    gc.disable()
    try:
        with record_kernels("cpu"):
            F.softmax(torch.ones(2, 2) @ torch.ones(2, 2), -1)
        assert [events() for events in profiled] == [None]
    finally:
        gc.enable()


def test_several_kernels_are_sorted_and_named_once() -> None:
    query_BHTD = torch.randn(1, 2, 4, 8)
    with record_kernels("cpu") as kernels:
        for attention in (Attention.SDPA_FLASH, Attention.SDPA_MATH, Attention.SDPA_FLASH):
            with pinned(attention):
                F.scaled_dot_product_attention(query_BHTD, query_BHTD, query_BHTD)
    assert kernels == [MATH, FLASH_ON_CPU]


@pytest.mark.parametrize("run", [lambda x: x @ x, lambda x: x.softmax(-1), lambda x: x + x])
def test_eager_needs_both_a_matrix_product_and_a_softmax(run: object) -> None:
    with record_kernels("cpu") as kernels:
        run(torch.randn(4, 4))  # type: ignore[operator]
    assert kernels == []


def test_a_compiled_region_is_recorded_as_one(model: LlamaForCausalLM) -> None:
    compiled = torch.compile(lambda x_TD: torch.softmax(x_TD @ x_TD.T, -1) @ x_TD, backend="eager")
    x_TD = torch.randn(4, 8)
    compiled(x_TD)
    with record_kernels("cpu") as kernels:
        compiled(x_TD)
    assert kernels == ["torch.compile region"]


def test_an_exception_passes_through_the_recording() -> None:
    def fail() -> None:
        with record_kernels("cpu"):
            raise KeyError("a forward that fails")

    with pytest.raises(KeyError, match="a forward that fails"):
        fail()


def test_the_profiler_writes_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    with record_kernels("cpu"):
        torch.ones(1)
    assert "KINETO_LOG_LEVEL" not in os.environ
    assert capfd.readouterr() == ("", "")


def test_the_pin_ends_with_the_context() -> None:
    query_BHTD = torch.randn(1, 2, 4, 8)
    with pinned(Attention.SDPA_MATH):
        pass
    with record_kernels("cpu") as kernels:
        F.scaled_dot_product_attention(query_BHTD, query_BHTD, query_BHTD)
    assert kernels == [FLASH_ON_CPU]


@pytest.mark.parametrize("attention", [Attention.SDPA_EFFICIENT, Attention.SDPA_CUDNN])
def test_a_pinned_kernel_that_cannot_run_is_unsupported(model: LlamaForCausalLM, attention: Attention) -> None:
    assert attention in PINNED
    with pytest.raises(UnsupportedError, match=f"^{attention.value} refuses these inputs: No viable backend") as caught:
        forward(model, attention)
    assert "\n" not in str(caught.value)


def test_other_errors_and_warnings_pass_through() -> None:
    def fail(error: Exception) -> None:
        with refusals_as_unsupported(Attention.SDPA):
            warnings.warn("about something else", UserWarning, stacklevel=2)
            raise error

    with (
        pytest.raises(RuntimeError, match="out of memory") as caught,
        pytest.warns(UserWarning, match="something else"),
    ):
        fail(RuntimeError("CUDA out of memory"))
    assert not isinstance(caught.value, UnsupportedError)
    with pytest.raises(KeyError), pytest.warns(UserWarning, match="something else"):
        fail(KeyError("key"))


def test_reasons_leave_out_headings_and_what_the_pin_turned_off() -> None:
    where = " (Triggered internally at /pytorch/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp:911.)"
    said = [
        f"Memory efficient kernel not used because:{where}",
        f"Memory Efficient attention has been runtime disabled.{where}",
        f"Flash attention kernel not used because:{where}",
        f"Both fused kernels do not support non-null attn_mask.{where}",
        f"Both fused kernels do not support non-null attn_mask.{where}",
        f"CuDNN attention has been runtime disabled.{where}",
    ]
    assert refusal_reasons(said) == ["Both fused kernels do not support non-null attn_mask."]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>, false, true>(Flash_fwd_params)",
            "flash::flash_fwd_kernel",
        ),
        (
            "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::Mainloop<2> > > >()",
            "flash::FlashAttnFwdSm90",
        ),
        (
            "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>::Params)",
            "fmha_cutlassF_bf16_aligned_64x64_rf_sm80",
        ),
        (
            "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16",
            "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16",
        ),
        ("triton_tem_fused_flex_attention_0", "triton_tem_fused_flex_attention_0"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >(int)", None),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_32x6_tn", None),
    ],
)
def test_gpu_kernel_names_are_cut_to_what_can_be_read(name: str, short: str | None) -> None:
    assert short_kernel_name(name) == short


def test_what_other_cells_compiled_does_not_count_for_flex_attention() -> None:
    """torch would silently stop compiling after eight variants; each cell starts with none."""
    compiled = torch.compile(flex_attention, backend="eager")
    for length in range(2, 14):
        query_BHTD = torch.randn(1, 2, length, 16)
        forget_compiled(Attention.FLEX_ATTENTION)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(query_BHTD, query_BHTD, query_BHTD)


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="needs a C++ compiler")
def test_flex_attention_runs_compiled_and_agrees_with_eager(model: LlamaForCausalLM) -> None:
    expected = forward(model, Attention.EAGER)
    with pinned(Attention.FLEX_ATTENTION):
        call(model, Attention.FLEX_ATTENTION)
        with record_kernels("cpu") as kernels:
            logits = call(model, Attention.FLEX_ATTENTION)
    assert kernels == ["torch.compile region"]
    torch.testing.assert_close(logits[1], expected[1])  # the text without pads: pad rows attend to nothing


@needs_gpu
def test_a_refusal_on_a_gpu_gives_torch_s_reason() -> None:
    query_BHTD = torch.randn(1, 2, 16, 64, device="cuda", dtype=torch.bfloat16)
    mask_TT = torch.ones(16, 16, device="cuda", dtype=torch.bool)
    with (
        pytest.raises(UnsupportedError, match=r"sdpa_flash refuses these inputs: .*mask"),
        pinned(Attention.SDPA_FLASH),
        refusals_as_unsupported(Attention.SDPA_FLASH),
    ):
        F.scaled_dot_product_attention(query_BHTD, query_BHTD, query_BHTD, attn_mask=mask_TT)


@needs_gpu
def test_the_gpu_kernel_is_recorded_beside_the_operator() -> None:
    query_BHTD = torch.randn(1, 2, 16, 64, device="cuda", dtype=torch.bfloat16)
    with pinned(Attention.SDPA_FLASH), record_kernels("cuda") as kernels:
        F.scaled_dot_product_attention(query_BHTD, query_BHTD, query_BHTD)
    assert "aten::_scaled_dot_product_flash_attention" in kernels
    assert any("flash_fwd" in name and "<" not in name for name in kernels)
