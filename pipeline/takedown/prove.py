"""Looks for something in every byte of builds, STORE and indexes. `wenlan-data forget --prove URL|FILE|STRING`.

A takedown rewrites what it knows of; this knows nothing of stages, tables or records. It walks all files below the
folders of the builds that STORE knows, of STORE with its releases, and of what is named, unpacks them
(`pipeline.takedown.unpack`), and looks for

    bytes    a string, in the encodings in which it may have been written (`spellings`); of a URL also what a page
             names relative to itself; of a file its sha256, in hex and as bytes
    names    the same in the names of folders, files, members, tables and columns; of a URL also without its scheme
    sha256   files, members and values whose bytes are those of a file
    looks    pictures that look like a file, by the test that takedowns use

What a takedown itself must keep is found too, and listed apart (`EXPECTED`): it does not count.

Limits: sources of the user, copies of a dataset, logs of Ray, and indexes that are not named lie elsewhere and are not
walked. Ids that a takedown leaves in decisions (sha256 of a URL) are not looked for. Every picture is decoded whose
features STORE does not have: some milliseconds each.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa

from data_specs.build import Dedup, SpecError
from data_specs.shard import nfc
from pipeline.errors import SourceError
from pipeline.features import feature_id
from pipeline.features._rows import measure_image
from pipeline.files.folder import Folder, place_of
from pipeline.files.inputs import files_below
from pipeline.pictures.decode import MAX_PIXELS, PictureError
from pipeline.pictures.formats import HEAD, format_of
from pipeline.store.image_features import features_of
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns
from pipeline.takedown.page_pictures import PageImages
from pipeline.takedown.request import look_of
from pipeline.takedown.unpack import IN_MEMORY, Unpacked, UnpackedPiece
from pipeline.urls import canonical_url

SHORTEST = 4
"""Bytes of a string that is looked for: a shorter one is somewhere by chance."""

EXPECTED = "the takedown itself: hashes and looks, by which the picture is refused in future"
"""Why STORE/forgotten holds what it holds."""

PICTURES = 64
"""Pictures whose looks are compared at once."""


@dataclass(frozen=True)
class Finding:
    """path: of the file. member: where in it, "" for the file as it lies there. what: was found."""

    path: str
    member: str
    what: str

    def line(self) -> str:
        return f"{self.path}{f' {self.member}' if self.member else ''}: {self.what}"


@dataclass(frozen=True)
class SearchTarget:
    """Target of a search. needles: bytes, each with its description. url: canonical, "" for none. sha256,
    looks: of a file, "" and None for none."""

    needles: dict[bytes, str]
    url: str = ""
    sha256: str = ""
    looks: Takedowns | None = None

    def in_name(self, name: str) -> bool:
        """True if a name holds one of the needles, or the address of the URL."""
        address = self.url.partition("://")[2].encode()
        data = name.encode("utf-8", "surrogateescape")
        return bool(address and address in data) or any(needle in data for needle in self.needles)

    @property
    def overlap(self) -> int:
        """Bytes of a block that may begin what goes on in the next one."""
        return max(map(len, self.needles)) - 1


def parse_target(what: str) -> SearchTarget:
    """Parses a URL, a file name or a string. Raises SpecError for a string that is too short, and SourceError."""
    path = Path(what)
    if "://" not in what and path.is_file():
        try:
            return _of_file(path.read_bytes())
        except OSError as e:
            raise SourceError(what, f"cannot be read ({e.strerror})") from None
    if len(what.encode("utf-8", "surrogateescape")) < SHORTEST:
        raise SpecError([f"--prove {what}: not a file, and too short for a string; at least {SHORTEST} bytes"])
    url = ""
    with contextlib.suppress(ValueError):
        url = canonical_url(what) if "://" in what else ""
    return SearchTarget({data: f"the string, {how}" for data, how in spellings([what, url] if url else [what])}, url)


def _of_file(data: bytes) -> SearchTarget:
    digest, looks = hashlib.sha256(data), None
    with contextlib.suppress(PictureError):
        looks = Takedowns(looks=(look_of(measure_image(data, MAX_PIXELS), Dedup().image_distance),))
    needles = {digest.hexdigest().encode(): "its sha256, in hex", digest.digest(): "its sha256, as bytes"}
    return SearchTarget(needles, sha256=digest.hexdigest(), looks=looks)


def spellings(texts: Iterable[str]) -> Iterator[tuple[bytes, str]]:
    """The bytes of texts in each way in which a page, a table or a file of ours may hold it; each once."""
    seen = set[bytes]()
    for text in texts:
        forms = (
            (text, ""),
            (nfc(text), " (NFC)"),
            (html.escape(text), " (HTML)"),
            (json.dumps(text)[1:-1], " (JSON)"),
            (json.dumps(text, ensure_ascii=False)[1:-1], " (JSON)"),
            (quote(text, safe="/:?=&%#+,;@!$'()*~[]"), " (percent-encoded)"),
            (quote(text, safe=""), " (percent-encoded)"),
            (unquote(text), " (without percent-encoding)"),
        )
        for form, how in forms:
            for encoding in ("utf-8", "gb18030", "big5", "utf-16-le", "utf-16-be"):
                with contextlib.suppress(UnicodeEncodeError):
                    data = form.encode(encoding)
                    if data not in seen:
                        seen.add(data)
                        yield data, f"in {encoding}{how}"


@dataclass
class Proof:
    """The search for one thing. findings: each once, in order; expected: what must be there; faults: a line for each
    file that could not be read or unpacked, so that nothing is proved of it; files, size: files and bytes searched."""

    store: Store
    target: SearchTarget
    on_progress: Callable[[Proof], None] = lambda _: None
    findings: list[Finding] = field(default_factory=list)
    expected: list[Finding] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0
    every_s: float = 10.0
    """Seconds between two calls of `on_progress`."""
    _reported_at: float = field(default_factory=time.monotonic)
    _waiting: list[tuple[Finding, str, bytes]] = field(default_factory=list)  # (where, sha256, bytes of a picture)

    def walk(self, roots: Iterable[str]) -> None:
        """Look into every file below some folders, each file once."""
        forgotten, seen = f"{place_of(self.store.url)}/forgotten/", set[str]()
        with PageImages() as pages:
            for folder in map(Folder, roots):
                try:
                    names = sorted(files_below(folder.url))
                except SourceError as e:
                    self.faults.append(str(e))
                    continue
                for name in names:
                    place = place_of(folder.at(name))
                    if place not in seen:
                        seen.add(place)
                        self._look_into(folder, name, pages, place.startswith(forgotten))
        self._compare_looks()

    def _look_into(self, folder: Folder, name: str, pages: PageImages, is_tombstone: bool) -> None:
        path = folder.at(name)
        if folder.is_local and not (file := Path(path)).is_file():  # a FIFO or a socket holds nothing
            if file.is_symlink() and not file.exists():
                self.faults.append(
                    f"{path}: not searched: a link to {file.readlink()}, which is not there; mount its disk"
                )
            return
        try:
            with folder.local(name) as local:
                unpacked = Unpacked(local)
                for piece in unpacked.pieces():
                    found = self.expected if is_tombstone else self.findings
                    if self.target.in_name(piece.called if piece.member else name):
                        found.append(Finding(path, piece.member, "its name"))
                    found += [Finding(path, piece.member, what) for what in self._in(path, piece, pages)]
                    self._report_progress()
                self.size += local.stat().st_size
        except FileNotFoundError:  # a lock, or a file that another command has replaced
            return
        except OSError as e:
            self.faults.append(f"{path}: cannot be read ({e.strerror or e})")
        else:
            self.files += 1
            self.faults += [f"{path}: {fault}" for fault in unpacked.faults]

    def _in(self, path: str, piece: UnpackedPiece, pages: PageImages) -> Iterator[str]:
        """Yields what is found in a piece; a picture waits until its looks are compared."""
        digest, found, tail, kept = hashlib.sha256(), set[str](), b"", list[bytes]()
        whole, size, is_small = bool(self.target.sha256), 0, True
        for block in piece.blocks:
            if not size:  # the first
                is_page = bool(self.target.url and piece.url and "html" in piece.content_type)
                is_picture = self.target.looks is not None and bool(format_of(block[:HEAD]))
                is_small = is_page or is_picture
            size += len(block)
            if whole:
                digest.update(block)
            if is_small and size <= IN_MEMORY:
                kept.append(block)
            window = tail + block
            found |= {what for needle, what in self.target.needles.items() if needle in window}
            tail = window[-self.target.overlap :]
        yield from sorted(found)
        if not size:
            return
        if whole and digest.hexdigest() == self.target.sha256:
            yield "the file itself, by its sha256"
        elif kept and size <= IN_MEMORY and self.target.looks is not None:
            self._waiting.append((Finding(path, piece.member, ""), digest.hexdigest(), b"".join(kept)))
            if len(self._waiting) == PICTURES or sum(len(data) for *_, data in self._waiting) > IN_MEMORY:
                self._compare_looks()
        elif kept and self._names_it(piece, b"".join(kept), pages):
            yield "a page that shows the picture"

    def _names_it(self, piece: UnpackedPiece, body: bytes, pages: PageImages) -> bool:
        """True if a page shows the picture by an address that is relative to the page. Few pages are read for it."""
        name = urlsplit(self.target.url).path.rpartition("/")[2]
        if not any(one.encode() in body for one in {name, unquote(name)} if one):
            return False
        return self.target.url in pages.of(piece.url, piece.content_type, body)

    def _compare_looks(self) -> None:
        """Note the waiting pictures that look like the file."""
        waiting, self._waiting = self._waiting, []
        if self.target.looks is None or not waiting:
            return
        images: dict[str, bytes] = {sha256: data for _, sha256, data in waiting}
        rows = pa.concat_tables(features_of(self.store, images, images.__getitem__, MAX_PIXELS))
        alike = set(self.target.looks.alike(rows, feature_id()))
        for where, sha256, _ in waiting:
            if sha256 in alike:
                self.findings.append(replace(where, what="a picture that looks like it"))

    def _report_progress(self) -> None:
        if time.monotonic() - self._reported_at >= self.every_s:
            self._reported_at = time.monotonic()
            self.on_progress(self)
