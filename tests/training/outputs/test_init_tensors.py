"""A run may begin from towers that are frozen up to another stage: their features stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import save
from training.config import Config
from training.data.tokenizer import load_tokenizer
from training.errors import CheckpointError
from training.moco import BriVL
from training.outputs.checkpoint import RunState, open_checkpoint
from training.records import Batch
from training.resolve import resolve
from training.run.optimizer import build_optimizer

MakeBatch = Callable[..., Batch]

BERT = (
    "text.encoder=bert_text",
    "text.backbone_layers=3",
    "text.backbone_heads=4",
    "text.backbone_ffn=48",
    "text.vocab_size=7500",
)


def asked(image: int, text: int, *more: str) -> Config:
    return resolve("tiny", [*BERT, f"image.frozen_stages={image}", f"text.frozen_layers={text}", *more])


def features(model: BriVL, batch: Batch) -> list[torch.Tensor]:
    """Of both query towers and both key towers, in eval mode."""
    with torch.inference_mode():
        found = model.eval().features(batch)
    return [found.image_BD, found.text_BD, found.image_keys_BD, found.text_keys_BD]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BriVL]:
    """A checkpoint with two frozen stages and one frozen layer, whose key towers are no copies of the query towers."""
    torch.manual_seed(0)
    config = asked(2, 1)
    model = BriVL(config)
    with torch.no_grad():
        for parameter in (*model.image_key.parameters(), *model.text_key.parameters()):
            if id(parameter) not in {id(p) for p in model.image_query.parameters()}:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("run")
    state, optimizer = RunState(1, 8, 0, (), (), ""), build_optimizer(model, config.optim)
    return save(folder, model, optimizer, config, load_tokenizer("gb2312"), state, 1), model


@pytest.mark.slow
@pytest.mark.parametrize(("image", "text"), [(0, 0), (1, 3)])
def test_another_cut_has_the_same_features(
    saved: tuple[Path, BriVL], make_batch: MakeBatch, image: int, text: int
) -> None:
    folder, model = saved
    torch.manual_seed(1)
    config = asked(image, text)
    other, batch = BriVL(config), make_batch(4, 0)
    open_checkpoint(folder).load_start(other, config)
    trained = {name for name, p in other.named_parameters() if p.requires_grad and name.startswith("text_query")}
    assert any("backbone.layer" in name for name in trained) == (text < 3)
    kept = 4 if image <= 2 and text <= 1 else 2  # what is frozen from now on has no average of its own
    for ours, theirs in list(zip(features(other, batch), features(model, batch), strict=True))[:kept]:
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_what_is_trained_from_now_on_begins_as_it_was_frozen(saved: tuple[Path, BriVL], make_batch: MakeBatch) -> None:
    """Of stages that the checkpoint had frozen the key tower has the query tower's weights: there were no others."""
    folder, _ = saved
    config = asked(0, 0)
    other = BriVL(config)
    open_checkpoint(folder).load_start(other, config)
    query, key = other.text_query.trunk.state_dict(), other.text_key.state_dict()
    same = {name for name in query if torch.equal(query[name], key[name])}
    assert "backbone.layer.0.output.dense.weight" in same
    assert "backbone.layer.1.output.dense.weight" not in same


@pytest.mark.slow
def test_the_key_tower_of_a_tower_that_is_frozen_is_the_query_tower(
    saved: tuple[Path, BriVL], make_batch: MakeBatch
) -> None:
    folder, _ = saved
    config = asked(2, 1, "image.frozen=true")
    other = BriVL(config)
    open_checkpoint(folder).load_start(other, config)
    image, text, image_keys, text_keys = features(other, make_batch(4, 0))
    assert torch.equal(image, image_keys)
    assert not torch.allclose(text, text_keys, atol=1e-3)


def test_towers_of_another_shape_are_refused(saved: tuple[Path, BriVL]) -> None:
    config = asked(1, 1, "image.width=64", "image.hidden=48")
    line = r"does not match this model: \d+ tensors differ, first image_query.trunk"
    with pytest.raises(CheckpointError, match=line):
        open_checkpoint(saved[0]).load_start(BriVL(config), config)
