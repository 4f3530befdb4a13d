"""site_rules: where known sites keep article, title and captions."""

from __future__ import annotations

from pipeline.pages.page import parse


def test_a_site_rule_says_where_article_title_and_captions_are():
    from pipeline.pages.site_rules import rule_of, rules

    page = """<title>公众号</title><h1 id=activity-name> 春天的苏州 </h1><div id=js_content>
        <p>园中一景</p><img data-src=/a.jpg><div class=qr_code_pc>扫码<img src=/qr.jpg></div></div>
        <p>猜你喜欢</p><img src=/other.jpg>"""
    rule = rule_of("https://mp.weixin.qq.com/s/abc")
    assert rule is not None
    [image] = parse(page, rule).images
    assert (image.url, {t.text for t in image.texts if t.kind == "title"}) == ("/a.jpg", {"春天的苏州"})
    assert len(parse(page).images) == 3
    assert len(parse("<p>别的页面<img src=/b.jpg>", rule).images) == 1, "a rule that does not fit changes nothing"
    caption = '<div class="lemma-picture"><img src=/c.jpg><span class="description">留园冠云峰</span></div>'
    [image] = parse(caption, rule_of("https://baike.baidu.com/item/x")).images
    assert ("caption", "留园冠云峰") in {(t.kind, t.text) for t in image.texts}
    assert rule_of("https://news.sina.com.cn/x") is rules()["sina.com.cn"]
    assert rule_of("https://notsina.com.cn/x") is None
    for known in set(rules().values()):
        parse("<body><p>字</p>", known)  # every selector is one
