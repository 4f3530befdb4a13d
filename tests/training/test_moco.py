"""The method against a NumPy float64 oracle, and the released code's faults that concern it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training.config import resolve
from training.key_queue import KeyQueue, SampleIds
from training.moco import KEY_PREFIXES, QUERY_PREFIXES, QUEUE_PREFIXES, BriVL, StepOutput, update_average
from training.records import Batch

FROZEN_CNN = ("image.frozen_stages=7", "image.dropout=0", "text.dropout=0")
"""No batch norm and no dropout in what is trained: sums over samples are then exact."""

Floats = npt.NDArray[np.float64]


def make_batch(size: int, seed: int, *, invalid: Sequence[int] = (), texts: int = 0, boxes: int = 3) -> Batch:
    """Random pairs; with `texts` > 0 that many different text ids only, so that negatives are false."""
    generator = torch.Generator().manual_seed(seed)

    def ids() -> Tensor:
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


def make_model(*overrides: str) -> BriVL:
    torch.manual_seed(0)
    return BriVL(resolve("tiny", overrides)).double().train()


class Oracle:
    """The objective in plain NumPy: a list as queue, one loop over samples."""

    def __init__(self, size: int, temperature: float) -> None:
        self.size, self.temperature = size, temperature
        self.queue: list[tuple[Floats, Floats, int, int]] = []  # image key, text key, image id, text id

    def direction(self, queries: Floats, keys: Floats, batch: Batch, side: int) -> tuple[float, Floats]:
        """Loss and its gradient by the queries; side 0 takes negatives from the image keys, 1 from the text keys."""
        valid = [i for i in range(len(batch)) if batch.valid_B[i]]
        loss, gradient = 0.0, np.zeros_like(queries)
        for i in valid:
            ids = int(batch.image_ids_B[i]), int(batch.text_ids_B[i])
            negatives = [row[side] for row in self.queue if row[2] != ids[0] and row[3] != ids[1]]
            candidates = np.stack([keys[i], *negatives])
            logits = candidates @ queries[i] / self.temperature
            p = np.exp(logits - logits.max())
            p /= p.sum()
            loss -= float(np.log(p[0])) / len(valid)
            p[0] -= 1
            gradient[i] = p @ candidates / self.temperature / len(valid)
        return loss, gradient

    def enqueue(self, image_keys: Floats, text_keys: Floats, batch: Batch) -> None:
        for i in range(len(batch)):
            if batch.valid_B[i]:
                ids = int(batch.image_ids_B[i]), int(batch.text_ids_B[i])
                self.queue.append((image_keys[i], text_keys[i], *ids))
        self.queue = self.queue[-self.size :]


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (3, 4), (8, 4)])
def test_loss_and_gradient_are_the_oracles_over_steps_that_wrap_around(size: int, batch_size: int) -> None:
    model = make_model(f"moco.queue_size={size}", "moco.temperature=0.2", "moco.momentum=0.7")
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            out.retain_grad()
            features[name] = out

        return hook

    for name in ("image", "text"):
        getattr(model, f"{name}_query").trunk.register_forward_hook(keep(name))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    oracle = Oracle(size, 0.2)
    for step in range(7):
        batch = make_batch(batch_size, step, texts=5)
        output = model(batch)
        optimizer.zero_grad()
        output.loss.backward()

        keys = [k.numpy() for k in (output.image_keys_BD, output.text_keys_BD)]
        i2t, image_gradient = oracle.direction(features["image"].detach().numpy(), keys[1], batch, side=1)
        t2i, text_gradient = oracle.direction(features["text"].detach().numpy(), keys[0], batch, side=0)
        assert output.loss.item() == pytest.approx(i2t + t2i, abs=1e-10)
        for name, expected in (("image", image_gradient), ("text", text_gradient)):
            found = features[name].grad
            assert found is not None
            assert np.abs(found.numpy() - expected).max() < 1e-10

        optimizer.step()
        model.after_step(output, step)
        oracle.enqueue(keys[0], keys[1], batch)
    assert len(oracle.queue) == size


def test_invalid_samples_count_neither_in_the_loss_nor_in_the_queue() -> None:
    model = make_model("moco.queue_size=12", *FROZEN_CNN)
    whole, part = make_batch(4, 1, invalid=[1, 3]), make_batch(4, 1)
    model.prefill(make_batch(4, 0, invalid=[2]), -1)
    assert model.text_queue.filled_K.tolist() == [True, True, False, True] + [False] * 8
    keep = replace(part, **{name: value[[0, 2]] for name, value in vars(part).items()})
    assert model(whole).loss.item() == pytest.approx(model(keep).loss.item(), abs=1e-12)
    nothing = model(make_batch(4, 1, invalid=range(4)))
    nothing.loss.backward()
    assert nothing.loss.item() == 0
    assert all(p.grad is None or not p.grad.abs().any() for p in model.parameters())


def test_false_negatives_are_masked_unless_told_otherwise() -> None:
    batch = make_batch(4, 0)
    same = replace(batch, text_ids_B=make_batch(4, 1).text_ids_B)  # the same images under other captions
    model = make_model(*FROZEN_CNN)
    model.prefill(batch, -1)
    assert float(model(same).metrics["i2t_excluded"]) == pytest.approx((44 + 1) / 48)  # 44 empty slots, 1 own image
    bare = make_model("moco.false_negatives=negatives", *FROZEN_CNN)
    bare.prefill(batch, -1)
    assert float(bare(same).metrics["i2t_excluded"]) == pytest.approx(44 / 48)


def test_fault_8_an_empty_queue_gives_no_negatives() -> None:
    model = make_model()
    output = model(make_batch(4, 0))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(not p.grad.abs().any() for p in model.parameters() if p.grad is not None)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_fault_7_any_queue_size_takes_any_batches(size: int, batches: list[int]) -> None:
    queue, written = KeyQueue(size, 1), []
    for step, count in enumerate(batches):
        rows = torch.arange(len(written), len(written) + count)
        queue.enqueue(rows[:, None].float(), SampleIds(rows, rows + 1, rows + 2, torch.ones(count).bool()), step)
        written += [(int(row), step) for row in rows]
    kept = sorted(
        zip(queue.keys_KD[queue.filled_K, 0].int().tolist(), queue.entered_K[queue.filled_K].tolist(), strict=True)
    )
    assert kept == written[-size:]
    assert torch.equal(queue.text_ids_K[queue.filled_K], queue.image_ids_K[queue.filled_K] + 1)
    health = queue.health(len(batches))
    assert health["fill"] == pytest.approx(min(1, len(written) / size))
    assert health["oldest"] == len(batches) - min(step for _, step in kept)


def test_accumulation_is_exact() -> None:
    whole = make_model("moco.queue_size=13", *FROZEN_CNN)
    parts = copy.deepcopy(whole)
    for step in range(3):
        batch = make_batch(8, step, invalid=[step], texts=9)
        output = whole(batch)
        micro = [parts(batch.rows(i, i + 2), samples=7.0) for i in range(0, 8, 2)]
        outputs: list[tuple[BriVL, StepOutput | list[StepOutput], Tensor]] = [
            (whole, output, output.loss),
            (parts, micro, torch.stack([o.loss for o in micro]).sum()),
        ]
        for model, out, loss in outputs:
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.after_step(out, step)
        assert outputs[0][2].item() == pytest.approx(outputs[1][2].item(), abs=1e-12)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-9) if a.is_floating_point() else torch.equal(a, b), name


def test_in_batch_keys_are_negatives_beside_the_queue() -> None:
    model = make_model("moco.in_batch_keys=true", "moco.temperature=0.2", *FROZEN_CNN)
    model.prefill(make_batch(5, 9), -1)
    batch = make_batch(4, 0)
    output = model(batch)
    image = model.image_query.trunk(model.image_query.prefix(batch), batch).detach()
    text = model.text_query.trunk(model.text_query.prefix(batch), batch).detach()
    expected = 0.0
    for queries, keys, queue in (
        (image, output.text_keys_BD, model.text_queue),
        (text, output.image_keys_BD, model.image_queue),
    ):
        logits = queries @ torch.cat([keys, queue.keys_KD[queue.filled_K]]).T / 0.2
        expected += float(nn.functional.cross_entropy(logits, torch.arange(4)))
    assert output.loss.item() == pytest.approx(expected, abs=1e-10)


def test_clip_is_cross_entropy_over_the_batch_on_the_same_towers() -> None:
    model = make_model("moco.objective=clip", "moco.temperature=0.2", *FROZEN_CNN)
    batch = make_batch(6, 0)
    output = model(batch)
    logits = model.encode_image(batch) @ model.encode_text(batch).T / 0.2
    target = torch.arange(6)
    expected = nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)
    assert output.loss.item() == pytest.approx(float(expected), abs=1e-10)
    assert not any(name.startswith(KEY_PREFIXES + QUEUE_PREFIXES) for name in model.state_dict())
    model.after_step(output, 0)
    assert model.queue_health(0) == {}


def test_fault_6_the_average_is_that_of_a_loop_and_takes_batch_norm_along() -> None:
    torch.manual_seed(0)
    query = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 5))
    key = copy.deepcopy(query).requires_grad_(False)
    query.train()(torch.randn(2, 3, 7, 7))
    with torch.no_grad():
        for p in query.parameters():
            p.add_(torch.randn_like(p))
    before = {name: value.clone() for name, value in key.state_dict().items()}
    update_average(key, query, 0.9)
    for name, value in key.state_dict().items():
        now = query.state_dict()[name]
        expected = 0.9 * before[name] + 0.1 * now if now.is_floating_point() else now
        assert torch.allclose(value, expected, atol=1e-6), name
    assert not torch.equal(key.state_dict()["1.running_mean"], before["1.running_mean"])


def test_fault_6_frozen_layers_stand_still_and_key_towers_run_in_eval() -> None:
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


def test_the_frozen_prefix_is_shared_and_frozen_tensors_are_stored_once() -> None:
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


def test_fault_1_a_key_does_not_depend_on_its_companions() -> None:
    model = make_model()
    batch = make_batch(5, 0)
    batch = replace(batch, n_boxes_B=torch.tensor([1, 2, 3, 1, 2]))
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = replace(batch, **{name: value[order] for name, value in vars(batch).items()})
    keys = model(batch).image_keys_BD
    assert torch.allclose(model(shuffled).image_keys_BD, keys[order], atol=1e-10)


def test_encoding_is_repeatable_without_gradient_and_leaves_training_on() -> None:
    model = make_model()
    batch = make_batch(4, 0)
    first = model.encode_image(batch)
    assert torch.equal(first, model.encode_image(batch))
    assert not first.requires_grad
    assert model.image_query.training
    assert not model.image_query.prefix.training


def test_parameters_fall_into_the_groups_of_their_learning_rates() -> None:
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


def test_bf16_keeps_the_loss_close_and_the_queue_in_float32() -> None:
    torch.manual_seed(0)
    model = BriVL(resolve("tiny", FROZEN_CNN)).train()
    model.prefill(make_batch(8, 1), -1)
    exact = model(make_batch(8, 0)).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(make_batch(8, 0))
    output.loss.backward()
    model.after_step(output, 0)
    assert model.text_queue.keys_KD.dtype == output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact, rel=0.05)
