"""Plain webdataset tars as training input: indexes of tars that no wenlan build made.

One pass finds every sample that has an image and a text, and where its image lies; the table has the columns of the
contract's Parquet, so that the rest of `training` need not know the difference.

Limits: texts come from KEY.txt or KEY.json ("caption", or a wenlan sample); width and height are left 0 (unknown);
image and text ids are sha256 of the bytes, so that only exact copies are known as such. A sample without an image or
without a text is passed over.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa

from data_specs.shard import SHARD_SCHEMA, ContractError, decode_sample, nfc

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def expand(pattern: str) -> list[str]:
    """Names of a brace pattern as webdataset writes it: `x-{000..002}.tar` returns three."""
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise ContractError(f"{pattern}: unbalanced braces") from None


def index_tar(tar: str, columns: Sequence[str]) -> Any:
    """Arrow table of a plain tar's samples by one pass over it: `columns` of the contract's SHARD_SCHEMA.

    Raises ContractError when the tar is cut or holds no pair."""
    records = []
    try:
        with fsspec.open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for key, members in itertools.groupby(_members(archive), key=lambda m: m[0]):
                record = _plain_record(tar, key, {suffix: (at, data) for _, suffix, at, data in members})
                if record is not None:
                    records.append(record)
    except (tarfile.TarError, EOFError, OSError) as e:
        raise ContractError(f"{tar}: not a readable tar ({e})") from None
    if not records:
        raise ContractError(
            f"{tar}: no sample with both an image ({', '.join(_IMAGE_SUFFIXES)}) and a text (txt, json)"
        )
    fields = [field for field in SHARD_SCHEMA if field.name in columns]
    return pa.Table.from_pylist(records, schema=pa.schema(fields))


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, int, bytes]]:
    """(key, suffix, offset of the data, data) of each file; webdataset's rule: the key ends at the first dot."""
    for member in archive:
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        file = archive.extractfile(member)
        data = file.read() if file is not None else b""
        if len(data) != member.size:
            raise tarfile.ReadError(f"ends inside {member.name}")
        yield (f"{folder}/{stem}" if folder else stem), suffix.lower(), member.offset_data, data
    # tarfile takes a header that is cut for the end of the archive; every whole tar ends with a block of zeros.
    if archive.fileobj is not None:
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("has no end mark: truncated")


def _plain_record(tar: str, key: str, members: dict[str, tuple[int, bytes]]) -> dict[str, Any] | None:
    suffix = next((s for s in _IMAGE_SUFFIXES if s in members), None)
    texts = _plain_texts(f"{tar}: {key}.json", members)
    if suffix is None or not texts:
        return None
    offset, image = members[suffix]
    digest = hashlib.sha256(image).hexdigest()
    return {
        "key": key,
        "candidate_id": hashlib.sha256(f"{posixpath.basename(tar)}\n{key}".encode()).hexdigest(),
        "source_kind": "library",
        "sha256": digest,
        "width": 0,
        "height": 0,
        "texts": [
            {"kind": kind, "text": text, "text_leader": hashlib.sha256(text.encode()).hexdigest()}
            for kind, text in texts
        ],
        "image_leader": digest,
        "image_offset": offset,
        "image_size": len(image),
    }


def _plain_texts(name: str, members: dict[str, tuple[int, bytes]]) -> list[tuple[str, str]]:
    """(kind, text) of a plain sample: a wenlan KEY.json, else KEY.txt, else "caption" of KEY.json."""
    try:
        record = json.loads(members["json"][1]) if "json" in members else None
        if isinstance(record, dict) and "schema" in record and "texts" in record:
            return [(t.kind, t.text) for t in decode_sample(record, name).texts]
        if "txt" in members:
            text = members["txt"][1].decode()
        else:
            text = str((record or {}).get("caption") or "") if isinstance(record, dict) else ""
    except (UnicodeDecodeError, json.JSONDecodeError):
        return []  # a text that is not UTF-8 is no text
    text = nfc(text).strip()
    return [("caption", text)] if text else []
