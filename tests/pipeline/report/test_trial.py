"""A trial beside its build, where only one of them asks a judge. The pages: see commands/test_trials.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data_specs.build import Watermark
from pipeline.report.trial import FATES, _stages
from pipeline.store.build import Build
from tests.fetched import begun


def test_a_stage_that_only_one_of_both_has_lets_all_pass_in_the_other(tmp_path: Path) -> None:
    def made(folder: str, watermark: Watermark | None) -> Build:
        build = begun(tmp_path / folder)
        build = replace(build, spec=build.spec.model_copy(update={"watermark": watermark}))
        names = [name for name in build.passes if name.partition(".")[0] not in ("detect", "shard", "report")]
        build = replace(build, fingerprints={name: name.encode().hex() for name in names})
        for name, dropped in (("extract", 0), ("dedup", 0), *([("curate", 2)] if watermark else [])):
            with build.stage(name).attempt("00000-of-00001") as attempt:
                attempt.commit({"seen": 9, "kept": 9 - dropped, "dropped": dropped})
        return build

    judged, plain = made("judged", Watermark()), made("plain", None)
    passed, dropped = (dict(zip(FATES, figures, strict=True)) for figures in ((9, 9, 0, 0), (9, 7, 2, 0)))
    last = _stages(plain, judged)[-1]
    assert last == {"stage": "curate", "ran": True, "before": passed, "after": dropped}
    last = _stages(judged, plain)[-1]
    assert last == {"stage": "curate", "ran": False, "before": dropped, "after": passed}
