"""The two towers of a spec: their files checked, and the models that the runner runs over pictures and texts.

Towers are those that `wenlan-train export --to onnx` writes, or with a `vocabulary` any pair of ONNX files
(data_specs/search). No torch is imported. Whatever is wrong with a file is a SpecError of one line that names it, when
a build is opened: before the first page is fetched.

Features are cached in STORE/features as unit rows in float16, by the sha256 of the image's bytes, and of the text in
UTF-8: `pair-image-ID` and `pair-text-ID`. An id is a digest of the tower's file and of all that is told beside it.
A cosine of float16 rows is within 0.0002 of that of the towers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.build import BuildSpec, PairScore, SpecError, resolve_path
from data_specs.search.onnx_file import check_onnx_file
from data_specs.search.picture_tower import OUR_RESIZE, PictureTower, to_square
from data_specs.search.queries import TextQuery
from data_specs.shard import ContractError, canonical_json
from pipeline.errors import ModelError
from pipeline.model_runner import Model, TextModel
from pipeline.pictures.decode import DECODE_VERSION, Pixels
from pipeline.store.cache import Cache
from pipeline.store.store import PAIR_FEATURES, Store

VERSION = 1
"""Raised when the same files and options give other features."""

SPARE = 2
"""Least side of a reduced picture in multiples of the tower's side, so that the resize hides that it is reduced."""

Row = npt.NDArray[np.float16]
"""[D], of length one."""


@dataclass(frozen=True, slots=True)
class Towers:
    """The towers of a spec by their files. ids: of the caches of their features."""

    options: PairScore
    image: Path
    text: Path
    vocabulary: Path | None
    image_id: str
    text_id: str

    def open_image(self, gpu: bool = False) -> PictureTower:
        """Raises TowerFault."""
        own = self.options
        if self.vocabulary is None:
            return PictureTower.open(self.image, own.threads, gpu)
        return PictureTower.foreign(self.image, own.side, own.mean, own.std, own.resize, own.threads, gpu)

    def open_text(self, gpu: bool = False) -> TextQuery:
        """Raises IndexFault, of which TowerFault is one."""
        own = self.options
        if self.vocabulary is None:
            return TextQuery.open(self.text, own.threads, gpu)
        return TextQuery.foreign(self.text, self.vocabulary, own.max_tokens, own.threads, gpu)


def checked_towers(spec: BuildSpec) -> Towers:
    """The same, opened and tried once. Raises SpecError that names a file which cannot be used."""
    towers = towers_of(spec)
    _check(towers)
    return towers


def towers_of(spec: BuildSpec) -> Towers:
    """The towers of a spec that asks for scores, by their files. Raises SpecError that names one which is not there."""
    options = spec.pair_score
    assert options is not None
    places = [
        resolve_path(spec.base, path) if path else "" for path in (options.image, options.text, options.vocabulary)
    ]
    for name, place in zip(("image", "text", "vocabulary"), places, strict=True):
        if "://" in place:
            raise SpecError([f"pair_score.{name}: {place}: is a URL; towers must be on a local path of every worker"])
    image, text, vocabulary = map(Path, places)
    return _towers(options, image, text, vocabulary if options.vocabulary else None)


@functools.lru_cache(4)
def _towers(options: PairScore, image: Path, text: Path, vocabulary: Path | None) -> Towers:
    """Read once in a process: files of models do not change while it runs."""
    try:
        told = options.model_dump(include={"side", "resize", "mean", "std"}) if vocabulary is not None else {}
        image_id = _features_id("image", check_onnx_file(image).sha256, [told, DECODE_VERSION, SPARE])
        told = options.model_dump(include={"max_tokens"}) if vocabulary is not None else {}
        words = hashlib.sha256(vocabulary.read_bytes()).hexdigest() if vocabulary is not None else ""
        text_id = _features_id("text", check_onnx_file(text).sha256, [told, words])
    except ContractError as e:
        raise SpecError([f"pair_score: {e}"]) from None
    except OSError as e:
        raise SpecError([f"pair_score.vocabulary: {vocabulary}: cannot be read ({e.strerror})"]) from None
    return Towers(options, image, text, vocabulary, image_id, text_id)


def _features_id(kind: str, sha256: str, told: list[object]) -> str:
    digest = hashlib.sha256(canonical_json([VERSION, sha256, told])).hexdigest()
    return f"{PAIR_FEATURES}{kind}-{digest[:12]}"


@functools.lru_cache(4)
def _check(towers: Towers) -> None:
    """Raise SpecError for files that are not two towers of one model."""
    try:
        image, text = towers.open_image(), towers.open_text()
    except ContractError as e:
        raise SpecError([f"pair_score: {e}"]) from None
    if towers.vocabulary is None and image.towers.sha256 != text.towers.sha256:
        raise SpecError([f"pair_score: {towers.text}: not of the same checkpoint as {towers.image}"])
    if image.width != text.width:
        raise SpecError([f"pair_score: {towers.text}: {text.width} features, but {image.width} in {towers.image}"])


@dataclass(frozen=True)
class ImageFeatures(Model[Row]):
    towers: Towers

    @property
    def reduce_to(self) -> int:
        return SPARE * self.load().side

    def cache(self, store: Store) -> Cache:
        return store.features(self.id)

    def load(self) -> PictureTower:
        return _open_image(self.towers, self.gpus > 0)

    def prepare(self, picture: Pixels, reduce_to: int) -> Pixels:
        own = self.towers
        return to_square(picture, reduce_to // SPARE, OUR_RESIZE if own.vocabulary is None else own.options.resize)

    def run(self, state: PictureTower, items: Sequence[Pixels], /) -> list[Row]:
        return list(state.encode(items).astype(np.float16))

    def rows(self, values: Mapping[str, Row]) -> pa.Table:
        return _rows(values)

    def values_of(self, rows: pa.Table) -> dict[str, Row]:
        return _values_of(rows)


@dataclass(frozen=True)
class TextFeatures(TextModel[Row]):
    towers: Towers

    def cache(self, store: Store) -> Cache:
        return store.features(self.id)

    def load(self) -> TextQuery:
        try:
            return self.towers.open_text(self.gpus > 0)
        except ContractError as e:
            raise _model_error(e) from None

    def run(self, state: TextQuery, items: Sequence[str], /) -> list[Row]:
        return list(state.encode(list(items)).astype(np.float16))

    def rows(self, values: Mapping[str, Row]) -> pa.Table:
        return _rows(values)

    def values_of(self, rows: pa.Table) -> dict[str, Row]:
        return _values_of(rows)


def resources(spec: BuildSpec) -> dict[str, float]:
    """A CPU of a task for each thread of a session, and the spec's GPUs of a process that holds sessions."""
    own = spec.pair_score
    return {"num_cpus": 1.0} if own is None else {"num_cpus": float(own.threads), "num_gpus": own.num_gpus}


def models_of(spec: BuildSpec) -> tuple[ImageFeatures, TextFeatures]:
    towers = towers_of(spec)
    gpus = towers.options.num_gpus
    return ImageFeatures(towers.image_id, towers, gpus=gpus), TextFeatures(towers.text_id, towers, gpus=gpus)


@functools.lru_cache(1)
def _open_image(towers: Towers, gpu: bool) -> PictureTower:
    try:
        return towers.open_image(gpu)
    except ContractError as e:
        raise _model_error(e) from None


def _model_error(e: ContractError) -> ModelError:
    subject, _, message = str(e).partition(": ")
    return ModelError(subject, message)


def _rows(values: Mapping[str, Row]) -> pa.Table:
    """sha256, feature: the bytes of D numbers."""
    width = len(next(iter(values.values()))) if values else 1
    features = pa.array([row.tobytes() for row in values.values()], pa.binary(2 * width))
    return pa.table({"sha256": pa.array(list(values), pa.string()), "feature": features})


def _values_of(rows: pa.Table) -> dict[str, Row]:
    values: dict[str, Row] = {}
    for batch in rows.to_batches():
        column = batch["feature"]
        width = column.type.byte_width
        first, end = column.offset * width, (column.offset + len(column)) * width
        features = np.frombuffer(column.buffers()[1], np.uint8)[first:end].reshape(-1, width).view(np.float16)
        values |= zip(batch["sha256"].to_pylist(), features, strict=True)
    return values
