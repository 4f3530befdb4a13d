"""Chinese names of stages and reasons."""

from __future__ import annotations

import re

from pipeline.records import DropReason
from pipeline.report.translations import REASONS
from pipeline.stages import STAGES


def test_every_stage_and_reason_has_a_chinese_name() -> None:
    assert all(re.search(r"[\u4e00-\u9fff]", stage.zh) for stage in STAGES.values())
    assert {reason.value for reason in DropReason} <= set(REASONS)
