// The first pane: the facets with their counts.

import { fill, h, icon } from "./dom.js";
import { clear, isFiltered, state, toggle } from "./state.js";
import { n, say, t } from "./words.js";

const SHORT = 7;
const unfolded = new Set(), telling = new Set();
const folded = new Set(["subject", "split"]);

/** Draw the pane. counts: what the server answered; changed(): the choice is another one. */
export function draw(pane, counts, changed) {
  const first = pane.scrollTop;
  fill(pane,
    h("div", { class: "pane-head phone" }, h("h2", {}, t("filters")),
      h("button", { type: "button", class: "plain", "aria-label": t("close"), on: { click: () => document.body.classList.remove("filtering") } }, icon("close"))),
    isFiltered() ? h("button", { type: "button", class: "wide", on: { click: () => { clear(); changed(); } } }, t("clear")) : null,
    preparing(counts.prepared),
    state.about.facets.map((facet) => one(facet, counts.facets[facet.name], changed, () => draw(pane, counts, changed))));
  pane.scrollTop = first;
}

function preparing(now) {
  if (now.state === "ready") return null;
  if (now.state === "failed") return h("p", { class: "note bad" }, t("prepare_failed", { fault: now.fault }));
  const bar = h("progress", { max: "1", value: now.share, "aria-label": t("preparing", { share: Math.round(100 * now.share) }) });
  return h("div", { class: "note" }, h("p", {}, t("preparing", { share: Math.round(100 * now.share) })), bar);
}

function one(facet, rows, changed, again) {
  const chosen = state.chosen.get(facet.name) ?? [];
  if (rows?.length > 1) telling.add(facet.name);
  if (!rows || (!telling.has(facet.name) && !chosen.length)) return null; // with one value there is nothing to choose
  const known = rows.filter((row) => row.value !== "" || !facet.binned);
  const blank = facet.binned ? rows.filter((row) => row.value === "") : [];
  const whole = facet.binned || unfolded.has(facet.name) || known.length <= SHORT + 1;
  const shown = whole ? known : known.slice(0, SHORT);
  for (const value of chosen) {
    if (![...shown, ...blank].some((row) => row.value === value)) {
      shown.push(rows.find((row) => row.value === value) ?? { value, count: 0, en: value, zh: value });
    }
  }
  if (!shown.length && !blank.length) return null;
  const most = Math.max(1, ...shown.map((row) => row.count));
  const fold = h("details", { class: `facet${facet.binned ? " binned" : ""}`, open: chosen.length > 0 || !folded.has(facet.name) },
    h("summary", {}, h("h2", {}, say(facet)), chosen.length ? h("span", { class: "count chosen" }, String(chosen.length)) : null),
    h("ul", {}, [...shown, ...blank].map((row) => h("li", {}, value(facet, row, chosen, most, changed)))),
    facet.binned || known.length <= SHORT + 1 ? null : h("button", {
      type: "button", class: "plain more",
      on: { click: () => { unfolded.has(facet.name) ? unfolded.delete(facet.name) : unfolded.add(facet.name); again(); } },
    }, whole ? t("show_less") : t("show_more", { n: n(known.length - SHORT) })));
  fold.addEventListener("toggle", () => (fold.open ? folded.delete(facet.name) : folded.add(facet.name)));
  return fold;
}

function value(facet, row, chosen, most, changed) {
  const box = h("input", { type: "checkbox", on: { change: () => { toggle(facet.name, row.value); changed(); } } });
  box.checked = chosen.includes(row.value);
  const bar = h("i", { class: "bar", "aria-hidden": "true" });
  bar.style.width = `${row.value === "" ? 0 : (100 * row.count) / most}%`;
  const tone = facet.name === "fate" ? ` ${row.value}` : "";
  return h("label", { class: `value${tone}`, title: facet.name === "reason" || facet.name === "stage" ? row.value : null },
    bar, box, h("span", { class: "name" }, say(row)), h("span", { class: "count" }, n(row.count)));
}
