"""Cross-modal retrieval over a split, beside the recall of a random ranking on the same split.

Every image asks for its texts among all texts of the split, every text for its images. A hit is any sample with the
same text leader or the same image leader: near-copies are not mistakes. Because hits may be many, chance is not k / N;
it is computed for each query from its own number of hits, in the same averages as the recall itself.

Ties count against us: a model that maps every sample to one feature ranks last, not first.

Limits: exhaustive comparison, N x N in blocks; all features of the split in memory on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_specs.shard import Split
from training.errors import InputError
from training.use.load import load

if TYPE_CHECKING:
    import torch

    from training.moco import BriVL
    from training.records import Batch

KS = (1, 5, 10)
_BLOCK = 1024

Features = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Embeddings:
    """Features of N samples: unit rows [N, D], and the ids that say which of them are hits of each other."""

    image_ND: Features
    text_ND: Features
    image_ids_N: Ids
    text_ids_N: Ids


@dataclass(frozen=True)
class Direction:
    """Recall by k, that of a random ranking, and the median rank of the best hit (1 is the first). Shares of 1."""

    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float

    def to_json(self) -> dict[str, float]:
        """r1, r5, r10, chance_r1 ... and median_rank."""
        recall = {f"r{k}": value for k, value in self.recall.items()}
        chance = {f"chance_r{k}": value for k, value in self.chance.items()}
        return {**recall, **chance, "median_rank": self.median_rank}


@dataclass(frozen=True)
class Retrieval:
    """Both directions over `samples` samples."""

    samples: int
    image_to_text: Direction
    text_to_image: Direction

    @property
    def mean_recall(self) -> float:
        """Mean of the six recalls."""
        directions = (self.image_to_text, self.text_to_image)
        return float(np.mean([value for d in directions for value in d.recall.values()]))

    def to_json(self) -> dict[str, Any]:
        """The numbers as `wenlan-train eval --json` prints them; recalls are shares of 1."""
        return {
            "samples": self.samples,
            "i2t": self.image_to_text.to_json(),
            "t2i": self.text_to_image.to_json(),
            "mean_recall": self.mean_recall,
        }


def evaluate_retrieval(
    path: Path,
    data: Sequence[str],
    split: Split,
    *,
    detector: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> dict[str, Any]:
    """Recall of a checkpoint on a split: `Retrieval.to_json` with task, split, detector, corrupt samples, checkpoint.

    `detector`: whose regions; the checkpoint's by default.

    Raises CheckpointError, InputError (no readable sample), ContractError (data), ConfigError (device).
    """
    loaded = load(path, device)
    loader = loaded.split_loader(data, split, cache, detector)
    recall = retrieval(embed(loaded.model, loader.once(), loaded.device, loaded.config.run.precision))
    about = {
        "task": "retrieval",
        "split": split,
        "detector": detector or loaded.checkpoint.detector,
        "checkpoint": str(loaded.checkpoint.folder),
        "corrupt": loader.corrupt,
    }
    return {**about, **recall.to_json()}


def retrieval(embeddings: Embeddings) -> Retrieval:
    """Recall, median rank and chance both ways. Raises InputError on no sample and on features not finite."""
    if not len(embeddings.image_ids_N):
        raise InputError("retrieval", "no readable sample in the split")
    if not (np.isfinite(embeddings.image_ND).all() and np.isfinite(embeddings.text_ND).all()):
        raise InputError("retrieval", "the model returns features that are not finite")
    return Retrieval(
        samples=len(embeddings.image_ids_N),
        image_to_text=_direction(embeddings.image_ND, embeddings.text_ND, embeddings),
        text_to_image=_direction(embeddings.text_ND, embeddings.image_ND, embeddings),
    )


def chance_recall(total: int, hits_N: Sequence[int] | Ids, k: int) -> float:
    """Expected recall at k of a random ranking of `total` samples, averaged over queries with `hits_N` hits each.

    1 - C(N-h, k) / C(N, k): the chance that k draws without replacement meet one of h hits.
    """
    hits = np.asarray(hits_N, dtype=np.float64)
    misses = np.ones_like(hits)
    for drawn in range(min(k, total)):
        misses *= np.clip((total - hits - drawn) / (total - drawn), 0.0, 1.0)
    return float(np.mean(1 - misses))


def _direction(queries_ND: Features, gallery_ND: Features, ids: Embeddings) -> Direction:
    ranks, hits = [], []
    for start in range(0, len(queries_ND), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = queries_ND[block] @ gallery_ND.T
        hit = ids.image_ids_N[block, None] == ids.image_ids_N
        hit |= ids.text_ids_N[block, None] == ids.text_ids_N
        best = np.where(hit, scores, -np.inf).max(1, keepdims=True)
        ranks.append(1 + (~hit & (scores >= best)).sum(1))
        hits.append(hit.sum(1))
    rank_N, hits_N = np.concatenate(ranks), np.concatenate(hits)
    return Direction(
        recall={k: float(np.mean(rank_N <= k)) for k in KS},
        chance={k: chance_recall(len(gallery_ND), hits_N, k) for k in KS},
        median_rank=float(np.median(rank_N)),
    )


def embed(model: BriVL, batches: Iterator[Batch], device: torch.device, precision: str) -> Embeddings:
    """Features of all valid samples of the batches, those of every rank included, in rank order.

    The model returns to the mode that it was in.
    """
    import torch

    parts: list[tuple[Features, Features, Ids, Ids]] = []
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            valid = batch.valid_B
            moved = batch.to(device)
            image, text = model.encode_image(moved).float().cpu(), model.encode_text(moved).float().cpu()
            ids = batch.image_ids_B[valid].numpy(), batch.text_ids_B[valid].numpy()
            parts.append((image[valid].numpy(), text[valid].numpy(), *ids))
    model.train(training)
    parts = _of_all_ranks(parts)
    if not parts:
        raise InputError("retrieval", "no sample in the split")
    image_ND, text_ND, image_ids_N, text_ids_N = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Embeddings(image_ND, text_ND, image_ids_N, text_ids_N)


def _of_all_ranks(parts: list[Any]) -> list[Any]:
    """The ranks' lists joined; sizes may differ, hence objects and not tensors."""
    from training.method import distributed

    return [part for of_rank in distributed.gather_objects(parts) for part in of_rank]
