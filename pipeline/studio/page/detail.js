// The third pane: one candidate, what became of it and why, with what was kept instead beside it.

import { get, thumb } from "./api.js";
import { fill, h, icon, link, marked, s, shell } from "./dom.js";
import { state } from "./state.js";
import { lang, n, say, t } from "./words.js";

let regionsShown = true, detector = "", unfolded = false;

/** Draw a candidate. actions: open(id), filter(changes), flag(row), like(row), told(fault), close(). */
export async function draw(pane, row, actions) {
  pane.dataset.pos = row.pos;
  pane.ariaBusy = "true";
  const here = () => pane.dataset.pos === String(row.pos);
  fill(pane, head(actions), body({ ...row, picture: null, leader: null }, actions));
  pane.scrollTop = 0;
  try {
    const item = await get("item", { pos: row.pos, g: state.about.g });
    if (here()) fill(pane, head(actions), body(item, actions));
  } catch (error) { if (here()) actions.told(error); }
  if (here()) pane.ariaBusy = "false";
}

export function blank(pane) {
  delete pane.dataset.pos;
  pane.ariaBusy = "false";
  fill(pane, h("div", { class: "blank" }, icon("grid"), h("p", {}, t("choose"))));
}

export function toggleRegions(pane) {
  regionsShown = !regionsShown;
  for (const svg of pane.querySelectorAll("svg.boxes")) svg.classList.toggle("off", !regionsShown);
  const box = pane.querySelector("#regions-on");
  if (box) box.checked = regionsShown;
}

function head(actions) {
  return h("div", { class: "pane-head phone" },
    h("button", { type: "button", class: "plain", "aria-label": t("close"), on: { click: actions.close } }, icon("back"), t("close")));
}

function body(item, actions) {
  const words = state.q.split(/\s+/);
  return [
    verdict(item),
    item.subject === "candidate" ? (item.leader ? pair(item, actions) : picture(item)) : null,
    item.withheld ? h("p", { class: "note" }, t("withheld", { why: say(item.withheld) })) : null,
    item.text ? h("p", { class: "caption", lang: "zh" }, marked(item.text, words)) : null,
    buttons(item, actions),
    facts(item, actions),
    item.subject === "candidate" && !item.withheld ? saw(item, actions) : null,
  ];
}

function verdict(item) {
  const title = item.fate === "kept" ? t("kept") : item.fate === "known" ? t("known_at") : t("dropped_at", { stage: say(item.stage) });
  return h("section", { class: `verdict ${item.fate}` },
    h("h2", {}, h("span", { "aria-hidden": "true" }, { kept: "✓", known: "=", dropped: "✗" }[item.fate]), ` ${title}`),
    item.reasons.length ? h("ul", { class: "reasons" }, item.reasons.map((reason) => h("li", { title: reason.name }, say(reason)))) : null,
    say(item.evidence) ? h("p", { class: "evidence" }, say(item.evidence)) : null,
    item.fate === "kept" ? h("p", { class: "evidence" }, t("kept_is")) : null);
}

/** The picture with its regions over it. */
function picture(item, side = 960) {
  if (!item.picture) return h("div", { class: "picture waiting" });
  if (item.picture.why) return h("div", { class: "picture none" }, h("span", {}, say(item.picture.why)));
  const { width, height, regions } = item.picture, names = Object.keys(regions);
  if (!names.includes(detector)) detector = names[0] ?? "";
  const shape = h("div", { class: "shape" },
    h("img", { src: thumb(item, state.about.g, side), alt: item.text || t("untexted"), width, height }),
    names.map((name) => overlay(name, regions[name], width, height)));
  shape.style.setProperty("aspect-ratio", `${width} / ${height}`);
  shape.style.setProperty("max-width", `${Math.max(width, 160)}px`);
  return h("figure", { class: "picture" }, shape, names.length ? switches(names, regions) : null);
}

function overlay(name, boxes, width, height) {
  const tops = boxes.map(([x1, y1, x2, y2, score], i) => s("g", { class: i < 3 ? "best" : "" },
    s("rect", { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) }),
    s("title", {}, score.toFixed(3))));
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: `boxes${regionsShown ? "" : " off"}${name === detector ? "" : " other"}`, role: "img", "aria-label": t("region_count", { n: boxes.length }) }, tops.reverse());
  svg.dataset.detector = name;
  return svg;
}

function switches(names, regions) {
  const box = h("input", { type: "checkbox", id: "regions-on", on: { change: (event) => toggleRegions(event.target.closest("aside, dialog")) } });
  box.checked = regionsShown;
  const choose = (event) => {
    detector = event.target.value;
    for (const svg of event.target.closest("figure").querySelectorAll("svg.boxes")) svg.classList.toggle("other", svg.dataset.detector !== detector);
  };
  return h("figcaption", {},
    h("label", {}, box, ` ${t("region_count", { n: n(regions[detector].length) })}`),
    names.length > 1 ? h("select", { "aria-label": t("regions"), on: { change: choose } }, names.map((name) => h("option", { value: name, selected: name === detector }, name))) : h("code", { class: "small muted" }, detector));
}

/** A duplicate and its leader, side by side. */
function pair(item, actions) {
  const { leader } = item, held = leader.held;
  const other = leader.unknown && !held
    ? h("div", { class: "picture none" }, h("span", {}, t("leader_unknown", { id: leader.id.slice(0, 32) })))
    : h("figure", { class: "picture" }, leaderImage(item, leader));
  return h("section", { class: "pair" },
    h("div", {}, h("h3", {}, t("this_one")), picture(item, 320)),
    h("div", {}, h("h3", {}, t("kept_instead")), other,
      leader.text ? h("p", { class: "caption small", lang: "zh" }, leader.text) : null,
      held ? h("p", { class: "small muted" }, t("held_by", { build: held.build }), held.release ? `, ${t("held_release", { release: held.release })}` : "") : null,
      leader.pos !== null && leader.pos !== undefined ? h("button", { type: "button", on: { click: () => actions.open(leader.id) } }, t("open_leader")) : null),
    state.about.prepared.state === "ready" || !held ? h("button", { type: "button", class: "wide", on: { click: () => actions.filter({ leader: item.duplicate_of }) } }, t("group")) : null);
}

function leaderImage(item, leader) {
  const src = leader.held ? thumb(item, state.about.g, 320, item.duplicate_of) : thumb(leader, state.about.g, 320);
  const image = h("img", { src, alt: leader.text || t("kept_instead") });
  image.addEventListener("error", () => image.replaceWith(h("span", { class: "none" }, t("no_picture"))), { once: true });
  return image;
}

function buttons(item, actions) {
  const flagged = state.flags.has(item.key);
  const flag = h("button", { type: "button", class: flagged ? "on" : null, "aria-pressed": String(flagged), on: { click: () => actions.flag(item) } }, icon("flag"), flagged ? t("unflag") : t("flag"));
  const can = item.fate === "kept" && state.about.similar && item.subject === "candidate";
  return h("div", { class: "buttons" },
    can ? h("button", { type: "button", on: { click: () => actions.like(item) } }, icon("like"), t("like")) : null,
    item.withheld || !state.about.store ? null : flag,
    h("button", { type: "button", on: { click: () => actions.copy(`${location.origin}/#id=${item.key}`) } }, icon("copy"), t("copy_link")));
}

function facts(item, actions) {
  const rows = [];
  const fact = (name, ...value) => rows.push(h("dt", {}, t(name)), h("dd", {}, value));
  if (item.page_url && !item.withheld) {
    fact("from_page", link(item.page_url), h("span", { class: "links" },
      h("button", { type: "button", class: "plain", on: { click: () => actions.filter({ q: item.page_url }) } }, t("same_page"))));
  }
  if (item.url && item.url !== item.page_url) fact("address", link(item.url));
  if (item.picture?.width) fact("size", `${item.picture.width} × ${item.picture.height}`);
  fact("source", item.source);
  if (state.about.builds.length > 1) fact("build", item.build);
  fact("key", h("code", {}, item.key));
  return h("dl", { class: "facts" }, rows);
}

/** What each stage saw of it; asked for when it is opened. */
function saw(item, actions) {
  const place = h("div", { class: "saw" });
  const fold = h("details", { open: unfolded }, h("summary", {}, h("h3", {}, t("saw"))), place);
  let asked = false;
  fold.addEventListener("toggle", async () => {
    if (fold.isConnected) unfolded = fold.open; // for the next candidate too
    if (!fold.open || asked) return;
    asked = true;
    try {
      const seen = await get("saw", { pos: item.pos, g: state.about.g });
      fill(place, texts(seen.texts, "texts"), texts(seen.removed, "removed"), seen.stages.map(stage), explained(item, actions));
    } catch (error) { actions.told(error); }
  });
  return fold;
}

function texts(rows, title) {
  if (!rows.length) return null;
  return [h("h4", {}, t(title)), h("ul", { class: "texts" }, rows.map((row) => h("li", {},
    h("span", { class: "kind" }, say(row.kind)), h("span", { lang: "zh" }, ` ${row.text}`),
    row.original ? h("p", { class: "small muted", lang: "zh" }, `${t("original")}: ${row.original}`) : null,
    row.reason ? h("p", { class: "small bad" }, `${say(row.reason)} ${say(row.evidence)}`) : null)))];
}

function stage(seen) {
  const rows = Object.entries(seen.new).filter(([, value]) => value !== "" && value !== null);
  return h("section", { class: "stage" }, h("h4", {}, say(seen), lang() === "zh" ? h("code", { class: "small muted" }, ` ${seen.name}`) : null),
    rows.length ? h("dl", { class: "facts small" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])) : h("p", { class: "muted small" }, t("nothing_new")));
}

function explained(item, actions) {
  const build = state.about.builds.find((own) => own.id === item.build);
  if (!build) return null;
  const line = `wenlan-data explain ${shell(build.out)} ${item.key}`;
  return [h("h4", {}, t("explain")), h("p", { class: "command" }, h("code", {}, line), h("button", { type: "button", class: "plain", "aria-label": t("copy_link"), on: { click: () => actions.copy(line) } }, icon("copy")))];
}
