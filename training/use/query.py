"""Queries of a search index from the command line: a text, a picture, or a row of the index itself.

A text is encoded by a checkpoint or, without torch, by the text tower that lies in the index (`queries/text.onnx`). A
picture needs the checkpoint: its boxes are those of the checkpoint's detector where that can be run, else the grid.
Towers other than those that made the index are refused: their cosines would mean nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.search.folder import Modality, Towers
from data_specs.search.queries import TextQuery
from data_specs.search.search import Query, SearchIndex
from training.errors import ConfigError, InputError

LOG = logging.getLogger(__name__)


_SHOWN = ("caption", "url", "page_url", "width", "height", "source", "license", "split")
"""Columns of a row that a hit has."""


@dataclass(frozen=True)
class QueryInput:
    """Input that a query's vector is made of: one of text, image and id."""

    text: str = ""
    image: Path | None = None
    id: str = ""
    checkpoint: Path | None = None
    device: str = "auto"


def search(index: SearchIndex, query: Query, asked: QueryInput | None) -> dict[str, Any]:
    """A page of hits as JSON values. asked: source of the query's vector; None for words only.

    Raises ConfigError, InputError, CheckpointError for a vector that cannot be made, IndexFault for a query that does
    not fit the index.
    """
    if asked is not None:
        vector_D, of = _vector(index, asked, query.target)
        query = replace(query, vector_D=vector_D, of=of)
    found = index.search(query)
    return {
        "index": str(index.folder),
        "target": query.target,
        "hits": [
            {
                "id": hit.id,
                "cosine": hit.cosine,
                "score": hit.score,
                "chance": hit.chance,
                "words": hit.words_score,
                "copies": hit.copies,
                **{name: getattr(hit.record, name) for name in _SHOWN},
            }
            for hit in found.hits
        ],
        "more": found.more,
        "exact": found.exact,
        "allowed": found.allowed,
    }


def _vector(index: SearchIndex, asked: QueryInput, target: Modality) -> tuple[npt.NDArray[np.float32], Modality]:
    """The query's vector [D], and what it is of."""
    if asked.id:
        return _row_vector(index, asked.id, target)
    if asked.image is not None:
        return _image_vector(index, asked.image, asked), "image"
    return _text_vector(index, asked), "text"


def _row_vector(index: SearchIndex, id: str, target: Modality) -> tuple[npt.NDArray[np.float32], Modality]:
    """A row's own vector: of the kind that is searched where it has that, else of the other one."""
    other: Modality = "text" if target == "image" else "image"
    for modality in (target, other):
        if (vector_D := index.vector(id, modality)) is not None:
            return vector_D, modality
    raise InputError(id, "the row lacks a vector to search by")


def _text_vector(index: SearchIndex, asked: QueryInput) -> npt.NDArray[np.float32]:
    if asked.checkpoint is None:
        tower = TextQuery.open(index.folder)
        _check_towers(index, tower.towers, str(index.folder))
        vector_D: npt.NDArray[np.float32] = tower.encode([asked.text])[0]
        return vector_D
    from training.use.embed import text_features

    loaded = _load_checkpoint(index, asked)
    features: npt.NDArray[np.float32] = text_features(loaded, [asked.text])[0].numpy()
    return features


def _image_vector(index: SearchIndex, image: Path, asked: QueryInput) -> npt.NDArray[np.float32]:
    if asked.checkpoint is None:
        raise ConfigError("--image", "needs --checkpoint CHECKPOINT, the one that made the index")
    import tempfile

    from training.use.detector import ProcessLocalDetector, choose_detector
    from training.use.embed import image_features

    loaded = _load_checkpoint(index, asked)
    try:
        content = image.read_bytes()
    except OSError as e:
        raise InputError(str(image), f"cannot be read ({e.strerror})") from None
    with tempfile.TemporaryDirectory(prefix="wenlan-") as cache:
        detector, name = choose_detector(loaded.checkpoint.detector, "", Path(cache))
        boxes = None
        if detector is not None:
            running = ProcessLocalDetector(detector)
            try:
                (boxes,) = running.detect([content])
            finally:
                running.close()
    LOG.info("boxes of %s: %s", image, name)
    features: npt.NDArray[np.float32] = image_features(loaded, [(str(image), content)], [boxes])[0].numpy()
    return features


def _load_checkpoint(index: SearchIndex, asked: QueryInput) -> Any:
    from training.weights.load import load

    assert asked.checkpoint is not None
    loaded = load(asked.checkpoint, asked.device)
    own = Towers(recipe=loaded.config.recipe, sha256=loaded.checkpoint.towers)
    _check_towers(index, own, str(asked.checkpoint))
    return loaded


def _check_towers(index: SearchIndex, towers: Towers, where: str) -> None:
    made_by = index.about.checkpoint
    if made_by is not None and made_by.sha256 != towers.sha256:
        raise ConfigError(
            where,
            f"its towers ({towers.recipe}, {towers.sha256[:12]}) did not make {index.folder}, whose are "
            f"{made_by.recipe}, {made_by.sha256[:12]}",
        )
