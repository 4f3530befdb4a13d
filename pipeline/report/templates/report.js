"use strict";
// Without scripts the page shows everything in English; this adds filters, regions, language and theme.
(() => {
  const $ = (id) => document.getElementById(id);
  const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a file: page may have none */ } };
  const recall = (key) => { try { return localStorage.getItem(key); } catch { return null; } };

  const samples = [...document.querySelectorAll("#sheet .sample")];
  const words = { en: "shown", zh: "项已显示" };
  let language = "en";

  function filter() {
    if (!$("sheet")) return; // the index over many builds has none
    const source = $("by-source").value, reason = $("by-reason").value, text = $("by-text").value.trim().toLowerCase();
    let shown = 0;
    for (const sample of samples) {
      const fate = sample.dataset.reason;
      const fits = (!source || sample.dataset.source === source)
        && (!reason || fate === reason || (reason === "dropped" && fate !== "kept" && fate !== "known"))
        && (!text || sample.textContent.toLowerCase().includes(text));
      sample.hidden = !fits;
      shown += fits;
    }
    for (const list of document.querySelectorAll("#sheet > ul")) {
      list.previousElementSibling.hidden = ![...list.children].some((sample) => !sample.hidden); // its heading
    }
    $("shown").textContent = `${shown} / ${samples.length} ${words[language]}`;
  }

  function translate(to) {
    language = to;
    for (const node of document.querySelectorAll("[data-zh]")) {
      node.dataset.en ??= node.textContent;
      node.textContent = node.dataset[to];
    }
    document.documentElement.lang = to;
    $("language").textContent = to === "en" ? "中文" : "English";
    remember("wenlan-language", to);
    filter();
  }

  function paint(theme) {
    document.documentElement.dataset.theme = theme;
    remember("wenlan-theme", theme);
  }

  document.querySelector(".filters")?.addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["by-source", "by-reason", "by-text"]) $(id)?.addEventListener("input", filter);
  $("show-boxes")?.addEventListener("change", (event) => document.body.classList.toggle("with-boxes", event.target.checked));
  $("by-detector")?.addEventListener("input", (event) => {
    for (const svg of document.querySelectorAll(".boxes")) svg.toggleAttribute("hidden", svg.dataset.detector !== event.target.value);
  });
  $("language").addEventListener("click", () => translate(language === "en" ? "zh" : "en"));
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    paint(now === "dark" ? "light" : "dark");
  });
  const theme = recall("wenlan-theme");
  if (theme === "dark" || theme === "light") paint(theme);
  translate(recall("wenlan-language") === "zh" ? "zh" : "en");
})();
