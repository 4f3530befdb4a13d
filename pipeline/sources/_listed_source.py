"""Page sources whose files a spec names by paths and globs, by a list that Common Crawl publishes, or by both."""

from __future__ import annotations

import hashlib
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.files.inputs import expand, has_globs, listed, version
from pipeline.sources import PageSource, Paths


class ListedSource(PageSource):
    """A page source with the options `path` and `path_list`. Files of the list are taken to be immutable."""

    path: Paths = Field((), description="path, URL or glob of its files, or a list of them")
    path_list: str = Field("", description="path or URL of a file that lists them, one per line, plain or .gz")
    prefix: str = Field("https://data.commoncrawl.org/", description="prepended to each line of path_list")
    limit: int = Field(0, ge=0, description="read only this many files; 0: all")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.path and not self.path_list:
            raise ValueError("path or path_list is required")
        return self

    def files(self) -> list[str]:
        """Its files, each once: those of `path` sorted within each glob, then those of `path_list`. Raises SourceError
        that names the path which is missing, matches nothing or cannot be read."""
        raise TypeError(f"{type(self).__name__} must say what it reads")

    def listing(self) -> list[str]:
        return self.files() if self.path_list or has_globs(self.path) else []

    def token(self) -> Any:
        """Path, size and time (or ETag) of each file of `path`, and a digest of the lines of `path_list`.

        Raises SourceError as `files` does.
        """
        lines = [hashlib.sha256("\n".join(self._lines()).encode()).hexdigest()] if self.path_list else []
        return [*map(version, self._path_files()), *lines]

    def _path_files(self) -> list[str]:
        """Files that `path` names."""
        return expand(self.path, self.name, self.base)

    def _lines(self) -> list[str]:
        """Lines of `path_list`; none without one."""
        return listed(self.resolve(self.path_list), self.name) if self.path_list else []
