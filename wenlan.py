"""wenlan from Python: datasets as DataFrames and pictures, checkpoints as encoders, indexes to search in.

    >>> import wenlan
    >>> data = wenlan.open("builds/1")              # a build's folder, its manifest, a release, or a copy of one
    >>> data
    <wenlan.Data: build weekly-2024-01-01-..., revision 0; 24 samples>
    >>> frame = data.samples(columns=["key", "width", "height"], filters=[("width", ">=", 200)], split="train")
    >>> list(frame.columns), len(frame) > 0
    (['key', 'width', 'height'], True)
    >>> data.image(frame.key[0], boxes="grid").size == (frame.width[0], frame.height[0])
    True

    >>> model = wenlan.load("runs/1")               # a run of wenlan-train fit, or a checkpoint
    >>> model.similarity(["photo.jpg"], ["红色的花", "海边的日落"]).shape
    (1, 2)

    >>> wenlan.open_index("index").rows             # what wenlan-train embed --index has written
    24

This file is a facade: it is the one place that knows both halves, and nothing imports it. Importing it costs
milliseconds; `open` needs the packages of `wenlan[pipeline]`, `load` and `Data.torch` those of `wenlan[training]`.

What is wrong with a place is raised as `data_specs.shard.ContractError` (no dataset), `pipeline.errors.WenlanError`
(something of it is not there) or `training.errors.TrainingError`, each with one line that names the file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import PIL.Image
    import pyarrow.dataset

    from data_specs.search.search import SearchIndex
    from data_specs.shard import Split
    from pipeline.store.frames import Filters, Frames
    from training.data.loader import Loader
    from training.use.encode import Encoder

__all__ = ["Data", "clip_benchmark", "load", "open", "open_index"]

_FATES = ("seen", "kept", "dropped", "known")


def open(place: str | Path) -> Data:
    """Opens a build or a dataset by its path or URL.

    place: BUILD (published or not), BUILD/shards/manifest.json, STORE/datasets/NAME/latest.json (the newest release) or
    .../000003.json (that one), STORE/datasets/NAME, or the folder of a copied release. Reads the manifest alone.

        >>> wenlan.open("store/datasets/weekly/latest.json")
        <wenlan.Data: release 2 of dataset weekly, 2 builds; 32 samples>
    """
    with _packages_of("pipeline"):
        from pipeline.stages import STAGES
        from pipeline.store.frames import Frames

    return Data(Frames.open(str(place), STAGES))


def load(checkpoint: str | Path, device: str = "auto", detector: str = "") -> Encoder:
    """Loads a checkpoint, or the newest one of a run, as an encoder of pictures and texts.

    detector: makes boxes for pictures without any, by its name in a spec and with its defaults, for towers
    that were trained on them ("proposals" comes with the package); by default they get the grid.

    >>> model = wenlan.load("runs/1")
    >>> model.encode_text(["红色的花", "海边的日落"]).shape == (2, model.width)
    True
    >>> model.encode_image(["photo.jpg"] * 40, batch_size=32, progress=True).shape == (40, model.width)
    True
    >>> model.encode_image("photo.jpg", boxes=[[[0, 0, 50, 50], [20, 20, 90, 80]]]).shape == (1, model.width)
    True
    """
    with _packages_of("training"):
        import torch  # noqa: F401

        from training.use.encode import open_encoder

    return open_encoder(Path(checkpoint), device, _boxes_by(detector) if detector else None)


def open_index(folder: str | Path) -> SearchIndex:
    """Opens an index of `wenlan-train embed --index`. It is memory-mapped, so opening takes milliseconds.

    Its `search` takes a vector of the checkpoint that made the index, words, or both; `row`, `picture`, `vector` and
    `facets` read its contents (data_specs/search/search.py). Raises data_specs.search.folder.IndexFault.

    >>> from data_specs.search.search import Query
    >>> index, model = wenlan.open_index("index"), wenlan.load("runs/1")
    >>> query = Query(vector_D=model.encode_text("红色的花")[0], target="image", limit=3)
    >>> [len(index.picture(hit.id)[0]) > 0 for hit in index.search(query).hits]
    [True, True, True]
    """
    with _packages_of("search"):
        from data_specs.search.search import SearchIndex

        return SearchIndex.open(Path(folder))


def clip_benchmark(detector: str = "") -> None:
    """Runs clip_benchmark's command line on sys.argv, with checkpoints as models of type `wenlan`, and exits.

    python -c 'import wenlan; wenlan.clip_benchmark("proposals")' eval --model_type wenlan --model runs/1 ...

    detector: as in `load`. Other arguments are those of `python -m training.use.clip_benchmark`, which uses the grid.
    """
    with _packages_of("training"):
        from training.use.clip_benchmark import main

    main(_boxes_by(detector) if detector else None)


def _boxes_by(name: str) -> Callable[[bytes], Sequence[Sequence[float]]]:
    """Makes a picture's boxes as stage `detect` does, but for the spec's cap on their number: a tower has its own."""
    with _packages_of("pipeline"):
        from pipeline.store.boxes import BoxMaker, open_maker
    from training.data.transforms import UnreadableImage

    open_maker(name)  # a wrong name is reported before the first picture

    @functools.cache
    def maker(_process: int) -> BoxMaker:
        return open_maker(name)  # a session does not survive a fork: each worker of a loader has its own

    def boxes_of(content: bytes) -> Sequence[Sequence[float]]:
        [made] = maker(os.getpid()).of([content])
        if isinstance(made, str):
            raise UnreadableImage(made)
        boxes: list[list[float]] = made.tolist()
        return boxes

    return boxes_of


@contextlib.contextmanager
def _packages_of(extra: str) -> Iterator[None]:
    """Name the extra that contains a missing package. Raises ImportError."""
    try:
        yield
    except ModuleNotFoundError as e:
        from data_specs.command.extras import install

        raise ImportError(f"{e}; install what is missing with: {install(extra)}") from e


def _stored(table: str, columns: Sequence[str] | None) -> Sequence[str] | None:
    """Columns to read of a table: the primary text of samples is stored in their texts."""
    if columns is None or table != "samples":
        return columns
    return list(dict.fromkeys("texts" if name == "text" else name for name in columns))


def _with_text(table: str, frame: pandas.DataFrame, columns: Sequence[str] | None) -> pandas.DataFrame:
    """Samples with their primary text as a column, in the requested order; other tables unchanged."""
    if table != "samples" or (columns is not None and "text" not in columns):
        return frame
    primary = [texts[0]["text"] if len(texts) else "" for texts in frame.texts]
    frame.insert(list(frame.columns).index("texts"), "text", primary)
    return frame if columns is None else frame[list(columns)]


class Data:
    """The tables, pictures and loaders of a build or a dataset; made by `wenlan.open`.

    Tables come as pandas DataFrames. `columns` and `filters` are pushed down to the Parquet files, so that what is not
    asked for is not read. Besides its own columns each table has `build`, the id of the build that a row comes from.
    filters: tuples as pandas takes them, or an expression of pyarrow.dataset.

        >>> data = wenlan.open("builds/1")
        >>> data.decisions(columns=["stage", "reason"]).value_counts().to_dict()
        {('shard', ''): 24}
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def __repr__(self) -> str:
        from pipeline.report import gallery

        return f"<wenlan.Data: {gallery.title(self._frames)[0]}; {len(self):,} samples>"

    def _repr_html_(self) -> str:
        from pipeline.report import gallery

        return gallery.html(self._frames)

    def __len__(self) -> int:
        return sum(shard.samples for _, shard in self._frames.shards)

    @property
    def splits(self) -> dict[str, int]:
        """Samples of each split.

        >>> wenlan.open("builds/1").splits
        {'train': 21, 'dev': 1, 'val': 2}
        """
        from pipeline.store.dataset import samples_by_split

        return dict[str, int](samples_by_split(shard for _, shard in self._frames.shards).items())

    @property
    def detectors(self) -> tuple[str, ...]:
        """Ids of the detectors with regions, the default one first."""
        return self._frames.detectors

    def samples(
        self, columns: Sequence[str] | None = None, filters: Filters = None, split: str = ""
    ) -> pandas.DataFrame:
        """One row per sample: key, text, URLs, size, split and the place of its members in the tar.

        `text` is the primary one, the first of `texts`, which are all of them with their kinds. `text_rank` says how
        many better texts a filter removed before it: 0 where it is the best that was found, 1 where it took the place
        of one.

            >>> wenlan.open("builds/1").samples(columns=["text", "text_rank"]).text_rank.unique().tolist()
            [0]
        """
        return self._frame("samples", columns, filters, split)

    def candidates(self, columns: Sequence[str] | None = None, filters: Filters = None) -> pandas.DataFrame:
        """One row per image URL found on a page, with its texts as found there.

        >>> texts = wenlan.open("builds/1").candidates(columns=["texts"]).texts
        >>> texts[0][0]["kind"]
        'caption'
        """
        return self._frame("candidates", columns, filters)

    def decisions(self, columns: Sequence[str] | None = None, filters: Filters = None) -> pandas.DataFrame:
        """One row per candidate: kept, known, or dropped at a stage for a reason; also one row per dropped page."""
        return self._frame("decisions", columns, filters)

    def measures(self, columns: Sequence[str] | None = None, filters: Filters = None) -> pandas.DataFrame:
        """One row per distinct fetched image: format, size, perceptual hash and more, by its sha256."""
        return self._frame("measures", columns, filters)

    def regions(
        self,
        detector: str = "",
        columns: Sequence[str] | None = None,
        filters: Filters = None,
        split: str = "",
    ) -> pandas.DataFrame:
        """Boxes of a detector (its id or name, by default the first one), one row per sample in the same order.

        >>> rows = wenlan.open("builds/1").regions("grid", columns=["key", "boxes"], split="val")
        >>> len(rows), rows.boxes[0].reshape(-1, 4).shape
        (2, (36, 4))
        """
        return self._frame(self._regions(detector), columns, filters, split)

    def funnel(self) -> pandas.DataFrame:
        """Returns the counts of each stage, build by build: seen = kept + dropped + known.

        >>> frame = wenlan.open("store/datasets/weekly").funnel()
        >>> frame[frame.stage == "dedup"][["seen", "kept", "dropped", "known"]].values.tolist()
        [[24, 24, 0, 0], [16, 8, 0, 8]]
        """
        import pandas

        from pipeline.errors import StoreError
        from pipeline.report.funnel import read_funnels
        from pipeline.store.build import in_funnel

        lacking = self._check("decisions")
        builds = [own for own in self._frames.builds if own.build_id not in lacking and "shard" in own.fingerprints]
        if not builds:
            raise StoreError(self._frames.place, "the funnel is not complete yet: stage shard has not finished")
        rows = []
        for build in builds:
            candidates, _ = read_funnels(build)
            for row in candidates.stages(in_funnel(build, "extract", "shard")):
                rows.append({"build": build.build_id, "stage": row.stage, **{n: getattr(row, n) for n in _FATES}})
        frame: pandas.DataFrame = pandas.DataFrame(rows, columns=["build", "stage", *_FATES])
        return frame

    def iter_batches(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        filters: Filters = None,
        split: str = "",
        rows: int = 10_000,
    ) -> Iterator[pandas.DataFrame]:
        """Iterates over a large table, file by file, in DataFrames of at most `rows` rows.

        table: "samples", "candidates", "decisions", "measures" or "regions/DETECTOR".

            >>> batches = wenlan.open("builds/1").iter_batches("samples", ["width"], rows=10)
            >>> sum(len(batch) for batch in batches)
            24
        """
        self._check(table)
        named = self._named(table)
        asked = [*self._frames.schema(named).names, "build"] if columns is None else columns
        for batch in self._frames.batches(named, _stored(table, asked), filters, split, rows):
            yield _with_text(table, batch.to_pandas(), columns)

    def paths(self, table: str, split: str = "") -> list[str]:
        """The Parquet files of a table, for Polars, DuckDB and other readers.

        >>> import duckdb
        >>> files = wenlan.open("builds/1").paths("samples")
        >>> duckdb.sql(f"select count(*) from read_parquet({files})").fetchall()
        [(24,)]
        """
        self._check(table)
        return self._frames.paths(self._named(table), split)

    def arrow(self, table: str, split: str = "") -> pyarrow.dataset.Dataset:
        """A table as a pyarrow dataset, from which DuckDB, Polars and pyarrow read only what a query needs."""
        self._check(table)
        return self._frames.arrow_dataset(self._named(table), split)

    def image(self, key: str, boxes: str | bool = False) -> PIL.Image.Image:
        """The picture of a sample, RGB.

        key: of the sample, or its first 8 digits or more. boxes: True, or a detector's id or name, to draw its boxes.
        Raises KeyError for a sample that does not exist or was taken down.
        """
        from pipeline.report import gallery
        from pipeline.store.samples import Samples

        samples = Samples.of(self._frames, boxes if isinstance(boxes, str) else "")
        return gallery.picture(samples.find(key), boxes=bool(boxes))

    def webdataset(self, split: Split, detector: str = "") -> Any:
        """A webdataset pipeline over the tars of a split, with the regions of a detector joined to each sample.

        The fields are jpg, txt, json, and boxes.npy [R, 4], scores.npy, labels.npy.

            >>> pipeline = wenlan.open("builds/1").webdataset("val").decode("pil").to_tuple("jpg", "txt", "boxes.npy")
            >>> [boxes.shape for image, text, boxes in pipeline]
            [(36, 4), (36, 4)]
        """
        from pipeline.store.samples import Samples, webdataset

        return webdataset(Samples.of(self._frames, detector), split)

    def torch(
        self,
        split: Split,
        batch_size: int = 32,
        *,
        train: bool = False,
        seed: int = 0,
        cache: str | Path | None = None,
        **options: Any,
    ) -> Loader:
        """The trainer's loader of a split, for your own model: decoded, resized, tokenised, with boxes and ids.

        Iterating it, or `loader.once()`, gives every sample once; `loader.batches(position)` goes on from any position
        without end. Both yield `training.records.Batch`. train: shuffled and augmented. cache: folder of the index
        (default: ~/.cache/wenlan). options: fields of `training.config.DataConfig`, such as image_size, max_boxes,
        max_tokens, tokenizer, detector and num_workers.

            >>> loader = wenlan.open("builds/1").torch("val", image_size=64, max_boxes=36, cache="cache", num_workers=0)
            >>> [(batch.images_B3HW.shape, batch.boxes_BR4.shape) for batch in loader]
            [(torch.Size([2, 3, 64, 64]), torch.Size([2, 37, 4]))]
        """
        from data_specs.shard import ContractError

        with _packages_of("training"):
            import torch  # noqa: F401

            from training.config import from_dict, to_dict
            from training.data.index import open_dataset
            from training.data.loader import Loader, Share
            from training.data.tokenizer import load_tokenizer
            from training.errors import ConfigError
            from training.resolve import resolve

        if batch_size < 1:
            raise ConfigError("torch", f"batch_size: {batch_size} is out of range; it must be at least 1")
        for _ in self._frames.of_split(split):  # an unknown split is an error that names the known ones
            break
        if self._frames.dataset is None:
            raise ContractError(f"{self._frames.place}: is not published; loaders need a published build")
        values = to_dict(resolve("tiny"))
        values["text"]["max_positions"] = 1 << 20  # only `data` is used: no text tower bounds its max_tokens
        data = from_dict({**values, "data": options}, "torch").data
        where = Path(cache) if cache is not None else None
        dataset = open_dataset([self._frames.dataset.path], split, detector=data.detector, cache=where)
        return Loader(dataset, data, load_tokenizer(data.tokenizer), Share(batch_size), seed=seed, train=train)

    def _frame(self, table: str, columns: Sequence[str] | None, filters: Filters, split: str = "") -> pandas.DataFrame:
        self._check(table)
        with _packages_of("pipeline"):
            return _with_text(table, self._frames.frame(table, _stored(table, columns), filters, split), columns)

    def _regions(self, detector: str) -> str:
        return f"regions/{self._frames.detector(detector)}"

    def _named(self, table: str) -> str:
        """A table by its name, with the full id of a detector that is given by name."""
        return self._regions(table.removeprefix("regions/")) if table.startswith("regions/") else table

    def _check(self, table: str) -> dict[str, str]:
        """Reasons why builds lack a table, by build id. Warns, and raises StoreError if every build lacks it."""
        from pipeline.errors import StoreError

        lacking = self._frames.missing_reasons(table)
        if not lacking:
            return lacking
        first = next(f"{build}: {why}" for build, why in lacking.items())
        if len(lacking) >= max(1, len(self._builds)):
            raise StoreError(self._frames.place, f"does not contain {table} ({first})")
        which = f"of {len(lacking)} of {len(self._builds)} builds are left out"
        warnings.warn(f"{self._frames.place}: {table} {which} ({first})", stacklevel=4)
        return lacking

    @functools.cached_property
    def _builds(self) -> set[str]:
        """Ids of all builds of the dataset, missing ones included."""
        return {build.build_id for build in self._frames.builds} | set(self._frames.absent)
