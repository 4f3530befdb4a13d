// What the page shows now, kept in the address after `#`, so that Back works and a link can be sent to a colleague.

const SINGLE = ["q", "leader", "sort", "view", "id"];

export const state = { about: null, chosen: new Map(), q: "", leader: "", sort: "", view: "grid", id: "", flags: new Map() };

/** Read the address. */
export function read() {
  const query = new URLSearchParams(location.hash.slice(1));
  const known = new Set((state.about?.facets ?? []).map((facet) => facet.name));
  state.chosen = new Map();
  for (const [name, value] of query) {
    if (known.has(name)) state.chosen.set(name, [...(state.chosen.get(name) ?? []), value]);
  }
  for (const name of SINGLE) state[name] = query.get(name) ?? "";
  state.view = state.view === "table" ? "table" : "grid";
}

/** What is asked of the server: facets, words, group, order. */
export function asked() {
  const query = new URLSearchParams();
  for (const [name, values] of state.chosen) for (const value of values) query.append(name, value);
  for (const name of ["q", "leader", "sort"]) if (state[name]) query.set(name, state[name]);
  return query;
}

/** Write the address. replace: without a step that Back would go to. */
export function write(replace = false) {
  const query = asked();
  if (state.view === "table") query.set("view", "table");
  if (state.id) query.set("id", state.id);
  const hash = `#${query}`;
  if (hash === location.hash || (hash === "#" && !location.hash)) return;
  history[replace ? "replaceState" : "pushState"](null, "", hash);
}

export function toggle(name, value) {
  const values = state.chosen.get(name) ?? [];
  const left = values.includes(value) ? values.filter((own) => own !== value) : [...values, value];
  if (left.length) state.chosen.set(name, left);
  else state.chosen.delete(name);
}

export function clear() {
  state.chosen = new Map();
  state.q = state.leader = "";
}

export const isFiltered = () => state.chosen.size > 0 || state.q !== "" || state.leader !== "";
