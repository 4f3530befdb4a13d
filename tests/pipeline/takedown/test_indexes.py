"""indexes: a takedown reaches search indexes, by the command, whichever way it is asked for."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_specs.search.folder import IndexFault, exclusive
from data_specs.search.search import Query, SearchIndex
from pipeline import cli
from pipeline.publish import release
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.store import Store
from tests.indexed import contents, make, of_shards, random_units
from tests.lent import lend
from tests.pipeline.takedown.test_forget import everything

pytestmark = pytest.mark.slow


@pytest.fixture
def index(shards_of: Path, tmp_path: Path, synthetic_build: Build, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index over the samples of the synthetic build, which the command reopens."""
    monkeypatch.setattr(build_json, "reopen", lambda out, stages: synthetic_build)
    (Path(synthetic_build.out) / "build.json").write_text('{"version": 2, "stages": {}, "passes": {}}')
    return of_shards(tmp_path / "index", shards_of)


def forget(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = cli.main(["forget", *map(str, words), "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, answer


def traces_in(folder: Path, row: Any, vector: Any) -> list[str]:
    """Files of an index that hold anything of a row."""
    said = [row.id, row.url, row.sha256, row.caption]
    wanted = [text.encode() for text in said] + [vector.astype(np.float16).tobytes()]
    return [name for name, data in contents(folder).items() for trace in wanted if trace in data]


@pytest.mark.parametrize("by", ["domain", pytest.param("like", marks=pytest.mark.drill(1))])
def test_what_is_taken_down_is_in_no_file_of_an_index(
    index: Path, synthetic: Any, synthetic_build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    item = [i for i in synthetic.items() if i.stage == "shard"][20]
    key, store = item.candidate.candidate_id[:32], synthetic_build.store.url
    words = {
        "domain": ["--domain", item.candidate.image_url.split("/")[2]],
        "item": ["--item", key],
        "like": ["--like", tmp_path / "seen.jpg"],
    }[by]
    with Image.open(io.BytesIO(item.data)) as image:
        image.convert("RGB").resize((image.width // 2, image.height // 2)).save(tmp_path / "seen.jpg", quality=60)
    opened = SearchIndex.open(index)
    row, vector, rows = opened.row(key), opened.vector(key, "image"), opened.rows
    assert row is not None
    assert traces_in(index, row, vector)
    before = contents(index)

    code, answer = forget(capsys, "--store", store, index, *words, "--dry-run")
    assert code == 0
    lost = answer["indexes"][0]["rows"]
    assert lost == len(answer["builds"][0]["samples"]) > 0
    assert contents(index) == before

    code, answer = forget(capsys, "--store", store, "--index", index, *words)
    assert (code, answer["indexes"][0]["rows"], answer["indexes"][0]["revision"]) == (0, lost, 2)
    assert traces_in(index, row, vector) == []
    assert opened.reload_if_changed()
    assert opened.rows == rows - lost
    assert opened.row(key) is None
    every = {h.id for h in opened.search(Query(vector, limit=rows, copies=True)).hits}
    assert len(every) == rows - lost
    assert key not in every
    assert key not in {hit.id for hit in opened.search(Query(words=row.caption, limit=rows, copies=True)).hits}
    with pytest.raises(IndexFault, match="does not exist"):
        opened.picture(key)
    for name in sorted(every):
        opened.picture(name)  # what stays is found where its tar has it now

    code, answer = forget(capsys, "--store", store, index, *words)
    assert (code, answer["indexes"][0]["rows"]) == (0, 0), "the same again finds nothing"


def test_an_index_of_pictures_that_no_build_knows(
    tmp_path: Path, synthetic: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that is named by its URL takes its copies along: the same bytes, and what looks the same."""
    Store(str(tmp_path / "store")).check()
    first, second = [i for i in synthetic.items() if i.stage == "shard"][10:12]
    with Image.open(io.BytesIO(first.data)) as image:
        smaller = io.BytesIO()
        image.convert("RGB").resize((image.width // 2, image.height // 2)).save(smaller, "JPEG", quality=70)
    rows = []
    for name, data in (
        ("one", first.data),
        ("same", first.data),
        ("alike", smaller.getvalue()),
        ("other", second.data),
    ):
        file = tmp_path / f"{name}.jpg"
        file.write_bytes(data)
        where = {"path": str(file), "offset": 0, "size": len(data), "sha256": ""}
        sha256 = hashlib.sha256(data).hexdigest()
        rows.append({"id": name, "url": f"http://own.example/{name}.jpg", "sha256": sha256, "where": where})
    index = make(tmp_path / "index", rows, random_units(4, 8))
    code, answer = forget(capsys, "--store", tmp_path / "store", index, "--url", "http://own.example/one.jpg")
    assert (code, answer["indexes"][0]["rows"], answer["matched"]) == (0, 3, 3)
    opened = SearchIndex.open(index)
    assert [hit.id for hit in opened.search(Query(np.ones(8, np.float32))).hits] == ["other"]
    assert opened.picture("other")[0] == second.data


def test_pictures_whose_digest_an_index_lacks_are_compared_by_their_looks(
    tmp_path: Path, synthetic: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(str(tmp_path / "store")).check()
    rows = []
    for name, item in zip(("gone", "other"), [i for i in synthetic.items() if i.stage == "shard"][10:12], strict=True):
        file, digest = tmp_path / f"{name}.jpg", hashlib.sha256(item.data).hexdigest()
        file.write_bytes(item.data)
        where = {"path": str(file), "offset": 0, "size": len(item.data), "sha256": digest}
        rows.append({"id": name, "url": f"http://own.example/{name}.jpg", "where": where})
    index = make(tmp_path / "index", rows, random_units(2, 8))
    code, answer = forget(capsys, "--store", tmp_path / "store", index, "--like", tmp_path / "gone.jpg")
    assert (code, answer["indexes"][0]["rows"], answer["indexes"][0]["unseen"]) == (0, 1, 0)
    assert [hit.id for hit in SearchIndex.open(index).search(Query(np.ones(8, np.float32))).hits] == ["other"]


@pytest.mark.drill(1)
def test_texts_of_a_copy_that_goes_leave_the_index_too(
    tmp_path: Path,
    synthetic: Any,
    run_stage: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build, items = synthetic.make(tmp_path)
    monkeypatch.setattr(build_json, "reopen", lambda out, stages: build)
    copy = next(i for i in items if i.stage == "dedup" and i.candidate.page_url and i.reason == "near_image")
    leader = next(i for i in items if i.candidate.candidate_id == copy.leader)
    lend(build, leader, copy, tmp_path)
    run_stage(build, "shard")
    release.publish(build)
    (Path(build.out) / "build.json").write_text('{"version": 2, "stages": {}, "passes": {}}')
    index = of_shards(tmp_path / "index", Path(build.out) / "shards")
    key, text = leader.candidate.candidate_id[:32], copy.candidate.texts[0].text
    row = SearchIndex.open(index).row(key)
    assert row is not None
    assert text in {t.text for t in row.texts}
    code, answer = forget(capsys, "--store", build.store.url, index, "--url", copy.candidate.page_url)
    assert (code, answer["indexes"][0]["texts"]) == (0, 1)
    after = SearchIndex.open(index).row(key)
    assert after is not None
    assert {t.text for t in row.texts} - {t.text for t in after.texts} == {text}
    assert not [name for name, data in contents(index).items() if text.encode() in data]
    assert text not in "".join(everything(index).values())


def test_an_index_that_is_being_written_is_a_fault_and_hinders_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(str(tmp_path / "store")).check()
    rows = [{"id": "one", "url": "http://own.example/1.jpg"}, {"id": "two", "url": "http://own.example/2.jpg"}]
    first, second = (make(tmp_path / name, rows, random_units(2, 8)) for name in ("first", "second"))
    words = ["--store", tmp_path / "store", first, second, "--url", "http://own.example/1.jpg"]
    with exclusive(first):
        code, answer = forget(capsys, *words)
    assert (code, [SearchIndex.open(index).rows for index in (first, second)]) == (1, [2, 1])
    assert f"{first}: another command is writing this index" in str(answer)
    assert forget(capsys, *words)[0] == 0
    assert SearchIndex.open(first).rows == 1


def test_what_is_no_index_is_refused_before_anything_is_taken_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(str(tmp_path / "store")).check()
    code, answer = forget(
        capsys, "--store", tmp_path / "store", "--index", tmp_path / "none", "--url", "http://a.test/1.jpg"
    )
    assert code == 1
    assert "none/index.json: cannot be read" in answer["error"]
    assert list((tmp_path / "store").rglob("forgotten/*.json")) == []


@pytest.mark.parametrize("kind", ["metadata", "rows", "img_emb"])
@pytest.mark.parametrize("content", [b"", b"junk", None, "junk of the same size"])
def test_a_damaged_index_is_one_line_before_anything_is_taken_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, content: bytes | str | None
) -> None:
    if isinstance(content, str) and kind != "rows":
        return  # their content is not read before it is needed
    Store(str(tmp_path / "store")).check()
    rows = [{"id": name, "url": f"http://own.example/{name}.jpg"} for name in ("one", "other")]
    index = make(tmp_path / "index", rows, random_units(2, 8))
    [file] = (index / kind).iterdir()
    size = file.stat().st_size
    file.unlink()
    if content is not None:
        file.write_bytes(b"j" * size if isinstance(content, str) else content)
    code = cli.main(["forget", "--store", str(tmp_path / "store"), str(index), "--url", rows[0]["url"], "--json"])
    out, err = capsys.readouterr()
    assert code == 1
    assert f"{index}: the index is damaged ({kind}/{file.name}: " in json.loads(out.splitlines()[-1])["error"]
    assert "Traceback" not in err
    assert list((tmp_path / "store").rglob("forgotten/*.json")) == []
