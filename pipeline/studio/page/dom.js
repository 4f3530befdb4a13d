// What the studio's files share: the elements of both pages, its drawings, links, marked words, what a browser keeps.

import { drawing, h } from "./elements.js";

export { fill, h, svg as s } from "./elements.js";

/** A word of a command line, quoted where a POSIX shell would not take it as it is. */
export function shell(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\"'\"'")}'`;
}

const PATHS = {
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14ZM20 20l-4-4",
  grid: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  rows: "M4 6h16M4 12h16M4 18h16",
  flag: "M6 21V4h11l-2 4 2 4H6",
  close: "M6 6l12 12M18 6L6 18",
  out: "M14 4h6v6M20 4l-9 9M18 14v6H4V6h6",
  moon: "M20 14A8 8 0 0 1 10 4a8 8 0 1 0 10 10Z",
  why: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM9.5 9.5a2.5 2.5 0 1 1 3.5 2.3c-.7.4-1 .8-1 1.7M12 16.5v.5",
  filter: "M4 6h16M7 12h10M10 18h4",
  seal: "M12 3l7 3v5c0 5-3 8-7 10-4-2-7-5-7-10V6zM9 12l2 2 4-4",
  back: "M15 5l-7 7 7 7",
  like: "M4 5h10v10H4zM10 9h10v10H10z",
  report: "M6 3h9l4 4v14H6zM9 12h7M9 16h7M9 8h3",
  keys: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8",
  reload: "M20 11A8 8 0 1 0 18 17M20 5v6h-6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
};

/** One of the studio's drawings. */
export const icon = (name) => drawing(PATHS[name]);

/** An address with its Chinese characters instead of %XX; as it is, if that would hide something. */
function readable(url) {
  try {
    const text = decodeURI(url);
    return /[\p{C}\p{Z}]/u.test(text) ? url : text;
  } catch {
    return url;
  }
}

/** A link to the web, if the address is one; plain text otherwise: `javascript:` and the like are never followed. */
export function link(url, text = readable(url)) {
  if (!/^https?:\/\//i.test(url)) return h("span", { class: "address" }, text);
  return h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow", class: "address" }, text);
}

/** Text with the searched words marked. */
export function marked(text, words) {
  const found = words.filter(Boolean).map((word) => word.toLowerCase());
  if (!found.length) return [text];
  const parts = [], low = text.toLowerCase();
  let at = 0;
  while (at < text.length) {
    let next = -1, length = 0;
    for (const word of found) {
      const here = low.indexOf(word, at);
      if (here >= 0 && (next < 0 || here < next)) [next, length] = [here, word.length];
    }
    if (next < 0) break;
    parts.push(text.slice(at, next), h("mark", {}, text.slice(next, next + length)));
    at = next + length;
  }
  parts.push(text.slice(at));
  return parts;
}

/** Keep a value under a name for the next visit; a browser that keeps nothing is fine. */
export function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* private windows */ }
}

export function recall(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}
