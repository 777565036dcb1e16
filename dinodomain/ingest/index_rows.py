"""Index rows as Arrow columns while a store is finalised: as dictionaries, those of a million images would fill the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from dinodomain.lineage import Json
from dinodomain.store.schema import INDEX_SCHEMA
from dinodomain.store.tables import index_schema

_ROWS = 4096


class IndexRows:
    """Takes rows one by one, in the order of ``source_id``."""

    def __init__(self) -> None:
        self._waiting: list[Mapping[str, Json]] = []
        self._tables: list[pa.Table] = []

    def add(self, row: Mapping[str, Json]) -> None:
        """Keeps a row; ``key_<Field>`` columns may differ from row to row, columns that are not known yet may be absent."""
        self._waiting.append(row)
        if len(self._waiting) >= _ROWS:
            self._settle()

    def finish(self, known: Mapping[str, Sequence[Json]]) -> pa.Table:
        """All rows, with the columns that are known only now."""
        self._settle()
        table = together(self._tables or [index_schema(()).empty_table()])
        for name, values in known.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values, INDEX_SCHEMA.field(name).type))
        return table

    def _settle(self) -> None:
        if self._waiting:
            schema = index_schema(name for row in self._waiting for name in row)
            self._tables.append(pa.Table.from_pylist(self._waiting, schema=schema))
            self._waiting = []


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Index tables below each other; a ``key_<Field>`` column that one lacks is null there."""
    schema = index_schema(name for table in tables for name in table.column_names)
    return pa.concat_tables([_with_columns(table, schema) for table in tables])


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for name in schema.names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    return table.select(schema.names).cast(schema)


def merged(new: pa.Table, old: pa.Table | None) -> pa.Table:
    """New rows among those of an existing store, by ``source_id``; old rows pass unchanged."""
    every = new if old is None else together([old, new])
    return every.sort_by("source_id").combine_chunks()


__all__ = ["IndexRows", "merged", "together"]
