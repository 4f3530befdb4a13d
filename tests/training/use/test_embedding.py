"""The loop behind every embedding: batches, order, what is left out, memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from training.records import Batch
from training.use import embedding
from training.use.embedding import EmbeddedRun, embed_runs, workers_for
from training.use.encode import open_encoder
from training.use.sources import PictureSource, TextSource
from training.weights.load import Loaded, load


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Loaded:
    return load(checkpoint, "cpu")


def texts(folder: Path, lines: Sequence[str]) -> TextSource:
    (folder / "t.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return TextSource(folder / "t.txt")


def drawn(folder: Path, count: int) -> PictureSource:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return PictureSource([str(folder)])


@pytest.mark.slow
def test_parts_come_in_order_with_their_rows_in_order(loaded: Loaded, tmp_path: Path) -> None:
    source = drawn(tmp_path / "p", 70)
    parts = list(embed_runs(loaded, source, source.runs(range(len(source)), 40), workers=2))
    assert [part.rows["id"].to_pylist() for part in parts] == [source.files[:40], source.files[40:]]
    expected = open_encoder(loaded.checkpoint.folder, "cpu").encode_image(source.files)
    np.testing.assert_allclose(
        np.concatenate([p.image_ND for p in parts if p.image_ND is not None]), expected, atol=1e-5
    )
    assert [part.text_ND for part in parts] == [None, None]


@pytest.mark.slow
def test_texts_alone_come_through_worker_processes_too(loaded: Loaded, tmp_path: Path) -> None:
    lines = [chr(0x4E00 + number) * (1 + number % 5) for number in range(40)]
    source = texts(tmp_path, lines)
    parts = list(embed_runs(loaded, source, source.runs(range(len(source)), 15), workers=2))
    assert [caption for part in parts for caption in part.rows["caption"].to_pylist()] == lines
    features = np.concatenate([part.text_ND for part in parts if part.text_ND is not None])
    expected = open_encoder(loaded.checkpoint.folder, "cpu").encode_text(lines)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_texts_of_like_length_go_together_and_come_back_in_their_order(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [1 + (number * 7) % 13 for number in range(60)]
    lines = [chr(0x4E00 + number) * length for number, length in enumerate(lengths)]
    source, seen = texts(tmp_path, lines), list[list[int]]()
    encode = loaded.model.encode_text

    def watched(batch: Batch) -> torch.Tensor:
        seen.append(batch.n_tokens_B.tolist())
        return encode(batch)

    monkeypatch.setattr(loaded.model, "encode_text", watched)
    monkeypatch.setitem(embedding.TOKENS, "cpu", 100)
    [part] = embed_runs(loaded, source, source.runs(range(len(source)), 100), workers=0)
    assert part.rows["caption"].to_pylist() == lines
    monkeypatch.undo()
    expected = open_encoder(loaded.checkpoint.folder, "cpu").encode_text(lines)
    np.testing.assert_allclose(part.text_ND, expected, atol=1e-5)
    assert [n for batch in seen for n in batch] == sorted(n for batch in seen for n in batch)
    assert all(len(batch) * max(batch) <= 100 for batch in seen)
    assert len(seen) > 4


@pytest.mark.slow
def test_a_batch_that_a_device_has_no_memory_for_is_halved_until_it_fits(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sizes = drawn(tmp_path / "p", 30), list[int]()
    encode = loaded.model.encode_image

    def small(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 8:
            raise torch.OutOfMemoryError("no memory")
        return encode(batch)

    monkeypatch.setattr(loaded.model, "encode_image", small)
    [part] = embed_runs(loaded, source, source.runs(range(len(source)), 100), workers=0)
    assert (sizes[0], max(size for size in sizes if size <= 8)) == (30, 8)
    monkeypatch.undo()
    expected = open_encoder(loaded.checkpoint.folder, "cpu").encode_image(source.files)
    np.testing.assert_allclose(part.image_ND, expected, atol=1e-5)

    def never(batch: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory for one")

    monkeypatch.setattr(loaded.model, "encode_image", never)
    with pytest.raises(torch.OutOfMemoryError, match="no memory for one"):
        list(embed_runs(loaded, source, source.runs(range(len(source)), 100), workers=0))


def test_batches_hold_as_many_pictures_as_fit_their_size(loaded: Loaded, tmp_path: Path) -> None:
    source = drawn(tmp_path / "p", 1)
    config = loaded.config
    for size, expected in ((64, 392), (224, 32), (380, 11), (2000, 1)):
        sized = replace(loaded.checkpoint, config=replace(config, data=replace(config.data, image_size=size)))
        assert embedding._rows_at_once(replace(loaded, checkpoint=sized), source) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_named_up_to_a_point_and_stops_nothing(
    loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    source = drawn(tmp_path / "p", 20)
    for number in (0, 3, 4, 19):
        (tmp_path / "p" / f"{number:03d}.png").write_bytes(b"" if number else b"\x89PNG junk")
    monkeypatch.setattr(embedding, "MOST_NAMED", 2)
    done = list[int]()
    with caplog.at_level(logging.WARNING):
        parts = list(embed_runs(loaded, source, source.runs(range(len(source)), 10), workers=workers, done=done.append))
    assert [(part.rows.num_rows, part.unreadable) for part in parts] == [(7, 3), (9, 1)]
    assert sum(done) == 20
    named = [record.getMessage() for record in caplog.records]
    assert [line.startswith("left out: ") for line in named] == [True, True, False]
    assert "000.png" in named[0]


def test_a_unit_of_which_nothing_can_be_read_is_an_empty_part(loaded: Loaded, tmp_path: Path) -> None:
    source = drawn(tmp_path / "p", 4)
    for number in (2, 3):
        (tmp_path / "p" / f"{number:03d}.png").write_bytes(b"junk")
    first, second = embed_runs(loaded, source, source.runs(range(len(source)), 2), workers=0)
    assert (first.rows.num_rows, second.rows.num_rows, second.unreadable) == (2, 0, 2)
    assert second.image_ND is not None
    assert second.image_ND.shape == (0, 32)
    assert isinstance(second.rows, pa.Table)


def test_facts_of_a_picture_come_with_its_row(loaded: Loaded, tmp_path: Path) -> None:
    import hashlib

    source = drawn(tmp_path / "p", 1)
    part: EmbeddedRun = next(iter(embed_runs(loaded, source, source.runs(range(len(source)), 5), workers=0)))
    [row] = part.rows.to_pylist()
    content = Path(source.files[0]).read_bytes()
    assert (row["width"], row["height"]) == (12, 9)
    assert row["boxes"] == [0, 0, 6, 4.5, 6, 0, 12, 4.5, 0, 4.5, 6, 9, 6, 4.5, 12, 9]  # the grid that the tower saw
    assert row["sha256"] == row["image_leader"] == row["where"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert row["where"]["size"] == len(content)


def test_no_units_are_no_parts_and_no_process(loaded: Loaded, tmp_path: Path) -> None:
    assert list(embed_runs(loaded, drawn(tmp_path / "p", 1), [])) == []


def test_beside_a_gpu_more_processes_decode(loaded: Loaded) -> None:
    assert workers_for(loaded) == loaded.config.data.num_workers
    assert workers_for(replace(loaded, device=torch.device("cuda"))) >= 1
