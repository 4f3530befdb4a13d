"""Batches that cross from a worker process to the reader, and when the memory between them is used again."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from training.config import DataConfig
from training.data.index import open_dataset
from training.data.loader import Loader, Share
from training.data.shared_memory import Slots, slot_bytes
from training.data.tokenizer import load_tokenizer
from training.errors import RunError
from training.resolve import resolve

MakeShards = Callable[..., Path]


def tensors() -> list[torch.Tensor]:
    pixels = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3).permute(0, 3, 1, 2)
    return [pixels, torch.randn(2, 3, 4), torch.tensor([True, False]), torch.arange(7), torch.empty(0, 4)]


def test_tensors_come_out_as_they_went_in_and_in_the_same_order_of_memory() -> None:
    given = tensors()
    slots = Slots(2, slot_bytes((tensor.numel(), tensor.itemsize) for tensor in given))
    found = slots.read(1, slots.write(1, given))
    for before, after in zip(given, found, strict=True):
        assert after.dtype == before.dtype
        assert after.stride() == before.stride()
        assert torch.equal(after, before)


def test_what_was_read_stays_when_its_slot_is_used_again() -> None:
    slots = Slots(1, 64)
    first = slots.read(0, slots.write(0, [torch.zeros(8)]))[0]
    slots.write(0, [torch.ones(8)])
    assert not first.any()


def test_slots_are_apart_and_what_does_not_fit_is_refused() -> None:
    slots = Slots(2, 64)
    pieces = slots.write(0, [torch.zeros(16)])
    slots.write(1, [torch.ones(16)])
    assert not slots.read(0, pieces)[0].any()
    with pytest.raises(ValueError, match="68 bytes for a slot of 64"):
        slots.write(0, [torch.zeros(17)])


def test_slots_beyond_the_memory_of_the_machine_say_what_needs_less() -> None:
    with pytest.raises(RunError, match=r"data.num_workers: 2,097,152.0 GiB for 2 batches: .*; fewer, or"):
        Slots(2, 1 << 50)


def test_a_forked_process_writes_what_this_one_reads_and_sends_only_where_it_lies() -> None:
    slots = Slots(1, 64)
    source, sink = os.pipe()
    if not (child := os.fork()):
        os.write(sink, pickle.dumps((slots, slots.write(0, [torch.arange(8)]))))
        os._exit(0)
    os.waitpid(child, 0)
    same, pieces = pickle.loads(os.read(source, 4096))  # noqa: S301
    assert same is slots
    assert torch.equal(same.read(0, pieces)[0], torch.arange(8))


@pytest.mark.slow
def test_batches_of_workers_are_those_of_none_in_every_field_however_long_they_are_kept(
    make_shards: MakeShards,
) -> None:
    manifest = make_shards(train=(9, 9))
    config = replace(resolve("tiny").data, num_workers=2)
    found, expected = (list(batches(manifest, c)) for c in (config, replace(config, num_workers=0)))
    for one, other in zip(found, expected, strict=True):
        for field in fields(one):
            assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name
        assert one.images_B3HW.stride() == other.images_B3HW.stride()


class Niceness:
    """A tokenizer whose only token is how nice its process is."""

    vocabulary = ("",)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        return [os.getpriority(os.PRIO_PROCESS, 0)]


@pytest.mark.slow
def test_a_worker_gives_way_to_a_step_on_the_same_cores_as_far_as_told(make_shards: MakeShards) -> None:
    here = os.getpriority(os.PRIO_PROCESS, 0)
    config = replace(resolve("tiny").data, num_workers=1, worker_nice=3)
    dataset = open_dataset([str(make_shards())], "train")
    loader = Loader(dataset, config, Niceness(), Share(6), seed=3, train=True)
    assert {int(n) for batch in loader.batches(0, 12) for n in batch.token_ids_BL.flatten()} == {min(here + 3, 19)}


def batches(manifest: Path, config: DataConfig):  # type: ignore[no-untyped-def]
    dataset = open_dataset([str(manifest)], "train")
    loader = Loader(dataset, config, load_tokenizer("gb2312"), Share(6), seed=3, train=True)
    yield from loader.batches(0, 72)
    yield from loader.once()
