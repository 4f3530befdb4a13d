"""contexts: two pictures of one page, or under different words, are two, unless their files or pixels are one."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.features._rows import measure_image
from pipeline.matching.contexts import CONTEXT, bonds, column_of, contexts_in, contexts_of, file_stem
from tests.drawn import blobs

A = "http://a.cn/x/"

VARIANTS = [
    ("http://a.cn/lofoten-md.jpeg", "http://a.cn/lofoten.jpeg"),
    ("http://a.cn/0123456789abcdef_720w.jpg", "http://b.cn/x/0123456789abcdef_r.jpg"),
    (A + "pic.jpg", A + "pic-800x600.jpg", A + "pic@2x.png", A + "pic_thumb.jpg!small", A + "pic-scaled.webp"),
    (A + "pic.jpg?w=300&h=20", A + "pic.jpg@320w_200h_1c.webp", A + "thumb/pic.jpg", A + "pic.jpg_400x400.jpg"),
    (A + "pic.jpg?x-oss-process=image/resize,w_3", A + "300x200/pic.jpg", A + "%70ic.JPG", A + "thumb_pic.png"),
    ("http://w.org/c/thumb/a/ab/Name.jpg/300px-Name.jpg", "http://w.org/c/a/ab/Name.jpg"),
    ("http://w.cn/mmbiz_png/AbCdEfGhIjKlMnOpQrStUv/640?wx_fmt=png", "http://w.cn/mmbiz_png/AbCdEfGhIjKlMnOpQrStUv/0"),
    ("http://wx1.weibo.cn/orj360/006abcdef1ly1h2.jpg", "http://wx3.weibo.cn/large/006abcdef1ly1h2.jpg"),
    ("http://a.cn/2020/a-picture-of-a-street-at-night.jpg", "http://b.cn/a-picture-of-a-street-at-night-300x200.png"),
    ("http://r.com/upload/w_300,h_200/v1/cat.jpg", "http://r.com/upload/v1/cat.jpg"),
]

FILES = [
    (A + "1.png", A + "2.png"),
    (A + "step-1.png", A + "step-2.png"),
    (A + "step-1-300x200.png", A + "step-2-300x200.png"),
    (A + "pic.png", "http://a.cn/y/pic.png"),
    (A + "view?id=3&w=20", A + "view?id=4&w=20"),
    ("http://a.cn/v1.2/one-v1.2.png", "http://a.cn/v1.2/two-v1.2.png"),
    ("http://a.cn/0123456789abcdef_1.jpg", "http://a.cn/0123456789abcdef_2.jpg"),
    ("http://a.cn/", ""),
]


@pytest.mark.parametrize("urls", VARIANTS)
def test_variants_of_a_file_have_one_stem(urls: tuple[str, ...]) -> None:
    assert len({file_stem(url) for url in urls}) == 1
    assert file_stem(urls[0])


@pytest.mark.parametrize("urls", FILES)
def test_other_files_have_other_stems(urls: tuple[str, ...]) -> None:
    assert len({file_stem(url) for url in urls} - {""}) == len([url for url in urls if file_stem(url)])


def test_a_stem_takes_no_longer_than_its_url_is_long() -> None:
    start = time.process_time()
    for part in ("thumb_", ".jpg", "a1", "_hu", "-800x600", "%5f0x", "px-", "a.b/"):
        file_stem("http://a.cn/" + part * (30_000 // len(part)))
    assert time.process_time() - start < 20, "minutes where it looks at a part again and again"


def context(
    page: str = "", url: str = "", alt: str = "", caption: str = "", pixels: int = 0, plain: bool = False
) -> Any:
    words = [(kind, 0, text) for kind, text in (("alt", alt), ("caption", caption)) if text]
    sides, of_plain = np.array([[40, 30]]), np.flatnonzero([plain])
    return contexts_of([page], [url], words, np.array([pixels], np.uint64), sides, of_plain)


@pytest.mark.parametrize(
    ("one", "other", "bond"),
    [
        ({"page": "http://a/p", "plain": True}, {"page": "http://a/q", "plain": True}, 0),
        ({"page": "http://a/p", "plain": True}, {"page": "http://b/p", "plain": True}, 1),
        ({"page": "http://a/p", "plain": True}, {"page": "http://a/q"}, 1),
        ({"page": "http://a/p", "alt": "a", "plain": True}, {"page": "http://a/q", "alt": "a", "plain": True}, 2),
        ({"page": "http://a/p", "pixels": 3, "plain": True}, {"page": "http://a/q", "pixels": 3, "plain": True}, 4),
        ({"plain": True}, {"plain": True}, 1),
        ({}, {}, 1),
        ({"page": "p"}, {"page": "q"}, 1),
        ({"page": "p"}, {"page": "p"}, 0),
        ({"page": "p", "alt": "a"}, {"page": "p", "alt": "a"}, 0),
        ({"alt": "a"}, {"alt": "b"}, 0),
        ({"alt": "a"}, {"caption": "b"}, 0),
        ({"alt": "a"}, {"caption": "a"}, 2),
        ({"alt": "a", "caption": "b"}, {"caption": "a"}, 2),
        ({"alt": "a", "caption": "b"}, {"alt": "c", "caption": "b"}, 2),
        ({"alt": "a"}, {}, 1),
        ({"page": "p", "url": A + "pic.jpg"}, {"page": "p", "url": A + "pic-300x200.png"}, 3),
        ({"page": "p", "url": A + "1.jpg"}, {"page": "p", "url": A + "2.jpg"}, 0),
        ({"alt": "a", "pixels": 5}, {"alt": "b", "pixels": 5}, 4),
        ({"alt": "a", "pixels": 5}, {"alt": "b", "pixels": 6}, 0),
    ],
)
def test_pictures_are_two_by_page_or_words_unless_file_or_pixels_are_one(
    one: dict[str, Any], other: dict[str, Any], bond: int
) -> None:
    first, second = context(**one), context(**other)
    assert bonds(first, second).tolist() == bonds(second, first).tolist() == [bond]
    assert bonds(first[0], np.concatenate([second, first])).tolist() == [bond, int(bonds(first, first)[0])]
    assert (contexts_in(_column(first)) == first).all()


def _column(own: Any) -> Any:
    import pyarrow as pa

    return pa.chunked_array([column_of(own)], CONTEXT)


@pytest.mark.slow
def test_equal_pixels_have_one_digest_and_another_word_has_another() -> None:
    def digest(pixels: Any, form: str, **options: Any) -> int:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, form, **options)
        return int(measure_image(out.getvalue(), 10**7)["pixels"])

    screen = np.full((600, 800, 3), 255, np.uint8)
    screen[100:500, 100:700] = blobs(1, (600, 400)) // 64 * 64
    same = {digest(screen, "PNG"), digest(screen, "WEBP", lossless=True), digest(screen, "BMP")}
    word = screen.copy()
    word[530:542, 300:330] = 0
    assert len(same) == 1
    assert len(same | {digest(word, "PNG"), digest(screen, "JPEG", quality=60)}) == 3
