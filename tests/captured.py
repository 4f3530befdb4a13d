"""Pages as a crawl captured them, for tests of what reads them."""

from __future__ import annotations

from pipeline.rows.records import Capture

URL = "http://a.test/x/page.html"
ARTICLES = 22
"""Pages that `article` has words for."""


def capture(html: str | bytes, url: str = URL, kind: str = "text/html", status: int = 200, **headers: str) -> Capture:
    """A response of a site; `headers` are those beside the content type."""
    body = html if isinstance(html, bytes) else html.encode()
    return Capture(url, status, "2026-01-01T00:00:00Z", kind, body, tuple(headers.items()))


def article(number: int) -> tuple[str, str]:
    """A page of its own words with one picture."""
    words = "北京上海广州深圳天津重庆成都武汉西安南京杭州苏州青岛大连厦门长沙昆明贵阳兰州银川拉萨海口"[
        2 * number : 2 * number + 2
    ]
    html = f"<h1>{words}的雪</h1><p>今天{words}下了第一场雪<img src=/i/{number}.jpg alt={words}的雪景>"
    return f"http://a.test/{number}.html", html + "<img src=/top.jpg alt=栏目>"


def trap(day: int, pictures: list[int], own: str = "") -> tuple[str, str]:
    """A page of a calendar that shows pictures of articles."""
    shown = "".join(f"<img src=/i/{number}.jpg alt=推荐图片>" for number in pictures)
    return f"http://a.test/day/{day}", f"<h1>第{day}日的日历</h1><p>今天是{day}日{own}</p>{shown}"
