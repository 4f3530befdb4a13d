"""croissant.json, also as mlcroissant reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_specs.shard import read_manifest
from pipeline.publish.card import croissant
from pipeline.store.build import Build


def test_croissant_names_every_file_with_its_digest(shards_of: Path) -> None:
    manifest = read_manifest(shards_of)
    found = json.loads((shards_of / "croissant.json").read_bytes())
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    objects = {o["contentUrl"]: o["sha256"] for o in found["distribution"] if o["@type"] == "cr:FileObject"}
    assert objects == {f.path: f.sha256 for shard in manifest.shards for f in (shard.tar, shard.parquet)}
    ids = {node["@id"] for node in found["distribution"]}
    sources = [field["source"]["fileSet"]["@id"] for field in found["recordSet"][0]["field"]]
    assert set(sources) <= ids


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlcroissant_finds_no_fault_and_reads_the_records(shards_of: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    path = shards_of / "croissant.json"
    dataset = mlcroissant.Dataset(jsonld=path)
    assert dataset.metadata.ctx.issues.errors == set()
    found = list(dataset.records(record_set="samples"))
    rows = [row for p in sorted(path.parent.glob("*.parquet")) for row in pq.read_table(p).to_pylist()]
    assert {r["samples/key"].decode() for r in found} == {row["key"] for row in rows}
    texts = {r["samples/key"].decode(): [t["samples/texts/text"] for t in r["samples/texts"]] for r in found}
    assert len(texts) == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contact", "url"),
    [
        ("https://example.org/us", "https://example.org/us"),
        ("owner@example.org", "mailto:owner@example.org"),
        ("mailto:owner@example.org", "mailto:owner@example.org"),
        ("not stated", "not stated"),
    ],
)
def test_the_contact_is_its_url(contact: str, url: str, shards_of: Path, synthetic_build: Build) -> None:
    spec = synthetic_build.spec.model_copy(update={"contact": contact})
    assert croissant(spec, read_manifest(shards_of))["url"] == url
