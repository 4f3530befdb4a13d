"""Detectors: boxes of interest in a picture. One file each; the file's name is `name` in a spec.

A detector returns raw boxes for a batch of pictures; `pipeline.stages.detect` clips them to the picture, sorts them by
score, keeps the best ones, and caches them by the image's sha256 under the detector's id. The id is its name and a
digest of everything that may change a box: version, options, weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data_specs.build import BuildSpec, PluginRef
from data_specs.pictures.boxes import Boxes as Boxes
from data_specs.shard import canonical_json
from pipeline.plugins import Plugin, configure

Picture = npt.NDArray[np.uint8]
"""[H, W, 3] RGB, as shown: EXIF orientation applied, alpha on white, first frame."""

NONE: Boxes = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
"""The boxes of a picture without any: R = 0."""


class Detector(Plugin):
    """Base of all detectors. Paths among the options are relative to the spec file, whose folder is `base`."""

    base: str = ""
    NEEDS_PIXELS: ClassVar[bool] = True
    """False for a detector that looks at a picture's shape only: it gets blank pictures, and nothing is decoded."""
    EVERY: ClassVar[bool] = False
    """True for a detector of whose boxes all are kept, however many `regions.max_boxes` allows."""
    ON_GPU: ClassVar[bool] = True
    """False for a detector that runs on the CPU whatever `load` is told: it runs where pictures are decoded."""
    OF_SOURCES: ClassVar[bool] = False
    """True for boxes that came with the source: they are read from extract's files."""

    def identity(self) -> dict[str, Any]:
        """The plug-in's part of a fingerprint, without `threads`: their number changes no box."""
        identity = super().identity()
        identity["options"].pop("threads", None)
        return identity

    def weights_digest(self) -> str:
        """sha256 of the weights, "" for a detector without weights. Raises DetectorError that names the file."""
        return ""

    @property
    def detector_id(self) -> str:
        """`name-<12 hex digits>` over version, options without paths, and weights."""
        value: dict[str, Any] = self.identity()
        value["options"] = {k: v for k, v in value["options"].items() if k not in ("base", "weights", "classes")}
        value["weights"] = self.weights_digest()
        return f"{self.plugin_name()}-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"

    def load(self, gpu: bool = False) -> Any:
        """The state that a worker process keeps and passes to `detect`: a session, a model. Raises DetectorError.

        gpu: the process owns a GPU, or a part of one, to be used; DetectorError where that cannot be done.
        """
        return None

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        """Boxes of each picture, in any order. `state` is what `load` returned."""
        raise TypeError(f"{type(self).__name__} must detect")


def detectors_of(spec: BuildSpec) -> list[Detector]:
    """The spec's detectors, configured, in its order. Raises SpecError."""
    return [detector_of(spec, ref, f"regions.detectors[{i}]") for i, ref in enumerate(spec.regions.detectors)]


def detector_ids(spec: BuildSpec) -> list[str]:
    """Ids of the spec's detectors, in its order: the first is the default of a training."""
    return [detector.detector_id for detector in detectors_of(spec)]


def face_detector(spec: BuildSpec) -> Detector | None:
    """Returns the detector whose boxes are blurred in stored images; None if the spec keeps faces."""
    if spec.shards.faces == "keep":
        return None
    return next(detector for detector in detectors_of(spec) if detector.plugin_name() == "faces")


def detector_of(spec: BuildSpec, ref: PluginRef, where: str = "") -> Detector:
    return configure("detectors", ref.name, {"base": spec.base, **ref.options}, Detector, where)
