"""`wenlan-data init`: specs that load, say why, and build, from every kind of input."""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_specs.build import BuildSpec, load
from pipeline import cli, run
from pipeline.commands import guesses
from pipeline.commands.columns import guess_columns
from pipeline.plugins import Plugin, configure
from pipeline.publish import release

CONTACT = ["--contact", "mailto:x@example.org"]
WORDS = ["故宫的雪景", "黄山云海日出", "江南水乡古镇", "草原上的骏马", "红烧排骨成品图", "清晨第一缕阳光"]


def picture(seed: int, side: int = 240, wide: int = 320) -> bytes:
    """A picture unlike the others: random coloured rectangles."""
    dice = random.Random(seed)
    image = Image.new("RGB", (wide, side), tuple(dice.randrange(256) for _ in range(3)))
    for _ in range(12):
        x, y, w, h = (dice.randrange(side) for _ in range(4))
        image.paste(tuple(dice.randrange(256) for _ in range(3)), (x, y, x + w + 8, y + h + 8))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def init(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What the command answers; it must succeed."""
    code = cli.main(["init", *words, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def built(spec: Path, *hosts: str) -> int:
    """Samples of the dataset that a spec builds, in this process; loopback hosts stand for the web."""
    loaded = load(spec)
    if hosts:
        allowed = loaded.egress.model_copy(update={"allow": hosts, "delay_s": 0.0})
        loaded = loaded.model_copy(update={"egress": allowed})
    build = run.open_build(loaded, str(spec.parent / "build"))
    for _ in run.run(build, until="report", here=True):
        pass
    return sum(release.publish(build).samples.values())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(here: Path) -> Path:
    """Six pictures with captions beside them: short ones, and small pictures too."""
    (here / "photos").mkdir()
    for seed, side in enumerate((90, 120, 240, 300, 210, 400)):
        (here / f"photos/{seed}.jpg").write_bytes(picture(seed, side, side + 40))
        (here / f"photos/{seed}.txt").write_text(WORDS[seed][: 1 + seed], encoding="utf-8")
    return here / "photos"


@pytest.fixture
def web(serve) -> Any:
    """A site of six pages, each with a picture and its caption."""
    pages: dict[str, Any] = {}
    for seed, words in enumerate(WORDS):
        pages[f"/i/{seed}.jpg"] = (200, {"Content-Type": "image/jpeg"}, picture(seed))
        links = "".join(f"<a href='/p/{other}.html'>{other}</a>" for other in range(len(WORDS)))
        pages[f"/p/{seed}.html"] = f"<html><body>{links}<img src='/i/{seed}.jpg' alt='{words}'></body></html>".encode()
    pages["/"] = pages["/p/0.html"]
    return serve(pages)


def rows(web: Any) -> list[dict[str, Any]]:
    return [
        {"nr": seed, "链接": web.url(f"/i/{seed}.jpg"), "网页": web.url(f"/p/{seed}.html"), "说明": words}
        for seed, words in enumerate(WORDS)
    ]


def test_a_folder_of_pictures_keeps_all_that_is_there(photos, capsys):
    answer = init(capsys, "--from", "photos/")
    assert answer["next"] == ["wenlan-data", "plan", "photos.yaml"]
    spec = load("photos.yaml")
    [source] = spec.sources
    assert (source.kind, source.source_kind, source.options["path"]) == ("folder", "library", "photos")
    filters = {ref.name: ref.options for ref in spec.filters}
    assert filters["image_sides"]["min_side"] == 90
    assert filters["text_length"]["min_chars"] == 1
    assert {"ads", "boilerplate", "image_aspect"}.isdisjoint(filters), "thresholds of web crawls"
    assert (spec.shards.dev_share, spec.shards.val_share) == (0.1, 0.1)
    assert cli.main(["plan", "photos.yaml"]) == 0
    assert built(Path("photos.yaml")) == 6


def test_a_captions_table_in_the_folder_is_found(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    table = "file,caption\n" + "".join(f"{seed}.jpg,{words}\n" for seed, words in enumerate(WORDS))
    (photos / "texts.csv").write_text(table, encoding="utf-8")
    init(capsys, "--from", "photos")
    assert load("photos.yaml").sources[0].options["captions"] == "texts.csv"
    assert built(Path("photos.yaml")) == 6


def test_a_table_of_captions_stands_for_the_folder_around_it(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    (photos / "texts.csv").write_text(f"file,caption\n0.jpg,{WORDS[0]}\n", encoding="utf-8")
    init(capsys, "--from", "photos/texts.csv")
    [source] = load("photos.yaml").sources
    assert source.options == {"path": "photos", "captions": "texts.csv"}


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_table_of_captions_may_name_its_columns_as_it_likes(photos, capsys, encoding):
    for text in photos.glob("*.txt"):
        text.unlink()
    table = "编号;文件名;描述\n" + "".join(f"{seed};{seed}.jpg;{words}\n" for seed, words in enumerate(WORDS))
    (photos / "texts.csv").write_text(table, encoding=encoding)
    init(capsys, "--from", "photos/texts.csv")
    [source] = load("photos.yaml").sources
    columns = {"image": "文件名", "caption": "描述"}
    assert source.options == {"path": "photos", "captions": "texts.csv", "columns": columns}
    assert built(Path("photos.yaml")) == 6


def test_a_table_of_captions_without_its_pictures_is_one_line(here, capsys):
    (here / "texts.csv").write_text(f"file,caption\n0.jpg,{WORDS[0]}\n", encoding="utf-8")
    assert cli.main(["init", "--from", "texts.csv"]) == 1
    assert "column file names pictures, and . holds none; give the folder" in capsys.readouterr().err


def test_pictures_are_opened_for_some_seconds_only(photos, capsys, monkeypatch):
    monkeypatch.setattr(guesses, "LOOK_S", -1.0)
    init(capsys, "--from", "photos")
    assert {ref.name: ref.options for ref in load("photos.yaml").filters}["image_sides"] == {"min_side": 1}


def test_a_folder_with_rows_as_brivl_was_released(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    sentences = [[["caption", " ".join(words)]] for words in WORDS]
    lines = [json.dumps({"image_id": f"{n}.jpg", "sentences": own}) for n, own in enumerate(sentences)]
    (photos / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    init(capsys, "--from", "photos", "--out", "b.yaml")
    [source] = load("b.yaml").sources
    assert source.options == {"path": "photos/rows.jsonl", "format": "brivl_jsonl", "images": "photos"}
    assert {ref.name: ref.options for ref in load("b.yaml").filters}["image_sides"]["min_side"] == 90
    assert built(Path("b.yaml")) == 6


def test_posts_of_a_microblog(web, here, capsys):
    posts = [
        {"mid": str(n), "text": f"{words}真好看", "pics": [{"large": {"url": web.url(f"/i/{n}.jpg")}}]}
        for n, words in enumerate(WORDS)
    ]
    (here / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)), encoding="utf-8")
    init(capsys, "--from", "posts.jsonl", *CONTACT)
    [source] = load("posts.yaml").sources
    assert (source.kind, source.source_kind) == ("microblog", "microblog")
    assert built(Path("posts.yaml"), web.host) == 6


def test_pictures_without_any_text_are_refused_and_nothing_is_written(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    assert cli.main(["init", "--from", "photos"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("wenlan-data: photos: 6 pictures and no text: X.jpg needs X.txt")
    assert list(photos.parent.iterdir()) == [photos]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "gb18030.csv"])
def test_a_table_is_understood_by_its_cells(form, web, here, capsys):
    file = here / f"table.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows(web)), file)
    elif form == "jsonl":
        file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows(web)), encoding="utf-8")
    else:
        mark = "\t" if form == "tsv" else ","
        lines = [mark.join(rows(web)[0]), *(mark.join(map(str, row.values())) for row in rows(web))]
        file.write_text("\n".join(lines) + "\n", encoding="gb18030" if "gb" in form else "utf-8")
    answer = init(capsys, "--from", file.name, "--name", "t", *CONTACT)
    options = load("t.yaml").sources[0].options
    assert options["columns"] == {"image_url": "链接", "page_url": "网页", "texts": {"caption": "说明"}}
    assert "encoding" not in options  # a build tells it by the bytes, as init did
    told = " ".join(answer["sources"][0]["why"])
    assert "column 链接 is the image's URL: 100% web addresses" in told
    assert "columns that are not used: nr" in told
    assert built(Path("t.yaml"), web.host) == 6


def test_of_many_tables_the_first_is_looked_at(web, here, capsys):
    (here / "t").mkdir()
    for number, row in enumerate(rows(web)):
        pq.write_table(pa.Table.from_pylist([row]), here / f"t/{number}.parquet")
    (here / "t/9.parquet").write_bytes(b"damaged, and not opened")
    answer = init(capsys, "--from", "t/", *CONTACT)
    assert load("t.yaml").sources[0].options["path"] == "t/*.parquet"
    assert "1 of 1 entries with a text" in answer["sources"][0]["why"]
    (here / "t/9.parquet").unlink()
    assert built(Path("t.yaml"), web.host) == 6


def test_tars_are_a_webdataset(here, capsys):
    (here / "shards").mkdir()
    for number in range(2):
        with tarfile.open(here / f"shards/{number}.tar", "w") as tar:
            for seed in range(3 * number, 3 * number + 3):
                members = {"jpg": picture(seed, 150), "txt": WORDS[seed].encode()}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{seed:05}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    init(capsys, "--from", "shards/0.tar", "shards/1.tar", "--out", "both.yaml")
    init(capsys, "--from", "shards/", "--out", "folder.yaml")
    assert load("both.yaml").sources[0].options["path"] == ["shards/0.tar", "shards/1.tar"]
    [source] = load("folder.yaml").sources
    assert (source.kind, source.name, source.options["path"]) == ("webdataset", "shards", "shards/*.tar")
    assert {ref.name: ref.options for ref in load("both.yaml").filters}["image_sides"] == {"min_side": 150}
    assert built(Path("both.yaml")) == 6


def test_a_warc_file(web, here, capsys):
    with (here / "crawl.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for seed in range(len(WORDS)):
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.0")
            body = io.BytesIO(web.pages[f"/p/{seed}.html"])
            url = web.url(f"/p/{seed}.html")
            record = writer.create_warc_record(url, "response", payload=body, http_headers=headers)
            writer.write_record(record)
            record.raw_stream.close()
    init(capsys, "--from", "crawl.warc.gz", *CONTACT)
    spec = load("crawl.yaml")
    assert (spec.sources[0].kind, spec.sources[0].options) == ("warc", {"path": "crawl.warc.gz"})
    names = [ref.name for ref in spec.filters]
    assert {"language", "ads", "image_bytes"} <= set(names)
    assert names.index("ads") < names.index("personal_data"), "what is masked cannot be searched for"
    assert built(Path("crawl.yaml"), web.host) == 6


def test_a_site(web, here, capsys):
    init(capsys, "--from", web.url("/"), "--name", "site", *CONTACT)
    spec = load("site.yaml")
    assert spec.sources[0].options == {"start": [web.url("/")]}
    assert spec.egress.allow == (web.host,), "a loopback address is allowed because it was named"
    assert built(Path("site.yaml")) == 6


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


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^( *)# ( *[a-z_0-9]+:(?: |$))", r"\1\2", text)


@pytest.mark.parametrize("inputs", [["photos"], ["https://news.example.org/"], ["photos", "https://news.example.org/"]])
def test_every_commented_option_is_what_holds_anyway(inputs, photos, capsys):
    """Taking the marks away from all of them changes nothing; and all options of the models are there."""
    init(capsys, "--from", *inputs, "--name", "t", *CONTACT)
    text = Path("t.yaml").read_text(encoding="utf-8")
    assert uncommented(text).count("\n# ") < text.count("\n# ")
    Path("whole.yaml").write_text(uncommented(text), encoding="utf-8")
    assert load("whole.yaml").model_dump() | {"filters": ()} == resolved(load("t.yaml")) | {"filters": ()}
    assert identities(load("whole.yaml")) == identities(load("t.yaml"))
    whole = yaml.safe_load(Path("whole.yaml").read_text(encoding="utf-8"))
    assert set(BuildSpec.model_fields) - {"base"} == set(whole)
    for part in ("egress", "fetch", "dedup", "regions", "shards", "report", "publish"):
        assert set(whole[part]) == set(BuildSpec.model_fields[part].annotation.model_fields)


def identities(spec: BuildSpec) -> list[dict[str, Any]]:
    """The filters of a spec, with all their options; the same, whether a default is written or not."""
    return [configure("filters", ref.name, ref.options, Plugin).identity() for ref in spec.filters]


def resolved(spec: BuildSpec) -> dict[str, Any]:
    """A spec with the options of its sources' plug-ins at their defaults."""
    from pipeline.sources import sources_of

    values = spec.model_dump()
    for source, plugin in zip(values["sources"], sources_of(spec), strict=True):
        source |= {k: v for k, v in plugin.model_dump(mode="json").items() if k != "base"}
    return values


def test_an_existing_spec_is_replaced_only_if_asked(photos, capsys):
    Path("photos.yaml").write_text("mine")
    assert cli.main(["init", "--from", "photos"]) == 2
    assert "photos.yaml: is there already; --force replaces it" in capsys.readouterr().err
    assert Path("photos.yaml").read_text() == "mine"
    init(capsys, "--from", "photos", "--force")
    assert load("photos.yaml").name == "photos"
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "photos.yaml"]


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
    ],
)
def test_what_cannot_be_a_spec_is_one_line(words, code, line, photos, here, capsys):
    (here / "empty").mkdir()
    (here / "words.csv").write_text("a,b\n1,2\n")
    (here / "damaged.parquet").write_text("PAR1 or not")
    assert cli.main(["init", *words]) == code
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(f"wenlan-data: {line}")
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


def test_columns_by_content_and_name():
    texts = [{"alt_text": f"图{n}的说明文字", "title": f"标题{n}", "tags": ["山", "水"], "width": n} for n in range(5)]
    urls = [{"src": f"https://a.cn/{n}.jpg", "ref": f"https://a.cn/{n}", "sample_id": f"x{n}"} for n in range(5)]
    guess = guess_columns([{**a, **b} for a, b in zip(texts, urls, strict=True)])
    assert guess.columns == {
        "image_url": "src",
        "page_url": "ref",
        "id": "sample_id",
        "texts": {"alt": "alt_text", "title": "title", "tag": "tags"},
    }
    assert guess_columns([]).columns == {}
    assert not guess_columns([{"a": None, "b": 1}]).has_images


cells = (
    st.none()
    | st.integers()
    | st.text()
    | st.sampled_from(["https://a.cn/1.jpg", "//b.cn/x", "黄山"])
    | st.lists(st.text())
)


@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=8), cells, max_size=5), max_size=6))
def test_a_guess_names_columns_that_are_there_each_once(rows):
    columns = dict(guess_columns(rows).columns)
    texts = columns.pop("texts", {}).values()
    named = [*columns.values(), *(n for names in texts for n in ([names] if isinstance(names, str) else names))]
    assert len(named) == len(set(named))
    assert set(named) <= {name for row in rows for name in row}


def test_texts_that_are_not_chinese_are_taken_by_the_name_of_their_column():
    rows = [{"url": f"https://a.org/{n}.png", "TEXT": f"a photo of {n} dogs", "hash": f"{n:x}"} for n in range(3)]
    assert guess_columns(rows).columns == {"image_url": "url", "texts": {"caption": "TEXT"}}


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["photos/"], "photos"),
        (["shards/*.tar"], "shards"),
        (["a/My Table.csv.gz"], "my-table"),
        (["https://www.example.org/zh/"], "www-example-org"),
        (["相册"], "dataset"),
        (["x/1.tar", "x/2.tar"], "x"),
    ],
)
def test_names_are_made_of_paths(paths, name):
    assert guesses._name(*paths) == name


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
