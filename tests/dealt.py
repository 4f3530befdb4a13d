"""Builds that are dealt out and met whatever their size, what they hand to STORE, and STOREs of other features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.dedup import decided, handed_on, lead, meet
from pipeline.store.identities import DETAILS, PARTS, Identities
from tests.deduped import publish
from tests.stages import run_stage


def deal_out_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of any size are dealt out, in runs of a few pairs, and parts of a few entries."""
    monkeypatch.setattr(handed_on, "FEWEST", 1)
    monkeypatch.setattr(handed_on, "FEWEST_KEPT", 1)
    monkeypatch.setattr("pipeline.dedup.rank.RUN", 8)
    monkeypatch.setattr(meet, "ENTRIES", 100)
    monkeypatch.setattr(lead, "READ", 5)
    monkeypatch.setattr(decided, "BLOCK", 2)


def texts_of(number: int) -> tuple[str, ...]:
    """Of every fourth pair one text more, which no other pair has."""
    return (f"说明{number % 7}", *([f"只有这里有的一句话{number}"] if number % 4 == 0 else []))


def shown_of(filtered: Any, count: int) -> list[Any]:
    """Every third picture is another one's, alike or to the byte."""
    return [
        filtered.Shown(f"p{i}", i if i % 3 else i // 6, texts_of(i), 300 - i, "same" if i % 2 else "")
        for i in range(count)
    ]


def published(filtered: Any, folder: Path, shown: list[Any], **more: Any) -> Any:
    """A build whose identities are published."""
    build = filtered.make(folder, shown, 2, snapshot="2026-01-01", **more)
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet", "dedup.lead")
    publish(build)
    return build


def handed(build: Any) -> list[Any]:
    """The files that a build hands to STORE."""
    return [ref for name, ref in build.stage("dedup.lead").record("all").files.items() if name in (*PARTS, DETAILS)]


def measured(build: Any, features: str) -> None:
    """What a build has published, as of other features. Called before anybody reads it."""
    identities = Identities(build.store)
    path = Path(identities._folder.at(identities.of(build.build_id)))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features": features}))
