/**
 * One result: a picture with its parts, or a text, with how close it is, said in words.
 *
 * The word is by the hit's `chance`: of the results that are at least as close, the share that unrelated ones make in a
 * collection of this size. A score is the share of unrelated picture-text pairs below a cosine
 * (training/outputs/background.py). People read "only 1 in 500 unrelated pairs is this close" where 0.998 says little.
 */

import { picture } from "./api.js";
import { h, icon } from "./dom.js";
import { Parts } from "./parts.js";
import { address } from "./state.js";
import { named, number, t } from "./words.js";

const CHANCES = [0.5, 0.2, 0.05, 0.01, 0.001];
const LONGEST = 240;

/** Index into `grades` of words.js; 0: by chance as much would be as close. */
export const grade = (chance) => CHANCES.filter((limit) => chance < limit).length;

/** How a score is put in words. */
export function inWords(score) {
  if (score >= 1) return t("scoreHelp.all");
  if (score >= 0.9) return t("scoreHelp.one", number(Number((1 / (1 - score)).toPrecision(2))));
  return t("scoreHelp.few", `${number(100 * score)}%`);
}

/** The closeness of a hit: a meter and a word, with the figures when opened. Nothing where nothing was asked. */
export function closeness(hit, { calibrated = true } = {}) {
  if (hit.score === null && hit.cosine === null && !hit.words) return null;
  const figures = [];
  if (hit.score !== null) figures.push(h("span", {}, inWords(hit.score)), h("span", {}, t("chance", `${number(100 * hit.chance, hit.chance < 0.1 ? 1 : 0)}%`)));
  if (hit.cosine !== null) figures.push(h("span", { title: t("cosineHelp") }, t("cosine", hit.cosine.toFixed(3))));
  if (hit.words) figures.push(h("span", {}, t("wordsScore", number(hit.words, 1))));
  if (hit.score === null && hit.cosine !== null) figures.push(h("span", { class: "why" }, t(calibrated ? "sameKind" : "uncalibrated")));
  const share = hit.score === null ? Math.max(0, hit.cosine ?? 0) : Math.min(1, -Math.log10(Math.max(hit.chance, 1e-4)) / 4);
  const word = hit.score !== null ? named("grades", grade(hit.chance)) : hit.cosine !== null ? t("cosine", hit.cosine.toFixed(2)) : t("wordsScore", number(hit.words, 1));
  const bar = hit.score === null && hit.cosine === null ? null : h("span", { class: "meter", "aria-hidden": "true" }, h("span", { style: { "inline-size": `${Math.round(100 * share)}%` } }));
  return h("details", { class: "closeness" }, h("summary", {}, bar, h("span", {}, word)), h("p", {}, figures));
}

/** A text with the words of a query marked in it. */
export function marked(text, query) {
  const words = query.mode === "meaning" ? [] : query.text.split(/[\s，。、！？,.!?]+/u).filter(Boolean);
  const pieces = new Set(words);
  for (const word of words) for (let i = 0; i + 2 <= word.length; i++) if (!/[的了是在和与着过就也]/u.test(word.slice(i, i + 2))) pieces.add(word.slice(i, i + 2));
  if (!pieces.size) return [text];
  const escaped = [...pieces].sort((a, b) => b.length - a.length).map((piece) => piece.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return text.split(new RegExp(`(${escaped.join("|")})`, "iu")).map((part, i) => (i % 2 ? h("mark", {}, part) : part));
}

/** What a hit says of itself, for those who do not see it. */
export const spoken = (hit) => hit.text || t("noText");

/**
 * The list item of a hit. `actions`: open(hit), like(hit), region(hit, box), copies(hit, card).
 */
export function card(hit, query, actions, settings) {
  const asText = query.target === "text";
  const href = address({ ...query, open: hit.id });
  const follow = (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    actions.open(hit);
  };
  const item = h("li", { class: `card ${asText ? "of-text" : "of-picture"}`, data: { id: hit.id } });
  item.hit = hit;
  if (asText) item.append(textBody(hit, query, href, follow));
  else item.append(frameOf(hit, item, href, follow, actions));
  const foot = h("div", { class: "under" });
  if (!asText) foot.append(h("p", { class: "caption", lang: "zh", title: hit.text.slice(0, LONGEST) }, marked(hit.text.slice(0, LONGEST), query)));
  const row = h("div", { class: "row" }, closeness(hit, settings), h("span", { class: "space" }));
  if (hit.copies > 0 && hit.leader && !query.copies) row.append(copiesButton(hit, item, actions));
  if (asText) row.append(h("button", { type: "button", class: "tool", title: t("like"), "aria-label": `${t("like")}: ${spoken(hit)}`, on: { click: () => actions.like(hit) } }, icon("like")));
  foot.append(row);
  item.append(foot);
  return item;
}

function frameOf(hit, item, href, follow, actions) {
  const ratio = hit.width && hit.height ? Math.min(2.2, Math.max(0.62, hit.width / hit.height)) : 1;
  item.style.setProperty("--ratio", ratio.toFixed(3));
  const image = h("img", { src: hit.image ? picture(hit, 480) : null, alt: spoken(hit), loading: "lazy", decoding: "async", width: hit.width || null, height: hit.height || null });
  image.addEventListener("error", () => item.classList.add("no-picture"));
  const shot = h("a", { class: "shot", href, "aria-label": t("open", spoken(hit)), on: { click: follow } }, image);
  const tools = h("div", { class: "tools" });
  const block = h("div", { class: "frame" }, shot, h("span", { class: "lost" }, t("pictureGone")), tools);
  if (hit.boxes.length) {
    const button = h("button", { type: "button", class: "tool", "aria-pressed": "false", title: t("partsHelp"), "aria-label": `${t("parts")}: ${spoken(hit)}`, on: { click: () => pickable(item, !item.classList.contains("picking"), actions) } }, icon("parts"));
    tools.append(button);
    const look = () => item.parts ?? overlay(item, null);
    block.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look());
    shot.addEventListener("focus", look);
  }
  tools.append(h("button", { type: "button", class: "tool", title: t("like"), "aria-label": `${t("like")}: ${spoken(hit)}`, on: { click: () => actions.like(hit) } }, icon("like")));
  return block;
}

function overlay(item, pick) {
  const { hit } = item;
  item.parts?.node.remove();
  item.parts = new Parts({ width: hit.width, height: hit.height, boxes: hit.boxes, pick, slice: true });
  item.querySelector(".shot").after(item.parts.node);
  return item.parts;
}

/** Let a card's parts be clicked, or only be seen again. */
export function pickable(item, yes, actions) {
  if (!item.hit.boxes.length || !item.querySelector(".frame")) return;
  item.classList.toggle("picking", yes);
  item.querySelector(".tools button").setAttribute("aria-pressed", String(yes));
  overlay(item, yes ? (box) => actions.region(item.hit, box) : null);
}

function textBody(hit, query, href, follow) {
  const told = hit.texts.find((text) => text.kind === "title" && text.text !== hit.text);
  const short = hit.text.length <= 40;
  return h("div", { class: "frame" },
    hit.image && h("img", { class: "beside", src: picture(hit, 160), alt: "", loading: "lazy", decoding: "async" }),
    h("div", { class: "said" },
      h("a", { class: `words${short ? " short" : ""}`, lang: "zh", href, on: { click: follow } }, marked(hit.text.slice(0, LONGEST) || t("noText"), query)),
      told && h("p", { class: "from", lang: "zh" }, told.text.slice(0, 80))));
}

function copiesButton(hit, item, actions) {
  const button = h("button", { type: "button", class: "copies", "aria-expanded": "false" }, icon("copies"), h("span", {}, t("copies", hit.copies)));
  button.addEventListener("click", async () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    button.lastChild.textContent = open ? t("copies", hit.copies) : t("hideCopies");
    await actions.copies(hit, item, !open);
  });
  return button;
}
