"""build, status, report and explain: usage, and one line for what cannot be read or written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline import cli, opening
from pipeline.commands.builds import _funnel, released
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.store import build_json
from pipeline.store.build_json import Cost, Result
from tests.drawn import picture
from tests.places import SPECS

TABLE = {"kind": "url_table", "name": "t", "source_kind": "library", "path": "t.tsv"}
SPEC = {
    "name": "trial",
    "contact": "owner@example.org",
    "sources": [{**TABLE, "columns": {"texts": {"caption": "text"}}}],
}


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_an_unknown_stage_is_bad_usage(capsys, tmp_path):
    site = next(path for path in SPECS if path.stem == "site_crawl")
    assert cli.main(["build", str(site), "--out", str(tmp_path / "out"), "--until", "shards"]) == 2
    [line] = lines(capsys)
    assert "--until shards: no such stage; expected one of crawl, extract" in line


def test_a_spec_that_does_not_hold_is_bad_usage_and_nothing_runs(capsys, tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SPEC, "filters": [{"name": "text_length", "min_char": 2}]}))
    assert cli.main(["build", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 2
    line = f"wenlan-data: {tmp_path}/s.yaml:3: filters[0].min_char: unknown option; did you mean min_chars?"
    assert lines(capsys) == [line]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def read_only() -> Iterator[Path]:
    """An empty folder that this process may not write, though the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="wenlan-") as name:
        folder = Path(name)
        (folder / "it").mkdir()
        folder.chmod(0o755)
        (folder / "it").chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder / "it"
        finally:
            if root:
                os.seteuid(0)
            (folder / "it").chmod(0o755)


@pytest.mark.parametrize("out", ["photos", "photos/builds/1"])
def test_a_build_within_the_folder_that_it_reads_is_refused(out, capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(picture(1))
    (tmp_path / "photos/a.txt").write_text("翠鸟")
    photos, spec = {"kind": "folder", "name": "photos", "path": "photos"}, tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "sources": [{**photos, "source_kind": "library"}]}))
    assert cli.main(["build", str(spec), "--out", str(tmp_path / out)]) == 2
    assert "is in the folder that source photos reads; use one outside" in capsys.readouterr().err
    assert len(list((tmp_path / "photos").iterdir())) == 2


@pytest.mark.parametrize("place", ["out", "store", "new"])
def test_a_folder_that_may_not_be_written_is_one_line(read_only, place, capsys):
    with tempfile.TemporaryDirectory(prefix="wenlan-") as name:
        (Path(name) / "s.yaml").write_text(yaml.safe_dump(SPEC))
        (Path(name) / "t.tsv").write_text("image_url\ttext\nhttp://example.org/a.jpg\t雪后的黄山\n")
        out = {"out": read_only, "new": read_only / "a" / "b"}.get(place, Path(name) / "out")
        store = read_only if place == "store" else Path(name) / "store"
        code = cli.main(["build", f"{name}/s.yaml", "--out", str(out), "--store", str(store), "--until", "extract"])
    assert code == 1
    new, line = lines(capsys)
    assert new == f"STORE {store} does not exist yet; a build creates it"
    assert line.startswith(f"wenlan-data: {read_only}")
    assert line.endswith("cannot be written (Permission denied)")


def test_an_index_that_may_not_be_written_is_one_line(read_only, capsys):
    assert cli.main(["report", "--index", str(read_only)]) == 1
    [line] = lines(capsys)
    assert line.startswith(f"wenlan-data: {read_only}")


@pytest.mark.slow
@pytest.mark.parametrize("record", ["[]", "{}", '{"spec": {}}', '"x"', "nonsense"])
def test_a_build_json_that_is_none_is_one_line(record, capsys, tmp_path):
    (tmp_path / "build.json").write_text(record)
    for command in (["status"], ["explain", str(tmp_path), "x"], ["report"], ["publish"]):
        words = command if len(command) > 1 else [*command, str(tmp_path)]
        assert cli.main(words) == 1
        [line] = lines(capsys)
        assert line.startswith(f"wenlan-data: {tmp_path}/build.json: ")


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        (
            "--snapshot",
            "../x",
            "--snapshot ../x: use letters, digits and . _ - only (for file names)",
        ),
        ("--workers", "-1", "--workers -1: must be a number of CPUs, or 0 for all"),
    ],
)
def test_an_option_that_cannot_be_meant_is_bad_usage(option, value, line, capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    spec = tmp_path / "s.yaml"
    spec.write_text(
        "{name: a, contact: a@b.example, sources: [{kind: folder, name: x, source_kind: news, path: photos}]}"
    )
    assert cli.main(["build", str(spec), "--out", str(tmp_path / "out"), option, value]) == 2
    assert lines(capsys) == [f"wenlan-data: {line}"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_release_of_one_build_is_said_and_its_snapshot_is_not_replaced_unasked(weeks, capsys, tmp_path):
    build = weeks.build("2026-01-01", range(3), shards={"val_share": 0.4, "dev_share": 0.4})
    release.publish(build)
    released(build)
    said, warning = lines(capsys)
    assert said.startswith("release 1 of weekly: 3 samples of 1 build, ")
    assert warning.endswith(
        "splits never change: larger shards.dev_share and val_share count in a dataset's first build"
    )
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(build.spec.model_dump(mode="json")), encoding="utf-8")
    words = [str(tmp_path / "s.yaml"), "--store", weeks.store, "--snapshot", "2026-01-01", "--out", str(tmp_path / "x")]
    assert cli.main(["build", *words]) == 2
    assert lines(capsys)[0].startswith(
        "wenlan-data: release 1 of weekly has 3 samples of snapshot 2026-01-01, built in "
    )
    assert not (tmp_path / "x").exists()
    assert cli.main(["plan", *words]) == 0
    assert "a build would refuse to start: release 1 of weekly has 3 samples" in capsys.readouterr().err


@pytest.mark.slow
def test_a_build_that_goes_on_without_an_option_keeps_its_store(weeks, tmp_path):
    build = weeks.build("2026-01-01", range(3))
    assert opening.open_build(build.spec, build.out).store == build.store, "another one would not know its takedowns"
    own = opening.open_build(build.spec, str(tmp_path / "own"))
    assert own.store.url == own.folder.at("store")
    own.store.check()
    build_json.note(own)
    (tmp_path / "own").rename(tmp_path / "moved")
    assert opening.open_build(build.spec, str(tmp_path / "moved")).store.url == str(tmp_path / "moved/store")


@pytest.mark.slow
def test_the_status_of_a_build_whose_manifest_is_damaged_says_so_and_what_to_do(weeks, capsys):
    build = weeks.build("2026-01-01", range(3))
    release.publish(build)
    path = Path(build.shards.at("manifest.json"))
    todo = f"if it is damaged, delete it and run wenlan-data publish {build.out}"

    def status() -> tuple[bool, str, str]:
        capsys.readouterr()
        assert cli.main(["status", build.out, "--json"]) == 0
        printed = capsys.readouterr()
        said = json.loads(printed.out)
        return said["published"], said["damaged"], printed.err.splitlines()[-1]

    for data in (b"", b'{"schema_version": 1, "build', b"\x80", b"{}", b"[]"):
        path.write_bytes(data)
        published, damaged, last = status()
        assert not published
        assert damaged.startswith(f"{path}: ")
        assert damaged.endswith(todo)
        assert last.startswith(f"published: no, but its manifest cannot be read: {damaged}")
    path.unlink()
    assert cli.main(["publish", build.out]) == 0
    assert verify(build.out) == []
    assert status() == (True, "", "published: yes")


def test_the_funnel_has_a_line_for_each_stage_that_had_work() -> None:
    counts = {"seen": 1_200, "kept": 1_000, "dropped": 200}
    results = [
        Result("filter", False, 4, 4, 1.0, counts, Cost()),
        Result("dedup", True, 4, 0, 0.0, {"seen": 1_000, "kept": 1_000, "dropped": 0}, Cost()),
    ]
    table = _funnel(results)
    rows = list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))
    assert rows == [
        ("filter", "1,200", "1,000", "200", "", "4/4", "1.0"),
        ("dedup", "1,000", "1,000", "0", "", "-", "0.0"),
    ]
