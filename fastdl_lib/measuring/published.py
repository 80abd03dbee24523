"""Numbers that others published: the tables in ``data/published/``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.core.files import check_fields, read_json
from fastdl_lib.measuring.evidence import Column, Provenance, Table

SCHEMA = "fastdl-published/1"


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """Numbers somebody else published, with the source and how they were read."""

    name: str
    title: str
    source: str
    url: str
    item: str
    how_read: str
    caveats: tuple[str, ...]
    tags: Mapping[str, str]
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]

    def select(self, **where: Any) -> list[Mapping[str, Any]]:
        """The rows whose columns equal ``where``, in order.

        Raises: KeyError, ValueError where a column does not exist, or no row matches.
        """
        known = [column.key for column in self.columns] + ["tag"]
        for key in where:
            if key not in known:
                raise KeyError(f"{self.name} has no column {key!r}; it has {known}.")
        rows = [row for row in self.rows if where.items() <= row.items()]
        if not rows:
            raise ValueError(f"{self.name} has no row with {where}.")
        return rows

    def table(self, **where: Any) -> Table:
        """The selected rows as a :class:`Table` labelled *published*."""
        caption = f"{self.title} (published: {self.source}, {self.item})"
        return Table((*self.columns, Column("tag")), tuple(self.select(**where)), caption)


def published(name: str) -> PublishedTable:
    """Read ``data/published/<name>.json``.

    Raises: FileNotFoundError, which lists the tables there are; ValueError for a damaged file.

    >>> published("alexnet_shapes").rows[0]["layer"]
    'conv1'
    """
    path = data_folder() / "published" / f"{name}.json"
    fields = read_json(path, SCHEMA)
    try:
        columns = _checked_columns(fields)
    except ValueError as error:
        raise ValueError(f"{path.name} is not a valid published table: {error}") from None
    del fields["schema"]
    lists = {"caveats": tuple(fields["caveats"]), "rows": tuple(fields["rows"])}
    return PublishedTable(**fields | lists | {"columns": columns})


def _checked_columns(fields: dict) -> tuple[Column, ...]:
    texts = dict.fromkeys(("schema", "name", "title", "source", "url", "item", "how_read"), str)
    lists = dict.fromkeys(("caveats", "columns", "rows"), list)
    check_fields(fields, {**texts, **lists, "tags": dict}, "a published table")
    kinds = {"name": str, "unit": (str, type(None)), "description": str}
    columns = []
    for column in fields["columns"]:
        check_fields(column, kinds, "a column")
        provenance = Provenance.PUBLISHED if column["unit"] else None
        columns.append(Column(column["name"], unit=column["unit"] or "", provenance=provenance))
    keys = {column.key for column in columns} | {"tag"}
    for number, row in enumerate(fields["rows"], start=1):
        if not isinstance(row, dict) or row.keys() != keys:
            raise ValueError(f"row {number} must have exactly the columns {sorted(keys)}.")
        if row["tag"] not in list(fields["tags"]):
            raise ValueError(f"row {number} has the tag {row['tag']!r}, which 'tags' lacks.")
    return tuple(columns)
