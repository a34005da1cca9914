"""The report in a real browser: figures are drawn, clicks and keys answer, and nothing fails or is fetched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_examples import EVIL, make_diagnosis

from chainwright.report.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

VISIT = """
<script>
addEventListener("load", () => setTimeout(() => {
  const said = {};
  const text = (query) => document.querySelector(query).textContent;
  const change = (query, value) => {
    const element = document.querySelector(query);
    element.value = value;
    element.dispatchEvent(new Event("change"));
  };
  const press = (query, key) =>
    document.querySelector(query).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  said.plots = document.querySelectorAll(".js-plotly-plot .main-svg").length / 3;
  said.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  said.theme = getComputedStyle(document.body).backgroundColor;
  said.head = text("#head-inspector b");
  document.querySelector('[data-map="kept"] .plot').emit("plotly_click", { points: [{ x: 2, y: 1 }] });
  said.clicked = text("#head-inspector b");
  press('[data-map="kept"] .plot', "ArrowLeft");
  said.pressed = text("#head-inspector b");
  change("#pair", "1");
  said.pair = text(".pair:not([hidden]) h3");
  said.cards = document.querySelectorAll(".card").length;
  said.callout = text(".callout");
  said.wrong = text(".t.wrong").trim();
  press(".steps", "ArrowRight");
  said.tip = text("#tip");
  document.querySelector('input[value="logprob"]').click();
  said.scale = text("#scale-high");
  change("#group", "1");
  said.group = text(".card header b");
  document.getElementById("theme").click();
  said.toggled = getComputedStyle(document.body).backgroundColor;
  said.error = document.getElementById("script-error").hidden ? "none" : text("#script-error");
  said.evil = String(window.evil);
  said.fetched = performance.getEntriesByType("resource").length;
  const place = document.createElement("pre");
  place.id = "said";
  place.textContent = Object.entries(said).map(([key, value]) => `${key}=${value}`).join("\\n");
  document.body.replaceChildren(place);
}, 1500));
</script></body>
"""


def visit(source: str, folder: Path, width: int, query: str = "") -> dict[str, str]:
    """Return what the page says of itself after a walk through it."""
    path = folder / "report.html"
    path.write_text(source.replace("</body>\n</html>", VISIT + "</html>"), encoding="utf-8")
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    place = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [CHROMIUM, *flags, *place, "--dump-dom", f"{path.as_uri()}{query}"], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(line.split("=", 1) for line in found[1].splitlines() if "=" in line)


@pytest.mark.parametrize("width", [1280, 500])
def test_a_walk_through_the_page(tmp_path: Path, width: int) -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3, 5)}, extra=EVIL + "日本 ", model="<b>toy</b>")
    said = visit(render(diagnosis), tmp_path, width, "?theme=light")
    best = diagnosis.roles[0].roles.best_head
    assert said["error"] == "none"
    assert said["evil"] == "undefined"
    assert said["fetched"] == "0"
    assert said["plots"] == "11"
    assert float(said["overflow"]) <= 0
    assert said["head"] == f"Layer {best[0]}, head {best[1]}"
    assert (said["clicked"], said["pressed"]) == ("Layer 1, head 2", "Layer 1, head 1")
    assert said["pair"] == "ObjC: name recall"
    assert said["cards"] == "3"
    assert "First error: name recall" in said["callout"]
    assert said["wrong"] in said["callout"]
    assert "entropy" not in said["scale"] and "3 nats" in said["scale"]
    assert "ObjC, 5 hops" in said["group"]
    assert said["theme"] != said["toggled"]


def test_the_address_chooses_the_theme(tmp_path: Path) -> None:
    source = render(make_diagnosis({"parity": (2, 4), "objc": (3, 5)}))
    light, dark = (visit(source, tmp_path, 900, query)["theme"] for query in ("?theme=light", "#dark"))
    assert light == "rgb(246, 247, 249)"
    assert dark == "rgb(20, 23, 28)"
