"""Holders of sessions: whoever holds a model, values are the same; one that dies repeats what it was given, no more."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import pyarrow as pa
import pytest

from pipeline import cluster, model_runner
from pipeline.detectors.proposals import Proposals
from pipeline.errors import DetectorError, ModelError, StageError
from pipeline.model_runner import Model, model_values
from pipeline.pictures import models
from pipeline.processes.actors import Actors
from pipeline.processes.sessions import Sessions, lent
from pipeline.stages.detect import _BoxModel
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.store import Store
from tests.drawn import picture
from tests.processes import is_running, wait_until

PARTITION, ALWAYS = "00000-of-00001", -1


@dataclass(frozen=True)
class Noted(Model[float]):
    """The mean of a picture. Notes each batch in a folder, and kills its process in the batch that `dies` counts to, or
    in each (ALWAYS).

    seconds: that a batch takes. holders: processes that must have loaded it before it runs.
    """

    folder: str = ""
    dies: int = 0
    seconds: float = 0.0
    holders: int = 1

    def cache(self, store: Store) -> Cache:
        return store.features(self.id)

    def load(self) -> str:
        Path(f"{self.folder}-loaded-{os.getpid()}").touch()
        return "loaded"

    def run(self, state: Any, pictures: Sequence[Any]) -> list[float]:
        here = Path(self.folder)
        wait_until(lambda: len(list(here.parent.glob(f"{here.name}-loaded-*"))) >= self.holders, "others load it")
        time.sleep(self.seconds)
        means = [float(picture.mean()) for picture in pictures]
        note = {"pid": os.getpid(), "means": means, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
        (Path(self.folder) / uuid.uuid4().hex).write_text(json.dumps(note))
        if self.dies in (ALWAYS, len(list(Path(self.folder).iterdir()))):
            os.kill(os.getpid(), signal.SIGKILL)
        return means

    def rows(self, values: Mapping[str, float]) -> pa.Table:
        return pa.table({"sha256": list(values), "mean": list(values.values())})

    def values_of(self, rows: pa.Table) -> dict[str, float]:
        return dict(zip(rows["sha256"].to_pylist(), rows["mean"].to_pylist(), strict=True))


def notes(model: Noted) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in Path(model.folder).iterdir()]


@pytest.fixture
def noted(tmp_path: Path) -> Callable[..., Noted]:
    def make(name: str, **more: Any) -> Noted:
        folder = tmp_path / name
        folder.mkdir()
        return Noted(name, str(folder), **more)

    return make


@pytest.fixture
def build(fetched_build: Any, got: Any) -> Build:
    """Twelve pictures in one fetch partition."""
    made: Build = fetched_build([got(f"{n}", picture(n, (64, 48))) for n in range(12)])
    return replace(made, fingerprints={**made.fingerprints, "measure": "f" * 64})


def images_of(build: Build) -> list[str]:
    (record,) = build.stage("fetch").records()
    return list(build.stage("fetch").table(record)["sha256"].to_pylist())


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = list[int]()

    @dataclass(frozen=True)
    class Small(Noted):
        def load(self) -> str:
            return "loaded"

        def run(self, state: Any, items: Sequence[float]) -> list[float]:
            asked.append(len(items))
            if len(items) > 3:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return [2 * item for item in items]

    holder, items = Sessions(), {str(n): float(n) for n in range(8)}
    with caplog.at_level(logging.WARNING, "wenlan"):
        for _ in range(2):
            answer = holder.run(Small("small"), items, "image")
            assert (answer.values, answer.faults) == ({key: 2 * item for key, item in items.items()}, {})
    assert asked == [8, 4, *[2] * 4, *[2] * 4], "what does not fit is not tried again"
    assert [record.getMessage() for record in caplog.records] == [
        "small: 8 images at once do not fit into memory, 2 at a time do"
    ]


def test_a_gpu_that_was_asked_for_and_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a session on one thread of the CPU, while the GPU is reserved."""
    detector = Proposals()
    with pytest.raises(DetectorError, match=r"proposals\.onnx: num_gpus .* no CUDA: .*onnxruntime-gpu\[.*num_gpus: 0$"):
        detector.load(gpu=True)
    assert detector.load().session.get_providers() == ["CPUExecutionProvider"]
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ModelError, match=r"cannot start CUDA: its GPU or .*onnxruntime-gpu"),
    ):
        models.session(detector._onnx._read(detector._onnx.weights), "proposals", gpu=True)


@pytest.mark.slow
def test_values_are_the_same_whoever_holds_the_model(ray: Any, build: Build, noted: Any, tmp_path: Path) -> None:
    """Through the executor: tasks decode and hold no GPU, one process owns it, and what it cost is in the record."""
    here, gpu = noted("here"), noted("gpu", gpus=0.5, seconds=0.04)
    expected = model_values(build, PARTITION, images_of(build), [here]).values["here"]
    assert {note["pid"] for note in notes(here)} == {os.getpid()}

    def scored(build: Build, partition: str) -> None:
        import ray

        model = replace(gpu, id=f"gpu {partition}")
        result = model_values(build, PARTITION, images_of(build), [model])
        with build.stage("measure").attempt(partition) as attempt:
            held = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
            attempt.commit({"pid": os.getpid(), "gpus": int(held)}, {"values": result.values[model.id]})

    resources = {"num_cpus": 1.0, "num_gpus": 0.5}
    list(cluster.Cluster().each(build, [("measure", scored)], resources, ["a", "b", "c", "d"]))
    records = list(build.stage("measure").records())
    assert [record.info["values"] for record in records] == [expected] * 4
    assert [record.counts["gpus"] for record in records] == [0] * 4
    assert all(0.02 <= record.gpu_seconds < record.seconds for record in records)
    holders = {note["pid"] for note in notes(gpu)}
    assert not holders & {record.counts["pid"] for record in records}
    assert len(holders) <= 2, "half a GPU each"
    assert {note["gpu"] for note in notes(gpu)} == {"0"}
    wait_until(lambda: not any(map(is_running, holders)), "the GPU is free after the pass")
    with pytest.raises(DetectorError, match="num_gpus asks for a GPU, but the onnxruntime here has no CUDA"):
        list(cluster.Cluster().each(build, [("measure", _with_proposals)], resources, ["e"]))


def _with_proposals(build: Build, partition: str) -> None:
    model_values(build, PARTITION, images_of(build), [_BoxModel("proposals", Proposals(), gpus=0.5)])


@pytest.mark.drill(15)
def test_a_holder_that_is_killed_repeats_what_it_had_and_nothing_else(
    ray: Any, build: Build, noted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "GPU_BATCH", 2)
    here, gpu = noted("here"), noted("gpu", gpus=1.0, dies=3)
    expected = model_values(build, PARTITION, images_of(build), [here]).values["here"]
    with Actors(Sessions, [()], restarts=2, num_gpus=1.0) as holders, lent(holders):
        result = model_values(build, PARTITION, images_of(build), [gpu])
    assert result.values["gpu"] == expected
    assert (result.computed, result.undecodable) == (12, {})
    runs = Counter(mean for note in notes(gpu) for mean in note["means"])
    repeated = sorted(runs.values())
    assert repeated in ([1] * 10 + [2] * 2, [1] * 8 + [2] * 4), "an answer may not leave before the kill"
    assert len({note["pid"] for note in notes(gpu)}) == 2


@pytest.mark.drill(15)
def test_a_batch_that_kills_its_holder_is_tried_three_times(ray: Any, build: Build, noted: Any) -> None:
    deadly = noted("deadly", gpus=1.0, dies=ALWAYS)

    def scored(build: Build, partition: str) -> None:
        model_values(build, PARTITION, images_of(build), [deadly])

    with pytest.raises(StageError, match=r"^deadly: .* has ended \(Actor\w+Error: .*, at the last try of some images"):
        list(cluster.Cluster().each(build, [("measure", scored)], {"num_cpus": 1.0, "num_gpus": 1.0}, ["a"]))
    assert len(notes(deadly)) == 1 + cluster.TASK_RETRIES == 3
