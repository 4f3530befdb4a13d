"""Batch: the record that travels from the loader to the model.

Why one flat frozen record: the loader fills it in a worker process, the loop moves it to the device, and each tower
takes what it needs; no dict whose keys must be guessed.

Limits: all samples of a batch have the same input size H x W and are padded to the same numbers of boxes and tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of image-text pairs.

    Shapes: B samples, R boxes (the most of this batch or more), L tokens (likewise), H x W pixels of the input.

    images_B3HW: RGB. uint8 is scaled and normalised by the image tower; float32 is taken as normalised already.
    boxes_BR4: float32, x1 y1 x2 y2 in pixels of the H x W input. The whole-image box sits at index n_boxes - 1;
        the rows after it are zero.
    n_boxes_B: int64, counts the whole-image box, so at least 1 where the sample is valid.
    token_ids_BL: int64, padded with 0.
    n_tokens_B: int64, counts [CLS] and [SEP].
    sample_ids_B, image_ids_B, text_ids_B: int64, the first 64 bits of a sha256 (of the candidate, of the image's
        leader, of the text's leader) read as a signed number. Equal image or text ids are false negatives.
    valid_B: bool; False marks the slot of a sample that could not be read. It counts for nothing.
    sources_B: int64, number of the sample's source kind in the contract's SOURCE_KINDS; None where it is not asked for.
    """

    images_B3HW: Tensor
    boxes_BR4: Tensor
    n_boxes_B: Tensor
    token_ids_BL: Tensor
    n_tokens_B: Tensor
    sample_ids_B: Tensor
    image_ids_B: Tensor
    text_ids_B: Tensor
    valid_B: Tensor
    sources_B: Tensor | None = None

    @classmethod
    def of(cls, **given: Tensor) -> Batch:
        """Batch of the given fields, all of B rows, and blanks: for a tower that reads only its own fields."""
        import torch

        zeros = torch.zeros(next(iter(given.values())).shape[0], dtype=torch.int64)
        blank = {
            "images_B3HW": zeros.view(-1, 1, 1, 1).to(torch.uint8),
            "boxes_BR4": zeros.view(-1, 1, 1).float().expand(-1, -1, 4),
            "n_boxes_B": zeros + 1,
            "token_ids_BL": zeros[:, None],
            "n_tokens_B": zeros + 1,
            **{f"{name}_ids_B": zeros for name in ("sample", "image", "text")},
            "valid_B": zeros == 0,
        }
        return cls(**{**blank, **given})

    def __len__(self) -> int:
        return int(self.images_B3HW.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        return self._map_fields(lambda x: x.to(device, non_blocking=non_blocking))

    def rows(self, start: int, stop: int) -> Batch:
        """Samples start..stop-1: a micro-batch."""
        return self._map_fields(lambda x: x[start:stop])

    def take(self, which: Tensor) -> Batch:
        """Samples of these numbers, in their order."""
        return self._map_fields(lambda x: x[which])

    def pin_memory(self) -> Batch:
        """The same batch with what is on the CPU in page-locked memory (called by torch's DataLoader)."""
        return self._map_fields(lambda x: x.pin_memory() if x.device.type == "cpu" else x)

    def _map_fields(self, change: Callable[[Tensor], Tensor]) -> Batch:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(x) for name, x in given.items() if x is not None})
