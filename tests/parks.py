"""A small site of a park: pages with a picture each, whose text names the picture's number."""

from __future__ import annotations

from PIL import Image

from tests.drawn import blobs, encoded

PAGES = 6


def page(n: int, head: str = "") -> bytes:
    text = f"这是第{n}个页面的图片，拍摄于{'春夏秋冬晨昏'[n]}天的公园里，湖边有很多人在散步"
    return f"<html><head>{head}</head><body><p>{text}</p><img src='/{n}.jpg' alt='{text}'></body></html>".encode()


def picture(n: int) -> bytes:
    return encoded(Image.fromarray(blobs(n, (320, 240))))
