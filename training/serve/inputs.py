"""Pictures and vectors in a request: data URIs, base64. A picture's URL is refused and never fetched.

A server that fetches a URL that a client names is used as a way inside: other servers for embeddings do it without a
guard. A client has the picture, or can fetch it.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence

import numpy as np

from training.serve.refusals import Refused, bad_request
from training.serve.towers import Features

_ADDRESS = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*:|//[a-zA-Z0-9+/=]*[^a-zA-Z0-9+/=])")
"""A URL of any scheme, or one that takes the page's: base64 has no colon, and no dot behind the two slashes of FF F."""

_DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
URL_REFUSED = "a picture is sent as a data URI (data:image/jpeg;base64,...) or as base64; no URL is ever fetched"


def picture_of(text: str, param: str) -> bytes:
    """Bytes of a picture from its data URI or base64. Raises Refused naming `param`."""
    begin = _DATA.match(text)
    if begin is None and _ADDRESS.match(text):
        raise bad_request("url_refused", URL_REFUSED, param)
    try:
        content = base64.b64decode(text[begin.end() :] if begin else text, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("not_base64", f"not base64; {URL_REFUSED}", param) from None
    if not content:
        raise bad_request("empty", f"an empty picture; {URL_REFUSED}", param)
    return content


def vector_of(numbers: Sequence[float], width: int, param: str) -> Features:
    """Unit row [D] of a vector that a client gives. Raises Refused."""
    if len(numbers) != width:
        raise bad_request("width", f"{len(numbers)} numbers, but the features here have {width}", param)
    row_D = np.asarray(numbers, np.float64)
    largest = float(np.abs(row_D).max())
    if not 0 < largest < math.inf:
        raise bad_request("not_finite", "the numbers of a vector must be finite and not all zero", param)
    row_D /= largest  # so that no square overflows
    return (row_D / math.sqrt(float(row_D @ row_D))).astype(np.float32)


def too_many(count: int, most: int, what: str, param: str) -> Refused:
    return bad_request(
        "too_many", f"{count} {what} in one request, at most {most} are allowed; send several requests", param
    )
