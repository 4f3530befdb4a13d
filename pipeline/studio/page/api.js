// Questions to the studio's server, which is on this machine. A fault is an Error with `code` and words for people.

export class Fault extends Error {
  constructor(message, code, status, why) {
    super(message);
    Object.assign(this, { code, status, why });
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("the studio does not answer", "gone", 0);
  }
  let body = {};
  try {
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!answer.ok) {
    const said = body.error ?? {};
    throw new Fault(said.message ?? answer.statusText, said.code ?? "", answer.status, body.why);
  }
  return body;
}

export function get(path, query = {}, signal) {
  const pairs = query instanceof URLSearchParams ? query : new URLSearchParams(query);
  const text = pairs.toString();
  return ask(`/api/${path}${text ? `?${text}` : ""}`, { signal });
}

export function send(path, body) {
  const headers = { "Content-Type": "application/json" };
  return ask(`/api/${path}`, { method: "POST", headers, body: body === undefined ? undefined : JSON.stringify(body) });
}

export function thumb(row, g, side, held = "") {
  const query = new URLSearchParams({ pos: row.pos, g, side });
  if (held) query.set("held", held);
  return `/api/thumb?${query}`;
}

/** Ask for a command until it has ended; `told` hears of its lines meanwhile. */
export async function ended(job, told = () => {}) {
  let now = job;
  while (now.code === null) {
    told(now);
    await new Promise((resolve) => setTimeout(resolve, 400));
    now = await get("job", { number: now.number });
  }
  told(now);
  return now;
}
