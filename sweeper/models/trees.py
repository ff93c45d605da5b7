"""Trees of arguments and results as torch knows them (`torch.utils._pytree`), in a fraction of the time where they are
flat: what a mode sees thousands of times a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_LEAVES = frozenset((Tensor, nn.Parameter, bool, int, float, str, type(None), torch.dtype, torch.device))


def mapped_leaves(change: Callable[[Any], Any], tree: Any) -> Any:
    """What `tree_map` gives."""
    kind = type(tree)
    if kind in _LEAVES:
        return change(tree)
    if kind is tuple:
        return tuple([mapped_leaves(change, item) for item in tree])
    if kind is list:
        return [mapped_leaves(change, item) for item in tree]
    if kind is dict:
        return {name: mapped_leaves(change, item) for name, item in tree.items()}
    return tree_map(change, tree)


def tensors_of_tree(tree: Any) -> list[Tensor]:
    """The tensors among what `tree_leaves` gives."""
    kind = type(tree)
    if kind in _LEAVES:
        return [tree] if isinstance(tree, Tensor) else []
    if kind is tuple or kind is list:
        return [tensor for item in tree for tensor in tensors_of_tree(item)]
    if kind is dict:
        return [tensor for item in tree.values() for tensor in tensors_of_tree(item)]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
