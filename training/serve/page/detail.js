/**
 * One sample, large: the picture with its parts, all its texts by kind, and where it is from.
 *
 * The page that it came from is a link that says where it leads, and only where its address is one of the web: what a
 * stranger wrote there could be anything.
 */

import { picture } from "./api.js";
import { closeness } from "./cards.js";
import { $, announce, h, icon, show } from "./dom.js";
import { Parts, strip } from "./parts.js";
import { address } from "./state.js";
import { named, number, t } from "./words.js";

/** The host to which an address leads, or "" where it is none of the web. */
export function host(url) {
  try {
    const at = new URL(url);
    return /^https?:$/.test(at.protocol) ? at.host : "";
  } catch {
    return "";
  }
}

/**
 * Show a hit in the dialog. actions: close(), step(±1), like(hit), region(hit, box), find(hit, target).
 * neighbours: {previous, next}, whether there are.
 */
export function detail(hit, query, actions, settings, neighbours) {
  const dialog = $("detail");
  const title = h("h2", { id: "detail-title", lang: "zh", tabindex: "-1" }, hit.text || t("noText"));
  const bar = h("div", { class: "dialog-bar" },
    tool("left", "previous", () => actions.step(-1), !neighbours.previous),
    tool("right", "next", () => actions.step(1), !neighbours.next),
    h("span", { class: "space" }),
    tool("link", "copyLink", () => copyLink(query, hit)),
    tool("close", "close", actions.close));
  const words = h("div", { class: "about" }, title, told(hit), closeness(hit, settings), buttons(hit, actions, settings), texts(hit), facts(hit));
  dialog.setAttribute("aria-labelledby", "detail-title");
  dialog.classList.toggle("wordy", !hit.image);
  show(dialog, bar, h("div", { class: "dialog-body" }, hit.image ? large(hit, actions) : null, words));
  const details = dialog.querySelector("details.closeness");
  if (details) details.open = true;
  if (!dialog.open) dialog.showModal();
  title.focus({ preventScroll: true });
  dialog.scrollTop = 0;
}

/** Say that a sample is not there. */
export function lost(actions, text) {
  const dialog = $("detail");
  dialog.classList.add("wordy");
  show(dialog, h("div", { class: "dialog-bar" }, h("span", { class: "space" }), tool("close", "close", actions.close)), h("div", { class: "dialog-body" }, h("p", { class: "empty", role: "alert" }, text)));
  if (!dialog.open) dialog.showModal();
}

function tool(drawing, name, click, disabled = false) {
  return h("button", { type: "button", class: "tool", title: t(name), "aria-label": t(name), disabled, on: { click } }, icon(drawing));
}

function large(hit, actions) {
  const url = picture(hit, 1280);
  const parts = new Parts({ width: hit.width, height: hit.height, boxes: hit.boxes, pick: (box) => actions.region(hit, box), draw: true });
  const image = h("img", { src: url, alt: hit.text || t("noText"), width: hit.width, height: hit.height });
  const figure = h("figure", { class: "canvas", style: { "--ratio": (hit.width / hit.height).toFixed(4), "--most": `${Math.max(hit.width * 2, 320)}px` } }, image, parts.node);
  image.addEventListener("error", () => figure.replaceWith(h("p", { class: "empty", role: "alert" }, t("pictureGone"))));
  return h("div", { class: "shown" }, figure, hit.boxes.length ? [h("p", { class: "help" }, t("partsOf")), strip(url, parts)] : null);
}

function told(hit) {
  const title = hit.texts.find((text) => text.kind === "title" && text.text !== hit.text);
  return title ? h("p", { class: "from", lang: "zh" }, title.text) : null;
}

function buttons(hit, actions, settings) {
  const more = (name, drawing, click) => h("button", { type: "button", class: "plain", on: { click } }, icon(drawing), h("span", {}, t(name)));
  return h("div", { class: "actions" },
    more("like", "like", () => actions.like(hit)),
    hit.image && settings.texts > 0 ? more("textsFor", "text", () => actions.find(hit, "text")) : null,
    !hit.image && settings.images > 0 ? more("picturesFor", "picture", () => actions.find(hit, "image")) : null);
}

function texts(hit) {
  const others = hit.texts.filter((text) => text.text);
  const told = hit.texts.find((text) => text.kind === "title");
  if (others.every((text) => text === told || text.text === hit.text)) return null; // they stand above
  const kinds = [...new Set(others.map((text) => text.kind))];
  const rows = kinds.flatMap((kind) => [
    h("dt", {}, named("kind", kind)),
    ...others.filter((text) => text.kind === kind).map((text) => h("dd", { lang: "zh", class: kind === "tag" ? "tag" : null }, text.text)),
  ]);
  return h("section", {}, h("h3", {}, t("texts")), h("dl", { class: "texts" }, rows));
}

function facts(hit) {
  const rows = [];
  const fact = (name, value) => rows.push(h("dt", {}, name), h("dd", {}, value));
  if (hit.width) fact(t("size"), `${number(hit.width)} × ${number(hit.height)}`);
  if (hit.source || hit.image) fact(t("facet.source"), hit.source || t("blank"));
  if (hit.license || hit.image) fact(t("facet.license"), hit.license || t("blank"));
  if (hit.split) fact(t("facet.split"), named("split", hit.split));
  const leads = host(hit.page_url);
  if (leads || hit.image) fact(t("page"), leads ? h("a", { href: hit.page_url, rel: "noreferrer noopener external", target: "_blank", title: hit.page_url }, t("leads", leads), icon("out")) : t("noPage"));
  fact(t("id"), h("code", {}, hit.id));
  return h("section", {}, h("h3", {}, t("facts")), h("dl", { class: "facts" }, rows));
}

async function copyLink(query, hit) {
  const link = new URL(address({ ...query, open: hit.id }), document.baseURI).href;
  try {
    await navigator.clipboard.writeText(link);
    announce(t("copied"));
    $("detail").querySelector(".dialog-bar .space").textContent = t("copied");
  } catch {
    prompt(t("copyLink"), link);
  }
}
