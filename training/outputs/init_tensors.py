"""Names of a checkpoint's tensors in a model whose towers are frozen up to another stage, for `fit --init`.

A tower's frozen stages are its prefix, the others its trunk, and layers of a text trunk are counted from that cut. So
the same stage has another name where `image.frozen_stages` or `text.frozen_layers` differ:

    image_query.prefix.backbone.blocks_3.0.bn1.weight   image_query.trunk.backbone.blocks_3.0.bn1.weight
    text_query.prefix.backbone.layer.9.output...        text_query.trunk.backbone.layer.1...  (8 layers are frozen)

Key towers are trunks only. What a key tower lacks because it was frozen is what its query tower has.

Limits: names as training/encoders builds them. What a resumed run loads is not renamed: its cut must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from training.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from training.moco import BriVL

_OF_BACKBONE = re.compile(r"(image|text)_(query\.prefix|query\.trunk|key)\.backbone\.(.+)")
_LAYER = re.compile(r"layer\.(\d+)\.(.+)")


def query_tensors(saved: Mapping[str, Tensor], before: Config, model: BriVL, now: Config) -> dict[str, Tensor]:
    """The saved query towers under the names that `model` has for them; other tensors keep their names."""
    names = {_place_in_tower(name, now): name for name in model.state_dict() if "_query." in name}
    return {names.get(_place_in_tower(name, before), name): tensor for name, tensor in saved.items()}


def key_tensors(
    saved: Mapping[str, Tensor], queries: Mapping[str, Tensor], before: Config, model: BriVL, now: Config
) -> dict[str, Tensor]:
    """The saved key towers under the names of `model`, and the saved query towers' tensors where those lack one.

    saved, queries: as the checkpoint names them. Of a tower that `model` freezes the key tower is the query tower. A
    tensor that `model` has in a frozen part is left out; one that it knows nowhere keeps its name.
    """
    held = {_place_in_tower(name, before): tensor for name, tensor in saved.items()}
    of_queries = {_place_in_tower(name, before): tensor for name, tensor in queries.items()}
    frozen = tuple(f"{name}_" for name, tower in (("image", now.image), ("text", now.text)) if tower.frozen)
    places = {name: _place_in_tower(name, now) for name in model.state_dict()}
    taken: dict[str, Tensor] = {}
    shared = model.shared_tensors()
    for name, place in places.items():
        if "_key." in name and name not in shared:
            source = held if place in held and not name.startswith(frozen) else of_queries
            if place in source:
                taken[name] = source[place]
    known = set(places.values())
    return taken | {name: tensor for name, tensor in saved.items() if _place_in_tower(name, before) not in known}


def _place_in_tower(name: str, config: Config) -> str:
    """A tensor's place in its tower, wherever the tower is cut: that of a key tower is its query tower's."""
    found = _OF_BACKBONE.fullmatch(name)
    if found is None:
        return name.replace("_key.", "_query.trunk.", 1)
    modality, part, rest = found.groups()
    layer = _LAYER.fullmatch(rest)
    if layer is not None and modality == "text" and part != "query.prefix":
        rest = f"layer.{int(layer[1]) + config.text.frozen_layers}.{layer[2]}"
    return f"{modality}.backbone.{rest}"
