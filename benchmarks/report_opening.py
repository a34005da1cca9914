"""How long a report of many traces takes to open: 500 traces of about 200 tokens with scores and head maps.

The traces are made by hand, as in the tests, so no model is needed. A headless Chromium, which must be installed, opens
the file from disk several times at 1280 x 900 pixels, with an empty cache. Printed are the size of the file and, as
medians, the seconds from the start of the navigation until all scripts have run and everything answers (loaded) and
until it is on the screen (drawn), and the processor seconds of the page's scripts and of its main thread, which do not
depend on what else the machine does; then the seconds of one search through all traces.

    python benchmarks/report_opening.py [--traces 500] [--runs 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "report")]

from browser import CHROMIUM, Page, browser  # noqa: E402
from report_examples import full, make_diagnosis  # noqa: E402

from chainwright import write_report  # noqa: E402

HOPS = {"parity": (16, 18), "objc": (13, 14)}
_OPENED = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
_DRAWN = (
    "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() / 1000))))"
)
_SEARCH = """(async () => {
  document.getElementById("search-open").click();
  const input = document.getElementById("search-for");
  const start = performance.now();
  input.value = WORDS;
  input.dispatchEvent(new Event("input"));
  while (!document.getElementById("search-status").textContent) await new Promise((go) => setTimeout(go, 1));
  return [(performance.now() - start - 150) / 1000, document.getElementById("search-status").textContent];
})()"""


def opened(page: Page, path: Path) -> dict[str, float]:
    """Return the seconds that one opening took."""
    page.ask("Performance.enable", timeDomain="threadTicks")
    page.ask("Network.clearBrowserCache")
    page.open(path)
    seen = {"loaded": float(page.run(_OPENED)), "drawn": float(page.run(_DRAWN))}
    metrics = {each["name"]: each["value"] for each in page.ask("Performance.getMetrics")["metrics"]}
    page.ask("Performance.disable")
    return seen | {"script": metrics["ScriptDuration"], "main thread": metrics["TaskDuration"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what opening takes."""
    asked = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    asked.add_argument("--traces", type=int, default=500)
    asked.add_argument("--runs", type=int, default=5)
    asked.add_argument("--out", type=Path, help="keep the report")
    options = asked.parse_args(arguments)
    if CHROMIUM is None:
        sys.exit("This needs Chromium on the path.")
    n = options.traces // sum(map(len, HOPS.values()))
    diagnosis = full(make_diagnosis(HOPS, n=n, n_wrong=6, shape=(12, 12)))
    with tempfile.TemporaryDirectory() as folder:
        path = (options.out or Path(folder) / "report.html").resolve()
        began = time.perf_counter()
        write_report(diagnosis, path)
        took = time.perf_counter() - began
        tokens = statistics.mean(len(trace) for trace in diagnosis.traces)
        size = path.stat().st_size / 1e6
        print(f"{len(diagnosis.traces)} traces of {tokens:.0f} tokens: {size:.1f} MB, written in {took:.1f} s")
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        with browser(Path(folder)) as page:
            runs = [opened(page, path) for _ in range(options.runs)]
            for name in runs[0]:
                values = [run[name] for run in runs]
                print(f"{name:12} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})")
            shown = page.run("page.section('traces').traces.length")
            for words in ("ann", "never there"):
                took, said = page.run(_SEARCH.replace("WORDS", repr(words)))
                page.run("document.getElementById('search-close').click()")
                print(f"search {words!r}: {took:.3f} s, {said}")
            print(f"{shown} traces are in the file; the page complained of {len(page.complaints)} things")


if __name__ == "__main__":
    main()
