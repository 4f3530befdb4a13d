"""Boxes of pictures by a real detector in the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.drawn import picture
from tests.training.serve.conftest import command
from tests.training.serve.test_embeddings import data_uri
from training.errors import RunError
from training.serve.refusals import Refused
from training.serve.towers import boxes_by
from training.use.detector import ProcessLocalDetector, choose_detector

pytestmark = pytest.mark.slow


def test_a_detector_that_fails_refuses_the_picture_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, _ = choose_detector("", "proposals", None)
    assert detector is not None
    boxes_of = boxes_by(ProcessLocalDetector(detector))

    def fails(*_: object) -> None:
        raise RunError("detector proposals", "out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(ProcessLocalDetector, "detect", fails)
        with pytest.raises(Refused, match="detector proposals: out of luck"):
            boxes_of(picture(4))
    assert len(boxes_of(picture(4))) > 0


@pytest.mark.drill(8)
def test_a_server_embeds_a_picture_with_the_boxes_of_its_detector(tiny: Path, index: Path) -> None:
    from training.use.encode import open_encoder

    content = picture(3)
    detector, _ = choose_detector("", "proposals", None)
    assert detector is not None
    [boxes] = ProcessLocalDetector(detector).detect([content])
    wanted = open_encoder(tiny, "cpu").encode_image([content], [boxes])[0]
    with command(tiny, "--detector", "proposals", "--index", f"pictures={index}") as server:
        answer = server.post("/image_query", files={"image": content}).json()
        np.testing.assert_allclose(answer["embedding"], wanted, atol=1e-5)
        found = server.post("/search", json={"collection": "pictures", "image": data_uri(content)}).json()
        np.testing.assert_allclose(found["query"]["boxes"], np.asarray(boxes)[:4], atol=1e-3)  # data.max_boxes
