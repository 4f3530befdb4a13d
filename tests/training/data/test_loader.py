"""Which samples a loader returns, in which order, and what stops it."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_specs.shard import ContractError
from training.config import DataConfig
from training.data.batch_maker import short_id
from training.data.index import open_dataset
from training.data.loader import Loader, Share
from training.data.tokenizer import load_tokenizer
from training.data.transforms import decode, resize_square
from training.errors import ConfigError, RunError
from training.resolve import resolve

MakeShards = Callable[..., Path]


CONFIG = replace(resolve("tiny").data, window_shards=2)


def loader(manifest: Path, share: Share, *, train: bool = True, config: DataConfig = CONFIG, **more: Any) -> Loader:
    split = "train" if train else "val"
    data = open_dataset([str(manifest)], split, detector=config.detector)  # type: ignore[arg-type]
    return Loader(data, config, load_tokenizer("gb2312"), share, seed=3, train=train, **more)


def ids(source: Loader, start: int, stop: int) -> list[int]:
    return [int(i) for batch in source.batches(start, stop) for i in batch.sample_ids_B]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "accumulate", "workers"), [(3, 1, 0), (2, 3, 2), (1, 4, 0)])
def test_the_order_is_the_same_at_every_world_size_and_number_of_workers(
    make_shards: MakeShards, world: int, accumulate: int, workers: int
) -> None:
    manifest = make_shards(train=(7, 5, 9))
    expected = ids(loader(manifest, Share(12)), 0, 48)  # two epochs and more: batches straddle them
    config = replace(CONFIG, num_workers=workers)
    ranks = [loader(manifest, Share(12, rank, world, accumulate), config=config) for rank in range(world)]
    slices = zip(*(source.batches(0, 48) for source in ranks), strict=True)
    found = [int(i) for of_ranks in slices for batch in of_ranks for i in batch.sample_ids_B]
    assert found == expected
    assert Counter(expected[:21]).most_common(1)[0][1] == 1


@pytest.mark.slow
def test_a_signal_to_the_process_group_is_left_to_the_process_that_reads(make_shards: MakeShards) -> None:
    batches = loader(make_shards(), Share(6), config=replace(CONFIG, num_workers=1)).batches(0, 60)
    count = len([next(batches)])
    [worker] = multiprocessing.active_children()
    subprocess.run(["kill", f"-{signal.SIGINT}", str(worker.pid)], check=True)  # as others send it: not the parent
    assert count + len(list(batches)) == 10


def test_workers_end_at_once_with_the_process_that_reads(make_shards: MakeShards) -> None:
    batches = loader(make_shards(), Share(6), config=replace(CONFIG, num_workers=1)).batches(0, 60)
    next(batches)
    [worker] = multiprocessing.active_children()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
    batches.close()  # type: ignore[attr-defined]


def test_resume_gives_exactly_what_would_have_come(make_shards: MakeShards) -> None:
    manifest = make_shards()
    whole = list(loader(manifest, Share(6)).batches(0, 60))
    rest = list(loader(manifest, Share(6)).batches(36, 60))
    for before, after in zip(whole[6:], rest, strict=True):
        assert torch.equal(before.images_B3HW, after.images_B3HW)  # colours are changed alike, too
        assert torch.equal(before.token_ids_BL, after.token_ids_BL)
        assert torch.equal(before.sample_ids_B, after.sample_ids_B)


def test_evaluation_sees_every_sample_once_over_the_ranks_unchanged(make_shards: MakeShards) -> None:
    manifest = make_shards(val=(5, 6))
    data = open_dataset([str(manifest)], "val")
    batches = [b for rank in range(2) for b in loader(manifest, Share(8, rank, 2), train=False).once()]
    found = torch.cat([b.sample_ids_B for b in batches]).tolist()
    assert sorted(found) == sorted(short_id(data.row(i).candidate_id) for i in range(11))
    first = data.row(0)
    where = found.index(short_id(first.candidate_id))
    pixels = torch.cat([b.images_B3HW for b in batches])[where]
    assert torch.equal(pixels, resize_square(decode(data.image(first)), CONFIG.image_size))


def test_a_builds_grid_covers_the_picture_whatever_max_boxes_is(make_shards: MakeShards) -> None:
    """Cells of a finer grid, best first, would be those of its top rows."""
    manifest = make_shards(train=(6,), val=(6,), detector="grid-0123456789ab")
    size = CONFIG.image_size
    for detector in ("", "grid-0123456789ab"):
        data = open_dataset([str(manifest)], "train", detector=detector)
        assert (data.detector, data.has_regions) == ("grid", False)
    [first, *_] = loader(manifest, Share(6), config=replace(CONFIG, max_boxes=5, num_workers=0), train=False)
    assert first.boxes_BR4[0].tolist() == [
        *([x, y, x + size / 2, y + size / 2] for y in (0, size / 2) for x in (0, size / 2)),
        [0, 0, size, size],
    ]


def test_a_batch_that_cannot_be_shared_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run.batch_size: 8 cannot be divided among 3 ranks x 1"):
        Share(8, 0, 3)


def test_too_many_corrupt_samples_are_all_named_and_stop_the_run_in_one_short_line(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_shards(train=(20,), damage=dict.fromkeys(range(1, 18), b"\xff\xd8 no"))
    keys = [open_dataset([str(manifest)], "train").row(n).key for n in range(1, 18)]
    with pytest.raises(RunError, match="17 corrupt samples, more than 16") as e:
        list(loader(manifest, Share(20)).batches(0, 20))
    assert f"17 of {manifest.parent}/train-000000.tar" in str(e.value)
    assert all(sum(key in record.getMessage() for record in caplog.records) == 1 for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_cut_while_it_is_read_stops_the_run_with_one_line(make_shards: MakeShards, workers: int) -> None:
    manifest = make_shards(train=(9,))
    source = loader(manifest, Share(9), config=replace(CONFIG, num_workers=workers))
    (manifest.parent / "train-000000.tar").write_bytes(b"")
    with pytest.raises(ContractError, match=r"train-000000.tar: was changed or replaced after") as e:
        list(source.batches(0, 9))
    assert "\n" not in str(e.value)


def test_a_part_of_a_mixture_without_a_sample_is_none_of_it(make_shards: MakeShards) -> None:
    one, empty = make_shards(train=(8,), name="one"), make_shards(train=(0, 0), name="empty")
    data = open_dataset([f"{empty}@3", f"{one}@1"], "train")
    source = Loader(data, CONFIG, load_tokenizer("gb2312"), Share(8), seed=0, train=True)
    assert set(Counter(ids(source, 0, 16)).values()) == {2}
    assert len(data.content_digests) == 2


@pytest.mark.slow
def test_weights_after_the_names_mix_datasets(make_shards: MakeShards) -> None:
    one, two = make_shards(train=(30,), name="one"), make_shards(train=(0, 40), name="two")
    data = open_dataset([f"{one}@3", str(two)], "train")
    assert data.weights == (3.0, 1.0)
    source = Loader(data, CONFIG, load_tokenizer("gb2312"), Share(64), seed=0, train=True)
    found = Counter(ids(source, 0, 640))  # the two share the samples 0 to 29
    only_second = {short_id(data.row(number).candidate_id) for number in range(60, 70)}
    assert {found[i] for i in only_second} == {4}
    assert source.epochs(640) == pytest.approx({"epoch": 640 / 70, "epoch.0": 480 / 30, "epoch.1": 160 / 40}, abs=0.1)
    assert open_dataset([str(one), str(two)], "train").weights == ()
    with pytest.raises(ConfigError, match="has weight 0"):
        open_dataset([f"{one}@0"], "train")
