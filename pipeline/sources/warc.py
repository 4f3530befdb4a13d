"""warc: web pages from existing WARC files, on a disk, in an object store or behind URLs, such as Common Crawl's.

There are two ways to name the files, which may be mixed: `path` (paths, URLs and globs) and `path_list`, a file with
one path per line, plain or gzipped, as Common Crawl publishes for each of its crawls (`warc.paths.gz`); `prefix` is put
before each of its lines.

Limits: files that `path_list` names are taken to be immutable, as Common Crawl's are, and are not checked for changes
one by one; a plain http URL cannot be listed, so globs need a disk, s3, gs or the like.
"""

from __future__ import annotations

import hashlib
from typing import Any

import fsspec
from pydantic import ConfigDict, Field, model_validator

from pipeline.errors import SourceError
from pipeline.files.inputs import FAULTS, expand, reason, version
from pipeline.sources import PageSource, Paths


class Warc(PageSource):
    """Existing WARC files. One file is one part of the extract stage."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "captures/*.warc.gz"}]})

    path: Paths = Field((), description="paths, URLs or globs of WARC files; one or a list")
    path_list: str = Field("", description="path or URL of a file that names WARC files, one per line, plain or .gz")
    prefix: str = Field("https://data.commoncrawl.org/", description="goes before each line of path_list")
    limit: int = Field(0, ge=0, description="read only the first so many files; 0: all")

    @model_validator(mode="after")
    def _names_something(self) -> Warc:
        if not self.path and not self.path_list:
            raise ValueError("path or path_list is required")
        return self

    def warcs(self) -> list[str]:
        """Paths or URLs, each once: those of `path` sorted within each glob, then those of `path_list` as listed.

        Raises SourceError that names the path which is missing, matches nothing or cannot be read.
        """
        files = self._given()
        if self.path_list:
            files += [self.prefix + line for line in self._listed()]
        files = list(dict.fromkeys(files))
        return files[: self.limit] if self.limit else files

    def token(self) -> Any:
        """Path, size and time (or ETag) of each file of `path`, and a digest of the lines of `path_list`.

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
        """The lines of path_list. Raises SourceError."""
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
