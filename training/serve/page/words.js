/**
 * Texts of the page in English and Chinese, and the choice of the language.
 *
 * A text is a string, or a function of values. In index.html `data-t` names a text, `data-t-label` an aria-label with the
 * same as a tooltip, `data-t-placeholder` a placeholder.
 */

import { $ } from "./dom.js";

const EN = {
  other: "中文",
  skip: "Skip to the results",
  tagline: "Pictures and Chinese, searched by meaning",
  settings: "Settings",
  keys: "Keyboard shortcuts",
  theme: { auto: "Colours: follow the system", light: "Colours: light", dark: "Colours: dark" },
  askLabel: "Search in Chinese, or paste a picture",
  askHint: "Type Chinese, or drop a picture anywhere",
  choosePicture: "Choose a picture",
  search: "Search",
  findWhat: "What to find",
  target: { image: "Pictures", text: "Texts" },
  byWhat: "Search by",
  mode: { meaning: "Meaning", words: "Words", both: "Both" },
  modeHelp: {
    meaning: "What it is about, whatever the words",
    words: "Exact words, as in a search engine",
    both: "Meaning and words together",
  },
  wordsNeedText: "Type words to search by words",
  none: { image: "This collection has no pictures", text: "This collection has no texts" },
  filters: "Filters",
  filtersOn: "Filters in use",
  clearFilters: "Clear all",
  without: (what) => `Remove filter: ${what}`,
  facet: { source: "Source", license: "Licence", split: "Split" },
  blank: "not stated",
  split: { train: "train", dev: "dev", val: "val" },
  side: "Shorter side",
  anySize: "any",
  atLeast: (n) => `≥ ${n} px`,
  closeness: "Closeness",
  anyScore: "any",
  showCopies: "Show near-copies one by one",
  copiesOn: "near-copies shown",
  results: "Results",
  queryPicture: "The query picture",
  dropHere: "Drop it to start the search",
  dropMany: "Several pictures, a folder, or a text file, become a collection of your own.",
  foot: "Everything stays between this browser and this server. Nothing is requested from anywhere else.",
  // summary
  took: (n, more, ms) => `${more ? `First ${n}` : n} ${n === 1 ? "result" : "results"}${ms === null ? "" : ` · ${ms} ms`}`,
  nearly: "approximate",
  nearlyHelp: "Found through an approximate index; a few true neighbours may be missing.",
  asked: { like: "Like this sample", picture: "For this picture", region: "For a part of the picture" },
  examples: "Try",
  alsoIn: "Same search in",
  start: { image: "Pictures of this collection", text: "Texts of this collection" },
  // cards
  open: (text) => `Open: ${text}`,
  noText: "(no text)",
  grades: ["not close", "loosely related", "related", "close", "very close", "strikingly close"],
  scoreHelp: {
    all: "Closer than every unrelated pair that was measured.",
    one: (n) => `Of unrelated picture–text pairs, only 1 in ${n} is this close.`,
    few: (p) => `Closer than ${p} of unrelated picture–text pairs.`,
  },
  chance: (p) => `Of results this close, ${p} would be here by chance.`,
  nothingClose: "Nothing close: as many would be this near by chance.",
  cosine: (c) => `cosine ${c}`,
  cosineHelp: "Similarity of the two vectors: 1 is identical, 0 is unrelated.",
  uncalibrated: "This checkpoint is not calibrated (wenlan-train calibrate), so only the cosine is known.",
  sameKind: "Scores are calibrated between pictures and texts only; two of a kind show their cosine.",
  wordsScore: (w) => `words ${w}`,
  copies: (n) => `+${n} near-${n === 1 ? "copy" : "copies"}`,
  hideCopies: "Hide the near-copies",
  parts: "Parts",
  partsHelp: "Show the parts of this picture and search by one of them",
  part: (n) => `Search by part ${n}`,
  like: "More like this",
  more: "More",
  end: "End of results.",
  // stage
  wholePicture: "Whole picture",
  pickPart: "Click a part to search by it, or drag to draw a frame.",
  pickPartTouch: "Tap a part to search by it.",
  drawPart: "Draw a frame",
  drawing: "Drag over the picture",
  noParts: "No parts are known for this picture yet.",
  yourPicture: "Your picture",
  aSample: "A sample of this collection",
  removePicture: "Remove the picture",
  removeLike: "Stop searching by this sample",
  // detail
  close: "Close",
  previous: "Previous result",
  next: "Next result",
  texts: "Texts",
  kind: { alt: "alternative text", caption: "caption", title: "title", surrounding: "surrounding text", abstract: "abstract", content: "body", tag: "tag", text: "text" },
  facts: "Facts",
  size: "Size",
  page: "Page",
  leads: (host) => `${host} (leaves this server)`,
  noPage: "unknown",
  id: "Id",
  copyLink: "Copy link",
  copied: "Copied.",
  textsFor: "Texts for this picture",
  picturesFor: "Pictures for this text",
  partsOf: "Parts: search by one of them",
  gone: "This sample is not in the collection (any more).",
  pictureGone: "The picture cannot be shown: it may have been taken down.",
  // collections
  collection: "Collection",
  collections: "Collections",
  yours: "Yours, until the server stops",
  served: "On this server",
  counts: (images, texts) => [images && `${images} pictures`, texts && `${texts} texts`].filter(Boolean).join(", ") || "empty",
  load: "Upload your own",
  loadHelp: "Pictures, or a text file with one text per line (after a tab: its source). They stay in this server's memory, are visible to everyone who can use this server, and are deleted when it stops.",
  name: "Name",
  nameHint: "my pictures",
  choosePictures: "Pictures…",
  chooseFolder: "A folder…",
  chooseText: "A text file…",
  loading: (done, all) => `${done} of ${all} embedded`,
  stop: "Stop",
  stopped: (n) => `Stopped; ${n} were added.`,
  loaded: (n, name) => `“${name}” now contains ${n}.`,
  refused: (n) => `${n} could not be read:`,
  remove: "Delete",
  removeSure: (name) => `Delete “${name}”?`,
  nothingIn: "These files contain neither pictures nor texts.",
  ofTheServer: "That name is taken by a collection of the server; choose another.",
  // shortcuts
  shortcuts: [
    ["/", "type a query"],
    ["Enter", "search; open a result"],
    ["← ↑ ↓ →", "move through results"],
    ["m", "more like this"],
    ["p", "parts of this picture; arrows choose, Enter searches"],
    ["f", "filters"],
    ["c", "collections"],
    ["Esc", "close; leave the parts; clear the picture"],
    ["?", "this list"],
  ],
  // faults
  retry: "Try again",
  faults: {
    gone: "The server does not answer.",
    goneMore: (s) => `It may be restarting. Trying again ${s > 0 ? `in ${s} s` : "now"}…`,
    busy: "The server is busy.",
    slow: "The server is taking longer than usual.",
    slowMore: "Still waiting…",
    timeout: "The server did not answer in time.",
    denied: "This server requires a token.",
    deniedMore: "Open the link that was printed when it started, or enter the token here.",
    refused: "The server rejected the request.",
    broken: "The server failed to process the request.",
    missing: "Not found; it may have been removed.",
    large: "This is too large for the server.",
  },
  token: "Token",
  enter: "Enter",
  cancel: "Cancel",
  wrongFile: (name) => `${name} is not a picture that this browser can read. Use JPEG, PNG, WebP, GIF or AVIF.`,
  tooLarge: (name, most) => `${name} is larger than ${most} MB.`,
  lostPicture: "This link needs a picture that exists only in the browser where it was chosen. Choose or drop it here.",
  nothing: "Nothing found.",
  nothingWords: "No text contains these words. Searching by meaning does not need the exact words.",
  nothingFilters: "The filters exclude every result.",
  byMeaning: "Search by meaning",
  noCollections: "This server has no collection yet.",
  noCollectionsMore: "Start it with --index DIR, or upload pictures or a text file.",
};

const ZH = {
  other: "English",
  skip: "跳到结果",
  tagline: "以意寻图，以图寻文",
  settings: "设置",
  keys: "键盘快捷键",
  theme: { auto: "配色：跟随系统", light: "配色：浅色", dark: "配色：深色" },
  askLabel: "输入文字搜索，或粘贴图片",
  askHint: "输入文字，或把图片拖到这里",
  choosePicture: "选择图片",
  search: "搜索",
  findWhat: "找什么",
  target: { image: "图片", text: "文本" },
  byWhat: "依据",
  mode: { meaning: "语义", words: "字词", both: "两者" },
  modeHelp: { meaning: "按意思找，不必字面相同", words: "按字词找，如同搜索引擎", both: "意思与字词并用" },
  wordsNeedText: "输入文字后才能按字词搜索",
  none: { image: "这个图库没有图片", text: "这个图库没有文本" },
  filters: "筛选",
  filtersOn: "已用的筛选",
  clearFilters: "全部清除",
  without: (what) => `去掉筛选：${what}`,
  facet: { source: "来源", license: "许可", split: "划分" },
  blank: "未注明",
  split: { train: "训练", dev: "开发", val: "验证" },
  side: "短边",
  anySize: "不限",
  atLeast: (n) => `≥ ${n} 像素`,
  closeness: "接近程度",
  anyScore: "不限",
  showCopies: "逐一显示近似副本",
  copiesOn: "显示近似副本",
  results: "结果",
  queryPicture: "用来搜索的图片",
  dropHere: "松开即搜",
  dropMany: "多张图片、一个文件夹或一个文本文件，会成为你自己的图库。",
  foot: "一切只在此浏览器与此服务器之间，不向别处请求任何东西。",
  took: (n, more, ms) => `${more ? `前 ${n}` : `${n}`} 条${ms === null ? "" : ` · ${ms} 毫秒`}`,
  nearly: "近似检索",
  nearlyHelp: "经由近似索引查找，可能漏掉少数真正的近邻。",
  asked: { like: "与此样本相似", picture: "以图搜索", region: "以局部搜索" },
  examples: "试试",
  alsoIn: "换个图库搜索",
  start: { image: "图库中的图片", text: "图库中的文本" },
  open: (text) => `打开：${text}`,
  noText: "（无文本）",
  grades: ["不接近", "略有关联", "有关", "接近", "非常接近", "极为吻合"],
  scoreHelp: {
    all: "比测过的所有无关图文都更接近。",
    one: (n) => `每 ${n} 对无关图文中，只有 1 对这样接近。`,
    few: (p) => `比 ${p} 的无关图文更接近。`,
  },
  chance: (p) => `这样接近的结果中，约 ${p} 属于偶然。`,
  nothingClose: "没有接近的：偶然也会有这么多这样近的。",
  cosine: (c) => `余弦 ${c}`,
  cosineHelp: "两个向量有多相像：1 为相同，0 为毫无共同之处。",
  uncalibrated: "这个检查点没有分数的背景分布（wenlan-train calibrate），只知道余弦。",
  sameKind: "分数只在图与文之间校准；同类之间请看余弦。",
  wordsScore: (w) => `字词 ${w}`,
  copies: (n) => `另有 ${n} 个近似副本`,
  hideCopies: "收起近似副本",
  parts: "局部",
  partsHelp: "显示这张图片的各个局部，用其中之一搜索",
  part: (n) => `用局部 ${n} 搜索`,
  like: "找相似",
  more: "更多",
  end: "到底了。",
  wholePicture: "整张图片",
  pickPart: "点一个局部，就用它搜索；也可以自己拖出一个框。",
  pickPartTouch: "点一个局部，就用它搜索。",
  drawPart: "自己画框",
  drawing: "在图片上拖动",
  noParts: "还不知道这张图片有哪些局部。",
  yourPicture: "你的图片",
  aSample: "图库中的样本",
  removePicture: "移除图片",
  removeLike: "不再用这个样本搜索",
  close: "关闭",
  previous: "上一条",
  next: "下一条",
  texts: "文本",
  kind: { alt: "替代文字", caption: "说明", title: "标题", surrounding: "周围文字", abstract: "摘要", content: "正文", tag: "标签", text: "文本" },
  facts: "信息",
  size: "尺寸",
  page: "网页",
  leads: (host) => `${host}（离开本服务器）`,
  noPage: "不详",
  id: "编号",
  copyLink: "复制链接",
  copied: "已复制。",
  textsFor: "为此图找文",
  picturesFor: "为此文找图",
  partsOf: "局部：点选其一来搜索",
  gone: "这个样本不在图库中（或已不在）。",
  pictureGone: "图片无法显示：可能已被撤下。",
  collection: "图库",
  collections: "图库",
  yours: "你的，服务器停止前有效",
  served: "本服务器提供",
  counts: (images, texts) => [images && `${images} 张图片`, texts && `${texts} 条文本`].filter(Boolean).join("，") || "空",
  load: "载入自己的图库",
  loadHelp: "若干图片，或每行一条的文本文件（制表符之后写出处）。只存于这台服务器的内存，能用此服务器的人都看得到，服务器停止即消失。",
  name: "名称",
  nameHint: "我的图片",
  choosePictures: "图片…",
  chooseFolder: "文件夹…",
  chooseText: "文本文件…",
  loading: (done, all) => `已处理 ${done} / ${all}`,
  stop: "停止",
  stopped: (n) => `已停止，收入 ${n} 条。`,
  loaded: (n, name) => `“${name}”现有 ${n} 条。`,
  refused: (n) => `${n} 个无法读取：`,
  remove: "删除",
  removeSure: (name) => `删除“${name}”？`,
  nothingIn: "这些文件里没有图片，也没有文本。",
  ofTheServer: "服务器已有同名图库，请换一个名称。",
  shortcuts: [
    ["/", "输入搜索内容"],
    ["Enter", "搜索；打开结果"],
    ["← ↑ ↓ →", "在结果间移动"],
    ["m", "找相似"],
    ["p", "图片的局部；方向键选择，Enter 搜索"],
    ["f", "筛选"],
    ["c", "图库"],
    ["Esc", "关闭；退出局部；移除图片"],
    ["?", "本列表"],
  ],
  retry: "重试",
  faults: {
    gone: "服务器没有回应。",
    goneMore: (s) => `可能正在重启。${s > 0 ? `${s} 秒后` : "正在"}重试…`,
    busy: "服务器正忙。",
    slow: "服务器比平时慢。",
    slowMore: "仍在等待…",
    timeout: "服务器没有及时回应。",
    denied: "此服务器需要令牌。",
    deniedMore: "请打开服务器启动时显示的链接，或在此输入令牌。",
    refused: "服务器拒绝了请求。",
    broken: "服务器处理出错。",
    missing: "它不在（或已不在）这里。",
    large: "超过了服务器一次能接受的大小。",
  },
  token: "令牌",
  enter: "确定",
  cancel: "取消",
  wrongFile: (name) => `${name} 不是浏览器能读取的图片。可用 JPEG、PNG、WebP、GIF、AVIF。`,
  tooLarge: (name, most) => `${name} 超过 ${most} MB。`,
  lostPicture: "这个链接所用的图片只存在于选择它的浏览器里。请在此选择或拖入那张图片。",
  nothing: "没有找到。",
  nothingWords: "没有文本含有这些字词。按语义搜索不必字面相同。",
  nothingFilters: "筛选之后没有剩下的了。",
  byMeaning: "按语义搜索",
  noCollections: "此服务器还没有图库。",
  noCollectionsMore: "启动时加上 --index DIR，或在此载入自己的图片或文本文件。",
};

const TABLES = { en: EN, zh: ZH };
const heard = [];

/** The language of the page, "en" or "zh". */
export const language = () => (document.documentElement.lang === "zh" ? "zh" : "en");

/** A text by its name ("mode.words" for one in a table), with values if it takes some. */
export function t(name, ...values) {
  let found = TABLES[language()];
  for (const part of name.split(".")) found = found[part];
  return typeof found === "function" ? found(...values) : found;
}

/** A text of a table whose names come from data (a kind, a split): the name itself where the table lacks it. */
export const named = (table, name) => TABLES[language()][table][name] ?? name;

/** A number as people write it. */
export const number = (value, digits = 0) =>
  new Intl.NumberFormat(language() === "zh" ? "zh-CN" : "en", { maximumFractionDigits: digits }).format(value);

/** Call `listener` whenever the language has changed. */
export const onLanguage = (listener) => heard.push(listener);

/** Whether both tables say the same things; a test asks. */
export const missing = () => {
  const names = (table) => Object.entries(table).flatMap(([key, value]) => (value?.constructor === Object ? Object.keys(value).map((sub) => `${key}.${sub}`) : [key]));
  const [en, zh] = [names(EN), names(ZH)];
  return [...en.filter((name) => !zh.includes(name)), ...zh.filter((name) => !en.includes(name))];
};

function write() {
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) {
    node.setAttribute("aria-label", t(node.dataset.tLabel));
    if (node.matches("button")) node.title = t(node.dataset.tLabel);
  }
  for (const node of document.querySelectorAll("[data-t-placeholder]")) node.placeholder = t(node.dataset.tPlaceholder);
  $("language").textContent = t("other");
  $("language").lang = language() === "zh" ? "en" : "zh";
}

/** Write all texts, and let the button `language` switch. */
export function speak() {
  write();
  $("language").addEventListener("click", () => {
    document.documentElement.lang = language() === "zh" ? "en" : "zh";
    keep("wenlan-language", language());
    write();
    for (const listener of heard) listener();
  });
}

const THEMES = ["auto", "light", "dark"];

/** Let the button `theme` go round: as the system, light, dark. */
export function colour() {
  const root = document.documentElement;
  const label = () => {
    const text = t(`theme.${root.dataset.theme ?? "auto"}`);
    $("theme").setAttribute("aria-label", text);
    $("theme").title = text;
  };
  $("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    keep("wenlan-theme", next);
    label();
  });
  onLanguage(label);
  label();
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // a browser that keeps nothing for this page: the choice holds until it is closed
  }
}
