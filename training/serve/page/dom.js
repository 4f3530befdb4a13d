/** What the page's files share: the elements of both pages, its drawings, and what screen readers are told. */

import { drawing } from "./elements.js";

export { fill as show, h, svg } from "./elements.js";

/** The element with this id; the page has it. */
export const $ = (id) => document.getElementById(id);

/** One of the page's own drawings. */
export const icon = (name) => drawing(ICONS[name]);

const ICONS = {
  close: "M6 6l12 12M18 6 6 18",
  like: "M4 7.500A3.500 3.500 0 0 1 7.500 4h5M20 16.500a3.500 3.500 0 0 1-3.500 3.500h-5M9.500 9.500h8v8h-8zM4 11.500v5A3.500 3.500 0 0 0 7.500 20",
  parts: "M4 8V5.500A1.500 1.500 0 0 1 5.500 4H8M16 4h2.500A1.500 1.500 0 0 1 20 5.500V8M20 16v2.500a1.500 1.500 0 0 1-1.500 1.500H16M8 20H5.500A1.500 1.500 0 0 1 4 18.500V16M9 9h6v6H9z",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  out: "M14 4h6v6M20 4l-9 9M18 14v4.500a1.500 1.500 0 0 1-1.500 1.500h-11A1.500 1.500 0 0 1 4 18.500v-11A1.500 1.500 0 0 1 5.500 6H10",
  link: "M10 14a4 4 0 0 0 5.700 0l3-3A4 4 0 0 0 13 5.300l-1 1M14 10a4 4 0 0 0-5.700 0l-3 3A4 4 0 0 0 11 18.700l1-1",
  copies: "M8 8h12v12H8zM4 16V5.500A1.500 1.500 0 0 1 5.500 4H16",
  add: "M12 5v14M5 12h14",
  bin: "M5 7h14M10 7V4.500h4V7M7 7l1 12.500h8L17 7M10.500 10.500v5.500M13.500 10.500v5.500",
  down: "M6 9.500l6 6 6-6",
  filter: "M4 6h16M7 12h10M10 18h4",
  pen: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  text: "M5 6h14M5 11h14M5 16h9",
  picture: "M3.500 5h17v14h-17zM4 17l5-4.500 3.500 3 4-4.500 4 4",
};

/** Say something to those who do not see the page change. */
export function announce(text) {
  const said = $("said");
  said.textContent = "";
  requestAnimationFrame(() => (said.textContent = text));
}
