"""linked_data: images, captions and keywords of JSON-LD, and JSON that is none."""

from __future__ import annotations

import json

from pipeline.pages.page import parse


def test_linked_data_gives_images_with_captions_tags_and_what_the_head_does_not_say():
    data = [
        {"@type": "NewsArticle", "headline": "标题", "description": "摘要", "keywords": ["园林", "苏州"],
         "image": ["/1.jpg", {"@type": "ImageObject", "contentUrl": "/2.jpg", "caption": "拙政园的荷花"}]},
        "no object", {"@graph": [[{"image": "/3.jpg"}]]},
    ]  # fmt: skip
    scripts = [json.dumps(data), "{broken", "[" * 100_000]
    page = parse("".join(f'<script type="application/ld+json">{text}</script>' for text in scripts))
    texts_of = {image.url: {(t.kind, t.text) for t in image.texts} for image in page.images}
    whole = {("title", "标题"), ("abstract", "摘要"), ("tag", "园林"), ("tag", "苏州")}
    assert texts_of == {"/1.jpg": whole, "/2.jpg": {("caption", "拙政园的荷花"), *whole}, "/3.jpg": whole}


def test_half_characters_in_linked_data_are_replaced():
    """JSON may hold a lone surrogate; UTF-8, and so every file of ours, cannot."""
    data = r'{"@type":"ImageObject","url":"http://a.test/\ud83d.jpg","caption":"雪\ud83d","headline":"题\udc00"}'
    page = parse(f'<body><p>文</p><script type="application/ld+json">{data}</script>')
    assert page.images[0].url == "http://a.test/\ufffd.jpg"
    texts = {t.kind: t.text for t in page.images[0].texts}
    assert (texts["caption"], texts["title"]) == ("雪\ufffd", "题\ufffd")
