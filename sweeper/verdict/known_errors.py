"""What is known of single modules before they run: those of torch's own give the same bits on the same arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sweeper.models.kinds import is_torchs_own
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_runs import Given, Kept, Key, autocast_in_force


class KnownErrors:
    """Own errors that were found in one side, for others that hold the same weights under the same conditions.

    A module of torch's own reads its weights and what it is given, and nothing else; others may look at the model's
    config, which tells the attention backend. What it is given are the reference's arguments in the side's dtypes.

    Args:
        same: these sides hold the weights and have the conditions of the reference itself.
    """

    def __init__(self, *, same: bool = False) -> None:
        self._same = same
        self._found: dict[Hashable, OwnError] = {}
        self._asked: dict[Key, Hashable] = {}

    def ask(self, key: Key, module: nn.Module, given: Given) -> OwnError | None:
        """What an earlier side has shown of a call of a module; None where it has to run."""
        self._asked.pop(key, None)
        if not _reads_arguments_alone(module, given):
            return None
        self._asked[key] = place = key, _dtypes(given.floats), autocast_in_force()
        return self._found.get(place)

    def tell(self, key: Key, found: OwnError) -> None:
        """Keeps what was found of a call, if such a module was asked for."""
        if key in self._asked:
            self._found[self._asked.pop(key)] = found

    def is_references(self, module: nn.Module, given: Given, kept: Kept) -> bool:
        """Whether the module gives what the reference's gave."""
        return (
            self._same
            and _reads_arguments_alone(module, given)
            and kept.autocast == autocast_in_force()
            and _dtypes(given.floats) == _dtypes(tree_leaves((kept.args, kept.kwargs)))
        )


def _reads_arguments_alone(module: nn.Module, given: Given) -> bool:
    """Whether it is torch's own as torch made it, is given floating-point tensors alone, draws nothing, and has no
    hooks but those of who watches it."""
    hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
    as_made = is_torchs_own(module) and not module.training and hooks == (1, 1) and "forward" not in vars(module)
    return as_made and len(given.floats) == len(tree_leaves((given.args, given.kwargs)))


def _dtypes(tensors: Sequence[Tensor]) -> tuple[torch.dtype, ...]:
    return tuple(tensor.dtype for tensor in tensors)
