"""Saved views: choices of facets and words under a name, kept in BUILD/studio/views.json for everyone who opens it.

Beside the build and not in the browser, since several people sign for one dataset. Bounded: MOST views, names of
LONGEST_NAME characters, queries of LONGEST. Of a place without a local folder, they last as long as the studio.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from data_specs.build import SpecError
from pipeline.files.folder import Folder

MOST, LONGEST_NAME, LONGEST = 60, 80, 2_000
NAME = "views.json"


class Views:
    """The views of a place. folder: where they are kept; None for nowhere."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._views: dict[str, str] = {}  # of a place without a folder

    def all(self) -> list[dict[str, str]]:
        """[{name, query}], by name."""
        return [{"name": name, "query": query} for name, query in sorted(self._read().items())]

    def save(self, name: str, query: str) -> None:
        """Keep a view; one of that name is replaced. Raises SpecError for what is too long, or too many."""
        name = " ".join(name.split())
        if not 0 < len(name) <= LONGEST_NAME:
            raise SpecError([f"the name of a view must have 1 to {LONGEST_NAME} characters"])
        if len(query) > LONGEST:
            raise SpecError([f"a view may have at most {LONGEST} characters"])
        with self._lock:
            views = self._read()  # another studio may have written since
            if name not in views and len(views) >= MOST:
                raise SpecError([f"there are already {MOST} views; delete one"])
            self._write({**views, name: urlencode(parse_qsl(query, keep_blank_values=True))})

    def delete(self, name: str) -> None:
        with self._lock:
            self._write({own: query for own, query in self._read().items() if own != name})

    def _write(self, views: dict[str, str]) -> None:
        if self._folder is None:
            self._views = views
        else:
            Folder(str(self._folder)).write_json(NAME, views)

    def _read(self) -> dict[str, str]:
        if self._folder is None:
            return self._views
        with contextlib.suppress(OSError, ValueError, AttributeError):
            path = self._folder / NAME
            if path.stat().st_size < 10 * MOST * LONGEST:
                raw = json.loads(path.read_text("utf-8"))
                return {str(name)[:LONGEST_NAME]: str(query)[:LONGEST] for name, query in [*raw.items()][:MOST]}
        return {}
