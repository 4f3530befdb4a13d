"""The command `boxes`: a detector as a process, for programs that have pictures and want their boxes.

    stdout    {"detector": ID}                                          one line, when the detector is known
    stdin     {"bytes": [N1, N2, ...]} and a line feed, then the contents of so many files, one after the other
    stdout    {"boxes": [[[x1, y1, x2, y2], ...] | {"error": TEXT}, ...]}    one line per request, in its order

Boxes are pixels of the picture as stored, best first. It ends when stdin does. `wenlan-train embed` runs it beside
itself for pictures that come without boxes: so the trainer's half needs nothing of this one to be imported, the
detector has processes of its own, and both share the cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from data_specs.build import SpecError, load
from pipeline.commands.terminal import Commands, command

if TYPE_CHECKING:
    from pipeline.detectors import Detector

MOST_BYTES = 1 << 30
"""Bytes of the pictures of one request."""


def add_boxes(commands: Commands) -> None:
    boxes = command(
        commands,
        "boxes",
        _boxes,
        "make boxes of pictures that another program sends; wenlan-train embed does",
        "wenlan-data boxes --detector proposals --regions store/regions",
        "wenlan-data boxes --detector weekly.yaml --id onnx-0123456789ab",
    )
    boxes.add_argument(
        "--detector",
        default="proposals",
        metavar="NAME|SPEC",
        help="a detector with its defaults, or a spec (.yaml) whose first one it is",
    )
    boxes.add_argument("--id", default="", metavar="ID", help="the detector's id: another one is refused")
    boxes.add_argument(
        "--regions", default="", metavar="DIR", help="region caches, such as STORE/regions (default: none is kept)"
    )


def _boxes(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.store.boxes import BoxMaker

    detector = _detector(args.detector, args.id)
    if detector.OF_SOURCES:
        raise SpecError([f"--detector {args.detector}: its boxes come with a build's sources; it looks at no picture"])
    maker = BoxMaker(detector, args.regions)
    _write({"detector": detector.detector_id})
    pictures = 0
    try:
        for contents in _requests(sys.stdin.buffer):
            answers = maker.of(contents)
            pictures += len(contents)
            _write({"boxes": [{"error": one} if isinstance(one, str) else one.tolist() for one in answers]})
    finally:
        maker.save()
    return {"detector": detector.detector_id, "pictures": pictures, "detected": maker.made}


def _detector(name: str, wanted: str) -> Detector:
    """The detector by its name or of a spec; of that id, if one is wanted. Raises SpecError."""
    from pipeline.detectors import Detector, detectors_of
    from pipeline.plugins import configure

    if name.endswith((".yaml", ".yml")):
        known = detectors_of(load(name))
    else:
        known = [configure("detectors", name, {}, Detector, "--detector")]
    chosen = next((one for one in known if wanted in ("", one.detector_id)), None)
    if chosen is None:
        ids = ", ".join(one.detector_id for one in known) or "none"
        raise SpecError([f"--detector {name}: is {ids}, not {wanted}; name the spec (.yaml) that has it"])
    return chosen


def _requests(stream: IO[bytes]) -> Iterator[list[bytes]]:
    """The contents of each request's files. Raises SpecError for an invalid request."""
    while line := stream.readline(1 << 20):
        try:
            sizes = [int(size) for size in json.loads(line)["bytes"]]
        except (ValueError, OverflowError, KeyError, TypeError, RecursionError):
            raise SpecError(['stdin: a request begins with a line {"bytes": [...]}']) from None
        if min(sizes, default=0) < 0 or sum(sizes) > MOST_BYTES:
            raise SpecError([f"stdin: {sum(sizes):,} bytes in one request; {MOST_BYTES:,} are allowed"])
        contents = [stream.read(size) for size in sizes]
        if [len(content) for content in contents] != sizes:
            return  # who asked is gone
        yield contents


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()
