/**
 * The server's calls, each with a time limit, and what may go wrong as one kind of error that says what to do.
 *
 * Addresses are relative to the page, so that it also works below a path of a proxy.
 */

const LIMIT_MS = 60_000;

/** What went wrong. kind: a name in `faults` of words.js; said: the server's own words; after: seconds to wait. */
export class Trouble extends Error {
  constructor(kind, said = "", after = 0) {
    super(`${kind}: ${said}`);
    Object.assign(this, { kind, said, after });
  }
}

const KINDS = { 401: "denied", 403: "denied", 404: "missing", 408: "timeout", 410: "missing", 413: "large", 429: "busy", 503: "busy", 504: "timeout" };

/** An address of this server, from one that begins with "/". */
export const here = (path) => new URL(`.${path}`, document.baseURI).href;

async function ask(path, { signal, limit = LIMIT_MS, ...rest } = {}) {
  const late = AbortSignal.timeout(limit);
  let answer;
  try {
    answer = await fetch(here(path), { ...rest, signal: signal ? (AbortSignal.any?.([signal, late]) ?? signal) : late, redirect: "error" });
    if (answer.ok) return await answer.json();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (late.aborted) throw new Trouble("timeout");
    throw new Trouble(error instanceof SyntaxError ? "broken" : "gone", error instanceof SyntaxError ? "no JSON" : "");
  }
  const said = await answer.json().then((body) => body?.error?.message ?? "", () => "");
  const after = Number(answer.headers.get("retry-after")) || 0;
  throw new Trouble(KINDS[answer.status] ?? (answer.status >= 500 ? "broken" : "refused"), String(said), after);
}

/** The collections: [{name, rows, images, texts, facets, calibrated, own, problem}]. */
export const collections = () => ask("/collections", { limit: 15_000 });

/** Answer of POST /search: {hits, more, took_ms, exact, query}. */
export const search = (request, signal) =>
  ask("/search", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request), signal });

/** One sample as a hit. */
export const sample = (collection, id) =>
  ask(`/collections/${encodeURIComponent(collection)}/samples/${encodeURIComponent(id)}`);

/** Add files to a collection of one's own, which is made if it is not there. Gives its record. */
export function add(name, files, signal) {
  const form = new FormData();
  form.append("name", name);
  for (const file of files) form.append("files", file, file.name);
  return ask("/collections", { method: "POST", body: form, signal, limit: 10 * LIMIT_MS });
}

/** Delete a collection of one's own. */
export const remove = (name) => ask(`/collections/${encodeURIComponent(name)}`, { method: "DELETE" });

/** The address of a hit's picture, at most `side` pixels on its longer side; the stored size without it. */
export const picture = (hit, side) => here(hit.image) + (side ? `?side=${side}` : "");

/** The content of a hit's picture as it is stored. */
export async function pictureFile(hit) {
  const answer = await fetch(picture(hit)).catch(() => null);
  if (!answer?.ok) throw new Trouble(answer ? "missing" : "gone");
  return answer.blob();
}
