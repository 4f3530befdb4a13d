"""Embedding into an index folder (data_specs/search/), or into one Parquet file.

An index is written part by part. The same command on the same folder goes on: rows whose stamp (use/sources.py) it has
are not embedded again, so a killed command repeats the parts that were in flight, and a dataset that grew by a build
costs the build. Rows that the input holds no more leave the index in the step that adds the new ones. Another
checkpoint, detector or input on the same folder is refused.

A Parquet file has one row group per part: id, image_features and text_features (list<float32>), and the columns of
data_specs/search/rows.py. It is written whole or not at all.

Limits: 8 bytes per row of the input and of the index in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_specs.search.folder import INDEX, Background, IndexInfo, IndexPart, Towers, read_index
from data_specs.search.index import IndexWriter, locked, write_part
from data_specs.search.rows import ROWS
from data_specs.shard import SPLITS, Split
from training.config import Precision
from training.data.index import default_cache
from training.data.index_cache import GRID
from training.data.released_rows import PRIMARY
from training.errors import ConfigError, InputError
from training.outputs.atomic_files import atomic_file
from training.outputs.checkpoint import Checkpoint
from training.outputs.progress import Progress
from training.use.dataset_source import DatasetSource
from training.use.detector import Detector, choose_detector
from training.use.embedding import Done, EmbeddedRun, embed_runs
from training.use.sources import MixedSource, PictureSource, RowSource, Source, Stamps, TextSource, part_rows
from training.weights.load import Loaded, load

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LOG = logging.getLogger(__name__)

_STAMPED = 10_000
"""Rows whose stamps are computed at once."""

QUERIES = "queries"
"""Folder of an index with the ONNX towers, for queries without torch."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The input: one of data, images, jsonl and texts, or images and texts. Plain values, which cross
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
    """True if a line of `texts` that stands there twice is embedded once, a picture file has one id whatever its name,
    and no two rows of `jsonl` have the same id: for an index."""

    def open(self, detector: str) -> Source:
        """Open the rows. detector: the regions of `data` to use, if any. Raises ContractError, InputError."""
        if self.data:
            return DatasetSource(self.data, self.splits, detector, Path(self.cache) if self.cache else None)
        if self.jsonl:
            return RowSource(Path(self.jsonl), self.text_kind, self.distinct)
        sources: list[Source] = []
        if self.images:
            regions = Path(self.regions) if self.regions else None
            sources.append(PictureSource(self.images, regions, self.distinct))
        if self.texts:
            sources.append(TextSource(Path(self.texts), self.distinct))
        return sources[0] if len(sources) == 1 else MixedSource(sources)


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Everything that a process needs to embed rows of an input, by path and plain values."""

    checkpoint: str
    inputs: Inputs
    regions_of: str
    """Detector whose regions of a dataset are used."""
    detector: Detector | None
    """Makes the boxes of pictures that come without; None for the grid."""
    boxes: str
    """Detector whose boxes the pictures have."""
    device: str
    precision: Precision

    def open(self) -> tuple[Loaded, Source]:
        """The checkpoint on its device, and the input."""
        return load(Path(self.checkpoint), self.device, precision=self.precision), self.inputs.open(self.regions_of)


@dataclass(frozen=True, slots=True)
class PartTask:
    """A part to make: its number, and the rows with their stamps."""

    part: int
    rows: Sequence[int]
    stamps: Stamps


PartResult = tuple[IndexPart | None, list[int]]
"""A part whose files are written, None where no row of it could be read; and the stamps of rows that could not."""

Run = Callable[[EmbedJob, Path, IndexInfo, Sequence[PartTask]], Iterator[PartResult]]
"""Makes parts of an index elsewhere, on workers of Ray."""


def embed_index(
    checkpoint: Path,
    inputs: Inputs,
    folder: Path,
    *,
    detector: str = "",
    device: str = "auto",
    precision: Precision = "fp32",
    rows: int = 0,
    regions_cache: Path | None = None,
    onnx: bool = False,
    run: Run | None = None,
) -> dict[str, Any]:
    """Write or update an index of an input; returns counts as JSON values.

    detector: `grid`, a detector's name or a spec, instead of the checkpoint's. rows: of a part at most, 0 for what
    suits the size of the input. onnx: the towers go into the folder too. run: makes the parts elsewhere. Raises
    IndexFault where another index is there, or another command writes it.
    """
    with locked(folder):
        loaded, source, job = _open_job(checkpoint, inputs, detector, device, precision, regions_cache)
        kinds = {"images": source.has_images, "texts": source.has_texts}
        about = index_info(loaded.checkpoint, source.name, **kinds, detector=job.boxes)
        about = about.model_copy(update={"created_from": source.origins, "precision": precision})
        _check_same_input(folder, about)
        writer = IndexWriter.start(folder, about)
        tasks, wanted = plan(writer, source, rows or part_rows(len(source)))
        total = sum(len(task.rows) for task in tasks)
        if total < len(source):
            LOG.info("%s rows are already in %s, %s will be embedded", f"{len(source) - total:,}", folder, f"{total:,}")
        unreadable = 0
        with Progress(total, "pictures" if source.has_images else "texts") as progress:
            if run is not None:
                parts = run(job, folder, about, tasks)
            else:
                parts = make_parts(loaded, source, folder, about, tasks, job.detector, progress.add)
            for part, left_out in parts:
                writer.commit(part, left_out)
                unreadable += len(left_out)
                if run is not None:
                    progress.add(len(left_out) + (part.rows if part else 0))
        removed = writer.finish(wanted)
        if onnx:
            from training.use.export import write_onnx

            write_onnx(loaded, folder / QUERIES / "image.onnx", folder / QUERIES / "text.onnx")
    if unreadable:
        LOG.warning("%s of %s rows could not be read and are left out", f"{unreadable:,}", f"{total:,}")
    if removed:
        LOG.info("%s rows are no longer in the input and were removed from the index", f"{removed:,}")
    return {
        "out": str(folder),
        "rows": writer.index.rows,
        "width": about.width,
        "embedded": total - unreadable,
        "unreadable": unreadable,
        "removed": removed,
        "parts": len(writer.index.parts),
        "revision": writer.index.revision,
        "detector": about.detector,
    }


def plan(writer: IndexWriter, source: Source, size: int) -> tuple[list[PartTask], Stamps]:
    """The parts to make from the rows that the index lacks, and the stamps of all rows of the input."""
    chunks = source.runs(range(len(source)), _STAMPED)
    wanted = np.concatenate([np.empty(0, np.uint64), *(source.stamps(rows) for rows in chunks)])
    missing = np.flatnonzero(~np.isin(wanted, writer.stamps())).tolist()
    runs = source.runs(missing, size)
    return [PartTask(writer.next_part + n, run, wanted[np.asarray(run)]) for n, run in enumerate(runs)], wanted


def make_parts(
    loaded: Loaded,
    source: Source,
    folder: Path,
    about: IndexInfo,
    tasks: Sequence[PartTask],
    detector: Detector | None,
    done: Done,
) -> Iterator[PartResult]:
    """Embeds the rows of tasks and writes their parts, in order; a part is written while the next is computed."""
    runs = [task.rows for task in tasks]
    with ThreadPoolExecutor(1, thread_name_prefix="parts") as pool:
        writing = None
        for task, embedded in zip(tasks, embed_runs(loaded, source, runs, detector, done=done), strict=True):
            if writing is not None:
                yield writing.result()
            writing = pool.submit(_write_part, folder, about, task, embedded)
        if writing is not None:
            yield writing.result()


def _write_part(folder: Path, about: IndexInfo, task: PartTask, embedded: EmbeddedRun) -> PartResult:
    rows = embedded.rows.append_column("stamp", pa.array(task.stamps[embedded.read]))
    part = write_part(folder, about, task.part, rows, embedded.image_ND, embedded.text_ND)
    return part, task.stamps[~embedded.read].tolist()


def _check_same_input(folder: Path, about: IndexInfo) -> None:
    """Raise ConfigError for an index of other files: a dataset's digests change as it grows, a folder's path stays."""
    there = read_index(folder, unfinished=True).about if (folder / INDEX).exists() else about
    if any(":" in origin for origin in there.created_from) and there.created_from != about.created_from:
        raise ConfigError("--index", f"{folder}: was made from another {there.name}; give another folder")


def embed_parquet(
    checkpoint: Path,
    inputs: Inputs,
    out: Path,
    *,
    detector: str = "",
    device: str = "auto",
    precision: Precision = "fp32",
    regions_cache: Path | None = None,
) -> dict[str, Any]:
    """Write the features of an input into a Parquet file; returns counts as JSON values. Raises InputError if empty."""
    loaded, source, job = _open_job(checkpoint, inputs, detector, device, precision, regions_cache)
    runs = source.runs(range(len(source)), part_rows(len(source)))
    with Progress(len(source), "pictures" if source.has_images else "texts") as progress, atomic_file(out) as temporary:
        parts = embed_runs(loaded, source, runs, job.detector, done=progress.add)
        rows, unreadable = _write_parquet(temporary, parts, source, loaded)
        if not rows:
            raise InputError(source.name, f"none of its rows could be embedded ({unreadable:,} are left out)")
    if unreadable:
        LOG.warning("%s of %s rows could not be read and are left out", f"{unreadable:,}", f"{len(source):,}")
    width = int(loaded.config.moco.feature_dim)
    return {"out": str(out), "rows": rows, "width": width, "unreadable": unreadable, "detector": job.boxes}


def _open_job(
    checkpoint: Path, inputs: Inputs, given: str, device: str, precision: Precision, regions_cache: Path | None
) -> tuple[Loaded, Source, EmbedJob]:
    """The checkpoint, the input, and where boxes come from, which is logged."""
    loaded = load(checkpoint, device, precision=precision)
    trained = loaded.checkpoint.detector
    source = inputs.open(given or trained)
    detector, boxes = None, ""
    if isinstance(source, DatasetSource) and source.detector:
        boxes = source.detector
        if given and given != trained:
            LOG.warning("regions come from %r; the checkpoint was trained with those of %r", given, trained)
    elif source.has_images:
        cache = regions_cache or (Path(inputs.cache) if inputs.cache else default_cache().parent) / "regions"
        detector, said = choose_detector(trained, given, cache)
        boxes = GRID if detector is None else detector.id
        LOG.info("boxes for pictures without any: %s", said)
    for texts in source.sources if isinstance(source, MixedSource) else (source,):
        if isinstance(texts, TextSource) and texts.repeated:
            said = "%s lines of %s repeat earlier ones and are embedded once"
            LOG.info(said, f"{texts.repeated:,}", texts.name)
    folder = str(loaded.checkpoint.folder)
    return loaded, source, EmbedJob(folder, inputs, given or trained, detector, boxes, device, precision)


def index_info(
    checkpoint: Checkpoint, name: str, *, images: bool = True, texts: bool = True, detector: str = GRID
) -> IndexInfo:
    """Describes an index of a checkpoint's vectors."""
    background = checkpoint.background()
    return IndexInfo(
        name=name,
        width=checkpoint.config.moco.feature_dim,
        images=images,
        texts=texts,
        checkpoint=Towers(recipe=checkpoint.config.recipe, sha256=checkpoint.towers),
        background=background
        and Background(cosines=tuple(background.cosines_Q.tolist()), shares=tuple(background.shares_Q.tolist())),
        detector=detector,
    )


def _write_parquet(file: Path, parts: Iterable[EmbeddedRun], source: Source, loaded: Loaded) -> tuple[int, int]:
    """Rows that were written, and rows that were left out."""
    import pyarrow.parquet as pq

    features = [name for name in ("image", "text") if getattr(source, f"has_{name}s")]
    fields = [pa.field(f"{name}_features", pa.list_(pa.float32())) for name in features]
    own = [field for field in ROWS if field.name not in ("id", "has_image", "has_text", "similarity")]
    background = loaded.background()
    about = {} if background is None else {"wenlan.background": background.to_json()}
    schema = pa.schema([ROWS.field("id"), *fields, *own], metadata=about)
    rows = unreadable = 0
    with pq.ParquetWriter(file, schema) as writer:
        for part in parts:
            _write_group(writer, part, schema)
            rows += part.rows.num_rows
            unreadable += part.unreadable
    return rows, unreadable


def _write_group(writer: pq.ParquetWriter, part: EmbeddedRun, schema: pa.Schema) -> None:
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
