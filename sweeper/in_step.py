"""Reference and candidate side by side: both forwards run in turns, and an output dies when it has been compared.

The reference runs until a bounded number of bytes of outputs waits, then the candidate until it has used them up, and
so on. Each side is a greenlet, so that a turn can end inside a hook, wherever the model is: this asks nothing of the
models but that their modules run in the same order. Against two threads with a baton it needs no locks, keeps one CUDA
stream and one set of torch's thread-local modes, and can be captured in a CUDA graph. What is global (numerics flags,
autocast) is the same on both sides; cells that differ in it are compared with recorded outputs (`compare.py`).

Shapes: N tokens, F features.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from sweeper.capture import tensors_of
from sweeper.errors import AlignmentError
from sweeper.layout import Forward, is_attention_map, to_tokens
from sweeper.metrics.pair import PairAccumulator, Update, finish, update_all
from sweeper.metrics.tables import Tables
from sweeper.results import PairMeasures

# Bytes of the reference's outputs that wait for the candidate, and of both sides that wait for a launch: the fewer
# turns and launches, the less the host costs. A layer of Qwen3-0.6B gives 0.8 GB a side at 32 x 512 tokens.
_WAITING = 3 * 2**28
_LAUNCH = 2**29


class _Output(NamedTuple):
    """One tensor of one module: what is to be compared, and the module's own (the same, unless it was copied)."""

    name: str
    tensor: Tensor
    original: Tensor


class SideBySide:
    """Compares two models' module outputs while both run. A context manager: inside, the hooks are in place.

    The first batch is compared from copies, to learn which outputs a later module overwrites; from then on only those
    are copied.

    Args:
        reference, candidate: their modules run in the same order and have the same names.
        waiting_bytes: of the reference's outputs, at least one output is kept whatever its size.

    Attributes:
        accumulators: by name of the output, in order of execution.
        unaligned: outputs without a token dimension.
        tables: the launches' addresses; `tables.upload()` after a CUDA graph has captured `run`.
    """

    def __init__(self, reference: nn.Module, candidate: nn.Module, *, waiting_bytes: int = _WAITING) -> None:
        self.accumulators: dict[str, PairAccumulator] = {}
        self.unaligned: set[str] = set()
        self._models = reference, candidate
        self._limit = waiting_bytes
        self._waiting: deque[_Output] = deque()
        self._waiting_bytes = 0
        self._pending: list[tuple[_Output, _Output]] = []
        self._pending_bytes = 0
        self._forwards: tuple[Forward, Forward] | None = None
        self._overwritten: set[str] = set()
        self._batches = 0
        self.tables = Tables()
        self._hooks = ExitStack()

    def __enter__(self) -> SideBySide:
        for model, take in zip(self._models, (self._take_reference, self._take_candidate), strict=True):
            for name, module in model.named_modules():
                if name:
                    handle = module.register_forward_hook(self._hook(name, take))
                    self._hooks.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def run(self, reference: Forward, candidate: Forward, **options: Any) -> tuple[Any, Any]:
        """Runs both models on one batch and compares; returns their outputs. Does not synchronise with the device.

        Raises:
            AlignmentError: the modules do not run in the same order.
        """
        self._forwards = reference, candidate
        self._calls: Counter[str] = Counter()
        self.tables.rewind()
        first = greenlet(lambda: self._models[0](**reference.inputs, **options))
        second = greenlet(lambda: self._models[1](**candidate.inputs, **options))
        outputs = None, None
        try:
            outputs = self._turns(first, second)
        finally:
            for side in (first, second):
                if side:  # suspended in its forward by an error of the other
                    side.throw()
            self._waiting.clear()
            self._waiting_bytes = 0
            self._pending.clear()
            self._pending_bytes = 0
            self._forwards = None
        self._batches += 1
        return outputs

    def _turns(self, first: greenlet, second: greenlet) -> tuple[Any, Any]:
        reference_output = candidate_output = None
        while not second.dead:
            if not first.dead:
                reference_output = first.switch()
            elif not self._waiting:
                raise AlignmentError("the candidate runs modules behind the reference's last one")
            candidate_output = second.switch()
        if not first.dead:  # its last outputs filled the waiting room
            reference_output = first.switch()
        if self._waiting:
            raise AlignmentError(f"the candidate has ended; the reference still gave {self._waiting[0].name}")
        self._flush()
        return reference_output, candidate_output

    def _hook(self, name: str, take: Callable[[_Output], None]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._forwards is None:
                return
            if isinstance(output, Tensor):
                take(self._output(name, output))
            else:
                for index, tensor in enumerate(tensors_of(output)):
                    take(self._output(f"{name}[{index}]" if index else name, tensor))

        return hook

    def _output(self, name: str, tensor: Tensor) -> _Output:
        copy = not self._batches or name in self._overwritten
        return _Output(name, tensor.clone() if copy else tensor, tensor)

    def _take_reference(self, output: _Output) -> None:
        self._waiting.append(output)
        self._waiting_bytes += output.tensor.nbytes
        if self._waiting_bytes >= self._limit:
            getcurrent().parent.switch()

    def _take_candidate(self, output: _Output) -> None:
        while not self._waiting:
            getcurrent().parent.switch()
        reference = self._waiting.popleft()
        if reference.name != output.name:
            raise AlignmentError(f"the reference runs {reference.name} where the candidate runs {output.name}")
        self._waiting_bytes -= reference.tensor.nbytes
        self._pending.append((reference, output))
        self._pending_bytes += reference.tensor.nbytes + output.tensor.nbytes
        if self._pending_bytes >= _LAUNCH:
            self._flush()

    def _flush(self) -> None:
        updates = [update for pair in self._pending if (update := self._update(*pair)) is not None]
        if not self._batches:
            self._learn()
        self._pending.clear()
        self._pending_bytes = 0
        update_all(updates, self.tables)

    def _learn(self) -> None:
        for output in (output for pair in self._pending for output in pair):
            if not torch.equal(output.tensor, output.original):
                self._overwritten.add(output.name)

    def _update(self, reference: _Output, candidate: _Output) -> Update | None:
        assert self._forwards is not None, "hooks act inside run() alone"
        name = reference.name
        call = self._calls[name]
        self._calls[name] = call + 1
        reference_NF = _rows(reference.tensor, self._forwards[0])
        candidate_NF = _rows(candidate.tensor, self._forwards[1])
        if reference_NF is None or candidate_NF is None:
            self.unaligned.add(name)
            return None
        called = f"{name}#{call}" if call else name
        accumulator = self.accumulators.get(called)
        if accumulator is None:
            accumulator = PairAccumulator(reference_NF.dtype, candidate_NF.dtype, candidate_NF.device)
            self.accumulators[called] = accumulator
        return Update(accumulator, reference_NF, candidate_NF)

    def finish(self) -> dict[str, PairMeasures]:
        """The figures by name, in order of execution, with one transfer to the host."""
        return dict(zip(self.accumulators, finish(list(self.accumulators.values())), strict=True))


def _rows(tensor: Tensor, forward: Forward) -> Tensor | None:
    """`layout.to_tokens`, with less work for the host where it is a plain view."""
    B, T = forward.inputs["input_ids"].shape
    if tensor.dim() == 3 and len(forward.flat_N) == B * T and tensor.shape[:2] == (B, T) and tensor.is_contiguous():
        return tensor.view(B * T, -1)
    if not tensor.is_floating_point() or is_attention_map(tensor, forward):
        return None
    return to_tokens(tensor, forward)
