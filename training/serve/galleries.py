"""Collections to search: indexes given at the start, and those that clients upload.

A given index is looked at again before every search: after a takedown (`wenlan-data forget ... INDEX`) what was
forgotten is not found, without a new start. A client's own collection is an index in a temporary folder of this
server's life, written by the same writer; it is bounded in rows, bytes and number, and everyone who reaches the server
sees it.

Limits: what a client loads is lost when the server ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_specs.search.index import IndexFault, IndexWriter
from data_specs.search.search import Query, Results, SearchIndex
from training.errors import ConfigError
from training.outputs.checkpoint import Checkpoint
from training.serve.options import MOST_PICTURES
from training.serve.refusals import Refused, bad_request
from training.serve.service import Service
from training.serve.towers import Features
from training.use.indexing import index_info

LOG = logging.getLogger(__name__)

OWN_COLLECTIONS = 16
OWN_ROWS = 20_000
"""Rows of one own collection."""
OWN_BYTES = 2**30
"""Pictures of all own collections, on the disk."""
MOST_FILES = 1_000
"""Pictures, or lines of text, of one upload."""

_NAME = re.compile(r"[^\x00-\x1f\x7f/\\?#%\s][^\x00-\x1f\x7f/\\?#%]{0,79}")


@dataclass(frozen=True, slots=True)
class Gallery:
    """A collection. own: uploaded by a client, who may delete it. bytes: of its pictures, if it is own."""

    name: str
    index: SearchIndex
    own: bool
    bytes: int = 0

    def search(self, query: Query) -> Results:
        """A page of the ranking. Raises Refused for a query that does not fit the index."""
        try:
            return self.index.search(query)
        except IndexFault as e:
            raise bad_request("query", str(e).removeprefix(f"{self.index.folder}: ")) from None


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a client sent: a picture, or lines of text."""

    name: str
    content: bytes
    is_text: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of an own collection to be: its id, its texts, its picture."""

    id: str
    text: str = ""
    title: str = ""
    picture: bytes = b""
    name: str = ""


_Embedded = tuple[_Entry, Features, tuple[int, int]]
"""An entry with its row [D], and the sides of its picture."""


class Galleries:
    """All collections of a server."""

    def __init__(self, service: Service, given: Mapping[str, SearchIndex]) -> None:
        self._service = service
        self._all = {name: Gallery(name, index, own=False) for name, index in given.items()}
        self._folder = Path(tempfile.mkdtemp(prefix="wenlan-serve-"))
        self._writing = asyncio.Lock()

    def close(self) -> None:
        """Delete the own collections."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def names(self) -> list[str]:
        """Names of all, the given ones first."""
        return list(self._all)

    def get(self, name: str | None) -> Gallery:
        """The collection of a name (None: the first), in its present state on disk. Raises Refused (404)."""
        gallery = self._find(name)
        try:
            gallery.index.reload_if_changed()
        except IndexFault as e:
            raise Refused(503, "index_damaged", str(e), retry_after=10) from None
        return gallery

    def _find(self, name: str | None) -> Gallery:
        gallery = next(iter(self._all.values()), None) if name is None else self._all.get(name)
        if gallery is None:
            known = ", ".join(self._all) or "none exists"
            text = f"unknown collection {str(name)[:80]!r} ({known})" if name is not None else "no collections"
            raise Refused(404, "no_collection", text, param="collection")
        return gallery

    def with_problems(self) -> list[tuple[Gallery, str]]:
        """All collections in their present state on disk, each with its problem, "" for a sound one."""
        found = []
        for gallery in list(self._all.values()):
            try:
                gallery.index.reload_if_changed()
                found.append((gallery, ""))
            except IndexFault as e:
                found.append((gallery, str(e)))
        return found

    async def delete(self, name: str) -> None:
        """Delete an own collection, also a damaged one. Raises Refused."""
        async with self._writing:
            gallery = self._find(name)
            if not gallery.own:
                raise Refused(403, "given", f"{name} belongs to the server and cannot be deleted", param="name")
            del self._all[name]
            await asyncio.to_thread(shutil.rmtree, gallery.index.folder.parent, True)

    async def add(self, name: str, uploads: Sequence[Upload]) -> tuple[Gallery, list[dict[str, str]]]:
        """Embed files into an own collection, created if missing; returns it and the refused files.

        Raises Refused: an invalid name or one given at the start, too much, nothing readable.
        """
        async with self._writing:
            before = await self._service.run_search(lambda: self._own_collection(name))
            entries, refused = _entries(uploads)
            known = await self._service.run_search(lambda: _known_ids(before, entries))
            entries = [entry for entry in entries if entry.id not in known]
            self._check_limits(before, entries)
            embedded, unread = await self._embed(entries)
            refused += unread
            if not embedded:
                if before is not None and known:
                    return before, refused
                why = refused[0]["message"] if refused else "contains no file"
                raise bad_request("nothing", f"none of the files could be embedded: {why}", "files")
            return await self._write_shielded(name, embedded, before), refused

    async def _write_shielded(self, name: str, embedded: Sequence[_Embedded], before: Gallery | None) -> Gallery:
        """Write to the end, even if the client leaves: no thread can be stopped, and the next one would meet it."""
        folder = before.index.folder.parent if before else Path(tempfile.mkdtemp(dir=self._folder))
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, name, folder, embedded, before))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise
        finally:
            if writing.done() and not writing.cancelled() and writing.exception() is None:
                self._all[name] = writing.result()
            elif before is None:
                shutil.rmtree(folder, ignore_errors=True)
        return writing.result()

    def _own_collection(self, name: str) -> Gallery | None:
        """The client's collection of this name; None for a new one. Raises Refused if nothing may be added to it."""
        if not _NAME.fullmatch(name):
            raise bad_request("name", "a name has 1 to 80 characters and none of / \\ ? # %", "name")
        there = self._all.get(name)
        if there is not None and not there.own:
            raise Refused(409, "name_taken", f"{name} is a collection of the server; choose another name", param="name")
        own = sum(gallery.own for gallery in self._all.values())
        if there is None and own >= OWN_COLLECTIONS:
            raise Refused(413, "too_many", f"{own} uploaded collections exist already; delete one first", param="name")
        return there and self.get(name)

    def _check_limits(self, before: Gallery | None, entries: Sequence[_Entry]) -> None:
        rows = len(entries) + (before.index.rows if before else 0)
        if rows > OWN_ROWS:
            raise Refused(
                413, "too_many", f"{rows:,} rows; at most {OWN_ROWS:,} per uploaded collection", param="files"
            )
        size = sum(gallery.bytes for gallery in self._all.values()) + sum(len(entry.picture) for entry in entries)
        if size > OWN_BYTES:
            raise Refused(413, "too_large", f"uploaded collections hold at most {OWN_BYTES >> 20} MB", param="files")

    async def _embed(self, entries: Sequence[_Entry]) -> tuple[list[_Embedded], list[dict[str, str]]]:
        """Embeds entries; and the pictures that cannot be read."""
        done, refused = list[_Embedded](), list[dict[str, str]]()
        texts = [entry for entry in entries if not entry.picture]
        for start in range(0, len(texts), 64):
            part = texts[start : start + 64]
            rows_ND = (await self._service.texts([entry.text for entry in part], "files")).rows_ND
            done += [(entry, row_D, (0, 0)) for entry, row_D in zip(part, rows_ND, strict=True)]
        readable: list[tuple[_Entry, tuple[int, int]]] = []
        for entry in (entry for entry in entries if entry.picture):
            try:
                readable.append((entry, await self._service.readable_sides(entry.picture)))
            except Refused as e:
                refused.append({"file": entry.name, "message": e.message})
        for start in range(0, len(readable), MOST_PICTURES):
            chunk = readable[start : start + MOST_PICTURES]
            rows_ND = (await self._service.pictures([entry.picture for entry, _ in chunk])).rows_ND
            done += [(entry, row_D, size) for (entry, size), row_D in zip(chunk, rows_ND, strict=True)]
        return done, refused

    def _write(self, name: str, folder: Path, embedded: Sequence[_Embedded], before: Gallery | None) -> Gallery:
        """Write the part, in a thread, and reopen the collection."""
        place, width = folder / "pictures", self._service.width
        place.mkdir(exist_ok=True)
        rows, size = [], 0
        for entry, _, (wide, high) in embedded:
            row: dict[str, object] = {"id": entry.id, "has_image": bool(entry.picture), "has_text": bool(entry.text)}
            texts = [("text", entry.text), ("title", entry.title)] if entry.text else [("title", entry.name)]
            row["texts"] = [{"kind": kind, "text": text} for kind, text in texts if text]
            row |= {"caption": entry.text, "width": wide, "height": high, "boxes": [], "where": None, "sha256": ""}
            if entry.picture:
                digest, file = hashlib.sha256(entry.picture).hexdigest(), place / entry.id
                file.write_bytes(entry.picture)
                size += len(entry.picture)
                boxes = self._service.reader.boxes(entry.picture)[2]
                row |= {"boxes": [side for box in boxes for side in box], "sha256": digest}
                row["where"] = {"path": str(file), "offset": 0, "size": len(entry.picture), "sha256": digest}
            rows.append(row)
        rows_ND = np.stack([row_D for _, row_D, _ in embedded])
        has_image = np.array([bool(entry.picture) for entry, _, _ in embedded])
        zeros_ND = np.zeros((len(rows), width), np.float32)
        try:
            with IndexWriter.begin(folder / "index", index_info(self._service.checkpoint, name)) as writer:
                writer.add(
                    pa.Table.from_pylist(rows),
                    np.where(has_image[:, None], rows_ND, zeros_ND),
                    np.where(has_image[:, None], zeros_ND, rows_ND),
                )
                writer.finish()
        except IndexFault as e:
            raise Refused(503, "index_damaged", str(e), retry_after=10) from None
        if before is None:
            return Gallery(name, SearchIndex.open(folder / "index"), own=True, bytes=size)
        before.index.reload_if_changed()
        return replace(before, bytes=before.bytes + size)


def open_collections(arguments: Sequence[str], checkpoint: Checkpoint) -> dict[str, SearchIndex]:
    """The indexes of `--index [NAME=]DIR`, by name. Raises ConfigError, IndexFault."""
    given: dict[str, SearchIndex] = {}
    for argument in arguments:
        name, equals, place = argument.partition("=")
        named = bool(equals) and not Path(argument).exists()
        index = SearchIndex.open(Path(place if named else argument))
        name = name if named else index.about.name
        if not _NAME.fullmatch(name) or name in given:
            raise ConfigError("--index", f"{argument}: give it a unique name: NAME=DIR")
        of = index.about.checkpoint
        if index.width != checkpoint.config.moco.feature_dim or (of is not None and of.sha256 != checkpoint.towers):
            raise ConfigError("--index", f"{argument}: made by other towers; embed it again with this checkpoint")
        given[name] = index
    return given


def _known_ids(gallery: Gallery | None, entries: Sequence[_Entry]) -> set[str]:
    """Ids of the entries that a collection has already."""
    return set() if gallery is None else {entry.id for entry in entries if gallery.index.row(entry.id) is not None}


def _entries(uploads: Sequence[Upload]) -> tuple[list[_Entry], list[dict[str, str]]]:
    """Rows of the files, each once; and the files that hold none."""
    entries: dict[str, _Entry] = {}
    refused: list[dict[str, str]] = []
    for upload in uploads:
        if not upload.is_text:
            id = hashlib.sha256(upload.content).hexdigest()[:32]
            entries.setdefault(id, _Entry(id, picture=upload.content, name=Path(upload.name).name[:200]))
            continue
        try:
            lines = upload.content.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as e:
            refused.append({"file": upload.name, "message": f"not UTF-8 at byte {e.start}; save it as UTF-8"})
            continue
        for line in lines:
            text, _, title = line.strip("\r").partition("\t")
            if text.strip():
                id = hashlib.sha256(text.encode()).hexdigest()[:32]
                entries.setdefault(id, _Entry(id, text=text, title=title.strip()))
    if len(entries) > OWN_ROWS or len(uploads) > MOST_FILES:
        text = f"at most {MOST_FILES:,} files and {OWN_ROWS:,} rows at once; send it in parts"
        raise Refused(413, "too_many", text, param="files")
    return list(entries.values()), refused
