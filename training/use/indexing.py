"""Embedding into an index folder (data_specs/search/), or into one Parquet file.

An index is written part by part, one part per unit of the input. The same command on the same folder goes on: what is
committed is not done again, a killed one repeats the parts that were in flight. On a finished index it looks what has
changed since: units whose token the index knows stay; of the others the rows that it has not are embedded as new parts
behind, and rows that the input holds no more leave the index. So a dataset that grew by a build costs the build.

Which rows are the same is judged by id, sha256 of the picture, text and boxes. Another checkpoint, detector or input on
the same folder is refused.

A Parquet file has one row group per unit: id, image_features and text_features (list<float32>), and the columns of
data_specs/search/rows.py. It is written whole or not at all.

Limits: to compare a changed input with an index, the ids of the changed parts are in memory, and picture files whose
unit has changed are read to be compared. That a picture came with no box, and now comes without boxes and has the grid,
or the other way round, is not seen; nor that one came with boxes whose boxes a detector would make now.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_specs.search import folder as index_folder
from data_specs.search.folder import About, Background, TakenDown, Towers
from data_specs.search.index import IndexWriter, read_metadata
from data_specs.search.removal import leave_out
from data_specs.search.rows import ROWS
from data_specs.shard import SPLITS, Split
from training.data.index import default_cache
from training.data.index_cache import GRID
from training.data.released_rows import PRIMARY
from training.errors import ConfigError, InputError, RunError
from training.outputs.progress import Progress
from training.outputs.whole import whole_file
from training.use.dataset_source import DatasetSource
from training.use.detector import Detector, choose
from training.use.embedding import Done, Part, embed_units
from training.use.sources import (
    MixedSource,
    PictureSource,
    RowSource,
    Seen,
    Source,
    TextSource,
    Unit,
    digest,
    unit_rows,
    whole_paths,
)
from training.weights.load import Loaded, load

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LOG = logging.getLogger(__name__)

QUERIES = "queries"
"""Folder of an index with the ONNX towers, for queries without torch."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is to be embedded: one of data, images, jsonl and texts, or images and texts. Plain values, which cross
    processes."""

    data: tuple[str, ...] = ()
    splits: tuple[Split, ...] = SPLITS
    images: tuple[str, ...] = ()
    regions: str = ""
    jsonl: str = ""
    text_kind: str = PRIMARY
    texts: str = ""
    cache: str = ""
    distinct: bool = True
    """Whether a line of `texts` that stands there twice is embedded once, and a picture file has one id however it is
    named: for an index."""
    ids: tuple[tuple[str, str], ...] = ()
    """(path, id) of the picture files that the index has under another id than their path."""

    def open(self, detector: str) -> Source:
        """The rows. detector: whose regions of `data` are used where it has them. Raises ContractError, InputError."""
        if self.data:
            return DatasetSource(self.data, self.splits, detector, Path(self.cache) if self.cache else None)
        if self.jsonl:
            return RowSource(Path(self.jsonl), self.text_kind)
        sources: list[Source] = []
        if self.images:
            ids = dict(self.ids) if self.distinct else None
            sources.append(PictureSource(self.images, Path(self.regions) if self.regions else None, ids))
        if self.texts:
            sources.append(TextSource(Path(self.texts), self.distinct))
        return sources[0] if len(sources) == 1 else MixedSource(sources)


@dataclass(frozen=True, slots=True)
class Job:
    """What a process needs to embed units of an input: everything by path and plain values."""

    checkpoint: str
    inputs: Inputs
    regions_of: str
    """Whose regions of a dataset are used."""
    detector: Detector | None
    """Makes the boxes of pictures that come without; None for the grid."""
    boxes: str
    """Whose boxes the pictures have."""
    device: str
    rows: int = 0
    """Rows of a unit at most."""
    since: str = ""
    """The last takedown of the index that there was before the input was opened."""

    def open(self) -> tuple[Loaded, Source, list[Unit]]:
        """The checkpoint on its device, the input, and all of its units."""
        source = self.inputs.open(self.regions_of)
        return load(Path(self.checkpoint), self.device), source, source.units(self.rows)


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


Run = Callable[[Job, Path, About, Sequence[Task], Done], int]
"""Makes parts of an index elsewhere, on workers of Ray; returns how many rows were left out."""


def embed_index(
    checkpoint: Path,
    inputs: Inputs,
    folder: Path,
    *,
    detector: str = "",
    device: str = "auto",
    rows: int = 0,
    regions_cache: Path | None = None,
    onnx: bool = False,
    run: Run | None = None,
) -> dict[str, Any]:
    """Write or go on with an index of an input; counts as JSON values.

    detector: `grid`, a detector's name or a spec, instead of the checkpoint's. rows: of a part at most, 0 for what
    suits the size of the input. onnx: the towers go into the folder too. run: makes the parts elsewhere. After a
    takedown of the index the input is opened again, and what is not made yet is made of it as it is then. Raises
    IndexFault where another index is there.
    """
    while True:
        try:
            return _embedded(checkpoint, inputs, folder, detector, device, rows, regions_cache, onnx, run)
        except TakenDown:
            LOG.warning("a takedown has changed %s meanwhile: its input is read again", folder)


def _embedded(
    checkpoint: Path,
    inputs: Inputs,
    folder: Path,
    detector: str,
    device: str,
    rows: int,
    regions_cache: Path | None,
    onnx: bool,
    run: Run | None,
) -> dict[str, Any]:
    """`embed_index`, of the input as it is now. Raises TakenDown."""
    since = index_folder.takedowns(folder)
    if (folder / index_folder.INDEX).exists() or index_folder.is_begun(folder):
        index_folder.check_parts(folder)
    if inputs.images:
        inputs = replace(inputs, ids=tuple(_other_ids(folder).items()))
    loaded, source, job = _opened(checkpoint, inputs, detector, device, regions_cache)
    job = replace(job, rows=rows or unit_rows(len(source)), since=since)
    about = _about(loaded, source, job)
    units = source.units(job.rows)
    with alone(folder):
        seen = Seen(loaded.config.data.max_boxes, job.detector is not None)
        removed = _remove_missing(folder, about, source, units, seen)
        writer = IndexWriter.begin(folder, about, since)
        tasks, kept = _plan(writer, source, units, seen)
        _note(writer, tasks)
        tasks = [task for task in tasks if task.count]
        total = sum(task.count for task in tasks)
        if kept:
            LOG.info("%s parts of %s are there, %s rows are to be embedded", f"{kept:,}", folder, f"{total:,}")
        with Progress(total, "pictures" if source.has_images else "texts") as progress:
            if run is not None and tasks:
                unreadable = run(job, folder, about, tasks, progress.add)
            else:
                unreadable = write_parts(writer, loaded, source, units, tasks, job.detector, progress.add)
        lost = {task.part for task in tasks} - writer.done()
        if lost:
            raise TakenDown(f"{folder}: a takedown has taken parts that were made")
        writer.finish()
        if onnx:
            from training.use.export import write_onnx

            write_onnx(loaded, folder / QUERIES / "image.onnx", folder / QUERIES / "text.onnx")
    if unreadable:
        LOG.warning("%s of %s rows could not be read and are left out", f"{unreadable:,}", f"{total:,}")
    whole = index_folder.read_index(folder)
    return {
        "out": str(folder),
        "rows": whole.rows,
        "width": about.width,
        "embedded": total - unreadable,
        "unreadable": unreadable,
        "removed": removed,
        "parts": len(whole.parts),
        "revision": whole.revision,
        "detector": about.detector,
    }


def write_parts(
    writer: IndexWriter,
    loaded: Loaded,
    source: Source,
    units: Sequence[Unit],
    tasks: Sequence[Task],
    detector: Detector | None,
    done: Done,
) -> int:
    """Embed the tasks' units and commit each as its part; returns how many rows were left out.

    A part is written while the towers are at the next one.
    """
    unreadable = 0
    wanted = [task.of(units) for task in tasks]
    with ThreadPoolExecutor(1, thread_name_prefix="parts") as pool:
        writing = None
        for task, part in zip(tasks, embed_units(loaded, source, wanted, detector, done=done), strict=True):
            if writing is not None:
                writing.result()
            writing = pool.submit(writer.add, task.part, part.rows, part.image_ND, part.text_ND, task.token)
            unreadable += part.unreadable
        if writing is not None:
            writing.result()
    return unreadable


def embed_parquet(
    checkpoint: Path,
    inputs: Inputs,
    out: Path,
    *,
    detector: str = "",
    device: str = "auto",
    regions_cache: Path | None = None,
) -> dict[str, Any]:
    """Write the features of an input into a Parquet file; counts as JSON values. Raises InputError for no row."""
    loaded, source, job = _opened(checkpoint, inputs, detector, device, regions_cache)
    units = source.units(unit_rows(len(source)))
    with Progress(len(source), "pictures" if source.has_images else "texts") as progress, whole_file(out) as temporary:
        parts = embed_units(loaded, source, units, job.detector, done=progress.add)
        rows, unreadable = _write_parquet(temporary, parts, source, loaded)
        if not rows:
            raise InputError(source.name, f"no row of it could be embedded ({unreadable:,} are left out)")
    if unreadable:
        LOG.warning("%s of %s rows could not be read and are left out", f"{unreadable:,}", f"{len(source):,}")
    width = int(loaded.config.moco.feature_dim)
    return {"out": str(out), "rows": rows, "width": width, "unreadable": unreadable, "detector": job.boxes}


def _opened(
    checkpoint: Path, inputs: Inputs, given: str, device: str, regions_cache: Path | None
) -> tuple[Loaded, Source, Job]:
    """The checkpoint, the input, and where boxes come from, which is logged."""
    loaded = load(checkpoint, device)
    trained = loaded.checkpoint.detector
    source = inputs.open(given or trained)
    detector, boxes = None, ""
    if isinstance(source, DatasetSource) and source.detector:
        boxes = source.detector
        if given and given != trained:
            LOG.warning("regions are those of %r; the checkpoint was trained with those of %r", given, trained)
    elif source.has_images:
        cache = regions_cache or (Path(inputs.cache) if inputs.cache else default_cache().parent) / "regions"
        detector, said = choose(trained, given, cache)
        boxes = GRID if detector is None else detector.id
        LOG.info("boxes of pictures that come without: %s", said)
    for texts in source.sources if isinstance(source, MixedSource) else (source,):
        if isinstance(texts, TextSource) and texts.repeated:
            said = "%s lines of %s stand there before, and are embedded once"
            LOG.info(said, f"{texts.repeated:,}", texts.name)
    return loaded, source, Job(str(loaded.checkpoint.folder), inputs, given or trained, detector, boxes, device)


def _about(loaded: Loaded, source: Source, job: Job) -> About:
    background = loaded.background()
    return About(
        name=source.name,
        width=int(loaded.config.moco.feature_dim),
        images=source.has_images,
        texts=source.has_texts,
        checkpoint=Towers(recipe=loaded.config.recipe, sha256=loaded.checkpoint.sealed.files["towers.safetensors"]),
        background=background
        and Background(cosines=tuple(background.cosines_Q.tolist()), shares=tuple(background.shares_Q.tolist())),
        detector=job.boxes,
        created_from=source.origins,
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the one that writes into an index, by a locked file beside its folder. Raises RunError."""
    place = folder.resolve()  # `.` has no name
    place.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RunError(str(folder), "another wenlan-train embed writes into it; wait until it has ended") from None
    try:
        yield
    finally:
        os.close(handle)


# --- what is to be done


def _remove_missing(folder: Path, about: About, source: Source, units: Sequence[Unit], seen: Seen) -> int:
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


def _is_in(rows: pa.Table, ids: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    import pyarrow.compute as pc

    flags: np.ndarray[Any, np.dtype[np.bool_]] = pc.is_in(rows["id"], ids).to_numpy()
    return flags.astype(np.bool_)


def _other_ids(folder: Path) -> dict[str, str]:
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
    from training.use.sources import stamp

    table = read_metadata(folder, part, ["id", "sha256", "caption", "boxes"])
    for row, sha256, caption, boxes in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        yield row, [(row, stamp(sha256, caption)), (row, stamp(sha256, caption, boxes))]


def _plan(writer: IndexWriter, source: Source, units: Sequence[Unit], seen: Seen) -> tuple[list[Task], int]:
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


def _rest(token: str) -> str:
    """Token of the part that has those rows of a unit that parts of other units have not."""
    return digest("rest", token)


def _note(writer: IndexWriter, tasks: Sequence[Task]) -> None:
    """Commit the tasks that have no row."""
    rows, nothing = pa.table({"id": pa.array([], pa.string())}), np.zeros((0, writer.about.width), np.float32)
    image_ND, text_ND = (nothing if there else None for there in (writer.about.images, writer.about.texts))
    for task in tasks:
        if not task.count:
            writer.add(task.part, rows, image_ND, text_ND, task.token)


# --- Parquet


def _write_parquet(file: Path, parts: Iterable[Part], source: Source, loaded: Loaded) -> tuple[int, int]:
    """Rows that were written, and rows that were left out."""
    import pyarrow.parquet as pq

    features = [name for name in ("image", "text") if getattr(source, f"has_{name}s")]
    schema = _parquet_schema(features, loaded)
    rows = unreadable = 0
    with pq.ParquetWriter(file, schema) as writer:
        for part in parts:
            _write_group(writer, part, schema)
            rows += part.rows.num_rows
            unreadable += part.unreadable
    return rows, unreadable


def _parquet_schema(features: Sequence[str], loaded: Loaded) -> pa.Schema:
    fields = [pa.field(f"{name}_features", pa.list_(pa.float32())) for name in features]
    own = [field for field in ROWS if field.name not in ("id", "has_image", "has_text", "similarity")]
    background = loaded.background()
    about = {} if background is None else {"wenlan.background": background.to_json()}
    return pa.schema([ROWS.field("id"), *fields, *own], metadata=about)


def _write_group(writer: pq.ParquetWriter, part: Part, schema: pa.Schema) -> None:
    if not part.rows.num_rows:
        return
    given = {"image_features": part.image_ND, "text_features": part.text_ND}
    columns = []
    for field in schema:
        vectors = given.get(field.name)
        if vectors is not None:
            columns.append(pa.array(list(vectors), field.type))
        elif field.name in part.rows.column_names:
            columns.append(part.rows[field.name].combine_chunks().cast(field.type))
        else:
            columns.append(pa.nulls(part.rows.num_rows, field.type))
    writer.write_table(pa.Table.from_arrays(columns, schema=schema))
