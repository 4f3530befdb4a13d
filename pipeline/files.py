"""Files that a source names by path, URL or glob: which they are, and how to tell that one has changed.

Everything goes through fsspec, so that a disk and an object store read alike. Limits: a plain http URL cannot be
listed, so globs need a disk, s3, gs or the like; `pipe:` and other addresses that run a command are no files.
"""

from __future__ import annotations

from typing import Any

import fsspec

from pipeline.errors import SourceError

_MAGIC = "*?["


def expand(paths: tuple[str, ...], source: str) -> list[str]:
    """Files that paths and globs name, each once: sorted within each glob. `source` is who asks, for the message.

    Raises SourceError for a path that is missing, a folder or cannot be looked at, and for a glob without a match.
    """
    return list(dict.fromkeys(file for path in paths for file in _expand(path, source)))


def _expand(path: str, source: str) -> list[str]:
    try:
        fs, inner = fsspec.url_to_fs(path)
        if not any(c in path for c in _MAGIC) or path.startswith(("http://", "https://")):
            if not fs.exists(inner):
                raise SourceError(path, f"source {source}: there is no such file")
            if fs.isdir(inner):
                raise SourceError(path, f"source {source}: is a folder; a file or a glob is wanted")
            return [path]
        names = sorted(str(name) for name in fs.glob(inner) if not fs.isdir(name))
    except (OSError, ValueError, ImportError) as e:
        raise SourceError(path, f"source {source}: cannot be looked at ({e or type(e).__name__})") from None
    if not names:
        raise SourceError(path, f"source {source}: matches no file")
    return [str(fs.unstrip_protocol(name)) if "://" in path else name for name in names]


def version(file: str) -> list[Any]:
    """What changes when a file changes: its name, size, and time or version mark. Raises SourceError."""
    try:
        fs, inner = fsspec.url_to_fs(file)
        info = fs.info(inner)
    except (OSError, ValueError) as e:
        raise SourceError(file, f"cannot be looked at ({e or type(e).__name__})") from None
    mark = next((info[k] for k in ("ETag", "etag", "mtime", "LastModified", "updated") if info.get(k)), "")
    return [file.rpartition("/")[2], info.get("size"), str(mark)]
