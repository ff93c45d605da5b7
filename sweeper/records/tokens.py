"""`tokens.parquet`: a row a layer and token, of the texts whose figures by token were kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweeper.records.cell import ModuleRecord, TokenFigures
from sweeper.records.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow

TOKENS_FILE = "tokens.parquet"


@functools.cache
def tokens_schema() -> pyarrow.Schema:
    """The columns of the file."""
    import pyarrow

    columns = [("name", "string"), ("layer", "int64"), ("text", "int64"), ("position", "int64")]
    columns += [("max_abs", "double"), ("rel_l2", "double")]
    fields = [pyarrow.field(*column, nullable=False) for column in columns]
    return pyarrow.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def tokens_table(modules: Sequence[ModuleRecord]) -> pyarrow.Table | None:
    """What the modules have of figures by token; None where they have none."""
    import pyarrow

    columns: dict[str, list[Any]] = {name: [] for name in tokens_schema().names}
    for module in modules:
        if module.tokens is not None:
            count = len(module.tokens.text)
            columns["name"] += [module.name] * count
            columns["layer"] += [module.layer] * count
            for name, values in vars(module.tokens).items():
                columns[name] += values
    return pyarrow.Table.from_pydict(columns, schema=tokens_schema()) if columns["name"] else None


def tokens_by_layer(table: pyarrow.Table) -> dict[str, TokenFigures]:
    """The figures by the name of the layer, in order of execution."""
    columns, found = table.to_pydict(), {}
    names = columns["name"]
    starts = [i for i, name in enumerate(names) if not i or name != names[i - 1]]
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        rows = {field: tuple(columns[field][start:stop]) for field in TokenFigures.model_fields}
        found[names[start]] = TokenFigures(**rows)
    return found
