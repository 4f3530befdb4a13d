"""guesses: the kind of an input, and what is in it."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_specs.build import load
from pipeline import cli
from pipeline.commands import guesses
from pipeline.sources import sources_of
from pipeline.sources._look import Budget
from tests import archived
from tests.drafted import CONTACT, WORDS, built, init, picture, read, rows


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert read(Path("photos.yaml")) == 6


@pytest.mark.parametrize(
    "lines",
    [
        ["图片清单,", "文件名,描述", *(f"{seed}.jpg,{words}" for seed, words in enumerate(WORDS))],  # below a title
        ["图片,描述", *(f"{seed},{words}" for seed, words in enumerate(WORDS))],  # pictures without their endings
    ],
)
def test_a_table_of_captions_is_read_as_people_write_it(photos, capsys, lines):
    for text in photos.glob("*.txt"):
        text.unlink()
    (photos / "texts.csv").write_text("\n".join(lines), encoding="utf-8")
    answer = init(capsys, "--from", "photos")
    assert f"6 of 6 sampled entries have texts, for example: {WORDS[0]}" in answer["sources"][0]["why"]


def test_a_mirror_of_a_site_is_read_from_the_warc_file_beside_it(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    (photos / "site.warc.gz").write_bytes(archived.page("http://a.cn/", "1.jpg"))
    assert [source["kind"] for source in init(capsys, "--from", "photos", *CONTACT)["sources"]] == ["warc"]


def test_a_table_whose_only_text_is_a_remark_says_so(here, capsys):
    lines = [f"https://a.example/{n}.jpg,待核实；见附件" for n in range(12)]
    (here / "t.csv").write_text("\n".join(["url,备注", *lines]), encoding="utf-8")
    assert cli.main(["init", "--from", "t.csv", *CONTACT]) == 1
    assert (
        "column 备注 is not a caption: 12 of 12 cells contain the same text, 待核实；见附件; name the columns"
        in capsys.readouterr().err
    )


def test_rows_that_img2dataset_could_not_download_are_counted(here, capsys):
    status = ["success", "failed_to_download", "failed_to_resize"]
    lines = [f"https://a.example/{n}.jpg,{words},{status[n % 3]}" for n, words in enumerate(WORDS)]
    (here / "t.csv").write_text("\n".join(["url,caption,status", *lines]), encoding="utf-8")
    [why, *_] = init(capsys, "--from", "t.csv", *CONTACT)["sources"][0]["why"]
    assert why == "6 rows in t.csv; 4 of them are marked as failed downloads, which a build retries"


def test_a_workbook_is_to_be_saved_as_csv(photos, capsys):
    (photos / "captions.xlsx").write_bytes(b"PK")
    assert cli.main(["init", "--from", "photos/captions.xlsx"]) == 2
    for text in photos.glob("*.txt"):
        text.unlink()
    assert cli.main(["init", "--from", "photos"]) == 1
    for line in capsys.readouterr().err.splitlines():
        assert "photos/captions.xlsx: workbooks are not supported; save the sheet as CSV" in line


def test_a_table_of_captions_without_its_pictures_is_one_line(here, capsys):
    (here / "texts.csv").write_text(f"file,caption\n0.jpg,{WORDS[0]}\n", encoding="utf-8")
    assert cli.main(["init", "--from", "texts.csv"]) == 1
    assert "column file names pictures that . lacks; give their folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_with_rows_as_brivl_was_released(photos, capsys):
    for text in photos.glob("*.txt"):
        text.unlink()
    sentences = [[["caption", " ".join(words)]] for words in WORDS]
    lines = [json.dumps({"image_id": f"{n}.jpg", "sentences": own}) for n, own in enumerate(sentences)]
    (photos / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    init(capsys, "--from", "photos", "--out", "b.yaml")
    [source] = load("b.yaml").sources
    assert source.options == {"path": "photos/rows.jsonl", "format": "brivl_jsonl", "images": "photos"}
    assert read(Path("b.yaml")) == 6


@pytest.mark.slow
def test_posts_of_a_microblog(web, here, capsys):
    posts = [
        {"mid": str(n), "text": f"{words}真好看", "pics": [{"large": {"url": web.url(f"/i/{n}.jpg")}}]}
        for n, words in enumerate(WORDS)
    ]
    (here / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)), encoding="utf-8")
    init(capsys, "--from", "posts.jsonl", *CONTACT)
    [source] = load("posts.yaml").sources
    assert (source.kind, source.source_kind) == ("microblog", "microblog")
    assert read(Path("posts.yaml")) == 6


@pytest.mark.slow
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
    reasons = " ".join(answer["sources"][0]["why"])
    assert "column 链接 is the image's URL: 100% are URLs" in reasons
    assert "unused columns: nr" in reasons
    assert read(Path("t.yaml")) == 6


@pytest.mark.slow
def test_of_many_tables_the_first_is_looked_at(web, here, capsys):
    (here / "t").mkdir()
    for number, row in enumerate(rows(web)):
        pq.write_table(pa.Table.from_pylist([row]), here / f"t/{number}.parquet")
    (here / "t/9.parquet").write_bytes(b"damaged, and not opened")
    answer = init(capsys, "--from", "t/", *CONTACT)
    assert load("t.yaml").sources[0].options["path"] == "t/*.parquet"
    assert f"1 of 1 sampled entries have texts, for example: {WORDS[0]}" in answer["sources"][0]["why"]
    (here / "t/9.parquet").unlink()
    assert built(Path("t.yaml"), web.host) == 6, "of a table, from its URLs to a release"


@pytest.mark.slow
def test_tars_are_a_webdataset(here, capsys):
    (here / "shards").mkdir()
    for number in range(2):
        members = {}
        for seed in range(3 * number, 3 * number + 3):
            members |= {f"{seed:05}.jpg": picture(seed, 150), f"{seed:05}.txt": WORDS[seed]}
        (here / f"shards/{number}.tar").write_bytes(archived.tar(members))
    init(capsys, "--from", "shards/0.tar", "shards/1.tar", "--out", "both.yaml")
    init(capsys, "--from", "shards/", "--out", "folder.yaml")
    assert load("both.yaml").sources[0].options["path"] == ["shards/0.tar", "shards/1.tar"]
    [source] = load("folder.yaml").sources
    assert (source.kind, source.name, source.options["path"]) == ("webdataset", "shards", "shards/*.tar")
    assert built(Path("both.yaml")) == 6


def test_common_crawls_lists_of_warc_files_and_of_its_index(here, capsys):
    for name, kind, limit in (("warc.paths.gz", "warc", 10), ("cc-index-table.paths.gz", "common_crawl", 1)):
        (here / name).write_bytes(gzip.compress(b"cc-index/subset=warc/a.parquet\n"))
        init(capsys, "--from", name, *CONTACT, "--out", f"{kind}.yaml")
        spec = load(f"{kind}.yaml")
        assert (spec.sources[0].kind, spec.sources[0].options) == (kind, {"path_list": name, "limit": limit})
        assert "ads" in [ref.name for ref in spec.filters]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_site_that_was_archived_makes_the_pairs_that_the_site_itself_makes(web, here, capsys):
    del web.pages["/"]  # of two equal pages the source's name decides which is kept
    with (here / "saved.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for url in map(web.url, web.pages):
            with urlopen(url) as answer:
                headers = StatusAndHeaders("200 OK", answer.getheaders(), protocol="HTTP/1.1")
                body = io.BytesIO(answer.read())
            record = writer.create_warc_record(url, "response", payload=body, http_headers=headers)
            writer.write_record(record)
            record.raw_stream.close()
    web.asked.clear()
    init(capsys, "--from", "saved.warc.gz")
    (here / "live").mkdir()
    init(capsys, "--from", web.url("/p/0.html"), "--name", "site", "--out", "live/site.yaml", *CONTACT)
    assert built(Path("saved.yaml")) == 6
    assert web.asked == []
    assert built(Path("live/site.yaml"), web.host) == 6
    columns = ["image_url", "page_url", "sha256", "texts", "split"]
    saved, live = (
        sorted(map(str, pa.concat_tables(pq.read_table(p, columns=columns) for p in shards).to_pylist()))
        for shards in (here.glob("build/shards/*.parquet"), here.glob("live/build/shards/*.parquet"))
    )
    assert saved == live


@pytest.mark.parametrize("name", ["crawl.warc.gz", "crawl.wacz"])
def test_an_archive_with_its_pictures_needs_no_contact_and_asks_nobody(here, capsys, name):
    records = archived.page("http://a.cn/", "1.jpg", "2.jpg") + archived.jpeg("http://a.cn/1.jpg", b"x")
    if name.endswith(".wacz"):
        archived.wacz(here / name, {"1.warc.gz": records})
    else:
        (here / name).write_bytes(records)
    init(capsys, "--from", name)
    spec = load("crawl.yaml")
    assert (spec.sources[0].kind, spec.sources[0].options) == ("warc", {"path": name})
    assert (spec.egress.network, spec.contact) == ("never", "not stated")
    assert "ads" in [ref.name for ref in spec.filters], "pages of strangers, whether they are asked or not"
    said = "1 WARC file with 1 HTML page and 1 picture, which are read from the archive"
    assert said in Path("crawl.yaml").read_text("utf-8")
    init(capsys, "--from", name, "https://b.cn/", "--name", "both", *CONTACT)
    assert load("both.yaml").egress.network == "allowed", "the site is crawled"


def test_an_archive_of_pages_alone_has_its_pictures_fetched(here, capsys):
    pages = b"".join(archived.page(f"http://a.cn/{number}", "1.jpg", "2.jpg") for number in range(60))
    (here / "pages.warc.gz").write_bytes(pages + archived.jpeg("http://a.cn/1.jpg", b"x"))
    init(capsys, "--from", "pages.warc.gz", *CONTACT)
    assert load("pages.yaml").egress.network == "allowed"
    assert "1 picture, which are read from the archive; the others are downloaded" in Path("pages.yaml").read_text(
        "utf-8"
    )


@pytest.mark.slow
def test_a_site(web, here, capsys):
    init(capsys, "--from", web.url("/"), "--name", "site", *CONTACT)
    spec = load("site.yaml")
    assert spec.sources[0].options == {"start": [web.url("/")]}
    assert spec.egress.allow == (web.host,), "a loopback address is allowed because it was named"
    assert built(Path("site.yaml")) == 6


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


@pytest.mark.parametrize("given", ["tables [2024]", "tables [2024]/rows.csv", "what?", "a*b/rows.csv"])
def test_what_is_there_is_no_glob(given, here, capsys):
    folder = here / given.removesuffix("/rows.csv")
    folder.mkdir()
    (here / "aXb").mkdir()
    (here / "aXb/rows.csv").write_text("none of it\n")
    (folder / "rows.csv").write_text("url,caption\nhttps://a.example/1.jpg,公园里的红花开了\n", encoding="utf-8")
    init(capsys, "--from", given, "--out", "new.yaml", *CONTACT)
    [source] = sources_of(load("new.yaml"))
    assert source.look(Budget()).candidates.number == 1


def test_sources_of_one_name_are_numbered_apart_from_others(here, capsys):
    for folder in ("a/photos", "b/photos", "c/photos-2"):
        (here / folder).mkdir(parents=True)
        (here / folder / "rows.csv").write_text("url,caption\nhttps://a.example/1.jpg,公园里的红花开了\n")
    answer = init(capsys, "--from", "a/photos", "b/photos", "c/photos-2", "--name", "t", *CONTACT)
    assert [source["name"] for source in answer["sources"]] == ["photos-1", "photos-3", "photos-2"]


def test_what_is_no_address_is_one_line(here, capsys):
    assert cli.main(["init", "--from", "http://[::1", *CONTACT]) == 2
    assert capsys.readouterr().err == "wenlan-data: --from http://[::1: invalid URL (Invalid IPv6 URL)\n"
