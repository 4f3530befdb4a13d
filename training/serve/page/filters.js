/** Filters: which sources, licences, splits, sizes and scores; their panel, with counts, and a chip for each in use. */

import { inWords } from "./cards.js";
import { $, h, icon, show } from "./dom.js";
import { FACETS, NOTHING, filtersOn } from "./state.js";
import { named, number, t } from "./words.js";

const SIDES = [0, 100, 200, 400, 800];
const SCORES = [0, 0.9, 0.99, 0.999];

/** What a value of a facet is called. */
const called = (facet, value) => (value === "" ? t("blank") : facet === "split" ? named("split", value) : value);

const scoreName = (score) => (score ? inWords(score) : t("anyScore"));

/**
 * Draw panel, chips and button. collection: its record; scored: whether hits of this query have scores;
 * change(part of a query): a filter was set.
 */
export function filterPanel(query, collection, scored, change) {
  const on = filtersOn(query);
  const button = $("filter");
  show(button, icon("filter"), h("span", {}, t("filters")), on ? h("span", { class: "count" }, number(on)) : null);
  show($("filters"), ...FACETS.map((facet) => facetBox(facet, query, collection, change)), sizes(query, collection, scored, change));
  chips(query, change);
}

function facetBox(facet, query, collection, change) {
  const counts = Object.entries(collection?.facets?.[facet] ?? {}).sort((a, b) => b[1] - a[1]);
  const chosen = query[facet];
  for (const value of chosen) if (!counts.some(([known]) => known === value)) counts.push([value, 0]);
  if (!counts.length) return null;
  const rows = counts.map(([value, count]) => {
    const flip = (event) => change({ [facet]: event.target.checked ? [...chosen, value] : chosen.filter((one) => one !== value) });
    const box = h("input", { type: "checkbox", checked: chosen.includes(value), data: { facet, value }, on: { change: flip } });
    return h("label", {}, box, h("span", { class: "value", title: called(facet, value) }, called(facet, value)), h("span", { class: "amount" }, number(count)));
  });
  return h("fieldset", {}, h("legend", {}, t(`facet.${facet}`)), h("div", { class: "values" }, rows));
}

function sizes(query, collection, scored, change) {
  const select = (name, values, current, word, set) =>
    h("label", { class: "pick" }, h("span", {}, name),
      h("select", { on: { change: (event) => set(Number(event.target.value)) } },
        [...new Set([...values, current])].sort((a, b) => a - b).map((value) => h("option", { value, selected: value === current }, word(value)))));
  const copies = h("label", {}, h("input", { type: "checkbox", checked: query.copies, on: { change: (event) => change({ copies: event.target.checked }) } }), h("span", { class: "value" }, t("showCopies")));
  return h("fieldset", {}, h("legend", { class: "hide" }, t("side")),
    collection?.images ? select(t("side"), SIDES, query.side, (side) => (side ? t("atLeast", side) : t("anySize")), (side) => change({ side })) : null,
    scored || query.score ? select(t("closeness"), SCORES, query.score, scoreName, (score) => change({ score })) : null,
    copies);
}

function chips(query, change) {
  const chip = (what, without) =>
    h("li", {}, h("button", { type: "button", "aria-label": t("without", what), title: t("without", what), on: { click: () => change(without) } }, h("span", {}, what), icon("close")));
  const all = FACETS.flatMap((facet) => query[facet].map((value) => chip(called(facet, value), { [facet]: query[facet].filter((one) => one !== value) })));
  if (query.side) all.push(chip(`${t("side")} ${t("atLeast", query.side)}`, { side: 0 }));
  if (query.score) all.push(chip(`${t("closeness")}: ${scoreName(query.score)}`, { score: 0 }));
  if (query.copies) all.push(chip(t("copiesOn"), { copies: false }));
  if (all.length > 1) all.push(h("li", {}, h("button", { type: "button", class: "clear", on: { click: () => change(WITHOUT) } }, t("clearFilters"))));
  show($("chosen"), all);
  $("chosen").hidden = !all.length;
}

/** The part of a query that takes all filters away. */
export const WITHOUT = { source: NOTHING.source, license: NOTHING.license, split: NOTHING.split, side: 0, score: 0, copies: false };
