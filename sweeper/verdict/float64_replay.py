"""Runs a model again in float64, with its parameters and buffers as they were loaded.

A table that was rounded to bfloat16 keeps its rounding: its values are converted, never computed again. What the code
itself fixes to float32 ("islands": RMSNorm, rotary embeddings, softmax) is lifted to float64 too, and every operation
that stayed below float64 all the same is counted.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field, replace
from types import MemberDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from sweeper.comparator.side import Call, Side, uncompiled_side
from sweeper.models.axis import Switch
from sweeper.models.compiled import NAME as COMPILE
from sweeper.models.configs import config_of, takes
from sweeper.models.quantised import dequantised
from sweeper.models.snapshot import fresh
from sweeper.models.swapping import Doubles, doubled, entirely_doubled
from sweeper.models.trees import mapped_leaves, tensors_of_tree

_LOWER = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Precision:
    """What a replay really reached.

    Attributes:
        lower: operations that gave a floating-point result below float64, with their counts.
        eps: the machine epsilon of the coarsest such result; float64's where there is none.
        lifted: how many operations were asked for float32 and ran in float64.
        attention: the backend that the replay ran in place of the model's, or None.
    """

    lower: Counter[str] = field(default_factory=Counter)
    eps: float = torch.finfo(torch.float64).eps
    lifted: int = 0
    attention: str | None = None

    def note(self, operation: str, result: Any) -> None:
        """Counts an operation whose result is below float64."""
        lower = [tensor.dtype for tensor in tensors_of_tree(result) if tensor.dtype in _LOWER]
        if lower:
            self.lower[operation] += 1
            self.eps = max(self.eps, *(torch.finfo(dtype).eps for dtype in lower))

    def __str__(self) -> str:
        if not self.lower:
            return f"float64 throughout ({self.lifted} float32 islands lifted)"
        return "float64 but for " + ", ".join(f"{name} ({count}x)" for name, count in self.lower.most_common(3))


class Lift(TorchFunctionMode):
    """Turns float32 targets into float64, and lower operands as well: what comes from outside the model's state, and
    parameters that are read while their owner does not run. A parameter says that it is float64 wherever it is asked.
    """

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._precision = precision

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):
            result = func(*args, **kwargs)
            asked_of_parameter = getattr(func, "__self__", None) is Tensor.dtype and isinstance(args[0], nn.Parameter)
            return torch.float64 if asked_of_parameter and result in _LOWER else result
        if func is Tensor.float:
            func = Tensor.double
            self._precision.lifted += 1
        if name.endswith("_") or "out" in kwargs:  # what is written in place must stay the same tensor
            args = (*args[:1], *mapped_leaves(_lifted_parameter, args[1:]))
        else:
            args, kwargs = mapped_leaves(self._lifted, (args, kwargs))
        result = func(*args, **kwargs)
        self._precision.note(name, result)
        return result

    def _lifted(self, leaf: Any) -> Any:
        if leaf is torch.float32:
            self._precision.lifted += 1
            return torch.float64
        if isinstance(leaf, Tensor) and leaf.dtype in _LOWER:
            return leaf.detach().to(torch.float64)
        return leaf


class Noted(TorchFunctionMode):
    """Counts the operations that give a result below float64, and changes none."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._precision = precision

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._precision.note(getattr(func, "__name__", str(func)), result)
        return result


def _lifted_parameter(leaf: Any) -> Any:
    return leaf.detach().double() if isinstance(leaf, nn.Parameter) and leaf.dtype in _LOWER else leaf


@contextlib.contextmanager
def replayed(side: Side, doubles: Doubles | None = None) -> Iterator[tuple[Side, Precision]]:
    """The same side in float64, its code as it is written, for as long as the context lasts.

    One module's parameters are in float64 at a time (`doubled`). Attention backends that have no float64 are replaced
    by eager, and so is the product of a mixture's experts; scaled dot product attention runs its MATH kernel.

    Args:
        doubles: of earlier replays of the same values; None: none are kept.
    """
    precision = Precision()
    with dequantised(side.model), doubled(side.model, doubles), _float64_kernels(side, precision) as calls:
        kept = {name: switch for name, switch in side.switches.items() if not switch.rounds}
        float64 = Switch("float64", "", _conditions(Lift(precision)))  # in place of all that rounds
        yield uncompiled_side(replace(side, calls=calls, switches={**kept, "replay": float64})), precision


@contextlib.contextmanager
def in_float64(side: Side) -> Iterator[Side]:
    """The same side in float64, its code as it runs, compiled again for that: what it fixes to float32 stays so.

    Compiled code calls no hook and knows no mode, so that all state is in float64 all the time.
    """
    with entirely_doubled(side.model), _float64_kernels(side, Precision()) as calls:
        kept = {name: switch for name, switch in side.switches.items() if not switch.rounds or name == COMPILE}
        float64 = Switch("float64", "", _conditions(contextlib.nullcontext()))
        yield replace(side, calls=calls, switches={**kept, "float64": float64})


@contextlib.contextmanager
def _float64_kernels(side: Side, precision: Precision) -> Iterator[tuple[Call, ...]]:
    """Kernels that have no float64 give way to those that have; the calls that they take, in float64."""
    exact = fresh((call.kwargs for call in side.calls), torch.float64)
    calls = tuple(replace(call, kwargs=kwargs) for kwargs, call in zip(exact, side.calls, strict=True))
    implementation = attention_implementation(side.model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_saying_float64(side.model))
        # the grouped product that transformers runs a mixture of experts with refuses float64
        stack.enter_context(_configured(side.model, "_experts_implementation_internal", "eager"))
        if implementation not in (None, "eager", "sdpa"):
            stack.enter_context(attention(side.model, "eager"))
            precision.attention = "eager"
            if str(implementation).startswith("flash"):
                calls = tuple(_without_cache(side.model, call) for call in calls)
        yield calls


def _without_cache(model: nn.Module, call: Call) -> Call:
    """Flash attention reads packing from position_ids; eager finds it only without a cache."""
    return replace(call, kwargs={**call.kwargs, "use_cache": False}) if takes(model, "use_cache") else call


def _conditions(mode: contextlib.AbstractContextManager[Any]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def conditions() -> Iterator[None]:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with (
                torch.autocast("cpu", enabled=False),
                torch.autocast("cuda", enabled=False),
                sdpa_kernel(SDPBackend.MATH),
                mode,
            ):
                yield
        finally:
            torch.set_default_dtype(default)

    return conditions


def attention_implementation(model: nn.Module) -> str | None:
    """transformers' name of the attention backend, in whatever the model is wrapped; None for other models."""
    return getattr(config_of(model), "_attn_implementation", None)


def attention(model: nn.Module, implementation: str) -> contextlib.AbstractContextManager[None]:
    """Switches a transformers model's attention backend, and back."""
    return _configured(model, "_attn_implementation_internal", implementation)


@contextlib.contextmanager
def _saying_float64(model: nn.Module) -> Iterator[None]:
    """Has the configs say float64, as a parameter does of itself: code may follow either.

    Anybody's model may have a config: it may be frozen, and a dtype that is computed is left alone.
    """
    changed: list[tuple[Callable[[Any], None], Any]] = []
    try:
        for config in _configs_with(model, "dtype"):
            held, write = config.dtype, _writing_dtype(config)
            if write is not None and (float64 := _float64_for(held)) is not None:
                with contextlib.suppress(Exception):  # read-only, in whatever way
                    write(float64)
                    changed.append((write, held))
        yield
    finally:
        for write, held in changed:
            write(held)


def _writing_dtype(config: Any) -> Callable[[Any], None] | None:
    """What writes a config's dtype where that lies, frozen or not; None where it lies nowhere."""
    if "dtype" in getattr(config, "__dict__", {}):
        return functools.partial(operator.setitem, vars(config), "dtype")
    if isinstance(config, MutableMapping) and "dtype" in config:
        return functools.partial(operator.setitem, config, "dtype")
    if isinstance(getattr(type(config), "dtype", None), MemberDescriptorType):
        return functools.partial(object.__setattr__, config, "dtype")
    return None


def _float64_for(held: Any) -> Any:
    """What stands for float64 as this stands for another dtype of numbers; None where it stands for none."""
    if isinstance(held, torch.dtype):
        return torch.float64 if held.is_floating_point else None
    prefix = "torch." if isinstance(held, str) and held.startswith("torch.") else ""
    named = getattr(torch, held.removeprefix(prefix), None) if isinstance(held, str) else None
    return f"{prefix}float64" if isinstance(named, torch.dtype) and named.is_floating_point else None


def _configs_with(model: nn.Module, setting: str) -> list[Any]:
    """The configs of a model's modules that have a setting, each once."""
    configs: dict[int, Any] = {
        id(module.config): module.config
        for module in model.modules()
        if hasattr(module, "config") and hasattr(module.config, setting)
    }
    return list(configs.values())


@contextlib.contextmanager
def _configured(model: nn.Module, setting: str, value: Any) -> Iterator[None]:
    """Changes a setting of all configs of a transformers model, and back."""
    saved = [(config, getattr(config, setting)) for config in _configs_with(model, setting)]
    try:
        for config, _ in saved:
            setattr(config, setting, value)
        yield
    finally:
        for config, before in saved:
            setattr(config, setting, before)
