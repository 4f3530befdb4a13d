"""Exports: write a published dataset in the format of another tool. One file per format.

**File name = the name after --to**, with a hyphen for each underscore; a file `_*.py` is a helper. Each file has a
function `write(data, out)`, which gets the samples as a stream and an empty folder. Everything else is done here, the
same for all formats: which samples (splits, takedowns), the detector of the boxes, and that the result appears whole or
not at all. The same dataset gives the same bytes (`lance` alone names its files at random).

Limits: exports go to a local folder. A later takedown deletes BUILD/FORMAT, the only one that may lie in a build, names
what has other names there, and knows no other: export again then. A killed export leaves a folder `.tmp-*` beside its
target, which may be deleted.
"""

from __future__ import annotations

import importlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_specs.errors import SpecError
from data_specs.names import SPLITS, Split
from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset
    from pipeline.store.samples import Samples, Stored


@dataclass(frozen=True)
class ExportData:
    """Samples of a dataset to export, split by split."""

    samples: Samples
    splits: tuple[Split, ...]

    def of(self, split: Split) -> Iterator[Stored]:
        """The samples of a split, in the order of the dataset."""
        return self.samples.read(split)

    @property
    def dataset(self) -> Dataset:
        dataset = self.samples.frames.dataset
        assert dataset is not None  # `export` opens nothing else
        return dataset


Write = Callable[[ExportData, Path], dict[Split, int]]
"""Writes the splits of a source into an empty folder; returns the number of samples per split."""


def _files() -> dict[str, Path]:
    """The file of each format, by its name as --to takes it, sorted."""
    files = (file for folder in __path__ for file in Path(folder).glob("[!_]*.py"))
    return dict(sorted((file.stem.replace("_", "-"), file) for file in files))


def names() -> list[str]:
    return list(_files())


def titles() -> dict[str, str]:
    """Returns each format's title, the first line of its file's docstring, read without an import, for the help."""
    sources = {name: file.read_text(encoding="utf-8") for name, file in _files().items()}
    return {name: source.partition("\n")[0].partition(": ")[2] for name, source in sources.items()}


def find(name: str) -> Write:
    """The function `write` of a format's file."""
    write: Write = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").write
    return write


def export(
    dataset: Dataset, to: str, out: Path, splits: Sequence[Split] = (), detector: str = "", store: str = ""
) -> dict[Split, int]:
    """Write a dataset into the new folder `out`; returns the number of samples per split.

    detector: the id of the detector whose boxes are exported, or its name if only one id has it; by default the
    dataset's first one. store: the STORE whose takedowns must not be inside, by default the dataset's own.
    Raises SpecError for a folder that holds something or cannot be replaced, StoreError for a damaged dataset, a
    detector that it lacks, splits that are all empty, an invalid `store`, or a takedown meanwhile.
    """
    from pipeline.store.frames import Frames
    from pipeline.store.samples import Samples
    from pipeline.store.store import Store
    from pipeline.store.takedowns import Takedowns

    write, as_given = find(to), out
    out = out.resolve()  # what a link leads to is replaced, not the link
    _check_place(dataset, to, out, as_given)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError([f"{as_given}: already exists; delete it, or give another --out"])
    if out == Path.cwd() or os.path.ismount(out):
        what = "the current folder" if out == Path.cwd() else "a mount point"
        raise SpecError([f"{as_given}: is {what}, which cannot be replaced; give a folder inside it"])
    if store:
        Store(store).must_exist()

    def taken_down() -> Takedowns:
        return Store(store).takedowns() if store else Frames.of_dataset(dataset).takedowns

    samples = Samples.of(Frames.of_dataset(dataset), detector, taken_down())
    chosen = tuple(split for split in SPLITS if split in (splits or SPLITS))
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".tmp-{out.name}-{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    try:
        counts = write(ExportData(samples, chosen), scratch)
        if not any(counts.values()):
            empty = ", ".join(counts)
            raise StoreError(
                dataset.shards.url, f"has no samples to export in {empty}; choose other splits with --split"
            )
        if taken_down() != samples.takedowns:
            raise StoreError(dataset.shards.url, "a takedown happened during the export; run the same command again")
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # nothing is left of it where it was renamed
    return counts


def _check_place(dataset: Dataset, to: str, out: Path, as_given: Path) -> None:
    """Raise SpecError for a folder in a build that is not the one in which a takedown in that build looks."""
    from pipeline.files.folder import place_of
    from pipeline.store import build_json

    for folder in (folder for folder in out.parents if (folder / build_json.NAME).is_file()):
        is_own = place_of(dataset.shards.url) == place_of(f"{folder}/shards")
        if not is_own or out != folder / to:
            advice = f"give {folder / to}, or a folder outside it" if is_own else "give a folder outside it"
            raise SpecError([f"{as_given}: is in the build {folder}, where no takedown would find it; {advice}"])
