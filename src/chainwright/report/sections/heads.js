"use strict";
// Head maps: one error type at a time, and one chosen head outlined in every map.
(() => {
  const select = document.getElementById("pair");
  if (!select) return;
  const names = [...document.querySelectorAll("[data-map]")].map((figure) => figure.dataset.map);
  const figure = (name) => document.querySelector(`[data-map="${name}"]`);
  const plots = new Map(names.map((name) => [name, figure(name).querySelector(".plot")]));
  const titles = new Map(names.map((name) => [name, figure(name).querySelector("h5").textContent]));
  const roleNames = /<br>(.*)/;
  let pair = page.section("heads")[0];
  let chosen = pair.best;

  const heat = (name) => pair.maps[name].data[0];
  const isShare = (name) => figure(name).dataset.share === "1";

  function number(name) {
    const value = heat(name).z[chosen[0]][chosen[1]];
    if (isShare(name)) return `${Math.round(100 * value)}%`;
    return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3);
  }

  function inspect() {
    const place = document.getElementById("head-inspector");
    const roles = roleNames.exec(heat("kept").text[chosen[0]][chosen[1]]);
    const title = document.createElement("b");
    title.textContent = `Layer ${chosen[0]}, head ${chosen[1]}`;
    const role = document.createElement("span");
    role.textContent = roles ? roles[1] : "no role";
    const values = names.map((name) => {
      const item = document.createElement("span");
      const value = document.createElement("b");
      value.textContent = number(name);
      item.append(`${titles.get(name)} `, value);
      return item;
    });
    place.replaceChildren(title, role, ...values);
    for (const button of document.querySelectorAll("button.head")) {
      button.setAttribute("aria-pressed", String(button.dataset.head === chosen.join(",")));
    }
  }

  function outlined(figure) {
    const [layer, head] = chosen;
    const line = { color: page.theme() === "dark" ? "#ffffff" : "#111418", width: 2.5 };
    const shape = { type: "rect", x0: head - 0.5, x1: head + 0.5, y0: layer - 0.5, y1: layer + 0.5, line };
    return { data: figure.data, layout: { ...figure.layout, shapes: [shape] } };
  }

  // The getter lets a change of theme redraw the map with the outline in its colour.
  function record(name) {
    const maps = pair.maps;
    return { get variants() { return [outlined(maps[name])]; } };
  }

  function draw() {
    for (const [name, element] of plots) page.show(element, record(name));
    inspect();
  }

  function choose(layer, head) {
    const z = heat("kept").z;
    chosen = [Math.min(Math.max(layer, 0), z.length - 1), Math.min(Math.max(head, 0), z[0].length - 1)];
    draw();
  }

  function showPair(index) {
    pair = page.section("heads")[index];
    for (const block of document.querySelectorAll("[data-pair]")) block.hidden = block.dataset.pair !== String(index);
    choose(...pair.best);
  }

  function table() {
    const z = heat("kept").z;
    const rows = z.flatMap((row, layer) => row.map((_, head) => {
      const roles = roleNames.exec(heat("kept").text[layer][head]);
      return [layer, head, ...names.map((name) => heat(name).z[layer][head]), roles ? roles[1] : ""];
    }));
    return { columns: ["layer", "head", ...names, "roles"], rows };
  }

  const moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  showPair(0);
  for (const [name, element] of plots) {
    element.on("plotly_click", (event) => choose(event.points[0].y, event.points[0].x));
    element.addEventListener("keydown", (event) => {
      if (!moves[event.key]) return;
      event.preventDefault();
      choose(chosen[0] + moves[event.key][0], chosen[1] + moves[event.key][1]);
    });
    const file = () => `heads ${pair.label.replace(/[^\p{L}\p{N}]+/gu, " ")} ${name}`.replaceAll(" ", "-");
    page.tools(figure(name).querySelector(".tools"), element, file, table);
  }
  select.addEventListener("change", () => showPair(Number(select.value)));
  for (const button of document.querySelectorAll("button.head")) {
    button.addEventListener("click", () => choose(...button.dataset.head.split(",").map(Number)));
  }
})();
