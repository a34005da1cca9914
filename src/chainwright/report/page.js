"use strict";
// Theme, drawing, links, and what a reader takes away from a figure (PNG, SVG, CSV). Other scripts see it as `page`.
const page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const drawn = new Map(); // plot element -> what it shows
  const routes = []; // what links into the page do beside scrolling

  window.addEventListener("error", (event) => {
    const place = document.getElementById("script-error");
    place.hidden = false;
    place.textContent = `A script of this page failed: ${event.message}`;
  });

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text; // never innerHTML: the text is a model's
    return element;
  }

  function link(hash, className, text) {
    const element = make("a", className, text);
    element.href = hash;
    return element;
  }

  function theme() {
    if (root.dataset.theme) return root.dataset.theme;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  function setTheme(name) {
    if (name) root.dataset.theme = name;
    const other = theme() === "dark" ? "Light" : "Dark";
    const button = document.getElementById("theme");
    button.textContent = other;
    button.setAttribute("aria-label", `${other} theme`);
    for (const element of drawn.keys()) redraw(element);
  }

  function withTheme(figure, name) {
    return { data: figure.data, layout: { ...figure.layout, template: data.themes[name] } };
  }

  // Wide pages and narrow ones may have different figures of the same thing.
  function fitting(record, element) {
    const narrow = element.clientWidth < 640 ? record.variants.length - 1 : 0;
    return record.variants[narrow];
  }

  function redraw(element) {
    if (!element.clientWidth) return undefined; // hidden; the watcher draws it when it shows
    const figure = withTheme(fitting(drawn.get(element), element), theme());
    const still = { dragmode: false, autosize: true };
    const config = { displayModeBar: false, scrollZoom: false, doubleClick: false };
    return Plotly.react(element, structuredClone(figure.data), { ...structuredClone(figure.layout), ...still }, config);
  }

  const widths = new WeakMap();
  const watcher = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.clientWidth === 0 || widths.get(target) === target.clientWidth) continue;
      widths.set(target, target.clientWidth);
      requestAnimationFrame(() => redraw(target)); // not at once: it changes heights, which would be watched again
    }
  });

  function show(element, record) {
    const isNew = !drawn.has(element);
    drawn.set(element, record);
    widths.set(element, element.clientWidth);
    if (isNew) watcher.observe(element);
    return redraw(element);
  }

  function save(name, type, text) {
    const element = link(URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` })));
    element.download = name;
    element.click();
    setTimeout(() => URL.revokeObjectURL(element.href), 10000);
  }

  function csv(table) {
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [table.columns, ...table.rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  // Pictures are always saved in the light theme, for paper.
  function picture(element, format, name) {
    const figure = withTheme(fitting(drawn.get(element), element), "light");
    const size = { width: Math.max(element.clientWidth, 480), height: figure.layout.height };
    Plotly.downloadImage(structuredClone(figure), { format, filename: name, scale: 2, ...size });
  }

  function button(place, label, said, act) {
    const element = make("button", "", label);
    element.type = "button";
    if (said) element.setAttribute("aria-label", said);
    element.addEventListener("click", act);
    place.append(element);
    return element;
  }

  function saveTable(place, name, table) {
    button(place, "CSV", `Download ${name()} as CSV`, () => save(`${name()}.csv`, "text/csv", csv(table())));
  }

  function tools(place, element, name, table) {
    saveTable(place, name, table);
    button(place, "PNG", `Download ${name()} as PNG`, () => picture(element, "png", name()));
    button(place, "SVG", `Download ${name()} as SVG`, () => picture(element, "svg", name()));
  }

  // `act` gets the groups of `pattern` when a link to a matching address is followed.
  function route(pattern, act) {
    routes.push([pattern, act]);
  }

  function follow() {
    for (const [pattern, act] of routes) {
      const found = pattern.exec(decodeURIComponent(location.hash));
      if (found) act(...found.slice(1));
    }
  }

  function start() {
    const asked = new URLSearchParams(location.search).get("theme") || location.hash.slice(1);
    setTheme(asked === "dark" || asked === "light" ? asked : null);
    document.getElementById("theme").addEventListener("click", () => setTheme(theme() === "dark" ? "light" : "dark"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(null));
    for (const figure of document.querySelectorAll("[data-figure]")) {
      const record = data.figures[figure.dataset.figure];
      const element = figure.querySelector(".plot");
      if (record.max_width) figure.style.maxWidth = `${record.max_width}px`;
      tools(figure.querySelector(".tools"), element, () => figure.dataset.figure, () => record.table);
      show(element, record);
    }
    window.addEventListener("hashchange", follow);
    window.addEventListener("load", follow);
    document.addEventListener("click", (event) => {
      const to = event.target.closest && event.target.closest("a[href^='#']");
      if (to && to.hash === location.hash) follow(); // no change, so no event
    });
  }

  // Paper: details are open, and figures are light and as wide as the paper, until it is printed.
  let before = null;
  function startPrinting() {
    if (before) return;
    const closed = [...document.querySelectorAll("details:not([open])")];
    before = { closed, theme: root.dataset.theme };
    root.dataset.theme = "light";
    root.classList.add("printing");
    for (const each of closed) each.open = true;
    for (const element of drawn.keys()) redraw(element);
  }

  function endPrinting() {
    if (!before) return;
    for (const each of before.closed) each.open = false;
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    root.classList.remove("printing");
    before = null;
    for (const element of drawn.keys()) redraw(element);
  }

  window.addEventListener("beforeprint", startPrinting);
  window.addEventListener("afterprint", endPrinting);

  const percent = (thousandths) => (thousandths >= 1 ? `${(thousandths / 10).toFixed(1)}%` : "<0.1%");
  start();
  return { make, link, button, show, tools, saveTable, theme, route, percent, section: (name) => data.sections[name] };
})();
