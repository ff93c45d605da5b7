"""Models larger than the device: parameters stay in the safetensors files and are there only while their module runs.

transformers itself lays the model out, without values (`device_map="meta"`), so it alone decides on names, dtypes and
ties. Hooks bring the values in before the forward of the module that owns them and drop them behind it (`Windows`);
the parameters stay the same objects, so that a replay in float64 and what is put back know them (`Source`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from sweeper.errors import UnsupportedError
from sweeper.models.checks import switch_attention
from sweeper.models.loading import TORCH_DTYPES, ModelPool, load
from sweeper.models.swapping import Source, Windows, fill_if_absent
from sweeper.models.weights import WeightsKey

_PIECE = 2**22  # elements of a weight that are cast at once


def streamed(folder: Path, key: WeightsKey, attention: str) -> nn.Module:
    """What `loading.load` gives, bit for bit, without its parameters in memory. Buffers are small and stay.

    Args:
        folder: `config.json` and safetensors weights.
        key: what is read, its casts, and the device.
        attention: transformers' name of the attention implementation.

    Raises:
        UnsupportedError: what a module needs is not in the files as it is (transformers converts or draws it), or one
            uses the weights of another without calling it.
    """
    without_values = dataclasses.replace(key.read, device="meta", device_map=True, cast_before_move=None)
    model: Any = load(folder, WeightsKey(without_values), "eager")
    if switch_attention(model, attention) is None:
        switch_attention(model, "eager")
    else:  # it serves the backend only where it was loaded for it
        model = load(folder, WeightsKey(without_values), attention)
    _give_buffers(model)
    casts = [TORCH_DTYPES[dtype] for dtype in (key.read.cast_before_move, key.cast) if dtype is not None]
    weights = FileWeights(folder, model, casts)
    for dtype in casts:
        model.to(dtype)
    absent = torch.zeros(8, dtype=torch.uint8, device=key.read.device)
    _give_sources(model, weights, absent)
    model.requires_grad_(False).eval()
    with torch.inference_mode(), _AbsentWeightsRefused(model, absent):
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=key.read.device))
    if reason := switch_attention(model, attention):
        raise UnsupportedError(reason)
    return model


def _give_sources(model: nn.Module, weights: FileWeights, absent: Tensor) -> None:
    """Puts parameters that are read when they are used in the places of those without values, tied ones once."""
    given: dict[int, nn.Parameter] = {}
    windows = Windows(fill_if_absent)
    for prefix, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in given:
                name = f"{prefix}.{leaf}" if prefix else leaf
                source = Source(functools.partial(weights.read, name), weights.key(name), absent)
                given[id(parameter)] = source.parameter(parameter.shape, parameter.dtype)
            module._parameters[leaf] = given[id(parameter)]
        windows.around(module)


class _AbsentWeightsRefused(TorchDispatchMode):
    """Raises where a weight is used while it is not there: by a module that does not call the one that owns it.

    For a trial run: in such a mode torch may choose other kernels.

    Args:
        absent: what a parameter lies in that is not there.
    """

    def __init__(self, model: nn.Module, absent: Tensor) -> None:
        super().__init__()
        self._model = model
        self._absent = absent.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._any_absent((args, kwargs)) and not self._any_absent(result):  # a view is still none
            raise UnsupportedError(_refusal(self._model, "a weight is used without calling the module that owns it"))
        return result

    def _any_absent(self, values: Any) -> bool:
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor) and not value.is_meta]
        return any(tensor.untyped_storage().data_ptr() == self._absent for tensor in tensors)


class StreamedPool(ModelPool):
    """Models without parameters in memory: there is room for all of them, and a read is nothing to share."""

    def _load(self, folder: Path, key: WeightsKey, attention: str, own: str) -> tuple[nn.Module, bool]:
        return streamed(folder, key, attention), True


class FileWeights:
    """A model's parameters by its own names: each is read to a device, and cast there, when it is asked for.

    Args:
        folder: `config.json` and safetensors weights.
        model: as `from_pretrained` laid it out, in the dtypes that it reads into.
        casts: what follows, in this order.

    Raises:
        UnsupportedError: a parameter is not in the files under its own name and as it is.
    """

    def __init__(self, folder: Path, model: Any, casts: list[torch.dtype]) -> None:
        self._folder = folder
        self._files = _files(folder)
        self._keys = _keys_in_files(model, set(self._files))
        self._dtypes = {name: [value.dtype, *casts] for name, value in _parameters(model).items()}

    def key(self, name: str) -> Hashable:
        """What tells a parameter's values: the file's entry, and what it is cast to in turn."""
        key = self._keys[name]
        casts = [dtype for dtype, _ in itertools.groupby(self._dtypes[name])]
        return str(self._folder), key, tuple(map(str, casts))

    def read(self, name: str, device: torch.device) -> Tensor:
        """The values."""
        key = self._keys[name]
        in_file: Tensor = self._files[key].get_tensor(key)  # mapped into memory, not read yet
        casts = self._dtypes[name]
        if set(casts) == {in_file.dtype}:
            return in_file.to(device)
        # piece by piece, because the device may have no room for the same weight in two dtypes
        value = torch.empty(in_file.shape, dtype=casts[-1], device=device)
        for piece, target in zip(in_file.flatten().split(_PIECE), value.view(-1).split(_PIECE), strict=True):
            target.copy_(functools.reduce(torch.Tensor.to, casts, piece.to(device)))
        return value


def _files(folder: Path) -> dict[str, Any]:
    """The open file of each key, of those files that `from_pretrained` reads."""
    names = [SAFE_WEIGHTS_NAME]
    if not (folder / SAFE_WEIGHTS_NAME).exists():
        file_of = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())["weight_map"]
        names = sorted(set(file_of.values()))
    files: dict[str, Any] = {}
    for name in names:
        file = safe_open(folder / name, framework="pt")
        files |= dict.fromkeys(file.keys(), file)
    return files


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _keys_in_files(model: Any, in_files: set[str]) -> dict[str, str]:
    """The files' name of each parameter: the model's own, or with or without the prefix of the model below a head."""
    if model._weight_conversions:
        raise UnsupportedError(_refusal(model, "the weights in the files are converted as they are loaded"))
    prefix = f"{model.base_model_prefix}."
    tied: dict[int, list[str]] = {}
    for name, parameter in _parameters(model).items():
        tied.setdefault(id(parameter), []).append(name)
    keys: dict[str, str] = {}
    for names in tied.values():
        spellings = [key for name in names for key in (name, prefix + name, name.removeprefix(prefix))]
        key = next((key for key in spellings if key in in_files), None)
        if key is None:
            raise UnsupportedError(_refusal(model, f"{names[0]} is not in the files: it would be drawn at random"))
        keys |= dict.fromkeys(names, key)
    return keys


def _give_buffers(model: Any) -> None:
    """Makes the buffers as transformers does where it loads values: in the model's constructor and `_init_weights`."""
    if persistent := [name for name, _ in model.named_buffers() if name in model.state_dict()]:
        raise UnsupportedError(_refusal(model, f"{persistent[0]} is a buffer in the files"))
    with init_empty_weights(include_buffers=False):
        made = type(model)._from_config(copy.deepcopy(model.config))
    for name, buffer in made.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)


def _refusal(model: nn.Module, reason: str) -> str:
    return f"weights=streamed cannot load {type(model).__name__}: {reason}; use weights=resident"
