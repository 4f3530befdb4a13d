"use strict";
// Without scripts the page is whole, in English, in the theme of the system.
(() => {
  const root = document.documentElement;
  const recall = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a file may have none */ } };
  const button = document.getElementById("language");

  function translate(to) {
    for (const node of document.querySelectorAll("[data-zh]")) {
      node.dataset.en ??= node.textContent;
      node.textContent = node.dataset[to];
    }
    root.lang = to === "zh" ? "zh-Hans" : "en";
    button.textContent = to === "zh" ? "English" : "中文";
  }

  const preferred = (navigator.languages ?? []).map((name) => name.slice(0, 2)).find((name) => name === "zh" || name === "en");
  translate(recall("wenlan-language") ?? preferred ?? "en");
  button.addEventListener("click", () => {
    const to = root.lang === "en" ? "zh" : "en";
    translate(to);
    remember("wenlan-language", to);
  });
  const theme = recall("wenlan-theme");
  if (theme) root.dataset.theme = theme;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    remember("wenlan-theme", root.dataset.theme);
  });
})();
