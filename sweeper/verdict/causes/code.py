"""Attributes, configuration, hooks and classes of paired modules put back to the reference's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.models.configs import config_of
from sweeper.models.names import align, counterparts
from sweeper.models.swapping import transplanted
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.first_divergence import FirstDivergence
from sweeper.verdict.wording import some_of

_ABSENT = object()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None), torch.dtype)
# what a config says of how the model was stored or loaded: no part of the function, or looked at elsewhere
_LONGEST = 60  # characters of a value that a sentence shows
_CONFIG_IGNORED = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures"}


@dataclass(frozen=True)
class _Setting:
    """One attribute of one object, and the reference's value for it."""

    owner: Any
    attribute: str
    value: Any


def code_counterfactuals(pair: Pair, first: FirstDivergence | None) -> list[Counterfactual]:
    """Attributes (each name on each class together), the config, hooks, classes, then the module where it starts."""
    reference = counterparts(pair.reference.model, pair.candidate.model)
    candidate = dict(pair.candidate.model.named_modules())
    shared = [name for name in candidate if name in reference]
    readable = [name for name in shared if not (_is_graph(reference[name]) or _is_graph(candidate[name]))]
    settings: dict[str, list[_Setting]] = {}
    for name in readable:
        for title, setting in _differing_attributes(reference[name], candidate[name]):
            settings.setdefault(f"{title} of {name if name else 'the model'}", []).append(setting)
    merged = _merged(settings)
    found = [_setting_counterfactual(title, group) for title, group in merged.items()]
    found += [_setting_counterfactual(title, [setting]) for title, setting in _config(pair)]
    found += [_replacement(title, names, reference) for title, names in _classes(shared, reference, candidate).items()]
    found += [_missing(name, reference[name]) for name in _topmost(reference.keys() - candidate.keys())]
    if type(pair.reference.model) is not type(pair.candidate.model) and "" in readable:
        found.append(_model_class(type(pair.reference.model), type(pair.candidate.model)))
    if first is not None:
        path = first.module.partition("#")[0].partition("[")[0]
        names = [path.rsplit(".", cut)[0] for cut in range(path.count(".") + 1)]
        found += [
            replace(_replacement(f"module {name} as a whole", [name], reference), wide=True)
            for name in names
            if name in shared and not isinstance(reference[name], (nn.ModuleList, nn.ModuleDict))
        ]
    return found


def wrapper_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """The candidate without what is wrapped around the module that is the reference's model."""
    whole = [theirs for ours, theirs in align(*(side.model for side in pair)).pairs if not ours and theirs]
    if not whole:
        return []
    inner = whole[-1]
    model = pair.candidate.model.get_submodule(inner)

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        yield Pair(pair.reference, replace(pair.candidate, model=model, names={}, parts=pair.reference.parts))

    wrapper, kind = type(pair.candidate.model).__name__, type(model).__name__
    title = f"what {wrapper} does around the {kind} inside of it"
    return [Counterfactual(title, f"call the {kind} itself", "code", apply, wide=True)]


def opaque_modules(pair: Pair) -> list[str]:
    """Modules whose code cannot be looked into, the topmost of each, with the reason."""
    found = []
    for name, side in zip(("reference", "candidate"), pair, strict=True):
        graphs = [path for path, module in side.model.named_modules() if _is_graph(module)]
        for path in [""] if "" in graphs else _topmost(graphs):
            kind = type(dict(side.model.named_modules())[path]).__name__
            where = path if path else "the model"
            found.append(f"{where} of the {name} ({kind}: traced or scripted, its code is a graph)")
    return found


def _is_graph(module: nn.Module) -> bool:
    return isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule))


def _differing_attributes(reference: nn.Module, candidate: nn.Module) -> Iterator[tuple[str, _Setting]]:
    if type(reference) is not type(candidate):
        return  # `_classes` puts the whole module back
    kind = type(candidate).__name__
    for name in _HOOKS:
        before, after = vars(reference).get(name, {}), vars(candidate).get(name, {})
        if [_code(hook) for hook in before.values()] != [_code(hook) for hook in after.values()]:
            yield f"{name.removeprefix('_').replace('_', ' ')} on {kind}", _Setting(candidate, name, before)
    yield from _differing_entries(reference, candidate, kind, deeper=True)


def _differing_entries(reference: Any, candidate: Any, kind: str, *, deeper: bool) -> Iterator[tuple[str, _Setting]]:
    """Public attributes that hold other plain values, tensors or functions; also those of a helper object."""
    left, right = vars(reference), vars(candidate)
    for name in sorted(left.keys() | right.keys()):
        if name.startswith("_") or name in ("training", "config"):
            continue
        before, after = left.get(name, _ABSENT), right.get(name, _ABSENT)
        if _differ(before, after):
            yield f"{kind}.{name}: {_show(before)} -> {_show(after)}", _Setting(candidate, name, before)
        elif deeper and type(before) is type(after) and _is_helper(before):
            yield from _differing_entries(before, after, f"{kind}.{name}", deeper=False)


def _is_helper(value: Any) -> bool:
    known = (nn.Module, Tensor, type, *_PLAIN)
    return hasattr(value, "__dict__") and not isinstance(value, known) and not callable(value)


def _differ(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape != after.shape or not torch.equal(before, after.to(before))
    if all(value is _ABSENT or (callable(value) and not isinstance(value, nn.Module)) for value in (before, after)):
        return _code(before) != _code(after)
    return all(value is _ABSENT or _is_plain(value) for value in (before, after)) and before != after


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, _PLAIN) or (isinstance(value, (tuple, list)) and all(map(_is_plain, value)))


def _code(function: Any) -> Any:
    """What makes two callables the same: the code of a function or method, its defaults and the plain values that it
    closes over, whatever it is bound to."""
    if isinstance(function, functools.partial):
        given = [*function.args, *function.keywords.values()]
        return _code(function.func), list(function.keywords), [value for value in given if _is_plain(value)]
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return function
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell)]
    defaults = [value for value in getattr(function, "__defaults__", None) or () if _is_plain(value)]
    return code, [value for value in cells if _is_plain(value)], defaults


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "the class's own"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}" if value.numel() > 1 else repr(value.item())
    shown = getattr(value, "__qualname__", None) or repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _merged(settings: dict[str, list[_Setting]]) -> dict[str, list[_Setting]]:
    """The same attribute with the same change on several modules is one thing to put back."""
    merged: dict[str, list[_Setting]] = {}
    for title, group in settings.items():
        merged.setdefault(title.rpartition(" of ")[0], []).extend(group)
    return {
        f"{title} ({len(group)} modules)" if len(group) > 1 else _only(title, settings): group
        for title, group in merged.items()
    }


def _only(title: str, settings: dict[str, list[_Setting]]) -> str:
    return next(full for full in settings if full.rpartition(" of ")[0] == title)


def _setting_counterfactual(title: str, settings: Sequence[_Setting]) -> Counterfactual:
    first = settings[0]
    if first.attribute in _HOOKS:
        fix = "remove the hook"
    elif first.value is _ABSENT:
        fix = f"delete the attribute {first.attribute!r}"
    else:
        fix = f"set {first.attribute} to {_show(first.value)}"
    return Counterfactual(title, fix, "code", _setting(tuple(settings)))


def _setting(settings: tuple[_Setting, ...]) -> Callable[[Pair], AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        saved = [vars(setting.owner).get(setting.attribute, _ABSENT) for setting in settings]
        try:
            for setting in settings:
                _assign(setting.owner, setting.attribute, setting.value)
            yield pair
        finally:
            for setting, before in zip(settings, saved, strict=True):
                _assign(setting.owner, setting.attribute, before)

    return apply


def _assign(owner: Any, attribute: str, value: Any) -> None:
    if value is not _ABSENT:
        vars(owner)[attribute] = value
    else:
        vars(owner).pop(attribute, None)


def _config(pair: Pair) -> Iterator[tuple[str, _Setting]]:
    """Entries of a model's config that differ. Some are read in the forward; the others show in the state."""
    left, right = (_config_of(side.model) for side in pair)
    if left is right or not (hasattr(left, "__dict__") and hasattr(right, "__dict__")):
        return
    for name in sorted(vars(left).keys() | vars(right).keys()):
        before, after = vars(left).get(name, _ABSENT), vars(right).get(name, _ABSENT)
        if name in _CONFIG_IGNORED or name.startswith("_"):
            continue
        if _differ(before, after) or (not _is_plain(before) and _unequal(before, after)):
            yield f"config.{name}: {_show(before)} -> {_show(after)}", _Setting(right, name, before)


def _config_of(model: nn.Module) -> Any:
    """transformers' config, else that which some other model calls so."""
    if (found := config_of(model)) is not None:
        return found
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((config for config in configs if hasattr(config, "__dict__")), None)


def _unequal(before: Any, after: Any) -> bool:
    """Whether two objects say that they differ; those that cannot say count as equal."""
    try:
        return before is not after and bool(before != after)
    except (RuntimeError, ValueError, TypeError):
        return False


def differing_config(pair: Pair) -> list[str]:
    """Names of the config's entries that differ."""
    return [setting.attribute for _, setting in _config(pair)]


def _classes(
    shared: Sequence[str], reference: dict[str, nn.Module], candidate: dict[str, nn.Module]
) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in shared:
        left, right = type(reference[name]), type(candidate[name])
        if name and left is not right:
            leaf = name.rpartition(".")[2]
            label = f"module {name}" if leaf.isdigit() else leaf
            title = f"class of {label}: {left.__qualname__} -> {right.__qualname__}"
            groups.setdefault(title, []).append(name)
    return {f"{title} ({len(names)} modules)" if len(names) > 1 else title: names for title, names in groups.items()}


def _replacement(title: str, names: Sequence[str], reference: dict[str, nn.Module]) -> Counterfactual:
    modules = {name: reference[name] for name in names}

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with transplanted(pair.candidate.model, modules):
            yield pair

    return Counterfactual(title, f"use the reference's {type(modules[names[0]]).__name__}", "code", apply)


def computed_counterfactuals(pair: Pair, names: Collection[str]) -> list[Counterfactual]:
    """The reference's modules in place of those whose state was computed from state, all at once."""
    inner = [name for name in names if name]
    if not inner:
        return []
    own = dict(pair.reference.model.named_modules())
    pairs = align(pair.reference.model, pair.candidate.model).pairs
    reference = {theirs: own[ours] for ours, theirs in reversed(pairs)}  # of wrappers the outermost
    title = f"state in {some_of(inner, 1)}: computed from state (merged, folded or fused) and stored anew"
    return [_replacement(title, inner, reference)]


def _topmost(names: Collection[str]) -> list[str]:
    """The names that lie in no other of them."""
    return sorted(name for name in names if name.rpartition(".")[0] not in names)


def _missing(name: str, module: nn.Module) -> Counterfactual:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        parent, _, leaf = name.rpartition(".")
        modules = pair.candidate.model.get_submodule(parent)._modules
        try:
            modules[leaf] = module
            yield pair
        finally:
            modules.pop(leaf, None)

    kind = "layer" if name.rpartition(".")[2].isdigit() else "module"
    return Counterfactual(f"{kind} {name}: only the reference has it", f"add {name}", "code", apply)


def _model_class(before: type[nn.Module], after: type[nn.Module]) -> Counterfactual:
    """The reference's code on the candidate's own modules and state."""

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        model = pair.candidate.model
        try:
            model.__class__ = before
            yield pair
        finally:
            model.__class__ = after

    title = f"class of the model, whose forward is its own: {before.__qualname__} -> {after.__qualname__}"
    return Counterfactual(title, f"use {before.__qualname__}", "code", apply)
