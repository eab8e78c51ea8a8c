// The switch of colours and the mark in the bar of the section that is read: the same on every page.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  const byId = (id) => document.getElementById(id);

  // ---- Colours ----
  const themes = ["auto", "light", "dark"];
  const remember = (theme) => { try { localStorage.setItem("tunetrial-theme", theme); } catch { /* storage may be closed to local files */ } };
  const remembered = () => { try { return localStorage.getItem("tunetrial-theme"); } catch { return null; } };
  const button = byId("theme");
  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = theme[0].toUpperCase() + theme.slice(1);
    button.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the device" : theme}`);
  };
  let theme = themes.includes(remembered()) ? remembered() : "auto";
  show(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    remember(theme);
    show(theme);
  });

  // ---- Place in the page ----
  const links = new Map([...document.querySelectorAll(".bar a")].map((link) => [link.hash.slice(1), link]));
  const place = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      for (const [id, link] of links) {
        if (id === entry.target.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const id of links.keys()) place.observe(byId(id));
})();
