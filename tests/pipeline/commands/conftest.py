"""What tests of init and of its parts share: inputs of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.web import probe
from tests.drafted import WORDS, picture


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command looks at for some seconds only is looked at on a busy machine too."""
    monkeypatch.setattr(probe, "SECONDS", 240.0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(here: Path) -> Path:
    """Six pictures with captions beside them: short ones, and small pictures too."""
    (here / "photos").mkdir()
    for seed, side in enumerate((90, 120, 240, 300, 210, 400)):
        (here / f"photos/{seed}.jpg").write_bytes(picture(seed, side, side + 40))
        (here / f"photos/{seed}.txt").write_text(WORDS[seed][: 1 + seed], encoding="utf-8")
    return here / "photos"


@pytest.fixture
def web(serve) -> Any:
    """A site of six pages, each with a picture and its caption."""
    pages: dict[str, Any] = {}
    for seed, words in enumerate(WORDS):
        pages[f"/i/{seed}.jpg"] = (200, {"Content-Type": "image/jpeg"}, picture(seed))
        links = "".join(f"<a href='/p/{other}.html'>{other}</a>" for other in range(len(WORDS)))
        pages[f"/p/{seed}.html"] = f"<html><body>{links}<img src='/i/{seed}.jpg' alt='{words}'></body></html>".encode()
    pages["/"] = pages["/p/0.html"]
    return serve(pages)
