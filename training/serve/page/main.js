/**
 * The page of `wenlan-train serve`: one query, its address, and what is drawn of it.
 *
 * The query (state.js) is the one source: every control changes it through `go`, which writes the address and draws anew
 * what follows from it. Going back reads the address and does the same.
 */

import * as api from "./api.js";
import { pickable } from "./cards.js";
import { areMany, Collections, dropped } from "./collections.js";
import { detail, lost } from "./detail.js";
import { $, announce, h, icon, show } from "./dom.js";
import { filterPanel, WITHOUT } from "./filters.js";
import { recall, take } from "./pictures.js";
import { faultWords, notice, Results } from "./results.js";
import { ofOwn, ofSample, stage } from "./stage.js";
import { address, asks, changed, crosses, filtersOn, fromAddress, NOTHING, sameAnswer } from "./state.js";
import { colour, onLanguage, speak, t } from "./words.js";

let query = fromAddress(location.search);
const known = new Map();
const pictured = new Map();

const results = new Results({
  open: (hit) => go({ open: hit.id }, { opened: true }),
  like,
  region: (hit, box) => go({ like: hit.id, region: box, open: "" }),
  answered,
  lostPicture: () => notice(t("lostPicture"), "", [[t("choosePicture"), () => $("file").click()]]),
  missing: () => reload(),
  meaning: () => go({ mode: "meaning" }),
  unfiltered: () => go(WITHOUT),
  settings,
});
const collections = new Collections({ choose: enter, changed: reload });

/** The record of the collection that is searched; {} before it is known. */
const record = () => collections.of(query.collection) ?? {};

function settings() {
  return { calibrated: record().calibrated ?? true, texts: Math.max(0, ...collections.list.map((one) => one.texts)), images: Math.max(0, ...collections.list.map((one) => one.images)) };
}

/** Change the query: a new entry of the history, or another form of this one. */
function go(change, { replace = false, opened = false, again = false } = {}) {
  const before = query;
  query = changed(query, change);
  const same = address(query) === address(before);
  history[replace || same ? "replaceState" : "pushState"]({ opened: opened || (replace && history.state?.opened) }, "", address(query));
  draw(before, again);
}

function draw(before, again = false) {
  controls();
  if (!before || again || !sameAnswer(before, query)) {
    if (before && !sameAnswer(before, query)) toTop();
    drawStage();
    if (query.collection) results.ask(query, { fresh: again });
    else nowhere();
  }
  drawDetail();
}

/** The top of the results, where a new list begins. */
function toTop() {
  if (scrollY > 0) scrollTo({ top: 0, behavior: "instant" });
}

const asking = () => asks(query);

function controls() {
  const one = record();
  document.body.classList.toggle("start", !asking() && !filtersOn(query));
  document.title = [query.text || (query.region ? t("asked.region") : query.picture ? t("asked.picture") : query.like ? t("asked.like") : ""), "文澜 WenLan"].filter(Boolean).join(" · ");
  if (document.activeElement !== $("text") || !$("text").matches(":focus")) $("text").value = query.text;
  show($("collection"), h("span", { class: "hide" }, `${t("collection")}: `), h("b", {}, query.collection || t("collections")), icon("down"));
  radios("target", ["image", "text"], query.target, (value) => (one.name && !one[`${value}s`] ? t(`none.${value}`) : ""));
  radios("mode", ["meaning", "words", "both"], query.mode, (value) => (value !== "meaning" && !query.text ? t("wordsNeedText") : ""));
  const focused = [...$("filters").querySelectorAll("input, select")].indexOf(document.activeElement);
  filterPanel(query, one, (one.calibrated ?? false) && crosses(query), (change) => go(change));
  if (focused >= 0) $("filters").querySelectorAll("input, select")[focused]?.focus();
  chip();
}

function radios(name, values, current, unfit) {
  const field = $(name);
  if (field.dataset.lang !== document.documentElement.lang) {
    field.dataset.lang = document.documentElement.lang;
    const set = (value) => go(name === "mode" ? { mode: value, text: $("text").value.trim() || query.text } : { [name]: value });
    show(field, field.querySelector("legend"), values.map((value) =>
      h("label", {}, h("input", { type: "radio", name, value, on: { change: () => set(value) } }), h("span", {}, t(`${name}.${value}`)))));
  }
  for (const input of field.querySelectorAll("input")) {
    input.checked = input.value === current;
    const why = unfit(input.value);
    input.disabled = Boolean(why);
    input.parentNode.title = why || (name === "mode" ? t(`modeHelp.${input.value}`) : "");
  }
}

/** The picture that is asked with, as a chip in the bar. */
async function chip() {
  const node = $("query-chip");
  const [asked, name] = [query, query.picture ? "removePicture" : "removeLike"];
  node.hidden = !(query.picture || query.like);
  if (node.hidden) return node.replaceChildren();
  const url = query.picture ? (await recall(query.picture))?.url : await sampleOf(query.like).then((hit) => hit.image && api.picture(hit, 160), () => null);
  if (asked !== query) return undefined;
  const image = url ? h("img", { src: url, alt: t(query.picture ? "yourPicture" : "aSample") }) : icon("picture");
  return show(node, image, h("button", { type: "button", title: t(name), "aria-label": t(name), on: { click: unpicture } }, icon("close")));
}

function unpicture() {
  go({ picture: "", like: "", region: null });
  $("text").focus();
}

/** The hit of a sample of this collection: known already, or asked for. */
async function sampleOf(id) {
  const name = JSON.stringify([query.collection, id]);
  if (!known.has(name)) known.set(name, await api.sample(query.collection, id));
  return known.get(name);
}

async function drawStage() {
  const asked = query;
  const actions = { region: (box) => go({ region: box }), close: unpicture };
  let shown = null;
  if (query.picture) {
    const own = await recall(query.picture);
    shown = own && ofOwn(own, pictured.get(query.picture));
  } else if (query.like) {
    const hit = await sampleOf(query.like).catch(() => null);
    shown = hit?.image ? ofSample(hit) : null;
  }
  if (asked === query || sameAnswer(asked, query)) stage(shown, query.region, actions);
}

function answered(asked, answer) {
  for (const hit of answer.hits) known.set(JSON.stringify([asked.collection, hit.id]), hit);
  if (asked.picture && answer.query && !pictured.get(asked.picture)?.boxes.length) {
    pictured.set(asked.picture, answer.query);
    drawStage();
  }
  if (asking()) elsewhere();
  else examples(answer.hits);
  if (document.activeElement === document.body) $("results").focus({ preventScroll: true });
  if (query.open) drawDetail();
}

/** A few short texts of the collection, to begin with. */
function examples(hits) {
  const texts = [...new Set(hits.map((hit) => hit.text.replace(/[。．.！!]+$/u, "")).filter((text) => text.length > 1 && text.length <= 12))].slice(0, 7);
  if (!texts.length) return;
  $("summary").append(h("p", { class: "examples" }, h("span", {}, t("examples")), texts.map((text) => h("button", { type: "button", lang: "zh", on: { click: () => ask(text) } }, text))));
}

/** The same query in the other collections: a picture's verse, a verse's picture. */
function elsewhere() {
  const others = collections.list.filter((one) => one.name !== query.collection && one.rows > 0).slice(0, 6);
  if (!others.length) return;
  $("summary").append(h("p", { class: "elsewhere" }, h("span", {}, t("alsoIn")), others.map((one) => h("button", { type: "button", on: { click: () => enter(one.name) } }, one.name))));
}

function ask(text) {
  $("text").value = text;
  go({ text, open: "" });
}

/** More like a hit: by its picture, or with its text as the query. */
function like(hit) {
  if (query.target === "text" || !hit.image) ask(hit.text);
  else go({ like: hit.id, open: "" });
}

async function drawDetail() {
  const dialog = $("detail");
  if (!query.open) return dialog.open && dialog.close();
  const asked = query;
  const actions = { close: closeDetail, step, like, region: (hit, box) => go({ like: hit.id, region: box, open: "" }), find };
  const at = results.hits.findIndex((hit) => hit.id === query.open);
  try {
    const hit = results.hits[at] ?? (await sampleOf(query.open));
    if (asked.open !== query.open) return undefined;
    if (dialog.open && dialog.dataset.shown === JSON.stringify([query.collection, hit.id, document.documentElement.lang, at])) return undefined;
    dialog.dataset.shown = JSON.stringify([query.collection, hit.id, document.documentElement.lang, at]);
    return detail(hit, query, actions, settings(), { previous: at > 0, next: at >= 0 && at + 1 < results.hits.length });
  } catch (trouble) {
    if (asked.open !== query.open) return undefined; // closed meanwhile
    return lost(actions, trouble.kind === "missing" ? t("gone") : faultWords(trouble).join(" "));
  }
}

function closeDetail() {
  if (history.state?.opened) history.back();
  else go({ open: "" }, { replace: true });
}

function step(by) {
  const at = results.hits.findIndex((hit) => hit.id === query.open) + by;
  if (results.hits[at]) go({ open: results.hits[at].id }, { replace: true });
  if (at > results.hits.length - 5) results.next();
}

/** Texts for a hit's picture, or pictures for its text. */
function find(hit, target) {
  const holder = (part) => (record()[part] ? record() : collections.list.find((one) => one[part]));
  if (target === "image") {
    $("text").value = hit.text;
    return enter(holder("images").name, { text: hit.text, target });
  }
  if (record().texts) return go({ like: hit.id, target, open: "" });
  return enter(holder("texts").name, { like: hit.id, target });
}

/** Search another collection. A sample of this one is taken along as a picture. */
async function enter(name, along = {}) {
  const one = collections.of(name);
  const next = { ...along, collection: name, ...(name === query.collection ? {} : WITHOUT), open: "" };
  const id = along.text ? "" : along.like ?? query.like;
  delete next.like;
  try {
    if (id && name !== query.collection) {
      const hit = await sampleOf(id);
      const taken = await take(await api.pictureFile(hit));
      Object.assign(next, { picture: taken.key, region: along.like ? null : query.region });
    }
  } catch (trouble) {
    notice(...faultWords(trouble));
    Object.assign(next, { like: "", region: null });
  }
  const target = next.target ?? query.target;
  if (one && !one[`${target}s`]) next.target = one.images ? "image" : "text";
  go(next);
}

/** Read the list of collections anew; `wanted`: null to stay where we are, "" for the first. */
async function reload(wanted = null) {
  try {
    collections.list = await api.collections();
  } catch (trouble) {
    return trouble;
  }
  results.forget();
  const stay = wanted === null && collections.of(query.collection);
  if (!stay && collections.list.length) await enter(collections.first().name);
  else controls();
  return null;
}

/** Search with a file; several files, a folder, or lines of text, become a collection. */
async function bring(files, folder = "") {
  if (!files.length && !folder) return;
  if (folder || areMany(files)) {
    collections.open(query.collection);
    await collections.load(files, folder);
    return;
  }
  try {
    const taken = await take(files[0]);
    notice();
    $("text").value = "";
    go({ picture: taken.key, open: "" }, { again: taken.key === query.picture });
  } catch (trouble) {
    notice(...faultWords(trouble), [[t("choosePicture"), () => $("file").click()]]);
  }
}

function nowhere() {
  show($("summary"));
  show($("grid"));
  show($("after"), h("div", { class: "empty" }, h("p", { class: "big" }, t("noCollections")), h("p", {}, t("noCollectionsMore")), h("div", { class: "actions" }, h("button", { type: "button", class: "plain strong", on: { click: () => collections.open("") } }, t("load")))));
}

// --- the keyboard

const cards = () => [...$("grid").querySelectorAll(".card:not(.skeleton)")];
const reach = (item) => item?.querySelector(".shot, .words")?.focus();

function walk(name) {
  const all = cards();
  const at = all.findIndex((item) => item.contains(document.activeElement));
  if (at < 0) return reach(all[0]);
  if (name === "ArrowLeft" || name === "ArrowRight") return reach(all[at + (name === "ArrowRight" ? 1 : -1)]);
  const from = all[at].getBoundingClientRect();
  const middle = (box) => box.left + box.width / 2;
  const down = name === "ArrowDown";
  const others = all.map((item) => [item, item.getBoundingClientRect()]).filter(([, box]) => (down ? box.top > from.top + 4 : box.top < from.top - 4));
  if (!others.length) return down ? undefined : $("text").focus();
  const row = down ? Math.min(...others.map(([, box]) => box.top)) : Math.max(...others.map(([, box]) => box.top));
  const inRow = others.filter(([, box]) => Math.abs(box.top - row) < 4).sort((a, b) => Math.abs(middle(a[1]) - middle(from)) - Math.abs(middle(b[1]) - middle(from)));
  return reach(inRow[0][0]);
}

/** Keys of the card in focus while its parts can be chosen; whether the key was one of them. */
function inParts(item, name) {
  if (!item?.classList.contains("picking")) return false;
  if (name === "ArrowRight" || name === "ArrowDown") item.parts.step(1);
  else if (name === "ArrowLeft" || name === "ArrowUp") item.parts.step(-1);
  else if (name === "Escape") pickable(item, false, results.actions);
  else if (name === "Enter" && item.parts.current >= 0) item.parts.pick(item.hit.boxes[item.parts.current]);
  else return false;
  return true;
}

function pressed(event) {
  if (event.isComposing || event.keyCode === 229 || event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.matches?.("input:not([type=checkbox], [type=radio]), textarea, select");
  const item = event.target.closest?.(".card");
  const done = inDialog(event, writing) || (!document.querySelector("dialog[open]") && onPage(event, writing, item));
  if (done) event.preventDefault();
}

function inDialog(event, writing) {
  if (!$("detail").open || writing) return false;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowRight" ? 1 : -1);
  else if (event.key === "m") $("detail").querySelector(".actions button")?.click();
  else return false;
  return true;
}

function onPage(event, writing, item) {
  if (inParts(item, event.key)) return true;
  if (event.target.matches?.("input[type=radio]") && event.key.startsWith("Arrow")) return false;
  if (event.target === $("text") ? event.key === "ArrowDown" : event.key.startsWith("Arrow") && !writing) {
    if (!cards().length) return false;
    walk(event.key);
    return true;
  }
  if (writing) return false;
  const keys = {
    "/": () => ($("text").focus(), $("text").select()),
    "?": () => shortcuts(),
    f: () => $("filter").click(),
    c: () => collections.open(query.collection),
    m: () => item && like(item.hit),
    p: () => item && pickable(item, !item.classList.contains("picking"), results.actions),
    Escape: () => (query.picture || query.like) && unpicture(),
  };
  if (!Object.hasOwn(keys, event.key)) return false;
  keys[event.key]();
  return true;
}

function shortcuts() {
  const dialog = $("keyboard");
  const close = h("button", { type: "button", class: "tool", title: t("close"), "aria-label": t("close"), on: { click: () => dialog.close() } }, icon("close"));
  dialog.setAttribute("aria-labelledby", "keyboard-title");
  show(dialog, h("div", { class: "dialog-bar" }, h("h2", { id: "keyboard-title" }, t("keys")), h("span", { class: "space" }), close),
    h("div", { class: "dialog-body" }, h("dl", { class: "keys" }, t("shortcuts").flatMap(([key, what]) => [h("dt", {}, key.split(" ").map((one) => h("kbd", {}, one))), h("dd", {}, what)]))));
  dialog.showModal();
}

// --- listeners

function listen() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("text").value.trim();
    if (!text && !asking()) return;
    if (matchMedia("(pointer: coarse)").matches) $("text").blur();
    go(text ? { text, open: "" } : { text: "" }, { again: text === query.text });
  });
  // The Enter that ends a composition chooses a word; Safari would submit the form with it.
  $("text").addEventListener("keydown", (event) => event.key === "Enter" && (event.isComposing || event.keyCode === 229) && event.preventDefault());
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    bring([...$("file").files]);
    $("file").value = "";
  });
  $("collection").addEventListener("click", () => collections.open(query.collection));
  $("show-keys").addEventListener("click", shortcuts);
  $("filter").addEventListener("click", () => {
    $("filters").hidden = !$("filters").hidden;
    $("filter").setAttribute("aria-expanded", String(!$("filters").hidden));
  });
  $("home").addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    $("text").value = "";
    go({ ...NOTHING, collection: query.collection, target: query.target });
  });
  $("detail").addEventListener("cancel", (event) => (event.preventDefault(), closeDetail()));
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && (dialog.id === "detail" ? closeDetail() : dialog.close()));
  }
  document.addEventListener("keydown", pressed);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) (event.preventDefault(), bring(files));
  });
  dropping();
  addEventListener("popstate", () => {
    const before = query;
    query = changed(fromAddress(location.search), {});
    if (!query.collection) query = changed(query, { collection: collections.first()?.name ?? "" });
    $("text").value = query.text;
    draw(before);
  });
  onLanguage(() => {
    controls();
    if (results.query && results.last) results.redraw({ hits: results.hits, last: results.last, top: scrollY });
    drawStage();
    drawDetail();
    if ($("collections").open) collections.draw();
  });
}

function dropping() {
  let ours = false;
  const files = (event) => !ours && event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragstart", () => (ours = true));
  document.addEventListener("dragend", () => (ours = false));
  document.addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  });
  document.addEventListener("drop", async (event) => {
    if (!files(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    bring(...(await dropped(event.dataTransfer)));
  });
}

/** Begin: the collections, then the query of the address; a server that is not there is waited for. */
async function begin() {
  results.query = query;
  results.skeleton();
  try {
    collections.list = await api.collections();
  } catch (trouble) {
    return results.failed(trouble, begin);
  }
  notice();
  settle();
  return draw(null);
}

/** Put the query on a collection that there is. */
function settle() {
  const there = collections.of(query.collection);
  const one = there ?? collections.first();
  if (query.collection && !there) announce(t("faults.missing"));
  const target = one && !one[`${query.target}s`] ? (one.images ? "image" : "text") : query.target;
  query = changed(query, { collection: one?.name ?? "", target });
}

history.scrollRestoration = "manual";
speak();
colour();
listen();
controls();
begin();
