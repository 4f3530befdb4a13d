"""The files that describe a dataset, in addition to its manifest: dataset card, shard lists, Croissant.

README.md is a dataset card of Hugging Face with front matter, so that the hub and `datasets` understand the folder as
it is. `train.json`, `dev.json` and `val.json` are shard lists in the format of wids (wids_version 1, relative URLs).
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.build import BuildSpec
from data_specs.shard import SPLITS, Manifest, Split
from pipeline.publish.croissant import croissant
from pipeline.report.funnel import Funnel
from pipeline.store.build import Build
from pipeline.store.stage import in_funnel
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
    """The dataset card of a build."""
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
    """A card from its template, which extends card.md."""
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
