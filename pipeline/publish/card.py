"""The files that describe a dataset, in addition to its manifest: dataset card, shard lists, Croissant.

README.md is a dataset card of Hugging Face with front matter, so that the hub and `datasets` understand the folder as
it is. `train.json`, `dev.json` and `val.json` are shard lists in the format of wids (wids_version 1, relative URLs).

croissant.json describes the dataset in MLCommons Croissant 1.0 (http://mlcommons.org/croissant/1.0): every tar and
Parquet file is listed with its sha256, and the samples are a record set over the Parquet files.

Limits: Croissant asks for the URL of a licence, which a spec need not have; the licence is the text of the spec.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.build import BuildSpec
from data_specs.shard import SPLITS, FileDigest, Manifest, ShardFiles, Split
from pipeline.report.funnel import Funnel
from pipeline.store.build import Build, in_funnel
from pipeline.urls import shown

if TYPE_CHECKING:
    import jinja2


_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
"""The hub's names of sizes below 10^3, 10^4, ... samples."""


def release_files(spec: BuildSpec, manifest: Manifest) -> dict[str, bytes]:
    """Contents of the files beside a release, by name; `spec` is that of its newest build."""
    return _files(spec, manifest, _card("release.md", spec, manifest))


def files(build: Build, manifest: Manifest, candidates: Funnel, captures: Funnel) -> dict[str, bytes]:
    """Contents of the files beside a build, by name."""
    return _files(build.spec, manifest, readme(build, manifest, candidates, captures))


def _files(spec: BuildSpec, manifest: Manifest, card: str) -> dict[str, bytes]:
    lists = {f"{split}.json": _json(wids(manifest, split)) for split in SPLITS}
    described = shown(_json(croissant(spec, manifest)).decode())
    return {**lists, "README.md": card.encode(), "croissant.json": described.encode()}


def wids(manifest: Manifest, split: Split) -> dict[str, Any]:
    """The shard list of a split, as `wids.ShardListDataset` reads it."""
    return {
        "wids_version": 1,
        "name": f"{manifest.build_id}-{split}",
        "shardlist": [
            {
                "url": posixpath.join(manifest.folder_of(shard, ""), shard.tar.path),
                "nsamples": shard.samples,
                "filesize": shard.tar.bytes,
            }
            for shard in manifest.of_split(split)
        ],
    }


def readme(build: Build, manifest: Manifest, candidates: Funnel, captures: Funnel) -> str:
    sources = [(ref, candidates.of_source(ref.name)) for ref in build.spec.sources]
    return _card(
        "build.md",
        build.spec,
        manifest,
        source_rows=[
            {"name": ref.name, "source_kind": ref.source_kind, "kind": ref.kind, "seen": f.total, "kept": f.kept}
            for ref, f in sources
        ],
        stage_rows=candidates.stages(in_funnel(build, "extract", "curate")),
        candidates=candidates,
        captures=captures,
        expired=build.expired,
    )


def _card(template: str, spec: BuildSpec, manifest: Manifest, **more: Any) -> str:
    samples = sum(manifest.samples.values())
    text = _templates().get_template(template)
    card = text.render(
        spec=spec,
        manifest=manifest,
        version=importlib.metadata.version("wenlan"),
        splits=[split for split in SPLITS if manifest.samples[split]],
        size_category=_SIZES[min(max(len(str(samples)) - 3, 0), len(_SIZES) - 1)],
        split_rows=[
            {"split": s, "samples": manifest.samples[s], "shards": len(own), "bytes": sum(x.tar.bytes for x in own)}
            for s, own in ((split, manifest.of_split(split)) for split in SPLITS)
        ],
        **more,
    )
    return shown(str(card))  # options of filters may be URLs with passwords


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


PARQUET = "application/x-parquet"
"""The media type by which Croissant's own tools know a Parquet file."""

_COLUMNS = {
    "key": ("sc:Text", "Name of the sample's members in its tar, unique across builds."),
    "source": ("sc:Text", "Source of the build."),
    "source_kind": ("sc:Text", "Kind of pages of the source."),
    "page_url": ("sc:URL", "Page that showed the image."),
    "image_url": ("sc:URL", "URL from which the image was fetched."),
    "sha256": ("sc:Text", "sha256 of the image's bytes as fetched."),
    "width": ("sc:Integer", "Width of the stored JPEG in pixels."),
    "height": ("sc:Integer", "Height of the stored JPEG in pixels."),
    "split": ("sc:Text", "train, dev or val."),
    "text_rank": ("sc:Integer", "Number of better texts removed; 0: the primary text is the best one found."),
    "image_offset": ("sc:Integer", "Offset of the JPEG in the tar of the same name, in bytes."),
    "image_size": ("sc:Integer", "Size of the JPEG in bytes."),
}


def croissant(spec: BuildSpec, manifest: Manifest) -> dict[str, Any]:
    """The dataset in Croissant 1.0."""
    objects = []
    for shard in manifest.shards:
        objects.append(_file_object(manifest, shard, shard.tar, "application/x-tar"))
        objects.append(_file_object(manifest, shard, shard.parquet, PARQUET))
    folders = dict.fromkeys(manifest.folder_of(shard, "") for shard in manifest.shards)
    index: dict[str, Any] = {
        "@type": "cr:FileSet",
        "@id": "index",
        "name": "index",
        "description": "One row per sample, in the order of the tar of the same name.",
        "encodingFormat": PARQUET,
        "includes": [
            posixpath.join(folder, f"{split}-*.parquet")
            for folder in folders
            for split in SPLITS
            if manifest.samples[split]
        ],
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": spec.name,
        "description": spec.description or "Pairs of an image and Chinese texts.",
        "url": f"mailto:{spec.contact}" if "@" in spec.contact and ":" not in spec.contact else spec.contact,
        "license": spec.licence or "not stated",
        "inLanguage": "zh",
        "version": f"1.{manifest.release}.{manifest.revision}",
        "datePublished": manifest.created_at[:10],
        "citeAs": f"{spec.name}, build {manifest.build_id}, content digest {manifest.content_digest}",
        "isLiveDataset": False,
        "distribution": [*objects, index],
        "recordSet": [_samples(), _splits(manifest)],
    }


def _samples() -> dict[str, Any]:
    """The record set of the samples, over the Parquet files."""
    fields = [_field(name, kind, description) for name, (kind, description) in _COLUMNS.items()]
    split = next(field for field in fields if field["name"] == "split")
    split["references"] = {"field": {"@id": "splits/name"}}
    texts = _field("texts", "", "Texts of the sample, the primary one first.") | {
        "repeated": True,
        "subField": [
            _field(f"texts/{name}", "sc:Text", description, "texts", transform={"jsonPath": f"$[*].{name}"})
            for name, description in (("kind", "Kind of text: where it was on the page."), ("text", "The text."))
        ],
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One record per sample.",
        "key": {"@id": "samples/key"},
        "field": [*fields, texts],
    }


def _splits(manifest: Manifest) -> dict[str, Any]:
    """The record set of the splits, with their names in Croissant's vocabulary."""
    names = {"train": "cr:TrainingSplit", "dev": "cr:ValidationSplit", "val": "cr:TestSplit"}
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": "sc:URL"},
        ],
        "data": [{"splits/name": split, "splits/url": names[split]} for split in SPLITS if manifest.samples[split]],
    }


def _field(path: str, kind: str, description: str, column: str = "", **how: Any) -> dict[str, Any]:
    """A field of the samples. kind: "" for one with fields of its own. how: what is taken from its column."""
    return {
        "@type": "cr:Field",
        "@id": f"samples/{path}",
        "name": path.rpartition("/")[2],
        "description": description,
        **({"dataType": kind} if kind else {}),
        "source": {"fileSet": {"@id": "index"}, "extract": {"column": column or path}, **how},
    }


def _file_object(manifest: Manifest, shard: ShardFiles, file: FileDigest, encoding: str) -> dict[str, Any]:
    name = f"{shard.build}/{file.path}" if shard.build else file.path
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": posixpath.join(manifest.folder_of(shard, ""), file.path),
        "contentSize": f"{file.bytes} B",
        "encodingFormat": encoding,
        "sha256": file.sha256,
    }


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
