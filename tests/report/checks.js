// What the browser tests ask of a page; each returns the elements at fault, in words.
const checks = {
  stickingOut() {
    const free = ".steps, .grid, .wide, pre, svg, .inspector, #token, .js-plotly-plot";
    return [...document.querySelectorAll("main *")]
      .filter((e) => e.clientWidth && e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(free))
      .map((e) => e.outerHTML.slice(0, 80));
  },

  unnamed() {
    const named = (e) => e.textContent.trim() || e.getAttribute("aria-label") || (e.labels && e.labels.length);
    return [...document.querySelectorAll("button, select, input, a, [tabindex='0']")]
      .filter((e) => !named(e))
      .map((e) => e.outerHTML);
  },

  // Text whose contrast with what is behind it is below 4.5 to 1.
  faint() {
    const parse = (text) => {
      const found = (text.match(/[\d.]+/g) || []).map(Number);
      return text.startsWith("color(") ? found.map((value, i) => (i < 3 ? 255 * value : value)) : found;
    };
    const over = (top, under) => {
      const alpha = top.length > 3 ? top[3] : 1;
      return [0, 1, 2].map((i) => alpha * top[i] + (1 - alpha) * under[i]);
    };
    const ground = (element) => {
      if (!element) return [255, 255, 255];
      const own = parse(getComputedStyle(element).backgroundColor);
      return own.length === 4 && own[3] === 0 ? ground(element.parentElement) : over(own, ground(element.parentElement));
    };
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const light = (colour) => {
      const [r, g, b] = colour.map((value) => linear(value / 255));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const skipped = "script, style, noscript, svg, [hidden], option, optgroup, select";
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const text = walker.currentNode.textContent.trim();
      if (!text || element.closest(skipped) || !element.getClientRects().length) continue;
      const behind = ground(element);
      const [a, b] = [light(over(parse(getComputedStyle(element).color), behind)), light(behind)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${element.className} ${text.slice(0, 30)}`);
    }
    return found;
  },

  focused() {
    const element = document.activeElement;
    return { name: element.id || element.className || element.tagName, outline: getComputedStyle(element).outlineStyle };
  },

  choose(id, value) {
    const select = document.getElementById(id);
    select.value = value;
    select.dispatchEvent(new Event("change"));
  },

  clickHead(layer, head) {
    document.querySelector("[data-map=kept] .plot").emit("plotly_click", { points: [{ x: head, y: layer }] });
  },
};
