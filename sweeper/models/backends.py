"""The attention backends: what each is in transformers and torch, where it runs, what it needs. Imports no torch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeper.config import Attention, Cell, Compile, Dtype

ALL = tuple(Dtype)
PLACE = {"cpu": "the CPU", "cuda": "cuda"}
HALF = (Dtype.BFLOAT16, Dtype.FLOAT16)
NOT_FLOAT64 = (Dtype.FLOAT32, *HALF)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One attention backend.

    Attributes:
        dtypes: device -> the dtypes that it takes there. It does not run on a device that is left out.
        implementation: transformers' name of it; None is the backend's own.
        kernel: the kernel of scaled_dot_product_attention that it pins, as torch's `SDPBackend` names it.
        package: the distribution that it is.
        compiled: it is compiled when it is first called: with triton on a GPU, with a C++ compiler on a CPU.
        shows: parts of the names under which the profiler sees it at work; none in a model without attention.
        refusal: what it says, as a regular expression, where it does not take what it is given.
        alias: a short name that users type.
    """

    dtypes: Mapping[str, tuple[Dtype, ...]] = field(default_factory=lambda: {"cpu": ALL, "cuda": ALL})
    implementation: str | None = None
    kernel: str | None = None
    package: str | None = None
    compiled: bool = False
    shows: tuple[str, ...] = ()
    refusal: str | None = None
    alias: str | None = None


EAGER = "eager: matmul + softmax"  # how attention that is written out is reported, where no other was seen
_FLASH = ("flash_attn", "flash_fwd", "FlashAttn")

BACKENDS: dict[Attention, Backend] = {
    Attention.EAGER: Backend(shows=(EAGER,)),
    Attention.SDPA: Backend(shows=("scaled_dot_product",)),
    Attention.SDPA_MATH: Backend(implementation="sdpa", kernel="MATH", shows=("attention_math",)),
    Attention.SDPA_FLASH: Backend(
        dtypes={"cpu": ALL, "cuda": HALF},
        implementation="sdpa",
        kernel="FLASH_ATTENTION",
        shows=("scaled_dot_product_flash",),
    ),
    Attention.SDPA_EFFICIENT: Backend(
        dtypes={"cuda": NOT_FLOAT64},
        implementation="sdpa",
        kernel="EFFICIENT_ATTENTION",
        shows=("scaled_dot_product_efficient",),
    ),
    Attention.SDPA_CUDNN: Backend(
        dtypes={"cuda": HALF}, implementation="sdpa", kernel="CUDNN_ATTENTION", shows=("scaled_dot_product_cudnn",)
    ),
    Attention.FLASH_ATTENTION_2: Backend(
        dtypes={"cuda": HALF}, package="flash-attn", shows=_FLASH, refusal="only support fp16 and bf16", alias="fa2"
    ),
    Attention.FLASH_ATTENTION_3: Backend(
        dtypes={"cuda": HALF}, package="flash-attn-3", shows=_FLASH, refusal="only support fp16 and bf16", alias="fa3"
    ),
    Attention.FLEX_ATTENTION: Backend(
        dtypes={"cpu": NOT_FLOAT64, "cuda": ALL}, compiled=True, shows=("flex", "torch.compile region")
    ),
}


def implementation(attention: Attention) -> str:
    """The `attn_implementation` of transformers that this backend is."""
    return BACKENDS[attention].implementation or attention.value


def needs(cell: Cell) -> tuple[str, ...]:
    """The distribution that the cell's backend is."""
    package = BACKENDS[cell.attention].package
    return () if package is None else (package,)


def packages(cell: Cell) -> tuple[str, ...]:
    """What compiles the cell's backend."""
    return ("triton",) if BACKENDS[cell.attention].compiled and cell.device == "cuda" else ()


def unsupported(cell: Cell) -> str | None:
    """Why the backend does not run on the cell's device in its dtype, and which do."""
    name, device, dtype = cell.attention, cell.device, cell.dtype
    backend = BACKENDS[name]
    dtypes = backend.dtypes.get(device)
    if dtypes is None:
        return f"{name} needs device={_either(list(backend.dtypes))}; on {PLACE[device]} use {_others(device, dtype)}"
    if dtype not in dtypes:
        return f"{name} on {PLACE[device]} takes {_either(list(dtypes))}, not {dtype}; use {_others(device, dtype)}"
    if backend.compiled and device == "cpu" and not has_cpp_compiler():
        return f"{name} is compiled, and there is no C++ compiler here; install g++ or use sdpa"
    return None


def cannot_compile(cell: Cell) -> str | None:
    """Why `torch.compile` cannot generate code for the cell."""
    generates = cell.compile not in (Compile.OFF, Compile.AOT_EAGER)
    if generates and cell.device == "cpu" and not has_cpp_compiler():
        return f"compile={cell.compile} needs a C++ compiler, and there is none here; install g++ or use aot_eager"
    return None


def compilers(cell: Cell) -> tuple[str, ...]:
    """What generates the cell's compiled code."""
    return ("triton",) if cell.compile not in (Compile.OFF, Compile.AOT_EAGER) and cell.device == "cuda" else ()


def quantises_caches(cell: Cell) -> tuple[str, ...]:
    """What transformers' quantised cache stores with."""
    return ("optimum-quanto",) if cell.decode.endswith("_quantised") else ()


def _others(device: str, dtype: Dtype) -> str:
    """The backends that run there with torch alone."""
    plain = [name for name, backend in BACKENDS.items() if not (backend.package or backend.compiled)]
    return _either([name for name in plain if dtype in BACKENDS[name].dtypes.get(device, ())])


def _either(words: list[str]) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} or {last}" if first else last


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds the compiler that it calls for code on the CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
