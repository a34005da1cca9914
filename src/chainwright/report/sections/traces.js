"use strict";
// The trace reader: question and response step by step, tokens shaded, the first error marked, numbers on demand.
(() => {
  const select = document.getElementById("group");
  if (!select) return;
  const { groups, texts, traces } = page.section("traces");
  const reader = document.getElementById("reader");
  const tip = document.getElementById("tip");
  const tops = { entropy: 1.5, logprob: 3 }; // nats at which the shade is full
  let shade = "entropy";
  let now = null;

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text; // never innerHTML: the text is a model's
    return element;
  }

  function strength(trace, at) {
    const value = shade === "entropy" ? trace.entropy[at] : -trace.logprob[at];
    return value === null || at < trace.start ? 0 : Math.min(Math.max(value / tops[shade], 0), 1);
  }

  const visible = (text) => text.replaceAll("\n", "\u21b5\n");

  function token(trace, at, isLast) {
    const text = texts[trace.pieces[at]];
    const error = trace.error;
    const element = make("span", "t", isLast ? visible(text).replace(/\n$/, "") : visible(text));
    element.dataset.at = at;
    element.style.setProperty("--u", strength(trace, at).toFixed(3));
    if (at >= trace.start && trace.likeliest[at] >= 0) element.classList.add("other");
    if (error && error.start !== null && at >= error.start && at < error.end) element.classList.add("wrong");
    if (/^\s*<[^<>]*>\s*$|^\n$/.test(text)) element.classList.add("mark");
    return element;
  }

  function stepLine(trace, index, shown) {
    const [start, end, segment] = trace.steps[index];
    const isFirst = index === 0 || trace.steps[index - 1][2] !== segment;
    const line = make("div", `step in-${segment}${isFirst && index ? " first" : ""}`);
    const text = make("div", "text");
    for (let at = start; at < end; at += 1) text.append(token(trace, at, at === end - 1));
    const where = make("div", "where");
    if (isFirst) where.append(make("span", "segment", segment), " ");
    where.append(make("span", "number", segment === "question" ? "" : shown));
    line.append(where, text);
    return line;
  }

  function callout(error) {
    const box = make("div", "callout");
    const hop = error.hop === null ? "" : `, hop ${error.hop}`;
    box.append(make("b", "", `First error: ${error.type}${hop}`), ". Expected ", make("code", "", error.expected));
    if (error.got) box.append(", got ", make("code", "", error.got), ".");
    else box.append("; here the response cannot be read further, or ends.");
    return box;
  }

  function card(trace) {
    const box = make("article", "card");
    const header = make("header");
    header.append(make("b", "", `${trace.task}, ${trace.hops} ${trace.hops === 1 ? "hop" : "hops"}`));
    header.append(make("span", trace.error ? "bad" : "", trace.error ? "chain wrong" : "chain right"));
    header.append(make("span", "", `answer ${trace.is_correct ? "right" : "wrong"} (gold: ${trace.answer})`));
    if (!trace.stopped) header.append(make("span", "bad", "cut by the token limit"));
    header.append(make("span", "", `trace ${trace.number}, ${trace.pieces.length.toLocaleString("en")} tokens`));
    const steps = make("div", "steps");
    steps.tabIndex = 0;
    steps.setAttribute("role", "group");
    steps.setAttribute("aria-label", `Trace ${trace.number}; arrow keys go from token to token`);
    let isSaid = !trace.error;
    let shown = 0;
    trace.steps.forEach((step, index) => {
      shown += step[2] === "question" ? 0 : 1;
      steps.append(stepLine(trace, index, shown));
      if (!isSaid && trace.error.start !== null && trace.error.start < step[1]) {
        steps.append(callout(trace.error));
        isSaid = true;
      }
    });
    if (!isSaid) steps.append(callout(trace.error));
    steps.addEventListener("keydown", (event) => walk(event, steps, trace));
    box.append(header, steps);
    box.addEventListener("pointerover", (event) => point(event.target.closest(".t"), trace));
    box.addEventListener("pointerleave", () => point(null, trace));
    return box;
  }

  function walk(event, steps, trace) {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    event.preventDefault();
    const all = [...steps.querySelectorAll(".t")];
    const first = trace.error && trace.error.start !== null ? trace.error.start : trace.start;
    const from = now && steps.contains(now) ? all.indexOf(now) + (event.key === "ArrowRight" ? 1 : -1) : first;
    const next = all[Math.min(Math.max(from, 0), all.length - 1)];
    next.scrollIntoView({ block: "nearest" });
    point(next, trace);
  }

  function point(element, trace) {
    if (now) now.classList.remove("now");
    now = element;
    tip.hidden = !element;
    if (!element) return;
    element.classList.add("now");
    const at = Number(element.dataset.at);
    tip.textContent = numbers(trace, at);
    const box = element.getBoundingClientRect();
    const left = Math.min(Math.max(box.left, 8), document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 56 ? above : box.bottom + 6) + scrollY}px`;
  }

  function numbers(trace, at) {
    const quoted = (text) => `\u201c${text.replaceAll("\n", "\u21b5")}\u201d`;
    const title = `${quoted(texts[trace.pieces[at]])}, token ${at}`;
    if (trace.logprob[at] === null) return `${title}\nnothing before it, so no numbers`;
    const p = Math.exp(trace.logprob[at]);
    const best = trace.likeliest[at] < 0 ? "this one" : quoted(texts[trace.likeliest[at]]);
    const share = p > 0.0005 ? `${(100 * p).toFixed(1)}%` : "<0.1%";
    return `${title}\nlog-probability ${trace.logprob[at].toFixed(3)} (${share})\nentropy ${trace.entropy[at].toFixed(3)} nats\nlikeliest token: ${best}`;
  }

  function showScale() {
    document.getElementById("scale-low").textContent = shade === "entropy" ? "sure: 0" : "0";
    document.getElementById("scale-high").textContent = shade === "entropy" ? "1.5 nats or more" : "\u22123 nats or less";
  }

  function showGroup() {
    now = null;
    tip.hidden = true;
    reader.replaceChildren(...groups[Number(select.value)].traces.map((index) => card(traces[index])));
    for (const question of reader.querySelectorAll(".in-question .text")) question.scrollTop = question.scrollHeight;
    for (const steps of reader.querySelectorAll(".steps")) {
      const wrong = steps.querySelector(".callout");
      if (wrong) steps.scrollTop = Math.max(0, wrong.offsetTop - steps.offsetTop - 0.6 * steps.clientHeight);
    }
    showScale();
  }

  groups.forEach((group, index) => {
    const option = make("option", "", group.label);
    option.value = index;
    select.append(option);
  });
  select.addEventListener("change", showGroup);
  for (const input of document.querySelectorAll('input[name="shade"]')) {
    input.addEventListener("change", () => {
      shade = input.value;
      showGroup();
    });
  }
  showGroup();
})();
