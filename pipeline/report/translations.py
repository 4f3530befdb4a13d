"""Chinese names of reasons, for the report; a stage knows its own. The names of the code stay beside them."""

from __future__ import annotations

from pipeline.store.stage import Stages

REASONS = {
    "robots_disallowed": "robots 禁止",
    "robots_unreachable": "robots 无法读取",
    "opt_out": "声明退出",
    "egress_refused": "地址被拒",
    "http_status": "HTTP 错误",
    "timeout": "超时",
    "connection": "连接失败",
    "too_many_redirects": "重定向过多",
    "too_large": "过大",
    "not_html": "不是网页",
    "over_budget": "超出预算",
    "trap": "无尽页面",
    "unreadable": "无法解析",
    "cap_per_page": "超出每页图片上限",
    "cap_per_host": "超出每个网站图片上限",
    "bad_charset": "编码无法识别",
    "bad_url": "地址无效",
    "bad_row": "行无法读取",
    "data_uri": "内嵌图像",
    "spacer": "图标或占位图",
    "no_text": "没有文本",
    "repeated_on_page": "页面内重复",
    "forgotten": "已下架",
    "same_candidate": "同一候选",
    "cap_per_image_url": "同图址上限",
    "text_too_short": "文本过短",
    "text_too_long": "文本过长",
    "low_han_share": "汉字过少",
    "not_chinese": "非中文",
    "boilerplate": "套话",
    "repetition": "重复字句",
    "advertisement": "广告",
    "listed_word": "词表命中",
    "personal_data": "个人信息",
    "empty_body": "空内容",
    "not_an_image": "不是图像",
    "too_many_pixels": "像素过多",
    "corrupt_image": "图像损坏",
    "not_stored": "未存储",
    "image_too_small": "图像过小",
    "image_too_large": "图像过大",
    "image_aspect": "长宽比异常",
    "image_blank": "空白图像",
    "image_blurred": "图像模糊",
    "image_entropy": "灰阶过少",
    "image_animated": "动图",
    "known": "已在数据集中",
    "same_image": "相同图像",
    "near_image": "近似图像",
    "placeholder": "占位图",
    "cap_per_text": "同文本上限",
    "cap_per_domain": "同域名上限",
    "other_split": "文本属于其他划分",
    "nsfw": "不宜展示",
    "text_heavy": "文字过多",
    "kept": "保留",
}


def zh(name: str, stages: Stages) -> str:
    """The Chinese name of a stage or a reason; the name itself where there is none."""
    return stages[name].zh if name in stages else REASONS.get(name, name)
