"""The process: its start, what it refuses before a route, connections that mean ill, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from data_specs.search.folder import read_index
from tests.processes import wait_until
from tests.training.serve.conftest import PATIENCE_S, PICTURES, Server, command, patient, running
from tests.training.serve.test_embeddings import error
from training import cli
from training.errors import ConfigError
from training.serve.options import Options
from training.serve.server import accept, listen

TOKEN = "a-token-of-some-length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def talk(server: Server, sent: bytes = b"") -> bytes:
    """Send bytes over a connection of one's own; all that comes back until the server closes it."""
    with connect(server) as connection:
        connection.sendall(sent)
        received = b""
        with contextlib.suppress(ConnectionResetError):  # it closes with bytes of ours unread
            while part := connection.recv(65_536):
                received += part
        return received


@pytest.fixture(scope="module")
def narrow(tiny: Path) -> Any:
    """A server that takes little."""
    with running(tiny, patient(body_mb=1, bodies_mb=2, connections=8)) as served:
        yield served


@pytest.fixture(scope="module")
def hasty(tiny: Path) -> Any:
    """A server that waits half a second for headers, in which a busy machine may not send its own."""
    with running(tiny, patient(header_s=0.5)) as served:
        yield served


def answered(server: Server) -> socket.socket:
    """A connection whose first request was answered, by a hasty server too."""
    while True:
        connection = connect(server)
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            if connection.recv(65_536).startswith(b"HTTP/1.1 200"):
                return connection
        connection.close()


@pytest.mark.slow
def test_headers_that_do_not_come_end_the_connection(hasty: Server) -> None:
    assert talk(hasty, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n") == b""
    with connect(hasty) as slow, contextlib.suppress(ConnectionError):  # it is closed as we send, or seen closed
        for drop in [b"G", b"E", b"T", b" ", b"/", b" ", b"H"] * 10:
            slow.sendall(drop)
            time.sleep(0.1)
        assert slow.recv(1) == b""
    answered(hasty).close()


def test_a_second_request_whose_headers_do_not_come_ends_too(hasty: Server) -> None:
    with answered(hasty) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /v1/mod")
        received = b""
        while part := connection.recv(65_536):  # of the first answer
            received += part
        assert b"HTTP/1.1" not in received


def test_a_body_that_does_not_come_gets_408(tiny: Path) -> None:
    with running(tiny, patient(body_s=0.5)) as server:
        received = talk(server, b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
    assert received.startswith(b"HTTP/1.1 408")
    assert b'"slow_body"' in received


def test_a_body_that_is_too_large_gets_413_with_and_without_its_length(narrow: Server) -> None:
    assert error(narrow.post("/v1/embeddings", content=b"x" * 2**20 + b"x"), 413)[0] == "body_too_large"

    def parts() -> Any:
        for _ in range(20):
            yield b"x" * 100_000

    try:
        answer = narrow.post("/v1/embeddings", content=parts())
    except httpx.TransportError:
        return  # the server closed while we were sending
    assert answer.status_code == 413


def test_headers_that_are_too_large_are_refused(narrow: Server) -> None:
    received = talk(narrow, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n")
    assert received == b"" or received.startswith(b"HTTP/1.1 4")
    assert narrow.get("/health").status_code == 200


def test_uploads_share_one_room_in_memory(tiny: Path) -> None:
    """Bodies that are on their way count, and give their room back."""
    with running(tiny, patient(body_mb=2, bodies_mb=2)) as server:
        head = b"POST /image_query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\n\r\n"
        with connect(server) as slow:
            slow.sendall(head + b"x" * 1_900_000)
            wait_until(lambda: "wenlan_body_bytes 1.9e+06" in server.get("/metrics").text, "the room is nearly full")
            answer = server.post("/v1/embeddings", content=b"x" * 500_000)
            assert error(answer, 503)[0] == "no_room"
            assert int(answer.headers["retry-after"]) >= 1
        wait_until(lambda: "wenlan_body_bytes 0.0" in server.get("/metrics").text, "and free again")
        assert server.post("/v1/embeddings", content=b"x" * 500_000).status_code == 400
        assert 'wenlan_refused_total{reason="no_room"}' in server.get("/metrics").text


def test_more_connections_than_allowed_are_refused(narrow: Server) -> None:
    taken = [connect(narrow) for _ in range(8)]
    try:
        for connection in taken:  # at work: its headers are complete
            connection.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(65_536).startswith(b"HTTP/1.1 100")
        received = talk(narrow)
        assert received.startswith(b"HTTP/1.1 503")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "connections"
    finally:
        for connection in taken:
            connection.close()
    wait_until(lambda: narrow.get("/health").status_code == 200, "connections are free again")


def test_half_requests_make_room_for_whole_ones(narrow: Server) -> None:
    """600 clients that send half a request line and stay, in a server of 8 connections with a minute for headers."""
    with contextlib.ExitStack() as held:
        for _ in range(600):
            half = held.enter_context(connect(narrow))
            with contextlib.suppress(ConnectionError):
                half.sendall(b"GET /health HTT")
        for _ in range(5):
            assert httpx.get(f"{narrow.url}/health", timeout=PATIENCE_S).status_code == 200


def test_what_is_no_http_is_refused_in_the_one_form(narrow: Server) -> None:
    for words in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", "GET /text_query?text=山 HTTP/1.1\r\n\r\n".encode()):
        received = talk(narrow, words + b"\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 400")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "no_http"


@pytest.mark.slow
def test_a_client_that_leaves_is_not_computed_for(tiny: Path) -> None:
    from tests.training.serve.test_health import Disturbed, disturbed

    made: list[Disturbed] = []
    with running(tiny, towers=lambda towers: disturbed(made, towers)) as server:
        assert server.service is not None
        model = server.service.model
        made[0].hang.clear()
        body = json.dumps({"input": "红"}).encode()
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        for _ in range(5):
            with connect(server) as leaving:
                leaving.sendall(head.encode() + body)
                wait_until(lambda: model.depth("text") == 1, "it has arrived")
            wait_until(lambda: model.depth("text") == 0, "it is given up")
        made[0].hang.set()
        assert server.embeddings(input="绿").status_code == 200


@pytest.mark.slow
def test_the_page_and_what_it_loads_are_served(server: Server) -> None:
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    tag = page.headers["etag"]
    assert server.get("/", headers={"if-none-match": tag}).status_code == 304
    for path in ("/page/none.js", "/page/..%2fapp.py", "/page/../app.py"):
        assert server.get(path).status_code == 404


@pytest.mark.slow
def test_openapi_names_every_route(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/image_query", "/text_query", "/v1/embeddings", "/v1/models", "/health", "/metrics", "/search"} <= set(
        paths
    )
    assert {"/collections", "/knn-service", "/metadata", "/indices-list"} <= set(paths)


def test_metrics_count_answers_refusals_and_batches(server: Server) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    server.embeddings(input="红")
    server.embeddings(input="")
    server.get("/nowhere/at/all")
    text = server.get("/metrics").text
    samples = {
        (s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    assert samples["wenlan_requests_total", "/v1/embeddings", "200"] >= 1
    assert samples["wenlan_refused_total", "empty"] >= 1
    assert samples["wenlan_requests_total", "404", "other"] >= 1
    assert samples["wenlan_batch_size_count", "text"] >= 1
    assert samples["wenlan_queue_depth", "text"] == 0
    assert samples["wenlan_model_up",] == 1
    assert "nowhere" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("one_minute")
def test_one_client_may_ask_so_often(tiny: Path) -> None:
    with running(tiny, patient(per_minute=5)) as server:
        answers = [server.get("/v1/models") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert server.get("/health").status_code == 200, "a probe is no client"


@pytest.fixture(scope="module")
def own_data(
    tiny: Path, index: Path, shards_of_module: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path, Path]]:
    """The command with a token, a dataset and an index; its run, and the dataset's manifest."""
    manifest, run = shards_of_module(train=(9,), val=(3,)), tmp_path_factory.mktemp("own") / "run"
    manifest.write_text(manifest.read_text().replace('"test"', '"my-pets-2026-12-01-130717-13a3960e"'))
    shutil.copytree(tiny, run / "checkpoints" / "step-00000001")
    token = run.parent / "token"
    token.write_text(TOKEN + "\n", encoding="utf-8")
    words = ["--data", str(manifest), "--index", f"中={index}", "--token-file", str(token), "--model-name", "own"]
    # --request-s: so that no slow batch makes it refuse what is behind
    with command(run, *words, "--request-s", "36000") as server:
        yield server, run, manifest


@pytest.mark.slow
def test_a_dataset_is_embedded_before_it_is_served_and_only_once(
    own_data: tuple[Server, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    server, run, manifest = own_data
    assert sorted(server.get("/indices-list", headers=BEARER).json()) == ["my-pets", "中"]
    asked = {"text": "红船", "num_images": 5, "modality": "image", "indice_name": "my-pets"}
    assert len(server.post("/knn-service", json=asked, headers=BEARER).json()) > 0
    [index] = run.glob("index-*")
    made = read_index(index)
    assert made.rows == 12
    again = ["serve", str(run), "--data", str(manifest), "--index", "other=/nowhere"]  # beside one that is not there
    assert cli.main([*again, "--engine", "torch", "--port", "0"]) == 1
    assert "/nowhere/index.json: cannot be read" in capsys.readouterr().err
    assert [*run.glob("index-*")] == [index]
    assert read_index(index) == made


@pytest.mark.slow
def test_the_command_answers_with_a_token_and_ends_after_what_is_in_flight(
    own_data: tuple[Server, Path, Path],
) -> None:
    """A real process: SIGTERM lets requests in flight be answered, refuses new ones, and the process ends with 0."""
    server, _, _ = own_data
    assert server.get("/health").json()["model"] == "own"
    assert error(server.get("/v1/models"), 401)[0] == "token"
    assert error(server.get("/v1/models", headers={"Host": "evil.example"}), 421)[0] == "wrong_host"
    pictured = server.post("/image_query", files={"image": PICTURES[0]}, headers=BEARER)
    assert pictured.json()["emb_dim"] == 32
    assert TOKEN not in Path(f"/proc/{server.process.pid}/cmdline").read_text()  # type: ignore[union-attr]
    texts = [f"第{n}句话" for n in range(500)]  # more than it computes while we look, and less than in 30 s
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(server.post("/v1/embeddings", json={"input": texts}, headers=BEARER))

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()

    def under_way() -> bool:
        """Every request has reached the server."""
        figures = server.get("/metrics", headers=BEARER).text.splitlines()
        waiting = sum(float(line.split()[-1]) for line in figures if line.startswith("wenlan_queue_depth"))
        return waiting + 500 * len(answers) >= 2000

    wait_until(under_way, "all have asked")
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGTERM)
    for thread in asking:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {len(answer.json()["data"]) for answer in answers} == {500}
    assert server.process.wait(120) == 0
    with pytest.raises(httpx.ConnectError):
        server.get("/health")


def resident_mb(process: int) -> float:
    return int(Path(f"/proc/{process}/status").read_text(encoding="utf-8").split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_malformed_requests_neither_end_the_server_nor_fill_it(tiny: Path, index: Path) -> None:
    """The quick form: 100 of them. 10,000, to a process of its own, are in tests/benchmarks/bench_serve.py."""
    attacked(tiny, index, 30, 70, generated=0)


@pytest.mark.drill(10)
@pytest.mark.timeout(280)
def test_requests_that_are_made_from_the_description_of_the_routes_do_neither(tiny: Path, index: Path) -> None:
    pytest.importorskip("schemathesis")
    attacked(tiny, index, 50, 100, generated=0.3)


def attacked(tiny: Path, index: Path, *counts: int, generated: float) -> None:
    from tests.benchmarks.hostile_clients import attack

    with running(tiny, patient(pixels=5_000_000), indexes={"pictures": index}) as server:
        first = attack(server.url, counts[0], seed=1, generated=generated)
        before = resident_mb(os.getpid())
        second = attack(server.url, counts[1], seed=2, generated=generated)
        assert first.faults + second.faults == []
        assert second.statuses[400] > 20
        assert resident_mb(os.getpid()) < before + 150
        assert server.get("/health").json()["status"] == "ok"
        assert server.embeddings(input="红").status_code == 200


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--host", "0.0.0.0"], "--host: 0.0.0.0 is open to the network; give --token-file, or --insecure"),
        (["--token-file", "SHORT"], "a token is one line of at least 16 ASCII characters"),
        (["--token-file", "BINARY"], "a token is one line of at least 16 ASCII characters"),
        (["--batch", "0"], "--batch: 0 is out of range; it must be above 0"),
        (["--per-minute", "0", "--port", "99999"], "--per-minute: 0 is out of range; it must be above 0"),
        (["--request-s", "nan", "--port", "99999"], "--request-s: nan is out of range; it must be above 0"),
        (["--index", "x=/nowhere"], "/nowhere/index.json: cannot be read"),
        (["--port", "99999"], "--port"),
    ],
)
def test_a_wrong_command_is_one_line(
    tiny: Path, words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").write_text("short", encoding="utf-8")
    (tmp_path / "binary").write_bytes(bytes(range(128, 160)))
    words = [str(tmp_path / word.lower()) if word in ("SHORT", "BINARY") else word for word in words]
    assert cli.main(["serve", str(tiny), "--engine", "torch", *words]) in (1, 2)
    [told] = [told for told in capsys.readouterr().err.splitlines() if told.startswith("wenlan-train:")]
    assert line in told


def test_a_port_that_is_taken_is_a_line_with_what_to_do_whenever_it_shows() -> None:
    """Another server may listen before this one binds, or between that and the first client."""
    first, second = listen("127.0.0.1", 0), None
    try:
        port = first.getsockname()[1]
        second = listen("127.0.0.1", port)  # nobody listens yet
        accept(first, Options())
        told = rf"--port: 127\.0\.0\.1:{port}: Address already in use; use --port 0 for a free one"
        with pytest.raises(ConfigError, match=told):
            accept(second, Options())
        with pytest.raises(ConfigError, match=told):
            listen("127.0.0.1", port)
    finally:
        for bound in (first, second):
            if bound is not None:
                bound.close()
