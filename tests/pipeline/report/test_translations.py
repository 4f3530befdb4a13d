"""Words of the report: every stage and reason in both languages, and evidence in Chinese."""

from __future__ import annotations

import re

import pytest

from data_specs.shard import Text
from pipeline.features._rows import measure_image
from pipeline.filters import ImageFilter, TextFilter
from pipeline.pictures.decode import MAX_PIXELS, encode_jpeg
from pipeline.plugins import find, names
from pipeline.report.translations import REASONS, en, evidence_zh, zh
from pipeline.rows.account import Named
from pipeline.rows.records import Features
from pipeline.stages import STAGES
from tests.drawn import blobs

HAN = r"[\u4e00-\u9fff]"


def test_every_stage_and_reason_has_words_in_both_languages() -> None:
    assert all(re.search(HAN, stage.zh) for stage in STAGES.values())
    for name, (english, chinese) in REASONS.items():
        assert re.fullmatch(r"[A-Za-z. -]+", english), name
        assert re.search(HAN, chinese), name
    assert all(re.search(HAN, zh(named, STAGES)) for named in Named)
    assert (en("text_too_short"), zh("text_too_short", STAGES)) == ("text too short", "文本过短")
    assert (en("admit"), zh("admit", STAGES), en("of_a_newer_one")) == ("admit", "准入", "of_a_newer_one")


TEXTS = [
    "花", "春" * 80, "a nice dinner 好", "こんにちは世界", "IMG_2041.jpg", "1234567", "https://a.example/b",
    "好好好好好好好好好好好好", "春天春天春天春天春天春天春天春天", "加微信领取优惠，扫码关注",
    "电话13812345678，邮箱a@b.cn",
]  # fmt: skip
PICTURES = [(100, 90), (900, 100), (300, 300)]


@pytest.mark.parametrize("name", names("filters"))
def test_evidence_of_the_filters_is_said_in_chinese(name: str) -> None:
    plugin = find("filters", name)
    drops = []
    if issubclass(plugin, TextFilter) and name != "lexicon":
        strict = {"min_words": 3} if name == "text_length" else {}
        judged = [(text, plugin(**strict).check(Text("caption", text))) for text in TEXTS]
        drops = [drop for text, drop in judged if drop and drop.evidence not in text]  # what it quotes stays
    elif issubclass(plugin, ImageFilter):
        least = {"image_bytes": {"min_bytes": 10**6}, "image_blank": {"max_blankness": 0.01}}
        least |= {"image_entropy": {"min_entropy": 8.0}, "image_sharpness": {"min_sharpness": 99_999}}
        for sides in PICTURES:
            row = measure_image(encode_jpeg(blobs(1, sides), 90), MAX_PIXELS)
            features = Features(sha256="", **{**row, "phash": tuple(row["phash"]), "frames": 3})
            if drop := plugin(**least.get(name, {})).check(features):
                drops.append(drop)
    for drop in drops:
        said = evidence_zh(drop.evidence)
        assert re.search(HAN, said), drop.evidence
        assert not re.search(r"[a-z]{2,}", said), (drop.evidence, said)


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ("150 x 90 pixels; each side needs 200", "150 × 90 像素；每边至少 200"),
        (
            "说明.csv lists 我的 1.jpg, which is not a picture in the folder",
            "说明.csv 提到 我的 1.jpg，文件夹中没有这张图片",
        ),
        ("same bytes as 9dead, which an earlier build kept", "字节相同： 9dead（早先构建已保留）"),
        ("a file name; only the title of its page is left", "文件名；只剩网页标题"),
        ("starts with '<html'", "开头为 '<html'"),
        ("not in an archive or STORE, and this build sends no requests", "存档与 STORE 中均没有，且此构建不发送请求"),
        ("status 404", "status 404"),
        ("OSError: image file is truncated", "OSError: image file is truncated"),
    ],
)
def test_phrases(evidence: str, said: str) -> None:
    assert evidence_zh(evidence) == said
