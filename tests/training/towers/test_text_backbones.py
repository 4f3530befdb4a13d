"""Text backbones, against transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.encoders.test_encoders import BERT, batch_of, build
from training.errors import ConfigError
from training.records import Batch
from training.towers.tower import Tower


def small_model(model_type: str, folder: Path, **options: object) -> nn.Module:
    """A model of transformers in the sizes of BERT above, saved as a user would find it on the hub."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    for name, value in (sizes | options).items():
        setattr(config, name, value)
    if hasattr(config, "layer_types"):  # made for the number of layers
        config = AutoConfig.for_model(model_type, **(sizes | options))
    model: nn.Module = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def states_of(tower: Tower, batch: Batch) -> Tensor:
    """What the tower's backbone says of each token."""
    seen: list[Tensor] = []
    hook = tower.trunk.get_submodule("backbone").register_forward_hook(lambda _m, _i, out: seen.append(out))
    tower(batch)
    hook.remove()
    return seen[0]


def text_batch(*tokens: list[int]) -> Batch:
    count = len(tokens)
    images = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    return batch_of(images, torch.zeros(count, 1, 4), [1] * count, list(tokens))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "options", "frozen"),
    [
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-5}, 0),
        ("roberta", {"type_vocab_size": 1}, 2),
        ("modernbert", {"pad_token_id": 3}, 0),  # rotary positions, local and global layers: whole
        ("electra", {"embedding_size": 16}, 3),
        ("distilbert", {"hidden_dim": 40}, 1),
        ("albert", {"embedding_size": 16}, 0),  # its layers are one layer: whole
        ("deberta-v2", {}, 3),  # relative positions: whole, here frozen
    ],
)
def test_a_folder_of_transformers_is_read_and_computes_what_transformers_does(
    tmp_path: Path, model_type: str, options: dict[str, object], frozen: int
) -> None:
    theirs = small_model(model_type, tmp_path, **options).double()
    overrides = [*BERT, f"text.backbone={model_type}", f"text.weights={tmp_path}", f"text.frozen_layers={frozen}"]
    if options:
        overrides.append(f"text.backbone_options={json.dumps(options)}")
    tower, _ = build("text", *overrides)
    batch = text_batch([2, 5, 6, 7], [2, 9, 7])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    expected = theirs(input_ids=batch.token_ids_BL, attention_mask=mask.long()).last_hidden_state
    assert torch.allclose(states_of(tower, batch)[mask], expected[mask], atol=1e-9)
    assert any(True for _ in tower.prefix.parameters()) == (frozen > 0)
    assert not any(p.requires_grad for p in tower.prefix.parameters())


def test_a_frozen_bert_is_its_embeddings_and_leading_layers(tmp_path: Path) -> None:
    small_model("bert", tmp_path)
    tower, _ = build("text", *BERT, f"text.weights={tmp_path}")
    assert len(list(tower.prefix.parameters())) == 5 + 2 * 16
    assert tower.stages == ("backbone.layer.0",)


def test_weights_of_another_architecture_say_which_overrides_fit(tmp_path: Path) -> None:
    small_model("electra", tmp_path, embedding_size=16, hidden_act="relu")
    asked = [*BERT, f"text.weights={tmp_path}", "text.backbone_ffn=64"]
    with pytest.raises(ConfigError) as caught:
        build("text", *asked)
    assert str(caught.value) == (
        f"text.weights: {tmp_path} has another architecture; add --set text.backbone=electra "
        """--set text.backbone_ffn=48 --set 'text.backbone_options={"embedding_size": 16, "hidden_act": "relu"}'"""
    )
    added = re.findall(r"--set (?:'([^']+)'|(\S+))", str(caught.value))
    build("text", *asked, *(quoted or bare for quoted, bare in added))


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small_model("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 tensors, first encoder\.layer\.1\.output\.dense\.weight$"):
        build("text", *BERT, f"text.weights={tmp_path}")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("text.backbone=brt", "text.backbone: unknown transformers model type 'brt'; did you mean b"),
        ("text.backbone=vit", "text.backbone: vit is not a text encoder"),
        ("text.backbone=t5", "text.backbone: t5 is not a text encoder"),
        ('text.backbone_options={"hidden_akt": "relu"}', "text.backbone_options.hidden_akt: unknown option of bert; "),
        ("text.backbone=albert", "text.frozen_layers: albert cannot be frozen in part: use 0, or 3 to freeze it"),
        ("text.frozen_layers=4", "text.frozen_layers: 4 exceeds the 3 layers"),
        ("text.backbone_heads=5", "text.backbone_heads: the width 32 is not a multiple of 5 heads"),
        ("text.weights=gone/away", "text.weights: gone/away: no model could be loaded from there ("),
    ],
)
def test_a_wrong_text_tower_is_one_line(override: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the environment is read at its import
    with pytest.raises(ConfigError) as caught:
        build("text", *BERT, override)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
