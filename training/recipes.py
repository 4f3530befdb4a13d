"""Recipes: a recipe is a function here that returns a complete `Config`; `wenlan-train fit --recipe` finds it by name.

A function with a parameter fine-tunes: it gets the config of the checkpoint that `fit --init` names, and changes what
is learnt and how fast, not the shape of the towers.

Why functions: one recipe may start from another (`dataclasses.replace`), and a type checker reads them. Public
functions of this file are recipes and nothing else is, so a new one needs no registry.

Sources: BriVL-1.0 as released (arXiv 2103.06561 and its inference code); BriVL 2 (arXiv 2110.14378). Values that the
sources do not state are marked "ours"; "unverified" ones are said to be BriVL 2's and were not seen in a source by us.
"""

from __future__ import annotations

from dataclasses import replace

from data_specs.shard import SOURCE_KINDS
from training.config import (
    Config,
    DataConfig,
    ImageTowerConfig,
    MocoConfig,
    OptimConfig,
    RunConfig,
    TextTowerConfig,
)

_TEXT_OF_SOURCE = {
    "news": {"easy": 1.0},
    "image_search": {"surrounding": 1.0},
    "microblog": {"content": 1.0},
    "wechat": {"surrounding": 1.0},
    "encyclopedia": {"surrounding": 1.0},
}
"""The text that the paper trains on, by the kind of the source; of other sources the primary text is taken."""

_ANY_CAPTION: dict[str, dict[str, float]] = {source: {"caption": 1.0} for source in SOURCE_KINDS}
"""One of a sample's captions, drawn again in each epoch."""

_GB2312_ROOM = 8192
"""Rows of a character embedding: more than the vocabulary of the GB 2312 codec (7,445 characters)."""


def tiny() -> Config:
    """Every part of the method, from random weights, small enough to train in a test in seconds on a CPU."""
    return Config(
        recipe="tiny",
        seed=0,
        image=ImageTowerConfig(
            backbone="timm/test_efficientnet",
            frozen_stages=2,
            width=32,
            layers=1,
            heads=4,
            ffn=64,
            hidden=64,
        ),
        text=TextTowerConfig(
            encoder="char_text",
            vocab_size=_GB2312_ROOM,
            max_positions=64,
            backbone_width=32,
            backbone_layers=0,
            frozen_layers=0,
            layers=1,
            heads=4,
            ffn=64,
            hidden=64,
        ),
        moco=MocoConfig(queue_size=48, feature_dim=32),
        data=DataConfig(image_size=64, max_boxes=4, max_tokens=16, window_shards=4, num_workers=0),
        optim=OptimConfig(lr=1e-3, weight_decay=1e-4),
        run=RunConfig(batch_size=8, epochs=1, checkpoint_every=0, log_every=1, device="cpu"),
    )


def starter() -> Config:
    """For hundreds to tens of thousands of pairs on two CPU cores: a frozen ImageNet CNN under trained layers.

    The text tower begins at random weights, character by character. After twelve epochs small sets are learnt by heart
    and recall on the dev split no longer rises. All ours.
    """
    return Config(
        recipe="starter",
        seed=0,
        image=ImageTowerConfig(
            backbone="timm/tf_efficientnet_lite0",
            weights="package",
            frozen_stages=9,
            width=256,
            layers=1,
            heads=4,
            ffn=512,
            hidden=512,
            dropout=0.3,
        ),
        text=TextTowerConfig(
            encoder="char_text",
            vocab_size=_GB2312_ROOM,
            max_positions=64,
            backbone_width=256,
            backbone_layers=0,
            frozen_layers=0,
            layers=2,
            heads=4,
            ffn=512,
            hidden=512,
            dropout=0.3,
        ),
        moco=MocoConfig(queue_size=512, temperature=0.1, feature_dim=256),
        data=DataConfig(image_size=192, max_boxes=9, max_tokens=24, color_jitter_p=0.0, grayscale_p=0.0),
        optim=OptimConfig(lr=5e-4, weight_decay=1e-2, warmup_share=0.125),
        run=RunConfig(batch_size=32, epochs=12, eval_epochs=2),
    )


def two_towers() -> Config:
    """Fine-tunes a transformers folder (`--init FOLDER`), or reads it as it is; default shape: Chinese-CLIP's ViT-B/16.

    Whole images (`data.max_boxes=0`), so that the towers stay what transformers calls by their name; rates ours.
    """
    base = brivl_b5_base()
    return replace(
        base,
        recipe="two_towers",
        image=replace(
            base.image,
            encoder="clip_image",
            backbone="transformers/chinese_clip",
            backbone_options={"patch_size": 16},
            weights="",
            frozen_stages=0,
            width=512,
            layers=1,
            ffn=1024,
            hidden=512,
        ),
        text=replace(base.text, encoder="clip_text", backbone="chinese_clip", weights="", frozen_layers=0),
        moco=replace(base.moco, feature_dim=512),
        data=replace(base.data, image_size=224, max_boxes=0, max_tokens=52),
        optim=replace(base.optim, lr=2e-5, weight_decay=1e-3, warmup_samples=10_000),
    )


def brivl_b5_base() -> Config:
    """BriVL-1.0 as released: EfficientNet-B5 at 380 x 380, 36 boxes, RoBERTa base, joint dimension 2,048."""
    return Config(
        recipe="brivl_b5_base",
        seed=0,
        image=ImageTowerConfig(weights="hub"),
        text=TextTowerConfig(weights="hfl/chinese-roberta-wwm-ext"),
        moco=MocoConfig(),
        data=DataConfig(text_kinds=_TEXT_OF_SOURCE, tokenizer="bert_chinese", num_workers=8),
        optim=OptimConfig(lr=1e-4, weight_decay=1e-5, warmup_samples=100_000),  # ours: the release trains nothing
        run=RunConfig(batch_size=256, epochs=10, precision="bf16", eval_every=2000),  # ours
    )


def brivl_b7_large() -> Config:
    """The paper's scale: EfficientNet-B7, RoBERTa large; joint dimension 2,560 (unconfirmed); our image size (600)."""
    base = brivl_b5_base()
    return replace(
        base,
        recipe="brivl_b7_large",
        image=replace(base.image, backbone="timm/tf_efficientnet_b7.ns_jft_in1k", width=2560, hidden=2560),
        text=replace(
            base.text,
            weights="hfl/chinese-roberta-wwm-ext-large",
            backbone_width=1024,
            backbone_layers=24,
            backbone_heads=16,
            backbone_ffn=4096,
            frozen_layers=20,
            hidden=2560,
        ),
        moco=replace(base.moco, feature_dim=2560),
        data=replace(base.data, image_size=600),
    )


def brivl2_b7_large() -> Config:
    """BriVL 2: no detector, a 6 x 6 grid and the whole image as boxes, in-batch keys beside the queue.

    Unverified: queue 13,440, batch 2,688, learning rate 1e-4, weight decay 1e-5. The optimiser (AdamW) is ours.
    """
    base = brivl_b7_large()
    return replace(
        base,
        recipe="brivl2_b7_large",
        moco=replace(base.moco, queue_size=13_440, in_batch_keys=True),
        data=replace(base.data, detector="grid", max_boxes=36),
        optim=replace(base.optim, lr=1e-4, weight_decay=1e-5),
        run=replace(base.run, batch_size=2688),
    )


def finetune_captions(begin: Config) -> Config:
    """The towers of a checkpoint on a caption set, such as AIC-ICC: several captions an image, one drawn each epoch.

    Rates are shares of the pre-training's: a fifth for what was new then, a fiftieth at the top of the backbones, less
    for each stage down. It stops when five recalls on the dev split, two each epoch, bring no higher one. All ours.
    Not taken over are the pre-training's mirror, which holds that run's checkpoints, and what it chose to recompute.
    """
    return replace(
        begin,
        recipe="finetune_captions",
        moco=replace(begin.moco, init_queues=False),
        data=replace(begin.data, text_kinds=_ANY_CAPTION),
        optim=replace(
            begin.optim,
            lr_factor=0.2,
            lr_image_backbone=0.1,
            lr_text_backbone=0.1,
            layer_decay=0.8,
            warmup_samples=0,
            warmup_share=0.05,
            schedule="cosine",
        ),
        run=replace(
            begin.run,
            epochs=10,
            recompute="auto",
            checkpoint_every="5min",
            eval_every=0,
            eval_epochs=0.5,
            patience=5,
            mirror="",
        ),
    )


def finetune_classes(begin: Config) -> Config:
    """The towers of a checkpoint on few classes, whose images all have their class's name as caption.

    Equal captions are masked, or a class's other images would count as wrong answers. Colours stay as they are, since a
    class may be one; more epochs than for captions, since such sets are small.
    """
    captions = finetune_captions(begin)
    return replace(
        captions,
        recipe="finetune_classes",
        moco=replace(captions.moco, false_negatives="masked"),
        data=replace(captions.data, color_jitter_p=0.0, grayscale_p=0.0),
        run=replace(captions.run, epochs=20, eval_epochs=1.0),
    )
