"""`wenlan-data plan`: everything that is wrong with an input is known before a build, and nothing is written."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_specs.build import load
from pipeline import cli
from tests.drawn import picture
from tests.places import SPECS

PAGE = "<html><body><p>正文</p><img src=/1.jpg></body></html>".encode()
TABLE = {"kind": "url_table", "name": "t", "source_kind": "image_search", "path": "t.csv"}
TABLE["columns"] = {"image_url": "url", "texts": {"alt": "zh"}}  # type: ignore[assignment]


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """plan(*sources, words=(), **spec): (exit code, the object of --json, stderr)."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def run(*sources: dict[str, Any], words: tuple[str, ...] = (), **spec: Any) -> tuple[int, dict[str, Any], str]:
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({"name": "p", "contact": "a@b.example", "sources": list(sources), **spec}))
        code = cli.main(["plan", str(path), "--json", *words])
        printed = capsys.readouterr()
        assert list((tmp_path / "elsewhere").iterdir()) == [], "a plan writes nothing"
        return code, json.loads(printed.out.splitlines()[-1]), printed.err

    return run


def site(*start: str, **options: Any) -> dict[str, Any]:
    return {"kind": "site", "name": "s", "source_kind": "news", "start": list(start), **options}


@pytest.mark.slow
def test_what_the_input_holds_and_what_a_build_would_do(plan, serve, tmp_path):
    web = serve({"/": PAGE, "/7.jpg": (200, {"Content-Type": "image/jpeg"}, picture(7))})
    (tmp_path / "t.csv").write_text("url,zh\n" + f"{web.url('/7.jpg')},一张照片\n" * 30 + "\n,\n", "utf-8")
    code, said, shown = plan(site(web.url(), max_pages=600), TABLE, egress={"allow": [web.host], "delay_s": 0.5})
    assert code == 0
    first, second = said["sources"]
    assert (first["kind"], first["pages"], first["tried"][0]["ok"], first["tried"][0]["images"]) == (
        "site",
        600,
        True,
        1,
    )
    assert (second["candidates"]["number"], second["hosts"]) == (30, [[web.host, 1.0]])
    assert second["tried"][0]["said"] == f"{len(picture(7)):,} bytes, image/jpeg"
    assert set(said["stages"]) >= {"crawl", "shard"}
    assert {stage["state"] for stage in said["stages"].values()} == {"to run"}
    assert said["forecast"]["crawl_seconds"] == 300.0
    assert (said["forecast"]["candidates"], said["forecast"]["pages"]) == (None, 600)
    assert "at least 5 min to crawl" in shown
    assert "at most 600 pages\n" in shown, "of max_pages"
    assert "warning" not in shown
    assert "run a small one to estimate" in shown


@pytest.mark.slow
def test_the_slowest_host_is_not_the_busiest_one_where_that_allows_more(plan, tmp_path):
    urls = [*("http://img.fast.test/a.jpg",) * 300, *("http://slow.test/a.jpg",) * 200]
    (tmp_path / "t.csv").write_text(
        "url,zh\n" + "".join(f"{url}?{n},一张照片\n" for n, url in enumerate(urls)), "utf-8"
    )
    egress = {"delay_s": 30, "hosts": {"fast.test": {"delay_s": 0.01}}}
    code, said, shown = plan(TABLE, words=("--offline",), egress=egress)
    assert (code, said["forecast"]["slowest_host"], said["forecast"]["fetch_seconds"]) == (0, "slow.test", 6000.0)
    assert "slowest host slow.test" in shown
    assert "if the owner of slow.test allows it, or fewer of its images by `admit.max_share_per_host`" in shown
    _, said, _ = plan(TABLE, words=("--offline",), egress=egress, admit={"max_share_per_host": 0.1})
    assert (said["forecast"]["slowest_host"], said["forecast"]["fetch_seconds"]) == ("slow.test", 1500.0)


def test_offline_asks_nobody(plan, serve, tmp_path):
    web = serve({"/": PAGE})
    (tmp_path / "t.csv").write_text(f"url,zh\n{web.url('/7.jpg')},一张照片\n", "utf-8")
    code, said, _ = plan(site(web.url()), TABLE, egress={"allow": [web.host]}, words=("--offline",))
    assert (code, [source["tried"] for source in said["sources"]]) == (0, [[], []])
    assert web.asked == []


def test_thresholds_of_a_source_kind_and_a_new_store_are_said(plan, tmp_path):
    (tmp_path / "t.csv").write_text("url,zh\nhttps://a.example/7.jpg,一张照片\n", "utf-8")
    own = {**TABLE, "name": "own", "source_kind": "library", "filters": {"text_length": {"min_chars": 3}}}
    code, said, shown = plan(TABLE, own, words=("--offline", "--store", str(tmp_path / "nosuch")))
    assert code == 0
    assert said["sources"][0]["thresholds"] == {}
    assert said["sources"][1]["thresholds"]["image_sides"] == {"min_side": 1}
    assert said["sources"][1]["thresholds"]["text_length"] == {"min_chars": 3, "max_chars": 1000}
    assert "for source_kind library: text_length min_chars: 3, max_chars: 1000" in shown
    assert f"STORE {tmp_path}/nosuch does not exist yet" in shown
    assert "no estimate: no published build in STORE (--store);" in shown


def test_missing_inputs_are_a_line_each_and_exit_2(plan, tmp_path):
    code, said, shown = plan(
        {**TABLE, "path": "no.csv"}, {"kind": "folder", "name": "f", "source_kind": "library", "path": "x"}
    )
    assert (code, said["code"]) == (2, 2)
    assert shown.splitlines() == [
        f"wenlan-data: {tmp_path}/s.yaml:4: {tmp_path}/no.csv: source t: no such file",
        f"wenlan-data: {tmp_path}/s.yaml:12: {tmp_path}/x: no such folder",
    ]


def test_a_site_that_the_guard_refuses_is_exit_2_with_the_key_to_set(plan, serve):
    web = serve({"/": PAGE})
    code, said, _ = plan(site(web.url()))
    assert code == 2
    assert said["error"].endswith(f"is not a public address; to allow it, set egress.allow: ['{web.host}']")
    assert "sources[0].start" in said["error"]


def test_images_that_cannot_be_had_are_shown_and_no_fault_of_the_spec(plan, serve, tmp_path):
    web = serve({})
    (tmp_path / "t.csv").write_text(f"url,zh\n{web.url('/7.jpg')},[red]照片\n", "utf-8")
    code, said, shown = plan(TABLE, egress={"allow": [web.host], "delay_s": 0})
    assert (code, said["sources"][0]["tried"][0]["ok"]) == (0, False)
    assert "status 404" in shown
    assert "about 1 candidates\n" in shown
    assert "warning: all URLs tried have failed (1)" in shown


@pytest.mark.slow
def test_a_finished_crawl_is_not_asked_for_again(plan, serve, make_build, tmp_path):
    web = serve({"/": PAGE})
    spec = {"egress": {"allow": [web.host], "delay_s": 0}, "publish": {"min_samples": 0}}
    path = tmp_path / "s.yaml"
    assert plan(site(web.url()), **spec)[0] == 0
    from pipeline import opening, run

    build = opening.open_build(load(path), str(tmp_path / "out"))
    list(run.run(build, until="crawl", here=True))
    web.asked.clear()
    code, said, _ = plan(site(web.url()), **spec, words=("--out", str(tmp_path / "out"), "--snapshot", build.snapshot))
    assert (code, said["stages"]["crawl"]["state"], web.asked) == (0, "done", [])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_every_shipped_spec_plans_and_says_what_it_misses(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = cli.main(["plan", str(path), "--json", "--offline"])
    plan = json.loads(capsys.readouterr().out)
    if code == 2:
        own_or_the_demos = rf"{re.escape(str(path))}:[0-9]+: {re.escape(str(path.parent.parent))}"
        assert re.match(own_or_the_demos, plan["error"])
    else:
        assert code == 0
        assert {stage["state"] for stage in plan["stages"].values()} == {"to run"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_all_faults_of_a_spec_are_told_at_once(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        "name: a\ncontact: a@b.example\n"
        "sources: [{kind: sight, name: x, source_kind: news}]\n"
        "filters: [{name: text_length, min_char: 2}, {name: image_side}]\n"
    )
    assert cli.main(["plan", str(tmp_path / "s.yaml")]) == 2
    said = [
        "3: sources[0]: 'sight' is not one of the sources; did you mean site?",
        "4: filters[0].min_char: unknown option; did you mean min_chars?",
        "4: filters[1]: 'image_side' is not one of the filters; did you mean image_sides?",
    ]
    assert [line.removeprefix(f"wenlan-data: {tmp_path}/s.yaml:") for line in lines(capsys)] == said
    with (tmp_path / "s.yaml").open("a") as spec:
        spec.write("colour: red\nregions: {detectors: [{name: gird}]}\n")
    assert cli.main(["plan", str(tmp_path / "s.yaml")]) == 2
    unknown, *others = [line.removeprefix(f"wenlan-data: {tmp_path}/s.yaml:") for line in lines(capsys)]
    assert unknown.startswith("5: colour: unknown option")
    gird = "6: regions.detectors[0]: 'gird' is not one of the detectors; did you mean grid?"
    assert others == [*said, gird], "an unknown key hides no other fault"


@pytest.mark.slow
def test_a_source_behind_a_password_is_read_and_its_password_is_never_shown(tmp_path, capsys):
    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.headers.get("Authorization") == f"Basic {base64.b64encode(b'user:pa55').decode()}"
            self.send_response(200 if is_known and self.path == "/t.tsv" else 401)
            self.send_header("Content-Length", str(len(content) if self.command == "GET" else 0))
            self.end_headers()
            self.wfile.write(content if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    content = b"image_url\ttext\nhttp://example.org/a.jpg\t\xe5\xb1\xb1\n"
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        codes = []
        for password in ("pa55", "wr0ng"):
            path = f"http://user:{password}@127.0.0.1:{server.server_port}/t.tsv"
            table = {**TABLE, "source_kind": "library", "columns": {"texts": {"caption": "text"}}, "path": path}
            values = {"name": "trial", "contact": "owner@example.org", "sources": [table]}
            (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
            words = [
                "plan",
                str(tmp_path / "s.yaml"),
                "--out",
                str(tmp_path / f"out{len(codes)}"),
                "--json",
                "--offline",
            ]
            codes.append(cli.main(words))
            printed = capsys.readouterr()
            assert ("cannot be accessed" in printed.out) == (password == "wr0ng"), printed
            assert password not in printed.out + printed.err
        server.shutdown()
    assert codes == [0, 2]
