"""`python -m case_studies.measure_fixups SWEEP CELL`: the two fix-ups of report 2 that are no choice of a cell.

Every cell runs in eval mode and compares aligned tokens. What that is worth is measured here, with and without.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor

from case_studies.fixups import FIXUPS_FILE, FixupRecord, FixupsRecord
from sweeper.checkpoints import prepare
from sweeper.comparator.forwards import read_texts, side_of
from sweeper.comparator.hooks import tensors_of
from sweeper.comparator.side import Side
from sweeper.config import Cell, parse
from sweeper.errors import ConfigError, SweeperError
from sweeper.inputs.layout import to_tokens
from sweeper.metrics.pair import measure
from sweeper.models.loading import ModelPool, sharing_copy
from sweeper.records.cell import CellRecord
from sweeper.records.sweep import Sweep


def main() -> None:
    """Exit code 0, 1 (it could not be run), 2 (bad input)."""
    parser = argparse.ArgumentParser(prog="python -m case_studies.measure_fixups", description=__doc__)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep's folder: outputs/<grid>/<sweep>")
    parser.add_argument("cell", metavar="CELL", help="a padded or packed cell's id, or its first characters")
    arguments = parser.parse_args()
    try:
        sweep = Sweep.read(arguments.sweep)
        found = measure_fixups(sweep.find(arguments.cell))
    except SweeperError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    path = sweep.folder / FIXUPS_FILE
    path.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for one in found.fixups:
        print(f"{one.fixup}: max |Δ| {one.without.max_abs:.4g} without, {one.with_it.max_abs:.4g} with it")
    print(path)


@torch.no_grad()
def measure_fixups(record: CellRecord) -> FixupsRecord:
    """Runs a cell and its reference again: in training and in eval mode, and compared with and without alignment.

    Raises:
        ConfigError: the cell did not run.
    """
    if record.output is None:
        raise ConfigError(f"{record.cell_id}: {record.status.value} ({record.reason}); give a cell that ran")
    sides = _sides(record)
    reference, candidate = (_outputs(side) for side in sides)
    aligned = measure(*(_joined(_tokens(side, run)) for side, run in zip(sides, (reference, candidate), strict=True)))
    unaligned = measure(*_same_places(sides, reference, candidate))
    for side in sides:
        side.model.train()
    in_training = measure(*(_joined(_tokens(side, _outputs(side))) for side in sides))
    return FixupsRecord(
        cell_id=record.cell_id,
        fixups=(
            FixupRecord(fixup="eval_mode", without=in_training, with_it=aligned),
            FixupRecord(fixup="aligned_slices", without=unaligned, with_it=aligned),
        ),
    )


def _sides(record: CellRecord) -> tuple[Side, Side]:
    """Reference and candidate with all their texts, as the runner calls them."""
    reference, cell = parse(Cell, record.reference_choices), parse(Cell, record.choices)
    transformers.utils.logging.disable_progress_bar()
    pool = ModelPool()
    local = prepare(cell.checkpoint, device=cell.device, say=lambda line: print(line, file=sys.stderr))
    reference_model = sharing_copy(pool.get(reference, local.folder)[0].model)
    model = pool.get(cell, local.folder)[0].model
    token_ids = read_texts(cell, local, model).token_ids
    texts = range(len(token_ids))
    return (
        side_of(reference, reference_model, token_ids, [texts]),
        side_of(cell, model, token_ids, [texts]),
    )


def _outputs(side: Side) -> list[Tensor]:
    """What each call gives, [B, T, F], pads included."""
    with side.conditions():
        return [tensors_of(side.model(**call.kwargs))[0] for call in side.calls]


def _tokens(side: Side, outputs: Sequence[Tensor]) -> list[Tensor]:
    """The output of each text, [tokens, F]."""
    texts = []
    for call, output in zip(side.calls, outputs, strict=True):
        token_NF = to_tokens(output, call.forward)
        assert token_NF is not None
        texts += token_NF.split(list(call.forward.lengths))
    return texts


def _same_places(
    sides: tuple[Side, Side], reference: Sequence[Tensor], candidate: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Each text's first columns of its row in the reference against the text in the candidate: what an eye compares."""
    rows = [row_TF for output_BTF in reference for row_TF in output_BTF]
    if any(len(call.forward.lengths) != len(output) for call, output in zip(sides[0].calls, reference, strict=True)):
        raise ConfigError("give a cell whose reference has a row a text (padded or single)")
    texts = _tokens(sides[1], candidate)
    return _joined([row_TF[: len(text_TF)] for row_TF, text_TF in zip(rows, texts, strict=True)]), _joined(texts)


def _joined(texts: Sequence[Tensor]) -> Tensor:
    return torch.cat([text_TF.flatten(1) for text_TF in texts])


if __name__ == "__main__":
    main()
