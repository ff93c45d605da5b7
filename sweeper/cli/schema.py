"""`docs/schema.md`: what lies in a sweep's folder, written out of the records themselves."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from sweeper.published.lookup import Reproduction
from sweeper.records.cell import CellRecord, ModuleRecord, PairMeasures, TokenFigures
from sweeper.records.schema import SCHEMA_VERSION
from sweeper.records.store import modules_schema
from sweeper.records.sweep import SweepDescription
from sweeper.records.tokens import tokens_schema

INTRODUCTION = f"""# The files of a sweep

Schema version {SCHEMA_VERSION}. Made by `python -m sweeper report --schema > docs/schema.md`; a test fails when it is
out of date.

```
outputs/<grid>/<sweep>/
  sweep.json                          what was asked for
  cells/<cell_id>/cell.json           one finished cell
  cells/<cell_id>/modules.parquet     its modules, a row each
  cells/<cell_id>/tokens.parquet      its layers token by token, of the worst texts, where anything differs
  cells/<cell_id>/SHA256SUMS          of these, for `sha256sum -c`; a cell whose files are others is run again
  recordings/<cell_id>.safetensors    what the cell gave, with record=true (docs/recordings.md)
  explain/<cell_id>.json              what `explain` found
  failed/<cell_id>.json               an attempt that failed after the cell was measured, which stays
  .hydra/                             the composed config and what was typed, where Hydra's tools look for it
  reported.json                       published figures beside the measured ones, with reported=NAME
  index.html                          the page, made from the above
  wandb/                              made from the above, unless wandb.mode=disabled
```

A cell's folder appears by rename, whole or not at all. `cell_id` is 12 hex digits of a SHA-256 of all choices of the
cell, of the files they name, and of the environment that can change its result. A hub's `revision` counts as it was
written: pin a commit where `main` moves. In JSON, not-a-number and infinity are the strings `"NaN"`, `"Infinity"` and
`"-Infinity"`; in Parquet they are floats. Shapes: N tokens, F features.
"""


def schema_markdown() -> str:
    """The page as Markdown: every field of every record, with its type and its meaning from the docstrings."""
    parts = [INTRODUCTION, "## cell.json\n", *_with_its_records(CellRecord), "## modules.parquet\n", _modules()]
    parts += ["## tokens.parquet\n", _tokens()]
    parts += ["## sweep.json\n", *_with_its_records(SweepDescription), "## reported.json\n"]
    parts += ["The publication, as in `conf/reported`, and under `numbers` a list of these.\n", _record(Reproduction)]
    return "\n".join(parts)


def _with_its_records(kind: type[BaseModel]) -> list[str]:
    return [_record(kind), *(text for one in _records_in(kind) for text in (f"### {one.__name__}\n", _record(one)))]


def _records_in(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """The records that a record holds, and those that they hold, each once."""
    found: dict[type[BaseModel], None] = {}
    for field in kind.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= dict.fromkeys([part, *_records_in(part)])
    return list(found)


def _record(kind: type[BaseModel]) -> str:
    about, meanings = _documented(kind)
    rows = [(name, _type(field.annotation), meanings.get(name, "")) for name, field in kind.model_fields.items()]
    return f"{about}\n\n{_table(('field', 'type', 'meaning'), rows)}\n"


def _modules() -> str:
    """The columns are the fields of `ModuleRecord`, then those of its measures."""
    about, meanings = _documented(ModuleRecord)
    meanings |= _documented(PairMeasures)[1]
    rows = [
        (column.name, f"{column.type}{' or null' if column.nullable else ''}", meanings.get(column.name, ""))
        for column in modules_schema()
    ]
    return f"{about} The measures are those of `PairMeasures`.\n\n{_table(('column', 'type', 'meaning'), rows)}\n"


def _tokens() -> str:
    about, meanings = _documented(TokenFigures)
    meanings |= {"name": "of the layer's output, as in modules.parquet", "layer": "index of the layer"}
    rows = [(column.name, str(column.type), meanings[column.name]) for column in tokens_schema()]
    return f"{about}\n\n{_table(('column', 'type', 'meaning'), rows)}\n"


def _documented(kind: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """The prose of a docstring, and field -> its entry under `Attributes:`; fields named together share an entry."""
    about, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")
    name = "|".join(kind.model_fields)
    start = re.compile(rf"(?:^|(?<=\.)) *((?:{name})(?:, (?:{name}))*): ", re.MULTILINE)
    pieces = start.split(re.sub(r"\n {8,}", " ", attributes))[1:]
    meanings: dict[str, str] = {}
    for names, meaning in zip(pieces[::2], pieces[1::2], strict=True):
        meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return " ".join(about.split()), meanings


def _type(annotation: Any) -> str:
    """An annotation in the words of JSON."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"object of {_type(arguments[1])}"
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "any value"
    if issubclass(annotation, StrEnum):
        return " or ".join(f'"{member.value}"' for member in annotation)
    return {str: "string", bool: "boolean", int: "integer", float: "number"}.get(annotation, annotation.__name__)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for name, *others in rows:
        cells = [text.replace("|", "\\|") for text in others]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
