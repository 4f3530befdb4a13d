"""samples: row, image and boxes of each sample, joined as they are stored."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_specs.shard import SPLITS, FileDigest
from pipeline.errors import StoreError
from pipeline.store.dataset import Dataset
from pipeline.store.frames import Frames
from pipeline.store.samples import Samples
from pipeline.store.takedowns import Takedowns


def test_regions_of_other_samples_stop_the_reading(shards_of: Path) -> None:
    detector = Dataset.open(shards_of).manifest.detectors[0]
    first, second = sorted((shards_of / "regions" / detector).glob("train-*.parquet"))[:2]
    shutil.copyfile(second, first)
    frames = Frames.of_dataset(Dataset.open(shards_of))
    shards = [
        (folder, shard.model_copy(update={"regions": {detector: _as_it_is(shards_of, shard.regions[detector])}}))
        for folder, shard in frames.shards
    ]
    with pytest.raises(StoreError, match=rf"{first.name}: [0-9a-f]{{32}}: its regions belong to another sample"):
        list(Samples.of(replace(frames, shards=tuple(shards))).read("train"))


def _as_it_is(folder: Path, file: FileDigest) -> FileDigest:
    return file.model_copy(update={"bytes": (folder / file.path).stat().st_size})


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """key -> ending -> bytes of every tar, split by split, by the standard library."""
    files: dict[str, dict[str, bytes]] = {}
    for path in (path for split in SPLITS for path in sorted(folder.glob(f"{split}-*.tar"))):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                files.setdefault(key, {})[ending] = file.read()
    return files


@pytest.mark.slow
def test_every_sample_is_its_row_its_members_and_its_boxes(shards_of: Path) -> None:
    samples, files = Samples.of(Frames.of_dataset(Dataset.open(shards_of))), members(shards_of)
    rows = {row["key"]: row for path in shards_of.glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    regions = shards_of / "regions" / samples.detector
    boxes = {row["key"]: row for path in regions.glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    stored = list(samples.read())
    assert [own.key for own in stored] == list(files), "in the order of the shards"
    for own in stored:
        assert own.row == rows[own.key]
        assert own.text == rows[own.key]["texts"][0]["text"]
        assert (own.image, own.json) == (files[own.key]["jpg"], files[own.key]["json"])
        assert own.boxes_R4.ravel().tolist() == boxes[own.key]["boxes"]
        assert own.scores_R.tolist() == boxes[own.key]["scores"]
        assert own.labels_R.tolist() == boxes[own.key]["labels"]
    for split in SPLITS:
        assert [own.key for own in samples.read(split)] == [own.key for own in stored if own.row["split"] == split]


@pytest.mark.slow
def test_a_sample_is_found_by_its_key_or_the_beginning_of_it(shards_of: Path) -> None:
    samples = Samples.of(Frames.of_dataset(Dataset.open(shards_of)))
    stored = list(samples.read())
    for own in stored[:: len(stored) // 4]:
        for name in (own.key, own.key[:8].upper(), own.row["candidate_id"]):
            same = samples.find(name)
            assert (same.key, same.image, same.json) == (own.key, own.image, own.json)
            assert same.boxes_R4.tolist() == own.boxes_R4.tolist()
    with pytest.raises(KeyError, match="at least 8 digits"):
        samples.find(stored[0].key[:7])
    with pytest.raises(KeyError, match="no such sample in"):
        samples.find("0" * 32)
    assert [own.key for own in samples.first(5)] == [own.key for own in stored[:5]]
    assert len(samples.first(10_000)) == len(stored)


@pytest.mark.slow
def test_what_is_taken_down_is_in_no_sample_that_is_read(shards_of: Path) -> None:
    frames = Frames.of_dataset(Dataset.open(shards_of))
    whole = list(Samples.of(frames).read())
    first = whole[0]
    samples = Samples.of(frames, takedowns=Takedowns(frozenset([first.row["sha256"]])))
    assert [own.key for own in samples.read()] == [own.key for own in whole[1:]]
    assert [own.key for own in samples.first(3)] == [own.key for own in whole[1:4]]
    with pytest.raises(KeyError, match="no such sample"):
        samples.find(first.key)
