"""What tells a stranger what a dataset is: README.md (dataset card), croissant.json, and the shard lists of wids.

The card is Hugging Face's README with front matter, so that the hub and `datasets` understand the folder as it is.
croissant.json follows MLCommons Croissant 1.0 (http://mlcommons.org/croissant/1.0): every tar and Parquet file with its
sha256, and the samples as a record set over the Parquet files. `train.json` and its like are wids' own format
(wids_version 1, relative URLs). openlineage.json, if the spec wants it, is one event for a data catalogue.

Limits: Croissant wants a licence URL, which a spec need not have; the licence is given as the text that the spec holds.
"""

from __future__ import annotations

import importlib.metadata
import json
import uuid
from pathlib import Path
from typing import Any

from data_specs.shard import SPLITS, FileDigest, Manifest
from pipeline.report.funnel import Funnel
from pipeline.store.build import Build
from pipeline.store.stage import deciding

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
"""Names that the hub knows for sizes below 10^3, 10^4, ..."""

PARQUET = "application/x-parquet"
"""The media type by which Croissant's own tools know a Parquet file."""

_PRODUCER = f"urn:wenlan:{importlib.metadata.version('wenlan')}"
_FACETS = "https://openlineage.io/spec/facets"

_COLUMNS = {
    "key": ("sc:Text", "Name of the sample's members in its tar, unique across builds."),
    "source": ("sc:Text", "Source of the build."),
    "source_kind": ("sc:Text", "Sort of pages the source holds."),
    "page_url": ("sc:URL", "Page on which the image stood."),
    "image_url": ("sc:URL", "Where the image was fetched."),
    "sha256": ("sc:Text", "sha256 of the image's bytes as fetched."),
    "width": ("sc:Integer", "Width of the stored JPEG in pixels."),
    "height": ("sc:Integer", "Height of the stored JPEG in pixels."),
    "split": ("sc:Text", "train, dev or val."),
    "image_offset": ("sc:Integer", "Offset of the JPEG in the tar of the same name, in bytes."),
    "image_size": ("sc:Integer", "Size of the JPEG in bytes."),
}


def files(build: Build, manifest: Manifest, candidates: Funnel, captures: Funnel) -> dict[str, bytes]:
    """Content of every file that `publish` writes beside the manifest, by name."""
    found = {f"{split}.json": _json(wids(manifest, split)) for split in SPLITS}
    found["README.md"] = readme(build, manifest, candidates, captures).encode()
    found["croissant.json"] = _json(croissant(build, manifest))
    if build.spec.publish.lineage:
        found["openlineage.json"] = _json(lineage(build, manifest, candidates))
    return found


def wids(manifest: Manifest, split: str) -> dict[str, Any]:
    """A split's shard list as `wids.ShardListDataset` reads it."""
    shards = [shard for shard in manifest.shards if shard.split == split]
    return {
        "wids_version": 1,
        "name": f"{manifest.build_id}-{split}",
        "shardlist": [
            {"url": shard.tar.path, "nsamples": shard.samples, "filesize": shard.tar.bytes} for shard in shards
        ],
    }


def readme(build: Build, manifest: Manifest, candidates: Funnel, captures: Funnel) -> str:
    """The dataset card."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    shards = {split: [s for s in manifest.shards if s.split == split] for split in SPLITS}
    sources = [(ref, candidates.of_source(ref.name)) for ref in build.spec.sources]
    samples = sum(manifest.samples.values())
    return template.render(
        spec=build.spec,
        manifest=manifest,
        version=importlib.metadata.version("wenlan"),
        splits=[split for split in SPLITS if manifest.samples[split]],
        size_category=_SIZES[min(max(len(str(samples)) - 3, 0), len(_SIZES) - 1)],
        split_rows=[
            {"split": s, "samples": manifest.samples[s], "shards": len(f), "bytes": sum(x.tar.bytes for x in f)}
            for s, f in shards.items()
        ],
        source_rows=[
            {"name": ref.name, "source_kind": ref.source_kind, "kind": ref.kind, "seen": f.total, "kept": f.kept}
            for ref, f in sources
        ],
        stage_rows=candidates.stages(deciding(build.stages, "extract", "screen")),
        candidates=candidates,
        captures=captures,
    )


def croissant(build: Build, manifest: Manifest) -> dict[str, Any]:
    """The dataset in Croissant 1.0."""
    spec = build.spec
    objects = []
    for shard in manifest.shards:
        objects.append(_file_object(shard.tar, "application/x-tar"))
        objects.append(_file_object(shard.parquet, PARQUET))
    index: dict[str, Any] = {
        "@type": "cr:FileSet",
        "@id": "index",
        "name": "index",
        "description": "One row a sample, in the order of the tar of the same name.",
        "encodingFormat": PARQUET,
        "includes": [f"{split}-*.parquet" for split in SPLITS if manifest.samples[split]],
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": spec.name,
        "description": spec.description or "Pairs of an image and Chinese texts.",
        "url": spec.contact if "://" in spec.contact else f"mailto:{spec.contact}",
        "license": spec.licence or "not stated",
        "inLanguage": "zh",
        "version": f"1.0.{manifest.revision}",
        "datePublished": manifest.created_at[:10],
        "citeAs": f"{spec.name}, build {manifest.build_id}, content digest {manifest.content_digest}",
        "isLiveDataset": False,
        "distribution": [*objects, index],
        "recordSet": [_samples(), _splits(manifest)],
    }


def lineage(build: Build, manifest: Manifest, candidates: Funnel) -> dict[str, Any]:
    """A RunEvent of OpenLineage 2-0-2 (https://openlineage.io/spec/): from which sources this revision was made.

    A catalogue takes it by POST to its `/api/v1/lineage`; nothing is sent from here.
    """
    job = {"namespace": "wenlan", "name": build.spec.name}
    size = sum(shard.tar.bytes for shard in manifest.shards)
    statistics = {"rowCount": sum(manifest.samples.values()), "size": size, "fileCount": len(manifest.shards)}
    about = {"_producer": _PRODUCER, "_schemaURL": f"{_FACETS}/1-0-0/DatasetVersionDatasetFacet.json"}
    counted = {"_producer": _PRODUCER, "_schemaURL": f"{_FACETS}/1-0-2/OutputStatisticsOutputDatasetFacet.json"}
    rows = {"_producer": _PRODUCER, "_schemaURL": f"{_FACETS}/1-0-0/InputStatisticsInputDatasetFacet.json"}
    return {
        "eventType": "COMPLETE",
        "eventTime": manifest.created_at,
        "producer": _PRODUCER,
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{manifest.build_id}/{manifest.revision}"))},
        "job": job,
        "inputs": [
            {
                "namespace": f"wenlan/{build.spec.name}/sources",
                "name": ref.name,
                "inputFacets": {"inputStatistics": {**rows, "rowCount": candidates.of_source(ref.name).total}},
            }
            for ref in build.spec.sources
        ],
        "outputs": [
            {
                "namespace": "wenlan",
                "name": build.spec.name,
                "facets": {"version": {**about, "datasetVersion": manifest.content_digest}},
                "outputFacets": {"outputStatistics": {**counted, **statistics}},
            }
        ],
    }


def _samples() -> dict[str, Any]:
    """The record set over the Parquet files."""
    fields = [_field(name, kind, description, name) for name, (kind, description) in _COLUMNS.items()]
    split = next(field for field in fields if field["name"] == "split")
    split["references"] = {"field": {"@id": "splits/name"}}
    texts = {
        "@type": "cr:Field",
        "@id": "samples/texts",
        "name": "texts",
        "description": "Texts of the sample, the primary one first.",
        "repeated": True,
        "source": {"fileSet": {"@id": "index"}, "extract": {"column": "texts"}},
        "subField": [
            {
                "@type": "cr:Field",
                "@id": f"samples/texts/{name}",
                "name": name,
                "description": description,
                "dataType": "sc:Text",
                "source": {
                    "fileSet": {"@id": "index"},
                    "extract": {"column": "texts"},
                    "transform": {"jsonPath": f"$[*].{name}"},
                },
            }
            for name, description in (("kind", "Where on the page it stood."), ("text", "The text."))
        ],
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One record a sample.",
        "key": {"@id": "samples/key"},
        "field": [*fields, texts],
    }


def _splits(manifest: Manifest) -> dict[str, Any]:
    """The splits as Croissant's vocabulary names them."""
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


def _field(name: str, kind: str, description: str, column: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": {"fileSet": {"@id": "index"}, "extract": {"column": column}},
    }


def _file_object(file: FileDigest, encoding: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": encoding,
        "sha256": file.sha256,
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


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
