/**
 * What is asked, and its address: every query, filter and open sample is a URL that can be shared, kept and gone back to.
 *
 * A picture of one's own is named by its digest; its bytes are in this browser only (pictures.js).
 */

/** The query of an empty address. Arrays and objects in it are never changed in place. */
export const NOTHING = Object.freeze({
  collection: "",
  target: "image",
  mode: "meaning",
  text: "",
  picture: "",
  like: "",
  region: null,
  source: [],
  license: [],
  split: [],
  side: 0,
  score: 0,
  copies: false,
  open: "",
});

export const FACETS = ["source", "license", "split"];

const choice = (value, known) => (known.includes(value) ? value : known[0]);
const amount = (value) => (Number.isFinite(Number(value)) ? Math.max(0, Number(value)) : 0);

/** The query that an address says; what is not understood in it is left out. */
export function fromAddress(search) {
  const said = new URLSearchParams(search);
  const region = (said.get("region") ?? "").split(",").map(Number);
  const whole = region.length === 4 && region.every(Number.isFinite) && region[0] < region[2] && region[1] < region[3];
  return Object.freeze({
    collection: said.get("in") ?? "",
    target: choice(said.get("find"), ["image", "text"]),
    mode: choice(said.get("by"), ["meaning", "words", "both"]),
    text: said.get("q") ?? "",
    picture: said.get("picture") ?? "",
    like: said.get("like") ?? "",
    region: whole ? region : null,
    source: said.getAll("source"),
    license: said.getAll("license"),
    split: said.getAll("split"),
    side: amount(said.get("side")),
    score: Math.min(1, amount(said.get("score"))),
    copies: said.has("copies"),
    open: said.get("open") ?? "",
  });
}

/** The address of a query, relative to the page; what is as in NOTHING is not said. */
export function address(query) {
  const said = new URLSearchParams();
  const say = (name, value) => value && said.append(name, value);
  say("in", query.collection);
  say("q", query.text);
  say("picture", query.picture);
  say("like", query.like);
  if (query.picture || query.like) say("region", query.region?.map((number) => Math.round(number)).join(","));
  if (query.target !== NOTHING.target) say("find", query.target);
  if (query.mode !== NOTHING.mode) say("by", query.mode);
  for (const facet of FACETS) for (const value of query[facet]) said.append(facet, value);
  say("side", query.side);
  say("score", query.score);
  if (query.copies) said.append("copies", "1");
  say("open", query.open);
  const text = said.toString();
  return text ? `?${text}` : "./";
}

/** The same query with some parts changed; only one of text, picture and like is asked with. */
export function changed(query, change) {
  const next = { ...query, ...change };
  if (change.text) Object.assign(next, { picture: "", like: "", region: null });
  if (change.picture) Object.assign(next, { text: "", like: "", region: change.region ?? null });
  if (change.like) Object.assign(next, { text: "", picture: "", region: change.region ?? null });
  if (!next.picture && !next.like) next.region = null;
  if (!next.text) next.mode = "meaning";
  if (!crosses(next)) next.score = 0;
  return Object.freeze(next);
}

/** Whether something is asked with at all. */
export const asks = (query) => Boolean(query.text || query.picture || query.like);

/** Whether what is asked with and what is found are of two kinds, picture and text: only those cosines have scores. */
export const crosses = (query) => asks(query) && query.mode !== "words" && (query.text ? "text" : "image") !== query.target;

/** Whether two queries have the same answer: all but what is open. */
export const sameAnswer = (a, b) => address({ ...a, open: "" }) === address({ ...b, open: "" });

/** How many filters are in use. */
export const filtersOn = (query) =>
  FACETS.reduce((sum, facet) => sum + query[facet].length, 0) + (query.side > 0) + (query.score > 0) + query.copies;

/** The filters of a query as POST /search takes them. */
export function filters(query) {
  const said = {};
  for (const facet of FACETS) if (query[facet].length) said[facet] = query[facet];
  if (query.side) said.min_side = query.side;
  if (query.score) said.min_score = query.score;
  return said;
}
