// Step maps: one trace and one layer at a time; a cell is a pair of steps, described in words and linked to the trace reader.
(() => {
  const select = document.getElementById("step-trace");
  if (!select) return;
  const { make, link } = page;
  const maps = page.section("steps");
  const slider = document.getElementById("step-layer");
  const said = document.getElementById("step-layer-said");
  const board = document.getElementById("step-map");
  const plot = board.querySelector(".plot");
  const panel = document.getElementById("step-pair");
  const reader = page.section("traces");
  const readable = new Set(reader ? reader.traces.map((trace) => trace.number) : []);
  const most = 400; // hundredths of a decade: the largest entry; 0 is this much weaker, or more
  let map = maps[0];
  let at = 0; // place of the layer in map.layers
  let chosen = [0, 0];
  let pointer = "mouse"; // what touched the map last

  const size = () => map.starts.length;
  const entry = (row, column) => map.values[at][(row * (row + 1)) / 2 + column];
  const value = (row, column) => map.top * 10 ** ((entry(row, column) - most) / 100);
  const short = (share) => (share >= 1e-3 ? share.toPrecision(2) : share.toExponential(1).replace("-", "\u2011"));
  const number = (row, column) => (entry(row, column) === 0 ? "at most " : "") + short(value(row, column));
  const name = (step) => (map.segments[step] === "question" && step === 0 ? "question" : `step ${step}`);
  const canRead = () => map.trace !== null && readable.has(map.trace);
  const address = (step) => `#trace-${map.trace}-${map.starts[step]}`;

  function relation(row, column) {
    return row === column ? `${name(row)} drawing on itself` : `${name(row)} drawing on ${name(column)}`;
  }

  function square() {
    const n = size();
    const steps = [...Array(n).keys()];
    return {
      z: steps.map((row) => steps.map((column) => (column > row ? null : entry(row, column) / 100))),
      text: steps.map((row) => steps.map((column) => (column > row ? "" : `${relation(row, column)}: ${number(row, column)}`))),
    };
  }

  function lines() {
    const n = size();
    const ink = page.theme() === "dark" ? "#ffffff" : "#111418";
    const border = { color: page.theme() === "dark" ? "#c3cad4" : "#5c6572", width: 1.5 };
    const shapes = map.borders.flatMap((step) => {
      const edge = step - 0.5;
      return [
        { type: "line", x0: edge, x1: edge, y0: edge, y1: n - 0.5, line: border },
        { type: "line", x0: -0.5, x1: edge, y0: edge, y1: edge, line: border },
      ];
    });
    const [row, column] = chosen;
    shapes.push({ type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, line: { color: ink, width: 2.5 } });
    return shapes;
  }

  function ticks(room) {
    const n = size();
    const every = Math.max(1, Math.ceil(n / room));
    const shown = [...Array(n).keys()].filter((step) => step % every === 0);
    return { tickvals: shown, ticktext: shown.map((step) => (step === 0 ? "Q" : String(step))), showgrid: false, range: [-0.5, n - 0.5] };
  }

  function figure(narrow) {
    const marks = { tickvals: [0, 1, 2, 3, 4], ticktext: ["under 1/10,000", "1/1,000", "1/100", "1/10", "largest"] };
    const flat = { orientation: "h", y: -0.22, yanchor: "top", thickness: 10, x: 0.5, len: 0.84, ticktext: ["\u226410\u207b\u2074", ...marks.ticktext.slice(1)] };
    const bar = { ...marks, thickness: 12, title: { text: "" }, ...(narrow ? flat : {}) };
    const heat = { type: "heatmap", ...square(), coloraxis: "coloraxis", hoverongaps: false, hovertemplate: "%{text}<extra></extra>", xgap: 1, ygap: 1 };
    return {
      data: [heat],
      layout: {
        height: narrow ? 440 : 540,
        margin: { l: 40, r: 10, t: 14, b: narrow ? 110 : 40 },
        coloraxis: { cmin: 0, cmax: 4, colorbar: bar },
        xaxis: { title: { text: "draws on step" }, tickangle: 0, ...ticks(narrow ? 7 : 16) },
        yaxis: { title: { text: "step" }, ...ticks(20), range: [size() - 0.5, -0.5] },
        shapes: lines(),
      },
    };
  }

  const record = { get variants() { return [figure(false), figure(true)]; } };

  function part(title, step) {
    const head = make("h4", "", `${title}: `);
    const segment = name(step) === map.segments[step] ? "" : `, ${map.segments[step]}`;
    const what = `${name(step)}${segment}${map.error === step ? ", first error" : ""}`;
    head.append(canRead() ? link(address(step), "", what) : make("span", "", what));
    return map.texts ? [head, make("p", "said", map.texts[step])] : [head];
  }

  function tell([row, column]) {
    const title = make("h3", "", `Layer ${map.layers[at]}: ${relation(row, column)}`);
    const amount = make("p", "", `Influence of a pair of tokens: ${number(row, column)}`);
    const parts = [title, amount, ...part("Row", row)];
    panel.replaceChildren(...parts, ...(row === column ? [] : part("Column", column)));
  }

  function draw() {
    said.textContent = `${map.layers[at]} of 0\u2013${map.n_layers - 1}`;
    slider.setAttribute("aria-valuetext", `layer ${map.layers[at]}`);
    page.show(plot, record);
    tell(chosen);
  }

  function choose(row, column) {
    const y = Math.min(Math.max(row, 0), size() - 1);
    chosen = [y, Math.min(Math.max(column, 0), y)];
    draw();
  }

  function follow() {
    if (canRead()) location.hash = address(chosen[0]);
  }

  // The pair of different steps with the most influence.
  function strongest() {
    const values = map.values[at];
    const pairs = map.starts.flatMap((_, row) => [...Array(row).keys()].map((column) => [row, column]));
    const place = ([row, column]) => (row * (row + 1)) / 2 + column;
    return pairs.reduce((best, pair) => (values[place(pair)] > values[place(best)] ? pair : best), pairs[0] || [0, 0]);
  }

  function showMap(index) {
    map = maps[index];
    at = Math.min(at, map.layers.length - 1);
    slider.max = map.layers.length - 1;
    slider.value = at;
    choose(...(map.error === null ? strongest() : [map.error, map.error - 1]));
  }

  function table() {
    const rows = map.layers.flatMap((layer, k) => map.values[k].map((hundredths, i) => {
      const row = Math.floor((Math.sqrt(8 * i + 1) - 1) / 2);
      return [layer, row, i - (row * (row + 1)) / 2, (map.top * 10 ** ((hundredths - most) / 100)).toPrecision(3)];
    }));
    return { columns: ["layer", "step", "from_step", "saliency"], rows };
  }

  select.replaceChildren(...maps.map((one, i) => {
    const option = make("option", "", one.label);
    option.value = i;
    return option;
  }));
  showMap(0);
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  plot.on("plotly_hover", (event) => tell([event.points[0].y, event.points[0].x]));
  plot.on("plotly_unhover", () => tell(chosen));
  plot.on("plotly_click", (event) => {
    choose(event.points[0].y, event.points[0].x);
    if (pointer !== "touch") follow(); // a finger cannot point, so its tap shows the texts
  });
  plot.addEventListener("pointerdown", (event) => { pointer = event.pointerType; }, true);
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Enter") follow();
    if (!moves[event.key]) return;
    event.preventDefault();
    choose(chosen[0] + moves[event.key][0], chosen[1] + moves[event.key][1]);
  });
  select.addEventListener("change", () => showMap(Number(select.value)));
  slider.addEventListener("input", () => {
    at = Number(slider.value);
    draw();
  });
  page.tools(board.querySelector(".tools"), plot, () => `step-map-${map.label.replace(/[^\p{L}\p{N}]+/gu, "-")}`, table);
})();
