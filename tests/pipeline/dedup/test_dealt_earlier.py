"""dealt_earlier: pieces of what was kept are made once, whole or not at all, and go with what they were made from."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dedup import dealt_earlier, handed_on
from pipeline.dedup.dealt_earlier import IMAGES, TEXTS, Piece, groups, images_in, looks_in, make, opened, pieces_of
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.files.arrays import ArrayWriter
from pipeline.files.folder import Folder
from pipeline.matching.looks import fine_of
from pipeline.matching.meetings import plan
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.store.build import Build
from pipeline.store.identities import Identities, build_of
from pipeline.takedown.garbage import Deletions, _tidy_store
from tests.deduped import publish
from tests.stages import run_stage

KEYS = plan(64, 4)
FINE_KEYS = plan(64, 4, 16)

TEXTS_OF = ("红烧肉", "故宫雪景", "第一次看海", "公园里的小狗")


@pytest.fixture
def build(tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A build of one pair, after one that kept twelve images, three of a domain, with texts of four clusters."""
    monkeypatch.setattr(dealt_earlier, "PIECE", 5)
    shown = [
        filtered.Shown(f"a{i}", i, (TEXTS_OF[i % 4],), 300 - i, page=f"http://s{i // 3}.cn/a.html") for i in range(12)
    ]
    first = filtered.make(tmp_path, shown, snapshot="2026-01-01")
    run_stage(first, "dedup.rank", "dedup.lead")
    publish(first)
    made: Build = filtered.make(tmp_path, [filtered.Shown("b", 3)], snapshot="2026-02-02")
    run_stage(made, "dedup.rank")
    return made


def bytes_of(build: Build) -> dict[str, str]:
    folder = Path(build.store.url) / "dealt"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_pieces_cover_all_that_was_kept_and_are_the_same_bytes_whoever_makes_them(build: Build) -> None:
    pieces = pieces_of(build, KEYS)
    assert [(piece.kind, piece.first, piece.last) for piece in pieces] == [
        (IMAGES, 0, 5),
        (IMAGES, 5, 10),
        (IMAGES, 10, 12),
        (TEXTS, 0, 4),
    ]
    assert [sum(map(len, group)) for group in groups(pieces)] == [5, 5, 2, 4]
    assert [len(group) for group in groups([*pieces[2:], replace(pieces[2], first=11)])] == [1, 2]
    assert groups([]) == [[]]
    assert [make(build, piece, KEYS) for piece in pieces] == [True] * 4
    first = bytes_of(build)
    assert [make(build, piece, KEYS) for piece in pieces] == [False] * 4
    for piece in pieces[::2]:
        Identities(build.store).dealt(piece.commit).delete(piece.file)
    for piece in reversed(pieces):
        with opened(build, piece, KEYS):
            pass
    assert bytes_of(build) == first


def test_a_piece_holds_what_its_images_are_and_how_many_each_cluster_and_domain_has(build: Build) -> None:
    identities = Identities(build.store)
    known = identities.read(build.identities[0])
    table = next(identities.batches(known, "images.parquet"))
    pairs, domains = dict[bytes, int](), dict[int, int]()
    for piece in pieces_of(build, KEYS)[:3]:
        with opened(build, piece, KEYS) as arrays:
            rows = table.slice(piece.first, len(piece))
            assert [name.tobytes() for name in arrays["sha256"]] == rows["sha256"].to_pylist()
            assert [name.tobytes() for name in arrays["candidate"]] == rows["candidate_id"].to_pylist()
            assert arrays["phash"].tolist() == rows["phash"].to_pylist()
            kept = images_in(arrays, KEYS, 0, build, piece)
            numbers = np.arange(len(piece))
            signatures = identities.signatures(known, 12)[piece.first : piece.last].reshape(-1, GRIDS, SIZE)
            for grid in (0, GRIDS - 1):
                read = kept.signed.grids(numbers[::-1], np.full(len(piece), grid))
                assert read.tolist() == signatures[::-1, grid].tolist()
            for entries in kept.entries.values():
                assert (np.diff(entries.keys.astype(np.int64)) >= 0).all()
            for name, count in zip(arrays["leaders.ids"], arrays["leaders.pairs"].tolist(), strict=True):
                pairs[name.tobytes()] = pairs.get(name.tobytes(), 0) + count
            for name, count in zip(arrays["domains"].tolist(), arrays["domains.pairs"].tolist(), strict=True):
                domains[name] = domains.get(name, 0) + count
    assert pairs == dict.fromkeys(table["text_leader"].to_pylist(), 3)
    assert domains == dict.fromkeys(table["domain"].to_pylist(), 3)


@pytest.fixture
def detailed(tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A build after one that kept twelve images, four of them with details, none in the last piece."""
    monkeypatch.setattr(dealt_earlier, "PIECE", 5)
    fine = {1: 1, 2: 2, 6: 3, 9: 4}
    shown = [filtered.Shown(f"a{i}", i, (f"第{i}张",), 300 - i, fine=fine.get(i, 0)) for i in range(12)]
    first = filtered.make(tmp_path, shown, snapshot="2026-01-01")
    run_stage(first, "dedup.rank", "dedup.lead")
    publish(first)
    made: Build = filtered.make(tmp_path, [filtered.Shown("b", 3)], snapshot="2026-02-02")
    return made


def test_fine_keys_and_details_of_a_piece_are_those_of_its_images_with_details(detailed: Build) -> None:
    identities = Identities(detailed.store)
    known = identities.read(detailed.identities[0])
    whole, found = identities.details(known), 0
    assert len(whole) == 4
    assert [identities.details_before(known, image) for image in range(13)] == np.searchsorted(
        whole.of, range(13)
    ).tolist()
    pieces = [piece for piece in pieces_of(detailed, FINE_KEYS) if piece.kind == IMAGES]
    assert [replace(piece, fine="") for piece in pieces] == pieces_of(detailed, KEYS)[: len(pieces)]
    for piece in pieces:
        numbers = np.arange(len(piece))[::-1]
        own = whole.take(piece.first + np.arange(len(piece)))
        with opened(detailed, piece, FINE_KEYS, fine=True) as arrays:
            for number in range(len(KEYS), len(FINE_KEYS)):
                kept = images_in(arrays, FINE_KEYS, number, detailed, piece)
                assert kept.hashed.images.tolist() == own.of.tolist()
                assert kept.hashed.codes.tolist() == fine_of(own).codes.tolist()
                sizes = [len(entries.keys) for entries in kept.entries.values()]
                assert sum(sizes) == len(own) * len(FINE_KEYS[number].family.parts)
        with opened(detailed, piece, FINE_KEYS) as arrays:
            for read in (
                images_in(arrays, FINE_KEYS, 0, detailed, piece).signed.details(numbers),
                looks_in(arrays, detailed, piece, numbers)[2][0],
            ):
                assert read.of.tolist() == own.take(numbers).of.tolist()
                assert read.stored.tolist() == own.take(numbers).stored.tolist()
            found += len(own)
    assert found == 4


def test_what_is_taken_down_leaves_its_details_nowhere(detailed: Build) -> None:
    identities, build = Identities(detailed.store), detailed
    known = identities.read(build.identities[0])
    row = int(identities.details(known).of[1])
    hashes = identities.details(known).stored[1, :160].tobytes()
    gone = next(identities.batches(known, "images.parquet"))["sha256"][row].as_py()
    for piece in pieces_of(build, FINE_KEYS):
        make(build, piece, FINE_KEYS)
    assert sum(hashes in path.read_bytes() for path in dealt(build)) == 1
    with build.store.lock():
        renamed = identities.forget(lambda rows: np.array([name.as_py() == gone for name in rows["sha256"]]))
    later = replace(build, identities=tuple(renamed.values()))
    for piece in pieces_of(later, FINE_KEYS):
        make(later, piece, FINE_KEYS)
    assert len(identities.details(identities.read(later.identities[0]))) == 3
    assert not any(hashes in path.read_bytes() for path in Path(build.store.url).rglob("*") if path.is_file())


def test_a_kill_leaves_nothing_that_is_read(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = pieces_of(build, KEYS)[0]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.files.arrays.ArrayWriter.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            make(build, piece, KEYS)
    assert bytes_of(build) == {}
    assert make(build, piece, KEYS)


def test_what_is_taken_down_leaves_the_pieces_and_none_is_made_of_what_was_replaced(build: Build) -> None:
    identities, pieces = Identities(build.store), pieces_of(build, KEYS)
    for piece in pieces:
        make(build, piece, KEYS)
    gone = next(identities.batches(identities.read(build.identities[0]), "images.parquet"))["sha256"][3].as_py()
    assert sum(gone in path.read_bytes() for path in dealt(build)) == 1
    with build.store.lock():
        renamed = identities.forget(lambda rows: np.array([name.as_py() == gone for name in rows["sha256"]]))
    assert list(renamed) == list(build.identities)
    assert dealt(build) == []
    with pytest.raises(StoreError, match="was replaced while this build ran"):
        make(build, pieces[0], KEYS)
    assert dealt(build) == []
    later = replace(build, identities=tuple(renamed.values()))
    for piece in pieces_of(later, KEYS):
        make(later, piece, KEYS)
    assert len(dealt(build)) == 4
    assert not any(gone in path.read_bytes() for path in dealt(build))


def test_a_piece_of_a_commit_that_is_replaced_while_it_is_made_does_not_stay(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = pieces_of(build, KEYS)[0]
    monkeypatch.setattr(Identities, "names", lambda self: [])
    monkeypatch.setattr(dealt_earlier, "_deal_images", lambda *_: None)
    make(build, piece, KEYS)
    assert dealt(build) == []


def test_a_takedown_that_was_killed_and_gc_find_what_follows_from_no_commit(build: Build) -> None:
    for piece in pieces_of(build, KEYS):
        make(build, piece, KEYS)
    identities, folder = Identities(build.store), Path(build.store.url) / "dealt"
    own = folder / build.identities[0].removesuffix(".json")
    kept = {path.name for path in own.iterdir()}
    (folder / "replaced.0123").mkdir()
    (folder / "replaced.0123/images.x.y.0-1.bin").write_bytes(b"x")
    identities.forget(lambda rows: np.zeros(rows.num_rows, np.bool_))
    assert [path.name for path in folder.iterdir()] == [own.name]
    (folder / "replaced.0123").mkdir()
    for half in (folder.parent / ".tmp-0", folder.parent / "identity/.tmp-1", own / ".tmp-2"):
        half.write_bytes(b"x")
        os.utime(half, (0, 0))
    (own / ".tmp-young").write_bytes(b"x")  # a build may be writing it
    for kind in ("images", "details"):
        (own / f"{kind}.features-000000000000.y.0-1.bin").write_bytes(b"x")
        (own / f"{kind}.{feature_id()}.0123456789ab.0-1.bin").write_bytes(b"x")  # by keys of an older wenlan
    fine = [piece.fine for piece in pieces_of(build, FINE_KEYS) if piece.fine]
    for name in fine:
        (own / name).write_bytes(b"x")
    deletions = Deletions(dry_run=False)
    _tidy_store(build.store, deletions)
    assert {one["what"] for one in deletions.deleted} == {
        "dealt out of a commit that was replaced",
        "left over",
        "dealt out for another version",
    }
    assert {path.name for path in own.iterdir()} == kept | {".tmp-young", *fine}
    assert not [path for path in folder.parent.rglob(".tmp-*") if path.name != ".tmp-young"]


def test_withdrawing_a_build_takes_its_pieces(build: Build) -> None:
    for piece in pieces_of(build, KEYS):
        make(build, piece, KEYS)
    known = Identities(build.store).read(build.identities[0])
    Identities(build.store).withdraw(known.build)
    assert dealt(build) == []


def test_publishing_a_build_anew_takes_the_pieces_of_what_it_was(build: Build, filtered: Any, tmp_path: Path) -> None:
    for piece in pieces_of(build, KEYS):
        make(build, piece, KEYS)
    again = filtered.make(tmp_path / "again", [filtered.Shown("c", 90)], snapshot="2026-01-01")
    again = replace(again, store=build.store, identities=())
    run_stage(again, "dedup.rank", "dedup.lead")
    assert build_of(build.identities[0]) == again.build_id
    publish(again)
    assert build.identities[0] not in Identities(build.store).names()
    assert dealt(build) == []


def dealt(build: Build) -> list[Path]:
    return [path for path in (Path(build.store.url) / "dealt").rglob("*") if path.is_file()]


def test_what_was_compared_before_another_build_was_published_is_not_relied_on(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handed_on, "FEWEST_KEPT", 1)
    run_stage(build, "dedup.deal", "dedup.meet")
    with contextlib.ExitStack() as files:
        assert handed_on.Alone(build, files).known
    other = replace(build, identities=())
    with contextlib.ExitStack() as files:
        assert not handed_on.Alone(other, files).known
    assert isinstance(handed_on.dealt_pieces(build)[0], Piece)


def test_a_takedown_while_a_piece_is_made_is_said_to_be_the_cause(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deletes the folder, with the file that is being written."""
    piece, identities, finish = pieces_of(build, KEYS)[0], Identities(build.store), ArrayWriter.finish

    def taken_down(writer: ArrayWriter) -> None:
        finish(writer)
        identities.forget(lambda rows: np.arange(rows.num_rows) == 3)

    monkeypatch.setattr(ArrayWriter, "finish", taken_down)
    with pytest.raises(StoreError, match="was replaced while this build ran; the same command again"):
        make(build, piece, KEYS)
    assert dealt(build) == []


def test_rows_of_a_commit_are_counted_once_for_all_groups(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed_on, "FEWEST_KEPT", 1)
    counted, count = list[str](), Identities.count
    monkeypatch.setattr(Identities, "count", lambda *of: counted.append(of[2]) or count(*of))
    run_stage(build, "dedup.deal")
    assert len([name for name in build.stage("dedup.deal").partitions() if name.startswith(handed_on.STORED)]) == 4
    assert sorted(counted) == ["images.parquet", "texts.parquet"]


def test_gc_leaves_a_piece_that_a_build_is_making(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    piece, finish = pieces_of(build, KEYS)[0], ArrayWriter.finish

    def tidied(writer: ArrayWriter) -> None:
        finish(writer)
        _tidy_store(build.store, Deletions(dry_run=False))

    monkeypatch.setattr(ArrayWriter, "finish", tidied)
    assert make(build, piece, KEYS)
    assert [path.name for path in dealt(build)] == [piece.file]


@pytest.mark.parametrize("fault", ["not empty", "half", "for good"])
def test_a_takedown_deletes_pieces_although_a_build_is_writing_one(
    build: Build, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A file that comes makes a folder not empty; one that goes ends the deletion of a folder without a word."""
    pieces, identities, delete, asked = pieces_of(build, KEYS), Identities(build.store), Folder.delete, list[str]()
    for piece in pieces:
        make(build, piece, KEYS)

    def disturbed(folder: Folder, name: str) -> None:
        if folder.url.endswith("dealt"):
            asked.append(name)
            if fault == "half" and len(asked) == 1:
                return delete(folder, f"{name}/{pieces[0].file}")
            if fault == "for good" or len(asked) == 1:
                raise OSError(errno.ENOTEMPTY, "Directory not empty")
        return delete(folder, name)

    monkeypatch.setattr(Folder, "delete", disturbed)
    monkeypatch.setattr("time.sleep", lambda _: None)
    known = identities.read(build.identities[0])
    if fault == "for good":
        with pytest.raises(StoreError, match=r"cannot be deleted .Directory not empty.; run the same"):
            identities.withdraw(known.build)
        return
    identities.withdraw(known.build)
    assert (dealt(build), identities.names()) == ([], [])
