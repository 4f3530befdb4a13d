"""Datasets: which manifests and detectors are refused; what is in one, how often, and when it is looked at."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_specs.shard import ContractError, Manifest, ReleasedBuild, content_digest, parse_manifest, pretty_manifest
from training.data import index
from training.data.index import open_dataset
from training.data.order import Mixture
from training.errors import ConfigError

MakeShards = Callable[..., Path]


def release_of(folder: Path, *manifests: Path) -> Path:
    """A release of dataset `news` over these builds."""
    read = [(path, parse_manifest(path.read_bytes(), str(path))) for path in manifests]
    shards = [
        shard.model_copy(update={"build": path.parent.name}) for path, manifest in read for shard in manifest.shards
    ]
    release = Manifest(
        schema_version=1,
        build_id="news@3",
        spec_digest="0" * 64,
        content_digest=content_digest(shards),
        created_at="2026-01-01T00:00:00Z",
        samples={split: sum(m.samples[split] for _, m in read) for split in ("train", "dev", "val")},
        detectors=(),
        shards=tuple(shards),
        dataset="news",
        release=3,
        generation=1,
        builds=tuple(
            ReleasedBuild(
                build_id=path.parent.name,
                revision=0,
                snapshot=str(at),
                folder=str(path.parent),
                spec_digest="0" * 64,
                content_digest=manifest.content_digest,
                samples=manifest.samples,
            )
            for at, (path, manifest) in enumerate(read)
        ),
    )
    path = folder / "datasets/news/000003.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(pretty_manifest(release))
    return path


def test_a_shard_that_two_arguments_name_belongs_to_the_last(make_shards: MakeShards, tmp_path: Path) -> None:
    old, new = make_shards(train=(7, 5), dev=(3,), name="old"), make_shards(train=(4,), dev=(2,), name="new", first=100)
    release = release_of(tmp_path, old, new)
    assert len(open_dataset([str(release)], "train")) == 16
    for data in ([str(release), str(new)], [f"{release}@12", f"{new}@12"]):
        train, dev = open_dataset(data, "train"), open_dataset(data, "dev")
        keys = [train.row(number).key for number in range(len(train))]
        assert len(keys) == len(set(keys)) == 16
        assert train.parts == ((7, 5), (4,))
        assert len(dev) == 5
    mixture = Mixture(train.parts, train.weights, seed=0, window_shards=4)
    seen = [mixture.entry(position)[1] for position in range(24)]
    assert sorted(row for row in seen if row < 12) == list(range(12)), "of what was held before, each once"
    assert sorted(row for row in seen if row >= 12) == sorted([12, 13, 14, 15] * 3), "of the new, each three times"


@pytest.mark.parametrize("weight", ["0", "0.0", "9" * 400])
def test_a_weight_by_which_nothing_can_be_mixed_is_bad_usage(weight: str) -> None:
    with pytest.raises(ConfigError, match=r"--data: x\.tar@"):
        index.split_weight(f"x.tar@{weight}")


def test_a_shard_that_was_replaced_after_it_was_opened_is_named(make_shards: MakeShards) -> None:
    manifest = make_shards(train=(3,))
    dataset = open_dataset([str(manifest)], "train")
    tar = manifest.parent / "train-000000.tar"
    whole = tar.read_bytes()
    assert dataset.image(dataset.row(0))
    tar.write_bytes(b"")
    with pytest.raises(ContractError, match=r"train-000000\.tar: ends before the image of"):
        dataset.image(dataset.row(0))
    dataset.close()
    tar.write_bytes(whole + bytes(512))
    with pytest.raises(ContractError, match=r"train-000000\.tar: was changed or replaced after it was indexed"):
        dataset.image(dataset.row(0))


def test_many_shards_are_looked_at_when_they_are_first_read(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_shards(train=(7, 5))
    (manifest.parent / "train-000001.parquet").write_bytes(b"damaged")
    with pytest.raises(ContractError, match=r"train-000001.parquet: its sha256 differs"):
        open_dataset([str(manifest)], "train")
    monkeypatch.setattr(index, "AT_START", 1)
    dataset = open_dataset([str(manifest)], "train")
    assert dataset.row(6).image_size == len(dataset.image(dataset.row(6)))
    with pytest.raises(ContractError, match=r"train-000001.parquet: its sha256 differs"):
        dataset.row(7)


def test_an_empty_split_says_of_which_release_and_what_to_do(make_shards: MakeShards, tmp_path: Path) -> None:
    release = release_of(tmp_path, make_shards(train=(7,)))
    with pytest.raises(
        ContractError, match=r"000003\.json: release 3 of dataset news: no samples in the val split"
    ) as e:
        open_dataset([str(release)], "val").check_not_empty()
    assert "(train 7, dev 0, val 0)" in str(e.value)
    assert "shards.val_share" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (
            "404",
            "manifest.json, latest.json and shards/manifest.json are missing; give the address of a published build",
        ),
        ("403", r"cannot be read \(403.*Forbidden.*\); check the address and its permissions"),
        ("http", r"cannot be read \(.*\); check the address"),
        ("ftp", r"cannot be opened \(Connection refused\)"),
    ],
)
def test_a_dataset_at_an_address_that_is_refused_says_why_and_what_to_do(tmp_path: Path, what: str, told: str) -> None:
    """All of them were "cannot be read", and ftp ended in a traceback."""
    with contextlib.ExitStack() as held:
        if what.isdigit():
            server = held.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), _Refusing))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            held.callback(server.shutdown)
            url = f"http://127.0.0.1:{server.server_port}/{what}/build"
        else:
            bound = held.enter_context(socket.socket())
            bound.bind(("127.0.0.1", 0))  # nobody listens
            url = f"{what}://127.0.0.1:{bound.getsockname()[1]}/build"
        with pytest.raises(ContractError, match=f"^{re.escape(url)}: {told}"):
            open_dataset([url], "train", cache=tmp_path)


class _Refusing(BaseHTTPRequestHandler):
    """Answers every request by the status that its path begins with."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""
