/**
 * Collections: those that are served, and one's own: pictures, a folder or a text file, sent in small batches, so that
 * there is progress to see, something to stop, and no request too large.
 */

import * as api from "./api.js";
import { $, h, icon, show } from "./dom.js";
import { prepared } from "./pictures.js";
import { faultWords } from "./results.js";
import { number, t } from "./words.js";

const PICTURES = 8;
const LINES = 250;
const BATCH_BYTES = 6 << 20;
const TRIES = 5;

const isPicture = (file) => file.type.startsWith("image/") || /\.(jpe?g|png|webp|gif|avif|bmp)$/i.test(file.name);
const isText = (file) => file.type.startsWith("text/") || /\.(txt|tsv)$/i.test(file.name);

/** Whether files are more than one picture to search with. */
export const areMany = (files) => files.length > 1 || (files.length === 1 && isText(files[0]));

/** [files, folder]: what was dropped, of a folder all that lies below it, and its name. Begins within the event. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  if (!folder) return [[...transfer.files], ""];
  const files = [];
  for (const entry of entries) for await (const file of below(entry)) files.push(file);
  return [files, folder.name];
}

/** The files of an entry, by name; what cannot be read is no file. */
async function* below(entry) {
  const asked = (ask) => new Promise((done) => ask(done, () => done(null)));
  if (entry.isFile) {
    const file = await asked((...answers) => entry.file(...answers));
    if (file) yield file;
    return;
  }
  const reader = entry.createReader();
  const inside = [];
  for (let some; (some = await asked((...answers) => reader.readEntries(...answers)))?.length; ) inside.push(...some); // a hundred at a time
  inside.sort((one, other) => (one.name < other.name ? -1 : 1));
  for (const one of inside) if (!one.name.startsWith(".")) yield* below(one);
}

/**
 * The dialog of collections. actions: choose(name), changed(): the list is to be read anew.
 */
export class Collections {
  constructor(actions) {
    this.actions = actions;
    this.list = [];
    this.aborter = null;
  }

  /** The record of a collection, or undefined. */
  of(name) {
    return this.list.find((one) => one.name === name);
  }

  /** The record that is shown where none is asked for: the first that is not damaged. */
  first() {
    return this.list.find((one) => !one.problem) ?? this.list[0];
  }

  open(current) {
    this.current = current;
    this.draw();
    if (!$("collections").open) $("collections").showModal();
  }

  close() {
    $("collections").close();
  }

  /** Draw the dialog, unless it is loading something just now. */
  draw() {
    const dialog = $("collections");
    dialog.setAttribute("aria-labelledby", "collections-title");
    const close = h("button", { type: "button", class: "tool", title: t("close"), "aria-label": t("close"), on: { click: () => this.close() } }, icon("close"));
    const group = (title, list) => (list.length ? [h("h3", {}, title), h("ul", { class: "shelf" }, list.map((one) => this.row(one)))] : []);
    this.news ??= h("div", { class: "news", role: "status" });
    show(dialog, h("div", { class: "dialog-bar" }, h("h2", { id: "collections-title" }, t("collections")), h("span", { class: "space" }), close),
      h("div", { class: "dialog-body" },
        ...group(t("served"), this.list.filter((one) => !one.own)),
        ...group(t("yours"), this.list.filter((one) => one.own)),
        this.form(), this.news));
  }

  row(one) {
    const choose = h("button", { type: "button", class: "shelf-name", "aria-current": one.name === this.current ? "true" : null, on: { click: () => (this.close(), this.actions.choose(one.name)) } },
      h("b", {}, one.name), h("span", {}, one.problem || t("counts", one.images && number(one.images), one.texts && number(one.texts))));
    const remove = one.own && h("button", { type: "button", class: "tool", title: t("remove"), "aria-label": `${t("remove")}: ${one.name}`, on: { click: () => this.remove(one.name) } }, icon("bin"));
    return h("li", {}, choose, remove || null);
  }

  form() {
    const name = h("input", { type: "text", id: "own-name", maxlength: 60, placeholder: t("nameHint"), autocomplete: "off", value: this.typed ?? "", on: { input: (event) => (this.typed = event.target.value) } });
    const pick = (text, attributes) => {
      const file = h("input", { type: "file", hidden: true, ...attributes, on: { change: (event) => this.load([...event.target.files], name.value.trim()) } });
      return [h("button", { type: "button", class: "plain strong", disabled: Boolean(this.aborter), on: { click: () => file.click() } }, text), file];
    };
    return h("section", { class: "own" }, h("h3", {}, t("load")), h("p", { class: "help" }, t("loadHelp")),
      h("label", { class: "pick", for: "own-name" }, h("span", {}, t("name")), name),
      h("div", { class: "actions" },
        pick(t("choosePictures"), { multiple: true, accept: "image/*", id: "own-pictures" }),
        pick(t("chooseFolder"), { webkitdirectory: true, id: "own-folder" }),
        pick(t("chooseText"), { accept: ".txt,.tsv,text/plain", id: "own-text" })));
  }

  async remove(name) {
    if (!confirm(t("removeSure", name))) return;
    if (name === this.current) {
      for (const image of $("grid").querySelectorAll("img")) image.removeAttribute("src"); // else asked for in vain
      show($("grid"));
    }
    try {
      await api.remove(name);
      show(this.news);
    } catch (trouble) {
      if (trouble.kind !== "missing") show(this.news, h("p", { class: "bad" }, faultWords(trouble).join(" ")));
    }
    await this.actions.changed(name === this.current ? "" : null);
    this.draw();
  }

  /** Send pictures, or the lines of a text file, batch by batch. */
  async load(files, wanted = "") {
    const texts = files.filter(isText);
    const pictures = files.filter((file) => isPicture(file) && !isText(file));
    const first = pictures[0] ?? texts[0];
    if (!first) return show(this.news, h("p", { class: "bad" }, t("nothingIn")));
    const folder = first.webkitRelativePath?.split("/")[0];
    const name = (wanted || folder || first.name.replace(/\.[^.]*$/, "")).replace(/[\p{Cc}/\\?#%]/gu, "-").trim().slice(0, 60) || "-";
    if (this.of(name) && !this.of(name).own) return show(this.news, h("p", { class: "bad" }, t("ofTheServer")));
    this.aborter = new AbortController();
    this.draw();
    const refused = [];
    const lines = (await Promise.all(texts.map(linesOf))).flat();
    const all = pictures.length + lines.length;
    let done = 0;
    let stopped = false;
    const tell = this.progress(all);
    try {
      for await (const [batch, size] of batches(pictures, lines, refused)) {
        if (batch.length) {
          const answer = await this.send(name, batch);
          for (const one of answer.refused ?? []) refused.push(`${one.file}: ${one.message}`);
        }
        tell((done += size));
      }
    } catch (trouble) {
      stopped = this.aborter.signal.aborted;
      if (!stopped) refused.unshift(trouble instanceof api.Trouble ? faultWords(trouble).filter(Boolean).join(" ") : String(trouble));
    }
    this.aborter = null;
    this.typed = "";
    await this.actions.changed(null);
    this.told(name, stopped, refused);
    return this.draw();
  }

  /** One batch; a busy server is given the time it asks for. */
  async send(name, batch) {
    for (let turn = 1; ; turn++) {
      try {
        return await api.add(name, batch, this.aborter.signal);
      } catch (trouble) {
        if (trouble.kind !== "busy" || turn === TRIES) throw trouble;
        await new Promise((done) => setTimeout(done, 1000 * (trouble.after || 2 ** turn)));
        this.aborter.signal.throwIfAborted();
      }
    }
  }

  progress(all) {
    const bar = h("progress", { max: all, value: 0, "aria-label": t("load") });
    const text = h("p", {}, t("loading", number(0), number(all)));
    show(this.news, text, bar, h("button", { type: "button", class: "plain", on: { click: () => this.aborter?.abort(new Error("stopped")) } }, t("stop")));
    return (done) => {
      bar.value = done;
      text.textContent = t("loading", number(done), number(all));
    };
  }

  told(name, stopped, refused) {
    const record = this.of(name);
    const rows = number(record?.rows ?? 0);
    const result = record && h("p", { class: "good" }, stopped ? t("stopped", rows) : t("loaded", rows, name), " ", h("button", { type: "button", class: "plain strong", on: { click: () => (this.close(), this.actions.choose(name)) } }, t("search")));
    const faults = refused.length ? [h("p", { class: "bad" }, t("refused", number(refused.length))), h("ul", { class: "bad" }, refused.slice(0, 8).map((one) => h("li", {}, one)))] : [];
    show(this.news, result, ...faults);
  }
}

/** Batches of files to send, each with how many of the user's items it stands for. */
async function* batches(pictures, lines, refused) {
  let batch = [];
  let [count, bytes] = [0, 0];
  for (const file of pictures) {
    count += 1;
    try {
      const blob = await prepared(file);
      batch.push(new File([blob], file.name, { type: blob.type }));
      bytes += blob.size;
    } catch (trouble) {
      refused.push(faultWords(trouble)[0]);
    }
    if (count >= PICTURES || bytes >= BATCH_BYTES) {
      yield [batch, count];
      [batch, count, bytes] = [[], 0, 0];
    }
  }
  if (count) yield [batch, count];
  for (let at = 0; at < lines.length; at += LINES) {
    const some = lines.slice(at, at + LINES);
    yield [[new File([some.join("\n")], "lines.txt", { type: "text/plain" })], some.length];
  }
}

/** Lines of a text file that say something: UTF-8, or else GB 18030, in which older Chinese files are. */
async function linesOf(file) {
  const bytes = await file.arrayBuffer();
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    text = new TextDecoder("gb18030").decode(bytes);
  }
  return text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
}
