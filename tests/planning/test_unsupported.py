from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from sweeper.config import Attention, Cell, parse
from sweeper.models import axes
from sweeper.models.attention import pinned
from sweeper.models.backends import BACKENDS, has_cpp_compiler
from sweeper.planning import unsupported as support
from sweeper.planning.unsupported import unsupported_reason

CHECKPOINT = {"source": "seeded", "name": "tiny", "architecture": "llama", "geometry": {}, "head": "base"}
CELL: dict[str, Any] = {
    "checkpoint": {**CHECKPOINT, "pooling": "mean"},
    "load_strategy": "dtype_at_load",
    "dtype": "bfloat16",
    "attention": "sdpa",
    "layout": "padded_left",
    "positions": "explicit",
    "use_cache": False,
    "numerics": {"name": "default"},
    "inputs": {"name": "inputs", "texts": ["a text"]},
    "device": "cpu",
}


def cell(**changes: Any) -> Cell:
    return parse(Cell, {**CELL, **changes})


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and both flash-attn packages: the rules about what is asked for then speak alone."""
    monkeypatch.setattr(axes, "_has_gpu", lambda: True)
    monkeypatch.setattr(support, "_installed", lambda distribution: True)


@pytest.mark.parametrize(
    "strategy", ["dtype_at_load", "cast_after_load", "cast_before_move", "auto_then_cast", "device_map"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "sdpa_math", "sdpa_flash"])
@pytest.mark.parametrize("layout", ["padded_left", "padded_right", "packed", "single"])
def test_what_the_cpu_runs_is_supported(strategy: str, dtype: str, attention: str, layout: str) -> None:
    assert unsupported_reason(cell(load_strategy=strategy, dtype=dtype, attention=attention, layout=layout)) is None


@pytest.mark.parametrize(
    ("refused", "supported", "words"),
    [
        ({"load_strategy": "autocast", "dtype": "float32"}, {"load_strategy": "autocast"}, "not to float32"),
        (
            {"load_strategy": "autocast", "dtype": "float64"},
            {"load_strategy": "autocast", "dtype": "float16"},
            "not to float64",
        ),
        ({"attention": "flash_attention_2"}, {"attention": "sdpa_flash"}, "flash_attention_2 needs device=cuda"),
        ({"attention": "flash_attention_3"}, {"attention": "sdpa_math"}, "flash_attention_3 needs device=cuda"),
        ({"attention": "sdpa_efficient"}, {"attention": "sdpa"}, "sdpa_efficient needs device=cuda"),
        ({"attention": "sdpa_cudnn"}, {"attention": "eager"}, "sdpa_cudnn needs device=cuda"),
        (
            {"attention": "flex_attention", "dtype": "float64"},
            {"attention": "flex_attention", "dtype": "float32"},
            "flex_attention on the CPU takes float32, bfloat16 or float16, not float64; use eager, sdpa, ",
        ),
    ],
)
def test_a_rule_refuses_and_lets_its_neighbour_pass(refused: Any, supported: Any, words: str) -> None:
    reason = unsupported_reason(cell(**refused))
    assert reason is not None
    assert words in reason
    assert unsupported_reason(cell(**supported)) is None


@pytest.mark.usefixtures("gpu_machine")
@pytest.mark.parametrize(
    ("refused", "supported", "words"),
    [
        ({"attention": "flash_attention_2", "dtype": "float32"}, {"attention": "flash_attention_2"}, "not float32"),
        ({"attention": "flash_attention_3", "dtype": "float64"}, {"attention": "flash_attention_3"}, "not float64"),
        (
            {"attention": "sdpa_flash", "dtype": "float32"},
            {"attention": "sdpa_flash", "dtype": "float16"},
            "not float32",
        ),
        (
            {"attention": "sdpa_cudnn", "dtype": "float32"},
            {"attention": "sdpa_math", "dtype": "float32"},
            "not float32",
        ),
        (
            {"attention": "sdpa_efficient", "dtype": "float64"},
            {"attention": "sdpa_efficient", "dtype": "float32"},
            "not float64; use eager, sdpa or sdpa_math",
        ),
        (
            {"numerics": {"name": "x", "bf16_reduction": "off_no_splitk"}},
            {"numerics": {"name": "x", "bf16_reduction": "off_no_splitk", "blas": "cublaslt"}},
            "numerics.blas=cublaslt",
        ),
        (
            {"numerics": {"name": "x", "fp16_reduction": "off_no_splitk", "blas": "cublas"}},
            {"numerics": {"name": "x", "fp16_reduction": "off", "blas": "cublas"}},
            "numerics.blas=cublaslt",
        ),
        (
            {"attention": "flash_attention_2", "load_strategy": "autocast", "dtype": "float32"},
            {"attention": "flash_attention_2", "load_strategy": "autocast", "dtype": "bfloat16"},
            "autocast casts to",
        ),
    ],
)
def test_a_rule_about_gpus_refuses_and_lets_its_neighbour_pass(refused: Any, supported: Any, words: str) -> None:
    reason = unsupported_reason(cell(device="cuda", **refused))
    assert reason is not None
    assert words in reason
    assert unsupported_reason(cell(device="cuda", **supported)) is None


def test_cuda_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "_has_gpu", lambda: False)
    assert unsupported_reason(cell(device="cuda")) == "torch sees no GPU here; use device=cpu"
    monkeypatch.setattr(axes, "_has_gpu", lambda: True)
    assert unsupported_reason(cell(device="cuda")) is None


@pytest.mark.parametrize(
    ("attention", "package"), [("flash_attention_2", "flash-attn"), ("flash_attention_3", "flash-attn-3")]
)
def test_flash_attention_needs_its_own_package(monkeypatch: pytest.MonkeyPatch, attention: str, package: str) -> None:
    monkeypatch.setattr(axes, "_has_gpu", lambda: True)
    monkeypatch.setattr(support, "_installed", lambda distribution: distribution != package)
    reason = unsupported_reason(cell(device="cuda", attention=attention))
    assert (
        reason
        == f"{attention} needs the package {package}, which is not installed; install it or use another attention"
    )
    monkeypatch.setattr(support, "_installed", lambda distribution: distribution == package)
    assert unsupported_reason(cell(device="cuda", attention=attention)) is None


def test_flex_attention_on_the_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = unsupported_reason(cell(attention="flex_attention"))
    assert reason is not None
    assert "C++ compiler" in reason
    monkeypatch.setenv("CXX", sys.executable)
    assert unsupported_reason(cell(attention="flex_attention")) is None


@pytest.mark.usefixtures("gpu_machine")
@pytest.mark.parametrize("attention", list(Attention))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_what_is_named_in_place_of_a_backend_runs(attention: Attention, device: str, dtype: str) -> None:
    reason = unsupported_reason(cell(attention=attention, device=device, dtype=dtype))
    assert (reason is None) == (dtype in BACKENDS[attention].dtypes.get(device, ()))
    if reason is not None:
        others = reason.rpartition(" use ")[2].replace(" or ", ", ").split(", ")
        assert "eager" in others
        assert [unsupported_reason(cell(attention=name, device=device, dtype=dtype)) for name in others] == [
            None for _ in others
        ]


# ---- proof that what is refused does not run ----


@pytest.mark.parametrize("attention", [Attention.SDPA_EFFICIENT, Attention.SDPA_CUDNN])
def test_torch_has_no_such_kernel_on_the_cpu(attention: Attention) -> None:
    query_BHTD = torch.randn(1, 2, 4, 16)
    with pinned(attention), pytest.raises(RuntimeError, match="No viable backend"):
        F.scaled_dot_product_attention(query_BHTD, query_BHTD, query_BHTD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_turns_itself_off_for_wide_dtypes(dtype: torch.dtype) -> None:
    with pytest.warns(UserWarning, match="(?i)autocast"), torch.autocast("cpu", dtype=dtype):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_the_cpu_casts_to_half_dtypes(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="needs a C++ compiler")
def test_flex_attention_compiles_on_the_cpu_but_not_for_float64() -> None:
    query_BHTD = torch.randn(1, 2, 16, 16)
    compiled = torch.compile(flex_attention)
    with torch.inference_mode(), pinned(Attention.FLEX_ATTENTION):
        expected = F.scaled_dot_product_attention(query_BHTD, query_BHTD, query_BHTD)
        torch.testing.assert_close(compiled(query_BHTD, query_BHTD, query_BHTD), expected)
        with pytest.raises(RuntimeError, match=r"(?i)inductor|lowering"):
            compiled(*[query_BHTD.double()] * 3)


def test_nothing_heavy_is_imported_to_plan() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'wandb'}"
    code = f"import sys, sweeper.planning.unsupported; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
