"""request: what cannot be meant is refused, and what is named becomes hashes and looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_specs.build import SpecError
from pipeline.rows.records import sha256_hex
from pipeline.store.build import Build
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns
from pipeline.takedown.forget import Request, forget
from pipeline.takedown.request import resolve


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(sha256s=["abc"]), "--sha256 abc: not 64 hex digits"),
        (Request(urls=["example.org"]), "--url example.org: not a URL; for a domain use --domain"),
        (Request(domains=["https://example.org/"]), "not a domain name"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, request_: Request, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        forget(Store(str(tmp_path)), [], request_)


@pytest.mark.slow
def test_an_image_that_is_named_takes_its_bytes_its_copies_and_their_looks(
    synthetic_build: Build, synthetic: Any
) -> None:
    item = next(i for i in synthetic.items() if i.stage == "shard")
    name = item.candidate

    def resolved(**request: Any) -> Takedowns:
        return resolve(Request(**request), synthetic_build.store, [synthetic_build])

    for takedowns in (resolved(urls=[name.image_url]), resolved(sha256s=[item.sha256.upper()])):
        assert {name.fetch_id, item.sha256} <= takedowns.hashes
        assert takedowns.takedown_reason(name.image_url, "") == "this image URL was taken down"
        assert len(takedowns.looks) == 1
    exact = resolved(urls=[name.image_url], exact=True)
    assert exact.looks == ()
    assert item.sha256 in exact.hashes
    kept = {i.sha256 for i in synthetic.items() if i.stage == "shard"} - {item.sha256}
    assert not kept & exact.hashes, "no other picture"


def test_a_page_or_a_domain_names_no_picture_that_may_stand_elsewhere(synthetic_build: Build, synthetic: Any) -> None:
    page = next(i for i in synthetic.items() if i.stage == "shard" and i.candidate.page_url).candidate.page_url
    takedowns = resolve(Request(urls=[page], domains=["IMG1.example."]), synthetic_build.store, [synthetic_build])
    assert takedowns.hashes == {sha256_hex(page), sha256_hex("img1.example")}
    assert takedowns.looks == ()


def test_a_picture_that_is_taken_down_again_within_more_bits_is_refused_within_them(
    tmp_path: Path, synthetic: Any
) -> None:
    """Copies came through: whoever asks for a larger distance then was told that it is recorded, and it was not."""
    store, picture = Store(str(tmp_path / "store")), tmp_path / "it.jpg"
    store.check()
    picture.write_bytes(next(i for i in synthetic.items() if i.stage == "shard").data)
    known, revisions = list[bool](), set[str]()
    for distance in (2, 12, 6, 12):
        known.append(forget(store, [], Request(pictures=[picture], distance=distance))["known"])
        revisions.add(store.forgotten_revision())
    assert {look.distance for look in store.takedowns().looks} == {2, 6, 12}
    assert known == [False, False, False, True]
    assert len(revisions) == 3, "builds read the list anew"


def test_what_was_taken_down_before_stays_taken_down(synthetic_build: Build) -> None:
    store = synthetic_build.store
    store.folder.write_json("forgotten/one.json", {"hashes": ["a" * 64]})
    store.folder.write_json("forgotten/two.json", {"hashes": [], "found": ["b" * 64, "a" * 64]})
    takedowns = resolve(Request(), store, [])
    assert takedowns.hashes >= {"a" * 64, "b" * 64}
    assert takedowns.revision == store.forgotten_revision() == Takedowns(frozenset({"a" * 64})).revision
