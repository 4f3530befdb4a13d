"""What is computed twice, or by a compiled program, gives the numbers of what is computed once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.towers.recompute import run_block, run_stage

BERT = ("text.encoder=bert_text", "text.backbone_layers=2", "text.frozen_layers=1", "text.backbone_heads=4")


def pairs(tokens: int = 9, boxes: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(tokens)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    corners = torch.rand(4, boxes, 2, 2, generator=generator).mul(64).sort(2).values.flatten(2)
    ids, counts = torch.arange(4), torch.tensor([1, boxes, boxes, 2])
    words = torch.randint(1, 7000, (4, tokens), generator=generator)
    lengths = torch.tensor([tokens, 3, 5, tokens])
    return Batch(pixels, corners, counts, words, lengths, ids, ids, ids, torch.ones(4, dtype=torch.bool))


def one_step(model: BriVL, *batches: Batch) -> dict[str, Tensor]:
    """Features, gradients and buffers after a forward and a backward, from one seed."""
    model.train().zero_grad()
    torch.manual_seed(3)
    found = {}
    for number, batch in enumerate(batches):
        features = model.features(batch)
        (features.image_BD @ features.text_BD.T)[0].sum().backward()
        found |= {f"image {number}": features.image_BD.detach(), f"keys {number}": features.image_keys_BD}
    found |= {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found | {n: b.clone() for n, b in model.named_buffers()}


def model_of(*overrides: str) -> BriVL:
    torch.manual_seed(0)
    return BriVL(resolve("tiny", ["moco.queue_size=8", *overrides])).double()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recompute", "towers"),
    [
        ("pointwise", ()),
        ("pointwise", ("image.backbone=timm/test_vit", "image.frozen_stages=1")),
        ("blocks", ("image.backbone=timm/test_resnet", *BERT)),
    ],
    ids=["efficientnet", "vit", "resnet and bert"],
)
def test_features_gradients_and_statistics_are_those_of_a_forward_that_keeps_everything(
    recompute: str, towers: tuple[str, ...]
) -> None:
    expected = one_step(model_of("run.recompute=nothing", *towers), pairs())
    found = one_step(model_of(f"run.recompute={recompute}", *towers), pairs())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-12), name  # dropout too: the same numbers are drawn again


class Convolved(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1, bias=False))


def kept_floats(recompute: str) -> int:
    """Numbers that stay in memory between forward and backward of two blocks, apart from weights and input."""
    torch.manual_seed(0)
    stage, x = nn.Sequential(Convolved(), Convolved()), torch.randn(2, 8, 16, 16)
    kept: dict[int, int] = {}
    mine = {p.untyped_storage().data_ptr() for p in (*stage.parameters(), *stage.buffers(), x)}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine and tensor.ndim == 4:
            kept[storage.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = run_stage(stage, x, recompute=recompute)  # type: ignore[arg-type]
    assert out.requires_grad
    return sum(kept.values()) // x.numel()


def test_blocks_keep_what_enters_them() -> None:
    everything = kept_floats("nothing")
    assert everything == 7  # of each block: first convolution, norm, activation; and what lies between the blocks
    assert kept_floats("blocks") == 1


def test_without_gradient_nothing_is_recomputed() -> None:
    calls: list[int] = []
    block = Convolved()
    block.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        run_block(block, torch.randn(1, 8, 4, 4), recompute="blocks")
    assert calls == [1]


def test_statistics_move_once_a_step() -> None:
    model = model_of("run.recompute=blocks")
    one_step(model, pairs())
    counts = [
        int(m.num_batches_tracked)
        for m in model.image_query.trunk.modules()
        if isinstance(m, _BatchNorm) and m.training and m.num_batches_tracked is not None
    ]
    assert counts
    assert set(counts) == {1}


@pytest.mark.drill(30)
def test_compiled_towers_take_batches_of_any_shape_and_give_the_same() -> None:
    batches = pairs(), pairs(tokens=12, boxes=3)
    plain, compiled = model_of(), model_of()
    compiled.compile_towers(backend="aot_eager")  # what torch.compile traces, without minutes of a C++ compiler
    expected, found = one_step(plain, *batches), one_step(compiled, *batches)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-9), name
