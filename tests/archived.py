"""WARC, WACZ and tar files for tests of what reads archives; the first two by hand, after ISO 28500 and WACZ 1.1.1."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

DATE = "2026-01-02T00:00:00Z"
JPEG = {"Content-Type": "image/jpeg"}


def record(
    url: str,
    body: bytes,
    headers: dict[str, str],
    *,
    status: str = "200 OK",
    kind: str = "response",
    date: str = DATE,
    **warc: str,
) -> bytes:
    """A gzip member with one record. headers: of the response; of a resource its Content-Type. warc: of the record."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = body if kind == "resource" else f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body
    about = {"WARC-Type": kind, "WARC-Target-URI": url, "WARC-Date": date, "Content-Length": str(len(block))}
    about |= {"Content-Type": headers["Content-Type"] if kind == "resource" else "application/http; msgtype=response"}
    about |= {name.replace("_", "-"): value for name, value in warc.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in about.items())
    return gzip.compress(f"WARC/1.0\r\n{head}\r\n".encode() + block + b"\r\n\r\n", mtime=0)


def page(url: str, *images: str, date: str = DATE) -> bytes:
    """A record of a Chinese page that shows some images, each with words of its own."""
    shown = "".join(f"<p>第{i}段介绍这里的风景</p><img src={src} alt={src}的雪景>" for i, src in enumerate(images))
    return record(url, f"<h1>山水</h1>{shown}".encode(), {"Content-Type": "text/html; charset=utf-8"}, date=date)


def jpeg(url: str, body: bytes, *, date: str = DATE, **warc: str) -> bytes:
    """A record of a picture."""
    return record(url, body, JPEG, date=date, **warc)


def revisit(url: str, *, date: str = DATE, **warc: str) -> bytes:
    """A record of a picture that has not changed since an earlier capture."""
    return record(url, b"", JPEG, kind="revisit", date=date, **warc)


def moved(url: str, to: str, **headers: str) -> bytes:
    """A record of a redirect."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return record(url, b"", {"Location": to, **named}, status="302 Found")


def wacz(path: Path, warcs: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> None:
    """Writes a WACZ file."""
    path.write_bytes(packed(warcs, packing))


def packed(warcs: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """A WACZ file with WARC files by name, behind something else."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        archive.writestr("datapackage.json", "{}", zipfile.ZIP_DEFLATED)
        for name, data in warcs.items():
            archive.writestr(f"archive/{name}", data)
        archive.writestr("indexes/index.cdx.gz", gzip.compress(b"cn,a)/ 2026 {}"))
    return out.getvalue()


def tar(
    members: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]], form: int = tarfile.DEFAULT_FORMAT
) -> bytes:
    """A tar of regular files by name; of pairs where a name comes twice."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()
