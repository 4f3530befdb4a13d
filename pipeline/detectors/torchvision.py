"""torchvision's Faster R-CNN (ResNet-50 FPN v2): 91 COCO labels; accurate but slow.

Weights come from a local file (a state_dict in .pth or .safetensors) or, with `weights: hub`, by torchvision's own
download, which is checked against the digest in its name. Pictures are processed one by one: torchvision pads a batch
to its largest picture, and a picture's boxes must not depend on its neighbours. Even in a batch of one size boxes moved
by up to 0.0005 pixels (3 of 4 pictures of 640 x 480, `side` 320, random weights), and on one thread of a CPU each took
4.9 s in place of 4.7 s; on a GPU it was not measured.

Needs: the extra training, and weights: a file, or torchvision's download (167 MB).

Thresholds: torchvision's defaults for this model.

Limits: on a CPU it takes seconds per picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_specs.command.extras import install
from data_specs.storage.whole_files import sha256_of
from pipeline.detectors import Boxes, Detector, Picture
from pipeline.errors import DetectorError

HUB = "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"
"""FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1; its name ends with the first digits of its sha256."""


class TorchVision(Detector):
    """torchvision's Faster R-CNN, and which of its boxes are kept."""

    weights: str = Field("hub", description="path of a state_dict relative to the spec file, or hub")
    labels: int = Field(91, ge=2, description="number of labels of the weights, including background")
    side: int = Field(800, ge=32, le=2048, description="shorter side to which a picture is scaled")
    longest: int = Field(1333, ge=32, le=4096, description="maximum longer side")
    score: float = Field(0.05, ge=0, le=1, description="minimum score of a box")
    nms: float = Field(0.5, gt=0, le=1, description="overlap (IoU) above which the weaker of two boxes is removed")
    threads: int = Field(1, ge=1, description="threads per worker on a CPU")

    def weights_digest(self) -> str:
        if self.weights == "hub":
            return HUB.rpartition("/")[2]
        try:
            return sha256_of(self._path)
        except OSError as e:
            raise DetectorError(str(self._path), f"cannot be read ({e.strerror})") from None

    def load(self, gpu: bool = False) -> Any:
        """The model, in evaluation mode. Raises DetectorError that names the file, or the package that is missing."""
        try:
            import torch
            from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2
        except ImportError:
            hint = f"not installed: {install('training')}"
            raise DetectorError("torchvision", hint) from None
        name = HUB if self.weights == "hub" else str(self._path)
        if gpu and not torch.cuda.is_available():
            raise DetectorError(name, "regions.num_gpus asks for a GPU, but torch sees none here; or set num_gpus: 0")
        try:
            state = self._state()
            model = fasterrcnn_resnet50_fpn_v2(
                weights=None,
                weights_backbone=None,
                num_classes=self.labels,
                min_size=self.side,
                max_size=self.longest,
                box_score_thresh=self.score,
                box_nms_thresh=self.nms,
            )
            model.load_state_dict(state)
        except Exception as e:  # pickle, safetensors, urllib and torch each raise their own
            raise DetectorError(name, f"contains no weights of this model ({' '.join(str(e).split())[:200]})") from None
        return model.eval().to("cuda" if gpu else "cpu")

    def _state(self) -> Any:
        import torch

        if self.weights == "hub":
            return torch.hub.load_state_dict_from_url(HUB, map_location="cpu", check_hash=True, weights_only=True)
        if self._path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(self._path)
        return torch.load(self._path, map_location="cpu", weights_only=True)

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        import torch

        boxes = []
        device = next(state.parameters()).device
        with torch.inference_mode(), _on_threads(self.threads):
            for picture in pictures:
                tensor = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).to(device).float() / 255
                raw = {name: value.cpu().numpy() for name, value in state([tensor])[0].items()}
                boxes.append((raw["boxes"], raw["scores"], raw["labels"].astype(np.int32)))
        return boxes

    @property
    def _path(self) -> Path:
        return Path(self.base) / self.weights


@contextlib.contextmanager
def _on_threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads, which is the whole process's, and restores it afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
