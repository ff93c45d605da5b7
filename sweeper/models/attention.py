"""Attention backends put into effect: the kernel that one pins, what it refuses, and the kernels that really ran."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from sweeper.config import Attention, Cell
from sweeper.devices import synchronize
from sweeper.errors import UnsupportedError
from sweeper.models.axis import Switch
from sweeper.models.backends import BACKENDS, EAGER

PINNED: dict[Attention, SDPBackend] = {
    attention: getattr(SDPBackend, backend.kernel) for attention, backend in BACKENDS.items() if backend.kernel
}

# What torch (CUDA, CPU) and the backends' packages say when a kernel does not take what it is given.
_REFUSALS = {"No available kernel", "No viable backend for scaled_dot_product_attention"}
REFUSAL = re.compile(
    "|".join(sorted(_REFUSALS | {backend.refusal for backend in BACKENDS.values() if backend.refusal})), re.IGNORECASE
)
# aten::scaled_dot_product_attention itself is left out: it only chooses one of the others.
OPERATOR = re.compile(r"::_\w*attention|flash_attn|flex_?attention", re.IGNORECASE)
GPU_KERNEL = re.compile(r"flash_fwd|flash_fprop|FlashAttn|fmha|sdpa|attention")
COMPILED = "Torch-Compiled Region"
FUSED = re.compile(r"triton_(poi|red|per)_fused_")


def switches(cell: Cell) -> dict[str, Switch]:
    """The pinned kernel of scaled_dot_product_attention. What the backend refuses is told under it."""
    attention = cell.attention

    @contextmanager
    def context() -> Iterator[None]:
        with pinned(attention), refusals_as_unsupported(attention):
            yield

    fresh = functools.partial(forget_compiled, attention)
    if attention in PINNED:
        word, fix = attention.removeprefix("sdpa_"), f"attention={attention}"
    else:
        word, fix = "not pinned", "attention=sdpa"
    return {"SDPA kernel": Switch(word, fix, context, rounds=True, begin=fresh)}


def forget_compiled(attention: Attention) -> None:
    """Makes torch forget what it compiled for a backend: after eight variants it would silently stop compiling, and a
    cell's result would depend on the cells before it."""
    if BACKENDS[attention].compiled:
        torch.compiler.reset()


def pinned(attention: Attention) -> AbstractContextManager[None]:
    """Pins the kernel of scaled_dot_product_attention, where the backend names one."""
    return sdpa_kernel(PINNED[attention]) if attention in PINNED else nullcontext()


@contextmanager
def record_kernels(device: str) -> Iterator[list[str]]:
    """Profiles the enclosed forward; the list is filled when it ends, with what `kernels_that_ran` finds.

    The first forward of flex_attention compiles: enclose a later one.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    kernels: list[str] = []
    synchronize(device)  # what was asked for before is none of it
    with _quiet_profiler(), profile(activities=activities) as profiled:
        yield kernels
    kernels += kernels_that_ran(profiled)
    profiled.profiler = None  # megabytes of events, in a circle, for which the collector seldom comes


def kernels_that_ran(profiled: profile) -> tuple[str, ...]:
    """Attention operators, and on a GPU the kernels they started, sorted and each once.

    Matrix product and softmax count as eager attention only where nothing else ran. Nothing is reported where nothing
    was recognised. Compiled code shows no operator on the CPU, only that a compiled region ran.
    """
    assert profiled.profiler is not None, "the profile has ended"
    results: Any = (
        profiled.profiler.kineto_results
    )  # the public `events()` builds a tree, which takes some 30 times as long
    events = {event.name(): event for event in results.events()}  # of ten thousand, some hundred names
    gpu_kernels = {name for name, event in events.items() if event.device_type() == DeviceType.CUDA}
    operators = events.keys() - gpu_kernels
    found = {name for name in operators if OPERATOR.search(name)}
    found |= {short for name in gpu_kernels if (short := short_kernel_name(name))}
    if not found and any(name.startswith(COMPILED) for name in operators):
        found = {"torch.compile region"}
    if not found and operators & {"aten::matmul", "aten::bmm"} and operators & {"aten::softmax", "aten::_softmax"}:
        found = {EAGER}
    return tuple(sorted(found))


def short_kernel_name(name: str) -> str | None:
    """The qualified name inside a demangled GPU kernel that says which attention it is; None where it is no attention.

    `void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, ...>, ...>(...)` -> `flash::flash_fwd_kernel`.
    """
    if FUSED.match(name):  # named after all that is around the attention, too
        return None
    return next((word for word in re.findall(r"[\w:]+", name) if GPU_KERNEL.search(word)), None)


@contextmanager
def refusals_as_unsupported(attention: Attention) -> Iterator[None]:
    """Turns the error of a kernel that does not take these inputs into one line with torch's reasons.

    Raises:
        UnsupportedError: the kernel refused. All other errors pass.
    """
    with _sdpa_warnings() as said:
        try:
            yield
        except RuntimeError as error:
            if not REFUSAL.search(str(error)):
                raise
            reasons = refusal_reasons(said) or [str(error).splitlines()[0]]
            raise UnsupportedError(f"{attention.value} refuses these inputs: {'; '.join(reasons)}") from error


def refusal_reasons(said: list[str]) -> list[str]:
    """What torch warned about a refusal, without headings and without the kernels that the pin itself turned off."""
    lines = dict.fromkeys(text.split(" (Triggered internally")[0].strip() for text in said)
    return [line for line in lines if not re.search(r"because:$|runtime disabled", line)]


@contextmanager
def _sdpa_warnings() -> Iterator[list[str]]:
    """Collects the warnings of torch's sdp_utils.cpp, which gives its reasons so; all others are shown as ever."""
    said: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def collect(message: Warning | str, *where: Any, **more: Any) -> None:
            if "sdp_utils" in str(message):
                said.append(str(message))
            else:
                show(message, *where, **more)

        warnings.filterwarnings("always", message=r"(?s).*sdp_utils")
        warnings.showwarning = collect
        yield said


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keeps libkineto from writing when it started and stopped to stderr, unless the user chose a level."""
    if "KINETO_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["KINETO_LOG_LEVEL"] = "99"
    try:
        yield
    finally:
        del os.environ["KINETO_LOG_LEVEL"]
