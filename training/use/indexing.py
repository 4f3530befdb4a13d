"""Embedding into an index folder (data_specs/search/), or into one Parquet file.

An index is written part by part, one part per unit of the input. The same command on the same folder goes on: what is
committed is not done again, a killed one repeats the parts that were in flight. On a finished index only what has
changed since is done (`index_changes.py`), so a dataset that grew by a build costs the build. Another checkpoint,
detector or input on the same folder is refused.

A Parquet file has one row group per unit: id, image_features and text_features (list<float32>), and the columns of
data_specs/search/rows.py. It is written whole or not at all.
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

import pyarrow as pa

from data_specs.search import folder as index_folder
from data_specs.search.folder import About, Background, TakenDown, Towers
from data_specs.search.index import IndexWriter
from data_specs.search.rows import ROWS
from data_specs.shard import SPLITS, Split
from training.data.index import default_cache
from training.data.index_cache import GRID
from training.data.released_rows import PRIMARY
from training.errors import InputError, RunError
from training.outputs.progress import Progress
from training.outputs.whole import whole_file
from training.use.dataset_source import DatasetSource
from training.use.detector import Detector, choose
from training.use.embedding import Done, Part, embed_units
from training.use.index_changes import Task, note, other_ids, plan, remove_missing
from training.use.sources import (
    MixedSource,
    PictureSource,
    RowSource,
    Seen,
    Source,
    TextSource,
    Unit,
    unit_rows,
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
        inputs = replace(inputs, ids=tuple(other_ids(folder).items()))
    loaded, source, job = _opened(checkpoint, inputs, detector, device, regions_cache)
    job = replace(job, rows=rows or unit_rows(len(source)), since=since)
    about = _about(loaded, source, job)
    units = source.units(job.rows)
    with alone(folder):
        seen = Seen(loaded.config.data.max_boxes, job.detector is not None)
        removed = remove_missing(folder, about, source, units, seen)
        writer = IndexWriter.begin(folder, about, since)
        tasks, kept = plan(writer, source, units, seen)
        note(writer, tasks)
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
