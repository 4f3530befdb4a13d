"""A published dataset: a build, a shard folder, a release, or a dataset's name in STORE by its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_specs.release import LATEST, open_manifest
from data_specs.shard import MANIFEST, SPLITS, ContractError, FileDigest, Manifest, ShardFiles, Split, parse_manifest
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, read_url
from pipeline.store import build_json


def manifest_in(shards: Folder) -> Manifest | None:
    """The manifest in a folder of shards; None if missing. Raises ContractError for one that cannot be read."""
    data = shards.find(MANIFEST)
    return None if data is None else parse_manifest(data, shards.at(MANIFEST))


def samples_by_split(shards: Iterable[ShardFiles]) -> dict[Split, int]:
    """Number of samples of each split, of those without any too."""
    samples = dict.fromkeys(SPLITS, 0)
    for shard in shards:
        samples[shard.split] += shard.samples
    return samples


@dataclass(frozen=True)
class Dataset:
    """A published dataset.

    `shards`: the manifest's folder. `build`: BUILD, if the dataset was opened by it. `path`: that of the manifest.
    """

    shards: Folder
    manifest: Manifest
    build: Folder | None = None
    path: str = ""

    @staticmethod
    def open(place: str | Path) -> Dataset:
        """The dataset in a build's folder, a shard folder or STORE/datasets/NAME, or by the path of its manifest.

        Raises ContractError for a manifest that is missing, cannot be read or is of a newer version.
        """
        folder = Folder(str(place))
        if folder.url.endswith(".json") or folder.exists(LATEST):
            try:
                path, manifest = open_manifest(folder.url, read_url)
            except (FileNotFoundError, StoreError) as e:
                raise ContractError(f"{folder.url}: cannot be read; not a dataset") from e
            return Dataset(Folder(path.rpartition("/")[0]), manifest, path=path)
        in_build = folder.exists(f"shards/{MANIFEST}") or folder.exists("build.json")
        shards = folder / "shards" if in_build else folder
        try:
            data = shards.read(MANIFEST)
        except StoreError as e:
            raise ContractError(f"{e}; a build without a manifest is not a dataset") from None
        path = shards.at(MANIFEST)
        return Dataset(shards, parse_manifest(data, path), folder if in_build else None, path)

    @property
    def store(self) -> str:
        """The STORE that the dataset belongs to, whose takedowns hold for it; "" for a copy, which has none.

        Of a build its build.json names it, a release lies in it.
        """
        build = self.build or Folder(self.shards.url.rpartition("/")[0])
        if not self.manifest.dataset and build.exists("build.json"):
            known = build_json.read(build)
            return build_json.store_of(build, known) if known.get("store") else ""
        place = self.shards.url.removesuffix(f"/datasets/{self.manifest.dataset}")
        return place if place != self.shards.url and Folder(place).exists("store.json") else ""

    def folder_of(self, shard: ShardFiles) -> Folder:
        return Folder(self.manifest.folder_of(shard, self.shards.url))

    @contextmanager
    def local(self, shard: ShardFiles, file: FileDigest) -> Iterator[Path]:
        """A local path of a shard's file, as `Folder.local` gives it."""
        with self.folder_of(shard).local(file.path) as path:
            yield path
