// Flips: for two ways of decoding the problems that the second fixes and breaks; one opens as two chains side by side.
(() => {
  const place = document.getElementById("flip");
  if (!place) return;
  const { make } = page;
  const sets = page.section("flips");
  const [setSelect, fromSelect, toSelect] = ["set", "from", "to"].map((name) => document.getElementById(`flip-${name}`));
  let now = sets[0];
  let chosen = null; // the button of the problem that is open

  const visible = (text) => text.replaceAll("\n", "\u21b5\n");

  function fill(select, at) {
    select.replaceChildren(...now.names.map((name, index) => {
      const option = make("option", "", name);
      option.value = index;
      return option;
    }));
    select.value = at;
  }

  function pair() {
    return [Number(fromSelect.value), Number(toSelect.value)];
  }

  function list(name, word, isFixed) {
    const [from, to] = pair();
    const found = now.problems.filter(({ answers }) => answers[from].isRight !== answers[to].isRight && answers[to].isRight === isFixed);
    document.getElementById(`flip-${name}-title`).textContent = `${word} ${found.length}`;
    const buttons = found.map((problem) => {
      const button = page.button(make("div"), `${problem.task} ${problem.hops}`, `${word}: ${problem.task}, ${problem.hops} hops, problem ${problem.number}`, () => open(problem, button));
      button.setAttribute("aria-pressed", "false");
      return button;
    });
    document.getElementById(`flip-${name}`).replaceChildren(...(buttons.length ? buttons : [make("p", "aside", "none")]));
    return buttons;
  }

  function showLists() {
    const [fixed, broken] = [list("fixed", "Fixed:", true), list("broken", "Broken:", false)];
    chosen = null;
    place.replaceChildren();
    const first = fixed[0] || broken[0];
    if (first) first.click();
  }

  function open(problem, button) {
    if (chosen) chosen.setAttribute("aria-pressed", "false");
    chosen = button;
    chosen.setAttribute("aria-pressed", "true");
    const [from, to] = pair();
    const chains = [from, to].map((way) => now.chains[problem.answers[way].chain]);
    const differs = firstDifference(...chains);
    const box = make("article", "flip-card");
    const head = make("header");
    head.append(make("b", "", `${problem.task}, ${problem.hops} ${problem.hops === 1 ? "hop" : "hops"}`));
    head.append(make("span", "", `gold answer: ${problem.answer}`), make("span", "", `problem ${problem.number}`));
    const question = make("details");
    question.append(make("summary", "", "Question"), make("pre", "", problem.prompt));
    const both = make("div", "flip-both");
    [from, to].forEach((way, side) => both.append(column(problem.answers[way], now.names[way], chains[side], differs)));
    box.append(head, question, both);
    place.replaceChildren(box);
  }

  function firstDifference(one, other) {
    const length = Math.min(one.length, other.length);
    for (let at = 0; at < length; at += 1) if (one[at] !== other[at]) return at;
    return length;
  }

  function column(answer, name, chain, differs) {
    const box = make("section", "flip-column");
    const head = make("h4", "", `${name} `);
    const said = [`chain ${answer.isRight ? "right" : "wrong"}`, `answer ${answer.isCorrect ? "right" : "wrong"}`];
    if (!answer.isWhole) said.push("cut by the token limit");
    head.append(make("span", answer.isRight ? "aside" : "bad aside", said.join(", ")));
    box.append(head);
    box.append(answer.error ? errorLine(answer.error) : make("p", "small", "No slot is wrong."));
    const text = make("div", "flip-text");
    text.tabIndex = 0;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `What ${name} wrote`);
    const flagged = new Set(answer.flagged || []);
    chain.forEach((piece, at) => text.append(token(now.texts[piece], at, { differs, flagged, error: answer.error })));
    if (differs === chain.length) text.append(make("span", "differs", "(ends here)"));
    box.append(text);
    if (answer.flagged) box.append(make("p", "small", `${answer.flagged.length} of ${chain.length} tokens flagged`));
    return box;
  }

  function token(text, at, { differs, flagged, error }) {
    const element = make("span", "", visible(text));
    const notes = [];
    if (at === differs) { element.classList.add("differs"); notes.push("first difference"); }
    if (flagged.has(at)) { element.classList.add("flagged"); notes.push("flagged"); }
    if (error && error.at === at) { element.classList.add("wrong"); notes.push("first error"); }
    if (notes.length) element.title = `token ${at}: ${notes.join(", ")}`;
    return element;
  }

  function errorLine(error) {
    const line = make("p", "small", `First error: ${error.error_type}${error.hop === null ? "" : `, hop ${error.hop}`}; expected `);
    line.append(make("code", "", error.expected), error.got ? ", got " : "; the response ends or cannot be read there");
    if (error.got) line.append(make("code", "", error.got));
    return line;
  }

  // The first way that fixes or breaks a chain of the baseline.
  function firstOther() {
    const moves = (way) => now.problems.some(({ answers }) => answers[way].isRight !== answers[0].isRight);
    return now.names.findIndex((_, way) => way > 0 && moves(way));
  }

  function start(index) {
    now = sets[index];
    fill(fromSelect, 0);
    fill(toSelect, Math.max(1, firstOther()));
    showLists();
  }

  setSelect.addEventListener("change", () => start(Number(setSelect.value)));
  for (const select of [fromSelect, toSelect]) select.addEventListener("change", showLists);
  start(0);
})();
