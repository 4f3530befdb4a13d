/**
 * The parts of a picture: boxes drawn over it, of which one is chosen by pointer or keys, or a frame drawn by hand.
 *
 * Where boxes overlap, the pointer chooses the smallest below it, so that every box but a hidden one can be reached.
 * Coordinates are pixels of the stored picture, as in the contract: [x1, y1, x2, y2].
 */

import { h, svg } from "./dom.js";
import { t } from "./words.js";

const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
const frame = ([x1, y1, x2, y2]) => ({ x: x1, y: y1, width: Math.max(1, x2 - x1), height: Math.max(1, y2 - y1) });
const hole = ({ width, height }, [x1, y1, x2, y2]) => `M0 0H${width}V${height}H0zM${x1} ${y1}V${y2}H${x2}V${y1}z`;

/** Pixels of the screen below which a movement is a click, and a frame too small to mean anything. */
const CLICK = 6;

/**
 * An overlay for a picture of `width` x `height`.
 *
 * pick(box): a box was clicked or drawn; without it boxes are only shown. chosen: the box that is searched by now.
 * draw: frames may be drawn with a mouse; `drawing` switches that on for fingers. slice: the picture fills its frame.
 */
export class Parts {
  constructor({ width, height, boxes, pick = null, chosen = null, draw = false, slice = false }) {
    Object.assign(this, { width, height, boxes, pick, chosen, draw, drawing: false, current: -1, start: null });
    this.shade = svg("path", { class: "shade", "fill-rule": "evenodd" });
    this.lines = boxes.map((box) => svg("g", { class: "box" }, svg("rect", frame(box)), svg("rect", frame(box))));
    this.own = svg("g", { class: "box on" }, svg("rect", {}), svg("rect", {}));
    this.own.style.display = "none";
    const fit = `xMidYMid ${slice ? "slice" : "meet"}`;
    const settings = { class: `parts${pick ? " pickable" : ""}`, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: fit, "aria-hidden": "true" };
    const on = { pointermove: (e) => this.moved(e), pointerleave: () => this.left(), pointerdown: (e) => this.pressed(e), pointerup: (e) => this.released(e), pointercancel: () => this.stopDrawing() };
    this.node = svg("svg", { ...settings, on }, this.shade, this.lines, this.own);
    this.paint();
  }

  /** Make one box the current one; -1 for none. */
  choose(index) {
    this.current = index;
    this.paint();
  }

  /** Walk through the boxes, from the largest to the smallest and round again. */
  step(by) {
    const order = this.boxes.map((_, index) => index);
    const at = order.indexOf(this.current);
    this.choose(order[(at + by + order.length + (at < 0 && by < 0 ? 1 : 0)) % order.length] ?? -1);
  }

  /** Let a finger draw a frame, or no longer. */
  allowDrawing(yes) {
    this.drawing = yes;
    this.node.classList.toggle("drawing", yes);
  }

  paint() {
    this.lines.forEach((line, index) => line.classList.toggle("on", index === this.current));
    const lit = this.boxes[this.current] ?? this.chosen;
    this.shade.setAttribute("d", lit ? hole(this, lit) : "");
    this.node.classList.toggle("lit", Boolean(lit));
    if (this.start?.box || this.chosen) this.place(this.start?.box ?? this.chosen);
    else this.own.style.display = "none";
  }

  place(box) {
    this.own.style.display = "";
    for (const rect of this.own.children) for (const [name, value] of Object.entries(frame(box))) rect.setAttribute(name, value);
    if (this.start?.box) this.shade.setAttribute("d", hole(this, box));
  }

  /** Where an event is, in pixels of the picture. */
  at(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.node.getScreenCTM().inverse());
    return [Math.min(Math.max(point.x, 0), this.width), Math.min(Math.max(point.y, 0), this.height)];
  }

  /** Index of the smallest box that holds a point; -1 for none. */
  below([x, y]) {
    let found = -1;
    this.boxes.forEach((box, index) => {
      if (x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3] && (found < 0 || area(box) < area(this.boxes[found]))) found = index;
    });
    return found;
  }

  moved(event) {
    if (!this.start) return this.choose(this.below(this.at(event)));
    const far = Math.hypot(event.clientX - this.start.clientX, event.clientY - this.start.clientY) > CLICK;
    if (!this.start.draws || (!far && !this.start.box)) return undefined;
    const [[ax, ay], [bx, by]] = [this.start.point, this.at(event)];
    this.start.box = [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
    this.current = -1;
    return this.paint();
  }

  left() {
    if (!this.start) this.choose(-1);
  }

  pressed(event) {
    if (!this.pick || event.button !== 0) return;
    const draws = this.draw && (event.pointerType !== "touch" || this.drawing);
    this.start = { clientX: event.clientX, clientY: event.clientY, point: this.at(event), draws, box: null };
    if (draws) this.node.setPointerCapture(event.pointerId);
    if (draws) event.preventDefault();
  }

  released(event) {
    if (!this.start) return;
    const { box, clientX, clientY } = this.start;
    this.start = null;
    if (box && box[2] - box[0] >= 2 && box[3] - box[1] >= 2) return this.pick(box);
    const moved = Math.hypot(event.clientX - clientX, event.clientY - clientY) > CLICK;
    const index = this.below(this.at(event));
    if (!moved && index >= 0) return this.pick(this.boxes[index]);
    return this.paint();
  }

  stopDrawing() {
    this.start = null;
    this.paint();
  }
}

/** A part of a picture, cut out by the browser: the address of the picture, its size, and the box. */
export function cutout(url, { width, height }, box) {
  const { x, y, width: w, height: tall } = frame(box);
  const picture = svg("image", { href: url, width, height, preserveAspectRatio: "none" });
  return svg("svg", { class: "cutout", viewBox: `${x} ${y} ${w} ${tall}`, preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" }, picture);
}

/** A row of buttons, one for each part, that light up their box in `parts` and search by it. */
export function strip(url, parts) {
  const buttons = parts.boxes.map((box, index) =>
    h("button", {
      type: "button",
      "aria-label": t("part", index + 1),
      title: t("part", index + 1),
      "aria-pressed": String(same(box, parts.chosen)),
      on: {
        click: () => parts.pick(box),
        pointerenter: () => parts.choose(index),
        pointerleave: () => parts.choose(-1),
        focus: () => parts.choose(index),
        blur: () => parts.choose(-1),
      },
    }, cutout(url, parts, box)),
  );
  return h("div", { class: "strip", role: "group", "aria-label": t("parts") }, buttons);
}

/** Whether two boxes are the same to the pixel, as an address tells them. */
export const same = (a, b) => Boolean(a && b) && a.every((number, i) => Math.round(number) === Math.round(b[i]));
