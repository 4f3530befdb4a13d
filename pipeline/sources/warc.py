"""warc: pages that somebody else has crawled, in WARC files on a disk, in an object store or behind URLs.

Two ways to name them, which may be mixed: `path` (paths, URLs and globs) and `path_list`, a file with one path a line,
plain or gzipped, as Common Crawl publishes for each of its crawls (`warc.paths.gz`); `prefix` goes before its lines.

Limits: the files that `path_list` names are taken to be immutable, as Common Crawl's are, and are not looked at one by
one to see whether they changed; a plain http URL cannot be listed, so globs need a disk, s3, gs or the like.
"""

from __future__ import annotations

import hashlib
from typing import Any

import fsspec
from pydantic import Field, model_validator

from pipeline.errors import SourceError
from pipeline.files.inputs import FAULTS, expand, reason, version
from pipeline.sources import PageSource, Paths


class Warc(PageSource):
    """Given WARC files. One file is one part of the extract stage."""

    path: Paths = Field((), description="paths, URLs or globs of WARC files; one or a list")
    path_list: str = Field("", description="path or URL of a file that names WARC files, one a line, plain or .gz")
    prefix: str = Field("https://data.commoncrawl.org/", description="goes before each line of path_list")
    limit: int = Field(0, ge=0, description="take only so many files, in order; 0: all")

    @model_validator(mode="after")
    def _names_something(self) -> Warc:
        if not self.path and not self.path_list:
            raise ValueError("path or path_list is required")
        return self

    def warcs(self) -> list[str]:
        """Paths or URLs, each once: those of `path` sorted within each glob, then those of `path_list` as listed.

        Raises SourceError that names the path which is missing, matches nothing or cannot be read.
        """
        found = self._given()
        if self.path_list:
            found += [self.prefix + line for line in self._listed()]
        found = list(dict.fromkeys(found))
        return found[: self.limit] if self.limit else found

    def token(self) -> Any:
        """Path, size and time (or the store's own version mark) of each file; of `path_list` the digest of its lines.

        Raises SourceError as `warcs` does.
        """
        listed: list[Any] = []
        if self.path_list:
            listed = [hashlib.sha256("\n".join(self._listed()).encode()).hexdigest()]
        return [version(file) for file in self._given()] + listed

    def _given(self) -> list[str]:
        """Files that `path` names."""
        return expand(tuple(self.resolve(path) for path in self.path), self.name)

    def _listed(self) -> list[str]:
        """Lines of path_list."""
        path = self.resolve(self.path_list)
        try:
            with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as f:
                lines = [line.strip() for line in f]
        except (*FAULTS, ValueError) as e:
            raise SourceError(path, f"source {self.name}: cannot be read ({reason(e)})") from None
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise SourceError(path, f"source {self.name}: names no WARC file")
        return lines
