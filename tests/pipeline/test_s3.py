"""A build on S3: packed, published, verified and corrected through a real server (moto's) over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_specs.shard import read_manifest
from pipeline.files.folder import Folder
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.store.build import Build
from pipeline.store.store import Store
from pipeline.takedown.forget import Request, forget
from tests.stages import run_stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_the_same_dataset_as_on_a_disk_and_a_takedown_reaches_it(
    bucket: str, synthetic_build: Build, synthetic: Any, tmp_path: Path
) -> None:
    fsspec.filesystem("s3").put(f"{synthetic_build.out}/", f"{bucket}/build/", recursive=True)
    remote = replace(synthetic_build, out=f"{bucket}/build", store=Store(f"{bucket}/store"))
    for build in (remote, synthetic_build):
        run_stage(build, "shard", "report")
    mine, theirs = release.publish(remote), release.publish(synthetic_build)
    assert mine.shards == theirs.shards
    assert mine == read_manifest(Path(synthetic_build.out) / "shards").model_copy(
        update={"created_at": mine.created_at}
    )
    assert verify(f"{bucket}/build/shards") == []
    item = next(item for item in synthetic.items() if item.stage == "shard")
    answer = forget(remote.store, [remote], Request(urls=[item.candidate.image_url]))
    assert answer["builds"][0]["revision"] == 1
    assert verify(f"{bucket}/build/shards", store=remote.store.url) == []
    local = forget(synthetic_build.store, [synthetic_build], Request(urls=[item.candidate.image_url]))
    assert local["tombstone"] == answer["tombstone"]
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    said = b"".join(fs.cat(path) for path in fs.find(f"{bucket}/build/report"))
    assert item.candidate.texts[0].text.encode() not in said


def test_a_large_file_goes_up_in_parts(bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    path.write_bytes(bytes(110 << 20))
    Folder(f"{bucket}/large").take(path, "large.tar")
    found = fsspec.filesystem("s3").info(f"{bucket}/large/large.tar")
    assert found["size"] == 110 << 20
    assert found["ETag"].strip('"').endswith("-3"), "S3 marks so what came in three parts"
    assert not path.exists()
