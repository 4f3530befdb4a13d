"""Passwords in URLs: what lies behind them is fetched, and they are written nowhere but in one private file."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.build import load
from data_specs.shard import Text
from pipeline import cli, opening
from pipeline.rows.account import Account
from pipeline.rows.records import USERINFO, Candidate, Capture
from pipeline.sources import microblog, url_table
from pipeline.stages import _page_candidates, fetch
from pipeline.urls import basic_authorization, split_userinfo
from pipeline.web.client import RequestFailed
from pipeline.web.images import ImageFetcher
from tests.pipeline.stages.test_extract import warc
from tests.stages import run_stage

PASSWORD = "s3cr3t-Pa55"
HEADER = "Basic " + base64.b64encode(f"anna:{PASSWORD}".encode()).decode()


def picture(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((240, 200), Image.Resampling.NEAREST).save(out, "JPEG", quality=90)
    return out.getvalue()


def asks_for_it(body: bytes, asked: list[tuple[str, str]], kind: str = "image/jpeg", location: str = "") -> Any:
    """A page behind Basic authentication (RFC 7617); `asked` gets (path, header Authorization) of each request."""

    def answer(handler: Any) -> None:
        given = handler.headers.get("Authorization", "")
        asked.append((handler.path, given))
        status = (302 if location else 200) if given == HEADER else 401
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        if status == 302:
            handler.send_header("Location", location)
        sent = body if status == 200 else b""
        handler.send_header("Content-Length", str(len(sent)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(sent)

    return answer


def open_to_all(body: bytes, asked: list[tuple[str, str]]) -> Any:
    def answer(handler: Any) -> None:
        asked.append((handler.path, handler.headers.get("Authorization", "")))
        handler.send_response(200)
        handler.send_header("Content-Type", "image/jpeg")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("url", "bare", "userinfo"),
    [
        ("http://a:b@c.test/x.jpg", "http://c.test/x.jpg", "a:b"),
        (" \nHTTPS://a@c.test", "HTTPS://c.test", "a"),
        ("//a:b@c.test/x", "//c.test/x", "a:b"),
        ("http://a:b@c@d.test/x", "http://d.test/x", "a:b@c"),
        ("http://c.test/x@2x.jpg", "http://c.test/x@2x.jpg", ""),
        ("http://c.test?a@b", "http://c.test?a@b", ""),
        ("http://c.test\\@d/", "http://c.test\\@d/", ""),
        ("x@2x.jpg", "x@2x.jpg", ""),
        ("http://a:b@/x.jpg", "http://a:b@/x.jpg", ""),  # no host: joined without it, it would be the page's own
    ],
)
def test_user_info_is_split_from_a_url(url: str, bare: str, userinfo: str) -> None:
    assert split_userinfo(url) == (bare, userinfo)


def test_user_info_is_sent_unescaped() -> None:
    value = basic_authorization("a%40b:%E9%9B%AA%3A:c")
    assert base64.b64decode(value.removeprefix("Basic ")).decode() == "a@b:雪::c"
    assert basic_authorization("") == ""


def test_a_password_is_no_part_of_an_images_identity(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("u,t\nhttp://a:b@i.test/1.jpg,云\nhttp://i.test/1.jpg,云\n", encoding="utf-8")
    columns = {"image_url": "u", "texts": {"alt": "t"}}
    options = {"name": "t", "source_kind": "news", "path": str(tmp_path / "t.csv"), "columns": columns}
    one, two = url_table.UrlTable.model_validate(options).read(0, Account())
    assert isinstance(one, Candidate)
    assert isinstance(two, Candidate)
    assert (one.candidate_id, one.fetch_id, one.image_url) == (two.candidate_id, two.fetch_id, "http://i.test/1.jpg")
    assert (one.userinfo, two.userinfo) == ("a:b", "")
    assert "a:b" not in repr(one)


def test_every_source_of_image_urls_splits_them(tmp_path: Path) -> None:
    page = '<base href="http://x:y@i.test/d/"><p>北京今天下了第一场雪'
    page += '<img src="//a:b@i.test/1.jpg" alt=雪><img src=2.jpg alt=云>'
    capture = Capture("http://p.test/", 200, "", "text/html; charset=utf-8", page.encode())
    entries = [e for e in _page_candidates.extract_page(capture, "s", "news").entries if isinstance(e, Candidate)]
    assert [(e.image_url, e.userinfo) for e in entries] == [
        ("http://i.test/1.jpg", "a:b"),
        ("http://i.test/d/2.jpg", ""),
    ]
    (tmp_path / "p.jsonl").write_text('{"text": "云", "images": ["//a:b@i.test/1.jpg"]}\n', encoding="utf-8")
    options: dict[str, Any] = {"name": "t", "source_kind": "microblog", "path": str(tmp_path / "p.jsonl")}
    [post] = microblog.Microblog.model_validate(options).read(0, Account())
    assert isinstance(post, Candidate)
    assert (post.image_url, post.userinfo) == ("https://i.test/1.jpg", "a:b")
    row = {"image_id": "d/1.jpg", "sentences": [["caption", "云"]]}
    (tmp_path / "b.jsonl").write_text(json.dumps(row), encoding="utf-8")
    options |= {"path": str(tmp_path / "b.jsonl"), "format": "brivl_jsonl", "images": "http://a:b@i.test/root/"}
    [brivl] = url_table.UrlTable.model_validate(options).read(0, Account())
    assert isinstance(brivl, Candidate)
    assert (brivl.image_url, brivl.userinfo) == ("http://i.test/root/d/1.jpg", "a:b")


def test_credentials_go_to_their_own_origin_only(serve: Any, make_build: Any) -> None:
    """Not across a redirect to another port, and not back again after one; robots.txt is asked for without them."""
    asked: list[tuple[str, str]] = []
    web, other = serve(), serve()
    other.pages = {
        "/open.jpg": open_to_all(picture(1), asked),
        "/back": (302, {"Location": f"http://x:y@{web.host}/in.jpg"}, b""),
    }
    web.pages = {
        "/in.jpg": asks_for_it(picture(2), asked),
        "/near": asks_for_it(b"", asked, location="/in.jpg"),
        "/far": asks_for_it(b"", asked, location=other.url("/open.jpg")),
        "/there-and-back": asks_for_it(b"", asked, location=other.url("/back")),
        "/robots.txt": open_to_all(b"User-agent: *\nAllow: /\n", asked),
    }
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}
    spec = make_build(web, other, sources=[source]).spec
    urls = [web.url(path) for path in ("/in.jpg", "/near", "/far", "/there-and-back")]

    async def fetched() -> list[bytes | str]:
        async with ImageFetcher(spec, dict.fromkeys(urls, f"anna:{PASSWORD}")) as fetcher:
            outcomes = [await fetcher.fetch(url) for url in urls]
        return [str(one) if isinstance(one, RequestFailed) else one.body for one in outcomes]

    bodies = asyncio.run(fetched())
    assert bodies == [picture(2), picture(2), picture(1), "http_status: status 401"]
    assert {path for path, header in asked if header} == {"/in.jpg", "/near", "/far", "/there-and-back"}
    assert ("/open.jpg", "") in asked
    assert asked[-1] == ("/in.jpg", ""), "a redirect's own user info is not sent either"


@pytest.mark.slow
def test_a_failure_without_a_password_does_not_last(serve: Any, make_build: Any) -> None:
    asked: list[tuple[str, str]] = []
    web = serve({"/in.jpg": asks_for_it(picture(2), asked)})
    source = {"kind": "url_table", "name": "t", "source_kind": "news", "path": "t.csv"}
    source |= {"columns": {"image_url": "u", "texts": {"alt": "t"}}}  # type: ignore[dict-item]

    def fetched(out: str, userinfo: str) -> str:
        build = make_build(web, sources=[source], out=out)
        build.fingerprints["extract"] = "e" * 64
        Path(build.out).mkdir(parents=True)
        table = Path(build.out, "t.csv")
        table.write_text(f"u,t\nhttp://{userinfo}{web.host}/in.jpg,一场大雪覆盖了故宫\n", encoding="utf-8")
        spec = build.spec.model_copy(update={"base": build.out})
        build = build.__class__(**{**{f: getattr(build, f) for f in build.__dataclass_fields__}, "spec": spec})
        run_stage(build, "extract", "admit", "fetch")
        [row] = build.stage("fetch").table(next(build.stage("fetch").records())).to_pylist()
        return str(row["evidence"] or "ok")

    assert fetched("one", "") == "status 401"
    assert fetched("two", "") == "status 401"
    assert len(asked) == 1, "remembered"
    assert fetched("three", f"anna:{PASSWORD}@") == "ok"
    assert fetched("four", "") == "ok", "its bytes are in STORE now"


def texts_of(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder as bytes that can be searched: Parquet unpacked, the members of tars by themselves."""
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if path.suffix == ".parquet":
            yield path, repr(pq.read_table(path).to_pylist()).encode()
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    opened = tar.extractfile(member)
                    yield path, member.name.encode() + (opened.read() if opened else b"")
        else:
            yield path, path.read_bytes()


@pytest.mark.drill(60)
@pytest.mark.timeout(600)
def test_a_whole_build_behind_passwords_shows_none_of_them(
    serve: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Over a server that asks for a password: the table, pictures of its rows and of a crawled page."""
    asked: list[tuple[str, str]] = []
    web = serve()
    private = f"http://anna:{PASSWORD}@{web.host}"
    words = ["故宫的雪后景色", "黄山日出云海", "江南水乡古镇", "草原上的骏马", "红烧排骨成品图", "城市夜景灯光秀"]
    rows = [f"{private}/i/{i}.jpg,{word}" for i, word in enumerate(words)]
    rows += [
        f"http://anna:wrong-{PASSWORD}@{web.host}/i/9.jpg,小熊猫在吃竹子",
        f"http://anna:{PASSWORD}@/x.jpg,没有主机的地址",
    ]
    web.pages = {f"/i/{i}.jpg": asks_for_it(picture(i), asked) for i in range(10)}
    web.pages["/t.csv"] = asks_for_it("\n".join(["image_url,zh", *rows]).encode(), asked, "text/csv")
    page = f"<p>北京今天下了第一场雪，故宫里很安静<img src='{private}/i/8.jpg' alt='清晨的第一缕阳光'>"
    web.pages["/"] = page.encode()
    old = warc((f"http://anna:{PASSWORD}@old.test/", page.replace("8.jpg", "7.jpg")))
    (tmp_path / "w.warc.gz").write_bytes(old + b"\0" * 333 + old)
    (tmp_path / "w-cut.warc.gz").write_bytes(old[:-9])
    (tmp_path / "w-no.warc.gz").write_bytes(b"no WARC")
    spec = tmp_path / "spec.json"
    table = {"kind": "url_table", "name": "t", "source_kind": "news", "path": f"{private}/t.csv"}
    table |= {"columns": {"texts": {"caption": "zh"}}}  # type: ignore[dict-item]
    site = {"kind": "site", "name": "s", "source_kind": "news", "start": [web.url()]}
    given = {"kind": "warc", "name": "w", "source_kind": "news", "path": "w*.warc.gz"}
    egress = {"allow": [web.host], "delay_s": 0, "timeout_s": 60}
    fields = {"name": "secret", "contact": "mailto:x@example.org", "sources": [table, site, given], "egress": egress}
    fields["publish"] = {"max_unreadable": 0.9}
    spec.write_text(json.dumps(fields), encoding="utf-8")
    out, store = tmp_path / "out", tmp_path / "store"

    words = ("build", str(spec), "--out", str(out), "--store", str(store), "--workers", "2", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr

    def command(*args: str) -> str:
        assert cli.main(args) == 0
        return "".join(capfd.readouterr())

    result = json.loads(next(line for line in said.splitlines() if line.startswith('{"ok"')))
    assert result["published"]
    assert result["samples"] is not None
    rows_kept = [row for path in out.glob("shards/*.parquet") for row in pq.read_table(path).to_pylist()]
    kept = {row["image_url"] for row in rows_kept}
    assert kept == {web.url(f"/i/{i}.jpg") for i in (0, 1, 2, 3, 4, 5, 7, 8)}
    assert ("/i/9.jpg", "Basic " + base64.b64encode(f"anna:wrong-{PASSWORD}".encode()).decode()) in asked

    said += command("status", str(out), "--json") + command("explain", str(out), f"{private}/i/1.jpg")
    said += command("report", str(out), "--baseline", str(out)) + command("verify", str(out))
    said += command("publish", str(out)) + command("plan", str(spec), "--out", str(out), "--store", str(store))
    assert PASSWORD not in said
    said_lost = re.findall(r"extract: 2 damaged parts, (\d+) bytes lost, 1 broken files; the report lists", said)
    assert len(said_lost) == 2, "build and status say so"
    report = json.loads((out / "report/report.json").read_text(encoding="utf-8"))["lost"]
    assert {name: value for name, value in report.items() if name != "files"} == {
        "lost_parts": 2,
        "lost_bytes": int(said_lost[0]),
        "lost_rows": 0,
        "lost_files": 1,
    }
    named = {Path(row["file"]).name: row["said"] for row in report["files"]}
    assert sorted(named) == ["w-cut.warc.gz", "w-no.warc.gz", "w.warc.gz"]
    assert named["w-cut.warc.gz"].startswith("w-cut.warc.gz: ")
    assert named["w-cut.warc.gz"].endswith(" cannot be read (the last record is truncated)")
    page = (out / "report/index.html").read_text(encoding="utf-8")
    assert all(f"{name}</code> (w)" in page for name in named)
    secrets = (PASSWORD.encode(), HEADER.removeprefix("Basic ").encode())
    holding = {path for path, data in texts_of(out) for secret in secrets if secret in data}
    holding |= {path for path, data in texts_of(store) for secret in secrets if secret in data}
    assert {path.name.endswith(USERINFO) for path in holding} == {True}, holding
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}

    known = json.loads((out / "build.json").read_text(encoding="utf-8"))
    digest = load(spec).digest
    assert known["spec"]["sources"][0]["path"] == f"http://{web.host}/t.csv"
    assert known["spec_digest"] == digest == opening.reopen(str(out)).spec.digest, "computed with them, as before"
    assert (
        opening.open_build(load(spec), str(out), store=str(store)).fingerprints == opening.reopen(str(out)).fingerprints
    )
    assert json.loads((out / "shards/manifest.json").read_text(encoding="utf-8"))["spec_digest"] == digest
    assert os.environ.get("WENLAN_HIDE_TOKENS", "") == ""


def test_what_fetch_writes_of_a_redirect_names_no_password(serve: Any, make_build: Any) -> None:
    web = serve()
    web.pages = {"/a.jpg": (302, {"Location": f"ftp://anna:{PASSWORD}@x.test/a.jpg"}, b"")}
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}
    build = make_build(web, sources=[source])
    with build.stage("admit").attempt("00000-of-00001") as attempt:
        from pipeline.rows.records import candidate_rows

        row = Candidate("s", "news", "p", "", web.url("/a.jpg"), (Text("alt", "云"),))
        attempt.write_table("parquet", candidate_rows([row], 0))
        attempt.commit({"seen": 1, "kept": 1, "dropped": 0})
    fetch.run_partition(build, "00000-of-00001")
    written = [data for _, data in texts_of(Path(build.out))] + [data for _, data in texts_of(Path(build.store.url))]
    assert not [data for data in written if PASSWORD.encode() in data]
