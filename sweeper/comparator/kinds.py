"""Which kind of tokens a tensor inside a running model is of, where a call has several: an encoder's and a
decoder's, or a text beside pictures.

A module works on what it was given: on the same tokens as its first tensor, where that is an argument of the call or
came out of another module. Else it works on those of the part of the model that it lies in or that is running, or at
the top on what the module before gave (a head).
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from sweeper.inputs.calls import is_beside, is_decoders, tensors_in
from sweeper.inputs.layout import Tokens

_ENCODER, _DECODER = ("encoder",), ("decoder",)
_PICTURES, _TEXT = ("vision", "visual", "image", "pixel", "audio", "speech"), ("text", "language")


class Kinds:
    """Follows one run. Hook every module with `enter` and `leave`, the model itself under the name ``."""

    def __init__(self) -> None:
        self._tokens: Tokens | None = None
        self._running: list[Tokens | None] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], Tokens]] = {}
        self._last: Tokens | None = None

    def begin(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._running.clear()
        self._known.clear()
        self._last = None

    @property
    def several(self) -> bool:
        """Whether there is anything to tell apart."""
        return self._tokens is not None and not self._tokens.one_kind

    def of(self, tensor: Tensor) -> Tokens:
        """The tokens that a tensor is of: known, or those of the module that is running, or the only ones of its
        length; else none but the rows of the batch."""
        assert self._tokens is not None
        kind = self._kind_of(tensor) or (self._running[-1] if self._running else None)
        if kind is None:
            fitting = [one for one in self._all() if tensor.dim() > 1 and tensor.shape[:2] == one.shape]
            kind = fitting[0] if len(fitting) == 1 else self._tokens.rows_only()
        return kind

    def enter(self, name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        """The hook before a module's forward."""
        if not self.several:
            return
        given = [*tensors_in(args), *tensors_in(kwargs)]
        if not name:
            for argument, tensor in given:
                self._remember(tensor, self._of_argument(argument))
        first = self._kind_of(given[0][1]) if given and name else None
        around = self._running[-1] if self._running else None
        self._running.append(first or self._of_part(name) or around or (self._last if name else None))

    def leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """The hook behind it."""
        if not self.several or not self._running:
            return
        kind = self._running.pop()
        if kind is not None:
            self._last = kind
            for _, tensor in tensors_in(output):
                self._remember(tensor, kind)

    def _all(self) -> list[Tokens]:
        assert self._tokens is not None
        return [self._tokens, *([self._tokens.encoder] if self._tokens.encoder is not None else [])]

    def _of_argument(self, name: str) -> Tokens:
        assert self._tokens is not None
        if self._tokens.encoder is not None:
            return self._tokens if is_decoders(name) else self._tokens.encoder
        return self._tokens.rows_only() if is_beside(name) else self._tokens

    def _of_part(self, path: str) -> Tokens | None:
        assert self._tokens is not None
        theirs, mine = (_PICTURES, _TEXT) if self._tokens.encoder is None else (_ENCODER, _DECODER)
        for part in path.split("."):
            if part.startswith(mine):
                return self._tokens
            if part.startswith(theirs):
                return self._tokens.encoder or self._tokens.rows_only()
        return None

    def _remember(self, tensor: Tensor, kind: Tokens) -> None:
        if (memory := _memory(tensor)) is not None:
            self._known[memory] = weakref.ref(tensor), kind

    def _kind_of(self, tensor: Tensor) -> Tokens | None:
        memory = _memory(tensor)
        known = self._known.get(memory) if memory is not None else None
        return known[1] if known is not None and known[0]() is not None else None


def _memory(tensor: Tensor) -> int | None:
    """Where a tensor's storage lies: views share it."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # it has none of its own
        return None
