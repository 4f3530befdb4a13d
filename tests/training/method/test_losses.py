"""Every objective against one written out in NumPy: lists as queues, loops over samples, gradients by hand.

Towers here are one matrix and a norm, so that the oracle can follow a whole run: loss, gradient by the weights, moving
average, queue. Torch's cross-entropy stands beside it as a second oracle of `clip`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import MocoConfig
from training.method.key_towers import key_trunk
from training.method.losses import even_targets, info_nce
from training.moco import BriVL, StepOutput
from training.objectives.albef import soft_targets
from training.objectives.siglip import sigmoid_loss
from training.records import Batch
from training.resolve import resolve
from training.towers.layers import unit
from training.towers.tower import Tower

FROZEN_CNN = ("image.frozen_stages=7", "image.dropout=0", "text.dropout=0")
RATE = 0.3
INPUTS, WIDTH = {"image": 6, "text": 5}, 8

Floats = npt.NDArray[np.float64]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., BriVL]


class Row:
    """A candidate: its vector, its ids, and its place in the batch where its vector is a query tower's feature."""

    def __init__(self, vector: Floats, ids: tuple[int, int], place: int | None = None) -> None:
        self.vector, self.ids, self.place = vector, ids, place


@dataclass
class Oracle:
    """A run of `moco` in plain float64, from the weights [WIDTH, inputs] of both towers."""

    moco: MocoConfig
    query: dict[str, Floats]
    key: dict[str, Floats] = field(default_factory=dict)
    queue: dict[str, list[Row | None]] = field(default_factory=lambda: {"image": [], "text": []})

    def __post_init__(self) -> None:
        self.key = {name: weight.copy() for name, weight in self.query.items()}
        self.log_scale = math.log(1 / self.moco.temperature)
        self.bias = self.moco.bias if self.moco.objective == "siglip" else 0.0
        self.has_keys = self.moco.objective in ("moco", "albef")
        self.in_batch = self.moco.objective != "moco" or self.moco.in_batch_keys

    def step(self, inputs: dict[str, Floats], ids: Sequence[tuple[int, int]], valid: Sequence[bool]) -> float:
        """Loss of one step; leaves the gradients in `self.gradient`, then moves everything."""
        lengths = {n: np.linalg.norm(x @ self.query[n].T, axis=1, keepdims=True) for n, x in inputs.items()}
        queries = {n: x @ self.query[n].T / lengths[n] for n, x in inputs.items()}
        keys = queries
        if self.has_keys:
            raw = {n: x @ self.key[n].T for n, x in inputs.items()}
            keys = {n: r / np.linalg.norm(r, axis=1, keepdims=True) for n, r in raw.items()}
        self.by_feature = {n: np.zeros_like(q) for n, q in queries.items()}
        self.gradient = {"log_scale": np.zeros(()), "bias": np.zeros(())}
        loss = self._direction("image", "text", queries, keys, ids, valid)
        if self.moco.objective != "siglip":
            loss += self._direction("text", "image", queries, keys, ids, valid)
        for n, q in queries.items():  # through f / |f|, then through the matrix
            g = self.by_feature[n]
            self.gradient[n] = ((g - (g * q).sum(1, keepdims=True) * q) / lengths[n]).T @ inputs[n]
            self.query[n] = self.query[n] - RATE * self.gradient[n]
            self.key[n] = self.moco.momentum * self.key[n] + (1 - self.moco.momentum) * self.query[n]
        if self.moco.learn_temperature or self.moco.objective == "siglip":
            low, high = self.moco.temperature_range
            self.log_scale -= RATE * float(self.gradient["log_scale"])
            self.log_scale = min(max(self.log_scale, -math.log(high)), -math.log(low))
        if self.moco.objective == "siglip":
            self.bias -= RATE * float(self.gradient["bias"])
        for n in ("image", "text"):
            self.queue[n] += [Row(keys[n][i], ids[i]) if valid[i] else None for i in range(len(ids))]
            self.queue[n] = self.queue[n][-self.moco.queue_size :]
        return loss

    def _direction(
        self,
        one: str,
        other: str,
        queries: dict[str, Floats],
        keys: dict[str, Floats],
        ids: Sequence[tuple[int, int]],
        valid: Sequence[bool],
    ) -> float:
        loss, count = 0.0, sum(valid)
        scale = math.exp(self.log_scale)
        for i in range(len(ids)):
            if not valid[i]:
                continue
            rows = [Row(keys[other][i], ids[i], i)]
            if self.in_batch:
                rows += [Row(keys[other][j], ids[j], j) for j in range(len(ids)) if valid[j] and j != i]
            if self.has_keys:
                rows += [row for row in self.queue[other] if row is not None]
            same = [row.ids[0] == ids[i][0] or row.ids[1] == ids[i][1] for row in rows]
            if self.moco.false_negatives == "masked":
                rows = [rows[0], *(row for row, is_same in zip(rows[1:], same[1:], strict=True) if not is_same)]
            positive = [True] + [self.moco.false_negatives == "positives" and s for s in same[1 : len(rows)]]
            matrix = np.stack([row.vector for row in rows])
            cosines = matrix @ queries[one][i]
            teacher = scale * matrix @ keys[one][i] + self.bias
            value, slope = self._loss(scale * cosines + self.bias, np.array(positive), teacher)
            loss += value / count
            slope /= count
            self.by_feature[one][i] += scale * slope @ matrix
            self.gradient["log_scale"] += scale * slope @ cosines
            self.gradient["bias"] += slope.sum()
            if not self.has_keys:
                for row, s in zip(rows, slope, strict=True):
                    assert row.place is not None
                    self.by_feature[other][row.place] += scale * s * queries[one][i]
        return loss

    def _loss(self, logits: Floats, positive: npt.NDArray[np.bool_], teacher: Floats) -> tuple[float, Floats]:
        """Of one query, and its derivative by the logits."""
        if self.moco.objective == "siglip":
            sign = np.where(positive, 1.0, -1.0)
            return float(np.log1p(np.exp(-sign * logits)).sum()), -sign / (1 + np.exp(sign * logits))
        target = positive / positive.sum()
        if self.moco.objective == "albef":
            target = (1 - self.moco.soft_targets) * target + self.moco.soft_targets * softmax(teacher)
        p = softmax(logits)
        return float(-(target * np.log(p)).sum()), p - target


def softmax(x: Floats) -> Floats:
    e: Floats = np.exp(x - x.max())
    return e / e.sum()


class ImagePrefix(nn.Module):
    def forward(self, batch: Batch) -> Tensor:
        return batch.images_B3HW.flatten(1)


class TextPrefix(nn.Module):
    def forward(self, batch: Batch) -> Tensor:
        return batch.boxes_BR4.flatten(1)  # numbers of any kind will do


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return unit(x @ self.weight.T)


def linear_model(dtype: torch.dtype, *overrides: str) -> BriVL:
    """BriVL whose towers are one matrix each."""
    model = BriVL(resolve("tiny", [f"moco.feature_dim={WIDTH}", *overrides]))
    generator = torch.Generator().manual_seed(1)
    for name, prefix in (("image", ImagePrefix()), ("text", TextPrefix())):
        trunk = Linear(torch.randn(WIDTH, INPUTS[name], generator=generator, dtype=torch.float64))
        setattr(model, f"{name}_query", Tower("image" if name == "image" else "text", prefix, trunk))
        if model.has_keys:
            setattr(model, f"{name}_key", key_trunk(trunk))
    return model.to(dtype).train()


def numbers(dtype: torch.dtype, size: int, seed: int) -> Batch:
    """Samples of random numbers; one of them cannot be read, and images and texts recur."""
    g = torch.Generator().manual_seed(100 + seed)
    zeros = torch.zeros(size, dtype=torch.int64)
    images = torch.randn(size, 3, 1, 2, generator=g, dtype=torch.float64)
    texts = torch.randn(size, 1, 5, generator=g, dtype=torch.float64)
    image_ids, text_ids = (torch.randint(0, 6, (size,), generator=g) for _ in range(2))
    valid = torch.arange(size) != seed % (size + 2)
    return Batch(images.to(dtype), texts.to(dtype), zeros, zeros[:, None], zeros, zeros, image_ids, text_ids, valid)


OBJECTIVES = {
    "moco": (),
    "moco-positives": ("moco.false_negatives=positives",),
    "moco-negatives": ("moco.false_negatives=negatives",),
    "moco-in-batch": ("moco.in_batch_keys=true",),
    "moco-in-batch-positives": ("moco.in_batch_keys=true", "moco.false_negatives=positives"),
    "moco-learned": ("moco.learn_temperature=true",),
    "moco-held": ("moco.learn_temperature=true", "moco.temperature_range=0.19,0.21"),
    "clip": ("moco.objective=clip",),
    "clip-positives-learned": (
        "moco.objective=clip",
        "moco.false_negatives=positives",
        "moco.learn_temperature=true",
    ),
    "siglip": ("moco.objective=siglip", "moco.bias=-2"),
    "siglip-positives": ("moco.objective=siglip", "moco.bias=-2", "moco.false_negatives=positives"),
    "siglip-negatives": ("moco.objective=siglip", "moco.bias=-2", "moco.false_negatives=negatives"),
    "albef": ("moco.objective=albef",),
    "albef-positives-learned": (
        "moco.objective=albef",
        "moco.false_negatives=positives",
        "moco.learn_temperature=true",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "within", "size"), [(torch.float64, 1e-6, 10), (torch.float32, 1e-5, 3)], ids=["f64-K10", "f32-K3"]
)
@pytest.mark.parametrize("overrides", OBJECTIVES.values(), ids=OBJECTIVES)
def test_loss_and_gradient_are_the_oracles_over_steps_that_wrap_around(
    overrides: tuple[str, ...], dtype: torch.dtype, within: float, size: int
) -> None:
    model = linear_model(dtype, f"moco.queue_size={size}", "moco.temperature=0.2", "moco.momentum=0.7", *overrides)
    trunks = {name: getattr(model, f"{name}_query").trunk for name in ("image", "text")}
    oracle = Oracle(model.moco, {n: t.weight.detach().double().numpy().copy() for n, t in trunks.items()})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, RATE)
    losses = []
    for step in range(7):
        batch = numbers(dtype, 4, step)
        inputs = {"image": batch.images_B3HW.flatten(1), "text": batch.boxes_BR4.flatten(1)}
        ids = list(zip(batch.image_ids_B.tolist(), batch.text_ids_B.tolist(), strict=True))
        expected = oracle.step({n: x.double().numpy() for n, x in inputs.items()}, ids, batch.valid_B.tolist())
        output = model(batch)
        optimizer.zero_grad()
        output.loss.backward()
        assert output.loss.item() == pytest.approx(expected, rel=within, abs=within * 1e-3)
        losses.append(expected)
        found = {n: t.weight for n, t in trunks.items()}
        found |= {n: p for n in ("log_scale", "bias") if (p := getattr(model.logits, n)) is not None}
        assert len(found) == len(trained)
        for name, parameter in found.items():
            assert parameter.grad is not None
            right = oracle.gradient[name]
            off = np.abs(parameter.grad.double().numpy() - right).max()
            assert off <= within * max(np.abs(right).max(), 1e-3), (step, name)
        optimizer.step()
        model.after_step(output, step)
    assert np.mean(losses) > 0.5
    if model.has_keys:
        for name in ("image", "text"):
            queue = getattr(model, f"{name}_queue")
            order = (int(queue.cursor) + np.arange(size)) % size
            for slot, row in zip(order, oracle.queue[name], strict=True):
                assert bool(queue.filled_K[slot]) == (row is not None)
                if row is not None:
                    assert (int(queue.image_ids_K[slot]), int(queue.text_ids_K[slot])) == row.ids
                    assert np.abs(queue.keys_KD[slot].double().numpy() - row.vector).max() < 10 * within


def features(model: BriVL, batch: Batch) -> tuple[Tensor, Tensor]:
    return model.encode_image(batch), model.encode_text(batch)


def test_clip_is_torchs_cross_entropy_over_the_batch(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model("moco.objective=clip", "moco.temperature=0.2", *FROZEN_CNN), make_batch(6, 0)
    image, text = features(model, batch)
    logits, target = image @ text.T / 0.2, torch.arange(6)
    expected = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    output = model(batch)
    assert output.loss.item() == pytest.approx(float(expected), abs=1e-10)
    assert float(output.metrics["i2t_accuracy"]) == pytest.approx(float((logits.argmax(1) == target).double().mean()))
    model.after_step(output, 0)
    assert model.queue_health(0) == {}
    assert not any(name.startswith(("image_key", "text_key", "image_queue")) for name in model.state_dict())


@pytest.mark.slow
def test_what_shares_image_or_text_is_masked_or_positive_or_negative(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    """The queue holds the same four images under other captions: each sample has one false negative there."""
    first = make_batch(4, 0)
    again = replace(first, text_ids_B=make_batch(4, 1).text_ids_B)
    found: dict[str, StepOutput] = {}
    for how in ("masked", "positives", "negatives"):
        model = make_model(f"moco.false_negatives={how}", "moco.temperature=0.2", *FROZEN_CNN)
        model.prefill(first, -1)
        found[how] = model(again)
    assert float(found["masked"].metrics["i2t_excluded"]) == pytest.approx((44 + 1) / 48)  # 44 slots are empty
    for how in ("positives", "negatives"):
        assert float(found[how].metrics["i2t_excluded"]) == pytest.approx(44 / 48)
    queries, keys = model.encode_image(again), model.text_queue.keys_KD[:4]
    own = (queries * found["negatives"].text_keys_BD).sum(1)
    logits = torch.cat([own[:, None], queries @ keys.T], dim=1) / 0.2
    both = torch.cat([torch.ones(4, 1), torch.eye(4)], dim=1).double() / 2
    expected = F.cross_entropy(logits, both) + F.cross_entropy(
        torch.cat(
            [
                (model.encode_text(again) * found["negatives"].image_keys_BD).sum(1)[:, None],
                model.encode_text(again) @ model.image_queue.keys_KD[:4].T,
            ],
            dim=1,
        )
        / 0.2,
        both,
    )
    assert found["positives"].loss.item() == pytest.approx(float(expected), abs=1e-10)
    assert found["masked"].loss.item() < found["negatives"].loss.item()


def test_losses_stay_finite_where_little_or_nothing_counts() -> None:
    logits = torch.tensor([[500.0, -500.0, 3.0]], requires_grad=True)
    only_own = torch.tensor([[True, False, False]])
    targets = even_targets(only_own, logits)
    taught = soft_targets(targets, -logits.detach(), only_own, 0.4)
    losses = [info_nce(logits, only_own, t) for t in (targets, taught)] + [sigmoid_loss(logits, only_own, only_own)]
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), logits)
    assert [loss.item() for loss in losses] == [0, 0, 0]
    assert torch.equal(gradient, torch.zeros_like(gradient))
