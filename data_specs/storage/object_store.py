"""Object stores, for both halves: retries, one-line errors, no credentials in URLs, conditional writes.

Whatever opens a URL goes through fsspec, and finds its credentials where the store's own tools do: environment
variables, profiles, the machine's role. A URL with a key in it is refused (`credentials`), since URLs are written
into records, manifests and reports.

A store that is busy (503 SlowDown), breaks a connection or fails (500) is asked ATTEMPTS times, with growing pauses:
for about a minute, and a few at most. AWS_MAX_ATTEMPTS and AWS_RETRY_MODE, and fsspec's own configuration, override it.

A conditional write (`create`, `replace`) succeeds for one of several writers only: S3's `If-None-Match: *` and
`If-Match: ETAG`. Where what is there already is what was to be written, byte for byte, it has succeeded: the answer to
an earlier try was lost on the way. `data_specs.storage.store_lock` makes a lock of them.

Limits: conditional writes on S3 alone (`s3://`), as AWS, MinIO, R2 and newer Ceph gateways know them; `is_conditional`
tries that out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import inspect
import logging
import os
import random
import re
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import fsspec.asyn
import fsspec.config
from fsspec.implementations.local import LocalFileSystem

from data_specs.errors import WenlanError
from data_specs.storage.credentials import OBJECT_STORES

ATTEMPTS = 12
"""Requests until a busy store is given up. The pauses between them are random, below 1, 2, 4, 8, 16, 20, 20 ... s."""

AT_ONCE = 1000
"""Objects that one request deletes at most: what S3 allows."""

DELETIONS = 100
"""Times that a folder is deleted while another process deletes in it."""

LOG = logging.getLogger("wenlan.object_store")


class StorageError(WenlanError, OSError):
    """A store failed or did not answer, in one line: `filename` is the URL, `strerror` says what to do."""

    def __init__(self, url: str, message: str, number: int = errno.EIO) -> None:
        super().__init__(number, message, url)

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, int]]:
        return type(self), (self.filename, self.strerror or "", self.errno or errno.EIO)


def _set_retries() -> None:
    """Let fsspec retry on S3 more often than its client does: whole weeks of work should not end with 503."""
    config = fsspec.config.conf.setdefault("s3", {}).setdefault("config_kwargs", {})
    retries = {"AWS_RETRY_MODE": ("mode", "standard"), "AWS_MAX_ATTEMPTS": ("total_max_attempts", ATTEMPTS)}
    own = {name: value for variable, (name, value) in retries.items() if variable not in os.environ}
    config["retries"] = {**own, **config.get("retries", {})}


def limit_attempts(attempts: int = 2) -> None:
    """Limit the attempts on a busy store: for a server, where people wait for a picture.

    Holds for URLs opened from now on in this process; AWS_MAX_ATTEMPTS overrides it.
    """
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries = fsspec.config.conf["s3"]["config_kwargs"]["retries"]
        fsspec.config.conf["s3"]["config_kwargs"]["retries"] = {**retries, "total_max_attempts": attempts}


# At import: fsspec is opened in fifty places and in Ray's workers, by URL only.
_set_retries()


@functools.cache
def prepare_client(scheme: str) -> None:
    """Prepare a client before its first use: s3fs multiplies its own tries with those of its client."""
    if scheme in ("s3", "s3a"):
        with contextlib.suppress(ImportError, ValueError):  # opening the URL reports the missing extra
            fsspec.get_filesystem_class("s3").retries = 2


def is_object_store(url: str) -> bool:
    """True if a path or URL, also a chained one (`simplecache::s3://...`), is on an object store."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme.rpartition("::")[2].lower() in OBJECT_STORES


_USERINFO = re.compile(r"//[^/\s\"']*@")


def client_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns exceptions of the loaded clients that are not OSErrors, and `more`, for an `except` clause."""
    botocore = sys.modules.get("botocore.exceptions")
    return (botocore.BotoCoreError, botocore.ClientError, *more) if botocore is not None else more


def reason(e: BaseException) -> str:
    """Returns an error of a store's client as one line that says what to do."""
    said = " ".join((getattr(e, "strerror", None) or str(e) or type(e).__name__).split())
    said = _USERINFO.sub("//", said)[:200]  # an address in the environment may hold some
    kind = type(e).__name__
    if "Credentials" in kind or "TokenRetrieval" in kind:
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment"
    if isinstance(e, PermissionError):
        return f"access denied ({said}); check the keys in the environment and their permissions"
    if kind in ("EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError"):
        return f"the store does not answer ({said}); check AWS_ENDPOINT_URL and the network, then run it again"
    if getattr(e, "errno", None) in (errno.EBUSY, errno.EREMOTEIO) or _code(e) in ("SlowDown", "InternalError"):
        return f"the store kept failing ({said}); run the same command again later"
    return said


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert errors of a store's client in the block to StorageError with the URL, except for missing files.

    Elsewhere nothing changes.
    """
    if not is_object_store(url):
        yield
        return
    prepare_client(url.partition("://")[0].lower())
    try:
        yield
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, StorageError):
        raise
    except PermissionError as e:
        raise StorageError(url, reason(e), errno.EACCES) from e
    except client_errors(OSError) as e:
        raise StorageError(url, reason(e), errno.EACCES if "Credentials" in type(e).__name__ else errno.EIO) from e


def content(url: str) -> bytes:
    """The whole content of a (small) file. Raises FileNotFoundError or StorageError.

    One request: s3fs asks for a file's size first, to receive a large one in parts.
    """
    with storage_errors(url):
        fs, path = fsspec.url_to_fs(url)
        return bytes(fs.cat_file(path, **_one_request(fs)))


def _one_request(fs: Any) -> dict[str, int]:
    """Options with which a file system reads a file by one request; an older s3fs knows no other way."""
    read = getattr(fs, "_cat_file", None)
    return {"max_concurrency": 1} if read and "max_concurrency" in inspect.signature(read).parameters else {}


def delete(url: str) -> None:
    """Delete a file, or a folder with all that lies in it; nothing happens if it is missing. Raises StorageError.

    Where there is nothing that costs one listing, of this name alone.
    """
    with storage_errors(url), contextlib.suppress(FileNotFoundError):
        fs, path = fsspec.url_to_fs(url)
        if not _is_s3(url):
            _delete_whole(fs, path, url)
            return
        bucket, _, key = path.partition("/")
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, Delimiter="/")
        if key in {entry["Key"] for entry in page.get("Contents", ())}:
            fs.rm_file(path)
        folders = {entry["Prefix"] for entry in page.get("CommonPrefixes", ())}
        if f"{key}/" in folders or page.get("IsTruncated"):  # by many names that begin so
            _delete_below(fs, bucket, f"{key}/", url)


def delete_files(folder: str, names: Sequence[str]) -> None:
    """Delete files of a folder, by their names in it; nothing happens for one that is not there. Raises StorageError.

    By one request for AT_ONCE of them, where `delete` of each takes two.
    """
    if not _is_s3(folder):
        for name in names:
            delete(f"{folder}/{name}")
        return
    with storage_errors(folder):
        fs, path = fsspec.url_to_fs(folder)
        bucket, _, prefix = path.partition("/")
        for first in range(0, len(names), AT_ONCE):
            _delete_keys(fs, bucket, [f"{prefix}/{name}" for name in names[first : first + AT_ONCE]], folder)
        for place in {f"{path}/{name}".rpartition("/")[0] for name in names}:
            fs.invalidate_cache(place)


def _delete_keys(fs: Any, bucket: str, keys: Sequence[str], url: str) -> None:
    """Delete at most AT_ONCE objects by one request. Raises StorageError that names one that stays."""
    named = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    for fault in fs.call_s3("delete_objects", Bucket=bucket, Delete=named).get("Errors", ()):
        raise StorageError(url, f"{fault['Key']} cannot be deleted ({fault.get('Message') or fault.get('Code')})")


def _delete_below(fs: Any, bucket: str, prefix: str, url: str) -> None:
    """Delete all that begins so. Not by `fs.rm`, to which [1], * and ? are a pattern: it deleted another folder."""
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for entry in page.get("Contents", ())]
        if not keys:
            break
        _delete_keys(fs, bucket, keys, url)
    fs.invalidate_cache(f"{bucket}/{prefix}".rstrip("/"))


def _delete_whole(fs: Any, path: str, url: str) -> None:
    """Delete until nothing is there: a file that another process deletes meanwhile ends the deletion of its folder."""
    literal = path if isinstance(fs, LocalFileSystem) else glob.escape(path)  # the others take it for a pattern
    for _ in range(DELETIONS):
        try:
            fs.rm(literal, recursive=True)
            return
        except FileNotFoundError:
            if not fs.exists(path):
                return
    raise StorageError(url, "is being changed by another process", errno.EBUSY)


def names(url: str) -> list[str]:
    """Names of what lies directly below a URL of a store, sorted. Raises StorageError.

    One listing of that folder, in pages of a thousand. s3fs's own `ls` of a folder that is not there lists the one
    above it as well, and that one may hold a dataset.
    """
    with storage_errors(url):
        if not _is_s3(url):
            fs, path = fsspec.url_to_fs(url)
            fs.invalidate_cache(path)
            try:
                listed = fs.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                listed = []
            return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in listed)
        fs, bucket, key = _s3(url)
        prefix, found, more = f"{key}/" if key else "", list[str](), dict[str, str]()
        while True:
            page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", **more)
            found += [entry["Key"] for entry in page.get("Contents", ())]
            found += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
            if not page.get("IsTruncated"):
                return sorted({own.removeprefix(prefix).rstrip("/") for own in found} - {""})
            more = {"ContinuationToken": page["NextContinuationToken"]}


# Conditional writes: the one place that knows how they are done.


def read(url: str) -> tuple[bytes, str] | None:
    """(content, version) of a small file, or None. The version is for `replace`. Raises StorageError."""
    with storage_errors(url):
        fs, bucket, key = _s3(url)
        try:
            return _read(fs, bucket, key)
        except FileNotFoundError:
            return None


def create(url: str, data: bytes) -> str:
    """Writes a file unless one has that name; returns its version, "" if one has. Raises StorageError."""
    return _conditional_put(url, data, {"IfNoneMatch": "*"})


def replace(url: str, data: bytes, version: str) -> str:
    """Write a file if it is still of that version; returns its new one, "" if it is not. Raises StorageError."""
    return _conditional_put(url, data, {"IfMatch": version})


_conditional: dict[tuple[str, str], bool] = {}
"""Results of `is_conditional`, by (address of the store, bucket)."""


def is_conditional(url: str) -> bool:
    """True if the bucket of a URL enforces conditional writes.

    Tried out once in a process, with a file beside `url` that is deleted again; a store that does not is logged.
    """
    root = "/".join(url.split("/", 3)[:3])
    about = os.environ.get("AWS_ENDPOINT_URL", ""), root
    if about not in _conditional:
        why = _condition_fault(f"{url}-probe-{uuid.uuid4().hex}")
        _conditional[about] = not why
        if why:
            LOG.warning("%s: %s, so locks do not work there; run one build and one publisher at a time", root, why)
    return _conditional[about]


def _condition_fault(probe: str) -> str:
    """Returns why the store of a URL cannot write on a condition; "" if it can."""
    if not _is_s3(probe):
        return "does not support conditional writes"
    with storage_errors(probe):
        fs, bucket, key = _s3(probe)
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"1")
        try:
            ignored = create(probe, b"2") or replace(probe, b"3", '"00000000000000000000000000000000"')
        finally:
            fs.call_s3("delete_object", Bucket=bucket, Key=key)
    return "ignores conditional writes" if ignored else ""


def _conditional_put(url: str, data: bytes, condition: dict[str, str]) -> str:
    with storage_errors(url):
        fs, bucket, key = _s3(url)
        for attempt in range(8):
            try:
                return str(fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)["ETag"])
            except client_errors(OSError) as e:
                if _code(e) not in ("ConditionalRequestConflict", "OperationAborted", "409"):
                    if not _is_refusal(e):
                        raise
                    break
            time.sleep(random.uniform(0.0, 0.1 * 2**attempt))  # another writer is at work on the same file
        # Refused: because of another's file, or of our own, written by a try whose answer was lost.
        there = read(url)
        return there[1] if there is not None and there[0] == data else ""


def _is_refusal(e: BaseException) -> bool:
    """True if a condition did not hold; also of a file to be replaced that is not there."""
    return isinstance(e, (FileExistsError, FileNotFoundError)) or _code(e) in ("PreconditionFailed", "412")


def _read(fs: Any, bucket: str, key: str) -> tuple[bytes, str]:
    answer = fs.call_s3("get_object", Bucket=bucket, Key=key)
    return bytes(fsspec.asyn.sync(fs.loop, answer["Body"].read)), str(answer["ETag"])


def _is_s3(url: str) -> bool:
    return url.partition("://")[0].lower() in ("s3", "s3a")


def _s3(url: str) -> tuple[Any, str, str]:
    """(file system, bucket, key) of a URL."""
    fs, path = fsspec.url_to_fs(url)
    bucket, _, key = path.partition("/")
    return fs, bucket, key


def _code(e: BaseException) -> str:
    """The code of S3's answer in an exception of s3fs or botocore, or ""."""
    for one in (e, e.__cause__, e.__context__):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
    return ""
