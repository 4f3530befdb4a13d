"""Words of the report in both languages: reasons, stages, and the phrases used in evidence.

A reason's name in the code stays beside its words, as their title. Evidence is written once, in English, by whatever
drops (`DECISION_SCHEMA`), and put into Chinese here phrase by phrase.

Limits: what a parser or a server said is quoted as it is.
"""

from __future__ import annotations

import re

from pipeline.rows.account import Named
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Stages

REASONS = {reason.value: (reason.en, reason.zh) for reason in DropReason} | {"kept": ("kept", "保留")}
"""English and Chinese words of each reason."""

KINDS = {
    "caption": ("caption", "图注"),
    "alt": ("alt text", "替代文字"),
    "surrounding": ("nearby text", "邻近正文"),
    "title": ("page title", "网页标题"),
    "abstract": ("page summary", "网页摘要"),
    "content": ("page text", "网页正文"),
    "tag": ("keyword", "标签"),
}
"""English and Chinese words of each kind of text."""

INPUT = {
    "files": ("files", "个文件"),
    "lines": ("lines", "行"),
    "rows": ("rows", "行"),
    "members": ("members", "个成员"),
    "records": ("records", "条记录"),
    "images": ("images", "处图像"),
    "pictures of posts": ("pictures of posts", "张帖文图片"),
    "entries": ("entries", "个条目"),
    **{named.value: (named.value, named.zh) for named in Named},
}
"""English and Chinese words of units of the raw input, and of what is neither a candidate nor a decision."""

_N = r"([\d.,]*\d%?)"
_THINGS = {
    "pages": "页面", "candidates": "候选", "images (by a detector)": "图像（检测器）", "bytes": "字节", "files": "文件",
}  # fmt: skip


def _unreadable(found: re.Match[str]) -> str:
    count, total, things, source, share = found.groups()
    return f"{source} 的 {total} 个{_THINGS[things]}中 {count} 个无法解析（{share}）"


_START = r"(?<![\w.])"
_PHRASES = [
    (re.compile(rf"{'' if phrase[0] == ',' else _START}{phrase}(?!\w)"), words)
    for phrase, words in (
        (rf"{_N} samples were kept in addition to {_N} of earlier builds", r"保留 \1 个样本，早先构建另有 \2 个"),
        (rf"{_N} (new )?samples were kept", lambda m: f"保留 {m[1]} 个{'新' if m[2] else ''}样本"),
        (rf"{_N} of {_N} candidates were dropped \({_N}\)", r"\2 个候选中丢弃 \1 个（\3）"),
        (rf"(\w+) dropped {_N} of {_N} pages of (\S+) \({_N}\)", r"\1 阶段丢弃来源 \4 的 \3 个页面中的 \2 个（\5）"),
        (
            rf"(\w+) dropped {_N} of {_N} candidates of (\S+) \({_N}\)",
            r"\1 阶段丢弃来源 \4 的 \3 个候选中的 \2 个（\5）",
        ),
        (
            rf"{_N} of {_N} (pages|candidates|images \(by a detector\)|bytes|files) of (.+?) are unreadable \({_N}\)",
            _unreadable,
        ),
        (
            rf"{_N} of {_N} (\w+) of (.+?) are unaccounted for \({_N}\)",
            lambda m: f"{m[4]} 的 {m[2]} {INPUT.get(m[3], m.groups()[2:3] * 2)[1]}中 {m[1]} 去向不明（{m[5]}）",
        ),
        (r"for example", "例如"),
        (r"the log has a traceback of each kind", r"日志中每类错误有一份回溯"),
        (r"the report lists what damage cost", r"报告列出损坏造成的损失"),
        (rf"the primary texts of {_N} of the samples are fallbacks", r"\1 的样本主文本为替补"),
        (rf"{_N} of the samples come from (\S+?)(?=,)", r"\1 的样本来自 \2"),
        (rf"(\S+) detected {_N} regions per image", r"\1 平均每幅图像检测到 \2 个区域"),
        (rf"(\S+) has moved by {_N} since (\S+?)(?=,)", r"\1 自 \3 以来变化 \2"),
        (rf"moved most since (\S+): (\S+) {_N}(?=,)", r"自 \1 以来变化最大：\2 \3"),
        (rf",? ?the spec requires {_N}", r"；规格要求 \1"),
        (rf",? ?the spec allows {_N}", r"；规格允许 \1"),
        (rf",? ?expected at most {_N}", r"；预期最多 \1"),
        (rf"the best {_N} of (\S+) have at least (-?[\d.]+)", r"\2 最好的 \1 不低于 \3"),
        (r"correlation (-?[\d.]+) with the mark of (\S+) at (\d+) x (\d+)", r"与 \2（\3 × \4）水印的相关度 \1"),
        (r"(\d+) x (\d+) pixels", r"\1 × \2 像素"),
        (rf"each side needs {_N}", r"每边至少 \1"),
        (rf"at most {_N} are allowed", r"最多 \1"),
        (rf"{_N} are allowed", r"最多 \1"),
        (rf"at most {_N}", r"最多 \1"),
        (rf"at least {_N}", r"至少 \1"),
        (rf"needs {_N}", r"至少 \1"),
        (rf"{_N} to 1", r"\1 比 1"),
        (rf"{_N} unknown characters", r"\1 个生僻字符"),
        (rf"{_N} characters", r"\1 个字符"),
        (rf"{_N} nouns", r"\1 个名词"),
        (r"(\d+) of (\d+) words are content words", r"\2 个词中 \1 个是实词"),
        (r"(\d+) of (\d+) words are stop words", r"\2 个词中 \1 个是停用词"),
        (rf"{_N} words", r"\1 个词"),
        (r"(\d+) of (\d+) letters are Han", r"\2 个字母中 \1 个是汉字"),
        (r"(\d+) of (\d+) letters are", r"\2 个字母中 \1 个是"),
        (r"(\d+) of (\d+) three-letter sequences are repeats", r"\2 个三字序列中 \1 个前面出现过"),
        (r"(\d+) times in a row", r"连续 \1 次"),
        (r"(\d+) kana or hangul", r"\1 个假名或谚文"),
        (rf"Japanese according to the model, confidence {_N}", r"模型判为日文（把握 \1）"),
        (rf"{_N} of the picture in one grey level", r"画面的 \1 为同一灰度"),
        (rf"{_N} bytes", r"\1 字节"),
        (rf"entropy {_N} bits", r"熵 \1 比特"),
        (r"entropy ([\d.e-]+);", r"熵 \1；"),
        (rf"sharpness {_N}", r"清晰度 \1"),
        (rf"{_N} frames", r"\1 帧"),
        (r"pair score (-?[\d.]+)", r"图文得分 \1"),
        (r"cosine distance ([\d.]+) from (?:the|an earlier build's) picture", r"与其图像的余弦距离 \1"),
        (r"not scored: a tower failed on its image or text", "未打分：模型无法处理其图像或文本"),
        (rf"score {_N}", r"得分 \1"),
        (rf"text covers {_N}", r"文字占 \1"),
        (rf"QR codes cover {_N}", r"二维码占 \1"),
        (r"(\d+) faces", r"\1 张人脸"),
        (r"faces could not be detected", r"未能检测人脸"),
        (rf"detail of {_N} of its side", r"细节相当于其边长的 \1"),
        (r"(\d+) candidates for one image URL", r"同一图址有 \1 个候选"),
        (r"(\d+) pairs with this or nearly this text are already kept", r"已保留 \1 个文本相同或相近的图文对"),
        (r"an image with more than (\d+) different texts", r"同一图片配有 \1 种以上的文本"),
        (r"its image is already in the dataset", "数据集已知此图像"),
        (r"all its texts, or near-copies of them, are in another split than its image", "其文本均属于其他划分"),
        (r"same bytes as", "字节相同："),
        (r"looks like", "看起来像"),
        (r", which an earlier build kept", "（早先构建已保留）"),
        (r"a file name", "文件名"),
        (r"a number or an ID", "数字或编号"),
        (r"a URL", "网址"),
        (r"no URL", "没有地址"),
        (r"repeated on (\d+) pages", r"出现在 \1 个页面上"),
        (r"only texts that are repeated on many pages", "只有在许多页面上出现的文本"),
        (r"the page has more than (\d+) images", r"页面图像多于 \1 个"),
        (r"has more than (\d+) images", r"图像多于 \1 个"),
        (r"texts went to the first", "文本已转给首个候选"),
        (r"cover in a list; its own page is", "出现在列表中；其所属页面："),
        (r"lists (.+), which is not a picture in the folder", r"提到 \1，文件夹中没有这张图片"),
        (rf"only the ({'|'.join(KINDS)}) of its page is left", lambda m: f"只剩{KINDS[m[1]][1]}"),
        (r"not in an archive or STORE, and this build sends no requests", "存档与 STORE 中均没有，且此构建不发送请求"),
        (r"starts with (?=')", "开头为 "),
        (r"cannot be read", "无法读取"),
        (r"its source no longer contains this picture", "来源中已没有这张图片"),
        (r"pictures cannot be read by this installation:", "图片：本机未安装读取组件："),
        (r", then build again", "，然后重新构建"),
        (r"mobile", "手机号"),
        (r"landline", "座机号"),
        (r"id_card", "身份证号"),
        (r"bank_card", "银行卡号"),
        (r"email", "邮箱"),
        (r"plate", "车牌号"),
        (r"a telephone number", "电话号码"),
        (r"its text is a fallback", "文本为替补"),
        (r"better ones removed: (\d+)", r"已去除更好的 \1 个"),
    )
]


def en(name: str) -> str:
    """The English words of a reason or a kind of text; the name itself for a stage, and for an unknown reason."""
    return next((words[name][0] for words in (REASONS, KINDS, INPUT) if name in words), name)


def zh(name: str, stages: Stages) -> str:
    """The Chinese name of a stage, a reason or a kind of text; the name itself where there is none."""
    return stages[name].zh if name in stages else next((w[name][1] for w in (REASONS, KINDS, INPUT) if name in w), name)


def evidence_zh(evidence: str) -> str:
    """Evidence in Chinese, phrase by phrase; what is not a known phrase stays as it is."""
    for phrase, words in _PHRASES:
        evidence = phrase.sub(words, evidence)
    return evidence.replace("; ", "；")
