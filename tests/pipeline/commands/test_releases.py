"""`wenlan-data release`: what is listed and shown is what was released, and what is not there is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_specs.shard import SPLITS, read_manifest
from pipeline import cli
from pipeline.store.build import Build

pytestmark = pytest.mark.slow


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("record", ["[]", '{"version": "a"}', "{}"])
def test_a_store_json_that_is_none_is_one_line(record, capsys, tmp_path):
    (tmp_path / "store.json").write_text(record)
    assert cli.main(["release", "list", "--store", str(tmp_path)]) == 1
    assert lines(capsys) == [f"wenlan-data: {tmp_path}/store.json: not the record of a STORE"]


def answer(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    """The object that `release` prints for programs."""
    assert cli.main(["release", *words, "--json"]) == code
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def test_a_release_is_listed_and_shown_as_its_manifest_is(
    synthetic_build: Build, shards_of: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, manifest = synthetic_build.store.url, read_manifest(shards_of)
    [listed] = answer(capsys, "list", "--store", store)["datasets"]["synthetic"]
    shown = answer(capsys, "show", "synthetic", "--store", store)
    for row in (listed, shown):
        assert (row["dataset"], row["release"], row["samples"]) == ("synthetic", 1, manifest.samples)
        assert row["shards"] == len(manifest.shards)
        assert [build["build_id"] for build in row["builds"]] == [synthetic_build.build_id]
    for split in SPLITS:
        assert cli.main(["release", "show", "synthetic", "--store", store, "--urls", split]) == 0
        tars = sorted(str(path) for path in shards_of.glob(f"{split}-*.tar"))
        assert sorted(capsys.readouterr().out.split()) == tars, "one per line, to be given to a reader"


def test_what_a_store_does_not_have_is_named_with_what_it_has(
    synthetic_build: Build, shards_of: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = synthetic_build.store.url
    for words, error in (
        (["show", "other", "--store", store], f"other: no such dataset in {store}; datasets: synthetic"),
        (
            ["show", "synthetic", "--store", store, "--urls", "test"],
            "--urls test: no such split; expected one of train, dev, val",
        ),
        (["diff", "synthetic", "--store", store], "synthetic: has only one release, so there is nothing to compare"),
        (["rollback", "synthetic", "0", "--store", store], "0: not the number of a release; they start at 1"),
        (["list", "--store", str(tmp_path / "none")], f"--store {tmp_path}/none: not a STORE"),
    ):
        assert error in answer(capsys, *words, code=2)["error"]
