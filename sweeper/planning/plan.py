"""What a sweep will do, decided before any weight is loaded: ids, references, what cannot run, order, folder."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from sweeper.checkpoints.folder import deciding_files
from sweeper.config import Cell, FolderCheckpoint
from sweeper.environment import default_device, identity, versions
from sweeper.errors import ConfigError
from sweeper.models import axes
from sweeper.models.weights import WeightsKey
from sweeper.planning import preflight
from sweeper.planning.grid import SweepRequest
from sweeper.planning.settle import Settler
from sweeper.planning.unsupported import unsupported_reason
from sweeper.records.recording import digest


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A candidate with its reference.

    Attributes:
        unsupported: the reason why it cannot run here, None if it can.
        recording: the file that it is compared with in place of the reference, which is the cell itself then;
            `reference_id` is a hash of it.
    """

    cell: Cell
    cell_id: str
    reference: Cell
    reference_id: str
    unsupported: str | None
    recording: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep before it runs.

    Attributes:
        grid, sweep: names; `folder` is `output_dir/grid/sweep`.
        environment: of this machine, as it goes into every record; with the versions of the packages that a cell uses.
        cells: in the order in which they run.
        excluded: labels of each excluded combination, and its rule.
        dropped: axes that mean nothing for a checkpoint, a sentence each.
        reference_count: references that will run.
        weight_reads: how often a checkpoint is read, where the models fit in memory.
    """

    grid: str
    sweep: str
    folder: Path
    environment: dict[str, Any]
    cells: tuple[PlannedCell, ...]
    excluded: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    dropped: tuple[str, ...]
    reference_count: int
    weight_reads: int


def make_plan(request: SweepRequest, environment: dict[str, Any]) -> Plan:
    """Plans a sweep.

    Args:
        request: the validated cells and their reference.
        environment: of this machine; what `environment.identity` takes from it is part of every cell id.
    """
    ids = CellIds(identity(environment))
    settler = Settler(lambda line: print(line, file=sys.stderr))
    cells = _ordered(_planned_cells(request, settler, ids))
    _require_device(cells)
    sweep = request.settings.sweep or _sweep_name(cells)
    runnable = [planned for planned in cells if planned.unsupported is None]
    folder = Path(request.settings.output_dir) / request.grid / sweep
    preflight.check([planned.cell for planned in runnable], folder, settler.folder)
    return Plan(
        grid=request.grid,
        sweep=sweep,
        folder=folder,
        environment={**environment, **ids.packages},
        cells=tuple(cells),
        excluded=request.excluded,
        dropped=tuple(settler.dropped),
        reference_count=len({planned.reference_id for planned in runnable}),
        weight_reads=len({WeightsKey.of(side).read for p in runnable for side in (p.cell, p.reference)}),
    )


class CellIds:
    """Gives cells their ids; what many of them share is looked up and written out once.

    Attributes:
        packages: the versions that any of the ids depends on, as they stand in an environment.
    """

    def __init__(self, environment_identity: dict[str, Any]) -> None:
        self.packages: dict[str, str | None] = {}
        self._environment = _canonical(environment_identity)
        self._versions: dict[tuple[str, ...], str] = {}
        self._places: dict[Path, list[tuple[str, int, int]]] = {}
        tables = ((axis.needs, axis.packages) for axis in axes.table())
        self._named = [names for named in tables for names in named if names is not None]

    def of(self, cell: Cell) -> str:
        """12 hex digits of a hash of all choices, of the files they name, and of what can change a result: the
        environment, and the packages that these choices use."""
        choices = ",".join([f'"{axis}":{_canonical_value(value)}' for axis, value in cell.choices().items()])
        files = self._files(cell)
        rest = f"{self._environment}{self._versions_for(cell)}{_canonical(files) if files else ''}"
        return _sha256(f"{{{choices}}}{rest}")[:12]

    def _versions_for(self, cell: Cell) -> str:
        names = tuple([name for named in self._named for name in named(cell)])
        if names not in self._versions:
            found = versions(dict.fromkeys(names))
            self.packages |= found
            self._versions[names] = _canonical(found) if found else ""
        return self._versions[names]

    def _files(self, cell: Cell) -> dict[str, Any]:
        """What lies behind the paths that a cell names: an edited file under the same path makes another cell.

        Texts and arrays count by content; a checkpoint's files, which can be large, by size and time of change.
        """
        files: dict[str, Any] = {}
        given = cell.inputs.file or cell.inputs.arrays
        if given is not None:
            path = Path(given)
            files["inputs"] = _file_sha256(path.absolute(), path.stat().st_mtime_ns, path.stat().st_size)
        if cell.inputs.recording is not None:
            files["recording"] = digest(Path(cell.inputs.recording))
        if isinstance(cell.checkpoint, FolderCheckpoint):
            files["checkpoint"] = self._stats(Path(cell.checkpoint.path).expanduser())
        base = getattr(cell.checkpoint, "base", None)
        if base is not None and Path(base).is_absolute():  # else it is one of the hub
            files["base"] = self._stats(Path(base))
        return files

    def _stats(self, place: Path) -> list[tuple[str, int, int]]:
        """Name, size and time of change of each file of a folder that can decide a result; of a GGUF file its own."""
        if place not in self._places:
            names = [""] if place.is_file() else deciding_files(place)
            stats = [(name, (place / name).stat()) for name in names]
            self._places[place] = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return self._places[place]


def _require_device(cells: Sequence[PlannedCell]) -> None:
    """A grid may hold cells of a GPU that is not there; one that holds no other cells asks for the wrong device."""
    reasons = {planned.unsupported for planned in cells if planned.cell.device == "cuda"}
    if all(planned.cell.device == "cuda" for planned in cells) and default_device() != "cuda" and None not in reasons:
        raise ConfigError("device=cuda: torch sees no GPU here; type device=cpu")


def _unsupported_id(cell_id: str, reason: str | None) -> str:
    """Another id than where the cell can run: once what was missing is there, the same command runs it."""
    return cell_id if reason is None else _sha256(cell_id + reason)[:12]


@lru_cache(maxsize=64)
def _file_sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    """Read once, not once a cell; time and size are there so that a changed file is read again."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _planned_cells(request: SweepRequest, settler: Settler, ids: CellIds) -> list[PlannedCell]:
    reasons: dict[str, str | None] = {}

    def identified(cell: Cell) -> tuple[str, str | None]:
        key = ids.of(cell)
        if key not in reasons:
            reasons[key] = unsupported_reason(cell) or settler.unsupported(cell)
        return key, reasons[key]

    planned = []
    for cell in settler.cells(request.cells):
        reference = settler.cell(cell.model_copy(update=request.reference))
        candidate_id, reason = identified(cell)
        reference_id, reference_reason = identified(reference)
        if request.recording is not None:
            reference_id, reference_reason = digest(request.recording), None
        if reason is None and reference_reason is not None:
            reason = f"its reference cannot run: {reference_reason}"
        planned.append(
            PlannedCell(
                cell=cell,
                cell_id=_unsupported_id(candidate_id, reason),
                reference=reference,
                reference_id=_unsupported_id(reference_id, reference_reason),
                unsupported=reason,
                recording=request.recording,
            )
        )
    return planned


def _ordered(cells: list[PlannedCell]) -> list[PlannedCell]:
    """Sorts by checkpoint, reference, what is read and weights, each in the order of first appearance."""
    ranks: tuple[dict[Hashable, int], ...] = ({}, {}, {}, {})  # value -> how many others appeared before it

    def places(planned: PlannedCell) -> list[int]:
        weights = WeightsKey.of(planned.cell)
        values = (planned.cell.checkpoint, planned.reference_id, weights.read, weights)
        return [seen.setdefault(value, len(seen)) for seen, value in zip(ranks, values, strict=True)]

    return sorted(cells, key=places)


def _sweep_name(cells: Sequence[PlannedCell]) -> str:
    """Checkpoints, device, and a hash of all pairs: the same command in the same environment finds its folder again."""
    names = list(dict.fromkeys(planned.cell.checkpoint.name for planned in cells))
    joined = "+".join(names) if len(names) <= 2 else f"{len(names)}_checkpoints"
    devices = "+".join(dict.fromkeys(planned.cell.device for planned in cells))
    pairs = sorted((planned.cell_id, planned.reference_id) for planned in cells)
    return f"{re.sub(r'[^A-Za-z0-9._=+-]', '_', joined)[:80]}-{devices}-{_sha256(_canonical(pairs))[:8]}"


@lru_cache(maxsize=4096)
def _canonical_value(value: Any) -> str:
    return _canonical(to_jsonable_python(value))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
