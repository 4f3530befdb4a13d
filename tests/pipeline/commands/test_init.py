"""`wenlan-data init`: specs are written where they are wanted, never over another one, and faults are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from data_specs.build import load
from pipeline import cli
from pipeline.sources import sources_of
from pipeline.sources._look import Budget
from tests.drafted import CONTACT, init, rows


@pytest.mark.slow
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
    assert cli.main(["plan", "specs/all.yaml"]) == 0


@pytest.mark.slow
def test_pages_of_one_host_are_one_source(here, capsys):
    pages = [f"https://blog.example.org/{n}.html" for n in range(26)]
    others = ["https://bbs.example.org/a/", "https://bbs.example.org/b/", "https://example.org/"]
    init(capsys, "--from", *pages, *others, pages[0], "--out", "all.yaml", *CONTACT)
    sources = load("all.yaml").sources
    assert [source.source_kind for source in sources] == ["blog", "forum", "web"]
    assert [source.options["start"] for source in sources] == [pages, others[:2], others[2:]]
    assert [source.options.get("within") for source in sources] == [None, ["/a/", "/b/"], None]


@pytest.mark.slow
def test_an_existing_spec_is_replaced_only_if_asked(photos, capsys):
    Path("photos.yaml").write_text("mine")
    assert cli.main(["init", "--from", "photos"]) == 2
    assert "photos.yaml: already exists; use --force to overwrite it" in capsys.readouterr().err
    assert Path("photos.yaml").read_text() == "mine"
    init(capsys, "--from", "photos", "--force")
    assert load("photos.yaml").name == "photos"
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "photos.yaml"]


def test_a_table_that_its_spec_would_drop_is_warned_of(here, capsys):
    (here / "t.csv").write_text(
        "url,caption\nhttps://a.example/1.jpg,A red door\nhttps://a.example/2.jpg,A lighthouse\n"
    )
    assert cli.main(["init", "--from", "t.csv", *CONTACT]) == 0
    told = "filter han_share: Drops texts that are not Chinese: 2 of 2 sampled; remove it from the spec to keep them"
    assert f"warning: {told}\n" in capsys.readouterr().err


def test_the_commands_that_come_next_can_be_pasted(photos, here, capsys):
    (here / "my specs").mkdir()
    assert cli.main(["init", "--from", "photos", "--out", "my specs/x.yaml"]) == 0
    told = capsys.readouterr().err
    assert "next: wenlan-data plan 'my specs/x.yaml'\n" in told
    assert "then: wenlan-data build 'my specs/x.yaml' --out builds/photos --store store\n" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "init: --from INPUT is required"),
        (["--from", "nothing"], 2, "--from nothing: not an existing folder"),
        (["--from", "https://news.example.org/"], 2, "init: --contact is required"),
        (
            ["--from", "urls.txt"],
            2,
            "--from urls.txt: a list of URLs without texts; give a table that also has texts",
        ),
        (["--from", "none.csv"], 1, "none.csv: source none: no such file"),
        (["--from", "empty"], 1, "empty: contains no pictures"),
        (["--from", "words.csv"], 1, "words.csv: no column of URLs among a, b; name the columns in a spec"),
        (["--from", "damaged.parquet"], 1, "damaged.parquet: cannot be read as a table"),
        (["--from", "photos", "--name", "My Photos"], 2, "--name My Photos: use lower-case letters"),
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

    monkeypatch.setattr("rich.prompt.Prompt.ask", answer)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2024", "null", "no", "1e3", "2026-11-27"])
def test_a_folder_may_be_called_by_what_yaml_takes_for_no_text(name, photos, here, capsys):
    photos.rename(here / name)
    init(capsys, "--from", name, "--out", "new.yaml")
    spec = load("new.yaml")
    assert (spec.name, spec.sources[0].name, spec.sources[0].options["path"]) == (name, name, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "column", ["url\nfilters: [{name: lexicon}]\n#", "caption\u2028filters: []", "x\ud83d", "x\x00"]
)
def test_the_name_of_a_column_adds_nothing_to_the_spec(column, here, capsys):
    """One that no spec can hold, half a character, leaves no file."""
    rows = [{"image": f"https://a.example/{n}.jpg", column: f"公园里的第{n}张照片"} for n in range(3)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    half = column == "x\ud83d"
    assert cli.main(["init", "--from", "rows.jsonl", *CONTACT]) == (2 if half else 0)
    assert sorted(path.name for path in here.iterdir()) == ["rows.jsonl"] + (["rows.yaml"] * (not half))
    assert not {"\x00", "\u2028", "\ud83d"} & set("".join(capsys.readouterr()))
    if not half:
        raw = yaml.safe_load((here / "rows.yaml").read_text(encoding="utf-8"))
        assert raw["sources"][0]["columns"]["texts"] == {"caption": column}
        assert len(raw["filters"]) > 3


@pytest.mark.slow
def test_a_spec_that_a_build_would_not_take_is_called_by_its_own_name(here, capsys):
    assert cli.main(["init", "--from", "https://news.example.org/", "--contact", "x", "--out", "new.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("wenlan-data: new.yaml:5: contact: ")
    assert list(here.iterdir()) == []


def test_a_spec_behind_a_link_finds_its_input(photos, here, capsys):
    (here / "a/b/specs").mkdir(parents=True)
    (here / "link").symlink_to(here / "a/b/specs")
    init(capsys, "--from", "photos", "--out", "link/new.yaml")
    assert [source.look(Budget()).candidates.number for source in sources_of(load("link/new.yaml"))] == [6]


def test_an_answer_with_an_open_quote_is_one_line(here, capsys, monkeypatch):
    monkeypatch.setattr("rich.prompt.Prompt.ask", lambda *_, **__: "Li's photos")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("pipeline.commands.terminal.console._force_terminal", True)
    assert cli.main(["init"]) == 2
    assert "Li's photos: No closing quotation" in capsys.readouterr().err
