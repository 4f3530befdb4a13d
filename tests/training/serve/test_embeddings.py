"""Features over HTTP: the released API, and OpenAI's form by OpenAI's own client."""

from __future__ import annotations

import base64
import socket
from typing import Any

import httpx
import numpy as np
import pytest

from tests.training.serve.conftest import PICTURES, Server


def data_uri(content: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def error(answer: httpx.Response, status: int = 400) -> tuple[str, str | None]:
    """(code, param) of an answer that says what is wrong in OpenAI's form."""
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["message"]
    return told["code"], told["param"]


def test_the_released_api_answers_as_it_did(server: Server, features: Any) -> None:
    image = server.post("/image_query", files={"image": PICTURES[0]}).json()
    text = server.get("/text_query", params={"text": "红色的图片"}).json()
    assert list(image) == list(text) == ["emb_dim", "emb_type", "embedding"]
    assert (image["emb_dim"], image["emb_type"], text["emb_type"]) == (32, "image", "text")
    np.testing.assert_allclose(image["embedding"], features(PICTURES[0]), atol=1e-6)
    np.testing.assert_allclose(text["embedding"], features("红色的图片"), atol=1e-6)


@pytest.mark.slow
def test_openais_client_gets_the_same_features_in_both_encodings(server: Server, features: Any) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        texts = ["红色", "一张绿色的图片，远处有山", "blue"]
        by_default = client.embeddings.create(model="tiny", input=texts)  # base64 on the wire
        as_floats = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
        wanted = np.stack([features(text) for text in texts])
        for answer in (by_default, as_floats):
            assert [row.index for row in answer.data] == [0, 1, 2]
            np.testing.assert_allclose([row.embedding for row in answer.data], wanted, atol=1e-6)
            assert answer.model == "tiny"
            assert answer.usage.total_tokens == answer.usage.prompt_tokens > 3 * 2
        raw = client.embeddings.create(model="tiny", input="红色", encoding_format="base64").data[0].embedding
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(str(raw)), "<f4"), wanted[0], atol=1e-6)
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"


def test_a_url_of_a_picture_is_refused_and_never_fetched(server: Server) -> None:
    """By every route that takes pictures; a server that listens hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.5)
        for address in (
            f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg",
            "http://169.254.169.254/latest/meta-data/",
            "https://example.org/a.jpg",
            "file:///etc/passwd",
            "//example.org/a.jpg",
            f" HTTP://127.0.0.1:{listening.getsockname()[1]}/a.jpg",
            "data:image/jpeg,notbase64",
        ):
            search = {"collection": "pictures", "image": address}
            assert error(server.post("/search", json=search)) == ("url_refused", "image")
            assert error(server.post("/knn-service", json={"image": address}))[0] == "url_refused"
            assert error(server.post("/knn-service", json={"image_url": address})) == ("url_refused", "image_url")
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"input": []}, ("empty", "input")),
        ({"input": ""}, ("empty", "input")),
        ({"input": ["红", " \n"]}, ("empty", "input[1]")),
        ({"input": [1, 2]}, ("token_ids", "input[0]")),
        ({"input": [[1, 2]]}, ("token_ids", "input")),
        ({"input": [{"text": "红"}]}, ("invalid", "input.str")),
        ({"input": "红", "model": "other"}, ("model_not_found", "model")),
        ({"input": ["红"] * 2049}, ("too_many", "input")),
        ({"input": "红", "encoding_format": "hex"}, ("invalid", "encoding_format")),
    ],
)
def test_a_wrong_request_says_what_is_wrong(server: Server, body: dict[str, Any], wanted: tuple[str, str]) -> None:
    assert error(server.embeddings(**body), 404 if wanted[0] == "model_not_found" else 400) == wanted


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'"\\ud800"', b'{"input": "\\ud800"}', b"\xff", b"null"])
def test_what_is_no_json_is_refused(server: Server, body: bytes) -> None:
    for path in ("/v1/embeddings", "/search", "/knn-service", "/metadata"):
        assert error(server.post(path, content=body, headers={"content-type": "application/json"}))[0] in (
            "invalid",
            "unicode",
        )


@pytest.mark.parametrize(
    ("files", "code"),
    [({"image": b""}, "unreadable_image"), ({"image": b"GIF89a"}, "unreadable_image"), ({"other": b"x"}, "invalid")],
)
def test_an_upload_that_is_no_picture_is_refused(server: Server, files: dict[str, bytes], code: str) -> None:
    assert error(server.post("/image_query", files=files))[0] == code


def test_a_bomb_is_refused_by_its_header(server: Server) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )
    answer = server.post("/image_query", files={"image": bomb})
    assert error(answer) == ("unreadable_image", "image")
    assert "60000 x 60000 pixels" in answer.json()["error"]["message"]
    found = server.post(
        "/search", json={"collection": "pictures", "image": data_uri(bomb, "png"), "region": [0, 0, 9, 9]}
    )
    assert error(found)[0] == "unreadable_image"
