"""The sample that templates are learnt from: the same however pages are spread, and never larger than its bounds."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline.rows.records import Candidate, RemovedText, candidate_rows, candidates_of
from pipeline.stages import STAGES, _sort, _templates
from pipeline.stages._furniture import REPEATED_ON_IMAGES
from pipeline.stages._templates import Sample
from pipeline.stages.admit import admit
from pipeline.store.build import Build
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns, domain_hashes
from pipeline.takedown.rewrite import Removal
from pipeline.takedown.rewrite_partitions import remove
from tests.stages import run_stage

TEXTS = st.lists(st.tuples(st.sampled_from(["a.cn", "b.cn", "c.cn"]), st.integers(0, 60)), max_size=120)


@given(TEXTS, st.integers(1, 8), st.integers(8, 40), st.randoms(use_true_random=False))
def test_the_sample_does_not_depend_on_the_order_of_texts_and_keeps_its_bounds(texts, per_host, most, dice):
    def sampled(order: list[tuple[str, int]]) -> list[tuple[tuple[str, str], list[str], float]]:
        sample = Sample(per_host, most)
        for host, number in order:
            sample.add((host, "own"), str(number))
        return [(key, sorted(own), rate) for key, own, rate in sample.texts()]

    first = sampled(texts)
    shuffled = list(texts)
    dice.shuffle(shuffled)
    assert sampled(shuffled) == first
    assert sum(len(own) for _, own, _ in first) <= most
    assert all(len(own) <= per_host and 0 < rate <= 1 for _, own, rate in first)
    if len(set(texts)) <= most and per_host == 8:
        assert {host for (host, _), _, _ in first} == {host for host, _ in texts}


def test_the_rate_of_a_sample_estimates_how_many_texts_there_are():
    sample = Sample(per_host=1_000)
    for number in range(20_000):
        sample.add(("a.cn", "own"), f"第{number}条")
    [(_, own, rate)] = sample.texts()
    assert abs(len(own) / rate - 20_000) < 2_000  # three standard deviations of 1/sqrt(1000)


def empty(tmp_path: Path, **options: Any) -> Build:
    """A build of pages before extract."""
    source = {"kind": "warc", "name": "s", "source_kind": "news", "path": "x.warc.gz"}
    spec = BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": [source], **options})
    prints = {"extract": "e" * 64, "admit.sort": "5" * 64, "admit": "a" * 64}
    return Build(spec, str(tmp_path), Store(str(tmp_path / "store")), "t", "2026-01-01", prints, stages=STAGES)


def built(tmp_path: Path, parts: int, more: str = "", **options: Any) -> Build:
    """A build of 400 pages of one host with a picture each, whose alt text ends with `more`."""
    build, dice, candidates = empty(tmp_path, **options), random.Random(2), list[Candidate]()
    for number in range(400):
        page, name = f"http://a.cn/{number}", "".join(dice.choices("红烧肉鱼鸡豆腐茄子", k=6))
        texts = (Text("alt", f"某某网【{name}{more}】"), Text("title", name), Text("surrounding", f"某某网【{name}】"))
        candidates.append(Candidate("s", "news", page, page, f"{page}.jpg", texts))
    extracted(build, candidates, parts)
    return build


def extracted(build: Build, candidates: list[Candidate], parts: int) -> None:
    for part in range(parts):
        own = candidates[part::parts]
        with build.stage("extract").attempt(f"s-{part:05d}") as attempt:
            attempt.write_table("parquet", candidate_rows(own, 0))
            attempt.commit({"seen": len(own), "kept": len(own), "dropped": 0})


@pytest.mark.slow
def test_templates_are_the_same_however_the_pages_are_cut(tmp_path):
    one, three = built(tmp_path / "one", 1), built(tmp_path / "three", 3)
    for build in (one, three):
        run_stage(build, "admit.sort")
    [row] = one.stage("admit.sort").reduced()
    assert (row["host"], row["group"], row["side"], row["text"]) == ("a.cn", "own", "begins", "某某网【")
    assert 350 <= row["texts"] <= 400
    assert three.stage("admit.sort").reduced() == [row]
    cut = _templates.read(one)
    assert cut.cut("http://a.cn/x", "alt", "某某网【葱烧海参】")[0] == "葱烧海参"
    for page, kind in (("http://b.cn/x", "alt"), ("http://a.cn/x", "title"), ("http://a.cn/x", "surrounding")):
        assert cut.cut(page, kind, "某某网【葱烧海参】") == ("某某网【葱烧海参】", None)


@pytest.mark.slow
def test_templates_of_several_groups_are_those_of_one(tmp_path, monkeypatch):
    """The sample is halved on the way, so that of later groups not all names are read."""
    monkeypatch.setattr(_templates, "TEXTS", 300)
    monkeypatch.setattr(Sample.__init__, "__defaults__", (_templates.PER_HOST, 300))
    one, several = built(tmp_path / "one", 8), built(tmp_path / "several", 8)
    run_stage(one, "admit.sort")
    monkeypatch.setattr(_sort, "GROUP", 100)
    monkeypatch.setattr(_sort, "NAMES_AT_ONCE", 10)
    assert len(run_stage(several, "admit.sort")) == 4
    assert several.stage("admit.sort").reduced() == one.stage("admit.sort").reduced() != []


def test_one_alt_on_many_pictures_of_a_host_is_taken_off_in_whichever_parts_they_lie(tmp_path):
    """Each of two parts has fewer of them than are furniture; with one picture less they are none."""
    for pictures in (REPEATED_ON_IMAGES, REPEATED_ON_IMAGES - 1):
        build, candidates = empty(tmp_path / str(pictures)), list[Candidate]()
        for number in range(pictures):
            page, texts = f"http://a.cn/{number}", (Text("alt", "敬请期待"), Text("surrounding", f"敬请期待{number}"))
            texts = texts if number else texts[:1]
            candidates.append(Candidate("s", "news", page, page, f"{page}.jpg", texts))
        candidates.append(replace(candidates[1], page_url="http://b.cn/", origin="http://b.cn/"))
        extracted(build, candidates, 2)
        run_stage(build, "admit.sort")
        rows = pa.concat_tables(_sort.rows_between(build, "parquet", "0", "g"))
        found = {c.page_url: c for c in candidates_of(rows)}
        assert len(found) == rows.num_rows == pictures + 1
        assert rows["order_key"].to_pylist() == sorted(rows["order_key"].to_pylist())
        other = found.pop("http://b.cn/")
        assert (other.texts, other.removed) == (candidates[1].texts, ())
        for candidate in candidates[:-1]:
            own = found[candidate.page_url]
            if pictures < REPEATED_ON_IMAGES:
                assert (own.texts, own.removed) == (candidate.texts, ())
            else:
                why = f"repeated with {pictures} images of a.cn"
                assert own.texts == candidate.texts[1:]
                assert own.removed == (RemovedText("alt", "敬请期待", "boilerplate", why),)
        kept, dropped = admit(candidates_of(rows), build.spec)
        assert [(d.id, d.reason) for d in dropped] == (
            [] if pictures < REPEATED_ON_IMAGES else [(candidates[0].candidate_id, "no_text")]
        )
        assert len(kept) + len(dropped) == pictures + 1


def test_a_takedown_of_a_domain_takes_the_templates_of_its_host(tmp_path):
    build = built(tmp_path, 1)
    run_stage(build, "admit.sort")
    [template] = build.stage("admit.sort").reduced()
    for domain, left in (("b.cn", [template]), ("a.cn", [])):
        remove(build, Removal(set(), Takedowns(frozenset(domain_hashes(domain)))), ["admit.sort"])
        assert build.stage("admit.sort").reduced() == left
