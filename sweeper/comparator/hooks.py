"""Hooks on every module: each output is handed over in token order the moment it exists, and nothing is kept here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sweeper.inputs.layout import Forward, is_attention_map, to_tokens


class ModuleOutput(NamedTuple):
    """One tensor that one module gave, over the real tokens of one forward.

    Attributes:
        name: qualified name; `name[1]` for the second tensor of a tuple, `name#1` for the second call in one forward.
        module_type: class name of the module.
        tensor_NF: tokens by features; may be a view of the module's output.
        original: the module's output.
    """

    name: str
    module_type: str
    tensor_NF: Tensor
    original: Tensor

    def lasting(self, steady: Container[str]) -> Tensor:
        """`tensor_NF` as it is now, whatever the model does when it goes on.

        Args:
            steady: names of the outputs that no later module overwrites (`steady_in_call`); the others are copied.
        """
        if self.name in steady or self.tensor_NF.data_ptr() != self.original.data_ptr():
            return self.tensor_NF
        return self.tensor_NF.clone()


class Capture:
    """The hooks' side of one run. Set `forward` before each call of the model.

    Attributes:
        unaligned: outputs that have no token dimension, by name, with the shape.
    """

    def __init__(self, take: Callable[[ModuleOutput], object]) -> None:
        self._take = take
        self._calls: dict[str, int] = {}
        self._forward: Forward | None = None
        self._no_pads: tuple[int, ...] | None = None  # the forward's B and T, where all of it are tokens
        self.unaligned: dict[str, str] = {}

    def begin(self, forward: Forward) -> None:
        self._forward = forward
        self._calls.clear()
        shape = forward.inputs["input_ids"].shape
        self._no_pads = shape if len(forward.flat_N) == shape.numel() else None

    def hook(self, name: str, module_type: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """The forward hook of a module: hands over what it gave. Runs thousands of times a second; on a GPU the host is
        the limit."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        called = f"{name}#{call}" if call else name
        if isinstance(output, Tensor):
            self._hand_over(called, module_type, output)
            return
        for index, tensor in enumerate(tensors_of(output)):
            if not index:
                self._hand_over(called, module_type, tensor)
            elif not is_attention_map(tensor, self._begun):  # eager attention returns it, the other backends cannot
                self._hand_over(f"{called}[{index}]", module_type, tensor)

    @property
    def _begun(self) -> Forward:
        assert self._forward is not None, "begin(forward) comes before the model's forward"
        return self._forward

    def _hand_over(self, name: str, module_type: str, tensor: Tensor) -> None:
        tensor_NF = self._tokens(tensor) if tensor.is_floating_point() else None
        if tensor_NF is None:
            self.unaligned[name] = f"{tensor.dtype} of shape {tuple(tensor.shape)} has no token dimension"
        else:
            self._take(ModuleOutput(name, module_type, tensor_NF, tensor))

    def _tokens(self, tensor: Tensor) -> Tensor | None:
        """`to_tokens`, in one operation where no row is left out."""
        if tensor.dim() == 3 and tensor.shape[:2] == self._no_pads:
            return tensor.flatten(0, 1)
        return to_tokens(tensor, self._begun)


@contextmanager
def capture(model: nn.Module, take: Callable[[ModuleOutput], object]) -> Iterator[Capture]:
    """Hooks every module of `model` but the model itself (its output is what the caller gets)."""
    running = Capture(take)
    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                hook = functools.partial(running.hook, name, type(module).__name__)
                handles.append(module.register_forward_hook(hook))
        yield running
    finally:
        for handle in handles:
            handle.remove()


def steady_in_call(model: nn.Module, forward: Forward, call: Callable[[], object]) -> frozenset[str]:
    """Names of the outputs that nothing writes to once their module has given them, as far as one call tells.

    Until the call ends, all outputs are kept, and copied: choose a small one. torch counts what its own operations
    write, even where no value changes, but not under `torch.inference_mode`, hence never under it here. Values tell of
    kernels that torch does not know.
    """
    seen: list[tuple[str, Tensor, int, Tensor]] = []

    def take(output: ModuleOutput) -> None:
        seen.append((output.name, output.original, _writes(output.original), output.original.clone()))

    # leaving inference mode turns gradients on
    with torch.inference_mode(False), torch.no_grad(), capture(model, take) as running:
        running.begin(forward)
        call()
        # whether it is the same is read once for all
        same = torch.stack([(tensor == copy).all() for _, tensor, _, copy in seen]).tolist() if seen else []
    return frozenset(
        name
        for (name, tensor, writes, _), is_same in zip(seen, same, strict=True)
        if is_same and _writes(tensor) == writes
    )


def _writes(tensor: Tensor) -> int:
    """How often torch has written to its memory; of a view of inference tensors it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors at the top level of a module's output: a tensor, a tuple or list, or transformers' ModelOutput."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [value for value in values if isinstance(value, Tensor)]
