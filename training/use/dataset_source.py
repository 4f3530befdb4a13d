"""A dataset as a source of rows to embed: manifests and plain tars, split by split and shard by shard.

Metadata comes from the shards' Parquet files; the licence from what lies beside the manifest, `croissant.json` of each
build. A sample's id is its key; that of a plain tar's sample, whose key may stand in other tars too, is made of the
tar's name and the key.

Limits: a plain tar tells no URL, page or source.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.shard import KEY_LENGTH, SHARD_SCHEMA, SPLITS, ContractError, FileDigest, Manifest, Split
from training.data.index import SampleRow, manifest_of, open_dataset, read_file, split_weight
from training.data.index_cache import GRID, locate, read_parquet, without_grid_id
from training.data.plain_tars import plain_tars_of
from training.use.sources import Entry, Source
from training.weights.load import Boxes

_COLUMNS = ("key", "source", "page_url", "image_url", "sha256", "width", "height", "texts", "image_leader", "split")
_SCHEMA = pa.schema([SHARD_SCHEMA.field(name) for name in (*_COLUMNS, "image_offset", "image_size")])


_AHEAD = 2
"""Shards behind the one that is read whose remote tars are fetched already."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard among all rows.

    dataset, number: which of which dataset it is. first, inside: its first row, in the source and in its dataset.
    files: the Parquet and its digest; None of a plain tar.
    """

    dataset: int
    number: int
    tar: str
    rows: int
    first: int
    inside: int
    files: tuple[str, FileDigest] | None
    license: str


class DatasetSource(Source):
    """Samples of some splits of `--data`.

    detector: whose regions are joined where every manifest has them, by id, "" for the first that is named; else
    pictures come without boxes here.
    """

    has_images, has_texts = True, True

    def __init__(
        self, data: Sequence[str], splits: Sequence[Split] = SPLITS, detector: str = GRID, cache: Path | None = None
    ) -> None:
        named = [split_weight(argument)[0] for argument in data]
        tars = [name for name in named if plain_tars_of(name) is not None]
        manifests = [manifest_of(name) for name in named if name not in tars]
        if not detector:
            detector = next((m.detectors[0] for _, m in manifests if m.detectors), GRID)
        detector = without_grid_id(detector)
        with_regions = detector != GRID and not tars and all(detector in m.detectors for _, m in manifests)
        self.detector = detector if with_regions else ""
        """Detector of the regions that the rows bring; "" if they bring none."""
        self._known = {tar: about for path, manifest in manifests for tar, about in _shards_of(path, manifest)}
        self._datasets = [
            open_dataset(named, split, detector=detector if with_regions else GRID, cache=cache, plain_tars=not number)
            for number, split in enumerate(splits)
        ]
        self.name = ", ".join([*(m.dataset or m.build_id for _, m in manifests), *tars])
        digests = dict.fromkeys(d for dataset in self._datasets for d in dataset.content_digests)
        self.origins = tuple(digests)
        self._shards = self._list_shards()
        self._firsts = np.array([shard.first for shard in self._shards], np.int64)
        self._table: tuple[int, pa.Table] | None = None
        if not len(self):
            raise ContractError(f"{self.name}: no samples in {', '.join(splits)}; there is nothing to embed")
        self._check_ids()

    def _list_shards(self) -> list[_Shard]:
        shards, first = [], 0
        for number, dataset in enumerate(self._datasets):
            inside = 0
            for at, (tar, rows) in enumerate(zip(dataset.tars, dataset.shard_sizes, strict=True)):
                files, license = self._known.get(tar, (None, ""))
                shards.append(_Shard(number, at, tar, rows, first, inside, files, license))
                first += rows
                inside += rows
        return shards

    def _check_ids(self) -> None:
        """Raise ContractError where plain tars of one name hold samples of one key, before anything is embedded."""
        named = defaultdict[str, list[_Shard]](list)
        for shard in self._shards:
            if shard.files is None:
                named[posixpath.basename(shard.tar)].append(shard)
        for shards in named.values():
            seen: dict[str, str] = {}
            for shard in shards if len(shards) > 1 else ():
                ids = self._datasets[shard.dataset].ids(shard.number)
                other = next((seen[id] for id in ids if id in seen), None)
                if other is not None:
                    raise ContractError(
                        f"{shard.tar}: has samples of the same keys as {other}, and ids of a plain tar's samples are "
                        "made of its name and their keys; rename one of the two"
                    )
                seen.update(dict.fromkeys(ids, shard.tar))

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self._datasets)

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        entries = []
        for number, row in enumerate(rows):
            _, shard = self._shard_of(row)
            dataset = self._datasets[shard.dataset]
            if not number:
                following = range(shard.number + 1, min(shard.number + 1 + _AHEAD, len(dataset.shard_sizes)))
                dataset.fetch_ahead([shard.number], following)
            sample = dataset.row(shard.inside + row - shard.first)
            sides = (sample.width, sample.height) if sample.width else None
            name = f"{sample.tar}: {sample.key}"
            entries.append(Entry(name, dataset.image(sample), _boxes_of(sample), sample.texts[0].text, sides))
        return entries

    def boxes(self, rows: Sequence[int]) -> list[bytes]:
        if not self.detector:
            return super().boxes(rows)
        placed = ((row, self._shard_of(row)[1]) for row in rows)
        found = (self._datasets[s.dataset].boxes(s.inside + row - s.first) for row, s in placed)
        return [b"" if boxes is None else np.asarray(boxes, np.float32).tobytes() for boxes in found]

    def table(self, rows: Sequence[int]) -> pa.Table:
        parts = []
        for at, of_shard in itertools.groupby(rows, key=lambda row: self._shard_of(row)[0]):
            shard = self._shards[at]
            inside = [row - shard.first for row in of_shard]
            parts.append(self._build_table(at, inside) if shard.files else self._plain_tar_table(shard, inside))
        return pa.concat_tables(parts, promote_options="default")

    def _build_table(self, at: int, inside: Sequence[int]) -> pa.Table:
        shard = self._shards[at]
        assert shard.files is not None
        if self._table is None or self._table[0] != at:
            name, expected = shard.files
            self._table = at, read_parquet(name, expected.sha256, _SCHEMA)
        table = self._table[1].take(pa.array(inside, pa.int64()))
        texts, offsets = table["texts"].to_pylist(), zip(table["image_offset"], table["image_size"], strict=True)
        named = {"key": "id", "image_url": "url"}
        columns = {named.get(name, name): table[name] for name in _COLUMNS if name != "texts"}
        places = [_location(shard.tar, offset.as_py(), size.as_py()) for offset, size in offsets]
        license = [shard.license] * table.num_rows
        return pa.table({**columns, **_text_columns(texts), "license": license, "where": places})

    def _plain_tar_table(self, shard: _Shard, inside: Sequence[int]) -> pa.Table:
        dataset = self._datasets[shard.dataset]
        rows = [dataset.row(shard.inside + row) for row in inside]
        texts = [[{"kind": t.kind, "text": t.text, "text_leader": t.leader} for t in row.texts] for row in rows]
        return pa.table(
            {
                "id": [row.candidate_id[:KEY_LENGTH] for row in rows],
                "sha256": [row.image_leader for row in rows],
                "image_leader": [row.image_leader for row in rows],
                **_text_columns(texts),
                "where": [_location(row.tar, row.image_offset, row.image_size) for row in rows],
            }
        )

    def _shard_of(self, row: int) -> tuple[int, _Shard]:
        at = int(np.searchsorted(self._firsts, row, side="right")) - 1
        while not self._shards[at].rows:
            at -= 1
        return at, self._shards[at]


def _boxes_of(sample: SampleRow) -> Boxes | None:
    return None if sample.boxes is None else np.asarray(sample.boxes, np.float32).reshape(-1, 4).tolist()


def _shards_of(path: str, manifest: Manifest) -> list[tuple[str, tuple[tuple[str, FileDigest], str]]]:
    """By its tar what is known of each shard of a manifest: its Parquet, and its licence."""
    base, licenses = posixpath.dirname(path), dict[str, str]()
    known = []
    for files in manifest.shards:
        folder = manifest.folder_of(files, base)
        if folder not in licenses:
            licenses[folder] = _license(folder)
        about = (locate(folder, path, files.parquet), files.parquet), licenses[folder]
        known.append((locate(folder, path, files.tar), about))
    return known


def _license(folder: str) -> str:
    """The licence of a build's dataset, by the description beside its manifest; "" where none is stated."""
    try:
        stated = json.loads(read_file(posixpath.join(folder, "croissant.json"))).get("license", "")
    except (OSError, ValueError, AttributeError, RecursionError):  # ContractError too: nothing depends on this file
        return ""
    return str(stated) if isinstance(stated, str) and stated != "not stated" else ""


def _text_columns(texts: Sequence[Sequence[dict[str, str]]]) -> dict[str, list[Any]]:
    return {
        "caption": [of_row[0]["text"] for of_row in texts],
        "texts": [[{"kind": t["kind"], "text": t["text"]} for t in of_row] for of_row in texts],
        "text_leader": [of_row[0]["text_leader"] or "" for of_row in texts],
    }


def _location(tar: str, offset: int, size: int) -> dict[str, Any]:
    path = tar if "://" in tar else str(Path(tar).absolute())
    return {"path": path, "offset": offset, "size": size, "sha256": ""}
