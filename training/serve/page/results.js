/**
 * The results: asked for page by page, drawn as they come, kept for the way back; and what is shown when none come.
 *
 * A query that is no longer wanted is aborted. What was drawn stays, dimmed, until the next is there or is late.
 */

import * as api from "./api.js";
import { card, grade } from "./cards.js";
import { $, announce, h, icon, show } from "./dom.js";
import { dataUri, recall } from "./pictures.js";
import { address, filters, filtersOn } from "./state.js";
import { number, t } from "./words.js";

const PAGE = 40;
const BY_ITSELF = 400;
const KEPT = 16;
const SKELETON_MS = 250;
const SLOW_MS = 4_000;
const WAITS_S = [2, 4, 8, 15, 30];

const key = (query) => address({ ...query, open: "" });
const sleep = (ms, signal) => new Promise((done) => { const timer = setTimeout(done, ms); signal?.addEventListener("abort", () => (clearTimeout(timer), done())); });

/**
 * The list of results of the page's query.
 *
 * actions: of cards, and answered(query, answer), lostPicture(), meaning(), unfiltered(), settings(): {calibrated}.
 */
export class Results {
  constructor(actions) {
    this.actions = actions;
    this.kept = new Map();
    this.query = null;
    this.hits = [];
    this.waits = 0;
    this.seen = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.hits.length < BY_ITSELF && this.next(), { rootMargin: "600px" });
  }

  /** Ask and draw; what is kept is drawn at once, at the place where it was left. */
  async ask(query, { fresh = false } = {}) {
    this.leave();
    this.query = query;
    const kept = fresh ? null : this.kept.get(key(query));
    if (kept) return this.redraw(kept);
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    document.body.classList.add("waiting");
    $("results").setAttribute("aria-busy", "true");
    const skeleton = setTimeout(() => this.skeleton(), SKELETON_MS);
    const slow = setTimeout(() => notice(t("faults.slow"), t("faults.slowMore"), [[t("cancel"), () => this.cancel()]]), SLOW_MS);
    try {
      const answer = await this.answer(query, 0, signal);
      if (signal.aborted) return undefined;
      notice();
      this.waits = 0;
      this.hits = answer.hits;
      this.last = answer;
      show($("grid"), this.cards(answer.hits));
      this.keep(answer);
      this.summary(answer);
      this.actions.answered(query, answer);
      this.ending();
      announce(answer.hits.length ? t("took", answer.hits.length, answer.more, null) : t("nothing"));
    } catch (trouble) {
      if (!signal.aborted) this.failed(trouble, () => this.ask(query, { fresh: true }));
    } finally {
      clearTimeout(skeleton);
      clearTimeout(slow);
      if (!signal.aborted || this.aborter?.signal === signal) this.still();
    }
    return undefined;
  }

  async answer(query, offset, signal) {
    const request = { collection: query.collection, target: query.target, limit: PAGE, offset, filters: filters(query), copies: query.copies };
    if (query.text) Object.assign(request, { text: query.text, mode: query.mode });
    if (query.like) request.id = query.like;
    if (query.picture) {
      const own = await recall(query.picture);
      if (!own) throw new api.Trouble("lost");
      request.image = await dataUri(own);
    }
    if (query.region) request.region = query.region;
    return api.search(request, signal);
  }

  /** The next page, if there is one and none is on its way. */
  async next() {
    if (this.loading || !this.last?.more || this.aborter?.signal.aborted) return;
    this.loading = true;
    const { query, aborter } = this;
    show($("after"), h("p", { class: "more-waits" }, "…"));
    try {
      const answer = await this.answer(query, this.hits.length, aborter?.signal);
      if (query !== this.query) return;
      const known = new Set(this.hits.map((hit) => hit.id));
      const fresh = answer.hits.filter((hit) => !known.has(hit.id));
      this.hits = [...this.hits, ...fresh];
      this.last = { ...answer, more: answer.more && fresh.length > 0 };
      $("grid").append(...this.cards(fresh));
      this.keep(this.last);
      this.summary(this.last);
      this.ending();
    } catch (trouble) {
      if (query === this.query && !aborter?.signal.aborted) {
        show($("after"), h("p", { class: "more-failed", role: "alert" }, trouble instanceof api.Trouble ? faultWords(trouble)[0] : String(trouble)), moreButton(t("retry"), () => this.next()));
      }
    } finally {
      this.loading = false;
    }
  }

  ending() {
    this.seen.disconnect();
    if (this.last.more) {
      show($("after"), moreButton(t("more"), () => this.next()));
      this.seen.observe($("after"));
    } else if (this.hits.length > PAGE) show($("after"), h("p", { class: "end" }, t("end")));
    else show($("after"));
    if (!this.hits.length) this.empty();
  }

  cards(hits) {
    return hits.map((hit) => card(hit, this.query, { ...this.actions, copies: (of, item, open) => this.copies(of, item, open) }, this.actions.settings()));
  }

  /** Near-copies of a hit, put behind its card, or taken away again. */
  async copies(hit, item, open) {
    for (const other of [...$("grid").children].filter((one) => one.dataset.copyOf === hit.id)) other.remove();
    if (!open) return;
    try {
      const answer = await api.search({ collection: this.query.collection, target: this.query.target, limit: 200, offset: 0, copies: true, filters: { leader: hit.leader } });
      const others = answer.hits.filter((one) => one.id !== hit.id).map((one) => ({ ...one, copies: 0 }));
      const items = this.cards(others);
      for (const one of items) {
        one.dataset.copyOf = hit.id;
        one.classList.add("copy");
      }
      item.after(...items);
    } catch (trouble) {
      notice(...faultWords(trouble), [[t("retry"), () => this.copies(hit, item, true)]]);
    }
  }

  redraw(kept) {
    Object.assign(this, { hits: kept.hits, last: kept.last, aborter: new AbortController() });
    notice();
    this.still();
    show($("grid"), this.cards(kept.hits));
    this.summary(kept.last);
    this.actions.answered(this.query, kept.last);
    this.ending();
    requestAnimationFrame(() => scrollTo({ top: kept.top, behavior: "instant" }));
  }

  keep(last) {
    this.kept.delete(key(this.query));
    this.kept.set(key(this.query), { hits: this.hits, last, top: scrollY });
    if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
  }

  /** Forget all answers: a collection has changed. */
  forget() {
    this.kept.clear();
  }

  leave() {
    this.aborter?.abort();
    clearInterval(this.countdown);
    this.seen.disconnect();
    this.loading = false;
    const kept = this.query && this.kept.get(key(this.query));
    if (kept) kept.top = scrollY;
  }

  still() {
    document.body.classList.remove("waiting");
    $("results").removeAttribute("aria-busy");
  }

  cancel() {
    this.aborter?.abort();
    this.still();
    notice();
    show($("grid"));
    show($("after"), moreButton(t("retry"), () => this.ask(this.query, { fresh: true })));
  }

  skeleton() {
    const heights = [1.3, 0.8, 1, 1.5, 0.75, 1.1, 1.4, 0.9, 1, 1.25, 0.8, 1.5];
    const blank = (ratio) => h("li", { class: `card skeleton ${this.query.target === "text" ? "of-text" : "of-picture"}`, style: { "--ratio": ratio }, "aria-hidden": "true" }, h("div", { class: "frame" }), h("div", { class: "under" }));
    show($("summary"));
    show($("after"));
    show($("grid"), heights.map(blank));
  }

  summary(answer) {
    const { query } = this;
    const asked = query.region ? t("asked.region") : query.picture ? t("asked.picture") : query.like ? t("asked.like") : "";
    const what = query.text ? h("h1", {}, h("q", { lang: "zh" }, query.text)) : asked ? h("h1", {}, asked) : h("h1", {}, t(`start.${query.target}`));
    const figures = this.hits.length ? t("took", number(this.hits.length), answer.more, query.text || asked ? number(answer.took_ms, answer.took_ms < 10 ? 1 : 0) : null) : "";
    const far = this.hits.some((hit) => hit.chance !== null) && this.hits.every((hit) => grade(hit.chance) === 0);
    show($("summary"), what, far ? h("p", {}, t("nothingClose")) : null, h("p", {}, figures, answer.exact === false && h("span", { class: "nearly", title: t("nearlyHelp") }, ` · ${t("nearly")}`)));
  }

  empty() {
    const { query } = this;
    const filtered = filtersOn({ ...query, copies: false }) > 0;
    const words = query.text && query.mode === "words";
    show($("grid"));
    show($("after"), h("div", { class: "empty" }, h("p", { class: "big" }, t("nothing")),
      words ? h("p", {}, t("nothingWords")) : null,
      filtered ? h("p", {}, t("nothingFilters")) : null,
      h("div", { class: "actions" },
        words ? h("button", { type: "button", class: "plain strong", on: { click: this.actions.meaning } }, t("byMeaning")) : null,
        filtered ? h("button", { type: "button", class: "plain strong", on: { click: this.actions.unfiltered } }, t("clearFilters")) : null)));
  }

  /** Say what went wrong; a server that is gone or busy is asked `again` by itself, ever later. */
  failed(trouble, again) {
    if (!(trouble instanceof api.Trouble)) throw trouble;
    show($("grid"));
    show($("summary"));
    show($("after"));
    if (trouble.kind === "lost") return this.actions.lostPicture();
    if (trouble.kind === "missing") this.actions.missing();
    if (trouble.kind === "denied") return askToken();
    const [what, more] = faultWords(trouble);
    const now = () => (clearInterval(this.countdown), again());
    if (trouble.kind !== "gone" && trouble.kind !== "busy") return notice(what, more, [[t("retry"), now]]);
    let left = trouble.after || WAITS_S[Math.min(this.waits++, WAITS_S.length - 1)];
    const tell = () => notice(what, trouble.kind === "gone" ? t("faults.goneMore", left) : [more, `${t("retry")}: ${left} s`].filter(Boolean).join(" "), [[t("retry"), now]]);
    tell();
    clearInterval(this.countdown);
    this.countdown = setInterval(() => {
      left -= 1;
      if (left > 0) tell();
      else now();
    }, 1000);
    return undefined;
  }
}

const moreButton = (text, click) => h("button", { type: "button", class: "plain strong more", on: { click } }, text);

/** A fault in two lines: what happened, and what the server said of it. */
export function faultWords(trouble) {
  if (trouble.kind === "wrong") return [t("wrongFile", trouble.said), ""];
  if (trouble.kind === "big") return [t("tooLarge", trouble.said, 64), ""];
  return [t(`faults.${trouble.kind}`), trouble.said];
}

/** A notice above the results, with what can be done; none takes it away. buttons: [text, listener]. */
export function notice(what = "", more = "", buttons = []) {
  const node = $("notice");
  if (!what) return show(node);
  // the words stay the same nodes while seconds are counted, so that they are not read out again and again
  const same = node.dataset.what === what && node.firstChild && node.clicks?.length === buttons.length;
  node.clicks = buttons.map(([, click]) => click); // what the buttons do now: the same fault may be of another query
  if (same) {
    node.querySelector(".more-said").textContent = more;
    return undefined;
  }
  node.dataset.what = what;
  return show(node, h("div", { class: "notice" }, h("p", {}, h("b", {}, what), " ", h("span", { class: "more-said", "aria-live": "off" }, more)),
    h("div", { class: "actions" }, buttons.map(([text], at) => h("button", { type: "button", class: "plain strong", on: { click: () => node.clicks[at]() } }, text)),
      h("button", { type: "button", class: "tool", title: t("close"), "aria-label": t("close"), on: { click: () => notice() } }, icon("close")))));
}

function askToken() {
  const field = h("input", { type: "password", name: "token", autocomplete: "off", "aria-label": t("token") });
  const go = (event) => {
    event.preventDefault();
    const link = new URL(location.href);
    link.searchParams.set("token", field.value);
    location.assign(link);
  };
  $("notice").dataset.what = "";
  show($("notice"), h("form", { class: "notice", on: { submit: go } }, h("p", {}, h("b", {}, t("faults.denied")), " ", t("faults.deniedMore")), h("div", { class: "actions" }, field, h("button", { type: "submit", class: "plain strong" }, t("enter")))));
}
