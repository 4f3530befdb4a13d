"""_earlier_builds: what other builds kept counts for a new one, as far as its spec and its features go."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deduped import publish, run
from tests.drawn import picture


def test_what_another_dataset_kept_is_a_duplicate_only_if_the_spec_says_so(fetched_build: Any, got: Any) -> None:
    first = fetched_build([got("a", picture(1), "一")], filters=[])
    run(first)
    publish(first)
    later = [got("again", picture(1), "二"), got("b", picture(2), "三")]
    options: dict[str, Any] = {"snapshot": "2026-02-02", "name": "photos", "filters": []}
    kept, _, _ = run(fetched_build(later, **options))
    assert set(kept) == {"again", "b"}
    for across in ("all", [first.spec.name]):
        kept, decided, counts = run(fetched_build(later, dedup={"across": across}, **options))
        assert (set(kept), decided["again"]["reason"], counts["known"]) == ({"b"}, "same_image", 0)
        assert "which an earlier build kept" in decided["again"]["evidence"]


def test_a_text_of_an_earlier_build_stays_the_leader(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    first = fetched_build([got("a", picture(1), caption)], filters=[])
    kept, _, _ = run(first)
    publish(first)
    again, _, _ = run(fetched_build([got("b", picture(2), caption + "哦")], snapshot="2026-02-02", filters=[]))
    assert again["b"]["text_leaders"] == kept["a"]["text_leaders"]


def test_hashes_of_other_features_are_matched_by_bytes_only(
    fetched_build: Any, got: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetched_build([got("a", picture(1), "一")], filters=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stages.lead.feature_id", lambda: "features-old")
        run(first)
    publish(first)
    later = [got("same", picture(1), "二"), got("near", picture(1, (320, 240)), "三")]
    kept, decided, _ = run(fetched_build(later, snapshot="2026-02-02", filters=[]))
    assert "matched by bytes only" in caplog.text
    assert (set(kept), set(decided)) == ({"near"}, {"same"})


def test_what_an_older_wenlan_measured_is_matched_by_looks_where_they_can_be_compared(
    fetched_build: Any, got: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetched_build([got("a", picture(1), "一")], filters=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stages.lead.feature_id", lambda: "features-old")
        run(first)
    publish(first)
    monkeypatch.setattr("pipeline.features.EARLIER_IDS", {"features-old"})
    later = [got("near", picture(1, (320, 240)), "三"), got("b", picture(2), "四")]
    kept, decided, _ = run(fetched_build(later, snapshot="2026-02-02", filters=[]))
    assert (set(kept), set(decided)) == ({"b"}, {"near"})
