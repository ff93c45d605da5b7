"""What is settled before ids: what checkpoints leave to their files, and axes that mean nothing for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.checkpoints import settled
from sweeper.checkpoints.card import read_card
from sweeper.config import Batch, Cell, Checkpoint, Decode, Inputs, Layout, Positions
from sweeper.errors import ConfigError, SweeperError
from sweeper.inputs.media import as_array, missing_package


@dataclass
class Settler:
    """Settles cells; remembers what it read, and what it dropped.

    Attributes:
        say: takes a line of progress.
        dropped: one sentence an axis and checkpoint.
    """

    say: Callable[[str], None]
    dropped: dict[str, None] = field(default_factory=dict)
    _checkpoints: dict[Checkpoint, tuple[Checkpoint, Path | None]] = field(default_factory=dict)
    _arrays: dict[tuple[Inputs, Path], Path | None] = field(default_factory=dict)

    def cells(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that are left, each once."""
        return list(dict.fromkeys(map(self.cell, cells)))

    def cell(self, cell: Cell) -> Cell:
        """The cell without open questions, axes without meaning at the one value that stands for all."""
        checkpoint, folder = self._settled(cell.checkpoint)
        changes: dict[str, Any] = {} if checkpoint == cell.checkpoint else {"checkpoint": checkpoint}
        if cell.layout is Layout.PADDED:
            pads_left = checkpoint.causal if folder is None else read_card(folder).pads_left
            changes["layout"] = Layout.PADDED_LEFT if pads_left else Layout.PADDED_RIGHT
            cell = cell.model_copy(update={"layout": changes["layout"]})
        kind = _model_class(checkpoint, folder)
        if (made := self._made_array(cell.inputs, folder, kind)) is not None:
            changes["inputs"] = cell.inputs.model_copy(update={"arrays": str(made)})
        for axis, value, reason in _meaningless(cell, checkpoint, kind):
            if getattr(cell, axis) != value:
                changes[axis] = value
                self.dropped[f"{axis} has no meaning for {checkpoint.name}: {reason}"] = None
        return cell.model_copy(update=changes) if changes else cell

    def unsupported(self, cell: Cell) -> str | None:
        """Why the class of a settled cell's model cannot run it."""
        checkpoint, folder = self._settled(cell.checkpoint)
        kind = _model_class(checkpoint, folder)
        if (reason := missing_package(cell.inputs)) or kind is None or folder is None:
            return reason
        from sweeper.models.family import cannot_load, cannot_pack, cannot_read

        if reason := cannot_load(folder):
            return reason
        packs = cell.layout is Layout.PACKED
        reason = cannot_pack(kind, cell.attention, causal=bool(cell.checkpoint.causal)) if packs else None
        return reason or cannot_read(kind, cell.inputs)

    def _made_array(self, inputs: Inputs, folder: Path | None, kind: type[Any] | None) -> Path | None:
        """What the checkpoint's processor makes of images or sounds; None without any, or where nobody reads them."""
        if inputs.media is None or folder is None or kind is None or missing_package(inputs) is not None:
            return None
        from sweeper.models.family import main_input

        key = inputs, folder
        if key not in self._arrays:
            reads = main_input(kind)
            self._arrays[key] = None if reads == "input_ids" else as_array(inputs, folder, reads, self.say)
        return self._arrays[key]

    def folder(self, checkpoint: Checkpoint) -> Path | None:
        """Where a settled checkpoint describes itself; None where nobody had to look."""
        return self._settled(checkpoint)[1]

    def _settled(self, checkpoint: Checkpoint) -> tuple[Checkpoint, Path | None]:
        if checkpoint not in self._checkpoints:
            try:
                found = settled(checkpoint, self.say)
                _model_class(*found)
            except SweeperError:
                raise
            except Exception as error:  # what a library makes of a file that it did not write is its own affair
                where = f"{getattr(checkpoint, 'path', checkpoint.name)}: config.json or a file beside it"
                raise ConfigError(
                    f"{where} is not what transformers reads ({type(error).__name__}: {error})"
                ) from error
            self._checkpoints[checkpoint] = self._checkpoints[found[0]] = found
        return self._checkpoints[checkpoint]


def _model_class(checkpoint: Checkpoint, folder: Path | None) -> type[Any] | None:
    """What the checkpoint is loaded as; None where nobody had to look into its files."""
    if folder is None:
        return None
    from sweeper.models.family import model_class  # transformers: seconds

    return model_class(folder, checkpoint.head)


def _meaningless(cell: Cell, checkpoint: Checkpoint, kind: type[Any] | None) -> Iterable[tuple[str, Any, str]]:
    """Axes, the value that stands for all of theirs, and why."""
    if cell.layout is Layout.SINGLE:
        yield "batch", Batch.INPUTS, "layout=single runs each text alone"
    if kind is None:
        if not checkpoint.causal:
            yield "use_cache", False, "an encoder has no key-value cache"
            yield "decode", Decode.WHOLE, "an encoder has no key-value cache"
        return
    from sweeper.models.family import accepts, has_cache, main_input

    name, reads = kind.__name__, main_input(kind)
    if not has_cache(kind, causal=bool(checkpoint.causal)):
        yield "use_cache", False, f"{name} has no key-value cache"
    if not has_cache(kind, causal=bool(checkpoint.causal)) or accepts(kind, "decoder_input_ids"):
        yield "decode", Decode.WHOLE, f"{name} reads what it is given at once"
    if not accepts(kind, "position_ids"):
        yield "positions", Positions.IMPLICIT, f"{name} takes no position_ids"
    if reads != "input_ids" and cell.layout is not Layout.SINGLE:
        yield "layout", Layout.PADDED_RIGHT, f"{name} reads {reads}, where nothing is padded or packed"
