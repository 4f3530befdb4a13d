"""Runs models over the images of a partition: decodes each image once, and runs each model once per image.

What a model says of an image depends on the image's bytes and the model's id alone, so its values are cached in STORE
under the image's sha256 and shared by all builds. `model_values` takes from the caches what is there, decodes each
other image once for all models that lack it, hands the pictures over in batches to the process that holds the model
(`pipeline.processes.sessions`), and puts the values into the caches. `text_values` does the same for texts, under the
sha256 of each.

Limits: an image that cannot be decoded gets no values and is tried again by each build. Two builds at once over the
same images may both compute a value. Between two flushes of a cache up to SAVE values of a model are in memory; a kill
loses them.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from pipeline.errors import OURS, evidence
from pipeline.pictures.decode import PictureError, Pixels, decode
from pipeline.processes import pulse
from pipeline.processes.sessions import Answer, Queue
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.commits import on_gpu
from pipeline.store.images import partition_images
from pipeline.store.store import Store

BATCH, GPU_BATCH, BATCH_PIXELS = 16, 128, 32_000_000
"""A batch is handed to the models when it has so many pictures, or so many pixels. Batches for a GPU grow from the
first to the second number, so that it does not wait while a task decodes its first large batch."""

TEXT_BATCH = 512
"""Texts that are handed to a model together: enough that many have one length."""

SAVE = 1_000
"""New values of a model after which they go into its cache, so that a killed worker repeats no more."""

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class AnyModel(abc.ABC, Generic[Item, Value]):
    """A model of pictures or texts. Models that are equal share what `load` returned, within a process."""

    id: str
    """Names all that a value depends on beside the image."""
    gpus: float = field(default=0.0, kw_only=True)
    """GPUs that a process which runs it owns, or a fraction of one; 0: it runs where pictures are decoded."""

    @property
    def reduce_to(self) -> int:
        """Shorter side in pixels that a decode has to keep; 0: the whole picture. Asked where the model is loaded."""
        return 0

    @abc.abstractmethod
    def cache(self, store: Store) -> Cache:
        """The cache of its values, by sha256."""

    @abc.abstractmethod
    def load(self) -> Any:
        """Loads what `run` needs and a process keeps, e.g. a session. Raises ModelError or DetectorError."""

    @abc.abstractmethod
    def run(self, state: Any, items: Sequence[Item], /) -> Sequence[Value]:
        """One value per picture or text. `state` is what `load` returned."""

    @abc.abstractmethod
    def rows(self, values: Mapping[str, Value]) -> pa.Table:
        """Rows of the cache, from values by sha256."""

    @abc.abstractmethod
    def values_of(self, rows: pa.Table) -> dict[str, Value]:
        """Values by sha256, from rows of the cache."""


@dataclass(frozen=True)
class Model(AnyModel[Pixels, Value]):
    """A model of pictures."""

    def prepare(self, picture: Pixels, reduce_to: int) -> Pixels:
        """The picture as `run` gets it. Runs where pictures are decoded, so that a GPU does not wait for it."""
        return picture


@dataclass(frozen=True)
class TextModel(AnyModel[str, Value]):
    """A model of texts."""


@dataclass
class ModelValues(Generic[Value]):
    """Values of the models for the images or texts, and how many were cached or computed."""

    values: dict[str, dict[str, Value]]
    """Model id -> sha256 -> value; an image that could not be decoded, or on which the model failed, has none."""
    cached: int
    """Values that were in the caches at the start."""
    computed: int = 0
    """Values that this call computed."""
    images: set[str] = field(default_factory=set)
    """Images or texts that this call handed to a model, or failed to decode."""
    undecodable: dict[str, str] = field(default_factory=dict)
    """sha256 -> why it could not be decoded, or what a model raised on it."""


def model_values(
    build: Build, partition: str, images: Collection[str], models: Sequence[Model[Value]]
) -> ModelValues[Value]:
    """The value of each model for each of the images (sha256) of a fetch partition: cached, or computed now."""
    runner = _PictureRunner(build, partition, models, images)
    runner.complete()
    return runner.result


def text_values(build: Build, texts: Mapping[str, str], model: TextModel[Value]) -> ModelValues[Value]:
    """The value of a model for each of the texts, by their sha256: cached, or computed now."""
    runner = _TextRunner(build.store, texts, model)
    runner.complete()
    return runner.result


class _Runner(abc.ABC, Generic[Item, Value]):
    """One call of `model_values` or `text_values`; both compute what is missing in the same way."""

    WHAT: ClassVar[str]
    """Subject of the values, for messages."""

    def __init__(self, store: Store, models: Sequence[AnyModel[Item, Value]], images: Collection[str]) -> None:
        self._models = {model.id: model for model in models}
        self._caches = {model.id: model.cache(store) for model in models}
        cached = {name: self._read_cache(name, images) for name in self._models}
        self._missing = {name: set(images) - values.keys() for name, values in cached.items()}
        self.result = ModelValues(cached, cached=sum(map(len, cached.values())))

    def complete(self) -> None:
        """Run each model over what its cache lacks. Those on a GPU come first: they compute meanwhile."""
        lacking = {name: images for name, images in self._missing.items() if images}
        first = sorted(lacking, key=lambda name: -self._models[name].gpus)
        queues = {name: Queue(self._models[name], self.WHAT) for name in first}
        new: dict[str, dict[str, Value]] = {name: {} for name in queues}
        for batch in self._batches(lacking, queues) if queues else ():
            for name, queue in queues.items():
                shown = {sha256: batch[sha256] for sha256 in batch if sha256 in lacking[name]}
                if items := self._prepare(name, shown, queue.reduce_to):
                    self._store_answers(name, queue.put(items), new[name])
        for name, queue in queues.items():
            self._store_answers(name, queue.rest(), new[name])
            self._save(name, new[name])

    def _store_answers(self, name: str, answers: Sequence[Answer], new: dict[str, Value]) -> None:
        """Note what a model said of some batches."""
        for answer in answers:
            new.update(answer.values)
            self.result.undecodable.update(answer.faults)
            on_gpu(answer.seconds * self._models[name].gpus)
            if len(new) >= SAVE:
                self._save(name, new)

    def _prepare(self, name: str, items: dict[str, Item], reduce_to: int) -> dict[str, Item]:
        """The items as a model gets them, without those that cannot be prepared."""
        return items

    @abc.abstractmethod
    def _batches(self, lacking: Mapping[str, set[str]], queues: Mapping[str, Queue]) -> Iterator[dict[str, Item]]:
        """Batches of what some model lacks, by sha256. queues: of the models."""

    def _read_cache(self, name: str, images: Collection[str]) -> dict[str, Value]:
        rows = self._caches[name].get(images)
        return {} if rows is None else self._models[name].values_of(rows)

    def _save(self, name: str, new: dict[str, Value]) -> None:
        """Move new values into the cache and the result."""
        if new:
            self._caches[name].put(self._models[name].rows(new))
            self.result.values[name].update(new)
            self.result.computed += len(new)
            new.clear()


class _PictureRunner(_Runner[Pixels, Value]):
    WHAT = "image"

    def __init__(self, build: Build, partition: str, models: Sequence[Model[Value]], images: Collection[str]) -> None:
        self._build, self._partition = build, partition
        self._of_pictures = {model.id: model for model in models}
        super().__init__(build.store, models, images)

    def _prepare(self, name: str, items: dict[str, Pixels], reduce_to: int) -> dict[str, Pixels]:
        prepared = {}
        for sha256, picture in items.items():
            try:
                prepared[sha256] = self._of_pictures[name].prepare(picture, reduce_to)
            except OURS:
                raise
            except Exception as e:
                self.result.undecodable[sha256] = f"{name}: {evidence(e, f'image {sha256}')}"
        return prepared

    def _batches(self, lacking: Mapping[str, set[str]], queues: Mapping[str, Queue]) -> Iterator[dict[str, Pixels]]:
        """Batches of the images that some model lacks, each read and decoded once."""
        images = set[str]().union(*lacking.values())
        sides = [queue.reduce_to for queue in queues.values()]
        reduce_to = max(sides) if all(sides) else 0
        largest = GPU_BATCH if any(self._models[name].gpus for name in queues) else BATCH
        most = min(BATCH, largest)
        self.result.images |= images
        pulse.expect(len(images))
        batch, pixels = dict[str, Pixels](), 0
        for image in partition_images(self._build, self._partition, images):
            pulse.advance()
            try:
                picture = decode(image.data, self._build.spec.fetch.max_pixels, reduce_to).pixels
            except PictureError as e:
                self.result.undecodable[image.sha256] = str(e)
                continue
            except OURS:
                raise
            except Exception as e:
                self.result.undecodable[image.sha256] = evidence(e, f"image {image.sha256}")
                continue
            batch[image.sha256] = picture
            pixels += picture.size // 3
            if len(batch) >= most or pixels >= BATCH_PIXELS:
                yield batch
                batch, pixels = {}, 0
                most = min(2 * most, largest)
        if batch:
            yield batch


class _TextRunner(_Runner[str, Value]):
    WHAT = "text"

    def __init__(self, store: Store, texts: Mapping[str, str], model: TextModel[Value]) -> None:
        self._texts = texts
        super().__init__(store, [model], texts)

    def _batches(self, lacking: Mapping[str, set[str]], queues: Mapping[str, Queue]) -> Iterator[dict[str, str]]:
        """Batches of texts of like length."""
        texts = sorted((len(self._texts[name]), name) for name in set[str]().union(*lacking.values()))
        self.result.images |= {name for _, name in texts}
        pulse.expect(len(texts))
        for low in range(0, len(texts), TEXT_BATCH):
            batch = {name: self._texts[name] for _, name in texts[low : low + TEXT_BATCH]}
            yield batch
            pulse.advance(len(batch))
