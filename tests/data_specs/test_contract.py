"""The contract from both sides: shards that `pipeline` wrote from pictures of mixed formats, read by everybody.

Plain webdataset, wids, Ray Data, Hugging Face datasets and `training` must each return every image, with the text that
belongs to it: of a release of three builds, and of a copy of that release. Readers with global state (Ray's
processes, the hub's settings) run in a process of their own, whose imports of torch and more are done once.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from data_specs.release import open_manifest
from data_specs.shard import SPLITS, Manifest
from pipeline import cli
from pipeline.publish import release
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from tests.processes import Asked

pytestmark = pytest.mark.slow

TRUTH = dict[str, tuple[str, int, int]]
"""key -> (primary text, width, height)."""


@dataclass(frozen=True)
class Place:
    """A dataset as its readers are pointed to it. data: what training opens; lists: where the lists of wids lie.

    card: the tars of each split by the dataset card, where that lies beside them.
    """

    data: Path
    lists: Path
    urls: dict[str, list[str]]
    truth: TRUTH
    card: dict[str, str]

    @property
    def manifest(self) -> Manifest:
        return _manifest(self.data)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


REGIONS = {"detectors": [{"name": "proposals"}]}
"""Of a build's grid training takes nothing."""


@pytest.fixture(scope="module", params=["release", "copy"])
def place(request: pytest.FixtureRequest, folder: Path, synthetic: Any, run_stage: Callable[..., Any]) -> Place:
    """A release of three builds, and a copy of that, which looks like a build; its index is the truth."""
    root = folder / "release"
    for i in range(0 if root.exists() else 3):  # a copy comes after the release, whose folders it moves away
        part = {"out": f"build{i}", "snapshot": f"2024-01-0{i + 1}", "part": (i, 3)}
        _published(synthetic.make(root, **part, regions=REGIONS)[0], run_stage)
    data, lists = root / "store/datasets/synthetic/latest.json", root / "store/datasets/synthetic/000003"
    assert len(_manifest(data)[1].builds) == 3
    urls = _listed(root / "store") if request.param == "release" else None
    if request.param == "copy":
        data = lists = root / "copied"
        assert cli.main(["release", "copy", "synthetic", "--store", str(root / "store"), "--out", str(data)]) == 0
        for folder_name in ("store", *(f"build{i}" for i in range(3))):
            (root / folder_name).rename(root / f"moved {folder_name}")  # a copy needs nothing else
    card = _card(lists) if request.param != "release" else {}
    return Place(data, lists, urls or _tars(data), _truth(data, synthetic), card)


def _published(build: Build, run_stage: Callable[..., Any]) -> Path:
    """The shard folder of a build, published after those before it."""
    build = replace(build, identities=Identities(build.store).before(build))
    build_json.note(build)
    run_stage(build, "shard")
    release.publish(build)
    return Path(build.out) / "shards"


def _manifest(data: Path) -> tuple[str, Manifest]:
    return open_manifest(str(data), lambda path: Path(path).read_bytes())


def _tars(data: Path) -> dict[str, list[str]]:
    """The tars of each split, as a manifest lists them."""
    path, manifest = _manifest(data)
    base = str(Path(path).parent)
    return {
        split: [f"{manifest.folder_of(shard, base)}/{shard.tar.path}" for shard in manifest.of_split(split)]
        for split in SPLITS
    }


def _card(folder: Path) -> dict[str, str]:
    """The pattern of each split's files in the head of a dataset card, by which the hub finds them."""
    head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    return {files["split"]: files["path"] for files in yaml.safe_load(head)["configs"][0]["data_files"]}


def _listed(store: Path) -> dict[str, list[str]]:
    """The tars of each split, as `wenlan-data release show --urls` prints them."""
    words, listed = ["release", "show", "synthetic", "--store", str(store), "--urls"], {}
    for split in SPLITS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert cli.main([*words, split]) == 0
        listed[split] = printed.getvalue().splitlines()
    return listed


def _truth(data: Path, synthetic: Any) -> TRUTH:
    """What the index says of every sample; every format of the fixture is among them."""
    tables = [Path(tar).with_suffix(".parquet") for tars in _tars(data).values() for tar in tars]
    rows = [row for table in tables for row in pq.read_table(table).to_pylist()]
    assert len(rows) == synthetic.KEPT
    assert {row["format"] for row in rows} == {"jpeg", "png", "gif", "webp", "bmp"}
    return {row["key"]: (row["texts"][0]["text"], row["width"], row["height"]) for row in rows}


def _sides(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "JPEG"
        return image.size


def _as_truth(rows: list[list[Any]]) -> TRUTH:
    keys = [key for key, *_ in rows]
    assert len(keys) == len(set(keys))
    return {key: (text, width, height) for key, text, width, height in rows}


def _every(place: Place) -> list[str]:
    return [tar for tars in place.urls.values() for tar in tars]


Reader = Callable[[str], Asked]


@pytest.fixture(scope="module")
def reader(folder: Path) -> Iterator[Reader]:
    """reader(script): the process of a script, one for all places."""
    asked: dict[str, Asked] = {}

    def start(script: str) -> Asked:
        if script not in asked:
            asked[script] = Asked(script, folder / f"{len(asked)}.log")
        return asked[script]

    yield start
    for process in asked.values():
        process.close()


READERS = """
import io, json, datasets, webdataset, wids
from PIL import Image

def answer(reader, *words):
    return globals()[reader](*words)

def plain_webdataset(*urls):
    found = []
    for s in webdataset.WebDataset(list(urls), shardshuffle=False, empty_check=False):
        assert json.loads(s["json"])["texts"][0]["text"] == s["txt"].decode()
        found.append([s["__key__"], s["txt"].decode(), *Image.open(io.BytesIO(s["jpg"])).convert("RGB").size])
    return found

def shard_lists(lists, cache):
    found = []
    for split in ("train", "dev", "val"):
        dataset = wids.ShardListDataset(f"{lists}/{split}.json", localname=wids.wids.DefaultLocalname(cache))
        for i in range(len(dataset)):
            sample = dataset[i]
            found.append([sample["__key__"], sample[".txt"], *sample[".jpg"].size])
    return found

def hugging_face(files, cache):
    found = []
    for split in ("train", "dev", "val"):
        own = {split: json.loads(files)[split]}  # lists of tars, or the patterns of the card
        rows = datasets.load_dataset("webdataset", data_files=own, split=split, cache_dir=cache)
        found += [[r["__key__"], r["txt"], *r["jpg"].size] for r in rows]
    return found
"""


def test_plain_webdataset_reads_every_sample(place: Place, reader: Reader) -> None:
    assert _as_truth(reader(READERS)("plain_webdataset", *_every(place))) == place.truth


def test_wids_reads_the_shard_lists_that_publish_wrote(place: Place, reader: Reader, tmp_path: Path) -> None:
    assert _as_truth(reader(READERS)("shard_lists", place.lists, tmp_path / "cache")) == place.truth


RAY_DATA = """
import logging, ray
from data_specs.command.loopback import start_ray
start_ray(ray, num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.data.DataContext.get_current().enable_progress_bars = False

def answer(*urls):
    rows = ray.data.read_webdataset(list(urls)).take_all()
    return [[r["__key__"], r["txt"], r["jpg"].shape[1], r["jpg"].shape[0]] for r in rows]
"""


@pytest.mark.drill(12)
@pytest.mark.parametrize("place", ["release"], indirect=True)
def test_ray_data_reads_every_sample(place: Place, reader: Reader) -> None:
    assert _as_truth(reader(RAY_DATA)(*_every(place))) == place.truth


def test_hugging_face_datasets_reads_every_sample(place: Place, reader: Reader, tmp_path: Path) -> None:
    files: dict[str, Any] = dict(place.urls)
    if place.card:
        files = {split: f"{place.lists}/{pattern}" for split, pattern in place.card.items()}
    assert _as_truth(reader(READERS)("hugging_face", json.dumps(files), tmp_path / "cache")) == place.truth


def test_training_reads_every_sample_with_its_regions(place: Place, tmp_path: Path) -> None:
    from training.data.index import open_dataset

    [detector] = place.manifest.detectors
    samples = {}
    for split in ("train", "dev", "val"):
        dataset = open_dataset([str(place.data)], split, detector=detector, cache=tmp_path / "index")
        for number in range(len(dataset)):
            row = dataset.row(number)
            samples[row.key] = (row.texts[0].text, *_sides(dataset.image(row)))
            assert row.boxes is not None
            assert len(row.boxes) in (4, 8)
            assert max(row.boxes[2::4]) <= row.width
        dataset.close()
    assert samples == place.truth


@pytest.mark.parametrize("place", ["release"], indirect=True)
def test_a_checkpoint_names_the_release_that_it_was_trained_on(place: Place, tmp_path: Path) -> None:
    from tests.training.conftest import retrieval_of
    from training.outputs import checkpoint
    from training.resolve import resolve
    from training.run.train import fit

    result = fit(resolve("tiny", []), [str(place.data)], tmp_path / "run", cache=tmp_path / "index")
    opened = checkpoint.open_checkpoint(Path(result.checkpoint))
    state = json.loads((opened.folder / "state.json").read_bytes())
    assert state["content_digests"] == [place.manifest.content_digest]
    measured = retrieval_of(opened.folder, str(place.data), cache=tmp_path / "index")
    assert measured["samples"] == place.manifest.samples["val"]
