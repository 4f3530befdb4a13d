"""load: the towers of a checkpoint, bit by bit, and nothing drawn at random on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.conftest import moved_checkpoint
from training.moco import BriVL
from training.outputs.checkpoint import open_checkpoint
from training.weights.load import load

BERT = ("text.encoder=bert_text", "text.backbone_layers=2", "text.frozen_layers=1", "text.backbone_heads=4")
POSITIONS = ("image.box_embedding=true", "image.position_embedding=true", "text.position_embedding=true")


@pytest.mark.slow
@pytest.mark.parametrize(
    "towers",
    [(), ("image.backbone=timm/test_resnet", *BERT, *POSITIONS), ("image.backbone=timm/test_vit",)],
    ids=["efficientnet", "resnet and bert", "vit"],
)
def test_the_towers_are_those_of_the_file_and_no_weights_are_made_up_before(
    towers: tuple[str, ...], tmp_path: Path
) -> None:
    folder = moved_checkpoint(tmp_path / "run", *towers)
    opened, drawn = open_checkpoint(folder), torch.get_rng_state()
    model = load(folder, "cpu").model
    assert torch.equal(torch.get_rng_state(), drawn)
    filled = BriVL(replace(opened.config, moco=replace(opened.config.moco, objective="clip"))).eval()
    opened.load_towers(filled)
    expected = {**filled.state_dict(), **dict(filled.named_buffers())}
    found = {**model.state_dict(), **dict(model.named_buffers())}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
