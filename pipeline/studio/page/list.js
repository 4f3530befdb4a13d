// The list: any number of rows, of which only those in sight are elements, and only a few blocks are kept in memory.
//
// A browser cannot scroll further than some ten million pixels. A longer list is scrolled exactly as long as one moves
// by less than two screens at a time, and in proportion when the scroll bar is dragged; once scrolling rests, the bar
// is put where it belongs.

import { get, thumb } from "./api.js";
import { h, marked } from "./dom.js";
import { asked, state } from "./state.js";
import { say, t } from "./words.js";

const BLOCK = 60, BLOCKS = 24, TALLEST = 8_000_000, GAP = 12;

export class List {
  /** box: the element that scrolls. chosen(row, number): called when a row is. */
  constructor(box, { chosen, fault }) {
    Object.assign(this, { box, chosen, fault, total: 0, at: -1, top: 0, last: 0, blocks: new Map(), tiles: new Map() });
    this.given = null; // rows that are not a listing of the server: neighbours
    this.spacer = h("div", { class: "spacer" });
    this.box.append(this.spacer);
    this.box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.box.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.layout()).observe(box);
    this.controller = new AbortController();
  }

  /** Show a listing of `total` rows; or `rows`, which are there already. */
  show(total, rows = null) {
    this.controller.abort();
    this.controller = new AbortController();
    Object.assign(this, { total, given: rows, at: -1, top: 0, last: 0 });
    this.blocks.clear();
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
    this.box.scrollTop = 0;
    this.box.removeAttribute("aria-activedescendant");
    this.layout();
  }

  layout() {
    const width = this.box.clientWidth - 2 * GAP, table = state.view === "table";
    if (width <= 0) return;
    const first = Math.floor(this.top / (this.high || 1)) * (this.columns || 1);
    const least = width < 520 ? 130 : 172;
    this.columns = table ? 1 : Math.max(2, Math.floor((width + GAP) / (least + GAP)));
    this.wide = table ? width : (width - GAP * (this.columns - 1)) / this.columns;
    this.high = table ? 64 : Math.round(this.wide * 0.78) + 82 + GAP;
    this.box.classList.toggle("table", table);
    this.rows = Math.ceil(this.total / this.columns);
    this.tall = this.rows * this.high + GAP;
    this.spacer.style.height = `${Math.min(this.tall, TALLEST)}px`;
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
    this.go(Math.floor(first / this.columns) * this.high);
  }

  /** Scroll to a height of the whole list. */
  go(top) {
    this.top = Math.max(0, Math.min(top, this.tall - this.box.clientHeight));
    this.settle();
    this.draw();
  }

  /** Put the scroll bar where `top` is in proportion; what is shown does not move. */
  settle() {
    const far = this.tall - this.box.clientHeight, can = Math.min(this.tall, TALLEST) - this.box.clientHeight;
    this.box.scrollTop = far > can && far > 0 ? Math.round((this.top / far) * can) : Math.round(this.top);
    this.last = this.box.scrollTop;
    this.place();
  }

  /** The list rests, unless it has just been moved and the browser has not said so yet. */
  rested() {
    if (this.box.scrollTop === this.last) this.settle();
    else this.scrolled();
  }

  scrolled() {
    const now = this.box.scrollTop, moved = now - this.last, screen = this.box.clientHeight;
    if (!moved) return;
    const far = this.tall - screen, can = Math.min(this.tall, TALLEST) - screen;
    const exact = far <= can ? now : Math.abs(moved) < 2 * screen ? this.top + moved : (now / can) * far;
    this.top = Math.max(0, Math.min(exact, far));
    this.last = now;
    if (far > can) {
      clearTimeout(this.rest);
      if ((now <= 0 && this.top > 0) || (now >= can && this.top < far)) this.settle();
      else this.rest = setTimeout(() => this.rested(), 180);
    }
    this.draw();
  }

  /** Put tiles in sight into place, and take away the others. */
  draw() {
    const screen = this.box.clientHeight;
    if (!this.columns || !screen) return;
    const from = Math.max(0, Math.floor(this.top / this.high) - 1) * this.columns;
    const to = Math.min(this.total, (Math.ceil((this.top + screen) / this.high) + 1) * this.columns);
    for (const [number, tile] of this.tiles) {
      if (number < from || number >= to) {
        tile.remove();
        this.tiles.delete(number);
      }
    }
    for (let number = from; number < to; number++) {
      if (!this.tiles.has(number)) {
        const tile = this.tile(number);
        this.tiles.set(number, tile);
        this.spacer.append(tile);
      }
    }
    this.place();
    this.want(from, to);
  }

  place() {
    const shift = this.box.scrollTop - this.top; // of a list that is taller than a browser scrolls
    for (const [number, tile] of this.tiles) {
      const row = Math.floor(number / this.columns), column = number % this.columns;
      tile.style.transform = `translate(${Math.round(GAP + column * (this.wide + GAP))}px, ${Math.round(GAP + row * this.high + shift)}px)`;
      tile.style.width = `${Math.floor(this.wide)}px`;
      tile.style.height = `${this.high - GAP}px`;
    }
  }

  /** Ask for the blocks that hold these rows, once the list rests on them. */
  want(from, to) {
    if (this.given) return;
    clearTimeout(this.asking);
    this.asking = setTimeout(() => {
      for (let block = Math.floor(from / BLOCK); block <= Math.floor(Math.max(from, to - 1) / BLOCK); block++) this.load(block);
    }, this.blocks.size ? 60 : 0);
  }

  async load(block) {
    if (this.blocks.has(block) || block * BLOCK >= this.total) return;
    this.blocks.set(block, null);
    const { controller } = this, query = asked();
    query.set("g", state.about.g);
    query.set("offset", block * BLOCK);
    query.set("limit", BLOCK);
    try {
      const { rows } = await get("rows", query, controller.signal);
      if (controller.signal.aborted) return;
      this.blocks.set(block, rows);
      for (const [number] of this.tiles) if (Math.floor(number / BLOCK) === block) this.redraw(number);
      this.drop(block);
    } catch (error) {
      this.blocks.delete(block);
      if (error.name !== "AbortError") this.fault(error);
    }
  }

  /** Forget the blocks that are farthest away. */
  drop(near) {
    const far = [...this.blocks.keys()].sort((a, b) => Math.abs(b - near) - Math.abs(a - near));
    while (this.blocks.size > BLOCKS) this.blocks.delete(far.shift());
  }

  row(number) {
    if (this.given) return this.given[number];
    return this.blocks.get(Math.floor(number / BLOCK))?.[number % BLOCK];
  }

  redraw(number) {
    const old = this.tiles.get(number), tile = this.tile(number);
    this.tiles.set(number, tile);
    old?.replaceWith(tile);
    this.place();
  }

  tile(number) {
    const row = this.row(number), chosen = number === this.at;
    const own = {
      class: `tile${chosen ? " chosen" : ""}${row ? ` ${row.fate}` : " waiting"}`, role: "option", id: `o${number}`,
      "aria-selected": String(chosen), "aria-posinset": number + 1, "aria-setsize": this.total,
      on: { click: () => this.choose(number) },
    };
    if (!row) return h("div", { ...own, "aria-label": t("loading") }, h("div", { class: "frame" }));
    const words = state.q.split(/\s+/), text = row.text || (row.subject === "capture" ? row.url : "");
    const reason = row.reasons.map(say).join(" · ");
    const fate = row.fate === "kept" ? t("kept") : reason;
    return h("div", own,
      this.frame(row),
      h("div", { class: "words" },
        h("p", { class: "text", lang: "zh", title: text }, row.withheld ? h("em", {}, t("withheld", { why: say(row.withheld) })) : marked(text || t("untexted"), words)),
        h("p", { class: "fate" }, h("i", { class: "dot", "aria-hidden": "true" }), fate,
          row.near ? h("b", { class: "near" }, row.near.cosine.toFixed(3)) : null,
          state.flags.has(row.key) ? h("b", { class: "flagged", title: t("flagged") }, "⚑") : null)),
      state.view === "table" ? [
        h("p", { class: "cell" }, say(row.stage)),
        h("p", { class: "cell" }, row.source),
        h("p", { class: "cell because", title: say(row.evidence) }, say(row.evidence)),
        h("p", { class: "cell at", title: row.url }, row.url.replace(/^https?:\/\//, "")),
      ] : null);
  }

  /** The picture of a tile; words where there is none. */
  frame(row) {
    const none = (why) => h("div", { class: "frame none" }, h("span", {}, why));
    if (row.subject === "capture") return none(t("page_tile"));
    if (row.withheld) return none("—");
    if (!row.pictured) return none(t("no_picture"));
    const image = h("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false", src: thumb(row, state.about.g, 320) });
    const frame = h("div", { class: "frame" }, image);
    image.addEventListener("error", () => frame.replaceWith(none(t("no_picture"))), { once: true });
    return frame;
  }

  choose(number, quietly = false) {
    const before = this.at;
    if (number < 0 || number >= this.total) return;
    this.at = number;
    for (const own of [before, number]) {
      const tile = this.tiles.get(own);
      tile?.classList.toggle("chosen", own === number);
      tile?.setAttribute("aria-selected", String(own === number));
    }
    this.box.setAttribute("aria-activedescendant", `o${number}`);
    const row = this.row(number);
    if (row && !quietly) this.chosen(row, number);
    else if (!row) this.later(number);
  }

  /** Choose a row once it has come. */
  later(number) {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => (this.at === number && this.row(number) ? this.chosen(this.row(number), number) : this.at === number && this.later(number)), 120);
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.high)) * this.columns, here = this.at;
    const to = {
      ArrowRight: here + 1, ArrowLeft: here - 1, ArrowDown: here < 0 ? 0 : here + this.columns, ArrowUp: here - this.columns,
      PageDown: Math.min(here + page, this.total - 1), PageUp: Math.max(here - page, 0), Home: 0, End: this.total - 1,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (to < 0 || to >= this.total) return;
    const top = Math.floor(to / this.columns) * this.high, screen = this.box.clientHeight;
    if (top < this.top) this.go(top);
    else if (top + this.high + GAP > this.top + screen) this.go(top + this.high + GAP - screen);
    this.choose(to);
  }
}
