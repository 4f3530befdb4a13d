"""The schema for editors and the ready specs: current, valid, and each a way in that plans."""

from __future__ import annotations

import functools
import gzip
import json
import shutil

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_specs.build import load
from pipeline import cli, plugins
from pipeline.commands import schema
from pipeline.opening import open_build
from tests.places import SPECS

KINDS = {"site", "warc", "common_crawl", "url_table", "folder", "webdataset"}


def test_the_schema_file_is_current():
    assert schema.PATH.read_text(encoding="utf-8") == schema.text(), "run: python -m pipeline.commands.schema"


@pytest.mark.slow
def test_the_command_prints_it(capsys):
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == schema.text()
    assert cli.main(["schema", "build", "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["schema"] == schema.schema()
    assert cli.main(["schema", "bild"]) == 2
    assert "bild: no such schema; expected one of build" in capsys.readouterr().err


@functools.cache
def validator() -> jsonschema.Validator:
    made = jsonschema.validators.validator_for(schema.schema())
    made.check_schema(schema.schema())
    return made(json.loads(schema.PATH.read_bytes()))


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_ready_specs_are_valid_by_the_models_and_by_the_schema(path):
    plugins.check(load(path), path.name)
    validator().validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"filters": [{"name": "text_length", "min_char": 2}]},
        {"filters": [{"name": "no_such"}]},
        {"sources": [{"kind": "site", "name": "a", "source_kind": "news"}]},
        {"sources": [{"kind": "site", "name": "A B", "source_kind": "news", "start": ["http://a.test/"]}]},
        {"egress": {"delay": 1}},
        {"contact": None},
    ],
)
def test_the_schema_refuses_what_the_models_refuse(change, tmp_path):
    good = yaml.safe_load(SPECS[0].read_text(encoding="utf-8"))
    validator().validate(good)
    with pytest.raises(jsonschema.ValidationError):
        validator().validate({**good, **change})
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**good, **change}))
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        plugins.check(load(tmp_path / "bad.yaml"), "bad.yaml")


def test_there_is_a_ready_spec_for_every_way_in():
    assert {source.kind for path in SPECS for source in load(path).sources} == KINDS


@pytest.mark.parametrize("path", [p for p in SPECS if p.stem not in ("demo", "packages")], ids=lambda p: p.stem)
def test_a_ready_spec_plans_where_its_input_lies_beside_it(path, tmp_path):
    shutil.copy(path, tmp_path)
    (tmp_path / "warc.paths.gz").write_bytes(gzip.compress(b"crawl-data/a.warc.gz\n"))
    (tmp_path / "cc-index-table.paths.gz").write_bytes(gzip.compress(b"cc-index/subset=warc/a.parquet\n"))
    (tmp_path / "pool").mkdir()
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "text": ["故宫的雪景"]}), tmp_path / "pool/0.parquet")
    for name, content in {
        "wukong_release/wukong_100m_0.csv": "url,caption\n",
        "pictures/a.jpg": "",
        "photos/a.jpg": "",
        "tars/a.tar": "",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    build = open_build(load(tmp_path / path.name), str(tmp_path / "out"))
    assert list(build.fingerprints) == list(build.passes)
    assert not (tmp_path / "out").exists()
