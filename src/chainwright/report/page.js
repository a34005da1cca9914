"use strict";
// Theme, drawing, and what a reader takes away from a figure (PNG, SVG, CSV). Shared by the other scripts as `page`.
const page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const drawn = new Map(); // plot element -> what it shows

  window.addEventListener("error", (event) => {
    const place = document.getElementById("script-error");
    place.hidden = false;
    place.textContent = `A script of this page failed: ${event.message}`;
  });

  function theme() {
    if (root.dataset.theme) return root.dataset.theme;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  function setTheme(name) {
    if (name) root.dataset.theme = name;
    document.getElementById("theme").textContent = theme() === "dark" ? "Light" : "Dark";
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
      redraw(target);
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
    const link = document.createElement("a");
    link.href = `data:${type};charset=utf-8,${encodeURIComponent(text)}`;
    link.download = name;
    link.click();
  }

  function csv(table) {
    const cell = (value) => {
      const text = value === null ? "" : String(value);
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

  function tools(place, element, name, table) {
    const add = (label, act) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.setAttribute("aria-label", `Download ${name()} as ${label}`);
      button.addEventListener("click", act);
      place.append(button);
    };
    add("CSV", () => save(`${name()}.csv`, "text/csv", csv(table())));
    add("PNG", () => picture(element, "png", name()));
    add("SVG", () => picture(element, "svg", name()));
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
  }

  start();
  return { data, show, tools, theme, section: (name) => data.sections[name] };
})();
