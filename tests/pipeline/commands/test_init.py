"""`wenlan-data init`: specs are written where they are wanted, never over another one, and faults are one line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from data_specs.build import load
from pipeline import cli
from tests.drafted import CONTACT, init, rows


def test_several_inputs_and_a_spec_in_another_folder(photos, web, here, capsys):
    pq.write_table(pa.Table.from_pylist(rows(web)), here / "t.parquet")
    (here / "specs").mkdir()
    inputs = ["--from", "photos", "t.parquet", "https://baike.example.org/zh/"]
    init(capsys, *inputs, "--out", "specs/all.yaml", "--name", "all", "--licence", "CC0", *CONTACT)
    spec = load("specs/all.yaml")
    assert [source.kind for source in spec.sources] == ["folder", "url_table", "site"]
    assert [source.source_kind for source in spec.sources] == ["library", "image_search", "encyclopedia"]
    assert spec.sources[0].options["path"] == "../photos"
    assert spec.sources[2].options["within"] == ["/zh/"]
    assert spec.licence == "CC0"
    assert {ref.name: ref.options for ref in spec.filters}["image_sides"]["min_side"] == 90
    assert cli.main(["plan", "specs/all.yaml"]) == 0


def test_an_existing_spec_is_replaced_only_if_asked(photos, capsys):
    Path("photos.yaml").write_text("mine")
    assert cli.main(["init", "--from", "photos"]) == 2
    assert "photos.yaml: is there already; --force replaces it" in capsys.readouterr().err
    assert Path("photos.yaml").read_text() == "mine"
    init(capsys, "--from", "photos", "--force")
    assert load("photos.yaml").name == "photos"
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "photos.yaml"]


def test_the_commands_that_come_next_can_be_pasted(photos, here, capsys):
    (here / "my specs").mkdir()
    assert cli.main(["init", "--from", "photos", "--out", "my specs/x.yaml"]) == 0
    told = capsys.readouterr().err
    assert "next: wenlan-data plan 'my specs/x.yaml'\n" in told
    assert "then: wenlan-data build 'my specs/x.yaml' --out builds/photos --store store\n" in told


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "init: --from INPUT is required"),
        (["--from", "nothing"], 2, "--from nothing: no such folder"),
        (["--from", "https://news.example.org/"], 2, "init: --contact is required"),
        (["--from", "none.csv"], 1, "none.csv: source none: there is no such file"),
        (["--from", "empty"], 1, "empty: holds no pictures"),
        (["--from", "words.csv"], 1, "words.csv: no column of web addresses among a, b; name the columns in a spec"),
        (["--from", "damaged.parquet"], 1, "damaged.parquet: cannot be read as a table"),
        (["--from", "photos", "--name", "My Photos"], 2, "--name My Photos: small letters"),
        (["--from", "photos", "--out", "no/x.yaml"], 2, "no/x.yaml: cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_a_spec_is_one_line(words, code, line, photos, here, capsys):
    (here / "empty").mkdir()
    (here / "words.csv").write_text("a,b\n1,2\n")
    (here / "damaged.parquet").write_text("PAR1 or not")
    assert cli.main(["init", *words]) == code
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"wenlan-data: {line}")
    assert not list(here.glob("*.yaml"))


def test_on_a_terminal_it_asks_for_what_it_cannot_see(photos, capsys, monkeypatch):
    asked: list[str] = []
    answers = iter(["photos https://news.example.org/", "mine", "", "owner@example.org", "CC BY"])

    def answer(question: str, **_: object) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr("pipeline.commands.init.Prompt.ask", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("pipeline.commands.terminal.console._force_terminal", True)
    init(capsys)
    assert [question.split()[0] for question in asked] == ["Input:", "Name", "Contact", "Contact", "Licence"]
    spec = load("mine.yaml")
    assert (spec.name, spec.contact, spec.licence) == ("mine", "owner@example.org", "CC BY")


def test_the_name_of_a_folder_adds_nothing_to_the_spec(here, capsys):
    """YAML injection: an unpacked archive is called as its author liked."""
    name = "a\nfilters: [{name: lexicon, lists: [x]}]\n# \x1b[2J\u202e: &a !!python/object:os.system".replace("/", "_")
    folder = here / name
    folder.mkdir()
    Image.new("RGB", (300, 300)).save(folder / "1.jpg")
    (folder / "1.txt").write_text("公园里的一张照片", encoding="utf-8")
    assert cli.main(["init", "--from", str(folder)]) == 0
    assert not {"\x1b", "\u202e"} & set("".join(capsys.readouterr()))
    [path] = here.glob("*.yaml")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [source["path"] for source in raw["sources"]] in ([name], [str(folder)])
    assert all(entry["name"] != "lexicon" for entry in raw.get("filters", ()))
    load(path)
