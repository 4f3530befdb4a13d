"""Section `watermark`: marks as pictures, counts, and the pictures nearest to the limit."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report.page import environment
from pipeline.report.sections.watermark import HTML, NEAREST, watermark
from pipeline.store.build import Build
from tests.fetched import Got
from tests.marked import MARKED, PLAIN, STAGES, images


@pytest.mark.slow
def test_it_shows_the_mark_and_what_it_dropped(
    fetched_build: Callable[..., Build], run_stage: Any, material: Any
) -> None:
    got = [Got(url, data, (text,)) for url, data, text in images()]
    build = fetched_build(got, parts=2, watermark={}, filters=[])
    run_stage(build, *STAGES)
    said = watermark(material(build))
    assert said is not None
    assert [said[name] for name in ("groups", "marks", "templates")] == [2, 1, 0]
    assert (said["compared"], said["dropped"]) == (MARKED + PLAIN, MARKED)
    [mark] = said["shown"]
    assert (mark["host"], mark["width"], mark["dropped"]) == ("img.test", 320, MARKED)
    picture = Image.open(io.BytesIO(base64.b64decode(mark["mark"].partition(",")[2]))).convert("L")
    left, top, _, _ = picture.getbbox()
    assert picture.size == (320, 240)
    assert min(left - 200, top - 160) > 0, "drawn where the logo is"
    assert np.asarray(picture).max() > 200
    dropped, kept = said["nearest"]
    assert {row["text"].split("，")[1] for row in dropped["rows"]} == {"marked"}
    assert {row["text"].split("，")[1] for row in kept["rows"]} == {"plain"}
    assert (len(dropped["rows"]), len(kept["rows"])) == (NEAREST, PLAIN)
    page = environment(build.stages).from_string(HTML).render(watermark=said)
    assert mark["mark"] in page
    assert page.count("data:image/jpeg") == NEAREST + PLAIN
    assert all(row["picture"].startswith("data:image/jpeg") for row in dropped["rows"] + kept["rows"])
