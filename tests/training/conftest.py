"""Small shard folders, written as the contract says by the standard library's tarfile; random batches, tiny models."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.shard import (
    REGION_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    FileDigest,
    Sample,
    ShardFiles,
    Text,
    content_digest,
    encode_sample,
)

if TYPE_CHECKING:
    import torch

    from training.moco import BriVL
    from training.records import Batch

BERT = (
    "text.encoder=bert_text",
    "text.backbone_layers=3",
    "text.frozen_layers=2",
    "text.backbone_heads=4",
    "text.backbone_ffn=48",
    "text.vocab_size=60",
)
"""A small BERT in place of recipe `tiny`'s text tower."""

_WORDS = "红橙黄绿青蓝紫黑白灰大小高低远近山水云雨风雪花鸟鱼虫猫狗牛羊马车船桥"


def picture(number: int, width: int = 40, height: int = 30) -> bytes:
    """A JPEG whose colours tell its number."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(data, "JPEG", quality=92)
    return data.getvalue()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(number: int, split: str) -> Sample:
    rng = np.random.default_rng(number)
    words = "".join(rng.choice(list(_WORDS), 4))
    return Sample(
        candidate_id=sha(f"{split}{number}"),
        source="test",
        source_kind="encyclopedia",
        page_url=f"http://127.0.0.1/{number}.html",
        image_url=f"http://127.0.0.1/{number}.jpg",
        sha256=hashlib.sha256(picture(number)).hexdigest(),
        width=40,
        height=30,
        texts=(Text("alt", f"{words}图"), Text("surrounding", f"这里有{words}")),
    )


def file_digest(root: Path, path: Path) -> FileDigest:
    data = path.read_bytes()
    return FileDigest(path=str(path.relative_to(root)), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_shard(
    root: Path, split: str, number: int, samples: Sequence[Sample], images: Sequence[bytes], detector: str | None
) -> ShardFiles:
    name = f"{split}-{number:06d}"
    rows: list[dict[str, Any]] = []
    with tarfile.open(root / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for item, image in zip(samples, images, strict=True):
            row: dict[str, Any] = dict.fromkeys(SHARD_SCHEMA.names)
            for member, data in encode_sample(item, image):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                kind = {"jpg": "image", "txt": "text", "json": "json"}[member.rpartition(".")[2]]
                row[f"{kind}_offset"] = tar.offset + 512
                row[f"{kind}_size"] = len(data)
                tar.addfile(info, io.BytesIO(data))
            row |= {n: getattr(item, n) for n in ("key", "candidate_id", "source", "source_kind", "page_url")}
            row |= {n: getattr(item, n) for n in ("image_url", "sha256", "width", "height")}
            row["texts"] = [{"kind": t.kind, "text": t.text, "text_leader": sha(t.text)} for t in item.texts]
            row |= {"image_leader": item.sha256, "split": split, "format": "jpeg", "fetched_at": "2026-01-01T00:00:00Z"}
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), root / f"{name}.parquet")
    regions = {}
    if detector is not None:
        folder = root / "regions" / detector
        folder.mkdir(parents=True, exist_ok=True)
        boxes = [
            {
                "key": s.key,
                "sha256": s.sha256,
                "boxes": [0, 0, 20, 15, 10, 6, 40, 30],
                "scores": [0.9, 0.5],
                "labels": [1, 2],
            }
            for s in samples
        ]
        pq.write_table(pa.Table.from_pylist(boxes, schema=REGION_SCHEMA), folder / f"{name}.parquet")
        regions[detector] = file_digest(root, folder / f"{name}.parquet")
    return ShardFiles(
        split=split,  # type: ignore[arg-type]
        samples=len(samples),
        tar=file_digest(root, root / f"{name}.tar"),
        parquet=file_digest(root, root / f"{name}.parquet"),
        regions=regions,
    )


def write_manifest(root: Path, shards: Sequence[ShardFiles], detectors: Sequence[str] = (), **changes: Any) -> Path:
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "build_id": "test",
        "spec_digest": "0" * 64,
        "content_digest": content_digest(shards),
        "created_at": "2026-01-01T00:00:00Z",
        "samples": {s: sum(f.samples for f in shards if f.split == s) for s in ("train", "dev", "val")},
        "detectors": list(detectors),
        "shards": [shard.model_dump() for shard in shards],
        **changes,
    }
    path = root / "manifest.json"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return path


MakeShards = Callable[..., Path]


def write_shards(
    folder: Path,
    train: Sequence[int] = (7, 5, 9),
    dev: Sequence[int] = (),
    val: Sequence[int] = (),
    detector: str | None = None,
    damage: dict[int, bytes] | None = None,
    name: str = "shards",
    first: int = 0,
) -> Path:
    """Shards of these sizes below a folder; `damage`: bytes instead of a number's picture; `first`: the first number.

    Returns the manifest.
    """
    root = folder / name
    root.mkdir()
    shards, number = [], first
    for split, sizes in (("train", train), ("dev", dev), ("val", val)):
        for index, size in enumerate(sizes):
            numbers = range(number, number + size)
            number += size
            images = [(damage or {}).get(n, picture(n)) for n in numbers]
            shards.append(write_shard(root, split, index, [sample(n, split) for n in numbers], images, detector))
    return write_manifest(root, shards, [detector] if detector else [])


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """`write_shards` below the test's folder."""
    return functools.partial(write_shards, tmp_path)


@pytest.fixture(scope="module")
def shards_of_module(tmp_path_factory: pytest.TempPathFactory) -> MakeShards:
    """`write_shards` below a folder of the test module, for what its tests only read."""
    return functools.partial(write_shards, tmp_path_factory.mktemp("module"))


@pytest.fixture(scope="session")
def released_model() -> ModuleType:
    """The module tests/benchmarks/released.py: the released BriVL-1.0 written plainly."""
    path = Path(__file__).parents[1] / "benchmarks" / "released.py"
    spec = importlib.util.spec_from_file_location("released_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of shards are cached below the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_batch(size: int, seed: int, *, invalid: Sequence[int] = (), texts: int = 0, boxes: int = 3) -> Batch:
    """Random pairs of 64 x 64 pixels; with `texts` > 0 so many different text ids only: some negatives are false."""
    import torch

    from training.records import Batch

    generator = torch.Generator().manual_seed(seed)

    def ids() -> torch.Tensor:
        return torch.randint(-(2**62), 2**62, (size,), generator=generator)

    boxes_BR4 = torch.rand(size, boxes, 4, generator=generator) * 32
    boxes_BR4[..., 2:] += boxes_BR4[..., :2]
    boxes_BR4[:, -1] = torch.tensor([0.0, 0.0, 64.0, 64.0])
    n_tokens = torch.randint(3, 7, (size,), generator=generator)
    tokens = torch.randint(4, 50, (size, 6), generator=generator) * (torch.arange(6) < n_tokens[:, None])
    return Batch(
        images_B3HW=torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8, generator=generator),
        boxes_BR4=boxes_BR4,
        n_boxes_B=torch.full((size,), boxes),
        token_ids_BL=tokens,
        n_tokens_B=n_tokens,
        sample_ids_B=ids(),
        image_ids_B=ids(),
        text_ids_B=torch.randint(0, texts, (size,), generator=generator) if texts else ids(),
        valid_B=torch.tensor([i not in invalid for i in range(size)]),
    )


def tiny_model(*overrides: str) -> BriVL:
    """Recipe `tiny` in double precision and train mode, the same weights every time."""
    import torch

    from training.moco import BriVL
    from training.resolve import resolve

    torch.manual_seed(0)
    return BriVL(resolve("tiny", overrides)).double().train()


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """The function `random_batch` above."""
    return random_batch


@pytest.fixture
def make_model() -> Callable[..., BriVL]:
    """The function `tiny_model` above."""
    return tiny_model


def moved_checkpoint(
    folder: Path, *overrides: str, detector: str = "", tokenizer: str = "gb2312", seed: int = 0
) -> Path:
    """A tiny model with random weights, whose key towers are no copies of the query towers, as a run leaves it."""
    import torch

    from tests.checkpoints import save
    from training.data.tokenizer import load_tokenizer
    from training.moco import BriVL
    from training.outputs.checkpoint import RunState
    from training.resolve import resolve
    from training.run.optimizer import build_optimizer

    torch.manual_seed(seed)
    config = resolve("tiny", overrides)
    model = BriVL(config)
    with torch.no_grad():
        for parameter in (*model.image_key.parameters(), *model.text_key.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    state, optimizer = RunState(1, 8, 0, (), (), detector), build_optimizer(model, config.optim)
    return save(folder, model, optimizer, config, load_tokenizer(tokenizer), state, 1)


def retrieval_of(checkpoint: Path, *data: str, cache: Path | None = None, **more: Any) -> dict[str, Any]:
    """Result of the task `retrieval` on a val split."""
    from training.evaluation.labelled import EvaluationData
    from training.evaluation.tasks import Request, task

    return task("retrieval").run(Request(checkpoint, EvaluationData(data, cache=cache), "val", **more))


@pytest.fixture(scope="session")
def checkpoint_with_moved_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`moved_checkpoint`, once for all tests: they only read it."""
    return moved_checkpoint(tmp_path_factory.mktemp("moved"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """64 x 64 PNG files: no resize, no loss."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{i}.png" for i in range(3)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs are computed by one thread, so that they repeat to the bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stopped_after() -> Callable[[int], AbstractContextManager[None]]:
    """stopped_after(step): what runs within is interrupted at that step, as by a person."""

    from training.outputs.journal import Journal

    @contextmanager
    def stopped(last: int) -> Iterator[None]:
        advance = Journal.advance

        def stopping(self: Journal, step: int) -> None:
            advance(self, step)
            if step == last:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "advance", stopping)
            with pytest.raises(KeyboardInterrupt):
                yield

    return stopped


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal: where the tests run in the background of a script, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
