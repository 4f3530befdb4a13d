"""Pairs for the pass `curate.score`: many whose features are cached, and a few for two towers of a real size."""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from captions import captions
from PIL import Image

from data_specs.shard import nfc
from pipeline.curate import _towers
from pipeline.model_runner import BATCH, TEXT_BATCH
from pipeline.pictures.decode import decode
from pipeline.records import DEDUP_SCHEMA, order_key, sha256_hex
from pipeline.store.build import Build
from pipeline.store.commits import ROWS_DIGEST, rows_digest
from tests import fetched, towered
from tests.drawn import blobs, encoded
from tests.stages import run_stage

WIDTH = 512
"""D of the cached features."""

PER_PARTITION = 10_000
"""As `fetch.images_per_partition` has it by default."""


def cached_rate(pairs: int) -> float:
    """Pairs a second of the processor's time through the stage, with every feature in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        parts = pairs // PER_PARTITION
        build = fetched.make(Path(folder), [], parts=parts, pair_score=towered.written(Path(folder) / "towers"))
        image, text = _towers.models_of(build.spec)
        rng = np.random.default_rng(0)
        words, rows = captions(pairs, seed=3), list[dict[str, Any]]()
        for number, word in enumerate(words):
            fetch_id = hashlib.sha256(str(number).encode()).hexdigest()
            rows.append(_row(fetch_id, word, order_key(fetch_id, 0)))
        rows.sort(key=lambda row: row["order_key"])
        table = pa.Table.from_pylist(rows, schema=DEDUP_SCHEMA)
        with build.stage("dedup").attempt(f"00000-{parts - 1:05d}-of-{parts:05d}") as attempt:
            attempt.write_table("parquet", table, 1_000)
            attempt.commit(
                {"train": pairs, "dev": 0, "val": 0}, {ROWS_DIGEST: rows_digest(table["candidate_id"].to_pylist())}
            )
        texts = [sha256_hex(nfc(row["texts"][0]["text"])) for row in rows]
        for model, names in ((image, [row["sha256"] for row in rows]), (text, texts)):
            for low in range(0, pairs, 1_000):
                some = dict.fromkeys(names[low : low + 1_000])
                features = rng.normal(size=(len(some), WIDTH))
                unit = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
                model.cache(build.store).put(model.rows(dict(zip(some, unit, strict=True))))
        start = time.process_time()
        run_stage(build, "curate.score")
        seconds = time.process_time() - start
        records = list(build.stage("curate.score").records())
        assert sum(record.counts["scored"] for record in records) == pairs
        assert sum(record.counts["computed"] for record in records) == 0
    return pairs / seconds


def _row(fetch_id: str, text: str, key: str) -> dict[str, Any]:
    """A pair as dedup leaves it, with the columns that weigh something filled."""
    return {
        **dict.fromkeys(DEDUP_SCHEMA.names),
        "order_key": key, "candidate_id": sha256_hex(fetch_id), "fetch_id": fetch_id, "sha256": fetch_id,
        "source": "web", "page_url": f"https://www.example.cn/{fetch_id[:12]}.html", "split": "train",
        "image_url": f"https://img.example.cn/{fetch_id[:24]}.jpg", "image_leader": fetch_id,
        "texts": [{"kind": "alt", "text": text, "original": ""}], "text_leaders": [sha256_hex(text)],
        "signature": bytes(120), "phash": [1, 2, 3, 4], "width": 512, "height": 384,
    }  # fmt: skip


def tower_ratio(small: bool) -> float:
    """Rate of the stage over that of the towers alone."""
    count = 32
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        section = _exported(folder / "towers", small)
        images = _pairs(count)
        builds = [_until_dedup(folder / str(number), images, section) for number in range(5)]  # one of them to warm up
        image, text = (model.load() for model in _towers.models_of(builds[0].spec))
        pixels = image.prepare([decode(own.data, reduce_to=448).pixels for own in images])
        ids = _ids(text, [str(own.texts[0]) for own in images])
        left = iter(builds)

        def ours() -> None:
            build = next(left)
            run_stage(build, "curate.score")
            assert sum(record.counts["computed"] for record in build.stage("curate.score").records()) == 2 * count

        def towers() -> None:
            for low in range(0, count, BATCH):
                image._session.run(None, {"image": pixels[low : low + BATCH]})
            for low in range(0, count, min(TEXT_BATCH, 64)):
                text._session.run(None, {"text": ids[low : low + 64]})

        mine, theirs = _interleaved(ours, towers, 3)
        print(f"stage {count / mine:.2f} pairs/s, towers alone {count / theirs:.2f} pairs/s", file=sys.stderr)
    return theirs / mine


def score_rate(gpus: float, count: int, small: bool) -> float:
    """Pairs a second through the stage, with no feature in the cache; a second time, when sessions are open."""
    with tempfile.TemporaryDirectory() as scratch:
        section = _exported(Path(scratch) / "towers", small) | {"num_gpus": gpus}
        images = _pairs(count)
        for turn in range(2):
            build = _until_dedup(Path(scratch) / str(turn), images, section)
            start = time.perf_counter()
            run_stage(build, "curate.score")
            seconds = time.perf_counter() - start
        scored = sum(record.counts["scored"] for record in build.stage("curate.score").records())
    assert scored, "no pair was scored"
    return scored / seconds


def _pairs(count: int) -> list[fetched.Got]:
    """Different pictures of 512 x 384, each with a text of its own."""
    texts = [f"{text}第{number}" for number, text in enumerate(captions(count, seed=5))]
    pictures = (encoded(Image.fromarray(blobs(number, (512, 384)))) for number in range(count))
    return [fetched.Got(f"http://a.test/{n}.jpg", *own) for n, own in enumerate(zip(pictures, zip(texts), strict=True))]


def _interleaved(ours: Callable[[], None], peer: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median seconds of the processor of each side over `rounds` turns, after one that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for side, work in enumerate((ours, peer)):
            start = time.process_time()
            work()
            if turn:
                seconds[side].append(time.process_time() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _ids(text: Any, texts: list[str]) -> npt.NDArray[np.int64]:
    ids = np.zeros((len(texts), 52), np.int64)
    for row, own in enumerate(texts):
        tokens = text._tokenizer.encode(own, 52)
        ids[row, : len(tokens)] = tokens
    return ids


def _until_dedup(folder: Path, images: list[fetched.Got], section: dict[str, Any]) -> Build:
    """A build with a STORE of its own, whose pairs wait for their scores."""
    build = fetched.make(folder, images, pair_score=section)
    run_stage(build, "measure", "filter", "dedup")
    return build


def _exported(folder: Path, small: bool) -> dict[str, Any]:
    """Two towers of Chinese-CLIP's shape with random weights, as its own exporter writes them."""
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    folder.mkdir()
    base = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6} if small else {}
    vocabulary = [*towered.VOCABULARY, *sorted(set("".join(captions(2_000, seed=5))) - set(towered.VOCABULARY))]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary if token.strip()), "utf-8")
    text = {**base, "num_hidden_layers": 12, "vocab_size": 21_128, "pad_token_id": 0}
    vision = {**base, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16}
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).eval()

    class Half(torch.nn.Module):
        def __init__(self, of_images: bool) -> None:
            super().__init__()
            self.model, self.of_images = model, of_images

        def forward(self, given: torch.Tensor) -> Any:
            if self.of_images:
                features = self.model.get_image_features(pixel_values=given)
            else:
                features = self.model.get_text_features(input_ids=given, attention_mask=given.ne(0).long())
            return features if hasattr(features, "norm") else features.pooler_output

    padded = torch.tensor([[2, 5, 3, *[0] * 49]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about this exporter, which is the one that cn_clip has
        for of_images, name, example in ((True, "image", torch.zeros(1, 3, 224, 224)), (False, "text", padded)):
            options: dict[str, Any] = {"input_names": [name], "dynamic_axes": {name: {0: "batch"}}, "dynamo": False}
            torch.onnx.export(Half(of_images).eval(), (example,), folder / f"{name}.onnx", opset_version=17, **options)
    return {name: str(folder / file) for name, file in towered.FILES.items()}
