"""croissant.json: a dataset described in MLCommons Croissant 1.0 (http://mlcommons.org/croissant/1.0).

Every tar and Parquet file is listed with its sha256, and the samples are a record set over the Parquet files.

Limits: Croissant asks for the URL of a licence, which a spec need not have; the licence is the text of the spec.
"""

from __future__ import annotations

import posixpath
from typing import Any

from data_specs.build import BuildSpec
from data_specs.shard import SPLITS, FileDigest, Manifest, ShardFiles

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


def _field(name: str, kind: str, description: str) -> dict[str, Any]:
    """A field of the samples, read from the column of its name."""
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": {"fileSet": {"@id": "index"}, "extract": {"column": name}},
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
