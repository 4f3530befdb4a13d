"""head: the title of an article among those that a page has, and what else its head says."""

from __future__ import annotations

from selectolax.lexbor import LexborHTMLParser

from pipeline.pages.head import elements_of
from pipeline.pages.page import parse
from tests.parsed import texts


def test_the_headline_is_the_title_else_what_the_head_says_without_the_name_of_the_site():
    assert texts("<title>网站</title><header><h1>网站名</h1></header><h1>正文标题</h1><img src=a.jpg>")["title"] == [
        "正文标题"
    ]
    for behind in ("_新浪新闻", " · 某人的博客"):
        assert texts(f"<title>故宫雪景{behind}</title><img src=a.jpg>")["title"] == ["故宫雪景"]
    assert texts("<meta property=og:title content=题><title>x</title><img src=a.jpg>")["title"] == ["题"]
    series = "微生物学|质粒驱动的耐药性进化"
    assert title(f"<title>{series}</title>") == series, "a journal or a series stands before, and no site behind"
    whole = "搭建管理系统 - 某人的博客"
    assert title(f"<meta property=og:title content='{whole}'><title>{whole}</title>") == "搭建管理系统"


def title(html: str) -> str:
    return "".join(texts(f"{html}<img src=a.jpg>").get("title", []))


def test_of_several_headlines_the_title_is_the_one_that_the_head_names():
    sections = "<h1>准备工作</h1><p>一</p><h1>用 Docker 部署博客</h1><p>二</p><h1>小结</h1>"
    assert title(f"<title>用 Docker 部署博客 - 某人的博客</title>{sections}") == "用 Docker 部署博客"
    assert title(f"<meta property=og:title content='用 Docker 部署博客 | 某站'>{sections}") == "用 Docker 部署博客"
    assert title(f"<title>容器入门 - 某人的博客</title>{sections}") == "容器入门", "no section is the article"
    assert title(f"<title>某站 - 用 Docker 部署博客</title>{sections}") == "用 Docker 部署博客"
    assert title("<title>安装说明书 - 某站</title><h1>安装</h1><h1>使用</h1>") == "安装说明书", "安装 is a word of many"
    assert title(sections) == "准备工作", "there is nothing else to go by"


def test_the_name_of_the_site_is_no_title_though_it_be_the_only_headline():
    head = "<meta property=og:site_name content=某站><title>故宫雪景 - 某站</title>"
    assert title(f"{head}<h1>某站</h1>") == "故宫雪景"
    assert title(f"{head}<h1>某站</h1><h1>故宫雪景</h1>") == "故宫雪景"
    assert title("<meta property=og:site_name content=某站><title>某站</title><h1>某站</h1>") == "某站"
    assert title("<title>某站 - 首页</title><h1>雪后的故宫</h1>") == "雪后的故宫", "one headline that is not the site's"


def test_head_gives_abstract_robots_base_and_the_page_image():
    page = parse(
        "<html lang=zh-CN><head><base href='/b/'><meta name=robots content=noai><meta name=googlebot content=noindex>"
        "<meta name=description content='一段 摘要'><meta property=og:image content=/o.jpg></head><img src=a.jpg>"
    )
    assert (page.base, page.robots, page.language) == ("/b/", ("noai", "googlebot: noindex"), "zh-cn")
    assert [(image.row, image.url) for image in page.images] == [(0, "a.jpg"), (-1, "/o.jpg")]
    assert [t.text for t in page.images[1].texts if t.kind == "abstract"] == ["一段 摘要"]


def test_elements_of_the_head_are_found_anywhere_but_in_templates():
    html = (
        "<title>a</title><body><svg><title>b</title></svg><template><meta name=x><img></template>"
        "<p><meta name=y><a rel='z tag'>"
    )
    found = elements_of(LexborHTMLParser(html + "<a rel=tags>c</a><script>1</script><base href=d><img src=e>"))
    assert {tag: [node.html for node in nodes] for tag, nodes in found.items()} == {
        "meta": ['<meta name="y">'],
        "base": ['<base href="d">'],
        "img": ['<img src="e">'],
        "title": ["<title>a</title>", "<title>b</title>"],
        "script": ["<script>1</script>"],
        "a": ['<a rel="z tag"></a>'],
        "": [],
    }
