"""The studio's HTTP interface: what it answers, and what strangers may try."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from data_specs.shard import ContractError
from data_specs.web import PAGE_KIT
from pipeline import cli
from pipeline.errors import SourceError
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.studio import server
from pipeline.studio.server import app

Make = Callable[..., Build]
Connect = Callable[..., Any]


def ended(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    """A command's last state."""
    until = time.monotonic() + 120
    while job["code"] is None:
        assert time.monotonic() < until, job
        time.sleep(0.05)
        job = client.get("/api/job", params={"number": job["number"]}).json()
    return job


@pytest.mark.slow
def test_a_takedown_is_shown_confirmed_once_and_gone(own: Make, client_of: Connect) -> None:
    build = own()
    client = client_of(build.out)
    about = client.get("/api/about").json()
    row = client.get("/api/rows", params={"fate": "kept"}).json()["rows"][5]
    answer = client.post("/api/takedown", json={"ids": [row["id"]], "what": "picture", "exact": True})
    job = ended(client, answer.json())
    assert job["line"] == f"wenlan-data forget --store {build.store.url} {build.out} --item={row['key']} --exact"
    assert job["code"] == 0, job
    assert job["answer"]["dry_run"] is True
    assert [len(own["samples"]) for own in job["answer"]["builds"]] == [1]
    assert client.get("/api/rows", params={"fate": "kept"}).json()["rows"][5] == row, "a dry run changes nothing"
    assert client.post("/api/confirm", json={"confirmation": "guessed"}).status_code == 400
    ran = ended(client, client.post("/api/confirm", json={"confirmation": job["confirmation"]}).json())
    assert ran["code"] == 0, ran
    assert ran["line"] == job["line"]
    assert client.post("/api/confirm", json={"confirmation": job["confirmation"]}).status_code == 400, "once"
    after = client.get("/api/about").json()
    assert after["g"] != about["g"]
    assert client.get("/api/thumb", params={"pos": row["pos"], "g": about["g"]}).status_code == 409
    assert client.get("/api/facets").json()["facets"]["fate"][0]["count"] == 29
    found = client.get("/api/why", params={"named": row["url"]}).json()
    assert [own["url"] for own in found["rows"]] in ([], [""]), "its address is in no answer any more"
    assert client.get("/api/rows", params={"q": row["url"]}).json()["rows"] == []


@pytest.mark.slow
@pytest.mark.drill(3)
def test_a_takedown_by_somebody_else_is_seen_by_a_running_studio(
    own: Make, client_of: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOOK_S", 0.0)
    build = own()
    client = client_of(build.out)
    g = client.get("/api/about").json()["g"]
    row = client.get("/api/rows", params={"fate": "kept"}).json()["rows"][5]
    assert cli.main(["forget", "--store", build.store.url, build.out, "--item", row["key"]]) == 0
    assert client.get("/api/thumb", params={"pos": row["pos"], "g": g}).status_code == 409
    assert client.get("/api/rows", params={"q": row["url"]}).json()["rows"] == []


@pytest.mark.slow
def test_a_takedown_needs_candidates_that_there_are(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    for asked in ({"ids": []}, {"ids": ["f" * 64]}, {"ids": ["--help"]}, {"ids": ["a"] * 201}, {"ids": [], "more": 1}):
        assert client.post("/api/takedown", json=asked).status_code == 400, asked
    at_table = client.get("/api/rows", params={"source": "table", "fate": "kept"}).json()["rows"][0]
    answer = client.post("/api/takedown", json={"ids": [at_table["id"]], "what": "page"})
    assert answer.status_code == 400
    assert "not on a page" in answer.json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.drill(6)
def test_a_build_is_refused_approved_and_published(weeks: Any, client_of: Connect) -> None:
    build = replace(weeks, until="report").build("2026-01-01", range(12), publish={"approve": "manual"})
    build.store.check()
    client = client_of(build.out)
    [own] = client.get("/api/about").json()["builds"]
    assert (own["manual"], own["verdict"], own["word"]) == (True, "waiting", {})
    assert [gate["holds"] for gate in own["gates"]]
    said = {"build": build.build_id, "name": "李静", "because": "太多图标"}
    assert client.post("/api/word", json={**said, "verdict": "refused"}).json()["verdict"] == "refused"
    assert build_json.read(build.folder)["approvals"][0]["because"] == "太多图标"
    job = ended(client, client.post("/api/publish", json={"build": build.build_id}).json())
    assert job["code"] == 1
    assert "refused by 李静" in "\n".join(job["lines"])
    assert client.post("/api/word", json={**said, "verdict": "approved", "name": " "}).status_code == 400
    client.post("/api/word", json={**said, "verdict": "approved"})
    job = ended(client, client.post("/api/publish", json={"build": build.build_id}).json())
    assert job["code"] == 0, job
    [own] = client.get("/api/about").json()["builds"]
    assert own["verdict"] == "published"
    assert client.post("/api/word", json={**said, "build": "another"}).json() is not None
    assert client.post("/api/word", json={**said, "build": "another", "verdict": "approved"}).status_code == 400


def test_a_question_that_is_none_is_one_line(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    for path in (
        "rows?offset=-1", "rows?limit=100000", "rows?sort=pos;drop", "rows?leader=x", "item?pos=1", "item?pos=x&g=y",
        "thumb?pos=1&g=x&side=0", "why", "why?named=", f"rows?q={'长' * 2_001}", "similar?text=x", "job?number=99",
        f"why?named={'x' * 256}", "why?named=x%00y",
    ):  # fmt: skip
        answer = client.get(f"/api/{path}")
        assert answer.status_code in (400, 409), path
        assert "Traceback" not in answer.text
        assert answer.json()["error"]["message"]
    assert client.get("/api/nothing").status_code == 404


# threats


@pytest.fixture
def stranger(built: Build, studio_of: Connect) -> TestClient:
    """A client without the token."""
    return TestClient(app(studio_of(built.out), "secret"), base_url="http://127.0.0.1:8765", follow_redirects=False)


ASKS = (
    "about",
    "facets",
    "rows",
    "item?pos=0",
    "saw?pos=0",
    "why?named=x",
    "where?id=x",
    "similar",
    "thumb?pos=0",
    "job?number=1",
)
EVERY = [("GET", "/report"), *(("GET", f"/api/{path}") for path in ASKS)]
CHANGES = [
    ("POST", "/api/takedown"), ("POST", "/api/confirm"), ("POST", "/api/word"), ("POST", "/api/publish"),
    ("POST", "/api/reload"),
]  # fmt: skip


def test_nothing_is_answered_without_the_token(stranger: TestClient) -> None:
    for method, path in EVERY + CHANGES:
        assert stranger.request(method, path).status_code == 401, path
    wrong = stranger.get("/report?token=wrong")
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    right = stranger.get("/?token=secret")
    assert (right.status_code, right.headers["location"]) == (303, "/")
    assert "HttpOnly" in right.headers["set-cookie"]
    assert "SameSite=Strict" in right.headers["set-cookie"]


def test_a_name_that_was_pointed_at_this_machine_is_refused(built: Build, client_of: Connect) -> None:
    """DNS rebinding: the page of evil.example asks 127.0.0.1 by its own name."""
    client = client_of(built.out)
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""):
        for path in ("/report", "/api/about", "/api/thumb?pos=0&g=x"):
            assert client.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.slow
def test_a_page_of_another_site_can_change_nothing(own: Make, client_of: Connect) -> None:
    """CSRF: a form or a script in another tab, with the cookie that the browser would send."""
    build = own()
    client = client_of(build.out)
    body = {"build": build.build_id, "verdict": "approved", "name": "x", "because": "y"}
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for method, path in CHANGES:
            assert client.request(method, path, headers=headers, json=body).status_code == 403, (path, headers)
    form = client.post(
        "/api/publish", content=json.dumps({"build": build.build_id}), headers={"Content-Type": "text/plain"}
    )
    assert form.status_code == 400, "a form can send no JSON, and what it can send is not read as such"
    assert client.get("/api/publish").status_code == 405
    assert client.get("/api/about").json()["job"] is None
    assert (
        "access-control-allow-origin"
        not in client.get("/api/about", headers={"Origin": "https://evil.example"}).headers
    )


def test_no_path_leads_out_of_the_page(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    for name in (
        "../server.py", "..%2fserver.py", "%2e%2e/%2e%2e/records.py", "....//server.py", "/etc/passwd",
        "%2fetc%2fpasswd", "main.js/../../server.py", "main.js%00", "__init__.py",
    ):  # fmt: skip
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 404, name
        assert "import" not in answer.text
    assert client.get("/static/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
    folders = (PAGE_KIT, Path(server.__file__).parent / "page")
    assert set(server._files()) == {path.name for folder in folders for path in folder.iterdir()}


def test_the_page_runs_its_own_scripts_alone(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    for path in ("/", "/api/about", "/static/main.js", "/none"):
        policy = client.get(path).headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    html = client.get("/").text
    assert "<script>" not in html
    assert "style=" not in html
    assert " on" not in html.replace(" only", "").partition("<body>")[2].replace(" of this", "")
    report = client.get("/report")
    assert "connect-src" not in report.headers["content-security-policy"]
    assert report.headers["content-security-policy"].startswith("default-src 'none'"), "it can ask nobody for anything"
    for path in (Path(server.__file__).parent / "page").glob("*.js"):
        assert "innerHTML" not in path.read_text("utf-8")
        assert "insertAdjacent" not in path.read_text("utf-8")


@pytest.mark.slow
def test_a_row_of_other_files_is_never_taken_for_this_one(own: Make, client_of: Connect) -> None:
    """A place is a number; after a takedown another picture may have it."""
    build = own()
    client = client_of(build.out)
    g = client.get("/api/about").json()["g"]
    stage = build.stage("filter")
    stage.delete_record(stage.partitions()[0])
    assert client.post("/api/reload").json()["g"] != g
    for path in ("item", "saw", "thumb", "similar"):
        answer = client.get(f"/api/{path}", params={"pos": 0, "g": g})
        assert answer.status_code in (409, 400)
    assert client.get("/api/rows", params={"g": g}).json()["error"]["code"] == "changed"


def test_what_cannot_be_opened_leaves_nothing_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/index.json").write_text("{}")
    for options, error in (({"index": "no/index"}, SourceError), ({"index": f"{tmp_path}/damaged"}, ContractError)):
        with pytest.raises(error):
            server.Studio("", STAGES, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
