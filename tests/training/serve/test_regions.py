"""Boxes of pictures by a real detector beside the server."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.drawn import picture
from tests.processes import that_run, wait_until
from tests.training.serve.conftest import command
from tests.training.serve.test_embeddings import data_uri, error
from training.errors import ConfigError
from training.serve.regions import detector_of


def test_a_checkpoint_of_the_grid_has_no_detector() -> None:
    with detector_of("", "") as (detected, name):
        assert (detected, name) == (None, "grid")
    with pytest.raises(ConfigError, match="nonesuch"), detector_of("", "nonesuch"):
        pass


@pytest.mark.slow
def test_a_server_embeds_a_picture_with_the_boxes_of_its_detector_and_tells_when_that_is_gone(
    tiny: Path, index: Path
) -> None:
    from training.use.detector import Detecting
    from training.use.encode import open_encoder

    content = picture(3)
    detecting = Detecting("proposals", "", "")
    [boxes] = detecting.of([content])
    detecting.close()
    wanted = open_encoder(tiny, "cpu").encode_image([content], [boxes])[0]
    with command(tiny, "--detector", "proposals", "--index", f"pictures={index}") as server:
        answer = server.post("/image_query", files={"image": content}).json()
        np.testing.assert_allclose(answer["embedding"], wanted, atol=1e-5)
        found = server.post("/search", json={"collection": "pictures", "image": data_uri(content)}).json()
        np.testing.assert_allclose(found["query"]["boxes"], np.asarray(boxes)[:4], atol=1e-3)  # data.max_boxes
        assert server.process is not None
        [detector] = that_run("boxes", server.process.pid)
        os.kill(detector, signal.SIGKILL)
        health = lambda: server.get("/health").json()["reason"]  # noqa: E731
        wait_until(lambda: "start the server again" in health(), "the loss is told")
        assert server.get("/health").status_code == 503
        assert error(server.post("/image_query", files={"image": picture(4)}), 503)[0] == "detector_down"
        assert server.embeddings(input="红").status_code == 200, "texts need no boxes"
