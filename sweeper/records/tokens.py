"""`tokens.parquet`: a row a layer and token, of the texts whose figures by token were kept."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

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

    watched = [(module, module.tokens) for module in modules if module.tokens is not None]
    if not watched:
        return None
    schema = tokens_schema()
    of_N = np.repeat(np.arange(len(watched)), [len(tokens.text) for _, tokens in watched])
    columns = {
        name: pyarrow.array([getattr(module, name) for module, _ in watched], schema.field(name).type).take(of_N)
        for name in ("name", "layer")
    }
    for name in TokenFigures.model_fields:
        kind = schema.field(name).type
        every = itertools.chain.from_iterable(getattr(tokens, name) for _, tokens in watched)
        columns[name] = pyarrow.array(np.fromiter(every, kind.to_pandas_dtype(), len(of_N)))
    return pyarrow.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def tokens_by_layer(table: pyarrow.Table) -> dict[str, TokenFigures]:
    """The figures by the name of the layer, in order of execution."""
    columns, found = table.to_pydict(), {}
    names = columns["name"]
    starts = [i for i, name in enumerate(names) if not i or name != names[i - 1]]
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        rows = {field: tuple(columns[field][start:stop]) for field in TokenFigures.model_fields}
        found[names[start]] = TokenFigures(**rows)
    return found
