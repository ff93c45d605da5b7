"""Global flags of torch that change results: set inside one context manager, restored when it ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch.backends import cuda, cudnn, mkldnn

from sweeper.config import Cell, Numerics
from sweeper.models.axis import Switch, typed

CUBLAS_WORKSPACE_CONFIG = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACE = ":4096:8"

Setter = Callable[[Any, ExitStack], None]
"""Sets one flag of `Numerics`; what puts the old state back is on the stack before anything is changed."""


def without_effect(cell: Cell) -> dict[str, str]:
    """The flags that a cell chooses and that mean nothing on its device, and why."""
    found = {flag: no_effect(flag, value, cell.device) for flag, value in chosen(cell.numerics).items()}
    return {flag: reason for flag, reason in found.items() if reason}


def switches(cell: Cell) -> dict[str, Switch]:
    """Each flag alone. One that means nothing on the cell's device is not set, whatever the cell says."""
    useless = without_effect(cell)
    wanted = {flag: value for flag, value in chosen(cell.numerics).items() if flag not in useless}
    found = {}
    for flag in SETTERS:
        name, default = f"numerics.{flag}", Numerics.model_fields[flag].default
        if flag in wanted:
            word = typed(wanted[flag])
            found[name] = Switch(word, f"{name}={word}", partial(_set, flag, wanted[flag]), rounds=True)
        else:
            found[name] = Switch("default", f"{name}={typed(default)}", nullcontext, rounds=True)
    return found


@contextmanager
def _set(flag: str, value: Any) -> Iterator[None]:
    """Sets one flag, and restores all that it changed. Can be nested."""
    with ExitStack() as undo:
        SETTERS[flag](value, undo)
        yield


def chosen(flags: Numerics) -> dict[str, Any]:
    """The flags that are not at their default, with their values."""
    return {flag: value for flag in SETTERS if (value := getattr(flags, flag)) not in (None, "default")}


def no_effect(flag: str, value: Any, device: str) -> str | None:
    """Why setting the flag means nothing here; None where it means something."""
    if flag == "deterministic":
        return None
    if device != "cuda":
        return "cuda only"
    if flag.endswith("tf32") and torch.cuda.get_device_capability()[0] < 8:
        return f"{torch.cuda.get_device_name()} has no TF32: it came with Ampere (compute capability 8.0)"
    if value == "off_no_splitk" and not has_splitk_switch():
        return f"torch {torch.__version__} has no switch for split-K"
    return None


def has_splitk_switch() -> bool:
    """Whether this torch can forbid split-K: 2.9.0 takes a plain bool for the reduction flags."""
    return hasattr(cuda.matmul, "allow_bf16_reduced_precision_reduction_split_k")


# TF32 has an older API (allow_tf32, float32_matmul_precision) and a newer one (fp32_precision), each with a state of
# its own. The newer one is what counts, and reading it never raises. Reading the older one raises while the two are
# apart, and torch 2.9's compiler does read it on a GPU. Hence: set both; where the calling process has them apart
# already, only the newer. It reads as the value in force: one inherited from `torch.backends.fp32_precision` is put
# back as its own.
_CUDNN: Any = cudnn
_MKLDNN: Any = mkldnn


def _matmul_tf32(allow: bool, undo: ExitStack) -> None:
    _keep(undo, cuda.matmul, _MKLDNN.matmul)  # restoring the older one writes the CPU's setting too
    with suppress(RuntimeError):
        undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        cuda.matmul.allow_tf32 = allow
    cuda.matmul.fp32_precision = _precision(allow)


def _cudnn_tf32(allow: bool, undo: ExitStack) -> None:
    _keep(undo, _CUDNN.conv, _CUDNN.rnn)
    with suppress(RuntimeError):
        undo.callback(setattr, _CUDNN, "allow_tf32", _CUDNN.allow_tf32)
        _CUDNN.allow_tf32 = allow
    _CUDNN.conv.fp32_precision = _CUDNN.rnn.fp32_precision = _precision(allow)


def _keep(undo: ExitStack, *owners: Any) -> None:
    for owner in owners:
        undo.callback(setattr, owner, "fp32_precision", owner.fp32_precision)


def _precision(allow_tf32: bool) -> str:
    return "tf32" if allow_tf32 else "ieee"


def _reduction(dtype: str) -> Setter:
    name = f"allow_{dtype}_reduced_precision_reduction"

    def set_reduction(value: str, undo: ExitStack) -> None:
        before = getattr(cuda.matmul, name)
        if has_splitk_switch():
            before = (before, getattr(cuda.matmul, f"{name}_split_k"))
        undo.callback(setattr, cuda.matmul, name, before)
        setattr(cuda.matmul, name, (False, False) if value == "off_no_splitk" else value == "on")

    return set_reduction


def _fp16_accumulation(allow: bool, undo: ExitStack) -> None:
    undo.callback(setattr, cuda.matmul, "allow_fp16_accumulation", cuda.matmul.allow_fp16_accumulation)
    cuda.matmul.allow_fp16_accumulation = allow


def _blas(library: str, undo: ExitStack) -> None:
    undo.callback(cuda.preferred_blas_library, cuda.preferred_blas_library())
    cuda.preferred_blas_library(library)


def _deterministic(enabled: bool, undo: ExitStack) -> None:
    undo.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if enabled:
        _deterministic_workspace(undo)
    torch.use_deterministic_algorithms(enabled)


def _deterministic_workspace(undo: ExitStack) -> None:
    """cuBLAS gives the same bits again only with a fixed workspace; without this variable torch refuses every product.

    torch reads the variable once, at the first CUDA product of the process. Set here, it allows deterministic products
    where none ran before; where one did, torch still refuses, and the variable must be there when the process starts.
    Workspaces that exist already keep their size.
    """
    if CUBLAS_WORKSPACE_CONFIG not in os.environ:
        undo.callback(os.environ.pop, CUBLAS_WORKSPACE_CONFIG, None)
        os.environ[CUBLAS_WORKSPACE_CONFIG] = DETERMINISTIC_WORKSPACE


SETTERS: dict[str, Setter] = {
    "matmul_tf32": _matmul_tf32,
    "cudnn_tf32": _cudnn_tf32,
    "bf16_reduction": _reduction("bf16"),
    "fp16_reduction": _reduction("fp16"),
    "fp16_accumulation": _fp16_accumulation,
    "blas": _blas,
    "deterministic": _deterministic,
}
