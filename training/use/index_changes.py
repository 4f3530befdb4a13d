"""What of an input an index lacks, and what it holds that the input has no more: the parts of an `embed`.

Units whose token the index knows stay. Of the others the rows that it has not become new parts behind, and rows that
the input holds no more leave it first. Which rows are the same is judged by id, sha256 of the picture, text and boxes.

Limits: to compare a changed input with an index, the ids of the changed parts are in memory, and picture files whose
unit has changed are read to be compared. That a picture came with no box, and now comes without boxes and has the grid,
or the other way round, is not seen; nor that one came with boxes whose boxes a detector would make now.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.search import folder as index_folder
from data_specs.search.folder import About
from data_specs.search.index import IndexWriter, read_metadata
from data_specs.search.removal import leave_out
from training.errors import ConfigError
from training.use.sources import Seen, Source, Unit, digest, stamp, whole_paths

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """A part to be made: its number, how many rows, of which unit (by its place), and which rows, None for all.

    One without rows notes that the rest of its unit is there.
    """

    part: int
    unit: int
    token: str
    count: int
    rows: tuple[int, ...] | None = None

    def of(self, units: Sequence[Unit]) -> Unit:
        """The unit with the rows that are to be embedded."""
        return Unit(self.token, units[self.unit].rows if self.rows is None else self.rows)


def plan(writer: IndexWriter, source: Source, units: Sequence[Unit], seen: Seen) -> tuple[list[Task], int]:
    """What is still to be made, in order; and how many parts are there already.

    Parts are numbered by what the finished index lacks, so that a killed run finds its own again by number and token.

    Of a unit whose rows are in parts of other units the rest is made, once: its token tells that this was done, with
    rows that could not be read and rows that a takedown has removed since.
    """
    base = index_folder.read_index(writer.folder) if (writer.folder / index_folder.INDEX).exists() else None
    finished = {} if base is None else {**base.empty, **{part.part: part.token for part in base.parts}}
    known = set(finished.values())
    tokens = {unit.token for unit in units}
    has: set[tuple[str, str]] = set()
    if base is not None:
        changed = [part for part in base.parts if part.token not in tokens]
        has = {pair for part in changed for _, pairs in _rows_of(writer.folder, part) for pair in pairs}
    tasks, number = [], max(finished, default=-1) + 1
    for place, unit in enumerate(units):
        rest = _rest(unit.token)
        if unit.token in known or rest in known:
            continue
        task = Task(number, place, unit.token, len(unit.rows))
        if has:
            stamps = source.stamps(unit.rows, seen)
            rows = tuple(row for row, pair in zip(unit.rows, stamps, strict=True) if pair not in has)
            if len(rows) < len(unit.rows):
                task = Task(number, place, rest, len(rows), rows)
        tasks.append(task)
        number += 1
    committed = {number: token for number, token in writer.parts().items() if number not in finished}
    done = {task.part for task in tasks if committed.get(task.part) == task.token}
    for number in committed.keys() - done:
        writer.discard(number)
    return [task for task in tasks if task.part not in done], len(finished) + len(done)


def note(writer: IndexWriter, tasks: Sequence[Task]) -> None:
    """Commit the tasks that have no row."""
    rows, nothing = pa.table({"id": pa.array([], pa.string())}), np.zeros((0, writer.about.width), np.float32)
    image_ND, text_ND = (nothing if there else None for there in (writer.about.images, writer.about.texts))
    for task in tasks:
        if not task.count:
            writer.add(task.part, rows, image_ND, text_ND, task.token)


def remove_missing(folder: Path, about: About, source: Source, units: Sequence[Unit], seen: Seen) -> int:
    """Take rows out of a finished index that its input holds no more; returns how many.

    Before anything is added: a picture that was replaced has the same id as the one that goes.
    """
    if not (folder / index_folder.INDEX).exists():
        return 0
    there = index_folder.read_index(folder)
    _check_same_input(folder, there.about, about)
    tokens = {unit.token for unit in units}
    changed = [part for part in there.parts if part.token not in tokens]
    if not changed:
        return 0
    known = {part.token for part in there.parts}
    held = {pair for unit in units if unit.token not in known for pair in source.stamps(unit.rows, seen)}
    going = [row for part in changed for row, marks in _rows_of(folder, part) if held.isdisjoint(marks)]
    if not going:
        return 0
    LOG.info("%s rows are in the input no more, and leave the index", f"{len(going):,}")
    gone = pa.array(going, pa.string())
    leave_out(folder, lambda rows: _is_in(rows, gone), tokens | {_rest(token) for token in tokens})
    return len(going)


def other_ids(folder: Path) -> dict[str, str]:
    """By their whole paths the ids of picture files that are names as they were given, as in earlier versions."""
    import pyarrow.compute as pc

    there = index_folder.read_index(folder).parts if (folder / index_folder.INDEX).exists() else ()
    ids: dict[str, str] = {}
    for part in (*there, *index_folder.waiting(folder).values()):
        if part.rows:
            table = read_metadata(folder, part, ["id", "where"])
            columns = table["id"].to_pylist(), pc.struct_field(table["where"], "path").to_pylist()
            given = [(name, path) for name, path in zip(*columns, strict=True) if path and _is_given(name, path)]
            for (name, _), whole in zip(given, whole_paths(path for _, path in given), strict=True):
                if name != whole:
                    ids.setdefault(whole, name)
    return ids


def _is_given(name: str, path: str) -> bool:
    """Whether an id may be the name of the file at `path`: a whole path is not, where a link leads elsewhere now."""
    return name == path or not name.startswith("/") or str(Path(name)) == path


def _check_same_input(folder: Path, there: About, about: About) -> None:
    """Raise ConfigError for an index of other files: a dataset's digests change as it grows, a folder's path stays."""
    if any(":" in origin for origin in there.created_from) and there.created_from != about.created_from:
        raise ConfigError("--index", f"{folder}: was made from another {there.name}; give another folder")


def _rows_of(folder: Path, part: index_folder.Part) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The id of each row of a part, and its stamps: with its boxes, and for a source that does not know them."""
    table = read_metadata(folder, part, ["id", "sha256", "caption", "boxes"])
    for row, sha256, caption, boxes in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        yield row, [(row, stamp(sha256, caption)), (row, stamp(sha256, caption, boxes))]


def _is_in(rows: pa.Table, ids: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    import pyarrow.compute as pc

    flags: np.ndarray[Any, np.dtype[np.bool_]] = pc.is_in(rows["id"], ids).to_numpy()
    return flags.astype(np.bool_)


def _rest(token: str) -> str:
    """Token of the part that has those rows of a unit that parts of other units have not."""
    return digest("rest", token)
