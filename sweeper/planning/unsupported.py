"""Which cells cannot run on this machine or with their checkpoint: known before any weight is loaded.

What depends on the shapes of a model (a kernel that refuses a mask, or grouped-query heads) is found when it runs; see
`attention.refusals_as_unsupported`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache

from sweeper.config import Attention, Cell, Dtype, Layout, LoadStrategy
from sweeper.environment import default_device, version

HALF = (Dtype.FLOAT16, Dtype.BFLOAT16)
FLASH_PACKAGES = {Attention.FLASH_ATTENTION_2: "flash-attn", Attention.FLASH_ATTENTION_3: "flash-attn-3"}
HALF_ONLY_ON_CUDA = (Attention.SDPA_FLASH, Attention.SDPA_CUDNN)
CUDA_ONLY = (*FLASH_PACKAGES, Attention.SDPA_EFFICIENT, Attention.SDPA_CUDNN)


def unsupported_reason(cell: Cell) -> str | None:
    """One sentence that says what cannot run and what would; None where nothing is known to stand in the way."""
    for cannot_run, reason in RULES:
        if cannot_run(cell):
            return reason.format(
                attention=cell.attention,
                dtype=cell.dtype,
                checkpoint=cell.checkpoint.name,
                package=FLASH_PACKAGES.get(cell.attention),
            )
    return None


def _flex_on_cpu(cell: Cell) -> bool:
    return cell.attention is Attention.FLEX_ATTENTION and cell.device == "cpu"


def _splitk_without_cublaslt(cell: Cell) -> bool:
    flags = cell.numerics
    return "off_no_splitk" in (flags.bf16_reduction, flags.fp16_reduction) and flags.blas != "cublaslt"


@cache
def _has_gpu() -> bool:
    return default_device() == "cuda"


@cache
def _installed(distribution: str) -> bool:
    return version(distribution) is not None


def _has_cpp_compiler() -> bool:
    """Whether torch.compile finds the compiler that it calls for code on the CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


# The first rule that applies gives the reason.
RULES: tuple[tuple[Callable[[Cell], bool], str], ...] = (
    (
        lambda cell: cell.layout is Layout.PACKED and not cell.checkpoint.causal,
        "{checkpoint} is an encoder: nothing tells it where a packed text starts; use a padded layout or single",
    ),
    (
        lambda cell: cell.use_cache and not cell.checkpoint.causal,
        "{checkpoint} is an encoder and has no key-value cache; use use_cache=false",
    ),
    (
        lambda cell: cell.load_strategy is LoadStrategy.AUTOCAST and cell.dtype not in HALF,
        "autocast casts to bfloat16 or float16 only, not to {dtype}; use another load strategy",
    ),
    (
        lambda cell: cell.attention in CUDA_ONLY and cell.device != "cuda",
        "{attention} needs device=cuda; on the CPU use eager, sdpa, sdpa_math or sdpa_flash",
    ),
    (
        lambda cell: cell.attention in FLASH_PACKAGES and cell.dtype not in HALF,
        "{attention} takes bfloat16 and float16 only, not {dtype}; use eager or sdpa",
    ),
    (
        lambda cell: cell.attention in HALF_ONLY_ON_CUDA and cell.device == "cuda" and cell.dtype not in HALF,
        "{attention} on cuda takes bfloat16 and float16 only, not {dtype}; use sdpa_math",
    ),
    (
        lambda cell: cell.attention is Attention.SDPA_EFFICIENT and cell.dtype is Dtype.FLOAT64,
        "{attention} takes no {dtype}; use sdpa_math",
    ),
    (
        lambda cell: _flex_on_cpu(cell) and cell.dtype is Dtype.FLOAT64,
        "{attention} cannot be compiled for {dtype} on the CPU; use eager or sdpa",
    ),
    (
        lambda cell: _flex_on_cpu(cell) and not _has_cpp_compiler(),
        "{attention} is compiled, and there is no C++ compiler here; install g++ or use sdpa",
    ),
    (
        lambda cell: cell.device == "cuda" and _splitk_without_cublaslt(cell),
        "split-K can be forbidden in cuBLASLt only; add numerics.blas=cublaslt",
    ),
    (lambda cell: cell.device == "cuda" and not _has_gpu(), "torch sees no GPU here; use device=cpu"),
    (
        lambda cell: cell.attention in FLASH_PACKAGES and not _installed(FLASH_PACKAGES[cell.attention]),
        "{attention} needs the package {package}, which is not installed; use sdpa",
    ),
)
