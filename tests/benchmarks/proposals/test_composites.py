"""composites: boxes of what is seen, and pictures that follow from their number."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.proposals import composites
from tests.benchmarks.proposals.composites import SIDE
from tests.benchmarks.proposals.cutouts import Cutouts


def test_boxes_of_a_scene_are_of_what_is_seen(cutouts: Cutouts) -> None:
    disc, bar = cutouts.rendered
    scene = composites.Scene(np.full((200, 200, 3), 90, np.uint8))
    scene.paste(bar, 150, 10, shadow=0.0)  # 30 of 80 columns are cut off
    scene.paste(disc, 20, 100, shadow=0.5)
    scene.paste(bar, 5, 150, shadow=0.0)  # hides the disc's lower end
    assert scene.boxes() == pytest.approx(np.array([[150, 10, 200, 30], [20, 100, 84, 150], [5, 150, 85, 170]]), abs=1)
    scene.paste(disc, 20, 100, shadow=0.0)  # hides the first disc
    assert len(scene.boxes()) == 3


def test_a_full_plate_is_still_a_plate_and_what_is_left_of_a_hidden_one_is_not(cutouts: Cutouts) -> None:
    plate = cutouts.rendered[0]
    food = np.ascontiguousarray(plate[5:59, 5:59])  # leaves a fifth of the plate, all around
    cover = np.full((50, 64, 4), 255, np.uint8)  # leaves a fifth, at its lower end
    for thing, y, found in ((food, 105, 2), (cover, 100, 1)):
        scene = composites.Scene(np.full((200, 200, 3), 90, np.uint8))
        scene.paste(plate, 20, 100, shadow=0.0)
        scene.paste(thing, 20 + (64 - thing.shape[1]) // 2, y, shadow=0.0)
        assert len(scene.boxes()) == found


def test_a_composite_follows_from_its_number(cutouts: Cutouts) -> None:
    made = [composites.composite(number, cutouts) for number in (5, 6, 5)]
    assert np.array_equal(made[0].square, made[2].square)
    assert np.array_equal(made[0].boxes, made[2].boxes)
    assert not np.array_equal(made[0].square, made[1].square)
    for one in made:
        assert one.square.shape == (SIDE, SIDE, 3)
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert one.boxes.min(initial=0) >= 0
        assert one.boxes.max(initial=0) <= SIDE
