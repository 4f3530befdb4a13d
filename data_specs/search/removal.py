"""Takedowns in an index: rows leave every file of it, not only its listings.

Parts that hold something that is removed are written anew without it, and so are the two searches; then index.json
names the new files, with the next revision, and the old files are deleted. Killed before that step, the index is as it
was; killed after it, old files are left over. In both cases the same command finishes: it sweeps what index.json does
not name, whether there is anything to remove or not.

Of an index that is being written or added to, parts that wait are discarded if they hold something that is removed, and
what its writer has read before now comes in no more (`IndexWriter.begin`): it reads its input again.

Limits: one process, a part in memory. The centroids of an approximate search are means over many rows, and stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_specs.search import approximate, words
from data_specs.search import rows as rows_of
from data_specs.search.folder import (
    EMBEDDINGS,
    File,
    IndexFile,
    Modality,
    Part,
    is_begun,
    made,
    note_takedown,
    read_index,
    sole_owner,
    sweep,
    waiting,
    write_index,
)
from data_specs.search.index import read_part, write_part, write_words
from data_specs.search.rows import Flags

Gone = Callable[[pa.Table], Flags]
"""[n] which rows of a part are removed; the table has the columns of ROWS."""

Stay = Callable[[pa.Table], dict[int, list[int]]]
"""Rows of a part that stay but lose some of `texts`: which texts stay, as indices, the first always among them."""


@dataclass(frozen=True)
class Removed:
    """What a takedown removed from an index, or would. swept: files left over from a killed command."""

    rows: int
    texts: int
    parts: int
    revision: int
    swept: int


@dataclass(frozen=True)
class _Loss:
    """What one part loses."""

    gone: Flags
    stay: dict[int, list[int]]

    def __bool__(self) -> bool:
        return bool(self.gone.any() or self.stay)


def remove(folder: Path, gone: Gone, stay: Stay | None = None, dry_run: bool = False) -> Removed:
    """Remove rows, and texts of rows, from an index. dry_run: changes nothing, and says what would be removed.

    Raises IndexFault for what is no index, and for one that another command rewrites.
    """
    with sole_owner(folder):
        index = None if is_begun(folder) else read_index(folder)
        if not dry_run:
            note_takedown(folder)
        counts = _discard(folder, gone, stay, dry_run)
        if index is None:
            return Removed(**counts, revision=0, swept=0 if dry_run else sweep(folder, None))
        return _removed(folder, index, counts, gone, stay, dry_run)


def leave_out(folder: Path, gone: Gone, tokens: Collection[str]) -> Removed:
    """Remove rows that the input of an index holds no more: by its only writer, which need not be told of it.

    tokens: of what the input holds now. Of the others none is known any more, nor that of a part that loses rows: what
    left the input may be in it again.
    """
    with sole_owner(folder):
        counts = _discard(folder, gone, None, False)
        return _removed(folder, read_index(folder), counts, gone, None, False, tokens)


def _removed(
    folder: Path,
    index: IndexFile,
    counts: dict[str, int],
    gone: Gone,
    stay: Stay | None,
    dry_run: bool,
    tokens: Collection[str] | None = None,
) -> Removed:
    """Rewrite a finished index. counts: what parts that wait have lost.

    tokens: those that stay known, as in `leave_out`; None: all, so that whoever wrote parts does not make them again.
    """
    swept = 0 if dry_run else sweep(folder, index)
    tables = [read_part(folder, part) for part in index.parts]
    losses = [_loss(table, gone, stay) for table in tables]
    revision = index.revision + any(losses)
    if any(losses) and not dry_run:
        after = _rewritten(folder, index, tables, losses, tokens)
        write_index(folder, after)
        del tables
        swept += sweep(folder, after)
    own = _counts(losses)
    return Removed(**{name: counts[name] + own[name] for name in own}, revision=revision, swept=swept)


def _discard(folder: Path, gone: Gone, stay: Stay | None, dry_run: bool) -> dict[str, int]:
    """Forget parts that wait to be added to the index and hold something that is removed; counts of what they lose."""
    losses = list[_Loss]()
    for record, part in waiting(folder).items():
        if part.rows and (loss := _loss(read_part(folder, part), gone, stay)):
            losses.append(loss)
            if not dry_run:
                record.unlink(missing_ok=True)
    return _counts(losses)


def _counts(losses: Sequence[_Loss]) -> dict[str, int]:
    return {
        "rows": int(sum(np.count_nonzero(loss.gone) for loss in losses)),
        "texts": sum(len(loss.stay) for loss in losses),
        "parts": sum(map(bool, losses)),
    }


def _loss(table: pa.Table, gone: Gone, stay: Stay | None) -> _Loss:
    rows = table.select(rows_of.ROWS.names)
    gone_n = np.asarray(gone(rows), np.bool_)
    texts = {} if stay is None else stay(rows)
    return _Loss(gone_n, {row: texts for row, texts in texts.items() if not gone_n[row]})


def _rewritten(
    folder: Path,
    index: IndexFile,
    tables: Sequence[pa.Table],
    losses: Sequence[_Loss],
    tokens: Collection[str] | None,
) -> IndexFile:
    """The index without what is lost; its files are written beside those that they replace."""
    revision = index.revision + 1
    parts, kept = list[Part](), list[pa.Table]()
    for part, table, loss in zip(index.parts, tables, losses, strict=True):
        known = tokens is None or (part.token in tokens and not loss)
        token = part.token if known else ""
        if not loss:
            parts.append(part.model_copy(update={"token": token}))
            kept.append(table)
        elif not loss.gone.all():
            rest = _without(table, loss)
            vectors = {
                m: np.load(folder / part.files[EMBEDDINGS[m]].path, mmap_mode="r")[~loss.gone]
                for m in index.about.modalities
            }
            files = write_part(folder, part.part, revision, rest, vectors)
            parts.append(Part(part=part.part, rows=rest.num_rows, files=files, token=token))
            kept.append(rest)
    left = {part.part for part in parts}
    empty = index.empty | {part.part: part.token for part in index.parts if part.part not in left}
    if tokens is not None:
        empty = {number: token for number, token in index.empty.items() if token in tokens}
    rows = sum(part.rows for part in parts)
    after = index.model_copy(update={"parts": tuple(parts), "empty": empty, "rows": rows, "revision": revision})
    kept_N, cells = ~np.concatenate([loss.gone for loss in losses]), dict[Modality, File]()
    for modality, file in index.approximate.items():
        if _present(kept, modality) >= approximate.LEAST:
            make = functools.partial(approximate.write_without, before=folder / file.path, kept_N=kept_N)
            cells[modality] = made(folder, f"approximate/{modality}_r{revision}.faiss", make)
    return after.model_copy(update={"words": write_words(folder, revision, kept), "approximate": cells})


def _present(tables: Sequence[pa.Table], modality: Modality) -> int:
    return int(sum(np.count_nonzero(table[f"has_{modality}"].to_numpy()) for table in tables))


def _without(table: pa.Table, loss: _Loss) -> pa.Table:
    """A part without what is lost, as its Arrow file keeps it. Words are cut anew where texts are lost."""
    rows = rows_of.plain_form(table)
    cut: list[str] = table[rows_of.WORDS].to_pylist()
    if loss.stay:
        texts = rows["texts"].to_pylist()
        for row, stays in loss.stay.items():
            texts[row] = [texts[row][i] for i in stays]
        at = rows_of.ROWS.get_field_index("texts")
        rows = rows.set_column(at, rows_of.ROWS.field("texts"), pa.array(texts, rows_of.ROWS.field("texts").type))
        for row in loss.stay:
            cut[row] = words.cut_rows(rows.slice(row, 1))[0]
    kept = pa.array(~loss.gone)
    return rows_of.mapped_form(rows.filter(kept), pa.array(cut, pa.string()).filter(kept).to_pylist())
