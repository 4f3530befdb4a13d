"""Neighbours: "more like this" and search by meaning, if a build has a search index (`data_specs.search`).

BUILD/index, or the folder that --index names; `wenlan-train embed BUILD --index` writes it. A text is embedded by the
index's own text tower (queries/text.onnx), if it has one: no checkpoint and no torch are needed here.

Limits: only samples are embedded, so neighbours are kept ones; a dropped candidate is without a vector.
"""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

from data_specs.build import SpecError
from data_specs.search.folder import is_finished
from data_specs.shard import KEY_LENGTH, ContractError
from pipeline.rows.records import sha256_hex

NEIGHBOURS = 60
TEXT = 500
"""Characters of a text that is searched for."""


def id_of_index(row_id: str) -> str:
    """The id of a row of a search index as rows here have it: a sample's key, or the sha256 of another name."""
    return row_id if re.fullmatch("[0-9a-f]{32,64}", row_id) else sha256_hex(row_id)


ID_OF_INDEX = "CASE WHEN regexp_full_match(id, '[0-9a-f]{32,64}') THEN id ELSE sha256(id) END"
"""`id_of_index` in SQL."""


class Similar:
    """An open index. Safe for several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises ContractError for anything but an index."""
        from data_specs.search.search import SearchIndex

        self.folder = folder
        self.index = SearchIndex.open(folder)

    def value(self) -> dict[str, Any]:
        """Returns the index's description for the page."""
        about = self.index.about
        return {"name": about.name, "rows": self.index.rows, "images": about.images, "texts": about.texts,
                "by_text": about.images and self._encoder is not None}  # fmt: skip

    def neighbours(self, key: str, limit: int = NEIGHBOURS) -> list[dict[str, Any]]:
        """Neighbours of a sample's picture, or of its text without pictures, best first, without itself.

        Raises SpecError for a sample that is not in the index.
        """
        self._reload_changed()
        modality: Any = "image" if self.index.about.images else "text"
        vector_D = None
        for name in (key, key[:KEY_LENGTH]):
            with contextlib.suppress(ContractError):
                vector_D = vector_D if vector_D is not None else self.index.vector(name, modality)
        if vector_D is None:
            raise SpecError([f"{key[:KEY_LENGTH]}: not in the search index, which contains kept samples only"])
        hits = self._search(vector_D, modality, limit + 1)
        return [hit for hit in hits if hit["id"][:KEY_LENGTH] != key[:KEY_LENGTH]][:limit]

    def text(self, text: str, limit: int = NEIGHBOURS) -> list[dict[str, Any]]:
        """Pictures that a text describes, best first. Raises SpecError for an index without a text tower."""
        self._reload_changed()
        if not 0 < len(text.strip()) <= TEXT:
            raise SpecError([f"the text must have 1 to {TEXT} characters"])
        if self._encoder is None:
            raise SpecError(["the text tower of this index (queries/text.onnx) is missing; embed again with --onnx"])
        return self._search(self._encoder.encode([text.strip()])[0], "image", limit)

    def picture(self, row_id: str) -> tuple[bytes, str]:
        """The stored picture of a row of the index, checked against its sha256. Raises ContractError."""
        self._reload_changed()
        return self.index.picture(row_id)

    def _search(self, vector_D: Any, target: Any, limit: int) -> list[dict[str, Any]]:
        from data_specs.search.search import Query

        found = self.index.search(Query(vector_D, target=target, limit=limit))
        return [
            {"id": id_of_index(hit.id), "cosine": hit.cosine, "score": hit.score, "copies": hit.copies}
            for hit in found.hits
        ]

    def _reload_changed(self) -> None:
        """Reloads a changed index, so that rows removed by a takedown are not found."""
        self.index.reload_if_changed()

    @functools.cached_property
    def _encoder(self) -> Any:
        """The text tower; None without one."""
        try:
            from data_specs.search.queries import TextQuery

            return TextQuery.open(self.folder)
        except (ImportError, ContractError, OSError):
            return None


def index_beside(place: str, named: str) -> Path | None:
    """The index folder: the one named, or BUILD/index; None if missing."""
    folder = Path(named) if named else Path(place) / "index"
    return folder if is_finished(folder) else None
