"""Inspects the input of a new spec: the kind of source, its options and its content.

What was concluded stands in the spec with its reason. Texts are read by the source plug-in itself
(at most LOOKED_AT of them), so that what is measured here is what a build will read; nothing is requested from a web
site, and images behind URLs are not fetched.
"""

from __future__ import annotations

import csv
import glob
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec

from data_specs.errors import SpecError
from data_specs.shard import TEXT_KINDS, SourceKind, Text
from data_specs.storage.object_store import StorageError
from pipeline.commands.columns import guess_columns
from pipeline.errors import SourceError
from pipeline.files.inputs import Lines, Listing, expand, files_below, first_bytes, reason
from pipeline.pictures.formats import HEAD, SUFFIXES, is_picture
from pipeline.plugins import configure
from pipeline.rows.account import Account
from pipeline.rows.records import Candidate, encodable
from pipeline.sources import TableSource
from pipeline.sources._look import Budget
from pipeline.sources._text_files import AUTO, PACKED, SAVE_AS_CSV, WORKBOOKS, head_of, open_rows
from pipeline.sources.warc import Warc

LOOKED_AT = 3_000
"""Entries of a source that are looked at: of as many, a share of 0.01 is the 30 samples that a figure needs."""

FEW_PICTURES = 0.01
"""Share of the images on the pages of WARC files from which on the files are taken to hold the pictures."""

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_FORMAT = re.compile(r"\.(?:csv|tsv|jsonl|ndjson|json|parquet|tar|warc|wacz|paths)$", re.I)
_WEB = ("http://", "https://")

_COUNTING = ("url_table", "microblog")
"""Kinds of which the first file stands for all: a `url_table` reads each of its files through to count its rows."""

_KINDS: dict[SourceKind, str] = {
    "encyclopedia": "wiki|baike|encyclop|handbook",
    "news": r"news|xinwen|\bdaily\b",
    "microblog": "weibo|microblog",
    "wechat": "weixin|wechat",
    "blog": r"blog|\bhexo\b|\bhugo\b|wordpress",
    "forum": r"forum|\bbbs\b|tieba|discuz|viewthread",
}
"""Kinds of pages by the words of an address."""


@dataclass(frozen=True)
class Source:
    """A source as guessed. `options` are the plug-in's; paths among them as they were given."""

    kind: str
    name: str
    source_kind: SourceKind
    options: dict[str, Any]
    why: tuple[str, ...]
    asks: bool = False  # whether a build sends requests for it, unless the spec forbids them
    texts: tuple[Text, ...] = ()
    entries: int = 0  # that were looked at: LOOKED_AT or more of a source that has others
    allow: tuple[str, ...] = ()  # loopback hosts that were named as input
    archived: bool = False  # whether the pictures on its pages lie in it


def look(inputs: Sequence[str]) -> list[Source]:
    """The sources that inputs are: files of one format in one folder are one, as are pages of one host; a folder may be
    several.

    Raises SpecError for an input that is of no known format, SourceError for one that cannot be read.
    """
    together: dict[tuple[str, str], list[str]] = {}
    for given in inputs:
        suffix = _suffix(given)
        if suffix in _READERS:
            together.setdefault((given.rpartition("/")[0], suffix), []).append(_literal(given))
        elif given.startswith(_WEB):
            together.setdefault((urlsplit(given).netloc.lower(), "page"), []).append(given)
        else:
            together.setdefault((given, suffix), []).append(given)
    sources = [source for (_, suffix), given in together.items() for source in _look(suffix, given)]
    names = Counter(source.name for source in sources)
    taken = {name for name, times in names.items() if times == 1}
    return [source if source.name in taken else replace(source, name=_free(source.name, taken)) for source in sources]


def _free(name: str, taken: set[str]) -> str:
    """The name with the first number that makes it unlike those that are taken; it is taken then."""
    free = next(numbered for n in itertools.count(1) if (numbered := f"{name}-{n}") not in taken)
    taken.add(free)
    return free


def _literal(path: str) -> str:
    """A path that is there as a glob that means it alone; any other path, which may be a glob, as it is."""
    return glob.escape(path) if "://" not in path and Path(path).exists() else path


def _suffix(given: str) -> str:
    """The format of an input by its name, in small letters and without that of a packer."""
    try:
        path = urlsplit(given).path if "://" in given else given
    except ValueError as e:
        raise SpecError([f"--from {given}: invalid URL ({e})"]) from None
    return PurePosixPath(PACKED.sub("", path.lower())).suffix


def _look(suffix: str, paths: list[str]) -> list[Source]:
    """The sources that one input is, or files of one format in one folder."""
    if suffix in _READERS:
        return [_READERS[suffix](*paths)]
    given = paths[0]
    if given.startswith(_WEB):
        return [_site(list(dict.fromkeys(paths)))]
    if _is_folder(given):
        return _folder(given)
    if suffix in WORKBOOKS:
        raise SpecError([f"--from {given}: {SAVE_AS_CSV}"])
    if suffix == ".txt":
        wanted = "a table that also has texts, or the output folder of img2dataset"
        raise SpecError([f"--from {given}: a list of URLs without texts; give {wanted}"])
    known = "a folder, .parquet, .csv, .tsv, .jsonl, .tar, .warc.gz, .wacz, warc.paths.gz or https://"
    raise SpecError([f"--from {given}: not an existing folder, and not a known format; expected {known}"])


def _is_folder(given: str) -> bool:
    try:
        fs, root = fsspec.url_to_fs(given)
        return bool(fs.isdir(root))
    except ImportError:
        raise
    except Exception as e:  # each storage behind fsspec has exceptions of its own
        raise SourceError(given, f"cannot be accessed ({reason(e)})") from None


def _folder(given: str) -> list[Source]:
    """Returns the sources of a folder: pictures, or else tars, WARC files or tables."""
    listing = files_below(given)
    files = sorted(listing)
    by_suffix: dict[str, list[str]] = {}
    for name in files:
        by_suffix.setdefault(_suffix(name), []).append(name)
    tables = [name for suffix in TABLES for name in by_suffix.get(suffix, [])]
    pictures = _pictures_among(listing, given)
    if pictures:
        try:
            return [_pictures(given, pictures, tables, [name for name in files if _suffix(name) in WORKBOOKS])]
        except SourceError:  # a mirror by wget, beside its WARC file
            if not {".warc", ".wacz"} & by_suffix.keys():
                raise
    present = next(
        (own for own in ([".tar"], [".warc", ".wacz"], TABLES) if any(suffix in by_suffix for suffix in own)), ()
    )
    sources = []
    for suffix in (suffix for suffix in present if suffix in by_suffix):
        endings = dict.fromkeys(name[name.lower().rindex(suffix) :] for name in by_suffix[suffix])  # .csv, .csv.gz
        globs = [f"{_literal(given).rstrip('/')}/{_glob(by_suffix[suffix], ending)}" for ending in endings]
        sources.append(_READERS[suffix](*globs))
    if not sources and (workbooks := [name for name in files if _suffix(name) in WORKBOOKS]):
        raise SourceError(f"{given.rstrip('/')}/{workbooks[0]}", SAVE_AS_CSV)
    if not sources:
        raise SourceError(given, f"contains no pictures ({', '.join(SUFFIXES)}), tars, WARC files or tables")
    return sources


def _pictures_among(files: Listing, folder: str) -> list[str]:
    """The pictures among files of a folder, sorted. Raises SourceError.

    Of those whose suffix is that of no picture the first LOOKED_AT are asked.
    """
    asked = 0

    def head(name: str) -> bytes:
        nonlocal asked
        asked += 1
        return first_bytes(folder, name, min(HEAD, files[name][0])) if asked <= LOOKED_AT else b""

    try:
        return [name for name in sorted(files) if is_picture(name, partial(head, name))]
    except StorageError as e:
        raise SourceError(folder, e.strerror or "cannot be read") from None


def _glob(names: list[str], ending: str) -> str:
    return f"**/*{ending}" if any("/" in name for name in names) else f"*{ending}"


def _pictures(given: str, pictures: list[str], tables: list[str], workbooks: list[str]) -> Source:
    """A folder of pictures, with texts beside them or in a table of captions; workbooks are not read."""
    why = [f"{len(pictures):,} pictures"]
    options: dict[str, Any] = {"path": given}
    by_stem = {PurePosixPath(path).stem: PurePosixPath(path).name for path in pictures}
    for name in tables:
        rows = list(_rows(f"{given.rstrip('/')}/{name}"))
        if rows and {"image_id", "sentences"} <= set(rows[0]):
            return _table(_literal(f"{given.rstrip('/')}/{name}"))
        columns = _caption_columns(rows) or _caption_columns(  # names without .jpg
            [{column: by_stem.get(str(value), value) for column, value in row.items()} for row in rows]
        )
        if columns:
            image, texts = columns["image"], [own for kind, own in columns.items() if kind != "image"]
            options |= {"captions": name} if _has_usual_names(rows) else {"captions": name, "columns": columns}
            said = ", ".join(own if isinstance(own, str) else ", ".join(own) for own in texts)
            why.append(f"captions are in {name}: column {image} has the picture, {said} the text")
            break
    source = _measured("folder", (given,), options, why, "library")
    if not source.texts and workbooks:
        raise SourceError(f"{given.rstrip('/')}/{workbooks[0]}", SAVE_AS_CSV)
    if not source.texts:
        wanted = "each X.jpg needs an X.txt or X.json next to it, or a row in a table with the columns file and caption"
        raise SourceError(given, f"{len(pictures):,} pictures but no texts: {wanted}")
    return source


def _has_usual_names(rows: list[dict[str, Any]]) -> bool:
    """True if a table of captions has the columns that a folder looks for without being told."""
    return bool(rows) and "file" in rows[0] and bool(set(rows[0]) & set(TEXT_KINDS))


def _caption_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The option `columns` of a folder for a table of its captions; empty for any other table."""
    if _has_usual_names(rows):
        return {"image": "file", **{kind: kind for kind in TEXT_KINDS if kind in rows[0]}}
    guess = guess_columns(rows)
    return {"image": guess.paths, **guess.columns["texts"]} if guess.paths and guess.has_texts else {}


def _webdataset(*given: str) -> Source:
    tars = len(expand(given, _name(*given)))
    why = [f"{tars:,} tar{'s' * (tars > 1)} in the webdataset format"]
    source = _measured("webdataset", given, {"path": _one_or_many(given)}, why, "library")
    if not source.texts:
        raise SourceError(given[0], "no texts: each KEY.jpg needs KEY.txt, or KEY.json with texts by kind")
    return source


def _warc(*given: str) -> Source:
    """WARC files of pages, of which a sample is counted: only the stage extract tells what is on them."""
    name, kind, options = _name(*given), _kind_of_pages(given[0]), {"path": _one_or_many(given)}
    look = configure("sources", "warc", {"name": name, "source_kind": kind, **options}, Warc).look(Budget())
    files, pages, *pictures = look.counts
    archived = bool(pictures) and pictures[0].number >= FEW_PICTURES * (look.candidates or pages).number
    why = f"{files} with {pages}; their pictures are downloaded from the web"
    if pictures:
        others = "" if archived else "; the others are downloaded from the web"
        why = f"{files} with {pages} and {pictures[0]}, which are read from the archive{others}"
    return Source("warc", name, kind, options, (why,), asks=True, archived=archived)


def _warc_list(given: str) -> Source:
    expand((given,), _name(given))
    if "cc-index" in given.rpartition("/")[2]:
        why = ("Common Crawl's index, used to find Chinese pages; limit takes the first of its 300 files",)
        return Source("common_crawl", "common-crawl", "web", {"path_list": given, "limit": 1}, why, asks=True)
    why = ("a list of WARC files, as published for each Common Crawl; limit takes the first 10",)
    return Source("warc", "common-crawl", "web", {"path_list": given, "limit": 10}, why, asks=True)


def _one_or_many(paths: tuple[str, ...]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _site(pages: list[str]) -> Source:
    """The site of one host, crawled from the pages that were given."""
    given, parts = pages[0], urlsplit(pages[0])
    if not parts.hostname:
        raise SpecError([f"--from {given}: no host in the URL"])
    options: dict[str, Any] = {"start": pages}
    local = parts.hostname == "localhost" or parts.hostname.startswith("127.")
    pace = "without a delay, since it is this machine" if local else "one request per second per host"
    which = "this page" if len(pages) == 1 else f"these {len(pages)} pages"
    why = [f"a web site, crawled from {which}; obeys robots.txt, {pace}"]
    folders = list(dict.fromkeys(urlsplit(page).path for page in pages))
    if all(folder.endswith("/") and folder != "/" for folder in folders):
        options["within"] = folders
        ends = "the URL is a folder" if len(pages) == 1 else "the URLs are folders"
        why.append(f"limited to pages below {', '.join(folders[:3])}{' ...' * (len(folders) > 3)}, since {ends}")
    allow = (f"{parts.hostname}:{parts.port or 80}",) if local else ()
    return Source("site", _name(given), _kind_of_pages(given), options, tuple(why), asks=True, allow=allow)


def _kind_of_pages(address: str) -> SourceKind:
    """The kind of pages by the words of their address; `web` without a known one."""
    return next((kind for kind, words in _KINDS.items() if re.search(words, address, re.I)), "web")


def _table(*given: str) -> Source:
    """Tables of URLs with texts, or of posts; the columns are guessed from the first rows of the first file."""
    first = expand(given, _name(*given))[0]
    rows = list(_rows(first))
    if not rows:
        raise SourceError(first, "contains no rows")
    guess, folder = guess_columns(rows), first.rpartition("/")[0] or "."
    is_brivl = {"image_id", "sentences"} <= set(rows[0])
    captions = {} if guess.has_images or is_brivl else _caption_columns(rows)
    if captions and not _pictures_among(files_below(folder), folder):
        raise SourceError(first, f"column {captions['image']} names pictures that {folder} lacks; give their folder")
    if captions:
        return _folder(folder)[0]
    why = [f"{len(rows):,}{' and more' * (len(rows) == LOOKED_AT)} rows in {PurePosixPath(first).name}"]
    if failed := sum(str(row.get("status", "")).startswith("failed_to_") for row in rows):  # as img2dataset writes
        why[0] += f"; {failed:,} of them are marked as failed downloads, which a build retries"
    options: dict[str, Any] = {"path": _one_or_many(given)}
    if is_brivl:
        options |= {"format": "brivl_jsonl", "images": first.rpartition("/")[0] or "."}
        why.append("rows in BriVL's format (image_id, sentences); image paths are relative to the table's folder")
        return _measured("url_table", given, options, why, "library", asks=str(rows[0]["image_id"]).startswith(_WEB))
    if _suffix(first) in (".jsonl", ".ndjson", ".json") and any(isinstance(v, (list, dict)) for v in rows[0].values()):
        posts = _measured("microblog", given, options, [*why, "posts, each with its pictures"], "microblog", asks=True)
        if posts.texts:
            return posts
    if _suffix(first) == ".json":
        options["format"] = "jsonl"
    if not (guess.has_images and guess.has_texts):
        lacks = f"no column of {'texts' if guess.has_images else 'URLs'} among {', '.join(map(str, rows[0]))}"
        lacks = "; ".join([lacks, *([] if guess.has_texts else guess.remarks)])
        hint = "name the columns in a spec (see wenlan-data plugins url_table)"
        raise SourceError(first, f"{lacks}; {hint}")
    options["columns"] = guess.columns
    source_kind: SourceKind = "image_search"
    why += guess.why
    hosts = {urlsplit(str(row.get(guess.columns["image_url"]) or "")).netloc for row in rows} - {""}
    if len(hosts) == 1 and "page_url" not in guess.columns:
        source_kind = "library"
        why.append(
            "source_kind library, which keeps small pictures and short texts: the rows have one host and no pages"
        )
    return _measured("url_table", given, options, why, source_kind, asks=True)


def _measured(
    kind: str,
    given: tuple[str, ...],
    options: dict[str, Any],
    why: list[str],
    source_kind: SourceKind,
    asks: bool = False,
) -> Source:
    """A table source with the texts of its first entries."""
    name, read = _name(*given), options
    if others := kind in _COUNTING and len(files := expand(given, name)) > 1:
        read = {**options, "path": files[:1]}
    source = configure("sources", kind, {"name": name, "source_kind": source_kind, **read}, TableSource)
    source.token()  # a listing that the plug-in keeps is of the folder as it is now
    parts = itertools.chain.from_iterable(source.read(part, Account()) for part in range(source.parts()))
    entries = list(itertools.islice(parts, LOOKED_AT))
    candidates = [entry for entry in entries if isinstance(entry, Candidate)]
    texts = tuple(text for candidate in candidates for text in candidate.texts)
    faults = [entry for entry in entries if not isinstance(entry, Candidate)]
    found = f"{len(candidates):,} of {len(entries):,} sampled entries have texts"
    found += f", for example: {texts[0].text[:40]}" if texts else ""
    if faults:
        found += encodable(f"; {len(faults):,} cannot be used: {faults[0].evidence or faults[0].url}"[:200])
    why = [*why, found]
    looked_at = max(len(entries), LOOKED_AT) if others else len(entries)
    return Source(kind, name, source_kind, options, tuple(why), asks, texts, looked_at)


def _rows(file: str) -> Iterator[dict[str, Any]]:
    """The first rows of a table by column. Raises SourceError."""
    suffix = _suffix(file)
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(file)
            return
        with open_rows(file, AUTO) as (f, _):
            lines = Lines(f)
            if suffix in (".csv", ".tsv"):
                separator, header, rows, _ = head_of(lines, None, "\t" if suffix == ".tsv" else ",")
                cells = csv.DictReader(rows, header, "", "", delimiter=separator)
                yield from itertools.islice(cells, LOOKED_AT)
                return
            values = (_json(line) for line in lines if line.strip())
            yield from itertools.islice((value for value in values if isinstance(value, dict)), LOOKED_AT)
    except ImportError:
        raise
    except Exception as e:  # any error of a reader on a foreign table: a complete list does not exist
        raise SourceError(file, f"cannot be read as a table ({reason(e)})") from None


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _parquet_rows(file: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with fsspec.open(file, "rb") as f:
        batch = next(pq.ParquetFile(f).iter_batches(LOOKED_AT), None)
        rows: list[dict[str, Any]] = batch.to_pylist() if batch is not None else []
    return rows


def _name(*given: str) -> str:
    """A name for a source and a dataset: a site's host, or else the last part of a path that has letters in it.

    Of several files, and of a glob, it is the folder's.
    """
    if given[0].startswith(_WEB) and _suffix(given[0]) not in _READERS:
        parts: list[str] = [urlsplit(given[0]).hostname or ""]
    else:
        whole = PurePosixPath(given[0]).parent if len(given) > 1 else PurePosixPath(given[0])
        parts = [_FORMAT.sub("", PACKED.sub("", part)) for part in whole.parts if "*" not in part]
    plain = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts]
    return next((part[:40].strip("-") for part in reversed(plain) if part), "dataset")


_READERS: dict[str, Callable[..., Source]] = {
    **dict.fromkeys((*TABLES, ".json"), _table),
    ".tar": _webdataset,
    ".warc": _warc,
    ".wacz": _warc,
    ".paths": _warc_list,
}
