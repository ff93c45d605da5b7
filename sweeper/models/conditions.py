"""The global settings around a side's forwards, out of the table of axes: the same for cells and for the verdict."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext

from sweeper.config import Cell
from sweeper.models import axes
from sweeper.models.axis import Switch


class CellSwitches(dict[str, Switch]):
    """A cell's switches, by name.

    Attributes:
        key: what decides them; forwards of cells that have the same may run in one another's conditions.
    """

    key: Hashable = None


def switches(cell: Cell) -> CellSwitches:
    """Everything global that a cell asks for, one thing each, so that one alone can be put back. Outermost first."""
    found = CellSwitches(
        (name, switch) for axis in reversed(axes.table()) for name, switch in axis.switches_of(cell).items()
    )
    found.key = axes.parts("conditions", cell)
    return found


def same_conditions(reference: Cell, candidate: Cell) -> bool:
    """Whether one cell's forwards may run in the other's conditions."""
    return axes.parts("conditions", reference) == axes.parts("conditions", candidate)


def key_of(switches: Mapping[str, Switch]) -> Hashable | None:
    """What sides share that run in the same conditions; None where that is not known: a copy with a switch put back."""
    return switches.key if isinstance(switches, CellSwitches) else None


@contextmanager
def conditions(cell: Cell) -> Iterator[dict[str, str]]:
    """Surrounds a cell's forwards. What it yields is filled in at the end: setting -> why it did nothing."""
    without_effect: dict[str, str] = {}
    with begun(switches(cell)):
        yield without_effect
        for axis in axes.table():
            if axis.without_effect is not None:
                without_effect |= axis.without_effect(cell)


@contextmanager
def begun(switches: Mapping[str, Switch]) -> Iterator[None]:
    """The switches set, for a run that begins."""
    begin(switches)
    with in_force(switches):
        yield


def begin(switches: Mapping[str, Switch]) -> None:
    """What the switches do once a run, before its first call."""
    for switch in switches.values():
        if switch.begin is not None:
            switch.begin()


@contextmanager
def in_force(switches: Mapping[str, Switch]) -> Iterator[None]:
    """The switches set, for a run that goes on."""
    with ExitStack() as stack:
        for switch in switches.values():
            if switch.context is not nullcontext:  # most flags are at their default, and turns are many
                stack.enter_context(switch.context())
        yield
