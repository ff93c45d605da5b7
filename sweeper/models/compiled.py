"""Compiled models: those that are handed over compiled, and the axis `compile`.

Hooks that come after the first call of compiled code are never called; those before it stay in the code for good. What
is handed over compiled therefore runs as it is written where it is hooked. Of the axis, the forward alone is compiled,
so that hooks of the model itself stay outside, and code is forgotten whenever hooks inside come or go.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sweeper.config import Cell, Compile
from sweeper.models.axis import Switch
from sweeper.models.family import gives_hidden

NAME = "compile"
_OPTIONS: dict[Compile, dict[str, Any]] = {
    Compile.AOT_EAGER: {"backend": "aot_eager"},
    Compile.INDUCTOR: {},
    Compile.INDUCTOR_PRECISE_CASTS: {"options": {"emulate_precision_casts": True}},
    Compile.MAX_AUTOTUNE: {"mode": "max-autotune"},
    Compile.REDUCE_OVERHEAD: {"mode": "reduce-overhead"},
}
# what a setting has that these have not, from the nearest to the farthest
_HALFWAY: dict[Compile, tuple[Compile, ...]] = {
    Compile.INDUCTOR_PRECISE_CASTS: (Compile.AOT_EAGER,),
    Compile.INDUCTOR: (Compile.INDUCTOR_PRECISE_CASTS, Compile.AOT_EAGER),
    Compile.REDUCE_OVERHEAD: (Compile.INDUCTOR, Compile.INDUCTOR_PRECISE_CASTS, Compile.AOT_EAGER),
    Compile.MAX_AUTOTUNE: (Compile.INDUCTOR, Compile.INDUCTOR_PRECISE_CASTS, Compile.AOT_EAGER),
}
_REUSED = (Compile.MAX_AUTOTUNE, Compile.REDUCE_OVERHEAD)  # a CUDA graph's outputs, which its next run overwrites
_MODELS = 2  # whose code is kept at once: a reference's and a candidate's
_ABSENT = object()


# ---- what is handed over compiled --------------------------------------------------------------------------------


def is_compiled(model: nn.Module) -> bool:
    """Whether a module of it was given to `torch.compile`, or compiled itself; or it or its class holds a function that
    was, or its forward calls one by name."""
    if "torch._dynamo.eval_frame" not in sys.modules:
        return False
    kinds = {base for module in model.modules() for base in type(module).__mro__ if base is not nn.Module}
    return bool(compiled_modules(model)) or any(_compiled_in(kind) or _calls_compiled(kind) for kind in kinds)


def compiled_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold compiled code each for itself, by path: not those whose class does."""
    return {path: module for path, module in model.named_modules() if _compiled_in(module)}


def _compiled_in(holder: nn.Module | type) -> dict[str, Any]:
    """The attributes of a module or a class that are compiled, with what each was compiled of."""
    return {name: value._torchdynamo_orig_callable for name, value in vars(holder).items() if _is_compiled(value)}


def _calls_compiled(kind: type) -> bool:
    """Whether the forward of a class names a function of its file that is compiled."""
    forward = vars(kind).get("forward")
    if not isinstance(forward, FunctionType):
        return False
    return any(_is_compiled(forward.__globals__.get(name)) for name in forward.__code__.co_names)


def _is_compiled(value: Any) -> bool:
    """What is kept from being compiled is marked alike."""
    return hasattr(value, "_torchdynamo_orig_callable") and not hasattr(value, "_torchdynamo_disable")


@contextlib.contextmanager
def as_written(module: nn.Module) -> Iterator[None]:
    """What one module holds compiled runs as it is written, for as long as the context lasts; all else as it was."""
    compiled = _compiled_in(module)
    held = {name: vars(module)[name] for name in compiled}
    try:
        vars(module).update(compiled)
        yield
    finally:
        vars(module).update(held)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled code runs as it is written, for as long as the context lasts, whoever compiled it, by whatever backend.

    dynamo's `disable` only keeps it from compiling more: what it has compiled runs on.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


# ---- the axis ----------------------------------------------------------------------------------------------------


@dataclass
class _Code:
    """What is compiled: of one setting, under one state of torch's flags, and of few models.

    Attributes:
        baked: `_baked` as it was made.
        forwards: the compiled forward of each model.
        acted: whether torch compiled anything of the last model.
        hidden: what a hook inside of each model, which its code knows, was given last. asked: who asked for whose.
        in_force: the settings around the calls, the innermost last.
    """

    setting: Compile = Compile.OFF
    baked: Hashable = None
    forwards: weakref.WeakKeyDictionary[nn.Module, Callable[..., Any]] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    acted: bool = False
    hidden: weakref.WeakKeyDictionary[nn.Module, tuple[list[Any], Callable[..., None]]] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    asked: list[tuple[nn.Module, Callable[[Any], Tensor], list[Tensor]]] = field(default_factory=list)
    in_force: list[Compile] = field(default_factory=list)


_CODE = _Code()


def switches(cell: Cell) -> Mapping[str, Switch]:
    """The switch of the axis. Compiled code only rounds otherwise, so that a replay runs the code as it is written."""
    return {NAME: _switch(cell.compile)}


def _switch(setting: Compile, *, alone: bool = False) -> Switch:
    @contextlib.contextmanager
    def context() -> Iterator[None]:
        _CODE.in_force.append(setting)
        try:
            yield
        finally:
            _CODE.in_force.pop()

    halfway = () if alone else tuple(_switch(one, alone=True) for one in _HALFWAY.get(setting, ()))
    return Switch(setting.value, f"{NAME}={setting}", context, rounds=True, halfway=halfway)


OFF = {NAME: _switch(Compile.OFF)}


def compiles(switches: Mapping[str, Switch]) -> bool:
    """Whether a side with these switches runs compiled code."""
    return NAME in switches and switches[NAME].value != Compile.OFF


def forget() -> None:
    """Makes torch forget all compiled code, which knows the hooks and the settings of its first call only."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    _CODE.forwards.clear()
    _CODE.setting = Compile.OFF


@contextlib.contextmanager
def hooks_inside(switches: Mapping[str, Switch]) -> Iterator[None]:
    """Surrounds hooks on modules inside a model that runs compiled: code is made anew with them, and then without."""
    if not compiles(switches):
        yield
        return
    forget()
    try:
        yield
    finally:
        forget()


@contextlib.contextmanager
def base_outputs(model: nn.Module, take: Callable[[Any], Tensor]) -> Iterator[list[Tensor]]:
    """What `take` makes of what the base model inside of this one gives, which runs compiled, call after call.

    A hook that somebody else puts there would come too late.
    """
    taken: list[Tensor] = []
    asking = (model, take, taken)
    _CODE.asked.append(asking)
    try:
        yield taken
    finally:
        _CODE.asked.remove(asking)


def called(model: nn.Module, kwargs: Mapping[str, Any]) -> Any:
    """What a model gives, compiled as the setting in force says."""
    setting = _CODE.in_force[-1] if _CODE.in_force else Compile.OFF
    if setting is Compile.OFF:
        return model(**kwargs)
    forward, before = _forward(model, setting), vars(model).get("forward", _ABSENT)
    given, hook = _CODE.hidden.setdefault(model, _keeping())
    base = gives_hidden(model)
    handle = base.register_forward_hook(hook)
    try:
        vars(model)["forward"] = forward
        with many_variants():
            output = model(**kwargs)
        for asks, take, taken in _CODE.asked:
            if asks is model:
                taken += [take(one).clone() for one in given]
    finally:
        given.clear()  # of a call that failed, too
        handle.remove()
        if before is _ABSENT:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = before
    _CODE.acted = _CODE.acted or _graphs() > 0
    return tree_map(_own, output) if setting in _REUSED else output


def _keeping() -> tuple[list[Any], Callable[..., None]]:
    """A list, and a hook that adds what a module gives."""
    given: list[Any] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        given.append(output)

    return given, hook


def _forward(model: nn.Module, setting: Compile) -> Callable[..., Any]:
    known, baked = _CODE.forwards, _baked()
    made_so = (_CODE.setting, _CODE.baked) == (setting, baked)
    if not made_so or (model not in known and len(known) >= _MODELS):
        forget()
        _CODE.setting, _CODE.baked = setting, baked
    if model not in known:
        _CODE.acted = False
        _counters().clear()
        known[model] = torch.compile(_plain(model), dynamic=False, **_OPTIONS[setting])
    if setting in _REUSED:
        torch.compiler.cudagraph_mark_step_begin()
    return known[model]


def _baked() -> Hashable:
    """The flags that code has in it once it is made (which attention kernel, what precision a product is generated in),
    and whose change torch does not notice."""
    cuda: Any = torch.backends.cuda
    kernels = cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled, cuda.cudnn_sdp_enabled
    return (*(enabled() for enabled in kernels), cuda.matmul.fp32_precision)


def _plain(model: nn.Module) -> Callable[..., Any]:
    """The forward of a model, that does not keep it alive."""
    function, own = type(model).forward, weakref.ref(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(own(), *args, **kwargs)

    return forward


def many_variants() -> AbstractContextManager[Any]:
    """Enough variants (a shape, a dtype, few models, modes of gradients) that none runs as written without a word."""
    import torch._dynamo.config as dynamo

    config: Any = dynamo
    patched: AbstractContextManager[Any] = config.patch(recompile_limit=256, accumulated_recompile_limit=4096)
    return patched


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _counters() -> Any:
    from torch._dynamo.utils import counters

    return counters


def _graphs() -> int:
    return int(_counters()["stats"]["unique_graphs"])


def without_effect(cell: Cell) -> dict[str, str]:
    """Where nothing was compiled, that it was not; to be asked after calls of the cell's."""
    if cell.compile is Compile.OFF or _CODE.acted:
        return {}
    return {NAME: "torch.compile found nothing to compile: all of it ran as it is written"}
