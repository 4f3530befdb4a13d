// What opens over the page: why an address is not in, takedowns, sign-off, keys.

import { ended, get, send, thumb } from "./api.js";
import { fill, h, icon, shell } from "./dom.js";
import { state } from "./state.js";
import { n, say, t } from "./words.js";

/** Open a dialog with a title; returns the element that its content goes into. */
function opened(name, title, wide = false) {
  document.getElementById(name)?.remove();
  const body = h("div", { class: "body" });
  const dialog = h("dialog", { id: name, class: wide ? "wide" : null, "aria-labelledby": `${name}-title` },
    h("div", { class: "pane-head" }, h("h2", { id: `${name}-title` }, title),
      h("button", { type: "button", class: "plain", "aria-label": t("close"), on: { click: () => dialog.close() } }, icon("close"))),
    body);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
  return body;
}

const bad = (place, error) => fill(place, h("p", { class: "note bad", role: "alert" }, error.code === "gone" ? t("gone") : error.message));

/** Why is this not in? open(row): look at one of the answers. */
export function why(open, first = "") {
  const body = opened("why", t("why"), true), answer = h("div", { class: "answer", "aria-live": "polite" });
  const input = h("input", { name: "named", type: "text", required: true, maxlength: "3000", "aria-label": t("why_hint"), placeholder: t("why_hint"), autocomplete: "off", spellcheck: "false", value: first });
  const look = async (event) => {
    event.preventDefault();
    fill(answer, h("p", { class: "muted" }, t("running")));
    try {
      fill(answer, answered(await get("why", { named: input.value }), open));
    } catch (error) { bad(answer, error); }
  };
  fill(body, h("p", { class: "muted" }, t("why_intro")), h("form", { class: "asking", on: { submit: look } }, input, h("button", { type: "submit", class: "main" }, t("look"))), answer);
  input.focus();
}

function answered(found, open) {
  if (!found.rows.length) return h("section", { class: "verdict dropped" }, h("h3", {}, `? ${t("why_nothing")}`), h("p", {}, say(found.nothing)), h("p", { class: "small muted" }, t("why_looked", { tried: found.tried })));
  const count = found.rows.length;
  return [
    h("p", {}, count === 1 && !found.more ? t("why_found_1") : t("why_found", { n: found.more ? `${n(count)}+` : n(count) }), found.more ? ` ${t("why_more")}` : ""),
    h("ul", { class: "answers" }, found.rows.map((row) => h("li", {}, h("button", { type: "button", class: `answer-row ${row.fate}`, on: { click: () => { document.getElementById("why").close(); open(row); } } },
      small(row),
      h("span", { class: "said" },
        h("b", {}, row.fate === "kept" ? t("kept") : row.fate === "known" ? t("known_at") : `${t("dropped_at", { stage: say(row.stage) })}: ${row.reasons.map(say).join(" · ")}`),
        say(row.evidence) ? h("span", { class: "evidence" }, say(row.evidence)) : null,
        h("span", { class: "muted small", lang: "zh" }, row.withheld ? t("withheld", { why: say(row.withheld) }) : row.text || row.url)))))),
  ];
}

function small(row) {
  const none = h("span", { class: "mini none" });
  if (row.pictured === false || row.subject === "capture" || row.withheld) return none;
  const image = h("img", { class: "mini", alt: "", loading: "lazy", src: thumb(row, state.about.g, 160) });
  image.addEventListener("error", () => image.replaceWith(none), { once: true });
  return image;
}

/** Flagged candidates: what a takedown would do, the command, and, once it is confirmed, the takedown. */
export function takedown(changed, done) {
  const body = opened("takedown", t("takedown"), true);
  const drawn = () => {
    const rows = [...state.flags.values()];
    if (!rows.length) return fill(body, h("p", { class: "muted" }, t("takedown_none")));
    const answer = h("div", { class: "answer", "aria-live": "polite" });
    const what = ["picture", "page", "domain"].map((name, i) => h("label", {}, h("input", { type: "radio", name: "what", value: name, checked: i === 0 }), ` ${t(`what_${name}`)}`));
    const look = async (event) => {
      event.preventDefault();
      const form = event.target.elements, ids = rows.map((row) => row.id);
      await looked({ ids, what: form.what.value, exact: form.exact.checked }, answer, () => { state.flags.clear(); changed(); done(); });
    };
    return fill(body, h("p", {}, t("takedown_intro")),
      h("ul", { class: "answers flags" }, rows.map((row) => h("li", {}, small(row), h("span", { class: "said" }, h("b", { lang: "zh" }, row.text || row.url || row.key), h("code", { class: "small muted" }, row.key)),
        h("button", { type: "button", class: "plain", "aria-label": t("unflag"), on: { click: () => { state.flags.delete(row.key); changed(); drawn(); } } }, icon("close"))))),
      h("form", { class: "stack", on: { submit: look } },
        h("fieldset", {}, h("legend", {}, t("what")), what),
        h("label", {}, h("input", { type: "checkbox", name: "exact" }), ` ${t("exact")}`),
        h("div", { class: "buttons" }, h("button", { type: "submit", class: "main" }, t("preview")),
          h("button", { type: "button", on: { click: () => { state.flags.clear(); changed(); drawn(); } } }, t("unflag_all")))),
      answer);
  };
  drawn();
}

async function looked(asked, answer, done) {
  try {
    fill(answer, h("p", { class: "muted" }, t("running")));
    const job = await ended(await send("takedown", asked));
    const line = h("p", { class: "command" }, h("code", {}, job.line));
    if (!job.confirmation) {
      const failed = job.code !== 0 && job.answer.matched === undefined;
      return fill(answer, h("p", { class: "note bad", role: "alert" }, failed ? t("failed", { code: job.code }) : t("nothing_matches")), faults(job), h("h4", {}, t("command")), line, failed ? lines(job) : null);
    }
    return fill(answer, h("h3", {}, t("would")), removed(job.answer), faults(job), h("h4", {}, t("command")), line, confirming(job, answer, done));
  } catch (error) { return bad(answer, error); }
}

/** What a takedown could not reach; the same command again does it, once that is mended. */
const faults = (job) => job.answer.faults?.length ? h("div", { class: "note bad", role: "alert" }, h("p", {}, t("not_reached")), h("ul", {}, job.answer.faults.map((fault) => h("li", {}, fault)))) : null;

function removed(answer) {
  return h("ul", { class: "removed" }, answer.builds.filter((build) => build.candidates + build.images + build.captures + build.samples.length > 0).map((build) => h("li", {},
    h("code", {}, build.out), h("ul", { class: "counts" }, ["samples", "candidates", "images", "captures"].map((name) => h("li", {}, h("b", {}, n(name === "samples" ? build.samples.length : build[name])), ` ${t(name)}`))))),
    (answer.indexes ?? []).filter((index) => index.rows > 0).map((index) => h("li", {}, h("code", {}, index.index), h("ul", { class: "counts" }, h("li", {}, h("b", {}, n(index.rows)), ` ${t("index_rows")}`)))));
}

function confirming(job, answer, done) {
  const word = t("the_word"), run = h("button", { type: "submit", class: "danger", disabled: true }, t("run_takedown"));
  const typed = h("input", { type: "text", autocomplete: "off", "aria-label": t("type_word", { word }), on: { input: () => { run.disabled = typed.value.trim() !== word; } } });
  const go = async (event) => {
    event.preventDefault();
    run.disabled = typed.disabled = true;
    const output = h("div", {});
    answer.append(output);
    try {
      const ran = await ended(await send("confirm", { confirmation: job.confirmation }), (now) => fill(output, h("p", { class: "muted" }, t("running")), lines(now)));
      const partly = ran.answer.faults?.length > 0, carried = ran.code === 0 || partly;
      fill(output, h("p", { class: `note ${partly ? "" : carried ? "good" : "bad"}`, role: "alert" }, carried ? t(partly ? "partly_takedown" : "done_takedown") : t("failed", { code: ran.code })), faults(ran), lines(ran));
      output.scrollIntoView({ block: "nearest" });
      if (carried) done();
    } catch (error) { bad(output, error); }
  };
  return h("form", { class: "asking", on: { submit: go } }, h("label", {}, `${t("type_word", { word })} `, typed), run);
}

const lines = (job) => h("pre", { class: "lines", tabindex: "0" }, job.lines.join("\n"));

/** Approve or refuse a build, and publish it. */
export function publish(done) {
  const body = opened("publish", t("publish"), true);
  fill(body, h("p", { class: "muted" }, t("publish_intro")), state.about.builds.map((build) => of(build, done)));
}

const named = (word) => t(`w_${word.verdict}`, { ...word, at: `${word.at.slice(0, 10)} ${word.at.slice(11, 16)}` });

function of(build, done) {
  const answer = h("div", { class: "answer", "aria-live": "polite" }), { word } = build;
  const talk = async (event) => {
    event.preventDefault();
    const form = event.target.elements;
    try {
      await send("word", { build: build.id, verdict: event.submitter.value, name: form.name.value, because: form.because.value });
      await done();
      publish(done);
    } catch (error) { bad(answer, error); }
  };
  const go = async () => {
    try {
      const job = await ended(await send("publish", { build: build.id }), (now) => fill(answer, h("p", { class: "muted" }, t("running")), lines(now)));
      fill(answer, h("p", { class: `note ${job.code === 0 ? "good" : "bad"}`, role: "alert" }, job.code === 0 ? t("published_now") : t("failed", { code: job.code })), lines(job));
      await done();
    } catch (error) { bad(answer, error); }
  };
  const can = build.verdict === "ready" || (build.verdict === "waiting" && word.verdict === "approved");
  return h("section", { class: "build" },
    h("h3", {}, build.id, h("span", { class: `chip v-${word.verdict === "refused" ? "refused" : build.verdict}` }, t(`v_${build.verdict}`))),
    word.verdict ? h("p", { class: `note ${word.verdict === "approved" ? "good" : "bad"}` }, named(word)) : null,
    build.gates.length ? [h("h4", {}, t("gates")), h("ul", { class: "gates" }, build.gates.map((gate) => h("li", { class: gate.holds ? "holds" : "fails" },
      h("span", { "aria-hidden": "true" }, gate.holds ? "✓" : "✗"), h("span", {}, say(gate.says)), h("code", { class: "muted" }, gate.name))))] : null,
    build.manual && build.verdict !== "published" && build.verdict !== "" ? h("form", { class: "stack", on: { submit: talk } },
      h("label", {}, t("your_name"), h("input", { name: "name", required: true, maxlength: "200", autocomplete: "name" })),
      h("label", {}, t("because"), h("textarea", { name: "because", required: true, maxlength: "500", rows: "2" })),
      h("div", { class: "buttons" }, h("button", { type: "submit", value: "approved", class: "main" }, icon("seal"), t("approve")), h("button", { type: "submit", value: "refused", class: "danger" }, t("refuse"))))
      : build.manual ? null : h("p", { class: "muted small" }, t("not_manual")),
    can ? [h("p", { class: "command" }, h("code", {}, `wenlan-data publish ${shell(build.out)}`)), h("button", { type: "button", class: "main", on: { click: go } }, t("publish_now"))] : null,
    answer,
    build.history.length > 1 ? h("details", {}, h("summary", {}, t("said_by")), h("ul", {}, build.history.slice().reverse().map((own) => h("li", {}, named(own))))) : null);
}

/** The keys. */
export function keys() {
  const rows = [["/", "search"], ["← → ↑ ↓", "move"], ["Home End", "ends"], ["F", "flag"], ["R", "regions"], ["M", "like"], ["V", "view"], ["W", "why"], ["Esc", "close"]];
  fill(opened("keys", t("keys")), h("dl", { class: "keys" }, rows.map(([key, name]) => [h("dt", {}, key.split(" ").map((own) => h("kbd", {}, own))), h("dd", {}, t(`key_${name}`))])));
}
