"""Origin of a sample of another dataset, from the JSON beside its picture.

img2dataset, LAION and our own shards write the address of an image, and some its page, digest and licence, into
KEY.json. The address becomes the candidate's `image_url`, so that a takedown by URL or by domain finds it, and a later
build refuses it; the bytes are still read from the dataset.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.rows.records import Provenance, encodable
from pipeline.urls import canonical_url

Names = Annotated[tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)]
"""One name of a field or a list of them, of which the first that has a value counts."""


class Fields(BaseModel):
    """Names of the JSON fields that say where a picture came from; an empty list: none says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    url: Names = Field(("image_url", "url"), description="fields with the image's URL; the first with a value is used")
    page_url: Names = Field(("page_url",), description="fields with the URL of the page")
    sha256: Names = Field(("sha256",), description="fields with the sha256 of the image at its URL")
    licence: Names = Field(("licence", "license"), description="fields with the licence of the image")

    def read(self, value: Any, stored_at: str) -> tuple[str, str, Provenance | None]:
        """(image_url, page_url, provenance) of a picture that lies at `stored_at` in its source.

        A URL that is missing or no web address leaves `stored_at` as the image's address.
        """
        if not isinstance(value, dict):
            return stored_at, "", None
        url, page_url = web_address(_first_text(value, self.url)), web_address(_first_text(value, self.page_url))
        sha256, licence = _first_text(value, self.sha256).lower(), _first_text(value, self.licence)
        sha256 = sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else ""
        provenance = Provenance(stored_at if url else "", sha256, encodable(licence)[:1000])
        return url or stored_at, page_url, provenance if provenance != Provenance() else None


def _first_text(value: dict[str, Any], names: tuple[str, ...]) -> str:
    texts = (value[name].strip() for name in names if isinstance(value.get(name), str))
    return next((text for text in texts if text), "")


def web_address(url: str) -> str:
    """The canonical form of a web address; "" for anything else."""
    try:
        return canonical_url(url)
    except ValueError:
        return ""
