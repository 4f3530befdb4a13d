/**
 * Elements of both pages, made without HTML: what strangers wrote becomes text nodes and attributes, never markup.
 *
 * Inline styles as attributes are refused by a content security policy; `style` sets properties one by one, which it
 * allows.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `attributes`: `on` an object of listeners, `style` one of CSS properties, `data` one of data attributes,
 * `value` that of a field; true sets an attribute without a value; false, null and undefined leave it out. Children:
 * elements, texts and lists of them; null, undefined and false are left out.
 */
export const h = (tag, attributes = {}, ...children) => made(document.createElement(tag), attributes, children);

/** The same of SVG. */
export const svg = (tag, attributes = {}, ...children) => made(document.createElementNS(SVG, tag), attributes, children);

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "value" && node.namespaceURI !== SVG) node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  return add(node, children);
}

function add(node, children) {
  node.append(...children.flat(Infinity).filter((child) => child !== false && child !== null && child !== undefined));
  return node;
}

/** Puts these children into a node, in place of what it holds; gives the node. */
export function fill(node, ...children) {
  node.replaceChildren();
  return add(node, children);
}

/** A drawing in lines, 24 x 24, by its path; decoration only, so that screen readers pass over it. */
export const drawing = (path) =>
  svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: path }));
