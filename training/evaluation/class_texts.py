"""Class names as sentences: the texts that represent a class for the text tower.

A class's vector is the mean of the unit features of each of its names in each of the templates, made a unit again: that
of CLIP (arXiv 2103.00020, section 3.1.4). The templates are our own: Chinese captions as people write them,
the bare name among them. A file has others, one per line, with {} or clip_benchmark's {c} where the name goes.

Limits: measure words and the like follow no class; a set whose names need them brings its own templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from training.errors import InputError
from training.evaluation.features import text_rows
from training.evaluation.hits import Features
from training.evaluation.labelled import ClassName
from training.weights.load import BATCH, Loaded

TEMPLATES = (
    "{}",
    "{}实拍",
    "文章配图：{}",
    "这里拍到的是{}",
    "画面中心是{}",
    "手机随手拍下的{}",
    "从近处看的{}",
    "画出来的{}",
    "一眼就能看出是{}",
    "说到{}，大概就是这个样子",
    "介绍{}的那一页上的插图",
    "找了很久才拍到的{}",
)

_TEXTS = 64 * BATCH
"""Texts whose features are in memory at once."""


def check_templates(where: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Returns the templates. Raises InputError if one lacks a place for the name, or if there is none."""
    for template in templates:
        if "{}" not in template and "{c}" not in template:
            raise InputError(where, f"template {template!r} lacks {{}} for the name of the class")
    if not templates:
        raise InputError(where, "contains no template")
    return tuple(templates)


def digest(templates: Sequence[str]) -> str:
    """sha256 in hex of the templates, one per line: two results with the same one were asked in the same words."""
    return hashlib.sha256("\n".join(templates).encode()).hexdigest()


def fill(template: str, name: str) -> str:
    return template.replace("{c}", "{}").replace("{}", name)


def class_features(loaded: Loaded, classes: Sequence[ClassName], templates: Sequence[str]) -> Features:
    """Unit vectors [C, D] of classes."""
    texts = [fill(template, name) for one in classes for name in one.names for template in templates]
    count_C = np.array([len(one.names) * len(templates) for one in classes])
    class_T = np.repeat(np.arange(len(classes)), count_C)
    means_CD = np.zeros((len(classes), loaded.config.moco.feature_dim))
    for start in range(0, len(texts), _TEXTS):
        some = slice(start, start + _TEXTS)
        np.add.at(means_CD, class_T[some], text_rows(loaded, texts[some]).astype(np.float64))
    means_CD /= count_C[:, None]
    lengths_C1 = np.linalg.norm(means_CD, axis=1, keepdims=True)
    # A class whose texts cancel out stays zero: it is never the best.
    return (means_CD / np.where(lengths_C1 > 0, lengths_C1, 1)).astype(np.float32)
