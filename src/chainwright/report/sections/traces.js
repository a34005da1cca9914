// The trace reader: a question and its response step by step, tokens shaded, the first error marked, and for one chosen
// token its numbers, what else might have been said, and what is said without each of the top heads.
const traceReader = (() => {
  const groupSelect = document.getElementById("group");
  if (!groupSelect) return undefined;
  const { make, link, percent } = page;
  const { groups, texts, traces, filters } = page.section("traces");
  const labelSelect = document.getElementById("trace-label"); // only where traces have labels
  const traceSelect = document.getElementById("trace");
  const reader = document.getElementById("reader");
  const panel = document.getElementById("token");
  const tip = document.getElementById("tip");
  const tops = { entropy: 1500, lost: 3000 }; // thousandths of a nat at which the shade is full
  const place = new Map(traces.map((trace, index) => [trace.number, index]));
  let shade = "entropy";
  let now = null; // the chosen token's element
  let shown = null; // the trace on the page
  const watchers = []; // what is called when another trace is on the page

  const visible = (text) => text.replaceAll("\n", "\u21b5\n");
  const quoted = (text) => `\u201c${text.replaceAll("\n", "\u21b5")}\u201d`;
  const bare = (text) => (text.trim() ? quoted(text.trim()) : quoted(text));
  const nats = (thousandths) => (thousandths / 1000).toFixed(3);

  function value(trace, at, kind) {
    return at < trace.start ? null : trace[kind][at - trace.start];
  }

  function strength(trace, at) {
    const found = value(trace, at, shade);
    return found === null ? 0 : Math.min(Math.max(found / tops[shade], 0), 1);
  }

  function isOther(trace, at) {
    const others = trace.others[at];
    return others !== undefined && texts[others[0][0]].trim() !== texts[trace.pieces[at]].trim();
  }

  function token(trace, at, isLast) {
    const text = texts[trace.pieces[at]];
    const error = trace.error;
    const element = make("span", "t", isLast ? visible(text).replace(/\n$/, "") : visible(text));
    element.dataset.at = at;
    element.style.setProperty("--u", strength(trace, at).toFixed(3));
    if (isOther(trace, at)) element.classList.add("other");
    if (error && error.start !== null && at >= error.start && at < error.end) element.classList.add("wrong");
    if (/^\s*<[^<>]*>\s*$|^\n$/.test(text)) element.classList.add("mark");
    return element;
  }

  function stepLine(trace, index, number) {
    const [start, end, segment] = trace.steps[index];
    const isFirst = index === 0 || trace.steps[index - 1][2] !== segment;
    const line = make("div", `step in-${segment}${isFirst && index ? " first" : ""}`);
    const text = make("div", "text");
    for (let at = start; at < end; at += 1) text.append(token(trace, at, at === end - 1));
    const where = make("div", "where");
    if (isFirst) where.append(make("span", "segment", segment), " ");
    where.append(make("span", "number", segment === "question" ? "" : number));
    line.append(where, text);
    return line;
  }

  function callout(trace) {
    const { error } = trace;
    const box = make("div", "callout");
    const hop = error.hop === null ? "" : `, hop ${error.hop}`;
    box.append(make("b", "", `First error: ${error.type}${hop}`), ". Expected ", make("code", "", error.expected));
    if (error.got) box.append(", got ", make("code", "", error.got), ".");
    else box.append("; here the response cannot be read further, or ends.");
    const others = error.at === null ? undefined : trace.others[error.at];
    if (others && others[2] && value(trace, error.at, "lost") !== null) {
      box.append(` The model gave the expected ${bare(texts[others[2][0]])} ${percent(others[2][1])}`);
      box.append(` and ${bare(texts[trace.pieces[error.at]])} ${percent(1000 * Math.exp(-value(trace, error.at, "lost") / 1000))}.`);
    }
    return box;
  }

  function hopsOf(trace) {
    return trace.hops === null ? "" : `, ${trace.hops} ${trace.hops === 1 ? "hop" : "hops"}`;
  }

  function header(trace) {
    const box = make("header");
    box.append(make("b", "", trace.task + hopsOf(trace)));
    if (trace.error || trace.hops !== null) box.append(make("span", trace.error ? "bad" : "", trace.error ? "chain wrong" : "chain right"));
    const gold = trace.answer === null ? "" : ` (gold: ${trace.answer})`;
    if (trace.outcome) box.append(make("span", trace.outcome === "right answer" ? "" : "bad", `${trace.outcome}${gold}`));
    else if (trace.is_correct !== null) box.append(make("span", "", `answer ${trace.is_correct ? "right" : "wrong"}${gold}`));
    if (trace.read) box.append(make("span", "", trace.read[0] === null ? trace.read[1] : `read: ${trace.read[0]} (${trace.read[1]})`));
    for (const [name, value] of Object.entries(trace.labels)) box.append(make("span", "", `${name}: ${value}`));
    if (!trace.stopped) box.append(make("span", "bad", "cut by the token limit"));
    box.append(make("span", "", `trace ${trace.number}, ${trace.pieces.length.toLocaleString("en")} tokens`));
    const tools = make("div", "tools");
    if (trace.error && trace.error.at !== null) page.button(tools, "First error", "", () => chooseAt(trace.error.at));
    page.saveTable(tools, () => `trace-${trace.number}`, () => table(trace));
    box.append(tools);
    return box;
  }

  function table(trace) {
    const columns = ["position", "step", "token", "log-probability", "entropy", "likeliest", "probability of likeliest"];
    const rows = trace.steps.flatMap(([start, end], step) => trace.pieces.slice(start, end).map((piece, offset) => {
      const at = start + offset;
      const [lost, entropy] = [value(trace, at, "lost"), value(trace, at, "entropy")];
      const [tokens, shares] = trace.others[at] || [[], []];
      return [at, step, texts[piece], lost === null ? null : -lost / 1000, entropy === null ? null : entropy / 1000,
        tokens.length ? texts[tokens[0]] : null, shares.length ? shares[0] / 1000 : null];
    }));
    return { columns, rows };
  }

  function card(trace) {
    const box = make("article", "card");
    const steps = make("div", "steps");
    steps.tabIndex = 0;
    steps.setAttribute("role", "group");
    steps.setAttribute("aria-label", `Trace ${trace.number}; arrow keys go from token to token`);
    let isSaid = !trace.error;
    let number = 0;
    trace.steps.forEach((step, index) => {
      number += step[2] === "question" ? 0 : 1;
      steps.append(stepLine(trace, index, number));
      if (!isSaid && trace.error.start !== null && trace.error.start < step[1]) {
        steps.append(callout(trace));
        isSaid = true;
      }
    });
    if (!isSaid) steps.append(callout(trace));
    steps.addEventListener("keydown", walk);
    steps.addEventListener("click", (event) => {
      const element = event.target.closest(".t");
      if (element) choose(element);
    });
    box.append(header(trace), steps);
    box.addEventListener("pointerover", (event) => point(event.target.closest(".t")));
    box.addEventListener("pointerleave", () => point(null));
    return box;
  }

  function walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...reader.querySelectorAll(".t")];
    const from = now ? all.indexOf(now) + step : shown.start;
    const next = all[Math.min(Math.max(from, 0), all.length - 1)];
    next.scrollIntoView({ block: "nearest" });
    choose(next);
  }

  function point(element) {
    tip.hidden = !element;
    if (!element) return;
    const said = numbers(shown, Number(element.dataset.at)).map((pair) => pair.join(" ")).join("\n");
    tip.textContent = said || withoutNumbers(shown, Number(element.dataset.at));
    const box = element.getBoundingClientRect();
    const left = Math.min(Math.max(box.left, 8), document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 56 ? above : box.bottom + 6) + scrollY}px`;
  }

  function numbers(trace, at) {
    const lost = value(trace, at, "lost");
    if (lost === null) return [];
    return [
      ["probability", percent(1000 * Math.exp(-lost / 1000))],
      ["log-probability", `${lost ? "\u2212" : ""}${nats(lost)} nats`],
      ["entropy", `${nats(value(trace, at, "entropy"))} nats`],
    ];
  }

  function withoutNumbers(trace, at) {
    return at < trace.start ? "Part of the question, so it was not predicted." : "Not scored.";
  }

  function choose(element) {
    if (now) now.classList.remove("now");
    now = element;
    now.classList.add("now");
    describe(shown, Number(element.dataset.at));
  }

  function chooseAt(at) {
    const element = reader.querySelector(`.t[data-at="${at}"]`);
    if (!element) return;
    const steps = reader.querySelector(".steps");
    const wanted = element.offsetTop - steps.offsetTop - 0.5 * steps.clientHeight;
    steps.scrollTop = Math.max(0, wanted);
    choose(element);
  }

  function describe(trace, at) {
    const title = make("h3", "", `${quoted(texts[trace.pieces[at]])} `);
    title.append(make("span", "aside", `token ${at}`));
    const parts = [title, measures(trace, at)];
    const isFirstError = trace.error && at === trace.error.at;
    if (isFirstError) parts.push(make("p", "bad", `First wrong token. Expected: ${bare(trace.error.expected)}.`));
    const others = trace.others[at];
    if (others && others[1].length) parts.push(...alternatives(trace, at, others));
    else if (others) parts.push(make("p", "", `Likeliest token: ${bare(texts[others[0][0]])}`));
    else if (at >= trace.start && value(trace, at, "lost") !== null) parts.push(make("p", "aside", "No alternatives are kept where the model was sure and decided nothing."));
    if (isFirstError && trace.without) parts.push(...withoutHeads(trace));
    const hide = page.button(make("div"), "Hide", "", () => { panel.hidden = true; });
    hide.className = "hide";
    panel.replaceChildren(hide, ...parts);
    panel.hidden = false;
    panel.scrollTop = 0;
  }

  function measures(trace, at) {
    const list = make("dl", "measures");
    for (const [name, said] of numbers(trace, at)) list.append(make("dt", "", name), make("dd", "", said));
    return list.children.length ? list : make("p", "aside", withoutNumbers(trace, at));
  }

  function alternatives(trace, at, [tokens, shares, expected]) {
    const own = texts[trace.pieces[at]].trim();
    const list = make("ol", "others");
    tokens.forEach((piece, rank) => {
      const item = make("li");
      const bar = make("i");
      bar.style.setProperty("--p", shares[rank] / 1000);
      const notes = [texts[piece].trim() === own ? "written" : "", expected && expected[0] === piece ? "expected" : ""];
      item.append(bar, make("code", "", bare(texts[piece])), make("span", "share", percent(shares[rank])));
      item.append(make("span", "aside", notes.filter(Boolean).join(", ")));
      list.append(item);
    });
    const parts = [make("h4", "", "What it might have said"), list];
    if (expected && !tokens.includes(expected[0])) {
      parts.push(make("p", "", `The expected ${bare(texts[expected[0]])} is not among them: ${percent(expected[1])}.`));
    }
    return parts;
  }

  function withoutHeads(trace) {
    const pairs = page.section("heads") || [];
    const index = pairs.findIndex((pair) => pair.label === `${trace.task}: ${trace.error.type}`);
    const grid = make("table", "without");
    const head = make("tr");
    for (const text of ["without", "says", "right one"]) {
      const cell = make("th", "", text);
      cell.scope = "col";
      head.append(cell);
    }
    grid.append(head);
    for (const [layer, number, piece, share, right, isRight] of trace.without) {
      const row = make("tr", isRight ? "fixes" : "");
      const name = make("th");
      name.scope = "row";
      if (layer < 0) name.append("none");
      else if (index < 0) name.append(`L${layer}H${number}`);
      else name.append(link(`#head-${index}-${layer}-${number}`, "", `L${layer}H${number}`));
      const says = make("td");
      says.append(make("code", "", bare(texts[piece])), ` ${percent(share)}`);
      if (isRight) says.append(make("b", "", " fixed"));
      row.append(name, says, make("td", "share", percent(right)));
      grid.append(row);
    }
    return [make("h4", "", "What it says without one head"), grid];
  }

  function showScale() {
    document.getElementById("scale-low").textContent = shade === "entropy" ? "sure: 0" : "0";
    document.getElementById("scale-high").textContent = shade === "entropy" ? "1.5 nats or more" : "\u22123 nats or less";
  }

  function showTrace(index, at) {
    now = null;
    tip.hidden = true;
    shown = traces[index];
    traceSelect.value = index;
    reader.replaceChildren(card(shown));
    const question = reader.querySelector(".in-question .text");
    if (question && question.scrollHeight > question.clientHeight) {
      question.tabIndex = 0; // so that keys scroll it
      question.setAttribute("role", "group");
      question.setAttribute("aria-label", "The question");
      question.scrollTop = question.scrollHeight;
    }
    const error = shown.error ? shown.error.at : null;
    const start = Math.min(shown.start, shown.pieces.length - 1);
    chooseAt(at !== undefined ? at : error !== null ? error : start);
    for (const watcher of watchers) watcher(index);
  }

  function label(trace) {
    const said = trace.error && trace.error.got ? `: ${trace.error.got} for ${trace.error.expected}` : "";
    return `${trace.number}${trace.name ? `, ${trace.name}` : ""}${hopsOf(trace)}${said}`.slice(0, 48);
  }

  function ofGroup(group) {
    if (!labelSelect || labelSelect.value === "") return groups[group].traces;
    const [name, value] = filters[Number(labelSelect.value)];
    return groups[group].traces.filter((index) => traces[index].labels[name] === value);
  }

  function fillTraces(group) {
    traceSelect.replaceChildren(...ofGroup(group).map((index) => {
      const option = make("option", "", label(traces[index]));
      option.value = index;
      return option;
    }));
  }

  function showGroup(group) {
    fillTraces(group);
    const own = ofGroup(group);
    if (own.length) return showTrace(own[0]);
    panel.hidden = true;
    reader.replaceChildren(make("p", "note", "No trace of this group has this label."));
  }

  function move(step) {
    const own = ofGroup(Number(groupSelect.value));
    const next = own.indexOf(Number(traceSelect.value)) + step;
    if (next >= 0 && next < own.length) showTrace(own[next]);
  }

  function fillGroups() {
    const boxes = new Map();
    groups.forEach((group, index) => {
      if (!boxes.has(group.task)) {
        const box = make("optgroup");
        box.label = group.task;
        boxes.set(group.task, box);
        groupSelect.append(box);
      }
      const option = make("option", "", `${group.task}: ${group.label}${group.is_key ? " \u25c6" : ""} (${group.n})`);
      option.value = index;
      boxes.get(group.task).append(option);
    });
  }

  fillGroups();
  if (labelSelect) {
    filters.forEach(([name, value], index) => {
      const option = make("option", "", `${name}: ${value}`);
      option.value = index;
      labelSelect.append(option);
    });
    labelSelect.addEventListener("change", () => showGroup(Number(groupSelect.value)));
  }
  groupSelect.addEventListener("change", () => showGroup(Number(groupSelect.value)));
  traceSelect.addEventListener("change", () => showTrace(Number(traceSelect.value)));
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  for (const input of document.querySelectorAll('input[name="shade"]')) {
    input.addEventListener("change", () => {
      shade = input.value;
      for (const element of reader.querySelectorAll(".t")) {
        element.style.setProperty("--u", strength(shown, Number(element.dataset.at)).toFixed(3));
      }
      showScale();
    });
  }
  // Shows a trace at a token, whatever group and label are chosen.
  function open(index, at) {
    const group = groups.findIndex((one) => one.traces.includes(index));
    groupSelect.value = group;
    if (labelSelect) labelSelect.value = "";
    fillTraces(group);
    showTrace(index, at);
    document.querySelector(".reader-board").scrollIntoView();
    const low = now.getBoundingClientRect().bottom - 0.45 * innerHeight; // narrow pages have the panel below that
    if (getComputedStyle(panel.parentElement).display === "block") scrollBy(0, Math.max(0, low));
  }

  page.route(/^#trace-(\d+)-(\d+)$/, (number, at) => {
    const index = place.get(Number(number));
    if (index === undefined) return;
    open(index, Number(at));
    reader.querySelector(".steps").focus({ preventScroll: true });
  });
  showScale();
  showGroup(Math.max(0, groups.findIndex((group) => group.is_key)));
  return {
    open,
    order: groups.flatMap((group) => group.traces),
    text: (index) => traces[index].pieces.map((piece) => texts[piece]),
    shown: () => traces.indexOf(shown),
    token: (at) => reader.querySelector(`.t[data-at="${at}"]`),
    watch: (act) => watchers.push(act),
  };
})();
