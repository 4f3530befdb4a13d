"""Recipes by name and overrides: typed by their field, and a wrong key or value is one line that names it."""

from __future__ import annotations

import pytest

from training.captions.decoder import CaptionerConfig
from training.config import to_dict
from training.errors import ConfigError
from training.resolve import apply_overrides, fine_tunes, known_recipes, resolve


def test_overrides_are_typed_by_their_field() -> None:
    config = resolve(
        "tiny",
        [
            "moco.queue_size=7",
            "moco.temperature=0.2",
            "moco.prefill=false",
            "moco.objective=clip",
            "data.tokenizer=123",
            "data.color_jitter=0.1,0.2,0.3,0",
            'data.text_kinds={"news": {"alt": 1}}',
            'text.backbone_options={"hidden_act": "relu", "type_vocab_size": 1, "layer_norm_eps": 1e-5}',
            "optim.betas=[0.8, 0.9]",
            "seed=5",
        ],
    )
    assert (config.moco.queue_size, config.moco.temperature, config.moco.prefill) == (7, 0.2, False)
    assert (config.moco.objective, config.data.tokenizer, config.seed) == ("clip", "123", 5)
    assert (config.data.color_jitter, config.optim.betas) == ((0.1, 0.2, 0.3, 0.0), (0.8, 0.9))
    assert config.data.text_kinds == {"news": {"alt": 1.0}}
    assert config.text.backbone_options == {"hidden_act": "relu", "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    assert resolve("tiny", ["data.text_kinds=primary"]).data.text_kinds == "primary"


def test_keys_that_must_fit_each_other_come_in_any_order() -> None:
    overrides = ["run.accumulate=3", "run.batch_size=6"]
    assert resolve("tiny", overrides) == resolve("tiny", overrides[::-1])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("moco.queue_sise=7", "--set moco.queue_sise: unknown key queue_sise; did you mean queue_size?"),
        ("moko.queue_size=7", "--set moko.queue_size: unknown key moko; did you mean moco.queue_size?"),
        ("layers=7", "--set layers: unknown key layers; did you mean image.layers or text.layers?"),
        ("mocco=7", "--set mocco: unknown key mocco; did you mean moco?"),
        ("moco.queue_size=many", "--set moco.queue_size: 'many': input should be a valid integer"),
        ("moco.queue_size=1.5", "--set moco.queue_size: 1.5: input should be a valid integer"),
        ("moco.queue_size=true", "--set moco.queue_size: True: input should be a valid integer"),
        ("moco.temperature=NaN", "--set moco.temperature: nan: input should be a finite number"),
        ("moco=1", "--set moco: set one of its keys, moco.NAME"),
        (
            'text.backbone_options={"a": [1]}',
            "--set text.backbone_options.a: [1]: not a number, text, true or false",
        ),
        (
            "run.recompute=some",
            "--set run.recompute: 'some': input should be 'auto', 'nothing', 'pointwise' or 'blocks'",
        ),
        ("optim.layer_decay=0", "--set optim.layer_decay: 0: input should be greater than or equal to 0.000001"),
        ("seed.x=1", "--set seed.x: seed is a value and does not have keys"),
        ("seed", "--set seed: write it as key=value, for example moco.queue_size=512"),
        ("optim.betas=1", "--set optim.betas: 1: input should be less than or equal to 0.999999"),
        ("data.text_kinds=main", "--set data.text_kinds: 'main': input should be 'primary'"),
        ("moco.queue_size=0", "--set moco.queue_size: 0: input should be greater than or equal to 1"),
        ("image.heads=5", "image.heads: the width 32 is not a multiple of 5 heads"),
        ("run.accumulate=3", "run.accumulate: 3 does not divide the batch 8"),
        ("optim.betas=0.9,1", "--set optim.betas: 1: input should be less than or equal to 0.999999"),
        ("data.color_jitter=0,0,0,1", "data.color_jitter: a hue of 1.0 exceeds 0.5, half the colour circle"),
        ("text.hidden=0", "--set text.hidden: 0: input should be greater than or equal to 1"),
        ("data.max_tokens=65", "data.max_tokens: 65 exceeds text.max_positions"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("tiny", [override])
    assert str(caught.value) == line


def test_a_gpu_does_not_decode_in_forked_workers() -> None:
    with pytest.raises(ConfigError, match=r"^data.decoder: 'device' needs data.num_workers=0"):
        resolve("starter", ["data.decoder=device", "data.num_workers=2"])
    assert resolve("starter", ["data.decoder=device", "data.num_workers=0"]).data.decoder == "device"


def test_an_unknown_recipe_names_the_known_ones() -> None:
    line = r"^recipe tini: unknown; did you mean tiny\? known recipes: brivl2_b7_large, "
    with pytest.raises(ConfigError, match=line):
        resolve("tini")


def test_only_recipes_are_recipes() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        resolve("replace")  # a function that recipes.py imports


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_a_number_without_end_and_nesting_without_end_are_one_line(value: str) -> None:
    for key in ("moco.queue_size", "optim.betas", "data.text_kinds"):
        with pytest.raises(ConfigError) as e:
            resolve("tiny", [f"{key}={value}"])
        assert "\n" not in str(e.value)


FINE_TUNING = [name for name in known_recipes() if fine_tunes(name)]


@pytest.mark.parametrize("recipe", FINE_TUNING)
def test_a_recipe_that_fine_tunes_keeps_the_towers_of_its_checkpoint(recipe: str) -> None:
    begin = resolve("tiny", ["image.width=64", "text.layers=2", "moco.queue_size=99", "run.batch_size=6"])
    config = resolve(recipe, ["optim.layer_decay=0.5"], begin)
    before, now = to_dict(begin), to_dict(config)
    assert (now["image"], now["text"], now["seed"], now["compat"]) == tuple(
        before[key] for key in ("image", "text", "seed", "compat")
    )
    assert (config.moco.queue_size, config.run.batch_size, config.optim.layer_decay) == (99, 6, 0.5)
    assert config.run.patience
    assert config.run.evaluates
    assert resolve(recipe, ["optim.layer_decay=0.5"], config) == config, "of its own checkpoint the same config"


@pytest.mark.parametrize("recipe", FINE_TUNING)
def test_a_recipe_that_fine_tunes_leaves_the_mirror_of_its_checkpoint(recipe: str) -> None:
    begin = resolve("tiny", ["run.mirror=s3://bucket/pretrained"])
    assert not resolve(recipe, (), begin).run.mirror, "or the run would fetch the pre-training's checkpoints"
    assert resolve(recipe, ["run.mirror=s3://bucket/tuned"], begin).run.mirror == "s3://bucket/tuned"


def test_a_recipe_that_fine_tunes_wants_a_checkpoint() -> None:
    assert FINE_TUNING == ["finetune_captions", "finetune_classes"]
    with pytest.raises(ConfigError, match=r"^recipe finetune_classes: fine-tunes a checkpoint; give it with --init$"):
        resolve("finetune_classes")
    assert resolve("tiny", (), resolve("starter")) == resolve("tiny"), "others do not look at it"


def test_a_record_of_plain_fields_takes_overrides_too() -> None:
    assert apply_overrides(CaptionerConfig(), ["layers=2", "lr=1e-3", "layers=5"]) == CaptionerConfig(layers=5, lr=1e-3)
    for override, line in (
        ("layerz=1", "--set layerz: unknown key; did you mean layers?"),
        ("layers=many", "--set layers: 'many': input should be a valid integer"),
        ("layers=0", "--set layers: 0: input should be greater than or equal to 1"),
        ("heads=3", "heads: the width 512 is not a multiple of 3 heads"),
        ("layers", "--set layers: write it as key=value, for example width=8"),
    ):
        with pytest.raises(ConfigError) as e:
            apply_overrides(CaptionerConfig(), [override])
        assert str(e.value) == line
