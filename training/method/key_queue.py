"""Key queue: a ring of the newest K keys of one modality, with the ids that tell true negatives from false ones.

Why buffers of a module: they move with the model, and a checkpoint stores them like any tensor. Why any K and any
batch: a ring index is taken modulo K, so neither the last short batch nor a K that no batch divides is a special case,
and a saved queue can be laid out again for another K. Slots that were never filled, or that belong to a sample that
could not be read, are marked and masked; a queue of random vectors is never used.

Limits: one batch (of all ranks) larger than K leaves its last K keys. A row takes D x 4 + 33 bytes on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.method import distributed
from training.records import Batch


@dataclass(frozen=True)
class SampleIds:
    """Identities of a batch's rows: int64 ids as in `Batch`, and whether the row counts. All of shape [B]."""

    sample_B: Tensor
    image_B: Tensor
    text_B: Tensor
    valid_B: Tensor

    @staticmethod
    def of(batch: Batch) -> SampleIds:
        return SampleIds(batch.sample_ids_B, batch.image_ids_B, batch.text_ids_B, batch.valid_B)

    @staticmethod
    def concatenate(parts: Sequence[SampleIds]) -> SampleIds:
        """Rows of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*((p.sample_B, p.image_B, p.text_B, p.valid_B) for p in parts), strict=True)
        return SampleIds(*(torch.cat(column) for column in columns))

    def rows(self, start: int, stop: int) -> SampleIds:
        """Rows start..stop-1."""
        return SampleIds(*(x[start:stop] for x in (self.sample_B, self.image_B, self.text_B, self.valid_B)))

    def gather(self) -> SampleIds:
        """Ids of every rank, in rank order, in one exchange."""
        mine_B4 = torch.stack([self.sample_B, self.image_B, self.text_B, self.valid_B.to(torch.int64)], dim=1)
        sample_N, image_N, text_N, valid_N = distributed.gather(mine_B4).unbind(1)
        return SampleIds(sample_N, image_N, text_N, valid_N.bool())


_ROWS = ("keys_KD", "sample_ids_K", "image_ids_K", "text_ids_K", "entered_K", "filled_K")


class KeyQueue(nn.Module):
    """Ring buffer of K keys of width D, all slots empty at first."""

    keys_KD: Tensor
    sample_ids_K: Tensor
    image_ids_K: Tensor
    text_ids_K: Tensor
    entered_K: Tensor
    filled_K: Tensor
    cursor: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("keys_KD", torch.zeros(size, width))
        for name in ("sample_ids_K", "image_ids_K", "text_ids_K", "entered_K"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        self.register_buffer("filled_K", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys_BD: Tensor, ids: SampleIds, step: int) -> None:
        """Write keys over the oldest slots, in order. A row that is not valid takes a slot and leaves it empty."""
        total = keys_BD.shape[0]
        start = max(0, total - self.size)
        # Row i of the batch goes to slot (cursor + i) mod K; of more than K rows the first would be overwritten.
        slots = (self.cursor + torch.arange(start, total, device=keys_BD.device)) % self.size
        self.keys_KD[slots] = keys_BD[start:].to(self.keys_KD.dtype)
        self.sample_ids_K[slots] = ids.sample_B[start:]
        self.image_ids_K[slots] = ids.image_B[start:]
        self.text_ids_K[slots] = ids.text_B[start:]
        self.entered_K[slots] = step
        self.filled_K[slots] = ids.valid_B[start:]
        self.cursor.copy_((self.cursor + total) % self.size)

    @torch.no_grad()
    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        """Become the queue whose `state_dict()` is `saved`, of the same width D and any K.

        Its newest keys are kept, as many as fit: where it shrinks, those that a queue of this size would hold by now.
        """
        size = saved["keys_KD"].shape[0]
        kept = min(size, self.size)
        # The saved cursor is the oldest slot, so size - kept .. size - 1 slots after it are the newest, oldest first.
        newest = (saved["cursor"] + torch.arange(size - kept, size, device=saved["cursor"].device)) % size
        for name in _ROWS:
            rows: Tensor = getattr(self, name)
            rows.zero_()
            rows[:kept] = saved[name][newest].to(rows)
        self.cursor.fill_(kept % self.size)

    def keys_of(self, sample_ids_B: Tensor, step: int, back: int) -> Tensor | None:
        """Keys [B, D] of consecutive slots, the first `back` slots before the next to be written; None where they are
        not the keys that those samples had in that step, because the queue has gone round or was laid out again."""
        slots = (self.cursor - back + torch.arange(len(sample_ids_B), device=self.cursor.device)) % self.size
        same = (self.sample_ids_K[slots] == sample_ids_B) & (self.entered_K[slots] == step)
        return self.keys_KD[slots].clone() if bool(same.all()) else None

    def ids(self) -> SampleIds:
        """Ids of all K slots; `valid_B` is whether the slot is filled."""
        return SampleIds(self.sample_ids_K, self.image_ids_K, self.text_ids_K, self.filled_K)

    def false_negatives(self, ids: SampleIds, step: int) -> float:
        """Share of all (valid row of `ids`, filled slot) that have the image or the text in common, by cluster ids.

        Of the slots that were filled before `step`, in which the rows' own keys enter.
        """
        same_BK = (ids.image_B[:, None] == self.image_ids_K) | (ids.text_B[:, None] == self.text_ids_K)
        there_K = self.filled_K & (self.entered_K < step)
        pairs = int(ids.valid_B.sum()) * int(there_K.sum())
        return int((same_BK & ids.valid_B[:, None] & there_K).sum()) / max(pairs, 1)

    def health(self, step: int) -> dict[str, float]:
        """fill (share of filled slots), age (mean of `step` minus the step a key entered), oldest (the largest age)."""
        ages = (step - self.entered_K[self.filled_K]).double()
        some = ages.numel() > 0
        return {
            "fill": float(self.filled_K.double().mean()),
            "age": float(ages.mean()) if some else 0.0,
            "oldest": float(ages.max()) if some else 0.0,
        }
