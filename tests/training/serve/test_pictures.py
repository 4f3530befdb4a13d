"""A dataset on a real S3 server: embedded from there, its pictures served from there, its faults told."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_specs.search.folder import read_index
from data_specs.search.search import Query, SearchIndex
from data_specs.storage import object_store
from tests.s3_server import Remote
from tests.training.serve.conftest import Server, running
from training import cli

MakeShards = Callable[..., Path]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def _soon() -> Iterator[None]:
    """A busy store is given up as `wenlan-train serve` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_MAX_ATTEMPTS", raising=False)
        patch.setitem(fsspec.config.conf["s3"]["config_kwargs"], "retries", {"mode": "standard"})
        object_store.limit_attempts()
        yield


@pytest.fixture(scope="module")
def shards(remote: Remote, shards_of_module: MakeShards) -> Path:
    """Eight samples, on this disk and at data/shards."""
    folder = shards_of_module(train=(5, 3)).parent
    fsspec.filesystem("s3").put(f"{folder}/", f"{remote.url}/shards/", recursive=True)
    return folder


@pytest.fixture(scope="module")
def index(remote: Remote, shards: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index on this disk of the dataset on S3."""
    folder = tmp_path_factory.mktemp("of-s3")
    return embedded(tiny, f"{remote.url}/shards", folder / "s3")


def embedded(checkpoint: Path, data: str, index: Path) -> Path:
    """The index of a dataset of eight samples."""
    words = ["embed", str(checkpoint), "--data", data, "--index", str(index), "--cache", str(index.parent / "cache")]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main([*words, "--json"]) == 0
    assert json.loads(out.getvalue().splitlines()[-1])["rows"] == 8
    return index


@pytest.fixture(scope="module")
def on_disk(index: Path, shards: Path, tiny: Path) -> Path:
    """An index of the same dataset on this disk."""
    return embedded(tiny, str(shards), index.with_name("disk"))


@pytest.fixture(scope="module")
def served(_soon: None, tiny: Path, index: Path) -> Iterator[Server]:
    with running(tiny, indexes={"s3": index}) as server:
        yield server


def ids(index: Path) -> list[str]:
    return [hit.id for hit in SearchIndex.open(index).search(Query(None, limit=20)).hits]


def picture(served: Server, id: str, **params: Any) -> Any:
    return served.get(f"/collections/s3/images/{id}", params=params)


@pytest.mark.drill(15)
def test_an_index_of_a_dataset_on_s3_is_that_of_the_disk_but_for_where_its_pictures_lie(
    index: Path, on_disk: Path
) -> None:
    mine, theirs = index, on_disk
    for kind in ("img_emb", "text_emb"):
        files = [
            {part.part: (folder / part.files[kind].path).read_bytes() for part in read_index(folder).parts}
            for folder in (mine, theirs)
        ]
        assert files[0] == files[1]
    here, there = SearchIndex.open(theirs), SearchIndex.open(mine)
    for id in ids(index):
        row = there.row(id)
        assert row is not None
        assert row.where is not None
        assert row.where.path.startswith("s3://data/shards/train-00000")
        assert there.picture(id) == here.picture(id)


@pytest.mark.drill(3)
def test_a_picture_costs_one_request_of_its_own_bytes(
    served: Server, remote: Remote, index: Path, on_disk: Path
) -> None:
    id = ids(index)[0]
    remote.proxy.requests.clear()
    first = picture(served, id)
    assert (first.status_code, first.headers["content-type"]) == (200, "image/jpeg")
    assert picture(served, id, side=20).status_code == 200
    assert first.content == SearchIndex.open(on_disk).picture(id)[0]
    found = served.post("/search", json={"collection": "s3", "id": id, "region": [0, 0, 20, 15], "limit": 3})
    assert len(found.json()["hits"]) == 3
    assert [request.operation for request in remote.proxy.requests] == ["GET"]


@pytest.mark.slow
def test_a_store_that_is_busy_or_refuses_is_told_in_a_line_and_delays_no_search(
    served: Server, remote: Remote, index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, second, third, *_ = ids(index)
    remote.proxy.fail("503")
    busy = picture(served, second, side=20)
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "store_busy")
    assert int(busy.headers["retry-after"]) > 0
    assert served.post("/search", json={"collection": "s3", "text": "红"}).status_code == 200
    assert len(remote.proxy.failed()) <= 8, "it is not asked for ever"
    remote.proxy.heal()
    assert picture(served, second, side=20).status_code == 200

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with caplog.at_level(logging.WARNING):
        denied = picture(served, third)
    assert (denied.status_code, denied.json()["error"]["code"]) == (502, "store_denied")
    assert "access denied" in caplog.text
    said = caplog.text + denied.text + busy.text
    assert not [secret for secret in (remote.server.key, remote.server.secret, "a-wrong-secret") if secret in said]
    monkeypatch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert picture(served, third).status_code == 200


@pytest.mark.drill(15)
def test_a_sample_that_moved_in_its_tar_on_s3_is_found_again_and_one_that_went_is_404(
    served: Server, remote: Remote, shards: Path, index: Path, make_shards: MakeShards
) -> None:
    """A takedown has rewritten the shard: the picture behind is nearer to its beginning now."""
    from tests.training.conftest import picture as drawn
    from tests.training.conftest import sample, write_shard

    folder = make_shards(train=(1,), name="rest").parent
    write_shard(folder, "train", 1, [sample(7, "train")], [drawn(7)], None)
    for name in ("train-000001.tar", "train-000001.parquet"):
        fsspec.filesystem("s3").put(str(folder / name), f"{remote.url}/shards/{name}")
    assert picture(served, sample(7, "train").key).content == drawn(7)
    gone = picture(served, sample(6, "train").key)
    assert (gone.status_code, "no longer contains the picture" in gone.json()["error"]["message"]) == (404, True)
