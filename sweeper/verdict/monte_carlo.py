"""Monte Carlo arithmetic with single operations of torch: what rounding inside one module can cost.

Every result of an operation that rounds is multiplied by 1 + eps u, u uniform in [-1, 1], eps that of its own dtype.
Only what is computed from floating-point inputs, parameters and stored buffers: that is what a dtype covers. What
code makes of integers and of tables that it computes for itself (positions, frequencies) is not nudged, so that a
module which rounds those has no floor to hide behind. Products are nudged everywhere by what flags cost (TF32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sweeper.models.trees import mapped_leaves, tensors_of_tree
from sweeper.verdict.draws import Draws

# Results that are exact: moved, chosen, negated.
_EXACT = frozenset(
    (
        *("abs", "alias_copy", "cat", "clone", "constant_pad_nd", "copy_", "detach", "embedding", "empty_like"),
        *("fill_", "flip", "full_like", "gather", "index", "index_put", "index_put_", "index_select", "lift_fresh"),
        *("masked_fill", "masked_fill_", "max", "maximum", "min", "minimum", "neg", "new_empty", "new_full"),
        *("new_zeros", "ones_like", "relu", "relu_", "repeat", "roll", "scatter", "scatter_", "select_scatter"),
        *("slice_scatter", "sort", "stack", "topk", "tril", "triu", "where", "zero_", "zeros_like"),
    )
)
_PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution", "mv", "addmv", "dot", "linear"))
# The coarsest products that a flag gives: bfloat16 factors in float32 ("medium"); partial sums in 16 bits.
_COARSEST_PRODUCT = 2.0**-7
_COMPUTED = "_computed_from_floats"
_PIECE = 2**24  # elements of a large tensor that are nudged at once: several copies of them are made
# The same on a CPU: larger ones are shared among threads at each of several operations, whose waiting takes longer.
_CPU_PIECE = 2**15
_LARGE_FACTOR = 2**28  # elements (2 GiB in float64) of a product's second factor that are copied to float64 at once


class OperationNoise(TorchDispatchMode):
    """Nudges operations for as long as it is entered; the same seed nudges the same.

    Args:
        seed: of the nudges.
        inputs: tensors that count as floating-point inputs.
        model: its parameters and persistent buffers count as computed, too.
        state_eps: by how much parameters and stored buffers are nudged; 0 where both sides hold the same ones.
        products_only: nudge nothing but products, by as much as they are less exact than their dtype (TF32 and others).
        few: nudge products with activations alone, each by its epsilon: most of the time goes into the rest.
    """

    def __init__(
        self,
        seed: int,
        inputs: Iterable[Tensor],
        model: nn.Module,
        *,
        state_eps: float = 0.0,
        products_only: bool = False,
        few: bool = False,
    ) -> None:
        super().__init__()
        self._draws = Draws(seed)
        self._inputs = {id(tensor): tensor for tensor in inputs}
        self._state = {id(tensor): tensor for tensor in stored_state(model) if tensor.is_floating_point()}
        self._state_draws: dict[int, Any] = {}  # the draws' state before each was nudged: it may be used again
        self._state_eps = state_eps
        self._products_only = products_only
        self._few = few

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_of_tree((args, kwargs))
        counts = any(map(self._counts, given))
        name, mutable = func._schema.name.partition("::")[2], func._schema.is_mutable
        if counts and self._state_eps and not mutable:
            args, kwargs = mapped_leaves(self._with_nudged_state, (args, kwargs))
        result = func(*args, **kwargs)
        is_product = name in _PRODUCTS
        if not counts and (self._few or not is_product):
            return result
        nudges = counts and not self._products_only and (not self._few or (is_product and not self._is_state(given)))
        has_error = is_product and not self._few
        if name in _EXACT or not (nudges or has_error):
            self._remember(result)
            return result
        memory = {tensor.untyped_storage().data_ptr() for tensor in given} if not mutable else set()
        exact = None
        if has_error:  # before all else, so that its factors are let go of: an output head is large
            exact = _exact_product(func, name, args, kwargs)
        del args, kwargs

        def noisy(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or id(leaf) in self._state:
                return leaf
            if leaf.numel() and leaf.untyped_storage().data_ptr() not in memory:
                noise = multiplied(leaf, self._draws, _eps(leaf)) if nudges else leaf
                if exact is not None:  # a flag costs as much in tables that code computes for itself
                    noise = noise + self._product_error(leaf, exact)
                leaf = leaf.copy_(noise) if mutable else noise
            if counts:
                setattr(leaf, _COMPUTED, True)
            return leaf

        return mapped_leaves(noisy, result)

    def _remember(self, result: Any) -> None:
        """That it was computed from floating-point numbers."""
        for tensor in tensors_of_tree(result):
            if tensor.is_floating_point() and id(tensor) not in self._state:
                setattr(tensor, _COMPUTED, True)

    def _counts(self, tensor: Tensor) -> bool:
        return id(tensor) in self._inputs or id(tensor) in self._state or hasattr(tensor, _COMPUTED)

    def _is_state(self, given: Iterable[Tensor]) -> bool:
        """Whether all numbers among these are the model's own."""
        return all(id(tensor) in self._state for tensor in given if tensor.is_floating_point())

    def _with_nudged_state(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or id(leaf) not in self._state:
            return leaf
        goes_on = self._draws.state(leaf.device)
        if (drawn := self._state_draws.setdefault(id(leaf), goes_on)) is goes_on:
            return multiplied(leaf, self._draws, self._state_eps)
        try:
            self._draws.go_on_from(leaf.device, drawn)
            return multiplied(leaf, self._draws, self._state_eps)
        finally:
            self._draws.go_on_from(leaf.device, goes_on)

    def _product_error(self, leaf: Tensor, exact: Tensor) -> Tensor:
        """The product's own error under the flags in force, with other signs; no more than any flag costs.

        Args:
            exact: the product in float64; used up.
        """
        size = exact.norm()
        error = exact.neg_().add_(leaf)  # in place, here and below: of an output head each is a gigabyte
        share = float(error.norm() / size) if size > 0 else 0.0
        if share > _COARSEST_PRODUCT:
            error.mul_(_COARSEST_PRODUCT / share)
        signs = self._draws.factors(error.shape, error.device, torch.float64, eps=1).sub_(1).sign_()
        return error.mul_(signs).to(leaf.dtype)


def _exact_product(func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """The product in float64; a large second factor is copied to float64 so many columns at a time."""
    if name != "mm" or args[1].numel() <= _LARGE_FACTOR:
        args, kwargs = mapped_leaves(_double, (args, kwargs))
        return func(*args, **kwargs)
    left, right = args[0].double(), args[1]
    product = left.new_empty(left.shape[0], right.shape[1])
    columns = max(1, _LARGE_FACTOR // right.shape[0])
    for into, some in zip(product.split(columns, dim=1), right.split(columns, dim=1), strict=True):
        into.copy_(func(left, some.double()))
    return product


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def multiplied(tensor: Tensor, draws: Draws, eps: float) -> Tensor:
    """The tensor times 1 + eps u, u uniform in [-1, 1]. What stands for infinity, as in masks, stays what it is."""
    most = torch.finfo(tensor.dtype).max / 2
    dtype = torch.promote_types(tensor.dtype, torch.float32)

    def piece(tensor: Tensor, factor: Tensor) -> Tensor:
        return torch.where(tensor.abs() < most, (tensor * factor).to(tensor.dtype), tensor)

    return in_pieces(piece, tensor, draws, eps, dtype)


def in_pieces(
    change: Callable[[Tensor, Tensor], Tensor], tensor: Tensor, draws: Draws, eps: float, dtype: torch.dtype
) -> Tensor:
    """What `change` makes of a tensor with factors of its shape, 1 + eps u, element by element, in pieces where it is
    large; of its dtype and strides.

    Args:
        change: may write to the factors.
        dtype: of the factors.
    """

    def factors(shape: tuple[int, ...]) -> Tensor:
        return draws.factors(shape, tensor.device, dtype, eps)

    on_cpu, flat = tensor.device.type == "cpu", tensor.is_contiguous()
    size = _CPU_PIECE if flat and on_cpu else _PIECE
    if tensor.numel() <= size or not tensor.dim():
        return change(tensor, factors(tensor.shape))
    result = torch.empty_like(tensor)
    into, given = (result.view(-1), tensor.view(-1)) if flat else (result, tensor)
    size = size if flat else max(1, size // tensor[0].numel())
    drawn: Iterable[Tensor] = (factors(some.shape) for some in given.split(size))
    if not on_cpu:  # a GPU draws other numbers where it draws them in pieces
        drawn = factors(given.shape).split(size)
    for part, some, factor in zip(into.split(size), given.split(size), drawn, strict=True):
        part.copy_(change(some, factor))
    return result


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def stored_state(model: nn.Module) -> list[Tensor]:
    """Parameters and persistent buffers: what a dtype that is asked for rounds."""
    tensors: list[Tensor] = list(model.parameters())
    for module in model.modules():
        hidden = module._non_persistent_buffers_set
        tensors += [buffer for name, buffer in module.named_buffers(recurse=False) if name not in hidden]
    return tensors
