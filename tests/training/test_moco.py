"""The class around the objective: key towers, queues, the shared prefix, what a batch and a step may be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.training.conftest import BERT
from training.moco import KEY_PREFIXES, QUERY_PREFIXES, QUEUE_PREFIXES, BriVL
from training.records import Batch
from training.resolve import resolve
from training.towers.tower import Tower

FROZEN_CNN = ("image.frozen_stages=7", "image.dropout=0", "text.dropout=0")
"""No batch norm and no dropout in what is trained: sums over samples are then exact."""


MOBILENET = ("image.backbone=torchvision/mobilenet_v2", "image.frozen_stages=10")


MakeBatch = Callable[..., Batch]


MakeModel = Callable[..., BriVL]


def test_invalid_samples_count_neither_in_the_loss_nor_in_the_queue(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model("moco.queue_size=12", *FROZEN_CNN)
    whole, part = make_batch(4, 1, invalid=[1, 3]), make_batch(4, 1)
    model.prefill(make_batch(4, 0, invalid=[2]), -1)
    assert model.text_queue.filled_K.tolist() == [True, True, False, True] + [False] * 8
    keep = replace(part, **{name: value[[0, 2]] for name, value in vars(part).items() if value is not None})
    assert model(whole).loss.item() == pytest.approx(model(keep).loss.item(), abs=1e-12)
    nothing = model(make_batch(4, 1, invalid=range(4)))
    nothing.loss.backward()
    assert nothing.loss.item() == 0
    assert all(p.grad is None or not p.grad.abs().any() for p in model.parameters())


@pytest.mark.slow
def test_frozen_layers_stand_still_and_key_towers_run_in_eval(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model("moco.momentum=0.5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for step in range(3):
        output = model(make_batch(4, step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_step(output, step)
    after = model.state_dict()
    frozen = [n for n in before if ".prefix." in n or ".backbone.head." in n]
    assert len(frozen) > 10
    assert all(torch.equal(before[n], after[n]) for n in frozen)
    moved = "image_key.backbone.blocks_4.0.bn1.running_mean"
    assert not torch.equal(before[moved], after[moved])
    keys = [m for tower in (model.image_key, model.text_key) for m in tower.modules()]
    assert not any(m.training for m in keys)
    assert model.image_query.trunk.training


@pytest.mark.slow
def test_the_frozen_prefix_is_shared_and_frozen_tensors_are_stored_once(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model("moco.learn_temperature=true")
    state = model.state_dict(keep_vars=True)
    assert not any(name.startswith(("image_key.prefix", "text_key.prefix")) for name in state)
    shared = model.shared_tensors()
    assert set(shared) == {f"image_key.backbone.head.{n}" for n in ("0.weight", "1.weight", "1.bias")}
    assert all(state[key].data_ptr() == state[query].data_ptr() for key, query in shared.items())
    assert {name.partition(".")[0] + "." for name in state} == {*QUERY_PREFIXES, *KEY_PREFIXES, *QUEUE_PREFIXES}
    batch = make_batch(4, 0)
    model.eval()
    output = model(batch)  # at the start key tower = query tower, so sharing the prefix changes nothing
    assert torch.allclose(output.image_keys_BD, model.encode_image(batch), atol=1e-12)
    assert torch.allclose(output.text_keys_BD, model.encode_text(batch), atol=1e-12)


def train_a_little(model: BriVL, make_batch: MakeBatch) -> None:
    """Two steps that leave every key tower somewhere between where it was and the query tower."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for step in range(2):
        output = model(make_batch(4, step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_step(output, step)


@pytest.mark.slow
@pytest.mark.parametrize("encoders", [(), BERT, MOBILENET], ids=["timm-char", "timm-bert", "mobilenet-char"])
def test_the_shared_prefix_is_bitwise_what_computing_it_twice_gives(
    encoders: tuple[str, ...], make_batch: MakeBatch
) -> None:
    torch.manual_seed(0)
    model = BriVL(resolve("tiny", ["moco.momentum=0.5", *encoders])).train()
    model.prefill(make_batch(4, 9), -1)
    train_a_little(model, make_batch)
    batch = make_batch(4, 5)
    calls: list[nn.Module] = []
    for tower in (model.image_query, model.text_query):
        tower.prefix.register_forward_hook(lambda module, _inputs, _out: calls.append(module))
    for mode in (True, False):
        output = model.train(mode)(batch)
        assert calls == [model.image_query.prefix, model.text_query.prefix]
        for key, query, keys_BD in (
            (model.image_key, model.image_query, output.image_keys_BD),
            (model.text_key, model.text_query, output.text_keys_BD),
        ):
            alone = Tower(query.modality, copy.deepcopy(query.prefix), copy.deepcopy(key)).eval()
            alone.prefix._forward_hooks.clear()
            with torch.no_grad():
                assert torch.equal(keys_BD, alone(batch))
                assert not torch.equal(keys_BD, query.eval()(batch))  # the key tower is a tower of its own by now
        calls.clear()


def test_encoding_is_repeatable_without_gradient_and_leaves_training_on(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model()
    batch = make_batch(4, 0)
    first = model.encode_image(batch)
    assert torch.equal(first, model.encode_image(batch))
    assert not first.requires_grad
    assert model.image_query.training
    assert not model.image_query.prefix.training


def test_parameters_fall_into_the_groups_of_their_learning_rates(make_model: MakeModel) -> None:
    model = make_model(
        "text.encoder=bert_text", "text.backbone_layers=2", "text.frozen_layers=1", "text.backbone_heads=4"
    )
    groups: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(model.group_of(name), []).append(name)
    assert set(groups) == {"image_backbone", "text_backbone", "new"}
    assert all(".backbone.layer.0." in name for name in groups["text_backbone"])
    assert all("blocks_" in name for name in groups["image_backbone"])
    assert "image_query.trunk.project.weight" in groups["new"]


def test_bf16_keeps_the_loss_close_and_queue_and_average_in_float32(make_batch: MakeBatch) -> None:
    torch.manual_seed(0)
    model = BriVL(resolve("tiny", FROZEN_CNN)).train()
    model.prefill(make_batch(8, 1), -1)
    exact = model(make_batch(8, 0)).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(make_batch(8, 0))
    output.loss.backward()
    key = model.text_key.get_parameter("head.fc2.weight").double()
    query = model.text_query.trunk.get_parameter("head.fc2.weight")
    with torch.no_grad():
        query += 1e-3 * torch.randn_like(query)
    with torch.autocast("cpu", torch.bfloat16):
        model.after_step(output, 0)
    moved = model.text_key.get_parameter("head.fc2.weight")
    assert moved.dtype == model.text_queue.keys_KD.dtype == output.loss.dtype == torch.float32
    assert torch.allclose(moved.double(), 0.99 * key + 0.01 * query.double(), rtol=0, atol=1e-8)  # bf16: 1e-4
    assert output.loss.item() == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
def test_embeddings_of_box_and_place_are_off_by_default_and_begin_at_nothing(make_batch: MakeBatch) -> None:
    """With them switched on a fresh model gives the features of one without, and they are trained."""
    on = ("image.box_embedding=true", "image.position_embedding=true", "text.position_embedding=true")
    plain = BriVL(resolve("tiny", BERT))
    assert not [n for n, _ in plain.named_parameters() if n.endswith((".boxes.weight", "head.positions"))]
    model = BriVL(resolve("tiny", [*BERT, *on, "moco.objective=clip"])).eval()
    model.load_state_dict({k: v for k, v in plain.state_dict().items() if k.startswith(QUERY_PREFIXES)}, strict=False)
    batch = make_batch(3, 0)
    assert torch.equal(model.encode_image(batch), plain.encode_image(batch))
    assert torch.equal(model.encode_text(batch), plain.encode_text(batch))
    model(batch).loss.backward()
    added = {n: p for n, p in model.named_parameters() if n.endswith((".boxes.weight", "head.positions"))}
    assert set(added) == {
        "image_query.trunk.boxes.weight",
        "image_query.trunk.head.positions",
        "text_query.trunk.head.positions",
    }
    with torch.no_grad():
        for parameter in added.values():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
            parameter += torch.randn_like(parameter)
    moved = replace(batch, boxes_BR4=batch.boxes_BR4.flip(1))
    assert not torch.allclose(model.encode_image(batch), model.encode_image(moved), atol=1e-3)
    assert torch.allclose(plain.encode_image(batch), plain.encode_image(moved), atol=1e-5)
