"""Unpacks a file with all that it packs, to show that something is nowhere in it.

A file is a piece, as it lies on the disk. Then come the pieces inside it: members of tars and zips, gzip members,
records of WARC files with the HTTP encoding of their bodies undone, values of Parquet, Arrow, SQLite and DuckDB tables,
and pictures in `data:` URIs; and what these pack, up to DEPTH levels. Formats are told by their first bytes.

A piece is read block by block. What is packed goes to memory up to IN_MEMORY bytes, beyond that to a temporary file;
tables are read in batches.

Limits: full-text indexes of SQLite hold words apart from each other. Encrypted zips are named as unreadable.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import shutil
import sqlite3
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files.damage import Hole
from pipeline.files.tar_members import members_of
from pipeline.web import bodies

BLOCK = 1 << 20
IN_MEMORY = 64 << 20
DEPTH = 6

ROWS = 1_000
"""Rows of a table that are one piece, column by column."""

_DATA_URI = re.compile(rb"data:image/[a-z+.-]+;base64,([A-Za-z0-9+/=]+)")

_FAULTS = (
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # an encrypted zip
    ValueError,
    pa.ArrowException,
    sqlite3.Error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass
class UnpackedPiece:
    """A stretch of bytes: a file, a file within it, or values of a table. packs: whether to unpack it further.

    member: where it lies within the file, "" for the file itself. called: its name in an archive, or that of a table or
    column; "" for one that has none. url, content_type: of the body of a WARC record.
    """

    member: str
    file: IO[bytes]
    packs: bool = True
    called: str = ""
    url: str = ""
    content_type: str = ""
    has_pictures: bool = False
    """Whether a `data:` URI of a picture is among the blocks that were read."""

    @property
    def blocks(self) -> Iterator[bytes]:
        """Its bytes from the beginning, to be read before the next piece is asked for."""
        self.file.seek(0)
        before = b""
        while block := self.file.read(BLOCK):
            before += block
            self.has_pictures = self.has_pictures or b"data:image/" in before
            before = before[-16:]
            yield block


class Unpacked:
    """The pieces of a local file. faults: a line for each that could not be unpacked, filled while they are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.faults: list[str] = []

    def pieces(self) -> Iterator[UnpackedPiece]:
        """All pieces, the file itself first. Raises OSError for a file that cannot be read."""
        with self._path.open("rb") as file:
            yield from self._pieces(UnpackedPiece("", file), self._path, 0)

    def _pieces(self, own: UnpackedPiece, path: Path | None, depth: int) -> Iterator[UnpackedPiece]:
        own.file.seek(0)
        head = own.file.read(1024)
        yield own
        inside = _opener(head) if own.packs else None
        for opener in (inside, _data_uris if own.has_pictures and inside is None else None):
            if opener is None or depth == DEPTH:
                continue
            try:
                own.file.seek(0)
                for inner in opener(own.file, path):
                    with inner.file:
                        inner.member = f"{own.member}!{inner.member}"
                        yield from self._pieces(inner, None, depth + 1)
            except _FAULTS as e:
                self.faults.append(f"{own.member or 'the file'} cannot be unpacked ({type(e).__name__}: {e})")


Opener = Callable[[IO[bytes], Path | None], Iterator[UnpackedPiece]]


def _opener(head: bytes) -> Opener | None:
    """Returns the opener of files with these first bytes; None for a file that packs nothing."""
    for magic, opener in _BY_MAGIC.items():
        if head.startswith(magic):
            return opener
    if head[257:262] == b"ustar":
        return _tar
    return _duckdb if head[8:12] == b"DUCK" else None


@contextlib.contextmanager
def _spooled() -> Iterator[IO[bytes]]:
    """A temporary file, which is closed if the block fails, and else by its reader."""
    file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
    try:
        yield file
    except BaseException:
        file.close()
        raise


def _copied(source: IO[bytes]) -> IO[bytes]:
    with _spooled() as target:
        shutil.copyfileobj(source, target, BLOCK)
        return target


def _tar(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    """Members, those behind a damaged part too. Raises ValueError about that in the end."""
    holes = list[Hole]()
    for member in members_of(file):
        if isinstance(member, Hole):
            holes.append(member)
        elif member.info.isreg():
            yield UnpackedPiece(member.name, _copied(member.opened()), called=member.name)
    if holes:
        raise ValueError(f"{holes[0]}{f', and {len(holes) - 1:,} other parts' if holes[1:] else ''}")


def _zip(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                yield UnpackedPiece(name, _copied(member), called=name)


def _gzip(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    """Each member by itself: of our WARC files that is one record."""
    packed, start, position = b"", 0, 0
    while True:
        packed = packed or file.read(BLOCK)
        if not packed.strip(b"\0"):
            if not packed:
                return
            packed = b""
            continue
        machine = zlib.decompressobj(zlib.MAX_WBITS | 16)
        with _spooled() as target:
            while not machine.eof:
                if not packed:
                    raise EOFError(f"the gzip member at {start} is cut off")
                before = len(packed)
                target.write(machine.decompress(packed, BLOCK))
                packed = machine.unused_data if machine.eof else machine.unconsumed_tail
                position += before - len(packed)
                packed = packed or (b"" if machine.eof else file.read(BLOCK))
        yield UnpackedPiece(f"@{start}", target)
        start = position


def _compressed(codec: str) -> Opener:
    def opened(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
        with pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as stream:
            yield UnpackedPiece(codec, _copied(stream))

    return opened


def _warc(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    """Bodies of the records, HTTP headers left away: these are in the piece around them."""
    while line := file.readline(BLOCK):
        if not line.startswith(b"WARC/"):
            continue
        headers = _headers(file)
        size = int(headers.get("content-length", "0"))
        url = headers.get("warc-target-uri", "").strip("<>")
        with _spooled() as block, block:
            for remaining in range(size, 0, -BLOCK):
                block.write(file.read(min(BLOCK, remaining)))
            block.seek(0)
            if block.read(5) != b"HTTP/":
                block.seek(0)
                yield UnpackedPiece(url, _copied(block), url=url)
                continue
            block.readline(BLOCK)
            http = _headers(block)
            yield UnpackedPiece(url, _decoded(block, http), url=url, content_type=http.get("content-type", ""))


def _headers(file: IO[bytes]) -> dict[str, str]:
    """Header fields up to the empty line, by lower-case name."""
    fields = dict[str, str]()
    while (line := file.readline(BLOCK)).strip():
        name, _, value = line.decode("utf-8", "replace").partition(":")
        fields[name.strip().lower()] = value.strip()
    return fields


def _decoded(body: IO[bytes], headers: dict[str, str]) -> IO[bytes]:
    """A body without its transfer and content encoding; gzip and zstd stay, and are unpacked as files of their own."""
    content = _dechunked(body) if "chunked" in headers.get("transfer-encoding", "").lower() else _copied(body)
    encoding = headers.get("content-encoding", "").lower()
    content.seek(0)
    if encoding in ("br", "deflate"):
        with contextlib.suppress(bodies.Undecodable):  # it was decoded before it was stored
            plain = bodies.unpacked(content.read(), encoding, 1 << 40)
            content.close()
            return io.BytesIO(plain)
    return content


def _dechunked(body: IO[bytes]) -> IO[bytes]:
    start = body.tell()
    try:
        with _spooled() as target:
            while size := int(body.readline(BLOCK).split(b";")[0], 16):
                target.write(body.read(size))
                body.readline(BLOCK)
            return target
    except ValueError:  # it was decoded before it was stored
        body.seek(start)
        return _copied(body)


def _parquet(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    with pq.ParquetFile(file) as table:
        yield from _values(table.iter_batches(ROWS))


def _arrow(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    with pa.ipc.open_file(file) as table:
        yield from _values(table.get_batch(number) for number in range(table.num_record_batches))


def _values(batches: Iterable[pa.RecordBatch]) -> Iterator[UnpackedPiece]:
    """Columns of text and bytes, ROWS values at a time, and each value by itself that may be a file."""
    row = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            some = batch.slice(start, ROWS)
            rows = f"rows {row}-{row + some.num_rows - 1}"
            for name, values in _leaves(some):
                yield UnpackedPiece(f"{name} {rows}", io.BytesIO(_join_values(values)), packs=False, called=name)
                if not pa.types.is_large_string(values.type):
                    large = values.filter(pc.greater(pc.binary_length(values), 100))
                    yield from (UnpackedPiece(f"{name} {rows}", io.BytesIO(value.as_py())) for value in large)
            row += some.num_rows


def _leaves(batch: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
    """(name, values) of the columns of strings (large_string) and bytes (large_binary), those inside others too."""
    waiting = list(zip(batch.schema.names, batch.columns, strict=True))
    while waiting:
        name, values = waiting.pop(0)
        kind = values.type
        if isinstance(values, pa.ExtensionArray):
            waiting.append((name, values.storage))
        elif pa.types.is_dictionary(kind):
            waiting.append((name, values.dictionary_decode()))
        elif pa.types.is_struct(kind):
            waiting += zip((f"{name}.{field.name}" for field in kind), values.flatten(), strict=True)
        elif pa.types.is_map(kind):
            waiting += [(f"{name}.key", values.keys), (f"{name}.value", values.items)]
        elif pa.types.is_nested(kind):
            waiting.append((name, values.flatten()))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield name, values.drop_null().cast(pa.large_string())
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            yield name, values.drop_null().cast(pa.binary()).cast(pa.large_binary())


def _join_values(values: Any) -> bytes:
    """Joins values with line breaks, so that a match lies within one value."""
    return b"\n".join(
        value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value for value in values.to_pylist()
    )


def _sqlite(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    with (
        _on_disk(file, path) as place,
        contextlib.closing(sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True)) as db,
    ):
        db.text_factory = bytes
        names = [name.decode() for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            quoted = name.replace('"', '""')
            cursor, row = db.execute(f'SELECT * FROM "{quoted}"'), 0
            while some := cursor.fetchmany(ROWS):
                values = b"\n".join(value for one in some for value in one if isinstance(value, bytes))
                yield UnpackedPiece(
                    f"{name} rows {row}-{row + len(some) - 1}", io.BytesIO(values), packs=False, called=name
                )
                row += len(some)


def _duckdb(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    import duckdb

    with _on_disk(file, path) as place:
        try:
            with duckdb.connect(str(place), read_only=True) as db:
                for schema, name in db.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall():
                    rows = db.sql(f'SELECT * FROM "{schema}"."{name}"').to_arrow_reader(ROWS)
                    for inner in _values(rows):
                        yield replace(inner, member=f"{name}.{inner.member}", called=f"{name}.{inner.called}")
        except duckdb.Error as e:
            raise ValueError(str(e).splitlines()[0]) from None


@contextlib.contextmanager
def _on_disk(file: IO[bytes], path: Path | None) -> Iterator[Path]:
    """A path of a file: its own, or that of a copy."""
    if path is not None:
        yield path
        return
    with tempfile.NamedTemporaryFile() as copy:
        shutil.copyfileobj(file, copy, BLOCK)
        copy.flush()
        yield Path(copy.name)


def _data_uris(file: IO[bytes], path: Path | None) -> Iterator[UnpackedPiece]:
    number, text = 0, b""
    while block := file.read(BLOCK):
        text += block
        done = 0
        for found in _DATA_URI.finditer(text):
            if found.end() < len(text):  # else the next block may go on with it
                yield UnpackedPiece(f"data URI {number}", io.BytesIO(base64.b64decode(found[1] + b"==")))
                number, done = number + 1, found.end()
        begins = text.rfind(b"data:image/", done)
        text = text[begins if begins >= 0 else max(done, len(text) - 16) :]
    for found in _DATA_URI.finditer(text):
        yield UnpackedPiece(f"data URI {number}", io.BytesIO(base64.b64decode(found[1] + b"==")))


_BY_MAGIC: dict[bytes, Opener] = {
    b"\x1f\x8b": _gzip,
    b"\x28\xb5\x2f\xfd": _compressed("zstd"),
    b"BZh": _compressed("bz2"),
    b"PK\x03\x04": _zip,
    b"WARC/": _warc,
    b"PAR1": _parquet,
    b"ARROW1": _arrow,
    b"SQLite format 3\0": _sqlite,
}
