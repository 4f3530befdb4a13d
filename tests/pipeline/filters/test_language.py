"""language: Chinese and Japanese in the same characters, and texts for which no model is asked."""

from __future__ import annotations

import pytest

from pipeline.filters.language import Language
from tests.judged import reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("故宫雪景", ""),
        ("故宮雪景", ""),
        ("國立故宮博物院典藏清代瓷器展覽", ""),
        ("一個中世紀的城市和它的城牆", ""),
        ("国立西洋美術館常設展示作品一覧", "not_chinese"),
        ("株式会社日本経済新聞社東京本社編集局", "not_chinese"),
        ("東京都千代田区丸内一丁目九番一号", "not_chinese"),
        ("日本国憲法第九条戦争放棄条項全文", "not_chinese"),
        ("口感嫩滑微苦回甘然后撒上香菜即可", ""),
        ("台灣歷史与文化研究中心", ""),
        ("东京国立博物馆收藏的中国古代青铜器展览", ""),
        ("", ""),
    ],
)
def test_language_is_asked_only_where_script_leaves_a_doubt(text, expected):
    assert reason(Language(), text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "故宫雪景",
        "一個中世紀的城市和它的城牆",
        "东京国立博物馆收藏的中国古代青铜器展览",
        "東京タワーの夜景写真集全巻",
        "展覽",
    ],
)
def test_script_decides_without_a_model(text):
    assert not Language().is_doubtful(text)
