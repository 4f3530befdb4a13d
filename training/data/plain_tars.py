"""Plain webdataset tars as training input: indexes of tars that no wenlan build made.

One pass finds every sample that has an image and a text, and where its image lies; the table has the columns of the
contract's Parquet, so that the rest of `training` need not know the difference.

A stranger's tar may hold anything. Of a member only the suffixes that are used are read: texts up to TEXT_BYTES, images
in blocks, for their digest alone.

Texts come from KEY.txt, or from "caption" of KEY.json (a text, or a list of them), or from a wenlan sample. A KEY.txt
of several lines holds several captions, one per line. Which of them is trained on in an epoch is the choice of
training/data/batch_maker.py, as for every sample with several texts: the first one by default ("primary"), one drawn
again in each epoch with `data.text_kinds={"library": {"caption": 1}}`. Evaluation takes the first.

Limits: compressed tars are refused, since an image is read by its offset; width and height are left 0 (unknown); image
and text ids are sha256 of the bytes, so that only exact copies are known as such. A sample without an image or
without a text is passed over, and so are members in a sparse format (2 kB that read as gigabytes of zeros, and that do
not lie in one piece) and members that are not texts: too long, not UTF-8, JSON that is damaged or nested too deeply.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from data_specs.release import LATEST
from data_specs.shard import MANIFEST, SCHEMA_VERSION, SHARD_SCHEMA, ContractError, decode_sample, nfc
from data_specs.storage.object_store import reason
from training.errors import first_line

TEXT_BYTES = 16 << 20
"""Size above which a member is not a text of a sample."""

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_TEXT_SUFFIXES = ("txt", "json")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_OF_A_BUILD = re.compile(r"(train|dev|val)-\d{6}\.tar")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""First bytes of gzip, bzip2, xz and zstd, also of a file that is called .tar."""
_MAGIC_BYTES = max(map(len, _MAGIC))

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Member:
    """A member that may be of use: of an image the place and sha256 of its bytes, of a text the bytes."""

    key: str
    suffix: str
    offset: int
    size: int
    sha256: str = ""
    text: bytes = b""


def plain_tars_of(argument: str) -> list[str] | None:
    """The plain tars of a --data argument, or None if it is a manifest.

    A tar; a brace pattern as webdataset writes it, `x-{000..002}.tar`; a glob, `x-*.tar`, in the order of the names; or
    a folder with tars and no manifest. Raises ContractError: no tar matches, a compressed one, a build's unpublished.
    """
    if not argument.endswith((".tar", *_COMPRESSED)):
        if _is_glob(argument):
            raise ContractError(
                f"{argument}: a glob matches plain tars and must end in .tar; name manifests one by one"
            )
        return _tars_in_folder(argument)
    return _check_uncompressed([name for pattern in _expand_braces(argument) for name in _expand_glob(pattern)])


def _check_uncompressed(names: list[str]) -> list[str]:
    """Returns the names. Raises ContractError on the first of a compressed tar."""
    for name in names:
        if name.endswith(_COMPRESSED):
            raise _compressed_error(name)
    return names


def _compressed_error(name: str) -> ContractError:
    return ContractError(
        f"{name}: a compressed tar; decompress it first (for example gunzip -k), because images are read by offset. It "
        "hardly grows, since pictures are already compressed"
    )


def _expand_braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise ContractError(f"{pattern}: unbalanced braces") from None


def _expand_glob(pattern: str) -> list[str]:
    """Files that a glob matches, sorted; the name itself where it is not a glob."""
    if not _is_glob(pattern):
        return [pattern]
    fs, path = _file_system(pattern)
    found = sorted(fs.glob(path))
    if not found:
        raise ContractError(f"{pattern}: no file matches")
    return [fs.unstrip_protocol(name) for name in found] if "://" in pattern else found


def _is_glob(name: str) -> bool:
    """True if a name has a glob's marks, and is not the name of a file that has them."""
    if name.startswith(("http://", "https://")) or not any(mark in name for mark in "*?["):
        return False  # a ? is part of a URL there, and servers list nothing
    fs, path = _file_system(name)
    return not fs.exists(path)


def _tars_in_folder(name: str) -> list[str] | None:
    """The plain tars in a folder, sorted; None where it is not a folder, or holds a manifest, or no tar."""
    if name.endswith(".json") or name.startswith(("http://", "https://")):
        return None
    fs, path = _file_system(name)
    try:
        if any(fs.exists(posixpath.join(path, file)) for file in (MANIFEST, LATEST)) or not fs.isdir(path):
            return None
        names = sorted(posixpath.basename(entry.rstrip("/")) for entry in fs.ls(path, detail=False))
    except Exception:  # each protocol of fsspec has exceptions of its own
        return None  # opening it as a manifest says what is wrong
    # What lies decompressed beside its archive, as gunzip -k leaves it, is not refused for it.
    tars = [n for n in names if n.endswith(".tar")]
    tars += [n for n in names if n.endswith(_COMPRESSED) and re.sub(r"(\.tar)?\.\w+$", ".tar", n) not in tars]
    if any(_OF_A_BUILD.fullmatch(tar) and f"{tar.removesuffix('.tar')}.parquet" in names for tar in tars):
        raise ContractError(
            f"{name}: belongs to an unpublished build (manifest.json is missing); publish it with wenlan-data"
        )
    return _check_uncompressed([posixpath.join(name, tar) for tar in tars]) or None


def _file_system(name: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(name)
    except Exception as e:  # an unknown protocol, a missing package, a server that does not answer
        raise ContractError(f"{name}: cannot be opened ({reason(e)})") from None
    return fs, path


def index_tar(tar: str, columns: Sequence[str]) -> Any:
    """Arrow table of a plain tar's samples by one pass over it: `columns` of the contract's SHARD_SCHEMA.

    Raises ContractError when the tar is cut or holds no pair."""
    records = []
    try:
        # A name that is not UTF-8 has its bytes as \\xff: no column of Arrow, and no digest, takes it otherwise.
        opened = functools.partial(tarfile.open, mode="r:", encoding="utf-8", errors="backslashreplace")
        with fsspec.open(tar, "rb") as file:
            if file.read(_MAGIC_BYTES).startswith(_MAGIC):
                raise _compressed_error(tar)
            file.seek(0)
            with opened(fileobj=file) as archive:
                for key, members in itertools.groupby(_members(archive), key=lambda m: m.key):
                    record = _plain_record(tar, key, {member.suffix: member for member in members})
                    if record is not None:
                        records.append(record)
    except ContractError:
        raise
    except Exception as e:  # tarfile's own, EOFError, OSError; hostile headers raise OverflowError, RecursionError ...
        raise ContractError(f"{tar}: not a readable tar ({first_line(e)})") from None
    if not records:
        raise ContractError(
            f"{tar}: no sample with both an image ({', '.join(_IMAGE_SUFFIXES)}) and a text (txt, json)"
        )
    fields = [field for field in SHARD_SCHEMA if field.name in columns]
    return pa.Table.from_pylist(records, schema=pa.schema(fields))


def files_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar in order. Raises tarfile.ReadError if it is truncated or damaged.

    What else a hostile tar makes tarfile raise passes: OverflowError, RecursionError and errors of a decompressor.
    """
    for member in archive:
        if member.size < 0:  # the next header would lie before this one, and the tar never end
            raise tarfile.ReadError(f"{member.name} has a negative size")
        if member.isreg() and not member.issparse():
            yield member
    # tarfile takes a header that is cut for the end of the archive; every whole tar ends with a block of zeros.
    if archive.fileobj is not None:
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("truncated: the end mark is missing")


def _members(archive: tarfile.TarFile) -> Iterator[_Member]:
    """Members of use in their order; webdataset's rule: the key ends at the first dot. Raises tarfile.ReadError."""
    for member in files_of(archive):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        key, suffix = f"{folder}/{stem}" if folder else stem, suffix.lower()
        if suffix in _IMAGE_SUFFIXES:
            digest = hashlib.sha256()
            for block in _read_member(archive, member):
                digest.update(block)
            yield _Member(key, suffix, member.offset_data, member.size, sha256=digest.hexdigest())
        elif suffix in _TEXT_SUFFIXES and member.size <= TEXT_BYTES:
            text = b"".join(_read_member(archive, member))
            yield _Member(key, suffix, member.offset_data, member.size, text=text)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """The data of a member. Raises tarfile.ReadError when the tar ends before it does."""
    source, remaining = archive.fileobj, member.size
    assert source is not None
    source.seek(member.offset_data)
    while remaining:
        block = source.read(min(_BLOCK, remaining))
        if not block:
            raise tarfile.ReadError(f"ends inside {member.name}")
        remaining -= len(block)
        yield block


def _plain_record(tar: str, key: str, members: dict[str, _Member]) -> dict[str, Any] | None:
    suffix = next((s for s in _IMAGE_SUFFIXES if s in members), None)
    texts = _plain_texts(f"{tar}: {key}.json", members)
    if suffix is None or not texts:
        return None
    image = members[suffix]
    return {
        "key": key,
        "candidate_id": hashlib.sha256(f"{posixpath.basename(tar)}\n{key}".encode()).hexdigest(),
        "source_kind": "library",
        "sha256": image.sha256,
        "width": 0,
        "height": 0,
        "texts": [
            {"kind": kind, "text": text, "text_leader": hashlib.sha256(text.encode()).hexdigest()}
            for kind, text in texts
        ],
        "image_leader": image.sha256,
        "image_offset": image.offset,
        "image_size": image.size,
    }


def _plain_texts(name: str, members: dict[str, _Member]) -> list[tuple[str, str]]:
    """(kind, text) of a plain sample: of a wenlan KEY.json, else the lines of KEY.txt, else "caption" of KEY.json.

    Raises ContractError on a sample of a newer wenlan.
    """
    try:
        record = json.loads(members["json"].text) if "json" in members else None
        if isinstance(record, dict) and "schema" in record and "texts" in record:
            return _wenlan_texts(record, name)
        texts: list[str] = []
        if "txt" in members:
            texts = members["txt"].text.decode("utf-8-sig").split("\n")
        elif isinstance(record, dict):
            caption = record.get("caption") or ""
            texts = [str(text) for text in caption] if isinstance(caption, list) else [str(caption)]
        for text in texts:
            text.encode()  # JSON may hold half a surrogate pair
    except (ValueError, RecursionError):
        return []  # not UTF-8, JSON nested too deeply or with a number of 4,300 digits
    unique = dict.fromkeys(nfc(text).strip() for text in texts)
    return [("caption", text) for text in unique if text]


def _wenlan_texts(record: dict[str, Any], name: str) -> list[tuple[str, str]]:
    """(kind, text) of a KEY.json of ours; none where it is damaged. Raises ContractError and UnicodeEncodeError."""
    schema = record["schema"]
    try:
        texts: list[tuple[str, str]] = [(text.kind, text.text) for text in decode_sample(record, name).texts]
    except ContractError:
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise
        return []
    if not all(isinstance(part, str) for pair in texts for part in pair):
        return []
    for kind, text in texts:
        f"{kind}{text}".encode()
    return texts
