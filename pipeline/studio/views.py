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

MOST, LONGEST_NAME, LONGEST = 60, 80, 2_000


class Views:
    """The views of a place. folder: where they are kept; None for nowhere."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "views.json"
        self._lock = threading.Lock()
        self._views = self._read()

    def all(self) -> list[dict[str, str]]:
        """[{name, query}], by name."""
        return [{"name": name, "query": query} for name, query in sorted(self._views.items())]

    def save(self, name: str, query: str) -> None:
        """Keep a view; one of that name is replaced. Raises SpecError for what is too long, or too many."""
        name = " ".join(name.split())
        if not 0 < len(name) <= LONGEST_NAME:
            raise SpecError([f"the name of a view has 1 to {LONGEST_NAME} characters"])
        if len(query) > LONGEST:
            raise SpecError([f"a view has at most {LONGEST} characters"])
        with self._lock:
            if name not in self._views and len(self._views) >= MOST:
                raise SpecError([f"there are {MOST} views already: delete one"])
            self._write({**self._views, name: urlencode(parse_qsl(query, keep_blank_values=True))})

    def delete(self, name: str) -> None:
        with self._lock:
            self._write({own: query for own, query in self._views.items() if own != name})

    def _write(self, views: dict[str, str]) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_name(".views.json")
            partial.write_text(json.dumps(views, ensure_ascii=False, indent=1) + "\n", "utf-8")
            partial.replace(self._path)
        self._views = views

    def _read(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if self._path is not None and self._path.stat().st_size < 10 * MOST * LONGEST:
                raw = json.loads(self._path.read_text("utf-8"))
                return {str(name)[:LONGEST_NAME]: str(query)[:LONGEST] for name, query in [*raw.items()][:MOST]}
        return {}
