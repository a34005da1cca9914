// Search in the texts of all traces: a bar below the top of the page, opened by its button or by the key "/".
(() => {
  const opener = document.getElementById("search-open");
  if (!traceReader) return;
  const bar = document.getElementById("search");
  const input = document.getElementById("search-for");
  const status = document.getElementById("search-status");
  const steppers = [document.getElementById("search-previous"), document.getElementById("search-next")];
  let folded = null; // of each trace, its text in lower case and where each token begins in it
  let hits = []; // [trace, first token, last token], in the order in which the page lists traces
  let now = -1;
  let waiting = 0;

  // Token by token: lower case may have another length.
  function fold(index) {
    let length = 0;
    const starts = [];
    const parts = traceReader.text(index).map((text) => {
      const low = text.toLowerCase();
      starts.push(length);
      length += low.length;
      return low;
    });
    return { index, text: parts.join(""), starts };
  }

  function tokenAt(starts, place) {
    let [low, high] = [0, starts.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= place) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  function find(wanted) {
    folded = folded || traceReader.order.map(fold);
    const found = [];
    for (const { index, text, starts } of folded) {
      for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
        found.push([index, tokenAt(starts, at), tokenAt(starts, at + wanted.length - 1)]);
      }
    }
    return found;
  }

  const many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

  function say() {
    if (!input.value) status.textContent = "";
    else if (!hits.length) status.textContent = "Not found";
    else {
      const all = `${many(hits.length, "match").replace("matchs", "matches")} in ${many(new Set(hits.map(([index]) => index)).size, "trace")}`;
      status.textContent = now < 0 ? all : `${(now + 1).toLocaleString("en")} of ${all}`;
    }
    for (const button of steppers) button.disabled = !hits.length;
  }

  function marks(name, tokens) {
    for (const element of document.querySelectorAll(`#reader .${name}`)) element.classList.remove(name);
    for (const at of tokens) traceReader.token(at)?.classList.add(name);
  }

  const span = ([, first, last]) => Array.from({ length: last - first + 1 }, (_, k) => first + k);

  function mark() {
    const index = traceReader.shown();
    marks("hit", hits.filter((hit) => hit[0] === index).flatMap(span));
    marks("found", now >= 0 && hits[now][0] === index ? span(hits[now]) : []);
  }

  function search() {
    clearTimeout(waiting);
    waiting = 0;
    hits = input.value ? find(input.value.toLowerCase()) : [];
    now = -1;
    say();
    mark();
  }

  function go(step) {
    if (waiting) search();
    if (!hits.length) return;
    now = now < 0 ? (step > 0 ? 0 : hits.length - 1) : (now + step + hits.length) % hits.length;
    traceReader.open(hits[now][0], hits[now][1]);
    say();
    mark();
  }

  function show(isOpen) {
    bar.hidden = !isOpen;
    document.documentElement.style.setProperty("--top", `${bar.parentElement.offsetHeight + 4}px`);
    opener.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) {
      input.focus();
      input.select();
      return;
    }
    input.value = "";
    search();
    opener.focus();
  }

  opener.hidden = false;
  opener.addEventListener("click", () => show(bar.hidden));
  document.getElementById("search-close").addEventListener("click", () => show(false));
  steppers[0].addEventListener("click", () => go(-1));
  steppers[1].addEventListener("click", () => go(1));
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 150);
  });
  bar.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(false);
    else if (event.key === "Enter" && event.target === input) go(event.shiftKey ? -1 : 1);
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "radio";
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
    event.preventDefault();
    show(true);
  });
  traceReader.watch(mark);
  say();
})();
