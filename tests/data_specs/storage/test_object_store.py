"""What holds on an object store, against a real S3 server over HTTP, with a proxy before it that fails on request."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_specs.storage import object_store
from data_specs.storage.credentials import credentials_in
from data_specs.storage.object_store import StorageError, storage_errors
from tests import s3_server
from tests.places import ROOT
from tests.s3_server import Remote

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "remote" in request.fixturenames:
        request.getfixturevalue("remote").proxy.heal()


def once(operation: str, name: str) -> Callable[[str, str], bool]:
    """Hits the first request of that operation on a file whose path ends so, and no other."""
    left = [1]

    def hits(asked: str, path: str) -> bool:
        hit = bool(left) and asked == operation and path.endswith(name)
        return hit and bool(left.pop())

    return hits


@pytest.mark.slow
def test_one_of_many_creates_a_file(remote: Remote) -> None:
    with ThreadPoolExecutor(8) as pool:
        for name in range(10):
            url = f"{remote.url}/create/{name}"
            won = [
                i for i, version in enumerate(pool.map(object_store.create, [url] * 8, map(_data, range(8)))) if version
            ]
            assert len(won) == 1
            assert object_store.read(url) is not None
            assert (object_store.read(url) or (b"", ""))[0] == _data(won[0])


def _data(number: int) -> bytes:
    return f"{number}".encode()


@pytest.mark.slow
def test_a_file_is_replaced_as_long_as_it_is_as_it_was_read(remote: Remote) -> None:
    url = f"{remote.url}/replaced"
    assert object_store.read(url) is None
    assert object_store.replace(url, b"0", '"0"') == "", "there is nothing to replace"
    first = object_store.create(url, b"1")
    second = object_store.replace(url, b"2", first)
    assert second
    assert object_store.replace(url, b"3", first) == ""
    assert object_store.read(url) == (b"2", second)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lost", "reset", "503", "500"])
def test_a_conditional_write_whose_answer_is_lost_has_happened(remote: Remote, kind: s3_server.FaultKind) -> None:
    """The client asks again, and is refused because of its own file."""
    url = f"{remote.url}/{kind}"
    remote.proxy.fail(kind, hits=once("PUT", kind))
    version = object_store.create(url, b"mine")
    assert version
    assert len(remote.proxy.failed()) > 0
    remote.proxy.fail(kind, hits=once("PUT", kind))
    assert object_store.replace(url, b"mine again", version)
    remote.proxy.fail(kind, hits=once("PUT", kind))
    assert object_store.replace(url, b"not any more", version) == ""


@pytest.mark.slow
def test_names_are_those_of_one_folder_and_no_other_is_listed(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("s3")
    for name in ("a/1", "a/2", "a/b/3", "a.txt"):
        fs.pipe_file(f"{remote.url}/names/{name}", b"1")
    remote.proxy.requests.clear()
    assert object_store.names(f"{remote.url}/names/a") == ["1", "2", "b"]
    assert object_store.names(f"{remote.url}/names") == ["a", "a.txt"]
    assert object_store.names(f"{remote.url}/names/a/missing") == []
    assert remote.proxy.lists() == ["data/names/a/", "data/names/", "data/names/a/missing/"]
    real = fs.call_s3
    monkeypatch.setattr(fs, "call_s3", lambda *words, **more: real(*words, **more, MaxKeys=1))
    assert object_store.names(f"{remote.url}/names/a") == ["1", "2", "b"], "page by page"


@pytest.mark.slow
def test_a_small_file_is_read_by_one_request_and_nothing_is_deleted_by_one(remote: Remote) -> None:
    url = f"{remote.url}/few/a"
    for name in (url, f"{url}b/1", f"{url}b/2"):
        assert object_store.create(name, b"1")
    remote.proxy.requests.clear()
    assert object_store.content(url) == b"1"
    with pytest.raises(FileNotFoundError):
        object_store.content(f"{url}-none")
    object_store.delete(f"{url}-none")
    asked = [(request.operation, request.path) for request in remote.proxy.requests]
    assert asked == [("GET", "data/few/a"), ("GET", "data/few/a-none"), ("LIST", "data/few/a-none")]
    object_store.delete(url)
    assert object_store.names(f"{remote.url}/few") == ["ab"], "what begins with the same letters stays"
    object_store.delete(f"{url}b")
    assert object_store.names(f"{remote.url}/few") == []


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3", "memory"])
def test_a_name_that_looks_like_a_pattern_deletes_itself_alone(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """To fsspec `build[1]` is a pattern: the folder stayed, and what was deleted was the build beside it."""
    base = f"{request.getfixturevalue('remote').url}/odd" if store == "s3" else "memory://bucket/odd"
    fs, path = fsspec.url_to_fs(base)
    names = ["build1/a", "build[1]/a", "build[1]/b/c", "w*/a", "wide/a", "q?/a", "qx/a", "中 文/a", "中 文b"]
    for name in names:
        fs.pipe_file(f"{path}/{name}", b"x")
    for folder in ("build[1]", "w*", "q?", "中 文"):
        object_store.delete(f"{base}/{folder}")
        names = [name for name in names if not name.startswith(f"{folder}/")]
        fs.invalidate_cache()
        assert sorted(str(found).partition("odd/")[2] for found in fs.find(path)) == sorted(names)
    object_store.delete(base)
    assert object_store.names(base) == []


@pytest.mark.slow
def test_a_folder_goes_page_by_page_and_a_file_that_may_not_go_is_named(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{remote.url}/pages"
    fs, path = fsspec.url_to_fs(url)
    for number in range(5):
        fs.pipe_file(f"{path}/{number}", b"x")
    real, deleted = fs.call_s3, list[int]()

    def call(operation: str, *words: Any, **more: Any) -> Any:
        if operation == "delete_objects":
            deleted.append(len(more["Delete"]["Objects"]))
        return real(operation, *words, **more, **({"MaxKeys": 2} if operation == "list_objects_v2" else {}))

    monkeypatch.setattr(fs, "call_s3", call)
    object_store.delete(url)
    assert deleted == [2, 2, 1]
    fs.pipe_file(f"{path}/kept", b"x")
    refused = {"Errors": [{"Key": "pages/kept", "Code": "AccessDenied", "Message": "Access Denied"}]}
    monkeypatch.setattr(fs, "call_s3", lambda o, **more: refused if o == "delete_objects" else call(o, **more))
    with pytest.raises(StorageError, match=r"pages/kept cannot be deleted \(Access Denied\)"):
        object_store.delete(url)


@pytest.mark.slow
def test_what_a_store_cannot_do_is_found_out_and_said_once(remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    assert object_store.is_conditional(f"{remote.url}/a/_lock")
    assert fsspec.filesystem("s3").find(f"{remote.url}/a") == []
    assert not object_store.is_conditional("memory://bucket/a/_lock")
    assert not object_store.is_conditional("memory://bucket/b/_lock")
    lines = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert lines == [
        "memory://bucket: does not support conditional writes, so locks do not work there; run one build and one "
        "publisher at a time"
    ]


@pytest.mark.slow
def test_a_store_that_ignores_conditions_is_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """nanio answers 200 to both conditions, and overwrites what is there."""
    with s3_server.remote(tmp_path, s3_server.nanio) as gateway:
        assert not object_store.is_conditional(f"{gateway.url}/a/_lock")
        assert fsspec.filesystem("s3").find(f"{gateway.url}/a") == []
    [line] = [record.getMessage() for record in caplog.records]
    assert "ignores conditional writes" in line


@pytest.mark.drill(6)
def test_an_outage_of_some_seconds_is_sat_out(remote: Remote) -> None:
    until = time.monotonic() + 4
    remote.proxy.fail("503", hits=lambda *_: time.monotonic() < until or len(remote.proxy.failed()) < 3)
    with storage_errors(f"{remote.url}/x"):
        fsspec.filesystem("s3").pipe_file(f"{remote.url}/after", b"1")
    assert object_store.read(f"{remote.url}/after") is not None
    assert len(remote.proxy.failed()) <= 60, "the pauses grow"


CASES = {
    "busy": ({"AWS_MAX_ATTEMPTS": "2"}, "503", "the store kept failing (", "); run the same command again later"),
    "gone": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
        None,
        "the store does not answer (",
        "check AWS_ENDPOINT_URL and the network, then run it again",
    ),
    "wrong key": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "access denied (", "and their permissions"),
    "no key": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": "/nonexistent"},
        None,
        "no credentials; set AWS_ACCESS_KEY_ID",
        "in the environment",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["wrong key", *(pytest.param(case, marks=pytest.mark.drill(2)) for case in ("gone", "busy", "no key"))]
)
def test_what_a_store_refuses_is_one_line_in_the_end(remote: Remote, case: str) -> None:
    changes, kind, begins, ends = CASES[case]
    if kind == "503":
        remote.proxy.fail("503")
    code = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value}
    command = [sys.executable, "-W", "ignore", "-c", code, "status", f"{remote.url}/builds/1"]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    [line] = done.stderr.splitlines()
    assert line.startswith(f"wenlan-data: {remote.url}/builds/1/build.json: cannot be reached: {begins}"), line
    assert line.endswith(ends), line
    assert done.returncode == 1


@pytest.mark.slow
def test_an_error_of_a_store_leaves_a_worker() -> None:
    error = copy.copy(StorageError("s3://bucket/x", "is busy", 16))  # as pickle makes it anew
    assert (error.filename, error.strerror, error.errno) == ("s3://bucket/x", "is busy", 16)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("s3://AKIA:abc@bucket/x", True),
        ("s3://AKIA:ab/c+d@bucket/x", True),
        ("S3A://AKIA:@bucket", True),
        ("run.mirror=s3://AKIA:abc@bucket/runs", True),
        ("sources:\n- {path: 'gs://a:b@bucket/x'}", True),
        ("simplecache::s3://a:b@bucket/x", True),
        ("abfs://a:b@host/x", True),
        ("abfs://container@account.host/x", False),
        ("s3://bucket/a@3", False),
        ("s3://bucket/2026-01-01T00:00:00/x", False),
        ("http://a:b@host/x", False),  # of a site: sent to it, and kept in one private file
        ("photos/s3:a@b", False),
        ("description: the pictures of s3://bucket: raw scans", False),  # a colon of the sentence
        ("# s3://bucket:\nname: x", False),
        ("", False),
    ],
)
@pytest.mark.slow
def test_a_key_in_a_url_is_seen(text: str, holds: bool) -> None:
    said = credentials_in(text)
    assert bool(said) == holds
    assert "AKIA" not in said
    assert "abc" not in said
