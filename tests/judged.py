"""What a filter says of a text or a picture, for tests of filters."""

from __future__ import annotations

from typing import Any

import pytest

from data_specs.build import SourceRef
from data_specs.shard import Text, TextKind
from pipeline.filters import PixelFilter, TextFilter
from pipeline.plugins import configure


def reason(f: TextFilter, text: str, kind: TextKind = "alt") -> str:
    """Why a filter drops a text, "" if it keeps it."""
    drop = f.check(Text(kind, text))
    return drop.reason.value if drop else ""


def source(source_kind: str = "news", kind: str = "site", **options: Any) -> SourceRef:
    """A source of a spec, for filters whose thresholds depend on where a text comes from."""
    return SourceRef(name="s", kind=kind, source_kind=source_kind, **options)


def needs(package: str) -> Any:
    """A package of a model; its test skips where it is not installed."""
    return pytest.importorskip(package, reason=f"{package} is not installed (extra `models`)", exc_type=ImportError)


def scores_of(name: str, *pictures: Any) -> list[float]:
    """What the model of a filter says of pictures [H, W, 3]."""
    plugin = configure("filters", name, {}, PixelFilter)
    return plugin.score(plugin.load(), pictures)
