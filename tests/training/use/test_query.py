"""query: `wenlan-train search`, by a text, a picture and a row, with the towers that made the index and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_specs.search.folder import Background, IndexInfo, Towers, read_index, write_index
from data_specs.search.index import IndexWriter
from tests.drawn import picture
from tests.indexed import table
from training import cli
from training.use.embed import image_features, text_features
from training.weights.load import load

CAPTIONS = ["一只猫", "红烧肉", "故宫的雪景", "一只狗"]


@pytest.fixture(scope="module")
def index(checkpoint_with_moved_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures and their captions, by the towers of a checkpoint; pictures and captions lie beside it."""
    folder, loaded = tmp_path_factory.mktemp("searched"), load(checkpoint_with_moved_keys, "cpu")
    images = [(f"{n}.jpg", picture(n)) for n in range(4)]
    for name, data in images:
        (folder / name).write_bytes(data)
    about = IndexInfo(
        name="test",
        width=loaded.config.moco.feature_dim,
        images=True,
        texts=True,
        checkpoint=Towers(recipe="tiny", sha256=loaded.checkpoint.towers),
        background=Background(cosines=(-1.0, 1.0), shares=(0.0, 1.0)),
    )
    rows = [
        {"id": f"{n}", "caption": caption, "source": "news" if n else "wechat", "width": 160, "height": 120}
        for n, caption in enumerate(CAPTIONS)
    ]
    image_ND = image_features(loaded, images, [None] * 4).numpy()
    with IndexWriter.begin(folder / "index", about) as writer:
        writer.add(table(rows), image_ND, text_features(loaded, CAPTIONS).numpy())
        writer.finish()
    return folder / "index"


def search(capsys: pytest.CaptureFixture[str], index: Path, *words: object) -> tuple[int, dict[str, Any]]:
    code = cli.main(["search", str(index), *map(str, words), "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, answer


@pytest.mark.slow
def test_a_text_finds_itself_among_texts_and_has_scores_among_images(
    index: Path, checkpoint_with_moved_keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--text", "红烧肉", "--checkpoint", checkpoint_with_moved_keys]
    code, answer = search(capsys, index, *words, "--target", "text")
    assert (code, answer["hits"][0]["id"], answer["hits"][0]["score"]) == (0, "1", None)
    assert answer["hits"][0]["cosine"] == pytest.approx(1, abs=1e-3)
    code, answer = search(capsys, index, *words)
    assert (code, answer["target"], len(answer["hits"])) == (0, "image", 4)
    assert all(hit["score"] == pytest.approx((hit["cosine"] + 1) / 2, abs=1e-5) for hit in answer["hits"])
    code, answer = search(capsys, index, *words, "--source", "news", "--limit", 1, "--offset", 1)
    assert (code, len(answer["hits"]), answer["more"], answer["allowed"]) == (0, 1, True, 3)


def test_a_picture_and_a_row_find_themselves(
    index: Path, checkpoint_with_moved_keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = ["--image", index.parent / "2.jpg"]
    code, answer = search(capsys, index, *image, "--checkpoint", checkpoint_with_moved_keys)
    assert (code, answer["hits"][0]["id"]) == (0, "2")
    assert answer["hits"][0]["cosine"] == pytest.approx(1, abs=1e-3)
    code, answer = search(capsys, index, "--id", "3", "--target", "text")
    assert (code, answer["hits"][0]["id"]) == (0, "3")


def test_words_alone_need_no_tower(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = search(capsys, index, "--text", "貓 狗", "--words-only")
    assert (code, {hit["id"] for hit in answer["hits"]}) == (0, {"0", "3"})
    assert all(hit["cosine"] is None and hit["words"] > 0 for hit in answer["hits"])


def test_people_see_a_table(index: Path, checkpoint_with_moved_keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--text", "红烧肉", "--words", "--checkpoint", str(checkpoint_with_moved_keys), "--target", "text"]
    assert cli.main(["search", str(index), *words]) == 0
    printed = capsys.readouterr()
    head, first, *_ = printed.out.splitlines()
    assert head.split() == ["cosine", "score", "chance", "words", "copies", "id", "caption"]
    assert (first.split()[0], first.split()[4:]) == ("1.000", ["+0", "1", "红烧肉"])
    assert "4 of 4 texts; every row was compared" in printed.err


def test_the_text_tower_of_the_index_serves_where_no_checkpoint_is_named(
    index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_specs.search.queries import TextQuery

    code, answer = search(capsys, index, "--text", "猫")
    assert (code, answer["ok"]) == (1, False)
    assert "queries/text.onnx: is missing" in answer["error"]

    class Tower:
        towers = Towers(recipe="tiny", sha256="1" * 64)

    monkeypatch.setattr(TextQuery, "open", lambda folder: Tower())
    code, answer = search(capsys, index, "--text", "猫")
    assert (code, "did not make" in answer["error"]) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--image", "a.jpg"], 2, "--image: needs --checkpoint CHECKPOINT"),
        (["--id", "0", "--words"], 2, "--words: needs --text"),
        (["--text", " "], 2, "--text: is empty"),
        (["--id", "0", "--limit", "0"], 2, "--limit: 0 is out of range"),
        (["--id", "none"], 1, "row none does not exist"),
        (["--id", "0", "--min-score", "0.5"], 1, "a search of images by images does not have scores"),
        ([], 2, "one of the arguments --text --image --id is required"),
    ],
)
def test_bad_usage_is_one_line(
    index: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, line: str
) -> None:
    got, answer = search(capsys, index, *words)
    assert (got, answer["code"]) == (code, code)
    assert line in answer["error"]


def test_other_towers_are_refused(
    index: Path, checkpoint_with_moved_keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "index"
    shutil.copytree(index, other)
    described = read_index(other)
    towers = Towers(recipe="tiny", sha256="0" * 64)
    about = described.about.model_copy(update={"checkpoint": towers})
    write_index(other, described.model_copy(update={"about": about}))
    code, answer = search(capsys, other, "--text", "猫", "--checkpoint", checkpoint_with_moved_keys)
    assert code == 2
    assert f"did not make {other}, whose are tiny, 000000000000" in answer["error"]
