/**
 * The stage: the picture that is asked with, large, with its parts; a click on one, or a frame drawn by hand, asks by it.
 *
 * This is what a model of regions can do and one vector for a whole picture cannot.
 */

import { picture } from "./api.js";
import { $, h, icon, show } from "./dom.js";
import { Parts, same, strip } from "./parts.js";
import { t } from "./words.js";

const coarse = matchMedia("(pointer: coarse)");

/**
 * Draw the stage, or hide it. shown: {url, width, height, boxes, own, text} or null; region: the part asked by.
 * actions: region(box or null), close().
 */
export function stage(shown, region, actions) {
  const aside = $("stage");
  aside.hidden = !shown;
  document.body.classList.toggle("staged", Boolean(shown));
  if (!shown) return aside.replaceChildren();
  const boxes = shown.boxes.filter((box) => !same(box, [0, 0, shown.width, shown.height]));
  const parts = new Parts({ width: shown.width, height: shown.height, boxes, pick: actions.region, chosen: region, draw: true });
  const image = h("img", { src: shown.url, alt: shown.text || t(shown.own ? "yourPicture" : "aSample"), width: shown.width, height: shown.height, decoding: "async" });
  const label = shown.own ? t("yourPicture") : t("aSample");
  const head = h("div", { class: "stage-head" },
    h("b", {}, region ? t("asked.region") : label),
    h("button", { type: "button", class: "tool", title: t(shown.own ? "removePicture" : "removeLike"), "aria-label": t(shown.own ? "removePicture" : "removeLike"), on: { click: actions.close } }, icon("close")));
  const help = h("p", { class: "help" }, boxes.length ? t(coarse.matches ? "pickPartTouch" : "pickPart") : t("noParts"));
  const tools = h("div", { class: "stage-tools" });
  if (region) tools.append(h("button", { type: "button", class: "plain", on: { click: () => actions.region(null) } }, t("wholePicture")));
  if (coarse.matches) tools.append(drawButton(parts));
  const figure = h("figure", { class: "canvas", style: { "--ratio": (shown.width / shown.height).toFixed(4) } }, image, parts.node);
  return show(aside, head, figure, help, boxes.length ? strip(shown.url, parts) : null, tools.childElementCount ? tools : null);
}

function drawButton(parts) {
  const button = h("button", { type: "button", class: "plain", "aria-pressed": "false" }, icon("pen"), h("span", {}, t("drawPart")));
  button.addEventListener("click", () => {
    parts.allowDrawing(!parts.drawing);
    button.setAttribute("aria-pressed", String(parts.drawing));
    button.lastChild.textContent = t(parts.drawing ? "drawing" : "drawPart");
  });
  return button;
}

/** What the stage shows of a picture of one's own. */
export const ofOwn = (own, answer) => ({ url: own.url, width: answer?.width ?? own.width, height: answer?.height ?? own.height, boxes: answer?.boxes ?? [], own: true, text: "" });

/** What it shows of a sample. */
export const ofSample = (hit) => ({ url: picture(hit, 1280), width: hit.width, height: hit.height, boxes: hit.boxes, own: false, text: hit.text });
