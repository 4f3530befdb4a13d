"""Region features of a split, computed once: the input of a captioner, with the captions of each image.

The towers stay as they are, so their output is the same in every epoch. It is written into an array of float16 in the
cache, CACHE/captions/..., named by checkpoint, dataset and detector, and mapped. In memory are the captions and, while
it is made, one feature of each image.

Limits: 2 bytes x regions x width an image (37 x 2,048: 150 kB). The image tower is not trained with the decoder.
Colours are not changed at random, and every image has its first boxes only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_specs.shard import Split
from data_specs.storage.whole_files import exclusive
from training.data.index import Dataset, SampleRow, default_cache, open_dataset, split_of_dataset
from training.data.loader import Loader
from training.errors import CheckpointError, ConfigError, InputError, RunError
from training.evaluation.benchmarks import is_benchmark
from training.evaluation.caption_sets import pack_caption_sets
from training.outputs.atomic_files import VerifiedFolder, atomic_folder
from training.records import Batch
from training.run.launch import Leave, LeaveSignal
from training.weights.load import Loaded

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)

_VERSION = 1
"""Raised when features are computed otherwise."""


@dataclass(frozen=True)
class CaptionedSplit:
    """N images that could be read, in the dataset's order: regions, image features, and the captions of each.

    regions_NRW: float16, rows after the n_regions_N first are zero. features_ND: unit features of the image tower,
    float32.
    """

    name: str
    digest: str
    regions_NRW: npt.NDArray[np.float16]
    n_regions_N: npt.NDArray[np.int64]
    features_ND: npt.NDArray[np.float32]
    captions: tuple[tuple[str, ...], ...]
    corrupt: int

    def __len__(self) -> int:
        return len(self.captions)

    def regions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Regions [B, R, W], float32, of some images, and which of them exist [B, R]."""
        import torch

        some = list(rows)
        regions_BRW = torch.from_numpy(np.asarray(self.regions_NRW[some], np.float32))
        places_R = torch.arange(regions_BRW.shape[1])
        return regions_BRW, places_R < torch.from_numpy(self.n_regions_N[some])[:, None]

    def head(self, count: int) -> CaptionedSplit:
        """The split's first `count` images only."""
        arrays = self.regions_NRW[:count], self.n_regions_N[:count], self.features_ND[:count]
        return CaptionedSplit(self.name, self.digest, *arrays, self.captions[:count], self.corrupt)


def open_captioned(
    loaded: Loaded,
    data: Sequence[str],
    split: str,
    cache: Path | None,
    detector: str = "",
    leave: LeaveSignal = lambda: Leave.NO,
) -> CaptionedSplit | None:
    """A split of manifests, tars or caption sets (KIND:PATH) as a checkpoint sees it; None where it lacks samples.

    leave: asked after each image whose features are made whether to end (`Leave.STOP`). Raises ConfigError (an image
    tower without regions), InputError (no readable image, a damaged cache), ContractError (data), RunError (asked to
    end).
    """
    of_set = all(is_benchmark(name) for name in data)
    of_data: Split = "train" if of_set and split == "test" else split_of_dataset(split)  # tars are of any split
    dataset = open_dataset(
        pack_caption_sets(data, split, cache), of_data, detector=detector or loaded.checkpoint.detector, cache=cache
    )
    if not len(dataset):
        return None
    digest = _digest(loaded, dataset)
    folder = (default_cache() if cache is None else cache) / "captions" / digest
    if not folder.exists():
        with exclusive(folder.with_name(f".{digest}.lock")):
            for left in folder.parent.glob(f".{digest}.*.tmp"):  # of a killed process: the writer holds the lock
                shutil.rmtree(left, ignore_errors=True)
            if not folder.exists():
                _compute(loaded, dataset, folder, leave)
    try:
        about = VerifiedFolder.open(folder).object("about.json")
    except CheckpointError as e:
        problem = f"damaged features in the cache ({e}); delete it and they are computed again"
        raise InputError(str(folder), problem) from None
    captions = tuple(captions_of(dataset.row(number)) for number in about["rows"])
    dataset.close()
    return CaptionedSplit(
        name=dataset.name,
        digest=digest,
        regions_NRW=np.load(folder / "regions.npy", mmap_mode="r"),
        n_regions_N=np.load(folder / "n_regions.npy", mmap_mode="r"),
        features_ND=np.load(folder / "features.npy", mmap_mode="r"),
        captions=captions,
        corrupt=about["corrupt"],
    )


def captions_of(row: SampleRow) -> tuple[str, ...]:
    """The texts of kind `caption` of a sample, or its primary text if it lacks them."""
    captions = tuple(text.text for text in row.texts if text.kind == "caption")
    return captions or (row.texts[0].text,)


def _digest(loaded: Loaded, dataset: Dataset) -> str:
    towers = loaded.checkpoint.towers
    parts = [str(_VERSION), towers, dataset.split, dataset.detector, *dataset.content_digests, *dataset.region_digests]
    config = loaded.config
    parts += [str(part) for part in (config.data.image_size, config.data.max_boxes, config.compat)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _compute(loaded: Loaded, dataset: Dataset, folder: Path, leave: LeaveSignal) -> None:
    """Write the arrays of a split. Raises InputError where no image can be read, RunError where `leave` says so."""
    config = loaded.config
    loader = loaded.loader(dataset)
    LOG.info("%s: region features of %s images", dataset.name, f"{len(dataset):,}")
    most = config.data.max_boxes + 1
    with atomic_folder(folder) as temporary:
        rows, counts, features = list[int](), list[int](), list[npt.NDArray[np.float32]]()
        with (temporary / "regions.npy").open("w+b") as sink:
            for number, regions_RW, feature_D in _image_features(loaded, loader):
                if not rows:
                    shape = len(dataset), most, regions_RW.shape[1]
                    array = np.lib.format.open_memmap(Path(sink.name), "w+", dtype=np.float16, shape=shape)
                    sink.seek(array.offset)
                    del array  # written below, and not through the map: on a full disk that ends the process (SIGBUS)
                padded_RW = np.zeros(shape[1:], np.float16)
                padded_RW[: len(regions_RW)] = regions_RW
                sink.write(padded_RW.tobytes())
                rows.append(number)
                counts.append(len(regions_RW))
                features.append(feature_D)
                if leave() is Leave.STOP:
                    problem = f"stopped by a signal at image {number + 1:,}; run the same command to start over"
                    raise RunError(f"region features of {dataset.name}", problem)
        if not rows:
            raise InputError(dataset.name, f"none of its images can be read ({loader.corrupt} tried)")
        np.save(temporary / "n_regions.npy", np.array(counts))
        np.save(temporary / "features.npy", np.stack(features))
        about = {"rows": rows, "corrupt": loader.corrupt, "data": dataset.name}
        (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _image_features(
    loaded: Loaded, loader: Loader
) -> Iterator[tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """(row number, regions [R, W], image feature [D]) of each image that can be read, in order."""
    start = 0
    for batch in loader.once():
        regions_BRW, features_BD = region_features(loaded, batch)
        for place in range(len(batch)):
            if batch.valid_B[place]:
                count = int(batch.n_boxes_B[place])
                yield start + place, regions_BRW[place, :count].numpy(), features_BD[place].numpy()
        start += len(batch)


def region_features(loaded: Loaded, batch: Batch) -> tuple[Tensor, Tensor]:
    """Region features [B, R, W] and unit image features [B, D] of a batch, float32 on the CPU.

    Raises ConfigError where the image tower lacks regions.
    """
    import torch

    mixed = loaded.config.run.precision == "bf16"
    with torch.inference_mode(), torch.autocast(loaded.device.type, torch.bfloat16, enabled=mixed):
        moved = batch.to(loaded.device)
        regions_BRW = loaded.model.image_query.seen_regions(moved)
        if regions_BRW is None:
            raise ConfigError(
                "image.encoder", f"{loaded.config.image.encoder} does not compute regions, which a captioner needs"
            )
        features_BD = loaded.model.encode_image(moved)
    return regions_BRW.float().cpu(), features_BD.float().cpu()
