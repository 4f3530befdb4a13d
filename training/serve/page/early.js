// Before the first paint: the theme and the language that were chosen, so that nothing flashes. No module, as modules wait.
(() => {
  const root = document.documentElement;
  let theme = null;
  let language = null;
  try {
    theme = localStorage.getItem("wenlan-theme");
    language = localStorage.getItem("wenlan-language");
  } catch {
    // a browser that keeps nothing for this page: the system's choices hold
  }
  const chinese = navigator.languages.find((name) => /^(zh|en)\b/.test(name))?.startsWith("zh");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  root.lang = language === "zh" || language === "en" ? language : chinese ? "zh" : "en";
})();
