"""Specs that wenlan-data init drafts, and the datasets that they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_specs.build import load
from pipeline import cli, opening, run
from pipeline.publish import release
from tests.drawn import encoded, rectangles

CONTACT = ["--contact", "mailto:x@example.org"]
WORDS = ["故宫的雪景", "黄山云海日出", "江南水乡古镇", "草原上的骏马", "红烧排骨成品图", "清晨第一缕阳光"]


def picture(seed: int, side: int = 240, wide: int = 320) -> bytes:
    """A file of a picture unlike the others."""
    return encoded(rectangles(seed, side, wide), quality=90)


def init(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What the command answers; it must succeed."""
    code = cli.main(["init", *words, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def built(spec: Path, *hosts: str) -> int:
    """Samples of the dataset that a spec builds, in this process; loopback hosts stand for the web."""
    loaded = load(spec)
    if hosts:
        allowed = loaded.egress.model_copy(update={"allow": hosts, "delay_s": 0.0})
        loaded = loaded.model_copy(update={"egress": allowed})
    build = opening.open_build(loaded, str(spec.parent / "build"))
    for _ in run.run(build, until="shard", here=True):
        pass
    return sum(release.publish(build).samples.values())


def read(spec: Path) -> int:
    """Candidates that a spec admits: read, and kept by its filters of texts, before anything is downloaded."""
    build = opening.open_build(load(spec), str(spec.parent / "build"))
    for _ in run.run(build, until="admit", here=True):
        pass
    return build.counted("admit", "kept")


def rows(web: Any) -> list[dict[str, Any]]:
    """A table of the pictures of the fixture `web`, with its columns named in Chinese."""
    return [
        {"nr": seed, "链接": web.url(f"/i/{seed}.jpg"), "网页": web.url(f"/p/{seed}.html"), "说明": words}
        for seed, words in enumerate(WORDS)
    ]
