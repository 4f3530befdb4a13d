"""Section `remarks`: what it says is what the samples are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipeline.report.funnel import Funnel
from pipeline.report.sections import remarks
from pipeline.stages import STAGES

DROPPED = Funnel(
    {("s", "filter", "image_too_small"): 1_200, ("s", "admit", "spacer"): 30, ("s", "fetch", "timeout"): 2}
)
MATERIAL: Any = SimpleNamespace(candidates=DROPPED, build=SimpleNamespace(stages=STAGES))


def said(kinds: list[tuple[str, int, int]], hosts: dict[str, int], doubtful: int = 0) -> list[str]:
    inputs = {
        "totals": {"kept": 100, "dropped": 1_232},
        "kinds": [{"name": name, "primary": primary, "fallbacks": fallen} for name, primary, fallen in kinds],
        "image_domains": [{"name": name, "count": count} for name, count in hosts.items()],
        "merges": {"counts": [{"reason": "near_image", "count": 9, "other_words": doubtful}]},
    }
    made = remarks.figures(MATERIAL, inputs)["remarks"]
    assert all(not one["zh"].isascii() for one in made)
    return [one["en"] for one in made]


def test_texts_hosts_reasons_and_copies_in_doubt_are_said() -> None:
    kinds = [("title", 33, 33), ("caption", 66, 0), ("alt", 1, 0), ("tag", 0, 0)]
    assert said(kinds, {"a.cn": 71, "b.cn": 29}, 3) == [
        "Primary texts: caption 66%, page title 33%, alt text 1%.",
        "In 33% of the samples it replaces a better text that was removed.",
        "71% of the pictures come from a.cn.",
        "Most frequent drop reasons: image too small (1,200), icon or spacer (30).",
        "3 near-copies have a caption or alt text unlike that of the image they were merged with.",
    ]


def test_what_is_as_usual_is_not_said() -> None:
    assert (
        said([("caption", 100, 4)], {"": 100})
        == said([("caption", 100, 4)], {"a.cn": 29})
        == [
            "Primary texts: caption 100%.",
            "Most frequent drop reasons: image too small (1,200), icon or spacer (30).",
        ]
    )
