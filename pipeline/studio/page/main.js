// The page: three panes over one state. What is shown follows from the address; every change goes through `refresh`.

import { get, send } from "./api.js";
import * as detail from "./detail.js";
import * as dialogs from "./dialogs.js";
import { fill, h, icon, recall, remember } from "./dom.js";
import * as facets from "./facets.js";
import { List } from "./list.js";
import { asked, clear, isFiltered, read, state, write } from "./state.js";
import { lang, n, say, speak, t } from "./words.js";

const $ = (name) => document.getElementById(name);
let counts = null, polling = 0, near = null, meaning = false, asking = null, shownFor = null;

const list = new List($("list"), { chosen, fault: told });

async function begin() {
  paint(recall("wenlan-theme"));
  try {
    await learn();
  } catch (error) {
    return told(error);
  }
  read();
  dress();
  await refresh(true);
  if (state.id) await open(state.id);
  return undefined;
}

/** Ask what is open here. */
async function learn() {
  const before = state.about?.g;
  state.about = await get("about");
  const kept = JSON.parse(recall(`wenlan-flags ${state.about.place}`) ?? "[]");
  state.flags = new Map((Array.isArray(kept) ? kept : []).map((row) => [row.key, row]));
  return before !== undefined && before !== state.about.g;
}

/** What does not change with the choice: titles, search, tools, notices. */
function dress() {
  const { about } = state;
  document.documentElement.lang = lang() === "zh" ? "zh-CN" : "en";
  document.title = `${about.name} · wenlan studio`;
  fill($("skip"), t("skip"));
  fill($("name"), about.name);
  fill($("title"), say(about.title), about.baseline ? ` · ${t("baseline", { id: about.baseline })}` : "", about.builds.length === 1 ? chip(about.builds[0]) : "");
  $("list").setAttribute("aria-label", t("grid"));
  $("facets").setAttribute("aria-label", t("filters"));
  $("detail").setAttribute("aria-label", t("facts"));
  searchBox();
  tools();
  notices();
  detail.blank($("detail"));
}

function chip(build) {
  const name = build.word.verdict === "refused" && build.verdict === "waiting" ? "refused" : build.verdict;
  return h("span", { class: `chip v-${name}` }, t(`v_${build.verdict}`));
}

function searchBox() {
  const { similar } = state.about;
  const input = h("input", { type: "search", name: "q", maxlength: "200", value: near?.text ?? state.q, autocomplete: "off", "aria-label": t(meaning ? "search_hint_meaning" : "search_hint"), placeholder: t(meaning ? "search_hint_meaning" : "search_hint") });
  input.addEventListener("search", () => { if (!input.value && !meaning && state.q) { state.q = ""; changed(); } });
  const mode = similar?.by_text ? h("select", { "aria-label": t("search"), on: { change: (event) => { meaning = event.target.value === "meaning"; searchBox(); $("search").q.focus(); } } },
    h("option", { value: "words", selected: !meaning }, t("by_words")), h("option", { value: "meaning", selected: meaning }, t("by_meaning"))) : null;
  fill($("search"), icon("search"), input, mode);
  $("search").onsubmit = async (event) => {
    event.preventDefault();
    if (meaning && input.value.trim()) return neighbours({ text: input.value.trim() }, t("meaning_title", { text: input.value.trim() }));
    state.q = input.value.trim();
    return changed();
  };
}

function tools() {
  const tool = (name, words, run, more = {}) => h("button", { type: "button", title: t(words), on: { click: run }, ...more }, icon(name), h("span", { class: "label" }, t(words)));
  const flagged = state.flags.size, signed = state.about.builds.some((build) => build.gates.length || build.manual);
  fill($("tools"),
    tool("why", "why_short", () => dialogs.why(openRow), { id: "open-why" }),
    state.about.store ? h("button", { type: "button", id: "open-takedown", class: flagged ? "on" : null, title: t("flagged"), on: { click: () => dialogs.takedown(flagsChanged, takenDown) } }, icon("flag"), h("span", { class: "label" }, t("flagged")), flagged ? h("b", { class: "count" }, String(flagged)) : null) : null,
    signed ? tool("seal", "publish", () => dialogs.publish(signedOff), { id: "open-publish" }) : null,
    state.about.report ? h("a", { class: "button", href: "/report", title: t("report") }, icon("report"), h("span", { class: "label" }, t("report"))) : null,
    h("button", { type: "button", class: "only", id: "open-keys", title: t("keys"), "aria-label": t("keys"), on: { click: dialogs.keys } }, icon("keys")),
    h("button", { type: "button", id: "language", class: "only", lang: lang() === "en" ? "zh" : "en", on: { click: translate } }, lang() === "en" ? "中文" : "EN"),
    h("button", { type: "button", id: "theme", class: "only", "aria-label": t("theme"), title: t("theme"), on: { click: () => paint(dark() ? "light" : "dark") } }, icon("moon")));
}

function notices() {
  fill($("notices"), state.about.notices.map((own) => h("p", { class: `notice ${own.kind}` }, say(own),
    own.kind === "running" ? h("button", { type: "button", on: { click: reload } }, icon("reload"), t("reload")) : null)));
}

/** Another choice was made: write the address, ask, draw. */
async function changed() {
  near = null;
  write();
  if ($("search").q && !meaning) $("search").q.value = state.q;
  return refresh();
}

async function refresh(first = false) {
  asking?.abort();
  asking = new AbortController();
  const query = asked(), { signal } = asking;
  document.body.classList.add("busy");
  try {
    counts = await get("facets", query, signal);
    state.about.prepared = counts.prepared;
    facets.draw($("facets"), counts, changed);
    bar();
    const shown = `${query}${state.about.g}`;
    if (first || shown !== shownFor || near === null) list.show(counts.matching);
    shownFor = shown;
    emptiness(counts.matching);
    gone(false);
    poll();
  } catch (error) {
    if (error.name !== "AbortError") told(error);
  } finally {
    if (!signal.aborted) document.body.classList.remove("busy");
  }
}

/** Columns that are being prepared come by themselves; so does what a running build decides, when it is asked for. */
function poll() {
  clearTimeout(polling);
  if (counts.prepared.state !== "preparing") return;
  polling = setTimeout(async () => {
    try {
      counts = await get("facets", asked());
      state.about.prepared = counts.prepared;
      facets.draw($("facets"), counts, changed);
      bar();
      poll();
    } catch (error) { told(error); }
  }, 900);
}

function bar() {
  const { total, matching } = counts;
  const chips = [];
  const chipOf = (words, off) => chips.push(h("button", { type: "button", class: "chip off", on: { click: () => { off(); changed(); } } }, words, icon("close")));
  if (near) {
    fill($("bar"), h("button", { type: "button", class: "plain", on: { click: () => { near = null; searchBox(); refresh(); } } }, icon("back"), t("back")), h("p", { class: "found" }, h("b", {}, near.title)));
    return;
  }
  for (const facet of state.about.facets) {
    for (const value of state.chosen.get(facet.name) ?? []) {
      const row = counts.facets[facet.name]?.find((own) => own.value === value);
      chipOf(row ? say(row) : value, () => { state.chosen.set(facet.name, state.chosen.get(facet.name).filter((own) => own !== value)); if (!state.chosen.get(facet.name).length) state.chosen.delete(facet.name); });
    }
  }
  if (state.q) chipOf(`“${state.q}”`, () => { state.q = ""; });
  if (state.leader) chipOf(t("group_chip"), () => { state.leader = ""; });
  const sorts = state.about.sorts.filter((own) => own.name === "" || own.name === "random" || counts.prepared.state === "ready");
  const kinds = ["grid", "table"].map((name) => h("button", { type: "button", class: "plain", "aria-pressed": String(state.view === name), title: t(name), "aria-label": t(name), on: { click: () => view(name) } }, icon(name === "grid" ? "grid" : "rows")));
  fill($("bar"),
    h("button", { type: "button", class: "phone", "aria-label": t("filters"), on: { click: () => document.body.classList.add("filtering") } }, icon("filter"), h("span", { class: "label" }, t("filters"))),
    h("p", { class: "found" }, matching === total ? t("all_of_it", { total: n(total) }) : [h("b", {}, n(matching)), ` ${t("of_total", { n: "", total: n(total) })}`]),
    h("div", { class: "chips" }, chips),
    h("div", { class: "ways" },
      h("select", { "aria-label": t("sort"), on: { change: (event) => { state.sort = event.target.value; changed(); } } }, sorts.map((own) => h("option", { value: own.name, selected: own.name === state.sort }, say(own)))),
      h("div", { class: "views" }, kinds)));
  $("said").textContent = matching === total ? t("all_of_it", { total: n(total) }) : t("of_total", { n: n(matching), total: n(total) });
}

function emptiness(matching) {
  $("empty").hidden = matching > 0;
  $("list").hidden = matching === 0;
  if (matching) return;
  fill($("empty"), icon("search"), h("b", {}, counts.total === 0 ? t("empty_place") : state.q && state.chosen.size === 0 ? t("none_words") : t("none")),
    counts.total ? h("span", {}, t("none_hint")) : null,
    h("span", { class: "buttons" }, isFiltered() ? h("button", { type: "button", on: { click: () => { clear(); changed(); } } }, t("clear")) : null,
      counts.total ? h("button", { type: "button", on: { click: () => dialogs.why(openRow, state.q) } }, icon("why"), t("why")) : null));
}

function view(name) {
  state.view = name;
  write(true);
  bar();
  list.layout();
}

/** A row was chosen. */
function chosen(row) {
  state.id = row.key;
  write(true);
  document.body.classList.add("reading");
  const fate = row.fate === "kept" ? t("kept") : row.reasons.map(say).join(", ");
  $("said").textContent = t("selected", { text: row.text || t("untexted"), fate });
  detail.draw($("detail"), row, actions);
}

const actions = { open, filter, flag, like, told, copy, close: closeDetail };

function closeDetail() {
  document.body.classList.remove("reading");
  state.id = "";
  write(true);
  $("list").focus();
}

/** Show a candidate by its id or key, wherever it is in the list. */
async function open(id) {
  try {
    const found = await get("where", { id });
    if (found.pos === null) return undefined;
    if (found.g !== state.about.g) await again();
    const item = await get("item", { pos: found.pos, g: state.about.g });
    return openRow(item);
  } catch (error) { return told(error); }
}

function openRow(row) {
  chosen(row);
}

function filter(changes) {
  clear();
  Object.assign(state, changes);
  document.body.classList.remove("reading");
  changed();
}

async function like(row) {
  return neighbours({ pos: row.pos, g: state.about.g }, t("like_title"), row);
}

async function neighbours(query, title) {
  try {
    const { rows } = await get("similar", query);
    near = { title, text: query.text };
    document.body.classList.remove("reading");
    bar();
    list.show(rows.length, rows);
    emptiness(rows.length);
  } catch (error) { told(error); }
}

function flag(row) {
  if (state.flags.has(row.key)) state.flags.delete(row.key);
  else if (state.flags.size < 200) state.flags.set(row.key, { id: row.id, key: row.key, pos: row.pos, text: row.text.slice(0, 80), url: row.url.slice(0, 200), subject: row.subject, pictured: row.pictured });
  flagsChanged();
  detail.draw($("detail"), row, actions);
}

function flagsChanged() {
  remember(`wenlan-flags ${state.about.place}`, JSON.stringify([...state.flags.values()]));
  tools();
  for (const [number] of list.tiles) list.redraw(number);
}

async function takenDown() {
  closeDetail();
  await again();
}

async function signedOff() {
  await learn();
  fill($("title"), say(state.about.title), state.about.builds.length === 1 ? chip(state.about.builds[0]) : "");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch { toast(text); }
}

/** Reads the files again. */
async function reload() {
  try {
    await send("reload");
    await again();
  } catch (error) { told(error); }
}

/** Ask everything again: the files are others than before. */
async function again() {
  await learn();
  dress();
  await refresh(true);
}

let renewing = false;

/** Say what went wrong, in words of the page. */
async function told(error) {
  if (error.code === "changed" && !renewing) {
    renewing = true;
    try {
      await again();
      toast(t("changed"));
    } catch (other) { gone(true, other); }
    renewing = false;
    return;
  }
  if (error.code === "gone") gone(true);
  else if (error.status === 401) gone(true, error);
  else toast(error.message);
}

/** The server does not answer, or does again. */
function gone(is, error) {
  const there = $("gone");
  if (!is) return there?.remove();
  if (there) return undefined;
  const words = error?.status === 401 ? t("unauthorised") : t("gone");
  const box = h("p", { id: "gone", class: "notice gone", role: "alert" }, words, h("button", { type: "button", on: { click: async () => {
    try {
      await again();
      box.remove();
    } catch { /* it still is */ }
  } } }, icon("reload"), t("again")));
  return $("notices").prepend(box);
}

let fading = 0;
function toast(words) {
  const box = $("toast");
  box.textContent = words;
  box.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { box.hidden = true; }, 5_000);
}

function translate() {
  speak(lang() === "en" ? "zh" : "en");
  dress();
  facets.draw($("facets"), counts, changed);
  bar();
  emptiness(list.total);
  for (const [number] of list.tiles) list.redraw(number);
  if (state.id) open(state.id);
}

const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function paint(theme) {
  if (theme !== "dark" && theme !== "light") return;
  document.documentElement.dataset.theme = theme;
  remember("wenlan-theme", theme);
}

addEventListener("popstate", () => {
  read();
  near = null;
  refresh();
  if (state.id) open(state.id);
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  if (document.querySelector("dialog[open]")) return; // its Escape is the browser's, wherever the focus went
  const row = list.at >= 0 ? list.row(list.at) : null;
  const run = {
    "/": () => $("search").q.focus(), w: () => dialogs.why(openRow), v: () => view(state.view === "grid" ? "table" : "grid"),
    f: () => row && state.about.store && !row.withheld && flag(row), r: () => detail.toggleRegions($("detail")), "?": dialogs.keys,
    m: () => row?.fate === "kept" && state.about.similar && like(row),
    Escape: () => (document.body.classList.contains("reading") ? closeDetail() : document.body.classList.remove("filtering")),
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!run) return;
  event.preventDefault();
  run();
});

begin();
