"""Sources: where captures and candidates come from. One file a kind; the file's name is `kind` in a spec.

Two faces. A PageSource gives WARC files of web pages, which `pipeline.stages.extract` turns into candidates. A
TableSource gives candidates as they are. Both are cut into parts, and one part is one partition of the extract stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from data_specs.build import BuildSpec, SourceRef
from data_specs.shard import SourceKind
from pipeline.files.inputs import expand, version
from pipeline.plugins import Plugin, configure
from pipeline.records import Candidate, Decision

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda paths: (paths,) if isinstance(paths, str) else paths)]
"""One path or a list of them, as a spec has it."""


class Source(Plugin):
    """What every source has. `base` is the folder that relative paths start from, and no part of its identity."""

    name: str
    source_kind: SourceKind
    base: str = ""

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        found["options"].pop("base")
        return found

    def resolve(self, path: str) -> str:
        """A path or URL of the spec, made absolute against `base`."""
        if "://" in path or Path(path).is_absolute() or not self.base:
            return path
        return str(Path(self.base) / path)

    def token(self) -> Any:
        """JSON value that changes when what the source reads changes (sizes and times of files, ETags).

        Raises SourceError when it cannot be read at all.
        """
        raise TypeError(f"{type(self).__name__} must say what it reads")


class PageSource(Source):
    """A source of web pages in WARC files."""

    def warcs(self) -> list[str]:
        """Paths or URLs of given WARC files; empty for one that `pipeline.stages.crawl` fills."""
        return []


class TableSource(Source):
    """A source whose rows are candidates."""

    def parts(self) -> int:
        """Into how many parts it is cut; depends only on what `token` tells."""
        raise TypeError(f"{type(self).__name__} must say its parts")

    def read(self, part: int) -> Iterator[Candidate | Decision]:
        """Candidates of one part in a stable order; a Decision for a row that is none. Raises SourceError."""
        raise TypeError(f"{type(self).__name__} must read its parts")

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of an image that lies in the source itself; None if it must be fetched from the web."""
        return None


class FileSource(TableSource):
    """A table source that is files. One file is one part, unless a kind says otherwise."""

    path: Paths = Field(description="paths, URLs or globs of its files; one or a list", min_length=1)

    def files(self) -> list[str]:
        """What `path` names, each once. Raises SourceError for a path that is missing or matches nothing."""
        return expand(tuple(self.resolve(path) for path in self.path), self.name)

    def token(self) -> Any:
        """Name, size and time (or the store's own version mark) of each file. Raises SourceError."""
        return [version(file) for file in self.files()]

    def parts(self) -> int:
        """One a file. Raises SourceError."""
        return len(self.files())


def sources_of(spec: BuildSpec) -> list[Source]:
    """The spec's sources, configured, in its order. Raises SpecError."""
    return [source_of(spec, ref, f"sources[{i}]") for i, ref in enumerate(spec.sources)]


def source_of(spec: BuildSpec, ref: SourceRef, where: str = "") -> Source:
    """One source, configured."""
    options = {"name": ref.name, "source_kind": ref.source_kind, "base": spec.base, **ref.options}
    return configure("sources", ref.kind, options, Source, where)
