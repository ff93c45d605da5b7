"""A run of a side that is kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sweeper.comparator.hooks import ModuleRows, Observer, capturing
from sweeper.comparator.outputs import ModelOutputs
from sweeper.comparator.side import POOLING, Side, run, uncompiled_side


@dataclass(frozen=True)
class Observation:
    """A run: every module's rows in order of execution, pooling (code behind the model) last, and the outputs."""

    modules: dict[str, ModuleRows]
    outputs: ModelOutputs

    def inputs(self) -> dict[str, Tensor]:
        """What each leaf module was given."""
        return {name: torch.cat(module.inputs) for name, module in self.modules.items() if module.inputs}


def observe(side: Side, given: Mapping[str, Tensor] | None = None) -> Observation:
    """Runs a side and keeps everything. Of a compiled model the modules are those of its code as it is written.

    Args:
        given: inputs of another side's leaf modules, on which these are run too.
    """
    several = any(not call.forward.one_kind for call in side.calls)
    observer = Observer(given or {}, several=several)
    written = uncompiled_side(side)
    with capturing(side.model, observer, side.names):
        outputs = run(written, observer.begin)
    if written is not side:
        outputs = run(side)
    if POOLING in outputs:
        observer.modules[POOLING] = ModuleRows("pooling", [outputs[POOLING]])
    return Observation(observer.modules, outputs)
