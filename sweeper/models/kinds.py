"""Modules of one kind, and a call that ends once each kind has run: what repeats shows nothing new."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

from torch import dtype, nn
from torch.jit import ScriptModule

from sweeper.models.once import once_a_model
from sweeper.models.swapping import is_streamed

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_INTERNALS = vars(nn.Module()).keys()
_PLACES = {"layer_idx", "layer_id", "layer_index", "layer_number", "block_idx"}  # tell where a layer is, nothing else
_BY_VALUE = (bool, int, float, str, dtype, type, type(None))


class _AllRan(BaseException):
    """A module of each kind has run. No error that a model may catch: torch calls no hooks behind it, but none are
    needed, as streamed models run whole."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def run_one_of_each_kind(model: nn.Module, call: Callable[[], Any]) -> Any:
    """Makes a call that runs the model, and ends it when a module of each kind has run: of equal layers, one.

    Two modules are of one kind where class, attributes, shapes and dtypes are the same, and so of all that is in them.
    What holds the layers does not count: of what it does behind them, only what is a module is waited for. Where a
    kind never runs, nothing is repeated, weights come and go with their modules, or a module is scripted and takes no
    hooks, all of the model runs.

    Returns:
        What the module gave that ended the call; of a call that ran to its end, what that gave.
    """
    kinds = _kinds_to_run(model)
    missing = set(kinds.values())

    def ran(module: nn.Module, _inputs: Any, output: Any) -> None:
        missing.discard(kinds[module])
        if not missing:
            raise _AllRan(output)

    handles = [module.register_forward_hook(ran) for module in kinds]
    try:
        return call()
    except _AllRan as ended:
        return ended.output
    finally:
        for handle in handles:
            handle.remove()


@once_a_model
def _kinds_to_run(model: nn.Module) -> dict[nn.Module, int]:
    """The kind of each module that is waited for; of none where all of the model is to run."""
    if is_streamed(model) or any(isinstance(module, ScriptModule) for module in model.modules()):
        return {}
    kinds: dict[nn.Module, int] = {}
    _number(model, "", kinds, {})
    waited_for = [module for module in _layers_and_others(model, kinds) if not isinstance(module, _CONTAINERS)]
    return {module: kinds[module] for module in waited_for if not is_torchs_own(module)}


def _number(module: nn.Module, told: str, kinds: dict[nn.Module, int], numbers: dict[Hashable, int]) -> int:
    """The number of the module's kind; those of all modules in it go into `kinds`.

    Args:
        told: what the config says of a layer in its place.
        numbers: of the kinds that have been met.
    """
    children = list(module.named_children())
    of_layers = getattr(getattr(module, "config", None), "layer_types", None) or ()
    inner = []
    for name, child in children:
        types = of_layers if isinstance(child, _CONTAINERS) and len(child) == len(of_layers) else ()
        named = "" if isinstance(module, _CONTAINERS) else name
        if types:
            layers = zip(child.children(), types, strict=True)
            inner.append((named, *(_number(layer, str(one), kinds, numbers) for layer, one in layers)))
            kinds[child] = numbers.setdefault(inner[-1], len(numbers))
        else:
            inner.append((named, _number(child, "", kinds, numbers)))
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    shapes = tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors)
    kind = type(module), told, _attributes(module), shapes, tuple(inner)
    kinds[module] = numbers.setdefault(kind, len(numbers))
    return kinds[module]


def _attributes(module: nn.Module) -> Hashable:
    """What the module was made with, without its place; objects count as themselves."""
    own = {name: value for name, value in vars(module).items() if name not in _INTERNALS and name not in _PLACES}
    return tuple((name, _as_value(value)) for name, value in own.items())


def _as_value(value: Any) -> Hashable:
    if isinstance(value, (tuple, list)):
        return tuple(map(_as_value, value))
    return (type(value), value) if isinstance(value, _BY_VALUE) else id(value)


def _layers_and_others(module: nn.Module, kinds: dict[nn.Module, int]) -> Iterator[nn.Module]:
    """All modules but those that layers of one kind are in."""
    if not any(_repeats(inner, kinds) for inner in module.modules()):
        yield from module.modules()
        return
    for child in module.children():
        yield from child.modules() if _repeats(module, kinds) else _layers_and_others(child, kinds)


def _repeats(module: nn.Module, kinds: dict[nn.Module, int]) -> bool:
    found = [kinds[child] for child in module.children()] if isinstance(module, _CONTAINERS) else []
    return len({*found}) < len(found)


def is_torchs_own(module: nn.Module) -> bool:
    """Whether it is one of torch's without others in it: a product, a norm, an embedding."""
    return type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())
