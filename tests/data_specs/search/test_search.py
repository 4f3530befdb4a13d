"""search: the same answer as brute force, whatever is filtered, folded into copies, or cut into parts and pages."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.search import rows as rows_of
from data_specs.search.folder import INDEX, Background, IndexFault
from data_specs.search.rows import Filters
from data_specs.search.search import Query, SearchIndex
from tests.indexed import make, named, random_units, units

BACKGROUND = Background(cosines=(-1.0, 0.0, 0.5, 0.9), shares=(0.0, 0.5, 0.9, 1.0))

ROW = st.fixed_dictionaries(
    {
        # few directions: many rows have the same cosine
        "vector": st.lists(st.integers(-1, 1), min_size=3, max_size=3).filter(any),
        "has_image": st.sampled_from([True, True, True, False]),
        "source": st.sampled_from(["news", "wechat", ""]),
        "license": st.sampled_from(["CC-BY-4.0", ""]),
        "split": st.sampled_from(["train", "val"]),
        "width": st.integers(1, 4),
        "height": st.integers(1, 4),
        "image_leader": st.sampled_from(["", "a", "b", "c", "d"]),
        "url": st.sampled_from(["http://x.example/1.jpg", "http://Y.example/2.jpg", ""]),
        "page_url": st.sampled_from(["http://x.example/", ""]),
    }
)
ROWS = st.lists(ROW, min_size=1, max_size=4) | st.lists(ROW, min_size=12, max_size=30)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "source": st.frozensets(st.sampled_from(["news", "wechat", "none"]), min_size=1, max_size=2),
    "license": st.just(frozenset({"CC-BY-4.0"})),
    "split": st.frozensets(st.sampled_from(["train", "val"]), min_size=1),
    "min_side": st.integers(1, 3),
    "min_width": st.integers(1, 3),
    "max_width": st.integers(2, 4),
    "min_height": st.integers(1, 3),
    "max_height": st.integers(2, 4),
    "min_score": st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95, 1.0]),
    "url": st.sampled_from(["x.ex", "y.EXAMPLE", "none"]),
    "leader": st.sampled_from(["a", "none"]),
}
# mostly no filter, one or two: all of them together leave nothing to be found
FILTERS = st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True).flatmap(
    lambda names: st.builds(Filters, **{name: FIELDS[name] for name in names})
)


def passes(row: dict[str, Any], f: Filters) -> bool:
    """What a filter means, row by row."""
    sides = (row["width"], row["height"])
    return (
        row["has_image"]
        and all(not values or row[name] in values for name, values in vars_of(f).items())
        and (f.min_side is None or min(sides) >= f.min_side)
        and (f.min_width is None or row["width"] >= f.min_width)
        and (f.max_width is None or row["width"] <= f.max_width)
        and (f.min_height is None or row["height"] >= f.min_height)
        and (f.max_height is None or row["height"] <= f.max_height)
        and (not f.leader or row["image_leader"] == f.leader)
        and (f.url.lower() in row["url"].lower() or f.url.lower() in row["page_url"].lower())
    )


def vars_of(f: Filters) -> dict[str, frozenset[str]]:
    return {"source": f.source, "license": f.license, "split": f.split}


def brute_force(
    rows: list[dict[str, Any]], vectors: Any, query: Any, f: Filters, copies: bool
) -> list[tuple[str, float, int]]:
    """(id, cosine, copies) of the whole ranking."""
    query = (query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))).astype(np.float32)
    cosines = [np.float32(np.float64(np.float16(v)) @ np.float64(query)) for v in vectors]
    allowed = [n for n, row in enumerate(rows) if passes(row, f)]
    others = {n: sum(rows[m]["image_leader"] == rows[n]["image_leader"] for m in allowed) - 1 for n in allowed}
    shown, seen = [], set()
    for n in sorted(allowed, key=lambda n: (-cosines[n], n)):
        leader = rows[n]["image_leader"]
        if f.min_score is not None and BACKGROUND.score(cosines[n]) < f.min_score:
            continue
        if copies or not leader or leader not in seen:
            shown.append((rows[n]["id"], float(cosines[n]), others[n] if leader else 0))
            seen.add(leader)
    return shown


@pytest.mark.slow
def test_chance_knows_the_size_of_the_collection(tmp_path: Path) -> None:
    """Noise is near nothing in 20,000 rows, though its best score is above 0.999; a match is, among 500 and 20,000."""
    vectors, noise = random_units(20_500, 64), random_units(2_000, 64, seed=1)
    unrelated = np.sort((vectors[:1_000] @ noise[1_000:].T).ravel())
    shares = np.append(np.linspace(0, 0.999, 1_000), [0.9999, 0.99999, 1.0])
    background = Background(cosines=tuple(np.quantile(unrelated, shares).tolist()), shares=tuple(shares.tolist()))
    of = {}
    for rows in (500, 20_500):
        of[rows] = SearchIndex.open(
            make(tmp_path / f"{rows}", named(rows), vectors[:rows], vectors[:rows], background=background)
        )
    by_chance = []
    for number in range(20):
        [best] = of[20_500].search(Query(noise[number], of="text", limit=1)).hits
        assert best.score is not None
        assert best.score > 0.999
        by_chance.append(best.chance)
        match = Query(vectors[number] + noise[number], of="text", limit=1)
        few, many = (of[rows].search(match).hits[0].chance or 0.0 for rows in of)
        assert 0 < few < many < 0.01
    assert np.median(by_chance) > 0.5
    assert of[500].search(Query(noise[0], of="image", limit=1)).hits[0].chance is None


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS,
    query=st.lists(st.integers(-3, 3), min_size=3, max_size=3).filter(any),
    filters=FILTERS,
    copies=st.booleans(),
    parts=st.lists(st.integers(1, 6), max_size=4),
    limit=st.integers(1, 6),
)
def test_every_page_is_that_of_brute_force(rows, query, filters, copies, parts, limit):
    vectors = units([row["vector"] for row in rows])
    whole = [{"id": f"{n}", **{k: v for k, v in row.items() if k != "vector"}} for n, row in enumerate(rows)]
    vector = np.array(query, np.float32)
    expected = brute_force(whole, vectors, vector, filters, copies)
    with tempfile.TemporaryDirectory() as folder:
        index = SearchIndex.open(make(Path(folder) / "i", whole, vectors, parts=parts, background=BACKGROUND))
        answered, offset, more = [], 0, True
        while more:
            found = index.search(Query(vector, limit=limit, offset=offset, filters=filters, copies=copies))
            answered += [(hit.id, hit.cosine, hit.copies) for hit in found.hits]
            more, offset = found.more, offset + limit
            assert found.exact
            assert len(found.hits) == min(limit, max(0, len(expected) - offset + limit))
            assert found.allowed == sum(passes(row, filters) for row in whole)
    assert answered == expected


def test_a_hit_says_all_that_the_index_knows(tmp_path: Path) -> None:
    row = {
        "id": "k1",
        "caption": "一只猫",
        "texts": [{"kind": "alt", "text": "一只猫"}, {"kind": "title", "text": "猫"}],
        "url": "http://a.example/1.jpg",
        "width": 30,
        "height": 20,
        "boxes": [0, 0, 10, 10, 5, 5, 20, 20],
        "license": "CC0-1.0",
    }
    vectors = random_units(1, 8)
    index = SearchIndex.open(make(tmp_path / "i", [row], vectors, vectors, background=BACKGROUND))
    (hit,) = index.search(Query(vectors[0], words="猫")).hits
    assert (hit.id, hit.caption, hit.record.boxes) == ("k1", "一只猫", ((0, 0, 10, 10), (5, 5, 20, 20)))
    assert [(t.kind, t.text) for t in hit.record.texts] == [("alt", "一只猫"), ("title", "猫")]
    assert hit.cosine == pytest.approx(1, abs=1e-3)
    assert hit.score == 1
    assert hit.record.similarity == pytest.approx(1, abs=1e-3)
    assert hit.words_score is not None
    (alike,) = index.search(Query(vectors[0], of="image")).hits
    assert (alike.cosine, alike.score) == (hit.cosine, None), "the background is not that of images with images"
    assert index.row("k1") == hit.record
    assert index.row("k2") is None
    assert index.row("\ud800") is None
    assert np.allclose(index.vector("k1", "text"), vectors[0], atol=1e-3)


def test_images_and_texts_are_searched_apart(tmp_path: Path) -> None:
    image_ND, text_ND = random_units(30, 16), random_units(30, 16, seed=1)
    rows = [{"id": f"{n}", "has_text": n % 3 > 0} for n in range(30)]
    index = SearchIndex.open(make(tmp_path / "i", rows, image_ND, text_ND))
    assert index.search(Query(image_ND[4])).hits[0].id == "4"
    assert index.search(Query(text_ND[4], target="text")).hits[0].id == "4"
    assert index.search(Query(text_ND[3], target="text")).allowed == 20
    assert index.vector("3", "text") is None
    assert "3" not in {hit.id for hit in index.search(Query(text_ND[3], target="text", limit=30)).hits}


@pytest.mark.parametrize(
    ("query", "line"),
    [
        (Query(np.ones(3, np.float32)), "a query must be a vector of 8 finite numbers, not all 0"),
        (Query(np.zeros(8, np.float32)), "a query must be a vector of 8 finite numbers, not all 0"),
        (Query(np.full(8, np.nan, np.float32)), "a query must be a vector of 8 finite numbers, not all 0"),
        (Query(np.ones(8, np.float32), target="text"), "does not contain texts"),
        (Query(np.ones(8, np.float32), limit=0), "limit 0, offset 0: limit must be at least 1"),
        (Query(np.ones(8, np.float32), offset=-1), "limit 20, offset -1: limit must be at least 1"),
        (Query(np.ones(8, np.float32), weight=2), "weight 2: the weight of the words must be between 0 and 1"),
        (Query(np.ones(8, np.float32), filters=Filters(min_score=0.5)), "its vectors do not have scores"),
        (
            Query(np.ones(8, np.float32), of="image", filters=Filters(min_score=0.5)),
            "a search of images by images does not have scores",
        ),
        (Query(words="x", filters=Filters(min_score=0.5)), "a search without a vector does not have scores"),
    ],
)
def test_a_query_that_does_not_fit_is_one_line(tmp_path: Path, query: Query, line: str) -> None:
    index = SearchIndex.open(make(tmp_path / "i", named(3), random_units(3, 8)))
    with pytest.raises(IndexFault) as raised:
        index.search(query)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_a_query_the_rows_come_in_their_order(tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "source": "news" if n % 2 else "wechat", "image_leader": f"{n // 4}"} for n in range(20)]
    index = SearchIndex.open(make(tmp_path / "i", rows, random_units(20, 8), parts=[7]))
    news = Filters(source=frozenset({"news"}))
    page = index.search(Query(filters=news, limit=3, offset=1))
    assert [(hit.id, hit.copies, hit.cosine) for hit in page.hits] == [("5", 1, None), ("9", 1, None), ("13", 1, None)]
    assert page.more
    copies = index.search(Query(filters=Filters(leader="2"), copies=True))
    assert [hit.id for hit in copies.hits] == ["8", "9", "10", "11"]
    assert index.counts() == {"image": 20, "text": 0}


def test_facets_count_the_rows_of_each_value(tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "source": "news" if n < 7 else "wechat", "split": "train"} for n in range(10)]
    index = SearchIndex.open(make(tmp_path / "i", rows, random_units(10, 8), parts=[3, 3]))
    assert index.facets() == {"source": {"news": 7, "wechat": 3}, "license": {"": 10}, "split": {"train": 10}}


@pytest.mark.slow
def test_a_large_index_is_searched_approximately_unless_the_query_asks_otherwise(tmp_path: Path, monkeypatch) -> None:
    """And a filter that leaves few rows is exact again: it yields every hit that there is."""
    vectors = random_units(3_000, 32)
    rows = [{"id": f"{n}", "source": "rare" if n % 100 == 7 else "often"} for n in range(3_000)]
    index = SearchIndex.open(make(tmp_path / "i", rows, vectors, parts=[1_000, 1_000], approximate=True))
    query = vectors[5] + 0.1 * random_units(1, 32, seed=9)[0]
    exact = index.search(Query(query, limit=50))
    assert exact.exact, "3,000 rows are no large index"
    monkeypatch.setattr("data_specs.search.search.FROM", 4 * 2 * 32 * 100)  # more than 100 rows are many
    near = index.search(Query(query, limit=50))
    assert not near.exact
    assert near.hits[0].id == "5"
    assert len({hit.id for hit in near.hits} & {hit.id for hit in exact.hits}) >= 45
    by_id = {hit.id: hit.cosine for hit in exact.hits}
    assert all(hit.cosine == by_id[hit.id] for hit in near.hits if hit.id in by_id), "cosines are exact all the same"
    assert index.search(Query(query, limit=50, exact=True)).hits == exact.hits
    rare = index.search(Query(query, limit=50, filters=Filters(source=frozenset({"rare"}))))
    assert (len(rare.hits), rare.exact) == (30, True)
    often = index.search(Query(query, limit=50, filters=Filters(source=frozenset({"often"}))))
    assert not often.exact
    assert {hit.record.source for hit in often.hits} == {"often"}


@pytest.mark.slow
def test_pages_of_an_approximate_answer_are_whole(tmp_path: Path) -> None:
    vectors = random_units(2_000, 16)
    index = SearchIndex.open(make(tmp_path / "i", named(2_000), vectors, approximate=True))
    ids: list[str] = []
    for offset in range(0, 2_000, 250):
        found = index.search(Query(vectors[0], limit=250, offset=offset, exact=False))
        assert not found.exact
        assert found.more == (offset < 1_750)
        ids += [hit.id for hit in found.hits]
    assert sorted(ids) == sorted(row["id"] for row in named(2_000))


def test_words_and_vectors_are_fused_by_their_ranks(tmp_path: Path) -> None:
    captions = ["一只猫", "一只狗", "红烧肉", "猫和狗", "雪景"]
    rows = [{"id": f"{n}", "caption": caption} for n, caption in enumerate(captions)]
    vectors = units([[1, 0], [0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0, 1]])
    index = SearchIndex.open(make(tmp_path / "i", rows, vectors))
    query = np.array([1, 0], np.float32)
    assert [hit.id for hit in index.search(Query(query)).hits] == ["0", "1", "2", "3", "4"]
    words = index.search(Query(words="猫"))
    assert {hit.id for hit in words.hits} == {"0", "3"}
    assert words.hits[0].cosine is None
    by_vector = {"0": 1, "1": 2, "2": 3, "3": 4, "4": 5}
    by_words = {hit.id: rank for rank, hit in enumerate(words.hits, 1)}
    for weight in (0.0, 0.3, 0.9, 1.0):
        points = {
            id: (1 - weight) / (60 + by_vector[id]) + (weight / (60 + by_words[id]) if id in by_words else 0)
            for id in by_vector
        }
        found = index.search(Query(query, words="猫", weight=weight))
        assert [hit.id for hit in found.hits] == sorted(points, key=lambda id: (-points[id], id))
        assert {hit.id for hit in found.hits if hit.words_score is not None} == {"0", "3"}


def test_what_is_no_index_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IndexFault, match=r"index.json: cannot be read .*; an index is written by wenlan-train embed"):
        SearchIndex.open(tmp_path)
    folder = make(tmp_path / "i", named(3), random_units(3, 8))
    (folder / "img_emb" / "img_emb_0000.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(IndexFault, match=r"the index is damaged .*; delete it and embed it again"):
        SearchIndex.open(folder)
    (folder / INDEX).write_text('{"version": 2}')
    with pytest.raises(IndexFault, match=r"is not the index.json of a search index"):
        SearchIndex.open(folder)


@pytest.mark.parametrize("damage", ["cut", "gone", "rows", "junk"])
def test_an_index_that_was_not_copied_whole_is_one_line_and_no_answer(tmp_path: Path, damage: str) -> None:
    """A copy that was interrupted: what it lacks is told when it is opened, not by the first query that meets it."""
    folder = make(tmp_path / "i", [{"id": f"{n}", "caption": "猫"} for n in range(5)], random_units(5, 8))
    for name in ("words/words_r1.sqlite", "rows/rows_0000.arrow", "img_emb/img_emb_0000.npy"):
        file = folder / name
        whole = file.read_bytes()
        if damage == "cut":
            file.write_bytes(whole[: len(whole) // 2])
        elif damage == "gone":
            file.unlink()
        elif damage == "junk" and name.startswith("words"):
            file.write_bytes(b"x" * len(whole))
        elif damage == "rows" and name.startswith("rows"):
            rows = rows_of.read_mapped(file).slice(0, 3).combine_chunks()
            file.unlink()
            rows_of.write_mapped(file, rows)
            text = (folder / INDEX).read_text()
            (folder / INDEX).write_text(text.replace(f'"bytes":{len(whole)}', f'"bytes":{file.stat().st_size}'))
        else:
            continue
        with pytest.raises(IndexFault, match=r"damaged \(.*\); delete it and embed it again"):
            SearchIndex.open(folder).search(Query(words="猫"))
        if damage != "junk":  # of the same size: seen when it is read
            with pytest.raises(IndexFault, match="the index is damaged"):
                SearchIndex.open(folder)
        file.write_bytes(whole)


def test_a_background_that_no_score_can_be_read_off_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "i", named(3), random_units(3, 8), background=BACKGROUND) / INDEX
    told = json.loads(path.read_text())
    for cosines, shares in ([], []), ([0.0, 0.5], [1.0]), ([0.5, 0.0], [0.0, 1.0]):
        told["about"]["background"] = {"cosines": cosines, "shares": shares}
        path.write_text(json.dumps(told))
        with pytest.raises(IndexFault, match="a background has cosines, which ascend, and as many shares"):
            SearchIndex.open(path.parent)
