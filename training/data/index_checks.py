"""Checks of a shard's Parquet before its rows become an index.

A sha256 that matches the manifest's proves that a file is the one that was published, not that its rows make sense: the
publisher may be wrong or hostile. What a worker process would stumble over in the middle of a run is refused here, in
one line that names the file, the row and the column.

Limits: only what training reads is judged (`wenlan-data verify` judges all of the contract); kinds of texts that are
not known here are let in, since a newer wenlan may have more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SOURCE_KINDS, ContractError
from training.errors import first_line

_SHA256 = "^[0-9a-f]{64}$"


def typed(table: Any, name: str, schema: Any) -> Any:
    """The table with the types of `schema`, every text of it UTF-8. Raises ContractError."""
    try:
        table.validate(full=True)
        return table if table.schema.equals(schema, check_metadata=False) else _cast(table.select(schema.names), schema)
    except (pa.ArrowException, ValueError) as e:
        raise ContractError(f"{name}: not a Parquet file of this contract ({first_line(e)[:200]})") from None


def _cast(table: Any, schema: Any) -> Any:
    for number, field in enumerate(schema):
        try:
            table = table.set_column(number, field, table[field.name].cast(field.type))
        except pa.ArrowException as e:
            raise ValueError(f"column {field.name}: {e}") from None
    return table


def check_rows(table: Any, name: str) -> None:
    """Raise ContractError that names the first row whose columns training cannot use."""
    for column in table.column_names:
        _refuse(name, column, pc.is_null(table[column]), "is missing")
    for column in ("candidate_id", "image_leader"):
        _refuse(name, column, pc.invert(pc.match_substring_regex(table[column], _SHA256)), "is not a sha256 in hex")
    known = pc.is_in(table["source_kind"], pa.array(SOURCE_KINDS, pa.string()))
    _refuse(name, "source_kind", pc.invert(known), f"is not one of {', '.join(SOURCE_KINDS)}")
    for column in ("width", "height", "image_offset", "image_size"):
        negative = pc.less(table[column], 0)
        _refuse(name, column, negative, f"is {pc.min(table[column]).as_py()}")
    _refuse(name, "texts", pc.equal(pc.list_value_length(table["texts"]), 0), "is empty")
    _check_texts(name, pc.list_flatten(table["texts"]))


def _check_texts(name: str, texts: Any) -> None:
    """Raise ContractError unless each text of any row has a kind, a text and the sha256 of its leader."""
    if texts.null_count:
        raise ContractError(f"{name}: texts contain a missing entry")
    for field in ("kind", "text", "text_leader"):
        if pc.struct_field(texts, field).null_count:
            raise ContractError(f"{name}: texts contain an entry without {field}")
    if pc.any(
        pc.invert(pc.match_substring_regex(pc.struct_field(texts, "text_leader"), _SHA256))
    ).as_py():  # None: no row
        raise ContractError(f"{name}: texts contain an entry whose text_leader is not a sha256 in hex")


def check_boxes(table: Any, name: str) -> None:
    """Raise ContractError unless the boxes of each row are groups of four numbers."""
    for column in table.column_names:
        _refuse(name, column, pc.is_null(table[column]), "is missing")
    if pc.list_flatten(table["boxes"]).null_count:
        raise ContractError(f"{name}: boxes contain a missing number")
    odd = pc.list_value_length(table["boxes"]).to_numpy() % 4 != 0
    if odd.any():
        raise ContractError(f"{name}: row {int(odd.argmax())} has boxes that are not groups of four numbers")


def check_places(table: Any, tar: str, size: int) -> None:
    """Raise ContractError if an image would end beyond the `size` bytes of its tar. No number is below 0."""
    columns: Sequence[Any] = [table[column].to_numpy().astype(np.uint64) for column in ("image_offset", "image_size")]
    end = int((columns[0] + columns[1]).max(initial=0))  # two of 63 bits: their sum fits into 64
    if end > size:
        raise ContractError(f"{tar}: {size} bytes, but its index names an image that ends at {end}")


def _refuse(name: str, column: str, wrong: Any, problem: str) -> None:
    """Raise ContractError that names the first row for which `wrong` is true."""
    rows = wrong.to_numpy()
    if rows.any():
        raise ContractError(f"{name}: row {int(rows.argmax())}: {column} {problem}")
