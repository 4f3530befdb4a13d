"""A published dataset: a shard folder with its manifest, opened by the build's folder or by the shard folder itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_specs.shard import ContractError, Manifest, parse_manifest
from pipeline.errors import StoreError
from pipeline.files.folder import Folder


@dataclass(frozen=True)
class Dataset:
    """A published dataset. `build` is the folder of its build, None if only the shard folder was given."""

    shards: Folder
    manifest: Manifest
    build: Folder | None

    @staticmethod
    def open(place: str | Path) -> Dataset:
        """The dataset in a build's folder or a shard folder, local or behind a URL.

        Raises ContractError if there is no manifest, or one that cannot be read or is of a newer version.
        """
        folder = Folder(str(place))
        in_build = folder.exists("shards/manifest.json") or folder.exists("build.json")
        shards = folder / "shards" if in_build else folder
        try:
            data = shards.read("manifest.json")
        except StoreError as e:
            raise ContractError(f"{e}; a build without a manifest is not a dataset") from None
        return Dataset(shards, parse_manifest(data, shards.at("manifest.json")), folder if in_build else None)
