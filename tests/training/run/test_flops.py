"""Counted operations against published figures and hand counts, and the meter."""

from __future__ import annotations

import pytest
import torch

from training.config import Config
from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.run.flops import Meter, forward_flops, peak_flops

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def brivl(recipe: str, *overrides: str) -> Config:
    return resolve(recipe, ["image.weights=", "text.weights=", *overrides])


@pytest.mark.drill(10)
@pytest.mark.parametrize(
    ("config", "modality", "parts", "expected"),
    [
        (brivl("brivl_b5_base"), "image", 37, 13.8e9),
        pytest.param(brivl("brivl_b7_large", "data.image_size=380"), "image", 37, 30.2e9, marks=pytest.mark.slow),
        pytest.param(brivl("brivl_b7_large"), "text", 80, 48.9e9, marks=pytest.mark.slow),
    ],
    ids=["B5 at 380", "B7 at 380", "RoBERTa-large at 80 tokens"],
)
def test_backbones_have_their_known_operations(config: Config, modality: str, parts: int, expected: float) -> None:
    counted = forward_flops(config, "image" if modality == "image" else "text", parts)
    assert counted["backbone"] == pytest.approx(expected, rel=0.005)
    assert counted["tower"] > counted["backbone"]


def test_an_encoder_layer_is_counted_as_by_hand() -> None:
    one, two = (forward_flops(resolve("tiny", [f"text.layers={n}"]), "text", 16)["tower"] for n in (1, 2))
    width, ffn, tokens = 32, 64, 16
    products = 4 * width * width + 2 * width * ffn  # q k v and out; in and out of the feed-forward
    attention = 2 * tokens * width  # scores and mix, a token
    assert two - one == 2 * tokens * (products + attention)


def test_a_step_is_prefix_once_key_trunk_once_and_three_times_the_query_trunk() -> None:
    config = resolve("tiny", ["image.dropout=0"])
    step = Meter(config, torch.device("cpu")).step_flops(1, 5, 16)
    image, text = forward_flops(config, "image", 5), forward_flops(config, "text", 16)
    # Less than 4 forwards: the prefix is computed once, the frozen head has no gradient of weights, and the first
    # trained layer none of its input. More than 3 of what is new.
    assert 3.5 * text["tower"] < step - 2 * image["tower"]
    assert step < 4 * (image["tower"] + text["tower"])
    clip = Meter(resolve("tiny", ["moco.objective=clip"]), torch.device("cpu")).step_flops(1, 5, 16)
    assert clip < step - 0.9 * text["tower"]


def test_a_frozen_tower_has_no_backward() -> None:
    whole, frozen = (
        Meter(resolve("tiny", list(words)), torch.device("cpu")).step_flops(1, 5, 16)
        for words in ((), ("text.frozen=true",))
    )
    text = forward_flops(resolve("tiny"), "text", 16)
    assert whole - frozen == pytest.approx(2 * text["tower"], rel=0.1), "gradients of weights and of inputs"


@pytest.mark.drill(2)
def test_key_towers_compute_the_patches_that_the_query_tower_leaves_out() -> None:
    words = ('image.backbone_options={"num_hidden_layers": 2, "patch_size": 16}', "text.backbone_layers=1")
    (moco, less), (clip, less_clip) = (
        [
            Meter(
                resolve("two_towers", [*words, f"moco.objective={objective}", f"image.patch_dropout={share}"]),
                torch.device("cpu"),
            ).step_flops(1, 1, 16)
            for share in (0, 0.5)
        ]
        for objective in ("moco", "clip")
    )
    assert less - less_clip == pytest.approx(moco - clip, rel=1e-6)
    assert less_clip < 0.7 * clip


@pytest.mark.drill(2)
def test_recomputing_is_no_progress() -> None:
    plain, again = (
        Meter(resolve("tiny", [f"run.recompute={how}"]), torch.device("cpu")).step_flops(8, 5, 16)
        for how in ("nothing", "blocks")
    )
    assert plain == again


def test_work_between_the_counted_lengths_is_what_it_is_there() -> None:
    config = resolve("tiny")
    meter = Meter(config, torch.device("cpu"))
    curve = [meter.step_flops(1, 5, tokens) for tokens in (3, 11)]
    text = [forward_flops(config, "text", tokens)["tower"] for tokens in (3, 11)]
    assert curve[1] - curve[0] == pytest.approx(4 * (text[1] - text[0]), rel=0.02)


def test_the_meter_knows_cards_by_name_and_no_peak_of_a_cpu() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops("NVIDIA H200", "bf16") == 989e12
    assert peak_flops("NVIDIA L40S", "bf16") == 362e12
    assert peak_flops("NVIDIA GeForce RTX 4090", "fp32") == 82.6e12
    assert peak_flops("AMD Instinct", "bf16") is None
    config = resolve("tiny")
    ids = torch.arange(2)
    batch = Batch(
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 3, 4), ids, torch.zeros(2, 7).long(), *[ids] * 4,
        torch.ones(2, dtype=torch.bool),
    )  # fmt: skip
    meter = Meter(config, torch.device("cpu"))
    found = meter.metrics([batch, batch], 2.0)
    assert found == {"tflops": pytest.approx(meter.step_flops(2, 3, 7) / 1e12)}
    assert next(BriVL(config).parameters()).device.type == "cpu"  # nothing of the counting on meta stays behind
