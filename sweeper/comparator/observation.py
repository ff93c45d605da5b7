"""A run of a side that is kept whole: every module's output and every leaf module's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sweeper.comparator.hooks import LeafCapture, LeafInput, ModuleOutput, capturing
from sweeper.comparator.side import POOLING, Outputs, Side, run


@dataclass
class ModuleRows:
    """Rows of one output of a module, call after call, copied.

    Attributes:
        outputs: what came out. inputs: what a leaf module was given; empty for others and for a second output.
        owns: what a leaf module makes of the reference's input; empty where that was not asked for or cannot be had.
    """

    module_type: str
    outputs: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    owns: list[Tensor] = field(default_factory=list)

    @property
    def output(self) -> Tensor:
        return torch.cat(self.outputs)

    @property
    def input(self) -> Tensor | None:
        return torch.cat(self.inputs) if self.inputs else None

    @property
    def own(self) -> Tensor | None:
        return torch.cat(self.owns) if self.owns else None


@dataclass(frozen=True)
class Observation:
    """A run: every module's rows in order of execution, pooling (code behind the model) last, and the outputs."""

    modules: dict[str, ModuleRows]
    outputs: Outputs

    def inputs(self) -> dict[str, Tensor]:
        """What each leaf module was given."""
        return {name: given for name, module in self.modules.items() if (given := module.input) is not None}


def observe(side: Side, given: Mapping[str, Tensor] | None = None) -> Observation:
    """Runs a side and keeps everything.

    Args:
        given: inputs of another side's leaf modules, on which these are run too.
    """
    modules: dict[str, ModuleRows] = {}
    owns: dict[str, list[Tensor]] = {}

    def take(output: ModuleOutput) -> None:
        module = modules.setdefault(output.name, ModuleRows(output.module_type))
        module.outputs.append(output.tensor_NF.clone())

    def take_input(leaf: LeafInput) -> None:
        inputs.setdefault(leaf.name, []).append(leaf.input_NF.clone())
        for name, own_NF in leaf.own.items():
            owns.setdefault(name, []).append(own_NF.clone())

    inputs: dict[str, list[Tensor]] = {}
    running = LeafCapture(take, take_input, given or {})
    with capturing(side.model, running):
        outputs = run(side, running.begin)
    for name, module in modules.items():
        module.inputs, module.owns = inputs.get(name, []), owns.get(name, [])
    if POOLING in outputs:
        modules[POOLING] = ModuleRows("pooling", [outputs[POOLING]])
    return Observation(modules, outputs)
