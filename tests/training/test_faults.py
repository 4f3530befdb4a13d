"""The ten faults of the released BriVL code, one test each.

A test states what is right, shows it of our code, and then builds the faulty way and shows that it fails the same
statement: so the statement is one that tells the two apart.
"""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.checkpoints import save
from tests.training.conftest import BERT
from training.data.tokenizer import load_tokenizer
from training.data.transforms import input_boxes
from training.encoders import build_tower, cnn_regions
from training.errors import ConfigError
from training.method.key_queue import KeyQueue, SampleIds
from training.method.key_towers import update_average
from training.moco import BriVL
from training.outputs.checkpoint import RunState
from training.records import Batch
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.towers.region_pooling import pool_regions
from training.use.embed import embed_files

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., BriVL]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-9)


def test_fault_1_shuffle_bn_takes_the_region_mask_along(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """Keys of a shuffled batch are the keys of the batch: on one rank its statistics are the same in any order."""
    model = make_model("moco.key_norm=shuffle")
    batch = replace(make_batch(5, 0), n_boxes_B=torch.tensor([1, 2, 3, 1, 2]))
    with torch.no_grad():
        unshuffled = model.image_key(model.image_query.prefix(batch), batch)

    assert close(model(batch).image_keys_BD, unshuffled)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = replace(batch, **{name: value[order] for name, value in vars(batch).items() if value is not None})
    assert close(model(turned).image_keys_BD, unshuffled[order])

    def left_behind(_module: nn.Module, inputs: tuple[Tensor, Batch]) -> tuple[Tensor, Batch]:
        return inputs[0], replace(inputs[1], n_boxes_B=batch.n_boxes_B)

    model.image_key.register_forward_pre_hook(left_behind)
    assert not close(model(batch).image_keys_BD, unshuffled)


@pytest.mark.slow
def test_fault_2_padding_does_not_change_a_caption(make_batch: MakeBatch) -> None:
    """BERT gets an attention mask; without one (released weights want that) padding is attended to."""
    batch = make_batch(2, 0)
    tokens = torch.tensor([[2, 5, 3, 0, 0, 0], [2, 7, 8, 9, 10, 3]])
    both = replace(batch, token_ids_BL=tokens, n_tokens_B=torch.tensor([3, 6]))
    short = replace(both.rows(0, 1), token_ids_BL=tokens[:1, :3])
    unpadded = []
    for compat in ("", "brivl-1.0"):
        torch.manual_seed(0)
        tower = build_tower("text", resolve("tiny", [*BERT, f"compat={compat}"]), load_weights=False).double().eval()
        unpadded.append(tower(short))
        assert close(tower(both)[:1], unpadded[-1]) == (compat == "")
    assert close(*unpadded)  # where nothing is padded the two agree


def test_fault_3_regions_are_read_where_they_are() -> None:
    """On a map of the cells' own places a box reads its middle; the released grid reads u / (W - 1) too far."""
    from torchvision.ops import roi_align

    cells, side = 12, 380
    ramp = (torch.arange(cells, dtype=torch.float64) + 0.5).expand(1, 1, cells, cells)
    left = torch.linspace(40, 260, 7, dtype=torch.float64)
    boxes = torch.stack([left, left + 10, left + 60, left + 70], dim=1)[None]
    middle = (left + 30) * cells / side

    read = pool_regions(ramp, boxes, (side, side))[0, :, 0]
    assert close(read, middle)
    aligned = roi_align(ramp, list(boxes), (4, 4), cells / side, 1, True).mean((-3, -2, -1))
    assert close(read, aligned)

    x = middle[:, None] + (torch.arange(4) - 1.5) / 4 * 60 * cells / side
    points = 2 * torch.stack([x, x], dim=-1)[None] / (cells - 1) - 1  # made for align_corners=True
    released = F.grid_sample(ramp, points, align_corners=False).mean((0, 1, 3))
    assert close(released - middle, middle / (cells - 1))
    assert close(pool_regions(ramp, boxes, (side, side), shifted=True)[0, :, 0], released)


class Operations(TorchDispatchMode):
    """Counts the operations that torch carries out, and sees whether cuDNN is on."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.cudnn = 0, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.cudnn &= torch.backends.cudnn.enabled
        return func(*args, **(kwargs or {}))


def test_fault_4_pooling_is_one_call_for_the_batch_with_cudnn_on(
    make_model: MakeModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many operations for a batch of four as for one image, and nobody switches cuDNN off."""
    tower = make_model().image_query.eval()

    def operations(size: int) -> Operations:
        with Operations() as seen:
            tower(make_batch(size, 0))
        return seen

    few, many = operations(1), operations(4)
    assert few.count == many.count
    assert few.cudnn
    assert many.cudnn

    def image_by_image(map_BCHW: Tensor, boxes_BR4: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            pairs = zip(map_BCHW, boxes_BR4, strict=True)
            return torch.cat([pool_regions(m[None], b[None], size, **options) for m, b in pairs])

    monkeypatch.setattr(cnn_regions, "pool_regions", image_by_image)
    few, many = operations(1), operations(4)
    assert few.count < many.count
    assert not many.cudnn


def test_fault_5_the_convolution_runs_once_a_region(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """After the mean, on R vectors an image; before it, on 16 R: the same result for 16 times the work."""
    from torchvision.ops import roi_align

    tower, batch = make_model().image_query.eval(), make_batch(2, 0, boxes=3)
    trunk = tower.trunk
    assert isinstance(trunk, cnn_regions.Trunk)
    results: list[Tensor] = []
    trunk.project.register_forward_hook(lambda _module, _inputs, out: results.append(out))
    with FlopCounterMode(display=False) as ours:
        tower(batch)
    projected = 2 * trunk.project.in_features * trunk.project.out_features  # operations a vector
    counts = ours.get_flop_counts()
    name = next(n for n in counts if n.endswith("project"))
    assert sum(counts[name].values()) == projected * 2 * 3

    map_BCHW = tower.prefix(batch)
    for stage in trunk.backbone.values():
        map_BCHW = stage(map_BCHW)
    scale = map_BCHW.shape[-1] / 64
    with FlopCounterMode(display=False) as released:
        points = roi_align(map_BCHW, list(batch.boxes_BR4.double()), (4, 4), scale, sampling_ratio=1, aligned=True)
        convolved = F.conv2d(points, trunk.project.weight[..., None, None], trunk.project.bias).mean((-2, -1))
    assert close(results[0].flatten(0, 1), convolved)
    assert released.get_total_flops() == 16 * projected * 2 * 3


@pytest.mark.slow
def test_fault_6_batch_norm_follows_the_average_and_stands_still_where_frozen(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    """An average that has caught up with the query tower gives its features; frozen statistics do not move."""
    model, batch = make_model(), make_batch(4, 1)

    def frozen() -> list[Tensor]:
        names = ("prefix.backbone", "trunk.backbone.head")
        return [b.clone() for n, b in model.image_query.named_buffers() if n.startswith(names)]

    before = frozen()
    moving = model.image_query.trunk.get_buffer("backbone.blocks_4.0.bn1.running_mean")
    was = moving.clone()
    for seed in range(3):
        model(make_batch(4, seed))
    assert not torch.equal(moving, was)
    assert len(before) > 6
    assert all(torch.equal(a, b) for a, b in zip(before, frozen(), strict=True))

    prefix, query = model.image_query.prefix(batch), model.image_query.trunk
    by_parameters = copy.deepcopy(model.image_key)
    update_average(model.image_key, query, 0.0)
    with torch.no_grad():
        for key, parameter in zip(by_parameters.parameters(), query.parameters(), strict=True):
            key.copy_(parameter)
        query.eval()
        assert close(model.image_key(prefix, batch), query(prefix, batch))
        assert not close(by_parameters(prefix, batch), query(prefix, batch))

    for module in model.image_query.modules():  # train mode for all, frozen or not
        module.training = True
    model.image_query(batch)
    assert not all(torch.equal(a, b) for a, b in zip(before, frozen(), strict=True))


def test_fault_7_a_queue_need_not_be_a_multiple_of_the_batch() -> None:
    """K = 10 holds the newest ten after any batches; a slice from the pointer cannot write the third batch of 4."""
    queue, count = KeyQueue(10, 1), 0
    for size in (4, 4, 4, 1, 23):
        numbers = torch.arange(count, count + size)
        queue.enqueue(numbers[:, None].float(), SampleIds(numbers, numbers, numbers, numbers >= 0), 0)
        count += size
        expected = range(max(0, count - 10), count)
        assert sorted(queue.keys_KD[queue.filled_K, 0].int().tolist()) == list(expected)

    released = torch.zeros(10, 1)
    for pointer in (0, 4):
        released[pointer : pointer + 4] = torch.arange(pointer, pointer + 4.0)[:, None]
    with pytest.raises(RuntimeError, match="size"):
        released[8 : 8 + 4] = torch.arange(8.0, 12.0)[:, None]


@pytest.mark.slow
def test_fault_8_what_never_entered_is_no_negative(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """With empty queues there is nothing to tell a pair from: no loss and no gradient. Random vectors give both."""
    model = make_model()
    output = model(make_batch(4, 0))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(not p.grad.abs().any() for p in model.parameters() if p.grad is not None)

    for queue in (model.image_queue, model.text_queue):
        queue.keys_KD.copy_(F.normalize(torch.randn_like(queue.keys_KD), dim=1))
        queue.filled_K.fill_(True)
    output = model(make_batch(4, 0))
    output.loss.backward()
    assert output.loss.item() > 1
    assert any(p.grad.abs().any() for p in model.parameters() if p.grad is not None)


def test_fault_9_any_number_of_boxes_from_none_up(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """An image of few boxes, or of the whole-image box alone, has in a batch the feature that it has by itself."""
    tower = make_model().image_query.eval()
    counts = (0, 1, 5)
    found = [input_boxes([4.0, 4.0, 30.0, 40.0] * n, 64, 64, 64, 36) for n in counts]
    batch = make_batch(3, 0, boxes=6)
    alone = [
        replace(batch.rows(i, i + 1), boxes_BR4=torch.from_numpy(b)[None], n_boxes_B=torch.tensor([len(b)]))
        for i, b in enumerate(found)
    ]
    assert [int(one.n_boxes_B) for one in alone] == [n + 1 for n in counts]
    boxes_BR4 = torch.stack([F.pad(one.boxes_BR4[0], (0, 0, 0, 6 - int(one.n_boxes_B))) for one in alone])
    together = replace(batch, boxes_BR4=boxes_BR4, n_boxes_B=torch.tensor([n + 1 for n in counts]))

    features_BD = tower(together)
    assert close(features_BD, torch.cat([tower(one) for one in alone]))
    assert close(features_BD.norm(dim=1), torch.ones(3, dtype=torch.float64))

    with pytest.raises(RuntimeError, match="equal size"):
        torch.stack([one.boxes_BR4[0] for one in alone])
    unmasked = tower(replace(together, n_boxes_B=torch.full((3,), 6)))
    assert [close(a, b) for a, b in zip(unmasked, features_BD, strict=True)] == [False, False, True]


@contextmanager
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """No connection is made; the addresses that were asked for."""
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(time, "sleep", lambda _seconds: None)  # a hub client waits between its attempts
        yield asked


@pytest.mark.slow
def test_fault_10_a_checkpoint_needs_no_backbone_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint whose recipe names weights that are gone, or are on the hub, is used without looking for them."""
    config = resolve("tiny", ["image.weights=hub", *BERT, "text.vocab_size=7000", "text.weights=somebody/some-bert"])
    with no_network(monkeypatch) as asked:
        model = BriVL(config, load_weights=False)
        state = RunState(1, 8, 0, (), (), "grid")
        optimizer = build_optimizer(model, config.optim)
        folder = save(tmp_path / "run", model, optimizer, config, load_tokenizer("gb2312"), state, keep_last=1)
        (tmp_path / "texts.txt").write_text("红船\n", encoding="utf-8")
        found = embed_files(folder, [], None, tmp_path / "texts.txt", tmp_path / "out.safetensors", device="cpu")
        assert (found["rows"], found["tensors"]) == (1, ["text_features"])
        assert asked == []

        with pytest.raises(ConfigError):
            BriVL(config)  # as the released code does it
