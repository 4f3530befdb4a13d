"""The runner of models on pictures: decode once for all models that lack an image, cache, flush, take over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from pipeline import model_runner
from pipeline.model_runner import Model, model_values
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.store import Store
from tests.drawn import picture


@dataclass(frozen=True)
class Mean(Model[float]):
    """The mean of a picture, and the shape of each picture that it was shown, in `shown`."""

    shown: Any = None
    side: int = 0

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def reduce_to(self) -> int:
        return self.side

    def cache(self, store: Store) -> Cache:
        return store.features(self.id)

    def load(self) -> Any:
        return "loaded"

    def run(self, state: Any, pictures: Sequence[Any]) -> list[float]:
        assert state == "loaded"
        self.shown.append([picture.shape[:2] for picture in pictures])
        return [float(picture.mean()) for picture in pictures]

    def rows(self, values: Mapping[str, float]) -> pa.Table:
        return pa.table({"sha256": list(values), "mean": list(values.values())})

    def values_of(self, rows: pa.Table) -> dict[str, float]:
        return dict(zip(rows["sha256"].to_pylist(), rows["mean"].to_pylist(), strict=True))


@pytest.fixture
def build(fetched_build: Any, got: Any) -> Build:
    """Ten pictures, of which one is damaged, in one fetch partition."""
    data = [picture(seed, (640, 480)) for seed in range(9)]
    made: Build = fetched_build([got(f"{i}", d) for i, d in enumerate([*data, data[0][:300]])])
    return made


def images_of(build: Build) -> list[str]:
    (record,) = build.stage("fetch").records()
    return list(build.stage("fetch").table(record)["sha256"].to_pylist())


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`reduce_to` of each decode from here on."""
    sides, decode = list[int](), model_runner.decode

    def counted(data: Any, max_pixels: int, reduce_to: int) -> Any:
        sides.append(reduce_to)
        return decode(data, max_pixels, reduce_to)

    monkeypatch.setattr(model_runner, "decode", counted)
    return sides


def test_an_image_is_decoded_once_for_all_models(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = decoded(monkeypatch)
    models = [Mean("one", [], 64), Mean("two", [], 100)]
    result = model_values(build, "00000-of-00001", images_of(build), models)
    assert sides == [100] * 10, "at the size of the model that needs most"
    assert (result.cached, result.computed, len(result.images), len(result.undecodable)) == (0, 18, 10, 1)
    assert set(result.undecodable) == set(images_of(build)) - result.values["one"].keys()
    assert result.values["one"] == result.values["two"]
    sides.clear()
    models = [Mean("one", [], 64), Mean("three", [], 0)]
    sound = [sha256 for sha256 in images_of(build) if sha256 not in result.undecodable]
    again = model_values(build, "00000-of-00001", sound, models)
    assert sides == [0] * 9, "whole, for the one that lacks them"
    assert models[0].shown == []
    assert (again.cached, again.computed, again.undecodable) == (9, 9, {})
    assert again.values["one"] == {sha256: result.values["one"][sha256] for sha256 in sound}


def test_pictures_come_in_batches_and_values_are_flushed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "BATCH", 4)
    monkeypatch.setattr(model_runner, "SAVE", 5)
    model = Mean("one", [])
    model_values(build, "00000-of-00001", images_of(build), [model])
    assert [len(batch) for batch in model.shown] == [4, 4, 1]
    assert len(model.cache(build.store).commits()) == 2, "after eight, and at the end"


def test_batches_for_a_gpu_grow(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU has work after the first few pictures of a partition, and full batches soon."""
    monkeypatch.setattr(model_runner, "BATCH", 1)
    monkeypatch.setattr(model_runner, "GPU_BATCH", 3)
    model = Mean("one", [], gpus=1.0)
    model_values(build, "00000-of-00001", images_of(build), [model])
    assert [len(batch) for batch in model.shown] == [1, 2, 3, 3]


def test_large_pictures_are_handed_over_sooner(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "BATCH_PIXELS", 2 * 640 * 480)
    model = Mean("one", [])
    model_values(build, "00000-of-00001", images_of(build), [model])
    assert [len(batch) for batch in model.shown] == [2, 2, 2, 2, 1]


def test_nothing_to_do_costs_no_model(build: Build) -> None:
    result = model_values(build, "00000-of-00001", [], [Mean("one", [])])
    assert (result.values, result.cached, result.computed) == ({"one": {}}, 0, 0)
    assert model_values(build, "00000-of-00001", images_of(build), []).values == {}


def test_a_worker_loads_each_model_once_for_all_of_its_partitions(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[str]()
    monkeypatch.setattr(Mean, "load", lambda self: loaded.append(self.id) or "loaded")
    images, models = sorted(images_of(build)), [Mean(f"loaded once {number}", []) for number in range(6)]
    for some in (images[:5], images[5:]):
        model_values(build, "00000-of-00001", some, models)
    assert sorted(loaded) == [model.id for model in models]
