"""webdataset: existing tar shards of `KEY.jpg` with `KEY.txt` and `KEY.json`, read by the webdataset package.

This is how another project's dataset, or a released one of ours, becomes a source. Texts are those of KEY.json
(`pipeline.sources.folder.texts_of` says in which forms; our own shards fit), else KEY.txt as one text of `text_kind`.
Pictures are read from their tars. Their image_url is the one that KEY.json states (`pipeline.sources._provenance`),
else `webdataset:///NAME/SHARD/MEMBER`, by which they are read.

Limits: `pipe:` addresses are refused, since they run commands. A tar is indexed once in each process that reads
pictures from it. Members above 64 MiB are left out.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import fsspec
from pydantic import Field, field_validator

from data_specs.shard import Text, TextKind
from pipeline.errors import SourceError
from pipeline.files.inputs import FAULTS, reason, version
from pipeline.records import Candidate, Decision, DropReason, drop, encodable
from pipeline.sources import FileSource
from pipeline.sources._provenance import Fields
from pipeline.sources.folder import SUFFIXES, texts_of
from pipeline.texts.cleaning import clean

MAX_MEMBER = 64 << 20


class WebDataset(FileSource):
    """Tar shards of pictures and texts."""

    VERSION: ClassVar[int] = 2

    text_kind: TextKind = Field("caption", description="kind of the text in a KEY.txt")
    fields: Fields = Field(Fields(), description="names of fields of KEY.json that say where a picture came from")

    @field_validator("path")
    @classmethod
    def _runs_nothing(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if path.startswith("pipe:"):
                raise ValueError(f"{path!r}: runs a command; give a path or URL that fsspec opens")
        return paths

    def read(self, part: int) -> Iterator[Candidate | Decision]:
        """Candidates of one tar in its order. Raises SourceError for a tar that cannot be read to its end."""
        from webdataset.tariterators import group_by_keys, tar_file_iterator

        file = self.files()[part]
        shard = file.rpartition("/")[2]
        try:
            with fsspec.open(file, "rb") as f:
                for row, sample in enumerate(group_by_keys(_members(tar_file_iterator(f)))):
                    where = f"{shard}, {encodable(str(sample['__key__']))}"
                    yield from self.entries(where, row, partial(self._candidates, sample, shard, row))
        except (*FAULTS, tarfile.TarError, ValueError) as e:
            raise SourceError(file, f"source {self.name}: is no tar that can be read ({reason(e)})") from None

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of a picture in one of the tars; None for any other address, and for one that no longer exists."""
        prefix = f"webdataset:///{self.name}/"
        if not image_url.startswith(prefix):
            return None
        shard, _, member = image_url[len(prefix) :].partition("/")
        file = next((f for f in self.files() if f.rpartition("/")[2] == unquote(shard)), None)
        if file is None:
            return None
        place = _index(file, json.dumps(version(file))).get(unquote(member))
        if place is None:
            return None
        with fsspec.open(file, "rb") as f:
            f.seek(place[0])
            return bytes(f.read(place[1]))

    def files(self) -> list[str]:
        """The tars that `path` names. Raises SourceError, also for two of one name: addresses hold the tar's name."""
        files = super().files()
        names = [file.rpartition("/")[2] for file in files]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice:
            raise SourceError(twice, f"source {self.name}: two tars have this name; make them two sources")
        return files

    def _candidates(self, sample: dict[str, Any], shard: str, row: int) -> Iterator[Candidate | Decision]:
        """The candidate of one sample, or a Decision."""
        yield self._candidate(sample, shard, row)

    def _candidate(self, sample: dict[str, Any], shard: str, row: int) -> Candidate | Decision:
        key = str(sample["__key__"])
        member = next((sample[s].decode() for s in sample if f".{s}".endswith(SUFFIXES)), "")
        url = f"webdataset:///{self.name}/{quote(shard)}/{quote(member or key)}"
        page_url, provenance = "", None
        texts: list[Text] = []
        fault = ""
        try:
            if "json" in sample:
                value = json.loads(sample["json"])
                url, page_url, provenance = self.fields.read(value, url)
                texts = texts_of(value)
            if "txt" in sample and not texts:
                texts = [Text(self.text_kind, clean(sample["txt"].decode("utf-8-sig")))]
        except (ValueError, RecursionError) as e:
            fault = f"{shard}, {key}: {e}"
        distinct = tuple({t.text: t for t in reversed(texts) if t.text}.values())[
            ::-1
        ]  # of equal texts the first stays
        candidate = Candidate(
            self.name, self.source_kind, f"{shard}/{key}", page_url, url, distinct, row, provenance=provenance
        )
        if not member:
            return drop(candidate, "extract", DropReason.BAD_ROW, fault or f"{shard}, {key}: no picture")
        if fault:
            return drop(candidate, "extract", DropReason.BAD_ROW, fault)
        return candidate if distinct else drop(candidate, "extract", DropReason.NO_TEXT, f"{shard}, {key}")


def _members(members: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Members for webdataset to group, with a picture's name in place of its bytes, which are not needed here."""
    for member in members:
        name = str(member["fname"]).removeprefix("./")
        picture = name.lower().endswith(SUFFIXES)
        yield {"fname": name, "data": name.encode() if picture else member["data"], "__url__": ""}


@lru_cache(maxsize=64)
def _index(file: str, _version: str) -> dict[str, tuple[int, int]]:
    """Name of each file of a tar -> (offset, size). `_version` makes a changed tar another entry of the cache."""
    with fsspec.open(file, "rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
        return {
            member.name.removeprefix("./"): (member.offset_data, member.size)
            for member in tar
            if member.isfile() and member.size <= MAX_MEMBER
        }
