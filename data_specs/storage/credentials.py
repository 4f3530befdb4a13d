"""Schemes of object stores, and credentials in their URLs: known without a client of any."""

from __future__ import annotations

import re

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"})
"""Schemes of stores that take their credentials from the environment."""

_KEY = re.compile(
    r"(?<![\w+.-])(s3a?|gs|gcs|r2|oss|adl)://[^/\s\"'<>]*:(?=\S)"
    r"|(?<![\w+.-])(abfss?|az)://[^/\s\"'<>@]*:[^/\s\"'<>]*@",
    re.I,
)
"""A URL with something before its bucket. What follows the colon may hold slashes: AWS's secrets do. A colon that ends
the word is one of a sentence, or of YAML."""


def credentials_in(text: str) -> str:
    """Reason to refuse a text, such as a spec or a command line, with credentials in an object store's URL; else "".

    No bucket has a colon in its name; in `abfs://container@account.host/` the part before the @ is the container.
    """
    found = _KEY.search(text)
    if found is None:
        return ""
    scheme = (found[1] or found[2]).lower()
    variables = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if scheme.startswith("s3") else "the store's variables"
    return (
        f"a URL {scheme}://... contains credentials; remove them, and set {variables} or a profile in the environment"
    )
