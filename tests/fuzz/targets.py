"""What fuzzing calls: one function per parser, which takes bytes and returns, or raises what is no fault of ours.

    page, charset, linked_data, url     pages as extract reads them
    row                                 rows of tables, and what every text filter says of their texts
    links, sitemap, robots, tdmrep      what a site says to the crawler
    warc, tar, spec, manifest, shards   files that a user names
    checkpoint, image                   what the trainer and both decoders open

An expected refusal (SpecError, ContractError ...) is caught here; anything else is a find. Run in a process of its own
(tests/fuzz/watchdog.py), which imports each target's modules when it is first called.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TYPES = ("", "text/html; charset=gb2312", "text/html; charset=big5", "text/html; charset=euc-kr", "text/html")
PIXELS = 10_000_000
"""Limit of a picture here: each is decoded four times and stored once, within the time and memory of one example."""

URL = "http://site.test/a/b.html"


def page(data: bytes) -> None:
    """As extract reads it: in a process of its own, with its own limits, where it may take long."""
    from pipeline.pages.bounds import PageRefused
    from pipeline.processes.confined import OverLimit
    from pipeline.rows.records import Capture
    from pipeline.sources.site import Site
    from pipeline.stages._page_candidates import read_within_limits

    capture = Capture(URL, 200, "", "text/html; charset=utf-8", data)
    with suppress(OverLimit, PageRefused):
        read_within_limits(capture, Site(name="s", source_kind="news", start=(URL,)), _page_reader())


def charset(data: bytes) -> None:
    from pipeline.texts.charset import decode

    for content_type in TYPES:
        decode(data, content_type)
    decode(data[40:], data[:40].decode("latin-1"))


def linked_data(data: bytes) -> None:
    """The data is JSON-LD; what was read must be able to go into a Parquet file and a digest."""
    from pipeline.pages.bounds import PageRefused
    from pipeline.pages.page import parse

    script = data.decode("utf-8", "replace")
    try:
        read = parse(f'<script type="application/ld+json">{script}</script><p>一段话<img src="a.jpg"></p>')
    except PageRefused:
        return
    for image in read.images:
        for text in image.texts:
            text.text.encode()


def url(data: bytes) -> None:
    from pipeline.urls import canonical_url, host_names, is_endless, without_session
    from pipeline.web.guard import EgressRefused, Guard

    text = data.decode("utf-8", "replace")
    for base in ("", URL, text[: len(text) // 2]):
        try:
            canonical = canonical_url(text, base)
        except ValueError:
            continue
        assert canonical_url(canonical) == canonical
        is_endless(without_session(canonical))
        with suppress(EgressRefused):
            Guard().check_url(canonical)
    host_names(text)


def row(data: bytes) -> None:
    """The data is a row of JSON, and plain text; templates and text filters judge what comes of it, as in admit."""
    from collections import Counter
    from functools import partial
    from itertools import chain

    from pipeline.rows.account import Units
    from pipeline.rows.decisions import Decision, DropReason
    from pipeline.rows.records import Candidate
    from pipeline.sources._text_files import json_object
    from pipeline.sources.folder import texts_of
    from pipeline.sources.microblog import Microblog
    from pipeline.stages.admit import judge
    from pipeline.texts.text_order import TextOrder

    posts, text = Microblog(name="s", source_kind="microblog", path=("x",)), data.decode("utf-8", "replace")

    def plain(kind: str) -> list[Candidate]:
        return [Candidate("s", "news", "o", "", URL, tuple(texts_of({kind: text})))]

    # rows of their own, since the texts of one row together have a limit
    read = [posts.entries("row", number, partial(plain, kind)) for number, kind in enumerate(("alt", "content"))]
    read.append(posts.entries("row", 2, lambda: posts._post(json_object(text), "row", 2, Units())))
    entries = list(chain(*read))
    candidates = [entry for entry in entries if isinstance(entry, Candidate)]
    entries += judge(candidates, _text_filters(), TextOrder(), Counter(), _templates())
    for entry in entries:  # what raises is a Decision in a build, and a find here; but for a row of too many texts
        if isinstance(entry, Decision) and entry.reason == DropReason.UNREADABLE:
            assert "OverflowError" in entry.evidence, entry.evidence


def links(data: bytes) -> None:
    from pipeline.pages.bounds import PageRefused
    from pipeline.processes.confined import OverLimit
    from pipeline.rows.records import Capture

    loop, readers = _readers()
    with suppress(OverLimit, PageRefused):
        loop.run_until_complete(readers.page(Capture(URL, 200, "", "text/html", data), ()))


def sitemap(data: bytes) -> None:
    from pipeline.web.sitemaps import parse

    parse(data)


def robots(data: bytes) -> None:
    """The first line is the path that is asked for."""
    from pipeline.web.policy import robots_of

    path, _, body = data.partition(b"\n")
    rules = robots_of(200, body)
    rules.allows("http://site.test/" + path.decode("utf-8", "replace"))
    rules.refusal(URL)


def tdmrep(data: bytes) -> None:
    """The first line is the path that is asked for."""
    from pipeline.web.policy import tdm_of

    path, _, body = data.partition(b"\n")
    tdm_of(200, body).reserves("http://site.test/" + path.decode("utf-8", "replace"))


def warc(data: bytes) -> None:
    from pipeline.errors import SourceError
    from pipeline.files.wacz import warcs_in
    from pipeline.rows.records import Capture
    from pipeline.sources.warc import Warc
    from pipeline.stages._archived_images import Archive
    from pipeline.web.warc import capture_of, read_captures

    capture_of(data, 10_000_000)
    path = _scratch({b"\x1f\x8b": "x.warc.gz", b"PK": "x.wacz"}.get(data[:2], "x.warc"))
    path.write_bytes(data)
    archive = Archive(Warc(name="w", source_kind="news", path=(str(path),)), 0, 0)
    with suppress(SourceError):
        for address in warcs_in(str(path), "w", hashlib.sha256(data).hexdigest()):
            for capture in read_captures(address, 10_000_000, {}):
                if isinstance(capture, Capture):
                    archive.note(capture)
        archive.table()


def tar(data: bytes) -> None:
    """As source webdataset reads it; what it met is accounted for, and no more bytes are lost than there are."""
    from pipeline.errors import SourceError
    from pipeline.rows.account import Account
    from pipeline.rows.records import Candidate
    from pipeline.sources.webdataset import WebDataset

    path = _scratch("x.tar")
    path.write_bytes(data)
    source, account = WebDataset(name="w", source_kind="news", path=(str(path),)), Account()
    with suppress(SourceError):
        entries = list(source.read(0, account))
        lost = sum(entry.lost.bytes for entry in entries if not isinstance(entry, Candidate) and entry.lost is not None)
        assert lost <= len(data), lost
        assert account.unaccounted == 0, account.as_json()
        for entry in entries:
            if isinstance(entry, Candidate):
                source.read_image(entry.image_url)


def spec(data: bytes) -> None:
    from data_specs.build import SpecError, load

    path = _scratch("spec.yaml")
    path.write_bytes(data)
    try:
        str(load(path).digest).encode()
    except SpecError as e:
        str(e).encode()


def manifest(data: bytes) -> None:
    from data_specs.shard import ContractError
    from training.data.index import open_dataset

    root = _scratch("manifest")
    _emptied(root)
    (root / "manifest.json").write_bytes(data)
    with suppress(ContractError):
        open_dataset([str(root)], "train", cache=root / "cache")


def shards(data: bytes) -> None:
    """The data is a plain tar, and a Parquet for which a manifest vouches."""
    from data_specs.shard import ContractError
    from training.data.index import open_dataset

    root = _scratch("shards")
    _emptied(root)
    (root / "x.tar").write_bytes(data)
    (root / "train-0.parquet").write_bytes(data)
    digest = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = {"split": "train", "samples": 2, "tar": {"path": "x.tar"} | digest}
    described = {"schema_version": 1, "build_id": "b", "spec_digest": "", "content_digest": "", "created_at": ""}
    described |= {"samples": {"train": 2}, "detectors": []}
    described |= {"shards": [files | {"parquet": {"path": "train-0.parquet"} | digest}]}
    (root / "manifest.json").write_text(json.dumps(described))
    for name in ("x.tar", "manifest.json"):
        try:
            dataset = open_dataset([str(root / name)], "train", cache=root / "cache")
            for number in range(min(8, len(dataset))):
                row = dataset.row(number)
                dataset.image(row)
        except ContractError:
            continue


def checkpoint(data: bytes) -> None:
    """The data takes the place of each file of a sound checkpoint in turn, and the index vouches for it."""
    from training.errors import TrainingError
    from training.outputs.checkpoint import open_checkpoint

    sound, root = _sound_checkpoint(), _scratch("checkpoint")
    for name in ("checkpoint.json", "config.json", "state.json", "vocab.txt", "towers.safetensors"):
        _emptied(root)
        for file, content in sound.items():
            (root / file).write_bytes(data if file == name else content)
        if name != "checkpoint.json":
            index = json.loads(sound["checkpoint.json"])
            index["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            (root / "checkpoint.json").write_text(json.dumps(index))
        try:
            opened = open_checkpoint(root)
            opened.state()
            opened.tensors("towers.safetensors")
        except TrainingError:
            continue


def image(data: bytes) -> None:
    """Both decoders; what was measured must be storable, or it would end the build."""
    from data_specs.build import Shards
    from pipeline.features._rows import measure_image
    from pipeline.pictures.decode import PictureError, header
    from pipeline.pictures.encode import as_stored
    from training.data.transforms import UnreadableImage, decode_square

    try:
        header(data)
        row = measure_image(data, PIXELS)
    except PictureError:
        pass
    else:
        as_stored(data, Shards(), (row["width"], row["height"]), PIXELS)
    for full in (False, True):
        with suppress(UnreadableImage):
            decode_square(data, 64, full=full, max_pixels=PIXELS)


_PAGES = (page, charset, linked_data, url, row, links)
_SITES = (sitemap, robots, tdmrep, warc, tar)
_FILES = (spec, manifest, shards, checkpoint, image)

TARGETS: dict[str, Callable[[bytes], None]] = {f.__name__: f for f in (*_PAGES, *_SITES, *_FILES)}


@functools.cache
def _root() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@functools.cache
def _page_reader() -> Any:
    from pipeline.stages._page_candidates import page_reader

    return page_reader()


@functools.cache
def _text_filters() -> Any:
    """Every packaged text filter that needs no file, with its defaults."""
    from data_specs.build import SpecError
    from pipeline import filters
    from pipeline.plugins import Plugin, configure, names

    found = []
    for name in names("filters"):
        with suppress(SpecError):  # lexicon: its lists are files
            found.append(configure("filters", name, {}, Plugin, name, ""))
    return [f for f in found if isinstance(f, filters.TextFilter)]


@functools.cache
def _templates() -> Any:
    """Templates of the host of rows without a page."""
    from pipeline.stages._templates import HostTemplates
    from pipeline.texts.templates import Template, Templates

    own = (("begins", "关注公众号"), ("begins", "第0张"), ("ends", "0张高清图片下载"), ("ends", " 的图片"))
    return HostTemplates({("", "own"): Templates([Template(side, text, 20) for side, text in own])})


@functools.cache
def _readers() -> tuple[Any, Any]:
    """An event loop, and the crawl's readers in it."""
    from pipeline.sources.site import Site
    from pipeline.web.readers import Readers

    site = Site(name="s", source_kind="news", start=(URL,))
    return asyncio.new_event_loop(), Readers(site)


def _scratch(name: str) -> Path:
    return _root() / name


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@functools.cache
def _sound_checkpoint() -> dict[str, bytes]:
    """Files of a checkpoint with one tensor: opened, it is read as any other."""
    import torch

    from training.data.tokenizer import load_tokenizer
    from training.outputs.checkpoint import save_imported
    from training.resolve import resolve

    folder = _scratch("sound")
    save_imported(folder, resolve("tiny"), load_tokenizer("gb2312"), {"a": torch.zeros(2)}, {}, {}, {})
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    state = {"step": 1, "position": 8, "skipped": 0, "content_digests": [], "region_digests": [], "detector": "grid"}
    files["state.json"] = json.dumps(state).encode()
    index = json.loads(files["checkpoint.json"])
    digest = hashlib.sha256(files["state.json"]).hexdigest()
    index["files"]["state.json"] = {"bytes": len(files["state.json"]), "sha256": digest}
    files["checkpoint.json"] = json.dumps(index).encode()
    return files
