"""Readers of public benchmarks: small files in each publisher's form hold the same six pictures and their captions."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.errors import ConfigError, InputError
from training.evaluation.benchmarks import BENCHMARKS, Benchmark, is_benchmark, open_benchmark

COLOURS = "红黄蓝绿白黑"
CAPTIONS = {f"{100 + i}": [f"{COLOURS[i]}色的{thing}在草地上" for thing in ("猫", "狗")] for i in range(6)}
TEST = list(CAPTIONS)[:4]
"""Ids of the test split, or of val where there is no other; the remaining two are train's."""


def picture(number: int) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST).save(data, "JPEG")
    return data.getvalue()


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def lines(rows: list[object]) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def images(folder: Path, name: Callable[[str], str] = "{}.jpg".format) -> None:
    for key in CAPTIONS:
        write(folder / name(key), picture(int(key)))


def apart(text: str) -> str:
    return " ".join(text)


def aic_icc(root: Path) -> str:
    for name, day, ids in (("validation", "20170910", TEST), ("train", "20170902", [])):
        folder = root / f"ai_challenger_caption_{name}_{day}"
        images(folder / f"caption_{name}_images_{day}")
        rows = [
            {"url": "http://x/1", "image_id": f"{i}.jpg", "caption": [apart(text) for text in CAPTIONS[i]]} for i in ids
        ]
        write(folder / f"caption_{name}_annotations_{day}.json", json.dumps(rows, ensure_ascii=False))
    return "val"


def muge(root: Path) -> str:
    rows = [f"{i}\t{base64.b64encode(picture(int(i))).decode()}" for i in TEST]
    write(root / "Multimodal_Retrieval" / "MR_valid_imgs.tsv", lines([*rows]))
    queries = [
        {"query_id": n, "query_text": text, "item_ids": [int(i)]} for i in TEST for n, text in enumerate(CAPTIONS[i])
    ]
    write(root / "Multimodal_Retrieval" / "MR_valid_queries.jsonl", lines([*queries]))
    without = [{"query_id": 1, "query_text": "没有答案"}]
    write(root / "Multimodal_Retrieval" / "MR_test_queries.jsonl", lines([*without]))
    write(root / "Multimodal_Retrieval" / "MR_test_imgs.tsv", lines([*rows]))
    return "val"


def chinese_clip(root: Path) -> str:
    rows = [f"{i}\t{base64.urlsafe_b64encode(picture(int(i))).decode()}" for i in TEST]
    write(root / "test_imgs.tsv", lines([*rows]))
    texts = [{"text_id": n, "text": text, "image_ids": [int(i)]} for i in TEST for n, text in enumerate(CAPTIONS[i])]
    write(root / "test_texts.jsonl", lines([*texts]))
    return "test"


def coco_cn(root: Path) -> str:
    def name(i: str) -> str:
        return f"COCO_val2014_{int(i):012d}"

    images(root / "val2014", lambda i: f"{name(i)}.jpg")
    release = root / "coco-cn-version1805v1.1"
    captions = [f"{name(i)}#{n}\t{text}" for i, texts in CAPTIONS.items() for n, text in enumerate(texts)]
    write(release / "imageid.human-written-caption.txt", lines([*captions]))
    write(release / "imageid.human-written-caption.bosonseg.txt", "not read\n")
    write(release / "coco-cn_test.txt", lines([*map(name, TEST)]))
    return "test"


def flickr8k_cn(root: Path) -> str:
    images(root / "Flicker8k_Dataset", "{}_ab12.jpg".format)
    captions = [f"{i}_ab12.jpg#zhc#{n} {text}" for i, texts in CAPTIONS.items() for n, text in enumerate(texts)]
    write(root / "data" / "flickr8kzhc.caption.txt", lines([*captions]))
    write(root / "data" / "flickr8ktest.txt", lines([f"{i}_ab12" for i in TEST]))
    return "test"


def flickr30k_cn(root: Path) -> str:
    images(root / "flickr30k-images")
    tagged = [f"{i}#zhm#{n} {' '.join(f'{c}:n' for c in text)}" for i in TEST for n, text in enumerate(CAPTIONS[i])]
    folder = "flickr30kzhmbosontest"
    write(root / folder / "TextData" / f"seg.{folder}.caption.txt", lines([*tagged]))
    write(root / folder / "ImageSets" / f"{folder}.txt", lines([*TEST]))
    return "test"


def flickr30k_cna(root: Path) -> str:
    images(root / "images")
    captions = [f"{i}#{n}\t{text}" for i in TEST for n, text in enumerate(CAPTIONS[i])]
    write(root / "test" / "flickr30k_cn_test.txt", lines([*captions]))
    return "test"


def crossmodal_3600(root: Path) -> str:
    images(root / "images")
    rows = [
        {"image/key": i, "image/locale": "zh", "en": {"caption": ["x"]}, "zh": {"caption": CAPTIONS[i]}} for i in TEST
    ]
    write(root / "captions.jsonl", lines([*rows]))
    return "val"


def folder(root: Path) -> str:
    images(root)
    for i in TEST:
        write(root / f"{i}.txt", lines([*CAPTIONS[i], ""]))
    return "val"


WRITERS: Mapping[str, tuple[str, Callable[[Path], str]]] = {
    "aic-icc": ("aic-icc", aic_icc),
    "muge": ("muge", muge),
    "chinese-clip": ("chinese-clip", chinese_clip),
    "coco-cn": ("coco-cn", coco_cn),
    "flickr8k-cn": ("flickr8k-cn", flickr8k_cn),
    "flickr30k-cn": ("flickr30k-cn", flickr30k_cn),
    "flickr30k-cna": ("flickr30k-cn", flickr30k_cna),
    "crossmodal-3600": ("crossmodal-3600", crossmodal_3600),
    "folder": ("folder", folder),
}


def content(benchmark: Benchmark) -> list[tuple[bytes, list[str]]]:
    """The bytes of each picture with its captions, in order."""
    pictures = list(benchmark.pictures())
    assert pictures == list(benchmark.pictures()), "may be read again"
    found = [(p.read(), [c.text for c in benchmark.captions if p.id in c.images]) for p in pictures]
    assert {i for caption in benchmark.captions for i in caption.images} <= {p.id for p in pictures}
    return found


@pytest.mark.parametrize("form", WRITERS)
def test_each_form_holds_the_same_pictures_with_the_same_captions(form: str, tmp_path: Path) -> None:
    kind, writer = WRITERS[form]
    split = writer(tmp_path)
    expected = [(picture(int(i)), CAPTIONS[i]) for i in TEST]
    assert content(open_benchmark(f"{kind}:{tmp_path}", split)) == expected


def test_every_kind_is_tested() -> None:
    assert {kind for kind, _ in WRITERS.values()} | {"rows", "classes"} == set(BENCHMARKS)
    assert is_benchmark("muge:x")
    assert not is_benchmark("muge")
    assert not is_benchmark("s3://bucket/manifest.json")


@pytest.mark.parametrize("names", [{"test": "test"}, {"val": "validation"}, {"": ""}])
def test_the_caption_of_an_image_in_a_folder_per_class_is_the_class(names: dict[str, str], tmp_path: Path) -> None:
    [(split, folder)] = names.items()
    for i in TEST:
        write(tmp_path / folder / f"{COLOURS[int(i) % 2]}色" / f"{i}.jpg", picture(int(i)))
    benchmark = open_benchmark(f"classes:{tmp_path}", split or "train")
    assert content(benchmark) == [(picture(i), [f"{COLOURS[i % 2]}色"]) for i in (100, 102, 101, 103)]
    assert benchmark.split == (split or "all")
    if split:
        with pytest.raises(ConfigError, match=rf"does not have a dev split; it has {split}$"):
            open_benchmark(f"classes:{tmp_path}", "dev")
    write(tmp_path / ".ipynb_checkpoints" / "100-checkpoint.jpg", picture(100))
    assert content(open_benchmark(f"classes:{tmp_path}", split or "train")) == content(benchmark)


def test_rows_of_one_image_are_its_captions_with_its_boxes(tmp_path: Path) -> None:
    images(tmp_path)
    boxes = [[1, 2, 30, 40]]
    rows = [
        {"image_id": f"{i}.jpg", "sentences": [["alt_text", text], ["sur_text", "别的"]], "bbox": boxes}
        for i in TEST
        for text in CAPTIONS[i]
    ]
    write(tmp_path / "rows.jsonl", lines([*rows]))
    benchmark = open_benchmark(f"rows:{tmp_path / 'rows.jsonl'}", "val")
    assert content(benchmark) == [(picture(int(i)), CAPTIONS[i]) for i in TEST]
    assert {p.boxes for p in benchmark.pictures()} == {((1.0, 2.0, 30.0, 40.0),)}
    write(tmp_path / "rows.jsonl", lines([{**row, "bbox": []} for row in rows]))
    bare = open_benchmark(f"rows:{tmp_path / 'rows.jsonl'}", "val")
    assert {p.boxes for p in bare.pictures()} == {None}, "the grid, as for a picture file"


def test_a_text_may_be_of_several_images_and_an_image_without_one_stays_a_candidate(tmp_path: Path) -> None:
    chinese_clip(tmp_path)
    write(tmp_path / "test_texts.jsonl", lines([{"text_id": 1, "text": "动物", "image_ids": [100, 102]}]))
    benchmark = open_benchmark(f"chinese-clip:{tmp_path}", "test")
    assert [c.images for c in benchmark.captions] == [("100", "102")]
    assert len(list(benchmark.pictures())) == 4


def test_latin_words_of_a_segmented_caption_stay_apart(tmp_path: Path) -> None:
    aic_icc(tmp_path)
    file = next(tmp_path.rglob("caption_validation_annotations_*.json"))
    rows = [{"image_id": "100.jpg", "caption": ["一 件 Hello Kitty 的 T恤"]}]
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert open_benchmark(f"aic-icc:{tmp_path}", "val").captions[0].text == "一件Hello Kitty的T恤"


@pytest.mark.parametrize(
    ("form", "split", "damage", "error", "message"),
    [
        ("aic-icc", "test", None, ConfigError, "aic-icc does not have a test split"),
        ("coco-cn", "val", None, InputError, "contains no coco-cn_val.txt"),
        ("muge", "test", None, InputError, "MR_test_queries.jsonl:line 1: no query_text with item_ids"),
        ("flickr30k-cn", "val", None, InputError, "holds neither flickr30k_cn_val.txt nor"),
        ("folder", "val", ("*.txt", ""), InputError, "no captions in the val split"),
        ("aic-icc", "val", ("*validation*.json", "[1]"), InputError, "not a list of image_id and caption"),
        ("chinese-clip", "test", ("test_texts.jsonl", "{"), InputError, "test_texts.jsonl:line 1: not JSON"),
        (
            "chinese-clip",
            "test",
            ("test_texts.jsonl", '{"text_id": 1, "text": "没有答案", "image_ids": []}'),
            InputError,
            "test_texts.jsonl: no image_ids in any line; does this split have answers?",
        ),
        (
            "chinese-clip",
            "test",
            ("test_texts.jsonl", r'{"text_id": 1, "text": "笑\ud83d", "image_ids": [100]}'),
            InputError,
            r"a caption contains an unpaired surrogate: '笑\ud83d'",
        ),
        ("coco-cn", "test", ("coco-cn_test.txt", b"\xff\n"), InputError, "is not UTF-8"),
        ("crossmodal-3600", "val", ("captions.jsonl", '{"image/key": "1"}'), InputError, "not rows of image/key with"),
        # One text in the place of a list of them would be a caption for each of its characters.
        (
            "aic-icc",
            "val",
            ("*validation*.json", '[{"image_id": "100.jpg", "caption": "一只猫"}]'),
            InputError,
            "not a list of image_id and caption (not a list of texts: '一只猫')",
        ),
        (
            "chinese-clip",
            "test",
            ("test_texts.jsonl", '{"text_id": 1, "text": "猫", "image_ids": "100"}'),
            InputError,
            "test_texts.jsonl:line 1: no text with image_ids",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    form: str,
    split: str,
    damage: tuple[str, str | bytes] | None,
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    kind, writer = WRITERS[form]
    writer(tmp_path)
    for path in tmp_path.rglob(damage[0]) if damage else ():
        write(path, damage[1])  # type: ignore[index]
    with pytest.raises(error) as caught:
        open_benchmark(f"{kind}:{tmp_path}", split)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_images_and_bad_base64_are_named(tmp_path: Path) -> None:
    coco_cn(tmp_path / "a")
    (tmp_path / "a" / "val2014" / "COCO_val2014_000000000101.jpg").unlink()
    with pytest.raises(InputError, match="lacks the image COCO_val2014_000000000101"):
        open_benchmark(f"coco-cn:{tmp_path / 'a'}", "test")
    chinese_clip(tmp_path / "b")
    for row, problem in (("100\tab=c=\n", "line 1: not an id"), ("100\n", "line 1: not an id, a tab")):
        write(tmp_path / "b" / "test_imgs.tsv", row)
        with pytest.raises(InputError, match=problem):
            list(open_benchmark(f"chinese-clip:{tmp_path / 'b'}", "test").pictures())
    with pytest.raises(InputError, match="contains no image with a "):
        open_benchmark(f"folder:{tmp_path / 'b'}", "val")
    for name in ("folder:", "folder:/no/such", f"muge:{tmp_path / 'b' / 'test_imgs.tsv'}"):
        with pytest.raises(InputError):
            open_benchmark(name, "val")


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "100.jpg").unlink()
    os.mkfifo(tmp_path / "100.jpg")
    first = next(iter(open_benchmark(f"folder:{tmp_path}", "val").pictures()))
    with pytest.raises(ValueError, match="not a regular file"):
        first.read()


@pytest.mark.parametrize("kind", ["folder", "classes"])
def test_a_file_name_that_is_not_utf_8_has_an_id_that_can_be_written(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "猫"
    for suffix, data in ((b".jpg", picture(1)), (b".txt", "一只猫".encode())):
        write(place / os.fsdecode("中".encode("gbk") + suffix), data)
    [(data, [caption])] = content(open_benchmark(f"{kind}:{place if kind == 'folder' else tmp_path}", "val"))
    assert (data, caption) == (picture(1), "一只猫" if kind == "folder" else "猫")
    [found] = open_benchmark(f"{kind}:{place if kind == 'folder' else tmp_path}", "val").pictures()
    assert found.id.encode().endswith(rb"\xd6\xd0.jpg")


@pytest.mark.parametrize("form", ["flickr30k-cn", "flickr30k-cna", "aic-icc", "folder"])
def test_what_is_hidden_beside_captions_and_images_is_none_of_them(form: str, tmp_path: Path) -> None:
    kind, writer = WRITERS[form]
    split = writer(tmp_path)
    expected = content(open_benchmark(f"{kind}:{tmp_path}", split))
    for path in [found for kind in ("txt", "json", "jpg") for found in tmp_path.rglob(f"*.{kind}")]:
        for name in (f"._{path.name}", f".git/{path.name}"):
            write(path.parent / name, b"\0\5\x16\7\xff")
    assert content(open_benchmark(f"{kind}:{tmp_path}", split)) == expected
