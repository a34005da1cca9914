"""The published findings of the four papers, what was measured of each with our models, and the table of both.

    catalogue.py   the findings: statement, published figure, what is measured, and the rule that gives the verdict
    rules.py       the kinds of rules
    results.py     a record of one measurement, `docs/results/<model>/<finding>.json`
    page.py        `docs/findings.md` from the records (`chainwright reproduce findings`)

A study writes a record in three lines:

    from chainwright.reproduce.findings import Result, save_result
    result = Result(finding="steps-gain", model="smollm2-hops", value=0.03, low=-0.01, high=0.07, shown="+0.03", ...)
    save_result("docs/results", result)

A command outside of `chainwright.cli.reproduce` takes the option `results: ResultsFolder = None` and calls
`write_result`, both from `chainwright.cli._results`; without the option nothing is written:

    write_result(results, finding="flow-order", model=model, value=0.9, shown="54 of 60", n=60, n_what="queries", ...)

A record of the same finding and model replaces the earlier one. What could not be measured is a record too, with
`outcome="not run"` or `"cannot be tested here"` and a `reason`. A finding that the catalogue lacks is added there
first. Then `chainwright reproduce findings` writes the page again, also after a conflict in it; a test compares both.
"""

from chainwright.reproduce.findings.catalogue import FINDINGS, PAPERS, Published
from chainwright.reproduce.findings.page import findings_page
from chainwright.reproduce.findings.results import Result, read_results, save_result

__all__ = ["FINDINGS", "PAPERS", "Published", "Result", "findings_page", "read_results", "save_result"]
