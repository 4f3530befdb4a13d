"""dedup: copies give way to the leader that they leave their texts to, whatever the partitions."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_specs.shard import SPLITS, Text
from data_specs.text.folding import normal
from pipeline.dedup import signatures
from tests.deduped import after, publish, run, texts
from tests.drawn import blobs, encoded, picture
from tests.places import CORPUS, needs_corpus

PHOTOS = CORPUS / "howtocook-site" / "images"


@pytest.mark.slow
def test_copies_give_way_to_the_larger_image_and_leave_it_their_texts(fetched_build: Any, got: Any) -> None:
    big, small = picture(1, (320, 240)), picture(1, (160, 120))
    images = [
        got("small", small, "小图的说明"),
        got("big", big, "大图的说明"),
        got("big-elsewhere", big, "大图的说明。", "别处的说明"),
        got("other", picture(2), "另一张"),
    ]
    build = fetched_build(images, parts=2, filters=[])
    kept, decided, counts = run(build)
    leader = "big" if "big" in kept else "big-elsewhere"  # same bytes: the smaller candidate_id leads
    follower = "big-elsewhere" if leader == "big" else "big"
    assert set(kept) == {leader, "other"}
    assert decided[follower]["reason"] == "same_image"
    assert decided["small"]["reason"] == "near_image"
    assert {d["duplicate_of"] for d in decided.values()} == {kept[leader]["candidate_id"]}
    assert kept[leader]["candidate_id"][:32] in decided["small"]["evidence"]
    assert {normal(t) for t in texts(kept[leader])} == {"大图的说明", "小图的说明", "别处的说明"}
    assert len(kept[leader]["text_leaders"]) == 3
    assert (counts["seen"], counts["kept"], counts["dropped"]) == (4, 2, 2)
    assert (counts["same_image"], counts["near_image"]) == (1, 1)
    assert counts["merged_texts"] == (2 if leader == "big" else 1)
    assert sum(counts[split] for split in SPLITS) == 2


@pytest.mark.slow
def test_the_copy_with_words_of_its_own_leads_and_texts_of_copies_are_sorted_in(fetched_build: Any, got: Any) -> None:
    """The picture of a post, larger in the blog's list; and one that only another page describes."""
    images = [
        got("post", picture(1, (160, 120)), Text("alt", "明洞街头的夜景"), Text("abstract", "首尔的三天")),
        got("list", picture(1, (320, 240)), Text("title", "我的博客")),
        got("step", picture(2), Text("title", "归档"), Text("abstract", "所有文章的列表")),
        got("page", picture(2, (160, 120)), Text("surrounding", "切好的土豆丝"), Text("title", "酸辣土豆丝")),
    ]
    kept, decided, _ = run(fetched_build(images, filters=[]))
    assert set(kept) == {"post", "page"}
    assert texts(kept["post"]) == ["明洞街头的夜景", "我的博客", "首尔的三天"]
    assert texts(kept["page"]) == ["切好的土豆丝", "酸辣土豆丝", "归档", "所有文章的列表"]
    assert decided["list"]["duplicate_of"] == kept["post"]["candidate_id"]


@pytest.mark.slow
def test_a_mirrored_copy_is_one_where_the_spec_says_so(fetched_build: Any, got: Any) -> None:
    photo = Image.fromarray(blobs(4))
    images = [
        got("as-it-is", encoded(photo), "一张图"),
        got("mirrored", encoded(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), "另一张图"),
    ]
    plain = fetched_build(images, filters=[])
    turned = fetched_build(images, name="turned", filters=[], dedup={"image_turned": True})
    assert signatures.token(plain) != signatures.token(turned)
    assert set(run(plain)[0]) == {"as-it-is", "mirrored"}
    kept, decided, _ = run(turned)
    assert len(kept) == 1
    assert [row["reason"] for row in decided.values()] == ["near_image"]


@pytest.mark.drill(1)
def test_near_copies_in_a_format_of_screens_are_two_on_one_host(fetched_build: Any, got: Any) -> None:
    photo, brighter = Image.fromarray(blobs(4)), Image.fromarray((blobs(4) * 0.9 + 20).astype("uint8"))
    for kind, other, kept in (("JPEG", "site", 1), ("PNG", "site", 2), ("PNG", "elsewhere", 1)):
        images = [
            got("one", encoded(photo, kind), "一张图", page="http://site.test/one.html"),
            got("two", encoded(brighter, kind), "另一张图", page=f"http://{other}.test/two.html"),
        ]
        build = fetched_build(images, name=f"{kind}-{other}".lower(), filters=[])
        assert len(run(build)[0]) == kept


@pytest.mark.slow
def test_texts_are_not_merged_when_the_spec_says_so(fetched_build: Any, got: Any) -> None:
    images = [got("small", picture(1), "小图"), got("big", picture(1, (320, 240)), "大图")]
    kept, decided, _ = run(fetched_build(images, filters=[], dedup={"merge_texts": False}))
    assert texts(kept["big"]) == ["大图"]
    assert set(decided) == {"small"}


@pytest.mark.slow
def test_partitions_and_their_order_do_not_matter(fetched_build: Any, got: Any) -> None:
    images = [got(f"{i}", picture(i % 7, (160 + 8 * (i % 3), 120 + 6 * (i % 3))), f"说明{i % 4}") for i in range(30)]
    one = run(fetched_build(images, filters=[], dedup={"max_pairs_per_text": 2}))
    more = run(fetched_build(images[::-1], parts=5, name="more", filters=[], dedup={"max_pairs_per_text": 2}))
    assert one == more
    assert 0 < len(one[0]) < 8


@pytest.mark.slow
def test_a_build_without_pairs_is_no_fault(fetched_build: Any) -> None:
    build = fetched_build([])
    kept, decided, counts = run(build)
    assert (kept, decided, counts["seen"]) == ({}, {}, 0)
    assert publish(build) == []


@pytest.mark.slow
@needs_corpus("howtocook-site", "images")
def test_the_site_holds_one_picture_twice_and_no_other(fetched_build: Any, got: Any) -> None:
    files = sorted(PHOTOS.glob("*.jpg"))
    images = [got(file.name, file.read_bytes(), f"第{i}张") for i, file in enumerate(files)]
    kept, decided, _ = run(fetched_build(images, parts=2, filters=[]))
    assert len(files) == 346
    assert {d["reason"] for d in decided.values()} == {"near_image"}
    assert len(decided) == 1  # images 1 and 12 of one recipe, says the corpus's README
    assert len(kept) == 345


@pytest.mark.slow
def test_with_no_limit_a_picture_may_have_any_number_of_texts_and_keeps_max_texts(
    tmp_path: Path, filtered: Any
) -> None:
    shown = [filtered.Shown(f"p{i}", 1, (f"第{i}道菜的做法", f"图{i}"), 200 - i) for i in range(6)]
    kept, _ = after(filtered.make(tmp_path, shown, dedup={"placeholder_texts": 0, "max_texts": 3}))
    assert texts(kept["p0"]) == ["第0道菜的做法", "图0", "第1道菜的做法"]
    assert len(kept["p0"]["text_leaders"]) == 3
    kept, _ = after(filtered.make(tmp_path, shown, dedup={"placeholder_texts": 0, "max_texts": 1}))
    assert texts(kept["p0"]) == ["第0道菜的做法"]


@pytest.mark.drill(2)
def test_what_texts_were_before_they_were_rewritten_is_in_the_shards(weeks: Any) -> None:
    """Those of a sample, and those that it took over from a copy."""
    spec = weeks.spec([1, 2], filters=[{"name": "to_simplified"}])
    place = Path(spec.sources[0].options["path"])
    (place / "001.txt").write_text("臺北故宮博物院", encoding="utf-8")
    with Image.open(place / "001.jpg") as image:
        image.resize((130, 110)).save(place / "001-130x110.jpg")
    (place / "001-130x110.txt").write_text("紅燒肉的做法", encoding="utf-8")
    build = weeks.build_again("1", spec)
    samples = list[list[tuple[str, str]]]()
    for tar in (Path(build.out) / "shards").glob("*.tar"):
        with tarfile.open(tar) as file:
            members = {name: file.extractfile(name) for name in file.getnames() if name.endswith(".json")}
            read = [json.loads(member.read()) for member in members.values() if member is not None]
            samples += [[(text["text"], text.get("original", "")) for text in row["texts"]] for row in read]
    assert sorted(samples, key=len) == [
        [("一只小猫在睡觉，第2幅", "")],
        [("台北故宫博物院", "臺北故宮博物院"), ("红烧肉的做法", "紅燒肉的做法")],
    ]
