// Head maps: one error type at a time, one chosen head outlined in every map, and its evidence beside them.
(() => {
  const select = document.getElementById("pair");
  if (!select) return;
  const { make, link } = page;
  const pairs = page.section("heads");
  const names = [...document.querySelectorAll("[data-map]")].map((figure) => figure.dataset.map);
  const figure = (name) => document.querySelector(`[data-map="${name}"]`);
  const plots = new Map(names.map((name) => [name, figure(name).querySelector(".plot")]));
  const titles = new Map(names.map((name) => [name, figure(name).querySelector("h4").textContent]));
  const place = document.getElementById("head-inspector");
  const status = document.getElementById("head-status");
  const roleNames = /<br>(.*)/;
  const few = 6; // contexts of a list that show at once
  let pair = pairs[0];
  let chosen = pair.best;

  const heat = (name) => pair.maps[name].data[0];
  const isShare = (name) => figure(name).dataset.share === "1";
  const key = () => chosen.join(",");

  // 95% Wilson interval of k of n, in whole percent
  function interval(k, n) {
    const z = 1.959964;
    const middle = (k + (z * z) / 2) / (n + z * z);
    const half = (z / (n + z * z)) * Math.sqrt((k * (n - k)) / n + (z * z) / 4);
    return [middle - half, middle + half].map((end) => Math.round(100 * Math.min(Math.max(end, 0), 1)));
  }

  function number(name) {
    const value = heat(name).z[chosen[0]][chosen[1]];
    if (isShare(name)) return `${Math.round(100 * value)}%`;
    return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3);
  }

  function roles() {
    const found = roleNames.exec(heat("kept").text[chosen[0]][chosen[1]]);
    return found ? found[1] : "no role";
  }

  function counted(found, at) {
    const contexts = at === 0 ? found.wrong : found.right;
    return [found.heads[key()][at].length, contexts.length];
  }

  function share(k, n) {
    if (!n) return "no such contexts";
    const [low, high] = interval(k, n);
    return `${k} of ${n} (${Math.round((100 * k) / n)}%; 95% interval ${low}\u2013${high}%)`;
  }

  function announce() {
    const found = pair.seen;
    const title = make("b", "", `Layer ${chosen[0]}, head ${chosen[1]}`);
    const text = found
      ? `${roles()}; fixes ${counted(found, 0).join(" of ")}, breaks ${counted(found, 1).join(" of ")}`
      : roles();
    status.replaceChildren(title, " ", make("span", "", text), " ", link("#head-inspector", "to-evidence", "evidence"));
  }

  function measures() {
    const list = make("dl", "measures");
    for (const name of names) list.append(make("dt", "", titles.get(name)), make("dd", "", number(name)));
    return list;
  }

  const spaced = (text) => `\u201c${text}\u201d`;

  function fixedLine(found, [i, after]) {
    const [trace, at, hop, said, right, before] = found.wrong[i];
    const item = make("li");
    item.append(link(`#trace-${trace}-${at}`, "", `trace ${trace}`), hop === null ? ": " : `, hop ${hop}: `);
    item.append(make("span", "wrong-said", said), " \u2192 ", make("b", "", right));
    item.append(make("span", "aside", ` (${page.percent(before)} \u2192 ${page.percent(after)})`));
    return item;
  }

  function brokenLine(found, [i, said]) {
    const [trace, at, hop, right] = found.right[i];
    const item = make("li");
    item.append(link(`#trace-${trace}-${at}`, "", `trace ${trace}`), hop === null ? ": " : `, hop ${hop}: `);
    item.append(make("b", "", right), " \u2192 ", make("span", "wrong-said", said.trim() || spaced(said)));
    return item;
  }

  function list(lines) {
    const box = make("ul", "contexts");
    box.append(...lines.slice(0, few));
    if (lines.length <= few) return box;
    const more = make("details");
    const rest = make("ul", "contexts");
    rest.append(...lines.slice(few));
    more.append(make("summary", "", `${lines.length - few} more`), rest);
    const both = make("div");
    both.append(box, more);
    return both;
  }

  function part(title, found, note) {
    const box = make("div", "part");
    box.append(make("h4", "", title));
    if (!found.heads[key()]) {
      box.append(make("p", "aside", "Only the heads named above were silenced in these contexts; this is not one of them."));
      return box;
    }
    const [fixed, broken] = found.heads[key()];
    const fixes = make("p", "", "Silencing it fixes ");
    fixes.append(make("b", "", share(...counted(found, 0))), " failing contexts.");
    const breaks = make("p", "", "It breaks ");
    breaks.append(make("b", "", share(...counted(found, 1))), " right ones.");
    box.append(fixes);
    if (fixed.length) box.append(list(fixed.map((line) => fixedLine(found, line))));
    box.append(breaks);
    if (broken.length) box.append(list(broken.map((line) => brokenLine(found, line))));
    if (note) box.append(make("p", "aside", note));
    return box;
  }

  function inspect() {
    announce();
    const parts = [make("h3", "", `Layer ${chosen[0]}, head ${chosen[1]}`), make("p", "role", roles()), measures()];
    const held = pair.held_out;
    if (held.heads) parts.push(part("In held-out contexts", held, ""));
    const note = held.heads ? "The best head was chosen on these, so its share here is optimistic." : "";
    if (pair.seen) parts.push(part(held.heads ? "In the contexts that the maps show" : "In these contexts", pair.seen, note));
    else parts.push(make("p", "aside", "The single contexts are unknown: pass the traces to the report, or run the diagnosis again."));
    place.replaceChildren(...parts);
    for (const button of document.querySelectorAll("button.head")) {
      button.setAttribute("aria-pressed", String(button.dataset.head === key()));
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

  function choose(layer, head) {
    const z = heat("kept").z;
    chosen = [Math.min(Math.max(layer, 0), z.length - 1), Math.min(Math.max(head, 0), z[0].length - 1)];
    for (const [name, element] of plots) page.show(element, record(name));
    inspect();
  }

  function showPair(index, head) {
    pair = pairs[index];
    select.value = index;
    for (const block of document.querySelectorAll("[data-pair]")) block.hidden = block.dataset.pair !== String(index);
    choose(...(head || pair.best));
  }

  function table() {
    const z = heat("kept").z;
    const rows = z.flatMap((row, layer) => row.map((_, head) => {
      const found = roleNames.exec(heat("kept").text[layer][head]);
      return [layer, head, ...names.map((name) => heat(name).z[layer][head]), found ? found[1] : ""];
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
  page.route(/^#head-(\d+)-(\d+)-(\d+)$/, (index, layer, head) => {
    if (!pairs[Number(index)]) return;
    showPair(Number(index), [Number(layer), Number(head)]);
    document.getElementById("heads-board").scrollIntoView();
  });
})();
