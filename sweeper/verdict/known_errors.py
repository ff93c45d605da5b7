"""What is known of single modules before they run: those of torch's own give the same bits on the same arguments."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sweeper.models.kinds import is_torchs_own
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_runs import Kept, Key, autocast_in_force, coarsest


class KnownErrors:
    """Own errors that were found in one side, for others that hold the same weights under the same conditions.

    A module of torch's own reads its weights and what it is given, and nothing else; others may look at the model's
    config, which tells the attention backend. It is told by its call, its arguments by their dtypes: they are the
    reference's in those.

    Args:
        same: these sides hold the weights and have the conditions of the reference itself.
    """

    def __init__(self, *, same: bool) -> None:
        self._same = same
        self._found: dict[Hashable, OwnError] = {}
        self._asked: dict[Key, Hashable] = {}

    def ask(self, key: Key, module: nn.Module, given: tuple[Any, Any], kept: Kept) -> OwnError | None:
        """What is known of a call of a module.

        Args:
            given: arguments and keyword arguments, with which the side calls it.
            kept: of the reference.
        """
        self._asked.pop(key, None)
        if not _reads_arguments_alone(module):
            return None
        dtypes = _dtypes(given)
        if dtypes is None:
            return None
        autocast = autocast_in_force()
        if self._same and (dtypes, autocast) == (_dtypes((kept.args, kept.kwargs)), kept.autocast):
            return OwnError(name=key[1], own=0.0, dtype=str(coarsest(kept.output)).removeprefix("torch."))
        self._asked[key] = place = key, dtypes, autocast
        return self._found.get(place)

    def tell(self, key: Key, found: OwnError) -> None:
        """Keeps what was found of a call, if such a module was asked for."""
        if key in self._asked:
            self._found[self._asked.pop(key)] = found


def _reads_arguments_alone(module: nn.Module) -> bool:
    """Whether it is torch's own as torch made it, draws nothing, and has no hooks but those of who watches it."""
    hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
    return is_torchs_own(module) and not module.training and hooks == (1, 1) and "forward" not in vars(module)


def _dtypes(given: tuple[Any, Any]) -> tuple[torch.dtype, ...] | None:
    """Those of the arguments; None where some are no floating-point tensors."""
    leaves = tree_leaves(given)
    if not all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
        return None
    return tuple(leaf.dtype for leaf in leaves)
