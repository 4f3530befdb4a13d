"""The optimiser's groups and the schedule."""

from __future__ import annotations

import pytest

from training.moco import BriVL
from training.resolve import resolve
from training.run.optimizer import batch_factor, build_optimizer, schedule

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    optim = resolve("tiny", ["optim.warmup_samples=100"]).optim
    factors = [schedule(optim, position, 1000) for position in range(0, 1001, 10)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.0, abs=1e-9)
    constant = resolve("tiny", ["optim.schedule=constant"]).optim
    assert schedule(constant, 500, 1000) == 1.0


def test_warm_up_stable_decay_begins_alike_whatever_the_length() -> None:
    optim = resolve("tiny", ["optim.warmup_samples=100", "optim.schedule=wsd", "optim.decay_share=0.25"]).optim
    short = [schedule(optim, position, 1000) for position in range(0, 1001, 10)]
    long = [schedule(optim, position, 4000) for position in range(0, 4001, 10)]
    assert short[:75] == long[:75]
    assert short[10:76] == [1.0] * 66
    assert short[75:] == pytest.approx([(1000 - position) / 250 for position in range(750, 1001, 10)])


def test_a_warm_start_rises_over_its_share_of_the_run_to_a_lower_rate() -> None:
    settings = ["optim.lr=1", "optim.lr_factor=0.5", "optim.warmup_share=0.1"]
    optim = resolve("tiny", settings).optim
    assert [schedule(optim, position, 1000) for position in (0, 99, 100)] == [1 / 101, 100 / 101, 1.0]
    assert schedule(resolve("tiny", [*settings, "optim.warmup_samples=200"]).optim, 100, 1000) == 101 / 201
    _, rate, _ = rates("optim.lr_factor=0.5")
    assert set(rate.values()) == {0.5}


def test_the_rate_follows_the_batch_as_stated() -> None:
    def factor(*settings: str) -> float:
        return batch_factor(resolve("tiny", settings).optim, 64)

    assert factor() == 1.0
    assert factor("optim.lr_batch=16") == 4.0
    assert factor("optim.lr_batch=16", "optim.lr_scaling=sqrt") == 2.0


def rates(*overrides: str) -> tuple[BriVL, dict[str, float], dict[str, float]]:
    """A tiny model, and by name of each trained parameter its learning rate (lr is 1) and weight decay (0.5)."""
    config = resolve("tiny", ["optim.lr=1", "optim.weight_decay=0.5", *overrides])
    model = BriVL(config)
    optimizer = build_optimizer(model, config.optim)
    names = {id(p): name for name, p in model.named_parameters()}
    described = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(described) == len(dict(described)), "a parameter in two groups"
    assert set(dict(described)) == {name for name, p in model.named_parameters() if p.requires_grad}
    return model, {n: g["base_lr"] for n, g in described}, {n: g["weight_decay"] for n, g in described}


def test_backbones_and_new_layers_have_rates_of_their_own() -> None:
    _, rate, _ = rates("optim.lr_image_backbone=0.1")
    for name, value in rate.items():
        assert value == pytest.approx(0.1 if name.startswith("image_query.trunk.backbone.") else 1.0)


def test_biases_norms_and_positions_do_not_decay() -> None:
    model, _, decay = rates("image.backbone=timm/test_vit", "image.frozen_stages=0")
    parameters = dict(model.named_parameters())
    still = {n for n, d in decay.items() if d == 0}
    assert still == {n for n in decay if parameters[n].ndim < 2 or n.endswith(("pos_embed", "cls_token"))}
    assert any(n.endswith("pos_embed") for n in still)
    assert decay["text_query.trunk.tokens.weight"] == 0.5


@pytest.mark.slow
def test_layer_decay_goes_down_the_backbones_only() -> None:
    bert = ("text.encoder=bert_text", "text.backbone_layers=3", "text.backbone_heads=4", "text.backbone_ffn=48")
    _, rate, _ = rates("optim.layer_decay=0.5", "image.freeze_head=false", *bert, "text.vocab_size=9000")
    image = {n.split(".")[3]: v for n, v in rate.items() if n.startswith("image_query.trunk.backbone.")}
    assert image == {"head": 0.5, "blocks_4": 0.25, "blocks_3": 0.125, "blocks_2": 0.0625, "blocks_1": 0.03125}
    text = {".".join(n.split(".")[3:5]): v for n, v in rate.items() if n.startswith("text_query.trunk.backbone.layer")}
    assert text == {"layer.2": 0.5, "layer.1": 0.25, "layer.0": 0.125}
    embeddings = {v for n, v in rate.items() if n.startswith("text_query.trunk.backbone.embeddings")}
    assert embeddings == {0.0625}
    assert {v for n, v in rate.items() if ".trunk.backbone." not in n} == {1.0}
