"""Gradients over micro-batches are those of the whole batch, for every objective."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from training.errors import ConfigError
from training.method.key_queue import SampleIds
from training.moco import BriVL, Features
from training.records import Batch
from training.run.step import backward

pytestmark = pytest.mark.usefixtures("one_thread")

FROZEN_CNN = ("image.frozen_stages=7", "image.dropout=0", "text.dropout=0")
OBJECTIVES = {
    "moco": ("moco.queue_size=13",),
    "in_batch_keys": ("moco.queue_size=13", "moco.in_batch_keys=true"),
    "clip": ("moco.objective=clip", "moco.learn_temperature=true"),
    "siglip": ("moco.objective=siglip",),
    "albef": ("moco.objective=albef", "moco.queue_size=13"),
}
IN_BATCH = {name: OBJECTIVES[name] for name in ("in_batch_keys", "siglip")}

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., BriVL]


def parts(batch: Batch, size: int) -> list[Batch]:
    return [batch.rows(i, i + size) for i in range(0, len(batch), size)]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", OBJECTIVES.values(), ids=OBJECTIVES)
def test_accumulation_is_exact(overrides: tuple[str, ...], make_model: MakeModel, make_batch: MakeBatch) -> None:
    """Loss, parameters, key towers and queues of two steps, whole and in four micro-batches."""
    whole = make_model(*overrides, *FROZEN_CNN)
    cut = copy.deepcopy(whole)
    for step in range(2):
        batch = make_batch(8, step, invalid=[step], texts=9)
        losses = []
        for model, micros in ((whole, [batch]), (cut, parts(batch, 2))):
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
            optimizer.zero_grad()
            outputs = backward(model, micros, 7.0)
            optimizer.step()
            model.after_step(outputs, step)
            losses.append(sum(output.loss.item() for output in outputs))
        assert losses[0] == pytest.approx(losses[1], abs=1e-12)
        assert losses[0] > 0 or step == 0
    for (name, a), b in zip(whole.state_dict().items(), cut.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-9) if a.is_floating_point() else torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize("overrides", IN_BATCH.values(), ids=IN_BATCH)
def test_dropout_and_batch_norm_are_those_of_one_graph(
    overrides: tuple[str, ...], make_model: MakeModel, make_batch: MakeBatch
) -> None:
    """Cached features against one graph over all micro-batches with the same dropout; statistics move once."""
    cached = make_model(*overrides)
    graph = copy.deepcopy(cached)
    micros = parts(make_batch(6, 1), 3)
    for model in (cached, graph):
        model.prefill(make_batch(6, 0), -1)

    torch.manual_seed(5)
    outputs = backward(cached, micros, 6.0)

    torch.manual_seed(5)
    seeds = torch.randint(2**62, (2,)).tolist()
    found: list[Features] = []
    for batch, seed in zip(micros, seeds, strict=True):
        torch.manual_seed(seed)
        found.append(graph.features(batch))
    names = ("image_BD", "text_BD", "image_keys_BD", "text_keys_BD")
    columns = [torch.cat([getattr(features, name) for features in found]) for name in names]
    output = graph.loss(Features(*columns, SampleIds.concatenate([features.ids for features in found])), 6.0)
    output.loss.backward()

    assert sum(o.loss.item() for o in outputs) == pytest.approx(output.loss.item(), abs=1e-12)
    for (name, a), b in zip(cached.named_parameters(), graph.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-10), name
    for (name, a), b in zip(cached.named_buffers(), graph.buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-12) if a.is_floating_point() else torch.equal(a, b), name
    assert all(m.track_running_stats for m in cached.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_under_autocast_the_weights_still_get_their_gradient(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """Casts that the first forward makes without a graph must not serve the second one."""
    model = make_model("moco.objective=clip", *FROZEN_CNN).float()
    exact = copy.deepcopy(model)
    micros = parts(make_batch(6, 1), 3)

    def bf16() -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16)

    backward(model, micros, 6.0, bf16)
    backward(exact, micros, 6.0)
    for (name, a), b in zip(model.named_parameters(), exact.parameters(), strict=True):
        if b.grad is not None and float(b.grad.norm()) > 1e-2:
            assert a.grad is not None, name
            cosine = torch.nn.functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0)
            assert float(cosine) > 0.9, name


@pytest.mark.slow
@pytest.mark.parametrize(("tower", "objective"), [("image", "clip"), ("text", "moco")])
def test_a_frozen_tower_stays_and_the_other_is_trained(
    tower: str, objective: str, make_model: MakeModel, make_batch: MakeBatch
) -> None:
    """In one micro-batch and in two, where features are cached: not even its batch norms' statistics move."""
    model = make_model(f"{tower}.frozen=true", f"moco.objective={objective}", "moco.queue_size=8")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "_query." in name}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for step in range(2):
        batch = make_batch(4, step)
        outputs = backward(model, [batch] if step else parts(batch, 2), 4.0)
        optimizer.step()
        model.after_step(outputs, step)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, model.state_dict()[name])}
    assert changed
    assert not [name for name in changed if name.startswith(f"{tower}_query.")]
    if model.has_keys:
        query, key = getattr(model, f"{tower}_query").trunk, getattr(model, f"{tower}_key")
        for name, tensor in query.state_dict().items():
            assert torch.equal(tensor, key.state_dict()[name]), name


def test_both_towers_frozen_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"^text.frozen: image.frozen is also set, so nothing is left to train"):
        make_model("image.frozen=true", "text.frozen=true")
