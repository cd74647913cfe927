// The behaviour of a page of two runs: theme, pictures when they are seen, keys.
"use strict";

(() => {
  const root = document.documentElement;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("cnnvis-theme", value);
      return localStorage.getItem("cnnvis-theme");
    } catch {
      return value; // if a page on disk has no storage
    }
  };
  const isDark = () => (root.dataset.theme
    ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = remembered();
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  const toggle = document.getElementById("theme");
  const nameToggle = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    nameToggle();
  });
  nameToggle();
  document.getElementById("skip").addEventListener("click", () => all(".twin")[0]?.focus());

  // pictures: one place of a sheet as the background of an element

  const fill = (node) => {
    const pair = (name) => node.dataset[name].split(" ").map(Number);
    const [block, cell, size] = [pair("block"), pair("cell"), pair("size")];
    const columns = size[1] / cell[1];
    const at = Number(node.dataset.at);
    const left = (at % columns) * cell[1];
    const top = Math.floor(at / columns) * cell[0];
    const share = (offset, room) => (room > 0 ? `${(100 * offset) / room}%` : "0%");
    node.style.backgroundImage = `url("${node.dataset.sheet}")`;
    node.style.backgroundSize = `${(100 * size[1]) / block[1]}% ${(100 * size[0]) / block[0]}%`;
    node.style.backgroundPosition = `${share(left, size[1] - block[1])} ${share(top, size[0] - block[0])}`;
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        seen.unobserve(target);
        fill(target);
      }
    }
  }, { rootMargin: "600px 0px" });
  for (const node of all("[data-sheet]")) {
    const [height, width] = node.dataset.block.split(" ");
    node.style.setProperty("--shape", `${width} / ${height}`);
    seen.observe(node);
  }

  // the layer that is being looked at

  const articles = all("article.layer");
  const current = () => articles.findLastIndex((article) => article.getBoundingClientRect().top < 120);
  const mark = () => {
    const alias = articles[current()]?.id;
    for (const link of all("[data-layer]")) {
      if (link.dataset.layer === alias) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });
  mark();

  // larger, and keys

  const twins = all(".twin");
  const dialog = document.getElementById("larger");
  let shown = -1;
  const enlarge = (at) => {
    if (!twins[at]) return;
    shown = at;
    const units = twins[at].querySelector(".units").cloneNode(true);
    units.classList.toggle("single", units.children.length < 2);
    units.querySelectorAll("[data-sheet]").forEach(fill);
    const said = document.createElement("p");
    said.textContent = twins[at].querySelector("figcaption").textContent;
    dialog.replaceChildren(units, said);
    if (!dialog.open) dialog.showModal();
  };
  twins.forEach((twin, at) => twin.addEventListener("click", (event) => {
    if (!event.target.closest("a")) enlarge(at);
  }));
  dialog.addEventListener("click", (event) => { if (!event.target.closest("a")) dialog.close(); });
  dialog.addEventListener("close", () => twins[shown]?.focus());

  const toLayer = (step) => {
    const at = Math.max(0, Math.min(articles.length - 1, current() + step));
    articles[at]?.scrollIntoView();
    articles[at]?.querySelector("h2").focus({ preventScroll: true });
    mark();
  };
  const toTwin = (step) => {
    if (dialog.open) return enlarge(shown + step);
    const here = twins.indexOf(document.activeElement);
    const first = twins.findIndex((twin) => twin.getBoundingClientRect().bottom > 0);
    const next = twins[here < 0 ? first : here + step];
    next?.focus();
    return next?.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const { key } = event;
    if (key === "ArrowLeft") toTwin(-1);
    else if (key === "ArrowRight") toTwin(1);
    else if (dialog.open) return;
    else if (key === "[") toLayer(-1);
    else if (key === "]") toLayer(1);
    else if (key === "m") scrollTo(0, 0);
    else if (key === "Enter" && twins.includes(document.activeElement)) enlarge(twins.indexOf(document.activeElement));
    else return;
    event.preventDefault();
  });
})();
