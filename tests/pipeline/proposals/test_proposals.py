"""The detector `proposals`: boxes follow the picture as shown; composites, net and training of its weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.detectors._boxes import cleaned
from pipeline.detectors.proposals import SIDE, WEIGHTS, Proposals
from pipeline.pictures.decode import decode
from pipeline.proposals import composites
from pipeline.proposals.cutouts import Cutouts

BOX = (120, 30, 210, 120)


@pytest.fixture(scope="module")
def find() -> Any:
    """find(bytes of a picture): its boxes as a build stores them."""
    detector = Proposals()
    state = detector.load()

    def boxes(data: bytes) -> np.ndarray[Any, Any]:
        shown = decode(data).pixels
        return cleaned(detector.detect(state, [shown])[0], shown.shape[1], shown.shape[0], 36)[0]

    return boxes


def scene(scale: float = 1.0) -> Image.Image:
    """An orange on a table cloth, as far as a drawing can be one; BOX is around it."""
    image = Image.new("RGB", (240, 160), (70, 90, 120))
    draw = ImageDraw.Draw(image)
    draw.ellipse(BOX, (230, 130, 20))
    draw.ellipse((140, 48, 160, 66), (250, 200, 120))
    return image.resize((round(240 * scale), round(160 * scale)), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def best_overlap(boxes: Any, box: Any) -> float:
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2] - box[0]) * (box[3] - box[1])
    return float((shared / (area - shared)).max())


def test_the_weights_are_small_and_there() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000


@pytest.mark.parametrize("scale", [0.15, 1, 12])
def test_a_thing_is_found_in_small_and_large_pictures(find: Any, scale: float) -> None:
    boxes = find(encoded(scene(scale), "PNG"))
    assert best_overlap(boxes, np.array(BOX) * scale) > 0.7


def test_boxes_are_turned_with_the_picture(find: Any) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise: x becomes height - y
    boxes = find(encoded(scene(), "JPEG", quality=95, exif=exif))
    assert best_overlap(boxes, np.array((160 - BOX[3], BOX[0], 160 - BOX[1], BOX[2]))) > 0.7


def test_alpha_is_on_white_and_the_first_frame_counts(find: Any) -> None:
    hole = Image.new("L", (240, 160), 0)
    ImageDraw.Draw(hole).ellipse(BOX, 255)
    image = scene()
    image.putalpha(hole)
    assert best_overlap(find(encoded(image, "PNG")), np.array(BOX)) > 0.7
    mirrored = scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    moving = encoded(scene(), "GIF", save_all=True, append_images=[mirrored], duration=100)
    assert best_overlap(find(moving)[:3], np.array(BOX)) > 0.7
    assert best_overlap(find(moving)[:3], np.array((240 - BOX[2], BOX[1], 240 - BOX[0], BOX[3]))) < 0.5


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (2000, 2)])
def test_a_picture_with_nothing_on_it_is_no_fault(find: Any, size: tuple[int, int]) -> None:
    boxes = find(encoded(Image.new("RGB", size, (128, 128, 128)), "PNG"))
    assert len(boxes) <= 36
    assert (boxes[:, 2:] <= np.array(size)).all()


def test_boxes_do_not_depend_on_their_neighbours_in_a_batch() -> None:
    detector = Proposals()
    state = detector.load()
    shown = [np.asarray(scene(scale)) for scale in (0.3, 1, 2, 0.7, 1.3)]
    together = detector.detect(state, shown)
    for picture, (boxes, scores, _) in zip(shown, together, strict=True):
        alone = detector.detect(state, [picture])[0]
        assert alone[0] == pytest.approx(boxes, abs=1e-3)
        assert alone[1] == pytest.approx(scores, abs=1e-5)


def cutouts() -> Cutouts:
    """Things whose mask is known: discs and bars of one colour, on grounds of another."""
    disc = np.zeros((64, 64, 4), np.uint8)
    y, x = np.mgrid[:64, :64]
    disc[(x - 31.5) ** 2 + (y - 31.5) ** 2 < 31**2] = (0, 0, 255, 255)
    bar = np.full((20, 80, 4), (0, 255, 0, 255), np.uint8)
    return Cutouts([disc, bar], [bar], [np.full((100, 100, 3), 90, np.uint8)])


def test_boxes_of_a_scene_are_of_what_is_seen() -> None:
    disc, bar = cutouts().photos
    scene = composites.Scene(np.full((200, 200, 3), 90, np.uint8))
    scene.paste(bar, 150, 10, shadow=0.0)  # 30 of 80 columns are cut off
    scene.paste(disc, 20, 100, shadow=0.5)
    scene.paste(bar, 5, 150, shadow=0.0)  # hides the disc's lower end
    assert scene.boxes() == pytest.approx(np.array([[150, 10, 200, 30], [20, 100, 84, 150], [5, 150, 85, 170]]), abs=1)
    scene.paste(disc, 20, 100, shadow=0.0)  # hides the first disc
    assert len(scene.boxes()) == 3


def test_a_composite_follows_from_its_number() -> None:
    made = [composites.composite(number, cutouts()) for number in (5, 6, 5)]
    assert np.array_equal(made[0].square, made[2].square)
    assert np.array_equal(made[0].boxes, made[2].boxes)
    assert not np.array_equal(made[0].square, made[1].square)
    for one in made:
        assert one.square.shape == (SIDE, SIDE, 3)
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert one.boxes.min(initial=0) >= 0
        assert one.boxes.max(initial=0) <= SIDE


@pytest.mark.slow
def test_training_goes_down_and_its_file_is_what_the_detector_reads(tmp_path: Path) -> None:
    import onnxruntime
    import torch

    from pipeline.detectors._yolox import decoded as yolox_decoded
    from pipeline.proposals.net import Proposer, cells, decoded, loss_of
    from pipeline.proposals.train import onnx_of, train

    torch.manual_seed(0)
    weights = tmp_path / "m.pth"
    from torchvision.models import mobilenet_v2

    torch.save(mobilenet_v2().state_dict(), weights)
    threads = torch.get_num_threads()
    try:
        net = train(cutouts(), weights, steps=3, batch=2)
    finally:
        torch.set_num_threads(threads)
    data = onnx_of(net)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    fed = (
        np.stack([composites.composite(n, cutouts()).square for n in range(3)]).transpose(0, 3, 1, 2).astype(np.float32)
    )
    rows = session.run(None, {"images": fed})[0]
    with torch.no_grad():
        ours = net(torch.from_numpy(fed))
    assert rows == pytest.approx(ours.numpy(), abs=1e-3)
    boxes = decoded(ours[:1], cells(SIDE))[0].numpy()
    theirs = yolox_decoded(rows[0], cells(SIDE).numpy(), 1.0, 0.0, 1.0)[0]
    order = np.argsort(-rows[0, :, 4], kind="stable")[: len(theirs)]
    assert theirs == pytest.approx(boxes[order], abs=0.05)
    thing = torch.tensor([[[40.0, 40, 120, 120]]])
    grid = cells(SIDE)
    right = torch.zeros(1, len(grid), 6)
    right[..., :2] = (80 / grid[:, 2:] - grid[:, :2])[None]
    right[..., 2:4] = (80 / grid[:, 2:]).log()[None].expand(-1, -1, 2)
    right[..., 4], right[..., 5] = 0.9, 1
    wrong = right.clone()
    wrong[..., 0] += 5
    assert float(loss_of(right, thing, grid)) < float(loss_of(wrong, thing, grid))
    assert isinstance(net, Proposer)
