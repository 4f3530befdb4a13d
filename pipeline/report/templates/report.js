"use strict";
// Without scripts the page shows everything in English; this adds filters, regions, language and theme. Language and
// theme are those of the browser until somebody chooses: then the choice is remembered.
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

  for (const link of document.querySelectorAll("a[data-reason]")) {
    link.addEventListener("click", () => { // and the link leads to the samples
      $("by-source").value = $("by-text").value = "";
      $("by-reason").value = link.dataset.reason;
      filter();
    });
  }

  function translate(to, chosen) {
    language = to;
    for (const node of document.querySelectorAll("[data-zh]")) {
      node.dataset.en ??= node.textContent;
      node.textContent = node.dataset[to];
    }
    document.documentElement.lang = to;
    $("language").textContent = to === "en" ? "中文" : "English";
    if (chosen) remember("wenlan-language", to);
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
  const open = () => { // a link to what is folded opens it
    const part = document.querySelector(location.hash || null)?.closest("details.part");
    if (part && !part.open) { part.open = true; document.querySelector(location.hash).scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  if (location.hash) open();
  $("language").addEventListener("click", () => translate(language === "en" ? "zh" : "en", true));
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    paint(now === "dark" ? "light" : "dark");
  });
  if (location.protocol.startsWith("http") && location.pathname === "/report") { // the studio serves it
    for (const link of document.querySelectorAll("a.studio")) link.hidden = false;
  }
  const theme = recall("wenlan-theme");
  if (theme === "dark" || theme === "light") paint(theme);
  const spoken = (navigator.languages ?? []).map((name) => name.slice(0, 2).toLowerCase());
  translate(recall("wenlan-language") ?? spoken.find((name) => name === "zh" || name === "en") ?? "en", false);
  document.documentElement.classList.add("scripts");
})();
