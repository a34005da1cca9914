// Draws the figures of a notebook's page. Their colours follow the page's: text and background of the theme.
function draw() {
  const colour = getComputedStyle(document.body).getPropertyValue("--md-default-fg-color").trim() || "#333";
  for (const box of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(box.querySelector("script").textContent);
    let place = box.querySelector(".drawn");
    if (!place) {
      place = document.createElement("div");
      place.className = "drawn";
      box.append(place);
    }
    const layout = { ...figure.layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    delete layout.width;
    layout.font = { ...layout.font, color: colour };
    Plotly.react(place, figure.data, layout, { responsive: true, displaylogo: false });
  }
}
document.addEventListener("DOMContentLoaded", draw);
new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
